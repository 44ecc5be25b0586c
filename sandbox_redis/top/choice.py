"""What somebody at the screen asks to see: words, a node, states, an order. Plain data; what fits stands in
``view.py``, which keys ask for it in ``main.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from sandbox_redis.record import Sandbox
from sandbox_redis.selection import ALL
from sandbox_redis.states import State

Test = Callable[[Sandbox], bool]


class Order(Enum):
    """What the sandboxes are sorted by, and how that is called."""

    STUCK = "longest stuck first"
    AGE = "oldest first"
    ID = "by id"
    NODE = "by node"
    STATE = "by state"


@dataclass(frozen=True, slots=True)
class Choice:
    """One wish; a change makes another one."""

    words: str = ""
    """Each must be part of the id, the name or the node; or it is ``key=value``, for a label that begins so."""
    node: str | None = None
    states: frozenset[State] = ALL
    order: Order = Order.STUCK
    backwards: bool = False
    opened: str | None = None
    """The id of the sandbox that is looked at by itself."""
    paused: bool = False

    def next_order(self) -> Choice:
        """Sorted by the next one, the usual way round."""
        orders = list(Order)
        return replace(self, order=orders[(orders.index(self.order) + 1) % len(orders)], backwards=False)

    def toggled(self, state: State) -> Choice:
        """With a state, or without it. Without any there would be nothing to see, so then it is all of them."""
        return replace(self, states=self.states ^ {state} or ALL)

    def next_state(self) -> Choice:
        """Only the next state; behind the last one, all of them."""
        alone = [ALL, *(frozenset((state,)) for state in State)]
        place = alone.index(self.states) if self.states in alone else -1
        return replace(self, states=alone[(place + 1) % len(alone)])

    def on(self, node: str) -> Choice:
        """Only what is on this node; all nodes when it was this one already."""
        return replace(self, node=None if self.node == node else node)

    def test(self) -> Test | None:
        """Whether a sandbox has the words; None when there are none, so that nobody needs to look."""
        tests = [_test(word) for word in self.words.split()]
        if len(tests) < 2:
            return tests[0] if tests else None
        return lambda sandbox: all(test(sandbox) for test in tests)

    def described(self) -> str:
        """What it leaves out, in words; empty when that is nothing."""
        parts = []
        if self.states != ALL:
            parts.append("only " + ", ".join(state for state in State if state in self.states))
        if self.node is not None:
            parts.append(f"on {self.node or 'no node'}")
        if words := " ".join(self.words.split()):
            parts.append(f"with {words}")
        return ", ".join(parts)


def _test(word: str) -> Test:
    key, equals, value = word.partition("=")
    if equals:
        return lambda sandbox: (found := sandbox.metadata.labels.get(key)) is not None and found.startswith(value)
    part = word.lower()

    def has(sandbox: Sandbox) -> bool:
        return part in sandbox.id.lower() or part in sandbox.metadata.name.lower() or part in sandbox.node.lower()

    return has
