"""Connections of psycopg that cannot be used, or lead elsewhere; those that can are in tests/stores/test_host.py."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Generator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from tests.postgres.databases import execute
from tests.stores.hosts import Batches, noting
from tests.support import opened, within

from durable_batches import (
    BatchOrchestrator,
    ConfigurationError,
    DuplicateDocumentError,
    PostgresStore,
    StoreNotFoundError,
)


@pytest.fixture
def batches(postgres_dsn: str, migrated_schema: str) -> Batches:
    """Of a store that is not open."""
    return BatchOrchestrator(noting, store=PostgresStore(postgres_dsn, schema=migrated_schema))


@pytest.fixture
def connection(postgres_dsn: str) -> Generator[psycopg.Connection[tuple[Any, ...]]]:
    with closing(psycopg.connect(postgres_dsn)) as connection:
        yield connection


Connection = psycopg.Connection[tuple[Any, ...]]


def test_code_without_a_loop_submits_and_others_run_it(batches: Batches, connection: Connection) -> None:
    with connection:
        batch_id = batches.submit_sync(["a", "b"], connection=connection)

    async def ended() -> int:
        async with batches:
            return (await within(batches.result(batch_id))).counts.succeeded

    assert asyncio.run(ended()) == 2
    assert asyncio.run(_submitted_by_itself(batches)) == 1


async def _submitted_by_itself(batches: Batches) -> int:
    batch_id = await asyncio.to_thread(lambda: batches.submit_sync(["c"]))
    async with batches:
        return (await within(batches.result(batch_id))).counts.succeeded


@pytest.mark.parametrize("schema_is_there", [False, True])
def test_another_database_is_refused_though_no_worker_runs(
    batches: Batches, postgres_dsn: str, postgres_schema: str, migrated_schema: str, schema_is_there: bool
) -> None:
    """Also where it has the same tables, as a copy of it has."""
    name = f"other_{postgres_schema}"
    execute(postgres_dsn, f"CREATE DATABASE {name}")
    try:
        if schema_is_there:
            url = postgres_dsn.rpartition("/")[0] + f"/{name}"

            async def migrate() -> None:
                async with opened(PostgresStore(url, schema=migrated_schema)):
                    pass

            asyncio.run(migrate())
        with closing(psycopg.connect(postgres_dsn, dbname=name)) as connection:
            with pytest.raises(ConfigurationError, match="does not lead to the store's own database"):
                batches.submit_sync(["a"], connection=connection)
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
    finally:
        execute(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_schema_without_tables_is_left_as_it_is(
    postgres_dsn: str, postgres_schema: str, connection: Connection
) -> None:
    batches = BatchOrchestrator(noting, store=PostgresStore(postgres_dsn, schema=postgres_schema))
    with pytest.raises(StoreNotFoundError):
        batches.submit_sync(["a"], connection=connection)
    assert connection.execute("SELECT to_regnamespace(%s)", [postgres_schema]).fetchall() == [(None,)]


def test_a_connection_that_commits_each_statement_is_refused(batches: Batches, postgres_dsn: str) -> None:
    with (
        closing(psycopg.connect(postgres_dsn, autocommit=True)) as connection,
        pytest.raises(ConfigurationError, match="is in none"),
    ):
        batches.submit_sync(["a"], connection=connection)
    engine = create_engine(postgres_dsn.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connected, pytest.raises(ConfigurationError, match="is in none"):
        batches.submit_sync(["a"], connection=connected)
    engine.dispose()


def test_a_closed_connection_is_refused(batches: Batches, connection: Connection) -> None:
    connection.close()
    with pytest.raises(ConfigurationError, match="connection= is closed"):
        batches.submit_sync(["a"], connection=connection)


def test_a_transaction_that_has_failed_is_refused(batches: Batches, connection: Connection) -> None:
    with pytest.raises(psycopg.Error):
        connection.execute("SELECT 1 / 0")
    with pytest.raises(ConfigurationError, match="roll it back first"):
        batches.submit_sync(["a"], connection=connection)
    connection.rollback()
    assert batches.submit_sync(["a"], connection=connection)
    connection.rollback()


def test_where_the_connection_is_lost_the_error_says_that_the_transaction_is(
    batches: Batches, connection: Connection, postgres_dsn: str
) -> None:
    (pid,) = connection.execute("SELECT pg_backend_pid()").fetchall()[0]

    def documents() -> Generator[str]:
        yield from map(str, range(600))
        execute(postgres_dsn, f"SELECT pg_terminate_backend({pid})")
        yield from map(str, range(600, 1200))

    with pytest.raises(Exception, match="cannot be used now") as caught:
        batches.submit_sync(documents(), connection=connection)
    assert caught.value.__notes__ == ["the application's transaction cannot go on: begin it anew"]


def test_an_error_says_nothing_of_the_documents(batches: Batches, connection: Connection) -> None:
    with pytest.raises(DuplicateDocumentError):
        batches.submit_sync(["a", "b", "a"], connection=connection, document_id=str)
    assert batches.submit_sync(["a", "b"], connection=connection, document_id=str)
    connection.rollback()


def test_a_connection_of_another_kind_is_refused(batches: Batches) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(ConfigurationError, match="takes a connection of psycopg"),
    ):
        batches.submit_sync(["a"], connection=connection)


async def test_a_connection_for_the_other_kind_of_code_is_refused(postgres_dsn: str, migrated_schema: str) -> None:
    async with BatchOrchestrator(noting, store=PostgresStore(postgres_dsn, schema=migrated_schema)) as batches:
        connection = await asyncio.to_thread(lambda: psycopg.connect(postgres_dsn))
        with closing(connection), pytest.raises(ConfigurationError, match="an AsyncConnection of psycopg"):
            await batches.submit(["a"], connection=connection)
        asynchronous = await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True)
        with pytest.raises(ConfigurationError, match="is in none"):
            await batches.submit(["a"], connection=asynchronous)
        await asynchronous.close()
