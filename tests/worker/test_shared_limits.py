"""Workers that share the limits of their limiters through the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.fleet import most_in_a_window
from tests.support import STAGES, eventually, moving, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    ConfigurationError,
    MemoryStore,
    RateLimitedError,
    SQLiteStore,
    StoreUnavailableError,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.clock import SystemClock
from durable_batches.flow import CentralRateLimiter
from durable_batches.flow.budget import SLICE_SECONDS
from durable_batches.lifecycle.records import EventRecord, SharedLimit, SharedWrites, WorkerId
from durable_batches.runtime.limits import Limiter
from durable_batches.stores import Store
from durable_batches.testing import ManualClock, activity_context


class Provider:
    """What was called, by which limiter, and when."""

    def __init__(self, clock: ManualClock, takes: float = 0.0) -> None:
        self.clock = clock
        self.takes = takes
        self.began: list[tuple[str, float]] = []
        self.inside = self.most = 0

    def workflow_of(self, name: str, limiter: Limiter | str) -> Any:
        """A workflow whose documents make one call."""

        @durable_activity(limiter=limiter)
        async def call(number: int) -> int:
            self.began.append((name, self.clock.boot()))
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                if self.takes:
                    await self.clock.sleep(self.takes)
            finally:
                self.inside -= 1
            return number

        @workflow(STAGES, name=name)
        async def documents(number: int) -> int:
            return await call(number)

        return documents

    def at(self) -> list[tuple[float, float]]:
        """When calls began, each as one."""
        return [(at, 1.0) for _, at in self.began]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@asynccontextmanager
async def fleet(
    provider: Provider, stores: Callable[[], Store], documents: int, *limiters: CentralRateLimiter
) -> AsyncGenerator[list[tuple[BatchOrchestrator[Any, Any, Any, Any], str]]]:
    """A worker for each limiter, with a batch."""
    async with AsyncExitStack() as stack:
        batches: list[tuple[BatchOrchestrator[Any, Any, Any, Any], str]] = []
        for number, limiter in enumerate(limiters):
            worker = Worker(stores(), clock=provider.clock, lease=timedelta(hours=1))
            orchestrator = BatchOrchestrator(provider.workflow_of(f"documents-{number}", limiter), worker=worker)
            await stack.enter_async_context(orchestrator)
            batch_id = await orchestrator.submit(
                range(documents), document_id=str, config=BatchConfig(concurrency=documents or 1)
            )
            batches.append((orchestrator, batch_id))
        yield batches


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_workers_together_use_the_limit_and_no_more(clock: ManualClock, tmp_path: Path, kind: str) -> None:
    provider = Provider(clock)
    memory = MemoryStore(clock=clock)
    stores: Callable[[], Store] = (
        (lambda: memory) if kind == "memory" else lambda: SQLiteStore(tmp_path / "batches.db", clock=clock)
    )
    limiters = [CentralRateLimiter(name="openai", requests_per_minute=60, shared="openai") for _ in range(3)]
    async with fleet(provider, stores, 30, *limiters) as batches, moving(clock, 0.05):
        for orchestrator, batch_id in batches:
            result = await within(orchestrator.result(batch_id))
            assert result.counts.succeeded == 30
    assert len(provider.began) == 90
    assert most_in_a_window(provider.at()) <= 60
    took = provider.began[-1][1] - provider.began[0][1]
    assert took <= 90 * 62 / 60 * 1.1
    each = [sum(name == f"documents-{number}" for name, _ in provider.began[:45]) for number in range(3)]
    assert max(each) - min(each) <= 4
    assert limiters[0].metrics().shared == "openai"
    assert clock.waiting == 0


async def test_calls_at_once_are_shared_and_are_others_when_a_worker_is_closed(clock: ManualClock) -> None:
    provider = Provider(clock, takes=1.0)
    store = MemoryStore(clock=clock)
    limiters = [CentralRateLimiter(max_concurrent=2, shared="provider") for _ in range(2)]
    async with fleet(provider, lambda: store, 8, *limiters) as batches, moving(clock, 0.05):
        for orchestrator, batch_id in batches:
            await within(orchestrator.result(batch_id))
    assert provider.most == 2
    assert len(provider.began) == 16


async def test_two_workers_with_one_limiter_supply_it_one_after_the_other(clock: ManualClock) -> None:
    provider = Provider(clock)
    store = MemoryStore(clock=clock)
    limiter = CentralRateLimiter(name="openai", requests_per_minute=600, shared="openai")
    async with fleet(provider, lambda: store, 5, limiter, limiter) as batches, moving(clock, 0.05):
        (one, first), (two, second) = batches
        await within(one.result(first))
        await within(two.result(second))
        await one.worker.__aexit__(None, None, None)
        third = await two.submit(range(5), document_id=str)
        assert (await within(two.result(third))).counts.succeeded == 5
        await one.worker.__aenter__()
    assert len(provider.began) == 15


class FlakyStore(MemoryStore):
    """A store whose takes are not answered at times."""

    away = False
    taken = 0

    async def take(self, name: str, worker: WorkerId, plan: Callable[[SharedLimit], SharedWrites[Any]]) -> Any:
        if self.away:
            raise StoreUnavailableError("the database is away")
        self.taken += 1
        return await super().take(name, worker, plan)


class LateStore(FlakyStore):
    """A store that answers a worker that leaves when others have taken twice since."""

    is_late = False

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        events = await super().leave(worker)
        takes = self.taken
        if self.is_late:
            self.is_late = False
            await eventually(lambda: self.taken >= takes + 2)
        return events


async def test_event_loops_of_a_process_share_limits_each_with_a_limiter_of_its_own(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "batches.db")
    began: list[tuple[float, float]] = []

    def run_there(name: str) -> int:
        @durable_activity(limiter=CentralRateLimiter(requests_per_minute=1_200, shared="provider"))
        async def call(number: int) -> int:
            began.append((SystemClock().boot(), 1.0))
            return number

        @workflow(STAGES, name=name)
        async def documents(number: int) -> int:
            return await call(number)

        async def run() -> int:
            async with BatchOrchestrator(documents, worker=Worker(store)) as batches:
                return (await within(batches.run(range(20)))).counts.succeeded

        return asyncio.run(run())

    assert await asyncio.gather(*[asyncio.to_thread(run_there, name) for name in ("one", "two")]) == [20, 20]
    # At once a fiftieth of the limit; and what comes in within a second, and within a slice.
    assert most_in_a_window(began, 1.0) <= 24 + 20 * (1 + SLICE_SECONDS)
    assert len(began) == 40


class Held:
    """A budget of a store in memory, for a limiter without a worker."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.worker_id = WorkerId("worker")
        self._limit = SharedLimit(0, None, {})

    async def take(self, name: str, plan: Callable[[SharedLimit], SharedWrites[Any]]) -> Any:
        writes = plan(self._limit._replace(now=int(self.clock.boot() * 1_000_000)))
        self._limit = SharedLimit(0, writes.data, {self.worker_id: writes.slot})
        return writes.answer


def test_a_limiter_that_a_closed_event_loop_has_left_is_supplied_by_the_next() -> None:
    """Where a loop is closed that has ended no task, as in a notebook; or in a child that was forked meanwhile."""
    limiter = CentralRateLimiter(requests_per_minute=1_200, shared="provider")
    supply = limiter.supply
    assert supply is not None

    async def join() -> None:
        supply.join(Held())

    async def call() -> None:
        with pytest.raises(ConfigurationError):
            await limiter.permit().__aenter__()
        budget = Held()
        supply.join(budget)
        refill = asyncio.create_task(supply.run(budget))
        async with limiter.permit():
            pass
        refill.cancel()
        await asyncio.wait([refill])
        supply.leave(budget)

    asyncio.run(join())
    asyncio.run(within(call()))


async def test_calls_that_run_are_counted_when_another_worker_supplies_their_limiter(clock: ManualClock) -> None:
    """They were calls at once of the worker that leaves; a third one has none of them before they have ended."""
    provider = Provider(clock, takes=20.0)
    store = LateStore(clock=clock)
    limiter, other = (CentralRateLimiter(max_concurrent=2, shared="provider") for _ in range(2))
    async with fleet(provider, lambda: store, 0, limiter, limiter, other) as batches, moving(clock, 0.05):
        one, two, three = [orchestrator for orchestrator, _ in batches]
        await within(one.run([1]))
        running = await two.submit([1, 2], document_id=str)
        await eventually(lambda: provider.inside == 2)
        waiting = await three.submit([1, 2], document_id=str)
        await eventually(lambda: other.metrics().waiting == 2)
        store.is_late = True
        await one.worker.__aexit__(None, None, None)
        await within(three.result(waiting))
        await within(two.result(running))
        await one.worker.__aenter__()
    assert provider.most == 2


async def test_while_the_store_is_away_nothing_begins_beyond_what_was_granted(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(clock)
    store = FlakyStore(clock=clock)
    limiter = CentralRateLimiter(name="openai", requests_per_minute=60, shared="openai")
    async with fleet(provider, lambda: store, 40, limiter) as batches, moving(clock, 0.05):
        ((orchestrator, batch_id),) = batches
        await eventually(lambda: len(provider.began) >= 5)
        store.away = True
        left = clock.boot()
        await eventually(lambda: clock.boot() > left + 30)
        assert not [at for _, at in provider.began if left + 1 < at]
        assert limiter.metrics().waiting > 0
        store.away = False
        assert (await within(orchestrator.result(batch_id))).counts.succeeded == 40
    assert most_in_a_window(provider.at()) <= 60
    assert "store unavailable: the database is away; waiting: the budget of the limiter 'openai'" in caplog.text
    assert "store connection restored" in caplog.text


async def test_the_hot_path_does_not_ask_the_store(clock: ManualClock) -> None:
    provider = Provider(clock)
    store = FlakyStore(clock=clock)
    limiter = CentralRateLimiter(requests_per_minute=60_000, shared="provider")
    async with fleet(provider, lambda: store, 200, limiter) as batches, moving(clock, 0.01):
        ((orchestrator, batch_id),) = batches
        await within(orchestrator.result(batch_id))
    assert len(provider.began) == 200
    assert store.taken <= 10


async def test_who_must_not_wait_is_refused_and_has_its_part_soon(clock: ManualClock) -> None:
    provider = Provider(clock)
    store = FlakyStore(clock=clock)
    limiter = CentralRateLimiter(requests_per_minute=600, shared="provider")
    async with fleet(provider, lambda: store, 1, limiter) as batches:
        async with moving(clock, 0.05):
            ((orchestrator, batch_id),) = batches
            await within(orchestrator.result(batch_id))
            idle = clock.boot() + 10
            await eventually(lambda: clock.boot() > idle)
        with activity_context(clock=clock):
            with pytest.raises(RateLimitedError):
                async with limiter.permit(wait=False):
                    pass
            takes = store.taken
            await eventually(lambda: store.taken > takes)
            async with limiter.permit(wait=False):
                pass


async def test_who_asks_again_when_told_to_is_admitted(clock: ManualClock) -> None:
    """Also by code beside the activities, before one of them was called, and after the worker has lost its lease."""
    provider = Provider(clock)
    store = FlakyStore(clock=clock)
    limiter = CentralRateLimiter(requests_per_minute=600, shared="provider")

    async def ask() -> int:
        with activity_context(clock=clock):
            for refused in range(4):
                try:
                    async with limiter.permit(wait=False):
                        return refused
                except RateLimitedError as error:
                    await clock.sleep(error.retry_after.total_seconds())
        return 4

    async with fleet(provider, lambda: store, 0, limiter) as batches, moving(clock, 0.05):
        ((orchestrator, _),) = batches
        assert await within(ask()) <= 2
        first = orchestrator.worker.worker_id
        await store.expire(dead=[worker.worker_id for worker in await store.workers()])
        while orchestrator.worker.worker_id == first:
            assert await within(ask()) <= 4
        assert await within(ask()) <= 3
    with pytest.raises(ConfigurationError):
        await ask()


async def test_different_limits_of_one_name_are_said_once(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    provider = Provider(clock)
    store = MemoryStore(clock=clock)
    old = CentralRateLimiter(name="openai", requests_per_minute=60, shared="openai")
    new = CentralRateLimiter(name="openai", requests_per_minute=6_000, shared="openai")
    async with fleet(provider, lambda: store, 15, old, new) as batches, moving(clock, 0.05):
        for orchestrator, batch_id in batches:
            await within(orchestrator.result(batch_id))
    assert most_in_a_window(provider.at()) <= 60
    said = [record for record in caplog.records if "were given different ones" in record.getMessage()]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING
    assert "requests a minute 60, tokens a minute None" in said[0].getMessage()


class OldStore(MemoryStore):
    """An adapter that keeps no shared limits."""

    take: Any = None

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)


async def test_what_cannot_be_shared_is_refused_when_the_worker_starts(clock: ManualClock) -> None:
    provider = Provider(clock)
    limiter = CentralRateLimiter(requests_per_minute=60, shared="openai")
    orchestrator = BatchOrchestrator(provider.workflow_of("documents", limiter), worker=Worker(OldStore(clock)))
    message = r"activity '.*call' of workflow 'documents' has a limiter .*shared='openai'.* and OldStore cannot keep"
    with pytest.raises(ConfigurationError, match=message):
        async with orchestrator:
            pass
    # By its name, too.
    worker = Worker(OldStore(clock), limiters={"openai": limiter})
    with pytest.raises(ConfigurationError, match=message):
        async with BatchOrchestrator(provider.workflow_of("documents", "openai"), worker=worker):
            pass
    # Nobody's limits are shared with those of another object in one worker: it would have them twice.
    worker = Worker(MemoryStore(clock=clock))
    other = CentralRateLimiter(requests_per_minute=60, shared="openai")
    BatchOrchestrator(provider.workflow_of("one", limiter), worker=worker)
    second = BatchOrchestrator(provider.workflow_of("two", other), worker=worker)
    with pytest.raises(ConfigurationError, match="its worker has another one of that name"):
        async with second:
            pass


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0b", "\ud800"])
def test_a_name_that_no_store_could_keep_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^shared must"):
        CentralRateLimiter(requests_per_minute=60, shared=name)


def test_a_limiter_without_limits_has_nothing_to_share() -> None:
    with pytest.raises(ConfigurationError, match="there are none"):
        CentralRateLimiter(shared="openai")
    assert CentralRateLimiter(requests_per_minute=1, shared="öpen ai'\"%").shared == "öpen ai'\"%"


async def test_without_a_worker_there_is_no_budget(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(name="openai", requests_per_minute=60, shared="openai")
    with pytest.raises(ConfigurationError, match="'openai' shares its limits by a worker's store"):
        async with limiter.permit():
            pass
