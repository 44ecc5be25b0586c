"""What a type checker must know of the public face; test_faces.py runs mypy over it. It is never executed."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_type

from sandbox_redis import (
    AsyncSandboxStore,
    Batch,
    DurabilityError,
    Metadata,
    Result,
    Sandbox,
    SandboxStore,
    State,
    Status,
    TransitionError,
    UpdateFunc,
    WriteConcern,
)


def stopped(status: Status) -> Status:
    return replace(status, state=State.NOTREADY)


def sync(store: SandboxStore) -> None:
    update: UpdateFunc = stopped
    assert_type(store.create(node="n", metadata=Metadata(labels={"a": "b"})), Sandbox)
    assert_type(store.load("it", Status(State.READY)), Sandbox)
    assert_type(store.start("it", pid=1), Sandbox)
    assert_type(store.stop("it", timeout=1), Sandbox)
    assert_type(store.exit("it", exit_status=1), Sandbox)
    assert_type(store.update("it", update), Sandbox)
    assert_type(store.start("it", pid=1, write_concern=WriteConcern(replicas=1, fsync=True)), Sandbox)
    assert_type(store.get("it").status.state, State)
    assert_type(store.get("it").problem, str | None)
    assert_type(store.ids(states=[State.READY], node="n"), list[str])
    assert_type(store.remove("it", force=True), bool)
    assert_type(store.status("it").get(), Status)
    assert_type(store.status("it").update(lambda status: status), Status)
    assert_type(SandboxStore.from_url(), SandboxStore)
    with store as same, same.batch() as batch:
        assert_type(same, SandboxStore)
        assert_type(batch, Batch)
        assert_type(batch.start("it", pid=1), Result[Sandbox])
        assert_type(batch.remove("it").result(), bool)
        assert_type(batch.create().error, Exception | None)


async def asynchronous(store: AsyncSandboxStore) -> None:
    assert_type(await store.create(), Sandbox)
    assert_type(await store.ids(), list[str])
    assert_type(await store.remove("it"), bool)
    assert_type(await store.status("it").update(stopped), Status)
    async with store as same, same.batch() as batch:
        assert_type(same, AsyncSandboxStore)
        assert_type(batch.get("it"), Result[Sandbox])


def errors(error: TransitionError) -> None:
    assert_type((error.id, error.state, error.operation), tuple[str, str, str])


def unconfirmed(error: DurabilityError) -> None:
    assert_type((error.id, error.request, error.reached, error.wanted), tuple[str, str, int | None, int])
    assert_type(error.fsynced, bool | None)


def refused(store: SandboxStore, batch: Batch) -> None:
    store.start("it")  # type: ignore[call-arg]
    store.start("it", "1")  # type: ignore[call-arg,arg-type]
    store.start("it", pid="1")  # type: ignore[arg-type]
    store.start("it", pid=1, write_concern=1)  # type: ignore[arg-type]
    store.get()  # type: ignore[call-arg]
    store.ids(states=["READY"])  # type: ignore[list-item]
    store.update("it", lambda status: None)  # type: ignore[arg-type,return-value]
    batch.start("it", port=1)  # type: ignore[call-arg]
    Status("READY")  # type: ignore[arg-type]
