"""The Redis keys of a store: the only place where a key is put together and where a hash tag's braces are written."""

from __future__ import annotations

import re
import zlib

from sandbox_redis.states import State


class Keys:
    """The keys of the store `prefix` with so many `partitions`, each of which is one hash tag and so one slot."""

    __slots__ = ("laid_out", "partitions", "prefix")

    def __init__(self, prefix: str, partitions: int, *, laid_out: bool = True) -> None:
        self.prefix = prefix
        self.partitions = partitions
        self.laid_out = laid_out
        """Whether the store exists; else its partitions are not decided yet."""

    def partition(self, sandbox_id: str) -> int:
        """The partition that a sandbox belongs to, for good."""
        return zlib.crc32(sandbox_id.encode()) % self.partitions

    def status(self, sandbox_id: str) -> str:
        """Hash: the record of one sandbox."""
        return f"{self.prefix}:{{{self.partition(sandbox_id)}}}:status:{sandbox_id}"

    def status_prefix(self, partition: int) -> str:
        """What the keys of all records of a partition begin with; the id follows."""
        return f"{self.prefix}:{{{partition}}}:status:"

    @staticmethod
    def pattern(start: str) -> str:
        """For SCAN: all keys that begin so, whatever their characters mean in a pattern."""
        return re.sub(r"([*?\[\]\\^])", r"\\\1", start) + "*"

    def state(self, partition: int, state: State | str) -> str:
        """Sorted set, all scores 0: the ids in one state."""
        return f"{self.prefix}:{{{partition}}}:state:{state}"

    def node(self, partition: int, node: str) -> str:
        """Sorted set, all scores 0: the ids on one node."""
        return f"{self.prefix}:{{{partition}}}:node:{node}"

    def nodes(self, partition: int) -> str:
        """Sorted set: the nodes that have sandboxes; their scores are how many."""
        return f"{self.prefix}:{{{partition}}}:nodes"

    def events(self, partition: int) -> str:
        """Stream: every change in a partition, in order."""
        return f"{self.prefix}:{{{partition}}}:events"

    def states(self, partition: int) -> tuple[str, ...]:
        """The indexes of the four states."""
        return tuple(self.state(partition, state) for state in State)

    def change(self, sandbox_id: str) -> tuple[str, ...]:
        """What one change of a sandbox may write: record, events, the indexes of the four states, and the nodes."""
        partition = self.partition(sandbox_id)
        head = f"{self.prefix}:{{{partition}}}:"
        return (
            f"{head}status:{sandbox_id}",
            f"{head}events",
            f"{head}state:INIT",
            f"{head}state:READY",
            f"{head}state:NOTREADY",
            f"{head}state:UNKNOWN",
            f"{head}nodes",
        )


def meta(prefix: str) -> str:
    """Hash: how the store is laid out; read before its partitions are known."""
    return f"{prefix}:meta"
