"""Sessions on connections of psycopg, which the host application may have; the store's own are asyncpg's.

Statements are the same as for asyncpg: psycopg's raw cursors take their arguments by number, and leave it to the server
to bind them. What has no event loop never suspends.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeGuard, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from durable_batches.errors import ConfigurationError, FactRejectedError
from durable_batches.stores.host_connections import not_in_transaction
from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.errors import translate
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["async_session_on", "sync_session_on"]

C = TypeVar("C", bound=psycopg.Connection[Any] | psycopg.AsyncConnection[Any])
_Rows: TypeAlias = Sequence[tuple[Any, ...]]


def async_session_on(database: Database, driver: object) -> Session | None:
    """Make a session of an `AsyncConnection` of psycopg; None: it is none.

    Raises:
        ConfigurationError: It is closed, or in no transaction, or in one that has failed.
    """
    return _AsyncSession(database, _checked(driver)) if _is_async(driver) else None


def sync_session_on(database: Database, driver: object) -> Session | None:
    """Make a session of a `Connection` of psycopg, which never suspends; None: it is none.

    Raises:
        ConfigurationError: It is closed, or in no transaction, or in one that has failed.
    """
    return _SyncSession(database, _checked(driver)) if _is_sync(driver) else None


def _is_async(driver: object) -> TypeGuard[psycopg.AsyncConnection[Any]]:
    return isinstance(driver, psycopg.AsyncConnection)


def _is_sync(driver: object) -> TypeGuard[psycopg.Connection[Any]]:
    return isinstance(driver, psycopg.Connection)


def _checked(connection: C) -> C:
    if not hasattr(psycopg, "RawCursor"):
        raise ConfigurationError(f"connection= needs psycopg 3.2 or newer, and this is {psycopg.__version__}")
    if connection.closed:
        raise ConfigurationError("connection= is closed")
    status = connection.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise ConfigurationError("a statement of the transaction of connection= has failed: roll it back first")
    if status == TransactionStatus.IDLE and connection.autocommit:
        raise not_in_transaction()
    return connection


class _Session(Session):
    """A session that speaks to another driver than asyncpg."""

    __slots__ = ()

    def __init__(self, database: Database) -> None:
        self.quoted = database.quoted
        self._where = database.where
        self._cache = self._statements

    async def fetch(self, statement: str, *args: object) -> Sequence[Any]:
        """See `Session.fetch`."""
        return (await self._answer(self.sql(statement), args))[0]

    async def row(self, statement: str, *args: object) -> Any:
        """See `Session.row`."""
        rows, _ = await self._answer(self.sql(statement), args)
        return rows[0] if rows else None

    async def value(self, statement: str, *args: object) -> Any:
        """See `Session.value`."""
        row = await self.row(statement, *args)
        return None if row is None else row[0]

    async def run(self, script: str) -> str:
        """See `Session.run`."""
        return (await self._answer(self.sql(script), ()))[1]

    async def _answer(self, statement: str, args: Sequence[object]) -> tuple[_Rows, str]:
        """Execute a statement; return its rows and its tag."""
        raise NotImplementedError

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except psycopg.Error as error:
            if isinstance(error, psycopg.DataError) and error.sqlstate is None:
                raise FactRejectedError(f"the database {self._where} refuses a value: {error}") from error
            raise translate(error, self._where) from error


class _AsyncSession(_Session):
    __slots__ = ("_connection",)

    def __init__(self, database: Database, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(database)
        self._connection = connection

    async def _answer(self, statement: str, args: Sequence[object]) -> tuple[_Rows, str]:
        with self._translated():
            async with psycopg.AsyncRawCursor(self._connection, row_factory=tuple_row) as cursor:
                await cursor.execute(statement.encode(), args)
                rows = await cursor.fetchall() if cursor.description is not None else []
                return rows, cursor.statusmessage or ""


class _SyncSession(_Session):
    __slots__ = ("_connection",)

    def __init__(self, database: Database, connection: psycopg.Connection[Any]) -> None:
        super().__init__(database)
        self._connection = connection

    async def _answer(self, statement: str, args: Sequence[object]) -> tuple[_Rows, str]:
        with self._translated(), psycopg.RawCursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(statement.encode(), args)
            rows = cursor.fetchall() if cursor.description is not None else []
            return rows, cursor.statusmessage or ""
