"""The history of a soak: what each process asked the store, what it was told and when. Nothing here judges, and nothing
here talks to Redis. How it is written down stands in ``log.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sandbox_redis.record import Status
from sandbox_redis.states import State


class Outcome(StrEnum):
    """What a process was told of one operation."""

    OK = "ok"
    NOT_FOUND = "not found"
    EXISTS = "already exists"
    TRANSITION = "transition refused"
    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"
    """The reply was lost, and the truth could not be found out any more."""
    UNDURABLE = "not durable"
    """It happened, but it may be lost: fewer replicas have it than were asked for."""
    UNFINISHED = "unfinished"
    """The process was killed meanwhile."""
    FAILED = "failed"
    """Any other error; there should be none."""


REFUSALS: Final = frozenset((Outcome.NOT_FOUND, Outcome.EXISTS, Outcome.TRANSITION))
UNWRITTEN: Final = REFUSALS | {Outcome.CONFLICT, Outcome.UNAVAILABLE}
"""Who is told one of these is told that nothing was written."""
OPEN: Final = frozenset((Outcome.UNKNOWN, Outcome.UNDURABLE, Outcome.UNFINISHED, Outcome.FAILED))
"""Who is told one of these, or nothing, may find the write done, or not."""


@dataclass(slots=True)
class Call:
    """One operation of one process. Times are nanoseconds of the host's monotonic clock."""

    agent: str
    number: int
    """From 1, in each log."""
    operation: str
    """As `states.MACHINE` names it, or ``get``."""
    id: str
    args: Mapping[str, Any]
    start: int
    end: int = 0
    """0 when no answer came."""
    outcome: Outcome = Outcome.UNFINISHED
    request: str = ""
    """The token of the write; empty when nothing was sent, or nobody lived to note it."""
    lost: bool = False
    """Whether a reply was lost on the way."""
    revision: str = ""
    """Of the sandbox that was returned."""
    status: Status | None = None
    """Of the sandbox that was returned."""
    removed: bool = False
    """What ``remove`` returned; True for ``fail_start``."""
    state: str = ""
    """The state that refused."""
    error: str = ""
    """What the error said, where that is not clear from the outcome."""

    def __str__(self) -> str:
        last = f"{self.end / 1e9:.6f}" if self.end else "never"
        return (
            f"{self.operation} of {self.id} by {self.agent} (its call {self.number}, from {self.start / 1e9:.6f} to"
            f" {last} s: {self.outcome})"
        )


@dataclass(slots=True)
class Glimpse:
    """What a mirror said of one sandbox."""

    id: str
    revision: str
    """Empty when there was none."""
    start: int
    end: int


@dataclass(slots=True)
class Survey:
    """What one process was told of many sandboxes at once."""

    what: str
    """``list``, ``get_many`` or ``counts``."""
    asked: tuple[str, ...]
    """The ids that were asked for; empty for all sandboxes."""
    found: list[tuple[str, str]]
    """Id and revision of each that was there, in the order in which they were told."""
    total: int
    """How many there were; for ``counts``, all that is known."""
    start: int
    end: int


@dataclass(slots=True)
class Seen:
    """One event as a watch told it."""

    id: str
    revision: str
    transition: str
    status: Status | None


@dataclass(slots=True)
class Watched:
    """What one watch told, from its beginning to its end."""

    since: str
    """The cursor that it began behind."""
    events: list[Seen] = field(default_factory=list)
    ended: bool = False
    """Whether it had told everything at its end."""


@dataclass(slots=True)
class History:
    """What one process did."""

    agent: str
    calls: list[Call] = field(default_factory=list)
    watches: list[Watched] = field(default_factory=list)
    glimpses: list[Glimpse] = field(default_factory=list)
    surveys: list[Survey] = field(default_factory=list)
    final: dict[str, str] | None = None
    """Id → revision: what a mirror had at its end."""
    reads: int = 0
    """How often a mirror was read; only what changed was noted."""

    @property
    def ended(self) -> bool:
        """Whether a watch or a mirror had everything at its end."""
        return self.final is not None or any(watched.ended for watched in self.watches)


def status_of(packed: Any) -> Status | None:
    """The status in an entry, or in the arguments of a call."""
    return None if packed is None else Status(State(packed[0]), *packed[1:])
