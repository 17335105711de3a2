"""Databases and schemas that are there for some tests, and gone afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
from tests.postgres.server import in_a_loop

from durable_batches import PostgresStore

_USES: Final = 40
"""How many tests have the same schema one after the other: what is deleted leaves traces in its tables."""


@contextmanager
def scratch_database(dsn: str) -> Generator[str]:
    """A database of its own on that server."""
    name = f"durable_batches_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}_{uuid4().hex[:12]}"
    execute(dsn, f'CREATE DATABASE "{name}"')
    try:
        yield urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
    finally:
        execute(dsn, f'DROP DATABASE "{name}" WITH (FORCE)')


def without_schema(dsn: str, schema: str) -> None:
    """Remove a schema, whatever still uses it."""
    execute(dsn, *_end_leftovers(schema), f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each on its own, on a connection of their own."""

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    in_a_loop(run())


def rows_of(dsn: str, query: str) -> list[dict[str, Any]]:
    """Run a query on a connection of its own."""

    async def run() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [dict(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return in_a_loop(run())


class MigratedSchemas:
    """Schemas with the newest tables and nothing in them; each is used by many tests, one after the other.

    Making the tables takes longer than most tests do. What may change them, or has to find none, makes a schema of
    its own.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._session = Session(dsn)
        self._unused: list[tuple[str, int]] = []

    @contextmanager
    def one(self) -> Generator[str]:
        """A schema that nothing else uses meanwhile."""
        name, uses = self._unused.pop() if self._unused else (self._made(), 0)
        try:
            yield name
        finally:
            if uses + 1 < _USES:
                self._session.execute(*_end_leftovers(name), _empty(name))
                self._unused.append((name, uses + 1))
            else:
                without_schema(self._dsn, name)

    def close(self) -> None:
        while self._unused:
            without_schema(self._dsn, self._unused.pop()[0])
        self._session.close()

    def _made(self) -> str:
        name = f"shared_{uuid4().hex}"

        async def make() -> None:
            store = PostgresStore(self._dsn, schema=name)
            await store.open()
            await store.close()

        in_a_loop(make())
        return name


class Session:
    """One connection for many statements, usable wherever another loop runs in this thread."""

    def __init__(self, dsn: str) -> None:
        self._dsn: Final = dsn
        self._thread = ThreadPoolExecutor(1)
        self._runner = asyncio.Runner()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    def execute(self, *statements: str) -> None:
        """Run statements; blocks."""

        async def run() -> None:
            # Anew where a test has restarted the server: an idle connection does not hear of that before its next use.
            if self._connection is not None:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await self._connection.execute("SELECT")
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self._dsn)
            for statement in statements:
                await self._connection.execute(statement)

        self._thread.submit(self._runner.run, run()).result()

    def close(self) -> None:
        """Close the connection, and end the thread."""
        if self._connection is not None:
            self._thread.submit(self._runner.run, self._connection.close()).result()
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()


def _end_leftovers(schema: str) -> tuple[str, str]:
    return (
        "SET lock_timeout = '10s'",
        # Whoever still has a table locked is a leftover of a test that failed.
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
        f"JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '{schema}' AND l.pid <> pg_backend_pid()",
    )


def _empty(schema: str) -> str:
    """What removes all rows but the schema's version; for tables of few rows far faster than TRUNCATE."""
    return f"""
        DO $$
        DECLARE name text;
        BEGIN
            SET LOCAL session_replication_role = replica;  -- foreign keys ask for no order then
            FOR name IN
                SELECT tablename FROM pg_tables WHERE schemaname = '{schema}' AND tablename <> 'schema_version'
            LOOP
                EXECUTE format('DELETE FROM %I.%I', '{schema}', name);
            END LOOP;
            -- Not ALTER SEQUENCE, which makes a file anew, and has all sessions forget what they know of the schema.
            PERFORM setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)
                FROM pg_sequences WHERE schemaname = '{schema}';
        END $$
    """
