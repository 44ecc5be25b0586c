"""What the commands that follow the store have in common: they go on until they are asked to end, say what the library
bridges, and notice when nobody reads what they print. What they follow, and how it looks, stands elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

import typer

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.cli.options import Where
from sandbox_redis.cli.statuses import SIGNALLED, complain
from sandbox_redis.errors import SandboxError
from sandbox_redis.record import Event
from sandbox_redis.states import State
from sandbox_redis.watch import AsyncWatch

T = TypeVar("T")

_REQUESTS: Final = (signal.SIGINT, signal.SIGTERM)
_IDLE: Final = 0.5  # seconds from one look at our reader to the next, while nothing happens
_PAUSE: Final = 0.25  # seconds between two looks whether the store is back


class _Asked(KeyboardInterrupt):
    """We were asked to end, by this signal. As asyncio passes on an interrupt, and takes no other exception so."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def until_asked() -> Iterator[None]:
    """End the command without a word when a signal asks for it, wherever it is; a second signal kills. What is ignored
    from the start, as SIGINT in the background of a script, stays so."""

    def ask(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise _Asked(number)

    before: dict[signal.Signals, Any] = {}
    try:
        before |= {each: signal.getsignal(each) for each in _REQUESTS if signal.getsignal(each) is not signal.SIG_IGN}
        for each in before:
            signal.signal(each, ask)
        yield
    except _Asked as asked:
        raise typer.Exit(SIGNALLED + asked.number) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run(where: Where, body: Callable[[AsyncSandboxStore], Coroutine[Any, Any, T]]) -> T:
    """Run something with the store until it ends, or we are asked to."""

    async def whole() -> T:
        async with where.async_store() as store, _saying_outages(store):
            return await body(store)

    with until_asked(), asyncio.Runner() as runner:
        # An interrupt may hit a task that nobody asks for its end any more.
        runner.get_loop().set_exception_handler(lambda *_: None)
        return runner.run(whole())


async def follow(watch: AsyncWatch, tell: Callable[[Event], bool], rest: Callable[[], None] = lambda: None) -> None:
    """Tell each event, until `tell` says that it is enough. `rest` is called when all that has come is told, and then
    every now and then: the cursor of the watch is of nothing that is still to be told."""
    enough = False
    while not enough:
        coming = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)  # what is there already is taken now
        while not coming.done():
            rest()
            _check_reader()
            await asyncio.wait((coming,), timeout=_IDLE)
        enough = tell(coming.result())


def _check_reader() -> None:
    """Raise what a write would, if whoever read our output has gone: there may be nothing to write for long."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # it is closed, or none of the system's
        return
    output = select.poll()
    output.register(number, 0)
    if output.poll(0):
        raise BrokenPipeError


class _Outages(logging.Handler):
    """Says once that the connection is lost; the library goes on by itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lost = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by the library."""
        if not self.lost.is_set():
            complain(record.getMessage())
            self.lost.set()


@asynccontextmanager
async def _saying_outages(store: AsyncSandboxStore) -> AsyncIterator[None]:
    """Say on standard error when the connection is lost, and when the store answers again."""
    outages = _Outages()

    async def look() -> None:
        while True:
            await outages.lost.wait()
            await _answer(store)
            complain("the store answers again")
            outages.lost.clear()

    logger = logging.getLogger("sandbox_redis")
    logger.addHandler(outages)
    looking = asyncio.ensure_future(look())
    try:
        yield
    finally:
        looking.cancel()
        logger.removeHandler(outages)


async def _answer(store: AsyncSandboxStore) -> None:
    """Wait until the store answers. A watch does not say when it is back, nor does a wait."""
    while True:
        try:
            await store.count(state=State.INIT)
        except SandboxError:
            await asyncio.sleep(_PAUSE)
        else:
            return
