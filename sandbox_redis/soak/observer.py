"""Those who look on in a soak: one process watches every event, or reads a mirror all the time, and notes what it sees.
It ends when it has seen the last sandboxes, which are created when nobody else writes any more.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

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


def watch(part: Part, store: SandboxStore, log: HistoryLog) -> None:
    """Watch from the first event on."""
    left = set(part.last)
    since = ""
    while left:
        try:
            since = since or no_place(store)
            log.write(Kind.WATCHING, since)
            for event in _events(store, since, part.chance()):
                log.seen(event)
                since = event.cursor
                left.discard(event.id)
                if not left:
                    break
        except CompactedError:  # the server has lost data: all that is there is new
            since = ""
            left = set(part.last)
        except StoreUnavailableError:
            time.sleep(_OUTAGE)
    log.write(Kind.ENDED, None, 0)


def _events(store: SandboxStore, since: str, chance: random.Random) -> Iterator[Event]:
    """The events of one watch, up to a moment of chance."""
    with store.watch(since=since) as watched:
        for event in watched:
            yield event
            if chance.random() < _AGAIN:
                return


def read(part: Part, store: SandboxStore, log: HistoryLog) -> None:
    """Read a mirror until it has the last sandboxes; only what differs from the last read is noted."""
    chance = part.chance()
    with _mirror(store) as mirror:
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
            time.sleep(_PAUSE)
        log.write(Kind.ENDED, {sandbox.id: sandbox.revision for sandbox in mirror.list(states=list(State))}, reads)


def _mirror(store: SandboxStore) -> Mirror:
    while True:
        try:
            return store.mirror()
        except StoreUnavailableError:
            time.sleep(_OUTAGE)


def _revision(mirror: Mirror, sandbox_id: str) -> str:
    try:
        return mirror.get(sandbox_id).revision
    except NotFoundError:
        return ""


def _end_with_director() -> None:
    """The director ends us when we have seen all; when it is gone, nobody does."""
    sys.stdin.read()
    os._exit(1)


def _main(part: Part) -> None:
    threading.Thread(target=_end_with_director, daemon=True).start()
    with HistoryLog(part.log) as log, SandboxStore.from_url(**part.settings) as store:
        (read if part.name.startswith("mirror") else watch)(part, store, log)


if __name__ == "__main__":
    _main(Part.from_argv())
