"""What it is to wait for a sandbox: containerd's ``StopCh``, across processes. No I/O. A thread that waits follows the
events over a connection of its own; how the tasks of an event loop share one stands in ``aio_waits.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from sandbox_redis import checks
from sandbox_redis.errors import InvalidArgumentError, WaitTimeoutError
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.selection import ALL, Selection, one_state
from sandbox_redis.session import Session
from sandbox_redis.states import State
from sandbox_redis.watching import Watching
from sandbox_redis.wire import Op


class Waiting:
    """Waits for one sandbox; `found` is what is known of it."""

    def __init__(self, sandbox_id: str, until: State | Iterable[State] | None, timeout: float | None) -> None:
        wanted = (until,) if isinstance(until, State) else until
        if isinstance(wanted, str) or not isinstance(wanted, Iterable | None):
            raise InvalidArgumentError("until", until, "a state, some states, or None for gone is needed")
        self.states = frozenset(one_state("until", state) for state in wanted or ())
        self.id = checks.sandbox_id(sandbox_id)
        self.seconds = math.inf if timeout is None else checks.seconds("timeout", timeout)
        self.found: Sandbox | None = None

    def over(self) -> bool:
        """Whether it is in one of the states, or gone."""
        return self.found is None or self.found.status.state in self.states

    def hear(self, event: Event) -> None:
        """Something has happened to it."""
        after = event.sandbox
        if after is not None and event.before is not None and self.found is not None:
            after = replace(after, metadata=self.found.metadata)
        self.found = after

    def too_late(self) -> WaitTimeoutError:
        """The error for when it has not happened in time."""
        return WaitTimeoutError(self.id, self.seconds, " or ".join([*sorted(self.states), "gone"]))


def wait(session: Session, waiting: Waiting) -> Op[Sandbox | None]:
    """Wait, following the events; see `Queries.wait`."""
    end = time.monotonic() + waiting.seconds
    timeout = None if waiting.seconds == math.inf else waiting.seconds
    watching = Watching(session, Selection(ALL, sandbox_id=waiting.id), timeout=timeout)
    first = min(session.timeout, waiting.seconds)
    yield from watching.begin(first)  # before it is read, so that nothing falls in between
    deadline = session.deadline(first)
    layout = yield from session.open(deadline, write=False)
    waiting.found = yield from session.fetch(layout, waiting.id, deadline)
    while not waiting.over():
        left = end - time.monotonic()
        if left <= 0:
            raise waiting.too_late()
        yield from watching.more(left)
        while not waiting.over() and (event := watching.take()):
            waiting.hear(event)
    return waiting.found
