"""The store for threads: `SandboxStore`, and the driver that carries its operations out. What the operations do
stands in ``operations.py``; here is only sending, waiting and returning.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from sandbox_redis.audit import audit
from sandbox_redis.batch import CHUNK, Batch
from sandbox_redis.faces import agent_name, annotate, default_url
from sandbox_redis.operations import Operations
from sandbox_redis.record import Status
from sandbox_redis.session import EVENTS_MAXLEN, TIMEOUT
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
    ids = _played(Operations.ids)
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


def play(lane: Lane, op: Op[T]) -> T:
    """Carry an operation out to its end: the driver for threads."""
    held: Leased | None = None
    reply: Any = None
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
