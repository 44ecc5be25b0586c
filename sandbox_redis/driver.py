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
from sandbox_redis.wire import Failure, Hear, Lease, Op, Send, SendAll, Unsent

if TYPE_CHECKING:
    from sandbox_redis.lane import Lane
    from sandbox_redis.line import Line
    from sandbox_redis.pool import Leased
    from sandbox_redis.tap import Tap

T = TypeVar("T")


def play(lane: Lane, op: Op[T], reply: Any = None, line: Line | None = None) -> T:
    """Carry an operation out to its end: the driver for threads. `reply` is for what it has already asked."""
    held = None if line is None else line.held
    tap: Tap | None = None
    try:
        while True:
            if line is not None:
                line.check()
            try:
                request = op.throw(reply) if isinstance(reply, Failure) else op.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                if isinstance(request, Send):
                    if request.lease in (Lease.ANY, Lease.ALONE) or (request.lease is Lease.TAKE and held is None):
                        leased = lane.lease(request, line)
                    elif request.lease is Lease.OWN:
                        if held is not None:
                            held.connection.disconnect()
                            held = None
                        leased = lane.own(request, line)
                    elif held is not None:
                        leased, held = held, None
                    else:
                        raise Unsent(lane.address, "the connection of this transaction was lost")
                    exchange = lane.exchange if line is None else partial(line.exchange, lane)
                    reply = exchange(leased, request.commands, request.timeout, request.at)
                    if request.lease in (Lease.TAKE, Lease.KEEP, Lease.OWN):
                        held = leased
                    else:
                        leased.pool.give_back(leased)
                elif isinstance(request, SendAll):
                    _Sent(lane, request, line).receive()
                    reply = None
                elif isinstance(request, Hear):
                    if line is not None and tap is None:
                        tap, line.tap = line.tap, None
                    if tap is None:
                        from sandbox_redis import tap as taps  # here, because importing redis takes 0.5 s

                        tap = taps.Tap(lane, line)
                    reply = tap.hear(request)
                else:
                    if held is not None:
                        held.connection.disconnect()
                        held = None
                    lane.heard(request.why)
                    (line.closed.wait if line else time.sleep)(request.seconds)
                    reply = None
            except Failure as failure:
                reply = failure
    finally:
        if tap is not None and (line is None or line.keep_tap(tap)):
            tap.close()
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
        assert isinstance(request, (Send, SendAll))
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


class _Link:
    """The packets of a `SendAll` to one server."""

    def __init__(self) -> None:
        self.leased: Leased | None = None
        self.failure: Failure | None = None


class _Sent:
    """One packet after the other on a connection to each server, then all replies: they are at work meanwhile."""

    def __init__(self, lane: Lane, request: SendAll, line: Line | None = None) -> None:
        self._line = line
        self._request = request
        self._links: dict[Any, _Link] = {}
        self._sent: deque[tuple[Send, _Link]] = deque()
        try:
            while chunk := list(islice(request.sends, CHUNK)):
                groups: dict[_Link, list[Send]] = {}
                for send in chunk:
                    link = self._link(lane, send)
                    groups.setdefault(link, []).append(send)
                    self._sent.append((send, link))
                for link, sends in groups.items():
                    if link.failure is None:
                        self._send(link, sends)
        except BaseException:
            self.abandon()
            raise

    def _link(self, lane: Lane, send: Send) -> _Link:
        try:
            pool = lane.pool(send, self._line)
        except Failure as failure:
            link = _Link()
            link.failure = failure
            return link
        link = self._links.setdefault(pool, _Link())
        if link.failure is not None:  # what has not been sent is certain
            unsent = _Link()
            unsent.failure = Unsent(link.failure.address, link.failure.reason, link.failure.code)
            return unsent
        if link.leased is None:
            link.leased = pool.lease()
            if self._line is not None:
                try:
                    self._line.begin(link.leased, send.timeout)
                except Failure as failure:
                    link.failure = failure
        return link

    @staticmethod
    def _send(link: _Link, sends: list[Send]) -> None:
        assert link.leased is not None
        commands = [command for send in sends for command in send.commands]
        try:
            link.leased.pool.send(link.leased, commands, sends[0].timeout)
        except Failure as failure:
            link.failure = failure

    def receive(self) -> None:
        """Hand out the replies."""
        try:
            while self._sent:
                send, link = self._sent.popleft()
                reply: list[Any] | Failure
                if link.failure is None:
                    assert link.leased is not None
                    try:
                        reply = link.leased.pool.receive(link.leased, send.commands)
                    except Failure as failure:
                        reply = link.failure = failure
                else:
                    reply = link.failure
                self._request.deliver(reply)
        except BaseException:
            self.abandon()
            raise
        finally:
            if self._line is not None:
                self._line.end()
        for link in self._links.values():
            if link.failure is None and link.leased is not None:
                link.leased.pool.give_back(link.leased)

    def abandon(self) -> None:
        """Close the connections: replies that nobody wants are still to come."""
        for link in self._links.values():
            if link.leased is not None:
                link.leased.connection.disconnect()
