"""Every error that a caller can meet. No redis exception leaves the library, and nothing here imports one.

::

    SandboxError
    ├── NotFoundError             there is no such sandbox
    ├── AmbiguousIDError          several ids begin so
    ├── AlreadyExistsError        the id is taken
    ├── LayoutError               the store exists, with another layout
    ├── TransitionError           the state machine has no such move
    ├── ConflictError             others kept changing the sandbox until the deadline
    ├── InvalidArgumentError      refused before anything was sent (also a ValueError)
    ├── OutcomeUnknownError       the write may or may not have happened
    ├── DurabilityError           the write was made, but is not confirmed as its write concern asks
    ├── StoreUnavailableError     the server cannot serve now; nothing was written
    ├── WaitTimeoutError          what was waited for has not happened in time (also a TimeoutError)
    ├── CompactedError            the events behind a cursor are not all there any more
    │   └── StoreRolledBackError  the server has lost data, and those events with it
    └── SchemaError               what is in Redis is not what this release can read

The facts are attributes, the message says what to do next, and every error pickles.
"""

from __future__ import annotations

import pickle
from typing import Any


class SandboxError(Exception):
    """The root of every error that this library raises."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors differ, so an error is rebuilt from its message and its facts.
        return _rebuild, (type(self), self.args, {name: _picklable(fact) for name, fact in self.__dict__.items()})


def _picklable(fact: Any) -> Any:
    """What a caller passed in may be anything; where it cannot travel, its repr does."""
    try:
        pickle.dumps(fact)
    except Exception:  # pickling runs the code of whatever it meets
        return repr(fact)
    return fact


def _rebuild(cls: type[SandboxError], args: tuple[Any, ...], facts: dict[str, Any]) -> SandboxError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class NotFoundError(SandboxError):
    """There is no sandbox `id`: it was never created, or it was removed."""

    id: str

    def __init__(self, id: str) -> None:
        super().__init__(f"sandbox {id!r} does not exist: it was never created, or it has been removed", id=id)


class AmbiguousIDError(SandboxError):
    """Several ids begin with `prefix`; `matches` are the first of them."""

    prefix: str
    matches: tuple[str, ...]

    def __init__(self, prefix: str, matches: tuple[str, ...], *, more: bool = False) -> None:
        super().__init__(
            f"several sandboxes begin with {prefix!r}: {', '.join(matches)}{' and more' if more else ''}; give more of"
            " the id",
            prefix=prefix,
            matches=matches,
        )


class AlreadyExistsError(SandboxError):
    """The id is taken by a sandbox in `state`; that sandbox was not touched."""

    id: str
    state: str

    def __init__(self, id: str, state: str) -> None:
        super().__init__(
            f"sandbox {id!r} already exists, in state {state}: choose another id, or remove that sandbox first",
            id=id,
            state=state,
        )


class LayoutError(SandboxError):
    """The store exists already, with these numbers, which are not those that were asked for. Nothing was changed."""

    partitions: int
    events_maxlen: int

    def __init__(self, prefix: str, partitions: int, events_maxlen: int) -> None:
        super().__init__(
            f"the store {prefix!r} exists already, with {partitions} as partitions and {events_maxlen} as"
            " events_maxlen: that is for good; take these numbers, or another prefix",
            partitions=partitions,
            events_maxlen=events_maxlen,
        )


class TransitionError(SandboxError):
    """The state machine has no such move: `operation` is refused in `state`. Nothing was changed."""

    id: str
    state: str
    operation: str

    def __init__(self, id: str, state: str, operation: str, advice: str = "") -> None:
        super().__init__(
            f"sandbox {id!r} is {state}: {operation} is refused" + (f"; {advice}" if advice else ""),
            id=id,
            state=state,
            operation=operation,
        )


class ConflictError(SandboxError):
    """Others changed the sandbox between each read and its write, `attempts` times. Nothing was changed."""

    id: str
    attempts: int

    def __init__(self, id: str, attempts: int) -> None:
        super().__init__(
            f"sandbox {id!r} was changed by others during each of {attempts} attempts to update it: nothing was"
            " written; try again, or give a longer timeout",
            id=id,
            attempts=attempts,
        )


class InvalidArgumentError(SandboxError, ValueError):
    """An argument breaks a rule. It was refused before anything was sent."""

    argument: str
    value: Any
    rule: str

    def __init__(self, argument: str, value: Any, rule: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
        super().__init__(f"{argument} is {shown}: {rule}", argument=argument, value=value, rule=rule)


class OutcomeUnknownError(SandboxError):
    """The reply to a write was lost, and whether it happened could not be found out any more.

    `request` is the token of the write: the record and the event of that write, if there are any, carry it.
    """

    id: str
    request: str

    def __init__(self, id: str, request: str, reason: str) -> None:
        super().__init__(
            f"the write {request} to sandbox {id!r} may or may not have happened ({reason}): read the sandbox"
            " before you write again",
            id=id,
            request=request,
        )


class DurabilityError(SandboxError):
    """The write was made, but not confirmed in time as its `WriteConcern` asks: it can still be lost with the server.

    It must not be repeated. It may be confirmed later all the same, and any later write to the sandbox that is
    confirmed confirms this one as well.
    """

    id: str
    request: str
    """The token of the write: the record and the event of that write carry it."""
    sandbox: Any
    """The `Sandbox` as the write left it; None after a removal."""
    reached: int | None
    """Replicas that have confirmed it; None when that is not known, as after a lost reply."""
    wanted: int
    """Replicas that were to confirm it."""
    fsynced: bool | None
    """Whether the server has it on its disk; None when that was not asked for, or is not known."""

    def __init__(
        self,
        id: str,
        request: str,
        sandbox: Any,
        reached: int | None,
        wanted: int,
        *,
        fsynced: bool | None = None,
        reason: str = "",
    ) -> None:
        disk = "" if fsynced is None else "the server's disk and " if fsynced else "not the server's disk, and "
        super().__init__(
            f"the write {request} to sandbox {id!r} was made, but is not confirmed"
            f" ({reason or f'it has reached {disk}{reached} of {wanted} replicas'}): it can still be lost with the"
            " server; do not repeat it, look after its replicas and its disk, and read the sandbox again later",
            id=id,
            request=request,
            sandbox=sandbox,
            reached=reached,
            wanted=wanted,
            fsynced=fsynced,
        )


class StoreUnavailableError(SandboxError):
    """The server at `address` cannot serve this now. Nothing was written.

    `code` is the word that Redis gave for it (``LOADING``, ``OOM``, ``READONLY``, ``NOAUTH``, …), ``UNREACHABLE`` when
    no server answered, ``TLS`` when one side does not accept the other's certificate, or ``UNSUPPORTED`` when it cannot
    confirm a write as a `WriteConcern` asks.
    """

    address: str
    code: str

    def __init__(self, address: str, code: str, reason: str, advice: str) -> None:
        super().__init__(f"the store at {address} is not available: {reason}; {advice}", address=address, code=code)


class WaitTimeoutError(SandboxError, TimeoutError):
    """What was waited for has not happened in time. Nothing is wrong with the store."""

    id: str
    """Empty when a mirror was waited for with a revision alone."""
    seconds: float

    def __init__(self, id: str, seconds: float, wanted: str) -> None:
        what = f"sandbox {id!r}" if id else "the store"
        super().__init__(f"{what} was not {wanted} within {seconds:g} s", id=id, seconds=seconds)


class CompactedError(SandboxError):
    """The events behind `cursor` are not all there any more: a watch from there would have a gap."""

    cursor: str

    def __init__(self, cursor: str, reason: str = "they have been trimmed") -> None:
        super().__init__(
            f"the events behind {cursor!r} are not all there any more: {reason}; list again, and watch from there",
            cursor=cursor,
        )


class StoreRolledBackError(CompactedError):
    """The server has lost data that it had confirmed, and the events behind `cursor` with it: it was restarted without
    persistence, failed over to a replica that lagged, or was flushed."""

    def __init__(self, cursor: str) -> None:
        super().__init__(cursor, "the server has lost data since")


class SchemaError(SandboxError):
    """What is in Redis under `key` is not what this release can read. Nothing was changed."""

    key: str

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"key {key!r} {reason}", key=key)
