"""A soak: rounds of a minute or two, each in a store of its own, so that it can go on for hours. What happens in one
stands in ``round.py``.
"""

from __future__ import annotations

import itertools
import random
import secrets
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from sandbox_redis.soak.figures import Figures
from sandbox_redis.soak.proxy import Proxy
from sandbox_redis.soak.round import Plan, Round, Scene
from sandbox_redis.soak.topology import Deployment

ROUND: Final = 120.0  # seconds; everything of a round is in memory, about 2 MB for each second
_PARTITIONS: Final = {"cluster": 16}


def run(
    plan: Plan,
    url: str,
    deployment: Deployment | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
    stopped: Callable[[], object] = lambda: False,
) -> Figures:
    """Run a soak against a server that is there, or against a deployment that it breaks. It ends early when a round
    finds anything.

    Args:
        plan: what is to be run.
        url: of the store.
        deployment: whose faults are caused; without it only agents are killed.
        say: gets each notable thing, as a sentence.
        progress: gets the state of affairs, all the time.
        stopped: true when it was asked to end early.

    Raises:
        SandboxError: there is no store.
        RuntimeError: a process did not begin.
    """
    partitions = _PARTITIONS.get(deployment.topology, 4) if deployment else 4
    # Clients of several servers are told the servers' own addresses.
    single = deployment is not None and deployment.topology == "standalone"
    with Proxy(deployment.servers[0], record=False) if deployment and single else nullcontext() as line:
        scene = Scene(
            plan=plan,
            url=url,
            partitions=partitions,
            deployment=deployment,
            line=line,
            say=say,
            progress=progress,
            stopped=stopped,
        )
        chance = random.Random(plan.seed)
        left = plan.seconds
        for number in itertools.count(1):
            if left <= 0 or stopped() or scene.figures.failed:
                break
            with tempfile.TemporaryDirectory(prefix="sandbox-soak-") as folder:
                # What is left for a short last round is added to this one.
                seconds = left if left < 1.5 * ROUND else ROUND
                prefix = f"sandbox-soak-{secrets.token_hex(4)}"
                Round(scene, prefix, Path(folder), random.Random(chance.getrandbits(64)), seconds, number).run()
            left -= seconds
    return scene.figures
