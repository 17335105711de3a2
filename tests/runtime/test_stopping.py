"""An attempt that does not come to its own end: stopped before it begins, while it runs, or in its last moments."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, ONCE, STAGES, eventually, everything, in_turns, turns, within

from durable_batches import (
    ActivityFailedError,
    BatchOrchestrator,
    DocumentCancelled,
    DocumentSucceeded,
    RetryPolicy,
    Store,
    Worker,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.signals import until
from durable_batches.testing import ManualClock
from durable_batches.testing.virtual.inside import attempts_of

# ---- before it begins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_what_is_stopped_before_it_begins_does_not_begin(
    how: str, open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Counter[str] = Counter()
    gate, reading, read_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @durable_activity
    async def step(number: int) -> int:
        return number

    @durable_activity
    async def last() -> None:
        log["last"] += 1
        await gate.wait()

    @workflow(STAGES)
    async def run(document: str) -> None:
        log["run"] += 1
        # More than come with a claim: the rest is read before the attempt begins.
        await map_activity(step, range(1_100), concurrency=200)
        await last()

    async with BatchOrchestrator(run, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        batch_id = await batches.submit(["x"])
        await eventually(lambda: log["last"] == 1)
    store = open_store(None)
    original = store.checkpoints

    async def checkpoints(*args: Any, **kwargs: Any) -> Any:
        reading.set()
        await read_on.wait()
        return await original(*args, **kwargs)

    monkeypatch.setattr(store, "checkpoints", checkpoints)
    worker = Worker(store, drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker) as batches:
        await within(reading.wait())
        if how == "cancelled":
            assert await batches.cancel(batch_id)
            read_on.set()
            await until(lambda: attempts_of(worker) == [], worker.signals.scheduler.finished)
            assert await everything(batches.results(batch_id)) == [DocumentCancelled(document_id="0")]
        else:
            in_turns(50, read_on.set)
    assert log == {"run": 1, "last": 1}
    if how == "left":
        gate.set()
        async with BatchOrchestrator(run, store=open_store(None)) as batches:
            assert (await within(batches.result(batch_id))).counts.succeeded == 1


# ---- while it runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_what_a_workflow_raises_because_it_is_stopped_is_no_failure(how: str, open_store: StoreMaker) -> None:
    log: Counter[str] = Counter()

    @workflow(STAGES)
    async def run(document: str) -> str:
        log["run"] += 1
        if log["run"] == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RuntimeError("the connection was lost") from None
        return document.upper()

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x"])
        await eventually(lambda: log["run"] == 1)
        if how == "cancelled":
            assert await batches.cancel(batch_id)
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        await within(batches.result(batch_id))
        (outcome,) = await everything(batches.results(batch_id))
    if how == "cancelled":
        assert outcome == DocumentCancelled(document_id="0")
    else:
        assert outcome == DocumentSucceeded(document_id="0", value="X")


# ---- in its last moments -----------------------------------------------------------------------------------------


class Scene:
    """A workflow that returns while an activity of it is still running."""

    def __init__(self) -> None:
        self.log: Counter[str] = Counter()
        self.gate, self.returned = asyncio.Event(), asyncio.Event()
        self.tasks: list[asyncio.Task[str]] = []

        @durable_activity
        async def slow() -> str:
            self.log["started"] += 1
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.log["cancelled"] += 1
                raise
            return "slow"

        async def left_behind() -> str:
            return await slow()

        @workflow(STAGES, name="run")
        async def run(document: str) -> str:
            self.tasks.append(asyncio.create_task(left_behind()))
            await eventually(lambda: self.log["started"] == 1)
            self.returned.set()
            return document.upper()

        self.run = run


async def test_a_cancelled_batch_gives_no_grace_and_has_no_result(open_store: StoreMaker) -> None:
    # A clock that stands still: the grace does not end by itself.
    scene, clock = Scene(), ManualClock()
    async with BatchOrchestrator(scene.run, worker=Worker(open_store(clock), clock=clock)) as batches:
        batch_id = await batches.submit(["x"])
        await within(scene.returned.wait())
        assert await batches.cancel(batch_id)
        await until(lambda: attempts_of(batches.worker) == [], batches.worker.signals.scheduler.finished)
        assert await everything(batches.results(batch_id)) == [DocumentCancelled(document_id="0")]
        assert await batches.count_checkpoints(batch_id) == 0
    assert scene.log == {"started": 1, "cancelled": 1}


@pytest.mark.parametrize("drain", [timedelta(0), timedelta(seconds=10)], ids=["at once", "after a drain"])
async def test_a_result_stands_though_the_worker_is_left(drain: timedelta, open_store: StoreMaker) -> None:
    scene = Scene()
    async with BatchOrchestrator(scene.run, worker=Worker(open_store(None), drain=drain)) as batches:
        batch_id = await batches.submit(["x"])
        await within(scene.returned.wait())
        if drain:
            in_turns(50, scene.gate.set)
    async with BatchOrchestrator(scene.run, store=open_store(None), max_in_flight=0) as batches:
        assert await everything(batches.results(batch_id)) == [DocumentSucceeded(document_id="0", value="X")]
        assert await batches.count_checkpoints(batch_id) == (1 if drain else 0)
    assert scene.log == ({"started": 1} if drain else {"started": 1, "cancelled": 1})


async def test_what_a_stopped_workflow_left_running_may_clean_up(store: Store) -> None:
    started = asyncio.Event()
    cleaned: list[str] = []

    @durable_activity
    async def stubborn() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await turns(50)
            cleaned.append("up")

    async def call() -> None:
        await stubborn()

    @workflow(STAGES)
    async def run(document: str) -> None:
        # Cancelled, this does not cancel what it waits for.
        await asyncio.wait([asyncio.create_task(call())])

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(["x"])
        await within(started.wait())
        assert await batches.cancel(batch_id)
        await until(lambda: attempts_of(batches.worker) == [], batches.worker.signals.scheduler.finished)
        assert cleaned == ["up"]


# ---- by the end of its run, which it is told of late ---------------------------------------------------------------


async def test_a_failure_that_comes_after_the_end_of_the_run_stops_the_workflow(open_store: StoreMaker) -> None:
    # A clock that stands still: this worker does not look for what others have ended.
    clock = ManualClock()
    started, gate = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    @durable_activity(retry=ONCE)
    async def failing() -> None:
        started.set()
        await gate.wait()
        raise ConnectionError

    @workflow(STAGES)
    async def run(document: str) -> None:
        try:
            await failing()
        except ActivityFailedError:
            seen.append("failed")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async with (
        BatchOrchestrator(run, worker=Worker(open_store(clock), clock=clock)) as batches,
        BatchOrchestrator(run, worker=Worker(open_store(clock), clock=clock, max_in_flight=0)) as remote,
    ):
        batch_id = await batches.submit(["x"])
        await within(started.wait())
        assert await remote.cancel(batch_id)
        gate.set()
        await until(lambda: attempts_of(batches.worker) == [], batches.worker.signals.scheduler.finished)
        assert seen == ["cancelled"]
        assert await everything(batches.results(batch_id)) == [DocumentCancelled(document_id="0")]
        assert await batches.count_checkpoints(batch_id) == 0


# ---- by the end of the program -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in a workflow", "in an activity"])
def test_ctrl_c_ends_the_program_and_fails_no_document(where: str, open_store: StoreMaker) -> None:
    log: Counter[str] = Counter()
    left: list[asyncio.Task[str]] = []

    def interrupted(place: str) -> None:
        log[place] += 1
        if place == where and log[place] == 1:
            raise KeyboardInterrupt

    @durable_activity
    async def act(document: str) -> str:
        if document == "x":
            await eventually(lambda: log["waits"] == 2)
            interrupted("in an activity")
        elif log[where] == 0:
            log["waits"] += 1
            await asyncio.Event().wait()
        return document.upper()

    @workflow(STAGES)
    async def run(document: str) -> str:
        if document == "leaver":
            # Waited for after the workflow's end, for as long as the grace lasts.
            left.append(asyncio.create_task(act(document)))
            await asyncio.sleep(0)
            return "LEFT"
        upper = await act(document)
        if document == "x":
            interrupted("in a workflow")
        return upper

    async def serve() -> None:
        async with BatchOrchestrator(run, worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
            await batches.run(["bystander", "leaver", "x"], batch_id="b")

    async def resume() -> list[Any]:
        store = open_store(None)
        await store.open()
        try:
            # As the next process would: it sees at once that the first one is gone.
            await store.expire(dead=[worker.worker_id for worker in await store.workers()])
        finally:
            await store.close()
        async with BatchOrchestrator(run, store=store) as batches:
            await within(batches.result("b"))
            return await everything(batches.results("b"))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(serve())
    # What asyncio logs of tasks that nobody awaited it logs now, and not within whatever comes next.
    left.clear()
    gc.collect()
    assert asyncio.run(resume()) == [
        DocumentSucceeded(document_id="0", value="BYSTANDER"),
        DocumentSucceeded(document_id="1", value="LEFT"),
        DocumentSucceeded(document_id="2", value="X"),
    ]
    assert log["waits"] == 2


# ---- seen from outside -----------------------------------------------------------------------------------------------


async def test_what_a_worker_runs_can_be_seen(store: Store) -> None:
    clock = ManualClock()

    @durable_activity(retry=RetryPolicy(max_attempts=2, jitter=0))
    async def flaky(number: int) -> int:
        raise ConnectionError

    @workflow(STAGES)
    async def run(document: str) -> None:
        await asyncio.gather(flaky(1), flaky(2))

    worker = Worker(store, clock=clock, lease=timedelta(days=1))
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit(["x"])
        await eventually(lambda: any(len(attempt.calls) == 2 for attempt in attempts_of(worker)))
        (attempt,) = attempts_of(worker)
        await eventually(lambda: all(clock.is_sleeping(call.task) for call in attempt.calls))
        assert [(call.key.partition(":")[0], call.attempt) for call in attempt.calls] == [("flaky", 1)] * 2
        assert attempt.task is not None
        assert attempt.task not in {call.task for call in attempt.calls}
        clock.advance(60)
        assert (await within(batches.result(batch_id))).counts.failed == 1
        assert attempts_of(worker) == []
