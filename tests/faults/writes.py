"""Each operation that writes, with the state it begins from and what it must come to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from blocking import BlockingStore

from sandbox_redis import AsyncSandboxStore, Event, Metadata, Sandbox, SandboxStore, State, Status

BORN, DIED = 1_700_000_000_000_000_005, 1_700_000_009_000_000_007  # ns
METADATA = Metadata(name="web-0", labels={"app": "web"}, extensions={"ports": [80]})
INIT = Status(State.INIT, created_at_ns=BORN)
READY = Status(State.READY, pid=7, created_at_ns=BORN)
NOTREADY = Status(State.NOTREADY, created_at_ns=BORN)
EXITED = replace(NOTREADY, exit_status=3, exited_at_ns=DIED)


@dataclass(frozen=True)
class Write:
    """One operation that writes."""

    before: Status | None
    run: Callable[[Any, str], Any]
    after: Status | bool | None
    """The status that it leaves and answers with, or its answer when it leaves no record."""
    events: tuple[str, ...]
    packet: int = 0
    """Which of its packets writes, when nothing has to be found out first."""

    def prepare(self, store: Any, sandbox_id: str) -> None:
        """Bring a sandbox to where the operation begins."""
        if self.before is INIT:
            store.create(sandbox_id=sandbox_id, node="n", metadata=METADATA, created_at_ns=BORN)
        elif self.before is not None:
            store.load(sandbox_id, self.before, node="n", metadata=METADATA)

    def answer(self, sandbox_id: str, events: list[Event]) -> Any:
        """What it must return, given its events."""
        if not isinstance(self.after, Status):
            return self.after
        return Sandbox(sandbox_id, "n", self.after, METADATA, events[-1].revision)


WRITES = {
    "create": Write(
        None,
        lambda store, i: store.create(sandbox_id=i, node="n", metadata=METADATA, created_at_ns=BORN),
        INIT,
        ("create",),
    ),
    "load": Write(None, lambda store, i: store.load(i, EXITED, node="n", metadata=METADATA), EXITED, ("load",)),
    "start": Write(INIT, lambda store, i: store.start(i, pid=7), READY, ("start",)),
    "fail_start": Write(INIT, lambda store, i: store.fail_start(i), None, ("fail_start",)),
    "stop": Write(READY, lambda store, i: store.stop(i), NOTREADY, ("stop",)),
    "exit": Write(READY, lambda store, i: store.exit(i, exit_status=3, exited_at_ns=DIED), EXITED, ("exit",)),
    "exit fills in": Write(
        NOTREADY, lambda store, i: store.exit(i, exit_status=3, exited_at_ns=DIED), EXITED, ("exit",)
    ),
    "remove": Write(NOTREADY, lambda store, i: store.remove(i), True, ("remove",)),
    "force": Write(READY, lambda store, i: store.remove(i, force=True), True, ("stop", "remove")),
    "update": Write(
        READY,
        lambda store, i: store.update(i, lambda status: replace(status, pid=status.pid + 1)),
        replace(READY, pid=8),
        ("update",),
        packet=1,
    ),
}


def open_store(flavour: str, url: str, **settings: Any) -> Any:
    """A store of either flavour, with the face of the sync one."""
    if flavour == "sync":
        return SandboxStore.from_url(url, **settings)
    return BlockingStore(AsyncSandboxStore.from_url(url, **settings))


@contextmanager
def opened(flavour: str, url: str, **settings: Any):
    """The same, closed at the end."""
    store = open_store(flavour, url, **settings)
    try:
        yield store
    finally:
        store.close()
