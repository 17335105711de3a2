"""What a worker says of its health, through its life and an outage."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support import STAGES, at_rest
from tests.worker.outages import Line, Time

from durable_batches import BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.testing import ManualClock

LEASE = timedelta(seconds=30)


async def test_a_worker_says_whether_it_may_begin_work_and_why_not() -> None:
    clock, held = ManualClock(), asyncio.Event()
    line, time = Line(MemoryStore(clock=clock)), Time(clock)
    worker = Worker(line, clock=clock, lease=LEASE)

    @workflow(STAGES, name="held")
    async def hold(document: str) -> str:
        await held.wait()
        return document

    batches = BatchOrchestrator(hold, worker=worker)
    closed = worker.health()
    assert (closed.ready, closed.not_ready, closed.last_commit, closed.in_flight) == (False, "closed", None, 0)
    assert closed.lease_left == closed.loop_lag == timedelta(0)
    async with batches:
        batch_id = await batches.submit(["a", "b"])
        await at_rest(worker)
        works = worker.health()
        assert (works.ready, works.not_ready, works.in_flight, works.store_away_since) == (True, None, 2, None)
        assert works.last_commit == from_micros(clock.now())
        assert LEASE / 2 < works.lease_left <= LEASE
        assert works.loop_lag == timedelta(0)
        # The loop has had no turn since.
        clock.advance(10)
        assert timedelta(seconds=5) < worker.health().loop_lag <= timedelta(seconds=10)
        await time.settle()
        assert worker.health().loop_lag == timedelta(0)

        line.cut = True
        began = from_micros(clock.now())
        await time.pass_by(LEASE.total_seconds() + 1)
        away = worker.health()
        assert (away.ready, away.not_ready, away.lease_left) == (False, "lease-lost", timedelta(0))
        assert away.store_away_since is not None
        assert began <= away.store_away_since < began + LEASE
        line.cut = False
        await time.pass_by(10)
        back = worker.health()
        assert (back.ready, back.not_ready, back.store_away_since) == (True, None, None)

        worker.begin_drain()
        assert (worker.health().ready, worker.health().not_ready) == (False, "draining")
        held.set()
    assert worker.health().not_ready == "closed"
    assert batch_id
