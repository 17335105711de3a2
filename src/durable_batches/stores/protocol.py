"""The persistence protocol: the seam that a custom adapter implements.

A store keeps records of primitives and opaque bytes, and decides nothing. Its two write paths are `commit`
(a worker's facts and claims, fenced and numbered) and `control` (anybody's command). Both are the same four
steps in one transaction: lock, load, ask the pure `plan_...` function of `durable_batches.lifecycle.planning` what
to write, write that. Lock order: the worker's row, batches by id, executions by position.

An adapter is done when it passes `durable_batches.testing.StoreConformance`, which reads its `capabilities`.
It has seen a file, a server and plain memory, and is kept stable from here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import (
    BatchRecord,
    CheckpointRecord,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionStatus,
    Micros,
    NewDocument,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId

__all__ = [
    "BatchQuery",
    "Capabilities",
    "Expired",
    "Heart",
    "HostTransaction",
    "HostTransactions",
    "Loading",
    "Store",
]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a store can do beyond the minimum; the conformance suite tests what is declared, and nothing else."""

    several_processes: bool
    """Several processes can open it at once and share the work."""
    durable: bool
    """It survives its process."""
    pushes: bool
    """`wait` wakes before its timeout for a commit of another process."""
    host_transactions: bool = False
    """It is a `HostTransactions`, too: a batch can be submitted within a transaction of the host application."""


@dataclass(frozen=True, kw_only=True)
class BatchQuery:
    """Which batches to list; what is left at its default does not filter."""

    workflow: str | None = None
    states: Collection[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """Each of these labels with this value."""
    created_before: Micros | None = None

    def matches(self, record: BatchRecord) -> bool:
        """Whether the batch is one of them; for stores that have no query language of their own."""
        return (
            record.sealed
            and (self.workflow is None or record.workflow == self.workflow)
            and (not self.states or record.state in self.states)
            and all(record.metadata.get(name) == value for name, value in self.metadata.items())
            and (self.created_before is None or record.created_at < self.created_before)
        )


@dataclass(frozen=True, kw_only=True)
class Expired:
    """Workers that were declared dead, and the events of freeing what they held."""

    workers: Sequence[WorkerId] = ()
    events: Sequence[EventRecord] = ()


class Heart(Protocol):
    """Keeps one worker's lease; blocking, on a connection of its own.

    It lives on a thread of its own, so that user code that blocks the event loop does not cost the lease.
    """

    def beat(self) -> bool:
        """Renew the lease. False once the worker was declared dead: it never comes back under that id.

        Raises:
            StoreUnavailableError: The lease could not be renewed now.
        """
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class Loading(Protocol):
    """What it takes to load a batch; every store has it."""

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""
        ...

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""
        ...

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`."""
        ...


class _InTransaction(Protocol):
    def in_transaction(self) -> bool: ...


class _IsInTransaction(Protocol):
    def is_in_transaction(self) -> bool: ...


HostTransaction: TypeAlias = _InTransaction | _IsInTransaction
"""A connection (or session) of the host application that is in a transaction: SQLAlchemy's, or the driver's."""


@runtime_checkable
class HostTransactions(Protocol):
    """Of a store that declares `host_transactions`: loading within a transaction of the host application."""

    def joined(self, connection: HostTransaction) -> AbstractAsyncContextManager[Loading]:
        """Load on this connection, on the running loop. What an exception leaves is nothing; the rest is the host's.

        Raises:
            ConfigurationError: This is no connection that the store can use, or it is in no transaction.
        """
        ...


@runtime_checkable
class Store(Protocol):
    """See the module. Every method may raise `StoreUnavailableError` or a kin of it."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    async def open(self) -> None:
        """Connect, and migrate under a lock. Opening nests: each `open` wants its `close`.

        Raises:
            SchemaTooNewError: A newer library has changed the schema in a way that this one must not touch.
            StoreCorruptError: This is no database, or a damaged one.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; no thread and no connection stays behind the last `close`."""
        ...

    # ---- workers -------------------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """Begin a worker's life: its commits are numbered from 1, its lease counts from now.

        Ids are random and never given twice, so that a dead worker's row need not be kept.
        """
        ...

    def heart(self, worker: WorkerId) -> Heart:
        """What keeps this worker's lease. Made and used on a thread of its own."""
        ...

    async def workers(self) -> Sequence[WorkerRecord]:
        """Those that are alive, as far as the store knows."""
        ...

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """Declare dead whoever is past its lease by the store's clock, or in `dead`, and free what they hold.

        A worker declared dead can never write again. `plan_release(..., "crash")`.
        """
        ...

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """A clean goodbye: free what it still holds, no crash counted, its id fenced.

        `plan_release(..., "shutdown")`.
        """
        ...

    # ---- loading ---------------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """Insert an unsealed batch. None: created; a record: this id exists, nothing was changed."""
        ...

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """Store one chunk of documents (`new_execution`), wholly or not at all; the same chunk again is harmless.

        Raises:
            DuplicateDocumentError: A document id is in the batch already, or twice in the chunk.
            FactRejectedError: A position has another document already (they count from 0 without a gap).
            BatchNotFoundError: The batch is gone, or sealed, or another loader's.
        """
        ...

    # ---- the write paths -------------------------------------------------------------------------------------

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        """All facts, and then the claim, in ONE transaction, or nothing.

        1. Fence and number on the worker's own row in one statement: still alive, and `number` is its last + 1.
        2. Facts: `plan_facts`. 3. Claim: candidates, those batches first that were served longest ago, and of
           each its executions by (due, position); `plan_claims`.
        The same number again changes nothing and returns what was committed.

        Raises:
            WorkerFencedError: The worker was declared dead; nothing was written.
            FactRejectedError: The database refuses the data itself; nothing was written.
            CommitUnknownError: Whether it was written is unknown; the caller repeats the number.
        """
        ...

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """One command, from anyone, worker or not: `plan_command` under the batch row's lock.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        ...

    # ---- reading ---------------------------------------------------------------------------------------------

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """One batch, loading ones included."""
        ...

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """Sealed ones, newest first, paged by key: `after` is the last id of the page before."""
        ...

    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = -1,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        """In submission order, paged by position; no statuses: all of them. Without `inputs`, those are empty."""
        ...

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """Of one execution, by key."""
        ...

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """How many activities the batch has recorded, failures included. Reads an index; not for hot paths."""
        ...

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """Those with a greater sequence number, in order."""
        ...

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """A hint: sleep until something may have happened, or the time is up. It may return early for nothing.

        What counts: one of `seen` has events beyond its number, or a batch of one of the `work` workflows
        (name, version) has something to claim.
        """
        ...
