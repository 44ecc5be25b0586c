"""One sandbox in time: when each of its changes can have happened, and so which states a call can have met. No I/O.

A change that was acknowledged happened between the question and its answer, and changes happened in the order of their
events. A state was there from its change to the next one. From that follow, for each change, the earliest and the
latest moment; a call whose state was over before it began, or began after it ended, was told what cannot be.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from sandbox_redis.soak.history import Call
from sandbox_redis.soak.model import Change, state_of
from sandbox_redis.states import ABSENT

_NEVER: Final = 1 << 63  # nanoseconds; later than any clock


class Timeline:
    """The states of one sandbox, counted from 0, where there was none yet: change 1 led to state 1."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes
        self.place = {change.revision: number for number, change in enumerate(changes, 1)}
        """The state that each revision stands for."""
        self._states: defaultdict[str, list[int]] = defaultdict(list, {ABSENT: [0]})
        for number, change in enumerate(changes, 1):
            self._states[state_of(change.status)].append(number)
        size = len(changes) + 2  # the last one is a change that has not come yet
        self._low: list[tuple[int, Call | None]] = [(0, None)] * size
        self._high: list[tuple[int, Call | None]] = [(_NEVER, None)] * size
        self._earliest: list[tuple[int, Call | None]] = []
        self._latest: list[tuple[int, Call | None]] = []

    # -- what is known

    def wrote(self, first: int, last: int, call: Call, *, told: bool) -> None:
        """A call made the changes from `first` to `last`; whoever was not told may have made them later."""
        self._not_before(first, call.start, call)
        if told:
            self._not_after(last, call.end, call)

    def saw(self, number: int, call: Call) -> None:
        """A call met a state."""
        self._not_after(number, call.end, call)
        self._not_before(number + 1, call.start, call)

    def _not_before(self, number: int, at: int, call: Call) -> None:
        if at > self._low[number][0]:
            self._low[number] = at, call

    def _not_after(self, number: int, at: int, call: Call) -> None:
        if at < self._high[number][0]:
            self._high[number] = at, call

    # -- what follows

    def conclude(self) -> Iterator[tuple[int, Call | None, Call | None]]:
        """Find out when each change can have happened; the changes for which there is no such moment, each with the
        call that says that it was later and the one that says that it was earlier."""
        self._earliest, self._latest = self._low.copy(), self._high.copy()
        for number in range(1, len(self._earliest)):
            self._earliest[number] = max(self._earliest[number - 1 : number + 1], key=_at)
            self._latest[-1 - number] = min(self._latest[-1 - number], self._latest[-number], key=_at)
        told: tuple[Call | None, Call | None] | None = None
        for number in range(1, len(self._earliest) - 1):
            (low, later), (high, earlier) = self._earliest[number], self._latest[number]
            if low > high and (later, earlier) != told:  # one contradiction concerns all changes in between
                told = later, earlier
                yield number, later, earlier

    def could_meet(self, number: int, start: int, end: int) -> bool:
        """Whether a state can have been there at some moment between these; `conclude` comes first."""
        return self._earliest[number][0] <= end and self._latest[number + 1][0] >= start

    def begun(self, number: int, end: int) -> bool:
        """Whether a state can have been there by this moment."""
        return self._earliest[number][0] <= end

    def could_meet_any(self, state: str, start: int, end: int) -> bool:
        """The same for any state of this name."""
        numbers = self._states[state]
        first = bisect_left(self._latest, start, key=_at) - 1
        last = bisect_right(self._earliest, end, key=_at) - 1
        at = bisect_left(numbers, first)
        return at < len(numbers) and numbers[at] <= last

    def first_absent(self, number: int) -> int | None:
        """The first state from this one on in which there was no record."""
        numbers = self._states[ABSENT]
        at = bisect_left(numbers, number)
        return numbers[at] if at < len(numbers) else None

    def revision(self, number: int) -> str:
        """Of the change that led to a state."""
        return self.changes[number - 1].revision if number else "none"


def _at(moment: tuple[int, Call | None]) -> int:
    return moment[0]
