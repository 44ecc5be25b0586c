"""Connections to one Redis server for asyncio. The packets of all tasks share two, and are sent and answered in order
(4.8 times the throughput of a pool, measured); a transaction leases a connection to itself. It repeats nothing; which
server it is to be stands in ``aio_lane.py``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple

from redis.exceptions import RedisError

from sandbox_redis.connect import Endpoint, fence, lost, unsent
from sandbox_redis.replies import NOT_YET, answer, at_hand, pack
from sandbox_redis.wire import Command, Failure, Lost, Unsent

CONNECT_MAX: Final = 60.0  # seconds; each task that waits for the connection gives up by its own timeout before
NO_REPLY: Final = "no reply came in time"
SHARED_MAX: Final = 2  # the server answers a connection when it is through with what it has read from it: so while it
# works for the one, we work for the other
LEASES_MAX: Final = 16  # connections for transactions; more would not make one server faster


class AsyncPool:
    """Connections to one server, for the tasks of one event loop at a time."""

    def __init__(self, endpoint: Endpoint, on_loss: Callable[[], None], *, patient: bool) -> None:
        self.endpoint = endpoint
        self.address = endpoint.address
        self.patient = patient
        """Whether it may be of use to wait where nobody listens."""
        self.on_loss = on_loss
        self._loop: asyncio.AbstractEventLoop | None = None

    def _here(self) -> None:
        """Begin anew in another event loop, or in the child of a fork: connections belong to the loop they began in."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._shared: list[_Shared] = []
            self._idle: deque[AsyncLeased] = deque()
            self._leases = asyncio.Semaphore(LEASES_MAX)

    def submit(self, commands: tuple[Command, ...], timeout: float) -> asyncio.Future[list[Any]]:
        """Send one packet among those of other tasks; the future is for its replies, errors as `ServerError`.

        Raises (the future does):
            Unsent, Lost: the connection failed, and is closed.
        """
        self._here()
        self._shared = [shared for shared in self._shared if shared.failure is None]
        least = min(self._shared, key=_Shared.load, default=None)
        if least is None or (least.load() and len(self._shared) < SHARED_MAX):
            least = _Shared(self)
            self._shared.append(least)
        return least.submit(commands, timeout)

    async def lease(self, timeout: float) -> AsyncLeased:
        """A connection for one user at a time."""
        self._here()
        try:
            async with asyncio.timeout(timeout):
                await self._leases.acquire()
        except TimeoutError:
            raise Unsent(self.address, f"all {LEASES_MAX} connections for transactions stayed busy") from None
        if not self._idle:
            return AsyncLeased(self, self.endpoint.connection())
        leased = self._idle.pop()
        if leased.connection.is_connected:
            try:
                closed = await leased.connection.can_read()
            except (RedisError, OSError):
                closed = True
            except asyncio.CancelledError:  # its turn is for others now
                await leased.connection.disconnect(nowait=True)
                self.give_back(leased)
                raise
            if closed:
                await leased.connection.disconnect(nowait=True)
                self.on_loss()
        return leased

    def own(self) -> AsyncLeased:
        """A new connection, beside those for transactions: it will be blocked for long."""
        self._here()
        return AsyncLeased(self, self.endpoint.connection(), counted=False)

    def give_back(self, leased: AsyncLeased) -> None:
        """End a lease; what the connection was asked has been answered, or it is closed."""
        if leased.counted:
            self._idle.append(leased)
            self._leases.release()

    async def exchange(self, leased: AsyncLeased, commands: tuple[Command, ...], timeout: float) -> list[Any]:
        """Send one packet on a leased connection and read its replies, errors as `ServerError`.

        Raises:
            Unsent, Lost: the connection failed, and is closed.
        """
        connection = leased.connection
        await self.connect(leased, timeout)
        try:
            async with asyncio.timeout(timeout):
                await connection.send_packed_command(pack(commands), check_health=False)
                return [await read(connection, command) for command in commands]
        except TimeoutError:
            await connection.disconnect(nowait=True)
            self.on_loss()
            raise Lost(self.address, NO_REPLY, leased.fence) from None
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            self.on_loss()
            raise lost(self.address, error, leased.fence) from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def connect(self, leased: AsyncLeased, timeout: float) -> None:
        """Connect, if it is not.

        Raises:
            Unsent: it failed.
        """
        connection = leased.connection
        if connection.is_connected:
            return
        greeting = self.endpoint.greeting
        connection.socket_connect_timeout = timeout
        connection.socket_timeout = None  # the timeouts here are those of whole packets
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()
                await connection.send_packed_command(pack(greeting), check_health=False)
                replies = [await read(connection, command) for command in greeting if connection.is_connected]
            leased.fence = fence(self.endpoint, replies)
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            self.on_loss()
            raise unsent(self.address, error, patient=self.patient) from None
        except Unsent:
            await connection.disconnect(nowait=True)
            self.on_loss()
            raise
        self.patient = True

    async def close(self) -> None:
        """Close the shared connection and the idle ones; who waits for the shared one connects again."""
        self._here()
        for shared in self._shared:
            await shared.close(Unsent(self.address, "the store was closed"))
        await self.close_idle()

    async def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            await self._idle.pop().connection.disconnect(nowait=True)


async def read(connection: Any, command: Command) -> Any:
    """The reply to one command, an error reply as `ServerError`."""
    reply = at_hand(connection)
    if reply is NOT_YET:
        try:
            reply = await connection.read_response(disable_decoding=True)
        except RedisError as error:
            reply = error
    return answer(command, reply)


class AsyncLeased:
    """One connection, and how to make the server drop it."""

    __slots__ = ("connection", "counted", "fence", "pool")

    def __init__(self, pool: AsyncPool, connection: Any, *, counted: bool = True) -> None:
        self.pool = pool
        self.connection = connection
        self.counted = counted
        self.fence: Command | None = None


class _Packet(NamedTuple):
    commands: tuple[Command, ...]
    future: asyncio.Future[list[Any]]
    until: float


class _Shared:
    """One connection that carries the packets of many tasks. It connects at the first packet, and lives until it
    fails."""

    def __init__(self, pool: AsyncPool) -> None:
        self.failure: Failure | None = None
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._leased = AsyncLeased(pool, pool.endpoint.connection())
        self._unsent: list[_Packet] = []
        self._sent: deque[_Packet] = deque()
        self._to_send = asyncio.Event()
        self._connected = asyncio.Event()
        self._tasks = {self._loop.create_task(self._run(work)) for work in (self._write, self._read)}
        # One alarm for all packets: a timeout of its own for each would cost more than its reply (5 us).
        self._alarm: asyncio.TimerHandle | None = None

    def submit(self, commands: tuple[Command, ...], timeout: float) -> asyncio.Future[list[Any]]:
        """Queue a packet; the future is for its replies."""
        packet = _Packet(commands, self._loop.create_future(), self._loop.time() + timeout)
        self._unsent.append(packet)
        self._to_send.set()
        if self._alarm is None or packet.until < self._alarm.when():
            self._set_alarm(packet.until)
        return packet.future

    def load(self) -> int:
        """How many packets are under way."""
        return len(self._unsent) + len(self._sent)

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        waiting = [packet.until for packet in (*self._sent, *self._unsent) if not packet.future.done()]
        if waiting and min(waiting) <= self._loop.time():
            # What stands behind the late one in the connection is late as well; each finds out for itself.
            late = self.close(Lost(self._pool.address, NO_REPLY, self._leased.fence))
            self._tasks.add(self._loop.create_task(late))
        elif waiting:
            self._set_alarm(min(waiting))

    async def close(self, failure: Failure) -> None:
        """End the connection; everybody who waits for it hears why."""
        if self.failure is not None:
            return
        self.failure = failure
        self._pool.on_loss()
        unsent = failure if isinstance(failure, Unsent) else Unsent(failure.address, failure.reason)
        for packets, error in (
            (self._sent, Lost(failure.address, failure.reason, self._leased.fence)),
            (self._unsent, unsent),
        ):
            for packet in packets:
                if not packet.future.done():
                    packet.future.set_exception(error)
        if self._alarm is not None:
            self._alarm.cancel()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        await self._leased.connection.disconnect(nowait=True)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        failure: Failure = Lost(self._pool.address, "the connection was closed", self._leased.fence)
        try:
            await work()
        except Failure as error:
            failure = error
        except (RedisError, OSError) as error:
            failure = lost(self._pool.address, error, self._leased.fence)
        except asyncio.CancelledError:
            if self.failure is None:  # the event loop ends, and nobody has closed the store
                await self._pool.close_idle()
            raise
        finally:
            await self.close(failure)

    async def _write(self) -> None:
        await self._pool.connect(self._leased, CONNECT_MAX)
        self._connected.set()
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            packets = [packet for packet in self._unsent if not packet.future.cancelled()]
            self._unsent = []
            self._sent.extend(packets)
            packed = pack(command for packet in packets for command in packet.commands)
            await self._leased.connection.send_packed_command(packed, check_health=False)

    async def _read(self) -> None:
        # It reads also while nothing is expected, and so notices at once when the server closes an idle connection.
        await self._connected.wait()
        while True:
            first = await read(self._leased.connection, self._sent[0].commands[0] if self._sent else ())
            if not self._sent:
                raise OSError(f"the server said what nobody asked for: {first!r}")
            packet = self._sent[0]
            replies = [first, *[await read(self._leased.connection, command) for command in packet.commands[1:]]]
            self._sent.popleft()
            if not packet.future.done():  # the task that asked may have been cancelled
                packet.future.set_result(replies)
