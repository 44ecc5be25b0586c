"""Where what is seen comes from: a mirror for the sandboxes, a watch for the events, and one thread that makes a `View`
of them again and again. Nothing of the screen stands here; whoever shows the views is called.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Self

from sandbox_redis.errors import SandboxError
from sandbox_redis.record import Event, Sandbox
from sandbox_redis.selection import ALL, selection
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore
from sandbox_redis.top.choice import Choice
from sandbox_redis.top.fleet import Fleet
from sandbox_redis.top.pulse import Pulse
from sandbox_redis.top.view import View, view
from sandbox_redis.watch import Watch

Show = Callable[[View | Exception], object]
"""Called with each view, and at last with what has gone wrong, by a thread of the feed."""

_HEARTBEATS: Final = 2  # intervals for each
_HEARTBEAT_MIN: Final = 0.2  # seconds; servers look at their clock every 0.1 s
_HEARTBEAT_MAX: Final = 1.0  # seconds; a mirror is stale after three
_WAITING_MAX: Final = 200_000  # changes that wait while the screen is paused; with more, all is read again
_REST: Final = 2  # times what a view took is the least time between two
_PAUSE: Final = 1.0  # seconds between two attempts to follow the events again


class Feed:
    """Reads a store for one screen, from its making on until it is closed."""

    def __init__(
        self,
        store: SandboxStore,
        *,
        states: list[State] | None = None,
        node: str | None = None,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        interval: float = 0.5,
    ) -> None:
        """Read all sandboxes that fit.

        Args:
            store: is the caller's to close.
            states, node, namespace, labels: as for `SandboxStore.mirror`.
            interval: seconds between two views.

        Raises:
            SandboxError: whatever `SandboxStore.mirror` raises.
        """
        self.choice = Choice()
        self._store = store
        self._interval = interval
        self._wanted = selection(states=states, node=node, namespace=namespace, labels=labels, default=ALL)
        self._watch: Watch | None = self._open_watch()  # before the mirror, so that no event is missing
        heartbeat = max(_HEARTBEAT_MIN, min(_HEARTBEATS * interval, _HEARTBEAT_MAX))
        try:
            self._mirror = store.mirror(
                states=states, node=node, namespace=namespace, labels=labels, heartbeat=heartbeat
            )
        except BaseException:
            self._watch.close()
            raise
        self._changes: deque[tuple[float, str, Sandbox | None]] = deque(maxlen=_WAITING_MAX)
        self._events: deque[tuple[float, Event | str]] = deque(maxlen=_WAITING_MAX)
        self._mirror.on_change(self._changed)
        everything = self._mirror.list(states=ALL)
        self._fleet = Fleet(everything)
        self._pulse = Pulse(time.monotonic())
        self._ids = {sandbox.id for sandbox in everything} if self._picky else set()
        self._now = (time.monotonic(), time.time_ns())
        self._closed = threading.Event()
        self._wake = threading.Event()

    def start(self, show: Show) -> None:
        """Begin to show."""
        threading.Thread(target=self._follow, name="sandbox-redis top events", daemon=True).start()
        threading.Thread(target=self._look, args=(show,), name="sandbox-redis top", daemon=True).start()

    def choose(self, choice: Choice) -> None:
        """Show something else, at once."""
        self.choice = choice
        self._wake.set()

    def history(self, sandbox_id: str) -> list[Event]:
        """What has happened to a sandbox; as `SandboxStore.history`."""
        return self._store.history(sandbox_id)

    def close(self) -> None:
        """Show nothing more. What waits for the server is left to itself: it may be away."""
        self._closed.set()
        self._wake.set()
        if (watch := self._watch) is not None:
            watch.close()
        self._mirror.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- taking in

    def _changed(self, before: Sandbox | None, after: Sandbox | None) -> None:
        """Called by the mirror."""
        one = after or before
        assert one is not None
        self._changes.append((time.monotonic(), one.id, after))

    @property
    def _picky(self) -> bool:
        """Whether a watch tells of more sandboxes than are wanted: it knows no labels."""
        return bool(self._wanted.labels) or self._wanted.namespace is not None

    def _open_watch(self) -> Watch:
        return self._store.watch(node=self._wanted.node, states=self._wanted.states)

    def _follow(self) -> None:
        """Take in events, until it is closed."""
        while not self._closed.is_set():
            try:
                self._watch = self._watch or self._open_watch()
                if self._closed.is_set():  # in the meantime
                    self._watch.close()
                self._hear(self._watch)
            except SandboxError as error:  # the events behind it are gone, or the server has lost data
                if self._watch is not None:
                    self._events.append((time.monotonic(), f"events may be missing here: {error}"))
                self._watch = None
                self._closed.wait(_PAUSE)
            else:
                return

    def _hear(self, watch: Watch) -> None:
        for event in watch:
            if not self._picky or self._is_wanted(event):
                self._events.append((time.monotonic(), event))

    def _is_wanted(self, event: Event) -> bool:
        """Whether an event is of a sandbox with the labels asked for; only those that create one carry them."""
        if event.before is None and event.sandbox is not None and self._wanted.fits(event.sandbox):
            self._ids.add(event.id)
        known = event.id in self._ids
        if event.sandbox is None:
            self._ids.discard(event.id)
        return known

    # -- showing

    def _look(self, show: Show) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            self._wake.clear()
            try:
                made = self._view()
            except Exception as error:  # a bug: whoever shows the views is to end
                show(error)
                return
            if self._closed.is_set():
                return
            show(made)
            took = time.monotonic() - began
            self._wake.wait(max(self._interval - took, _REST * took))

    def _view(self) -> View:
        choice = self.choice
        if not choice.paused:
            self._now = (time.monotonic(), time.time_ns())
            self._take()
        now, now_ns = self._now
        health = {"stale": self._mirror.stale, "age": self._mirror.age}
        return view(self._fleet, self._pulse, choice, now=now, now_ns=now_ns, **health)

    def _take(self) -> None:
        """Take in what has come so far, and no more than that."""
        if len(self._changes) == _WAITING_MAX:  # some have fallen out
            self._changes.clear()
            self._fleet.reset(self._mirror.list(states=ALL))
        for _ in range(len(self._changes)):
            at, sandbox_id, after = self._changes.popleft()
            self._pulse.changes.add(at)
            self._fleet.take(sandbox_id, after)
        for _ in range(len(self._events)):
            self._pulse.hear(*self._events.popleft())
