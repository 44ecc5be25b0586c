"""The command that lays a store out before anybody writes to it."""

from __future__ import annotations

from typing import Annotated

import typer

from sandbox_redis.cli import shape
from sandbox_redis.cli.options import Form, Where


def init(
    where: Where,
    form: Form,
    *,
    partitions: Annotated[
        int | None,
        typer.Option(help="How many, 1 to 16384; else 16 on a cluster and 1 elsewhere.", metavar="N"),
    ] = None,
    events_maxlen: Annotated[
        int | None, typer.Option(help="How many events each keeps, about; else 100000.", metavar="N")
    ] = None,
) -> None:
    """Lay the store out, and say how.

    Without it the first write does so, and with the defaults. It is for good: where the store exists, nothing is
    changed, and other numbers are refused.
    """
    with where.store() as store:
        layout = store.init(partitions=partitions, events_maxlen=events_maxlen)
    if form.json:
        shape.write({"prefix": where.prefix or "sandbox", **layout._asdict()})
    else:
        name = "partition" if layout.partitions == 1 else "partitions"
        print(f"{layout.partitions} {name}, each keeps about {layout.events_maxlen} events")
