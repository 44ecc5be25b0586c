"""The frame of the command line: which commands there are, what may stand before them, and how a command line ends.
What the commands do stands in the other modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from sandbox_redis import __version__
from sandbox_redis.cli import (
    acl,
    creating,
    doctor,
    history,
    init,
    key,
    listing,
    machine,
    programs,
    records,
    top,
    wait,
    watch,
)
from sandbox_redis.cli.groups import expanded
from sandbox_redis.cli.options import Form, Where
from sandbox_redis.cli.statuses import PROGRAM, ExitStatus, complain, complain_of, describe
from sandbox_redis.errors import SandboxError

Entry = tuple[str, Callable[..., None], tuple[str, ...]]

SANDBOXES: Final[tuple[Entry, ...]] = (
    ("create", creating.create, ("ID=$(sandbox-redis create --name web-0 --node node-1 --label app=web)",)),
    ("load", creating.load, ("sandbox-redis load web-0 --state READY --pid 4242 --node node-1",)),
    ("get", records.get, ("sandbox-redis get web-0", "sandbox-redis get web-0 --json | jq .metadata.labels")),
    (
        "ls",
        listing.ls,
        (
            "sandbox-redis ls --node node-1 --state UNKNOWN --wide",
            "sandbox-redis ls -l app=web,tier=front --sort -age --limit 10 --columns id,state,label:app",
            "sandbox-redis ls --no-headers | awk '{print $1, $4}'",
            "sandbox-redis ls --watch --node node-1 --sort -age",
        ),
    ),
    ("start", records.start, ("sandbox-redis start web-0 --pid 4242",)),
    ("fail-start", records.fail_start, ("sandbox-redis fail-start web-0",)),
    ("port-forward", records.port_forward, ("sandbox-redis port-forward web-0 && socat ...",)),
    ("stop", records.stop, ("sandbox-redis stop web-0 web-1",)),
    ("exit", records.exit_, ("sandbox-redis exit web-0 --exit-status 137",)),
    (
        "rm",
        records.rm,
        ("sandbox-redis rm web-0", "sandbox-redis ls -q --node node-1 | xargs -r sandbox-redis rm --force --exact"),
    ),
)
INSIGHT: Final[tuple[Entry, ...]] = (
    (
        "counts",
        listing.counts,
        ("sandbox-redis counts", "sandbox-redis counts --node node-1 --json | jq .states.READY"),
    ),
    (
        "watch",
        watch.watch,
        (
            "sandbox-redis watch --since 10m --node node-1",
            "sandbox-redis watch web-0 --state NOTREADY --count 1",
            "sandbox-redis watch --json --cursor-file ~/seen | while read -r event; do ...; done",
        ),
    ),
    (
        "wait",
        wait.wait,
        (
            "sandbox-redis wait job-1 job-2 --timeout 10m",
            "sandbox-redis wait web-0 --for READY,gone",
            "sandbox-redis wait job-1 --exit-status || echo failed",
        ),
    ),
    (
        "doctor",
        doctor.doctor,
        (
            "sandbox-redis doctor",
            "sandbox-redis doctor --repair",
            "sandbox-redis doctor --strict --json | jq '.findings[] | select(.severity == \"problem\")'",
        ),
    ),
    ("top", top.top, ("sandbox-redis top", "sandbox-redis top --node node-1 --state INIT --state UNKNOWN -l app=web")),
    ("history", history.history, ("sandbox-redis history web-0", "sandbox-redis history web-0 --json | jq '.[].by'")),
    ("key", key.key, ("sandbox-redis key web-0", 'eval "$(sandbox-redis key web-0 | tail -1)"')),
    (
        "acl",
        acl.acl,
        (
            "sandbox-redis acl agent --user node-1 --password-stdin < password | redis-cli",
            "sandbox-redis acl reader --format file --server-version 7.2 --password-stdin < password >> users.acl",
        ),
    ),
    ("states", machine.states, ("sandbox-redis states", "sandbox-redis states --format dot | dot -Tsvg > states.svg")),
)
PROGRAMS: Final[tuple[Entry, ...]] = (
    ("init", init.init, ("sandbox-redis init --partitions 64",)),
    ("serve", programs.serve, ("sandbox-redis serve", "sandbox-redis serve --memory --socket /run/sandbox.sock")),
    ("run", programs.run, ("sandbox-redis run --name job-7 --rm -- python job.py --fast",)),
    ("demo", programs.demo, ("sandbox-redis demo", "sandbox-redis demo --agents 5 --seconds 30")),
    ("soak", programs.soak, ("sandbox-redis soak", "sandbox-redis soak --minutes 10 --json | jq .violations")),
)

_STATUSES: Final = """\b
Exit statuses:
  0  ok
  1  refused: no such sandbox, there is one already, an ambiguous id, no such move, others were faster,
     the events to go on from are gone, or the store is laid out otherwise; doctor found problems
  2  wrong usage; nothing was sent
  3  the store is unavailable, or holds what cannot be read
  4  the write may or may not have happened: look before you write again
  5  the write was made, but replicas or the disk have not confirmed it
  124  what was waited for has not happened in time
With several sandboxes it is the highest of theirs; 130 after Ctrl-C, 143 after SIGTERM."""


def _named(params: list[Any]) -> list[Any]:
    """What a command takes, without the types that Python has for it: only people read of them, in the help."""
    for param in params:
        if isinstance(param, TyperArgument) or getattr(param, "is_bool_flag", False):
            param.display_type_rich = lambda ctx: None  # noqa: ARG005 - Typer calls it by the name
    return params


class Command(TyperCommand):
    """A command whose help names what it takes as this package does."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The arguments and options."""
        return _named(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What stands behind the name in the line of usage."""
        arguments = [param.metavar or "" for param in self.get_params(ctx) if isinstance(param, TyperArgument)]
        return [self.options_metavar or "", *arguments]


class Commands(TyperGroup):
    """All of them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options that may stand before a command."""
        return _named(super().get_params(ctx))


def _build() -> typer.Typer:
    both_helps = {"help_option_names": ["-h", "--help"]}  # commands have it from here
    built = typer.Typer(name=PROGRAM, cls=Commands, pretty_exceptions_enable=False, context_settings=both_helps)
    built.callback(invoke_without_command=True, help=_flowing(_frame), epilog=_STATUSES)(expanded(_frame))
    for panel, entries in (("Sandboxes", SANDBOXES), ("Insight", INSIGHT), ("Programs", PROGRAMS)):
        for name, command, examples in entries:
            own_options = {"allow_interspersed_args": False} if name == "run" else None  # the rest is the command's
            epilog = "\n  ".join(["\b\nExamples:", *examples])
            built.command(
                name,
                cls=Command,
                help=_flowing(command),
                epilog=epilog,
                context_settings=own_options,
                rich_help_panel=panel,
            )(expanded(command))
    return built


def _flowing(command: Callable[..., None]) -> str:
    """Its docstring, each paragraph in one line: the help breaks lines where the terminal ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))


def _frame(
    context: typer.Context,
    where: Where,  # noqa: ARG001 - commands read what stands before them by themselves
    form: Form,  # noqa: ARG001
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """The status of sandboxes, shared through Redis.

    The commands tell and ask what state a sandbox is in; only run starts something. The options that stand here may
    stand behind a command as well.
    """
    if version:
        print(PROGRAM, __version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitStatus.USAGE)


app: Final = _build()


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line to its end, and return its exit status. Nothing is raised, whatever happens."""
    with suppress(AttributeError):  # what the encoding of the output lacks is escaped; None and tests have no such
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _invoke(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone, and wants no word of it
        _abandon_output()
        return ExitStatus.BROKEN_PIPE
    except OSError as error:
        _abandon_output()
        complain(describe(error))
        return ExitStatus.INPUT_OUTPUT
    return status


def _invoke(arguments: Sequence[str] | None) -> int:
    app.rich_markup_mode = "rich" if sys.stdout is not None and sys.stdout.isatty() else None  # of the help
    try:
        return int(typer.main.get_command(app).main(args=arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Typer makes an ordinary failure of it
            raise end.__context__ from None
        return int(end.code or 0)  # completion ends so
    except typer.TyperException as error:
        return _usage(error)
    except SandboxError as error:  # before the next, because WaitTimeoutError is both
        return complain_of([error])
    except OSError:
        raise
    except Exception as error:  # the last place where one line can be made of it
        return complain_of([error])


def _usage(error: typer.TyperException) -> ExitStatus:
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    complain(f"{message[:1].lower()}{message[1:]} (see '{context.command_path if context else PROGRAM} --help')")
    return ExitStatus.USAGE


def _abandon_output() -> None:
    """Let nobody flush standard output again: Python would complain of it at its end."""
    with suppress(OSError, ValueError, AttributeError), Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
