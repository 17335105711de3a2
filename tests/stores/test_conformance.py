from pathlib import Path

import pytest

from durable_batches.clock import Clock
from durable_batches.stores import MemoryStore, SQLiteStore, Store
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
