"""``sandbox-redis run``: a real command as a sandbox. The main thread starts it and waits for it. A second one tells
the store what happens, in order, and goes on trying while the store is away; a third one passes signals on. So the
command needs the store to begin, and is neither delayed nor ended by it afterwards.

When we are ourselves ended by SIGKILL, the command goes on: its record stays READY, with its pid, for others to find.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from sandbox_redis.cli.statuses import SIGNALLED, complain
from sandbox_redis.errors import (
    DurabilityError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    StoreUnavailableError,
    TransitionError,
)
from sandbox_redis.record import Metadata
from sandbox_redis.store import SandboxStore

_NOT_FOUND: Final = 127  # as a shell has it
_NOT_RUNNABLE: Final = 126  # so too

# The command is in our process group, so that it can use the terminal. Hence what the terminal sends (Ctrl-C, Ctrl-\)
# reaches it without us, and is not sent again; what a process sends to us is passed on. What a process sends to the
# whole group arrives twice: nothing tells it from the former. SIGTSTP is left alone: Ctrl-Z stops us both; one that is
# sent to us stops us until SIGCONT, while the command goes on.
_PASSED_ON: Final = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_WAKE: Final = signal.SIGUSR2  # ends the thread that waits for signals
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # a command expects the default
_ATTEMPT: Final = 2.0  # seconds for each attempt to write, by which we can be late to give up
_PAUSE: Final = 0.25  # seconds between attempts; a store that is back is noticed within this

Step = tuple[str, Callable[[], object]]


def run(
    store: SandboxStore,
    *,
    command: list[str],
    sandbox_id: str | None,
    node: str,
    metadata: Metadata,
    rm: bool,
    give_up: float,
    quiet: bool,
) -> int:
    """Run a command in the foreground, on our standard streams, and record its life as that of a sandbox.

    Args:
        store: where it is recorded.
        command: a program, which is looked for on PATH, and its arguments.
        sandbox_id, node, metadata: as for `SandboxStore.create`.
        rm: remove the record when the command has ended.
        give_up: how many seconds after the end to try to record what is not recorded yet. A signal ends that, too.
        quiet: say on standard error only what went wrong for good.

    Returns:
        The exit status of the command, 128 + n where signal n ended it; 127 when there is no such program, 126 when it
        cannot be run. It does not tell whether all was recorded.

    Raises:
        InvalidArgumentError: an argument breaks its rule. The command was not started, as with any error.
        SandboxError: as from `SandboxStore.create`.
    """
    if not command or not command[0]:
        raise InvalidArgumentError("command", command, "a program is needed")
    if not 0 <= give_up < math.inf:
        raise InvalidArgumentError("give_up", give_up, "a number of seconds, 0 or more, is needed")
    with _held_back() as (signals, mask):
        try:
            created = store.create(node=node, metadata=metadata, sandbox_id=sandbox_id)
        except DurabilityError as error:  # it is there
            complain(error)
            created = error.sandbox
        scribe = _Scribe(store, created.id, give_up=give_up, quiet=quiet)
        pid = 0
        if early := signal.sigpending() & signals:
            scribe.end(SIGNALLED + min(early))
            complain(f"{signal.Signals(min(early)).name} came before the command was started")
        else:
            try:
                pid = os.posix_spawnp(command[0], command, os.environ, setsigmask=mask, setsigdef=_IGNORED_BY_PYTHON)
            except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
                scribe.end(_NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUNNABLE)
                complain(f"{command[0]!r} cannot be run: {getattr(error, 'strerror', error)}")
        steps = scribe.life(pid, rm=rm) if pid else scribe.failed_start()
        writing = threading.Thread(target=scribe.write, args=(steps,))
        with _passing_on(signals, pid, scribe):
            writing.start()
            if pid:
                _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
                scribe.end(code if code >= 0 else SIGNALLED - code)
            writing.join()
    return scribe.exit_status


class _Scribe:
    """Writes what happens to one sandbox into the store, one thing after the other."""

    def __init__(self, store: SandboxStore, sandbox_id: str, *, give_up: float, quiet: bool) -> None:
        self.ended = threading.Event()
        self.exit_status = 0
        self._exited_at_ns = 0
        self._store = store
        self._id = sandbox_id
        self._give_up = give_up
        self._quiet = quiet
        self._until = math.inf
        self._waiting = False

    def end(self, exit_status: int) -> None:
        """The command has ended, or will not begin: the time runs after which we give up."""
        self.exit_status = exit_status
        self._exited_at_ns = time.time_ns()
        self._until = time.monotonic() + self._give_up
        self.ended.set()

    def hurry(self) -> None:
        """A signal came behind the end. If we wait for the store, it says not to; else it is the one that ended the
        command, which may reach us as well, and later."""
        if self._waiting:
            self._until = -math.inf

    def failed_start(self) -> Iterator[Step]:
        """What is to be written of a command that could not be started."""
        yield "that it could not be started", self._fail_start

    def life(self, pid: int, *, rm: bool) -> Iterator[Step]:
        """What is to be written of one that was; from the second thing on, when it has ended."""
        if not self._quiet:
            complain(f"sandbox {self._id} runs, with pid {pid}")
        yield f"that it runs with pid {pid}", lambda: self._start(pid)
        self.ended.wait()
        yield f"that it ended with exit status {self.exit_status}", self._exit
        if rm:
            yield "its removal", lambda: self._store.remove(self._id, timeout=_ATTEMPT)

    def write(self, steps: Iterator[Step]) -> None:
        """Carry out all steps. What could not be written is said."""
        gave_up: SandboxError | None = None
        missing = []
        for what, operation in steps:
            if gave_up or (gave_up := self._insist(what, operation)):
                missing.append(what)
        if missing:
            later = f"record it later: sandbox-redis exit {self._id} --exit-status {self.exit_status}"
            complain(f"sandbox {self._id}: {' and '.join(missing)} could not be recorded: {gave_up}; {later}")

    def _insist(self, what: str, operation: Callable[[], object]) -> SandboxError | None:
        """Try one step until it is done or refused, or it is time to give up: then the reason."""
        told = self._quiet
        while True:
            try:
                operation()
            # An outcome that is unknown becomes known by trying again: every step finds out that it is done.
            except (StoreUnavailableError, OutcomeUnknownError) as error:
                if time.monotonic() >= self._until:
                    return error
                self._waiting = self.ended.is_set()
                if not told:
                    complain(f"sandbox {self._id}: {what} is not recorded yet: {error}")
                    told = True
            except DurabilityError as error:
                complain(f"sandbox {self._id}: {what} is recorded, and not confirmed: {error}")
                return None
            except SandboxError as error:
                complain(f"sandbox {self._id}: {what} is not recorded: {error}")
                return None
            else:
                return None
            time.sleep(_PAUSE)

    def _fail_start(self) -> None:
        with suppress(NotFoundError):
            self._store.fail_start(self._id, timeout=_ATTEMPT)

    def _start(self, pid: int) -> None:
        try:
            self._store.start(self._id, pid=pid, timeout=_ATTEMPT)
        except TransitionError:
            if self._store.get(self._id, timeout=_ATTEMPT).status.pid != pid:
                raise

    def _exit(self) -> None:
        status = self._store.exit(
            self._id, exit_status=self.exit_status, exited_at_ns=self._exited_at_ns, timeout=_ATTEMPT
        ).status
        if status.exited_at_ns != self._exited_at_ns:
            known = f"another agent has recorded {status.exit_status} before, which stays"
            complain(f"sandbox {self._id}: its exit status {self.exit_status} is not recorded: {known}")


@contextmanager
def _held_back() -> Iterator[tuple[set[signal.Signals], set[int | signal.Signals]]]:
    """Let signals wait until there is a command that they are for, however early they come: those, and the mask before.

    They are blocked in every thread, so that none interrupts a write. What is ignored from the start, as SIGHUP under
    nohup, stays so.
    """
    signals = {number for number in _PASSED_ON if number is _WAKE or signal.getsignal(number) is not signal.SIG_IGN}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some parents leave it, it costs the exit status
    try:
        yield signals, mask
    finally:
        while signal.sigpending() & signals:
            signal.sigwait(signals)  # it came too late for the command, and must not end us
        signal.signal(signal.SIGCHLD, child)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _passing_on(signals: set[signal.Signals], pid: int, scribe: _Scribe) -> Iterator[None]:
    """Pass the signals that we are sent on to the command as long as it runs; behind its end they are for us."""
    over = threading.Event()

    def pass_on() -> None:
        while not over.is_set():
            number, by_process = _next(signals)
            if scribe.ended.is_set():
                scribe.hurry()
            elif by_process:
                try:
                    os.kill(pid, number)  # a pid is not used again so soon that this could hit another process
                except OSError as error:
                    complain(f"{signal.Signals(number).name} did not reach the command: {error.strerror}")

    thread = threading.Thread(target=pass_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.pthread_kill(thread.ident or 0, _WAKE)
        thread.join()


def _next(signals: set[signal.Signals]) -> tuple[int, bool]:
    """Wait for a signal: its number, and whether a process sent it, not the terminal."""
    if sys.platform == "darwin":  # which does not tell, so that Ctrl-C arrives twice
        return signal.sigwait(signals), True
    found = signal.sigwaitinfo(signals)
    return found.si_signo, found.si_code <= 0
