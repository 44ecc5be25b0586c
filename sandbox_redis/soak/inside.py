"""What a soak needs of a store and what has no public form: the token of each write and whether its reply was lost, and
every event. The only module of the soak that looks inside the store.
"""
# ruff: noqa: SLF001 - see above

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.demo.inside import delete_store
from sandbox_redis.driver import play
from sandbox_redis.record import event_from_flat
from sandbox_redis.soak.model import Change
from sandbox_redis.store import SandboxStore
from sandbox_redis.trace import Trace
from sandbox_redis.wire import Op

__all__ = ["changes", "delete_store", "last_ids", "no_place", "problems", "traced"]

_PAGE: Final = 1000  # events in one reply
_KEPT: Final = 100  # events of each partition for the audit, which has everything in memory at once


def traced(store: SandboxStore | AsyncSandboxStore) -> Callable[[str], tuple[str, bool]]:
    """From now on, this gives the token of the last write to a sandbox by the thread or task that asks, and whether its
    reply was lost on the way; each once."""
    current: ContextVar[dict[str, Trace] | None] = ContextVar("traces", default=None)
    original = store._operations.trace

    def trace(*args: Any) -> Op[Trace]:
        made = yield from original(*args)
        if (traces := current.get()) is None:
            current.set(traces := {})
        traces[made.id] = made
        return made

    setattr(store._operations, "trace", trace)  # noqa: B010 - mypy lets nobody assign to a method

    def last(sandbox_id: str) -> tuple[str, bool]:
        made = (current.get() or {}).pop(sandbox_id, None)
        return ("", False) if made is None else (made.request, bool(made.fences))

    return last


def _streams(store: SandboxStore) -> list[str]:
    layout = play(store._lane, store._operations.layout())
    return [layout.events(partition) for partition in range(layout.partitions)]


def _ask(store: SandboxStore, key: str, *command: Any) -> Any:
    """The reply to a command that can be sent twice without harm, from the server that holds `key`."""
    return play(store._lane, store._operations.read(key, (command,)))[0]


def changes(store: SandboxStore) -> list[list[Change]]:
    """Every event of a store, for each partition, in order."""
    found: list[list[Change]] = []
    for key in _streams(store):
        found.append([])
        after = "-"
        while page := _ask(store, key, "XRANGE", key, after, "+", "COUNT", _PAGE):
            found[-1] += [Change.of(event_from_flat(revision.decode(), key, flat)) for revision, flat in page]
            after = f"({page[-1][0].decode()}"
    return found


def problems(store: SandboxStore) -> list[str]:
    """What does not fit together among records, indexes and the last events; the other events are trimmed for it."""
    for key in _streams(store):
        _ask(store, key, "XTRIM", key, "MAXLEN", _KEPT)
    return store.audit().problems


def no_place(store: SandboxStore) -> str:
    """The cursor of what is before the first event."""
    return ",".join("0-0" for _ in _streams(store))


def last_ids(store: SandboxStore, start: str) -> tuple[str, ...]:
    """For each partition, an id that begins so and belongs there."""
    layout = play(store._lane, store._operations.layout())
    found: dict[int, str] = {}
    number = 0
    while len(found) < layout.partitions:
        found.setdefault(layout.partition(f"{start}{number}"), f"{start}{number}")
        number += 1
    return tuple(found[partition] for partition in range(layout.partitions))
