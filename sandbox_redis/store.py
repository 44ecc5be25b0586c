"""The store for threads: `SandboxStore`, and the driver that carries its operations out. What the operations do
stands in ``operations.py``; here is only sending, waiting and returning.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from sandbox_redis.audit import audit
from sandbox_redis.batch import Batch
from sandbox_redis.errors import StoreUnavailableError
from sandbox_redis.faces import agent_name, annotate, default_url
from sandbox_redis.in_step import CHUNK
from sandbox_redis.operations import Operations
from sandbox_redis.queries import Listing
from sandbox_redis.record import Sandbox, Status
from sandbox_redis.selection import selection
from sandbox_redis.session import EVENTS_MAXLEN, TIMEOUT
from sandbox_redis.states import State
from sandbox_redis.transaction import UpdateFunc
from sandbox_redis.wire import Failure, Lease, Op, Send, SendAll, Unsent

if TYPE_CHECKING:
    import redis

    from sandbox_redis.lane import Lane, Leased

P = ParamSpec("P")
T = TypeVar("T")


def _played(operation: Callable[Concatenate[Operations, P], Op[T]]) -> Callable[Concatenate[SandboxStore, P], T]:
    @wraps(operation)
    def method(self: SandboxStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return play(self._lane, operation(self._operations, *args, **kwargs))

    annotate(method, "{}")
    return method


class SandboxStore:
    """The status of many sandboxes, shared through one Redis or Valkey server.

    One store serves any number of threads, and goes on to work in a child after a fork.
    """

    def __init__(
        self,
        client: redis.Redis | str,
        *,
        prefix: str = "sandbox",
        agent: str | None = None,
        timeout: float = TIMEOUT,
        partitions: int = 1,
        events_maxlen: int = EVENTS_MAXLEN,
    ) -> None:
        """Open a store. Nothing is sent before the first operation.

        Args:
            client: a ``redis.Redis`` or fakeredis client. The store makes connections of its own like that client's, so
                neither the client's retries nor its decoding matter. Closing the client does not close the store.
            prefix: what each key of the store begins with; one server can hold several stores.
            agent: who writes, for the events; host and process when None. Text of at most 256 bytes.
            timeout: seconds until a call gives up, unless the call itself says otherwise.
            partitions: 1 to 16384; counts only for the first that writes to a store, later ones follow what it chose.
            events_maxlen: about how many events each partition keeps, at least 1; counts only for the first, too.

        Raises:
            InvalidArgumentError: an argument breaks its rule.
        """
        from sandbox_redis.connect import endpoint  # here, because importing redis takes 0.5 s
        from sandbox_redis.lane import Lane

        agent = agent_name(agent)
        target = endpoint(client, agent=agent, asyncio=False)
        self._operations = Operations(
            target.address,
            prefix=prefix,
            agent=agent,
            timeout=timeout,
            partitions=partitions,
            events_maxlen=events_maxlen,
        )
        self._lane = Lane(target)
        self._lane.on_return = self._operations.forget

    @classmethod
    def from_url(
        cls,
        url: str | None = None,
        *,
        prefix: str = "sandbox",
        agent: str | None = None,
        timeout: float = TIMEOUT,
        partitions: int = 1,
        events_maxlen: int = EVENTS_MAXLEN,
    ) -> SandboxStore:
        """Open a store by its URL: ``redis://``, ``rediss://`` or ``unix://``.

        Args:
            url: ``SANDBOX_REDIS_URL`` when None, and ``redis://127.0.0.1:6379/0`` without that.
            prefix, agent, timeout, partitions, events_maxlen: as for `SandboxStore` itself.

        Raises:
            InvalidArgumentError: an argument breaks its rule.
        """
        return cls(
            default_url() if url is None else url,
            prefix=prefix,
            agent=agent,
            timeout=timeout,
            partitions=partitions,
            events_maxlen=events_maxlen,
        )

    get = _played(Operations.get)
    get_many = _played(Operations.get_many)
    ids = _played(Operations.ids)
    page = _played(Operations.page)
    count = _played(Operations.count)
    counts = _played(Operations.counts)
    resolve = _played(Operations.resolve)
    history = _played(Operations.history)
    create = _played(Operations.create)
    load = _played(Operations.load)
    start = _played(Operations.start)
    fail_start = _played(Operations.fail_start)
    port_forward = _played(Operations.port_forward)
    stop = _played(Operations.stop)
    exit = _played(Operations.exit)
    update = _played(Operations.update)
    remove = _played(Operations.remove)
    audit = _played(audit)

    def list(
        self,
        *,
        states: Iterable[State] | None = None,
        cri_state: str | None = None,
        sandbox_id: str | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Sandbox]:
        """The sandboxes that fit, page by page: each page is on its way while you are busy with the one before.

        They come in the order of their ids within each partition, each at most once; one that is there all the time
        comes exactly once. However many there are, no more than two pages are in memory.

        Args:
            states, cri_state, sandbox_id, node, labels, namespace: which; see `page`.
            after: the cursor of a page, to go on behind it.
            limit: how many at most; all when None.
            timeout: seconds for each page; the store's own `timeout` when None.

        Raises:
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            SchemaError, StoreUnavailableError: as for `get`; a part is never taken for the whole.
        """
        wanted = selection(
            states=states, cri_state=cri_state, sandbox_id=sandbox_id, node=node, labels=labels, namespace=namespace
        )
        return self._pages(Listing(self._operations, wanted, after, limit, timeout))

    def _pages(self, listing: Listing) -> Iterator[Sandbox]:
        page = listing.took(play(self._lane, listing.next()))
        while listing.more:
            ahead = Ahead(self._lane, listing.next())
            try:
                yield from page.sandboxes()
                try:
                    page = listing.took(ahead.finish())
                except StoreUnavailableError:  # perhaps only since, while nobody looked
                    page = listing.took(play(self._lane, listing.next()))
            finally:
                ahead.abandon()
        yield from page.sandboxes()

    def status(self, sandbox_id: str) -> StatusStorage:
        """The status of one sandbox, as containerd's ``StatusStorage``. Nothing is sent."""
        return StatusStorage(self, sandbox_id)

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Many operations in few round trips; they are carried out at the end of the ``with`` block."""
        batch = Batch(self._operations)
        yield batch
        play(self._lane, batch.carry_out())

    def close(self) -> None:
        """Close the idle connections. The store can be used again."""
        self._lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SandboxStore {self._operations.prefix} at {self._lane.address}>"


class StatusStorage:
    """The status of one sandbox: containerd's ``StatusStorage``."""

    __slots__ = ("_id", "_store")

    def __init__(self, store: SandboxStore, sandbox_id: str) -> None:
        self._store = store
        self._id = sandbox_id

    def get(self, *, timeout: float | None = None) -> Status:
        """The status; raises as `SandboxStore.get`."""
        return self._store.get(self._id, timeout=timeout).status

    def update(self, fn: UpdateFunc, *, timeout: float | None = None) -> Status:
        """Replace the status by what `fn` makes of it; raises as `SandboxStore.update`."""
        return self._store.update(self._id, fn, timeout=timeout).status


def play(lane: Lane, op: Op[T], reply: Any = None) -> T:
    """Carry an operation out to its end: the driver for threads. `reply` is for what it has already asked."""
    held: Leased | None = None
    try:
        while True:
            try:
                request = op.throw(reply) if isinstance(reply, Failure) else op.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if isinstance(request, Send):
                if request.lease is Lease.ANY or (request.lease is Lease.TAKE and held is None):
                    leased = lane.lease(request.key)
                elif held is not None:
                    leased, held = held, None
                else:
                    reply = Unsent(lane.address, "the connection of this transaction was lost")
                    continue
                try:
                    reply = lane.exchange(leased, request.commands, request.timeout)
                except Failure as failure:
                    reply = failure
                    continue
                if request.lease in (Lease.TAKE, Lease.KEEP):
                    held = leased
                else:
                    lane.give_back(leased)
            elif isinstance(request, SendAll):
                _send_all(lane, request)
                reply = None
            else:
                if held is not None:
                    held.connection.disconnect()
                    held = None
                time.sleep(request.seconds)
                reply = None
    finally:
        if held is not None:
            held.connection.disconnect()  # it may still WATCH


class Ahead(Generic[T]):
    """An operation that has sent what it sends first; the server is at work on it until it is finished."""

    def __init__(self, lane: Lane, op: Op[T]) -> None:
        self._lane = lane
        self._op = op
        self._request = op.send(None)
        self._failure: Failure | None = None
        self._leased: Leased | None = None
        if isinstance(self._request, Send) and self._request.lease is Lease.ANY:
            leased = lane.lease(self._request.key)
            try:
                lane.send(leased, self._request.commands, self._request.timeout)
                self._leased = leased
            except Failure as failure:
                self._failure = failure

    def finish(self) -> T:
        """Carry it out to its end."""
        if self._leased is not None and isinstance(self._request, Send):
            leased, self._leased = self._leased, None
            try:
                reply: Any = self._lane.receive(leased, self._request.commands)
                self._lane.give_back(leased)
            except Failure as failure:
                reply = failure
        elif self._failure is not None:
            reply = self._failure
        else:
            reply = None
            if isinstance(self._request, SendAll):
                _send_all(self._lane, self._request)
        return play(self._lane, self._op, reply)

    def abandon(self) -> None:
        """Nobody wants it any more, unless it is finished."""
        if self._leased is not None:
            self._leased.connection.disconnect()


def _send_all(lane: Lane, request: SendAll) -> None:
    """One packet after the other on one connection, then all replies: the server is at work meanwhile."""
    leased: Leased | None = None
    sent: deque[Send] = deque()
    try:
        while chunk := list(islice(request.sends, CHUNK)):
            sent.extend(chunk)
            leased = leased or lane.lease(chunk[0].key)
            lane.send(leased, [command for send in chunk for command in send.commands], chunk[0].timeout)
        while sent:
            assert leased is not None
            reply = lane.receive(leased, sent[0].commands)
            sent.popleft()
            request.deliver(reply)
    except Failure as failure:
        unsent = Unsent(failure.address, failure.reason, failure.code)
        failures = [failure] * len(sent) + [unsent for _ in request.sends]
        for each in failures:
            request.deliver(each)
    except BaseException:
        if leased is not None:
            leased.connection.disconnect()
        raise
    else:
        if leased is not None:
            lane.give_back(leased)
