"""A server that comes back with less than it had confirmed: who had seen more says so, once, and takes nothing for
removed that is only lost."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import redis
from faults.writes import READY, opened

from sandbox_redis import NotFoundError, OutcomeUnknownError, SandboxStore, State, StoreRolledBackError, pool, session
from sandbox_redis.seen import Seen

every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])


@pytest.fixture(autouse=True)
def looked_at(monkeypatch) -> None:
    """Each connection is looked at before it is used again, however short it was idle."""
    monkeypatch.setattr(pool, "IDLE_MAX", 0.0)


@pytest.fixture
def noticed(flavour, until) -> Callable[..., None]:
    """Waits until a store knows that its connections are gone."""

    def wait(store) -> None:
        if flavour == "asyncio":  # whose loop runs while the store is idle, but not in these tests
            shared = next(iter(store.wrapped._lane._pools.values()))._shared
            until(lambda: store.runner.run(asyncio.sleep(0)) or all(each.failure for each in shared))

    return wait


@pytest.fixture
def restart(noticed) -> Callable[..., None]:
    """Stops a server and starts it again, until a store knows of it."""

    def again(store, server, sig=signal.SIGTERM) -> None:
        server.stop(sig)
        server.start()
        noticed(store)

    return again


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "sandbox_redis" and "has lost data" in r.getMessage()]


def absent(call: Callable[[], Any]) -> None:
    with pytest.raises(NotFoundError):
        call()


OPERATIONS = {
    "get": lambda store: absent(lambda: store.get("a")),
    "create": lambda store: store.create(sandbox_id="a"),
    "stop": lambda store: absent(lambda: store.stop("a")),
    "update": lambda store: absent(lambda: store.update("a", lambda status: replace(status, pid=2))),
    "remove": lambda store: store.remove("a"),
    "list": lambda store: (store.page(), absent(lambda: store.get("a"))),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@every_flavour
def test_the_first_operation_after_a_restart_without_the_data_says_so_once(
    operation, flavour, own_server, restart, caplog
):
    server = own_server()
    with opened(flavour, server.url) as store:
        newest = store.load("a", READY).revision
        restart(store, server)
        operation(store)
        (said,) = warnings(caplog)
        assert server.url in said
        assert f"in partition 0 it had confirmed {newest}" in said
        for again in OPERATIONS.values():
            store.remove("a", force=True)
            again(store)
        assert warnings(caplog) == [said]
        restart(store, server)
        store.create(sandbox_id="b")
        assert len(warnings(caplog)) == 2


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "list"])
@pytest.mark.parametrize("written", [0, 30])
@every_flavour
def test_so_does_the_first_one_when_others_have_written_since(
    operation, written, flavour, own_server, restart, tmp_path, caplog
):
    """As from a backup, or as a replica that lagged."""
    server = own_server(data=tmp_path, options={"appendonly": "no"})
    with opened(flavour, server.url) as store, redis.Redis.from_url(server.url) as looking:
        kept = store.load("kept", READY).revision
        looking.save()
        lost = store.load("a", READY).revision
        restart(store, server, signal.SIGKILL)
        with SandboxStore.from_url(server.url) as other:
            newest = [kept, *(other.create().revision for _ in range(written))][-1]
        OPERATIONS[operation](store)
        (said,) = warnings(caplog)
        assert lost in said
        if operation == "get":
            assert newest in said
        assert store.get("kept").status == READY
        assert warnings(caplog) == [said]


@every_flavour
def test_a_write_that_cannot_be_found_any_more_is_followed_by_a_word(flavour, own_server, monkeypatch, caplog):
    monkeypatch.setattr(pool, "IDLE_MAX", 60.0)
    server = own_server()
    with opened(flavour, server.url) as store:
        store.load("a", READY)
        server.stop()
        server.start()
        with pytest.raises(OutcomeUnknownError, match="lost data"):
            store.create(sandbox_id="b")
        store.create(sandbox_id="c")
        assert len(warnings(caplog)) == 1


@every_flavour
def test_a_restart_with_the_data_is_not_worth_a_word(flavour, own_server, restart, tmp_path, caplog):
    server = own_server(data=tmp_path)
    with opened(flavour, server.url, partitions=4) as store:
        for each in "abcdefgh":
            store.load(each, READY)
        for _ in range(2):
            restart(store, server)
            for each in "abcdefgh":
                assert store.get(each).status == READY
                store.update(each, lambda status: replace(status, pid=status.pid + 1))
                store.update(each, lambda status: replace(status, pid=status.pid - 1))
            absent(lambda: store.get("never"))
    assert caplog.records == []


@every_flavour
def test_each_partition_is_named_once(flavour, own_server, restart, caplog):
    server = own_server()
    with opened(flavour, server.url, partitions=4) as store:
        with store.batch() as batch:
            for i in range(200):
                batch.load(f"s{i}", READY)
        restart(store, server)
        with SandboxStore.from_url(server.url, partitions=4) as other:
            other.create()
        with store.batch() as batch:
            results = [batch.get(f"s{i}") for i in range(200)]
        assert {type(result.error) for result in results} == {NotFoundError}
        said = warnings(caplog)
        assert len(said) == 4
        assert all(sum(f"in partition {p} " in each for each in said) == 1 for p in range(4))


@every_flavour
def test_a_store_that_is_laid_out_anew_has_lost_everything(flavour, own_server, restart, caplog):
    server = own_server()
    with opened(flavour, server.url, partitions=2) as store:
        for each in "abcdefgh":
            store.load(each, READY)
        restart(store, server)
        with SandboxStore.from_url(server.url, partitions=3) as other:
            other.create(sandbox_id="new")
        store.create(sandbox_id="a")
        assert store.remove("b") is False
        said = warnings(caplog)
        assert ["in partition 0" in each for each in said] == [True, False]
        assert store.ids(states=list(State)) == ["a", "new"]
        assert warnings(caplog) == said


@every_flavour
@pytest.mark.parametrize("operation", ["get", "stop", "update", "remove"])
def test_a_flush_under_an_unbroken_connection_is_found_where_something_is_absent(
    operation, flavour, own_server, caplog, monkeypatch
):
    monkeypatch.setattr(session, "ABSENCE_AGE", 0.0)
    server = own_server()
    with opened(flavour, server.url) as store, redis.Redis.from_url(server.url) as looking:
        store.load("a", READY)
        absent(lambda: store.get("never"))
        assert warnings(caplog) == []
        looking.flushall()
        for _ in range(3):
            OPERATIONS[operation](store)
        assert len(warnings(caplog)) == 1


@every_flavour
def test_what_is_absent_costs_no_more_than_a_question_each_second(flavour, own_server):
    server = own_server()
    with opened(flavour, server.url) as store, redis.Redis.from_url(server.url) as looking:
        store.load("a", READY)
        absent(lambda: store.get("b"))
        looking.config_resetstat()
        for _ in range(20):
            absent(lambda: store.get("b"))
            assert store.remove("b") is False
            store.get("a")
        assert looking.info("commandstats").get("cmdstat_xrange", {"calls": 0})["calls"] <= 1


@every_flavour
def test_a_reader_that_may_not_read_the_events_reads_on(flavour, own_server, noticed, caplog):
    server = own_server(port=0)
    with redis.Redis.from_url(server.url) as looking, SandboxStore(looking) as other:
        looking.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "+@all", "-xrange")
        with opened(flavour, server.url.replace("127", "reader:x@127")) as store:
            for _ in range(3):
                other.load("a", READY)
                assert store.get("a").status == READY
                absent(lambda: store.get("b"))
                looking.client_kill_filter(_type="normal", skipme=True)
                noticed(store)
                assert store.get("a").status == READY
                other.remove("a", force=True)
                absent(lambda: store.get("a"))
    assert caplog.records == []


@every_flavour
def test_a_wait_for_the_end_does_not_take_a_loss_for_it(flavour, own_server, until):
    server = own_server()
    with opened(flavour, server.url) as store, SandboxStore.from_url(server.url) as other:
        other.load("a", READY)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(store.wait, "a", None, timeout=20)
            with redis.Redis.from_url(server.url) as looking:
                until(lambda: any(client["cmd"] in ("xread", "xread|block") for client in looking.client_list()))
            server.stop()
            server.start()
            assert isinstance(waiting.exception(), StoreRolledBackError)


def test_a_mirror_that_lists_again_says_that_what_is_gone_was_lost(own_server, until, caplog):
    server = own_server()
    told: list[Any] = []
    with SandboxStore.from_url(server.url) as store:
        known = store.load("a", READY)
        with store.mirror(heartbeat=0.1) as mirror:
            mirror.on_change(lambda before, after: told.append((before, after)))
            server.stop()
            until(lambda: not mirror.synced)
            server.start()
            until(lambda: told)
            assert told == [(known, None)]
    lost = [r for r in caplog.records if "it need not have been removed" in r.getMessage()]
    assert [record.levelno for record in lost] == [logging.WARNING]


# -- what proves it, and what does not


def looked(seen: Seen, *, there: bool, newest: str | None, length: int) -> None:
    seen.doubt()
    event = seen.take(0, absent=False)
    assert event is not None
    replies = [[(event.encode(), [])] if there else [], [(newest.encode(), [])] if newest else [], length]
    seen.answered(0, event, replies, maxlen=1000)


@pytest.mark.parametrize(
    "there, newest, length, lost",
    [
        (True, "9-0", 5, False),
        (False, "12-0", 1000, False),  # it may have been trimmed
        (False, "12-0", 999, True),  # a trim leaves more
        (False, "8-0", 5000, True),  # older than what was seen
        (False, None, 0, True),
    ],
)
def test_what_proves_a_loss(there, newest, length, lost, caplog):
    seen = Seen("here:1")
    seen.laid_out(1)
    seen.note(0, "9-0")
    looked(seen, there=there, newest=newest, length=length)
    assert len(warnings(caplog)) == lost
    assert seen.take(0, absent=False) is None


def test_of_what_was_never_seen_nothing_is_lost(caplog):
    seen = Seen("here:1")
    seen.laid_out(1)
    for revision in ("", "none", "12", "1-2-3", "x" * 100):
        seen.note(0, revision)
    seen.doubt()
    seen.newest_is(0, None)
    seen.laid_out(None)
    seen.laid_out(4)
    assert not seen
    assert seen.take(0, absent=True) is None
    assert warnings(caplog) == []


def test_what_is_written_before_somebody_looks_hides_nothing(caplog):
    seen = Seen("here:1")
    seen.laid_out(1)
    seen.note(0, "9-0")
    seen.doubt()
    seen.note(0, "99-0")
    seen.doubt()
    event = seen.take(0, absent=False)
    assert event == "9-0"
    seen.answered(0, event, [[], [(b"99-0", [])], 1], maxlen=1000)
    seen.answered(0, event, [[], [(b"99-0", [])], 1], maxlen=1000)
    assert len(warnings(caplog)) == 1
    assert seen.take(0, absent=True) == "99-0"
