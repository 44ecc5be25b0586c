"""The obvious redis-py code for the same work: same keys, same fields, same scripts, same records decoded. What a
careful team writes before it has this library; it is not meant to lose.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio

from sandbox_redis import Sandbox, Status
from sandbox_redis.keys import Keys
from sandbox_redis.record import pairs, sandbox_from_fields, status_to_fields
from sandbox_redis.scripts import script

MAXLEN = 100_000


class Recipes:
    """A store as redis-py's own documentation would have it, with its default settings."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self.client = client
        self.keys = Keys(prefix, 1)
        self.scripts = {name: client.register_script(script(name).source) for name in ("start", "exit", "update")}
        for registered in self.scripts.values():
            client.script_load(registered.script)

    def args(self, sandbox_id: str, *args: Any) -> tuple[Any, ...]:
        return (sandbox_id, "recipe", secrets.token_hex(12), MAXLEN, *args)

    def get(self, sandbox_id: str) -> Sandbox:
        key = self.keys.status(sandbox_id)
        return sandbox_from_fields(sandbox_id, key, self.client.hgetall(key))

    def start(self, sandbox_id: str, pid: int) -> Sandbox:
        keys = self.keys.change(sandbox_id)
        reply = self.scripts["start"](keys=keys, args=self.args(sandbox_id, pid))
        return sandbox_from_fields(sandbox_id, keys[0], pairs(reply[1]))

    def update(self, sandbox_id: str, fn: Callable[[Status], Status]) -> Sandbox:
        keys = self.keys.change(sandbox_id)
        with self.client.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(keys[0])
                    seen = sandbox_from_fields(sandbox_id, keys[0], pipe.hgetall(keys[0]))
                    fields = status_to_fields(fn(seen.status))
                    pipe.multi()
                    self.scripts["update"](keys=keys, args=self.args(sandbox_id, *fields, seen.revision), client=pipe)
                    (reply,) = pipe.execute()
                    return sandbox_from_fields(sandbox_id, keys[0], pairs(reply[1]))
                except redis.WatchError:
                    continue

    def start_many(self, sandbox_ids: list[str], pid: int) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        sha = script("start").sha
        for sandbox_id in sandbox_ids:
            keys = self.keys.change(sandbox_id)
            pipe.evalsha(sha, len(keys), *keys, *self.args(sandbox_id, pid))
        return pipe.execute()


class AsyncRecipes:
    """The same for asyncio."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str) -> None:
        self.client = client
        self.keys = Keys(prefix, 1)
        self.start_script = client.register_script(script("start").source)

    async def get(self, sandbox_id: str) -> Sandbox:
        key = self.keys.status(sandbox_id)
        return sandbox_from_fields(sandbox_id, key, await self.client.hgetall(key))

    async def start(self, sandbox_id: str, pid: int) -> Sandbox:
        keys = self.keys.change(sandbox_id)
        args = (sandbox_id, "recipe", secrets.token_hex(12), MAXLEN, pid)
        reply = await self.start_script(keys=keys, args=args)
        return sandbox_from_fields(sandbox_id, keys[0], pairs(reply[1]))
