"""One client's view of one store: its settings, the layout it has learned, and the steps that operations are made of.
It holds no connection. The operations stand in ``operations.py``, how the server is reached in ``exchange.py``.
"""

from __future__ import annotations

import time
from typing import Any, Final, NoReturn

from sandbox_redis import checks, keys
from sandbox_redis.concern import WriteConcern, concern
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    SandboxError,
    SchemaError,
    StoreUnavailableError,
    TransitionError,
)
from sandbox_redis.exchange import Exchange
from sandbox_redis.record import STATUS_FIELDS, Sandbox, hash_reply, pairs, sandbox_from_fields
from sandbox_redis.seen import Seen
from sandbox_redis.states import advice
from sandbox_redis.topology import Topology
from sandbox_redis.trace import Trace, token
from sandbox_redis.wire import TRANSIENT, Command, Op, ServerError

SCHEMA: Final = 1
TIMEOUT: Final = 5.0  # seconds
EVENTS_MAXLEN: Final = 100_000  # events in each partition
PARTITIONS_MAX: Final = 16_384  # as many as a cluster has slots; more would share them
READ_FROM: Final = ("master", "replica")
ABSENCE_AGE: Final = 1.0  # seconds; after an absence it is looked no sooner whether the server has lost its data
FLOOR_AGE: Final = 10.0  # seconds; 100,000 events, which a partition keeps, are not written in this time
_TYPES: Final = (
    b"hash",
    b"stream",
    b"zset",
    b"zset",
    b"zset",
    b"zset",
    b"zset",
    b"zset",
)  # of Keys.change, and a node's index
_ADDING: Final = frozenset({"create", "load"})  # they know the node
_NODES: Final = frozenset({"create", "load", "fail_start", "remove"})  # their scripts write the indexes of nodes, too


class Session:
    """The settings of a store's client, and what it knows of the store."""

    def __init__(
        self,
        topology: Topology,
        *,
        prefix: str,
        agent: str,
        timeout: float,
        partitions: int | None,
        events_maxlen: int,
        read_from: str = "master",
        write_concern: WriteConcern | None = None,
    ) -> None:
        self.prefix = checks.prefix(prefix)
        self.agent = agent
        self.timeout = checks.seconds("timeout", timeout)
        wanted = topology.partitions if partitions is None else partitions
        self._partitions = checks.integer("partitions", wanted, 1, PARTITIONS_MAX)
        self.maxlen = checks.integer("events_maxlen", events_maxlen, 1, checks.INT64_MAX)
        if read_from not in READ_FROM:
            raise InvalidArgumentError("read_from", read_from, f"one of {', '.join(READ_FROM)} is needed")
        if read_from == "replica" and not topology.replicas:
            raise InvalidArgumentError("read_from", read_from, "only Sentinels and clusters know of replicas")
        self.replica = read_from == "replica"
        """Whether queries may ask replicas."""
        self.exchange = Exchange(topology.address, topology.passing)
        self.split = topology.split
        """Whether the partitions may be on several servers."""
        self.write_concern = WriteConcern() if write_concern is None else concern(write_concern)
        self.seen = Seen(topology.address)
        self._absent = 0.0  # when it was looked at last whether the server has lost its data
        self._probed: set[bool] = set()  # what the server can confirm: writes on its disk or not
        self._keys: keys.Keys | None = None
        self._floors: dict[int, tuple[str, float]] = {}  # partition → its newest event known, and when it was learned

    def forget(self) -> None:
        """The server was away, and may have come back empty: learn again how the store is laid out."""
        self._keys = None
        self._probed = set()
        self.seen.doubt()
        self.forget_floors()

    def forget_floors(self) -> None:
        """Take a newer event to look for lost writes from; see `trace`."""
        self._floors.clear()

    def layout(self, *, timeout: float | None = None) -> Op[keys.Keys]:
        """The keys of the store, once it is known how it is laid out."""
        return (yield from self.open(self.deadline(timeout), write=False))

    def read(self, key: str, commands: tuple[Command, ...], *, timeout: float | None = None) -> Op[list[Any]]:
        """The replies to commands that only read, from the server that holds `key`; raises `SchemaError` for a key of
        the wrong type."""
        replies: list[Any] = yield from self.exchange.ask(key, commands, self.deadline(timeout))
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ServerError):
                raise SchemaError(str(command[1]), f"is of the wrong type for {command[0]}: {reply.message}")
        return replies

    def deadline(self, timeout: float | None) -> Deadline:
        """When an operation that begins now gives up."""
        return Deadline(self.timeout if timeout is None else checks.seconds("timeout", timeout), time.monotonic)

    def open(self, deadline: Deadline, *, write: bool = True, new: tuple[int, int] | None = None) -> Op[keys.Keys]:
        """How the store is laid out. Whoever writes first decides; who only reads leaves no trace. With `new`, numbers
        for a new store, it is asked for in any case."""
        if new is None and (known := self._keys) is not None:  # read once: another thread may forget it
            return known
        key = keys.meta(self.prefix)
        (reply,) = yield from self.exchange.ask(
            key, (("HMGET", key, "schema", "partitions", "events_maxlen"),), deadline, share=True
        )
        if not isinstance(reply, ServerError) and not any(reply):
            self.seen.laid_out(None)
            if not write:
                return keys.Keys(self.prefix, self._partitions, laid_out=False)
            ours = (SCHEMA, *(new or (self._partitions, self.maxlen)))
            reply = yield from self.exchange.run("meta", (key,), ours, deadline)
            reply = reply if isinstance(reply, ServerError) else reply[1:]
        if isinstance(reply, ServerError):
            yield from self.wrong_type((key,), deadline)
        schema, *settings = reply
        if schema is not None and schema.isdigit() and int(schema) > SCHEMA:
            newer = f"has schema {int(schema)}, this release knows {SCHEMA}: upgrade sandbox-redis"
            raise SchemaError(key, newer)
        try:
            partitions, maxlen = (int(value) for value in settings)
            if int(schema) != SCHEMA:
                raise ValueError(schema)
            layout = keys.Keys(self.prefix, checks.integer("partitions", partitions, 1, PARTITIONS_MAX))
            self.maxlen = checks.integer("events_maxlen", maxlen, 1, checks.INT64_MAX)
        except (TypeError, ValueError):
            names = dict(zip(("schema", "partitions", "events_maxlen"), reply, strict=False))
            raise SchemaError(key, f"does not say how the store is laid out: {names}; restore it") from None
        self.seen.laid_out(layout.partitions)
        self._keys = layout
        return layout

    def look_back(self, sandbox_id: str, deadline: Deadline, *, absent: bool = False) -> Op[None]:
        """Behind a reply: has the server lost what was seen of it? Asked once when it was away, and every now and then
        when a sandbox is `absent`. It fails no operation."""
        absent = absent and bool(self.seen) and time.monotonic() - self._absent > ABSENCE_AGE
        if not absent and not self.seen.doubtful:
            return
        partition, seen = 0, None
        try:
            layout = yield from self.open(deadline, write=False)
            partition = layout.partition(sandbox_id)
            seen = self.seen.take(partition, absent=absent)
            if seen is None:
                return
            self._absent = time.monotonic()
            asked = self.seen.questions(layout, partition, seen)
            replies = yield from self.exchange.ask(asked[0][1], asked, deadline, share=True)
            if not any(isinstance(reply, ServerError) for reply in replies):  # whoever needs the key names it
                self.seen.answered(partition, seen, replies, self.maxlen)
        except SandboxError as error:
            if seen is not None and isinstance(error, StoreUnavailableError) and error.code in TRANSIENT:
                self.seen.doubtful.setdefault(partition, seen)

    def fetch(
        self, layout: keys.Keys, sandbox_id: str, deadline: Deadline, *, replica: bool = False
    ) -> Op[Sandbox | None]:
        """The sandbox in a record; None when there is none."""
        key = layout.status(sandbox_id)
        (reply,) = yield from self.exchange.ask(key, (("HGETALL", key),), deadline, replica=replica)
        if isinstance(reply, ServerError):
            yield from self.wrong_type((key,), deadline)
        sandbox = sandbox_from_fields(sandbox_id, key, hash_reply(reply)) if reply else None
        yield from self.look_back(sandbox_id, deadline, absent=sandbox is None)
        if sandbox is not None:
            self.seen.note(layout.partition(sandbox_id), sandbox.revision)
        return sandbox

    def trace(
        self,
        layout: keys.Keys,
        sandbox_id: str,
        names: tuple[str, ...],
        deadline: Deadline,
        write_concern: WriteConcern | None,
    ) -> Op[Trace]:
        """What will tell, if a reply is lost, whether the write happened; and what is to confirm it."""
        asked = self.write_concern if write_concern is None else concern(write_concern)
        if asked and asked.fsync not in self._probed:
            yield from self.exchange.probe(asked, names[1], deadline)
            self._probed.add(asked.fsync)
        partition = layout.partition(sandbox_id)
        floor, since = self._floors.get(partition, ("", 0.0))
        if not floor or time.monotonic() - since > FLOOR_AGE:
            events = (("XREVRANGE", names[1], "+", "-", "COUNT", 1),)
            (reply,) = yield from self.exchange.ask(names[1], events, deadline, share=True)
            if isinstance(reply, ServerError):
                yield from self.wrong_type(names, deadline)
            floor = reply[0][0].decode() if reply else "0-0"
            self.seen.newest_is(partition, floor if reply else None)
            self._floors[partition] = floor, time.monotonic()
        return Trace(sandbox_id, partition, (names[0], names[1]), token(), floor, self.maxlen, asked)

    def write(
        self,
        operation: str,
        sandbox_id: str,
        args: tuple[Any, ...],
        timeout: float | None,
        write_concern: WriteConcern | None,
    ) -> Op[Any]:
        """Run the script of an operation that writes; the key of the record, the reply, and its trace."""
        deadline = self.deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = yield from self.open(deadline)
        names = layout.change(sandbox_id)
        trace = yield from self.trace(layout, sandbox_id, names, deadline, write_concern)
        if operation in _NODES:
            args = (layout.node(layout.partition(sandbox_id), ""), *args)
        whole = (sandbox_id, self.agent, trace.request, self.maxlen, *args)
        used = names if operation in _NODES else names[:-1]
        reply = yield from self.exchange.write(operation, used, whole, trace, deadline, stays=operation in _NODES)
        if isinstance(reply, ServerError):
            node = args[1] if operation in _ADDING else None
            if node is None:
                (found,) = yield from self.exchange.ask(names[0], (("HGET", names[0], "node"),), deadline)
                node = found.decode(errors="replace") if isinstance(found, bytes) else ""
            yield from self.wrong_type((*names, layout.node(layout.partition(sandbox_id), node)), deadline)
        absent = reply[0] == b"NOT_FOUND" or reply[:2] == [b"OK", b"0"]
        yield from self.look_back(sandbox_id, deadline, absent=absent)
        return names[0], reply, trace

    def sandbox(self, operation: str, sandbox_id: str, key: str, reply: Any, trace: Trace | None = None) -> Sandbox:
        """The sandbox that a reply carries; raises what a refusal means."""
        if reply[0] == b"OK":
            fields = pairs(reply[1])
            sandbox = sandbox_from_fields(sandbox_id, key, fields)
            if trace and fields.get(b"request") == trace.request.encode():
                self._floors[trace.partition] = sandbox.revision, time.monotonic()
                self.seen.note(trace.partition, sandbox.revision)
                trace.check(sandbox)
            return sandbox
        if reply[0] == b"PASSED":
            # Others have changed it since: its status is in the event of this write. Its metadata never changes, so it
            # is in the record, unless that is of a later sandbox with the same id.
            _, revision, event, record = reply
            then, now = pairs(event), pairs(record)
            metadata = {name: value for name, value in now.items() if name not in STATUS_FIELDS}
            if now.get(b"created_at") != then.get(b"created_at"):
                metadata = {}
            sandbox = sandbox_from_fields(sandbox_id, key, metadata | then | {b"revision": revision})
            if trace:
                trace.check(sandbox)
            return sandbox
        raise self.refusal(operation, sandbox_id, reply)

    def refusal(self, operation: str, sandbox_id: str, reply: Any) -> Exception:
        """The error that a script's refusal means."""
        match reply:
            case [b"NOT_FOUND"]:
                return NotFoundError(sandbox_id)
            case [b"ALREADY_EXISTS", state]:
                return AlreadyExistsError(sandbox_id, state.decode())
            case [b"TRANSITION", state]:
                return TransitionError(sandbox_id, state.decode(), operation, advice(operation, state.decode()))
        return SchemaError(self.prefix, f"gave an unexpected reply to {operation}: {reply!r}")

    def wrong_type(
        self, names: tuple[str, ...], deadline: Deadline, wanted: tuple[bytes, ...] = _TYPES
    ) -> Op[NoReturn]:
        """Raise the error that names the key of the wrong type."""
        types = yield from self.exchange.ask(names[0], tuple(("TYPE", name) for name in names), deadline)
        for name, found, want in zip(names, types, wanted, strict=False):
            if found not in (want, b"none"):
                rule = f"holds a {found.decode()} where a {want.decode()} belongs: rename or delete it"
                raise SchemaError(name, f"{rule}; nothing was changed")
        raise SchemaError(names[0], "or one beside it was of the wrong type, and is not any more: try again")
