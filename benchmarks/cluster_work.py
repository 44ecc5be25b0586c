"""What `benchmarks.cluster` lets the servers do: the lives of sandboxes, the obvious RedisCluster code for the same, and
what other processes do. It prints nothing. A module of its own, because a spawned process imports it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import redis
import redis.asyncio

from benchmarks.recipes import MAXLEN
from sandbox_redis import AsyncSandboxStore, Metadata, Sandbox, SandboxStore, State, Status
from sandbox_redis.keys import Keys
from sandbox_redis.record import pairs, sandbox_from_fields, status_to_fields
from sandbox_redis.scripts import script

METADATA = Metadata(name="web-0", namespace="default", uid="8f3b1c5e", labels={"app": "web"}, runtime_handler="runc")
Clock = Callable[[], float]
END = "the-end"
STATES = tuple(State)
READY = Status(State.READY, pid=7, created_at_ns=1_795_446_463_281_389_235)
OPERATIONS = ("create", "start", "get", "update", "stop", "exit", "remove")
CYCLE = ("create", "start", "get", "stop", "remove")
BATCH = 200


def bump(status: Status) -> Status:
    return replace(status, pid=status.pid % 1000 + 1)


def arguments(operation: str) -> dict[str, Any]:
    """What each operation gets beside the id."""
    return {
        "create": {"node": "node-1", "metadata": METADATA},
        "start": {"pid": 7},
        "update": {"fn": bump},
        "exit": {"exit_status": 0},
    }.get(operation, {})


def steps(store: Any, names: list[str]) -> Iterator[tuple[str, list[Callable[[], Any]]]]:
    """The lives of sandboxes from their creation to their removal: each operation, with its calls."""
    for operation in OPERATIONS:
        call, given = getattr(store, operation), arguments(operation)
        # Whichever of stop and exit comes second has less to do: so each gets half of them.
        chosen = {"stop": names[::2], "exit": names[1::2]}.get(operation, names)
        yield operation, [partial(call, sandbox_id=name, **given) for name in chosen]


def life(store: SandboxStore, names: list[str], clock: Clock = time.perf_counter) -> dict[str, float]:
    """Carry the steps out; seconds of one operation of each kind."""
    took = {}
    for operation, calls in steps(store, names):
        start = clock()
        for call in calls:
            call()
        took[operation] = (clock() - start) / len(calls)
    return took


async def async_life(store: AsyncSandboxStore, names: list[str], clock: Clock = time.perf_counter) -> dict[str, float]:
    """The same, in one task."""
    took = {}
    for operation, calls in steps(store, names):
        start = clock()
        for call in calls:
            await call()
        took[operation] = (clock() - start) / len(calls)
    return took


class ClusterRecipes:
    """The store as redis-py's documentation would have it on a cluster, with its default settings: EVALSHA, and for
    updates a pipeline that WATCHes. The scripts are there already."""

    def __init__(self, client: redis.RedisCluster, prefix: str, partitions: int) -> None:
        self.client = client
        self.keys = Keys(prefix, partitions)

    def get(self, sandbox_id: str) -> Sandbox:
        key = self.keys.status(sandbox_id)
        return sandbox_from_fields(sandbox_id, key, self.client.hgetall(key))

    def start(self, sandbox_id: str, pid: int) -> Sandbox:
        command = started(self.keys, sandbox_id, pid)
        return sandbox_from_fields(sandbox_id, command[2], pairs(self.client.evalsha(*command)[1]))

    def update(self, sandbox_id: str, fn: Callable[[Status], Status]) -> Sandbox:
        keys = self.keys.change(sandbox_id)
        with self.client.pipeline(transaction=True) as pipe:
            while True:
                try:
                    pipe.watch(keys[0])
                    seen = sandbox_from_fields(sandbox_id, keys[0], pipe.hgetall(keys[0]))
                    given = (*_arguments(sandbox_id), *status_to_fields(fn(seen.status)), seen.revision)
                    pipe.multi()
                    # Its evalsha() is refused in a pipeline; the command itself is not.
                    pipe.execute_command("EVALSHA", script("update").sha, len(keys), *keys, *given)
                    (reply,) = pipe.execute()
                    return sandbox_from_fields(sandbox_id, keys[0], pairs(reply[1]))
                except redis.WatchError:
                    continue


class AsyncClusterRecipes:
    """The same for asyncio."""

    def __init__(self, client: redis.asyncio.RedisCluster, prefix: str, partitions: int) -> None:
        self.client = client
        self.keys = Keys(prefix, partitions)

    async def get(self, sandbox_id: str) -> Sandbox:
        key = self.keys.status(sandbox_id)
        return sandbox_from_fields(sandbox_id, key, await self.client.hgetall(key))

    async def start(self, sandbox_id: str, pid: int) -> Sandbox:
        command = started(self.keys, sandbox_id, pid)
        return sandbox_from_fields(sandbox_id, command[2], pairs((await self.client.evalsha(*command))[1]))


def recipe_life(
    store: SandboxStore, recipes: ClusterRecipes, names: list[str], clock: Clock = time.perf_counter
) -> dict[str, float]:
    """What of the lives the recipes can do; the rest is done by the store, and does not count."""
    took = {}
    with store.batch() as batch:
        for name in names:
            batch.create(sandbox_id=name, node="node-1", metadata=METADATA)
    calls: dict[str, Callable[[str], Any]] = {
        "start": lambda name: recipes.start(name, 7),
        "get": recipes.get,
        "update": lambda name: recipes.update(name, bump),
    }
    for operation, call in calls.items():
        start = clock()
        for name in names:
            call(name)
        took[operation] = (clock() - start) / len(names)
    with store.batch() as batch:
        for name in names:
            batch.remove(name, force=True)
    return took


async def async_recipe_life(
    store: AsyncSandboxStore, recipes: AsyncClusterRecipes, names: list[str], clock: Clock = time.perf_counter
) -> dict[str, float]:
    """The same, in one task."""
    took = {}
    async with store.batch() as batch:
        for name in names:
            batch.create(sandbox_id=name, node="node-1", metadata=METADATA)
    calls: dict[str, Callable[[str], Any]] = {"start": lambda name: recipes.start(name, 7), "get": recipes.get}
    for operation, call in calls.items():
        start = clock()
        for name in names:
            await call(name)
        took[operation] = (clock() - start) / len(names)
    async with store.batch() as batch:
        for name in names:
            batch.remove(name, force=True)
    return took


def _arguments(sandbox_id: str) -> tuple[Any, ...]:
    return sandbox_id, "recipe", secrets.token_hex(12), MAXLEN


def started(keys: Keys, sandbox_id: str, pid: int) -> tuple[Any, ...]:
    """What EVALSHA gets to start a sandbox."""
    named = keys.change(sandbox_id)
    return (script("start").sha, len(named), *named, *_arguments(sandbox_id), pid)


def follow(url: str, prefix: str, ready: Any, told: Any) -> None:
    """Watch until the end, and tell when each event was there."""
    seen: dict[str, float] = {}
    with SandboxStore(url, prefix=prefix, agent="watcher") as store, store.watch() as watch:
        ready.set()
        for event in watch:
            if event.id == END:
                break
            seen[event.revision] = time.monotonic()
    told.put(seen)


def press(url: str, prefix: str, batches: bool, barrier: Any, seconds: float, counts: Any, index: int) -> None:
    """Lead sandboxes through their lives, one by one or many at once, and count the operations."""
    with SandboxStore(url, prefix=prefix, agent=f"agent-{index}", timeout=30) as store:
        store.counts()
        barrier.wait()
        end, done, made = time.monotonic() + seconds, 0, 0
        while time.monotonic() < end:
            names = [f"p{index}-{made + i}" for i in range(BATCH if batches else 1)]
            made += len(names)
            for operation in CYCLE:
                given = arguments(operation)
                if batches:
                    with store.batch() as batch:
                        for name in names:
                            getattr(batch, operation)(sandbox_id=name, **given)
                else:
                    getattr(store, operation)(sandbox_id=names[0], **given)
                done += len(names) if time.monotonic() < end else 0
        counts[index] = done
