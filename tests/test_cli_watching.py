"""The commands that go on: `watch`, `wait`, `ls --watch`. In this process for speed; in one of their own where signals,
pipes, terminals and outages are what it is about. The fixtures of ``test_cli.py`` are used here.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
import test_cli
from test_cli import LONG_ID, Ran, assert_one_line
from test_cli_reading import plain

from sandbox_redis import AsyncSandboxStore, InvalidArgumentError, Metadata, SandboxStore, State, Status
from sandbox_redis.cli import following, live, shape, since, text

url, store, cli, raw = test_cli.url, test_cli.store, test_cli.cli, test_cli.raw

READY, NOTREADY = Status(State.READY), Status(State.NOTREADY)
EXITED = Status(State.NOTREADY, exited_at_ns=1, exit_status=3)


class Running:
    """A command line in a process of its own, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], out: int, err: int) -> None:
        self.process = process
        self.printed = {out: b"", err: b""}
        self._out, self._err = out, err
        self.readers = [threading.Thread(target=self._read, args=(each,)) for each in {out, err}]
        for reader in self.readers:
            reader.start()

    def _read(self, number: int) -> None:
        with os.fdopen(number, "rb", 0) as file:
            while True:
                try:
                    part = file.read(65536)
                except OSError:  # how Linux says that the other side of a terminal is closed
                    break
                if not part:
                    break
                self.printed[number] += part

    @property
    def out(self) -> str:
        return self.printed[self._out].decode()

    @property
    def err(self) -> str:
        return self.printed[self._err].decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit status, when all that it has printed is here."""
        status = self.process.wait(30)
        for reader in self.readers:
            reader.join(30)
        return status


@pytest.fixture
def begin(url, prefix) -> Iterator[Callable[..., Running]]:
    """Begins command lines, each in a process of its own."""
    with ExitStack() as stack:

        def run(*arguments: str, where: str = url, tty: tuple[int, int] | None = None, **environment: str) -> Running:
            env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
            env |= {"SANDBOX_REDIS_URL": where, "TERM": "xterm-256color", **environment}
            if tty:
                (out, theirs), err, errs = pty.openpty(), -1, -1
                termios.tcsetwinsize(theirs, tty)
                err, errs = out, theirs
            else:
                (out, theirs), (err, errs) = os.pipe(), os.pipe()
            command = [sys.executable, "-m", "sandbox_redis.cli", "--prefix", prefix, *arguments]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=errs, env=env)
            for each in {theirs, errs}:
                os.close(each)
            running = Running(process, out, err)
            stack.callback(running.end)
            stack.callback(process.kill)
            return running

        yield run


@pytest.fixture
def blocked(raw) -> Callable[[], int]:
    """How many clients wait for events."""
    return lambda: sum("b" in client["flags"] for client in raw.client_list())


@pytest.fixture
def meanwhile(cli, blocked, until) -> Callable[..., Ran]:
    """Runs a command line in this process, and does something while it waits. It is asked to end when it has printed
    `end`; without, it ends by itself."""

    def run(act: Callable[[], object], *arguments: object, end: str | None = None) -> Ran:
        def thread() -> None:
            try:
                until(blocked)
                act()
                if end is not None:
                    until(lambda: end in sys.stdout.getvalue())
            finally:
                if end is not None and callable(signal.getsignal(signal.SIGTERM)):
                    os.kill(os.getpid(), signal.SIGTERM)

        acting = threading.Thread(target=thread)
        acting.start()
        ran = cli(*arguments)
        acting.join()
        return ran

    return run


def rows(ran: Ran) -> list[list[str]]:
    """The cells of the rows below the headings."""
    return [line.split() for line in ran.out.splitlines()[1:]]


def jsons(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture
def life(store) -> list[str]:
    """A few things that happened, as ``ID TRANSITION``."""
    store.create(sandbox_id="web-0", node="n1", metadata=Metadata(namespace="ns", labels={"app": "web"}))
    store.start("web-0", pid=42)
    store.load("db-0", READY, node="n2")
    store.exit("web-0", exit_status=137)
    store.stop("db-0")
    store.remove("web-0")
    return ["web-0 create", "web-0 start", "db-0 load", "web-0 exit", "db-0 stop", "web-0 remove"]


def happened(ran: Ran) -> list[str]:
    assert ran.status == 0, ran
    return [f"{row[1]} {row[2]}" for row in rows(ran)]


# -- watch: what it prints


def test_watch_prints_a_line_for_each_event_with_the_same_columns_everywhere(cli, life):
    ran = cli("watch", "--since", "1h", "--count", 6)
    assert ran.out.splitlines()[0].split() == ["TIME", "ID", "EVENT", "CHANGE", "NODE", "PID", "EXIT", "BY"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[0]) for row in rows(ran))
    assert [" ".join(row[1:]) for row in rows(ran)] == [
        "web-0 create absent -> INIT n1 - - test",
        "web-0 start INIT -> READY n1 42 - test",
        "db-0 load absent -> READY n2 - - test",
        "web-0 exit READY -> NOTREADY n1 - 137 test",
        "db-0 stop READY -> NOTREADY n2 - - test",
        "web-0 remove NOTREADY -> gone - - - test",
    ]
    changes = {line.index(f"{row[3]} ->") for line, row in zip(ran.out.splitlines()[1:], rows(ran), strict=True)}
    assert changes == {ran.out.index("CHANGE")}
    assert (ran.status, ran.err) == (0, "")


def test_columns_grow_with_what_comes(cli, store):
    store.load("a", READY)
    store.load(LONG_ID, READY)
    store.load("b", READY)
    first, second, third = cli("watch", "--since", "1h", "--count", 3, "--no-headers").out.splitlines()
    assert first.index("load") < second.index("load") == third.index("load")


def test_a_value_in_an_event_is_one_word_and_cannot_steer_a_terminal(cli, url, prefix):
    with SandboxStore.from_url(url, prefix=prefix, agent="two words\x1b[2J") as store:
        store.create(sandbox_id="a")
    assert rows(cli("watch", "--since", "1h", "--count", 1))[0][-1] == r"two\x20words\x1b[2J"


def test_each_line_of_json_is_an_event_and_the_cursor_behind_it(cli, store, life):
    ran = cli("watch", "--since", "1h", "--count", 6, "--json")
    events = jsons(ran.out)
    whole = [shape.event(event) for each in ("web-0", "db-0") for event in store.history(each)]
    assert [{k: v for k, v in event.items() if k != "cursor"} for event in events] == sorted(
        whole, key=lambda event: [int(part) for part in event["revision"].split("-")]
    )
    for number, event in enumerate(events[:-1]):
        rest = cli("watch", "--since", event["cursor"], "--count", 5 - number, "--json")
        assert jsons(rest.out) == events[number + 1 :]


def test_an_event_of_a_store_with_partitions_has_a_cursor_to_go_on_from(cli, url, prefix):
    with SandboxStore.from_url(url, prefix=prefix, partitions=3) as store:
        for number in range(20):
            store.load(f"s-{number}", READY)
    events = jsons(cli("watch", "--since", "1h", "--count", 20, "--json").out)
    assert sorted(event["id"] for event in events) == sorted(f"s-{number}" for number in range(20))
    rest = cli("watch", "--since", events[9]["cursor"], "--count", 10, "--json")
    assert {event["id"] for event in jsons(rest.out)} == {event["id"] for event in events[10:]}
    assert_one_line(cli("watch", "--since", "1-0"), 2, "3 partitions")


# -- watch: which events


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--node n1", [0, 1, 3, 5]),
        ("--node n2", [2, 4]),
        ("--state INIT", [0, 1]),
        ("--state notready --node n1", [3, 5]),
        ("--state INIT --state NOTREADY", [0, 1, 3, 4, 5]),
        ("web-0", [0, 1, 3, 5]),
        ("web-0 --exact", [0, 1, 3, 5]),
        ("db", [2, 4]),
        ("db-0 --state NOTREADY", [4]),
    ],
)
def test_watch_tells_what_fits_in_all_that_is_asked_for(cli, life, options, expected):
    ran = cli("watch", *options.split(), "--since", "1h", "--count", len(expected))
    assert happened(ran) == [life[number] for number in expected]


def test_without_since_it_begins_now(meanwhile, store, life):
    assert happened(meanwhile(lambda: store.load("new", READY), "watch", "--count", 1)) == ["new load"]


def test_the_beginning_of_an_id_is_the_id_that_is_there_when_the_watch_begins(meanwhile, store):
    store.load("web-0", READY)

    def act() -> None:
        store.load("web-1", READY)
        store.stop("web-0")

    assert happened(meanwhile(act, "watch", "web", "--count", 1)) == ["web-0 stop"]


def test_a_sandbox_that_is_not_there_yet_can_be_watched(meanwhile, cli, store):
    assert happened(meanwhile(lambda: store.create(sandbox_id="a"), "watch", "a", "--count", 1)) == ["a create"]
    store.create(sandbox_id="ab")
    store.create(sandbox_id="ac")
    assert happened(cli("watch", "a", "--count", 1, "--since", "1h")) == ["a create"]
    store.fail_start("a")
    assert_one_line(cli("watch", "a"), 1, "ab, ac")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-l app=web", ["a create", "c load", "a start", "c remove"]),
        ("--namespace ns", ["a create", "b load", "a start"]),
        ("-l app=web --namespace ns", ["a create", "a start"]),
        ("-l app=web --node n1", ["a create", "a start"]),
        ("-l app=web --state NOTREADY", ["c load", "c remove"]),
        ("-l app=web c", ["c load", "c remove"]),
    ],
)
def test_labels_and_namespaces_choose_among_what_happens_from_now_on(meanwhile, store, options, expected):
    web = Metadata(labels={"app": "web"})
    store.load("before", NOTREADY, node="n1", metadata=Metadata(namespace="ns", labels={"app": "web"}))

    def act() -> None:
        store.create(sandbox_id="a", node="n1", metadata=Metadata(namespace="ns", labels={"app": "web"}))
        store.load("b", READY, metadata=Metadata(namespace="ns"))
        store.load("c", EXITED, metadata=web)
        store.start("a", pid=1)
        store.remove("c")

    ran = meanwhile(act, "watch", *options.split(), "--count", len(expected))
    assert happened(ran) == expected


def test_with_labels_every_event_of_json_has_the_metadata(meanwhile, store):
    store.create(sandbox_id="a", metadata=Metadata(labels={"app": "web"}))
    (event,) = jsons(meanwhile(lambda: store.start("a", pid=1), "watch", "-l", "app=web", "--count", 1, "--json").out)
    assert event["sandbox"]["metadata"]["labels"] == {"app": "web"}
    assert event["sandbox"]["pid"] == 1


@pytest.mark.parametrize("which", ["-l app=web", "--namespace ns"])
@pytest.mark.parametrize("option", ["--since 1h", "--cursor-file seen"])
def test_with_labels_a_watch_can_only_begin_now(cli, which, option):
    assert_one_line(cli("watch", *which.split(), *option.split()), 2, option.split()[0], "begins now")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--count 0", "--count"),
        ("--state ROTTEN", "INIT, READY, NOTREADY, UNKNOWN"),
        ("--node n/1", "'n/1'"),
        ("--node n/1 -l app=web", "'n/1'"),
        ("a/b", "'a/b'"),
        ("-l app", "exact labels"),
        ("a b", "(b)"),
    ],
)
def test_what_watch_does_not_know_is_wrong_usage(cli, wrong, said):
    assert_one_line(cli("watch", *wrong.split()), 2, said)


# -- watch: where it begins


def test_since_may_be_a_revision_a_cursor_a_time_or_so_long_ago(cli, store, raw, prefix):
    now = datetime.now(UTC)
    for seconds, name in ((7200, "old"), (1800, "middle"), (10, "new")):
        at = int((now - timedelta(seconds=seconds)).timestamp() * 1000)
        fields = {"id": name, "transition": "create", "state": "INIT", "by": "test", "request": name}
        raw.xadd(f"{prefix}:{{0}}:events", fields, id=f"{at}-0")
    hour = (now - timedelta(hours=1)).isoformat()
    for written in ("1h", "60m", "0.5h1800s", "3600", hour, hour.replace("+00:00", "Z")):
        assert happened(cli("watch", "--since", written, "--count", 2)) == ["middle create", "new create"], written
    middle = f"{int((now - timedelta(seconds=1800)).timestamp() * 1000)}-0"
    assert happened(cli("watch", "--since", middle, "--count", 1)) == ["new create"]
    assert happened(cli("watch", "--since", "0-0", "--count", 3))[0] == "old create"
    raw.delete(f"{prefix}:{{0}}:events")


@pytest.mark.parametrize(
    "written",
    ["", "yesterday", "10", "1.5h", "1h30m", "500ms", "2d", "5-0", "5-0,6-1", "1970-01-01T00:00:00Z"],
)
def test_what_is_no_place_is_told_from_what_is(written):
    if written in ("", "yesterday"):
        with pytest.raises(InvalidArgumentError, match="--since"):
            since.place(written)
    else:
        found = since.place(written)
        assert found == written if re.fullmatch(r"[\d,-]+-[\d]+", written) else found.tzinfo is UTC


@pytest.mark.parametrize(
    "written", ["10x", "-5m", "5m3", "m", "1-", "1-0,", "2026-02-31T00:00:00Z", "9" * 400, "99999999999d", "1 h"]
)
def test_what_is_no_place_is_wrong_usage(cli, written):
    assert_one_line(cli("watch", f"--since={written}", "--url", "unix:///nowhere"), 2, "--since", "10m")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("0", 0), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1d", 86400), ("250ms", 0.25), ("1m5s", 65)],
)
def test_durations_are_read_as_they_are_printed_and_as_plain_seconds(written, seconds):
    assert text.duration("--timeout", written) == seconds
    if seconds >= 1:
        assert text.duration("--timeout", text.span(int(seconds) * 10**9)) == int(seconds)


def test_events_that_are_gone_are_an_error_that_says_what_to_do(cli, url, prefix, raw, tmp_path):
    with SandboxStore.from_url(url, prefix=prefix, events_maxlen=10) as store:
        store.create(sandbox_id="a")
        store.start("a", pid=1)
        for _ in range(300):
            store.stop("a", exit_status=1)
            store.remove("a")
            store.load("a", READY)
    raw.xtrim(f"{prefix}:{{0}}:events", maxlen=10, approximate=False)
    ran = cli("watch", "--since", "1h")
    assert_one_line(ran, 1, "trimmed", "'sandbox-redis ls'", "leave --since out")
    file = tmp_path / "seen"
    file.write_text("1-0\n")
    assert_one_line(cli("watch", "--cursor-file", file), 1, "'1-0'", "trimmed", f"delete {file}")
    assert file.read_text() == "1-0\n"


def test_a_server_that_has_lost_data_ends_the_watch(cli, own_server, until):
    server = own_server(port=0)
    with SandboxStore.from_url(server.url) as store, redis.Redis.from_url(server.url) as client:
        for _ in range(5):
            store.create()

        def flush() -> None:
            until(lambda: any("b" in each["flags"] for each in client.client_list()))
            client.flushall()

        flushing = threading.Thread(target=flush)
        flushing.start()
        ran = cli("watch", "--url", server.url, "--prefix", "sandbox")
        flushing.join()
    assert_one_line(ran, 1, "lost data", "'sandbox-redis ls'")


@pytest.mark.parametrize("command", ["watch", "watch a", "watch -l a=b", "wait a", "ls -w"])
def test_a_store_that_is_away_from_the_start_is_an_error(cli, command):
    assert_one_line(cli("--url", "unix:///nowhere", *command.split()), 3, "/nowhere")


# -- watch: the cursor file


def test_the_next_watch_goes_on_where_the_last_one_ended(cli, store, life, tmp_path):
    file = tmp_path / "seen"
    assert happened(cli("watch", "--since", "1h", "--cursor-file", file, "--count", 2)) == life[:2]
    assert happened(cli("watch", "--cursor-file", file, "--count", 3)) == life[2:5]
    (last,) = jsons(cli("watch", "--cursor-file", file, "--count", 1, "--json").out)
    assert file.read_text() == f"{last['cursor']}\n"
    assert list(tmp_path.iterdir()) == [file]


def test_since_counts_more_than_the_cursor_file(cli, life, tmp_path):
    file = tmp_path / "seen"
    cli("watch", "--since", "1h", "--cursor-file", file, "--count", 4)
    assert happened(cli("watch", "--since", "1h", "--cursor-file", file, "--count", 1)) == life[:1]
    assert happened(cli("watch", "--cursor-file", file, "--count", 1)) == life[1:2]


def test_a_watch_that_has_nothing_to_tell_keeps_its_place_too(meanwhile, store, life, tmp_path, until):
    """Else the events of others could be trimmed behind it, and it could not go on."""
    file = tmp_path / "seen"
    newest = store.audit().events[-1].revision

    def act() -> None:
        assert until(file.exists)
        assert file.read_text() == f"{newest}\n"
        store.load("other", READY, node="n2")
        revision = store.get("other").revision
        until(lambda: file.read_text() == f"{revision}\n")
        store.load("mine", READY, node="n9")

    assert happened(meanwhile(act, "watch", "--node", "n9", "--cursor-file", file, "--count", 1)) == ["mine load"]


@pytest.mark.parametrize("content", ["", "\n", "nonsense", "1-0 2-0", "1h", "\x00\xff"])
def test_a_cursor_file_that_holds_no_cursor_is_refused_and_left_alone(cli, tmp_path, content):
    file = tmp_path / "seen"
    file.write_bytes(content.encode("latin-1"))
    assert_one_line(cli("watch", "--cursor-file", file), 2, "--cursor-file", "no cursor", "delete it")
    assert file.read_bytes() == content.encode("latin-1")


def test_what_is_no_file_is_never_replaced_by_one(cli, tmp_path):
    for path in (tmp_path, Path(os.devnull)):
        assert_one_line(cli("watch", "--cursor-file", path), 2, "--cursor-file", str(path))
    assert not Path(os.devnull).is_file()


def test_a_link_to_a_cursor_file_stays_one(cli, life, tmp_path):
    file, link = tmp_path / "seen", tmp_path / "link"
    link.symlink_to(file)
    cli("watch", "--since", "1h", "--cursor-file", link, "--count", 1)
    assert link.is_symlink()
    assert happened(cli("watch", "--cursor-file", link, "--count", 1)) == life[1:2]
    assert happened(cli("watch", "--cursor-file", file, "--count", 1)) == life[2:3]


def test_a_cursor_file_that_cannot_be_written_is_one_line(begin, tmp_path, life):
    running = begin("watch", "--since", "1h", "--cursor-file", str(tmp_path / "none" / "seen"), "--count", "1")
    assert_one_line(Ran(running.end(), running.out, running.err), 74, "No such file", str(tmp_path))


def test_who_is_killed_again_and_again_misses_nothing(begin, store, tmp_path, until):
    """Some events may come twice. They are made as they are read, so that the kills hit each place."""
    arguments = ("watch", "--json", "--cursor-file", str(tmp_path / "seen"))
    runs, made, over = [begin(*arguments)], [], threading.Event()
    until((tmp_path / "seen").exists)

    def make() -> None:
        while not over.is_set():
            if len(made) < sum(len(run.lines) for run in runs) + 200:
                made.append(store.create().id)

    making = threading.Thread(target=make)
    making.start()
    try:
        for _ in range(3):
            until(lambda: len(runs[-1].lines) > 50)
            runs[-1].send(signal.SIGKILL)
            runs.append(begin(*arguments))
    finally:
        over.set()
        making.join()
    until(lambda: runs[-1].out.endswith("\n") and jsons(runs[-1].out)[-1]["id"] == made[-1])
    runs[-1].send(signal.SIGTERM)
    assert [run.end() for run in runs] == [-9, -9, -9, 143]
    seen = [event["id"] for run in runs for event in jsons(run.out[: run.out.rfind("\n") + 1])]
    assert list(dict.fromkeys(seen)) == made


# -- wait


def test_wait_prints_what_has_come(cli, store):
    store.load("a", EXITED)
    assert cli("wait", "a") == Ran(0, "a NOTREADY\n", "")
    assert cli("wait", "a", "--json").json == shape.record(store.get("a"))
    assert cli("wait", "a", "--for", "READY", "--for", "unknown,NotReady").out == "a NOTREADY\n"


@pytest.mark.parametrize(
    ("before", "act", "options", "printed"),
    [
        ("INIT", lambda store: store.start("a", pid=1), "--for READY", "READY"),
        ("READY", lambda store: store.exit("a", exit_status=1), "", "NOTREADY"),
        ("READY", lambda store: store.remove("a", force=True), "", "NOTREADY"),
        ("READY", lambda store: store.remove("a", force=True), "--for gone", "gone"),
        ("READY", lambda store: store.remove("a", force=True), "--for Gone,NOTREADY", "NOTREADY"),
        ("INIT", lambda store: store.fail_start("a"), "--for ready,gone", "gone"),
    ],
)
def test_wait_waits_for_what_is_asked_for_even_if_it_is_for_a_moment_only(
    meanwhile, store, before, act, options, printed
):
    store.create(sandbox_id="a") if before == "INIT" else store.load("a", READY)
    assert meanwhile(lambda: act(store), "wait", "a", *options.split()) == Ran(0, f"a {printed}\n", "")


def test_a_sandbox_that_is_not_there_or_goes_away_before_is_refused(cli, meanwhile, store):
    assert_one_line(cli("wait", "a"), 1, "'a' does not exist")
    assert cli("wait", "a", "--for", "gone") == Ran(0, "a gone\n", "")
    assert cli("wait", "a", "--for", "gone", "--json").json == {"id": "a", "removed": True}
    store.create(sandbox_id="a")
    ran = meanwhile(lambda: store.fail_start("a"), "wait", "a", "--for", "READY,NOTREADY")
    assert_one_line(ran, 1, "'a' does not exist", "has been removed")
    assert ran.out == ""


def test_of_several_wait_waits_for_all_and_prints_each_in_its_time(meanwhile, store, until):
    for name in ("job-1", "job-2", "other"):
        store.load(name, READY)
    store.load("done", EXITED)

    def act() -> None:
        until(lambda: sys.stdout.getvalue() == "done NOTREADY\n")
        for name in ("other", "job-2", "job-1"):
            store.stop(name)

    ran = meanwhile(act, "wait", "job-1", "job-2", "done", "o")
    assert ran == Ran(0, "done NOTREADY\nother NOTREADY\njob-2 NOTREADY\njob-1 NOTREADY\n", "")


def test_the_worst_of_several_decides_and_what_has_come_is_printed(cli, store):
    store.load("a", EXITED)
    store.load("b", READY)
    ran = cli("wait", "b", "a", "c", "--timeout", "1s")
    assert (ran.status, ran.out) == (124, "a NOTREADY\n")
    assert re.findall(r"sandbox '(.)'", ran.err) == ["b", "c"]
    ran = cli("wait", "c", "a", "--json")
    assert (ran.status, [record["id"] for record in ran.json]) == (1, ["a"])
    assert cli("wait", "a", "c", "--for", "gone,NOTREADY", "--json").json == [
        shape.record(store.get("a")),
        {"id": "c", "removed": True},
    ]


def test_a_wait_in_vain_ends_with_124(cli, store):
    store.load("a", READY)
    assert_one_line(cli("wait", "a", "--timeout", "0.05"), 124, "'a' was not NOTREADY or gone within 0.05 s")
    assert_one_line(cli("wait", "a", "--timeout", "50ms", "--for", "INIT,unknown"), 124, "INIT or UNKNOWN or gone")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("a --for ROTTEN", "UNKNOWN, gone"),
        ("a --for READY,", "--for"),
        ("a --timeout soon", "--timeout"),
        ("a --timeout 0", "above 0"),
        ("a --timeout 1000000d", "timeout"),
        ("a --exit-status --for READY", "NOTREADY"),
        ("a/b", "'a/b'"),
        ("", "ID"),
    ],
)
def test_what_wait_does_not_know_is_wrong_usage(cli, store, wrong, said):
    store.load("a", EXITED)
    assert_one_line(cli("wait", *wrong.split()), 2, said)


def test_the_timeout_before_wait_is_that_of_the_store(cli, store, monkeypatch):
    given = []
    for face in (SandboxStore, AsyncSandboxStore):
        real = face.from_url
        monkeypatch.setattr(face, "from_url", lambda real=real, **settings: given.append(settings) or real(**settings))
    store.load("a", EXITED)
    assert cli("--timeout", "7", "wait", "a", "--timeout", "1m").status == 0
    assert [settings["timeout"] for settings in given] == [7, 7]
    given.clear()
    cli("wait", "a", "--timeout", "1m")
    assert ["timeout" in settings for settings in given] == [False, False]


def test_the_exit_status_can_be_that_of_the_sandbox(cli, store):
    for name, exit_status in (("zero", 0), ("three", 3), ("many", 2**31)):
        store.load(name, Status(State.NOTREADY, exited_at_ns=1, exit_status=exit_status))
        assert cli("wait", name, "--exit-status") == Ran(min(exit_status, 255), f"{name} NOTREADY\n", "")
    assert cli("wait", "zero", "three", "--exit-status").status == 3
    store.load("runs", READY)
    assert cli("wait", "runs", "--exit-status", "--for", "READY,NOTREADY").status == 0
    store.stop("runs")
    ran = cli("wait", "runs", "--exit-status")
    assert_one_line(ran, 1, "'runs'", "exit status")
    assert ran.out == "runs NOTREADY\n"


def test_wait_takes_beginnings_of_ids(cli, store):
    store.load("web-0", EXITED)
    assert cli("wait", "w").out == "web-0 NOTREADY\n"
    assert_one_line(cli("wait", "w", "--exact"), 1, "'w'")
    store.load("web-1", EXITED)
    assert_one_line(cli("wait", "w"), 1, "web-0, web-1")


# -- ls --watch, off a terminal


def test_behind_the_listing_comes_a_line_for_each_change(meanwhile, store):
    store.load("b", READY, node="n1", metadata=Metadata("name-b"))
    store.load("a", Status(State.READY, pid=7))

    def act() -> None:
        store.exit("b", exit_status=3)
        store.remove("b")
        store.create(sandbox_id="c")
        store.start("c", pid=8)

    ran = meanwhile(act, "ls", "--watch", "--columns", "id,name,node,state,pid,exit", end="c ")
    assert ran.out.splitlines()[0].split() == ["ID", "NAME", "NODE", "STATE", "PID", "EXIT"]
    assert [" ".join(row) for row in rows(ran)] == [
        "a - - READY 7 -",
        "b name-b n1 READY - -",
        "b name-b n1 NOTREADY - 3",
        "b name-b n1 gone - 3",
        "c - - READY 8 -",
    ]
    assert (ran.status, ran.err) == (143, "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-q --sort -id", ["n", "m", "b", "m", "b", "m", "new"]),
        ("-q --state READY", ["b", "m", "b", "m", "new"]),
        ("-q -l app=web", ["m", "m", "m", "new"]),
        ("-q --all --node n1", ["n", "new", "new"]),
        ("--no-headers --columns id", ["b", "m", "n", "b", "m", "m", "new"]),
    ],
)
def test_ls_watch_shows_what_ls_does(meanwhile, store, options, expected):
    web = Metadata(labels={"app": "web"})
    store.load("b", READY)
    store.load("m", READY, metadata=web)
    store.load("n", NOTREADY, node="n1")

    def act() -> None:
        store.stop("b")
        store.remove("m", force=True)
        store.create(sandbox_id="new", node="n1", metadata=web)
        store.start("new", pid=1)

    ran = meanwhile(act, "ls", "-w", *options.split(), end="new\nnew\n" if "--all" in options else "new\n")
    assert (ran.status, sorted(ran.out.split()[3:]), ran.out.split()[:2]) == (143, sorted(expected[3:]), expected[:2])


def test_one_that_leaves_the_states_asked_for_is_shown_once_more(meanwhile, store):
    store.load("a", READY)
    store.load("b", NOTREADY)

    def act() -> None:
        store.stop("a")
        store.remove("a")
        store.remove("b")
        store.create(sandbox_id="c")
        store.fail_start("c")
        store.load("d", READY)

    ran = meanwhile(act, "ls", "-w", "--state", "READY", "--columns", "id,state", end="d ")
    assert rows(ran) == [["a", "READY"], ["a", "NOTREADY"], ["d", "READY"]]


def test_each_line_of_json_is_a_sandbox_or_says_that_it_is_gone(meanwhile, store):
    store.load("a", READY, metadata=Metadata(labels={"app": "web"}))
    was = shape.record(store.get("a"))
    stopped = []

    def act() -> None:
        stopped.append(shape.record(store.stop("a")))
        store.remove("a")

    assert jsons(meanwhile(act, "ls", "-w", "--json", end="removed").out) == [
        was,
        *stopped,
        {"id": "a", "removed": True},
    ]
    ran = meanwhile(lambda: (store.create(sandbox_id="b"), store.fail_start("b")), "ls", "-aw", "--json", end="removed")
    assert [line.get("state") for line in jsons(ran.out)] == ["INIT", None]


def test_one_that_fails_to_start_is_gone_though_it_was_never_listed(meanwhile, store):
    store.create(sandbox_id="a", node="n1")
    ran = meanwhile(
        lambda: store.fail_start("a"), "ls", "-w", "--state", "INIT", "--columns", "id,node,state", end="gone"
    )
    assert rows(ran) == [["a", "n1", "INIT"], ["a", "n1", "gone"]]


def test_with_watch_there_is_no_limit(cli):
    assert_one_line(cli("ls", "--watch", "--limit", 5), 2, "--limit", "--watch")
    assert_one_line(cli("ls", "-w", "--sort", "size"), 2, "--sort")
    assert_one_line(cli("ls", "-w", "-l", "app"), 2, "--selector")


# -- ls --watch, on a terminal


def frames(running: Running) -> list[list[str]]:
    """The lines of each whole picture."""
    pictures = running.out.split("\x1b[H")[1:]
    return [plain(each).replace("\x1b[K", "").split("\x1b[J")[0].splitlines() for each in pictures if "\x1b[J" in each]


def shows(running: Running, *lines: str) -> Callable[[], bool]:
    """Whether the newest picture has lines that begin so, in this order."""

    def look() -> bool:
        newest = iter(frames(running)[-1] if frames(running) else ())
        return all(any(each.startswith(line) for each in newest) for line in lines)

    return look


def test_on_a_terminal_the_table_is_kept_current_in_place(begin, own_server, until):
    server = own_server(port=0)
    with SandboxStore.from_url(server.url) as store:
        for number in range(3):
            store.load(f"s-{number}", READY)
        store.create(sandbox_id="hidden")
        running = begin("--prefix", "sandbox", "ls", "--watch", where=server.url, tty=(8, 60))
        until(shows(running, "s-0", "s-1", "s-2"))
        first = frames(running)[-1]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  3 sandboxes, 1 more in INIT", first[0])
        assert first[1].split() == ["ID", "NAME", "NODE", "STATE", "PID", "AGE", "EXIT"]
        store.remove("s-1", force=True)
        until(shows(running, "s-0", "s-2"))
        for number in range(3, 9):
            store.load(f"s-{number}", NOTREADY)
        until(shows(running, "s-0", "s-2", "… 5 more"))
        assert len(frames(running)[-1]) == 7, "the cursor needs a line, too"
        server.stop()
        until(lambda: "stale since 2" in frames(running)[-1][0])
        server.start()
        until(lambda: "stale" not in frames(running)[-1][0])
        until(lambda: " 0 sandboxes" in frames(running)[-1][0])
    running.send(signal.SIGINT)
    assert running.end() == 130
    assert running.out.endswith("\x1b[J\x1b[?25h"), "the cursor is shown again, below the last picture"
    assert all(len(line) <= 60 for picture in frames(running) for line in picture)


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(begin, store, until):
    store.load("a", READY)
    running = begin("ls", "-w", "--columns", "id,state", tty=(24, 80), TERM="dumb")
    until(lambda: len(running.lines) >= 2)
    store.stop("a")
    until(lambda: "NOTREADY" in running.out)
    running.send(signal.SIGINT)
    assert running.end() == 130
    assert "\x1b[H" not in running.out


@pytest.fixture
def terminal(monkeypatch) -> Callable[..., None]:
    """Makes rich believe in a terminal of that size."""

    def size(width: int, height: int = 24, **environment: str) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        settings = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(width), "LINES": str(height)}
        for name, value in {**settings, **environment}.items():
            monkeypatch.setenv(name, value)

    return size


@pytest.mark.parametrize("width", [12, 30, 60, 100, 300])
@pytest.mark.parametrize("wide", [False, True])
def test_each_row_of_a_picture_is_one_line_of_the_terminal(terminal, store, width, wide):
    from sandbox_redis.cli.columns import COLUMNS, USUAL, as_they_come, chosen

    terminal(width)
    for number in range(30):
        metadata = Metadata("a name of many words " * 3, labels={"日本": "x y" * number})
        store.load(f"{LONG_ID}{number}", READY, node="a-node", metadata=metadata)
    shown = chosen("--columns", COLUMNS if wide else USUAL)
    listing = live.Listing(tuple(State), {}, as_they_come, shown, headers=True)
    with store.mirror() as mirror:
        lines = live._picture(mirror, listing, 12)
        assert len(lines) == 11
        assert all(len(plain(line)) <= width for line in lines)
        assert plain(lines[-1]) == "… 23 more"[:width]
        assert ("\x1b[32mREADY" in "".join(lines)) is (width >= 60), "names and nodes are shortened before"
        bare = live._picture(mirror, live.Listing(tuple(State), {}, as_they_come, shown, headers=False), 100)
        assert len(bare) == 31
        for height in range(1, 5):
            assert len(live._picture(mirror, listing, height)) <= max(0, height - 1)


def test_on_a_terminal_a_line_of_watch_has_colours_and_a_short_id_where_it_must(terminal, cli, store):
    store.load(LONG_ID, READY, node="n1")
    terminal(80)
    printed = cli("watch", "--since", "1h", "--count", 1).out
    assert "\x1b[32mabsent -> READY" in printed
    assert re.search(r"Z  0123456789a…  load ", plain(printed))
    assert len(printed.splitlines()) == 2
    terminal(300)
    assert LONG_ID in cli("watch", "--since", "1h", "--count", 1).out
    terminal(300, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", cli("watch", "--since", "1h", "--count", 1).out)


# -- how they end


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_what_goes_on_quietly(begin, store, blocked, until, number, status):
    store.load("a", READY)
    running = [begin("watch", "--no-headers"), begin("wait", "a"), begin("ls", "-w", "-q")]
    until(lambda: blocked() == 3)
    for each in running:
        each.send(number)
    assert [(each.end(), each.out, each.err) for each in running] == [
        (status, "", ""),
        (status, "", ""),
        (status, "a\n", ""),
    ]


def test_a_signal_ends_a_watch_whose_reader_does_not_read(url, prefix, store, until):
    with store.batch() as batch:
        for number in range(2000):
            batch.load(f"s-{number}", READY)
    command = [sys.executable, "-m", "sandbox_redis.cli", "--url", url, "--prefix", prefix, "watch", "--since", "1h"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wchan = Path(f"/proc/{process.pid}/wchan")
        if not wchan.exists():
            pytest.skip("the system does not tell what a process waits for")
        until(lambda: "pipe_w" in wchan.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        assert process.stderr.read() == b""


def test_a_signal_that_is_ignored_from_the_start_stays_so(begin, blocked, until, monkeypatch, url, prefix):
    """As in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        running = begin("watch")
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: blocked() == 1)
    running.send(signal.SIGINT)
    running.send(signal.SIGTERM)
    assert (running.end(), running.err) == (143, "")


def test_the_handlers_of_signals_are_put_back(cli, life):
    before = [signal.getsignal(each) for each in following._REQUESTS]
    cli("watch", "--since", "1h", "--count", 1)
    assert [signal.getsignal(each) for each in following._REQUESTS] == before


@pytest.mark.parametrize("command", ["watch --since 1h", "watch --json", "ls -w"])
def test_a_reader_that_has_gone_ends_it_even_when_nothing_happens(url, prefix, life, command):
    """As `| grep -m 1` does."""
    arguments = [sys.executable, "-m", "sandbox_redis.cli", "--url", url, "--prefix", prefix, *command.split()]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if "json" not in command:
            assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""


# -- outages


def test_an_outage_is_bridged_and_said_in_two_lines(begin, own_server, tmp_path, until):
    server = own_server(data=tmp_path / "data", port=0)
    with SandboxStore.from_url(server.url) as store, redis.Redis.from_url(server.url) as client:
        store.load("a", READY)
        where = {"where": server.url}
        watch = begin("--prefix", "sandbox", "watch", "--json", "--count", "2", **where)
        wait = begin("--prefix", "sandbox", "wait", "a", "--for", "gone", **where)
        ls = begin("--prefix", "sandbox", "ls", "-w", "--columns", "id,state", **where)
        until(lambda: sum("b" in each["flags"] for each in client.client_list()) == 3)
        server.stop()
        for each in (watch, wait, ls):
            until(lambda each=each: each.err.count("\n") == 1)
        server.start()
        store.remove("a", force=True)
        until(lambda: "gone" in ls.out)
        for each in (watch, wait, ls):
            until(lambda each=each: each.err.count("\n") == 2 or each.process.poll() is not None)
    ls.send(signal.SIGTERM)
    assert [watch.end(), wait.end(), ls.end()] == [0, 0, 143]
    assert [event["transition"] for event in jsons(watch.out)] == ["stop", "remove"]
    assert wait.out == "a gone\n"
    assert [line.split() for line in ls.lines] == [["ID", "STATE"], ["a", "READY"], ["a", "NOTREADY"], ["a", "gone"]]
    lost, back = ls.err.splitlines()
    assert re.match(rf"sandbox-redis: the connection to 127.0.0.1:{server.port} failed: .*; trying again$", lost)
    assert back == "sandbox-redis: the store answers again"


# -- parts


def test_a_reader_is_only_looked_at_where_there_is_one(monkeypatch):
    for output in (None, object()):
        monkeypatch.setattr(sys, "stdout", output)
        following._check_reader()


def test_a_cursor_file_is_written_only_when_the_cursor_is_another(tmp_path):
    file = since.CursorFile(tmp_path / "seen")
    file.write("1-0")
    file.path.unlink()
    file.write("1-0")
    assert not file.path.exists()
    file.write("2-0")
    assert since.CursorFile(file.path).read() == "2-0"
    assert since.CursorFile(tmp_path / "none").read() is None


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("wait a --for ", {*State, "gone"}),
        ("wait a --for READY,g", {"READY,gone"}),
        ("wait a --for not", {"notready"}),
        ("wait ", {"a", "b"}),
        ("wait a ", {"b"}),
        ("watch ", {"a", "b"}),
        ("watch --state U", {"UNKNOWN"}),
        ("watch --node ", {"n1"}),
    ],
)
def test_the_shell_completes_what_watch_and_wait_take(cli, store, url, prefix, monkeypatch, typed, offered):
    store.load("a", READY, node="n1")
    store.create(sandbox_id="b")
    words = ["sandbox-redis", "--url", url, "--prefix", prefix, *typed.split(" ")]
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_SANDBOX_REDIS_COMPLETE", "complete_bash")
    assert set(cli(where=False).out.split()) == offered
