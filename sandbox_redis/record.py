"""What the store holds (`Status`, `Metadata`, `Sandbox`) and what it tells of a change (`Event`), and how each is
written in the fields of a Redis hash or stream entry: the only place that knows the encoding. No I/O.

Text, decimals and RFC 3339 times are readable in redis-cli; only ``ext:`` fields are msgpack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from sandbox_redis import checks
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.states import State

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = 10**9  # nanoseconds
_STATES: Final = {state.value.encode(): state for state in State}


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a sandbox: containerd's ``Status``, with the exit information of CRI.

    Times are nanoseconds since the Unix epoch, as in CRI's ``PodSandboxStatus.created_at``; 0 is none.
    """

    state: State
    pid: int = 0
    """uint32; 0 when there is no process."""
    created_at_ns: int = 0
    exited_at_ns: int = 0
    """0 when it has not exited, or when nobody has told yet."""
    exit_status: int = 0
    """uint32; it says something only where `exited_at_ns` is not 0."""

    @property
    def created_at(self) -> datetime | None:
        """`created_at_ns` in UTC, to the microsecond; None for 0."""
        return _datetime(self.created_at_ns)

    @property
    def exited_at(self) -> datetime | None:
        """`exited_at_ns` in UTC, to the microsecond; None for 0."""
        return _datetime(self.exited_at_ns)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a sandbox is: CRI's ``PodSandboxMetadata`` and more. It does not change after `create` or `load`."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    attempt: int = 0
    """uint32: how often this pod's sandbox was created before."""
    runtime_handler: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Keys and values of at most 1 KiB each."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, Any] = field(default_factory=dict)
    """Any values that msgpack can carry."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One record of the store."""

    id: str
    node: str
    status: Status
    metadata: Metadata
    revision: str
    """The id of the event that made the record what it is; strictly increasing in a partition."""
    epoch: int = 0
    problem: str | None = None
    """Why the record could not be loaded, where `status.state` is UNKNOWN for that reason."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one sandbox."""

    id: str
    transition: str
    """The operation's name; ``stop`` and ``remove`` for a forced removal of a running sandbox."""
    before: State | None
    """The state before; None when there was no record."""
    sandbox: Sandbox | None
    """The sandbox after, None after a delete. Its metadata is there only where the event carries it: in the events of
    `create` and `load`."""
    revision: str
    at: datetime
    """When, by the server's clock, in UTC."""
    by: str
    """The agent that asked for it."""
    request: str
    """The token of the write."""
    places: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Where its watch stood behind it: a revision for each partition."""

    @property
    def cursor(self) -> str:
        """Where a watch goes on behind this event: what its ``since`` takes. Text, to be stored anywhere."""
        return ",".join(self.places) or self.revision


def _datetime(ns: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=ns // 1000) if ns else None


@lru_cache(maxsize=1024)
def _second_to_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=1024)
def _second_from_text(text: bytes) -> int:
    return int(datetime.strptime(text.decode(), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp())


def time_to_text(ns: int) -> str:
    """RFC 3339 in UTC with nine fractional digits; the empty string for 0."""
    if not ns:
        return ""
    second, fraction = divmod(ns, _SECOND)
    return f"{_second_to_text(second)}.{fraction:09}Z"


def _time(value: bytes) -> int:
    """The nanoseconds of what `time_to_text` wrote."""
    if len(value) != 30 or value[19:20] != b"." or value[29:] != b"Z" or not value[20:29].isdigit():
        raise ValueError("it is not of the form 2026-11-23T15:07:43.281389235Z")
    ns = _second_from_text(value[:19]) * _SECOND + int(value[20:29])
    if not 0 < ns <= checks.INT64_MAX:
        raise ValueError("it is not between 1970 and 2262")
    return ns


def _uint32(value: bytes) -> int:
    if not value.isdigit() or not (number := int(value)) <= checks.UINT32_MAX:
        raise ValueError(f"it is not a whole number from 0 to {checks.UINT32_MAX}")
    return number


def _state(value: bytes) -> State:
    if (state := _STATES.get(value)) is None:
        raise ValueError(f"it is none of {', '.join(State)}")
    return state


def status_to_fields(status: Status) -> tuple[str, int, str, str, int]:
    """State, pid, created_at, exited_at and exit_status as a script takes them; checks them first."""
    if not isinstance(status, Status):
        raise InvalidArgumentError("status", status, "a Status is needed")
    if not isinstance(status.state, State):
        raise InvalidArgumentError("status.state", status.state, f"one of {', '.join(State)} is needed")
    return (
        status.state.value,
        checks.integer("status.pid", status.pid, 0, checks.UINT32_MAX),
        time_to_text(checks.integer("status.created_at_ns", status.created_at_ns, 0, checks.INT64_MAX)),
        time_to_text(checks.integer("status.exited_at_ns", status.exited_at_ns, 0, checks.INT64_MAX)),
        checks.integer("status.exit_status", status.exit_status, 0, checks.UINT32_MAX),
    )


def metadata_to_fields(metadata: Metadata) -> list[str | bytes]:
    """Fields and values, flat, as a script takes them; checks them first."""
    if not isinstance(metadata, Metadata):
        raise InvalidArgumentError("metadata", metadata, "a Metadata is needed")
    fields: list[str | bytes] = ["attempt", str(checks.integer("metadata.attempt", metadata.attempt, 0, 2**32 - 1))]
    for name in ("name", "namespace", "uid", "runtime_handler"):
        if value := checks.text(f"metadata.{name}", getattr(metadata, name)):
            fields += (name, value)
    for key, value in checks.texts("metadata.labels", metadata.labels).items():
        fields += (f"label:{key}", value)
    annotations = checks.texts("metadata.annotations", metadata.annotations, limit=checks.RECORD_MAX)
    for key, value in annotations.items():
        fields += (f"annotation:{key}", value)
    for key, extension in checks.mapping("metadata.extensions", metadata.extensions).items():
        checks.text("metadata.extensions key", key, empty=False)
        fields += (f"ext:{key}", _pack(f"metadata.extensions[{key!r}]", extension))
    entries = len(metadata.labels) + len(metadata.annotations) + len(metadata.extensions)
    if entries > checks.ENTRIES_MAX:
        rule = f"at most {checks.ENTRIES_MAX} labels, annotations and extensions fit in a record"
        raise InvalidArgumentError("metadata", f"{entries} entries", rule)
    size = sum(len(item) if isinstance(item, bytes) else len(item.encode()) for item in fields)
    if size > checks.RECORD_MAX - 1024:  # the other fields of a record take less than 1 KiB
        raise InvalidArgumentError(
            "metadata", f"{size} bytes", "a whole record may take 64 KiB, 1 KiB of it for status"
        )
    return fields


def _pack(argument: str, value: Any) -> bytes:
    import msgpack  # here, because most records have no extensions and the import takes 25 ms

    try:
        packed: bytes = msgpack.packb(value)
        msgpack.unpackb(packed, strict_map_key=False)
    except (TypeError, ValueError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidArgumentError(argument, value, f"msgpack cannot carry it ({error})") from None
    return packed


def _unpack(value: bytes) -> Any:
    import msgpack

    try:
        return msgpack.unpackb(value, strict_map_key=False)
    except Exception as error:  # its errors have no common root short of this
        raise ValueError(f"msgpack cannot read it ({error})") from None


_shared = lru_cache(maxsize=4096)(bytes.decode)  # what many records have in common is in memory once

_text: Final = dict.fromkeys((b"name", b"uid", b"revision", b"id", b"request"), bytes.decode)

_DECODERS: Final[dict[bytes, Callable[[bytes], Any]]] = {
    **_text,
    b"state": _state,
    b"pid": _uint32,
    b"created_at": _time,
    b"exited_at": _time,
    b"exit_status": _uint32,
    b"attempt": _uint32,
    b"epoch": _uint32,
    b"before": _state,
    b"node": _shared,
    b"namespace": _shared,
    b"runtime_handler": _shared,
    b"transition": _shared,
    b"by": _shared,
}


_DEFAULTS: Final[dict[bytes, Any]] = dict.fromkeys(_DECODERS, "") | {
    b"state": None,
    b"before": None,
    b"pid": 0,
    b"created_at": 0,
    b"exited_at": 0,
    b"exit_status": 0,
    b"attempt": 0,
    b"epoch": 0,
}


STATUS_FIELDS: Final = frozenset(
    (b"state", b"pid", b"created_at", b"exited_at", b"exit_status", b"node", b"epoch", b"revision", b"request")
)
"""What changes in the life of a sandbox; all other fields are its metadata."""


def _decode(where: str, fields: Mapping[bytes, bytes]) -> tuple[dict[bytes, Any], Metadata, str | None]:
    """The fields that have a fixed name, the metadata, and what is wrong with the first that cannot be read."""
    known = _DEFAULTS.copy()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    extensions: dict[str, Any] = {}
    problem = None
    decoder_of = _DECODERS.get
    for name, value in fields.items():
        try:
            if (decoder := decoder_of(name)) is not None:
                known[name] = decoder(value)
            elif name.startswith(b"label:"):
                labels[_shared(name[6:])] = _shared(value)
            elif name.startswith(b"annotation:"):
                annotations[_shared(name[11:])] = value.decode()
            elif name.startswith(b"ext:"):
                extensions[_shared(name[4:])] = _unpack(value)
        except ValueError as error:  # UnicodeDecodeError is one
            shown = repr(value if len(value) <= 60 else value[:60] + b"...")
            problem = problem or f"{where}, field {name.decode(errors='replace')!r} holds {shown[1:]}: {error}"
    metadata = Metadata(
        known[b"name"],
        known[b"namespace"],
        known[b"uid"],
        known[b"attempt"],
        known[b"runtime_handler"],
        labels,
        annotations,
        extensions,
    )
    return known, metadata, problem


def sandbox_from_fields(sandbox_id: str, key: str, fields: Mapping[bytes, bytes]) -> Sandbox:
    """The sandbox in a record. It never fails: what cannot be read makes it UNKNOWN, with its `problem`."""
    known, metadata, problem = _decode(key, fields)
    if problem is None and known[b"state"] is None:
        problem = f"{key} has no field 'state'"
    status = Status(
        State.UNKNOWN if problem else known[b"state"],
        known[b"pid"],
        known[b"created_at"],
        known[b"exited_at"],
        known[b"exit_status"],
    )
    return Sandbox(sandbox_id, known[b"node"], status, metadata, known[b"revision"], known[b"epoch"], problem)


class _Shape:
    """Where what stands in records that have the same fields in the same order, as nearly all have: reading one by its
    shape takes two thirds of the time of reading it field by field. What is not as it should be raises something."""

    __slots__ = ("annotations", "at", "labels", "plain")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        place = {name: 2 * i + 1 for i, name in enumerate(names)}
        texts = (b"node", b"name", b"namespace", b"uid", b"runtime_handler", b"revision")
        self.at = (
            place.get(b"state", 0),
            *(place.get(name, -1) for name in (b"pid", b"exit_status", b"attempt", b"epoch")),
            *(place.get(name, 0) for name in (b"created_at", b"exited_at")),
            *(place.get(name, -2) for name in texts),
        )
        self.plain = b"state" in place and not any(name.startswith(b"ext:") for name in names)
        try:
            self.labels = [(name[6:].decode(), i) for name, i in place.items() if name.startswith(b"label:")]
            self.annotations = [(name[11:].decode(), i) for name, i in place.items() if name.startswith(b"annotation:")]
        except UnicodeDecodeError:
            self.plain = False

    def read(self, sandbox_id: str, flat: list[bytes]) -> Sandbox:
        """The sandbox in a record; `flat` ends with an empty text and a zero, for what it lacks."""
        state, pid, exit_status, attempt, epoch, created, exited, node, name, space, uid, handler, revision = self.at
        return Sandbox(
            sandbox_id,
            _shared(flat[node]),
            Status(
                _STATES[flat[state]],
                _uint32(flat[pid]),
                _time(flat[created]) if created else 0,
                _time(flat[exited]) if exited else 0,
                0 if (number := flat[exit_status]) == b"0" else _uint32(number),
            ),
            Metadata(
                flat[name].decode(),
                _shared(flat[space]),
                flat[uid].decode(),
                0 if (number := flat[attempt]) == b"0" else _uint32(number),
                _shared(flat[handler]),
                {key: _shared(flat[i]) for key, i in self.labels},
                {key: flat[i].decode() for key, i in self.annotations},
            ),
            flat[revision].decode(),
            0 if (number := flat[epoch]) == b"0" else _uint32(number),
        )


_shapes: dict[tuple[bytes, ...], _Shape] = {}
_SHAPES_MAX: Final = 4096


def _shape(names: tuple[bytes, ...]) -> _Shape:
    if len(_shapes) >= _SHAPES_MAX:
        _shapes.clear()
    shape = _shapes[names] = _Shape(names)
    return shape


def sandbox_from_flat(sandbox_id: str, key: str, flat: list[bytes]) -> Sandbox:
    """As `sandbox_from_fields`, from a flat list of fields and values."""
    names = tuple(flat[::2])
    shape = _shapes.get(names) or _shape(names)
    if shape.plain:
        try:
            return shape.read(sandbox_id, [*flat, b"", b"0"])
        except (KeyError, ValueError):
            pass  # the careful way finds out why
    return sandbox_from_fields(sandbox_id, key, pairs(flat))


def _at(revision: str) -> datetime:
    """When an event was; the end of time for an id that was given by hand and lies beyond."""
    try:
        return _EPOCH + timedelta(milliseconds=int(revision.partition("-")[0]))
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def event_from_fields(revision: str, key: str, fields: Mapping[bytes, bytes]) -> Event:
    """The event in a stream entry; `key` is the stream's."""
    where = f"{key} entry {revision}"
    known, _, _ = _decode(where, fields)
    after = sandbox_from_fields(known[b"id"], where, {**fields, b"revision": revision.encode()})
    return Event(
        id=known[b"id"],
        transition=known[b"transition"],
        before=known[b"before"],
        sandbox=after if b"state" in fields else None,
        revision=revision,
        at=_at(revision),
        by=known[b"by"],
        request=known[b"request"],
    )


def event_from_flat(
    revision: str, key: str, flat: list[bytes], places: tuple[str, ...] = (), metadata: Metadata | None = None
) -> Event:
    """As `event_from_fields`, from a flat list of fields and values.

    `places` is where its watch stands behind it, `metadata` what the sandbox is known to have.
    """
    get = pairs(flat).get
    where = f"{key} entry {revision}"
    try:
        sandbox_id = get(b"id", b"").decode()
        state, before = get(b"state"), get(b"before")
        after = None if state is None else sandbox_from_flat(sandbox_id, where, [*flat, b"revision", revision.encode()])
        if after is not None and metadata is not None:
            after = Sandbox(sandbox_id, after.node, after.status, metadata, after.revision, after.epoch, after.problem)
        return Event(
            sandbox_id,
            _shared(get(b"transition", b"")),
            None if before is None else _STATES[before],
            after,
            revision,
            _at(revision),
            _shared(get(b"by", b"")),
            get(b"request", b"").decode(),
            places,
        )
    except (KeyError, ValueError):
        return replace(event_from_fields(revision, key, pairs(flat)), places=places)


def pairs(flat: Iterable[bytes]) -> dict[bytes, bytes]:
    """A flat list of fields and values, as RESP2 and scripts give a hash, as a mapping."""
    items = iter(flat)
    return dict(zip(items, items, strict=True))


def hash_reply(reply: Any) -> Mapping[bytes, bytes]:
    """HGETALL's reply: a flat list from RESP2, a mapping from RESP3."""
    return pairs(reply) if isinstance(reply, list) else reply
