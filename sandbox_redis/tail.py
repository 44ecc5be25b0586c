"""One question to the server at a time, whose answer is looked for without waiting: how a mirror hears of events
between two reads, in about a microsecond when there is nothing. It knows the socket, and nothing of what it carries.
"""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import hiredis
from redis.exceptions import ResponseError

from sandbox_redis.connect import FAKEREDIS, lost, pack, refusal
from sandbox_redis.lane import Lane, Leased
from sandbox_redis.wire import Command

_NOT_YET = (BlockingIOError, ssl.SSLWantReadError)
_POLLED = 0.01  # seconds
_SIZE = 1 << 16


class Tail:
    """A connection with one packet under way. For one thread at a time, but to wait."""

    blocks = True
    """Whether the server may wait before it answers."""

    def __init__(self, lane: Lane, leased: Leased) -> None:
        self._lane = lane
        self._leased = leased
        self._socket = leased.connection._sock  # noqa: SLF001 - redis-py reads with waiting only
        self._socket.settimeout(0)
        self._reader = hiredis.Reader(protocolError=ConnectionError, replyError=ReplyError)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        self.ready = partial(poll.poll, 0)
        """Whether there is something to receive."""
        self._missing = 0
        self._replies: list[Any] = []

    def fileno(self) -> int:
        """For select."""
        number: int = self._socket.fileno()
        return number

    def wait(self, seconds: float) -> None:
        """Wait for something to receive; any number of threads may."""
        poll = select.poll()
        with suppress(ValueError):  # another thread has closed it
            poll.register(self._socket, select.POLLIN)
            poll.poll(seconds * 1000)

    def send(self, commands: Sequence[Command]) -> None:
        """Send the next packet; the one before has been answered.

        Raises:
            Lost: the connection failed.
        """
        self._replies, self._missing = [], len(commands)
        try:
            self._socket.sendall(pack(commands)[0])
        except OSError as error:
            raise lost(self._lane.address, error, None) from None

    def receive(self) -> list[Any] | None:
        """The replies to the packet, errors as `ServerError`; None when they are not all there yet.

        Raises:
            Lost: the connection failed.
        """
        try:
            while self._missing:
                try:
                    data = self._socket.recv(_SIZE)
                except _NOT_YET:
                    return None
                if not data:
                    raise ConnectionError("the server closed the connection")
                self._reader.feed(data)
                while self._missing and (reply := self._reader.gets()) is not False:
                    self._missing -= 1
                    self._replies.append(refusal(reply) if isinstance(reply, ReplyError) else reply)
        except OSError as error:
            raise lost(self._lane.address, error, None) from None
        return self._replies

    def close(self) -> None:
        """Close the connection."""
        self._leased.connection.disconnect()


class ReplyError(ResponseError):
    """An error reply, as hiredis hands it out."""


class PolledTail:
    """The same on fakeredis, which has no socket: asks anew each time."""

    blocks = False

    def __init__(self, lane: Lane, leased: Leased) -> None:
        self._lane = lane
        self._leased = leased
        self._commands: Sequence[Command] = ()

    def ready(self) -> bool:
        """As `Tail.ready`."""
        return True

    def wait(self, seconds: float) -> None:
        """As `Tail.wait`."""
        time.sleep(min(seconds, _POLLED))

    def fileno(self) -> int:
        """As `Tail.fileno`."""
        return -1

    def send(self, commands: Sequence[Command]) -> None:
        """As `Tail.send`."""
        self._commands = commands

    def receive(self) -> list[Any] | None:
        """As `Tail.receive`."""
        return self._lane.exchange(self._leased, self._commands, 1.0)

    def close(self) -> None:
        """As `Tail.close`."""
        self._leased.connection.disconnect()


def tail(lane: Lane, leased: Leased) -> Tail | PolledTail:
    """Follow on a connection that is there."""
    return PolledTail(lane, leased) if lane.address == FAKEREDIS else Tail(lane, leased)
