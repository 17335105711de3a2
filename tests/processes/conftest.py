"""The database that several processes of a test work on, of each kind in turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.processes.databases import Database, PostgresDatabase, SQLiteDatabase


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SQLiteDatabase(tmp_path / "batches.db")
    return PostgresDatabase(request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema"))
