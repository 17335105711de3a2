"""Outages of real databases that are longer than the lease: each call is made once, by the bill of who answers it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from tests.postgres.proxy import Proxy
from tests.postgres.server import Server
from tests.support import STAGES, eventually, everything, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentReleased,
    RetryPolicy,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.clock import SystemClock
from durable_batches.stores import PostgresStore, SQLiteStore, Store

DOCUMENTS: Final = 150
AT_ONCE: Final = 50
LEASE: Final = timedelta(seconds=1)
CLOCK: Final = SystemClock()

Outage = Callable[[], AbstractAsyncContextManager[None]]
"""The store is away within it."""


@asynccontextmanager
async def locked(folder: Path) -> AsyncGenerator[tuple[Store, Outage]]:
    """A SQLite file that another program locks, as a backup does."""
    path = folder / "batches.db"

    @asynccontextmanager
    async def outage() -> AsyncGenerator[None]:
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)) as other:
            await asyncio.to_thread(other.execute, "BEGIN EXCLUSIVE")
            yield
            other.execute("ROLLBACK")

    yield SQLiteStore(path), outage


@asynccontextmanager
async def restarted(folder: Path) -> AsyncGenerator[tuple[Store, Outage]]:
    """A Postgres that is stopped, and started again."""
    with await asyncio.to_thread(Server) as server:

        @asynccontextmanager
        async def outage() -> AsyncGenerator[None]:
            await asyncio.to_thread(server.stop)
            yield
            await asyncio.to_thread(server.start)

        yield PostgresStore(server.dsn()), outage


@asynccontextmanager
async def failed_over(folder: Path) -> AsyncGenerator[tuple[Store, Outage]]:
    """A Postgres whose address leads to its replica afterwards, which has been made the primary."""
    with Server() as primary, Proxy(primary.port) as proxy:
        replica = await asyncio.to_thread(lambda: primary.replica(follows=True))
        try:

            @asynccontextmanager
            async def outage() -> AsyncGenerator[None]:
                # In good order: the replica has everything by then.
                await asyncio.to_thread(primary.stop)
                proxy.cut()
                yield
                await asyncio.to_thread(replica.execute, "SELECT pg_promote()")
                proxy.target = replica.port

            yield PostgresStore(primary.dsn(port=proxy.port)), outage
        finally:
            replica.__exit__(None, None, None)


@pytest.mark.real_time("a database that is away for longer than a lease takes its time, and another to come back")
@pytest.mark.parametrize(
    "database",
    [locked, pytest.param(restarted, marks=pytest.mark.stores), pytest.param(failed_over, marks=pytest.mark.stores)],
)
async def test_each_call_is_made_once_over_an_outage_that_is_longer_than_the_lease(
    database: Callable[[Path], AbstractAsyncContextManager[tuple[Store, Outage]]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither those in flight are made again, nor those that ended while nobody could record it."""
    asked: Counter[int] = Counter()
    answered: Counter[int] = Counter()
    go_on = asyncio.Event()

    @durable_activity(retry=RetryPolicy(max_attempts=1))
    async def ask(number: int) -> int:
        asked[number] += 1
        if asked.total() > AT_ONCE:
            await go_on.wait()
        answered[number] += 1
        return number

    @workflow(STAGES, name="asking")
    async def flow(number: int) -> int:
        return await ask(number)

    async with database(tmp_path) as (store, outage):
        worker = Worker(store, lease=LEASE, max_in_flight=AT_ONCE, drain=timedelta(0))
        async with BatchOrchestrator(flow, worker=worker) as batches:
            config = BatchConfig(concurrency=AT_ONCE, max_crashes=1)
            batch_id = await batches.submit(range(DOCUMENTS), config=config)
            worker_id = worker.worker_id
            await eventually(lambda: asked.total() == 2 * AT_ONCE)
            caplog.clear()
            async with outage():
                began = CLOCK.boot()
                await eventually(lambda: CLOCK.boot() > began + 2 * LEASE.total_seconds())
                go_on.set()
                await eventually(lambda: answered == asked)
                # What has no lease any more begins nothing, though it has the slots.
                assert asked.total() == 2 * AT_ONCE
            result = await within(batches.result(batch_id))
            assert result.counts.succeeded == DOCUMENTS
            assert asked.total() == answered.total() == DOCUMENTS
            assert worker.worker_id == worker_id
            events = await within(everything(batches.progress(batch_id)))
            assert not [event for event in events if isinstance(event, DocumentReleased)]
    _check_log([record for record in caplog.records if record.levelno >= logging.WARNING])


def _check_log(told: Sequence[logging.LogRecord]) -> None:
    """One line when the outage begins, one when its cause changes, and one with its duration when it ends."""
    *began, ended = [record for record in told if record.name == "durable_batches"]
    assert 1 <= len(began) <= 3
    assert all("unavailable: " in record.message or "is locked by another" in record.message for record in began)
    (seconds,) = [ended.__dict__[name] for name in ("outage_seconds", "locked_seconds") if name in ended.__dict__]
    assert seconds > LEASE.total_seconds()
    assert f"after {seconds:.1f} s" in ended.message
