"""Servers that are gone for a while, or come back with less: killed, frozen, emptied."""

from __future__ import annotations

import os
import shutil
import signal

from sandbox_redis.soak.fault import Fault, fails_over, replicated
from sandbox_redis.soak.node import Node
from sandbox_redis.soak.topology import Deployment


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

    @classmethod
    def may_lose_confirmed(cls, deployment: Deployment) -> bool:
        """In a cluster a master that comes back takes no writes before it knows whether it is still one."""
        return cls.may_lose(deployment) and not (
            deployment.topology == "cluster" and deployment.servers[0].aof == "always"
        )

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
