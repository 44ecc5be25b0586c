"""What a watcher costs the server and itself: for each event, and for each partition and second without any. A part of
``measure.py``; a module of its own, because spawned processes import it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from typing import Any

from benchmarks import cluster_work as work
from sandbox_redis import AsyncSandboxStore, SandboxStore
from sandbox_redis.soak.deployment import Clusters, Standalone
from sandbox_redis.soak.node import Node

PARTITIONS = 16
FOLLOWERS = 20
PAUSE = 0.004  # seconds between two changes that are followed
Figures = dict[str, float]


class Meter:
    """What a server has spent since."""

    def __init__(self, server: Node) -> None:
        self._server = server
        self._before = self._read()

    def _read(self) -> Figures:
        said = self._server.info("cpu") | self._server.info("stats")
        return {
            "us": (float(said["used_cpu_user"]) + float(said["used_cpu_sys"])) * 1e6,
            "in": float(said["total_net_input_bytes"]),
            "out": float(said["total_net_output_bytes"]),
            "commands": float(said["total_commands_processed"]),
        }

    def spent(self) -> Figures:
        return {name: value - self._before[name] for name, value in self._read().items()}


def following(binary: str, options: argparse.Namespace) -> Figures:
    """What a watcher costs for each event and, without any, for each partition and second; of a mirror, its client."""
    figures: Figures = {}
    for kind, partitions, deployment in (
        ("one", 1, Standalone(binary, aof="no")),
        ("cluster", PARTITIONS, Clusters(binary, masters=1, replicas=0, aof="no")),
    ):
        with deployment, SandboxStore(deployment.url, partitions=partitions, agent="writer") as store:
            store.create(sandbox_id="it")
            store.start("it", pid=1)
            server = deployment.servers[0]
            changes = options.number // 4
            alone, _ = _changes(server, store, changes)
            context = multiprocessing.get_context("spawn")
            ready, told = context.Barrier(2), context.Queue()
            args = (deployment.url, FOLLOWERS, ready, told)
            watcher = context.Process(target=_watch, args=args)
            watcher.start()
            ready.wait(60)
            meter = Meter(server)
            time.sleep(options.seconds)
            idle = meter.spent()
            each = FOLLOWERS * partitions * options.seconds
            figures[f"question_{kind}_server_us"] = idle["us"] / each
            figures[f"question_{kind}_bytes"] = (idle["in"] + idle["out"]) / each
            spent, seconds = _changes(server, store, changes)
            store.remove("it", force=True)
            client_us = told.get(timeout=60) * 1e6
            watcher.join()
            share = seconds / options.seconds  # of the questions that were asked anyway
            events = changes * FOLLOWERS
            figures[f"event_{kind}_server_us"] = (spent["us"] - alone["us"] - idle["us"] * share) / events
            figures[f"event_{kind}_bytes"] = (
                spent["out"] + spent["in"] - alone["out"] - alone["in"] - (idle["out"] + idle["in"]) * share
            ) / events
            figures[f"event_{kind}_client_us"] = client_us / events
            if kind == "cluster":
                figures |= _drained(deployment.url, store, changes * 10)
    return figures


def _changes(server: Node, store: SandboxStore, number: int) -> tuple[Figures, float]:
    meter, start = Meter(server), time.monotonic()
    for _ in range(number):
        store.update("it", work.bump)
        time.sleep(PAUSE)
    return meter.spent(), time.monotonic() - start


def _watch(url: str, number: int, ready: Any, told: Any) -> None:
    """Watch many times over, until the sandbox is gone; tell the processor time that the events took."""

    async def main() -> float:
        began: list[float] = []
        async with AsyncSandboxStore(url, agent="watcher") as store:

            async def one() -> None:
                async for event in store.watch():
                    if not began:
                        began.append(time.process_time())
                    if event.sandbox is None:
                        return

            tasks = [asyncio.create_task(one()) for _ in range(number)]
            await store.get("it")
            await asyncio.sleep(2)  # each has begun by then, or misses a few events
            await asyncio.to_thread(ready.wait)
            await asyncio.gather(*tasks)
            return time.process_time() - began[0]

    told.put(asyncio.run(main()))


def _drained(url: str, store: SandboxStore, number: int) -> Figures:
    """Processor time of a watch and of a mirror to take in an event that has come with many others, as they do where
    there are many."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(2), context.Queue()
    mirroring = context.Process(target=_mirror, args=(url, number, ready, told))
    mirroring.start()
    ready.wait(60)
    with store.watch() as watch:
        cursor = watch.cursor
    with store.batch() as batch:
        for i in range(number):
            batch.load(f"m{i}", work.READY, node=f"node-{i % 100}", metadata=work.METADATA)
    mirrored = told.get(timeout=60)
    mirroring.join()
    with store.watch(since=cursor) as watch:
        start = time.process_time()
        for _ in range(number):
            next(watch)
        watched = time.process_time() - start
    return {"mirror_event_client_us": mirrored / number * 1e6, "watch_event_client_us": watched / number * 1e6}


def _mirror(url: str, number: int, ready: Any, told: Any) -> None:
    with SandboxStore(url, agent="mirror") as store, store.mirror() as mirror:
        ready.wait()
        start = time.process_time()
        while mirror.count(state=work.READY.state) < number:
            time.sleep(0.01)
        told.put(time.process_time() - start)
