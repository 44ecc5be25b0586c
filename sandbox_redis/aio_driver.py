"""Carries operations out for asyncio, as ``driver.py`` does for threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sandbox_redis.in_step import CHUNK
from sandbox_redis.wire import Closed, Command, Failure, Lease, Op, Send, SendAll, Unsent

if TYPE_CHECKING:
    from sandbox_redis.aio_lane import AsyncLane, AsyncLeased

T = TypeVar("T")


class Line:
    """Keeps the connection of an operation for the next one."""

    def __init__(self) -> None:
        self.held: AsyncLeased | None = None
        self.closed = False
        self._under_way: asyncio.Future[Any] | None = None

    async def close(self) -> None:
        """End what is under way, at once."""
        self.closed = True
        if self._under_way is not None:
            self._under_way.cancel()
        if (held := self.held) is not None:
            await held.connection.disconnect(nowait=True)

    def __del__(self) -> None:
        """Whoever leaves a loop over a watch need not close it."""
        if self.held is not None:
            with suppress(RuntimeError):  # its event loop has ended
                self.held.connection._close()  # noqa: SLF001 - the public ways need a task

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
    held = None if line is None else line.held
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
                    if request.lease is Lease.ANY:
                        answer = lane.submit(request.key, request.commands, request.timeout)
                        reply = await (answer if line is None else line.until(answer))
                        continue
                    if request.lease is Lease.ALONE:
                        reply = await _alone(lane, request.key, request.commands, request.timeout)
                        continue
                    if held is None:
                        if request.lease is Lease.OWN:
                            held = lane.own(request.key)
                        elif request.lease is not Lease.TAKE:
                            raise Unsent(lane.address, "the connection of this transaction was lost")
                        else:
                            held = await lane.lease(request.key, request.timeout)
                    if line is not None:
                        line.held = held
                        if not held.connection.is_connected:
                            await line.until(lane.connect(held, request.timeout))
                    reply = await lane.exchange(held, request.commands, request.timeout)
                    if request.lease is Lease.LAST:
                        lane.give_back(held)
                        held = None
                elif isinstance(request, SendAll):
                    await (_send_all(lane, request) if line is None else line.until(_send_all(lane, request)))
                    reply = None
                else:
                    if held is not None:
                        await held.connection.disconnect(nowait=True)
                        lane.give_back(held)
                        held = None
                    await (asyncio.sleep if line is None else line.sleep)(request.seconds)
                    reply = None
            except Failure as failure:
                reply = failure
                if held is not None:
                    lane.give_back(held)  # it is closed
                    held = None
    finally:
        if line is not None and not line.closed:
            line.held = held
        elif held is not None:
            await held.connection.disconnect(nowait=True)  # it may still WATCH
            lane.give_back(held)


async def _alone(lane: AsyncLane, key: str, commands: tuple[Command, ...], timeout: float) -> list[Any]:
    """Send a packet that may block, on a connection that nobody else waits for."""
    leased = await lane.lease(key, timeout)
    try:
        return await lane.exchange(leased, commands, timeout)
    finally:
        lane.give_back(leased)  # where it failed, or nobody waits any more, it is closed


async def _send_all(lane: AsyncLane, request: SendAll) -> None:
    """One packet after the other on the shared connection, then all replies: the server is at work meanwhile."""
    packets = []
    while chunk := list(islice(request.sends, CHUNK)):
        for sends in _parted(chunk):
            commands = tuple(command for send in sends for command in send.commands)
            submit = partial(_alone, lane) if sends[0].lease is Lease.ALONE else lane.submit
            packets.append((sends, asyncio.ensure_future(submit(sends[0].key, commands, sends[0].timeout))))
        await asyncio.sleep(0)  # lets it be written
    try:
        for sends, future in packets:
            try:
                replies = iter(await future)
            except Failure as failure:
                for _ in sends:
                    request.deliver(failure)
            else:
                for send in sends:
                    request.deliver(list(islice(replies, len(send.commands))))
    finally:
        for _, future in packets:
            future.cancel()  # those that nobody waits for any more


def _parted(chunk: list[Send]) -> list[list[Send]]:
    """What travels together: all of it, unless some may block."""
    return [[send] for send in chunk] if any(send.lease is Lease.ALONE for send in chunk) else [chunk]
