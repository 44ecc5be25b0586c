"""The command ``sandbox-redis``: the way in, for people and scripts. What the commands do stands in the modules of
this package, what they work on in the library; nothing here is imported by the library.

This module is read before it is known whether the extra ``cli`` is installed, so it imports nothing of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

_EXTRA = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; ``sys.argv`` when None. Returns the exit status."""
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        words = f"the command line needs {' and '.join(missing)}: pip install 'sandbox-redis[cli]'"
        print(f"sandbox-redis: {words}", file=sys.stderr)
        return 2
    try:
        from sandbox_redis.cli.app import run  # here, because it imports the extra

        return run(arguments)
    except KeyboardInterrupt:  # before or after a command, which says so itself
        return 130
