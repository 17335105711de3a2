"""A pause and a drain fall while calls wait for a thread, or for a place of an executor: none of them begins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Literal

import pytest
from tests.conftest import StoreMaker
from tests.executors.activities import double
from tests.executors.engines import Engines
from tests.support import STAGES, eventually, everything, moving, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentReleased,
    Store,
    Worker,
    Workflow,
    durable_activity,
    workflow,
)
from durable_batches.executors.messages import Request
from durable_batches.testing import ManualClock
from durable_batches.testing.virtual.inside import attempts_of

LONG = timedelta(days=1)

Stop = Literal["a pause", "a drain"]
Make = Callable[[Store], Worker]


async def stopped_and_resumed(
    stop: Stop,
    open_store: StoreMaker,
    clock: ManualClock,
    make: Make,
    run: Workflow[int, int, Any, None],
    documents: int,
    begun: list[int],
    let_go: Callable[[], Awaitable[None]],
) -> None:
    """Stop a batch once two of its calls have begun; then have these end, and have the batch go on."""
    async with AsyncExitStack() as stack:
        # Whatever fails, the calls end, and closing waits for none.
        first = make(open_store(clock))
        session = await stack.enter_async_context(AsyncExitStack())
        batches = await within(session.enter_async_context(BatchOrchestrator(run, worker=first)))
        stack.push_async_callback(let_go)
        config = BatchConfig(concurrency=documents)
        batch_id = await within(batches.submit(range(documents), document_id=str, config=config))
        await eventually(lambda: len(begun) == 2)
        await eventually(lambda: sum(len(attempt.calls) for attempt in attempts_of(first)) == 8)
        attempts = attempts_of(first)
        closing: asyncio.Task[object] | None = None
        if stop == "a pause":
            await within(batches.pause(batch_id))
        else:
            closing = asyncio.create_task(session.aclose())
        await stack.enter_async_context(moving(clock, 0.5))
        await eventually(lambda: all(attempt.is_stopping for attempt in attempts))
        await let_go()
        await eventually(lambda: len(begun) > 2 or not attempts_of(first))
        assert len(begun) == 2, "no call begins after the stop"
        if closing is not None:
            await within(closing)
            batches = await within(stack.enter_async_context(BatchOrchestrator(run, worker=make(open_store(clock)))))
        else:

            async def is_released() -> bool:
                return (await batches.snapshot(batch_id)).counts.running == 0

            await eventually(is_released)
            await within(batches.resume(batch_id))
        assert (await within(batches.result(batch_id))).counts.succeeded == documents
        events = await everything(batches.progress(batch_id))
    assert len(begun) == 8
    assert set(begun) == set(range(8)), "each call is paid for once"
    released = [event for event in events if isinstance(event, DocumentReleased)]
    assert {event.reason for event in released} == {"paused" if stop == "a pause" else "shutdown"}
    # With a document for each call, two of them finish.
    assert len(released) == (1 if documents == 1 else 6)


@pytest.mark.parametrize("stop", ["a pause", "a drain"])
async def test_calls_that_wait_for_a_thread_do_not_begin(
    open_store: StoreMaker, stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_batches.worker.worker._LEAST_THREADS", 2)
    clock, gate, begun = ManualClock(), threading.Event(), list[int]()

    @durable_activity
    def ask(number: int) -> int:
        begun.append(number)
        gate.wait()
        return number

    @workflow(STAGES)
    async def run(document: int) -> int:
        return sum(await asyncio.gather(*(ask(number) for number in range(8))))

    async def let_go() -> None:
        gate.set()

    def make(store: Store) -> Worker:
        return Worker(store, clock=clock, max_in_flight=1, drain=LONG)

    try:
        await stopped_and_resumed(stop, open_store, clock, make, run, 1, begun, let_go)
    finally:
        gate.set()


@pytest.mark.parametrize("stop", ["a pause", "a drain"])
async def test_calls_that_wait_for_a_place_do_not_begin(open_store: StoreMaker, stop: Stop) -> None:
    clock, begun, gate = ManualClock(), list[int](), asyncio.Event()

    def fate(message: bytes) -> str:
        begun.append(int(Request.decode(message).arguments["number"]))
        return "soon" if gate.is_set() else "hold"

    engines = Engines(fate)

    @workflow(STAGES)
    async def run(document: int) -> int:
        return await double(document)

    async def let_go() -> None:
        gate.set()
        for engine in engines.made:
            engine.let_go()

    def make(store: Store) -> Worker:
        return Worker(store, clock=clock, max_in_flight=8, drain=LONG, executors={"cpu": engines})

    await stopped_and_resumed(stop, open_store, clock, make, run, 8, begun, let_go)
