"""Races between real processes, released at one instant, on real servers. Whoever wins, it is one; nothing is lost and
nothing is left behind.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from sandbox_redis import (
    AlreadyExistsError,
    AsyncSandboxStore,
    NotFoundError,
    SandboxError,
    SandboxStore,
    State,
    Status,
    TransitionError,
)

PROCESSES = 8
ROUNDS = 10
UPDATES = 25


def increment(status: Status) -> Status:
    return replace(status, pid=status.pid + 1)


def race(store: SandboxStore, task: str, number: int) -> list[Any]:
    """What one process does in a race."""

    def outcome(call: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            call(*args, **kwargs)
        except SandboxError as error:
            return error
        return "ok"

    match task:
        case "create":
            return [outcome(store.create, sandbox_id=f"s{i}", node=f"n{number}") for i in range(ROUNDS)]
        case "start":
            return [outcome(store.start, f"s{i}", pid=number) for i in range(ROUNDS)]
        case "end":
            call = [store.stop, store.exit, store.remove, increment][number % 4]
            if call is increment:
                return [outcome(store.update, f"s{i}", increment) for i in range(ROUNDS)]
            told = {"exit_status": number, "exited_at_ns": number} if call == store.exit else {}
            return [outcome(call, f"s{i}", **told) for i in range(ROUNDS)]
        case "remove":
            with store.batch() as batch:
                results = [batch.remove(f"s{i}", force=True) for i in range(ROUNDS)]
            return [result.result() for result in results]
        case "update":
            return [outcome(store.update, "s0", increment, timeout=60) for _ in range(UPDATES)]
        case "live":
            return [
                lived
                for _ in range(ROUNDS)
                for lived in (
                    outcome(store.create, sandbox_id="s0"),
                    outcome(store.start, "s0", pid=number),
                    outcome(store.remove, "s0", force=True),
                )
            ]
    raise AssertionError(task)


def racer(number: int, barrier: Any, pipe: Any) -> None:
    """A process that races whenever it is told where."""
    while where := pipe.recv():
        url, prefix, task = where
        with SandboxStore(url, prefix=prefix, agent=f"racer-{number}", partitions=number + 1) as store:
            store.ids()  # connected; the layout is known where there is one, and else a race as well
            barrier.wait()
            pipe.send(race(store, task, number))


@pytest.fixture(scope="module")
def racers():
    """Eight processes; ``racers(url, prefix, task)`` lets them race and returns what each came to."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES, timeout=60)
    pipes, processes = [], []
    for number in range(PROCESSES):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=racer, args=(number, barrier, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)

    def run(url: str, prefix: str, task: str) -> list[list[Any]]:
        for pipe in pipes:
            pipe.send((url, prefix, task))
        return [pipe.recv() for pipe in pipes]

    yield run
    for pipe, process in zip(pipes, processes, strict=True):
        with suppress(BrokenPipeError):  # it has failed, and its test with it
            pipe.send(None)
        process.join()


@pytest.fixture
def run(racers, server, prefix):
    return lambda task: racers(server.url, prefix, task)


@pytest.fixture
def store(server, prefix):
    """The referee's view; what it sees at the end fits together."""
    with SandboxStore(server.url, prefix=prefix, agent="referee") as store:
        yield store
        assert store.audit().problems == []


def kinds(outcomes: list[list[Any]]) -> Counter[Any]:
    return Counter(
        outcome if isinstance(outcome, (str, bool)) else type(outcome) for row in outcomes for outcome in row
    )


def assert_every_update_counted(store: SandboxStore, updates: int) -> None:
    assert store.get("s0").status.pid == updates
    pids = [event.sandbox.status.pid for event in store.audit().events if event.transition == "update"]
    assert pids == list(range(1, updates + 1))


def test_of_those_who_create_one_id_one_wins(run, store):
    outcomes = run("create")  # on an empty server: each would lay the store out in another way
    assert kinds(outcomes) == {"ok": ROUNDS, AlreadyExistsError: ROUNDS * (PROCESSES - 1)}
    for i in range(ROUNDS):
        (winner,) = [number for number, row in enumerate(outcomes) if row[i] == "ok"]
        assert store.get(f"s{i}").node == f"n{winner}"
    assert len(store.audit().events) == ROUNDS


def test_of_those_who_start_one_sandbox_one_wins(run, store):
    run("create")
    outcomes = run("start")
    assert kinds(outcomes) == {"ok": ROUNDS, TransitionError: ROUNDS * (PROCESSES - 1)}
    for i in range(ROUNDS):
        (winner,) = [number for number, row in enumerate(outcomes) if row[i] == "ok"]
        assert store.get(f"s{i}").status.pid == winner


def test_stop_exit_remove_and_update_race_and_nobody_loses_anything(run, store):
    run("create")
    run("start")
    outcomes = run("end")
    events = store.audit().events
    for i in range(ROUNDS):
        mine = [event for event in events if event.id == f"s{i}"]
        names = [event.transition for event in mine if event.transition != "update"]
        told = {type(row[i]) for row in outcomes} - {str}
        assert told <= {TransitionError, NotFoundError}
        if names[-1] == "remove":
            assert f"s{i}" not in store.ids()
        else:
            status = store.get(f"s{i}").status
            assert status.state is State.NOTREADY
            assert status.exited_at_ns == status.exit_status != 0  # one exit was told, the first that came
        assert names.count("remove") <= 1
        assert names.count("exit") <= 1
        assert names.count("stop") + names.count("exit") <= 2


def test_a_sandbox_is_removed_once(run, store):
    run("create")
    outcomes = run("remove")
    assert kinds(outcomes) == {True: ROUNDS, False: ROUNDS * (PROCESSES - 1)}
    assert store.ids(states=list(State)) == []


def test_no_update_of_many_processes_is_lost(run, store):
    store.create(sandbox_id="s0")
    store.start("s0", pid=0)
    assert kinds(run("update")) == {"ok": PROCESSES * UPDATES}
    assert_every_update_counted(store, PROCESSES * UPDATES)


def test_no_update_of_many_threads_with_one_store_is_lost(store):
    store.create(sandbox_id="s0")
    store.start("s0", pid=0)
    with ThreadPoolExecutor(PROCESSES) as threads:
        for outcome in [threads.submit(race, store, "update", i) for i in range(PROCESSES)]:
            assert set(outcome.result()) == {"ok"}
    assert_every_update_counted(store, PROCESSES * UPDATES)


def test_no_update_of_many_tasks_with_one_store_is_lost(server, prefix, store):
    async def update_all() -> None:
        async with AsyncSandboxStore(server.url, prefix=prefix) as shared:
            await asyncio.gather(*(shared.update("s0", increment, timeout=60) for _ in range(PROCESSES * UPDATES)))

    store.create(sandbox_id="s0")
    store.start("s0", pid=0)
    asyncio.run(update_all())
    assert_every_update_counted(store, PROCESSES * UPDATES)


def test_a_store_goes_on_in_parent_and_child_after_a_fork(store):
    store.create(sandbox_id="s0")
    store.start("s0", pid=0)
    if not (child := os.fork()):
        failed = True
        with suppress(BaseException):
            failed = set(race(store, "update", 0)) != {"ok"}
        os._exit(failed)
    race(store, "update", 1)
    assert os.waitpid(child, 0)[1] == 0
    assert_every_update_counted(store, 2 * UPDATES)


def test_those_who_live_through_one_id_see_each_other_and_leave_nothing(run, store):
    outcomes = kinds(run("live"))
    events = Counter(event.transition for event in store.audit().events)
    assert outcomes["ok"] > events["create"]
    assert events["create"] == events["remove"]
    assert events["start"] <= events["stop"]
    assert store.ids(states=list(State)) == []
