"""Which rights on a server each role needs, as ACL rules: the only place that knows roles. What prints them stands in
``cli/acl.py``, and nothing here speaks to a server.

Scripts run with the rights of their caller. So whoever may write by a script may send the commands it is made of, too:
an agent's rights end at the keys of its store, not at the state machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Final

from sandbox_redis import checks
from sandbox_redis.errors import InvalidArgumentError
from sandbox_redis.keys import Keys

Version = tuple[int, int]
"""Of a server, of which Valkey has gone on from 7.2."""
OLDEST: Final[Version] = (6, 2)
"""What is written for it, every later server takes as well."""
_READ_ONLY_KEYS: Final[Version] = (7, 0)  # and selectors


class Role(StrEnum):
    """What a user of a server is for."""

    READER = "reader"
    """Reads, watches, mirrors, waits and audits; changes nothing."""
    AGENT = "agent"
    """Runs every operation."""
    ADMIN = "admin"
    """The same, and looks into the server: a doctor leaves nothing out."""


# Each command with the first server that knows it: another one refuses a rule, or a whole ACL file, that names it.
# AUTH, HELLO, QUIT and RESET need no rule.
_REACH: Final = {
    "ping": OLDEST,
    "select": OLDEST,  # of a URL that names a database
    "client|setname": OLDEST,
    "client|info": OLDEST,
    "role": OLDEST,  # a replica is not written to
    "command": OLDEST,  # redis-py's cluster client begins with it
    "cluster|slots": OLDEST,
    "cluster|shards": (7, 0),
    "asking": OLDEST,
    "readonly": OLDEST,
    "client|tracking": OLDEST,
}
_READ: Final = {
    "evalsha": OLDEST,
    "exists": OLDEST,
    "hget": OLDEST,
    "hgetall": OLDEST,
    "hmget": OLDEST,
    "pttl": OLDEST,
    "scan": OLDEST,
    "script|load": OLDEST,
    "type": OLDEST,
    "xlen": OLDEST,
    "xrange": OLDEST,
    "xread": OLDEST,
    "xrevrange": OLDEST,
    "zcard": OLDEST,
    "zrange": OLDEST,
    "zscan": OLDEST,
    "zscore": OLDEST,
}
_WRITE: Final = {
    "client|kill": OLDEST,  # of the connection that a reply was lost with
    "del": OLDEST,
    "exec": OLDEST,
    "hdel": OLDEST,
    "hset": OLDEST,
    "multi": OLDEST,
    "unwatch": OLDEST,
    "wait": OLDEST,
    "waitaof": (7, 2),
    "watch": OLDEST,
    "xadd": OLDEST,
    "zadd": OLDEST,
    "zrem": OLDEST,
}
_LOOK: Final = {
    "acl|whoami": OLDEST,
    "client|list": OLDEST,
    "cluster|info": OLDEST,
    "cluster|nodes": OLDEST,
    "config|get": OLDEST,  # which tells the passwords in the configuration, too
    "dbsize": OLDEST,
    "info": OLDEST,
    "latency|doctor": OLDEST,
    "latency|history": OLDEST,
    "latency|latest": OLDEST,
    "memory|doctor": OLDEST,
    "memory|stats": OLDEST,
    "memory|usage": OLDEST,
    "script|exists": OLDEST,
    "slowlog|get": OLDEST,
    "slowlog|len": OLDEST,
    "time": OLDEST,
    "xinfo|stream": OLDEST,
}
_ROLES: Final = {
    Role.READER: (_REACH, _READ),
    Role.AGENT: (_REACH, _READ, _WRITE),
    Role.ADMIN: (_REACH, _READ, _WRITE, _LOOK),
}
_USER: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,128}").fullmatch
_VERSION: Final = re.compile(r"(\d{1,3})(?:\.(\d{1,3}))?(?:\.\d{1,3})?").fullmatch


def commands(role: Role, version: Version = OLDEST) -> list[str]:
    """The commands that a role may send, as ACL rules name them, to a server of at least this version."""
    return sorted(name for group in _ROLES[role] for name, since in group.items() if since <= version)


def rules(role: Role, prefix: str, *, version: Version = OLDEST, password: str | None = None) -> list[str]:
    """The rules of a user in this role, for ``ACL SETUSER`` or an ACL file. They replace rights that it had before.

    Args:
        role: what the user is for.
        prefix: of the store; every key that begins with it and a colon is the user's.
        version: the oldest server that is to take them. From 7.0 on a reader has its keys for reading only, from 7.2 on
            an agent may wait for the append-only file.
        password: takes the place of those that the user has, and stands in the rules as its SHA-256; without one they
            stay as they are, and a new user cannot log in.

    Raises:
        InvalidArgumentError: an argument breaks its rule.
    """
    return list(_rules(role, Keys.pattern(f"{checks.prefix(prefix)}:"), version, password))


def _rules(role: Role, keys: str, version: Version, password: str | None) -> Iterator[str]:
    yield "on"
    if password is not None:
        yield "resetpass"
        yield f"#{hashlib.sha256(_password(password).encode()).hexdigest()}"
    selectors = version >= _READ_ONLY_KEYS
    if selectors:
        yield "clearselectors"
    only_reads = selectors and role is Role.READER
    yield "resetkeys"
    yield f"%R~{keys}" if only_reads else f"~{keys}"
    yield "resetchannels"
    yield "-@all"
    # EVALSHA counts as a write to its keys, whatever the script does; what that does is looked at by itself.
    yield from (f"+{name}" for name in commands(role, version) if not (only_reads and name == "evalsha"))
    if only_reads:
        yield f"(~{keys} +evalsha)"


def for_cli(user: str, words: list[str]) -> str:
    """A line for redis-cli, at its prompt or from a pipe. Raises `InvalidArgumentError`."""
    return " ".join(_quoted(word) for word in ("ACL", "SETUSER", _user(user), *words))


def for_file(user: str, words: list[str]) -> str:
    """A line for an ACL file, where nothing is quoted. Raises `InvalidArgumentError`."""
    return " ".join(("user", _user(user), *words))


def parse_version(text: str) -> Version:
    """The version of a server, such as 7.2; raises `InvalidArgumentError`."""
    found = _VERSION(text)
    version = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    if version < OLDEST:
        raise InvalidArgumentError("version", text, "one such as 7.2 is needed, from 6.2 on")
    return version


def _quoted(word: str) -> str:
    if "'" not in word and '"' not in word:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _user(name: str) -> str:
    if not _USER(name) or not name.isprintable():
        raise InvalidArgumentError("user", name, "1 to 128 characters without white space are needed")
    return name


def _password(password: str) -> str:
    if not password or "\n" in password or "\x00" in password:
        raise InvalidArgumentError("password", "***", "one line that is not empty is needed")
    return password
