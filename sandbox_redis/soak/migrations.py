"""Slots that move from one master of a cluster to another, key by key or at once."""

from __future__ import annotations

from typing import Final

from redis.crc import key_slot

from sandbox_redis.soak.clusters import view
from sandbox_redis.soak.fault import Fault
from sandbox_redis.soak.node import HOST, Node
from sandbox_redis.soak.topology import Deployment, UnsettledError, await_none

_PATIENCE: Final = 20.0  # seconds
_PACE: Final = 10  # keys that are moved at once


class Migration(Fault):
    """The slot of a partition moves to another master key by key, as ``redis-cli --cluster reshard`` does it. When it
    is caused half of the keys have moved: clients are told ASK and TRYAGAIN until it is mended.
    """

    name = "migration"
    topologies = frozenset({"cluster"})
    _source: Node | None = None
    _target: Node | None = None

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where there are several masters."""
        return super().possible(deployment) and deployment.masters > 1

    @property
    def slot(self) -> int:
        """The slot of the partition."""
        return key_slot(f"{{{self.partition}}}".encode())

    def _masters(self) -> list[Node]:
        return [server for server in self.deployment.servers if not view(server)[0].master]

    def cause(self) -> str:
        """Begin it, and move half of the keys."""
        source = self._source = self.master()
        target = self._target = self.chance.choice([each for each in self._masters() if each is not source])
        target.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", view(source)[0].id)
        source.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", view(target)[0].id)
        half = -(-source.ask("CLUSTER", "COUNTKEYSINSLOT", self.slot) // 2)
        moved = self._move(source, target, half)
        return f"moved {moved} keys of slot {self.slot} from {source.address} to {target.address}"

    def _move(self, source: Node, target: Node, most: int | None = None) -> int:
        """Move so many keys, or all; how many there were."""
        moved = 0
        while most is None or moved < most:
            count = _PACE if most is None else min(_PACE, most - moved)
            keys = source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, count)
            if not keys:
                break
            source.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys, timeout=_PATIENCE)
            moved += len(keys)
        return moved

    def mend(self) -> None:
        """Move the other keys, and tell all masters whose slot it is now."""
        if self._source is not None and self._target is not None:
            source, target = self._source, self._target
            self._move(source, target)
            for server in sorted(self._masters(), key=lambda each: (each is not target, each is not source)):
                server.ask("CLUSTER", "SETSLOT", self.slot, "NODE", view(target)[0].id)
        super().mend()


class AtomicMigration(Migration):
    """The slots around that of a partition move to another master at once: CLUSTER MIGRATESLOTS of Valkey 9."""

    name = "atomic-migration"
    _RANGE: Final = 100  # slots

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Where the server has it."""
        if not super().possible(deployment):
            return False
        return deployment.servers[0].ask("COMMAND", "INFO", "CLUSTER|MIGRATESLOTS")[0] is not None

    def cause(self) -> str:
        """Ask for it, and wait until it is done."""
        source = self.master()
        target = self.chance.choice([each for each in self._masters() if each is not source])
        ranges = next(
            (max(first, self.slot - self._RANGE), min(last, self.slot + self._RANGE))
            for first, last in view(source)[0].slots
            if first <= self.slot <= last
        )
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ranges, "NODE", view(target)[0].id)
        await_none(lambda: self._has_not(target), _PATIENCE)
        return f"moved slots {ranges[0]} to {ranges[1]} at once from {source.address} to {target.address}"

    def _has_not(self, target: Node) -> str | None:
        try:
            return None if self.master() is target else f"{target.address} has not got slot {self.slot}"
        except UnsettledError as error:  # for a moment nobody has it
            return str(error)

    def mend(self) -> None:
        """Nothing is to be done: wait until all agree."""
        self.deployment.settled()
