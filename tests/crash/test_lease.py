"""A lease outlives code that blocks the event loop; a loop that stands still for too long lets it go."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from tests.crash.databases import Database
from tests.support import STAGES, everything, within

from durable_batches import (
    BatchConfig,
    BatchNotFoundError,
    BatchOrchestrator,
    DocumentReleased,
    SubmissionInProgressError,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.testing.history.checker import HistoryChecker

LEASE = timedelta(seconds=1.5)
SOAK_ROUNDS = int(os.environ.get("DURABLE_BATCHES_SOAK_ROUNDS", "50"))


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


async def test_code_that_blocks_the_event_loop_does_not_cost_the_lease(database: Database) -> None:
    await _block_for_three_leases(database)


@pytest.mark.soak
async def test_code_that_blocks_the_event_loop_never_costs_the_lease(database: Database) -> None:
    for _ in range(SOAK_ROUNDS):
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


async def test_a_submitter_that_was_declared_dead_spoils_nothing(database: Database) -> None:
    """It was stopped for long, another one has loaded the batch meanwhile, and then it goes on where it was."""
    stopped, again = asyncio.Event(), asyncio.Event()

    async def documents() -> object:
        for number in range(2_000):
            if number == 700:
                stopped.set()
                await again.wait()
            yield number / 1_000_000

    late, soon = (BatchOrchestrator(blocking, store=database.store(), max_in_flight=0) for _ in range(2))
    async with late, soon:
        submitting = asyncio.create_task(late.submit(documents(), batch_id="batch"))  # type: ignore[arg-type]
        await stopped.wait()
        await soon.worker.store.expire(dead=[late.worker.worker_id])
        await soon.submit([0.0, 0.001], batch_id="batch")
        again.set()
        with pytest.raises((BatchNotFoundError, SubmissionInProgressError)):
            await submitting
        assert (await soon.snapshot("batch")).counts.total == 2
        assert [document.document async for document in soon.documents("batch")] == [0.0, 0.001]
    async with BatchOrchestrator(blocking, store=database.store()) as batches:
        assert (await within(batches.result("batch"))).counts.succeeded == 2
    checker = HistoryChecker()
    checker.acknowledged("batch", ["0", "1"])
    async with database.open() as store:
        await checker.verify(store, finished=True, everyone_left=True)
