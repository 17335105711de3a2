"""Signals are heard by tests that listen, in order, from any thread; and cost nothing where nobody does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from durable_batches.signals import Signal, until


async def test_a_listener_hears_in_order_what_is_fired_while_it_listens() -> None:
    signal = Signal[int]()
    signal.fire(1)
    with signal.listen() as heard, signal.listen() as other:
        signal.fire(2)
        signal.fire(3)
        assert (await heard.next(), await heard.next()) == (2, 3)
        assert other.heard == [2, 3]
    signal.fire(4)
    assert heard.heard == []


async def test_a_listener_waits_until_something_is_fired() -> None:
    signal = Signal[int]()
    with signal.listen() as heard:
        asyncio.get_running_loop().call_soon(signal.fire, 1)
        assert await heard.next() == 1
        # What came before does not count once more.
        asyncio.get_running_loop().call_soon(signal.fire, 2)
        assert await heard.next() == 2


async def test_a_listener_can_wait_for_one_value_among_others() -> None:
    signal = Signal[int]()
    with signal.listen() as heard:
        for value in range(5):
            signal.fire(value)
        assert await heard.matching(lambda value: value == 3) == 3
        assert heard.heard == [4]


async def test_what_never_comes_fails_the_test() -> None:
    signal = Signal[int]()
    with signal.listen() as heard:
        with pytest.raises(TimeoutError):
            await heard.next(seconds=0)
        signal.fire(1)
        with pytest.raises(TimeoutError):
            await heard.matching(lambda value: value == 2, seconds=0)
    with pytest.raises(TimeoutError):
        await until(lambda: False, signal, seconds=0)


async def test_a_condition_is_looked_at_after_each_signal() -> None:
    first, second = Signal[int](), Signal[str]()
    log: list[object] = []
    await until(lambda: not log, first)
    waiting = asyncio.create_task(until(lambda: len(log) == 2, first, second))
    await asyncio.sleep(0)
    log.append(1)
    first.fire(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    log.append(2)
    second.fire("")
    await waiting


async def test_a_thread_may_fire() -> None:
    signal = Signal[int]()
    with signal.listen() as heard:
        waiting = asyncio.create_task(heard.next())
        await asyncio.sleep(0)
        thread = threading.Thread(target=signal.fire, args=(1,))
        thread.start()
        assert await waiting == 1
        thread.join()


def test_a_thread_that_fires_after_the_loops_end_harms_nobody() -> None:
    signal = Signal[int]()

    async def listen() -> None:
        with signal.listen() as heard:
            kept.append(heard.hear)

    kept: list[object] = []
    asyncio.run(listen())
    (hear,) = kept
    assert callable(hear)
    thread = threading.Thread(target=hear, args=(1,))
    thread.start()
    thread.join()
