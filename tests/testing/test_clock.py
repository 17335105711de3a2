from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest
from tests.support import eventually

from durable_batches import MemoryStore
from durable_batches.clock import Clock, Deadline
from durable_batches.lifecycle.primitives import to_micros
from durable_batches.lifecycle.records import WorkerId, WorkerRecord
from durable_batches.outage import Outages
from durable_batches.testing import ManualClock
from durable_batches.worker.heartbeat import LeaseRenewer
from durable_batches.worker.lease import Lease
from durable_batches.worker.signals import LeaseSignals


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


# ---- what nobody waits for, and what threads wait with -----------------------------------------------------------


async def test_housekeeping_is_no_timer_to_stop_at() -> None:
    clock = ManualClock()
    woken: list[str] = []

    async def look_around() -> None:
        while True:
            await clock.sleep(1, housekeeping=True)
            woken.append("looked")

    task = asyncio.create_task(look_around())
    timer = clock.call_later(5, lambda: woken.append("housekeeping"), housekeeping=True)
    await turns()
    assert clock.next_timer is None
    late = clock.call_later(20, lambda: woken.append("late"))
    clock.call_later(10, lambda: woken.append("called"))
    assert clock.next_timer == timedelta(seconds=10)
    clock.advance(10)
    await turns()
    assert woken == ["housekeeping", "called", "looked"]
    assert clock.next_timer == timedelta(seconds=10)
    late.cancel()
    timer.cancel()
    assert clock.next_timer is None
    task.cancel()


async def test_it_knows_who_sleeps() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    assert not clock.is_sleeping(task)
    await turns()
    assert clock.is_sleeping(task)
    clock.advance(10)
    await task
    assert not clock.is_sleeping(task)


@pytest.mark.parametrize("end", ["set", "moved", "set before"])
def test_a_thread_waits_without_real_time(end: str) -> None:
    clock = ManualClock()
    alarm = clock.alarm()
    answers: list[bool] = []
    if end == "set before":
        alarm.set()
    thread = threading.Thread(target=lambda: answers.append(alarm.wait(3600)))
    thread.start()
    if end == "set":
        alarm.set()
    while thread.is_alive() and end == "moved":
        # Again and again: the thread may begin to wait only after the clock was moved.
        clock.advance(3600)
    thread.join()
    assert clock.waiting_threads == 0
    assert answers == [end != "moved"]


@pytest.mark.parametrize("end", ["moved", "set"])
async def test_a_thread_whose_wait_is_over_does_not_count_as_waiting(end: str) -> None:
    """Also before it has run again: a test that moves the clock when it waits would move it many times till then."""
    clock = ManualClock()
    alarm = clock.alarm()
    thread = threading.Thread(target=alarm.wait, args=(10,))
    thread.start()
    await eventually(lambda: clock.waiting_threads == 1)
    clock.advance(9)
    assert clock.waiting_threads == 1
    with clock._lock:  # so that the thread cannot leave
        if end == "moved":
            clock._elapsed += 1_000_000
        else:
            alarm._set = True  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        assert sum(each.waiting for each in clock._alarms) == 0
    clock.advance(1)
    thread.join()


async def test_a_thread_is_busy_between_two_waits() -> None:
    clock = ManualClock()
    alarm = clock.alarm()
    goes_on = threading.Event()

    def work() -> None:
        alarm.wait(10)
        goes_on.wait()
        alarm.wait(10)

    thread = threading.Thread(target=work)
    assert clock.busy_threads == 0
    thread.start()
    await eventually(lambda: clock.waiting_threads == 1)
    assert clock.busy_threads == 0
    clock.advance(10)
    assert clock.busy_threads == 1
    goes_on.set()
    await eventually(lambda: clock.waiting_threads == 1)
    assert clock.busy_threads == 0
    clock.advance(10)
    thread.join()
    assert clock.busy_threads == 0


async def test_a_lease_is_kept_in_virtual_time() -> None:
    """And let go by a loop that has not turned for too long, by the same clock."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    worker = WorkerId("w")
    await store.register(WorkerRecord(worker, "", "", 0, "", frozenset()), 30_000_000)
    lost = threading.Event()
    renewer = LeaseRenewer(
        store,
        worker,
        Lease(clock, timedelta(seconds=30)),
        timedelta(seconds=30),
        timedelta(minutes=5),
        clock,
        outages=Outages(clock),
        lost=lost.set,
        signals=LeaseSignals(),
    )
    beats: list[float] = []
    beat = store.beat

    def noted(worker: WorkerId) -> bool:
        beats.append(clock.boot())
        return beat(worker)

    store.beat = noted  # type: ignore[method-assign]
    renewer.start()
    for number in range(1, 7):
        await eventually(lambda: clock.waiting_threads == 1)
        renewer.loop_turns()
        clock.advance(10)
        await eventually(lambda: len(beats) == number)  # noqa: B023  (awaited here)
        assert (await store.expire()).workers == []
    await eventually(lambda: clock.waiting_threads == 1)
    clock.advance(301)
    # It may be the process that stood still: the loop has a moment to turn.
    await eventually(lambda: clock.waiting_threads == 1)
    assert not lost.is_set()
    clock.advance(2)
    await eventually(lost.is_set)
    await renewer.ended()
    assert len(beats) == 6
    assert (await store.expire()).workers == [worker]


async def test_a_heart_stops_without_waiting() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    lost = threading.Event()
    renewer = LeaseRenewer(
        store,
        WorkerId("w"),
        Lease(clock, timedelta(days=1)),
        timedelta(days=1),
        timedelta(days=1),
        clock,
        outages=Outages(clock),
        lost=lost.set,
        signals=LeaseSignals(),
    )
    renewer.start()
    await eventually(lambda: clock.waiting_threads == 1)
    renewer.signal_stop()
    await renewer.ended()
    assert clock.waiting_threads == 0
    assert not lost.is_set()
