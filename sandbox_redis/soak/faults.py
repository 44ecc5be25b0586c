"""What can happen to the servers of a deployment, and how it is mended: one fault at a time, chosen by a seed.

Failovers are in ``failovers.py``, slots that move in ``migrations.py``; `FAULTS` has them all. What can happen to a
connection alone is in ``proxy.py``.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Container
from typing import Final

from sandbox_redis.soak.failovers import Failover, LoseMaster
from sandbox_redis.soak.fault import Fault, fails_over, replicated
from sandbox_redis.soak.migrations import AtomicMigration, Migration
from sandbox_redis.soak.node import Deployment, Node, await_none

_RETRIED: Final = 10.0  # seconds until a server has tried again to write; it does each second
_FILLER: Final = 64 << 10  # bytes; more than a server's other files have, whose writing must not fail


class Kill(Fault):
    """SIGKILL, and a restart at once with what its disk has."""

    name = "kill"

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where servers have something to come back with; see `Empty` for the others."""
        return super().possible(deployment) and deployment.servers[0].aof != "no"

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """What was not flushed; and on a slow machine, a replica may have taken over before."""
        return deployment.servers[0].aof != "always" or fails_over(deployment)

    def cause(self) -> str:
        """Kill the master and start it."""
        server = self.master()
        server.stop(signal.SIGKILL)
        self.deployment.run(server)
        return f"killed {server.address} and started it again"


class KillReplica(Fault):
    """SIGKILL to a replica; it comes back when it is mended."""

    name = "kill-replica"
    _victim: Node | None = None

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where there are replicas."""
        return super().possible(deployment) and replicated(deployment)

    def cause(self) -> str:
        """Kill one."""
        self._victim = self.chance.choice(self.deployment.replicas_of(self.master()))
        self._victim.stop(signal.SIGKILL)
        return f"killed the replica {self._victim.address}"

    def mend(self) -> None:
        """Start it."""
        if self._victim is not None:
            self.deployment.run(self._victim)
        super().mend()


class KillSentinel(Fault):
    """SIGKILL to a sentinel; it comes back when it is mended."""

    name = "kill-sentinel"
    topologies = frozenset({"sentinel"})
    _victim: Node | None = None

    def cause(self) -> str:
        """Kill one."""
        self._victim = self.chance.choice(self.deployment.sentinels)
        self._victim.stop(signal.SIGKILL)
        return f"killed the sentinel {self._victim.address}"

    def mend(self) -> None:
        """Start it."""
        if self._victim is not None:
            self.deployment.run(self._victim)
        super().mend()


class Freeze(Fault):
    """SIGSTOP: the master is there and does not answer. If it lasts a replica takes over; the frozen one then wakes as
    a master that is none any more.
    """

    name = "freeze"
    _victim: Node | None = None

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """What the replica that takes over did not have."""
        return fails_over(deployment)

    def _choose(self) -> Node:
        return self.master()

    def cause(self) -> str:
        """Freeze it."""
        self._victim = self._choose()
        os.kill(self._victim.pid, signal.SIGSTOP)
        return f"froze {self._victim.address}"

    def mend(self) -> None:
        """Let it go on."""
        if self._victim is not None and self._victim.running:
            os.kill(self._victim.pid, signal.SIGCONT)
        super().mend()


class FreezeReplica(Freeze):
    """SIGSTOP to a replica: it lags, and confirms nothing."""

    name = "freeze-replica"

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where there are replicas."""
        return super().possible(deployment) and replicated(deployment)

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """Nothing: the master runs."""
        return False

    def _choose(self) -> Node:
        return self.chance.choice(self.deployment.replicas_of(self.master()))


class Empty(Fault):
    """A restart without the data, which the replicas, if any, then lose as well."""

    name = "empty"

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """All of it."""
        return True

    def cause(self) -> str:
        """Stop the master, delete what it keeps, and start it."""
        server = self.master()
        server.stop(signal.SIGKILL)
        shutil.rmtree(server.data / "appendonlydir", ignore_errors=True)
        (server.data / "dump.rdb").unlink(missing_ok=True)
        self.deployment.run(server)
        return f"started {server.address} again without its data"


class ForgetScripts(Fault):
    """SCRIPT FLUSH on all servers."""

    name = "forget-scripts"

    def cause(self) -> str:
        """Flush them."""
        for server in self.deployment.servers:
            server.ask("SCRIPT", "FLUSH", "SYNC")
        return "flushed the scripts of all servers"


class CutClients(Fault):
    """CLIENT KILL TYPE normal on all servers: each connection is closed, as by a timeout or an operator."""

    name = "cut-clients"

    def cause(self) -> str:
        """Close them."""
        closed = sum(server.ask("CLIENT", "KILL", "TYPE", "normal") for server in self.deployment.servers)
        return f"closed {closed} connections"


class PauseWrites(Fault):
    """CLIENT PAUSE WRITE: the master answers reads, and lets writes wait."""

    name = "pause-writes"
    _SECONDS: Final = 60

    def cause(self) -> str:
        """Pause them."""
        server = self.master()
        server.ask("CLIENT", "PAUSE", self._SECONDS * 1000, "WRITE")
        return f"paused writes on {server.address}"

    def mend(self) -> None:
        """Let them go on."""
        for server in self.deployment.servers:
            server.ask("CLIENT", "UNPAUSE")
        super().mend()


class OutOfMemory(Fault):
    """The masters have more data than maxmemory allows, and refuse writes with OOM."""

    name = "out-of-memory"

    def __init__(self, deployment: Deployment, chance: random.Random, *, partitions: int = 16) -> None:
        super().__init__(deployment, chance, partitions=partitions)
        self._before: dict[Node, str] = {}

    def cause(self) -> str:
        """Set maxmemory to one byte, everywhere, so that no failover ends it."""
        for server in self.deployment.servers:
            self._before[server] = server.ask("CONFIG", "GET", "maxmemory")[1]
            server.ask("CONFIG", "SET", "maxmemory", 1)
        return "all servers are out of memory"

    def mend(self) -> None:
        """Set it back."""
        for server, maxmemory in self._before.items():
            server.ask("CONFIG", "SET", "maxmemory", maxmemory)
        super().mend()


class DiskFull(Fault):
    """The append-only file cannot grow, as on a full disk: a limit of the process makes its writes fail, and the server
    refuses writes with MISCONF. Under `always` it would end itself instead, so for that time it flushes each second.
    """

    name = "disk-full"
    _victim: Node | None = None

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """On Linux, where another process can be limited, for servers that write."""
        return super().possible(deployment) and sys.platform == "linux" and deployment.servers[0].aof != "no"

    def cause(self) -> str:
        """Fill the file to more than other files have, and let it not grow."""
        server = self._victim = self.master()
        server.ask("CONFIG", "SET", "appendfsync", "everysec")
        server.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)  # a new file would have room
        self._fill(server)
        size = max(file.stat().st_size for file in (server.data / "appendonlydir").iterdir())
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return f"the disk of {server.address} is full"

    def _fill(self, server: Node) -> None:
        """Append what nobody sees: a key that is gone in the same transaction."""
        with server.client() as client, client.pipeline(transaction=True) as pipeline:
            key = f"{{{self.partition}}}:filler"
            pipeline.set(key, "-" * _FILLER).delete(key).execute()

    def mend(self) -> None:
        """Make room; the server notices within a second."""
        if (server := self._victim) is not None and server.running:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await_none(lambda: _failed_write(server), _RETRIED)
            server.ask("CONFIG", "SET", "appendfsync", server.aof)
            server.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 100)
        super().mend()


def _failed_write(server: Node) -> str | None:
    status = server.info("persistence")["aof_last_write_status"]
    return None if status == "ok" else f"{server} cannot write: {status}"


FAULTS: Final[tuple[type[Fault], ...]] = (
    Kill,
    KillReplica,
    KillSentinel,
    Freeze,
    FreezeReplica,
    Empty,
    ForgetScripts,
    CutClients,
    PauseWrites,
    OutOfMemory,
    DiskFull,
    Failover,
    LoseMaster,
    Migration,
    AtomicMigration,
)
"""All that can happen."""


def possible(deployment: Deployment, *, lossless: bool = False, without: Container[str] = ()) -> list[type[Fault]]:
    """What can happen to this deployment.

    Args:
        deployment: it must run.
        lossless: leave out what may lose writes that a server has confirmed.
        without: leave out what has these names.
    """
    return [
        fault
        for fault in FAULTS
        if fault.name not in without and fault.possible(deployment) and not (lossless and fault.may_lose(deployment))
    ]


def draw(
    deployment: Deployment,
    chance: random.Random,
    *,
    partitions: int = 16,
    lossless: bool = False,
    without: Container[str] = (),
) -> Fault:
    """What happens next, each possible fault as likely as the other; see `possible` and `Fault` for the arguments."""
    faults = possible(deployment, lossless=lossless, without=without)
    return chance.choice(faults)(deployment, chance, partitions=partitions)
