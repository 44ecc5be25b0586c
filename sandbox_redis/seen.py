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
        self.doubtful: set[int] = set()
        """Those of which it is not known whether what was seen is still there: the server was away since."""

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
        self.doubtful = set(self._newest)

    def is_to_be_asked(self, partition: int, *, absent: bool) -> bool:
        """Whether to ask, which is then no more in doubt; also where something is `absent` that may have been lost."""
        doubtful = partition in self.doubtful
        self.doubtful.discard(partition)
        return (doubtful or absent) and partition in self._newest

    def laid_out(self, partitions: int | None) -> None:
        """The store has so many partitions; None when there is no store. Where that is not what was seen, everything
        that was seen is lost."""
        if self._newest and partitions != self._partitions:
            for partition in sorted(self._newest):
                self._lost(partition, self._newest.get(partition), None)
        self._partitions = partitions or 0

    def questions(self, layout: Keys, partition: int) -> tuple[Command, ...]:
        """What to ask to find out whether the newest event seen is there; `answered` takes the replies."""
        key, newest = layout.events(partition), self._newest.get(partition, "0-0")
        return (("XRANGE", key, newest, newest), ("XREVRANGE", key, "+", "-", "COUNT", 1), ("XLEN", key))

    def answered(self, partition: int, asked: tuple[Command, ...], replies: list[Any], maxlen: int) -> None:
        """Judge the replies. An event that is missing in a stream that is long enough to have been trimmed proves
        nothing, unless all that is there is older."""
        seen = asked[0][2]
        there, last, length = replies
        newest = last[0][0].decode() if last else None
        if not there and (newest is None or _place(newest) < _place(seen) or length < maxlen):
            self._lost(partition, seen, newest)

    def newest_is(self, partition: int, newest: str | None) -> None:
        """The newest event of a partition was read, or there is none."""
        seen = self._newest.get(partition)
        if seen is not None and (newest is None or _place(newest) < _place(seen)):
            self._lost(partition, seen, newest)

    def _lost(self, partition: int, seen: str | None, newest: str | None) -> None:
        # Whoever takes it out says it: others may find it at the same time, and some events may have come meanwhile.
        if seen is None or self._newest.get(partition) != seen or self._newest.pop(partition, None) is None:
            return
        self.doubtful.discard(partition)
        if newest is not None:
            self._newest[partition] = newest
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
