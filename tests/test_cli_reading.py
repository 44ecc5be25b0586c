"""The commands that read, and how ids are found: `ls`, `counts`, `history`, beginnings of ids. What all commands have in
common, and the commands that change something, have their tests in ``test_cli.py``, whose fixtures are used here.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import test_cli
from test_cli import LONG_ID, SECOND, Ran, assert_one_line, events

from sandbox_redis import Event, Metadata, Sandbox, SandboxStore, State, Status, StoreUnavailableError
from sandbox_redis.cli import columns, history, shape, show, text
from sandbox_redis.cli.app import app
from sandbox_redis.errors import InvalidArgumentError

url, store, cli, shell, terminal, raw = (
    test_cli.url,
    test_cli.store,
    test_cli.cli,
    test_cli.shell,
    test_cli.terminal,
    test_cli.raw,
)

COMMANDS = [command.name for command in app.registered_commands]
MANY = 1200  # more than one page, and more than rich is asked to print


def plain(printed: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", printed)


def ids(ran: Ran) -> list[str]:
    """What `ls -q` printed."""
    assert ran.status == 0, ran
    return ran.out.split()


@pytest.fixture
def fleet(store) -> None:
    """A few sandboxes that differ in everything that can be asked for."""
    store.create(sandbox_id="init", node="n1", metadata=Metadata(namespace="ns", labels={"app": "web"}))
    store.load("a", Status(State.READY, pid=30, created_at_ns=3), node="n2", metadata=Metadata("c", "ns"))
    store.load("b", Status(State.READY, pid=200, created_at_ns=1), node="n1", metadata=Metadata("b", labels={"app": "web"}))  # fmt: skip
    store.load("c", Status(State.NOTREADY, created_at_ns=2), metadata=Metadata("", "ns", labels={"app": "web", "tier": "front"}))  # fmt: skip
    store.load("d", Status(State.UNKNOWN), node="n1", metadata=Metadata("a", labels={"app": "db", "note": "x,y"}))


@pytest.fixture
def screen(cli, monkeypatch):
    """Runs a command line in this process as if on a terminal, and returns what it prints there."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(*arguments: str, width: int = 200, **environment: str) -> str:
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(width), **environment}.items():
            monkeypatch.setenv(name, value)
        ran = cli(*arguments)
        assert ran.status == 0
        return ran.out

    return run


@pytest.fixture
def many(store) -> list[str]:
    """So many that they come in several pages; in the order of their ids."""
    names = [f"s-{number:04}" for number in range(MANY)]
    with store.batch() as batch:
        for number, name in enumerate(names):
            status = Status(State.READY if number % 2 else State.NOTREADY, created_at_ns=number + 1)
            batch.load(name, status, node=f"n{number % 3}", metadata=Metadata(labels={"third": str(number % 3)}))
    return names


# -- which sandboxes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-l app=web", "b c"),
        ("--selector app==web", "b c"),
        ("-l app=web,tier=front", "c"),
        ("-l app=web -l tier=front", "c"),
        ("-l app=web -l app=web", "b c"),
        ("-l app=web --all", "b c init"),
        ("-l app=web --state INIT", "init"),
        (r"-l note=x\,y", "d"),
        ("-l note=x", ""),
        ("-l tier=", ""),
        ("--namespace ns", "a c"),
        ("--namespace ns -l app=web", "c"),
        ("--namespace ns --all --node n1", "init"),
        ("--node n1", "b d"),
        ("--node n1 -l app=web", "b"),
        ("--node nowhere", ""),
        ("--state ready --state NotReady", "a b c"),
        ("--limit 2", "a b"),
        ("--limit 2 --all", "a b"),
        ("--limit 1 --state INIT", "init"),
        ("--limit 100", "a b c d"),
    ],
)
def test_ls_shows_what_fits_in_all_that_is_asked_for(cli, fleet, options, expected):
    assert ids(cli("ls", "-q", *options.split())) == expected.split()
    assert [record["id"] for record in cli("ls", "--json", *options.split()).json] == expected.split()


def test_blanks_around_the_parts_of_a_selector_do_not_count(cli, fleet):
    assert ids(cli("ls", "-q", "-l", " app = web , tier == front ")) == ["c"]


@pytest.mark.parametrize(
    "selector",
    [
        *["app!=web", "app!=a=b", "app", "!app", "app in (web,db)", "app notin (web)", "app>1", "app>=1"],
        *["=web", "", ",", "app=web,", "app=web,,tier=front"],
    ],
)
def test_a_selector_with_another_operator_is_refused_and_says_so(cli, store, selector):
    ran = cli("--url", "unix:///nowhere", "ls", "-l", selector)
    assert_one_line(ran, 2, "--selector", "exact labels", "no other operator")
    assert ran.out == ""


def test_two_values_for_one_label_are_refused(cli):
    assert_one_line(cli("ls", "-l", "app=web,app=db"), 2, "'app=db'", "app=web")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--state ROTTEN", "INIT, READY, NOTREADY, UNKNOWN"),
        ("--limit 0", "--limit"),
        ("--limit many", "--limit"),
        ("--sort size", "id, name, node, state, age, pid"),
        ("--sort --name", "'--name'"),
        ("--columns id,size", "'size'"),
        ("--columns label:", "'label:'"),
        ("--columns id --wide", "--wide"),
        ("--columns id --json", "JSON"),
        ("--node n/1", "'n/1'"),
    ],
)
def test_what_ls_does_not_know_is_wrong_usage(cli, wrong, said):
    assert_one_line(cli("ls", *wrong.split()), 2, said)


@pytest.mark.parametrize("option", ["--node", "--namespace", "--state", "--sort", "--columns"])
def test_nothing_is_not_taken_for_everything(cli, fleet, option):
    assert_one_line(cli("ls", option, ""), 2, option.removeprefix("--"))


def test_unknown_finds_what_cannot_be_decoded_wherever_its_index_has_it(cli, fleet, raw, prefix):
    fields = {"init": "state", "a": "pid", "c": "created_at"}
    before = {name: raw.hget(f"{prefix}:{{0}}:status:{name}", field) for name, field in fields.items()}
    for name, field in fields.items():
        raw.hset(f"{prefix}:{{0}}:status:{name}", field, "rotten")
    assert ids(cli("ls", "-q", "--state", "UNKNOWN")) == ["a", "c", "d", "init"]
    assert ids(cli("ls", "-q")) == ["a", "b", "c", "d", "init"]
    assert ids(cli("ls", "-q", "--state", "INIT")) == []
    assert ids(cli("ls", "-q", "--state", "UNKNOWN", "-l", "app=web")) == ["c", "init"]
    assert ids(cli("ls", "-q", "--state", "UNKNOWN", "--node", "n1", "--limit", 1)) == ["d"]
    problems = cli("ls", "--columns", "id,problem").out.splitlines()
    assert re.fullmatch(r"a +\S+:status:a, field 'pid' holds 'rotten': .*", problems[1])
    assert problems[2].split() == ["b", "-"]
    for name, field in fields.items():
        raw.hset(f"{prefix}:{{0}}:status:{name}", field, before[name])


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        *[("", 2), ("--node n1", 1), ("--node nowhere", 0), ("-l app=web", 1), ("--namespace ns", 1), ("--limit 1", 2)],
        *[("-l app=db", 0), ("--node n1 -l app=web", 1)],
        *[("--all", 0), ("--state READY", 0), ("-q", 0), ("--json", 0)],
    ],
)
def test_ls_says_how_many_in_init_it_leaves_out(cli, fleet, store, options, hidden):
    store.create()
    said = cli("ls", *options.split()).err
    assert said == (f"sandbox-redis: {hidden} more in INIT: list them with --all\n" if hidden else "")


# -- in which order


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("id", "a b c d init"),
        ("-id", "init d c b a"),
        ("name", "d b a c init"),
        ("-name", "a b d init c"),
        ("node", "b d init a c"),
        ("-node", "a init d b c"),
        ("state", "init a b c d"),
        ("-state", "d c b a init"),
        ("age", "init a c b d"),
        ("-age", "b c a init d"),
        ("pid", "a b c d init"),
        ("-PID", "b a init d c"),
    ],
)
@pytest.mark.parametrize("limit", [5, 2])
def test_ls_sorts_and_what_has_no_value_comes_last(cli, fleet, order, expected, limit):
    assert ids(cli("ls", "-q", "--all", "--sort", order)) == expected.split()
    assert ids(cli("ls", "-q", "--all", f"--sort={order}", "--limit", limit)) == expected.split()[:limit]


def test_ls_without_an_order_follows_the_ids_in_each_partition(cli, url, prefix):
    with SandboxStore.from_url(url, prefix=prefix, partitions=5) as store:
        for number in range(40):
            store.load(f"s-{number}", Status(State.READY))
    listed = ids(cli("ls", "-q"))
    assert len(set(listed)) == 40
    assert listed != sorted(listed)
    assert ids(cli("ls", "-q", "--sort", "id")) == sorted(listed)


# -- in which form


def test_the_wide_table_begins_as_the_usual_one(cli, store):
    metadata = Metadata("web", "ns", labels={"b": "two words", "a": "1"})
    store.load("a", Status(State.NOTREADY, created_at_ns=1, exited_at_ns=SECOND, exit_status=3), metadata=metadata)
    usual, wide = cli("ls").out.splitlines(), cli("ls", "--wide").out.splitlines()
    for narrow, line in zip(usual, wide, strict=True):
        assert line.split()[:7] == narrow.split()
    assert wide[0].split()[7:] == ["NAMESPACE", "LABELS", "CREATED", "EXITED", "REVISION", "PROBLEM"]
    assert wide[1].split()[7:] == [
        "ns",
        r"a=1,b=two\x20words",
        "1970-01-01T00:00:00.000000001Z",
        "1970-01-01T00:00:01.000000000Z",
        store.get("a").revision,
        "-",
    ]


def test_columns_are_those_that_are_named_in_their_order(cli, fleet):
    ran = cli("ls", "--columns", "STATE,label:app,id", "--columns", "Label:tier")
    assert [line.split() for line in ran.out.splitlines()] == [
        ["STATE", "LABEL:app", "ID", "LABEL:tier"],
        ["READY", "-", "a", "-"],
        ["READY", "web", "b", "-"],
        ["NOTREADY", "web", "c", "front"],
        ["UNKNOWN", "db", "d", "-"],
    ]


def test_without_headers_there_are_only_rows(cli, fleet, monkeypatch):
    assert cli("ls", "--no-headers").out.splitlines()[0].split()[:3] == ["a", "c", "n2"]
    assert cli("ls", "--no-headers", "--node", "nowhere").out == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert len(cli("ls", "--no-headers").out.splitlines()) == 4


def test_every_value_is_one_word_for_awk(cli, store):
    evil = "two words\x1b[2J\n\u3000x"
    store.load("a", Status(State.READY), metadata=Metadata(evil, evil, labels={evil: evil, "k": "a b"}))
    heading, row = cli("ls", "--columns", f"problem,labels,name,namespace,label:{evil},label:k").out.splitlines()
    assert len(heading.split()) == len(row.split()) == 6
    assert row.split()[-1] == r"a\x20b"


@pytest.mark.parametrize("form", [["-q"], [], ["--wide"], ["--json"]])
def test_an_id_that_no_store_wrote_cannot_steer_a_terminal_either(cli, raw, prefix, form):
    odd = "two words\x1b[2J\n"
    raw.hset(f"{prefix}:{{0}}:status:{odd}", "state", "READY")
    raw.zadd(f"{prefix}:{{0}}:state:READY", {odd: 0})
    ran = cli("ls", "--no-headers", *form)
    assert ran.status == 0
    if form == ["--json"]:
        assert ran.json[0]["id"] == odd
    else:
        assert [line.split()[0] for line in ran.out.splitlines()] == [r"two\x20words\x1b[2J\n"]
    raw.delete(f"{prefix}:{{0}}:status:{odd}", f"{prefix}:{{0}}:state:READY")


def test_the_form_of_json_is_that_of_one_array(cli, fleet, store):
    whole = [shape.record(store.get(name)) for name in "abcd"]
    assert cli("ls", "--json").out == json.dumps(whole, indent=4) + "\n"
    assert cli("get", "a", "b", "c", "d", "--json").out == json.dumps(whole, indent=4) + "\n"
    assert cli("ls", "--json", "--node", "nowhere").out == "[]\n"


def test_line_breaks_and_odd_characters_in_values_leave_json_whole(cli, store, shell):
    odd = "a\nb\r\u2028\x85\x00".replace("\x00", "") + '"\\é'
    store.load("a", Status(State.READY), metadata=Metadata(odd, labels={odd: odd}))
    for environment in ({}, {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}):
        assert shell("ls", "--json", **environment).json[0]["metadata"]["labels"] == {odd: odd}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_what_the_output_cannot_encode_is_escaped_in_a_table(shell, store, encoding):
    metadata = Metadata("日本", labels={"k": "ё"})
    store.load("a", Status(State.READY), node="n", metadata=metadata)
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    ran = shell("ls", "--columns", "name,label:k,id", **environment)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[1].split() == [r"\u65e5\u672c", r"\u0451", "a"]


# -- many


def test_of_many_each_comes_once_in_every_form(cli, many):
    assert ids(cli("ls", "-q")) == many
    assert [line.split()[0] for line in cli("ls", "--no-headers").out.splitlines()] == many
    assert [record["id"] for record in cli("ls", "--json").json] == many
    assert ids(cli("ls", "-q", "--sort", "-age")) == many
    assert ids(cli("ls", "-q", "--state", "READY")) == many[1::2]
    assert ids(cli("ls", "-q", "--state", "READY", "--limit", 500)) == many[1:1000:2]
    assert ids(cli("ls", "-q", "-l", "third=2", "--node", "n2")) == many[2::3]


def test_of_many_on_a_terminal_each_is_one_line(screen, many):
    lines = screen("ls", width=60).splitlines()
    assert len(lines) == MANY + 1
    assert "─" not in "".join(lines)


@pytest.mark.parametrize("command", ["ls -q", "ls", "ls --json", "ls --wide --sort name"])
def test_a_reader_that_takes_only_the_beginning_is_no_error(shell, many, url, prefix, command):
    """As `| head -1` does: it reads a line, and goes."""
    environment = os.environ | {"SANDBOX_REDIS_URL": url}
    arguments = [sys.executable, "-m", "sandbox_redis.cli", "--prefix", prefix, *command.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, env=environment, text=True, bufsize=1, **pipes) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def made(count: int, then: Exception | None = None) -> Iterator[Sandbox]:
    """A listing of so many, made as it goes; it ends, or fails."""
    for number in range(count):
        yield Sandbox(f"s-{number}", "", Status(State.READY), Metadata(name="x" * (number // 2000)), "1-0")
    if then:
        raise then


@pytest.mark.parametrize(("options", "there"), [("-q", 3000), ("--json", 3000), ("--no-headers", 3000)])
def test_what_has_come_is_printed_before_the_rest(cli, monkeypatch, options, there):
    gone = StoreUnavailableError("host:1", "UNREACHABLE", "gone", "wait")
    monkeypatch.setattr(SandboxStore, "list", lambda *_, **__: made(3000, gone))
    ran = cli("ls", *options.split())
    assert_one_line(ran, 3, "gone")
    assert len(re.findall(r"\bs-\d+", ran.out)) == there
    if options == "--json":
        with pytest.raises(json.JSONDecodeError):
            json.loads(ran.out)


@pytest.mark.parametrize("options", ["-q", "--json", "", "--wide", "--limit 5900", "--sort age --limit 10"])
def test_however_many_there_are_few_are_in_memory(cli, monkeypatch, options):
    alive = []

    def listed(*_, **__) -> Iterator[Sandbox]:
        for number, sandbox in enumerate(made(6000)):
            if number == 5000:
                gc.collect()
                alive.append(sum(isinstance(each, Sandbox) for each in gc.get_objects()))
            yield sandbox

    monkeypatch.setattr(SandboxStore, "list", listed)
    assert cli("ls", *options.split()).status == 0
    assert alive[0] < 50


def test_rows_that_come_later_may_be_wider_than_the_first(cli, monkeypatch):
    monkeypatch.setattr(SandboxStore, "list", lambda *_, **__: made(5000))
    lines = cli("ls", "--columns", "id,name,state").out.splitlines()
    assert len(lines) == 5001
    assert lines[-1].split() == ["s-4999", "xx", "READY"]
    assert len({line.index("READY") for line in lines[1:1000]}) == 1


# -- on terminals


def test_a_wide_table_on_a_narrow_terminal_is_not_cut(screen, terminal, store):
    store.load(LONG_ID, Status(State.READY, pid=7), node="a-node", metadata=Metadata("a-name", labels={"app": "web"}))
    lines = plain(terminal("ls", "--wide", width=80)).splitlines()
    assert len(lines) == 3, "each row is one line, which the terminal breaks"
    row = lines[2].split()
    assert re.fullmatch(r"[0-9a-f]{11}…", row[0])
    assert LONG_ID.startswith(row[0][:-1])
    assert row[1:5] == ["a-name", "a-node", "READY", "7"]
    assert row[8] == "app=web"
    assert [line.rstrip() for line in lines] == [
        line.rstrip() for line in plain(screen("ls", "--wide", width=80)).splitlines()
    ]
    assert LONG_ID in plain(screen("ls", "--wide", width=400)).splitlines()[2]


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_on_a_narrow_terminal_every_value_can_still_be_read(screen, store, width):
    store.load(LONG_ID, Status(State.NOTREADY, exited_at_ns=1, exit_status=137), node="n", metadata=Metadata("name"))
    printed = plain(screen("ls", width=width))
    for value in ("NOTREADY", "137", "name", LONG_ID[:9]):
        assert value in printed


def test_what_is_shortened_is_found_again(screen, cli, store):
    store.load(LONG_ID, Status(State.READY), metadata=Metadata("name"))
    shown = re.search(r"^([0-9a-f]+)…", plain(screen("ls", width=60)), re.MULTILINE)
    assert cli("get", shown[1], "--json").json["id"] == LONG_ID


def test_a_terminal_without_unicode_gets_ascii(terminal, store):
    store.load(LONG_ID, Status(State.READY), metadata=Metadata("name"))
    printed = plain(terminal("ls", width=60, PYTHONIOENCODING="ascii", PYTHONUTF8="0"))
    assert re.search(r"^[0-9a-f]+\.\.\. \|name", printed, re.MULTILINE)
    assert "\\u" not in printed


@pytest.mark.parametrize("command", [["ls", "--wide"], ["counts"], ["history", "a"], ["get", "a"]])
def test_no_color_is_no_colour(screen, fleet, command):
    assert re.search(r"\x1b\[3[0-9]m", screen(*command))
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", screen(*command, NO_COLOR="1"))


# -- counts


def test_counts_are_of_states_and_of_nodes(cli, fleet):
    lines = cli("counts").out.splitlines()
    assert [line.split() for line in lines] == [
        ["STATE", "COUNT"],
        ["INIT", "1"],
        ["READY", "2"],
        ["NOTREADY", "1"],
        ["UNKNOWN", "1"],
        [],
        ["NODE", "COUNT"],
        ["n1", "3"],
        ["n2", "1"],
    ]
    assert cli("counts", "--json").json == {
        "states": {"INIT": 1, "READY": 2, "NOTREADY": 1, "UNKNOWN": 1},
        "nodes": {"n1": 3, "n2": 1},
    }


def test_counts_of_a_node_are_of_its_states(cli, fleet):
    assert cli("counts", "--node", "n1").out.split() == [
        "STATE",
        "COUNT",
        "INIT",
        "1",
        "READY",
        "1",
        "NOTREADY",
        "0",
        "UNKNOWN",
        "1",
    ]
    assert cli("counts", "--node", "n1", "--json").json == {
        "states": {"INIT": 1, "READY": 1, "NOTREADY": 0, "UNKNOWN": 1},
        "nodes": {"n1": 3},
    }
    assert set(cli("counts", "--node", "nowhere", "--json").json["states"].values()) == {0}
    assert_one_line(cli("counts", "--node", ""), 2, "node")


def test_counts_of_nothing_are_zero(cli):
    assert cli("counts", "--json").json == {"states": dict.fromkeys(State, 0), "nodes": {}}
    assert cli("counts").status == 0


def test_counts_agree_with_the_list(cli, many):
    found = cli("counts", "--json").json
    assert found["states"] == {"INIT": 0, "READY": MANY // 2, "NOTREADY": MANY // 2, "UNKNOWN": 0}
    assert found["nodes"] == {f"n{number}": MANY // 3 for number in range(3)}


def test_counts_need_the_store(cli):
    assert_one_line(cli("counts", "--url", "unix:///nowhere"), 3, "/nowhere")


# -- history


START = datetime(2026, 11, 23, 15, 7, 43, tzinfo=UTC)


def happened(*changes: tuple[float, str, State | None, State | None]) -> list[Event]:
    """Events at so many seconds, with their transitions and the states before and after."""
    found = []
    for number, (seconds, transition, before, after) in enumerate(changes):
        sandbox = after and Sandbox("a", "", Status(after), Metadata(), "")
        at = START + timedelta(seconds=seconds)
        found.append(Event("a", transition, before, sandbox, f"{number}-0", at, "me", "token"))
    return found


INIT, READY, NOTREADY = State.INIT, State.READY, State.NOTREADY
LIFE = [
    (0, "create", None, INIT),
    (0.25, "start", INIT, READY),
    (5, "update", READY, READY),
    (60.25, "exit", READY, NOTREADY),
    (61, "exit", NOTREADY, NOTREADY),
    (7260.25, "remove", NOTREADY, None),
]


def test_a_step_says_how_long_the_state_before_it_lasted():
    """What does not change the state does not end it; before a creation there was none."""
    again = [(9000, "load", None, READY), (9001, "stop", READY, NOTREADY)]
    lasted = [step.lasted for step in history.steps(happened(*LIFE, *again))]
    assert [None if ns is None else text.lasting(ns) for ns in lasted] == [
        None,
        "250ms",
        None,
        "1m",
        None,
        "2h",
        None,
        "1s",
    ]


def test_what_began_before_the_oldest_event_has_no_duration():
    lived = list(history.steps(happened(*LIFE[2:])))
    assert [step.lasted for step in lived] == [None, None, None, 7200 * SECOND]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (LIFE, "total of a: 2h1m, 6 events, gone"),
        (LIFE[:3], "total of a: 2h46m, 3 events, READY for 2h46m"),
        (LIFE[2:3], "total of a: at least 2h46m, 1 event, READY for 2h46m"),
        ([*LIFE, (9000, "create", None, INIT)], "total of a: 2h17m in 2 lives, 7 events, INIT for 16m40s"),
        ([(20000, "create", None, INIT)], "total of a: 0ms, 1 event, INIT for 0ms"),
    ],
)
def test_the_total_is_over_all_lives(changes, said):
    """Now is 10,000 seconds behind the start by our clock; the server's may be ahead."""
    lived = list(history.steps(happened(*changes)))
    assert history._total("a", lived, text.nanoseconds(START + timedelta(seconds=10_000))) == said


def test_history_tells_a_life_in_order(cli, store):
    store.create(sandbox_id="web-0", node="n1")
    store.start("web-0", pid=42)
    store.update("web-0", lambda status: replace(status, pid=43))
    store.stop("web-0")
    store.exit("web-0", exit_status=137)
    store.remove("web-0")
    heading, *rows, total = cli("history", "web-0").out.splitlines()
    assert heading.split() == ["TIME", "LASTED", "EVENT", "CHANGE", "PID", "EXIT", "BY"]
    cells = [row.split() for row in rows]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[0]) for row in cells)
    assert [row[1] == "-" for row in cells] == [True, False, True, False, True, False]
    assert [" ".join(row[2:]) for row in cells] == [
        "create absent -> INIT - - test",
        "start INIT -> READY 42 - test",
        "update READY -> READY 43 - test",
        "stop READY -> NOTREADY - - test",
        "exit NOTREADY -> NOTREADY - 137 test",
        "remove NOTREADY -> gone - - test",
    ]
    assert re.fullmatch(r"total of web-0: \d+ms, 6 events, gone", total)


def test_a_forced_removal_is_two_events(cli, store):
    store.load("a", Status(State.READY, pid=5))
    store.remove("a", force=True)
    assert [row.split()[2] for row in cli("history", "a").out.splitlines()[1:-1]] == ["load", "stop", "remove"]


def test_the_json_of_history_has_all_of_each_event(cli, store):
    store.load("a", Status(State.READY, pid=5), node="n1", metadata=Metadata(labels={"app": "web"}))
    store.exit("a", exit_status=3)
    store.remove("a")
    load, exit_, remove = cli("history", "a", "--json").json
    first, second, third = store.history("a")
    assert load == {**shape.event(first), "lasted_ns": None}
    assert load["sandbox"]["metadata"]["labels"] == {"app": "web"}
    assert (load["before"], load["after"], load["by"], load["at_ns"] % 10**6) == (None, "READY", "test", 0)
    assert exit_ == {**shape.event(second), "lasted_ns": exit_["at_ns"] - load["at_ns"]}
    assert (exit_["after"], exit_["sandbox"]["exit_status"], exit_["sandbox"]["metadata"]) == ("NOTREADY", 3, None)
    assert (remove["before"], remove["after"], remove["sandbox"]) == ("NOTREADY", None, None)
    assert (remove["transition"], remove["revision"], remove["request"]) == ("remove", third.revision, third.request)


def test_an_agent_with_an_odd_name_is_one_word(cli, url, prefix):
    with SandboxStore.from_url(url, prefix=prefix, agent="two words\x1b[2J") as store:
        store.create(sandbox_id="a")
    assert cli("history", "a").out.splitlines()[1].split()[-1] == r"two\x20words\x1b[2J"


def test_events_that_are_gone_are_no_error(cli, store, raw, prefix):
    stream = f"{prefix}:{{0}}:events"
    store.create(sandbox_id="a")
    store.start("a", pid=1)
    raw.xtrim(stream, maxlen=1, approximate=False)
    row, total = cli("history", "a").out.splitlines()[1:]
    assert row.split()[1:4] == ["-", "start", "INIT"]
    assert total.startswith("total of a: at least ")
    kept = raw.dump(stream)
    raw.xtrim(stream, maxlen=0, approximate=False)
    ran = cli("history", "a")
    assert_one_line(ran, 0, "'a'", "events are gone")
    assert ran.out == ""
    assert cli("history", "a", "--json").out == "[]\n"
    raw.restore(stream, 0, kept, replace=True)


def test_history_of_what_never_was_is_not_found(cli, store):
    ran = cli("history", "a")
    assert_one_line(ran, 1, "'a' does not exist")
    assert ran.out == ""
    assert_one_line(cli("history", "a/b"), 2, "'a/b'")
    assert_one_line(cli("history", "a", "--url", "unix:///nowhere"), 3, "/nowhere")


def test_one_that_has_gone_is_not_taken_for_another(cli, store):
    store.load("web-1", Status(State.NOTREADY))
    store.load("web-10", Status(State.READY))
    store.remove("web-1")
    assert "NOTREADY -> gone" in cli("history", "web-1").out
    assert "total of web-10: " in cli("history", "web-").out
    assert_one_line(cli("history", "web-", "--exact"), 1, "'web-'")


# -- beginnings of ids


def state(store: SandboxStore, wanted: str, sandbox_id: str) -> None:
    if wanted == "INIT":
        store.create(sandbox_id=sandbox_id)
    else:
        store.load(sandbox_id, Status(State(wanted)))


TAKES_IDS = [
    ("get {}", "READY"),
    ("start {} --pid 1", "INIT"),
    ("fail-start {}", "INIT"),
    ("port-forward {}", "READY"),
    ("stop {}", "READY"),
    ("exit {} --exit-status 1", "READY"),
    ("rm {}", "NOTREADY"),
    ("rm --force {}", "READY"),
    ("key {}", "READY"),
    ("history {}", "READY"),
]


@pytest.mark.parametrize(("command", "before"), TAKES_IDS)
def test_the_beginning_of_an_id_does_for_it_and_the_whole_is_printed(cli, store, command, before):
    state(store, before, "web-0123")
    state(store, before, "db-0")
    ran = cli(*command.format("web").split())
    assert ran.status == 0
    assert "web-0123" in ran.out
    assert "db-0" not in ran.out
    as_json = cli(*command.format("db-0").split(), "--json").json
    assert (as_json[0] if isinstance(as_json, list) else as_json)["id"] == "db-0"


@pytest.mark.parametrize(("command", "before"), TAKES_IDS)
def test_an_ambiguous_id_is_refused_and_nothing_is_changed(cli, store, command, before):
    for number in range(7):
        state(store, before, f"web-{number}")
    was = store.audit()
    ran = cli(*command.format("web").split())
    assert_one_line(ran, 1, "several sandboxes begin with 'web'", "web-0, web-1", "and more")
    assert ran.out == ""
    assert store.audit() == was


@pytest.mark.parametrize(("command", "before"), TAKES_IDS)
def test_exact_takes_no_id_for_another(cli, store, command, before):
    state(store, before, "web-10")
    was = store.audit()
    ran = cli(*command.format("web-1").split(), "--exact")
    assert "web-10" not in ran.out + ran.err
    assert store.audit() == was
    assert "web-10" in cli(*command.format("web-10").split(), "--exact").out


@pytest.mark.parametrize(
    ("command", "before"), [each for each in TAKES_IDS if each[0] in ("get {}", "stop {}", "rm {}")]
)
def test_when_one_of_several_is_ambiguous_nothing_at_all_is_changed(cli, store, command, before):
    for name in ("a", "web-0", "web-1", "x-0", "x-1"):
        state(store, before, name)
    was = store.audit()
    ran = cli(*command.format("a").split(), "web", "x")
    assert ran.status == 1
    assert re.findall(r"begin with '(\w+)'", ran.err) == ["web", "x"]
    assert (ran.out, ran.err.count("\n")) == ("", 2)
    assert store.audit() == was


def test_a_whole_id_is_that_one_even_where_others_begin_so(cli, store):
    for name in ("web", "web-0", "web-1"):
        state(store, "NOTREADY", name)
    assert cli("rm", "web").out == "web removed\n"
    assert sorted(store.audit().sandboxes) == ["web-0", "web-1"]


def test_of_several_some_may_be_beginnings_and_some_not_there(cli, store):
    for name in ("a-1", "b-1"):
        state(store, "NOTREADY", name)
    ran = cli("rm", "a", "b-1", "c")
    assert (ran.status, ran.out) == (0, "a-1 removed\nb-1 removed\n")
    assert_one_line(ran, 0, "'c' was not there")
    assert events(store)[-2:] == [("a-1", "remove"), ("b-1", "remove")]


def test_what_creates_takes_ids_as_they_are(cli, store):
    state(store, "READY", "web-0")
    assert cli("create", "web").out == "web\n"
    assert cli("load", "we", "--state", "READY").out == "we\n"
    assert sorted(store.audit().sandboxes) == ["we", "web", "web-0"]


@pytest.mark.parametrize("name", ["0", "A", "a.b_c-D", "a" * 128, "00", "z-", "é"])
def test_unusual_ids_are_found_or_refused(cli, store, name):
    if not name.isascii():
        assert_one_line(cli("get", name), 2, repr(name))
        return
    state(store, "READY", name)
    assert cli("get", name, "--json").json["id"] == name
    assert cli("stop", name[:1]).out == f"{name} NOTREADY\n"
    assert ids(cli("ls", "-q")) == [name]


def test_a_damaged_index_does_not_hide_a_whole_id(cli, store, raw, prefix):
    state(store, "READY", "web-0")
    index = f"{prefix}:{{0}}:state:UNKNOWN"
    raw.set(index, "text")
    assert cli("get", "web-0").status == 0
    assert_one_line(cli("get", "web"), 1, "'web' does not exist")
    assert_one_line(cli("ls"), 3, index)
    raw.delete(index)


def test_key_is_for_whole_ids_that_are_not_there_too(cli, store, prefix):
    state(store, "READY", "web-0")
    assert cli("key", "db-0").out.splitlines()[0] == f"{prefix}:{{0}}:status:db-0"
    assert cli("key", "web").out.splitlines()[0] == f"{prefix}:{{0}}:status:web-0"
    assert_one_line(cli("key", "web-0", "--url", "unix:///nowhere"), 3, "/nowhere")


@pytest.mark.parametrize("command", ["get a b", "rm a b", "history a", "key a"])
def test_a_store_that_is_away_is_said_once(cli, command):
    assert_one_line(cli("--url", "unix:///nowhere", *command.split()), 3, "/nowhere")


# -- help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_short_help_is_the_help(cli, command):
    ran = cli(command, "-h", where=False)
    assert ran.status == 0
    assert ran == cli(command, "--help", where=False)
    assert "-h, --help" in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_no_names_from_inside(cli, command):
    printed = cli(command, "-h", where=False).out
    usage = printed.splitlines()[0]
    assert re.fullmatch(rf"Usage: sandbox-redis {command} \[OPTIONS\]( \[?[A-Z]+(\.\.\.)?\]?)?", usage)
    assert not re.search(r"<(str|bool|list|int|float)|list\[|{", printed.partition("Examples:")[0])


def test_the_help_on_a_terminal_has_none_either(terminal):
    for command in ([], ["get"]):
        printed = plain(terminal(*command, "-h"))
        assert "Usage: sandbox-redis" in printed
        assert not re.search(r"<(str|bool|list|int|float)|list\[", printed)


def test_the_help_of_ls_and_load_names_the_states_in_capitals(cli):
    for command, choices in (("ls", State), ("load", ("READY", "NOTREADY", "UNKNOWN"))):
        words = " ".join(cli(command, "-h", where=False).out.split())
        assert f"{', '.join(list(choices)[:-1])} or UNKNOWN" in words
    assert_one_line(cli("load", "a", "--state", "gone"), 2, "INIT, READY, NOTREADY, UNKNOWN")


def test_the_epilog_tells_the_status_of_a_wait_in_vain(cli):
    assert re.search(r"^    124  ", cli("-h", where=False).out, re.MULTILINE)


def test_the_example_for_rm_is_no_error_where_there_is_nothing(cli, store, url, prefix):
    store.load("a", Status(State.READY), node="node-2")
    example = next(line for line in cli("rm", "-h", where=False).out.splitlines() if "xargs" in line)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"SANDBOX_REDIS_URL": url, "PATH": path}
    example = example.replace("sandbox-redis ", f"sandbox-redis --prefix {prefix} ")
    for node, left in (("node-1", ["a"]), ("node-2", [])):
        line = example.replace("node-1", node)
        done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert list(store.audit().sandboxes) == left


@pytest.mark.parametrize("options", ["-o json --format dot", "--json --format table", "--format mermaid -o json"])
def test_two_forms_for_the_machine_exclude_each_other(cli, options):
    ran = cli("states", *options.split(), where=False)
    assert_one_line(ran, 2, "--format", "JSON")
    assert ran.out == ""
    assert cli("states", "--json", "--format", "json", where=False).status == 0
    assert cli("states", "-o", "table", "--format", "dot", where=False).out.startswith("digraph")


# -- parts


@pytest.mark.parametrize(
    ("written", "parts"),
    [("a,b", ["a", "b"]), (r"a\,b", ["a,b"]), (" a , b ", ["a", "b"]), ("", [""]), (r"a\b", [r"a\b"])],
)
def test_pieces_stand_between_commas(written, parts):
    assert text.pieces(written) == parts


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("a=b", {"a": "b"}),
        ("a==b", {"a": "b"}),
        ("a===b", {"a": "=b"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("example.com/a_b-c=d e", {"example.com/a_b-c": "d e"}),
        ("a=!b", {"a": "!b"}),
    ],
)
def test_a_selector_ends_its_key_at_the_first_equals_sign(written, labels):
    assert text.labels("--selector", [written]) == labels


@pytest.mark.parametrize(
    ("ns", "words"), [(0, "0ms"), (999_999_999, "999ms"), (SECOND, "1s"), (61 * SECOND, "1m1s"), (-1, "0s")]
)
def test_short_times_are_in_milliseconds(ns, words):
    assert text.lasting(ns) == words


def test_every_column_and_order_takes_a_record_that_has_nothing():
    empty = Sandbox("a", "", Status(State.UNKNOWN), Metadata(), "")
    assert {name for name, cell in columns.COLUMNS.items() if cell(empty, 0) not in ("", text.NONE)} == {"id", "state"}
    for name in columns.ORDERS:
        assert columns.in_order("--sort", name)([empty], None) == [empty]
    with pytest.raises(InvalidArgumentError, match="--sort"):
        columns.in_order("--sort", "-")


def test_an_array_is_written_as_json_writes_it(capsys):
    for values in ([], [1], [{"a": []}, [], {}, "x\ny"], [[1, [2]]]):
        shape.write_array(iter(values))
        assert capsys.readouterr().out == json.dumps(values, indent=4) + "\n"


def test_a_table_without_rows_is_its_heading(capsys):
    show.table(("A", "B"), [])
    assert capsys.readouterr().out == "A  B\n"
