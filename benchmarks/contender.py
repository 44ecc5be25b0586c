"""One of the processes that update the same sandbox. A module of its own, because a spawned process imports it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import redis

from benchmarks.recipes import Recipes
from sandbox_redis import SandboxStore, Status


def redis_py(url: str) -> redis.Redis:
    """A client with redis-py's defaults."""
    if url.startswith("unix"):
        return redis.Redis(unix_socket_path=url.removeprefix("unix://"))
    return redis.Redis(port=int(url.rpartition(":")[2].partition("/")[0]))


def contend(url: str, prefix: str, ours: bool, barrier: Any, seconds: float, counts: Any, index: int) -> None:
    store = SandboxStore(url, prefix=prefix, timeout=30)
    recipes = Recipes(redis_py(url), prefix)
    update = store.update if ours else recipes.update
    update("shared", _increment)
    barrier.wait()
    end = time.monotonic() + seconds
    committed = 0
    while time.monotonic() < end:
        update("shared", _increment)
        committed += 1
    counts[index] = committed


def _increment(status: Status) -> Status:
    return replace(status, pid=status.pid + 1)
