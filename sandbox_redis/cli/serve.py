"""``sandbox-redis serve``: an embedded server in the foreground, until it is asked to end. How a server is run, and
that it ends with us however we end, stands in ``server.py``; here is only what people and scripts meet.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from sandbox_redis.cli.programs import DEFAULT_PORT, data_directory
from sandbox_redis.cli.statuses import complain
from sandbox_redis.server import EmbeddedServer

_REQUESTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Asked(BaseException):
    """We were asked to end. No Exception, so that nothing on the way takes it for an error."""


def serve(*, data: Path | None, port: int | None, socket_path: Path | None, memory: bool, quiet: bool) -> int:
    """Run a server until SIGINT, SIGTERM or SIGHUP. What it prints, once the server can be used, a shell can read too.

    Args:
        data: the directory of its append-only file; the XDG one when None.
        port: on 127.0.0.1; 0 for any that is free; 6379 when None and `socket_path` is None too.
        socket_path: listen on this unix socket, which only our user may open, and on no port.
        memory: keep nothing; `data` does not count.
        quiet: say nothing but why it ended.

    Returns:
        The exit status: 0 after a request to end, 1 when the server ended by itself.

    Raises:
        ServerStartError: no server can run there.
    """
    directory = None if memory else data or data_directory()
    port = DEFAULT_PORT if port is None and socket_path is None else port
    try:
        with _requests(), closing(EmbeddedServer(directory, port=port, socket_path=socket_path)) as server:
            server.start(timeout=math.inf)  # it may have much data to load; whoever waits can ask it to end
            if not quiet:
                _say(_how_to_connect(server, kept=not memory))
            status = server.wait()
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            complain(f"the server ended by itself, {how}; the last line of its log: {server.last_words()}")
            return 1
    except _Asked:
        return 0


def _how_to_connect(server: EmbeddedServer, *, kept: bool) -> str:
    address = f"-s {shlex.quote(str(server.socket_path))}" if server.port is None else f"-p {server.port}"
    return f"""\
# {Path(server.binary).name}, process {server.pid}, listens on {server.url} until this command ends (Ctrl-C)
# data: {f"{server.data}; if this host crashes, the last second may be lost" if kept else "in memory only"}
# log:  {server.log}
# look: redis-cli {address}
export SANDBOX_REDIS_URL={shlex.quote(server.url)}
"""


def _say(text: str) -> None:
    """Print, at once and past Python's buffer, so that nothing is left in it where nobody reads. The server serves all
    the same."""
    with suppress(OSError, AttributeError):  # standard output is None when it is closed
        os.write(sys.stdout.fileno(), os.fsencode(text))


@contextmanager
def _requests() -> Iterator[None]:
    """Make an exception of the first request to end, and ignore those after it: ending takes a limited time. What is
    ignored from the start, as SIGHUP under nohup, stays so."""
    handled = [request for request in _REQUESTS if signal.getsignal(request) is not signal.SIG_IGN]

    def ask(*_: object) -> NoReturn:
        for request in handled:
            signal.signal(request, signal.SIG_IGN)
        raise _Asked

    before = {request: signal.signal(request, ask) for request in handled}
    try:
        yield
    finally:
        for request, handler in before.items():
            signal.signal(request, handler)
