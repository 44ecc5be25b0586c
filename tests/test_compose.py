"""No container runs here. So each server option in compose.yaml is held against a real server; and the commands of the
cluster and of the sentinels are run as they stand there, on this host and with other ports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
import redis.sentinel
import yaml
from conftest import binary_of

COMPOSE = yaml.safe_load((Path(__file__).parents[1] / "compose.yaml").read_text())
SERVER = COMPOSE["services"]["redis"]
WORDS = SERVER["command"][1:]
OPTIONS = dict(zip((word.removeprefix("--") for word in WORDS[::2]), WORDS[1::2], strict=True))
BYTES = {"512mb": str(512 * 1024**2)}


@pytest.mark.parametrize("name", ["valkey", "redis"])
def test_a_real_server_takes_every_option(own_server, name):
    options = OPTIONS | {"requirepass": "secret"}
    server = own_server(name, options=options)
    client = redis.Redis.from_url(server.url, password="secret", decode_responses=True)
    for option, value in options.items():
        assert client.config_get(option)[option] == BYTES.get(value, value)
    client.close()


def test_the_server_keeps_its_data_and_never_evicts():
    assert OPTIONS["appendonly"] == "yes"
    assert OPTIONS["maxmemory-policy"] == "noeviction"
    assert any(volume.endswith(":/data") for volume in SERVER["volumes"])


def test_the_password_comes_from_the_environment_and_must_be_set():
    assert OPTIONS["requirepass"].startswith("${SANDBOX_REDIS_PASSWORD:?")
    assert SERVER["environment"]["VALKEYCLI_AUTH"] == "${SANDBOX_REDIS_PASSWORD}"


def test_the_server_is_reached_from_this_host_only():
    assert all(port.startswith("127.0.0.1:") for port in SERVER["ports"])


def test_the_demo_waits_for_a_healthy_server_and_runs_the_checkout():
    demo = COMPOSE["services"]["demo"]
    assert demo["profiles"] == ["demo"]
    assert demo["depends_on"]["redis"]["condition"] == "service_healthy"
    assert SERVER["healthcheck"]["test"][-1] == "ping"
    assert demo["volumes"] == [".:/checkout:ro"]
    assert "sandbox-redis demo --url" in demo["command"][-1]


# -- what belongs together

SERVICES = COMPOSE["services"]
JOBS = {"demo", "cluster"}  # they end; whoever waits for them looks at how


def test_every_service_that_stays_has_a_health_check_and_is_started_again():
    for name in SERVICES.keys() - JOBS:
        assert SERVICES[name]["healthcheck"]["test"], name
        assert SERVICES[name]["restart"] == "unless-stopped", name


def test_what_is_depended_on_and_stored_in_is_there():
    volumes = []
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            mine, its = set(service.get("profiles", [])), set(SERVICES[other].get("profiles", []))
            assert not its or mine == its or how["required"] is False, f"{name} is started without {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]
        volumes += [volume for volume in service.get("volumes", ()) if not volume.startswith(".")]
    assert sorted(volume.partition(":")[0] for volume in volumes) == sorted(COMPOSE["volumes"])
    assert all(volume.endswith(":/data") for volume in volumes)


def test_profiles_keep_apart_and_publish_nothing():
    profiles: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for profile in service.get("profiles", []):
            profiles.setdefault(profile, set()).add(re.sub(r"-\d$", "", name))
            assert "ports" not in service
    assert profiles == {"cluster": {"node", "cluster"}, "sentinel": {"server", "sentinel"}, "demo": {"demo"}}
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"redis"}


def test_all_servers_keep_their_data_and_never_evict_as_the_first_one():
    kept = {"appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy"}
    for name, service in SERVICES.items():
        if re.match("node|server", name):
            words = service["command"]
            options = {word.removeprefix("--"): words[at + 1] for at, word in enumerate(words[:-1]) if word[:2] == "--"}
            assert {option: options[option] for option in kept} == {option: OPTIONS[option] for option in kept}, name
            assert options["requirepass"] == options["masterauth"] == "${SANDBOX_REDIS_PASSWORD}"


def test_the_urls_at_the_top_name_what_there_is():
    head = (Path(__file__).parents[1] / "compose.yaml").read_text().partition("x-node")[0]
    named = set(re.findall(r"((?:node|sentinel)-\d):(\d+)", head))
    assert {name for name, _ in named} == {"node-1", "node-2", "sentinel-1", "sentinel-2", "sentinel-3"}
    assert {port for name, port in named if name.startswith("node")} == {"6379"}
    assert {port for name, port in named if name.startswith("sentinel")} == {"26379"}
    assert "sentinel monitor sandbox " in SERVICES["sentinel-1"]["environment"]["SENTINEL_CONF"]
    assert "/sandbox/0" in head


# -- run on this host


class Host:
    """Runs services as processes: their names are this host, each with a port and a directory of its own."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("redis-cli") or not shutil.which("getent"):
            pytest.skip("redis-cli or getent is not installed")
        self._folder = folder
        self._server = binary_of("valkey")
        self._ports: dict[str, int] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def port(self, name: str) -> int:
        while name not in self._ports:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            bus = port + 10_000  # a node of a cluster listens there, too
            with suppress(OSError), socket.create_server(("127.0.0.1", bus if bus < 65_536 else port - 10_000)):
                self._ports[name] = port if bus < 65_536 else port - 10_000
        return self._ports[name]

    def text(self, name: str, text: str) -> str:
        """A word of a service as it is to be here."""
        text = re.sub(r"\$\{SANDBOX_REDIS_PASSWORD[^}]*\}", "secret", text).replace("$$", "$")
        text = re.sub(r"((?:node|server)-\d)([: ])6379", lambda at: f"127.0.0.1{at[2]}{self.port(at[1])}", text)
        text = re.sub(r"(?:node|server)-\d", "127.0.0.1", text)
        text = re.sub(r"(^port |-p )26379", lambda at: f"{at[1]}{self.port(name)}", text, flags=re.MULTILINE)
        text = text.replace("/data", str(self._folder / name)).replace(
            "milliseconds sandbox 5000", "milliseconds sandbox 500"
        )
        text = re.sub(r"valkey-cli(?= --raw ping| info)", f"valkey-cli -p {self.port(name)}", text)
        return text.replace("valkey-cli", "redis-cli").replace("valkey-server", self._server)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = SERVICES[name]
        (self._folder / name).mkdir(exist_ok=True)
        command = [self.text(name, word) for word in service["command"]]
        if name.startswith(("node", "server")):
            command += ["--port", str(self.port(name)), "--bind", "127.0.0.1", "--dir", str(self._folder / name)]
            command += ["--repl-diskless-sync-delay", "0"]  # which waits for a second replica, for 5 s
        environment = {key: self.text(name, value) for key, value in service["environment"].items()}
        environment |= {"REDISCLI_AUTH": "secret", "HOSTNAME": "127.0.0.1"}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        return self._running[name]

    def healthy(self, name: str) -> bool:
        kind, test = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        environment = os.environ | {"REDISCLI_AUTH": "secret"}
        return not subprocess.run(["sh", "-c", self.text(name, test)], env=environment, capture_output=True).returncode  # noqa: PLW1510

    def client(self, name: str) -> redis.Redis:
        return redis.Redis(port=self.port(name), password="secret", decode_responses=True)

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self._running.pop(name)
        process.send_signal(how)
        process.wait()

    def close(self) -> None:
        for name in list(self._running):
            self.end(name, signal.SIGKILL)


@pytest.fixture
def host(tmp_path) -> Iterator[Host]:
    running = Host(tmp_path)
    yield running
    running.close()


NODES = [f"node-{number}" for number in range(1, 7)]


def test_the_cluster_is_put_together_once_and_found_again(host, until):
    for _ in range(2):  # the second time all begin again with what they have
        for name in NODES:
            host.start(name)
        until(lambda: all(host.healthy(name) for name in NODES))
        for _ in range(2):
            assert host.start("cluster").wait(60) == 0
        client = redis.RedisCluster(host="127.0.0.1", port=host.port("node-2"), password="secret")
        assert len(client.get_primaries()) == 3
        with host.client("node-1") as node:
            lines = node.execute_command("CLUSTER NODES").values()
            assert sorted("slave" in each["flags"] for each in lines) == [False] * 3 + [True] * 3
            assert {each["hostname"] for each in lines} == {"127.0.0.1"}  # here
        for number in range(10):
            assert client.incr(f"key-{number}") in (1, 2)
        assert {client.get(f"key-{number}") for number in range(10)} in ({b"1"}, {b"2"})
        client.close()
        for name in NODES:
            host.end(name)


def test_sentinels_make_a_replica_the_master_and_the_old_one_its_replica(host, until):
    servers, sentinels = ([f"{kind}-{number}" for number in (1, 2, 3)] for kind in ("server", "sentinel"))
    for name in servers:
        host.start(name)
    until(lambda: all(host.healthy(name) for name in servers))
    for name in sentinels:
        host.start(name)
    until(lambda: all(host.healthy(name) for name in sentinels))
    known = redis.sentinel.Sentinel(
        [("127.0.0.1", host.port(name)) for name in sentinels],
        sentinel_kwargs={"password": "secret"},
        password="secret",
    )
    first = known.discover_master("sandbox")
    assert first == ("127.0.0.1", host.port("server-1"))
    until(lambda: len(known.discover_slaves("sandbox")) == 2)
    master = known.master_for("sandbox")
    until(lambda: master.info("replication")["min_slaves_good_slaves"] == 2)
    master.set("key", "value")
    assert master.wait(2, 5000) == 2
    host.end("server-1", signal.SIGKILL)
    until(lambda: int(known.sentinels[0].sentinel_get_master_addr_by_name("sandbox")[1]) != first[1])
    until(lambda: all(host.healthy(name) for name in servers[1:]))
    assert master.get("key") == b"value"
    host.start("server-1")
    old = host.client("server-1")
    until(lambda: host.healthy("server-1") and old.role()[0] == "slave")
    host.end("server-1")
    assert "replicaof" in (host._folder / "server-1" / "server.conf").read_text()  # also before a sentinel sees it
    old.close()
    master.close()
    for client in known.sentinels:
        client.close()
