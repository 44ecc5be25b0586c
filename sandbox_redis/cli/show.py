"""What people see of records: tables and details. On a terminal with colour, by rich; elsewhere plain columns, one line
a row and no blank within a value, so that ``awk`` works. The JSON form stands in ``shape.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sandbox_redis.cli import shape, text
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS: Final = ("ID", "NAME", "NODE", "STATE", "PID", "AGE", "EXIT")
BREAKABLE: Final = ("NAME", "NODE")
STATE_STYLES: Final[dict[str, str]] = {
    State.INIT: "cyan",
    State.READY: "green",
    State.NOTREADY: "yellow",
    State.UNKNOWN: "bold red",
}
ROWS_MAX: Final = 1000  # for rich, which takes a millisecond for each; nobody looks at more
_ID_WIDTH: Final = 12  # what is left of an id on a narrow terminal, as of a commit's


def console() -> Console:
    """Standard output. rich looks at NO_COLOR, FORCE_COLOR, TERM and COLUMNS by itself."""
    from rich.console import Console  # here, because importing it takes 60 ms, which --json and completion do not need

    return Console(highlight=False, markup=False, emoji=False)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, breakable: Sequence[str]) -> None:
    """Print rows. Where a terminal is too narrow, the first column is shortened before the breakable ones are broken
    into lines; if it is breakable itself, nothing is shortened. Very many rows come in plain columns everywhere.
    """
    out = console()
    if not out.is_terminal or len(rows) > ROWS_MAX:
        columns(headings, rows)
        return
    grid = _grid(headings, rows, breakable)
    if rows and headings[0] not in breakable and (excess := _width(out, grid) - out.width) > 0:
        width = max(_ID_WIDTH, max(len(row[0]) for row in rows) - excess)
        grid = _grid(headings, [(_shortened(row[0], width), *row[1:]) for row in rows], breakable)
    out.print(grid)


def _grid(headings: Sequence[str], rows: Iterable[Sequence[str]], breakable: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for heading in headings:
        grid.add_column(heading, no_wrap=heading not in breakable, overflow="fold")
    for row in rows:
        styles = [
            STATE_STYLES.get(cell, "") if heading == "STATE" else ""
            for heading, cell in zip(headings, row, strict=True)
        ]
        grid.add_row(*map(Text, row, styles))
    return grid


def _width(out: Console, grid: Table) -> int:
    """The width that it would take."""
    return out.measure(grid, options=out.options.update(max_width=10_000)).maximum


def _shortened(value: str, width: int) -> str:
    return value if len(value) <= width else f"{value[: width - 1]}…"


def columns(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in plain columns."""
    whole = [tuple(headings), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for row in whole:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def listing(sandboxes: Sequence[Sandbox]) -> None:
    """Print sandboxes as rows."""
    now = time.time_ns()
    escaped = text.visible if console().is_terminal else text.one_word
    table(
        HEADINGS,
        [[escaped(cell) or text.NONE for cell in _row(sandbox, now)] for sandbox in sandboxes],
        breakable=BREAKABLE,
    )


def _row(sandbox: Sandbox, now: int) -> tuple[str, ...]:
    status = sandbox.status
    return (
        sandbox.id,
        sandbox.metadata.name,
        sandbox.node,
        status.state.value,
        str(status.pid or ""),
        text.age(status, now),
        str(status.exit_status) if status.exited_at_ns else "",
    )


def details(sandbox: Sandbox) -> None:
    """Print all that is known of a sandbox."""
    out = console()
    rows = [(label, text.visible(value) or text.NONE) for label, value in _facts(sandbox, time.time_ns())]
    if not out.is_terminal:
        width = max(len(label) for label, _ in rows) + 2
        for label, value in rows:
            print(f"{f'{label}:' if label else '':{width}}{value}")
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for label, value in rows:
        style = {"State": STATE_STYLES.get(value, ""), "Problem": STATE_STYLES[State.UNKNOWN]}.get(label, "")
        grid.add_row(Text(f"{label}:" if label else "", "bold"), Text(value, style, overflow="fold"))
    out.print(grid)


def _facts(sandbox: Sandbox, now: int) -> Iterable[tuple[str, str]]:
    status, metadata = sandbox.status, sandbox.metadata
    yield "Id", sandbox.id
    if sandbox.problem:
        yield "Problem", sandbox.problem
    yield "State", status.state.value
    yield "Node", sandbox.node
    yield "Pid", str(status.pid or "")
    yield "Created", text.moment(status.created_at_ns, now)
    yield "Exited", text.moment(status.exited_at_ns, now)
    yield "Exit status", text.exit_words(status)
    yield "Name", metadata.name
    yield "Namespace", metadata.namespace
    yield "Uid", metadata.uid
    yield "Attempt", str(metadata.attempt)
    yield "Runtime", metadata.runtime_handler
    yield from _lines("Labels", metadata.labels)
    yield from _lines("Annotations", metadata.annotations)
    extensions = {name: json.dumps(shape.extension(value)) for name, value in metadata.extensions.items()}
    yield from _lines("Extensions", extensions)
    yield "Revision", sandbox.revision
    yield "Epoch", str(sandbox.epoch)


def _lines(label: str, items: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """One line for each entry; the label stands before the first."""
    entries = [f"{key}={items[key]}" for key in sorted(items)] or [""]
    yield from zip([label, *[""] * len(entries)], entries, strict=False)
