"""Batches of a version that no worker runs are named where somebody could wait for them without a word."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, STAGES, eventually, moving, within

from durable_batches import BatchConfig, BatchOrchestrator, Worker, Workflow, workflow
from durable_batches.testing import ManualClock


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
