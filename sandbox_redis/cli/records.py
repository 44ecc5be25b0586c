"""The commands that read and change sandboxes that are there: one for each operation of the store. How results look
stands in ``show.py`` and ``shape.py``. A docstring is its command's help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import typer

from sandbox_redis import checks
from sandbox_redis.batch import Batch
from sandbox_redis.cli import shape, show, text
from sandbox_redis.cli.options import Exit, Form, Pid, Where, one_id, some_ids, time_option
from sandbox_redis.cli.statuses import complain, complain_of
from sandbox_redis.errors import NotFoundError, StoreUnavailableError
from sandbox_redis.in_step import Result
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

T = TypeVar("T")

ExitedAt = Annotated[str | None, time_option("When its process exited, if not now")]


def get(where: Where, form: Form, sandbox_ids: Annotated[list[str], some_ids("get")]) -> None:
    """Show all that is known of sandboxes."""
    done, errors = _each(where, sandbox_ids, Batch.get)
    if form.json:
        shape.write_each([shape.record(sandbox) for _, sandbox in done], asked=len(sandbox_ids))
    else:
        for number, (_, sandbox) in enumerate(done):
            if number:
                print()
            show.details(sandbox)
    _refuse(errors)


def ls(
    where: Where,
    form: Form,
    *,
    state: Annotated[
        list[State] | None,
        typer.Option(help="Only in this state; may be given again.", case_sensitive=False, metavar="STATE"),
    ] = None,
    node: Annotated[str | None, typer.Option(help="Only on this node.", metavar="NODE")] = None,
    include_init: Annotated[bool, typer.Option("--all", "-a", help="INIT as well, which CRI does not list.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the ids.")] = False,
) -> None:
    """List sandboxes; those in INIT with --all only.

    They come in the order of their ids. A record that cannot be decoded is UNKNOWN; get says why.
    """
    wanted = state or [each for each in State if include_init or each is not State.INIT]
    with where.store() as store:
        sandboxes, errors = _find(store, wanted, node)
        hidden = 0 if state or include_init else len(store.ids(states=[State.INIT], node=node))
    if quiet:
        for sandbox in sandboxes:
            print(sandbox.id)
    elif form.json:
        shape.write([shape.record(sandbox) for sandbox in sandboxes])
    else:
        show.listing(sandboxes)
        if hidden:
            complain(f"{hidden} more in INIT: list them with --all")
    _refuse(errors)


def _find(store: SandboxStore, wanted: Sequence[State], node: str | None) -> tuple[list[Sandbox], list[Exception]]:
    """Those that are in the wanted states when they are read. A record that cannot be decoded is UNKNOWN, whatever
    state its index has it in.
    """
    found = store.ids(states=State if State.UNKNOWN in wanted else wanted, node=node)
    with store.batch() as batch:
        results = [batch.get(sandbox_id) for sandbox_id in found]
    errors = [error for result in results if (error := result.error) and not isinstance(error, NotFoundError)]
    if cut_short := [error for error in errors if isinstance(error, StoreUnavailableError)]:
        raise cut_short[0]  # a part must not look like the whole
    sandboxes = [result.result() for result in results if result.error is None]
    return [sandbox for sandbox in sandboxes if sandbox.status.state in wanted], errors


def port_forward(where: Where, form: Form, sandbox_ids: Annotated[list[str], some_ids("port_forward")]) -> None:
    """Check that ports may be forwarded: only READY.

    It changes nothing.
    """
    _change(where, form, sandbox_ids, Batch.port_forward)


# -- changing


def start(where: Where, form: Form, sandbox_id: Annotated[str, one_id("start")], *, pid: Pid) -> None:
    """Record that its process runs: INIT → READY."""
    _change(where, form, [sandbox_id], lambda batch, each: batch.start(each, pid=pid))


def fail_start(where: Where, form: Form, sandbox_ids: Annotated[list[str], some_ids("fail_start")]) -> None:
    """Record that it could not start: INIT → gone."""
    done, errors = _each(where, sandbox_ids, Batch.fail_start)
    _print_removed(form, [(each, True) for each, _ in done], asked=len(sandbox_ids))
    _refuse(errors)


def stop(
    where: Where,
    form: Form,
    sandbox_ids: Annotated[list[str], some_ids("stop")],
    *,
    exit_status: Exit = None,
    exited_at: ExitedAt = None,
) -> None:
    """Record that it was stopped: → NOTREADY.

    It is for READY and UNKNOWN; stopping again is no error, and loses nothing.
    """
    at = text.instant("--exited-at", exited_at)
    _change(where, form, sandbox_ids, lambda batch, each: batch.stop(each, exit_status=exit_status, exited_at_ns=at))


def exit_(
    where: Where,
    form: Form,
    sandbox_id: Annotated[str, one_id("exit")],
    *,
    exit_status: Annotated[int, typer.Option(help="The exit status of its process.", metavar="N")],
    exited_at: ExitedAt = None,
) -> None:
    """Record the exit of its process: → NOTREADY.

    It is for READY. The first exit that is told is kept; on a sandbox that was stopped without one, it is filled in.
    """
    at = text.instant("--exited-at", exited_at)
    _change(where, form, [sandbox_id], lambda batch, each: batch.exit(each, exit_status=exit_status, exited_at_ns=at))


def rm(
    where: Where,
    form: Form,
    sandbox_ids: Annotated[list[str], some_ids("remove")],
    *,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="In any state; a READY or UNKNOWN one is stopped first.")
    ] = False,
) -> None:
    """Remove sandboxes: NOTREADY → gone.

    Removing what is not there is no error.
    """
    done, errors = _each(where, sandbox_ids, lambda batch, each: batch.remove(each, force=force))
    for sandbox_id, removed in done:
        if not removed:
            complain(f"sandbox {sandbox_id!r} was not there: nothing to remove")
    _print_removed(form, done, asked=len(sandbox_ids))
    _refuse(errors)


# -- shared by the commands


def _each(
    where: Where, sandbox_ids: Sequence[str], add: Callable[[Batch, str], Result[T]]
) -> tuple[list[tuple[str, T]], list[Exception]]:
    """Carry one operation out on each sandbox, in one batch: what succeeded, and the errors. A wrong id is refused
    before anything is sent.
    """
    for sandbox_id in sandbox_ids:
        checks.sandbox_id(sandbox_id)
    with where.store() as store, store.batch() as batch:
        results = [(sandbox_id, add(batch, sandbox_id)) for sandbox_id in sandbox_ids]
    done = [(sandbox_id, result.result()) for sandbox_id, result in results if result.error is None]
    return done, [result.error for _, result in results if result.error is not None]


def _change(where: Where, form: Form, sandbox_ids: Sequence[str], add: Callable[[Batch, str], Result[Sandbox]]) -> None:
    done, errors = _each(where, sandbox_ids, add)
    if form.json:
        shape.write_each([shape.record(sandbox) for _, sandbox in done], asked=len(sandbox_ids))
    else:
        for sandbox_id, sandbox in done:
            print(sandbox_id, sandbox.status.state.value)
    _refuse(errors)


def _print_removed(form: Form, done: Sequence[tuple[str, bool]], *, asked: int) -> None:
    if form.json:
        shape.write_each([{"id": sandbox_id, "removed": removed} for sandbox_id, removed in done], asked=asked)
    else:
        for sandbox_id, removed in done:
            if removed:
                print(sandbox_id, "removed")


def _refuse(errors: Sequence[Exception]) -> None:
    """End the command with what the worst of the errors means."""
    if errors:
        raise typer.Exit(complain_of(errors))
