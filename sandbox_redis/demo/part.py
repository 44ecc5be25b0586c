"""What a process of the demo is told when it is started, and how it hears that the demo ends: its standard input
closes, also when the director was killed. Nothing of what the processes then do.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from typing import Final, Self

SHARED_NODE: Final = "shared"  # the node of the sandboxes that every agent updates
EVENTS_MAXLEN: Final = 10**9  # the check needs every event, so none is trimmed
LOST_EXIT: Final = 255  # what containerd records when nobody can know any more how a process ended
SESSION: Final = "session"  # annotation: the session of the agent that started the process; tells reused pids apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The part of one process. The server's URL is not in it, because a command line is no place for a password."""

    name: str
    """The store's `agent`, and the actor of the truth log."""
    prefix: str
    log: str
    """The path of its truth log."""
    seed: str
    node: str = ""
    """The node it is the agent of."""
    slots: int = 0
    """How many sandboxes it runs at a time."""
    shared: tuple[str, ...] = ()
    """The ids of the sandboxes that every agent updates."""

    def command(self, module: str) -> list[str]:
        """The command line of the process, for the `main` of a module."""
        return [sys.executable, "-m", module, json.dumps(asdict(self))]

    @classmethod
    def from_argv(cls) -> Self:
        """The part of this process."""
        told = json.loads(sys.argv[1])
        return cls(**{**told, "shared": tuple(told["shared"])})

    def chance(self, what: object) -> random.Random:
        """The random choices for one purpose, the same each time for the same seed."""
        return random.Random(f"{self.seed}/{self.name}/{what}")
