"""16 processes write as fast as they can, while the connections of 4 watchers are cut at random: what each watcher saw is
held against the events and the records of the store."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from typing import Any

import redis

from sandbox_redis import Event, Sandbox, SandboxStore
from sandbox_redis.errors import SandboxError

WRITERS, WATCHERS = 16, 4
CUT = (0.05, 0.5)  # seconds between two cuts
END = "the-end"


def write(url: str, index: int, ready: Any, seconds: float) -> None:
    """Lead sandboxes through their lives; three of four ids are shared with other writers."""
    random.seed(index)
    with SandboxStore(url, agent=f"writer-{index}") as store:
        store.counts()
        ready.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sandbox_id = (
                f"shared-{random.randrange(50)}" if random.random() < 0.75 else f"own-{index}-{random.randrange(50)}"
            )
            try:
                move = random.choice(("create", "start", "stop", "remove"))
                if move == "create":
                    store.create(sandbox_id=sandbox_id, node=f"node-{index}")
                elif move == "start":
                    store.start(sandbox_id, pid=index + 1)
                elif move == "stop":
                    store.stop(sandbox_id)
                else:
                    store.remove(sandbox_id)
            except SandboxError:  # another one was faster
                continue


def watch(url: str, since: str, index: int, partitions: int, ready: Any, told: Any) -> None:
    """Take everything down until each partition has said that it is the end."""
    seen: list[tuple[str, str, str | None, str]] = []
    ends = 0
    with SandboxStore(url, agent=f"watcher-{index}") as store, store.watch(since=since) as events:
        ready.wait()
        for event in events:
            if event.id.startswith(END):
                ends += event.transition == "create"
                if ends == partitions:
                    break
            else:
                seen.append(_row(event))
    told.put((index, seen))


def _row(event: Event) -> tuple[str, str, str | None, str]:
    return event.id, event.transition, event.sandbox and event.sandbox.status.state.value, event.revision


def measure(url: str, partitions: int, seconds: float, row: Callable[..., None]) -> None:
    print(f"-- a storm of {seconds:g} s: {WRITERS} writers, {WATCHERS} watchers whose connections are cut at random")
    client = redis.Redis.from_url(url)
    with SandboxStore(url, partitions=partitions, events_maxlen=10_000_000) as store:
        store.remove(store.create().id, force=True)
        since = store.page().since
        assert since is not None
        told: Any = multiprocessing.Queue()
        ready = multiprocessing.Barrier(WRITERS + WATCHERS + 1)
        watchers = [
            multiprocessing.Process(target=watch, args=(url, since, i, partitions, ready, told))
            for i in range(WATCHERS)
        ]
        writers = [multiprocessing.Process(target=write, args=(url, i, ready, seconds)) for i in range(WRITERS)]
        for process in watchers + writers:
            process.start()
        ready.wait()
        cuts, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(random.uniform(*CUT))
            cuts += _cut(client)
        for process in writers:
            process.join()
        written = sum(client.xlen(f"sandbox:{{{p}}}:events") for p in range(partitions))
        _end(store, partitions)
        found = dict(told.get(timeout=600) for _ in watchers)
        for process in watchers:
            process.join()
        audit = store.audit(timeout=60)
    assert audit.problems == [], audit.problems[:3]
    truth = [
        _row(event) for event in audit.events if not event.id.startswith(END) and not _before(event, since, partitions)
    ]
    row("  writes of all together", f"{written / seconds:,.0f}/s")
    row("  connections of watchers cut", f"{cuts}")
    for index, seen in sorted(found.items()):
        same = _by_sandbox(seen) == _by_sandbox(truth) and len(seen) == len(truth)
        replay = {sandbox_id: state for sandbox_id, _, state, _ in seen if state} if same else {}
        for sandbox_id, _, state, _ in seen:
            if state is None:
                replay.pop(sandbox_id, None)
            else:
                replay[sandbox_id] = state
        there = {i: _state(each) for i, each in audit.sandboxes.items() if not i.startswith(END)}
        row(
            f"  watcher {index}: events seen / written",
            f"{len(seen):,}",
            f"{len(truth):,}",
            "",
            "all, once, in order" if same else "WRONG",
        )
        row("    its replay equals the store", str(replay == there), "", "", "True")


def _cut(client: redis.Redis) -> int:
    """Cut one watcher's connections."""
    victims = [each for each in client.client_list() if each["name"].startswith("watcher-")]
    if not victims:
        return 0
    name = random.choice(victims)["name"]
    killed = 0
    for each in victims:
        if each["name"] == name:
            killed += client.client_kill_filter(_id=each["id"])
    return killed


def _end(store: SandboxStore, partitions: int) -> None:
    """A last event in each partition."""
    from sandbox_redis.keys import Keys

    missing, number = set(range(partitions)), 0
    while missing:
        sandbox_id = f"{END}-{number}"
        number += 1
        if (partition := Keys("sandbox", partitions).partition(sandbox_id)) in missing:
            missing.remove(partition)
            store.create(sandbox_id=sandbox_id)


def _before(event: Event, since: str, partitions: int) -> bool:
    from sandbox_redis.follow import place
    from sandbox_redis.keys import Keys

    return place(event.revision) <= place(since.split(",")[Keys("sandbox", partitions).partition(event.id)])


def _by_sandbox(rows: list[tuple[str, str, str | None, str]]) -> dict[str, list[tuple[str, str, str | None, str]]]:
    found: dict[str, list[tuple[str, str, str | None, str]]] = {}
    for each in rows:
        found.setdefault(each[0], []).append(each)
    return found


def _state(sandbox: Sandbox) -> str:
    return sandbox.status.state.value
