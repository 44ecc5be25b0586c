"""The options that commands share, declared once, and what a shell completes for them. How a command takes a group of
them stands in ``groups.py``; what a command does, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.cli import text
from sandbox_redis.cli.columns import COLUMNS, ORDERS
from sandbox_redis.cli.groups import said
from sandbox_redis.concern import WriteConcern
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.record import Metadata
from sandbox_redis.states import ABSENT, MACHINE, State
from sandbox_redis.store import SandboxStore

Completion = Callable[[typer.Context, str], list[str]]

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
    wait_replicas: Annotated[
        int | None, _store_option("Wait until so many replicas have what is written, for a second at most.", "N")
    ] = None
    fsync: Annotated[
        bool | None,
        typer.Option(
            "--fsync", help="Wait until the disk has what is written, as --wait-replicas.", rich_help_panel="Store"
        ),
    ] = None

    def store(self) -> SandboxStore:
        """The store. Nothing is sent before the first operation."""
        return SandboxStore.from_url(**self._given())

    def async_store(self) -> AsyncSandboxStore:
        """The same for asyncio."""
        return AsyncSandboxStore.from_url(**self._given())

    def _given(self) -> dict[str, Any]:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        replicas, fsync = given.pop("wait_replicas", 0), given.pop("fsync", False)
        return given | {"write_concern": WriteConcern(replicas=replicas, fsync=fsync)}


def from_store(ask: Callable[[SandboxStore, typer.Context], Iterable[str]]) -> Completion:
    """Completes what the store has.

    A shell that completes has no use for errors: without a store there is nothing to offer.
    """

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        with suppress(Exception):
            where = replace(said(Where, context), timeout=_COMPLETION_TIMEOUT)
            with where.store() as store:
                return [word for word in ask(store, context) if word.startswith(incomplete)]
        return []

    return complete


def from_words(words: Iterable[str], *, several: bool = False) -> Completion:
    """Completes some words, in whichever case; with `several`, behind each comma."""
    known = list(words)

    def complete(context: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001 - Typer calls it so
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        # In lower case where that is typed: Typer leaves out what does not begin with what is there.
        typed = [word.lower() if last.islower() else word for word in known]
        return [f"{before}{comma}{word}" for word in typed if word.startswith(last)]

    return complete


def ids_for(operation: str) -> Completion:
    """Completes the ids of the sandboxes for which the state machine has the operation; all if it has no such one."""
    states = [state for state in State if state in MACHINE.get(operation, State)]

    def ids(store: SandboxStore, context: typer.Context) -> Iterable[str]:
        given = context.params.get("sandbox_ids") or ()
        return (each for each in store.ids(states=states) if each not in given)

    return from_store(ids)


def node_option(meaning: str) -> Any:
    """An option for a node."""
    nodes = from_store(lambda store, _: store.counts().nodes)
    return typer.Option("--node", help=meaning, metavar="NODE", autocompletion=nodes)


def state_option(meaning: str, states: Iterable[str] = State) -> Any:
    """An option for a state; `text.state` reads it."""
    return typer.Option("--state", help=meaning, metavar="STATE", autocompletion=from_words(states))


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
class Which:
    """Which sandboxes are meant; those that fit in all."""

    state: Annotated[
        list[str] | None,
        state_option("Only in this state: INIT, READY, NOTREADY or UNKNOWN; may be given again."),
    ] = None
    node: Annotated[str | None, node_option("Only on this node.")] = None
    namespace: Annotated[str | None, typer.Option(help="Only in this namespace.", metavar="TEXT")] = None
    selector: Annotated[
        list[str] | None,
        typer.Option(
            "--selector",
            "-l",
            help="Only with these labels, such as app=web,tier=front; may be given again.",
            metavar="LABELS",
        ),
    ] = None

    @property
    def states(self) -> list[State]:
        """The states asked for; none when any may be meant. Raises `InvalidArgumentError`."""
        return [text.state("--state", each) for each in self.state or ()]

    def filters(self) -> dict[str, Any]:
        """What the store's listings take beside the states; raises `InvalidArgumentError`."""
        labels = text.labels("--selector", self.selector or ())
        return {"node": self.node, "namespace": self.namespace, "labels": labels}


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
    return typer.Argument(
        metavar="ID", help="The id of the sandbox, or its beginning.", autocompletion=ids_for(operation)
    )


def some_ids(operation: str) -> Any:
    """An argument for one or more such ids."""
    return typer.Argument(
        metavar="ID...", help="The ids of sandboxes, or their beginnings.", autocompletion=ids_for(operation)
    )


def time_option(meaning: str) -> Any:
    """An option for a time; `text.instant` reads it."""
    return typer.Option(help=f"{meaning}, such as 2026-11-23T15:07:43.281389235Z.", metavar="TIME")


Exact = Annotated[
    bool,
    typer.Option("--exact", help="Only whole ids: in a script, web-1 must not be taken for the beginning of web-10."),
]
Node = Annotated[str, node_option("The node that it is on.")]
Observed = Annotated[
    str, state_option("READY, NOTREADY or UNKNOWN.", (state for state in State if state in MACHINE["load"][ABSENT]))
]
Sort = Annotated[
    str | None,
    typer.Option(
        "--sort",
        help="By id, name, node, state, age or pid; with - before it, such as -age, the other way round.",
        metavar="KEY",
        autocompletion=from_words([*ORDERS, *(f"-{name}" for name in ORDERS)]),
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        help="These columns, such as id,state,label:app; the names of --wide, and label:KEY.",
        metavar="NAMES",
        autocompletion=from_words([*COLUMNS, "label:"], several=True),
    ),
]
NoHeaders = Annotated[bool, typer.Option("--no-headers", help="Only the rows.")]
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
