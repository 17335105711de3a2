"""The SQLite store: one file, no server, several processes.

All writes go through one thread, a transaction a hop, and are durable when they are acknowledged (WAL with
`synchronous=FULL`). Reads have a thread and a connection of their own, so that none delays a commit.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import (
    BatchNotFoundError,
    ConfigurationError,
    DuplicateDocumentError,
    StoreUnavailableError,
)
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.planning import new_execution, plan_command
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
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_instance
from durable_batches.stores.protocol import BatchQuery, Capabilities, Expired
from durable_batches.stores.rows import execution_key
from durable_batches.stores.sqlite import claims, queries, workers
from durable_batches.stores.sqlite.commit import Commits
from durable_batches.stores.sqlite.connection import migrate, transaction
from durable_batches.stores.sqlite.lease import LeaseRenewer
from durable_batches.stores.sqlite.thread import ConnectionThread
from durable_batches.tasks import ReusableLock

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
        path: The file.
        clock: The source of time.

    Raises:
        ConfigurationError: The path names a database without a file (`:memory:`).
    """

    def __init__(self, path: str | PathLike[str], *, clock: Clock | None = None) -> None:
        check_instance("path", path, (str, PathLike))
        if str(path) in ("", ":memory:"):
            raise ConfigurationError("a SQLiteStore needs a file, which its threads open; for none, use MemoryStore()")
        self.path: Final = Path(path).absolute()  # since each of its connections opens it, whenever that is
        self._clock: Final[Clock] = clock or SystemClock()
        self._commits: Final = Commits(self.path, self._clock)
        self._opened = 0
        self._opening = ReusableLock()
        self._writer: ConnectionThread | None = None
        self._reader: ConnectionThread | None = None

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Declare: durable, several processes."""
        return Capabilities(several_processes=True, durable=True, pushes=False, level=2)

    async def open(self) -> None:
        """See `Store.open`."""
        async with self._opening:
            if self._opened == 0:
                writer = ConnectionThread("writes", self.path)
                reader = ConnectionThread("reads", self.path)
                try:
                    await writer.start(reading=False)
                    await writer.run(migrate, self.path, self._boot())
                    await reader.start(reading=True)
                except BaseException:
                    await reader.stop()
                    await writer.stop()
                    raise
                self._writer, self._reader = writer, reader
            self._opened += 1

    async def close(self) -> None:
        """See `Store.close`."""
        async with self._opening:
            if self._opened == 0:
                return
            self._opened -= 1
            if self._opened == 0:
                for thread in (self._reader, self._writer):
                    if thread is not None:
                        await thread.stop()
                self._reader = self._writer = None

    # ---- workers -------------------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """See `Store.register`."""

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection, self.path):
                workers.register(connection, worker, lease, self._boot())

        await self._write(work)

    def heart(self, worker: WorkerId) -> LeaseRenewer:
        """See `Store.heart`."""
        return LeaseRenewer(self.path, self._clock, worker)

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `Store.workers`."""
        return await self._read(workers.load_workers)

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """See `Store.expire`."""

        def work(connection: sqlite3.Connection) -> Expired:
            with transaction(connection, self.path):
                gone = workers.expired(connection, self._boot(), dead)
                self._commits.forget(gone)
                events = workers.release(connection, self._clock.now(), gone, "crash") if gone else ()
            return Expired(workers=gone, events=events)

        return await self._write(work)

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`."""

        def work(connection: sqlite3.Connection) -> Sequence[EventRecord]:
            with transaction(connection, self.path):
                self._commits.forget([worker])
                return workers.release(connection, self._clock.now(), [worker], "shutdown")

        return await self._write(work)

    # ---- loading ---------------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""

        def work(connection: sqlite3.Connection) -> BatchRecord | None:
            with transaction(connection, self.path):
                existing = queries.load_batch(connection, batch.batch_id)
                if existing is not None:
                    return existing[1]
                queries.insert_batch(connection, batch)
                return None

        return await self._write(work)

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection, self.path):
                found = queries.load_batch(connection, batch_id)
                if found is None or found[1].loader != loader:
                    raise BatchNotFoundError(batch_id)
                key = found[0]
                known = queries.load_document_ids(connection, key, [document.position for document in documents])
                fresh = [document for document in documents if known.get(document.position) != document.document_id]
                duplicate = _repeated(document.document_id for document in fresh) or queries.taken_document_id(
                    connection, key, [document.document_id for document in fresh]
                )
                if duplicate is not None:
                    raise DuplicateDocumentError(batch_id, duplicate)
                now = self._clock.now()
                queries.insert_executions(
                    connection,
                    key,
                    ((new_execution(batch_id, document, now), document.input) for document in fresh),
                )

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
            with transaction(connection, self.path):
                keys, loaded = queries.load_executions(connection, self._clock.now(), [(batch_id, RESOLVER_POSITION)])
                if batch_id not in loaded.batches:
                    raise BatchNotFoundError(batch_id)
                writes = plan_command(loaded, batch_id, command)
                queries.apply(connection, keys, writes)
                return Committed(events=writes.events, applied=writes.applied)

        return await self._write(work)

    # ---- reading ---------------------------------------------------------------------------------------------

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """See `Store.batch`."""
        found = await self._read(queries.load_batch, batch_id)
        return None if found is None else found[1]

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """See `Store.batches`."""
        return await self._read(queries.load_batches, query, after, limit)

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
        return await self._read(queries.load_documents, batch_id, statuses, after, limit, inputs)

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """See `Store.checkpoints`."""

        def work(connection: sqlite3.Connection) -> list[CheckpointRecord]:
            found = queries.load_batch(connection, batch_id)
            if found is None:
                return []
            return queries.load_checkpoints(connection, execution_key(found[0], position), after, limit)

        return await self._read(work)

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """See `Store.count_checkpoints`."""

        def work(connection: sqlite3.Connection) -> int:
            found = queries.load_batch(connection, batch_id)
            return 0 if found is None else queries.count_checkpoints(connection, found[0])

        return await self._read(work)

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `Store.events`."""
        return await self._read(queries.load_events, batch_id, after, limit)

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """See `Store.wait`."""

        def look(connection: sqlite3.Connection) -> bool:
            if seen and queries.has_moved(connection, seen):
                return True
            return bool(work) and claims.is_claimable(connection, self._clock.now(), work)

        end = self._clock.boot() + timeout / 1_000_000
        version = -1
        while True:
            # The file's version changes with every commit through another connection, whosever it is.
            current = await self._read(_data_version)
            if current != version and await self._read(look):
                return
            version = current
            left = end - self._clock.boot()
            if left <= 0:
                return
            await self._clock.sleep(min(_POLL_SECONDS, left), housekeeping=True)

    # ---- the threads -------------------------------------------------------------------------------------------

    async def _write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._writer is None:
            raise StoreUnavailableError(f"{self!r} is not open; use it inside `async with` its orchestrator or worker")
        return await self._writer.run(work, *args, **kwargs)

    async def _read(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._reader is None:
            raise StoreUnavailableError(f"{self!r} is not open; use it inside `async with` its orchestrator or worker")
        return await self._reader.run(work, *args, **kwargs)

    def _boot(self) -> Micros:
        return int(self._clock.boot() * 1_000_000)


def _data_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def _repeated(ids: Iterable[str]) -> str | None:
    return next((document_id for document_id, count in Counter(ids).items() if count > 1), None)
