"""The command line, in this process for speed and as a process of its own where that makes the difference: exit
statuses, pipes, terminals. `serve`, `run` and `demo` have tests of their own; here is only how they are called.
"""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import termios
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest
import redis

from sandbox_redis import (
    AlreadyExistsError,
    AmbiguousIDError,
    CompactedError,
    ConflictError,
    DurabilityError,
    InvalidArgumentError,
    Metadata,
    NotFoundError,
    OutcomeUnknownError,
    Sandbox,
    SandboxStore,
    SchemaError,
    State,
    Status,
    StoreRolledBackError,
    StoreUnavailableError,
    TransitionError,
    WaitTimeoutError,
    __version__,
)
from sandbox_redis.cli import key, machine, main, shape, show, statuses, text
from sandbox_redis.cli.app import app
from sandbox_redis.server import ServerStartError
from sandbox_redis.states import ABSENT, MACHINE

SECOND = 10**9
LONG_ID = "0123456789abcdef" * 4


@dataclass
class Ran:
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def assert_one_line(ran: Ran, status: int, *words: str) -> None:
    """It failed as a command should."""
    assert ran.status == status, ran
    assert ran.err.startswith("sandbox-redis: ")
    assert ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err


@pytest.fixture
def url(servers):
    return servers("valkey").url


@pytest.fixture
def store(url, prefix) -> Iterator[SandboxStore]:
    """The store behind the commands; whatever they did, it holds what the contract says."""
    with SandboxStore.from_url(url, prefix=prefix, agent="test") as opened:
        yield opened


@pytest.fixture
def cli(url, prefix, store, capsys, monkeypatch) -> Iterator[Callable[..., Ran]]:
    """Runs a command line in this process."""
    monkeypatch.setenv("SANDBOX_REDIS_URL", "unix:///there/is/no/such/server")

    def run(*arguments: object, where: bool = True) -> Ran:
        before = ["--url", url, "--prefix", prefix] if where else []
        status = main([*before, *map(str, arguments)])
        return Ran(status, *capsys.readouterr())

    yield run
    assert store.audit().problems == []


@pytest.fixture
def shell(url, prefix) -> Callable[..., Ran]:
    """Runs a command line in a process of its own."""

    def run(*arguments: str, stdout: int = subprocess.PIPE, **environment: str) -> Ran:
        env = os.environ | {"SANDBOX_REDIS_URL": url} | environment
        command = [sys.executable, "-m", "sandbox_redis.cli", "--prefix", prefix, *arguments]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def terminal(url, prefix) -> Callable[..., str]:
    """Runs a command line on a terminal, and returns what it prints there."""

    def run(*arguments: str, width: int = 200, **environment: str) -> str:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, width))
        env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        env |= {"SANDBOX_REDIS_URL": url, "TERM": "xterm-256color", **environment}
        command = [sys.executable, "-m", "sandbox_redis.cli", "--prefix", prefix, *arguments]
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as process:
            os.close(theirs)
            printed = b""
            while True:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # how Linux says that the other side is closed
                    break
                if not part:
                    break
                printed += part
        os.close(ours)
        assert process.returncode == 0, printed
        return printed.decode()

    return run


def events(store: SandboxStore) -> list[tuple[str, str]]:
    return [(event.id, event.transition) for event in store.audit().events]


# -- creating


def test_create_prints_nothing_but_the_id_that_it_made(cli, store):
    ran = cli("create")
    assert re.fullmatch(r"[0-9a-f]{64}\n", ran.out)
    assert (ran.status, ran.err) == (0, "")
    assert store.get(ran.out.strip()).status.state is State.INIT


def test_create_records_what_the_options_say(cli, store):
    options = "--name web --namespace ns --uid 5f0c --attempt 2 --runtime-handler runc --node node-1"
    ran = cli(
        "create", *options.split(), "--label", "app=web", "--label", "tier=a=b", "--annotation", "note=x y", "web-0"
    )
    assert ran.out == "web-0\n"
    sandbox = store.get("web-0")
    assert sandbox.node == "node-1"
    assert sandbox.metadata == Metadata(
        name="web",
        namespace="ns",
        uid="5f0c",
        attempt=2,
        runtime_handler="runc",
        labels={"app": "web", "tier": "a=b"},
        annotations={"note": "x y"},
    )


def test_an_id_is_an_argument_or_an_option_but_not_two(cli, store):
    assert cli("create", "--id", "a").out == "a\n"
    assert cli("load", "--id", "b", "--state", "READY").out == "b\n"
    assert_one_line(cli("create", "c", "--id", "d"), 2, "--id", "'d'", "'c'")
    assert_one_line(cli("load", "--state", "READY"), 2, "ID")
    assert sorted(store.audit().sandboxes) == ["a", "b"]


def test_create_of_a_taken_id_is_refused(cli, store):
    cli("create", "a", "--name", "first")
    assert_one_line(cli("create", "a", "--name", "second"), 1, "'a' already exists")
    assert store.get("a").metadata.name == "first"
    assert events(store) == [("a", "create")]


def test_load_records_what_was_observed(cli, store):
    ran = cli(
        "load", "a", "--state", "ready", "--pid", 7, "--created-at", "2026-11-23T15:07:43.281389235Z", "--node", "n"
    )
    assert ran.out == "a\n"
    assert store.get("a").status == Status(State.READY, pid=7, created_at_ns=1795446463281389235)
    cli("load", "b", "--state", "NOTREADY", "--exit-status", 9, "--exited-at", "1970-01-01T00:00:01+00:00")
    assert store.get("b").status == Status(State.NOTREADY, exited_at_ns=SECOND, exit_status=9)


@pytest.mark.parametrize(
    "wrong",
    [
        ["create", "--label", "app"],
        ["create", "--label", "=web"],
        ["create", "--attempt", "-1"],
        ["create", "bad/id"],
        ["create", "--node", "bad/node"],
        ["load", "a", "--state", "INIT"],
        ["load", "a"],
        ["load", "a", "--state", "READY", "--pid", "-1"],
        ["load", "a", "--state", "NOTREADY", "--exit-status", "1"],
        ["load", "a", "--state", "READY", "--created-at", "yesterday"],
    ],
)
def test_what_cannot_be_recorded_is_wrong_usage_and_nothing_is_sent(cli, store, wrong):
    assert_one_line(cli(*wrong), 2)
    assert store.audit().events == []


# -- a life


def test_a_sandbox_lives_from_create_to_rm(cli, store):
    sandbox_id = cli("create").out.strip()
    assert cli("start", sandbox_id, "--pid", 4242).out == f"{sandbox_id} READY\n"
    assert store.get(sandbox_id).status.pid == 4242
    assert cli("port-forward", sandbox_id).out == f"{sandbox_id} READY\n"
    assert cli("exit", sandbox_id, "--exit-status", 137).out == f"{sandbox_id} NOTREADY\n"
    assert store.get(sandbox_id).status.exit_status == 137
    assert cli("stop", sandbox_id).out == f"{sandbox_id} NOTREADY\n"
    assert cli("rm", sandbox_id) == Ran(0, f"{sandbox_id} removed\n", "")
    assert [transition for _, transition in events(store)] == ["create", "start", "exit", "remove"]


def test_fail_start_takes_a_sandbox_away(cli, store):
    cli("create", "a")
    assert cli("fail-start", "a") == Ran(0, "a removed\n", "")
    assert events(store) == [("a", "create"), ("a", "fail_start")]


def test_an_exit_has_the_time_that_it_is_given(cli, store):
    for sandbox_id, command in (("a", "exit"), ("b", "stop")):
        cli("load", sandbox_id, "--state", "READY")
        cli(command, sandbox_id, "--exit-status", 3, "--exited-at", "1970-01-01T00:00:00.000000007Z")
        assert store.get(sandbox_id).status == Status(State.NOTREADY, exited_at_ns=7, exit_status=3)


REFUSED = [
    (["start", "a", "--pid", "1"], "READY"),
    (["fail-start", "a"], "READY"),
    (["port-forward", "a"], "NOTREADY"),
    (["stop", "a"], "INIT"),
    (["exit", "a", "--exit-status", "1"], "UNKNOWN"),
    (["rm", "a"], "READY"),
    (["rm", "a"], "INIT"),
]


@pytest.mark.parametrize(("command", "state"), REFUSED)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_refused_command_changes_nothing(cli, store, command, state, form):
    if state == "INIT":
        store.create(sandbox_id="a")
    else:
        store.load("a", Status(State(state)))
    before = store.audit()
    ran = cli(*command, *form)
    assert_one_line(ran, 1, f"'a' is {state}")
    assert ran.out == ""
    assert store.audit() == before


@pytest.mark.parametrize(
    "command", ["get a", "start a --pid 1", "stop a", "exit a --exit-status 1", "fail-start a", "port-forward a"]
)
def test_what_is_not_there_is_not_found(cli, store, command):
    assert_one_line(cli(*command.split()), 1, "'a' does not exist")
    assert store.audit().events == []


def test_rm_of_what_is_not_there_is_a_success_that_says_so(cli):
    ran = cli("rm", "a")
    assert_one_line(ran, 0, "'a' was not there")
    assert ran.out == ""


def test_rm_force_takes_any_state(cli, store):
    store.create(sandbox_id="a")
    store.load("b", Status(State.READY))
    store.load("c", Status(State.UNKNOWN))
    assert cli("rm", "--force", "a", "b", "c").out == "a removed\nb removed\nc removed\n"
    assert store.audit().sandboxes == {}


def test_of_several_each_is_done_and_the_worst_decides(cli, store):
    store.load("a", Status(State.NOTREADY))
    store.load("b", Status(State.READY))
    ran = cli("rm", "a", "b", "c")
    assert ran.status == 1
    assert ran.out == "a removed\n"
    assert "'c' was not there" in ran.err
    assert "'b' is READY" in ran.err
    assert ran.err.count("\n") == 2
    assert list(store.audit().sandboxes) == ["b"]


def test_a_wrong_id_among_several_stops_all(cli, store):
    store.load("a", Status(State.NOTREADY))
    assert_one_line(cli("rm", "a", "b/c"), 2, "'b/c'")
    assert "a" in store.audit().sandboxes


def test_the_agent_stands_in_the_events(cli, store):
    cli("--agent", "node-1/cri", "create", "a")
    cli("start", "a", "--pid", 1, "--agent", "node-2/cri")
    assert [event.by for event in store.audit().events] == ["node-1/cri", "node-2/cri"]


# -- listing


@pytest.fixture
def listed(store) -> None:
    store.create(sandbox_id="init", node="n1")
    store.load("ready", Status(State.READY, pid=5), node="n1")
    store.load("ready2", Status(State.READY), node="n2")
    store.load("notready", Status(State.NOTREADY, exited_at_ns=SECOND, exit_status=3), node="n1")
    store.load("unknown", Status(State.UNKNOWN), node="n2")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ["notready", "ready", "ready2", "unknown"]),
        ("--all", ["init", "notready", "ready", "ready2", "unknown"]),
        ("--state INIT", ["init"]),
        ("--state ready", ["ready", "ready2"]),
        ("--state READY --state UNKNOWN", ["ready", "ready2", "unknown"]),
        ("--node n1", ["notready", "ready"]),
        ("--node n1 --state READY", ["ready"]),
        ("--node nowhere --all", []),
    ],
)
def test_ls_lists_what_is_asked_for(cli, listed, options, expected):
    quiet = cli("ls", "-q", *options.split())
    assert quiet.out.split() == expected
    assert [record["id"] for record in cli("ls", "--json", *options.split()).json] == expected
    table = cli("ls", *options.split())
    assert [line.split()[0] for line in table.out.splitlines()] == ["ID", *expected]
    assert quiet.status == table.status == 0


def test_ls_prints_columns_for_awk_off_a_terminal(cli, store):
    store.load("a", Status(State.READY, pid=5, created_at_ns=SECOND), metadata=Metadata(name="two words\x1b[2J\n"))
    store.load("b", Status(State.NOTREADY, exited_at_ns=SECOND, exit_status=3), node="n1")
    heading, first, second = cli("ls").out.splitlines()
    assert heading.split() == ["ID", "NAME", "NODE", "STATE", "PID", "AGE", "EXIT"]
    sandbox_id, name, node, state, pid, age, exit_status = first.split()
    assert (sandbox_id, name, node, state, pid, exit_status) == ("a", r"two\x20words\x1b[2J\n", "-", "READY", "5", "-")
    assert re.fullmatch(r"\d+d\d+h|\d+d", age)
    assert second.split() == ["b", "-", "n1", "NOTREADY", "-", "-", "3"]
    assert first.index("READY") == second.index("NOTREADY") == heading.index("STATE")


def test_ls_of_nothing_says_where_to_look(cli, store):
    store.create()
    assert cli("ls").out.splitlines() == ["ID  NAME  NODE  STATE  PID  AGE  EXIT"]
    assert_one_line(cli("ls"), 0, "--all")
    assert cli("ls", "--json") == Ran(0, "[]\n", "")
    assert cli("ls", "-q") == Ran(0, "", "")


@pytest.fixture
def raw(url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


def test_a_record_that_cannot_be_decoded_is_listed_as_unknown_and_get_says_why(cli, store, raw, prefix):
    store.load("bad", Status(State.READY, pid=5))
    store.load("good", Status(State.READY))
    raw.hset(f"{prefix}:{{0}}:status:bad", "pid", "many")
    assert cli("ls", "-q").out.split() == ["bad", "good"]
    assert cli("ls", "-q", "--state", "UNKNOWN").out.split() == ["bad"]
    assert cli("ls", "-q", "--state", "READY").out.split() == ["good"]
    shown = cli("get", "bad")
    assert shown.status == 0
    assert re.search(r"^Problem: .*'pid' holds 'many'", shown.out, re.MULTILINE)
    assert "'pid' holds 'many'" in cli("get", "bad", "--json").json["problem"]
    raw.hset(f"{prefix}:{{0}}:status:bad", "pid", "5")


def test_a_key_of_the_wrong_type_is_listed_as_unknown_and_get_names_it(cli, store, raw, prefix):
    store.load("bad", Status(State.READY))
    store.load("good", Status(State.READY))
    name = f"{prefix}:{{0}}:status:bad"
    record = raw.dump(name)
    raw.set(name, "text")
    ran = cli("ls", "--json")
    assert [(each["id"], each["state"]) for each in ran.json] == [("bad", "UNKNOWN"), ("good", "READY")]
    assert name in ran.json[0]["problem"]
    assert_one_line(cli("get", "bad"), 3, name, "string")
    assert raw.get(name) == b"text"
    raw.restore(name, 0, record, replace=True)


def test_what_is_removed_while_it_is_listed_is_left_out(cli, store, raw, prefix):
    store.load("a", Status(State.READY))
    index = f"{prefix}:{{0}}:state:READY"
    raw.zadd(index, {"gone": 0})
    assert cli("ls", "-q") == Ran(0, "a\n", "")
    raw.zrem(index, "gone")


def test_a_list_that_is_cut_short_does_not_look_whole(cli, store, monkeypatch):
    store.load("a", Status(State.READY))
    sandbox = store.get("a")

    def cut(*_, **__) -> Iterator[Sandbox]:
        yield sandbox
        raise StoreUnavailableError("host:1", "UNREACHABLE", "gone", "wait")

    monkeypatch.setattr(SandboxStore, "list", cut)
    ran = cli("ls", "--json")
    assert_one_line(ran, 3, "gone")
    with pytest.raises(json.JSONDecodeError):
        ran.json  # noqa: B018
    assert_one_line(cli("ls", "-q"), 3, "gone")
    assert cli("ls") == Ran(3, "", ran.err), "less than a page, so that nothing was printed yet"


# -- forms


WHOLE = Metadata(
    name="web",
    namespace="ns",
    uid="u",
    attempt=1,
    runtime_handler="runc",
    labels={"b": "2", "a": "wéb"},
    annotations={"note": "x"},
    extensions={"quota": {"cpu": 2, "raw": b"\x00\xff"}},
)


def test_the_json_of_a_record_has_one_shape(cli, store):
    store.load(
        "a", Status(State.NOTREADY, created_at_ns=1, exited_at_ns=SECOND, exit_status=0), node="n", metadata=WHOLE
    )
    record = {
        "id": "a",
        "node": "n",
        "state": "NOTREADY",
        "pid": 0,
        "created_at": "1970-01-01T00:00:00.000000001Z",
        "created_at_ns": 1,
        "exited_at": "1970-01-01T00:00:01.000000000Z",
        "exited_at_ns": SECOND,
        "exit_status": 0,
        "metadata": {
            "name": "web",
            "namespace": "ns",
            "uid": "u",
            "attempt": 1,
            "runtime_handler": "runc",
            "labels": {"b": "2", "a": "wéb"},
            "annotations": {"note": "x"},
            "extensions": {"quota": {"cpu": 2, "raw": {"base64": "AP8="}}},
        },
        "revision": store.get("a").revision,
        "epoch": 0,
        "problem": None,
    }
    assert cli("get", "a", "--json").json == record
    assert cli("stop", "a", "--json").json == record
    assert cli("ls", "--json").json == [record]
    assert cli("get", "a", "a", "--json").json == [record, record]
    assert cli("get", "a", "missing", "--json").json == [record]


def test_what_is_not_there_is_null(cli, store):
    store.load("a", Status(State.READY))
    record = cli("get", "a", "--json").json
    absent = ["created_at", "created_at_ns", "exited_at", "exited_at_ns", "exit_status", "problem"]
    assert [name for name, value in record.items() if value is None] == absent
    assert re.findall(r"^(Created|Exited|Exit status): +-$", cli("get", "a").out, re.MULTILINE) == [
        "Created",
        "Exited",
        "Exit status",
    ]


def test_every_command_that_changes_a_record_prints_it(cli, store):
    created = cli("create", "a", "--json").json
    assert (created["id"], created["state"]) == ("a", "INIT")
    assert cli("start", "a", "--pid", 1, "--json").json["pid"] == 1
    assert cli("port-forward", "a", "--json").json["state"] == "READY"
    assert cli("exit", "a", "--exit-status", 1, "--json").json["exit_status"] == 1
    assert cli("load", "b", "--state", "UNKNOWN", "--json").json["state"] == "UNKNOWN"
    assert cli("rm", "a", "c", "--json").json == [{"id": "a", "removed": True}, {"id": "c", "removed": False}]
    store.create(sandbox_id="d")
    assert cli("fail-start", "d", "--json").json == {"id": "d", "removed": True}


@pytest.mark.parametrize("options", [["--json"], ["-o", "json"], ["--output", "JSON"]])
def test_options_may_stand_before_a_command_and_behind_it(cli, url, prefix, store, options):
    store.load("a", Status(State.READY))
    expected = shape.record(store.get("a"))
    where = ["--url", url, "--prefix", prefix]
    assert cli(*where, *options, "get", "a", where=False).json == expected
    assert cli("get", *where, "a", *options, where=False).json == expected
    assert cli("--url", "unix:///nowhere", "get", "a", *where, *options, where=False).json == expected


def test_the_url_comes_from_the_environment_unless_it_is_given(cli, url, prefix, monkeypatch):
    assert_one_line(cli("--prefix", prefix, "ls", where=False), 3, "/there/is/no/such/server")
    monkeypatch.setenv("SANDBOX_REDIS_URL", url)
    assert cli("--prefix", prefix, "ls", "--json", where=False).json == []


def test_stores_are_told_apart_by_prefix(cli, prefix, store):
    store.load("a", Status(State.READY))
    assert_one_line(cli("--prefix", f"{prefix}-other", "get", "a"), 1)
    assert cli("--prefix", prefix, "get", "a").status == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, "x", None, True]}, {"a": [1, 2.5, "x", None, True]}),
        (b"\x00\xff", {"base64": "AP8="}),
        ([{"k": b"a"}], [{"k": {"base64": "YQ=="}}]),
        (msgpack.ExtType(5, b"a"), [5, {"base64": "YQ=="}]),
        (float("nan"), {"msgpack": "y3/4AAAAAAAA"}),
        ({b"k": 1}, {"msgpack": "gcQBawE="}),
        (msgpack.Timestamp(1, 0), {"msgpack": "1v8AAAAB"}),
    ],
)
def test_extensions_that_json_cannot_carry_are_base64(value, expected):
    assert shape.extension(value) == expected


def test_an_extension_that_another_client_nested_too_deeply_for_json_is_shown(cli, store, raw, prefix):
    store.load("a", Status(State.READY))
    packed = b"\x91" * 1020 + b"\xc0"
    raw.hset(f"{prefix}:{{0}}:status:a", "ext:deep", packed)
    shown = {"msgpack": base64.b64encode(packed).decode()}
    assert cli("get", "a", "--json").json["metadata"]["extensions"] == {"deep": shown}
    assert f"deep={json.dumps(shown)}" in cli("get", "a").out


def test_get_shows_all_that_is_known(cli, store):
    status = Status(State.NOTREADY, created_at_ns=1, exited_at_ns=SECOND, exit_status=137)
    store.load("a", status, node="n", metadata=WHOLE)
    lines = cli("get", "a").out.splitlines()
    facts = [re.sub(r"\([0-9dhms]+ ago\)", "(long ago)", re.sub(r":\s+", ": ", line)) for line in lines]
    assert facts == [
        "Id: a",
        "State: NOTREADY",
        "Node: n",
        "Pid: -",
        "Created: 1970-01-01T00:00:00.000000001Z (long ago)",
        "Exited: 1970-01-01T00:00:01.000000000Z (long ago)",
        "Exit status: 137 (SIGKILL)",
        "Name: web",
        "Namespace: ns",
        "Uid: u",
        "Attempt: 1",
        "Runtime: runc",
        "Labels: a=wéb",
        "             b=2",
        "Annotations: note=x",
        'Extensions: quota={"cpu": 2, "raw": {"base64": "AP8="}}',
        f"Revision: {store.get('a').revision}",
        "Epoch: 0",
    ]


def test_nothing_in_a_record_can_steer_a_terminal(cli, store):
    evil = "x\x1b[2J\r\n\x9b1m\u202e"
    store.load("a", Status(State.READY), metadata=Metadata(name=evil, labels={evil: evil}, annotations={"a": evil}))
    for command in ("get", "ls"):
        printed = cli(command, *["a"] * (command == "get")).out
        assert all(character.isprintable() for character in printed.replace("\n", ""))
        assert r"\x1b[2J" in printed


@pytest.mark.parametrize(
    ("ns", "words"),
    [
        (0, "0s"),
        (SECOND - 1, "0s"),
        (59 * SECOND, "59s"),
        (60 * SECOND, "1m"),
        (192 * SECOND, "3m12s"),
        (7200 * SECOND, "2h"),
        (7205 * SECOND, "2h"),
        (90061 * SECOND, "1d1h"),
        (-5 * SECOND, "-5s"),
        (-1, "0s"),
    ],
)
def test_ages_have_two_units(ns, words):
    assert text.span(ns) == words


def test_a_time_to_come_is_told_from_one_that_has_passed():
    assert text.moment(SECOND, 3 * SECOND) == "1970-01-01T00:00:01.000000000Z (2s ago)"
    assert text.moment(3 * SECOND, SECOND) == "1970-01-01T00:00:03.000000000Z (in 2s)"
    assert text.moment(0, SECOND) == "-"


@pytest.mark.parametrize(
    ("written", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01t00:00:01.000000001z", 1_000_000_001),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2026-11-23T15:07:43.281389235Z", 1795446463281389235),
    ],
)
def test_times_are_read_to_the_nanosecond(written, ns):
    assert text.instant("--exited-at", written) == ns


@pytest.mark.parametrize(
    "written",
    ["", "now", "2026-11-23", "2026-11-23T15:07:43", "2026-02-31T00:00:00Z", "1970-01-01T00:00:00.0000000001Z"],
)
def test_what_is_no_time_is_refused(written):
    with pytest.raises(InvalidArgumentError, match="--exited-at"):
        text.instant("--exited-at", written)


# -- key and states


@pytest.mark.parametrize("port", [None, 0])
def test_the_line_that_key_prints_reads_the_record(cli, own_server, port):
    if not shutil.which("redis-cli"):
        pytest.skip("no redis-cli is installed")
    url = own_server(port=port).url.removesuffix("/0") + ("/3" if port is not None else "?db=3")
    with SandboxStore.from_url(url, partitions=7) as store:
        store.create(sandbox_id="web-0")
    name, line = cli("key", "web-0", "--url", url, "--prefix", "sandbox").out.splitlines()
    read = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout.split()
    assert re.fullmatch(r"sandbox:\{[0-6]\}:status:web-0", name)
    assert dict(zip(read[::2], read[1::2], strict=True))["state"] == "INIT"


def test_key_asks_the_store_for_its_partitions(cli, url, prefix, store):
    with SandboxStore.from_url(url, prefix=prefix, partitions=7) as first:
        first.create(sandbox_id="web-0")
    found = cli("key", "web-9", "--json").json
    partition = zlib.crc32(b"web-9") % 7
    assert found == {
        "id": "web-9",
        "key": f"{prefix}:{{{partition}}}:status:web-9",
        "partition": partition,
        "redis_cli": f"redis-cli -s {url.removeprefix('unix://')} -n 0 HGETALL '{prefix}:{{{partition}}}:status:web-9'",
    }


@pytest.mark.parametrize(
    ("server", "line"),
    [
        ({"host": "h", "port": 7, "db": 2}, "redis-cli -u redis://h:7/2"),
        ({"host": "h", "tls": True}, "redis-cli -u rediss://h:6379/0"),
        ({}, "redis-cli -u redis://localhost:6379/0"),
        ({"host": "::1", "port": 7, "tls": True}, "redis-cli -h ::1 -p 7 -n 0 --tls"),
        ({"path": "/a b", "db": 1}, "redis-cli -s '/a b' -n 1"),
        ({"host": "h", "username": "bob", "password": "secret"}, "redis-cli -u redis://h:6379/0 --user bob"),
    ],
)
def test_redis_cli_is_led_to_the_same_server_without_its_password(server, line):
    assert key.redis_cli({"tls": False, **server}) == line


def test_key_does_not_print_the_password(cli, own_server):
    server = own_server(port=0, options={"requirepass": "hunter2"})
    ran = cli("key", "a", "--url", f"redis://:hunter2@127.0.0.1:{server.port}/0", "--prefix", "sandbox")
    assert_one_line(ran, 0, "REDISCLI_AUTH")
    assert ran.out.splitlines()[1] == f"redis-cli -u redis://127.0.0.1:{server.port}/0 HGETALL 'sandbox:{{0}}:status:a'"
    assert "hunter2" not in ran.out + ran.err


def moves() -> set[tuple[str, str, str]]:
    """Every edge of the machine. A forced removal always ends without a record."""
    return {
        (operation, before, ABSENT if operation == "force_remove" else state)
        for operation, by_state in MACHINE.items()
        for before, after in by_state.items()
        for state in after
        if (before, state) != (ABSENT, ABSENT)
    }


def test_the_pictures_of_the_machine_have_each_of_its_moves(cli):
    mermaid = cli("states", "--format", "mermaid").out
    edges = re.findall(r"^    (\S+) --> (\S+): (.+)$", mermaid, re.MULTILINE)
    assert mermaid.splitlines()[0] == "stateDiagram-v2"
    assert len(edges) == len(mermaid.splitlines()) - 1
    drawn = {
        (o, a.replace("[*]", ABSENT), b.replace("[*]", ABSENT)) for a, b, labels in edges for o in labels.split(", ")
    }
    assert drawn == moves()
    dot = cli("states", "--format", "dot").out
    arrows = re.findall(r'"(\w+)" -> "(\w+)" \[label="([^"]+)"\];', dot)
    assert {(o, a, b) for a, b, labels in arrows for o in labels.split(", ")} == moves()
    assert cli("states", "--json").json == cli("states", "--format", "json").json
    assert cli("states", "--json").json["operations"] == json.loads(json.dumps(MACHINE))


def test_the_table_of_the_machine_has_a_cell_for_every_pair(cli):
    lines = cli("states").out.splitlines()
    assert lines[0].split() == ["operation", ABSENT, *State]
    table = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line) for line in lines[1:])}
    assert list(table) == list(MACHINE)
    assert table["create"] == ["→ INIT", *["AlreadyExists"] * 4]
    assert table["load"][0] == "→ READY, NOTREADY, UNKNOWN"
    assert table["stop"] == ["NotFound", "Transition", "→ NOTREADY", "ok", "→ NOTREADY"]
    assert table["remove"] == ["ok", "Transition", "Transition", "→ absent", "Transition"]
    assert table["force_remove"][2:4] == ["→ NOTREADY → absent", "→ absent"]
    assert table["update"] == ["NotFound", "ok, → READY", "ok, → NOTREADY", "ok", "ok, → NOTREADY"]
    refused = {"NotFound", "Transition", "AlreadyExists"}
    for operation, cells in table.items():
        for before, cell in zip((ABSENT, *State), cells, strict=True):
            assert (cell in refused) == (before not in MACHINE[operation])


def test_states_needs_no_store(cli):
    assert cli("states", where=False).status == 0
    assert machine.mermaid()


# -- errors


ERRORS = [
    (NotFoundError("a"), 1),
    (AlreadyExistsError("a", "READY"), 1),
    (TransitionError("a", "READY", "start"), 1),
    (ConflictError("a", 3), 1),
    (AmbiguousIDError("a", ("a1", "a2")), 1),
    (CompactedError("1-0"), 1),
    (StoreRolledBackError("1-0"), 1),
    (InvalidArgumentError("pid", -1, "a rule"), 2),
    (StoreUnavailableError("h:1", "OOM", "full", "make room"), 3),
    (SchemaError("k", "is odd"), 3),
    (ServerStartError("none"), 3),
    (OutcomeUnknownError("a", "token", "gone"), 4),
    (DurabilityError("a", "token", None, 0, 1), 5),
    (WaitTimeoutError("a", 5, "READY"), 124),
    (ZeroDivisionError("oops"), 70),
]


@pytest.mark.parametrize(("error", "status"), ERRORS)
def test_every_error_is_one_line_and_an_exit_status(cli, monkeypatch, error, status):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("sandbox_redis.store.SandboxStore.list", fail)
    ran = cli("ls")
    assert_one_line(ran, status, str(error).split(";")[0])
    assert ran.out == ""


def test_what_is_made_and_not_confirmed_is_printed_and_has_a_status_of_its_own(cli, store):
    """The server has no replica, and no append-only file."""
    hasty = ("--wait-replicas", 1, "--timeout", 1)
    for command, printed in (
        (("create", "--id", "a"), "a\n"),
        (("start", "a", "--pid", 7), "a READY\n"),
        (("stop", "a"), "a NOTREADY\n"),
        (("rm", "a"), "a removed\n"),
    ):
        ran = cli(*command, *hasty)
        assert_one_line(ran, 5, "'a' was made, but is not confirmed", "0 of 1 replicas")
        assert ran.out == printed
    ran = cli("create", "--id", "b", "--fsync")
    assert_one_line(ran, 3, "no append-only file", "nothing was written")
    assert store.ids(states=list(State)) == []


def test_of_several_errors_the_worst_decides_and_each_is_said_once(capsys):
    errors = [
        NotFoundError("a"),
        OutcomeUnknownError("b", "t", "gone"),
        NotFoundError("a"),
        SchemaError("k", "is\nodd\x1b"),
    ]
    assert statuses.complain_of(errors) == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == r"sandbox-redis: key 'k' is odd\x1b"
    assert len(lines) == 3


def test_a_bug_says_where_it_is(cli, monkeypatch):
    monkeypatch.setattr("sandbox_redis.store.SandboxStore.list", lambda *_, **__: 1 // 0)
    assert_one_line(cli("ls"), 70, "report", "ZeroDivisionError", Path(__file__).name)


def test_an_interrupt_has_the_status_of_one(cli, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sandbox_redis.store.SandboxStore.list", interrupt)
    assert cli("ls") == Ran(130, "", "")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("strat a", "'start'"),
        ("start a", "--pid"),
        ("start a --pid many", "--pid"),
        ("get", "ID"),
        ("get a/b", "'a/b'"),
        ("ls extra", "extra"),
        ("ls --sate READY", "--sate"),
        ("ls --state ROTTEN", "'ROTTEN'"),
        ("ls --node", "--node"),
        ("ls -o yaml", "'yaml'"),
        ("states --format svg", "'svg'"),
        ("exit a", "--exit-status"),
        ("stop a --exited-at 1970-01-01T00:00:01Z", "exited_at_ns"),
        ("--timeout 0 ls", "timeout"),
        ("--timeout soon ls", "--timeout"),
        ("--prefix a{b ls", "'a{b'"),
        ("--url nonsense ls", "'nonsense'"),
        ("run", "COMMAND"),
        ("serve --port 1 --socket /tmp/s", "--socket"),
        ("serve --memory --data /tmp/d", "--data"),
        ("serve --port 65536", "--port"),
    ],
)
def test_wrong_usage_is_one_line(cli, store, wrong, said):
    assert_one_line(cli(*wrong.split()), 2, said)
    assert store.audit().events == []


def test_a_store_that_cannot_be_reached_is_named(cli, tmp_path):
    assert_one_line(cli("--url", f"unix://{tmp_path}/none", "get", "a", "b"), 3, f"{tmp_path}/none")


@pytest.mark.parametrize(
    "form", ["redis://:hunter2@{}", "redis://bob:hunter2@{}", "rdis://:hunter2@{}", "redis://:hunter2@{}x"]
)
def test_no_error_shows_a_password(cli, own_server, form):
    server = own_server(port=0)
    ran = cli("--url", form.format(f"127.0.0.1:{server.port}"), "ls")
    assert ran.status in (2, 3)
    assert "hunter2" not in ran.out + ran.err


# -- the frame


def test_without_a_command_the_help_is_shown_as_wrong_usage(cli):
    ran = cli(where=False)
    assert ran.status == 2
    assert ran.out == cli("--help", where=False).out
    assert re.search(r"^    4  ", ran.out, re.MULTILINE), "the exit statuses stand in the help"


def test_the_version_is_that_of_the_library(cli):
    assert cli("--version", where=False) == Ran(0, f"sandbox-redis {__version__}\n", "")


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_the_help_of_every_command_has_an_example(cli, command):
    ran = cli(command, "--help", where=False)
    assert ran.status == 0
    example = ran.out.partition("Examples:\n")[2]
    assert f"sandbox-redis {command}" in example


def test_every_operation_has_a_command():
    commands = {command.name for command in app.registered_commands}
    operations = {operation.replace("_", "-") for operation in MACHINE} - {"remove", "force-remove", "update"}
    insight = {"acl", "counts", "watch", "wait", "doctor", "top", "history", "key", "states"}
    assert operations | insight | {"get", "ls", "rm", "serve", "run", "demo", "init", "soak"} == commands


def test_options_behind_the_command_of_run_belong_to_it(cli, monkeypatch):
    called = {}

    def run(store, **arguments):
        called.update(arguments)
        return 7

    monkeypatch.setattr("sandbox_redis.cli.run.run", run)
    assert cli("run", "--id", "a", "--label", "k=v", "--rm", "--", "sh", "--id", "b", "--", "-q").status == 7
    assert called == {
        "command": ["sh", "--id", "b", "--", "-q"],
        "sandbox_id": "a",
        "node": "",
        "metadata": Metadata(labels={"k": "v"}),
        "rm": True,
        "give_up": 60.0,
        "quiet": False,
    }
    cli("run", "sh", "--rm")
    assert (called["command"], called["rm"]) == (["sh", "--rm"], False)


def test_serve_gets_what_was_asked_for(cli, monkeypatch):
    called = {}
    monkeypatch.setattr("sandbox_redis.cli.serve.serve", lambda **arguments: called.update(arguments) or 3)
    assert cli("serve", "--data", "/d", "--port", 0, "--quiet").status == 3
    assert called == {"data": Path("/d"), "port": 0, "socket_path": None, "memory": False, "quiet": True}
    cli("serve", "--socket", "/s", "--memory")
    assert called == {"data": None, "port": None, "socket_path": Path("/s"), "memory": True, "quiet": False}


def test_the_demo_uses_a_server_only_when_the_command_line_names_it(cli, url, monkeypatch):
    called = {}
    monkeypatch.setattr("sandbox_redis.cli.demo.demo", lambda **arguments: called.update(arguments) or 0)
    monkeypatch.setenv("SANDBOX_REDIS_URL", url)
    cli("demo", "--agents", 2, where=False)
    assert called == {"url": None, "agents": 2, "sandboxes": 12, "seconds": 10.0, "seed": None}
    cli("demo", "--url", url, where=False)
    assert called["url"] == url
    cli("--url", "redis://other", "demo", where=False)
    assert called["url"] == "redis://other"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", {"create", "ls", "demo"}),
        ("get ", {"init", "ready", "ready2", "notready", "unknown"}),
        ("get re", {"ready", "ready2"}),
        ("get ready re", {"ready2"}),
        ("start ", {"init"}),
        ("port-forward ", {"ready", "ready2"}),
        ("stop ", {"ready", "ready2", "notready", "unknown"}),
        ("rm n", {"notready"}),
        ("ls --state NOT", {"NOTREADY"}),
        ("ls --state un", {"unknown"}),
        ("load x --state ", {"READY", "NOTREADY", "UNKNOWN"}),
        ("ls --node ", {"n1", "n2"}),
        ("create --node n1", {"n1"}),
        ("ls --node x", set()),
        ("ls --sort n", {"name", "node"}),
        ("ls --columns id,s", {"id,state"}),
        ("history re", {"ready", "ready2"}),
        ("get --prefix other ", set()),
        ("get --url unix:///nowhere ", set()),
    ],
)
def test_the_shell_completes_commands_states_and_the_ids_that_fit(
    cli, listed, url, prefix, monkeypatch, typed, offered
):
    words = ["sandbox-redis", "--url", url, "--prefix", prefix, *typed.split(" ")]
    monkeypatch.setenv("COMP_WORDS", shlex.join(words[:-1]) + " " + words[-1])
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_SANDBOX_REDIS_COMPLETE", "complete_bash")
    ran = cli(where=False)
    found = set(ran.out.split())
    assert (ran.status, ran.err) == (0, "")
    assert found >= offered if typed == "" else found == offered


def test_bash_completes_with_the_script_that_is_shown():
    if not shutil.which("bash"):
        pytest.skip("no bash is installed")
    script = """
        eval "$(sandbox-redis --show-completion)"
        COMP_WORDS=(sandbox-redis st) COMP_CWORD=1
        _sandbox_redis_completion sandbox-redis
        echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    assert done.stdout.split() == ["start", "stop", "states"]


# -- processes


def test_exit_statuses_reach_the_shell(shell, store):
    store.create(sandbox_id="a")
    assert shell("get", "a").status == 0
    assert_one_line(shell("get", "b"), 1, "'b'")
    assert_one_line(shell("get"), 2)
    assert_one_line(shell("get", "a", SANDBOX_REDIS_URL="unix:///nowhere"), 3)


def test_the_installed_program_is_the_same():
    program = Path(sys.executable).parent / "sandbox-redis"
    assert subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.endswith(
        f"{__version__}\n"
    )


@pytest.mark.parametrize(
    ("command", "unbuffered"), [("ls -q", ""), ("ls --json", "1"), ("--version", "1"), ("--help", ""), ("--help", "1")]
)
def test_a_reader_that_has_gone_is_no_error(shell, store, command, unbuffered):
    store.load("a", Status(State.READY))
    reading, writing = os.pipe()
    os.close(reading)
    ran = shell(*command.split(), stdout=writing, PYTHONUNBUFFERED=unbuffered)
    os.close(writing)
    assert (ran.status, ran.err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_one_line(shell):
    full = os.open("/dev/full", os.O_WRONLY)
    ran = shell("--version", stdout=full)
    os.close(full)
    assert_one_line(ran, 74, "No space left")


def test_what_the_output_cannot_encode_is_escaped(shell, store):
    store.load("a", Status(State.READY), metadata=Metadata(name="wéb"))
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert r"w\xe9b" in shell("ls", **ascii_only).out
    assert shell("get", "a", "--json", **ascii_only).json["metadata"]["name"] == "wéb"


def test_a_terminal_gets_colours_unless_it_wants_none(terminal, shell, store):
    store.load("a", Status(State.READY))
    assert "\x1b[32mREADY" in terminal("ls")
    assert "\x1b[32mREADY" in terminal("get", "a")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", terminal("ls", NO_COLOR="1"))
    assert "\x1b" not in shell("ls").out
    assert "─" not in shell("ls").out


def test_more_rows_than_anybody_looks_at_come_fast_and_plain(cli, listed, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "─" in cli("ls").out
    monkeypatch.setattr(show, "ROWS_MAX", 3)
    assert "─" not in cli("ls").out


def test_an_id_is_shortened_only_where_the_terminal_is_too_narrow(terminal, shell, store):
    store.load(LONG_ID, Status(State.NOTREADY), metadata=Metadata(name="a-name"), node="node-1")
    assert LONG_ID in terminal("ls", width=200)
    narrow = re.sub(r"\x1b\[[0-9;]*m", "", terminal("ls", width=80))
    assert LONG_ID not in narrow
    assert re.search(rf"^{LONG_ID[:12]}[0-9a-f]*…\s+a-name\s+node-1\s+NOTREADY", narrow, re.MULTILINE)
    assert max(map(len, narrow.splitlines())) <= 80
    assert LONG_ID in shell("ls", COLUMNS="40").out


def test_help_is_there_before_redis_is_imported(shell):
    code = "import sys; from sandbox_redis.cli import main; status = main(['ls', '--help']); sys.exit('redis' in sys.modules or status)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_how_to_install_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from sandbox_redis.cli import main; sys.exit(main(['ls']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert_one_line(Ran(done.returncode, done.stdout, done.stderr), 2, missing, "pip install 'sandbox-redis[cli]'")
