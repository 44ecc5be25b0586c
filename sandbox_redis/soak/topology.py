"""What all deployments have in common, whatever their topology. How servers become one deployment is in
``deployment.py`` and ``clusters.py``.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import ClassVar, Final, Self

from redis.exceptions import RedisError

from sandbox_redis.errors import SandboxError
from sandbox_redis.soak.node import Node

_LOADING: Final = 60.0  # seconds for a server to load its append-only file
_POLL: Final = 0.02  # seconds between two looks at a deployment
_CATCH_UP: Final = 1.0  # seconds for a replica to have what its master had: under load it is always a little behind


class UnsettledError(SandboxError):
    """A deployment did not become healthy in time."""


def await_none(problem: Callable[[], str | None], timeout: float) -> None:
    """Wait until `problem` finds none.

    Args:
        problem: what is wrong, or None.
        timeout: in seconds.

    Raises:
        UnsettledError: there is still one, which it names.
    """
    until = time.monotonic() + timeout
    while (found := problem()) is not None:
        if time.monotonic() > until:
            raise UnsettledError(f"not settled in {timeout:g} s: {found}")
        time.sleep(_POLL)


class Deployment(ABC):
    """Servers that together serve one store, as a context manager: one face for all topologies."""

    topology: ClassVar[str]
    """What it is called: `standalone`, `sentinel` or `cluster`."""

    def __init__(self, servers: list[Node], *, masters: int = 1, sentinels: list[Node] | None = None) -> None:
        self.servers = servers
        """The servers that hold data, whatever their roles are now."""
        self.masters = masters
        """How many of them take writes."""
        self.sentinels = sentinels or []
        self.start_timeout = 30.0
        """Seconds until it must be healthy after its start."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL that a store connects to."""

    @abstractmethod
    def master_of(self, where: int | str = 0) -> Node:
        """The server that takes writes now.

        Args:
            where: of which partition, or which key; only in a cluster it makes a difference.

        Raises:
            UnsettledError: there is none now.
        """

    def reign(self) -> str:
        """What is another when another server has become a master.

        Raises:
            redis.RedisError: a server does not answer.
        """
        return ""

    def run(self, server: Node) -> None:
        """Run a server that was stopped; returns when it answers.

        Raises:
            ServerStartError: it did not start.
        """
        server.start(timeout=_LOADING)

    @abstractmethod
    def _join(self) -> None:
        """Make running servers one deployment; they hold nothing yet."""

    @abstractmethod
    def _problem(self) -> str | None:
        """What is not as it should be, given that all servers run. May raise errors of redis."""

    def replicas_of(self, master: Node) -> list[Node]:
        """Those that say now that they follow this server."""
        found = []
        for server in self.servers:
            if server is not master and server.running:
                role = server.ask("ROLE")
                if role[0] == "slave" and role[2] == master.port:
                    found.append(server)
        return found

    def problem(self) -> str | None:
        """What is wrong now: a server is down, a replica lags, they do not agree. None when all is well."""
        for server in self.servers + self.sentinels:
            if not server.running:
                return f"{server} does not run"
        try:
            return self._problem() or next(filter(None, map(_unwritten, self.servers)), None)
        except RedisError as error:
            return f"a server does not answer: {error}"
        except UnsettledError as error:
            return str(error)

    def settled(self, timeout: float = 30) -> Self:
        """Wait until everything is healthy: all servers run, their replicas have caught up, all agree.

        Args:
            timeout: in seconds.

        Raises:
            UnsettledError: it did not happen in time; the message says what is wrong.
        """
        await_none(self.problem, timeout)
        return self

    def start(self) -> Self:
        """Run all servers and make them one deployment; returns when it is healthy.

        Raises:
            ServerStartError: a server did not start.
            UnsettledError: they did not come together in time.
        """
        try:
            for server in self.servers:
                self.run(server)
            self._join()
            return self.settled(self.start_timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill all servers, and delete what they wrote."""
        with ExitStack() as stack:
            for server in self.servers + self.sentinels:
                stack.callback(server.close)
                stack.callback(server.stop, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _unwritten(server: Node) -> str | None:
    """What keeps a server from coming back with all that it has: a replica that was sent everything has to write its
    append-only file anew first. Until then it also refuses to end itself.
    """
    said = server.info("persistence")
    if "1" in (said["aof_rewrite_in_progress"], said["aof_rewrite_scheduled"]):
        return f"{server} writes its append-only file anew"
    return None


def lagging(master: Node, replicas: list[Node], expected: int) -> str | None:
    """What a server lacks of `expected` replicas that have all that it has."""
    if len(replicas) < expected:
        return f"{master} has {len(replicas)} replicas, not {expected}"
    offset = int(master.info("replication")["master_repl_offset"])
    for replica in replicas:
        said = replica.info("replication")
        if said["master_link_status"] != "up":
            return f"{replica} is not connected to {master}"
        until = time.monotonic() + _CATCH_UP
        while (at := int(said["slave_repl_offset"])) < offset:
            if time.monotonic() > until:
                return f"{replica} is {offset - at} bytes behind {master}"
            time.sleep(_POLL)
            said = replica.info("replication")
    return None
