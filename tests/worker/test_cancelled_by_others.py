"""Tasks that end other than their worker ends them: cancelled by their own code, or by a helper that owns them not."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, ONCE, STAGES, eventually, turns, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    Results,
    RetryFailed,
    RetryPolicy,
    Store,
    Worker,
    WorkerNotRunningError,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.errors import FactRejectedError
from durable_batches.lifecycle.facts import ExecutionFailed
from durable_batches.testing import ManualClock


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def cancels_itself_and_does_not_wait() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def closes_a_generator() -> None:
    raise GeneratorExit("a generator was closed")


async def loses_what_it_waits_for_after_an_old_timeout_helper() -> None:
    """As before Python 3.11: the helper cancels the task, eats the cancellation, and does not call uncancel()."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    lost = asyncio.get_running_loop().create_future()
    lost.cancel()
    await lost


WAYS: list[Callable[[], Awaitable[None]]] = [
    cancels_itself,
    closes_a_generator,
    loses_what_it_waits_for_after_an_old_timeout_helper,
]

# ---- an attempt's own code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["workflow", "activity", "activity in a task", "resolver"])
async def test_whatever_ends_the_task_of_an_attempt_ends_the_attempt(
    way: Callable[[], Awaitable[None]], where: str, store: Store
) -> None:
    @durable_activity(retry=ONCE)
    async def step(number: int) -> int:
        if number == 0 and where.startswith("activity"):
            await way()
        return number

    async def resolve(results: Results[int]) -> int:
        if where == "resolver":
            await way()
        return len([result async for result in results])

    @workflow(STAGES, resolver=resolve, resolver_retry=ONCE)
    async def run(number: int) -> int:
        if number == 0 and where == "workflow":
            await way()
        return await (asyncio.create_task(step(number)) if where == "activity in a task" else step(number))

    async with BatchOrchestrator(run, worker=Worker(store, drain=NO_DRAIN)) as batches:
        result = await within(batches.run([0, 1, 2]))
        assert result.counts.failed == (where != "resolver")
        assert result.state.tag == ("failed" if where == "resolver" else "completed")


async def test_an_attempt_that_cancelled_itself_is_retried_and_says_so_in_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    log: Counter[str] = Counter()

    @workflow(STAGES)
    async def run(document: str) -> str:
        log["run"] += 1
        if log["run"] == 1:
            await cancels_itself()
        return document.upper()

    config = BatchConfig(failure_policy=RetryFailed(backoff=timedelta(0)))
    async with BatchOrchestrator(run, store=store) as batches:
        assert (await within(batches.run(["x"], config=config))).counts.succeeded == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "failed in attempt 1: CancelledError: cancelled, but not by its worker" in record.getMessage()


async def test_a_cancellation_that_nothing_waits_for_keeps_the_result(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        await cancels_itself_and_does_not_wait()
        return document.upper()

    async with BatchOrchestrator(run, store=store) as batches:
        assert (await within(batches.run(["x", "y"]))).counts.succeeded == 2


async def test_an_activity_is_retried_after_an_old_timeout_helper(store: Store) -> None:
    log: Counter[str] = Counter()

    async def old_helper() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    @durable_activity(retry=RetryPolicy(max_attempts=2, initial=timedelta(0)))
    async def step() -> int:
        log["step"] += 1
        if log["step"] == 1:
            lost = asyncio.get_running_loop().create_future()
            lost.cancel()
            await lost
        return 1

    @workflow(STAGES)
    async def run(document: str) -> int:
        await old_helper()
        return await step()

    async with BatchOrchestrator(run, store=store) as batches:
        # The activity's own work was cancelled, and not the activity.
        assert (await within(batches.run(["x"]))).counts.succeeded == 1
    assert log["step"] == 2


async def test_a_workflow_cancelled_while_what_it_left_running_finishes_keeps_its_result(store: Store) -> None:
    # A clock that stands still: the grace does not end by itself.
    clock = ManualClock()
    returned = asyncio.Event()
    tasks: list[asyncio.Task[Any] | None] = []

    @durable_activity
    async def slow() -> None:
        await asyncio.Event().wait()

    async def call() -> None:
        await slow()

    @workflow(STAGES)
    async def run(document: str) -> str:
        tasks.extend([asyncio.current_task(), asyncio.create_task(call())])
        await turns(10)
        returned.set()
        return document.upper()

    async with BatchOrchestrator(run, worker=Worker(store, clock=clock, drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit(["x"])
        await within(returned.wait())
        assert tasks[0] is not None
        tasks[0].cancel()
        assert (await within(batches.result(batch_id))).counts.succeeded == 1


# ---- a helper that cancels tasks -----------------------------------------------------------------------------------


async def test_a_document_whose_task_is_cancelled_before_it_begins_is_not_held(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    log: Counter[str] = Counter()

    @workflow(STAGES)
    async def run(document: str) -> str:
        log["run"] += 1
        return document.upper()

    async with BatchOrchestrator(run, store=store) as batches:
        # In the same turn of the loop in which the claim is answered: the task is there, and has not begun.
        def cancel_new(claimed: int) -> None:
            for task in asyncio.all_tasks() if claimed and not log["cancelled"] else ():
                if "Runner.run" in repr(task):
                    log["cancelled"] += 1
                    task.cancel()

        with batches.worker.signals.scheduler.claimed.heard_by(cancel_new):
            assert (await within(batches.run(["x"]))).counts.succeeded == 1
    assert log == {"run": 1, "cancelled": 1}
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "ended without a report in attempt 1 (it was cancelled)" in record.getMessage()


async def test_a_document_whose_task_is_cancelled_by_others_has_failed(store: Store) -> None:
    started = asyncio.Event()
    tasks: list[asyncio.Task[Any] | None] = []

    @workflow(STAGES)
    async def run(document: str) -> None:
        tasks.append(asyncio.current_task())
        started.set()
        await asyncio.Event().wait()

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["x"])
        await within(started.wait())
        assert tasks[0] is not None
        tasks[0].cancel()
        assert (await within(batches.result(batch_id))).counts.failed == 1


@pytest.mark.parametrize("whose", ["all", "durable-batches worker", "durable-batches journal", "durable-batches news"])
async def test_a_worker_whose_tasks_are_cancelled_by_a_helper_goes_on(
    whose: str, open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    log: Counter[str] = Counter()
    opened: list[str] = []

    async def client() -> AsyncIterator[str]:
        opened.append("open")
        yield "client"
        opened.append("closed")

    @durable_activity
    async def step(document: str, client: str = dependency(client)) -> str:
        log["step"] += 1
        if log["step"] == 1:
            await asyncio.Event().wait()
        assert opened[-1] == "open"
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step(document)

    spared = {asyncio.current_task()}
    async with BatchOrchestrator(run, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit(["x"])
        waiting = asyncio.create_task(batches.result(batch_id))
        spared.add(waiting)
        await eventually(lambda: log["step"] == 1)
        first = batches.worker.worker_id
        for task in asyncio.all_tasks() - spared:
            if whose in ("all", task.get_name()):
                task.cancel()
        if whose == "durable-batches news":
            # Which it does not need for what this process commits.
            await eventually(lambda: any(task.get_name() == whose for task in asyncio.all_tasks()))
            return
        assert (await within(waiting)).counts.succeeded == 1
        assert batches.worker.worker_id != first
    assert log["step"] == 2
    assert opened == (["open", "closed"] * 2 if whose == "all" else ["open", "closed"])
    assert any(first in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)


async def test_nobody_waits_for_a_worker_that_was_entered_by_a_task_that_is_gone(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()

    @workflow(STAGES)
    async def run(document: str) -> None:
        started.set()
        await asyncio.Event().wait()

    batches = BatchOrchestrator(run, worker=Worker(store, drain=NO_DRAIN))
    # As a fixture does: the task that enters it has ended when it is used.
    await asyncio.create_task(batches.__aenter__())
    batch_id = await batches.submit(["x"])
    waiting = asyncio.create_task(batches.result(batch_id))
    await within(started.wait())
    for task in asyncio.all_tasks() - {asyncio.current_task(), waiting}:
        task.cancel()
    with pytest.raises(WorkerNotRunningError):
        await within(waiting)
    assert any("stopped by its event loop" in record.getMessage() for record in caplog.records)
    await within(batches.__aexit__(None, None, None))


# ---- a database that takes no end ----------------------------------------------------------------------------------


async def test_an_end_that_the_database_refuses_is_recorded_without_its_text(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store.commit

    async def commit(worker: Any, number: Any, facts: Any, request: Any) -> Any:
        if any(isinstance(fact, ExecutionFailed) and "odd" in fact.error for fact in facts):
            raise FactRejectedError("odd")
        return await original(worker, number, facts, request)

    monkeypatch.setattr(store, "commit", commit)

    @workflow(STAGES)
    async def run(document: str) -> str:
        raise ValueError("odd")

    async with BatchOrchestrator(run, store=store) as batches:
        assert (await within(batches.run(["x"]))).counts.failed == 1
