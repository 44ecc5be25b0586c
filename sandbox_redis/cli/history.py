"""The command that tells what happened to a sandbox, from the stream of events. How it is read stands in
``queries.py``. A docstring is its command's help.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final, NamedTuple

from sandbox_redis import checks
from sandbox_redis.cli import shape, show, text
from sandbox_redis.cli.options import Exact, Form, Where, one_id
from sandbox_redis.cli.statuses import complain
from sandbox_redis.errors import NotFoundError
from sandbox_redis.record import Event, Status
from sandbox_redis.store import SandboxStore

_HEADINGS: Final = ("TIME", "LASTED", "EVENT", "CHANGE", "PID", "EXIT", "BY")


def history(where: Where, form: Form, sandbox_id: Annotated[str, one_id("get")], *, exact: Exact = False) -> None:
    """Show what happened to a sandbox, and how long each state lasted.

    The oldest comes first, as far back as the events reach. One that was removed has its history as well; it is found
    by its whole id.
    """
    with where.store() as store:
        sandbox_id, events = _read(store, sandbox_id, exact=exact)
    lived = list(steps(events))
    if form.json:
        shape.write_array({**shape.event(step.event), "lasted_ns": step.lasted} for step in lived)
    elif lived:
        show.table(_HEADINGS, list(_rows(lived)), breakable=("BY",))
        print(_total(sandbox_id, lived, time.time_ns()))
    if not events:
        complain(f"sandbox {sandbox_id!r} is there, but its events are gone: only the newest are kept")


def _read(store: SandboxStore, typed: str, *, exact: bool) -> tuple[str, list[Event]]:
    """What happened to it, and its id. The whole id comes first: one that has gone must not be taken for another."""
    checks.sandbox_id(typed)
    try:
        return typed, store.history(typed)
    except NotFoundError:
        if exact:
            raise
        whole = store.resolve(typed)
        return whole, store.history(whole)


class Step(NamedTuple):
    """A change, and how long the state before it lasted."""

    event: Event
    lasted: int | None
    """Nanoseconds; None where the state did not end, or where its beginning is not known any more."""

    @property
    def status(self) -> Status | None:
        """The status after it; None when it is gone."""
        return self.event.sandbox.status if self.event.sandbox else None

    @property
    def moved(self) -> bool:
        """Whether the state is another one after it: not so for most updates, and an exit that was filled in."""
        return self.event.before is not (self.status and self.status.state)

    @property
    def at(self) -> int:
        """When, in nanoseconds since the Unix epoch, by the server's clock."""
        return text.nanoseconds(self.event.at)


def steps(events: Iterable[Event]) -> Iterator[Step]:
    """The changes of one sandbox, the oldest first."""
    since: int | None = None  # when the present state began
    for step in (Step(event, None) for event in events):
        lasted = None if since is None or step.event.before is None or not step.moved else step.at - since
        yield step._replace(lasted=lasted)
        if step.moved:
            since = step.at


def _rows(steps: Sequence[Step]) -> Iterator[list[str]]:
    """The cells of the table. A pid and an exit status stand where they are new."""
    fit = show.escape()
    before: Status | None = None
    for step in steps:
        event, after = step.event, step.status
        pid = after.pid if after and not (before and before.pid == after.pid) else 0
        exited = after and after.exited_at_ns and not (before and before.exited_at_ns == after.exited_at_ns)
        cells = (
            text.clock(event.at),
            text.NONE if step.lasted is None else text.lasting(step.lasted),
            fit(event.transition),
            text.change(event),
            str(pid or ""),
            str(after.exit_status) if after and exited else "",
            fit(event.by),
        )
        yield [cell or text.NONE for cell in cells]
        before = after


def _total(sandbox_id: str, steps: Sequence[Step], now: int) -> str:
    """How long it was there, over all its lives, and what it is now; by the server's clock, and by ours for now."""
    total = lives = 0
    began: int | None = None
    for step in steps:
        began = step.at if began is None else began
        if step.status is None:
            total, lives, began = total + step.at - began, lives + 1, None
    ending = text.GONE
    if began is not None and (status := steps[-1].status):
        total, lives = total + max(0, now - began), lives + 1
        since = next((step.at for step in reversed(steps) if step.moved), began)
        ending = f"{status.state} for {text.lasting(max(0, now - since))}"
    trimmed = "at least " * (steps[0].event.before is not None)
    in_lives = f" in {lives} lives" * (lives > 1)
    events = f"{len(steps)} event{'s' * (len(steps) > 1)}"
    return f"total of {sandbox_id}: {trimmed}{text.lasting(total)}{in_lives}, {events}, {ending}"
