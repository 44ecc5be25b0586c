"""The check: what Redis says, held against what really happened. It believes no recorded number before it has found
the same one in a truth log.

A function of the audit and the truth logs, so that a test can change either and must see it found. No I/O: processes,
keys and files that are left over are looked for where they were made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sandbox_redis.audit import Audit
from sandbox_redis.demo.match import Question, match, questions
from sandbox_redis.demo.part import LOST_EXIT
from sandbox_redis.demo.truth import Act, Entry


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, as a sentence, and what contradicts it."""

    sentence: str
    problems: list[str]


@dataclass(slots=True)
class Findings:
    """What was checked, and what it was read from."""

    audit: Audit
    entries: list[Entry]
    """The lines of all truth logs, each log's in order."""
    shared: frozenset[str]
    """The ids of the sandboxes that all agents update, which are left on purpose."""
    killed: frozenset[str]
    """The actors that were killed."""
    questions: list[Question] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def check(audit: Audit, entries: list[Entry], *, shared: Iterable[str], killed: Iterable[str]) -> Findings:
    """Hold a store, in which nobody writes any more, against the truth logs."""
    findings = Findings(audit, entries, frozenset(shared), frozenset(killed))
    findings.checks += [
        _writes(findings),  # first, because it finds the events of the questions
        _updates(findings),
        _pids(findings),
        _exits(findings),
        Check("indexes equal records, and the events replay to the records", audit.problems),
        _left(findings),
    ]
    return findings


def _writes(findings: Findings) -> Check:
    findings.questions, problems = questions(findings.entries)
    problems += match(findings.questions, findings.audit.events, findings.killed)
    in_flight = [question for question in findings.questions if question.answer is None]
    happened = sum(question.event is not None for question in in_flight)
    return Check(
        f"each acknowledged write made one event, and each of {len(findings.audit.events):,} events was asked for once"
        + (f" ({len(in_flight)} in flight at the kill, {happened} of them happened)" if in_flight else ""),
        problems,
    )


def _updates(findings: Findings) -> Check:
    """Each update of a shared sandbox adds one to its exit status: the events count up, and the record ends there."""
    problems = []
    counts = defaultdict(list)
    for event in findings.audit.events:
        if event.transition == "update" and event.sandbox is not None:
            counts[event.id].append(event.sandbox.status.exit_status)
    made: defaultdict[str, int] = defaultdict(int)
    for question in findings.questions:
        made[question.asked.id] += question.asked.operation == "update" and question.event is not None
    for sandbox_id in sorted(findings.shared):
        for expected, count in enumerate(counts[sandbox_id], 1):
            if count != expected:
                problems.append(f"update {expected} of {sandbox_id} made it {count}")
                break
        record = findings.audit.sandboxes.get(sandbox_id)
        if record is None or record.status.exit_status != made[sandbox_id]:
            says = "is gone" if record is None else f"says {record.status.exit_status}"
            problems.append(f"{sandbox_id} {says}, after {made[sandbox_id]} updates that were asked for and made")
    return Check(f"each of {sum(map(len, counts.values())):,} updates counted once", problems)


def _pids(findings: Findings) -> Check:
    """The only pid that a sandbox ever has is that of the process that was started for it."""
    real = {entry.id: entry.pid for entry in findings.entries if entry.act is Act.SPAWNED}
    real |= dict.fromkeys(findings.shared, 0)
    told = [(event.sandbox, f"{event.transition} {event.revision}") for event in findings.audit.events if event.sandbox]
    told += [(sandbox, "the record") for sandbox in findings.audit.sandboxes.values()]
    problems = [
        f"{where} of {sandbox.id[:12]} says pid {sandbox.status.pid}, it was {real.get(sandbox.id, 'never started')}"
        for sandbox, where in told
        if sandbox.status.pid and sandbox.status.pid != real.get(sandbox.id)
    ]
    started = {event.id for event in findings.audit.events if event.transition == "start"}
    problems += [f"{sandbox_id[:12]} was started without a process" for sandbox_id in sorted(started - real.keys())]
    return Check(f"each of {len(started - findings.shared):,} recorded pids was the real one", problems)


def _exits(findings: Findings) -> Check:
    """The first exit that is recorded is what wait() gave the owner, or unknown where the owner was killed; it stays,
    and is what everybody is told who tells an exit."""
    real = {entry.id: entry.exit_status for entry in findings.entries if entry.act is Act.ENDED}
    owners = {entry.id: entry.actor for entry in findings.entries if entry.act is Act.SPAWNED}
    heirs = {entry.id: entry.actor for entry in findings.entries if entry.act is Act.ORPHANED}
    recorded: dict[str, tuple[int, int]] = {}
    problems = []
    lost = 0
    for event in findings.audit.events:
        if event.sandbox is None or not event.sandbox.status.exited_at_ns:
            continue
        told = event.sandbox.status.exited_at_ns, event.sandbox.status.exit_status
        says = f"{event.transition} {event.revision} of {event.id[:12]} says exit status {told[1]}"
        if event.id in recorded:
            if recorded[event.id] != told:
                problems.append(f"{says}, but {recorded[event.id][1]} was recorded before")
            continue
        recorded[event.id] = told
        if event.by == heirs.get(event.id) and owners.get(event.id) in findings.killed:
            lost += 1
            if told[1] != LOST_EXIT:
                problems.append(f"{says}, but nobody can know that")
        elif event.by != owners.get(event.id) or told[1] != real.get(event.id):
            problems.append(f"{says} by {event.by}, it was {real.get(event.id, 'never waited for')}")
    for entry in findings.entries:
        if entry.operation == "exit" and entry.status:
            told = entry.status.exited_at_ns, entry.status.exit_status
            if recorded.get(entry.id) != told:
                problems.append(f"the exit of {entry.id[:12]} was acknowledged to {entry.actor}, but is not recorded")
    return Check(
        f"each of {len(recorded):,} recorded exit statuses was the real one"
        + (f" ({lost} of them {LOST_EXIT}, unknown, because their agent was killed)" if lost else ""),
        problems,
    )


def _left(findings: Findings) -> Check:
    records = findings.audit.sandboxes
    problems = [
        f"{sandbox_id[:12]} is still {sandbox.status.state}"
        for sandbox_id, sandbox in records.items()
        if sandbox_id not in findings.shared
    ]
    problems += [f"{sandbox_id} is gone" for sandbox_id in sorted(findings.shared - records.keys())]
    return Check(f"no record is left but the {len(findings.shared)} that all agents share", problems)
