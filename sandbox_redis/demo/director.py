"""The director: starts the processes, kills one of them in the middle, ends them, and has everything checked. It
writes to the store only the shared sandboxes, and takes part in no race.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandbox_redis.demo.cast import Actor, Cast
from sandbox_redis.demo.check import Check, Findings, check
from sandbox_redis.demo.fleet import Fleet
from sandbox_redis.demo.inside import Follower
from sandbox_redis.demo.part import SHARED_NODE
from sandbox_redis.demo.screen import Screen
from sandbox_redis.demo.truth import TruthLog
from sandbox_redis.record import Metadata
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

DIRECTOR: Final = "demo"  # its name as a writer
_SHARED: Final = 2  # sandboxes that all agents update; few, so that they meet
_FRAME: Final = 0.1  # seconds between two looks at the fleet
_PATIENCE: Final = 30.0  # seconds until all processes must have started and written, on the slowest machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What is to be played."""

    agents: int
    sandboxes: int
    """How many run at a time, on all nodes."""
    seconds: float
    seed: int

    def slots(self, agent: int) -> int:
        """How many of the sandboxes run on the node of one agent, counted from 0."""
        return self.sandboxes // self.agents + (agent < self.sandboxes % self.agents)


@dataclass(slots=True)
class Director:
    """Plays one demo."""

    store: SandboxStore
    url: str
    prefix: str
    """Of the store; nobody else uses it."""
    script: Script
    folder: Path
    screen: Screen
    stopped: Callable[[], object]
    """True when it was asked to end early."""
    problems: list[str] = field(default_factory=list)
    """What went wrong with the processes."""
    _shared: tuple[str, ...] = ()
    _fleet: Fleet = field(default_factory=Fleet)
    _start: float = 0.0
    """When the clock started; 0 before."""

    def play(self) -> Findings:
        """Play it to the end, and check it."""
        with Cast(self.folder, self.url, self.prefix, self.script.seed) as cast:
            self._create_shared(cast)
            with self.screen.live():
                self._run(cast)
                self.problems += cast.end()
            left = cast.end_leftovers()
            findings = check(
                self.store.audit(),
                cast.entries(),
                shared=self._shared,
                killed=[actor.name for actor in cast.actors if actor.killed],
            )
        findings.checks.append(Check("no process of a sandbox is left", left))
        findings.checks.append(Check("every process of the demo started, worked and ended as it had to", self.problems))
        return findings

    def _create_shared(self, cast: Cast) -> None:
        with TruthLog(cast.log(DIRECTOR), DIRECTOR) as log:
            for number in range(_SHARED):
                sandbox_id = f"shared-{number}"
                with log.asking("create", sandbox_id) as answered:
                    metadata = Metadata(name=sandbox_id, namespace="demo", labels={"app": "demo"})
                    answered(self.store.create(sandbox_id=sandbox_id, node=SHARED_NODE, metadata=metadata))
                with log.asking("start", sandbox_id) as answered:
                    answered(self.store.start(sandbox_id, pid=0))
                self._shared += (sandbox_id,)

    def _run(self, cast: Cast) -> None:
        """From the start of the first process to the end of the time; the clock starts when all agents have written."""
        agents = [self._start_agent(cast, number) for number in range(self.script.agents)]
        cast.start("sandbox_redis.demo.controller", "controller")
        names = {agent.name for agent in agents}
        follower = Follower(self.store)
        if not self._watch(cast, follower, lambda: names <= self._fleet.writers):
            return
        self._start = time.monotonic()
        for scene_ends in (
            lambda: self._seconds >= self.script.seconds / 2,
            lambda: self._kill_one(cast, agents),
            lambda: self._seconds >= self.script.seconds,
        ):
            if not self._watch(cast, follower, scene_ends):
                return

    def _watch(self, cast: Cast, follower: Follower, scene_ends: Callable[[], bool]) -> bool:
        """Look on until a scene ends; False when the demo ends with it."""
        until = time.monotonic() + self.script.seconds + _PATIENCE
        while True:
            self._fleet.apply(follower.read())
            self.screen.show(self._fleet, self._seconds)
            self.problems += cast.fallen()
            if time.monotonic() > until:
                self.problems.append(f"nothing happened for {_PATIENCE:.0f} s")
            if self.problems or self.stopped():
                return False
            if scene_ends():
                return True
            time.sleep(_FRAME)

    @property
    def _seconds(self) -> float:
        """How long it runs by now."""
        return time.monotonic() - self._start if self._start else 0.0

    def _start_agent(self, cast: Cast, number: int, incarnation: int = 1) -> Actor:
        node = f"node-{number + 1}"
        return cast.start(
            "sandbox_redis.demo.agent",
            f"{node}/{incarnation}",
            node=node,
            slots=self.script.slots(number),
            shared=self._shared,
        )

    def _kill_one(self, cast: Cast, agents: list[Actor]) -> bool:
        """Kill the agent with the most running sandboxes, and start its successor; False while none runs any."""
        ready = [s.node for s in self._fleet.sandboxes.values() if s.status.state is State.READY]
        victim = max(agents, key=lambda agent: ready.count(agent.part.node))
        if victim.part.node not in ready:
            return False
        cast.kill(victim)
        successor = self._start_agent(cast, agents.index(victim), incarnation=2)
        self.screen.say(
            f"{victim.name} (process {victim.pid}) was killed with SIGKILL; {ready.count(victim.part.node)} of its"
            f" sandboxes were READY, and their processes run on. {successor.name} takes {victim.part.node} over."
        )
        return True
