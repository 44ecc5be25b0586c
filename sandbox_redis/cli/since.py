"""Where a watch begins: what ``--since`` may be, and the file that keeps the place from one run to the next. What is
then watched stands in ``watch.py``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sandbox_redis.cli import text
from sandbox_redis.errors import InvalidArgumentError

Place = str | datetime
"""What a watch's ``since`` takes."""

_CURSOR: Final = re.compile(r"\d+-\d+(,\d+-\d+)*", re.ASCII).fullmatch
_RULE: Final = "a cursor, a revision, a time such as 2026-11-23T15:07:43Z, or a duration such as 10m or 2h is needed"


def place(written: str) -> Place:
    """The place that somebody names; a duration is so long ago, by our clock.

    Raises:
        InvalidArgumentError: it is none.
    """
    if _CURSOR(written):
        return written
    for read in (_time, _ago):
        try:
            return read(written)
        except (InvalidArgumentError, OverflowError):
            pass
    raise InvalidArgumentError("--since", written, _RULE)


def _time(written: str) -> datetime:
    return text.at(text.instant("--since", written) or 0)


def _ago(written: str) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=text.duration("--since", written))


class CursorFile:
    """Keeps a cursor. Whoever reads it finds a whole one, however we end."""

    def __init__(self, path: Path) -> None:
        """Nothing is read or written yet.

        Raises:
            InvalidArgumentError: there is something else.
        """
        self.path = path.resolve()  # a link stays, and leads to the new one
        self._written: str | None = None
        if self.path.exists() and not self.path.is_file():
            raise InvalidArgumentError("--cursor-file", str(path), "it is no file: it would be replaced by one")

    def read(self) -> str | None:
        """What is in it; None if there is no file.

        Raises:
            InvalidArgumentError: it is no cursor. An empty file is none either: events might be missed for it.
        """
        try:
            found = self.path.read_text(errors="replace").strip()
        except FileNotFoundError:
            return None
        if not _CURSOR(found):
            rule = f"it holds {found[:40]!r}, which is no cursor: delete it to begin with what happens now"
            raise InvalidArgumentError("--cursor-file", str(self.path), rule)
        return found

    def write(self, cursor: str) -> None:
        """Keep a cursor."""
        if cursor == self._written:
            return
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(f"{cursor}\n")
        new.replace(self.path)
        self._written = cursor
