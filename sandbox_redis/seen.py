"""What one client has seen of a store: the newest event of each partition. When the server has been away, or shows
something older, it is looked whether that event is still there; if not, the server has lost what it had confirmed, and
that is logged, once. No I/O.

An absent sandbox is then no removed one. Who follows the events hears of it as an error: see ``follow.py``.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from sandbox_redis.keys import Keys
from sandbox_redis.wire import Command

_log: Final = logging.getLogger("sandbox_redis")
_REVISION: Final = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII).fullmatch


class Seen:
    """The newest revision seen of each partition, of a store that is laid out as it was then."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._newest: dict[int, str] = {}
        self._partitions = 0
        self._told: dict[tuple[int, str], object] = {}  # what was said to be lost
        self.doubtful: dict[int, str] = {}
        """What was seen before the server was away, until somebody has asked whether it is still there."""

    def note(self, partition: int, revision: str) -> None:
        """It was in a reply. What is older than something else that was seen changes nothing."""
        # Compared as text, which is fast, and errs only within one millisecond.
        if revision > self._newest.get(partition, "") and _REVISION(revision):
            self._newest[partition] = revision

    def __bool__(self) -> bool:
        """Whether anything was seen."""
        return bool(self._newest)

    def doubt(self) -> None:
        """The server was away, and may have come back older."""
        self.doubtful = {**self._newest, **self.doubtful}

    def take(self, partition: int, *, absent: bool) -> str | None:
        """The event to ask for, which is then in doubt no more; also where something is `absent` that may be lost."""
        doubtful = self.doubtful.pop(partition, None)
        return self._newest.get(partition) if absent and doubtful is None else doubtful

    def laid_out(self, partitions: int | None) -> None:
        """The store has so many partitions; None when there is no store. Where that is not what was seen, everything
        that was seen is lost."""
        if partitions != self._partitions:
            seen = sorted({**self._newest, **self.doubtful}.items()) if self._partitions else ()
            self._newest, self.doubtful = {}, {}
            for partition, revision in seen:
                self._lost(partition, revision, None)
        self._partitions = partitions or 0

    @staticmethod
    def questions(layout: Keys, partition: int, seen: str) -> tuple[Command, ...]:
        """What to ask to find out whether an event is there; `answered` takes the replies."""
        key = layout.events(partition)
        return (("XRANGE", key, seen, seen), ("XREVRANGE", key, "+", "-", "COUNT", 1), ("XLEN", key))

    def answered(self, partition: int, seen: str, replies: list[Any], maxlen: int) -> None:
        """Judge the replies. An event that is missing in a stream that is long enough to have been trimmed proves
        nothing, unless all that is there is older."""
        there, last, length = replies
        newest = last[0][0].decode() if last else None
        if not there and (newest is None or _place(newest) < _place(seen) or length < maxlen):
            self._lost(partition, seen, newest)

    def newest_is(self, partition: int, newest: str | None) -> None:
        """The newest event of a partition was read, or there is none."""
        seen = self._newest.get(partition)
        if seen is not None and (newest is None or _place(newest) < _place(seen)):
            self._lost(partition, seen, newest)

    def _lost(self, partition: int, seen: str, newest: str | None) -> None:
        if self._newest.get(partition) == seen:  # else events have come since
            self._newest.pop(partition, None)
            if newest is not None:
                self._newest[partition] = newest
        self.doubtful.pop(partition, None)
        mine = object()
        if self._told.setdefault((partition, seen), mine) is not mine:  # others may find it at the same time
            return
        _log.warning(
            "the server at %s has lost data: in partition %d it had confirmed %s, and its newest event is %s; it was"
            " restarted without its data, failed over to a replica that lagged, or was flushed. What is not there any"
            " more was not removed: look at what really runs",
            self._address,
            partition,
            seen,
            newest or "none at all",
        )


def _place(revision: str) -> tuple[int, int]:
    ms, _, sequence = revision.partition("-")
    return int(ms), int(sequence)
