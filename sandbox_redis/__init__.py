"""sandbox-redis: the status of sandboxes (pods, code runners, agents' workspaces), shared through Redis.

containerd keeps the status of each pod sandbox in one process's memory; this keeps the same status, with the same
contract, in Redis, for many processes on many hosts. Start with `SandboxStore` or `AsyncSandboxStore`.
"""

from sandbox_redis.aio import AsyncSandboxStore, AsyncStatusStorage
from sandbox_redis.batch import Batch, Result
from sandbox_redis.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    SchemaError,
    StoreUnavailableError,
    TransitionError,
)
from sandbox_redis.record import Event, Metadata, Sandbox, Status
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore, StatusStorage
from sandbox_redis.transaction import UpdateFunc

__version__ = "0.1.0"

__all__ = [
    "AlreadyExistsError",
    "AsyncSandboxStore",
    "AsyncStatusStorage",
    "Batch",
    "ConflictError",
    "Event",
    "InvalidArgumentError",
    "Metadata",
    "NotFoundError",
    "OutcomeUnknownError",
    "Result",
    "Sandbox",
    "SandboxError",
    "SandboxStore",
    "SchemaError",
    "State",
    "Status",
    "StatusStorage",
    "StoreUnavailableError",
    "TransitionError",
    "UpdateFunc",
]
