"""Where the servers of a store are: one server, a master that Sentinels know, or the nodes of a cluster. It is told
what goes wrong, and says whom to ask where they are now. No I/O and no redis; the lanes ask.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Generator
from typing import Any, Final, NamedTuple, Protocol

from sandbox_redis.wire import TRANSIENT, Command, Failure, ServerError, Unsent

SHUNNED: Final = 5.0  # seconds that nothing is read from a replica that did not answer
MOVING: Final = TRANSIENT | {"READONLY"}  # where another server becomes the master


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
    passing = TRANSIENT - {"MOVED", "ASK"}
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


class Several:
    """What Sentinels and clusters have in common: some servers that can be asked, in turn."""

    passing = MOVING
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
            put_last(places, place.address)
            if isinstance(reply, ServerError):
                said = reply = unsent(place.address, reply.message, reply.code, hopeless=reply.code not in TRANSIENT)
            elif not isinstance(reply, Failure):
                if reply or empty is None:
                    return place, reply
                said = reply = empty
            failures.append(reply)
        said = said or next((failure for failure in failures if failure.code != "UNREACHABLE"), failures[0])
        hopeless = not self.found and all(getattr(failure, "hopeless", False) for failure in failures)
        raise unsent(said.address, said.reason, said.code, hopeless=hopeless)

    def _usable(self, replicas: list[Place]) -> Place | None:
        """One of them to read from."""
        now = time.monotonic()
        able = [replica for replica in replicas if self._shunned.get(replica, now) <= now]
        return random.choice(able) if able else None

    def _shun(self, replica: Place) -> None:
        """It did not answer: for a while there are others to read from, the master at least."""
        self._shunned[replica] = self._again = time.monotonic() + SHUNNED


def put_last(places: list[Place], address: str) -> None:
    """Ask that server last the next time."""
    places[:] = sorted(places, key=lambda place: place.address == address)  # at once: other threads read it


def unsent(address: str, reason: str, code: str, *, hopeless: bool = False) -> Unsent:
    """An `Unsent` that may be `hopeless`."""
    failure = Unsent(address, reason, code)
    failure.hopeless = hopeless
    return failure


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
