"""How events are followed: where a follower stands in each partition's stream, what it asks for, and how it makes sure
that nothing is missing where it goes on. No I/O. What users hold stands in ``watch.py`` and ``mirror.py``.

One rule decides: the event that a follower stands at must still be in the stream, else what came behind it may be gone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sandbox_redis import listing
from sandbox_redis.errors import CompactedError, InvalidArgumentError, StoreRolledBackError
from sandbox_redis.exchange import Deadline
from sandbox_redis.in_step import together
from sandbox_redis.keys import Keys
from sandbox_redis.listing import NOTHING
from sandbox_redis.record import pairs
from sandbox_redis.session import Session
from sandbox_redis.wire import Command, Op, ServerError

HEARTBEAT: Final = (
    1.0  # seconds; an idle server answers after so long, which proves that it and the way to it are there
)
EVENTS_MAX: Final = 1000  # events in one reply: what a follower that stops reading costs the server, at most
_PLACE = re.compile(r"(\d{1,20})-(\d{1,20})").fullmatch


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

    def __init__(self, layout: Keys, places: dict[int, str], maxlen: int) -> None:
        self.places = places
        """The newest event that was taken, for each partition followed."""
        self.key = layout.events(next(iter(places)))
        """The packets go to the server that holds it."""
        self._streams = {layout.events(partition): partition for partition in places}
        self._maxlen = maxlen
        self._count = max(EVENTS_MAX // len(places), 10)
        self._anchors = dict(places)  # where it stood when it was last checked
        self._checked = 0.0
        self._checking = False

    @property
    def cursor(self) -> str:
        """Where to go on from here, as text."""
        return ",".join(self.places.values())

    def packet(self, heartbeat: float | None = HEARTBEAT) -> tuple[Command, ...]:
        """What to send to get the next events, after `heartbeat` seconds at the latest; at once when None."""
        block = () if heartbeat is None else ("BLOCK", max(1, round(heartbeat * 1000)))
        read = ("XREAD", *block, "COUNT", self._count, "STREAMS", *self._streams, *self.places.values())
        # Behind the events it is looked at what they were read from, every now and then: the server may have been
        # flushed under an unbroken connection.
        self._checking = time.monotonic() - self._checked > HEARTBEAT
        return (read, *self.checks()) if self._checking else (read,)

    def take(self, replies: Sequence[Any]) -> list[Entry]:
        """The events in the replies to a packet; whoever takes them moves `places` on.

        Raises:
            StoreRolledBackError: the server has lost what was read before.
        """
        entries = [
            Entry(partition, revision.decode(), _in_order(flat))
            for key, found in replies[0] or ()
            for partition in (self._streams[key.decode()],)
            for revision, flat in found
        ]
        if self._checking:
            self.checked(replies[1:], live=True)
        return entries

    def attach(self) -> tuple[Command, ...]:
        """What to ask first on a new connection: perhaps to another server, or to one that has lost data."""
        self._anchors = dict(self.places)
        return self.checks()

    def checks(self) -> tuple[Command, ...]:
        """What to ask to know that nothing is missing behind where it stood when this was last asked."""
        return tuple(
            command
            for key, partition in self._streams.items()
            for command in (("XRANGE", key, self._anchors[partition], "+", "COUNT", 1), ("XLEN", key))
        )

    def checked(self, replies: Sequence[Any], *, live: bool = False) -> None:
        """Look at the replies to `checks`. While it follows `live`, what it has passed may have been trimmed.

        Raises:
            CompactedError, StoreRolledBackError: something is missing.
        """
        pairs = zip(replies[::2], replies[1::2], strict=True)
        for (found, length), anchor in zip(pairs, self._anchors.values(), strict=True):
            trimmed = length >= self._maxlen  # an approximate trim never goes below it
            there = not trimmed if anchor == NOTHING else bool(found) and found[0][0].decode() == anchor
            if not there and (not trimmed or not found):
                raise StoreRolledBackError(self.cursor)
            if not there and not live:
                raise CompactedError(self.cursor)
        self._anchors = dict(self.places)
        self._checked = time.monotonic()


def begin(
    session: Session, layout: Keys, since: str | datetime | None, only: int | None, deadline: Deadline
) -> Op[Follower]:
    """A follower that stands where `since` says, of all partitions or `only` one. It is not checked yet."""
    partitions = range(layout.partitions) if only is None else [only]
    if since is None:
        newest = yield from listing.newest(session, layout, deadline)
        places = {p: newest[p] for p in partitions}
    elif isinstance(since, datetime):
        ms = round(since.timestamp() * 1000)
        found = yield from together(_before(session, layout.events(p), ms, deadline) for p in partitions)
        places = dict(zip(partitions, found, strict=True))
    else:
        places = _parsed(since, layout, only)
    return Follower(layout, places, session.maxlen)


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


def _is_place(text: str) -> bool:
    return _PLACE(text) is not None and max(place(text)) < 2**64


def check_since(since: str | datetime | None) -> None:
    """Refuse what cannot be a place, before anything is sent."""
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise InvalidArgumentError("since", since, "a time with a time zone is needed")
    elif since is not None and not (isinstance(since, str) and all(map(_is_place, since.split(",")))):
        raise InvalidArgumentError("since", since, "a cursor, a revision, a time, or None for now is needed")
