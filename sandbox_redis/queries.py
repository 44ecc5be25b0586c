"""Every operation of the store that only reads, once, for the sync store, the asyncio store and batches alike.

Each is a generator, as in ``operations.py``, where those that write stand. How many records are read at a time stands
in ``listing.py``, which sandboxes are meant in ``selection.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandbox_redis import checks, listing
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import AmbiguousIDError, InvalidArgumentError, NotFoundError
from sandbox_redis.in_step import together
from sandbox_redis.listing import Page
from sandbox_redis.record import Event, Sandbox, event_from_fields, hash_reply, pairs, sandbox_from_fields
from sandbox_redis.selection import LISTED, one_state, selection
from sandbox_redis.session import Session
from sandbox_redis.states import State
from sandbox_redis.waiting import Waiting, wait
from sandbox_redis.wire import Command, Op, ServerError

MATCHES: Final = 5  # ids that an AmbiguousIDError names
MANY: Final = 1000  # records that get_many reads in step
HISTORY_PAGE: Final = 500  # events in one reply, filtered here: in a script each costs the server five times as much
COUNT_PAGE: Final = 2000  # ids looked at in one script; about 1 ms of server time


@dataclass(frozen=True, slots=True)
class Counts:
    """How many sandboxes there are."""

    states: Mapping[State, int]
    """In each of the four states."""
    nodes: Mapping[str, int]
    """On each node that has some, whatever their states, in the order of the nodes' names."""


def _whole(score: bytes) -> int:
    """The number that a score is which is not written in digits; 0 of what no agent has written."""
    number = float(score)
    return int(number) if number > 0 and number.is_integer() else 0


class Queries(Session):
    """The operations of one store that only read."""

    def get(self, sandbox_id: str, *, timeout: float | None = None) -> Op[Sandbox]:
        """Read one sandbox, in any state. One round trip.

        A record that cannot be decoded is returned as UNKNOWN, with its `problem`.

        Args:
            sandbox_id: the whole id; see `resolve` for a prefix.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Raises:
            NotFoundError: there is no such sandbox.
            SchemaError: its key holds something other than a hash.
            StoreUnavailableError: the server could not answer before the timeout.
        """
        deadline = self.deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = yield from self.open(deadline, write=False)
        sandbox = yield from self.fetch(layout, sandbox_id, deadline, replica=self.replica)
        if sandbox is None:
            raise NotFoundError(sandbox_id)
        return sandbox

    def get_many(self, sandbox_ids: Iterable[str], *, timeout: float | None = None) -> Op[dict[str, Sandbox]]:
        """Read many sandboxes, in any state. One round trip for each 1,000.

        Args:
            sandbox_ids: whole ids.
            timeout: as for `get`.

        Returns:
            Those that are there, by id, in the order asked for. What cannot be read is UNKNOWN, with its `problem`.

        Raises:
            InvalidArgumentError: an id breaks its rule; nothing was sent.
            StoreUnavailableError: as for `get`.
        """
        deadline = self.deadline(timeout)
        if isinstance(sandbox_ids, str) or not isinstance(sandbox_ids, Iterable):
            raise InvalidArgumentError("sandbox_ids", sandbox_ids, "some ids are needed")
        wanted = list(dict.fromkeys(checks.sandbox_id(sandbox_id) for sandbox_id in sandbox_ids))
        layout = yield from self.open(deadline, write=False)

        def one(sandbox_id: str) -> Op[Sandbox | None]:
            key = layout.status(sandbox_id)
            (reply,) = yield from self.exchange.ask(key, (("HGETALL", key),), deadline, replica=self.replica)
            if isinstance(reply, ServerError):
                return listing.unreadable(sandbox_id, key, reply.message)
            return sandbox_from_fields(sandbox_id, key, hash_reply(reply)) if reply else None

        found: list[Sandbox | None] = []
        for first in range(0, len(wanted), MANY):
            found += yield from together(one(sandbox_id) for sandbox_id in wanted[first : first + MANY])
        return {sandbox.id: sandbox for sandbox in found if sandbox is not None}

    def port_forward(self, sandbox_id: str, *, timeout: float | None = None) -> Op[Sandbox]:
        """Make sure that ports of the sandbox may be forwarded: a guard, which writes nothing. One round trip.

        Only READY passes, as in containerd's ``PortForward``.

        Raises:
            NotFoundError, TransitionError: it may not.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        deadline = self.deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = yield from self.open(deadline, write=False)
        key = layout.status(sandbox_id)
        reply = yield from self.exchange.run("port_forward", (key,), (), deadline)
        if isinstance(reply, ServerError):
            yield from self.wrong_type((key,), deadline)
        return self.sandbox("port_forward", sandbox_id, key, reply)

    def page(
        self,
        *,
        states: Iterable[State] | None = None,
        cri_state: str | None = None,
        sandbox_id: str | None = None,
        node: str | None = None,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        after: str | None = None,
        limit: int = listing.PAGE,
        timeout: float | None = None,
    ) -> Op[Page]:
        """Read one page of a listing. Two round trips, one more for the first page, and one for each doubling of the
        partitions looked at while they hold little.

        A sandbox that is there from the first page to the last comes exactly once; one that comes, goes or changes its
        state meanwhile comes at most once. The server filters; it is kept busy for about 2 ms at most.

        Args:
            states: READY, NOTREADY and UNKNOWN when None: as in CRI's ``ListPodSandbox``, INIT is there only when
                asked for. The indexes decide; a record that cannot be read is shown as UNKNOWN, with its `problem`.
            cri_state: ``SANDBOX_READY`` or ``SANDBOX_NOTREADY``, which is NOTREADY and UNKNOWN.
            sandbox_id: only this one; a whole id.
            node: only those on this node; on any when None.
            labels: only those that have all of these labels, with these values.
            namespace: only those in this namespace; in any when None.
            after: the cursor of the page before; None for the first.
            limit: how many sandboxes at most, 1 to 1000.
            timeout: as for `get`.

        Raises:
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        wanted = selection(
            states=states, cri_state=cri_state, sandbox_id=sandbox_id, node=node, labels=labels, namespace=namespace
        )
        checks.integer("limit", limit, 1, listing.PAGE_MAX)
        pages = listing.Listing(self, wanted, after, limit, timeout, replica=self.replica)
        deadline = self.deadline(timeout)
        layout = yield from self.open(deadline, write=False)
        first = not after and not self.replica  # a watch that begins behind what a replica shows would have a gap
        since = ",".join((yield from listing.newest(self, layout, deadline))) if first else None
        sheet = yield from pages.next(following=False)
        return Page(list(sheet.sandboxes()), sheet.choice.cursor, since)

    def ids(
        self, *, states: Iterable[State] | None = None, node: str | None = None, timeout: float | None = None
    ) -> Op[list[str]]:
        """The ids of the sandboxes in some states, on one node or all. One round trip; no record is read.

        Args:
            states, node, timeout: as for `page`.

        Returns:
            The ids, in order. Each was in one of the states when its partition was read.

        Raises:
            as `page`.
        """
        deadline = self.deadline(timeout)
        wanted = selection(states=states, node=node)
        layout = yield from self.open(deadline, write=False)

        def part(partition: int) -> Op[set[bytes]]:
            names = [layout.state(partition, state) for state in wanted.states]
            names += [] if node is None else [layout.node(partition, node)]
            replies = yield from self._ask(tuple(("ZRANGE", name, 0, -1) for name in names), deadline)
            ids = {member for reply in replies[: len(wanted.states)] for member in reply}
            return ids if node is None else ids.intersection(replies[-1])

        found: set[bytes] = set()
        if wanted.states:
            found.update(*(yield from together(part(p) for p in range(layout.partitions))))
        return sorted(member.decode(errors="backslashreplace") for member in found)

    def count(self, *, state: State | None = None, node: str | None = None, timeout: float | None = None) -> Op[int]:
        """How many sandboxes there are in a state, on a node. No record is read.

        One round trip; with a node it costs what the smaller index costs, in steps of 2,000.

        Args:
            state: READY, NOTREADY and UNKNOWN together when None.
            node, timeout: as for `page`.

        Raises:
            as `page`.
        """
        deadline = self.deadline(timeout)
        states = LISTED if state is None else (one_state("state", state),)
        selection(node=node)
        layout = yield from self.open(deadline, write=False)

        def part(partition: int, each: State) -> Op[int]:
            index = layout.state(partition, each)
            if node is None:
                (number,) = yield from self._ask((("ZCARD", index),), deadline)
                return int(number)
            names = (index, layout.node(partition, node))
            total, after = 0, b"-"
            while after:
                reply = yield from self.exchange.run(
                    "count", names, (after, COUNT_PAGE), deadline, replica=self.replica
                )
                if isinstance(reply, ServerError):
                    yield from self.wrong_type(names, deadline, (b"zset", b"zset"))
                _, number, after = reply
                total += number
            return total

        return sum((yield from together(part(p, each) for p in range(layout.partitions) for each in states)))

    def counts(self, *, timeout: float | None = None) -> Op[Counts]:
        """How many sandboxes there are in each state, and on each node. One round trip; no record is read.

        Raises:
            SchemaError, StoreUnavailableError: as for `get`.
        """
        deadline = self.deadline(timeout)
        layout = yield from self.open(deadline, write=False)

        def part(partition: int) -> Op[Any]:
            names = (*layout.states(partition), layout.nodes(partition))
            reply = yield from self.exchange.run("counts", names, (), deadline, replica=self.replica)
            if isinstance(reply, ServerError):
                yield from self.wrong_type(names, deadline, (b"zset",) * len(names))
            return reply

        states = dict.fromkeys(State, 0)
        nodes: dict[str, int] = {}
        for _, in_states, on_nodes in (yield from together(part(p) for p in range(layout.partitions))):
            for name, number in pairs(in_states).items():
                states[State(name.decode())] += int(number)
            for name, number in pairs(on_nodes).items():
                node = name.decode(errors="backslashreplace")
                nodes[node] = nodes.get(node, 0) + (int(number) if number.isdigit() else _whole(number))
        return Counts(states, {node: number for node, number in sorted(nodes.items()) if number > 0})

    def resolve(self, prefix: str, *, timeout: float | None = None) -> Op[str]:
        """The id that begins so, if there is only one: containerd's ``truncindex``. One round trip.

        An id that is just so is taken even where others begin with it. Sandboxes in INIT are found, too.

        Args:
            prefix: what the id begins with, by the rule of ids.
            timeout: as for `get`.

        Raises:
            AmbiguousIDError: several begin so; it names the first.
            NotFoundError: none begins so.
            InvalidArgumentError: it is empty, or no id can begin so; nothing was sent.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        deadline = self.deadline(timeout)
        if prefix == "":
            raise InvalidArgumentError("prefix", prefix, "at least one character of an id is needed")
        checks.sandbox_id(prefix, argument="prefix")
        layout = yield from self.open(deadline, write=False)

        def part(partition: int) -> Op[list[bytes]]:
            begin_so = (f"[{prefix}", f"({prefix[:-1]}{chr(ord(prefix[-1]) + 1)}", "BYLEX", "LIMIT", 0, MATCHES + 1)
            commands = tuple(("ZRANGE", index, *begin_so) for index in layout.states(partition))
            return [member for reply in (yield from self._ask(commands, deadline)) for member in reply]

        parts = yield from together(part(p) for p in range(layout.partitions))
        texts = {member.decode(errors="backslashreplace") for members in parts for member in members}
        found = sorted(filter(checks.is_id, texts))  # what was put there by hand may be no id
        if not found:
            raise NotFoundError(prefix)
        if found[0] != prefix and len(found) > 1:
            raise AmbiguousIDError(prefix, tuple(found[:MATCHES]), more=len(found) > MATCHES)
        return found[0]

    def history(self, sandbox_id: str, *, timeout: float | None = None) -> Op[list[Event]]:
        """What happened to a sandbox, as far back as the events reach; also after it was removed, and over several
        lives of one id.

        It reads all events of its partition, which are about `events_maxlen` at most, 500 in each round trip.

        Args:
            sandbox_id, timeout: as for `get`.

        Returns:
            Its events, the oldest first; none when they have all been trimmed.

        Raises:
            NotFoundError: there is no such sandbox, and no event of it either.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        deadline = self.deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = yield from self.open(deadline, write=False)
        key = layout.events(layout.partition(sandbox_id))
        found: list[Event] = []
        mine, place = sandbox_id.encode(), b"+"
        while place:
            command = ("XREVRANGE", key, place, "-", "COUNT", HISTORY_PAGE)
            (entries,) = yield from self._ask((command,), deadline, b"stream")
            found += [
                event_from_fields(revision.decode(), key, pairs(flat))
                for revision, flat in entries
                if flat[1] == mine  # the id is the first field of each event
            ]
            place = b"(" + entries[-1][0] if len(entries) == HISTORY_PAGE else b""
        if not found:
            (there,) = yield from self._ask((("EXISTS", layout.status(sandbox_id)),), deadline)
            if not there:
                raise NotFoundError(sandbox_id)
        return found[::-1]

    def wait(
        self, sandbox_id: str, until: State | Iterable[State] | None, *, timeout: float | None = None
    ) -> Op[Sandbox | None]:
        """Wait until a sandbox is in one of some states, or gone: containerd's ``StopCh``, across processes.

        Nothing is polled: it follows the events, over a connection of its own, and bridges outages. A state that the
        sandbox is in for a moment only is seen as well, and so is the end of one that is created again.

        Args:
            sandbox_id: the whole id.
            until: a state, or several; None waits until it is gone.
            timeout: seconds; without end when None.

        Returns:
            The sandbox in that state, which may have changed since; None when it is gone, or is not there at all.

        Raises:
            WaitTimeoutError: it has not happened in time.
            CompactedError: the server has lost or trimmed events that may have told of it.
            InvalidArgumentError, SchemaError, StoreUnavailableError: as for `get`.
        """
        return (yield from wait(self, Waiting(sandbox_id, until, timeout)))

    def _ask(self, commands: tuple[Command, ...], deadline: Deadline, kind: bytes = b"zset") -> Op[list[Any]]:
        """What keys of one partition and of one type hold."""
        replies = yield from self.exchange.ask(commands[0][1], commands, deadline, replica=self.replica)
        if any(isinstance(reply, ServerError) for reply in replies):
            yield from self.wrong_type(tuple(command[1] for command in commands), deadline, (kind,) * len(commands))
        return replies
