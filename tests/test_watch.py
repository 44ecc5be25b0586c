"""What happens, told as it happens: watches, those that begin with a listing, and waiting for a state. Each event comes
once and in order, from now on or from any place that was kept; what is missing is never passed over."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import count
from typing import Any

import pytest
import redis
from faults.writes import BORN, INIT, METADATA, NOTREADY, READY, WRITES, opened

from sandbox_redis import (
    AsyncSandboxStore,
    CompactedError,
    Event,
    InvalidArgumentError,
    Metadata,
    Sandbox,
    SandboxStore,
    SchemaError,
    State,
    StoreRolledBackError,
    WaitTimeoutError,
    watching,
)
from sandbox_redis.keys import Keys
from sandbox_redis.server import EmbeddedServer

every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])
# Servers and flavours have little to do with each other: each is tested twice, all pairs would be four tests.
every_pair = pytest.mark.parametrize("server, flavour", [("valkey", "sync"), ("redis", "asyncio")], indirect=["server"])
one_partition = pytest.mark.parametrize("partitions", [1])
# Nor have these much to do with the number of partitions: each pair gets one, and each number two.
PARTITIONS = {
    ("fakeredis", "sync"): 1,
    ("fakeredis", "asyncio"): 4,
    ("valkey", "sync"): 64,
    ("valkey", "asyncio"): 1,
    ("redis", "sync"): 4,
    ("redis", "asyncio"): 64,
}


@pytest.fixture
def partitions(backend, flavour) -> int:
    return PARTITIONS[backend, flavour]


@pytest.fixture
def store(open_store, partitions) -> Any:
    return open_store(partitions=partitions)


@pytest.fixture
def marker(open_store, partitions) -> Any:
    """Who writes the marks by which a test knows that everything before them has been told."""
    return open_store(agent="mark", partitions=partitions)


@pytest.fixture
def server(request, module_servers) -> EmbeddedServer:
    return module_servers(getattr(request, "param", "valkey"))


@pytest.fixture
def looking(server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def other(looking) -> Iterator[SandboxStore]:
    """Another agent, who writes while somebody waits."""
    with SandboxStore(looking, agent="other") as store:
        yield store


@pytest.fixture
def watcher(server, looking, flavour) -> Iterator[Any]:
    """A store whose connections can be told from others."""
    with opened(flavour, server.url, agent="me", timeout=60) as store:
        yield store


@pytest.fixture
def clients(looking) -> Callable[..., list[dict[str, str]]]:
    """The connections of `watcher`; only those that wait for events, if so asked."""

    def list_(*, blocked: bool = False) -> list[dict[str, str]]:
        mine = [client for client in looking.client_list() if client["name"] == "me"]
        return [client for client in mine if "b" in client["flags"] or not blocked]

    return list_


@pytest.fixture
def background(looking, clients, until) -> Iterator[Callable[..., Future[Any]]]:
    """Calls something in a thread of its own, and returns when it waits for events."""
    with ThreadPoolExecutor() as pool:

        def begin(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
            future = pool.submit(call, *args, **kwargs)
            until(lambda: future.done() or clients(blocked=True))
            return future

        yield begin
        looking.flushall()  # who still waits, because the test has failed, waits no more


def place(revision: str) -> tuple[int, ...]:
    return tuple(map(int, revision.split("-")))


def take(watch: Any, number: int) -> list[Event]:
    return [next(watch) for _ in range(number)]


def told(watch: Any, marker: Any, sandbox_id: str | None = None) -> list[Event]:
    """Everything that a watch has to tell of what has happened by now."""
    now = marker.page(limit=1).since.split(",")
    events: list[Event] = []
    while True:
        mark = marker.create(sandbox_id=sandbox_id, node="n1", metadata=METADATA)
        marker.start(mark.id, pid=1)
        marker.remove(mark.id, force=True)
        for event in watch:
            if event.id == mark.id and place(event.revision) >= place(mark.revision):
                break
            events += [event] * (event.by != "mark")
        else:
            pytest.fail("the watch has ended")
        # Of several partitions one may come ahead of the others, and a reply may not hold all.
        places = event.cursor.split(",")
        if sandbox_id or all(place(come) >= place(gone) for come, gone in zip(places, now, strict=True)):
            return events


def by_sandbox(events: Iterable[Event]) -> dict[str, list[Event]]:
    """The order of the events of different sandboxes is nobody's business."""
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event.id].append(event)
    return dict(found)


def happenings(events: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event.id, event.transition) for event in events]


def live(store: Any) -> None:
    """Some lives, of all kinds, on two nodes; nothing is left of "s"."""
    for name, write in WRITES.items():
        write.prepare(store, name.replace(" ", "-"))
        write.run(store, name.replace(" ", "-"))
    for i in range(6):
        store.create(sandbox_id=f"s{i}", node=f"n{i % 2}", metadata=METADATA)
    store.create(sandbox_id="s", node="n1")
    for i in range(4):
        store.start(f"s{i}", pid=i)
    store.update("s1", lambda status: replace(status, pid=11))
    store.exit("s1", exit_status=1)
    store.remove("s2", force=True)
    store.remove("s3", force=True)
    store.fail_start("s4")
    store.fail_start("s5")
    store.create(sandbox_id="s4", node="n1")  # the same id again, elsewhere
    store.fail_start("s")
    store.load("s", replace(READY, state=State.UNKNOWN), node="n0")
    store.stop("s", exit_status=7)
    store.remove("s")


def churn(store: Any, number: int = 300, sandbox_id: str = "churned") -> None:
    """So many events of one sandbox, of which nothing is left."""
    with store.batch() as batch:
        for _ in range(number // 2):
            batch.create(sandbox_id=sandbox_id)
            batch.fail_start(sandbox_id)


def beside(sandbox_id: str, partitions: int) -> str:
    """Another id in the same partition."""
    layout = Keys("", partitions)
    return next(i for i in map("x{}".format, count()) if layout.partition(i) == layout.partition(sandbox_id))


# -- events


def test_every_operation_is_told_once_and_in_order(store, marker):
    watch = store.watch()
    live(store)
    audit = store.audit()
    assert audit.problems == []
    assert by_sandbox(told(watch, marker)) == by_sandbox(audit.events)


def test_several_watches_are_each_told_everything(store, marker):
    watches = [store.watch() for _ in range(3)]
    live(store)
    events = by_sandbox(store.audit().events)
    for watch in watches:
        assert by_sandbox(told(watch, marker)) == events


def test_an_event_says_what_was_before_what_is_now_who_asked_and_when(store):
    watch = store.watch()
    begin = time.time()
    store.create(sandbox_id="a", node="n", metadata=METADATA, created_at_ns=BORN)
    store.start("a", pid=7)
    store.remove("a", force=True)
    create, start, stop, remove = take(watch, 4)

    def sandbox(event: Event, status: Any, metadata: Metadata) -> Sandbox:
        return Sandbox("a", "n", status, metadata, event.revision)

    def event(like: Event, *said: Any) -> Event:
        return Event("a", *said, like.revision, like.at, "test", like.request)

    assert create == event(create, "create", None, sandbox(create, INIT, METADATA))
    assert start == event(start, "start", State.INIT, sandbox(start, READY, Metadata()))
    assert stop == event(stop, "stop", State.READY, sandbox(stop, NOTREADY, Metadata()))
    assert remove == event(remove, "remove", State.NOTREADY, None)
    assert len({create.request, start.request, stop.request, ""}) == 4
    assert stop.request == remove.request  # a forced removal is one write and two events
    for each in (create, start, stop, remove):
        assert each.at == datetime.fromtimestamp(place(each.revision)[0] / 1000, UTC)
        assert begin - 1 < each.at.timestamp() < time.time() + 1


def test_what_happened_before_the_watch_is_not_told(store, marker):
    live(store)
    watch = store.watch()
    store.create(sandbox_id="new")
    assert happenings(told(watch, marker)) == [("new", "create")]


def test_a_refused_operation_and_one_that_changes_nothing_are_not_told(store, marker):
    store.load("a", NOTREADY)
    watch = store.watch()
    for refused in (lambda: store.start("a", pid=1), lambda: store.load("a", READY), lambda: store.fail_start("a")):
        with pytest.raises(Exception, match="a"):
            refused()
    store.stop("a")
    store.update("a", lambda status: status)
    store.remove("nobody")
    assert told(watch, marker) == []


def test_more_events_than_one_reply_holds(open_store, marker):
    """With 64 partitions there are 15 of each; see `EVENTS_MAX`."""
    store = open_store(partitions=64)
    watch = store.watch()
    churn(store, 100)
    store.create(sandbox_id="b")
    assert by_sandbox(told(watch, marker)) == by_sandbox(store.history("churned") + store.history("b"))


@every_pair
def test_thousands_of_events_in_one_partition(watcher, other):
    watch = watcher.watch()
    with other.batch() as batch:
        created = [batch.create() for _ in range(2500)]
    assert [event.id for event in take(watch, 2500)] == [result.result().id for result in created]


@every_pair
def test_an_event_ends_the_waiting_for_it(watcher, other, background):
    watch = watcher.watch()
    for i in range(5):
        waiting = background(next, watch)
        assert not waiting.done()
        other.create(sandbox_id=f"s{i}")
        assert waiting.result().id == f"s{i}"


def test_an_asyncio_watch_begins_when_it_is_entered_or_first_asked(server, looking, other):
    async def main() -> None:
        async with AsyncSandboxStore.from_url(server.url) as store:
            late = store.watch()
            other.create(sandbox_id="before")
            async with store.watch() as watch:
                other.create(sandbox_id="after")
                assert (await anext(watch)).id == "after"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(late), 0.01)
            other.create(sandbox_id="last")
            assert (await anext(late)).id == "last"
            await late.aclose()

    asyncio.run(main())


# -- filters


def node_of(events: list[Event]) -> list[str]:
    """The node of each event's sandbox, also where it is gone."""
    nodes: dict[str, str] = {}
    for event in events:
        if event.sandbox is not None:
            nodes[event.id] = event.sandbox.node
    # no sandbox of `live` is deleted on another node than that of the event before
    known: dict[str, str] = {}
    found = []
    for event in events:
        if event.sandbox is not None:
            known[event.id] = event.sandbox.node
        found.append(known[event.id])
    return found


def touches(event: Event, states: set[State]) -> bool:
    """It came into one of the states, changed in it, or left it."""
    return bool(states & {event.before, event.sandbox and event.sandbox.status.state})


FILTERS: dict[str, dict[str, Any]] = {
    "sandbox": {"sandbox_id": "s"},
    "node": {"node": "n1"},
    "running": {"states": [State.READY]},
    "coming": {"states": {State.INIT}},
    "ended": {"states": (State.NOTREADY, State.UNKNOWN)},
    "running on a node": {"node": "n1", "states": [State.READY]},
    "coming, of a sandbox": {"sandbox_id": "s", "states": [State.INIT, State.READY]},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_only_what_is_wanted_is_told(store, marker, filters):
    watch = store.watch(**filters)
    live(store)
    events = store.audit().events
    wanted = [
        event
        for event, node in zip(events, node_of(events), strict=True)
        if event.id == filters.get("sandbox_id", event.id)
        and node == filters.get("node", node)
        and touches(event, set(filters.get("states", State)))
    ]
    assert 1 < len(wanted) < len(events)
    assert by_sandbox(told(watch, marker, filters.get("sandbox_id"))) == by_sandbox(wanted)


@one_partition
def test_a_deletion_is_told_on_the_node_that_it_was_on(store, marker):
    store.create(sandbox_id="here", node="n1")
    store.create(sandbox_id="there", node="n2")
    watch = store.watch(node="n1")
    for each in ("here", "there"):
        store.fail_start(each)
    assert happenings(told(watch, marker)) == [("here", "fail_start")]


@one_partition
def test_a_sandbox_that_leaves_a_state_is_told_and_then_no_more(store, marker):
    store.load("a", READY)
    watch = store.watch(states=[State.READY])
    store.update("a", lambda status: replace(status, pid=8))
    store.exit("a", exit_status=1)
    store.remove("a")
    assert happenings(told(watch, marker)) == [("a", "update"), ("a", "exit")]


@one_partition
@pytest.mark.parametrize(
    "wrong",
    [{"node": ""}, {"node": "no node"}, {"states": "READY"}, {"states": ["READY"]}, {"sandbox_id": "*"}]
    + [{"timeout": wrong} for wrong in (0, -1, "1", True)],
    ids=str,
)
def test_a_wrong_filter_is_refused(store, wrong, snapshot):
    with pytest.raises(InvalidArgumentError) as caught:
        store.watch(**wrong)
    assert caught.value.argument == next(iter(wrong))
    assert snapshot() == {}


# -- where to go on


def test_a_watch_goes_on_behind_any_event(store, marker):
    with store.watch() as watch:
        live(store)
        events = told(watch, marker)
    for i in range(0, len(events), 7):
        with store.watch(since=events[i].cursor) as resumed:
            assert by_sandbox(told(resumed, marker)) == by_sandbox(events[i + 1 :])


def test_the_cursor_of_a_watch_is_that_of_the_event_it_told_last(store, marker):
    with store.watch() as watch:
        assert watch.cursor.count("-") == watch.cursor.count(",") + 1
        live(store)
        for event in take(watch, 10):
            seen = event.cursor
        assert watch.cursor == seen
        rest = told(watch, marker)
    with store.watch(since=seen) as resumed:
        assert by_sandbox(told(resumed, marker)) == by_sandbox(rest)


def test_the_cursor_of_a_watch_passes_what_was_not_wanted(store, marker):
    watch = store.watch(sandbox_id="new", states=[State.READY])
    began = watch.cursor
    live(store)
    assert told(watch, marker, "new") == []
    assert place(watch.cursor) > place(began)


def test_a_cursor_is_text_that_another_store_takes(open_store, partitions, store, marker):
    cursor = store.watch().cursor
    live(store)
    late = open_store(partitions=partitions % 64 + 1)  # which follows what the first one chose
    assert by_sandbox(told(late.watch(since=str(cursor)), marker)) == by_sandbox(
        event for event in store.audit().events if event.by == "test"
    )


SCRIPT = """
import sys
from sandbox_redis import SandboxStore
_, url, cursor, count = sys.argv
with SandboxStore.from_url(url) as store, store.watch(since=cursor) as watch:
    for _ in range(int(count)):
        print(next(watch).revision)
    print(watch.cursor)
"""


def test_another_process_goes_on_with_a_cursor(server, looking):
    with SandboxStore.from_url(server.url, partitions=4) as store, store.watch() as watch:
        live(store)
        cursor, events = next(watch).cursor, take(watch, 20)
        command = [sys.executable, "-W", "error", "-c", SCRIPT, server.url, cursor, str(len(events))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.split() == [*(event.revision for event in events), watch.cursor]
        assert done.stderr == ""


def test_a_watch_goes_on_from_a_page(store, marker):
    live(store)
    page = store.page(states=list(State))
    store.create(sandbox_id="new")
    assert page.cursor is None
    assert happenings(told(store.watch(since=page.since), marker)) == [("new", "create")]


def test_a_revision_will_do_with_a_sandbox(store, marker):
    live(store)
    created = store.create(sandbox_id="new")
    store.start("new", pid=1)
    store.remove("new", force=True)
    with store.watch(since=created.revision, sandbox_id="new") as watch:
        assert [event.transition for event in told(watch, marker, "new")] == ["start", "stop", "remove"]
        assert "," not in watch.cursor


def test_a_cursor_will_do_with_a_sandbox(store, marker):
    """Where one watch of all ended, one of a single sandbox can begin; and that goes on from its own."""
    cursor = store.watch().cursor
    live(store)
    events = store.history("s")
    with store.watch(since=cursor, sandbox_id="s") as watch:
        first = next(watch)
        assert [first, *told(watch, marker, "s")] == events
    with store.watch(since=first.cursor, sandbox_id="s") as watch:
        assert told(watch, marker, "s") == events[1:]


@one_partition
def test_a_revision_will_do_with_one_partition(store, marker):
    live(store)
    events = store.audit().events
    assert told(store.watch(since=events[9].revision), marker) == events[10:]


def test_a_watch_goes_on_from_the_very_beginning(store, marker):
    live(store)
    beginning = ",".join(["0-0"] * store.watch().cursor.count("-"))
    assert by_sandbox(told(store.watch(since=beginning), marker)) == by_sandbox(
        event for event in store.audit().events if event.by == "test"
    )


ZONES = (UTC, timezone(timedelta(hours=5, minutes=30)))


@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_a_watch_goes_on_from_a_time(store, marker, zone):
    live(store)
    events = store.audit().events
    since = sorted(event.at for event in events)[len(events) // 2]
    with store.watch(since=since.astimezone(zone)) as watch:
        wanted = [event for event in events if event.at >= since]
        assert by_sandbox(told(watch, marker)) == by_sandbox(wanted)


def test_a_time_before_everything_is_the_beginning(store, marker):
    live(store)
    events = by_sandbox(store.audit().events)
    for since in (datetime(1970, 1, 1, tzinfo=UTC), datetime.min.replace(tzinfo=UTC)):
        with store.watch(since=since) as watch:
            assert by_sandbox(told(watch, marker)) == events


@one_partition
def test_a_time_to_come_is_now(store, marker):
    live(store)
    with store.watch(since=datetime.max.replace(tzinfo=UTC)) as watch:
        store.create(sandbox_id="new")
        assert happenings(told(watch, marker)) == [("new", "create")]


@one_partition
def test_what_happens_behind_a_look_at_the_clock_is_told(store):
    """A revision knows milliseconds only: what it says happened in the same one may have happened after."""
    for _ in range(30):
        since = datetime.now(UTC)
        sandbox = store.create()
        with store.watch(since=since) as watch:
            mark = store.create()
            told = {next(watch).id}
            while mark.id not in told:
                told.add(next(watch).id)
        assert sandbox.id in told


WRONG = (
    *("", "now", "0", "5", "-", "1-", "-1", "1-0,", ",1-0", "1-0 ", "1-0\n", "1.0-0", "0x1-0", "1-0-0", "+1-0", "$"),
    *("18446744073709551616-0", "0-18446744073709551616", f"1-{10**30}", "1-0," * 20_000),
    *("\u0661-\u0660", "1-0, 1-0", "1-0;1-0", b"1-0", 5, 5.0, True, ("1-0",), datetime(2026, 11, 23)),  # noqa: DTZ001 - it has no zone
)


@every_flavour
@pytest.mark.parametrize("since", WRONG, ids=lambda since: f"{since!r:.30}")
def test_what_is_no_place_is_refused_before_anything_is_sent(flavour, since):
    with opened(flavour, "unix:///nowhere/redis.sock") as store, pytest.raises(InvalidArgumentError) as caught:
        store.watch(since=since)
    assert (caught.value.argument, caught.value.value) == ("since", since)
    assert str(caught.value).startswith("since is ")


def test_the_cursor_of_a_store_with_other_partitions_is_refused(store, partitions, snapshot):
    store.create(sandbox_id="a")
    before = snapshot()
    for number in {1, 2, 4, 5, 64, 65} - {partitions}:
        for filters in ({}, {"node": "n"}, {"sandbox_id": "a"}):
            if number == 1 and "sandbox_id" in filters:
                continue  # that is a revision
            with pytest.raises(InvalidArgumentError, match=f"{partitions} partitions") as caught:
                store.watch(since=",".join(["1-0"] * number), **filters)
            assert caught.value.argument == "since"
    assert snapshot() == before
    store.start("a", pid=1)  # it is none the worse for it


# -- events that are gone


@pytest.fixture
def short(open_store, partitions) -> Any:
    """A store that keeps few events: 50, but servers trim by the hundred."""
    store = open_store(partitions=partitions, events_maxlen=50)
    store.create(sandbox_id="a")
    return store


def oldest(client: redis.Redis, prefix: str, partitions: int, sandbox_id: str = "churned") -> str:
    layout = Keys(prefix, partitions)
    return client.xrange(layout.events(layout.partition(sandbox_id)), count=1)[0][0].decode()


def assert_over(watch: Any) -> None:
    """An error is its end."""
    for _ in range(2):
        assert list(watch) == []


def test_a_cursor_whose_events_are_gone_is_refused(short):
    cursor = short.watch().cursor
    churn(short)
    with pytest.raises(CompactedError, match="list again") as caught:
        short.watch(since=cursor)
    assert caught.value.cursor == cursor
    assert not isinstance(caught.value, StoreRolledBackError)  # nothing was lost that should be there
    short.start("a", pid=1)


def test_the_oldest_event_is_the_last_place_to_go_on_from(short, marker, client, prefix, partitions):
    with short.watch(sandbox_id="churned") as watch:
        events = []
        for _ in range(10):
            churn(short, 40)
            events += take(watch, 40)
    edge = [event.revision for event in events].index(oldest(client, prefix, partitions))
    assert edge > 0
    with pytest.raises(CompactedError):
        short.watch(since=events[edge - 1].revision, sandbox_id="churned")
    with short.watch(since=events[edge].revision, sandbox_id="churned") as watch:
        assert take(watch, len(events) - edge - 1) == events[edge + 1 :]


def test_who_reads_too_slowly_is_told(short):
    """On the connection that it has always had."""
    watch = short.watch()
    short.start("a", pid=1)
    first = next(watch)
    churn(short)
    with pytest.raises(CompactedError) as caught:
        next(watch)
    assert caught.value.cursor == first.cursor
    assert_over(watch)
    short.remove("a", force=True)
    with short.watch() as another:
        short.create(sandbox_id="a")
        assert next(another).id == "a"


def test_who_reads_nothing_at_first_is_told(short):
    watch = short.watch()
    churn(short)
    with pytest.raises(CompactedError):
        next(watch)
    assert_over(watch)


def test_who_lists_and_then_reads_nothing_is_told(short):
    _, watch = short.list_and_watch()
    churn(short)
    with pytest.raises(CompactedError):
        next(watch)
    assert_over(watch)


def test_trimming_behind_a_watch_that_keeps_up_is_not_noticed(short):
    watch = short.watch()
    for _ in range(20):
        churn(short, 40)
        assert happenings(take(watch, 40)) == [("churned", "create"), ("churned", "fail_start")] * 20


@pytest.mark.parametrize("filters", [{"node": "n1"}, {"sandbox_id": "rare"}, {"states": [State.READY]}], ids=str)
def test_a_watch_that_has_seldom_anything_to_tell_can_be_resumed(short, open_store, partitions, filters, marker, until):
    other = open_store(partitions=partitions)
    watch = short.watch(**filters)
    other.load("rare", READY, node="n1")
    own = next(watch)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(list, watch)
        for _ in range(6):
            churn(other, 50, beside("rare", partitions))
            seen = other.page().since.split(",")
            until(lambda: set(watch.cursor.split(",")) <= set(seen))  # noqa: B023
        watch.close()
        assert waiting.result() == []
    with pytest.raises(CompactedError):
        short.watch(since=own.cursor, **filters)
    other.stop("rare")
    with short.watch(since=watch.cursor, **filters) as resumed:
        assert happenings([next(resumed)]) == [("rare", "stop")]


@pytest.mark.usefixtures("quick_heartbeat")
@pytest.mark.parametrize(
    "how, live", [("xtrim", True), ("del", True), ("xtrim", False), ("xdel", False), ("del", False)]
)
def test_events_that_somebody_deletes_are_missed(open_store, client, prefix, partitions, how, live):
    """Nobody can know what came behind an event that is not there any more."""
    store = open_store(partitions=partitions, events_maxlen=1000)
    store.create(sandbox_id="a")
    watch = store.watch()
    store.start("a", pid=1)
    event = next(watch)
    store.remove("a", force=True)
    layout = Keys(prefix, partitions)
    stream = layout.events(layout.partition("a"))
    if how == "xtrim":
        client.xtrim(stream, maxlen=0, approximate=False)
    elif how == "xdel":
        client.xdel(stream, event.revision)
    else:
        client.delete(stream)
    with pytest.raises(CompactedError) as caught:
        while live:
            next(watch)  # it has read some already
        store.watch(since=event.cursor)
    assert caught.value.cursor
    if live:
        assert_over(watch)


@one_partition
def test_a_time_before_the_oldest_event_is_refused_where_some_are_gone(short):
    began = datetime.now(UTC)
    churn(short)
    with pytest.raises(CompactedError):
        short.watch(since=began - timedelta(seconds=1))


def test_the_first_writer_decides_how_many_events_are_kept_also_for_who_watched_before(open_store):
    """What the watch took for granted when there was no store yet does not count."""
    early = open_store().watch()
    churn(open_store(events_maxlen=50))
    with pytest.raises(CompactedError):
        next(early)


@pytest.mark.parametrize("waiting", [True, False])
def test_the_first_writer_decides_on_the_partitions_also_for_who_watched_before(open_store, waiting):
    """All of them are watched, or it is said that they are not."""
    early = open_store(partitions=1).watch()
    ids = {f"s{i}" for i in range(20)}
    writer = open_store(partitions=4)
    seen: set[str] = set()
    with ThreadPoolExecutor() as pool:
        threads = [pool.submit(lambda: [seen.add(event.id) for event in early])] if waiting else []
        for each in ids:
            writer.create(sandbox_id=each)
        if not waiting:
            threads = [pool.submit(lambda: [seen.add(event.id) for event in early])]
        end = time.monotonic() + 5
        while seen != ids and not threads[0].done() and time.monotonic() < end:
            time.sleep(0.01)
        early.close()
    assert seen == ids or threads[0].exception() is not None


@one_partition
def test_what_others_write_into_the_stream_harms_nobody(store, client, prefix):
    store.load("a", READY)
    _, listed = store.list_and_watch()
    watch = store.watch()
    for fields in ({"x": "y"}, {"x": "", "": "x"}, {"id": "b"}, {"id": "b", "transition": "create"}):
        client.xadd(f"{prefix}:{{0}}:events", fields)
    store.stop("a")
    assert ("a", "stop") in happenings([next(watch)])
    assert ("a", "stop") in happenings([next(listed)])


# -- the end of a watch


@every_pair
def test_closing_ends_the_waiting_even_for_a_server_that_does_not_answer(watcher, server, background, request):
    """`watcher` would wait for a minute."""
    watch = watcher.watch()
    waiting = background(next, watch, "over")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        watch.close()
        assert waiting.result(timeout=10) == "over"
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_watch_is_closed_as_often_as_one_likes(store):
    for begin in (store.watch, lambda: store.list_and_watch()[1]):
        watch = begin()
        watch.close()
        assert_over(watch)
        watch.close()
        assert_over(watch)
        with begin() as watch:
            store.create()
        assert_over(watch)


def test_a_closed_watch_has_the_cursor_of_what_it_has_told(store, marker):
    """What it had read ahead is told by the next one."""
    with store.watch() as watch:
        live(store)
        events = take(watch, 3)
    assert_over(watch)
    assert watch.cursor == events[-1].cursor
    with store.watch(since=watch.cursor) as resumed:
        assert len(told(resumed, marker)) == len([event for event in store.audit().events if event.by == "test"]) - 3


def test_a_loop_that_was_left_can_be_gone_on_with(store):
    watch = store.watch()
    for i in range(9):
        store.create(sandbox_id=f"s{i}")
    seen = []
    while len(seen) < 9:
        for event in watch:
            seen.append(event.id)
            if len(seen) % 2:
                break
    assert sorted(seen) == [f"s{i}" for i in range(9)]


@every_pair
@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupted_watch_goes_on_without_loss(watcher, other, clients, until, keep):
    """By Ctrl-C, for one. It does not matter whether somebody keeps the exception."""
    watch = watcher.watch()
    kept = []
    for i in range(5):
        thread = threading.Thread(target=lambda: (until(lambda: clients(blocked=True)), interrupt()))
        thread.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            next(watch)
        kept.append(caught if keep else None)
        thread.join()
        del caught
        other.create(sandbox_id=f"s{i}-0")
        other.create(sandbox_id=f"s{i}-1")
        assert [event.id for event in take(watch, 2)] == [f"s{i}-0", f"s{i}-1"]


def interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@one_partition
@pytest.mark.parametrize("listed", [True, False])
def test_who_is_interrupted_while_events_are_read_loses_none(store, marker, monkeypatch, listed):
    watch = store.list_and_watch()[1] if listed else store.watch()
    for i in range(5):
        store.load(f"s{i}", READY)
    module = "sandbox_redis.picture" if listed else "sandbox_redis.watching"
    read = watching.event_from_flat
    left = iter([False, False, True])

    def interrupted(*args: Any) -> Event:
        event = read(*args)
        if next(left, False):
            raise KeyboardInterrupt
        return event

    monkeypatch.setattr(f"{module}.event_from_flat", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(watch)
    assert happenings(told(watch, marker)) == [(f"s{i}", "load") for i in range(5)]


def run(main: Callable[[AsyncSandboxStore], Any], server: EmbeddedServer, **settings: Any) -> None:
    """Run `main` with a store; nothing may be left unclosed or unheard."""
    unheard: list[dict[str, Any]] = []

    async def with_store() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with AsyncSandboxStore.from_url(server.url, agent="me", **{"timeout": 60, **settings}) as store:
            await main(store)
        gc.collect()
        await asyncio.sleep(0)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asyncio.run(with_store())
        gc.collect()
    assert unheard == []
    assert [str(warning.message) for warning in warned] == []


async def soon(condition: Callable[[], Any]) -> None:
    """`until`, for tasks."""
    while not condition():  # noqa: ASYNC110 - whatever it is, there is no event for it
        await asyncio.sleep(0.001)


async def blocked(clients: Callable[..., Any], number: int = 1) -> None:
    await soon(lambda: len(clients(blocked=True)) >= number)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_cancelled_task_goes_on_without_loss(server, looking, other, clients, how, keep):
    kept: list[BaseException] = []

    async def wait(watch: Any) -> None:
        try:
            if how == "timeout":
                await asyncio.wait_for(anext(watch), 0.05)
            waiting = asyncio.ensure_future(anext(watch))
            await blocked(clients)
            waiting.cancel()
            await waiting
        except (TimeoutError, asyncio.CancelledError) as error:
            kept.extend([error] * keep)

    async def main(store: AsyncSandboxStore) -> None:
        async with store.watch() as watch:
            for i in range(5):
                await wait(watch)
                other.create(sandbox_id=f"s{i}-0")
                other.create(sandbox_id=f"s{i}-1")
                assert [(await anext(watch)).id for _ in range(2)] == [f"s{i}-0", f"s{i}-1"]
        assert len(clients()) <= 3  # two shared ones; that of the watch may take its time

    run(main, server)


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_trimmed_while_a_cancelled_task_is_away_is_missed(server, looking, clients, keep):
    """The connection that it goes on with is a new one."""
    kept: list[BaseException] = []

    async def main(store: AsyncSandboxStore) -> None:
        async with store.watch() as watch:
            await store.create(sandbox_id="a")
            await anext(watch)
            waiting = asyncio.ensure_future(anext(watch))
            await blocked(clients)
            waiting.cancel()
            try:
                await waiting
            except asyncio.CancelledError as error:
                kept.extend([error] * keep)
            for _ in range(300):
                await store.create()
            with pytest.raises(CompactedError):
                await anext(watch)

    run(main, server, events_maxlen=50)


def test_many_tasks_may_be_cancelled_at_any_time(server, looking, other):
    """Each goes on where it was."""

    async def follow(store: AsyncSandboxStore, number: int) -> None:
        turns = count(number)
        async with store.watch() as watch:
            seen[number] = []
            while len(seen[number]) < 60:
                waiting = asyncio.ensure_future(anext(watch))
                for _ in range(turn := next(turns) % 23):
                    await asyncio.sleep(0)
                if turn % 3 == 0:
                    waiting.cancel()
                await asyncio.wait([waiting])
                if not waiting.cancelled():
                    seen[number].append(waiting.result().id)

    seen: dict[int, list[str]] = {}

    async def main(store: AsyncSandboxStore) -> None:
        following = asyncio.gather(*(follow(store, number) for number in range(10)))
        await soon(lambda: len(seen) == 10)
        created = [(await store.create()).id for _ in range(60)]
        await asyncio.wait_for(following, 30)
        assert list(seen.values()) == [created] * 10

    run(main, server)


def test_closing_an_asyncio_watch_ends_the_tasks_that_wait(server, looking, clients):
    async def main(store: AsyncSandboxStore) -> None:
        async with store.watch() as watch:
            waiting = asyncio.ensure_future(anext(watch, "over"))
            await blocked(clients)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await watch.aclose()
                assert await asyncio.wait_for(waiting, 10) == "over"
            finally:
                os.kill(server.pid, signal.SIGCONT)

    run(main, server)


@every_flavour
def test_a_watch_that_nobody_holds_is_closed_without_a_word(flavour, server, looking, clients, until):
    def sync() -> None:
        with SandboxStore.from_url(server.url, agent="me") as store:
            watch = store.watch()
            store.create()
            next(watch)

    async def asynchronous(store: AsyncSandboxStore) -> None:
        watch = store.watch(since="0-0")
        await store.create()
        async for _ in watch:
            break

    if flavour == "asyncio":
        run(asynchronous, server)
    else:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            sync()
            gc.collect()
        assert warned == []
    until(lambda: not clients())


def test_an_asyncio_watch_that_cannot_begin_leaves_no_connection(server, looking, clients):
    async def main(store: AsyncSandboxStore) -> None:
        first = await store.create()
        for _ in range(300):
            await store.create()
        with pytest.raises(CompactedError):
            async with store.watch(since=first.revision):
                pass
        gc.collect()

    run(main, server, events_maxlen=50)


def test_a_hundred_watches_leave_the_connections_for_transactions_alone(server, looking, clients):
    async def main(store: AsyncSandboxStore) -> None:
        await store.load("a", READY)
        watches = [store.watch() for _ in range(100)]
        for watch in watches:
            await watch.__aenter__()
        waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
        await blocked(clients, 100)
        changed = await asyncio.gather(
            *(store.update("a", lambda status: replace(status, pid=status.pid + 1)) for _ in range(30))
        )
        assert {(await each).revision for each in waiting} == {min((s.revision for s in changed), key=place)}
        for watch in watches:
            await watch.aclose()

    run(main, server, timeout=10)


@every_flavour
def test_a_watch_has_one_connection_whatever_the_partitions(server, looking, flavour, clients, until):
    with opened(flavour, server.url, agent="me", partitions=64) as store:
        store.create()
        before = len(clients())
        with ThreadPoolExecutor() as pool, store.watch() as watch:
            waiting = pool.submit(next, watch, None)
            until(lambda: clients(blocked=True))
            assert len(clients()) == before + 1
            watch.close()
            waiting.result()
        until(lambda: len(clients()) == before)


@every_pair
@pytest.mark.parametrize("partitions", [1, 64])
def test_who_stops_reading_costs_the_server_nothing_that_grows(watcher, looking, clients, partitions, until):
    def cost() -> int:
        (mine,) = [client for client in clients() if client["cmd"] in ("xread", "xlen")]
        return int(mine["tot-mem"]) + int(mine["omem"])

    with SandboxStore(looking, partitions=partitions) as other:
        other.create()
        watch = watcher.watch()
        other.create()
        next(watch)
        before = cost()
        for _ in range(5):
            with other.batch() as batch:
                for _ in range(1000):
                    batch.create(metadata=METADATA)
            assert cost() <= before
        assert len(take(watch, 5000)) == 5000


# -- listings that go on


def replayed(sandboxes: Iterable[Sandbox], events: Iterable[Event], states: Iterable[State]) -> dict[str, Sandbox]:
    """What a reader knows in the end, who believes what it is told. Each event must go on from what was told before."""
    wanted = set(states)
    known = {sandbox.id: sandbox for sandbox in sandboxes}
    listed = {sandbox.id: place(sandbox.revision) for sandbox in sandboxes}
    for event in events:
        before = known.pop(event.id, None)
        assert place(event.revision) > listed.get(event.id, (0, 0)), "the listing has that event"
        assert event.before == before.status.state if before else event.before not in wanted
        if event.sandbox is not None and event.sandbox.status.state in wanted:
            known[event.id] = event.sandbox
    return known


@pytest.mark.parametrize(
    "filters",
    [{}, {"states": list(State)}, {"node": "n1"}, {"labels": {"app": "web"}}, {"states": [State.READY], "node": "n1"}],
    ids=str,
)
def test_a_listing_and_what_follows_are_the_store(store, marker, filters):
    live(store)
    sandboxes, watch = store.list_and_watch(**filters)
    expected = {sandbox.id: sandbox for sandbox in store.list(**filters)}
    assert {sandbox.id: sandbox for sandbox in sandboxes} == expected
    for sandbox_id in store.ids(states=list(State)):
        store.remove(sandbox_id, force=True)
    live(store)
    events = told(watch, marker)
    states = filters.get("states", [State.READY, State.NOTREADY, State.UNKNOWN])
    assert replayed(sandboxes, events, states) == {sandbox.id: sandbox for sandbox in store.list(**filters)}


def test_what_the_listing_has_is_not_told_again(store, marker):
    live(store)
    _, watch = store.list_and_watch(states=list(State))
    assert told(watch, marker) == []


def test_the_events_of_a_listing_have_the_metadata(store):
    store.create(sandbox_id="a", metadata=METADATA)
    store.create(sandbox_id="b", metadata=METADATA)
    store.start("b", pid=1)
    _, watch = store.list_and_watch()
    for call in (partial(store.start, "a", pid=7), partial(store.stop, "a"), partial(store.stop, "b")):
        assert call() == next(watch).sandbox


def test_a_sandbox_that_is_not_ready_yet_comes_when_it_is(store, marker):
    """It is INIT in the listing, which shows it no more than CRI does, and knows its metadata all the same."""
    store.create(sandbox_id="a", node="n", metadata=METADATA)
    sandboxes, watch = store.list_and_watch(node="n")
    store.create(sandbox_id="b", node="n")
    store.fail_start("b")
    started = store.start("a", pid=7)
    assert sandboxes == []
    event = next(watch)
    assert (event.before, event.sandbox) == (State.INIT, started)


def test_an_id_that_comes_again_with_other_labels_is_another_sandbox(store, marker):
    store.load("a", READY, node="n1", metadata=METADATA)
    _, watch = store.list_and_watch(labels={"app": "web"})
    store.remove("a", force=True)
    store.load("a", READY, node="n1", metadata=Metadata(labels={"app": "db"}))
    store.update("a", lambda status: replace(status, pid=8))
    store.remove("a", force=True)
    store.load("a", READY, metadata=METADATA)
    expected = [("a", "stop"), ("a", "remove"), ("a", "load")]
    assert happenings(told(watch, marker)) == expected


@one_partition
def test_a_listing_of_more_than_one_page(store, marker):
    with store.batch() as batch:
        for i in range(650):
            batch.load(f"s{i:03}", READY, metadata=METADATA)
    sandboxes, watch = store.list_and_watch()
    with store.batch() as batch:
        for i in range(0, 650, 2):
            batch.stop(f"s{i:03}")
    assert len(sandboxes) == 650
    assert replayed(sandboxes, told(watch, marker), State) == {sandbox.id: sandbox for sandbox in store.list()}


def test_a_record_that_cannot_be_read_is_listed_and_its_end_is_told(store, marker, client, prefix, partitions):
    store.load("a", READY, metadata=METADATA)
    client.hset(Keys(prefix, partitions).status("a"), "pid", "many")
    sandboxes, watch = store.list_and_watch()
    assert [(sandbox.id, sandbox.status.state, bool(sandbox.problem)) for sandbox in sandboxes] == [
        ("a", State.UNKNOWN, True)
    ]
    store.remove("a", force=True)
    assert happenings(told(watch, marker)) == [("a", "stop"), ("a", "remove")]


@one_partition
@pytest.mark.parametrize(
    "wrong",
    [{"node": ""}, {"states": "READY"}, {"labels": {"": "x"}}, {"namespace": ""}, {"timeout": 0}],
    ids=str,
)
def test_a_wrong_listing_is_refused(store, wrong, snapshot):
    with pytest.raises(InvalidArgumentError) as caught:
        store.list_and_watch(**wrong)
    assert caught.value.argument.startswith(next(iter(wrong)))
    assert snapshot() == {}


# -- waiting


def test_who_waits_for_what_is_so_already_does_not_wait(store):
    store.create(sandbox_id="a", node="n", metadata=METADATA)
    assert store.wait("a", State.INIT) == store.get("a")
    started = store.start("a", pid=7)
    assert store.wait("a", [State.NOTREADY, State.READY]) == started
    store.remove("a", force=True)
    for until in (None, State.READY, list(State)):
        assert store.wait("a", until) is None
        assert store.wait("never", until) is None


@every_pair
@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        (State.READY, State.READY),
        (State.NOTREADY, State.NOTREADY),
        ([State.NOTREADY, State.UNKNOWN], State.NOTREADY),
        ({State.NOTREADY, State.READY}, State.READY),
        ((), None),
        (None, None),
        (State.UNKNOWN, None),
    ],
    ids=["READY", "NOTREADY", "any end", "any", "no state", "gone", "never"],
)
def test_who_waits_sees_also_what_is_so_for_a_moment(watcher, other, background, wanted, state):
    """The whole life is over before the waiting one looks. It sees the first that it waits for, and else the end."""
    other.create(sandbox_id="a", node="n", metadata=METADATA)
    waiting = background(watcher.wait, "a", wanted)
    with other.batch() as batch:
        lived = {State.READY: batch.start("a", pid=7), State.NOTREADY: batch.exit("a", exit_status=3)}
        batch.remove("a")
        batch.load("a", READY)
    assert waiting.result() == (lived[state].result() if state else None)


@every_pair
def test_a_forced_removal_ends_all_waiting(watcher, other, server, clients, until):
    other.load("a", READY, metadata=METADATA)
    with opened("sync", server.url, agent="me") as another, ThreadPoolExecutor() as pool:
        stopped = pool.submit(another.wait, "a", State.NOTREADY)
        gone = pool.submit(watcher.wait, "a", None)
        until(lambda: len(clients(blocked=True)) == 2)
        other.remove("a", force=True)
        assert gone.result() is None
        assert (stopped.result().status.state, stopped.result().metadata) == (State.NOTREADY, METADATA)


@every_pair
@pytest.mark.parametrize("wanted", [None, State.NOTREADY])
def test_one_that_is_created_again_was_gone(watcher, other, background, wanted):
    other.create(sandbox_id="a")
    waiting = background(watcher.wait, "a", wanted)
    with other.batch() as batch:
        batch.fail_start("a")
        batch.create(sandbox_id="a")
        batch.start("a", pid=1)
    assert waiting.result() is None
    assert other.get("a").status.state is State.READY


@every_pair
def test_what_happens_to_others_is_not_waited_for(watcher, other, background):
    other.create(sandbox_id="a", metadata=METADATA)
    waiting = background(watcher.wait, "a", State.READY)
    for each in ("b", "aa", "A"):
        other.create(sandbox_id=each)
        other.start(each, pid=1)
        other.remove(each, force=True)
    other.update("a", lambda status: replace(status, pid=3))
    assert not waiting.done()
    started = other.start("a", pid=7)
    assert waiting.result() == started


@every_pair
def test_waiting_ends_in_time(watcher, other):
    other.load("a", READY)
    for timeout in (0.01, 0.3, 1.2):  # also beyond a heartbeat
        begin = time.monotonic()
        with pytest.raises(WaitTimeoutError) as caught:
            watcher.wait("a", [State.NOTREADY, State.UNKNOWN], timeout=timeout)
        assert timeout <= time.monotonic() - begin < timeout + 1
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.id, caught.value.seconds) == ("a", timeout)
        for word in ("'a'", "NOTREADY", "UNKNOWN", "gone", f"{timeout:g} s"):
            assert word in str(caught.value)
    assert watcher.wait("a", State.READY, timeout=0.01) == other.get("a")


@every_pair
def test_waiting_ends_in_time_also_for_a_server_that_does_not_answer(watcher, other, server, background):
    other.load("a", READY)
    waiting = background(watcher.wait, "a", None, timeout=1)
    begin = time.monotonic()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        error = waiting.exception(timeout=10)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert isinstance(error, WaitTimeoutError)
    assert time.monotonic() - begin < 5


@every_pair
def test_waiting_leaves_no_connection(watcher, other, clients, until):
    other.load("a", READY)
    assert watcher.get("a")
    before = len(clients())
    for _ in range(5):
        with pytest.raises(WaitTimeoutError):
            watcher.wait("a", None, timeout=0.01)
    until(lambda: watcher.get("a") and len(clients()) == before)  # an event loop must run to close something


def test_many_tasks_wait_at_once(server, looking, other, clients):
    async def main(store: AsyncSandboxStore) -> None:
        ids = [f"s{i}" for i in range(50)]
        for each in ids:
            other.create(sandbox_id=each, metadata=replace(METADATA, name=each))
        waiting = [asyncio.ensure_future(store.wait(each, State.READY)) for each in ids]
        gone = asyncio.ensure_future(store.wait("s7", None))
        await blocked(clients)
        assert not any(each.done() for each in (gone, *waiting))
        started = [await store.start(each, pid=i) for i, each in enumerate(ids)]
        assert await asyncio.gather(*waiting) == started
        assert not gone.done()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await soon(lambda: len(clients()) <= 2)

    run(main, server)


@one_partition
@pytest.mark.parametrize(
    ("argument", "call"),
    [("until", partial(SandboxStore.wait, sandbox_id="a", until=until)) for until in ("READY", "x", 5, [5], ["READY"])]
    + [("sandbox_id", partial(SandboxStore.wait, sandbox_id=wrong, until=None)) for wrong in ("", "*", None, 5)]
    + [("timeout", partial(SandboxStore.wait, sandbox_id="a", until=None, timeout=t)) for t in (0, -1, "1", True)],
    ids=lambda given: repr(given.keywords) if isinstance(given, partial) else given,
)
def test_waiting_for_nonsense_is_refused(store, argument, call, snapshot):
    with pytest.raises(InvalidArgumentError) as caught:
        store.wait(**call.keywords)
    assert caught.value.argument == argument
    assert snapshot() == {}


@every_pair
def test_a_key_of_the_wrong_type_is_named_by_those_who_follow(watcher, other, looking):
    other.load("a", READY)
    key = Keys("sandbox", 1).events(0)
    looking.delete(key)
    looking.set(key, "no stream")
    for begin in (
        watcher.watch,
        watcher.list_and_watch,
        partial(watcher.watch, since="1-0"),
        partial(watcher.watch, since=datetime.now(UTC)),
        partial(watcher.wait, "a", None),
    ):
        with pytest.raises(SchemaError, match="holds a string where a stream belongs") as caught:
            begin()
        assert caught.value.key == key
    assert looking.get(key) == b"no stream"


@every_pair
def test_a_stream_that_becomes_something_else_is_named(watcher, other, looking):
    other.load("a", READY)
    watch = watcher.watch()
    key = Keys("sandbox", 1).events(0)
    other.stop("a")
    next(watch)
    looking.delete(key)
    looking.set(key, "no stream")
    with pytest.raises(SchemaError, match="holds a string where a stream belongs") as caught:
        next(watch)
    assert caught.value.key == key
    assert_over(watch)
