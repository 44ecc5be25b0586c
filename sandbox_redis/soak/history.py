"""The history of a soak: what each process asked the store, what it was told and when, as it stands in its log. Nothing
here judges, and nothing here talks to Redis.

A log is a sequence of msgpack arrays. One is written before a question is sent and one after its answer has come, each
by one write to the file, so that the log of a process that was killed is whole up to that moment: what was asked and
never answered has an unknown outcome.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgpack

from sandbox_redis.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    StoreUnavailableError,
    TransitionError,
)
from sandbox_redis.record import Event, Sandbox, Status
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


_OUTCOMES: Final[dict[str, Outcome]] = {
    NotFoundError.__name__: Outcome.NOT_FOUND,
    AlreadyExistsError.__name__: Outcome.EXISTS,
    TransitionError.__name__: Outcome.TRANSITION,
    ConflictError.__name__: Outcome.CONFLICT,
    OutcomeUnknownError.__name__: Outcome.UNKNOWN,
    StoreUnavailableError.__name__: Outcome.UNAVAILABLE,
    "DurabilityError": Outcome.UNDURABLE,
}
REFUSALS: Final = frozenset((Outcome.NOT_FOUND, Outcome.EXISTS, Outcome.TRANSITION))
UNWRITTEN: Final = REFUSALS | {Outcome.CONFLICT, Outcome.UNAVAILABLE}
"""Who is told one of these is told that nothing was written."""
OPEN: Final = frozenset((Outcome.UNKNOWN, Outcome.UNDURABLE, Outcome.UNFINISHED, Outcome.FAILED))
"""Who is told one of these, or nothing, may find the write done, or not."""


class Kind(IntEnum):
    """What an entry of a log tells."""

    ASKED = 0
    TOLD = 1
    WATCHING = 2
    SEEN = 3
    GLIMPSED = 4
    ENDED = 5


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
    final: dict[str, str] | None = None
    """Id → revision: what a mirror had at its end."""
    reads: int = 0
    """How often a mirror was read; only what changed was noted."""

    @property
    def ended(self) -> bool:
        """Whether a watch or a mirror had everything at its end."""
        return self.final is not None or any(watched.ended for watched in self.watches)


class Asking:
    """One call, as a context manager that notes how it ends. No error of the store leaves it."""

    __slots__ = ("_log", "_number", "answer", "lost", "request")

    def __init__(self, log: HistoryLog, number: int) -> None:
        self._log = log
        self._number = number
        self.answer: object = None
        """What the store returned."""
        self.request = ""
        self.lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        facts: list[Any] = ["", None, False, "", ""]
        outcome = Outcome.OK
        if isinstance(error, SandboxError):
            outcome = _OUTCOMES.get(type(error).__name__, Outcome.FAILED)
            facts[3] = str(getattr(error, "state", ""))
            self.request = getattr(error, "request", self.request)
            if outcome in OPEN or outcome is Outcome.UNAVAILABLE:
                facts[4] = str(error)
        elif error is not None:
            return False
        elif isinstance(self.answer, Sandbox):
            facts[:2] = self.answer.revision, _packed(self.answer.status)
        else:
            facts[2] = self.answer is not False
        self._log.write(Kind.TOLD, self._number, time.monotonic_ns(), outcome, self.request, self.lost, *facts)
        return True


class HistoryLog:
    """The log of one process, opened for appending."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._number = 0

    def write(self, kind: Kind, *facts: Any) -> None:
        """Append one entry."""
        os.write(self._file, msgpack.packb((int(kind), *facts)))

    def asking(self, operation: str, id: str, **args: Any) -> Asking:
        """Note one operation that is about to be asked for, as in ``with log.asking("stop", id) as asked: asked.answer
        = store.stop(id)``."""
        self._number += 1
        self.write(Kind.ASKED, self._number, time.monotonic_ns(), operation, id, args)
        return Asking(self, self._number)

    def seen(self, event: Event) -> None:
        """Note an event that a watch told."""
        status = _packed(event.sandbox.status) if event.sandbox else None
        self.write(Kind.SEEN, event.id, event.revision, event.transition, status)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _packed(status: Status) -> tuple[str, int, int, int, int]:
    return status.state.value, status.pid, status.created_at_ns, status.exited_at_ns, status.exit_status


def status_of(packed: Any) -> Status | None:
    """The status in an entry, or in the arguments of a call."""
    return None if packed is None else Status(State(packed[0]), *packed[1:])


class Reader:
    """Reads the log of one process, also while it is written; the name of the file is the process's own."""

    def __init__(self, path: Path) -> None:
        self.history = History(path.stem)
        self._path = path
        self._place = 0
        self._unpacker = msgpack.Unpacker(strict_map_key=False)
        self._calls: dict[int, Call] = {}  # those without an answer so far

    @property
    def begun(self) -> bool:
        """Whether anything stands there."""
        return self._place > 0

    def read(self) -> list[Call]:
        """Take in what has been written since the last time; the calls that were answered. What was cut off in the
        middle of an entry is not there."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._place)
                written = file.read()
            self._place += len(written)
            self._unpacker.feed(written)
        return [call for entry in self._unpacker if (call := self._take(*entry)) is not None]

    def _take(self, kind: Kind, *facts: Any) -> Call | None:
        history = self.history
        match kind:
            case Kind.ASKED:
                number, start, operation, sandbox_id, args = facts
                self._calls[number] = call = Call(history.agent, number, operation, sandbox_id, args, start)
                history.calls.append(call)
            case Kind.TOLD:
                call = self._calls.pop(facts[0])
                _, call.end, outcome, call.request, call.lost, call.revision, status, *rest = facts
                call.outcome, call.status = Outcome(outcome), status_of(status)
                call.removed, call.state, call.error = rest
                return call
            case Kind.WATCHING:
                history.watches.append(Watched(facts[0]))
            case Kind.SEEN:
                seen = Seen(facts[0], facts[1], facts[2], status_of(facts[3]))
                history.watches[-1].events.append(seen)
            case Kind.GLIMPSED:
                history.glimpses.append(Glimpse(*facts))
            case Kind.ENDED:
                history.final, history.reads = facts
                if history.watches:
                    history.watches[-1].ended = True
        return None
