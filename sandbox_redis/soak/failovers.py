"""Failovers: another server becomes the master, because it was asked to or because the old one is gone."""

from __future__ import annotations

import signal
from typing import Final

from redis.exceptions import ResponseError

from sandbox_redis.soak.deployment import SERVICE
from sandbox_redis.soak.fault import Fault, fails_over, replicated
from sandbox_redis.soak.node import HOST, Node
from sandbox_redis.soak.topology import Deployment, UnsettledError, await_none

_PATIENCE: Final = 30.0  # seconds until another server must be the master


class Failover(Fault):
    """A planned one: FAILOVER, SENTINEL FAILOVER or CLUSTER FAILOVER. Without sentinels or a cluster nobody would find
    the new master, so there it is undone when it is mended.
    """

    name = "failover"
    _how: tuple[str, ...] = ()
    _first: Node | None = None

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where there are replicas."""
        return super().possible(deployment) and replicated(deployment)

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """Sentinels do not let the old master wait until the new one has all that it has."""
        return deployment.topology == "sentinel"

    def cause(self) -> str:
        """Ask for it, and wait until another server is the master."""
        master = self._first = self.master()
        if self.deployment.topology == "sentinel":
            await_none(self._refused, _PATIENCE)
        else:
            replica = self.chance.choice(self.deployment.replicas_of(master))
            if self.deployment.topology == "standalone":
                self._hand_over(master, replica)
            else:
                replica.ask("CLUSTER", "FAILOVER")
        successor = await_successor(self, master)
        return f"{successor.address} took over from {master.address}, as it was asked to"

    def _refused(self) -> str | None:
        """Ask a sentinel; why it does not: the replicas may not be known, or the last failover not be over."""
        try:
            self.chance.choice(self.deployment.sentinels).ask("SENTINEL", "FAILOVER", SERVICE, *self._how)
        except ResponseError as error:
            return str(error)
        return None

    def _hand_over(self, master: Node, replica: Node) -> None:
        master.ask("FAILOVER", "TO", HOST, replica.port)
        await_successor(self, master)
        for server in self.deployment.servers:
            if server is not replica:
                server.follow(replica)
        replica.ask("CONFIG", "REWRITE")

    def mend(self) -> None:
        """Give the mastership back where clients know one address only."""
        super().mend()
        if self.deployment.topology == "standalone" and self._first not in (None, master := self.master()):
            assert self._first is not None
            self._hand_over(master, self._first)
            super().mend()


class CoordinatedFailover(Failover):
    """A planned one where the sentinel lets the old master wait for the new one; with Valkey 9."""

    name = "coordinated-failover"
    topologies = frozenset({"sentinel"})
    _how = ("COORDINATED",)

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where the sentinels can."""
        return super().possible(deployment) and any(
            "COORDINATED" in line for line in deployment.sentinels[0].ask("SENTINEL", "HELP")
        )

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """Nothing."""
        return False


class LoseMaster(Fault):
    """An unplanned one: SIGKILL, and the master stays away until a replica has taken over. When it is mended it comes
    back as a replica.
    """

    name = "lose-master"
    topologies = frozenset({"sentinel", "cluster"})
    _victim: Node | None = None

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where a replica takes over by itself."""
        return super().possible(deployment) and fails_over(deployment)

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """What the replica did not have."""
        return True

    @classmethod
    def may_lose_confirmed(cls, deployment: Deployment) -> bool:
        """Nothing: all that a replica had confirmed had been sent to all of them."""
        return False

    def cause(self) -> str:
        """Kill the master, and wait until there is another one."""
        victim = self._victim = self.master()
        victim.stop(signal.SIGKILL)
        successor = await_successor(self, victim)
        return f"killed {victim.address}, and {successor.address} took over"

    def mend(self) -> None:
        """Start it. In a cluster it finds out by itself; sentinels would let it be a second master for some seconds."""
        if (victim := self._victim) is not None and not victim.running:
            if self.deployment.topology == "sentinel" and (master := self.master()) is not victim:
                with victim.config.open("a") as config:
                    config.write(f"\nreplicaof {HOST} {master.port}\n")
            self.deployment.run(victim)
        super().mend()


def await_successor(fault: Fault, master: Node) -> Node:
    """Wait until another server takes the writes of the fault's partition; which.

    Raises:
        UnsettledError: none did in time.
    """

    def none_yet() -> str | None:
        try:
            return f"{master} has no successor" if fault.master() is master else None
        except UnsettledError as error:
            return str(error)

    await_none(none_yet, _PATIENCE)
    return fault.master()
