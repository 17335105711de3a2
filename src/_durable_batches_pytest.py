"""The pytest plugin of durable-batches: two fixtures, which cost nothing where no test asks for them.

A module of its own and not one of the package: pytest imports its plugins in every run in every environment that
has the library installed, and the package would bring pydantic along. Nothing of it is imported before a fixture
is used, and pytest-asyncio is not needed.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from durable_batches.stores import Store
    from durable_batches.testing import BatchEnvironment, ManualClock, StoreMaker


@pytest.fixture
def batch_environment(tmp_path: Path) -> BatchEnvironment:
    """`durable_batches.testing.virtual.environment`, on a SQLite file of the test's own."""
    from durable_batches.stores import SQLiteStore
    from durable_batches.testing import ManualClock, environment

    time = ManualClock()

    def on_file(clock: ManualClock) -> Store:
        return SQLiteStore(tmp_path / "batches.db", clock=clock)

    def make(workflow: Any, *, store: Any = None, clock: ManualClock | None = None, **options: Any) -> Any:
        return environment(workflow, store=store or on_file, clock=clock or time, **options)

    return make


@pytest.fixture
def new_batch_store(tmp_path: Path) -> StoreMaker:
    """Makes a SQLite store on a new file each time, on a given clock: what `survives_crashes(store=...)` takes."""
    from durable_batches.stores import SQLiteStore

    numbers = count(1)

    def make(clock: ManualClock) -> Store:
        return SQLiteStore(tmp_path / f"batches-{next(numbers)}.db", clock=clock)

    return make
