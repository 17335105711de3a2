"""The database that several processes of a test work on, of each kind in turn."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.processes.databases import Database, PostgresDatabase, SQLiteDatabase


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SQLiteDatabase(tmp_path / "batches.db")
    return PostgresDatabase(request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema"))


@pytest.fixture(scope="session")
def namespace() -> Sequence[str]:
    """Starts a process in a namespace of its own, as a container does: it cannot see the others, on the same kernel."""
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, "--pid", "--fork", "--mount-proc", "--kill-child"]
        if subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0:
            return command
    pytest.skip("the kernel lets this user make no process namespaces")
