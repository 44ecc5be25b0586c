"""What a watch does, once, for threads and asyncio alike: begins, reads on, and bridges what comes between. No I/O.
Where it stands and what may be missing is decided in ``follow.py``; the objects that users hold stand in ``watch.py``.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from sandbox_redis import checks
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import StoreRolledBackError, StoreUnavailableError
from sandbox_redis.exchange import Exchange, asked
from sandbox_redis.follow import HEARTBEAT, Entry, Follower, begin, check_since
from sandbox_redis.keys import Keys
from sandbox_redis.listing import NOTHING
from sandbox_redis.picture import draw
from sandbox_redis.record import Event, Sandbox, event_from_flat, pairs
from sandbox_redis.selection import Selection
from sandbox_redis.session import Session
from sandbox_redis.wire import Failure, Hear, LaidOut, Lease, Op, Question, Send, ServerError, Unsent

GRACE: Final = 0.1  # seconds that an answer may be late when somebody waits for so long only
_log: Final = logging.getLogger("sandbox_redis")
_UNBLOCKED: Final = frozenset({"UNBLOCKED"})  # which a master says to blocked readers when it becomes a replica


class Feed:
    """What a follower hears over a connection of its own, and how an outage is bridged."""

    def __init__(
        self, session: Session, layout: Keys, follower: Follower, patience: float, only: str | None = None
    ) -> None:
        self.follower = follower
        self.layout = layout
        self._only = only  # the one sandbox that is followed
        self._session = session
        self._patience = patience
        self._attached = False
        self._outage: Deadline | None = None

    def more(self, seconds: float) -> Op[list[Entry]]:
        """Wait for the next events, for a heartbeat at most, or for these seconds. An outage brings none as well.

        Raises:
            CompactedError, StoreRolledBackError: there would be a gap.
            StoreUnavailableError: the outage lasts too long, or waiting does not help.
        """
        try:
            if not self._attached:
                yield from self.attach(min(self._patience, self._session.timeout, seconds))
            heartbeat = min(HEARTBEAT, seconds)
            timeout = min(heartbeat + self._session.timeout, seconds + GRACE)
            answers = yield from self.hear(self.follower.questions(heartbeat), timeout, heartbeat)
            entries = self.follower.take(answers)
        except (Failure, StoreUnavailableError) as error:
            yield from self.bridge(error)
            return []
        except LaidOut:
            yield from self.relay()
            return []
        except GeneratorExit:  # whoever waited was interrupted, and the connection is gone
            self._attached = False
            raise
        self._outage = None
        return entries

    def attach(self, timeout: float | None = None) -> Op[None]:
        """Take a new connection, and make sure that nothing is missing behind where the follower stands: the server may
        be another one by now, or an older self. Raises `LaidOut` when the store has come into being meanwhile, with
        other partitions."""
        deadline = self._session.deadline(timeout)
        while not self._attached:
            layout = yield from self._session.open(deadline, write=False)
            if layout.partitions != self.layout.partitions:
                if self.follower.undecided:
                    raise LaidOut
                raise StoreRolledBackError(self.follower.cursor)
            try:
                answers = yield from self.hear(self.follower.attach(), deadline.share(), fresh=True)
                self.follower.attached(answers)
                self._attached = True
            except Failure as failure:
                yield from self._session.exchange.again(deadline, failure)

    def relay(self) -> Op[None]:
        """The store did not exist: in partitions that nobody has looked at, everything is new."""
        layout = yield from self._session.open(self._session.deadline(None), write=False)
        known = self.follower.places
        partitions = range(layout.partitions) if self._only is None else [layout.partition(self._only)]
        self.follower = Follower(self._session, layout, {p: known.get(p, NOTHING) for p in partitions})
        self.layout = layout
        self._attached = False

    def detach(self) -> None:
        """The connection is gone."""
        self._attached = False

    def bridge(self, error: Failure | StoreUnavailableError) -> Op[None]:
        """Pause before the next attempt, or raise what `error` means."""
        if self._attached:
            _log.warning("%s; trying again", error)
        self._attached = False
        self._outage = self._outage or Deadline(self._patience, time.monotonic)
        if isinstance(error, Failure):
            yield from self._session.exchange.again(self._outage, error)
        elif error.code in self._session.exchange.passing | _UNBLOCKED:
            yield from self._outage.pause(error)
        else:
            raise error

    def hear(
        self, questions: tuple[Question, ...], timeout: float, heartbeat: float = 0.0, *, fresh: bool = False
    ) -> Op[list[list[Any] | None]]:
        """The answers to what the follower asks, over connections of its own, which are new ones when `fresh`."""
        answers: list[list[Any] | None]
        if self.follower.split:
            wait = 0.0 if self.follower.behind else heartbeat
            answers = yield Hear(questions, wait, timeout, fresh)
        else:
            ((key, commands),) = questions
            answers = [(yield Send(key, commands, timeout, Lease.OWN if fresh else Lease.KEEP))]
        for n, answer in enumerate(answers):
            if refused := refusal_in(answer or (), self._session.exchange):
                if refused.code == "WRONGTYPE":
                    streams = tuple(self.layout.events(partition) for partition in self.follower.places)
                    streams = (questions[n][0],) if self.follower.split else streams
                    deadline = self._session.deadline(None)
                    yield from self._session.wrong_type(streams, deadline, (b"stream",) * len(streams))
                if not (at := asked(refused)):
                    raise refused
                key, commands = questions[n]  # while its slot moves, it is asked for anew each time
                deadline = self._session.deadline(timeout)
                answers[n] = yield from self._session.exchange.ask(key, commands, deadline, at=at)
        return answers


def refusal_in(replies: Sequence[Any], exchange: Exchange) -> Unsent | None:
    """What it means when the server has refused one of a packet's commands."""
    for reply in replies:
        if isinstance(reply, ServerError):
            refused = Unsent(exchange.address, reply.message, reply.code)
            refused.hopeless = reply.code not in exchange.passing | _UNBLOCKED
            return refused
    return None


class Watching:
    """A watch: `more` waits for events, `take` gives them out one by one."""

    def __init__(
        self, session: Session, wanted: Selection, since: str | datetime | None = None, timeout: float | None = None
    ) -> None:
        check_since(since)
        self._patience = math.inf if timeout is None else checks.seconds("timeout", timeout)
        self._session = session
        self._wanted = wanted
        self._since = since
        self._feed: Feed | None = None
        self._told: Callable[[Entry, tuple[str, ...]], Event | None] = self._plainly
        self._buffer: deque[Event] = deque()
        self.cursor: str | None = None
        """Where a watch goes on behind the event that was taken last; None before it has begun."""

    def begin(self, timeout: float | None = None) -> Op[None]:
        """Find out where to begin, once. The server must answer within the timeout of the store, or within this one."""
        if self._feed is None:
            deadline = self._session.deadline(timeout)
            layout = yield from self._session.open(deadline, write=False)
            only = None if self._wanted.sandbox_id is None else layout.partition(self._wanted.sandbox_id)
            follower = yield from begin(self._session, layout, self._since, only, deadline)
            self._stand(layout, follower)
            assert self._feed is not None
            if self._since is not None:
                try:
                    yield from self._feed.attach()
                except LaidOut:
                    yield from self._feed.relay()

    def draw(self) -> Op[list[Sandbox]]:
        """Begin with a listing: the sandboxes that fit. Their events follow."""
        deadline = self._session.deadline(None)
        layout = yield from self._session.open(deadline, write=False)
        picture, follower = yield from draw(self._session, layout, self._wanted, deadline)

        def told(entry: Entry, places: tuple[str, ...]) -> Event | None:
            event = picture.take(entry, places)
            return event if event is not None and self._wanted.tells(event) else None

        self._told = told
        self._stand(layout, follower)
        return list(picture.shown())

    def _stand(self, layout: Keys, follower: Follower) -> None:
        self._feed = Feed(self._session, layout, follower, self._patience, self._wanted.sandbox_id)
        self.cursor = follower.cursor

    def more(self, seconds: float = math.inf) -> Op[None]:
        """Wait for events, for a heartbeat at most, or for these seconds."""
        yield from self.begin()
        assert self._feed is not None
        entries = yield from self._feed.more(seconds)
        places = self._feed.follower.places
        for entry in entries:
            before, places[entry.partition] = places[entry.partition], entry.revision
            try:
                event = self._told(entry, tuple(places.values()))
            except BaseException:  # Ctrl-C, of all: it will be read again
                places[entry.partition] = before
                raise
            if event is not None:
                self._buffer.append(event)

    def take(self) -> Event | None:
        """The next event that is there."""
        if self._buffer:
            event = self._buffer.popleft()
            self.cursor = event.cursor
            return event
        if self._feed is not None:
            self.cursor = self._feed.follower.cursor
        return None

    def _plainly(self, entry: Entry, places: tuple[str, ...]) -> Event | None:
        """The event, if it is of a sandbox and a state that are wanted."""
        wanted, flat = self._wanted, entry.flat
        if wanted.sandbox_id is not None and wanted.sandbox_id.encode() != flat[1]:  # the id is the first field
            return None
        if wanted.node is not None and pairs(flat).get(b"node") != wanted.node.encode():
            return None
        assert self._feed is not None
        event = event_from_flat(entry.revision, self._feed.layout.events(entry.partition), flat, places)
        return event if wanted.tells(event) else None
