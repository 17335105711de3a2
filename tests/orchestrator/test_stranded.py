"""Batches that no worker runs are named where they would be waited for without a word."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, STAGES, eventually, moving, opened, within

from durable_batches import BatchConfig, BatchFilter, BatchId, BatchOrchestrator, Worker, Workflow, workflow
from durable_batches.lifecycle.records import GENERATION
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene


def deployed(version: str, *accepts: str) -> Workflow[str, str, Any, None]:
    @workflow(STAGES, name="night", version=version, accepts=accepts)
    async def run(document: str) -> str:
        if version == "1":
            await asyncio.Event().wait()
        return document.upper()

    return run


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


WARNING = (
    "batch 'monday' waits for version '1' of workflow 'night', which no worker runs (running: '2'); if a newer version "
    "can go on with it, give that one accepts=('1',), or else run version '1' beside it"
)


async def submitted(open_store: StoreMaker) -> None:
    async with BatchOrchestrator(deployed("1"), worker=Worker(open_store(None), drain=NO_DRAIN)) as batches:
        await batches.submit(["x"], batch_id="monday")


async def test_it_is_named_at_the_start_when_it_is_submitted_again_and_after_a_minute(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    await submitted(open_store)
    clock = ManualClock()
    worker = Worker(open_store(None), clock=clock, drain=NO_DRAIN, lease=timedelta(days=1))
    async with BatchOrchestrator(deployed("2"), worker=worker) as batches:
        assert warnings(caplog) == [WARNING]
        await batches.submit(["x"], batch_id="monday")
        assert warnings(caplog) == [WARNING] * 2
        waiting = asyncio.create_task(batches.result("monday"))
        async with moving(clock, 5):
            await eventually(lambda: len(caplog.records) == 3)
        assert warnings(caplog) == [WARNING] * 3
        assert caplog.records[-1].__dict__["version"] == "1"
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_nothing_is_said_of_a_version_that_is_accepted(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    await submitted(open_store)
    async with BatchOrchestrator(deployed("2", "1"), store=open_store(None)) as batches:
        assert (await within(batches.result("monday"))).counts.succeeded == 1
    assert warnings(caplog) == []


async def test_nothing_is_said_while_another_worker_runs_that_version(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    async with BatchOrchestrator(deployed("1"), worker=Worker(open_store(None), drain=NO_DRAIN)) as old:
        await old.submit(["x"], batch_id="monday", config=BatchConfig())
        async with BatchOrchestrator(deployed("2"), store=open_store(None)) as batches:
            await batches.submit(["x"], batch_id="monday")
    assert warnings(caplog) == []


# ---- filters -------------------------------------------------------------------------------------------------------


def unselected(batch_id: str) -> str:
    return (
        f"batch '{batch_id}' waits, and no worker takes from it: those that run version '1' of workflow 'night' take "
        "from other batches only, as Worker(batches=...) says; start one that takes from it"
    )


OWN = ", or submit it again by its id, which makes it one of this worker's own"


async def left(open_store: StoreMaker, batch_id: str, clock: ManualClock | None = None, **labels: str) -> None:
    worker = Worker(open_store(clock), clock=clock, max_in_flight=0)
    async with BatchOrchestrator(deployed("1"), worker=worker) as batches:
        await batches.submit(["x"], batch_id=batch_id, config=BatchConfig(metadata=labels))


async def test_what_no_filter_takes_is_named_at_the_start_at_each_submission_and_after_a_minute(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    await left(open_store, "monday", team="a")
    await left(open_store, "tuesday", team="b")
    clock = ManualClock()
    ours = BatchFilter(metadata={"team": "b"})
    worker = Worker(open_store(None), clock=clock, drain=NO_DRAIN, lease=timedelta(days=1), batches=ours)
    async with BatchOrchestrator(deployed("1"), worker=worker) as batches:
        assert warnings(caplog) == [unselected("monday")]
        await batches.submit(["x"], batch_id="monday")
        await batches.submit(["x"], batch_id="tuesday")
        assert warnings(caplog) == [unselected("monday")] * 2
        await batches.submit(["x"], batch_id="new")
        await batches.submit(["x"], batch_id="newer", config=BatchConfig(metadata={"team": "b"}))
        assert warnings(caplog)[2:] == [unselected("new")]
        waiting = asyncio.create_task(batches.result("monday"))
        async with moving(clock, 5):
            await eventually(lambda: len(caplog.records) == 4)
        assert warnings(caplog)[3:] == [unselected("monday")]
        assert caplog.records[-1].__dict__["worker_ids"] == [worker.worker_id]
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_nothing_is_said_while_the_filter_of_another_worker_takes_it(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    await left(open_store, "monday", team="a")
    first = Worker(open_store(None), drain=NO_DRAIN, batches=BatchFilter(metadata={"team": "a"}))
    second = Worker(open_store(None), drain=NO_DRAIN, batches=BatchFilter(metadata={"team": "b"}))
    async with (
        BatchOrchestrator(deployed("1"), worker=first),
        BatchOrchestrator(deployed("1"), worker=second) as batches,
    ):
        await batches.submit(["x"], batch_id="monday")
        await batches.submit(["x"], config=BatchConfig(metadata={"team": "a"}))
    assert warnings(caplog) == []


async def test_a_worker_of_its_own_batches_names_what_it_waits_for_and_has_not_submitted(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at the start: it may attach to them in a moment."""
    clock = ManualClock()
    await left(open_store, "monday", clock)
    worker = Worker(open_store(clock), clock=clock, drain=NO_DRAIN, lease=timedelta(days=1), batches="mine")
    async with BatchOrchestrator(deployed("1"), worker=worker) as batches:
        await batches.submit(["x"], batch_id="own")
        waiting = [asyncio.create_task(batches.result(batch_id)) for batch_id in ("own", "monday")]
        async with moving(clock, 5):
            await eventually(lambda: bool(warnings(caplog)))
        assert warnings(caplog) == [unselected("monday") + OWN]
        await batches.submit([], batch_id="monday")
        assert len(warnings(caplog)) == 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_what_needs_a_newer_library_is_named(open_store: StoreMaker, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(open_store(None)) as store:
        scene = Scene(store, asyncio.sleep)
        record = replace(scene.record(workflow=("night", "1")), needs=GENERATION + 1, batch_id=BatchId("newer"))
        await scene.sealed(record, 1)
        async with BatchOrchestrator(deployed("1"), store=open_store(None)):
            assert warnings(caplog) == [
                "batch 'newer' waits: it needs a newer version of the library than the workers have that run version "
                "'1' of workflow 'night'; start one with the version that it was submitted with"
            ]
