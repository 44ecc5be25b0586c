"""The doctor: every planted damage is found and named, what is promised is mended and nothing else is touched, nothing is
said of a sound store however busy it is; and what servers say of themselves is read rightly.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_redis import Metadata, SandboxStore, Severity, State, judge
from sandbox_redis.cli import doctor, main
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
            on_nodes = right.setdefault(f"{head}nodes", {})
            on_nodes[node] = on_nodes.get(node, 0.0) + 1
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
    st.sampled_from([0, 0, 2, 5]),
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


def test_damage_is_found_and_mended_over_every_kind_of_server_and_face(open_store, client, prefix):
    store = open_store(partitions=3)
    fill(store)
    partition = Keys(prefix, 3).partition("b")
    head = f"{prefix}:{{{partition}}}:"
    client.zrem(f"{head}state:READY", "b")
    client.zadd(f"{head}node:n8", {"b": 0})
    client.delete(f"{head}nodes")
    report = store.doctor(repair=True)
    assert of_store(report) == []
    assert set(report.mended) >= {
        f"b put into {head}state:READY",
        f"b taken out of {head}node:n8",
        f"n1 put into {head}nodes",
    }
    assert store.doctor(repair=True).mended == ()
    assert store.audit().problems == []


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("events", "events is not a stream"),
        ("state:READY", "state:READY is not a sorted set"),
        ("node:n1", "node:n1 is not a sorted set"),
        ("nodes", "nodes is not a sorted set"),
    ],
)
def test_a_key_of_another_type_is_named_and_a_repair_leaves_what_it_is_in_the_way_of(
    store, client, prefix, snapshot, key, said
):
    fill(store)
    client.delete(f"{prefix}:{{0}}:{key}")
    client.set(f"{prefix}:{{0}}:{key}", "mine")
    was = snapshot()
    report = store.doctor(repair=True)
    assert any(said in each.message for each in of_store(report))
    assert snapshot() == was
    assert report.mended == ()


@pytest.mark.parametrize("meta", [{"schema": "1"}, {"schema": "9", "partitions": "1", "events_maxlen": "5"}, None, "x"])
def test_a_store_whose_layout_is_damaged_says_so_and_is_left_alone(store, client, prefix, snapshot, meta):
    fill(store)
    client.delete(f"{prefix}:meta")
    if isinstance(meta, dict):
        client.hset(f"{prefix}:meta", mapping=meta)
    elif meta is not None:
        client.set(f"{prefix}:meta", meta)
    was = snapshot()
    with SandboxStore(client, prefix=prefix) as other:
        report = other.doctor(repair=True)
    assert report.worst is Severity.PROBLEM
    assert f"{prefix}:meta" in of_store(report)[0].message
    assert snapshot() == was


def test_a_layout_that_goes_while_it_is_in_use_is_missed_with_what_it_was(store, client, prefix):
    fill(store)
    was = client.hgetall(f"{prefix}:meta")
    client.delete(f"{prefix}:meta")
    (finding,) = of_store(store.doctor(repair=True))
    assert finding.severity is Severity.PROBLEM
    client.execute_command("HSET", f"{prefix}:meta", *finding.advice.split()[-6:])
    assert client.hgetall(f"{prefix}:meta") == was
    assert of_store(store.doctor()) == []


def test_another_store_whose_prefix_begins_with_ours_is_none_of_our_business(open_store, client, prefix):
    other = open_store(prefix=f"{prefix}:other", partitions=2)
    fill(other)
    store = open_store()
    fill(store)
    assert of_store(store.doctor()) == of_store(other.doctor()) == []
    client.unlink(*client.scan_iter(f"{prefix}:other:*"))


def test_events_that_were_trimmed_are_missed_by_nobody(open_store, client, prefix):
    store = open_store(events_maxlen=20)
    fill(store)
    for i in range(150):
        store.update("b", lambda status, i=i: replace(status, pid=i + 1))
    client.xtrim(f"{prefix}:{{0}}:events", maxlen=5, approximate=False)
    assert of_store(store.doctor()) == []


# -- while agents write

AGENT = """
import random, sys
from sandbox_redis import SandboxStore
url, prefix, seed = sys.argv[1:]
store, chance = SandboxStore.from_url(url, prefix=prefix), random.Random(int(seed))
print("ready", flush=True)
while True:
    with store.batch() as batch:
        for _ in range(30):
            one = f"s{chance.randrange(100)}"
            match chance.randrange(5):
                case 0 | 1: batch.create(sandbox_id=one, node=f"n{chance.randrange(9)}")
                case 2: batch.start(one, pid=7)
                case 3: batch.exit(one, exit_status=1)
                case 4: batch.remove(one, force=chance.random() < 0.5)
"""


@pytest.fixture
def busy(servers, prefix):
    """Starts agents that write as fast as they can, until the test ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> None:
        for seed in range(2):
            command = [sys.executable, "-c", AGENT, url, prefix, str(seed)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for agent in started:
            assert agent.stdout.readline() == b"ready\n"

    yield start
    for agent in started:
        agent.kill()
        agent.wait()
        agent.stdout.close()


@pytest.mark.parametrize(("maxlen", "partitions"), [(100_000, 1), (30, 2)], ids=["all events", "trimmed at once"])
@pytest.mark.parametrize("backend", ["valkey"])
@pytest.mark.parametrize("flavour", ["sync"])
def test_nothing_is_said_of_a_sound_store_however_busy_it_is(
    open_store, servers, backend, flavour, prefix, client, busy, monkeypatch, maxlen, partitions
):
    suspicions = []
    was = judge.sandbox

    def counted(*args):
        suspicions.append(args[2])
        return was(*args)

    monkeypatch.setattr(judge, "sandbox", counted)
    store = open_store(events_maxlen=maxlen, partitions=partitions)
    fill(store)
    busy(servers(backend).url)
    before = newest(client, prefix)
    rounds = 0
    while len(suspicions) < 100 or rounds < 3:  # without a second look each would have been a false alarm
        report = store.doctor(repair=rounds % 2 == 0)
        assert (of_store(report), report.mended) == ([], ())
        assert store.audit().problems == []
        rounds += 1
    assert newest(client, prefix) != before


def newest(client, prefix):
    return client.xrevrange(f"{prefix}:{{0}}:events", count=1)


@pytest.mark.parametrize("backend", ["redis"])
@pytest.mark.parametrize("flavour", ["asyncio"])
def test_damage_is_found_and_mended_while_agents_write(store, servers, backend, flavour, prefix, client, busy):
    fill(store)
    busy(servers(backend).url)
    head = f"{prefix}:{{0}}:"
    for _ in range(2):
        client.zadd(f"{head}state:READY", {"ghost": 0})
        client.zrem(f"{head}state:NOTREADY", "c")
        client.zadd(f"{head}nodes", {"ghost-node": 0})
        report = store.doctor()
        assert {each.message for each in of_store(report)} == {
            f"the index {head}state:READY has ghost without reason",
            f"the index {head}state:NOTREADY lacks c",
            f"the index {head}nodes has ghost-node without reason",
        }
        mended = store.doctor(repair=True)
        assert of_store(mended) == []
        assert sorted(mended.mended) == [
            f"c put into {head}state:NOTREADY",
            f"ghost taken out of {head}state:READY",
            f"ghost-node taken out of {head}nodes",
        ]


# -- servers

WELL = Vitals(
    run_id="r",
    info={"redis_version": "7.2.0", "used_memory": "100", "role": "master", "connected_slaves": "1"}
    | {"slave0": "ip=10.0.0.2,port=6379,state=online,offset=90,lag=1", "master_repl_offset": "100"},
    config={"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory": "1000"}
    | {"maxmemory-policy": "noeviction"},
    user="agent",
    forbidden=(),
    round_trip=0.001,
)


def told(vitals: Vitals) -> dict[str, tuple[Severity, str]]:
    """The worst that is said of each subject."""
    found = sorted(diagnose(vitals), key=lambda each: each.severity.rank)
    assert all(each.advice for each in found if each.severity.rank > Severity.NOTE.rank)
    return {each.subject: (each.severity, each.message) for each in found}


def test_of_a_server_that_is_well_only_good_is_said():
    assert {severity for severity, _ in told(WELL).values()} == {Severity.OK}
    assert set(told(WELL)) == {"version", "persistence", "memory", "replication", "rights", "clock", "latency"}


REPLICA = "ip=10.0.0.2,port=6379,state={},offset=90,lag={}"


@pytest.mark.parametrize(
    ("change", "subject", "severity", "said"),
    [
        ({"info": {"redis_version": "6.0.9"}}, "version", "problem", "too old"),
        ({"config": {"appendonly": "no"}}, "persistence", "warning", "none"),
        ({"config": {"appendonly": "no", "save": "60 1"}}, "persistence", "warning", "snapshots only (60 1)"),
        ({"config": {"appendfsync": "no"}}, "persistence", "warning", "appendfsync is no"),
        ({"info": {"aof_last_write_status": "err"}}, "persistence", "problem", "append-only file failed"),
        ({"info": {"rdb_last_bgsave_status": "err"}}, "persistence", "problem", "snapshot failed"),
        ({"config": {"maxmemory-policy": "allkeys-lru"}}, "memory", "problem", "maxmemory-policy is allkeys-lru"),
        ({"config": {"maxmemory-policy": "volatile-ttl", "maxmemory": "0"}}, "memory", "problem", "volatile-ttl"),
        ({"config": {"maxmemory": "0"}}, "memory", "note", "not set"),
        ({"info": {"used_memory": "950"}}, "memory", "warning", "nearly full"),
        ({"info": {"connected_slaves": "0"}}, "replication", "note", "no replica"),
        ({"info": {"slave0": REPLICA.format("wait_bgsave", 0)}}, "replication", "warning", "wait_bgsave, not online"),
        ({"info": {"slave0": REPLICA.format("online", 60)}}, "replication", "warning", "60 s ago, 10 B behind"),
        ({"info": {"role": "slave"}}, "replication", "problem", "takes no writes"),
        ({"info": {"role": "slave", "master_link_status": "down"}}, "replication", "problem", "down"),
        ({"cluster": {"cluster_state": "fail"}}, "cluster", "problem", "state is fail"),
        ({"cluster": {"cluster_state": "ok", "cluster_slots_assigned": "9"}}, "cluster", "problem", "only 9 of 16384"),
        ({"cluster": {"cluster_state": "ok", "cluster_slots_pfail": "3"}}, "cluster", "warning", "pfail is 3"),
        ({"cluster": {"cluster_state": "ok", "cluster_size": "3"}}, "cluster", "ok", "masters: 3"),
        ({"forbidden": ("XADD",)}, "rights", "problem", "'agent' may not send XADD"),
        ({"forbidden": ("EVALSHA",)}, "rights", "problem", "EVALSHA"),
        ({"forbidden": ("SCRIPT LOAD",)}, "rights", "problem", "SCRIPT LOAD"),
        ({"forbidden": WRITES}, "rights", "note", "may only read"),
        ({"forbidden": ("CLIENT KILL",)}, "rights", "note", "CLIENT KILL"),
        ({"forbidden": None}, "rights", "note", "cannot tell"),
        ({"offset": 7.5}, "clock", "warning", "7.5 s ahead of ours"),
        ({"offset": -7.5}, "clock", "warning", "7.5 s behind ours"),
        ({"round_trip": 0.2}, "latency", "warning", "200 ms"),
        ({"unanswered": {"INFO": "NOPERM"}}, "INFO", "note", "was refused"),
    ],
)  # fmt: skip
def test_what_a_server_says_means(change, subject, severity, said):
    whole = {name: getattr(WELL, name) | new if type(new) is dict else new for name, new in change.items()}
    found = told(replace(WELL, **whole))[subject]
    assert found[0] == severity
    assert said in found[1]


def test_a_real_server_with_a_replica_is_read_rightly(own_server, until):
    master, replica = own_server(port=0, options={"repl-diskless-sync-delay": "0"}), own_server(port=0)
    with redis.Redis.from_url(master.url) as looking, redis.Redis.from_url(replica.url) as second:
        looking.config_set("maxmemory", "100mb")
        looking.config_set("maxmemory-policy", "allkeys-lru")
        looking.config_set("appendonly", "yes")
        second.execute_command("REPLICAOF", "127.0.0.1", master.port)
        until(lambda: second.info()["master_link_status"] == "up")
        with SandboxStore.from_url(master.url) as store, SandboxStore.from_url(replica.url) as other:
            fill(store)
            until(lambda: looking.info()["slave0"]["state"] == "online")
            found = {each.subject: each for each in store.doctor().findings}
            assert found["memory"].severity is Severity.PROBLEM
            assert found["persistence"].message == "append-only file, a crash may lose the last seconds"
            assert found["replication"].severity is Severity.OK
            assert f"replica 127.0.0.1:{replica.port}" in found["replication"].message
            assert found["clock"].severity is found["latency"].severity is found["version"].severity is Severity.OK
            said = [each.message for each in other.doctor().findings]
            assert "it is a replica, which takes no writes" in said


def test_a_cluster_is_asked_of_its_slots_and_each_of_its_servers_once(own_server, until):
    options = {"cluster-enabled": "yes", "cluster-require-full-coverage": "no"}
    server = own_server("redis", port=0, options=options)
    with redis.Redis.from_url(server.url) as looking, SandboxStore.from_url(server.url, partitions=5) as store:
        looking.execute_command("CLUSTER", "ADDSLOTSRANGE", 1, 16383)
        until(lambda: b"cluster_state:ok" in looking.execute_command("CLUSTER", "INFO"))
        fill(store)
        said = [(each.severity, each.message) for each in store.doctor().findings if each.subject == "cluster"]
        assert (Severity.PROBLEM, "only 16383 of 16384 slots have a server") in said
        looking.execute_command("CLUSTER", "ADDSLOTS", 0)
        looking.config_resetstat()
        report = store.doctor()
        assert [each.message for each in report.findings if each.subject == "cluster"] == ["ok, masters: 1"]
        assert of_store(report) == []
        assert looking.info("commandstats")["cmdstat_scan"]["calls"] == 1


@pytest.fixture
def limited(own_server):
    """Opens a store as a user with fewer rights."""
    server = own_server(port=0)
    looking = redis.Redis.from_url(server.url)
    opened = [looking]

    def open_(*rules: str) -> SandboxStore:
        looking.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">word", "~*", "+@all", *rules)
        opened.append(SandboxStore.from_url(server.url.replace("//", "//agent:word@")))
        return opened[-1]

    with SandboxStore.from_url(server.url) as store:
        fill(store)
    yield open_
    for each in opened:
        each.close()


def test_each_right_that_agents_need_is_missed_by_name(limited):
    for command in (*READS, *WRITES, *HELPERS):
        denied = {"TIME": "time"}.get(command, command.lower().replace(" ", "|"))
        with limited(f"-{denied}") as store:
            if command == "HMGET":  # without it nobody can tell how the store is laid out
                continue
            found = [each for each in store.doctor().findings if each.subject == "rights"]
        assert any(f"the user 'agent' may not send {command}" in each.message for each in found), command


def test_questions_that_are_forbidden_are_notes(limited):
    with limited("-info", "-config", "-acl", "-time", "-cluster") as store:
        report = store.doctor()
    notes = {each.subject for each in report.of(Severity.NOTE)}
    assert {"INFO", "CONFIG GET", "TIME"} <= notes
    assert report.worst is Severity.NOTE
    assert (report.sandboxes, of_store(report)) == (4, [])


@pytest.mark.parametrize("command", ["scan", "zscan", "pttl", "xrange"])
def test_a_store_that_may_not_be_read_is_a_warning(limited, command):
    with limited(f"-{command}") as store:
        report = store.doctor()
    (finding,) = of_store(report)
    assert finding.severity is Severity.WARNING
    assert "not all of the store was checked" in finding.message
    assert not any("fits together" in each.message for each in report.findings)


# -- the command


@pytest.fixture
def command(server, prefix, capsys):
    def run(*arguments: str, url: str = server.url) -> tuple[int, str, str]:
        status = main(["--url", url, "--prefix", prefix, "doctor", *arguments])
        return status, *capsys.readouterr()

    with SandboxStore.from_url(server.url, prefix=prefix) as store, redis.Redis.from_url(server.url) as client:
        fill(store)
        yield run
        client.unlink(*client.scan_iter(f"{prefix}:*"))


def test_the_command_says_what_is_wrong_mends_it_and_ends_so(command, server, prefix):
    status, out, err = command()
    assert (status, err) == (0, "")
    assert f"store {prefix}\n  ok       4 sandboxes and 10 events, and all of it fits together\n" in out
    head = f"{prefix}:{{0}}:"
    with redis.Redis.from_url(server.url) as client:
        client.zrem(f"{head}state:READY", "b")
        client.hset(f"{head}status:d", "pid", "5")
    status, out, _ = command()
    assert status == 1
    lacks = f"  problem  the index {head}state:READY lacks b\n           -> doctor --repair mends it\n"
    assert lacks in out
    assert "2 problems, " in out
    assert out.endswith("doctor --repair mends 1 of them\n")
    status, out, _ = command("--repair")
    assert status == 1
    assert f"mended\n  b put into {head}state:READY\n" in out
    assert "d differs from its last event" in out
    assert "lacks b" not in out
    assert out.endswith("; 1 mended\n")
    status, out, _ = command("--repair")
    assert status == 1
    assert "mended" not in out


def test_warnings_fail_only_when_they_are_asked_to(command, server, prefix):
    with redis.Redis.from_url(server.url) as client:
        client.set(f"{prefix}:stray", 1)
    assert command()[0] == 0
    assert command("--strict")[0] == 1


def test_json_has_every_finding_with_all_that_is_known_of_it(command, server, prefix):
    index = f"{prefix}:{{0}}:state:READY"
    with redis.Redis.from_url(server.url) as client:
        client.zrem(index, "b")
    status, out, _ = command("--json")
    found = json.loads(out)
    assert status == 1
    assert (found["worst"], found["prefix"], found["sandboxes"], found["events"]) == ("problem", prefix, 4, 10)
    assert [each for each in found["findings"] if each["severity"] == "problem"] == [
        {
            "severity": "problem",
            "area": "store",
            "subject": index,
            "message": f"the index {index} lacks b",
            "advice": "doctor --repair mends it",
            "repairable": True,
        }
    ]
    assert found["mended"] == []
    status, out, _ = command("-o", "json", "--repair")
    assert (status, json.loads(out)["mended"]) == (0, [f"b put into {index}"])


def test_very_many_findings_are_counted(command, server, prefix):
    with redis.Redis.from_url(server.url) as client:
        client.zadd(f"{prefix}:{{0}}:state:READY", {f"ghost-{i}": 0 for i in range(300)})
    _, out, _ = command()
    assert out.count("without reason") == 50
    assert "and 250 more; --json has all" in out
    assert "doctor --repair mends 300 of them" in out


def test_a_big_store_shows_on_a_terminal_how_far_it_is(command, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(doctor, "BIG", 1)
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    assert command()[0] == 0
    assert "4 of " in shown.getvalue()
    assert shown.getvalue().endswith("keys\r\x1b[K")


def test_without_a_server_it_ends_as_every_command_does(command):
    status, out, err = command(url="unix:///there/is/no/such/server")
    assert (status, out) == (3, "")
    assert err.count("\n") == 1
