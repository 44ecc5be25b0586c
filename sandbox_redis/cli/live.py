"""A listing that stays current: on a terminal a table that is drawn again and again, elsewhere a line for each change
behind the listing. Which sandboxes and which columns is decided in ``listing.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.cli import following, shape, show, text
from sandbox_redis.cli.columns import Cell, Order
from sandbox_redis.cli.options import Where
from sandbox_redis.mirror import Mirror
from sandbox_redis.record import Event, Metadata, Sandbox, Status
from sandbox_redis.states import State

_PAUSE: Final = 0.5  # seconds from one picture to the next
_SHARE: Final = 4  # as many times as long as a picture took; drawing very many must not cost all of a processor
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@dataclass(frozen=True, slots=True)
class Listing:
    """What is listed, and how."""

    states: tuple[State, ...]
    filters: Mapping[str, Any]
    """As the store's listings take them."""
    order: Order
    shown: Mapping[str, Cell]
    headers: bool

    def has(self, sandbox: Sandbox) -> bool:
        """Whether its state is one of those; what cannot be decoded is UNKNOWN."""
        return sandbox.status.state in self.states


# -- on a terminal


def redraw(where: Where, listing: Listing) -> None:
    """Draw the table about twice a second, until somebody asks for the end. What was on the screen before is moved out
    of it, and the last picture stays.
    """
    with following.until_asked(), where.store() as store, store.mirror(**listing.filters) as mirror:
        out = show.console()
        print(_HIDE_CURSOR, "\n" * (out.height - 1), sep="", end="")
        try:
            while True:
                began = time.monotonic()
                lines = _picture(mirror, listing, out.height)
                rest = "".join(f"{line}{_END_OF_LINE}\n" for line in lines)
                print(_HOME, rest, _END_OF_SCREEN, sep="", end="", flush=True)
                time.sleep(max(_PAUSE, _SHARE * (time.monotonic() - began)))
        finally:
            print(_SHOW_CURSOR, end="", flush=True)


def _picture(mirror: Mirror, listing: Listing, height: int) -> list[str]:
    """The lines of a screen; the last one of the terminal stays free, for the cursor."""
    found = [sandbox for sandbox in mirror.list(states=State) if listing.has(sandbox)]
    now = time.time_ns()
    words = [f"{len(found)} sandbox{'es' * (len(found) != 1)}"]
    if mirror.stale:
        words.insert(0, f"stale since {text.clock(text.at(now - int(mirror.age * 1e9)))}")
    if State.INIT not in listing.states and (hidden := mirror.count(state=State.INIT)):
        words.append(f"{hidden} more in INIT")
    room = height - 2 - 2 * listing.headers  # a line for the words, one for the cursor; the heading and its rule
    if len(found) > room:
        room -= 1
    row = show.cells(listing.shown)
    rows = [row(sandbox, now) for sandbox in listing.order(found, max(0, room))]
    headings = show.fit_headings(listing.shown)
    more = len(found) - len(rows)
    first = f"{text.clock(text.at(now))}  {', '.join(words)}"
    return show.screen(first, headings, rows, more=more, headers=listing.headers)[: height - 1]


# -- elsewhere


def stream(where: Where, listing: Listing, *, quiet: bool, as_json: bool) -> None:
    """Print the listing, and then a line for each change: the sandbox as it is then. One that leaves the states that
    are asked for is printed once more; of one that is removed, that it is gone.
    """

    async def body(store: AsyncSandboxStore) -> None:
        sandboxes, watch = await store.list_and_watch(states=listing.states, **listing.filters)
        known = {sandbox.id: sandbox for sandbox in sandboxes if listing.has(sandbox)}
        say = _printer(listing, listing.order(known.values(), None), quiet=quiet, as_json=as_json)

        def tell(event: Event) -> bool:
            before = known.pop(event.id, None)
            after = event.sandbox
            if after is not None and listing.has(after):
                known[event.id] = after
            say(after or _Gone(before or _bare(event)))
            return False

        async with watch:
            await following.follow(watch, tell)

    following.run(where, body)


class _Gone(NamedTuple):
    """A sandbox that is gone, as it was before."""

    before: Sandbox

    @property
    def id(self) -> str:
        """Its id."""
        return self.before.id


def _bare(event: Event) -> Sandbox:
    """What is known of a sandbox that is gone, and was not listed before."""
    return Sandbox(event.id, "", Status(event.before or State.UNKNOWN), Metadata(), event.revision)


def _printer(
    listing: Listing, first: Iterable[Sandbox], *, quiet: bool, as_json: bool
) -> Callable[[Sandbox | _Gone], None]:
    """Prints the first ones, and is what prints the others."""
    if not quiet and not as_json:
        return _table(listing, first)

    def say(what: Sandbox | _Gone) -> None:
        if quiet:
            print(text.one_word(what.id), flush=True)
        else:
            shape.write_line(shape.record(what) if isinstance(what, Sandbox) else shape.removed(what.id))

    for sandbox in first:
        say(sandbox)
    return say


def _table(listing: Listing, first: Iterable[Sandbox]) -> Callable[[Sandbox | _Gone], None]:
    now = time.time_ns()
    row = show.cells(listing.shown)
    gone = show.cells({**listing.shown, **{name: lambda *_: text.GONE for name in listing.shown if name == "STATE"}})
    rows = [row(sandbox, now) for sandbox in first]
    lines = show.Lines(show.fit_headings(listing.shown), rows, headers=listing.headers)

    def say(what: Sandbox | _Gone) -> None:
        now = time.time_ns()
        lines.add(row(what, now) if isinstance(what, Sandbox) else gone(what.before, now))

    return say
