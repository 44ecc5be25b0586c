"""The command that tells what happens, as it happens. Where it begins stands in ``since.py``, how it goes on in
``following.py``. A docstring is its command's help.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.cli import following, ids, shape, show, text
from sandbox_redis.cli.options import Exact, Form, NoHeaders, Where, Which, ids_for
from sandbox_redis.cli.since import CursorFile, place
from sandbox_redis.cli.statuses import PROGRAM, complain, status_of
from sandbox_redis.errors import CompactedError, InvalidArgumentError
from sandbox_redis.record import Event
from sandbox_redis.states import State
from sandbox_redis.watch import AsyncWatch

_COLUMNS: Final = {"TIME": 20, "ID": 12, "EVENT": 10, "CHANGE": 20, "NODE": 8, "PID": 7, "EXIT": 4, "BY": 0}
"""With the widths that most values have, so that columns seldom grow."""


def watch(
    where: Where,
    form: Form,
    which: Which,
    sandbox_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="Only of this sandbox, which may not be there yet; its id, or its beginning.",
            autocompletion=ids_for("get"),
        ),
    ] = None,
    *,
    exact: Exact = False,
    since: Annotated[
        str | None,
        typer.Option(help="Begin there: so long ago, such as 10m; or a time, a cursor, a revision.", metavar="PLACE"),
    ] = None,
    cursor_file: Annotated[
        Path | None,
        typer.Option(help="Keep the place in this file, and begin there the next time.", metavar="FILE"),
    ] = None,
    count: Annotated[int | None, typer.Option(help="End after so many events.", metavar="N", min=1)] = None,
    no_headers: NoHeaders = False,
) -> None:
    """Tell what happens to sandboxes, as it happens.

    It begins now, or where --since or --cursor-file says, and goes on until Ctrl-C. Outages are bridged, and no event
    is ever passed over: where some are gone, it says so and ends. With --state, it tells of sandboxes that come into
    one of the states, change in it, or leave it.

    With --json each line is an object, with the cursor behind it, which --since takes. What --cursor-file keeps is
    behind what was printed: who is killed in between gets some events twice, but misses none.
    """
    chosen, states = which.filters(), which.states
    file = None if cursor_file is None else CursorFile(cursor_file)
    if listed := bool(chosen["labels"]) or which.namespace is not None:
        for option, value in (("--since", since), ("--cursor-file", cursor_file)):
            if value is not None:
                rule = "with --selector or --namespace it begins now: older events tell no labels and no namespace"
                raise InvalidArgumentError(option, str(value), rule)
    begin = place(since) if since is not None else file.read() if file else None
    if sandbox_id is not None:
        with where.store() as store:
            (sandbox_id,) = ids.whole(store, [sandbox_id], exact=exact)

    async def open_(store: AsyncSandboxStore) -> AsyncWatch:
        if listed:
            _, watch = await store.list_and_watch(states=states or State, **chosen)
            return watch
        return store.watch(since=begin, sandbox_id=sandbox_id, node=which.node, states=states or None)

    async def body(store: AsyncSandboxStore) -> None:
        async with await open_(store) as watch:
            tell = _teller(form, headers=not no_headers, whole=listed)
            await _follow(watch, tell, file, count, only=sandbox_id)

    try:
        following.run(where, body)
    except CompactedError as error:
        advice = f"delete {file.path}" if file else "begin again"
        if since is not None:
            advice = "leave --since out, or give a later one"
        complain(f"{error}: '{PROGRAM} ls' lists; then {advice}")
        raise typer.Exit(status_of(error)) from None


async def _follow(
    watch: AsyncWatch, tell: Callable[[Event], None], file: CursorFile | None, count: int | None, only: str | None
) -> None:
    """Tell the events, so many at most, and keep the place behind them."""
    told = 0
    place = None

    def take(event: Event) -> bool:
        nonlocal told, place
        if only in (None, event.id):
            tell(event)
            told += 1
        place = event.cursor
        return told == count

    def rest() -> None:
        nonlocal place
        place = watch.cursor
        keep()

    def keep() -> None:
        if file is not None and place is not None:
            file.write(place)

    try:
        await following.follow(watch, take, rest)
    finally:
        keep()


def _teller(form: Form, *, headers: bool, whole: bool) -> Callable[[Event], None]:
    """Prints an event; `whole` ones have the metadata of their sandbox."""
    if form.json:
        return lambda event: shape.write_line({**shape.event(event, whole=whole), "cursor": event.cursor})
    fit = show.escape()
    lines = show.Lines(list(_COLUMNS), headers=headers, least=_COLUMNS.values())
    return lambda event: lines.add([cell or text.NONE for cell in _cells(event, fit)])


def _cells(event: Event, fit: Callable[[str], str]) -> tuple[str, ...]:
    node = pid = exit_status = ""
    if after := event.sandbox:
        status = after.status
        node = fit(after.node)
        pid = str(status.pid or "") if status.state is not State.NOTREADY else ""
        exit_status = str(status.exit_status) if status.exited_at_ns else ""
    change = text.change(event)
    return text.clock(event.at), fit(event.id), fit(event.transition), change, node, pid, exit_status, fit(event.by)
