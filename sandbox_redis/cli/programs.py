"""The commands that run something: a server, a command in a sandbox of its own, the demo. Here are only their options;
what they do is imported when they are called.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sandbox_redis.cli.options import Described, Node, Where
from sandbox_redis.errors import InvalidArgumentError

DEFAULT_PORT = 6379
"""Where the default URL looks."""


def serve(
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Where it keeps its data; else sandbox-redis under XDG_DATA_HOME or ~/.local/share.",
            metavar="DIR",
            file_okay=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help=f"The port on 127.0.0.1, 0 for any that is free; else {DEFAULT_PORT}.",
            metavar="PORT",
            min=0,
            max=65535,
        ),
    ] = None,
    socket_path: Annotated[
        Path | None,
        typer.Option("--socket", help="Listen on a unix socket, and on no port.", metavar="PATH", dir_okay=False),
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Keep nothing on disk.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
) -> None:
    """Run a server on this host, until Ctrl-C."""
    from sandbox_redis.cli.serve import serve as run_server

    if port is not None and socket_path is not None:
        raise InvalidArgumentError("--socket", str(socket_path), "the server listens there or on --port, not on both")
    if memory and data is not None:
        raise InvalidArgumentError("--data", str(data), "with --memory nothing is kept")
    raise typer.Exit(run_server(data=data, port=port, socket_path=socket_path, memory=memory, quiet=quiet))


def data_directory() -> Path:
    """Where a server keeps its data by default: the place of the XDG specification."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "sandbox-redis"


def run(
    where: Where,
    described: Described,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run, and its arguments.")],
    *,
    sandbox_id: Annotated[
        str | None, typer.Option("--id", help="The id of its sandbox; else 64 random hex digits.", metavar="ID")
    ] = None,
    node: Node = "",
    rm: Annotated[bool, typer.Option("--rm", help="Remove the sandbox when the command has ended.")] = False,
    give_up: Annotated[
        float,
        typer.Option(help="How long to try to record what happened, with the store away.", metavar="SECONDS"),
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing beside the command.")] = False,
) -> None:
    """Run a command, and record it as a sandbox.

    It is created, started, and its exit recorded; the exit status is the command's.
    """
    from sandbox_redis.cli.run import run as run_command

    with where.store() as store:
        status = run_command(
            store,
            command=command,
            sandbox_id=sandbox_id,
            node=node,
            metadata=described.metadata(),
            rm=rm,
            give_up=give_up,
            quiet=quiet,
        )
    raise typer.Exit(status)


def demo(
    where: Where,
    *,
    agents: Annotated[int, typer.Option(help="How many node agents; each is a process.", metavar="N", min=1)] = 3,
    sandboxes: Annotated[int, typer.Option(help="How many sandboxes run at a time.", metavar="N", min=1)] = 12,
    seconds: Annotated[float, typer.Option(help="How long.", metavar="SECONDS")] = 10.0,
    seed: Annotated[
        int | None, typer.Option(help="Of what is random, to have the same choices again.", metavar="N")
    ] = None,
) -> None:
    """Watch node agents at work, and check them.

    One of them is killed on the way, and at the end everything is checked.

    It runs on a server of its own, whatever SANDBOX_REDIS_URL says, or on the one that --url names; there with keys of
    its own, which it deletes at the end.
    """
    from sandbox_redis.cli.demo import demo as play

    raise typer.Exit(play(url=where.url, agents=agents, sandboxes=sandboxes, seconds=seconds, seed=seed))


def soak(
    where: Where,
    *,
    seconds: Annotated[float | None, typer.Option(help="How long; else 60.", metavar="SECONDS")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long.", metavar="MINUTES")] = None,
    topology: Annotated[
        str, typer.Option(help="What it starts: standalone, sentinel or cluster.", metavar="NAME")
    ] = "standalone",
    binary: Annotated[str | None, typer.Option(help="The server to start.", metavar="PATH")] = None,
    agents: Annotated[int, typer.Option(help="How many agents; each is a process.", metavar="N", min=1)] = 8,
    seed: Annotated[
        int | None, typer.Option(help="Of what is random, to have the same choices again.", metavar="N")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Break servers under load, and check what agents were told.

    Agents write, watches and mirrors look on, and one fault comes after the other: servers and agents are killed,
    frozen and cut off. At the end it is decided from their logs whether all that they were told was possible.

    It breaks servers of its own, whatever SANDBOX_REDIS_URL says. On the one that --url names only agents are killed;
    its keys there are its own, and are deleted at the end.
    """
    from sandbox_redis.cli.soak import soak as run_soak

    if seconds is not None and minutes is not None:
        raise InvalidArgumentError("--minutes", minutes, "it is told by --seconds as well: leave one out")
    if where.fsync:
        raise InvalidArgumentError("--fsync", where.fsync, "the agents of a soak wait for replicas only")
    status = run_soak(
        url=where.url,
        seconds=60 * minutes if minutes is not None else 60.0 if seconds is None else seconds,
        topology=topology,
        binary=binary,
        replicas=where.wait_replicas,
        agents=agents,
        seed=seed,
        as_json=as_json,
    )
    raise typer.Exit(status)
