from pathlib import Path

import pytest
from tests.postgres.databases import execute

from durable_batches.clock import Clock
from durable_batches.stores import MemoryStore, PostgresStore, SQLiteStore, Store
from durable_batches.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    async def make_store(self, clock: Clock) -> Store:
        return MemoryStore(clock=clock)


class TestSQLiteStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "batches.db"

    async def make_store(self, clock: Clock) -> Store:
        return SQLiteStore(self.path, clock=clock)

    async def reopen_store(self, clock: Clock) -> Store:
        return SQLiteStore(self.path, clock=clock)


class TestPostgresStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _database(self, postgres_dsn: str, migrated_schema: str) -> None:
        self.dsn = postgres_dsn
        self.schema = migrated_schema

    async def make_store(self, clock: Clock) -> Store:
        return PostgresStore(self.dsn, schema=self.schema, clock=clock)

    async def reopen_store(self, clock: Clock) -> Store:
        return PostgresStore(self.dsn, schema=self.schema, clock=clock)


class TestPostgresStoreByTheServersClock(TestPostgresStore):
    """As it is used. Time passes for it when everything that it has stored was that much longer ago."""

    async def make_store(self, clock: Clock) -> Store:
        return PostgresStore(self.dsn, schema=self.schema)

    async def reopen_store(self, clock: Clock) -> Store:
        return PostgresStore(self.dsn, schema=self.schema)

    async def pass_time(self, seconds: float) -> None:
        await super().pass_time(seconds)
        micros = round(seconds * 1_000_000)
        execute(
            self.dsn,
            f"UPDATE {self.schema}.worker SET lease_until = lease_until - {micros}",
            f"UPDATE {self.schema}.execution SET due = due - {micros} WHERE due > 0",
            f"UPDATE {self.schema}.batch SET wake = wake - {micros}, next_due = next_due - {micros}, "
            f"from_due = greatest(from_due - {micros}, 0), "
            "from_key = CASE WHEN from_due = 0 THEN from_key ELSE 0 END, "
            f"woken_due = greatest(woken_due - {micros}, 0)",
            # What the state machine keeps of a batch without an open slot.
            f"UPDATE {self.schema}.batch b SET core = convert_to(regexp_replace(c.text, '\"earliest_due\":[0-9]+', "
            f"'\"earliest_due\":' || (c.due::bigint - {micros})::text), 'UTF8') "
            "FROM (SELECT key, convert_from(core, 'UTF8') AS text, "
            "substring(convert_from(core, 'UTF8') FROM '\"earliest_due\":([0-9]+)') AS due "
            f"FROM {self.schema}.batch) c WHERE c.key = b.key AND c.due IS NOT NULL",
        )
