"""sandbox-redis: the status of sandboxes (pods, code runners, agents' workspaces), shared through Redis.

containerd keeps the status of each pod sandbox in one process's memory; this keeps the same status, with the same
contract, in Redis, for many processes on many hosts. Start with `SandboxStore` or `AsyncSandboxStore`.
"""

import logging

from sandbox_redis.aio import AsyncSandboxStore, AsyncStatusStorage
from sandbox_redis.aio_mirror import AsyncMirror
from sandbox_redis.batch import Batch
from sandbox_redis.concern import WriteConcern
from sandbox_redis.errors import (
    AlreadyExistsError,
    AmbiguousIDError,
    CompactedError,
    ConflictError,
    DurabilityError,
    InvalidArgumentError,
    LayoutError,
    NotFoundError,
    OutcomeUnknownError,
    SandboxError,
    SchemaError,
    StoreRolledBackError,
    StoreUnavailableError,
    TransitionError,
    WaitTimeoutError,
)
from sandbox_redis.findings import Finding, Report, Severity
from sandbox_redis.in_step import Result
from sandbox_redis.listing import Page
from sandbox_redis.mirror import Mirror
from sandbox_redis.operations import Layout
from sandbox_redis.queries import Counts
from sandbox_redis.record import Event, Metadata, Sandbox, Status
from sandbox_redis.states import State
from sandbox_redis.store import SandboxStore, StatusStorage
from sandbox_redis.transaction import UpdateFunc
from sandbox_redis.watch import AsyncWatch, Watch

__version__ = "0.1.0"

logging.getLogger("sandbox_redis").addHandler(logging.NullHandler())  # outages are told to whoever asks for it

__all__ = [
    "AlreadyExistsError",
    "AmbiguousIDError",
    "AsyncMirror",
    "AsyncSandboxStore",
    "AsyncStatusStorage",
    "AsyncWatch",
    "Batch",
    "CompactedError",
    "ConflictError",
    "Counts",
    "DurabilityError",
    "Event",
    "Finding",
    "InvalidArgumentError",
    "Layout",
    "LayoutError",
    "Metadata",
    "Mirror",
    "NotFoundError",
    "OutcomeUnknownError",
    "Page",
    "Report",
    "Result",
    "Sandbox",
    "SandboxError",
    "SandboxStore",
    "SchemaError",
    "Severity",
    "State",
    "Status",
    "StatusStorage",
    "StoreRolledBackError",
    "StoreUnavailableError",
    "TransitionError",
    "UpdateFunc",
    "WaitTimeoutError",
    "Watch",
    "WriteConcern",
]
