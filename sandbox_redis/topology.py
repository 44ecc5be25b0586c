"""Where the servers of a store are: one server, a master that Sentinels know, or the nodes of a cluster. It is told
what goes wrong, and says whom to ask where they are now. No I/O and no redis; the lanes ask.
"""

from __future__ import annotations

import math
import random
import time
from binascii import crc_hqx
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from sandbox_redis.wire import TRANSIENT, Command, Failure, ServerError, Unsent

SLOTS: Final = 16_384
PARTITIONS: Final = 16  # of a store on a cluster, unless it is said otherwise
SHUNNED: Final = 5.0  # seconds that nothing is read from a replica that did not answer
CHECKED: Final = 1.0  # seconds; a Sentinel is asked no sooner again whether the master is still the same
MUTE: Final = 60.0  # seconds that a Sentinel which did not answer is not asked that
_MOVING: Final = TRANSIENT | {"READONLY"}  # where another server becomes the master
_UNNAMED: Final = (None, b"", b"?")  # how a node is called that does not know its own name


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


Looking = Generator[Ask, Any, bool]
"""Gets the reply to each `Ask`, or its `Failure`. Gives whether another server is the master than the one that was
known, which has not failed.
"""


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
        return False

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
        self._shunned: dict[Place, float] = {}  # replica → until when
        self._again = math.inf  # when replicas are to be looked for again

    def _ask(self, places: list[Place], command: Command, empty: Unsent | None = None) -> Generator[Ask, Any, Any]:
        """Who has given the first answer to a question, and the answer; `empty` says what it means when that is none.
        Whoever was asked is asked last the next time: an answer may be wrong as well.
        """
        failures: list[Failure] = []
        said: Failure | None = None
        for place in tuple(places):
            reply = yield Ask(place, command)
            _put_last(places, place.address)
            if isinstance(reply, ServerError):
                said = reply = _unsent(place.address, reply.message, reply.code, hopeless=reply.code not in TRANSIENT)
            elif not isinstance(reply, Failure):
                if reply or empty is None:
                    return place, reply
                said = reply = empty
            failures.append(reply)
        said = said or next((failure for failure in failures if failure.code != "UNREACHABLE"), failures[0])
        hopeless = not self.found and all(getattr(failure, "hopeless", False) for failure in failures)
        raise _unsent(said.address, said.reason, said.code, hopeless=hopeless)

    def _usable(self, replicas: list[Place]) -> Place | None:
        """One of them to read from."""
        now = time.monotonic()
        able = [replica for replica in replicas if self._shunned.get(replica, now) <= now]
        return random.choice(able) if able else None

    def _shun(self, replica: Place) -> None:
        """It did not answer: for a while there are others to read from, the master at least."""
        self._shunned[replica] = self._again = time.monotonic() + SHUNNED


class Sentinels(_Several):
    """The master of a service, and its replicas, as Sentinels know them.

    A master that was frozen, cut off or restarted may go on as a second one for seconds after another was elected, and
    what it is told then is lost. So a Sentinel is asked every now and then.
    """

    partitions = 1
    split = False

    def __init__(self, service: str, sentinels: list[str]) -> None:
        super().__init__(f"{service} of the sentinels {','.join(sentinels)}")
        self.service = service
        self._sentinels = [Place(sentinel, "sentinel") for sentinel in sentinels]
        self._master: Place | None = None
        self._replica: Place | None = None
        self._check = math.inf  # when a Sentinel is to be asked again

    def at(self, key: str, *, replica: bool = False) -> Place | None:
        """As `Topology.at`."""
        now = time.monotonic()
        if now >= self._check:
            return None
        if not replica:
            return self._master
        return self._replica if now < self._again else None

    def look(self) -> Looking:
        """As `Topology.look`."""
        now = time.monotonic()
        known, self._check = self._master, now + CHECKED
        if known is not None and now < self._again:
            return (yield from self._compare(known))
        yield from self._find()
        return False

    def _compare(self, known: Place) -> Generator[Ask, Any, bool]:
        """Ask one Sentinel whether the master is still this one, and if not, the others: most of them must name
        another, since one alone may be cut off, with the master or without it. No answer changes nothing."""
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        votes: dict[str, int] = {}
        sentinels = [self._usable(self._sentinels)]
        for sentinel in sentinels:
            if sentinel is None:
                break
            reply = yield Ask(sentinel, question)
            if isinstance(reply, Failure):
                self._shunned[sentinel] = time.monotonic() + MUTE
            elif reply and not isinstance(reply, ServerError):
                named = address(*reply)
                votes[named] = votes.get(named, 0) + 1
                if named == known.address:
                    break
                if len(sentinels) == 1:
                    sentinels += [each for each in self._sentinels if each is not sentinel]
                if votes[named] > len(self._sentinels) / 2:
                    if self._master is known:  # nobody has found out meanwhile
                        self._master = self._replica = Place(named, "master")
                        self._again = time.monotonic()  # its replicas are others
                    return True
        return False

    def _find(self) -> Generator[Ask, Any, None]:
        """Ask for the master and the replicas."""
        unknown = _unsent(self.address, f"they know no service {self.service!r}", "UNREACHABLE", hopeless=True)
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        _, master = yield from self._ask(self._sentinels, question, unknown)
        self._master = self._replica = Place(address(*master), "master")
        self.found, self._again = True, math.inf
        with suppress(Failure):  # reading from the master will do
            _, replicas = yield from self._ask(self._sentinels, ("SENTINEL", "REPLICAS", self.service))
            able = [
                Place(address(said[b"ip"], said[b"port"]), "replica")
                for said in (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in replicas)
                if not {b"s_down", b"o_down", b"disconnected"} & set(said[b"flags"].split(b","))
                and said.get(b"master-link-status") == b"ok"
            ]
            self._replica = self._usable(able) or self._master

    def heard(self, why: ServerError | Failure) -> None:
        """As `Topology.heard`."""
        if why.code in _MOVING:
            self._master = self._replica = None

    def lost(self, place: Place) -> None:
        """As `Topology.lost`."""
        if place.role == "replica":
            self._replica = self._master
            self._shun(place)
        elif place.role != "sentinel":
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
        nobody = _unsent(self.address, "no slot of the cluster is served", "CLUSTERDOWN")
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
        _put_last(nodes, asked.address)
        self._nodes, self._stale = nodes, False
        return False

    def heard(self, why: ServerError | Failure) -> None:
        """As `Topology.heard`."""
        text = why.message if isinstance(why, ServerError) else why.reason
        slot = text.partition(" ")[0]
        if why.code == "MOVED" and slot.isdigit() and (there := named(text)):
            self._masters[int(slot)] = Place(there)  # others may not know yet
        elif why.code != "ASK" and why.code in _MOVING:
            self._stale = True

    def lost(self, place: Place) -> None:
        """As `Topology.lost`."""
        if place.role == "cluster replica":
            self._replicas = {master: chosen for master, chosen in self._replicas.items() if chosen != place}
            self._shun(place)
        else:
            self._stale = True
            _put_last(self._nodes, place.address)  # others know more of it


def _put_last(places: list[Place], address: str) -> None:
    places[:] = sorted(places, key=lambda place: place.address == address)  # at once: other threads read it


def _unsent(address: str, reason: str, code: str, *, hopeless: bool = False) -> Unsent:
    unsent = Unsent(address, reason, code)
    unsent.hopeless = hopeless
    return unsent


def address(host: bytes | str, port: bytes | str | int) -> str:
    """Host and port as one word, that of IPv6 in brackets."""
    name = (host.decode() if isinstance(host, bytes) else host).strip("[]")
    return f"[{name}]:{int(port)}" if ":" in name else f"{name}:{int(port)}"


def named(there: str) -> str:
    """The address that a MOVED or an ASK gives; empty where the server does not know how the other one is called."""
    host, _, port = there.rpartition(" ")[2].rpartition(":")
    return "" if host in ("", "?") or not port.isdigit() else address(host, port)


def tagged(key: str) -> str:
    """What of a key decides about its slot: what stands in its first braces, if that is anything; else all of it."""
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    return tag if brace and end and tag else key


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
