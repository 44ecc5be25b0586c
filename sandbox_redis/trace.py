"""How one write is found again, when its reply was lost, and how it is confirmed. No I/O."""

from __future__ import annotations

import secrets
from typing import Any

from sandbox_redis.concern import LOST, WriteConcern
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import DurabilityError, OutcomeUnknownError
from sandbox_redis.wire import Command, Lease, Lost, Send


def token() -> str:
    """A request token: 96 random bits, so that no two writes ever share one."""
    return secrets.token_hex(12)


class Trace:
    """How to find one write again: its token, and an event from before it was sent."""

    __slots__ = ("_outcome", "concern", "fenced", "fences", "floor", "id", "keys", "maxlen", "partition", "request")

    def __init__(
        self,
        id: str,
        partition: int,
        keys: tuple[str, str],
        request: str,
        floor: str,
        maxlen: int,
        concern: WriteConcern,
    ) -> None:
        self.id = id
        self.partition = partition
        self.keys = keys
        self.request = request
        self.floor = floor
        self.maxlen = maxlen
        self.concern = concern
        self.fences: tuple[Command, ...] = ()
        self.fenced = True  # whether nothing is under way any more on each connection that it was lost with
        self._outcome = LOST

    def lost(self, failure: Lost) -> OutcomeUnknownError:
        """Its reply was lost: note the connection, and give the error for when it cannot be found any more."""
        if failure.fence and failure.fence not in self.fences:
            self.fences += (failure.fence,)
        self.fenced &= failure.fence is not None
        return self.unknown(failure.reason)

    def packet(
        self, commands: tuple[Command, ...], deadline: Deadline, lease: Lease = Lease.ANY, *, at: str = ""
    ) -> Send:
        """The packet that makes the write, and waits for what its concern asks."""
        if not self.concern:
            return Send(self.keys[0], commands, deadline.share(), lease, at=at)
        wait, timeout = deadline.confirming(self.concern.timeout)
        alone = Lease.ALONE if lease is Lease.ANY else lease
        # Its key is that of the events: in a batch, those of one partition become one packet.
        return Send(self.keys[1], (*commands, self.concern.command(wait)), timeout, alone, tail=1, at=at)

    def confirm(self, replies: list[Any]) -> None:
        """The write was made by this packet, and this came behind its own replies. Where an earlier one may have been
        quicker, on a connection that nobody could close, nothing is known."""
        if replies and self.fenced:
            self._outcome = self.concern.judge(replies[0])

    def check(self, sandbox: Any) -> None:
        """The write was made; raises `DurabilityError` when it was not confirmed."""
        if self.concern and not self._outcome.done:
            reached, fsynced, _, reason = self._outcome
            wanted = self.concern.replicas
            raise DurabilityError(self.id, self.request, sandbox, reached, wanted, fsynced=fsynced, reason=reason)

    def unknown(self, reason: str) -> OutcomeUnknownError:
        """The error for when it cannot be found any more."""
        return OutcomeUnknownError(self.id, self.request, reason)
