"""What a scheduler asks of each commit, without a worker around it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.runtime.attempts import FactList
from tests.support import STAGES, turns

from durable_batches import MemoryStore, workflow
from durable_batches.lifecycle.facts import ExecutionReleased
from durable_batches.lifecycle.records import ClaimRequest, Committed
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Outages
from durable_batches.runtime.resources import Resources, RunStats
from durable_batches.runtime.threads import Threads
from durable_batches.stores import Capabilities
from durable_batches.testing import ManualClock
from durable_batches.worker.scheduler import Scheduler
from durable_batches.worker.selection import Selection
from durable_batches.worker.signals import SchedulerSignals

NOTHING = Committed()


@workflow(STAGES)
async def shout(document: str) -> str:
    return document.upper()


class Scene:
    """A scheduler that has claimed nothing yet."""

    def __init__(self, capacity: int) -> None:
        self.clock = ManualClock()
        self.woken = 0
        self.signals = SchedulerSignals()
        self.scheduler = Scheduler(
            MemoryStore(clock=self.clock),
            dict.fromkeys(shout.versions, shout),
            Resources(recorder=FactList(), clock=self.clock, threads=Threads(1), stats=RunStats()),
            selection=Selection("all"),
            capacity=capacity,
            outages=Outages(self.clock),
            wake=self._wake,
            signals=self.signals,
        )

    def _wake(self) -> None:
        self.woken += 1

    def request(self) -> ClaimRequest:
        request = self.scheduler.claim_request(())
        assert request is not None
        return request

    @property
    def asks(self) -> bool:
        return self.scheduler.claim_request(()) is not None


async def test_it_asks_until_nothing_is_due() -> None:
    scene = Scene(capacity=7)
    request = scene.request()
    assert (request.limit, request.held, request.window, request.capacity) == (7, 0, 7, 7)
    assert request.workflows == frozenset(shout.versions)
    with scene.signals.idle.listen() as idle:
        scene.scheduler.committed((), NOTHING, request)
        assert len(idle.heard) == 1
    assert not scene.scheduler.wants_work
    assert not scene.asks


async def test_a_claim_that_was_not_answered_is_asked_for_again() -> None:
    scene = Scene(capacity=1)
    assert scene.request() == scene.request()


async def test_what_it_is_woken_for_while_a_claim_is_under_way_is_not_missed() -> None:
    scene = Scene(capacity=1)
    request = scene.request()
    scene.scheduler.wake()
    assert scene.woken == 1
    scene.scheduler.committed((), NOTHING, request)
    request = scene.request()
    scene.scheduler.committed((), NOTHING, request)
    assert not scene.asks


async def test_a_commit_without_a_claim_answers_none() -> None:
    scene = Scene(capacity=1)
    scene.scheduler.committed((), NOTHING, None)
    assert scene.asks


async def test_a_finished_execution_makes_it_ask_again() -> None:
    scene = Scene(capacity=1)
    scene.scheduler.committed((), NOTHING, scene.request())
    assert scene.scheduler.claim_request([ExecutionReleased(BatchId("b"), 1, 0, 1)]) is not None


async def test_without_open_slots_it_asks_for_deadlines_only() -> None:
    scene = Scene(capacity=0)
    scene.scheduler.wake()
    assert not scene.asks
    scene.scheduler.look_at_deadlines()
    assert scene.scheduler.wants_work
    request = scene.request()
    assert request.limit == 0
    # Once: the commit looks at all of them.
    assert not scene.asks


async def test_it_looks_again_when_the_next_retry_or_deadline_is_due() -> None:
    scene = Scene(capacity=1)
    scene.scheduler.committed((), Committed(retry_in=3_000_000), scene.request())
    assert not scene.asks
    scene.clock.advance(2.9)
    assert not scene.asks
    scene.clock.advance(0.1)
    assert scene.woken == 1
    assert scene.asks


async def test_when_it_closes_it_asks_for_nothing_more() -> None:
    scene = Scene(capacity=1)
    scene.scheduler.committed((), Committed(retry_in=1_000_000), scene.request())
    scene.scheduler.close()
    scene.scheduler.wake()
    scene.clock.advance(10)
    assert scene.woken == 1
    assert not scene.asks


@pytest.mark.parametrize(("level", "most"), [(1, 15), (2, 101)])
async def test_a_store_of_level_1_that_promises_work_in_vain_is_asked_less_and_less(level: int, most: int) -> None:
    """It does not know of pauses, and takes what is paused for work; other stores mean what they say."""

    class Promising(MemoryStore):
        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, level=level)

        async def wait(self, *args: object, **kwargs: object) -> None:
            pass

    scene = Scene(capacity=1)
    scene.scheduler._store = Promising(clock=scene.clock)
    claims = 0
    running = asyncio.create_task(scene.scheduler.run())
    for _ in range(100):
        await turns(5)
        request = scene.scheduler.claim_request(())
        if request is not None:
            claims += 1
            scene.scheduler.committed((), NOTHING, request)
        scene.clock.advance(0.1)
    assert most - 2 <= claims <= most
    running.cancel()
    await asyncio.wait([running])
