"""An agent of a soak: does everything that agents do, as fast as it is told to, and notes what it asks and what it is
told. It judges nothing, and no answer changes what it does next, so that a seed gives the same calls again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.errors import StoreUnavailableError
from sandbox_redis.queries import Counts
from sandbox_redis.soak.history import status_of
from sandbox_redis.soak.inside import traced
from sandbox_redis.soak.log import Asking, HistoryLog, Kind
from sandbox_redis.soak.model import updated
from sandbox_redis.soak.part import COUNTERS, SHARED, Part
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

TASKS: Final = 4  # of an agent on asyncio; they share connections
NODE: Final = "soak"
Step = tuple[str, str, dict[str, Any]]
"""Operation, sandbox, arguments."""
_SURVEYS: Final = 0.006  # share of the steps that ask for many sandboxes; each takes the check some milliseconds
_BATCHES: Final = 0.03
_MANY: Final = (3, 8)  # sandboxes in a batch, and of get_many
_LIVES: Final = 0.3  # share of the time in which an agent runs sandboxes of its own
_COUNTS: Final = 0.3
_WEIGHTS: Final = {
    "get": 6,
    "create": 4,
    "start": 6,
    "update": 6,
    "stop": 2,
    "exit": 3,
    "remove": 3,
    "load": 1,
    "fail_start": 1,
    "force_remove": 1,
    "port_forward": 1,
}
_KINDS: Final = ("count", "count", "pid", "pid", "READY", "NOTREADY")  # of updates


def steps(name: str, chance: random.Random) -> Iterator[Step]:
    """What is done to one sandbox after the other, without end."""
    numbers = itertools.count(1)
    operations, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while True:
        draw = chance.random()
        if draw < _LIVES:
            yield from _life(f"{name.replace('/', '-')}-{next(numbers)}", chance)
        elif draw < _LIVES + _COUNTS:
            counter = chance.choice(COUNTERS)
            yield ("update", counter, {"kind": "count"}) if chance.random() < 0.7 else ("get", counter, {})
        else:
            yield _step(chance.choice(SHARED), chance, chance.choices(operations, weights)[0])


def _with_many(name: str, chance: random.Random) -> Iterator[Step]:
    """What one thread or task of an agent does: the same, and what concerns many sandboxes at once."""
    operations, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    for step in steps(name, chance):
        yield step
        draw = chance.random()
        some = chance.sample([*COUNTERS, *SHARED], chance.randint(*_MANY))
        if draw < _SURVEYS:
            yield chance.choice(("list", "get_many", "counts")), "", {"ids": some}
        elif draw < _SURVEYS + _BATCHES:
            yield "batch", "", {"steps": [_step(each, chance, chance.choices(operations, weights)[0]) for each in some]}


def _step(sandbox_id: str, chance: random.Random, operation: str) -> Step:
    """Something with a sandbox that all share; counters are counted in only."""
    if sandbox_id in COUNTERS:
        return "update", sandbox_id, {"kind": "count"}
    return operation, sandbox_id, _arguments(operation, chance)


def _life(sandbox_id: str, chance: random.Random) -> Iterator[Step]:
    """A sandbox of its own, from its creation to its removal."""
    course = ["create", "start", "update", "get", "exit", "remove"]
    if chance.random() < 0.1:
        course = ["create", "fail_start"]
    for operation in course:
        yield operation, sandbox_id, _arguments(operation, chance)


def _arguments(operation: str, chance: random.Random) -> dict[str, Any]:
    number = chance.randrange(1, 2**31)
    match operation:
        case "create":
            return {"created_at_ns": number}
        case "load":
            state = chance.choice(["READY", "NOTREADY", "UNKNOWN"])
            return {"observed": [state, 0 if state == "NOTREADY" else number, number, 0, 0]}
        case "start":
            return {"pid": number}
        case "exit":
            return {"exit_status": number, "exited_at_ns": number}
        case "stop":
            return {"exit_status": number, "exited_at_ns": number} if chance.random() < 0.5 else {}
        case "update":
            return {"kind": chance.choice(_KINDS), "pid": number}
    return {}


def perform(store: Any, operation: str, sandbox_id: str, args: dict[str, Any]) -> Any:
    """Carry out a step: the result, or what gives it when it is awaited."""
    match operation:
        case "create":
            return store.create(sandbox_id=sandbox_id, node=NODE, **args)
        case "load":
            return store.load(sandbox_id, status_of(args["observed"]), node=NODE)
        case "update":
            return store.update(sandbox_id, partial(updated, args))
        case "force_remove":
            return store.remove(sandbox_id, force=True)
    return getattr(store, operation)(sandbox_id, **args)


def _surveyed(log: HistoryLog, operation: str, ids: list[str], start: int, told: Any) -> None:
    """Note what a survey was told."""
    end = time.monotonic_ns()
    if isinstance(told, Counts):
        log.write(Kind.SURVEYED, operation, (), (), sum(told.states.values()), start, end)
    else:
        found = [(sandbox.id, sandbox.revision) for sandbox in told]
        log.write(Kind.SURVEYED, operation, ids if operation == "get_many" else (), found, len(found), start, end)


def _noted(last: Callable[[str], tuple[str, bool]], asked: list[Asking], results: list[Any]) -> None:
    """Note what the operations of a batch were told."""
    for each, result in zip(asked, results, strict=True):
        with each:
            try:
                each.answer = result.result()
            finally:
                each.request, each.lost = last(each.id)


def _carry_out(store: SandboxStore, log: HistoryLog, last: Callable[[str], tuple[str, bool]], step: Step) -> None:
    operation, sandbox_id, args = step
    if operation == "batch":
        asked = [log.asking(each, to, **known) for each, to, known in args["steps"]]
        with store.batch() as batch:
            results = [perform(batch, *each) for each in args["steps"]]
        _noted(last, asked, results)
    elif not sandbox_id:
        start = time.monotonic_ns()
        with suppress(StoreUnavailableError):
            match operation:
                case "list":
                    _surveyed(log, operation, [], start, list(store.list(states=list(State))))
                case "counts":
                    _surveyed(log, operation, [], start, store.counts())
                case _:
                    _surveyed(log, operation, args["ids"], start, store.get_many(args["ids"]).values())
    else:
        with log.asking(operation, sandbox_id, **args) as one:
            try:
                one.answer = perform(store, operation, sandbox_id, args)
            finally:
                one.request, one.lost = last(sandbox_id)


async def _carry_out_asyncio(
    store: AsyncSandboxStore, log: HistoryLog, last: Callable[[str], tuple[str, bool]], step: Step
) -> None:
    operation, sandbox_id, args = step
    if operation == "batch":
        asked = [log.asking(each, to, **known) for each, to, known in args["steps"]]
        async with store.batch() as batch:
            results = [perform(batch, *each) for each in args["steps"]]
        _noted(last, asked, results)
    elif not sandbox_id:
        start = time.monotonic_ns()
        with suppress(StoreUnavailableError):
            match operation:
                case "list":
                    found = [sandbox async for sandbox in store.list(states=list(State))]
                    _surveyed(log, operation, [], start, found)
                case "counts":
                    _surveyed(log, operation, [], start, await store.counts())
                case _:
                    _surveyed(log, operation, args["ids"], start, (await store.get_many(args["ids"])).values())
    else:
        with log.asking(operation, sandbox_id, **args) as one:
            try:
                one.answer = await perform(store, operation, sandbox_id, args)
            finally:
                one.request, one.lost = last(sandbox_id)


def run_sync(part: Part, store: SandboxStore, log: HistoryLog) -> None:
    """Work until standard input closes."""
    last = traced(store)
    chance = part.chance()
    for step in _with_many(part.name, chance):
        _carry_out(store, log, last, step)
        ended, _, _ = select.select([sys.stdin], [], [], chance.uniform(0, 2 * part.pause))
        if ended:
            return


async def run_asyncio(part: Part, store: AsyncSandboxStore, log: HistoryLog) -> None:
    """Work in several tasks until standard input closes."""
    last = traced(store)
    ending = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ending.set)

    async def work(number: int) -> None:
        chance = part.chance(number)
        for step in _with_many(f"{part.name}-{number}", chance):
            await _carry_out_asyncio(store, log, last, step)
            with suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), chance.uniform(0, 2 * part.pause))
            if ending.is_set():
                return

    async with asyncio.TaskGroup() as tasks:
        for number in range(TASKS):
            tasks.create_task(work(number))
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())


def write(store: SandboxStore, log: HistoryLog, course: Iterable[Step]) -> None:
    """Carry out some steps, one after the other.

    Raises:
        RuntimeError: one did not succeed.
    """
    last = traced(store)
    for operation, sandbox_id, args in course:
        with log.asking(operation, sandbox_id, **args) as asked:
            asked.answer = perform(store, operation, sandbox_id, args)
            asked.request, asked.lost = last(sandbox_id)
        if asked.answer is None:
            raise RuntimeError(f"{operation} of {sandbox_id} did not succeed")


def _main(part: Part) -> None:
    with HistoryLog(part.log) as log:
        if part.asyncio:

            async def main() -> None:
                async with AsyncSandboxStore.from_url(**part.settings) as store:
                    await run_asyncio(part, store, log)

            asyncio.run(main())
        else:
            with SandboxStore.from_url(**part.settings) as store:
                run_sync(part, store, log)


if __name__ == "__main__":
    _main(Part.from_argv())
