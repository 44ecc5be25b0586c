"""What a check found: violations, as data with a readable text, and what it counted on the way. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

_KEPT: Final = 200  # violations of one kind; more of them say nothing new


class Fault(StrEnum):
    """What can be wrong with a history."""

    LOST = "lost write"
    """It was acknowledged, and is not in the events."""
    DOUBLE = "double apply"
    """One call is in the events more often than it should."""
    APPLIED = "refused write applied"
    """The caller was told that nothing was written."""
    UNASKED = "unasked event"
    """Nobody asked for it."""
    EFFECT = "wrong effect"
    """An event, or what a caller was told, is not what the operation makes of the status before."""
    ORDER = "out of order"
    """The events contradict the order in which things happened."""
    STALE = "stale read"
    """What a read returned was over before it began, or began after it ended."""
    REFUSAL = "wrong refusal"
    """At no moment of the call was there a state that refuses it."""
    RECORD = "wrong record"
    """A record is not what its last event says, or an index does not fit."""
    MISSED = "missed event"
    """A watch passed over it."""
    REPEATED = "repeated event"
    """A watch told it twice, or in the wrong order."""
    SURVEY = "wrong listing"
    """A listing or a count lacks what was there all the time, or tells what never was, or twice."""
    MIRROR = "wrong mirror"
    """A mirror went back, or told what never was."""
    ERROR = "unexpected error"
    """An error that nothing explains."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that cannot be."""

    fault: Fault
    id: str
    text: str

    def __str__(self) -> str:
        return f"{self.fault}: {self.text}"


@dataclass(slots=True)
class Report:
    """What a check found."""

    violations: list[Violation] = field(default_factory=list)
    found: Counter[Fault] = field(default_factory=Counter)
    """How many of each kind; of very many not all are in `violations`."""
    lost_writes: int = 0
    """Acknowledged, and gone with data that the server lost; violations where it lost none."""
    lost_sights: int = 0
    """Reads and events that tell of what was lost so."""
    stale_reads: int = 0
    """Reads that were stale while a fault that may lose data went on."""
    applied_late: int = 0
    """Calls without a definite outcome that are in the events."""

    def add(self, fault: Fault, id: str, text: str) -> None:
        """Note a violation."""
        self.found[fault] += 1
        if self.found[fault] <= _KEPT:
            self.violations.append(Violation(fault, id, text))


class Losses:
    """The times in which a server may have lost what it had acknowledged in them: (from, to) of failovers and crashes,
    in nanoseconds. Empty where it must lose none."""

    def __init__(self, windows: Iterable[tuple[int, int]] = ()) -> None:
        self._windows = sorted(windows)
        self._last = max((end for _, end in self._windows), default=-1)

    def __bool__(self) -> bool:
        return bool(self._windows)

    def after(self, moment: int) -> bool:
        """Whether what was there at this moment may have been lost later."""
        return moment <= self._last

    def during(self, start: int, end: int) -> bool:
        """Whether data may have been lost at some moment between these."""
        return any(self._overlapping(start, end))

    def _overlapping(self, start: int, end: int) -> Iterator[bool]:
        return (first <= end and start <= last for first, last in self._windows)
