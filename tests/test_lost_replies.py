"""Exactly once over a lost connection: one effect, one event, a true answer, wherever the connection is cut."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count

import pytest
import redis
from faults.proxy import CUTS, Proxy
from faults.writes import EXITED, METADATA, READY, WRITES, Write, opened

from sandbox_redis import (
    AlreadyExistsError,
    Metadata,
    NotFoundError,
    OutcomeUnknownError,
    Sandbox,
    SandboxStore,
    State,
    Status,
    StoreUnavailableError,
    TransitionError,
)
from sandbox_redis.scripts import FOLDER, script
from sandbox_redis.server import EmbeddedServer
from sandbox_redis.states import ABSENT, MACHINE

SCRIPTS = [path.name.removesuffix(".lua") for path in FOLDER.iterdir() if path.name.endswith(".lua")]
TIMEOUT = 0.3  # seconds, for a server that does not answer
SLACK = 1.5  # seconds, on a busy machine
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])


@pytest.fixture
def server(request, module_servers) -> EmbeddedServer:
    return module_servers(getattr(request, "param", "valkey"))


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def looking(server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def other(looking, prefix) -> Iterator[SandboxStore]:
    """Another agent, whose connection holds."""
    with SandboxStore(looking, prefix=prefix, agent="other") as store:
        yield store


@pytest.fixture
def warm(proxy, prefix, looking, flavour) -> Iterator:
    """A store that knows its layout, on a server that knows the scripts: its next packet is the write, or the WATCH of
    an update."""
    yield from warmed(flavour, proxy.url, prefix, looking)


@pytest.fixture
def hasty(proxy, prefix, looking, flavour) -> Iterator:
    """The same, with a short timeout."""
    yield from warmed(flavour, proxy.url, prefix, looking, timeout=TIMEOUT)


def warmed(flavour, url, prefix, looking, **settings) -> Iterator:
    for name in SCRIPTS:
        looking.script_load(script(name).source)
    with opened(flavour, url, prefix=prefix, agent="me", **settings) as store:
        store.create(sandbox_id="unconcerned")
        yield store


def mine(store: SandboxStore, sandbox_id: str) -> list:
    """The events of what the agent "me" did to a sandbox. Everything in the store must be in order."""
    audit = store.audit()
    assert audit.problems == []
    return by_me(audit, sandbox_id)


def by_me(audit, sandbox_id: str) -> list:
    return [event for event in audit.events if event.id == sandbox_id and event.by == "me"]


def assert_once(write: Write, store: SandboxStore, sandbox_id: str, answer) -> None:
    """One effect, one event, a true answer."""
    events = mine(store, sandbox_id)
    assert [event.transition for event in events] == list(write.events)
    assert len({event.request for event in events}) == 1
    assert answer == write.answer(sandbox_id, events)


def token_in(packet) -> str:
    """The request token of a packet that writes."""
    script_call = next(command for command in packet if command[0] == b"EVALSHA")
    return script_call[3 + int(script_call[2]) + 2].decode()


# -- a cut at every packet


def cut_everywhere(write: Write, flavour: str, proxy: Proxy, looking: redis.Redis, how: str, cuts: int, *, batch: bool):
    """Do the operation again and again, in a new store each time, and cut at its packet 0, 1, 2, … until all have had
    their turn: layout, floor, NOSCRIPT, SCRIPT LOAD, WATCH, the write itself, finding out."""
    ids = ["a", "b", "c"] if batch else ["a"]
    for number in count():
        looking.flushall()
        with SandboxStore(looking, agent="other") as other, opened(flavour, proxy.url, agent="me") as store:
            for each in ids:
                write.prepare(other, each)
            looking.script_flush()
            proxy.fault(how, range(number, number + cuts))
            if batch:
                with store.batch() as collected:
                    results = [write.run(collected, each) for each in ids]
                answers = [result.result() for result in results]
            else:
                answers = [write.run(store, "a")]
            for each, answer in zip(ids, answers, strict=True):
                assert_once(write, other, each, answer)
        if proxy.fired < cuts:
            assert number > 2
            return


@every_flavour
@every_write
@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("how", CUTS)
def test_a_cut_anywhere_loses_nothing_and_repeats_nothing(write, flavour, batch, how, proxy, looking):
    cut_everywhere(write, flavour, proxy, looking, how, 1, batch=batch)


@pytest.mark.parametrize("flavour, batch", [("sync", False), ("asyncio", True)])
@pytest.mark.parametrize("write", [WRITES[name] for name in ("create", "exit", "force", "update")])
@pytest.mark.parametrize("how", ["after", "before"])
@pytest.mark.parametrize("cuts", [2, 3])
def test_nor_do_two_and_three_cuts_in_a_row(write, flavour, batch, how, cuts, proxy, looking):
    cut_everywhere(write, flavour, proxy, looking, how, cuts, batch=batch)


@pytest.mark.parametrize("server", ["redis"], indirect=True)
@pytest.mark.parametrize("flavour, batch, how", [("sync", True, "after"), ("asyncio", False, "half")])
@every_write
def test_redis_behaves_as_valkey_does(write, flavour, batch, how, proxy, looking):
    cut_everywhere(write, flavour, proxy, looking, how, 1, batch=batch)


@every_flavour
@pytest.mark.parametrize("how", CUTS)
def test_cuts_in_the_middle_of_a_large_batch(how, flavour, warm, other, proxy):
    ids = [f"s{i:04}" for i in range(600)]
    proxy.fault(how, {0, 3, 5})
    with warm.batch() as batch:
        created = [batch.create(sandbox_id=each) for each in ids]
        started = [batch.start(each, pid=7) for each in ids]
    assert proxy.fired == 3
    assert [result.result().id for result in created] == [result.result().id for result in started] == ids
    audit = other.audit()
    assert audit.problems == []
    assert Counter(event.transition for event in audit.events) == {"create": len(ids) + 1, "start": len(ids)}


# -- others are quicker than the finding-out


def go_on(other: SandboxStore, sandbox_id: str) -> None:
    """Another agent does the next thing."""
    state = other.get(sandbox_id).status.state
    if state is State.INIT:
        other.start(sandbox_id, pid=99)
    elif state is State.READY:
        other.exit(sandbox_id, exit_status=9)
    else:
        other.update(sandbox_id, lambda status: replace(status, exit_status=status.exit_status + 90))


def go_on_twice(other: SandboxStore, sandbox_id: str) -> None:
    go_on(other, sandbox_id)
    go_on(other, sandbox_id)


def remove(other: SandboxStore, sandbox_id: str) -> None:
    other.remove(sandbox_id, force=True)


def create_again(other: SandboxStore, sandbox_id: str) -> None:
    """Where the operation began, but as another sandbox."""
    remove(other, sandbox_id)
    metadata = Metadata(name="another", labels={"x": "y"})
    other.load(sandbox_id, replace(EXITED, created_at_ns=1, exit_status=99), node="elsewhere", metadata=metadata)


MEDDLING = [
    pytest.param(write, meddle, id=f"{name}, {meddle.__name__}")
    for name, write in WRITES.items()
    for meddle in (go_on, go_on_twice, remove, create_again)
    if isinstance(write.after, Status) or meddle is create_again
]


@every_flavour
@pytest.mark.parametrize("write, meddle", MEDDLING)
def test_the_answer_is_true_when_others_passed_over_the_write(write, meddle, flavour, warm, other, proxy):
    write.prepare(other, "a")
    proxy.fault("after", {write.packet}, then=lambda: meddle(other, "a"))
    answer = write.run(warm, "a")
    assert proxy.fired == 1
    if meddle in (remove, create_again) and write.before is not None and isinstance(answer, Sandbox):
        assert answer.metadata == Metadata()  # it is gone with the record, and that of another sandbox would be a lie
        answer = replace(answer, metadata=METADATA)
    assert_once(write, other, "a", answer)


@every_flavour
@pytest.mark.parametrize("write", [WRITES["start"], WRITES["stop"], WRITES["update"]], ids=["start", "stop", "update"])
def test_a_write_that_never_arrived_is_refused_when_others_came_first(write, flavour, warm, other, proxy):
    write.prepare(other, "a")
    proxy.fault("before", {write.packet}, then=lambda: remove(other, "a"))
    with pytest.raises(NotFoundError):
        write.run(warm, "a")
    assert mine(other, "a") == []


@every_flavour
def test_an_update_whose_commit_never_arrived_sees_what_others_did(flavour, warm, other, proxy):
    write = WRITES["update"]
    write.prepare(other, "a")
    proxy.fault("before", {1}, then=lambda: other.update("a", lambda status: replace(status, pid=40)))
    assert write.run(warm, "a").status.pid == 41
    assert len(mine(other, "a")) == 1


@every_flavour
@every_write
def test_the_outcome_is_unknown_when_the_events_are_trimmed(write, flavour, warm, other, proxy, looking, prefix):
    def trim():
        create_again(other, "a")
        assert looking.xtrim(f"{prefix}:{{0}}:events", maxlen=1, approximate=False)

    write.prepare(other, "a")
    proxy.fault("after", {write.packet}, then=trim)
    with pytest.raises(OutcomeUnknownError) as caught:
        write.run(warm, "a")
    assert (caught.value.id, caught.value.request) == ("a", token_in(proxy.packets[write.packet]))
    assert by_me(other.audit(), "a") == []  # it was not done again


@every_flavour
@every_write
@pytest.mark.parametrize("busy", [False, True], ids=["empty", "used again"])
def test_the_outcome_is_unknown_when_the_server_lost_its_data(write, busy, flavour, warm, other, proxy, looking):
    def lose():
        looking.flushall()
        if busy:
            create_again(other, "a")

    write.prepare(other, "a")
    proxy.fault("after", {write.packet}, then=lose)
    with pytest.raises(OutcomeUnknownError) as caught:
        write.run(warm, "a")
    assert caught.value.request == token_in(proxy.packets[write.packet])
    audit = other.audit()
    assert by_me(audit, "a") == []  # it was not done again
    layout = [problem for problem in audit.problems if "how the store is laid out" in problem]
    assert len(layout) == (write.before is not None)  # who knew it sees that it is gone with the data
    assert audit.problems == layout


# -- a packet that arrives late, when its write has long been done again


def nothing(other: SandboxStore, sandbox_id: str) -> None:
    pass


def back_again(write: Write):
    """The sandbox is removed, and one of the same id is where the operation begins."""

    def back_at_the_beginning(other: SandboxStore, sandbox_id: str) -> None:
        other.remove(sandbox_id, force=True)
        write.prepare(other, sandbox_id)

    return back_at_the_beginning


LATE = [
    pytest.param(write, meddle, id=f"{name}, {meddle.__name__}")
    for name, write in WRITES.items()
    for meddle in (nothing, go_on, back_again(write))
    if isinstance(write.after, Status) or meddle is not go_on
]


@every_flavour
@pytest.mark.parametrize("write, meddle", LATE)
def test_a_late_original_has_no_second_effect(write, meddle, flavour, warm, other, proxy):
    write.prepare(other, "a")
    proxy.fault("late", {write.packet})
    answer = write.run(warm, "a")
    assert proxy.fired == 1
    assert_once(write, other, "a", answer)
    meddle(other, "a")
    audit = other.audit()
    proxy.deliver()
    assert other.audit() == audit


@every_flavour
@every_write
def test_a_late_original_may_come_between_the_finding_out_and_the_second_attempt(write, flavour, warm, other, proxy):
    def deliver_behind_find():
        proxy.fault("pass", {write.packet}, then=proxy.deliver)  # an update asks behind its WATCH

    write.prepare(other, "a")
    proxy.fault("late", {write.packet}, then=deliver_behind_find)
    answer = write.run(warm, "a")
    assert proxy.fired == 1
    assert_once(write, other, "a", answer)


@pytest.mark.parametrize("port", [None, 0], ids=["unix", "tcp"])
@every_flavour
def test_the_connection_of_nobody_else_is_dropped(flavour, port, own_server, tmp_path):
    """A server numbers its clients from the beginning when it starts again."""
    server = own_server(data=tmp_path, port=port)
    with opened(flavour, server.url, agent="me") as store, ExitStack() as stack:
        with redis.Redis.from_url(server.url) as looking:
            for _ in range(20):
                looking.ping()
                looking.connection_pool.disconnect()
            store.create(sandbox_id="a")
            mine = max(int(client["id"]) for client in looking.client_list() if client["name"] == "me")
        server.stop()
        server.start()
        strangers = [stack.enter_context(redis.Redis.from_url(server.url, single_connection_client=True))]
        while strangers[-1].client_id() < mine:
            strangers.append(stack.enter_context(redis.Redis.from_url(server.url, single_connection_client=True)))
        assert strangers[-1].client_id() == mine
        store.start("a", pid=1)
        assert strangers[-1].client_id() == mine  # it has no other connection


# -- a server that stops in the middle


@pytest.fixture
def stop(server) -> Iterator:
    """Lets the server do nothing any more; what is sent to it waits in its socket."""
    yield lambda: os.kill(server.pid, signal.SIGSTOP)
    os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def resume(server):
    return lambda: os.kill(server.pid, signal.SIGCONT)


@every_flavour
@every_write
def test_a_server_that_stops_past_the_timeout_of_an_attempt(write, flavour, hasty, other, proxy, stop, resume):
    for each in "abc":
        write.prepare(other, each)
    proxy.connected = resume  # the first attempt has given up when there is a second connection
    stop()
    answer = write.run(hasty, "a")
    assert_once(write, other, "a", answer)
    stop()
    with hasty.batch() as batch:
        results = {each: write.run(batch, each) for each in "bc"}
    for each, result in results.items():
        assert_once(write, other, each, result.result())


@every_flavour
def test_a_server_that_stops_between_the_two_packets_of_an_update(flavour, hasty, other, proxy, stop, resume):
    def fn(status):
        if status == READY:
            stop()
        return replace(status, pid=status.pid + 1)

    WRITES["update"].prepare(other, "a")
    proxy.connected = resume
    answer = hasty.update("a", fn)
    assert_once(WRITES["update"], other, "a", answer)


@every_flavour
@pytest.mark.parametrize("write", [WRITES[name] for name in ("create", "exit", "force", "update")])
@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batch"])
def test_a_server_that_does_not_come_back(write, flavour, batch, hasty, other, stop, resume):
    for each in "abc":
        write.prepare(other, each)
    # An update and a batch have only read when they hear no more, so it is certain that nothing was written.
    wanted = StoreUnavailableError if write.packet or batch else OutcomeUnknownError
    stop()
    start = time.monotonic()
    if batch:
        with hasty.batch() as collected:
            results = [write.run(collected, each) for each in "abc"]
        assert {type(result.error) for result in results} == {wanted}
    else:
        with pytest.raises(wanted):
            write.run(hasty, "a")
    assert time.monotonic() - start < TIMEOUT + SLACK
    resume()
    for each in "abc":
        assert [event.transition for event in mine(other, each)] in ([], list(write.events))


@every_flavour
def test_an_update_whose_commit_hears_no_more(flavour, hasty, other, stop, resume):
    def fn(status):
        stop()
        return replace(status, pid=8)

    WRITES["update"].prepare(other, "a")
    with pytest.raises(OutcomeUnknownError):
        hasty.update("a", fn)
    resume()
    assert len(mine(other, "a")) <= 1


@every_flavour
def test_a_read_from_a_server_that_does_not_come_back(flavour, hasty, stop):
    stop()
    for read in (hasty.ids, lambda: hasty.get("a"), lambda: hasty.port_forward("a"), hasty.audit):
        start = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            read()
        assert time.monotonic() - start < TIMEOUT + SLACK


# -- anything, anywhere


class Chance:
    """Contains each packet with a probability."""

    def __init__(self, rng: random.Random, probability: float) -> None:
        self._rng = rng
        self._probability = probability

    def __contains__(self, number: object) -> bool:
        return self._rng.random() < self._probability


def step(rng: random.Random):
    """An operation by its name in the state machine, and how to do it."""
    pid = rng.randrange(1, 10**6)
    state = rng.choice(list(State))

    def change(status: Status) -> Status:
        return replace(status, state=state, pid=pid)

    return rng.choice(
        [
            ("create", lambda store, i: store.create(sandbox_id=i)),
            ("load", lambda store, i: store.load(i, READY, metadata=METADATA)),
            ("start", lambda store, i: store.start(i, pid=pid)),
            ("fail_start", lambda store, i: store.fail_start(i)),
            ("stop", lambda store, i: store.stop(i)),
            ("exit", lambda store, i: store.exit(i, exit_status=3)),
            ("remove", lambda store, i: store.remove(i)),
            ("force_remove", lambda store, i: store.remove(i, force=True)),
            (f"update {state}", lambda store, i: store.update(i, change)),
        ]
    )


def events_of(operation: str, before: State | None, *, known_exit: bool) -> list[str] | None:
    """The events that an operation must come to, or None when it must be refused."""
    operation, _, wanted = operation.partition(" ")
    after = MACHINE[operation].get(before or ABSENT)
    if after is None or (wanted and wanted not in after):
        return None
    if operation == "force_remove":
        return [] if before is None else ["stop", "remove"] if after == ("NOTREADY",) else ["remove"]
    if before is State.NOTREADY and (operation in ("stop", "update") or (operation == "exit" and known_exit)):
        return []
    return [] if operation == "remove" and before is None else [operation]


@every_flavour
@pytest.mark.parametrize("seed", range(2))
def test_any_sequence_of_operations_and_cuts(seed, flavour, warm, proxy, other):
    """What is acknowledged happened once, what is refused did not happen, what is unknown happened at most once."""
    rng = random.Random(seed)
    unknown = 0
    for number in range(60):
        ids = rng.sample("abcdef", rng.choice([1, 1, 3]))
        audit = other.audit()
        steps = {each: step(rng) for each in ids}
        proxy.fault(rng.choice(CUTS), Chance(rng, 0.25))
        with warm.batch() as batch:
            results = {each: run(batch, each) for each, (_, run) in steps.items()}
        proxy.fault()
        after = other.audit()
        assert after.problems == []
        for each, (operation, _) in steps.items():
            where = f"seed {seed}, step {number}, {operation} {each}: {results[each]}"
            was = audit.sandboxes.get(each)
            known_exit = was is not None and was.status.exited_at_ns != 0
            wanted = events_of(operation, was and was.status.state, known_exit=known_exit)
            new = [event for event in after.events[len(audit.events) :] if event.id == each]
            got = [event.transition for event in new]
            assert len({event.request for event in new}) <= 1, where
            match results[each].error:
                case None:
                    assert got == wanted, where
                case OutcomeUnknownError():
                    unknown += 1
                    assert got in (wanted, []), where
                case NotFoundError() | AlreadyExistsError() | TransitionError():
                    assert wanted is None, where
                    assert got == [], where
                case error:
                    raise AssertionError(where) from error
    assert unknown < 10
