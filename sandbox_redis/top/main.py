"""The screen of the fleet: what stands on it, and what its keys do. What is shown is made in ``view.py``, and put into
words in ``cells.py`` and ``lines.py``; where it stands is said in ``app.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final

from rich.cells import cell_len
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from sandbox_redis.cli.text import visible
from sandbox_redis.states import State
from sandbox_redis.top import cells, lines
from sandbox_redis.top.choice import Choice
from sandbox_redis.top.feed import Feed
from sandbox_redis.top.rows import Rows
from sandbox_redis.top.screens import Details
from sandbox_redis.top.view import View

_STATES: Final = list(State)


class Search(Input):
    """Words are typed here."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "keep", "Done"),
        Binding("escape", "forget", "Forget it"),
    ]

    class Done(Message):
        """They are as they are to be."""

    def action_keep(self) -> None:
        """That is what to look for."""
        self.post_message(self.Done())

    def action_forget(self) -> None:
        """There is nothing to look for."""
        self.value = ""
        self.post_message(self.Done())


class Main(Screen[None]):
    """The fleet."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (132, "-wide")]  # noqa: RUF012 - so the library declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (18, "-usual"), (32, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Find"),
        Binding("s", "sort", "Sort"),
        Binding("r", "reverse", "Reverse"),
        Binding("f", "state", "State"),
        *(Binding(str(key), f"show_state({key - 1})", show=False) for key in range(1, len(_STATES) + 1)),
        Binding("escape", "clear", show=False),
    ]

    def __init__(self, feed: Feed, name: str) -> None:
        super().__init__()
        self._feed = feed
        self._name_of_store = visible(name)

    def compose(self) -> ComposeResult:
        """What it consists of."""
        with Container(id="title"):
            yield Static(id="store")
            yield Static(id="health")
        with Container(id="numbers"):
            yield Static(id="states")
            yield Static(id="rate")
        with Container(id="body"):
            with Container(id="side"):
                yield Rows(cells.NODES, id="nodes")
                yield Rows(cells.STARTS, id="starts", nothing="none in the last minutes", focus=False)
            yield Rows(cells.SANDBOXES, id="sandboxes", nothing="there is none to show")
            yield Rows(cells.EVENTS, id="events", nothing="nothing has happened yet", focus=False, headings=False)
        with Container(id="search"):
            yield Static("/", id="slash")
            yield Search(placeholder="words in ids, names and nodes; key=value for a label", id="words", compact=True)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """The list of sandboxes is what keys are for at first."""
        self.query_one("#search").display = False
        self.query_one("#sandboxes").focus()

    def show(self, view: View) -> None:
        """Show how things are."""
        agents = f"{view.agents} agent{'s' * (view.agents != 1)} "
        self.query_one("#health", Static).update(Text.assemble((agents, "dim"), lines.health(view)))
        title = Text.assemble(("sandbox-redis top ", "bold"), (self._name_of_store, "dim"))
        self.query_one("#store", Static).update(title)
        states = Text.assemble(*lines.states_line(view, self.size.width))
        self.query_one("#states", Static).update(states)
        room = self.size.width - cell_len(states.plain)
        self.query_one("#rate", Static).update(Text.assemble(*lines.rate_line(view, room)))
        lists = {
            "nodes": (lines.nodes_title(view), [cells.node_row(each, view.choice.node) for each in view.nodes]),
            "sandboxes": (lines.sandboxes_title(view), [cells.sandbox_row(each, view.now_ns) for each in view.rows]),
            "starts": ("slowest starts", [cells.start_row(each, view.now_ns) for each in view.starts]),
            "events": ("newest events", [cells.event_row(each) for each in view.events]),
        }
        for name, (heading, rows) in lists.items():
            listed = self.query_one(f"#{name}", Rows)
            listed.border_title = Text(f" {visible(heading)} ")
            listed.show(rows)

    # -- keys

    @property
    def _choice(self) -> Choice:
        return self._feed.choice

    def action_sort(self) -> None:
        """Sorted by something else."""
        self._feed.choose(self._choice.next_order())

    def action_reverse(self) -> None:
        """The other way round."""
        self._feed.choose(replace(self._choice, backwards=not self._choice.backwards))

    def action_state(self) -> None:
        """Only the next state."""
        self._feed.choose(self._choice.next_state())

    def action_show_state(self, place: int) -> None:
        """Show a state, or hide it."""
        self._feed.choose(self._choice.toggled(_STATES[place]))

    def action_clear(self) -> None:
        """Leave nothing out."""
        self.query_one(Search).value = ""
        order, backwards, paused = self._choice.order, self._choice.backwards, self._choice.paused
        self._feed.choose(Choice(order=order, backwards=backwards, paused=paused))

    def action_search(self) -> None:
        """Type words to look for."""
        self.query_one("#search").display = True
        self.query_one(Search).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """What is typed counts at once."""
        self._feed.choose(replace(self._choice, words=event.value))

    def on_search_done(self) -> None:
        """The words are complete."""
        self.query_one("#search").display = False
        self.query_one("#sandboxes").focus()

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """A node to look at, or a sandbox."""
        if event.rows.id == "nodes":
            self._feed.choose(self._choice.on(event.key))
            return
        self._feed.choose(replace(self._choice, opened=event.key))
        self.app.push_screen(Details(self._feed, event.key), self._back)

    def _back(self, _: None) -> None:
        self._feed.choose(replace(self._choice, opened=None))
