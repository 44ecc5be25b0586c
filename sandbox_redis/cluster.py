"""Which node of a cluster has which slots. No I/O; what is the same for Sentinels stands in ``topology.py``."""

from __future__ import annotations

import math
import random
import time
from binascii import crc_hqx
from typing import Final

from sandbox_redis.topology import MOVING, Looking, Place, Several, address, named, put_last, tagged, unsent
from sandbox_redis.wire import Failure, ServerError

SLOTS: Final = 16_384
PARTITIONS: Final = 16  # of a store on a cluster, unless it is said otherwise
_UNNAMED: Final = (None, b"", b"?")  # how a node is called that does not know its own name


class Cluster(Several):
    """The nodes of a cluster: which slots each has."""

    partitions = PARTITIONS
    split = True

    def __init__(self, seeds: list[str]) -> None:
        super().__init__(",".join(seeds))
        self._seeds = [Place(seed) for seed in seeds]
        self._nodes = list(self._seeds)
        self._masters: list[Place | None] = [None] * SLOTS
        self._replicas: dict[Place, Place] = {}  # of each master, the one to read from
        self._stale = True
        self._slots: dict[str, int] = {}  # hash tag → slot; a store has few

    def at(self, key: str, *, replica: bool = False) -> Place | None:
        """As `Topology.at`."""
        if self._stale or (replica and time.monotonic() >= self._again):
            return None
        tag = tagged(key)
        slot = self._slots.get(tag)
        if slot is None:
            slot = self._slots[tag] = crc_hqx(tag.encode(), 0) % SLOTS
        master = self._masters[slot]
        return self._replicas.get(master, master) if replica and master is not None else master

    def look(self) -> Looking:
        """As `Topology.look`."""
        nobody = unsent(self.address, "no slot of the cluster is served", "CLUSTERDOWN")
        asked, ranges = yield from self._ask(self._nodes, ("CLUSTER", "SLOTS"), nobody)
        own_name = asked.address.rpartition(":")[0].strip("[]").encode()
        masters: list[Place | None] = [None] * SLOTS
        replicas: dict[Place, list[Place]] = {}
        for first, last, *nodes in ranges:
            # Where a node does not know its own name, it is the one that was asked.
            names = ((own_name if node[0] in _UNNAMED else node[0], node[1]) for node in nodes)
            master, *others = (Place(address(*name)) for name in names)
            masters[first : last + 1] = [master] * (last + 1 - first)
            replicas.setdefault(master, []).extend(Place(other.address, "cluster replica") for other in others)
        self._masters, self.found, self._again = masters, True, math.inf
        chosen = ((master, self._usable(able)) for master, able in replicas.items())
        self._replicas = {master: replica for master, replica in chosen if replica is not None}
        known = [*replicas, *(Place(place.address) for able in replicas.values() for place in able), *self._seeds]
        nodes = list(dict.fromkeys(known))
        random.shuffle(nodes)  # each client asks another one, and each time
        put_last(nodes, asked.address)
        self._nodes, self._stale = nodes, False
        return False

    def heard(self, why: ServerError | Failure) -> None:
        """As `Topology.heard`."""
        text = why.message if isinstance(why, ServerError) else why.reason
        slot = text.partition(" ")[0]
        if why.code == "MOVED" and slot.isdigit() and (there := named(text)):
            self._masters[int(slot)] = Place(there)  # others may not know yet
        elif why.code != "ASK" and why.code in MOVING:
            self._stale = True

    def lost(self, place: Place) -> None:
        """As `Topology.lost`."""
        if place.role == "cluster replica":
            self._replicas = {master: chosen for master, chosen in self._replicas.items() if chosen != place}
            self._shun(place)
        else:
            self._stale = True
            put_last(self._nodes, place.address)  # others know more of it
