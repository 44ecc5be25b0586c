"""How long after the writer's reply a reader sees a write: with a mirror, its reader busy or idle, and with a get for each
read. The clocks of two processes on one host are one clock."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sandbox_redis import Sandbox, SandboxStore

WRITES = 500
PAUSE = 0.005  # seconds between two writes


def write(url: str, ready: Any, told: Any) -> None:
    """Write again and again, and tell when each reply came."""
    times: dict[int, float] = {}
    with SandboxStore(url, agent="writer") as store:
        ready.wait()
        for number in range(1, WRITES + 1):
            store.update("it", lambda status, number=number: replace(status, exit_status=number))
            times[number] = time.monotonic()
            time.sleep(PAUSE)
    told.put(times)


def busy_mirror(store: SandboxStore, ready: Any) -> dict[int, float]:
    seen: dict[int, float] = {}
    with store.mirror() as mirror:
        ready.set()
        while len(seen) < WRITES and (number := mirror.get("it").status.exit_status) < WRITES:
            seen.setdefault(number, time.monotonic())
        seen.setdefault(WRITES, time.monotonic())
    return seen


def idle_mirror(store: SandboxStore, ready: Any) -> dict[int, float]:
    seen: dict[int, float] = {}
    with store.mirror() as mirror:

        @mirror.on_change
        def changed(_before: Sandbox | None, after: Sandbox | None) -> None:
            if after is not None:
                seen.setdefault(after.status.exit_status, time.monotonic())

        ready.set()
        while WRITES not in seen:
            time.sleep(0.05)
    return seen


def get_each(store: SandboxStore, ready: Any) -> dict[int, float]:
    seen: dict[int, float] = {}
    store.get("it")
    ready.set()
    while (number := store.get("it").status.exit_status) < WRITES:
        seen.setdefault(number, time.monotonic())
    seen.setdefault(WRITES, time.monotonic())
    return seen


def measure(url: str, row: Callable[..., None]) -> None:
    print(f"-- staleness: {WRITES} writes, each {PAUSE * 1000:.0f} ms; first seen, after the writer's reply")
    with SandboxStore(url) as store:
        for what, read in (
            ("mirror, its reader busy", busy_mirror),
            ("mirror, its reader idle (on_change)", idle_mirror),
            ("a get for each read", get_each),
        ):
            store.remove("it", force=True)
            store.start(store.create(sandbox_id="it").id, pid=1)
            ready, told = multiprocessing.Event(), multiprocessing.Queue()
            writer = multiprocessing.Process(target=write, args=(url, ready, told), daemon=True)
            writer.start()
            seen = read(store, ready)
            written = told.get()
            writer.join()
            late = sorted((seen[number] - written[number]) * 1e6 for number in seen if number in written)
            row(what, f"p50 {statistics.median(late):,.0f} us", f"p99 {late[int(len(late) * 0.99)]:,.0f} us")
