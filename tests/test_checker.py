"""The checker of soaks: it accepts every history that is possible, and finds each fault that is planted in one."""

from __future__ import annotations

import copy
import random
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from sandbox_redis import Metadata, NotFoundError, Sandbox, SandboxStore, State, Status
from sandbox_redis.soak import inside
from sandbox_redis.soak.agent import perform, steps
from sandbox_redis.soak.checker import check
from sandbox_redis.soak.history import Call, Glimpse, History, Outcome, Seen, Survey, Watched
from sandbox_redis.soak.log import HistoryLog, Reader
from sandbox_redis.soak.model import Change, effect, may_refuse, state_of, updated
from sandbox_redis.soak.part import COUNTERS
from sandbox_redis.soak.report import Fault, Losses
from sandbox_redis.states import ABSENT, MACHINE

OPERATIONS = [*MACHINE, *["get", "update", "start"] * 3]
SEED = 5  # of a history with some of everything
STEP = 100  # nanoseconds between two moments at which something happens


def arguments(operation, number, chance):
    match operation:
        case "create":
            return {"created_at_ns": number}
        case "load":
            return {"observed": [chance.choice(["READY", "UNKNOWN"]), number, number, 0, 0]}
        case "start":
            return {"pid": number}
        case "exit":
            return {"exit_status": number, "exited_at_ns": number}
        case "stop":
            return chance.choice([{}, {"exit_status": number, "exited_at_ns": number}])
        case "update":
            return {"kind": chance.choice(["count", "count", "count", "pid", "NOTREADY"]), "pid": number}
    return {}


class World:
    """A store that is right, agents that overlap, a watch and a mirror."""

    def __init__(self, seed, calls=300, agents=4, ids=("a", "b", "c"), trouble=0.1):
        chance = random.Random(seed)
        self.histories = {f"agent-{i}": History(f"agent-{i}") for i in range(agents)}
        self.changes: list[Change] = []
        self.statuses: dict[str, Status] = {}
        self.revisions: dict[str, str] = {}
        watched = Watched("0-0", ended=True)
        self.watcher = History("watcher", watches=[watched])
        self.mirror = History("mirror", final={})
        free = dict.fromkeys(self.histories, 0)  # when each agent can ask again
        self.calls = []
        for number in range(1, calls + 1):
            at = number * STEP
            agents_now = [name for name, moment in free.items() if moment < at - 1]
            if not agents_now:
                continue
            name = chance.choice(agents_now)
            operation, sandbox_id = chance.choice(OPERATIONS), chance.choice(ids)
            call = Call(name, number, operation, sandbox_id, arguments(operation, number, chance), 0)
            call.start = max(free[name] + 1, at - chance.randrange(5 * STEP))
            call.end = at + chance.randrange(5 * STEP)
            free[name] = call.end
            self.histories[name].calls.append(call)
            self.calls.append(call)
            call.request = "" if operation in ("get", "port_forward") else f"r{number}"
            if call.request and chance.random() < trouble:
                happened = chance.random() < 0.5
                call.outcome = chance.choice([Outcome.UNKNOWN, Outcome.UNDURABLE, Outcome.UNFINISHED])
                if call.outcome is Outcome.UNFINISHED:
                    token, call.request, call.end = call.request, "", 0
                    free[name] = 10**9  # it was killed
                    self.histories[f"{name}+"] = History(f"{name}+")
                    free[f"{name}+"] = at
                    if happened:
                        self.apply(call, token, at)
                elif happened:
                    self.apply(call, call.request, at)
                else:
                    call.outcome = chance.choice([Outcome.UNKNOWN, Outcome.UNAVAILABLE, Outcome.CONFLICT])
            else:
                self.carry_out(call, at)
            self.look(chance, ids, at)
        watched.events = [Seen(c.id, c.revision, c.transition, c.status) for c in self.changes]
        self.mirror.final = dict(self.revisions)
        self.records = {i: Sandbox(i, "", status, Metadata(), self.revisions[i]) for i, status in self.statuses.items()}

    def apply(self, call, token, at):
        before = self.statuses.get(call.id)
        made = effect(call.operation, call.args, before) or ()
        for turn, status in enumerate(made):
            transition = call.operation.removeprefix("force_")
            transition = "stop" if len(made) > turn + 1 else transition
            revision = f"{at}-{turn}"
            self.changes.append(Change(call.id, revision, transition, state_of(before), status, call.agent, token))
            before = status
            if status is None:
                del self.statuses[call.id], self.revisions[call.id]
            else:
                self.statuses[call.id], self.revisions[call.id] = status, revision
        return made

    def carry_out(self, call, at):
        known = self.statuses.get(call.id)
        call.outcome = Outcome.OK
        if call.operation == "get":
            call.outcome = Outcome.OK if known else Outcome.NOT_FOUND
        elif effect(call.operation, call.args, known) is None:
            call.outcome = Outcome.NOT_FOUND
            if known:
                call.outcome = Outcome.EXISTS if call.operation in ("create", "load") else Outcome.TRANSITION
                call.state = state_of(known)
            return
        else:
            made = self.apply(call, call.request, at)
            call.removed = made[-1:] == (None,)
        if call.operation not in ("remove", "force_remove", "fail_start"):
            call.status, call.revision = self.statuses.get(call.id), self.revisions.get(call.id, "")

    def look(self, chance, ids, at):
        sandbox_id = chance.choice(ids)
        glimpse = Glimpse(sandbox_id, self.revisions.get(sandbox_id, ""), at, at + 1)
        self.mirror.glimpses.append(glimpse)

    def report(self, losses=None, write_losses=None):
        everybody = [*self.histories.values(), self.watcher, self.mirror]
        return check(everybody, [self.changes], records=self.records, losses=losses, write_losses=write_losses)

    def told(self, operation=None, outcome=Outcome.OK, *, wrote=True):
        """The calls that were told so, oldest first."""
        requests = {change.request for change in self.changes}
        return [
            call
            for call in self.calls
            if call.outcome is outcome
            and operation in (None, call.operation)
            and (wrote is None or wrote == (call.request in requests))
        ]

    def drop(self, call):
        """Undo what a call wrote, everywhere: as if another had overwritten it."""
        gone = {change.revision for change in self.changes if change.request == call.request}
        self.changes[:] = [change for change in self.changes if change.revision not in gone]
        watched = self.watcher.watches[0]
        watched.events = [seen for seen in watched.events if seen.revision not in gone]


@pytest.fixture
def world():
    made = World(SEED, trouble=0)
    assert made.report().violations == []
    return made


def faults(world, losses=None, write_losses=None):
    return set(world.report(losses, write_losses).found)


@given(seed=st.integers(0, 2**64), agents=st.integers(1, 8), ids=st.integers(1, 4))
def test_a_history_that_is_possible_is_accepted(seed, agents, ids):
    world = World(seed, agents=agents, ids="abcd"[:ids])
    assert [str(violation) for violation in world.report().violations] == []


def test_the_model_of_the_check_knows_the_state_machine():
    for operation, moves in MACHINE.items():
        for state in [*State, ABSENT]:
            for after in State if operation == "update" else [""]:
                status = None if state == ABSENT else Status(State(state), pid=1)
                args = {**arguments(operation, 1, random), "kind": after, "exit_status": 1, "exited_at_ns": 1}
                made = effect(operation, args, status)
                assert (made is None) == may_refuse(operation, args, state)
                allowed = (operation == "update" and after == state) or after in moves.get(state, ())
                assert (made is not None) == (allowed if operation == "update" and status else state in moves)
                if made:
                    assert state_of(made[0]) in moves[state]


def test_a_lost_write_is_found(world):
    for call in world.told("update")[:3]:
        world.drop(call)
    assert Fault.LOST in faults(world)


def test_a_lost_update_is_found(world):
    """Two agents read the same count, and both write what they made of it."""
    last = next(
        (one, two)
        for one, two in zip(world.changes, world.changes[1:], strict=False)
        if one.transition == two.transition == "update" and one.id == two.id
        if two.status.exit_status == one.status.exit_status + 1
    )[1]
    at = world.changes.index(last)
    world.changes[at] = replace(last, status=replace(last.status, exit_status=last.status.exit_status - 1))
    assert Fault.EFFECT in faults(world)


def test_a_write_that_is_applied_twice_is_found(world):
    change = next(c for c in world.changes if c.transition == "update" and c.status.state is State.READY)
    again = replace(change, revision=f"{change.revision}1", before="READY")
    world.changes.insert(world.changes.index(change) + 1, again)
    assert Fault.DOUBLE in faults(world)
    assert Fault.DOUBLE in faults(world, Losses([(0, 10**9)]))


def test_a_double_apply_of_an_unknown_outcome_is_found():
    world = World(7, trouble=0)
    call = world.told("update")[0]
    call.outcome, call.revision, call.status = Outcome.UNKNOWN, "", None
    assert world.report().violations == []
    change = next(c for c in world.changes if c.request == call.request)
    world.changes.insert(world.changes.index(change) + 1, replace(change, revision=f"{change.revision}1"))
    assert Fault.DOUBLE in faults(world)


def test_a_stale_read_is_found(world):
    call = world.told("get", wrote=False)[-1]
    older = next(c for c in world.changes if c.id == call.id and c.status and c.revision != call.revision)
    call.revision, call.status = older.revision, older.status
    assert faults(world) == {Fault.STALE}


def test_a_read_from_the_future_is_found(world):
    call = world.told("get", wrote=False)[0]
    later = [c for c in world.changes if c.id == call.id and c.status][-1]
    call.revision, call.status = later.revision, later.status
    assert faults(world) == {Fault.STALE}


def test_two_reads_that_contradict_each_other_are_found():
    """The second read begins after the first, and sees less; each alone could be."""
    (created, started), changes = two_states()
    started.end = 90
    first = Call("x", 1, "get", "a", {}, 40, 45, Outcome.OK, revision="2-0", status=started.status)
    second = Call("y", 1, "get", "a", {}, 50, 55, Outcome.OK, revision="1-0", status=created.status)

    def found(*reads):
        histories = [History("w", calls=[created, started]), *(History(read.agent, calls=[read]) for read in reads)]
        return [violation.fault for violation in check(histories, [changes]).violations]

    assert found(first) == found(second) == []
    assert found(first, second) == [Fault.STALE]


def test_a_read_of_what_was_written_behind_the_store_is_found(world):
    call = world.told("get", wrote=False)[-1]
    call.status = replace(call.status, pid=99999)
    assert faults(world) == {Fault.EFFECT}


def test_writes_out_of_order_are_found(world):
    """An update was acknowledged before another one was asked for, and its event comes after that one's."""
    pairs = [
        (one, two)
        for one in world.told("update")
        for two in world.told("update")
        if one.id == two.id and one.end < two.start and one.status.state is two.status.state is State.READY
    ]
    one, two = pairs[0]
    one.start, one.end, two.start, two.end = two.start, two.end, one.start, one.end
    assert Fault.ORDER in faults(world)


@pytest.mark.parametrize(
    "outcome", [Outcome.NOT_FOUND, Outcome.TRANSITION, Outcome.CONFLICT, Outcome.UNAVAILABLE, Outcome.EXISTS]
)
def test_a_refused_write_that_was_applied_is_found(world, outcome):
    call = world.told("start")[0]
    call.outcome, call.state = outcome, "NOTREADY"
    assert Fault.APPLIED in faults(world)


def test_a_wrong_refusal_is_found(world):
    call = world.told("start", Outcome.TRANSITION, wrote=False)[0]
    call.state = "INIT"  # which does not refuse it
    assert faults(world) == {Fault.REFUSAL}


def two_states():
    """Created from 10 to 20, started from 30 to 40."""
    created = Call("w", 1, "create", "a", {"created_at_ns": 1}, 10, 20, Outcome.OK, "r1", revision="1-0")
    created.status = Status(State.INIT, created_at_ns=1)
    started = Call("w", 2, "start", "a", {"pid": 5}, 30, 40, Outcome.OK, "r2", revision="2-0")
    started.status = Status(State.READY, 5, 1)
    changes = [
        Change("a", "1-0", "create", ABSENT, created.status, "w", "r1"),
        Change("a", "2-0", "start", "INIT", started.status, "w", "r2"),
    ]
    return [created, started], changes


@pytest.mark.parametrize(
    "operation, outcome, state, over",
    [
        ("start", Outcome.NOT_FOUND, "", 20),
        ("stop", Outcome.TRANSITION, "INIT", 40),
        ("get", Outcome.NOT_FOUND, "", 20),
        ("remove", Outcome.OK, "", 20),
    ],
)
def test_an_answer_by_a_state_that_was_over_is_found(operation, outcome, state, over):
    calls, changes = two_states()

    def found(start):
        asked = Call("x", 1, operation, "a", {}, start, 99, outcome, state=state)
        return [v.fault for v in check([History("w", calls), History("x", [asked])], [changes]).violations]

    assert found(over) == []
    assert found(over + 1) == [Fault.REFUSAL if operation in ("start", "stop") else Fault.STALE]


def test_an_event_that_nobody_asked_for_is_found(world):
    at = next(i for i, change in enumerate(world.changes) if change.transition == "update")
    world.changes[at] = replace(world.changes[at], request="somebody")
    assert {Fault.UNASKED, Fault.LOST} <= faults(world)


def test_a_record_that_its_events_do_not_give_is_found(world):
    sandbox_id, record = next(iter(world.records.items()))
    world.records[sandbox_id] = replace(record, status=replace(record.status, exit_status=77))
    assert faults(world) == {Fault.RECORD}
    del world.records[sandbox_id]
    del world.mirror.final[sandbox_id]
    assert faults(world) == {Fault.RECORD}


def test_an_event_that_a_watch_missed_is_found(world):
    del world.watcher.watches[0].events[20]
    assert faults(world) == {Fault.MISSED}


def test_a_watch_that_ends_too_early_is_found(world):
    del world.watcher.watches[0].events[-1]
    assert faults(world) == {Fault.MISSED}
    world.watcher.watches[0].ended = False
    assert faults(world) == set()


def test_an_event_that_a_watch_told_twice_or_too_late_is_found(world):
    events = world.watcher.watches[0].events
    events.insert(20, events[19])
    assert faults(world) == {Fault.REPEATED}
    events[19], events[20] = events[21], events[19]
    assert Fault.REPEATED in faults(world)


def test_a_watch_that_goes_on_elsewhere_is_found(world):
    """Its second part begins where the first ended, and nothing is between."""
    whole = world.watcher.watches[0].events
    first, second = Watched("0-0", whole[:30]), Watched(whole[29].revision, whole[30:], ended=True)
    world.watcher.watches = [first, second]
    assert faults(world) == set()
    second.events = whole[31:]
    assert faults(world) == {Fault.MISSED}


def test_a_mirror_that_goes_back_is_found(world):
    glimpses = world.mirror.glimpses
    (one, two) = next(
        (one, two)
        for one in glimpses
        for two in glimpses
        if one.id == two.id and one.end < two.start and one.revision and two.revision > one.revision
    )
    glimpses.append(Glimpse(one.id, one.revision, two.end + 10**6, two.end + 10**6))
    assert faults(world) == {Fault.MIRROR}


def test_a_mirror_that_is_wrong_in_the_end_is_found(world):
    world.mirror.final.popitem()
    assert faults(world) == {Fault.MIRROR}


def test_a_listing_that_cannot_be_is_found(world):
    """Nothing else happens at its moment."""
    moment = max(call.end for call in world.calls if call.end) + 1
    there = sorted(world.revisions.items())
    older = next(c.revision for c in world.changes if c.id == there[0][0] and c.revision != there[0][1])

    def told(found, what="list", asked=(), total=None):
        survey = Survey(what, asked, found, len(found) if total is None else total, moment, moment + 1)
        world.mirror.surveys = [survey]
        return faults(world)

    assert told(there) == told([], "counts", total=len(there)) == set()
    assert told(there[:1], "get_many", (there[0][0], "nobody")) == set()
    assert told(there[1:]) == {Fault.SURVEY}, "one is missing"
    assert told([*there, there[0]]) == {Fault.SURVEY}, "one is told twice"
    assert told([*there, ("nobody", "1-0")]) == {Fault.SURVEY}
    assert told([(there[0][0], older), *there[1:]]) == {Fault.SURVEY}, "it is not so any more"
    assert told([], "get_many", (there[0][0],)) == {Fault.SURVEY}
    assert told([], "counts", total=len(there) + 1) == {Fault.SURVEY}


def test_what_was_lost_with_the_servers_data_is_counted(world):
    call = world.told("update")[-1]
    lost = copy.copy(call)
    lost.request, lost.revision = "lost", "999999-0"
    lost.start, lost.end = call.end + 10**6, call.end + 10**6 + 50
    world.histories[call.agent].calls.append(lost)
    assert faults(world) == {Fault.LOST}
    assert faults(world, Losses([(0, call.end)])) == {Fault.LOST}  # it was asked for when the fault was over
    # All servers had it, and only then one was lost.
    assert faults(world, Losses([(lost.end + 100, lost.end + 200)])) == {Fault.LOST}
    losses = Losses([(lost.start + 10, lost.end + 200)])
    report = world.report(losses)
    assert (report.violations, report.lost_writes) == ([], 1)
    assert faults(world, losses, Losses()) == {Fault.LOST}, "it had been acknowledged with a write concern"


def test_violations_are_readable(world):
    call = world.told("start")[0]
    call.outcome = Outcome.NOT_FOUND
    text = str(next(v for v in world.report().violations if v.fault is Fault.APPLIED))
    assert text.startswith(f"refused write applied: start of {call.id} by {call.agent} (its call {call.number}, from")


# -- logs


def test_the_log_of_a_process_that_was_killed_is_read_up_to_that_moment(tmp_path):
    path = tmp_path / "agent-1.history"
    log = HistoryLog(path)
    with log.asking("start", "a", pid=1) as asked:
        asked.answer = Sandbox("a", "", Status(State.READY, 1), Metadata(), "1-0")
        asked.request, asked.lost = "token", True
    with log.asking("stop", "a"):
        raise NotFoundError("a")
    log.asking("remove", "a")
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:5])
    reader = Reader(path)
    assert [call.outcome for call in reader.read()] == [Outcome.OK, Outcome.NOT_FOUND]
    first, second, third = reader.history.calls
    assert (first.agent, first.request, first.lost, first.args) == ("agent-1", "token", True, {"pid": 1})
    assert (first.revision, first.status) == ("1-0", Status(State.READY, 1))
    assert first.start < first.end < second.start
    assert (third.operation, third.outcome, third.end) == ("remove", Outcome.UNFINISHED, 0)
    with path.open("ab") as file:  # the rest of what was cut off
        file.write(whole[5:])
    assert len(reader.read()) == 2


# -- real stores


class Agents:
    """Some agents, each a thread, on one store."""

    def __init__(self, url, prefix, folder):
        self.url, self.prefix, self.folder = url, prefix, folder
        self.store = SandboxStore.from_url(url, prefix=prefix, agent="director", partitions=2)
        self.client = redis.Redis.from_url(url)

    def work(self, name, carry_out, number):
        with SandboxStore.from_url(self.url, prefix=self.prefix, agent=name, partitions=2) as store:
            last = inside.traced(store)
            with HistoryLog(self.folder / f"{name}.history") as log:
                course = steps(name, random.Random(name))
                for _, (operation, sandbox_id, args) in zip(range(number), course, strict=False):
                    with log.asking(operation, sandbox_id, **args) as asked:
                        try:
                            asked.answer = carry_out(store, operation, sandbox_id, args)
                        finally:
                            asked.request, asked.lost = last(asked.id)

    def run(self, carry_out=perform, number=300):
        """What the check says when one of them does everything in its own way."""
        self.work("first", perform, 1)
        with HistoryLog(self.folder / "director.history") as log:
            last = inside.traced(self.store)
            for sandbox_id in COUNTERS:
                for operation, args in (("create", {"created_at_ns": 1}), ("start", {"pid": 1})):
                    with log.asking(operation, sandbox_id, **args) as asked:
                        asked.answer = perform(self.store, operation, sandbox_id, args)
                        asked.request, asked.lost = last(asked.id)
        jobs = [("odd", carry_out), *((f"agent-{i}", perform) for i in range(3))]
        threads = [threading.Thread(target=self.work, args=(*job, number)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        histories = []
        for path in self.folder.glob("*.history"):
            reader = Reader(path)
            reader.read()
            histories.append(reader.history)
        records = {sandbox.id: sandbox for sandbox in self.store.list(states=list(State))}
        return check(histories, inside.changes(self.store), records=records)

    def close(self):
        inside.delete_store(self.store)
        self.store.close()
        self.client.close()


@pytest.fixture
def agents(server, prefix, tmp_path):
    made = Agents(server.url, prefix, tmp_path)
    yield made
    made.close()


def test_what_a_real_store_does_is_accepted(agents):
    assert [str(violation) for violation in agents.run().violations] == []


def test_an_agent_that_writes_what_it_read_before_is_found(agents):
    """A read, a change and a write, in place of an update: what others write meanwhile is overwritten."""

    def careless(store, operation, sandbox_id, args):
        if operation != "update" or args["kind"] != "count":
            return perform(store, operation, sandbox_id, args)
        seen = store.get(sandbox_id)
        time.sleep(0.002)
        return store.update(sandbox_id, lambda _: updated(args, seen.status))

    assert agents.run(careless).found.keys() & {Fault.EFFECT, Fault.LOST}


def test_an_agent_that_writes_past_the_store_is_found(agents):
    def careless(store, operation, sandbox_id, args):
        if operation == "update" and args["kind"] == "count":
            key = next(iter(agents.client.scan_iter(f"{agents.prefix}:*:status:{sandbox_id}")), None)
            if key:
                agents.client.hincrby(key, "exit_status", 1)
            return store.get(sandbox_id)
        return perform(store, operation, sandbox_id, args)

    assert agents.run(careless).found.keys() & {Fault.EFFECT, Fault.LOST, Fault.RECORD}


def test_an_agent_that_asks_twice_is_found(agents):
    """A blind retry after every tenth write, as a client makes it that knows no tokens."""

    def hasty(store, operation, sandbox_id, args):
        answer = perform(store, operation, sandbox_id, args)
        if operation == "update" and args["kind"] == "count":
            store.update(sandbox_id, partial(updated, args))
        return answer

    found = agents.run(hasty).found
    assert Fault.UNASKED in found
