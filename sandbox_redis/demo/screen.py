"""What the demo shows while it runs and at its end: a live table of the fleet on a terminal, plain lines elsewhere.
It is given all that it shows, and decides nothing.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final, Protocol

from sandbox_redis.demo.check import Check
from sandbox_redis.demo.fleet import Fleet
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.states import State

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

_EVENTS: Final = 8  # lines of the live screen for the last events
_HEADINGS: Final = 5  # its other lines: the state of affairs, the heads of two tables, what was cut
_STYLES: Final = {State.INIT: "yellow", State.READY: "green", State.NOTREADY: "dim", State.UNKNOWN: "red"}
_PROBLEMS: Final = 5  # of one check; more tell nothing new
_PERIOD: Final = 1.0  # seconds between plain lines


class Screen(Protocol):
    """Where the demo is seen."""

    def live(self) -> AbstractContextManager[object]:
        """The time in which `show` is called."""

    def show(self, fleet: Fleet, seconds: float) -> None:
        """Show how things are after so many seconds."""

    def say(self, text: str) -> None:
        """Show something notable."""

    def conclude(self, tally: Mapping[str, str], checks: Iterable[Check]) -> None:
        """Show the end."""


def screen() -> Screen:
    """The screen for the standard output."""
    if sys.stdout.isatty():
        from rich.console import Console  # here, because it takes 0.1 s and is for terminals only

        console = Console(highlight=False)
        if console.encoding.startswith("utf") and not console.is_dumb_terminal:
            return LiveScreen(console)
    return PlainScreen()


class PlainScreen:
    """Plain lines: one for each second, and what is notable."""

    def __init__(self) -> None:
        self._shown = -_PERIOD

    def live(self) -> AbstractContextManager[object]:
        """As `Screen`."""
        return nullcontext()

    def show(self, fleet: Fleet, seconds: float) -> None:
        """As `Screen`."""
        if seconds - self._shown >= _PERIOD:
            self._shown = seconds
            self.say(_summary(fleet, seconds))

    def say(self, text: str) -> None:
        """As `Screen`."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def conclude(self, tally: Mapping[str, str], checks: Iterable[Check]) -> None:
        """As `Screen`."""
        width = max(map(len, tally), default=0)
        for heading, text in tally.items():
            self.say(f"{heading:{width}}  {text}")
        for check in checks:
            self.say(f"{_mark(check)} {check.sentence}")
            for problem in _shortened(check.problems):
                self.say(f"    {problem}")


class LiveScreen:
    """A table of the fleet and the last events, as high as the terminal."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def live(self) -> AbstractContextManager[object]:
        """As `Screen`."""
        return self._live

    def show(self, fleet: Fleet, seconds: float) -> None:
        """As `Screen`."""
        self._live.update(_Frame(fleet, seconds), refresh=True)

    def say(self, text: str) -> None:
        """As `Screen`."""
        self._console.print(text, markup=False, style="bold")

    def conclude(self, tally: Mapping[str, str], checks: Iterable[Check]) -> None:
        """As `Screen`."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for heading, text in tally.items():
            grid.add_row(Text(heading, "bold"), Text(text))
        self._console.print(grid)
        for check in checks:
            style = "bold red" if check.problems else "green"
            self._console.print(Text.assemble((_mark(check), style), f" {check.sentence}"))
            for problem in _shortened(check.problems):
                self._console.print(Text(f"    {problem}", "red"))


class _Frame:
    """One picture of the live screen."""

    def __init__(self, fleet: Fleet, seconds: float) -> None:
        self._fleet = fleet
        self._seconds = seconds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        room = max(console.height - _HEADINGS, 2)
        events = list(self._fleet.recent)[-min(_EVENTS, room // 2) :]
        sandboxes = self._fleet.in_order()
        shown = sandboxes[: room - len(events)]
        yield Text(_summary(self._fleet, self._seconds), "bold", no_wrap=True, overflow="ellipsis")
        yield _fleet_table(shown)
        if len(shown) < len(sandboxes):
            yield Text(f"… and {len(sandboxes) - len(shown)} more", "dim")
        yield Text("last events, without updates", "bold")
        for event in events:
            yield Text(_event(event), no_wrap=True, overflow="ellipsis")


def _fleet_table(sandboxes: Iterable[Sandbox]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("ID", "NAME", "NODE", "STATE"):
        table.add_column(heading, no_wrap=True)
    for heading in ("PID", "AGE", "EXIT"):
        table.add_column(heading, no_wrap=True, justify="right")
    now = time.time_ns()
    for sandbox in sandboxes:
        status = sandbox.status
        table.add_row(
            sandbox.id[:12],
            Text(sandbox.metadata.name),
            Text(sandbox.node),
            Text(status.state, _STYLES[status.state]),
            str(status.pid or ""),
            f"{max(now - status.created_at_ns, 0) / 1e9:.1f}s",
            str(status.exit_status) if status.exited_at_ns or status.exit_status else "",
        )
    return table


def _summary(fleet: Fleet, seconds: float) -> str:
    states = Counter(sandbox.status.state for sandbox in fleet.sandboxes.values())
    parts = ", ".join(f"{states[state]} {state}" for state in State if states[state])
    return (
        f"{seconds:5.1f} s  {len(fleet.sandboxes)} sandboxes: {parts or 'none yet'};"
        f" {fleet.counts.total():,} events, {fleet.counts['update']:,} of them updates"
    )


def _event(event: Event) -> str:
    before = event.before or "absent"
    after = event.sandbox.status.state if event.sandbox else "absent"
    details = ""
    if event.sandbox and event.transition == "start":
        details = f"pid {event.sandbox.status.pid}"
    elif event.sandbox and event.transition == "exit":
        details = f"exit {event.sandbox.status.exit_status}"
    at = event.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"{at}  {event.id[:12]}  {event.transition:10}  {before:8} → {after:8}  {event.by:10}  {details}".rstrip()


def _mark(check: Check) -> str:
    good, bad = "✓✗"
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        good, bad = "ok:", "FAILED:"
    return bad if check.problems else good


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - _PROBLEMS
    return problems[:_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
