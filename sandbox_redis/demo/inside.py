"""What the demo needs of a store and what has no public form: to follow its events, and to delete all of it. The only
module of the demo that looks inside the store.
"""
# ruff: noqa: SLF001 - see above

from __future__ import annotations

from typing import Any, Final

from sandbox_redis import keys
from sandbox_redis.driver import play
from sandbox_redis.keys import Keys
from sandbox_redis.record import Event, event_from_fields, pairs
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

_PAGE: Final = 1000  # events or keys in one reply


def _layout(store: SandboxStore) -> Keys:
    return play(store._lane, store._operations.layout())


def _ask(store: SandboxStore, key: str, *command: Any) -> Any:
    """The reply to a command that can be sent twice without harm, from the server that holds `key`."""
    return play(store._lane, store._operations.read(key, (command,)))[0]


class Follower:
    """Reads the events of a store from its first on, each once."""

    def __init__(self, store: SandboxStore) -> None:
        self._store = store
        self._last: dict[int, str] = {}

    def read(self) -> list[Event]:
        """The events since the last call, in order within each partition."""
        found: list[Event] = []
        layout = _layout(self._store)
        for partition in range(layout.partitions):
            key = layout.events(partition)
            while True:
                after = f"({self._last[partition]}" if partition in self._last else "-"
                page = _ask(self._store, key, "XRANGE", key, after, "+", "COUNT", _PAGE)
                found += [event_from_fields(revision.decode(), key, pairs(flat)) for revision, flat in page]
                if page:
                    self._last[partition] = page[-1][0].decode()
                if len(page) < _PAGE:
                    break
        return found


def address(store: SandboxStore) -> str:
    """Where its server is, without credentials."""
    return store._lane.address


def delete_store(store: SandboxStore) -> list[str]:
    """Delete a store with everything under its prefix; the keys that were left when its sandboxes were removed, and
    the keys that every store keeps, were deleted: there should be none."""
    for sandbox_id in store.ids(states=list(State)):
        store.remove(sandbox_id, force=True)
    layout = _layout(store)
    own = [keys.meta(layout.prefix), *(layout.events(partition) for partition in range(layout.partitions))]
    for key in own:
        _ask(store, key, "UNLINK", key)
    left: set[str] = set()
    for key in own:
        cursor: Any = "0"
        while cursor != b"0":
            cursor, page = _ask(store, key, "SCAN", cursor, "MATCH", f"{layout.prefix}:*", "COUNT", _PAGE)
            left.update(found.decode() for found in page)
    for key in left:
        _ask(store, key, "UNLINK", key)
    return sorted(left)
