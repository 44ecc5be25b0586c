"""A picture of the sandboxes that a reader wants, kept current by their events: the core of mirrors and of
``list_and_watch``. No I/O.

It knows all sandboxes that fit in what never changes (node, labels, namespace), whatever their state: events carry no
metadata, and one that is INIT today may be READY tomorrow. Each record says which event it is as of, so it does not
matter that the events of the time of the listing come again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sandbox_redis import listing
from sandbox_redis.deadline import Deadline
from sandbox_redis.follow import Entry, Follower, place
from sandbox_redis.keys import Keys
from sandbox_redis.listing import Listing
from sandbox_redis.record import Event, Sandbox, event_from_flat
from sandbox_redis.selection import ALL, Selection
from sandbox_redis.session import Session
from sandbox_redis.wire import Op

_BEGINNINGS: Final = frozenset((b"create", b"load"))


class Picture:
    """Sandboxes by id, each as its newest event left it."""

    def __init__(self, layout: Keys, wanted: Selection) -> None:
        self.wanted = wanted
        self.sandboxes: dict[str, Sandbox] = {}
        self._layout = layout
        self._ends: dict[int, str] = {}  # partition → the newest event at the end of the listing

    def shown(self) -> Iterator[Sandbox]:
        """The sandboxes in the states that are wanted."""
        return filter(self.wanted.shows, self.sandboxes.values())

    def take(self, entry: Entry, places: tuple[str, ...] = ()) -> Event | None:
        """Draw one event; it with the whole sandbox, or None when it is not of one that fits, or is drawn already."""
        partition, revision, flat = entry
        sandbox_id = flat[1].decode(errors="backslashreplace")  # the id is the first field
        known = self.sandboxes.get(sandbox_id)
        if known is not None and is_as_of(known, revision):
            return None
        begins = flat[3] in _BEGINNINGS  # the transition is the second
        if known is None and not begins:
            return None  # of another node, or with other labels; or gone before it was listed
        metadata = None if begins or known is None else known.metadata
        event = event_from_flat(revision, self._layout.events(partition), flat, places, metadata)
        after = event.sandbox
        if after is None:
            self.sandboxes.pop(sandbox_id, None)
        elif begins and not self.wanted.fits(after):
            self.sandboxes.pop(sandbox_id, None)
            return None
        else:
            self.sandboxes[sandbox_id] = after
        return event

    def ends(self, newest: list[str]) -> None:
        """The listing has come to its end, with these as the newest events."""
        self._ends = dict(enumerate(newest))

    def caught_up(self, places: dict[int, str]) -> bool:
        """Whether the events of the time of the listing have all been taken: it is whole now."""
        for partition, newest in tuple(self._ends.items()):
            if place(places[partition]) < place(newest):
                return False
            self._ends.pop(partition, None)  # another thread may look at the same time
        return True


def is_as_of(sandbox: Sandbox, revision: str) -> bool:
    """Whether a sandbox is as this event left it, or a later one."""
    return sandbox.problem is None and place(sandbox.revision) >= place(revision)


def draw(session: Session, layout: Keys, wanted: Selection, deadline: Deadline) -> Op[tuple[Picture, Follower]]:
    """A picture of everything that fits, and what is to tell it of the events since it was begun."""
    picture = Picture(layout, wanted)
    places = dict(enumerate((yield from listing.newest(session, layout, deadline))))
    pages = Listing(session, replace(wanted, states=ALL), None, None, None)
    while pages.more:
        sheet = pages.took((yield from pages.next()))
        picture.sandboxes.update((sandbox.id, sandbox) for sandbox in sheet.sandboxes())
    picture.ends((yield from listing.newest(session, layout, deadline.renewed())))
    return picture, Follower(session, layout, places)
