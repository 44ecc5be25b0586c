"""The figures of a soak: how much was done, what it met, and what callers felt of it. No I/O."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final

from sandbox_redis.soak.history import UNWRITTEN, Call, History, Outcome
from sandbox_redis.soak.model import Change
from sandbox_redis.soak.report import Fault, Losses, Report, Violation

PLANNED: Final = frozenset({"failover", "coordinated-failover", "migration", "atomic-migration"})
"""The faults that an operator asks for, so that callers should meet no error."""
_ERRORS: Final = frozenset({Outcome.UNAVAILABLE, Outcome.UNKNOWN, Outcome.FAILED})
_DEFINITE: Final = UNWRITTEN | {Outcome.OK, Outcome.UNDURABLE}
_SECOND: Final = 10**9  # nanoseconds


@dataclass(slots=True)
class Happened:
    """A fault that was caused. Times are nanoseconds of the host's monotonic clock."""

    name: str
    text: str
    """What happened, as a sentence."""
    start: int
    end: int
    """When all was healthy again."""
    safe: int = 0
    """What was acknowledged before cannot be lost by it: all servers had it."""
    may_lose: bool = False
    """Whether a server may have lost writes that it had acknowledged."""
    may_lose_confirmed: bool = False
    """Whether those may be lost that were acknowledged with a write concern."""


def losses(faults: Iterable[Happened]) -> Losses:
    """When a server may have lost what it had acknowledged."""
    return Losses((fault.safe, fault.end) for fault in faults if fault.may_lose)


def write_losses(faults: Iterable[Happened], write_concern: int | None) -> Losses:
    """When a server may have lost acknowledged writes for which so many replicas were waited."""
    return Losses((f.safe, f.end) for f in faults if (f.may_lose_confirmed if write_concern else f.may_lose))


@dataclass(slots=True)
class Figures:
    """What is counted over all rounds of a soak."""

    seconds: float = 0.0
    operations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    events: int = 0
    watched: int = 0
    """Events that watches told."""
    mirror_reads: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lost_replies: int = 0
    """Calls of which a reply was lost."""
    resolved: int = 0
    """Those of them of which it was found out whether they happened."""
    unknown: int = 0
    unavailable: int = 0
    unfinished: int = 0
    """Calls of agents that were killed meanwhile."""
    lost_writes: int = 0
    """Acknowledged, and gone with data that a server lost."""
    stale_reads: int = 0
    """Reads that were stale while a server lost data."""
    double_applies: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Fault → errors that callers saw during it: unavailable, unknown."""
    gaps: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Fault → after each of them, the longest time in seconds without a successful write."""
    violations: list[Violation] = field(default_factory=list)
    violations_found: int = 0
    """Of very many of one kind, not all are kept."""
    problems: list[str] = field(default_factory=list)
    """What went wrong with the processes or the servers."""

    @property
    def failed(self) -> bool:
        """Whether anything was not as it must be."""
        return bool(self.violations_found or self.problems)

    def count(
        self,
        histories: Sequence[History],
        faults: Sequence[Happened],
        report: Report,
        changes: Sequence[Sequence[Change]],
        over: int,
    ) -> None:
        """Add one round, of which `changes` are the events; agents were told to end at the moment `over`."""
        calls = [call for history in histories for call in history.calls]
        self.operations += len(calls)
        self.outcomes.update(call.outcome.value for call in calls)
        self.events += sum(map(len, changes))
        self.watched += sum(len(watched.events) for history in histories for watched in history.watches)
        self.mirror_reads += sum(history.reads for history in histories)
        self.faults.update(fault.name for fault in faults)
        lost = [call for call in calls if call.lost]
        self.lost_replies += len(lost)
        self.resolved += sum(call.outcome in _DEFINITE for call in lost)
        self.unknown += sum(call.outcome is Outcome.UNKNOWN for call in calls)
        self.unavailable += sum(call.outcome is Outcome.UNAVAILABLE for call in calls)
        self.unfinished += sum(call.outcome is Outcome.UNFINISHED for call in calls)
        self.lost_writes += report.lost_writes
        self.stale_reads += report.stale_reads
        self.violations += report.violations
        self.violations_found += report.found.total()
        self.double_applies += report.found[Fault.DOUBLE]
        self._errors(calls, faults)
        written = {change.request for partition in changes for change in partition}
        ends = sorted(
            call.end for call in calls if call.outcome is Outcome.OK and call.request in written and call.end <= over
        )
        self._gap(ends, faults)

    def _errors(self, calls: Iterable[Call], faults: Iterable[Happened]) -> None:
        bad = [call for call in calls if call.outcome in _ERRORS]
        for fault in faults:
            self.errors[fault.name] += sum(call.start <= fault.end and fault.start <= call.end for call in bad)

    def _gap(self, ends: Sequence[int], faults: Sequence[Happened]) -> None:
        following = [*(fault.start for fault in faults[1:]), ends[-1] if ends else 0]
        for fault, until in zip(faults, following, strict=False):
            first, last = bisect_left(ends, fault.start), bisect_right(ends, until)
            moments = [fault.start, *ends[first:last], *ends[last : last + 1]]
            longest = max((b - a for a, b in pairwise(moments)), default=0)
            self.gaps[fault.name].append(longest / _SECOND)

    def to_json(self) -> dict[str, Any]:
        """All of them, for a program."""
        return {
            "seconds": round(self.seconds, 1),
            "operations": self.operations,
            "outcomes": dict(self.outcomes),
            "events": self.events,
            "watched": self.watched,
            "mirror_reads": self.mirror_reads,
            "faults": dict(self.faults),
            "lost_replies": self.lost_replies,
            "lost_replies_resolved": self.resolved,
            "unknown_outcomes": self.unknown,
            "unavailable": self.unavailable,
            "unfinished": self.unfinished,
            "acknowledged_writes_lost": self.lost_writes,
            "stale_reads": self.stale_reads,
            "double_applies": self.double_applies,
            "errors": {name: self.errors[name] for name in self.faults if self.errors[name] or name in PLANNED},
            "gaps": {
                name: {"p50": round(median(gaps), 3), "max": round(max(gaps), 3)} for name, gaps in self.gaps.items()
            },
            "violations": [
                {"fault": str(violation.fault), "id": violation.id, "text": violation.text}
                for violation in self.violations
            ],
            "violations_found": self.violations_found,
            "problems": self.problems,
        }

    def lines(self) -> list[str]:
        """All of them, to be read."""
        told = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common())
        met = ", ".join(f"{count} {name}" for name, count in self.faults.most_common())
        rows = [
            ("operations", f"{self.operations:,} in {self.seconds:.0f} s: {told}"),
            (
                "events",
                f"{self.events:,}; watches told {self.watched:,}, mirrors were read {self.mirror_reads:,} times",
            ),
            ("faults", f"{self.faults.total()}: {met}" if met else "none"),
            ("lost replies", f"{self.lost_replies:,}, of which {self.resolved:,} were found out about"),
            ("unknown outcomes", f"{self.unknown:,}"),
            ("unavailable", f"{self.unavailable:,}"),
            ("cut off by a kill", f"{self.unfinished:,}"),
            ("acknowledged and lost", f"{self.lost_writes:,}"),
            ("applied twice", f"{self.double_applies:,}"),
        ]
        if self.stale_reads:
            rows.append(("stale in a failover", f"{self.stale_reads:,} reads"))
        rows += [
            (f"errors: {name}", f"{self.errors[name]:,}")
            for name in sorted(self.faults)
            if self.errors[name] or name in PLANNED
        ]
        for name, gaps in sorted(self.gaps.items()):
            rows.append((f"no write: {name}", f"{median(gaps):.2f} s at p50, {max(gaps):.2f} s at most"))
        width = max(len(heading) for heading, _ in rows)
        return [f"{heading:{width}}  {text}" for heading, text in rows]
