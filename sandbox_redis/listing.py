"""How many sandboxes are read: a script chooses the next ids on the server, their records are read while it chooses the
ones behind them; across all partitions, with a cursor that stays good while sandboxes come and go. No I/O. What users
call stands in ``queries.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sandbox_redis import checks
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.in_step import together
from sandbox_redis.keys import Keys
from sandbox_redis.record import Metadata, Sandbox, Status, sandbox_from_flat
from sandbox_redis.selection import Selection
from sandbox_redis.session import PARTITIONS_MAX, Session
from sandbox_redis.states import State
from sandbox_redis.wire import Op, ServerError

PAGE: Final = 500  # sandboxes; larger pages gain nothing (measured), and their replies wait in the server's memory
PAGE_MAX: Final = 1000
BUDGET: Final = 3000  # about 2 ms of server time, in the script's own measure
_CURSOR = re.compile(r"(\d{1,5}):(.*)", re.DOTALL | re.ASCII).fullmatch
NOTHING: Final = "0-0"
"""Stands for the place before the first event."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some sandboxes of a listing."""

    sandboxes: Sequence[Sandbox]
    """In the order of their ids within each partition. They may be fewer than asked for, or none, while there is a
    cursor: a page ends where it would keep the server busy."""
    cursor: str | None
    """What `after` takes to go on; None at the end. It stays good for ever, whatever comes and goes."""
    since: str | None = None
    """Where a watch goes on that is to miss nothing after the first page; only that page has it."""


class Choice(NamedTuple):
    """The ids of a page."""

    ids: list[tuple[int, list[bytes]]]
    """Partitions and ids."""
    cursor: str | None

    def __len__(self) -> int:
        return sum(len(ids) for _, ids in self.ids)


class Sheet(NamedTuple):
    """The records of a page, not decoded yet, so that the next one can be on its way meanwhile."""

    rows: list[tuple[str, list[bytes], list[Any]]]
    """The key of a partition's records but for the id, ids, and what their keys hold."""
    wanted: Selection
    choice: Choice
    following: Choice | None

    def sandboxes(self) -> Iterator[Sandbox]:
        """Decode them. Those that have changed since they were chosen, and fit no more, are left out."""
        for head, ids, records in self.rows:
            for raw, record in zip(ids, records, strict=True):
                sandbox_id = raw.decode(errors="backslashreplace")
                if isinstance(record, ServerError):
                    yield unreadable(sandbox_id, head + sandbox_id, record.message)
                elif record:
                    sandbox = sandbox_from_flat(sandbox_id, head + sandbox_id, record)
                    if self.wanted.shows(sandbox) and (sandbox.problem is not None or self.wanted.fits(sandbox)):
                        yield sandbox


class Listing:
    """A listing on its way: what is to be read next."""

    def __init__(
        self,
        session: Session,
        wanted: Selection,
        after: str | None,
        limit: int | None,
        timeout: float | None,
        *,
        replica: bool = False,
    ) -> None:
        self.room = sys.maxsize if limit is None else checks.integer("limit", limit, 1, sys.maxsize)
        session.deadline(timeout)  # wrong arguments are refused at once
        parsed(after)
        self._session = session
        self._wanted = wanted
        self._timeout = timeout
        self._replica = replica
        self._after = after
        self._choice: Choice | None = None
        self.more = True
        """Whether there is another page."""

    def next(self, *, following: bool = True) -> Op[Sheet]:
        """Read the next page, and with `following` choose the ids of the one behind it. When that failed it can be
        played again."""
        session, deadline = self._session, self._session.deadline(self._timeout)
        layout = yield from session.open(deadline, write=False)
        choice = self._choice
        if choice is None:
            choice = yield from self._choose(layout, self._after, min(PAGE, self.room), deadline)
        ops: list[Op[Any]] = [self._fetch(layout, partition, ids, deadline) for partition, ids in choice.ids]
        room = min(PAGE, self.room - len(choice))
        ahead = following and room > 0 and choice.cursor is not None
        if ahead:
            ops.append(self._choose(layout, choice.cursor, room, deadline))
        done = (yield from together(ops)) if ops else []
        behind = done.pop() if ahead else None
        heads = [layout.status_prefix(partition) for partition, _ in choice.ids]
        rows = [(head, ids, records) for head, (_, ids), records in zip(heads, choice.ids, done, strict=True)]
        return Sheet(rows, self._wanted, choice, behind)

    def took(self, sheet: Sheet) -> Sheet:
        """The next page has come."""
        self.room -= len(sheet.choice)
        self._choice, self._after = sheet.following, sheet.choice.cursor
        self.more = sheet.choice.cursor is not None and self.room > 0
        return sheet

    def _choose(self, layout: Keys, after: str | None, limit: int, deadline: Deadline) -> Op[Choice]:
        """The next ids, across the partitions, until there are `limit` or a script ends early."""
        wanted = self._wanted
        partition, last, end = *parsed(after, layout.partitions), layout.partitions
        if wanted.sandbox_id is not None:
            partition, last = layout.partition(wanted.sandbox_id), b""
            end = partition if after else partition + 1
        found: list[tuple[int, list[bytes]]] = []
        window = 1  # partitions asked at once; it grows while they hold little
        while partition < end and wanted.states:
            group = range(partition, min(partition + window, end))
            parts = yield from together(
                self._part(layout, p, last if p == partition else b"", limit, deadline) for p in group
            )
            for p, (ids, stopped) in zip(group, parts, strict=True):
                taken = ids[:limit]
                limit -= len(taken)
                if taken:
                    found.append((p, taken))
                if len(taken) < len(ids) or stopped:
                    place = taken[-1] if len(taken) < len(ids) else stopped
                    return Choice(found, f"{p}:{place.decode(errors='surrogateescape')}")
                if not limit and p + 1 < end:
                    return Choice(found, f"{p + 1}:")
            partition, last, window = group.stop, b"", window * 2
        return Choice(found, None)

    def _part(
        self, layout: Keys, partition: int, after: bytes, limit: int, deadline: Deadline
    ) -> Op[tuple[list[bytes], bytes]]:
        session, wanted, node = self._session, self._wanted, self._wanted.node or ""
        names = (*layout.states(partition), layout.node(partition, node))
        states = "".join(f" {state} " for state in wanted.states)
        head = layout.status_prefix(partition)
        args = (head, after, wanted.sandbox_id or "", limit, BUDGET, states, node, *wanted.fields())
        reply = yield from session.exchange.run("page", names, args, deadline, replica=self._replica)
        if isinstance(reply, ServerError):
            yield from session.wrong_type(names, deadline, (b"zset",) * 5)
        _, last, ids = reply
        return ids, last

    def _fetch(self, layout: Keys, partition: int, ids: list[bytes], deadline: Deadline) -> Op[list[Any]]:
        head = layout.status_prefix(partition).encode()
        commands = tuple(("HGETALL", head + each) for each in ids)
        return self._session.exchange.ask(layout.events(partition), commands, deadline, replica=self._replica)


def newest(session: Session, layout: Keys, deadline: Deadline) -> Op[list[str]]:
    """The newest event of each partition."""

    def one(partition: int) -> Op[str]:
        key = layout.events(partition)
        (reply,) = yield from session.exchange.ask(key, (("XREVRANGE", key, "+", "-", "COUNT", 1),), deadline)
        if isinstance(reply, ServerError):
            yield from session.wrong_type((key,), deadline, (b"stream",))
        found = reply[0][0].decode() if reply else None
        session.seen.newest_is(partition, found)
        return found or NOTHING

    return (yield from together(one(p) for p in range(layout.partitions)))


def parsed(after: str | None, partitions: int = PARTITIONS_MAX) -> tuple[int, bytes]:
    """The partition and the id of a page's cursor, in a store with so many partitions.

    Raises:
        InvalidArgumentError: it is none.
    """
    if after is None:
        return 0, b""
    if isinstance(after, str) and (parts := _CURSOR(after)) and int(parts[1]) < partitions:
        with suppress(UnicodeEncodeError):
            return int(parts[1]), parts[2].encode(errors="surrogateescape")  # an id may be anything, as bytes
    raise InvalidArgumentError("after", after, "the cursor of a page of this store is needed")


def unreadable(sandbox_id: str, key: str, reason: str) -> Sandbox:
    """What stands in a listing for a record that could not be read."""
    problem = f"{key} could not be read: {reason}"
    return Sandbox(sandbox_id, "", Status(State.UNKNOWN), Metadata(), "", problem=problem)
