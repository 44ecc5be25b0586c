"""The way to the servers of a store for threads: which server a packet goes to, and where they are when that is not
known. What happens on a connection stands in ``pool.py``, what is known of servers in ``topology.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from sandbox_redis.connect import Endpoint, Way
from sandbox_redis.pool import Leased, Pool
from sandbox_redis.topology import Place, asking
from sandbox_redis.wire import Command, Failure, Send, ServerError, Unsent

LOOK_MAX: Final = 1.0  # seconds that one server is asked where the others are


class _Line(Protocol):
    """What lets another thread end a wait; see ``line.py``."""

    def begin(self, leased: Leased, timeout: float) -> None: ...

    def end(self, leased: Leased) -> None: ...


class Lane:
    """A pool for each server. Safe to share between threads, and after a fork."""

    def __init__(self, way: Way) -> None:
        self.topology = way.topology
        self.address = way.topology.address
        self._way = way
        self._pools: dict[Place, Pool] = {}
        self.on_loss: Callable[[], None] = lambda: None
        """Called when a connection failed, or another server became the master: it may lack what was seen."""

    def pool(self, send: Send, line: _Line | None = None) -> Pool:
        """The connections to the server that a packet goes to; closing `line` ends a look for it.

        Raises:
            Unsent: nobody knows which that is.
        """
        place = Place(send.at) if send.at else self.topology.at(send.key, replica=send.replica)
        if place is None:
            self._look(send.timeout, line)
            place = self.topology.at(send.key, replica=send.replica)
            if place is None:
                raise Unsent(self.address, "no server is known to hold this key", "CLUSTERDOWN")
        return self._pools.get(place) or self._to(place)

    def lease(self, send: Send, line: _Line | None = None) -> Leased:
        """A connection to the server that a packet goes to; as `pool`."""
        return self.pool(send, line).lease()

    def own(self, send: Send, line: _Line | None = None) -> Leased:
        """A new one, never given back: it will be blocked for long; as `pool`."""
        return self.pool(send, line).own()

    def exchange(self, leased: Leased, commands: Sequence[Command], timeout: float, at: str = "") -> list[Any]:
        """Send commands in one packet and read their replies; as an ASK wants it, where it has named this server.

        Raises:
            Unsent, Lost: the connection failed, and is closed.
        """
        if not at:
            return leased.pool.exchange(leased, commands, timeout)
        sent, theirs = asking(tuple(commands))
        replies = leased.pool.exchange(leased, sent, timeout)
        return [replies[place] for place in theirs]

    def heard(self, why: Sequence[ServerError | Failure]) -> None:
        """Something went wrong, which may tell where the servers are now."""
        for each in why:
            self.topology.heard(each)

    def endpoint(self, key: str, timeout: float) -> Endpoint:
        """The server that holds `key`; raises as `pool`."""
        return self.pool(Send(key, (), timeout)).endpoint

    def _to(self, place: Place) -> Pool:
        pool = Pool(self._way.endpoint(place), partial(self._lost, place), patient=self.topology.found)
        return self._pools.setdefault(place, pool)

    def _lost(self, place: Place) -> None:
        self.topology.lost(place)
        self.on_loss()

    def _look(self, timeout: float, line: _Line | None) -> None:
        looking = self.topology.look()
        end = time.monotonic() + timeout
        reply: Any = None
        while True:
            try:
                place, command = looking.send(reply)
            except StopIteration as stop:
                if stop.value:
                    self.on_loss()
                break
            if isinstance(reply, Failure) and time.monotonic() >= end:
                raise reply
            pool = self._pools.get(place) or self._to(place)
            leased, share = pool.lease(), min(timeout / 2, LOOK_MAX)
            try:
                if line is not None:
                    line.begin(leased, share)
                (reply,) = pool.exchange(leased, (command,), share)
                pool.give_back(leased)
            except Failure as failure:
                reply = failure
            finally:
                if line is not None:
                    line.end(leased)
        for pool in tuple(self._pools.values()):
            pool.patient = True  # where one server does not listen, another may be in its place soon

    def close(self) -> None:
        """Close the connections that are not leased."""
        for pool in tuple(self._pools.values()):
            pool.close()
