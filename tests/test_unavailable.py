"""A server that is down, loading, read-only, full or asks for a password; one that comes back; one that forgot the
scripts. The error says which server and what to do, in time, and nothing is half done."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import pytest
import redis
from faults.proxy import Proxy
from faults.writes import READY, WRITES, opened

from sandbox_redis import (
    AsyncSandboxStore,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    SandboxStore,
    State,
    StoreUnavailableError,
)
from sandbox_redis.server import EmbeddedServer

TIMEOUT = 0.3  # seconds, for a server that does not answer
SLACK = 1.5  # seconds, on a busy machine
PASSWORD = "s3cret-of-the-tests"
every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])
# Servers and flavours have little to do with each other: each is tested twice, all pairs would be four tests.
every_pair = pytest.mark.parametrize("server, flavour", [("valkey", "sync"), ("redis", "asyncio")], indirect=["server"])

READS = {
    "get": lambda store: store.get("ready"),
    "ids": lambda store: store.ids(),
    "port_forward": lambda store: store.port_forward("ready"),
    "audit": lambda store: store.audit(),
}
CHANGES = {
    "create": lambda store: store.create(sandbox_id="new"),
    "load": lambda store: store.load("new", READY, node="n"),
    "start": lambda store: store.start("init", pid=1),
    "fail_start": lambda store: store.fail_start("init"),
    "stop": lambda store: store.stop("ready"),
    "exit": lambda store: store.exit("ready", exit_status=1),
    "remove": lambda store: store.remove("notready"),
    "force": lambda store: store.remove("ready", force=True),
    "update": lambda store: store.update("ready", lambda status: replace(status, pid=2)),
}


@pytest.fixture
def server(request, module_servers) -> EmbeddedServer:
    return module_servers(getattr(request, "param", "valkey"))


@pytest.fixture
def looking(server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.script_flush()
        yield client


@pytest.fixture
def other(looking) -> Iterator[SandboxStore]:
    """A store with a sandbox in each state."""
    with SandboxStore(looking, agent="other") as store:
        for name, write in (("init", "create"), ("notready", "load"), ("ready", "update")):
            WRITES[write].prepare(store, name)
            if name != "ready":
                WRITES[write].run(store, name)
        yield store


def address(server: EmbeddedServer) -> str:
    return server.url.removeprefix("redis://").removesuffix("/0")


def assert_unavailable(call: Callable[[], Any], where: str, code: str, *advice: str, within: float) -> None:
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        call()
    assert time.monotonic() - start < within + SLACK
    error = caught.value
    assert (error.address, error.code) == (where, code)
    assert where in str(error)
    for words in advice:
        assert words in str(error)
    assert PASSWORD not in shown(error)


def shown(error: BaseException | None) -> str:
    """All that a log may show of an error, with the variables of our frames."""
    told = ""
    while error is not None:
        told += f"{error} {error!r}"
        for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack:
            if "sandbox_redis" in frame.filename:
                told += str(frame.locals)
        error = error.__context__
    return told


# -- nobody there


@contextmanager
def refused() -> Iterator[tuple[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0", f"127.0.0.1:{port}"


@contextmanager
def refused_at_two_addresses() -> Iterator[tuple[str, str]]:
    """As where "localhost" is both ::1 and 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{i}", port)) for i in (1, 2)]
        patch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        yield f"redis://both:{port}/0", f"both:{port}"


@contextmanager
def no_socket() -> Iterator[tuple[str, str]]:
    yield "unix:///nowhere/redis.sock", "unix:///nowhere/redis.sock"


@contextmanager
def no_such_host() -> Iterator[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:

        def fail(*args: Any, **kwargs: Any) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        patch.setattr(socket, "getaddrinfo", fail)
        yield f"redis://:{PASSWORD}@nowhere.invalid/0", "nowhere.invalid:6379"


@every_flavour
@pytest.mark.parametrize("nobody", [refused, refused_at_two_addresses, no_socket, no_such_host])
def test_a_store_that_never_reached_anybody_fails_at_once(nobody, flavour):
    with nobody() as (url, where), opened(flavour, url, timeout=30) as store:
        for operation in (*READS.values(), *CHANGES.values()):
            assert_unavailable(partial(operation, store), where, "UNREACHABLE", "check that a server runs", within=0)
        with store.batch() as batch:
            results = [operation(batch) for name, operation in CHANGES.items() if name != "create"]
        for result in results:
            assert_unavailable(result.result, where, "UNREACHABLE", within=0)


@every_flavour
def test_a_store_that_had_reached_its_server_waits_for_it_until_the_deadline(flavour, own_server):
    server = own_server(port=0)
    with opened(flavour, server.url, timeout=TIMEOUT) as store:
        store.load("ready", READY)
        server.stop(signal.SIGKILL)
        for operation in (READS["get"], CHANGES["update"]):
            assert_unavailable(partial(operation, store), address(server), "UNREACHABLE", within=TIMEOUT)


@every_flavour
@pytest.mark.parametrize("operation", ["get", "create", "force", "update"])
def test_a_server_that_is_killed_and_comes_back_before_the_deadline(operation, flavour, own_server, tmp_path):
    server = own_server(data=tmp_path, options={"appendfsync": "always"})
    with (
        SandboxStore.from_url(server.url) as other,
        opened(flavour, server.url, timeout=30) as store,
        ThreadPoolExecutor() as background,
    ):
        for name, write in (("init", "start"), ("ready", "update"), ("notready", "remove")):
            WRITES[write].prepare(other, name)
        store.get("init")
        store.create()
        server.stop(signal.SIGKILL)
        called = background.submit((READS | CHANGES)[operation], store)
        server.start()
        called.result()
        assert other.audit().problems == []


# -- somebody who does not answer, or not what was asked


@contextmanager
def silent() -> Iterator[str]:
    """Connections are accepted by the kernel, and nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def full_backlog() -> Iterator[str]:
    """Connecting itself hears nothing, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        where = listener.getsockname()
        while True:
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.05)
            try:
                filler.connect(where)
            except TimeoutError:
                break
        yield f"127.0.0.1:{where[1]}"


@contextmanager
def answering(words: bytes) -> Iterator[str]:
    def answer() -> None:
        with suppress(OSError):
            while True:
                with listener.accept()[0] as client, suppress(OSError):
                    client.recv(65536)
                    client.sendall(words)

    listener = socket.create_server(("127.0.0.1", 0))
    with ThreadPoolExecutor() as background:
        background.submit(answer)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@contextmanager
def web_server() -> Iterator[str]:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as where:
        yield where


@contextmanager
def hanging_up() -> Iterator[str]:
    with answering(b"") as where:
        yield where


@every_flavour
@pytest.mark.parametrize("somebody", [silent, full_backlog, web_server, hanging_up])
def test_who_does_not_answer_is_given_up_at_the_deadline(somebody, flavour):
    with somebody() as where, opened(flavour, f"redis://{where}/0", timeout=TIMEOUT) as store:
        assert_unavailable(partial(READS["get"], store), where, "UNREACHABLE", within=TIMEOUT)
        assert_unavailable(partial(CHANGES["update"], store), where, "UNREACHABLE", within=TIMEOUT)
        assert_unavailable(partial(store.create, timeout=0.1), where, "UNREACHABLE", within=0.1)


# -- a server that refuses


@dataclass(frozen=True)
class Refusal:
    """What makes a server refuse, and what it then takes all the same."""

    code: str
    advice: str
    cause: tuple[tuple[Any, ...], ...]
    undo: tuple[tuple[Any, ...], ...]
    taken: tuple[str, ...] = tuple(READS)


def config(name: str, value: Any) -> tuple[Any, ...]:
    return ("CONFIG", "SET", name, value)


REFUSALS = {
    "read-only": Refusal(
        "READONLY", "connect to its master", (("REPLICAOF", "127.0.0.1", "1"),), (("REPLICAOF", "NO", "ONE"),)
    ),
    "out of memory": Refusal(
        "OOM",
        "free memory or raise maxmemory",
        (config("maxmemory", 1),),
        (config("maxmemory", 0),),
        # These free memory first, so the server lets them go on: an agent can always clean up.
        (*READS, "start", "fail_start", "stop", "exit", "remove", "force"),
    ),
    "too few replicas": Refusal(
        "NOREPLICAS", "replication", (config("min-replicas-to-write", 1),), (config("min-replicas-to-write", 0),)
    ),
}


@contextmanager
def refusing(looking: redis.Redis, refusal: Refusal) -> Iterator[None]:
    for command in refusal.cause:
        looking.execute_command(*command)
    try:
        yield
    finally:
        for command in refusal.undo:
            looking.execute_command(*command)


@every_pair
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_server_that_refuses(refusal, flavour, server, looking, other):
    with opened(flavour, server.url, timeout=20) as store:
        for name, run in (READS | CHANGES).items():
            before = other.audit()
            with refusing(looking, refusal):
                if name in refusal.taken:
                    run(store)
                else:
                    assert_unavailable(partial(run, store), address(server), refusal.code, refusal.advice, within=0)
                if name in CHANGES:
                    with store.batch() as batch:
                        result = run(batch)
                    if name not in refusal.taken:
                        assert_unavailable(result.result, address(server), refusal.code, refusal.advice, within=0)
            assert other.audit().problems == []
            if name not in refusal.taken:
                assert other.audit() == before
            recreate(other)
        store.create()  # the store is none the worse for it


@every_pair
def test_a_server_that_cannot_persist(flavour, server, own_server, until):
    server = own_server("redis" if "redis" in server.binary else "valkey", port=0, options={"save": "3600 1"})
    (server.data / "dump.rdb" / "in the way").mkdir(parents=True)
    with redis.Redis.from_url(server.url) as looking, opened(flavour, server.url) as store:
        store.create()
        with suppress(redis.ResponseError):
            looking.bgsave()
        until(lambda: looking.info("persistence")["rdb_last_bgsave_status"] == "err")
        before = store.audit()
        assert_unavailable(store.create, address(server), "MISCONF", "mend its disk", within=0)
        assert store.audit() == before
        looking.config_set("save", "")  # or it would refuse to shut down


def assert_all_unavailable(store, server: EmbeddedServer, code: str, advice: str) -> None:
    """Alone and in a batch; all are tried, so that no answer hides the next."""
    got = {}
    for name in ("get", "update", "stop"):
        start = time.monotonic()
        with pytest.raises(SandboxError) as caught:
            (READS | CHANGES)[name](store)
        assert time.monotonic() - start < TIMEOUT + SLACK
        got[name] = caught.value
    with store.batch() as batch:
        results = [batch.create() for _ in range(3)]
    got |= {f"batch {i}": result.error for i, result in enumerate(results)}
    assert {name: getattr(error, "code", error) for name, error in got.items()} == dict.fromkeys(got, code)
    assert all(advice in str(error) and address(server) in str(error) for error in got.values())


@every_pair
def test_a_server_that_is_loading(flavour, server, own_server, until):
    server = own_server("redis" if "redis" in server.binary else "valkey", port=0, options=SLOW_LOADING)
    with (
        redis.Redis.from_url(server.url) as looking,
        opened(flavour, server.url) as store,
        opened(flavour, server.url, timeout=TIMEOUT) as hasty,
        ThreadPoolExecutor() as background,
    ):
        store.load("ready", READY)
        hasty.get("ready")
        looking.execute_command("DEBUG", "POPULATE", 50000)
        looking.save()
        looking.config_set("key-load-delay", 200)
        server._options["key-load-delay"] = "200"
        server.stop()
        background.submit(server.start, timeout=60)
        until(lambda: loading(looking))
        try:
            assert_all_unavailable(hasty, server, "LOADING", "when it has")
            patient = background.submit(CHANGES["stop"], store)
        finally:
            looking.config_set("key-load-delay", 0)
        patient.result()
        assert len(store.audit().sandboxes) == 1


SLOW_LOADING = {"loading-process-events-interval-bytes": "1024", "enable-debug-command": "yes", "save": "3600 1"}


def loading(looking: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(looking.info("persistence")["loading"])
    return False


@every_pair
def test_a_server_that_is_busy_with_a_script(flavour, server, looking, other, until):
    looking.config_set("busy-reply-threshold", 10)
    with (
        opened(flavour, server.url, timeout=TIMEOUT) as hasty,
        opened(flavour, server.url, timeout=30) as store,
        redis.Redis.from_url(server.url, socket_timeout=60) as blocking,
        ThreadPoolExecutor() as background,
    ):
        hasty.get("ready")
        before = other.audit()

        def spin() -> None:
            with suppress(redis.ResponseError):  # it is killed
                blocking.eval("while true do end", 0)

        background.submit(spin)
        until(lambda: busy(looking))
        try:
            assert_all_unavailable(hasty, server, "BUSY", "SCRIPT KILL")
            patient = background.submit(CHANGES["stop"], store)
        finally:
            looking.script_kill()
        patient.result()
        assert len(other.audit().events) == len(before.events) + 1


def busy(looking: redis.Redis) -> bool:
    try:
        looking.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


@every_pair
def test_a_replica_that_has_lost_its_master(flavour, server, looking, other):
    refusal = Refusal(
        "MASTERDOWN",
        "master",
        (config("replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", "1")),
        (("REPLICAOF", "NO", "ONE"), config("replica-serve-stale-data", "yes")),
    )
    with opened(flavour, server.url, timeout=TIMEOUT) as store:
        store.get("ready")
        with refusing(looking, refusal):
            for run in (READS["get"], CHANGES["stop"], CHANGES["update"]):
                where = address(server)
                assert_unavailable(partial(run, store), where, refusal.code, refusal.advice, within=TIMEOUT)
        assert other.audit().problems == []


@every_flavour
def test_a_database_that_is_not_there(flavour, server):
    with opened(flavour, server.url.replace("/0", "/99")) as store:
        assert_unavailable(store.ids, address(server), "ERR", "DB index is out of range", within=0)


@every_pair
def test_no_connection_is_left(flavour, server, looking, other):
    """As many clients as the server takes."""
    with opened(flavour, server.url, timeout=TIMEOUT) as store:
        other.get("ready")
        looking.config_set("maxclients", len(looking.client_list()))
        try:
            where = address(server)
            assert_unavailable(partial(READS["get"], store), where, "MAXCLIENTS", "raise maxclients", within=TIMEOUT)
            assert_unavailable(partial(CHANGES["stop"], store), where, "MAXCLIENTS", "raise maxclients", within=TIMEOUT)
        finally:
            looking.config_set("maxclients", 1000)
        CHANGES["stop"](store)


# -- passwords and rights


@every_pair
def test_a_password(flavour, server, own_server):
    server = own_server("redis" if "redis" in server.binary else "valkey", port=0, options={"requirepass": PASSWORD})
    where = address(server)
    right = f"redis://:{PASSWORD}@{where}/0"
    for url, code, advice in (
        (f"redis://{where}/0", "NOAUTH", "redis://:password@host"),
        (f"redis://:{PASSWORD}-no@{where}/0", "WRONGPASS", "correct them in the URL"),
        (f"redis://nobody:{PASSWORD}@{where}/0", "WRONGPASS", "correct them in the URL"),
    ):
        with opened(flavour, url, timeout=20) as store:
            for operation in (*READS.values(), *CHANGES.values()):
                assert_unavailable(partial(operation, store), where, code, advice, within=0)
            assert PASSWORD not in repr(store)
    with opened(flavour, right) as store:
        store.create()
        with redis.Redis.from_url(right) as looking:
            looking.config_set("requirepass", f"{PASSWORD}-new")
            looking.client_kill_filter(_type="normal", skipme=True)
        assert_unavailable(partial(READS["ids"], store), where, "WRONGPASS", within=0)


USER = f"redis://agent:{PASSWORD}@"
COMMANDS = (  # that the store uses, itself or in its scripts
    *("del", "evalsha", "exec", "exists", "hdel", "hget", "hgetall", "hmget", "hset", "multi", "script|load", "type"),
    *("unwatch", "watch", "xadd", "xlen", "xrange", "xrevrange", "zadd", "zcard", "zrange", "zrem"),
)


@contextmanager
def limited(looking: redis.Redis, *rules: str) -> Iterator[str]:
    """A user with fewer rights; the URL to log in with."""
    looking.execute_command("ACL", "SETUSER", "agent", "reset", "on", f">{PASSWORD}", *rules)
    try:
        yield USER + address_of(looking) + "/0"
    finally:
        looking.execute_command("ACL", "DELUSER", "agent")


def address_of(looking: redis.Redis) -> str:
    return "{host}:{port}".format(**looking.connection_pool.connection_kwargs)


@every_pair
@pytest.mark.parametrize("denied", COMMANDS)
def test_a_user_without_a_command(denied, flavour, server, looking, other):
    """Each operation is refused as a whole, or is done as a whole."""
    assert_whole(flavour, server, looking, other, "~*", "+@all", f"-{denied}")


@every_pair
@pytest.mark.parametrize(
    "keys",
    [
        ("~another:*",),
        ("~sandbox:meta",),
        ("~sandbox:meta", "~sandbox:{0}:status:*"),
        ("~sandbox:meta", "~sandbox:{0}:status:*", "~sandbox:{0}:events"),
        ("~sandbox:meta", "~sandbox:{0}:status:*", "~sandbox:{0}:events", "~sandbox:{0}:state:*"),
        ("~sandbox:meta", "~sandbox:{0}:status:*", "~sandbox:{0}:events", "~sandbox:{0}:state:*", "%R~*"),
        ("%R~*",),
    ],
    ids=["none", "meta", "record", "events", "states", "node is read-only", "read-only"],
)
def test_a_user_without_a_key(keys, flavour, server, looking, other):
    assert_whole(flavour, server, looking, other, *keys, "+@all")


def assert_whole(flavour, server, looking, other, *rules: str) -> None:
    with limited(looking, *rules) as url, opened(flavour, url, timeout=2) as store:
        refusals = []
        for name, run in (READS | CHANGES).items():
            looking.script_flush()
            before = other.audit()
            try:
                run(store)
            except StoreUnavailableError as error:
                refusals.append((name, error))
                assert other.audit() == before, name
            else:
                after = other.audit()
                assert after.problems == [], name
                assert (len(after.events) > len(before.events)) == (name in CHANGES), name
            recreate(other)
        for name, error in refusals:
            assert (error.address, error.code) == (address(server), "NOPERM"), name
            assert "change the ACL" in str(error), name
            assert PASSWORD not in shown(error)


@every_pair
@pytest.mark.parametrize("denied", ["watch", "multi", "exec"])
def test_an_update_is_never_done_without_its_watch(denied, flavour, server, looking, other):
    seen = []

    def fn(status):
        seen.append(status.pid)
        other.update("ready", lambda status: replace(status, pid=50))
        return replace(status, pid=5)

    with limited(looking, "~*", "+@all", f"-{denied}") as url, opened(flavour, url) as store:
        CHANGES["start"](store)
        if denied == "multi":  # then the script runs alone, and looks at the revision by itself
            assert store.update("ready", fn).status.pid == 5
            assert seen == [READY.pid, 50]
            return
        with pytest.raises(StoreUnavailableError):
            store.update("ready", fn)
        assert other.get("ready").status.pid in (READY.pid, 50)


def recreate(other: SandboxStore) -> None:
    for each in ("init", "notready", "ready", "new"):
        other.remove(each, force=True)
    WRITES["start"].prepare(other, "init")
    WRITES["update"].prepare(other, "ready")
    WRITES["remove"].prepare(other, "notready")


# -- in time


@pytest.fixture
def stopped(server) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    yield
    os.kill(server.pid, signal.SIGCONT)


def sandboxes(batch, count: int) -> list:
    return [batch.create(sandbox_id=f"s{i}") for i in range(count)]


def a_chain(batch) -> list:
    return [batch.create(sandbox_id="s"), *(batch.stop("s") for _ in range(10))]


def updates(batch) -> list:
    return [batch.update(f"s{i}", lambda status: status) for i in range(20)]


BATCHES = {
    "1,000 sandboxes": partial(sandboxes, count=1000),
    "6,000 sandboxes": partial(sandboxes, count=6000),
    "a chain": a_chain,
    "updates": updates,
}


@every_flavour
@pytest.mark.parametrize("fill", BATCHES.values(), ids=BATCHES)
def test_a_batch_ends_by_the_deadline(fill, flavour, server, other, request):
    with opened(flavour, server.url, timeout=TIMEOUT) as store:
        store.create()
        request.getfixturevalue("stopped")
        start = time.monotonic()
        with store.batch() as batch:
            results = fill(batch)
        assert time.monotonic() - start < TIMEOUT + SLACK
        assert all(isinstance(result.error, SandboxError) for result in results)


@every_flavour
def test_a_call_has_a_timeout_of_its_own(flavour, server, other, stopped):
    for own, of_store in ((0.1, 30), (0.5, 0.01)):
        with opened(flavour, server.url, timeout=of_store) as store:
            for run in (
                partial(store.get, "ready", timeout=own),
                partial(store.stop, "ready", timeout=own),
                partial(store.update, "ready", lambda status: status, timeout=own),
            ):
                start = time.monotonic()
                assert_unavailable(run, address(server), "UNREACHABLE", within=own)
                assert time.monotonic() - start > own / 2


@pytest.mark.parametrize(
    ("slow", "flavour"),
    # Not: one reply that trickles in to a thread. redis-py reads it to its end, with a new timeout for each byte.
    [({"delay": 0.2}, "sync"), ({"delay": 0.2}, "asyncio"), ({"trickle": 0.02}, "asyncio")],
    ids=["delayed-sync", "delayed-asyncio", "trickling-asyncio"],
)
def test_a_slow_network_gets_no_more_time_than_the_deadline(slow, flavour, server, other):
    """What comes within the time of one attempt, each reply of it or each byte, does not prolong it."""
    with Proxy(server) as proxy:
        vars(proxy).update(slow)
        for run in (READS["get"], CHANGES["update"], fill):
            with opened(flavour, proxy.url, timeout=0.5) as store:
                start = time.monotonic()
                with suppress(SandboxError):
                    run(store)
                assert time.monotonic() - start < 0.5 + 0.4


def fill(store) -> None:
    with store.batch() as batch:
        for _ in range(20):
            batch.create()


def test_hundreds_of_tasks_end_by_the_deadline(server, other, request):
    async def main() -> None:
        async with AsyncSandboxStore.from_url(server.url, timeout=TIMEOUT) as store:
            await store.create()
            request.getfixturevalue("stopped")
            calls = [run(store) for run in (READS["get"], CHANGES["stop"], CHANGES["update"]) for _ in range(100)]
            start = time.monotonic()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - start < TIMEOUT + SLACK
            assert all(isinstance(result, SandboxError) for result in results)
            assert not any("SCRIPT KILL" in str(result) for result in results)  # that would not help

    asyncio.run(main())


# -- scripts


@every_pair
@pytest.mark.parametrize("operation", [*READS, *CHANGES])
def test_a_flushed_script_is_not_noticed(operation, flavour, server, looking, other):
    """Flushed before the first, the second, … packet of the operation, also in a batch."""
    run = (READS | CHANGES)[operation]
    for number in count():
        with Proxy(server) as proxy, opened(flavour, proxy.url) as store:
            proxy.fault("pass", {number}, then=looking.script_flush)
            run(store)
            recreate(other)
            if operation in CHANGES:
                with store.batch() as batch:
                    result = run(batch)
                result.result()
                recreate(other)
            assert other.audit().problems == []
            if not proxy.fired:
                assert number > 1
                return


@every_flavour
def test_scripts_flushed_between_watch_and_exec(flavour, server, looking, other):
    seen = []

    def fn(status):
        seen.append(status)
        if len(seen) == 1:
            looking.script_flush()
        return replace(status, pid=status.pid + 1)

    with opened(flavour, server.url) as store:
        assert store.update("ready", fn).status.pid == READY.pid + 1
    assert seen == [READY] * 2


@every_flavour
def test_a_server_that_loses_its_scripts_again_and_again(flavour, server, looking, other):
    before = other.audit()
    with Proxy(server) as proxy, opened(flavour, proxy.url, timeout=TIMEOUT) as store:
        proxy.fault("pass", range(10**9), then=looking.script_flush)
        for name in ("port_forward", "stop", "update"):
            start = time.monotonic()
            with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):
                (READS | CHANGES)[name](store)
            assert time.monotonic() - start < TIMEOUT + SLACK
    assert other.audit() == before


@every_flavour
def test_a_restart_between_two_operations_is_not_noticed(flavour, own_server, tmp_path):
    server = own_server(data=tmp_path)
    with SandboxStore.from_url(server.url) as other, opened(flavour, server.url) as store:
        for run in (READS | CHANGES).values():
            recreate(other)
            store.get("init")
            store.update("ready", lambda status: replace(status, pid=1))
            server.stop()
            server.start()
            run(store)
            assert other.audit().problems == []


@every_flavour
def test_a_server_that_lost_everything_is_a_new_store(flavour, own_server):
    """All agents agree on its layout, those that knew the old one, too."""
    server = own_server()
    with opened(flavour, server.url, partitions=4) as store, opened(flavour, server.url, partitions=2) as late:
        store.load("ready", READY)
        server.stop()
        server.start()
        with pytest.raises(NotFoundError):
            store.get("ready")
        for each in "abcdefgh":
            store.create(sandbox_id=each)
        for each in "ijklmnop":
            late.create(sandbox_id=each)
        assert store.ids(states=[State.INIT]) == late.ids(states=[State.INIT]) == list("abcdefghijklmnop")


@every_flavour
def test_nor_does_a_write_of_an_idle_store_become_unknown(flavour, own_server, until):
    """Its connection was closed long before the write, so the write did not happen."""
    server = own_server()
    with opened(flavour, server.url) as store:
        store.load("ready", READY)
        server.stop()
        server.start()
        if flavour == "asyncio":  # whose loop runs while the store is idle, but not in this test
            until(
                lambda: (
                    store.runner.run(asyncio.sleep(0))
                    or next(iter(store.wrapped._lane._pools.values()))._shared[0].failure
                )
            )
        store.create()
