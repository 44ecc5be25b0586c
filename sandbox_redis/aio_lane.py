"""The way to one Redis server for asyncio. The packets of all tasks share one connection, and are sent and answered in
order (4.8 times the throughput of a pool, measured); a transaction leases a connection to itself. It repeats nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import Any, Final

import hiredis
from redis.exceptions import RedisError

from sandbox_redis.connect import Endpoint, is_refusal, lost, refusal, unsent
from sandbox_redis.wire import Command, Failure, Lost, Unsent

CONNECT_MAX: Final = 60.0  # seconds; each task that waits for the connection gives up by its own timeout before
LEASES_MAX: Final = 16  # connections for transactions; more would not make one server faster


class AsyncLane:
    """Connections to one server, for the tasks of one event loop at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.address = endpoint.address
        self._reached = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def _here(self) -> None:
        """Begin anew in another event loop, or in the child of a fork: connections belong to the loop they began in."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._shared: _Shared | None = None
            self._idle: deque[Any] = deque()
            self._leases = asyncio.Semaphore(LEASES_MAX)

    async def shared(self, key: str, commands: tuple[Command, ...], timeout: float) -> list[Any]:
        """Send one packet among those of other tasks.

        Raises:
            Unsent, Lost: the connection failed, and is closed.
        """
        self._here()
        shared = self._shared
        if shared is None or shared.failure is not None:
            shared = self._shared = _Shared(self)
        future = shared.submit(commands)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            # What stands behind it in the connection is late as well; each of those finds out for itself.
            raise await shared.give_up(future, f"no reply within {timeout:.3g} s") from None

    async def lease(self, key: str, timeout: float) -> Any:
        """A connection to the server that holds `key`, for one user at a time."""
        self._here()
        try:
            async with asyncio.timeout(timeout):
                await self._leases.acquire()
        except TimeoutError:
            raise Unsent(self.address, f"all {LEASES_MAX} connections for transactions were busy", "BUSY") from None
        return self._idle.pop() if self._idle else self.endpoint.connection()

    def give_back(self, connection: Any) -> None:
        """End a lease; what the connection was asked has been answered, or it is closed."""
        self._idle.append(connection)
        self._leases.release()

    async def exchange(self, connection: Any, commands: tuple[Command, ...], timeout: float) -> list[Any]:
        """Send one packet on a leased connection and read its replies, errors as `ServerError`.

        Raises:
            Unsent, Lost: the connection failed, and is closed.
        """
        replies: list[Any] = []
        await self.connect(connection, timeout)
        try:
            async with asyncio.timeout(timeout):
                await connection.send_packed_command(pack(commands), check_health=False)
                for command in commands:
                    replies.append(await read(connection, command))  # noqa: PERF401 - a failure keeps the first ones
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise lost(self.address, error, replies) from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return replies

    async def connect(self, connection: Any, timeout: float) -> None:
        """Connect, if it is not.

        Raises:
            Unsent: it failed.
        """
        if connection.is_connected:
            return
        connection.socket_connect_timeout = timeout
        connection.socket_timeout = None  # the timeouts here are those of whole packets
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise unsent(self.address, error, reached=self._reached) from None
        self._reached = True

    async def close(self) -> None:
        """Close the shared connection and the idle ones."""
        self._here()
        if self._shared is not None:
            await self._shared.close(Unsent(self.address, "the store was closed"))
            self._shared = None
        while self._idle:
            await self._idle.pop().disconnect()


def pack(commands: Iterable[Command]) -> tuple[bytes]:
    """Commands as one packet."""
    return (b"".join([hiredis.pack_command(command) for command in commands]),)


async def read(connection: Any, command: Command) -> Any:
    """The reply to one command, an error reply as `ServerError`."""
    try:
        reply = await connection.read_response(disable_decoding=True)
    except RedisError as error:
        if not is_refusal(error):
            raise
        return refusal(error)
    if command[0] == "EXEC" and reply:
        return [refusal(item) if isinstance(item, RedisError) else item for item in reply]
    return reply


Packet = tuple[tuple[Command, ...], asyncio.Future[list[Any]]]


class _Shared:
    """One connection that carries the packets of many tasks. It connects at the first packet, and lives until it
    fails."""

    def __init__(self, lane: AsyncLane) -> None:
        self.failure: Failure | None = None
        self._lane = lane
        self._connection = lane.endpoint.connection()
        self._unsent: list[Packet] = []
        self._sent: deque[Packet] = deque()
        self._to_send = asyncio.Event()
        self._to_read = asyncio.Event()
        self._tasks = (asyncio.create_task(self._run(self._write())), asyncio.create_task(self._run(self._read())))

    def submit(self, commands: tuple[Command, ...]) -> asyncio.Future[list[Any]]:
        """Queue a packet; the future is for its replies."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._unsent.append((commands, future))
        self._to_send.set()
        return future

    async def give_up(self, future: asyncio.Future[list[Any]], reason: str) -> Failure:
        """End the connection, because the reply to this packet does not come; what became of the packet."""
        waits = any(packet[1] is future for packet in self._unsent)
        failure = (Unsent if waits else Lost)(self._lane.address, reason)
        await self.close(failure)
        return failure

    async def close(self, failure: Failure) -> None:
        """End the connection; everybody who waits for it hears why."""
        if self.failure is not None:
            return
        self.failure = failure
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for _, future in self._sent:
            if not future.done():
                future.set_exception(Lost(failure.address, failure.reason))
        for _, future in self._unsent:
            if not future.done():
                future.set_exception(
                    failure if isinstance(failure, Unsent) else Unsent(failure.address, failure.reason)
                )
        await self._connection.disconnect(nowait=True)

    async def _run(self, loop: Coroutine[Any, Any, None]) -> None:
        try:
            await loop
        except Failure as failure:
            await self.close(failure)
        except (RedisError, OSError) as error:
            await self.close(lost(self._lane.address, error, []))
        except asyncio.CancelledError:
            await self.close(Lost(self._lane.address, "the connection was closed"))
            raise

    async def _write(self) -> None:
        await self._lane.connect(self._connection, CONNECT_MAX)
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            packets = [packet for packet in self._unsent if not packet[1].cancelled()]
            self._unsent = []
            self._sent.extend(packets)
            self._to_read.set()
            packet = pack(command for commands, _ in packets for command in commands)
            await self._connection.send_packed_command(packet, check_health=False)

    async def _read(self) -> None:
        while True:
            while not self._sent:
                self._to_read.clear()
                await self._to_read.wait()
            commands, future = self._sent[0]
            replies = [await read(self._connection, command) for command in commands]
            self._sent.popleft()
            if not future.done():  # the task that asked may have been cancelled
                future.set_result(replies)
