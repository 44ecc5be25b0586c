"""Soaks, run for real for some seconds: servers are killed, frozen and filled under load, agents die, and nobody is told
what cannot be. The checker's own tests stand in test_checker.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from conftest import binary_of

from sandbox_redis import InvalidArgumentError, SandboxStore
from sandbox_redis.cli.soak import soak
from sandbox_redis.soak.deployment import Clusters, Sentinels, Standalone
from sandbox_redis.soak.inside import changes, delete_store
from sandbox_redis.soak.round import Plan
from sandbox_redis.soak.run import run as run_soak

SECONDS = 3.0  # of a soak, in which one or two faults come; `sandbox-redis soak` goes on for hours
DEPLOYMENTS = {"standalone": Standalone, "sentinel": Sentinels, "cluster": Clusters}


@pytest.mark.parametrize("server_name", ["valkey", "redis"])
@pytest.mark.parametrize("topology", DEPLOYMENTS)
def test_a_soak_finds_no_violation(topology, server_name):
    said = []
    with DEPLOYMENTS[topology](binary_of(server_name)) as deployment:
        plan = Plan(seconds=SECONDS, seed=1, agents=2, watches=1, mirrors=1)  # an agent and the mirror are asyncio
        figures = run_soak(plan, deployment.url, deployment, say=said.append)
        for server in deployment.servers:
            with server.client() as client:
                assert list(client.scan_iter("sandbox*")) == []
    assert figures.to_json()["violations"] == [] == figures.problems, "\n".join(said)
    assert figures.faults.total() == len(said) >= 1
    assert figures.outcomes["ok"] > 100
    assert figures.watched >= figures.events > 0 < figures.mirror_reads
    assert figures.double_applies == 0
    assert topology != "standalone" or figures.lost_writes == 0
    assert any(figures.lines())


@pytest.mark.parametrize("server_name", ["valkey", "redis"])
def test_an_agent_that_is_killed_at_any_instruction_leaves_nothing_half_done(servers, server_name, prefix):
    url = servers(server_name).url
    script = Path(__file__).with_name("faults") / "killed.py"
    subprocess.run([sys.executable, str(script), url, prefix, "100", str(os.getpid())], check=True, timeout=100)
    with SandboxStore.from_url(url, prefix=prefix) as store:
        assert store.audit().problems == []
        written = {change.by for partition in changes(store) for change in partition}
        assert len(written) > 70, "most of them had written something"
        delete_store(store)


def run(*arguments, **settings):
    command = [sys.executable, "-m", "sandbox_redis.cli", "soak", "--agents", "2", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def test_a_server_that_is_there_is_used_and_not_broken_and_who_interrupts_a_soak_gets_its_check(own_server, until):
    server = own_server()
    pid = server.pid
    process = run("--url", server.url, "--seconds", 1000, "--json")
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    until(lambda: "kill-agent" in next(lines))
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGINT, errors
    told = json.loads(out)
    assert told["operations"] > 0
    assert (told["violations"], told["problems"], told["faults"].keys() - {"kill-agent"}) == ([], [], set())
    assert server.pid == pid
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0


def test_a_violation_is_told_and_is_the_exit_status(own_server, until):
    """Somebody else writes behind the store."""
    server = own_server()
    process = run("--url", server.url, "--seconds", 3)
    with redis.Redis.from_url(server.url) as client:
        key = until(lambda: next(client.scan_iter("sandbox-soak-*:status:count-0"), None))
        until(lambda: client.hget(key, "state") == b"READY")
        client.hset(key, "exit_status", 10**6)
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 1, errors
    assert "wrong effect: update of count-0 by agent-" in out
    assert "no violation" not in out


def test_what_cannot_be_run_is_refused():
    settings = {"url": None, "binary": None, "replicas": None, "agents": 2, "seed": None, "as_json": False}
    with pytest.raises(InvalidArgumentError, match="one of standalone, sentinel, cluster"):
        soak(topology="ring", seconds=1, **settings)
    with pytest.raises(InvalidArgumentError, match="a positive number"):
        soak(topology="standalone", seconds=0, **settings)
