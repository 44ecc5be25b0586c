"""Commands as packets, and what comes back as the operations know it. No connections; they stand in ``pool.py``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import hiredis
import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import RedisError

from sandbox_redis.wire import Command, ServerError

NOT_YET: Final = NOT_ENOUGH_DATA
"""Stands for a reply that has not come in."""
# Said in other words, or under other codes, at other places: in scripts, by EXEC, at the door.
_FORBIDDEN: Final = re.compile("ACL failure in script|The user executing the script can't|no permissions")
_FULL: Final = "max number of clients"
_ELSEWHERE: Final = "access a non local key in a cluster node"  # which is where it will be when its slot has moved


def pack(commands: Iterable[Command]) -> tuple[bytes]:
    """Commands as one packet."""
    # A signal handler that raises while hiredis writes out an int crashes the process (hiredis 3.5); text is safe.
    words: list[Any]
    packed = []
    for command in commands:
        words = [str(word) if word.__class__ is int else word for word in command]
        packed.append(hiredis.pack_command(tuple(words)))
    return (b"".join(packed),)


def refusal(error: RedisError) -> ServerError:
    """An error reply as the operations know it."""
    if _FORBIDDEN.search(str(error)):
        return ServerError("NOPERM", str(error))
    if _FULL in str(error):
        return ServerError("MAXCLIENTS", str(error))
    if _ELSEWHERE in str(error):
        return ServerError("TRYAGAIN", str(error))
    code = getattr(error, "status_code", None)
    first, _, rest = str(error).partition(" ")
    return ServerError(code, str(error)) if code else ServerError(first, rest)


def is_refusal(error: RedisError) -> bool:
    """Whether the server said it, as against a connection that failed. Some of its words (LOADING, NOAUTH) are
    ConnectionErrors to redis-py, which then closes the connection."""
    return (
        getattr(error, "status_code", None) is not None or isinstance(error, redis.ResponseError) or _FULL in str(error)
    )


def at_hand(connection: Any) -> Any:
    """A reply that has come in with another one, or `NOT_YET`. To ask redis-py for each takes 2 us more."""
    try:
        return connection._parser._reader.gets(False)  # noqa: SLF001 - there is no public way to many replies
    except AttributeError:  # fakeredis, or a connection that was closed
        return NOT_YET


def answer(command: Command, reply: Any) -> Any:
    """A reply as the operations know it, an error reply as `ServerError`; raises an error of the connection."""
    if isinstance(reply, RedisError):
        if not is_refusal(reply):
            raise reply
        return refusal(reply)
    if reply and command and command[0] == "EXEC":
        return [refusal(item) if isinstance(item, RedisError) else item for item in reply]
    return reply
