"""Looks after a store: how its servers are, what in it contradicts the contract, and on request mends its indexes. What
is asked of servers stands in ``vitals.py``, how the store is read in ``examine.py``. Nothing here changes a record or
an event.
"""

from __future__ import annotations

import shlex
from typing import Any, Final

from sandbox_redis import judge
from sandbox_redis.diagnosis import diagnose
from sandbox_redis.errors import SchemaError, StoreUnavailableError
from sandbox_redis.examine import Examination, Progress, Suspect
from sandbox_redis.findings import Finding, Report, Severity
from sandbox_redis.in_step import together
from sandbox_redis.keys import Keys, meta
from sandbox_redis.operations import Operations
from sandbox_redis.replay import text
from sandbox_redis.vitals import servers, vitals
from sandbox_redis.wire import Op, ServerError

TOGETHER: Final = 200  # sandboxes mended in one round trip


def doctor(
    operations: Operations, *, repair: bool = False, progress: Progress | None = None, timeout: float | None = None
) -> Op[Report]:
    """Look at the servers and at the whole store, and say what is wrong and what to do about it.

    It is exact also while agents write: what looks wrong is looked at again, at one moment, before it is reported. It
    reads every record and every event, and holds none of them for long: it takes less than 1 KB for each sandbox.

    Args:
        repair: put each sandbox into exactly the indexes that its record belongs in, and take out entries that have no
            record, one script for each; safe while agents write. Records and events are never changed.
        progress: called with how many keys have been read, and how many there are.
        timeout: seconds for each round trip; the store's own `timeout` when None.

    Returns:
        The report. What the user may not ask is a note in it, or a warning where the store could not be read.

    Raises:
        StoreUnavailableError: the server does not answer, or does not permit this user to mend what is damaged.
    """
    layout, findings = Keys(operations.prefix, 1), []
    found: Examination | None = None
    mended: list[str] = []
    incomplete = False
    try:
        layout = yield from operations.layout(timeout=timeout)
    except SchemaError as error:
        name = meta(operations.prefix)
        advice = f"agents cannot work until it is right: look at it with redis-cli HGETALL {shlex.quote(name)}"
        findings.append(judge.problem(name, str(error), advice))
    else:
        found = Examination(operations, layout, timeout, progress=progress)
    of_each = yield from servers(operations, layout, timeout=timeout)
    findings = [*(yield from _servers(operations, layout, of_each, timeout)), *findings]
    if found is not None:
        try:
            yield from found.run(of_each)
        except StoreUnavailableError as error:
            if error.code != "NOPERM":
                raise
            incomplete = True
            advice = "ask as a user who may send SCAN, ZSCAN, PTTL and what agents send"
            missing = f"not all of the store was checked: {error}"
            findings.append(Finding(Severity.WARNING, "store", operations.prefix, missing, advice))
        if repair:
            mended = yield from _repair(operations, layout, found, timeout)
        findings += found.findings.values()
        if not found.findings and not incomplete:
            findings.append(_whole(operations, found))
    numbers = (found.sandboxes, found.events) if found is not None else (0, 0)
    return Report(operations.exchange.address, operations.prefix, *numbers, tuple(findings), tuple(mended))


def _whole(operations: Operations, found: Examination) -> Finding:
    if not found.layout.laid_out:
        words = f"there is no store {operations.prefix} here yet: whoever writes first makes it"
        return Finding(Severity.NOTE, "store", operations.prefix, words)
    words = f"{found.sandboxes:,} sandboxes and {found.events:,} events, and all of it fits together"
    return Finding(Severity.OK, "store", operations.prefix, words)


def _servers(operations: Operations, layout: Keys, partitions: list[int], timeout: float | None) -> Op[list[Finding]]:
    findings: dict[str, list[Finding]] = {}
    for partition in partitions:
        said = yield from vitals(operations, layout, partition, timeout=timeout)
        name = f"{said.run_id[:8]}:{said.info.get('tcp_port', '')}" if len(partitions) > 1 and said.run_id else ""
        findings.setdefault(said.run_id, list(diagnose(said, name)))
        if not said.run_id:
            break  # nobody says which server it is: they would all say the same
    return [finding for each in findings.values() for finding in each]


def _repair(operations: Operations, layout: Keys, found: Examination, timeout: float | None) -> Op[list[str]]:
    """Mend what is damaged, and take what is mended out of the findings; says what was done."""
    done: list[str] = []
    for kind in ("sandbox", "node"):  # which nodes are used depends on the sandboxes
        places = sorted(place for place in found.damaged if place[1].kind == kind)
        for at in range(0, len(places), TOGETHER):
            some = places[at : at + TOGETHER]
            for place, words in zip(
                some, (yield from together(_mend(operations, layout, *each, timeout) for each in some)), strict=True
            ):
                if words is None:
                    continue  # a key of another type is in the way, which is among the findings
                done += words
                for finding in found.damaged[place]:
                    del found.findings[finding.message]
    return done


def _mend(
    operations: Operations, layout: Keys, partition: int, suspect: Suspect, timeout: float | None
) -> Op[list[str] | None]:
    """Mend one sandbox or node; says what was done, or None when a key of another type is in the way."""
    record = layout.status_prefix(partition).encode() + suspect.id  # an id may be anything, as bytes
    names: tuple[Any, ...] = (record, *layout.states(partition), layout.nodes(partition))
    others = [suspect.node] if suspect.node or suspect.kind == "node" else []
    args = (suspect.kind, suspect.id, layout.node(partition, ""), *others)
    reply = yield from operations.exchange.run("repair", names, args, operations.deadline(timeout))
    if isinstance(reply, ServerError):
        return None
    _, added, removed = reply
    changes = (("put into", added), ("taken out of", removed))
    return [f"{text(who)} {words} {text(index)}" for words, flat in changes for index, who in sorted(_pairs(flat))]


def _pairs(flat: list[bytes]) -> zip[tuple[bytes, bytes]]:
    """The index keys and members of a flat list."""
    return zip(flat[::2], flat[1::2], strict=True)
