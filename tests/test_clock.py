"""The machine's clocks: due times and deadlines are met though the wall clock is set back or forward."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES, eventually, within

from durable_batches import BatchConfig, BatchOrchestrator, MemoryStore, RetryFailed, workflow
from durable_batches import clock as clocks
from durable_batches.clock import SystemClock

HOUR = 3_600 * 1_000_000


class Machine:
    """A machine whose clocks a test sets, in microseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.boot = 1_000 * HOUR, 7 * HOUR
        monkeypatch.setattr("durable_batches.clock._wall_clock", clocks._SteadyWallClock())
        monkeypatch.setattr("durable_batches.clock._boot_clock", lambda: self.boot / 1_000_000)
        monkeypatch.setattr(time, "time_ns", lambda: self.wall * 1_000)
        self.clock = SystemClock()
        self.clock.now()

    def pass_(self, micros: int) -> int:
        """Have time pass, in steps of a second; return by how much the clock has moved."""
        before = self.clock.now()
        for _ in range(micros // 1_000_000):
            self.wall += 1_000_000
            self.boot += 1_000_000
            self.clock.now()
        return self.clock.now() - before


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_a_jump_of_the_wall_clock_is_made_up_for_gradually(jump: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    assert machine.pass_(10_000_000) == 10_000_000
    machine.wall += jump
    moved = machine.pass_(10_000_000)
    assert 9_000_000 <= moved <= 11_000_000
    assert (moved > 10_000_000) == (jump > 0)
    machine.pass_(10 * HOUR)
    assert machine.clock.now() == machine.wall


def test_time_never_goes_back_and_follows_the_wall_clock_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.wall -= 500
    before = machine.clock.now()
    # Between two calls less time passes than is looked at.
    machine.boot += 10
    machine.wall += 10
    assert machine.clock.now() == before + 10
    machine.pass_(1_000_000)
    assert machine.clock.now() == machine.wall


@pytest.mark.parametrize("runs", [True, False])
def test_a_suspension_is_no_jump(runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr("durable_batches.clock.RUNS_WHILE_SUSPENDED", runs)
    machine.wall += 8 * HOUR
    # Elsewhere than on Linux, the boot clock may have stood still.
    machine.boot += 8 * HOUR if runs else 1_000
    assert abs(machine.clock.now() - machine.wall) <= 1_000


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    original, offset = time.time_ns, {"hours": 0}
    monkeypatch.setattr("durable_batches.clock._wall_clock", clocks._SteadyWallClock())
    monkeypatch.setattr(time, "time_ns", lambda: original() + offset["hours"] * HOUR * 1_000)
    return offset


async def test_a_retry_is_due_though_the_clock_was_set_back(open_store: StoreMaker, set_clock: dict[str, int]) -> None:
    failed: set[str] = set()

    @workflow(STAGES)
    async def run(document: str) -> str:
        if document not in failed:
            failed.add(document)
            raise ConnectionError
        return document

    config = BatchConfig(failure_policy=RetryFailed(backoff=timedelta(milliseconds=50)))
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x"], config=config)
        await eventually(lambda: bool(failed))
        set_clock["hours"] = -1
        assert (await within(batches.result(batch_id))).counts.succeeded == 1


async def test_a_deadline_does_not_fire_because_the_clock_was_set_forward(set_clock: dict[str, int]) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    @workflow(STAGES)
    async def run(document: str) -> str:
        started.set()
        await gate.wait()
        return document

    async with BatchOrchestrator(run, store=MemoryStore()) as batches:
        batch_id = await batches.submit(["x"], config=BatchConfig(deadline=timedelta(minutes=10)))
        await within(started.wait())
        set_clock["hours"] = 1
        with batches.worker.signals.scheduler.idle.listen() as idle:
            batches.worker.wake()
            await idle.next()
        gate.set()
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
