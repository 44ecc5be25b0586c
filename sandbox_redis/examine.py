"""Reads a whole store, partition by partition, and says what contradicts the contract, also while agents write: the
first reading, key by key, only raises suspicions; each is looked at again in one script, where record, indexes and
events are of one moment, before anything is said. It changes nothing. What is wrong is told in ``judge.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, Final, NamedTuple

from sandbox_redis import judge, keys
from sandbox_redis.findings import Finding
from sandbox_redis.operations import Operations
from sandbox_redis.record import Event, Sandbox, event_from_fields, pairs, sandbox_from_flat
from sandbox_redis.record import hash_reply as mapping
from sandbox_redis.replay import Entry, Replay, text
from sandbox_redis.wire import Command, Op, ServerError

PAGE: Final = 1000  # keys, index entries or events in one reply
RECORDS: Final = 200  # records in one reply; each may take 64 KiB
AGAIN: Final = 100  # sandboxes looked at in one script; about 1 ms of server time
_GONE: Final = -2  # PTTL's answer for a key that is not there
Progress = Callable[[int, int], None]
"""Called with how many keys have been read, and how many there are."""


class Suspect(NamedTuple):
    """What is to be looked at again."""

    kind: str
    """``sandbox``, or ``node`` for an entry in the set of nodes."""
    id: bytes
    node: bytes
    """For a sandbox, a node whose index may have it without reason, or empty."""


class Examination:
    """What was found in a store. It holds no sandbox and no event unless it is told to keep them."""

    def __init__(
        self,
        operations: Operations,
        layout: keys.Keys,
        timeout: float | None,
        *,
        keep: Callable[[Sandbox | Event], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.operations = operations
        self.layout = layout
        self.timeout = timeout
        self.keep = keep
        self.progress = progress
        self.findings: dict[str, Finding] = {}
        """By what they say, so that each is told once."""
        self.damaged: dict[tuple[int, Suspect], list[Finding]] = {}
        """What a repair can mend: partitions and what in them, each with what is wrong."""
        self.sandboxes = self.events = self.keys = self.read = 0

    def ask(self, partition: int, *commands: Command) -> Op[list[Any]]:
        """Ask the server of a partition; an error of type is a reply."""
        operations = self.operations
        deadline = operations.deadline(self.timeout)
        return operations.exchange.ask(self.layout.events(partition), commands, deadline)

    def tell(self, *findings: Finding) -> list[Finding]:
        """Take in what is wrong; what of it is new."""
        new = {each.message: each for each in findings if each.message not in self.findings}
        self.findings |= new
        return list(new.values())

    def run(self, servers: Iterable[int]) -> Op[None]:
        """Read everything; `servers` are partitions, at least one of each server."""
        layout, laid_out, meta = self.layout, self.layout.laid_out, keys.meta(self.layout.prefix)
        found: dict[int, set[bytes]] = {}
        for server in servers:
            yield from self._scan(server, found)
        if laid_out:
            self.keys = sum(map(len, found.values()))
            deadline = self.operations.deadline(self.timeout)
            (left,) = yield from self.operations.exchange.ask(meta, (("PTTL", meta),), deadline)
            if left >= 0:
                self.tell(judge.expiring(meta, left))
            elif left == _GONE:
                self.tell(judge.meta_gone(layout, self.operations.maxlen))
            for partition in range(layout.partitions):
                here = _Partition(self, partition, found.pop(partition, set()))
                yield from here.run()
                self.tell(*judge.strangers(layout, here.strangers, laid_out=True))
        rest = {key for part in found.values() for key in part} - {meta.encode()}
        self.tell(*judge.strangers(layout, rest, laid_out=laid_out))

    def _scan(self, server: int, found: dict[int, set[bytes]]) -> Op[None]:
        """The keys that begin as the store's do, by their partitions; -1 is none."""
        start, cursor = f"{self.layout.prefix}:{{".encode(), b"0"
        while True:
            pattern = self.layout.pattern(f"{self.layout.prefix}:")
            command = ("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
            # It names no key, so that only the other command tells where the partition is by now.
            (cursor, page), _ = yield from self.ask(server, command, ("EXISTS", self.layout.events(server)))
            for key in page:
                number, brace, _ = key.removeprefix(start).partition(b"}:")
                partition = int(number) if brace and number.isdigit() and key.startswith(start) else -1
                found.setdefault(partition if number == b"%d" % partition else -1, set()).add(key)
            if cursor == b"0":
                return


class _Partition:
    """One partition on its way."""

    def __init__(self, whole: Examination, number: int, found: set[bytes]) -> None:
        layout = whole.layout
        self.whole, self.number, self.found = whole, number, found
        self.head = layout.status_prefix(number).encode()
        self.events = layout.events(number)
        self.nodes = layout.nodes(number)
        self.indexes = {layout.state(number, state.decode()).encode(): state for state in judge.STATES}
        self.on_node = layout.node(number, "").encode()
        self.replay: Replay | None = Replay()
        self.facts: dict[bytes, tuple[bytes, bytes]] = {}
        """Of each id the state and the node of its record; the same few pairs for all."""
        self.suspects: dict[Suspect, None] = {}
        self.strangers: set[bytes] = set()

    def run(self) -> Op[None]:
        """Read it, and say what is wrong."""
        yield from self._read_events()
        records = sorted(key for key in self.found if key.startswith(self.head))
        rest = self.found.difference(records)
        self.found = set()
        yield from self._read_records(records)
        del records
        places = {key for key in rest if key in self.indexes or key.startswith(self.on_node)}
        self.strangers = rest - places - {self.events.encode(), self.nodes.encode()}
        yield from self._read_indexes(sorted(places))
        yield from self._read_nodes(rest)
        if self.replay is not None:
            told = self.replay.last.items()
            self._suspect(raw for raw, (_, status) in told if raw and status[0] is not None and raw not in self.facts)
        self.facts.clear()
        yield from self._look_again()
        self.whole.events += self.replay.number if self.replay else 0

    def _suspect(self, ids: Iterable[bytes], node: bytes = b"") -> None:
        self.suspects.update(dict.fromkeys(Suspect("sandbox", raw, node) for raw in ids))

    def _read_events(self, only: Container[bytes] | None = None) -> Op[None]:
        """Read on to what is the newest event now: agents may write faster than anybody reads."""
        newest = ("XREVRANGE", self.events, "+", "-", "COUNT", 1)
        last, left = yield from self.whole.ask(self.number, newest, ("PTTL", self.events))
        self._expiring(self.events.encode(), left)
        if isinstance(last, ServerError):
            self.whole.tell(judge.wrong_type(self.events, "stream"))
            self.replay = None
        while self.replay is not None and last and self.replay.newest != last[0][0]:
            page = ("XRANGE", self.events, self.replay.after, last[0][0], "COUNT", PAGE)
            oldest = ("XRANGE", self.events, "-", "+", "COUNT", 1)
            entries, first = yield from self.whole.ask(self.number, page, oldest)
            self._play(entries, first, only)
            if len(entries) < PAGE:
                return

    def _play(self, entries: list[Entry], first: list[Entry], only: Container[bytes] | None = None) -> None:
        if self.replay is None:
            return
        advice = "the events are history: nothing mends them; find out who writes to the stream by hand"
        said = self.replay.take(entries, first, only)
        self.whole.tell(*(judge.problem(self.events, message, advice) for message in said))
        if self.whole.keep is not None and only is None:
            for revision, flat in entries:
                self.whole.keep(event_from_fields(revision.decode(), self.events, pairs(flat)))

    def _expiring(self, key: bytes, left: int) -> None:
        if left >= 0:
            self.whole.tell(judge.expiring(text(key), left))

    def _read_records(self, records: list[bytes]) -> Op[None]:
        known: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {}
        whole = self.whole
        for at in range(0, len(records), RECORDS):
            page = records[at : at + RECORDS]
            commands = [(command, key) for key in page for command in ("HGETALL", "PTTL")]
            replies = iter((yield from whole.ask(self.number, *commands)))
            for key, record, left in zip(page, replies, replies, strict=False):
                self._expiring(key, left)
                raw = key[len(self.head) :]
                if isinstance(record, ServerError):
                    whole.tell(judge.wrong_type(text(key), "hash"))
                elif wrong := record and judge.misplaced(whole.layout, self.number, raw):
                    whole.tell(wrong)  # no agent writes such a key, so this need not be looked at again
                if isinstance(record, list) and record:
                    pair = self._read_record(raw, text(key), record)
                    self.facts[raw] = known.setdefault(pair, pair)
            whole.read += len(page)
            if whole.progress is not None:
                whole.progress(whole.read, whole.keys)
        whole.sandboxes += len(self.facts)

    def _read_record(self, raw: bytes, key: str, flat: list[bytes]) -> tuple[bytes, bytes]:
        record = mapping(flat)
        sandbox = sandbox_from_flat(text(raw), key, flat)
        if self.whole.keep is not None:
            self.whole.keep(sandbox)
        if sandbox.problem or (self.replay is not None and self.replay.differs(raw, record)):
            self._suspect([raw])
        return judge.state_of(record), record.get(b"node", b"")

    def _read_indexes(self, places: list[bytes]) -> Op[None]:
        missing = set(self.facts), {raw for raw, (_, node) in self.facts.items() if node}  # in states, on nodes
        for key in places:
            which = 0 if key in self.indexes else 1
            value = self.indexes.get(key) or key[len(self.on_node) :]

            def look(raw: bytes, score: bytes, which: int = which, value: bytes = value) -> None:
                if float(score) == 0 and raw in self.facts and self.facts[raw][which] == value:
                    missing[which].discard(raw)
                else:
                    self._suspect([raw], value if which else b"")

            yield from self._read_index(key, look)
            self.whole.read += 1
        self._suspect(missing[0] | missing[1])

    def _read_nodes(self, rest: set[bytes]) -> Op[None]:
        named: dict[bytes, bytes] = {}
        if (yield from self._read_index(self.nodes.encode(), named.__setitem__)):
            used = Counter(node for _, node in self.facts.values() if node)
            indexed = {key[len(self.on_node) :] for key in rest if key.startswith(self.on_node)}
            wrong = {node for node in named.keys() | used if float(named.get(node, 0)) != used[node]}
            suspects = wrong | (named.keys() - used.keys()) | (indexed - named.keys())
            self.suspects |= dict.fromkeys(Suspect("node", b"", node) for node in suspects)

    def _read_index(self, key: bytes, look: Callable[[bytes, bytes], None]) -> Op[bool]:
        """Look at each entry, with its score; False for a key of another type."""
        cursor = b"0"
        while True:
            commands = ("ZSCAN", key, cursor, "COUNT", PAGE), ("PTTL", key)
            scanned, left = yield from self.whole.ask(self.number, *commands)
            self._expiring(key, left)
            if isinstance(scanned, ServerError):
                self.whole.tell(judge.wrong_type(text(key), "sorted set"))
                return False
            cursor, flat = scanned
            for raw, score in pairs(flat).items():
                look(raw, score)
            if cursor == b"0":
                return True

    def _look_again(self) -> Op[None]:
        """Judge what is suspicious, at most `AGAIN` at a time, each time by what is so at one moment."""
        layout, number = self.whole.layout, self.number
        names = (self.events, *layout.states(number), self.nodes)
        suspects = list(self.suspects)
        ids = {suspect.id for suspect in suspects}
        if suspects:
            yield from self._read_events(ids)  # so that little is left for the scripts
        for at in range(0, len(suspects), AGAIN):
            some = suspects[at : at + AGAIN]
            after = self.replay.after if self.replay else b"+"
            args = (self.head, self.on_node, after, *(word for pair in some for word in pair))
            operations = self.whole.operations
            deadline = operations.deadline(self.whole.timeout)
            reply = yield from operations.exchange.run("examine", names, args, deadline)
            _, first, since, found = reply
            self._play(since, first, ids)
            for suspect, seen in zip(some, found, strict=True):
                new = self.whole.tell(*self._judged(suspect, seen))
                if repairable := [each for each in new if each.repairable]:
                    self.whole.damaged[number, suspect] = repairable

    def _judged(self, suspect: Suspect, seen: list[Any]) -> Iterator[Finding]:
        layout, number = self.whole.layout, self.number
        if suspect.kind == "node":
            on_node, score = seen
            return judge.node(layout, number, suspect.node, score, on_node or 0)
        return judge.sandbox(layout, number, suspect.id, suspect.node, judge.view(seen), self.replay)
