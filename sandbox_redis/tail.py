"""Reads from a server without waiting: how a mirror hears of events between two reads, in about a microsecond when
there is nothing. It knows the socket, and nothing of what it carries. Here is one question at a time; many questions to
several servers stand in ``tap.py``.
"""

from __future__ import annotations

import math
import select
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import hiredis
from redis.exceptions import ResponseError

from sandbox_redis.connect import lost
from sandbox_redis.pool import Leased
from sandbox_redis.replies import pack, refusal
from sandbox_redis.source import FAKEREDIS
from sandbox_redis.wire import Question

_NOT_YET = (BlockingIOError, ssl.SSLWantReadError)
_POLLED = 0.01  # seconds
_SIZE = 1 << 16
_SEND_MAX: Final = 5.0  # seconds to send what does not fit into the socket's buffer


class ReplyError(ResponseError):
    """An error reply, as hiredis hands it out."""


def reader() -> Any:
    """What takes replies apart, errors as `ReplyError`."""
    return hiredis.Reader(protocolError=ConnectionError, replyError=ReplyError)


class Raw:
    """A connection's socket, taken over from redis-py, which reads with waiting only."""

    def __init__(self, leased: Leased) -> None:
        self._leased = leased
        self._socket = leased.connection._sock  # noqa: SLF001 - there is no public way to it
        self._socket.settimeout(0)
        self._reader = reader()

    def fileno(self) -> int:
        """For poll."""
        number: int = self._socket.fileno()
        return number

    def send(self, packet: bytes) -> None:
        """Send a packet; raises `Lost`."""
        try:
            if (sent := self._socket.send(packet)) < len(packet):
                self._socket.settimeout(_SEND_MAX)
                self._socket.sendall(packet[sent:])
                self._socket.settimeout(0)
        except OSError as error:
            raise lost(self._leased.pool.address, error, None) from None

    def read(self) -> list[Any]:
        """The replies that have come in, errors as `ServerError`; raises `Lost`."""
        replies: list[Any] = []
        try:
            while True:
                while (reply := self._reader.gets()) is not False:
                    replies.append(refusal(reply) if isinstance(reply, ReplyError) else reply)
                try:
                    data = self._socket.recv(_SIZE)
                except _NOT_YET:
                    return replies
                if not data:
                    raise ConnectionError("the server closed the connection")
                self._reader.feed(data)
        except OSError as error:
            raise lost(self._leased.pool.address, error, None) from None

    def close(self) -> None:
        """Close the connection."""
        self._leased.connection.disconnect()


class Tail:
    """A connection with one packet under way. For one thread at a time, but to wait."""

    blocks = True
    """Whether the server may wait before it answers."""

    def __init__(self, leased: Leased) -> None:
        self._raw = Raw(leased)
        poll = select.poll()
        poll.register(self._raw, select.POLLIN)
        self.ready = partial(poll.poll, 0)
        """Whether there is something to receive."""
        self.sent = 0.0
        """When something was asked at last."""
        self._missing = 0
        self._replies: list[Any] = []

    def filenos(self) -> list[int]:
        """For poll."""
        return [self._raw.fileno()]

    def wait(self, seconds: float) -> None:
        """Wait for something to receive; any number of threads may."""
        wait(self.filenos(), seconds)

    def patience(self) -> float:
        """Seconds after which `receive` has something to do though nothing has come."""
        return math.inf

    def ask(self, questions: Sequence[Question], heartbeat: float) -> None:
        """Send the next packet; the one before has been answered. There is one question, and it says how long the
        server may wait.

        Raises:
            Lost: the connection failed.
        """
        ((_, commands),) = questions
        self._replies, self._missing = [], len(commands)
        self.sent = time.monotonic()
        self._raw.send(pack(commands)[0])

    def receive(self) -> list[list[Any] | None] | None:
        """The answers, each with the replies to its question, errors as `ServerError`; None when they are not all there
        yet.

        Raises:
            Lost: the connection failed.
        """
        self._replies += self._raw.read()
        return [self._replies] if len(self._replies) >= self._missing else None

    def close(self) -> None:
        """Close the connection."""
        self._raw.close()


class PolledTail:
    """The same on fakeredis, which has no socket: asks anew each time."""

    blocks = False

    def __init__(self, leased: Leased) -> None:
        self._leased = leased
        self._questions: Sequence[Question] = ()
        self.sent = 0.0

    def ready(self) -> bool:
        """As `Tail.ready`."""
        return True

    def wait(self, seconds: float) -> None:
        """As `Tail.wait`."""
        time.sleep(min(seconds, _POLLED))

    def filenos(self) -> list[int]:
        """As `Tail.filenos`."""
        return []

    def patience(self) -> float:
        """As `Tail.patience`."""
        return math.inf

    def ask(self, questions: Sequence[Question], heartbeat: float) -> None:
        """As `Tail.ask`."""
        self.sent = time.monotonic()
        self._questions = questions

    def receive(self) -> list[list[Any] | None] | None:
        """As `Tail.receive`."""
        return [self._leased.pool.exchange(self._leased, commands, 1.0) for _, commands in self._questions]

    def close(self) -> None:
        """As `Tail.close`."""
        self._leased.connection.disconnect()


def wait(filenos: Sequence[int], seconds: float) -> None:
    """Wait until there is something to read; a closed one (-1) is passed over."""
    poll = select.poll()
    with suppress(ValueError):  # another thread has closed it
        for fileno in filenos:
            poll.register(fileno, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)


def tail(leased: Leased) -> Tail | PolledTail:
    """Follow on a connection that is there."""
    return PolledTail(leased) if leased.pool.address == FAKEREDIS else Tail(leased)
