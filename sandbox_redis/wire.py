"""What an operation asks of its driver, and what it can hear back. Operations are generators that yield `Send`,
`SendAll`, `Hear` and `Sleep`; a driver, sync or asyncio, carries them out. No I/O and no redis here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")
Command = tuple[Any, ...]
Question = tuple[str, tuple[Command, ...]]
"""A key, and what to ask the server that holds it."""


class Lease(Enum):
    """Which connection a packet travels on."""

    ANY = "any"
    """Whichever is free; packets of other operations may travel before and behind it."""
    TAKE = "take"
    """One that this operation has to itself from now on, as WATCH needs it."""
    OWN = "own"
    """A new one that no other operation ever uses: it will be blocked for long."""
    KEEP = "keep"
    """The one taken. It is `Unsent` when that one is gone, never sent on another."""
    LAST = "last"
    """The one taken, which is given back after this packet."""
    ALONE = "alone"
    """One that this packet has to itself: it may block. It is given back after it."""


class Send(NamedTuple):
    """Send commands in one packet and return their replies, errors as `ServerError` values among them.

    The driver throws `Unsent` or `Lost` into the operation when there are no replies.
    """

    key: str
    """The packet goes to the server that holds this key."""
    commands: tuple[Command, ...]
    timeout: float
    """Seconds to wait, at most, for the connection and for each reply."""
    lease: Lease = Lease.ANY
    share: bool = False
    """In a batch, send it once for all operations that ask for the very same."""
    at: str = ""
    """The server that an ASK has named for this packet alone; wherever the key is without one."""
    replica: bool = False
    """It only reads, and what a replica knows will do."""
    tail: int = 0
    """So many commands at the end speak of all that was sent before them on their connection. In a batch, packets to
    one key whose tails are the same become one packet with one tail."""


class Sleep(NamedTuple):
    """Wait, holding no connection."""

    seconds: float
    why: tuple[ServerError | Failure, ...] = ()
    """What went wrong before; it may tell where the servers are now."""


class Hear(NamedTuple):
    """Ask the servers that hold some keys, each over a connection that this operation keeps for that: when a key has
    changed since it was asked for last, and after some seconds for all keys. The reply has for each question its
    replies, or None where it was not asked.

    The driver throws `Unsent` or `Lost` into the operation when a server fails.
    """

    questions: tuple[Question, ...]
    wait: float
    """Seconds without a change; 0 asks at once."""
    timeout: float
    """Seconds to wait, at most, for a connection and for the replies."""
    fresh: bool = False
    """Over new connections."""


class SendAll(NamedTuple):
    """Send many packets, `ANY` or `ALONE`, in as few as possible. The driver draws them while the server is at
    work on the first ones, and hands out the replies while it is at work on the last ones."""

    sends: Iterator[Send]
    deliver: Callable[[list[Any] | Failure], None]
    """Called once for each of `sends`, in order, with its replies or its failure."""


Request = Send | SendAll | Hear | Sleep
Op = Generator[Request, Any, T]


class ServerError(NamedTuple):
    """An error reply: the server refused this command, and did not execute it."""

    code: str
    message: str


TRANSIENT: Final = frozenset(
    {"LOADING", "BUSY", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "MAXCLIENTS", "UNREACHABLE"}
)
"""What a server may say, or not say, and may not say any more after a while."""


class Failure(Exception):
    """There are no replies. `address` is the server's, without credentials."""

    def __init__(self, address: str, reason: str, code: str = "UNREACHABLE") -> None:
        super().__init__(address, reason, code)
        self.address = address
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        return f"the connection to {self.address} failed: {self.reason}"


class LaidOut(Exception):
    """The store that is followed did not exist, and does now, perhaps with other partitions; it never leaves the
    library."""


class Closed(Exception):
    """Its user has closed what an operation was under way for; it never leaves the library."""


class Unsent(Failure):
    """It is certain that the server executed nothing.

    `hopeless` says that waiting will not help: nobody ever listened there, or the password is wrong.
    """

    hopeless = False


class Lost(Failure):
    """The packet was sent, or a part of it, and not every reply came back: the server may have executed it, or may yet.

    `fence` is the command by which the server drops that connection: after it, nothing that is still under way there is
    ever executed. None where the server did not say how to name the connection.
    """

    def __init__(self, address: str, reason: str, fence: Command | None = None) -> None:
        super().__init__(address, reason)
        self.fence = fence
