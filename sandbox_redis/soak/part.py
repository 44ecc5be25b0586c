"""What a process of a soak is told when it is started, and how it hears that the soak ends: its standard input closes,
also when the director was killed. Nothing of what the processes then do.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from sandbox_redis.concern import WriteConcern

URL: Final = "SANDBOX_REDIS_URL"  # a command line is no place for a password
EVENTS_MAXLEN: Final = 10**9  # the check needs every event, so none is trimmed
COUNTERS: Final = tuple(f"count-{number}" for number in range(3))
"""Sandboxes that all agents count in; few, so that they meet."""
SHARED: Final = tuple(f"shared-{number}" for number in range(8))
"""Sandboxes to which all agents do everything."""
LAST: Final = "last-"
"""What the ids of the last sandboxes begin with, one for each partition: whoever has seen them has seen all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The part of one process."""

    name: str
    """The store's `agent`, and the name of the log."""
    log: str
    """The path of its log."""
    prefix: str
    partitions: int
    seed: str
    asyncio: bool = False
    pause: float = 0.0
    """Seconds between two calls, on average."""
    write_concern: int | None = None
    """How many replicas each write waits for."""
    last: tuple[str, ...] = ()
    """The ids of the last sandboxes, whose creation is the end of what is to be seen."""

    def command(self, module: str) -> list[str]:
        """The command line of the process, for the `main` of a module."""
        return [sys.executable, "-m", module, json.dumps(asdict(self))]

    @classmethod
    def from_argv(cls) -> Self:
        """The part of this process."""
        told = json.loads(sys.argv[1])
        return cls(**{**told, "last": tuple(told["last"])})

    @property
    def settings(self) -> dict[str, Any]:
        """How it opens the store."""
        concern = None if self.write_concern is None else WriteConcern(replicas=self.write_concern)
        return {
            "prefix": self.prefix,
            "agent": self.name,
            "partitions": self.partitions,
            "events_maxlen": EVENTS_MAXLEN,
            "write_concern": concern,
        }

    def chance(self, what: object = "") -> random.Random:
        """The random choices for one purpose, the same each time for the same seed."""
        return random.Random(f"{self.seed}/{self.name}/{what}")
