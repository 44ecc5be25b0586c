"""When an operation gives up, and how long it pauses between its attempts until then. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from sandbox_redis.errors import SandboxError
from sandbox_redis.wire import Failure, Op, ServerError, Sleep

PAUSE_FIRST: Final = 0.001  # seconds; about ten loopback round trips
PAUSE_MAX: Final = 0.25  # seconds; a server that comes back is noticed within this
ATTEMPT_MIN: Final = 0.02  # seconds; an attempt with less would end without an answer on a busy machine
TICK: Final = 0.1  # seconds: servers look at their clock so often, so to wait in vain takes that much longer


class Deadline:
    """A point in time by which an operation ends, one way or the other; and the pauses between its attempts until
    then."""

    __slots__ = ("_at", "_clock", "_least", "_pause", "_timeout", "attempts", "said", "supplies")

    def __init__(self, timeout: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._timeout = timeout
        self._at = clock() + timeout
        self._least = min(ATTEMPT_MIN, timeout / 2)
        self._pause = PAUSE_FIRST
        self.attempts = 0
        """How many of them failed."""
        self.supplies = 0
        """How many scripts the server had to be given."""
        self.said: SandboxError | None = None
        """What the server said of itself at last."""

    def renewed(self) -> Deadline:
        """Another one that is as long, from now on."""
        return Deadline(self._timeout, self._clock)

    def passed(self) -> bool:
        """Whether it is over."""
        return self._clock() >= self._at

    def share(self) -> float:
        """Seconds that one attempt may take: half of what is left, so that there is time to find out about it."""
        left = self._at - self._clock()
        # The same number for every first attempt: a socket keeps its timeout from one operation to the next.
        return self._timeout / 2 if left > self._timeout * 0.9 else max(left / 2, self._least)

    def confirming(self, seconds: float) -> tuple[float, float]:
        """Seconds that a write may wait to be confirmed, at most `seconds`, and that its packet may take with that."""
        left = self._at - self._clock()
        left = self._timeout if left > self._timeout * 0.9 else max(left, self._least)  # as for `share`
        wait = max(min(seconds, left * 0.75 - TICK), left * 0.25)
        return wait, (min(wait + TICK, left) + left) / 2

    def pause(
        self, error: SandboxError, longest: float = PAUSE_MAX, why: tuple[ServerError | Failure, ...] = ()
    ) -> Op[None]:
        """Wait before the next attempt, or raise `error` when there is no time for one. The pauses grow
        exponentially up to `longest` seconds, with full jitter; `why` is for the lane."""
        self.attempts += 1
        seconds = random.uniform(0, min(self._pause, longest))
        self._pause = min(self._pause * 2, PAUSE_MAX)
        if self._clock() + seconds + self._least >= self._at:
            raise error from None
        yield Sleep(seconds, why)
