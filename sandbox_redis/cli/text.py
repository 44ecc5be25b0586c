"""Values in words: escapes, ages and times, as a person reads and types them. Nothing is printed here, and nothing of
the extra is imported.
"""

from __future__ import annotations

import re
import signal
from datetime import datetime
from typing import Final

from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.record import Status, time_to_text

NONE: Final = "-"
"""Stands where there is nothing, so that columns can be counted."""

_SECOND: Final = 10**9  # nanoseconds
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)").fullmatch


def visible(text: str) -> str:
    """Text without control codes, which could end a line or steer a terminal: they are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def one_word(text: str) -> str:
    """As `visible`, and blanks are escapes too: one column for ``awk``."""
    return visible(text).replace(" ", r"\x20")


def span(ns: int) -> str:
    """A duration in its two largest units: ``3d4h``, ``5m3s``, ``12s``."""
    seconds = abs(ns) // _SECOND
    counts: list[tuple[int, str]] = []
    for size, unit in _UNITS:
        count, seconds = divmod(seconds, size)
        if count or counts:  # the largest unit that there is, and all smaller ones
            counts.append((count, unit))
    words = "".join(f"{count}{unit}" for count, unit in counts[:2] if count)
    return f"-{words}" if words and ns < 0 else words or "0s"


def age(status: Status, now_ns: int) -> str:
    """How long ago it was created; negative where the clock of whoever created it is ahead of ours."""
    return span(now_ns - status.created_at_ns) if status.created_at_ns else NONE


def moment(ns: int, now_ns: int) -> str:
    """A time as it is stored, and how long ago that was."""
    if not ns:
        return NONE
    away = span(now_ns - ns)
    return f"{time_to_text(ns)} ({f'in {away[1:]}' if away.startswith('-') else f'{away} ago'})"


def exit_words(status: Status) -> str:
    """The exit status, and the signal that a shell would read in it."""
    if not status.exited_at_ns:
        return NONE
    try:
        return f"{status.exit_status} ({signal.Signals(status.exit_status - 128).name})"
    except ValueError:
        return str(status.exit_status)


def instant(argument: str, text: str | None) -> int | None:
    """The nanoseconds since the Unix epoch of an RFC 3339 time, to the ninth digit; None of None.

    Raises:
        InvalidArgumentError: it is not one.
    """
    if text is None:
        return None
    try:
        if parts := _INSTANT(text):
            second, fraction, zone = parts.groups(default="")
            whole = int(datetime.fromisoformat(f"{second}{zone.upper()}".upper()).timestamp())
            return whole * _SECOND + int(fraction.ljust(9, "0"))
    except ValueError:  # the 31st of February
        pass
    raise InvalidArgumentError(argument, text, "a time such as 2026-11-23T15:07:43.281389235Z is needed")
