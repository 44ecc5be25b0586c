"""The optimistic transaction: WATCH and read in one packet, the caller's function, MULTI, script and EXEC in another.

Whatever comes between, another writer, a lost reply, a missing script, it begins again, and never overwrites a change
that the function has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from sandbox_redis import checks
from sandbox_redis.concern import WriteConcern
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import ConflictError, InvalidArgumentError, NotFoundError, OutcomeUnknownError
from sandbox_redis.exchange import evalsha
from sandbox_redis.record import Sandbox, Status, hash_reply, sandbox_from_fields, status_to_fields
from sandbox_redis.session import Session
from sandbox_redis.states import State
from sandbox_redis.wire import Failure, Lease, Lost, Op, Send, ServerError

CONFLICT_MAX: Final = 0.004  # seconds; with longer pauses whoever wins goes on winning (measured: 0.1 of the fastest)
UpdateFunc = Callable[[Status], Status]
"""Gets the status as it is, returns it as it is to be. It may be called more than once, so it must be pure."""


def optimistic(
    session: Session, sandbox_id: str, fn: UpdateFunc, deadline: Deadline, write_concern: WriteConcern | None
) -> Op[Sandbox]:
    """Replace the status of a sandbox by what `fn` makes of it; see `Operations.update`."""
    checks.sandbox_id(sandbox_id)
    if not callable(fn):
        raise InvalidArgumentError("fn", fn, "a function from Status to Status is needed")
    layout = yield from session.open(deadline)
    names = layout.change(sandbox_id)
    trace = yield from session.trace(layout, sandbox_id, names, deadline, write_concern)
    key = names[0]
    lost: OutcomeUnknownError | None = None
    at = ""
    while True:
        writing = False
        try:
            watched, reply = yield Send(key, (("WATCH", key), ("HGETALL", key)), deadline.share(), Lease.TAKE, at=at)
            if trouble := _first_error(watched, reply):
                yield from _unwatch(key, deadline)
                if trouble.code == "WRONGTYPE":
                    yield from session.wrong_type((key,), deadline)
                at = yield from session.exchange.again(deadline, trouble, lost)
                continue
            if lost and (found := (yield from session.exchange.find(trace, deadline, Lease.KEEP, at=at))):
                yield from _unwatch(key, deadline)
                return session.sandbox("update", sandbox_id, key, found, trace)
            try:
                if not reply:
                    raise NotFoundError(sandbox_id)
                record = hash_reply(reply)
                seen = sandbox_from_fields(sandbox_id, key, record)
                status = _checked(fn(seen.status))
                fields = status_to_fields(status)
            except BaseException:
                yield from _unwatch(key, deadline)
                raise
            if status == seen.status:
                yield from _unwatch(key, deadline)
                return seen
            args = (sandbox_id, session.agent, trace.request, session.maxlen, *fields, record.get(b"revision", b"none"))
            commands = (("MULTI",), evalsha("update", names[:-1], args), ("EXEC",))
            writing = True
            multi, queued, replies, *confirmed = yield trace.packet(commands, deadline, Lease.LAST, at=at)
            writing = False
            if isinstance(multi, ServerError) and isinstance(queued, list):
                replies = [queued]  # who may not MULTI has run the script alone; it looks at the revision by itself
            elif trouble := _first_error(multi, queued, replies):  # the first one: EXEC says only that it was aborted
                at = yield from session.exchange.again(deadline, trouble, lost)
                continue
            if replies is None or replies[0] == [b"CONFLICT"]:
                error = lost or ConflictError(sandbox_id, deadline.attempts + 1)
                yield from deadline.pause(error, CONFLICT_MAX)
            elif not isinstance(replies[0], ServerError):
                trace.confirm(confirmed)
                return session.sandbox("update", sandbox_id, key, replies[0], trace)
            elif replies[0].code == "NOSCRIPT":
                yield from session.exchange.supply("update", names[1], deadline, lost, at=at)
            elif replies[0].code == "WRONGTYPE":
                yield from session.wrong_type(names, deadline)
            else:
                at = yield from session.exchange.again(deadline, replies[0], lost)
        except Failure as failure:
            if writing and isinstance(failure, Lost):
                lost = trace.lost(failure)
            at = yield from session.exchange.again(deadline, failure, lost)


def _first_error(*replies: Any) -> ServerError | None:
    return next((reply for reply in replies if isinstance(reply, ServerError)), None)


def _unwatch(key: str, deadline: Deadline) -> Op[None]:
    """Give the watched connection back."""
    with suppress(Failure):  # then the connection is gone, and its WATCH with it
        yield Send(key, (("UNWATCH",),), deadline.share(), Lease.LAST)


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
