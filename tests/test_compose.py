"""compose.yaml cannot be run here, so each server option in it is held against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
import yaml

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
