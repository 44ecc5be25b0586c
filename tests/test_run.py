"""`run`: a real command as a sandbox. Its record is true, it does not depend on the store, and signals reach it once."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from sandbox_redis import (
    AlreadyExistsError,
    InvalidArgumentError,
    Metadata,
    NotFoundError,
    OutcomeUnknownError,
    SandboxStore,
    State,
    StoreUnavailableError,
)
from sandbox_redis.cli import run as run_module
from sandbox_redis.cli.run import run

WAITS = 'until [ -e "$0" ]; do sleep 0.01; done; exit "$1"'


@pytest.fixture
def store(servers, prefix):
    with SandboxStore(servers("valkey").url, prefix=prefix) as store:
        yield store


@pytest.fixture
def run_here(store):
    """Runs `run` in this process, with the command as `sh -c`."""

    def start(script, *arguments, **settings):
        command = ["/bin/sh", "-c", script, *map(str, arguments)] if isinstance(script, str) else script
        defaults = {"sandbox_id": "a", "node": "n1", "metadata": Metadata(), "rm": False, "give_up": 60, "quiet": True}
        return run(settings.pop("store", store), command=command, **defaults | settings)

    return start


ELSEWHERE = """
import os, signal, sys
from sandbox_redis import Metadata, SandboxStore
from sandbox_redis.cli.run import run
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)  # ignored, for example, where a shell runs the tests in the background
store = SandboxStore(sys.argv[1], prefix=sys.argv[2])
exec(sys.argv[3])
sys.exit(run(store, command=sys.argv[4:], sandbox_id="a", node="", metadata=Metadata(), rm=False, give_up=60, quiet=True))
"""


@pytest.fixture
def run_elsewhere(servers, prefix):
    """Runs `run` in a process of its own, which can be sent signals; `first` is done there before."""
    started = []

    def start(*command, first="", url=None, **settings):
        line = [sys.executable, "-c", ELSEWHERE, url or servers("valkey").url, prefix, first, *command]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(line, **pipes | settings))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def history(store: SandboxStore) -> list[str]:
    return [event.transition for event in store.audit().events]


def meanwhile(*things) -> threading.Thread:
    """Does things in a thread, one after the other, while the command runs."""
    thread = threading.Thread(target=lambda: [thing() for thing in things])
    thread.start()
    return thread


# -- the record


def test_the_life_of_a_command_is_recorded_as_it_was(run_here, store, capfd):
    metadata = Metadata(name="web", labels={"app": "web"})
    before = time.time_ns()
    assert run_here("echo $$; exit 3", metadata=metadata) == 3
    created, started, exited = store.audit().events
    assert [e.transition for e in (created, started, exited)] == ["create", "start", "exit"]
    assert created.sandbox.status.state is State.INIT
    assert started.sandbox.status.pid == int(capfd.readouterr().out)
    sandbox = store.get("a")
    assert (sandbox.node, sandbox.metadata) == ("n1", metadata)
    status = sandbox.status
    assert (status.state, status.pid, status.exit_status) == (State.NOTREADY, 0, 3)
    assert before < status.created_at_ns < status.exited_at_ns < time.time_ns()


def test_the_record_is_there_before_the_process(run_here, store, spawned):
    seen = []
    spawned[1].append(lambda: seen.append(store.get("a").status.state))
    run_here("exit 0")
    assert seen == [State.INIT]


def test_while_the_command_runs_it_is_ready_under_its_pid(run_here, store, until, tmp_path):
    go = tmp_path / "go"

    def look():
        pid = until(lambda: "start" in history(store) and store.get("a").status.pid)
        seen.append((store.get("a").status.state, psutil.Process(pid).cmdline()[1:3]))

    seen = []
    other = meanwhile(look, go.touch)
    assert run_here(WAITS, go, 0) == 0
    other.join()
    assert seen == [(State.READY, ["-c", WAITS])]


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)]
)
def test_the_exit_status_is_the_commands(script, status, run_here, store):
    assert run_here(script) == status
    assert store.get("a").status.exit_status == status


def test_without_an_id_it_is_given_one(run_here, store, capfd):
    assert run_here("exit 0", sandbox_id=None, quiet=False) == 0
    (sandbox_id,) = store.ids()
    event = store.audit().events[1]
    assert capfd.readouterr().err == f"sandbox-redis: sandbox {sandbox_id} runs, with pid {event.sandbox.status.pid}\n"


def test_with_rm_the_record_is_removed_after_its_end(run_here, store):
    assert run_here("exit 3", rm=True) == 3
    assert history(store) == ["create", "start", "exit", "remove"]
    assert store.audit().events[2].sandbox.status.exit_status == 3


# -- a command that does not start


def no_program(tmp_path: Path) -> str:
    return "no-such-program"


def directory(tmp_path: Path) -> str:
    return str(tmp_path)


def not_executable(tmp_path: Path) -> str:
    (tmp_path / "f").touch(0o644)
    return str(tmp_path / "f")


def no_format(tmp_path: Path) -> str:
    (tmp_path / "f").touch(0o755)
    (tmp_path / "f").write_text("neither a script nor a program")
    return str(tmp_path / "f")


def not_a_directory(tmp_path: Path) -> str:
    return not_executable(tmp_path) + "/f"


def nul(tmp_path: Path) -> str:
    return "a\0b"


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        (no_program, 127, "No such file or directory"),
        (directory, 126, "Permission denied"),
        (not_executable, 126, "Permission denied"),
        (no_format, 126, "Exec format error"),
        (not_a_directory, 126, "Not a directory"),
        (nul, 126, "embedded null byte"),
    ],
)
def test_a_command_that_cannot_start_ends_in_fail_start(program, status, reason, run_here, store, tmp_path, capfd):
    name = program(tmp_path)
    assert run_here([name]) == status
    assert history(store) == ["create", "fail_start"]
    assert capfd.readouterr().err == f"sandbox-redis: {name!r} cannot be run: {reason}\n"


def test_nothing_runs_that_cannot_be_recorded(run_here, store, own_server, tmp_path, prefix):
    ran = tmp_path / "ran"
    store.create(sandbox_id="a")
    with pytest.raises(AlreadyExistsError):
        run_here('touch "$0"', ran)
    for wrong in ({"command": []}, {"command": [""]}, {"give_up": -1}, {"give_up": float("nan")}, {"sandbox_id": "/"}):
        with pytest.raises(InvalidArgumentError):
            run_here(wrong.pop("command", ["touch", str(ran)]), **wrong)
    server = own_server()
    server.stop()
    with SandboxStore(server.url, prefix=prefix) as away, pytest.raises(StoreUnavailableError):
        run_here('touch "$0"', ran, store=away)
    assert not ran.exists()
    assert history(store) == ["create"]


# -- standard streams


def test_standard_streams_pass_untouched(run_elsewhere):
    process = run_elsewhere("sh", "-c", "cat; printf 'no\\377line' >&2")
    everything = bytes(range(256)) * 1000
    assert process.communicate(everything) == (everything, b"no\xffline")


def test_closed_standard_streams_do_not_keep_anything_from_being_recorded(run_elsewhere, store):
    said = "os.close(2); sys.stderr = None"
    assert run_elsewhere("no-such-program", first=said).wait() == 127
    assert history(store) == ["create", "fail_start"]
    reading, writing = os.pipe()
    os.close(reading)
    assert run_elsewhere("no-such-program", stderr=writing).wait() == 127
    os.close(writing)
    assert history(store) == ["create", "fail_start"] * 2


# -- the store goes away


QUICKLY = "import sandbox_redis.cli.run as module; module._ATTEMPT = 0.2; "
LOUDLY = "quiet = run; run = lambda *args, **settings: quiet(*args, **settings | {'quiet': False})"


@pytest.fixture
def away(own_server, prefix, tmp_path, monkeypatch):
    """A server for this test alone, and a store on it."""
    monkeypatch.setattr(run_module, "_ATTEMPT", 0.2)
    server = own_server(data=tmp_path / "data")
    with SandboxStore(server.url, prefix=prefix) as store:
        yield server, store


@pytest.fixture
def spawned(monkeypatch):
    """The pids of the commands; before each is started, what stands in the list `first` is done."""
    spawn = os.posix_spawnp
    pids, first = [], []

    def watched(*args, **kwargs):
        for thing in first:
            thing()
        pids.append(spawn(*args, **kwargs))
        return pids[-1]

    monkeypatch.setattr(os, "posix_spawnp", watched)
    return pids, first


def test_the_end_is_written_when_the_store_is_back(run_here, away, spawned, until, tmp_path, capfd):
    server, store = away
    go = tmp_path / "go"
    back = []
    other = meanwhile(
        lambda: until(lambda: "start" in history(store)),
        partial(server.stop, signal.SIGKILL),
        go.touch,
        lambda: until(lambda: "exit status 4 is not recorded yet" in capfd.readouterr().err),
        lambda: back.append(time.time_ns()),
        server.start,
    )
    assert run_here(WAITS, go, 4, store=store, quiet=False) == 4
    other.join()
    status = store.get("a").status
    assert (status.state, status.exit_status) == (State.NOTREADY, 4)
    assert status.exited_at_ns < back[0]
    assert history(store) == ["create", "start", "exit"]


def test_what_happened_while_the_store_was_away_is_written_in_order(run_here, away, spawned, until):
    server, store = away
    pids, first = spawned
    first.append(partial(server.stop, signal.SIGKILL))
    other = meanwhile(lambda: until(lambda: pids and not psutil.pid_exists(pids[0])), server.start)
    assert run_here("exit 4", store=store, rm=True) == 4
    other.join()
    events = store.audit().events
    assert [event.transition for event in events] == ["create", "start", "exit", "remove"]
    assert events[1].sandbox.status.pid == pids[0]
    assert events[2].sandbox.status.exit_status == 4


def test_what_could_not_be_written_in_time_is_said_and_the_status_stays_the_commands(run_here, away, spawned, capfd):
    server, store = away
    pids, first = spawned
    first.append(partial(server.stop, signal.SIGKILL))
    assert run_here("exit 4", store=store, rm=True, give_up=0.5) == 4
    (line,) = capfd.readouterr().err.splitlines()
    missing = f"that it runs with pid {pids[0]} and that it ended with exit status 4 and its removal"
    assert line.startswith(f"sandbox-redis: sandbox a: {missing} could not be recorded: ")
    assert server.url in line


def test_a_signal_ends_the_waiting_for_the_store(run_elsewhere, away, until):
    server, store = away
    process = run_elsewhere("sh", "-c", "read _; exit 4", url=server.url, first=QUICKLY + LOUDLY)
    until(lambda: "start" in history(store))
    server.stop(signal.SIGKILL)
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert b"runs, with pid" in process.stderr.readline()
    assert b"exit status 4 is not recorded yet" in process.stderr.readline()
    process.terminate()
    assert process.wait() == 4
    assert b"exit status 4 could not be recorded" in process.stderr.readline()


def test_the_signal_that_ended_the_command_does_not_end_the_waiting(store, monkeypatch):
    scribe = run_module._Scribe(store, store.create().id, give_up=60, quiet=True)
    real = store.fail_start
    away = [StoreUnavailableError("here", "UNREACHABLE", "away", "wait")]

    def fail_start(self, sandbox_id, **settings):
        scribe.hurry()  # it reaches us a moment later than the command
        if away:
            raise away.pop()
        return real(sandbox_id, **settings)

    monkeypatch.setattr(SandboxStore, "fail_start", fail_start)
    scribe.end(0)
    scribe.write(scribe.failed_start())
    assert history(store) == ["create", "fail_start"]


@pytest.mark.parametrize("happened", [True, False])
@pytest.mark.parametrize("operation", ["start", "exit", "remove", "fail_start"])
def test_an_outcome_that_is_unknown_is_found_out(operation, happened, run_here, store, monkeypatch, capfd):
    real = getattr(store, operation)
    unknown = [OutcomeUnknownError("a", "token", "lost")]

    def lossy(sandbox_id, **settings):
        if unknown:
            if happened:
                real(sandbox_id, **settings)
            raise unknown.pop()
        return real(sandbox_id, **settings)

    monkeypatch.setattr(type(store), operation, lambda self, *args, **settings: lossy(*args, **settings))
    if operation == "fail_start":
        assert run_here(["no-such-program"]) == 127
        assert history(store) == ["create", "fail_start"]
        assert capfd.readouterr().err.count("\n") == 1
    else:
        assert run_here("exit 4", rm=True) == 4
        assert history(store) == ["create", "start", "exit", "remove"]
        assert capfd.readouterr().err == ""
    assert not unknown


# -- other agents


def test_the_end_is_filled_in_when_another_agent_stopped_it(run_here, store, until, tmp_path, capfd):
    go = tmp_path / "go"
    other = meanwhile(lambda: until(lambda: "start" in history(store)), partial(store.stop, "a"), go.touch)
    assert run_here(WAITS, go, 4) == 4
    other.join()
    assert history(store) == ["create", "start", "stop", "exit"]
    assert store.get("a").status.exit_status == 4
    assert capfd.readouterr().err == ""


def test_the_end_that_another_agent_told_first_stays_and_is_said(run_here, store, until, tmp_path, capfd):
    go = tmp_path / "go"
    told = partial(store.exit, "a", exit_status=9)
    other = meanwhile(lambda: until(lambda: "start" in history(store)), told, go.touch)
    assert run_here(WAITS, go, 4) == 4
    other.join()
    assert store.get("a").status.exit_status == 9
    stays = "its exit status 4 is not recorded: another agent has recorded 9 before, which stays"
    assert capfd.readouterr().err == f"sandbox-redis: sandbox a: {stays}\n"


def test_the_command_goes_on_when_its_record_is_removed(run_here, store, until, tmp_path, capfd):
    go = tmp_path / "go"
    removed = partial(store.remove, "a", force=True)
    other = meanwhile(lambda: until(lambda: "start" in history(store)), removed, go.touch)
    assert run_here(WAITS, go, 4) == 4
    other.join()
    with pytest.raises(NotFoundError):
        store.get("a")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("sandbox-redis: sandbox a: that it ended with exit status 4 is not recorded: ")
    assert "does not exist" in line


def test_another_agents_start_is_not_taken_for_ours(run_here, store, spawned, capfd):
    spawned[1].append(partial(store.start, "a", pid=1))
    assert run_here("exit 4") == 4
    assert "is not recorded: sandbox 'a' is READY: start is refused" in capfd.readouterr().err
    assert store.get("a").status.exit_status == 4


# -- signals


TELLS = [
    sys.executable,
    "-S",
    "-c",
    """
import os, signal
def tell(number, frame):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
    if number == signal.SIGTERM:
        os._exit(9)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, tell)
os.write(1, b"ready\\n")
while True:
    signal.pause()
""",
]
"""A command that says which signals it gets, and ends with 9 on SIGTERM."""


def test_a_signal_to_us_reaches_the_command_once(run_elsewhere, store):
    process = run_elsewhere(*TELLS)
    assert process.stdout.readline() == b"ready\n"
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM"):
        process.send_signal(signal.Signals[name])
        assert process.stdout.readline() == f"{name}\n".encode()
    assert process.communicate() == (b"", b"")
    assert process.returncode == 9
    assert store.get("a").status.exit_status == 9


def test_a_signal_that_ends_the_command_is_its_exit_status(run_elsewhere, store, until):
    process = run_elsewhere("sleep", "600")
    until(lambda: "start" in history(store))
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert store.get("a").status.exit_status == 128 + signal.SIGTERM


def test_ctrl_c_in_a_terminal_reaches_the_command_once(servers, prefix, store):
    child, terminal = pty.fork()
    if not child:
        line = [sys.executable, "-c", ELSEWHERE, servers("valkey").url, prefix, "", *TELLS]
        os.execv(sys.executable, line)
    try:
        with open(terminal, "rb", 0, closefd=False) as screen:
            assert screen.readline() == b"ready\r\n"
            os.write(terminal, b"\x03")
            assert screen.readline() == b"^CSIGINT\r\n"
            os.write(terminal, b"\x1c")
            assert screen.readline() == b"^\\SIGQUIT\r\n"
            os.kill(child, signal.SIGUSR1)
            assert screen.readline() == b"SIGUSR1\r\n"
            os.kill(child, signal.SIGTERM)
            assert screen.readline() == b"SIGTERM\r\n"
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
            child = 0
    finally:
        os.close(terminal)
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert history(store) == ["create", "start", "exit"]


EARLY = """
create = SandboxStore.create
def interrupted(self, **settings):
    os.kill(os.getpid(), signal.SIGTERM)
    return create(self, **settings)
SandboxStore.create = interrupted
"""


def test_a_signal_before_the_command_starts_keeps_it_from_starting(run_elsewhere, store, tmp_path):
    process = run_elsewhere("touch", str(tmp_path / "ran"), first=EARLY)
    assert process.communicate()[1] == b"sandbox-redis: SIGTERM came before the command was started\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "ran").exists()
    assert history(store) == ["create", "fail_start"]


AT_ONCE = """
spawn = os.posix_spawnp
def interrupted(*args, **settings):
    os.kill(os.getpid(), signal.SIGTERM)
    return spawn(*args, **settings)
os.posix_spawnp = interrupted
"""


def test_a_signal_while_the_command_is_being_started_reaches_it(run_elsewhere, store):
    assert run_elsewhere("sleep", "600", first=AT_ONCE).wait() == 128 + signal.SIGTERM
    assert store.get("a").status.exit_status == 128 + signal.SIGTERM


WRITING = """
exit = SandboxStore.exit
def interrupted(self, *args, **settings):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    return exit(self, *args, **settings)
SandboxStore.exit = interrupted
"""


DONE = """
import threading
join = threading.Thread.join
def interrupted(self, *args):
    join(self, *args)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread.join = interrupted
"""


@pytest.mark.parametrize("late", [WRITING, DONE], ids=["writing", "done"])
def test_a_signal_behind_the_end_changes_neither_what_is_recorded_nor_the_exit_status(late, run_elsewhere, store):
    process = run_elsewhere("sh", "-c", "exit 4", first=late)
    assert process.communicate() == (b"", b"")
    assert process.returncode == 4
    assert store.get("a").status.exit_status == 4


NOT_PERMITTED = """
def kill(pid, number):
    raise PermissionError(1, "Operation not permitted")
os.kill = kill
"""


def test_a_signal_that_may_not_be_passed_on_is_said(run_elsewhere, store, until):
    process = run_elsewhere("cat", first=NOT_PERMITTED)  # as with a command that became another user
    until(lambda: "start" in history(store))
    process.terminate()
    said = b"sandbox-redis: SIGTERM did not reach the command: Operation not permitted\n"
    assert process.stderr.readline() == said
    assert process.communicate() == (b"", b"")
    assert process.returncode == 0


IGNORING = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
"""


def test_what_our_parent_ignores_costs_no_exit_status_and_stays_ignored(run_elsewhere):
    process = run_elsewhere(*TELLS, first=IGNORING + EARLY.replace("SIGTERM", "SIGHUP"))
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate() == (b"SIGTERM\n", b"")
    assert process.returncode == 9


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells")
def test_the_command_begins_with_the_signals_of_any_command(run_here, capfd):
    before = Path("/proc/self/status").read_text()
    assert run_here(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]) == 0
    inside = {line.split(":")[0]: int(line.split()[1], 16) for line in capfd.readouterr().out.splitlines()}
    assert inside["SigBlk"] == 0
    assert not inside["SigIgn"] & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
    after = Path("/proc/self/status").read_text()
    assert re.findall("Sig(?:Blk|Ign).*", before) == re.findall("Sig(?:Blk|Ign).*", after)


def test_the_command_goes_on_when_we_are_killed(run_elsewhere, store, until):
    process = run_elsewhere("sleep", "600")
    pid = until(lambda: "start" in history(store) and store.get("a").status.pid)
    process.kill()
    process.wait()
    assert psutil.Process(pid).status() == psutil.STATUS_SLEEPING
    assert store.get("a").status.state is State.READY
    os.kill(pid, signal.SIGKILL)
