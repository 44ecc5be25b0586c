"""From the ids that somebody types to those of sandboxes: the beginning of an id stands for the whole where only one
begins so. What is then done to them stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sandbox_redis import checks
from sandbox_redis.cli.statuses import complain_of
from sandbox_redis.errors import AmbiguousIDError, NotFoundError, SchemaError
from sandbox_redis.store import SandboxStore


def whole(store: SandboxStore, typed: Sequence[str], *, exact: bool) -> list[str]:
    """The whole ids, found in one batch; as they are where they are to be exact.

    What begins no id, or cannot be looked up in an index that is damaged, stays as it is: it may be the id of what has
    gone, and what becomes of that is for the operation to say.

    Raises:
        InvalidArgumentError: one breaks the rule of ids; nothing was sent.
        typer.Exit: one is ambiguous, which has been said. Nothing may be changed then.
        StoreUnavailableError: the server could not answer.
    """
    for each in typed:
        checks.sandbox_id(each)
    if exact:
        return list(typed)
    with store.batch() as batch:
        results = [batch.resolve(each) for each in typed]
    errors = [result.error for result in results if result.error is not None]
    if ambiguous := [error for error in errors if isinstance(error, AmbiguousIDError)]:
        raise typer.Exit(complain_of(ambiguous))
    for error in errors:
        if not isinstance(error, (NotFoundError, SchemaError)):
            raise error
    return [each if result.error else result.result() for each, result in zip(typed, results, strict=True)]
