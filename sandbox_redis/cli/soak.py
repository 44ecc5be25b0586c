"""``sandbox-redis soak``: its servers, what is seen while it runs, and its end. What happens in it stands in
``sandbox_redis.soak``.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sandbox_redis.cli.signals import noted_signals
from sandbox_redis.cli.statuses import SIGNALLED
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.soak.deployment import Clusters, Sentinels, Standalone
from sandbox_redis.soak.figures import Figures
from sandbox_redis.soak.round import Plan
from sandbox_redis.soak.run import run as run_soak
from sandbox_redis.soak.topology import Deployment

_TOPOLOGIES: Final = ("standalone", "sentinel", "cluster")
_PERIOD: Final = 10.0  # seconds between two lines of progress where they cannot be written over
_TOLD: Final = 20  # violations; the figures as JSON have more


def soak(
    url: str | None,
    seconds: float,
    topology: str,
    binary: str | None,
    replicas: int | None,
    agents: int,
    seed: int | None,
    *,
    as_json: bool,
) -> int:
    """Run a soak, and print its figures.

    Args:
        url: of the server to use, under prefixes of its own, and without breaking it; a deployment is started when
            None.
        seconds: how long; starting and checking take about a tenth more.
        topology: of the deployment: ``standalone``, ``sentinel`` or ``cluster``.
        binary: the server to start; see `find_server`.
        replicas: how many replicas each write waits for; the store is not told when None.
        agents: how many.
        seed: of what is random; by chance when None.
        as_json: print the figures as JSON.

    Returns:
        The exit status: 0; 1 if anything was not as it must be; 128 + n if the signal n ended it early and all was
        well.

    Raises:
        InvalidArgumentError: an argument breaks its rule.
        SandboxError: there is no server to run, or it is not available.
    """
    if topology not in _TOPOLOGIES:
        raise InvalidArgumentError("--topology", topology, f"one of {', '.join(_TOPOLOGIES)} is needed")
    if not seconds > 0:
        raise InvalidArgumentError("--seconds", seconds, "a positive number is needed")
    seed = secrets.randbelow(10**6) if seed is None else seed
    plan = Plan(seconds=seconds, seed=seed, agents=agents, write_concern=replicas)
    with noted_signals() as received, _progress() as progress:

        def say(text: str) -> None:
            progress("")
            sys.stderr.write(f"{text}\n")

        def run(url: str, deployment: Deployment | None) -> Figures:
            say(f"{deployment.topology if deployment else 'a server that is not broken'} at {url}, seed {seed}")
            return run_soak(plan, url, deployment, say=say, progress=progress, stopped=received)

        if url is None:
            with _deployment(topology, binary, replicas or 0) as deployment:
                figures = run(deployment.url, deployment)
        else:
            figures = run(url, None)
        interrupted = received()
    _conclude(figures, as_json=as_json)
    return 1 if figures.failed else SIGNALLED + interrupted if interrupted else 0


def _deployment(topology: str, binary: str | None, replicas: int) -> Deployment:
    """What is started and broken: with as many replicas as writes wait for, and one more that may be down."""
    match topology:
        case "sentinel":
            return Sentinels(binary, replicas=max(2, replicas + 1))
        case "cluster":
            return Clusters(binary, replicas=3 * max(1, replicas + 1 if replicas else 1))
    return Standalone(binary, replicas=replicas + 1 if replicas else 0)


def _conclude(figures: Figures, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures.to_json(), indent=2))
        return
    for line in figures.lines():
        print(line)
    for violation in figures.violations[:_TOLD]:
        print(violation)
    for problem in figures.problems[:_TOLD]:
        print(f"problem: {problem}")
    wrong = figures.violations_found + len(figures.problems)
    print(f"{wrong:,} violations" if wrong else "no violation: all that anybody was told was possible")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows how far it is: in one line on a terminal, else with a line every now and then. Nothing clears it."""
    shown = -_PERIOD
    width = 0

    def show(text: str) -> None:
        nonlocal shown, width
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text:{width}}\r" if not text else f"\r{text:{width}}")
            width = len(text)
        elif text and time.monotonic() - shown >= _PERIOD:
            shown = time.monotonic()
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    try:
        yield show
    finally:
        show("")
