"""One server of a deployment, and questions to it. Of the others, and of stores, nothing is known here."""

from __future__ import annotations

import random
import socket
from typing import Any, Final, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

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


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, and that no outgoing connection gets."""
    while True:
        port = random.choice(_PORTS)
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        return port


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
