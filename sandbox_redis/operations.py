"""Every operation of the store that writes, once, for the sync store, the asyncio store and batches alike; those that
only read stand in ``queries.py``.

Each is a generator: it checks its arguments, yields what is to be sent and returns the result. It does no I/O and
imports no redis. How to reach the server stands in ``exchange.py``, what a record looks like in ``record.py``.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, NamedTuple

from sandbox_redis import checks
from sandbox_redis.concern import WriteConcern
from sandbox_redis.errors import InvalidArgumentError, LayoutError, NotFoundError, TransitionError
from sandbox_redis.queries import Queries
from sandbox_redis.record import (
    Metadata,
    Sandbox,
    Status,
    hash_reply,
    metadata_to_fields,
    sandbox_from_fields,
    status_to_fields,
    time_to_text,
)
from sandbox_redis.session import PARTITIONS_MAX
from sandbox_redis.states import State
from sandbox_redis.transaction import UpdateFunc, optimistic
from sandbox_redis.wire import Op


class Layout(NamedTuple):
    """How a store is laid out, for good."""

    partitions: int
    events_maxlen: int
    """About how many events each partition keeps."""


class Operations(Queries):
    """The operations of one store."""

    # -- laying out

    def init(
        self, *, partitions: int | None = None, events_maxlen: int | None = None, timeout: float | None = None
    ) -> Op[Layout]:
        """Lay the store out, as else the first write does. It may be done again. Two round trips.

        Args:
            partitions: 1 to 16384; as many as there are, or as the store was opened with, when None.
            events_maxlen: about how many events each partition keeps, at least 1; the same when None.
            timeout: seconds until the call gives up; the store's own `timeout` when None.

        Returns:
            How the store is laid out.

        Raises:
            LayoutError: it exists, with other numbers than were asked for; nothing was changed.
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            SchemaError, StoreUnavailableError: nothing was written.
        """
        deadline = self.deadline(timeout)
        asked = (
            None if partitions is None else checks.integer("partitions", partitions, 1, PARTITIONS_MAX),
            None if events_maxlen is None else checks.integer("events_maxlen", events_maxlen, 1, checks.INT64_MAX),
        )
        layout = yield from self.open(deadline, new=(asked[0] or self._partitions, asked[1] or self.maxlen))
        found = Layout(layout.partitions, self.maxlen)
        if any(number not in (None, there) for number, there in zip(asked, found, strict=True)):
            raise LayoutError(self.prefix, *found)
        return found

    # -- creating

    def create(
        self,
        *,
        node: str = "",
        metadata: Metadata | None = None,
        sandbox_id: str | None = None,
        created_at_ns: int | None = None,
        timeout: float | None = None,
        write_concern: WriteConcern | None = None,
    ) -> Op[Sandbox]:
        """Record a new sandbox, in INIT, before anything of it runs. One round trip.

        Args:
            node: the node that it is on; by the rule of ids, or empty.
            metadata: what it is; it never changes afterwards.
            sandbox_id: ``[A-Za-z0-9][A-Za-z0-9_.-]{0,127}``; 64 random hex digits when None.
            created_at_ns: nanoseconds since the Unix epoch, 1 to 2**63 - 1; now when None.
            timeout: seconds until the call gives up; the store's own `timeout` when None.
            write_concern: how safe the write must be; the store's own when None.

        Raises:
            AlreadyExistsError: the id is taken; nothing was changed.
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            OutcomeUnknownError: the reply was lost and could not be found out any more.
            DurabilityError: the write was made, but is not confirmed as the write concern asks.
            SchemaError, StoreUnavailableError: nothing was written.
        """
        created_at = time.time_ns() if created_at_ns is None else created_at_ns
        checks.integer("created_at_ns", created_at, 1, checks.INT64_MAX)
        sandbox_id = secrets.token_hex(32) if sandbox_id is None else sandbox_id
        fields = metadata_to_fields(Metadata() if metadata is None else metadata)
        args = (checks.node(node), 0, time_to_text(created_at), *fields)
        return (yield from self._change("create", sandbox_id, args, timeout, write_concern))

    def load(
        self,
        sandbox_id: str,
        observed: Status,
        *,
        node: str = "",
        metadata: Metadata | None = None,
        timeout: float | None = None,
        write_concern: WriteConcern | None = None,
    ) -> Op[Sandbox]:
        """Record a sandbox that was there before the store knew it, as its node observed it. One round trip.

        It is containerd's ``StoreStatus`` at recovery.

        Args:
            sandbox_id: by the rule of ids.
            observed: READY, NOTREADY or UNKNOWN, with what is known of its process.
            node, metadata, timeout, write_concern: as for `create`.

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
        return (yield from self._change("load", sandbox_id, args, timeout, write_concern))

    # -- changing

    def start(
        self,
        sandbox_id: str,
        *,
        pid: int,
        timeout: float | None = None,
        write_concern: WriteConcern | None = None,
    ) -> Op[Sandbox]:
        """Its process runs: INIT → READY. One round trip.

        Args:
            sandbox_id: the whole id.
            pid: uint32; 0 for a sandbox without a process of its own.
            timeout: seconds until the call gives up; the store's own `timeout` when None.
            write_concern: how safe the write must be; the store's own when None.

        Raises:
            NotFoundError, TransitionError: refused; nothing was changed.
            InvalidArgumentError: an argument breaks its rule; nothing was sent.
            OutcomeUnknownError: the reply was lost and could not be found out any more.
            DurabilityError: the write was made, but is not confirmed as the write concern asks.
            SchemaError, StoreUnavailableError: nothing was written.
        """
        args = (checks.integer("pid", pid, 0, checks.UINT32_MAX),)
        return (yield from self._change("start", sandbox_id, args, timeout, write_concern))

    def fail_start(
        self, sandbox_id: str, *, timeout: float | None = None, write_concern: WriteConcern | None = None
    ) -> Op[None]:
        """It could not be started and is cleaned up: INIT → no record. One round trip.

        Raises:
            as `start`.
        """
        yield from self._delete("fail_start", sandbox_id, (), timeout, write_concern)

    def stop(
        self,
        sandbox_id: str,
        *,
        exit_status: int | None = None,
        exited_at_ns: int | None = None,
        timeout: float | None = None,
        write_concern: WriteConcern | None = None,
    ) -> Op[Sandbox]:
        """It was stopped: READY or UNKNOWN → NOTREADY; NOTREADY stays as it is. One round trip.

        Stop and exit race in real life: whichever comes second is ok and loses nothing.

        Args:
            sandbox_id: the whole id.
            exit_status: uint32, of its process, if it is known.
            exited_at_ns: nanoseconds since the Unix epoch; now when only `exit_status` is given.
            timeout: seconds until the call gives up; the store's own `timeout` when None.
            write_concern: how safe the write must be; the store's own when None.

        Raises:
            as `start`.
        """
        if exit_status is None:
            if exited_at_ns is not None:
                raise InvalidArgumentError("exited_at_ns", exited_at_ns, "it needs an exit_status beside it")
            args: tuple[Any, ...] = ("", "")
        else:
            args = _exit_fields(exit_status, exited_at_ns)
        try:
            return (yield from self._change("stop", sandbox_id, (*args, ""), timeout, write_concern))
        except TransitionError:
            # INIT by its state, but a record that cannot be read is UNKNOWN, which only Python can tell.
            key = (yield from self.layout(timeout=timeout)).status(sandbox_id)
            (reply,) = yield from self.read(key, (("HGETALL", key),), timeout=timeout)
            fields = hash_reply(reply)
            if not fields or sandbox_from_fields(sandbox_id, key, fields).problem is None:
                raise
            unreadable = fields.get(b"revision", b"none")
            return (yield from self._change("stop", sandbox_id, (*args, unreadable), timeout, write_concern))

    def exit(
        self,
        sandbox_id: str,
        *,
        exit_status: int,
        exited_at_ns: int | None = None,
        timeout: float | None = None,
        write_concern: WriteConcern | None = None,
    ) -> Op[Sandbox]:
        """Its process exited: READY → NOTREADY. One round trip.

        The first exit that is told is kept; on a sandbox that was stopped without one, it is filled in.

        Args:
            sandbox_id: the whole id.
            exit_status: uint32.
            exited_at_ns: nanoseconds since the Unix epoch; now when None.
            timeout: seconds until the call gives up; the store's own `timeout` when None.
            write_concern: how safe the write must be; the store's own when None.

        Raises:
            as `start`.
        """
        args = _exit_fields(exit_status, exited_at_ns)
        return (yield from self._change("exit", sandbox_id, args, timeout, write_concern))

    def remove(
        self,
        sandbox_id: str,
        *,
        force: bool = False,
        timeout: float | None = None,
        write_concern: WriteConcern | None = None,
    ) -> Op[bool]:
        """It is cleaned up: NOTREADY → no record. One round trip.

        Args:
            sandbox_id: the whole id.
            force: remove it in any state; a READY or UNKNOWN one is stopped first, in the same script.
            timeout: seconds until the call gives up; the store's own `timeout` when None.
            write_concern: how safe the write must be; the store's own when None.

        Returns:
            True if this call removed it, False if there was none. Both are success (CRI's ``RemovePodSandbox``).

        Raises:
            TransitionError: it is not NOTREADY; nothing was changed.
            InvalidArgumentError, OutcomeUnknownError, DurabilityError, SchemaError, StoreUnavailableError: as `start`.
        """
        return (yield from self._delete("remove", sandbox_id, ("1" if force else "",), timeout, write_concern))

    def update(
        self,
        sandbox_id: str,
        fn: UpdateFunc,
        *,
        timeout: float | None = None,
        write_concern: WriteConcern | None = None,
    ) -> Op[Sandbox]:
        """Replace the status by what `fn` makes of it, in one optimistic transaction. Two round trips.

        It is containerd's ``StatusStorage.Update``: an update never overwrites a change that its `fn` has not seen.
        When another writer comes between, it starts again, so `fn` may run more than once and must be pure. What `fn`
        raises reaches the caller as it is (StopIteration alone as RuntimeError, by PEP 479), and nothing is written. A
        status that `fn` returns unchanged is not written either.

        Args:
            sandbox_id: the whole id.
            fn: gets the `Status` as it is, returns it as it is to be. The state may stay, go from INIT to READY, or
                from READY or UNKNOWN to NOTREADY, where `pid` becomes 0.
            timeout: seconds until the call gives up; the store's own `timeout` when None.
            write_concern: how safe the write must be; the store's own when None.

        Returns:
            The sandbox as it is after the update.

        Raises:
            ConflictError: others changed it during every attempt until the timeout; nothing was written.
            NotFoundError, TransitionError: refused; nothing was changed.
            InvalidArgumentError: `fn` returned what cannot be stored; nothing was written.
            OutcomeUnknownError, DurabilityError, SchemaError, StoreUnavailableError: as `start`.
        """
        deadline = self.deadline(timeout)
        try:
            sandbox = yield from optimistic(self, sandbox_id, fn, deadline, write_concern)
        except NotFoundError:
            yield from self.look_back(sandbox_id, deadline, absent=True)
            raise
        yield from self.look_back(sandbox_id, deadline)
        return sandbox

    def _change(
        self,
        operation: str,
        sandbox_id: str,
        args: tuple[Any, ...],
        timeout: float | None,
        write_concern: WriteConcern | None,
    ) -> Op[Sandbox]:
        key, reply, trace = yield from self.write(operation, sandbox_id, args, timeout, write_concern)
        return self.sandbox(operation, sandbox_id, key, reply, trace)

    def _delete(
        self,
        operation: str,
        sandbox_id: str,
        args: tuple[Any, ...],
        timeout: float | None,
        write_concern: WriteConcern | None,
    ) -> Op[bool]:
        _, reply, trace = yield from self.write(operation, sandbox_id, args, timeout, write_concern)
        if reply[0] in (b"OK", b"PASSED"):
            if removed := reply[1] != b"0":
                trace.check(None)
            return bool(removed)
        raise self.refusal(operation, sandbox_id, reply)


def _exit_fields(exit_status: int, exited_at_ns: int | None) -> tuple[int, str]:
    exited_at = time.time_ns() if exited_at_ns is None else exited_at_ns
    return (
        checks.integer("exit_status", exit_status, 0, checks.UINT32_MAX),
        time_to_text(checks.integer("exited_at_ns", exited_at, 1, checks.INT64_MAX)),
    )
