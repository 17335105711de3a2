"""Loading a batch within a transaction of the host application, on its own connection to the store's file.

That connection has SQLite's write lock from then on until the application ends the transaction: nobody else can write.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, Literal, ParamSpec, Protocol, TypeVar

import aiosqlite

from durable_batches.blocks import asynccontextmanager, contextmanager
from durable_batches.clock import Clock
from durable_batches.errors import (
    ConfigurationError,
    DurableBatchesError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.records import BatchRecord, Committed, NewDocument, WorkerId, WorkerRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.host_connections import (
    driver_connection_of,
    kind_of,
    not_in_transaction,
    sync_driver_connection_of,
)
from durable_batches.stores.migrations import check_schema
from durable_batches.stores.open_transactions import OpenTransactions
from durable_batches.stores.protocol import HostLoading, HostTransaction
from durable_batches.stores.sqlite import load, workers
from durable_batches.stores.sqlite.connection import is_busy, translated
from durable_batches.tasks import completed

__all__ = ["joined", "joined_sync"]

P = ParamSpec("P")
T = TypeVar("T")

_SAVEPOINT: Final = "durable_batches_submission"
_LEGACY_TRANSACTION_CONTROL: Final = -1
"""What `sqlite3.Connection.autocommit` is by default; older Pythons know nothing else."""


class _Run(Protocol):
    """Runs work on the thread that the host's connection belongs to."""

    def __call__(self, work: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]: ...


@asynccontextmanager
async def joined(
    path: Path, clock: Clock, open_transactions: OpenTransactions, connection: HostTransaction
) -> AsyncGenerator[HostLoading]:
    """See `HostTransactions.joined`: all of it within a savepoint, so that a failure leaves nothing of it behind."""
    driver = await driver_connection_of(connection)
    if not isinstance(driver, aiosqlite.Connection):
        raise ConfigurationError(
            "connection= takes a connection of aiosqlite, or an AsyncConnection or AsyncSession of SQLAlchemy over "
            f"aiosqlite, not {kind_of(connection, driver)}"
        )
    found = driver

    async def run(work: Callable[[sqlite3.Connection], T]) -> T:
        # Its public methods run statements, one at a time. What was begun is seen through, so that it can be undone.
        return await completed(asyncio.ensure_future(_on_its_thread(found, work)))

    host = _Host(path, clock, run)
    try:
        await run(host.begin)
        # What the application's own code raises in here is its own.
        yield host
    except BaseException as error:
        with suppress(DurableBatchesError):
            await run(partial(host.undo, error))
        raise
    if await run(host.keep) and host.batch_id is not None:
        open_transactions.add(host.batch_id, found)


async def _on_its_thread(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    inside: Any = connection
    try:
        raw: sqlite3.Connection = inside._conn
    except ValueError:
        raise _closed() from None
    result: T = await inside._execute(work, raw)
    return result


@contextmanager
def joined_sync(path: Path, clock: Clock, connection: HostTransaction) -> Generator[HostLoading]:
    """See `SyncHostTransactions.joined_sync`."""
    driver = sync_driver_connection_of(connection)
    if not isinstance(driver, sqlite3.Connection):
        raise ConfigurationError(
            "connection= takes a connection of sqlite3, or a Connection or Session of SQLAlchemy, or Django's "
            f"connection, over sqlite3, not {kind_of(connection, driver)}"
        )
    found = driver

    async def run(work: Callable[[sqlite3.Connection], T]) -> T:
        return work(found)

    host = _Host(path, clock, run)
    try:
        host.begin(found)
        host.check_schema(found)
        yield host
    except BaseException as error:
        with suppress(DurableBatchesError):
            host.undo(error, found)
        raise
    host.keep(found)


class _Host:
    """The loading part of a store, on the host's connection. What is no coroutine is for that connection's thread.

    Args:
        path: The store's file.
        clock: The store's.
        run: Runs work on the connection's thread.
    """

    def __init__(self, path: Path, clock: Clock, run: _Run) -> None:
        self._path = path
        self._clock = clock
        self._run = run
        self._begun: Literal["no", "transaction", "savepoint"] = "no"
        self._changes = 0
        self.batch_id: BatchId | None = None
        """The batch that is loaded."""
        self.locks_out_everybody: Final = True
        """See `LocksOut`."""

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""
        self.batch_id = batch.batch_id
        return await self._run(lambda connection: self._loading(connection, load.create, batch))

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""
        now = self._clock.now()
        await self._run(lambda connection: self._loading(connection, load.add, now, batch_id, loader, documents))

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`."""
        now = self._clock.now()
        return await self._run(lambda connection: self._loading(connection, load.control, now, batch_id, command))

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `HostLoading.workers`."""
        boot = int(self._clock.boot() * 1_000_000)
        return await self._run(lambda connection: self._loading(connection, workers.alive, boot))

    def begin(self, connection: sqlite3.Connection) -> None:
        """Take the write lock, in the host's transaction, and make it possible to undo what follows.

        Raises:
            ConfigurationError: The connection is in no transaction, closed, or has another file.
            StoreUnavailableError: Another connection has the lock.
        """
        with self._own(connection):
            self._check_file(connection)
            self._changes = connection.total_changes
            if connection.in_transaction:
                connection.execute(f"SAVEPOINT {_SAVEPOINT}")
                self._begun = "savepoint"
                _take_write_lock(connection)
            elif _begins_by_itself(connection):
                connection.execute("BEGIN IMMEDIATE")
                self._begun = "transaction"
            else:
                raise not_in_transaction("BEGIN IMMEDIATE")

    def check_schema(self, connection: sqlite3.Connection) -> None:
        """Make sure that the file has the tables of this library; for a store that was not opened."""
        with self._own(connection):
            try:
                row = connection.execute("SELECT version, readable_since FROM schema_version").fetchone()
            except sqlite3.OperationalError as error:
                if is_busy(error):
                    raise
                row = None
            if row is None:
                raise StoreNotFoundError(f"the file {self._path} has none of the store's tables")
            check_schema("sqlite", str(self._path), *row)

    def keep(self, connection: sqlite3.Connection) -> bool:
        """Leave what was loaded to the host's transaction; return whether anything was."""
        with self._own(connection):
            wrote = connection.total_changes > self._changes
            if self._begun == "savepoint":
                connection.execute(f"RELEASE {_SAVEPOINT}")
            elif not wrote:
                # The host has nothing to commit, and would keep the file locked for nothing.
                connection.execute("ROLLBACK")
            return wrote

    def undo(self, error: BaseException, connection: sqlite3.Connection) -> None:
        """Undo what was loaded. Where SQLite has rolled back the host's transaction, too, the error says so."""
        with self._own(connection):
            if self._begun == "no":
                return
            if not connection.in_transaction:
                if self._begun == "savepoint":
                    error.add_note("SQLite has rolled back the application's transaction: begin it anew")
            elif self._begun == "savepoint":
                connection.execute(f"ROLLBACK TO {_SAVEPOINT}")
                connection.execute(f"RELEASE {_SAVEPOINT}")
            else:
                connection.execute("ROLLBACK")

    def _check_file(self, connection: sqlite3.Connection) -> None:
        try:
            files = {name: file for _, name, file in connection.execute("PRAGMA database_list")}
        except sqlite3.ProgrammingError as error:
            if "closed" in str(error):
                raise _closed() from None
            raise
        file = files.get("main") or ""
        try:
            same = bool(file) and os.path.samefile(file, self._path)
        except OSError:
            same = False
        if not same:
            raise ConfigurationError(
                f"connection= does not lead to the store's own file, {self._path}, but to {file or 'memory'}"
            )

    def _loading(
        self,
        connection: sqlite3.Connection,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with self._own(connection):
            return work(connection, *args, **kwargs)

    @contextmanager
    def _own(self, connection: sqlite3.Connection) -> Generator[None]:
        """Within: the connection returns rows and texts as the store expects them, and errors are translated."""
        rows, texts = connection.row_factory, connection.text_factory
        try:
            connection.row_factory, connection.text_factory = None, str
            with translated(self._path):
                yield
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, sqlite3.Error) and is_busy(error.__cause__):
                raise StoreUnavailableError(
                    f"another connection is writing to the database {self._path}, and the application's has waited for "
                    "it no longer; nothing was submitted. Give the connection a longer timeout, and begin its "
                    "transaction with BEGIN IMMEDIATE where it reads before it submits"
                ) from error.__cause__
            raise
        finally:
            connection.row_factory, connection.text_factory = rows, texts


def _take_write_lock(connection: sqlite3.Connection) -> None:
    """Write nothing: a transaction that reads first is refused the lock where others have written since."""
    try:
        connection.execute("DELETE FROM batch WHERE 0")
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise
        # There is no such table; the first read of it will say so.


def _begins_by_itself(connection: sqlite3.Connection) -> bool:
    """Whether the driver begins transactions by itself, so that the host commits without having begun one."""
    control = getattr(connection, "autocommit", _LEGACY_TRANSACTION_CONTROL)
    return connection.isolation_level is not None if control == _LEGACY_TRANSACTION_CONTROL else not control


def _closed() -> ConfigurationError:
    return ConfigurationError("connection= is closed")
