"""Chance, from a seed that is printed: `DURABLE_BATCHES_SEED=... make soak ARGS=...` repeats a run that failed.

What a seed decides is what the tests do and when; what the machine makes of it differs from run to run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.processes.databases import Database, PostgresDatabase, SQLiteDatabase

SEED: int = int(os.environ.get("DURABLE_BATCHES_SEED") or random.randrange(1 << 32))


def pytest_report_header() -> str:
    return f"DURABLE_BATCHES_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"DURABLE_BATCHES_SEED={SEED}"))
    return report


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """The seed of this test; the same for each run with the same `DURABLE_BATCHES_SEED`."""
    found = f"{SEED}/{request.node.name}"
    print(f"DURABLE_BATCHES_SEED={SEED}")
    return found


@pytest.fixture
def chance(seed: str) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How often; a test says how often by default: `@pytest.mark.parametrize("rounds", [1_000], indirect=True)`."""
    return int(os.environ.get("DURABLE_BATCHES_SOAK_ROUNDS") or request.param)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return SQLiteDatabase(tmp_path / "batches.db")
    return PostgresDatabase(request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema"))
