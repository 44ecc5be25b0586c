"""Every operation of the store, once, for the sync store, the asyncio store and batches alike.

Each is a generator: it checks its arguments, yields what is to be sent and returns the result. It does no I/O and
imports no redis. How to reach the server stands in ``exchange.py``, what a record looks like in ``record.py``.
"""

from __future__ import annotations

import inspect
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, NoReturn

from sandbox_redis import checks, keys
from sandbox_redis.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    SchemaError,
    TransitionError,
)
from sandbox_redis.exchange import Deadline, Exchange, Trace, evalsha, load, token
from sandbox_redis.record import (
    Metadata,
    Sandbox,
    Status,
    metadata_to_fields,
    pairs,
    sandbox_from_fields,
    status_to_fields,
    time_to_text,
)
from sandbox_redis.states import State, advice
from sandbox_redis.wire import Command, Failure, Lease, Lost, Op, Send, ServerError

SCHEMA: Final = 1
TIMEOUT: Final = 5.0  # seconds
EVENTS_MAXLEN: Final = 100_000  # events in each partition
_TYPES: Final = (b"hash", b"stream", b"zset", b"zset", b"zset", b"zset")  # of what Keys.change gives
PARTITIONS_MAX: Final = 16_384  # as many as a cluster has slots; more would share them

UpdateFunc = Callable[[Status], Status]
"""Gets the status as it is, returns it as it is to be. It may be called more than once, so it must be pure."""


class Operations:
    """The operations of one store. It keeps what it has learned of the store's layout, and no connection."""

    def __init__(
        self, address: str, *, prefix: str, agent: str, timeout: float, partitions: int, events_maxlen: int
    ) -> None:
        self.prefix = checks.prefix(prefix)
        self.agent = checks.text("agent", agent, limit=256)
        self.timeout = checks.seconds("timeout", timeout)
        self._partitions = checks.integer("partitions", partitions, 1, PARTITIONS_MAX)
        self._maxlen = checks.integer("events_maxlen", events_maxlen, 1, checks.INT64_MAX)
        self._exchange = Exchange(address)
        self._keys: keys.Keys | None = None
        self._floors: dict[int, str] = {}  # partition → an event id that was there before whatever is sent from now on

    # -- reading

    def get(self, sandbox_id: str, *, timeout: float | None = None) -> Op[Sandbox]:
        """Read one sandbox, in any state. One round trip.

        A record that cannot be decoded is returned as UNKNOWN, with its `problem`.

        Args:
            sandbox_id: the whole id.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Raises:
            NotFoundError: there is no such sandbox.
            SchemaError: its key holds something other than a hash.
            StoreUnavailableError: the server could not answer before the timeout.
        """
        deadline = self._deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = self._keys or (yield from self._open(deadline, write=False))
        key = layout.status(sandbox_id)
        (reply,) = yield from self._exchange.ask(key, (("HGETALL", key),), deadline)
        if isinstance(reply, ServerError):
            yield from self._wrong_type((key,), deadline)
        if not reply:
            raise NotFoundError(sandbox_id)
        return sandbox_from_fields(sandbox_id, key, _fields(reply))

    def port_forward(self, sandbox_id: str, *, timeout: float | None = None) -> Op[Sandbox]:
        """Make sure that ports of the sandbox may be forwarded: a guard, which writes nothing. One round trip.

        Only READY passes, as in containerd's ``PortForward``.

        Raises:
            NotFoundError, TransitionError: it may not.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        deadline = self._deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = self._keys or (yield from self._open(deadline, write=False))
        key = layout.status(sandbox_id)
        reply = yield from self._exchange.run("port_forward", (key,), (), deadline)
        if isinstance(reply, ServerError):
            yield from self._wrong_type((key,), deadline)
        return self._sandbox("port_forward", sandbox_id, key, reply)

    def ids(
        self, *, states: Iterable[State] | None = None, node: str | None = None, timeout: float | None = None
    ) -> Op[list[str]]:
        """The ids of the sandboxes in some states, on one node or all. One round trip; no record is read.

        Args:
            states: READY, NOTREADY and UNKNOWN when None: as in CRI's ``ListPodSandbox``, INIT is there only when
            asked for.
            node: only those on this node; on any when None.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Returns:
            The ids, in order. Each was in one of the states when its partition was read.

        Raises:
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            SchemaError, StoreUnavailableError: as for `get`.
        """
        deadline = self._deadline(timeout)
        wanted = [State.READY, State.NOTREADY, State.UNKNOWN] if states is None else list(states)
        for state in wanted:
            if not isinstance(state, State):
                raise InvalidArgumentError("states", state, f"one of {', '.join(State)} is needed")
        if node is not None and not checks.node(node):
            raise InvalidArgumentError("node", node, "it must not be empty; leave it out for all nodes")
        layout = self._keys or (yield from self._open(deadline, write=False))
        found: list[str] = []
        for partition in range(layout.partitions):
            names = [layout.state(partition, state) for state in wanted]
            names += [] if node is None else [layout.node(partition, node)]
            if not wanted:
                break
            ranges = tuple(("ZRANGE", name, 0, -1) for name in names)
            replies = yield from self._exchange.ask(names[0], ranges, deadline)
            if any(isinstance(reply, ServerError) for reply in replies):
                yield from self._wrong_type(tuple(names), deadline, (b"zset",) * len(names))
            ids = {member for reply in replies[: len(wanted)] for member in reply}
            found += [member.decode() for member in (ids if node is None else ids.intersection(replies[-1]))]
        return sorted(found)

    def layout(self, *, timeout: float | None = None) -> Op[keys.Keys]:
        """The keys of the store, once it is known how it is laid out."""
        return self._keys or (yield from self._open(self._deadline(timeout), write=False))

    def read(self, key: str, commands: tuple[Command, ...], *, timeout: float | None = None) -> Op[list[Any]]:
        """The replies to commands that only read, from the server that holds `key`; raises `SchemaError` for a key of
        the wrong type."""
        replies: list[Any] = yield from self._exchange.ask(key, commands, self._deadline(timeout))
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ServerError):
                raise SchemaError(str(command[1]), f"is of the wrong type for {command[0]}: {reply.message}")
        return replies

    # -- creating

    def create(
        self,
        *,
        node: str = "",
        metadata: Metadata | None = None,
        sandbox_id: str | None = None,
        created_at_ns: int | None = None,
        timeout: float | None = None,
    ) -> Op[Sandbox]:
        """Record a new sandbox, in INIT, before anything of it runs. One round trip.

        Args:
            node: the node that it is on; by the rule of ids, or empty.
            metadata: what it is; it never changes afterwards.
            sandbox_id: ``[A-Za-z0-9][A-Za-z0-9_.-]{0,127}``; 64 random hex digits when None.
            created_at_ns: nanoseconds since the Unix epoch, 1 to 2**63 - 1; now when None.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Raises:
            AlreadyExistsError: the id is taken; nothing was changed.
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            OutcomeUnknownError: the reply was lost and could not be found out any more.
            SchemaError, StoreUnavailableError: nothing was written.
        """
        created_at = time.time_ns() if created_at_ns is None else created_at_ns
        checks.integer("created_at_ns", created_at, 1, checks.INT64_MAX)
        sandbox_id = secrets.token_hex(32) if sandbox_id is None else sandbox_id
        fields = metadata_to_fields(Metadata() if metadata is None else metadata)
        args = (checks.node(node), 0, time_to_text(created_at), *fields)
        return (yield from self._add("create", sandbox_id, args, timeout))

    def load(
        self,
        sandbox_id: str,
        observed: Status,
        *,
        node: str = "",
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> Op[Sandbox]:
        """Record a sandbox that was there before the store knew it, as its node observed it. One round trip.

        It is containerd's ``StoreStatus`` at recovery.

        Args:
            sandbox_id: by the rule of ids.
            observed: READY, NOTREADY or UNKNOWN, with what is known of its process.
            node, metadata, timeout: as for `create`.

        Raises:
            as `create`.
        """
        state, pid, created_at, exited_at, exit_status = status_to_fields(observed)
        if state == State.INIT:
            raise InvalidArgumentError("observed.state", state, "READY, NOTREADY or UNKNOWN is needed; see create")
        if state == State.NOTREADY:
            pid = 0
        fields = metadata_to_fields(Metadata() if metadata is None else metadata)
        args = (checks.node(node), 0, created_at, state, pid, exited_at, exit_status, *fields)
        return (yield from self._add("load", sandbox_id, args, timeout))

    # -- changing

    def start(self, sandbox_id: str, *, pid: int, timeout: float | None = None) -> Op[Sandbox]:
        """Its process runs: INIT → READY. One round trip.

        Args:
            sandbox_id: the whole id.
            pid: uint32; 0 for a sandbox without a process of its own.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Raises:
            NotFoundError, TransitionError: refused; nothing was changed.
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            OutcomeUnknownError: the reply was lost and could not be found out any more.
            SchemaError, StoreUnavailableError: nothing was written.
        """
        return (
            yield from self._change("start", sandbox_id, (checks.integer("pid", pid, 0, checks.UINT32_MAX),), timeout)
        )

    def fail_start(self, sandbox_id: str, *, timeout: float | None = None) -> Op[None]:
        """It could not be started and is cleaned up: INIT → no record. One round trip.

        Raises:
            as `start`.
        """
        yield from self._delete("fail_start", sandbox_id, (), timeout)

    def stop(
        self,
        sandbox_id: str,
        *,
        exit_status: int | None = None,
        exited_at_ns: int | None = None,
        timeout: float | None = None,
    ) -> Op[Sandbox]:
        """It was stopped: READY or UNKNOWN → NOTREADY; NOTREADY stays as it is. One round trip.

        Stop and exit race in real life: whichever comes second is ok and loses nothing.

        Args:
            sandbox_id: the whole id.
            exit_status: uint32, of its process, if it is known.
            exited_at_ns: nanoseconds since the Unix epoch; now when only `exit_status` is given.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Raises:
            as `start`.
        """
        if exit_status is None:
            if exited_at_ns is not None:
                raise InvalidArgumentError("exited_at_ns", exited_at_ns, "it needs an exit_status beside it")
            args: tuple[Any, ...] = ("", "")
        else:
            args = _exit_fields(exit_status, exited_at_ns)
        return (yield from self._change("stop", sandbox_id, args, timeout))

    def exit(
        self, sandbox_id: str, *, exit_status: int, exited_at_ns: int | None = None, timeout: float | None = None
    ) -> Op[Sandbox]:
        """Its process exited: READY → NOTREADY. One round trip.

        The first exit that is told is kept; on a sandbox that was stopped without one, it is filled in.

        Args:
            sandbox_id: the whole id.
            exit_status: uint32.
            exited_at_ns: nanoseconds since the Unix epoch; now when None.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Raises:
            as `start`.
        """
        return (yield from self._change("exit", sandbox_id, _exit_fields(exit_status, exited_at_ns), timeout))

    def remove(self, sandbox_id: str, *, force: bool = False, timeout: float | None = None) -> Op[bool]:
        """It is cleaned up: NOTREADY → no record. One round trip.

        Args:
            sandbox_id: the whole id.
            force: remove it in any state; a READY or UNKNOWN one is stopped first, in the same script.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Returns:
            True if this call removed it, False if there was none. Both are success (CRI's ``RemovePodSandbox``).

        Raises:
            TransitionError: it is not NOTREADY; nothing was changed.
            InvalidArgumentError, OutcomeUnknownError, SchemaError, StoreUnavailableError: as `start`.
        """
        return (yield from self._delete("remove", sandbox_id, ("1" if force else "",), timeout))

    def update(self, sandbox_id: str, fn: UpdateFunc, *, timeout: float | None = None) -> Op[Sandbox]:
        """Replace the status by what `fn` makes of it, in one optimistic transaction. Two round trips.

        It is containerd's ``StatusStorage.Update``: an update never overwrites a change that its `fn` has not seen.
        When another writer comes between, it starts again, so `fn` may run more than once and must be pure. What `fn`
        raises reaches the caller as it is, and nothing is written. A status that `fn` returns unchanged is not
        written either.

        Args:
            sandbox_id: the whole id.
            fn: gets the `Status` as it is, returns it as it is to be. The state may stay, go from INIT to READY, or
                from READY or UNKNOWN to NOTREADY, where `pid` becomes 0.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Returns:
            The sandbox as it is after the update.

        Raises:
            ConflictError: others changed it during every attempt until the timeout; nothing was written.
            NotFoundError, TransitionError: refused; nothing was changed.
            InvalidArgumentError: `fn` returned what cannot be stored; nothing was written.
            OutcomeUnknownError, SchemaError, StoreUnavailableError: as `start`.
        """
        deadline = self._deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = self._keys or (yield from self._open(deadline))
        names = layout.change(sandbox_id)
        trace = yield from self._trace(layout, sandbox_id, names, deadline)
        key = names[0]
        lost: OutcomeUnknownError | None = None
        while True:
            try:
                _, reply = yield Send(key, (("WATCH", key), ("HGETALL", key)), deadline.share(), Lease.TAKE)
                if isinstance(reply, ServerError):
                    yield from self._unwatch(key, deadline)
                    if reply.code == "WRONGTYPE":
                        yield from self._wrong_type((key,), deadline)
                    yield from self._exchange.again(deadline, reply, lost)
                    continue
                if lost and (found := (yield from self._exchange.find(trace, deadline, Lease.KEEP))):
                    yield from self._unwatch(key, deadline)
                    return self._sandbox("update", sandbox_id, key, found, trace)
                try:
                    if not reply:
                        raise NotFoundError(sandbox_id)
                    seen = sandbox_from_fields(sandbox_id, key, _fields(reply))
                    status = _checked(fn(seen.status))
                    fields = status_to_fields(status)
                except BaseException:
                    yield from self._unwatch(key, deadline)
                    raise
                if status == seen.status:
                    yield from self._unwatch(key, deadline)
                    return seen
                args = (sandbox_id, self.agent, trace.request, self._maxlen, *fields)
                commands = (("MULTI",), evalsha("update", names, args), ("EXEC",))
                _, queued, replies = yield Send(key, commands, deadline.share(), Lease.LAST)
                if isinstance(replies, ServerError):  # EXECABORT: the script was not even queued
                    yield from self._exchange.again(deadline, queued, lost)
                elif replies is None:
                    yield from deadline.pause(lost or ConflictError(sandbox_id, deadline.attempts + 1))
                elif not isinstance(replies[0], ServerError):
                    return self._sandbox("update", sandbox_id, key, replies[0], trace)
                elif replies[0].code == "NOSCRIPT":
                    yield Send(key, (load("update"),), deadline.share(), share=True)
                elif replies[0].code == "WRONGTYPE":
                    yield from self._wrong_type(names, deadline)
                else:
                    yield from self._exchange.again(deadline, replies[0], lost)
            except Failure as failure:
                if isinstance(failure, Lost):
                    lost = trace.unknown(failure.reason)
                yield from self._exchange.again(deadline, failure, lost)

    # -- shared by the operations

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self.timeout if timeout is None else checks.seconds("timeout", timeout), time.monotonic)

    def _open(self, deadline: Deadline, *, write: bool = True) -> Op[keys.Keys]:
        """Learn how the store is laid out. Whoever writes first decides; who only reads leaves no trace."""
        key = keys.meta(self.prefix)
        (reply,) = yield from self._exchange.ask(
            key, (("HMGET", key, "schema", "partitions", "events_maxlen"),), deadline, share=True
        )
        if not isinstance(reply, ServerError) and not any(reply):
            if not write:
                return keys.Keys(self.prefix, self._partitions)
            ours = (SCHEMA, self._partitions, self._maxlen)
            reply = yield from self._exchange.run("meta", (key,), ours, deadline)
            reply = reply if isinstance(reply, ServerError) else reply[1:]
        if isinstance(reply, ServerError):
            yield from self._wrong_type((key,), deadline)
        try:
            schema, partitions, maxlen = (int(value) for value in reply)
            if schema <= SCHEMA:
                self._maxlen = checks.integer("events_maxlen", maxlen, 1, checks.INT64_MAX)
                self._keys = keys.Keys(self.prefix, checks.integer("partitions", partitions, 1, PARTITIONS_MAX))
        except (TypeError, ValueError):
            names = dict(zip(("schema", "partitions", "events_maxlen"), reply, strict=False))
            raise SchemaError(key, f"does not say how the store is laid out: {names}; restore it") from None
        if schema > SCHEMA or self._keys is None:
            raise SchemaError(key, f"has schema {schema}, this release knows {SCHEMA}: upgrade sandbox-redis")
        return self._keys

    def _trace(self, layout: keys.Keys, sandbox_id: str, names: tuple[str, ...], deadline: Deadline) -> Op[Trace]:
        """What will tell, if a reply is lost, whether the write happened."""
        partition = layout.partition(sandbox_id)
        floor = self._floors.get(partition)
        if floor is None:
            events = (("XREVRANGE", names[1], "+", "-", "COUNT", 1),)
            (reply,) = yield from self._exchange.ask(names[1], events, deadline, share=True)
            if isinstance(reply, ServerError):
                yield from self._wrong_type(names, deadline)
            floor = self._floors[partition] = reply[0][0].decode() if reply else "0-0"
        return Trace(sandbox_id, (names[0], names[1]), token(), floor, self._maxlen)

    def _write(self, operation: str, sandbox_id: str, args: tuple[Any, ...], timeout: float | None) -> Op[Any]:
        """Run the script of an operation that writes; the key of the record, the reply, and its trace."""
        deadline = self._deadline(timeout)
        checks.sandbox_id(sandbox_id)
        layout = self._keys or (yield from self._open(deadline))
        names = layout.change(sandbox_id)
        trace = yield from self._trace(layout, sandbox_id, names, deadline)
        if operation in _NODES:
            args = (layout.node(layout.partition(sandbox_id), ""), *args)
        whole = (sandbox_id, self.agent, trace.request, self._maxlen, *args)
        reply = yield from self._exchange.write(operation, names, whole, trace, deadline)
        if isinstance(reply, ServerError):
            yield from self._wrong_type(names, deadline)
        return names[0], reply, trace

    def _add(self, operation: str, sandbox_id: str, args: tuple[Any, ...], timeout: float | None) -> Op[Sandbox]:
        key, reply, trace = yield from self._write(operation, sandbox_id, args, timeout)
        return self._sandbox(operation, sandbox_id, key, reply, trace)

    _change = _add

    def _delete(self, operation: str, sandbox_id: str, args: tuple[Any, ...], timeout: float | None) -> Op[bool]:
        _, reply, _ = yield from self._write(operation, sandbox_id, args, timeout)
        if reply[0] in (b"OK", b"PASSED"):
            return bool(reply[1] != b"0")
        raise self._refusal(operation, sandbox_id, reply)

    def _sandbox(self, operation: str, sandbox_id: str, key: str, reply: Any, trace: Trace | None = None) -> Sandbox:
        """The sandbox that a reply carries; raises what a refusal means."""
        if reply[0] == b"OK":
            fields = pairs(reply[1])
            if trace and fields.get(b"request") == trace.request.encode():
                self._floors[self._keys.partition(sandbox_id)] = fields[b"revision"].decode()  # type: ignore[union-attr]
            return sandbox_from_fields(sandbox_id, key, fields)
        if reply[0] == b"PASSED":
            # Others have changed it since: the status is in the event of this write, the metadata in the record.
            _, revision, event, record = reply
            return sandbox_from_fields(sandbox_id, key, pairs(record) | pairs(event) | {b"revision": revision})
        raise self._refusal(operation, sandbox_id, reply)

    def _refusal(self, operation: str, sandbox_id: str, reply: Any) -> Exception:
        match reply:
            case [b"NOT_FOUND"]:
                return NotFoundError(sandbox_id)
            case [b"ALREADY_EXISTS", state]:
                return AlreadyExistsError(sandbox_id, state.decode())
            case [b"TRANSITION", state]:
                return TransitionError(sandbox_id, state.decode(), operation, advice(operation, state.decode()))
        return SchemaError(self.prefix, f"gave an unexpected reply to {operation}: {reply!r}")

    def _unwatch(self, key: str, deadline: Deadline) -> Op[None]:
        """Give the watched connection back."""
        with suppress(Failure):  # then the connection is gone, and its WATCH with it
            yield Send(key, (("UNWATCH",),), deadline.share(), Lease.LAST)

    def _wrong_type(
        self, names: tuple[str, ...], deadline: Deadline, wanted: tuple[bytes, ...] = _TYPES
    ) -> Op[NoReturn]:
        """Raise the error that names the key of the wrong type."""
        types = yield from self._exchange.ask(names[0], tuple(("TYPE", name) for name in names), deadline)
        for name, found, want in zip(names, types, wanted, strict=False):
            if found not in (want, b"none"):
                rule = f"holds a {found.decode()} where a {want.decode()} belongs: rename or delete it"
                raise SchemaError(name, f"{rule}; nothing was changed")
        raise SchemaError(names[0], "or the index of its node is of the wrong type; nothing was changed")


_NODES: Final = frozenset(
    {"create", "load", "fail_start", "remove"}
)  # their scripts complete the key of a node's index


def _fields(reply: Any) -> Any:
    """HGETALL's reply: a mapping from RESP3, a flat list from RESP2."""
    return pairs(reply) if isinstance(reply, list) else reply


def _exit_fields(exit_status: int, exited_at_ns: int | None) -> tuple[int, str]:
    exited_at = time.time_ns() if exited_at_ns is None else exited_at_ns
    return (
        checks.integer("exit_status", exit_status, 0, checks.UINT32_MAX),
        time_to_text(checks.integer("exited_at_ns", exited_at, 1, checks.INT64_MAX)),
    )


def _checked(status: Any) -> Status:
    """What an update function returned, as it is to be stored."""
    if not isinstance(status, Status):
        if hasattr(status, "close") and hasattr(status, "__await__"):
            status.close()
            raise InvalidArgumentError(
                "fn", status, "it must be a plain function; read what it needs before the update"
            )
        raise InvalidArgumentError("fn", status, "it must return a Status")
    return replace(status, pid=0) if status.state is State.NOTREADY and status.pid else status


def annotate(method: Callable[..., Any], form: str) -> None:
    """Let a face of an operation say what it returns itself: ``Op[Sandbox]`` becomes ``Sandbox`` in the given form."""
    inner = method.__annotations__["return"].removeprefix("Op[").removesuffix("]")
    method.__annotations__ = {**method.__annotations__, "return": form.format(inner)}
    signature = inspect.signature(method).replace(return_annotation=form.format(inner))
    method.__signature__ = signature  # type: ignore[attr-defined]  # what inspect and help look at first


def default_url() -> str:
    """``SANDBOX_REDIS_URL``, or a server on this host."""
    return os.environ.get("SANDBOX_REDIS_URL") or "redis://127.0.0.1:6379/0"


def default_agent() -> str:
    """Who writes, when the caller does not say: host and process."""
    return f"{socket.gethostname()}/{os.getpid()}"
