"""Documents that only wait, for a retry or for another batch, lend their slots: nothing else is held up by them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, STAGES, Gauge, at_rest, eventually, moving, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    BatchResult,
    RetryLater,
    Store,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.testing import ManualClock
from durable_batches.worker.slots import OpenSlots

HOUR = timedelta(hours=1)


# ---- batches within batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["workflow", "activity", "gathered", "followed"])
async def test_a_document_that_waits_for_a_batch_holds_up_nothing_of_it(open_store: StoreMaker, way: str) -> None:
    """Whose documents need the only slot."""
    worker = Worker(open_store(None), max_in_flight=1)
    gauge = Gauge()

    @workflow(STAGES, name="inner")
    async def inner(number: int) -> int:
        with gauge:
            await asyncio.sleep(0)
            return number

    inners = BatchOrchestrator(inner, worker=worker)

    async def run_inner(number: int) -> int:
        batch_id = await inners.submit(range(3), batch_id=f"inner-{number}-{way}")
        if way == "followed":
            async for _ in inners.progress(batch_id):
                pass
        with gauge:
            pass
        return (await inners.result(batch_id)).counts.succeeded

    in_activity = durable_activity(run_inner)

    @workflow(STAGES, name="outer")
    async def outer(number: int) -> int:
        if way == "gathered":
            return sum(await asyncio.gather(*(in_activity(10 * number + part) for part in range(3))))
        return await (in_activity if way == "activity" else run_inner)(number)

    async with BatchOrchestrator(outer, worker=worker) as batches:
        result = await within(batches.run(range(3), config=BatchConfig(concurrency=2)))
        assert result.counts.succeeded == 3
    assert gauge.most == 1


async def test_batches_within_batches_within_batches(open_store: StoreMaker) -> None:
    worker = Worker(open_store(None), max_in_flight=1)

    @workflow(STAGES, name="nested")
    async def nested(depth: int) -> int:
        if depth:
            await batches.result(await batches.submit([depth - 1], batch_id=f"depth-{depth - 1}"))
        return depth

    batches = BatchOrchestrator(nested, worker=worker)
    async with batches:
        assert (await within(batches.run([5]))).counts.succeeded == 1


# ---- long delays -----------------------------------------------------------------------------------------------------


class Scene:
    """Two slots, a batch whose activity asks for a retry in an hour, and another whose activity waits for its gate."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.clock = clock
        self.worker = Worker(store, clock=clock, max_in_flight=2, lease=timedelta(days=1), drain=NO_DRAIN)
        self.gauge = Gauge()
        self.refused = 0
        self.inside = 0
        self.gate = asyncio.Event()
        self.gate.set()

        @durable_activity
        async def ask(number: int) -> int:
            with self.gauge:
                if self.refused < self.refuses:
                    self.refused += 1
                    raise RetryLater(HOUR)
                await asyncio.sleep(0)
                return number

        @durable_activity
        async def work(number: int) -> int:
            with self.gauge:
                await self.gate.wait()
                return number

        @workflow(STAGES, name="asking")
        async def asking(number: int) -> int:
            return await ask(number)

        @workflow(STAGES, name="working")
        async def working(number: int) -> int:
            return await work(number)

        self.asking = BatchOrchestrator(asking, worker=self.worker)
        self.working = BatchOrchestrator(working, worker=self.worker)
        self.refuses = 0

    async def ask(self, count: int, *, refuses: int) -> asyncio.Task[BatchResult[None]]:
        """Run so many documents, and wait until so many calls were refused."""
        self.refuses = refuses
        asking = asyncio.create_task(self.asking.run(range(count), batch_id="asking"))
        await eventually(lambda: self.refused == refuses)
        await at_rest(self.worker)
        return asking


@asynccontextmanager
async def scene_of(open_store: StoreMaker) -> AsyncGenerator[Scene]:
    clock = ManualClock()
    scene = Scene(open_store(clock), clock)
    async with scene.asking, scene.working:
        yield scene
    assert scene.gauge.most <= 2


async def test_documents_that_wait_for_an_hour_hold_up_no_other_batch(open_store: StoreMaker) -> None:
    async with scene_of(open_store) as scene:
        asking = await scene.ask(2, refuses=2)
        assert (await within(scene.working.run(range(10)))).counts.succeeded == 10
        assert not asking.done()
        async with moving(scene.clock, 600):
            assert (await within(asking)).counts.succeeded == 2


async def test_who_goes_on_waits_for_an_open_slot(open_store: StoreMaker) -> None:
    """Which comes before anything that is claimed."""
    async with scene_of(open_store) as scene:
        asking = await scene.ask(2, refuses=2)
        scene.gate.clear()
        working = asyncio.create_task(scene.working.run(range(10)))
        await eventually(lambda: scene.gauge.inside == 2)
        scene.clock.advance(HOUR.total_seconds())
        await at_rest(scene.worker)
        assert scene.gauge.inside == 2
        scene.gate.set()
        assert (await within(asking)).counts.succeeded == 2
        assert (await within(working)).counts.succeeded == 10


async def test_the_slots_that_a_batch_lends_to_itself_are_bounded_in_number(open_store: StoreMaker) -> None:
    """Each document that waits takes memory: for as many as there are slots, others of the batch are started."""
    async with scene_of(open_store) as scene:
        asking = await scene.ask(6, refuses=4)
        await at_rest(scene.worker)
        assert scene.refused == 4
        # Another batch has the slots all the same, and each time that there is one more of it.
        for _ in range(2):
            assert (await within(scene.working.run(range(5)))).counts.succeeded == 5
        assert scene.refused == 4
        async with moving(scene.clock, 600):
            assert (await within(asking)).counts.succeeded == 6
        assert scene.worker.session.scheduler._slots.most == 2


@pytest.mark.parametrize(("lends_more", "most"), [(False, 2), (True, 32)])
def test_the_slots_that_are_lent_are_bounded_in_number(
    caplog: pytest.LogCaptureFixture, lends_more: bool, most: int
) -> None:
    """A store of level 1 does not leave batches out, so that more slots would be lent to those that wait."""
    held = 0
    slots = OpenSlots(2, lambda: held, lambda: None, lends_more=lends_more)
    for _ in range(most):
        held += 1
        assert slots.lend(in_any_case=False)
    assert (slots.most, slots.most_with_others) == (4, 2 + most)
    assert not any(slots.lend(in_any_case=False) for _ in range(3))
    assert slots.lend(in_any_case=True)
    assert (slots.most, slots.most_with_others) == (5, 3 + most)
    for _ in range(most + 1):
        slots.keep()
    assert (slots.most, slots.most_with_others) == (2, 2)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"more than {most} documents wait, for permits or for retries of their activities")


async def test_who_is_cancelled_when_it_has_its_slot_back_makes_none_for_a_batch_that_waits() -> None:
    held = 4
    slots = OpenSlots(1, lambda: held, lambda: None, lends_more=True)
    for _ in range(3):
        assert slots.lend(in_any_case=False)
    going_on = asyncio.create_task(slots.take_back())
    await asyncio.sleep(0)
    held = 3
    slots.give_back()
    going_on.cancel()
    await asyncio.wait([going_on])
    assert going_on.cancelled()
    # As it does when it is stopped.
    slots.keep()
    assert (slots.most, slots.most_with_others) == (2, 3)


async def test_who_is_cancelled_while_its_slot_is_lent_leaves_as_many_as_there_were(open_store: StoreMaker) -> None:
    async with scene_of(open_store) as scene:
        asking = await scene.ask(2, refuses=2)
        await scene.asking.cancel("asking")
        assert (await within(asking)).counts.cancelled == 2
        # The gauge says, in the end, whether there were more slots than two.
        assert (await within(scene.working.run(range(10)))).counts.succeeded == 10
        assert scene.worker.session.scheduler._slots.most == 2


async def test_a_short_wait_lends_no_slot(open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over soon, and a slot is open for it then."""
    monkeypatch.setitem(globals(), "HOUR", timedelta(seconds=29))
    async with scene_of(open_store) as scene:
        asking = await scene.ask(2, refuses=2)
        assert scene.worker.session.scheduler._slots.most == 2
        async with moving(scene.clock, 10):
            assert (await within(asking)).counts.succeeded == 2
