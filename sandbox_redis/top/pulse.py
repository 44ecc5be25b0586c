"""What happens to a fleet, over time: how much in each second, which starts took longest, the newest events, who
writes. Plain data of a fixed size, whatever happens.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import Final, NamedTuple

from sandbox_redis.record import Event, Sandbox

MINUTE: Final = 60  # seconds that are counted one by one
_MEAN: Final = 5  # seconds over which the present rate is taken; less would tremble
_MINUTES: Final = 10  # for which slow starts are shown
_SLOWEST: Final = 50  # starts that are kept of each minute
_EVENTS: Final = 5000  # that are kept, for filters to find some in them


class Start(NamedTuple):
    """A sandbox that came from INIT to READY."""

    took: int
    """Milliseconds, by the server's clock."""
    at: int
    """When it was READY, in milliseconds since the Unix epoch by the server's clock."""
    sandbox: Sandbox


class Starts:
    """The starts of the last ten minutes that took longest."""

    def __init__(self) -> None:
        self._minutes: dict[int, list[tuple[int, int, int, Sandbox]]] = {}
        self._number = 0  # so that sandboxes are never compared

    def add(self, at: int, took: int, sandbox: Sandbox) -> None:
        """One more."""
        self._number += 1
        minute = self._minutes.setdefault(at // 60_000, [])
        start = (took, at, self._number, sandbox)
        if len(minute) < _SLOWEST:
            heapq.heappush(minute, start)
        else:
            heapq.heappushpop(minute, start)
        if len(self._minutes) > _MINUTES + 1:
            del self._minutes[min(self._minutes)]

    def slowest(self, now: int) -> list[Start]:
        """The slowest first, at a time in milliseconds since the Unix epoch."""
        first = now // 60_000 - _MINUTES
        found = (start for minute, starts in self._minutes.items() if minute >= first for start in starts)
        return [Start(took, at, sandbox) for took, at, _, sandbox in heapq.nlargest(_SLOWEST, found)]


class Rate:
    """How often something happens. Times are those of a clock that never goes back, in seconds."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._counts: Counter[int] = Counter()

    def add(self, at: float) -> None:
        """It has happened once more."""
        self._counts[int(at)] += 1

    def minute(self, now: float) -> list[int]:
        """How often in each of the last sixty whole seconds, the newest last; fewer where it began later."""
        present = int(now)
        for second in [each for each in self._counts if each < present - MINUTE]:
            del self._counts[second]
        return [self._counts[second] for second in range(max(present - MINUTE, int(self._began) + 1), present)]

    def present(self, now: float) -> float:
        """How often it happens in a second."""
        known = self.minute(now)[-_MEAN:]
        return sum(known) / len(known) if known else 0.0


class Pulse:
    """All of it but the starts, which the fleet knows."""

    def __init__(self, now: float) -> None:
        self.changes = Rate(now)
        self.events: deque[Event | str] = deque(maxlen=_EVENTS)
        """The newest last; text where some may be missing."""
        self._agents: dict[str, float] = {}

    def hear(self, at: float, event: Event | str) -> None:
        """An event has come at a time."""
        self.events.append(event)
        if not isinstance(event, str):
            self._agents[event.by] = at

    def agents(self, now: float) -> int:
        """How many have written something within the last minute."""
        for name in [name for name, at in self._agents.items() if at < now - MINUTE]:
            del self._agents[name]
        return len(self._agents)
