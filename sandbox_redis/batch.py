"""Many operations in few round trips: they are played in step, and what they send in each round travels together."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sandbox_redis.errors import SandboxError
from sandbox_redis.faces import annotate
from sandbox_redis.in_step import Gone, Player, Result, in_step
from sandbox_redis.operations import Operations
from sandbox_redis.wire import Op

P = ParamSpec("P")
T = TypeVar("T")

SLICE: Final = 1000  # sandboxes in step; more gain nothing, and their replies would wait in the server's memory


def _added(operation: Callable[Concatenate[Operations, P], Op[T]]) -> Callable[Concatenate[Batch, P], Result[T]]:
    @wraps(operation)
    def method(self: Batch, /, *args: P.args, **kwargs: P.kwargs) -> Result[T]:
        if self._ended:
            raise SandboxError("the batch has been carried out, what is added now would never be sent: open another")
        result: Result[T] = Result()
        sandbox_id = kwargs.get("sandbox_id", args[0] if args else None)
        # One that is still to be named is like no other.
        chain = sandbox_id if isinstance(sandbox_id, str) else object()
        self._chains.setdefault(chain, []).append((operation(self._operations, *args, **kwargs), result))
        return result

    annotate(method, "Result[{}]")
    return method


class Batch:
    """Collects operations; they are carried out at the end of its ``with`` block, each with a result or error of its
    own.

    Operations on different sandboxes are independent: one that is refused leaves the others alone. Those on one sandbox
    are carried out in the order in which they were added, each when the one before has its result. An `update` needs a
    connection to itself, so updates are carried out one after the other, and gain nothing.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._ended = False
        self._chains: dict[Any, list[tuple[Op[Any], Result[Any]]]] = {}  # sandbox → what is to be done to it, in order

    get = _added(Operations.get)
    create = _added(Operations.create)
    load = _added(Operations.load)
    start = _added(Operations.start)
    fail_start = _added(Operations.fail_start)
    resolve = _added(Operations.resolve)
    port_forward = _added(Operations.port_forward)
    stop = _added(Operations.stop)
    exit = _added(Operations.exit)
    update = _added(Operations.update)
    remove = _added(Operations.remove)

    def carry_out(self) -> Op[None]:
        """Everything that was added, as one operation."""
        self._ended = True
        chains = list(self._chains.values())
        gone = Gone()
        for first in range(0, len(chains), SLICE):
            self._operations.forget_floors()  # a fresh one for each slice keeps a search for lost writes short
            yield from in_step([Player(chain, gone) for chain in chains[first : first + SLICE]], gone)
