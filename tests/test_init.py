"""A store that is laid out before anybody writes to it: `init` of both faces, and the command."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_redis import InvalidArgumentError, Layout, LayoutError, SandboxStore, SchemaError
from sandbox_redis.cli import main


def test_a_store_is_laid_out_once_and_every_client_follows(open_store, snapshot, prefix):
    assert open_store().init(partitions=4, events_maxlen=50) == Layout(4, 50)
    written = snapshot()
    assert written == {f"{prefix}:meta": {b"schema": b"1", b"partitions": b"4", b"events_maxlen": b"50"}}
    other = open_store(partitions=2)
    assert other.init() == other.init(partitions=4) == other.init(events_maxlen=50) == Layout(4, 50)
    assert open_store(partitions=2).init(partitions=4, events_maxlen=50) == Layout(4, 50)
    assert snapshot() == written
    other.create(sandbox_id="it")
    assert f"{prefix}:{{{other._operations._keys.partition('it')}}}:status:it" in snapshot()
    assert other._operations._keys.partitions == 4


@pytest.mark.parametrize("wanted", [{"partitions": 3}, {"events_maxlen": 51}, {"partitions": 3, "events_maxlen": 50}])
def test_other_numbers_are_refused_with_those_that_are(open_store, snapshot, wanted):
    store = open_store()
    store.init(partitions=4, events_maxlen=50)
    before = snapshot()
    for each in (store, open_store()):
        with pytest.raises(LayoutError, match="4 as partitions and 50 as events_maxlen") as error:
            each.init(**wanted)
        assert (error.value.partitions, error.value.events_maxlen) == (4, 50)
    assert snapshot() == before
    store.create(sandbox_id="it")
    assert store.get("it").id == "it"


def test_without_numbers_it_is_laid_out_as_the_store_was_opened(open_store):
    assert open_store(partitions=3, events_maxlen=70).init() == Layout(3, 70)


@pytest.mark.parametrize(
    "wanted", [{"partitions": 0}, {"partitions": 16385}, {"events_maxlen": 0}, {"partitions": "4"}]
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_sent(open_store, snapshot, wanted):
    with pytest.raises(InvalidArgumentError) as error:
        open_store().init(**wanted)
    assert error.value.argument in wanted
    assert snapshot() == {}


def test_a_store_that_was_flushed_is_laid_out_anew(open_store, client, prefix):
    store = open_store()
    store.init(partitions=4)
    client.delete(f"{prefix}:meta")
    assert store.init(partitions=5).partitions == 5


def test_what_is_no_layout_is_left_alone(open_store, client, prefix, snapshot):
    client.set(f"{prefix}:meta", "mine")
    before = snapshot()
    with pytest.raises(SchemaError):
        open_store().init()
    assert snapshot() == before
    client.delete(f"{prefix}:meta")


@pytest.fixture
def cli(servers, prefix, capsys):
    """Runs the command in this process: its exit status, output and errors."""

    def run(*words: Any) -> tuple[int, str, str]:
        status = main(["--url", servers("valkey").url, "--prefix", prefix, "init", *map(str, words)])
        return (status, *capsys.readouterr())

    yield run
    with SandboxStore(servers("valkey").url, prefix=prefix) as store:
        assert store.audit().problems == []


def test_the_command_says_how_the_store_is_laid_out(cli, prefix):
    assert cli() == (0, "1 partition, each keeps about 100000 events\n", "")
    assert cli("--partitions", 1, "--events-maxlen", 100_000)[0] == 0
    status, out, _ = cli("--json")
    assert (status, json.loads(out)) == (0, {"prefix": prefix, "partitions": 1, "events_maxlen": 100_000})
    status, out, err = cli("--partitions", 8)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "exists already, with 1 as partitions and 100000 as events_maxlen" in err
    assert cli("--partitions", 0)[0] == 2
    assert cli("--partitions", "many")[0] == 2


def test_the_command_takes_numbers_for_a_new_store(cli):
    assert cli("--partitions", 8, "--events-maxlen", 10) == (0, "8 partitions, each keeps about 10 events\n", "")
