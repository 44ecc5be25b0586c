"""Deployments of real servers, and what can happen to them: each is healthy at its start, shows what was caused, and is
healthy again when that is mended. One test goes through all that can happen to one deployment, since starting it takes
seconds. The soaks of test_soak.py let the same happen under load.
"""

from __future__ import annotations

import random
import socket
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis
from conftest import SERVERS, binary_of

from sandbox_redis.server import ServerStartError
from sandbox_redis.soak.deployment import Clusters, Sentinels, Standalone
from sandbox_redis.soak.faults import FAULTS, draw, possible
from sandbox_redis.soak.node import Node
from sandbox_redis.soak.topology import UnsettledError

MAKES = {
    "standalone": lambda binary: Standalone(binary, replicas=1),
    "sentinel": Sentinels,
    "cluster": Clusters,
    "cluster of one": lambda binary: Clusters(binary, masters=1, replicas=0),
    "cluster without replicas": lambda binary: Clusters(binary, masters=3, replicas=0),
}
NEEDS_NO_OTHERS = {
    "kill",
    "freeze",
    "empty",
    "forget-scripts",
    "cut-clients",
    "pause-writes",
    "out-of-memory",
    "disk-full",
}
NEEDS_A_REPLICA = {"kill-replica", "freeze-replica", "failover"}
SAME_EVERYWHERE = {"forget-scripts", "cut-clients", "out-of-memory", "kill-replica", "freeze-replica"}


def key(fault) -> str:
    return f"{{{fault.partition}}}:key"


def write(fault, value: str = "v") -> str:
    return fault.master().ask("SET", key(fault), value, timeout=0.2)


def refusal(fault) -> str:
    with pytest.raises(redis.ResponseError) as refused:
        write(fault)
        write(fault)  # the first one may have been the last one that was possible
    return str(refused.value)


def left(deployment) -> list[tuple[int, Path]]:
    """What must not be left behind."""
    return [(node.pid, node.data) for node in deployment.servers + deployment.sentinels]


# -- at the start


@pytest.mark.parametrize(
    ("kind", "server"),  # the others are started below, and in test_soak.py
    [("cluster of one", "valkey"), ("cluster without replicas", "redis")],
)
def test_a_deployment_is_healthy_when_it_is_there_and_leaves_nothing_behind(kind, server):
    with MAKES[kind](binary_of(server)) as deployment:
        assert deployment.problem() is None
        for partition in range(16):
            master = deployment.master_of(partition)
            assert master is deployment.master_of(f"sandbox:{{{partition}}}:events")
            assert master.ask("SET", f"{{{partition}}}:key", "v") == "OK"
        processes = left(deployment)
        assert all(psutil.pid_exists(pid) and data.exists() for pid, data in processes)
    assert not [(pid, data) for pid, data in processes if psutil.pid_exists(pid) or data.exists()]


def test_a_deployment_that_cannot_start_says_why_and_leaves_nothing_behind():
    deployment = Standalone(binary_of("redis"), replicas=1, maxmemory_policy="whatever")
    with pytest.raises(ServerStartError, match="must be one of"):
        deployment.start()
    assert not [node for node in deployment.servers if node.running or node.data.exists()]


def test_where_a_server_is_down_the_deployment_says_which_and_is_not_settled():
    with Standalone(binary_of("redis"), replicas=1) as deployment:
        master, replica = deployment.servers
        replica.stop()
        with pytest.raises(UnsettledError, match=f"127.0.0.1:{replica.port}.* does not run"):
            deployment.settled(timeout=0)
        deployment.run(replica)
        assert deployment.settled().replicas_of(master) == [replica]  # it still knows whom it follows


# -- what happens to it


def answers(node: Node) -> bool:
    try:
        return node.ask("PING", timeout=0.1) == "PONG"
    except redis.RedisError:
        return False


def waits(fault) -> bool:
    """Reads are answered, a write is not."""
    assert answers(fault.master())
    with pytest.raises(redis.TimeoutError):
        write(fault)
    return True


def down(deployment) -> list[Node]:
    return [node for node in deployment.servers + deployment.sentinels if not answers(node)]


# What can be seen between cause and mend, given the master from before.
EFFECTS = {
    "kill": lambda fault, master: "started it again" in fault.said and not down(fault.deployment),
    "kill-replica": lambda fault, master: len(down(fault.deployment)) == 1 and answers(master),
    "kill-sentinel": lambda fault, master: len(down(fault.deployment)) == 1 and answers(master),
    "freeze": lambda fault, master: down(fault.deployment) == [master] and master.running,
    "freeze-replica": lambda fault, master: len(down(fault.deployment)) == 1 and answers(master),
    "empty": lambda fault, master: master.ask("DBSIZE") == 0,
    "forget-scripts": lambda fault, master: master.ask("SCRIPT", "EXISTS", fault.sha) == [0],
    "cut-clients": lambda fault, master: fault.socket.recv(1) == b"",
    "pause-writes": lambda fault, master: waits(fault),
    "out-of-memory": lambda fault, master: "maxmemory" in refusal(fault),
    "disk-full": lambda fault, master: "File too large" in refusal(fault),
    "failover": lambda fault, master: fault.master() is not master and not down(fault.deployment),
    "coordinated-failover": lambda fault, master: fault.master() is not master and not down(fault.deployment),
    "lose-master": lambda fault, master: fault.master() is not master and down(fault.deployment) == [master],
    "migration": lambda fault, master: refusal(fault).startswith(f"{fault.slot} 127.0.0.1:"),  # ASK
    "atomic-migration": lambda fault, master: fault.master() is not master and write(fault) == "OK",
}


@contextmanager
def caused(fault):
    """Between `cause` and `mend`."""
    master = fault.master()
    fault.sha = master.ask("SCRIPT", "LOAD", "return 1")
    with socket.create_connection(("127.0.0.1", master.port)) as fault.socket:
        try:
            fault.said = fault.cause()
            yield master
        finally:
            fault.mend()


def test_all_that_can_happen_is_tested_here():
    assert {fault.name for fault in FAULTS} == EFFECTS.keys()
    assert len(FAULTS) == len(EFFECTS)


@pytest.mark.parametrize(
    ("kind", "server", "more"),
    [
        ("standalone", "redis", set()),
        ("sentinel", "valkey", {"kill-sentinel", "lose-master", "coordinated-failover"}),
        ("cluster", "valkey", {"lose-master", "migration", "atomic-migration"}),
    ],
)
def test_a_deployment_survives_all_that_can_happen_to_it(kind, server, more):
    with MAKES[kind](binary_of(server)) as deployment:
        faults = possible(deployment)
        assert {fault.name for fault in faults} == NEEDS_NO_OTHERS | NEEDS_A_REPLICA | more
        for number, kind_of_fault in enumerate(faults):
            if kind != "standalone" and kind_of_fault.name in SAME_EVERYWHERE:
                continue
            fault = kind_of_fault(deployment, random.Random(number))
            assert write(fault, fault.name) == "OK"
            deployment.settled()  # the replicas have it
            with caused(fault) as master:
                assert fault.said
                assert EFFECTS[fault.name](fault, master), fault.said
            assert deployment.problem() is None
            if not fault.may_lose(deployment):
                assert fault.master().ask("EXISTS", key(fault)) == 1, fault.said
            assert write(fault, "again") == "OK"
            assert write(fault, "again") == "OK"
        processes = left(deployment)
    assert not [(pid, data) for pid, data in processes if psutil.pid_exists(pid) or data.exists()]


@pytest.mark.parametrize("server", SERVERS)
def test_without_others_and_without_a_disk_little_can_happen(server):
    with Standalone(binary_of(server), aof="no") as deployment:
        names = {fault.name for fault in possible(deployment)}
        assert names == NEEDS_NO_OTHERS - {"kill", "disk-full"}
        assert {fault.name for fault in possible(deployment, lossless=True)} == names - {"empty"}
        assert {fault.name for fault in possible(deployment, without=["freeze"])} == names - {"freeze"}


def test_a_seed_decides_what_happens():
    with Standalone(binary_of("redis")) as deployment:

        def drawn(seed: int) -> list[tuple[str, int]]:
            chance = random.Random(seed)
            return [(fault.name, fault.partition) for fault in (draw(deployment, chance) for _ in range(50))]

        assert drawn(1) == drawn(1) != drawn(2)
        assert {name for name, _ in drawn(1)} == NEEDS_NO_OTHERS
