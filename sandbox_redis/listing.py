"""How many sandboxes are read: in portions that one script each filters on the server, across all partitions, with a
cursor that stays good while sandboxes come and go. No I/O. What users call stands in ``queries.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.exchange import Deadline
from sandbox_redis.in_step import together
from sandbox_redis.keys import Keys
from sandbox_redis.record import Metadata, Sandbox, Status, sandbox_from_flat
from sandbox_redis.selection import Selection
from sandbox_redis.session import Session
from sandbox_redis.states import State
from sandbox_redis.wire import Op, ServerError

PAGE: Final = 200  # sandboxes; a page of so many takes the server 1.5 to 2 ms (measured), and larger ones gain nothing
PAGE_MAX: Final = 1000
BUDGET: Final = 3000  # fields read in one script, 0.5 us each; so records with many fields make smaller pages
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


class Portion(NamedTuple):
    """What one script read of one partition."""

    head: str
    """What the keys of its records begin with."""
    rows: list[Any]
    """Each id with its fields as ``page.lua`` gives them, not decoded yet."""
    last: str
    """The id that it came to; empty at the end of the partition."""
    newest: str
    """The newest event then: each sandbox up to `last` is as this event left it."""

    def sandboxes(self) -> Iterator[Sandbox]:
        """Decode what was read."""
        items = iter(self.rows)
        for raw, fields in zip(items, items, strict=True):
            sandbox_id = raw.decode(errors="backslashreplace")
            key = self.head + sandbox_id
            if isinstance(fields, list):
                yield sandbox_from_flat(sandbox_id, key, fields)
                continue
            number, *flat = fields.split(b"\0")
            if int(number) == len(flat):
                yield sandbox_from_flat(sandbox_id, key, flat)
            else:
                reason = "a value has NUL in it" if int(number) else flat[0].decode(errors="replace")
                yield unreadable(sandbox_id, key, reason)


class Sheet(NamedTuple):
    """A page, not decoded yet, so that the next one can be on its way meanwhile."""

    portions: list[Portion]
    cursor: str | None
    since: str | None

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.portions) // 2

    def sandboxes(self) -> Iterator[Sandbox]:
        """Decode it."""
        return chain.from_iterable(part.sandboxes() for part in self.portions)


def portion(
    session: Session, layout: Keys, partition: int, wanted: Selection, after: str, limit: int, deadline: Deadline
) -> Op[Portion]:
    """Read on in one partition."""
    head, node = layout.status_prefix(partition), wanted.node or ""
    names = (layout.events(partition), *layout.states(partition), layout.node(partition, node))
    states = "".join(f" {state} " for state in wanted.states)
    only = wanted.sandbox_id or ""
    args = (head, after.encode(errors="surrogateescape"), only, limit, BUDGET, states, node, *wanted.fields())
    reply = yield from session.exchange.run("page", names, args, deadline)
    if isinstance(reply, ServerError):
        yield from session.wrong_type(names, deadline, (b"stream", *(b"zset",) * 5))
    _, newest, last, rows = reply
    return Portion(head, rows, last.decode(errors="surrogateescape"), newest.decode() or NOTHING)


def sheet(
    session: Session, layout: Keys, wanted: Selection, after: str | None, limit: int, deadline: Deadline
) -> Op[Sheet]:
    """Read on across the partitions, until there are `limit` sandboxes or a portion ends early."""
    if wanted.sandbox_id is None:
        partition, last = parsed(after, layout)
        end = layout.partitions
    else:
        partition, last = layout.partition(wanted.sandbox_id), ""
        end = partition if after else partition + 1
    since = None if after else ",".join((yield from newest(session, layout, deadline)))
    found: list[Portion] = []
    room = limit
    window = 1  # partitions asked at once; it grows while they hold little
    while partition < end and wanted.states:
        group = range(partition, min(partition + window, end))
        parts = yield from together(
            portion(session, layout, p, wanted, last if p == partition else "", room, deadline) for p in group
        )
        for p, part in zip(group, parts, strict=True):
            if len(part.rows) > 2 * room:
                rows = part.rows[: 2 * room]
                found.append(part._replace(rows=rows))
                return Sheet(found, f"{p}:{rows[-2].decode(errors='surrogateescape')}", since)
            found.append(part)
            room -= len(part.rows) // 2
            if part.last:
                return Sheet(found, f"{p}:{part.last}", since)
            if not room and p + 1 < end:
                return Sheet(found, f"{p + 1}:", since)
        partition, last, window = group.stop, "", window * 2
    return Sheet(found, None, since)


def newest(session: Session, layout: Keys, deadline: Deadline) -> Op[list[str]]:
    """The newest event of each partition."""

    def one(key: str) -> Op[str]:
        (reply,) = yield from session.exchange.ask(key, (("XREVRANGE", key, "+", "-", "COUNT", 1),), deadline)
        if isinstance(reply, ServerError):
            yield from session.wrong_type((key,), deadline, (b"stream",))
        return reply[0][0].decode() if reply else NOTHING

    return (yield from together(one(layout.events(p)) for p in range(layout.partitions)))


def parsed(after: str | None, layout: Keys) -> tuple[int, str]:
    """The partition and the id of a page's cursor."""
    if after is None:
        return 0, ""
    rule = "the cursor of a page of this store is needed"
    if not isinstance(after, str):
        raise InvalidArgumentError("after", after, rule)
    partition, colon, last = after.partition(":")
    if not colon or not partition.isdecimal() or len(partition) > 5 or int(partition) >= layout.partitions:
        raise InvalidArgumentError("after", after, rule)
    return int(partition), last


def unreadable(sandbox_id: str, key: str, reason: str) -> Sandbox:
    """What stands in a listing for a record that could not be read."""
    problem = f"{key} could not be read: {reason}"
    return Sandbox(sandbox_id, "", Status(State.UNKNOWN), Metadata(), "", problem=problem)
