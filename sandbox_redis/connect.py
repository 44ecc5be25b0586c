"""Connections of our own: how each server is connected to, and what it means when that fails. What a URL or a client
says of that stands in ``source.py``, where the servers are in ``topology.py``.
"""

from __future__ import annotations

import errno
import re
import socket
from dataclasses import dataclass, field
from typing import Any, Final

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sandbox_redis import tls
from sandbox_redis.replies import is_refusal, refusal
from sandbox_redis.source import parsed, taken
from sandbox_redis.topology import Place, Single, Topology
from sandbox_redis.wire import TRANSIENT, Command, Lost, ServerError, Unsent

# What redis-py would do by itself and a store must not have: repeat commands, decode replies, follow maintenance
# notices; and a handshake of five commands where two will do (1.2 ms against 0.15 ms, measured).
_DROPPED: Final = (
    "lib_name",
    "lib_version",
    "retry_on_timeout",
    "retry_on_error",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "orig_host_address",
    "orig_socket_timeout",
    "orig_socket_connect_timeout",
    "himport_registry",
    "event_dispatcher",
)
_NOBODY_THERE: Final = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.EACCES})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server, as redis-py's connection class and its arguments."""

    connection_class: Any
    arguments: dict[str, Any] = field(repr=False)  # a password is among them
    address: str
    """For messages; without credentials."""
    greeting: tuple[Command, ...]
    """What a new connection says first: its name for CLIENT LIST, which takes no blanks; asks what the server calls it,
    see `fence`; and whatever the server's role needs."""
    role: str = ""
    """As `Place.role`."""

    def connection(self) -> Any:
        """A connection that is not connected yet."""
        return self.connection_class(**self.arguments)


@dataclass(frozen=True, slots=True)
class Way:
    """Where the servers of a store are, and how each is connected to."""

    topology: Topology
    connection_class: Any
    arguments: dict[str, Any] = field(repr=False)  # without an address, but where there is only one
    name: str
    sentinel: dict[str, Any] = field(default_factory=dict, repr=False)
    """As `Source.sentinel`."""

    def endpoint(self, place: Place) -> Endpoint:
        """One of the servers."""
        greeting: tuple[Command, ...] = (("CLIENT", "SETNAME", self.name), ("CLIENT", "INFO"))
        arguments = self.arguments
        if not isinstance(self.topology, Single):
            host, _, port = place.address.rpartition(":")
            arguments = arguments | {"host": host.strip("[]"), "port": int(port)}
        if place.role == "sentinel":
            arguments = arguments | {"db": 0, "username": None, "password": None} | self.sentinel
        elif place.role == "cluster replica":
            greeting += (("READONLY",),)
        elif place.role == "master":
            greeting += (("ROLE",),)
        return Endpoint(self.connection_class, arguments, place.address, greeting, place.role)


def way(source: Any, *, agent: str, asyncio: bool) -> Way:
    """What a URL or a client leads to.

    Raises:
        InvalidArgumentError: the URL or the client is of a kind that is not supported.
    """
    library: Any = redis.asyncio if asyncio else redis
    topology, connection_class, given, sentinel = (parsed if isinstance(source, str) else taken)(source, library)
    if issubclass(connection_class, library.SSLConnection):
        tls.check(given)
        connection_class = _abrupt(connection_class) if asyncio else connection_class
    retry = redis.asyncio.retry.Retry if asyncio else redis.retry.Retry
    ours = {
        "retry": retry(NoBackoff(), 0),
        "decode_responses": False,
        "health_check_interval": 0,
        "protocol": 2,
        "driver_info": None,
        "client_name": None,
    }
    arguments = {name: value for name, value in given.items() if name not in _DROPPED} | ours
    name = given.get("client_name") or re.sub(r"[^!-~]", "_", agent) or "sandbox-redis"
    return Way(topology, connection_class, arguments, name, sentinel)


def _abrupt(connection_class: Any) -> Any:
    """The same with asyncio's TLS closed at once: else it waits for the server's goodbye, and the event loop may end
    before."""

    class Abrupt(connection_class):  # type: ignore[misc]
        async def _connect(self) -> None:
            await super()._connect()
            self._writer.close = self._writer.transport.abort

    return Abrupt


def unsent(address: str, error: Exception, *, patient: bool) -> Unsent:
    """Connecting failed. Without an answer ever, from where nobody listens, there is no use in being `patient`."""
    said = isinstance(error, RedisError) and is_refusal(error)
    code = refusal(error).code if said else "UNREACHABLE"  # type: ignore[arg-type]
    cause = error.__cause__ or error.__context__
    failure = Unsent(address, str(error).rstrip("."), code)
    if said:
        failure.hopeless = code not in TRANSIENT
    elif refused := tls.refusal(error):
        failure = Unsent(address, refused, "TLS")
        failure.hopeless = True
    else:
        if tls.broke_off(error):
            failure.reason += " (perhaps it does not accept our certificate)"
        # For several addresses of one host, asyncio gives the numbers in its text only.
        numbers = [getattr(cause, "errno", None)] + [
            int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))
        ]
        nobody = isinstance(cause, socket.gaierror) or any(number in _NOBODY_THERE for number in numbers)
        failure.hopeless = nobody and not patient
    return failure


def fence(endpoint: Endpoint, replies: list[Any]) -> Command | None:
    """From the replies to a greeting, the command that makes the server drop this connection, and no other: the number
    alone may be another's after a restart. See `Lost`.

    Raises:
        Unsent: the server did not let us in, and redis-py has closed the connection at that word; or it is not what it
            is taken for.
    """
    if len(replies) < len(endpoint.greeting):
        failure = Unsent(endpoint.address, replies[0].message, replies[0].code)
        failure.hopeless = replies[0].code not in TRANSIENT
        raise failure
    if endpoint.role == "master" and isinstance(replies[2], list) and replies[2][0] != b"master":
        raise Unsent(endpoint.address, "the sentinels have named it as the master", "READONLY")
    if isinstance(replies[1], ServerError):  # this user may not ask
        return None
    fields = dict(word.partition(b"=")[::2] for word in replies[1].split())
    if b"/" in fields[b"addr"]:  # a unix socket, the same for all; but nothing stays under way there for long
        return None
    # Its own address as well, where the server says it: another server may have a connection of the same number.
    ours = (b"LADDR", fields[b"laddr"]) if b"laddr" in fields else ()
    return ("CLIENT", "KILL", "ID", fields[b"id"], "ADDR", fields[b"addr"], *ours)


def lost(address: str, error: BaseException, how: Command | None) -> Lost:
    """A connection failed behind a packet."""
    return Lost(address, str(error).rstrip(".") or type(error).__name__, how)
