"""The three topologies, each of real servers on this host: a server with its replicas, the same watched by sentinels,
and a cluster. What happens to them is caused elsewhere, in ``faults.py``.

The servers are those of Redis 7.0 or later, or Valkey. Their timeouts are much shorter than deployed ones: what takes
half a minute there is over here in two or three seconds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Final

from redis.exceptions import RedisError

from sandbox_redis.soak.clusters import Clusters
from sandbox_redis.soak.node import HOST, Aof, Node, nodes
from sandbox_redis.soak.topology import Deployment, UnsettledError, await_none, lagging

__all__ = ["Clusters", "Sentinels", "Standalone"]

SERVICE: Final = "sandbox"
"""What the sentinels call the deployment."""
_SENTINEL: Final = f"""\
sentinel monitor {SERVICE} {{host}} {{port}} {{quorum}}
sentinel down-after-milliseconds {SERVICE} 800
sentinel failover-timeout {SERVICE} 1500
sentinel parallel-syncs {SERVICE} 1
"""
# Sentinels read INFO each 10 s, and only after four greetings they make a server that was the master a replica again.
# They ask a new master after a second whether it is there, when by the above it counts as down already: it would be
# replaced at once, with the loss of what it was told (measured). But a replica that has not answered for five of those
# periods is not chosen. When they elect nobody, as after a freeze that was too short or when each votes for itself,
# they wait for twice the failover-timeout, also when the master is lost meanwhile. And when they were not run for two
# seconds, on a busy machine, they do nothing for TILT-PERIOD, which is 30 s.
_PERIODS: Final = {
    "PING-PERIOD": 300,
    "INFO-PERIOD": 1000,
    "PUBLISH-PERIOD": 500,
    "ASK-PERIOD": 500,
    "ELECTION-TIMEOUT": 1000,
    "TILT-PERIOD": 2000,
}


class Standalone(Deployment):
    """One server, with replicas or without. Nobody but a fault makes another one the master."""

    topology = "standalone"

    def __init__(self, binary: str | None = None, replicas: int = 0, aof: Aof = "always", **options: object) -> None:
        """Prepare it; `start` or ``with`` runs it.

        Args:
            binary: the server to run; see `find_server`.
            replicas: how many.
            aof: when they flush their append-only files.
            options: further directives for each server: ``maxmemory="10mb"``, with ``_`` for ``-``.
        """
        super().__init__(nodes(1 + replicas, binary, aof, options))

    @property
    def url(self) -> str:
        """The URL of the server that takes writes, but for the time of a failover."""
        return self.servers[0].url

    def master_of(self, where: int | str = 0) -> Node:
        """The server that takes writes now: the one that most of the others follow."""
        return _master(self.servers)

    def _join(self) -> None:
        for replica in self.servers[1:]:
            replica.follow(self.servers[0])

    def _problem(self) -> str | None:
        master = self.master_of()
        return lagging(master, self.replicas_of(master), len(self.servers) - 1)


def _master(servers: list[Node]) -> Node:
    """Among those that call themselves master, the one that most follow."""
    masters, followed = [], Counter[int | None]()
    for server in servers:
        try:
            role = server.ask("ROLE")
        except RedisError:
            continue
        if role[0] == "master":
            masters.append(server)
        else:
            followed[int(role[2])] += 1
    if not masters:
        raise UnsettledError("no server is a master now")
    return max(masters, key=lambda server: followed[server.port])


class Sentinels(Deployment):
    """A server and its replicas, and sentinels that make a replica the master when it is down."""

    topology = "sentinel"

    def __init__(
        self,
        binary: str | None = None,
        replicas: int = 2,
        sentinels: int = 3,
        aof: Aof = "always",
        **options: object,
    ) -> None:
        """Prepare it; `start` or ``with`` runs it.

        Args:
            binary: the server to run, also as the sentinels; see `find_server`.
            replicas: how many.
            sentinels: how many; most of them must agree.
            aof: when the servers flush their append-only files.
            options: further directives for each server: ``maxmemory="10mb"``, with ``_`` for ``-``.
        """
        servers = nodes(1 + replicas, binary, aof, options)
        config = _SENTINEL.format(host=HOST, port=servers[0].port, quorum=sentinels // 2 + 1)
        super().__init__(servers, sentinels=[Node(binary, "no", {}, sentinel=config) for _ in range(sentinels)])

    @property
    def url(self) -> str:
        """The URL of the sentinels."""
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/{SERVICE}/0"

    def master_of(self, where: int | str = 0) -> Node:
        """The server that most sentinels call the master."""
        votes = Counter[str]()
        for sentinel in self.sentinels:
            try:
                votes[sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1]] += 1
            except RedisError:
                continue
        for port, _ in votes.most_common(1):
            return next(server for server in self.servers if server.port == int(port))
        raise UnsettledError("no sentinel answers")

    def reign(self) -> str:
        """The number of the last failover."""
        return str(max(_pairs(each.ask("SENTINEL", "MASTER", SERVICE))["config-epoch"] for each in self.sentinels))

    def run(self, server: Node) -> None:
        """Run a server or sentinel that was stopped; a sentinel becomes quicker than those of real life."""
        super().run(server)
        if server in self.sentinels:
            server.ask("SENTINEL", "DEBUG", *itertools.chain.from_iterable(_PERIODS.items()))

    def _join(self) -> None:
        for replica in self.servers[1:]:
            replica.follow(self.servers[0])
        await_none(
            lambda: lagging(self.servers[0], self.replicas_of(self.servers[0]), len(self.servers) - 1),
            self.start_timeout,
        )
        for sentinel in self.sentinels:
            self.run(sentinel)

    def _problem(self) -> str | None:
        masters = set()
        for sentinel in self.sentinels:
            said = _pairs(sentinel.ask("SENTINEL", "MASTER", SERVICE))
            masters.add(said["port"])
            known = (said["flags"], int(said["num-slaves"]), int(said["num-other-sentinels"]))
            wanted = ("master", len(self.servers) - 1, len(self.sentinels) - 1)
            if known != wanted:
                return f"sentinel {sentinel.address} knows {known}, not {wanted}"
            for replica in map(_pairs, sentinel.ask("SENTINEL", "REPLICAS", SERVICE)):
                if replica["flags"] != "slave" or replica["master-port"] != said["port"]:
                    return f"sentinel {sentinel.address} says that {replica['name']} is {replica['flags']}"
        if len(masters) > 1:
            return f"sentinels do not agree: {', '.join(sorted(masters))}"
        master = self.master_of()
        if (role := master.ask("ROLE")[0]) != "master":
            return f"{master} is {role}"
        return lagging(master, self.replicas_of(master), len(self.servers) - 1)


def _pairs(reply: list[str]) -> dict[str, str]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
