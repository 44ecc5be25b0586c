"""The store for threads: `SandboxStore`. What its operations do stands in ``operations.py`` and ``queries.py``, how
they are carried out in ``driver.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from sandbox_redis.audit import audit
from sandbox_redis.batch import Batch
from sandbox_redis.concern import WriteConcern
from sandbox_redis.doctor import doctor
from sandbox_redis.driver import Ahead, play
from sandbox_redis.errors import StoreUnavailableError
from sandbox_redis.faces import agent_name, annotate, default_url
from sandbox_redis.follow import HEARTBEAT
from sandbox_redis.listing import Listing
from sandbox_redis.mirror import Mirror
from sandbox_redis.mirroring import mirrored
from sandbox_redis.operations import Operations
from sandbox_redis.record import Sandbox, Status
from sandbox_redis.selection import ALL, selection
from sandbox_redis.session import EVENTS_MAXLEN, TIMEOUT
from sandbox_redis.states import State
from sandbox_redis.transaction import UpdateFunc
from sandbox_redis.watch import Watch
from sandbox_redis.watching import Watching
from sandbox_redis.wire import Op

if TYPE_CHECKING:
    import redis


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
        partitions: int | None = None,
        events_maxlen: int = EVENTS_MAXLEN,
        read_from: str = "master",
        write_concern: WriteConcern | None = None,
    ) -> None:
        """Open a store. Nothing is sent before the first operation.

        Args:
            client: a ``redis.Redis``, ``redis.RedisCluster``, a sentinel's ``master_for``, or a fakeredis client. The
                store makes connections of its own like that client's, so neither the client's retries nor its decoding
                matter. Closing the client does not close the store.
            prefix: what each key of the store begins with; one server can hold several stores.
            agent: who writes, for the events; host and process when None. Text of at most 256 bytes.
            timeout: seconds until a call gives up, unless the call itself says otherwise.
            partitions: 1 to 16384; 1 when None, and 16 on a cluster, whose nodes share them. It counts only for the
                first that writes to a store, later ones follow what it chose.
            events_maxlen: about how many events each partition keeps, at least 1; counts only for the first, too.
            read_from: ``replica`` lets what only reads (get, list, page, ids, count, resolve, history) ask a replica
                that Sentinels or the cluster know: it may be as stale as that one. What writes, waits, watches or
                mirrors always asks the master.
            write_concern: how safe writes must be, unless the call itself says otherwise; as safe as the server's reply
                makes them when None.

        Raises:
            InvalidArgumentError: an argument breaks its rule.
        """
        from sandbox_redis.connect import way  # here, because importing redis takes 0.5 s
        from sandbox_redis.lane import Lane

        agent = agent_name(agent)
        target = way(client, agent=agent, asyncio=False)
        self._operations = Operations(
            target.topology,
            prefix=prefix,
            agent=agent,
            timeout=timeout,
            partitions=partitions,
            events_maxlen=events_maxlen,
            read_from=read_from,
            write_concern=write_concern,
        )
        self._lane = Lane(target)
        self._lane.on_loss = self._operations.forget

    @classmethod
    def from_url(
        cls,
        url: str | None = None,
        *,
        prefix: str = "sandbox",
        agent: str | None = None,
        timeout: float = TIMEOUT,
        partitions: int | None = None,
        events_maxlen: int = EVENTS_MAXLEN,
        read_from: str = "master",
        write_concern: WriteConcern | None = None,
    ) -> SandboxStore:
        """Open a store by its URL: ``redis://host:port/db``, ``unix:///path``, ``redis+cluster://host:port,host:port``
        or ``redis+sentinel://host:port,host:port/service/db``; with TLS ``rediss://`` and so on.

        Args:
            url: ``SANDBOX_REDIS_URL`` when None, and ``redis://127.0.0.1:6379/0`` without that. User and password are
                the servers'; Sentinels have their own in ``?sentinel_username=…&sentinel_password=…``.
            prefix, agent, timeout, partitions, events_maxlen, read_from, write_concern: as for `SandboxStore` itself.

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
            read_from=read_from,
            write_concern=write_concern,
        )

    get = _played(Operations.get)
    get_many = _played(Operations.get_many)
    ids = _played(Operations.ids)
    page = _played(Operations.page)
    count = _played(Operations.count)
    counts = _played(Operations.counts)
    resolve = _played(Operations.resolve)
    history = _played(Operations.history)
    wait = _played(Operations.wait)
    init = _played(Operations.init)
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
    doctor = _played(doctor)

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
            timeout: seconds for each page; the store's own `timeout` when None. One that could not be read while you
                were busy with the one before is tried once more.

        Raises:
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            SchemaError, StoreUnavailableError: as for `get`; a part is never taken for the whole.
        """
        wanted = selection(
            states=states, cri_state=cri_state, sandbox_id=sandbox_id, node=node, labels=labels, namespace=namespace
        )
        return self._pages(Listing(self._operations, wanted, after, limit, timeout, replica=self._operations.replica))

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

    def watch(
        self,
        *,
        since: str | datetime | None = None,
        sandbox_id: str | None = None,
        node: str | None = None,
        states: Iterable[State] | None = None,
        timeout: float | None = None,
    ) -> Watch:
        """What happens from now on, or since then: an endless iterator of events, over all partitions.

        Args:
            since: the cursor of an event, of a watch or of a page, which may have been stored meanwhile; a revision
                will do with one partition or one sandbox; a time, with its zone, as far back as the events reach; from
                now on when None.
            sandbox_id: only events of this sandbox.
            node: only events of sandboxes on this node.
            states: only events of sandboxes that come into one of these states, change in it, or leave it; of any when
                None.
            timeout: seconds that an outage may last before it is raised; it is bridged without end when None. The first
                answer must come within the store's own `timeout`.

        Raises:
            CompactedError: the events since then are not all there any more.
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        wanted = selection(states=states, node=node, sandbox_id=sandbox_id, default=ALL)
        return Watch(self._lane, Watching(self._operations, wanted, since, timeout))

    def list_and_watch(
        self,
        *,
        states: Iterable[State] | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        timeout: float | None = None,
    ) -> tuple[Sequence[Sandbox], Watch]:
        """The sandboxes that fit, and every event of such sandboxes since: no gap, and none that is in the listing
        already.

        These events always have the metadata of their sandbox, so that nothing need be read again.

        Args:
            states, node, labels, namespace: which; see `page`. Events as `watch` tells them.
            timeout: as for `watch`.

        Returns:
            The sandboxes, and the watch that goes on from there.

        Raises:
            as `watch`.
        """
        wanted = selection(states=states, node=node, labels=labels, namespace=namespace)
        watching = Watching(self._operations, wanted, timeout=timeout)
        return play(self._lane, watching.draw()), Watch(self._lane, watching)

    def mirror(
        self,
        *,
        states: Iterable[State] | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        heartbeat: float = HEARTBEAT,
    ) -> Mirror:
        """A local copy of the sandboxes that fit, kept current, for reads at memory speed. It is complete when this
        returns.

        Args:
            states: only those in these states; in any when None, where its `list` leaves INIT out as the store's does.
            node, labels, namespace: only those; see `page`.
            heartbeat: seconds after which an idle server says that it is there; it bounds the mirror's `age`.

        Raises:
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        core = mirrored(
            self._operations, states=states, node=node, labels=labels, namespace=namespace, heartbeat=heartbeat
        )
        return Mirror(self._lane, core, self._operations.timeout)

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

    def update(
        self, fn: UpdateFunc, *, timeout: float | None = None, write_concern: WriteConcern | None = None
    ) -> Status:
        """Replace the status by what `fn` makes of it; raises as `SandboxStore.update`."""
        return self._store.update(self._id, fn, timeout=timeout, write_concern=write_concern).status
