"""A mirror whose server is killed, emptied, frozen or set back, whose connection is cut, and whose events are gone: it
is read on, says how old it is, never goes back, and in the end is the store again."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import redis
from faults.proxy import CUTS, HANDSHAKE, How, Proxy
from faults.writes import METADATA, READY, opened
from test_mirror import NEVER, all_of, found_in, held, live, mirror_of, place, until_told

from sandbox_redis import (
    InvalidArgumentError,
    Sandbox,
    SandboxError,
    SandboxStore,
    State,
    StoreUnavailableError,
    WaitTimeoutError,
    mirroring,
)
from sandbox_redis import mirror as mirror_module
from sandbox_redis.server import EmbeddedServer

TIMEOUT = 0.5  # seconds, for a server that does not answer
SLACK = 2  # seconds, on a busy machine
HEARTBEAT = 0.2  # seconds; a server looks at its clock ten times a second
ALWAYS = range(10**9)
FOLLOWS = {b"XREAD", b"XRANGE", b"XLEN", b"EXISTS", b"HMGET"}  # to list takes other commands
every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])
# Servers and flavours have little to do with each other: each is tested twice, all pairs would be four tests.
every_pair = pytest.mark.parametrize("server, flavour", [("valkey", "sync"), ("redis", "asyncio")], indirect=["server"])


@pytest.fixture
def server(request, module_servers) -> EmbeddedServer:
    return module_servers(getattr(request, "param", "valkey"))


@pytest.fixture
def looking(server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def other(looking) -> Iterator[SandboxStore]:
    """Another agent, whose connection holds; it lays the store out, with one partition."""
    with SandboxStore(looking, agent="other") as store:
        store.load("a", READY, node="n", metadata=METADATA)
        yield store


@pytest.fixture
def short(looking) -> Iterator[SandboxStore]:
    """The same, of a store with four partitions that keep few events: 20, but servers trim by the hundred."""
    with SandboxStore(looking, agent="other", partitions=4, events_maxlen=20) as store:
        store.load("a", READY, node="n", metadata=METADATA)
        yield store


def following(looking: redis.Redis) -> list[dict[str, str]]:
    """The connections of mirrors."""
    return [each for each in looking.client_list() if each["name"] == "me" and each["cmd"] in ("xread", "xlen")]


def cut(looking: redis.Redis) -> None:
    for each in following(looking):
        looking.client_kill_filter(_id=each["id"])


def churn(store: SandboxStore, sandbox_id: str = "a") -> Any:
    """300 events of one sandbox; what it is behind them."""
    with store.batch() as batch:
        for _ in range(100):
            batch.remove(sandbox_id, force=True)
            last = batch.load(sandbox_id, READY, node="n", metadata=METADATA)
    return last


@contextmanager
def frozen(server: EmbeddedServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def swallowed(proxy: Proxy) -> Iterator[None]:
    """Nothing comes through, and nobody is told."""
    proxy.fault("swallow", ALWAYS)
    try:
        yield
    finally:
        proxy.fault()


@contextmanager
def hit(proxy: Proxy, how: How, chosen: Callable[[bytes], bool]) -> Iterator[list[bytes]]:
    """Do this to the packets that are chosen, by the name of their first command; those that were."""
    hits: list[bytes] = []

    def choose(commands: list[list[bytes]]) -> How | None:
        name = commands[0][0]
        if name in HANDSHAKE or not chosen(name):
            return None
        hits.append(name)
        return how

    proxy._hit = choose
    try:
        yield hits
    finally:
        del proxy._hit


def lists(name: bytes) -> bool:
    """Whether it is a part of listing, and not of following."""
    return name not in FOLLOWS


def kept(told: Iterable[tuple[Sandbox | None, Sandbox | None]], known: dict[str, Sandbox]) -> dict[str, Sandbox]:
    """What somebody knows in the end, who believes what a mirror has told: each change goes on from the one before."""
    known = dict(known)
    for before, after in told:
        sandbox_id = (before or after).id
        assert known.pop(sandbox_id, None) == before, f"{before} → {after} is not what comes next"
        if after is not None:
            known[sandbox_id] = after
    return known


# -- races

IDS = ["a", "b", "c", "d"]
WRITES: list[Callable[[SandboxStore, str, int], Any]] = [
    lambda store, i, pid: store.create(sandbox_id=i, node="n", metadata=METADATA),
    lambda store, i, pid: store.load(i, READY, node="n", metadata=METADATA),
    lambda store, i, pid: store.start(i, pid=pid),
    lambda store, i, pid: store.exit(i, exit_status=pid),
    lambda store, i, pid: store.remove(i),
    lambda store, i, pid: store.remove(i, force=True),
] + [lambda store, i, pid: store.update(i, lambda status: replace(status, pid=pid))] * 3


def write(number: int, pipe: Any) -> None:
    """A process that writes whenever it is told where."""
    chance = random.Random(number)
    while where := pipe.recv():
        url, writes = where
        with SandboxStore.from_url(url, agent=f"writer-{number}") as store:
            for pid in range(writes):
                with suppress(SandboxError):
                    chance.choice(WRITES)(store, chance.choice(IDS), pid)
        pipe.send("done")


class Writers:
    """Three processes that write the same few sandboxes."""

    def __init__(self, pipes: list[Any]) -> None:
        self.pipes = pipes

    def begin(self, url: str, writes: int) -> None:
        for pipe in self.pipes:
            pipe.send((url, writes))

    def at_work(self) -> bool:
        return not all(pipe.poll() for pipe in self.pipes)

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.recv()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(3):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=write, args=(number, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    yield Writers(pipes)
    for pipe, process in zip(pipes, processes, strict=True):
        with suppress(BrokenPipeError):  # it has failed, and its test with it
            pipe.send(None)
        process.join()


class Witness:
    """Somebody who reads, and remembers."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[tuple[int, ...], bool]] = {}
        self.reads = 0

    def look(self, mirror: Any) -> None:
        listed = all_of(mirror)
        for each in IDS:
            self._saw(each, listed.get(each))
            self._saw(each, found_in(mirror, each))
        self.reads += 1

    def _saw(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        newest, there = self.seen.get(sandbox_id, ((0, 0), True))
        if sandbox is not None:
            now = place(sandbox.revision)
            assert now > newest or (now == newest and there), f"{sandbox_id} went back from {newest} to {now}"
            newest = now
        self.seen[sandbox_id] = newest, sandbox is not None


@contextmanager
def readers(mirror: Any, flavour: str) -> Iterator[Witness]:
    """Several threads that read, each for itself, and all together in the order of their reads. An asyncio mirror is
    read by whoever runs its loop."""
    together, lock, over = Witness(), threading.Lock(), threading.Event()

    def read() -> int:
        alone = Witness()
        while not over.is_set():
            alone.look(mirror)
            with lock:
                together.look(mirror)
            time.sleep(0)
        return alone.reads

    with ThreadPoolExecutor() as pool:
        reading = [pool.submit(read) for _ in range(3 * (flavour == "sync"))]
        try:
            yield together
        finally:
            over.set()
        for each in reading:
            assert each.result() > 0


def calm(proxy: Proxy, looking: redis.Redis, other: SandboxStore, chance: random.Random) -> None:
    """Nothing goes wrong."""


def cuts(proxy: Proxy, looking: redis.Redis, other: SandboxStore, chance: random.Random) -> None:
    """The server drops the connection, or it is cut at one of its next packets."""
    if chance.random() < 0.3:
        cut(looking)
    elif proxy.fired or not proxy.packets:
        proxy.fault(chance.choice(CUTS), [chance.randrange(4)])


def gaps(proxy: Proxy, looking: redis.Redis, other: SandboxStore, chance: random.Random) -> None:
    """The connection is cut, and not made again before many events have come and gone."""
    proxy.fault("before", ALWAYS)
    cut(looking)
    churn(other, chance.choice(["d", "e"]))
    proxy.fault()
    time.sleep(chance.choice([0, 0.05]))


@every_pair
@pytest.mark.parametrize(("fault", "partitions"), [(calm, 1), (cuts, 1), (cuts, 64), (gaps, 4)])
def test_no_reader_ever_sees_a_state_go_back(
    server, flavour, proxy, looking, writers, until, caplog, partitions, fault
):
    """In the end the mirror is the store, and its callbacks have been told how it came to that."""
    chance = random.Random(fault.__name__)
    told: list[Any] = []
    caplog.set_level(logging.DEBUG, "sandbox_redis")
    with SandboxStore(looking, partitions=partitions, events_maxlen=20 if fault is gaps else 10_000) as other:
        other.load("a", READY)
        with opened(flavour, proxy.url, agent="me") as store, mirror_of(store, heartbeat=HEARTBEAT) as found:
            known = all_of(found)
            found.on_change(lambda before, after: told.append((before, after)))
            with readers(found, flavour) as together:
                writers.begin(server.url, 400)
                while writers.at_work():
                    if flavour == "asyncio":
                        together.look(found)
                    fault(proxy, looking, other, chance)
                    time.sleep(chance.uniform(0, 0.02))
                writers.end()
                proxy.fault()
                audit = other.audit()
                until(lambda: all_of(found) == audit.sandboxes)
                together.look(found)
            assert audit.problems == []
            assert together.reads > 2
            until(lambda: not found.stale)
            until(lambda: found.count() >= 0 and kept(list(told), known) == audit.sandboxes)
    lost = [record for record in caplog.records if "a mirror is stale" in record.message]
    assert bool(lost) == (fault is not calm)
    assert any("not all there any more" in record.message for record in lost) == (fault is gaps)


# -- nobody answers


@every_pair
@pytest.mark.parametrize("silence", [frozen, swallowed])
def test_it_is_read_on_at_once_while_nobody_answers(server, flavour, proxy, other, until, silence):
    with (
        opened(flavour, proxy.url, agent="me", timeout=TIMEOUT) as store,
        mirror_of(store, heartbeat=HEARTBEAT) as found,
    ):
        before = other.get("a")
        with silence(server if silence is frozen else proxy):
            until(lambda: found.stale)
            waits = []
            for _ in range(200):
                begin = time.monotonic()
                assert (found.get("a"), found.list(), found.count()) == (before, [before], 1)
                waits.append(time.monotonic() - begin)
            assert sum(wait > HEARTBEAT / 4 for wait in waits) <= 2  # it is a busy machine
            first = found.age
            assert first > HEARTBEAT
            until(lambda: found.age > first + 0.2)
            until(lambda: not found.synced)
            assert found.stale
        until(lambda: not found.stale)
        assert found.synced
        assert found.age < HEARTBEAT + SLACK
        written = other.stop("a")
        found.wait_for(written)
        assert found.get("a") == written


@every_flavour
def test_silence_is_noticed_while_somebody_reads_all_the_time(flavour, proxy, other, until, monkeypatch):
    """Readers take the mirror's work over, but this is its own."""
    monkeypatch.setattr(mirror_module, "BUSY", 0.3)  # so that no reader is too slow to count
    with opened(flavour, proxy.url, agent="me", timeout=TIMEOUT) as store, mirror_of(store, heartbeat=0.2) as found:
        proxy.fault("swallow", [0])
        until(lambda: found.get("a") and proxy.fired)
        written = other.stop("a")
        until(lambda: found.get("a") == written, timeout=5)


@every_pair
def test_waiting_ends_in_time_also_while_the_server_is_away(own_server, server, flavour, until):
    gone = own_server("valkey" if flavour == "sync" else "redis", port=0)
    with opened(flavour, gone.url, agent="me") as store:
        written = replace(store.load("a", READY), revision=NEVER)
        with mirror_of(store, heartbeat=HEARTBEAT) as found:
            gone.stop(signal.SIGKILL)
            until(lambda: not found.synced)
            for timeout in (0.01, 0.5):
                begin = time.monotonic()
                with pytest.raises(WaitTimeoutError):
                    found.wait_for(written, timeout=timeout)
                assert timeout <= time.monotonic() - begin < timeout + SLACK


@every_pair
def test_waiting_ends_in_time_also_for_a_server_that_does_not_answer(server, flavour, proxy, other):
    with opened(flavour, proxy.url, agent="me") as store, mirror_of(store) as found, frozen(server):
        begin = time.monotonic()
        with pytest.raises(WaitTimeoutError):
            found.wait_for(NEVER, timeout=0.3)
        assert time.monotonic() - begin < 0.3 + SLACK


def test_threads_that_wait_while_the_connection_is_cut_all_end_in_time(server, looking, other):
    """They see together that there is something to do, and it is done by one."""
    with opened("sync", server.url, agent="me") as store, mirror_of(store) as found, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(found.wait_for, NEVER, timeout=0.5) for _ in range(8)]
        while not all(each.done() for each in waiting):
            cut(looking)
            time.sleep(0.02)
        assert [type(each.exception(timeout=10)) for each in waiting] == [WaitTimeoutError] * 8
        found.wait_for(other.stop("a"))


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"redis://127.0.0.1:{free.getsockname()[1]}/0"


@every_flavour
@pytest.mark.parametrize("away", ["never there", "stopped", "frozen"])
def test_a_mirror_cannot_be_opened_while_the_server_is_away(own_server, flavour, away):
    """It is said in time, and nothing is left behind."""
    server = None if away == "never there" else own_server(port=0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        threads = threading.active_count()
        with opened(flavour, server.url if server else nobody(), timeout=TIMEOUT) as store:
            if server is not None:
                store.load("a", READY)
            if away == "stopped":
                server.stop(signal.SIGKILL)
            with frozen(server) if away == "frozen" else nullcontext():
                begin = time.monotonic()
                with pytest.raises(StoreUnavailableError) as caught:
                    store.mirror()
                assert time.monotonic() - begin < TIMEOUT + SLACK
            assert caught.value.code == "UNREACHABLE"
            assert threading.active_count() == threads
        del caught
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


@every_flavour
@pytest.mark.parametrize("how", CUTS)
def test_opening_is_not_hindered_by_a_cut(flavour, proxy, short, how):
    """At whichever of its packets."""
    live(short)
    expected = {sandbox.id: sandbox for sandbox in short.list(states=State)}
    for number in count():
        with opened(flavour, proxy.url, agent="me") as store:
            proxy.fault(how, [number])
            with mirror_of(store) as found:
                assert all_of(found) == expected
            if not proxy.fired:
                break
    assert number > 3


# -- the server comes back


@pytest.fixture
def lasting(own_server, tmp_path, flavour) -> EmbeddedServer:
    """A server that has its data again the next time."""
    name = "valkey" if flavour == "sync" else "redis"
    return own_server(name, port=0, data=tmp_path, options={"appendfsync": "always"})


@every_flavour
def test_it_goes_on_where_it_was(lasting, flavour, until):
    """Nothing is listed again, and nothing is told twice."""
    told: list[Any] = []
    with (
        SandboxStore.from_url(lasting.url) as other,
        Proxy(lasting) as proxy,
        opened(flavour, proxy.url, agent="me") as store,
    ):
        first = other.load("a", READY, metadata=METADATA)
        with mirror_of(store, heartbeat=HEARTBEAT) as found:
            found.on_change(lambda before, after: told.append((before, after)))
            created = other.create(sandbox_id="b")
            found.wait_for(created)
            proxy.fault()
            lasting.stop(signal.SIGKILL)
            until(lambda: not found.synced and found.stale)
            assert found.list(states=State) == [first, created]
            until(lambda: found.age > 3 * HEARTBEAT)
            lasting.start()
            stopped, started = other.stop("a"), other.start("b", pid=7)
            found.wait_for(stopped)
            found.wait_for(started)
            assert found.list() == [stopped, started]
            until(lambda: found.synced and not found.stale)
            until_told(until, found, told, 3)
            assert told == [(None, created), (first, stopped), (created, started)]
            assert {command[0] for packet in proxy.packets for command in packet} <= FOLLOWS


@every_pair
def test_it_goes_on_where_it_was_also_when_only_the_connection_was_cut(proxy, looking, other, flavour, until):
    told: list[Any] = []
    with opened(flavour, proxy.url, agent="me") as store, mirror_of(store) as found:
        proxy.fault()
        found.on_change(lambda before, after: told.append(after))
        written = []
        for i in range(5):
            with held(found):
                cut(looking)
                written.append(other.update("a", lambda status: replace(status, pid=i + 10)))  # noqa: B023
            found.wait_for(written[-1])
            assert found.get("a") == written[-1]
            until(lambda: found.synced)
        until_told(until, found, told, 5)
        assert told == written
        assert {command[0] for packet in proxy.packets for command in packet} <= FOLLOWS


@pytest.mark.parametrize("how", ["restarted", "set back", "flushed", "cut and flushed"])
@every_flavour
def test_what_the_server_has_lost_is_not_shown_any_more(own_server, tmp_path, flavour, until, how):
    """Once it has caught up again; and it is told that it is gone."""
    server = own_server(
        "valkey" if flavour == "sync" else "redis",
        port=0,
        data=tmp_path if how == "set back" else None,
        options={"appendonly": "no"},
    )
    told: list[Any] = []
    with (
        redis.Redis.from_url(server.url) as looking,
        SandboxStore.from_url(server.url) as other,
        opened(flavour, server.url, agent="me") as store,
    ):
        old = [other.load(each, READY, metadata=METADATA) for each in ("kept", "changed", "removed")]
        if how == "set back":
            looking.save()
        other.stop("changed")
        other.remove("removed", force=True)
        other.create(sandbox_id="lost", node="n", metadata=METADATA)
        with mirror_of(store, heartbeat=HEARTBEAT) as found:
            known = all_of(found)
            assert set(known) == {"kept", "changed", "lost"}
            found.on_change(lambda before, after: told.append((before, after)))
            if "flushed" in how:
                if how == "cut and flushed":
                    cut(looking)
                looking.flushall()
                until(lambda: all_of(found) == {})
            else:
                server.stop(signal.SIGKILL)
                until(lambda: not found.synced)
                assert all_of(found) == known
                server.start()
                until(lambda: found.synced)
            expected = {sandbox.id: sandbox for sandbox in old} if how == "set back" else {}
            for _ in range(20):
                assert all_of(found) == expected
            assert found.count(state=State.INIT) == 0
            until_told(until, found, told, 3)
            assert kept(told, known) == expected
            assert len(told) == 3
            with SandboxStore.from_url(server.url) as another:
                created = another.create(sandbox_id="lost", metadata=METADATA)
            found.wait_for(created)
            assert found.get("lost") == created
            until_told(until, found, told, 4)
            assert told[3:] == [(None, created)]


@every_pair
def test_a_store_that_is_laid_out_anew_is_mirrored_as_it_is(server, looking, flavour, until):
    with opened(flavour, server.url, agent="me", partitions=1) as store:
        store.load("a", READY)
        with mirror_of(store, heartbeat=HEARTBEAT) as found:
            looking.flushall()
            with SandboxStore(looking, partitions=4) as other:
                expected = {sandbox.id: sandbox for sandbox in (other.create() for _ in range(20))}
                until(lambda: all_of(found) == expected, timeout=3)


@every_pair
def test_it_lists_again_where_the_events_are_gone(server, looking, short, flavour, until, caplog):
    caplog.set_level(logging.DEBUG, "sandbox_redis")
    told: list[Any] = []
    with opened(flavour, server.url, agent="me") as store, mirror_of(store) as found:
        known = all_of(found)
        found.on_change(lambda before, after: told.append((before, after)))
        with held(found):
            cut(looking)
            lost = short.load("b", READY)
            written = churn(short).result()
            short.remove("b", force=True)
        until(lambda: all_of(found) == {"a": written})
        until_told(until, found, told)
        assert place(written.revision) > place(lost.revision)
        assert kept(told, known) == {"a": written}
    (record,) = [record for record in caplog.records if "not all there any more" in record.message]
    assert (record.name, record.exc_info) == ("sandbox_redis", None)


@every_flavour
def test_who_waits_hears_of_what_a_listing_brings(server, looking, short, flavour):
    """At once, and not with the next event or heartbeat."""
    with opened(flavour, server.url, agent="me") as store, mirror_of(store, heartbeat=60) as found:
        with held(found):
            cut(looking)
            written = churn(short).result()
        found.wait_for(written, timeout=3)
        assert found.get("a") == written


@every_flavour
def test_a_revision_alone_is_refused_also_while_it_lists_again(proxy, looking, short, flavour, until):
    """There are several partitions, and it has not forgotten that."""
    with opened(flavour, proxy.url, agent="me", timeout=1) as store, mirror_of(store) as found:
        written = short.get("a")
        with hit(proxy, "swallow", lists) as hits:
            with held(found):
                cut(looking)
                churn(short)
            until(lambda: found.age >= 0 and hits)
            with pytest.raises(InvalidArgumentError, match="several partitions"):
                found.wait_for(written.revision, timeout=0.1)


# -- what is told


@every_flavour
def test_a_change_is_told_also_when_its_connection_ends_behind_it(own_server, flavour, until):
    """On a unix socket, where the next question fails at once."""
    server = own_server()
    told: list[Any] = []
    with (
        redis.Redis.from_url(server.url) as looking,
        SandboxStore(looking) as other,
        opened(flavour, server.url, agent="me") as store,
        mirror_of(store) as found,
    ):
        found.on_change(lambda before, after: told.append((before, after)))
        with held(found):
            created = other.create(sandbox_id="a")
            cut(looking)
        found.wait_for(created)
        started = other.start("a", pid=1)
        found.wait_for(started)
        until(lambda: found.count() >= 0 and (created, started) in told)
        assert told == [(None, created), (created, started)]


@every_flavour
def test_what_a_listing_has_changed_is_told_even_if_it_connects_only_later(
    proxy, looking, short, flavour, until, caplog
):
    """It has listed, and then cannot follow: what it has listed is shown, so it must be told."""
    told: list[Any] = []
    with (
        caplog.at_level(logging.DEBUG, "sandbox_redis"),
        opened(flavour, proxy.url, agent="me", timeout=TIMEOUT) as store,
        mirror_of(store, heartbeat=HEARTBEAT) as found,
    ):
        known = all_of(found)
        found.on_change(lambda before, after: told.append((before, after)))

        listed = []

        def behind_a_listing(name: bytes) -> bool:
            listed.append(lists(name))
            return name == b"XRANGE" and any(listed)

        with held(found):
            cut(looking)
            written = churn(short).result()
        with hit(proxy, "before", behind_a_listing) as hits:
            until(lambda: all_of(found) == {"a": written} and hits)
            caplog.clear()
            until(lambda: found.count() and any("not available" in record.message for record in caplog.records))
        until(lambda: found.synced)
        last = short.stop("a")
        found.wait_for(last)
        until(lambda: found.count() and told and told[-1][1] == last)
        assert kept(told, known) == {"a": last}


# -- a server that refuses


@pytest.fixture
def user(server, looking) -> Iterator[str]:
    """The URL of a user whose rights a test may take away."""
    looking.execute_command("ACL", "SETUSER", "agent", "on", ">secret", "~*", "+@all")
    yield server.url.replace("redis://", "redis://agent:secret@")
    looking.acl_deluser("agent")


@every_pair
def test_who_may_not_follow_any_more_is_stale_until_he_may(server, flavour, user, looking, other, until, caplog):
    """It says so once, and does not storm the server."""
    with opened(flavour, user, agent="me") as store, mirror_of(store, heartbeat=HEARTBEAT) as found:
        before = looking.info("stats")["total_connections_received"]
        looking.execute_command("ACL", "SETUSER", "agent", "-xread")
        until(lambda: found.stale and found.age > 4 * HEARTBEAT)
        assert found.list() == [other.get("a")]
        tried = looking.info("stats")["total_connections_received"] - before
        warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
        looking.execute_command("ACL", "SETUSER", "agent", "+xread")
        written = other.stop("a")
        until(lambda: not found.stale)
        assert found.get("a") == written
        assert tried < 100
        assert ["NOPERM" in record.message or "permission" in record.message for record in warned] == [True]


@every_flavour
def test_an_outage_may_take_as_many_attempts_as_it_likes(flavour, user, looking, other, until, monkeypatch):
    for pause in ("PAUSE_FIRST", "PAUSE_MAX"):
        monkeypatch.setattr(mirroring, pause, 0.0001)
    with opened(flavour, user, agent="me", timeout=TIMEOUT) as store:
        found = mirror_of(store)
        before = looking.info("stats")["total_connections_received"]
        looking.execute_command("ACL", "SETUSER", "agent", "off")
        cut(looking)
        stuck = 0.0
        tried = before
        while tried < before + 600 and not stuck > 3:
            begin, last = time.monotonic(), tried
            found_in(found, "a")
            tried = looking.info("stats")["total_connections_received"]
            stuck = 0.0 if tried > last else stuck + time.monotonic() - begin
        looking.execute_command("ACL", "SETUSER", "agent", "on")
        written = other.stop("a")
        with suppress(pytest.fail.Exception):
            until(lambda: found_in(found, "a") == written, timeout=5)
        closing = threading.Thread(target=found.close, daemon=True)
        closing.start()
        closing.join(5)
        assert tried >= before + 600, "it has given up"
        assert found_in(found, "a") == written
        assert not closing.is_alive()


# -- its end


@every_flavour
@pytest.mark.parametrize("phase", ["following", "connecting", "listing"])
def test_closing_is_quick_while_nobody_answers(proxy, looking, short, flavour, until, phase):
    """Whatever it is waiting for."""
    chosen = {
        "following": lambda name: name == b"XREAD",
        "connecting": lambda name: name == b"XRANGE",
        "listing": lists,
    }[phase]
    with opened(flavour, proxy.url, agent="me", timeout=8) as store:
        found = mirror_of(store, heartbeat=5)
        assert found.synced
        with hit(proxy, "swallow", chosen) as hits:
            with held(found):
                if phase == "following":
                    short.stop("a")
                else:
                    cut(looking)
                    churn(short)
            until(lambda: found.age >= 0 and hits)
            begin = time.monotonic()
            found.close()
            assert time.monotonic() - begin < SLACK
        assert found.count() == 1


FORK = """
import os, sys, time
from sandbox_redis import SandboxStore

def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)

with SandboxStore.from_url(sys.argv[1], agent="me") as store, store.mirror(heartbeat=0.2) as mirror:
    before = store.load("a", store.get("template").status)
    mirror.wait_for(before)
    if not (child := os.fork()):
        failed = 1
        try:
            until(lambda: mirror.stale)
            first = mirror.age
            until(lambda: mirror.age > first + 0.1)
            assert mirror.get("a") == before
            assert [each.id for each in mirror.list()] == ["a", "template"]
            with SandboxStore.from_url(sys.argv[1], agent="child").mirror() as own:
                assert own.get("a").id == "a"
            mirror.close()
            failed = 0
        finally:
            os._exit(failed)
    changes = 0
    while not os.waitpid(child, os.WNOHANG)[0]:
        written = store.update("a", lambda status: type(status)(status.state, pid=(status.pid + 1) % 1000))
        mirror.wait_for(written)
        assert mirror.get("a") == written
        assert not mirror.stale
        changes += 1
        time.sleep(0.01)
    written = store.stop("a")
    mirror.wait_for(written)
    assert mirror.get("a") == written
    print("ok", changes > 3)
"""


def test_in_the_child_of_a_fork_it_grows_stale_and_harms_nobody(server, looking, other):
    other.load("template", READY)
    other.remove("a", force=True)
    command = [sys.executable, "-W", "ignore", "-c", FORK, server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("ok True\n", "")


# -- what it costs the server


@every_pair
@pytest.mark.parametrize("partitions", [1, 64])
def test_a_process_that_has_no_time_costs_the_server_nothing_that_grows(server, flavour, looking, partitions):
    def cost() -> int:
        (mine,) = following(looking)
        return int(mine["tot-mem"]) + int(mine["omem"])

    with (
        SandboxStore(looking, partitions=partitions) as other,
        opened(flavour, server.url, agent="me") as store,
    ):
        other.create()
        with mirror_of(store, heartbeat=60) as found:
            assert found.count(state=State.INIT) == 1
            costs = []
            with held(found):
                for _ in range(4):
                    with other.batch() as batch:
                        created = [batch.create(metadata=METADATA) for _ in range(700)]
                    costs.append(cost())
            assert max(costs) <= costs[0] + 4096
            for each in created[-200:]:
                found.wait_for(each.result())
            assert found.count(state=State.INIT) == 2801 - len(missing(found, other))


def missing(mirror: Any, store: SandboxStore) -> set[str]:
    return set(store.ids(states=State)) - set(all_of(mirror))


def test_pure_python_in_the_main_thread_costs_the_server_nothing_that_grows(server, looking, other, writers):
    """It is at work, and never waits; what comes in meanwhile is taken in all the same."""
    with opened("sync", server.url, agent="me") as store, mirror_of(store) as found:
        writers.begin(server.url, 300)
        costs = []
        while writers.at_work():
            for _ in range(20):
                sum(i * i for i in range(10_000))
            costs += [int(mine["omem"]) for mine in following(looking)]
        writers.end()
        audit = other.audit()
        assert all_of(found) == audit.sandboxes or found.wait_for(newest(audit.events)) is None
        assert all_of(found) == audit.sandboxes
        assert max(costs) < 1 << 20


def newest(events: Iterable[Any]) -> str:
    return max((event.revision for event in events), key=place)
