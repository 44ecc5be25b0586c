"""What people see of records: tables and details. On a terminal with colour, by rich; elsewhere plain columns, one line
a row and no blank within a value, so that ``awk`` works. The JSON form stands in ``shape.py``, what a listing shows of
a sandbox in ``columns.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from sandbox_redis.cli import shape, text
from sandbox_redis.cli.columns import BREAKABLE, FREE_TEXT, Cell
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STATE_STYLES: Final[dict[str, str]] = {
    State.INIT: "cyan",
    State.READY: "green",
    State.NOTREADY: "yellow",
    State.UNKNOWN: "bold red",
}
ROWS_MAX: Final = 1000  # for rich, which takes a millisecond for each; nobody looks at more
_ID: Final = "ID"
_ID_WIDTH: Final = 12  # what is left of an id on a narrow terminal, as of a commit's; it still finds the sandbox
_BROKEN_WIDTH: Final = 10  # what is left of a column that is broken; less is hard to read
_COLOURED: Final = frozenset(("STATE", "CHANGE"))


def console(width: int | None = None) -> Console:
    """Standard output. rich looks at NO_COLOR, FORCE_COLOR, TERM and COLUMNS by itself."""
    from rich.console import Console  # here, because importing it takes 60 ms, which --json and completion do not need

    return Console(width=width, highlight=False, markup=False, emoji=False)


def escape() -> Callable[[str], str]:
    """How a value is made fit for a cell of the output."""
    return text.visible if console().is_terminal else text.one_word


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, breakable: Container[str] = (), headers: bool = True
) -> None:
    """Print rows. Where a terminal is too narrow, ids are shortened before the breakable columns are broken into lines;
    where even that does not help, nothing is broken by us. Very many rows come in plain columns everywhere, as soon as
    they are there.
    """
    out = console()
    rest = iter(rows)
    first = list(islice(rest, ROWS_MAX + 1))
    if not out.is_terminal or len(first) > ROWS_MAX:
        _columns([*[headings] * headers, *first], rest)
        return
    grid = _grid(headings, first, breakable, headers=headers)
    if (excess := _width(out, grid) - out.width) > 0:
        widths = {heading: max(map(len, cells)) for heading, *cells in zip(headings, *first, strict=True) if cells}
        if _ID in widths:
            width = max(_ID_WIDTH, widths[_ID] - excess)
            excess -= max(0, widths[_ID] - width)
            place = headings.index(_ID)
            end = "..." if out.options.ascii_only else "…"
            first = [(*row[:place], _shortened(row[place], width, end), *row[place + 1 :]) for row in first]
            grid = _grid(headings, first, breakable, headers=headers)
        if excess > sum(max(0, width - _BROKEN_WIDTH) for heading, width in widths.items() if heading in breakable):
            out = console(_width(out, grid))  # the terminal breaks the lines
    out.print(grid)


def _columns(first: Sequence[Sequence[str]], rest: Iterable[Sequence[str]]) -> None:
    """Print rows in plain columns, which are as wide as the first ones need."""
    widths = [max(map(len, column)) for column in zip(*first, strict=True)]
    for row in chain(first, rest):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _grid(headings: Sequence[str], rows: Iterable[Sequence[str]], breakable: Container[str], *, headers: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
        header_style="bold",
        show_header=headers,
    )
    for heading in headings:
        grid.add_column(Text(heading), no_wrap=heading not in breakable, overflow="fold")
    for row in rows:
        styles = [
            STATE_STYLES.get(cell.rpartition(" ")[2], "") if heading in _COLOURED else ""
            for heading, cell in zip(headings, row, strict=True)
        ]
        grid.add_row(*map(Text, row, styles))
    return grid


def _width(out: Console, grid: Table) -> int:
    """The width that it would take."""
    return out.measure(grid, options=out.options.update(max_width=10_000)).maximum


def _shortened(value: str, width: int, end: str) -> str:
    return value if len(value) <= width else f"{value[: width - len(end)]}{end}"


def listing(sandboxes: Iterable[Sandbox], shown: Mapping[str, Cell], *, headers: bool = True) -> None:
    """Print sandboxes as rows, with these columns."""
    now = time.time_ns()
    fit = escape()
    fits = [fit] * len(shown)
    if list(shown)[-1] == FREE_TEXT:  # what is made of words may have blanks in it where nothing stands behind it
        fits[-1] = text.visible
    rows = (
        [fit(cell(sandbox, now)) or text.NONE for fit, cell in zip(fits, shown.values(), strict=True)]
        for sandbox in sandboxes
    )
    table([fit(heading) for heading in shown], rows, breakable=BREAKABLE, headers=headers)


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
