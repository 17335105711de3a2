"""What is begun is seen through, however often those who wait for it are cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.support import PATIENCE, turns, within

from durable_batches.tasks import completed, tell_loop, thread_ended, wake


async def _cancelled_often(task: asyncio.Task[int]) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
        await turns(10)
        assert not task.done()


async def test_the_result_is_handed_on() -> None:
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(completed(work))
    await asyncio.sleep(0)
    work.set_result(1)
    assert await waiting == 1


async def test_an_error_is_handed_on() -> None:
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(completed(work))
    await asyncio.sleep(0)
    work.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await waiting


async def test_cancellations_come_after_the_end() -> None:
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(completed(work))
    await _cancelled_often(waiting)
    assert not work.done()
    work.set_result(1)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_error_that_nobody_waits_for_any_more_is_not_complained_about() -> None:
    """It would be, as one that was never retrieved."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    work: asyncio.Future[int] = loop.create_future()
    waiting = asyncio.create_task(completed(work))
    await _cancelled_often(waiting)
    work.set_exception(ValueError("no"))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del work, waiting
    assert complaints == []


async def test_who_waits_for_a_thread_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forked next, for one, may have but one thread."""
    here, goes_on = threading.current_thread(), threading.Event()
    join = threading.Thread.join

    def lingering(future: asyncio.Future[None]) -> None:
        wake(future)
        goes_on.wait(PATIENCE)

    def joined(thread: threading.Thread, timeout: float | None = None) -> None:
        if threading.current_thread() is here:
            goes_on.set()
        join(thread, timeout)

    monkeypatch.setattr("durable_batches.tasks.wake", lingering)
    monkeypatch.setattr(threading.Thread, "join", joined)
    before = set(threading.enumerate())
    thread = threading.Thread(target=lambda: None)
    thread.start()
    await thread_ended(thread)
    left = set(threading.enumerate()) - before
    goes_on.set()
    assert left == set()


async def test_an_event_loop_makes_a_call_for_another_thread() -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()
    assert await asyncio.to_thread(tell_loop, loop, told.set_result, "told")
    assert await within(told) == "told"


def test_a_closed_event_loop_is_told_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    assert not tell_loop(loop, pytest.fail, "called")
