"""A proxy between client and server that loses what it is told to lose.

It knows where a packet ends and how many replies belong to it, so that a connection can be cut exactly behind or
before what the server executed. It numbers packets from 0; those of a handshake do not count. For one server: the
clients of sentinels and clusters are told the servers' own addresses.
"""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from typing import Any, Literal, Self

import hiredis

from sandbox_redis.server import EmbeddedServer

How = Literal[
    "after",  # the server executes the packet; its replies are dropped and the connection is cut
    "before",  # the server gets nothing; the connection is cut
    "half",  # the server gets the first half; the connection is cut
    "torn",  # the server executes the packet; the client gets half of the replies; the connection is cut
    "late",  # the packet is kept until `deliver`; the connection is cut on the client's side only
    "swallow",  # the server gets nothing, and the client hears nothing
    "pass",  # all goes well, but `then` is called
]
CUTS: tuple[How, ...] = ("after", "before", "half", "torn")
HANDSHAKE = {b"AUTH", b"CLIENT", b"HELLO", b"SELECT"}

Commands = list[list[bytes]]


class Proxy:
    """Listens on 127.0.0.1, leads to `server`. A context manager."""

    def __init__(self, server: EmbeddedServer, *, record: bool = True) -> None:
        """Listen on a free port.

        Args:
            server: where it leads; it may be stopped and started again.
            record: whether to keep all packets, see `packets`; not for a long run.
        """
        self._server = server
        self._record = record
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._accepting = threading.Thread(target=self._accept)
        self._kept: list[tuple[socket.socket, bytes, int]] = []
        self.delay = 0.0
        """Seconds by which each reply is late, as on a slow network."""
        self.trickle = 0.0
        """Seconds between any two of the hundred parts in which each reply comes."""
        self.blackhole = False
        """Whether nothing gets through, in either direction, also on new connections. A connection where something got
        lost stays mute afterwards: the client finds out by its timeout.
        """
        self.connected: Callable[[], Any] = lambda: None
        """Called for each new connection."""
        self.fault()
        self._accepting.start()

    @property
    def url(self) -> str:
        """The URL that a store connects to."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def fault(
        self,
        how: How | None = None,
        at: Container[int] = (),
        *,
        then: Callable[[], Any] = lambda: None,
    ) -> None:
        """From now on, do `how` to the packets whose numbers are in `at`; numbers begin anew.

        `then` is called when the server is done with such a packet, and before the client can notice.
        """
        with self._lock:
            self.packets: list[Commands] = []
            """What came since, but for handshakes."""
            self.fired = 0
            """How many of those were hit."""
            self._number = 0
            self._choose: Callable[[int], How | None] = lambda number: how if number in at else None
            self._then = then

    def weather(self, chance: random.Random, likely: Mapping[How, float]) -> None:
        """From now on, do each of these to a packet with its probability: ``{"after": 0.01, "before": 0.01}``.

        Args:
            chance: what decides; the same seed meets the same packets in the same way.
            likely: probabilities, from 0 to 1 in all.
        """
        hows: list[How | None] = [*likely, None]
        weights = [*likely.values(), 1 - sum(likely.values())]
        self.fault()
        with self._lock:
            self._choose = lambda _: chance.choices(hows, weights)[0]

    def deliver(self) -> list[Any]:
        """Give the server the late packets now, and return its replies."""
        replies: list[Any] = []
        while self._kept:
            server, data, count = self._kept.pop()
            with server, suppress(ConnectionError):
                server.sendall(data)
                replies += self._replies(server, count)[0]
        return replies

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.add(thread)
            self._sockets.add(client)
            thread.start()
            self.connected()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX if self._server.port is None else socket.AF_INET)
        self._sockets.add(server)
        with client, suppress(OSError):  # either side may end the connection at any time
            server.connect(
                str(self._server.socket_path) if self._server.port is None else ("127.0.0.1", self._server.port)
            )
            while self._pass_on(client, server):
                pass
        self._sockets.discard(client)
        if all(kept is not server for kept, _, _ in self._kept):
            self._sockets.discard(server)
            server.close()
        self._threads.discard(threading.current_thread())

    def _pass_on(self, client: socket.socket, server: socket.socket) -> bool:
        """One packet and its replies; whether there may be more."""
        data, commands = self._packet(client)
        if not data:
            return False
        how = self._hit(commands)
        if how == "late":
            self._kept.append((server, data, len(commands)))
            self._then()
            return False
        if how == "swallow" or self.blackhole:
            client.recv(1)
            return False
        if how in ("before", "half"):
            if how == "half":
                server.sendall(data[: len(data) // 2])
                server.shutdown(socket.SHUT_WR)
                while server.recv(65536):  # until the server has noticed the end
                    pass
            self._then()
            return False
        server.sendall(data)
        if not self._answers(server, client):
            return False
        raw = self._replies(server, len(commands))[1]
        time.sleep(self.delay)
        if how is not None:
            self._then()
        if self.blackhole:
            client.recv(1)
            return False
        if how in (None, "pass"):
            part = -(-len(raw) // 100) if self.trickle else len(raw)
            for first in range(0, len(raw), part):
                time.sleep(self.trickle)
                client.sendall(raw[first : first + part])
            return True
        client.sendall(raw[: len(raw) // 2] if how == "torn" else b"")
        return False

    @staticmethod
    def _answers(server: socket.socket, client: socket.socket) -> bool:
        """Wait until the server answers; False when the client gives up before."""
        waiting = [server, client]
        while server not in (ready := select.select(waiting, [], [])[0]):
            if not client.recv(1, socket.MSG_PEEK):
                return False
            waiting = [server]  # the client has sent more already
        return bool(ready)

    def _hit(self, commands: Commands) -> How | None:
        if commands[0][0].upper() in HANDSHAKE:
            return None
        with self._lock:
            how = self._choose(self._number)
            self._number += 1
            if self._record:
                self.packets.append(commands)
            self.fired += how is not None
            return how

    @staticmethod
    def _packet(client: socket.socket) -> tuple[bytes, Commands]:
        """What the client sent at once; empty when it closed."""
        commands: Commands = []
        reader, data, complete = hiredis.Reader(), b"", 0
        while not data or complete < len(data):
            if not (chunk := client.recv(1 << 20)):
                return b"", []
            data += chunk
            reader.feed(chunk)
            while (command := reader.gets()) is not False:
                commands.append(command)
                complete += len(hiredis.pack_command(tuple(command)))
        return data, commands

    @staticmethod
    def _replies(server: socket.socket, count: int) -> tuple[list[Any], bytes]:
        """So many replies, and their bytes."""
        replies: list[Any] = []
        reader, data = hiredis.Reader(), b""
        while len(replies) < count:
            if not (chunk := server.recv(1 << 20)):
                raise ConnectionResetError
            data += chunk
            reader.feed(chunk)
            while (reply := reader.gets()) is not False:
                replies.append(reply)
        return replies, data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for each in tuple(self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in tuple(self._threads):
            thread.join()
        for each in self._sockets:
            each.close()
