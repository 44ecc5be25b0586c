"""The states of a sandbox and the moves between them. Whatever concerns the state machine stands here and in
``lua/lib/states.lua``, which the server enforces; a test holds the two equal. No I/O, no records.

The machine is containerd's (``internal/cri/store/sandbox/status.go``, in the revisions that had INIT), made strict.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal


class State(StrEnum):
    """The state of a sandbox. It travels and is stored by name."""

    INIT = "INIT"
    """Being created; CRI does not see it yet."""
    READY = "READY"
    """Its process runs."""
    NOTREADY = "NOTREADY"
    """Its process does not run; its other resources may still need cleaning."""
    UNKNOWN = "UNKNOWN"
    """Its status could not be loaded."""

    @property
    def cri(self) -> Literal["SANDBOX_READY", "SANDBOX_NOTREADY"] | None:
        """CRI's ``PodSandboxState``; None for INIT, which CRI does not see."""
        if self is State.INIT:
            return None
        return "SANDBOX_READY" if self is State.READY else "SANDBOX_NOTREADY"


ABSENT: Final = "absent"
"""No record at all: never created, or deleted."""

MACHINE: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "create": {ABSENT: ("INIT",)},
    "load": {ABSENT: ("READY", "NOTREADY", "UNKNOWN")},
    "start": {"INIT": ("READY",)},
    "fail_start": {"INIT": (ABSENT,)},
    "port_forward": {"READY": ("READY",)},
    "stop": {"READY": ("NOTREADY",), "NOTREADY": ("NOTREADY",), "UNKNOWN": ("NOTREADY",)},
    "exit": {"READY": ("NOTREADY",), "NOTREADY": ("NOTREADY",)},
    "remove": {ABSENT: (ABSENT,), "NOTREADY": (ABSENT,)},
    "force_remove": {
        ABSENT: (ABSENT,),
        "INIT": (ABSENT,),
        "READY": ("NOTREADY",),
        "NOTREADY": (ABSENT,),
        "UNKNOWN": ("NOTREADY",),
    },
    "update": {
        "INIT": ("INIT", "READY"),
        "READY": ("READY", "NOTREADY"),
        "NOTREADY": ("NOTREADY",),
        "UNKNOWN": ("UNKNOWN", "NOTREADY"),
    },
}
"""Operation → state before → the states it may lead to. What is not here is refused.

``force_remove`` is ``remove(force=True)``; where it leads to NOTREADY it goes on to `ABSENT` in the same script.
"""

_ADVICE: Final = {
    ("remove", "READY"): "stop it first, or remove it with force",
    ("remove", "UNKNOWN"): "stop it first, or remove it with force",
    ("remove", "INIT"): "end its creation with start or fail_start, or remove it with force",
    ("stop", "INIT"): "it has not been started: end its creation with fail_start",
    ("exit", "INIT"): "it has not been started: end its creation with fail_start",
    ("exit", "UNKNOWN"): "stop it instead",
    ("start", "READY"): "it was started before",
}


def advice(operation: str, state: str) -> str:
    """What a caller can do instead of an operation that `state` refuses; empty when nothing is to be said."""
    if found := _ADVICE.get((operation, state)):
        return found
    accepted = [before for before in MACHINE[operation] if before != ABSENT]
    return f"it is for a sandbox that is {' or '.join(accepted)}" if accepted else ""
