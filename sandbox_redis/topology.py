"""Where the servers of a store are: one server, a master that Sentinels know, or the nodes of a cluster. It is told
what goes wrong, and says whom to ask where they are now. No I/O and no redis; the lanes ask.
"""

from __future__ import annotations

import random
from binascii import crc_hqx
from collections.abc import Generator
from typing import Any, Final, NamedTuple, Protocol

from sandbox_redis.wire import TRANSIENT, Command, Failure, ServerError, Unsent

SLOTS: Final = 16_384
PARTITIONS: Final = 16  # of a store on a cluster, unless it is said otherwise
_MOVING: Final = TRANSIENT | {"READONLY"}  # where another server becomes the master


class Place(NamedTuple):
    """A server, and what it is taken for."""

    address: str
    """``host:port``, or what stands for it in messages."""
    role: str = ""
    """``master`` or ``replica`` where that must be so; ``cluster replica`` for one that must be told to answer;
    ``sentinel``."""


class Ask(NamedTuple):
    """Ask one server where the others are."""

    place: Place
    command: Command


Looking = Generator[Ask, Any, None]
"""Gets the reply to each `Ask`, or its `Failure`."""


class Topology(Protocol):
    """What a lane knows of the servers."""

    address: str
    """For messages; without credentials."""
    partitions: int
    """Of a store that is new."""
    passing: frozenset[str]
    """What the servers may say, and may not say any more after a while."""
    split: bool
    """Whether one store is on several servers."""
    replicas: bool
    """Whether there can be any to read from."""
    found: bool
    """Whether the servers have been found once; until then, where nobody listens there is no use in waiting."""

    def at(self, key: str, *, replica: bool = False) -> Place | None:
        """The server that holds a key; None when that has to be looked for."""

    def look(self) -> Looking:
        """Find out where the servers are. Raises `Unsent` when nobody knows."""

    def heard(self, why: ServerError | Failure) -> None:
        """Something went wrong, which may tell where the servers are now."""

    def lost(self, place: Place) -> None:
        """A connection to that server failed."""


class Single:
    """One server, whatever it says."""

    partitions = 1
    passing = TRANSIENT
    split = False
    replicas = False
    found = False

    def __init__(self, address: str) -> None:
        self.address = address
        self._place = Place(address)

    def at(self, key: str, *, replica: bool = False) -> Place | None:
        """As `Topology.at`."""
        return self._place

    def look(self) -> Looking:
        """As `Topology.look`: there is nothing to look for."""
        yield from ()

    def heard(self, why: ServerError | Failure) -> None:
        """As `Topology.heard`."""

    def lost(self, place: Place) -> None:
        """As `Topology.lost`."""


class _Several:
    """What Sentinels and clusters have in common: some servers that can be asked, in turn."""

    passing = _MOVING
    replicas = True

    def __init__(self, address: str) -> None:
        self.address = address
        self.found = False

    def _ask(self, places: list[Place], command: Command) -> Generator[Ask, Any, tuple[Place, Any]]:
        """The first answer to a question. Who does not answer is asked last the next time."""
        failures: list[Failure] = []
        for place in tuple(places):
            reply = yield Ask(place, command)
            if isinstance(reply, ServerError):
                reply = Unsent(place.address, reply.message, reply.code)
                reply.hopeless = reply.code not in TRANSIENT
            if not isinstance(reply, Failure):
                return place, reply
            failures.append(reply)
            _put_last(places, place.address)
        said = next((failure for failure in failures if failure.code != "UNREACHABLE"), failures[0])
        unsent = Unsent(said.address, said.reason, said.code)
        unsent.hopeless = not self.found and all(getattr(failure, "hopeless", False) for failure in failures)
        raise unsent


class Sentinels(_Several):
    """The master of a service, and its replicas, as Sentinels know them."""

    partitions = 1
    split = False

    def __init__(self, service: str, sentinels: list[str]) -> None:
        super().__init__(f"{service} of the sentinels {','.join(sentinels)}")
        self.service = service
        self._sentinels = [Place(address, "sentinel") for address in sentinels]
        self._master: Place | None = None
        self._replica: Place | None = None

    def at(self, key: str, *, replica: bool = False) -> Place | None:
        """As `Topology.at`."""
        return self._replica if replica else self._master

    def look(self) -> Looking:
        """As `Topology.look`."""
        _, master = yield from self._ask(self._sentinels, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service))
        if not master:
            unknown = Unsent(self.address, "they know no such service", "UNREACHABLE")
            unknown.hopeless = not self.found
            raise unknown
        self.found = True
        self._master = self._replica = Place(_address(*master), "master")
        _, replicas = yield from self._ask(self._sentinels, ("SENTINEL", "REPLICAS", self.service))
        able = [
            Place(_address(said[b"ip"], said[b"port"]), "replica")
            for said in (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in replicas)
            if not {b"s_down", b"o_down", b"disconnected"} & set(said[b"flags"].split(b","))
            and said.get(b"master-link-status") == b"ok"
        ]
        if able:
            self._replica = random.choice(able)

    def heard(self, why: ServerError | Failure) -> None:
        """As `Topology.heard`."""
        if why.code in _MOVING:
            self._master = self._replica = None

    def lost(self, place: Place) -> None:
        """As `Topology.lost`."""
        if place.role != "sentinel":
            self._master = self._replica = None


class Cluster(_Several):
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
        if self._stale:
            return None
        tag = key[key.find("{") + 1 : key.find("}")] if "{" in key else key
        slot = self._slots.get(tag)
        if slot is None:
            slot = self._slots[tag] = crc_hqx(tag.encode(), 0) % SLOTS
        master = self._masters[slot]
        return self._replicas.get(master, master) if replica and master is not None else master

    def look(self) -> Looking:
        """As `Topology.look`."""
        asked, ranges = yield from self._ask(self._nodes, ("CLUSTER", "SLOTS"))
        masters: list[Place | None] = [None] * SLOTS
        replicas: dict[Place, list[Place]] = {}
        for first, last, *nodes in ranges:
            # Where a node does not know its own name, it is the one that was asked.
            master, *others = (
                Place(_address(node[0] or asked.address.rpartition(":")[0].encode(), node[1])) for node in nodes
            )
            masters[first : last + 1] = [master] * (last + 1 - first)
            replicas.setdefault(master, []).extend(Place(other.address, "cluster replica") for other in others)
        if not any(masters):
            raise Unsent(asked.address, "no slot of the cluster is served", "CLUSTERDOWN")
        self._masters, self.found = masters, True
        self._replicas = {master: random.choice(able) for master, able in replicas.items() if able}
        known = dict.fromkeys([*replicas, *(Place(place.address) for able in replicas.values() for place in able)])
        self._nodes = [*known, *(seed for seed in self._seeds if seed not in known)]
        self._stale = False

    def heard(self, why: ServerError | Failure) -> None:
        """As `Topology.heard`."""
        text = why.message if isinstance(why, ServerError) else why.reason
        slot, _, address = text.partition(" ")
        if why.code == "MOVED" and slot.isdigit() and not address.startswith((":", "?")):
            self._masters[int(slot)] = Place(address)  # others may not know yet
        elif why.code != "ASK" and why.code in _MOVING:
            self._stale = True

    def lost(self, place: Place) -> None:
        """As `Topology.lost`."""
        self._stale = True
        _put_last(self._nodes, place.address)  # others know more of it


def _put_last(places: list[Place], address: str) -> None:
    places[:] = sorted(places, key=lambda place: place.address == address)  # at once: other threads read it


def _address(host: bytes, port: bytes | int) -> str:
    return f"{host.decode()}:{int(port)}"


def asking(commands: tuple[Command, ...]) -> tuple[tuple[Command, ...], list[int]]:
    """Commands as they must be sent to the server that an ASK has named, and which of the replies are theirs. A MULTI
    that is asked for counts for all that is in it."""
    sent: list[Command] = []
    theirs: list[int] = []
    inside = False
    for command in commands:
        if not inside:
            sent.append(("ASKING",))
        theirs.append(len(sent))
        sent.append(command)
        inside = command[0] == "MULTI" or (inside and command[0] != "EXEC")
    return tuple(sent), theirs
