"""Where the master of a service is, and its replicas, as Sentinels know them. No I/O; what is the same for a cluster
stands in ``topology.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final

from sandbox_redis.topology import MOVING, Ask, Looking, Place, Several, address, unsent
from sandbox_redis.wire import Failure, ServerError

CHECKED: Final = 1.0  # seconds; a Sentinel is asked no sooner again whether the master is still the same
MUTE: Final = 60.0  # seconds that a Sentinel which did not answer is not asked that


class Sentinels(Several):
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
        unknown = unsent(self.address, f"they know no service {self.service!r}", "UNREACHABLE", hopeless=True)
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
        if why.code in MOVING:
            self._master = self._replica = None

    def lost(self, place: Place) -> None:
        """As `Topology.lost`."""
        if place.role == "replica":
            self._replica = self._master
            self._shun(place)
        elif place.role != "sentinel":
            self._master = self._replica = None
