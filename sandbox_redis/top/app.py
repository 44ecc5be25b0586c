"""The program: its layout, the keys that are the same everywhere, and how it ends. What its screens show stands in
``main.py`` and ``screens.py``; nothing is asked of a store here.
"""

from __future__ import annotations

import asyncio
import io
import signal
from dataclasses import replace
from typing import ClassVar, Final

from rich.console import Console
from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from sandbox_redis.top.feed import Feed
from sandbox_redis.top.main import Main
from sandbox_redis.top.screens import Details, Help
from sandbox_redis.top.view import View

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Top(App[int]):
    """The program. It runs until somebody wants no more, and returns an exit status."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p,space", "pause", "Pause"),
        Binding("question_mark", "help", "Help"),
        Binding("q", "leave(0)", "Quit"),
        Binding("ctrl+c", "leave(130)", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]
    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    Static { width: auto; height: 1; }
    #title, #numbers { layout: horizontal; height: 1; }
    #store, #states { width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    #title { padding-left: 1; }
    #body { layout: grid; grid-size: 1; grid-rows: 6 1fr 5; }
    #side { layout: grid; grid-size: 2; grid-columns: 50 1fr; }
    Rows, #facts { border-top: solid ansi_blue; padding: 0 1; border-title-style: bold; }
    Rows:focus { border-top: solid ansi_bright_cyan; }
    #search { layout: horizontal; height: 1; padding: 0 1; }
    #words { width: 1fr; border: none; background: ansi_default; padding: 0; }
    Footer, FooterKey { background: ansi_default; }
    .-high #body { grid-rows: 30% 1fr 25%; }
    .-low #body { grid-rows: 1fr; }
    .-low #side, .-low #events { display: none; }
    .-wide #body { grid-size: 2; grid-columns: 56 1fr; grid-rows: 1fr 30%; }
    .-wide #side { row-span: 2; grid-size: 1; grid-columns: 1fr; grid-rows: 1fr 30%; }
    Details #title { height: 1; width: 1fr; }
    #facts { height: auto; max-height: 60%; scrollbar-size-vertical: 1; }
    #fact { height: auto; width: 1fr; }
    #history { height: 1fr; }
    Help { align: center middle; background: transparent; }
    #keys { border: round ansi_blue; padding: 0 1; height: auto; }
    """

    class Looked(Message):
        """There is something new to show, or something has gone wrong."""

        def __init__(self, view: View | Exception) -> None:
            self.view = view
            super().__init__()

    def __init__(self, feed: Feed, name: str) -> None:
        super().__init__(ansi_color=True)  # the colours of the terminal, so that NO_COLOR leaves none
        self.theme = "ansi-dark"
        self.error_console = Console(file=io.StringIO())  # a traceback would go there; the caller raises the error
        self.failure: Exception | None = None
        self.view: View | None = None
        self._feed = feed
        self._name_of_store = name

    def get_default_screen(self) -> Screen[None]:
        """The first screen."""
        return Main(self._feed, self._name_of_store)

    def on_ready(self) -> None:
        """Begin."""
        if not self.is_headless:
            for number in _SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, self.action_leave, 128 + number)
        self._feed.start(lambda view: self.post_message(self.Looked(view)))

    def on_top_looked(self, message: Looked) -> None:
        """Show it."""
        if isinstance(message.view, Exception):
            raise message.view
        self.view = message.view
        self.on_resize()

    def on_resize(self) -> None:
        """Show what is to be shown, as it fits."""
        if self.view is None or not self.is_running:
            return
        for screen in reversed(self.screen_stack):
            if isinstance(screen, (Main, Details)):  # the help lies over one of them
                screen.show(self.view)
                return

    def action_leave(self, status: int) -> None:
        """End."""
        self.exit(status)

    def action_pause(self) -> None:
        """Stand still, or go on."""
        self._feed.choose(replace(self._feed.choice, paused=not self._feed.choice.paused))

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def _handle_exception(self, error: Exception) -> None:
        """Called by the library when it has to end because of an error, which it would print with all its details."""
        self.failure = self.failure or error
        super()._handle_exception(error)
