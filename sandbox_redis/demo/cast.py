"""The processes of the demo, as the director sees them: started, killed, ended, and never left behind. It knows
nothing of what they do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from sandbox_redis.demo import process, truth
from sandbox_redis.demo.part import Part
from sandbox_redis.demo.truth import Act, Entry

_PATIENCE: Final = 15.0  # seconds for a process to end by itself; a write to a lost server gives up after 5


@dataclass(slots=True)
class Actor:
    """One process."""

    part: Part
    popen: subprocess.Popen[bytes]
    stderr: Path
    expected: bool = False
    """Its end is: it was killed by us, or told to end."""
    killed: bool = False

    @property
    def name(self) -> str:
        """The actor of its truth log."""
        return self.part.name

    @property
    def pid(self) -> int:
        """Its process id, and the session of all that it starts."""
        return self.popen.pid

    @property
    def last_words(self) -> str:
        """The last line that it wrote to standard error."""
        return "".join(self.stderr.read_text(errors="replace").strip().splitlines()[-1:])


class Cast:
    """All processes of one demo; none outlives the ``with`` block."""

    def __init__(self, folder: Path, url: str, prefix: str, seed: int) -> None:
        """`folder` is where they write their truth logs."""
        self._folder = folder
        self._environment = {**os.environ, process.URL: url}
        self._prefix = prefix
        self._seed = seed
        self.actors: list[Actor] = []

    def log(self, name: str) -> Path:
        """The path of the truth log of an actor."""
        return self._folder / f"{name.replace('/', '-')}.jsonl"

    def start(self, module: str, name: str, *, node: str = "", slots: int = 0, shared: tuple[str, ...] = ()) -> Actor:
        """Start a process: the ``main`` of a module, in a session of its own, so that Ctrl-C reaches only us."""
        part = Part(
            name=name,
            prefix=self._prefix,
            log=str(self.log(name)),
            seed=str(self._seed),
            node=node,
            slots=slots,
            shared=shared,
        )
        stderr = self.log(name).with_suffix(".stderr")
        with stderr.open("wb") as file:
            popen = subprocess.Popen(
                part.command(module),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=self._environment,
                start_new_session=True,
            )
        self.actors.append(Actor(part, popen, stderr))
        return self.actors[-1]

    def kill(self, actor: Actor) -> None:
        """Kill a process with SIGKILL; what it has started runs on."""
        actor.expected = actor.killed = True
        actor.popen.kill()
        actor.popen.wait()

    def fallen(self) -> list[str]:
        """Who has ended and should not have, each told once."""
        problems = []
        for actor in self.actors:
            if not actor.expected and actor.popen.poll() is not None:
                actor.expected = True
                problems.append(_ending(actor))
        return problems

    def end(self) -> list[str]:
        """Tell all to end, and wait until they have; what went wrong."""
        problems = self.fallen()
        ending = [actor for actor in self.actors if not actor.expected]
        for actor in ending:
            actor.expected = True
            _close(actor)
        until = time.monotonic() + _PATIENCE
        for actor in ending:
            try:
                if actor.popen.wait(max(until - time.monotonic(), 0)) != 0:
                    problems.append(_ending(actor))
            except subprocess.TimeoutExpired:
                self.kill(actor)
                problems.append(f"{actor.name} did not end within {_PATIENCE:.0f} s and was killed")
        return problems

    def entries(self) -> list[Entry]:
        """What all have noted, each in the order in which it did.

        Raises:
            ValueError: a log cannot be read.
        """
        return [entry for log in sorted(self._folder.glob("*.jsonl")) for entry in truth.read(log)]

    def end_leftovers(self) -> list[str]:
        """End every process of a sandbox that still runs, when all who should have done so have ended; which."""
        sessions = {actor.name: actor.pid for actor in self.actors}
        return [
            f"process {entry.pid} of {entry.id[:12]} still ran after the end of {entry.actor}"
            for entry in self.entries()
            if entry.act is Act.SPAWNED and process.end_orphan(entry.pid, sessions[entry.actor])
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for actor in self.actors:
            if actor.popen.poll() is None:
                self.kill(actor)
            _close(actor)
        if any(exc_info):
            self.end_leftovers()


def _close(actor: Actor) -> None:
    assert actor.popen.stdin is not None
    actor.popen.stdin.close()


def _ending(actor: Actor) -> str:
    code = actor.popen.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
    words = actor.last_words
    return f"{actor.name} (process {actor.pid}) {how}" + (f": {words}" if words else "")
