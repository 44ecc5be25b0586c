"""How a command takes groups of options: it names a group as one parameter (``where: Where``), and `expanded` takes the
group apart for Typer. The options of a group may stand before the command as well as behind it, where the command line
has them there. An option of its own that a command names as one of the group takes that one's place behind it. Which
options there are stands in ``options.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from dataclasses import Field, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, get_type_hints

import typer

T = TypeVar("T")


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer reads it: each parameter that is a group of options taken apart into its options."""
    wanted = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in wanted.items() if is_dataclass(p.annotation)}
    own = {name: p for name, p in wanted.items() if name not in groups and p.annotation is not typer.Context}
    shared = [_parameter(field, group) for group in groups.values() for field in fields(group) if field.name not in own]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @wraps(command)
    def typed(context: typer.Context, **values: Any) -> None:
        found = {name: said(group, context, own) for name, group in groups.items()}
        everything = {"context": context, **values, **found}
        command(**{name: everything[name] for name in wanted})

    whole = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()), *shared]
    typed.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]  # what inspect looks at first
    typed.__annotations__ = {p.name: p.annotation for p in whole}
    return typed


def _parameter(field: Field[Any], group: type) -> inspect.Parameter:
    annotation = get_type_hints(group, include_extras=True)[field.name]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


def said(group: type[T], context: typer.Context, own: Container[str] = ()) -> T:
    """The options of a group as they were given, behind the command or else before it; behind it, those in `own` are
    not of the group."""
    before = context.find_root().params
    behind = {name: value for name, value in context.params.items() if value is not None and name not in own}
    names = [field.name for field in fields(group)]  # type: ignore[arg-type]  # groups are dataclasses
    return group(**{name: behind.get(name, before.get(name)) for name in names})
