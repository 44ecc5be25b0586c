"""The command that shows a fleet live, on the whole terminal. Here are only its options, and when it refuses; what it
shows stands in ``sandbox_redis.top``. A docstring is its command's help.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from typing import Annotated, Final

import typer

from sandbox_redis.cli.options import Where, Which
from sandbox_redis.cli.statuses import SIGNALLED, ExitStatus, complain

INTERVAL_MIN: Final = 0.1
INTERVAL_MAX: Final = 60.0
LIBRARY: Final = "textual"


def top(
    where: Where,
    which: Which,
    *,
    interval: Annotated[
        float,
        typer.Option(help="Between two looks.", metavar="SECONDS", min=INTERVAL_MIN, max=INTERVAL_MAX),
    ] = 0.5,
) -> None:
    """Watch the fleet on the whole terminal: counts, changes per second, what is stuck, the newest events.

    ? shows the keys. With the options that choose, the rest of the fleet is not even read.
    """
    if refusal := _refusal():
        complain(refusal)
        raise typer.Exit(ExitStatus.USAGE)
    from sandbox_redis.top.app import Top  # here, because importing it takes 0.4 s
    from sandbox_redis.top.feed import Feed

    with where.store() as store, Feed(store, states=which.states or None, **which.filters(), interval=interval) as feed:
        app = Top(feed, repr(store).removeprefix("<SandboxStore ").removesuffix(">"))
        status = app.run()
    if status == SIGNALLED + signal.SIGHUP:  # the library's thread may go on reading what is not there, for ever
        os._exit(status)
    if app.failure is not None:
        raise app.failure
    raise typer.Exit(status or ExitStatus.OK)


def _refusal() -> str | None:
    """Why it cannot run here."""
    if find_spec(LIBRARY) is None:
        return f"top needs {LIBRARY}: pip install 'sandbox-redis[cli]'"
    streams = (sys.stdin, sys.stdout, sys.stderr)  # the library reads the first, and writes to the last
    if os.environ.get("TERM") in (None, "", "dumb") or not all(each is not None and each.isatty() for each in streams):
        return "top needs a terminal for its input and output; scripts have 'sandbox-redis counts --json'"
    return None
