"""Which sandboxes a reader wants: the one place for the filters of listings, watches and mirrors. No I/O.

They are CRI's ``PodSandboxFilter`` (id, state, exact labels), node and namespace beside it; a sandbox must fit all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sandbox_redis import checks
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.states import State

ALL: Final = frozenset(State)
LISTED: Final = frozenset((State.READY, State.NOTREADY, State.UNKNOWN))
"""INIT is left out unless asked for, as by CRI's ``ListPodSandbox``."""
_CRI: Final = tuple(dict.fromkeys(state.cri for state in State if state.cri))


@dataclass(frozen=True, slots=True)
class Selection:
    """What a reader wants; `None` and nothing is any."""

    states: frozenset[State] = LISTED
    node: str | None = None
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    sandbox_id: str | None = None

    def fields(self) -> list[str]:
        """Names and values of the fields of a record that must be just so, beside its state and node."""
        wanted = [] if self.namespace is None else ["namespace", self.namespace]
        for key, value in self.labels.items():
            wanted += [f"label:{key}", value]
        return wanted

    def fits(self, sandbox: Sandbox) -> bool:
        """Whether a sandbox is one of these in what never changes: all but its state."""
        return (
            (self.node is None or sandbox.node == self.node)
            and (self.sandbox_id is None or sandbox.id == self.sandbox_id)
            and (self.namespace is None or sandbox.metadata.namespace == self.namespace)
            and all(sandbox.metadata.labels.get(key) == value for key, value in self.labels.items())
        )

    def shows(self, sandbox: Sandbox) -> bool:
        """Whether its state is one of these; one that cannot be read is always shown."""
        return sandbox.status.state in self.states or sandbox.problem is not None

    def tells(self, event: Event) -> bool:
        """Whether an event is of a sandbox that came into one of the states, changed in it, or left it."""
        return event.before in self.states or (event.sandbox is not None and event.sandbox.status.state in self.states)


def selection(
    *,
    states: Iterable[State] | None = None,
    cri_state: str | None = None,
    node: str | None = None,
    namespace: str | None = None,
    labels: Mapping[str, str] | None = None,
    sandbox_id: str | None = None,
    default: frozenset[State] = LISTED,
) -> Selection:
    """The selection that arguments describe.

    Raises:
        InvalidArgumentError: an argument breaks its rule.
    """
    if isinstance(states, str) or not isinstance(states, Iterable | None):
        raise InvalidArgumentError("states", states, "some states are needed, or None")
    wanted = default if states is None else frozenset(one_state("states", state) for state in states)
    if cri_state is not None:
        if cri_state not in _CRI:
            raise InvalidArgumentError("cri_state", cri_state, f"one of {', '.join(_CRI)} is needed")
        wanted &= frozenset(state for state in State if state.cri == cri_state)
    if node is not None and not checks.node(node):
        raise InvalidArgumentError("node", node, "it must not be empty; leave it out for all nodes")
    if namespace is not None:
        checks.text("namespace", namespace, empty=False)
    if sandbox_id is not None:
        checks.sandbox_id(sandbox_id)
    if labels and len(checks.texts("labels", labels)) > checks.ENTRIES_MAX:
        raise InvalidArgumentError("labels", f"{len(labels)} labels", f"no sandbox has more than {checks.ENTRIES_MAX}")
    return Selection(wanted, node, namespace, dict(checks.texts("labels", labels or {})), sandbox_id)


def one_state(argument: str, value: State) -> State:
    """A state."""
    if not isinstance(value, State):
        raise InvalidArgumentError(argument, value, f"one of {', '.join(State)} is needed")
    return value
