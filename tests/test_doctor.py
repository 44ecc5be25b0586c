"""The doctor: every planted damage is found and named, what is promised is mended and nothing else is touched, nothing is
said of a sound store however busy it is; and what servers say of themselves is read rightly.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_redis import Metadata, SandboxStore, Severity, State, judge
from sandbox_redis.cli import main
from sandbox_redis.diagnosis import diagnose
from sandbox_redis.keys import Keys
from sandbox_redis.vitals import HELPERS, READS, WRITES, Vitals

KEYS = Keys("p", 1)


def fill(store) -> None:
    """Sandboxes in each state, with nodes and without, and one that is gone."""
    for name, node in (("a", "n1"), ("b", "n1"), ("c", "n2"), ("d", ""), ("gone", "n3")):
        store.create(sandbox_id=name, node=node, metadata=Metadata(labels={"app": "web"}))
    for name in ("b", "c", "d"):
        store.start(name, pid=4)
    store.stop("c")
    store.remove("gone", force=True)


def of_store(report) -> list:
    return [each for each in report.findings if each.area == "store" and each.severity is not Severity.OK]


def right_indexes(client, head: str) -> dict[str, dict[bytes, float]]:
    """What the records say that the indexes hold, written once more from the contract."""
    right: dict[str, dict[bytes, float]] = {}
    for key in client.scan_iter(f"{head}status:*"):
        raw = key.removeprefix(f"{head}status:".encode())
        if client.type(key) != b"hash":  # what was there is not known: its entries stay
            state, node = b"READY", b"n1"
        else:
            state, node = client.hmget(key, "state", "node")
        shown = state.decode() if state in {each.encode() for each in State} else "UNKNOWN"
        right.setdefault(f"{head}state:{shown}", {})[raw] = 0.0
        if node:
            right.setdefault(f"{head}node:{node.decode()}", {})[raw] = 0.0
            right.setdefault(f"{head}nodes", {})[node] = 0.0
    return right


def indexes(client, head: str) -> dict[str, dict[bytes, float]]:
    keys = [key for key in client.scan_iter(f"{head}*") if client.type(key) == b"zset"]
    return {key.decode(): dict(client.zrange(key, 0, -1, withscores=True)) for key in keys}


def rest(client, head: str) -> dict[bytes, object]:
    """What no repair may touch."""
    keys = client.scan_iter(f"{head}*")
    return {key: client.dump(key) for key in keys if client.type(key) != b"zset"}


# -- damage


def test_a_sound_store_is_well(store):
    fill(store)
    report = store.doctor()
    assert of_store(report) == []
    assert (report.sandboxes, report.events) == (4, 10)
    assert [each.message for each in report.findings if each.area == "store"] == [
        "4 sandboxes and 10 events, and all of it fits together"
    ]
    assert store.doctor(repair=True).mended == ()


def test_a_store_that_is_not_there_yet_is_well_and_stays_so(store, snapshot):
    report = store.doctor(repair=True)
    (finding,) = of_store(report)
    assert (finding.severity, finding.message[:17]) == (Severity.NOTE, "there is no store")
    assert snapshot() == {}


# What only a person can decide: each is planted on a sandbox of its own.
BY_HAND = {
    "field": (lambda c, h, i: c.hset(f"{h}status:{i}", "pid", "x"), "{i}, field 'pid' holds 'x'"),
    "state": (lambda c, h, i: c.hset(f"{h}status:{i}", "state", "DEAD"), "{i}, field 'state' holds 'DEAD'"),
    "changed": (lambda c, h, i: c.hset(f"{h}status:{i}", "pid", "77"), "{i} differs from its last event"),
    "older": (lambda c, h, i: c.hset(f"{h}status:{i}", "revision", "1-1"), "in revision"),
    "moved": (lambda c, h, i: c.hset(f"{h}status:{i}", "node", "n9"), "{i} differs from its last event"),
    "lost": (lambda c, h, i: c.delete(f"{h}status:{i}"), "{i} is absent, its last event"),
    "type": (lambda c, h, i: (c.delete(f"{h}status:{i}"), c.set(f"{h}status:{i}", 1)), "status:{i} is not a hash"),
    "expires": (lambda c, h, i: c.expire(f"{h}status:{i}", 900), "status:{i} has a time to live"),
    "made": (lambda c, h, i: c.hset(f"{h}status:{i}-x", "state", "READY"), "{i}-x"),
    "event": (lambda c, h, i: c.xadd(f"{h}events", {"id": i, "transition": "exit", "before": "INIT"}), "exit cannot"),
    "stranger": (lambda c, h, i: c.set(f"{h}state:{i}", 1), "state:{i} is none of the store's keys"),
    "strange": (lambda c, h, i: c.set(f"{h}{i}", 1), "{i} is none of the store's keys"),
    "partition": (lambda c, h, i: c.hset(h.replace("0", "7") + f"status:{i}", "state", "READY"), "in partition 7"),
    "no id": (lambda c, h, i: c.hset(f"{h}status:-{i}", "state", "READY"), "'-{i}' is no id"),
    "index expires": (lambda c, h, i: c.expire(f"{h}state:READY", 900), "state:READY has a time to live"),
}
EDITS = st.tuples(
    st.sampled_from(["add", "remove"]),
    st.sampled_from([*(f"state:{state}" for state in State), "node:n1", "node:n2", "node:n9", "nodes"]),
    st.sampled_from(["a", "b", "c", "d", "ghost", "n1", "n2", "n9", b"\xff", ""]),
    st.sampled_from([0, 0, 5]),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDITS, max_size=8), by_hand=st.sets(st.sampled_from(sorted(BY_HAND)), max_size=4))
def test_all_damage_is_found_and_indexes_are_mended_and_nothing_else(servers, edits, by_hand):
    url = servers("valkey").url
    with redis.Redis.from_url(url) as client, SandboxStore.from_url(url, prefix="doctor-test") as store:
        client.unlink("no-such-key", *client.scan_iter("doctor-test:*"))
        store._operations.forget()
        head = "doctor-test:{0}:"
        try:
            fill(store)
            for i in range(len(by_hand)):
                store.load(f"h{i}", store.get("b").status, node="n1")
            for action, index, member, score in edits:
                if action == "add":
                    client.zadd(f"{head}{index}", {member: score})
                else:
                    client.zrem(f"{head}{index}", member)
            sound_indexes = indexes(client, head) == right_indexes(client, head)
            assert any(each.repairable for each in store.doctor().findings) == (not sound_indexes)
            for i, name in enumerate(sorted(by_hand)):
                BY_HAND[name][0](client, head, f"h{i}")
            was = rest(client, head)
            expected = right_indexes(client, head)

            found = store.doctor()
            said = "\n".join(each.message for each in found.findings)
            for i, name in enumerate(sorted(by_hand)):
                assert BY_HAND[name][1].format(i=f"h{i}") in said, name
            assert all(each.advice for each in of_store(found))

            mended = store.doctor(repair=True)
            assert bool(mended.mended) == any(each.repairable for each in found.findings)
            left = {each.message.partition(": it will be")[0] for each in mended.findings}
            assert left >= {m.message.partition(": it will be")[0] for m in of_store(found) if not m.repairable}
            assert not any(each.repairable for each in mended.findings)
            assert indexes(client, head) == expected
            assert rest(client, head) == was

            again = store.doctor(repair=True)
            assert again.mended == ()
            assert not any(each.repairable for each in again.findings)
        finally:
            client.unlink("no-such-key", *client.scan_iter("doctor-test:*"))
