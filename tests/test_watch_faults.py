"""Watches, listings that go on, and waiting, while everything fails beneath them: connections are cut, servers go away
and come back, older or empty. What can be bridged is bridged without loss; what is missing is said; nothing hangs."""

from __future__ import annotations

import multiprocessing
import random
import signal
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import psutil
import pytest
import redis
from faults.proxy import CUTS, Proxy
from faults.writes import READY, opened

from sandbox_redis import (
    CompactedError,
    Event,
    Metadata,
    Sandbox,
    SandboxError,
    SandboxStore,
    SchemaError,
    State,
    StoreRolledBackError,
    StoreUnavailableError,
)
from sandbox_redis.keys import Keys
from sandbox_redis.server import EmbeddedServer

TIMEOUT = 0.3  # seconds, for a server that does not answer
SLACK = 1.5  # seconds, on a busy machine
WRITERS = 3
PASSWORD = "s3cret-of-the-tests"
WEB = Metadata(labels={"app": "web"})
every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])
# Servers and flavours have little to do with each other: each is tested twice, all pairs would be four tests.
every_pair = pytest.mark.parametrize("server, flavour", [("valkey", "sync"), ("redis", "asyncio")], indirect=["server"])


@pytest.fixture
def server(request, module_servers) -> EmbeddedServer:
    return module_servers(getattr(request, "param", "valkey"))


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def looking(server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.script_flush()
        yield client


@pytest.fixture
def other(looking, prefix) -> Iterator[SandboxStore]:
    """Another agent, whose connection holds."""
    with SandboxStore(looking, prefix=prefix, agent="other") as store:
        yield store


@pytest.fixture
def watcher(server, looking, prefix, flavour) -> Iterator[Any]:
    with opened(flavour, server.url, prefix=prefix, agent="me", timeout=60) as store:
        yield store


@pytest.fixture
def waits(looking) -> Callable[[], bool]:
    """Whether somebody waits for events."""
    return lambda: any("b" in client["flags"] for client in looking.client_list())


@pytest.fixture
def background(looking, until, waits) -> Iterator[Callable[..., Future[Any]]]:
    """Calls something in a thread of its own, and returns when it waits for events."""
    with ThreadPoolExecutor() as pool:

        def begin(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
            future = pool.submit(call, *args, **kwargs)
            until(lambda: future.done() or waits())
            return future

        yield begin
        with suppress(redis.RedisError):
            looking.flushall()  # who still waits, because the test has failed, waits no more


@pytest.fixture
def aside() -> Iterator[Callable[..., Future[Any]]]:
    """Calls something with a watch in a thread of its own."""
    called = []
    with ThreadPoolExecutor() as pool:

        def begin(call: Callable[..., Any], watch: Any, *args: Any) -> Future[Any]:
            called.append((watch, pool.submit(call, watch, *args)))
            return called[-1][1]

        yield begin
        for watch, future in called:
            if not future.done():  # because the test has failed
                watch.close()


def place(revision: str) -> tuple[int, ...]:
    return tuple(map(int, revision.split("-")))


def take(watch: Any, number: int) -> list[Event]:
    return [next(watch) for _ in range(number)]


def by_sandbox(events: Iterable[Event]) -> dict[str, list[Event]]:
    """The order of the events of different sandboxes is nobody's business."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event.id].append(event)
    return dict(found)


def ending(watch: Any, seconds: float = 10) -> BaseException | None:
    """The error that ends a watch, however much it tells before; None when there is none for so long."""
    with ThreadPoolExecutor() as pool:
        listening = pool.submit(deque, watch, 0)
        wait([listening], seconds)
        watch.close()
        return listening.exception()


def assert_over(watch: Any) -> None:
    """An error is its end."""
    for _ in range(2):
        assert list(watch) == []


def one_more(status: Any) -> Any:
    return replace(status, pid=status.pid + 1)


# -- cuts

BEGINNINGS: dict[str, Callable[[Any, str], Any]] = {
    "now": lambda store, cursor: store.watch(),
    "since": lambda store, cursor: store.watch(since=cursor),
    "listed": lambda store, cursor: store.list_and_watch()[1],
}


@every_flavour
@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("how", CUTS)
def test_a_cut_anywhere_is_bridged(how, begin, flavour, proxy, looking, prefix):
    """At packet 0, 1, 2, …: layout, where to begin, NOSCRIPT, SCRIPT LOAD, the listing, the checks, the events."""
    cut_everywhere(how, begin, flavour, proxy, looking, prefix, 1)


@pytest.mark.parametrize("flavour, begin", [("sync", BEGINNINGS["listed"]), ("asyncio", BEGINNINGS["since"])])
@pytest.mark.parametrize("how", ["after", "before"])
def test_so_are_three_cuts_in_a_row(how, begin, flavour, proxy, looking, prefix):
    cut_everywhere(how, begin, flavour, proxy, looking, prefix, 3)


def cut_everywhere(how: str, begin: Any, flavour: str, proxy: Proxy, looking: redis.Redis, prefix: str, cuts: int):
    for number in count():
        mine = {"prefix": f"{prefix}-{number}"}
        proxy.fault()
        with SandboxStore(looking, **mine) as other, opened(flavour, proxy.url, **mine) as store:
            other.load("a", READY)
            cursor = other.page().since
            looking.script_flush()
            proxy.fault(how, range(number, number + cuts))
            watch = begin(store, cursor)
            for pid in (1, 2):
                changed = [other.update("a", partial(replace, pid=10 * pid + i)) for i in range(3)]
                assert [event.sandbox for event in take(watch, 3)] == changed
            watch.close()
            if proxy.fired < cuts:
                assert number > 3
                return


@every_pair
@pytest.mark.parametrize("how", ["pass", "before", "half"])
def test_what_happens_while_a_wait_begins_is_not_missed(how, flavour, server, proxy, looking, prefix):
    """It becomes ready at packet 0, 1, 2, …, where the connection may be cut, too."""
    for number in range(6):
        mine = {"prefix": f"{prefix}-{number}"}
        with SandboxStore(looking, **mine) as other, opened(flavour, proxy.url, **mine) as store:
            other.create(sandbox_id="a", metadata=WEB)
            proxy.fault(how, {number}, then=partial(other.start, "a", pid=7))
            assert store.wait("a", State.READY) == other.get("a")
            assert proxy.fired == 1


@every_pair
def test_a_wait_goes_on_over_connections_that_are_cut(watcher, other, looking, background, until, waits):
    other.create(sandbox_id="a", metadata=WEB)
    waiting = background(watcher.wait, "a", [State.READY, State.UNKNOWN])
    for _ in range(3):
        looking.client_kill_filter(_type="normal", skipme=True)
        other.update("a", one_more)
        until(waits)
    assert not waiting.done()
    looking.client_kill_filter(_type="normal", skipme=True)
    started = other.start("a", pid=7)
    assert waiting.result() == started


# -- while many write

IDS = 12


def at_random(store: SandboxStore, rng: random.Random, ids: int = IDS) -> None:
    """Try something with some sandbox; it may be refused."""
    sandbox_id = f"s{rng.randrange(ids)}"
    metadata = Metadata(name=sandbox_id, uid=str(rng.random()), labels={"app": rng.choice(["web", "db"])})
    node = f"n{rng.randrange(2)}"
    operations: list[Callable[[], Any]] = [
        lambda: store.create(sandbox_id=sandbox_id, node=node, metadata=metadata),
        lambda: store.load(sandbox_id, READY, node=node, metadata=metadata),
        lambda: store.start(sandbox_id, pid=rng.randrange(1000)),
        lambda: store.fail_start(sandbox_id),
        lambda: store.update(sandbox_id, one_more),
        lambda: store.exit(sandbox_id, exit_status=1),
        lambda: store.stop(sandbox_id),
        lambda: store.remove(sandbox_id),
        lambda: store.remove(sandbox_id, force=True),
    ]
    with suppress(SandboxError):
        rng.choice(operations)()


def writer(number: int, pipe: Any) -> None:
    """A process that writes whenever it is told where."""
    rng = random.Random(number)
    while work := pipe.recv():
        url, prefix, operations, ids = work
        with SandboxStore(url, prefix=prefix, agent=f"writer-{number}", timeout=60) as store:
            for _ in range(operations):
                at_random(store, rng, ids)
        pipe.send("done")


@pytest.fixture(scope="module")
def writers() -> Iterator[Callable[..., Callable[[], bool]]]:
    """Three processes; ``writers(url, prefix, operations)`` lets them write, and returns what says whether they are
    done."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(WRITERS):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=writer, args=(number, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)

    def begin(url: str, prefix: str, operations: int, ids: int = IDS) -> Callable[[], bool]:
        busy = set(pipes)
        for pipe in pipes:
            pipe.send((url, prefix, operations, ids))

        def done() -> bool:
            busy.difference_update([pipe for pipe in busy if pipe.poll() and pipe.recv()])
            return not busy

        return done

    yield begin
    for pipe, process in zip(pipes, processes, strict=True):
        with suppress(BrokenPipeError):  # it has failed, and its test with it
            pipe.send(None)
        process.join()


@pytest.mark.parametrize("server", ["valkey", "redis"], indirect=True)
@pytest.mark.parametrize("partitions", [1, 4])
def test_connections_that_are_killed_all_the_time(server, looking, prefix, partitions, writers, until):
    """Every watch has every event once and in order, and a listing with what follows is the store."""
    mine = {"prefix": prefix, "timeout": 60, "partitions": partitions}
    with ExitStack() as stack:
        other = stack.enter_context(SandboxStore(looking, **mine))
        other.create(sandbox_id="before")
        stores = [stack.enter_context(opened(flavour, server.url, **mine)) for flavour in ("sync", "asyncio") * 2]
        watches = [store.watch() for store in stores[:2]]
        seen: list[list[Event]] = [[] for _ in stores]
        pool = stack.enter_context(ThreadPoolExecutor())
        done = writers(server.url, prefix, 250)
        until(lambda: len(other.audit().events) > 50)
        listed, more = zip(*(store.list_and_watch() for store in stores[2:]), strict=True)
        watches += more
        for watch in watches:
            stack.callback(watch.close)  # before the pool, which waits for those who listen
        listening = [pool.submit(told.extend, watch) for told, watch in zip(seen, watches, strict=True)]
        while not done():
            looking.client_kill_filter(_type="normal", skipme=True)
            time.sleep(random.uniform(0, 0.02))  # who is cut again at once never comes to write
        audit = other.audit()
        mark = other.load("mark", READY)
        until(lambda: all(any(event.id == "mark" for event in told) for told in seen[2:]))
        until(lambda: all(len(told) > len(audit.events) - 1 for told in seen[:2]))
        for watch in watches:
            watch.close()
        for each in listening:
            each.result()
        assert audit.problems == []
        for told in seen[:2]:
            events = [event for event in audit.events if event.id != "before"]
            assert by_sandbox(event for event in told if event.id != "mark") == by_sandbox(events)
        for sandboxes, told in zip(listed, seen[2:], strict=True):
            assert replayed(sandboxes, told, LISTED) == {each.id: each for each in other.list()}
        assert other.get("mark") == mark


LISTED = (State.READY, State.NOTREADY, State.UNKNOWN)
FILTERS: dict[str, dict[str, Any]] = {
    "all": {"states": list(State)},
    "listed": {},
    "node and label": {"node": "n1", "labels": {"app": "web"}},
    "ready": {"states": [State.READY], "labels": {"app": "web"}},
}


def replayed(sandboxes: Iterable[Sandbox], events: Iterable[Event], states: Iterable[State]) -> dict[str, Sandbox]:
    """What a reader knows in the end, who believes what it is told. Each event must go on from what was told before."""
    wanted = set(states)
    known = {sandbox.id: sandbox for sandbox in sandboxes}
    listed = {sandbox.id: place(sandbox.revision) for sandbox in sandboxes}
    for event in events:
        before = known.pop(event.id, None)
        assert place(event.revision) > listed.get(event.id, (0, 0)), "the listing has that event"
        assert event.before == before.status.state if before else event.before not in wanted
        if event.sandbox is not None and event.sandbox.status.state in wanted:
            known[event.id] = event.sandbox
    return known


def so_far(watch: Any, other: SandboxStore) -> list[Event]:
    """Everything that a watch has to tell of what has happened by now."""
    now = other.page(limit=1).since.split(",")
    events: list[Event] = []
    for mark in map("mark-{}".format, count()):
        other.load(mark, READY, node="n1", metadata=WEB)
        for event in watch:
            if event.id == mark:
                break
            events += [event] * (not event.id.startswith("mark"))
        other.remove(mark, force=True)
        # Of several partitions one may come ahead of the others, and a reply may not hold all.
        if all(place(come) >= place(gone) for come, gone in zip(event.cursor.split(","), now, strict=True)):
            break
    return events


def assert_whole(sandboxes: Iterable[Sandbox], events: list[Event], other: SandboxStore, filters: Any) -> None:
    """A listing and what followed are the store, and nothing else was told."""
    for each in (*sandboxes, *(event.sandbox for event in events if event.sandbox)):
        assert each.metadata.name == each.id
        assert each.node == filters.get("node", each.node)
        assert filters.get("labels", {}).items() <= each.metadata.labels.items()
    known = replayed(sandboxes, events, filters.get("states", LISTED))
    assert known == {sandbox.id: sandbox for sandbox in other.list(**filters)}


@every_flavour
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("partitions", [1, 4, 64])
def test_a_listing_while_many_write_and_what_follows_are_the_store(
    flavour, server, looking, prefix, partitions, filters, writers
):
    mine = {"prefix": prefix, "partitions": partitions}
    with SandboxStore(looking, **mine) as other, opened(flavour, server.url, **mine) as store:
        for _ in range(30):
            at_random(other, random.Random(1))
        done = writers(server.url, prefix, 60)
        begun = []
        while not done():
            begun.append(store.list_and_watch(**filters))
        for sandboxes, watch in begun[:5]:
            with watch:
                assert_whole(sandboxes, so_far(watch, other), other, filters)


@every_flavour
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_what_happens_between_the_pages_of_a_listing(flavour, proxy, other, prefix, filters):
    """Behind each packet much happens, to sandboxes that have been listed, and to those that have not."""
    rng = random.Random(7)
    with other.batch() as batch:
        for i in range(1300):
            metadata = Metadata(name=f"s{i}", labels={"app": ["web", "db"][i // 2 % 2]})
            batch.load(f"s{i}", READY, node=f"n{i % 2}", metadata=metadata)
    with opened(flavour, proxy.url, prefix=prefix) as store:
        proxy.fault("pass", range(10**9), then=lambda: [at_random(other, rng, 1400) for _ in range(100)])
        sandboxes, watch = store.list_and_watch(**filters)
        proxy.fault()
        assert_whole(sandboxes, so_far(watch, other), other, filters)


@every_pair
def test_scripts_that_are_flushed_all_the_time(flavour, server, proxy, looking, other, prefix):
    other.load("a", READY)
    with opened(flavour, proxy.url, prefix=prefix) as store:
        proxy.fault("pass", range(0, 10**9, 2), then=looking.script_flush)
        sandboxes, watch = store.list_and_watch()
        assert [sandbox.id for sandbox in sandboxes] == ["a"]
        stopped = other.stop("a")
        assert next(watch).sandbox == stopped
        assert store.wait("a", State.NOTREADY) == stopped


# -- a server that goes away


@every_flavour
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_restarted_with_its_data(flavour, sig, own_server, tmp_path, aside):
    """A reader that waits, one that has not read anything yet, a listing, and a wait go on."""
    server = own_server(data=tmp_path, options={"appendfsync": "always"})
    with SandboxStore.from_url(server.url) as other, opened(flavour, server.url) as store:
        other.load("a", READY)
        watches = [store.watch(), store.watch(node="n1"), store.list_and_watch()[1]]
        other.load("b", READY, node="n1")
        assert next(watches[0]).id == "b"
        waiting = aside(next, watches[0])
        server.stop(sig)
        server.start()
        stopped = other.stop("b")
        assert waiting.result().sandbox == stopped
        for watch in watches[1:]:
            assert [event.transition for event in take(watch, 2)] == ["load", "stop"]
        assert store.wait("b", State.NOTREADY) == stopped


@every_flavour
def test_a_server_that_is_away_for_a_while(flavour, own_server, tmp_path, until, aside):
    """For longer than the timeout of the store: it is waited for all the same, but not by who begins now."""
    server = own_server(data=tmp_path, options={"appendfsync": "always"})
    with opened(flavour, server.url, timeout=TIMEOUT) as store:
        store.load("a", READY)
        watch = store.watch()
        waiting = aside(take, watch, 2)
        server.stop(signal.SIGKILL)
        begin = time.monotonic()
        with SandboxStore.from_url(server.url) as other:
            with pytest.raises(StoreUnavailableError):
                other.watch(since=watch.cursor)
            until(lambda: time.monotonic() > begin + 2 * TIMEOUT)
            assert not waiting.done()
            server.start()
            other.stop("a")
            other.remove("a")
            assert [event.transition for event in waiting.result()] == ["stop", "remove"]


@every_flavour
@pytest.mark.parametrize("listed", [False, True])
def test_an_outage_that_lasts_longer_than_it_may(flavour, own_server, tmp_path, listed):
    server = own_server(data=tmp_path)
    with opened(flavour, server.url, timeout=TIMEOUT) as store:
        store.load("a", READY)
        watch = store.list_and_watch(timeout=0.5)[1] if listed else store.watch(timeout=0.5)
        store.stop("a")
        cursor = next(watch).cursor
        server.stop(signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            next(watch)
        assert 0.5 / 2 < time.monotonic() - begin < 0.5 + SLACK
        assert caught.value.code == "UNREACHABLE"
        assert server.socket_path.name in str(caught.value)
        assert watch.cursor == cursor
        assert_over(watch)
        server.start()
        store.remove("a")
        assert next(store.watch(since=cursor)).transition == "remove"


@every_flavour
def test_each_outage_has_its_time(flavour, proxy, other, prefix):
    """What was bridged does not count any more."""
    other.load("a", READY)
    with opened(flavour, proxy.url, prefix=prefix, timeout=TIMEOUT) as store:
        watch = store.watch(timeout=0.4)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.8:
            proxy.fault("before", {0, 1})
            changed = other.update("a", one_more)
            assert next(watch).sandbox == changed
            assert proxy.fired == 2


BEGIN: dict[str, Callable[[Any], Any]] = {
    "watch": lambda store: store.watch(),
    "since": lambda store: store.watch(since="0-0"),
    "list_and_watch": lambda store: store.list_and_watch()[1],
    "wait": lambda store: store.wait("a", None),
}


@contextmanager
def nobody() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield port


@contextmanager
def silent() -> Iterator[int]:
    """Connections are accepted by the kernel, and nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def full_backlog(port: int = 0) -> Iterator[int]:
    """Connecting itself hears nothing, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", port), backlog=0) as listener, ExitStack() as stack:
        while True:
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.05)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()[1]


@every_flavour
@pytest.mark.parametrize("begin", BEGIN.values(), ids=BEGIN)
@pytest.mark.parametrize("somebody", [nobody, silent])
def test_a_server_that_is_not_there_at_the_beginning(somebody, begin, flavour):
    """It is not waited for as long as one that was there."""
    with somebody() as port, opened(flavour, f"redis://127.0.0.1:{port}/0", timeout=TIMEOUT) as store:
        start = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            begin(store)
        assert time.monotonic() - start < TIMEOUT + SLACK
        assert (caught.value.code, caught.value.address) == ("UNREACHABLE", f"127.0.0.1:{port}")


@every_flavour
@pytest.mark.parametrize("at", range(6))
def test_a_silent_network_is_noticed(at, flavour, proxy, other, prefix):
    """Whatever it swallows: layout, where to begin, the checks, the events."""
    other.load("a", READY)
    with opened(flavour, proxy.url, prefix=prefix, timeout=TIMEOUT) as store:
        proxy.fault("swallow", {at, at + 1})
        watch = store.watch(since="0-0")
        assert next(watch).transition == "load"
        stopped = other.stop("a")
        assert next(watch).sandbox == stopped
        watch.close()


@every_pair
def test_a_master_that_becomes_a_replica_and_a_master_again(watcher, other, looking, background):
    other.load("a", READY)
    watch = watcher.watch()
    waiting = background(next, watch)
    looking.replicaof("127.0.0.1", "1")
    looking.replicaof("NO", "ONE")
    stopped = other.stop("a")
    assert waiting.result().sandbox == stopped


@every_pair
def test_a_server_without_a_free_connection_is_waited_for(watcher, other, looking, background, until):
    def rejected() -> int:
        return looking.info("stats")["rejected_connections"]

    other.load("a", READY)
    watch = watcher.watch()
    waiting = background(next, watch)
    before = rejected()
    looking.config_set("maxclients", 1)
    try:
        looking.client_kill_filter(_type="normal", skipme=True)
        until(lambda: rejected() > before)
    finally:
        looking.config_set("maxclients", 1000)
    stopped = other.stop("a")
    assert waiting.result().sandbox == stopped


# -- what waiting does not mend


@every_pair
def test_a_wrong_password(flavour, server, own_server, until):
    """At the beginning, and when it is changed under a watch."""
    name = "redis" if "redis" in server.binary else "valkey"
    server = own_server(name, port=0, options={"requirepass": PASSWORD})
    where = f"127.0.0.1:{server.port}"
    for begin in BEGIN.values():
        with opened(flavour, f"redis://:no@{where}/0") as store, pytest.raises(StoreUnavailableError) as caught:
            begin(store)
        assert caught.value.code == "WRONGPASS"
    right = f"redis://:{PASSWORD}@{where}/0"
    with opened(flavour, right) as store, redis.Redis.from_url(right) as looking:
        store.load("a", READY)
        watch = store.watch()
        looking.config_set("requirepass", f"{PASSWORD}-new")
        looking.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreUnavailableError, match="correct them in the URL") as caught:
            next(watch)
        assert caught.value.code == "WRONGPASS"
        assert PASSWORD not in str(caught.value)
        assert_over(watch)


@contextmanager
def limited(looking: redis.Redis, *rules: str) -> Iterator[str]:
    """A user with fewer rights; the URL to log in with."""
    looking.execute_command("ACL", "SETUSER", "agent", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all", *rules)
    where = "{host}:{port}".format(**looking.connection_pool.connection_kwargs)
    try:
        yield f"redis://agent:{PASSWORD}@{where}/0"
    finally:
        looking.execute_command("ACL", "DELUSER", "agent")


@every_pair
@pytest.mark.parametrize("begin", BEGIN.values(), ids=BEGIN)
@pytest.mark.parametrize("denied", ["xread", "xrange", "xlen", "hmget"])
def test_a_user_without_a_command(denied, begin, flavour, looking, other, prefix):
    """It is not tried again and again, but said to whom it can be mended by."""
    other.load("a", READY)
    with limited(looking, f"-{denied}") as url, opened(flavour, url, prefix=prefix) as store:
        with pytest.raises(StoreUnavailableError, match="change the ACL") as caught:
            next(begin(store))
        assert caught.value.code == "NOPERM"
        assert PASSWORD not in str(caught.value)


@every_pair
def test_rights_that_are_taken_away_while_somebody_waits(flavour, looking, other, prefix, background):
    other.load("a", READY)
    with limited(looking) as url, opened(flavour, url, prefix=prefix) as store:
        waiting = background(store.wait, "a", None)
        looking.execute_command("ACL", "SETUSER", "agent", "-xread")
        assert waiting.exception().code == "NOPERM"


@every_pair
def test_a_key_of_the_wrong_type_is_named_by_who_waits(watcher, other, looking, prefix, background):
    other.load("a", READY)
    waiting = background(watcher.wait, "a", None)
    key = Keys(prefix, 1).events(0)
    with looking.pipeline() as together:
        together.delete(key).set(key, "no stream").execute()
    assert isinstance(waiting.exception(), SchemaError)
    assert waiting.exception().key == key


# -- data that is lost


def fill(store: SandboxStore) -> None:
    for i in range(8):
        store.load(f"s{i}", READY)


@pytest.mark.usefixtures("quick_heartbeat")
@every_pair
@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("written", [False, True])
def test_a_server_that_is_flushed_under_a_watch(flavour, server, looking, prefix, partitions, written):
    """A reader of another era's events would believe what is not so."""
    mine = {"prefix": prefix, "partitions": partitions}
    with opened(flavour, server.url, **mine) as store, SandboxStore(looking, **mine) as other:
        fill(other)
        watches = [store.watch(), store.watch(sandbox_id="s1"), store.list_and_watch()[1]]
        other.stop("s1")
        assert [next(watch).id for watch in watches] == ["s1"] * 3
        looking.flushall()
        if written:
            with SandboxStore(looking, **mine) as new:
                fill(new)
        for watch in watches:
            error = ending(watch)
            assert isinstance(error, StoreRolledBackError)
            assert error.cursor
            assert "list again" in str(error)
            assert_over(watch)
        if not written:
            assert store.list_and_watch()[0] == []


@pytest.mark.usefixtures("quick_heartbeat")
@every_pair
@pytest.mark.parametrize("waits_for_it", [False, True])
def test_a_server_that_is_flushed_when_a_watch_has_seen_little(watcher, looking, other, prefix, waits_for_it, aside):
    """Nothing was there when it began. What it has seen since, it has not asked for again yet."""
    watch = watcher.watch()
    waiting = aside(next, watch) if waits_for_it else None
    other.load("a", READY)
    assert (waiting.result() if waiting else next(watch)).id == "a"
    looking.flushall()
    with SandboxStore(looking, prefix=prefix) as new:
        new.load("b", READY)
        assert isinstance(ending(watch, 5), StoreRolledBackError)


@pytest.mark.usefixtures("quick_heartbeat")
@every_pair
def test_a_flush_ends_all_waiting(watcher, other, looking, background):
    other.load("a", READY)
    waiting = background(watcher.wait, "a", None)
    looking.flushall()
    assert isinstance(waiting.exception(), CompactedError)


@every_flavour
@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("written", [0, 1, 20])
def test_a_server_that_comes_back_empty(flavour, own_server, partitions, written):
    server = own_server()
    mine = {"partitions": partitions}
    with opened(flavour, server.url, **mine) as store, SandboxStore.from_url(server.url, **mine) as other:
        fill(other)
        watches = [store.watch(), store.watch(since=other.page().since), store.list_and_watch()[1]]
        other.stop("s1")
        cursor = next(watches[0]).cursor
        server.stop()
        server.start()
        with SandboxStore.from_url(server.url, **mine) as new:
            for i in range(written):
                new.load(f"s{i}", READY)
        for watch in watches:
            with pytest.raises(StoreRolledBackError):
                next(watch)
            assert_over(watch)
        with pytest.raises(StoreRolledBackError) as caught:
            store.watch(since=cursor)
        assert caught.value.cursor == cursor
        store.create(sandbox_id="new")


@every_flavour
@pytest.mark.parametrize("written", [0, 1, 20])
def test_a_server_that_comes_back_older(flavour, own_server, tmp_path, written):
    """As from a backup, or as a replica that lagged. What is written after that may be more than what was lost."""
    server = own_server(data=tmp_path, options={"appendonly": "no"})
    with opened(flavour, server.url) as store, SandboxStore.from_url(server.url) as other:
        fill(other)
        watch = store.watch()
        other.stop("s1")
        kept = next(watch).cursor
        with redis.Redis.from_url(server.url) as looking:
            looking.save()
        other.stop("s2")
        lost = next(watch).cursor
        server.stop(signal.SIGKILL)
        server.start()
        assert other.get("s2").status.state is State.READY
        for i in range(written):
            other.load(f"t{i}", READY)
        with pytest.raises(StoreRolledBackError):
            next(watch)
        assert_over(watch)
        with pytest.raises(StoreRolledBackError):
            store.watch(since=lost)
        again = other.stop("s3")
        with store.watch(since=kept) as watch:
            assert [event.id for event in take(watch, written + 1)] == [*(f"t{i}" for i in range(written)), again.id]


@every_flavour
@pytest.mark.parametrize("reconnects", [False, True])
def test_an_event_of_another_master_with_the_same_number_is_not_taken_for_ours(flavour, own_server, reconnects):
    """In a failover two servers may be the master for a while, and both count by milliseconds."""
    server = own_server()
    with opened(flavour, server.url) as store, SandboxStore.from_url(server.url) as other:
        fill(other)
        watch = store.watch()
        place = other.stop("s1").revision
        assert next(watch).revision == place
        with redis.Redis.from_url(server.url) as looking:
            key = "sandbox:{0}:events"
            *before, (_, fields) = looking.xrange(key)
            with looking.pipeline(transaction=True) as pipeline:
                pipeline.delete(key)
                for revision, known in [*before, (place, fields | {b"request": b"another"})]:
                    pipeline.xadd(key, known, revision)
                pipeline.execute()
            if reconnects:
                looking.client_kill_filter(_type="normal", skipme=True)
        assert isinstance(ending(watch, 5), StoreRolledBackError)
        assert_over(watch)


@every_flavour
def test_a_server_that_comes_back_with_other_partitions(flavour, own_server):
    server = own_server()
    with opened(flavour, server.url, partitions=4) as store:
        store.create(sandbox_id="a")
        watch = store.watch()
        cursor = watch.cursor
        server.stop()
        server.start()
        with SandboxStore.from_url(server.url, partitions=2) as new:
            new.create(sandbox_id="b")
        with pytest.raises(StoreRolledBackError):
            next(watch)
        with pytest.raises(SandboxError, match="2 partitions"):
            store.watch(since=cursor)


# -- closing what hangs


def assert_closes(watch: Any, waiting: Future[Any]) -> None:
    watch.close()
    assert waiting.result(timeout=10) == "over"


@every_flavour
def test_closing_ends_a_watch_that_tries_to_connect(flavour, own_server, until, aside):
    """To where packets are dropped; the store would give it a minute."""
    server = own_server(port=0)
    with opened(flavour, server.url, timeout=60) as store:
        store.create()
        watch = store.watch()
        waiting = aside(next, watch, "over")
        server.stop()
        with full_backlog(server.port):
            until(lambda: [c for c in psutil.Process().net_connections() if c.status == "SYN_SENT"])
            assert_closes(watch, waiting)


@every_flavour
@pytest.mark.parametrize("at", range(4))
def test_closing_ends_a_watch_that_has_lost_its_connection(at, flavour, proxy, other, prefix, until, aside):
    """Whichever packet of coming back nobody answers; the store would give it a minute."""
    other.load("a", READY)
    with opened(flavour, proxy.url, prefix=prefix, timeout=60) as store:
        watch = store.watch()
        other.stop("a")
        next(watch)
        swallows = threading.Event()

        def swallow() -> None:
            proxy.fault("swallow", {at})
            swallows.set()

        proxy.fault("before", {0}, then=swallow)
        waiting = aside(next, watch, "over")
        until(lambda: swallows.is_set() and (proxy.fired or len(proxy.packets) > 5))
        assert_closes(watch, waiting)


@every_flavour
def test_closing_ends_a_pause(flavour, own_server, tmp_path, until, caplog, aside):
    server = own_server(data=tmp_path, options={"appendfsync": "always"})
    with opened(flavour, server.url) as store:
        store.create()
        watch = store.watch()
        store.create()
        next(watch)
        server.stop(signal.SIGKILL)
        waiting = aside(next, watch, "over")
        until(lambda: "trying again" in caplog.text)
        assert_closes(watch, waiting)


@every_pair
def test_a_watch_says_when_it_is_cut_off(watcher, other, looking, caplog):
    """Once, where operators look."""
    other.load("a", READY)
    watch = watcher.watch()
    other.stop("a")
    next(watch)
    looking.client_kill_filter(_type="normal", skipme=True)
    other.remove("a")
    next(watch)
    (record,) = [record for record in caplog.records if record.name == "sandbox_redis"]
    assert "trying again" in record.getMessage()
    assert f"127.0.0.1:{looking.connection_pool.connection_kwargs['port']}" in record.getMessage()
