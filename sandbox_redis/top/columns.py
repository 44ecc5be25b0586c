"""Text in columns, as wide as there is room: what a list is made of, whatever it is a list of. What stands in the lists
is made in ``cells.py``, and ``rows.py`` draws them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size

Cell = tuple[str, str]
"""Text that can be shown as it is, and its style in rich's words."""

_GOOD: Final = 12  # as of a commit's; the beginning of an id is enough for the other commands


class Column(NamedTuple):
    """A column of a list."""

    heading: str
    right: bool = False
    floor: int = 0
    """How narrow it may become where there is little room; 0 when it keeps its width."""
    ceiling: int = 24
    """How wide it may become, if it may be narrower; more would drive the others apart."""


class Row(NamedTuple):
    """A row of a list."""

    key: str
    """What it stands for."""
    cells: Sequence[Cell]
    marked: bool = False


def needs(columns: Sequence[Column], rows: Iterable[Row]) -> list[int]:
    """How wide each column would have to be."""
    widths = [len(column.heading) for column in columns]
    for row in rows:
        if len(row.cells) == len(columns):
            widths = [max(width, cell_len(cell)) for width, (cell, _) in zip(widths, row.cells, strict=True)]
    return widths


def widths(columns: Sequence[Column], wanted: Sequence[int], room: int) -> tuple[list[int], int]:
    """How wide the columns are in a room, and the gap between two: the widest that may be narrower give way first."""
    found = [
        min(width, column.ceiling) if column.floor else width for column, width in zip(columns, wanted, strict=True)
    ]
    least = sum(min(width, _GOOD) if column.floor else width for column, width in zip(columns, found, strict=True))
    gap = 2 if least + 2 * (len(found) - 1) <= room else 1
    excess = sum(found) + gap * (len(found) - 1) - room
    while excess > 0:
        yielding = [i for i, column in enumerate(columns) if column.floor and found[i] > column.floor]
        if not yielding:
            break
        widest = max(yielding, key=lambda i: found[i])
        found[widest] -= 1
        excess -= 1
    return found, gap


def fitted(value: str, width: int, *, right: bool = False) -> str:
    """Text in a width; what does not fit is cut off visibly."""
    length = cell_len(value)
    if length > width:
        return f"{set_cell_size(value, width - 1)}…" if width > 0 else ""
    return f"{' ' * (width - length)}{value}" if right else f"{value}{' ' * (width - length)}"
