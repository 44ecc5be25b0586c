"""A list that shows only what is on the screen of it: a widget for rows of any kind, of which one may be chosen. It is
drawn line by line, so that two hundred rows twice a second cost next to nothing. What the rows are stands in
``cells.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from sandbox_redis.top.columns import Cell, Column, Row, fitted, needs, widths


class Rows(ScrollView, can_focus=True, inherit_bindings=False):
    """A list. Its cursor stays with what it stands on, wherever that moves; but at the top it stays at the top."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000)", "First", show=False),
        Binding("end,G", "move(1000000)", "Last", show=False),
        Binding("enter", "choose", "Open"),
    ]
    DEFAULT_CSS = """
    Rows {
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        scrollbar-background: ansi_default;
        scrollbar-background-hover: ansi_default;
        scrollbar-background-active: ansi_default;
    }
    """

    class Chosen(Message):
        """Somebody wants what a row stands for."""

        def __init__(self, rows: Rows, key: str) -> None:
            self.rows = rows
            self.key = key
            super().__init__()

        @property
        def control(self) -> Rows:
            """The list."""
            return self.rows

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        id: str,
        nothing: str = "",
        focus: bool = True,
        choose: bool = True,
        headings: bool = True,
    ) -> None:
        """A list.

        Args:
            columns: of its rows.
            id: of the widget.
            nothing: what stands there instead of no rows.
            focus: whether it has a cursor.
            choose: whether what the cursor stands on can be opened.
            headings: whether they stand above the rows.
        """
        super().__init__(id=id)
        self.can_focus = focus
        self.cursor = 0
        self.rows: Sequence[Row] = ()
        self._above = int(headings)  # lines
        self._choose = choose
        self._columns = columns
        self._needs = needs(columns, ())
        self._nothing = nothing
        self._room = 0

    def show(self, rows: Sequence[Row]) -> None:
        """Show these instead."""
        cursor = self.cursor
        if 0 < cursor < len(self.rows):
            key = self.rows[cursor].key
            cursor = next((place for place, row in enumerate(rows) if row.key == key), cursor)
        self.rows = rows
        wanted = needs(self._columns, rows)
        self._needs = [max(pair) for pair in zip(wanted, self._needs, strict=True)]  # so that nothing trembles
        size = Size(self.scrollable_content_region.width, len(rows) + self._above)
        if size != self.virtual_size:
            self.virtual_size = size
        self._go(cursor)

    def on_resize(self) -> None:
        """Another width: what the columns had to be for rows of the past is forgotten."""
        if self._room != self.size.width:
            self._room = self.size.width
            self._needs = needs(self._columns, self.rows)

    # -- choosing

    @property
    def _page(self) -> int:
        return max(1, self.scrollable_content_region.height - self._above)

    def _go(self, place: int) -> None:
        """Put the cursor on a row, and bring that into sight if it is another one than before."""
        place = max(0, min(place, len(self.rows) - 1))
        top = round(self.scroll_y)
        if place != self.cursor and not top <= place < top + self._page:
            y = place if place < top else place - self._page + 1
            self.scroll_to(y=y, animate=False, force=True)  # also before the scroll bar is there
        self.cursor = place
        self.refresh()

    def action_move(self, by: int) -> None:
        """Go some rows down, or up."""
        self._go(self.cursor + by)

    def action_page(self, by: int) -> None:
        """Go some pages down, or up."""
        self.action_move(by * self._page)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether the key that opens is of use here."""
        return action != "choose" or self._choose

    def action_choose(self) -> None:
        """Open what the cursor stands on."""
        if self.cursor < len(self.rows):
            self.post_message(self.Chosen(self, self.rows[self.cursor].key))

    def on_click(self, event: events.Click) -> None:
        """Go to a row; open it where the cursor is there already."""
        inside = event.get_content_offset(self)
        if inside is None or inside.y < self._above or not self.can_focus:
            return
        place = inside.y - self._above + round(self.scroll_y)
        if place >= len(self.rows):
            return
        again = place == self.cursor and self.has_focus and event.chain > 1
        self._go(place)
        if again and self._choose:
            self.action_choose()

    # -- drawing

    def render_line(self, y: int) -> Strip:
        """One line: the headings, or a row."""
        width = self.scrollable_content_region.width
        base = self.rich_style
        cells: Sequence[Cell]
        if y < self._above:
            cells, style = [(column.heading, "") for column in self._columns], base + Style(bold=True)
        else:
            place = y - self._above + round(self.scroll_y)
            if place >= len(self.rows):
                words = self._nothing if place == 0 else ""
                return self._strip([(words, "dim")], width, base)
            row = self.rows[place]
            cells = row.cells
            style = base + Style(bold=row.marked, underline=row.marked)
            if self.has_focus and place == self.cursor:
                cells, style = [(value, "") for value, _ in cells], style + Style(reverse=True)
        return self._strip(cells, width, style)

    def _strip(self, cells: Sequence[Cell], width: int, style: Style) -> Strip:
        if len(cells) == 1:  # free text
            return Strip([Segment(fitted(cells[0][0], width), style + Style.parse(cells[0][1]))], width)
        sizes, gap = widths(self._columns, self._needs, width)
        segments = []
        for column, size, (value, own) in zip(self._columns, sizes, cells, strict=True):
            segments.append(Segment(fitted(value, size, right=column.right), style + Style.parse(own)))
            segments.append(Segment(" " * gap, style))
        return Strip(segments[:-1]).adjust_cell_length(width, style)
