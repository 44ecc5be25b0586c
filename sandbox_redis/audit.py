"""Reads a whole store into memory, and says what does not fit together: the contract, held against what is there. It
changes nothing. How it is read and judged stands in ``examine.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox_redis.examine import Examination
from sandbox_redis.findings import Finding, Severity
from sandbox_redis.operations import Operations
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.vitals import servers
from sandbox_redis.wire import Op


@dataclass(slots=True)
class Audit:
    """What is in a store."""

    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    """In order within each partition."""
    problems: list[str] = field(default_factory=list)
    """What contradicts the contract; empty when all is well. What it says is so also while agents write."""
    findings: list[Finding] = field(default_factory=list)
    """The same as data, with what to do; and warnings."""


def audit(operations: Operations, *, timeout: float | None = None) -> Op[Audit]:
    """Read everything, and hold records, indexes and events against each other.

    It keeps all sandboxes and events in memory; `doctor` does not. While agents write, each sandbox is as it was at
    some moment of the reading.

    Args:
        operations: of the store.
        timeout: seconds for each round trip; the store's own `timeout` when None.

    Raises:
        SchemaError, StoreUnavailableError: the store cannot be read.
    """
    result = Audit()

    def keep(item: Sandbox | Event) -> None:
        if isinstance(item, Sandbox):
            result.sandboxes[item.id] = item
        else:
            result.events.append(item)

    layout = yield from operations.layout(timeout=timeout)
    found = Examination(operations, layout, timeout, keep=keep)
    yield from found.run((yield from servers(operations, layout, timeout=timeout)))
    result.findings = list(found.findings.values())
    result.problems = [each.message for each in result.findings if each.severity is Severity.PROBLEM]
    return result
