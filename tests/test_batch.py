"""Batches: many operations in few packets, each with a result of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox_redis import (
    AlreadyExistsError,
    InvalidArgumentError,
    Metadata,
    NotFoundError,
    SandboxError,
    State,
    Status,
    TransitionError,
)
from sandbox_redis.batch import Batch
from sandbox_redis.operations import Operations
from sandbox_redis.topology import Single
from sandbox_redis.wire import Lost, Send, SendAll, ServerError


def test_each_operation_has_its_own_result_or_error(store):
    store.load("old", Status(State.READY), node="node-1")
    with store.batch() as batch:
        results = {
            "create": batch.create(sandbox_id="new", node="node-1"),
            "named": batch.create(),
            "load": batch.load("old", Status(State.READY)),
            "start": batch.start("old", pid=1),
            "get": batch.get("old"),
            "port_forward": batch.port_forward("old"),
            "exit": batch.exit("old", exit_status=3),
            "stop": batch.stop("none"),
            "bad": batch.start("new", pid=-1),
            "fail_start": batch.fail_start("new"),
            "remove": batch.remove("new"),
            "gone": batch.remove("old"),
        }
    errors = {name: type(result.error) for name, result in results.items() if result.error}
    assert errors == {
        "load": AlreadyExistsError,
        "start": TransitionError,
        "stop": NotFoundError,
        "bad": InvalidArgumentError,
    }
    assert results["create"].result().status.state is State.INIT
    assert len(results["named"].result().id) == 64
    assert results["get"].result() == results["port_forward"].result()
    assert results["exit"].result().status.exit_status == 3
    assert (results["fail_start"].result(), results["remove"].result(), results["gone"].result()) == (None, False, True)
    with pytest.raises(TransitionError):
        results["start"].result()
    assert store.ids(states=list(State)) == [results["named"].result().id]
    assert store.audit().problems == []


def test_the_operations_on_one_sandbox_are_carried_out_in_their_order(store):
    with store.batch() as batch:
        for i in range(30):
            batch.create(sandbox_id=f"s{i}")
            batch.start(f"s{i}", pid=i)
            batch.update(f"s{i}", lambda status: replace(status, pid=status.pid + 100))
            batch.stop(f"s{i}")
            batch.start(sandbox_id=f"s{i}", pid=1)
            batch.remove(f"s{i}")
            batch.create(sandbox_id=f"s{i}")
    lives: dict[str, list[str]] = {}
    for event in store.audit().events:
        lives.setdefault(event.id, []).append(event.transition)
    assert lives == {f"s{i}": ["create", "start", "update", "stop", "remove", "create"] for i in range(30)}


def test_a_result_is_not_there_before_the_batch_has_ended(store):
    with store.batch() as batch:
        result = batch.create(sandbox_id="it")
        assert not result.done
        for read in (result.result, lambda: result.error):
            with pytest.raises(SandboxError, match="with block"):
                read()
        assert repr(result) == "<Result not there yet>"
    assert result.done
    assert result.error is None
    assert "it" in repr(result)


def test_a_block_that_raises_sends_nothing(store, snapshot):
    with pytest.raises(ZeroDivisionError), store.batch() as batch:
        result = batch.create(sandbox_id="it")
        raise ZeroDivisionError
    assert snapshot() == {}
    with pytest.raises(SandboxError):
        result.result()


def test_an_empty_batch_sends_nothing(store, snapshot):
    with store.batch():
        pass
    assert snapshot() == {}


@pytest.mark.parametrize("backend", ["valkey", "redis"])
def test_a_batch_may_hold_more_than_the_sockets_do(store):
    metadata = Metadata(annotations={"big": "x" * 60_000})
    with store.batch() as batch:
        results = [batch.create(sandbox_id=f"s{i}", metadata=metadata) for i in range(250)]
    assert {len(result.result().metadata.annotations["big"]) for result in results} == {60_000}


def test_an_update_in_a_batch_has_its_result_and_what_it_raises_is_its_error(store):
    raised = ValueError("no")

    def fail(status):
        raise raised

    with store.batch() as batch:
        batch.create(sandbox_id="it")
        started = batch.update("it", lambda status: replace(status, state=State.READY, pid=7))
        failed = batch.update("it", fail)
        refused = batch.update("it", lambda status: replace(status, state=State.INIT))
        stopped = batch.stop("it")
    assert started.result().status.pid == 7
    assert failed.error is raised
    assert refused.error.state == "READY"
    assert stopped.result().status.state is State.NOTREADY
    assert store.audit().problems == []


def test_an_interrupt_in_an_update_function_ends_the_batch(store):
    def interrupt(status):
        raise KeyboardInterrupt

    store.create(sandbox_id="it")
    with pytest.raises(KeyboardInterrupt), store.batch() as batch:
        result = batch.update("it", interrupt)
    assert not result.done
    assert store.start("it", pid=1).status.pid == 1


def play(batch: Batch, answer: Callable[[Send], Any]) -> list[list[Send]]:
    """Play a batch by hand; what it sent together."""
    op, packets = batch.carry_out(), []
    for request in op:
        if isinstance(request, SendAll):
            packets.append(list(request.sends))
            for send in packets[-1]:
                request.deliver(answer(send))
    return packets


@pytest.fixture
def operations():
    return Operations(Single("here:1"), prefix="p", agent="me", timeout=5, partitions=1, events_maxlen=1000)


def answer(send: Send) -> Any:
    match send.commands[0]:
        case ("HMGET", *_):
            return [[b"1", b"1", b"1000"]]
        case ("XREVRANGE", *_):
            return [[]]
        case ("SCRIPT", *_):
            return [b"sha"]
    return [[b"OK", [b"state", b"INIT"]]]


def test_thousands_of_operations_take_few_packets(operations):
    batch = Batch(operations)
    results = [batch.create(sandbox_id=f"s{i}") for i in range(2500)]
    packets = play(batch, answer)
    assert len(packets) <= 7  # the layout; and three slices, each with a question for the newest event before it
    assert [len(sends) for sends in packets[:2]] == [1, 1]  # once for all
    assert sum(len(sends) for sends in packets) <= 2500 + 4
    assert all(result.error is None for result in results)


@pytest.mark.parametrize(
    "add", [lambda b: b.get("it"), lambda b: b.start("it", pid=-1), lambda b: b.start("it", pid=1)]
)
def test_thousands_of_operations_on_one_sandbox_are_carried_out_one_behind_the_other(operations, add):
    batch = Batch(operations)
    results = [add(batch) for _ in range(3000)]  # three times the depth that Python's stack allows
    assert all(len(sends) <= 1 for sends in play(batch, answer))
    assert all(result.done for result in results)


def test_a_missing_script_is_supplied_once_for_all(operations):
    missing = SimpleNamespace(left=100)

    def forget(send):
        if send.commands[0][0] == "EVALSHA" and missing.left:
            missing.left -= 1
            return [ServerError("NOSCRIPT", "No matching script.")]
        return answer(send)

    batch = Batch(operations)
    results = [batch.create(sandbox_id=f"s{i}") for i in range(100)]
    packets = play(batch, forget)
    assert [len(sends) for sends in packets] == [1, 1, 100, 1, 100]
    assert all(result.error is None for result in results)


def test_a_lost_packet_is_found_out_for_each_of_its_operations(operations):
    lost = Lost("here:1", "Connection closed by server")
    seen: list[str] = []

    def cut(send):
        name = send.key
        if send.commands[0][0] == "EVALSHA" and seen.count(name) == 0:
            seen.append(name)
            return answer(send) if name.endswith(("s0", "s1")) else lost
        if send.commands[0][0] == "EVALSHA" and seen.count(name) == 1:  # find
            seen.append(name)
            return [[b"CURRENT", [b"state", b"INIT"]]] if name.endswith("s2") else [[b"NONE"]]
        return answer(send)

    batch = Batch(operations)
    results = [batch.create(sandbox_id=f"s{i}") for i in range(4)]
    packets = play(batch, cut)
    assert [len(sends) for sends in packets] == [1, 1, 4, 2, 1]
    assert all(result.result().status.state is State.INIT for result in results)


def test_what_is_added_too_late_is_refused_and_not_forgotten(operations):
    batch = Batch(operations)
    result = batch.create(sandbox_id="a")
    play(batch, answer)
    with pytest.raises(SandboxError, match="never be sent"):
        batch.start("a", pid=1)
    assert result.result().id == "a"
    assert len(batch._chains["a"]) == 1
