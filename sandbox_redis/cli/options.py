"""The options that commands share, declared once, and how a command takes them.

A command names a group of options as one parameter (``where: Where``); `expanded` takes the group apart for Typer. The
options of a group may stand before the command as well as behind it. What a command does stands elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import Field, asdict, dataclass, fields, is_dataclass, replace
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.record import Metadata
from sandbox_redis.states import MACHINE, State
from sandbox_redis.store import SandboxStore

T = TypeVar("T")

_COMPLETION_TIMEOUT: Final = 0.5  # seconds; somebody waits at a prompt


def _store_option(meaning: str, metavar: str) -> Any:
    return typer.Option(help=meaning, metavar=metavar, rich_help_panel="Store")


class Output(StrEnum):
    """The forms in which records are printed."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Where:
    """Where the store is, and who asks."""

    url: Annotated[
        str | None, _store_option("The server; SANDBOX_REDIS_URL, or redis://127.0.0.1:6379/0, without it.", "URL")
    ] = None
    prefix: Annotated[str | None, _store_option("What each key of the store begins with; else sandbox.", "TEXT")] = None
    agent: Annotated[str | None, _store_option("Who writes, for the events; else host and process.", "TEXT")] = None
    timeout: Annotated[float | None, _store_option("How long to try; else 5.", "SECONDS")] = None

    def store(self) -> SandboxStore:
        """The store. Nothing is sent before the first operation."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return SandboxStore.from_url(**given)


@dataclass(frozen=True, slots=True)
class Form:
    """How results are printed."""

    as_json: Annotated[bool | None, typer.Option("--json", help="Print JSON; the same as -o json.")] = None
    output: Annotated[Output | None, typer.Option("--output", "-o", help="How to print.", case_sensitive=False)] = None

    @property
    def json(self) -> bool:
        """Whether JSON is asked for."""
        return bool(self.as_json) or self.output is Output.JSON


@dataclass(frozen=True, slots=True)
class Described:
    """What a new sandbox is."""

    name: Annotated[str | None, typer.Option(help="Its name.", metavar="TEXT")] = None
    namespace: Annotated[str | None, typer.Option(help="The namespace of the name.", metavar="TEXT")] = None
    uid: Annotated[str | None, typer.Option(help="The pod's unique id.", metavar="TEXT")] = None
    attempt: Annotated[
        int | None, typer.Option(help="How often this pod's sandbox was created before.", metavar="N")
    ] = None
    runtime_handler: Annotated[str | None, typer.Option(help="What runs it, such as runc.", metavar="TEXT")] = None
    label: Annotated[list[str] | None, typer.Option(help="A label; may be given again.", metavar="KEY=VALUE")] = None
    annotation: Annotated[
        list[str] | None, typer.Option(help="An annotation; may be given again.", metavar="KEY=VALUE")
    ] = None

    def metadata(self) -> Metadata:
        """The metadata of the record; raises `InvalidArgumentError`."""
        return Metadata(
            name=self.name or "",
            namespace=self.namespace or "",
            uid=self.uid or "",
            attempt=self.attempt or 0,
            runtime_handler=self.runtime_handler or "",
            labels=_pairs("label", self.label),
            annotations=_pairs("annotation", self.annotation),
        )


def one_id(operation: str) -> Any:
    """An argument for the id of a sandbox in a state from which the operation is possible."""
    return typer.Argument(metavar="ID", help="The id of the sandbox.", autocompletion=ids_for(operation))


def some_ids(operation: str) -> Any:
    """An argument for one or more such ids."""
    return typer.Argument(metavar="ID...", help="The ids of sandboxes.", autocompletion=ids_for(operation))


def time_option(meaning: str) -> Any:
    """An option for a time; `text.instant` reads it."""
    return typer.Option(help=f"{meaning}, such as 2026-11-23T15:07:43.281389235Z.", metavar="TIME")


Pid = Annotated[int, typer.Option(help="The id of its process; 0 when it has none of its own.", metavar="N")]
Exit = Annotated[int | None, typer.Option("--exit-status", help="The exit status of its process.", metavar="N")]


def _pairs(argument: str, items: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise InvalidArgumentError(argument, item, "KEY=VALUE is needed")
        pairs[key] = value
    return pairs


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer reads it: each parameter that is a group of options taken apart into its options."""
    wanted = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in wanted.items() if is_dataclass(p.annotation)}
    own = [p for name, p in wanted.items() if name not in groups and p.annotation is not typer.Context]
    shared = [_parameter(field, group) for group in groups.values() for field in fields(group)]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @wraps(command)
    def typed(context: typer.Context, **values: Any) -> None:
        found = {name: said(group, context) for name, group in groups.items()}
        everything = {"context": context, **values, **found}
        command(**{name: everything[name] for name in wanted})

    whole = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *shared]
    typed.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]  # what inspect looks at first
    typed.__annotations__ = {p.name: p.annotation for p in whole}
    return typed


def _parameter(field: Field[Any], group: type) -> inspect.Parameter:
    annotation = get_type_hints(group, include_extras=True)[field.name]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def said(group: type[T], context: typer.Context) -> T:
    """The options of a group as they were given, behind the command or else before it."""
    before = context.find_root().params
    names = [field.name for field in fields(group)]  # type: ignore[arg-type]  # groups are dataclasses
    return group(**{n: before.get(n) if context.params.get(n) is None else context.params[n] for n in names})


def ids_for(operation: str) -> Callable[[typer.Context, str], list[str]]:
    """Completes the ids of the sandboxes for which the state machine has the operation; all where it has no such one.

    A shell that completes has no use for errors: without a store there is nothing to offer.
    """
    states = [state for state in State if state in MACHINE.get(operation, State)]

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        with suppress(Exception):
            where = said(Where, context)
            given = context.params.get("sandbox_ids") or ()
            with replace(where, timeout=_COMPLETION_TIMEOUT).store() as store:
                return [i for i in store.ids(states=states) if i.startswith(incomplete) and i not in given]
        return []

    return complete
