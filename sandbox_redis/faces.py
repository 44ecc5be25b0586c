"""What the sync store, the asyncio store and batches share in the way they show the operations. No I/O."""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Callable
from typing import Any

from sandbox_redis import checks


def annotate(method: Callable[..., Any], form: str) -> None:
    """Let a face of an operation say what it returns itself: ``Op[Sandbox]`` becomes ``Sandbox`` in the given form."""
    inner = method.__annotations__["return"].removeprefix("Op[").removesuffix("]")
    method.__annotations__ = {**method.__annotations__, "return": form.format(inner)}
    signature = inspect.signature(method).replace(return_annotation=form.format(inner))
    method.__signature__ = signature  # type: ignore[attr-defined]  # what inspect and help look at first


def default_url() -> str:
    """``SANDBOX_REDIS_URL``, or a server on this host."""
    return os.environ.get("SANDBOX_REDIS_URL") or "redis://127.0.0.1:6379/0"


def agent_name(agent: str | None) -> str:
    """Who writes: what the caller says, or host and process."""
    return f"{socket.gethostname()}/{os.getpid()}" if agent is None else checks.text("agent", agent, limit=256)
