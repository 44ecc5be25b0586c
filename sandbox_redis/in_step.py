"""Many operations played in step: what they send in each round travels together, whatever it is. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any, Final, Generic, TypeVar

from sandbox_redis.errors import SandboxError, StoreUnavailableError
from sandbox_redis.wire import TRANSIENT, Command, Failure, Lease, Op, Request, Send, SendAll, Sleep

T = TypeVar("T")

_AMONG: Final = (Lease.ANY, Lease.ALONE)
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


class Gone:
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


class Player:
    """Plays the operations on one sandbox, one after the other; `request` is what the present one waits for."""

    __slots__ = ("_begun", "_gone", "_op", "_rest", "_result", "request")

    def __init__(self, chain: list[tuple[Op[Any], Result[Any]]], gone: Gone) -> None:
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
        return not self._begun or _is_plain(self.request)

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


def _is_plain(request: Request | None) -> bool:
    return isinstance(request, Send) and request.lease in _AMONG and not request.at


class _Round:
    """One packet's worth: what some players want to send, and who waits for which replies."""

    def __init__(self, players: list[Player]) -> None:
        self.players = players
        self._waiting: deque[list[Player] | _Joined] = deque()

    def sends(self) -> Iterator[Send]:
        """Draw what they send, what is shared only once. Players that have not begun begin here, while the server is at
        work on what was drawn before."""
        shared: dict[Any, list[Player]] = {}
        joined: dict[Any, _Joined] = {}
        for player in self.players:
            player.begin()
            send = player.request
            if not _is_plain(send):
                continue
            assert isinstance(send, Send)
            if send.tail:
                same = (send.key, send.commands[-send.tail :])
                joined.setdefault(same, _Joined(send)).add(player, send)
                continue
            assert isinstance(send, Send)
            if send.share:
                group = shared.setdefault((send.key, send.commands, send.replica), [])
                group.append(player)
                if len(group) > 1:
                    continue
                self._waiting.append(group)
            else:
                self._waiting.append([player])
            yield send
        for each in joined.values():
            self._waiting.append(each)
            yield each.send()

    def deliver(self, reply: list[Any] | Failure) -> None:
        """Hand out the next replies."""
        waiting = self._waiting.popleft()
        if isinstance(waiting, _Joined):
            waiting.deliver(reply)
            return
        for player in waiting:
            player.advance(copy(reply) if isinstance(reply, Failure) else reply)  # a traceback of its own for each


class _Joined:
    """Packets of some players with one tail, which become one packet: see `Send.tail`."""

    def __init__(self, first: Send) -> None:
        self._first = first
        self._players: list[tuple[Player, int]] = []
        self._commands: list[Command] = []

    def add(self, player: Player, send: Send) -> None:
        """Put the packet of another player before the tail."""
        commands = send.commands[: -send.tail]
        self._commands += commands
        self._players.append((player, len(commands)))

    def send(self) -> Send:
        """The one packet."""
        return self._first._replace(commands=(*self._commands, *self._first.commands[-self._first.tail :]))

    def deliver(self, reply: list[Any] | Failure) -> None:
        """Hand out its replies."""
        place = 0
        for player, number in self._players:
            if isinstance(reply, Failure):
                player.advance(copy(reply))
            else:
                player.advance([*reply[place : place + number], *reply[len(self._commands) :]])
                place += number


def in_step(players: list[Player], gone: Gone) -> Op[None]:
    """Play them all to their ends."""
    while True:
        this = _Round([player for player in players if player.sends_plainly()])
        sleepers = [player for player in players if isinstance(player.request, Sleep)]
        if this.players:
            yield SendAll(this.sends(), this.deliver)
        elif sleepers:
            sleeps = [player.request for player in sleepers if isinstance(player.request, Sleep)]
            yield Sleep(max(sleep.seconds for sleep in sleeps), tuple(why for sleep in sleeps for why in sleep.why))
            for player in sleepers:
                player.advance(None)
        elif alone := next((player for player in players if player.request is not None), None):
            if error := gone.error():
                alone.advance(error)
            else:
                yield from _to_its_end(alone)
        else:
            return


def _to_its_end(player: Player) -> Op[None]:
    while player.request is not None:
        try:
            reply = yield player.request
        except Failure as failure:
            reply = failure
        player.advance(reply)


def together(ops: Iterable[Op[T]]) -> Op[list[T]]:
    """The results of one or more independent operations that only read; raises the first error."""
    alone, *others = ops
    if not others:
        return [(yield from alone)]
    gone = Gone()
    results: list[Result[T]] = [Result() for _ in range(len(others) + 1)]
    chains = zip([alone, *others], results, strict=True)
    yield from in_step([Player([chain], gone) for chain in chains], gone)
    return [result.result() for result in results]
