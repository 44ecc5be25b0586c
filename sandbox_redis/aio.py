"""The store for asyncio: `AsyncSandboxStore`. What its operations do stands in ``operations.py`` and ``queries.py``,
how they are carried out in ``aio_driver.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from sandbox_redis.aio_driver import play
from sandbox_redis.aio_mirror import AsyncMirror, mirror
from sandbox_redis.aio_waits import Waits
from sandbox_redis.audit import audit
from sandbox_redis.batch import Batch
from sandbox_redis.concern import WriteConcern
from sandbox_redis.doctor import doctor
from sandbox_redis.errors import StoreUnavailableError
from sandbox_redis.faces import agent_name, annotate, default_url
from sandbox_redis.follow import HEARTBEAT
from sandbox_redis.listing import Listing
from sandbox_redis.mirroring import mirrored
from sandbox_redis.operations import Operations
from sandbox_redis.record import Sandbox, Status
from sandbox_redis.selection import ALL, selection
from sandbox_redis.session import EVENTS_MAXLEN, TIMEOUT
from sandbox_redis.states import State
from sandbox_redis.transaction import UpdateFunc
from sandbox_redis.waiting import Waiting
from sandbox_redis.watch import AsyncWatch
from sandbox_redis.watching import Watching
from sandbox_redis.wire import Op

if TYPE_CHECKING:
    import redis.asyncio


P = ParamSpec("P")
T = TypeVar("T")


def _played(
    operation: Callable[Concatenate[Operations, P], Op[T]],
) -> Callable[Concatenate[AsyncSandboxStore, P], Coroutine[Any, Any, T]]:
    @wraps(operation)
    async def method(self: AsyncSandboxStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await play(self._lane, operation(self._operations, *args, **kwargs))

    annotate(method, "{}")
    return method


class AsyncSandboxStore:
    """Same as `SandboxStore`, for asyncio: hundreds of tasks share two connections, and transactions 16 more at most.

    One store serves the tasks of one event loop at a time. A task that is cancelled during a write does not know
    whether the write happened.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis | str,
        *,
        prefix: str = "sandbox",
        agent: str | None = None,
        timeout: float = TIMEOUT,
        partitions: int | None = None,
        events_maxlen: int = EVENTS_MAXLEN,
        read_from: str = "master",
        write_concern: WriteConcern | None = None,
    ) -> None:
        """Same as `SandboxStore`, with a ``redis.asyncio.Redis`` or asyncio fakeredis client."""
        from sandbox_redis.aio_lane import AsyncLane  # here, because importing redis takes 0.5 s
        from sandbox_redis.connect import way

        agent = agent_name(agent)
        target = way(client, agent=agent, asyncio=True)
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
        self._lane = AsyncLane(target)
        self._lane.on_loss = self._operations.forget
        self._waits = Waits(self._lane, self._operations, self.watch)

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
    ) -> AsyncSandboxStore:
        """Same as `SandboxStore.from_url`."""
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
    ) -> AsyncIterator[Sandbox]:
        """Same as `SandboxStore.list`, with ``async for``."""
        wanted = selection(
            states=states, cri_state=cri_state, sandbox_id=sandbox_id, node=node, labels=labels, namespace=namespace
        )
        return self._pages(Listing(self._operations, wanted, after, limit, timeout, replica=self._operations.replica))

    async def _pages(self, listing: Listing) -> AsyncIterator[Sandbox]:
        page = listing.took(await play(self._lane, listing.next()))
        while listing.more:
            ahead = asyncio.ensure_future(play(self._lane, listing.next()))
            try:
                for sandbox in page.sandboxes():
                    yield sandbox
                try:
                    page = listing.took(await ahead)
                except StoreUnavailableError:  # perhaps only since, while nobody looked
                    page = listing.took(await play(self._lane, listing.next()))
            finally:
                ahead.cancel()
        for sandbox in page.sandboxes():
            yield sandbox

    def watch(
        self,
        *,
        since: str | datetime | None = None,
        sandbox_id: str | None = None,
        node: str | None = None,
        states: Iterable[State] | None = None,
        timeout: float | None = None,
    ) -> AsyncWatch:
        """Same as `SandboxStore.watch`. It begins with ``async with``, or with its first event."""
        wanted = selection(states=states, node=node, sandbox_id=sandbox_id, default=ALL)
        watching = Watching(self._operations, wanted, since, timeout)
        return AsyncWatch(self._lane, watching)

    async def list_and_watch(
        self,
        *,
        states: Iterable[State] | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        timeout: float | None = None,
    ) -> tuple[Sequence[Sandbox], AsyncWatch]:
        """Same as `SandboxStore.list_and_watch`."""
        wanted = selection(states=states, node=node, labels=labels, namespace=namespace)
        watching = Watching(self._operations, wanted, timeout=timeout)
        return await play(self._lane, watching.draw()), AsyncWatch(self._lane, watching)

    async def mirror(
        self,
        *,
        states: Iterable[State] | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        heartbeat: float = HEARTBEAT,
    ) -> AsyncMirror:
        """Same as `SandboxStore.mirror`, with ``await``."""
        core = mirrored(
            self._operations, states=states, node=node, labels=labels, namespace=namespace, heartbeat=heartbeat
        )
        return await mirror(self._lane, core, self._operations.timeout)

    async def wait(
        self, sandbox_id: str, until: State | Iterable[State] | None, *, timeout: float | None = None
    ) -> Sandbox | None:
        """Same as `SandboxStore.wait`. Any number of waits share one connection."""
        return await self._waits.wait(Waiting(sandbox_id, until, timeout))

    def status(self, sandbox_id: str) -> AsyncStatusStorage:
        """Same as `SandboxStore.status`."""
        return AsyncStatusStorage(self, sandbox_id)

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """Same as `SandboxStore.batch`, with ``async with``."""
        batch = Batch(self._operations)
        yield batch
        await play(self._lane, batch.carry_out())

    async def aclose(self) -> None:
        """Close the connections that no task uses. The store can be used again."""
        await self._lane.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncSandboxStore {self._operations.prefix} at {self._lane.address}>"


class AsyncStatusStorage:
    """Same as `StatusStorage`, for asyncio."""

    __slots__ = ("_id", "_store")

    def __init__(self, store: AsyncSandboxStore, sandbox_id: str) -> None:
        self._store = store
        self._id = sandbox_id

    async def get(self, *, timeout: float | None = None) -> Status:
        """The status; raises as `SandboxStore.get`."""
        return (await self._store.get(self._id, timeout=timeout)).status

    async def update(
        self, fn: UpdateFunc, *, timeout: float | None = None, write_concern: WriteConcern | None = None
    ) -> Status:
        """Replace the status by what `fn` makes of it; raises as `SandboxStore.update`."""
        return (await self._store.update(self._id, fn, timeout=timeout, write_concern=write_concern)).status
