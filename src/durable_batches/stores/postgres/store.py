"""The Postgres store: several processes, on several machines, share the work.

Whatever it does, it does on a thread, an event loop and connections of its own: user code that blocks the host's
loop neither holds a row's lock nor costs the lease. All writes are durable when they are acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError, StoreLockedError, StoreUnavailableError
from durable_batches.lifecycle.commands import Command, Discard
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
from durable_batches.options import check_clock, check_duration
from durable_batches.stores.postgres import host, load, queries, shared
from durable_batches.stores.postgres.commit.commit import Commits
from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.pool import Pool
from durable_batches.stores.postgres.connection.schema import check_schema, migrate, scripts_for
from durable_batches.stores.postgres.connection.server import check_server
from durable_batches.stores.postgres.connection.server_clock import ServerClock
from durable_batches.stores.postgres.connection.session import Session, session_of_its_own, transaction
from durable_batches.stores.postgres.connection.stuck import StuckSessions
from durable_batches.stores.postgres.connection.thread import LoopThread
from durable_batches.stores.postgres.connection.timeouts import Timeouts
from durable_batches.stores.postgres.inspect import inspect
from durable_batches.stores.postgres.lease import LeaseRenewer
from durable_batches.stores.postgres.notifications import Notifications
from durable_batches.stores.postgres.workers import Workers
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
from durable_batches.tasks import ReusableLock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PostgresStore"]

P = ParamSpec("P")
T = TypeVar("T")

_WRITERS: Final = 4
_READERS: Final = 3
"""Connections at most, for each; beside them one that listens, and one for the lease of each worker."""

_REMOVAL_SECONDS: Final = 3600.0
"""How long the removal of a batch may take, which may be a large one."""

_STATEMENT_TIMEOUT: Final = timedelta(seconds=15)
_LOCK_TIMEOUT: Final = timedelta(seconds=3)


class PostgresStore:
    """Store batches in a schema of a Postgres database (13 or newer), which is created if it does not exist.

    Any number of processes on any number of machines may share it. Leases are measured on the server's clock.

    Args:
        url: A DSN (`postgresql://user:password@host:5432/database`), or an SQLAlchemy engine of the application
            (`postgresql+asyncpg`): then the store connects as the engine does. Either way it opens connections of its
            own, about eight per process. They need sessions: a pooler in transaction mode is refused.
        schema: The schema for the tables. Several stores may share a database, each with its own schema.
        statement_timeout: The time that the server may take for one statement, and about how long the store waits
            for a server that does not answer.
        lock_timeout: How long a write waits for rows that another session has locked.
        clock: The source of time; by default the server's. For simulations.

    Raises:
        ConfigurationError: The url or the schema is invalid, or a timeout is not positive.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self,
        url: str | AsyncEngine,
        *,
        schema: str = "durable_batches",
        statement_timeout: timedelta = _STATEMENT_TIMEOUT,
        lock_timeout: timedelta = _LOCK_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        check_clock(clock)
        check_duration("statement_timeout", statement_timeout)
        check_duration("lock_timeout", lock_timeout)
        if statement_timeout <= timedelta(0) or lock_timeout <= timedelta(0):
            raise ConfigurationError("statement_timeout and lock_timeout must be positive")
        self._database: Final = Database(url, schema, statement_timeout.total_seconds(), lock_timeout.total_seconds())
        self._clock: Final = clock
        self._server_clock: Final = ServerClock(clock)
        self._identity: Final = host.ServerIdentity(self._database)
        self._timeouts: Final = Timeouts(self._database)
        self._commits: Final = Commits(self._database, self._server_clock, self._timeouts, changed=self._changed)
        self._workers: Final = Workers(
            self._database, self._server_clock, self._timeouts, gone=self._commits.forget, changed=self._changed
        )
        self._opened = 0
        self._opening = ReusableLock()
        self._migrated = False
        self._running: _Running | None = None

    def __repr__(self) -> str:
        return f"PostgresStore({self._database.where!r}, schema={self._database.schema!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Declare: durable, several processes, pushes, the host's transactions."""
        return Capabilities(several_processes=True, durable=True, pushes=True, host_transactions=True, level=LEVEL)

    async def open(self) -> None:
        """See `Store.open`.

        Raises:
            ConfigurationError: There is a pooler in transaction mode before the server.
            StoreAccessError: The server refuses the login, or the role may not make the schema.
            StoreReadOnlyError: The server is a replica.
        """
        async with self._opening:
            if self._running is None:
                await self._start(migrates=True)
            elif not self._migrated:
                await self._running.thread.run(self._running.migrate())
            self._migrated = True
            self._opened += 1

    async def attach(self) -> None:
        """See `Attachable.attach`. The role needs `USAGE` of the schema, and `SELECT` on its tables.

        The server may be a replica (a hot standby), which may be behind.

        Raises:
            ConfigurationError: There is a pooler in transaction mode before the server.
            StoreAccessError: The server refuses the login, or the role may not read.
        """
        async with self._opening:
            if self._running is None:
                await self._start(migrates=False)
            self._opened += 1

    async def _start(self, *, migrates: bool) -> None:
        running = _Running(self._database, self._server_clock, takes_replicas=not migrates)
        try:
            await running.thread.run(running.start(migrates=migrates))
        except BaseException:
            # It may have been started all the same: a caller that is cancelled waits for the start's end.
            await running.stop()
            raise
        self._running = running

    async def close(self) -> None:
        """See `Store.close`."""
        async with self._opening:
            if self._opened == 0:
                return
            self._opened -= 1
            if self._opened == 0 and self._running is not None:
                running, self._running = self._running, None
                self._migrated = False
                await running.stop()

    def joined(self, connection: HostTransaction) -> AbstractAsyncContextManager[Loading]:
        """See `HostTransactions.joined`.

        `connection` is a connection or a session of SQLAlchemy's asyncio extension (over asyncpg or psycopg), or a
        connection of one of these drivers, in a transaction. What is loaded is rolled back with it, and is seen and
        run only after its commit.
        """
        return host.joined(self._database, self._server_clock, connection)

    def joined_sync(self, connection: HostTransaction) -> AbstractContextManager[HostLoading]:
        """See `SyncHostTransactions.joined_sync`.

        `connection` is a connection of psycopg, or a connection or a session of SQLAlchemy, or Django's, over one. To
        make sure that it leads to the store's own database, that is connected to, once a process.
        """
        return host.joined_sync(self._database, self._server_clock, self._identity, connection)

    # ---- workers -------------------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """See `Store.register`."""
        self._timeouts.register(worker.worker_id, lease)
        await self._write(self._workers.register, worker, lease)

    def heart(self, worker: WorkerId) -> LeaseRenewer:
        """See `Store.heart`."""
        seconds = self._timeouts.longest_renewal_seconds(worker)
        return LeaseRenewer(self._open_store().thread, self._database, self._server_clock, worker, seconds)

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `Store.workers`."""
        return await self._read(self._workers.alive)

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """See `Store.expire`."""
        return await self._write(self._workers.expire, dead, self._workers.asks())

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`."""
        try:
            return await self._write(self._workers.leave, worker)
        finally:
            self._timeouts.deregister(worker)

    async def take(self, name: str, worker: WorkerId, plan: Callable[[SharedLimit], SharedWrites[T]]) -> T:
        """See `SharedLimits.take`.

        Raises:
            StoreLockedError: Others have kept the limit locked; nothing was written.
        """

        async def work(session: Session) -> T:
            async with transaction(session, self._database.where, self._timeouts.begin(session)):
                return await shared.take(session, self._server_clock, name, worker, plan)

        return await self._write(work)

    # ---- loading ---------------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""

        async def work(session: Session) -> BatchRecord | None:
            with load.unless_being_created(batch.batch_id):
                async with transaction(session, self._database.where, self._timeouts.begin(session)):
                    return await load.create(session, batch)

        return await self._write(work)

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""

        async def work(session: Session) -> None:
            async with transaction(session, self._database.where, self._timeouts.begin(session)):
                await load.add(session, self._server_clock, batch_id, loader, documents)

        await self._write(work)

    # ---- the write paths -------------------------------------------------------------------------------------

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        """See `Store.commit`.

        Raises:
            StoreLockedError: Another session has locked rows that the facts are about; nothing was written.
        """
        return await self._write(self._commits.commit, worker, number, facts, claim)

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`.

        Raises:
            StoreLockedError: Another session has locked the batch; nothing was written.
        """

        async def work(session: Session) -> Committed:
            begin = self._timeouts.begin(session)
            if isinstance(command, Discard):
                # To remove a large batch takes its time.
                begin += "; SET LOCAL statement_timeout = 0"
                session = Session(self._database, session.connection, _REMOVAL_SECONDS)
            try:
                async with transaction(session, self._database.where, begin):
                    committed = await load.control(session, self._server_clock, batch_id, command)
            except StoreLockedError as error:
                raise StoreLockedError(self._database.where, [batch_id]) from error
            self._changed(committed.events)
            return committed

        return await self._write(work)

    # ---- reading ---------------------------------------------------------------------------------------------

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """See `Store.batch`."""
        found = await self._read(queries.load_batch, batch_id)
        return None if found is None else found[1]

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """See `Store.batches`."""
        return await self._read(queries.load_batches, query, after, limit)

    async def abandoned(self, *, created_before: Micros, limit: int) -> Sequence[BatchRecord]:
        """See `FindsAbandoned.abandoned`."""
        return await self._read(queries.load_abandoned, created_before, limit)

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

    async def failed_documents(
        self, batch_id: BatchId, fingerprint: str, *, after: int = RESOLVER_POSITION, limit: int, inputs: bool = True
    ) -> Sequence[DocumentRecord]:
        """See `FindsFailures.failed_documents`."""
        return await self._read(queries.load_failed_documents, batch_id, fingerprint, after, limit, inputs)

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """See `Store.checkpoints`."""
        return await self._read(queries.load_checkpoints, batch_id, position, after, limit)

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """See `Store.count_checkpoints`."""
        return await self._read(queries.count_checkpoints, batch_id)

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `Store.events`."""
        return await self._read(queries.load_events, batch_id, after, limit)

    async def failures(self, batch_id: BatchId) -> CountedFailures:
        """See `CountsFailures.failures`."""
        return await self._read(queries.load_failures, batch_id)

    async def inspect(self, batch_id: BatchId, *, limit: int) -> Inspection:
        """See `Inspectable.inspect`."""
        return await self._read(inspect, self._server_clock, batch_id, limit)

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """See `Store.wait`."""
        await self._sleep_until_notified(dict(seen), ClaimRequest.of_workflows(work), timeout)

    async def wait_for_claim(self, request: ClaimRequest, *, timeout: Micros) -> None:
        """See `WaitsForClaims.wait_for_claim`."""
        await self._sleep_until_notified({}, request, timeout)

    async def _sleep_until_notified(self, seen: Mapping[BatchId, int], request: ClaimRequest, timeout: Micros) -> None:
        running = self._open_store()
        woken = asyncio.wrap_future(running.thread.start(running.notifications.wait(seen, request)))
        time_is_up = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not time_is_up.done():
                time_is_up.set_result(None)

        if self._clock is None:
            timer: Any = asyncio.get_running_loop().call_later(timeout / 1_000_000, end)
        else:
            timer = self._clock.call_later(timeout / 1_000_000, end, housekeeping=True)
        try:
            await asyncio.wait([woken, time_is_up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            woken.cancel()

    # ---- its own loop ------------------------------------------------------------------------------------------

    def _open_store(self) -> _Running:
        if self._running is None:
            raise StoreUnavailableError(f"{self!r} is not open; use it inside `async with` its orchestrator or worker")
        return self._running

    async def _write(
        self, work: Callable[Concatenate[Session, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        running = self._open_store()

        async def write() -> T:
            try:
                return await running.writers.run(work, *args, **kwargs)
            except StoreUnavailableError:
                # Which may be for the locks of a session whose client is gone.
                running.stuck.look()
                raise

        return await running.thread.run(write())

    async def _read(
        self, work: Callable[Concatenate[Session, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        running = self._open_store()
        return await running.thread.run(running.readers.run(work, *args, **kwargs))

    def _changed(self, events: Sequence[EventRecord]) -> None:
        if self._running is not None:
            self._running.notifications.changed(events)


class _Running:
    """An open store's thread, connections and notifications."""

    def __init__(self, database: Database, server_clock: ServerClock, *, takes_replicas: bool) -> None:
        self._database = database
        self.thread = LoopThread("durable-batches-postgres", database.where)
        self.writers = Pool(database, _WRITERS, by_key=True, read_only=False)
        self.stuck = StuckSessions(database, self.writers)
        self.readers = Pool(database, _READERS, by_key=False, read_only=True, takes_replicas=takes_replicas)
        self.notifications = Notifications(database, server_clock, takes_replicas=takes_replicas)

    async def start(self, *, migrates: bool) -> None:
        """Open two connections, and check the server and the schema with them; on the store's loop."""
        reader = await self.readers.open()
        second = await (self.writers if migrates else self.readers).open()
        await check_server(self._database, reader, second)
        if not migrates:
            await check_schema(self._database, reader)
        elif await scripts_for(self._database, reader):
            await self.migrate()
        self.notifications.start()

    async def migrate(self) -> None:
        """Bring the schema up to date, on a connection of its own, which keeps a lock until it is closed."""
        async with session_of_its_own(self._database) as session:
            await migrate(self._database, session)
        # A store that writes has to read what is there by now.
        self.readers.refuse_replicas()
        self.notifications.refuse_replicas()

    async def stop(self) -> None:
        """Close all connections, and end the thread; on the host's loop."""
        try:
            await self.thread.run(self._close())
        finally:
            await self.thread.stop()

    async def _close(self) -> None:
        await self.notifications.stop()
        await self.writers.close()
        await self.readers.close()
