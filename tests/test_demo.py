"""The demo, played for real: it must do its job, leave nothing, and above all see every fault that is planted."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import uuid
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
import redis

from sandbox_redis import InvalidArgumentError, SandboxStore
from sandbox_redis.cli.demo import demo
from sandbox_redis.demo.check import check
from sandbox_redis.demo.director import Director, Script
from sandbox_redis.demo.inside import delete_store
from sandbox_redis.demo.process import Child, Life, end_orphan, runs, signal_group
from sandbox_redis.demo.screen import PlainScreen
from sandbox_redis.demo.truth import Act, Entry

PLAY = "import json, sys; from sandbox_redis.cli.demo import demo; sys.exit(demo(**json.loads(sys.argv[1])))"
MARK = "SANDBOX_REDIS_TEST"


class Played:
    """A demo in a process of its own, and every process that comes from it."""

    def __init__(self, folder, seconds, url):
        self.folder = folder
        self.mark = uuid.uuid4().hex
        settings = json.dumps({"url": url, "agents": 3, "sandboxes": 6, "seconds": seconds, "seed": 1})
        self.environment = {**os.environ, "TMPDIR": str(folder), MARK: self.mark, "PYTHONUTF8": "1"}
        self.command = [sys.executable, "-c", PLAY, settings]

    def start(self):
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return self

    def works(self):
        """Whether all agents are at work."""
        return sum(b"spawned" in log.read_bytes() for log in self.folder.glob("*/node-*.jsonl")) == 3

    def finish(self):
        """The rest of its output, and its exit status."""
        output = self.process.communicate(timeout=60)[0]
        return output, self.process.returncode

    def processes(self):
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def find(self, words):
        for process in self.processes():
            with suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    return process
        return None


@pytest.fixture
def play(tmp_path_factory, until):
    """Starts a demo that has its own temporary directory; whatever happens, no process of it is left."""
    played = []

    def start(seconds, url=None):
        played.append(Played(tmp_path_factory.mktemp("demo"), seconds, url))
        return played[-1]

    yield start
    for one in played:
        for process in one.processes():
            with suppress(psutil.Error):
                process.kill()


def test_it_does_the_main_job_checks_it_and_leaves_nothing(play, until):
    demo = play(2).start()
    output, status = demo.finish()
    assert status == 0, output
    assert "was killed with SIGKILL" in output
    assert output.count("✓") == 10 and "✗" not in output
    for heading in ("sandboxes", "writes", "Stop and Exit", "Remove", "updates", "taken over"):
        assert re.search(f"^{heading} ", output, re.MULTILINE)
    assert len(output.splitlines()) < 40, "plain lines must not flood"
    assert list(demo.folder.iterdir()) == []
    until(lambda: not demo.processes())


def test_on_a_server_of_others_it_touches_only_its_own_keys(server, capsys):
    with redis.Redis.from_url(server.url) as client:
        before = sorted(client.keys())
        assert demo(url=server.url, agents=1, sandboxes=2, seconds=0.5, seed=None) == 0
        assert sorted(client.keys()) == before
    output = capsys.readouterr().out
    assert "all its keys are deleted at the end" in output
    assert "no key is left" in output


def test_on_a_terminal_it_shows_a_live_table_that_fits(play, until):
    rows, columns = 24, 100
    demo = play(1)
    demo.environment |= {"TERM": "xterm-256color"}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(demo.command, env=demo.environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the terminal is gone when the last process that had it has ended
        while read := os.read(ours, 65536):
            shown += read
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    frames = re.split(r"(?:\x1b\[1A\x1b\[2K)+", shown.decode())
    assert len(frames) > 5
    for frame in frames[1:-1]:
        assert len(frame.splitlines()) <= rows
    live = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frames[len(frames) // 2])
    assert re.search("ID +NAME +NODE +STATE +PID +AGE +EXIT", live)
    assert re.search(r"[0-9a-f]{12}  job-\d +node-\d  READY +\d+", live)
    assert re.search("last events.*start +INIT +→ READY", live, re.DOTALL)
    assert "✓" in frames[-1]
    assert "✗" not in frames[-1]


@pytest.mark.parametrize("victim", ["agent", "controller"])
def test_it_says_who_died_that_was_not_to_and_fails(play, until, victim):
    demo = play(30).start()
    until(demo.works)
    demo.find(f"sandbox_redis.demo.{victim}").kill()
    output, status = demo.finish()
    assert status == 1
    assert re.search(r"✗ every process of the demo [^\n]+\n +\S+ \(process \d+\) was killed by SIGKILL", output)
    assert re.search("what each process really did is in (.+)", output)[1] in map(str, demo.folder.iterdir())
    until(lambda: not demo.processes())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_it_is_ended_early_it_still_checks_what_was_done(play, until, number):
    demo = play(30).start()
    until(demo.works)
    demo.process.send_signal(number)
    output, status = demo.finish()
    assert status == 128 + number, output
    assert output.count("✓") == 10
    assert list(demo.folder.iterdir()) == []
    until(lambda: not demo.processes())


def test_even_when_it_is_killed_no_process_is_left(play, until, own_server):
    demo = play(30, own_server().url).start()
    until(demo.works)
    assert len(demo.processes()) > 6
    demo.process.kill()
    demo.finish()
    until(lambda: not demo.processes())


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        ("agents", {"agents": 0}),
        ("sandboxes", {"agents": 3, "sandboxes": 2}),
        ("seconds", {"seconds": 0}),
        ("seconds", {"seconds": 1e9}),
        ("seconds", {"seconds": float("nan")}),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_starts(argument, settings):
    with pytest.raises(InvalidArgumentError) as caught:
        demo(**{"url": "redis://127.0.0.1:1", "agents": 1, "sandboxes": 1, "seconds": 1, "seed": None, **settings})
    assert caught.value.argument == argument


# -- the check


@pytest.fixture(scope="module")
def finished(servers, tmp_path_factory):
    """A store as it is at the end of a demo, and what its processes noted."""
    server = servers("valkey")
    prefix = f"test-demo-{uuid.uuid4().hex}"
    script = Script(agents=2, sandboxes=6, seconds=1, seed=3)
    with SandboxStore(server.url, prefix=prefix, agent="demo") as store:
        director = Director(
            store, server.url, prefix, script, tmp_path_factory.mktemp("demo"), PlainScreen(), lambda: False
        )
        findings = director.play()
        yield server, prefix, findings
        delete_store(store)


@pytest.fixture
def copy(finished):
    """A copy of that store, to be tampered with: its client, its prefix, and the findings of a check of it."""
    server, original, findings = finished
    prefix = f"test-demo-{uuid.uuid4().hex}"
    with redis.Redis.from_url(server.url) as client, SandboxStore(server.url, prefix=prefix) as store:
        for key in client.keys(f"{original}:*"):
            client.copy(key, key.replace(original.encode(), prefix.encode()))

        def check_again():
            return check(store.audit(), findings.entries, shared=findings.shared, killed=findings.killed)

        yield client, f"{prefix}:{{0}}", check_again
        client.delete(*client.keys(f"{prefix}:*"))


def found_by(findings):
    """What the checks that found something are about."""
    subjects = ("acknowledged", "updates", "pids", "exit statuses", "indexes", "no record")
    return {
        s for s in subjects for check in findings.checks if s in check.sentence.partition("(")[0] and check.problems
    }


def test_without_a_fault_the_check_finds_nothing(finished, copy):
    _, _, findings = finished
    assert [check.problems for check in findings.checks] == [[]] * 8
    _, _, check_again = copy
    assert found_by(check_again()) == set()


def forge(client, head, changes, where=lambda fields: True):
    """Write the events anew, with their ids, and the first that fits changed."""
    events = client.xrange(f"{head}:events")
    client.delete(f"{head}:events")
    for revision, fields in events:
        fits = changes and where(fields)
        client.xadd(f"{head}:events", {**fields, **changes} if fits else fields, id=revision)
        changes = None if fits else changes
    assert changes is None


def an_event(client, head, where):
    return next(fields for _, fields in client.xrange(f"{head}:events") if where(fields))


def an_exit(fields):
    return fields[b"transition"] == b"exit" and fields[b"exit_status"] != b"255"


STORE_FAULTS = {
    "a record written behind the back of the store": (
        lambda client, head: client.hset(f"{head}:status:shared-0", "pid", 1),
        {"pids", "indexes"},
    ),
    "an update counted twice": (
        lambda client, head: client.hincrby(f"{head}:status:shared-0", "exit_status", 1),
        {"updates", "indexes"},
    ),
    "an event lost": (
        lambda client, head: client.xdel(f"{head}:events", client.xrange(f"{head}:events", count=50)[-1][0]),
        {"acknowledged"},
    ),
    "an event that nobody asked for": (
        lambda client, head: client.xadd(f"{head}:events", client.xrevrange(f"{head}:events", count=1)[0][1]),
        {"acknowledged"},
    ),
    "an index entry too many": (
        lambda client, head: client.zadd(f"{head}:state:READY", {"f" * 64: 0}),
        {"indexes"},
    ),
    "an index entry too few": (
        lambda client, head: client.zrem(f"{head}:node:shared", "shared-0"),
        {"indexes"},
    ),
    "a record left over": (
        lambda client, head: client.copy(f"{head}:status:shared-0", f"{head}:status:left"),
        {"no record", "indexes"},
    ),
    "a record gone": (
        lambda client, head: client.delete(f"{head}:status:shared-1"),
        {"no record", "updates", "indexes"},
    ),
    "a wrong pid": (
        lambda client, head: forge(
            client, head, {b"pid": b"1"}, lambda f: f[b"transition"] == b"start" and f[b"pid"] != b"0"
        ),
        {"pids"},
    ),
    "a wrong exit status": (
        lambda client, head: forge(client, head, {b"exit_status": b"99"}, an_exit),
        {"exit statuses"},
    ),
    "an exit told by who cannot know it": (
        lambda client, head: forge(client, head, {b"by": b"controller"}, an_exit),
        {"exit statuses", "acknowledged"},
    ),
    "an exit that overwrote another": (
        lambda client, head: client.xadd(f"{head}:events", {**an_event(client, head, an_exit), b"exit_status": b"98"}),
        {"exit statuses", "acknowledged"},
    ),
    "an update that overwrote another": (
        lambda client, head: forge(client, head, {b"exit_status": b"0"}, lambda f: f[b"transition"] == b"update"),
        {"updates"},
    ),
}


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_a_fault_in_the_store_is_found(copy, fault):
    client, head, check_again = copy
    plant, finders = STORE_FAULTS[fault]
    plant(client, head)
    assert finders <= found_by(check_again())


def first(entries, **facts):
    """The place of the first line with these facts."""
    return next(i for i, e in enumerate(entries) if all(getattr(e, name) == fact for name, fact in facts.items()))


def of_the_living(findings, **facts):
    """The place of a line by an agent that was there from beginning to end."""
    living = next(
        entry.actor for entry in findings.entries if entry.actor.endswith("/1") and entry.actor not in findings.killed
    )
    return first(findings.entries, actor=living, **facts)


def changed(findings, place, **facts):
    entries = list(findings.entries)
    entries[place] = replace(entries[place], **facts)
    return entries


def without(findings, *places):
    return [entry for place, entry in enumerate(findings.entries) if place not in places]


def a_write(findings):
    """The places of a question and its answer."""
    asked = of_the_living(findings, act=Act.ASKED, operation="update")
    return asked, of_the_living(findings, act=Act.ANSWERED, request=findings.entries[asked].request)


def a_recorded_exit(findings):
    """The place of the end of a process whose exit was not too late."""
    told = findings.entries[of_the_living(findings, act=Act.ANSWERED, operation="exit")]
    return of_the_living(findings, act=Act.ENDED, id=told.id)


def an_uncounted_update(findings):
    last = findings.entries[a_write(findings)[0]].actor
    new = Entry(last, Act.ASKED, "shared-0", request=10**6, operation="update")
    return [*findings.entries, new, replace(new, act=Act.ANSWERED, revision="1-1")]


def an_answer_with_the_event_of_another(findings):
    asked, answered = a_write(findings)
    question = findings.entries[asked]
    others = (e for e in findings.audit.events if e.id == question.id and e.transition == "update")
    other = next(event for event in others if event.by != question.actor)
    return changed(findings, answered, revision=other.revision, status=other.sandbox.status)


LOG_FAULTS = {
    "an answer with the event of another": (an_answer_with_the_event_of_another, "acknowledged"),
    "another pid": (lambda f: changed(f, first(f.entries, act=Act.SPAWNED), pid=1), "pids"),
    "another exit status": (lambda f: changed(f, a_recorded_exit(f), exit_status=99), "exit statuses"),
    "no process": (lambda f: without(f, of_the_living(f, act=Act.SPAWNED)), "pids"),
    "an answer that did not come": (lambda f: without(f, a_write(f)[1]), "acknowledged"),
    "a question that was not asked": (lambda f: without(f, a_write(f)[0]), "acknowledged"),
    "a write that was not asked for": (lambda f: without(f, *a_write(f)), "acknowledged"),
    "an answer of another event": (lambda f: changed(f, a_write(f)[1], revision="1-1"), "acknowledged"),
    "an answer with another status": (lambda f: changed(f, a_write(f)[1], status=None), "acknowledged"),
    "a write that was refused but happened": (lambda f: changed(f, a_write(f)[1], act=Act.REFUSED), "acknowledged"),
    "a write that was acknowledged but did not happen": (an_uncounted_update, "acknowledged"),
}


@pytest.mark.parametrize("fault", LOG_FAULTS)
def test_a_difference_to_what_happened_is_found(finished, fault):
    _, _, findings = finished
    tamper, finder = LOG_FAULTS[fault]
    checked = check(findings.audit, tamper(findings), shared=findings.shared, killed=findings.killed)
    assert finder in found_by(checked)


def test_only_who_was_killed_may_have_a_write_in_flight_and_the_events_say_whether_it_happened(finished):
    _, _, findings = finished
    (killed,) = findings.killed
    unheard = first(findings.entries, actor=killed, act=Act.ANSWERED, operation="start")
    never_sent = Entry(killed, Act.ASKED, "f" * 64, request=10**6, operation="create")
    entries = [*without(findings, unheard), never_sent]
    checked = check(findings.audit, entries, shared=findings.shared, killed=findings.killed)
    in_flight = {question.asked.id: question.event for question in checked.questions if question.answer is None}
    assert in_flight[findings.entries[unheard].id].revision == findings.entries[unheard].revision
    assert in_flight[never_sent.id] is None
    assert found_by(checked) == set()
    assert found_by(check(findings.audit, entries, shared=findings.shared, killed=())) >= {"acknowledged"}


def test_who_takes_over_from_a_dead_agent_cannot_know_how_its_processes_ended(finished):
    _, _, findings = finished
    end = findings.entries[a_recorded_exit(findings)]
    owner = f"{end.actor}-dead"  # so that who told the exit is another
    entries = [replace(e, actor=owner) if e.act is Act.SPAWNED and e.id == end.id else e for e in findings.entries]
    entries.append(Entry(end.actor, Act.ORPHANED, end.id))
    checked = check(findings.audit, entries, shared=findings.shared, killed={*findings.killed, owner})
    assert found_by(checked) == {"exit statuses"}


# -- the processes


def test_lives_are_the_same_for_the_same_seed():
    one, other = (random.Random(5) for _ in range(2))
    assert [Life.draw(one) for _ in range(50)] == [Life.draw(other) for _ in range(50)]


def a_life(**facts):
    return Life(**{"setup": 0, "program": "/bin/sh", "lifetime": 0, "cleanup": 0, **facts})


@pytest.mark.parametrize(("life", "status"), [(a_life(exit_status=42), 42), (a_life(signal=15), 143)])
def test_a_process_ends_as_its_life_says(life, status):
    async def live():
        child = await Child.start(life)
        child.release()
        return await child.wait()

    assert asyncio.run(live()) == status


def test_a_process_that_was_never_recorded_ends_by_itself_when_its_agent_dies():
    async def live():
        child = await Child.start(a_life(lifetime=600, exit_status=42))
        child._process.stdin.close()  # what the kernel does for an agent that was killed
        return await child.wait()

    assert asyncio.run(live()) == 0


def test_an_orphan_is_ended_with_its_children_and_another_process_with_its_pid_is_not():
    with subprocess.Popen(a_life(lifetime=600).command, stdin=subprocess.PIPE, process_group=0) as process:
        process.stdin.write(b"run\n")
        process.stdin.flush()
        session = os.getsid(0)
        assert not signal_group(process.pid, session + 1, signal.SIGKILL)
        assert not end_orphan(process.pid, session + 1)
        assert runs(process.pid, session)
        assert end_orphan(process.pid, session)
        assert not runs(process.pid, session)
        assert process.wait() == -signal.SIGKILL
    assert not runs(process.pid, session)
