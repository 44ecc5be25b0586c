"""Carries operations out for threads: sends what they ask to be sent, waits, and gives them the replies. What they do
stands elsewhere; connections stand in ``lane.py``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sandbox_redis.in_step import CHUNK
from sandbox_redis.wire import Closed, Failure, Lease, Op, Send, SendAll, Unsent

if TYPE_CHECKING:
    from sandbox_redis.lane import Lane, Leased

T = TypeVar("T")


class Line:
    """Keeps the connection of an operation for the next one, and can be closed by another thread at any time."""

    def __init__(self) -> None:
        self.held: Leased | None = None
        self.closed = threading.Event()

    def sleep(self, seconds: float) -> None:
        """Wait, but not when closed."""
        self.closed.wait(seconds)

    def check(self) -> None:
        """Raises `Closed` when it is."""
        if self.closed.is_set():
            raise Closed

    def close(self) -> None:
        """End what is under way, at once."""
        self.closed.set()
        if (held := self.held) is not None:
            held.interrupt()


def play(lane: Lane, op: Op[T], reply: Any = None, line: Line | None = None) -> T:
    """Carry an operation out to its end: the driver for threads. `reply` is for what it has already asked."""
    held = None if line is None else line.held
    try:
        while True:
            if line is not None:
                line.check()
            try:
                request = op.throw(reply) if isinstance(reply, Failure) else op.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if isinstance(request, Send):
                if request.lease is Lease.ANY or (request.lease is Lease.TAKE and held is None):
                    leased = lane.lease(request.key)
                elif request.lease is Lease.OWN:
                    leased = lane.own(request.key)
                elif held is not None:
                    leased, held = held, None
                else:
                    reply = Unsent(lane.address, "the connection of this transaction was lost")
                    continue
                if line is not None and request.lease is not Lease.ANY:
                    line.held = leased
                    line.check()  # who closes it sets the mark first, and then looks for the connection
                try:
                    reply = lane.exchange(leased, request.commands, request.timeout)
                except Failure as failure:
                    reply = failure
                    continue
                if request.lease in (Lease.TAKE, Lease.KEEP, Lease.OWN):
                    held = leased
                else:
                    lane.give_back(leased)
            elif isinstance(request, SendAll):
                _send_all(lane, request)
                reply = None
            else:
                if held is not None:
                    held.connection.disconnect()
                    held = None
                (line.sleep if line else time.sleep)(request.seconds)
                reply = None
    finally:
        if line is not None and not line.closed.is_set():
            line.held = held
        else:
            for left in (held, None if line is None else line.held):
                if left is not None:
                    left.connection.disconnect()  # it may still WATCH


class Ahead(Generic[T]):
    """An operation that has sent what it sends first; the server is at work on it until it is finished."""

    def __init__(self, lane: Lane, op: Op[T]) -> None:
        self._lane = lane
        self._op = op
        self._request = op.send(None)
        self._failure: Failure | None = None
        self._leased: Leased | None = None
        if isinstance(self._request, Send) and self._request.lease is Lease.ANY:
            leased = lane.lease(self._request.key)
            try:
                lane.send(leased, self._request.commands, self._request.timeout)
                self._leased = leased
            except Failure as failure:
                self._failure = failure

    def finish(self) -> T:
        """Carry it out to its end."""
        if self._leased is not None and isinstance(self._request, Send):
            leased, self._leased = self._leased, None
            try:
                reply: Any = self._lane.receive(leased, self._request.commands)
                self._lane.give_back(leased)
            except Failure as failure:
                reply = failure
        elif self._failure is not None:
            reply = self._failure
        else:
            reply = None
            if isinstance(self._request, SendAll):
                _send_all(self._lane, self._request)
        return play(self._lane, self._op, reply)

    def abandon(self) -> None:
        """Nobody wants it any more, unless it is finished."""
        if self._leased is not None:
            self._leased.connection.disconnect()


def _send_all(lane: Lane, request: SendAll) -> None:
    """One packet after the other on one connection, then all replies: the server is at work meanwhile."""
    leased: Leased | None = None
    sent: deque[Send] = deque()
    try:
        while chunk := list(islice(request.sends, CHUNK)):
            sent.extend(chunk)
            leased = leased or lane.lease(chunk[0].key)
            lane.send(leased, [command for send in chunk for command in send.commands], chunk[0].timeout)
        while sent:
            assert leased is not None
            reply = lane.receive(leased, sent[0].commands)
            sent.popleft()
            request.deliver(reply)
    except Failure as failure:
        unsent = Unsent(failure.address, failure.reason, failure.code)
        failures = [failure] * len(sent) + [unsent for _ in request.sends]
        for each in failures:
            request.deliver(each)
    except BaseException:
        if leased is not None:
            leased.connection.disconnect()
        raise
    else:
        if leased is not None:
            lane.give_back(leased)
