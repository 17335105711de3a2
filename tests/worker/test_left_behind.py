"""User code that does not end though it was cancelled holds up neither the worker's close nor its restart."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, PATIENCE, STAGES, eventually, everything, moving, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DependencyError,
    DocumentSucceeded,
    MemoryStore,
    Worker,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.runtime.dependencies import Dependencies
from durable_batches.testing import ManualClock


class Stubborn:
    """A workflow whose activity swallows each cancellation, for as long as it is told to."""

    def __init__(self) -> None:
        self.started, self.gate = asyncio.Event(), asyncio.Event()
        self.cancelled = 0
        self.runs = 0

        @durable_activity
        async def poll_job(document: str) -> str:
            self.runs += 1
            if self.runs > 1:
                return document.upper()
            self.started.set()
            while not self.gate.is_set():
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
            return document.lower()

        @workflow(STAGES, name="stubborn")
        async def run(document: str) -> str:
            return await poll_job(document)

        self.run = run


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


async def test_closing_is_bounded_and_names_what_it_left_behind(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    clock, scene = ManualClock(), Stubborn()
    worker = Worker(open_store(clock), clock=clock, drain=timedelta(seconds=1), lease=timedelta(days=1))
    async with BatchOrchestrator(scene.run, worker=worker) as batches:
        batch_id = await batches.submit(["X"])
        await within(scene.started.wait())
        began = clock.boot()
        moves = moving(clock, 0.5)
        await moves.__aenter__()
    await moves.__aexit__(None, None, None)
    # Its drain, and the time to unwind; the clock runs on while the store is deregistered from.
    assert clock.boot() - began >= 6
    assert errors(caplog) == [
        f"document '0' of batch '{batch_id}' left behind in attempt 1, its worker being closed: activity 'poll_job' "
        "did not end within 5 s of being cancelled"
    ]
    # It was released: another worker takes it over, and what comes late is not recorded.
    scene.gate.set()
    async with BatchOrchestrator(scene.run, store=open_store(None)) as batches:
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
        assert await everything(batches.results(batch_id)) == [DocumentSucceeded(document_id="0", value="X")]


async def test_a_worker_that_lost_its_lease_goes_on_without_what_does_not_end(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    clock, scene = ManualClock(), Stubborn()
    store = open_store(clock)
    worker = Worker(store, clock=clock, drain=NO_DRAIN, lease=timedelta(days=1))
    async with BatchOrchestrator(scene.run, worker=worker) as batches:
        batch_id = await batches.submit(["X"], config=BatchConfig(max_crashes=10))
        await within(scene.started.wait())
        await store.expire(dead=[worker.worker_id])
        # As its next renewal would tell it.
        worker.session.lose_lease()
        async with moving(clock, 0.5):
            assert (await within(batches.result(batch_id))).counts.succeeded == 1
        assert any("its lease lost: activity 'poll_job' did not end" in line for line in errors(caplog))
        scene.gate.set()
        assert await everything(batches.results(batch_id)) == [DocumentSucceeded(document_id="0", value="X")]


async def test_closing_needs_no_thread_of_the_event_loop(open_store: StoreMaker) -> None:
    """Code that hangs in `asyncio.to_thread` has all of them, perhaps."""

    @workflow(STAGES, name="quick")
    async def run(document: str) -> str:
        return document

    ends = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        hung = asyncio.ensure_future(asyncio.to_thread(ends.wait))
        try:
            async with asyncio.timeout(PATIENCE):
                async with BatchOrchestrator(run, store=open_store(None)) as batches:
                    assert (await batches.result(await batches.submit(["x"]))).counts.succeeded == 1
        finally:
            ends.set()
            await hung


def test_the_event_loop_does_not_wait_for_what_was_left_behind() -> None:
    async def serve(scene: Stubborn) -> None:
        clock = ManualClock()
        async with BatchOrchestrator(
            scene.run, worker=Worker(MemoryStore(clock=clock), clock=clock, drain=NO_DRAIN)
        ) as batches:
            await batches.submit(["X"])
            await within(scene.started.wait())
            moves = moving(clock, 0.5)
            await moves.__aenter__()
        await moves.__aexit__(None, None, None)

    scene = Stubborn()
    # It would not return: nothing opens the gate.
    asyncio.run(serve(scene))
    assert scene.cancelled == 1
    # What asyncio logs of its task it logs now, and not within whatever comes next.
    del scene
    gc.collect()


# ---- dependencies --------------------------------------------------------------------------------------------------


async def test_a_dependency_that_does_not_open_is_named_and_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def large_model() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    @durable_activity
    async def act(document: str, model: int = dependency(large_model)) -> int:
        return model

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await act(document)

    clock = ManualClock()
    began = clock.boot()

    async def serve() -> None:
        async with BatchOrchestrator(run, worker=Worker(MemoryStore(clock=clock), clock=clock)):
            pytest.fail("it must not begin")

    async with moving(clock, 5):
        with pytest.raises(DependencyError, match="not opened within 600 s"):
            await within(serve())
    assert clock.boot() - began < 650
    seconds = [record.__dict__["seconds"] for record in caplog.records]
    assert seconds == [10, 20, 40, 80, 160, 320]
    assert "large_model is still being opened after 10 s" in caplog.records[0].getMessage()


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_dependency_that_does_not_close_is_named_and_left(
    stubborn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[str] = []
    gate = asyncio.Event()

    async def first() -> AsyncIterator[int]:
        yield 1
        closed.append("first")

    async def pool() -> AsyncIterator[int]:
        yield 2
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                if not stubborn:
                    raise

    clock = ManualClock()
    began = clock.boot()
    dependencies = Dependencies(clock=clock)
    dependencies.start()
    await dependencies.open([first, pool])
    async with moving(clock, 5):
        await within(dependencies.close())
    assert clock.boot() - began < 120
    assert closed == ([] if stubborn else ["first"])
    (line,) = errors(caplog)
    how = "left behind: it did not end within 95 s" if stubborn else "cancelled: it took longer than 30 s"
    assert line.endswith(f"pool {how}")
    gate.set()
    await eventually(lambda: closed == ["first"])
