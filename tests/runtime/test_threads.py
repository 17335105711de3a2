"""Threads for sync activities: those that hang cost nobody else anything."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, ONCE, STAGES, eventually, within

from durable_batches import BatchConfig, BatchOrchestrator, Store, Worker, durable_activity, workflow
from durable_batches.runtime.threads import Threads
from durable_batches.testing import ManualClock


class Tasks:
    """Calls of functions in threads, each with a gate of its own."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.gates: list[threading.Event] = []
        self.begun = 0

    def start(self, name: str = "act") -> asyncio.Task[int]:
        gate, number = threading.Event(), len(self.gates)
        self.gates.append(gate)

        def work() -> int:
            self.begun += 1
            gate.wait()
            return number

        async def call() -> int:
            async with self.threads.one(name) as run:
                result: int = await run(work)
                return result

        return asyncio.create_task(call())


async def test_calls_beyond_the_most_wait_and_threads_are_used_again() -> None:
    tasks = Tasks(Threads(2))
    calls = [tasks.start() for _ in range(3)]
    await eventually(lambda: tasks.begun == 2)
    tasks.gates[1].set()
    await eventually(lambda: tasks.begun == 3)
    for gate in tasks.gates:
        gate.set()
    assert await asyncio.gather(*calls) == [0, 1, 2]
    tasks.threads.close()


async def test_a_thread_that_is_left_behind_does_not_count_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    left: list[int] = []
    tasks = Tasks(Threads(1, left.append))
    for number in range(3):
        hanging = tasks.start("hang")
        await eventually(lambda number=number: tasks.begun == number + 1)  # type: ignore[misc]  # of a default mypy infers no type
        hanging.cancel()
        await asyncio.wait([hanging])
    assert left == [1, 2, 3]
    # Once for the first one, once for twice as many.
    assert [record.__dict__["threads"] for record in caplog.records] == [1, 2]
    assert "2 such threads: 'hang' 2" in caplog.records[1].getMessage()
    innocent = tasks.start()
    tasks.gates[3].set()
    assert await within(innocent) == 3
    for gate in tasks.gates:
        gate.set()
    await eventually(lambda: left[-1] == 0)
    tasks.threads.close()


@pytest.mark.parametrize("moment", ["while it waits", "as it gets the slot"])
async def test_a_call_that_is_cancelled_before_it_has_a_thread_takes_none(moment: str) -> None:
    tasks = Tasks(Threads(1))
    first = tasks.start()
    await eventually(lambda: tasks.begun == 1)
    waiting, last = tasks.start(), tasks.start()
    await asyncio.sleep(0)
    if moment == "while it waits":
        waiting.cancel()
        await asyncio.wait([waiting])
    tasks.gates[0].set()
    await within(first)
    waiting.cancel()
    tasks.gates[1].set()
    tasks.gates[2].set()
    assert await within(last) == 2
    tasks.threads.close()


async def test_a_system_that_has_no_more_threads_costs_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tasks = Tasks(Threads(1))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            await tasks.start()
    call = tasks.start()
    tasks.gates[1].set()
    assert await within(call) == 1
    tasks.threads.close()


async def test_hung_calls_leave_the_threads_to_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable_batches.worker.worker._LEAST_THREADS", 2)
    release, clock = threading.Event(), ManualClock()
    begun: list[int] = []

    @durable_activity(timeout=timedelta(seconds=1), retry=ONCE)
    def hang(number: int) -> int:
        begun.append(number)
        release.wait()
        return number

    @durable_activity(timeout=timedelta(days=1), retry=ONCE)
    def quick(number: int) -> int:
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await (hang(number) if number < 3 else quick(number))

    worker = Worker(store, clock=clock, max_in_flight=2, drain=NO_DRAIN, lease=timedelta(days=1))
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit(range(5), config=BatchConfig(concurrency=5))
        for number in (2, 3):
            # The time runs from where the body begins.
            await eventually(lambda number=number: len(begun) == number)  # type: ignore[misc]  # of a default mypy infers no type
            clock.advance(1)
        result = await within(batches.result(batch_id))
        assert (result.counts.failed, result.counts.succeeded) == (3, 2)
        assert worker.stats.threads_left == 3
        release.set()
        await eventually(lambda: worker.stats.threads_left == 0)


async def test_threads_end_with_their_worker(open_store: StoreMaker) -> None:
    @durable_activity
    def quick(number: int) -> int:
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await quick(number)

    def living() -> list[Any]:
        return [thread for thread in threading.enumerate() if thread.name == "durable-batches-activity"]

    before = len(living())
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        await within(batches.run(range(5)))
        assert all(thread.daemon for thread in living())
        assert len(living()) > before
    await eventually(lambda: len(living()) <= before)


def test_a_thread_that_was_left_behind_ends_though_its_event_loop_has_gone() -> None:
    release, threads = threading.Event(), list[threading.Thread]()

    def hang() -> None:
        threads.append(threading.current_thread())
        release.wait()

    async def give_up() -> None:
        pool = Threads(1)

        async def call() -> None:
            async with pool.one("hang") as run:
                await run(hang)

        hanging = asyncio.create_task(call())
        await eventually(lambda: bool(threads))
        hanging.cancel()
        await asyncio.wait([hanging])
        pool.close()

    asyncio.run(give_up())
    release.set()
    threads[0].join(60)
    assert not threads[0].is_alive()
