"""The commands for sandboxes that are there, which are named by their ids: one for each operation of the store. How
results look stands in ``show.py`` and ``shape.py``, what an id may be in ``ids.py``. A docstring is its command's help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, cast

import typer

from sandbox_redis.batch import Batch
from sandbox_redis.cli import ids, shape, show, text
from sandbox_redis.cli.options import Exact, Exit, Form, Pid, Where, one_id, some_ids, time_option
from sandbox_redis.cli.statuses import complain, complain_of
from sandbox_redis.errors import DurabilityError
from sandbox_redis.in_step import Result
from sandbox_redis.record import Sandbox

T = TypeVar("T")

ExitedAt = Annotated[str | None, time_option("When its process exited, if not now")]


def get(where: Where, form: Form, sandbox_ids: Annotated[list[str], some_ids("get")], *, exact: Exact = False) -> None:
    """Show all that is known of sandboxes."""
    done, errors = _each(where, sandbox_ids, Batch.get, exact=exact)
    if form.json:
        shape.write_each([shape.record(sandbox) for _, sandbox in done], asked=len(sandbox_ids))
    else:
        for number, (_, sandbox) in enumerate(done):
            if number:
                print()
            show.details(sandbox)
    _refuse(errors)


def port_forward(
    where: Where, form: Form, sandbox_ids: Annotated[list[str], some_ids("port_forward")], *, exact: Exact = False
) -> None:
    """Check that ports may be forwarded: only READY.

    It changes nothing.
    """
    _change(where, form, sandbox_ids, Batch.port_forward, exact=exact)


# -- changing


def start(
    where: Where, form: Form, sandbox_id: Annotated[str, one_id("start")], *, pid: Pid, exact: Exact = False
) -> None:
    """Record that its process runs: INIT → READY."""
    _change(where, form, [sandbox_id], lambda batch, each: batch.start(each, pid=pid), exact=exact)


def fail_start(
    where: Where, form: Form, sandbox_ids: Annotated[list[str], some_ids("fail_start")], *, exact: Exact = False
) -> None:
    """Record that it could not start: INIT → gone."""
    done, errors = _each(where, sandbox_ids, Batch.fail_start, exact=exact)
    _print_removed(form, [(each, True) for each, _ in done], asked=len(sandbox_ids))
    _refuse(errors)


def stop(
    where: Where,
    form: Form,
    sandbox_ids: Annotated[list[str], some_ids("stop")],
    *,
    exit_status: Exit = None,
    exited_at: ExitedAt = None,
    exact: Exact = False,
) -> None:
    """Record that it was stopped: → NOTREADY.

    It is for READY and UNKNOWN; stopping again is no error, and loses nothing.
    """
    at = text.instant("--exited-at", exited_at)

    def add(batch: Batch, each: str) -> Result[Sandbox]:
        return batch.stop(each, exit_status=exit_status, exited_at_ns=at)

    _change(where, form, sandbox_ids, add, exact=exact)


def exit_(
    where: Where,
    form: Form,
    sandbox_id: Annotated[str, one_id("exit")],
    *,
    exit_status: Annotated[int, typer.Option(help="The exit status of its process.", metavar="N")],
    exited_at: ExitedAt = None,
    exact: Exact = False,
) -> None:
    """Record the exit of its process: → NOTREADY.

    It is for READY. The first exit that is told is kept; on a sandbox that was stopped without one, it is filled in.
    """
    at = text.instant("--exited-at", exited_at)

    def add(batch: Batch, each: str) -> Result[Sandbox]:
        return batch.exit(each, exit_status=exit_status, exited_at_ns=at)

    _change(where, form, [sandbox_id], add, exact=exact)


def rm(
    where: Where,
    form: Form,
    sandbox_ids: Annotated[list[str], some_ids("remove")],
    *,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="In any state; a READY or UNKNOWN one is stopped first.")
    ] = False,
    exact: Exact = False,
) -> None:
    """Remove sandboxes: NOTREADY → gone.

    Removing what is not there is no error.
    """
    done, errors = _each(where, sandbox_ids, lambda batch, each: batch.remove(each, force=force), exact=exact)
    for sandbox_id, removed in done:
        if not removed:
            complain(f"sandbox {sandbox_id!r} was not there: nothing to remove")
    _print_removed(form, done, asked=len(sandbox_ids))
    _refuse(errors)


# -- shared by the commands


def _each(
    where: Where, typed: Sequence[str], add: Callable[[Batch, str], Result[T]], *, exact: bool
) -> tuple[list[tuple[str, T]], list[Exception]]:
    """Carry one operation out on each sandbox, in one batch: what succeeded, by whole ids, and the errors. A wrong id
    is refused before anything is sent, an ambiguous one before anything is changed.
    """
    with where.store() as store:
        sandbox_ids = ids.whole(store, typed, exact=exact)
        with store.batch() as batch:
            results = [(sandbox_id, add(batch, sandbox_id)) for sandbox_id in sandbox_ids]
    done = [(sandbox_id, _made(result)) for sandbox_id, result in results if _is_made(result.error)]
    return done, [result.error for _, result in results if result.error is not None]


def _is_made(error: Exception | None) -> bool:
    return error is None or isinstance(error, DurabilityError)


def _made(result: Result[T]) -> T:
    """What an operation came to, confirmed or not."""
    if isinstance(result.error, DurabilityError):
        made: Any = result.error.sandbox or True  # a removal leaves none
        return cast("T", made)
    return result.result()


def _change(
    where: Where, form: Form, typed: Sequence[str], add: Callable[[Batch, str], Result[Sandbox]], *, exact: bool
) -> None:
    done, errors = _each(where, typed, add, exact=exact)
    if form.json:
        shape.write_each([shape.record(sandbox) for _, sandbox in done], asked=len(typed))
    else:
        for sandbox_id, sandbox in done:
            print(sandbox_id, sandbox.status.state.value)
    _refuse(errors)


def _print_removed(form: Form, done: Sequence[tuple[str, bool]], *, asked: int) -> None:
    if form.json:
        shape.write_each([shape.removed(each, was_there=removed) for each, removed in done], asked=asked)
    else:
        for sandbox_id, removed in done:
            if removed:
                print(sandbox_id, "removed")


def _refuse(errors: Sequence[Exception]) -> None:
    """End the command with what the worst of the errors means."""
    if errors:
        raise typer.Exit(complain_of(errors))
