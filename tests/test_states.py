"""The state machine. Its table stands here once more, as the design has it; the tables in Lua and in Python are held
against it, and every pair of it is carried out for real.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import redis

from sandbox_redis import AlreadyExistsError, InvalidArgumentError, NotFoundError, State, Status, TransitionError
from sandbox_redis.scripts import FOLDER
from sandbox_redis.states import ABSENT, MACHINE

REFUSALS = {"exists": AlreadyExistsError, "missing": NotFoundError, "refused": TransitionError}
HEAD, *ROWS = """
              absent                  INIT        READY           NOTREADY  UNKNOWN
create        INIT                    exists      exists          exists    exists
load          READY,NOTREADY,UNKNOWN  exists      exists          exists    exists
start         missing                 READY       refused         refused   refused
fail_start    missing                 absent      refused         refused   refused
port_forward  missing                 refused     READY           refused   refused
stop          missing                 refused     NOTREADY        NOTREADY  NOTREADY
exit          missing                 refused     NOTREADY        NOTREADY  refused
remove        absent                  refused     refused         absent    refused
force_remove  absent                  absent      NOTREADY        absent    NOTREADY
update        missing                 INIT,READY  READY,NOTREADY  NOTREADY  UNKNOWN,NOTREADY
""".strip("\n").splitlines()
TABLE = {row.split()[0]: dict(zip(HEAD.split(), row.split()[1:], strict=True)) for row in ROWS}
PAIRS = [(operation, before) for operation, row in TABLE.items() for before in [*row, "deleted"]]
OBSERVED = [State.READY, State.NOTREADY, State.UNKNOWN]


def allowed(operation: str, before: str) -> tuple[str, ...]:
    """The states that an operation may lead to; none when it is refused."""
    cell = TABLE[operation][ABSENT if before == "deleted" else before]
    return () if cell in REFUSALS else tuple(cell.split(","))


def bring(store: Any, before: str, sandbox_id: str = "it") -> None:
    """Make a sandbox that is in the state `before`."""
    if before == "UNKNOWN":
        store.load(sandbox_id, Status(State.UNKNOWN, pid=7, created_at_ns=5), node="node-1")
    elif before != ABSENT:
        store.create(sandbox_id=sandbox_id, node="node-1", created_at_ns=5)
    if before == "deleted":
        store.fail_start(sandbox_id)
    if before in ("READY", "NOTREADY"):
        store.start(sandbox_id, pid=7)
    if before == "NOTREADY":
        store.stop(sandbox_id)


def call(store: Any, operation: str, after: str = "") -> Any:
    """Carry out an operation on the sandbox; `after` is the state to ask for, where it can be asked for."""
    match operation:
        case "create":
            return store.create(sandbox_id="it", node="node-1", created_at_ns=9)
        case "load":
            return store.load("it", Status(State(after or "READY"), pid=7, created_at_ns=9), node="node-1")
        case "start":
            return store.start("it", pid=8)
        case "exit":
            return store.exit("it", exit_status=137, exited_at_ns=9)
        case "force_remove":
            return store.remove("it", force=True)
        case "update":
            return store.update(
                "it",
                lambda status: replace(
                    status, state=State(after or status.state), pid=8, exit_status=status.exit_status + 1
                ),
            )
    return getattr(store, operation)("it")


def events_of(operation: str, before: str, after: str) -> list[tuple[str, str, str]]:
    """The events that an allowed call makes: transition, state before, state after."""
    match operation, before, after:
        case ("port_forward", _, _) | ("stop", "NOTREADY", _) | ("remove" | "force_remove", "absent", _):
            return []
        case "force_remove", _, "NOTREADY":
            return [("stop", before, "NOTREADY"), ("remove", "NOTREADY", ABSENT)]
        case "force_remove", _, _:
            return [("remove", before, ABSENT)]
    return [(operation, before, after)]


def expected(operation: str, before: str, after: str) -> dict[bytes, bytes]:
    """The fields of the status that an allowed call leaves."""
    pid, exit_status, exited_at, created_at = b"7", b"0", b"", b"5"
    if before == ABSENT:
        created_at = b"9"
        pid = b"0" if operation == "create" else b"7"
    if operation in ("start", "update"):
        pid = b"8"
    if operation == "update":
        exit_status = b"1"
    if operation == "exit":
        exit_status, exited_at = b"137", b"9"
    fields = {b"state": after.encode(), b"pid": b"0" if after == "NOTREADY" else pid, b"exit_status": exit_status}
    times = {b"created_at": created_at, b"exited_at": exited_at}
    return fields | {name: b"1970-01-01T00:00:00.00000000%bZ" % ns for name, ns in times.items() if ns}


def refuse(store: Any, snapshot: Any, operation: str, before: str, after: str = "") -> None:
    """Assert that an operation is refused with its facts, and that it changed nothing at all."""
    bring(store, "READY", "bystander")  # so that the store and its indexes are there
    bring(store, before)
    was = snapshot()
    before = ABSENT if before == "deleted" else before
    cell = TABLE[operation][before]
    with pytest.raises(REFUSALS.get(cell, TransitionError)) as refusal:
        call(store, operation, after)
    assert snapshot() == was
    facts = {"id": "it", "state": before, "operation": "remove" if operation == "force_remove" else operation}
    assert vars(refusal.value).items() <= facts.items()


def test_the_table_in_python_is_that_of_the_design():
    design = {
        operation: {before: states for before in row if (states := allowed(operation, before))}
        for operation, row in TABLE.items()
    }
    assert design == MACHINE


def test_the_table_in_lua_is_that_of_the_design(server):
    words = sorted({*MACHINE, *State, ABSENT, "", "NOT", "READY NOTREADY", "."})
    source = (
        (FOLDER / "lib/states.lua").read_text()
        + """
        local found = {}
        for _, operation in ipairs(ARGV) do
          for _, before in ipairs(ARGV) do
            for _, after in ipairs(ARGV) do
              if allows(operation, before, after) then
                found[#found + 1] = { operation, before, after, moves(operation, before) }
              end
            end
          end
        end
        return found"""
    )
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        found = {tuple(row) for row in client.eval(source, 0, *words)}
    assert {row for row in found if row[2] != "READY NOTREADY"} == {
        (operation, before, after, " ".join(states))
        for operation, row in MACHINE.items()
        for before, states in row.items()
        for after in states
    }


@pytest.mark.parametrize(("operation", "before"), [pair for pair in PAIRS if not allowed(*pair)])
def test_a_move_that_the_table_lacks_is_refused_and_changes_nothing(store, snapshot, operation, before):
    refuse(store, snapshot, operation, before)


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("after", list(State))
def test_an_update_leads_where_the_table_lets_it(store, snapshot, before, after):
    if after not in allowed("update", before):
        refuse(store, snapshot, "update", before, after)
    else:
        bring(store, before)
        assert call(store, "update", after).status.state is after


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [(operation, before, after) for operation, before in PAIRS for after in allowed(operation, before)],
)
def test_a_move_of_the_table_changes_record_indexes_and_events_as_one(
    store, client, prefix, snapshot, operation, before, after
):
    bring(store, "READY", "bystander")
    bring(store, before)
    was = snapshot()
    before = ABSENT if before == "deleted" else before
    result = call(store, operation, after)
    now = snapshot()

    stream = f"{prefix}:{{0}}:events"
    events = now.pop(stream)[len(was[stream]) :]
    made = [(e[b"transition"], e.get(b"before", b"absent"), e.get(b"state", b"absent")) for _, e in events]
    assert made == [tuple(map(str.encode, event)) for event in events_of(operation, before, after)]
    assert len({event[b"request"] for _, event in events}) <= 1  # one script
    if not events:
        del was[stream]
        assert now == was
        return

    gone = operation == "force_remove" or after == ABSENT
    record = now.pop(f"{prefix}:{{0}}:status:it", None)
    fields = expected(operation, before, after)
    if gone:
        assert record is None
        assert result is (None if operation == "fail_start" else True)
    else:
        revision, event = events[-1]
        assert event.items() >= fields.items()
        same = {name: event[name] for name in (b"node", b"epoch", b"request")}
        assert record == fields | same | {b"revision": revision, b"attempt": b"0"}
        assert result == store.get("it")

    del was[stream]
    was.pop(f"{prefix}:{{0}}:status:it", None)
    for index in [*State, "node-1"]:
        key = f"{prefix}:{{0}}:{'node' if index == 'node-1' else 'state'}:{index}"
        others = [member for member in was.pop(key, []) if member[0] != b"it"]
        here = not gone and index in (after, "node-1")
        assert now.pop(key, []) == sorted([*others, *([(b"it", 0.0)] if here else [])])
    was.pop(f"{prefix}:{{0}}:nodes")
    assert now.pop(f"{prefix}:{{0}}:nodes") == [(b"node-1", 1.0 if gone else 2.0)]  # the bystander, and it
    assert now == was


@pytest.mark.parametrize("state", OBSERVED)
def test_load_records_what_was_observed(store, state):
    observed = Status(state, pid=7, created_at_ns=5, exited_at_ns=6, exit_status=3)
    kept = replace(observed, pid=0) if state is State.NOTREADY else observed
    assert store.load("it", observed).status == kept
    assert store.get("it").status == kept


def test_a_sandbox_cannot_be_loaded_in_init(store, snapshot):
    with pytest.raises(InvalidArgumentError, match="INIT"):
        store.load("it", Status(State.INIT))
    assert snapshot() == {}


@pytest.mark.parametrize("order", list(permutations(["stop", "stop_with_exit", "exit", "exit_again"])))
def test_whoever_comes_second_in_the_race_of_stop_and_exit_is_ok_and_loses_nothing(store, order):
    calls = {
        "stop": lambda: store.stop("it"),
        "stop_with_exit": lambda: store.stop("it", exit_status=1, exited_at_ns=1),
        "exit": lambda: store.exit("it", exit_status=2, exited_at_ns=2),
        "exit_again": lambda: store.exit("it", exit_status=3, exited_at_ns=3),
    }
    known = {"stop_with_exit": (1, 1), "exit": (2, 2), "exit_again": (3, 3)}
    bring(store, "READY")
    kept = (0, 0)
    for i, name in enumerate(order):
        status = calls[name]().status
        if kept == (0, 0) and (i == 0 or not name.startswith("stop")):  # a stop changes no NOTREADY
            kept = known.get(name, kept)
        assert status == Status(State.NOTREADY, 0, 5, *kept)
    assert len(store.audit().events) == (3 if order[0] != "stop" else 4)


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (State.INIT, None),
        (State.READY, "SANDBOX_READY"),
        (State.NOTREADY, "SANDBOX_NOTREADY"),
        (State.UNKNOWN, "SANDBOX_NOTREADY"),
    ],
)
def test_cri_sees(state, seen):
    assert state.cri == seen
