"""Stores of batches: the persistence protocol, its backends, and the parts of a custom store.

`Store` is the protocol. A store keeps the records (`BatchRecord`, `ExecutionRecord`, ...), and asks the `plan_...`
functions what to write; `durable_batches.testing.StoreConformance` tests it. Its errors are in
`durable_batches.errors`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from durable_batches.clock import Clock, SystemClock
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.planning import (
    REQUESTS_ARE_KEPT,
    Candidates,
    KnownWorker,
    Loaded,
    Needs,
    Writes,
    checkpoints_to_load,
    claim_order,
    executions_to_load,
    gone_with_machine,
    has_to_know_next_due,
    needs_of_command,
    new_execution,
    plan_claims,
    plan_command,
    plan_facts,
    plan_release,
    plan_return,
)
from durable_batches.lifecycle.records import (
    GENERATION,
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    CheckpointWrite,
    Claim,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    ExecutionStatus,
    FailureRecord,
    Micros,
    NewDocument,
    Refusal,
    RequestRecord,
    SharedLimit,
    SharedSlot,
    SharedWrites,
    WorkerId,
    WorkerRecord,
)
from durable_batches.stores.fair_share import Share, claimable_slots, fair_shares, overdue, turn_of
from durable_batches.stores.protocol import (
    Attachable,
    BatchQuery,
    Capabilities,
    CountedFailures,
    CountsFailures,
    Expired,
    FindsAbandoned,
    FindsFailures,
    Heart,
    HostLoading,
    HostTransaction,
    HostTransactions,
    Inspectable,
    Inspection,
    Lease,
    Loading,
    NotedHeart,
    SharedLimits,
    Store,
    SyncHostTransactions,
    WaitsForClaims,
)

if TYPE_CHECKING:
    from durable_batches.stores.memory import MemoryStore
    from durable_batches.stores.postgres import PostgresStore
    from durable_batches.stores.sqlite import SQLiteStore

__all__ = [
    "GENERATION",
    "REQUESTS_ARE_KEPT",
    "RESOLVER_POSITION",
    "Attachable",
    "BatchQuery",
    "BatchRecord",
    "Candidates",
    "Capabilities",
    "CheckpointRecord",
    "CheckpointWrite",
    "Claim",
    "ClaimRequest",
    "Clock",
    "Command",
    "Committed",
    "CountedFailures",
    "CountsFailures",
    "DocumentRecord",
    "EventRecord",
    "ExecutionKey",
    "ExecutionRecord",
    "ExecutionStatus",
    "Expired",
    "Fact",
    "FailureRecord",
    "FindsAbandoned",
    "FindsFailures",
    "Heart",
    "HostLoading",
    "HostTransaction",
    "HostTransactions",
    "Inspectable",
    "Inspection",
    "KnownWorker",
    "Lease",
    "Loaded",
    "Loading",
    "MemoryStore",
    "Micros",
    "Needs",
    "NewDocument",
    "NotedHeart",
    "PostgresStore",
    "Refusal",
    "RequestRecord",
    "SQLiteStore",
    "Share",
    "SharedLimit",
    "SharedLimits",
    "SharedSlot",
    "SharedWrites",
    "Store",
    "SyncHostTransactions",
    "SystemClock",
    "WaitsForClaims",
    "WorkerId",
    "WorkerRecord",
    "Writes",
    "checkpoints_to_load",
    "claim_order",
    "claimable_slots",
    "executions_to_load",
    "fair_shares",
    "gone_with_machine",
    "has_to_know_next_due",
    "needs_of_command",
    "new_execution",
    "overdue",
    "plan_claims",
    "plan_command",
    "plan_facts",
    "plan_release",
    "plan_return",
    "turn_of",
]


if not TYPE_CHECKING:  # to checkers, it would make every name one of the module's
    if find_spec("asyncpg") is None:
        # `import *` and programs that go through `dir()` would fail. By its name it is imported all the same, and the
        # error names the extra.
        __all__.remove("PostgresStore")

    def __getattr__(name: str) -> object:
        # A store, and the driver of its database, is imported only where it is used.
        if name == "MemoryStore":
            from durable_batches.stores.memory import MemoryStore

            return MemoryStore
        if name == "PostgresStore":
            from durable_batches.stores.postgres import PostgresStore

            return PostgresStore
        if name == "SQLiteStore":
            from durable_batches.stores.sqlite import SQLiteStore

            return SQLiteStore
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
