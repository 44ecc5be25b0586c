"""The rules for what callers pass in. Each check returns the value or raises `InvalidArgumentError` naming the
argument, the value and the rule; nothing here knows how a value is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sandbox_redis.errors import InvalidArgumentError

UINT32_MAX: Final = 2**32 - 1  # pid, exit status and attempt are uint32 in CRI's api.proto
INT64_MAX: Final = 2**63 - 1  # CRI's times are int64 nanoseconds
TEXT_MAX: Final = 1024  # bytes, for every key and for label values
RECORD_MAX: Final = 64 * 1024  # bytes, over all fields and values of one record
ENTRIES_MAX: Final = 1000  # labels, annotations and extensions of one record: a script can pass on about 7,900 values

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}").fullmatch
_PREFIX = re.compile(r"[^{}\s\x00-\x1f\x7f]{1,128}").fullmatch
_ID_RULE: Final = "1 to 128 of the characters A-Z a-z 0-9 _ . - are needed, the first a letter or a digit"


def is_id(value: str) -> bool:
    """Whether this can be an id."""
    return _ID(value) is not None


def sandbox_id(value: str, argument: str = "sandbox_id") -> str:
    """An id that can be a part of a key."""
    if not isinstance(value, str) or not _ID(value):
        raise InvalidArgumentError(argument, value, _ID_RULE)
    return value


def node(value: str) -> str:
    """A node name by the rule of ids, or the empty string for none."""
    if not isinstance(value, str) or (value and not _ID(value)):
        raise InvalidArgumentError("node", value, f"{_ID_RULE}; or none at all")
    return value


def prefix(value: str) -> str:
    """What every key of a store begins with. Braces would be taken for a hash tag."""
    if not isinstance(value, str) or not _PREFIX(value) or not value.isprintable():
        raise InvalidArgumentError(
            "prefix", value, "1 to 128 characters without braces, white space and what cannot be printed"
        )
    return value


def integer(argument: str, value: int, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgumentError(argument, value, f"a whole number from {low} to {high} is needed")
    return int(value)


def seconds(argument: str, value: float) -> float:
    """A duration above 0, in seconds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 86400 * 365:
        raise InvalidArgumentError(argument, value, "a number of seconds above 0 is needed")
    return float(value)


def text(argument: str, value: str, *, limit: int = TEXT_MAX, empty: bool = True) -> str:
    """Text of at most `limit` bytes in UTF-8, without NUL."""
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidArgumentError(argument, value, "it cannot be written in UTF-8") from None
        if (0 if empty else 1) <= size <= limit and "\x00" not in value:
            return value
    rule = f"text of {'at most' if empty else '1 to'} {limit} bytes without NUL is needed"
    raise InvalidArgumentError(argument, value, rule)


def texts(argument: str, value: Mapping[str, str], *, limit: int = TEXT_MAX) -> Mapping[str, str]:
    """A mapping of text to text; keys of 1 to `TEXT_MAX` bytes, values of at most `limit`."""
    for name, content in mapping(argument, value).items():
        text(f"{argument} key", name, empty=False)
        text(f"{argument}[{name!r}]", content, limit=limit)
    return value


def mapping(argument: str, value: Any) -> Mapping[str, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(argument, value, "a mapping is needed")
    return value
