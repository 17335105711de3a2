"""Reading outcomes: those of an ended run are complete, and whoever stops early leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import ONCE, PATIENCE, STAGES, committed_until, everything, turns, within

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchOrchestrator,
    BatchResult,
    Cancelled,
    Completed,
    ConfigurationError,
    Counts,
    DocumentCancelled,
    DocumentFailure,
    DocumentsFailedError,
    DocumentSucceeded,
    DurableBatchesError,
    Failed,
    Outcome,
    Results,
    RetryFailed,
    Store,
    Worker,
    workflow,
)
from durable_batches.errors import WorkerNotRunningError
from durable_batches.lifecycle.states import BatchId
from durable_batches.testing import results_of

PAGES = 450
"""Documents: more than two of the pages that are read at once."""


@workflow(STAGES, name="double")
async def double(document: int) -> int:
    if document < 0:
        raise ValueError(f"{document} is negative")
    return document * 2


def tags(outcomes: list[Outcome[Any]]) -> list[tuple[str, str]]:
    return [(outcome.document_id, outcome.tag) for outcome in outcomes]


# ---- all of them ---------------------------------------------------------------------------------------------------


async def test_what_a_cancelled_run_left_unfinished_is_among_its_results(store: Store) -> None:
    gate, arrived = asyncio.Event(), asyncio.Event()

    @workflow(STAGES)
    async def run(document: str) -> str:
        if document == "bad":
            raise ValueError("bad")
        if document == "slow":
            arrived.set()
            await gate.wait()
        return document.upper()

    async with BatchOrchestrator(run, store=store) as batches:
        documents = ["good", "bad", "slow", "never"]
        batch_id = await batches.submit(documents, document_id=str, config=BatchConfig(concurrency=1))
        await within(arrived.wait())
        running = [("good", "succeeded"), ("bad", "failed")]
        assert tags(await everything(batches.results(batch_id))) == running
        assert await batches.cancel(batch_id)
        outcomes = await everything(batches.results(batch_id))
        assert tags(outcomes) == [*running, ("slow", "cancelled"), ("never", "cancelled")]
        assert outcomes[0] == DocumentSucceeded(document_id="good", value="GOOD")
        assert outcomes[3] == DocumentCancelled(document_id="never")
        result = await within(batches.result(batch_id))
        assert result.counts == Counts(total=4, succeeded=1, failed=1, cancelled=2)


async def test_of_an_aborted_batch_the_rest_is_cancelled(store: Store) -> None:
    config = BatchConfig(concurrency=1, failure_policy=AbortAll())
    async with BatchOrchestrator(double, store=store) as batches:
        result = await within(batches.run([1, -1, 2, 3], config=config))
        assert isinstance(result.state, Failed)
        outcomes = await everything(batches.results(result.batch_id))
    assert tags(outcomes) == [("0", "succeeded"), ("1", "failed"), ("2", "cancelled"), ("3", "cancelled")]


async def test_a_document_that_waited_for_its_retry_is_cancelled_and_not_failed(store: Store) -> None:
    """It has failed before, but not for good."""
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(hours=1)))
    async with BatchOrchestrator(double, store=store) as batches:
        batch_id = await batches.submit([-1], config=config)

        async def waits() -> bool:
            return (await batches.snapshot(batch_id)).counts.waiting == 1

        await committed_until(batches.worker, waits)
        assert await everything(batches.results(batch_id)) == []
        await batches.cancel(batch_id)
        assert await everything(batches.results(batch_id)) == [DocumentCancelled(document_id="0")]
        (info,) = await everything(batches.documents(batch_id, status="cancelled"))
        assert (info.document, info.failure and info.failure.error) == (-1, "-1 is negative")


async def test_outcomes_of_many_documents_are_whole_and_in_order(store: Store) -> None:
    @workflow(STAGES)
    async def never(document: int) -> int:
        await asyncio.Event().wait()
        return document

    async with BatchOrchestrator(never, store=store, max_in_flight=0) as batches:
        batch_id = await batches.submit(range(PAGES))
        await batches.cancel(batch_id)
        outcomes = await everything(batches.results(batch_id))
    assert tags(outcomes) == [(str(number), "cancelled") for number in range(PAGES)]


# ---- stopping early ------------------------------------------------------------------------------------------------

Reading = Callable[[BatchOrchestrator[int, int, Any, Any], str], AsyncGenerator[Any, None]]

READINGS: dict[str, Reading] = {
    "results": lambda batches, batch_id: batches.results(batch_id),
    "documents": lambda batches, batch_id: batches.documents(batch_id),
    "failed documents": lambda batches, batch_id: batches.documents(batch_id, status="failed"),
    "progress": lambda batches, batch_id: batches.progress(batch_id),
    "watch": lambda batches, batch_id: batches.watch(batch_id),
    "list": lambda batches, _: batches.list_batches(),
}


def assert_nothing_is_left(batches: BatchOrchestrator[int, int, Any, Any], tasks: set[asyncio.Task[Any]]) -> None:
    gc.collect()
    assert batches.worker.news.watched == []
    assert {task for task in asyncio.all_tasks() - tasks if task.get_name() != "durable-batches news"} == set()


@workflow(STAGES, name="never run")
async def never_run(document: int) -> int:
    return document


async def test_a_reader_that_stops_early_leaves_nothing_behind(open_store: StoreMaker) -> None:
    """It breaks off, or is cancelled at various moments: before it begins, within and between reads."""
    async with BatchOrchestrator(double, store=open_store(None)) as batches:
        result = await within(batches.run([*range(PAGES), -1], config=BatchConfig(concurrency=100)))
        for reading in READINGS:
            await check_that_it_leaves_nothing_behind(reading, batches, result.batch_id)
            # Somebody else can write at once: no transaction is open.
            async with asyncio.timeout(PATIENCE):
                async with BatchOrchestrator(never_run, worker=Worker(open_store(None), max_in_flight=0)) as others:
                    await others.submit([1])


async def check_that_it_leaves_nothing_behind(
    reading: str, batches: BatchOrchestrator[int, int, Any, Any], batch_id: str
) -> None:
    tasks = asyncio.all_tasks()
    async with aclosing(READINGS[reading](batches, batch_id)) as stream:
        async for _ in stream:
            break
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert_nothing_is_left(batches, tasks)
    # Cancelled so many turns of the loop after so many items.
    for items, moment in [(0, 0), (0, 1), (1, 1), (10, 3)]:
        tasks = asyncio.all_tasks()
        reached = asyncio.Event()
        reader = asyncio.create_task(read_again_and_again(reading, batches, batch_id, items, reached))
        if items:
            await within(reached.wait())
        await turns(moment)
        reader.cancel()
        await asyncio.wait([reader])
        assert reader.cancelled(), reading
        assert_nothing_is_left(batches, tasks)


async def read_again_and_again(
    reading: str, batches: BatchOrchestrator[int, int, Any, Any], batch_id: str, items: int, reached: asyncio.Event
) -> None:
    """Read until cancelled; `reached`: so many items were seen."""
    seen = 0
    while True:
        async with aclosing(READINGS[reading](batches, batch_id)) as stream:
            async for _ in stream:
                seen += 1
                if seen == items:
                    reached.set()
                await asyncio.sleep(0)


async def test_a_reader_outlives_its_orchestrator_only_to_be_told(store: Store) -> None:
    async with BatchOrchestrator(double, store=store) as batches:
        result = await within(batches.run(range(PAGES), config=BatchConfig(concurrency=100)))
        outcomes = batches.results(result.batch_id)
        await anext(outcomes)
    with pytest.raises(WorkerNotRunningError):
        await everything(outcomes)
    with pytest.raises(WorkerNotRunningError):
        await anext(batches.documents(result.batch_id))


# ---- what a resolver reads -----------------------------------------------------------------------------------------


async def read_in_every_way(results: Results[int]) -> list[int]:
    """A resolver that leaves nothing out, and stops half-way wherever it can; what it returns is the sum, twice."""
    async with aclosing(aiter(results)) as first:
        begin = await anext(first)
    async with aclosing(aiter(results.reopen())) as found, aclosing(results.pages(7)) as pages:
        # Passes of their own, at once.
        assert await anext(found) == begin
        assert [result.value for result in await anext(pages)] == [number * 2 for number in range(7)]
        assert (await anext(found)).value == 2
        assert [result.value for result in await anext(pages)] == [number * 2 for number in range(7, 14)]
    async with aclosing(results.failures()) as failures:
        failure = await anext(failures)
        assert (failure.document_id, failure.error) == ("20", "-1 is negative")
        assert (failure.error_type, failure.activity, failure.attempts) == ("ValueError", None, 1)
    with pytest.warns(DeprecationWarning, match=r"again\(\) is called reopen\(\) now"):
        old_name = results.again()  # type: ignore[deprecated]  # pyright: ignore[reportDeprecated]
    assert len([result async for result in old_name]) == 20
    for size in (0, -1):
        # At the call, and not once it is iterated.
        with pytest.raises(ValueError, match=f"1 document or more, not {size}"):
            results.pages(size)
    assert [len(page) async for page in results.pages(500)] == [20]
    assert [len(page) async for page in results.pages(6)] == [6, 6, 6, 2]
    assert results.counts == Counts(total=22, succeeded=20, failed=2)
    assert [failure.document_id async for failure in results.failures()] == ["20", "21"]
    assert [result.document_id async for result in results] == [str(number) for number in range(20)]
    return [sum([result.value async for result in results]), sum([result.value async for result in results.reopen()])]


async def test_a_resolver_reads_in_every_way(store: Store) -> None:
    @workflow(STAGES, resolver=read_in_every_way, resolver_retry=ONCE)
    async def resolved(document: int) -> int:
        return await double(document)

    async with BatchOrchestrator(resolved, store=store) as batches:
        result = await within(batches.run([*range(20), -1, -2]))
        assert result.value == [380, 380]


async def test_a_resolver_s_unit_test_gives_it_the_same_in_memory() -> None:
    failures = {"20": ValueError("-1 is negative"), "21": ValueError("-2 is negative")}
    values = [number * 2 for number in range(20)]
    assert await read_in_every_way(results_of(values, failures=failures)) == [380, 380]
    named = results_of({str(number): number * 2 for number in range(20)}, failures=failures, batch_id="nightly")
    assert named.batch_id == "nightly"
    assert await read_in_every_way(named) == [380, 380]


async def test_known_results_take_the_ids_that_failures_leave() -> None:
    failure = DocumentFailure(document_id="1", error="no", error_type="ValueError", activity="ask", attempts=3)
    results = results_of(["a", "b", "c"], failures=[failure])
    assert [result.document_id async for result in results] == ["0", "2", "3"]
    assert [found async for found in results.failures()] == [failure]
    assert results.counts == Counts(total=4, succeeded=3, failed=1)


async def test_known_results_of_nothing() -> None:
    results: Results[int] = results_of([])
    assert [page async for page in results.pages(3)] == []
    assert results.counts == Counts()


def test_known_results_have_ids_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="two documents have one id"):
        results_of({"a": 1}, failures={"a": ValueError()})


# ---- printed -------------------------------------------------------------------------------------------------------


def result_of(
    state: Completed | Failed | Cancelled, failures: list[tuple[str, str]], resolution: object = None
) -> BatchResult[object]:
    return BatchResult(
        batch_id=BatchId("b"),
        state=state,
        counts=state.counts,
        resolution=resolution,
        failures=[
            DocumentFailure(document_id=name, error=error, error_type="ValueError", activity=None, attempts=1)
            for name, error in failures
        ],
    )


def test_a_result_is_readable_when_printed() -> None:
    done = Completed(counts=Counts(total=3, succeeded=3))
    assert str(result_of(done, [], resolution="a payload")) == "batch 'b' completed: 3 of 3 documents succeeded"
    some = Completed(counts=Counts(total=9, succeeded=5, failed=4))
    assert str(result_of(some, [("1", "timed\n\n  out"), ("2", "no \x1b[31manswer")])).splitlines() == [
        "batch 'b' completed: 5 of 9 documents succeeded, 4 failed:",
        "  1: ValueError: timed out",
        "  2: ValueError: no [31manswer",
        "  ... and 2 more; results() of the orchestrator has them all",
    ]
    failed = Failed(counts=Counts(total=2, failed=1, cancelled=1), error="it\nfailed")
    assert (
        str(result_of(failed, [])) == "batch 'b' failed (it failed): 0 of 2 documents succeeded, 1 failed, 1 cancelled"
    )
    counts = Counts(total=2, succeeded=1, cancelled=1)
    assert str(result_of(Cancelled(counts=counts, reason=""), [])) == (
        "batch 'b' was cancelled: 1 of 2 documents succeeded, 1 cancelled"
    )
    assert "was cancelled (enough): 1 of 2" in str(result_of(Cancelled(counts=counts, reason="enough"), []))


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (Completed(counts=Counts(total=2, succeeded=2)), 0),
        (Completed(counts=Counts()), 0),
        (Completed(counts=Counts(total=2, succeeded=1, failed=1)), 3),
        (Failed(counts=Counts(total=1, failed=1), error="no"), 4),
        (Cancelled(counts=Counts(total=1, cancelled=1), reason=""), 5),
    ],
    ids=["succeeded", "empty", "with failures", "failed", "cancelled"],
)
def test_the_exit_code_tells_how_it_ended(state: Completed | Failed | Cancelled, code: int) -> None:
    result = result_of(state, [])
    assert result.exit_code == code
    if code == 0:
        assert result.raise_for_failures() is result
    else:
        with pytest.raises(DurableBatchesError):
            result.raise_for_failures()


def test_an_error_that_lists_failures_is_bounded() -> None:
    failures = [(f"{number}-" + "x" * 500, "line\n" * 1_000) for number in range(10)]
    error = DocumentsFailedError("b", Counts(total=5_000, succeeded=10, failed=4_990), failures)
    first, *lines, last = str(error).splitlines()
    assert first == "4990 of 5000 documents of batch 'b' failed:"
    assert len(lines) == 10
    assert all(len(line) <= 270 and line.endswith("…") for line in lines)
    assert last.strip().startswith("... and 4980 more")
    # The whole texts are there for programs.
    assert error.failures == tuple(failures)
