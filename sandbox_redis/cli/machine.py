"""The command that shows the state machine, made from the code's own table: `sandbox_redis.states.MACHINE`. What the
machine is stands there alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from sandbox_redis.cli import shape, show
from sandbox_redis.cli.options import Form
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.states import ABSENT, MACHINE, State

_BEFORE: Final = (ABSENT, *State)
_GOES_ON: Final = "force_remove"
"""Where it leads to NOTREADY it goes on to no record, in the same script."""


class Format(StrEnum):
    """The forms in which the state machine is printed."""

    TABLE = "table"
    MERMAID = "mermaid"
    DOT = "dot"
    JSON = "json"


def states(
    form: Form,
    *,
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="As -o does, and as a drawing; else as a table.", case_sensitive=False),
    ] = None,
) -> None:
    """Show the state machine.

    It says which operation leads from which state to which; "absent" is no record.
    """
    if form.json and format_ not in (None, Format.JSON):
        raise InvalidArgumentError("--format", format_.value, "JSON is asked for as well: choose one of them")
    if form.json or format_ is Format.JSON:
        shape.write(as_json())
    elif format_ in (None, Format.TABLE):
        headings = ("operation", *_BEFORE)
        show.table(headings, list(rows()), breakable=headings)
    else:
        print(_DRAWINGS[format_]())


def rows() -> Iterator[list[str]]:
    """What each operation does in each state, or how it is refused."""
    for operation, moves in MACHINE.items():
        yield [operation, *(_cell(operation, before, moves.get(before)) for before in _BEFORE)]


def _cell(operation: str, before: str, after: tuple[str, ...] | None) -> str:
    if after is None:
        return _refusal(operation, before)
    stays = ["ok"] * (before in after)
    moves = ", ".join(state for state in after if state != before)
    goes_on = f" → {ABSENT}" * (operation == _GOES_ON and ABSENT not in after)
    return ", ".join([*stays, *([f"→ {moves}{goes_on}"] if moves else [])])


def _refusal(operation: str, before: str) -> str:
    if before == ABSENT:
        return "NotFound"
    return "AlreadyExists" if operation in _ADDING else "Transition"


_ADDING: Final = frozenset(operation for operation, moves in MACHINE.items() if set(moves) == {ABSENT})


def edges() -> dict[tuple[str, str], list[str]]:
    """From which state to which, and by which operations; what finds no record and leaves none is no edge."""
    found: dict[tuple[str, str], list[str]] = {}
    for operation, moves in MACHINE.items():
        for before, after in moves.items():
            ends = after if operation != _GOES_ON else (ABSENT,)
            for state in ends:
                if (before, state) != (ABSENT, ABSENT):
                    found.setdefault((before, state), []).append(operation)
    return found


def mermaid() -> str:
    """The state machine as a Mermaid state diagram, as GitHub draws it."""
    names = {ABSENT: "[*]"}
    lines = [
        f"    {names.get(before, before)} --> {names.get(after, after)}: {', '.join(operations)}"
        for (before, after), operations in edges().items()
    ]
    return "\n".join(["stateDiagram-v2", *lines])


def dot() -> str:
    """The state machine in Graphviz's language."""
    labels = {ends: ", ".join(operations) for ends, operations in edges().items()}
    lines = [f'    "{before}" -> "{after}" [label="{label}"];' for (before, after), label in labels.items()]
    return "\n".join(["digraph sandbox {", f'    "{ABSENT}" [shape=point, width=0.2];', *lines, "}"])


def as_json() -> dict[str, Any]:
    """The state machine as it is in the code."""
    return {"states": list(_BEFORE), "operations": MACHINE}


_DRAWINGS: Final[dict[Format, Callable[[], str]]] = {Format.MERMAID: mermaid, Format.DOT: dot}
