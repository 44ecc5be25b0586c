"""``python -m benchmarks.plan --sandboxes 1000000``: how many nodes a store needs, what they are busy with, and what breaks
first. It reckons with the constants that `benchmarks.measure` has measured, and asks no server. The model is explained in
docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

SAVED = Path(__file__).with_name("constants.json")
LIFE = ("create", "start", "exit", "remove")  # the changes of one sandbox, each as often as the others
PER_NODE = 4  # partitions for each node, so that none has much more of them than another
PARTITIONS_MAX = 16_384
NETWORK = 62.5e6  # bytes a second: half of 1 Gbit/s
NODES_MAX = 1000  # what cluster nodes are made for, replicas among them
GB = 1e9


@dataclass(frozen=True)
class Load:
    """What is asked of the store, and what its nodes are."""

    sandboxes: int
    hosts: int
    changes: float
    """Each second, of all sandboxes together."""
    reads: float
    """``get`` each second."""
    watchers: int
    mirrors: int
    processes: int
    """That have a connection to each node."""
    replicas: int
    """Of each master."""
    events_maxlen: int
    partitions: int
    """0: as many as the nodes want."""
    memory: float
    """Bytes of data that a node takes, at most."""
    busy: float
    """Share of one processor that a node may be busy."""
    maxclients: int
    """Connections that a node takes."""

    @property
    def followers(self) -> int:
        """Each hears every event, whatever it filters."""
        return self.watchers + self.mirrors


class Plan:
    """The figures for one load; all of them of the whole store, unless they say otherwise."""

    def __init__(self, load: Load, constants: dict[str, float]) -> None:
        self.load, self.constants = load, constants
        self.nodes = 1
        if self._wanted() > 1:
            self.nodes = 3  # less than three cannot agree on a failover
        while self.nodes < PARTITIONS_MAX and (wanted := self._wanted()) > self.nodes:
            # Each node more has connections of its own to keep: there may be no number that will do.
            self.nodes = min(wanted, PARTITIONS_MAX)

    def _wanted(self) -> int:
        load = self.load
        by_memory = self.memory() / load.memory
        by_processor = sum(self.processor().values()) / load.busy
        by_network = self.network() / NETWORK
        return math.ceil(max(by_memory, by_processor, by_network, 1))

    @property
    def kind(self) -> str:
        return "cluster" if self.nodes > 1 else "one"

    @property
    def partitions(self) -> int:
        if self.load.partitions:
            return self.load.partitions
        if self.nodes == 1:
            return 1
        return min(max(16, 2 ** math.ceil(math.log2(self.nodes * PER_NODE))), PARTITIONS_MAX)

    def change(self, what: str) -> float:
        """The mean of the changes of a life."""
        return sum(self.constants[f"{operation}_{what}"] for operation in LIFE) / len(LIFE)

    def processor(self) -> dict[str, float]:
        """Seconds of server time each second, and for what."""
        load, constants = self.load, self.constants
        return {
            "changes": load.changes * self.change("server_us") / 1e6,
            "reads": load.reads * constants["get_server_us"] / 1e6,
            "events to followers": load.changes * load.followers * constants[f"event_{self.kind}_server_us"] / 1e6,
            "heartbeats": load.followers * self.partitions * constants[f"question_{self.kind}_server_us"] / 1e6,
        }

    def indexes(self) -> float:
        """Keys that index a host in one partition: with few sandboxes it has none in many of the partitions."""
        each = self.load.sandboxes / self.load.hosts
        return self.load.hosts * self.partitions * (1 - (1 - 1 / self.partitions) ** each)

    def connections(self) -> int:
        """Of one node: whoever has one has one to each node."""
        return self.load.processes + self.load.followers

    def parts(self) -> dict[str, float]:
        """Bytes of memory, and for what."""
        load, constants = self.load, self.constants
        return {
            "sandboxes": load.sandboxes * constants["sandbox_bytes"],
            "indexes of hosts": (self.indexes() - load.hosts) * constants["index_bytes"],  # one each is counted above
            "events": self.partitions * load.events_maxlen * constants["event_bytes"],
            "connections": self.nodes * self.connections() * constants["connection_bytes"],
        }

    def memory(self) -> float:
        return sum(self.parts().values())

    def network(self) -> float:
        """Bytes each second, both ways, without those to replicas."""
        load, constants = self.load, self.constants
        change = self.change("in_bytes") + self.change("out_bytes")
        get = constants["get_in_bytes"] + constants["get_out_bytes"]
        followed = load.changes * constants[f"event_{self.kind}_bytes"]
        asked = self.partitions * constants[f"question_{self.kind}_bytes"]
        return load.changes * change + load.reads * get + load.followers * (followed + asked)

    def limits(self) -> dict[str, float]:
        """What more nodes do not mend: how much of each limit is used. Above 1 it takes another store."""
        load, constants = self.load, self.constants
        watched = load.changes * constants["watch_event_client_us"] / 1e6 if load.watchers else 0.0
        mirrored = load.changes * constants["mirror_event_client_us"] / 1e6 if load.mirrors else 0.0
        return {
            f"connections of a node, of {load.maxclients:,}": self.connections() / load.maxclients,
            "a watcher's processor": watched,
            "a mirror's processor": mirrored,
            f"a mirror's memory, of {load.memory / GB:,.0f} GB": bool(load.mirrors)
            * load.sandboxes
            * constants["mirror_bytes"]
            / load.memory,
            f"nodes with replicas, of {NODES_MAX:,}": self.nodes * (1 + load.replicas) / NODES_MAX,
        }

    def lines(self) -> list[tuple[str, str]]:
        """All of it, to be read."""
        load, constants = self.load, self.constants
        processor, memory = self.processor(), self.parts()
        each = load.sandboxes / self.nodes
        file, growth = each * constants["sandbox_file_bytes"], load.changes / self.nodes * constants["change_aof_bytes"]
        hosts = self.indexes() / self.partitions
        return [
            ("sandboxes, hosts", f"{load.sandboxes:,}, {load.hosts:,}"),
            ("changes, reads a second", f"{load.changes:,.0f}, {load.reads:,.0f}"),
            ("watchers, mirrors", f"{load.watchers:,}, {load.mirrors:,}"),
            ("masters, nodes with replicas", f"{self.nodes:,}, {self.nodes * (1 + load.replicas):,}"),
            ("partitions", f"{self.partitions:,}"),
            ("memory of a node", size(sum(memory.values()) / self.nodes)),
            *((f"  {name}", size(part / self.nodes)) for name, part in memory.items()),
            ("a node's processor is busy", percent(sum(processor.values()) / self.nodes)),
            *((f"  {name}", percent(part / self.nodes)) for name, part in processor.items()),
            ("a node's network", f"{size(self.network() / self.nodes)}/s"),
            ("events are kept for", span(self.partitions * load.events_maxlen / load.changes)),
            ("append-only file of a node grows by", f"{size(growth)}/s"),
            ("  and has doubled, so is rewritten, after", span(file / growth)),
            ("  to rewrite it takes", span(each * constants["rewrite_sandbox_us"] / 1e6)),
            ("  to load it after a restart", span(each * constants["load_sandbox_us"] / 1e6)),
            ("fork stops a node for", span(sum(memory.values()) / self.nodes / GB * constants["fork_gb_ms"] / 1e3)),
            ("counts() keeps a node busy, at a time, for", span(hosts * constants["counts_index_server_us"] / 1e6)),
            ("  and all nodes together", span(self.indexes() * constants["counts_index_server_us"] / 1e6)),
            ("a whole listing takes its client", span(load.sandboxes * constants["list_record_client_us"] / 1e6)),
            *((name, percent(used)) for name, used in self.limits().items()),
        ]

    def first(self) -> tuple[str, float]:
        """The limit that is reached first, and how much of it is used."""
        limits = self.limits()
        name = max(limits, key=lambda name: limits[name])
        return name.partition(",")[0], limits[name]


def split(load: Load, constants: dict[str, float]) -> tuple[int, Plan]:
    """Into how many stores a load must be split to be below each limit, and the plan of one of them. Each has its share
    of hosts and of all that they do, and followers of its own."""
    stores = 1
    while True:
        share = replace(
            load,
            sandboxes=math.ceil(load.sandboxes / stores),
            hosts=math.ceil(load.hosts / stores),
            processes=math.ceil(load.processes / stores),
            changes=load.changes / stores,
            reads=load.reads / stores,
        )
        plan = Plan(share, constants)
        if plan.first()[1] <= 1 or stores >= load.hosts:
            return stores, plan
        stores = max(stores + 1, math.ceil(stores * 1.02))


def size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def percent(share: float) -> str:
    return f"{share * 100:,.0f} %" if share >= 0.1 else f"{share * 100:.2g} %"


def _one_or_more(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--sandboxes", type=_one_or_more, default=1_000_000, help="how many there are at a time")
    parser.add_argument("--hosts", type=_one_or_more, help="machines that have them; else one for 100")
    parser.add_argument("--changes-per-second", type=float, help="else 1 for 500 sandboxes: a life of 33 minutes")
    parser.add_argument("--reads-per-second", type=float, help="get; else 5 for each change")
    parser.add_argument("--watchers", type=int, default=5, help="watches of the whole store")
    parser.add_argument("--mirrors", type=int, default=5, help="mirrors of the whole store")
    parser.add_argument("--processes", type=int, help="with a connection to each node; else one on each host")
    parser.add_argument("--replicas", type=int, default=1, help="of each master")
    parser.add_argument("--events-maxlen", type=int, default=100_000, help="events that each partition keeps")
    parser.add_argument("--partitions", type=int, default=0, help="else four for each node, 1 for a single one")
    parser.add_argument("--memory", type=float, default=8.0, help="GB of data that a node takes, at most")
    parser.add_argument("--busy", type=float, default=0.5, help="share of a processor that a node may be busy")
    parser.add_argument("--maxclients", type=int, default=10_000, help="connections that a node takes")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey", help="whose constants")
    parser.add_argument("--constants", type=Path, default=SAVED, help="the file that benchmarks.measure has written")
    parser.add_argument("--show-constants", action="store_true", help="print the constants of all servers instead")
    return parser


def report(words: list[str]) -> str:
    """What the command prints."""
    options = parser().parse_args(words)
    known = json.loads(options.constants.read_text())
    if options.show_constants:
        lines = [f"{'':28}" + "".join(f"{known[kind]['server']:>26}" for kind in known)]
        named = [name for name in next(iter(known.values())) if name != "server"]
        lines += [f"{name:28}" + "".join(f"{known[kind][name]:>26}" for kind in known) for name in named]
        return "\n".join(lines)
    hosts = options.hosts or max(1, options.sandboxes // 100)
    changes = options.changes_per_second or options.sandboxes / 500
    load = Load(
        sandboxes=options.sandboxes,
        hosts=hosts,
        changes=changes,
        reads=changes * 5 if options.reads_per_second is None else options.reads_per_second,
        watchers=options.watchers,
        mirrors=options.mirrors,
        processes=hosts if options.processes is None else options.processes,
        replicas=options.replicas,
        events_maxlen=options.events_maxlen,
        partitions=options.partitions,
        memory=options.memory * GB,
        busy=options.busy,
        maxclients=options.maxclients,
    )
    constants = known[options.server]
    (name, used), (stores, plan) = Plan(load, constants).first(), split(load, constants)
    lines = [("FIRST TO BREAK IN ONE STORE", f"{name} ({percent(used)})"), ("STORES", f"{stores:,}")]
    lines.append((f"{'EACH OF THEM' if stores > 1 else 'IT'}", ""))
    return "\n".join(f"{name:48}{figure}".rstrip() for name, figure in [*lines, *plan.lines()])


def main() -> None:
    import sys

    print(report(sys.argv[1:]))


if __name__ == "__main__":
    main()
