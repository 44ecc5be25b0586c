"""The contract, seen from outside: one body for {fakeredis, Valkey, Redis} x {sync, asyncio}. What the states allow
stands in test_states.py.
"""

from __future__ import annotations

import asyncio
import gc
import re
import warnings
import zlib
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import redis
from blocking import BlockingStore
from test_record import BAD_METADATA

from sandbox_redis import (
    AsyncSandboxStore,
    InvalidArgumentError,
    Metadata,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    SandboxStore,
    SchemaError,
    State,
    Status,
    TransitionError,
)
from sandbox_redis import aio as aio_module
from sandbox_redis import store as store_module
from sandbox_redis.wire import Lease, Send, Sleep, Unsent

WEB = Metadata(
    name="web-0",
    namespace="default",
    uid="5f0c",
    attempt=2,
    runtime_handler="runc",
    labels={"app": "wéb", "empty": ""},
    annotations={"a:b": "c d\n"},
    extensions={"quota": {"cpu": 2, "raw": b"\x00\xff"}, "none": None},
)
META = {b"schema": b"1", b"partitions": b"1", b"events_maxlen": b"100000"}


def text(fields: dict[bytes, bytes]) -> dict[str, str]:
    """Fields as redis-cli shows them."""
    return {name.decode(): value.decode() for name, value in fields.items() if not name.startswith(b"ext:")}


def started(store: Any, sandbox_id: str = "it", **settings: Any) -> Any:
    store.create(sandbox_id=sandbox_id, node="node-1", **settings)
    return store.start(sandbox_id, pid=7)


@pytest.fixture
def rival(client, prefix):
    """Another agent with a store of its own, which an update function can use in the middle of an update."""
    with SandboxStore(client, prefix=prefix, agent="rival") as store:
        yield store


@pytest.fixture
def open_own(flavour):
    """Opens stores on clients and URLs of the test's own."""
    opened: list[Any] = []

    def open_(source: Any = None, **kwargs: Any) -> Any:
        kind: Any = SandboxStore if flavour == "sync" else AsyncSandboxStore
        store = kind.from_url(**kwargs) if source is None else kind(source, **kwargs)
        opened.append(store if flavour == "sync" else BlockingStore(store))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


# -- what is in Redis


def test_a_record_looks_like_this_in_redis(store, client, prefix):
    store.create(sandbox_id="it", node="node-1", metadata=WEB, created_at_ns=1795446463281389235)
    sandbox = store.start("it", pid=4242)
    fields = client.hgetall(f"{prefix}:{{0}}:status:it")
    request = fields[b"request"].decode()
    assert re.fullmatch("[0-9a-f]{24}", request)
    assert text(fields) == {
        "state": "READY",
        "pid": "4242",
        "exit_status": "0",
        "created_at": "2026-11-23T15:07:43.281389235Z",
        "node": "node-1",
        "name": "web-0",
        "namespace": "default",
        "uid": "5f0c",
        "attempt": "2",
        "runtime_handler": "runc",
        "label:app": "wéb",
        "label:empty": "",
        "annotation:a:b": "c d\n",
        "epoch": "0",
        "revision": sandbox.revision,
        "request": request,
    }
    assert fields[b"ext:quota"] == msgpack.packb({"cpu": 2, "raw": b"\x00\xff"})
    assert fields[b"ext:none"] == msgpack.packb(None)
    assert store.get("it") == sandbox
    assert sandbox.metadata == WEB


def test_what_is_empty_takes_no_field(store, client, prefix):
    sandbox_id = store.create().id
    assert re.fullmatch("[0-9a-f]{64}", sandbox_id)
    fields = set(text(client.hgetall(f"{prefix}:{{0}}:status:{sandbox_id}")))
    assert fields == {"state", "pid", "exit_status", "created_at", "attempt", "epoch", "revision", "request"}
    assert not list(client.scan_iter(f"{prefix}:*:node:*"))


def test_a_time_that_becomes_0_leaves_the_record(store, client, prefix):
    store.load("it", Status(State.READY, created_at_ns=5, exited_at_ns=6))
    store.update("it", lambda status: replace(status, created_at_ns=0, exited_at_ns=0))
    assert not {b"created_at", b"exited_at"} & set(client.hgetall(f"{prefix}:{{0}}:status:it"))
    assert store.get("it").status == Status(State.READY)
    assert store.audit().problems == []


@pytest.mark.parametrize("partitions", [1, 4, 64])
def test_a_sandbox_belongs_to_the_partition_of_its_crc32(open_store, client, prefix, snapshot, partitions):
    store = open_store(partitions=partitions)
    ids = [f"s{i}" for i in range(20)]
    for sandbox_id in ids:
        store.create(sandbox_id=sandbox_id, node="node-1")
    keys = {f"{prefix}:meta"}
    for sandbox_id in ids:
        head = f"{prefix}:{{{zlib.crc32(sandbox_id.encode()) % partitions}}}"
        keys |= {f"{head}:{name}" for name in (f"status:{sandbox_id}", "events", "state:INIT", "node:node-1", "nodes")}
        assert client.zscore(f"{head}:state:INIT", sandbox_id) == client.zscore(f"{head}:node:node-1", sandbox_id) == 0
    assert set(snapshot()) == keys
    assert store.ids(states=[State.INIT], node="node-1") == sorted(ids)
    for sandbox_id in ids:
        store.remove(sandbox_id, force=True)
    assert all(key.endswith((":meta", ":events")) for key in snapshot())


def test_events_carry_these_fields_in_this_order(store, client, prefix):
    store.create(sandbox_id="it", node="node-1", metadata=WEB, created_at_ns=1)
    store.start("it", pid=7)
    store.exit("it", exit_status=3, exited_at_ns=2)
    store.remove("it")
    store.load("it", Status(State.UNKNOWN), metadata=Metadata(name="web-1"))
    status = ["pid", "created_at", "exit_status"]
    exited = ["pid", "created_at", "exited_at", "exit_status"]
    tail = ["node", "epoch", "by", "request"]
    web = ["attempt", "name", "namespace", "uid", "runtime_handler", "label:app", "label:empty", "annotation:a:b"]
    assert [[name.decode() for name in fields] for _, fields in client.xrange(f"{prefix}:{{0}}:events")] == [
        ["id", "transition", "state", *status, *tail, *web, "ext:quota", "ext:none"],
        ["id", "transition", "before", "state", *status, *tail],
        ["id", "transition", "before", "state", *exited, *tail],
        ["id", "transition", "before", *exited, *tail],
        ["id", "transition", "state", "pid", "exit_status", "epoch", "by", "request", "attempt", "name"],
    ]


def test_events_tell_the_life_of_a_sandbox(store):
    made = [started(store, metadata=WEB), store.stop("it"), store.exit("it", exit_status=3), store.remove("it")]
    events = store.audit().events
    assert [event.transition for event in events] == ["create", "start", "stop", "exit", "remove"]
    assert [event.before for event in events] == [None, State.INIT, State.READY, State.NOTREADY, State.NOTREADY]
    assert [event.sandbox and event.sandbox.status for event in events[1:]] == [*(s.status for s in made[:-1]), None]
    assert [event.revision for event in events[1:-1]] == [sandbox.revision for sandbox in made[:-1]]
    assert events[0].sandbox.metadata == WEB
    assert all(event.sandbox.metadata == Metadata() for event in events[1:-1])
    assert {(event.id, event.by) for event in events} == {("it", "test")}
    assert len({event.request for event in events}) == 5
    assert all(event.at.utcoffset().total_seconds() == 0 for event in events)


def test_a_revision_is_the_id_of_its_event_and_only_ever_grows(store):
    seen = []
    for _ in range(3):  # the same id, deleted and created again
        seen += [store.create(sandbox_id="it"), store.start("it", pid=1), store.stop("it")]
        seen.append(store.update("it", lambda status: replace(status, exit_status=1)))
        store.remove("it")
    revisions = [sandbox.revision for sandbox in seen]
    order = [tuple(map(int, revision.split("-"))) for revision in revisions]
    assert order == sorted(set(order))
    audit = store.audit()
    assert [event.revision for event in audit.events if event.sandbox] == revisions
    assert audit.problems == []


def test_the_events_are_trimmed_to_about_as_many_as_wanted(open_store, client, prefix):
    store = open_store(events_maxlen=100)
    with store.batch() as batch:
        for i in range(500):
            batch.create(sandbox_id=f"s{i}")
    assert 100 <= client.xlen(f"{prefix}:{{0}}:events") <= 300
    assert len(store.ids(states=[State.INIT])) == 500
    assert store.audit().problems == []


# -- the layout of a store


def test_the_first_who_writes_decides_the_layout_and_later_ones_follow(open_store, client, prefix):
    open_store(partitions=4, events_maxlen=1000).create(sandbox_id="a")
    later = open_store(partitions=64, events_maxlen=7)
    later.create(sandbox_id="b")
    assert client.hgetall(f"{prefix}:meta") == META | {b"partitions": b"4", b"events_maxlen": b"1000"}
    assert client.exists(f"{prefix}:{{{zlib.crc32(b'b') % 4}}}:status:b")
    assert later.ids(states=[State.INIT]) == ["a", "b"]


def test_who_only_reads_leaves_no_trace(store, snapshot):
    for read in (store.get, store.port_forward, lambda i: store.status(i).get()):
        with pytest.raises(NotFoundError):
            read("it")
    assert store.ids() == []
    assert store.audit().sandboxes == {}
    assert snapshot() == {}


def test_a_reader_finds_the_layout_that_came_after_it(open_store):
    reader = open_store(partitions=1)
    assert reader.ids() == []
    started(open_store(partitions=8))
    assert reader.ids() == ["it"]
    assert reader.get("it").status.pid == 7


READS_AND_WRITES = [
    lambda store: store.get("it"),
    lambda store: store.ids(),
    lambda store: store.create(sandbox_id="it"),
    lambda store: store.start("it", pid=1),
    lambda store: store.update("it", lambda status: status),
]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "2"}, "upgrade"),
        ({"schema": "2", "partitions": "by name", "layout": "new"}, "upgrade"),
        ({"schema": "one"}, "restore"),
        ({"schema": "0"}, "restore"),
        ({"schema": ""}, "restore"),
        ({"partitions": "0"}, "restore"),
        ({"partitions": "many"}, "restore"),
        ({"partitions": "1000000"}, "restore"),
        ({"events_maxlen": "-1"}, "restore"),
        ({"events_maxlen": "\udcff"}, "restore"),
    ],
)
def test_a_layout_that_cannot_be_read_is_refused(open_store, client, prefix, snapshot, change, said):
    changed = {name: value.encode(errors="surrogateescape") for name, value in change.items()}
    client.hset(f"{prefix}:meta", mapping=META | changed)
    was = snapshot()
    for call in READS_AND_WRITES:
        with pytest.raises(SchemaError, match=said) as error:
            call(open_store())
        assert error.value.key == f"{prefix}:meta"
    assert snapshot() == was


def test_a_layout_that_lacks_a_field_is_refused(open_store, client, prefix, snapshot):
    client.hset(f"{prefix}:meta", "schema", "1")
    was = snapshot()
    for call in READS_AND_WRITES:
        with pytest.raises(SchemaError, match="restore"):
            call(open_store())
    assert snapshot() == was


def test_one_redis_holds_several_stores(open_store, client, prefix):
    one, other = open_store(), open_store(prefix=f"{prefix}-b")
    started(one)
    assert other.ids() == []
    started(other)
    other.remove("it", force=True)
    assert one.ids() == ["it"]
    client.unlink(*client.scan_iter(f"{prefix}-b:*"))


# -- records that cannot be read

GARBAGE = {
    b"state": [b"", b"ready", b"2", b"\xff", b"READY "],
    b"pid": [b"", b"-1", b"4294967296", b"0x10", b"\xd9\xa3"],
    b"exit_status": [b"1.5"],
    b"created_at": [b"yesterday", b"2026-02-30T00:00:00.000000000Z"],
    b"exited_at": [b"0"],
    b"attempt": [b"many"],
    b"epoch": [b"-"],
    b"name": [b"\xff"],
    b"label:app": [b"\xc3"],
    b"annotation:a:b": [b"\xfe"],
    b"ext:quota": [b"\xc1"],
    b"request": [b"\xff"],
}


def assert_a_garbled_record_can_be_cleaned(store, client, prefix, before, garbage):
    """Garble one field of a record that is in the state `before`: it is told, and stop and remove clean it."""
    head = f"{prefix}:{{0}}:"
    field, value = garbage
    started(store, "bystander")
    if before == "INIT":
        store.create(sandbox_id="it", node="node-1", metadata=WEB)
    else:
        store.load("it", Status(State(before)), node="node-1", metadata=WEB)
    client.hset(f"{head}status:it", field, value)

    seen = store.get("it")
    assert seen.status.state is State.UNKNOWN
    assert f"{head}status:it" in seen.problem
    assert field.decode() in seen.problem
    assert "it" in store.ids(states=list(State), node="node-1")
    assert "it" in store.audit().sandboxes

    store.stop("it")
    assert store.ids(states=[State.NOTREADY]) == ["it"]
    assert store.remove("it") is True
    left = {
        key for key in client.scan_iter(f"{head}*") if client.type(key) == b"zset" and client.zscore(key, "it") == 0
    }
    assert left == set()
    assert not client.exists(f"{head}status:it")
    assert store.ids(states=list(State), node="node-1") == ["bystander"]


@pytest.mark.parametrize("garbage", [(field, value) for field, values in GARBAGE.items() for value in values])
@pytest.mark.parametrize("before", ["READY", "NOTREADY"])
def test_a_garbled_record_reads_as_unknown_and_stop_and_remove_clean_it(store, client, prefix, before, garbage):
    assert_a_garbled_record_can_be_cleaned(store, client, prefix, before, garbage)


@pytest.mark.parametrize(
    "garbage", [(b"state", b"?"), (b"pid", b"?"), (b"created_at", b"?"), (b"name", b"\xff"), (b"revision", b"\xff")]
)
def test_a_garbled_new_record_reads_as_unknown_and_stop_and_remove_clean_it(store, client, prefix, garbage):
    assert_a_garbled_record_can_be_cleaned(store, client, prefix, "INIT", garbage)


@pytest.mark.parametrize(
    "garbage", [(field, values[0]) for field, values in GARBAGE.items()] + [(b"revision", b"\xff")]
)
def test_a_garbled_record_can_be_updated_to_notready(store, client, prefix, garbage):
    store.load("it", Status(State.READY, 7, 5, 6, 3), node="node-1", metadata=WEB)
    client.hset(f"{prefix}:{{0}}:status:it", *garbage)
    updated = store.update("it", lambda status: replace(status, state=State.NOTREADY, exit_status=9))
    assert store.ids(states=[State.NOTREADY]) == ["it"]
    assert updated.status.exit_status == 9
    mended = garbage[0] in (b"state", b"pid", b"exit_status", b"created_at", b"exited_at", b"request", b"revision")
    assert (updated.problem is None) == mended


@pytest.mark.parametrize("state", [b"", b"ready", b"\xff", None])
def test_a_state_that_is_none_of_the_four_counts_as_unknown_in_the_scripts(store, client, prefix, snapshot, state):
    key = f"{prefix}:{{0}}:status:it"
    started(store)
    client.hdel(key, "state") if state is None else client.hset(key, "state", state)
    was = snapshot()
    for refused in (
        lambda: store.start("it", pid=1),
        lambda: store.fail_start("it"),
        lambda: store.port_forward("it"),
        lambda: store.exit("it", exit_status=1),
        lambda: store.remove("it"),
        lambda: store.update("it", lambda status: replace(status, state=State.READY)),
    ):
        with pytest.raises(TransitionError) as error:
            refused()
        assert error.value.state == "UNKNOWN"
    assert snapshot() == was
    store.update("it", lambda status: replace(status, pid=8))
    assert store.ids(states=[State.UNKNOWN]) == ["it"]
    assert store.remove("it", force=True)
    events = store.audit().events
    assert [(event.transition, event.before) for event in events[-3:]] == [
        ("update", State.UNKNOWN),
        ("stop", State.UNKNOWN),
        ("remove", State.NOTREADY),
    ]
    assert not [key for key in snapshot() if ":state:" in key or ":node:" in key]


@pytest.mark.parametrize("index", ["INIT", "NOTREADY", "UNKNOWN", None])
def test_the_index_entry_of_a_sandbox_is_found_wherever_it_is(store, client, prefix, snapshot, index):
    started(store)
    client.delete(f"{prefix}:{{0}}:state:READY")
    if index:
        client.zadd(f"{prefix}:{{0}}:state:{index}", {"it": 0})
    assert store.audit().problems
    store.stop("it")
    assert [store.ids(states=[state]) for state in State] == [[], [], ["it"], []]
    store.remove("it")
    assert not [key for key in snapshot() if ":state:" in key or ":node:" in key]


# -- keys of the wrong type


def touched(operation: str) -> tuple[Any, Any, list[str]]:
    """How to prepare for a call, the call, and the keys that it touches."""
    nothing, ready = (lambda store: None), started
    new = lambda store: store.create(sandbox_id="it", node="node-1")  # noqa: E731
    done = lambda store: (started(store), store.stop("it"))  # noqa: E731
    change = ["status:it", "events"]
    return {
        "get": (ready, lambda s: s.get("it"), ["status:it"]),
        "ids": (ready, lambda s: s.ids(node="node-1"), ["state:READY", "node:node-1"]),
        "port_forward": (ready, lambda s: s.port_forward("it"), ["status:it"]),
        "create": (nothing, new, [*change, "state:INIT", "node:node-1"]),
        "load": (
            nothing,
            lambda s: s.load("it", Status(State.READY), node="node-1"),
            [*change, "state:READY", "node:node-1"],
        ),
        "start": (new, lambda s: s.start("it", pid=1), [*change, "state:INIT", "state:READY"]),
        "fail_start": (new, lambda s: s.fail_start("it"), [*change, "state:INIT", "node:node-1"]),
        "stop": (ready, lambda s: s.stop("it"), [*change, "state:READY", "state:NOTREADY"]),
        "exit": (ready, lambda s: s.exit("it", exit_status=1), [*change, "state:READY", "state:NOTREADY"]),
        "remove": (done, lambda s: s.remove("it"), [*change, "state:NOTREADY", "node:node-1"]),
        "force_remove": (
            ready,
            lambda s: s.remove("it", force=True),
            [*change, "state:READY", "state:NOTREADY", "node:node-1"],
        ),
        "update": (
            ready,
            lambda s: s.update("it", lambda status: replace(status, state=State.NOTREADY)),
            [*change, "state:READY", "state:NOTREADY"],
        ),
        "update in place": (
            ready,
            lambda s: s.update("it", lambda status: replace(status, pid=9)),
            ["status:it", "events"],
        ),
    }[operation]


OPERATIONS = ["get", "ids", "port_forward", "create", "load", "start", "fail_start", "stop", "exit", "remove"]
OPERATIONS += ["force_remove", "update", "update in place"]
TOUCHED = [(operation, key, False) for operation in OPERATIONS for key in touched(operation)[2]]
TOUCHED += [(operation, key, True) for operation, key, _ in TOUCHED if key == "events"]  # a fresh store reads it first


@pytest.mark.parametrize(("operation", "wrong", "fresh"), TOUCHED)
def test_a_key_of_the_wrong_type_is_refused_by_name(
    store, open_store, client, prefix, snapshot, operation, wrong, fresh
):
    prepare, call, _ = touched(operation)
    started(store, "bystander")
    prepare(store)
    client.delete(f"{prefix}:{{0}}:{wrong}")
    client.rpush(f"{prefix}:{{0}}:{wrong}", "a list")
    was = snapshot()
    with pytest.raises(SchemaError, match="list") as error:
        call(open_store() if fresh else store)
    assert snapshot() == was
    assert error.value.key == f"{prefix}:{{0}}:{wrong}"


@pytest.mark.parametrize("call", READS_AND_WRITES)
def test_a_meta_key_of_the_wrong_type_is_refused_by_name(store, client, prefix, snapshot, call):
    client.set(f"{prefix}:meta", "text")
    was = snapshot()
    with pytest.raises(SchemaError, match="string") as error:
        call(store)
    assert error.value.key == f"{prefix}:meta"
    assert snapshot() == was


# -- update


def test_an_update_that_changes_nothing_writes_nothing(store, snapshot):
    sandbox = started(store)
    was = snapshot()
    assert store.update("it", lambda status: status) == sandbox
    assert store.update("it", replace) == sandbox
    store.stop("it")
    was = snapshot()
    assert store.update("it", lambda status: replace(status, pid=9)).status.pid == 0  # NOTREADY has none
    assert snapshot() == was


@pytest.mark.parametrize("kind", [ValueError, TimeoutError, KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_an_update_function_raises_reaches_the_caller_and_nothing_is_written(store, rival, snapshot, kind):
    started(store)
    was = snapshot()
    raised = kind("no")

    def fn(status):
        raise raised

    with pytest.raises(kind) as caught:
        store.update("it", fn)
    assert caught.value is raised
    assert snapshot() == was

    rival.update("it", lambda status: replace(status, pid=8))  # would fail an EXEC behind a WATCH left over
    calls = []
    store.update("it", lambda status: calls.append(status) or replace(status, pid=status.pid + 1))
    assert calls == [replace(store.get("it").status, pid=8)]
    assert store.get("it").status.pid == 9


def test_a_stop_iteration_in_an_update_function_arrives_as_python_itself_lets_it_leave_a_generator(store, snapshot):
    started(store)
    was = snapshot()
    with pytest.raises(RuntimeError) as error:
        store.update("it", lambda status: next(iter([])))
    assert isinstance(error.value.__cause__, StopIteration)
    assert snapshot() == was


def test_an_error_of_the_redis_client_in_an_update_function_is_the_callers_own(store):
    started(store)
    for kind in (redis.ConnectionError, redis.TimeoutError, redis.WatchError, redis.ResponseError, OSError):
        with pytest.raises(kind):
            store.update("it", lambda status, kind=kind: (_ for _ in ()).throw(kind("mine")))
    assert store.get("it").status.pid == 7


async def _asynchronous(status):
    return status


@pytest.mark.parametrize(
    "fn",
    [
        _asynchronous,
        lambda status: None,
        lambda status: "READY",
        lambda status: (status,),
        lambda status: replace(status, state="READY"),
        lambda status: replace(status, pid=-1),
        lambda status: replace(status, exited_at_ns=1.5),
    ],
)
def test_an_update_function_that_returns_no_status_is_refused(store, snapshot, fn):
    started(store)
    was = snapshot()
    with pytest.raises(InvalidArgumentError):
        store.update("it", fn)
    assert snapshot() == was
    assert store.update("it", lambda status: replace(status, pid=8)).status.pid == 8


def test_an_update_whose_sandbox_changes_meanwhile_runs_again_and_sees_the_change(store, rival):
    started(store)
    seen: list[Any] = []

    def fn(status):
        if not seen:
            rival.update("it", lambda theirs: replace(theirs, pid=100))
        seen.append(status.pid)
        return replace(status, pid=status.pid + 1)

    assert store.update("it", fn).status.pid == 101
    assert seen == [7, 100]
    assert len(store.audit().events) == 4


def test_an_update_sees_even_a_change_that_was_undone(store, rival):
    started(store)
    seen: list[Any] = []

    def fn(status):
        if not seen:
            rival.remove("it", force=True)
            started(rival)
        seen.append(status)
        return replace(status, pid=9)

    store.update("it", fn)
    assert len(seen) > 1


def test_an_update_whose_sandbox_is_removed_meanwhile_does_not_find_it(store, rival):
    started(store)

    def fn(status):
        rival.remove("it", force=True)
        return replace(status, pid=9)

    with pytest.raises(NotFoundError):
        store.update("it", fn)
    assert not store.ids()


def test_an_update_gives_up_at_its_deadline_with_the_number_of_attempts(store, rival):
    started(store)
    seen: list[Any] = []

    def fn(status):
        rival.update("it", lambda theirs: replace(theirs, pid=theirs.pid + 1))
        seen.append(status.pid)
        return replace(status, pid=1)

    with pytest.raises(SandboxError) as error:
        store.update("it", fn, timeout=0.3)
    assert error.value.id == "it"
    # On a busy machine the last attempt may be late; test_operations.py has a clock of its own.
    assert isinstance(error.value, OutcomeUnknownError) or error.value.attempts == len(seen) > 1
    assert store.get("it").status.pid == 7 + len(seen)
    store.update("it", lambda status: replace(status, pid=1))


def test_the_status_of_one_sandbox_is_a_storage(store):
    started(store)
    status = store.status("it")
    assert status.get() == store.get("it").status
    assert status.update(lambda status: replace(status, pid=9)) == store.get("it").status
    assert status.get().pid == 9
    store.remove("it", force=True)
    with pytest.raises(NotFoundError):
        status.get()


# -- listing


def test_ids_are_filtered_by_state_and_node_and_sorted(store):
    for sandbox_id, node, state in [("b", "n1", "READY"), ("a", "n2", "READY"), ("c", "n1", "UNKNOWN")]:
        store.load(sandbox_id, Status(State(state)), node=node)
    store.create(sandbox_id="d", node="n1")
    assert store.ids() == ["a", "b", "c"]
    assert store.ids(node="n1") == ["b", "c"]
    assert store.ids(states=list(State), node="n1") == ["b", "c", "d"]
    assert store.ids(states=(State.READY,)) == ["a", "b"]
    assert store.ids(states={State.INIT}) == ["d"]
    assert store.ids(states=[]) == store.ids(node="n3") == []


def test_a_listing_survives_a_member_that_is_no_id(store, client, prefix):
    started(store)
    client.zadd(f"{prefix}:{{0}}:state:READY", {b"\xff": 0})
    assert "it" in store.ids()


# -- what is passed in

BAD_IDS = ["", ".a", "-a", "a b", "a/b", "a{0}", "a\n", "é", "a\x00", "x" * 129, None, 7, b"it", ["it"]]
BAD_NODES = [".a", "a b", "a:b", "x" * 129, "n\n", None, 7, b"n"]
BAD_TIMEOUTS = [0, -1, float("nan"), float("inf"), True, "1", 10**9]
STATUS = Status(State.READY)
SAME = lambda status: status  # noqa: E731
BAD_CALLS = [
    *(("sandbox_id", lambda s, i=i: s.get(i)) for i in BAD_IDS),
    *(("sandbox_id", lambda s, i=i: s.create(sandbox_id=i)) for i in BAD_IDS if i is not None),
    *(("node", lambda s, n=n: s.create(node=n)) for n in BAD_NODES),
    *(("timeout", lambda s, t=t: s.get("it", timeout=t)) for t in BAD_TIMEOUTS),
    *((a, lambda s, m=m: s.create(metadata=m)) for m, a in BAD_METADATA if m is not None),
    ("sandbox_id", lambda s: s.load("", STATUS)),
    ("sandbox_id", lambda s: s.start("", pid=1)),
    ("sandbox_id", lambda s: s.fail_start("")),
    ("sandbox_id", lambda s: s.port_forward("")),
    ("sandbox_id", lambda s: s.stop("")),
    ("sandbox_id", lambda s: s.exit("", exit_status=0)),
    ("sandbox_id", lambda s: s.remove("")),
    ("sandbox_id", lambda s: s.update("", SAME)),
    ("timeout", lambda s: s.create(timeout=0)),
    ("timeout", lambda s: s.load("it", STATUS, timeout=0)),
    ("timeout", lambda s: s.start("it", pid=1, timeout=0)),
    ("timeout", lambda s: s.fail_start("it", timeout=0)),
    ("timeout", lambda s: s.port_forward("it", timeout=0)),
    ("timeout", lambda s: s.stop("it", timeout=0)),
    ("timeout", lambda s: s.exit("it", exit_status=0, timeout=0)),
    ("timeout", lambda s: s.remove("it", timeout=0)),
    ("timeout", lambda s: s.update("it", SAME, timeout=0)),
    ("created_at_ns", lambda s: s.create(created_at_ns=0)),
    ("created_at_ns", lambda s: s.create(created_at_ns=2**63)),
    ("created_at_ns", lambda s: s.create(created_at_ns=1.0)),
    ("metadata", lambda s: s.load("it", STATUS, metadata={})),
    ("node", lambda s: s.load("it", STATUS, node="a b")),
    ("status", lambda s: s.load("it", "READY")),
    ("status.pid", lambda s: s.load("it", replace(STATUS, pid=2**32))),
    ("observed.state", lambda s: s.load("it", Status(State.INIT))),
    ("pid", lambda s: s.start("it", pid=-1)),
    ("pid", lambda s: s.start("it", pid=2**32)),
    ("pid", lambda s: s.start("it", pid=None)),
    ("pid", lambda s: s.start("it", pid=True)),
    ("exit_status", lambda s: s.exit("it", exit_status=-1)),
    ("exit_status", lambda s: s.stop("it", exit_status=2**32)),
    ("exited_at_ns", lambda s: s.exit("it", exit_status=0, exited_at_ns=0)),
    ("exited_at_ns", lambda s: s.exit("it", exit_status=0, exited_at_ns=2**63)),
    ("exited_at_ns", lambda s: s.stop("it", exited_at_ns=1)),
    ("fn", lambda s: s.update("it", None)),
]
BAD_LISTINGS = [
    ("states", lambda s: s.ids(states=["READY"])),
    ("states", lambda s: s.ids(states=State.READY)),
    ("states", lambda s: s.ids(states=5)),
    ("node", lambda s: s.ids(node="")),
    ("node", lambda s: s.ids(node="a b")),
    ("timeout", lambda s: s.ids(timeout=0)),
    ("timeout", lambda s: s.audit(timeout=0)),
]


@pytest.fixture
def unreachable(open_own):
    """A store whose server is not there: whatever it sends fails, so what it refuses it refused before."""
    return open_own("unix:///nonexistent/redis.sock")


@pytest.mark.parametrize(("argument", "call"), BAD_CALLS + BAD_LISTINGS)
def test_bad_input_is_refused_before_anything_is_sent(unreachable, argument, call):
    with pytest.raises(InvalidArgumentError) as error:
        call(unreachable)
    assert error.value.argument == argument
    assert str(error.value).startswith(f"{argument} is ")
    assert error.value.rule in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(("argument", "call"), BAD_CALLS)
def test_bad_input_in_a_batch_is_the_result_of_its_operation(unreachable, argument, call):
    with unreachable.batch() as batch:
        result = call(batch)
    assert isinstance(result.error, InvalidArgumentError)
    assert result.error.argument == argument


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        *(("prefix", {"prefix": prefix}) for prefix in ["", "a b", "a{b", "a}", "x" * 129, "a\n", None, b"a"]),
        *(("timeout", {"timeout": timeout}) for timeout in [*BAD_TIMEOUTS, None]),
        *(("partitions", {"partitions": partitions}) for partitions in [0, -1, 16385, "1", True, 1.0]),
        *(("events_maxlen", {"events_maxlen": maxlen}) for maxlen in [0, -1, 2**63, "1"]),
        *(("agent", {"agent": agent}) for agent in ["x" * 257, "a\x00", "\ud800", 7]),
    ],
)
@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_bad_settings_are_refused(kind, argument, settings):
    with pytest.raises(InvalidArgumentError) as error:
        kind.from_url("redis://127.0.0.1:1", **settings)
    assert error.value.argument == argument


@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_a_url_or_client_of_another_kind_is_refused_and_shows_no_password(kind):
    hidden = ("http://user:secret@host", "redis://user:secret@host:port", "redis://host:port?password=secret")
    for url in (*hidden, "127.0.0.1:6379", ""):
        with pytest.raises(InvalidArgumentError) as error:
            kind.from_url(url)
        assert "secret" not in str(error.value) + repr(vars(error.value))
    for client in (None, object(), redis.asyncio.Redis() if kind is SandboxStore else redis.Redis()):
        with pytest.raises(InvalidArgumentError):
            kind(client)


@pytest.mark.parametrize("sandbox_id", ["a", "A.b_c-9", "0" * 128])
def test_good_ids_are_taken(store, sandbox_id):
    assert store.create(sandbox_id=sandbox_id, node=sandbox_id).id == sandbox_id
    assert store.ids(states=[State.INIT], node=sandbox_id) == [sandbox_id]


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata(labels={str(i): "" for i in range(1000)}),
        Metadata(annotations={"big": "x" * 64_000}),
        Metadata(*["é" * 512] * 3, 2**32 - 1, "x" * 1024, *[{"k" * 1024: "v" * 1024}] * 3),
    ],
)
def test_the_greatest_metadata_is_stored(store, metadata):
    assert store.create(sandbox_id="0" * 128, node="0" * 128, metadata=metadata).metadata == metadata
    assert store.audit().events[0].sandbox.metadata == metadata


# -- clients that are passed in

CLIENTS = [
    {"decode_responses": True},
    {"protocol": 2},
    {"protocol": 3},
    {"protocol": 3, "decode_responses": True, "encoding": "latin-1"},
    {"retry": "ten times"},
    {"single_connection_client": True},
    {"health_check_interval": 1, "socket_timeout": 5, "client_name": "mine"},
]


@pytest.mark.parametrize("kwargs", CLIENTS)
def test_any_client_will_do_whatever_it_does_with_replies(open_own, server, flavour, prefix, kwargs):
    library = redis if flavour == "sync" else redis.asyncio
    if "retry" in kwargs:
        kwargs = {"retry": library.retry.Retry(redis.backoff.NoBackoff(), 10), "retry_on_error": [redis.ResponseError]}
    store = open_own(library.Redis.from_url(server.url, **kwargs), prefix=prefix)
    sandbox = started(store, metadata=WEB)
    assert store.update("it", lambda status: replace(status, pid=9)).status.pid == 9
    with pytest.raises(TransitionError):
        store.start("it", pid=1)
    assert store.get("it").metadata == WEB == sandbox.metadata
    with store.batch() as batch:
        removed = batch.remove("it", force=True)
    assert removed.result() is True
    assert store.audit().problems == []


def test_a_store_is_reached_by_tcp_as_well(open_own, own_server, monkeypatch):
    server = own_server(port=0)
    monkeypatch.setenv("SANDBOX_REDIS_URL", server.url)
    started(open_own(agent="node 1/cri"))
    with redis.Redis.from_url(server.url) as client:
        assert "node_1/cri" in {connection["name"] for connection in client.client_list()}
        assert client.exists("sandbox:{0}:status:it")


@pytest.mark.parametrize("backend", ["valkey", "redis"])
def test_a_store_goes_on_after_its_scripts_were_flushed(store, client):
    for call in (
        lambda: store.create(sandbox_id="it"),
        lambda: store.start("it", pid=1),
        lambda: store.port_forward("it"),
        lambda: store.update("it", lambda status: replace(status, pid=2)),
        lambda: store.remove("it", force=True),
    ):
        client.script_flush()
        call()
    assert len(store.audit().events) == 5


def test_a_closed_store_can_be_used_again(store):
    started(store)
    store.close() if isinstance(store, SandboxStore) else store.runner.run(store.wrapped.aclose())
    assert store.update("it", lambda status: replace(status, pid=8)).status.pid == 8


def test_an_asyncio_store_goes_on_in_another_event_loop(server, prefix):
    store = AsyncSandboxStore(server.url, prefix=prefix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a loop that ends leaves its connections open
        asyncio.run(store.create(sandbox_id="it"))
        assert asyncio.run(store.start("it", pid=1)).status.pid == 1
        assert asyncio.run(store.update("it", lambda status: replace(status, pid=2))).status.pid == 2
        del store
        gc.collect()


# -- the drivers


@pytest.fixture
def drive(store, flavour):
    """Carries out an operation of the test's own, over the connections of the store."""
    if flavour == "sync":
        return lambda op: store_module.play(store._lane, op)
    return lambda op: store.runner.run(aio_module.play(store.wrapped._lane, op))


def test_a_connection_that_may_still_watch_is_never_used_again(drive, client, prefix):
    key = f"{prefix}:meta"

    def abandoned():
        yield Send(key, (("WATCH", key), ("HGETALL", key)), 5, Lease.TAKE)
        raise ZeroDivisionError

    def transaction():
        taken = yield Send(key, (("PING",),), 5, Lease.TAKE)
        client.hset(key, "schema", "1")  # would fail an EXEC of who watches
        replies = yield Send(key, (("MULTI",), ("HGETALL", key), ("EXEC",)), 5, Lease.LAST)
        return taken, replies[-1] is not None

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            drive(abandoned())
        assert drive(transaction()) == ([b"PONG"], True)


def test_an_operation_that_pauses_holds_no_connection(drive, prefix):
    def op():
        yield Send("key", (("PING",),), 5, Lease.TAKE)
        yield Sleep(0)
        try:
            yield Send("key", (("PING",),), 5, Lease.LAST)
        except Unsent as unsent:
            return unsent

    assert "lost" in drive(op()).reason


def test_an_error_reply_is_a_reply_and_leaves_its_connection_in_step(drive, client, prefix):
    def op():
        client.set(f"{prefix}:meta", "text")
        commands = (("HGETALL", f"{prefix}:meta"), ("PING",), ("EVALSHA", "0" * 40, 0), ("ECHO", b"\xff"))
        shared = yield Send("key", commands, 5)
        taken = yield Send("key", commands, 5, Lease.TAKE)
        transaction = (("MULTI",), ("HGETALL", f"{prefix}:meta"), ("PING",), ("EXEC",))
        given_back = yield Send("key", transaction, 5, Lease.LAST)
        return shared, taken, (yield Send("key", commands, 5)), given_back[-1]

    *plain, executed = drive(op())
    for wrong, pong, unknown, echo in plain:
        assert (wrong.code, pong, unknown.code, echo) == ("WRONGTYPE", b"PONG", "NOSCRIPT", b"\xff")
    assert (executed[0].code, executed[1]) == ("WRONGTYPE", b"PONG")


# -- audit


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda c, h: c.zrem(f"{h}state:READY", "it"), "state:READY lacks it"),
        (lambda c, h: c.zadd(f"{h}state:INIT", {"it": 0}), "state:INIT has it without reason"),
        (lambda c, h: c.zadd(f"{h}node:node-2", {"it": 0}), "node:node-2 has it without reason"),
        (lambda c, h: c.hset(f"{h}status:it", "pid", "9"), "differs from its last event"),
        (lambda c, h: c.hset(f"{h}status:it", "revision", "1-1"), "differs from its last event"),
        (lambda c, h: c.delete(f"{h}status:it"), "it is absent"),
        (
            lambda c, h: c.xadd(f"{h}events", {"id": "it", "transition": "start", "before": "INIT", "state": "READY"}),
            "says",
        ),
        (lambda c, h: c.xadd(f"{h}events", {"id": "no", "transition": "create", "state": "READY"}), "cannot lead"),
        (
            lambda c, h: c.xadd(
                f"{h}events", {"id": "no", "transition": "start", "before": "READY", "state": "NOTREADY"}
            ),
            "cannot lead",
        ),
        (lambda c, h: c.delete(f"{h}events"), "it has no event"),
    ],
)
def test_an_audit_tells_what_does_not_fit_together(store, client, prefix, plant, said):
    started(store)
    assert store.audit().problems == []
    plant(client, f"{prefix}:{{0}}:")
    assert any(said in problem for problem in store.audit().problems)


@pytest.mark.parametrize(
    "plant",
    [
        lambda c, h: c.xadd(f"{h}events", {"foo": "bar"}),
        lambda c, h: c.xadd(f"{h}events", {"id": b"\xff", "transition": "create", "state": "INIT"}),
        lambda c, h: c.xadd(f"{h}events", {"id": "it", "transition": b"\xff", "before": "READY", "state": "READY"}),
        lambda c, h: c.zadd(f"{h}state:READY", {b"\xff": 0}),
        lambda c, h: c.zadd(f"{h}node:node-1", {b"\xff": 0}),
        lambda c, h: c.hset(f"{h}status:it", "node", b"\xff"),
        lambda c, h: c.hset(h.encode() + b"status:\xff", "state", "READY"),
        lambda c, h: c.hset(f"{h}status:it", "state", b"\xff"),
    ],
)
def test_an_audit_survives_what_does_not_belong_in_a_store_and_tells_it(store, client, prefix, plant):
    started(store)
    plant(client, f"{prefix}:{{0}}:")
    assert store.audit().problems


def test_an_audit_reads_only_its_own_store_whatever_its_prefix(open_store, client, prefix):
    started(open_store(prefix=f"{prefix}-x"), "other")
    for pattern in ("*", "[x]", "?", "\\x"):
        store = open_store(prefix=f"{prefix}-{pattern}")
        started(store)
        audit = store.audit()
        assert (set(audit.sandboxes), audit.problems) == ({"it"}, [])
    client.unlink(*client.scan_iter(f"{prefix}-*"))
