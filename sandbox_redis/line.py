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
    from sandbox_redis.lane import Lane
    from sandbox_redis.pool import Leased


class Line:
    """Used by one thread; any thread may close it."""

    def __init__(self) -> None:
        self.held: Leased | None = None
        self.tap: Any = None  # a Tap; those know lines, not the other way round
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._busy: list[Leased] = []
        self._connecting: SimpleQueue[BaseException | None] | None = None

    def close(self) -> None:
        """End what is under way."""
        with self._lock:
            self.closed.set()
            if self._connecting is not None:
                self._connecting.put(Closed())
            for leased in self._busy:
                leased.interrupt()
            if not self._busy and self.held is not None:
                self.held.connection.disconnect()
            if self.tap is not None:  # nobody uses it now
                self.tap.close()

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

    def keep_tap(self, tap: Any) -> bool:
        """Keep connections that hear for the next operation; whether they are to be closed instead."""
        with self._lock:
            self.tap = tap
            return self.closed.is_set()

    def exchange(
        self, lane: Lane, leased: Leased, commands: Sequence[Command], timeout: float, at: str = ""
    ) -> list[Any]:
        """As `Lane.exchange`."""
        self.begin(leased, timeout)
        try:
            return lane.exchange(leased, commands, timeout, at)
        finally:
            self.end()

    def begin(self, leased: Leased, timeout: float) -> None:
        """From now on this connection is waited for."""
        if not leased.connection.is_connected:
            self._connect(leased, timeout)
        with self._lock:
            self.check()
            self._busy.append(leased)

    def end(self, leased: Leased | None = None) -> None:
        """A connection is not waited for any more; none at all when it is not said which."""
        with self._lock:
            self._busy = [] if leased is None else [each for each in self._busy if each is not leased]

    def _connect(self, leased: Leased, timeout: float) -> None:
        """Connect in a thread of its own, to be left behind: nothing ends that before its time."""
        outcome: SimpleQueue[BaseException | None] = SimpleQueue()
        left = threading.Event()

        def connect() -> None:
            try:
                leased.pool.connect(leased, timeout)
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
