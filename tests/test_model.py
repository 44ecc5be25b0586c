"""Several agents on one store, held against a model of it: a dict. Hypothesis makes up what they do, one by one and in
batches, and shrinks what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import fakeredis
import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from sandbox_redis import (
    AlreadyExistsError,
    Metadata,
    NotFoundError,
    Sandbox,
    SandboxError,
    SandboxStore,
    State,
    Status,
    TransitionError,
)
from sandbox_redis.states import ABSENT, MACHINE

AGENTS = st.integers(0, 2)
IDS = st.sampled_from(["a", "b", "c", "d"])
SMALL = st.integers(0, 2)
TIMES = st.integers(1, 3)
EXIT = st.fixed_dictionaries({"exit_status": SMALL, "exited_at_ns": TIMES})
STATUS = st.builds(Status, st.sampled_from([State.READY, State.NOTREADY, State.UNKNOWN]), SMALL, SMALL, SMALL, SMALL)
BORN = {
    "node": st.sampled_from(["", "n1", "n2"]),
    "metadata": st.builds(Metadata, st.sampled_from(["", "web"]), labels=st.dictionaries(st.just("app"), IDS)),
}
ARGUMENTS = {
    "create": st.fixed_dictionaries(BORN | {"created_at_ns": TIMES}),
    "load": st.fixed_dictionaries(BORN | {"observed": STATUS}),
    "start": st.fixed_dictionaries({"pid": SMALL}),
    "stop": st.just({}) | EXIT,
    "exit": EXIT,
    "update": st.fixed_dictionaries(
        {}, optional={"state": st.sampled_from(State), "pid": SMALL, "exit_status": SMALL, "exited_at_ns": SMALL}
    ),
}


class Call(NamedTuple):
    operation: str
    id: str
    arguments: dict[str, Any]

    def on(self, face: Any) -> Any:
        """Carry it out on a store or a batch."""
        match self.operation:
            case "create":
                return face.create(sandbox_id=self.id, **self.arguments)
            case "force_remove":
                return face.remove(self.id, force=True)
            case "update":
                return face.update(self.id, lambda status: replace(status, **self.arguments))
        return getattr(face, self.operation)(self.id, **self.arguments)


CALLS = st.sampled_from(sorted(MACHINE)).flatmap(
    lambda operation: st.builds(Call, st.just(operation), IDS, ARGUMENTS.get(operation, st.just({})))
)


class Model:
    """What the store should hold, and what should have happened to it."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}  # with no revisions
        self.events: dict[str, list[tuple[str, str, str]]] = {}

    def carry_out(self, call: Call) -> Any:
        """The result of a call, or the type of its error."""
        known = self.sandboxes.get(call.id)
        before = known.status.state if known else ABSENT
        if before not in MACHINE[call.operation]:
            return (
                NotFoundError
                if known is None
                else AlreadyExistsError
                if call.operation in ("create", "load")
                else TransitionError
            )
        if call.operation in ("remove", "force_remove", "fail_start"):
            return self._erase(call, before)
        status = self._status(call, known.status if known else None)
        if known and status == known.status:
            return known
        if status.state not in MACHINE[call.operation][before]:
            return TransitionError
        born = {name: call.arguments[name] for name in BORN} if known is None else {}
        known = replace(known or Sandbox(call.id, "", status, Metadata(), ""), status=status, **born)
        self.sandboxes[call.id] = known
        self.events.setdefault(call.id, []).append((call.operation, before, status.state))
        return known

    def _erase(self, call: Call, before: str) -> bool | None:
        events = self.events.setdefault(call.id, [])
        if self.sandboxes.pop(call.id, None) is None:
            return False
        if MACHINE[call.operation][before] == ("NOTREADY",):
            events.append(("stop", before, "NOTREADY"))
            before = "NOTREADY"
        events.append((call.operation.removeprefix("force_"), before, ABSENT))
        return None if call.operation == "fail_start" else True

    @staticmethod
    def _status(call: Call, status: Status | None) -> Status:
        match call.operation, status:
            case "create", _:
                return Status(State.INIT, created_at_ns=call.arguments["created_at_ns"])
            case "load", _:
                status = call.arguments["observed"]
            case "start" | "update", Status():
                status = replace(
                    status, **({"state": State.READY} if call.operation == "start" else {}), **call.arguments
                )
            case "stop", Status(state=State.NOTREADY):
                pass
            case "stop" | "exit", Status(exited_at_ns=first):
                told = {} if first else call.arguments  # the first exit that is told is kept
                status = replace(status, state=State.NOTREADY, **told)
        assert status
        return replace(status, pid=0) if status.state is State.NOTREADY else status


class Agents(RuleBasedStateMachine):
    """Three agents with stores of their own, which would each lay out the store in another way."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        super().__init__()
        self.client = client
        self.prefix = prefix
        self.model = Model()
        self.stores: list[SandboxStore] = []

    @initialize(partitions=st.permutations([1, 3, 8]))
    def open(self, partitions):
        self.stores = [
            SandboxStore(self.client, prefix=self.prefix, agent=f"agent-{i}", partitions=partitions[i])
            for i in range(3)
        ]

    @rule(agent=AGENTS, call=CALLS)
    def one_call(self, agent, call):
        self.agree(call, lambda: call.on(self.stores[agent]))

    @rule(agent=AGENTS, calls=st.lists(CALLS, max_size=6))
    def a_batch(self, agent, calls):
        with self.stores[agent].batch() as batch:
            results = [call.on(batch) for call in calls]
        for call, result in zip(calls, results, strict=True):
            self.agree(call, result.result)

    @rule(agent=AGENTS, sandbox_id=IDS)
    def a_look(self, agent, sandbox_id):
        call = Call("get", sandbox_id, {})
        expected = self.model.sandboxes.get(sandbox_id, NotFoundError)
        self.compare(call, lambda: call.on(self.stores[agent]), expected)

    @rule(agent=AGENTS, states=st.none() | st.sets(st.sampled_from(State)), node=st.sampled_from([None, "n1", "n2"]))
    def a_list(self, agent, states, node):
        wanted = set(State) - {State.INIT} if states is None else states
        assert self.stores[agent].ids(states=states, node=node) == sorted(
            s.id for s in self.model.sandboxes.values() if s.status.state in wanted and node in (None, s.node)
        )

    def agree(self, call: Call, outcome: Callable[[], Any]) -> None:
        self.compare(call, outcome, self.model.carry_out(call))

    def compare(self, call: Call, outcome: Callable[[], Any], expected: Any) -> None:
        try:
            result = outcome()
        except SandboxError as error:
            result = type(error)
        if isinstance(result, Sandbox):
            assert result.problem is None
            result = replace(result, revision="")
        assert result == expected, call

    def teardown(self) -> None:
        for store in self.stores[:1]:
            audit = store.audit()
            assert audit.problems == []
            assert {i: replace(s, revision="") for i, s in audit.sandboxes.items()} == self.model.sandboxes
            happened: dict[str, list[tuple[str, str, str]]] = {}
            for event in audit.events:
                after = event.sandbox.status.state if event.sandbox else ABSENT
                happened.setdefault(event.id, []).append((event.transition, event.before or ABSENT, after))
            assert happened == {sandbox_id: events for sandbox_id, events in self.model.events.items() if events}
            self.a_list(0, set(State), None)
        for store in self.stores:
            store.close()
        if keys := list(self.client.scan_iter(f"{self.prefix}:*")):
            self.client.unlink(*keys)


@pytest.mark.parametrize(("backend", "examples"), [("fakeredis", 20), ("valkey", 50), ("redis", 50)])
def test_several_agents_on_one_store_agree_with_the_model(servers, prefix, backend, examples):
    made_from: Any = fakeredis.FakeServer() if backend == "fakeredis" else servers(backend).url
    client = fakeredis.FakeRedis(server=made_from) if backend == "fakeredis" else redis.Redis.from_url(made_from)
    numbers = count()
    run_state_machine_as_test(
        lambda: Agents(client, f"{prefix}-{next(numbers)}"),
        settings=settings(max_examples=examples, stateful_step_count=30),
    )
    client.close()
