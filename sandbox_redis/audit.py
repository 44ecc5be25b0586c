"""Reads a whole store and says what does not fit together: the contract, held against what is there. It changes
nothing.

It reads key by key, so it is exact only while nobody writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sandbox_redis.keys import Keys
from sandbox_redis.operations import Operations
from sandbox_redis.record import Event, Sandbox, event_from_fields, pairs, sandbox_from_fields
from sandbox_redis.states import MACHINE
from sandbox_redis.wire import Op

_PAGE = 1000  # keys or events in one reply
_STATUS = (b"state", b"pid", b"created_at", b"exited_at", b"exit_status", b"node", b"epoch", b"request")


@dataclass(slots=True)
class Audit:
    """What is in a store."""

    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    """In order within each partition."""
    problems: list[str] = field(default_factory=list)
    """What contradicts the contract; empty when all is well."""


def audit(operations: Operations, *, timeout: float | None = None) -> Op[Audit]:
    """Read everything, and hold records, indexes and events against each other.

    Args:
        operations: of the store.
        timeout: seconds for each round trip; the store's own `timeout` when None.

    Raises:
        SchemaError, StoreUnavailableError: the store cannot be read.
    """
    layout = yield from operations.layout(timeout=timeout)
    result = Audit()
    for partition in range(layout.partitions):
        yield from _partition(operations, layout, partition, result, timeout)
    return result


def _partition(operations: Operations, layout: Keys, partition: int, result: Audit, timeout: float | None) -> Op[None]:
    def ask(*commands: tuple[Any, ...]) -> Op[list[Any]]:
        return operations.read(layout.events(partition), commands, timeout=timeout)

    def scan(start: str) -> Op[list[bytes]]:
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            command = ("SCAN", cursor, "MATCH", layout.pattern(start), "COUNT", _PAGE)
            # It names no key, so that only the other command tells where the partition is by now.
            (cursor, page), _ = yield from ask(command, ("EXISTS", layout.events(partition)))
            found.update(page)
            if cursor == b"0":
                return sorted(found)

    head = layout.status_prefix(partition)
    records: dict[str, dict[bytes, bytes]] = {}
    for key in (yield from scan(head)):
        (reply,) = yield from ask(("HGETALL", key))
        sandbox_id = _text(key).removeprefix(head)
        records[sandbox_id] = pairs(reply) if isinstance(reply, list) else reply
        result.sandboxes[sandbox_id] = sandbox_from_fields(sandbox_id, _text(key), records[sandbox_id])
        if layout.partition(sandbox_id) != partition:
            result.problems.append(f"{_text(key)} is in the wrong partition: {layout.partition(sandbox_id)} is right")

    for name in (b"state", b"node"):
        indexed: set[tuple[str, str]] = set()
        start = layout.state(partition, "") if name == b"state" else layout.node(partition, "")
        for key in (yield from scan(start)):
            (members,) = yield from ask(("ZRANGE", key, 0, -1))
            indexed |= {(_text(member), _text(key).removeprefix(start)) for member in members}
        expected = {(i, _text(fields[name])) for i, fields in records.items() if fields.get(name)}
        result.problems += [f"the index {start}{value} lacks {i}" for i, value in sorted(expected - indexed)]
        result.problems += [
            f"the index {start}{value} has {i} without reason" for i, value in sorted(indexed - expected)
        ]

    (members,) = yield from ask(("ZRANGE", layout.nodes(partition), 0, -1))
    named, used = {_text(member) for member in members}, {_text(f[b"node"]) for f in records.values() if f.get(b"node")}
    result.problems += [f"{layout.nodes(partition)} lacks {node}" for node in sorted(used - named)]
    result.problems += [f"{layout.nodes(partition)} has {node} without reason" for node in sorted(named - used)]

    entries: list[tuple[bytes, list[bytes]]] = []
    after = "-"
    while True:
        (page,) = yield from ask(("XRANGE", layout.events(partition), after, "+", "COUNT", _PAGE))
        entries += page
        if len(page) < _PAGE:
            break
        after = f"({page[-1][0].decode()}"
    events = [(revision.decode(), pairs(flat)) for revision, flat in entries]
    result.events += [event_from_fields(revision, layout.events(partition), fields) for revision, fields in events]
    result.problems += _replay(records, events)


def _replay(records: dict[str, dict[bytes, bytes]], events: list[tuple[str, dict[bytes, bytes]]]) -> Iterator[str]:
    """Play the events; what they say is what the records must be."""
    last: dict[str, tuple[str, dict[bytes, bytes]]] = {}
    for revision, fields in events:
        sandbox_id = _text(fields.get(b"id", b""))
        transition = _text(fields.get(b"transition", b""))
        before = _text(fields.get(b"before", b"absent"))
        after = _text(fields.get(b"state", b"absent"))
        if sandbox_id in last:
            known = _text(last[sandbox_id][1].get(b"state", b"absent"))
            if known != before:
                yield f"event {revision} of {sandbox_id} says it was {before}, the event before it says {known}"
        # A forced removal tells what it did as a stop and a remove.
        operations = ("remove", "force_remove") if transition == "remove" else (transition,)
        allowed = {state for operation in operations for state in MACHINE.get(operation, {}).get(before, ())}
        if after not in allowed:
            yield f"event {revision} of {sandbox_id}: {transition} cannot lead from {before} to {after}"
        last[sandbox_id] = revision, fields
    for sandbox_id, (revision, fields) in last.items():
        record = records.get(sandbox_id)
        if (record is None) != (b"state" not in fields):
            yield f"{sandbox_id} is {'absent' if record is None else 'there'}, its last event {revision} says otherwise"
        elif record is not None:
            differing = [name.decode() for name in _STATUS if record.get(name) != fields.get(name)]
            if record.get(b"revision") != revision.encode():
                differing.append("revision")
            if differing:
                yield f"{sandbox_id} differs from its last event {revision} in {', '.join(differing)}"
    oldest = _place(events[0][0]) if events else (0, 0)
    for sandbox_id, record in records.items():
        # What was written before the oldest event has lost its own by trimming.
        if sandbox_id not in last and _place(_text(record.get(b"revision", b""))) >= oldest:
            yield f"{sandbox_id} has no event"


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _place(revision: str) -> tuple[int, int]:
    """Where a revision stands in its stream; at the very beginning when it cannot be read."""
    ms, _, seq = revision.partition("-")
    return (int(ms), int(seq)) if ms.isdigit() and seq.isdigit() else (0, 0)
