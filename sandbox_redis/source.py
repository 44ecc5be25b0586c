"""From a URL or a client to what leads to its servers: the only place that reads URLs, and redis-py's clients.

A client that is passed in serves as the description of a connection: where, with which user, which TLS. Its pool is not
touched, and what it does about retries, decoding or caching does not reach the store.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from redis.exceptions import RedisError

from sandbox_redis.cluster import Cluster
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.sentinels import Sentinels
from sandbox_redis.topology import Single, Topology, address

SCHEMES: Final = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+cluster://",
    "rediss+cluster://",
    "redis+sentinel://",
    "rediss+sentinel://",
)

_NO_TEXT: Final = frozenset({"socket_type", "socket_keepalive_options"})  # options that no text is right for
FAKEREDIS: Final = "fakeredis"
"""Its address: it has none."""


class Source(NamedTuple):
    """What a URL or a client tells."""

    topology: Topology
    connection_class: Any
    arguments: dict[str, Any]
    """Of each connection."""
    sentinel: dict[str, Any]
    """What differs in them for Sentinels, which have users of their own."""


def parsed(url: str, library: Any) -> Source:
    """What a URL tells; `library` is ``redis`` or ``redis.asyncio``. Raises `InvalidArgumentError`."""
    if not url.startswith(SCHEMES):
        raise InvalidArgumentError("url", without_password(url), f"it must begin with one of {', '.join(SCHEMES)}")
    try:
        scheme, _, rest = url.partition("://")
        if "+" not in scheme:
            pool = _pool(url, library)
            return Source(_single(pool), pool.connection_class, pool.connection_kwargs, {})
        plain, kind = scheme.split("+")
        parts = urlsplit(f"{plain}://{rest}")
        credentials, at, hosts = parts.netloc.rpartition("@")
        default = 26379 if kind == "sentinel" else 6379
        addresses = [_with_port(host, default) for host in hosts.split(",")]
        path = parts.path.strip("/").split("/")
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
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
    return Source(topology, pool.connection_class, given, sentinel)


def _pool(url: str, library: Any) -> Any:
    pool = library.ConnectionPool.from_url(url)
    if unsayable := _NO_TEXT & pool.connection_kwargs.keys():
        raise ValueError(f"{min(unsayable)} cannot be said in a URL: pass a client in")
    pool.connection_class(**pool.connection_kwargs)  # finds what it does not know in the query
    parts = urlsplit(url)
    (parts.hostname or "").encode("idna")
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError("the path is the number of a database")
    if parts.fragment or (parts.hostname is None and "@" in parts.query):
        raise ValueError("# and ? in a password must be written as %23 and %3F")
    return pool


def _with_port(host: str, default: int) -> str:
    """An address of several in a URL."""
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return address(parts.hostname, default if parts.port is None else parts.port)


def taken(client: Any, library: Any) -> Source:
    """What a client's settings tell; as `parsed`."""
    plain: Any = library.connection.Connection
    secure: Any = library.connection.SSLConnection
    if isinstance(client, library.RedisCluster):
        given = dict(client.nodes_manager.connection_kwargs)
        seeds = [address(node.host, node.port) for node in client.nodes_manager.startup_nodes.values()]
        accepted = set(inspect.signature(library.connection.AbstractConnection).parameters)
        accepted |= {name for each in (plain, secure) for name in inspect.signature(each).parameters}
        secured = given.pop("ssl", False) or given.get("connection_class") is secure
        given = {name: value for name, value in given.items() if name in accepted and name not in ("host", "port")}
        return Source(Cluster(seeds), secure if secured else plain, given, {})
    if not isinstance(client, library.Redis):
        wanted = f"a {library.__name__}.Redis or RedisCluster is needed (a fakeredis client is one)"
        kind = f"{type(client).__module__}.{type(client).__qualname__}"  # more of it may be secret
        raise InvalidArgumentError("client", kind, wanted)
    pool = client.connection_pool
    given = dict(pool.connection_kwargs)
    if not isinstance(pool, library.sentinel.SentinelConnectionPool):
        return Source(_single(pool), pool.connection_class, given, {})
    if not pool.is_master:
        raise InvalidArgumentError("client", "slave_for", "a master is needed: master_for")
    del given["connection_pool"]
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    seeds = [address(each["host"], each["port"]) for each in asked]
    sentinel = {name: asked[0].get(name) for name in ("username", "password")}
    secured = issubclass(pool.connection_class, secure)
    return Source(Sentinels(pool.service_name, seeds), secure if secured else plain, given, sentinel)


def _single(pool: Any) -> Single:
    given = pool.connection_kwargs
    if "fakeredis" in pool.connection_class.__module__:
        return Single(FAKEREDIS)
    if path := given.get("path"):
        return Single(f"unix://{path}")
    return Single(f"{given.get('host', 'localhost')}:{given.get('port', 6379)}")


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    hidden = re.sub(r"(//[^/@:]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    if not url.startswith(SCHEMES):  # where its parts are is not certain
        hidden = re.sub(r"^(\s*[\w+.-]*:?/*).*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"(passw[^=&]*=)[^&]*", r"\1***", hidden)


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
