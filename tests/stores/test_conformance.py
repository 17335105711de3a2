from pathlib import Path
from shutil import copy2
from typing import Any

import pytest
from tests.postgres.databases import execute

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import ExecutionRecord
from durable_batches.stores import MemoryStore, PostgresStore, SQLiteStore, Store, memory
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    """Counts the looks into a batch's executions."""

    @pytest.fixture(autouse=True)
    def _looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        look = memory._first

        def counted(*args: Any) -> list[ExecutionRecord]:
            self.looks += 1
            return look(*args)

        monkeypatch.setattr(memory, "_first", counted)

    async def make_store(self, clock: Clock) -> Store:
        return MemoryStore(clock=clock)

    async def count_reads(self, store: Store) -> int:
        return self.looks


class TestSQLiteStore(StoreConformance):
    """Counts the steps of SQLite's virtual machine."""

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path, migrated_file: Path) -> None:
        self.path = copy2(migrated_file, tmp_path / "batches.db")
        self.steps: int | None = None

    async def make_store(self, clock: Clock) -> Store:
        return SQLiteStore(self.path, clock=clock)

    async def reopen_store(self, clock: Clock) -> Store:
        return SQLiteStore(self.path, clock=clock)

    async def count_reads(self, store: Store) -> int:
        assert isinstance(store, SQLiteStore)
        if self.steps is None:
            self.steps = 0
            writer = store._writer
            assert writer is not None
            await writer.run(lambda connection: connection.set_progress_handler(self._step, 1))
        return self.steps

    def _step(self) -> int:
        assert self.steps is not None
        self.steps += 1
        return 0


_READ_SO_FAR = """
SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'i') AND c.relname ~ '^(batch|execution)'
"""
"""What this session has read; a transaction makes a difference of it, since it starts anew only between two."""


class TestPostgresStore(StoreConformance):
    """Counts the rows, and entries of indexes, that the server reads of batches and executions."""

    @pytest.fixture(autouse=True)
    def _database(self, postgres_dsn: str, migrated_schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dsn = postgres_dsn
        self.schema = migrated_schema
        self.rows: int | None = None
        run = Session.run

        async def counting(session: Session, script: str) -> str:
            if self.rows is None or not script.startswith(("BEGIN", "COMMIT")):
                return await run(session, script)
            if script == "COMMIT":
                self.rows += await session.value(_READ_SO_FAR, self.schema)
                return await run(session, script)
            tag = await run(session, script)
            self.rows -= await session.value(_READ_SO_FAR, self.schema)
            return tag

        monkeypatch.setattr(Session, "run", counting)

    async def count_reads(self, store: Store) -> int:
        # Without the remains of rows that the batches before have left, which are cleaned up some time or other.
        execute(self.dsn, f"VACUUM {self.schema}.batch", f"VACUUM {self.schema}.execution")
        self.rows = self.rows or 0
        return self.rows

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
            # What the state machine keeps of a batch without an open slot, and of one with isolated documents.
            *[self._moved(field, micros) for field in ("earliest_due", "since", "until")],
            f"UPDATE {self.schema}.event SET data = convert_to(regexp_replace(d.text, '[0-9]+]$', "
            f"(substring(d.text FROM '([0-9]+)]$')::bigint - {micros})::text || ']'), 'UTF8') "
            f"FROM (SELECT batch, seq, convert_from(data, 'UTF8') AS text FROM {self.schema}.event) d "
            "WHERE event.batch = d.batch AND event.seq = d.seq AND event.tag = 'batch_paused'",
        )

    def _moved(self, field: str, micros: int) -> str:
        """Write the statement that makes a moment in the state machine's own part of each batch that much earlier."""
        pattern = f'"{field}":([0-9]+)'
        return (
            f"UPDATE {self.schema}.batch b SET core = convert_to(regexp_replace(c.text, '{pattern}', "
            f"'\"{field}\":' || (c.at::bigint - {micros})::text), 'UTF8') "
            "FROM (SELECT key, convert_from(core, 'UTF8') AS text, "
            f"substring(convert_from(core, 'UTF8') FROM '{pattern}') AS at "
            f"FROM {self.schema}.batch) c WHERE c.key = b.key AND c.at IS NOT NULL"
        )
