"""What a check of a server or a store comes to, as data. Who finds it stands in ``diagnosis.py`` and ``judge.py``, how
it is shown in ``cli/doctor.py``. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """How much it matters."""

    OK = "ok"
    """It was looked at, and is well."""
    NOTE = "note"
    """Good to know; nothing is wrong."""
    WARNING = "warning"
    """Nothing contradicts the contract, but something may go wrong some day."""
    PROBLEM = "problem"
    """It contradicts the contract, or will lose data or refuse writes."""

    @property
    def rank(self) -> int:
        """The more it matters the higher."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    severity: Severity
    area: str
    """``server`` or ``store``."""
    subject: str
    """What it is about: a key of the store, or what was asked of a server."""
    message: str
    """What is so, or what is wrong."""
    advice: str = ""
    """What to do about it; empty when nothing is to be done."""
    repairable: bool = False
    """Whether a repair mends it; what is not repairable only a person can decide."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a store and its servers."""

    address: str
    """Of the server, without credentials."""
    prefix: str
    """What each key of the store begins with."""
    sandboxes: int
    """How many records were read."""
    events: int
    """How many events were read."""
    findings: tuple[Finding, ...]
    """Servers first; those that a repair has mended are not among them any more."""
    mended: tuple[str, ...] = field(default=())
    """What a repair has done."""

    @property
    def worst(self) -> Severity:
        """The highest severity among the findings."""
        return max((finding.severity for finding in self.findings), key=lambda each: each.rank, default=Severity.OK)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)
