"""The check: whether what everybody was told, and what the store holds in the end, is possible together. It looks at
one sandbox after the other, in time that grows with the number of its calls and changes alone.

A function of the logs and of all events, so that a test can plant a fault in either and must see it found. No I/O.

It is exact for what is written and for reads that return a revision. Whoever was told that there is no sandbox, or
that its state refuses, may have met any of several states; each such answer is held against the events alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sandbox_redis.record import Sandbox, Status
from sandbox_redis.soak.history import OPEN, UNWRITTEN, Call, History, Outcome
from sandbox_redis.soak.model import Change, effect, may_refuse, state_of, transitions
from sandbox_redis.soak.report import Fault, Losses, Report
from sandbox_redis.soak.sights import Sights
from sandbox_redis.soak.surveys import surveyed
from sandbox_redis.soak.timeline import Timeline
from sandbox_redis.states import ABSENT


def check(
    histories: Iterable[History],
    changes: Sequence[Sequence[Change]],
    *,
    records: Mapping[str, Sandbox] | None = None,
    losses: Losses | None = None,
    write_losses: Losses | None = None,
) -> Report:
    """Decide whether a history was possible.

    Args:
        histories: what each process did.
        changes: all events of the store from its first on, for each partition, in order.
        records: what the store holds in the end; not looked at when None.
        losses: when the server may have lost data that somebody had seen: never, when None.
        write_losses: when it may have lost writes that were acknowledged with their write concern: the same, when None.

    Returns:
        What contradicts the promises of the store; `Report.violations` is empty when nothing does.
    """
    histories = list(histories)
    report = Report()
    losses = losses or Losses()
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    for history in histories:
        for call in history.calls:
            calls[call.id].append(call)
    events: defaultdict[str, list[Change]] = defaultdict(list)
    for partition in changes:
        for change in partition:
            events[change.id].append(change)
    lines = {}
    for sandbox_id in calls.keys() | events.keys() | (records or {}).keys():
        mine = events[sandbox_id]
        lines[sandbox_id] = line = Timeline(mine)
        _Check(report, losses, losses if write_losses is None else write_losses, line, mine, calls[sandbox_id]).run()
        if records is not None:
            _records(report, sandbox_id, mine, records.get(sandbox_id))
    sights = Sights(report, losses, changes, lines)
    for history in histories:
        sights.watches(history)
        sights.glimpses(history)
        surveyed(report, losses, lines, history)
        if history.final is not None and records is not None:
            sights.final(history, {sandbox_id: record.revision for sandbox_id, record in records.items()})
    return report


def _records(report: Report, sandbox_id: str, changes: Sequence[Change], record: Sandbox | None) -> None:
    last = changes[-1].status if changes else None
    found = record.status if record else None
    revision = changes[-1].revision if changes else "none"
    if found != last or (record and record.revision != revision):
        report.add(
            Fault.RECORD,
            sandbox_id,
            f"the record of {sandbox_id} is {found} of revision {record.revision if record else 'none'}, its last event"
            f" {revision} says {last}",
        )


@dataclass(slots=True)
class _Check:
    """The check of one sandbox."""

    report: Report
    losses: Losses
    write_losses: Losses
    line: Timeline
    changes: Sequence[Change]
    calls: Sequence[Call]
    made: dict[int, list[int]] = field(default_factory=dict)
    """Call, by its place in `calls` → the changes that it made, counted from 1."""
    damaged: bool = False
    """Whether something of this sandbox was lost with the server's data, so that others may have seen what is gone."""

    def run(self) -> None:
        self._match()
        seen: list[tuple[int, Call]] = []
        for place, call in enumerate(self.calls):
            made = self.made.get(place, [])
            if made:
                self.line.wrote(made[0], made[-1], call, told=call.outcome not in OPEN)
            if (number := self._judge(call, made)) is not None:
                seen.append((number, call))
        self._order(Fault.ORDER, "the events say otherwise")
        fair = []
        for number, call in seen:
            if self.line.could_meet(number, call.start, call.end):
                fair.append((number, call))
            else:
                self._stale(call, f"it was told of revision {self.line.revision(number)}")
        self._refusals()
        for number, call in fair:
            if not self._excused(call):
                self.line.saw(number, call)
        self._order(Fault.STALE, "what they were told cannot both be")

    # -- events

    def _match(self) -> None:
        """Find the call of each event, and see that it did what it should."""
        by_request = {call.request: place for place, call in enumerate(self.calls) if call.request}
        nameless: defaultdict[str, list[int]] = defaultdict(list)
        for at, call in enumerate(self.calls):
            if not call.request and call.outcome is Outcome.UNFINISHED:
                nameless[call.agent].append(at)
        before: Status | None = None
        place: int | None
        for number, change in enumerate(self.changes, 1):
            if change.before != state_of(before):
                told = f"the event {change.revision} of {change.id} says that it was {change.before}"
                self.report.add(Fault.EFFECT, change.id, f"{told}, the event before it says {state_of(before)}")
            place = by_request.get(change.request)
            if place is None and (place := self._nameless(nameless[change.by], change, before)) is not None:
                by_request[change.request] = place
            if place is None:
                what = f"{change.transition} of {change.id} by {change.by} (event {change.revision})"
                self.report.add(Fault.UNASKED, change.id, f"nobody asked for {what}")
            else:
                self.made.setdefault(place, []).append(number)
            before = change.status
        for at, made in self.made.items():
            self._effect(self.calls[at], made)

    def _nameless(self, places: list[int], change: Change, before: Status | None) -> int | None:
        """The call of a process that was killed, if it can have made this change. Each is used once."""
        for place in places:
            call = self.calls[place]
            if change.transition in transitions(call.operation):
                made = effect(call.operation, call.args, before)
                if made and made[0] == change.status:
                    places.remove(place)
                    return place
        return None

    def _effect(self, call: Call, made: list[int]) -> None:
        before = self.changes[made[0] - 2].status if made[0] > 1 else None
        expected = effect(call.operation, call.args, before) or ()
        told = [self.changes[number - 1] for number in made]
        revisions = ", ".join(change.revision for change in told)
        if len(made) > max(len(expected), 1):
            self.report.add(Fault.DOUBLE, call.id, f"{call} is in the events {len(made)} times: {revisions}")
            return
        if made[-1] - made[0] != len(made) - 1 or (before, *expected) != (before, *(change.status for change in told)):
            found = " and ".join(f"{change.transition} to {change.status}" for change in told)
            text = f"{call} made of {before}, by the events {revisions}: {found}; it makes {expected}"
            self.report.add(Fault.EFFECT, call.id, text)
        elif any(change.transition not in transitions(call.operation) for change in told):
            self.report.add(Fault.EFFECT, call.id, f"{call} is another operation in the events {revisions}")

    # -- answers

    def _judge(self, call: Call, made: list[int]) -> int | None:
        """Look at what one call was told; the state that it met, where that is known."""
        if call.outcome is Outcome.FAILED:
            self.report.add(Fault.ERROR, call.id, f"{call}: {call.error}")
        if call.outcome in OPEN:
            self.report.applied_late += bool(made)
            self.damaged = self.damaged or (bool(self.losses) and not made)
            return None
        if call.outcome in UNWRITTEN:
            if made:
                self.report.add(Fault.APPLIED, call.id, f"{call} is in the events: {self._revisions(made)}")
            return None
        if made:
            last = self.changes[made[-1] - 1]
            if call.operation in ("remove", "force_remove", "fail_start"):
                if not call.removed:
                    self.report.add(Fault.APPLIED, call.id, f"{call} was told that there was none, but removed it")
            elif (call.revision, call.status) != (last.revision, last.status):
                told = f"was told {call.status} of revision {call.revision}"
                self.report.add(Fault.EFFECT, call.id, f"{call} {told}; its event {last.revision} says {last.status}")
            return None
        return self._unchanged(call)

    def _unchanged(self, call: Call) -> int | None:
        """It succeeded and wrote nothing: a read, or a write that had nothing to do. Or it was lost."""
        if not call.revision:
            if call.removed:
                self._lost(call)
            return None
        number = self.line.place.get(call.revision)
        if number is None:
            if call.operation in ("get", "port_forward"):
                if self.losses.after(call.start):
                    self.report.lost_sights += 1
                    self.damaged = True
                else:
                    self.report.add(Fault.STALE, call.id, f"{call} was told of revision {call.revision}, which is none")
            else:
                self._lost(call)
            return None
        status = self.changes[number - 1].status
        if call.status != status and self.losses.during(call.start, call.end):
            # Two servers were the master, and gave one number to two events.
            self.damaged = True
            if call.operation in ("get", "port_forward"):
                self.report.lost_sights += 1
            else:
                self._lost(call)
            return None
        if call.status != status:
            told = f"was told {call.status} of revision {call.revision}"
            self.report.add(Fault.EFFECT, call.id, f"{call} {told}; its event says {status}")
        elif call.operation != "get" and effect(call.operation, call.args, status) != ():
            if call.operation != "port_forward":
                self._lost(call)
                return None
            self.report.add(Fault.EFFECT, call.id, f"{call} passed in state {state_of(status)}")
        return number

    def _lost(self, call: Call) -> None:
        if self.write_losses.during(call.start, call.end):
            self.report.lost_writes += 1
            self.damaged = True
        else:
            self.report.add(Fault.LOST, call.id, f"{call} was acknowledged and is not in the events")

    # -- time

    def _order(self, fault: Fault, why: str) -> None:
        """Tell the first contradiction; what follows from it would be told again."""
        for number, later, earlier in self.line.conclude():
            text = f"{earlier} ended before {later}; {why}, at event {self.line.revision(number)}"
            self.report.add(fault, self.changes[0].id, text)
            return

    def _refusals(self) -> None:
        for place, call in enumerate(self.calls):
            if call.outcome is Outcome.OK:
                if call.revision or call.removed or place in self.made:
                    continue
                state, refuses = ABSENT, True
            elif call.outcome is Outcome.NOT_FOUND:
                state = ABSENT
                refuses = call.operation == "get" or may_refuse(call.operation, call.args, ABSENT)
            elif call.outcome in (Outcome.EXISTS, Outcome.TRANSITION):
                state = call.state
                refuses = state != ABSENT and may_refuse(call.operation, call.args, state)
            else:
                continue
            if not refuses or not self.line.could_meet_any(state, call.start, call.end):
                if call.operation == "get" or call.outcome is Outcome.OK:
                    self._stale(call, "it was told that there is none")
                else:
                    self._stale(call, f"it was refused because of state {state}", Fault.REFUSAL)

    def _stale(self, call: Call, what: str, fault: Fault = Fault.STALE) -> None:
        if self._excused(call):
            self.report.stale_reads += 1
        else:
            self.report.add(fault, call.id, f"{call}: {what}, which it was at no moment in between")

    def _excused(self, call: Call) -> bool:
        """Whether a call may have met what was lost afterwards, or a server that was not the master any more."""
        return self.losses.during(call.start, call.end) or (self.damaged and self.losses.after(call.start))

    def _revisions(self, made: list[int]) -> str:
        return ", ".join(self.changes[number - 1].revision for number in made)
