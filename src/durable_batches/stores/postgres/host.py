"""Loading a batch within a transaction of the host application."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import asyncpg

from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.records import BatchRecord, Committed, NewDocument, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.postgres import load
from durable_batches.stores.postgres.connection.database import Connection, Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.server_clock import ServerClock
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.protocol import HostTransaction, Loading

__all__ = ["joined"]


@asynccontextmanager
async def joined(database: Database, server_clock: ServerClock, connection: HostTransaction) -> AsyncGenerator[Loading]:
    """See `HostTransactions.joined`: all of it within a savepoint, so that a failure leaves nothing of it behind."""
    with translated(database.where):
        driver = await _driver_connection(connection)
        if not driver.is_in_transaction():
            raise ConfigurationError(
                "connection= joins a transaction, and this connection is in none: begin one, and commit it afterwards"
            )
        savepoint = driver.transaction()
        await savepoint.start()
    try:
        # What the application's own code raises in here is its own.
        yield _Joined(database, server_clock, driver)
    except BaseException:
        if not driver.is_closed():
            with translated(database.where):
                await savepoint.rollback()
        raise
    with translated(database.where):
        await savepoint.commit()


async def _driver_connection(connection: object) -> Connection:
    if isinstance(connection, asyncpg.Connection):
        return cast("Connection", connection)
    if "sqlalchemy" in sys.modules:
        from durable_batches.stores.postgres.connection.engine import driver_connection_of

        found = await driver_connection_of(connection)
        if isinstance(found, asyncpg.Connection):
            return found
    raise ConfigurationError(
        "connection= takes an AsyncConnection or AsyncSession of SQLAlchemy over asyncpg, or a connection of asyncpg, "
        f"not {type(connection).__name__!r}"
    )


class _Joined:
    """The loading part of a store, on the host's connection and loop."""

    def __init__(self, database: Database, server_clock: ServerClock, connection: Connection) -> None:
        self._database = database
        self._server_clock = server_clock
        self._session = Session(database, connection)

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""
        with load.unless_being_created(batch.batch_id), translated(self._database.where):
            if batch.loader is not None and not await self._is_the_stores(batch.loader):
                raise ConfigurationError(
                    f"connection= does not lead to the store's own database, {self._database.where}: this worker is "
                    "not known where it leads to"
                )
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
