"""Carries operations out for threads: sends what they ask to be sent, waits, and gives them the replies. What they do
stands elsewhere; connections stand in ``lane.py``.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sandbox_redis.in_step import CHUNK
from sandbox_redis.wire import Failure, Lease, Op, Send, SendAll, Sleep, Unsent

if TYPE_CHECKING:
    from sandbox_redis.lane import Lane, Leased
    from sandbox_redis.line import Line

T = TypeVar("T")


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
                if request.lease in (Lease.ANY, Lease.ALONE) or (request.lease is Lease.TAKE and held is None):
                    leased = lane.lease(request.key)
                elif request.lease is Lease.OWN:
                    if held is not None:
                        held.connection.disconnect()
                    leased, held = lane.own(request.key), None
                elif held is not None:
                    leased, held = held, None
                else:
                    reply = Unsent(lane.address, "the connection of this transaction was lost")
                    continue
                exchange = lane.exchange if line is None else partial(line.exchange, lane)
                try:
                    reply = exchange(leased, request.commands, request.timeout)
                except Failure as failure:
                    reply = failure
                    continue
                if request.lease in (Lease.TAKE, Lease.KEEP, Lease.OWN):
                    held = leased
                else:
                    lane.give_back(leased)
            elif isinstance(request, SendAll):
                _Sent(lane, request, line).receive()
                reply = None
            else:
                if held is not None:
                    held.connection.disconnect()
                    held = None
                (line.closed.wait if line else time.sleep)(request.seconds)
                reply = None
    finally:
        if line is not None:
            line.keep(held)
        elif held is not None:
            held.connection.disconnect()  # it may still WATCH


class Ahead(Generic[T]):
    """An operation that has sent what it sends first; the server is at work on it until it is finished."""

    def __init__(self, lane: Lane, op: Op[T]) -> None:
        self._lane = lane
        self._op = op
        self._reply: Any = None
        self._sent: _Sent | None = None
        self._done: list[T] = []
        try:
            request = op.send(None)
        except StopIteration as stop:  # it has nothing to send
            self._done = [stop.value]
            return
        assert not isinstance(request, Sleep)
        self._sent = _Sent(lane, SendAll(iter([request]), self._take) if isinstance(request, Send) else request)

    def _take(self, reply: Any) -> None:
        self._reply = reply

    def finish(self) -> T:
        """Carry it out to its end."""
        if self._done:
            return self._done[0]
        sent, self._sent = self._sent, None
        assert sent is not None
        sent.receive()
        return play(self._lane, self._op, self._reply)

    def abandon(self) -> None:
        """Nobody wants it any more, unless it is finished."""
        if self._sent is not None:
            self._sent.abandon()


class _Sent:
    """One packet after the other on one connection, then all replies: the server is at work meanwhile."""

    def __init__(self, lane: Lane, request: SendAll, line: Line | None = None) -> None:
        self._lane = lane
        self._line = line
        self._request = request
        self._leased: Leased | None = None
        self._sent: deque[Send] = deque()
        self._failure: Failure | None = None
        try:
            while chunk := list(islice(request.sends, CHUNK)):
                self._sent.extend(chunk)
                if self._leased is None:
                    self._leased = lane.lease(chunk[0].key)
                    if line is not None:
                        line.begin(lane, self._leased, chunk[0].timeout)
                lane.send(self._leased, [command for send in chunk for command in send.commands], chunk[0].timeout)
        except Failure as failure:
            self._failure = failure
        except BaseException:
            self.abandon()
            raise

    def receive(self) -> None:
        """Hand out the replies."""
        try:
            while self._sent and self._failure is None:
                assert self._leased is not None
                try:
                    reply = self._lane.receive(self._leased, self._sent[0].commands)
                except Failure as failure:
                    self._failure = failure
                else:
                    self._sent.popleft()
                    self._request.deliver(reply)
        except BaseException:
            self.abandon()
            raise
        finally:
            if self._line is not None:
                self._line.end()
        if (gone := self._failure) is not None:
            unsent = Unsent(gone.address, gone.reason, gone.code)
            for each in [gone] * len(self._sent) + [unsent for _ in self._request.sends]:
                self._request.deliver(each)
        elif self._leased is not None:
            self._lane.give_back(self._leased)

    def abandon(self) -> None:
        """Close the connection: replies that nobody wants are still to come."""
        if self._leased is not None:
            self._leased.connection.disconnect()
