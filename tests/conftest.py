"""Servers and stores for the tests. A real server is started here, on a unix socket, and stopped at the end;
fakeredis is for speed, the real ones decide. Nothing waits for a time: `until` waits for a condition.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import fakeredis
import hypothesis
import pytest
import redis
from blocking import BlockingStore

from sandbox_redis import AsyncSandboxStore, SandboxStore, State, follow, watching
from sandbox_redis.server import EmbeddedServer, find_server

SERVERS = {"valkey": find_server, "redis": lambda: shutil.which("redis-server")}

FLAVOURS = ["sync", "asyncio"]

# No deadline: a loaded machine is no failure. In CI the same examples each time: a red run can be had again.
hypothesis.settings.register_profile("sandbox-redis", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("sandbox-redis")


def binary_of(name: str) -> str:
    """The server's program. Where it is missing its tests are skipped, but in CI that is a failure."""
    if path := SERVERS[name]():
        return path
    message = f"no {name}-server is installed"
    if os.environ.get("CI"):
        pytest.fail(f"{message}, and CI must test it")
    return pytest.skip(message)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-pair", action="store_true", help="run each test with each server, sync and asyncio")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What differs between the servers has little to do with sync and asyncio: who is tested with all of them meets
    each server and each flavour, and not each with each."""
    if config.getoption("every_pair"):
        return
    groups: dict[str, dict[tuple[str, str], pytest.Item]] = {}
    for item in items:
        params = {"flavour": "", **getattr(getattr(item, "callspec", None), "params", {})}
        kind = params.pop("backend", None) or params.pop("server", "")
        test = f"{item.nodeid.partition('[')[0]} {params | {'flavour': ''}}"
        groups.setdefault(test, {})[str(kind), params["flavour"]] = item
    out = set()
    for number, group in enumerate(groups.values()):
        if group.keys() >= {(kind, flavour) for kind in SERVERS for flavour in FLAVOURS}:
            left_out = [("valkey", "asyncio"), ("redis", "sync"), ("fakeredis", FLAVOURS[number % 2])]
            out.update(group[pair] for pair in left_out if pair in group)
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=list(out))


def pytest_configure() -> None:
    """Shells start background jobs with SIGINT ignored, and programs leave that alone; the tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    versions = [f"redis-py {redis.__version__}, fakeredis {fakeredis.__version__}"]
    for name, find in SERVERS.items():
        path = find()
        said = (
            subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            if path
            else "missing"
        )
        versions.append(f"{name}: {said.strip()}")
    return versions


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], EmbeddedServer]]:
    """One server of each kind for the whole run; tests keep apart by their prefix."""
    running: dict[str, EmbeddedServer] = {}

    def get(name: str) -> EmbeddedServer:
        if name not in running:
            running[name] = EmbeddedServer(binary=binary_of(name)).start()
        return running[name]

    yield get
    for server in running.values():
        server.close()


@pytest.fixture(scope="module")
def module_servers() -> Iterator[Callable[[str], EmbeddedServer]]:
    """Servers on TCP that the tests of one module may stop, flush and configure."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(EmbeddedServer(binary=binary_of(name), port=0)))


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, servers: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """A real server that other tests use as well: leave it as it was."""
    return servers(request.param)


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers for this test alone, which may stop, fill and kill them: ``own_server("redis", port=0)``."""
    started: list[EmbeddedServer] = []

    def start(name: str = "valkey", **settings: Any) -> EmbeddedServer:
        started.append(EmbeddedServer(binary=binary_of(name), **settings).start())
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix that no other test has."""
    return f"test-{time.monotonic_ns()}"


@pytest.fixture(params=["fakeredis", "valkey", "redis"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def client(backend: str, servers: Callable[[str], EmbeddedServer], prefix: str) -> Iterator[redis.Redis]:
    """A plain client to look behind the store; at the end no key may be left that the contract does not name."""
    if backend == "fakeredis":
        looking: redis.Redis = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    else:
        looking = redis.Redis.from_url(servers(backend).url)
    yield looking
    if keys := set(looking.scan_iter(f"{prefix}:*")):
        looking.unlink(*keys)  # audits scan the whole server
    looking.close()
    states = "|".join(State)
    known = re.compile(
        rf"{prefix}:(meta|{{\d+}}:(status:.+|node:.+|nodes|events|state:({states})))".encode(), re.DOTALL
    )
    assert {key for key in keys if not known.fullmatch(key)} == set()


@pytest.fixture
def snapshot(client: redis.Redis, prefix: str) -> Callable[[], dict[str, Any]]:
    """Everything that a store has in Redis: each key with what it holds."""
    read: dict[bytes, Callable[[str], Any]] = {
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": client.xrange,
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
    }

    def take() -> dict[str, Any]:
        keys = sorted(key.decode() for key in client.scan_iter(f"{prefix}:*"))
        return {key: read[client.type(key)](key) for key in keys}

    return take


@pytest.fixture
def open_store(
    backend: str, flavour: str, servers: Callable[[str], EmbeddedServer], client: redis.Redis, prefix: str
) -> Iterator[Callable[..., Any]]:
    """Opens stores of each kind that a test body is run with: {fakeredis, Valkey, Redis} x {sync, asyncio}."""
    opened: list[Any] = []

    def open_(**settings: Any) -> Any:
        settings = {"prefix": prefix, "agent": "test", **settings}
        source: Any = servers(backend).url if backend != "fakeredis" else client
        if flavour == "sync":
            store: Any = SandboxStore(source, **settings)
        else:
            if backend == "fakeredis":
                fake_server = client.connection_pool.connection_kwargs["server"]
                source = fakeredis.FakeAsyncRedis(server=fake_server)
            store = BlockingStore(AsyncSandboxStore(source, **settings))
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., Any]) -> Any:
    return open_store()


@pytest.fixture
def quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches look after their server five times as often, so that nobody has to wait for it so long."""
    for module in (follow, watching):
        monkeypatch.setattr(module, "HEARTBEAT", 0.2)


@pytest.fixture
def until() -> Callable[..., Any]:
    """Waits until a condition holds, and returns what it gave."""

    def wait(condition: Callable[[], Any], timeout: float = 30) -> Any:
        end = time.monotonic() + timeout
        while not (result := condition()):
            if time.monotonic() > end:
                pytest.fail(f"{condition} did not come true within {timeout} s")
            time.sleep(0.002)
        return result

    return wait
