"""The controller: stops and removes sandboxes that agents own, while these watch for their exits, so that Stop really
races with Exit and Remove with Remove. It starts nothing, and knows of the sandboxes only what the store says.
"""

from __future__ import annotations

import random
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Final

from sandbox_redis.demo.part import EVENTS_MAXLEN, SESSION, SHARED_NODE, Part
from sandbox_redis.demo.process import signal_group
from sandbox_redis.demo.truth import TruthLog
from sandbox_redis.errors import NotFoundError
from sandbox_redis.record import Sandbox
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

_PAUSE: Final = 0.12  # seconds on average: of a dozen sandboxes it stops about every third
_DELAYS: Final = (0, 0.0005, 0.001)  # seconds, as long as an owner takes to notice, so that either may come first
_SIGNALS: Final = (signal.SIGTERM, signal.SIGKILL)


def control(store: SandboxStore, log: TruthLog, chance: random.Random) -> None:
    """Stop one running sandbox after the other, until standard input is closed: the demo ends."""
    while not select.select([sys.stdin], [], [], chance.uniform(0, 2 * _PAUSE))[0]:
        if ids := store.ids(states=[State.READY]):
            with suppress(NotFoundError):  # its owner may be faster
                sandbox = store.get(chance.choice(ids))
                if sandbox.status.state is State.READY and sandbox.node != SHARED_NODE:
                    _stop(store, log, chance, sandbox)


def _stop(store: SandboxStore, log: TruthLog, chance: random.Random, sandbox: Sandbox) -> None:
    """End the process and say so, at the moment when its owner notices the exit and says that."""
    session = int(sandbox.metadata.annotations[SESSION])
    signal_group(sandbox.status.pid, session, chance.choice(_SIGNALS))
    time.sleep(chance.choice(_DELAYS))
    with log.asking("stop", sandbox.id) as answered:
        answered(store.stop(sandbox.id))
    if chance.random() < 0.7:  # the others are left to their owners
        time.sleep(chance.choice(_DELAYS))
        with log.asking("remove", sandbox.id) as answered:
            answered(store.remove(sandbox.id))


def _main(part: Part) -> None:
    with (
        TruthLog(part.log, part.name) as log,
        SandboxStore.from_url(prefix=part.prefix, agent=part.name, events_maxlen=EVENTS_MAXLEN) as store,
    ):
        control(store, log, part.chance("control"))


if __name__ == "__main__":
    _main(Part.from_argv())
