"""The check of what was told of many sandboxes at once: whoever was there all the time is told exactly once. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from sandbox_redis.soak.history import History, Survey
from sandbox_redis.soak.report import Fault, Losses, Report
from sandbox_redis.soak.timeline import Timeline
from sandbox_redis.states import ABSENT, State

_THERE: Final = tuple(state.value for state in State)


def surveyed(report: Report, losses: Losses, lines: Mapping[str, Timeline], history: History) -> None:
    """What one process was told. While a server may lose data, it may have been told by one that is not the master any
    more."""
    for survey in history.surveys:
        if losses.during(survey.start, survey.end):
            continue
        told = f"{survey.what} by {history.agent}, from {survey.start / 1e9:.6f} to {survey.end / 1e9:.6f} s,"
        if survey.what == "counts":
            _counted(report, lines, survey, told)
        else:
            _listed(report, losses, lines, survey, told)


def _counted(report: Report, lines: Mapping[str, Timeline], survey: Survey, told: str) -> None:
    span = survey.start, survey.end
    most = sum(any(line.could_meet_any(state, *span) for state in _THERE) for line in lines.values())
    least = sum(not line.could_meet_any(ABSENT, *span) for line in lines.values())
    if not least <= survey.total <= most:
        report.add(Fault.SURVEY, "", f"{told} told of {survey.total} sandboxes; there were {least} to {most}")


def _listed(report: Report, losses: Losses, lines: Mapping[str, Timeline], survey: Survey, told: str) -> None:
    span = survey.start, survey.end
    found = dict(survey.found)
    for sandbox_id, times in Counter(each for each, _ in survey.found).items():
        if times > 1:
            report.add(Fault.SURVEY, sandbox_id, f"{told} told of {sandbox_id} {times} times")
    for sandbox_id in survey.asked or lines.keys() | found.keys():
        line = lines.get(sandbox_id)
        revision = found.get(sandbox_id)
        number = line.place.get(revision or "") if line else None
        if revision is None:
            if line and not line.could_meet_any(ABSENT, *span):
                report.add(Fault.SURVEY, sandbox_id, f"{told} did not tell of {sandbox_id}, which was there")
        elif line is None or number is None:
            if losses.after(survey.start):
                report.lost_sights += 1
            else:
                report.add(Fault.SURVEY, sandbox_id, f"{told} told of revision {revision} of {sandbox_id}: it is none")
        elif not line.could_meet(number, *span):
            text = f"{told} told of revision {revision} of {sandbox_id}, which was there at no moment in between"
            report.add(Fault.SURVEY, sandbox_id, text)
