"""The JSON that the command line prints: one shape for a record, for every command. No table, no colour.

Times are RFC 3339 in UTC with nine fractional digits, and beside them whole nanoseconds since the Unix epoch; what is
not there is null.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable
from typing import Any, Final

from sandbox_redis.cli import text
from sandbox_redis.record import Event, Metadata, Sandbox, time_to_text

_INDENT: Final = 4
_WHOLE_EVENTS: Final = frozenset(("create", "load"))
"""The transitions whose events have the metadata with them."""


def write(value: Any) -> None:
    """Print a value as JSON."""
    print(_json(value))


def write_line(value: Any) -> None:
    """Print a value as JSON in one line, at once."""
    print(_json(value, indent=None), flush=True)


def write_array(values: Iterable[Any]) -> None:
    """Print values as one array, each as soon as it is there. Where it ends too early it is not well-formed, so that a
    part is never taken for the whole.
    """
    between = "["
    for value in values:
        # An element stands deeper by one step; no value has a line break in it, they are escapes in JSON.
        print(between, _json(value).replace("\n", f"\n{' ' * _INDENT}"), sep=f"\n{' ' * _INDENT}", end="")
        between = ","
    print("[]" if between == "[" else "\n]")


def _json(value: Any, indent: int | None = _INDENT) -> str:
    """In ASCII unless the output is in UTF-8."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, indent=indent, ensure_ascii=not utf8)


def write_each(values: list[Any], *, asked: int) -> None:
    """Print what was asked for: the one, or an array of several."""
    if asked > 1:
        write_array(values)
    elif values:
        write(values[0])


def record(sandbox: Sandbox) -> dict[str, Any]:
    """A record; `exit_status` is null until an exit has been told."""
    status = sandbox.status
    exited = bool(status.exited_at_ns)
    return {
        "id": sandbox.id,
        "node": sandbox.node,
        "state": status.state.value,
        "pid": status.pid,
        "created_at": time_to_text(status.created_at_ns) or None,
        "created_at_ns": status.created_at_ns or None,
        "exited_at": time_to_text(status.exited_at_ns) or None,
        "exited_at_ns": status.exited_at_ns or None,
        "exit_status": status.exit_status if exited else None,
        "metadata": _metadata(sandbox.metadata),
        "revision": sandbox.revision,
        "epoch": sandbox.epoch,
        "problem": sandbox.problem,
    }


def removed(sandbox_id: str, *, was_there: bool = True) -> dict[str, Any]:
    """What takes the place of a record that is gone."""
    return {"id": sandbox_id, "removed": was_there}


def event(event: Event, *, whole: bool = False) -> dict[str, Any]:
    """A change; `sandbox` is the record after it, null where that is gone. Its metadata is null where the event does
    not have it: `whole` ones do, as that of a listing does.
    """
    at_ns = text.nanoseconds(event.at)
    after = None if event.sandbox is None else record(event.sandbox)
    if after and not whole and event.transition not in _WHOLE_EVENTS:
        after["metadata"] = None
    return {
        "id": event.id,
        "transition": event.transition,
        "before": event.before and event.before.value,
        "after": after and after["state"],
        "at": time_to_text(at_ns),
        "at_ns": at_ns,
        "by": event.by,
        "revision": event.revision,
        "request": event.request,
        "sandbox": after,
    }


def _metadata(metadata: Metadata) -> dict[str, Any]:
    return {
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "attempt": metadata.attempt,
        "runtime_handler": metadata.runtime_handler,
        "labels": dict(metadata.labels),
        "annotations": dict(metadata.annotations),
        "extensions": {name: extension(value) for name, value in metadata.extensions.items()},
    }


def extension(value: Any) -> Any:
    """A msgpack value in JSON. Bytes become ``{"base64": …}``; a value that JSON cannot carry even so, because of its
    keys, its numbers or its depth, becomes ``{"msgpack": …}`` as a whole, in base64.
    """
    try:
        return json.loads(json.dumps(value, default=_bytes, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        import msgpack  # here, because most records have no extensions and the import takes 25 ms

        return {"msgpack": base64.b64encode(msgpack.packb(value)).decode()}


def _bytes(value: Any) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(f"JSON has no {type(value).__name__}")
    return {"base64": base64.b64encode(value).decode()}
