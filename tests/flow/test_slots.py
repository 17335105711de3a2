"""Documents whose calls wait for permits lend their slots; once they may begin, they have slots again."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support import NO_DRAIN, STAGES, Gauge, eventually, moving, turns, within

from durable_batches import BatchOrchestrator, MemoryStore, Worker, current_activity, durable_activity, workflow
from durable_batches.flow import CentralRateLimiter
from durable_batches.testing import ManualClock

DOWN = timedelta(hours=12)
BATCHES = 20


async def test_calls_that_may_all_begin_at_once_have_no_more_slots_than_there_are() -> None:
    clock = ManualClock()
    worker = Worker(MemoryStore(clock=clock), clock=clock, max_in_flight=2, lease=timedelta(days=1), drain=NO_DRAIN)
    limiter = CentralRateLimiter(name="provider", max_concurrent=1000)
    gauge, gate = Gauge(), asyncio.Event()

    @durable_activity(limiter=limiter)
    async def ask(number: int) -> int:
        if number < 0:
            current_activity().observe({"retry-after": f"{DOWN.total_seconds():.0f}"})
            return number
        with gauge:
            await gate.wait()
        return number

    @workflow(STAGES, name="asking")
    async def asking(number: int) -> int:
        return await ask(number)

    async with BatchOrchestrator(asking, worker=worker) as batches:
        await within(batches.run([-1]))
        running = asyncio.gather(*(batches.run([number]) for number in range(BATCHES)))
        async with moving(clock, 31):
            # Those that have waited for half a minute lend their slots.
            await eventually(lambda: limiter.metrics().waiting == BATCHES)
        assert gauge.most == 0
        clock.advance(DOWN.total_seconds())
        await eventually(lambda: gauge.inside == 2)
        await turns(500)
        assert (limiter.metrics().in_flight, gauge.inside) == (2, 2), "others hold no permit that they do not use"
        gate.set()
        async with moving(clock, 60):
            results = await within(running)
        assert worker.session.scheduler._slots.most == 2
    assert [result.counts.succeeded for result in results] == [1] * BATCHES
    assert gauge.most == 2
