"""A mirror for threads: a local copy that is current when it is read. What it knows stands in ``mirroring.py``.

Who reads takes in, before each read, what has come in since the last one: that is faster than to wait for another
thread to have its turn, by far. A thread of the mirror does so while nobody reads, and mends what breaks.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar

from sandbox_redis import checks
from sandbox_redis.deadline import PAUSE_FIRST
from sandbox_redis.driver import play
from sandbox_redis.errors import CompactedError
from sandbox_redis.line import Line
from sandbox_redis.mirroring import Change, Mirroring, OnChange
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State
from sandbox_redis.wire import Closed, Failure, LaidOut, Lost

if TYPE_CHECKING:
    from sandbox_redis.lane import Lane
    from sandbox_redis.tail import PolledTail, Tail
    from sandbox_redis.tap import Tap

OnChangeT = TypeVar("OnChangeT", bound=OnChange)

BUSY: Final = 0.01  # seconds; while somebody reads more often, the mirror's own thread keeps out of the way
_log: Final = logging.getLogger("sandbox_redis")


class Mirror:
    """A local copy of the sandboxes that fit, kept current by their events, for reads at memory speed.

    A read never returns a state older than one that it returned before, as long as the server does not lose data. While
    the server is away reads go on: see `stale` and `age`. Afterwards it goes on where it was, or lists again where the
    events in between are gone, or where the server has lost data: then it never shows what no longer exists.

    Any number of threads may read. In the child of a fork it is a copy that grows stale: open another one there.
    """

    def __init__(self, lane: Lane, mirroring: Mirroring, timeout: float) -> None:
        self._lane = lane
        self._core = mirroring
        self._timeout = timeout
        self._line = Line()
        self._tail: Tail | PolledTail | Tap | None = None
        self._drained = 0.0
        self._lock = threading.Lock()  # held by whoever takes in what has come
        self._pid = os.getpid()
        self._waker, self._alarm = socket.socketpair()
        self._alarm.setblocking(False)  # a waker that nobody looks at may be full: one alarm is as good as many
        self._queue: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._dispatcher: threading.Thread | None = None
        try:
            self._connect()
        except BaseException:
            self._line.close()
            self._waker.close()
            self._alarm.close()
            raise
        self._keeper = threading.Thread(target=self._keep, name="sandbox-redis mirror", daemon=True)
        self._keeper.start()

    # -- reading

    def get(self, sandbox_id: str) -> Sandbox:
        """The sandbox, in any state that the mirror has. Nothing is sent.

        Raises:
            NotFoundError: there is no such sandbox, or it does not fit the mirror.
        """
        self._drain()
        return self._core.get(sandbox_id)

    def list(
        self,
        *,
        states: Iterable[State] | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
    ) -> Sequence[Sandbox]:
        """The sandboxes of the mirror that fit, in the order of their ids. Nothing is sent.

        Args:
            states: without it, those that the mirror was opened with; else, as for `SandboxStore.list`, all but INIT.
            node, labels, namespace: as for `SandboxStore.page`.
        """
        self._drain()
        return self._core.list(states, node, labels, namespace)

    def count(self, *, state: State | None = None, node: str | None = None) -> int:
        """How many sandboxes `list` would give. Nothing is sent."""
        self._drain()
        return self._core.count(state, node)

    def wait_for(self, revision: Sandbox | str, *, timeout: float | None = None) -> None:
        """Wait until the mirror knows of a write: to read one's own, or somebody else's.

        Args:
            revision: what the write returned; in a store with one partition its revision will do.
            timeout: seconds; the store's own `timeout` when None.

        Raises:
            WaitTimeoutError: it has not come in time.
        """
        seconds = self._timeout if timeout is None else checks.seconds("timeout", timeout)
        end = time.monotonic() + seconds
        while not self._core.reached(revision):
            left = end - time.monotonic()
            if left <= 0:
                raise self._core.too_late(revision, seconds)
            if (tail := self._tail) is None:
                time.sleep(min(left, PAUSE_FIRST))
            else:
                tail.wait(min(left, BUSY))
            self._drain()

    @property
    def synced(self) -> bool:
        """Whether it is connected, and has caught up with the events of the time of its listing."""
        return self._core.synced

    @property
    def age(self) -> float:
        """Seconds: whatever happened longer ago than this is known. About a heartbeat at most, while all is well; it
        grows while the server is away or the network is silent."""
        self._drain()
        return self._core.age

    @property
    def stale(self) -> bool:
        """Whether it may lag: it is not connected, or has not heard from the server for three heartbeats."""
        self._drain()
        return self._core.stale

    def on_change(self, callback: OnChangeT) -> OnChangeT:
        """Call ``callback(before, after)`` for each change from now on; None stands for a sandbox that is not there, or
        is in no state that the mirror was opened with. When it has to list again, it tells the differences.
        What the server has lost is gone then, too; a warning in the log says so before.

        Callbacks are called one by one, in order, by a thread of their own; what they raise is logged.
        """
        with self._lock:
            self._core.callbacks.append(callback)
            if self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, name="sandbox-redis on_change", daemon=True)
                self._dispatcher.start()
        return callback

    def close(self) -> None:
        """End it; what was read can be read on, and grows stale."""
        self._line.close()
        self._wake()
        if threading.current_thread() is not self._keeper and self._pid == os.getpid():
            self._keeper.join()
            self._waker.close()
            self._alarm.close()
        self._queue.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- keeping current

    def _drain(self) -> None:
        """Take in what has come, without waiting; when another thread is at it, its work will do."""
        self._drained = time.monotonic()
        if self._tail is not None and self._lock.acquire(blocking=False):
            try:
                if (tail := self._tail) is not None and tail.ready():
                    self._take()
            finally:
                self._lock.release()

    def _take(self) -> None:
        tail = self._tail
        if tail is None or self._pid != os.getpid():
            return
        try:
            while (answers := tail.receive()) is not None:
                self._core.take(answers, tail.sent, blocked=tail.blocks)
                self._pass_on()
                self._ask(tail)
                if not tail.blocks:
                    break
        except (Failure, CompactedError, LaidOut) as error:
            self._lose(error)

    def _pass_on(self) -> None:
        while self._core.changes:
            self._queue.put(self._core.changes.popleft())

    def _ask(self, tail: Tail | PolledTail | Tap) -> None:
        tail.ask(self._core.questions(block=tail.blocks), self._core.patience)

    def _lose(self, error: Exception) -> None:
        """The connection is of no use any more: the mirror's thread is to make another one."""
        self._core.lost(error)
        if self._tail is not None:
            self._tail.close()
            self._tail = None
        self._wake()

    def _connect(self) -> None:
        from sandbox_redis.tail import tail  # here, because importing redis takes 0.5 s

        try:
            play(self._lane, self._core.attach(), line=self._line)
        finally:
            self._pass_on()
        held, self._line.held = self._line.held, None
        tap, self._line.tap = self._line.tap, None
        assert (held is None) != (tap is None)
        with self._lock:
            made = tail(held) if held is not None else tap
            assert made is not None
            self._ask(made)
            self._tail = made

    def _keep(self) -> None:
        while not self._line.closed.is_set():
            try:
                if self._tail is None:
                    self._connect()
                    _log.info("a mirror is connected again")
                self._stand_by()
            except Closed:
                break
            except Exception as error:  # whatever it is, the mirror is stale until an attempt succeeds
                with self._lock:
                    self._lose(error)
            self._line.closed.wait(self._core.pause())
        with self._lock:
            if self._tail is not None:
                self._tail.close()
                self._tail = None
            self._core.lost(Closed("it was closed"))

    def _stand_by(self) -> None:
        """Take in what comes while nobody reads; look after a server that has gone silent."""
        silence = self._core.heartbeat + self._timeout  # seconds
        while (tail := self._tail) is not None and not self._line.closed.is_set():
            if not tail.blocks:
                self._line.closed.wait(self._core.heartbeat)
            elif self._is_busy():
                self._line.closed.wait(BUSY)
            else:
                self._select(tail, silence)
            with self._lock:
                if not self._is_busy() or not tail.patience():
                    self._take()
                if self._tail is not None and time.monotonic() - self._tail.sent > silence:
                    self._lose(Lost(self._lane.address, "it has fallen silent"))

    def _is_busy(self) -> bool:
        """Whether somebody reads, and so takes in what comes, all the time."""
        return time.monotonic() - self._drained < BUSY

    def _select(self, tail: Tail | PolledTail | Tap, timeout: float) -> None:
        waiting = select.poll()
        try:
            for fileno in (self._waker.fileno(), *tail.filenos()):
                waiting.register(fileno, select.POLLIN)
        except ValueError:  # another thread has closed it
            return
        if (self._waker.fileno(), select.POLLIN) in waiting.poll(min(timeout, tail.patience()) * 1000):
            self._waker.recv(64)

    def _wake(self) -> None:
        with suppress(OSError):  # it is closed, or full
            self._alarm.send(b"!")

    def _dispatch(self) -> None:
        while (change := self._queue.get()) is not None:
            for callback in tuple(self._core.callbacks):
                try:
                    callback(*change)
                except Exception:  # it is the caller's code
                    _log.exception("an on_change callback of a mirror failed")
