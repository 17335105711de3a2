"""Fixtures for what is shown on every store."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from durable_batches import MemoryStore, SQLiteStore, Store
from durable_batches.clock import Clock

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In the background of a shell Ctrl-C is ignored, also by all children; those of the tests are sent it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

StoreMaker: TypeAlias = Callable[[Clock | None], Store]


@pytest.fixture(params=["memory", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreMaker:
    """Opens the test's one database. Called again, it is opened as the next process would open it."""
    kept: list[MemoryStore] = []

    def make(clock: Clock | None) -> Store:
        if request.param == "sqlite":
            return SQLiteStore(tmp_path / "batches.db", clock=clock)
        # What is in memory is gone with its object.
        if not kept:
            kept.append(MemoryStore(clock=clock))
        return kept[0]

    return make


@pytest.fixture
def store(open_store: StoreMaker) -> Store:
    return open_store(None)
