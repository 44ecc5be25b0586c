"""What lets another thread end, at once, what a thread waits for: the line of a watch or a mirror. It is given to
``driver.play``, and also keeps the connection of one operation for the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from sandbox_redis.wire import Closed, Command

if TYPE_CHECKING:
    from sandbox_redis.lane import Lane, Leased


class Line:
    """Used by one thread; any thread may close it."""

    def __init__(self) -> None:
        self.held: Leased | None = None
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._busy: Leased | None = None
        self._connecting: SimpleQueue[BaseException | None] | None = None

    def close(self) -> None:
        """End what is under way."""
        with self._lock:
            self.closed.set()
            if self._connecting is not None:
                self._connecting.put(Closed())
            if self._busy is not None:
                self._busy.interrupt()
            elif self.held is not None:
                self.held.connection.disconnect()

    def check(self) -> None:
        """Raises `Closed` when it is."""
        if self.closed.is_set():
            raise Closed

    def keep(self, leased: Leased | None) -> None:
        """Keep a connection for the next operation."""
        with self._lock:
            self.held = leased
            if leased is not None and self.closed.is_set():
                leased.connection.disconnect()

    def exchange(self, lane: Lane, leased: Leased, commands: Sequence[Command], timeout: float) -> list[Any]:
        """As `Lane.exchange`."""
        self.begin(lane, leased, timeout)
        try:
            return lane.exchange(leased, commands, timeout)
        finally:
            self.end()

    def begin(self, lane: Lane, leased: Leased, timeout: float) -> None:
        """From now on it is this connection that is waited for."""
        if not leased.connection.is_connected:
            self._connect(lane, leased, timeout)
        with self._lock:
            self.check()
            self._busy = leased

    def end(self) -> None:
        """It is not waited for any more."""
        with self._lock:
            self._busy = None

    def _connect(self, lane: Lane, leased: Leased, timeout: float) -> None:
        """Connect in a thread of its own, to be left behind: nothing ends that before its time."""
        outcome: SimpleQueue[BaseException | None] = SimpleQueue()
        left = threading.Event()

        def connect() -> None:
            try:
                lane.connect(leased, timeout)
            except BaseException as error:
                outcome.put(error)
            else:
                outcome.put(None)
                if left.is_set():
                    leased.connection.disconnect()

        with self._lock:
            self.check()
            self._connecting = outcome
        threading.Thread(target=connect, name="sandbox-redis connect", daemon=True).start()
        try:
            if (error := outcome.get()) is not None:
                raise error
        except BaseException:
            left.set()
            leased.connection.disconnect()
            raise
        finally:
            self._connecting = None
