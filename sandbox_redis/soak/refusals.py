"""Servers that are there, and refuse: they forget scripts, close connections, let writes wait, have no room."""

from __future__ import annotations

import random
import resource
import sys
from typing import Final

from sandbox_redis.soak.fault import Fault, fails_over
from sandbox_redis.soak.node import Node
from sandbox_redis.soak.topology import Deployment, await_none

_RETRIED: Final = 10.0  # seconds until a server has tried again to write; it does each second
_FILLER: Final = 64 << 10  # bytes; more than a server's other files have, whose writing must not fail


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

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """What sentinels publish waits as well, and their PING behind it: they let a replica take over."""
        return deployment.topology == "sentinel" and fails_over(deployment)

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


class _Settings(Fault):
    """What is caused by settings, which are put back."""

    def __init__(self, deployment: Deployment, chance: random.Random, *, partitions: int = 16) -> None:
        super().__init__(deployment, chance, partitions=partitions)
        self._before: list[tuple[Node, str, str]] = []

    def _set(self, server: Node, name: str, value: object) -> None:
        self._before.append((server, name, server.ask("CONFIG", "GET", name)[1]))
        server.ask("CONFIG", "SET", name, value)

    def mend(self) -> None:
        """Put them back."""
        for server, name, value in self._before:
            if server.running:  # a new process has not got them
                server.ask("CONFIG", "SET", name, value)
        super().mend()


class OutOfMemory(_Settings):
    """The masters have more data than maxmemory allows, and refuse writes with OOM."""

    name = "out-of-memory"

    def cause(self) -> str:
        """Set maxmemory to one byte, everywhere, so that no failover ends it."""
        for server in self.deployment.servers:
            self._set(server, "maxmemory", 1)
        return "all servers are out of memory"


class DiskFull(_Settings):
    """The append-only file cannot grow, as on a full disk: a limit of the process makes its writes fail, and the server
    refuses writes with MISCONF. Under `always` it would end itself instead, so for that time it flushes each second.
    """

    name = "disk-full"
    _victim: Node | None = None

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """On Linux, where another process can be limited, for servers that write."""
        return super().possible(deployment) and sys.platform == "linux" and deployment.servers[0].aof != "no"

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """To PING it answers MISCONF as well, which to sentinels is no answer: they let a replica take over."""
        return deployment.topology == "sentinel" and fails_over(deployment)

    def cause(self) -> str:
        """Fill the file to more than other files have, and let it not grow. The next write is the last one."""
        server = self._victim = self.master()
        self._set(server, "appendfsync", "everysec")
        self._set(server, "auto-aof-rewrite-percentage", 0)  # a new file would have room
        # Nobody sees what fills it: a key that is gone in the same transaction.
        with server.client() as client, client.pipeline(transaction=True) as pipeline:
            key = f"{{{self.partition}}}:filler"
            pipeline.set(key, "-" * _FILLER).delete(key).execute()
        size = max(file.stat().st_size for file in (server.data / "appendonlydir").iterdir())
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return f"the disk of {server.address} is full"

    def mend(self) -> None:
        """Make room; the server notices within a second."""
        if (server := self._victim) is not None and server.running:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await_none(lambda: _failed_write(server), _RETRIED)
        super().mend()


def _failed_write(server: Node) -> str | None:
    status = server.info("persistence")["aof_last_write_status"]
    return None if status == "ok" else f"{server} cannot write: {status}"
