"""Users with the rights of a role, on real servers: what each must be able to do, and what it must not."""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from sandbox_redis import (
    AsyncSandboxStore,
    InvalidArgumentError,
    NotFoundError,
    SandboxStore,
    SchemaError,
    Severity,
    State,
    Status,
    StoreUnavailableError,
    acl,
)
from sandbox_redis.acl import Role
from sandbox_redis.cli import main
from sandbox_redis.soak.deployment import Clusters

NEWEST = {"valkey": (9, 1), "redis": (7, 0)}
VERSIONS = ["oldest", "newest"]
PASSWORD = "p4ss w@rd"
RAW = {  # what a line of another store's records looks like
    "HGETALL": ("HGETALL", "other:{0}:status:a"),
    "HSET": ("HSET", "other:{0}:status:a", "state", "READY"),
    "DEL": ("DEL", "other:{0}:status:a"),
    "XADD": ("XADD", "other:{0}:events", "*", "id", "a"),
    "beginning": ("HSET", "sandboxes:{0}:status:a", "state", "READY"),
}
NOBODYS = (  # what no role may do, each with what it would do
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("SCRIPT", "FLUSH"),
    ("EVAL", "return redis.call('FLUSHALL')", "0"),
    ("KEYS", "*"),
    ("SET", "sandbox:meta", "x"),
    ("RENAME", "sandbox:meta", "sandbox:mine"),
    ("EXPIRE", "sandbox:meta", "1"),
    ("XTRIM", "sandbox:{0}:events", "MAXLEN", "0"),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "sandbox-agent", "+@all"),
    ("REPLICAOF", "NO", "ONE"),
    ("SWAPDB", "0", "1"),
    ("SAVE",),
    ("SHUTDOWN", "NOSAVE"),
    ("MONITOR",),
    ("PUBLISH", "all", "x"),
)
ADMINS = (  # what an admin may do beside
    ("INFO",),
    ("CONFIG", "GET", "maxmemory-policy"),
    ("CLIENT", "LIST"),
    ("DBSIZE",),
    ("LATENCY", "LATEST"),
    ("MEMORY", "STATS"),
    ("MEMORY", "USAGE", "sandbox:meta"),
    ("SLOWLOG", "GET"),
    ("TIME",),
    ("XINFO", "STREAM", "sandbox:{0}:events"),
)
FOR_OTHERS = {  # granted for clusters, replicas and lost connections, which there are none of here
    "asking", "client|kill", "client|tracking", "cluster|shards", "cluster|slots", "command", "ping", "readonly",
    "role", "select", "wait", "waitaof",
}  # fmt: skip


@pytest.fixture(params=["valkey", "redis"])
def name(request) -> str:
    return request.param


@pytest.fixture(params=VERSIONS)
def version(request, name) -> acl.Version:
    return acl.OLDEST if request.param == "oldest" else NEWEST[name]


@pytest.fixture
def root(name, module_servers) -> Iterator[redis.Redis]:
    """The server's owner; another store has data there, too."""
    client = redis.Redis.from_url(module_servers(name).url)
    client.flushall()
    for role in Role:
        client.acl_deluser(f"sandbox-{role}")
    client.hset("other:{0}:status:a", "state", "INIT")
    yield client
    client.close()


@pytest.fixture
def url(root, name, module_servers) -> Callable[..., str]:
    """Makes a user of a role, and the URL that it logs in with."""

    def make(role: Role, version: acl.Version = acl.OLDEST) -> str:
        rules = acl.rules(role, "sandbox", version=version, password=PASSWORD)
        root.execute_command("ACL", "SETUSER", f"sandbox-{role}", *rules)
        return f"redis://sandbox-{role}:p4ss%20w%40rd@127.0.0.1:{module_servers(name).port}/0"

    return make


@pytest.fixture
def everything(root) -> Callable[[], dict[bytes, bytes]]:
    """All that the server holds, and how it is set."""

    def take() -> dict[bytes, bytes]:
        found = {key: root.dump(key) for key in sorted(root.scan_iter())}
        return found | {b"maxmemory": root.config_get("maxmemory"), b"users": root.acl_list()}

    return take


@pytest.fixture
def filled(root, name, module_servers) -> None:
    """A store with a sandbox in each state."""
    with SandboxStore.from_url(module_servers(name).url, agent="owner") as store:
        for state in ("READY", "NOTREADY", "UNKNOWN"):
            store.load(f"a-{state}", Status(state=State[state], created_at_ns=1), node="node-1")
        store.create(sandbox_id="a-INIT", node="node-1")


def follow(store: Any) -> None:
    watch = store.watch(since="0-0")
    assert next(iter(watch)).sandbox.id == "a-READY"
    watch.close()


def history(store: Any) -> None:
    assert [event.transition for event in store.history("a-READY")] == ["load"]
    with pytest.raises(NotFoundError):
        store.history("none")


def mirror(store: Any) -> None:
    with store.mirror(node="node-1") as copy:
        assert copy.get("a-READY").status.state is State.READY
        assert copy.age < 60


def list_and_watch(store: Any) -> None:
    sandboxes, watch = store.list_and_watch(node="node-1")
    assert len(sandboxes) == 3
    watch.close()


def batch(store: Any) -> None:
    with store.batch() as several:
        several.start("b-1", pid=1)
    assert store.get("b-1").status.pid == 1


def clean(store: Any) -> None:
    store.update("b-1", lambda status: replace(status, pid=2))
    store.update("b-1", lambda status: status)
    store.exit("b-1", exit_status=3)


def batch_of_one(store: Any) -> None:
    with store.batch() as several:
        result = several.start("a-INIT", pid=1)
    result.result()


READS: dict[str, Callable[[Any], Any]] = {
    "get": lambda store: store.get("a-READY"),
    "get_many": lambda store: store.get_many(["a-READY", "none"]),
    "ids": lambda store: store.ids(node="node-1"),
    "page": lambda store: store.page(limit=1),
    "list": lambda store: list(store.list(labels={"app": "web"}, node="node-1")),
    "count": lambda store: store.count(state=State.READY, node="node-1"),
    "counts": lambda store: store.counts(),
    "resolve": lambda store: store.resolve("a-RE"),
    "history": history,
    "wait": lambda store: store.wait("a-READY", State.READY, timeout=5),
    "watch": follow,
    "list_and_watch": list_and_watch,
    "mirror": mirror,
    "port_forward": lambda store: store.port_forward("a-READY"),
    "status": lambda store: store.status("a-READY").get(),
    "audit": lambda store: store.audit(),
    "doctor": lambda store: store.doctor(),  # its repair is a write, see below
    "init": lambda store: store.init(),  # of a store that is there
}
WRITES: dict[str, Callable[[Any], Any]] = {  # in an order in which an agent can run them all
    "create": lambda store: store.create(sandbox_id="b-1", node="node-2"),
    "batch": batch,
    "load": lambda store: store.load("b-2", Status(state=State.READY, created_at_ns=1), node="node-2"),
    "start": lambda store: store.start("a-INIT", pid=1),
    "update": clean,
    "exit": lambda store: store.exit("a-INIT", exit_status=1),
    "stop": lambda store: store.stop("b-2"),
    "remove": lambda store: store.remove("b-2"),
    "fail_start": lambda store: (store.create(sandbox_id="b-3"), store.fail_start("b-3")),
}
REFUSED: dict[str, Callable[[Any], Any]] = WRITES | {  # the same, each by itself
    "batch": batch_of_one,
    "update": lambda store: store.update("a-READY", lambda status: replace(status, pid=2)),
    "exit": lambda store: store.exit("a-READY", exit_status=1),
    "stop": lambda store: store.stop("a-READY"),
    "remove": lambda store: store.remove("a-NOTREADY"),
    "fail_start": lambda store: store.fail_start("a-INIT"),
}


def test_each_operation_is_a_read_or_a_write():
    public = {name for name in vars(SandboxStore) if not name.startswith("_")}
    assert public - {"from_url", "close"} == READS.keys() | WRITES.keys()


@pytest.mark.parametrize("role", Role)
def test_every_role_runs_every_read(role, version, url, filled, everything):
    before_url = url(role, version)
    before = everything()
    with SandboxStore.from_url(before_url) as store:
        for read in READS.values():
            read(store)
    assert everything() == before


@pytest.mark.parametrize("role", [Role.AGENT, Role.ADMIN])
def test_agents_and_admins_run_every_write(role, version, url, filled):
    with SandboxStore.from_url(url(role, version)) as store:
        for write in WRITES.values():
            write(store)
        assert store.audit().problems == []


@pytest.mark.parametrize("write", WRITES)
def test_a_reader_writes_nothing(write, version, url, filled, everything):
    as_reader = url(Role.READER, version)
    before = everything()
    with (
        SandboxStore.from_url(as_reader) as store,
        pytest.raises(StoreUnavailableError, match="does not permit this user") as refusal,
    ):
        REFUSED[write](store)
    assert refusal.value.code == "NOPERM"
    assert everything() == before


def test_with_asyncio_it_is_the_same(url, filled, everything):
    async def read(reader: str) -> None:
        async with AsyncSandboxStore.from_url(reader) as store:
            assert [sandbox.id async for sandbox in store.list(node="node-1")] == ["a-NOTREADY", "a-READY", "a-UNKNOWN"]
            async with await store.mirror() as copy:
                assert copy.get("a-READY").status.state is State.READY
            async with store.watch(since="0-0") as watch:
                assert (await anext(watch)).sandbox.id == "a-READY"
            with pytest.raises(StoreUnavailableError, match="does not permit this user"):
                await store.stop("a-READY")

    async def write(agent: str) -> None:
        async with AsyncSandboxStore.from_url(agent) as store:
            await store.update("a-READY", lambda status: replace(status, pid=2))
            await store.remove("a-READY", force=True)

    as_reader, as_agent = url(Role.READER), url(Role.AGENT)
    before = everything()
    asyncio.run(read(as_reader))
    assert everything() == before
    asyncio.run(write(as_agent))
    assert everything() != before


def test_a_store_that_is_new_is_laid_out_by_an_agent_and_not_by_a_reader(url, root, everything):
    as_reader = url(Role.READER)
    before = everything()
    with SandboxStore.from_url(as_reader) as store:
        assert store.ids() == []
        for write in (store.create, store.init):
            with pytest.raises(StoreUnavailableError, match="does not permit this user"):
                write()
    assert everything() == before
    with SandboxStore.from_url(url(Role.AGENT)) as store:
        assert store.init().partitions == 1
    assert root.hget("sandbox:meta", "schema") == b"1"


def refused(client: redis.Redis, *command: object) -> None:
    """Also where the user may not do it by a script."""
    with pytest.raises(redis.ResponseError, match=r"(?i)no permissions|can't|not allowed"):
        client.execute_command(*command)


@pytest.mark.parametrize("role", Role)
def test_no_role_reaches_beyond_its_store_or_governs_the_server(role, version, url, filled, everything):
    client = redis.Redis.from_url(url(role, version))
    before = everything()
    for command in (*NOBODYS, *RAW.values()):
        refused(client, *command)
        sha = client.script_load(f"return redis.call({', '.join(map(repr, command))})")
        refused(client, "EVALSHA", sha, 0)
    refused(client, "EVALSHA", sha, 1, "other:{0}:status:a")
    assert everything() == before
    client.close()


@pytest.mark.parametrize("role", [Role.READER, Role.AGENT])
def test_only_an_admin_looks_into_the_server(role, url, filled, everything):
    looking, other = redis.Redis.from_url(url(Role.ADMIN)), redis.Redis.from_url(url(role))
    before = everything()
    for command in ADMINS:
        looking.execute_command(*command)
        refused(other, *command)
    assert everything() == before
    looking.close()
    other.close()


@pytest.mark.parametrize("role", Role)
def test_a_doctor_examines_the_whole_store_for_every_role_and_the_server_for_an_admin(role, version, url, filled):
    with SandboxStore.from_url(url(role, version)) as store:
        report = store.doctor()
    assert report.sandboxes == 4
    assert report.of(Severity.PROBLEM) == ()
    left_out = {each.subject for each in report.of(Severity.NOTE) if "was refused" in each.message}
    assert left_out == (set() if role is Role.ADMIN else {"INFO", "CONFIG GET", "TIME"})
    assert not any(each.area == "store" for each in report.of(Severity.WARNING))


@pytest.mark.parametrize("role", Role)
def test_agents_and_admins_mend_what_a_reader_only_finds(role, version, url, root, filled, everything):
    with SandboxStore.from_url(url(role, version)) as store:
        root.zrem("sandbox:{0}:state:READY", "a-READY")
        (damage,) = store.doctor().of(Severity.PROBLEM)
        before = everything()
        if role is Role.READER:
            with pytest.raises(StoreUnavailableError, match="does not permit this user"):
                store.doctor(repair=True)
            assert everything() == before
            return
        report = store.doctor(repair=True)
        assert (report.of(Severity.PROBLEM), len(report.mended)) == ((), 1)
        assert damage.repairable
        assert store.audit().problems == []


def test_an_agent_can_write_to_its_store_without_the_operations(url, filled):
    """Scripts run with the rights of their caller, so this cannot be kept from one who may run them. An audit tells."""
    client = redis.Redis.from_url(url(Role.AGENT))
    assert client.hset("sandbox:{0}:status:a-INIT", "state", "NOTREADY") == 0
    assert client.delete("sandbox:{0}:status:a-READY") == 1
    client.close()
    with SandboxStore.from_url(url(Role.READER)) as store:
        assert store.audit().problems


def test_an_agent_ends_the_connection_of_a_lost_reply_and_a_reader_ends_none(url, root):
    lost = redis.Redis.from_url(url(Role.AGENT))
    agent, reader = redis.Redis.from_url(url(Role.AGENT)), redis.Redis.from_url(url(Role.READER))
    lost.ping()
    victim = next(each for each in root.client_list() if each["user"] == "sandbox-agent")
    kill = ("CLIENT", "KILL", "ID", victim["id"], "ADDR", victim["addr"])
    refused(reader, *kill)
    assert victim["id"] in {each["id"] for each in root.client_list()}
    assert agent.execute_command(*kill) == 1
    assert victim["id"] not in {each["id"] for each in root.client_list()}
    for client in (lost, agent, reader):
        client.close()


@pytest.mark.parametrize("role", [Role.READER, Role.AGENT])
def test_a_role_may_send_what_the_store_sends_and_no_more(role, version, url, root, filled, name, module_servers):
    as_role = url(role, version)
    root.hset("sandbox:{0}:status:bad", "state", "INIT")
    root.set("sandbox:{0}:status:wrong", "no hash")
    with SandboxStore.from_url(module_servers(name).url, prefix="other") as absent:
        assert absent.ids() == []
    root.script_flush()
    root.config_resetstat()
    with SandboxStore.from_url(as_role) as store:
        for read in READS.values():
            read(store)
        with pytest.raises(SchemaError, match="wrong"):
            store.get("wrong")
        if role is Role.AGENT:
            for write in WRITES.values():
                write(store)
        said = root.info("commandstats")
    used = {each.removeprefix("cmdstat_") for each, counted in said.items() if counted["calls"]}
    owners = {"script|flush", "config|resetstat", "info", "auth", "hello"}
    assert set(acl.commands(role, version)) - FOR_OTHERS == used - owners - FOR_OTHERS


def test_on_a_cluster_the_roles_are_as_good():
    with Clusters(masters=1, replicas=0, aof="no") as cluster:
        (server,) = cluster.servers
        for role in Role:
            rules = acl.rules(role, "sandbox", version=(7, 0), password="word")
            server.ask("ACL", "SETUSER", f"sandbox-{role}", *rules)
        urls = {role: cluster.url.replace("//", f"//sandbox-{role}:word@") for role in Role}
        with SandboxStore.from_url(urls[Role.AGENT]) as agent, SandboxStore.from_url(urls[Role.READER]) as reader:
            agent.create(sandbox_id="a")
            with reader.mirror() as mirror, reader.watch() as watch:
                mirror.wait_for(agent.start("a", pid=7))
                assert mirror.get("a").status.pid == 7
                agent.stop("a")
                assert [next(watch).transition, next(watch).transition] == ["start", "stop"]
            with pytest.raises(StoreUnavailableError, match="does not permit this user"):
                reader.remove("a")
        for url in urls.values():
            with SandboxStore.from_url(url) as store:
                report = store.doctor()
                assert (report.sandboxes, report.of(Severity.PROBLEM)) == (1, ())


# -- passwords and forms


@pytest.fixture
def line(capsys, monkeypatch) -> Callable[..., str]:
    """What the command prints; a password is given on standard input."""

    def run(*arguments: str, password: str | None = PASSWORD) -> str:
        if password is not None:
            monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
            arguments += ("--password-stdin",)
        assert main(["acl", *arguments]) == 0
        printed = capsys.readouterr()
        assert PASSWORD not in printed.out + printed.err
        assert ("sets no password" in printed.err) == (password is None)
        return printed.out

    return run


def as_user(server: Any, user: str, password: str = PASSWORD) -> redis.Redis:
    return redis.Redis.from_url(server.url, username=user, password=password)


def logs_in(server: Any, user: str, password: str = PASSWORD) -> bool:
    client = as_user(server, user, password)
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return False
    finally:
        client.close()


def redis_cli(server: Any, line: str) -> str:
    binary = shutil.which("redis-cli") or shutil.which("valkey-cli") or pytest.skip("no redis-cli is installed")
    command = [binary, "-p", str(server.port)]
    return subprocess.run(command, input=line, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("prefix", ["sandbox", "a*[b'c\"\\"])
def test_redis_cli_takes_the_line_whatever_the_prefix(prefix, name, version, module_servers, root, line):
    server = module_servers(name)
    text = ".".join(map(str, version))
    assert redis_cli(server, line("agent", "--prefix", prefix, "--user", "one", "--server-version", text)) == "OK\n"
    client = as_user(server, "one")
    client.hset(f"{prefix}:meta", "schema", "1")
    refused(client, "HSET", f"{prefix.replace('*', 'xx')}x:meta", "schema", "1")
    client.close()
    root.acl_deluser("one")


def test_a_server_starts_with_the_lines_in_its_acl_file(name, version, own_server, tmp_path, line):
    path = tmp_path / "users.acl"
    text = ".".join(map(str, version))
    lines = [line(role, "--format", "file", "--server-version", text) for role in Role]
    path.write_text("".join([*lines, "user default off\n"]))
    server = own_server(name, port=0, options={"aclfile": str(path)})
    address = f"127.0.0.1:{server.port}"
    with SandboxStore.from_url(f"redis://sandbox-agent:p4ss%20w%40rd@{address}") as store:
        made = store.create()
    with SandboxStore.from_url(f"redis://sandbox-reader:p4ss%20w%40rd@{address}") as store:
        assert store.get(made.id) == made
    assert not logs_in(server, "default", "")


def test_rights_are_replaced_and_passwords_stay_unless_a_new_one_is_given(name, module_servers, root, line):
    server = module_servers(name)
    redis_cli(server, line("reader", "--user", "one", "--server-version", "7.0"))
    redis_cli(server, line("agent", "--user", "one", "--server-version", "7.0", "--prefix", "other", password=None))
    client = as_user(server, "one")
    assert client.hgetall("other:{0}:status:a")
    refused(client, "HGETALL", "sandbox:meta")
    refused(client, "EVALSHA", client.script_load("return 1"), 1, "sandbox:meta")
    client.close()
    redis_cli(server, line("agent", "--user", "one", password="another"))
    assert logs_in(server, "one", "another")
    assert not logs_in(server, "one")
    root.acl_deluser("one")


def test_without_a_password_nobody_can_log_in(name, module_servers, root, line):
    server = module_servers(name)
    redis_cli(server, line("admin", "--user", "one", password=None))
    assert [logs_in(server, "one", password) for password in ("", "change-me", PASSWORD)] == [False] * 3
    root.acl_deluser("one")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--user", "a b"], "user is 'a b'"),
        (["--user", ""], "user is ''"),
        (["--prefix", "a b"], "prefix is 'a b'"),
        (["--server-version", "6.0"], "version is '6.0'"),
        (["--server-version", "new"], "version is 'new'"),
    ],
)
def test_what_cannot_be_written_is_refused(arguments, words, capsys):
    assert main(["acl", "agent", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err


@pytest.mark.parametrize("password", ["", "sec\nret", "sec\0ret"])
def test_a_password_that_cannot_be_one_is_refused_without_being_told(password):
    with pytest.raises(InvalidArgumentError, match="password") as refusal:
        acl.rules(Role.AGENT, "sandbox", password=password)
    assert "sec" not in repr(refusal.value) + str(refusal.value)
