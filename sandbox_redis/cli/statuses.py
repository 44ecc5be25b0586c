"""How the command line fails: one line on standard error and an exit status that a script can rely on. No command
stands here, and nothing of the extra is imported.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum
from typing import Final

from sandbox_redis.cli.text import visible
from sandbox_redis.errors import (
    AlreadyExistsError,
    AmbiguousIDError,
    CompactedError,
    ConflictError,
    DurabilityError,
    InvalidArgumentError,
    LayoutError,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    TransitionError,
    WaitTimeoutError,
)

PROGRAM: Final = "sandbox-redis"
SIGNALLED: Final = 128
"""Plus the number of a signal: the exit status of what it ended, as a shell has it."""


class ExitStatus(IntEnum):
    """What the shell gets; where several sandboxes were asked for, the highest."""

    OK = 0
    REFUSED = 1
    """No such sandbox, or there is one, or the id is ambiguous, or the state machine has no such move, or others were
    faster, or the events to go on from are gone, or the store is laid out otherwise; or `doctor` found problems."""
    USAGE = 2
    UNAVAILABLE = 3
    """The store cannot be reached, or what is in it cannot be read."""
    OUTCOME_UNKNOWN = 4
    """The write may or may not have happened."""
    UNCONFIRMED = 5
    """The write was made, but replicas or the disk have not confirmed it in time."""
    BUG = 70  # EX_SOFTWARE of sysexits.h
    INPUT_OUTPUT = 74  # EX_IOERR: the output cannot be written, or a file cannot be read
    TIMED_OUT = 124  # as of timeout(1): what was waited for has not happened
    BROKEN_PIPE = SIGNALLED + signal.SIGPIPE


_REFUSALS: Final = (
    NotFoundError,
    AmbiguousIDError,
    AlreadyExistsError,
    LayoutError,
    TransitionError,
    ConflictError,
    CompactedError,  # and with it StoreRolledBackError: the store serves, but nobody can go on from there
)


def status_of(error: Exception) -> ExitStatus:
    """The exit status that an error means."""
    if isinstance(error, InvalidArgumentError):
        return ExitStatus.USAGE
    if isinstance(error, OutcomeUnknownError):
        return ExitStatus.OUTCOME_UNKNOWN
    if isinstance(error, DurabilityError):
        return ExitStatus.UNCONFIRMED
    if isinstance(error, WaitTimeoutError):
        return ExitStatus.TIMED_OUT
    if isinstance(error, _REFUSALS):
        return ExitStatus.REFUSED
    return ExitStatus.UNAVAILABLE if isinstance(error, SandboxError) else ExitStatus.BUG


def complain(message: object) -> None:
    """Say one thing in one line on standard error."""
    if sys.stderr is None:  # with it closed, print would take standard output
        return
    with suppress(OSError):  # the exit status says it, too
        print(f"{PROGRAM}: {visible(' '.join(str(message).split()))}", file=sys.stderr)


def complain_of(errors: Iterable[Exception]) -> ExitStatus:
    """Say each different error once; the status of the worst."""
    worst = ExitStatus.OK
    said: set[str] = set()
    for error in errors:
        worst = max(worst, status_of(error))
        message = describe(error)
        if message not in said:
            complain(message)
            said.add(message)
    return worst


def describe(error: Exception) -> str:
    """An error in words. One that is none of ours is a bug, and says where it is."""
    if isinstance(error, SandboxError):  # WaitTimeoutError is an OSError, too
        return str(error)
    if isinstance(error, OSError):
        words = error.strerror or str(error)
        return f"{error.filename}: {words}" if error.filename else words
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" in {place.tb_frame.f_code.co_filename}, line {place.tb_lineno}" if place else ""
    return f"a bug, please report it: {type(error).__name__}: {error}{where}"
