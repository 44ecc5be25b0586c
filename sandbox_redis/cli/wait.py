"""The command that waits for sandboxes: for all of them over one connection, as the asyncio store does. A docstring is
its command's help.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import typer

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.cli import following, ids, shape, text
from sandbox_redis.cli.options import Exact, Form, Where, from_words, some_ids
from sandbox_redis.cli.statuses import ExitStatus, complain, complain_of
from sandbox_redis.errors import InvalidArgumentError, NotFoundError, SandboxError
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State

_MAX: Final = 255  # of what a shell gets of an exit status; more would be cut to something else, perhaps to 0

Found = Sandbox | SandboxError | None
"""What waiting for a sandbox came to; None is gone, where that was waited for."""


def wait(
    where: Where,
    form: Form,
    sandbox_ids: Annotated[list[str], some_ids("get")],
    *,
    until: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            help="What to wait for: READY, NOTREADY, INIT, UNKNOWN or gone; of several, such as NOTREADY,gone, the"
            " first that comes. Else NOTREADY.",
            metavar="STATES",
            autocompletion=from_words([*State, text.GONE], several=True),
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", help="How long at most, such as 30s or 5m; else without end.", metavar="DURATION"),
    ] = None,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="End with the exit status of the sandbox's own process.")
    ] = False,
    exact: Exact = False,
) -> None:
    """Wait until sandboxes are in a state, or gone: without --for, until their processes do not run any more.

    Of several it waits for all, and prints each when its time has come; being in the state for a moment is enough. The
    exit status is 1 when there is no such sandbox, or none any more before that, and 124 when it has not happened in
    time. Outages are bridged.
    """
    words = [word for item in until or [State.NOTREADY] for word in text.pieces(item)]
    states = {text.state("--for", word, text.GONE) for word in words if word.lower() != text.GONE}
    gone = len(states) < len(words)
    if exit_status and State.NOTREADY not in states:
        raise InvalidArgumentError("--for", ",".join(words), "--exit-status needs NOTREADY among them")
    seconds = None if timeout is None else text.duration("--timeout", timeout)
    with where.store() as store:
        whole = ids.whole(store, sandbox_ids, exact=exact)

    async def one(store: AsyncSandboxStore, sandbox_id: str) -> Found:
        try:
            found = await store.wait(sandbox_id, states, timeout=seconds)
        except SandboxError as error:
            return error
        if found is None and not gone:
            return NotFoundError(sandbox_id)
        if not form.json:
            print(sandbox_id, found.status.state.value if found else text.GONE, flush=True)
        return found

    async def body(store: AsyncSandboxStore) -> list[Found]:
        return await asyncio.gather(*(one(store, sandbox_id) for sandbox_id in whole))

    results = list(zip(whole, following.run(where, body), strict=True))
    if form.json:
        came = [(each, found) for each, found in results if not isinstance(found, SandboxError)]
        shape.write_each(
            [shape.record(found) if found else shape.removed(each) for each, found in came], asked=len(whole)
        )
    statuses: list[int] = [complain_of(found for _, found in results if isinstance(found, SandboxError))]
    if exit_status:
        statuses += [_exit_status(found) for _, found in results if isinstance(found, Sandbox)]
    raise typer.Exit(max(statuses))


def _exit_status(sandbox: Sandbox) -> int:
    """That of its process; 0 where that is not to have ended."""
    if sandbox.status.state is not State.NOTREADY:
        return ExitStatus.OK
    if not sandbox.status.exited_at_ns:
        complain(f"sandbox {sandbox.id!r} is NOTREADY, but nobody has recorded the exit status of its process")
        return ExitStatus.REFUSED
    return min(sandbox.status.exit_status, _MAX)
