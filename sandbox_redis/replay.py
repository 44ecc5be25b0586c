"""The events of one partition, played one after the other: what they say is what the records must be. No I/O; who reads
them stands in ``examine.py``.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Final

from sandbox_redis.record import pairs
from sandbox_redis.states import MACHINE

STATUS: Final = (b"state", b"pid", b"created_at", b"exited_at", b"exit_status", b"node", b"epoch", b"request")
"""What a record and its last event have in common."""
Entry = tuple[bytes, list[bytes]]
_ABSENT: Final = b"absent"


def text(value: bytes) -> str:
    """What somebody may have put anything into."""
    return value.decode(errors="backslashreplace")


def place(revision: bytes) -> tuple[int, int]:
    """Where a revision stands in its stream; at the very beginning when it cannot be read."""
    ms, _, seq = revision.partition(b"-")
    return (int(ms), int(seq)) if ms.isdigit() and seq.isdigit() else (0, 0)


class Replay:
    """What the events of one partition say, as far as they have been read: the last one of each sandbox."""

    __slots__ = ("last", "newest", "number", "oldest")

    def __init__(self) -> None:
        self.last: dict[bytes, tuple[bytes, tuple[bytes | None, ...]]] = {}
        """Of each id the last revision, and the status that it says; its state is None after a delete."""
        self.oldest: tuple[int, int] | None = None
        """From where on no event is missing."""
        self.newest: bytes | None = None
        self.number = 0

    @property
    def after(self) -> bytes:
        """Where the events go on that have not been read."""
        return b"-" if self.newest is None else b"(" + self.newest

    def take(
        self, entries: Iterable[Entry], first: Iterable[Entry], only: Container[bytes] | None = None
    ) -> Iterator[str]:
        """The next events, and the oldest that was there when they had been read; says what contradicts itself. With
        `only`, those of other ids are passed over: from then on nothing is known of these."""
        there = next((place(revision) for revision, _ in first), None)
        if self.newest is not None and there is not None and there > place(self.newest):
            self.last.clear()  # some were trimmed before they were read
            self.oldest = None
        for revision, flat in entries:
            if self.oldest is None:
                self.oldest = place(revision)
            self.newest = revision
            if only is not None and flat[1] not in only:  # the id is the first field of each event
                continue
            fields = pairs(flat)
            yield from self._contradictions(revision, fields)
            self.last[fields.get(b"id", b"")] = revision, tuple(fields.get(name) for name in STATUS)
            self.number += only is None

    def _contradictions(self, revision: bytes, fields: Mapping[bytes, bytes]) -> Iterator[str]:
        raw = fields.get(b"id", b"")
        which = f"event {text(revision)} of {text(raw)}"
        transition, before = text(fields.get(b"transition", b"")), text(fields.get(b"before", _ABSENT))
        after = text(fields.get(b"state", _ABSENT))
        if raw in self.last:
            known = text(self.last[raw][1][0] or _ABSENT)
            if known != before:
                yield f"{which} says it was {before}, the event before it says {known}"
        # A forced removal tells what it did as a stop and a remove.
        operations = ("remove", "force_remove") if transition == "remove" else (transition,)
        allowed = {state for operation in operations for state in MACHINE.get(operation, {}).get(before, ())}
        if after not in allowed:
            yield f"{which}: {transition} cannot lead from {before} to {after}"

    def differs(self, raw: bytes, record: Mapping[bytes, Any]) -> str | None:
        """What a record says otherwise than the events; an empty mapping where there is none."""
        name = text(raw)
        if raw not in self.last:
            # What was written before the oldest event has lost its own by trimming.
            young = place(record.get(b"revision", b"")) >= (self.oldest or (0, 0))
            return f"{name} has no event" if record and young else None
        revision, status = self.last[raw]
        if bool(record) != (status[0] is not None):
            return f"{name} is {'there' if record else 'absent'}, its last event {text(revision)} says otherwise"
        if not record:
            return None
        differing = [field.decode() for field, said in zip(STATUS, status, strict=True) if record.get(field) != said]
        if record.get(b"revision") != revision:
            differing.append("revision")
        return f"{name} differs from its last event {text(revision)} in {', '.join(differing)}" if differing else None
