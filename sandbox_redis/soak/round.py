"""One round of a soak, in a store of its own: agents write, watches and mirrors look on, and one fault comes after the
other; then all is mended, everybody ends, and the round is checked. How many rounds there are stands in ``run.py``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from sandbox_redis.errors import SandboxError
from sandbox_redis.soak import inside
from sandbox_redis.soak.agent import TASKS, write
from sandbox_redis.soak.checker import check
from sandbox_redis.soak.crew import Crew, Member
from sandbox_redis.soak.faults import draw
from sandbox_redis.soak.figures import PLANNED, Figures, Happened, losses, write_losses
from sandbox_redis.soak.history import Outcome
from sandbox_redis.soak.log import HistoryLog, Reader
from sandbox_redis.soak.part import COUNTERS, EVENTS_MAXLEN, LAST, Part
from sandbox_redis.soak.proxy import How, Proxy
from sandbox_redis.soak.report import Fault, Report
from sandbox_redis.soak.topology import Deployment
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore

DIRECTOR: Final = "director"
_RATE: Final = 2000  # operations each second, of all agents, where the machine is fast enough
_PATIENCE: Final = 60.0  # seconds until all must have begun, on the slowest machine
_QUIET: Final = (0.3, 1.2)  # seconds from one fault to the next
_LASTING: Final = (0.1, 1.5)  # seconds that a fault lasts
_KILLS: Final = 0.25  # share of the faults that is the death of an agent
_STORMS: Final = 0.3  # share of the others that is the loss of packets
_WEATHER: Final[dict[How, float]] = {"after": 0.03, "before": 0.02, "half": 0.02, "torn": 0.03}
_LOOK: Final = 0.1  # seconds between two looks at the logs
_WITHOUT: Final = frozenset({"empty"})  # after which nothing of before can be checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run."""

    seconds: float
    seed: int
    agents: int = 8
    watches: int = 2
    mirrors: int = 2
    write_concern: int | None = None
    """How many replicas each write waits for; the store is not told when None."""


@dataclass(slots=True, kw_only=True)
class Scene:
    """Where all rounds take place."""

    plan: Plan
    url: str
    """Of the store."""
    partitions: int
    deployment: Deployment | None
    """Whose faults are caused; without it only agents are killed."""
    line: Proxy | None
    """The way of some agents to a single server, which loses what it is told to lose."""
    say: Callable[[str], None]
    """Gets each notable thing, as a sentence."""
    progress: Callable[[str], None]
    """Gets the state of affairs, all the time."""
    stopped: Callable[[], object]
    """True when it was asked to end early."""
    figures: Figures = field(default_factory=Figures)


@dataclass(slots=True)
class Round:
    """One store, from its creation to its check."""

    scene: Scene
    prefix: str
    folder: Path
    chance: random.Random
    seconds: float
    number: int
    faults: list[Happened] = field(default_factory=list)
    _begun: float = 0.0
    _done: int = 0
    _answered: int = 0
    """When the last call succeeded."""
    _deaths: int = 0
    _reign: str = ""
    """Of the deployment, when it was healthy at last."""
    _safe: int = 0
    """What was acknowledged before this moment was on all servers, then."""
    _over: int = 0
    """When the agents were told to end."""

    def run(self) -> None:
        """Run and check it, and delete the store."""
        store = SandboxStore.from_url(
            self.scene.url,
            prefix=self.prefix,
            agent=DIRECTOR,
            partitions=self.scene.partitions,
            events_maxlen=EVENTS_MAXLEN,
        )
        with store, Crew(self.folder, self.scene.url) as crew:
            try:
                self._play(store, crew)
            finally:
                with suppress(SandboxError):
                    inside.delete_store(store)

    def _play(self, store: SandboxStore, crew: Crew) -> None:
        figures = self.scene.figures
        with HistoryLog(crew.log(DIRECTOR)) as log:
            write(store, log, (("create", each, {"created_at_ns": 1}) for each in COUNTERS))
            write(store, log, (("start", each, {"pid": 1}) for each in COUNTERS))
            last = inside.last_ids(store, LAST)
            agents, observers = self._start(crew, last)
            self._begin(crew)
            self._break(crew, agents)
            figures.seconds += time.monotonic() - self._begun
            self._over = time.monotonic_ns()
            figures.problems += crew.fallen() + crew.end(agents)
            self._settle()
            write(store, log, (("create", each, {"created_at_ns": 1}) for each in last))
        figures.problems += crew.wait(observers)
        crew.read()
        self._check(store, crew)

    def _start(self, crew: Crew, last: tuple[str, ...]) -> tuple[list[Member], list[Member]]:
        plan = self.scene.plan
        on_asyncio = plan.agents // 2
        pause = (on_asyncio * TASKS + plan.agents - on_asyncio) / _RATE

        def part(name: str, **more: object) -> Part:
            known = {"prefix": self.prefix, "partitions": self.scene.partitions, "last": last, **more}
            return Part(name=name, log="", seed=f"{plan.seed}/{self.number}", **known)  # type: ignore[arg-type]

        concern = {"pause": pause, "write_concern": plan.write_concern}
        lines = [self.scene.line.url, None] if self.scene.line else [None]
        agents = [
            crew.start(
                "sandbox_redis.soak.agent",
                part(f"agent-{i + 1}", asyncio=i < on_asyncio, **concern),
                lines[i % len(lines)],
            )
            for i in range(plan.agents)
        ]
        names = [f"watch-{i + 1}" for i in range(plan.watches)] + [f"mirror-{i + 1}" for i in range(plan.mirrors)]
        return agents, [
            crew.start("sandbox_redis.soak.observer", part(name, asyncio=number % 2 == 1))
            for number, name in enumerate(names)
        ]

    def _begin(self, crew: Crew) -> None:
        """Wait until everybody has begun."""
        until = time.monotonic() + _PATIENCE
        while waiting := [member.name for member in crew.members if not member.reader.begun]:
            self._look(crew)
            if problems := crew.fallen():
                raise RuntimeError("; ".join(problems))
            if time.monotonic() > until:
                raise RuntimeError(f"{', '.join(waiting)} did not begin within {_PATIENCE:.0f} s")
            time.sleep(_LOOK)
        self._begun = time.monotonic()

    # -- faults

    def _break(self, crew: Crew, agents: list[Member]) -> None:
        """One fault after the other, until the round is over."""
        self._safe = time.monotonic_ns()
        if self.scene.deployment is not None:
            self._reign = self.scene.deployment.reign()
        while self._wait(crew, self.chance.uniform(*_QUIET)):
            if self.scene.deployment is None or self.chance.random() < _KILLS:
                self._kill(crew, agents)
            elif self.scene.line and self.chance.random() < _STORMS:
                self._storm(crew, self.scene.line)
            else:
                self._cause(crew, self.scene.deployment)
            if problems := crew.fallen():
                self.scene.figures.problems += problems
                return

    def _wait(self, crew: Crew, seconds: float) -> bool:
        """Let it run for so long; whether the round goes on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look(crew)
            time.sleep(_LOOK)
        return time.monotonic() - self._begun < self.seconds and not self.scene.stopped()

    def _kill(self, crew: Crew, agents: list[Member]) -> None:
        """Kill an agent, and start another one in its place."""
        number = self.chance.randrange(len(agents))
        start = time.monotonic_ns()
        self._deaths += 1
        victim = agents[number]
        agents[number] = crew.replace(victim, f"{victim.name.partition('.')[0]}.{self._deaths}")
        text = f"killed {victim.name}, and started {agents[number].name}"
        self._happened(Happened("kill-agent", text, start, time.monotonic_ns()))

    def _storm(self, crew: Crew, line: Proxy) -> None:
        """Lose packets and replies of some agents."""
        start = time.monotonic_ns()
        line.weather(self.chance, _WEATHER)
        self._wait(crew, self.chance.uniform(*_LASTING))
        text = "packets and replies of every other agent got lost"
        line.fault()
        self._happened(Happened("bad-line", text, start, time.monotonic_ns()))

    def _cause(self, crew: Crew, deployment: Deployment) -> None:
        fault = draw(
            deployment,
            self.chance,
            partitions=self.scene.partitions,
            lossless=deployment.topology == "standalone",
            without=_WITHOUT,
        )
        self._settle()
        safe, start = self._safe, time.monotonic_ns()
        text = f"{fault.name} was only tried"
        try:
            text = fault.cause()
            self._wait(crew, self.chance.uniform(*_LASTING))
        except (SandboxError, RedisError) as error:
            self.scene.figures.problems.append(f"{fault.name} could not be caused: {error}")
        try:
            fault.mend()
        except (SandboxError, RedisError) as error:
            self.scene.figures.problems.append(f"{fault.name} could not be mended: {error}")
        may_lose, confirmed = fault.may_lose(deployment), fault.may_lose_confirmed(deployment)
        self._settle(told=may_lose or fault.name in PLANNED)
        self._happened(Happened(fault.name, text, start, time.monotonic_ns(), safe, may_lose, confirmed))

    def _happened(self, fault: Happened) -> None:
        self.faults.append(fault)
        self.scene.say(f"{time.monotonic() - self._begun:6.1f} s  {fault.name}: {fault.text}")

    def _settle(self, *, told: bool = False) -> None:
        """Wait until all servers have all that has been acknowledged so far. Where nobody was `told` to, none may have
        become the master: on a machine that is too busy it happens, and what may be lost then is no violation."""
        if (deployment := self.scene.deployment) is None:
            return
        start = time.monotonic_ns()
        try:
            reign = deployment.settled().reign()
        except (SandboxError, RedisError) as error:
            self.scene.figures.problems.append(f"the deployment did not become healthy: {error}")
            return
        if reign != self._reign and not told:
            text = "a replica took over, and nobody had caused it: this machine is too busy"
            self._happened(Happened("no-reason", text, self._safe, time.monotonic_ns(), self._safe, True, True))
        self._safe, self._reign = start, reign

    # -- what is to be seen

    def _look(self, crew: Crew) -> None:
        calls = crew.read()
        self._done += len(calls)
        self._answered = max([self._answered, *(call.end for call in calls if call.outcome is Outcome.OK)])
        if self._begun:
            quiet = max(time.monotonic_ns() - self._answered, 0) / 1e9
            self.scene.progress(
                f"round {self.number}, {time.monotonic() - self._begun:.0f} of {self.seconds:.0f} s:"
                f" {self._done:,} operations, {len(self.faults)} faults, the last success {quiet:.1f} s ago"
            )

    def _check(self, store: SandboxStore, crew: Crew) -> None:
        self.scene.progress(f"round {self.number}: checking {self._done:,} operations")
        own = Reader(crew.log(DIRECTOR))
        own.read()
        histories = [own.history, *crew.histories]
        changes = inside.changes(store)
        records = {sandbox.id: sandbox for sandbox in store.list(states=list(State))}
        report: Report = check(
            histories,
            changes,
            records=records,
            losses=losses(self.faults),
            write_losses=write_losses(self.faults, self.scene.plan.write_concern),
        )
        for problem in inside.problems(store):
            report.add(Fault.RECORD, "", problem)
        self.scene.figures.count(histories, self.faults, report, changes, self._over)
