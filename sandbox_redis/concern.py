"""How safe a write must be before its call returns: what is sent behind the write, in the same packet, and what the
replies mean. No I/O. Who sends it stands in ``exchange.py``.

WAIT and WAITAOF speak of what was written over their own connection. So a write whose reply was lost cannot be
confirmed any more, though it can be found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sandbox_redis import checks
from sandbox_redis.errors import InvalidArgumentError, StoreUnavailableError
from sandbox_redis.wire import Command, ServerError

REPLICAS_MAX: Final = 1000
_UNKNOWN: Final = "unknown command"
_NO_FILE: Final = "appendonly is disabled"


@dataclass(frozen=True, slots=True)
class WriteConcern:
    """How safe a write must be before its call returns. Without arguments: as safe as the server's reply makes it.

    What is confirmed outlives the loss of a server as long as one that has confirmed it takes over. A write that is not
    confirmed in time stands nevertheless: see `DurabilityError`.
    """

    replicas: int = 0
    """So many replicas must have it, in memory; with `fsync`, on their disks."""
    fsync: bool = False
    """The server must have it in its append-only file, on its disk. It takes Valkey or Redis 7.2."""
    timeout: float = 1.0
    """Seconds to wait for that; less where the call itself must end before."""

    def __post_init__(self) -> None:
        checks.integer("replicas", self.replicas, 0, REPLICAS_MAX)
        if not isinstance(self.fsync, bool):
            raise InvalidArgumentError("fsync", self.fsync, "True or False is needed")
        checks.seconds("timeout", self.timeout)

    def __bool__(self) -> bool:
        """Whether there is anything to wait for."""
        return self.fsync or self.replicas > 0

    def command(self, seconds: float) -> Command:
        """What waits so long, at most, for the writes before it on its connection."""
        milliseconds = max(1, int(seconds * 1000))  # 0 would be for ever
        if self.fsync:
            return ("WAITAOF", 1, self.replicas, milliseconds)
        return ("WAIT", self.replicas, milliseconds)

    def probe(self) -> Command:
        """What finds out, without waiting, whether the server can do it."""
        return ("WAITAOF", 1, 0, 1) if self.fsync else ("WAIT", 0, 1)

    def refusal(self, reply: Any, address: str) -> StoreUnavailableError | None:
        """What the reply to `probe` means for whoever asks for it; None when the server can do it. Other errors are
        left to the write, which meets them as well."""
        if not isinstance(reply, ServerError):
            return None
        name = self.probe()[0]
        if _UNKNOWN in reply.message.lower():
            needed = "Redis 7.2 or Valkey" if self.fsync else "a real server"
            advice = f"use {needed}, or a write concern without {'fsync' if self.fsync else 'replicas'}"
            return StoreUnavailableError(address, "UNSUPPORTED", f"it has no {name}", f"{advice}; nothing was written")
        if _NO_FILE in reply.message:
            reason, advice = "it has no append-only file", "set appendonly yes, or ask for no fsync"
            return StoreUnavailableError(address, "UNSUPPORTED", reason, f"{advice}; nothing was written")
        if reply.code == "NOPERM":
            advice = "log in as another user or change the ACL; nothing was written"
            return StoreUnavailableError(address, "NOPERM", f"its ACL does not permit this user {name}", advice)
        return None

    def judge(self, reply: Any) -> Outcome:
        """How far a write has come, by the reply to `command`."""
        if isinstance(reply, ServerError):
            return Outcome(None, None, done=False, reason=f"{self.probe()[0]}: {reply.message}")
        fsynced, replicas = reply if self.fsync else (None, reply)
        done = replicas >= self.replicas and (fsynced is None or fsynced > 0)
        return Outcome(int(replicas), None if fsynced is None else fsynced > 0, done=done)


class Outcome(NamedTuple):
    """How far a write has come."""

    reached: int | None
    """Replicas that have confirmed it; None when that is not known."""
    fsynced: bool | None
    """Whether it is on the server's disk; None when that was not asked or is not known."""
    done: bool
    reason: str = ""


LOST: Final = Outcome(None, None, done=False, reason="its reply was lost, and another connection cannot ask for it")


def concern(value: Any) -> WriteConcern:
    """A write concern as a caller passes it in."""
    if not isinstance(value, WriteConcern):
        raise InvalidArgumentError("write_concern", value, "a WriteConcern is needed")
    return value
