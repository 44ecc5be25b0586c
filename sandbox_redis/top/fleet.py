"""The sandboxes of a fleet as changes make them: counted, and kept in the order in which they came into their states.
Each change costs the same however many there are. Plain data; where changes come from stands in ``feed.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sandbox_redis.record import Sandbox
from sandbox_redis.states import State
from sandbox_redis.top.pulse import Starts

_GONE: Final = 5000  # sandboxes that were removed and are remembered, for the events that tell of them
_PLACES: Final = {state: place for place, state in enumerate(State)}


class Fleet:
    """All sandboxes, by state and by node."""

    def __init__(self, sandboxes: Iterable[Sandbox] = ()) -> None:
        self.starts = Starts()
        self.gone: dict[str, Sandbox] = {}
        """The last ones that were removed."""
        self.reset(sandboxes)

    def reset(self, sandboxes: Iterable[Sandbox]) -> None:
        """Begin again with these."""
        self.states: dict[State, dict[str, Sandbox]] = {state: {} for state in State}
        """By id. Who has been in the state for longest comes first."""
        self.nodes: dict[str, list[int]] = {}
        """How many there are on each node, for each state."""
        self._entered: dict[str, int] = {}
        for sandbox in sorted(sandboxes, key=lambda each: milliseconds(each.revision) or 0):
            self.states[sandbox.status.state][sandbox.id] = sandbox
            self._count(sandbox, 1)

    def take(self, sandbox_id: str, after: Sandbox | None) -> None:
        """A sandbox is now like this; None when it is not there any more."""
        before = self.find(sandbox_id)
        if before is not None and after is not None and _stayed(before, after):
            since = self.since(before)
            if since is not None:
                self._entered[sandbox_id] = since
            self.states[after.status.state][sandbox_id] = after  # where it stands already
            return
        if before is not None:
            if after is not None and (before.status.state, after.status.state) == (State.INIT, State.READY):
                self._started(before, after)
            del self.states[before.status.state][sandbox_id]
            self._entered.pop(sandbox_id, None)
            self._count(before, -1)
        if after is not None:
            self.states[after.status.state][sandbox_id] = after
            self._count(after, 1)
        elif before is not None:
            self._remember(before)

    def find(self, sandbox_id: str) -> Sandbox | None:
        """The sandbox with this id."""
        for sandboxes in self.states.values():
            if (sandbox := sandboxes.get(sandbox_id)) is not None:
                return sandbox
        return None

    def since(self, sandbox: Sandbox) -> int | None:
        """When it came into its state, in milliseconds since the Unix epoch by the server's clock; None where nobody
        knows. For one that was here before us it is when it was last changed."""
        entered = self._entered.get(sandbox.id)
        return milliseconds(sandbox.revision) if entered is None else entered

    def __len__(self) -> int:
        return sum(map(len, self.states.values()))

    def _count(self, sandbox: Sandbox, number: int) -> None:
        counts = self.nodes.setdefault(sandbox.node, [0] * len(_PLACES))
        counts[_PLACES[sandbox.status.state]] += number
        if number < 0 and not any(counts):
            del self.nodes[sandbox.node]

    def _started(self, before: Sandbox, after: Sandbox) -> None:
        began, ended = self.since(before), milliseconds(after.revision)
        if began is not None and ended is not None:
            self.starts.add(ended, ended - began, after)

    def _remember(self, sandbox: Sandbox) -> None:
        self.gone.pop(sandbox.id, None)  # so that it stands last
        self.gone[sandbox.id] = sandbox
        if len(self.gone) > _GONE:
            del self.gone[next(iter(self.gone))]


def _stayed(before: Sandbox, after: Sandbox) -> bool:
    """Whether it is still in the state that it was in, and not in another life of its id."""
    return (
        before.status.state is after.status.state
        and before.node == after.node
        and before.status.created_at_ns == after.status.created_at_ns
    )


def milliseconds(revision: str) -> int | None:
    """When a change was made, since the Unix epoch by the server's clock; None of what is no revision."""
    digits = revision.partition("-")[0]
    return int(digits) if digits.isdecimal() else None
