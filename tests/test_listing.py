"""What readers see of many sandboxes: list, page, ids, count, counts, resolve, get_many and history, from outside. One
body for {fakeredis, Valkey, Redis} x {sync, asyncio}; where thousands are needed, or the server's own figures, only the
real servers.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count, cycle, islice, product
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
import redis
from blocking import BlockingStore
from faults.proxy import CUTS, Proxy
from faults.writes import opened
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_redis import (
    AmbiguousIDError,
    AsyncSandboxStore,
    InvalidArgumentError,
    Metadata,
    NotFoundError,
    Sandbox,
    SandboxStore,
    SchemaError,
    State,
    Status,
    StoreUnavailableError,
    driver,
    listing,
    queries,
    session,
)

READY, NOTREADY, UNKNOWN = (Status(state) for state in (State.READY, State.NOTREADY, State.UNKNOWN))
real_servers = pytest.mark.parametrize("backend", ["valkey", "redis"])
every_flavour = pytest.mark.parametrize("flavour", ["sync", "asyncio"])


def add(store: Any, ids: Iterable[str], status: Status | None = READY, **born: Any) -> list[str]:
    """Many sandboxes; in INIT, with no status."""
    with store.batch() as batch:
        results = {
            sandbox_id: batch.load(sandbox_id, status, **born)
            if status
            else batch.create(sandbox_id=sandbox_id, **born)
            for sandbox_id in ids
        }
    for result in results.values():
        result.result()
    return list(results)


def labelled(**labels: str) -> Metadata:
    return Metadata(labels=labels)


def ids_of(sandboxes: Iterable[Sandbox]) -> list[str]:
    return [sandbox.id for sandbox in sandboxes]


def in_order(ids: Iterable[str], partitions: int = 1) -> list[str]:
    """As listings have them: by the partition, then by the bytes of the id."""
    return sorted(ids, key=lambda i: (zlib.crc32(i.encode()) % partitions, i.encode()))


def pages(store: Any, limits: Iterable[int] = (listing.PAGE,), **wanted: Any) -> Iterator[Any]:
    """Page by page, with one limit after the other, and from the beginning."""
    cursor = None
    for limit in islice(cycle(limits), 10_000):
        page = store.page(after=cursor, limit=limit, **wanted)
        assert len(page.sandboxes) <= limit
        yield page
        if (cursor := page.cursor) is None:
            return
    pytest.fail("there was always another page")


def paged(store: Any, limits: Iterable[int] = (listing.PAGE,), **wanted: Any) -> list[Sandbox]:
    return [sandbox for page in pages(store, limits, **wanted) for sandbox in page.sandboxes]


@pytest.fixture
def key(prefix) -> Callable[..., str]:
    """A key of the first partition: ``key("status:it")``."""
    return lambda rest, partition=0: f"{prefix}:{{{partition}}}:{rest}"


@pytest.fixture(params=[1, 4, 64])
def partitions(request, backend) -> int:
    """In how many partitions a store is laid out; fewer on fakeredis, whose scripts are slow."""
    return request.param if backend != "fakeredis" else min(request.param, 8)


@pytest.fixture
def rival(client, prefix) -> Iterator[SandboxStore]:
    """Another agent, who changes what is being read."""
    with SandboxStore(client, prefix=prefix, agent="rival") as store:
        yield store


# -- which sandboxes


@pytest.fixture
def one_in_each_state(store) -> Any:
    for state in State:
        add(store, [state.lower()], Status(state) if state is not State.INIT else None)
    return store


def test_a_sandbox_that_is_being_created_is_left_out_unless_asked_for(one_in_each_state):
    store = one_in_each_state
    assert ids_of(store.list()) == ids_of(store.page().sandboxes) == store.ids() == ["notready", "ready", "unknown"]
    assert ids_of(store.list(states=[State.INIT])) == store.ids(states=[State.INIT]) == ["init"]
    assert ids_of(store.list(states=State)) == ["init", "notready", "ready", "unknown"]
    assert ids_of(store.list(sandbox_id="init")) == ids_of(store.list(states=())) == []
    assert (store.count(), store.count(state=State.INIT)) == (3, 1)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"cri_state": "SANDBOX_READY"}, ["ready"]),
        ({"cri_state": "SANDBOX_NOTREADY"}, ["notready", "unknown"]),
        ({"cri_state": "SANDBOX_NOTREADY", "states": [State.UNKNOWN, State.READY]}, ["unknown"]),
        ({"cri_state": "SANDBOX_READY", "states": [State.UNKNOWN]}, []),
        ({"cri_state": "SANDBOX_NOTREADY", "states": State}, ["notready", "unknown"]),
    ],
)
def test_a_state_of_cri_is_one_state_or_two(one_in_each_state, wanted, found):
    assert ids_of(one_in_each_state.list(**wanted)) == ids_of(one_in_each_state.page(**wanted).sandboxes) == found


FITS = {
    "sandbox_id": "it",
    "cri_state": "SANDBOX_READY",
    "states": [State.READY],
    "node": "n",
    "namespace": "prod",
    "labels": {"app": "web", "tier": "front"},
}
MISSES = {
    "sandbox_id": "i",
    "cri_state": "SANDBOX_NOTREADY",
    "states": [State.INIT],
    "node": "n2",
    "namespace": "pro",
    "labels": {"app": "web", "tier": "back"},
}


def test_a_sandbox_must_fit_every_filter(open_store):
    store = open_store(partitions=4)
    metadata = Metadata(namespace="prod", labels={"app": "web", "tier": "front", "more": "1"})
    add(store, ["it"], node="n", metadata=metadata)
    add(store, ["beside-it", "it-too"], node="n", metadata=metadata)
    assert ids_of(store.list(**FITS)) == ["it"]
    for name, value in FITS.items():
        assert list(store.list(**FITS | {name: MISSES[name]})) == []
        if name != "sandbox_id":
            assert store.page(**{name: MISSES[name]}).sandboxes == []
            assert ids_of(store.list(**{name: value})) == in_order(["beside-it", "it", "it-too"], 4)
    for labels in ({"app": "web", "none": "1"}, {"app": "we"}, {"ap": "web"}, {"app": "WEB"}):
        assert list(store.list(labels=labels)) == []


def test_an_empty_label_is_there_and_a_missing_one_is_not(store):
    add(store, ["empty"], metadata=labelled(app=""))
    add(store, ["missing"], metadata=labelled(other=""))
    add(store, ["web"], metadata=labelled(app="web"))
    assert ids_of(store.list(labels={"app": ""})) == ["empty"]
    assert ids_of(store.list(labels={})) == ["empty", "missing", "web"]


def test_labels_are_found_by_what_they_say_in_any_language(store):
    strange = {"ключ": "значение", "a b\n": "*", "label:app": "label:app", "state": "NOTREADY", "ext:": "%"}
    add(store, ["it"], metadata=Metadata(labels=strange, namespace="größe"))
    add(store, ["other"], metadata=Metadata(labels=strange | {"a b\n": "?"}, namespace="gro"))
    (found,) = store.list(labels=strange, namespace="größe")
    assert found == store.get("it")
    assert found.metadata.labels == strange


def test_a_node_has_its_own_sandboxes_whether_they_are_few_or_many_of_all(store):
    # Of the indexes of the node and of the states the smaller is walked; so each must be the smaller once.
    add(store, ["a1", "a2"], node="a", metadata=labelled(app="web"))
    add(store, ["a3"], NOTREADY, node="a")
    add(store, ["a4"], None, node="a", metadata=labelled(app="web"))
    add(store, ["b1"], node="b", metadata=labelled(app="web"))
    add(store, ["homeless"])
    for others in ((), [f"c{i}" for i in range(10)]):
        add(store, others, node="c")
        assert ids_of(store.list(node="a")) == store.ids(node="a") == ["a1", "a2", "a3"]
        assert ids_of(store.list(node="a", states=State)) == ["a1", "a2", "a3", "a4"]
        assert ids_of(store.list(node="a", states=[State.NOTREADY])) == ["a3"]
        assert ids_of(store.list(node="a", labels={"app": "web"})) == ["a1", "a2"]
        assert ids_of(store.list(node="b")) == ["b1"]
        assert ids_of(store.list(node="no-such-node")) == store.ids(node="no-such-node") == []
        assert (store.count(node="a"), store.count(node="a", state=State.INIT), store.count(node="x")) == (3, 1, 0)


BAD_FILTERS = [
    ("states", State.READY),
    ("states", "READY"),
    ("states", ["READY"]),
    ("states", [None]),
    ("states", 1),
    ("cri_state", State.READY),
    ("cri_state", "SANDBOX_UNKNOWN"),
    ("cri_state", ""),
    ("node", ""),
    ("node", "n 1"),
    ("node", 1),
    ("namespace", ""),
    ("namespace", "a\0"),
    ("namespace", 1),
    ("sandbox_id", ""),
    ("sandbox_id", "it*"),
    ("labels", ["app"]),
    ("labels", {"app": None}),
    ("labels", {"": "web"}),
    ("labels", {"app": "\0"}),
    ("labels", {"app": "x" * 1025}),
    ("limit", 0),
    ("limit", -1),
    ("limit", True),
    ("limit", 1.5),
    ("timeout", 0),
]


@pytest.fixture
def nowhere(flavour) -> Iterator[Any]:
    """A store whose server is not there: what is sent to it fails."""
    with opened(flavour, "unix:///nowhere/redis.sock") as store:
        with pytest.raises(StoreUnavailableError):
            store.ids()
        yield store


def test_a_bad_filter_is_refused_by_name_before_anything_is_sent(nowhere):
    for name, value in BAD_FILTERS:
        for call in (nowhere.page, nowhere.list):  # list refuses it when it is called, not when it is first looked at
            with pytest.raises(InvalidArgumentError) as caught:
                call(**{name: value})
            assert caught.value.argument.startswith(name)


BAD_CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("limit", lambda store: store.page(limit=listing.PAGE_MAX + 1)),
    ("limit", lambda store: store.page(limit=None)),
    ("state", lambda store: store.count(state="READY")),
    ("state", lambda store: store.count(state=[State.READY])),
    ("node", lambda store: store.count(node="")),
    ("node", lambda store: store.ids(node="a/b")),
    ("states", lambda store: store.ids(states="READY")),
    ("timeout", lambda store: store.counts(timeout=-1)),
    ("sandbox_id", lambda store: store.history("a b")),
    ("sandbox_id", lambda store: store.history("")),
    ("sandbox_id", lambda store: store.history(None)),
    ("sandbox_ids", lambda store: store.get_many("it")),
    ("sandbox_ids", lambda store: store.get_many(None)),
    ("sandbox_ids", lambda store: store.get_many(1)),
    ("sandbox_id", lambda store: store.get_many(["it", ""])),
    ("sandbox_id", lambda store: store.get_many(["it", None])),
    ("sandbox_id", lambda store: store.get_many([b"it"])),
    ("sandbox_id", lambda store: store.get_many([["it"]])),
    ("sandbox_id", lambda store: store.get_many(iter(["it", "a b"]))),
    ("prefix", lambda store: store.resolve("")),
    ("prefix", lambda store: store.resolve("-")),
    ("prefix", lambda store: store.resolve("a*")),
    ("prefix", lambda store: store.resolve("a~")),
    ("prefix", lambda store: store.resolve("a" * 129)),
    ("prefix", lambda store: store.resolve(None)),
    ("prefix", lambda store: store.resolve(b"a")),
]


def test_another_bad_argument_is_refused_by_name_before_anything_is_sent(nowhere):
    for name, call in BAD_CALLS:
        with pytest.raises(InvalidArgumentError) as caught:
            call(nowhere)
        assert caught.value.argument == name


def test_what_cannot_be_a_cursor_is_refused_before_anything_is_sent(nowhere):
    for cursor in ("", "x", "0", ":it", "-1:it", "0.5:it", "0x0:", 5, b"0:it"):
        for call in (nowhere.page, lambda **bad: next(nowhere.list(**bad))):
            with pytest.raises(InvalidArgumentError) as caught:
                call(after=cursor)
            assert caught.value.argument == "after"


@real_servers
def test_filters_by_more_labels_than_a_record_can_have_find_nothing_or_are_refused(store):
    add(store, ["it"], metadata=labelled(app="web"))
    with suppress(InvalidArgumentError):
        assert list(store.list(labels={"app": "web"} | {str(i): "" for i in range(9000)})) == []


# -- a plain filter in Python over everything finds the same

IDS = st.text("aAbz019._-", min_size=1, max_size=4).filter(lambda text: text[0].isalnum())
NODES = st.sampled_from(["", "n", "n1", "N"])
SPACES = st.sampled_from(["", "a", "b"])
LABELS = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["", "x", "y"]))
STATES = st.sampled_from(State)
SANDBOXES = st.fixed_dictionaries(
    {"state": STATES, "node": NODES, "metadata": st.builds(Metadata, namespace=SPACES, labels=LABELS)}
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "states": st.none() | st.sets(STATES),
        "cri_state": st.sampled_from([None, "SANDBOX_READY", "SANDBOX_NOTREADY"]),
        "node": NODES.map(lambda node: node or None),
        "namespace": SPACES.map(lambda space: space or None),
        "labels": LABELS,
        "sandbox_id": IDS,
    },
)
LIMITS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def fits(
    sandbox: Sandbox, *, states=None, cri_state=None, node=None, namespace=None, labels=None, sandbox_id=None
) -> bool:
    state, metadata = sandbox.status.state, sandbox.metadata
    return (
        (state is not State.INIT if states is None else state in states)
        and cri_state in (None, state.cri)
        and node in (None, sandbox.node)
        and namespace in (None, metadata.namespace)
        and (labels or {}).items() <= metadata.labels.items()
        and sandbox_id in (None, sandbox.id)
    )


def agree_on_everything(store: Any, partitions: int, population: dict[str, Any], wanted: list[Any], limits: list[int]):
    with store.batch() as batch:
        for sandbox_id, born in population.items():
            kept = {name: born[name] for name in ("node", "metadata")}
            if born["state"] is State.INIT:
                batch.create(sandbox_id=sandbox_id, **kept)
            else:
                batch.load(sandbox_id, Status(born["state"]), **kept)
    everything = [store.get(sandbox_id) for sandbox_id in in_order(population, partitions)]
    assert [sandbox.status.state for sandbox in everything] == [population[s.id]["state"] for s in everything]
    for filters in wanted:
        expected = [sandbox for sandbox in everything if fits(sandbox, **filters)]
        assert list(store.list(**filters)) == expected
        assert paged(store, limits, **filters) == expected
        assert list(store.list(limit=limits[0], **filters)) == expected[: limits[0]]
        few = {name: filters.get(name) for name in ("states", "node")}
        assert store.ids(**few) == sorted(sandbox.id for sandbox in everything if fits(sandbox, **few))
        for state in (None, *State):
            having = {"states": state and [state], "node": few["node"]}
            assert store.count(state=state, node=few["node"]) == sum(fits(sandbox, **having) for sandbox in everything)
    counts = store.counts()
    assert counts.states == {state: sum(s.status.state is state for s in everything) for state in State}
    nodes = Counter(sandbox.node for sandbox in everything if sandbox.node)
    assert list(counts.nodes.items()) == sorted(nodes.items())
    asked = [filters.get("sandbox_id", "none") for filters in wanted] + sorted(population)
    found = {sandbox.id: sandbox for sandbox in everything}
    assert list(store.get_many(asked).items()) == [(i, found[i]) for i in dict.fromkeys(asked) if i in found]
    for begin in {filters.get("sandbox_id", "a") for filters in wanted} | {i[:2] for i in population}:
        matches = sorted(sandbox_id for sandbox_id in population if sandbox_id.startswith(begin))
        if begin in population or len(matches) == 1:
            assert store.resolve(begin) == (begin if begin in population else matches[0])
            continue
        with pytest.raises(AmbiguousIDError if matches else NotFoundError) as caught:
            store.resolve(begin)
        assert getattr(caught.value, "matches", ()) == tuple(matches[:5])


@pytest.mark.parametrize(
    ("backend", "examples", "layouts"),
    [("fakeredis", 8, [1, 4]), ("valkey", 25, [1, 4, 64]), ("redis", 25, [1, 4, 64])],
)
@every_flavour
def test_every_reader_agrees_with_a_plain_filter_over_every_record(
    servers, prefix, backend, flavour, examples, layouts
):
    source: Any = fakeredis.FakeServer() if backend == "fakeredis" else servers(backend).url
    client = fakeredis.FakeRedis(server=source) if backend == "fakeredis" else redis.Redis.from_url(source)
    numbers = count()

    @contextmanager
    def fresh(partitions: int) -> Iterator[Any]:
        """A store of this example's own, of which nothing is left behind."""
        name = f"{prefix}-{next(numbers)}"
        if flavour == "sync":
            store: Any = SandboxStore(client, prefix=name, partitions=partitions)
        else:
            there: Any = fakeredis.FakeAsyncRedis(server=source) if backend == "fakeredis" else source
            store = BlockingStore(AsyncSandboxStore(there, prefix=name, partitions=partitions))
        try:
            yield store
        finally:
            store.close()
            client.unlink(f"{name}:meta", *client.scan_iter(f"{name}:*"))

    @settings(max_examples=examples)
    @given(
        partitions=st.sampled_from(layouts),
        population=st.dictionaries(IDS, SANDBOXES, max_size=10),
        wanted=st.lists(FILTERS, min_size=1, max_size=3),
        limits=LIMITS,
        steps=st.integers(1, 4),
        budget=st.sampled_from([5, 20, listing.BUDGET]),
    )
    def agree(partitions, population, wanted, limits, steps, budget):
        with pytest.MonkeyPatch.context() as patch, fresh(partitions) as store:
            for module, name in ((listing, "PAGE"), (queries, "MANY"), (queries, "COUNT_PAGE")):
                patch.setattr(module, name, steps)  # as if there were thousands
            patch.setattr(listing, "BUDGET", budget)
            agree_on_everything(store, partitions, population, wanted, limits)

    agree()
    client.close()


# -- order, pages and cursors

UNLIKE = ["a", "A", "a-1", "a.1", "a_1", "a10", "a1", "aa", "B", "b", "Z", "z", "0", "9", "a" * 128, "a" * 127 + "b"]


def test_sandboxes_come_in_the_order_of_the_bytes_of_their_ids_within_each_partition(open_store, partitions):
    store = open_store(partitions=partitions)
    for sandbox_id, status in zip(UNLIKE, cycle([READY, NOTREADY, UNKNOWN]), strict=False):
        add(store, [sandbox_id], status)  # the indexes are merged
    expected = in_order(UNLIKE, partitions)
    assert ids_of(store.list()) == expected
    assert ids_of(paged(store, [3, 1, 5])) == expected
    assert store.ids() == sorted(UNLIKE)


def test_pages_of_any_size_hold_each_once(open_store, partitions, monkeypatch):
    store = open_store(partitions=partitions)
    names = [f"s{i}" for i in range(100)]
    first = [i for i in names if zlib.crc32(i.encode()) % partitions == 0]
    # The first partition holds one, so that others are asked together: a page then ends within any of them.
    ids = add(store, first[:1] + [i for i in names[:25] if i not in first])
    for size in (1, 2, 3, 4, 5, 7, 11, 19):
        monkeypatch.setattr(listing, "PAGE", size)
        assert ids_of(paged(store, [size])) == in_order(ids, partitions)
        assert ids_of(store.list()) == in_order(ids, partitions)


def test_a_page_holds_as_many_as_asked_for_and_the_last_one_has_no_cursor(open_store, partitions):
    store = open_store(partitions=partitions)
    ids = add(store, [f"s{i}" for i in range(12)])
    # Behind the last sandbox there may be partitions that hold none, which nobody has looked at.
    assert [len(page.sandboxes) for page in pages(store, [4])][:3] == [4, 4, 4]
    whole = store.page(limit=13)
    assert (ids_of(whole.sandboxes), whole.cursor) == (in_order(ids, partitions), None)
    if partitions == 1:
        first = store.page(limit=6)
        assert store.page(after=first.cursor, limit=6).cursor is None
    assert sum(len(page.sandboxes) == 0 for page in pages(store, [4])) <= 1


def test_partitions_that_hold_nothing_end_a_listing_as_well(open_store, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 5)
    store = open_store(partitions=4)
    by_place = sorted(range(200), key=lambda i: zlib.crc32(b"s%d" % i) % 4)
    ids = add(store, [f"s{i}" for i in by_place[:5]])  # a whole page of them, all in the first partition
    assert ids_of(store.list()) == ids_of(paged(store, [5])) == sorted(ids)


def test_only_the_first_page_says_where_a_watch_goes_on(open_store):
    store = open_store(partitions=4)
    add(store, [f"s{i}" for i in range(8)])
    first, second, *_ = pages(store, [3])
    newest = [store.history(i)[-1].revision for i in ids_of(store.list())]
    assert second.since is None
    assert len(first.since.split(",")) == 4
    assert set(first.since.split(",")) <= {*newest, "0-0"}


def test_a_cursor_stays_good_when_its_sandbox_goes_and_others_come(open_store, rival, partitions):
    store = open_store(partitions=partitions)
    ids = in_order(add(store, [f"s{i:02}" for i in range(20)]), partitions)
    cursors = [page.cursor for page in pages(store, [5])][:3]
    for sandbox_id in ids[:12]:
        rival.remove(sandbox_id, force=True)
    add(rival, ["s00-new", "a", "z"])
    for number, cursor in enumerate(cursors, 1):
        last = ids[5 * number - 1]
        left = in_order({*ids[12:], "s00-new", "a", "z", last}, partitions)
        behind = left[left.index(last) + 1 :]
        assert ids_of(store.list(after=cursor)) == behind
        assert ids_of(store.page(after=cursor).sandboxes) == behind
    for sandbox_id in rival.ids():
        rival.remove(sandbox_id, force=True)
    for cursor in cursors:
        assert list(store.list(after=cursor)) == []
        assert store.page(after=cursor).cursor is None


def test_a_bad_cursor_is_refused_by_name(open_store):
    store = open_store(partitions=4)
    add(store, ["it"])
    for cursor in ("", "x", "0", "4:", "4:it", "-1:it", "+0:it", "0.5:it", "99999999999:it", ":it", 5, b"0:it", ["0:"]):
        for call in (store.page, lambda **bad: next(store.list(**bad))):
            with pytest.raises(InvalidArgumentError) as caught:
                call(after=cursor)
            assert (caught.value.argument, caught.value.value) == ("after", cursor)


def test_a_cursor_that_cannot_be_written_in_utf8_is_refused(store):
    add(store, ["it"])
    for cursor in ("0:\ud800", "0:it\udfff"):
        with pytest.raises(InvalidArgumentError):
            store.page(after=cursor)


def test_a_bad_cursor_is_refused_beside_an_id_as_well(store):
    add(store, ["it"])
    with pytest.raises(InvalidArgumentError):
        store.page(after=5, sandbox_id="it")


# -- while others are at work


@pytest.mark.parametrize(
    ("partitions", "wanted"), [(4, {}), (1, {"node": "n"}), (4, {"labels": {"app": "web"}}), (1, {"states": State})]
)
def test_who_is_there_all_the_time_comes_once_whatever_happens_between_two_pages(open_store, rival, partitions, wanted):
    store = open_store(partitions=partitions)
    born = {"node": "n", "metadata": labelled(app="web")}
    there = add(store, [f"s{i:02}" for i in range(0, 24, 2)], **born)
    stopping = add(store, [f"s{i:02}" for i in range(1, 12, 2)], **born)
    leaving = add(store, [f"s{i:02}" for i in range(13, 24, 2)], **born)
    seen: Counter[str] = Counter()
    for turn, page in enumerate(pages(store, [3, 2, 4], **wanted)):
        seen.update(ids_of(page.sandboxes))
        add(rival, [f"s{i:02}-{turn}" for i in range(0, 24, 6)], None if turn % 2 else READY, **born)
        for sandbox_id in stopping[turn::6]:
            rival.stop(sandbox_id)
        for sandbox_id in [f"s{i:02}-{turn - 1}" for i in range(0, 24, 6)] + leaving[turn::6]:
            rival.remove(sandbox_id, force=True)
    assert {seen[sandbox_id] for sandbox_id in (*there, *stopping)} == {1}
    assert max(seen.values()) == 1


def test_who_leaves_its_state_meanwhile_comes_at_most_once_and_not_behind_its_place(store, rival):
    ids = add(store, [f"s{i}" for i in range(9)])
    first = store.page(states=[State.READY], limit=3)
    for sandbox_id in ids[::2]:
        rival.stop(sandbox_id)
    rest = store.list(after=first.cursor, states=[State.READY])
    assert (ids_of(first.sandboxes), ids_of(rest)) == (ids[:3], ["s3", "s5", "s7"])
    assert ids_of(store.list(states=[State.NOTREADY], after=first.cursor)) == ["s4", "s6", "s8"]


def test_what_has_changed_since_it_was_chosen_is_listed_only_if_it_still_fits(store, rival, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 10)
    born = {"node": "n", "metadata": Metadata(namespace="prod", labels={"app": "web"})}
    wanted = {"node": "n", "namespace": "prod", "labels": {"app": "web"}, "states": [State.READY]}
    ids = add(store, [f"s{i}" for i in range(10, 50)], **born)
    with closing(store.list(**wanted)) as sandboxes:
        found = [next(sandboxes)]
        # The second page is chosen by now, and perhaps read; the third is perhaps chosen.
        for sandbox_id in [f"s{tens}{ones}" for tens in (2, 3, 4) for ones in (1, 2, 3, 4, 5)]:
            rival.remove(sandbox_id, force=True)
        add(rival, ["s21", "s31", "s41"], **born | {"node": "n2"})
        add(rival, ["s22", "s32", "s42"], **born | {"metadata": Metadata(namespace="prod", labels={"app": "db"})})
        add(rival, ["s23", "s33", "s43"], **born | {"metadata": Metadata(namespace="test", labels={"app": "web"})})
        add(rival, ["s24", "s34", "s44"], NOTREADY, **born)
        found += sandboxes
    assert [sandbox for sandbox in found if not fits(sandbox, **wanted)] == []
    unchanged = [i for i in ids if i < "s20" or i[2] not in "12345"]
    assert [i for i in ids_of(found) if i in unchanged or i > "s30"] == unchanged


def churn(number: int, stores: list[tuple[str, str]], pipe: Any) -> None:
    """A process that creates, starts, stops and removes sandboxes between those of others until it is told to end."""
    opened_here = [SandboxStore(url, prefix=prefix, agent=f"churner-{number}") for url, prefix in stores]
    turn = 0
    while not pipe.poll():
        ids = [f"s{i:03}-{number}-{turn}" for i in range(0, 300, 30)]
        for store, step in product(opened_here, STEPS):
            with store.batch() as batch:
                results = [step(batch, sandbox_id) for sandbox_id in ids]
            for result in results:
                result.result()
        turn += 1
    for store in opened_here:
        store.close()
    pipe.send(turn)


STEPS: list[Callable[[Any, str], Any]] = [
    lambda batch, sandbox_id: batch.create(sandbox_id=sandbox_id, node="n"),
    lambda batch, sandbox_id: batch.start(sandbox_id, pid=1),
    lambda batch, sandbox_id: batch.exit(sandbox_id, exit_status=1),
    lambda batch, sandbox_id: batch.remove(sandbox_id),
]


@contextmanager
def churners(stores: list[tuple[str, str]]) -> Iterator[list[int]]:
    """Two processes at work; afterwards how many turns each has made."""
    context = multiprocessing.get_context("spawn")
    turns: list[int] = []
    pipes, processes = [], []
    for number in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=churn, args=(number, stores, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        yield turns
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            with suppress(EOFError, BrokenPipeError):  # it has failed, and the test with it
                pipe.send("end")
                turns.append(pipe.recv())
            process.join()


def test_who_is_there_all_the_time_comes_once_while_other_processes_are_at_work(servers, prefix):
    # Starting processes takes its time, so these are at work on both servers at once.
    layouts = [("valkey", "sync", 1), ("redis", "asyncio", 4)]
    urls = [(servers(backend).url, f"{prefix}-{flavour}") for backend, flavour, _ in layouts]
    names = [f"s{i:03}" for i in range(300)]
    with ExitStack() as stack:
        stores = [
            stack.enter_context(opened(flavour, url, prefix=name, partitions=partitions))
            for (url, name), (_, flavour, partitions) in zip(urls, layouts, strict=True)
        ]
        for store in stores:
            add(store, names, node="n")
        with churners(urls) as turns:
            for store, (_, _, partitions) in zip(stores, layouts, strict=True):
                others: set[str] = set()
                for way in islice(cycle(WAYS), 10_000):
                    seen = way(store)
                    assert sorted(i for i in seen if len(i) == 4) == names
                    assert len(set(seen)) == len(seen)
                    assert seen == (sorted(seen) if way is WAYS[-1] else in_order(seen, partitions))
                    others |= set(seen) - set(names)
                    if len(others) > 100:
                        break
        assert len(turns) == 2
        assert all(turns)
        for store, (url, name) in zip(stores, urls, strict=True):
            assert store.ids(states=State) == names
            assert store.audit().problems == []
            with redis.Redis.from_url(url) as client:
                client.unlink(*client.scan_iter(f"{name}:*"))


WAYS: list[Callable[[Any], list[str]]] = [
    lambda store: ids_of(store.list()),
    lambda store: ids_of(store.list(node="n", states=State)),
    lambda store: ids_of(paged(store, [7, 20, 1])),
    lambda store: store.ids(),  # in the order of the ids alone
]


# -- what cannot be read

SPOILT = {
    "bad-pid": lambda c, k: c.hset(k, "pid", "4x"),
    "huge-pid": lambda c, k: c.hset(k, "pid", "4294967296"),
    "bad-time": lambda c, k: c.hset(k, "created_at", "yesterday"),
    "bad-state": lambda c, k: c.hset(k, "state", "FOO"),
    "state-in-bytes": lambda c, k: c.hset(k, "state", b"\xff\xfe"),
    "no-state": lambda c, k: c.hdel(k, "state"),
    "label-in-bytes": lambda c, k: c.hset(k, "label:app", b"\xff"),
    "label-named-in-bytes": lambda c, k: c.hset(k, b"label:\xff", "x"),
    "node-in-bytes": lambda c, k: c.hset(k, "node", b"n\xff"),
    "bad-extension": lambda c, k: c.hset(k, "ext:quota", b"\xc1"),
    "half-an-extension": lambda c, k: c.hset(k, "ext:quota", b"\x92\x01"),
    "a-list": lambda c, k: (c.delete(k), c.rpush(k, "x", "y")),
    "a-text": lambda c, k: (c.delete(k), c.set(k, "x")),
    "a-set": lambda c, k: (c.delete(k), c.zadd(k, {"x": 1})),
}


@pytest.fixture
def spoilt(store, client, key) -> Any:
    """Records that were garbled by hand, among others that are well."""
    add(store, ["a", "z", *SPOILT, *(f"{name}-well" for name in SPOILT)], node="n")
    for name, spoil in SPOILT.items():
        spoil(client, key(f"status:{name}"))
    return store


def test_records_garbled_by_hand_are_shown_as_unknown_with_their_problem_and_stop_nothing(spoilt, key):
    store = spoilt
    ids = sorted(["a", "z", *SPOILT, *(f"{name}-well" for name in SPOILT)])
    listed = {sandbox.id: sandbox for sandbox in store.list()}
    assert list(listed) == ids
    assert {sandbox.id: sandbox for sandbox in paged(store, [4, 1])} == listed
    many = store.get_many(ids)
    assert list(many) == ids
    for sandbox_id, sandbox in listed.items():
        assert replace(sandbox, problem=None) == replace(many[sandbox_id], problem=None)
        if sandbox_id not in SPOILT:
            assert (sandbox, sandbox.problem) == (store.get(sandbox_id), None)
            continue
        assert sandbox.status.state is State.UNKNOWN
        assert key(f"status:{sandbox_id}") in sandbox.problem
        assert key(f"status:{sandbox_id}") in many[sandbox_id].problem
        if sandbox_id.startswith("a-"):
            with pytest.raises(SchemaError):
                store.get(sandbox_id)
        else:
            assert sandbox == store.get(sandbox_id)


def test_a_problem_says_which_field_holds_what(spoilt, key):
    problems = {i: s.problem.removeprefix(key(f"status:{i}")) for i, s in spoilt.get_many(SPOILT).items()}
    assert "'pid' holds '4x'" in problems["bad-pid"]
    assert "'state' holds 'FOO'" in problems["bad-state"]
    assert "no field 'state'" in problems["no-state"]
    assert r"'label:app' holds '\xff'" in problems["label-in-bytes"]
    assert "'ext:quota' holds" in problems["bad-extension"]
    assert "wrong kind of value" in problems["a-list"]


@pytest.mark.parametrize("others", [0, 10])  # so that the indexes of the states are walked, or that of the node
def test_a_key_of_the_wrong_type_is_shown_whatever_is_asked_for(store, client, key, others):
    add(store, ["a", "it", "z"], node="n", metadata=Metadata(namespace="prod", labels={"app": "web"}))
    add(store, [f"m{i}" for i in range(others)], node="other")
    SPOILT["a-list"](client, key("status:it"))
    labels = {"labels": {"app": "web"}}
    for wanted in (labels, {"namespace": "prod"}, {"node": "n"}, {"node": "n", **labels}):
        assert [(s.id, s.problem is None) for s in store.list(**wanted)] == [("a", True), ("it", False), ("z", True)]


@pytest.mark.parametrize("others", [0, 10])
def test_a_record_whose_state_is_none_is_shown_on_its_node(store, client, key, others):
    add(store, ["a", "it", "gone", "z"], node="n")
    add(store, [f"m{i}" for i in range(others)], node="other")
    SPOILT["bad-state"](client, key("status:it"))
    SPOILT["no-state"](client, key("status:gone"))
    assert [(s.id, s.problem is None) for s in store.list(node="n", states=[State.READY])] == [
        ("a", True),
        ("gone", False),
        ("it", False),
        ("z", True),
    ]


def test_a_value_with_nul_in_it_reads_the_same_for_everybody(store, client, key):
    add(store, ["a", "it", "z"], metadata=labelled(app="web"))
    client.hset(key("status:it"), "label:app", "w\0b")
    listed = {sandbox.id: sandbox for sandbox in store.list()}
    assert list(listed) == ["a", "it", "z"]
    assert listed == store.get_many(["a", "it", "z"])
    assert listed["it"] == store.get("it")


def test_a_value_with_nul_in_it_stops_nothing(store, client, key):
    add(store, ["a", "it", "z"], metadata=labelled(app="web"))
    for value in ("\0", "w\0b", "\0\0\0", "\0" * 100, "\0state\0READY", "x\0label:x\0y"):
        client.hset(key("status:it"), "label:app", value)
        before, it, behind = store.list()
        assert (before, behind) == (store.get("a"), store.get("z"))
        assert it.id == "it"
        assert it.problem is None or key("status:it") in it.problem
        assert it.problem is not None or it.metadata.labels == {"app": value}


def test_an_index_entry_without_a_record_is_left_out_and_stops_nothing(store, client, key):
    add(store, ["a", "z"], node="n")
    for name in ("state:READY", "state:UNKNOWN", "node:n"):
        client.zadd(key(name), dict.fromkeys(["m", "m m", "", "m\0", b"\xff\xfe"], 0))
    client.delete(key("status:z"))
    for wanted in ({}, {"node": "n"}, {"labels": {}}, {"states": State}):
        assert ids_of(store.list(**wanted)) == ids_of(paged(store, [1], **wanted)) == ["a"]
    assert list(store.get_many(["z", "m", "a"])) == ["a"]
    assert set(store.ids()) > {"a", "z", "m"}


def test_a_record_whose_id_is_no_text_is_shown_and_its_place_can_be_passed(store, client, key):
    add(store, ["a", "z"])
    for raw in (b"b\xff", b"c d", b"\xf0\x9f"):
        client.zadd(key("state:READY"), {raw: 0})
        client.hset(key("status:").encode() + raw, mapping=client.hgetall(key("status:a")))
    expected = ["a", "b\\xff", "c d", "z", "\\xf0\\x9f"]
    assert ids_of(store.list()) == ids_of(paged(store, [1])) == expected


def test_an_id_in_two_indexes_comes_once(store, client, key):
    add(store, ["a", "it", "z"])
    client.zadd(key("state:NOTREADY"), {"it": 0})
    client.zadd(key("state:UNKNOWN"), {"it": 0, "a": 0})
    assert ids_of(store.list()) == ids_of(paged(store, [1])) == store.ids() == ["a", "it", "z"]


RICH = {
    "extensions": Metadata(extensions={"quota": {"cpu": 2, "raw": b"\0\xff\0"}, "none": None, "n": [0, -1, 2.5]}),
    "empty": Metadata(),
    "many-annotations": Metadata(annotations={f"a{i}": "" if i % 3 else f"{i}\n" for i in range(500)}),
    "64-KiB": Metadata(annotations={"a": "é" * 31_000}, labels={"empty": "", "line": "1\r\n2"}),
    "looks-like-one": Metadata(annotations={"ext:x": "ext:x", "a": "12\\0ext:"}, labels={"ext:y": "$-1\r\n"}),
    "both": Metadata(labels={"app": "web"}, annotations={"b": "x" * 30_000}, extensions={"x": b"\0" * 30_000}),
}


@pytest.mark.parametrize("wanted", [{}, {"node": "n"}, {"node": "n", "states": State}])
def test_records_are_listed_whole_whatever_they_carry(store, wanted):
    for sandbox_id, metadata in RICH.items():
        add(store, [sandbox_id], node="n", metadata=metadata)
    listed = {sandbox.id: sandbox for sandbox in store.list(**wanted)}
    assert listed == {sandbox_id: store.get(sandbox_id) for sandbox_id in RICH} == store.get_many(RICH)
    assert {sandbox_id: sandbox.metadata for sandbox_id, sandbox in listed.items()} == RICH


@real_servers
def test_big_records_are_listed_whole(open_store):
    store = open_store(partitions=2)
    add(
        store,
        [f"many{i:02}" for i in range(20)],
        metadata=Metadata(annotations=dict.fromkeys(map(str, range(950)), "")),
    )
    add(store, [f"long{i:03}" for i in range(200)], metadata=Metadata(annotations={"a": "x" * 60_000}))
    listed = list(store.list())
    assert ids_of(listed) == in_order(store.ids(), 2)
    assert {sandbox.id: sandbox for sandbox in listed} == store.get_many(store.ids())
    assert paged(store, [150, 7]) == listed


# -- a listing under way

CROWD = 2500


def crowd_states() -> dict[str, str]:
    """Each id of the crowd with its state."""
    return {f"c{i:04}": ("READY", "NOTREADY", "READY", "INIT", "UNKNOWN")[i % 5] for i in range(CROWD)}


@pytest.fixture(scope="module")
def crowds(servers) -> Iterator[Callable[[str], str]]:
    """The prefix of a store with 2,500 sandboxes, 2,400 of which are on the node big; none may change it."""
    made: dict[str, str] = {}

    def get(backend: str) -> str:
        if backend not in made:
            made[backend] = f"crowd-{time.monotonic_ns()}"
            with SandboxStore(servers(backend).url, prefix=made[backend]) as store, store.batch() as batch:
                for i, (sandbox_id, state) in enumerate(crowd_states().items()):
                    born = {"node": "small" if i % 25 == 0 else "big", "metadata": labelled(app="web", i=str(i))}
                    if state == "INIT":
                        batch.create(sandbox_id=sandbox_id, **born)
                    else:
                        batch.load(sandbox_id, Status(State(state)), **born)
        return made[backend]

    yield get
    for backend, prefix in made.items():
        with redis.Redis.from_url(servers(backend).url) as client:
            client.unlink(*client.scan_iter(f"{prefix}:*"))


@pytest.fixture
def crowd(crowds, open_store, backend, prefix) -> Any:
    return open_store(prefix=crowds(backend), agent=prefix)


@pytest.fixture
def carried_out(client) -> Callable[[], tuple[int, int]]:
    """How many scripts and how many HGETALL the server has carried out since this was asked before."""
    before = [0, 0]

    def ask() -> tuple[int, int]:
        client.ping()  # what was sent before, by whomever, is carried out by the reply to the next command
        stats = client.info("commandstats")
        now = [stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "hgetall")]
        scripts, reads = (new - old for new, old in zip(now, before, strict=True))
        before[:] = now
        return scripts, reads

    return ask


@real_servers
def test_a_page_that_filters_much_ends_early_and_the_listing_is_whole(crowd, carried_out):
    needle = {"labels": {"i": "2499", "app": "web"}}
    first = crowd.page(**needle)
    assert (first.sandboxes, first.cursor is None) == ([], False)
    carried_out()
    assert ids_of(crowd.list(**needle)) == ["c2499"]
    scripts, reads = carried_out()
    assert 4 <= scripts <= 8  # each looks at some 400
    assert reads == 1
    for i in (0, 300, 500, CROWD):  # behind it no page has any
        assert ids_of(crowd.list(labels={"i": str(i)}, states=State)) == list(crowd_states())[i : i + 1]


@real_servers
def test_what_does_not_fit_is_not_read(crowd, carried_out):
    for wanted in (
        {"node": "small", "states": [State.READY]},
        {"node": "small", "labels": {"app": "web", "i": "75"}},
        {"node": "big", "labels": {"i": "76", "app": "web"}, "states": [State.READY]},
        {"node": "big", "labels": {"i": "75"}},
        {"states": [State.READY], "labels": {"i": "76", "app": "db"}},
        {"namespace": "none"},
        {"sandbox_id": "c0076"},
        {"sandbox_id": "c0077", "states": [State.NOTREADY]},
    ):
        carried_out()
        found = list(crowd.list(**wanted))
        assert (wanted, carried_out()[1]) == (wanted, len(found))


@real_servers
def test_thousands_are_listed_whole_and_in_order(crowd):
    listed = [i for i, state in crowd_states().items() if state != "INIT"]
    assert ids_of(crowd.list()) == listed
    assert ids_of(paged(crowd, [listing.PAGE_MAX, 1, 199])) == listed
    assert ids_of(paged(crowd, node="small", states=State)) == list(crowd_states())[::25]
    unknown = [i for i, state in crowd_states().items() if state == "UNKNOWN" and int(i[1:]) % 25]
    assert ids_of(paged(crowd, node="big", states=[State.UNKNOWN])) == unknown


@real_servers
def test_a_listing_reads_no_more_than_a_page_ahead(crowd, carried_out):
    carried_out()
    with closing(crowd.list()) as sandboxes:
        next(sandboxes)
        scripts, reads = carried_out()
        assert 1 <= scripts <= 3
        assert listing.PAGE <= reads <= 2 * listing.PAGE
        assert len(list(islice(sandboxes, listing.PAGE))) == listing.PAGE
        scripts, more = carried_out()
        assert scripts <= 2
        assert reads + more <= 3 * listing.PAGE
    carried_out()
    everything = list(crowd.list())
    scripts, reads = carried_out()
    assert reads == len(everything)
    assert scripts <= len(everything) / listing.PAGE + 1


@real_servers
def test_a_listing_ends_at_its_limit_and_reads_nothing_behind_it(crowd, carried_out):
    for limit in (1, listing.PAGE - 1, listing.PAGE, listing.PAGE + 1, 2 * listing.PAGE + 1):
        carried_out()
        assert ids_of(crowd.list(states=State, limit=limit)) == list(crowd_states())[:limit]
        assert carried_out() == (-(-limit // listing.PAGE), limit)
    assert len(list(crowd.list(limit=CROWD + 1))) == CROWD * 4 // 5


@real_servers
def test_a_listing_goes_on_behind_a_cursor(crowd):
    first = crowd.page(limit=300, states=State)
    behind = list(crowd_states())[len(first.sandboxes) :]
    assert ids_of(crowd.list(after=first.cursor, states=State)) == behind
    assert ids_of(crowd.list(after=first.cursor, states=State, limit=7)) == behind[:7]


@real_servers
def test_a_listing_that_is_ended_early_leaves_no_connection_and_a_store_that_works(crowd, client, prefix, until):
    def connections() -> int:
        return sum(each["name"] == prefix for each in client.client_list())

    for _ in range(5):
        for sandbox in crowd.list():
            assert crowd.get(sandbox.id) == sandbox
            break
        with closing(crowd.list()) as sandboxes:
            assert len(list(islice(sandboxes, listing.PAGE + 1))) == listing.PAGE + 1
    assert until(lambda: connections() <= 2)
    assert len(crowd.ids()) == CROWD * 4 // 5
    crowd.close() if isinstance(crowd, SandboxStore) else crowd.runner.run(crowd.wrapped.aclose())
    assert until(lambda: not connections())


@real_servers
def test_a_store_can_be_used_in_the_midst_of_its_listings(crowd):
    by_state: dict[str, list[str]] = {"READY": [], "NOTREADY": []}
    with closing(crowd.list(states=[State.READY])) as ready, closing(crowd.list(states=[State.NOTREADY])) as notready:
        for pair in zip(ready, notready, strict=False):
            for sandbox in pair:
                by_state[sandbox.status.state].append(sandbox.id)
            if len(by_state["READY"]) % 100 == 0:
                assert crowd.get(pair[0].id) == pair[0]
                assert ids_of(crowd.page(limit=1).sandboxes) == ["c0000"]
    for state, found in by_state.items():
        assert found == [i for i, each in crowd_states().items() if each == state][: CROWD // 5]


async def at_rest() -> bool:
    """Whether all tasks are done but this one and those of connections."""
    return all("_Shared" in repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()})


@every_flavour
def test_one_store_lists_for_many_at_once(crowds, servers, flavour):
    expected = [i for i, state in crowd_states().items() if state != "INIT"]
    url, prefix = servers("valkey").url, crowds("valkey")

    def in_threads() -> list[list[str]]:
        with SandboxStore(url, prefix=prefix) as store, ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda _: ids_of(store.list()), range(4)))

    async def in_tasks() -> list[list[str]]:
        async def one(store: AsyncSandboxStore) -> list[str]:
            return [sandbox.id async for sandbox in store.list()]

        async with AsyncSandboxStore(url, prefix=prefix) as store:
            return await asyncio.gather(*(one(store) for _ in range(4)))

    assert (in_threads() if flavour == "sync" else asyncio.run(in_tasks())) == [expected] * 4


@pytest.mark.parametrize("lost", [range(0), range(3, 100_000)])  # packets
def test_a_task_that_leaves_a_listing_leaves_nothing_behind(crowds, servers, caplog, lost):
    async def leave(url: str) -> None:
        async with AsyncSandboxStore(url, prefix=crowds("valkey")) as store:
            async for sandbox in store.list(timeout=20):  # what reads ahead is ended long before
                assert sandbox.id == "c0000"
                while len(proxy.packets) < 4:  # noqa: ASYNC110 - layout, ids, the first page, and the one ahead
                    await asyncio.sleep(0)
                break
            while not await at_rest():  # noqa: ASYNC110 - tasks do not tell
                await asyncio.sleep(0)  # the event loop ends what was left

    with Proxy(servers("valkey")) as proxy:
        proxy.fault("before", at=lost)
        asyncio.run(leave(proxy.url))
    gc.collect()
    assert caplog.records == []  # where a failure of what nobody waits for would be told


# -- resolve


def test_the_beginning_of_an_id_is_enough_where_only_one_begins_so(open_store, partitions):
    store = open_store(partitions=partitions)
    ids = ["web-1", "web.2", "web_3", "a1", "a2z", "a2zz", "Az", "z", "9_", "x" * 128]
    for sandbox_id, status in zip(ids, cycle([READY, NOTREADY, UNKNOWN, None]), strict=False):
        add(store, [sandbox_id], status)  # in INIT it is found as well
    for begin, found in {
        "web-": "web-1",
        "web.": "web.2",
        "web_": "web_3",
        "a1": "a1",
        "a2z": "a2z",  # although a2zz begins so, too
        "a2zz": "a2zz",
        "A": "Az",
        "z": "z",
        "9": "9_",
        "x": "x" * 128,
        "x" * 128: "x" * 128,
    }.items():
        assert store.resolve(begin) == found
    for begin in ("we", "a"):
        with pytest.raises(AmbiguousIDError) as caught:
            store.resolve(begin)
        assert caught.value.matches == tuple(sorted(i for i in ids if i.startswith(begin)))
    for begin in ("y", "web-2", "a2zzz", "Z", "W", "zz"):
        with pytest.raises(NotFoundError) as missing:
            store.resolve(begin)
        assert missing.value.id == begin


def test_of_many_that_begin_so_the_first_are_told(open_store, partitions):
    store = open_store(partitions=partitions)
    ids = add(store, [f"s{i}" for i in range(10, 20)])
    for begin in ("s", "s1"):
        with pytest.raises(AmbiguousIDError, match="and more") as caught:
            store.resolve(begin)
        assert (caught.value.prefix, caught.value.matches) == (begin, tuple(ids[: queries.MATCHES]))
    add(store, ["s"], None)
    assert store.resolve("s") == "s"  # the ten that begin so do not hide it
    for sandbox_id in ids[queries.MATCHES :]:
        store.remove(sandbox_id, force=True)
    with pytest.raises(AmbiguousIDError) as caught:
        store.resolve("s1")
    assert caught.value.matches == tuple(ids[: queries.MATCHES])
    assert "more" not in str(caught.value).partition(";")[0]


def test_a_sandbox_that_was_removed_is_not_in_the_way(store):
    add(store, ["s1", "s2"])
    store.remove("s1", force=True)
    assert store.resolve("s") == "s2"
    store.remove("s2", force=True)
    with pytest.raises(NotFoundError):
        store.resolve("s2")


# -- get_many


def test_many_are_read_in_the_order_asked_for_each_once_and_the_missing_left_out(open_store, partitions):
    store = open_store(partitions=partitions)
    for state in State:
        add(store, [state.lower()], Status(state) if state is not State.INIT else None)
    asked = ["unknown", "no", "init", "ready", "unknown", "notready", "no", "init"]
    found = store.get_many(asked)
    assert list(found.items()) == [(i, store.get(i)) for i in ("unknown", "init", "ready", "notready")]
    assert store.get_many(iter(asked)) == store.get_many(dict.fromkeys(asked)) == found
    assert store.get_many([]) == store.get_many({"no"}) == {}


@real_servers
def test_thousands_are_read_at_once(crowd):
    ids = list(crowd_states())[::-1]
    found = crowd.get_many([*ids, "none", *ids])
    assert list(found) == ids
    assert {i: sandbox.status.state for i, sandbox in found.items()} == crowd_states()
    assert found["c0007"] == crowd.get("c0007")


# -- count and counts


@real_servers
def test_a_node_with_more_sandboxes_than_are_counted_at_a_time(crowd):
    states = crowd_states()
    big = Counter(state for i, state in states.items() if int(i[1:]) % 25)
    small = Counter(state for i, state in states.items() if not int(i[1:]) % 25)
    assert (sum(big.values()), queries.COUNT_PAGE) == (2400, 2000)
    for node, numbers in (("big", big), ("small", small), (None, big + small)):
        assert {state: crowd.count(state=state, node=node) for state in State} == {s: numbers[s] for s in State}
        assert crowd.count(node=node) == sum(numbers.values()) - numbers["INIT"]
    counts = crowd.counts()
    assert (counts.states, counts.nodes) == (big + small, {"big": 2400, "small": 100})


@real_servers
def test_a_count_ends_where_its_steps_end(store, client, key):
    # The indexes alone are what is counted.
    client.zadd(key("state:READY"), {f"s{i}": 0 for i in range(queries.COUNT_PAGE - 1)} | {"other": 0})
    client.zadd(key("node:n"), {f"s{i}": 0 for i in range(queries.COUNT_PAGE - 1)} | {"another": 0, "third": 0})
    for number in range(queries.COUNT_PAGE - 1, queries.COUNT_PAGE + 2):
        assert store.count(node="n") == number
        client.zadd(key("state:READY"), {f"t{number}": 0})
        client.zadd(key("node:n"), {f"t{number}": 0})


def test_what_was_removed_is_counted_no_more_and_an_empty_node_is_forgotten(open_store, client, prefix, partitions):
    store = open_store(partitions=partitions)
    add(store, [f"a{i}" for i in range(10)], node="a")
    add(store, ["b1"], NOTREADY, node="b")
    add(store, ["b2"], None, node="b")
    add(store, ["b3"], UNKNOWN)
    counts = store.counts()
    assert counts.states == {State.INIT: 1, State.READY: 10, State.NOTREADY: 1, State.UNKNOWN: 1}
    assert list(counts.nodes.items()) == [("a", 10), ("b", 2)]
    assert store.remove("b1")
    store.fail_start("b2")
    for i in range(9):
        store.remove(f"a{i}", force=True)
    counts = store.counts()
    assert counts.states == {State.INIT: 0, State.READY: 1, State.NOTREADY: 0, State.UNKNOWN: 1}
    assert counts.nodes == {"a": 1}
    left = {name: client.zrange(name, 0, -1, withscores=True) for name in client.scan_iter(f"{prefix}:*:nodes")}
    assert left == {f"{prefix}:{{{zlib.crc32(b'a9') % partitions}}}:nodes".encode(): [(b"a", 1.0)]}


@pytest.mark.parametrize("wrong", ["-3", "1.5", "inf", "1e300", None])
def test_a_wrong_number_of_a_node_breaks_nothing_and_goes_with_the_next_change_there(store, client, key, wrong):
    add(store, ["a", "b", "c"], node="n")
    if wrong is None:
        client.delete(key("nodes"))
    else:
        client.zadd(key("nodes"), {"n": wrong, "ghost": wrong})
    assert store.counts().nodes == ({"n": int(1e300), "ghost": int(1e300)} if wrong == "1e300" else {})
    (index,) = [each for each in store.audit().findings if " n " in f"{each.message} "]
    assert index.repairable
    assert store.remove("a", force=True)
    assert store.counts().nodes["n"] == 2
    client.zadd(key("nodes"), {"n": wrong or 9})
    add(store, ["d"], node="n")
    assert store.counts().nodes["n"] == 3
    store.doctor(repair=True)
    assert dict(client.zrange(key("nodes"), 0, -1, withscores=True)) == {b"n": 3.0}
    for name in ("b", "c", "d"):
        client.zadd(key("nodes"), {"n": wrong or 9})
        store.remove(name, force=True)
    assert client.exists(key("nodes"), key("node:n")) == 0


READERS: dict[str, Callable[..., Any]] = {
    "list": lambda store, **more: list(store.list(**more)),
    "list on a node": lambda store, **more: list(store.list(node="n", states=State, labels={"a": "b"}, **more)),
    "page": lambda store, **more: store.page(**more).sandboxes,
    "ids": lambda store, **more: store.ids(states=State, node="n", **more),
    "count": lambda store, **more: store.count(**more),
    "count on a node": lambda store, **more: store.count(state=State.READY, node="n", **more),
    "counts": lambda store, **more: store.counts(**more).nodes,
    "get_many": lambda store, **more: store.get_many(["it", "no"], **more),
}


def test_reading_an_empty_store_finds_nothing_and_leaves_no_trace(open_store, snapshot, partitions):
    store = open_store(partitions=partitions)
    for read in READERS.values():
        assert not read(store)
    assert store.page().cursor is None
    assert store.page().since == ",".join(["0-0"] * partitions)
    assert store.counts().states == dict.fromkeys(State, 0)
    for read in (store.resolve, store.history):
        with pytest.raises(NotFoundError):
            read("it")
    assert snapshot() == {}


# -- history


def test_a_history_tells_all_that_happened_over_two_lives(open_store):
    agent, other = open_store(agent="agent"), open_store(agent="other")
    begin = datetime.now(UTC)
    agent.create(sandbox_id="it", node="n1", metadata=labelled(life="1"))
    agent.create(sandbox_id="it2")
    other.start("it", pid=7)
    agent.update("it", lambda status: replace(status, pid=8))
    other.exit("it", exit_status=3, exited_at_ns=9)
    agent.remove("it")
    other.load("it", READY, node="n2", metadata=labelled(life="2"))
    other.remove("it", force=True)
    with pytest.raises(NotFoundError):
        agent.get("it")
    history = agent.history("it")
    assert [(e.transition, e.before, e.sandbox and e.sandbox.status.state, e.by) for e in history] == [
        ("create", None, State.INIT, "agent"),
        ("start", State.INIT, State.READY, "other"),
        ("update", State.READY, State.READY, "agent"),
        ("exit", State.READY, State.NOTREADY, "other"),
        ("remove", State.NOTREADY, None, "agent"),
        ("load", None, State.READY, "other"),
        ("stop", State.READY, State.NOTREADY, "other"),
        ("remove", State.NOTREADY, None, "other"),
    ]
    assert {event.id for event in history} == {"it"}
    assert [event.sandbox.status.pid for event in history[:3]] == [0, 7, 8]
    assert (history[3].sandbox.status.exit_status, history[3].sandbox.status.exited_at_ns) == (3, 9)
    assert [event.sandbox.node for event in history if event.sandbox] == ["n1"] * 4 + ["n2"] * 2
    assert [history[i].sandbox.metadata.labels for i in (0, 5)] == [{"life": "1"}, {"life": "2"}]
    assert [event.revision for event in history] == sorted({e.revision for e in history}, key=stream_order)
    times = [event.at for event in history]
    assert times == sorted(times)
    # Both clocks are this machine's; an event's has milliseconds.
    assert begin.replace(microsecond=begin.microsecond // 1000 * 1000) <= times[0] <= times[-1] <= datetime.now(UTC)


def stream_order(revision: str) -> tuple[int, ...]:
    return tuple(map(int, revision.split("-")))


def test_who_was_never_heard_of_has_no_history(store):
    add(store, ["it"])
    for sandbox_id in ("i", "it-too", "IT"):
        with pytest.raises(NotFoundError) as caught:
            store.history(sandbox_id)
        assert caught.value.id == sandbox_id


def test_where_the_events_are_trimmed_a_history_begins_later_or_is_empty(store, client, key):
    store.create(sandbox_id="it")
    store.start("it", pid=7)
    client.xtrim(key("events"), maxlen=1, approximate=False)
    assert [event.transition for event in store.history("it")] == ["start"]
    client.xtrim(key("events"), maxlen=0, approximate=False)
    assert store.history("it") == []
    store.remove("it", force=True)
    client.xtrim(key("events"), maxlen=0, approximate=False)
    with pytest.raises(NotFoundError):
        store.history("it")


@pytest.mark.parametrize("lengths", [(500, 501), (1000, 1001, 1003)])
@real_servers
def test_a_history_reaches_back_over_all_events_of_a_partition(store, client, key, lengths):
    assert queries.HISTORY_PAGE == 500
    store.create(sandbox_id="it")
    start = None
    for length in lengths:
        number = client.xlen(key("events"))
        add(store, [f"s{number + i}" for i in range(length - number - (start is None))])
        start = start or store.start("it", pid=7)
        assert client.xlen(key("events")) == length
        created, started = store.history("it")
        assert (created.transition, started.revision) == ("create", start.revision)
        assert [event.transition for event in store.history("s1")] == ["load"]


def test_a_history_is_read_in_its_own_partition(open_store, partitions):
    store = open_store(partitions=partitions)
    ids = add(store, [f"s{i}" for i in range(20)], None)
    for number, sandbox_id in enumerate(ids, 1):
        store.start(sandbox_id, pid=number)
    for number, sandbox_id in enumerate(ids, 1):
        assert [event.sandbox.status.pid for event in store.history(sandbox_id)] == [0, number]


def test_events_garbled_by_hand_do_not_stop_a_history(store, client, key):
    store.create(sandbox_id="it")
    for entry in ({"foo": "bar"}, {"id": b"\xff"}, {"it": "it2"}, {"id": "it2", "pid": "x"}, {"transition": "start"}):
        client.xadd(key("events"), entry)
    client.xadd(key("events"), {"id": "it", "transition": b"\xff", "before": "FOO", "state": "READY", "pid": "x"})
    created, garbled = store.history("it")
    assert (created.transition, garbled.before) == ("create", None)
    assert garbled.sandbox.status.state is State.UNKNOWN
    assert f"{key('events')} entry {garbled.revision}" in garbled.sandbox.problem


# -- keys of the wrong type

STUMBLES: dict[str, tuple[str, ...]] = {
    "list": ("state:READY", "state:NOTREADY", "state:UNKNOWN"),
    "list on a node": ("state:INIT", "state:READY", "node:n"),
    "page": ("events", "state:READY", "state:UNKNOWN"),
    "ids": ("state:INIT", "state:READY", "node:n"),
    "count": ("state:READY", "state:NOTREADY"),
    "count on a node": ("state:READY", "node:n"),
    "counts": ("state:INIT", "state:UNKNOWN", "nodes"),
    "resolve": ("state:INIT", "state:READY"),
    "history": ("events",),
}


def test_a_key_of_the_wrong_type_is_told_by_name_and_nothing_is_changed(store, client, key, snapshot):
    for state in State:
        add(store, [state.lower()], Status(state) if state is not State.INIT else None, node="n")
    for reader, name in [(reader, name) for reader, names in STUMBLES.items() for name in names]:
        read = READERS.get(reader) or (lambda store, reader=reader: getattr(store, reader)("ready"))
        client.rename(key(name), key("node:aside"))
        client.rpush(key(name), "x")
        before = snapshot()
        with pytest.raises(SchemaError) as caught:
            read(store)
        assert caught.value.key == key(name)
        assert "holds a list" in str(caught.value)
        assert snapshot() == before
        client.delete(key(name))
        client.rename(key("node:aside"), key(name))
        read(store)


@pytest.mark.parametrize("flavour", ["sync"])
def test_a_key_of_the_wrong_type_in_the_last_of_many_partitions_is_told_by_name(open_store, client, key):
    store = open_store(partitions=64)
    add(store, ["it"], node="n")
    client.rpush(key("state:READY", 63), "x")
    for reader in ("list", "page", "ids", "count", "counts"):
        with pytest.raises(SchemaError) as caught:
            READERS[reader](store)
        assert caught.value.key == key("state:READY", 63)


# -- trouble on the way


@pytest.mark.parametrize("partitions", [1, 4])
@real_servers
def test_scripts_that_are_flushed_in_the_midst_of_a_listing_are_supplied(open_store, client, partitions, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 50)
    store = open_store(partitions=partitions)
    ids = in_order(add(store, [f"s{i:03}" for i in range(400)], node="n"), partitions)
    found = []
    for number, sandbox in enumerate(store.list()):
        found.append(sandbox)
        if number % 90 == 0:
            client.script_flush()
    assert ids_of(found) == ids
    for reader in ("page", "count on a node", "counts"):
        client.script_flush()
        assert READERS[reader](store)


@pytest.fixture
def proxy(crowds, servers, flavour, backend) -> Iterator[tuple[Proxy, Any]]:
    """A store with 2,500 sandboxes behind a proxy; it knows its layout."""
    with (
        Proxy(servers(backend)) as proxy,
        opened(flavour, proxy.url, prefix=crowds(backend), timeout=60) as store,
    ):
        store.ids()
        proxy.fault()
        yield proxy, store


@pytest.mark.parametrize("backend", ["valkey"])
@pytest.mark.parametrize("how", CUTS)
def test_a_listing_goes_on_over_a_connection_that_is_cut(proxy, how):
    way, store = proxy
    for at in range(9):  # the newest event; ids and records of each page; and what is sent again
        way.fault(how, at={at})
        small = paged(store, [30], node="small", states=State)
        assert (ids_of(small), way.fired) == (list(crowd_states())[::25], 1)
    for at in range(3):  # ids; the records of each page, with the ids of the next one
        way.fault(how, at={at})
        assert ids_of(store.list(states=State, limit=listing.PAGE + 50)) == list(crowd_states())[: listing.PAGE + 50]
        assert way.fired == 1


@real_servers
def test_a_listing_that_cannot_go_on_ends_with_an_error_and_never_as_if_it_were_whole(proxy):
    way, store = proxy
    for cut_from in (0, 1, 2, 4):
        way.fault("before", at=range(cut_from, 100_000))
        found = []
        with pytest.raises(StoreUnavailableError) as caught:
            for sandbox in store.list(timeout=0.05):
                found.append(sandbox.id)  # noqa: PERF401 - what came before the error counts
        assert caught.value.code == "UNREACHABLE"
        assert found == [i for i, state in crowd_states().items() if state != "INIT"][: len(found)]
        assert len(found) <= max(cut_from - 1, 0) * listing.PAGE
    way.fault()
    assert len(list(store.list())) == CROWD * 4 // 5


@pytest.fixture
def clock(monkeypatch) -> Any:
    """The time of deadlines and pauses: it stands still but for the pauses, which take none."""
    clock = SimpleNamespace(now=1000.0)
    give_way = asyncio.sleep

    def pause(seconds: float) -> None:
        clock.now += seconds

    async def pause_asyncio(seconds: float) -> None:
        clock.now += seconds
        await give_way(0)

    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(driver, "time", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(asyncio, "sleep", pause_asyncio)
    return clock


@pytest.mark.parametrize("backend", ["valkey"])
def test_a_page_that_was_lost_while_nobody_looked_is_asked_for_again(proxy, clock, until):
    way, store = proxy
    way.fault("before", at=range(2, 100_000))  # the first ids and the first page come, and no more
    with closing(store.list(timeout=5)) as sandboxes:
        found = ids_of(islice(sandboxes, listing.PAGE // 2))
        # The asyncio store gives up reading ahead by itself; the sync one does nothing by itself.
        assert until(lambda: way.fired and (isinstance(store, SandboxStore) or store.runner.run(at_rest())))
        clock.now += 60
        way.fault()
        assert [*found, *ids_of(sandboxes)] == [i for i, state in crowd_states().items() if state != "INIT"]


@pytest.mark.parametrize("backend", ["valkey"])
def test_a_listing_gives_up_at_the_timeout_of_its_page(proxy, clock):
    way, store = proxy
    with closing(store.list(timeout=5)) as sandboxes:
        for _ in islice(sandboxes, listing.PAGE // 2):
            pass
        way.fault("before", at=range(100_000))
        start = clock.now
        with pytest.raises(StoreUnavailableError):
            list(sandboxes)
    assert 2 < clock.now - start <= 2 * 5  # once ahead, and once more


@pytest.mark.parametrize("backend", ["valkey"])
def test_a_server_that_went_away_is_waited_for_until_the_timeout(proxy, clock):
    way, store = proxy
    way.fault("before", at=range(100_000))
    for reader in READERS.values():
        start = clock.now
        with pytest.raises(StoreUnavailableError) as caught:
            reader(store, timeout=5)
        assert 2 < clock.now - start <= 5
        assert caught.value.code == "UNREACHABLE"


def test_a_server_that_never_was_there_is_told_at_once(nowhere):
    for reader in READERS.values():
        with pytest.raises(StoreUnavailableError, match=re.escape("unix:///nowhere/redis.sock")):
            reader(nowhere, timeout=60)


# -- round trips

ONE_TRIP: dict[str, Callable[[Any], Any]] = {
    "ids": lambda store: store.ids(states=State, node="n"),
    "count": lambda store: store.count(),
    "count on a node": lambda store: store.count(node="n"),
    "counts": lambda store: store.counts(),
    "resolve": lambda store: store.resolve("s0"),
    "get_many": lambda store: store.get_many(f"s{i}" for i in range(100)),
    "history": lambda store: store.history("s0"),
}


@pytest.fixture
def open_behind_proxy(open_store, servers, backend, prefix, flavour) -> Iterator[Callable[[int], tuple[Proxy, Any]]]:
    """Opens a store with 20 sandboxes behind a proxy, which knows its layout."""
    with Proxy(servers(backend)) as proxy, opened(flavour, proxy.url, prefix=prefix) as store:

        def open_(partitions: int) -> tuple[Proxy, Any]:
            add(open_store(partitions=partitions), [f"s{i}" for i in range(20)], node="n")
            for read in READERS.values():
                read(store)  # the server knows the scripts now
            proxy.fault()
            return proxy, store

        yield open_


@pytest.mark.parametrize("backend", ["valkey"])
@pytest.mark.parametrize("partitions", [1, 16])
def test_a_reader_asks_once_when_the_layout_is_known(open_behind_proxy, partitions):
    way, store = open_behind_proxy(partitions)
    for name, reader in ONE_TRIP.items():
        way.fault()
        reader(store)
        assert (name, len(way.packets)) == (name, 1)


@pytest.mark.parametrize("backend", ["valkey"])
@pytest.mark.parametrize("wanted", [{}, {"sandbox_id": "s0"}, {"node": "n", "labels": {}}])
def test_a_page_is_two_round_trips_and_the_first_one_three(open_behind_proxy, wanted):
    way, store = open_behind_proxy(1)
    cursor = store.page(limit=1, **wanted).cursor
    assert [command[0] for (command,) in way.packets] == [b"XREVRANGE", b"EVALSHA", b"HGETALL"]
    if cursor:
        way.fault()
        store.page(limit=1, after=cursor, **wanted)
        assert [command[0] for (command,) in way.packets] == [b"EVALSHA", b"HGETALL"]


@pytest.mark.parametrize("backend", ["valkey"])
def test_a_listing_is_one_round_trip_for_each_page_and_one_before(open_behind_proxy):
    way, store = open_behind_proxy(1)
    assert len(list(store.list())) == 20
    assert [packet[0][0] for packet in way.packets] == [b"EVALSHA", b"HGETALL"]


@pytest.mark.parametrize("backend", ["valkey"])
def test_a_page_over_many_partitions_takes_few_round_trips(open_behind_proxy):
    way, store = open_behind_proxy(64)
    assert len(store.page().sandboxes) == 20
    assert len(way.packets) <= 9  # the newest events; 1, 2, 4, 8, 16, 32 partitions and the last one; the records
    way.fault()
    assert len(store.page(limit=3).sandboxes) == 3
    assert sum(len(packet) for packet in way.packets) < 64 + 40
