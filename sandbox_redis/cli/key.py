"""The command that leads from a sandbox to its record in redis-cli. Keys are put together in ``keys.py`` alone."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Final

from sandbox_redis.cli import ids, shape
from sandbox_redis.cli.options import Exact, Form, Where, one_id
from sandbox_redis.cli.statuses import complain
from sandbox_redis.driver import play
from sandbox_redis.store import SandboxStore

_TLS_FILES: Final = (("ssl_ca_certs", "--cacert"), ("ssl_certfile", "--cert"), ("ssl_keyfile", "--key"))


def key(where: Where, form: Form, sandbox_id: Annotated[str, one_id("get")], *, exact: Exact = False) -> None:
    """Show its Redis key, and how to read that.

    The second line is for redis-cli. The sandbox need not exist, when its id is given whole.
    """
    with where.store() as store:
        (sandbox_id,) = ids.whole(store, [sandbox_id], exact=exact)
        # A layout is of interest to nobody but us, so the store has no public form of it.
        layout = play(store._lane, store._operations.layout())  # noqa: SLF001
        name = layout.status(sandbox_id)
        server = _server(store, name)
    line = f"{redis_cli(server)} HGETALL {shlex.quote(name)}"
    if form.json:
        shape.write({"id": sandbox_id, "key": name, "partition": layout.partition(sandbox_id), "redis_cli": line})
    else:
        print(name)
        print(line)
    if server.get("password"):
        complain("the URL has a password, which is not shown: give it to redis-cli in REDISCLI_AUTH")


def _server(store: SandboxStore, name: str) -> dict[str, Any]:
    """The server that holds a key, as redis-py has read it from the URL."""
    endpoint = store._lane.endpoint(name, store._operations.timeout)  # noqa: SLF001 - as above
    return {**endpoint.arguments, "tls": "SSL" in endpoint.connection_class.__name__}


def redis_cli(server: dict[str, Any]) -> str:
    """A command that leads to a server, without its password."""
    db = str(server.get("db") or 0)
    host, port = server.get("host") or "localhost", str(server.get("port") or 6379)
    if path := server.get("path"):
        words = ["-s", path, "-n", db]
    elif ":" in host:  # an IPv6 address, which redis-cli cannot read in a URL
        words = ["-h", host, "-p", port, "-n", db, *["--tls"] * server["tls"]]
    else:
        words = ["-u", f"redis{'s' * server['tls']}://{host}:{port}/{db}"]
    for name, option in _TLS_FILES:
        if path := server.get(name):
            words += [option, str(path)]
    if user := server.get("username"):
        words += ["--user", user]
    return shlex.join(["redis-cli", *words])
