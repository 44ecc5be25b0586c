"""What each operation makes of a status, in plain Python: the contract, written a second time, so that what the scripts
do can be held against it. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sandbox_redis.record import Event, Status
from sandbox_redis.soak.history import status_of
from sandbox_redis.states import ABSENT, MACHINE, State

_EXIT: Final = ("exit_status", "exited_at_ns")


@dataclass(slots=True)
class Change:
    """One event of the store, without what the check does not need."""

    id: str
    revision: str
    transition: str
    before: str
    status: Status | None
    """After it; None after a delete."""
    by: str
    request: str

    @classmethod
    def of(cls, event: Event) -> Change:
        """From what the store tells."""
        status = event.sandbox.status if event.sandbox else None
        before = ABSENT if event.before is None else event.before.value
        return cls(event.id, event.revision, event.transition, before, status, event.by, event.request)


def state_of(status: Status | None) -> str:
    """The state, or `ABSENT`."""
    return ABSENT if status is None else status.state.value


def updated(args: Mapping[str, Any], status: Status) -> Status:
    """What the update function of an agent makes of a status: the ``fn`` of its calls."""
    if args["kind"] == "count":  # the exit status of one that has not exited says nothing, so it can hold a number
        return replace(status, exit_status=status.exit_status + 1)
    if args["kind"] == "pid":
        return replace(status, pid=args["pid"]) if status.state is State.READY else status
    return replace(status, state=State(args["kind"]))


def effect(operation: str, args: Mapping[str, Any], status: Status | None) -> tuple[Status | None, ...] | None:
    """What an operation makes of a status: the status after each event that it writes, None for a deleted one. Empty
    where it succeeds and writes nothing; None where it is refused."""
    before = state_of(status)
    if operation != "update" and before not in MACHINE[operation]:
        return None
    match operation:
        case "create":
            return (Status(State.INIT, created_at_ns=args["created_at_ns"]),)
        case "load":
            return (status_of(args["observed"]),)
        case "port_forward":
            return ()
        case "remove" | "fail_start" | "force_remove":
            if status is None:
                return ()
            stopped = MACHINE[operation][before] == ("NOTREADY",)
            return (replace(status, state=State.NOTREADY, pid=0), None) if stopped else (None,)
    if status is None:
        return None
    match operation:
        case "start":
            return (replace(status, state=State.READY, pid=args["pid"]),)
        case "stop" | "exit":
            # The first exit that is told is kept.
            told = {} if status.exited_at_ns else {name: args[name] for name in _EXIT if name in args}
            if status.state is State.NOTREADY and (operation == "stop" or not told):
                return ()
            return (replace(status, state=State.NOTREADY, pid=0, **told),)
    made = updated(args, status)
    if made.state is State.NOTREADY:
        made = replace(made, pid=0)
    if made == status:
        return ()
    return (made,) if made.state in MACHINE["update"][before] else None


def may_refuse(operation: str, args: Mapping[str, Any], state: str) -> bool:
    """Whether an operation is refused in a state, whatever else the status says."""
    if operation == "update":
        return state == ABSENT or effect(operation, args, Status(State(state), pid=1, exit_status=1)) is None
    return state not in MACHINE[operation]


def transitions(operation: str) -> tuple[str, ...]:
    """The transitions that the events of an operation may have."""
    return ("stop", "remove") if operation == "force_remove" else (operation,)
