"""The command that looks after a store, and how it shows what was found. What is looked at stands in
``sandbox_redis/doctor.py``. A docstring is its command's help.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Final

import typer

from sandbox_redis.cli import shape, show, text
from sandbox_redis.cli.options import Form, Where
from sandbox_redis.cli.statuses import ExitStatus
from sandbox_redis.findings import Finding, Report, Severity

SHOWN: Final = 50  # findings of one severity in one place; --json has all
BIG: Final = 20_000  # keys, which take about a second
_REDRAWN: Final = 0.1  # seconds between two words of progress
_STYLES: Final[dict[str, str]] = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "bold red",
}


def doctor(
    where: Where,
    form: Form,
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Mend the indexes; records and events stay.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 where there are warnings, too.")] = False,
) -> None:
    """Check the server and the whole store, and say what to do.

    Each record is held against the indexes and the events, also while agents write. It ends with 1 when there are
    problems.

    With --repair, sandboxes are put into the indexes that their records belong in, and entries without a record are
    taken out; one at a time, and safely while agents write. What is left only a person can decide.
    """
    with where.store() as store, _progress() as progress:
        report = store.doctor(repair=repair, progress=progress)
    if form.json:
        shape.write(asdict(report) | {"worst": report.worst})
    else:
        _show(report)
    limit = Severity.WARNING if strict else Severity.PROBLEM
    if report.worst.rank >= limit.rank:
        raise typer.Exit(ExitStatus.REFUSED)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Says how far it is, on a terminal, where it takes long."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    shown = 0.0

    def say(read: int, keys: int) -> None:
        nonlocal shown
        if keys >= BIG and time.monotonic() - shown > _REDRAWN:
            shown = time.monotonic()
            with suppress(OSError):
                print(f"\r{read:,} of {keys:,} keys", end="", file=sys.stderr, flush=True)

    try:
        yield say
    finally:
        if shown:
            with suppress(OSError):
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _show(report: Report) -> None:
    line = _printer()
    for area, name in (("server", report.address), ("store", report.prefix)):
        found = [each for each in report.findings if each.area == area]
        line(f"{area} {name}", "bold")
        for severity in Severity:
            some = [each for each in found if each.severity is severity]
            for finding in some[:SHOWN]:
                _one(line, finding)
            if len(some) > SHOWN:
                line(f"  {'':7}  and {len(some) - SHOWN:,} more; --json has all", _STYLES[severity])
    if report.mended:
        line("mended", "bold")
        for words in report.mended[:SHOWN]:
            line(f"  {text.visible(words)}")
        if len(report.mended) > SHOWN:
            line(f"  and {len(report.mended) - SHOWN:,} more; --json has all")
    line(_summary(report), "bold")


def _one(line: Callable[..., None], finding: Finding) -> None:
    subject = f"{finding.subject}: " if finding.area == "server" else ""
    words = text.visible(f"{subject}{finding.message}")
    line(f"  {finding.severity:7}  {words}", _STYLES[finding.severity], len(finding.severity) + 2)
    if finding.advice:
        line(f"  {'':7}  -> {text.visible(finding.advice)}")


def _summary(report: Report) -> str:
    problems, warnings = len(report.of(Severity.PROBLEM)), len(report.of(Severity.WARNING))
    parts = [_number(problems, "problem")] * bool(problems) + [_number(warnings, "warning")] * bool(warnings)
    words = ", ".join(parts) or "all is well"
    if mendable := sum(finding.repairable for finding in report.findings):
        words += f"; doctor --repair mends {mendable:,} of them"
    elif report.mended:
        words += f"; {len(report.mended):,} mended"
    return words


def _number(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _printer() -> Callable[..., None]:
    """Prints one line, on a terminal in some style, as far as `width`; it is never broken by us."""
    out = show.console()

    def line(words: str, style: str = "", width: int | None = None) -> None:
        if not out.is_terminal:
            print(words)
            return
        from rich.text import Text

        styled = Text(words)
        styled.stylize(style, 0, width)
        out.print(styled, soft_wrap=True)

    return line
