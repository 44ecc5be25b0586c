"""Hears of changes on several servers, over one connection to each, for threads: a server tells when a key has changed
since it was read (client tracking). It does so once until the key is read again, so who does not listen costs nothing
that grows. It knows nothing of what it carries.
"""

from __future__ import annotations

import math
import select
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import hiredis

from sandbox_redis.lane import Lane
from sandbox_redis.pool import Leased, Pool
from sandbox_redis.replies import pack
from sandbox_redis.tail import Raw, wait
from sandbox_redis.wire import Command, Hear, Lost, Question, Send, ServerError, Unsent

if TYPE_CHECKING:
    from sandbox_redis.line import Line

GREETING: Final[tuple[Command, ...]] = (("HELLO", "3"), ("CLIENT", "TRACKING", "ON"))
NO_REPLY: Final = "no reply came in time"


class Round:
    """The questions of one `Hear`: which are to be asked, and what came back. The same for threads and asyncio."""

    def __init__(self, hear: Hear, changed: set[bytes], whole: float) -> None:
        self.hear = hear
        now = time.monotonic()
        self.due = now if not hear.wait else min(now, whole) + hear.wait
        """When all of them are to be asked: in time after they were at last, which was at `whole`."""
        self._changed = changed
        self._answers: list[list[Any] | None] = [None] * len(hear.questions)
        self.asked: list[int] = []

    def choose(self) -> bool:
        """Choose what to ask now; whether there is anything."""
        all_of_them = time.monotonic() >= self.due
        keys = [key.encode() for key, _ in self.hear.questions]
        self.asked = [n for n, key in enumerate(keys) if all_of_them or key in self._changed]
        self._changed.difference_update(keys[n] for n in self.asked)
        return bool(self.asked)

    def answer(self, n: int, replies: list[Any]) -> None:
        """What came back for a question."""
        self._answers[n] = [list(reply.items()) if isinstance(reply, dict) else reply for reply in replies]

    def answers(self) -> list[list[Any] | None]:
        """All of it."""
        return self._answers


def sort(replies: list[Any], changed: set[bytes], keys: Iterable[str]) -> list[Any]:
    """Take what a server has told without being asked out of its replies, and note it."""
    answers = []
    for reply in replies:
        if isinstance(reply, hiredis.PushNotification):
            if reply[0] == b"invalidate":  # without keys when the server was flushed
                changed.update(reply[1] if reply[1] is not None else (key.encode() for key in keys))
        else:
            answers.append(reply)
    return answers


def greeted(address: str, replies: Sequence[Any]) -> None:
    """Raises `Unsent` when a server does not tell of changes."""
    for reply in replies:
        if isinstance(reply, ServerError):
            unsent = Unsent(address, f"it does not tell of changes (client tracking): {reply.message}", reply.code)
            unsent.hopeless = True
            raise unsent


class _Link:
    """The connection to one server."""

    def __init__(self, leased: Leased, raw: Raw) -> None:
        self.leased = leased
        self.raw = raw
        self.replies: list[Any] = []
        self.asked: list[tuple[int, int]] = []  # numbers of questions, and of their commands
        self.missing = 0
        self.greeted = False


class Tap:
    """The connections of one follower. For one thread at a time, but to wait."""

    blocks = True

    def __init__(self, lane: Lane, line: Line | None = None) -> None:
        self._lane = lane
        # Its line keeps it: in a circle, what a forgotten watch leaves open would be closed late, and with a warning.
        self._line = (lambda: None) if line is None else weakref.ref(line)
        self._links: dict[Pool, _Link] = {}
        self._changed: set[bytes] = set()
        self._poll = select.poll()
        self._round: Round | None = None
        self._whole = 0.0  # when all questions were asked at last
        self.sent = 0.0
        """When something was asked at last."""

    def hear(self, hear: Hear) -> list[list[Any] | None]:
        """Ask and wait for the answers; see `Hear`."""
        if hear.fresh:
            self.close()
        line = self._line()
        try:
            if line is not None:
                for link in self._links.values():
                    line.begin(link.leased, hear.timeout)
            self._begin(hear)
            while (answers := self.receive()) is None:
                assert self._round is not None
                end = self.sent + hear.timeout if self._round.asked else self._round.due
                left = end - time.monotonic()
                if left < 0 and self._round.asked:
                    raise Lost(self._lane.address, NO_REPLY)
                self.wait(left)
                if line is not None:
                    line.check()
        except BaseException:
            self.close()
            if line is not None:
                line.check()
            raise
        finally:
            if line is not None:
                line.end()
        return answers

    def _begin(self, hear: Hear) -> None:
        self._round = Round(hear, self._changed, self._whole)

    def ask(self, questions: Sequence[Question], heartbeat: float) -> None:
        """The next questions, each to be asked when its key has changed, and all of them every so many seconds."""
        self._begin(Hear(tuple(questions), heartbeat, self._round.hear.timeout if self._round else heartbeat))

    def filenos(self) -> list[int]:
        """As `Tail.filenos`."""
        return [link.raw.fileno() for link in tuple(self._links.values())]

    def ready(self) -> bool:
        """As `Tail.ready`."""
        return bool(self._poll.poll(0))

    def wait(self, seconds: float) -> None:
        """As `Tail.wait`."""
        wait(self.filenos(), seconds)

    def patience(self) -> float:
        """As `Tail.patience`."""
        if self._round is None or self._round.asked:
            return math.inf
        return max(0.0, self._round.due - time.monotonic())

    def receive(self) -> list[list[Any] | None] | None:
        """As `Tail.receive`; asks what is to be asked now."""
        this = self._round
        assert this is not None
        keys = [key for key, _ in this.hear.questions]
        while True:
            for pool, link in self._links.items():
                link.replies += sort(link.raw.read(), self._changed, keys)
                if not link.greeted and len(link.replies) >= len(GREETING):
                    greeted(pool.address, link.replies[: len(GREETING)])
                    del link.replies[: len(GREETING)]
                    link.greeted = True
            if this.asked:
                if any(not link.greeted or len(link.replies) < link.missing for link in self._links.values()):
                    return None
                for link in self._links.values():
                    for n, count in link.asked:
                        this.answer(n, link.replies[:count])
                        del link.replies[:count]
                    link.asked, link.missing = [], 0
                return this.answers()
            if not this.choose():
                return None
            self._send(this)

    def _send(self, this: Round) -> None:
        self.sent = time.monotonic()
        if len(this.asked) == len(this.hear.questions):
            self._whole = 0.0 if this.hear.fresh else self.sent  # what was asked first is not what is to be heard
        packets: dict[Pool, list[Command]] = {}
        for n in this.asked:
            key, commands = this.hear.questions[n]
            pool = self._lane.pool(Send(key, (), this.hear.timeout), self._line())
            link = self._links.get(pool) or self._connect(pool, this.hear.timeout)
            link.asked.append((n, len(commands)))
            link.missing += len(commands)
            packets.setdefault(pool, []).extend(commands)
        for pool, sent in packets.items():
            self._links[pool].raw.send(pack(sent)[0])

    def _connect(self, pool: Pool, timeout: float) -> _Link:
        leased = pool.own()
        if (line := self._line()) is None:
            pool.connect(leased, timeout)
        else:
            line.begin(leased, timeout)
        link = self._links[pool] = _Link(leased, Raw(leased))
        self._poll.register(link.raw, select.POLLIN)
        link.raw.send(pack(GREETING)[0])
        return link

    def close(self) -> None:
        """Close the connections."""
        for link in tuple(self._links.values()):
            link.raw.close()
        self._links = {}
        self._poll = select.poll()
        self._changed.clear()
