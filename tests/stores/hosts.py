"""Applications with transactions of their own, one a kind of connection; the same tests are for all of them."""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import aiosqlite
import asyncpg
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from tests.support import STAGES

from durable_batches import BatchConfig, BatchOrchestrator, durable_activity, workflow
from durable_batches.lifecycle.batch_core import Definition, new_batch
from durable_batches.lifecycle.records import BatchRecord, WorkerId
from durable_batches.lifecycle.states import BatchId

T = TypeVar("T")

Batches: TypeAlias = BatchOrchestrator[str, str, Any, Any]

# ---- what is submitted -----------------------------------------------------------------------------------------------

ran: list[str] = []
"""The documents that were run."""


@durable_activity
async def note(document: str) -> str:
    ran.append(document)
    return document.upper()


@workflow(STAGES, name="noting")
async def noting(document: str) -> str:
    return await note(document)


def record_of(batch_id: str, loader: str) -> BatchRecord:
    """What is stored of a batch that is not sealed yet."""
    return new_batch(
        batch_id=BatchId(batch_id),
        workflow="noting",
        version="1",
        submitter=WorkerId(loader),
        definition=Definition(STAGES.tags, False, BatchConfig()),
        now=1,
    )


# ---- applications ----------------------------------------------------------------------------------------------------


class Host(Protocol):
    """An application with one connection to a database, which it can use from any task."""

    async def begin(self) -> None:
        """Begin a transaction, as is usual with this kind of connection."""
        ...

    async def submit(self, batches: Batches, documents: Iterable[str], **options: Any) -> str:
        """Submit a batch in the transaction."""
        ...

    async def execute(self, statement: str) -> list[Any]:
        """Execute a statement of the application's own; return the first value of each row."""
        ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...

    async def close(self) -> None: ...


class AsyncHost:
    """An application on the event loop.

    Args:
        connection: What is handed to `submit`.
        begin: Begins a transaction.
        execute: Executes a statement.
        close: Closes everything.
    """

    def __init__(
        self,
        connection: Any,
        begin: Callable[[], Awaitable[object]],
        execute: Callable[[str], Awaitable[list[Any]]],
        close: Callable[[], Awaitable[object]],
    ) -> None:
        self.connection = connection
        self.transactions: Any = connection
        """What ends a transaction."""
        self._begin = begin
        self._execute = execute
        self._close = close

    async def begin(self) -> None:
        await self._begin()

    async def submit(self, batches: Batches, documents: Iterable[str], **options: Any) -> str:
        return await batches.submit(documents, connection=self.connection, **options)

    async def execute(self, statement: str) -> list[Any]:
        return await self._execute(statement)

    async def commit(self) -> None:
        await self.transactions.commit()

    async def rollback(self) -> None:
        await self.transactions.rollback()

    async def close(self) -> None:
        await self._close()


class SyncHost:
    """An application without an event loop: all of it is on one thread.

    Args:
        connection: Opens what is handed to `submit_sync`.
        begin: Begins a transaction on it.
        execute: Executes a statement on it.
        commit: Commits; by default with the method of that name.
        rollback: Rolls back; by default with the method of that name.
        close: Closes everything; by default with the method of that name.
    """

    def __init__(
        self,
        connection: Callable[[], Any],
        *,
        begin: Callable[[Any], object],
        execute: Callable[[Any, str], list[Any]],
        commit: Callable[[Any], object] = lambda connection: connection.commit(),
        rollback: Callable[[Any], object] = lambda connection: connection.rollback(),
        close: Callable[[Any], object] = lambda connection: connection.close(),
    ) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.connection = self._thread.submit(connection).result()
        self._begin = begin
        self._execute = execute
        self._commit = commit
        self._rollback = rollback
        self._close = close

    async def begin(self) -> None:
        await self._run(self._begin, self.connection)

    async def submit(self, batches: Batches, documents: Iterable[str], **options: Any) -> str:
        return await self._run(lambda: batches.submit_sync(documents, connection=self.connection, **options))

    async def execute(self, statement: str) -> list[Any]:
        return await self._run(self._execute, self.connection, statement)

    async def commit(self) -> None:
        await self._run(self._commit, self.connection)

    async def rollback(self) -> None:
        await self._run(self._rollback, self.connection)

    async def close(self) -> None:
        await self._run(self._close, self.connection)
        self._thread.shutdown()

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


async def _nothing() -> None:
    """Begin nothing: the driver does it by itself."""


def _first(rows: Iterable[Any]) -> list[Any]:
    return [row[0] for row in rows]


# ---- on SQLite -------------------------------------------------------------------------------------------------------


async def _aiosqlite(path: Path) -> Host:
    connection = await aiosqlite.connect(path)
    # Rows and texts of the application's own kinds.
    made: Any = connection
    made.row_factory = lambda cursor, row: {"value": row[0]}  # pyright: ignore[reportUnknownLambdaType]
    connection.text_factory = bytes

    async def execute(statement: str) -> list[Any]:
        return [row["value"] for row in await connection.execute_fetchall(statement)]

    return AsyncHost(connection, _nothing, execute, connection.close)


async def _aiosqlite_begun(path: Path) -> Host:
    connection = await aiosqlite.connect(path, isolation_level=None)

    async def execute(statement: str) -> list[Any]:
        return _first(await connection.execute_fetchall(statement))

    return AsyncHost(connection, lambda: connection.execute("BEGIN"), execute, connection.close)


async def async_connection(url: str) -> Host:
    stack = AsyncExitStack()
    engine = create_async_engine(url)
    stack.push_async_callback(engine.dispose)
    connection = await stack.enter_async_context(engine.connect())

    async def execute(statement: str) -> list[Any]:
        result = await connection.execute(text(statement))
        return _first(result) if result.returns_rows else []

    return AsyncHost(connection, connection.begin, execute, stack.aclose)


async def async_session(url: str) -> Host:
    stack = AsyncExitStack()
    engine = create_async_engine(url)
    stack.push_async_callback(engine.dispose)
    session = await stack.enter_async_context(AsyncSession(engine))

    async def execute(statement: str) -> list[Any]:
        result: Any = await session.execute(text(statement))
        return _first(result) if result.returns_rows else []

    return AsyncHost(session, _nothing, execute, stack.aclose)


async def _sqlite3(path: Path) -> Host:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path)
        connection.row_factory = sqlite3.Row
        return connection

    return SyncHost(connect, begin=lambda _: None, execute=lambda found, sql: _first(found.execute(sql).fetchall()))


async def _sqlite3_begun(path: Path) -> Host:
    return SyncHost(
        lambda: sqlite3.connect(path, isolation_level=None),
        begin=lambda found: found.execute("BEGIN IMMEDIATE"),
        execute=lambda found, sql: _first(found.execute(sql).fetchall()),
    )


def _sync_sqlalchemy_execute(connection: Any, statement: str) -> list[Any]:
    result = connection.execute(text(statement))
    return _first(result) if result.returns_rows else []


async def sync_connection(url: str) -> Host:
    engine = create_engine(url)

    def close(connection: Any) -> None:
        connection.close()
        engine.dispose()

    return SyncHost(engine.connect, begin=lambda found: found.begin(), execute=_sync_sqlalchemy_execute, close=close)


async def sync_session(url: str) -> Host:
    engine = create_engine(url)

    def close(session: Any) -> None:
        session.close()
        engine.dispose()

    return SyncHost(lambda: Session(engine), begin=lambda _: None, execute=_sync_sqlalchemy_execute, close=close)


async def _begun_by_an_event(path: Path) -> Host:
    """As SQLAlchemy's documentation has it for transactions that begin where they are begun."""
    engine = create_engine(f"sqlite:///{path}")

    def connected(raw: Any, _: object) -> None:
        raw.isolation_level = None

    def begins(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begins)

    def close(connection: Any) -> None:
        connection.close()
        engine.dispose()

    return SyncHost(engine.connect, begin=lambda found: found.begin(), execute=_sync_sqlalchemy_execute, close=close)


ON_SQLITE: Final[dict[str, Callable[[Path], Awaitable[Host]]]] = {
    "aiosqlite": _aiosqlite,
    "aiosqlite, begun": _aiosqlite_begun,
    "AsyncConnection": lambda path: async_connection(f"sqlite+aiosqlite:///{path}"),
    "AsyncSession": lambda path: async_session(f"sqlite+aiosqlite:///{path}"),
    "sqlite3": _sqlite3,
    "sqlite3, begun": _sqlite3_begun,
    "Connection": lambda path: sync_connection(f"sqlite:///{path}"),
    "Session": lambda path: sync_session(f"sqlite:///{path}"),
    "Connection, begun by an event": _begun_by_an_event,
}


# ---- on Postgres -----------------------------------------------------------------------------------------------------


async def _asyncpg(dsn: str) -> Host:
    connection = await asyncpg.connect(dsn)

    async def execute(statement: str) -> list[Any]:
        return _first(await connection.fetch(statement))

    class Transactions:
        """The driver has none that are ended by the connection."""

        async def commit(self) -> None:
            await connection.execute("COMMIT")

        async def rollback(self) -> None:
            await connection.execute("ROLLBACK")

    host = AsyncHost(connection, lambda: connection.execute("BEGIN"), execute, connection.close)
    host.transactions = Transactions()
    return host


async def _psycopg(dsn: str) -> Host:
    # Rows of the application's own kind.
    connection: Any = await psycopg.AsyncConnection.connect(dsn)
    connection.row_factory = dict_row

    async def execute(statement: str) -> list[Any]:
        cursor = await connection.execute(statement)
        return [next(iter(row.values())) for row in await cursor.fetchall()] if cursor.description else []

    return AsyncHost(connection, _nothing, execute, connection.close)


def _connect_psycopg(dsn: str, *, autocommit: bool = False) -> Any:
    connection: Any = psycopg.connect(dsn, autocommit=autocommit)
    connection.row_factory = dict_row
    return connection


def _sync_psycopg_execute(connection: Any, statement: str) -> list[Any]:
    cursor = connection.execute(statement)
    return [next(iter(row.values())) for row in cursor.fetchall()] if cursor.description else []


async def _sync_psycopg(dsn: str) -> Host:
    return SyncHost(
        lambda: _connect_psycopg(dsn),
        begin=lambda _: None,
        execute=_sync_psycopg_execute,
    )


async def _sync_psycopg_begun(dsn: str) -> Host:
    return SyncHost(
        lambda: _connect_psycopg(dsn, autocommit=True),
        begin=lambda found: found.execute("BEGIN"),
        execute=_sync_psycopg_execute,
    )


def _sqlalchemy(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


ON_POSTGRES: Final[dict[str, Callable[[str], Awaitable[Host]]]] = {
    "postgres: asyncpg": _asyncpg,
    "postgres: AsyncConnection, asyncpg": lambda dsn: async_connection(_sqlalchemy(dsn, "asyncpg")),
    "postgres: AsyncSession, asyncpg": lambda dsn: async_session(_sqlalchemy(dsn, "asyncpg")),
    "postgres: psycopg, async": _psycopg,
    "postgres: AsyncConnection, psycopg": lambda dsn: async_connection(_sqlalchemy(dsn, "psycopg")),
    "postgres: AsyncSession, psycopg": lambda dsn: async_session(_sqlalchemy(dsn, "psycopg")),
    "postgres: psycopg": _sync_psycopg,
    "postgres: psycopg, begun": _sync_psycopg_begun,
    "postgres: Connection": lambda dsn: sync_connection(_sqlalchemy(dsn, "psycopg")),
    "postgres: Session": lambda dsn: sync_session(_sqlalchemy(dsn, "psycopg")),
    "postgres: Django": lambda dsn: _django(_django_settings(dsn)),
}


# ---- Django's --------------------------------------------------------------------------------------------------------


def _django_settings(dsn: str) -> dict[str, object]:
    found = conninfo_to_dict(dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found["dbname"],
        "HOST": found.get("host", ""),
        "PORT": str(found.get("port", "")),
        "USER": found.get("user", ""),
        "PASSWORD": found.get("password", ""),
    }


async def _django(settings: dict[str, object]) -> Host:
    """An application's `django.db.connections["default"]`, within `transaction.atomic()`."""
    found: Any = importlib.import_module("django.conf")
    if not found.settings.configured:
        found.settings.configure(LOGGING_CONFIG=None)
        importlib.import_module("django").setup()
    utils: Any = importlib.import_module("django.db.utils")
    transaction: Any = importlib.import_module("django.db.transaction")
    handler = utils.ConnectionHandler({"default": settings})
    atomic: list[Any] = []

    def begin(connection: Any) -> None:
        block = transaction.Atomic(using=None, savepoint=True, durable=False)
        atomic.append((block, transaction.get_connection))
        transaction.get_connection = lambda using: connection  # pyright: ignore[reportUnknownLambdaType]
        block.__enter__()

    def end(*error: Any) -> None:
        block, get_connection = atomic.pop()
        try:
            block.__exit__(*error)
        finally:
            transaction.get_connection = get_connection

    def execute(connection: Any, statement: str) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return _first(cursor.fetchall()) if cursor.description else []

    return SyncHost(
        lambda: handler["default"],
        begin=begin,
        execute=execute,
        commit=lambda _: end(None, None, None),
        rollback=lambda _: end(ValueError, ValueError(), None),
    )


ON_SQLITE["Django"] = lambda path: _django({"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)})
