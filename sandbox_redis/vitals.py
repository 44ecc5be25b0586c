"""Asks a store's servers how they are, and goes on where a question is forbidden. What the answers mean stands in
``diagnosis.py``. No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sandbox_redis.deadline import Deadline
from sandbox_redis.exchange import evalsha
from sandbox_redis.keys import Keys
from sandbox_redis.operations import Operations
from sandbox_redis.record import pairs
from sandbox_redis.wire import TRANSIENT, Command, Failure, Op, Send, ServerError

PINGS: Final = 7
SETTINGS: Final = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
READS: Final = (
    *("EVALSHA", "HGETALL", "HMGET", "HGET", "EXISTS", "TYPE", "ZCARD", "ZRANGE", "ZSCORE"),
    *("XLEN", "XRANGE", "XREVRANGE", "XREAD"),
)
WRITES: Final = ("HSET", "HDEL", "DEL", "ZADD", "ZREM", "XADD", "WATCH", "UNWATCH", "MULTI", "EXEC")
HELPERS: Final = ("SCRIPT LOAD", "CLIENT KILL")
_KEYLESS: Final = frozenset({"UNWATCH", "MULTI", "EXEC"})


@dataclass(slots=True)
class Vitals:
    """What one server says of itself."""

    run_id: str = ""
    """Empty when it does not say."""
    info: dict[str, str] = field(default_factory=dict)
    """INFO; empty when it is forbidden."""
    config: dict[str, str] = field(default_factory=dict)
    """The `SETTINGS` that CONFIG GET told."""
    cluster: dict[str, str] = field(default_factory=dict)
    """CLUSTER INFO; empty on a server that is in none."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """What was asked in vain, and why."""
    user: str = ""
    """Empty when it may not ask."""
    forbidden: tuple[str, ...] | None = ()
    """The commands of `READS`, `WRITES` and `HELPERS` that the user may not send; None when the server cannot tell."""
    offset: float = 0.0
    """Seconds by which its clock is ahead of ours."""
    round_trip: float = 0.0
    """Seconds; the median of a few."""


def servers(operations: Operations, layout: Keys, *, timeout: float | None = None) -> Op[list[int]]:
    """Partitions, one of each server; of some server more than one where nobody says which server it is."""
    if layout.partitions == 1 or not operations.split:
        return [0]
    seen: dict[str, int] = {}
    for partition in range(layout.partitions):
        commands = (("INFO", "server"),)
        (reply,) = yield from _ask(operations, layout.events(partition), commands, operations.deadline(timeout))
        seen.setdefault(_lines(reply).get("run_id") or str(partition), partition)
    return list(seen.values())


def vitals(operations: Operations, layout: Keys, partition: int, *, timeout: float | None = None) -> Op[Vitals]:
    """Ask the server of a partition.

    Raises:
        StoreUnavailableError: it does not answer.
    """
    found = Vitals()
    key = layout.events(partition)
    deadline = operations.deadline(timeout)
    asked: list[Command] = [("INFO",), ("ACL", "WHOAMI"), *(("CONFIG", "GET", name) for name in SETTINGS)]
    info, user, *settings = yield from _ask(operations, key, tuple(asked), deadline)
    found.info = _lines(info)
    found.run_id = found.info.get("run_id", "")
    if isinstance(info, ServerError):
        found.unanswered["INFO"] = info.message
    if isinstance(user, bytes):
        found.user = user.decode(errors="replace")
    for reply in settings:
        if isinstance(reply, ServerError):
            found.unanswered["CONFIG GET"] = reply.message
        else:
            found.config |= {name.decode(): value.decode(errors="replace") for name, value in pairs(reply).items()}
    if found.info.get("cluster_enabled") == "1":
        (cluster,) = yield from _ask(operations, key, (("CLUSTER", "INFO"),), deadline)
        found.cluster = _lines(cluster)
        if isinstance(cluster, ServerError):
            found.unanswered["CLUSTER INFO"] = cluster.message
    found.forbidden = yield from _forbidden(operations, layout, partition, deadline)
    trips = []
    for _ in range(PINGS):
        began, before = time.time(), time.perf_counter()
        (now,) = yield from _ask(operations, key, (("TIME",),), deadline)
        trips.append((time.perf_counter() - before, began, now))
    found.round_trip = sorted(trip for trip, _, _ in trips)[PINGS // 2]
    trip, began, now = min(trips, key=lambda each: each[0])  # the quickest says most exactly when it was
    if isinstance(now, ServerError):
        found.unanswered["TIME"] = now.message
    else:
        ahead = int(now[0]) + int(now[1]) / 1e6 - began - trip / 2
        found.offset = 0.0 if abs(ahead) <= trip / 2 else ahead
    return found


def _forbidden(operations: Operations, layout: Keys, partition: int, deadline: Deadline) -> Op[tuple[str, ...] | None]:
    """Ask by a script, which any user may who can use a store at all; nothing is tried out."""
    names = (*READS, *WRITES, *HELPERS)
    record, events, index = (
        layout.status_prefix(partition) + "doctor",
        layout.events(partition),
        layout.nodes(partition),
    )
    forms: Mapping[str, tuple[Any, ...]] = {
        "EVALSHA": ("0" * 40, 1, record),
        "HMGET": (record, "state"),
        "HGET": (record, "state"),
        "HSET": (record, "state", "INIT"),
        "HDEL": (record, "state"),
        "XADD": (events, "*", "id", "doctor"),
        "XRANGE": (events, "-", "+"),
        "XREVRANGE": (events, "+", "-"),
        "XLEN": (events,),
        "XREAD": ("STREAMS", events, "0"),
        "ZCARD": (index,),
        "ZRANGE": (index, 0, -1),
        "ZSCORE": (index, "doctor"),
        "ZADD": (index, 0, "doctor"),
        "ZREM": (index, "doctor"),
        "SCRIPT LOAD": ("return 1",),
        "CLIENT KILL": ("ID", 0),
    }
    args: list[Any] = []
    for name in names:
        words = (*name.split(), *forms.get(name, () if name in _KEYLESS else (record,)))
        args += (len(words), *words)
    call = evalsha("rights", (record,), tuple(args))
    (reply,) = yield from _ask(operations, record, (call,), deadline)
    if isinstance(reply, ServerError) and reply.code == "NOSCRIPT":
        try:
            yield from operations.exchange.supply("rights", record, deadline)
        except Failure as failure:
            yield from operations.exchange.again(deadline, failure)
        (reply,) = yield from _ask(operations, record, (call,), deadline)
    if isinstance(reply, ServerError):
        return ("EVALSHA",) if reply.code == "NOPERM" else None
    return tuple(names[place - 1] for place in reply[1]) if reply[0] == b"OK" else None


def _ask(operations: Operations, key: str, commands: tuple[Command, ...], deadline: Deadline) -> Op[list[Any]]:
    """As `Exchange.ask`, but what is refused for good is a reply."""
    while True:
        try:
            replies: list[Any] = yield Send(key, commands, deadline.share())
        except Failure as failure:
            yield from operations.exchange.again(deadline, failure)
            continue
        busy = next((each for each in replies if isinstance(each, ServerError) and each.code in TRANSIENT), None)
        if busy is None:
            return replies
        yield from operations.exchange.again(deadline, busy)


def _lines(reply: Any) -> dict[str, str]:
    """What INFO and CLUSTER INFO tell; nothing of an error."""
    if not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
