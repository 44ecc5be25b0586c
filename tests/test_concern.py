"""How safe a write is when its call returns: with a write concern, replicas have it, or the disk, or the call says that
the write was made and is not confirmed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import fakeredis
import pytest
import redis
from faults.proxy import Proxy
from faults.writes import WRITES, opened

from sandbox_redis import (
    AsyncSandboxStore,
    DurabilityError,
    InvalidArgumentError,
    NotFoundError,
    Sandbox,
    SandboxStore,
    State,
    StoreUnavailableError,
    TransitionError,
    WriteConcern,
)
from sandbox_redis.batch import Batch
from sandbox_redis.operations import Operations
from sandbox_redis.scripts import FOLDER, script
from sandbox_redis.server import EmbeddedServer
from sandbox_redis.topology import Single
from sandbox_redis.trace import Trace
from sandbox_redis.wire import Lease, Lost, SendAll

REPLICA = WriteConcern(replicas=1, timeout=3)
SOON = WriteConcern(replicas=1, timeout=0.2)
DISK = WriteConcern(fsync=True)
every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
AT_ONCE = {"repl-diskless-sync-delay": "0"}


class Pair:
    """A server and its replica, which can be halted."""

    def __init__(self, master: EmbeddedServer, replica: EmbeddedServer) -> None:
        self.master = master
        self.replica = replica
        self.url = master.url

    def halt(self) -> None:
        os.kill(self.replica.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.replica.pid, signal.SIGCONT)


def is_online(client: redis.Redis) -> bool:
    # It answers at its next heartbeat for the first time, up to a second later.
    if client.info("replication").get("slave0", {}).get("state") != "online":
        return False
    with client.client() as same:
        same.set("written", "now")
        return same.wait(1, 10) == 1


@pytest.fixture(scope="module")
def pairs(module_servers) -> Iterator:
    replicas: dict[str, EmbeddedServer] = {}

    def get(name: str) -> Pair:
        master = module_servers(name)
        if name not in replicas:
            options = AT_ONCE | {"replicaof": f"127.0.0.1 {master.port}"}
            replicas[name] = EmbeddedServer(binary=master.binary, port=0, options=options).start()
        return Pair(master, replicas[name])

    yield get
    for replica in replicas.values():
        replica.close()


@pytest.fixture
def pair(request, pairs, until) -> Iterator[Pair]:
    found = pairs(getattr(request, "param", "valkey"))
    with redis.Redis.from_url(found.url) as client:
        client.config_set("repl-diskless-sync-delay", 0)
        until(lambda: is_online(client))
        client.flushall()
        for path in FOLDER.iterdir():
            if path.name.endswith(".lua"):
                client.script_load(script(path.name.removesuffix(".lua")).source)
    yield found
    found.resume()


@pytest.fixture
def other(pair) -> Iterator[SandboxStore]:
    with SandboxStore(pair.url, agent="other") as store:
        yield store


both_servers = pytest.mark.parametrize("pair", ["valkey", "redis"], indirect=True)


# -- replicas


@both_servers
@every_flavour
@every_write
def test_a_write_that_the_replica_has_is_as_any_other(write, flavour, pair, other):
    with opened(flavour, pair.url, agent="me", write_concern=REPLICA) as store:
        write.prepare(other, "a")
        answer = write.run(store, "a")
        audit = other.audit()
        assert audit.problems == []
        mine = [event for event in audit.events if event.by == "me"]
        assert [event.transition for event in mine] == list(write.events)
        assert answer == write.answer("a", mine)
        replica = redis.Redis(port=pair.replica.port)
        assert replica.xrevrange("sandbox:{0}:events", count=1)[0][0].decode() == mine[-1].revision
        replica.close()


@both_servers
@every_flavour
@every_write
def test_a_write_that_the_replica_does_not_have_in_time_is_made_and_not_confirmed(write, flavour, pair, other):
    with opened(flavour, pair.url, agent="me", write_concern=SOON) as store:
        write.prepare(other, "a")
        store.create(sandbox_id="unconcerned", write_concern=REPLICA)
        pair.halt()
        with pytest.raises(DurabilityError, match="was made, but is not confirmed") as caught:
            write.run(store, "a")
        audit = other.audit()
        assert audit.problems == []
        mine = [event for event in audit.events if event.id == "a" and event.by == "me"]
        assert [event.transition for event in mine] == list(write.events)
        error = caught.value
        assert (error.id, error.request, error.reached, error.wanted) == ("a", mine[-1].request, 0, 1)
        assert error.fsynced is None
        answer = write.answer("a", mine)
        assert error.sandbox == (answer if isinstance(answer, Sandbox) else None)


@every_flavour
def test_a_call_has_a_write_concern_of_its_own(flavour, pair):
    with opened(flavour, pair.url, timeout=60) as store:
        store.create(sandbox_id="a", write_concern=REPLICA)
        pair.halt()
        store.start("a", pid=1)
        with pytest.raises(DurabilityError):
            store.stop("a", write_concern=SOON)
        with pytest.raises(DurabilityError):
            store.status("a").update(lambda status: replace(status, exit_status=1), write_concern=SOON)
    with opened(flavour, pair.url, write_concern=SOON) as store:
        assert store.remove("a", write_concern=WriteConcern()) is True


@every_flavour
def test_what_changes_nothing_or_is_refused_is_not_confirmed_either(flavour, pair):
    with opened(flavour, pair.url, write_concern=SOON) as store:
        store.create(sandbox_id="init", write_concern=REPLICA)
        store.create(sandbox_id="a", write_concern=REPLICA)
        store.start("a", pid=1, write_concern=REPLICA)
        stopped = store.stop("a", write_concern=REPLICA)
        pair.halt()
        assert store.stop("a") == stopped
        assert store.update("a", lambda status: status) == stopped
        assert store.remove("never") is False
        with pytest.raises(TransitionError):
            store.start("a", pid=2)
        with pytest.raises(NotFoundError):
            store.exit("never", exit_status=1)
        with pytest.raises(TransitionError):
            store.update("init", lambda status: replace(status, state=State.NOTREADY))


@every_flavour
def test_the_wait_for_replicas_ends_within_the_timeout_of_the_call(flavour, pair):
    with opened(flavour, pair.url, timeout=60) as store:
        store.create(sandbox_id="a", write_concern=REPLICA)
        pair.halt()
        began = time.monotonic()
        with pytest.raises(DurabilityError):
            store.start("a", pid=1, timeout=0.5, write_concern=WriteConcern(replicas=1, timeout=60))
        assert time.monotonic() - began < 0.5
        began = time.monotonic()
        with pytest.raises(DurabilityError):  # the connection is waited for longer than for any other reply
            store.stop("a", timeout=1, write_concern=WriteConcern(replicas=1, timeout=0.7))
        assert time.monotonic() - began > 0.69


@every_flavour
@pytest.mark.parametrize("write", [WRITES[name] for name in ("create", "exit", "force", "update")])
def test_a_write_whose_reply_was_lost_is_found_and_not_confirmed(write, flavour, pair, other):
    with Proxy(pair.master) as proxy, opened(flavour, proxy.url, agent="me", write_concern=REPLICA) as store:
        store.create(sandbox_id="unconcerned")
        write.prepare(other, "a")
        proxy.fault("after", {write.packet})
        with pytest.raises(DurabilityError, match="reply was lost") as caught:
            write.run(store, "a")
        mine = [event for event in other.audit().events if event.id == "a" and event.by == "me"]
        assert [event.transition for event in mine] == list(write.events)
        assert (caught.value.request, caught.value.reached) == (mine[-1].request, None)


@every_flavour
@every_write
def test_a_write_that_never_arrived_is_made_again_and_confirmed(write, flavour, pair, other):
    with Proxy(pair.master) as proxy, opened(flavour, proxy.url, agent="me", write_concern=REPLICA) as store:
        store.create(sandbox_id="unconcerned")
        write.prepare(other, "a")
        proxy.fault("before", {write.packet})
        answer = write.run(store, "a")
        mine = [event for event in other.audit().events if event.id == "a" and event.by == "me"]
        assert [event.transition for event in mine] == list(write.events)
        assert answer == write.answer("a", mine)


@every_flavour
def test_a_server_that_has_lost_its_scripts_is_given_them(flavour, pair, other):
    with opened(flavour, pair.url, write_concern=REPLICA) as store:
        store.create(sandbox_id="a")
        with redis.Redis.from_url(pair.url) as client:
            client.script_flush()
        assert store.start("a", pid=1).status.state is State.READY
        assert store.update("a", lambda status: replace(status, pid=2)).status.pid == 2


# -- many


@every_flavour
def test_a_batch_waits_once_for_all(flavour, pair, other):
    with opened(flavour, pair.url) as store:
        with store.batch() as batch:
            for i in range(1000):
                batch.create(sandbox_id=f"s{i}")
        client = redis.Redis.from_url(pair.url)
        client.config_resetstat()
        with store.batch() as batch:
            results = [batch.start(f"s{i}", pid=i, write_concern=REPLICA) for i in range(1000)]
            refused = batch.start("never", pid=1, write_concern=REPLICA)
        assert client.info("commandstats")["cmdstat_wait"]["calls"] <= 3
        assert [result.result().status.pid for result in results] == list(range(1000))
        assert isinstance(refused.error, NotFoundError)
        pair.halt()
        with store.batch() as batch:
            results = [batch.stop(f"s{i}", write_concern=SOON) for i in range(1000)]
            plain = batch.create(sandbox_id="plain")
        assert {type(result.error) for result in results} == {DurabilityError}
        assert [result.error.sandbox.id for result in results] == [f"s{i}" for i in range(1000)]
        assert plain.error is None
        client.close()
    assert other.audit().problems == []


def test_packets_with_one_tail_become_one_in_a_batch():
    operations = Operations(Single("here:1"), prefix="p", agent="me", timeout=5, partitions=4, events_maxlen=1000)
    batch = Batch(operations)
    results = [batch.create(sandbox_id=f"s{i}", write_concern=REPLICA) for i in range(500)]
    sizes = []
    for request in batch.carry_out():
        assert isinstance(request, SendAll)
        for send in request.sends:
            match send.commands[0]:
                case ("HMGET", *_):
                    reply = [[b"1", b"4", b"1000"]]
                case ("WAIT", *_):
                    reply = [0]
                case ("XREVRANGE", *_):
                    reply = [[]]
                case _:
                    assert (send.lease, send.commands[-1]) == (Lease.ALONE, ("WAIT", 1, 3000))
                    sizes.append(len(send.commands) - 1)
                    tokens = [command[3 + command[2] + 2] for command in send.commands[:-1]]
                    reply = [[b"OK", [b"state", b"INIT", b"request", token.encode()]] for token in tokens] + [1]
            request.deliver(reply)
    assert sum(sizes) == 500
    assert sum(sorted(sizes)[-4:]) > 490  # those who asked for the layout first are a step behind
    assert all(result.error is None for result in results)


def test_no_task_waits_for_what_another_waits_for(pair):
    async def main() -> None:
        async with AsyncSandboxStore.from_url(pair.url) as store:
            await store.create(sandbox_id="a", write_concern=REPLICA)
            await asyncio.gather(*(store.get("a") for _ in range(10)))
            pair.halt()
            long = WriteConcern(replicas=1, timeout=2)
            waiting = [asyncio.create_task(store.create(write_concern=long)) for _ in range(10)]
            for _ in range(100):
                await store.get("a")
                await store.create()
            await store.update("a", lambda status: replace(status, state=State.READY))
            assert not any(task.done() for task in waiting)
            pair.resume()
            assert len(await asyncio.gather(*waiting)) == 10

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing_behind(pair, caplog):
    async def main() -> None:
        async with AsyncSandboxStore.from_url(pair.url) as store:
            await store.create(sandbox_id="a", write_concern=REPLICA)
            pair.halt()
            for _ in range(20):  # more than there are connections to lease
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await store.create(write_concern=WriteConcern(replicas=1, timeout=2))
            pair.resume()
            await store.start("a", pid=1, write_concern=WriteConcern(replicas=1, timeout=2))

    asyncio.run(main())
    assert caplog.records == []


# -- the disk


@pytest.fixture
def durable(own_server, tmp_path) -> EmbeddedServer:
    return own_server("valkey", port=0, data=tmp_path)


@every_flavour
@every_write
def test_a_write_is_on_the_disk_when_its_call_returns(write, flavour, durable):
    with opened(flavour, durable.url, agent="me", write_concern=DISK) as store:
        write.prepare(store, "a")
        answer = write.run(store, "a")
        durable.stop(signal.SIGKILL)
        durable.start()
        events = store.history("a")[-len(write.events) :]
        assert answer == write.answer("a", events)


@every_flavour
def test_a_server_without_an_append_only_file_is_found_out_before_anything_is_written(flavour, pair, other):
    with opened(flavour, pair.url, write_concern=DISK) as store:
        for write in (lambda: store.create(sandbox_id="a"), lambda: store.create(sandbox_id="b")):
            with pytest.raises(StoreUnavailableError, match=r"no append-only file.*nothing was written") as caught:
                write()
            assert caught.value.code == "UNSUPPORTED"
    assert other.ids(states=list(State)) == []


@every_flavour
@pytest.mark.parametrize("pair", ["redis"], indirect=True)
def test_a_server_without_waitaof_is_found_out_before_anything_is_written(flavour, pair, other):
    with redis.Redis.from_url(pair.url) as client:
        if client.info("server")["redis_version"] > "7.2":
            pytest.skip("this server has WAITAOF")
    with opened(flavour, pair.url, write_concern=DISK) as store:
        with pytest.raises(StoreUnavailableError, match=r"it has no WAITAOF.*nothing was written"):
            store.create(sandbox_id="a")
        with store.batch() as batch:
            result = batch.create(sandbox_id="a")
        assert result.error.code == "UNSUPPORTED"
        store.create(sandbox_id="a", write_concern=WriteConcern())
    assert other.ids(states=list(State)) == ["a"]


@every_flavour
def test_an_append_only_file_that_is_switched_off_later_does_not_confirm(flavour, durable):
    with opened(flavour, durable.url, write_concern=DISK) as store:
        store.create(sandbox_id="a")
        with redis.Redis.from_url(durable.url) as client:
            client.config_set("appendonly", "no")
        with pytest.raises(DurabilityError, match="appendonly is disabled") as caught:
            store.start("a", pid=1)
        assert caught.value.sandbox == store.get("a")


def test_fakeredis_cannot_confirm_and_says_so():
    with SandboxStore(fakeredis.FakeRedis(server=fakeredis.FakeServer()), write_concern=REPLICA) as store:
        with pytest.raises(StoreUnavailableError, match=r"it has no WAIT;.*nothing was written"):
            store.create(sandbox_id="a")
        assert store.ids(states=list(State)) == []


def test_a_user_who_may_not_wait_is_told_before_anything_is_written(pair, other):
    with redis.Redis.from_url(pair.url) as client:
        client.execute_command("ACL", "SETUSER", "hasty", "on", "nopass", "~*", "+@all", "-wait")
        try:
            url = pair.url.replace("127.0.0.1", "hasty:x@127.0.0.1")
            with SandboxStore(url, write_concern=REPLICA) as store:
                with pytest.raises(StoreUnavailableError, match="WAIT") as caught:
                    store.create(sandbox_id="a")
                assert caught.value.code == "NOPERM"
        finally:
            client.execute_command("ACL", "DELUSER", "hasty")
    assert other.ids(states=list(State)) == []


# -- what may be asked


@pytest.mark.parametrize(
    "argument, settings",
    [
        ("replicas", {"replicas": -1}),
        ("replicas", {"replicas": True}),
        ("fsync", {"fsync": 1}),
        ("timeout", {"timeout": 0}),
        ("timeout", {"timeout": float("nan")}),
    ],
)
def test_a_write_concern_that_makes_no_sense_is_refused(argument, settings):
    with pytest.raises(InvalidArgumentError) as caught:
        WriteConcern(**settings)
    assert caught.value.argument == argument


def test_something_else_than_a_write_concern_is_refused(server, prefix):
    with pytest.raises(InvalidArgumentError):
        SandboxStore(server.url, write_concern=1)
    with SandboxStore(server.url, prefix=prefix) as store:
        for write in WRITES.values():
            write.prepare(store, "a")
            break
        with pytest.raises(InvalidArgumentError, match="a WriteConcern is needed"):
            store.start("a", pid=1, write_concern="majority")


@pytest.mark.parametrize("fenced", [True, False])
def test_what_another_connection_may_have_written_first_is_not_confirmed_by_this_one(fenced):
    """WAIT speaks of its own connection: where an earlier packet may still have been the one that wrote, of nothing."""
    trace = Trace("a", 0, ("record", "events"), "token", "0-0", 100, WriteConcern(replicas=1))
    trace.lost(Lost("h:1", "cut", ("CLIENT", "KILL", "ID", b"7") if fenced else None))
    trace.confirm([1])
    if fenced:
        trace.check(None)
    else:
        with pytest.raises(DurabilityError):
            trace.check(None)
