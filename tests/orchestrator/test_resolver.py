"""The step that runs once, after all documents have ended."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from pydantic import BaseModel
from tests.conftest import StoreMaker
from tests.support import AT_ONCE, NO_DELAY, NO_DRAIN, ONCE, STAGES, Reading, eventually, everything, turns, within

from durable_batches import (
    AbortAll,
    ActivityFailedError,
    BatchConfig,
    BatchFailedError,
    BatchOrchestrator,
    Cancelled,
    Completed,
    Counts,
    Failed,
    NonRetryableError,
    ResolutionCompleted,
    ResolutionFailed,
    ResolutionStarted,
    Resolving,
    Results,
    RetryPolicy,
    StateChanged,
    Store,
    Worker,
    Workflow,
    current_activity,
    durable_activity,
    enter_stage,
    workflow,
)
from durable_batches.signals import until


class Total(BaseModel):
    sum: int
    failed: list[str] = []


def summing(resolver: Any, retry: RetryPolicy = AT_ONCE) -> Workflow[int, int, Any, Any]:
    @workflow(STAGES, name="summing", resolver=resolver, resolver_retry=retry)
    async def run(document: int) -> int:
        await turns(document % 3)
        if document < 0:
            raise ValueError(f"{document} is negative")
        return document

    return run


async def test_it_sees_the_results_in_submission_order_and_the_failures(store: Store) -> None:
    async def resolve(results: Results[int]) -> Total:
        seen = [(result.document_id, result.value) async for result in results]
        assert seen == sorted(seen, key=lambda item: int(item[0]))
        # From the first again.
        assert [(result.document_id, result.value) async for result in results] == seen
        failed = [failure async for failure in results.failures()]
        assert [failure.error for failure in failed] == ["-1 is negative", "-2 is negative"]
        assert results.counts == Counts(total=30, succeeded=28, failed=2)
        assert results.batch_id == "b"
        return Total(sum=sum(value for _, value in seen), failed=[failure.document_id for failure in failed])

    documents = [*range(10), -1, *range(10), -2, *range(8)]
    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        result = await within(batches.run(documents, batch_id="b"))
        assert isinstance(result.state, Completed)
        assert result.value == result.resolution == Total(sum=45 + 45 + 28, failed=["10", "21"])


async def test_it_reads_page_by_page(store: Store) -> None:
    sizes: list[list[int]] = []

    async def resolve(results: Results[int]) -> None:
        for size in (7, 20, 1_000):
            pages = [page async for page in results.pages(size)]
            sizes.append([len(page) for page in pages])
            assert [item.value for page in pages for item in page] == list(range(20))
        with pytest.raises(ValueError, match="1 document or more"):
            await anext(aiter(results.pages(0)))

    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        assert (await within(batches.run(range(20)))).value is None
    assert sizes == [[7, 7, 6], [20], [20]]


async def test_it_starts_after_the_last_document_and_the_batch_is_resolving_meanwhile(store: Store) -> None:
    go_on = asyncio.Event()
    started = asyncio.Event()

    async def resolve(results: Results[int]) -> int:
        started.set()
        await go_on.wait()
        return len([result async for result in results])

    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        batch_id = await batches.submit(range(5))
        await within(started.wait())
        snapshot = await batches.snapshot(batch_id)
        assert snapshot.state == Resolving(counts=Counts(total=5, succeeded=5))
        assert snapshot.percentage == 100
        go_on.set()
        assert (await within(batches.result(batch_id))).value == 5
        events = await everything(batches.progress(batch_id))
    tags = [event.tag for event in events]
    assert tags.index("resolution_started") > max(
        index for index, tag in enumerate(tags) if tag in ("document_completed", "stage_progress")
    )
    assert tags[-4:] == ["resolution_started", "resolution_completed", "state_changed", "batch_completed"]
    assert [(event.previous, event.state) for event in events if isinstance(event, StateChanged)][-2:] == [
        ("reading", "resolving"),
        ("resolving", "completed"),
    ]


async def test_an_empty_batch_is_resolved_over_nothing(store: Store) -> None:
    async def resolve(results: Results[int]) -> int:
        return len([result async for result in results])

    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        result = await within(batches.run([]))
        assert isinstance(result.state, Completed)
        assert (result.value, result.counts) == (0, Counts())


async def test_an_empty_batch_without_a_resolver_completes(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: int) -> int:
        return document

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run([]))
        assert result.state == Completed(counts=Counts())
        assert result.raise_for_failures().value is None
        assert (await batches.snapshot(result.batch_id)).percentage == 100
        assert [event.tag for event in await everything(batches.progress(result.batch_id))] == [
            "batch_created",
            "state_changed",
            "batch_completed",
        ]


async def test_its_activities_are_recorded(open_store: StoreMaker) -> None:
    calls: list[str] = []
    documents: list[str] = []
    go_on = asyncio.Event()

    @durable_activity
    async def add(one: int, other: int) -> int:
        calls.append("add")
        documents.append(current_activity().document_id)
        return one + other

    @durable_activity(retry=AT_ONCE)
    def publish(total: int) -> str:
        calls.append("publish")
        documents.append(current_activity().document_id)
        if calls.count("publish") == 1:
            raise ConnectionError
        return f"published {total}"

    async def resolve(results: Results[int]) -> str:
        total = 0
        async for result in results:
            total = await add(total, result.value)
        calls.append("resolve")
        if len(calls) < 6:
            await go_on.wait()
        return await publish(total)

    run = summing(resolve)
    async with BatchOrchestrator(run, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit([1, 2, 3])
        await eventually(lambda: "resolve" in calls)
    go_on.set()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        result = await within(batches.result(batch_id))
        assert result.value == "published 6"
        assert (batches.stats.activities_replayed, batches.stats.documents_run) == (3, 0)
        assert await batches.count_checkpoints(batch_id) == 4
    assert calls == ["add"] * 3 + ["resolve"] * 2 + ["publish"] * 2
    assert set(documents) == {""}


async def test_it_is_tried_again_by_its_own_policy(store: Store) -> None:
    attempts: list[int] = []

    async def resolve(results: Results[int]) -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError(f"attempt {len(attempts)}")
        return len(attempts)

    run = summing(resolve, RetryPolicy(max_attempts=3, initial=NO_DELAY))
    async with BatchOrchestrator(run, store=store, config=BatchConfig(failure_policy=AbortAll())) as batches:
        result = await within(batches.run([1]))
        assert result.value == 3
        events = await everything(batches.progress(result.batch_id))
    failed = [event for event in events if isinstance(event, ResolutionFailed)]
    assert [event.error for event in failed] == ["attempt 1", "attempt 2"]
    assert all(event.due is not None for event in failed)
    assert [event.attempt for event in events if isinstance(event, ResolutionStarted)] == [1, 2, 3]
    assert sum(isinstance(event, ResolutionCompleted) for event in events) == 1


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ConnectionError("down"), 3), (KeyError("k"), 1), (NonRetryableError("never"), 1)],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else "",
)
async def test_when_it_fails_for_good_the_batch_has_failed(error: Exception, attempts: int, store: Store) -> None:
    seen: list[int] = []

    async def resolve(results: Results[int]) -> int:
        seen.append(1)
        raise error

    retry = RetryPolicy(max_attempts=3, initial=NO_DELAY, non_retryable=(KeyError,))
    async with BatchOrchestrator(summing(resolve, retry), store=store) as batches:
        result = await within(batches.run([1, 2]))
        assert isinstance(result.state, Failed)
        assert result.state.error == f"the resolver failed: {error}"
        assert (result.resolution, result.counts.succeeded) == (None, 2)
        with pytest.raises(BatchFailedError, match="the resolver failed"):
            _ = result.value
        # The documents' results are there all the same.
        assert len(await everything(batches.results(result.batch_id))) == 2
        events = await everything(batches.progress(result.batch_id))
    assert len(seen) == attempts
    (last,) = [event for event in events if isinstance(event, ResolutionFailed)][-1:]
    assert last.due is None


async def test_a_policy_that_fails_itself_does_not_hide_the_error(store: Store) -> None:
    def decide(error: BaseException) -> bool:
        raise LookupError("no decision")

    attempts: list[int] = []

    async def resolve(results: Results[int]) -> int:
        attempts.append(1)
        raise ConnectionError("no route")

    policy = RetryPolicy(max_attempts=2, initial=NO_DELAY, retryable=decide)
    async with BatchOrchestrator(summing(resolve, policy), store=store) as batches:
        result = await within(batches.run([1]))
        assert isinstance(result.state, Failed)
        assert result.state.error == "the resolver failed: no route"
    assert len(attempts) == 2


async def test_a_failed_activity_of_it_is_run_again_by_its_next_attempt(store: Store) -> None:
    calls: list[str] = []

    @durable_activity(retry=ONCE)
    async def step(name: str) -> str:
        calls.append(name)
        if calls.count("b") == 1 and name == "b":
            raise ConnectionError
        return name

    async def resolve(results: Results[int]) -> str:
        return await step("a") + await step("b")

    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        assert (await within(batches.run([1]))).value == "ab"
    assert calls == ["a", "b", "b"]


async def test_a_resolution_that_cannot_be_recorded_fails_the_batch(store: Store) -> None:
    attempts: list[int] = []

    async def resolve(results: Results[int]) -> dict[str, float]:
        attempts.append(1)
        return {"mean": math.nan}

    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        result = await within(batches.run([1]))
        assert isinstance(result.state, Failed)
        assert "the resolution of workflow 'summing' cannot be stored: at $['mean']" in result.state.error
    assert attempts == [1]


async def test_an_interruption_gives_it_to_the_next_worker(open_store: StoreMaker) -> None:
    started: list[int] = []

    async def resolve(results: Results[int]) -> int:
        started.append(1)
        if len(started) == 1:
            await asyncio.Event().wait()
        return sum([result.value async for result in results])

    run = summing(resolve)
    async with BatchOrchestrator(run, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit([1, 2])
        await eventually(lambda: len(started) == 1)
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        assert (await within(batches.result(batch_id))).value == 3


async def test_it_can_be_cancelled(store: Store) -> None:
    cancelled: list[int] = []
    started = asyncio.Event()

    async def resolve(results: Results[int]) -> int:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return 1

    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        batch_id = await batches.submit([1, 2])
        await within(started.wait())
        assert await batches.cancel(batch_id, reason="enough") is True
        result = await within(batches.result(batch_id))
        assert result.state == Cancelled(counts=Counts(total=2, succeeded=2), reason="enough")
        await until(lambda: cancelled == [1], batches.worker.signals.scheduler.finished)


async def test_it_may_catch_what_its_activities_raise(store: Store) -> None:
    @durable_activity(retry=ONCE)
    async def step() -> str:
        raise ConnectionError

    async def resolve(results: Results[int]) -> str:
        try:
            return await step()
        except ActivityFailedError as error:
            # It has no stage: marking one is none of its business, and harms nothing.
            enter_stage(Reading)
            return error.error_type

    async with BatchOrchestrator(summing(resolve), store=store) as batches:
        assert (await within(batches.run([1]))).value == "ConnectionError"


async def test_it_runs_once_though_several_workers_are_there(open_store: StoreMaker) -> None:
    runs: list[int] = []
    store = open_store(None)
    workers = [Worker(store) for _ in range(3)]

    async def resolve(results: Results[int]) -> int:
        runs.append(1)
        for worker in workers:
            # Each of them looks for something to do once more.
            with worker.signals.scheduler.idle.listen() as idle:
                worker.wake()
                await idle.next()
        return sum([result.value async for result in results])

    run = summing(resolve)
    async with (
        BatchOrchestrator(run, worker=workers[0]) as batches,
        BatchOrchestrator(run, worker=workers[1]),
        BatchOrchestrator(run, worker=workers[2]),
    ):
        result = await within(batches.run(range(50), config=BatchConfig(concurrency=20)))
        assert result.value == sum(range(50))
        events = await everything(batches.progress(result.batch_id))
    assert runs == [1]
    assert sum(isinstance(event, ResolutionStarted) for event in events) == 1


async def test_a_resolver_that_the_code_does_not_have_any_more(open_store: StoreMaker) -> None:
    async def resolve(results: Results[int]) -> int:
        return 1

    async with BatchOrchestrator(summing(resolve), store=open_store(None), max_in_flight=0) as batches:
        batch_id = await batches.submit([1])
    async with BatchOrchestrator(summing(None), store=open_store(None)) as batches:
        result = await within(batches.result(batch_id))
        assert isinstance(result.state, Failed)
        assert "no resolver any more" in result.state.error


async def test_a_resolver_that_the_code_has_by_now_is_not_run_for_an_older_batch(open_store: StoreMaker) -> None:
    async def resolve(results: Results[int]) -> int:
        raise AssertionError

    async with BatchOrchestrator(summing(None), store=open_store(None), max_in_flight=0) as batches:
        batch_id = await batches.submit([1])
    async with BatchOrchestrator(summing(resolve), store=open_store(None)) as batches:
        result = await within(batches.result(batch_id))
        assert isinstance(result.state, Completed)
        assert result.resolution is None
