"""The Lua scripts: found, put together from their ``-- @include`` lines and named by their SHA-1. No I/O to Redis.

A wheel carries ``lua/`` inside the package; in a checkout it stands at the top of the tree.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

_packaged = files(__package__) / "lua"
FOLDER: Traversable = _packaged if _packaged.is_dir() else Path(__file__).resolve().parents[1] / "lua"


@dataclass(frozen=True, slots=True)
class Script:
    """One operation as the server runs it."""

    name: str
    source: str
    sha: str


def _read(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text(encoding="utf-8")


@cache
def script(name: str) -> Script:
    """The script ``lua/<name>.lua``. Comments and blank lines are left out: the server need not store them."""
    source = re.sub(r"^-- @include (\S+)$", lambda line: _read(line[1]), _read(name), flags=re.MULTILINE)
    source = re.sub(r"^ *--.*\n", "", source, flags=re.MULTILINE)
    source = re.sub(r"\n\n+", "\n\n", source).lstrip("\n")
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
