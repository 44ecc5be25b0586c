"""The store on real clusters and Sentinels, with Valkey and Redis, sync and asyncio; and what happens to its callers
while servers fail over, slots move and replicas or Sentinels go away.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from blocking import BlockingStore
from conftest import binary_of

from sandbox_redis import (
    AsyncSandboxStore,
    Metadata,
    NotFoundError,
    OutcomeUnknownError,
    SandboxStore,
    Severity,
    State,
    StoreUnavailableError,
    watching,
)
from sandbox_redis.cli import main, options
from sandbox_redis.keys import Keys
from sandbox_redis.lane import LOOK_MAX
from sandbox_redis.soak.clusters import view
from sandbox_redis.soak.deployment import Clusters, Sentinels
from sandbox_redis.soak.failovers import CoordinatedFailover, Failover, LoseMaster
from sandbox_redis.soak.fault import Fault
from sandbox_redis.soak.losses import FreezeReplica, KillReplica
from sandbox_redis.soak.migrations import AtomicMigration, Migration
from sandbox_redis.soak.node import HOST
from sandbox_redis.soak.topology import Deployment
from sandbox_redis.top.feed import Feed
from sandbox_redis.wire import ServerError

PATIENT = 60.0  # seconds; nothing takes as long
KINDS = {"cluster": Clusters, "sentinel": Sentinels}


@pytest.fixture(scope="module")
def deployments() -> Iterator[Callable[[str, str], Deployment]]:
    """One of each kind and each server for all tests here, who mend what they break."""
    with ExitStack() as stack:
        yield cache(
            lambda topology, server: stack.enter_context(KINDS[topology](binary_of(server), aof="no"))  # type: ignore[abstract]
        )


@pytest.fixture(params=["valkey", "redis"])
def server(request):
    return request.param


@pytest.fixture(params=list(KINDS))
def topology(request):
    return request.param


@pytest.fixture
def deployment(topology, server, deployments):
    return deployments(topology, server)


@pytest.fixture
def cluster(server, deployments):
    return deployments("cluster", server)


@pytest.fixture
def sentinels(server, deployments):
    return deployments("sentinel", server)


@pytest.fixture
def opened(flavour, prefix) -> Iterator[Callable[..., Any]]:
    """Opens stores of the flavour at hand."""
    with ExitStack() as stack:

        def open_(url: Any, **settings: Any) -> Any:
            settings = {"prefix": prefix, "agent": "test", "timeout": PATIENT, **settings}
            if flavour == "sync":
                return stack.enter_context(closing(SandboxStore(url, **settings)))
            return stack.enter_context(closing(BlockingStore(AsyncSandboxStore(url, **settings))))

        yield open_


def run(store, result):
    """What an asyncio object of a `BlockingStore` gives when it is awaited; others as they are."""
    return store.runner.run(result) if asyncio.iscoroutine(result) else result


def close(store, mirror):
    run(store, mirror.aclose() if hasattr(mirror, "aclose") else mirror.close())


def next_events(watch, count):
    return [next(watch) for _ in range(count)]


def partitions_of(ids, partitions=16):
    return {Keys("x", partitions).partition(each) for each in ids}


# -- changes are heard of


@pytest.mark.parametrize("kind", ["watch", "mirror"])
def test_nodes_tell_of_changes_and_nobody_waits_for_a_heartbeat(kind, cluster, opened, monkeypatch):
    store = opened(cluster.url)
    store.create(sandbox_id="first")
    monkeypatch.setattr(watching, "HEARTBEAT", 10 * PATIENT)  # longer than a test may take
    if kind == "watch":
        watch = store.watch()
        ids = []
        for number in range(20):
            store.create(sandbox_id=f"web-{number}")
            ids.append(next(watch).id)
        assert ids == [f"web-{number}" for number in range(20)]
        run(store, watch.aclose() if hasattr(watch, "aclose") else watch.close())
    else:
        mirror = run(store, store.mirror(heartbeat=10 * PATIENT))
        for number in range(20):
            run(store, mirror.wait_for(store.create(sandbox_id=f"web-{number}")))
        close(store, mirror)


# -- everything works


def test_every_operation_works_over_all_partitions(deployment, opened):
    store = opened(deployment.url)
    ids = [f"web-{n}" for n in range(60)]
    with store.batch() as batch:
        made = [batch.create(sandbox_id=each, node=f"node-{each[-1]}", metadata=Metadata(name=each)) for each in ids]
        started = [batch.start(each, pid=7) for each in ids]
        read = [batch.get(each) for each in ids]
    assert [result.result().id for result in made] == ids
    assert {result.result().status.pid for result in started + read} == {7}
    assert len(partitions_of(ids)) == 16
    assert sorted(sandbox.id for sandbox in store.list()) == sorted(ids)
    page = store.page(limit=25)
    assert len(page.sandboxes) <= 25
    assert len(list(store.list(after=page.cursor))) == 60 - len(page.sandboxes)
    assert store.ids(node="node-3") == [each for each in sorted(ids) if each[-1] == "3"]
    assert store.count(state=State.READY, node="node-3") == 6
    assert store.counts().nodes == {f"node-{n}": 6 for n in range(10)}
    assert store.resolve("web-59") == "web-59"
    assert set(store.get_many([*ids, "nobody"])) == set(ids)
    with pytest.raises(NotFoundError):
        store.get("nobody")
    store.update("web-1", lambda status: replace(status, pid=8))
    assert store.status("web-1").get().pid == 8
    assert store.port_forward("web-1").id == "web-1"
    store.stop("web-1")
    store.exit("web-2", exit_status=3)
    assert store.remove("web-1")
    assert store.remove("web-3", force=True)
    store.create(sandbox_id="never")
    store.fail_start("never")
    assert [event.transition for event in store.history("web-1")] == ["create", "start", "update", "stop", "remove"]
    with store.batch() as batch:
        updated = [batch.update(each, lambda status: replace(status, pid=9)) for each in ids[10:20]]
    assert {result.result().status.pid for result in updated} == {9}
    audit = store.audit()
    assert audit.problems == []
    assert len(audit.sandboxes) == 58


def test_a_doctor_asks_each_master_once_and_knows_its_replicas(deployment, opened, prefix):
    store = opened(deployment.url)
    for n in range(40):
        store.create(sandbox_id=f"web-{n}", node=f"node-{n % 7}")
    masters = {deployment.master_of(f"{prefix}:{{{number}}}:events").port for number in range(16)}
    findings = store.doctor().findings
    wrong = {each.subject.split()[-1] for each in findings if each.severity.rank > Severity.NOTE.rank}
    assert wrong == {"persistence"}  # these servers are for tests: they keep nothing on the disk
    asked = [each for each in findings if each.subject.endswith("version")]
    assert len(asked) == len(masters)
    if len(masters) > 1:
        assert {int(each.subject.split()[0].rpartition(":")[2]) for each in asked} == masters
    said = [each.message.split()[1].rstrip(",") for each in findings if each.subject.endswith("replication")]
    replicas = [server.address for server in deployment.servers if server.port not in masters]
    assert sorted(said) == sorted(replicas)
    assert findings[-1].message == "40 sandboxes and 40 events, and all of it fits together"


def test_followers_hear_everything_from_all_partitions(deployment, opened):
    store, other = opened(deployment.url), opened(deployment.url)
    ids = [f"job-{n}" for n in range(40)]
    watch = store.watch()  # of a store that does not exist yet
    for each in ids:
        other.create(sandbox_id=each, node="n")
    assert sorted(event.sandbox.id for event in next_events(watch, 40)) == sorted(ids)
    since = watch.cursor
    sandboxes, following = store.list_and_watch(states=list(State))
    assert sorted(sandbox.id for sandbox in sandboxes) == sorted(ids)
    mirror = run(store, store.mirror(states=list(State)))
    with other.batch() as batch:
        results = [batch.start(each, pid=1) for each in ids]
    for result in results:
        run(store, mirror.wait_for(result.result(), timeout=PATIENT))
    assert mirror.count(state=State.READY) == 40
    assert {event.transition for event in next_events(following, 40)} == {"start"}
    assert {event.id for event in next_events(store.watch(since=since), 40)} == set(ids)
    other.exit("job-7", exit_status=3)
    assert store.wait("job-7", State.NOTREADY, timeout=PATIENT).status.exit_status == 3
    close(store, mirror)


def test_who_comes_later_follows_the_partitions_of_the_first(cluster, opened):
    late = opened(cluster.url)
    watch = late.watch()
    mirror = run(late, late.mirror(states=list(State)))
    opened(cluster.url, partitions=64).create(sandbox_id="first")
    made = [late.create() for _ in range(30)]
    assert len(partitions_of([sandbox.id for sandbox in made], 64)) > 16
    assert {event.id for event in next_events(watch, 31)} == {"first", *(sandbox.id for sandbox in made)}
    for sandbox in made:
        run(late, mirror.wait_for(sandbox, timeout=PATIENT))
    assert late.audit().problems == []
    close(late, mirror)


EVENTS = """
local partition = string.match(KEYS[1], "{(%d+)}")
for i = 1, tonumber(ARGV[1]) do
  redis.call("XADD", KEYS[1], "*", "id", partition .. "." .. i, "transition", "create", "state", "INIT")
end
"""


def clients(cluster, name):
    """Connections of a client, with what they cost, over all servers."""
    lines = [line for node in cluster.servers for line in node.ask("CLIENT", "LIST").splitlines()]
    return [dict(word.partition("=")[::2] for word in line.split()) for line in lines if f"name={name} " in line]


def test_a_follower_has_one_connection_to_each_server_and_costs_nothing_while_it_does_not_read(
    cluster, opened, prefix, until
):
    writer = opened(cluster.url, partitions=64, agent="writer")
    sandbox = writer.create()
    follower = opened(cluster.url, agent="follower")
    watch = follower.watch()
    writer.start(sandbox.id, pid=1)
    assert next(watch).transition == "start"
    run(follower, getattr(follower, "wrapped", follower)._lane.close())  # what its first question has left
    until(lambda: len(clients(cluster, "follower")) <= 3)
    for partition in range(64):
        events = Keys(prefix, 64).events(partition)
        cluster.master_of(partition).ask("EVAL", EVENTS, 1, events, 20_000 // 64)
    assert sum(int(each["omem"]) for each in clients(cluster, "follower")) < 200_000
    assert sum(int(each["tot-mem"]) for each in clients(cluster, "follower")) < 1_000_000
    last = dict.fromkeys(range(64), 0)
    for event in next_events(watch, 3000):
        partition, number = map(int, event.id.split("."))
        assert number == last[partition] + 1
        last[partition] = number


def test_a_watch_that_nobody_holds_any_more_leaves_no_connection(cluster, prefix, until):
    with closing(SandboxStore(cluster.url, prefix=prefix, timeout=PATIENT, agent=prefix)) as store:
        store.init()
        watch = store.watch()
        store.create()
        assert next(watch).transition == "create"
        assert len(clients(cluster, prefix)) >= 3
        del watch
        store.close()
        until(lambda: clients(cluster, prefix) == [])


def test_a_mirror_that_is_behind_catches_up_at_once(cluster, prefix):
    with (
        closing(SandboxStore(cluster.url, prefix=prefix, timeout=PATIENT)) as store,
        store.mirror(heartbeat=30) as mirror,
    ):
        with store.batch() as batch:
            made = [batch.create() for _ in range(3000)]
        for result in made:
            mirror.wait_for(result.result(), timeout=25)  # less than a heartbeat
        assert mirror.count(state=State.INIT) == 3000


def test_closing_a_watch_ends_it_at_once(cluster, prefix):
    with closing(SandboxStore(cluster.url, prefix=prefix, timeout=PATIENT)) as store:
        watch = store.watch()
        ended: list[Any] = []
        thread = threading.Thread(target=lambda: ended.extend(watch))
        thread.start()
        store.create(sandbox_id="it")
        while not ended:
            time.sleep(0.001)
        began = time.monotonic()
        watch.close()
        thread.join(PATIENT)
        assert not thread.is_alive()
        assert time.monotonic() - began < 0.9  # less than a heartbeat

    async def main():
        store = AsyncSandboxStore(cluster.url, prefix=prefix, timeout=PATIENT)
        async with store, store.watch() as watch:
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert time.monotonic() - began < 0.9
            await store.start("it", pid=1)
            assert (await anext(watch)).transition == "start"  # it goes on

    asyncio.run(main())


@pytest.mark.parametrize("server", ["redis"])
def test_closing_a_watch_ends_it_at_once_also_while_it_looks_for_the_servers(sentinels, prefix, until):
    store = SandboxStore(sentinels.url, prefix=prefix, timeout=PATIENT)
    store.create(sandbox_id="it")
    watch = store.watch()
    thread = threading.Thread(target=lambda: list(watch))
    thread.start()
    try:
        for node in sentinels.sentinels:
            os.kill(node.pid, signal.SIGSTOP)
        store._lane.topology.heard(ServerError("READONLY", "no"))
        for node in sentinels.servers:
            node.ask("CLIENT", "KILL", "TYPE", "normal")
        until(lambda: store._lane.topology.at("k") is None)
        began = time.monotonic()
        watch.close()
        thread.join(PATIENT)
        assert not thread.is_alive()
        assert time.monotonic() - began < LOOK_MAX
    finally:
        for node in sentinels.sentinels:
            os.kill(node.pid, signal.SIGCONT)
        sentinels.settled()
    store.close()


# -- replicas


def calls(deployment, command):
    """How often each server has executed a command."""
    found = {}
    for node in deployment.servers:
        said = node.info("commandstats").get(f"cmdstat_{command}", "calls=0,")
        found[node.address] = int(said.partition("calls=")[2].partition(",")[0])
    return found


def test_replicas_are_read_from_and_nothing_else(deployment, opened, until):
    store = opened(deployment.url)
    ids = [store.create(node="n").id for _ in range(40)]
    deployment.settled()
    reader = opened(deployment.url, read_from="replica")
    masters = {deployment.master_of(partition).address for partition in range(16)}
    before = {command: calls(deployment, command) for command in ("hgetall", "watch")}
    for each in ids:
        until(lambda each=each: reader.get(each))
    assert len(list(reader.list(states=[State.INIT]))) == 40
    assert reader.counts().nodes == {"n": 40}
    assert len(reader.history(ids[0])) == 1
    after = calls(deployment, "hgetall")
    assert all(after[master] == before["hgetall"][master] for master in masters)
    assert sum(after.values()) > sum(before["hgetall"].values())
    reader.start(ids[0], pid=1)
    reader.update(ids[0], lambda status: replace(status, pid=2))
    assert store.get(ids[0]).status.pid == 2
    watched = calls(deployment, "watch")
    assert all(watched[node] == before["watch"][node] for node in watched if node not in masters)
    assert sum(watched.values()) > sum(before["watch"].values())


@pytest.mark.parametrize(
    ("server", "flavour", "fault"), [("valkey", "sync", FreezeReplica), ("redis", "asyncio", KillReplica)]
)
def test_a_replica_that_is_gone_harms_nobody(deployment, opened, fault):
    store = opened(deployment.url, read_from="replica", timeout=6)
    ids = [store.create().id for _ in range(20)]
    deployment.settled()
    assert set(store.get_many(ids)) == set(ids)
    with happens(fault, deployment):
        for each in ids:
            store.get(each)
            store.start(each, pid=1)
        assert len(list(store.list(states=list(State)))) == 20


# -- faults


class First(random.Random):
    """Decides for partition 3, and for the first of all others."""

    def randrange(self, *_: Any) -> int:
        return 3

    def choice(self, seq: Any) -> Any:
        return seq[0]


@contextmanager
def happens(kind: type[Fault], deployment: Deployment) -> Iterator[Fault]:
    """Cause a fault, and mend it at the end."""
    fault = kind(deployment, First())
    try:
        fault.cause()
        yield fault
    finally:
        fault.mend()


class Writers:
    """Threads that count in the pids of sandboxes, each in its own; partition 3 is among theirs."""

    def __init__(self, url: str, prefix: str, count: int = 4, timeout: float = PATIENT) -> None:
        self.store = SandboxStore(url, prefix=prefix, timeout=timeout)
        self.errors: list[Exception] = []
        self.done: dict[str, int] = {}
        names = (f"w{n}" for n in range(1000))
        here = next(name for name in names if partitions_of([name]) == {3})
        for each in [here, *(next(names) for _ in range(count - 1))]:
            self.store.create(sandbox_id=each, node="n")
            self.store.start(each, pid=0)
            self.done[each] = 0
        self.here = here
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(each,)) for each in self.done]

    def _write(self, sandbox_id: str) -> None:
        while not self._over.is_set():
            try:
                self.store.update(sandbox_id, lambda status: replace(status, pid=status.pid + 1))
                self.store.get(sandbox_id)
                self.done[sandbox_id] += 1
            except Exception as error:
                self.errors.append(error)
                return
            self._over.wait(0.003)

    def go_on(self) -> None:
        """Wait until each has written again, and again."""
        wanted = {each: done + 2 for each, done in self.done.items()}
        end = time.monotonic() + PATIENT
        while not self.errors and any(self.done[each] < count for each, count in wanted.items()):
            assert time.monotonic() < end, (self.done, wanted)
            time.sleep(0.005)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def counted(self) -> dict[str, int]:
        return {each: self.store.get(each).status.pid for each in self.done}


class Followers:
    """A watch and two mirrors, sync and asyncio, over all that happens."""

    def __init__(self, store: SandboxStore, url: str) -> None:
        self.store = store
        self.url = url
        self.watch = store.watch()
        self.mirror = store.mirror(states=list(State))
        self.revisions: dict[str, list[str]] = defaultdict(list)
        self.errors: list[Exception] = []
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        self.seen: dict[str, int] = {}
        self._loop = threading.Thread(target=lambda: asyncio.run(self._mirrored()))
        self._over = threading.Event()
        self._loop.start()

    def _follow(self) -> None:
        try:
            for event in self.watch:
                self.revisions[event.id].append(event.revision)
        except Exception as error:
            self.errors.append(error)

    async def _mirrored(self) -> None:
        operations = self.store._operations
        store = AsyncSandboxStore(self.url, prefix=operations.prefix, timeout=PATIENT)
        try:
            async with store, await store.mirror(states=list(State)) as mirror:
                while not self._over.is_set():
                    self.seen = {sandbox.id: sandbox.status.pid for sandbox in mirror.list(states=list(State))}
                    await asyncio.sleep(0.01)
        except Exception as error:
            self.errors.append(error)

    def check(self, since: dict[str, str], until: Callable[..., Any]) -> None:
        """All has come, once and in order."""
        for each, first in since.items():
            sandbox = self.store.get(each)
            expected = [event.revision for event in self.store.history(each)]
            expected = expected[expected.index(first) + 1 :]
            until(lambda each=each, expected=expected: self.errors or self.revisions[each][-1:] == expected[-1:])
            assert self.revisions[each] == expected
            self.mirror.wait_for(sandbox, timeout=PATIENT)
            assert self.mirror.get(each) == sandbox
            until(lambda each=each, pid=sandbox.status.pid: self.errors or self.seen.get(each) == pid)
        assert self.errors == []

    def close(self) -> None:
        self._over.set()
        self.watch.close()
        self.mirror.close()
        self._thread.join()
        self._loop.join()


@contextmanager
def followed(writers: Writers, url: str, until: Callable[..., Any]) -> Iterator[None]:
    """Nothing that happens is missed, comes twice or in another order."""
    since = {each: writers.store.get(each).revision for each in writers.done}
    followers = Followers(writers.store, url)
    try:
        with writers:
            yield
        assert writers.errors == []
        followers.check(since, until)
    finally:
        followers.close()


@pytest.mark.parametrize(("topology", "server"), [("cluster", "redis"), ("sentinel", "redis"), ("sentinel", "valkey")])
def test_in_a_planned_failover_no_caller_sees_an_error(deployment, prefix, until):
    kind = CoordinatedFailover if CoordinatedFailover.possible(deployment) else Failover
    writers = Writers(deployment.url, prefix)
    if kind.may_lose(deployment):  # then it is only said what may be lost
        with writers, happens(kind, deployment):
            writers.go_on()
        assert all(isinstance(error, OutcomeUnknownError) for error in writers.errors)
    else:
        with followed(writers, deployment.url, until):
            writers.go_on()
            with happens(kind, deployment):
                writers.go_on()
        assert writers.counted() == writers.done
    writers.store.close()


@pytest.mark.parametrize(("topology", "server"), [("cluster", "valkey"), ("sentinel", "redis")])
def test_when_a_master_is_lost_writers_go_on_with_the_next(deployment, prefix):
    writers = Writers(deployment.url, prefix)
    with writers:
        writers.go_on()
        with happens(LoseMaster, deployment):
            writers.go_on()
    assert all(isinstance(error, OutcomeUnknownError) for error in writers.errors)
    for each in writers.done:
        assert writers.store.update(each, lambda status: replace(status, pid=77)).status.pid == 77
    assert writers.store.audit().problems == []
    writers.store.close()


@pytest.mark.parametrize(("server", "kind"), [("redis", Migration), ("valkey", AtomicMigration)])
def test_while_a_slot_moves_there_and_back_no_caller_sees_an_error(cluster, prefix, until, kind):
    if not kind.possible(cluster):
        pytest.skip("this server cannot")
    writers = Writers(cluster.url, prefix)
    with followed(writers, cluster.url, until):
        for _ in range(2):
            with happens(kind, cluster):
                pass
            writers.go_on()
    assert writers.counted() == writers.done
    assert writers.store.audit().problems == []
    writers.store.close()


@pytest.mark.parametrize("server", ["valkey"])
def test_while_a_migration_stands_still_records_are_read_and_mirrors_know_that_they_are_old(cluster, prefix, until):
    writers = Writers(cluster.url, prefix)
    store = writers.store
    fillers = [name for name in (f"f{n}" for n in range(300)) if partitions_of([name]) == {3}]
    for each in fillers:
        store.create(sandbox_id=each, node="n")
    with followed(writers, cluster.url, until):
        with store.mirror(heartbeat=0.2, states=list(State)) as mirror:
            with happens(Migration, cluster) as fault:
                events = store._operations._keys.events(3)
                fault._source.ask("MIGRATE", HOST, fault._target.port, events, 0, 5000)  # if it is still there
                assert set(store.get_many(fillers)) == set(fillers)
                for each in fillers:
                    assert store.get(each).status.state is State.INIT
                until(lambda: mirror.age > 1)
                assert mirror.get(fillers[0]).status.state is State.INIT
            until(lambda: mirror.age < 1)
        writers.go_on()
    assert writers.counted() == writers.done
    assert store.audit().problems == []
    store.close()


@pytest.mark.parametrize(("server", "stays"), [("redis", "node:n"), ("valkey", "status:"), ("valkey", "node:n")])
def test_a_script_that_would_miss_a_key_waits_for_it(cluster, prefix, stays):
    """The index of a node is named by no script that removes, as only the record tells which it is."""
    ids = [name for name in (f"f{n}" for n in range(300)) if partitions_of([name]) == {3}][:5]
    with closing(SandboxStore(cluster.url, prefix=prefix, timeout=PATIENT)) as store:
        for each in ids:  # one in each state: then all keys that the scripts do name are there
            store.create(sandbox_id=each, node="n")
        for each in ids[1:]:
            store.start(each, pid=1)
        store.stop(ids[2])
        server = cluster.master_of(3)
        server.ask("HSET", store._operations._keys.status(ids[3]), "state", "?")
        fault = Migration(cluster, First())
        target = next(each for each in fault._masters() if each is not server)
        fault._source, fault._target = server, target
        target.ask("CLUSTER", "SETSLOT", fault.slot, "IMPORTING", view(server)[0].id)
        server.ask("CLUSTER", "SETSLOT", fault.slot, "MIGRATING", view(target)[0].id)
        keys = server.ask("CLUSTER", "GETKEYSINSLOT", fault.slot, 1000)
        moved = [key for key in keys if key.startswith(prefix) and (stays in key) == (stays != "node:n")]
        server.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *moved)
        try:
            with pytest.raises(StoreUnavailableError) as error:
                store.remove(ids[0], force=True, timeout=0.3)
            assert error.value.code in ("ASK", "TRYAGAIN")
        finally:
            fault.mend()
        for each in ids:
            assert store.remove(each, force=True)
        assert [problem for problem in store.audit().problems if "event" not in problem] == []


@pytest.mark.parametrize("server", ["valkey"])
def test_without_sentinels_a_store_goes_on_with_the_master_that_it_knows(sentinels, prefix):
    with closing(SandboxStore(sentinels.url, prefix=prefix, timeout=PATIENT)) as store:
        sandbox = store.create()
        try:
            for sentinel in sentinels.sentinels:
                sentinel.stop(signal.SIGKILL)
            store.start(sandbox.id, pid=1)
            assert store.get(sandbox.id).status.pid == 1
            with closing(SandboxStore(sentinels.url, timeout=PATIENT)) as late:
                began = time.monotonic()
                with pytest.raises(StoreUnavailableError) as error:
                    late.get("it")
                assert error.value.code == "UNREACHABLE"
                assert time.monotonic() - began < PATIENT / 4
        finally:
            for sentinel in sentinels.sentinels:
                sentinels.run(sentinel)
            sentinels.settled()


def test_what_is_wrong_from_the_beginning_is_said_at_once(deployment, opened, own_server):
    where = deployment.url.partition("://")[2]
    scheme = deployment.url.partition("://")[0]
    store = opened(f"{scheme}://user:sesame@{where}")
    with pytest.raises(StoreUnavailableError) as error:
        store.get("it")
    assert error.value.code == "WRONGPASS"
    assert "sesame" not in str(error.value) + repr(store)
    if deployment.topology == "sentinel":
        with pytest.raises(StoreUnavailableError, match="they know no service 'other'"):
            opened(deployment.url.replace("/sandbox/0", "/other")).get("it")
    else:
        with pytest.raises(StoreUnavailableError, match="cluster support disabled"):
            opened(f"redis+cluster://127.0.0.1:{own_server(port=0).port}").get("it")


def test_a_forked_child_works_on_connections_of_its_own(deployment, prefix):
    with closing(SandboxStore(deployment.url, prefix=prefix, timeout=PATIENT)) as store:
        ids = [store.create().id for _ in range(20)]
        child = os.fork()
        if not child:
            status = 1
            try:
                for each in ids[:10]:
                    store.start(each, pid=1)
                status = 0
            finally:
                os._exit(status)
        for each in ids[10:]:
            store.start(each, pid=1)
        assert os.waitpid(child, 0)[1] == 0
        assert store.count(state=State.READY) == 20


# -- the command line


@pytest.fixture
def cli(deployment, prefix, capsys, monkeypatch):
    """Runs a command line in this process; what it printed."""
    monkeypatch.setenv("SANDBOX_REDIS_URL", deployment.url)
    monkeypatch.setattr(options, "_COMPLETION_TIMEOUT", PATIENT)

    def run(*words: object, status: int = 0) -> str:
        ended = main(["--prefix", prefix, "--timeout", str(PATIENT), *map(str, words)])
        printed = capsys.readouterr()
        assert ended == status, printed
        assert (printed.err == "") == (status == 0)
        return printed.out + printed.err

    return run


@pytest.mark.parametrize(("topology", "server"), [("cluster", "valkey"), ("sentinel", "redis")])
def test_the_command_line_works_on_every_topology(deployment, cli, prefix, capsys, monkeypatch, until):
    partitions = 16 if deployment.topology == "cluster" else 1
    assert cli("init") == cli("init", "--partitions", partitions)
    assert f"with {partitions} as partitions" in cli("init", "--partitions", 5, status=1)
    for number in range(10):
        assert cli("create", "--id", f"web-{number}", "--node", f"n{number % 2}") == f"web-{number}\n"
        cli("start", f"web-{number}", "--exact", "--pid", 7)
    assert set(cli("ls", "-q", "--node", "n1").split()) == {f"web-{number}" for number in range(1, 10, 2)}
    assert '"READY": 10' in cli("counts", "--json")
    assert len(cli("watch", "--since", "1h", "--count", 20, "--json").splitlines()) == 20
    cli("exit", "web-7", "--exit-status", 3)
    assert cli("wait", "web-7") == "web-7 NOTREADY\n"
    assert "exit" in cli("history", "web-7")
    with closing(SandboxStore.from_url(prefix=prefix, timeout=PATIENT)) as store, Feed(store, interval=0.01) as feed:
        views: list[Any] = []
        feed.start(views.append)
        until(lambda: views and views[-1].total == 10)
    for number in range(10):
        name, line = cli("key", f"web-{number}", "--exact").splitlines()
        assert line.split()[:2] == ["redis-cli", "-u"]
        assert line.split()[2] == f"redis://{deployment.master_of(name).address}/0"
        assert deployment.master_of(name).ask("HGET", name, "state")
    words = ["sandbox-redis", "--prefix", prefix, "get", "web-1"]
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", "4")
    monkeypatch.setenv("_SANDBOX_REDIS_COMPLETE", "complete_bash")
    assert main([]) == 0
    assert set(capsys.readouterr().out.split()) == {"web-1"}
