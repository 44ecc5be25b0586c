"""The truth log: what one process of the demo really did, one JSON line for each act, so that the check at the end
does not have to believe Redis. Nothing here judges, and nothing here talks to Redis.

A line is written before a question is sent and after its answer has come, each by one write to the file, so a log is
whole up to the moment its writer was killed.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from sandbox_redis.errors import NotFoundError, TransitionError
from sandbox_redis.record import Sandbox, Status
from sandbox_redis.states import State


class Act(StrEnum):
    """What a line tells."""

    ASKED = "asked"
    """A write is about to be sent to the store."""
    ANSWERED = "answered"
    """The store acknowledged it."""
    REFUSED = "refused"
    """The store said that there is no such sandbox, or no such move."""
    SPAWNED = "spawned"
    """A process was started for the sandbox."""
    ENDED = "ended"
    """That process has ended, as its parent's wait() says."""
    ORPHANED = "orphaned"
    """The sandbox was taken over from a dead agent: nobody can know any more how its process ended."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a truth log."""

    actor: str
    """Who: the store's `agent`, so what its events carry in `by`."""
    act: Act
    id: str
    request: int = 0
    """Which question of this actor, from 1; the answer has the same."""
    operation: str = ""
    revision: str = ""
    """Of the sandbox that the store returned; empty where it returns none."""
    status: Status | None = None
    """Of the sandbox that the store returned; of an orphan as it was found."""
    removed: bool = False
    """What ``remove`` returned; True for ``fail_start``, which returns nothing."""
    attempts: int = 0
    """How often the function of an ``update`` was called."""
    pid: int = 0
    """Of the process; of an orphan only if that still ran."""
    exit_status: int = 0

    def to_json(self) -> str:
        """One line, without what is as it is by default."""
        told = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        if self.status is not None:
            told["status"] = {f.name: getattr(self.status, f.name) for f in fields(self.status)}
        return json.dumps(told) + "\n"

    @classmethod
    def from_json(cls, line: str) -> Self:
        """What `to_json` wrote.

        Raises:
            ValueError: it did not.
        """
        try:
            told = json.loads(line)
            if status := told.get("status"):
                told["status"] = Status(**{**status, "state": State(status["state"])})
            return cls(**{**told, "act": Act(told["act"])})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no line of a truth log: {line!r}") from error


class TruthLog:
    """The truth log of the process `actor`, opened for appending."""

    def __init__(self, path: str | os.PathLike[str], actor: str) -> None:
        self._actor = actor
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._requests = itertools.count(1)

    def write(self, act: Act, id: str, **facts: Any) -> None:
        """Append one line."""
        os.write(self._file, Entry(self._actor, act, id, **facts).to_json().encode())

    @contextmanager
    def asking(self, operation: str, id: str) -> Iterator[Callable[..., None]]:
        """Log one write to the store: the question now, a refusal when it is raised, and the answer when it is passed
        on, as in ``with log.asking("start", id) as answered: answered(store.start(id, pid=pid))``."""
        request = next(self._requests)

        def answered(reply: object, **facts: Any) -> None:
            if isinstance(reply, Sandbox):
                facts |= {"revision": reply.revision, "status": reply.status}
            else:
                facts["removed"] = reply is not False
            self.write(Act.ANSWERED, id, request=request, operation=operation, **facts)

        self.write(Act.ASKED, id, request=request, operation=operation)
        try:
            yield answered
        except (NotFoundError, TransitionError):
            self.write(Act.REFUSED, id, request=request, operation=operation)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read(path: Path) -> list[Entry]:
    """All lines of a truth log.

    Raises:
        ValueError: a line is none.
    """
    return [Entry.from_json(line) for line in path.read_text().splitlines()] if path.exists() else []
