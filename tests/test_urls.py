"""URLs and clients of clusters and Sentinels: what they lead to. Nothing is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio

from sandbox_redis import AsyncSandboxStore, InvalidArgumentError, SandboxStore
from sandbox_redis.cluster import Cluster
from sandbox_redis.connect import Way, fence, way
from sandbox_redis.sentinels import Sentinels
from sandbox_redis.topology import Ask, Place
from sandbox_redis.wire import ServerError, Unsent


def led(source: Any, *, asyncio: bool = False) -> Way:
    return way(source, agent="me", asyncio=asyncio)


def seeds(found: Way) -> list[str]:
    """The servers that are asked first, in order."""
    looking, asked, reply = found.topology.look(), [], None
    with pytest.raises(Exception, match="gone"):
        while True:
            question = looking.send(reply)
            assert isinstance(question, Ask)
            asked.append(question.place)
            reply = Unsent(question.place.address, "gone")
    return [place.address for place in asked]


FLAVOURS = [False, True]
ONE = Place("s:1")


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("redis+cluster://a", ["a:6379"]),
        ("redis+cluster://a:1,b,c:3", ["a:1", "b:6379", "c:3"]),
        ("redis+cluster://a,b/0", ["a:6379", "b:6379"]),
        ("redis+cluster://user:p%40ss@[::1]:7,[fe80::2]/", ["[::1]:7", "[fe80::2]:6379"]),
        ("rediss+cluster://10.0.0.1:1?ssl_cert_reqs=none", ["10.0.0.1:1"]),
        ("redis+sentinel://a/it", ["a:26379"]),
        ("redis+sentinel://a:1,b/it/3", ["a:1", "b:26379"]),
        ("redis+sentinel://:pw@[::1],b:7/it", ["[::1]:26379", "b:7"]),
    ],
)
@pytest.mark.parametrize("aio", FLAVOURS)
def test_urls_name_the_servers_that_are_asked_first(url, addresses, aio):
    found = led(url, asyncio=aio)
    assert isinstance(found.topology, Cluster if "cluster" in url else Sentinels)
    assert seeds(found) == addresses
    assert found.topology.split == ("cluster" in url)


@pytest.mark.parametrize("aio", FLAVOURS)
def test_users_and_passwords_are_those_of_the_servers_and_sentinels_have_their_own(aio):
    url = (
        "redis+sentinel://al%20ice:p%40%3As%2Fs@a,b/my%20service/3"
        "?sentinel_username=bob&sentinel_password=w%26rd&socket_timeout=7"
    )
    found = led(url, asyncio=aio)
    assert found.topology.service == "my service"
    server = found.endpoint(Place("[::1]:7", "master")).arguments
    assert {name: server[name] for name in ("host", "port", "db", "username", "password", "socket_timeout")} == {
        "host": "::1",
        "port": 7,
        "db": 3,
        "username": "al ice",
        "password": "p@:s/s",
        "socket_timeout": 7,
    }
    sentinel = found.endpoint(Place("a:1", "sentinel")).arguments
    assert [sentinel[name] for name in ("db", "username", "password")] == [0, "bob", "w&rd"]
    bare = led("redis+sentinel://u:p@a/it", asyncio=aio).endpoint(Place("a:1", "sentinel")).arguments
    assert [bare[name] for name in ("db", "username", "password")] == [0, None, None]
    cluster = led("redis+cluster://al%20ice:p%40%3As%2Fs@a,b", asyncio=aio).endpoint(ONE).arguments
    assert [cluster[name] for name in ("host", "port", "username", "password")] == ["s", 1, "al ice", "p@:s/s"]


@pytest.mark.parametrize("kind", ["cluster://a,b", "sentinel://a,b/it"])
@pytest.mark.parametrize("aio", FLAVOURS)
def test_with_tls_all_servers_are_spoken_to_so(kind, aio):
    library: Any = redis.asyncio if aio else redis
    secure = led(f"rediss+{kind}?ssl_cert_reqs=none", asyncio=aio)
    for role in ("", "master", "sentinel", "cluster replica"):
        endpoint = secure.endpoint(Place("s:1", role))
        assert issubclass(endpoint.connection_class, library.connection.SSLConnection)
        assert endpoint.arguments["ssl_cert_reqs"] == "none"
    plain = led(f"redis+{kind}", asyncio=aio).endpoint(ONE)
    assert not issubclass(plain.connection_class, library.connection.SSLConnection)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel://a,b", "service"),
        ("redis+sentinel://a,b/", "service"),
        ("redis+sentinel://a/it/x", "number of a database"),
        ("redis+sentinel://a/it/1/2", "number of a database"),
        ("redis+cluster://a/1", "no databases"),
        ("redis+cluster://a/x", "no databases"),
        ("redis+cluster://", "host is missing"),
        ("redis+cluster://a,,b", "host is missing"),
        ("redis+cluster://a,", "host is missing"),
        ("redis+cluster://:7000", "host is missing"),
        ("redis+cluster://a:port", "port"),
        ("redis+cluster://a:70000", "ort"),
        ("redis+cluster://a,b:-1", "ort"),
        ("redis+cluster://a?nonsense=1", "nonsense"),
        ("redis+sentinel://a/it?sentinel_nonsense=1", "nonsense"),
        ("redis+unix://a", "must begin with"),
        ("cluster://a", "must begin with"),
    ],
)
@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_what_is_wrong_in_a_url_is_said_and_never_a_password(kind, url, reason):
    with pytest.raises(InvalidArgumentError, match=reason) as error:
        kind.from_url(url)
    assert error.value.argument == "url"
    scheme, _, rest = url.partition("://")
    mark = "&" if "?" in rest else "?"
    for hidden in (
        f"{scheme}://user:sesame@{rest}",
        f"{url}{mark}sentinel_password=sesame",
        f"{url}{mark}password=sesame",
    ):
        with pytest.raises(InvalidArgumentError) as error:
            kind.from_url(hidden)
        assert "sesame" not in str(error.value) + repr(vars(error.value))


@pytest.mark.parametrize(
    "url",
    [
        ":hunter2@h:6379",
        "user:hunter2@localhost:6379/0",
        "redis:/:hunter2@h:6379",
        "redis+cluster:/u:hunter2@h",
        "redis:user:hunter2@h",
        "redis+sentinel://h/m?sentinel_passwort=hunter2",
    ],
)
@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_a_password_is_not_shown_where_the_url_is_hardly_one(kind, url):
    with pytest.raises(InvalidArgumentError) as refused:
        kind.from_url(url)
    assert "hunter2" not in f"{refused.value} {refused.value!r} {vars(refused.value)}"


@pytest.mark.parametrize("option", ["socket_type=77", "socket_keepalive_options=x"])
@pytest.mark.parametrize("start", ["redis://h", "redis+cluster://h", "redis+sentinel://h/m"])
@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_options_that_no_text_is_right_for_are_refused(kind, start, option):
    with pytest.raises(InvalidArgumentError, match=f"{option.partition('=')[0]} cannot be said in a URL"):
        kind.from_url(f"{start}?{option}")


@pytest.mark.parametrize(
    "url", ["redis+cluster://user:sesame@a:1,b", "redis+sentinel://user:sesame@a:1,b/it/3?sentinel_password=sesame"]
)
@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_a_store_shows_where_it_is_and_no_password(kind, url):
    shown = repr(kind.from_url(url, prefix="mine"))
    assert "mine" in shown
    assert "a:1,b:" in shown
    assert "sesame" not in shown + repr(led(url, asyncio=kind is AsyncSandboxStore))


def test_replicas_are_read_from_only_where_there_may_be_some():
    for url in ("redis+cluster://a", "redis+sentinel://a/it"):
        SandboxStore.from_url(url, read_from="replica")
    for url, choice in (("redis://a", "replica"), ("redis+cluster://a", "slave")):
        with pytest.raises(InvalidArgumentError) as error:
            SandboxStore.from_url(url, read_from=choice)
        assert error.value.argument == "read_from"


# -- clients


SECRET = {"username": "al", "password": "sesame"}


def unconnected(**settings: Any) -> redis.RedisCluster:
    """A cluster's client for threads, which would look for the cluster at once."""
    client = redis.RedisCluster.__new__(redis.RedisCluster)
    client.nodes_manager = manager = redis.cluster.NodesManager.__new__(redis.cluster.NodesManager)
    node = redis.cluster.ClusterNode("a", 7)
    manager.connection_kwargs, manager.startup_nodes = redis.cluster.cleanup_kwargs(**settings), {node.name: node}
    return client


@pytest.mark.parametrize("aio", FLAVOURS)
def test_a_cluster_client_leads_to_its_cluster(aio):
    library: Any = redis.asyncio if aio else redis
    client = redis.asyncio.RedisCluster(host="a", port=7, **SECRET) if aio else unconnected(**SECRET)
    found = led(client, asyncio=aio)
    assert isinstance(found.topology, Cluster)
    assert seeds(found) == ["a:7"]
    endpoint = found.endpoint(ONE)
    assert {name: endpoint.arguments[name] for name in SECRET} == SECRET
    assert endpoint.arguments["host"] == "s"
    assert endpoint.connection() is not None
    assert not issubclass(endpoint.connection_class, library.connection.SSLConnection)


def test_a_cluster_client_with_tls_keeps_it():
    client = redis.asyncio.RedisCluster(host="a", ssl=True, ssl_cert_reqs="none", **SECRET)
    endpoint = led(client, asyncio=True).endpoint(ONE)
    assert issubclass(endpoint.connection_class, redis.asyncio.connection.SSLConnection)
    assert endpoint.arguments["ssl_cert_reqs"] == "none"
    assert endpoint.connection() is not None


@pytest.mark.parametrize("aio", FLAVOURS)
@pytest.mark.parametrize("tls", [False, True])
def test_a_client_of_sentinels_leads_to_their_master(aio, tls):
    library: Any = redis.asyncio if aio else redis
    given = {"ssl": True, "ssl_cert_reqs": "none"} if tls else {}
    own = {"username": "bob", "password": "open"}
    manager = library.sentinel.Sentinel([("a", 7), ("::1", 8)], sentinel_kwargs={**own, **given}, **SECRET, **given)
    found = led(manager.master_for("it", db=3), asyncio=aio)
    assert isinstance(found.topology, Sentinels)
    assert found.topology.service == "it"
    assert seeds(found) == ["a:7", "[::1]:8"]
    master, sentinel = found.endpoint(Place("s:1", "master")), found.endpoint(Place("a:7", "sentinel"))
    assert {name: master.arguments[name] for name in SECRET} == SECRET
    assert master.arguments["db"] == 3
    assert {name: sentinel.arguments[name] for name in own} == own
    for endpoint in (master, sentinel):
        assert issubclass(endpoint.connection_class, library.connection.SSLConnection) == tls
        assert endpoint.connection() is not None
    kind = AsyncSandboxStore if aio else SandboxStore
    with pytest.raises(InvalidArgumentError, match="a master is needed: master_for") as error:
        kind(manager.slave_for("it"))
    assert "sesame" not in str(error.value)


def test_a_client_of_the_other_flavour_is_refused():
    client = redis.asyncio.RedisCluster(host="a")
    with pytest.raises(InvalidArgumentError, match="Redis or RedisCluster is needed"):
        SandboxStore(client)

    async def main() -> None:
        with pytest.raises(InvalidArgumentError):
            AsyncSandboxStore(redis.sentinel.Sentinel([("a", 7)]).master_for("it"))

    asyncio.run(main())


# -- who a connection turns out to lead to

INFO = b"id=7 addr=10.0.0.9:50000 laddr=10.0.0.1:6379 fd=8"
MASTER = led("redis+sentinel://a/it").endpoint(Place("h:6379", "master"))


@pytest.mark.parametrize("role", [b"slave", b"sentinel"])
def test_what_the_sentinels_call_the_master_is_asked_whether_it_is(role):
    assert fence(MASTER, [b"OK", INFO, [b"master", 0, []]]) is not None
    with pytest.raises(Unsent) as refused:
        fence(MASTER, [b"OK", INFO, [role, b"10.0.0.2", 6379]])
    assert (refused.value.code, refused.value.hopeless) == ("READONLY", False)


def test_who_may_not_ask_for_the_role_takes_the_sentinels_word():
    assert fence(MASTER, [b"OK", INFO, ServerError("NOPERM", "no permissions")]) is not None


def test_a_fence_names_both_ends_of_its_connection():
    """Another server may have a connection of the same number from the same port."""
    command = fence(MASTER, [b"OK", INFO, [b"master", 0, []]])
    assert command == ("CLIENT", "KILL", "ID", b"7", "ADDR", b"10.0.0.9:50000", b"LADDR", b"10.0.0.1:6379")
