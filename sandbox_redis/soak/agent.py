"""An agent of a soak: does everything that agents do, as fast as it is told to, and notes what it asks and what it is
told. It judges nothing, and no answer changes what it does next, so that a seed gives the same calls again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.soak.history import status_of
from sandbox_redis.soak.inside import traced
from sandbox_redis.soak.log import HistoryLog
from sandbox_redis.soak.model import updated
from sandbox_redis.soak.part import COUNTERS, SHARED, Part
from sandbox_redis.store import SandboxStore

TASKS: Final = 4  # of an agent on asyncio; they share connections
NODE: Final = "soak"
Step = tuple[str, str, dict[str, Any]]
"""Operation, sandbox, arguments."""
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
    """What one thread or task of an agent does, without end."""
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
            operation = chance.choices(operations, weights)[0]
            yield operation, chance.choice(SHARED), _arguments(operation, chance)


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


def run_sync(part: Part, store: SandboxStore, log: HistoryLog) -> None:
    """Work until standard input closes."""
    last = traced(store)
    chance = part.chance()
    for operation, sandbox_id, args in steps(part.name, chance):
        with log.asking(operation, sandbox_id, **args) as asked:
            try:
                asked.answer = perform(store, operation, sandbox_id, args)
            finally:
                asked.request, asked.lost = last()
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
        for operation, sandbox_id, args in steps(f"{part.name}-{number}", chance):
            with log.asking(operation, sandbox_id, **args) as asked:
                try:
                    asked.answer = await perform(store, operation, sandbox_id, args)
                finally:
                    asked.request, asked.lost = last()
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
            asked.request, asked.lost = last()
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
