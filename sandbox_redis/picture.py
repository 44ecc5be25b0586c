"""A picture of the sandboxes that a reader wants, kept current by their events: the core of mirrors and of
``list_and_watch``. No I/O.

It knows all sandboxes that fit in what never changes (node, labels, namespace), whatever their state: events carry no
metadata, and one that is INIT today may be READY tomorrow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sandbox_redis import listing
from sandbox_redis.exchange import Deadline
from sandbox_redis.follow import Entry, place
from sandbox_redis.keys import Keys
from sandbox_redis.listing import Portion
from sandbox_redis.record import Event, Sandbox, event_from_flat
from sandbox_redis.selection import Selection
from sandbox_redis.session import Session
from sandbox_redis.states import State
from sandbox_redis.wire import Op

_BEGINNINGS: Final = frozenset((b"create", b"load"))


class Picture:
    """Sandboxes by id, each as its newest event left it."""

    def __init__(self, layout: Keys, wanted: Selection) -> None:
        self.wanted = wanted
        self.sandboxes: dict[str, Sandbox] = {}
        self._layout = layout
        self._listed: dict[int, tuple[list[str], list[str]]] = {}  # partition → last ids of its portions, newest events

    def add(self, partition: int, part: Portion) -> None:
        """Draw what a portion of a listing has."""
        lasts, newests = self._listed.setdefault(partition, ([], []))
        lasts.append(part.last)
        newests.append(part.newest)
        self.sandboxes.update((sandbox.id, sandbox) for sandbox in part.sandboxes())

    def start(self) -> dict[int, str]:
        """For each partition, the event from which on the picture must be told what happens."""
        return {partition: newests[0] for partition, (_, newests) in self._listed.items()}

    def caught_up(self) -> bool:
        """Whether the events of the time of the listing have all been taken: it is whole now."""
        return not self._listed

    def shown(self) -> Iterator[Sandbox]:
        """The sandboxes in the states that are wanted."""
        return filter(self.wanted.shows, self.sandboxes.values())

    def take(self, entry: Entry, places: tuple[str, ...] = ()) -> Event | None:
        """Draw one event; it with the whole sandbox, or None when it is not of one that fits, or is drawn already."""
        partition, revision, flat = entry
        sandbox_id = flat[1].decode(errors="backslashreplace")  # the id is the first field
        if partition in self._listed and self._is_drawn(partition, revision, sandbox_id):
            return None
        begins = flat[3] in _BEGINNINGS  # the transition is the second
        known = None if begins else self.sandboxes.get(sandbox_id)
        if known is None and not begins:
            return None  # of another node, or with other labels
        metadata = None if known is None else known.metadata
        event = event_from_flat(revision, self._layout.events(partition), flat, places, metadata)
        after = event.sandbox
        if after is None:
            del self.sandboxes[sandbox_id]
        elif known is None and not self.wanted.fits(after):
            return None
        else:
            self.sandboxes[sandbox_id] = after
        return event

    def settle(self, places: dict[int, str]) -> None:
        """Forget how the listing went where the events have passed it."""
        for partition, (_, newests) in tuple(self._listed.items()):
            if place(places[partition]) >= place(newests[-1]):
                del self._listed[partition]

    def _is_drawn(self, partition: int, revision: str, sandbox_id: str) -> bool:
        """Whether the portion that has, or would have, this sandbox was read after this event."""
        lasts, newests = self._listed[partition]
        if place(revision) > place(newests[-1]):
            del self._listed[partition]  # so is everything behind it
            return False
        portion = bisect_left(lasts, sandbox_id, hi=len(lasts) - 1)  # the last portion goes on to the end
        return place(revision) <= place(newests[portion])


def draw(session: Session, layout: Keys, wanted: Selection, deadline: Deadline) -> Op[Picture]:
    """A picture from a listing of everything that fits. Each round trip has a deadline like `deadline` of its own."""
    picture = Picture(layout, wanted)
    everything = replace(wanted, states=frozenset(State))
    partitions = range(layout.partitions)
    if wanted.sandbox_id is not None:
        partitions = range(layout.partition(wanted.sandbox_id), layout.partition(wanted.sandbox_id) + 1)
    for partition in partitions:
        last = ""
        while True:
            part = yield from listing.portion(
                session, layout, partition, everything, last, listing.PAGE, deadline.renewed()
            )
            picture.add(partition, part)
            if not (last := part.last):
                break
    return picture
