"""Agents that are killed at any instruction: each is a fork that writes as fast as it can, and dies at a moment of
chance. Run as a program of its own, which has one thread and so may fork: URL, prefix, how many, seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress

from sandbox_redis import SandboxError, SandboxStore
from sandbox_redis.soak.agent import perform, steps

LIFE = 0.005  # seconds, at most, from its first write or from its birth; an operation takes about 0.2 ms


def live(url: str, prefix: str, number: int, ready: int) -> None:
    store = SandboxStore.from_url(url, prefix=prefix, agent=f"agent-{number}", partitions=2)
    if number % 4 == 0:
        os.write(ready, b"!")  # it dies while it connects
    store.create(sandbox_id=f"first-of-{number}")
    os.write(ready, b"!")
    for operation, sandbox_id, args in steps(f"agent-{number}", random.Random(number)):
        with suppress(SandboxError):
            perform(store, operation, sandbox_id, args)


def main() -> None:
    url, prefix, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    chance = random.Random(seed)
    with SandboxStore.from_url(url, prefix=prefix) as store:  # what is imported late is there before the forks
        store.create(sandbox_id="first")
        store.update("first", lambda status: status)
    alive: list[int] = []
    for number in range(count):
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                live(url, prefix, number, writing)
            finally:
                os._exit(1)
        os.read(reading, 1)
        os.close(reading)
        os.close(writing)
        alive.append(pid)
        time.sleep(chance.uniform(0, LIFE))
        if len(alive) == 2:  # so that there are two at a time, which meet
            kill(alive.pop(0))
    kill(*alive)


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"an agent ended by itself: {status}"


if __name__ == "__main__":
    main()
