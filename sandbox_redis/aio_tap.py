"""Hears of changes on several servers for asyncio, as ``tap.py`` does for threads."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from sandbox_redis.aio_lane import AsyncLane
from sandbox_redis.aio_pool import AsyncLeased, AsyncPool
from sandbox_redis.connect import lost
from sandbox_redis.replies import pack, refusal
from sandbox_redis.tail import ReplyError, reader
from sandbox_redis.tap import GREETING, NO_REPLY, Round, greeted, sort
from sandbox_redis.wire import Command, Failure, Hear, Lost, Send

_SIZE = 1 << 16


class _Link:
    """The connection to one server, and the task that reads from it. That task holds nothing of who hears."""

    def __init__(self, leased: AsyncLeased, changed: set[bytes], moved: asyncio.Event) -> None:
        self.leased = leased
        self.keys: set[str] = set()
        self.replies: list[Any] = []
        self.asked: list[tuple[int, int]] = []  # numbers of questions, and of their commands
        self.missing = 0
        self.greeted = False
        self.failure: Failure | None = None
        self._task = asyncio.get_running_loop().create_task(self._read(changed, moved))

    async def _read(self, changed: set[bytes], moved: asyncio.Event) -> None:
        stream, replies = self.leased.connection._reader, reader()  # noqa: SLF001 - redis-py reads replies one by one
        try:
            while data := await stream.read(_SIZE):
                replies.feed(data)
                found = []
                while (reply := replies.gets()) is not False:
                    found.append(refusal(reply) if isinstance(reply, ReplyError) else reply)
                self.replies += sort(found, changed, self.keys)
                if not self.greeted and len(self.replies) >= len(GREETING):
                    greeted(self.leased.pool.address, self.replies[: len(GREETING)])
                    del self.replies[: len(GREETING)]
                    self.greeted = True
                moved.set()
            raise ConnectionError("the server closed the connection")
        except Failure as failure:
            self.failure = failure
        except OSError as error:
            self.failure = lost(self.leased.pool.address, error, None)
        moved.set()

    def send(self, commands: list[Command]) -> None:
        """Send a packet."""
        self.leased.connection._writer.write(pack(commands)[0])  # noqa: SLF001 - as above

    def complete(self) -> bool:
        """Whether all replies are there."""
        return self.greeted and len(self.replies) >= self.missing

    def close(self) -> None:
        """Close the connection."""
        self._task.cancel()
        with suppress(RuntimeError):  # its event loop has ended
            self.leased.connection._close()  # noqa: SLF001 - the public ways need a task


class AsyncTap:
    """Same as `Tap`, for asyncio."""

    def __init__(self, lane: AsyncLane) -> None:
        self._lane = lane
        self._links: dict[AsyncPool, _Link] = {}
        self._changed: set[bytes] = set()
        self._moved = asyncio.Event()
        self._whole = 0.0  # when all questions were asked at last
        self.sent = 0.0

    async def hear(self, hear: Hear) -> list[list[Any] | None]:
        """Same as `Tap.hear`."""
        if hear.fresh:
            self.close()
        this = Round(hear, self._changed, self._whole)
        try:
            while not await self._is_answered(this):
                end = this.due if not this.asked else self.sent + hear.timeout
                try:
                    async with asyncio.timeout(max(0.0, end - time.monotonic())):
                        await self._moved.wait()
                except TimeoutError:
                    if this.asked:
                        raise Lost(self._lane.address, NO_REPLY) from None
        except BaseException:
            self.close()
            raise
        return this.answers()

    async def _is_answered(self, this: Round) -> bool:
        """Ask what is to be asked now; whether all has been answered."""
        self._moved.clear()
        for link in self._links.values():
            if link.failure is not None:
                raise link.failure
        if not this.asked:
            if this.choose():
                await self._send(this)
            return False
        if not all(link.complete() for link in self._links.values()):
            return False
        for link in self._links.values():
            for n, count in link.asked:
                this.answer(n, link.replies[:count])
                del link.replies[:count]
            link.asked, link.missing = [], 0
        return True

    async def _send(self, this: Round) -> None:
        self.sent = time.monotonic()
        if len(this.asked) == len(this.hear.questions):
            self._whole = 0.0 if this.hear.fresh else self.sent
        packets: dict[AsyncPool, list[Command]] = {}
        for n in this.asked:
            key, commands = this.hear.questions[n]
            pool = await self._lane.pool(Send(key, (), this.hear.timeout))
            link = self._links.get(pool) or await self._connect(pool, this.hear.timeout)
            link.keys.add(key)
            link.asked.append((n, len(commands)))
            link.missing += len(commands)
            packets.setdefault(pool, []).extend(commands)
        for pool, sent in packets.items():
            self._links[pool].send(sent)

    async def _connect(self, pool: AsyncPool, timeout: float) -> _Link:
        leased = pool.own()
        await pool.connect(leased, timeout)
        link = self._links[pool] = _Link(leased, self._changed, self._moved)
        link.send(list(GREETING))
        return link

    def close(self) -> None:
        """Close the connections."""
        for link in self._links.values():
            link.close()
        self._links = {}
        self._changed.clear()
