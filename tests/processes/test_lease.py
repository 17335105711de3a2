"""A lease outlives code that blocks the event loop; a loop that stands still for too long lets it go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import NamedTuple

import pytest
from tests.processes.clocks import LeaseClock
from tests.processes.databases import Database
from tests.support import STAGES, everything, opened, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentReleased,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.records import WorkerId
from durable_batches.testing.history.checker import HistoryChecker

LEASE = timedelta(seconds=30)
PATIENCE = 60.0


class Blocked:
    """What the first call of `block` does with the thread that runs the event loop."""

    def __init__(self) -> None:
        self.once: Callable[[], object] | None = None

    def __call__(self) -> None:
        once, self.once = self.once, None
        if once is not None:
            once()


blocked = Blocked()


@pytest.fixture(autouse=True)
def _not_blocked_yet() -> Iterator[None]:
    yield
    blocked.once = None


@durable_activity
async def block(number: int) -> int:
    """Holds up the event loop the first time, as code does that was not written for one."""
    blocked()
    return number


@durable_activity
async def pass_by(number: int) -> int:
    await asyncio.sleep(0)
    return number


@workflow(STAGES, name="blocking")
async def blocking(number: int) -> int:
    return await block(number) + await pass_by(2)


class Look(NamedTuple):
    """What another process finds."""

    expired: list[WorkerId]
    alive: list[WorkerId]


def look_of_another(database: Database, clock: LeaseClock) -> Look:
    """Have another process expire dead workers, and look who is left."""

    async def look() -> Look:
        later = LeaseClock()
        later.shift = clock.shift
        async with opened(database.store(clock=later)) as store:
            # Workers have a moment to renew their leases after a store was opened that may have been locked.
            later.shift += 2.0
            expired = await store.expire()
            return Look(list(expired.workers), [worker.worker_id for worker in await store.workers()])

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, look()).result(PATIENCE)


class Renewals:
    """The renewals of a worker's lease, to be waited for by a thread."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def hear(self, _: WorkerId) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for_another(self) -> None:
        """Block until one has begun and ended."""
        with self._changed:
            wanted = self._count + 2
            assert self._changed.wait_for(lambda: self._count >= wanted, PATIENCE)


async def test_code_that_blocks_the_event_loop_does_not_cost_the_lease(database: Database) -> None:
    """For five leases the loop stands still, and is renewed meanwhile; nobody takes the worker for dead."""
    clock, renewals = LeaseClock(), Renewals()
    worker = Worker(database.store(clock=clock), lease=LEASE, clock=clock, max_stall=timedelta(days=1))
    dead: list[WorkerId] = []

    def stand_still() -> None:
        for _ in range(10):
            clock.shift += LEASE.total_seconds() / 2
            renewals.wait_for_another()
            dead.extend(look_of_another(database, clock).expired)

    blocked.once = stand_still
    with worker.signals.lease.renewed.heard_by(renewals.hear):
        async with BatchOrchestrator(blocking, worker=worker) as batches:
            first = worker.worker_id
            result = await within(batches.run([5, 1], config=BatchConfig(concurrency=2)), seconds=PATIENCE)
            assert result.counts.succeeded == 2
            assert worker.worker_id == first
    assert dead == []


async def test_a_loop_that_stands_still_for_too_long_lets_its_lease_go(database: Database) -> None:
    """So that others can go on; when it turns again it finds itself fenced, and begins anew."""
    clock = LeaseClock()
    store = database.store(clock=clock)
    worker = Worker(store, lease=LEASE, clock=clock, max_stall=timedelta(seconds=40))
    alive: list[WorkerId] = [WorkerId("nobody has looked")]

    def stand_still() -> None:
        clock.shift += 41.0
        _wait_until_the_renewer_has_ended()
        # A commit that is under way renews the lease once more, and as long as it is, its worker is passed over. Its
        # own process may be expiring dead workers at this moment, too: itself, then.
        for _ in range(1_000):
            clock.shift += LEASE.total_seconds()
            alive[:] = look_of_another(database, clock).alive
            if not alive:
                break

    blocked.once = stand_still
    async with BatchOrchestrator(blocking, worker=worker) as batches:
        first = worker.worker_id
        batch_id = await batches.submit([8])
        events = await within(everything(batches.progress(batch_id)), seconds=PATIENCE)
        assert alive == []
        assert worker.worker_id != first
        assert [event.reason for event in events if isinstance(event, DocumentReleased)] == ["crash"]
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
        await HistoryChecker().verify(store, finished=True)


def _wait_until_the_renewer_has_ended() -> None:
    """The thread that renews the lease ends by itself where it lets the lease go."""
    for thread in threading.enumerate():
        if thread.name == "durable-batches lease":
            thread.join(PATIENCE)
            assert not thread.is_alive()


async def test_a_short_stall_limit_does_not_end_a_worker_whose_loop_turns(database: Database) -> None:
    clock, renewals = LeaseClock(), Renewals()
    worker = Worker(database.store(clock=clock), lease=LEASE, clock=clock, max_stall=timedelta(seconds=40))
    with worker.signals.lease.renewed.heard_by(renewals.hear):
        async with BatchOrchestrator(blocking, worker=worker) as batches:
            first = worker.worker_id
            for _ in range(5):
                with worker.signals.membership.expired.listen() as looked:
                    clock.shift += LEASE.total_seconds() / 2
                    await asyncio.to_thread(renewals.wait_for_another)
                    await looked.next()
                    await looked.next()
            assert (await within(batches.run([0, 0]))).counts.succeeded == 2
            assert worker.worker_id == first


async def test_a_submitter_that_was_declared_dead_spoils_nothing(database: Database) -> None:
    """It was stopped for long, another one has loaded the batch meanwhile, and it attaches to that when it goes on."""
    stopped, again = asyncio.Event(), asyncio.Event()

    async def documents() -> object:
        for number in range(2_000):
            if number == 700:
                stopped.set()
                await again.wait()
            yield number

    late, soon = (BatchOrchestrator(blocking, store=database.store(), max_in_flight=0) for _ in range(2))
    async with late, soon:
        submitting = asyncio.create_task(late.submit(documents(), batch_id="batch"))  # type: ignore[arg-type]
        await stopped.wait()
        await soon.worker.store.expire(dead=[late.worker.worker_id])
        await soon.submit([0, 1], batch_id="batch")
        again.set()
        assert await submitting == "batch"
        assert (await soon.snapshot("batch")).counts.total == 2
        assert [document.document async for document in soon.documents("batch")] == [0, 1]
    async with BatchOrchestrator(blocking, store=database.store()) as batches:
        assert (await within(batches.result("batch"))).counts.succeeded == 2
    checker = HistoryChecker()
    checker.acknowledged("batch", ["0", "1"])
    async with database.open() as store:
        await checker.verify(store, finished=True, everyone_left=True)
