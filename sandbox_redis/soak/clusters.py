"""A cluster on this host: how nodes become one, and how each of them sees it. What happens to it is in
``faults.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError

from sandbox_redis.soak.node import HOST, Aof, Node, fields, nodes
from sandbox_redis.soak.topology import Deployment, UnsettledError, await_none, lagging

_OPTIONS: Final[dict[str, object]] = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "1500",
    "cluster-replica-validity-factor": "0",  # a replica takes over however long it was alone
    "cluster-allow-replica-migration": "no",  # each stays with its master
}


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a cluster, as a node sees it."""

    id: str
    port: int
    flags: frozenset[str]
    master: str
    """The id of its master; empty when it is one."""
    epoch: int
    connected: bool
    slots: tuple[tuple[int, int], ...]
    """First and last slot of each range."""
    moving: tuple[str, ...]
    """The slots that come in or go out, as CLUSTER NODES writes them."""

    @classmethod
    def parse(cls, line: str) -> Self:
        """A line of CLUSTER NODES."""
        name, address, flags, master, _, _, epoch, link, *slots = line.split()
        ranges = [slot.partition("-") for slot in slots if not slot.startswith("[")]
        return cls(
            id=name,
            port=int(address.partition("@")[0].rpartition(":")[2]),
            flags=frozenset(flags.split(",")),
            master=master.strip("-"),
            epoch=int(epoch),
            connected=link == "connected",
            slots=tuple((int(first), int(last or first)) for first, _, last in ranges),
            moving=tuple(slot for slot in slots if slot.startswith("[")),
        )


def view(server: Node) -> list[Member]:
    """The cluster as this node sees it, itself first.

    Raises:
        redis.RedisError: it does not answer.
    """
    members = [Member.parse(line) for line in server.ask("CLUSTER", "NODES").splitlines()]
    return sorted(members, key=lambda member: "myself" not in member.flags)


class Clusters(Deployment):
    """A cluster: masters that share the slots, each with its replicas, if any. The servers agree among themselves."""

    topology = "cluster"

    def __init__(
        self, binary: str | None = None, masters: int = 3, replicas: int = 3, aof: Aof = "always", **options: object
    ) -> None:
        """Prepare it; `start` or ``with`` runs it.

        Args:
            binary: the server to run; see `find_server`.
            masters: how many; from three on they can replace one that is down by its replica.
            replicas: how many in all; the masters get them in turn.
            aof: when they flush their append-only files.
            options: further directives for each server: ``maxmemory="10mb"``, with ``_`` for ``-``.
        """
        super().__init__(nodes(masters + replicas, binary, aof, _OPTIONS | options, bus=True), masters=masters)

    @property
    def url(self) -> str:
        """The URL of all nodes."""
        return f"redis+cluster://{','.join(server.address for server in self.servers)}"

    def master_of(self, where: int | str = 0) -> Node:
        """The server that has the slot of a partition or key: of two that say so, who was elected last."""
        slot = key_slot((where if isinstance(where, str) else f"{{{where}}}").encode())
        found = []
        for server in self.servers:
            try:
                me = view(server)[0]
            except RedisError:
                continue
            if not me.master and any(first <= slot <= last for first, last in me.slots):
                found.append((me.epoch, server.port, server))
        if not found:
            raise UnsettledError(f"no server has slot {slot} now")
        return max(found)[-1]

    def reign(self) -> str:
        """Who has which slots."""
        return repr([member.slots for server in self.servers if not (member := view(server)[0]).master])

    def _join(self) -> None:
        masters, replicas = self.servers[: self.masters], self.servers[self.masters :]
        for number, server in enumerate(self.servers):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)  # else they would need time to agree on that
        for number, master in enumerate(masters):
            first, end = (REDIS_CLUSTER_HASH_SLOTS * (number + i) // self.masters for i in (0, 1))
            master.ask("CLUSTER", "ADDSLOTS", *range(first, end))
        for number, server in enumerate(self.servers):  # each meets each: gossip alone takes seconds
            for other in self.servers[:number]:
                server.ask("CLUSTER", "MEET", HOST, other.port, other.bus_port)
        await_none(self._unacquainted, self.start_timeout)
        for number, replica in enumerate(replicas):
            replica.ask("CLUSTER", "REPLICATE", view(masters[number % self.masters])[0].id)

    def _unacquainted(self) -> str | None:
        for server in self.servers:
            members = view(server)
            known = sum(member.connected and "handshake" not in member.flags for member in members)
            if known != len(self.servers):
                return f"{server} knows {known} nodes"
        return None

    def _problem(self) -> str | None:
        views = {server.port: view(server) for server in self.servers}
        for server in self.servers:
            state = fields(server.ask("CLUSTER", "INFO"))
            if state["cluster_state"] != "ok":
                return f"{server} says that the cluster's state is {state['cluster_state']}"
            for member in views[server.port]:
                if not member.connected or not member.flags <= {"myself", "master", "slave"}:
                    return f"{server} sees node {member.port} as {', '.join(sorted(member.flags))}"
                if member.moving:
                    return f"{server} moves slots: {member.moving[0]}"
        if len({frozenset((each.id, each.master, each.slots) for each in seen) for seen in views.values()}) > 1:
            return "the nodes do not agree who has which slots"
        me = {server.port: views[server.port][0] for server in self.servers}
        for master in self.servers:
            if not me[master.port].master:
                replicas = [server for server in self.servers if me[server.port].master == me[master.port].id]
                if problem := lagging(master, replicas, len(replicas)):
                    return problem
        return None
