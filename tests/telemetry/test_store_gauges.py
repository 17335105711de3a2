"""What a worker reads of its store for telemetry: documents by status, batches by state, how long claims lag."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, ONCE, STAGES, Thinking, eventually, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    ConfigurationError,
    MemoryStore,
    RetryFailed,
    Store,
    StoreUnavailableError,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.records import BatchRecord
from durable_batches.telemetry import OpenTelemetry
from durable_batches.testing import ManualClock

MINUTE = timedelta(minutes=1)


class Watched:
    """A worker with two slots that reads its store once a minute, and the metrics that come of it."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.reader = InMemoryMetricReader()
        self.gate = asyncio.Event()
        gate = self.gate

        @durable_activity(stage=Thinking, retry=ONCE)
        async def think(text: str) -> str:
            if text == "fails":
                raise ConnectionError
            if text == "slow":
                await gate.wait()
            return text

        @workflow(STAGES, name="letters")
        async def letters(text: str) -> str:
            return await think(text)

        self.worker = Worker(
            store,
            max_in_flight=2,
            lease=timedelta(days=1),
            drain=NO_DRAIN,
            telemetry=OpenTelemetry(meter_provider=MeterProvider([self.reader])),
            store_gauges=MINUTE,
            clock=clock,
        )
        self.batches: BatchOrchestrator[str, str, Any, None] = BatchOrchestrator(letters, worker=self.worker)

    def read(self, name: str, attribute: str = "durable_batches.workflow.name") -> dict[Any, float]:
        """The values of a metric by one of its attributes."""
        data = self.reader.get_metrics_data()
        return {
            (point.attributes or {}).get(attribute): point.value
            for resource in (() if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"durable_batches.{name}"
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint)
        }

    @property
    def documents(self) -> dict[Any, float]:
        """Those by status that there are."""
        found = self.read("document.count", "durable_batches.document.status")
        return {status: count for status, count in found.items() if count}


async def test_they_are_of_unfinished_batches_and_say_how_long_claims_lag(open_store: StoreMaker) -> None:
    clock = ManualClock()
    watched = Watched(open_store(clock), clock)
    with watched.worker.signals.watch.read.listen() as reading:
        async with watched.batches as batches:
            assert await reading.next()
            assert watched.documents == {}
            await batches.submit(["ends"], batch_id="over")
            await batches.result("over")
            hourly = BatchConfig(failure_policy=RetryFailed(max_attempts=3, backoff=timedelta(hours=1)))
            await batches.submit(["fails"], batch_id="waits", config=hourly)
            await batches.submit(["slow", "slow", "later"], batch_id="runs")

            async def is_full() -> bool:
                counts = (await batches.snapshot("runs")).counts, (await batches.snapshot("waits")).counts
                return (counts[0].running, counts[1].waiting) == (2, 1)

            await eventually(is_full)
            for lag in (0, 60, 120):
                clock.advance(60)
                assert await reading.next()
                assert watched.documents == {"pending": 1, "running": 2, "waiting": 1}
                assert watched.read("batch.active", "durable_batches.batch.state") == {"reading": 1, "thinking": 1}
                assert watched.read("claim.lag") == {"letters": lag}
            assert watched.read("document.count", "durable_batches.document.status").keys() == {
                *("pending", "running", "waiting", "succeeded", "failed", "cancelled")
            }
            watched.gate.set()
            await within(batches.result("runs"))
            clock.advance(60)
            assert await reading.next()
            assert watched.documents == {"waiting": 1}
            assert watched.read("claim.lag") == {"letters": 0}
    assert watched.documents == {}


async def test_a_retry_that_is_due_and_not_claimed_lags() -> None:
    clock = ManualClock()
    watched = Watched(MemoryStore(clock=clock), clock)
    with watched.worker.signals.watch.read.listen() as reading:
        async with watched.batches as batches:
            assert await reading.next()
            await batches.submit(["slow", "slow"], batch_id="first")
            await eventually(lambda: batches.worker.stats.documents_run == 2)
            # It has no slot for it; its own retry comes later.
            hourly = BatchConfig(failure_policy=RetryFailed(max_attempts=3, backoff=timedelta(hours=1)))
            await batches.submit(["fails"], batch_id="waits", config=hourly)
            clock.advance(60)
            assert await reading.next()
            clock.advance(60)
            assert await reading.next()
            assert watched.read("claim.lag") == {"letters": 60}


async def test_a_store_that_cannot_be_read_leaves_no_old_figures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, store = ManualClock(), MemoryStore()
    watched = Watched(store, clock)
    with watched.worker.signals.watch.read.listen() as reading:
        async with watched.batches as batches:
            assert await reading.next()
            await batches.submit(["slow"], batch_id="runs")
            clock.advance(60)
            assert await reading.next()
            assert watched.read("batch.active")

            async def away(*_: object, **__: object) -> NoReturn:
                raise StoreUnavailableError("the store is away")

            with monkeypatch.context() as patched:
                patched.setattr(store, "batches", away)
                for _ in range(2):
                    clock.advance(60)
                    assert not await reading.next()
                    assert not watched.read("batch.active")
            clock.advance(60)
            assert await reading.next()
            assert watched.read("batch.active")
    said = [record.getMessage() for record in caplog.records if "counted" in record.getMessage()]
    assert said == [
        "batches in the store are not counted for telemetry until it can be read: StoreUnavailableError: "
        "the store is away"
    ]


async def test_a_store_that_takes_long_is_read_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = ManualClock(), MemoryStore()
    watched = Watched(store, clock)
    listed, readings = store.batches, 0

    async def slowly(*given: Any, **named: Any) -> Sequence[BatchRecord]:
        nonlocal readings
        readings += 1
        clock.advance(10)
        return await listed(*given, **named)

    with watched.worker.signals.watch.read.listen() as reading:
        async with watched.batches:
            assert await reading.next()
            monkeypatch.setattr(store, "batches", slowly)
            clock.advance(60)
            assert await reading.next()
            await eventually(lambda: clock.waiting > 0)
            # A twentieth of the time: its 10 seconds are followed by 200 without.
            for seconds, wanted in ((199, 1), (1, 2)):
                clock.advance(seconds)
                for _ in range(20):
                    await asyncio.sleep(0)
                assert readings == wanted


def test_without_telemetry_there_is_nothing_to_read_it_for() -> None:
    with pytest.raises(ConfigurationError, match="give telemetry=, too"):
        Worker(MemoryStore(), store_gauges=MINUTE)
