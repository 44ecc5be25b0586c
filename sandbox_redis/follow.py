"""How events are followed: where a follower stands in each partition's stream, what it asks for, and how it makes sure
that nothing is missing where it goes on. No I/O. What users hold stands in ``watch.py`` and ``mirror.py``.

One rule decides: the event that a follower stands at must still be in the stream, else what came behind it may be gone.
It must be the very same: in a failover two servers may be the master at once, and give one number to different events.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sandbox_redis import listing
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import CompactedError, InvalidArgumentError, StoreRolledBackError
from sandbox_redis.in_step import together
from sandbox_redis.keys import Keys, meta
from sandbox_redis.listing import NOTHING
from sandbox_redis.record import pairs
from sandbox_redis.session import Session
from sandbox_redis.wire import Command, LaidOut, Op, Question, ServerError

HEARTBEAT: Final = (
    1.0  # seconds; an idle server answers after so long, which proves that it and the way to it are there
)
EVENTS_MAX: Final = 1000  # events in one reply: what a follower that stops reading costs the server, at most
_PLACE = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII).fullmatch


class Entry(NamedTuple):
    """One event as it stands in its stream."""

    partition: int
    revision: str
    flat: list[bytes]
    """Fields and values; the first is the id, the second the transition."""


def _in_order(flat: list[bytes]) -> list[bytes]:
    """An event that was not written by this store may have its fields in another order, or lack some."""
    if flat[0] == b"id" and flat[2:3] == [b"transition"]:
        return flat
    fields = {b"id": b"", b"transition": b""} | pairs(flat)
    return [item for pair in fields.items() for item in pair]


def place(revision: str) -> tuple[int, int]:
    """Where an event stands in its stream; what comes later is greater."""
    ms, _, sequence = revision.partition("-")
    return int(ms), int(sequence)


class Follower:
    """Stands somewhere in the streams of some partitions, and goes on from there."""

    def __init__(self, session: Session, layout: Keys, places: dict[int, str]) -> None:
        self.places = places
        """The newest event that was taken, for each partition followed."""
        self.split = session.split
        """Whether the partitions may be on several servers: then each is a question of its own."""
        self._meta = None if layout.laid_out else meta(session.prefix)
        groups = [(partition,) for partition in places] if self.split else [tuple(places)]
        self._parts = [_Part(session, layout, places, partitions) for partitions in groups]

    @property
    def cursor(self) -> str:
        """Where to go on from here, as text."""
        return ",".join(self.places.values())

    @property
    def behind(self) -> bool:
        """Whether the servers had more to tell than they were asked for, when they were asked last."""
        return any(part.behind for part in self._parts)

    @property
    def undecided(self) -> bool:
        """Whether the store did not exist when it began."""
        return self._meta is not None

    def questions(self, heartbeat: float | None = HEARTBEAT) -> tuple[Question, ...]:
        """What to ask to get the next events, after `heartbeat` seconds at the latest; at once when None."""
        questions = tuple((part.key, part.packet(None if self.split else heartbeat)) for part in self._parts)
        if self._meta is None:
            return questions
        there: tuple[Command, ...] = (("EXISTS", self._meta),)
        if self.split:
            return (*questions, (self._meta, there))
        ((key, commands),) = questions
        return ((key, commands + there),)

    def take(self, answers: Sequence[Sequence[Any] | None]) -> list[Entry]:
        """The events in the answers, with None for what was not asked; whoever takes them moves `places` on.

        Raises:
            CompactedError, StoreRolledBackError: events are missing.
            LaidOut: what is to be followed has only now been decided.
        """
        told = [None if answer is None else list(answer) for answer in answers]
        if self._meta is not None and (last := told.pop() if self.split else told[0]) is not None and last.pop():
            self._meta = None
            raise LaidOut
        entries: list[Entry] = []
        for part, answer in zip(self._parts, told, strict=True):
            if answer is not None:
                entries += part.take(answer)
        return entries

    def attach(self) -> tuple[Question, ...]:
        """What to ask first on new connections: perhaps to other servers, or to ones that have lost data."""
        return tuple((part.key, part.attach()) for part in self._parts)

    def attached(self, answers: Sequence[Sequence[Any] | None]) -> None:
        """The answers to `attach`; raises as `take`."""
        for part, answer in zip(self._parts, answers, strict=True):
            assert answer is not None
            part.attached(answer)


class _Part:
    """The partitions that are asked for in one packet."""

    def __init__(self, session: Session, layout: Keys, places: dict[int, str], partitions: tuple[int, ...]) -> None:
        self.key = layout.events(partitions[0])
        """The packets go to the server that holds it."""
        self.behind = False
        self._all = places
        self._streams = {layout.events(partition): partition for partition in partitions}
        self._forget = session.forget
        self._maxlen = session.maxlen
        self._count = max(EVENTS_MAX // len(places), 10)
        self._anchors = self._places()  # where it stood when it was last checked
        self._taken: dict[tuple[int, str], list[bytes]] = {}  # events at which it stood since then
        self._checked = 0.0
        self._checking = False
        self._doubtful: list[Entry] = []

    def _places(self) -> dict[int, str]:
        return {partition: self._all[partition] for partition in self._streams.values()}

    def packet(self, heartbeat: float | None) -> tuple[Command, ...]:
        """What to ask next."""
        places = self._places()
        if self._doubtful:
            return self._checks(places)
        block = () if heartbeat is None else ("BLOCK", max(1, round(heartbeat * 1000)))
        read = ("XREAD", *block, "COUNT", self._count, "STREAMS", *self._streams, *places.values())
        # Behind the events it is looked at what was read before, every now and then: the server may have been flushed
        # under an unbroken connection.
        self._checking = time.monotonic() - self._checked > HEARTBEAT
        return (read, *(self._checks(self._anchors) if self._checking else ()))

    def take(self, replies: Sequence[Any]) -> list[Entry]:
        """As `Follower.take`."""
        if self._doubtful:
            self._check(self._places(), replies)
            entries, self._doubtful = self._doubtful, []
            return entries
        found, *rest = replies
        entries = []
        self.behind = False
        for key, events in found or ():
            partition = self._streams[key.decode()]
            entries += [Entry(partition, revision.decode(), _in_order(flat)) for revision, flat in events]
            if events:
                self._taken[partition, entries[-1].revision] = entries[-1].flat
            # Only a reader who is far behind can have lost what was trimmed: then it gets all that is there, or as much
            # as it takes at a time.
            if len(events) >= min(self._count, self._maxlen):
                self._doubtful = entries
                self.behind = True
        if self._checking:
            self._check(self._anchors, rest, live=True)
            self._anchor()
        for entry in entries:
            if self._anchors[entry.partition] == NOTHING:  # which would be found in a flushed stream as well
                self._anchors[entry.partition] = entry.revision
        return [] if self._doubtful else entries

    def attach(self) -> tuple[Command, ...]:
        """As `Follower.attach`."""
        self._doubtful = []
        return self._checks(self._places())

    def attached(self, replies: Sequence[Any]) -> None:
        """As `Follower.attached`."""
        self._check(self._places(), replies)
        self._anchor()

    def _anchor(self) -> None:
        """It was checked where it stands now."""
        self._anchors, self._checked = self._places(), time.monotonic()
        self._taken = {place: flat for place in self._anchors.items() if (flat := self._taken.get(place)) is not None}

    def _checks(self, places: dict[int, str]) -> tuple[Command, ...]:
        return tuple(
            command
            for key, partition in self._streams.items()
            for command in (("XRANGE", key, places[partition], "+", "COUNT", 1), ("XLEN", key))
        )

    def _check(self, places: dict[int, str], replies: Sequence[Any], *, live: bool = False) -> None:
        """Whether the events at these places are there, so that nothing behind them is missing. While it follows
        `live`, what it has passed may have been trimmed."""
        pairs = zip(replies[::2], replies[1::2], strict=True)
        for (found, length), (partition, revision) in zip(pairs, places.items(), strict=True):
            trimmed = length >= self._maxlen  # an approximate trim never goes below it
            there = not trimmed if revision == NOTHING else bool(found) and found[0][0].decode() == revision
            taken = self._taken.get((partition, revision))
            if taken is not None and there and _in_order(found[0][1]) != taken:  # another master's
                there = trimmed = False
            cursor = ",".join(self._all.values())
            if not there and (not trimmed or not found):
                self._forget()  # it may be laid out anew
                raise StoreRolledBackError(cursor)
            if not there and not live:
                raise CompactedError(cursor)


def begin(
    session: Session, layout: Keys, since: str | datetime | None, only: int | None, deadline: Deadline
) -> Op[Follower]:
    """A follower that stands where `since` says, of all partitions or `only` one. It is not checked yet."""
    partitions = range(layout.partitions) if only is None else [only]
    if since is None:
        newest = yield from listing.newest(session, layout, deadline)
        places = {p: newest[p] for p in partitions}
    elif isinstance(since, datetime):
        ms = math.floor(since.timestamp() * 1000)
        found = yield from together(_before(session, layout.events(p), ms, deadline) for p in partitions)
        places = dict(zip(partitions, found, strict=True))
    else:
        places = _parsed(since, layout, only)
    return Follower(session, layout, places)


def _before(session: Session, key: str, ms: int, deadline: Deadline) -> Op[str]:
    """The last event before a time."""
    command = ("XREVRANGE", key, f"({ms}-0" if ms > 0 else "0-0", "-", "COUNT", 1)
    (reply,) = yield from session.exchange.ask(key, (command,), deadline)
    if isinstance(reply, ServerError):
        yield from session.wrong_type((key,), deadline, (b"stream",))
    return reply[0][0].decode() if reply else NOTHING


def _parsed(since: str, layout: Keys, only: int | None) -> dict[int, str]:
    places = since.split(",")
    if len(places) == layout.partitions:
        found = dict(enumerate(places))
        return found if only is None else {only: found[only]}
    if len(places) == 1 and only is not None:
        return {only: since}
    rule = f"a cursor of this store, which has {layout.partitions} partitions, is needed"
    if len(places) == 1:
        rule += "; a revision alone will do with a sandbox_id only"
    raise InvalidArgumentError("since", since, rule)


def is_place(text: object) -> bool:
    """Whether it can be a revision, or the cursor of one partition."""
    return isinstance(text, str) and _PLACE(text) is not None and max(place(text)) < 2**64


def check_since(since: str | datetime | None) -> None:
    """Refuse what cannot be a place, before anything is sent."""
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise InvalidArgumentError("since", since, "a time with a time zone is needed")
    elif since is not None and not (isinstance(since, str) and all(map(is_place, since.split(",")))):
        raise InvalidArgumentError("since", since, "a cursor, a revision, a time, or None for now is needed")
