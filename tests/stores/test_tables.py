"""The migrations, the columns and SQLAlchemy's tables are of one mind: each is compared with real databases."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, Table, create_engine, func, inspect, select
from sqlalchemy.engine import Inspector
from sqlalchemy.ext.asyncio import create_async_engine
from tests.postgres.databases import execute
from tests.support import opened

from durable_batches import PostgresStore, SQLiteStore
from durable_batches.stores.columns import TABLES, Backend
from durable_batches.stores.tables import postgres_tables, sqlite_tables
from durable_batches.testing.conformance.scene import Scene
from durable_batches.testing.virtual.clock import ManualClock


async def no_time(_: float) -> None:
    """For scenes in which none passes."""


async def some_work(store: SQLiteStore | PostgresStore) -> str:
    """A batch of three documents, of which one has succeeded."""
    scene = Scene(store, no_time)
    batch_id = await scene.batch(3)
    hand = await scene.worker()
    await hand.report(hand.succeeded(await hand.take()))
    return batch_id


def described(inspector: Inspector, schema: str | None) -> dict[str, Any]:
    """What a real database has, in the words of `stores.columns`."""
    tables: dict[str, Any] = {}
    for name in inspector.get_table_names(schema):
        columns = [
            (
                column["name"],
                column["type"].compile(inspector.dialect).lower().removesuffix(' collate "c"'),
                column["nullable"],
            )
            for column in inspector.get_columns(name, schema)
        ]
        unique = {tuple(found["column_names"]) for found in inspector.get_unique_constraints(name, schema)}
        key = tuple(inspector.get_pk_constraint(name, schema)["constrained_columns"])
        tables[name] = (columns, unique | {key} - {()})
    return tables


def declared(backend: Backend) -> dict[str, Any]:
    """The same of `stores.columns`; what is a key in one database may be a unique constraint in the other."""
    return {
        table.name: (
            [
                (column.name, getattr(column.type, backend).lower(), column.nullable)
                for column in table.in_backend(backend)
            ],
            {*table.unique, table.primary_key} - {()},
        )
        for table in TABLES
    }


def without_case_of_null(tables: dict[str, Any]) -> dict[str, Any]:
    """SQLite says of a primary key of one column that it could be null, which it cannot."""
    return {
        name: ([(c, kind, nullable and (c,) not in unique) for c, kind, nullable in columns], unique)
        for name, (columns, unique) in tables.items()
    }


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    async with opened(SQLiteStore(tmp_path / "batches.db", clock=ManualClock())) as store:
        await some_work(store)
    return tmp_path / "batches.db"


@pytest.fixture
async def schema(postgres_dsn: str, postgres_schema: str) -> str:
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema)) as store:
        await some_work(store)
    return postgres_schema


async def test_a_sqlite_file_has_the_columns_that_are_declared(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    try:
        found = described(inspect(engine), None)
    finally:
        engine.dispose()
    assert without_case_of_null(found) == declared("sqlite")


async def test_a_postgres_schema_has_the_columns_that_are_declared(postgres_dsn: str, schema: str) -> None:
    engine = create_async_engine(postgres_dsn.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with engine.connect() as connection:
            found = await connection.run_sync(lambda sync: described(inspect(sync), schema))
    finally:
        await engine.dispose()
    assert found == declared("postgres")


def leaves(tables: MetaData, own: MetaData, connection: Connection, *, schema: str | None = None) -> list[Any]:
    """What autogenerate would change, as docs/how-to/use-the-tables.md sets it up."""

    def include_object(item: Any, _name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:
        return kind != "table" or item.key not in tables.tables

    def include_name(name: str | None, kind: str, _parents: Any) -> bool:
        # The test's database has schemas of other tests.
        return kind != "schema" or name in (None, schema)

    options = {
        "include_object": include_object,
        "include_name": include_name,
        "include_schemas": schema is not None,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), own))


OWN = MetaData()
Table("invoice", OWN, Column("id", Integer, primary_key=True))


async def test_alembic_leaves_a_files_tables_alone(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            assert [change[0] for change in leaves(sqlite_tables(), OWN, connection)] == ["add_table"]
            dropped = [change for change in leaves(MetaData(), OWN, connection) if "remove" in change[0]]
            assert len(dropped) >= len(TABLES)
    finally:
        engine.dispose()


async def test_alembic_leaves_a_schemas_tables_alone(postgres_dsn: str, schema: str) -> None:
    engine = create_async_engine(postgres_dsn.replace("postgresql://", "postgresql+asyncpg://"))

    def changes(connection: Connection) -> list[tuple[str, str]]:
        assert len(leaves(MetaData(), OWN, connection, schema=schema)) > len(TABLES), "it would drop them"
        return [
            (change[0], str(change[1])) for change in leaves(postgres_tables(schema), OWN, connection, schema=schema)
        ]

    def changes_where_it_is_the_default(connection: Connection) -> list[str]:
        # Then neither SQLAlchemy nor Alembic name it.
        connection.exec_driver_sql(f'SET search_path TO "{schema}"')
        connection.dialect.default_schema_name = schema
        return [str(change[1]) for change in leaves(postgres_tables(None), OWN, connection)]

    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(changes) == [("add_table", "invoice")]
        async with engine.connect() as connection:
            assert await connection.run_sync(changes_where_it_is_the_default) == ["invoice"]
    finally:
        await engine.dispose()


def progress(tables: MetaData, schema: str | None) -> Any:
    """Documents by their status, with the size of what they resulted in."""
    prefix = f"{schema}." if schema else ""
    batch, execution = tables.tables[f"{prefix}batch"], tables.tables[f"{prefix}execution"]
    outcome = tables.tables[f"{prefix}outcome"]
    return (
        select(execution.c.status, func.count(), func.count(outcome.c.payload))
        .join(batch, batch.c.key == execution.c.batch)
        .outerjoin(outcome, outcome.c.key == execution.c.key)
        .where(execution.c.document_id != "", batch.c.paused.is_(False), batch.c.total == 3)
        .group_by(execution.c.status)
        .order_by(execution.c.status)
    )


EXPECTED = [("pending", 2, 0), ("succeeded", 1, 1)]


async def test_a_file_can_be_queried_by_its_tables(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            assert connection.execute(progress(sqlite_tables(), None)).all() == EXPECTED
    finally:
        engine.dispose()


async def test_a_schema_can_be_queried_by_its_tables(postgres_dsn: str, schema: str) -> None:
    engine = create_async_engine(postgres_dsn.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with engine.connect() as connection:
            assert (await connection.execute(progress(postgres_tables(schema), schema))).all() == EXPECTED
    finally:
        await engine.dispose()


async def test_a_column_that_only_the_database_has_is_noticed(path: Path, postgres_dsn: str, schema: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE batch ADD COLUMN forgotten INTEGER")
    connection.close()
    engine = create_engine(f"sqlite:///{path}")
    try:
        assert described(inspect(engine), None)["batch"] != declared("sqlite")["batch"]
    finally:
        engine.dispose()
    execute(postgres_dsn, f'ALTER TABLE "{schema}".worker ALTER COLUMN pid TYPE integer')
    other = create_async_engine(postgres_dsn.replace("postgresql://", "postgresql+asyncpg://"))
    try:
        async with other.connect() as connecting:
            found = await connecting.run_sync(lambda sync: described(inspect(sync), schema))
    finally:
        await other.dispose()
    assert found["worker"] != declared("postgres")["worker"]
    assert found["batch"] == declared("postgres")["batch"]


@pytest.mark.processes
def test_nothing_imports_the_tables_unasked() -> None:
    program = (
        "import sys, durable_batches.stores, durable_batches.stores.sqlite\n"
        "assert not [name for name in sys.modules if name.startswith('sqlalchemy')], 'sqlalchemy'\n"
        "sys.modules['sqlalchemy'] = None\n"
        "from durable_batches.errors import MissingExtraError\n"
        "try:\n"
        "    import durable_batches.stores.tables\n"
        "except MissingExtraError as error:\n"
        "    assert error.extra == 'postgres', error\n"
        "else:\n"
        "    raise AssertionError('it was imported')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
