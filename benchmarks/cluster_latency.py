"""How long one caller waits for each operation, on one server, on a cluster of one node and on one of three, and with
the obvious RedisCluster code: by turns, so that the ratios of single turns compare the same seconds. The rest of the
comparison stands in ``cluster.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import redis
import redis.asyncio

from benchmarks import cluster_work as work
from sandbox_redis import AsyncSandboxStore, SandboxStore
from sandbox_redis.soak.topology import Deployment

PREFIX = "bench"
GOAL = "at most 1.15 x"
BASE, ONE, THREE = "one server", "cluster of 1", "cluster of 3"
CLOCKS = {"elapsed": time.perf_counter, "processor": time.process_time}
Times = dict[str, dict[str, list[float]]]
"""What → where → the seconds of each turn."""


def pin(deployments: dict[str, Deployment], *, client: bool = True) -> None:
    """All on one processor, as a caller who waits for each reply has it: no wake-ups across processors, a stable
    figure. Or, without the client, on all of them again."""
    if hasattr(os, "sched_setaffinity"):
        everywhere = set(range(os.cpu_count() or 1))
        chosen = {max(everywhere)} if client else everywhere
        for process in [0, *(server.pid for each in deployments.values() for server in each.servers)]:
            os.sched_setaffinity(process, chosen)


def header(*columns: str) -> None:
    print(f"{'':42}" + "".join(f"{column:>14}" for column in columns), flush=True)


def row(what: str, *cells: str, goal: str = "") -> None:
    print(f"{what:42}" + "".join(f"{cell:>14}" for cell in cells) + f"   {goal}".rstrip(), flush=True)


def against(times: dict[str, list[float]], which: str, base: str) -> float:
    """The median of the ratios of single turns."""
    return statistics.median(mine / other for mine, other in zip(times[which], times[base], strict=True))


def micro(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e6:,.1f} us"


def latency(deployments: dict[str, Deployment], options: argparse.Namespace) -> None:
    """One caller, one operation after the other."""
    pin(deployments)
    for flavour in ("sync", "asyncio"):
        times = _calls(deployments, options) if flavour == "sync" else asyncio.run(_async_calls(deployments, options))
        what = "how long it waits" if options.clock == "elapsed" else "its own processor time"
        print(f"-- {flavour}, one caller, all on one processor: {what}")
        header(BASE, ONE, "ratio", THREE, "ratio")
        for what, took in times.items():
            if BASE in took:
                ones, threes = (f"{against(took, which, BASE):.2f} x" for which in (ONE, THREE))
                row(what, micro(took[BASE]), micro(took[ONE]), ones, micro(took[THREE]), threes, goal=GOAL)
        header(THREE, "RedisCluster", "ratio")
        for what in ("get", "start", "update"):
            if theirs := times.get(f"{what} by recipe"):
                both = {"ours": times[what][THREE], "theirs": theirs[THREE + " by recipe"]}
                ratio = f"{against(both, 'ours', 'theirs'):.2f} x"
                row(what, micro(both["ours"]), micro(both["theirs"]), ratio, goal="less than 1 x")
    pin(deployments, client=False)


def _turns(options: argparse.Namespace, places: list[str]) -> list[tuple[list[str], list[str]]]:
    """For each turn, the places in some order, and the sandboxes."""
    turns = []
    for turn in range(options.turns + 1):
        names = [f"new-{turn}-{i}" for i in range(options.number)]
        turns.append((random.sample(places, len(places)), names))
    return turns


def _calls(deployments: dict[str, Deployment], options: argparse.Namespace) -> Times:
    times: Times = defaultdict(lambda: defaultdict(list))
    clock = CLOCKS[options.clock]
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(SandboxStore(deployment.url, prefix=PREFIX))
            for name, deployment in deployments.items()
        }
        client = stack.enter_context(redis.RedisCluster(host="127.0.0.1", port=deployments[THREE].servers[0].port))
        recipes = work.ClusterRecipes(client, PREFIX, options.partitions)
        reads: dict[str, Callable[[SandboxStore], Any]] = {
            "list(node=...), 100 found": lambda store: list(store.list(node="node-0", states=work.STATES)),
            "page()": lambda store: store.page(limit=100),
            "counts": lambda store: store.counts(),
        }
        for turn, (places, names) in enumerate(_turns(options, [*stores, "recipes"])):
            for place in places:
                if place == "recipes":
                    found = {
                        f"{k} by recipe": v for k, v in work.recipe_life(stores[THREE], recipes, names, clock).items()
                    }
                    place = THREE + " by recipe"  # noqa: PLW2901 - what was measured, and where
                else:
                    store = stores[place]
                    found = work.life(store, names, clock)
                    for what, read in reads.items():
                        found[what] = _each(lambda read=read, store=store: read(store), 5, clock)  # type: ignore[misc]
                    with store.mirror(node="node-0") as mirror:  # not all the time: it would take in every change
                        mirror.get("old-7")
                        found["mirror.get"] = _each(lambda mirror=mirror: mirror.get("old-7"), 1000, clock)  # type: ignore[misc]
                if turn:  # the first one warms up
                    for what, seconds in found.items():
                        times[what][place].append(seconds)
    return times


def _each(call: Callable[[], Any], number: int, clock: work.Clock) -> float:
    start = clock()
    for _ in range(number):
        call()
    return (clock() - start) / number


async def _async_calls(deployments: dict[str, Deployment], options: argparse.Namespace) -> Times:
    times: Times = defaultdict(lambda: defaultdict(list))
    clock = CLOCKS[options.clock]
    stores = {name: AsyncSandboxStore(deployment.url, prefix=PREFIX) for name, deployment in deployments.items()}
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=deployments[THREE].servers[0].port)
    recipes = work.AsyncClusterRecipes(client, PREFIX, options.partitions)
    for turn, (places, names) in enumerate(_turns(options, [*stores, "recipes"])):
        for place in places:
            if place == "recipes":
                found = await work.async_recipe_life(stores[THREE], recipes, names, clock)
                found, place = {f"{k} by recipe": v for k, v in found.items()}, THREE + " by recipe"  # noqa: PLW2901
            else:
                store = stores[place]
                found = await work.async_life(store, names, clock)
                for what, read in {
                    "page()": lambda store: store.page(limit=100),
                    "counts": lambda s: s.counts(),
                }.items():
                    start = clock()
                    for _ in range(5):
                        await read(store)
                    found[what] = (clock() - start) / 5
            if turn:
                for what, seconds in found.items():
                    times[what][place].append(seconds)
    for store in stores.values():
        await store.aclose()
    await client.aclose()
    return times
