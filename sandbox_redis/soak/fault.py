"""What a fault is, for all that ``faults.py`` names. Nothing happens here."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from sandbox_redis.soak.node import Node
from sandbox_redis.soak.topology import Deployment

ALL: Final = frozenset({"standalone", "sentinel", "cluster"})
"""The topologies."""


class Fault(ABC):
    """One thing that happens to a deployment: `cause` it, wait as long as it is to last, and `mend` it."""

    name: ClassVar[str]
    topologies: ClassVar[frozenset[str]] = ALL
    """Where it can happen, as far as that does not depend on the number of servers, see `possible`."""

    def __init__(self, deployment: Deployment, chance: random.Random, *, partitions: int = 16) -> None:
        """Prepare it.

        Args:
            deployment: what it happens to.
            chance: what decides about the rest.
            partitions: how many the store has; in a cluster, it happens to the server of one of them.
        """
        self.deployment = deployment
        self.chance = chance
        self.partition = chance.randrange(partitions)

    @classmethod
    def possible(cls, deployment: Deployment) -> bool:
        """Whether it can happen to this deployment, which runs."""
        return deployment.topology in cls.topologies

    @classmethod
    def may_lose(cls, deployment: Deployment) -> bool:
        """Whether writes that a server has acknowledged can be gone afterwards."""
        return False

    @classmethod
    def may_lose_confirmed(cls, deployment: Deployment) -> bool:
        """Whether those can be gone that a replica had confirmed as well."""
        return cls.may_lose(deployment)

    @abstractmethod
    def cause(self) -> str:
        """Let it happen; what happened, as a sentence.

        Raises:
            UnsettledError: there is no such server now, or what must follow did not.
            redis.RedisError: a server refused, or did not answer.
            ServerStartError: a server did not start again.
        """

    def mend(self) -> None:
        """Undo it, and wait until the deployment is healthy; also when it was caused in part only.

        Raises:
            UnsettledError: the deployment is not healthy.
            redis.RedisError: a server refused, or did not answer.
            ServerStartError: a server did not start again.
        """
        self.deployment.settled()

    def master(self) -> Node:
        """The server that takes the writes of the partition."""
        return self.deployment.master_of(self.partition)


def replicated(deployment: Deployment) -> bool:
    """Whether each master has a replica."""
    return len(deployment.servers) >= 2 * deployment.masters


def fails_over(deployment: Deployment) -> bool:
    """Whether a replica takes over without being told."""
    enough = deployment.topology == "sentinel" or (deployment.topology == "cluster" and deployment.masters >= 3)
    return enough and replicated(deployment)
