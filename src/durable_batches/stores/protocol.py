"""The persistence protocol: the seam that a custom adapter implements.

A store keeps records of primitives and opaque bytes, and decides nothing. It has two write paths: `commit`, a worker's
facts and claims, fenced and numbered; and `control`, a command from any process. Both take the same four steps in one
transaction: lock, load, ask the pure `plan_...` function of `durable_batches.stores` what to write, write exactly that.
Locks are taken in one order: the worker's row, batches by id, executions by position.

An adapter is done when it passes `durable_batches.testing.StoreConformance`, which reads its `capabilities`. The
protocol has been implemented over a file, a server and plain memory, and is kept stable from here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import (
    BatchRecord,
    CheckpointRecord,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionRecord,
    ExecutionStatus,
    FailureRecord,
    Micros,
    NewDocument,
    SharedLimit,
    SharedWrites,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId

__all__ = [
    "LEVEL",
    "Attachable",
    "BatchQuery",
    "Capabilities",
    "CountedFailures",
    "CountsFailures",
    "Expired",
    "FindsAbandoned",
    "FindsFailures",
    "Heart",
    "HostLoading",
    "HostTransaction",
    "HostTransactions",
    "Inspectable",
    "Inspection",
    "Lease",
    "Loading",
    "NotedHeart",
    "SharedLimits",
    "Store",
    "SyncHostTransactions",
    "WaitsForClaims",
    "check_store",
]

T = TypeVar("T")

LEVEL: Final = 2
"""The `Capabilities.level` of the library's own stores."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Optional abilities of a store. The conformance suite tests only what is declared."""

    several_processes: bool
    """Several processes can open it at the same time and share the work."""
    durable: bool
    """Acknowledged data outlives the process."""
    pushes: bool
    """`wait` returns before its timeout when another process commits."""
    level: int = 1
    """How much of this protocol it has; its description says what came with which level.

    1: the fields of the records that have no default; the others may be dropped. 2: all fields of all records, claims
    in the order of `turn_of` and `claim_order` and from what `ClaimRequest.takes_from` names, batches that sleep
    (`next_due`), the answers to requests (`needs_of_command`), and facts about executions that the worker does not own
    (`LateResult`).
    """
    host_transactions: bool = False
    """It implements `HostTransactions`: a batch can be submitted within a transaction of the host application."""


@dataclass(frozen=True, kw_only=True)
class BatchQuery:
    """A query for batches. A field with its default value does not filter."""

    workflow: str | None = None
    states: Collection[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """The batch has each of these labels, with this value."""
    created_before: Micros | None = None

    def matches(self, record: BatchRecord) -> bool:
        """Whether the query lists this batch; for stores that have no query language of their own."""
        return (
            record.sealed
            and (self.workflow is None or record.workflow == self.workflow)
            and (not self.states or record.state in self.states)
            and all(record.metadata.get(name) == value for name, value in self.metadata.items())
            and (self.created_before is None or record.created_at < self.created_before)
        )


@dataclass(frozen=True, kw_only=True)
class Expired:
    """The workers that were expired, and the events of releasing their executions."""

    workers: Sequence[WorkerId] = ()
    events: Sequence[EventRecord] = ()


class Heart(Protocol):
    """Renews one worker's lease: blocking, on a connection of its own.

    It is made and used on a thread of its own, so that user code that blocks the event loop does not cost the lease.
    """

    def beat(self) -> bool:
        """Renew the lease. Return False once the worker was expired: it never comes back under that id.

        Raises:
            StoreUnavailableError: The lease could not be renewed now.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


@runtime_checkable
class NotedHeart(Heart, Protocol):
    """Implemented by a store whose readers can see what its workers do: a `Heart` that also writes the worker's row."""

    def tell(self, note: str, workflows: Collection[tuple[str, str]]) -> bool:
        """Renew the lease as `beat` does, and write `WorkerRecord.note` and `WorkerRecord.workflows` with it.

        Args:
            note: Of at most 2,000 characters, all of them ASCII. Opaque to a store.
            workflows: The workflows that the worker runs by now; some may be new.

        Raises:
            StoreUnavailableError: The lease could not be renewed now.
        """
        ...


class Loading(Protocol):
    """The methods that load a batch; every store has them."""

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""
        ...

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""
        ...

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`."""
        ...


@runtime_checkable
class HostLoading(Loading, Protocol):
    """Loading within a transaction of the host application that may lock everybody else out.

    The submitter writes nothing outside of that transaction, and reads with it what else has to be known.
    """

    async def workers(self) -> Sequence[WorkerRecord]:
        """Load the workers that are alive: registered, and not past their lease."""
        ...


class _InTransaction(Protocol):
    def in_transaction(self) -> bool: ...


class _IsInTransaction(Protocol):
    def is_in_transaction(self) -> bool: ...


class _HasTransaction(Protocol):
    @property
    def in_transaction(self) -> bool: ...


class _TransactionStatus(Protocol):
    @property
    def transaction_status(self) -> int: ...


class _HasStatus(Protocol):
    @property
    def info(self) -> _TransactionStatus: ...


class _InAtomicBlock(Protocol):
    in_atomic_block: bool


HostTransaction: TypeAlias = _InTransaction | _IsInTransaction | _HasTransaction | _HasStatus | _InAtomicBlock
"""A connection (or session) of the host application that is in a transaction: SQLAlchemy's, Django's, or the driver's
(asyncpg, psycopg, aiosqlite, sqlite3)."""


@runtime_checkable
class HostTransactions(Protocol):
    """Implemented by a store that declares `host_transactions`: loading within a transaction of the application."""

    def joined(self, connection: HostTransaction) -> AbstractAsyncContextManager[Loading]:
        """Load on this connection, on the running event loop.

        An exception within the block undoes what was loaded, and nothing else of the transaction. To commit or to roll
        back is the application's.

        Raises:
            ConfigurationError: The store cannot use this connection, or it is in no transaction.
        """
        ...


@runtime_checkable
class SyncHostTransactions(Protocol):
    """Implemented by a store that loads within a transaction of an application that has no event loop."""

    def joined_sync(self, connection: HostTransaction) -> AbstractContextManager[HostLoading]:
        """Load on this connection; like `HostTransactions.joined`, but none of the methods ever suspends.

        The store need not be open; it migrates nothing.

        Raises:
            ConfigurationError: The store cannot use this connection, or it is in no transaction.
            StoreNotFoundError: The store's tables are not there.
            SchemaTooOldError: A migration of the schema is missing.
            SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
        """
        ...


@runtime_checkable
class Attachable(Protocol):
    """Implemented by a store that can be opened as it is, for those who only read it."""

    async def attach(self) -> None:
        """Open what is there, for reading: create nothing, migrate nothing, and take no lock that a writer waits for.

        It nests with `Store.open`, and wants its `Store.close` as well. Rights to read have to be enough, until the
        first write.

        Raises:
            StoreNotFoundError: There is nothing: no file, no tables.
            SchemaTooOldError: A migration of the schema is missing.
            SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
        """
        ...


class Lease(NamedTuple):
    """The lease of a worker."""

    left: Micros
    """The time until it expires; negative: since then."""
    length: Micros
    """How long it is when it has just been renewed."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What tells why a batch is where it is. Sequences are of bounded length."""

    now: Micros
    """By the store's clock."""
    owned: Sequence[ExecutionRecord] = ()
    """The batch's executions that a worker owns."""
    due: Sequence[Micros] = ()
    """When the documents that wait for a time (`waiting`) are due, first due first."""
    isolated: Sequence[ExecutionRecord] = ()
    """Executions that can be claimed and have crashed several times (`claim_order`), first due first."""
    resolver: ExecutionRecord | None = None
    leases: Mapping[WorkerId, Lease] = field(default_factory=dict[WorkerId, Lease])
    """Those of the workers that are alive; empty: not known."""


@runtime_checkable
class Inspectable(Protocol):
    """Implemented by a store that can say why a batch is where it is without going through its documents."""

    async def inspect(self, batch_id: BatchId, *, limit: int) -> Inspection:
        """Look by indexes: sequences have at most `limit` members."""
        ...


class CountedFailures(NamedTuple):
    """The failed documents of a batch's current run, in groups, and how many they are: both of one moment."""

    failed: int
    """Documents that have failed for good, by the batch's counts. More than the groups have in all where some failed
    before failures were counted."""
    groups: Sequence[FailureRecord] = ()


@runtime_checkable
class CountsFailures(Protocol):
    """Implemented by a store of level 2 that keeps `Writes.failures`: the groups of failed documents."""

    async def failures(self, batch_id: BatchId) -> CountedFailures:
        """Load the groups of the current run, by fingerprint; of an unknown batch there is none."""
        ...


@runtime_checkable
class FindsFailures(Protocol):
    """Implemented by a store of level 2 that finds the documents of a group of failures by an index."""

    async def failed_documents(
        self, batch_id: BatchId, fingerprint: str, *, after: int = -1, limit: int, inputs: bool = True
    ) -> Sequence[DocumentRecord]:
        """Load a page of the failed documents with this `ExecutionRecord.fingerprint`, as `Store.documents` does."""
        ...


@runtime_checkable
class FindsAbandoned(Protocol):
    """Implemented by a store that finds what dead submitters have left; without it, that stays for ever."""

    async def abandoned(self, *, created_before: Micros, limit: int) -> Sequence[BatchRecord]:
        """Load unsealed batches whose loader is gone, the oldest first: nobody can seal them.

        A loader is gone that is no registered worker, nor named by one as the session `before` it.
        """
        ...


@runtime_checkable
class WaitsForClaims(Protocol):
    """Implemented by a store of level 2 that can wait for what one claim would take, and for nothing else.

    Without it, a worker that takes from some batches only waits by `Store.wait`, which ends for the work of others too.
    """

    async def wait_for_claim(self, request: ClaimRequest, *, timeout: Micros) -> None:
        """Sleep until there is something to claim of a batch that the request takes from, or the time is up.

        A hint, like `Store.wait`. Of the request counts what `takes_from` looks at: `workflows`, `batches`, `metadata`,
        `without`.
        """
        ...


@runtime_checkable
class SharedLimits(Protocol):
    """Implemented by a store that keeps limits which all its workers share; without it, no limiter can be shared."""

    async def take(self, name: str, worker: WorkerId, plan: Callable[[SharedLimit], SharedWrites[T]]) -> T:
        """Load a limit, and write what the plan says, in one transaction; return the plan's answer.

        Takes of one name are made one after the other: lock it, load what the last one has written and the slots of
        registered workers, ask the plan, write. Takes of other names, and all other writes, need not wait for it.

        Args:
            name: The limit's; one that nobody has written yet has no data and no slots.
            worker: Who asks.
            plan: Says what to write. Pure and quick, and called on any thread; an error of it is raised, and nothing is
                written.

        Raises:
            WorkerFencedError: The worker is not registered. Nothing is written.
            CommitUnknownError: It may have been written, or not.
        """
        ...


@runtime_checkable
class Store(Protocol):
    """Keeps batches; see the module for the rules. Every method may raise `StoreUnavailableError` or a subclass."""

    @property
    def capabilities(self) -> Capabilities:
        """Declare what the store can do beyond the minimum."""
        ...

    async def open(self) -> None:
        """Connect, and migrate the schema under a lock. Opening nests: each `open` wants its `close`.

        Raises:
            SchemaTooNewError: A newer library has changed the schema in a way that this one must not touch.
            StoreCorruptError: This is no database, or a damaged one.
        """
        ...

    async def close(self) -> None:
        """Release everything: no thread and no connection outlives the last `close`."""
        ...

    # ---- workers -------------------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """Register a worker: its commits are numbered from 1, its lease counts from now.

        Ids are random and never given twice, so that an expired worker's row need not be kept.

        From level 2 on: where it names the session that its process had before (`WorkerRecord.before`), the crashes
        that were counted for that one are taken back in the same transaction. Load the executions that name it
        (`taken_from`), and their batches; write what `plan_return` says.
        """
        ...

    def heart(self, worker: WorkerId) -> Heart:
        """Make what renews this worker's lease; called and used on a thread of its own."""
        ...

    async def workers(self) -> Sequence[WorkerRecord]:
        """Load the workers that are alive: registered, and neither expired nor gone."""
        ...

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """Expire the workers past their lease by the store's clock, or in `dead`, and release their executions.

        An expired worker can never write again. What to write, `plan_release(..., "crash")` says; a store of level 2
        tells it who went with their machine (`blameless=gone_with_machine(...)`).
        """
        ...

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """Deregister a worker: release what it still owns, with no crash counted, and fence its id.

        What to write, `plan_release(..., "shutdown")` says.
        """
        ...

    # ---- loading ---------------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """Insert an unsealed batch. None: it is inserted; a record: that has this id, and nothing was changed."""
        ...

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """Insert one chunk of documents (`new_execution`), all or none of them. The same chunk again changes nothing.

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
        """Commit all facts, and then the claim, in ONE transaction, or nothing.

        1. Fence and number on the worker's own row, in one statement: the worker is alive, and `number` is that of its
           last commit + 1. The same statement renews the lease.
        2. Facts: load what `executions_to_load` names; write what `plan_facts` says. Level 2: a `LateResult` is about
           an execution that the worker does not own; those checkpoints of `checkpoints_to_load` that are there belong
           into `Loaded.recorded`.
        3. Claim: load candidates, first the batches that were served longest ago; write what `plan_claims` says.
           Of each batch with open slots come its executions that are due. Level 1: in the order of (due, position).
           Level 2: in that of `claim_order`, as three ranges, of each as many as the batch's share: those that were
           woken (their time has come: `0 < due <= now`) by (due, position), those that were never started (`due = 0`)
           by position, the isolated ones (`crashes >= ISOLATED_CRASHES`) by (due, position).

        From level 2 on a batch sleeps while nothing of it is due: `free` is 0, and `next_due` says when something will
        be. A claim must take from it once that time has come, must not look at it before, whatever number of batches
        sleep, and passes `Candidates.next_due` where `has_to_know_next_due`. `claimable_slots` stands for `free` then.
        Its deadline (`wake`) ends it all the same. An adapter asks for this by `level=2` in each call of `plan_...`,
        which otherwise leave `free` above 0 while documents wait.

        A store of level 2 that is `CountsFailures` writes `Writes.failures` in the same transaction, also what
        `plan_release` says of them.

        The answer takes over `Writes.set_aside` of both plans, so that the log names these batches.

        The same number again changes nothing, and returns what was committed.

        Raises:
            WorkerFencedError: The worker was expired; nothing was written.
            FactRejectedError: The database refuses the data itself; nothing was written.
            CommitUnknownError: Whether it was written is unknown; the caller repeats the number.
        """
        ...

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """Apply one command, from any process, worker or not: `plan_command` under the lock of the batch's row.

        A store of level 2 loads the answers to the requests that `needs_of_command` names, unless they are older than
        `REQUESTS_ARE_KEPT`, and writes `Writes.requests`.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        ...

    # ---- reading ---------------------------------------------------------------------------------------------

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """Load one batch, sealed or not; None: there is none of this id."""
        ...

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """Load a page of sealed batches, newest first; `after` is the last id of the page before."""
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
        """Load a page of documents in submission order; `after` is the last position of the page before.

        The resolver is none of them. No statuses: all of them. Without `inputs`, those are empty.
        """
        ...

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """Load a page of one execution's checkpoints, in the order of their keys; `after` is the last key before."""
        ...

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """Count the activities that the batch has recorded, failures included. Reads an index; not for hot paths."""
        ...

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """Load the batch's events with a greater sequence number than `after`, in order."""
        ...

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """Sleep until something may have happened, or the time is up. A hint: it may return early for nothing.

        What counts: one of the batches in `seen` has events beyond its number, or a batch of one of the `work`
        workflows (name, version) has something to claim.
        """
        ...


def check_store(store: object) -> None:
    """Refuse what is no store.

    Raises:
        ConfigurationError: It is none.
    """
    # A class has the methods as well: the parentheses are easily forgotten.
    if isinstance(store, type) or not isinstance(store, Store):
        raise ConfigurationError(
            f"{type(store).__name__!r} is no store; give a SQLiteStore, a PostgresStore, a MemoryStore, or an "
            "object with the methods of durable_batches.stores.Store"
        )
