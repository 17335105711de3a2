"""Loading a batch within a transaction of the host application."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import suppress
from typing import Final, TypeAlias, cast

import asyncpg

from durable_batches.blocks import asynccontextmanager, contextmanager
from durable_batches.errors import ConfigurationError, DurableBatchesError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.records import BatchRecord, Committed, NewDocument, WorkerId, WorkerRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.host_connections import (
    driver_connection_of,
    kind_of,
    not_in_transaction,
    sync_driver_connection_of,
)
from durable_batches.stores.postgres import load
from durable_batches.stores.postgres.connection.database import Connection, Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.schema import check_schema
from durable_batches.stores.postgres.connection.server_clock import ServerClock
from durable_batches.stores.postgres.connection.session import Session, session_of_its_own
from durable_batches.stores.postgres.workers import holding_leases
from durable_batches.stores.protocol import HostLoading, HostTransaction, Loading
from durable_batches.tasks import run_without_loop

__all__ = ["ServerIdentity", "joined", "joined_sync"]

_SAVEPOINT: Final = "durable_batches_submission"

_Identity: TypeAlias = tuple[int, int]

_IDENTITY: Final = (
    "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, oid::bigint "
    "FROM pg_database WHERE datname = current_database()"
)
"""The moment when the server was started tells it from all copies of it: staging may be one of production."""


class ServerIdentity:
    """Tells whether a connection leads to the store's own database, where no worker of this process is known there.

    Args:
        database: The store's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: _Identity | None = None

    def check(self, session: Session) -> None:
        """Compare the database of a session that never suspends with the store's, for which that is connected to.

        Raises:
            ConfigurationError: It is another one.
        """
        found = run_without_loop(_identity_of(session))
        if found != self._known:
            # It is not known yet, or the server was restarted.
            self._known = asyncio.run(self._ask())
        if found != self._known:
            raise _elsewhere(self._database)

    async def _ask(self) -> _Identity:
        async with session_of_its_own(self._database) as session:
            return await _identity_of(session)


async def _identity_of(session: Session) -> _Identity:
    row = await session.row(_IDENTITY)
    return row[0], row[1]


@asynccontextmanager
async def joined(database: Database, server_clock: ServerClock, connection: HostTransaction) -> AsyncGenerator[Loading]:
    """See `HostTransactions.joined`: all of it within a savepoint, so that a failure leaves nothing of it behind."""
    with translated(database.where):
        session = _session_on(database, connection, await driver_connection_of(connection))
        await _begin(session)
    try:
        # What the application's own code raises in here is its own.
        yield _Joined(database, server_clock, session)
    except BaseException as error:
        with suppress(DurableBatchesError), translated(database.where):
            await _undo(session, error)
        raise
    with translated(database.where):
        await _keep(session)


@contextmanager
def joined_sync(
    database: Database, server_clock: ServerClock, identity: ServerIdentity, connection: HostTransaction
) -> Generator[HostLoading]:
    """See `SyncHostTransactions.joined_sync`."""
    driver = sync_driver_connection_of(connection)
    if "psycopg" in sys.modules:
        from durable_batches.stores.postgres.psycopg_session import sync_session_on

        session = sync_session_on(database, driver)
    else:
        session = None
    if session is None:
        raise ConfigurationError(
            "connection= takes a connection of psycopg (3), or a Connection or Session of SQLAlchemy, or Django's "
            f"connection, over psycopg, not {kind_of(connection, driver)}"
        )
    run_without_loop(_begin(session))
    try:
        identity.check(session)
        run_without_loop(check_schema(database, session))
        yield _JoinedAlone(database, server_clock, session)
    except BaseException as error:
        with suppress(DurableBatchesError):
            run_without_loop(_undo(session, error))
        raise
    run_without_loop(_keep(session))


def _session_on(database: Database, connection: object, driver: object) -> Session:
    if isinstance(driver, asyncpg.Connection):
        found = cast("Connection", driver)
        if found.is_closed():
            raise ConfigurationError("connection= is closed")
        if not found.is_in_transaction():
            raise not_in_transaction()
        return Session(database, found)
    if "psycopg" in sys.modules:
        from durable_batches.stores.postgres.psycopg_session import async_session_on

        session = async_session_on(database, driver)
        if session is not None:
            return session
    raise ConfigurationError(
        "connection= takes an AsyncConnection or AsyncSession of SQLAlchemy over asyncpg or psycopg, or a connection "
        f"of asyncpg, or an AsyncConnection of psycopg, not {kind_of(connection, driver)}"
    )


async def _begin(session: Session) -> None:
    await session.run(f"SAVEPOINT {_SAVEPOINT}")


async def _keep(session: Session) -> None:
    await session.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")


async def _undo(session: Session, error: BaseException) -> None:
    """Undo what was loaded. Where the host's transaction is gone, too, the error says so."""
    try:
        await session.run(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        await session.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")
    except BaseException:
        error.add_note("the application's transaction cannot go on: begin it anew")
        raise


class _Joined:
    """The loading part of a store, on the host's connection and loop."""

    def __init__(self, database: Database, server_clock: ServerClock, session: Session) -> None:
        self._database = database
        self._server_clock = server_clock
        self._session = session

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""
        with load.unless_being_created(batch.batch_id), translated(self._database.where):
            if batch.loader is not None and not await self._is_the_stores(batch.loader):
                raise _elsewhere(self._database)
            return await load.create(self._session, batch)

    async def _is_the_stores(self, loader: WorkerId) -> bool:
        """Whether the connection's database is the store's: staging and production may have the same names."""
        table = f"{self._session.quoted}.worker"
        if await self._session.value("SELECT to_regclass($1)", table) is None:
            return False
        # A snapshot may be older than the worker.
        found: bool = await self._session.value(
            "SELECT EXISTS (SELECT 1 FROM {s}.worker WHERE worker_id = $1) "
            "OR current_setting('transaction_isolation') <> 'read committed'",
            loader,
        )
        return found

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""
        with translated(self._database.where):
            await load.add(self._session, self._server_clock, batch_id, loader, documents)

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`; others hear of it with the host's commit."""
        with translated(self._database.where):
            committed = await load.control(self._session, self._server_clock, batch_id, command)
            await self._session.value("SELECT pg_notify($1, '')", self._database.channel)
            return committed


class _JoinedAlone(_Joined):
    """The same without a worker of this process, where the database was found to be the store's."""

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `HostLoading.workers`."""
        with translated(self._database.where):
            return await holding_leases(self._session, self._server_clock)

    async def _is_the_stores(self, loader: WorkerId) -> bool:
        return True


def _elsewhere(database: Database) -> ConfigurationError:
    return ConfigurationError(
        f"connection= does not lead to the store's own database, {database.where}, but to another one, or to a server "
        "that is not the same"
    )
