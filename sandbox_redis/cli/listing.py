"""The commands that tell which sandboxes there are: `ls`, row by row as the pages of the listing come, and `counts`,
which reads no record. How they look stands in ``show.py`` and ``shape.py``. A docstring is its command's help.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final

import typer

from sandbox_redis.cli import columns, live, shape, show, text
from sandbox_redis.cli.columns import BREAKABLE, COLUMNS, USUAL, Cell
from sandbox_redis.cli.options import Columns, Form, NoHeaders, Sort, Where, Which, node_option
from sandbox_redis.cli.statuses import complain
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

_LISTED: Final = tuple(state for state in State if state is not State.INIT)


def ls(
    which: Which,
    where: Where,
    form: Form,
    *,
    include_init: Annotated[bool, typer.Option("--all", "-a", help="INIT as well, which CRI does not list.")] = False,
    limit: Annotated[int | None, typer.Option(help="So many at most.", metavar="N", min=1)] = None,
    sort: Sort = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the ids.")] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="With namespace, labels, times, revision and problem as well.")
    ] = False,
    chosen: Columns = None,
    no_headers: NoHeaders = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, and show what changes: on a terminal in place, else by lines.")
    ] = False,
) -> None:
    """List sandboxes; those in INIT with --all only.

    They come in the order of their ids, in each partition of the store. A record that cannot be decoded is UNKNOWN;
    get and --wide say why.

    With --watch, a terminal shows a table that is always current. Elsewhere, and with --json or --quiet, a line follows
    for each change: the sandbox as it is then, or that it is gone. With --json each line is an object; one that is gone
    has only its id, and "removed".
    """
    wanted = tuple(which.states) or (tuple(State) if include_init else _LISTED)
    shown = _columns(form, chosen, wide=wide)
    order = columns.in_order("--sort", sort) if sort is not None else columns.as_they_come
    if watch:
        if limit is not None:
            raise InvalidArgumentError("--limit", limit, "with --watch there is no limit but that of the terminal")
        what = live.Listing(wanted, which.filters(), order, shown, headers=not no_headers)
        if not quiet and not form.json and show.can_redraw():
            live.redraw(where, what)
        else:
            live.stream(where, what, quiet=quiet, as_json=form.json)
        return
    with where.store() as store:
        sandboxes = order(_find(store, which, wanted), limit)
        if quiet:
            for sandbox in sandboxes:
                print(text.one_word(sandbox.id))  # who wrote an index may have put anything into it
        elif form.json:
            shape.write_array(map(shape.record, sandboxes))
        else:
            show.listing(sandboxes, shown, headers=not no_headers)
            if State.INIT not in wanted and not which.state and (hidden := _in_init(store, which)):
                complain(f"{hidden} more in INIT: list them with --all")


def _columns(form: Form, chosen: list[str] | None, *, wide: bool) -> Mapping[str, Cell]:
    """The columns that are asked for, by their headings."""
    if chosen and wide:
        raise InvalidArgumentError("--columns", ",".join(chosen), "--wide is asked for as well: choose one of them")
    if chosen and form.json:
        raise InvalidArgumentError("--columns", ",".join(chosen), "the table has columns, and JSON is asked for")
    return columns.chosen("--columns", chosen or (COLUMNS if wide else USUAL))


def _find(store: SandboxStore, which: Which, wanted: Iterable[State]) -> Iterator[Sandbox]:
    """Those that are in the wanted states when they are read. A record that cannot be decoded is UNKNOWN, whatever
    state its index has it in.
    """
    looked_at = State if State.UNKNOWN in wanted else wanted
    found = store.list(states=looked_at, **which.filters())
    return (sandbox for sandbox in found if sandbox.status.state in wanted)


def _in_init(store: SandboxStore, which: Which) -> int:
    filters = which.filters()
    if not filters["labels"] and not filters["namespace"]:
        return store.count(state=State.INIT, node=which.node)
    return sum(1 for _ in store.list(states=[State.INIT], **filters))


def counts(where: Where, form: Form, *, node: Annotated[str | None, node_option("Only on this node.")] = None) -> None:
    """Count sandboxes: in each state, and on each node.

    No record is read. With --node it is the states on that one.
    """
    with where.store() as store:
        if node is None:
            found = store.counts()
            states, nodes = found.states, found.nodes
        else:
            states = {state: store.count(state=state, node=node) for state in State}
            nodes = {node: sum(states.values())}
    by_state = {state.value: number for state, number in states.items()}
    if form.json:
        shape.write({"states": by_state, "nodes": dict(nodes)})
        return
    _numbers("STATE", by_state)
    if node is None:
        print()
        _numbers("NODE", nodes)


def _numbers(heading: str, numbers: Mapping[str, int]) -> None:
    fit = show.escape()
    rows = ((fit(name), str(number)) for name, number in numbers.items())
    show.table((heading, "COUNT"), rows, breakable=BREAKABLE)
