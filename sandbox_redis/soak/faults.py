"""What can happen to the servers of a deployment: one fault at a time, chosen by a seed. What can happen to a
connection alone is in ``proxy.py``.
"""

from __future__ import annotations

import random
from collections.abc import Container
from typing import Final

from sandbox_redis.soak.failovers import CoordinatedFailover, Failover, LoseMaster
from sandbox_redis.soak.fault import Fault
from sandbox_redis.soak.losses import Empty, Freeze, FreezeReplica, Kill, KillReplica, KillSentinel
from sandbox_redis.soak.migrations import AtomicMigration, Migration
from sandbox_redis.soak.refusals import CutClients, DiskFull, ForgetScripts, OutOfMemory, PauseWrites
from sandbox_redis.soak.topology import Deployment

FAULTS: Final[tuple[type[Fault], ...]] = (
    Kill,
    KillReplica,
    KillSentinel,
    Freeze,
    FreezeReplica,
    Empty,
    ForgetScripts,
    CutClients,
    PauseWrites,
    OutOfMemory,
    DiskFull,
    Failover,
    CoordinatedFailover,
    LoseMaster,
    Migration,
    AtomicMigration,
)
"""All that can happen."""


def possible(deployment: Deployment, *, lossless: bool = False, without: Container[str] = ()) -> list[type[Fault]]:
    """What can happen to this deployment.

    Args:
        deployment: it must run.
        lossless: leave out what may lose writes that a server has confirmed.
        without: leave out what has these names.
    """
    return [
        fault
        for fault in FAULTS
        if fault.name not in without and fault.possible(deployment) and not (lossless and fault.may_lose(deployment))
    ]


def draw(
    deployment: Deployment,
    chance: random.Random,
    *,
    partitions: int = 16,
    lossless: bool = False,
    without: Container[str] = (),
) -> Fault:
    """What happens next, each possible fault as likely as the other; see `possible` and `Fault` for the arguments."""
    faults = possible(deployment, lossless=lossless, without=without)
    return chance.choice(faults)(deployment, chance, partitions=partitions)
