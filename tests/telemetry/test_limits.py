"""What calls wait for and run on, as metrics: limiters and executors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from tests.support import NO_DRAIN, ONCE, STAGES, Thinking, eventually

from durable_batches import BatchOrchestrator, MemoryStore, RetryPolicy, Worker, durable_activity, workflow
from durable_batches.flow import CentralRateLimiter
from durable_batches.runtime.limits import Permit
from durable_batches.telemetry import OpenTelemetry


class Measured:
    """A backend, and what a reader finds of it."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.telemetry = OpenTelemetry(meter_provider=MeterProvider([self._reader]))

    def now(self) -> Mapping[tuple[str, ...], float]:
        """The values of limiters and executors: by the metric's name and the values of its attributes."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            (metric.name.removeprefix("durable_batches."), *map(str, (point.attributes or {}).values())): point.value
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint) and metric.name.split(".")[1] in ("limiter", "executor")
        }


class RefusedError(Exception):
    status_code = 429


class Own:
    """A limiter of the user's own, which says nothing of itself."""

    name = "own"

    def permit(
        self, *, tokens: int = 0, wait: bool = True, max_wait: timedelta | None = None
    ) -> AbstractAsyncContextManager[Permit]:
        return CentralRateLimiter().permit(tokens=tokens)


class Talkative(Own):
    """One that says something else."""

    def metrics(self) -> str:
        raise RuntimeError("not now")


async def test_limiters_are_measured_once_whichever_workers_share_them() -> None:
    measured, gate = Measured(), asyncio.Event()
    limiter = CentralRateLimiter(name="provider", requests_per_minute=6_000, max_concurrent=1)
    others = [Own(), Talkative()]

    @durable_activity(stage=Thinking, retry=ONCE, limiter=limiter)
    async def ask(text: str) -> str:
        if text == "refused":
            current_refusals.append(text)
            if len(current_refusals) == 1:
                raise RefusedError
        await gate.wait()
        return text

    @durable_activity(stage=Thinking, retry=ONCE, limiter=others[0])
    async def ask_own(text: str) -> str:
        return text

    @durable_activity(stage=Thinking, retry=ONCE, limiter=others[1])
    async def ask_talkative(text: str) -> str:
        return text

    current_refusals: list[str] = []

    @workflow(STAGES, name="asks")
    async def asks(text: str) -> str:
        await ask_own(text)
        await ask_talkative(text)
        return await ask(text)

    @asynccontextmanager
    async def running() -> AsyncGenerator[BatchOrchestrator[Any, Any, Any, Any]]:
        worker = Worker(MemoryStore(), drain=NO_DRAIN, telemetry=measured.telemetry)
        async with BatchOrchestrator(asks, worker=worker) as batches:
            yield batches

    async with running() as batches, running() as more:
        assert measured.now() == {}
        await batches.submit(["a", "b"], document_id=str)
        await more.submit(["c"], document_id=str)
        await eventually(lambda: measured.now().get(("limiter.waiting", "provider")) == 2)
        assert measured.now() == {
            ("limiter.in_flight", "provider"): 1,
            ("limiter.waiting", "provider"): 2,
            ("limiter.refused", "provider"): 0,
            ("limiter.rate", "provider"): 1,
            ("limiter.circuit", "provider", "closed"): 1,
            ("limiter.circuit", "provider", "open"): 0,
            ("limiter.circuit", "provider", "half-open"): 0,
        }
        limiter.force("open")
        found = measured.now()
        assert [found["limiter.circuit", "provider", state] for state in ("closed", "open", "half-open")] == [0, 1, 0]
        limiter.force("auto")
        gate.set()
        await eventually(lambda: measured.now()["limiter.waiting", "provider"] == 0)
        assert measured.now()["limiter.rate", "provider"] == 1
        for _ in range(5):
            # One alone lowers nothing.
            async with limiter.permit() as permit:
                permit.refused(timedelta(0))
        await batches.submit(["refused"])
        await eventually(lambda: measured.now()["limiter.refused", "provider"] == 6)
        assert measured.now()["limiter.rate", "provider"] < 1
    # Of workers that have ended nothing is left.
    assert measured.now() == {}


async def test_limiters_of_one_name_are_added_up() -> None:
    measured, gate = Measured(), asyncio.Event()
    begun: list[str] = []
    first, second = CentralRateLimiter(name="same"), CentralRateLimiter(name="same")

    @durable_activity(stage=Thinking, retry=ONCE, limiter=first)
    async def one(text: str) -> str:
        begun.append(text)
        await gate.wait()
        return text

    @durable_activity(stage=Thinking, retry=ONCE, limiter=second)
    async def other(text: str) -> str:
        begun.append(text)
        await gate.wait()
        return text

    @workflow(STAGES, name="both")
    async def both(text: str) -> None:
        await asyncio.gather(one(text), other(text))

    worker = Worker(MemoryStore(), drain=NO_DRAIN, telemetry=measured.telemetry)
    async with BatchOrchestrator(both, worker=worker) as batches:
        await batches.submit(["a", "b"])
        await eventually(lambda: len(begun) == 4)
        second.force("open")
        found = measured.now()
        assert found["limiter.in_flight", "same"] == 4
        assert [found["limiter.circuit", "same", state] for state in ("closed", "open")] == [1, 1]
        gate.set()


GO: Final = threading.Event()


@durable_activity(stage=Thinking, run_on="pool", retry=RetryPolicy(max_attempts=1))
def far_away(text: str) -> str:
    GO.wait(60)
    return text


async def test_executors_are_measured_from_the_start(request: pytest.FixtureRequest) -> None:
    measured = Measured()
    request.addfinalizer(GO.set)

    @workflow(STAGES, name="far")
    async def far(text: str) -> str:
        return await far_away(text)

    pools = {name: ThreadPoolExecutor(1) for name in ("pool", "idle")}
    worker = Worker(MemoryStore(), drain=NO_DRAIN, telemetry=measured.telemetry, executors=pools)
    async with BatchOrchestrator(far, worker=worker) as batches:
        assert measured.now() == {
            (f"executor.{name}", executor): 0 for name in ("running", "waiting") for executor in pools
        }
        await batches.submit(["a", "b", "c"], document_id=str)
        await eventually(lambda: measured.now()["executor.waiting", "pool"] == 2)
        found = measured.now()
        assert [found[f"executor.{name}", "pool"] for name in ("running", "waiting")] == [1, 2]
        assert [found[f"executor.{name}", "idle"] for name in ("running", "waiting")] == [0, 0]
        GO.set()
    for pool in pools.values():
        pool.shutdown()
