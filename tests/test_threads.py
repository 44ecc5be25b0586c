"""One store for many: threads, forks, and the tasks of an event loop."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import redis
from conftest import binary_of
from faults.writes import READY

from sandbox_redis import (
    AsyncSandboxStore,
    OutcomeUnknownError,
    SandboxError,
    SandboxStore,
    Status,
    StoreUnavailableError,
)
from sandbox_redis.server import EmbeddedServer


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server whose clients can be counted."""
    with EmbeddedServer(binary=binary_of("valkey")) as server:
        yield server


@pytest.fixture
def looking(server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def clients(looking, until) -> Callable[[], int]:
    """How many connections there are whose name begins with "me"."""
    return lambda: sum(client["name"].startswith("me") for client in looking.client_list())


def one_more(status: Status) -> Status:
    return replace(status, pid=status.pid + 1)


# -- threads

THREADS = 32
ROUNDS = 15


@pytest.fixture
def store(server, looking) -> Iterator[SandboxStore]:
    with SandboxStore.from_url(server.url, agent="me", timeout=60) as store:
        yield store


def at_once(work: Callable[[int], object], count: int = THREADS) -> list:
    """What `work` returns in so many threads, which begin at one instant."""
    barrier = threading.Barrier(count)

    def run(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def live(store: SandboxStore, number: int) -> None:
    """The lives of some sandboxes; each reply must be that of what was asked."""
    for turn in range(ROUNDS):
        sandbox_id = f"{number}-{turn}"
        assert store.create(sandbox_id=sandbox_id, node=f"n{number}").id == sandbox_id
        assert store.start(sandbox_id, pid=number + 1).status.pid == number + 1
        assert store.get(sandbox_id).node == f"n{number}"
        with store.batch() as batch:
            stopped, read = batch.exit(sandbox_id, exit_status=turn), batch.get(sandbox_id)
        assert stopped.result() == read.result()
        assert stopped.result().status.exit_status == turn
        if turn % 2:
            assert store.remove(sandbox_id)


def test_threads_share_a_store(store, clients):
    at_once(lambda number: live(store, number))
    audit = store.audit()
    assert audit.problems == []
    assert Counter(event.transition for event in audit.events) == {
        "create": THREADS * ROUNDS,
        "start": THREADS * ROUNDS,
        "exit": THREADS * ROUNDS,
        "remove": THREADS * (ROUNDS // 2),
    }
    assert clients() <= THREADS


def test_threads_share_a_sandbox(store, clients):
    """Every update counts, and every update has the answer that is its own."""
    store.load("a", replace(READY, pid=0))
    pids = at_once(lambda _: [store.update("a", one_more).status.pid for _ in range(ROUNDS)])
    assert sorted(pid for each in pids for pid in each) == list(range(1, THREADS * ROUNDS + 1))
    assert store.get("a").status.pid == THREADS * ROUNDS
    assert store.audit().problems == []
    assert clients() <= THREADS


def test_only_one_thread_wins(store):
    for turn in range(ROUNDS):

        def create(number: int, sandbox_id: str = f"s{turn}") -> bool:
            with suppress(SandboxError):
                store.create(sandbox_id=sandbox_id, created_at_ns=number + 1)
                return True
            return False

        assert sum(at_once(create, 8)) == 1
        removed = at_once(lambda _, sandbox_id=f"s{turn}": store.remove(sandbox_id, force=True), 8)
        assert sum(removed) == 1


def test_a_store_may_be_closed_while_threads_use_it(store, clients):
    done = threading.Event()

    def close_again_and_again() -> None:
        while not done.is_set():
            store.close()

    closer = threading.Thread(target=close_again_and_again)
    closer.start()
    try:
        at_once(lambda number: live(store, number), 8)
    finally:
        done.set()
        closer.join()
    store.close()
    assert store.audit().problems == []
    store.close()
    assert clients() == 0


# -- forks

SCRIPT = """
import asyncio, os, sys, threading, warnings
from dataclasses import replace
from sandbox_redis import AsyncSandboxStore, Metadata, SandboxStore
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12 on fork

url = sys.argv[1]
store = SandboxStore.from_url(url, agent="me", timeout=60)

def live(who):
    for turn in range(60):
        sandbox_id = f"{who}-{turn}"
        assert store.create(sandbox_id=sandbox_id, metadata=Metadata(name=sandbox_id)).metadata.name == sandbox_id
        assert store.start(sandbox_id, pid=turn).id == sandbox_id
        assert store.update("shared", lambda status: replace(status, pid=status.pid + 1)).id == "shared"
        assert store.remove(sandbox_id, force=True)

async def live_async(who, store):
    async def one(turn):
        sandbox_id = f"{who}-{turn}"
        assert (await store.create(sandbox_id=sandbox_id)).id == sandbox_id
        assert (await store.start(sandbox_id, pid=turn)).status.pid == turn
        await store.update("shared", lambda status: replace(status, pid=status.pid + 1))
        assert await store.remove(sandbox_id, force=True)
    await asyncio.gather(*map(one, range(60)))

def wait(child):
    assert child == 0 or os.waitpid(child, 0)[1] == 0

"""

FORKS = {
    "with idle connections": """
live("before")
child = os.fork()
live("child" if child == 0 else "parent")
wait(child)
""",
    "in a chain": """
live("before")
child = os.fork()
live("parent" if child else "child")
if not child:
    grandchild = os.fork()
    live("again" if grandchild else "grandchild")
    wait(grandchild)
wait(child)
""",
    "while threads are inside": """
threads = [threading.Thread(target=live, args=(f"thread{i}",)) for i in range(3)]
for thread in threads:
    thread.start()
while len(store.ids()) < 2:
    pass
child = os.fork()
live("child" if child == 0 else "parent")
if child:
    for thread in threads:
        thread.join()
wait(child)
""",
    "an asyncio store": """
async def main(who):
    async with store:
        await live_async(who, store)
store = AsyncSandboxStore.from_url(url, agent="me", timeout=60)
asyncio.run(main("before"))
child = os.fork()
asyncio.run(main("child" if child == 0 else "parent"))
wait(child)
""",
    "an asyncio store that is not closed": """
async def first():
    await live_async("before", store)
async def main(who):
    async with store:
        await live_async(who, store)
store = AsyncSandboxStore.from_url(url, agent="me", timeout=60)
asyncio.run(first())
child = os.fork()
asyncio.run(main("child" if child == 0 else "parent"))
wait(child)
""",
}
SHARES = [2, 4, 5, 2, 3]  # how many lives, each of 60 turns, are led in each


@pytest.mark.parametrize(
    "fork, lives",
    [pytest.param(fork, share, id=name) for (name, fork), share in zip(FORKS.items(), SHARES, strict=True)],
)
def test_a_store_goes_on_on_both_sides_of_a_fork(fork, lives, server, looking, store):
    store.load("shared", replace(READY, pid=0))
    command = [sys.executable, "-W", "error", "-c", SCRIPT + fork, server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    audit = store.audit()
    assert audit.problems == []
    counted = Counter(event.transition for event in audit.events)
    assert counted["create"] == counted["start"] == counted["remove"] == counted["update"]
    assert store.get("shared").status.pid == counted["update"]
    assert counted["update"] % 60 == 0


# -- tasks


def run(main: Callable[[AsyncSandboxStore], object], server: EmbeddedServer, **settings: object) -> None:
    """Run `main` with a store; nothing may be left unclosed or unheard."""
    unheard: list[dict] = []

    async def with_store() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with AsyncSandboxStore.from_url(server.url, agent="me", **{"timeout": 60, **settings}) as store:
            await main(store)
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(with_store())
    gc.collect()
    assert unheard == []


async def live_async(store: AsyncSandboxStore, sandbox_id: str) -> None:
    assert (await store.create(sandbox_id=sandbox_id, node=sandbox_id)).id == sandbox_id
    assert (await store.start(sandbox_id, pid=5)).node == sandbox_id
    assert (await store.update(sandbox_id, one_more)).status.pid == 6
    assert (await store.get(sandbox_id)).node == sandbox_id
    assert (await store.exit(sandbox_id, exit_status=1)).id == sandbox_id
    assert await store.remove(sandbox_id) is True


def test_hundreds_of_tasks_share_few_connections(server, looking, clients, store):
    async def main(tasks: AsyncSandboxStore) -> None:
        await asyncio.gather(*(live_async(tasks, f"s{i}") for i in range(300)))
        assert clients() <= 2 + 16

    run(main, server)
    audit = store.audit()
    assert audit.problems == []
    assert set(Counter(event.transition for event in audit.events).values()) == {300}


def test_hundreds_of_tasks_share_a_sandbox(server, store):
    async def main(tasks: AsyncSandboxStore) -> None:
        await tasks.load("a", replace(READY, pid=0))
        answers = await asyncio.gather(*(tasks.update("a", one_more) for _ in range(200)))
        assert sorted(answer.status.pid for answer in answers) == list(range(1, 201))

    run(main, server)
    assert store.get("a").status.pid == 200
    assert store.audit().problems == []


@pytest.mark.parametrize("seed", range(3))
def test_tasks_may_be_cancelled_anywhere(seed, server, looking, clients, store):
    """What was cancelled may have happened or not; nobody else notices."""
    rng = random.Random(seed)

    async def main(tasks: AsyncSandboxStore) -> None:
        for turn in range(10):
            begun = [asyncio.ensure_future(live_async(tasks, f"s{turn}-{i}")) for i in range(40)]
            sentenced = rng.sample(begun, 20)
            while sentenced:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                sentenced.pop().cancel()
            results = await asyncio.gather(*begun, return_exceptions=True)
            assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        await asyncio.gather(*(live_async(tasks, f"after{i}") for i in range(50)))  # all 16 leases are there
        assert clients() <= 2 + 16
        assert {client["watch"] for client in looking.client_list()} == {"0"}
        assert not [task for task in asyncio.all_tasks() if "play" in repr(task)]

    run(main, server)
    assert store.audit().problems == []


def test_a_cancelled_batch(server, store):
    async def fill(tasks: AsyncSandboxStore, turn: int) -> None:
        async with tasks.batch() as batch:
            for i in range(50):
                batch.create(sandbox_id=f"{turn}-{i}")
                batch.update(f"{turn}-{i}", lambda status: replace(status, pid=3))

    async def main(tasks: AsyncSandboxStore) -> None:
        for turn in range(40):
            filling = asyncio.ensure_future(fill(tasks, turn))
            for _ in range(turn * 3):
                await asyncio.sleep(0)
            filling.cancel()
            with suppress(asyncio.CancelledError):
                await filling
            await live_async(tasks, f"between{turn}")

    run(main, server)
    assert store.audit().problems == []


def test_who_is_in_a_hurry_does_not_harm_the_others(server, store):
    async def hurry(tasks: AsyncSandboxStore) -> None:
        for _ in range(100):
            with suppress(StoreUnavailableError):
                await tasks.ids(timeout=0.0001)

    async def main(tasks: AsyncSandboxStore) -> None:
        await asyncio.gather(hurry(tasks), *(live_async(tasks, f"s{i}") for i in range(100)))

    run(main, server)
    audit = store.audit()
    assert audit.problems == []
    assert set(Counter(event.transition for event in audit.events).values()) == {100}


def test_a_store_may_be_closed_while_tasks_use_it(server, clients, store, until):
    async def main(tasks: AsyncSandboxStore) -> None:
        lives = asyncio.gather(*(live_async(tasks, f"s{i}") for i in range(100)))
        for _ in range(20):
            await asyncio.sleep(0.001)
            await tasks.aclose()
        await lives

    run(main, server)
    assert store.audit().problems == []
    until(lambda: clients() == 1)  # that of `store` itself


def test_a_server_that_goes_away_under_tasks(own_server):
    """Everybody hears of it, once."""
    server = own_server()

    async def main(tasks: AsyncSandboxStore) -> None:
        await asyncio.gather(*(live_async(tasks, f"s{i}") for i in range(20)))
        lives = [asyncio.ensure_future(live_async(tasks, f"t{i}")) for i in range(200)]
        await lives[0]
        await asyncio.to_thread(server.stop)
        results = await asyncio.gather(*lives, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), StoreUnavailableError, OutcomeUnknownError}

    run(main, server, timeout=0.5)


def test_one_store_in_one_event_loop_after_the_other(server, looking, clients, until):
    store = AsyncSandboxStore.from_url(server.url, agent="me", timeout=60)

    async def use(turn: int) -> None:
        async with store:
            await asyncio.gather(*(live_async(store, f"{turn}-{i}") for i in range(30)))

    for turn in range(3):
        asyncio.run(use(turn))
    gc.collect()
    until(lambda: clients() == 0)
