"""Leases in real time: code that blocks the event loop for longer than one does not cost it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from tests.processes.databases import Database
from tests.support import STAGES, everything, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentReleased,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.testing.history.checker import HistoryChecker

LEASE = timedelta(seconds=1.5)


blocked_for: set[float] = set()


@pytest.fixture(autouse=True)
def _not_blocked_yet() -> None:
    blocked_for.clear()


@durable_activity
async def block(seconds: float) -> int:
    """Holds up the event loop the first time, as code does that was not written for one."""
    if seconds not in blocked_for:
        blocked_for.add(seconds)
        time.sleep(seconds)  # noqa: ASYNC251  (that is the point)
    return 1


@durable_activity
async def nap(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 2


@workflow(STAGES, name="blocking")
async def blocking(seconds: float) -> int:
    return await block(seconds) + await nap(0.01)


@contextmanager
def _somebody_else(database: Database) -> Generator[list[str]]:
    """Another process's share of looking after the file, on a thread: whom it declares dead."""
    dead: list[str] = []
    stop = threading.Event()

    async def look() -> None:
        async with database.open() as store:
            while not stop.is_set():
                dead.extend((await store.expire()).workers)
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(look()))
    thread.start()
    try:
        yield dead
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("rounds", [50], indirect=True)
async def test_code_that_blocks_the_event_loop_never_costs_the_lease(database: Database, rounds: int) -> None:
    for _ in range(rounds):
        blocked_for.clear()
        await _block_for_three_leases(database.another())


async def _block_for_three_leases(database: Database) -> None:
    store = database.store()
    worker = Worker(store, lease=LEASE)
    async with BatchOrchestrator(blocking, worker=worker) as batches:
        with _somebody_else(database) as dead:
            first = worker.worker_id
            result = await within(batches.run([5.0, 0.1], config=BatchConfig(concurrency=2)))
        assert result.counts.succeeded == 2
        assert dead == []
        assert worker.worker_id == first


async def test_a_loop_that_stands_still_for_too_long_lets_its_lease_go(database: Database) -> None:
    """So that others can go on; when it turns again it finds itself fenced, and begins anew."""
    store = database.store()
    worker = Worker(store, lease=LEASE, max_stall=timedelta(seconds=3))
    async with BatchOrchestrator(blocking, worker=worker) as batches:
        with _somebody_else(database) as dead:
            first = worker.worker_id
            batch_id = await batches.submit([8.0])
            events = await within(everything(batches.progress(batch_id)))
            assert dead == [first]
            assert worker.worker_id != first
        assert [event.reason for event in events if isinstance(event, DocumentReleased)] == ["crash"]
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
        await HistoryChecker().verify(store, finished=True)


async def test_a_short_stall_limit_does_not_end_a_worker_whose_loop_turns(database: Database) -> None:
    worker = Worker(database.store(), lease=LEASE, max_stall=timedelta(seconds=1.8))
    async with BatchOrchestrator(blocking, worker=worker) as batches:
        first = worker.worker_id
        assert (await within(batches.run([0.0, 0.0]))).counts.succeeded == 2
        await asyncio.sleep(5)
        assert worker.worker_id == first
