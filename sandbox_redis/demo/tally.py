"""The tally: what the demo did, in numbers, from the events and the truth logs. It judges nothing (``check.py`` does),
and prints nothing.
"""

from __future__ import annotations

from collections import Counter

from sandbox_redis.demo.check import Findings
from sandbox_redis.demo.match import Question
from sandbox_redis.demo.truth import Act
from sandbox_redis.record import Event


def tally(findings: Findings) -> dict[str, str]:
    """What to print, by its heading."""
    lines = {
        "sandboxes": _sandboxes(findings),
        "writes": _writes(findings),
        "Stop and Exit": _stops(findings),
        "Remove": _removals(findings),
        "updates": _updates(findings),
    }
    return lines | {"taken over": _takeover(findings)} if findings.killed else lines


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _sandboxes(findings: Findings) -> str:
    acts = Counter(entry.act for entry in findings.entries)
    failed = sum(event.transition == "fail_start" for event in findings.audit.events)
    ends = Counter("signal" if e.exit_status > 128 else "exit" for e in findings.entries if e.act is Act.ENDED)
    return (
        f"{_counted(acts[Act.SPAWNED], 'process', 'processes')} ran: {ends['exit']:,} exited,"
        f" {ends['signal']:,} died of a signal; {failed:,} could not be started"
    )


def _writes(findings: Findings) -> str:
    events = findings.audit.events
    seconds = (events[-1].at - events[0].at).total_seconds() if events else 0
    kinds = Counter(event.transition for event in events)
    rate = f"{len(events):,} in {seconds:.1f} s, {len(events) / seconds:,.0f} a second" if seconds else "none"
    return f"{rate}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())


def _asked(findings: Findings, operation: str) -> dict[str, list[Question]]:
    asked: dict[str, list[Question]] = {}
    for question in findings.questions:
        if question.asked.operation == operation:
            asked.setdefault(question.asked.id, []).append(question)
    return asked


def _stops(findings: Findings) -> str:
    """Who came first, where both the controller and the owner told the store that a sandbox does not run any more."""
    raced = _asked(findings, "stop").keys() & _asked(findings, "exit").keys()
    changes: dict[str, list[Event]] = {sandbox_id: [] for sandbox_id in raced}
    for event in findings.audit.events:
        if event.id in raced and event.transition in ("stop", "exit"):
            changes[event.id].append(event)
    first = Counter(events[0].transition for events in changes.values() if events)
    filled = sum(len(events) > 1 for events in changes.values())
    return (
        f"{_counted(len(raced), 'race')}: Stop first {first['stop']:,} times ({filled:,} exits filled in,"
        f" {first['stop'] - filled:,} removed before), Exit first {first['exit']:,}"
    )


def _removals(findings: Findings) -> str:
    raced = [questions for questions in _asked(findings, "remove").values() if len(questions) > 1]
    winners = Counter(q.asked.actor.partition("/")[0] for questions in raced for q in questions if q.event)
    controller = winners.pop("controller", 0)
    return f"{_counted(len(raced), 'race')}: the controller first {controller:,} times, the owner {winners.total():,}"


def _updates(findings: Findings) -> str:
    answers = [entry for entry in findings.entries if entry.act is Act.ANSWERED and entry.operation == "update"]
    writers = Counter(entry.actor for entry in answers)
    again = sum(entry.attempts - 1 for entry in answers)
    return (
        f"{len(answers):,} acknowledged to {_counted(len(writers), 'agent')}, {_counted(again, 'conflict')} found and"
        " tried again"
    )


def _takeover(findings: Findings) -> str:
    orphans = [entry for entry in findings.entries if entry.act is Act.ORPHANED]
    states = Counter(str(orphan.status.state) for orphan in orphans if orphan.status)
    ran = sum(orphan.pid > 0 for orphan in orphans)
    return (
        f"{_counted(len(orphans), 'sandbox', 'sandboxes')} of {', '.join(sorted(findings.killed))}, which was killed:"
        f" {', '.join(f'{count} {state}' for state, count in states.items()) or 'none left'};"
        f" {ran} of their processes still ran, and were ended"
    )
