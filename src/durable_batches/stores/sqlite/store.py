"""The SQLite store: one file, no server, several processes.

All writes go through one thread, a transaction a hop, and are durable when they are acknowledged (WAL with
`synchronous=FULL`). Reads have a connection of their own, opened for reading only, so that none delays a commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import ConfigurationError, StoreUnavailableError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionStatus,
    Micros,
    NewDocument,
    SharedLimit,
    SharedWrites,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_clock, check_instance
from durable_batches.stores.open_transactions import OpenTransactions
from durable_batches.stores.protocol import (
    LEVEL,
    BatchQuery,
    Capabilities,
    CountedFailures,
    Expired,
    HostLoading,
    HostTransaction,
    Inspection,
    Loading,
)
from durable_batches.stores.sqlite import claims, host, load, reads, shared, workers
from durable_batches.stores.sqlite.commit import Commits
from durable_batches.stores.sqlite.connection import migrate, transaction
from durable_batches.stores.sqlite.engine import EngineSettings, path_of, settings_of
from durable_batches.stores.sqlite.file import PinnedFile, make
from durable_batches.stores.sqlite.lease import LeaseRenewer
from durable_batches.stores.sqlite.lockouts import LockOuts
from durable_batches.stores.sqlite.reader import Reader, Version
from durable_batches.stores.sqlite.reads import Select
from durable_batches.stores.sqlite.thread import ConnectionThread
from durable_batches.tasks import ReusableLock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SQLiteStore"]

P = ParamSpec("P")
T = TypeVar("T")

_POLL_SECONDS: Final = 0.1
"""How often `wait` polls for commits of other processes (a pragma on an open connection: microseconds)."""


class SQLiteStore:
    """Store batches in a SQLite file, which is created if it does not exist.

    Several processes on one machine may share the file. Do not use a network file system: SQLite's locks do not work
    there. Leases are measured on the machine's boot clock.

    Args:
        path: The file, or an SQLAlchemy engine of the application (`sqlite+aiosqlite`) that leads to it. Of an engine
            the store takes over how long connections wait for a lock, and its pragmas for the memory that they use.
            How commits are made durable is the store's own affair.
        clock: The source of time.

    Raises:
        ConfigurationError: The path, or the engine, names a database without a file (`:memory:`).
    """

    def __init__(self, path: str | PathLike[str] | AsyncEngine, *, clock: Clock | None = None) -> None:
        self._engine: Final = None if isinstance(path, (str, PathLike)) else _engine(path)
        self.path: Final = _file(path)  # absolute, since each of its connections opens it, whenever that is
        check_clock(clock)
        self._settings = EngineSettings()
        self._clock: Final[Clock] = SystemClock() if clock is None else clock
        self._open_transactions: Final = OpenTransactions()
        self._lock_outs: Final = LockOuts(self.path, self._clock, self._open_transactions.batches)
        self._file: Final = PinnedFile(self.path)
        self._commits: Final = Commits(self.path, self._clock, self._lock_outs, self._file)
        self._opened = 0
        self._opening = ReusableLock()
        self._writer: ConnectionThread | None = None
        self._reader: Reader | None = None
        self._migrated = False

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Declare: durable, several processes, the host's transactions."""
        return Capabilities(several_processes=True, durable=True, pushes=False, host_transactions=True, level=LEVEL)

    async def open(self) -> None:
        """See `Store.open`."""
        async with self._opening:
            if not self._migrated:
                # Before the application's engine makes it, as far as it is asked for its settings.
                make(self.path)
                await self._take_over_settings()
                await self._open_to_work()
                self._lock_outs.opened()
                self._migrated = True
            self._opened += 1

    async def attach(self) -> None:
        """See `Attachable.attach`.

        Raises:
            StoreReadOnlyError: Nothing can be written beside the file, where there is a log to be read with it.
        """
        async with self._opening:
            if self._reader is None:
                if self.path.exists():
                    await self._take_over_settings()
                self._reader = await self._open_reader(check=True)
            self._opened += 1

    async def close(self) -> None:
        """See `Store.close`."""
        async with self._opening:
            if self._opened == 0:
                return
            self._opened -= 1
            if self._opened == 0:
                reader, writer = self._reader, self._writer
                self._reader = self._writer = None
                self._migrated = False
                self._file.unpin()
                if reader is not None:
                    await reader.close()
                if writer is not None:
                    await writer.stop()

    async def _take_over_settings(self) -> None:
        if self._engine is not None and self._opened == 0:
            self._settings = await settings_of(self._engine, self.path)
            self._lock_outs.patience_seconds = self._settings.timeout_seconds

    async def _open_to_work(self) -> None:
        """Open both connections, as far as they are not open, and bring the schema up to date."""
        writer = self._writer or ConnectionThread("writes", self.path, self._settings.statements)
        try:
            if self._writer is None:
                await writer.start()
                self._file.pin()
            await writer.run(migrate, self.path, self._boot(), self._lock_outs)
            reader = self._reader or await self._open_reader(check=False)
        except BaseException:
            if self._writer is None:
                self._file.unpin()
                await writer.stop()
            raise
        self._writer, self._reader = writer, reader

    async def _open_reader(self, *, check: bool) -> Reader:
        reader = Reader(self.path, self._settings.statements, self._file)
        try:
            await reader.open()
            if check:
                await reader.check_schema()
        except BaseException:
            await reader.close()
            raise
        return reader

    # ---- workers -------------------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """See `Store.register`."""

        def work(connection: sqlite3.Connection) -> None:
            with self._transaction(connection):
                workers.register(connection, worker, lease, self._boot(), self._clock.now())

        await self._write(work)

    def heart(self, worker: WorkerId) -> LeaseRenewer:
        """See `Store.heart`."""
        return LeaseRenewer(self.path, self._clock, worker, self._lock_outs, self._settings.statements, self._file)

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `Store.workers`."""
        return await self._read(reads.workers())

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """See `Store.expire`."""
        asked = self._boot()

        def work(connection: sqlite3.Connection) -> Expired:
            with self._transaction(connection):
                boot = self._boot()
                # What kept this waiting, a frozen machine for one, may have kept others from renewing their leases.
                gone = workers.expired(connection, boot, dead, max(self._lock_outs.recent(), boot - asked))
                self._commits.forget(gone)
                events: Sequence[EventRecord] = ()
                if gone:
                    blameless = workers.lost_machines(connection, self._boot(), gone)
                    events = workers.release(connection, self._clock.now(), gone, "crash", blameless)
            return Expired(workers=gone, events=events)

        return await self._write(work)

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`."""

        def work(connection: sqlite3.Connection) -> Sequence[EventRecord]:
            with self._transaction(connection):
                self._commits.forget([worker])
                return workers.release(connection, self._clock.now(), [worker], "shutdown")

        return await self._write(work)

    async def take(self, name: str, worker: WorkerId, plan: Callable[[SharedLimit], SharedWrites[T]]) -> T:
        """See `SharedLimits.take`."""

        def work(connection: sqlite3.Connection) -> T:
            with self._transaction(connection):
                return shared.take(connection, self._boot(), self._clock.now(), name, worker, plan)

        return await self._write(work)

    # ---- loading ---------------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""

        def work(connection: sqlite3.Connection) -> BatchRecord | None:
            with self._transaction(connection):
                return load.create(connection, batch)

        return await self._write(work)

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""

        def work(connection: sqlite3.Connection) -> None:
            with self._transaction(connection):
                load.add(connection, self._clock.now(), batch_id, loader, documents)

        await self._write(work)

    # ---- the write paths -------------------------------------------------------------------------------------

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        """See `Store.commit`."""
        return await self._write(self._commits.commit, worker, number, facts, claim)

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`."""

        def work(connection: sqlite3.Connection) -> Committed:
            with self._transaction(connection):
                return load.control(connection, self._clock.now(), batch_id, command)

        return await self._write(work)

    # ---- reading ---------------------------------------------------------------------------------------------

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """See `Store.batch`."""
        found = await self._read(reads.batch(batch_id))
        return None if found is None else found[1]

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """See `Store.batches`."""
        return await self._read(reads.batches(query, after, limit))

    async def abandoned(self, *, created_before: Micros, limit: int) -> Sequence[BatchRecord]:
        """See `FindsAbandoned.abandoned`."""
        return await self._read(reads.abandoned(created_before, limit))

    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = RESOLVER_POSITION,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        """See `Store.documents`."""
        return await self._read(reads.documents(batch_id, statuses, after, limit, inputs=inputs))

    async def failed_documents(
        self, batch_id: BatchId, fingerprint: str, *, after: int = RESOLVER_POSITION, limit: int, inputs: bool = True
    ) -> Sequence[DocumentRecord]:
        """See `FindsFailures.failed_documents`."""
        return await self._read(reads.failed_documents(batch_id, fingerprint, after, limit, inputs=inputs))

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """See `Store.checkpoints`."""
        return await self._read(reads.checkpoints(batch_id, position, after, limit))

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """See `Store.count_checkpoints`."""
        return await self._read(reads.count_checkpoints(batch_id))

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `Store.events`."""
        return await self._read(reads.events(batch_id, after, limit))

    async def failures(self, batch_id: BatchId) -> CountedFailures:
        """See `CountsFailures.failures`."""
        return await self._read(reads.failures(batch_id))

    async def inspect(self, batch_id: BatchId, *, limit: int) -> Inspection:
        """See `Inspectable.inspect`."""
        return Inspection(
            now=self._clock.now(),
            owned=await self._read(reads.owned(batch_id, limit)),
            due=await self._read(reads.due(batch_id, limit)),
            isolated=await self._read(reads.isolated(batch_id, limit)),
            resolver=await self._read(reads.resolver(batch_id)),
            leases=await self._read(reads.leases(self._boot())),
        )

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """See `Store.wait`."""

        async def happened() -> bool:
            moved = await self._read(reads.has_moved(seen)) if seen else False
            return moved or (await self._has_claim(ClaimRequest.of_workflows(work)) if work else False)

        await self._sleep_until(happened, timeout)

    async def wait_for_claim(self, request: ClaimRequest, *, timeout: Micros) -> None:
        """See `WaitsForClaims.wait_for_claim`."""
        await self._sleep_until(lambda: self._has_claim(request), timeout)

    async def _has_claim(self, request: ClaimRequest) -> bool:
        return await self._read(claims.is_claimable(self._clock.now(), request))

    async def _sleep_until(self, happened: Callable[[], Awaitable[bool]], timeout: Micros) -> None:
        """Sleep until it has happened, which is looked at after each change of the file, or the time is up."""
        end = self._clock.boot() + timeout / 1_000_000
        version: Version | None = None
        while True:
            # The file's version changes with every commit through another connection, whosever it is.
            current = await self._open_store().version()
            if current != version and await happened():
                return
            version = current
            left = end - self._clock.boot()
            if left <= 0:
                return
            await self._clock.sleep(min(_POLL_SECONDS, left), housekeeping=True)

    # ---- the host's transactions -----------------------------------------------------------------------------

    def joined(self, connection: HostTransaction) -> AbstractAsyncContextManager[Loading]:
        """See `HostTransactions.joined`.

        `connection` is a connection of aiosqlite, or a connection or a session of SQLAlchemy's asyncio extension (over
        aiosqlite), to the store's own file. What is loaded is rolled back with its transaction, and is seen and run
        only after its commit. Nobody else can write to the file until then.
        """
        return host.joined(self.path, self._clock, self._open_transactions, connection)

    def joined_sync(self, connection: HostTransaction) -> AbstractContextManager[HostLoading]:
        """See `SyncHostTransactions.joined_sync`.

        `connection` is a `sqlite3.Connection`, or a connection or a session of SQLAlchemy, or Django's, over one.
        """
        return host.joined_sync(self.path, self._clock, connection)

    # ---- the connections ---------------------------------------------------------------------------------------

    def _transaction(self, connection: sqlite3.Connection) -> AbstractContextManager[None]:
        return transaction(connection, self.path, self._lock_outs, self._file)

    async def _write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._writer is None:
            await self._open_writer()
        assert self._writer is not None
        return await self._writer.run(work, *args, **kwargs)

    async def _open_writer(self) -> None:
        """Open the connection that writes, where the store is attached: what there is may be written, too."""
        async with self._opening:
            self._open_store()
            if self._writer is None:
                writer = ConnectionThread("writes", self.path, self._settings.statements)
                try:
                    await writer.start(create=False)
                except BaseException:
                    await writer.stop()
                    raise
                self._writer = writer

    async def _read(self, select: Select[T]) -> T:
        return await self._open_store().read(select)

    def _open_store(self) -> Reader:
        if self._reader is None:
            raise StoreUnavailableError(f"{self!r} is not open; use it inside `async with` its orchestrator or worker")
        return self._reader

    def _boot(self) -> Micros:
        return int(self._clock.boot() * 1_000_000)


def _engine(target: object) -> AsyncEngine:
    if not hasattr(target, "sync_engine"):
        check_instance("path", target, (str, PathLike))
    engine: Any = target
    found: AsyncEngine = engine
    return found


def _file(path: str | PathLike[str] | AsyncEngine) -> Path:
    if not isinstance(path, (str, PathLike)):
        return path_of(path)
    if str(path) in ("", ":memory:"):
        raise ConfigurationError("a SQLiteStore needs a file, which its threads open; for none, use MemoryStore()")
    return Path(path).absolute()
