"""Connections to one Redis server for threads: leases one, sends one packet, reads its replies. It knows nothing of
what it carries, and repeats nothing; which server it is to be stands in ``lane.py``.
"""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import RedisError

from sandbox_redis.connect import Endpoint, fence, lost, unsent
from sandbox_redis.replies import NOT_YET, answer, at_hand, pack
from sandbox_redis.wire import Command, Unsent

IDLE_MAX: Final = 0.1  # seconds that a connection may idle before it is looked at (2 us) when it is used again


class Pool:
    """Connections to one server, each used by one thread at a time. Safe to share between threads, and after a fork."""

    def __init__(self, endpoint: Endpoint, on_loss: Callable[[], None], *, patient: bool) -> None:
        self.endpoint = endpoint
        self.address = endpoint.address
        self._idle: deque[Leased] = deque()
        self.patient = patient
        """Whether it may be of use to wait where nobody listens."""
        self._on_loss = on_loss
        _pools.add(self)

    def lease(self) -> Leased:
        """A connection for one user at a time."""
        try:
            leased = self._idle.pop()
        except IndexError:
            return self.own()
        if time.monotonic() - leased.idle_since > IDLE_MAX and leased.connection.is_connected:
            # What is sent into a connection that was closed long ago would be a lost write, to be looked for.
            try:
                closed = leased.connection.can_read(0)
            except (RedisError, OSError):
                closed = True
            if closed:
                leased.connection.disconnect()
                self._on_loss()
        return leased

    def own(self) -> Leased:
        """A new connection, never given back: it will be blocked for long."""
        return Leased(self, self.endpoint.connection())

    def give_back(self, leased: Leased) -> None:
        """End a lease; what the connection was asked has been answered."""
        leased.idle_since = time.monotonic()
        self._idle.append(leased)

    def exchange(self, leased: Leased, commands: Sequence[Command], timeout: float) -> list[Any]:
        """Send commands in one packet and read their replies.

        Raises:
            Unsent, Lost: the connection failed, and is closed.
        """
        self.send(leased, commands, timeout)
        return self.receive(leased, commands)

    def send(self, leased: Leased, commands: Sequence[Command], timeout: float) -> None:
        """Send commands in one packet; `timeout` is for their replies, too. Raises as `exchange`."""
        connection = leased.connection
        self.connect(leased, timeout)
        leased.set_timeout(timeout)
        try:
            connection.send_packed_command(pack(commands), check_health=False)
        except (RedisError, OSError) as error:
            connection.disconnect()
            self._on_loss()
            raise lost(self.address, error, leased.fence) from None

    def receive(self, leased: Leased, commands: Sequence[Command]) -> list[Any]:
        """Read the replies to commands that were sent, errors as `ServerError`. Raises as `exchange`."""
        connection = leased.connection
        try:
            return [_reply(connection, command) for command in commands]
        except (RedisError, OSError) as error:
            connection.disconnect()
            self._on_loss()
            raise lost(self.address, error, leased.fence) from None
        except BaseException:
            connection.disconnect()
            raise

    def connect(self, leased: Leased, timeout: float) -> None:
        """Connect, if it is not. Raises as `exchange`."""
        connection = leased.connection
        if connection.is_connected:
            return
        connection.socket_connect_timeout = connection.socket_timeout = leased.timeout = timeout
        greeting = self.endpoint.greeting
        try:
            connection.connect()
            connection.send_packed_command(pack(greeting), check_health=False)
            replies = [_reply(connection, command) for command in greeting if connection.is_connected]
            leased.fence = fence(self.endpoint, replies)
        except (RedisError, OSError) as error:
            connection.disconnect()
            self._on_loss()
            raise unsent(self.address, error, patient=self.patient) from None
        except Unsent:
            connection.disconnect()
            self._on_loss()
            raise
        self.patient = True

    def close(self) -> None:
        """Close the connections that are not leased."""
        while self._idle:
            self._idle.pop().connection.disconnect()

    def forget(self) -> None:
        """Leave the connections to the parent process: after a fork both would read each other's replies."""
        self._idle = deque()


def _reply(connection: Any, command: Command) -> Any:
    """The reply to one command, an error reply as `ServerError`."""
    reply = at_hand(connection)
    if reply is NOT_YET:
        try:
            reply = connection.read_response(disable_decoding=True)
        except RedisError as error:
            reply = error
    return answer(command, reply)


class Leased:
    """One connection, the timeout that its socket has, and how to make the server drop it."""

    __slots__ = ("connection", "fence", "idle_since", "pool", "timeout")

    def __init__(self, pool: Pool, connection: Any) -> None:
        self.pool = pool
        self.connection = connection
        self.timeout = 0.0
        self.idle_since = 0.0
        self.fence: Command | None = None

    def interrupt(self) -> None:
        """End what another thread does with it, at once."""
        with suppress(AttributeError, OSError, ValueError):  # it is not connected, or closed already, or fakeredis
            if self.connection.pid == os.getpid():  # in the child of a fork it is the parent's
                self.connection._sock.shutdown(socket.SHUT_RDWR)  # noqa: SLF001 - there is no public way to its socket

    def set_timeout(self, timeout: float) -> None:
        """Give the socket this timeout, for writing and reading."""
        if timeout != self.timeout:
            self.timeout = timeout
            with suppress(AttributeError):  # fakeredis, whose socket has no timeout
                self.connection.update_current_socket_timeout(timeout)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in tuple(_pools):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
