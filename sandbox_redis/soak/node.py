"""One server of a deployment, and what all deployments have in common. What it takes to make several servers one
deployment is not here, but in ``deployment.py``; no store is known here either.
"""

from __future__ import annotations

import random
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar, Final, Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from sandbox_redis.errors import SandboxError
from sandbox_redis.server import EmbeddedServer

HOST: Final = "127.0.0.1"
Aof = Literal["always", "everysec", "no"]
"""When a server flushes its append-only file; `no` for a server that has none, and so is empty after a restart."""

# Outgoing connections get their ports from 32768 up (Linux) or from 49152 up (macOS). A server that is restarted on a
# port from there may find it taken; and who knocks there in the meantime, often enough, is connected to himself.
_PORTS: Final = range(10000, 32768)
_QUICK: Final = {
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "repl-timeout": "5",
    "shutdown-timeout": "0",
}
_ASK_TIMEOUT: Final = 2.0  # seconds until a server that does not answer counts as one that is not there
_LOADING: Final = 60.0  # seconds for a server to load its append-only file
_POLL: Final = 0.02  # seconds between two looks at a deployment


class UnsettledError(SandboxError):
    """A deployment did not become healthy in time."""


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, and that no outgoing connection gets."""
    while True:
        port = random.choice(_PORTS)
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        return port


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


class Node(EmbeddedServer):
    """A server that has a configuration file, as deployed ones have: who changes its role can make it last.

    Its directory is temporary, also where it keeps an append-only file there.
    """

    def __init__(
        self, binary: str | None, aof: Aof, options: dict[str, str], *, sentinel: str = "", bus: bool = False
    ) -> None:
        """Prepare a server on a free port.

        Args:
            binary: the server to run; see `find_server`.
            aof: when it flushes its append-only file.
            options: further directives of its configuration; those of the command line win over the file.
            sentinel: for a sentinel, what its file begins with.
            bus: whether it is a node of a cluster, which needs a second port.
        """
        persistence = {"appendonly": "no"} if aof == "no" else {"appendonly": "yes", "appendfsync": aof}
        self.bus_port = free_port() if bus else 0
        """Where it talks with the other nodes of its cluster."""
        if bus:  # by default 10,000 higher, where an outgoing connection may be
            options = {"cluster-port": str(self.bus_port)} | options
        super().__init__(port=free_port(), binary=binary, options={} if sentinel else persistence | options)
        self.aof = aof
        self._sentinel = bool(sentinel)
        self.config = self.data / "server.conf"
        """Its configuration file, which CONFIG REWRITE and sentinels write."""
        self.config.write_text(sentinel)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address}, pid {self.pid})"

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    @property
    def command(self) -> list[str]:
        """The command line of the server."""
        binary, *words = super().command
        mode = ["--sentinel"] if self._sentinel else []
        # A write beyond a limit of its files is to fail, as on a full disk, and not to end it by a signal.
        return ["/bin/sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", binary, str(self.config), *mode, *words]

    @property
    def running(self) -> bool:
        """Whether its process is there; it may be frozen."""
        process = self._process  # another thread may stop it
        return process is not None and process.poll() is None

    def follow(self, master: Node) -> None:
        """Make it a replica, also after a restart.

        Raises:
            redis.RedisError: it refused, or did not answer.
        """
        self.ask("REPLICAOF", HOST, master.port)
        self.ask("CONFIG", "REWRITE")

    def client(self) -> redis.Redis:
        """A plain client of this very server, which repeats nothing. Close it."""
        return redis.Redis(host=HOST, port=self.port or 0, decode_responses=True, retry=Retry(NoBackoff(), 0))

    def ask(self, *command: Any, timeout: float = _ASK_TIMEOUT) -> Any:
        """One command over a connection of its own, and the reply as it came.

        Args:
            command: its words.
            timeout: seconds until it must have answered.

        Raises:
            redis.RedisError: it refused, or did not answer.
        """
        connection: Any = redis.Connection(  # type: ignore[no-untyped-call]
            host=HOST,
            port=self.port or 0,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        try:
            connection.connect()
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO, each field as text.

        Raises:
            redis.RedisError: it refused, or did not answer.
        """
        return fields(self.ask("INFO", section))


def nodes(count: int, binary: str | None, aof: Aof, options: dict[str, object], *, bus: bool = False) -> list[Node]:
    """So many servers; `options` are directives, with ``_`` for ``-``."""
    given = {name.replace("_", "-"): str(value) for name, value in options.items()}
    return [Node(binary, aof, _QUICK | given, bus=bus) for _ in range(count)]


def fields(text: str) -> dict[str, str]:
    """What INFO and CLUSTER INFO say."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


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
            return self._problem()
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


def lagging(master: Node, replicas: list[Node], expected: int) -> str | None:
    """What a server lacks of `expected` replicas that have all that it has."""
    if len(replicas) < expected:
        return f"{master} has {len(replicas)} replicas, not {expected}"
    offset = int(master.info("replication")["master_repl_offset"])
    for replica in replicas:
        said = replica.info("replication")
        if said["master_link_status"] != "up":
            return f"{replica} is not connected to {master}"
        if (at := int(said["slave_repl_offset"])) < offset:
            return f"{replica} is {offset - at} bytes behind {master}"
    return None
