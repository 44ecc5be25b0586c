"""How the tasks of an event loop wait for sandboxes: any number of waits share one watch, and so one connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox_redis.aio_driver import play
from sandbox_redis.follow import place
from sandbox_redis.listing import newest
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.session import Session
from sandbox_redis.waiting import Waiting
from sandbox_redis.watch import AsyncWatch
from sandbox_redis.wire import Op

if TYPE_CHECKING:
    from sandbox_redis.aio_lane import AsyncLane

Mailbox = asyncio.Queue[Event | Exception]


class Waits:
    """The waits of one store. The watch is there while somebody waits."""

    def __init__(self, lane: AsyncLane, session: Session, watch: Callable[[], AsyncWatch]) -> None:
        self._lane = lane
        self._session = session
        self._watch = watch
        self._mailboxes: dict[str, set[Mailbox]] = {}
        self._begun: asyncio.Task[AsyncWatch] | None = None
        self._reader: asyncio.Task[None] | None = None

    async def wait(self, waiting: Waiting) -> Sandbox | None:
        """Wait; see `SandboxStore.wait`."""
        mailbox: Mailbox = asyncio.Queue()
        self._mailboxes.setdefault(waiting.id, set()).add(mailbox)
        try:
            async with asyncio.timeout(None if waiting.seconds == math.inf else waiting.seconds) as limit:
                await self._listen()
                start, waiting.found = await play(self._lane, self._look(waiting.id))
                while not waiting.over():
                    event = await mailbox.get()
                    if isinstance(event, Exception):
                        raise event
                    if place(event.revision) > place(start):
                        waiting.hear(event)
        except TimeoutError:
            if not limit.expired():
                raise
            raise waiting.too_late() from None
        finally:
            self._mailboxes[waiting.id].discard(mailbox)
            if not self._mailboxes[waiting.id]:
                del self._mailboxes[waiting.id]
            if not self._mailboxes:
                self.close()
        return waiting.found

    def _look(self, sandbox_id: str) -> Op[tuple[str, Sandbox | None]]:
        deadline = self._session.deadline(None)
        layout = yield from self._session.open(deadline, write=False)
        places = yield from newest(self._session, layout, deadline)
        found = yield from self._session.fetch(layout, sandbox_id, deadline)
        return places[layout.partition(sandbox_id)], found

    async def _listen(self) -> None:
        """Be sure that the watch has begun."""
        if self._begun is None:
            self._begun = asyncio.ensure_future(self._begin())
        await asyncio.shield(self._begun)

    async def _begin(self) -> AsyncWatch:
        try:
            watch = await self._watch().__aenter__()
        except BaseException:
            self._begun = None  # the next one tries again
            raise
        self._reader = asyncio.ensure_future(self._read(watch))
        return watch

    async def _read(self, watch: AsyncWatch) -> None:
        try:
            async for event in watch:
                for mailbox in self._mailboxes.get(event.id, ()):
                    mailbox.put_nowait(event)
        except Exception as error:  # whoever waits hears it
            for mailboxes in self._mailboxes.values():
                for mailbox in mailboxes:
                    mailbox.put_nowait(error)
            self._begun = None
        finally:
            await watch.aclose()

    def close(self) -> None:
        """Nobody waits any more."""
        for task in (self._begun, self._reader):
            if task is not None:
                task.cancel()
        self._begun = self._reader = None
