"""Several event loops in one process, each on a thread of its own: stores are shared, workers and clients are not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import pytest
from tests.support import NO_DRAIN, STAGES, within

from durable_batches import (
    BatchClient,
    BatchOrchestrator,
    NotInWorkflowError,
    Store,
    Worker,
    WorkerNotRunningError,
    durable_activity,
    workflow,
)
from durable_batches.tasks import ReusableLock

T = TypeVar("T")

LOOPS: Final = 3


async def elsewhere(work: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run something in an event loop of its own, on another thread."""
    return await within(asyncio.to_thread(lambda: asyncio.run(work())))


# ---- the lock --------------------------------------------------------------------------------------------------------


async def test_a_lock_is_held_by_one_task_of_all_event_loops() -> None:
    lock, arrived = ReusableLock(), threading.Barrier(LOOPS)
    inside = most = entered = 0

    async def enter() -> None:
        nonlocal inside, most, entered
        arrived.wait(10)
        for _ in range(20):
            async with lock:
                inside += 1
                most = max(most, inside)
                entered += 1
                await asyncio.sleep(0)
                inside -= 1

    with ThreadPoolExecutor(LOOPS) as threads:
        loop = asyncio.get_running_loop()
        await within(
            asyncio.gather(*(loop.run_in_executor(threads, lambda: asyncio.run(enter())) for _ in range(LOOPS)))
        )
    assert (most, entered) == (1, LOOPS * 20)


async def test_another_event_loop_waits_until_a_lock_is_free() -> None:
    lock = ReusableLock()
    waits, got = threading.Event(), asyncio.Event()

    async def enter() -> None:
        asyncio.get_running_loop().call_soon(waits.set)
        async with lock:
            loop.call_soon_threadsafe(got.set)

    loop = asyncio.get_running_loop()
    async with lock:
        other = asyncio.create_task(elsewhere(enter))
        await asyncio.to_thread(waits.wait, 10)
        assert not got.is_set()
    await other
    assert got.is_set()


async def test_a_task_that_is_cancelled_while_it_waits_leaves_a_lock_to_the_others() -> None:
    lock = ReusableLock()

    async def enter() -> None:
        async with lock:
            pass

    async with lock:
        tasks = [asyncio.create_task(enter()) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
    await within(tasks[1])
    assert tasks[0].cancelled()
    await within(enter())


def test_what_an_event_loop_leaves_locked_is_free_for_the_next_one() -> None:
    lock = ReusableLock()

    async def leave_it() -> None:
        await lock.__aenter__()

    async def enter() -> None:
        async with asyncio.timeout(10), lock:
            pass

    asyncio.run(leave_it())
    asyncio.run(enter())


# ---- stores, workers, clients ----------------------------------------------------------------------------------------


@durable_activity
async def echo(text: str) -> str:
    return text


@workflow(STAGES, name="echoing")
async def echoing(text: str) -> str:
    return await echo(text)


async def test_event_loops_open_use_and_close_one_store_at_once(store: Store) -> None:
    arrived = threading.Barrier(LOOPS)

    async def use() -> int:
        arrived.wait(10)
        async with BatchOrchestrator(echoing, worker=Worker(store, drain=NO_DRAIN)) as batches:
            return (await batches.run(["one", "two"])).counts.succeeded

    with ThreadPoolExecutor(LOOPS) as threads:
        loop = asyncio.get_running_loop()
        found = await within(
            asyncio.gather(*(loop.run_in_executor(threads, lambda: asyncio.run(use())) for _ in range(LOOPS)))
        )
    assert found == [2] * LOOPS


async def test_a_worker_of_another_event_loop_is_refused_at_the_first_use(store: Store) -> None:
    async with BatchOrchestrator(echoing, worker=Worker(store, drain=NO_DRAIN)) as batches:
        batch_id = (await batches.run(["one"])).batch_id

        async def enter() -> None:
            async with batches:
                pass

        for use in (
            lambda: batches.submit(["two"]),
            lambda: batches.result(batch_id),
            lambda: batches.cancel(batch_id),
            enter,
        ):
            with pytest.raises(WorkerNotRunningError, match="another event loop"):
                await elsewhere(use)
        assert (await batches.run(["three"])).counts.succeeded == 1


async def test_a_client_of_another_event_loop_is_refused_at_the_first_use(store: Store) -> None:
    async with BatchOrchestrator(echoing, worker=Worker(store, drain=NO_DRAIN)) as batches:
        batch_id = (await batches.run(["one"])).batch_id
        async with BatchClient(store) as client:
            for use in (lambda: client.snapshot(batch_id), client.__aenter__):
                with pytest.raises(WorkerNotRunningError, match="another event loop"):
                    await elsewhere(use)
            assert (await client.snapshot(batch_id)).counts.succeeded == 1


# ---- activities ------------------------------------------------------------------------------------------------------


async def test_an_activity_in_another_event_loop_than_its_workflow_does_not_begin(store: Store) -> None:
    begun: list[str] = []

    @durable_activity
    async def note(text: str) -> str:
        begun.append(text)
        return text

    @workflow(STAGES, name="calling")
    async def call(text: str) -> str:
        with pytest.raises(NotInWorkflowError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(note("elsewhere")))
        return await note(text)

    async with BatchOrchestrator(call, worker=Worker(store, drain=NO_DRAIN)) as batches:
        result = await batches.run(["here"])
    assert result.counts.succeeded == 1
    assert begun == ["here"]


async def test_an_activity_that_another_thread_hands_to_its_workflow_is_recorded(store: Store) -> None:
    @workflow(STAGES, name="handing")
    async def hand(text: str) -> str:
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(echo(text), loop).result())

    async with BatchOrchestrator(hand, worker=Worker(store, drain=NO_DRAIN)) as batches:
        result = await batches.run(["here"])
        async with BatchClient(store) as client:
            details = await client.snapshot(result.batch_id)
    assert result.counts.succeeded == details.counts.succeeded == 1
