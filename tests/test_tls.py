"""TLS with a server that asks for a client's certificate, as Debian's redis-server has it: what works without it works
over it, and what is wrong with a certificate is said. And passwords, which nothing may say."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import subprocess
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import redis.asyncio
import trustme
from blocking import BlockingStore
from conftest import binary_of

from sandbox_redis import (
    AsyncSandboxStore,
    InvalidArgumentError,
    Metadata,
    SandboxStore,
    State,
    Status,
    StoreUnavailableError,
    pool,
)
from sandbox_redis.cli import main
from sandbox_redis.server import EmbeddedServer

PASSWORD = "hunter2-of-the-tests"
READY = Status(state=State.READY, created_at_ns=1)
MUCH = Metadata(labels={"much": "x" * 1000})


@dataclass
class Secured:
    """A server that is reached over TLS, and the files with which it can be."""

    server: EmbeddedServer
    port: int
    files: Path

    def options(self, **other: str) -> dict[str, str]:
        """What a client says of TLS."""
        names = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "agent.pem", "ssl_keyfile": "agent.key"} | other
        return {option: str(self.files / name) for option, name in names.items() if name}

    def url(self, host: str = "127.0.0.1", password: str = PASSWORD, **other: str) -> str:
        query = "&".join(f"{option}={path}" for option, path in self.options(**other).items())
        return f"rediss://:{password}@{host}:{self.port}/0" + (f"?{query}" if query else "")


@pytest.fixture(scope="module")
def secured(tmp_path_factory) -> Iterator[Secured]:
    files = tmp_path_factory.mktemp("certificates")
    ours, theirs = trustme.CA(), trustme.CA()
    for name, ca, host in (
        ("server", ours, "127.0.0.1"),
        ("agent", ours, "agent"),
        ("stranger", theirs, "agent"),
    ):
        issued = ca.issue_cert(host)
        issued.private_key_pem.write_to_path(files / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(files / f"{name}.pem")
        issued.private_key_and_cert_chain_pem.write_to_path(files / f"{name}.both")
    ours.cert_pem.write_to_path(files / "ca.pem")
    theirs.cert_pem.write_to_path(files / "other-ca.pem")
    (files / "nonsense").write_text("nonsense")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "tls-port": str(port),
        "bind": "127.0.0.1",
        "tls-cert-file": str(files / "server.pem"),
        "tls-key-file": str(files / "server.key"),
        "tls-ca-cert-file": str(files / "ca.pem"),
        "requirepass": PASSWORD,
        "appendfsync": "always",
    }
    with EmbeddedServer(tmp_path_factory.mktemp("data"), binary=binary_of("redis"), options=options) as server:
        yield Secured(server, port, files)


@pytest.fixture(params=["url", "client"])
def store(request, flavour, secured, prefix) -> Iterator[Any]:
    """A store over TLS, by its URL or by a client."""
    kind, library = (SandboxStore, redis) if flavour == "sync" else (AsyncSandboxStore, redis.asyncio)
    if request.param == "url":
        opened: Any = kind.from_url(secured.url(), prefix=prefix)
    else:
        client = library.Redis(host="127.0.0.1", port=secured.port, password=PASSWORD, ssl=True, **secured.options())
        opened = kind(client, prefix=prefix)
    opened = opened if flavour == "sync" else BlockingStore(opened)
    yield opened
    opened.close()


def test_every_kind_of_call_goes_over_tls(store):
    made = [store.create(node="node-1", metadata=MUCH) for _ in range(3)]
    with store.batch() as batch:
        results = [batch.start(sandbox.id, pid=1) for sandbox in made] + [
            batch.create(metadata=MUCH) for _ in range(50)
        ]
    assert [result.result().status.pid for result in results[:3]] == [1] * 3
    assert store.update(made[0].id, lambda status: replace(status, pid=2)).status.pid == 2
    assert store.count(state=State.INIT) == 50
    assert len(list(store.list(states=list(State)))) == 53
    store.exit(made[1].id, exit_status=3)
    assert store.wait(made[1].id, State.NOTREADY).status.exit_status == 3
    assert [event.transition for event in store.history(made[1].id)] == ["create", "start", "exit"]
    assert store.audit().problems == []


def test_a_watch_reads_on_after_a_restart(store, secured):
    made = store.create()
    watch = store.watch(since="0-0")
    events = iter(watch)
    assert next(events).sandbox.id == made.id
    secured.server.stop()
    secured.server.start()
    store.start(made.id, pid=1)
    assert next(events).transition == "start"
    watch.close()


def test_a_mirror_takes_in_many_records_at_once_and_reads_on_after_a_restart(secured, prefix, until):
    """Its reads take from the socket what is there: a reply of 500 events has many records of TLS."""
    with SandboxStore.from_url(secured.url(), prefix=prefix) as store, store.mirror() as mirror:
        for _ in range(2):
            with store.batch() as batch:
                results = [batch.load(f"m-{number}", READY, metadata=MUCH) for number in range(500)]
            mirror.wait_for(results[-1].result())
            assert mirror.count() == 500
            with store.batch() as batch:
                for number in range(500):
                    batch.remove(f"m-{number}", force=True)
            until(lambda: mirror.count() == 0)
        secured.server.stop()
        until(lambda: mirror.stale)
        secured.server.start()
        made = store.load("after", READY)
        mirror.wait_for(made, timeout=30)
        until(lambda: mirror.synced and not mirror.stale)


def test_a_mirror_of_asyncio_goes_over_tls(secured, prefix):
    async def body() -> None:
        async with AsyncSandboxStore.from_url(secured.url(), prefix=prefix) as store, await store.mirror() as mirror:
            made = await asyncio.gather(*(store.load(f"m-{n}", READY, metadata=MUCH) for n in range(100)))
            for sandbox in made:
                await mirror.wait_for(sandbox)
            assert mirror.count() == 100

    asyncio.run(body())


def test_a_store_of_asyncio_leaves_no_connection_behind(secured, prefix, until):
    async def body() -> None:
        async with AsyncSandboxStore.from_url(secured.url(), prefix=prefix) as store:
            made = await store.create()
            await store.update(made.id, lambda status: replace(status, created_at_ns=2))
            async with store.watch(since="0-0") as watch:
                await anext(watch)

    asyncio.run(body())
    gc.collect()  # what was left open would be complained of
    ours = psutil.Process().net_connections("tcp")
    assert [each for each in ours if each.raddr and each.raddr.port == secured.port] == []


def test_an_idle_connection_is_used_again(secured, prefix, monkeypatch):
    """It is looked at before: what TLS itself has to say (new session tickets) does not count as closed."""
    monkeypatch.setattr(pool, "IDLE_MAX", 0)
    owner = redis.Redis(unix_socket_path=str(secured.server.socket_path), password=PASSWORD)
    with SandboxStore.from_url(secured.url(), prefix=prefix) as store, owner:
        made = store.create()
        before = owner.info("stats")["total_connections_received"]
        for _ in range(5):
            store.get(made.id)
        assert owner.info("stats")["total_connections_received"] == before


@pytest.mark.parametrize("what", ["watch", "mirror"])
def test_closing_ends_what_is_waited_for(what, secured, prefix, until):
    with SandboxStore.from_url(secured.url(), prefix=prefix, timeout=30) as store:
        opened = getattr(store, what)()
        waiting = threading.Thread(target=lambda: list(opened) if what == "watch" else opened.close())
        waiting.start()
        opened.close()
        waiting.join(10)
        assert not waiting.is_alive()


# -- what is not accepted


@pytest.mark.parametrize(
    ("other", "host", "words"),
    [
        ({"ssl_ca_certs": "other-ca.pem"}, "127.0.0.1", "its certificate is not trusted: self-signed certificate"),
        ({"ssl_ca_certs": ""}, "127.0.0.1", "its certificate is not trusted"),
        ({}, "localhost", "its certificate is not trusted: Hostname mismatch"),
        ({"ssl_certfile": "", "ssl_keyfile": ""}, "127.0.0.1", "certificate required"),
        ({"ssl_certfile": "stranger.pem", "ssl_keyfile": "stranger.key"}, "127.0.0.1", "unknown ca"),
    ],
    ids=["another CA", "no CA", "another host", "no certificate", "a certificate of another CA"],
)
def test_a_certificate_that_is_not_accepted_is_told_at_once(other, host, words, flavour, secured, prefix):
    url = secured.url(host, **other)
    kind: Any = (
        SandboxStore if flavour == "sync" else lambda *args, **more: BlockingStore(AsyncSandboxStore(*args, **more))
    )
    store = kind(url, prefix=prefix, timeout=60)
    with pytest.raises(StoreUnavailableError) as refusal:
        store.create()
    assert refusal.value.code == "TLS"
    assert words in str(refusal.value)
    assert "ssl_ca_certs, ssl_certfile and ssl_keyfile in the URL" in str(refusal.value)
    assert PASSWORD not in told(refusal.value)
    store.close()
    with SandboxStore.from_url(secured.url(), prefix=prefix) as good:
        assert good.audit().sandboxes == {}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"ssl_ca_certs": "none.pem"}, r"ssl_ca_certs is '.*none\.pem': it cannot be read: No such file"),
        ({"ssl_certfile": "none.pem"}, r"ssl_certfile is '.*none\.pem': it cannot be read"),
        ({"ssl_keyfile": "none.key"}, r"ssl_keyfile is '.*none\.key': it cannot be read"),
        ({"ssl_ca_certs": "nonsense"}, "ssl_ca_certs is .* a PEM file with certificates is needed"),
        ({"ssl_certfile": "nonsense"}, "ssl_certfile is .* a certificate, its key"),
        ({"ssl_keyfile": "stranger.key"}, "ssl_certfile is .* key values mismatch"),
        ({"ssl_keyfile": ""}, "ssl_certfile is .* a certificate, its key"),
        ({"ssl_certfile": ""}, "ssl_keyfile is .* ssl_certfile, with its certificate, is needed"),
        ({"ssl_cert_reqs": "sometimes"}, "ssl_cert_reqs must be required, optional or none"),
        ({"ssl_cacerts": "ca.pem"}, "ssl_cacerts is no option of a connection"),
    ],
)
@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_what_cannot_be_used_is_refused_before_anything_is_sent(kind, other, words, secured):
    with pytest.raises(InvalidArgumentError, match=words) as refusal:
        kind.from_url(secured.url(**other))
    assert PASSWORD not in told(refusal.value)


def test_one_file_may_hold_the_certificate_and_its_key(secured, prefix):
    with SandboxStore.from_url(secured.url(ssl_certfile="agent.both", ssl_keyfile=""), prefix=prefix) as store:
        store.create()


def test_a_key_with_a_password_is_not_asked_for_on_the_terminal(secured):
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key((secured.files / "agent.key").read_bytes(), None)
    locked = key.private_bytes(
        pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"opened-by-this")
    )
    (secured.files / "locked.key").write_bytes(locked)
    with pytest.raises(InvalidArgumentError, match="ssl_password"):
        SandboxStore.from_url(secured.url(ssl_keyfile="locked.key"))
    with SandboxStore.from_url(secured.url(ssl_keyfile="locked.key") + "&ssl_password=opened-by-this") as store:
        store.ids()
    with pytest.raises(InvalidArgumentError) as refusal:
        SandboxStore.from_url(secured.url(ssl_keyfile="locked.key") + "&ssl_password=opened-by-that")
    assert "opened-by" not in f"{refusal.value!r} {vars(refusal.value)}"


def test_ssl_options_need_the_scheme_for_tls(secured):
    with pytest.raises(InvalidArgumentError, match="ssl_ca_certs is for rediss:// only"):
        SandboxStore.from_url(secured.url().replace("rediss", "redis"))


def test_redis_cli_is_led_there_with_the_same_certificates(secured, prefix, capsys):
    with SandboxStore.from_url(secured.url(), prefix=prefix) as store:
        store.create(sandbox_id="web-0", node="node-1")
    assert main(["key", "web-0", "--url", secured.url(), "--prefix", prefix]) == 0
    printed = capsys.readouterr()
    assert PASSWORD not in printed.out + printed.err
    environment = os.environ | {"REDISCLI_AUTH": PASSWORD}
    line = printed.out.splitlines()[1]
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True, env=environment, check=True)
    assert "node-1" in run.stdout


# -- passwords


def told(error: BaseException) -> str:
    """All that can be read of an error."""
    return f"{error!s} {error!r} {vars(error)} {''.join(traceback.format_exception(error))}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@{}",
        "redis://bob:hunter2@{}/x",
        "redis://:hun/ter2@{}",
        "redis://:hun?ter2@{}",
        "redis://:hun#ter2@{}",
        "redis://:123?hunter2@{}",
        "redis://:123#hunter2@{}",
        "redis://:hun\nter2@{}x",
        "redis://:hun@ter2@{}x",
        "redis://:hunter2@{}?hunter=2",
        "redis://{}?password=hunter2&db=x",
        "redis://{}/x?password=hunter2",
        "rediss://{}?ssl_password=hunter2&ssl_cert_reqs=x",
        "http://:hunter2@{}",
        "unix://:hunter2@/no/such/socket",
        b"redis://:hunter2@{}",
        ["redis://:hunter2@{}"],
    ],
)
@pytest.mark.parametrize("kind", [SandboxStore, AsyncSandboxStore])
def test_no_error_and_no_repr_tells_a_password_of_a_url(kind, url):
    where = "127.0.0.1:1"
    source = url.replace("{}", where) if isinstance(url, str) else url
    try:
        store = kind(source, timeout=1)
    except InvalidArgumentError as error:
        said = told(error)
    else:
        said = repr(store) + repr(vars(store)) + repr(store._lane._way)
        call = store.ids if kind is SandboxStore else lambda: asyncio.run(store.ids())
        with pytest.raises(StoreUnavailableError) as refusal:
            call()
        said += told(refusal.value)
    lines = [line for line in said.splitlines() if 'File "' not in line and "kind(source" not in line]
    assert "hunter2" not in "\n".join(lines)
    assert "ter2" not in "\n".join(lines)


@pytest.mark.parametrize(
    "arguments", [["ls"], ["watch"], ["wait", "a"], ["get", "a"], ["create"], ["--help"], ["top"], []]
)
def test_the_command_line_tells_no_password(arguments, own_server, capsys, monkeypatch):
    server = own_server(port=0, options={"requirepass": "another"})
    url = f"redis://:hunter2@127.0.0.1:{server.port}/0"
    for given in ([], ["--url", url]):
        monkeypatch.setenv("SANDBOX_REDIS_URL", url)
        main([*given, *arguments])
        printed = capsys.readouterr()
        assert "hunter2" not in printed.out + printed.err


def test_no_log_tells_a_password(secured, prefix, caplog, until):
    caplog.set_level(logging.DEBUG)
    with SandboxStore.from_url(secured.url(), prefix=prefix) as store, store.mirror() as mirror:
        secured.server.stop()
        until(lambda: mirror.stale)
        secured.server.start()
        until(lambda: mirror.synced and not mirror.stale)
    wrong = SandboxStore.from_url(secured.url(password="hunter2-wrong"), prefix=prefix)
    with pytest.raises(StoreUnavailableError, match="does not accept the user name or password"):
        wrong.ids()
    assert "connected again" in caplog.text
    assert "hunter2" not in caplog.text
