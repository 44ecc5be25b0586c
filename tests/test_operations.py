"""The operations, played by hand: no server, no I/O and no time. Each test says what is sent, in which order, and what
the operation makes of the replies.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, cycle, repeat
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_redis import (
    ConflictError,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    SchemaError,
    State,
    StoreUnavailableError,
    TransitionError,
    session,
)
from sandbox_redis.operations import Operations
from sandbox_redis.scripts import FOLDER, script
from sandbox_redis.topology import Single
from sandbox_redis.wire import Failure, Lease, Lost, Send, ServerError, Sleep, Unsent

NAMES = {script(f.name.removesuffix(".lua")).sha: f.name[:-4] for f in FOLDER.iterdir() if f.name.endswith(".lua")}
SOURCES = {script(name).source: name for name in NAMES.values()}
LAYOUT = [[b"1", b"1", b"1000"]]
FLOOR = [[(b"5-0", [])]]
NOSCRIPT = ServerError("NOSCRIPT", "No matching script.")
GONE = Lost("here:1", "Connection closed by server")
DOWN = Unsent("here:1", "Connection refused")
HOPELESS = Unsent("here:1", "Connection refused")
HOPELESS.hopeless = True


def record(state: str = "READY", pid: int = 7, request: str = "theirs", revision: str = "9-0") -> list[bytes]:
    fields = {"state": state, "pid": pid, "exit_status": 0, "revision": revision, "request": request, "name": "web"}
    return [str(item).encode() for pair in fields.items() for item in pair]


def said(request: Any) -> str:
    """A request in short: its lease and its commands, scripts by their names."""
    if isinstance(request, Sleep):
        return "sleep"

    def word(command: tuple[Any, ...]) -> str:
        if command[0] == "EVALSHA":
            return NAMES[command[1]]
        return f"load {SOURCES[command[2]]}" if command[:2] == ("SCRIPT", "LOAD") else command[0]

    return f"{request.lease.value}: {' '.join(map(word, request.commands))}"


class Played:
    """An operation that was played to its end: what it asked for, and its result or error."""

    def __init__(self, clock: Clock, op: Any, *replies: Any, then: Iterable[Any] | Server = ()) -> None:
        """Answer with `replies`, and after them with those of `then`, of which some may be left at the end."""
        self.requests: list[Any] = []
        self.result: Any = None
        self.error: SandboxError | None = None
        heard = chain(replies, () if isinstance(then, Server) else then)
        reply = None
        try:
            while True:
                request = op.throw(reply) if isinstance(reply, Failure) else op.send(reply)
                self.requests.append(request)
                if isinstance(request, Sleep):
                    clock.now += request.seconds
                    reply = None
                    continue
                if isinstance(then, Server):
                    reply = then.answer(request)
                    continue
                reply = next(heard, StopIteration)
                assert reply is not StopIteration, f"there is no reply left to {self.said}"
                if isinstance(reply, Failure):
                    clock.now += request.timeout
                elif isinstance(reply, ServerError):
                    reply = [reply] * len(request.commands)
        except StopIteration as stop:
            self.result = stop.value
        except SandboxError as error:
            self.error = error
        assert then or not list(heard)

    @property
    def said(self) -> list[str]:
        return [said(request) for request in self.requests]

    @property
    def sent(self) -> list[str]:
        """What was said, without the pauses."""
        return [word for word in self.said if word != "sleep"]

    def tokens(self) -> set[str]:
        """The request tokens that its commands carried."""
        commands = [c for r in self.requests if isinstance(r, Send) for c in r.commands if c[0] == "EVALSHA"]
        return {c[3 + c[2] + (0 if NAMES[c[1]] == "find" else 2)] for c in commands if NAMES[c[1]] != "meta"}


class Clock:
    """Time stands still but when a test or a pause moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def module(self) -> Any:
        return SimpleNamespace(monotonic=lambda: self.now, time_ns=time.time_ns)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(session, "time", clock.module())
    return clock


def operations() -> Operations:
    return Operations(Single("here:1"), prefix="p", agent="me", timeout=5, partitions=1, events_maxlen=1000)


def opened(clock: Clock) -> Operations:
    """A store that knows its layout and the newest event, so that a write is one packet."""
    store = operations()
    Played(clock, store.remove("other"), LAYOUT, FLOOR, [[b"OK", b"0"]])
    return store


@pytest.fixture
def play(clock):
    """Plays an operation of a store that is open: ``play(lambda store: store.get("it"), reply, …)``."""
    return lambda call, *replies, then=(): Played(clock, call(opened(clock)), *replies, then=then)


def start(store: Operations) -> Any:
    return store.start("it", pid=7)


def update(store: Operations) -> Any:
    return store.update("it", lambda status: replace(status, pid=status.pid + 1))


SEEN = [b"OK", record()]
STARTED = [[b"OK", record()]]
COMMITTED = [b"OK", b"QUEUED", [[b"OK", record(pid=8)]]]
REFUSED = [[b"TRANSITION", b"NOTREADY"]]

# -- how a store opens


def test_the_first_write_learns_the_layout_and_the_newest_event_and_later_ones_take_one_round_trip(clock):
    store = operations()
    first = Played(clock, start(store), LAYOUT, FLOOR, STARTED)
    assert first.said == ["any: HMGET", "any: XREVRANGE", "any: start"]
    assert first.requests[0].key == "p:meta"
    assert first.result.status.pid == 7
    for call in (
        start,
        lambda s: s.create(sandbox_id="it"),
        lambda s: s.stop("it"),
        lambda s: s.exit("it", exit_status=1),
    ):
        assert len(Played(clock, call(store), STARTED).said) == 1
    assert Played(clock, store.remove("it", force=True), [[b"OK", b"1"]]).said == ["any: remove"]
    assert Played(clock, store.fail_start("it"), [[b"OK", b"1"]]).said == ["any: fail_start"]
    assert Played(clock, update(store), SEEN, COMMITTED).said == ["take: WATCH HGETALL", "last: MULTI update EXEC"]
    assert Played(clock, store.get("it"), [record()]).said == ["any: HGETALL"]
    assert Played(clock, store.ids(), [[], [], []]).said == ["any: ZRANGE ZRANGE ZRANGE"]
    assert Played(clock, store.port_forward("it"), STARTED).said == ["any: port_forward"]


def test_the_first_write_to_a_new_store_says_how_it_is_laid_out(clock):
    laid_out = [[b"OK", *LAYOUT[0]]]
    played = Played(clock, start(operations()), [[None] * 3], [NOSCRIPT], [b"sha"], laid_out, [[]], STARTED)
    assert played.said == ["any: HMGET", "any: meta", "any: load meta", "any: meta", "any: XREVRANGE", "any: start"]
    assert played.requests[1].commands[0][2:] == (1, "p:meta", 1, 1, 1000)


def test_reading_a_new_store_asks_for_its_layout_and_decides_nothing(clock):
    store = operations()
    for _ in range(2):
        played = Played(clock, store.get("it"), [[None] * 3], [[]])
        assert played.said == ["any: HMGET", "any: HGETALL"]
        assert isinstance(played.error, NotFoundError)


def test_a_missing_script_is_supplied_and_run(play):
    played = play(start, [NOSCRIPT], [b"sha"], STARTED)
    assert played.said == ["any: start", "any: load start", "any: start"]
    assert played.requests[0].commands == played.requests[2].commands
    assert len(played.tokens()) == 1


def test_a_script_that_is_missing_inside_exec_is_supplied_and_the_transaction_begins_again(play):
    played = play(update, SEEN, [b"OK", b"QUEUED", [NOSCRIPT]], [b"sha"], SEEN, COMMITTED)
    transaction = ["take: WATCH HGETALL", "last: MULTI update EXEC"]
    assert played.said == [*transaction, "any: load update", *transaction]
    assert len(played.tokens()) == 1
    assert played.result.status.pid == 8


def test_a_server_that_takes_no_scripts_ends_the_operation(play):
    no = ServerError("NOPERM", "this user has no permissions to run the 'script|load' command")
    read = lambda store: store.port_forward("it")  # noqa: E731
    for call, missing in (
        (start, [[NOSCRIPT]]),
        (read, [[NOSCRIPT]]),
        (update, [SEEN, [b"OK", b"QUEUED", [NOSCRIPT]]]),
    ):
        error = play(call, *missing, no).error
        assert isinstance(error, StoreUnavailableError)
        assert error.code == "NOPERM"


def test_a_server_that_loses_its_scripts_again_and_again_ends_the_operation_at_its_deadline(play, clock):
    def forgetful(*missing):
        while True:
            clock.now += 0.1
            yield from missing
            yield [b"sha"]

    executed = [b"OK", b"QUEUED", [NOSCRIPT]]
    assert isinstance(play(start, then=forgetful([NOSCRIPT])).error, StoreUnavailableError)
    assert isinstance(play(update, then=forgetful(SEEN, executed)).error, StoreUnavailableError)
    assert isinstance(play(lambda s: s.port_forward("it"), then=forgetful([NOSCRIPT])).error, StoreUnavailableError)
    assert isinstance(play(start, GONE, then=forgetful([NOSCRIPT])).error, OutcomeUnknownError)


# -- a reply is lost


def test_a_lost_write_is_looked_for_and_found(play):
    played = play(start, GONE, [[b"CURRENT", record(request="ours")]])
    assert played.said == ["any: start", "sleep", "any: find"]
    assert len(played.tokens()) == 1
    assert played.result.status.pid == 7


def test_a_lost_write_that_others_have_passed_is_answered_from_its_event(play):
    event = [b"id", b"it", b"transition", b"start", b"before", b"INIT", b"state", b"READY", b"pid", b"7"]
    played = play(start, GONE, [[b"PASSED", b"8-0", event, record("NOTREADY", 0, revision="9-0")]])
    assert played.result.status.state is State.READY
    assert (played.result.status.pid, played.result.revision, played.result.metadata.name) == (7, "8-0", "web")


def test_a_lost_write_that_did_not_happen_is_sent_again_as_it_was(play):
    played = play(start, GONE, [[b"NONE"]], STARTED)
    assert played.said == ["any: start", "sleep", "any: find", "any: start"]
    assert played.requests[0].commands == played.requests[3].commands


def test_a_lost_write_is_looked_for_page_by_page_down_to_the_newest_event_from_before(play):
    played = play(start, GONE, [[b"MORE", b"(7-0"]], [[b"MORE", b"(6-0"]], [[b"NONE"]], STARTED)
    finds = [request.commands[0][6:9] for request in played.requests if said(request) == "any: find"]
    assert finds == [("5-0", "+", 1000), ("5-0", "(7-0", 1000), ("5-0", "(6-0", 1000)]


def test_before_a_lost_write_is_looked_for_the_server_drops_the_connection_it_may_still_arrive_on(play):
    cut = [Lost("here:1", "no reply", ("CLIENT", "KILL", "ID", number)) for number in (b"7", b"8")]
    played = play(start, cut[0], [1, [b"NONE"]], cut[1], [0, 1, [b"NONE"]], STARTED)
    assert played.sent == ["any: start", "any: CLIENT find", "any: start", "any: CLIENT CLIENT find", "any: start"]
    played = play(update, SEEN, cut[0], SEEN, [1, [b"CURRENT", record()]], [b"OK"])
    assert played.sent[2:4] == ["take: WATCH HGETALL", "keep: CLIENT find"]


@pytest.mark.parametrize("answer", [b"TRIMMED", b"ROLLED_BACK"])
def test_a_lost_write_that_cannot_be_found_any_more_is_told_with_its_token_and_never_guessed(play, answer):
    played = play(start, GONE, [[answer]])
    assert isinstance(played.error, OutcomeUnknownError)
    assert {played.error.request} == played.tokens()
    assert played.error.id == "it"


@pytest.mark.parametrize(
    ("found", "outcome"),
    [([[b"CURRENT", record()]], None), ([[b"PASSED", b"8-0", record(), []]], None), ([[b"NONE"]], TransitionError)],
)
def test_a_refusal_behind_a_lost_write_is_doubted(play, found, outcome):
    # The lost packet may have arrived after it was looked for, and be the cause of the refusal itself.
    played = play(start, GONE, [[b"NONE"]], REFUSED, found)
    assert played.sent == ["any: start", "any: find", "any: start", "any: find"]
    assert (played.error is None) if outcome is None else isinstance(played.error, outcome)


def test_a_removal_that_finds_nothing_behind_a_lost_one_is_doubted(play):
    event = [b"id", b"it", b"transition", b"remove"]
    gone = [[b"PASSED", b"8-0", event, []]]
    assert play(lambda s: s.remove("it"), GONE, [[b"NONE"]], [[b"OK", b"0"]], gone).result is True
    assert play(lambda s: s.remove("it"), GONE, [[b"NONE"]], [[b"OK", b"0"]], [[b"NONE"]]).result is False
    assert play(lambda s: s.remove("it"), GONE, gone).result is True


def test_looking_for_a_lost_write_survives_further_trouble(play):
    busy = ServerError("BUSY", "Redis is busy running a script")
    played = play(start, GONE, GONE, DOWN, [busy], [NOSCRIPT], [b"sha"], [[b"CURRENT", record()]])
    assert played.sent == ["any: start", *["any: find"] * 4, "any: load find", "any: find"]
    assert played.error is None


def test_what_was_never_sent_is_sent_again(play):
    played = play(start, DOWN, DOWN, STARTED)
    assert played.said == ["any: start", "sleep", "any: start", "sleep", "any: start"]


def test_a_server_that_nobody_ever_reached_is_told_at_once(play):
    played = play(start, HOPELESS)
    assert isinstance(played.error, StoreUnavailableError)
    assert (played.error.code, played.error.address) == ("UNREACHABLE", "here:1")


def test_a_server_that_went_away_with_a_write_is_waited_for(play):
    assert play(start, GONE, HOPELESS, [[b"CURRENT", record()]]).error is None


@pytest.mark.parametrize("code", ["LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN"])
@pytest.mark.parametrize("call", [start, lambda store: store.get("it")])
def test_what_passes_by_itself_is_waited_for(play, code, call):
    answer = STARTED if call is start else [record()]
    assert play(call, [ServerError(code, "…")], [ServerError(code, "…")], answer).error is None


@pytest.mark.parametrize("code", ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "NOAUTH", "WRONGPASS", "NOPERM", "ERR"])
@pytest.mark.parametrize("call", [start, lambda store: store.get("it"), update])
def test_what_does_not_pass_by_itself_is_told_at_once(play, code, call):
    refusal = ServerError(code, "no")
    played = play(call, refusal, then=[[b"OK"]])
    assert isinstance(played.error, StoreUnavailableError)
    assert played.error.code == code
    assert "sleep" not in played.said


# -- the transaction


def test_a_conflict_begins_again_after_a_pause(play):
    played = play(update, SEEN, [b"OK", b"QUEUED", None], SEEN, COMMITTED)
    transaction = ["take: WATCH HGETALL", "last: MULTI update EXEC"]
    assert played.said == [*transaction, "sleep", *transaction]


def test_a_conflict_that_the_script_itself_sees_begins_again_as_well(play):
    played = play(update, SEEN, [b"OK", b"QUEUED", [[b"CONFLICT"]]], SEEN, COMMITTED)
    transaction = ["take: WATCH HGETALL", "last: MULTI update EXEC"]
    assert played.said == [*transaction, "sleep", *transaction]
    assert played.requests[1].commands[1][-1] == b"9-0"


def test_an_update_that_has_nothing_to_write_gives_its_connection_back(play):
    for fn in (lambda status: status, lambda status: None):
        played = play(lambda store, fn=fn: store.update("it", fn), SEEN, [b"OK"])
        assert played.said == ["take: WATCH HGETALL", "last: UNWATCH"]
    played = play(update, [b"OK", []], [b"OK"])
    assert played.said == ["take: WATCH HGETALL", "last: UNWATCH"]
    assert isinstance(played.error, NotFoundError)
    assert play(lambda store: store.update("it", lambda status: status), SEEN, GONE).error is None


def test_a_transaction_whose_connection_is_gone_begins_again_and_sends_no_exec_elsewhere(play):
    played = play(update, SEEN, DOWN, SEEN, COMMITTED)
    transaction = ["take: WATCH HGETALL", "last: MULTI update EXEC"]
    assert played.said == [*transaction, "sleep", *transaction]
    execs = [request.lease for request in played.requests if isinstance(request, Send) and "EXEC" in said(request)]
    assert execs == [Lease.LAST, Lease.LAST]


def test_a_lost_transaction_is_looked_for_while_the_record_is_watched_again(play):
    played = play(update, SEEN, GONE, SEEN, [[b"CURRENT", record(pid=8)]], [b"OK"])
    assert played.sent == [
        "take: WATCH HGETALL",
        "last: MULTI update EXEC",
        "take: WATCH HGETALL",
        "keep: find",
        "last: UNWATCH",
    ]
    assert played.result.status.pid == 8
    calls: list[Any] = []

    def fn(status):
        calls.append(status)
        return replace(status, pid=status.pid + 1)

    played = play(lambda s: s.update("it", fn), SEEN, GONE, SEEN, [[b"NONE"]], COMMITTED)
    assert played.sent[-2:] == ["keep: find", "last: MULTI update EXEC"]
    assert len(calls) == 2
    assert len(played.tokens()) == 1


def test_a_sandbox_that_is_gone_behind_a_lost_update_is_looked_for_in_the_events(play):
    event = [b"state", b"READY", b"pid", b"8"]
    played = play(update, SEEN, GONE, [b"OK", []], [[b"PASSED", b"8-0", event, []]], [b"OK"])
    assert played.result.status.pid == 8
    played = play(update, SEEN, GONE, [b"OK", []], [[b"NONE"]], [b"OK"])
    assert isinstance(played.error, NotFoundError)


def test_an_update_without_its_watch_is_never_written(play):
    no = ServerError("NOPERM", "this user has no permissions to run the 'watch' command")
    played = play(update, [no, record()], then=repeat(COMMITTED))
    assert isinstance(played.error, StoreUnavailableError)
    assert not any("EXEC" in word for word in played.said)


@pytest.mark.parametrize(
    "replies",
    [
        [ServerError("NOPERM", "multi"), ServerError("NOPERM", "evalsha"), ServerError("ERR", "EXEC without MULTI")],
        [b"OK", ServerError("NOPERM", "evalsha"), ServerError("EXECABORT", "discarded")],
        [b"OK", b"QUEUED", ServerError("NOPERM", "exec")],
        [b"OK", b"QUEUED", [ServerError("NOPERM", "hset")]],
    ],
)
def test_a_transaction_that_the_server_refuses_is_told(play, replies):
    played = play(update, SEEN, replies, then=repeat([b"OK"]))
    assert isinstance(played.error, StoreUnavailableError)
    assert played.error.code == "NOPERM"


def test_a_script_that_ran_outside_its_transaction_has_looked_at_the_revision_by_itself(play):
    # An ACL may forbid MULTI alone; then the script ran at once, and EXEC had nothing to do.
    no, nothing = ServerError("NOPERM", "multi"), ServerError("ERR", "EXEC without MULTI")
    assert play(update, SEEN, [no, [b"OK", record(pid=8)], nothing]).result.status.pid == 8
    played = play(update, SEEN, [no, [b"CONFLICT"], nothing], SEEN, [no, [b"OK", record(pid=8)], nothing])
    assert played.result.status.pid == 8


def test_keys_of_the_wrong_type_are_looked_for_by_name(play):
    wrong = ServerError("WRONGTYPE", "Operation against a key holding the wrong kind of value")
    types = [b"hash", b"list", b"zset", b"zset", b"none", b"none", b"zset", b"zset"]
    played = play(start, [wrong], [b"node-1"], types)
    assert played.said == ["any: start", "any: HGET", "any: TYPE TYPE TYPE TYPE TYPE TYPE TYPE TYPE"]
    assert isinstance(played.error, SchemaError)
    assert played.error.key == "p:{0}:events"
    assert play(update, SEEN, [b"OK", b"QUEUED", [wrong]], types[:6]).error.key == "p:{0}:events"


# -- the deadline

WRITES = [
    start,
    update,
    lambda s: s.create(),
    lambda s: s.remove("it"),
    lambda s: s.stop("it"),
    lambda s: s.fail_start("it"),
]
READS = [lambda s: s.get("it"), lambda s: s.ids(), lambda s: s.port_forward("it")]


@pytest.mark.parametrize("call", [*WRITES, *READS])
@pytest.mark.parametrize("answer", [DOWN, ServerError("LOADING", "…")])
def test_at_the_deadline_the_store_is_unavailable(play, clock, call, answer):
    began = clock.now
    played = play(call, then=repeat(answer))
    assert isinstance(played.error, StoreUnavailableError)
    assert clock.now - began <= 5.1
    assert len(played.sent) > 3


@pytest.mark.parametrize("call", READS)
def test_a_read_whose_reply_is_lost_is_sent_again_until_the_store_is_unavailable(play, clock, call):
    began = clock.now
    assert isinstance(play(call, then=repeat(GONE)).error, StoreUnavailableError)
    assert 4 < clock.now - began <= 5.1


@pytest.mark.parametrize("call", [call for call in WRITES if call is not update])
def test_a_write_whose_replies_are_all_lost_has_an_unknown_outcome(play, clock, call):
    began = clock.now
    played = play(call, then=repeat(GONE))
    assert isinstance(played.error, OutcomeUnknownError)
    assert {played.error.request} == played.tokens()
    assert 4 < clock.now - began <= 5.1


def test_an_update_has_an_unknown_outcome_only_when_its_exec_was_sent(play):
    assert isinstance(play(update, then=repeat(GONE)).error, StoreUnavailableError)
    assert isinstance(play(update, SEEN, then=repeat(GONE)).error, OutcomeUnknownError)
    assert isinstance(play(update, SEEN, then=repeat(DOWN)).error, StoreUnavailableError)
    assert isinstance(
        play(update, SEEN, [b"OK", b"QUEUED", [NOSCRIPT]], then=repeat(GONE)).error, StoreUnavailableError
    )


def test_what_is_lost_before_the_write_leaves_no_doubt_about_it(clock):
    for replies in ([], [LAYOUT]):
        assert isinstance(Played(clock, start(operations()), *replies, then=repeat(GONE)).error, StoreUnavailableError)


def test_a_script_that_is_lost_on_its_way_leaves_no_doubt_about_the_write(play):
    played = play(start, [NOSCRIPT], then=cycle([GONE, [NOSCRIPT]]))
    assert isinstance(played.error, StoreUnavailableError)


def test_conflicts_until_the_deadline_are_counted(play):
    # Each begins again after a pause, which is what makes time pass.
    played = play(update, then=cycle([SEEN, [b"OK", b"QUEUED", None]]))
    assert isinstance(played.error, ConflictError)
    assert played.error.attempts == sum("EXEC" in word for word in played.said) > 10


def test_an_attempt_is_not_begun_that_cannot_be_answered_in_time(play, clock):
    # Else a busy machine turns a conflict at the deadline into an unknown outcome.
    def busy():
        for reply in cycle([SEEN, [b"OK", b"QUEUED", None]]):
            clock.now += 0.02
            yield reply

    played = play(update, then=busy())
    assert isinstance(played.error, ConflictError)
    assert min(request.timeout for request in played.requests if "EXEC" in said(request)) >= 0.02


def test_an_attempt_gets_half_of_the_time_that_is_left(play):
    played = play(lambda store: store.get("it", timeout=8), DOWN, DOWN, [record()])
    shares = [request.timeout for request in played.requests if isinstance(request, Send)]
    assert shares == [4, pytest.approx(2, abs=0.1), pytest.approx(1, abs=0.1)]


def test_pauses_grow_and_are_limited(play):
    played = play(start, then=repeat(ServerError("LOADING", "…")))
    pauses = [request.seconds for request in played.requests if isinstance(request, Sleep)]
    assert all(0 <= pause <= min(0.001 * 2**i, 0.25) for i, pause in enumerate(pauses))


# -- any trouble in any order


class Server:
    """One sandbox on a server that fails as it is told to; it counts how often the write of our operation happened."""

    def __init__(self, clock: Clock, troubles: list[str]) -> None:
        self.clock = clock
        self.troubles = iter(troubles)
        self.trouble = "none"
        self.happened = 0
        self.doubt = False  # the reply to a write of ours was lost
        self.passed = False  # others have changed the sandbox since
        self.version = 0
        self.watched: int | None = None
        self.under_way: list[tuple[list[str], int | None]] = []  # packets that will arrive late

    def answer(self, request: Send) -> Any:
        self.clock.now += 0.001
        self.trouble = next(self.troubles, self.trouble)
        words = said(request).split()[1:]
        writes = words[0] in ("start", "MULTI")
        if request.lease in (Lease.KEEP, Lease.LAST) and self.watched is None:
            return DOWN
        match self.trouble:
            case "unsent":
                reply: Any = DOWN
            case "lost before" | "lost behind" | "late":
                self.doubt |= writes
                if self.trouble == "lost behind":
                    self.execute(words, self.watched)
                if self.trouble == "late":
                    self.under_way.append((words, self.watched))
                reply = Lost("here:1", "no reply", ("CLIENT", "KILL", "ID", b"7"))
            case "busy":
                reply = [ServerError("BUSY", "…")] * len(request.commands)
            case "no script" if words[-1] in ("start", "find") and "load" not in words:
                reply = [1] * (len(words) - 1) + [NOSCRIPT]
            case "no script" if words[0] == "MULTI":
                reply = [b"OK", b"QUEUED", [NOSCRIPT]]
            case trouble:
                if trouble == "others":
                    self.version += 1
                    self.passed |= self.happened > 0
                if trouble == "arrives":
                    for late in self.under_way:
                        self.execute(*late)
                    self.under_way.clear()
                reply = self.execute(words, self.watched)
        if isinstance(reply, Failure):
            self.clock.now += request.timeout
        if isinstance(reply, Failure) or request.lease is Lease.LAST:
            self.watched = None
        return reply

    def execute(self, words: list[str], watched: int | None) -> list[Any]:
        match words:
            case ["CLIENT", *rest]:
                self.under_way.clear()
                return [1, *self.execute(rest, watched)]
            case ["find"] if not self.happened:
                return [[b"NONE"]]
            case ["find"]:
                return [[b"PASSED", b"8-0", record(), record()] if self.passed else [b"CURRENT", record()]]
            case ["start"] if self.passed:
                return REFUSED
            case ["start"]:
                self.happened |= 1  # the script knows its own token
                return STARTED
            case ["WATCH", "HGETALL"]:
                self.watched = self.version
                return SEEN
            case ["MULTI", "update", "EXEC"] if watched != self.version:
                return [b"OK", b"QUEUED", None]
            case ["MULTI", "update", "EXEC"]:
                self.happened += self.passed or not self.happened
                self.version += 1
                return COMMITTED
        return [b"OK"]


TROUBLES = ["none", "unsent", "lost before", "lost behind", "late", "arrives", "busy", "no script", "others"]


@given(st.lists(st.sampled_from(TROUBLES), max_size=25), st.sampled_from([start, update]))
def test_whatever_happens_a_write_happens_once_or_not_at_all_and_its_caller_knows(troubles, call):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "time", clock.module())
        server, op = Server(clock, troubles), call(opened(clock))
        played = Played(clock, op, then=server)
    assert clock.now <= 1005.2
    if played.error is None:
        assert server.happened == 1
    elif isinstance(played.error, OutcomeUnknownError):
        assert server.doubt
    else:
        assert isinstance(played.error, (StoreUnavailableError, ConflictError, TransitionError))
        assert server.happened == 0
