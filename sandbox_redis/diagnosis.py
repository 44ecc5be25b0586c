"""What the answers of a server mean for a store: what is well, what may go wrong, and what to do about it. Functions of
data; who asks stands in ``vitals.py``. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sandbox_redis.findings import Finding, Severity
from sandbox_redis.vitals import READS, WRITES, Vitals

VERSION: Final = (6, 2)
"""The oldest Redis that has what the scripts use."""
OFFSET_MAX: Final = 1.0  # seconds; ages and times are read by people
ROUND_TRIP_MAX: Final = 0.05  # seconds; an update then takes longer than its first pauses
LAG_MAX: Final = 10  # seconds since a replica was last heard of; it says so each second
FULL: Final = 0.9  # of maxmemory
SLOTS: Final = "16384"

OK, NOTE, WARNING, PROBLEM = Severity


def diagnose(vitals: Vitals, name: str = "") -> Iterator[Finding]:
    """Each thing that was looked at on one server; `name` is it where there are several."""
    for severity, subject, message, *advice in _all(vitals):
        yield Finding(severity, "server", f"{name} {subject}".lstrip(), message, "".join(advice))


Told = tuple[Severity, str, str] | tuple[Severity, str, str, str]


def _all(vitals: Vitals) -> Iterator[Told]:
    for question, reason in vitals.unanswered.items():
        left_out = f"{question} was refused, so what it tells was not checked ({reason.rstrip(' :')})"
        yield NOTE, question, left_out, f"ask as a user who may: {_who(vitals)} cannot"
    if vitals.info:
        yield from _version(vitals)
    yield from _persistence(vitals)
    yield from _memory(vitals)
    if vitals.info:
        yield from _replication(vitals)
    yield from _cluster(vitals)
    yield from _rights(vitals)
    yield from _clock(vitals)


def _version(vitals: Vitals) -> Iterator[Told]:
    info = vitals.info
    said = info.get("redis_version", "")
    known = tuple(map(int, re.findall(r"\d+", said)[:2]))
    words = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {said}"
    if known < VERSION:
        yield PROBLEM, "version", f"{words} is too old: scripts use what came with 6.2", "upgrade the server"
    else:
        yield OK, "version", words


def _persistence(vitals: Vitals) -> Iterator[Told]:
    info, config = vitals.info, vitals.config
    if info.get("loading") == "1":
        yield WARNING, "persistence", "it is loading its data", "wait until it has"
    append = config.get("appendonly", {"1": "yes", "0": "no"}.get(info.get("aof_enabled", ""), ""))
    save, fsync = config.get("save"), config.get("appendfsync")
    if append == "yes":
        if fsync == "no":
            advice = "CONFIG SET appendfsync everysec, and in its configuration file"
            yield WARNING, "persistence", "appendfsync is no: a crash of the host may lose half a minute", advice
        else:
            losing = {"always": ", a crash loses nothing", "everysec": ", a crash may lose the last seconds"}
            yield OK, "persistence", f"append-only file{losing.get(fsync or '', '')}"
    elif append == "no":
        advice = "CONFIG SET appendonly yes, and in its configuration file"
        if save == "":
            yield WARNING, "persistence", "none: a restart of the server loses every sandbox", advice
        elif save is None:
            yield WARNING, "persistence", "no append-only file: a crash loses what is younger than a snapshot", advice
        else:
            yield WARNING, "persistence", f"snapshots only ({save}): a crash loses what is younger", advice
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok" and (append == "yes" or what == "snapshot"):
            yield (
                PROBLEM,
                "persistence",
                f"the last write of its {what} failed ({field}:{info[field]})",
                "look into its log; free space on its disk or mend it",
            )


def _memory(vitals: Vitals) -> Iterator[Told]:
    limit = vitals.config.get("maxmemory", vitals.info.get("maxmemory", ""))
    policy = vitals.config.get("maxmemory-policy", vitals.info.get("maxmemory_policy", ""))
    if policy and policy != "noeviction":
        wrong = f"maxmemory-policy is {policy}: a full server deletes records of sandboxes that run"
        yield PROBLEM, "memory", wrong, "CONFIG SET maxmemory-policy noeviction, and in its configuration file"
    if not limit.isdigit():
        return
    used = int(vitals.info.get("used_memory", 0))
    share = f"{_size(used)} of {_size(int(limit))}" if used else f"at most {_size(int(limit))}"
    if limit == "0":
        advice = "CONFIG SET maxmemory, to what the host can spare"
        yield NOTE, "memory", f"maxmemory is not set: {_size(used)} are used, and nothing bounds it", advice
    elif used > FULL * int(limit):
        yield WARNING, "memory", f"nearly full: {share}", "raise maxmemory or remove sandboxes; a full one refuses new"
    elif policy in ("", "noeviction"):
        yield OK, "memory", f"{share}{f', {policy}' if policy else ''}"


def _replication(vitals: Vitals) -> Iterator[Told]:
    info = vitals.info
    if info.get("role") == "slave":
        yield PROBLEM, "replication", "it is a replica, which takes no writes", "connect to its master"
        if info.get("master_link_status") == "down":
            yield PROBLEM, "replication", "its link to the master is down", "mend the link, or promote it"
        return
    number = int(info.get("connected_slaves", 0))
    if not number:
        yield NOTE, "replication", "no replica: what is on this host is nowhere else", "add a replica, or have backups"
    for place in range(number):
        replica = dict(pair.partition("=")[::2] for pair in info.get(f"slave{place}", "").split(","))
        where = f"replica {replica.get('ip', '')}:{replica.get('port', '')}"
        lag = int(replica.get("lag", 0))
        behind = int(info.get("master_repl_offset", 0)) - int(replica.get("offset", 0))
        if replica.get("state") != "online":
            advice = "wait until it has caught up; look into its log when it does not"
            yield WARNING, "replication", f"{where} is {replica.get('state', 'unknown')}, not online", advice
        elif lag > LAG_MAX:
            advice = "a failover to it would lose writes: look at its host and at the network"
            yield WARNING, "replication", f"{where} was last heard of {lag} s ago, {_size(behind)} behind", advice
        else:
            yield OK, "replication", f"{where}, {_size(max(0, behind))} behind"


def _cluster(vitals: Vitals) -> Iterator[Told]:
    if not (said := vitals.cluster):
        return
    advice = "redis-cli --cluster check tells which, redis-cli --cluster fix mends"
    if said.get("cluster_state") != "ok":
        yield PROBLEM, "cluster", f"its state is {said.get('cluster_state')}", advice
    if (assigned := said.get("cluster_slots_assigned", SLOTS)) != SLOTS:
        yield PROBLEM, "cluster", f"only {assigned} of {SLOTS} slots have a server", advice
    for field in ("cluster_slots_fail", "cluster_slots_pfail"):
        if (failing := said.get(field, "0")) != "0":
            yield PROBLEM if field == "cluster_slots_fail" else WARNING, "cluster", f"{field} is {failing}", advice
    if said.get("cluster_state") == "ok":
        yield OK, "cluster", f"ok, masters: {said.get('cluster_size', '?')}"


def _rights(vitals: Vitals) -> Iterator[Told]:
    who, forbidden = _who(vitals), vitals.forbidden
    if forbidden is None:
        yield NOTE, "rights", f"the server cannot tell what {who} may do"
        return
    advice = "change it with ACL SETUSER, or log in as another user"
    if reads := [name for name in forbidden if name in READS]:
        yield (
            PROBLEM,
            "rights",
            f"{who} may not send {', '.join(reads)}, without which none can read",
            advice,
        )
    if writes := [name for name in forbidden if name in WRITES]:
        needed = [name for name in ("HSET", "ZADD", "XADD") if name in writes]
        if len(needed) == 3:
            yield NOTE, "rights", f"{who} may only read: agents need another one"
        else:
            yield PROBLEM, "rights", f"{who} may not send {', '.join(writes)}, which agents need", advice
    if "SCRIPT LOAD" in forbidden:
        yield PROBLEM, "rights", f"{who} may not send SCRIPT LOAD, which every new server needs", advice
    if "CLIENT KILL" in forbidden:
        fence = "writes whose replies are lost are looked for without a fence"
        yield NOTE, "rights", f"{who} may not send CLIENT KILL: {fence}", advice
    if not forbidden:
        yield OK, "rights", f"{who} may do all that agents do"


def _who(vitals: Vitals) -> str:
    return f"the user {vitals.user!r}" if vitals.user else "this user"


def _clock(vitals: Vitals) -> Iterator[Told]:
    if "TIME" not in vitals.unanswered:
        ahead = f"{abs(vitals.offset):.3g} s {'ahead of' if vitals.offset > 0 else 'behind'} ours"
        if abs(vitals.offset) > OFFSET_MAX:
            yield (
                WARNING,
                "clock",
                f"its clock is {ahead}: ages and times are wrong by that",
                "set up NTP on both hosts",
            )
        else:
            yield OK, "clock", f"its clock is {ahead}" if vitals.offset else "its clock agrees with ours"
    trip = f"{vitals.round_trip * 1000:.3g} ms for a round trip"
    if vitals.round_trip > ROUND_TRIP_MAX:
        yield WARNING, "latency", f"slow: {trip}", "put agents nearer to it; SLOWLOG GET tells whether it is busy"
    else:
        yield OK, "latency", trip


def _size(number: int) -> str:
    for unit in ("B", "KB", "MB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number = round(number / 1000)
    return f"{number:.3g} GB"
