"""From a URL or a client to connections of our own: the only place that reads redis-py's settings and its exceptions.

A client that is passed in serves as the description of a connection: where, with which user, which TLS. Its pool is not
touched, and what it does about retries, decoding or caching does not reach the store.
"""

from __future__ import annotations

import errno
import inspect
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import hiredis
import redis
import redis.asyncio
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sandbox_redis import tls
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.topology import Cluster, Place, Sentinels, Single, Topology
from sandbox_redis.topology import address as joined
from sandbox_redis.wire import TRANSIENT, Command, Lost, ServerError, Unsent

NOT_YET: Final = NOT_ENOUGH_DATA
"""Stands for a reply that has not come in."""
SCHEMES: Final = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+cluster://",
    "rediss+cluster://",
    "redis+sentinel://",
    "rediss+sentinel://",
)

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
# Said in other words, or under other codes, at other places: in scripts, by EXEC, at the door.
_FORBIDDEN: Final = re.compile("ACL failure in script|The user executing the script can't|no permissions")
_FULL: Final = "max number of clients"
_ELSEWHERE: Final = "access a non local key in a cluster node"  # which is where it will be when its slot has moved
FAKEREDIS: Final = "fakeredis"
"""Its address: it has none."""
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
    """What differs in the arguments for Sentinels: they have users of their own."""

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
    if isinstance(source, str):
        topology, connection_class, given, sentinel = _parsed(source, library)
    else:
        topology, connection_class, given, sentinel = _taken(source, library)
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


_Parts = tuple[Topology, Any, dict[str, Any], dict[str, Any]]
"""The topology, the class of its connections, their arguments, and those for Sentinels."""


def _parsed(url: str, library: Any) -> _Parts:
    if not url.startswith(SCHEMES):
        raise InvalidArgumentError("url", without_password(url), f"it must begin with one of {', '.join(SCHEMES)}")
    try:
        scheme, _, rest = url.partition("://")
        if "+" not in scheme:
            pool = _pool(url, library)
            address = _address(pool.connection_class, pool.connection_kwargs)
            return Single(address), pool.connection_class, pool.connection_kwargs, {}
        plain, kind = scheme.split("+")
        parsed = urlsplit(f"{plain}://{rest}")
        credentials, at, hosts = parsed.netloc.rpartition("@")
        default = 26379 if kind == "sentinel" else 6379
        addresses = [_with_port(host, default) for host in hosts.split(",")]
        path = parsed.path.strip("/").split("/")
        query = parse_qs(parsed.query, strict_parsing=bool(parsed.query))
        sentinel = {
            name: query.pop(f"sentinel_{name}")[0] for name in ("username", "password") if f"sentinel_{name}" in query
        }
        database = ""
        if kind == "sentinel":
            service, database = unquote(path[0]), "/".join(path[1:])
            if not service:
                raise ValueError("the service that the sentinels know is needed behind them, as in /mymaster/0")
        elif path not in ([""], ["0"]):
            raise ValueError("a cluster has no databases beside 0")
        pool = _pool(f"{plain}://{credentials}{at}{addresses[0]}/{database}?{urlencode(query, doseq=True)}", library)
        given = {name: value for name, value in pool.connection_kwargs.items() if name not in ("host", "port")}
        topology = Sentinels(service, addresses) if kind == "sentinel" else Cluster(addresses)
    except (AttributeError, TypeError, ValueError, RedisError) as error:
        raise InvalidArgumentError("url", without_password(url), _fault(url, error)) from None
    return topology, pool.connection_class, given, sentinel


def _pool(url: str, library: Any) -> Any:
    pool = library.ConnectionPool.from_url(url)
    pool.connection_class(**pool.connection_kwargs)  # finds what it does not know in the query
    parsed = urlsplit(url)
    (parsed.hostname or "").encode("idna")
    if parsed.scheme != "unix" and not re.fullmatch(r"/?\d*", parsed.path):
        raise ValueError("the path is the number of a database")
    if parsed.fragment or (parsed.hostname is None and "@" in parsed.query):
        raise ValueError("# and ? in a password must be written as %23 and %3F")
    return pool


def _with_port(host: str, default: int) -> str:
    """An address of several in a URL."""
    parsed = urlsplit(f"//{host}")
    if not parsed.hostname:
        raise ValueError("a host is missing")
    return joined(parsed.hostname, default if parsed.port is None else parsed.port)


def _taken(client: Any, library: Any) -> _Parts:
    """From a client's settings."""
    plain: Any = library.connection.Connection
    secure: Any = library.connection.SSLConnection
    if isinstance(client, library.RedisCluster):
        given = dict(client.nodes_manager.connection_kwargs)
        seeds = [joined(node.host, node.port) for node in client.nodes_manager.startup_nodes.values()]
        accepted = set(inspect.signature(library.connection.AbstractConnection).parameters)
        accepted |= {name for each in (plain, secure) for name in inspect.signature(each).parameters}
        secured = given.pop("ssl", False) or given.get("connection_class") is secure
        given = {name: value for name, value in given.items() if name in accepted and name not in ("host", "port")}
        return Cluster(seeds), secure if secured else plain, given, {}
    if not isinstance(client, library.Redis):
        wanted = f"a {library.__name__}.Redis or RedisCluster is needed (a fakeredis client is one)"
        kind = f"{type(client).__module__}.{type(client).__qualname__}"  # more of it may be secret
        raise InvalidArgumentError("client", kind, wanted)
    pool = client.connection_pool
    given = dict(pool.connection_kwargs)
    if not isinstance(pool, library.sentinel.SentinelConnectionPool):
        return Single(_address(pool.connection_class, given)), pool.connection_class, given, {}
    if not pool.is_master:
        raise InvalidArgumentError("client", "slave_for", "a master is needed: master_for")
    del given["connection_pool"]
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    seeds = [joined(each["host"], each["port"]) for each in asked]
    sentinel = {name: asked[0].get(name) for name in ("username", "password")}
    secured = issubclass(pool.connection_class, secure)
    return Sentinels(pool.service_name, seeds), secure if secured else plain, given, sentinel


def _address(connection_class: type, arguments: dict[str, Any]) -> str:
    if "fakeredis" in connection_class.__module__:
        return FAKEREDIS
    if path := arguments.get("path"):
        return f"unix://{path}"
    return f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}"


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    hidden = re.sub(r"(//[^/@:]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(password=)[^&]*", r"\1***", hidden)


def _fault(url: str, error: Exception) -> str:
    """What is wrong with a URL. The error's own words may quote a part of the password."""
    option = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if option and re.search(rf"[?&]{option[1]}=[^@]*$", url):
        needs_tls = option[1].startswith("ssl_") and not url.startswith("rediss")
        return f"{option[1]} " + ("is for rediss:// only" if needs_tls else "is no option of a connection")
    if isinstance(error, RedisError):
        return "ssl_cert_reqs must be required, optional or none"
    secret = re.search(r"//[^/]*:[^@]*@|password=", url) is not None
    return "a password's special characters must be written as %40 and the like" if secret else str(error)


def pack(commands: Iterable[Command]) -> tuple[bytes]:
    """Commands as one packet."""
    # A signal handler that raises while hiredis writes out an int crashes the process (hiredis 3.5); text is safe.
    words: list[Any]
    packed = []
    for command in commands:
        words = [str(word) if word.__class__ is int else word for word in command]
        packed.append(hiredis.pack_command(tuple(words)))
    return (b"".join(packed),)


def refusal(error: RedisError) -> ServerError:
    """An error reply as the operations know it."""
    if _FORBIDDEN.search(str(error)):
        return ServerError("NOPERM", str(error))
    if _FULL in str(error):
        return ServerError("MAXCLIENTS", str(error))
    if _ELSEWHERE in str(error):
        return ServerError("TRYAGAIN", str(error))
    code = getattr(error, "status_code", None)
    first, _, rest = str(error).partition(" ")
    return ServerError(code, str(error)) if code else ServerError(first, rest)


def is_refusal(error: RedisError) -> bool:
    """Whether the server said it, as against a connection that failed. Some of its words (LOADING, NOAUTH) are
    ConnectionErrors to redis-py, which then closes the connection."""
    return (
        getattr(error, "status_code", None) is not None or isinstance(error, redis.ResponseError) or _FULL in str(error)
    )


def at_hand(connection: Any) -> Any:
    """A reply that has come in with another one, or `NOT_YET`. To ask redis-py for each takes 2 us more."""
    try:
        return connection._parser._reader.gets(False)  # noqa: SLF001 - there is no public way to many replies
    except AttributeError:  # fakeredis, or a connection that was closed
        return NOT_YET


def answer(command: Command, reply: Any) -> Any:
    """A reply as the operations know it, an error reply as `ServerError`; raises an error of the connection."""
    if isinstance(reply, RedisError):
        if not is_refusal(reply):
            raise reply
        return refusal(reply)
    if reply and command and command[0] == "EXEC":
        return [refusal(item) if isinstance(item, RedisError) else item for item in reply]
    return reply


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
