"""Many operations in few round trips: they are played in step, and what they send in each round travels together."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from sandbox_redis.errors import SandboxError
from sandbox_redis.faces import annotate
from sandbox_redis.operations import Operations
from sandbox_redis.wire import Failure, Lease, Op, Request, Send, SendAll, Sleep

P = ParamSpec("P")
T = TypeVar("T")

SLICE: Final = 1000  # sandboxes in step; more gain nothing, and their replies would wait in the server's memory


class Result(Generic[T]):
    """What one operation of a batch came to. It is there when the batch has ended."""

    __slots__ = ("_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T
        self._error: Exception | None = None

    def result(self) -> T:
        """The result of the operation, or its error raised."""
        if error := self.error:
            raise error
        return self._value

    @property
    def error(self) -> Exception | None:
        """The error of the operation, or None when it succeeded.

        Raises:
            SandboxError: the batch has not ended, or its ``with`` block raised and nothing was sent.
        """
        if not self.done:
            raise SandboxError("the batch has not been carried out: its results are there behind its with block")
        return self._error

    def settle(self, value: Any, error: Exception | None) -> None:
        """Called once, by the batch."""
        self._value, self._error, self.done = value, error, True

    def __repr__(self) -> str:
        if not self.done:
            return "<Result not there yet>"
        return f"<Result {self._error!r}>" if self._error else f"<Result {self._value!r}>"


def _added(operation: Callable[Concatenate[Operations, P], Op[T]]) -> Callable[Concatenate[Batch, P], Result[T]]:
    @wraps(operation)
    def method(self: Batch, /, *args: P.args, **kwargs: P.kwargs) -> Result[T]:
        result: Result[T] = Result()
        sandbox_id = kwargs.get("sandbox_id", args[0] if args else None)
        chain = object() if sandbox_id is None else sandbox_id  # one that is still to be named is like no other
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
        self._chains: dict[Any, list[tuple[Op[Any], Result[Any]]]] = {}  # sandbox → what is to be done to it, in order

    get = _added(Operations.get)
    create = _added(Operations.create)
    load = _added(Operations.load)
    start = _added(Operations.start)
    fail_start = _added(Operations.fail_start)
    port_forward = _added(Operations.port_forward)
    stop = _added(Operations.stop)
    exit = _added(Operations.exit)
    update = _added(Operations.update)
    remove = _added(Operations.remove)

    def carry_out(self) -> Op[None]:
        """Everything that was added, as one operation."""
        chains = list(self._chains.values())
        self._chains = {}
        for first in range(0, len(chains), SLICE):
            yield from _in_step([_Player(chain) for chain in chains[first : first + SLICE]])


class _Player:
    """Plays the operations on one sandbox, one after the other; `request` is what the present one waits for."""

    __slots__ = ("_op", "_rest", "_result", "request")

    def __init__(self, chain: list[tuple[Op[Any], Result[Any]]]) -> None:
        self._rest = iter(chain)
        self._op, self._result = next(self._rest)
        self.advance(None)

    def advance(self, reply: Any) -> None:
        """Go on with a reply or a failure, until there is something to wait for or nothing left."""
        while True:
            try:
                self.request: Request | None = (
                    self._op.throw(reply) if isinstance(reply, Failure) else self._op.send(reply)
                )
                return  # noqa: TRY300 - an else would stand far behind
            except StopIteration as stop:
                self._result.settle(stop.value, None)
            except Exception as error:  # whatever an operation raises, an update function too, is its result
                self._result.settle(None, error)
            if (following := next(self._rest, None)) is None:
                self.request = None
                return
            self._op, self._result = following
            reply = None


def _in_step(players: list[_Player]) -> Op[None]:
    while True:
        senders = [p for p in players if type(p.request) is Send and p.request.lease is Lease.ANY]
        sleepers = [p for p in players if type(p.request) is Sleep]
        if senders:
            packets: dict[Any, Send] = {}
            slots = []
            for player in senders:
                send = player.request
                assert isinstance(send, Send)
                slot = (send.key, send.commands) if send.share else id(player)
                packets.setdefault(slot, send)
                slots.append(slot)
            replies = yield SendAll(list(packets.values()))
            by_slot = dict(zip(packets, replies, strict=True))
            for player, slot in zip(senders, slots, strict=True):
                player.advance(by_slot[slot])
        elif sleepers:
            yield Sleep(max(p.request.seconds for p in sleepers if isinstance(p.request, Sleep)))
            for player in sleepers:
                player.advance(None)
        elif alone := next((p for p in players if p.request is not None), None):
            yield from _to_its_end(alone)
        else:
            return


def _to_its_end(player: _Player) -> Op[None]:
    while player.request is not None:
        try:
            reply = yield player.request
        except Failure as failure:
            reply = failure
        player.advance(reply)


def split(sends: list[Send], replies: list[Any], failure: Failure | None) -> list[Any]:
    """Deal the replies of one packet out to what was sent in it; whoever lacks one gets the failure."""
    result: list[Any] = []
    first = 0
    for send in sends:
        last = first + len(send.commands)
        result.append(replies[first:last] if last <= len(replies) else failure)
        first = last
    return result
