"""A child that was forked while a store was open does not hold its connections, nor the locks of a dead worker."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.support import within

from durable_batches.stores.postgres.connection.database import Database


@contextmanager
def child() -> Generator[None]:
    """Fork a child that does nothing until the end of the block."""
    here, there = os.pipe()
    if not (pid := os.fork()):
        os.close(there)
        os.read(here, 1)
        os._exit(0)
    try:
        yield
    finally:
        os.close(there)
        os.close(here)
        assert os.waitpid(pid, 0) == (pid, 0)


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_the_locks_of_a_worker_that_died_are_released_though_its_children_live(
    postgres_dsn: str, postgres_schema: str
) -> None:
    database = Database(postgres_dsn, postgres_schema, 60, 60)
    dying, other, closed = [await database.connect(by_key=False) for _ in range(3)]
    await closed.close()
    # The server does not end the session by itself.
    await dying.execute("SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT pg_advisory_xact_lock(7)")
    with child():
        # The parent's own connections are none the worse.
        assert await dying.fetchval("SELECT 7") == 7
        # All that is left of the worker is its child.
        # As the kernel closes its sockets: nothing is said to the server.
        driver: Any = dying
        driver._transport.abort()
        await within(other.execute("SET lock_timeout = 0; SELECT pg_advisory_lock(7)"), seconds=10)
    await other.close()
