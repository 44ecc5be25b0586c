"""A local copy that is read at memory speed: it is the store, it never goes back, and it tells what changes. What it
does when servers and networks fail stands in ``test_mirror_faults.py``."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Self

import pytest
import redis
from faults.writes import METADATA, NOTREADY, READY, opened
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_redis import (
    AsyncSandboxStore,
    Event,
    InvalidArgumentError,
    Metadata,
    NotFoundError,
    Sandbox,
    SandboxError,
    SandboxStore,
    State,
    WaitTimeoutError,
)
from sandbox_redis.keys import Keys
from sandbox_redis.server import EmbeddedServer

LISTED = {State.READY, State.NOTREADY, State.UNKNOWN}
NEVER = "9999999999999-0"  # a revision that no write will have
every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])
# Servers and flavours have little to do with each other: each is tested twice, all pairs would be four tests.
every_pair = pytest.mark.parametrize("server, flavour", [("valkey", "sync"), ("redis", "asyncio")], indirect=["server"])
many_partitions = pytest.mark.parametrize("partitions", [1, 4, 64], indirect=True)
one_partition = pytest.mark.parametrize("partitions", [1], indirect=True)
real_servers = pytest.mark.parametrize("backend", ["valkey", "redis"])
nowhere_special = pytest.mark.parametrize("backend", ["fakeredis"])  # what it does before it asks any server


class BlockingMirror:
    """An `AsyncMirror` with the face of the sync one. Before each read the event loop runs a little, so that the
    mirror's task takes in what has come."""

    def __init__(self, runner: asyncio.Runner, mirror: Any) -> None:
        self.runner = runner
        self.wrapped = mirror

    def __getattr__(self, name: str) -> Any:
        self.runner.run(self._turn())
        value = getattr(self.wrapped, name)
        if not asyncio.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: self.runner.run(value(*args, **kwargs))

    @staticmethod
    async def _turn() -> None:
        for _ in range(4):  # what has come is read, its task wakes up, takes it in, and asks for more
            await asyncio.sleep(0)

    def close(self) -> None:
        self.runner.run(self.wrapped.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def mirror_of(store: Any, **settings: Any) -> Any:
    """A mirror of a store of either flavour, with the face of the sync one."""
    mirror = store.mirror(**settings)
    return mirror if isinstance(store, SandboxStore) else BlockingMirror(store.runner, mirror)


@contextmanager
def held(mirror: Any) -> Iterator[None]:
    """Nothing is taken in meanwhile, as if the process had no time. An event loop does not run by itself here."""
    with nullcontext() if isinstance(mirror, BlockingMirror) else mirror._lock:
        yield


@pytest.fixture
def mirror() -> Iterator[Callable[..., Any]]:
    """Opens mirrors, ``mirror(store, node="n1")``, and closes them at the end."""
    mirrors: list[Any] = []

    def open_(store: Any, **settings: Any) -> Any:
        mirrors.append(mirror_of(store, **settings))
        return mirrors[-1]

    yield open_
    for each in mirrors:
        each.close()


@pytest.fixture
def partitions(request, backend, flavour) -> int:
    """Each number with each kind of store, and not all with all."""
    numbers = {("fakeredis", "sync"): 1, ("fakeredis", "asyncio"): 4, ("valkey", "sync"): 4, ("redis", "asyncio"): 4}
    return getattr(request, "param", None) or numbers.get((backend, flavour), 1)


@pytest.fixture
def store(open_store, partitions) -> Any:
    return open_store(partitions=partitions)


@pytest.fixture
def server(request, module_servers) -> EmbeddedServer:
    return module_servers(getattr(request, "param", "valkey"))


@pytest.fixture
def looking(server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def other(looking) -> Iterator[SandboxStore]:
    """Another agent, who writes."""
    with SandboxStore(looking, agent="other") as store:
        yield store


@pytest.fixture
def mine(server, looking, flavour) -> Iterator[Any]:
    """A store whose connections can be told from others."""
    with opened(flavour, server.url, agent="me") as store:
        yield store


@pytest.fixture
def clients(looking) -> Callable[[], list[dict[str, str]]]:
    """The connections of `mine`."""
    return lambda: [client for client in looking.client_list() if client["name"] == "me"]


def place(revision: str) -> tuple[int, ...]:
    return tuple(map(int, revision.split("-")))


def all_of(mirror: Any) -> dict[str, Sandbox]:
    return {sandbox.id: sandbox for sandbox in mirror.list(states=list(State))}


def ids(sandboxes: Iterable[Sandbox]) -> list[str]:
    return [sandbox.id for sandbox in sandboxes]


def mark_in(partitions: int, partition: int) -> str:
    """An id in a partition, for a sandbox by which a test knows that everything before has been taken in."""
    layout = Keys("", partitions)
    return next(each for each in (f"mark{i}" for i in count()) if layout.partition(each) == partition)


def marks_for(partitions: int, sandbox_ids: Iterable[str]) -> list[str]:
    return [mark_in(partitions, each) for each in {Keys("", partitions).partition(each) for each in sandbox_ids}]


def mark(store: Any, names: Iterable[str]) -> list[Sandbox]:
    """Change the marks, which comes behind everything that happened before in their partitions."""
    with store.batch() as batch:
        for name in names:
            batch.remove(name, force=True)
        marks = [batch.load(name, NOTREADY, node="marks") for name in names]
    return [result.result() for result in marks]


def live(store: Any) -> None:
    """Some lives, of all kinds, on two nodes, with and without labels and namespaces."""
    for i, name in enumerate(("init", "ready", "exited", "again", "gone", "failed")):
        labels = {"app": ("web", "db")[i % 2]} | ({"tier": "front"} if i % 3 == 0 else {})
        for node in ("", "n1", "n2"):
            metadata = Metadata(name=name, namespace=("blue", "")[i // 2 % 2], labels=labels, extensions={"i": [i]})
            store.create(sandbox_id=f"{name}-{node or 'n0'}", node=node, metadata=metadata)
    for node in ("n0", "n1", "n2"):
        for name in ("ready", "exited", "again", "gone"):
            store.start(f"{name}-{node}", pid=7)
        store.update(f"ready-{node}", lambda status: replace(status, pid=8))
        store.exit(f"exited-{node}", exit_status=3)
        store.remove(f"again-{node}", force=True)
        store.remove(f"gone-{node}", force=True)
        store.fail_start(f"failed-{node}")
        store.create(sandbox_id=f"again-{node}", node="n2", metadata=Metadata(labels={"app": "web"}))
        store.load(f"lost-{node}", replace(READY, state=State.UNKNOWN), node=node, metadata=METADATA)


# -- it is the store

FILTERS: list[dict[str, Any]] = [
    {},
    {"node": "n1"},
    {"labels": {"app": "web"}},
    {"namespace": "blue"},
    {"states": [State.READY]},
    {"states": list(State)},
    {"states": []},
    {"states": (State.INIT, State.UNKNOWN), "node": "n2"},
    {"states": {State.NOTREADY, State.READY}, "node": "n1", "labels": {"app": "web", "tier": "front"}},
    {"labels": {"app": "db"}, "namespace": "blue", "node": "n2"},
]


def both(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any] | None:
    """The filters of a mirror and those of a listing of it, as one; None where nothing can fit both."""
    for name in ("node", "namespace"):
        if outer.get(name) and inner.get(name) and outer[name] != inner[name]:
            return None
    labels = [*outer.get("labels", {}).items(), *inner.get("labels", {}).items()]
    if len(dict(labels)) != len(set(labels)):
        return None
    states = set(inner.get("states", outer.get("states", LISTED))) & set(outer.get("states", State))
    return {**outer, **inner, "labels": dict(labels), "states": states}


def fits(sandbox: Sandbox, filters: Mapping[str, Any] | None) -> bool:
    if filters is None:
        return False
    has = sandbox.metadata
    return (
        sandbox.status.state in filters["states"]
        and sandbox.node == filters.get("node", sandbox.node)
        and has.namespace == filters.get("namespace", has.namespace)
        and filters["labels"].items() <= has.labels.items()
    )


@pytest.mark.parametrize("partitions", [4], indirect=True)
def test_every_combination_of_filters_gives_what_the_store_gives(store, mirror, partitions):
    """Of a mirror that saw it happen, and of one that was opened afterwards."""
    mirrors = [(filters, mirror(store, **filters)) for filters in FILTERS]
    live(store)
    marks = mark(store, [mark_in(partitions, partition) for partition in range(partitions)])
    mirrors += [(filters, mirror(store, **filters)) for filters in FILTERS]
    everything = {sandbox.id: sandbox for sandbox in store.list(states=State)}
    assert len(everything) == 15 + partitions
    for outer, found in mirrors:
        for each in marks:
            found.wait_for(each)
        for inner in FILTERS:
            expected = [each for _, each in sorted(everything.items()) if fits(each, both(outer, inner))]
            assert found.list(**inner) == expected, (outer, inner)
    for inner in FILTERS:  # what the test takes for fitting is what the store does
        merged = both(inner, inner)
        assert merged is not None
        assert set(ids(store.list(**merged))) == {each.id for each in everything.values() if fits(each, merged)}


LIVES = ["a", "b", "c"]
LABELS: list[dict[str, str]] = [{}, {"app": "web"}, {"app": "web", "tier": "front"}, {"app": "db"}]
BORN = st.fixed_dictionaries(
    {
        "node": st.sampled_from(["", "n1", "n2"]),
        "metadata": st.builds(
            Metadata, namespace=st.sampled_from(["", "blue"]), labels=st.sampled_from(LABELS), uid=st.text(max_size=2)
        ),
    }
)
OBSERVED = st.sampled_from([READY, NOTREADY, replace(READY, state=State.UNKNOWN)])
WRITES: dict[str, Callable[..., Any]] = {
    "create": lambda store, i, born: store.create(sandbox_id=i, **born),
    "load": lambda store, i, born, observed: store.load(i, observed, **born),
    "start": lambda store, i, pid: store.start(i, pid=pid),
    "fail_start": lambda store, i: store.fail_start(i),
    "update": lambda store, i, pid: store.update(i, lambda status: replace(status, pid=pid)),
    "stop": lambda store, i: store.stop(i),
    "exit": lambda store, i, pid: store.exit(i, exit_status=pid),
    "remove": lambda store, i: store.remove(i),
    "force": lambda store, i: store.remove(i, force=True),
}
PID = st.integers(1, 3)
TAKES = {"create": [BORN], "load": [BORN, OBSERVED], "start": [PID], "update": [PID], "exit": [PID]}
CALLS = st.lists(
    st.sampled_from(sorted(WRITES)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(LIVES), *TAKES.get(name, []))
    ),
    min_size=1,
    max_size=12,
)


@many_partitions
def test_a_mirror_is_the_store_whatever_happens(backend, store, mirror, partitions):
    """Any sequence of operations, also those that are refused; ids come again with other nodes and labels."""
    mirrors = [(filters, mirror(store, **filters)) for filters in FILTERS]
    marks = marks_for(partitions, LIVES)

    @settings(max_examples=3 if backend == "fakeredis" else 10)
    @given(CALLS, st.sampled_from(FILTERS))
    def play(calls: list[Any], inner: dict[str, Any]) -> None:
        for each in LIVES:
            store.remove(each, force=True)
        for name, *arguments in calls:
            with suppress(SandboxError):
                WRITES[name](store, *arguments)
        known = mark(store, marks)
        everything = store.get_many([*LIVES, *marks])
        for outer, found in mirrors:
            for each in known:
                found.wait_for(each)
            shown = [each for _, each in sorted(everything.items()) if fits(each, both(outer, {"states": State}))]
            assert found.list(states=State) == shown
            assert found.list() == [each for each in shown if fits(each, both(outer, {}))]
            assert found.list(**inner) == [each for each in shown if fits(each, both(outer, inner))]
            for sandbox_id in everything.keys() | set(LIVES):
                assert found_in(found, sandbox_id) == next((each for each in shown if each.id == sandbox_id), None)
            assert found.count() == len(found.list())
            for state, node in ((State.READY, None), (None, "n1"), (State.INIT, "n2")):
                of_node = {} if node is None else {"node": node}
                of_state = {} if state is None else {"states": [state]}
                assert found.count(state=state, node=node) == len(found.list(**of_node, **of_state))

    play()


def found_in(mirror: Any, sandbox_id: str) -> Sandbox | None:
    try:
        return mirror.get(sandbox_id)
    except NotFoundError as error:
        assert error.id == sandbox_id
        return None


@one_partition
def test_counts_are_those_of_the_store(store, mirror):
    early = mirror(store)
    live(store)
    late = mirror(store)
    early.wait_for(*mark(store, ["mark"]))
    late.wait_for(early.get("mark"))
    for state in (None, *State):
        for node in (None, "n1", "n2", "nobody"):
            expected = store.count(state=state, node=node)
            assert early.count(state=state, node=node) == late.count(state=state, node=node) == expected


def test_what_is_read_is_whole(store, mirror):
    """Events carry no metadata after the first; a mirror keeps it."""
    early = mirror(store)
    created = store.create(sandbox_id="a", node="n", metadata=METADATA)
    late = mirror(store)
    for written in (
        created,
        store.start("a", pid=7),
        store.update("a", lambda status: replace(status, pid=8)),
        store.exit("a", exit_status=3),
    ):
        for found in (early, late):
            found.wait_for(written)
    for found in (early, late):
        assert found.get("a") == store.get("a")
        assert found.get("a").metadata == METADATA
        assert found.list() == [store.get("a")]


def test_a_sandbox_enters_and_leaves_the_states(store, mirror):
    running = mirror(store, states=[State.READY])
    store.create(sandbox_id="a", node="n", metadata=METADATA)
    mark_, = mark(store, ["a-mark"])  # fmt: skip
    assert found_in(running, "a") is None
    started = store.start("a", pid=7)
    running.wait_for(started)
    assert running.get("a") == started
    assert running.list() == running.list(states=State) == [started]
    running.wait_for(store.stop("a"))
    assert found_in(running, "a") is None
    assert running.list() == running.list(states=State) == []
    assert mark_.status.state is State.NOTREADY


def test_init_is_there_for_who_asks_for_it(store, mirror):
    created = store.create(sandbox_id="a")
    plain, coming = mirror(store), mirror(store, states=[State.INIT])
    assert (plain.list(), plain.count()) == ([], 0)
    assert (plain.list(states=[State.INIT]), plain.count(state=State.INIT)) == ([created], 1)
    assert (coming.list(), coming.count()) == ([created], 1)
    assert plain.get("a") == coming.get("a") == created
    started = store.start("a", pid=1)
    for found in (plain, coming):
        found.wait_for(started)
    assert (plain.list(), plain.count()) == ([started], 1)
    assert (coming.list(), coming.count()) == ([], 0)


def test_an_id_that_comes_again_elsewhere_is_another_sandbox(store, mirror):
    here, web = mirror(store, node="n1"), mirror(store, labels={"app": "web"})
    first = store.load("a", READY, node="n1", metadata=METADATA)
    for found in (here, web):
        found.wait_for(first)
        assert found.get("a") == first
    store.remove("a", force=True)
    second = store.load("a", READY, node="n2", metadata=Metadata(labels={"app": "db"}))
    changed = store.update("a", lambda status: replace(status, pid=8))
    assert place(second.revision) < place(changed.revision)
    for found in (here, web):
        found.wait_for(changed)
        assert found_in(found, "a") is None
        assert found.list() == []
    store.remove("a", force=True)
    third = store.load("a", NOTREADY, node="n1", metadata=METADATA)
    for found in (here, web):
        found.wait_for(third)
        assert found.get("a") == third


def test_a_listing_is_in_the_order_of_the_ids(store, mirror):
    found = mirror(store)
    for each in ("b", "c", "a", "A", "a-1", "0"):
        found.wait_for(store.load(each, READY))
    assert ids(found.list()) == sorted(ids(found.list())) == ["0", "A", "a", "a-1", "b", "c"]


def test_what_was_read_does_not_change(store, mirror):
    """Readers keep it, or look through it while the next event comes."""
    store.load("a", READY, metadata=METADATA)
    found = mirror(store)
    listed, got = found.list(), found.get("a")
    before = got.status
    found.wait_for(store.stop("a"))
    found.wait_for(store.load("b", READY))
    assert listed == [got]
    assert got.status == before
    assert len(found.list()) == 2


@real_servers
@one_partition
def test_more_sandboxes_than_a_page_and_more_events_than_a_reply(store, mirror):
    with store.batch() as batch:
        for i in range(600):
            batch.load(f"s{i:04}", READY)
    found = mirror(store)
    assert found.count() == 600
    with store.batch() as batch:
        for i in range(600, 2100):
            last = batch.load(f"s{i:04}", READY, metadata=METADATA)
    found.wait_for(last.result())
    assert ids(found.list()) == [f"s{i:04}" for i in range(2100)]


def test_a_record_that_cannot_be_read_is_shown_with_its_problem(store, mirror, client, prefix, partitions):
    store.load("a", READY, metadata=METADATA)
    client.hset(Keys(prefix, partitions).status("a"), "pid", "many")
    found = mirror(store)
    assert found.list() == [store.get("a")]
    assert (found.get("a").status.state, bool(found.get("a").problem)) == (State.UNKNOWN, True)
    stopped = store.stop("a")
    found.wait_for(stopped)
    assert found.get("a").problem is None
    assert found.get("a").status.state is State.NOTREADY


@one_partition
def test_a_count_is_how_many_a_listing_gives(store, mirror, client, prefix):
    """Also with a record that cannot be read."""
    live(store)
    client.hset(Keys(prefix, 1).status("ready-n1"), "pid", "many")
    for filters in FILTERS:
        found = mirror(store, **filters)
        assert found.count() == len(found.list()), filters
        for state in State:
            assert found.count(state=state) == len(found.list(states=[state])), (filters, state)


@one_partition
def test_what_others_write_into_the_stream_harms_nobody(store, mirror, client, prefix):
    store.load("a", READY)
    found = mirror(store)
    for fields in ({"x": "y"}, {"id": "c"}, {"id": "c", "transition": "stop"}, {"id": "b", "transition": "create"}):
        client.xadd(f"{prefix}:{{0}}:events", fields)
    found.wait_for(store.stop("a"))
    assert found.list() == [store.get("a")]
    assert found.synced


@every_flavour
@pytest.mark.parametrize("backend", ["valkey"])
def test_the_first_writer_decides_on_the_partitions_also_for_who_looked_before(open_store, mirror, until):
    """What the mirror took for granted when there was no store yet does not count."""
    early = mirror(open_store(partitions=1), heartbeat=0.2)
    writer = open_store(partitions=4)
    for i in range(20):
        writer.create(sandbox_id=f"s{i}")
    with suppress(pytest.fail.Exception):
        until(lambda: early.count(state=State.INIT) == 20, timeout=3)
    assert early.count(state=State.INIT) == 20


# -- what is refused

WRONG = (
    *({"node": ""}, {"node": "no node"}, {"node": 5}, {"states": "READY"}, {"states": ["READY"]}, {"states": 5}),
    *({"labels": {"": "x"}}, {"labels": 5}, {"labels": {"a": 5}}, {"namespace": ""}, {"namespace": 5}),
)


@every_flavour
@pytest.mark.parametrize("wrong", WRONG + tuple({"heartbeat": h} for h in (0, -1, "1", None, True)), ids=str)
def test_a_wrong_mirror_is_refused_before_anything_is_sent(flavour, wrong):
    with opened(flavour, "unix:///nowhere/redis.sock") as store, pytest.raises(InvalidArgumentError) as caught:
        store.mirror(**wrong)
    assert caught.value.argument.startswith(next(iter(wrong)))


@nowhere_special
@one_partition
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_filter_is_refused(store, mirror, wrong):
    with pytest.raises(InvalidArgumentError) as caught:
        mirror(store).list(**wrong)
    assert caught.value.argument.startswith(next(iter(wrong)))


@nowhere_special
@one_partition
@pytest.mark.parametrize("wrong", [{"state": "READY"}, {"state": 5}, {"node": ""}, {"node": "no node"}], ids=str)
def test_a_wrong_count_is_refused_as_by_the_store(store, mirror, wrong):
    for counting in (store, mirror(store)):
        with pytest.raises(InvalidArgumentError) as caught:
            counting.count(**wrong)
        assert caught.value.argument == next(iter(wrong))


@nowhere_special
@one_partition
@pytest.mark.parametrize("wrong", ["", "*", "a b", None, 5, b"a", ["a"]], ids=repr)
def test_a_wrong_id_is_refused(store, mirror, wrong):
    with pytest.raises(InvalidArgumentError) as caught:
        mirror(store).get(wrong)
    assert caught.value.argument == "sandbox_id"


RUBBISH = ("", "now", "0", "1-", "-1", "1-x", "1-0-0", "1.0-0", "1-0,1-0", " 1-0", "1_0-0", "+1-0", b"1-0", 5, None)


@nowhere_special
@one_partition
@pytest.mark.parametrize("wrong", RUBBISH, ids=repr)
def test_waiting_for_what_is_no_revision_is_refused(store, mirror, wrong):
    with pytest.raises(InvalidArgumentError, match="revision") as caught:
        mirror(store).wait_for(wrong, timeout=0.1)
    assert (caught.value.argument, caught.value.value) == ("revision", wrong)


@nowhere_special
@one_partition
@pytest.mark.parametrize("wrong", [0, -1, "1", True], ids=repr)
def test_a_wrong_timeout_is_refused(store, mirror, wrong):
    written = store.create()
    with pytest.raises(InvalidArgumentError) as caught:
        mirror(store).wait_for(written, timeout=wrong)
    assert caught.value.argument == "timeout"


def test_a_revision_alone_says_enough_in_one_partition_only(store, mirror, partitions):
    found = mirror(store)
    written = store.create()
    if partitions == 1:
        found.wait_for(written.revision)
        assert found.get(written.id) == written
    else:
        with pytest.raises(InvalidArgumentError, match="several partitions") as caught:
            found.wait_for(written.revision)
        assert caught.value.argument == "revision"
        found.wait_for(written)


# -- one's own writes


@many_partitions
def test_who_waits_for_a_write_reads_it(store, mirror):
    found = mirror(store)
    for i in range(10):
        for write in (
            partial(store.create, sandbox_id=f"s{i}"),
            partial(store.start, f"s{i}", pid=i),
            partial(store.exit, f"s{i}", exit_status=1),
        ):
            written = write()
            found.wait_for(written)
            assert found.get(written.id) == written
        store.remove(f"s{i}", force=True)


def test_a_read_behind_a_write_is_never_older_than_it(open_store, store, mirror, partitions):
    """Another agent changes the same sandboxes all the time: what is read may be newer."""
    found, another = mirror(store), open_store(partitions=partitions)
    for i in range(20):
        written = store.load("a", READY)
        another.update("a", lambda status: replace(status, pid=i + 10))  # noqa: B023 - it runs at once
        found.wait_for(written)
        assert place(found.get("a").revision) >= place(written.revision)
        another.remove("a", force=True)


def test_waiting_for_what_is_known_is_over_at_once(store, mirror):
    written = [store.create(sandbox_id="a"), store.start("a", pid=1)]
    found = mirror(store)
    for each in written:
        found.wait_for(each, timeout=0.001)
    found.wait_for(store.stop("a"))
    for each in written:
        found.wait_for(each, timeout=0.001)


def test_waiting_for_a_sandbox_that_does_not_fit(store, mirror):
    """It will never be shown, but the mirror knows as much."""
    found = mirror(store, node="n1", states=[State.READY])
    for written in (
        store.load("elsewhere", READY, node="n2"),
        store.create(sandbox_id="init", node="n1"),
        store.load("ended", NOTREADY, node="n1"),
    ):
        found.wait_for(written)
    assert found.list(states=State) == []


def test_waiting_for_a_sandbox_that_is_gone_again(store, mirror):
    found = mirror(store)
    written = store.load("a", READY)
    store.remove("a", force=True)
    found.wait_for(written)
    found.wait_for(*mark(store, ["a"]))
    assert found.get("a").node == "marks"


SCRIPT = """
import sys
from sandbox_redis import SandboxStore
with SandboxStore.from_url(sys.argv[1]) as store:
    store.create(sandbox_id="a", node="n")
    print(store.start("a", pid=7).revision)
"""


@every_pair
def test_who_waits_for_a_write_of_another_process_reads_it(server, mine, mirror):
    found = mirror(mine)
    command = [sys.executable, "-W", "error", "-c", SCRIPT, server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    revision = done.stdout.strip()
    found.wait_for(revision)
    assert (found.get("a").revision, found.get("a").status.pid) == (revision, 7)


@one_partition
def test_waiting_ends_in_time(store, mirror):
    found = mirror(store, heartbeat=0.2)
    written = replace(store.load("a", READY), revision=NEVER)
    for timeout in (0.01, 0.3):  # also beyond a heartbeat
        begin = time.monotonic()
        with pytest.raises(WaitTimeoutError) as caught:
            found.wait_for(written, timeout=timeout)
        assert timeout <= time.monotonic() - begin < timeout + 1
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.id, caught.value.seconds) == ("a", timeout)
        for word in ("'a'", NEVER, f"{timeout:g} s"):
            assert word in str(caught.value)
    assert found.get("a").revision != NEVER


def test_without_a_timeout_that_of_the_store_counts(open_store, mirror):
    found = mirror(open_store(timeout=0.1))
    with pytest.raises(WaitTimeoutError) as caught:
        found.wait_for(NEVER)
    assert caught.value.seconds == 0.1


# -- what it says of itself


def test_it_is_complete_and_current_when_it_is_opened(store, mirror):
    live(store)
    found = mirror(store)
    assert found.synced
    assert not found.stale
    assert 0 <= found.age < 1
    assert all_of(found) == {sandbox.id: sandbox for sandbox in store.list(states=State)}


@real_servers
@one_partition
def test_its_age_is_about_a_heartbeat_at_most(backend, store, mirror):
    """While nothing happens; with slack for a server that looks at its clock ten times a second, and a busy machine."""
    mirrors = {heartbeat: mirror(store, heartbeat=heartbeat) for heartbeat in (0.05, 0.3)}
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        for heartbeat, found in mirrors.items():
            assert found.age < 2 * heartbeat + 0.5
            assert not found.stale, heartbeat
            assert found.synced
        time.sleep(0.002)  # a reader like any other


@every_flavour
@one_partition
@pytest.mark.parametrize("backend", ["valkey"])
def test_its_age_grows_until_the_heartbeat(backend, flavour, store, mirror, until):
    found = mirror(store, heartbeat=60)
    first = found.age
    until(lambda: found.age > first + 0.3)
    assert not found.stale


@every_flavour
@pytest.mark.parametrize("backend", ["valkey"])
def test_its_age_is_true_while_it_catches_up(backend, flavour, open_store, mirror):
    """Whatever happened longer ago is known: also while there is more to tell than one reply holds."""
    store = open_store(partitions=64)
    found = mirror(store, heartbeat=60)
    busy = mark_in(64, 0)
    with held(found), open_store(partitions=64).batch() as batch:
        for _ in range(100):
            batch.create(sandbox_id=busy)
            batch.fail_start(busy)
        batch.load(busy, READY)
    written = time.monotonic()

    def knows() -> bool:
        known = found_in(found, busy)
        return known is not None and known.status.state is State.READY

    while True:
        known_until = time.monotonic() - found.age
        if knows():
            break
        assert known_until <= written, "it says that it knows what it does not show"


# -- what it tells


def shown(sandbox: Sandbox | None, states: Iterable[State]) -> Sandbox | None:
    return sandbox if sandbox is not None and sandbox.status.state in states else None


def changes(events: Iterable[Event], states: Iterable[State] = State) -> dict[str, list[Any]]:
    """What is to be told of some events, for each sandbox: the order of different sandboxes is nobody's business."""
    known: dict[str, Sandbox] = {}
    found: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        before, after = known.pop(event.id, None), event.sandbox
        if after is not None:
            after = known[event.id] = replace(after, metadata=before.metadata) if before else after
        change = (shown(before, states), shown(after, states))
        if change != (None, None):
            found[event.id].append(change)
    return dict(found)


def by_sandbox(told: Iterable[tuple[Sandbox | None, Sandbox | None]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for before, after in told:
        found[(before or after).id].append((before, after))
    return dict(found)


def until_told(until: Callable[..., Any], mirror: Any, told: list[Any], number: int = 1) -> None:
    until(lambda: (mirror.count(), len(told) >= number)[1])  # reading it makes an asyncio mirror, and fakeredis, go on


@many_partitions
@pytest.mark.parametrize("states", [list(State), [State.INIT, State.NOTREADY]], ids=len)
def test_each_change_is_told_once_and_in_order(store, mirror, until, states):
    found = mirror(store, states=states)
    told: list[Any] = []
    found.on_change(lambda before, after: told.append((before, after)))
    live(store)
    expected = changes(store.audit().events, states)
    until_told(until, found, told, sum(map(len, expected.values())))
    assert by_sandbox(told) == expected


def test_only_changes_of_what_fits_are_told(store, mirror, until):
    told: list[Any] = []
    found = mirror(store, node="n1", labels={"app": "db"})
    found.on_change(lambda before, after: told.append((before, after)))
    live(store)
    wanted = {"ready-n1", "again-n1", "failed-n1"}  # see `live`; what comes again on n2 is another one
    events = store.audit().events
    here = [event for event in events if event.id in wanted and not (event.sandbox and event.sandbox.node != "n1")]
    expected = changes(here)
    until_told(until, found, told, sum(map(len, expected.values())))
    assert by_sandbox(told) == expected
    assert set(expected) == wanted


def test_what_happened_before_is_not_told(store, mirror, until):
    live(store)
    found = mirror(store)
    told: list[Any] = []
    found.wait_for(store.load("before", READY))
    found.on_change(lambda before, after: told.append((before, after)))
    created = store.create(sandbox_id="after")
    until_told(until, found, told)
    assert told == [(None, created)]


@one_partition
def test_all_callbacks_are_told_even_if_one_raises(store, mirror, until, caplog):
    told: list[Any] = []
    found = mirror(store)

    @found.on_change
    def fail(before: Sandbox | None, after: Sandbox | None) -> None:
        raise ValueError("not my day")

    found.on_change(lambda before, after: told.append((before, after)))
    with caplog.at_level(logging.INFO, "sandbox_redis"):
        created = store.create(sandbox_id="a")
        started = store.start("a", pid=1)
        until_told(until, found, told, 2)
    assert told == [(None, created), (created, started)]
    failures = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in failures] == ["not my day"] * 2
    assert {record.name for record in caplog.records} == {"sandbox_redis"}
    assert found.get("a") == started


@one_partition
def test_a_decorated_function_stays_what_it_is(store, mirror):
    def callback(before: Sandbox | None, after: Sandbox | None) -> None: ...

    assert mirror(store).on_change(callback) is callback


def test_a_callback_may_read_the_mirror(store, mirror, until):
    """What it reads is what it is told, or newer."""
    found = mirror(store)
    raw = found.wrapped if isinstance(found, BlockingMirror) else found
    seen: list[Any] = []

    @found.on_change
    def look(before: Sandbox | None, after: Sandbox | None) -> None:
        seen.append((after, raw.get(after.id), raw.list(), raw.count(), raw.age, raw.stale, raw.synced))

    for i in range(5):
        store.load(f"s{i}", READY)
    until_told(until, found, seen, 5)
    for after, got, listed, number, age, stale, synced in seen:
        assert got == after
        assert after in listed
        assert number >= 1
        assert (age >= 0, stale, synced) == (True, False, True)


@one_partition
def test_callbacks_may_be_added_by_a_callback(store, mirror, until):
    found = mirror(store)
    raw = found.wrapped if isinstance(found, BlockingMirror) else found
    told: list[Any] = []

    @found.on_change
    def add(before: Sandbox | None, after: Sandbox | None) -> None:
        if not told:
            told.append("added")
            raw.on_change(lambda before, after: told.append(after.id))

    store.load("a", READY)
    until_told(until, found, told)
    store.load("b", READY)
    until_told(until, found, told, 2)


@pytest.mark.parametrize("flavour", ["sync"])
def test_a_slow_callback_delays_no_reader(store, mirror, until, flavour):
    found = mirror(store)
    told: list[Any] = []
    go_on = threading.Event()

    @found.on_change
    def dawdle(before: Sandbox | None, after: Sandbox | None) -> None:
        go_on.wait()
        told.append(after.id)

    try:
        for i in range(5):
            written = store.load(f"s{i}", READY)
            found.wait_for(written)
            assert found.get(f"s{i}") == written
        assert told == []
    finally:
        go_on.set()
    until(lambda: told == [f"s{i}" for i in range(5)])


# -- its end


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sandbox-redis")}


@one_partition
def test_a_closed_mirror_can_be_read_on(store, mirror):
    live(store)
    for end in ("close", "with"):
        found = mirror(store, heartbeat=0.05)
        if end == "close":
            found.close()
        else:
            with found as entered:
                assert entered is found
        before = all_of(found)
        store.load(f"new-{end}", READY)
        assert all_of(found) == before
        assert found.get("ready-n1") == before["ready-n1"]
        assert found_in(found, f"new-{end}") is None
        assert (found.synced, found.stale) == (False, True)
        first = found.age
        time.sleep(0.001)  # the clock goes on
        assert found.age > first


@one_partition
def test_a_mirror_is_closed_as_often_as_one_likes(store, mirror):
    found = mirror(store)
    found.on_change(lambda before, after: None)
    for _ in range(3):
        found.close()
    with pytest.raises(WaitTimeoutError):
        found.wait_for(replace(store.load("a", READY), revision=NEVER), timeout=0.01)


@every_pair
def test_a_closed_mirror_leaves_no_thread_and_no_connection(mine, clients, until):
    mine.create()
    threads, connections = own_threads(), len(clients())
    found = mirror_of(mine)
    told: list[Any] = []
    found.on_change(lambda before, after: told.append(after))
    mine.load("a", READY)
    until_told(until, found, told)
    assert len(clients()) == connections + 1
    found.close()
    until(lambda: own_threads() == threads)
    until(lambda: len(clients()) == connections)


@every_pair
@pytest.mark.parametrize("first", ["store", "mirror"])
def test_store_and_mirror_are_closed_in_either_order(server, looking, flavour, first, clients, until):
    store = opened(flavour, server.url, agent="me")
    with store as using:
        found = mirror_of(using)
        if first == "mirror":
            found.close()
        elif flavour == "sync":
            using.close()
        else:
            using.runner.run(using.wrapped.aclose())
        if first == "store":
            with SandboxStore(looking, agent="other") as other:
                found.wait_for(other.load("a", READY))
            assert found.get("a").status == READY
            found.close()
    until(lambda: not clients())


@every_flavour
def test_nothing_is_left_unclosed(flavour, server, looking, other):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with opened(flavour, server.url, agent="me") as store:
            for _ in range(3):
                with mirror_of(store) as found:
                    found.on_change(lambda before, after: None)
                    found.wait_for(other.create())
            del found
            gc.collect()
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


@every_pair
def test_a_closed_mirror_is_garbage(mine, until):
    """Nothing of the library holds on to it, once its threads have ended."""
    found = mirror_of(mine)
    kept = Kept()
    found.on_change(lambda before, after, kept=kept: None)
    there = weakref.ref(kept)
    found.close()
    del found, kept
    until(lambda: (gc.collect() and False) or there() is None)


class Kept: ...


# -- many of them


@every_pair
def test_twenty_mirrors_at_once(mine, mirror, other, clients):
    live(mine)
    mirrors = [mirror(mine, **filters) for filters in FILTERS * 2]
    assert len([client for client in clients() if client["cmd"] in ("xread", "xlen")]) == 20
    written = other.load("new", READY, node="n1", metadata=Metadata(namespace="blue", labels={"app": "web"}))
    for found in mirrors:
        found.wait_for(written)
    for filters, found in zip(FILTERS * 2, mirrors, strict=True):
        assert (found_in(found, "new") == written) == fits(written, both(filters, {"states": State}))


@real_servers
@pytest.mark.parametrize("flavour", ["sync"])
@pytest.mark.parametrize("partitions", [1, 64], indirect=True)
def test_any_number_of_threads_may_read(backend, flavour, store, mirror):
    """And wait, while a lot happens, with as many switches between them as there can be."""
    store.load("a", READY)
    found = mirror(store)
    over = threading.Event()

    def read() -> int:
        reads = 0
        while not over.is_set():
            assert found.get("a").id == "a"
            assert found.list()[0].id == "a"
            assert found.count(state=State.READY) >= 1
            assert found.synced
            assert found.age >= 0
            assert not found.stale
            reads += 1
        return reads

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(9) as pool:
            reading = [pool.submit(read) for _ in range(6)]
            try:
                for i in range(30):
                    written = store.update("a", lambda status: replace(status, pid=i + 10))  # noqa: B023
                    for waiting in [pool.submit(found.wait_for, written) for _ in range(3)]:
                        waiting.result()
            finally:
                over.set()
            assert min(each.result() for each in reading) > 0
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("backend", ["valkey"])
@pytest.mark.parametrize("flavour", ["sync"])
@pytest.mark.parametrize("partitions", [64], indirect=True)
def test_threads_may_ask_at_once_whether_it_has_caught_up(store, backend, flavour, partitions):
    """Which it looks at when it is asked, for each partition that it has listed."""
    live(store)
    over = threading.Event()
    newest: list[Any] = [mirror_of(store)]

    def ask() -> None:
        while not over.is_set():
            assert newest[-1].synced in (True, False)
            assert newest[-1].stale in (True, False)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor() as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            try:
                while len(newest) < 25:
                    newest.append(mirror_of(store))
            finally:
                over.set()
            for each in asking:
                each.result()
    finally:
        sys.setswitchinterval(interval)
        for each in newest:
            each.close()


# -- what it costs


@every_flavour
def test_a_mirror_has_one_connection_whatever_the_partitions(server, looking, flavour, clients):
    with opened(flavour, server.url, agent="me", partitions=64) as store:
        store.create()
        before = len(clients())
        with mirror_of(store) as found:
            assert found.synced
            assert len(clients()) == before + 1


def calls(looking: redis.Redis) -> int:
    """How many commands the server has carried out, but for such as this one."""
    return sum(found["calls"] for name, found in looking.info("commandstats").items() if name != "cmdstat_info")


@every_pair
def test_reading_sends_nothing(mine, mirror, looking):
    """Whoever asks, and whatever for: not one command, but the next question behind each answer."""
    live(mine)
    found = mirror(mine, heartbeat=60)
    assert found.synced  # its question is on its way
    before = calls(looking)
    for _ in range(300):
        assert found.get("ready-n1").node == "n1"
        assert found.count() == len(found.list())
        assert (found.synced, found.stale, found.age < 60) == (True, False, True)
        found_in(found, "nobody")
    assert calls(looking) <= before + 1


@every_pair
def test_an_idle_mirror_sends_little(mine, mirror, looking, until):
    """A question for each heartbeat, and now and then two for each partition behind it."""
    live(mine)
    found = mirror(mine, heartbeat=0.05)
    begin, before = time.monotonic(), calls(looking)
    until(lambda: found.synced and time.monotonic() > begin + 0.6)
    sent, heartbeats = calls(looking) - before, (time.monotonic() - begin) / 0.05
    assert 1 <= sent <= heartbeats + 2 + 4


# -- asyncio


def run(main: Callable[[AsyncSandboxStore], Any], server: EmbeddedServer, **settings: Any) -> None:
    """Run `main` with a store; nothing may be left unclosed or unheard."""
    unheard: list[dict[str, Any]] = []

    async def with_store() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with AsyncSandboxStore.from_url(server.url, agent="me", **settings) as store:
            await main(store)
        gc.collect()
        await asyncio.sleep(0)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asyncio.run(with_store())
        gc.collect()
    assert unheard == []
    assert [str(warning.message) for warning in warned] == []


async def soon(condition: Callable[[], Any], timeout: float = 30) -> None:
    """`until`, for tasks."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come true within {timeout} s"
        await asyncio.sleep(0.001)


def test_an_asyncio_mirror_is_current_whenever_the_loop_is_free(server, looking, other):
    async def main(store: AsyncSandboxStore) -> None:
        async with await store.mirror() as found:
            for i in range(20):
                written = await store.load(f"s{i}", READY)
                await soon(lambda: found.count() == i + 1)  # noqa: B023 - it is over when i changes
                assert found.get(written.id) == written
            await found.wait_for(other.stop("s0"))
            assert found.get("s0").status.state is State.NOTREADY

    run(main, server)


def test_a_loop_that_was_busy_catches_up(server, looking, other):
    """Also where it was busy for longer than the mirror would have waited for the server."""

    async def main(store: AsyncSandboxStore) -> None:
        async with await store.mirror(heartbeat=0.05) as found:
            for busy in (0.1, 0.5):
                written = other.load(f"s{busy}", READY)
                time.sleep(busy)  # noqa: ASYNC251 - that is the point
                assert found_in(found, written.id) is None
                assert found.age >= busy
                assert found.stale == (busy > 0.15)
                await found.wait_for(written)
                assert found.get(written.id) == written
                await soon(lambda: not found.stale and found.age < 0.1)

    run(main, server, timeout=0.3)


def test_callbacks_are_called_in_the_loop(server, looking, other):
    async def main(store: AsyncSandboxStore) -> None:
        told: list[Any] = []
        async with await store.mirror() as found:
            found.on_change(lambda *change: told.append((asyncio.get_running_loop(), threading.current_thread())))
            await found.wait_for(other.load("a", READY))
        assert told == [(asyncio.get_running_loop(), threading.main_thread())]

    run(main, server)


def test_tasks_that_wait_may_be_cancelled(server, looking, other):
    async def main(store: AsyncSandboxStore) -> None:
        async with await store.mirror() as found:
            waiting = [asyncio.ensure_future(found.wait_for(NEVER)) for _ in range(5)]
            await asyncio.sleep(0)
            for each in waiting[:4]:
                each.cancel()
            done = await asyncio.gather(*waiting[:4], return_exceptions=True)
            assert {type(each) for each in done} == {asyncio.CancelledError}
            await found.wait_for(other.load("a", READY))
            assert found.get("a").status == READY
            assert not waiting[4].done()
            waiting[4].cancel()

    run(main, server)


def test_many_tasks_wait_at_once(server, looking, other):
    async def main(store: AsyncSandboxStore) -> None:
        async with await store.mirror() as found:
            written = [other.load(f"s{i}", READY) for i in range(50)]
            await asyncio.gather(*(found.wait_for(each) for each in written))
            assert found.list() == sorted(written, key=lambda sandbox: sandbox.id)

    run(main, server)


def test_opening_may_be_cancelled_at_any_time(server, looking, clients):
    """It leaves no connection of its own."""

    async def main(store: AsyncSandboxStore) -> None:
        await store.load("a", READY)
        for turns in count():
            opening = asyncio.ensure_future(store.mirror())
            for _ in range(turns):
                await asyncio.sleep(0)
            if opening.done():
                await (await opening).aclose()
                break
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        assert turns > 5
        await soon(lambda: len(clients()) <= 2)  # those that all operations share

    run(main, server)


@pytest.mark.parametrize("task", ["idle", "closing", "waiting"])
def test_a_loop_may_end_before_the_mirror(server, looking, clients, until, task):
    """Nobody closes it, or whoever does is cancelled."""

    async def main(store: AsyncSandboxStore) -> None:
        found = await store.mirror()
        if task == "closing":
            closing = asyncio.ensure_future(found.aclose())
            await asyncio.sleep(0)
            closing.cancel()
        elif task == "waiting":
            asyncio.ensure_future(found.wait_for(NEVER))  # noqa: RUF006 - nobody holds it
            await asyncio.sleep(0)

    run(main, server)
    until(lambda: not clients())


def test_a_mirror_that_fails_to_open_leaves_nothing(server, looking, clients, until):
    looking.set("sandbox:meta", "no hash")

    async def main(store: AsyncSandboxStore) -> None:
        for _ in range(3):
            with pytest.raises(SandboxError):
                await store.mirror()
        assert len(asyncio.all_tasks()) <= 1 + 2  # this one, and those of the shared connection

    run(main, server)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with SandboxStore.from_url(server.url, agent="me") as store:
            for _ in range(3):
                with pytest.raises(SandboxError):
                    store.mirror()
        gc.collect()
    assert [str(warning.message) for warning in warned] == []
    until(lambda: not clients())
