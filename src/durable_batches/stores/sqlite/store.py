"""The SQLite store: one file, no server, several processes.

All writes go through one thread, a transaction a hop, and are durable when they are acknowledged (WAL with
`synchronous=FULL`). Reads have a thread and a connection of their own, so that none delays a commit.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import (
    BatchNotFoundError,
    ConfigurationError,
    DuplicateDocumentError,
    StoreUnavailableError,
    WorkerFencedError,
)
from durable_batches.lifecycle.facts import Command, Fact
from durable_batches.lifecycle.planning import (
    executions_to_load,
    new_execution,
    plan_claims,
    plan_command,
    plan_facts,
    plan_release,
)
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    Claim,
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
from durable_batches.stores.columns import (
    execution_key,
    refusals_as_text,
    refusals_of,
    worker_of,
    workflows_as_text,
)
from durable_batches.stores.ownership import Owned
from durable_batches.stores.protocol import BatchQuery, Capabilities, Expired
from durable_batches.stores.sqlite import queries
from durable_batches.stores.sqlite.connection import connect, migrate, transaction, translated
from durable_batches.tasks import ReusableLock, completed

__all__ = ["SQLiteStore"]

P = ParamSpec("P")
T = TypeVar("T")

_POLL_SECONDS: Final = 0.1
"""How often `wait` looks for commits of other processes (a pragma on an open connection: microseconds)."""


class SQLiteStore:
    """Batches in a SQLite file, which is made where there is none.

    Several processes on one machine may share the file; a network file system must not be used, since SQLite's
    locks do not hold there. Leases are measured on the machine's boot clock.

    Args:
        path: The file.
        clock: The time it goes by.

    Raises:
        ConfigurationError: The path is that of a database without a file (`:memory:`).
    """

    def __init__(self, path: str | PathLike[str], *, clock: Clock | None = None) -> None:
        if str(path) in ("", ":memory:"):
            raise ConfigurationError("a SQLiteStore needs a file, which its threads open; for none, use MemoryStore()")
        self.path: Final = Path(path).absolute()  # since each of its connections opens it, whenever that is
        self._clock: Final[Clock] = clock or SystemClock()
        self._owned: dict[WorkerId, Owned] = {}
        self._opened = 0
        self._opening = ReusableLock()
        self._writer: _Thread | None = None
        self._reader: _Thread | None = None

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Durable, several processes."""
        return Capabilities(several_processes=True, durable=True, pushes=False)

    async def open(self) -> None:
        """See `Store.open`."""
        async with self._opening:
            if self._opened == 0:
                writer, reader = _Thread("writes", self.path), _Thread("reads", self.path)
                try:
                    await writer.start(reading=False)
                    await writer.run(migrate, self.path)
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
                connection.execute(
                    "INSERT INTO worker (worker_id, boot_id, pid_namespace, pid, started, workflows, lease, "
                    "lease_until, commits, refused) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, '[]')",
                    (
                        worker.worker_id,
                        worker.boot_id,
                        worker.pid_namespace,
                        worker.pid,
                        worker.started,
                        workflows_as_text(worker.workflows),
                        lease,
                        self._boot() + lease,
                    ),
                )

        await self._write(work)

    def heart(self, worker: WorkerId) -> _SQLiteHeart:
        """See `Store.heart`."""
        return _SQLiteHeart(self.path, self._clock, worker)

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `Store.workers`."""

        def work(connection: sqlite3.Connection) -> list[WorkerRecord]:
            found = connection.execute("SELECT worker_id, boot_id, pid_namespace, pid, started, workflows FROM worker")
            return [worker_of(row) for row in found]

        return await self._read(work)

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """See `Store.expire`. A lease that begins in the future was given on a clock from before a reboot."""

        def work(connection: sqlite3.Connection) -> Expired:
            with transaction(connection, self.path):
                gone = [
                    WorkerId(worker_id)
                    for (worker_id,) in connection.execute(
                        "SELECT worker_id FROM worker WHERE lease_until <= ?1 OR lease_until > ?1 + lease "
                        "OR worker_id IN (SELECT value FROM json_each(?2))",
                        (self._boot(), json.dumps(sorted(dead))),
                    ).fetchall()
                ]
                events = self._free(connection, gone, crashed=True) if gone else ()
            return Expired(workers=gone, events=events)

        return await self._write(work)

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`."""

        def work(connection: sqlite3.Connection) -> Sequence[EventRecord]:
            with transaction(connection, self.path):
                return self._free(connection, [worker], crashed=False)

        return await self._write(work)

    def _free(
        self, connection: sqlite3.Connection, gone: Sequence[WorkerId], *, crashed: bool
    ) -> Sequence[EventRecord]:
        # Its row's absence is what fences a worker.
        for worker in gone:
            self._owned.pop(worker, None)
        connection.execute(
            "DELETE FROM worker WHERE worker_id IN (SELECT value FROM json_each(?))",
            (json.dumps(gone),),
        )
        keys, loaded = queries.load_executions(connection, self._clock.now(), queries.owned_by(connection, gone))
        writes = plan_release(loaded, gone, "crash" if crashed else "shutdown")
        queries.apply(connection, keys, writes)
        return writes.events

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
                known = queries.document_ids(connection, key, [document.position for document in documents])
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
        return await self._write(self._commit, worker, number, facts, claim)

    def _commit(
        self,
        connection: sqlite3.Connection,
        worker: WorkerId,
        number: int,
        facts: Sequence[Fact],
        claim: ClaimRequest | None,
    ) -> Committed:
        owned = self._owned.pop(worker, None) or Owned()
        known = owned.as_of(number - 1)
        with transaction(connection, self.path):
            if not self._fence(connection, worker, number):
                return self._committed_before(connection, worker, number, claim)
            now = self._clock.now()
            committed = Committed()
            if facts:
                keys, loaded = queries.load_executions(connection, now, executions_to_load(facts), known)
                writes = plan_facts(loaded, worker, facts)
                queries.apply(connection, keys, writes)
                owned.note(worker, loaded.executions, writes)
                committed = Committed(events=writes.events, refused=writes.refused)
                if writes.refused:
                    connection.execute(
                        "UPDATE worker SET refused = ? WHERE worker_id = ?",
                        (refusals_as_text(number, writes.refused), worker),
                    )
            if claim is not None:
                committed = self._claim(connection, worker, number, claim, now, committed)
                owned.claimed(committed.claims)
        owned.number = number
        self._owned[worker] = owned
        return committed

    def _fence(self, connection: sqlite3.Connection, worker: WorkerId, number: int) -> bool:
        """Number the commit and renew the lease, if the worker is alive; False: this number was committed."""
        numbered = connection.execute(
            "UPDATE worker SET commits = ?, lease_until = ? + lease WHERE worker_id = ? AND commits = ?",
            (number, self._boot(), worker, number - 1),
        )
        if numbered.rowcount == 1:
            return True
        row = connection.execute("SELECT commits FROM worker WHERE worker_id = ?", (worker,)).fetchone()
        if row is None or row[0] != number:
            raise WorkerFencedError(worker)
        return False

    def _committed_before(
        self, connection: sqlite3.Connection, worker: WorkerId, number: int, claim: ClaimRequest | None
    ) -> Committed:
        """The answer to a number that was committed already: its refusals, and the claims it made."""
        (text,) = connection.execute("SELECT refused FROM worker WHERE worker_id = ?", (worker,)).fetchone()
        refused = refusals_of(text, number)
        if claim is None:
            return Committed(refused=refused)
        owned = queries.claimed_by(connection, worker, number)
        keys, loaded = queries.load_executions(connection, self._clock.now(), owned)
        executions = [loaded.executions[key] for key in owned]
        claims = queries.load_claims(connection, keys, loaded.batches, executions, claim)
        return Committed(refused=refused, claims=claims, retry_in=0)

    def _claim(
        self,
        connection: sqlite3.Connection,
        worker: WorkerId,
        number: int,
        request: ClaimRequest,
        now: Micros,
        committed: Committed,
    ) -> Committed:
        keys, candidates = queries.load_candidates(connection, now, request)
        events = committed.events
        claims: Sequence[Claim] = ()
        if candidates:
            writes = plan_claims(now, worker, request, candidates, now)
            queries.apply(connection, keys, writes, claimed_by_commit=number)
            events = [*events, *writes.events]
            batches = {record.batch_id: record for record in writes.batches}
            claims = queries.load_claims(connection, keys, batches, writes.executions, request)
        retry_in = queries.next_due(connection, now, request)
        return committed._replace(events=events, claims=claims, retry_in=retry_in)

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
            return bool(work) and queries.is_claimable(connection, self._clock.now(), work)

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


class _Thread:
    """One thread with one connection."""

    def __init__(self, purpose: str, path: Path) -> None:
        self._path = path
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = Thread(target=_run, args=(self._work,), name=f"durable-batches-{purpose}", daemon=True)
        self._thread.start()
        self._connection: sqlite3.Connection | None = None

    async def start(self, *, reading: bool) -> None:
        def call() -> None:
            # On the thread, so that it is there to be closed when the caller was cancelled meanwhile.
            self._connection = connect(self._path, reading=reading)

        await self._hop(call)

    async def run(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        connection = self._connection
        if connection is None:
            raise StoreUnavailableError(f"the database {self._path} was closed while it was in use")

        def call() -> T:
            with translated(self._path):
                return work(connection, *args, **kwargs)

        return await self._hop(call)

    async def stop(self) -> None:
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                await self._hop(connection.close)
        finally:
            # What it had to do is done: it ends at once, and has ended when this returns.
            self._work.put(None)
            self._thread.join()

    async def _hop(self, call: Callable[[], T]) -> T:
        """A hop to the thread and back. Once begun it is seen through: a cancelled caller waits for its end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._work.put((call, done, loop))
        return await completed(done)


_Work: TypeAlias = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


def _run(work: SimpleQueue[_Work | None]) -> None:
    while (item := work.get()) is not None:
        call, done, loop = item
        try:
            result, error = call(), None
        except BaseException as raised:  # noqa: BLE001  (the caller's)
            result, error = None, raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_settle, done, result, error)
        del item, call, done, loop, result, error


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


class _SQLiteHeart:
    def __init__(self, path: Path, clock: Clock, worker: WorkerId) -> None:
        self._path = path
        self._clock = clock
        self._worker = worker
        self._connection: sqlite3.Connection | None = None

    def beat(self) -> bool:
        if self._connection is None:
            self._connection = connect(self._path)
        with transaction(self._connection, self._path):
            renewed = self._connection.execute(
                "UPDATE worker SET lease_until = ? + lease WHERE worker_id = ?",
                (int(self._clock.boot() * 1_000_000), self._worker),
            )
            return renewed.rowcount == 1

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _data_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def _repeated(ids: Iterable[str]) -> str | None:
    return next((document_id for document_id, count in Counter(ids).items() if count > 1), None)
