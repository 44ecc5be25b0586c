"""The store for asyncio: `AsyncSandboxStore`, and the driver that carries its operations out. What the operations do
stands in ``operations.py``; here is only sending, waiting and returning.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

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
    import redis.asyncio

    from sandbox_redis.aio_lane import AsyncLane, AsyncLeased

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
        partitions: int = 1,
        events_maxlen: int = EVENTS_MAXLEN,
    ) -> None:
        """Same as `SandboxStore`, with a ``redis.asyncio.Redis`` or asyncio fakeredis client."""
        from sandbox_redis.aio_lane import AsyncLane  # here, because importing redis takes 0.5 s
        from sandbox_redis.connect import endpoint

        agent = agent_name(agent)
        target = endpoint(client, agent=agent, asyncio=True)
        self._operations = Operations(
            target.address,
            prefix=prefix,
            agent=agent,
            timeout=timeout,
            partitions=partitions,
            events_maxlen=events_maxlen,
        )
        self._lane = AsyncLane(target)
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
    ) -> AsyncSandboxStore:
        """Same as `SandboxStore.from_url`."""
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
    ) -> AsyncIterator[Sandbox]:
        """Same as `SandboxStore.list`, with ``async for``."""
        wanted = selection(
            states=states, cri_state=cri_state, sandbox_id=sandbox_id, node=node, labels=labels, namespace=namespace
        )
        return self._pages(Listing(self._operations, wanted, after, limit, timeout))

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

    async def update(self, fn: UpdateFunc, *, timeout: float | None = None) -> Status:
        """Replace the status by what `fn` makes of it; raises as `SandboxStore.update`."""
        return (await self._store.update(self._id, fn, timeout=timeout)).status


async def play(lane: AsyncLane, op: Op[T]) -> T:
    """Carry an operation out to its end: the driver for asyncio."""
    held: AsyncLeased | None = None
    reply: Any = None
    try:
        while True:
            try:
                request = op.throw(reply) if isinstance(reply, Failure) else op.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                if isinstance(request, Send):
                    if request.lease is Lease.ANY:
                        reply = await lane.submit(request.key, request.commands, request.timeout)
                        continue
                    if held is None:
                        if request.lease is not Lease.TAKE:
                            raise Unsent(lane.address, "the connection of this transaction was lost")
                        held = await lane.lease(request.key, request.timeout)
                    reply = await lane.exchange(held, request.commands, request.timeout)
                    if request.lease is Lease.LAST:
                        lane.give_back(held)
                        held = None
                elif isinstance(request, SendAll):
                    await _send_all(lane, request)
                    reply = None
                else:
                    if held is not None:
                        await held.connection.disconnect(nowait=True)
                        lane.give_back(held)
                        held = None
                    await asyncio.sleep(request.seconds)
                    reply = None
            except Failure as failure:
                reply = failure
                if held is not None:
                    lane.give_back(held)  # it is closed
                    held = None
    finally:
        if held is not None:
            await held.connection.disconnect(nowait=True)  # it may still WATCH
            lane.give_back(held)


async def _send_all(lane: AsyncLane, request: SendAll) -> None:
    """One packet after the other on the shared connection, then all replies: the server is at work meanwhile."""
    packets = []
    while chunk := list(islice(request.sends, CHUNK)):
        commands = tuple(command for send in chunk for command in send.commands)
        packets.append((chunk, lane.submit(chunk[0].key, commands, chunk[0].timeout)))
        await asyncio.sleep(0)  # lets it be written
    for chunk, future in packets:
        try:
            replies = iter(await future)
        except Failure as failure:
            for _ in chunk:
                request.deliver(failure)
        else:
            for send in chunk:
                request.deliver(list(islice(replies, len(send.commands))))
