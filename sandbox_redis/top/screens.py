"""The screens that lie over that of the fleet: one sandbox with its history, and the keys. The fleet itself stands in
``main.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar, Final

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from sandbox_redis.cli.text import visible
from sandbox_redis.errors import NotFoundError
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.top.cells import HISTORY, facts, history_rows
from sandbox_redis.top.feed import Feed
from sandbox_redis.top.lines import health
from sandbox_redis.top.rows import Rows
from sandbox_redis.top.view import ROWS, View, since_history

HELP: Final = (
    ("↑ ↓ j k", "move; PgUp PgDn Home End as well"),
    ("Tab", "between the nodes and the sandboxes"),
    ("Enter", "open a sandbox; only what is on a node, or all again"),
    ("/", "look for words in ids, names and nodes; key=value for labels"),
    ("s", "sort: longest stuck, oldest, by id, by node, by state"),
    ("r", "the other way round"),
    ("1 2 3 4", "show or hide INIT, READY, NOTREADY, UNKNOWN"),
    ("f", "only one state after the other, then all"),
    ("p Space", "pause, and go on"),
    ("Esc", "back; show everything again"),
    ("q Ctrl-C", "quit"),
)


class Details(Screen[None]):
    """One sandbox: what it is now, and what has happened to it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,backspace,left", "back", "Back")]

    class Read(Message):
        """Its history has come, or an error."""

        def __init__(self, history: Sequence[Event] | Exception) -> None:
            self.history = history
            super().__init__()

    def __init__(self, feed: Feed, sandbox_id: str) -> None:
        super().__init__()
        self._feed = feed
        self._sandbox_id = sandbox_id
        self._last: Sandbox | None = None
        self._read: Sequence[Event] | Exception | None = None
        self._since: Sequence[Event] = ()
        self._view: View | None = None

    def compose(self) -> ComposeResult:
        """What it consists of."""
        yield Static(id="title")
        with VerticalScroll(id="facts", can_focus=False):
            yield Static(id="fact")
        yield Rows(HISTORY, id="history", choose=False)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Read its history, which takes a while; a thread that waits for a server does not keep us from ending."""
        self.query_one("#facts").border_title = " now "

        def read() -> None:
            history: Sequence[Event] | Exception
            try:
                history = self._feed.history(self._sandbox_id)
            except Exception as error:  # it is shown
                history = error
            self.post_message(self.Read(history))

        threading.Thread(target=read, name="sandbox-redis top history", daemon=True).start()

    def on_details_read(self, message: Details.Read) -> None:
        """Its history is here."""
        self._read = [] if isinstance(message.history, NotFoundError) else message.history
        if self._view is not None:
            self.show(self._view)

    def action_back(self) -> None:
        """Back to the fleet."""
        self.dismiss()

    def show(self, view: View) -> None:
        """Show it as it is."""
        if view.choice.opened != self._sandbox_id:
            return
        self._view = view
        sandbox = self._last = view.opened or self._last
        gone = "  is gone" if view.opened is None else ""
        title = Text.assemble("sandbox ", (visible(self._sandbox_id), "bold"), gone, "  ", health(view))
        self.query_one("#title", Static).update(title)
        if sandbox is not None:
            grid = Table.grid(padding=(0, 2))
            for heading, (value, style) in facts(sandbox, view.now_ns):
                grid.add_row(Text(heading, "bold"), Text(value, style, overflow="fold"))
            self.query_one("#fact", Static).update(grid)
        self._show_history(view)

    def _show_history(self, view: View) -> None:
        read = () if isinstance(self._read, Exception) or self._read is None else self._read
        self._since = since_history(self._since, view.trail)
        events = since_history(read, self._since)
        heading = f"newest {ROWS} of {len(events):,} events" if len(events) > ROWS else f"{len(events)} events"
        if self._read is None:
            heading = "it is being read"
        elif isinstance(self._read, Exception):
            heading = str(self._read)
        history = self.query_one("#history", Rows)
        history.border_title = Text(f" history: {visible(heading)} ")
        history.show(history_rows(events[-ROWS - 1 :])[:ROWS])


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,question_mark,space,q", "back", "Back"),
        Binding("ctrl+c", "app.leave(130)", show=False),  # a modal screen hides the keys of the program
    ]

    def compose(self) -> ComposeResult:
        """What it consists of."""
        grid = Table.grid(padding=(0, 2))
        for key, meaning in HELP:
            grid.add_row(Text(key, "bold"), Text(meaning))
        shown = Static(grid, id="keys")
        shown.border_title = "keys"
        yield shown

    def action_back(self) -> None:
        """Back to where we were."""
        self.dismiss()
