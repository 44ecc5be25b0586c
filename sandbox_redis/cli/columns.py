"""The columns of a listing, and the orders that it can have: what each takes of a sandbox, and under which name. How a
table is printed stands in ``show.py``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, Final

from sandbox_redis.cli import text
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.record import Sandbox, time_to_text
from sandbox_redis.states import State

Cell = Callable[[Sandbox, int], str]
"""What a column shows of a sandbox, at a time in nanoseconds; nothing is the empty text."""
Order = Callable[[Iterable[Sandbox], int | None], Iterable[Sandbox]]
"""Takes so many sandboxes at most, the first ones in some order."""

COLUMNS: Final[dict[str, Cell]] = {
    "id": lambda sandbox, _: sandbox.id,
    "name": lambda sandbox, _: sandbox.metadata.name,
    "node": lambda sandbox, _: sandbox.node,
    "state": lambda sandbox, _: sandbox.status.state.value,
    "pid": lambda sandbox, _: str(sandbox.status.pid or ""),
    "age": lambda sandbox, now: text.age(sandbox.status, now),
    "exit": lambda sandbox, _: str(sandbox.status.exit_status) if sandbox.status.exited_at_ns else "",
    "namespace": lambda sandbox, _: sandbox.metadata.namespace,
    "labels": lambda sandbox, _: ",".join(f"{key}={value}" for key, value in sorted(sandbox.metadata.labels.items())),
    "created": lambda sandbox, _: time_to_text(sandbox.status.created_at_ns),
    "exited": lambda sandbox, _: time_to_text(sandbox.status.exited_at_ns),
    "revision": lambda sandbox, _: sandbox.revision,
    "problem": lambda sandbox, _: sandbox.problem or "",
}
"""Those of the wide table. The usual ones come first, so that each has one place for ``awk``."""
USUAL: Final = tuple(COLUMNS)[:7]
BREAKABLE: Final = frozenset(("NAME", "NODE", "NAMESPACE", "LABELS", "PROBLEM"))
"""Headings of columns whose values may be broken into lines."""
FREE_TEXT: Final = "PROBLEM"
"""The heading of the column that is made of words."""
_LABEL: Final = "label:"

_STATES: Final = tuple(State)
ORDERS: Final[dict[str, Callable[[Sandbox], Any]]] = {
    "id": lambda sandbox: sandbox.id,
    "name": lambda sandbox: sandbox.metadata.name or None,
    "node": lambda sandbox: sandbox.node or None,
    "state": lambda sandbox: _STATES.index(sandbox.status.state),
    "age": lambda sandbox: -sandbox.status.created_at_ns or None,
    "pid": lambda sandbox: sandbox.status.pid or None,
}
"""What sandboxes can be sorted by; None is nothing."""


def chosen(argument: str, items: Iterable[str]) -> dict[str, Cell]:
    """The columns that somebody names, by their headings.

    Raises:
        InvalidArgumentError: there is no such column.
    """
    found: dict[str, Cell] = {}
    for name in (name for item in items for name in text.pieces(item)):
        if name.lower().startswith(_LABEL) and (key := name[len(_LABEL) :]):
            found[f"{_LABEL.upper()}{key}"] = partial(_label, key)
        elif cell := COLUMNS.get(name.lower()):
            found[name.upper()] = cell
        else:
            rule = f"the columns are {', '.join(COLUMNS)} and {_LABEL}KEY"
            raise InvalidArgumentError(argument, name, rule)
    return found


def _label(key: str, sandbox: Sandbox, _: int) -> str:
    return sandbox.metadata.labels.get(key, "")


def as_they_come(sandboxes: Iterable[Sandbox], limit: int | None) -> Iterable[Sandbox]:
    """Leaves the order alone."""
    return islice(sandboxes, limit)


def in_order(argument: str, order: str) -> Order:
    """Sorts sandboxes as somebody asks for; those that have nothing to be sorted by come last.

    Raises:
        InvalidArgumentError: there is no such order.
    """
    descending = order.startswith("-")
    name = order.removeprefix("-").lower()
    if name not in ORDERS:
        rule = f"one of {', '.join(ORDERS)} is needed, with - before it for the reverse"
        raise InvalidArgumentError(argument, order, rule)

    def place(sandbox: Sandbox) -> tuple[bool, Any, str]:
        value = ORDERS[name](sandbox)
        return (value is None) is not descending, 0 if value is None else value, sandbox.id

    def take(sandboxes: Iterable[Sandbox], limit: int | None) -> list[Sandbox]:
        if limit is None:
            return sorted(sandboxes, key=place, reverse=descending)
        # No more than so many are in memory.
        return (heapq.nlargest if descending else heapq.nsmallest)(limit, sandboxes, key=place)

    return take
