"""A mirror for asyncio: a local copy, kept current by a task. What it knows stands in ``mirroring.py``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self

from sandbox_redis import checks
from sandbox_redis.aio_driver import Line, play
from sandbox_redis.mirror import OnChangeT
from sandbox_redis.mirroring import Mirroring
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State
from sandbox_redis.wire import Closed

if TYPE_CHECKING:
    from sandbox_redis.aio_lane import AsyncLane

_log: Final = logging.getLogger("sandbox_redis")


class AsyncMirror:
    """Same as `Mirror`, for asyncio. Reading needs no ``await``; a task takes in what happens whenever the event loop
    is free, so that what is read is as old as the loop was busy.
    """

    def __init__(self, lane: AsyncLane, mirroring: Mirroring, line: Line, timeout: float) -> None:
        self._lane = lane
        self._core = mirroring
        self._timeout = timeout
        self._line = line
        self._moved = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def get(self, sandbox_id: str) -> Sandbox:
        """Same as `Mirror.get`."""
        return self._core.get(sandbox_id)

    def list(
        self,
        *,
        states: Iterable[State] | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
    ) -> Sequence[Sandbox]:
        """Same as `Mirror.list`."""
        return self._core.list(states, node, labels, namespace)

    def count(self, *, state: State | None = None, node: str | None = None) -> int:
        """Same as `Mirror.count`."""
        return self._core.count(state, node)

    async def wait_for(self, revision: Sandbox | str, *, timeout: float | None = None) -> None:
        """Same as `Mirror.wait_for`."""
        seconds = self._timeout if timeout is None else checks.seconds("timeout", timeout)
        try:
            async with asyncio.timeout(seconds):
                while not self._core.reached(revision):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise self._core.too_late(revision, seconds) from None

    @property
    def synced(self) -> bool:
        """Same as `Mirror.synced`."""
        return self._core.synced

    @property
    def age(self) -> float:
        """Same as `Mirror.age`."""
        return self._core.age

    @property
    def stale(self) -> bool:
        """Same as `Mirror.stale`."""
        return self._core.stale

    def on_change(self, callback: OnChangeT) -> OnChangeT:
        """Same as `Mirror.on_change`; callbacks are called by the mirror's task, and must not block."""
        self._core.callbacks.append(callback)
        return callback

    async def aclose(self) -> None:
        """Same as `Mirror.close`."""
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._line.close()
        self._core.lost(Closed("it was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _keep(self) -> None:
        while True:
            try:
                if not self._core.attached:
                    try:
                        await play(self._lane, self._core.attach(), self._line)
                    finally:
                        self._tell()
                    _log.info("a mirror is connected again")
                await self._follow()
            except Closed:
                return
            except Exception as error:  # whatever it is, the mirror is stale until an attempt succeeds
                self._core.lost(error)
            await asyncio.sleep(self._core.pause())

    async def _follow(self) -> None:
        while True:
            await play(self._lane, self._core.hear(), self._line)
            self._tell()

    def _tell(self) -> None:
        self._moved.set()
        while self._core.changes:
            change = self._core.changes.popleft()
            for callback in tuple(self._core.callbacks):
                try:
                    callback(*change)
                except Exception:  # it is the caller's code
                    _log.exception("an on_change callback of a mirror failed")


async def mirror(lane: AsyncLane, mirroring: Mirroring, timeout: float) -> AsyncMirror:
    """A mirror that is complete."""
    line = Line()
    try:
        await play(lane, mirroring.attach(), line)
    except BaseException:
        await line.close()
        raise
    return AsyncMirror(lane, mirroring, line, timeout)
