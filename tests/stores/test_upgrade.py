"""Databases that 0.1.0 has written are upgraded with all that is in them, and 0.1.0 never works on them again."""

from __future__ import annotations

import json
import sqlite3
from base64 import b64decode
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import pytest
from tests.postgres.databases import execute, rows_of
from tests.support import opened

from durable_batches import OldWorkersError, PostgresStore, SchemaTooNewError, SQLiteStore
from durable_batches.lifecycle.commands import Seal
from durable_batches.lifecycle.events import decode_event
from durable_batches.lifecycle.records import CheckpointRecord, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores import Store, migrations
from durable_batches.stores.columns import TABLES, Backend, Column
from durable_batches.stores.migrations import newer_scripts
from durable_batches.stores.postgres.connection import schema
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene, all_events
from durable_batches.version import VERSION

Row: TypeAlias = Mapping[str, Any]

WRITTEN: Final[Mapping[str, Sequence[Row]]] = json.loads(
    Path(__file__).with_name("written_by_0_1_0.json").read_text("utf-8"),
    object_hook=lambda found: b64decode(found["base64"]) if found.keys() == {"base64"} else found,
)
"""All rows of a SQLite file, as 0.1.0 has left them: batches that have completed, failed and been cancelled, one that
runs, with a document that waits for its second attempt, one that is being loaded; and their worker, whose lease is
valid until second 1030 of the boot clock, and who owns three documents."""

WORKER: Final = WorkerId("worker-1")
LEASE_END: Final = 1030.0
COLUMNS: Final = {table.name: table.columns for table in TABLES}


class Database(Protocol):
    """A database that 0.1.0 has written."""

    def store(self, clock: ManualClock) -> Store:
        """Of the library under test."""
        ...

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All that is in a table."""
        ...

    def run(self, statement: str) -> None:
        """Execute one statement, with `{s}` before each table."""
        ...

    def keep_alive(self) -> None:
        """Renew the worker's lease, as its process would."""
        ...

    def left(self) -> tuple[float, float]:
        """How long the lease is valid, in seconds: at least (as of now), and at most (when it was renewed)."""
        ...


class SQLite:
    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as connection, connection:
            ((_, first), *_) = newer_scripts("sqlite", "", 0, "0")
            connection.executescript(first)
            connection.execute(
                "CREATE TABLE schema_version (version INTEGER NOT NULL, readable_since TEXT NOT NULL, "
                "library TEXT NOT NULL)"
            )
            connection.execute("INSERT INTO schema_version VALUES (1, '0.1.0', '0.1.0')")
            for table, rows in WRITTEN.items():
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))

    def store(self, clock: ManualClock) -> Store:
        return SQLiteStore(self.path, clock=clock)

    def rows(self, table: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    def run(self, statement: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement.replace("{s}.", ""))

    def keep_alive(self) -> None:
        """Its lease is valid where the clock of the test begins."""

    def left(self) -> tuple[float, float]:
        return 30.0, 30.0


class Postgres:
    def __init__(self, dsn: str, schema: str) -> None:
        self.dsn, self.schema = dsn, schema
        ((_, first), *_) = newer_scripts("postgres", "", 0, "0")
        statements = [
            "CREATE SCHEMA {s}",
            *first.split(";\n"),
            "CREATE TABLE {s}.schema_version (version integer NOT NULL, readable_since text NOT NULL, "
            "library text NOT NULL)",
            "INSERT INTO {s}.schema_version VALUES (1, '0.1.0', '0.1.0')",
        ]
        for table, rows in WRITTEN.items():
            columns = {column.name: column for column in COLUMNS[table]}
            for written in rows:
                row: dict[str, Any] = {**written, "labels": []} if table == "batch" else dict(written)
                values = ", ".join(literal(columns[name], value) for name, value in row.items())
                given = "OVERRIDING SYSTEM VALUE" if table == "batch" else ""
                statements.append(f"INSERT INTO {{s}}.{table} ({', '.join(row)}) {given} VALUES ({values})")
        execute(dsn, *[text.replace("{s}", schema) for text in statements if text.strip()])

    def store(self, clock: ManualClock) -> Store:
        return PostgresStore(self.dsn, schema=self.schema, clock=clock)

    def rows(self, table: str) -> list[dict[str, Any]]:
        return rows_of(self.dsn, f"SELECT * FROM {self.schema}.{table} ORDER BY 1, 2")

    def run(self, statement: str) -> None:
        execute(self.dsn, statement.replace("{s}", self.schema))

    def keep_alive(self) -> None:
        self.run(
            "UPDATE {s}.worker SET lease = 3600000000, "
            "lease_until = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 3600000000"
        )

    def left(self) -> tuple[float, float]:
        ((now,),) = [
            tuple(row.values())
            for row in rows_of(
                self.dsn,
                "SELECT lease_until - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS left "
                f"FROM {self.schema}.worker",
            )
        ]
        return now / 1_000_000, 3600.0


def literal(column: Column, value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return "'{}'" if value == [] else "'" + str(value).replace("'", "''") + f"'::{column.type.postgres}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.stores)])
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.param
    return found


@pytest.fixture
def database(request: pytest.FixtureRequest, backend: Backend, tmp_path: Path) -> Database:
    if backend == "sqlite":
        return SQLite(tmp_path / "batches.db")
    return Postgres(request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema"))


A_MOMENT = 2.0
"""What workers have to renew their leases after a store was opened that may have been locked, in seconds."""


def later() -> ManualClock:
    """A clock by which the worker's lease has expired."""
    clock = ManualClock()
    clock.advance(LEASE_END - clock.boot() + 1)
    return clock


def old_columns(rows: Sequence[Row], written: Sequence[Row]) -> list[Row]:
    return [{name: row[name] for name in was} for row, was in zip(rows, written, strict=True)]


# ---- what is kept ----------------------------------------------------------------------------------------------------


async def test_every_row_is_kept(database: Database) -> None:
    async with opened(database.store(later())):
        pass
    for table, written in WRITTEN.items():
        found = database.rows(table)
        expected = [{**row, "commits": -2} for row in written] if table == "worker" else written
        assert old_columns(found, written) == expected, table
    assert [row["ended_at"] for row in database.rows("batch")] == [1_893_456_000_000_000] * 3 + [None] * 2
    made = {table.name for table in TABLES} - WRITTEN.keys() - {"schema_version"}
    assert {table: database.rows(table) for table in made} == {table: [] for table in made}
    assert database.rows("schema_version") == [{"version": 2, "readable_since": "0.2.0", "library": VERSION}]


@pytest.mark.parametrize("table", ["batch", "execution", "activity"])
async def test_what_is_new_has_its_defaults(database: Database, table: str) -> None:
    async with opened(database.store(later())):
        pass
    given = {"needs": 0, "priority": 0, "partition": "", "purged": 0, "woken_due": 0, "woken_key": 0}
    for row, written in zip(database.rows(table), WRITTEN[table], strict=True):
        own = {"labels", "from_due", "from_key", "ended_at"}  # Postgres' own of 0001, and what is computed
        new = {name: value for name, value in row.items() if name not in written and name not in own}
        assert new == {name: given.get(name) for name in new}


async def test_the_work_goes_on_where_it_was(database: Database) -> None:
    """What the old worker held is taken over with what it had recorded; a batch that was being loaded is sealed."""
    clock = later()

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)

    async with opened(database.store(clock)) as store:
        await pass_time(A_MOMENT)
        expired = await store.expire()
        assert list(expired.workers) == [WORKER]
        await store.control(BatchId("loading"), Seal(WorkerId("loader"), 2))
        scene = Scene(store, pass_time)
        hand = await scene.worker(lease=1_000)
        await scene.pass_time(61)
        claims = await hand.claim()
        recorded = {(str(claim.execution.batch_id), claim.execution.position): claim.checkpoints for claim in claims}
        assert sorted(recorded) == [("loading", 0), ("loading", 1), ("running", 0), ("running", 1), ("running", 3)]
        assert list(recorded["running", 0]) == [CheckpointRecord("read:1:a", "succeeded", b"paid for")]
        await hand.report(*[hand.succeeded(claim) for claim in claims])
        for name, state in [("running", "completed"), ("loading", "completed"), ("cancelled", "cancelled")]:
            record = await scene.look(BatchId(name))
            assert record.state == state
            await scene._check(record.batch_id, record)
        events = [decode_event(event) for event in await all_events(store, BatchId("completed"))]
        assert events[-1].tag == "batch_completed"


@pytest.mark.stores
async def test_an_upgrade_may_take_longer_than_statements_do(
    postgres_dsn: str, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a large table makes it."""
    Postgres(postgres_dsn, postgres_schema)

    def slow(dialect: str, where: str, version: int, readable_since: str) -> list[tuple[int, str]]:
        scripts = newer_scripts(dialect, where, version, readable_since)
        return [(number, f"SELECT pg_sleep(0.3);\n{script}") for number, script in scripts]

    monkeypatch.setattr(schema, "newer_scripts", slow)
    timeout = timedelta(milliseconds=100)
    async with opened(PostgresStore(postgres_dsn, schema=postgres_schema, statement_timeout=timeout)) as store:
        assert await store.batch(BatchId("completed")) is not None


# ---- who may be there ------------------------------------------------------------------------------------------------


async def test_a_worker_of_the_old_library_is_not_taken_by_surprise(database: Database) -> None:
    database.keep_alive()
    before = {table: database.rows(table) for table in WRITTEN}
    with pytest.raises(OldWorkersError, match=r"before 0\.2\.0 are alive: worker-1 \(process 1\); stop") as caught:
        async with opened(database.store(ManualClock())):
            pass
    assert dict(caught.value.workers) == {WORKER: 1}
    least, most = database.left()
    assert least <= caught.value.seconds <= most
    assert {table: database.rows(table) for table in WRITTEN} == before
    assert database.rows("schema_version") == [{"version": 1, "readable_since": "0.1.0", "library": "0.1.0"}]


async def test_the_old_library_does_not_open_it_any_more(
    database: Database, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database.store(later())):
        pass
    ((_, readable_since, _),) = [tuple(row.values()) for row in database.rows("schema_version")]
    # As 0.1.0 does it: the same comparison, of the same numbers, with its own version.
    monkeypatch.setattr(migrations, "VERSION", "0.1.0")
    with pytest.raises(SchemaTooNewError, match=r"can be read since version 0\.2\.0; this is 0\.1\.0"):
        newer_scripts(backend, "here", 2, readable_since)


async def test_an_old_process_that_was_asleep_writes_nothing_more(database: Database) -> None:
    """It had opened the database before: neither its next commit gets through, nor a new worker of it."""
    (worker,) = WRITTEN["worker"]
    async with opened(database.store(later())):
        pass
    number = worker["commits"] + 1
    # The fence of its commits, as 0.1.0 has it: a row that is not updated is a commit that is not made.
    database.run(f"UPDATE {{s}}.worker SET commits = {number} WHERE worker_id = 'worker-1' AND commits = {number - 1}")
    (row,) = database.rows("worker")
    assert row["commits"] == -2
    names = ", ".join(worker)
    values = ", ".join(f"'{value}'" for value in {**worker, "worker_id": "again"}.values())
    with pytest.raises(Exception, match=r"(?i)not.null constraint"):
        database.run(f"INSERT INTO {{s}}.worker ({names}) VALUES ({values})")


async def test_a_new_database_has_no_old_workers(database: Database) -> None:
    """It is opened again while a worker of its own version is alive."""
    clock = later()
    async with opened(database.store(clock)) as store:
        clock.advance(A_MOMENT)
        await store.expire()
        await Scene(store, pass_no_time).worker()
        assert await store.workers()
        async with opened(database.store(later())):
            pass


async def pass_no_time(_: float) -> None:
    raise AssertionError("no time passes here")
