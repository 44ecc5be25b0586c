"""Many operations in few round trips: they are played in step, and what they send in each round travels together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from functools import wraps
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from sandbox_redis.errors import SandboxError, StoreUnavailableError
from sandbox_redis.faces import annotate
from sandbox_redis.operations import Operations
from sandbox_redis.wire import TRANSIENT, Failure, Lease, Op, Request, Send, SendAll, Sleep

P = ParamSpec("P")
T = TypeVar("T")

SLICE: Final = 1000  # sandboxes in step; more gain nothing, and their replies would wait in the server's memory


CHUNK: Final = 100  # packets sent at once; the server begins with them while the next ones are made


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
    port_forward = _added(Operations.port_forward)
    stop = _added(Operations.stop)
    exit = _added(Operations.exit)
    update = _added(Operations.update)
    remove = _added(Operations.remove)

    def carry_out(self) -> Op[None]:
        """Everything that was added, as one operation."""
        self._ended = True
        chains = list(self._chains.values())
        gone = _Gone()
        for first in range(0, len(chains), SLICE):
            self._operations.forget_floors()  # a fresh one for each slice keeps a search for lost writes short
            yield from _in_step([_Player(chain, gone) for chain in chains[first : first + SLICE]], gone)


class _Gone:
    """Whether an operation of a batch has waited for the server in vain. What has not begun by then does not begin: it
    would wait as long again."""

    def __init__(self) -> None:
        self._error: StoreUnavailableError | None = None

    def look(self, error: Exception) -> None:
        """Note what an operation ended with."""
        if isinstance(error, StoreUnavailableError) and error.code in TRANSIENT:
            self._error = error

    def error(self) -> StoreUnavailableError | None:
        """What an operation that has not begun ends with; None while the server answers."""
        return copy(self._error)


class _Player:
    """Plays the operations on one sandbox, one after the other; `request` is what the present one waits for."""

    __slots__ = ("_begun", "_gone", "_op", "_rest", "_result", "request")

    def __init__(self, chain: list[tuple[Op[Any], Result[Any]]], gone: _Gone) -> None:
        self._rest = iter(chain)
        self._gone = gone
        self._op, self._result = next(self._rest)
        self._begun = False
        self.request: Request | None = None

    def begin(self) -> None:
        """Play until there is something to wait for."""
        if not self._begun:
            self._begun = True
            self.advance(self._gone.error())

    def sends_plainly(self) -> bool:
        """Whether it has, or will have, something to send among others."""
        return not self._begun or (isinstance(self.request, Send) and self.request.lease is Lease.ANY)

    def advance(self, reply: Any) -> None:
        """Go on with a reply or a failure, until there is something to wait for or nothing left."""
        while True:
            try:
                self.request = self._op.throw(reply) if isinstance(reply, Exception) else self._op.send(reply)
                return  # noqa: TRY300 - an else would stand far behind
            except StopIteration as stop:
                self._result.settle(stop.value, None)
            except Exception as error:  # whatever an operation raises, an update function too, is its result
                self._result.settle(None, error)
                self._gone.look(error)
            if (following := next(self._rest, None)) is None:
                self.request = None
                return
            self._op, self._result = following
            reply = self._gone.error()


class _Round:
    """One packet's worth: what some players want to send, and who waits for which replies."""

    def __init__(self, players: list[_Player]) -> None:
        self.players = players
        self._waiting: deque[list[_Player]] = deque()

    def sends(self) -> Iterator[Send]:
        """Draw what they send, what is shared only once. Players that have not begun begin here, while the server is at
        work on what was drawn before."""
        shared: dict[Any, list[_Player]] = {}
        for player in self.players:
            player.begin()
            send = player.request
            if not isinstance(send, Send) or send.lease is not Lease.ANY:
                continue
            if send.share:
                group = shared.setdefault((send.key, send.commands), [])
                group.append(player)
                if len(group) > 1:
                    continue
                self._waiting.append(group)
            else:
                self._waiting.append([player])
            yield send

    def deliver(self, reply: list[Any] | Failure) -> None:
        """Hand out the next replies."""
        for player in self._waiting.popleft():
            player.advance(copy(reply) if isinstance(reply, Failure) else reply)  # a traceback of its own for each


def _in_step(players: list[_Player], gone: _Gone) -> Op[None]:
    while True:
        this = _Round([player for player in players if player.sends_plainly()])
        sleepers = [player for player in players if isinstance(player.request, Sleep)]
        if this.players:
            yield SendAll(this.sends(), this.deliver)
        elif sleepers:
            yield Sleep(max(player.request.seconds for player in sleepers if isinstance(player.request, Sleep)))
            for player in sleepers:
                player.advance(None)
        elif alone := next((player for player in players if player.request is not None), None):
            if error := gone.error():
                alone.advance(error)
            else:
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
