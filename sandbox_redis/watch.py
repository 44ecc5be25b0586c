"""A watch as users hold it: an endless iterator of events, for threads and for asyncio. What it does stands in
``watching.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from sandbox_redis.aio_driver import Line as AsyncLine
from sandbox_redis.aio_driver import play as aio_play
from sandbox_redis.driver import play
from sandbox_redis.line import Line
from sandbox_redis.record import Event
from sandbox_redis.watching import Watching
from sandbox_redis.wire import Closed

if TYPE_CHECKING:
    from sandbox_redis.aio_lane import AsyncLane
    from sandbox_redis.lane import Lane


class Watch:
    """An endless iterator of `Event`, in order for each sandbox, none missed and none twice. Lost connections and
    restarts are bridged.

    One thread iterates; another one may `close` it, which ends the iteration at once. It has one connection.
    """

    def __init__(self, lane: Lane, watching: Watching) -> None:
        self._lane = lane
        self._watching = watching
        self._line = Line()
        try:
            play(lane, watching.begin(), line=self._line)
        except BaseException:
            self.close()
            raise

    @property
    def cursor(self) -> str | None:
        """Where to go on behind the event that was taken last, or behind the last that did not fit: what ``since``
        takes. Text, to be stored anywhere."""
        return self._watching.cursor

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """The next event; waits for it.

        Raises:
            CompactedError: events behind the cursor are gone; list again.
            StoreRolledBackError: the server has lost data, the events behind the cursor among it.
            StoreUnavailableError: an outage took longer than the watch's `timeout`, or waiting does not help.
        """
        while self._line.closed.is_set() or (event := self._watching.take()) is None:
            try:
                play(self._lane, self._watching.more(), line=self._line)
            except Closed:
                raise StopIteration from None
            except Exception:
                self.close()
                raise
        return event

    def close(self) -> None:
        """End it. Whoever waits for an event is told so at once."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncWatch:
    """Same as `Watch`, for asyncio: ``async for``. It begins where the store is when it is entered with ``async with``,
    or when its first event is asked for. A task that is cancelled while it waits can go on to iterate.
    """

    def __init__(self, lane: AsyncLane, watching: Watching) -> None:
        self._lane = lane
        self._watching = watching
        self._line = AsyncLine()

    @property
    def cursor(self) -> str | None:
        """Same as `Watch.cursor`."""
        return self._watching.cursor

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Same as `Watch.__next__`."""
        while self._line.closed or (event := self._watching.take()) is None:
            try:
                await aio_play(self._lane, self._watching.more(), line=self._line)
            except Closed:
                raise StopAsyncIteration from None
            except Exception:
                await self.aclose()
                raise
        return event

    async def aclose(self) -> None:
        """Same as `Watch.close`."""
        await self._line.close()

    async def __aenter__(self) -> Self:
        try:
            await aio_play(self._lane, self._watching.begin(), line=self._line)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
