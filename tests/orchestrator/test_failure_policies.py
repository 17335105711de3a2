"""What failed documents mean for their batch."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DELAY, ONCE, STAGES, Gauge, everything, within

from durable_batches import (
    AbortAll,
    BatchCompleted,
    BatchConfig,
    BatchFailed,
    BatchFailedError,
    BatchOrchestrator,
    Completed,
    ContinueOnFailure,
    DocumentFailed,
    DocumentFailure,
    DocumentRetrying,
    DocumentsFailedError,
    DocumentStarted,
    DocumentSucceeded,
    Failed,
    FailurePolicy,
    Pending,
    Results,
    RetryFailed,
    Store,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.signals import until
from durable_batches.testing import ManualClock, environment


@workflow(STAGES)
async def picky(document: int) -> int:
    """Negative numbers fail."""
    if document < 0:
        raise ValueError(f"{document} is negative")
    return document


def config(policy: FailurePolicy, concurrency: int = 1) -> BatchConfig:
    return BatchConfig(failure_policy=policy, concurrency=concurrency)


# ---- continuing --------------------------------------------------------------------------------------------


async def test_by_default_the_others_go_on(store: Store) -> None:
    async with BatchOrchestrator(picky, store=store) as batches:
        result = await within(batches.run([1, -1, 2, -2, 3]))
        assert isinstance(result.state, Completed)
        assert (result.counts.succeeded, result.counts.failed) == (3, 2)
        assert await everything(batches.results(result.batch_id)) == [
            DocumentSucceeded(document_id="0", value=1),
            DocumentFailure(
                document_id="1", error="-1 is negative", error_type="ValueError", activity=None, attempts=1
            ),
            DocumentSucceeded(document_id="2", value=2),
            DocumentFailure(
                document_id="3", error="-2 is negative", error_type="ValueError", activity=None, attempts=1
            ),
            DocumentSucceeded(document_id="4", value=3),
        ]
        assert [failure.document_id for failure in result.failures] == ["1", "3"]
        assert result.value is None
        with pytest.raises(DocumentsFailedError, match=r"2 of 5 documents .* failed:\n  1: -1 is negative\n  3: -2"):
            result.raise_for_failures()


async def test_of_many_failures_the_first_are_shown(store: Store) -> None:
    async with BatchOrchestrator(picky, store=store) as batches:
        result = await within(batches.run([1, *range(-25, 0)]))
        assert len(result.failures) == 10
        with pytest.raises(DocumentsFailedError, match="and 15 more") as caught:
            result.raise_for_failures()
        assert caught.value.counts.failed == 25
        assert len(caught.value.failures) == 10


@pytest.mark.parametrize(
    ("policy", "failures", "reason"),
    [
        (ContinueOnFailure(max_failures=2), 2, None),
        (ContinueOnFailure(max_failures=2), 3, "3 documents failed, more than max_failures=2"),
        (ContinueOnFailure(max_failures=0), 1, "1 documents failed, more than max_failures=0"),
        (ContinueOnFailure(max_failure_ratio=0.3), 3, None),
        (ContinueOnFailure(max_failure_ratio=0.3), 4, "4 of 10 documents failed, more than max_failure_ratio=0.3"),
        (ContinueOnFailure(max_failure_ratio=0), 0, None),
        (ContinueOnFailure(max_failure_ratio=1.0), 9, None),
        (RetryFailed(max_attempts=1, then=ContinueOnFailure(max_failures=1)), 1, None),
        (RetryFailed(max_attempts=1, then=ContinueOnFailure(max_failures=1)), 2, "more than max_failures=1"),
    ],
    ids=str,
)
async def test_thresholds(policy: FailurePolicy, failures: int, reason: str | None, store: Store) -> None:
    started: list[int] = []

    @workflow(STAGES)
    async def run(document: int) -> int:
        started.append(document)
        return await picky(document)

    documents = [*range(-failures, 0), *range(10 - failures)]
    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(documents, config=config(policy)))
        if reason is None:
            assert isinstance(result.state, Completed)
            assert len(started) == 10
            return
        assert isinstance(result.state, Failed)
        assert reason in result.state.error
        # What had not begun does not begin any more: it is cancelled.
        assert result.counts.failed == failures
        assert result.counts.cancelled == 10 - failures
        assert len(started) <= failures + 1
        with pytest.raises(BatchFailedError, match=r"documents failed, more than"):
            result.raise_for_failures()
        with pytest.raises(BatchFailedError):
            _ = result.value


async def test_a_batch_whose_documents_all_failed_has_failed(store: Store) -> None:
    resolved: list[int] = []

    async def resolver(results: Results[int]) -> int:
        resolved.append(1)
        return 1

    @workflow(STAGES, resolver=resolver)
    async def run(document: int) -> int:
        raise ValueError

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run([-1, -2, -3]))
        assert isinstance(result.state, Failed)
        assert result.state.error == "all documents failed"
        assert (result.counts.failed, result.counts.cancelled) == (3, 0)
        assert result.resolution is None
        events = await everything(batches.progress(result.batch_id))
        assert isinstance(events[-1], BatchFailed)
    assert resolved == []


# ---- aborting ----------------------------------------------------------------------------------------------


async def test_abort_all_stops_what_runs_and_starts_nothing_more(open_store: StoreMaker) -> None:
    # A clock that stands still: it happens at once, and not because somebody looks after a while.
    clock = ManualClock()
    log: Counter[str] = Counter()
    running = asyncio.Event()

    @durable_activity
    async def long() -> None:
        log["started"] += 1
        if log["started"] == 3:
            running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log["cancelled"] += 1
            raise

    @workflow(STAGES)
    async def run(document: str) -> None:
        if document == "bad":
            await running.wait()
            raise ValueError("bad")
        await long()

    documents = ["good", "good", "bad", "good", "good", "good"]
    async with BatchOrchestrator(run, worker=Worker(open_store(clock), clock=clock)) as batches:
        result = await within(batches.run(documents, config=config(AbortAll(), concurrency=4)))
        assert isinstance(result.state, Failed)
        assert result.state.error == "a document failed, and the failure policy is to abort all"
        assert (result.counts.failed, result.counts.cancelled) == (1, 5)
        await until(lambda: log["cancelled"] == 3, batches.worker.signals.scheduler.finished)
        statuses = [info.status for info in await everything(batches.documents(result.batch_id))]
        assert statuses == ["cancelled", "cancelled", "failed", "cancelled", "cancelled", "cancelled"]
    assert log["started"] == 3


# ---- trying again ------------------------------------------------------------------------------------------


async def test_a_failed_document_is_tried_again_up_to_its_attempts(store: Store) -> None:
    attempts: Counter[int] = Counter()

    @workflow(STAGES)
    async def run(document: int) -> int:
        attempts[document] += 1
        if attempts[document] < document:
            raise ValueError(f"attempt {attempts[document]}")
        return document

    policy = RetryFailed(max_attempts=3, backoff=NO_DELAY)
    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run([1, 2, 3, 4, 5], config=config(policy, 5)))
        assert isinstance(result.state, Completed)
        assert (result.counts.succeeded, result.counts.failed) == (3, 2)
        assert attempts == {1: 1, 2: 2, 3: 3, 4: 3, 5: 3}
        assert [(failure.document_id, failure.attempts, failure.error) for failure in result.failures] == [
            ("3", 3, "attempt 3"),
            ("4", 3, "attempt 3"),
        ]
        events = await everything(batches.progress(result.batch_id))
    kinds = Counter(type(event) for event in events)
    assert kinds[DocumentRetrying] == 1 + 2 + 2 + 2
    assert kinds[DocumentStarted] == 1 + 2 + 3 + 3 + 3
    assert kinds[DocumentFailed] == 2
    assert isinstance(events[-1], BatchCompleted)


async def test_when_the_attempts_are_used_up_it_is_as_then_says(store: Store) -> None:
    policy = RetryFailed(max_attempts=2, backoff=NO_DELAY, then=AbortAll())
    async with BatchOrchestrator(picky, store=store) as batches:
        result = await within(batches.run([1, -1, 2, 3], config=config(policy)))
        assert isinstance(result.state, Failed)
        assert result.state.error == "a document failed, and the failure policy is to abort all"
        assert result.failures[0].attempts == 2


async def test_a_document_that_waits_for_its_next_attempt_holds_no_slot(open_store: StoreMaker) -> None:
    attempts: Counter[int] = Counter()
    gauge = Gauge()

    @workflow(STAGES)
    async def run(document: int) -> int:
        with gauge:
            attempts[document] += 1
            await asyncio.sleep(0)
            if document == 0 and attempts[0] < 3:
                raise ValueError
        return document

    policy = RetryFailed(max_attempts=3, backoff=timedelta(minutes=10))
    async with environment(run, store=open_store, config=config(policy)) as env:
        batch_id = await env.batches.submit(range(5))
        await env.settled()
        counts = (await env.batches.snapshot(batch_id)).counts
        assert (counts.succeeded, counts.waiting, counts.running) == (4, 1, 0)
        (waiting,) = await everything(env.batches.documents(batch_id, status="waiting"))
        assert waiting.failure is not None
        assert (waiting.failure.error_type, waiting.attempts) == ("ValueError", 1)
        await env.advance(timedelta(seconds=599))
        assert attempts[0] == 1
        await env.advance(timedelta(seconds=1))
        assert attempts[0] == 2
        # The delay doubles.
        await env.advance(timedelta(seconds=1_199))
        assert attempts[0] == 2
        await env.advance(timedelta(seconds=1))
        assert (await env.batches.snapshot(batch_id)).counts.succeeded == 5
    assert gauge.most == 1


async def test_the_delay_outlives_the_worker(open_store: StoreMaker) -> None:
    clock = ManualClock()
    attempts: list[float] = []

    @workflow(STAGES)
    async def run(document: int) -> int:
        attempts.append(clock.boot())
        if len(attempts) == 1:
            raise ValueError
        return document

    async with environment(run, store=open_store, clock=clock) as env:
        batch_id = await env.batches.submit([1], config=config(RetryFailed(backoff=timedelta(hours=1))))
        await env.advance(timedelta(minutes=20))
        assert (await env.batches.snapshot(batch_id)).counts.waiting == 1
    clock.advance(20 * 60)
    async with environment(run, store=open_store, clock=clock) as env:
        await env.advance(timedelta(minutes=20) - timedelta(seconds=1))
        assert len(attempts) == 1
        await env.advance(timedelta(seconds=1))
        assert (await env.batches.snapshot(batch_id)).counts.succeeded == 1
    assert attempts[1] - attempts[0] == 3_600


async def test_a_delay_that_passed_while_no_worker_was_there_is_over(open_store: StoreMaker) -> None:
    clock = ManualClock()
    attempts: list[int] = []

    @workflow(STAGES)
    async def run(document: int) -> int:
        attempts.append(document)
        if len(attempts) == 1:
            raise ValueError
        return document

    async with environment(run, store=open_store, clock=clock) as env:
        batch_id = await env.batches.submit([1], config=config(RetryFailed(backoff=timedelta(hours=1))))
        await env.settled()
        assert (await env.batches.snapshot(batch_id)).counts.waiting == 1
    clock.advance(4_000)
    async with environment(run, store=open_store, clock=clock) as env:
        await env.settled()
        assert (await env.batches.snapshot(batch_id)).counts.succeeded == 1


# ---- time limits -------------------------------------------------------------------------------------------


async def test_a_document_over_its_timeout_has_failed_and_is_tried_again(store: Store) -> None:
    attempts: Counter[str] = Counter()
    cancelled: list[str] = []

    @durable_activity(retry=ONCE)
    async def step(document: str) -> str:
        attempts[document] += 1
        if document == "slow" or (document == "slow at first" and attempts[document] == 1):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(document)
                raise
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step(document)

    limited = BatchConfig(
        document_timeout=timedelta(milliseconds=500), failure_policy=RetryFailed(max_attempts=2, backoff=NO_DELAY)
    )
    async with BatchOrchestrator(run, store=store, config=limited) as batches:
        result = await within(batches.run(["slow", "slow at first", "fast"], batch_id="b", document_id=str))
        assert result.counts.succeeded == 2
        (failure,) = result.failures
    assert (failure.document_id, failure.error_type, failure.attempts) == ("slow", "DocumentTimeoutError", 2)
    assert failure.error == "document 'slow' of batch 'b' ran longer than the batch's document_timeout of 0.5 s"
    assert sorted(cancelled) == ["slow", "slow", "slow at first"]


@pytest.mark.parametrize("capacity", [10, 2, 1], ids=["room left", "full", "nothing running but one"])
async def test_a_batch_over_its_deadline_has_failed(capacity: int, open_store: StoreMaker) -> None:
    log: Counter[str] = Counter()

    @workflow(STAGES)
    async def run(document: int) -> int:
        log["started"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log["cancelled"] += 1
            raise
        return document

    limits = BatchConfig(concurrency=2, deadline=timedelta(minutes=5))
    async with environment(run, store=open_store, max_in_flight=capacity, config=limits) as env:
        batch_id = await env.batches.submit(range(5))
        await env.advance(timedelta(seconds=299))
        assert log["started"] == min(capacity, 2)
        assert log["cancelled"] == 0
        await env.advance(timedelta(seconds=1))
        state = await env.batches.state(batch_id)
        assert isinstance(state, Failed)
        assert state.error == "the batch's deadline has passed"
        assert log["cancelled"] == log["started"]


@pytest.mark.parametrize("whose", ["its own", "another worker's"])
async def test_a_deadline_passes_where_nobody_has_room(whose: str, open_store: StoreMaker) -> None:
    gate = asyncio.Event()

    @workflow(STAGES)
    async def run(document: int) -> int:
        await gate.wait()
        return document

    async with environment(run, store=open_store, max_in_flight=1) as env:
        endless = await env.batches.submit([1])
        await env.settled()
        # A store of another process, as it were: only news in the store reach the first.
        others = Worker(open_store(env.clock), clock=env.clock, max_in_flight=0)
        async with BatchOrchestrator(run, worker=others) as elsewhere:
            limits = BatchConfig(deadline=timedelta(minutes=5))
            submitter = env.batches if whose == "its own" else elsewhere
            batch_id = await submitter.submit([2], config=limits)
            await env.advance(timedelta(seconds=299))
            assert isinstance(await env.batches.state(batch_id), Pending)
            await env.advance(timedelta(seconds=3))
            assert isinstance(await env.batches.state(batch_id), Failed)
        gate.set()
        assert (await env.finished(endless)).counts.succeeded == 1


async def test_a_deadline_that_passed_while_no_worker_was_there(open_store: StoreMaker) -> None:
    clock = ManualClock()
    started: list[int] = []

    @workflow(STAGES)
    async def run(document: int) -> int:
        started.append(document)
        return document

    async with BatchOrchestrator(run, worker=Worker(open_store(clock), clock=clock, max_in_flight=0)) as batches:
        batch_id = await batches.submit([1], config=BatchConfig(deadline=timedelta(minutes=5)))
    clock.advance(301)
    async with BatchOrchestrator(run, worker=Worker(open_store(clock), clock=clock)) as batches:
        result = await within(batches.result(batch_id))
        assert isinstance(result.state, Failed)
    assert started == []
