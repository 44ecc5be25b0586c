"""Those who look on in a soak: one process watches every event, or reads a mirror all the time, and notes what it sees.
It ends when it has seen the last sandboxes, which are created when nobody else writes any more.

Half of them do it with asyncio; what they note is the same.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.aio_mirror import AsyncMirror
from sandbox_redis.errors import CompactedError, NotFoundError, StoreUnavailableError
from sandbox_redis.mirror import Mirror
from sandbox_redis.record import Event
from sandbox_redis.soak.inside import no_place
from sandbox_redis.soak.log import HistoryLog, Kind
from sandbox_redis.soak.part import COUNTERS, SHARED, Part
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

_AGAIN: Final = 0.001  # how likely a watch is closed behind an event, and another one goes on
_PAUSE: Final = 0.002  # seconds between two reads of a mirror
_OUTAGE: Final = 0.1  # seconds until a watch is opened again, when there was no server
_LISTING: Final = 200  # reads from one listing to the next


class _Watching:
    """What one watch after the other tells."""

    def __init__(self, part: Part, store: SandboxStore, log: HistoryLog) -> None:
        self._part = part
        self._store = store
        self._log = log
        self._chance = part.chance()
        self.since = ""
        self.left = set(part.last)

    def begin(self) -> str:
        """Where the next watch begins."""
        self.since = self.since or no_place(self._store)
        self._log.write(Kind.WATCHING, self.since)
        return self.since

    def take(self, event: Event) -> bool:
        """Note an event; whether this watch goes on."""
        self._log.seen(event)
        self.since = event.cursor
        self.left.discard(event.id)
        return bool(self.left) and self._chance.random() >= _AGAIN

    def over(self, error: CompactedError | StoreUnavailableError) -> None:
        """A watch has ended."""
        if isinstance(error, CompactedError):  # the server has lost data: all that is there is new
            self.since = ""
            self.left = set(self._part.last)


def watch(part: Part, store: SandboxStore, log: HistoryLog) -> None:
    """Watch from the first event on."""
    watching = _Watching(part, store, log)
    while watching.left:
        try:
            with store.watch(since=watching.begin()) as watched:
                for event in watched:
                    if not watching.take(event):
                        break
        except (CompactedError, StoreUnavailableError) as error:
            watching.over(error)
            time.sleep(_OUTAGE)
    log.write(Kind.ENDED, None, 0)


async def watch_asyncio(part: Part, plain: SandboxStore, store: AsyncSandboxStore, log: HistoryLog) -> None:
    """The same with asyncio; `plain` is for what is asked aside."""
    watching = _Watching(part, plain, log)
    while watching.left:
        try:
            async with store.watch(since=watching.begin()) as watched:
                async for event in watched:
                    if not watching.take(event):
                        break
        except (CompactedError, StoreUnavailableError) as error:
            watching.over(error)
            await asyncio.sleep(_OUTAGE)
    log.write(Kind.ENDED, None, 0)


def _reads(part: Part, mirror: Mirror | AsyncMirror, log: HistoryLog) -> Iterator[None]:
    """Read a mirror until it has the last sandboxes, once for each step; only what differs from the last read is
    noted."""
    chance = part.chance()
    known: dict[str, str] = {}
    ids: list[str] = []
    reads = 0
    while not all(_revision(mirror, sandbox_id) for sandbox_id in part.last):
        if reads % _LISTING == 0:
            there = [sandbox.id for sandbox in mirror.list(states=list(State))]
            ids = [*there[:_LISTING], *COUNTERS, *SHARED]
        sandbox_id = chance.choice(ids)
        start = time.monotonic_ns()
        revision = _revision(mirror, sandbox_id)
        reads += 1
        if revision != known.get(sandbox_id, ""):
            known[sandbox_id] = revision
            log.write(Kind.GLIMPSED, sandbox_id, revision, start, time.monotonic_ns())
        yield
    log.write(Kind.ENDED, {sandbox.id: sandbox.revision for sandbox in mirror.list(states=list(State))}, reads)


def _revision(mirror: Mirror | AsyncMirror, sandbox_id: str) -> str:
    try:
        return mirror.get(sandbox_id).revision
    except NotFoundError:
        return ""


def read(part: Part, store: SandboxStore, log: HistoryLog) -> None:
    """Read a mirror."""
    while True:
        try:
            mirror = store.mirror()
        except StoreUnavailableError:
            time.sleep(_OUTAGE)
            continue
        with mirror:
            for _ in _reads(part, mirror, log):
                time.sleep(_PAUSE)
        return


async def read_asyncio(part: Part, store: AsyncSandboxStore, log: HistoryLog) -> None:
    """The same with asyncio."""
    while True:
        try:
            mirror = await store.mirror()
        except StoreUnavailableError:
            await asyncio.sleep(_OUTAGE)
            continue
        async with mirror:
            for _ in _reads(part, mirror, log):
                await asyncio.sleep(_PAUSE)
        return


def _end_with_director() -> None:
    """The director ends us when we have seen all; when it is gone, nobody does."""
    sys.stdin.read()
    os._exit(1)


def _main(part: Part) -> None:
    threading.Thread(target=_end_with_director, daemon=True).start()
    mirrors = part.name.startswith("mirror")
    with HistoryLog(part.log) as log, SandboxStore.from_url(**part.settings) as store:
        if not part.asyncio:
            (read if mirrors else watch)(part, store, log)
            return

        async def main() -> None:
            async with AsyncSandboxStore.from_url(**part.settings) as other:
                await (read_asyncio(part, other, log) if mirrors else watch_asyncio(part, store, other, log))

        asyncio.run(main())


if __name__ == "__main__":
    _main(Part.from_argv())
