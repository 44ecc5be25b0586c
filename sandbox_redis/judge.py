"""What contradicts the contract in the keys of one partition, told from what was read of them at one moment: functions
of data. Who reads, and who looks again before anything is said, stands in ``examine.py``. No I/O.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from sandbox_redis import checks
from sandbox_redis.findings import Finding, Severity
from sandbox_redis.keys import Keys, meta
from sandbox_redis.record import pairs, sandbox_from_flat
from sandbox_redis.replay import Replay, text
from sandbox_redis.states import State

STATES: Final = tuple(state.value.encode() for state in State)
_REPAIR: Final = "doctor --repair mends it"
_BY_HAND: Final = "it was changed by hand: find out what runs, then let its agent update it, or stop it and remove it"
_LOST: Final = "its record was deleted by hand: if it still runs, load it again"
_UNREADABLE: Final = "find out what runs, then stop it and remove it: sandbox-redis stop, sandbox-redis rm"


class View(NamedTuple):
    """What a partition holds of one sandbox."""

    record: list[bytes] | None
    """None when its key is of another type; empty when there is none."""
    states: tuple[bytes | None, ...]
    """Its scores in the indexes of the states."""
    on_node: bytes | None
    """Its score in the index of its own node."""
    asked: bytes | None
    """Its score in the index of the node that was asked for."""
    node_known: bytes | None
    """The score of its own node in the set of nodes."""
    on_own: int
    """How many sandboxes the index of its own node has."""


def view(reply: list[Any]) -> View:
    """What the script ``examine`` tells of a sandbox."""
    record, *states, on_node, asked, node_known, on_own = reply
    return View(record, tuple(states), on_node, asked, node_known, on_own or 0)


def problem(subject: str, message: str, advice: str, *, repairable: bool = False) -> Finding:
    """Something in a store that contradicts the contract."""
    return Finding(Severity.PROBLEM, "store", subject, message, advice, repairable)


def state_of(record: Mapping[bytes, bytes]) -> bytes:
    """The state whose index a record belongs in. What is none of the four counts as UNKNOWN, as in the scripts."""
    state = record.get(b"state", b"")
    return state if state in STATES else b"UNKNOWN"


def misplaced(layout: Keys, partition: int, raw: bytes) -> Finding | None:
    """What is wrong with the key of a record."""
    key, name = layout.status_prefix(partition) + text(raw), text(raw)
    if not checks.is_id(name):
        return problem(key, f"{key} is no key of a sandbox: {name!r} is no id", f"{_look(key)}, then delete it")
    if (right := layout.partition(name)) != partition:
        advice = f"nobody finds it there: {_look(key)}, load it again, and delete this key"
        return problem(key, f"{key} is in the wrong partition: {right} is right", advice)
    return None


def sandbox(
    layout: Keys, partition: int, raw: bytes, asked: bytes, seen: View, replay: Replay | None
) -> Iterator[Finding]:
    """All that is wrong with one sandbox but for its key; `asked` is a node whose index may have it, or empty; `replay`
    is None where there are no events."""
    name, key = text(raw) or "''", layout.status_prefix(partition) + text(raw)
    if seen.record is None:
        return  # whoever read the key has said so
    record = pairs(seen.record)
    if record and (trouble := sandbox_from_flat(name, key, seen.record).problem):
        yield problem(key, trouble, _UNREADABLE)
    if raw and replay is not None and (difference := replay.differs(raw, record)):
        yield problem(key, difference, _BY_HAND if record else _LOST)
    for state, score in zip(STATES, seen.states, strict=True):
        index = layout.state(partition, state.decode())
        yield from _entry(index, name, score, belongs=bool(record) and state == state_of(record))
    own = record.get(b"node", b"")
    if own:
        yield from _entry(layout.node(partition, text(own)), name, seen.on_node, belongs=True)
        yield from node(layout, partition, own, seen.node_known, max(1, seen.on_own))
    if asked and asked != own:
        yield from _entry(layout.node(partition, text(asked)), name, seen.asked, belongs=False)


def node(layout: Keys, partition: int, raw: bytes, score: bytes | None, number: int) -> Iterator[Finding]:
    """What is wrong with one node in the set of nodes; `number` is how many sandboxes its index has."""
    return _entry(layout.nodes(partition), text(raw) or "''", score, belongs=number > 0, right=number)


def _entry(index: str, name: str, score: bytes | None, *, belongs: bool, right: int = 0) -> Iterator[Finding]:
    if belongs and score is None:
        yield problem(index, f"the index {index} lacks {name}", _REPAIR, repairable=True)
    elif not belongs and score is not None:
        yield problem(index, f"the index {index} has {name} without reason", _REPAIR, repairable=True)
    elif score is not None and float(score) != right:
        wrong = f"the index {index} has {name} with the score {text(score)}, and {right} is right"
        yield problem(index, wrong, _REPAIR, repairable=True)


def wrong_type(key: str, wanted: str) -> Finding:
    """A key of another type than the contract has for it."""
    return problem(key, f"{key} is not a {wanted}", f"{_look(key)}, then rename or delete it")


def expiring(key: str, milliseconds: int) -> Finding:
    """A key that would go away by itself."""
    wrong = f"{key} has a time to live: it will be gone in {max(1, milliseconds // 1000)} s"
    return problem(key, wrong, f"redis-cli PERSIST {shlex.quote(key)}, and find out who set it")


def meta_gone(layout: Keys, maxlen: int) -> Finding:
    """A store in use whose layout is not there any more."""
    name = meta(layout.prefix)
    wrong = f"{name}, which says how the store is laid out, is not there any more"
    fields = f"schema 1 partitions {layout.partitions} events_maxlen {maxlen}"
    return problem(name, wrong, f"before any other agent writes: redis-cli HSET {shlex.quote(name)} {fields}")


def strangers(layout: Keys, keys: set[bytes], *, laid_out: bool) -> Iterator[Finding]:
    """What is wrong with keys that begin as the store's do, and are none of its."""
    name = meta(layout.prefix)
    start = re.escape(layout.prefix)
    other_store = re.compile(rf"{start}:.+:(meta|\{{\d+\}}:.*)".encode(), re.DOTALL)  # its prefix begins with ours
    inside = re.compile(rf"{start}:\{{(\d+)\}}:(?:status|state|node|nodes|events)(?::.*)?".encode(), re.DOTALL)
    lost: dict[int, list[bytes]] = {}
    for raw in sorted(keys):
        found = inside.fullmatch(raw)
        if found and (not laid_out or int(found[1]) >= layout.partitions):
            lost.setdefault(int(found[1]), []).append(raw)
        elif found or not other_store.fullmatch(raw):
            key = text(raw)
            advice = f"{_look(key)}; rename it, or delete it if nobody needs it"
            yield Finding(Severity.WARNING, "store", key, f"{key} is none of the store's keys", advice)
    for partition, some in lost.items():
        example = f"{len(some):,} keys, {text(some[0])} among them,"
        if laid_out:
            wrong = f"{example} are in partition {partition}, and the store has {layout.partitions}"
            advice = f"if {name} was changed, restore its partitions from a backup; else look at them, then delete them"
        else:
            wrong = f"{example} are there, and {name}, which says how the store is laid out, is not"
            advice = f"restore {name} from a backup, before any agent writes"
        yield problem(name, wrong, advice)


def _look(key: str) -> str:
    return f"look at it with redis-cli TYPE {shlex.quote(key)}"
