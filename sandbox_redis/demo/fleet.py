"""The fleet as the events tell it: what the director looks at and the screen shows. No record is ever read for it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from sandbox_redis.record import Event, Sandbox

_RECENT: Final = 50  # events; more than any screen shows


class Fleet:
    """All sandboxes as they are after the events so far."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.writers: set[str] = set()
        """Who has written so far."""
        self.counts: Counter[str] = Counter()
        """How many events of each transition."""
        self.recent: deque[Event] = deque(maxlen=_RECENT)
        """The last events, without updates: there are too many of them to read."""

    def apply(self, events: Iterable[Event]) -> None:
        """Go on by some events."""
        for event in events:
            known = self.sandboxes.pop(event.id, None)
            if event.sandbox is not None:
                metadata = event.sandbox.metadata if known is None else known.metadata  # only the first event has it
                self.sandboxes[event.id] = replace(event.sandbox, metadata=metadata)
            self.writers.add(event.by)
            self.counts[event.transition] += 1
            if event.transition != "update":
                self.recent.append(event)

    def in_order(self) -> list[Sandbox]:
        """The sandboxes in the order of a table: by node and name, so that each keeps its place."""
        return sorted(self.sandboxes.values(), key=lambda sandbox: (sandbox.node, sandbox.metadata.name, sandbox.id))
