"""The times of a batch's events never go back, though every process dates them by a clock of its own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from tests.conftest import StoreMaker
from tests.support import opened

from durable_batches.lifecycle.commands import Cancel
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


async def test_a_clock_that_is_set_back_dates_no_event_before_the_last(open_store: StoreMaker) -> None:
    """A submission, claims, facts, a release, and a command: each is dated as late as the one before."""
    clock = ManualClock(NOON)
    async with opened(open_store(clock)) as store:
        scene = Scene(store, asyncio.sleep)
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        clock.jump(-0.05)
        first, _ = await hand.claim()
        clock.jump(-0.05)
        await hand.report(hand.entered(first, 1))
        clock.jump(-0.05)
        await hand.report(hand.succeeded(first))
        clock.jump(-0.05)
        await store.leave(hand.worker_id)
        clock.jump(-0.05)
        await store.control(batch_id, Cancel("request", "enough"))
        await scene.check()
        assert {event.at for event in await store.events(batch_id, after=0, limit=100)} == {clock.now() + 250_000}


async def test_two_stores_whose_clocks_differ_date_events_in_order(open_store: StoreMaker) -> None:
    """Two processes take turns at one batch; the second one's clock is 50 ms behind."""
    clock, behind = ManualClock(NOON), ManualClock(NOON - timedelta(milliseconds=50))
    async with opened(open_store(clock)) as store, opened(open_store(behind)) as elsewhere:
        scene = Scene(store, asyncio.sleep)
        batch_id = await scene.batch(2)
        hand, other = await scene.worker(), await scene.worker(store=elsewhere)
        mine, theirs = await hand.take(), await other.take()
        for stage in (0, 1, 2):
            await other.report(other.entered(theirs, stage))
            await hand.report(hand.entered(mine, stage))
            clock.advance(0.02)
            behind.advance(0.02)
        await hand.report(hand.succeeded(mine))
        await other.report(other.succeeded(theirs))
        await scene.check()
        times = [event.at for event in await store.events(batch_id, after=0, limit=100)]
        assert times == sorted(times)
        assert times[-1] == clock.now()
