"""The way to the servers of a store for asyncio, as ``lane.py`` is for threads. What happens on a connection stands in
``aio_pool.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sandbox_redis.aio_pool import AsyncLeased, AsyncPool
from sandbox_redis.connect import Way
from sandbox_redis.lane import LOOK_MAX
from sandbox_redis.topology import Place, asking
from sandbox_redis.wire import Command, Failure, Send, ServerError, Unsent


class AsyncLane:
    """A pool for each server, for the tasks of one event loop at a time."""

    def __init__(self, way: Way) -> None:
        self.topology = way.topology
        self.address = way.topology.address
        self._way = way
        self._pools: dict[Place, AsyncPool] = {}
        self.on_loss: Callable[[], None] = lambda: None
        """As `Lane.on_loss`."""

    def known(self, send: Send) -> AsyncPool | None:
        """The connections to the server that a packet goes to; None when that has to be looked for."""
        place = Place(send.at) if send.at else self.topology.at(send.key, replica=send.replica)
        return place and (self._pools.get(place) or self._to(place))

    async def pool(self, send: Send) -> AsyncPool:
        """As `Lane.pool`."""
        found = self.known(send)
        if found is None:
            await self._look(send.timeout)
            found = self.known(send)
            if found is None:
                raise Unsent(self.address, "no server is known to hold this key", "CLUSTERDOWN")
        return found

    async def lease(self, send: Send) -> AsyncLeased:
        """As `Lane.lease`."""
        return await (await self.pool(send)).lease(send.timeout)

    async def own(self, send: Send) -> AsyncLeased:
        """As `Lane.own`."""
        return (await self.pool(send)).own()

    async def exchange(
        self, leased: AsyncLeased, commands: tuple[Command, ...], timeout: float, at: str = ""
    ) -> list[Any]:
        """As `Lane.exchange`."""
        if not at:
            return await leased.pool.exchange(leased, commands, timeout)
        sent, theirs = asking(commands)
        replies = await leased.pool.exchange(leased, sent, timeout)
        return [replies[place] for place in theirs]

    def heard(self, why: Sequence[ServerError | Failure]) -> None:
        """As `Lane.heard`."""
        for each in why:
            self.topology.heard(each)

    def _to(self, place: Place) -> AsyncPool:
        pool = AsyncPool(self._way.endpoint(place), partial(self._lost, place), patient=self.topology.found)
        return self._pools.setdefault(place, pool)

    def _lost(self, place: Place) -> None:
        self.topology.lost(place)
        self.on_loss()

    async def _look(self, timeout: float) -> None:
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
            try:
                (reply,) = await pool.submit((command,), min(timeout / 2, LOOK_MAX))
            except Failure as failure:
                reply = failure
        for pool in self._pools.values():
            pool.patient = True  # where one server does not listen, another may be in its place soon

    async def close(self) -> None:
        """Close the shared connections and the idle ones; who waits for them connects again."""
        for pool in tuple(self._pools.values()):
            await pool.close()
