"""Reaching the server within a deadline: what is retried, what is found out, what is given up and with which error.

One rule decides: what is certain not to have happened is tried again; what may have happened is found out by its
request token; nothing is guessed. No I/O, no redis; the operations themselves stand in ``operations.py``.
"""

from __future__ import annotations

from typing import Any, Final

from sandbox_redis.concern import WriteConcern
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import OutcomeUnknownError, SandboxError, StoreUnavailableError
from sandbox_redis.scripts import script
from sandbox_redis.topology import named
from sandbox_redis.trace import Trace
from sandbox_redis.wire import TRANSIENT, Command, Failure, Lease, Lost, Op, Send, ServerError, Unsent

SUPPLIES: Final = 5  # scripts that a server may lack within one operation, before its deadline counts for that, too
FIND_PAGE: Final = 1000  # events per find call; about 1 ms of server time

_REASONS: Final = {
    "LOADING": ("it is loading its data", "try again when it has"),
    "BUSY": ("a script keeps it busy", "try again, or end that script with SCRIPT KILL"),
    "OOM": ("its memory is full (maxmemory)", "free memory or raise maxmemory, then try again"),
    "READONLY": ("it is a read-only replica", "connect to its master"),
    "MISCONF": ("it cannot persist and therefore takes no writes", "look into its log, mend its disk"),
    "NOREPLICAS": ("too few of its replicas are in reach (min-replicas-to-write)", "mend its replication"),
    "NOAUTH": ("it asks for a password", "give one in the URL: redis://:password@host"),
    "WRONGPASS": ("it does not accept the user name or password", "correct them in the URL"),
    "NOPERM": ("its ACL does not permit this user the command or key", "log in as another user or change the ACL"),
    "MAXCLIENTS": ("it has as many connections as it takes (maxclients)", "raise maxclients, or end idle clients"),
    "CLUSTERDOWN": ("the cluster does not serve this now", "mend the nodes that are down"),
    "MOVED": ("it is a node of a cluster", "give the URL as redis+cluster://"),
    "TRYAGAIN": ("keys are being moved from it to another one", "try again when they are, or give a longer timeout"),
    "ASK": ("keys are being moved from it to another one", "try again when they are, or give a longer timeout"),
    "MASTERDOWN": ("it is a replica without its master", "connect to the master, or mend the replication"),
    "TLS": ("", "check its certificate, and ssl_ca_certs, ssl_certfile and ssl_keyfile in the URL"),
    "UNREACHABLE": (
        "",
        "check that a server runs there (sandbox-redis serve starts one on this host), and the address",
    ),
}


def unavailable(address: str, code: str, message: str) -> StoreUnavailableError:
    """The error for a server that answers with `code`, or does not answer."""
    reason, advice = _REASONS.get(code, ("", "check the URL, and look into its log"))
    return StoreUnavailableError(address, code, f"{reason}: {message}" if reason else message, advice)


def evalsha(name: str, keys: tuple[str, ...], args: tuple[Any, ...]) -> Command:
    """The command that runs a script by its SHA-1."""
    return ("EVALSHA", script(name).sha, len(keys), *keys, *args)


def asked(cause: Failure | ServerError) -> str:
    """The server that an ASK has named; empty for anything else."""
    text = cause.message if isinstance(cause, ServerError) else cause.reason
    return named(text) if cause.code == "ASK" else ""


class Exchange:
    """The way to one store's servers, as generators. `address` is for messages; `passing` is what they may say, and may
    not say any more after a while."""

    def __init__(self, address: str, passing: frozenset[str] = TRANSIENT) -> None:
        self.address = address
        self.passing = passing

    def ask(
        self,
        key: str,
        commands: tuple[Command, ...],
        deadline: Deadline,
        *,
        share: bool = False,
        replica: bool = False,
        at: str = "",
    ) -> Op[list[Any]]:
        """Send what can be sent twice without harm, until it is answered. Raises the first error that waiting does not
        mend, but leaves NOSCRIPT and WRONGTYPE to the caller, as a reply."""
        while True:
            try:
                replies: list[Any] = yield Send(key, commands, deadline.share(), share=share, replica=replica, at=at)
            except Failure as failure:
                replica = False  # the master has to answer for it
                at = yield from self.again(deadline, failure)
                continue
            trouble = next((reply for reply in replies if isinstance(reply, ServerError)), None)
            if trouble is None or trouble.code in ("NOSCRIPT", "WRONGTYPE"):
                return replies
            replica = False
            at = yield from self.again(deadline, trouble)
            if at and len(commands) > 1:  # while a slot moves, some of its keys are here and some are there
                for n, reply in enumerate(replies):
                    if isinstance(reply, ServerError) and reply.code not in ("NOSCRIPT", "WRONGTYPE"):
                        (replies[n],) = yield from self.ask(key, (commands[n],), deadline, at=asked(reply))
                return replies

    def again(
        self, deadline: Deadline, cause: Failure | ServerError, lost: OutcomeUnknownError | None = None
    ) -> Op[str]:
        """Pause before another attempt, or raise what `cause` means; `lost`, where an earlier reply was lost. Returns
        the server that the next attempt must go to, where an ASK has named one."""
        if isinstance(cause, ServerError):
            error: SandboxError = unavailable(self.address, cause.code, cause.message)
            deadline.said = error
            hopeless = cause.code not in self.passing
        else:
            error = unavailable(cause.address, cause.code, cause.reason)
            if cause.code == "UNREACHABLE" and deadline.said is not None:
                error = deadline.said  # what the server said before tells more than that it does not answer now
            hopeless = isinstance(cause, Unsent) and cause.hopeless and lost is None
        if hopeless:
            raise (lost or error) from None
        yield from deadline.pause(lost or error, why=(cause,))
        return asked(cause)

    def supply(
        self,
        name: str,
        key: str,
        deadline: Deadline,
        lost: OutcomeUnknownError | None = None,
        lease: Lease = Lease.ANY,
        *,
        replica: bool = False,
        at: str = "",
    ) -> Op[None]:
        """Give the server a script it does not have: it is new, was restarted, failed over or SCRIPT FLUSHed."""
        command = ("SCRIPT", "LOAD", script(name).source)
        share = lease is Lease.ANY
        (reply,) = yield Send(key, (command,), deadline.share(), lease, share=share, replica=replica, at=at)
        if isinstance(reply, ServerError):
            yield from self.again(deadline, reply, lost)
        deadline.supplies += 1
        if deadline.supplies > SUPPLIES and deadline.passed():
            raise lost or unavailable(self.address, "NOSCRIPT", "it loses its scripts again and again")

    def run(
        self,
        name: str,
        keys: tuple[str, ...],
        args: tuple[Any, ...],
        deadline: Deadline,
        *,
        replica: bool = False,
    ) -> Op[Any]:
        """Run a script that can run twice without harm."""
        command = evalsha(name, keys, args)
        at = ""
        while True:
            try:
                (reply,) = yield Send(keys[0], (command,), deadline.share(), replica=replica, at=at)
                if not isinstance(reply, ServerError) or reply.code == "WRONGTYPE":
                    return reply
                if reply.code == "NOSCRIPT":
                    yield from self.supply(name, keys[0], deadline, replica=replica, at=at)
                else:
                    replica = False  # the master has to answer for it
                    at = yield from self.again(deadline, reply)
            except Failure as failure:
                replica = False
                at = yield from self.again(deadline, failure)

    def write(
        self,
        name: str,
        keys: tuple[str, ...],
        args: tuple[Any, ...],
        trace: Trace,
        deadline: Deadline,
        *,
        stays: bool = False,
    ) -> Op[Any]:
        """Run a script that writes, exactly once. Its reply, or what `find` says of it when the reply was lost. One
        that writes to keys which it does not name `stays` until their slot has moved: where an ASK leads they may be
        missing, and nobody would tell.
        """
        command = evalsha(name, keys, args)
        lost: OutcomeUnknownError | None = None
        at = ""
        while True:
            writing = False
            try:
                if lost and (found := (yield from self.find(trace, deadline, at=at))):
                    return found
                writing = True
                reply, *confirmed = yield trace.packet((command,), deadline, at="" if stays else at)
                writing = False
                if isinstance(reply, ServerError):
                    if reply.code == "WRONGTYPE":
                        return reply
                    if reply.code == "NOSCRIPT":
                        yield from self.supply(name, keys[1], deadline, lost, at="" if stays else at)
                    else:
                        at = yield from self.again(deadline, reply, lost)
                elif lost is None or (reply[0] == b"OK" and reply[1] != b"0"):
                    trace.confirm(confirmed)
                    return reply
                else:
                    # A refusal; but the write that was lost may have arrived after it was looked for, and be the cause.
                    return (yield from self.find(trace, deadline, at=at)) or reply
            except Failure as failure:
                if writing and isinstance(failure, Lost):
                    lost = trace.lost(failure)
                at = yield from self.again(deadline, failure, lost)

    def probe(self, concern: WriteConcern, key: str, deadline: Deadline) -> Op[None]:
        """Find out whether the server can confirm a write so, before it is made; raises `StoreUnavailableError`."""
        while True:
            try:
                (reply,) = yield Send(key, (concern.probe(),), deadline.share(), Lease.ALONE, share=True)
            except Failure as failure:
                yield from self.again(deadline, failure)
                continue
            if refused := concern.refusal(reply, self.address):
                raise refused
            if not isinstance(reply, ServerError) or reply.code not in self.passing:
                return
            yield from self.again(deadline, reply)

    def find(self, trace: Trace, deadline: Deadline, lease: Lease = Lease.ANY, *, at: str = "") -> Op[Any]:
        """Look for a write whose reply was lost: a reply as its script gives it, or None when it did not happen."""
        newest = "+"
        while True:
            command = evalsha("find", trace.keys, (trace.request, trace.floor, newest, trace.maxlen, FIND_PAGE))
            # First the server drops the connections that the write was lost with: what is still under way there,
            # perhaps for long, must not be executed after we have looked.
            *_, reply = yield Send(trace.keys[0], (*trace.fences, command), deadline.share(), lease, at=at)
            if isinstance(reply, ServerError):
                if reply.code != "NOSCRIPT":
                    raise Unsent(self.address, reply.message, reply.code)
                failed = trace.unknown("looking for it failed")
                yield from self.supply("find", trace.keys[0], deadline, failed, lease, at=at)
                continue
            match reply[0]:
                case b"MORE":
                    newest = reply[1].decode()
                case b"CURRENT":
                    return [b"OK", reply[1]]
                case b"PASSED":
                    return [b"PASSED", *reply[1:]]
                case b"NONE":
                    return None
                case b"ROLLED_BACK":
                    raise trace.unknown("the server lost data since")
                case _:
                    raise trace.unknown("its event may be trimmed by now")
