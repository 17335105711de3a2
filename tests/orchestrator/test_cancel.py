"""Cancelling: who is told that it worked, what is stopped, and what is kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES, at_rest, committed_until, eventually, everything, within

from durable_batches import (
    BatchCancelled,
    BatchCancelledError,
    BatchConfig,
    BatchOrchestrator,
    Cancelled,
    Completed,
    DocumentCancelled,
    Store,
    Worker,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.signals import until
from durable_batches.testing import ManualClock, environment
from durable_batches.testing.virtual.inside import attempts_of


async def test_of_many_calls_at_once_exactly_one_cancels(open_store: StoreMaker) -> None:
    store = open_store(None)

    @workflow(STAGES)
    async def run(document: int) -> int:
        await asyncio.Event().wait()
        return document

    async with (
        BatchOrchestrator(run, store=store) as batches,
        BatchOrchestrator(run, worker=Worker(store)) as others,
    ):
        batch_id = await batches.submit(range(3))
        calls = [side.cancel(batch_id, reason=f"reason {number}") for number in range(8) for side in (batches, others)]
        answers = await within(asyncio.gather(*calls))
        assert sorted(answers) == [False] * 15 + [True]
        assert await batches.cancel(batch_id) is False
        state = await batches.state(batch_id)
        assert isinstance(state, Cancelled)
        assert state.reason == f"reason {answers.index(True) // 2}"
        events = await everything(batches.progress(batch_id))
        assert sum(isinstance(event, BatchCancelled) for event in events) == 1
        result = await within(others.result(batch_id))
        assert result.counts.cancelled == 3
        with pytest.raises(BatchCancelledError, match="was cancelled: reason"):
            _ = result.value
        with pytest.raises(BatchCancelledError):
            result.raise_for_failures()


async def test_a_batch_that_has_ended_is_not_cancelled(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: int) -> int:
        return document

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run([1]))
        assert await batches.cancel(result.batch_id) is False
        assert isinstance(await batches.state(result.batch_id), Completed)


async def test_what_runs_is_cancelled_and_nothing_starts_afterwards(open_store: StoreMaker) -> None:
    # A clock that stands still: it happens at once, and not because somebody looks after a while.
    clock = ManualClock()
    log: Counter[str] = Counter()

    @durable_activity
    async def long(number: int) -> None:
        log["started"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log["cancelled"] += 1
            raise

    @workflow(STAGES)
    async def run(document: int) -> None:
        try:
            await map_activity(long, range(10), concurrency=2)
        finally:
            log["ended"] += 1
            # Even now: no activity starts in a batch that has ended.
            with pytest.raises(asyncio.CancelledError):
                await long(-1)

    async with BatchOrchestrator(run, worker=Worker(open_store(clock), clock=clock)) as batches:
        batch_id = await batches.submit(range(20), config=BatchConfig(concurrency=3))
        await eventually(lambda: log["started"] == 6)
        assert await batches.cancel(batch_id)
        await until(lambda: log["ended"] == 3, batches.worker.signals.scheduler.finished)
        assert log == {"started": 6, "cancelled": 6, "ended": 3}
        result = await within(batches.result(batch_id))
        assert (result.counts.cancelled, result.counts.running) == (20, 0)


async def test_a_batch_that_has_not_begun_can_be_cancelled(open_store: StoreMaker) -> None:
    started: list[int] = []

    @workflow(STAGES)
    async def run(document: int) -> None:
        started.append(document)

    async with BatchOrchestrator(run, store=open_store(None), max_in_flight=0) as batches:
        batch_id = await batches.submit(range(5))
        assert await batches.cancel(batch_id)
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        assert (await within(batches.result(batch_id))).counts.cancelled == 5
        statuses = [info.status for info in await everything(batches.documents(batch_id))]
        assert statuses == ["cancelled"] * 5
    assert started == []


async def test_a_result_that_comes_late_is_recorded_and_changes_nothing_else(store: Store) -> None:
    started = asyncio.Event()

    @durable_activity
    async def paid_for() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # It was just about to return.
            return "the expensive answer"
        return ""

    @workflow(STAGES)
    async def run(document: int) -> str:
        return await paid_for()

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit([1])
        await within(started.wait())
        assert await batches.cancel(batch_id)
        before = await batches.snapshot(batch_id)

        async def recorded() -> bool:
            return await batches.count_checkpoints(batch_id) == 1

        await committed_until(batches.worker, recorded)
        after = await batches.snapshot(batch_id)
        assert (after.seq, after.counts, after.state) == (before.seq, before.counts, before.state)
        assert await everything(batches.results(batch_id)) == [DocumentCancelled(document_id="0")]


@pytest.mark.parametrize("moment", [0, 1, 10, 11, 57, 100, 203, 400])
async def test_cancelled_at_any_moment_no_activity_starts_afterwards(moment: int, store: Store) -> None:
    """When so many calls have begun: none, the first, some, the last."""
    started: list[int] = []
    reached = asyncio.Event()

    @durable_activity
    async def step(document: int, number: int) -> int:
        started.append(document)
        if len(started) == moment:
            reached.set()
        await asyncio.sleep(0)
        return number

    @durable_activity
    def step_sync(document: int, number: int) -> int:
        # Not noted: between its start and a first line of it another thread may run.
        return number

    @workflow(STAGES)
    async def run(document: int) -> int:
        total = 0
        for number in range(4):
            total += await step(document, number) + await step_sync(document, number)
        return total

    async with BatchOrchestrator(run, store=store, max_in_flight=20) as batches:
        batch_id = await batches.submit(range(100), config=BatchConfig(concurrency=10))
        if moment:
            await within(reached.wait())
        cancelled = await batches.cancel(batch_id)
        count = len(started)
        await until(lambda: attempts_of(batches.worker) == [], batches.worker.signals.scheduler.finished)
        await at_rest(batches.worker)
        assert len(started) == count
        result = await within(batches.result(batch_id))
        assert isinstance(result.state, Cancelled) == cancelled
        events = await everything(batches.progress(batch_id))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        # Ended runs absorb: the last event is the last that there will be.
        assert (await batches.snapshot(batch_id)).seq == len(events)


async def test_other_batches_go_on(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: int) -> int:
        if document >= 20:
            await asyncio.Event().wait()
        return document

    async with BatchOrchestrator(run, store=store) as batches:
        doomed = await batches.submit(range(20, 120))
        kept = await batches.submit(range(20))
        assert await batches.cancel(doomed)
        assert (await within(batches.result(kept))).counts.succeeded == 20
        assert isinstance(await batches.state(doomed), Cancelled)


async def test_another_worker_s_cancel_stops_what_runs_here(open_store: StoreMaker) -> None:
    store = open_store(None)
    log: Counter[str] = Counter()

    @durable_activity
    async def long() -> None:
        log["started"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log["cancelled"] += 1
            raise

    @workflow(STAGES)
    async def run(document: int) -> None:
        await long()

    async with (
        BatchOrchestrator(run, store=store) as batches,
        BatchOrchestrator(run, store=open_store(None), max_in_flight=0) as remote,
    ):
        batch_id = await batches.submit([1])
        await eventually(lambda: log["started"] == 1)
        assert await remote.cancel(batch_id)
        await until(lambda: log["cancelled"] == 1, batches.worker.signals.scheduler.finished)
        result = await within(batches.result(batch_id))
        assert isinstance(result.state, Cancelled)


@pytest.mark.parametrize("where", ["in the workflow's task", "in one of its own"])
async def test_an_activity_may_take_long_to_clean_up(where: str, open_store: StoreMaker) -> None:
    """Longer than the interval at which a worker looks for batches that others have ended."""
    clock = ManualClock()
    cleaned: list[str] = []

    @durable_activity
    async def stubborn() -> None:
        try:
            await clock.sleep(3600)
        finally:
            await clock.sleep(3.5)
            cleaned.append("up")

    @workflow(STAGES)
    async def run(document: str) -> str:
        if document == "stubborn":
            await (asyncio.gather(stubborn()) if where == "in one of its own" else stubborn())
        return document

    async with environment(run, store=open_store, clock=clock, max_in_flight=1) as env:
        batch_id = await env.batches.submit(["stubborn"])
        await env.settled()
        assert await env.batches.cancel(batch_id)
        another = await env.batches.submit(["another"])
        for _ in range(3):
            await env.advance(timedelta(seconds=1))
            assert not cleaned
            assert (await env.batches.snapshot(another)).counts.pending == 1
        # Only then its slot is free again.
        await env.advance(timedelta(seconds=1))
        assert cleaned == ["up"]
        assert (await env.batches.snapshot(another)).counts.succeeded == 1


async def test_a_workflow_that_swallows_its_cancellation_is_cancelled_all_the_same(store: Store) -> None:
    log: Counter[str] = Counter()

    @durable_activity
    async def long() -> None:
        log["started"] += 1
        await asyncio.Event().wait()

    @workflow(STAGES)
    async def run(document: str) -> str:
        for _ in range(3):
            try:
                await long()
            except asyncio.CancelledError:
                log["swallowed"] += 1
        return "done nevertheless"

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["a"])
        await eventually(lambda: log["started"] == 1)
        assert await batches.cancel(batch_id)
        result = await within(batches.result(batch_id))
        assert result.counts.cancelled == 1
        assert await everything(batches.results(batch_id)) == [DocumentCancelled(document_id="0")]
        await until(lambda: log["swallowed"] == 3, batches.worker.signals.scheduler.finished)
    assert log["started"] == 1
