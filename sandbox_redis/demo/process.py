"""The real processes behind the sandboxes: what they do, and how others than their parent may end them. No store here.

A process waits behind a gate, its standard input, until its pid is recorded, as runc's init waits between ``create``
and ``start``. When its agent dies before that, the gate closes and the process ends by itself: what nobody could find
never runs. It leads a process group, so that it ends with its own children, in the session of its agent, which tells
it from a later process that got the same pid.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_SIGNALS: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL)
_STATUSES: Final = (0, 0, 0, 1, 7, 42)  # most end well
_LIFETIME: Final = (0.1, 3.0)  # seconds: in ten seconds each place is taken many times
_CHORES: Final = (0, 0, 0.1, 0.3)  # seconds; often none, so that owner and controller remove at the same moment
URL: Final = "SANDBOX_REDIS_URL"  # in the environment of agents, not of sandboxes
_POLL: Final = 0.005  # seconds; only for orphans, whose end nobody can wait for


@dataclass(frozen=True, slots=True)
class Life:
    """What becomes of a sandbox: its process runs for `lifetime` seconds, then exits with a status or dies of a signal.
    `program` may be one that does not exist, and then it cannot even be started."""

    setup: float
    """Seconds in INIT, before there is a process."""
    program: str
    lifetime: float
    cleanup: float
    """Seconds in NOTREADY, before it is removed."""
    exit_status: int = 0
    signal: int = 0

    @classmethod
    def draw(cls, chance: random.Random) -> Self:
        """One of many lives."""
        end = chance.choices(("exit", "signal", "broken"), (80, 15, 5))[0]
        return cls(
            setup=chance.choice(_CHORES),
            program="/nonexistent/sandbox-init" if end == "broken" else "/bin/sh",
            lifetime=round(chance.uniform(*_LIFETIME), 3),
            cleanup=chance.choice(_CHORES),
            exit_status=chance.choice(_STATUSES),
            signal=chance.choice(_SIGNALS) if end == "signal" else 0,
        )

    @property
    def command(self) -> list[str]:
        """Its command line."""
        end = f"kill -{self.signal} $$" if self.signal else f"exit {self.exit_status}"
        return [self.program, "-c", f"read -r _ || exit 0; sleep {self.lifetime}; {end}"]


class Child:
    """A process, seen by the agent that started it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, life: Life) -> Self:
        """Start it; it waits until `release`.

        Raises:
            OSError: it cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *life.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != URL},  # it may hold a password
            process_group=0,
        )
        return cls(process)

    def release(self) -> None:
        """Open the gate: it is recorded, so it may run."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"run\n")

    async def wait(self) -> int:
        """Its exit status, once it has ended: 128 + n when it died of the signal n, as container runtimes have it."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def end(self) -> None:
        """End it now, with its children, if it still runs."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def signal_group(pid: int, session: int, number: int) -> bool:
    """Send a signal to a sandbox's process and its children, by its recorded pid; False when it does not run."""
    with suppress(ProcessLookupError, PermissionError):
        if pid > 0 and os.getsid(pid) == session and os.getpgid(pid) == pid:
            os.killpg(pid, number)
            return True
    return False


def runs(pid: int, session: int) -> bool:
    """Whether the process that got this pid in this session still runs; a zombie does not."""
    try:
        return os.getsid(pid) == session and not _is_zombie(pid)
    except (ProcessLookupError, PermissionError, FileNotFoundError):
        return False


def _is_zombie(pid: int) -> bool:
    if sys.platform == "linux":
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    else:
        asked = ["/bin/ps", "-o", "stat=", "-p", str(pid)]
        state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "Z"
    return state[0] in "ZX"


def end_orphan(pid: int, session: int, *, timeout: float = 5) -> bool:
    """End a process whose parent is dead, and wait until it has; False when it did not run any more.

    Raises:
        TimeoutError: it does not end.
    """
    until = time.monotonic() + timeout
    ran = runs(pid, session) and signal_group(pid, session, signal.SIGKILL)
    while runs(pid, session):
        if time.monotonic() > until:
            raise TimeoutError(f"process {pid} does not end")
        time.sleep(_POLL)
    return ran
