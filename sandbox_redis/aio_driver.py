"""Carries operations out for asyncio, as ``driver.py`` does for threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sandbox_redis.in_step import CHUNK
from sandbox_redis.wire import Closed, Failure, Hear, Lease, Op, Send, SendAll, Unsent

if TYPE_CHECKING:
    from sandbox_redis.aio_lane import AsyncLane
    from sandbox_redis.aio_pool import AsyncLeased
    from sandbox_redis.aio_tap import AsyncTap

T = TypeVar("T")


class Line:
    """Keeps the connection of an operation for the next one."""

    def __init__(self) -> None:
        self.held: AsyncLeased | None = None
        self.tap: AsyncTap | None = None
        self.closed = False
        self._under_way: asyncio.Future[Any] | None = None

    async def close(self) -> None:
        """End what is under way, at once."""
        self.closed = True
        if self._under_way is not None:
            self._under_way.cancel()
        if (held := self.held) is not None:
            await held.connection.disconnect(nowait=True)
        if self.tap is not None:
            self.tap.close()

    def __del__(self) -> None:
        """Whoever leaves a loop over a watch need not close it."""
        with suppress(RuntimeError):  # its event loop has ended
            if self.held is not None:
                self.held.connection._close()  # noqa: SLF001 - the public ways need a task
            if self.tap is not None:
                self.tap.close()

    async def sleep(self, seconds: float) -> None:
        """Wait, but not when closed."""
        await self.until(asyncio.sleep(seconds))

    async def until(self, work: Awaitable[T]) -> T:
        """What `work` gives; it is cancelled when this is closed.

        Raises:
            Closed: it was.
        """
        self._under_way = future = asyncio.ensure_future(work)
        try:
            return await future
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and task is not None and not task.cancelling():
                raise Closed from None
            raise
        finally:
            self._under_way = None


async def play(lane: AsyncLane, op: Op[T], line: Line | None = None) -> T:
    """Carry an operation out to its end: the driver for asyncio."""
    held, tap = (None, None) if line is None else (line.held, line.tap)
    reply: Any = None
    try:
        while True:
            if line is not None and line.closed:
                raise Closed
            try:
                request = op.throw(reply) if isinstance(reply, Failure) else op.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                if isinstance(request, Send):
                    if request.lease is Lease.ANY and not request.at:
                        pool = lane.known(request) or await lane.pool(request)
                        answer = pool.submit(request.commands, request.timeout)
                        reply = await (answer if line is None else line.until(answer))
                        continue
                    if request.lease in (Lease.ANY, Lease.ALONE):
                        reply = await _alone(lane, request)
                        continue
                    if held is None:
                        if request.lease is Lease.OWN:
                            held = await lane.own(request)
                        elif request.lease is not Lease.TAKE:
                            raise Unsent(lane.address, "the connection of this transaction was lost")
                        else:
                            held = await lane.lease(request)
                    if line is not None:
                        line.held = held
                        if not held.connection.is_connected:
                            await line.until(held.pool.connect(held, request.timeout))
                    reply = await lane.exchange(held, request.commands, request.timeout, request.at)
                    if request.lease is Lease.LAST:
                        held.pool.give_back(held)
                        held = None
                elif isinstance(request, SendAll):
                    await (_send_all(lane, request) if line is None else line.until(_send_all(lane, request)))
                    reply = None
                elif isinstance(request, Hear):
                    if tap is None:
                        from sandbox_redis.aio_tap import AsyncTap  # here, because importing redis takes 0.5 s

                        tap = AsyncTap(lane)
                        if line is not None:
                            line.tap = tap
                    reply = await (tap.hear(request) if line is None else line.until(tap.hear(request)))
                else:
                    if held is not None:
                        await held.connection.disconnect(nowait=True)
                        held.pool.give_back(held)
                        held = None
                    lane.heard(request.why)
                    await (asyncio.sleep if line is None else line.sleep)(request.seconds)
                    reply = None
            except Failure as failure:
                reply = failure
                if held is not None:
                    held.pool.give_back(held)  # it is closed
                    held = None
    finally:
        if line is None and tap is not None:
            tap.close()
        if line is not None and not line.closed:
            line.held = held
        elif held is not None:
            await held.connection.disconnect(nowait=True)  # it may still WATCH
            held.pool.give_back(held)


async def _alone(lane: AsyncLane, send: Send) -> list[Any]:
    """Send a packet that may block, on a connection that nobody else waits for."""
    leased = await lane.lease(send)
    try:
        return await lane.exchange(leased, send.commands, send.timeout, send.at)
    finally:
        leased.pool.give_back(leased)  # where it failed, or nobody waits any more, it is closed


async def _send_all(lane: AsyncLane, request: SendAll) -> None:
    """One packet after the other on a shared connection to each server, then all replies: the servers are at work
    meanwhile. What may block has a connection of its own."""
    sent: list[tuple[Send, _Packet]] = []
    try:
        while chunk := list(islice(request.sends, CHUNK)):
            packets: dict[Any, _Packet] = {}
            for send in chunk:
                packet = _Packet()
                if send.lease is Lease.ALONE:
                    packet.future = asyncio.ensure_future(_alone(lane, send))
                else:
                    try:
                        pool = lane.known(send) or await lane.pool(send)
                    except Failure as failure:
                        packet.failure = failure
                    else:
                        packet = packets.setdefault(pool, packet)
                packet.sends.append(send)
                sent.append((send, packet))
            for pool, packet in packets.items():
                commands = tuple(command for send in packet.sends for command in send.commands)
                packet.future = pool.submit(commands, packet.sends[0].timeout)
            await asyncio.sleep(0)  # lets it be written
        for send, packet in sent:
            request.deliver(await packet.replies(send))
    finally:
        for _, packet in sent:
            if packet.future is not None:
                packet.future.cancel()  # those that nobody waits for any more


class _Packet:
    """What of a `SendAll` travels together."""

    def __init__(self) -> None:
        self.sends: list[Send] = []
        self.future: asyncio.Future[list[Any]] | None = None
        self.failure: Failure | None = None
        self._replies: Iterator[Any] = iter(())

    async def replies(self, send: Send) -> list[Any] | Failure:
        """The replies to the next one of `sends`."""
        if send is self.sends[0] and self.future is not None:
            try:
                self._replies = iter(await self.future)
            except Failure as failure:
                self.failure = failure
        return self.failure or list(islice(self._replies, len(send.commands)))
