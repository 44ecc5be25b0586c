"""What people see of records: tables and details. On a terminal with colour, by rich; elsewhere plain columns, one line
a row and no blank within a value, so that ``awk`` works. The JSON form stands in ``shape.py``, what a listing shows of
a sandbox in ``columns.py``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import chain, islice, repeat
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


def can_redraw() -> bool:
    """Whether standard output is a terminal whose cursor can be moved."""
    out = console()
    return sys.stdout is not None and sys.stdout.isatty() and out.is_terminal and not out.is_dumb_terminal


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
        lines = [*[headings] * headers, *first]
        widths = _widths(lines)
        for row in chain(lines, rest):
            print(_line(row, widths))
        return
    grid, excess = _fitted(out, headings, first, breakable, headers=headers)
    columns = zip(headings, _widths(first), strict=False)  # without rows there are none
    if excess > sum(max(0, width - _BROKEN_WIDTH) for heading, width in columns if heading in breakable):
        out = console(_width(out, grid))  # the terminal breaks the lines
    out.print(grid)


def screen(
    words: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, more: int, headers: bool
) -> list[str]:
    """The lines of a terminal: words, a table, and how many more rows there are. Each row is one line: what can be
    shortened is, and what is too long even so ends where the terminal does.
    """
    from rich.segment import Segment, Segments

    out = console()
    grid, excess = _fitted(out, headings, rows, (), headers=headers, shortened=sorted(BREAKABLE))
    lines = console(out.width + max(0, excess)).render_lines(grid, pad=False)
    with out.capture() as printed:
        out.print(words, no_wrap=True, overflow="crop")
        for line in lines:
            out.print(Segments([*Segment.adjust_line_length(line, out.width, pad=False), Segment.line()]), end="")
        if more:
            out.print(f"{_ellipsis(out)} {more} more")
    return printed.get().splitlines()


class Lines:
    """Rows that come one by one, each printed at once. The columns grow with what comes; on a terminal that is too
    narrow, ids are shortened."""

    def __init__(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]] = (),
        *,
        headers: bool = True,
        least: Iterable[int] = repeat(0),
    ) -> None:
        """Print the rows that are there.

        Args:
            headings, headers: as for `table`.
            rows: the first ones.
            least: how wide the columns are at least.
        """
        self._out = console()
        self._headings = headings
        self._widths = _widths([headings, *rows], least)
        for row in [*[headings] * headers, *rows]:
            self.add(row)

    def add(self, row: Sequence[str]) -> None:
        """Print one more."""
        self._widths = _widths([row], self._widths)
        if not self._out.is_terminal:
            print(_line(row, self._widths), flush=True)
            return
        from rich.text import Text

        widths, excess = self._widths, sum(self._widths) + 2 * (len(row) - 1) - self._out.width
        if excess > 0 and _ID in self._headings:
            place = self._headings.index(_ID)
            width = max(_ID_WIDTH, widths[place] - excess)
            widths = [*widths[:place], width, *widths[place + 1 :]]
            row = _with_short_cell(self._out, row, place, width)
        cells = zip(self._headings, row, widths, strict=True)
        line = Text("  ").join(Text(cell.ljust(width), _style(heading, cell)) for heading, cell, width in cells)
        line.rstrip()
        self._out.print(line, style="bold" if row == self._headings else None, soft_wrap=True)


def _widths(rows: Sequence[Sequence[str]], least: Iterable[int] = repeat(0)) -> list[int]:
    """How wide the columns of rows are."""
    return [max(width, *map(len, column)) for column, width in zip(zip(*rows, strict=True), least, strict=False)]


def _line(row: Sequence[str], widths: Iterable[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _fitted(
    out: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    breakable: Container[str],
    *,
    headers: bool,
    shortened: Iterable[str] = (),
) -> tuple[Table, int]:
    """A grid whose ids, and then whose columns that may be shortened, are as short as is needed; and by how much it is
    still too wide."""
    grid = _grid(headings, rows, breakable, headers=headers)
    excess = _width(out, grid) - out.width
    for heading in (_ID, *shortened):
        if excess > 0 and rows and heading in headings:
            place = headings.index(heading)
            widest = _widths(rows)[place]
            width = max(_ID_WIDTH if heading == _ID else _BROKEN_WIDTH, widest - excess)
            rows = [_with_short_cell(out, row, place, width) for row in rows]
            excess -= max(0, widest - width)
    return _grid(headings, rows, breakable, headers=headers), excess


def _with_short_cell(out: Console, row: Sequence[str], place: int, width: int) -> Sequence[str]:
    """A row with at most so much in one place."""
    cell, end = row[place], _ellipsis(out)
    if len(cell) <= width:
        return row
    return [*row[:place], f"{cell[: width - len(end)]}{end}", *row[place + 1 :]]


def _ellipsis(out: Console) -> str:
    return "..." if out.options.ascii_only else "…"


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
        grid.add_row(*(Text(cell, _style(heading, cell)) for heading, cell in zip(headings, row, strict=True)))
    return grid


def _style(heading: str, cell: str) -> str:
    return STATE_STYLES.get(cell.rpartition(" ")[2], "") if heading in _COLOURED else ""


def _width(out: Console, grid: Table) -> int:
    """The width that it would take."""
    return out.measure(grid, options=out.options.update(max_width=10_000)).maximum


def listing(sandboxes: Iterable[Sandbox], shown: Mapping[str, Cell], *, headers: bool = True) -> None:
    """Print sandboxes as rows, with these columns."""
    now = time.time_ns()
    row = cells(shown)
    table(fit_headings(shown), (row(sandbox, now) for sandbox in sandboxes), breakable=BREAKABLE, headers=headers)


def fit_headings(shown: Iterable[str]) -> list[str]:
    """The headings of columns; one may have any label in it."""
    return list(map(escape(), shown))


def cells(shown: Mapping[str, Cell]) -> Callable[[Sandbox, int], list[str]]:
    """What makes the cells of a row of a sandbox, at a time in nanoseconds."""
    fit = escape()
    fits = [fit] * len(shown)
    if list(shown)[-1] == FREE_TEXT:  # what is made of words may have blanks in it where nothing stands behind it
        fits[-1] = text.visible
    return lambda sandbox, now: [
        fit(cell(sandbox, now)) or text.NONE for fit, cell in zip(fits, shown.values(), strict=True)
    ]


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
