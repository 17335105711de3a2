"""Databases and schemas that are there for some tests, and gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
from tests.postgres.server import in_a_loop


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
    execute(
        dsn,
        "SET lock_timeout = '10s'",
        # Whoever still has a table locked is a leftover of a test that failed.
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
        f"JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '{schema}' AND l.pid <> pg_backend_pid()",
        f'DROP SCHEMA IF EXISTS "{schema}" CASCADE',
    )


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
