"""How a record is written and read again, as properties; no server. What is garbled is told, and breaks nothing."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox_redis import Event, InvalidArgumentError, Metadata, Sandbox, State, Status
from sandbox_redis.record import (
    event_from_fields,
    metadata_to_fields,
    pairs,
    sandbox_from_fields,
    status_to_fields,
    time_to_text,
)

KEY = "sandbox:{0}:status:it"
UINT32 = st.integers(0, 2**32 - 1)
NS = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)
TEXTS = st.dictionaries(TEXT.filter(bool), TEXT, max_size=4)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT | st.binary()
VALUE = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(TEXT | st.integers(-9, 9), inner), max_leaves=8
)
STATUS = st.builds(Status, st.sampled_from(State), UINT32, NS, NS, UINT32)
METADATA = st.builds(Metadata, TEXT, TEXT, TEXT, UINT32, TEXT, TEXTS, TEXTS, st.dictionaries(TEXT.filter(bool), VALUE))

GOOD = {
    b"state": b"READY",
    b"pid": b"4242",
    b"created_at": b"2026-11-23T15:07:43.281389235Z",
    b"exited_at": b"2026-11-23T15:07:44.000000001Z",
    b"exit_status": b"137",
    b"attempt": b"1",
    b"epoch": b"0",
    b"node": b"node-1",
    b"name": b"web-0",
    b"namespace": b"default",
    b"uid": b"u",
    b"runtime_handler": b"runc",
    b"label:app": b"web",
    b"annotation:why": b"because",
    b"ext:quota": msgpack.packb({"cpu": 2}),
    b"revision": b"1795446463281-0",
    b"request": b"0123456789abcdef01234567",
}
FORMS = {
    rb"state": rb"INIT|READY|NOTREADY|UNKNOWN",
    rb"pid|exit_status|attempt|epoch": rb"0*[0-9]{1,10}",
    rb"created_at|exited_at": rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z",
}


def in_redis(status: Status, metadata: Metadata) -> dict[bytes, bytes]:
    """The fields of a record, as HGETALL gives them."""
    names = ("state", "pid", "created_at", "exited_at", "exit_status")
    written = {n: str(v) for n, v in zip(names, status_to_fields(status), strict=True) if v != ""}
    flat = [*(item for pair in written.items() for item in pair), *metadata_to_fields(metadata)]
    return pairs(item if isinstance(item, bytes) else item.encode() for item in flat)


@given(STATUS, METADATA)
def test_what_is_written_is_read_again(status, metadata):
    sandbox = sandbox_from_fields("it", KEY, in_redis(status, metadata))
    assert sandbox == Sandbox("it", "", status, metadata, "", 0, None)


@given(NS.filter(bool))
@example(1795446463281389235)
@example(1)
@example(2**63 - 1)
def test_times_are_rfc_3339_in_utc_with_nine_digits(ns):
    text = time_to_text(ns)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", text)
    second, nano = text[:-1].split(".")
    assert int(datetime.fromisoformat(f"{second}+00:00").timestamp()) * 10**9 + int(nano) == ns


def test_no_time_is_written_as_nothing():
    assert time_to_text(0) == ""
    assert time_to_text(1795446463281389235) == "2026-11-23T15:07:43.281389235Z"


def test_a_status_gives_aware_datetimes():
    status = Status(State.READY, created_at_ns=1795446463281389235)
    assert status.created_at == datetime(2026, 11, 23, 15, 7, 43, 281389, UTC)
    assert status.created_at.tzinfo is UTC
    assert status.exited_at is None


@pytest.mark.parametrize("kind", [Status, Metadata, Sandbox, Event])
def test_records_are_frozen_and_slotted(kind):
    assert kind.__slots__ == tuple(field.name for field in fields(kind))
    with pytest.raises(FrozenInstanceError):
        kind.__setattr__(object.__new__(kind), fields(kind)[0].name, 1)


@given(
    st.sampled_from(sorted(GOOD)),
    st.binary(max_size=40) | st.text(max_size=20).map(lambda t: t.encode("utf-8", "replace")),
)
@example(b"pid", b"4294967296")
@example(b"pid", b"-1")
@example(b"pid", b"\xd9\xa3")  # an Arabic three
@example(b"pid", b"9" * 5000)
@example(b"state", b"ready")
@example(b"state", b"")
@example(b"created_at", b"2026-11-23T15:07:43.281389235")
@example(b"created_at", b"2026-02-30T15:07:43.281389235Z")
@example(b"created_at", b"9999-11-23T15:07:43.281389235Z")
@example(b"created_at", b"2026-11-23T15:07:43,281389235Z")
@example(b"ext:quota", b"\xc1")
@example(b"ext:quota", b"\x93\x01")
@example(b"ext:quota", b"\x81\x90\x01")  # a list as a key
@example(b"ext:quota", b"\xd6\xff\x00\x00\x00\x01")  # a timestamp
@example(b"label:app", b"\xff")
def test_a_garbled_field_makes_the_sandbox_unknown_with_a_problem_that_names_it(name, value):
    sandbox = sandbox_from_fields("it", KEY, GOOD | {name: value})
    form = next((form for names, form in FORMS.items() if re.fullmatch(names, name)), None)
    if form and not re.fullmatch(form, value):
        assert sandbox.problem
    if sandbox.problem:
        assert sandbox.status.state is State.UNKNOWN
        assert KEY in sandbox.problem
        assert name.decode() in sandbox.problem
        good = sandbox_from_fields("it", KEY, GOOD)
        assert sandbox.metadata.labels == (good.metadata.labels if name != b"label:app" else {})
        assert sandbox.status.pid == (4242 if name != b"pid" else 0)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)) | st.binary(max_size=12), st.binary(max_size=40)))
def test_nothing_in_redis_breaks_a_reader(garbage):
    sandbox = sandbox_from_fields("it", KEY, garbage)
    assert sandbox.id == "it"
    assert (sandbox.problem is None) or sandbox.status.state is State.UNKNOWN
    event_from_fields("1-0", "sandbox:{0}:events", garbage)


def test_a_record_without_a_state_is_unknown():
    fields = {name: value for name, value in GOOD.items() if name != b"state"}
    sandbox = sandbox_from_fields("it", KEY, fields)
    assert sandbox.status.state is State.UNKNOWN
    assert KEY in sandbox.problem
    assert "state" in sandbox.problem


@pytest.mark.parametrize(
    ("status", "argument"),
    [
        (None, "status"),
        ("READY", "status"),
        (Status("READY"), "status.state"),
        (Status(None), "status.state"),
        (Status(State.READY, pid=-1), "status.pid"),
        (Status(State.READY, pid=2**32), "status.pid"),
        (Status(State.READY, pid=True), "status.pid"),
        (Status(State.READY, pid="1"), "status.pid"),
        (Status(State.READY, pid=1.0), "status.pid"),
        (Status(State.READY, exit_status=2**32), "status.exit_status"),
        (Status(State.READY, created_at_ns=-1), "status.created_at_ns"),
        (Status(State.READY, exited_at_ns=2**63), "status.exited_at_ns"),
    ],
)
def test_a_status_is_checked_before_it_is_written(status, argument):
    with pytest.raises(InvalidArgumentError) as error:
        status_to_fields(status)
    assert error.value.argument == argument
    assert error.value.rule in str(error.value)


FULL = "x" * 1024
BAD_METADATA = [
    (None, "metadata"),
    ({"name": "web"}, "metadata"),
    (Metadata(name=None), "metadata.name"),
    (Metadata(name="a\x00b"), "metadata.name"),
    (Metadata(uid="\ud800"), "metadata.uid"),
    (Metadata(namespace=FULL + "x"), "metadata.namespace"),
    (Metadata(runtime_handler=b"runc"), "metadata.runtime_handler"),
    (Metadata(attempt=2**32), "metadata.attempt"),
    (Metadata(attempt=-1), "metadata.attempt"),
    (Metadata(labels=["app"]), "metadata.labels"),
    (Metadata(labels={"": "web"}), "metadata.labels key"),
    (Metadata(labels={1: "web"}), "metadata.labels key"),
    (Metadata(labels={"a\x00": "web"}), "metadata.labels key"),
    (Metadata(labels={FULL + "x": "web"}), "metadata.labels key"),
    (Metadata(labels={"é" * 513: "web"}), "metadata.labels key"),
    (Metadata(labels={"app": FULL + "x"}), "metadata.labels['app']"),
    (Metadata(labels={"app": None}), "metadata.labels['app']"),
    (Metadata(labels={"app": "\udfff"}), "metadata.labels['app']"),
    (Metadata(annotations={"app": "a\x00"}), "metadata.annotations['app']"),
    (Metadata(annotations={"app": "x" * 65536}), "metadata"),
    (Metadata(annotations={"app": "x" * 65537}), "metadata.annotations['app']"),
    (Metadata(extensions=1), "metadata.extensions"),
    (Metadata(extensions={"": 1}), "metadata.extensions key"),
    (Metadata(extensions={"e": object()}), "metadata.extensions['e']"),
    (Metadata(extensions={"e": 2**64}), "metadata.extensions['e']"),
    (Metadata(extensions={"e": {(1, 2): 3}}), "metadata.extensions['e']"),
    (Metadata(extensions={"e": "\ud800"}), "metadata.extensions['e']"),
    (Metadata(extensions={"e": b"x" * 65536}), "metadata"),
    (Metadata(labels={str(i): "" for i in range(1001)}), "metadata"),
    (Metadata(labels={str(i): FULL for i in range(63)}), "metadata"),
]


@pytest.mark.parametrize(("metadata", "argument"), BAD_METADATA)
def test_metadata_is_checked_before_it_is_written(metadata, argument):
    with pytest.raises(InvalidArgumentError) as error:
        metadata_to_fields(metadata)
    assert error.value.argument == argument
    assert error.value.rule in str(error.value)
    assert len(str(error.value)) < 400  # whatever was passed in


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata(FULL, FULL, FULL, 2**32 - 1, FULL, {FULL: FULL}, {FULL: FULL}, {FULL: FULL}),
        Metadata(labels={str(i): "" for i in range(1000)}),
        Metadata(annotations={"big": "x" * (63 * 1024 - 30)}),
    ],
)
def test_metadata_up_to_its_limits_is_taken(metadata):
    assert sandbox_from_fields("it", KEY, in_redis(Status(State.INIT), metadata)).metadata == metadata


def test_an_event_tells_the_status_after_and_carries_metadata_only_where_it_has_it():
    stored = GOOD | {b"id": b"it", b"transition": b"load", b"by": b"me"}
    event = event_from_fields("1795446463281-0", "sandbox:{0}:events", stored)
    assert event.sandbox == replace(sandbox_from_fields("it", KEY, GOOD), revision="1795446463281-0")
    assert event.at == datetime(2026, 11, 23, 15, 7, 43, 281000, UTC)
    assert (event.id, event.transition, event.before, event.by) == ("it", "load", None, "me")
    deleted = {name: value for name, value in stored.items() if name != b"state"} | {b"before": b"NOTREADY"}
    event = event_from_fields("1795446463281-0", "sandbox:{0}:events", deleted)
    assert event.sandbox is None
    assert event.before is State.NOTREADY
