"""The commands that record a sandbox for the first time: `create` before it runs, `load` when it was there before the
store. What follows stands in ``records.py``. A docstring is its command's help.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from sandbox_redis.cli import shape, text
from sandbox_redis.cli.options import Described, Exit, Form, Node, Observed, Pid, Where, time_option
from sandbox_redis.errors import DurabilityError, InvalidArgumentError
from sandbox_redis.record import Sandbox, Status

NewId = Annotated[str | None, typer.Argument(metavar="[ID]", help="The new id; 64 random hex digits when left out.")]
LoadedId = Annotated[str | None, typer.Argument(metavar="ID", help="The id.", show_default=False)]
NamedId = Annotated[str | None, typer.Option("--id", help="The id, in place of the argument.", metavar="ID")]
CreatedAt = Annotated[str | None, time_option("When it was created, if that is known")]
ExitedAt = Annotated[str | None, time_option("When its process exited, if it has")]


def create(
    where: Where,
    form: Form,
    described: Described,
    sandbox_id: NewId = None,
    *,
    named: NamedId = None,
    node: Node = "",
) -> None:
    """Record a new sandbox, in INIT; print its id.

    It is for the time before anything of the sandbox runs.
    """
    chosen = _chosen(sandbox_id, named)
    with where.store() as store, _printing(form) as made:
        made.append(store.create(node=node, metadata=described.metadata(), sandbox_id=chosen))


def load(
    where: Where,
    form: Form,
    described: Described,
    sandbox_id: LoadedId = None,
    *,
    state: Observed,
    named: NamedId = None,
    node: Node = "",
    pid: Pid = 0,
    created_at: CreatedAt = None,
    exited_at: ExitedAt = None,
    exit_status: Exit = None,
) -> None:
    """Record a sandbox found on a node; print its id.

    It is for one that was there before the store knew it: READY, NOTREADY or UNKNOWN, as it was observed.
    """
    chosen = _chosen(sandbox_id, named)
    if chosen is None:
        raise typer.BadParameter("it is needed", param_hint="ID")
    if exit_status is not None and exited_at is None:
        raise InvalidArgumentError("--exit-status", exit_status, "it needs --exited-at beside it")
    observed = Status(
        text.state("--state", state),
        pid=pid,
        created_at_ns=text.instant("--created-at", created_at) or 0,
        exited_at_ns=text.instant("--exited-at", exited_at) or 0,
        exit_status=exit_status or 0,
    )
    with where.store() as store, _printing(form) as made:
        made.append(store.load(chosen, observed, node=node, metadata=described.metadata()))


def _chosen(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None and argument != option:
        raise InvalidArgumentError("--id", option, f"the argument says {argument!r}")
    return option if argument is None else argument


@contextmanager
def _printing(form: Form) -> Iterator[list[Sandbox]]:
    """Print the sandbox that was made, also when that is not confirmed."""
    made: list[Sandbox] = []
    try:
        yield made
    except DurabilityError as error:
        made.append(error.sandbox)
        raise
    finally:
        for sandbox in made:
            if form.json:
                shape.write(shape.record(sandbox))
            else:
                print(sandbox.id)
