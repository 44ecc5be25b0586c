"""Values in words: escapes, ages and times, as a person reads and types them. Nothing is printed here, and nothing of
the extra is imported.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.record import Event, Status, time_to_text
from sandbox_redis.states import ABSENT, State

NONE: Final = "-"
"""Stands where there is nothing, so that columns can be counted."""
GONE: Final = "gone"
"""Stands for the state of what was removed."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = 10**9  # nanoseconds
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_SECONDS: Final = {unit: float(seconds) for seconds, unit in _UNITS} | {"ms": 0.001}
_PARTS: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_DURATION: Final = re.compile(rf"(?:{_PARTS.pattern})+").fullmatch
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?").fullmatch
_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)").fullmatch

_COMMA: Final = re.compile(r"(?<!\\),").split
_LABEL: Final = re.compile(r"([^=]*[^=!<>~\s])\s*==?\s*(.*)", re.DOTALL).fullmatch
_LABEL_RULE: Final = (
    r"exact labels such as app=web or app==web are needed, there is no other operator; a comma in a value is written \,"
)


def visible(text: str) -> str:
    """Text without control codes, which could end a line or steer a terminal: they are shown as escapes."""
    if text.isprintable():
        return text
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


def lasting(ns: int) -> str:
    """A duration that may be short: as `span`, and ``12ms`` below a second."""
    return f"{ns // 10**6}ms" if 0 <= ns < _SECOND else span(ns)


def age(status: Status, now_ns: int) -> str:
    """How long ago it was created; negative where the clock of whoever created it is ahead of ours."""
    return span(now_ns - status.created_at_ns) if status.created_at_ns else NONE


def moment(ns: int, now_ns: int) -> str:
    """A time as it is stored, and how long ago that was."""
    if not ns:
        return NONE
    away = span(now_ns - ns)
    return f"{time_to_text(ns)} ({f'in {away[1:]}' if away.startswith('-') else f'{away} ago'})"


def nanoseconds(at: datetime) -> int:
    """The nanoseconds since the Unix epoch of a time in UTC."""
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


def at(ns: int) -> datetime:
    """The time so many nanoseconds since the Unix epoch, in UTC, to the microsecond."""
    return _EPOCH + timedelta(microseconds=ns // 1000)


def clock(at: datetime) -> str:
    """A time in UTC to the second."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def change(event: Event) -> str:
    """From which state to which; three words everywhere, for ``awk``."""
    return f"{event.before or ABSENT} -> {event.sandbox.status.state if event.sandbox else GONE}"


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


def duration(argument: str, text: str) -> float:
    """The seconds of a duration as `span` writes it, or of a plain number of them.

    Raises:
        InvalidArgumentError: it is none.
    """
    if _DURATION(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PARTS.findall(text))
    if _NUMBER(text):
        return float(text)
    raise InvalidArgumentError(argument, text, "a duration such as 30s, 5m or 1h30m is needed")


def state(argument: str, text: str, *besides: str) -> State:
    """The state that somebody names, in whichever case; `besides` is what might have been named as well.

    Raises:
        InvalidArgumentError: there is no such state.
    """
    try:
        return State(text.upper())
    except ValueError:
        raise InvalidArgumentError(argument, text, f"one of {', '.join([*State, *besides])} is needed") from None


def pieces(text: str) -> list[str]:
    r"""What stands between the commas; ``\,`` is a comma within a piece."""
    return [piece.replace(r"\,", ",").strip() for piece in _COMMA(text)]


def labels(argument: str, items: Iterable[str]) -> dict[str, str]:
    """The labels that selectors such as ``app=web,tier==front`` ask for.

    Raises:
        InvalidArgumentError: one asks for something other than an exact label, or two exclude each other.
    """
    found: dict[str, str] = {}
    for piece in (piece for item in items for piece in pieces(item)):
        parts = _LABEL(piece)
        if parts is None:
            raise InvalidArgumentError(argument, piece, _LABEL_RULE)
        key, value = parts.groups()
        if found.setdefault(key, value) != value:
            raise InvalidArgumentError(argument, piece, f"{key}={found[key]} is asked for as well: none can have both")
    return found
