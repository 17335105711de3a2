"""The databases of children: how they open one, and how a test looks at what they left behind."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol

import asyncpg
from tests.postgres.databases import Session, execute, without_schema
from tests.postgres.server import in_a_loop
from tests.support import opened

from durable_batches.clock import Clock
from durable_batches.stores import PostgresStore, SQLiteStore, Store

PATIENCE = 60.0

_WAIT_FOR_SESSIONS: Final = f"""
    SET statement_timeout = '{PATIENCE:g}s';
    DO $$
    BEGIN
        WHILE EXISTS (
            SELECT FROM pg_stat_activity
            WHERE application_name = 'durable_batches' AND datname = current_database()
        )
        LOOP
            PERFORM pg_sleep(0.002), pg_stat_clear_snapshot();
        END LOOP;
    END $$
"""
"""Ends when no process has a session any more: the server may be about to find that its client is gone, or to end the
commit that it was asked for."""


class Database(Protocol):
    """One that several processes work on."""

    place: str
    """For a child's job."""

    @property
    def started(self) -> bool:
        """Whether anything is there yet."""
        ...

    def another(self) -> Database:
        """One with nothing in it."""
        ...

    def store(self, *, clock: Clock | None = None) -> Store:
        """As the next process has it; not open yet."""
        ...

    def open(self) -> AbstractAsyncContextManager[Store]:
        """As the next process has it."""
        ...

    def reading(self) -> AbstractAsyncContextManager[Store]:
        """For who only reads; the tables are there."""
        ...

    def at_rest(self) -> AbstractAsyncContextManager[Store]:
        """As killed processes left it; what there is to recover is left to the next process. Nobody works."""
        ...

    def at_one_moment(self) -> AbstractAsyncContextManager[Store]:
        """As it is at one moment, on a copy, while others go on writing to it."""
        ...

    async def commits(self, store: Store, worker: str) -> int:
        """The last commit of a worker, in the database or such a copy."""
        ...

    def is_writable(self) -> bool:
        """Whether a process that is stopped now does not hold the others up for long."""
        ...


class SQLiteDatabase:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self._others = 0

    @property
    def started(self) -> bool:
        return self.path.exists()

    def another(self) -> SQLiteDatabase:
        self._others += 1
        return SQLiteDatabase(self.path.with_name(f"{self._others}-{self.path.name}"))

    def store(self, *, clock: Clock | None = None) -> SQLiteStore:
        return SQLiteStore(self.path, clock=clock)

    def open(self) -> AbstractAsyncContextManager[Store]:
        return opened(self.store())

    def reading(self) -> AbstractAsyncContextManager[Store]:
        return self.open()

    @asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[Store]:
        copy = self.path.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for suffix in ("", "-wal"):
            # Between the two another process may end and take its log along; nobody else runs where this is used.
            source = self.path.with_name(self.path.name + suffix)
            if source.exists():
                shutil.copyfile(source, copy / source.name)
        async with opened(SQLiteStore(copy / self.path.name)) as store:
            yield store
        shutil.rmtree(copy)

    @asynccontextmanager
    async def at_one_moment(self) -> AsyncGenerator[Store]:
        copy = self.path.with_name("snapshot.db")

        def take() -> None:
            copy.unlink(missing_ok=True)
            source, target = sqlite3.connect(self.path, timeout=PATIENCE), sqlite3.connect(copy)
            try:
                # In one step: it reads the file as of one moment.
                source.backup(target)
            finally:
                source.close()
                target.close()

        await asyncio.to_thread(take)
        async with opened(SQLiteStore(copy)) as store:
            yield store

    async def commits(self, store: Store, worker: str) -> int:
        assert isinstance(store, SQLiteStore)
        connection = sqlite3.connect(store.path)
        try:
            row: Any = connection.execute("SELECT commits FROM worker WHERE worker_id = ?", (worker,)).fetchone()
        finally:
            connection.close()
        return 0 if row is None else row[0]

    def is_writable(self) -> bool:
        """Whether no process is within a transaction: one that is holds up everybody, for as long as it likes."""
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True


_READER: Final = "reader"
"""Its sessions are not those of processes that were killed."""


@contextmanager
def reader_of(dsn: str, schema: str) -> Generator[Store]:
    """An open store, whose schema is made; usable on any event loop, since its own one is on a thread of its own."""
    store = PostgresStore(f"{dsn}?application_name={_READER}", schema=schema)
    in_a_loop(store.open())
    try:
        yield store
    finally:
        in_a_loop(store.close())


class PostgresDatabase:
    """A schema on a server.

    Args:
        dsn: The database.
        schema: Its schema.
        reader: An open store there that tests read with, one after the other: opening one takes longer than reading.
        session: A session that waits for the end of the others; for the same reason.
    """

    def __init__(self, dsn: str, schema: str, *, reader: Store | None = None, session: Session | None = None) -> None:
        self.dsn = dsn
        self._session = session
        self._reader = reader
        self.schema = schema
        self.place = json.dumps({"dsn": dsn, "schema": schema})
        self._copies = 0

    @property
    def started(self) -> bool:
        # One cannot look as often as at a file.
        return True

    def another(self) -> PostgresDatabase:
        without_schema(self.dsn, self.schema)
        return self

    def store(self, *, clock: Clock | None = None) -> PostgresStore:
        return PostgresStore(self.dsn, schema=self.schema, clock=clock)

    def open(self) -> AbstractAsyncContextManager[Store]:
        return opened(self.store())

    def reading(self) -> AbstractAsyncContextManager[Store]:
        return self.open() if self._reader is None else nullcontext(self._reader)

    @asynccontextmanager
    async def at_rest(self) -> AsyncGenerator[Store]:
        if self._session is None:
            await asyncio.to_thread(execute, self.dsn, _WAIT_FOR_SESSIONS)
        else:
            await asyncio.to_thread(self._session.execute, _WAIT_FOR_SESSIONS)
        async with self.reading() as store:
            yield store

    @asynccontextmanager
    async def at_one_moment(self) -> AsyncGenerator[Store]:
        self._copies += 1
        copy = f"{self.schema}_{self._copies}"
        connection = await asyncpg.connect(self.dsn)
        try:
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute(f'CREATE SCHEMA "{copy}"')
                for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", self.schema):
                    table = row["tablename"]
                    await connection.execute(f'CREATE TABLE "{copy}".{table} AS SELECT * FROM "{self.schema}".{table}')
        finally:
            await connection.close()
        try:
            async with opened(PostgresStore(self.dsn, schema=copy)) as store:
                yield store
        finally:
            without_schema(self.dsn, copy)

    async def commits(self, store: Store, worker: str) -> int:
        connection = await asyncpg.connect(self.dsn)
        try:
            found = await connection.fetchval(
                f'SELECT commits FROM "{self.schema}".worker WHERE worker_id = $1', worker
            )
            return 0 if found is None else int(found)
        finally:
            await connection.close()

    def is_writable(self) -> bool:
        """It is: the server ends a transaction whose client says nothing for a third of its lease."""
        return True
