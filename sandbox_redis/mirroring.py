"""What a mirror knows and how it keeps it current, once, for threads and asyncio alike: client-go's informer is the
model. No I/O; who waits for the server, and when, stands in ``mirror.py`` and ``aio_mirror.py``.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from sandbox_redis import checks
from sandbox_redis.deadline import PAUSE_FIRST
from sandbox_redis.errors import (
    CompactedError,
    InvalidArgumentError,
    NotFoundError,
    SandboxError,
    StoreRolledBackError,
    StoreUnavailableError,
    WaitTimeoutError,
)
from sandbox_redis.exchange import asked
from sandbox_redis.follow import HEARTBEAT, is_place, place
from sandbox_redis.keys import Keys
from sandbox_redis.picture import Picture, draw, is_as_of
from sandbox_redis.record import Sandbox
from sandbox_redis.selection import ALL, LISTED, Selection, one_state, selection
from sandbox_redis.session import Session
from sandbox_redis.states import State
from sandbox_redis.watching import Feed, refusal_in
from sandbox_redis.wire import Closed, Failure, LaidOut, Op, Question

PAUSE_MAX: Final = 1.0  # seconds between two attempts to reach the server again
STALE: Final = 3  # heartbeats without a word make a mirror stale; one may be late on a busy machine
TICK: Final = 0.1  # seconds: servers look at their clock so often, so a heartbeat takes that much longer
Change = tuple[Sandbox | None, Sandbox | None]
_log: Final = logging.getLogger("sandbox_redis")
OnChange = Callable[[Sandbox | None, Sandbox | None], object]


class Mirroring:
    """The picture of a mirror, and where it comes from."""

    def __init__(self, session: Session, wanted: Selection, *, chosen: bool, heartbeat: float) -> None:
        self.heartbeat = checks.seconds("heartbeat", heartbeat)
        self.sandboxes: dict[str, Sandbox] = {}
        """What is shown, by id."""
        self.feed: Feed | None = None
        """What it follows; None before the first listing, and when another one is needed."""
        self.attached = False
        self._failures = 0  # since the server has told something
        self.changes: deque[Change] = deque()
        """What is still to be told to the callbacks."""
        self._laid_out = False  # since the last listing, which has found no store
        self.callbacks: list[OnChange] = []
        self._session = session
        self._wanted = wanted
        self._listed = wanted.states if chosen else LISTED
        self._picture: Picture | None = None
        self._layout: Keys | None = None  # as it was at the last listing
        self._proven = -math.inf  # the time, by our clock, from which the server has told everything

    # -- keeping current

    def attach(self) -> Op[None]:
        """Take a connection and make sure that nothing is missing, or list again."""
        if self.feed is None:
            yield from self._redraw()
        assert self.feed is not None
        while not self.attached:
            if self._laid_out:
                yield from self.feed.relay()
                self._layout = self.feed.layout
                self._picture, self._laid_out = Picture(self._layout, self._wanted), False
                self.sandboxes = self._picture.sandboxes
            try:
                yield from self.feed.attach()
                self.attached = True
            except LaidOut:
                self._laid_out = True

    def _redraw(self) -> Op[None]:
        started = time.monotonic()
        layout = yield from self._session.open(self._session.deadline(None), write=False)
        picture, follower = yield from draw(self._session, layout, self._wanted, self._session.deadline(None))
        before, self._picture = self._picture, picture
        self._laid_out = False
        self.sandboxes = picture.sandboxes
        self.feed, self._layout = Feed(self._session, layout, follower, math.inf), layout
        self._proven = started
        if before is not None and self.callbacks:
            for sandbox_id in sorted(before.sandboxes.keys() | picture.sandboxes.keys()):
                self._changed(before.sandboxes.get(sandbox_id), picture.sandboxes.get(sandbox_id))

    def questions(self, *, block: bool = True) -> tuple[Question, ...]:
        """What to ask to hear of the next events, after a heartbeat at the latest."""
        assert self.feed is not None
        return self.feed.follower.questions(self.heartbeat if block else None)

    @property
    def patience(self) -> float:
        """Seconds after which the servers are asked again, even though they have told of no change."""
        return 0.0 if self.feed is not None and self.feed.follower.behind else self.heartbeat

    def hear(self) -> Op[None]:
        """Wait for the next events, for a heartbeat at most, and take them in."""
        assert self.feed is not None
        sent = time.monotonic()
        answers = yield from self.feed.hear(self.questions(), self.heartbeat + self._session.timeout, self.heartbeat)
        self.take(answers, sent)

    def take(self, answers: Sequence[list[Any] | None], sent: float, *, blocked: bool = True) -> None:
        """The answers to questions that were sent at that time.

        Raises:
            Unsent: the server cannot serve now.
            StoreRolledBackError: it has lost data.
        """
        assert self.feed is not None
        assert self._picture is not None
        told: list[list[Any] | None] = []
        for answer in answers:
            refused = refusal_in(answer or (), self._session.exchange)
            if refused is not None and not asked(refused):
                raise refused
            told.append(answer if refused is None else None)  # while its slot moves, it tells nothing: `age` grows
        follower, picture = self.feed.follower, self._picture
        entries = follower.take(told)
        for entry in entries:
            sandbox_id = entry.flat[1].decode(errors="backslashreplace")
            before = picture.sandboxes.get(sandbox_id)
            if picture.take(entry) is not None and self.callbacks:
                self._changed(before, picture.sandboxes.get(sandbox_id))
            follower.places[entry.partition] = entry.revision  # at last: who waits for it reads what it has left
        if not follower.behind and None not in told:
            # A server that had nothing to tell has waited for the whole heartbeat.
            waited = self.heartbeat if blocked and not follower.split and not entries else 0.0
            self._proven = max(self._proven, sent + waited)
        self._failures = 0

    def lost(self, error: Exception) -> None:
        """The connection is of no use any more. What is not an outage makes it list again: there is a gap, or worse."""
        outage = isinstance(error, (Failure, StoreUnavailableError, Closed, LaidOut))
        self._laid_out |= isinstance(error, LaidOut)
        if not isinstance(error, (Closed, LaidOut)):
            expected = isinstance(error, (Failure, SandboxError))
            again = self._failures and expected and not isinstance(error, CompactedError)
            level = logging.DEBUG if again else logging.WARNING
            _log.log(level, "a mirror is stale: %s", error, exc_info=None if expected else error)
            if isinstance(error, StoreRolledBackError):  # on_change will tell of it as of a removal
                _log.warning("a mirror lists again: what is not there any more was lost, it need not have been removed")
            self._failures += 1
        self.attached = False
        if self.feed is not None:
            self.feed.detach()
        if not outage:
            self.feed = None

    def pause(self) -> float:
        """Seconds to wait before the next attempt to connect."""
        if not self._failures:
            return 0.0
        return random.uniform(0.5, 1) * min(PAUSE_FIRST * 2.0 ** min(self._failures - 1, 50), PAUSE_MAX)

    def _changed(self, before: Sandbox | None, after: Sandbox | None) -> None:
        before, after = (sandbox if sandbox and self._wanted.shows(sandbox) else None for sandbox in (before, after))
        if before != after:
            self.changes.append((before, after))

    # -- reading

    @property
    def synced(self) -> bool:
        """Whether it is connected and has caught up with the events of the time of its listing."""
        if not self.attached or self.feed is None or self._picture is None:
            return False
        return self._picture.caught_up(self.feed.follower.places)

    @property
    def age(self) -> float:
        """Seconds; whatever happened longer ago than this is known."""
        return max(0.0, time.monotonic() - self._proven)

    @property
    def stale(self) -> bool:
        """Whether it may have missed something: it is not synced, or has not heard from the server for long."""
        return not self.synced or self.age > STALE * (self.heartbeat + TICK)

    def get(self, sandbox_id: str) -> Sandbox:
        """The sandbox; raises `NotFoundError`."""
        sandbox = self.sandboxes.get(sandbox_id) if isinstance(sandbox_id, str) else None
        if sandbox is None or not self._wanted.shows(sandbox):
            checks.sandbox_id(sandbox_id)
            raise NotFoundError(sandbox_id)
        return sandbox

    def list(
        self,
        states: Iterable[State] | None,
        node: str | None,
        labels: Mapping[str, str] | None,
        namespace: str | None,
    ) -> Sequence[Sandbox]:
        """The sandboxes that fit, in the order of their ids."""
        chosen = selection(states=states, node=node, labels=labels, namespace=namespace, default=self._listed)
        return sorted(self._chosen(chosen), key=lambda sandbox: sandbox.id)

    def count(self, state: State | None, node: str | None) -> int:
        """How many sandboxes `list` would give."""
        states = None if state is None else (one_state("state", state),)
        return len(self._chosen(selection(states=states, node=node, default=self._listed)))

    def _chosen(self, chosen: Selection) -> Sequence[Sandbox]:
        shown = (each for each in tuple(self.sandboxes.values()) if self._wanted.shows(each) and chosen.shows(each))
        picky = chosen.node is not None or chosen.labels or chosen.namespace is not None
        return [each for each in shown if chosen.fits(each)] if picky else list(shown)

    def reached(self, what: Sandbox | str) -> bool:
        """Whether it knows of a write, given as what that returned.

        Raises:
            InvalidArgumentError: it is nothing that can be waited for.
        """
        revision = what.revision if isinstance(what, Sandbox) else what
        if not is_place(revision):
            raise InvalidArgumentError("revision", what, "a revision, or a sandbox with one, is needed")
        if self._layout is not None and self._layout.partitions > 1 and not isinstance(what, Sandbox):
            rule = "the sandbox as the write returned it is needed, in a store with several partitions"
            raise InvalidArgumentError("revision", what, rule)
        if self.feed is None:
            return False
        partition = 0
        if isinstance(what, Sandbox):
            known = self.sandboxes.get(what.id)
            if known is not None and is_as_of(known, revision):
                return True
            partition = self.feed.layout.partition(what.id)
        return place(self.feed.follower.places[partition]) >= place(revision)

    def too_late(self, what: Sandbox | str, seconds: float) -> WaitTimeoutError:
        """What to raise when a write was not `reached` in time."""
        sandbox_id, revision = (what.id, what.revision) if isinstance(what, Sandbox) else ("", what)
        return WaitTimeoutError(sandbox_id, seconds, f"in the mirror as of {revision}")


def mirrored(
    session: Session,
    *,
    states: Iterable[State] | None,
    node: str | None,
    labels: Mapping[str, str] | None,
    namespace: str | None,
    heartbeat: float = HEARTBEAT,
) -> Mirroring:
    """What a mirror of these is to know."""
    wanted = selection(states=states, node=node, labels=labels, namespace=namespace, default=ALL)
    return Mirroring(session, wanted, chosen=states is not None, heartbeat=heartbeat)
