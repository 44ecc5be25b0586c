"""How the lists of a view read: their columns, and a row for each thing, as text with styles. What is listed is decided
in ``view.py``, the lines above the lists stand in ``lines.py``; the terminal library is not needed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from sandbox_redis.cli import text
from sandbox_redis.cli.history import steps
from sandbox_redis.cli.show import STATE_STYLES
from sandbox_redis.cli.text import visible
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.states import ABSENT, State
from sandbox_redis.top.columns import Cell, Column, Row
from sandbox_redis.top.pulse import Start
from sandbox_redis.top.view import Listed, NodeCount, Told

_LONG: Final = 60  # seconds; nothing is being created for longer, in good health
_GONE: Final = "gone"
_SECOND: Final = 10**9  # nanoseconds


SANDBOXES: Final = (
    Column("ID", floor=8),
    Column("NAME", floor=6),
    Column("NODE", floor=6),
    Column("STATE"),
    Column("PID", right=True),
    Column("AGE", right=True),
    Column("SINCE", right=True),
    Column("EXIT", right=True),
)
NODES: Final = (Column("NODE", floor=6), Column("ALL", right=True), *(Column(state, right=True) for state in State))
STARTS: Final = (Column("TOOK", right=True), Column("ID", floor=8), Column("NODE", floor=6), Column("AGO", right=True))
EVENTS: Final = (
    Column("TIME"),
    Column("ID", floor=8),
    Column("EVENT"),
    Column("CHANGE"),
    Column("NODE", floor=6),
    Column("BY", floor=6),
)
HISTORY: Final = (
    Column("TIME"),
    Column("LASTED", right=True),
    Column("EVENT"),
    Column("CHANGE"),
    Column("PID", right=True),
    Column("EXIT", right=True),
    Column("BY", floor=6, ceiling=256),
)


def _state(state: State) -> Cell:
    return state.value, STATE_STYLES[state]


def _none(value: str, style: str = "") -> Cell:
    """Nothing is shown as little as possible."""
    return (visible(value), style) if value else (text.NONE, "dim")


def _exit(sandbox: Sandbox) -> Cell:
    status = sandbox.status
    if not status.exited_at_ns:
        return text.NONE, "dim"
    return str(status.exit_status), "red" if status.exit_status else "dim"


def sandbox_row(listed: Listed, now_ns: int) -> Row:
    """A row for `SANDBOXES`."""
    sandbox, since = listed
    status = sandbox.status
    stayed = None if since is None else max(0, now_ns - since * 10**6)
    stuck = status.state in (State.INIT, State.UNKNOWN) and (stayed is None or stayed >= _LONG * _SECOND)
    cells = (
        (visible(sandbox.id), ""),
        _none(sandbox.metadata.name),
        _none(sandbox.node),
        _state(status.state),
        _none(str(status.pid or ""), "dim"),
        (text.age(status, now_ns), ""),
        (text.NONE if stayed is None else text.span(stayed), "bold red" if stuck else ""),
        _exit(sandbox),
    )
    return Row(sandbox.id, cells)


def node_row(counted: NodeCount, chosen: str | None) -> Row:
    """A row for `NODES`."""
    numbers = (
        (f"{number:,}", STATE_STYLES[state]) if number else ("·", "dim")
        for state, number in zip(State, counted.states, strict=True)
    )
    marked = counted.node == chosen
    return Row(counted.node, (_none(counted.node), (f"{counted.total:,}", "bold"), *numbers), marked)


def start_row(start: Start, now_ns: int) -> Row:
    """A row for `STARTS`."""
    sandbox = start.sandbox
    took = start.took * 10**6
    style = "bold red" if took >= _LONG * _SECOND else ""
    ago = text.span(max(0, now_ns - start.at * 10**6))
    return Row(sandbox.id, ((text.lasting(took), style), (visible(sandbox.id), ""), _none(sandbox.node), (ago, "dim")))


def _change(event: Event) -> Cell:
    after = event.sandbox.status.state if event.sandbox else None
    arrow = f"{event.before or ABSENT} → {after or _GONE}"
    return arrow, STATE_STYLES[after] if after else "dim"


def _moment(event: Event) -> str:
    return event.at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def event_row(told: Told) -> Row:
    """A row for `EVENTS`."""
    event, sandbox = told
    if isinstance(event, str):
        return Row("", ((visible(event), "bold yellow"),))
    known = sandbox or event.sandbox
    cells = (
        (_moment(event), "dim"),
        (visible(event.id), ""),
        (visible(event.transition), ""),
        _change(event),
        _none(known.node if known else ""),
        _none(event.by, "dim"),
    )
    return Row(event.id, cells)


def history_rows(events: Iterable[Event]) -> list[Row]:
    """Rows for `HISTORY`, the newest first; the oldest event comes first."""
    rows: list[Row] = []
    for event, lasted in steps(events):
        status = event.sandbox.status if event.sandbox else None
        cells = (
            (event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], ""),
            _none("" if lasted is None else text.lasting(lasted)),
            (visible(event.transition), ""),
            _change(event),
            _none(str(status.pid or "") if status else ""),
            _exit(event.sandbox) if event.sandbox else _none(""),
            _none(event.by, "dim"),
        )
        rows.append(Row(event.revision, cells))
    return rows[::-1]


def facts(sandbox: Sandbox, now_ns: int) -> Iterator[tuple[str, Cell]]:
    """All that there is to know of a sandbox: what is not there is left out."""
    status, metadata = sandbox.status, sandbox.metadata
    plain = {
        "Node": sandbox.node,
        "Pid": str(status.pid or ""),
        "Created": text.moment(status.created_at_ns, now_ns) if status.created_at_ns else "",
        "Exited": text.moment(status.exited_at_ns, now_ns) if status.exited_at_ns else "",
        "Exit status": text.exit_words(status) if status.exited_at_ns else "",
        "Name": metadata.name,
        "Namespace": metadata.namespace,
        "Uid": metadata.uid,
        "Attempt": str(metadata.attempt or ""),
        "Runtime": metadata.runtime_handler,
    }
    maps = {"Labels": metadata.labels, "Annotations": metadata.annotations, "Extensions": metadata.extensions}
    yield "State", _state(status.state)
    if sandbox.problem:
        yield "Problem", (visible(sandbox.problem), STATE_STYLES[State.UNKNOWN])
    for heading, value in plain.items():
        if value:
            yield heading, (visible(value), "")
    for heading, entries in maps.items():
        for place, key in enumerate(sorted(entries)):
            value = entries[key] if isinstance(entries[key], str) else repr(entries[key])
            yield "" if place else heading, (visible(f"{key}={value}"), "")
    yield "Revision", (visible(sandbox.revision), "dim")
    if sandbox.epoch:
        yield "Epoch", (str(sandbox.epoch), "dim")
