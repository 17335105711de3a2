"""Processes that die, and laptops that sleep, in virtual time: what runs on, what is held up, and what is given up."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from tests.support import STAGES, everything

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentFailure,
    MemoryStore,
    Results,
    SQLiteStore,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.errors import CrashLoopError
from durable_batches.lifecycle.records import WorkerId
from durable_batches.reading.reasons import IsolatedDocument
from durable_batches.testing import ManualClock, environment
from durable_batches.testing.history.checker import HistoryChecker

SECOND = timedelta(seconds=1)
HOUR = 3_600.0


async def test_two_kills_with_long_calls_in_flight_hold_up_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """200 quick documents of another batch end within 30 s, and the eight that take an hour run on beside them."""
    clock = ManualClock()
    running: Counter[str] = Counter()

    @durable_activity
    async def take_long(document: str) -> str:
        running[document] += 1
        await clock.sleep(HOUR if document.startswith("slow") else 0.01)
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await take_long(document)

    caplog.set_level(logging.WARNING, "durable_batches")
    async with environment(run, clock=clock, config=BatchConfig(concurrency=8)) as env:
        slow = await env.batches.submit([f"slow-{number}" for number in range(8)], batch_id="slow")
        for _ in range(2):
            await env.settled()
            await env.crash()
        await env.settled()
        snapshot = await env.batches.snapshot(slow)
        assert (snapshot.isolated, snapshot.counts.running) == (8, 2)
        (isolated, *_) = (await env.batches.explain(slow)).reasons
        assert isinstance(isolated, IsolatedDocument)
        assert (isolated.crashes, isolated.waiting) == (2, 6)
        quick = await env.batches.submit([f"quick-{number}" for number in range(200)], batch_id="quick")
        await env.advance(29 * SECOND)
        assert (await env.batches.state(quick)).tag == "completed"
        snapshot = await env.batches.snapshot(slow)
        assert (snapshot.isolated, snapshot.counts.running) == (0, 8)
        assert not [reason for reason in (await env.batches.explain(slow)).reasons if reason.tag == "isolated"]
        assert (await env.finished(slow)).counts.succeeded == 8
        await HistoryChecker().verify(env.store, finished=True)
    told = [record for record in caplog.records if "recorded nothing in between" in record.message]
    assert [(record.levelname, record.__dict__["isolated"]) for record in told] == [("WARNING", 8)], "told once"
    assert "8 documents were running at 2 crashes or more" in told[0].message


async def test_one_poison_document_among_a_hundred_is_found() -> None:
    clock = ManualClock()
    deaths = 0
    poisoned = asyncio.Event()

    @durable_activity
    async def read(document: int) -> int:
        if document == 57:
            poisoned.set()
            await asyncio.Event().wait()
        await clock.sleep(0.2)
        return document

    @workflow(STAGES)
    async def run(document: int) -> int:
        return await read(document)

    config = BatchConfig(concurrency=100, max_crashes=3)
    async with environment(run, clock=clock, config=config, patience=timedelta(seconds=0.02)) as env:
        batch_id = await env.batches.submit(range(100))
        while (await env.batches.snapshot(batch_id)).state.tag != "completed":
            await env.settled()
            if poisoned.is_set():
                poisoned.clear()
                deaths += 1
                await env.crash()
            else:
                await env.advance(0.2 * SECOND)
        outcomes = await everything(env.batches.results(batch_id))
        (failed,) = [outcome for outcome in outcomes if isinstance(outcome, DocumentFailure)]
        assert (failed.document_id, failed.error_type) == ("57", CrashLoopError.__name__)
        await HistoryChecker().verify(env.store, finished=True)
    assert deaths <= 5


async def test_a_document_and_a_resolver_that_go_on_each_time_are_never_given_up() -> None:
    """Sixty recorded steps of half a second each, and a process that dies every five seconds."""
    clock = ManualClock()
    runs: Counter[tuple[str, int]] = Counter()

    @durable_activity
    async def step(of: str, number: int) -> int:
        await clock.sleep(0.5)
        runs[of, number] += 1
        return number

    async def link(results: Results[int]) -> int:
        return sum([await step("resolver", number) for number in range(60)])

    @workflow(STAGES, resolver=link)
    async def run(document: str) -> int:
        return sum([await step(document, number) for number in range(60)])

    crashes = 0
    async with environment(run, clock=clock, config=BatchConfig(max_crashes=3)) as env:
        batch_id = await env.batches.submit(["book"])
        while (await env.batches.state(batch_id)).tag not in ("completed", "failed"):
            await env.settled()
            await env.advance(4.9 * SECOND)
            if (await env.batches.state(batch_id)).tag == "completed":
                break
            await env.crash()
            crashes += 1
        result = await env.batches.result(batch_id)
        assert (result.counts.succeeded, result.value) == (1, sum(range(60)))
        await HistoryChecker().verify(env.store, finished=True)
    assert crashes > 10
    assert set(runs.values()) == {1}, "what was recorded did not run again"


# ---- a lease that ran out is no proof of a crash ---------------------------------------------------------------------


async def _awake(clock: ManualClock, until: Callable[[], bool]) -> None:
    """Let time pass in small steps, as a machine does that is awake, until something has happened."""
    for _ in range(20_000):
        if until():
            return
        clock.advance(0.25)
        await asyncio.to_thread(int)  # the lease is renewed on a thread
    raise AssertionError("it does not happen")


async def test_a_lone_worker_that_was_frozen_renews_first_and_counts_no_crash(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """However often a laptop sleeps: its worker goes on as the same, and nothing is expired."""
    path = tmp_path_factory.mktemp("frozen") / "batches.db"
    clock = ManualClock()
    store = SQLiteStore(path, clock=clock)
    go_on = asyncio.Event()

    @durable_activity
    async def wait(document: str) -> str:
        await go_on.wait()
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await wait(document)

    worker = Worker(store, clock=clock, max_stall=timedelta(days=10))
    async with BatchOrchestrator(run, worker=worker, config=BatchConfig(max_crashes=2)) as batches:
        batch_id = await batches.submit(["a"])
        with worker.signals.scheduler.started.listen() as started:
            if not (await batches.snapshot(batch_id)).counts.running:
                await started.next()
        first = worker.worker_id
        expired: list[WorkerId] = []
        with worker.signals.membership.expired.listen() as looked:
            for _ in range(4):
                clock.advance(8 * HOUR)
                seen = len(looked.heard)
                await _awake(clock, lambda seen=seen: len(looked.heard) > seen)  # type: ignore[misc]  # its own value
            for workers in looked.heard:
                expired += workers
        assert expired == []
        assert worker.worker_id == first
        (row,) = await store.documents(batch_id, limit=1)
        assert (row.execution.crashes, row.execution.attempt) == (0, 1)
        go_on.set()
        assert (await batches.result(batch_id)).counts.succeeded == 1


async def test_a_worker_that_others_took_for_dead_takes_its_crashes_back() -> None:
    """Frozen three times, and expired by another process each time: its documents end at no crash."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)

    @durable_activity
    async def wait(document: str) -> str:
        await clock.sleep(100 * HOUR)
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await wait(document)

    worker = Worker(store, clock=clock, lease=timedelta(days=365))
    async with BatchOrchestrator(run, worker=worker, config=BatchConfig(max_crashes=2)) as batches:
        batch_id = await batches.submit(["a", "b"])
        for _ in range(3):
            with worker.signals.scheduler.claimed.listen() as claimed:
                while (await batches.snapshot(batch_id)).counts.running < 2:
                    await claimed.next()
            session = worker.worker_id
            with worker.signals.membership.restarted.listen() as restarted:
                assert list((await store.expire(dead=[session])).workers) == [session]
                page = await store.documents(batch_id, limit=2)
                assert [(row.execution.crashes, row.execution.taken_from) for row in page] == [(1, session)] * 2
                worker.wake()
                assert await restarted.next() != session
            page = await store.documents(batch_id, limit=2)
            assert {row.execution.crashes for row in page} == {0}
        await batches.cancel(batch_id)
