"""The processes of a soak, as the director sees them: started, killed, ended, and never left behind. It knows nothing
of what they do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from sandbox_redis.soak.history import Call, History
from sandbox_redis.soak.log import Reader
from sandbox_redis.soak.part import URL, Part

_PATIENCE: Final = 30.0  # seconds for a process to end by itself


@dataclass(slots=True)
class Member:
    """One process."""

    part: Part
    module: str
    url: str
    popen: subprocess.Popen[bytes]
    errors: Path
    reader: Reader
    expected: bool = False
    """Whether its end is: it was killed by us, or told to end."""

    @property
    def name(self) -> str:
        """The store's `agent`."""
        return self.part.name

    def ending(self) -> str:
        """How it ended, and the last line that it wrote to standard error."""
        code = self.popen.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        words = "".join(self.errors.read_text(errors="replace").strip().splitlines()[-1:])
        return f"{self.name} {how}" + (f": {words}" if words else "")


class Crew:
    """All processes of one round; none outlives the ``with`` block."""

    def __init__(self, folder: Path, url: str) -> None:
        """`folder` is where they write their logs."""
        self._folder = folder
        self._url = url
        self.members: list[Member] = []

    def log(self, name: str) -> Path:
        """The path of the log of a process."""
        return self._folder / f"{name}.history"

    def start(self, module: str, part: Part, url: str | None = None) -> Member:
        """Start the ``main`` of a module as a process, in a session of its own, so that Ctrl-C reaches only us. It goes
        to the store in its own way where `url` is given."""
        url = url or self._url
        log = self.log(part.name)
        part = replace(part, log=str(log))
        errors = log.with_suffix(".stderr")
        with errors.open("wb") as file:
            popen = subprocess.Popen(
                part.command(module),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, URL: url},
                start_new_session=True,
            )
        self.members.append(Member(part, module, url, popen, errors, Reader(log)))
        return self.members[-1]

    def replace(self, member: Member, name: str) -> Member:
        """Kill a process with SIGKILL, whatever it does now, and start another one like it."""
        member.expected = True
        member.popen.kill()
        member.popen.wait()
        return self.start(member.module, replace(member.part, name=name), member.url)

    def read(self) -> list[Call]:
        """Take in what all have noted since the last time; the calls that were answered."""
        return [call for member in self.members for call in member.reader.read()]

    @property
    def histories(self) -> list[History]:
        """What all have noted, as far as it has been read."""
        return [member.reader.history for member in self.members]

    def fallen(self) -> list[str]:
        """Who has ended and should not have, each told once."""
        problems = []
        for member in self.members:
            if not member.expected and member.popen.poll() is not None:
                member.expected = True
                problems.append(member.ending())
        return problems

    def end(self, members: Iterable[Member]) -> list[str]:
        """Tell them to end, and wait until they have; what went wrong."""
        members = [member for member in members if not member.expected]
        for member in members:
            _close(member)
        return self.wait(members)

    def wait(self, members: Iterable[Member]) -> list[str]:
        """Wait until they have ended by themselves; what went wrong."""
        problems = []
        until = time.monotonic() + _PATIENCE
        for member in members:
            if member.expected:
                continue
            member.expected = True
            try:
                if member.popen.wait(max(until - time.monotonic(), 0)) != 0:
                    problems.append(member.ending())
            except subprocess.TimeoutExpired:
                member.popen.kill()
                member.popen.wait()
                problems.append(f"{member.name} did not end within {_PATIENCE:.0f} s and was killed")
        return problems

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for member in self.members:
            if member.popen.poll() is None:
                member.popen.kill()
                member.popen.wait()
            _close(member)


def _close(member: Member) -> None:
    assert member.popen.stdin is not None
    member.popen.stdin.close()
