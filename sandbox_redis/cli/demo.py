"""``sandbox-redis demo``: the stage of `sandbox_redis.demo`. It gives the demo a server, a store, a folder and a
screen, takes all of them down again, and says with the exit status whether everything was as it has to be.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final, TypeVar

from sandbox_redis.cli.signals import noted_signals
from sandbox_redis.demo.check import Check, Findings
from sandbox_redis.demo.director import DIRECTOR, Director, Script
from sandbox_redis.demo.inside import address, delete_store
from sandbox_redis.demo.part import EVENTS_MAXLEN
from sandbox_redis.demo.screen import Screen, screen
from sandbox_redis.demo.tally import tally
from sandbox_redis.errors import InvalidArgumentError, SandboxError
from sandbox_redis.server import EmbeddedServer
from sandbox_redis.store import SandboxStore

_AGENTS_MAX: Final = 64  # each is a Python process of about 35 MB
_SANDBOXES_MAX: Final = 1000  # each is two processes, a shell and its sleep
_SECONDS_MAX: Final = 600  # the check has every event in memory, about 2 MB for each second

Number = TypeVar("Number", int, float)


def demo(url: str | None, agents: int, sandboxes: int, seconds: float, seed: int | None) -> int:
    """Run the main job of the project with real processes, and check everything at the end.

    Args:
        url: of the server to use, under a prefix of its own, which is deleted at the end; an embedded one when None.
        agents: how many node agents, 1 to 64; each is a process, and one of them is killed in the middle.
        sandboxes: how many sandboxes run at a time, at least one for each agent and at most 1000.
        seconds: how long, at most 600; starting and checking take about two more.
        seed: of what is random, so that lifetimes and choices come again; by chance when None.

    Returns:
        The exit status: 0; 1 if any check failed; 128 + n if the signal n ended it early and all was well.

    Raises:
        InvalidArgumentError: an argument breaks its rule.
        ServerStartError, StoreUnavailableError: there is no server to run, or it is not available.
    """
    script = Script(
        agents=_within("agents", agents, 1, _AGENTS_MAX),
        sandboxes=_within("sandboxes", sandboxes, agents, _SANDBOXES_MAX),
        seconds=_within("seconds", seconds, 0.1, _SECONDS_MAX),
        seed=secrets.randbelow(10**6) if seed is None else seed,
    )
    shown = screen()
    with noted_signals() as received, _folder() as folder:
        server = EmbeddedServer() if url is None else None
        with server or nullcontext():
            pid = server.pid if server else 0
            findings = _play(script, server.url if server else str(url), folder, shown, received)
        interrupted = received()
        if failed := any(check.problems for check in findings.checks):
            kept = folder.rename(folder.with_name(f"{folder.name}-failed"))
            shown.say(f"what each process really did is in {kept}")
    left = [f"the server's process {pid} still runs"] if pid and _exists(pid) else []
    left += [f"{path} is still there" for path in (folder, *([server.data] if server else [])) if path.exists()]
    findings.checks.append(Check("no server and no file is left" if server else "no file is left", left))
    shown.conclude(tally(findings), findings.checks)
    return 1 if failed or left else 128 + interrupted if interrupted else 0


def _play(script: Script, url: str, folder: Path, shown: Screen, received: Callable[[], int]) -> Findings:
    """Play the demo in a store of its own, and delete that."""
    prefix = f"sandbox-demo-{secrets.token_hex(4)}"
    with SandboxStore.from_url(url, prefix=prefix, agent=DIRECTOR, events_maxlen=EVENTS_MAXLEN) as store:
        store.ids()  # raises before anything is started when there is no server
        shown.say(
            f"{script.agents} agents, {script.sandboxes} sandboxes at a time, {script.seconds:g} s,"
            f" seed {script.seed}\nstore {prefix} at {address(store)}; all its keys are deleted at the end"
        )
        director = Director(store, url, prefix, script, folder, shown, received)
        try:
            findings = director.play()
        except BaseException:
            try:
                delete_store(store)
            except SandboxError:
                shown.say(f"the keys {prefix}:* could not be deleted")
            raise
        findings.checks.append(Check("no key is left", [f"{key} was left" for key in delete_store(store)]))
    return findings


def _within(argument: str, value: Number, low: Number, high: Number) -> Number:
    if not low <= value <= high:
        raise InvalidArgumentError(argument, value, f"{low} to {high} is possible")
    return value


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for what the processes note."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it is not there any more when it was renamed to be kept


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # or it is a later process, of another user
        return False
    return True
