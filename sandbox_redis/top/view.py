"""What is seen of a fleet at one moment, as far as it fits on a screen. Plain data and no words: how it looks stands in
``cells.py``.

Without words to look for, it takes as long for a hundred thousand sandboxes as for a hundred, unless they are sorted
by something that does not follow from the order of their changes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Final, NamedTuple

from sandbox_redis.follow import place
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.states import State
from sandbox_redis.top.choice import Choice, Order, Test
from sandbox_redis.top.fleet import Fleet
from sandbox_redis.top.pulse import Pulse, Start

ROWS: Final = 200  # of any list; nobody scrolls further, a filter finds the rest
_STUCK: Final = (State.INIT, State.NOTREADY, State.UNKNOWN)  # where none is meant to stay
_KEYS: Final[dict[Order, Callable[[Sandbox], Any]]] = {
    Order.AGE: attrgetter("status.created_at_ns", "id"),
    Order.ID: attrgetter("id"),
    Order.NODE: attrgetter("node", "id"),
}
Groups = Mapping[State, Sequence[Sandbox] | dict[str, Sandbox]]


class NodeCount(NamedTuple):
    """How many sandboxes are on a node."""

    node: str
    states: Sequence[int]
    """In the order of `State`."""

    @property
    def total(self) -> int:
        """In any state."""
        return sum(self.states)


class Told(NamedTuple):
    """An event, and the sandbox that it tells of where it is known; text where some may be missing."""

    event: Event | str
    sandbox: Sandbox | None


class Listed(NamedTuple):
    """A sandbox, and when it came into its state: `Fleet.since`."""

    sandbox: Sandbox
    since: int | None


@dataclass(frozen=True, slots=True)
class View:
    """One moment."""

    choice: Choice
    now_ns: int
    """In nanoseconds since the Unix epoch, by our clock."""
    total: int
    """Of all sandboxes."""
    states: Mapping[State, int]
    """Of those that have the words asked for, as in `nodes`."""
    nodes: Sequence[NodeCount]
    """Those with the most first; at most `ROWS`."""
    nodes_total: int
    rows: Sequence[Listed]
    """At most `ROWS`."""
    fitting: int
    """How many there would be."""
    starts: Sequence[Start]
    events: Sequence[Told]
    """The newest first."""
    minute: Sequence[int]
    """Changes in each second of the last minute."""
    rate: float
    """Changes per second."""
    agents: int
    opened: Sandbox | None
    """The one that is looked at by itself; None when it is gone."""
    trail: Sequence[Event]
    """What has happened to it since it is looked at, the oldest first."""
    stale: bool = False
    age: float = 0.0
    """Seconds: what happened longer ago than this is known."""


def view(fleet: Fleet, pulse: Pulse, choice: Choice, *, now: float, now_ns: int, **health: Any) -> View:
    """What is seen; `now` is by the clock of the pulse."""
    test = choice.test()
    groups, nodes = _having(fleet, test)
    if choice.node is None:
        fitting = sum(len(group) for state, group in groups.items() if state in choice.states)
    else:
        here = nodes.get(choice.node, ())
        fitting = sum(number for state, number in zip(State, here, strict=False) if state in choice.states)
    opened = choice.opened
    return View(
        choice=choice,
        now_ns=now_ns,
        total=len(fleet),
        states={state: len(group) for state, group in groups.items()},
        nodes=_most(nodes),
        nodes_total=len(nodes),
        rows=[Listed(sandbox, fleet.since(sandbox)) for sandbox in _rows(fleet, groups, choice)],
        fitting=fitting,
        starts=[start for start in fleet.starts.slowest(now_ns // 10**6) if _wanted(start.sandbox, choice, test)],
        events=list(islice(_told(fleet, pulse, choice, test), ROWS)),
        minute=pulse.changes.minute(now),
        rate=pulse.changes.present(now),
        agents=pulse.agents(now),
        opened=None if opened is None else fleet.find(opened),
        trail=[each for each in pulse.events if not isinstance(each, str) and each.id == opened] if opened else [],
        **health,
    )


def _having(fleet: Fleet, test: Test | None) -> tuple[Groups, Mapping[str, Sequence[int]]]:
    """The sandboxes that pass the test, and how many of them are on each node."""
    if test is None:
        return fleet.states, fleet.nodes
    groups = {state: list(filter(test, group.values())) for state, group in fleet.states.items()}
    nodes: dict[str, list[int]] = {}
    for number, group in enumerate(groups.values()):
        for sandbox in group:
            nodes.setdefault(sandbox.node, [0] * len(groups))[number] += 1
    return groups, nodes


def _most(nodes: Mapping[str, Sequence[int]]) -> list[NodeCount]:
    """The nodes with the most; UNKNOWN and INIT are what to look at, so they decide between equals."""
    counted = (NodeCount(node, tuple(states)) for node, states in nodes.items())
    return heapq.nsmallest(ROWS, counted, key=lambda each: (-each.total, each.node))


def _rows(fleet: Fleet, groups: Groups, choice: Choice) -> list[Sandbox]:
    """The first that fit, in the order asked for."""

    def of(state: State) -> Iterator[Sandbox]:
        """Those in a state: who has been there for longest first, or last."""
        group = groups[state] if state in choice.states else ()
        members = group.values() if isinstance(group, dict) else group
        inside: Iterator[Sandbox] = reversed(members) if choice.backwards else iter(members)
        return inside if choice.node is None else (each for each in inside if each.node == choice.node)

    if choice.order is Order.STUCK:
        first = chain.from_iterable(islice(of(state), ROWS) for state in _STUCK)
        stuck = sorted(first, key=lambda each: fleet.since(each) or 0, reverse=choice.backwards)
        return _ends(stuck, of(State.READY), backwards=choice.backwards)
    if choice.order is Order.STATE:
        states = reversed(State) if choice.backwards else iter(State)
        return list(islice(chain.from_iterable(map(of, states)), ROWS))
    found = chain.from_iterable(map(of, State))
    key = _KEYS[choice.order]
    return heapq.nlargest(ROWS, found, key) if choice.backwards else heapq.nsmallest(ROWS, found, key)


def _ends(first: Iterable[Sandbox], then: Iterable[Sandbox], *, backwards: bool) -> list[Sandbox]:
    return list(islice(chain(then, first) if backwards else chain(first, then), ROWS))


def _wanted(sandbox: Sandbox | None, choice: Choice, test: Test | None) -> bool:
    """Whether it is asked for, whatever its state is by now. One that is not known is so where nothing is."""
    if sandbox is None:
        return choice.node is None and test is None
    return (choice.node is None or sandbox.node == choice.node) and (test is None or test(sandbox))


def _told(fleet: Fleet, pulse: Pulse, choice: Choice, test: Test | None) -> Iterator[Told]:
    for event in reversed(pulse.events):
        if isinstance(event, str):
            yield Told(event, None)
            continue
        sandbox = fleet.find(event.id) or fleet.gone.get(event.id)
        if _wanted(sandbox, choice, test):
            yield Told(event, sandbox)


def since_history(history: Sequence[Event], trail: Iterable[Event]) -> list[Event]:
    """A history, and what has happened since."""
    newest = place(history[-1].revision) if history else (0, 0)
    return [*history, *(event for event in trail if place(event.revision) > newest)]
