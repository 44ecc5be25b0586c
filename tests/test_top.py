"""`top`: its model alone, its screens with the pilot of the terminal library, and all of it in a real terminal (tmux)
on a real server.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psutil
import pytest
import redis

from sandbox_redis import Event, Metadata, Sandbox, SandboxStore, State, Status, StoreUnavailableError
from sandbox_redis.cli import main, top
from sandbox_redis.cli.statuses import ExitStatus
from sandbox_redis.top import cells, columns, feed, lines
from sandbox_redis.top.app import Top
from sandbox_redis.top.choice import Choice, Order
from sandbox_redis.top.feed import Feed
from sandbox_redis.top.fleet import Fleet
from sandbox_redis.top.pulse import MINUTE, Pulse, Rate, Starts
from sandbox_redis.top.rows import Rows
from sandbox_redis.top.screens import HELP
from sandbox_redis.top.view import ROWS, View, since_history, view

NOW = 1_795_468_714_885  # milliseconds
INIT, READY, NOTREADY, UNKNOWN = State


def sandbox(id, state=READY, *, ago=0, node="node-1", name="", created=1, labels=None, **status):
    """A sandbox that came into its state so many seconds ago."""
    metadata = Metadata(name=name or f"name-of-{id}", labels=labels or {})
    return Sandbox(id, node, Status(state, created_at_ns=created, **status), metadata, f"{NOW - 1000 * ago}-0")


def event(id, transition="start", *, at=0, before=INIT, after=None, by="agent"):
    moment = datetime.fromtimestamp(NOW / 1000, UTC) + timedelta(seconds=at)
    return Event(id, transition, before, after, f"{NOW + 1000 * at}-0", moment, by, "request")


def look(fleet, choice=None, pulse=None, **health) -> View:
    return view(fleet, pulse or Pulse(0), choice or Choice(), now=100.0, now_ns=NOW * 10**6, **health)


def ids(seen: View) -> list[str]:
    return [listed.sandbox.id for listed in seen.rows]


# -- what is chosen


def test_words_are_parts_of_the_id_the_name_or_the_node_in_whichever_case_and_all_must_be_there():
    one = sandbox("abc", name="Web-0", node="node-7")
    for words in ("b", "web", "NODE-7", "ab web node", "web-0"):
        assert Choice(words=words).test()(one), words
    for words in ("x", "abcd", "web x", "web=0"):
        assert not Choice(words=words).test()(one), words
    assert Choice(words="  ").test() is None


def test_a_word_with_an_equals_sign_is_the_beginning_of_a_labels_value():
    one = sandbox("abc", labels={"app": "web"})
    for words in ("app=web", "app=w", "app=", "app=web abc"):
        assert Choice(words=words).test()(one), words
    for words in ("app=eb", "pp=web", "app=webx", "tier="):
        assert not Choice(words=words).test()(one), words


def test_states_are_shown_and_hidden_one_by_one_or_one_alone_and_never_none_of_them():
    hidden = Choice().toggled(INIT)
    assert hidden.states == {READY, NOTREADY, UNKNOWN}
    assert hidden.toggled(INIT) == Choice()
    assert Choice(states=frozenset((INIT,))).toggled(INIT) == Choice()
    choice, seen = hidden, []
    for _ in range(6):
        choice = choice.next_state()
        seen.append(choice.states)
    alone = [{state} for state in State]
    assert seen == [set(State), *alone, set(State)]


def test_what_is_left_out_is_said_in_words():
    assert Choice().described() == ""
    chosen = Choice(words=" web  0 ", node="node-1", states=frozenset((UNKNOWN, INIT)))
    assert chosen.described() == "only INIT, UNKNOWN, on node-1, with web 0"
    assert Choice(node="").described() == "on no node"
    assert Choice().on("node-1").on("node-1") == Choice()


# -- the fleet


def test_the_fleet_is_what_the_changes_make_of_it_in_the_order_of_the_moves():
    """Against one that is counted anew each time."""
    chance = random.Random(7)
    fleet, naive, entered = Fleet(), {}, {}
    for moment in range(2000):
        sid = f"s{chance.randrange(40)}"
        before = naive.get(sid)
        if before and chance.random() < 0.2:
            del naive[sid]
            fleet.take(sid, None)
            continue
        node = before.node if before else f"node-{chance.randrange(5)}"
        after = replace(sandbox(sid, chance.choice(list(State)), node=node), revision=f"{NOW + moment}-0")
        if not before or before.status.state is not after.status.state:
            entered[sid] = NOW + moment
        naive[sid] = after
        fleet.take(sid, after)
    assert {sid: fleet.find(sid) for sid in naive} == naive
    assert len(fleet) == len(naive)
    counted = Counter((each.node, each.status.state) for each in naive.values())
    assert {(node, state): n for node, ns in fleet.nodes.items() for state, n in zip(State, ns, strict=True) if n} == (
        counted
    )
    for state, group in fleet.states.items():
        there = [sid for sid, each in naive.items() if each.status.state is state]
        assert list(group) == sorted(there, key=entered.get)
        assert [fleet.since(each) for each in group.values()] == sorted(entered[sid] for sid in there)


def test_an_update_is_no_move_but_another_life_of_an_id_is():
    fleet = Fleet([sandbox("a", UNKNOWN, ago=60)])
    fleet.take("a", sandbox("a", UNKNOWN, ago=5))
    assert fleet.since(fleet.find("a")) == NOW - 60_000
    fleet.take("a", sandbox("a", UNKNOWN, ago=4, created=2))
    assert fleet.since(fleet.find("a")) == NOW - 4_000


def test_a_start_is_as_long_as_the_time_in_init_whatever_was_updated_in_between():
    fleet = Fleet([sandbox("a", INIT, ago=60), sandbox("b", INIT, ago=20)])
    fleet.take("a", sandbox("a", INIT, ago=5))
    for sid in "ab":
        fleet.take(sid, sandbox(sid, READY, ago=1))
    assert [(start.sandbox.id, start.took) for start in look(fleet).starts] == [("a", 59_000), ("b", 19_000)]


def test_a_record_without_a_readable_revision_harms_nobody():
    fleet = Fleet([replace(sandbox("a", UNKNOWN), revision="?", problem="it is broken"), sandbox("b", INIT, ago=3)])
    fleet.take("a", replace(sandbox("a", UNKNOWN), revision=""))
    assert ids(look(fleet)) == ["a", "b"]
    assert cells.sandbox_row(look(fleet).rows[0], NOW * 10**6).cells[6] == ("-", "bold red")


def test_only_so_many_that_are_gone_are_remembered():
    fleet = Fleet()
    for number in range(6000):
        fleet.take(f"s{number}", sandbox(f"s{number}"))
        fleet.take(f"s{number}", None)
    assert len(fleet.gone) == 5000
    assert "s5999" in fleet.gone and "s0" not in fleet.gone
    assert fleet.nodes == {}


# -- the pulse


def test_the_rate_is_of_whole_seconds_and_known_as_soon_as_one_is_over():
    rate = Rate(10.7)
    assert (rate.minute(10.9), rate.present(10.9)) == ([], 0.0)
    for at in (10.8, 11.1, 11.2, 12.5, 13.0):
        rate.add(at)
    assert rate.minute(13.9) == [2, 1]
    assert rate.present(13.9) == 1.5
    assert rate.minute(14) == [2, 1, 1]
    assert rate.minute(500) == [0] * MINUTE


def test_the_slowest_starts_are_those_of_the_last_ten_minutes():
    starts = Starts()
    one = sandbox("a")
    for minute in range(30):
        for took in range(100):
            starts.add(NOW + minute * 60_000, took + minute, one)
    slowest = starts.slowest(NOW + 29 * 60_000)
    assert len(slowest) == 50
    assert [start.took for start in slowest[:3]] == [128, 127, 127]
    assert {start.at for start in starts.slowest(NOW + 38 * 60_000)} == {NOW + 28 * 60_000, NOW + 29 * 60_000}
    assert starts.slowest(NOW + 50 * 60_000) == []


def test_agents_count_as_long_as_they_have_written_within_a_minute():
    pulse = Pulse(0)
    for at, by in ((1, "a"), (2, "b"), (50, "b")):
        pulse.hear(at, event("x", by=by))
    pulse.hear(51, "events may be missing here")
    assert [pulse.agents(now) for now in (51, 61, 61.5, 110, 111)] == [2, 2, 1, 1, 0]


# -- the view


def many(number=1000):
    """Of each state a quarter, on ten nodes; the higher the number, the newer."""
    return [
        sandbox(f"s{n:05}", list(State)[n % 4], ago=number - n, node=f"node-{n % 10}", created=number - n)
        for n in range(number)
    ]


def test_who_is_stuck_for_longest_comes_first_and_who_is_ready_last():
    fleet = Fleet([sandbox("ready", READY, ago=99), sandbox("b", NOTREADY, ago=20), sandbox("c", UNKNOWN, ago=10)])
    fleet.take("a", sandbox("a", INIT, ago=30))
    fleet.take("new", sandbox("new", INIT))
    assert ids(look(fleet)) == ["a", "b", "c", "new", "ready"]
    assert ids(look(fleet, Choice(backwards=True))) == ["ready", "new", "c", "b", "a"]


@pytest.mark.parametrize(
    ("order", "key"),
    [
        (Order.AGE, lambda each: each.status.created_at_ns),
        (Order.ID, lambda each: each.id),
        (Order.NODE, lambda each: (each.node, each.id)),
        (Order.STATE, lambda each: (list(State).index(each.status.state), each.id)),
    ],
)
def test_only_the_first_of_each_order_are_listed_and_how_many_there_are_is_known(order, key):
    fleet = Fleet(many())
    for backwards in (False, True):
        seen = look(fleet, Choice(order=order, backwards=backwards))
        expected = sorted(many(), key=key, reverse=backwards)
        assert ids(seen) == [each.id for each in expected[:ROWS]]
        assert (seen.total, seen.fitting, seen.nodes_total) == (1000, 1000, 10)


def test_filters_narrow_what_is_listed_and_words_narrow_the_counts_as_well():
    fleet = Fleet(many())
    seen = look(fleet, Choice(node="node-3", states=frozenset((NOTREADY, UNKNOWN))))
    assert {each.sandbox.node for each in seen.rows} == {"node-3"}
    assert {each.sandbox.status.state for each in seen.rows} == {UNKNOWN}
    assert (seen.fitting, seen.total, sum(seen.states.values()), seen.nodes_total) == (50, 1000, 1000, 10)
    seen = look(fleet, Choice(words="s0012", node="node-3"))
    assert ids(seen) == ["s00123"]
    assert (seen.fitting, seen.total, sum(seen.states.values()), seen.nodes_total) == (1, 1000, 10, 10)
    assert ids(look(fleet, Choice(words="nobody"))) == []
    assert look(fleet, Choice(node="gone")).fitting == 0


def test_the_nodes_with_the_most_come_first():
    fleet = Fleet([sandbox(str(n), node=f"node-{n % 3 % 2}") for n in range(9)])
    assert [(each.node, each.total) for each in look(fleet).nodes] == [("node-0", 6), ("node-1", 3)]
    fleet = Fleet([sandbox(str(n), node=f"node-{n}") for n in range(500)])
    seen = look(fleet)
    assert (len(seen.nodes), seen.nodes_total) == (ROWS, 500)
    assert lines.nodes_title(seen) == "nodes: 200 of 500"


def test_events_are_those_of_the_sandboxes_that_fit_also_of_those_that_are_gone():
    fleet, pulse = Fleet([sandbox("a", node="node-1"), sandbox("b", node="node-2")]), Pulse(0)
    fleet.take("b", None)
    for at, sid in enumerate(("a", "b", "stranger")):
        pulse.hear(0, event(sid, at=at))
    pulse.hear(0, "events may be missing here")

    def told(choice):
        return [
            told.event if isinstance(told.event, str) else told.event.id for told in look(fleet, choice, pulse).events
        ]

    missing = "events may be missing here"
    assert told(Choice()) == [missing, "stranger", "b", "a"]
    assert told(Choice(node="node-2")) == [missing, "b"]
    assert told(Choice(words="of-a")) == [missing, "a"]


def test_one_sandbox_is_followed_also_when_it_is_gone():
    fleet, pulse = Fleet([sandbox("a"), sandbox("b")]), Pulse(0)
    for at, sid in enumerate("aba"):
        pulse.hear(0, event(sid, at=at))
    seen = look(fleet, Choice(opened="a"), pulse)
    assert seen.opened == fleet.find("a")
    assert [each.revision for each in seen.trail] == [f"{NOW}-0", f"{NOW + 2000}-0"]
    assert since_history(seen.trail[:1], seen.trail) == seen.trail
    fleet.take("a", None)
    assert look(fleet, Choice(opened="a"), pulse).opened is None


# -- how it reads


def test_rows_say_what_there_is_and_show_control_codes_as_escapes():
    one = sandbox("a", NOTREADY, ago=65, name="evil\x1b[2J\n", node="", exited_at_ns=5, exit_status=137)
    row = cells.sandbox_row(look(Fleet([one])).rows[0], NOW * 10**6)
    assert [value for value, _ in row.cells] == [
        "a", r"evil\x1b[2J\n", "-", "NOTREADY", "-", row.cells[5][0], "1m5s", "137",
    ]  # fmt: skip
    row = cells.event_row(look(Fleet(), None, _pulse_with(event("a", by="\x07", after=one))).events[0])
    assert [value for value, _ in row.cells][1:] == ["a", "start", "INIT → NOTREADY", "-", r"\x07"]
    assert dict(cells.facts(one, NOW * 10**6))["Name"] == (r"evil\x1b[2J\n", "")


def _pulse_with(*events):
    pulse = Pulse(0)
    for each in events:
        pulse.hear(0, each)
    return pulse


def test_what_is_created_for_longer_than_a_minute_or_is_unknown_for_so_long_is_marked():
    def mark(one):
        return cells.sandbox_row(look(Fleet([one])).rows[0], NOW * 10**6).cells[6][1]

    assert [mark(sandbox("a", state, ago=60)) for state in State] == ["bold red", "", "", "bold red"]
    assert [mark(sandbox("a", state, ago=59)) for state in State] == ["", "", "", ""]


def test_the_history_tells_the_newest_first_and_how_long_each_state_lasted():
    ready = sandbox("a", READY, pid=7)
    rows = cells.history_rows(
        [
            event("a", "create", before=None, after=sandbox("a", INIT)),
            event("a", "start", at=2, after=ready),
            event("a", "update", at=3, before=READY, after=ready),
            event("a", "exit", at=62, before=READY, after=sandbox("a", NOTREADY, exited_at_ns=1)),
            event("a", "remove", at=63, before=NOTREADY),
        ]
    )
    told = [[row.cells[place][0] for place in (1, 2, 3, 4, 5)] for row in rows]
    assert told == [
        ["1s", "remove", "NOTREADY → gone", "-", "-"],
        ["1m", "exit", "READY → NOTREADY", "-", "0"],
        ["-", "update", "READY → READY", "7", "-"],
        ["2s", "start", "INIT → READY", "7", "-"],
        ["-", "create", "absent → INIT", "-", "-"],
    ]


def test_facts_are_all_that_there_is_and_nothing_else():
    status = Status(UNKNOWN, created_at_ns=NOW * 10**6)
    metadata = Metadata(labels={"b": "1", "a": "2"}, extensions={"x": [1]})
    one = Sandbox("a", "node-1", status, metadata, "1-1", 3, "field pid: not a number")
    assert [(heading, value) for heading, (value, _) in cells.facts(one, (NOW + 5000) * 10**6)] == [
        ("State", "UNKNOWN"),
        ("Problem", "field pid: not a number"),
        ("Node", "node-1"),
        ("Created", "2026-11-23T21:18:34.885000000Z (5s ago)"),
        ("Labels", "a=2"),
        ("", "b=1"),
        ("Extensions", "x=[1]"),
        ("Revision", "1-1"),
        ("Epoch", "3"),
    ]


def test_columns_give_way_the_widest_first_and_never_overflow_where_they_can():
    spec = (columns.Column("ID", floor=8), columns.Column("NAME", floor=4), columns.Column("N", right=True))
    row = columns.Row("k", (("x" * 64, ""), ("日本語", ""), ("123", "")))
    wanted = columns.needs(spec, [row])
    assert wanted == [64, 6, 3]
    assert columns.widths(spec, wanted, 100) == ([24, 6, 3], 2)
    for room in range(17, 40):
        sizes, gap = columns.widths(spec, wanted, room)
        assert sum(sizes) + 2 * gap <= room
        assert sizes[0] >= 8 and sizes[1] >= 4 and sizes[2] == 3
    assert columns.widths(spec, wanted, 5) == ([8, 4, 3], 1)


def test_text_is_fitted_by_the_cells_that_it_takes():
    assert columns.fitted("abc", 5) == "abc  "
    assert columns.fitted("abc", 5, right=True) == "  abc"
    assert columns.fitted("abcdef", 4) == "abc…"
    assert columns.fitted("日本語", 5) == "日本…"
    assert columns.fitted("日本語", 4) == "日 …"
    assert columns.fitted("abc", 0) == ""


def test_sparks_are_a_bar_for_each_second_or_for_several_of_them():
    assert lines.sparks([0, 1, 7], 10) == "▁▂█"
    assert lines.sparks([0, 0], 10) == "▁▁"
    assert lines.sparks([9, 0, 0, 0, 4], 3) == "█▁▅"
    assert len(lines.sparks([1] * 60, 17)) == 15
    assert lines.sparks([], 5) == lines.sparks([1], 0) == ""


def test_titles_say_how_much_of_what_is_shown():
    seen = look(Fleet(many()), Choice(words="node-3", order=Order.AGE, backwards=True))
    assert lines.sandboxes_title(seen) == "sandboxes: 100 with node-3, oldest first, reversed"
    assert lines.sandboxes_title(look(Fleet(many()))) == "sandboxes: 200 of 1,000, longest stuck first"
    assert lines.rate_line(look(Fleet()), 20)[0] == ("  0/s ", "bold")


def test_whether_it_is_current_is_said_and_being_stale_comes_before_being_paused():
    def said(**health):
        return lines.health(look(Fleet(), Choice(paused=health.pop("paused", False)), **health))[0].strip()

    assert said() == "live"
    assert said(paused=True) == "paused"
    assert said(stale=True, age=12.6, paused=True) == "stale for 12s"


# -- where it comes from


@pytest.fixture
def store(servers, prefix):
    with SandboxStore.from_url(servers("valkey").url, prefix=prefix, agent="node-1/cri") as opened:
        yield opened


class Seen:
    """The views that a feed shows."""

    def __init__(self, source, until):
        self.source = source
        self.views = []
        self.until = until
        source.start(self.views.append)

    @property
    def last(self):
        return self.views[-1]

    def sees(self, condition):
        self.until(lambda: self.views and condition(self.last))
        return self.last


def told(seen: View) -> list[tuple[str, str]]:
    return [(each.event.id, each.event.transition) for each in seen.events if not isinstance(each.event, str)]


def test_a_feed_follows_what_happens(store, until):
    store.create(sandbox_id="a", node="node-1")
    with Feed(store, interval=0.01) as source:
        seen = Seen(source, until)
        assert ids(seen.sees(lambda view: view.total == 1)) == ["a"]
        store.create(sandbox_id="b", node="node-2")
        store.start("b", pid=1)
        view = seen.sees(lambda view: view.states[READY] and len(view.events) == 2)
        assert told(view) == [("b", "start"), ("b", "create")]
        assert [start.sandbox.id for start in view.starts] == ["b"]
        assert (view.agents, view.stale) == (1, False)
        store.remove("b", force=True)
        view = seen.sees(lambda view: view.total == 1 and len(view.events) == 4)
        assert view.events[0].sandbox.node == "node-2", "what was removed is remembered"
        source.choose(Choice(opened="a"))
        assert seen.sees(lambda view: view.opened).opened.id == "a"
    count = len(seen.views)
    store.start("a", pid=1)
    assert len(seen.views) == count


def test_a_feed_shows_only_what_it_was_opened_for(store, until):
    web = Metadata(labels={"app": "web"})
    for sid, metadata in (("old", web), ("other", None)):
        store.create(sandbox_id=sid, node="node-1", metadata=metadata)
    with Feed(store, labels={"app": "web"}, interval=0.01) as source:
        seen = Seen(source, until)
        store.start("other", pid=1)
        store.start("old", pid=1)
        store.create(sandbox_id="stranger", node="node-1")
        store.create(sandbox_id="new", node="node-1", metadata=web)
        store.remove("new", force=True)
        store.remove("old", force=True)
        view = seen.sees(lambda view: ("old", "remove") in told(view) and not view.total)
        expected = [("old", "start"), ("new", "create"), ("new", "remove"), ("old", "stop"), ("old", "remove")]
        assert told(view) == expected[::-1]


def test_what_is_paused_stands_still_but_can_be_sorted_and_nothing_is_missing_afterwards(store, until, monkeypatch):
    monkeypatch.setattr(feed, "_WAITING_MAX", 10)
    for sid in "abc":
        store.create(sandbox_id=sid, node="node-1")
    with Feed(store, interval=0.01) as source:
        seen = Seen(source, until)
        seen.sees(lambda view: view.total == 3)
        source.choose(Choice(paused=True))
        paused = seen.sees(lambda view: view.choice.paused)
        for number in range(20):  # more than are kept
            store.create(sandbox_id=f"new-{number}")
        store.start("a", pid=1)
        source.choose(Choice(paused=True, order=Order.ID, backwards=True))
        view = seen.sees(lambda view: view.choice.backwards)
        assert ids(view) == ["c", "b", "a"]
        assert view.now_ns == paused.now_ns
        source.choose(Choice())
        view = seen.sees(lambda view: view.total == 23)
        assert view.states == {INIT: 22, READY: 1, NOTREADY: 0, UNKNOWN: 0}


def test_when_the_server_has_lost_all_it_goes_on_and_says_that_events_may_be_missing(own_server, until):
    server = own_server(port=0)
    with SandboxStore.from_url(server.url) as store, redis.Redis.from_url(server.url) as client:
        store.create(sandbox_id="a")
        with Feed(store, interval=0.01) as source:
            seen = Seen(source, until)
            seen.sees(lambda view: view.total == 1)
            client.flushall()
            store.create(sandbox_id="b")
            missing = r"events may be missing here: the events behind '\d+-0' are not all there any more"
            seen.sees(
                lambda view: ids(view) == ["b"] and any(re.match(missing, str(each.event)) for each in view.events)
            )

            def hears_again():
                store.update("b", lambda status: replace(status, pid=status.pid + 1))
                return ("b", "update") in told(seen.last)

            until(hears_again)


def test_without_a_server_there_is_no_feed(tmp_path):
    with (
        SandboxStore.from_url(f"unix://{tmp_path}/nobody", timeout=0.1) as store,
        pytest.raises(StoreUnavailableError),
    ):
        Feed(store)


# -- on the screen


def screen_of(app) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


class Pilot:
    """The program without a terminal."""

    def __init__(self, app, pilot):
        self.app, self.pilot = app, pilot

    async def press(self, *keys):
        await self.pilot.press(*keys)

    async def until(self, condition):
        end = time.monotonic() + 30
        while not (result := condition()):
            if time.monotonic() > end:
                pytest.fail(f"this did not come:\n{screen_of(self.app)}")
            await asyncio.sleep(0.005)
        return result

    async def sees(self, *patterns, absent=()):
        """Waits until all of these are on the screen, and none of those that are to be absent."""

        def there():
            shown = screen_of(self.app)
            here = all(re.search(p, shown) for p in patterns) and not any(re.search(p, shown) for p in absent)
            return shown if here else None

        return await self.until(there)


@pytest.fixture
def on_screen(store, prefix, monkeypatch):
    """Plays a story on the screen."""

    async def at_once(*_):
        await asyncio.sleep(0)

    for module in ("app", "pilot"):  # the pilot waits for the processor to be idle, but stories wait for what they see
        monkeypatch.setattr(f"textual.{module}.wait_for_idle", at_once)

    def play(story, size=(100, 30), **settings):
        async def run():
            with Feed(store, interval=0.05, **settings) as source:
                app = Top(source, f"{prefix} at somewhere")
                async with app.run_test(size=size) as pilot:
                    await story(Pilot(app, pilot))
                return app

        return asyncio.run(run())

    return play


@pytest.fixture
def some(store):
    """Six sandboxes on two nodes."""
    for number in range(6):
        labels = {"app": "web" if number % 2 else "api"}
        metadata = Metadata(name=f"pod-{number}", labels=labels, annotations={"owner": "me"})
        store.create(sandbox_id=f"sb-{number}", node=f"node-{number % 3 % 2}", metadata=metadata)
        if number:
            store.start(f"sb-{number}", pid=100 + number)
    store.exit("sb-5", exit_status=137)


def test_the_screen_shows_counts_nodes_sandboxes_and_events(on_screen, some, store, prefix):
    async def story(it):
        shown = await it.sees("6 sandboxes +1 INIT 1 +2 READY 4 +3 NOTREADY 1 +4 UNKNOWN 0", "live")
        assert f"sandbox-redis top {prefix} at somewhere" in shown
        assert re.search(r"node-0 +4 +1 +2 +1 +·", shown)
        assert re.search(r"sb-0 +pod-0 +node-0 +INIT +- +\d+s +\d+s +-", shown)
        assert re.search(r"sb-5 +pod-5 +node-0 +NOTREADY +- +\d+s +\d+s +137", shown)
        assert shown.index("sb-0 ") < shown.index("sb-5 ") < shown.index("sb-1 "), "who is stuck comes first"
        assert "nothing has happened yet" in shown
        store.start("sb-0", pid=7)
        await it.sees(r"sb-0 +start +INIT → READY +node-0 +node-1/cri", "1 agent ", r"\dm?s +sb-0 +node-0 +\ds")

    on_screen(story)


def test_keys_sort_and_choose_what_is_listed(on_screen, some):
    async def story(it):
        await it.sees("sandboxes: 6, longest stuck first")
        for title in ("oldest first", "by id", "by node", "by state", "longest stuck first"):
            await it.press("s")
            await it.sees(f"sandboxes: 6, {title}")
        await it.press("r")
        shown = await it.sees("longest stuck first, reversed")
        assert shown.index("sb-1 ") < shown.index("sb-0 ")
        await it.press("r", "2")
        await it.sees("sandboxes: 2 only INIT, NOTREADY, UNKNOWN,")
        await it.press("f", "f", "f")
        await it.sees("sandboxes: 4 only READY")
        await it.press("escape")
        await it.sees("sandboxes: 6, longest")

    on_screen(story)


def test_a_slash_looks_for_words_while_they_are_typed(on_screen, some):
    async def story(it):
        await it.sees("sandboxes: 6,")
        await it.press("slash")
        await it.sees("Forget it")
        await it.press(*"pod-3q")
        await it.sees("sandboxes: 0 with pod-3q", "there is none to show")
        await it.press("backspace", "enter")
        await it.sees("sandboxes: 1 with pod-3, longest", "READY 1 ", absent=["Forget it"])
        await it.press("s", "slash")
        await it.sees("Forget it")
        await it.press("escape")
        await it.sees("sandboxes: 6, oldest", absent=["Forget it"])
        await it.press("slash")
        await it.sees("Forget it")
        await it.press(*"app=web node-0", "enter")
        await it.sees("sandboxes: 2 with app=web node-0")

    on_screen(story)


def test_enter_on_a_node_shows_only_what_is_there_and_again_everything(on_screen, some):
    async def story(it):
        await it.sees("sandboxes: 6,")
        await it.press("tab", "j", "enter")
        shown = await it.sees("sandboxes: 2 on node-1,")
        assert "sb-0 " not in shown
        await it.press("enter")
        await it.sees("sandboxes: 6,")

    on_screen(story)


def test_enter_on_a_sandbox_shows_all_of_it_and_follows_it_to_its_end(on_screen, some, store):
    async def story(it):
        await it.sees("sandboxes: 6,")
        await it.press("s", "s")
        await it.sees("sandboxes: 6, by id")
        await it.press("end", "enter")
        await it.sees(
            "sandbox sb-5",
            "State +NOTREADY",
            r"Exit status +137 \(SIGKILL\)",
            "app=web",
            "owner=me",
            "history: 3 events",
        )
        await it.sees(r"exit +READY → NOTREADY +- +137 +node-1/cri", r"create +absent → INIT")
        store.remove("sb-5")
        await it.sees("sb-5  is gone", "NOTREADY → gone", "history: 4 events")
        await it.press("escape")
        await it.sees("sandboxes: 5, by id", absent=["history"])

    on_screen(story)


def test_a_history_that_cannot_be_read_says_why(on_screen, some, monkeypatch):
    def history(self, sandbox_id):
        raise StoreUnavailableError("somewhere", "UNREACHABLE", "it is away", "wait")

    monkeypatch.setattr(Feed, "history", history)

    async def story(it):
        await it.sees("sandboxes: 6,")
        await it.press("enter")
        await it.sees("history: the store at somewhere is not available: it is away")

    on_screen(story)


def test_every_key_of_the_help_is_a_key(on_screen, some):
    async def story(it):
        await it.press("question_mark")
        shown = await it.sees("─ keys ─", "6 sandboxes")
        for _, meaning in HELP:
            assert meaning in shown
        await it.press("question_mark")
        await it.sees("sandboxes", absent=["─ keys ─"])
        bound = {
            key
            for node in (it.app, it.app.screen, *it.app.screen.query(Rows))
            for key in node._bindings.key_to_bindings
        }
        names = {"↑": "up", "↓": "down", "/": "slash", "Esc": "escape", "Ctrl-C": "ctrl+c"}
        typed = {names.get(key, key.lower()) for keys, _ in HELP for key in keys.split()}
        assert typed - {"tab"} <= bound

    on_screen(story)


def test_pause_freezes_the_screen_until_it_is_pressed_again(on_screen, some, store):
    async def story(it):
        await it.sees("6 sandboxes")
        await it.press("p")
        await it.sees(" paused ")
        store.create(sandbox_id="new")
        await it.press("s")
        await it.sees("sandboxes: 6, oldest first")
        await it.press("space")
        await it.sees("7 sandboxes", " live ", "- +INIT")

    on_screen(story)


def test_the_cursor_stays_with_its_sandbox_and_in_sight(on_screen, store):
    for number in range(60):
        store.create(sandbox_id=f"sb-{number:02}", node="node-1")

    async def story(it):
        await it.sees("sandboxes: 60,", "sb-00 ")
        listed = it.app.screen.query_one("#sandboxes", Rows)
        await it.press("pagedown", "pagedown", "k")
        await it.until(lambda: listed.cursor == 2 * listed._page - 1)
        there = listed.rows[listed.cursor].key
        await it.sees(f"{there} ")
        await it.press("r")
        await it.sees("reversed", f"{there} ")
        assert listed.rows[listed.cursor].key == there
        await it.press("home")
        await it.until(lambda: listed.cursor == 0)
        store.create(sandbox_id="newest", node="node-1")
        await it.sees("newest +- +node-1")
        assert listed.cursor == 0, "at the top it stays at the top"
        await it.press("G")
        await it.sees("sb-00 ")

    on_screen(story, size=(80, 24))


def test_a_click_goes_to_a_row_and_a_double_click_opens_it(on_screen, some):
    async def story(it):
        await it.press("s", "s")
        shown = await it.sees("sandboxes: 6, by id")
        listed = it.app.screen.query_one("#sandboxes", Rows)
        (line,) = (place for place, line in enumerate(shown.splitlines()) if line.startswith(" sb-3"))
        await it.pilot.click(offset=(3, line))
        await it.until(lambda: listed.rows[listed.cursor].key == "sb-3")
        await it.pilot.click(listed, offset=(3, 1))  # the headings are no row
        await it.pilot.click(offset=(3, line), times=2)
        await it.sees("sandbox sb-3", "history: 2 events")

    on_screen(story)


@pytest.mark.parametrize("size", [(40, 8), (80, 24), (160, 45)])
def test_it_fits_terminals_of_any_size(on_screen, store, size):
    with store.batch() as batch:
        for number in range(300):
            batch.create(node=f"node-{number % 50}", metadata=Metadata(name="a-rather-long-name" * (number % 3)))

    async def story(it):
        await it.sees("sandboxes: 200", "live")
        if size >= (80, 24):
            titles = ("nodes: 50", "200 of 300", "slowest starts", "newest events", "EXIT", "UNKNOWN", "q Quit")
            shown = await it.sees(*titles)
            row = next(line for line in shown.splitlines() if " INIT  " in line and "NODE" not in line)
            assert re.search(r"[0-9a-f]{6,}… .*INIT +- +\d+s +\d+s +-", row)
            assert re.search(r"[0-9a-f]{6,}… .*INIT", row)
        await it.press("enter")
        await it.sees("State +INIT")

    on_screen(story, size=size)


def test_a_bug_ends_it_and_is_told_to_the_caller_without_a_traceback(on_screen, monkeypatch, capfd):
    error = KeyError("a bug")

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(feed, "view", broken)

    async def story(it):
        await it.until(lambda: it.app.failure)

    with pytest.raises(KeyError):  # the pilot raises what ended the program
        on_screen(story)
    assert capfd.readouterr() == ("", "")


# -- when it refuses


def refused(capsys, *arguments):
    status = main(["top", *arguments])
    err = capsys.readouterr().err
    assert err.startswith("sandbox-redis: ") and err.count("\n") == 1
    return status, err


def test_without_a_terminal_it_says_so_in_one_line(capsys):
    status, err = refused(capsys)
    assert status == ExitStatus.USAGE
    assert "needs a terminal" in err and "counts --json" in err


def test_without_the_terminal_library_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(top, "find_spec", lambda name: None)
    status, err = refused(capsys)
    assert status == ExitStatus.USAGE
    assert "pip install 'sandbox-redis[cli]'" in err


@pytest.mark.parametrize("arguments", [("--interval", "0"), ("--state", "BUSY"), ("-l", "web"), ("--node", "a b")])
def test_options_that_make_no_sense_are_refused(capsys, monkeypatch, url_of_nobody, arguments):
    monkeypatch.setattr(top, "_refusal", lambda: None)
    status, _ = refused(capsys, *arguments, "--url", url_of_nobody)
    assert status == ExitStatus.USAGE


@pytest.fixture
def url_of_nobody(tmp_path):
    return f"unix://{tmp_path}/nobody"


# -- in a real terminal

COLOUR = r"\x1b\[[0-9;]*\b(3[0-7]|4[0-7]|9[0-7]|10[0-7]|[34]8;[0-9;]*)m"


class Terminal:
    """A terminal with a shell in it, by tmux."""

    def __init__(self, tmux, until, **environment):
        self.until = until
        self.command = [tmux, "-u", "-L", f"test-{uuid.uuid4().hex}", "-f", "/dev/null"]
        base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TMUX", "ENV")}
        self.environment = base | environment

    def tmux(self, *arguments):
        done = subprocess.run(
            [*self.command, *arguments], env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def open(self, width=80, height=24):
        self.tmux("new-session", "-d", "-s", "it", "-x", str(width), "-y", str(height), "sh")
        self.type("PS1='prompt> '; clear")  # some shells take none from their environment
        self.press("Enter")
        self.sees("^prompt>")
        return self

    def close(self):
        subprocess.run([*self.command, "kill-server"], capture_output=True, check=False)

    def type(self, line):
        self.tmux("send-keys", "-t", "it:", "-l", line)

    def press(self, *keys):
        self.tmux("send-keys", "-t", "it:", *keys)

    def run(self, *command):
        self.type(shlex.join(command) + '; echo "status=$?."')
        self.press("Enter")

    def screen(self, *options):
        return self.tmux("capture-pane", "-p", "-t", "it:", *options)

    def sees(self, *patterns, absent=()):
        """Waits until all of these are on the screen, and none of those that are to be absent."""
        shown = ""

        def there():
            nonlocal shown
            shown = self.screen()
            return all(re.search(p, shown) for p in patterns) and not any(re.search(p, shown) for p in absent)

        try:
            self.until(there)
        except BaseException:
            print(shown)
            raise
        return shown

    def process(self, words):
        """The process with these words in its command line."""
        pane = psutil.Process(int(self.tmux("display-message", "-p", "-t", "it:", "#{pane_pid}")))
        return next(each for each in pane.children(recursive=True) if words in " ".join(each.cmdline()))

    def ends(self, status):
        """It ends so, and the terminal is as it was: the prompt is there, and what is typed is echoed."""
        self.sees(rf"status={status}\.\n(.*\n)*prompt>", absent=["Traceback", "live", "Quit"])
        self.type("echo it is $((40 + 2))")
        self.sees(r"prompt> echo it is \$\(\(40 \+ 2\)\)")
        self.press("Enter")
        return self.sees("\nit is 42\n")


@pytest.fixture
def terminal(until):
    """Opens terminals. Without tmux these tests are skipped, but in CI that is a failure."""
    if (tmux := shutil.which("tmux")) is None:
        message = "no tmux is installed"
        if os.environ.get("CI"):
            pytest.fail(f"{message}, and CI must test in a real terminal")
        pytest.skip(message)
    opened = []

    def open_(width=80, height=24, **environment):
        opened.append(Terminal(tmux, until, **environment))
        return opened[-1].open(width, height)

    yield open_
    for each in opened:
        each.close()


def the_command(url, prefix="sandbox", *arguments):
    return (sys.executable, "-m", "sandbox_redis.cli", "--url", url, "--prefix", prefix, "top", *arguments)


def test_in_a_terminal_it_follows_the_fleet_until_it_is_quit(terminal, own_server):
    server = own_server(port=0)
    with SandboxStore.from_url(server.url, agent="node-1/cri") as store:
        store.create(sandbox_id="web-0", node="node-1", metadata=Metadata(name="evil\x1b[2J", labels={"app": "web"}))
        it = terminal()
        it.run(*the_command(server.url, "sandbox", "--interval", "0.1"))
        it.sees("INIT 1 ", r"web-0 +evil\\x1b\[2J +node-1 +INIT", "live")
        store.start("web-0", pid=4242)
        store.create(sandbox_id="web-1", node="node-2")
        it.sees("INIT 1  READY 1 ", r"web-0 .*READY +4242", r"web-0 +start +INIT → READY +node-1 +node-1/cri")
        store.stop("web-0")
        it.sees("READY 0  NOTREADY 1")
        it.press("/")
        it.sees("Forget it")
        it.type("app=web")
        it.press("Enter")
        it.sees("sandboxes: 1 with app=web", absent=["Forget it"])
        it.press("Enter")
        it.sees("sandbox web-0", "Labels +app=web", "history: 3 events", "stop +READY → NOTREADY")
        it.press("Escape")
        it.sees("sandboxes: 1 with app=web", absent=["history"])
        coloured = it.screen("-e")
        assert re.search(COLOUR, coloured)
        assert "\x1b[2J" not in coloured
        it.press("q")
        it.ends(0)


def test_while_the_server_is_away_it_says_so_and_goes_on_by_itself(terminal, own_server):
    server = own_server(port=0)
    with SandboxStore.from_url(server.url) as store:
        store.create(sandbox_id="web-0")
        it = terminal()
        it.run(*the_command(server.url, "sandbox", "--interval", "0.1"))
        it.sees("INIT 1 ", "live")
        os.kill(server.pid, signal.SIGSTOP)
        it.sees("stale for 1s", "web-0", absent=["live"])
        os.kill(server.pid, signal.SIGCONT)
        it.sees("live", absent=["stale"])
        store.start("web-0", pid=1)
        it.sees("READY 1 ")
        os.kill(server.pid, signal.SIGSTOP)
        it.sees("stale for")
        it.press("q")  # nothing waits for the server
        it.ends(0)
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize(("how", "status"), [("SIGTERM", 143), ("C-c", 130)])
def test_however_it_is_ended_the_terminal_is_as_it_was(terminal, servers, prefix, how, status):
    it = terminal()
    it.run(*the_command(servers("valkey").url, prefix))
    it.sees("live")
    if how == "C-c":
        it.press("C-c")
    else:
        it.process("sandbox_redis.cli").send_signal(signal.Signals[how])
    it.ends(status)


def test_with_no_color_there_is_none(terminal, servers, prefix):
    url = servers("valkey").url
    with SandboxStore.from_url(url, prefix=prefix) as store:
        store.create(sandbox_id="web-0", node="node-1")
        it = terminal(NO_COLOR="1")
        it.run(*the_command(url, prefix))
        it.sees("live", "web-0 .*INIT")
        assert not re.search(COLOUR, it.screen("-e"))
        it.press("?")
        it.sees("─ keys ─")
        it.press("C-c")
        it.ends(130)


def test_without_a_server_it_fails_in_one_line_before_it_takes_the_screen(terminal, url_of_nobody):
    it = terminal(width=500)
    it.run(*the_command(url_of_nobody))
    shown = it.ends(3)
    assert re.search(r"\nsandbox-redis: the store at unix://\S+ is not available: .*\nstatus=3\.", shown)


def test_it_can_be_stopped_with_ctrl_z_and_goes_on_in_the_foreground(terminal, servers, prefix):
    it = terminal()
    it.type("set -m")
    it.press("Enter")
    it.run(*the_command(servers("valkey").url, prefix))
    it.sees("live")
    it.press("C-z")
    it.sees("prompt>", "Stopped", absent=["live"])
    it.type("fg")
    it.press("Enter")
    it.sees("live", absent=["prompt>"])
    it.press("q")
    it.sees("prompt>", absent=["live"])
