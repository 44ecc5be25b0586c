"""A node agent: runs the sandboxes of its node as real processes, and tells the store. It knows of the other
processes only what the store says.

It is written as a real one would be, on asyncio: a task for each place where a sandbox can run. What it writes to its
truth log is for the check alone; it never reads it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Final

from sandbox_redis.aio import AsyncSandboxStore
from sandbox_redis.demo.part import EVENTS_MAXLEN, LOST_EXIT, SESSION, Part
from sandbox_redis.demo.process import Child, Life, end_orphan
from sandbox_redis.demo.truth import Act, TruthLog
from sandbox_redis.errors import NotFoundError
from sandbox_redis.record import Metadata, Sandbox, Status
from sandbox_redis.states import State

_UPDATE_PAUSE: Final = 0.004  # seconds on average; a few hundred updates a second from all agents, and some conflicts


class Agent:
    """The agent of one node."""

    def __init__(self, part: Part, store: AsyncSandboxStore, log: TruthLog) -> None:
        self._part = part
        self._store = store
        self._log = log
        self._children: set[Child] = set()
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Clean up after a predecessor, then run sandboxes until the demo ends."""
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._end)
        await self._take_over()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._update_shared())
                for slot in range(self._part.slots):
                    tasks.create_task(self._fill(slot))
        finally:
            for child in self._children:  # there are some only when a task failed
                child.end()

    def _end(self) -> None:
        """Standard input was closed: the demo ends."""
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        self._ending.set()
        for child in self._children:
            child.end()

    # -- running sandboxes

    async def _fill(self, slot: int) -> None:
        """Run one sandbox after the other."""
        chance = self._part.chance(slot)
        for attempt in itertools.count():
            if self._ending.is_set():
                return
            metadata = Metadata(
                name=f"job-{slot}",
                namespace="demo",
                attempt=attempt,
                runtime_handler="sh",
                labels={"app": "demo", "slot": str(slot)},
                annotations={SESSION: str(os.getsid(0))},
            )
            await self._live(f"{chance.getrandbits(256):064x}", metadata, Life.draw(chance))

    async def _live(self, sandbox_id: str, metadata: Metadata, life: Life) -> None:
        """One sandbox, from its creation to its removal."""
        with self._log.asking("create", sandbox_id) as answered:
            answered(await self._store.create(sandbox_id=sandbox_id, node=self._part.node, metadata=metadata))
        await asyncio.sleep(life.setup)
        try:
            child = await Child.start(life)
        except OSError:
            await self._fail_start(sandbox_id)
            return
        self._log.write(Act.SPAWNED, sandbox_id, pid=child.pid)
        self._children.add(child)
        if self._ending.is_set():
            child.end()
        with self._log.asking("start", sandbox_id) as answered:
            answered(await self._store.start(sandbox_id, pid=child.pid))
        child.release()
        exit_status = await child.wait()
        self._children.remove(child)
        self._log.write(Act.ENDED, sandbox_id, pid=child.pid, exit_status=exit_status)
        await self._exit_and_remove(sandbox_id, exit_status, life.cleanup)

    async def _fail_start(self, sandbox_id: str) -> None:
        with self._log.asking("fail_start", sandbox_id) as answered:
            await self._store.fail_start(sandbox_id)
            answered(None)

    async def _exit_and_remove(self, sandbox_id: str, exit_status: int, cleanup: float = 0) -> None:
        """Tell the exit and clean up, unless the controller has removed the sandbox by now."""
        with suppress(NotFoundError):
            with self._log.asking("exit", sandbox_id) as answered:
                answered(await self._store.exit(sandbox_id, exit_status=exit_status))
            await asyncio.sleep(cleanup)
            with self._log.asking("remove", sandbox_id) as answered:
                answered(await self._store.remove(sandbox_id))

    # -- what all agents write to

    async def _update_shared(self) -> None:
        """Count in sandboxes that all agents update: the exit status of one that has not exited says nothing, so it
        can hold a number that must be right in the end."""
        chance = self._part.chance("updates")
        calls = 0

        def count(status: Status) -> Status:
            nonlocal calls
            calls += 1
            return replace(status, exit_status=status.exit_status + 1)

        while not self._ending.is_set():
            sandbox_id = chance.choice(self._part.shared)
            calls = 0
            with self._log.asking("update", sandbox_id) as answered:
                answered(await self._store.update(sandbox_id, count), attempts=calls)
            await asyncio.sleep(chance.uniform(0, 2 * _UPDATE_PAUSE))

    # -- taking over

    async def _take_over(self) -> None:
        """Clean up what an agent that died has left on this node. The processes of its sandboxes may still run."""
        for sandbox_id in await self._store.ids(node=self._part.node, states=list(State)):
            with suppress(NotFoundError):  # the controller may be faster
                await self._inherit(await self._store.get(sandbox_id))

    async def _inherit(self, sandbox: Sandbox) -> None:
        sandbox_id, status = sandbox.id, sandbox.status
        session = int(sandbox.metadata.annotations[SESSION])
        ran = status.pid > 0 and await asyncio.to_thread(end_orphan, status.pid, session)
        self._log.write(Act.ORPHANED, sandbox_id, status=status, pid=status.pid if ran else 0)
        if status.state is State.INIT:  # if it has a process, that ended by itself when its gate closed
            await self._fail_start(sandbox_id)
        else:  # an exit that is known is kept
            await self._exit_and_remove(sandbox_id, LOST_EXIT)


async def _main(part: Part) -> None:
    store = AsyncSandboxStore.from_url(prefix=part.prefix, agent=part.name, events_maxlen=EVENTS_MAXLEN)
    with TruthLog(part.log, part.name) as log:
        async with store:
            await Agent(part, store, log).run()


if __name__ == "__main__":
    asyncio.run(_main(Part.from_argv()))
