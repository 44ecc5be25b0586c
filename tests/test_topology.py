"""What is known of servers, and what an operation does when they say where else to go: everything is played by hand,
no server takes part. Real ones stand in ``test_topologies.py``.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from sandbox_redis import SandboxStore, StoreUnavailableError, sentinels, topology
from sandbox_redis.aio_lane import AsyncLane
from sandbox_redis.cluster import SLOTS, Cluster
from sandbox_redis.concern import WriteConcern
from sandbox_redis.deadline import Deadline
from sandbox_redis.errors import OutcomeUnknownError
from sandbox_redis.exchange import Exchange, asked
from sandbox_redis.lane import Lane
from sandbox_redis.sentinels import Sentinels
from sandbox_redis.topology import Place, Single, asking, tagged
from sandbox_redis.trace import Trace
from sandbox_redis.transaction import optimistic
from sandbox_redis.wire import Lease, Lost, Send, ServerError, Sleep, Unsent

GONE = Unsent("x:1", "Connection refused", "UNREACHABLE")
GONE.hopeless = True
A, B, C = "a:1", "b:2", "c:3"
SLOT = key_slot(b"k")


def look(known, answers):
    """Play a look: `answers` gives the reply to each address and command; who was asked, in order."""
    looking, reply, asked_ = known.look(), None, []
    while True:
        try:
            place, command = looking.send(reply)
        except StopIteration:
            return asked_
        asked_.append(place.address)
        reply = answers[place.address]
        reply = reply(command) if callable(reply) else reply


def slots(*ranges):
    """CLUSTER SLOTS, of (first, last, master, *replicas)."""

    def node(address):
        host, _, port = address.rpartition(":")
        return [host.encode() if host != "null" else None, int(port), b"id", []]

    return [[first, last, *map(node, nodes)] for first, last, *nodes in ranges]


def sentinel(master, *replicas):
    """What a sentinel answers; replicas are (address, flags, status of the link)."""

    def answer(command):
        if command[1] == "GET-MASTER-ADDR-BY-NAME":
            return None if master is None else [each.encode() for each in master.rsplit(":", 1)]
        return [
            [
                *(b"ip", address.rpartition(":")[0].encode(), b"port", address.rpartition(":")[2].encode()),
                *(b"flags", flags.encode(), b"master-link-status", status.encode()),
            ]
            for address, flags, status in replicas
        ]

    return answer


# -- Sentinels


def test_sentinels_are_asked_in_turn_until_one_knows_the_master():
    known = Sentinels("it", [A, B, C])
    assert known.at("k") is None
    loading = ServerError("LOADING", "Redis is loading")
    assert look(known, {A: GONE, B: loading, C: sentinel("m:6379")})[:3] == [A, B, C]
    assert known.at("k") == known.at("k", replica=True) == Place("m:6379", "master")
    assert known.found


def test_a_sentinel_that_knows_no_such_service_does_not_speak_for_the_others():
    known = Sentinels("it", [A, B])
    look(known, {A: sentinel(None), B: sentinel("m:6379")})
    assert known.at("k") == Place("m:6379", "master")


def test_a_service_that_no_sentinel_knows_is_a_mistake_and_later_an_outage():
    known = Sentinels("it", [A, B])
    with pytest.raises(Unsent, match="they know no service 'it'") as error:
        look(known, {A: GONE, B: sentinel(None)})
    assert error.value.hopeless
    look(known, {A: GONE, B: sentinel("m:6379")})
    known.lost(known.at("k"))
    with pytest.raises(Unsent) as error:
        look(known, {A: sentinel(None), B: sentinel(None)})
    assert not error.value.hopeless


def test_without_any_answer_waiting_is_of_use_only_if_one_may_come():
    known = Sentinels("it", [A, B])
    with pytest.raises(Unsent) as error:
        look(known, {A: GONE, B: GONE})
    assert error.value.hopeless
    with pytest.raises(Unsent) as error:
        look(known, {A: GONE, B: Unsent(B, "timed out")})
    assert not error.value.hopeless
    with pytest.raises(Unsent) as error:  # what a server has said tells more
        look(known, {A: GONE, B: ServerError("NOAUTH", "Authentication required.")})
    assert (error.value.code, error.value.hopeless) == ("NOAUTH", True)


def test_only_replicas_that_are_up_and_linked_are_read_from():
    known = Sentinels("it", [A])
    replicas = [
        ("r:1", "slave,s_down", "ok"),
        ("r:2", "slave,o_down,disconnected", "ok"),
        ("r:3", "slave", "err"),
        ("::1:4", "slave", "ok"),
    ]
    look(known, {A: sentinel("m:6379", *replicas)})
    assert known.at("k", replica=True) == Place("[::1]:4", "replica")
    assert known.at("k") == Place("m:6379", "master")
    known.lost(known.at("k"))
    look(known, {A: sentinel("m:6379", *replicas[:3])})
    assert known.at("k", replica=True) == Place("m:6379", "master")


def test_a_sentinel_that_may_not_tell_the_replicas_is_enough():
    known = Sentinels("it", [A])

    def answer(command):
        return ServerError("NOPERM", "no") if command[1] == "REPLICAS" else [b"m", b"6379"]

    look(known, {A: answer})
    assert known.at("k", replica=True) == Place("m:6379", "master")


def test_a_replica_that_failed_is_not_read_from_until_it_is_looked_for_again(monkeypatch):
    known = Sentinels("it", [A])
    answers = {A: sentinel("m:6379", ("r:1", "slave", "ok"))}
    look(known, answers)
    known.lost(known.at("k", replica=True))
    assert known.at("k") == known.at("k", replica=True) == Place("m:6379", "master")
    look(known, answers)
    assert known.at("k", replica=True) == Place("m:6379", "master")
    monkeypatch.setattr(topology, "SHUNNED", 0.0)
    known.lost(Place("r:1", "replica"))
    assert known.at("k", replica=True) is None  # it is time to look
    assert known.at("k") == Place("m:6379", "master")
    look(known, answers)
    assert known.at("k", replica=True) == Place("r:1", "replica")


@pytest.mark.parametrize("code", ["READONLY", "LOADING", "MASTERDOWN", "UNREACHABLE"])
def test_the_master_is_looked_for_again_when_it_is_none_any_more(code):
    known = Sentinels("it", [A, B])
    look(known, {A: sentinel("m:1"), B: sentinel("m:1")})
    known.heard(ServerError(code, "no"))
    assert known.at("k") is None
    # Who named it is asked last: it may be cut off from the others.
    assert look(known, {A: sentinel("m:1"), B: sentinel("m:2")})[0] in (A, B)
    known.heard(ServerError("OOM", "no"))
    known.lost(Place(A, "sentinel"))
    assert known.at("k") is not None
    known.lost(known.at("k"))
    assert known.at("k") is None


def test_a_sentinel_with_an_old_view_does_not_keep_others_from_being_asked():
    known = Sentinels("it", [A, B, C])
    named = set()
    for _ in range(3):
        look(known, {A: sentinel("old:1"), B: sentinel("new:1"), C: sentinel("new:1")})
        named.add(known.at("k").address)
        known.lost(known.at("k"))
    assert "new:1" in named


def test_every_now_and_then_one_sentinel_is_asked_whether_the_master_is_still_the_same(monkeypatch):
    monkeypatch.setattr(sentinels, "CHECKED", 0.0)
    known = Sentinels("it", [A, B, C])
    look(known, {A: sentinel("m:1"), B: sentinel("m:1"), C: sentinel("m:1")})
    assert known.at("k") is None  # it is time to look
    asked = look(known, {A: sentinel("m:1"), B: sentinel("m:1"), C: sentinel("m:1")})
    assert len(asked) == 1
    monkeypatch.setattr(sentinels, "CHECKED", 100.0)
    look(known, {A: sentinel("m:1"), B: sentinel("m:1"), C: sentinel("m:1")})
    assert known.at("k") == Place("m:1", "master")


def test_most_sentinels_must_name_another_master(monkeypatch):
    known = Sentinels("it", [A, B, C])
    look(known, {A: sentinel("m:1"), B: sentinel("m:1"), C: sentinel("m:1")})
    for one in (A, B, C):  # it has an old view, or is cut off with the old master
        answers = {each: sentinel("m:2" if each is one else "m:1") for each in (A, B, C)}
        for _ in range(10):
            look(known, answers)
        assert known.at("k") == Place("m:1", "master")
    able = sentinel("m:2", ("r:1", "slave", "ok"))
    for _ in range(3):  # B is asked first once at most; and the replicas of another master are others
        look(known, {A: able, B: GONE, C: able})
    assert known.at("k") == Place("m:2", "master")
    assert known.at("k", replica=True) == Place("r:1", "replica")


def test_sentinels_that_do_not_answer_change_nothing_and_are_left_alone():
    known = Sentinels("it", [A, B])
    look(known, {A: sentinel("m:1"), B: sentinel("m:1")})
    silent = Unsent(A, "timed out")
    assert sum(len(look(known, {A: silent, B: ServerError("LOADING", "no")})) for _ in range(20)) <= 20
    for _ in range(20):
        look(known, {A: silent, B: silent})
    assert look(known, {A: silent, B: silent}) == []
    assert known.at("k") == Place("m:1", "master")


# -- clusters


def test_the_nodes_of_a_cluster_are_learned_from_the_first_that_knows_them():
    known = Cluster([A, B, C])
    assert known.at("k") is None
    answers = {A: GONE, B: [], C: slots((0, SLOT - 1, "m:1", "r:1"), (SLOT, SLOTS - 1, "m:2", "r:2"))}
    assert look(known, answers) == [A, B, C]
    assert known.at("k") == Place("m:2")
    assert known.at("k", replica=True) == Place("r:2", "cluster replica")
    assert known.found


def test_a_cluster_that_serves_no_slot_may_do_so_later():
    known = Cluster([A, B])
    with pytest.raises(Unsent) as error:
        look(known, {A: GONE, B: []})
    assert (error.value.code, error.value.hopeless) == ("CLUSTERDOWN", False)
    assert known.at("k") is None


def test_a_server_that_is_no_cluster_says_so_at_once():
    known = Cluster([A])
    with pytest.raises(Unsent, match="support disabled") as error:
        look(known, {A: ServerError("ERR", "This instance has cluster support disabled")})
    assert error.value.hopeless


def test_a_slot_that_nobody_has_is_looked_for_again():
    known = Cluster([A])
    look(known, {A: slots((SLOT + 1, SLOTS - 1, "m:1"))})
    assert known.at("k") is None


@pytest.mark.parametrize("name", [None, b"", b"?"])
def test_a_node_that_does_not_know_its_name_is_the_one_that_was_asked(name):
    known = Cluster(["[::1]:7"])
    look(known, {"[::1]:7": [[0, SLOTS - 1, [name, 7, b"id"], [b"::2", 8, b"id"]]]})
    assert known.at("k") == Place("[::1]:7")
    assert known.at("k", replica=True) == Place("[::2]:8", "cluster replica")


def test_moved_is_learned_at_once_and_for_its_slot_alone():
    known = Cluster([A])
    look(known, {A: slots((0, SLOTS - 1, "m:1", "r:1"))})
    known.heard(ServerError("MOVED", f"{SLOT} ::1:2"))
    assert known.at("k") == known.at("k", replica=True) == Place("[::1]:2")
    assert known.at("other") == Place("m:1")
    known.heard(Unsent(A, f"{SLOT} m:3", "MOVED"))  # as a follower tells it
    assert known.at("k") == Place("m:3")


@pytest.mark.parametrize("there", [":7000", "?:7000", ""])
def test_moved_without_a_name_is_looked_for(there):
    known = Cluster([A])
    look(known, {A: slots((0, SLOTS - 1, "m:1"))})
    known.heard(ServerError("MOVED", f"{SLOT} {there}".strip()))
    assert known.at("k") is None


def test_ask_is_never_learned():
    known = Cluster([A])
    look(known, {A: slots((0, SLOTS - 1, "m:1"))})
    known.heard(ServerError("ASK", f"{SLOT} m:2"))
    known.heard(Unsent(A, f"{SLOT} m:2", "ASK"))
    assert known.at("k") == Place("m:1")


@pytest.mark.parametrize("code", ["CLUSTERDOWN", "TRYAGAIN", "READONLY", "MASTERDOWN", "LOADING", "UNREACHABLE"])
def test_the_nodes_are_looked_for_again_when_something_else_is_wrong(code):
    known = Cluster([A])
    look(known, {A: slots((0, SLOTS - 1, "m:1"))})
    known.heard(ServerError("OOM", "no"))
    assert known.at("k") is not None
    known.heard(ServerError(code, "no"))
    assert known.at("k") is None


def test_a_node_with_an_old_view_does_not_keep_others_from_being_asked():
    known = Cluster([A])
    old, new = slots((0, SLOTS - 1, A, B, C)), slots((0, SLOTS - 1, B, A, C))
    seen = set()
    for _ in range(50):
        look(known, {A: old, B: new, C: new})
        seen.add(known.at("k").address)
        known.heard(ServerError("CLUSTERDOWN", "no"))
    assert seen == {A, B}


def test_a_lost_node_is_asked_last_and_a_lost_replica_is_passed_over():
    known = Cluster([A])
    view = slots((0, SLOTS - 1, A, B, C))
    look(known, {A: view})
    for _ in range(20):
        replica = known.at("k", replica=True)
        known.lost(replica)
        assert known.at("k", replica=True) == known.at("k") == Place(A)
        known.heard(ServerError("CLUSTERDOWN", "no"))
        look(known, dict.fromkeys((A, B, C), view))
        assert known.at("k", replica=True) != replica
        known._shunned.clear()
    known.lost(Place(A))
    assert known.at("k") is None
    assert look(known, {A: GONE, B: view, C: view})[0] != A


def test_one_server_is_all_there_is():
    known = Single("x:1")
    assert look(known, {}) == []
    known.heard(ServerError("MOVED", "1 y:2"))
    known.lost(Place("x:1"))
    assert known.at("k") == Place("x:1")


KEYS = st.one_of(st.text(), st.text("{}ab"), st.builds("a:{{{}}}:b".format, st.integers(0, 16383)))


@given(key=KEYS)
def test_a_key_goes_where_the_cluster_has_it(key):
    slot = key_slot(key.encode(errors="surrogatepass"))
    known = Cluster([A])
    look(known, {A: slots((0, slot - 1, "x:1"), (slot, slot, "m:1"), (slot + 1, SLOTS - 1, "x:1"))})
    known._masters[slot] = Place("m:1")
    assert tagged(key) in key
    assert known.at(key) == Place("m:1")


# -- asking


COMMANDS = st.lists(st.sampled_from([("GET", "k"), ("HGETALL", "k"), ("WATCH", "k")]), max_size=4)


@given(before=COMMANDS, inside=COMMANDS, behind=COMMANDS, transaction=st.booleans())
def test_asking_stands_before_each_command_but_those_of_a_transaction(before, inside, behind, transaction):
    middle = [("MULTI",), *inside, ("EXEC",)] if transaction else []
    commands = (*before, *middle, *behind)
    sent, theirs = asking(commands)
    assert tuple(sent[place] for place in theirs) == commands
    queued = range(len(before) + 1, len(before) + len(middle)) if transaction else ()
    for n, place in enumerate(theirs):
        assert (sent[place - 1] == ("ASKING",)) == (n not in queued)
    assert sum(command == ("ASKING",) for command in sent) == len(commands) - len(queued)


# -- operations that hear where else to go


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def played(op, replies, timeout=5.0, clock=None):
    """Play an operation: each reply, or failure, in turn; the sends, and the result or error."""
    replies, sends, reply = iter(replies), [], None
    while True:
        try:
            request = op.throw(reply) if isinstance(reply, Exception) else op.send(reply)
        except StopIteration as stop:
            assert next(replies, None) is None
            return sends, stop.value
        except StoreUnavailableError as error:
            return sends, error
        if isinstance(request, Sleep):
            if clock is not None:
                clock.now += 1.0
            sends.append(request)
            reply = None
        else:
            assert isinstance(request, Send)
            sends.append(request)
            reply = next(replies)


def sent(requests):
    return [request for request in requests if isinstance(request, Send)]


def deadline(clock=None):
    return Deadline(5.0, clock or Clock())


EXCHANGE = Exchange("it", topology.MOVING)


@pytest.mark.parametrize(
    "code", ["MOVED", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "BUSY", "LOADING", "MAXCLIENTS"]
)
def test_what_passes_is_tried_again_and_told_to_the_lane(code):
    error = ServerError(code, f"{SLOT} m:2")
    for op, answer in (
        (EXCHANGE.ask("k", (("GET", "k"),), deadline()), [b"v"]),
        (EXCHANGE.run("page", ("k",), (), deadline()), [[b"OK"]]),
        (EXCHANGE.write("start", ("k", "e"), (), trace(), deadline()), [[b"OK", []]]),
    ):
        requests, _ = played(op, [[error], answer])
        first, pause, second = requests
        assert pause.why == (error,)
        assert first == second._replace(timeout=first.timeout)
        assert second.at == ""


@pytest.mark.parametrize("code", ["NOREPLICAS", "OOM", "MISCONF", "NOAUTH", "NOPERM", "ERR"])
def test_what_does_not_pass_is_raised_at_once(code):
    for op in (
        EXCHANGE.ask("k", (("GET", "k"),), deadline()),
        EXCHANGE.write("start", ("k", "e"), (), trace(), deadline()),
    ):
        requests, error = played(op, [[ServerError(code, "no")]])
        assert len(requests) == 1
        assert error.code == code


@pytest.mark.parametrize("code", ["TRYAGAIN", "ASK", "CLUSTERDOWN", "LOADING"])
def test_what_does_not_pass_in_time_is_raised_with_what_to_do(code):
    clock = Clock()
    op = EXCHANGE.write("start", ("k", "e"), (), trace(), deadline(clock))
    requests, error = played(op, [[ServerError(code, f"{SLOT} m:2")]] * 9, clock=clock)
    assert len(sent(requests)) < 9
    assert error.code == code
    assert "look into its log" not in str(error)


def trace():
    return Trace("it", 0, ("k", "e"), "token", "0-0", 100, WriteConcern())


ASK = ServerError("ASK", f"{SLOT} ::1:2")
THERE = "[::1]:2"


def test_an_ask_counts_for_the_very_next_attempt():
    assert asked(ASK) == THERE
    assert asked(ServerError("ASK", f"{SLOT} :7000")) == asked(ServerError("MOVED", f"{SLOT} m:2")) == ""
    requests, reply = played(
        EXCHANGE.ask("k", (("GET", "k"),), deadline()), [[ASK], [ASK], [ServerError("TRYAGAIN", "")], [b"v"]]
    )
    assert [send.at for send in sent(requests)] == ["", THERE, THERE, ""]
    assert reply == [b"v"]
    requests, _ = played(EXCHANGE.ask("k", (("GET", "k"),), deadline()), [[ASK], GONE_LATER, [b"v"]])
    assert [send.at for send in sent(requests)] == ["", THERE, ""]


GONE_LATER = Unsent("x:1", "refused", "UNREACHABLE")


def test_a_script_is_given_to_the_server_that_lacks_it():
    missing = ServerError("NOSCRIPT", "no matching script")
    requests, _ = played(EXCHANGE.run("page", ("k",), (), deadline()), [[ASK], [missing], [b"sha"], [[b"OK"]]])
    assert [(send.commands[0][0], send.at) for send in sent(requests)] == [
        ("EVALSHA", ""),
        ("EVALSHA", THERE),
        ("SCRIPT", THERE),
        ("EVALSHA", THERE),
    ]
    write = EXCHANGE.write("start", ("k", "e"), (), trace(), deadline())
    requests, _ = played(write, [[ASK], [missing], [b"sha"], [[b"OK", []]]])
    assert [send.at for send in sent(requests)] == ["", THERE, THERE, THERE]


def test_while_a_slot_moves_each_key_is_read_where_it_is():
    commands = (("GET", "{k}1"), ("GET", "{k}2"), ("GET", "{k}3"))
    moved = ServerError("MOVED", f"{SLOT} m:2")
    replies = [[b"1", ASK, ASK], [b"2"], [moved], [b"3"]]
    requests, reply = played(EXCHANGE.ask("{k}", commands, deadline()), replies)
    assert reply == [b"1", b"2", b"3"]
    assert [(send.at, send.commands) for send in sent(requests)] == [
        ("", commands),
        (THERE, commands[1:2]),
        (THERE, commands[2:]),
        ("", commands[2:]),
    ]


def test_the_master_answers_where_a_replica_does_not():
    for trouble in (GONE_LATER, [ServerError("LOADING", "no")], [ServerError("MASTERDOWN", "no")]):
        for op, answer in (
            (EXCHANGE.ask("k", (("GET", "k"),), deadline(), replica=True), [b"v"]),
            (EXCHANGE.run("page", ("k",), (), deadline(), replica=True), [[b"OK"]]),
        ):
            requests, _ = played(op, [trouble, answer])
            assert [send.replica for send in sent(requests)] == [True, False]


def test_a_script_that_writes_to_keys_it_does_not_name_waits_until_its_slot_has_moved():
    op = EXCHANGE.write("remove", ("k", "e"), (), trace(), deadline(), stays=True)
    requests, _ = played(op, [[ASK], [ASK], [ServerError("MOVED", f"{SLOT} m:2")], [[b"OK", b"1"]]])
    assert [send.at for send in sent(requests)] == [""] * 4


def test_a_write_whose_reply_was_lost_is_looked_for_where_it_is_now():
    lost = Lost("x:1", "reset", ("CLIENT", "KILL", "ID", "1"))
    op = EXCHANGE.write("start", ("k", "e"), (), trace(), deadline())
    requests, reply = played(op, [lost, [1, ASK], [1, [b"CURRENT", [b"f", b"v"]]]])
    assert reply == [b"OK", [b"f", b"v"]]
    write, *found = sent(requests)
    assert write.at == ""
    assert [(send.commands[0], send.at) for send in found] == [(lost.fence, ""), (lost.fence, THERE)]
    clock = Clock()
    op = EXCHANGE.write("start", ("k", "e"), (), trace(), deadline(clock))
    with pytest.raises(OutcomeUnknownError):
        played(op, [lost, *[[1, ServerError("CLUSTERDOWN", "no")]] * 9], clock=clock)


def record():
    return [b"state", b"READY", b"pid", b"1", b"created_at", b"2026-11-23T15:07:43.281389235Z", b"revision", b"5-0"]


def update(replies):
    """Play an update of a store on a cluster, whose layout is known."""
    store = SandboxStore("redis+cluster://a:1")
    session = store._operations
    layout = [[b"1", b"16", b"1000"]]
    op = optimistic(
        session, "it", lambda status: status.__class__(status.state, 2, status.created_at_ns), deadline(), None
    )
    return played(op, [layout, [[]], *replies])


def test_a_transaction_goes_where_an_ask_leads_with_both_of_its_packets():
    watched = [b"OK", record()]
    changed = [b"OK", b"QUEUED", [[b"OK", record()]]]
    requests, sandbox = update([[b"OK", ASK], [1], watched, changed])
    mine = sent(requests)[2:]
    assert [(send.commands[0][0], send.lease, send.at) for send in mine] == [
        ("WATCH", Lease.TAKE, ""),
        ("UNWATCH", Lease.LAST, ""),
        ("WATCH", Lease.TAKE, THERE),
        ("MULTI", Lease.LAST, THERE),
    ]
    assert sandbox.id == "it"


@pytest.mark.parametrize("code", ["MOVED", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING"])
def test_a_transaction_begins_again_when_it_cannot_be_carried_out_here(code):
    trouble = ServerError(code, f"{SLOT} m:2")
    watched = [b"OK", record()]
    aborted = [b"OK", trouble, ServerError("EXECABORT", "Transaction discarded")]
    requests, _ = update([watched, aborted, watched, [b"OK", b"QUEUED", [[b"OK", record()]]]])
    assert [send.commands[0][0] for send in sent(requests)[2:]] == ["WATCH", "MULTI", "WATCH", "MULTI"]
    assert {send.at for send in sent(requests)} == {""}


@pytest.mark.parametrize("code", ["OOM", "MISCONF", "NOREPLICAS"])
def test_a_transaction_ends_when_the_server_takes_no_writes(code):
    aborted = [b"OK", ServerError(code, "no"), ServerError("EXECABORT", "Transaction discarded")]
    _, error = update([[b"OK", record()], aborted])
    assert error.code == code


# -- lanes


class Silent:
    """A topology whose servers all keep silent."""

    address = "it"
    found = True

    def __init__(self):
        self.asked = 0

    def at(self, key, *, replica=False):
        return None

    def lost(self, place):
        pass

    def look(self):
        for n in range(100):
            self.asked += 1
            yield topology.Ask(Place(f"127.0.0.1:{n}"), ("X",))


def test_looking_for_the_servers_ends_in_time(monkeypatch):
    class Pool:
        patient = False

        def lease(self):
            return None

        def exchange(self, leased, commands, timeout):
            time.sleep(timeout)
            raise Unsent("x:1", "timed out")

        async def submit(self, commands, timeout):
            await asyncio.sleep(timeout)
            raise Unsent("x:1", "timed out")

    class Way:
        topology = Silent()

    for kind in (Lane, AsyncLane):
        monkeypatch.setattr(kind, "_to", lambda self, place: Pool())
        lane = kind(Way())
        lane.topology.asked = 0
        began = time.monotonic()
        with pytest.raises(Unsent):
            if kind is Lane:
                lane.pool(Send("k", (), 0.1))
            else:
                asyncio.run(lane.pool(Send("k", (), 0.1)))
        assert lane.topology.asked <= 3
        assert time.monotonic() - began < 5
