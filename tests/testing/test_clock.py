from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from durable_batches.clock import Clock, Deadline
from durable_batches.lifecycle.moments import to_micros
from durable_batches.testing import ManualClock


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_it_is_a_clock() -> None:
    clock: Clock = ManualClock()
    assert clock.now() == clock.now()


def test_it_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(datetime(2031, 1, 1, tzinfo=UTC))
    start, boot = clock.now(), clock.boot()
    assert start == to_micros(datetime(2031, 1, 1, tzinfo=UTC))
    clock.advance(1.5)
    assert clock.now() - start == 1_500_000
    assert clock.boot() - boot == 1.5
    with pytest.raises(ValueError, match="less than nothing"):
        clock.advance(-1)


def test_many_small_steps_are_exact() -> None:
    clock = ManualClock()
    start, boot = clock.now(), clock.boot()
    for _ in range(1_000):
        clock.advance(0.001)
    assert clock.now() - start == 1_000_000
    assert clock.boot() - boot == 1


def test_a_jump_moves_the_wall_clock_alone() -> None:
    clock = ManualClock()
    start, boot = clock.now(), clock.boot()
    clock.jump(-3600)
    assert clock.now() - start == -3_600_000_000
    assert clock.boot() == boot
    clock.advance(1)
    assert clock.boot() == boot + 1


async def test_sleepers_wake_in_their_time() -> None:
    clock = ManualClock()
    woken: list[int] = []

    async def sleeper(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2):
            group.create_task(sleeper(seconds))
        await turns()
        assert clock.waiting == 3
        clock.advance(0.999)
        await turns()
        assert woken == []
        clock.advance(1.001)
        await turns()
        assert woken == [1, 2]
        clock.advance(100)
    assert woken == [1, 2, 3]
    assert clock.waiting == 0


async def test_timers_are_called_in_order_each_at_its_moment() -> None:
    clock = ManualClock()
    start = clock.now()
    calls: list[tuple[str, int]] = []

    def call(name: str) -> None:
        calls.append((name, (clock.now() - start) // 1_000_000))
        if name == "b":
            clock.call_later(1, lambda: call("set by b"))

    clock.call_later(2, lambda: call("b"))
    clock.call_later(2, lambda: call("c"))
    clock.call_later(1, lambda: call("a"))
    clock.call_later(9, lambda: call("later"))
    clock.advance(5)
    assert calls == [("a", 1), ("b", 2), ("c", 2), ("set by b", 3)]


async def test_a_cancelled_timer_is_not_called() -> None:
    clock = ManualClock()
    calls: list[str] = []
    timer = clock.call_later(1, lambda: calls.append("no"))
    timer.cancel()
    assert clock.waiting == 0
    clock.advance(2)
    assert not calls


async def test_no_time_is_no_wait() -> None:
    clock = ManualClock()
    calls: list[str] = []
    await clock.sleep(0)
    clock.call_later(0, lambda: calls.append("called"))
    assert not calls
    await turns()
    assert calls == ["called"]


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.waiting == 0


async def test_it_serves_the_librarys_deadlines() -> None:
    clock = ManualClock()

    async def slow() -> None:
        async with Deadline(clock, 5):
            await clock.sleep(100)

    task = asyncio.create_task(slow())
    await turns()
    clock.advance(5)
    with pytest.raises(TimeoutError):
        await task


async def test_another_thread_may_read_and_move_it() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await turns()
    start = clock.boot()
    readings: list[float] = []

    def read_and_move() -> None:
        readings.append(clock.boot())
        clock.advance(10)

    thread = threading.Thread(target=read_and_move)
    thread.start()
    await asyncio.to_thread(thread.join)
    await asyncio.wait_for(task, 5)
    assert readings == [start]
