"""Batches that dead submitters left half loaded are removed, by whatever worker there is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES, eventually, moving, opened, within

from durable_batches import BatchOrchestrator, MemoryStore, StoreUnavailableError, Worker, workflow
from durable_batches.lifecycle.records import BatchRecord, Micros
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores import FindsAbandoned
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene


@workflow(STAGES)
async def echo(document: str) -> str:
    return document


async def test_what_nobody_can_seal_is_removed(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = ManualClock()
    store = open_store(clock)
    async with opened(store):
        scene = Scene(store, asyncio.sleep)
        submitter = await scene.worker("submitter", lease=1_000_000)

        async def left(name: str, loader: str = "gone") -> BatchId:
            return await scene.load(scene.record(name, loader=loader, created_at=clock.now()), 3)

        async def there() -> set[str]:
            names = ("old", "mine", "loaded", "sealed", "young")
            return {name for name in names if await store.batch(BatchId(name)) is not None}

        await left("old")
        await left("mine")
        await left("loaded", submitter.worker_id)
        await scene.sealed(scene.record("sealed", loader="gone", created_at=clock.now()), 1)
        worker = Worker(store, clock=clock, lease=timedelta(days=10), max_stall=timedelta(days=10))
        # As by a session of this worker before the one that it has now.
        worker.loading.add(BatchId("mine"))
        looks = 0
        assert isinstance(store, FindsAbandoned)
        look = store.abandoned

        async def counted(*, created_before: Micros, limit: int) -> Sequence[BatchRecord]:
            nonlocal looks
            looks += 1
            return await look(created_before=created_before, limit=limit)

        monkeypatch.setattr(store, "abandoned", counted)

        async with BatchOrchestrator(echo, worker=worker):
            (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "durable-batches housekeeping"]

            async def pass_by(times: int) -> None:
                """Let ten minutes pass so many times, each with a look."""
                for number in range(looks + 1, looks + 1 + times):
                    await eventually(lambda: clock.is_sleeping(task))
                    clock.advance(600)
                    await eventually(lambda number=number: looks == number)  # type: ignore[misc]  # of a default mypy infers no type
                await eventually(lambda: clock.is_sleeping(task))

            await pass_by(3)
            assert await there() == {"old", "mine", "loaded", "sealed"}
            await left("young")
            await pass_by(4)
            assert await there() == {"mine", "loaded", "sealed", "young"}
            await pass_by(3)
            assert await there() == {"mine", "loaded", "sealed"}
    assert removed(caplog)[0] == (
        "batch 'old' removed: its submitter gone is gone, and had not loaded all of its documents"
    )


def removed(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "removed: its submitter" in message]


async def test_a_store_that_fails_is_asked_again_later() -> None:
    """And the worker works on, whatever it raises."""
    clock = ManualClock()
    asked = 0

    class Failing(MemoryStore):
        async def abandoned(self, *, created_before: Micros, limit: int) -> Sequence[BatchRecord]:
            nonlocal asked
            asked += 1
            raise StoreUnavailableError("not now") if asked % 2 else ZeroDivisionError

    worker = Worker(Failing(clock=clock), clock=clock, max_stall=timedelta(days=1))
    async with BatchOrchestrator(echo, worker=worker) as batches, moving(clock, 5):
        first = worker.worker_id
        await eventually(lambda: asked > 2)
        assert worker.worker_id == first
        assert (await within(batches.run(["x"]))).counts.succeeded == 1
