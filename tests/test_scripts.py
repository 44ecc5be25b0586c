"""The rules of the Lua folder: the header is the documentation, inputs are named at once, and nothing is written above
a refusal. Each rule is a function over text, and each is shown to find what was planted against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import takewhile

import pytest
import redis

from sandbox_redis.keys import Keys, meta
from sandbox_redis.scripts import FOLDER, script

TEXTS = {file.name: file.read_text() for file in FOLDER.iterdir() if file.name.endswith(".lua")}
LIBRARIES = {f"lib/{file.name}": file.read_text() for file in (FOLDER / "lib").iterdir()}
ALL = TEXTS | LIBRARIES

REFUSALS = {"NOT_FOUND", "TRANSITION", "ALREADY_EXISTS", "CONFLICT"}
READS = {"HMGET", "HGETALL", "HGET", "EXISTS", "XLEN", "ZCARD", "ZRANGE", "ZSCORE", "XRANGE", "XREVRANGE"}
WRITERS = {"move", "erase", "insert", "leave", "event"}
KEYWORDS = {
    "and",
    "break",
    "do",
    "else",
    "elseif",
    "end",
    "false",
    "for",
    "function",
    "if",
    "in",
    "local",
    "nil",
    "not",
}
KEYWORDS |= {"or", "repeat", "return", "then", "true", "until", "while"}
GLOBALS = {"redis", "KEYS", "ARGV", "string", "math", "table", "tonumber", "tostring", "ipairs", "pairs", "unpack"}
TEMPLATES = {
    "meta": meta("<prefix>"),
    "nodes": Keys("<prefix>", 1).node(0, "").replace("{0}", "{<p>}"),
    "on_node": Keys("<prefix>", 1).node(0, "<node>").replace("{0}", "{<p>}"),
    "records": Keys("<prefix>", 1).status_prefix(0).replace("{0}", "{<p>}"),
    "index": Keys("<prefix>", 1).state(0, "<STATE>").replace("{0}", "{<p>}"),
} | dict(
    zip(
        ["record", "events", "INIT", "READY", "NOTREADY", "UNKNOWN", "all_nodes"],
        [key.replace("{0}", "{<p>}") for key in Keys("<prefix>", 1).change("<id>")],
        strict=True,
    )
)


def parts(text: str) -> tuple[str, str, str]:
    """The header, the first code lines, and the code below them."""
    lines = text.splitlines()
    code = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    first, _, rest = "\n".join(lines[code:]).strip().partition("\n\n")
    return "\n".join(lines[:code]), first, rest


def bare(code: str) -> str:
    """Code without its comments."""
    return re.sub(r"--.*", "", code)


def inputs_documented(text: str) -> dict[str, str]:
    """KEYS[n] and ARGV[n] → the name that the header gives them."""
    found = {}
    pattern = r"^-- (KEYS|ARGV)\[(\d+)(?:-(\d+))?\] +(\.\.\. )?(\w+) +\S"
    for kind, first, last, _, name in re.findall(pattern, parts(text)[0], re.MULTILINE):
        found |= {f"{kind}[{n}]": name for n in range(int(first), int(last or first) + 1)}
    return found


def inputs_named(code: str) -> dict[str, str]:
    """KEYS[n] and ARGV[n] → the local that the first code lines put them into."""
    found = {}
    for names, values in re.findall(r"^local ([\w, ]+) = (.+)$", code, re.MULTILINE):
        inputs = re.findall(r"(?:KEYS|ARGV)\[\d+\]", re.sub(r"unpack\((\w+), (\d+)\)", r"\1[\2]", values))
        locals_ = names.split(", ")
        found |= dict(zip(inputs, locals_ * len(inputs) if len(locals_) == 1 else locals_, strict=False))
    return found


# -- the rules: each yields what breaks it


def header_begins_with_its_name_and_a_sentence(name: str, text: str) -> Iterator[str]:
    lines = takewhile(lambda line: line.startswith("-- "), text.splitlines())
    paragraph = "-- " + " ".join(line.removeprefix("-- ") for line in lines)
    if not re.fullmatch(rf"-- {name.removeprefix('lib/')[:-4]}: [a-z].+[.]", paragraph):
        yield f"it begins with {paragraph!r}"


def every_input_is_documented_and_named_at_once(name: str, text: str) -> Iterator[str]:
    _, first, rest = parts(text)
    documented, named = inputs_documented(text), inputs_named(first)
    if documented != named:
        yield f"documented are {documented}, named are {named}"
    numbers = sorted(documented, key=lambda item: (item[0] != "K", int(re.sub(r"\D", "", item))))
    kinds = [item[:4] for item in numbers]
    if numbers != [f"{kind}[{kinds[:i].count(kind) + 1}]" for i, kind in enumerate(kinds)]:
        yield f"a number is missing in {numbers}"
    if found := re.findall(r"\b(?:KEYS|ARGV)\b", bare(rest)):
        yield f"{found} stand below the first code lines"


def every_key_has_the_template_of_the_layout(name: str, text: str) -> Iterator[str]:
    for number, label, said in re.findall(r"^-- (?:KEYS|ARGV)\[([\d-]+)\] +(\w+) +(<prefix>\S+)", text, re.MULTILINE):
        expected = TEMPLATES.get(label, "<prefix>:{<p>}:state:<STATE>,")
        if said != expected:
            yield f"input {number} is {said}, and the layout says {expected}"
    order = (
        r"indexes = \{ INIT = KEYS\[(\d)\], READY = KEYS\[(\d)\], NOTREADY = KEYS\[(\d)\], UNKNOWN = KEYS\[(\d)\] \}"
    )
    found = re.search(order, text)
    if "indexes = {" in text and not (found and [int(n) - int(found[1]) for n in found.groups()] == [0, 1, 2, 3]):
        yield "the indexes stand in another order than in Keys.change"


def every_reply_is_documented_and_given(name: str, text: str) -> Iterator[str]:
    header, _, rest = parts(text)
    documented = set(re.findall(r"^--   ([A-Z_]+)\b", header.partition("-- Reply")[2], re.MULTILINE))
    given = {"OK"} if "return whole(" in rest else set()
    for reply in re.findall(r"return \{ ([^,}]+)", rest):
        given |= set(re.findall(r'"([A-Z_]+)"', reply))
    if documented != given:
        yield f"documented are {sorted(documented)}, given are {sorted(given)}"
    if strangers := [
        line
        for line in re.findall(
            r"^ *return (.*)$", re.sub(r"(?ms)^local function .*?^end$", "", bare(rest)), re.MULTILINE
        )
        if name in TEXTS and not re.match(r'\{ ("|complete)|whole\(', line)
    ]:
        yield f"it answers with {strangers}"


def nothing_is_written_above_a_refusal(name: str, text: str) -> Iterator[str]:
    code = bare(parts(text)[2])
    writes = [m.start() for m in re.finditer(rf"\b(?:{'|'.join(WRITERS)})\(", code)]
    writes += [m.start() for m in re.finditer(r'redis\.p?call\(\s*"(\w+)"', code) if m[1].upper() not in READS]
    writes += [m.start() for m in re.finditer(r'redis\.p?call\(\s*[^"\s]', code)]
    refusals = [m.start() for word in REFUSALS for m in re.finditer(f'"{word}"', code)]
    if writes and refusals and min(writes) < max(refusals):
        yield "it writes above a refusal"


def nothing_is_global(name: str, text: str) -> Iterator[str]:
    code = re.sub(r'\[\[.*?\]\]|"[^"\n]*"', " 0 ", bare(text), flags=re.DOTALL)
    locals_ = {n for names in re.findall(r"\blocal ([\w, ]+?)(?: =|\n|$)", code) for n in names.split(", ")}
    locals_ |= set(re.findall(r"\blocal function (\w+)", code))
    locals_ |= {n for names in re.findall(r"\bfunction \w*\(([\w, ]*)", code) for n in names.split(", ")}
    locals_ |= {n for names in re.findall(r"\bfor ([\w, ]+?) (?:=|in\b)", code) for n in names.split(", ")}
    for file in re.findall(r"^-- @include (\S+)$", text, re.MULTILINE):
        locals_ |= set(re.findall(r"^local (?:function )?(\w+)", ALL[f"{file}.lua"], re.MULTILINE))
    keyless = re.sub(r"([{,]\s*)\w+ = ", r"\1", code)  # the keys of tables
    used = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", keyless))
    if strangers := used - locals_ - KEYWORDS - GLOBALS:
        yield f"{sorted(strangers)} are global"
    if functions := re.findall(r"^\s*function .*$", code, re.MULTILINE):
        yield f"{functions} are global"


def only_what_every_server_knows_is_used(name: str, text: str) -> Iterator[str]:
    for word in ("cmsgpack", "cjson", "#!", "error_reply", "err =", "error(", "loadstring", "setfenv", "math.random"):
        if word in bare(text):
            yield f"it uses {word}"


def a_library_is_functions_only(name: str, text: str) -> Iterator[str]:
    if found := re.findall(r"\b(?:KEYS|ARGV)\b", bare(text)):
        yield f"it uses {found}"
    for line in bare(text).splitlines():
        if line and not line.startswith((" ", "local function ", "local ", "end", "]]", "}")) and "->" not in line:
            yield f"{line!r} stands outside a function"


def every_include_is_there_and_used(name: str, text: str) -> Iterator[str]:
    header, _, rest = parts(text)
    for file in re.findall(r"@include (\S+)", text):
        if f"-- @include {file}" not in header.splitlines() or f"{file}.lua" not in LIBRARIES:
            yield f"{file} is not included"
        elif not any(
            f"{f}(" in rest for f in re.findall(r"^local function (\w+)", LIBRARIES[f"{file}.lua"], re.MULTILINE)
        ):
            yield f"{file} is not used"


Rule = Callable[[str, str], Iterator[str]]
EVERYWHERE: list[Rule] = [
    header_begins_with_its_name_and_a_sentence,
    nothing_is_global,
    only_what_every_server_knows_is_used,
]
OPERATIONS: list[Rule] = [
    every_input_is_documented_and_named_at_once,
    every_key_has_the_template_of_the_layout,
    every_reply_is_documented_and_given,
    nothing_is_written_above_a_refusal,
    every_include_is_there_and_used,
]


def named(rule: Rule) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", EVERYWHERE, ids=named)
@pytest.mark.parametrize("name", ALL)
def test_every_file_keeps_the_rule(name, rule):
    assert list(rule(name, ALL[name])) == []


@pytest.mark.parametrize("rule", OPERATIONS, ids=named)
@pytest.mark.parametrize("name", TEXTS)
def test_every_operation_keeps_the_rule(name, rule):
    assert list(rule(name, TEXTS[name])) == []


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_is_functions_only(name):
    assert list(a_library_is_functions_only(name, LIBRARIES[name])) == []


@pytest.mark.parametrize(
    ("rule", "name", "old", "new"),
    [
        (header_begins_with_its_name_and_a_sentence, "start.lua", "-- start:", "-- begin:"),
        (header_begins_with_its_name_and_a_sentence, "start.lua", "runs.\n", "runs\n"),
        (header_begins_with_its_name_and_a_sentence, "start.lua", "-- start: ", ""),
        (every_input_is_documented_and_named_at_once, "start.lua", "-- ARGV[5]  pid ", "-- ARGV[5]  id "),
        (every_input_is_documented_and_named_at_once, "start.lua", "-- ARGV[3]  request", "-- ARG[3]  request"),
        (every_input_is_documented_and_named_at_once, "start.lua", "local pid = ARGV[5]", "local pid = ARGV[6]"),
        (every_input_is_documented_and_named_at_once, "start.lua", "id, by, request", "by, id, request"),
        (every_input_is_documented_and_named_at_once, "start.lua", "KEYS[5], UNKNOWN = KEYS[6]", "KEYS[5]"),
        (every_input_is_documented_and_named_at_once, "start.lua", '"READY", pid\n', '"READY", ARGV[5]\n'),
        (every_input_is_documented_and_named_at_once, "start.lua", "read(record)", "read(KEYS[1])"),
        (every_input_is_documented_and_named_at_once, "create.lua", "unpack(ARGV, 9)", "unpack(ARGV, 8)"),
        (every_key_has_the_template_of_the_layout, "start.lua", ":status:<id>", ":record:<id>"),
        (every_key_has_the_template_of_the_layout, "remove.lua", "{<p>}:node:", "<p>:node:"),
        (every_key_has_the_template_of_the_layout, "meta.lua", "<prefix>:meta", "<prefix>:layout"),
        (every_key_has_the_template_of_the_layout, "start.lua", "INIT = KEYS[3], READY = KEYS[4]", "READY = KEYS[3], INIT = KEYS[4]"),
        (every_reply_is_documented_and_given, "start.lua", "--   NOT_FOUND\n", ""),
        (every_reply_is_documented_and_given, "start.lua", 'return { "NOT_FOUND" }', "return whole(record)"),
        (every_reply_is_documented_and_given, "start.lua", "--   TRANSITION", "--   BAD_STATE"),
        (every_reply_is_documented_and_given, "find.lua", 'or "TRIMMED"', 'or "UNKNOWN"'),
        (every_reply_is_documented_and_given, "start.lua", 'return { "NOT_FOUND" }', "return nil"),
        (nothing_is_written_above_a_refusal, "start.lua", "if not status", 'redis.call("SET", record, 1)\nif not status'),
        (nothing_is_written_above_a_refusal, "start.lua", "if not moves", 'redis.pcall("hdel", record, 1)\nif not moves'),
        (nothing_is_written_above_a_refusal, "start.lua", "if not moves", "leave(indexes, status.state, id)\nif not moves"),
        (nothing_is_written_above_a_refusal, "start.lua", "if not moves", "redis.call(command, record)\nif not moves"),
        (nothing_is_global, "start.lua", "local before =", "before ="),
        (nothing_is_global, "start.lua", "local status =", "status ="),
        (nothing_is_global, "lib/change.lua", "local function put", "function put"),
        (nothing_is_global, "lib/change.lua", "for i = 1", "for i = first"),
        (nothing_is_global, "start.lua", "moves(", "may_move("),
        (only_what_every_server_knows_is_used, "start.lua", "local before", "local packed = cmsgpack.pack({})\nlocal before"),
        (only_what_every_server_knows_is_used, "start.lua", "-- start", "#!lua\n-- start"),
        (only_what_every_server_knows_is_used, "start.lua", 'return { "NOT_FOUND" }', 'return redis.error_reply("NOT_FOUND")'),
        (only_what_every_server_knows_is_used, "start.lua", 'return { "NOT_FOUND" }', 'return { err = "NOT_FOUND" }'),
        (every_include_is_there_and_used, "start.lua", "-- @include lib/states", "-- @include lib/machine"),
        (every_include_is_there_and_used, "port_forward.lua", "lib/status\n", "lib/status\n-- @include lib/change\n"),
        (a_library_is_functions_only, "lib/status.lua", '"HGETALL", record', '"HGETALL", KEYS[1]'),
        (a_library_is_functions_only, "lib/status.lua", "-- whole", 'redis.call("PING")\n-- whole'),
    ],
)  # fmt: skip
def test_the_rule_finds_what_breaks_it(rule, name, old, new):
    assert old in ALL[name]
    assert list(rule(name, ALL[name].replace(old, new, 1))) != []


@pytest.mark.parametrize("name", [name[:-4] for name in TEXTS])
def test_a_script_is_loaded_without_its_comments_under_its_own_sha(server, name):
    source = script(name).source
    assert not re.findall(r"^ *--", source, re.MULTILINE)
    assert source.count("local function whole") <= 1
    with redis.Redis.from_url(server.url) as client:
        assert client.script_load(source) == script(name).sha


# -- the scripts themselves


@pytest.fixture(params=["sync"])
def flavour(request):
    """How a store sends them makes no difference to the scripts."""
    return request.param


@pytest.fixture
def run(client, prefix):
    """Runs a script on the sandbox ``it``, as the store would."""
    keys = Keys(prefix, 1).change("it")

    def run_(name: str, *args: object, count: int = 0) -> object:
        count = count or (7 if "KEYS[7]" in TEXTS[f"{name}.lua"] else 6)
        seen = client.hget(keys[0], "revision")
        args = tuple(seen if arg == "<seen>" else arg for arg in args)
        return client.eval(script(name).source, count, *keys[:count], *args)

    return run_


def test_the_layout_is_written_once_and_told_to_everybody(client, prefix, snapshot):
    def lay_out(*layout: object) -> object:
        return client.eval(script("meta").source, 1, meta(prefix), *layout)

    assert lay_out(1, 4, 1000) == [b"OK", b"1", b"4", b"1000"]
    was = snapshot()
    assert lay_out(1, 16, 7) == [b"OK", b"1", b"4", b"1000"]
    assert snapshot() == was
    client.hdel(meta(prefix), "schema")
    assert lay_out(1, 16, 7) == [b"OK", None, b"4", b"1000"]  # nobody repairs what another release may have written


HEAD = ("it", "agent", "token", 1000)
TWICE = {
    "create": ([], ["nodes:", "", 0, "1970-01-01T00:00:00.000000001Z"]),
    "load": ([], ["nodes:", "", 0, "", "READY", 7, "", 0]),
    "start": (["create"], [7]),
    "stop": (["create", "start"], ["", "", ""]),
    "exit": (["create", "start"], [1, "1970-01-01T00:00:00.000000001Z"]),
    "update": (["create"], ["READY", 9, "", "", 0, "<seen>"]),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_script_that_is_sent_twice_with_one_token_happens_once(run, client, prefix, snapshot, name):
    before, args = TWICE[name]
    for i, earlier in enumerate(before):
        run(earlier, "it", "agent", f"earlier-{i}", 1000, *TWICE[earlier][1])
    first = run(name, *HEAD, *args)
    was = snapshot()
    assert first[0] == b"OK"
    assert run(name, *HEAD, *args) == first
    assert snapshot() == was


@pytest.mark.parametrize("seen", ["none", "", "1-0"])
def test_an_update_of_a_record_that_it_has_not_seen_is_a_conflict_even_without_a_watch(run, snapshot, seen):
    run("create", *HEAD, *TWICE["create"][1])
    was = snapshot()
    assert run("update", "it", "agent", "another", 1000, "READY", 9, "", "", 0, seen) == [b"CONFLICT"]
    assert snapshot() == was


def find(run, floor: str = "0-0", newest: str = "+", maxlen: int = 1000, page: int = 1000) -> list[object]:
    return run("find", "token", floor, newest, maxlen, page, count=2)


def test_a_write_is_found_in_the_record_while_it_is_the_last(run, client, prefix):
    run("create", *HEAD, *TWICE["create"][1])
    word, fields = find(run)
    assert word == b"CURRENT"
    assert fields == run("create", *HEAD, *TWICE["create"][1])[1]


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_a_write_that_others_have_passed_is_found_in_the_events(run, client, prefix, page):
    run("create", *HEAD, *TWICE["create"][1])
    run("start", "it", "other", "theirs", 1000, 7)
    run("stop", "it", "other", "theirs-2", 1000, "", "", "")
    events = client.xrange(f"{prefix}:{{0}}:events")
    reply = find(run, page=page)
    while reply[0] == b"MORE":
        reply = find(run, newest=reply[1].decode(), page=page)
    word, revision, event, record = reply
    assert (word, revision) == (b"PASSED", events[0][0])
    assert event == [item for pair in events[0][1].items() for item in pair]
    assert record[record.index(b"state") + 1] == b"NOTREADY"
    assert find(run, floor=events[0][0].decode()) == [b"NONE"]  # it is not after itself


def test_a_removal_is_found_in_the_events(run, client, prefix):
    run("create", "it", "agent", "earlier", 1000, *TWICE["create"][1])
    run("remove", *HEAD, "nodes:", "1")
    word, _, event, record = find(run)
    assert (word, record) == (b"PASSED", [])
    assert event[event.index(b"transition") + 1] == b"remove"


def test_a_write_that_did_not_happen_is_not_found(run, client, prefix):
    assert find(run) == [b"NONE"]
    run("create", "it", "other", "theirs", 1000, *TWICE["create"][1])
    assert find(run) == [b"NONE"]
    floor = client.xrange(f"{prefix}:{{0}}:events")[-1][0].decode()
    assert find(run, floor=floor) == [b"NONE"]
    run("start", "it", "other", "theirs", 1000, 7)
    assert find(run, floor=floor) == [b"NONE"]


def test_where_the_events_do_not_reach_it_cannot_be_known(run, client, prefix):
    run("create", "it", "other", "theirs", 1000, *TWICE["create"][1])
    stream = f"{prefix}:{{0}}:events"
    floor = client.xrange(stream)[0][0].decode()
    for i in range(5):
        run("update", "it", "other", f"theirs-{i}", 1000, "INIT", i + 1, "", "", 0, "<seen>")
    assert find(run, floor=floor) == [b"NONE"]
    client.xtrim(stream, maxlen=5, approximate=False)
    assert find(run, floor=client.xrange(stream)[0][0].decode()) == [b"NONE"]
    client.xtrim(stream, maxlen=3, approximate=False)
    assert find(run, floor=floor) == [b"TRIMMED"]
    assert find(run, maxlen=3) == [b"TRIMMED"]  # there was no event when it was sent
    assert find(run, maxlen=4) == [b"NONE"]  # as many are kept, so none was ever trimmed
    ms, _, seq = client.xrange(stream)[-1][0].decode().partition("-")
    assert find(run, floor=f"{ms}-{int(seq) + 1}") == [b"ROLLED_BACK"]
    assert find(run, floor=f"{int(ms) + 1}-0") == [b"ROLLED_BACK"]
    client.delete(stream)
    assert find(run, floor=floor) == [b"ROLLED_BACK"]
