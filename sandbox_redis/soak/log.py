"""The log of one process of a soak, as it is written and read.

It is a sequence of msgpack arrays. One is written before a question is sent and one after its answer has come, each by
one write to the file, so that the log of a process that was killed is whole up to that moment: what was asked and never
answered has an unknown outcome.
"""

from __future__ import annotations

import os
import time
from enum import IntEnum
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
from sandbox_redis.soak.history import OPEN, Call, Glimpse, History, Outcome, Seen, Survey, Watched, status_of

_OUTCOMES: Final[dict[str, Outcome]] = {
    NotFoundError.__name__: Outcome.NOT_FOUND,
    AlreadyExistsError.__name__: Outcome.EXISTS,
    TransitionError.__name__: Outcome.TRANSITION,
    ConflictError.__name__: Outcome.CONFLICT,
    OutcomeUnknownError.__name__: Outcome.UNKNOWN,
    StoreUnavailableError.__name__: Outcome.UNAVAILABLE,
    "DurabilityError": Outcome.UNDURABLE,
}


class Kind(IntEnum):
    """What an entry of a log tells."""

    ASKED = 0
    TOLD = 1
    WATCHING = 2
    SEEN = 3
    GLIMPSED = 4
    ENDED = 5
    SURVEYED = 6


class Asking:
    """One call, as a context manager that notes how it ends. No error of the store leaves it."""

    __slots__ = ("_log", "_number", "answer", "id", "lost", "request")

    def __init__(self, log: HistoryLog, number: int, id: str) -> None:
        self._log = log
        self._number = number
        self.id = id
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
        return Asking(self, self._number, id)

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
            case Kind.SURVEYED:
                what, ids, found, *rest = facts
                history.surveys.append(Survey(what, tuple(ids), [(each, revision) for each, revision in found], *rest))
            case Kind.ENDED:
                history.final, history.reads = facts
                if history.watches:
                    history.watches[-1].ended = True
        return None
