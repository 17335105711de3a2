"""Fixtures for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.commands import Commands, target_of
from tests.conftest import StoreMaker

from durable_batches import SQLiteStore


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment that the tests run in names a store."""
    for name in ("STORE", "DSN", "SCHEMA"):
        monkeypatch.delenv(f"DURABLE_BATCHES_{name}", raising=False)


@pytest.fixture
def commands(open_store: StoreMaker, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Commands on a store of each kind."""
    return Commands(lambda: open_store(None), target_of(open_store(None), request), capsys)


@pytest.fixture
def on_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """Commands on a file."""
    path = tmp_path / "batches.db"
    return Commands(lambda: SQLiteStore(path), ["--store", str(path)], capsys)
