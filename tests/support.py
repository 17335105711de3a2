"""What many tests need."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from inspect import isawaitable
from typing import Final, Literal, TypeVar

from durable_batches import BatchStateMachine, RetryPolicy, Stage, Store, Worker
from durable_batches.signals import until
from durable_batches.testing import ManualClock
from durable_batches.testing.virtual.inside import is_at_rest

S = TypeVar("S", bound=Store)
T = TypeVar("T")


class Reading(Stage):
    tag: Literal["reading"] = "reading"


class Thinking(Stage):
    tag: Literal["thinking"] = "thinking"


class Writing(Stage):
    tag: Literal["writing"] = "writing"


STAGES = BatchStateMachine(Reading, Thinking, Writing)

NO_DELAY: Final = timedelta(0)
ONCE: Final = RetryPolicy(max_attempts=1)
AT_ONCE: Final = RetryPolicy(initial=NO_DELAY)
NO_DRAIN: Final = NO_DELAY

PATIENCE: Final = 60.0
"""Seconds until a test gives up on something that is to happen: far more than it takes."""


async def eventually(holds: Callable[[], bool | Awaitable[bool]], *, seconds: float = PATIENCE) -> None:
    """Wait until something holds; fail once it has taken too long."""
    async with asyncio.timeout(seconds):
        while True:
            answer = holds()
            if await answer if isawaitable(answer) else answer:
                return
            await asyncio.sleep(0.002)


async def committed_until(worker: Worker, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds that changes with this worker's commits; it is looked at after each of them."""
    with worker.signals.journal.committed.listen() as committed:
        while not await holds():
            await committed.next()


async def within(awaitable: Awaitable[T], *, seconds: float = PATIENCE) -> T:
    """What it awaits to; fails, rather than hang, once that has taken too long."""
    async with asyncio.timeout(seconds):
        return await awaitable


@asynccontextmanager
async def opened(store: S) -> AsyncGenerator[S]:
    """The store, open."""
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def unmeasured() -> dict[str, str]:
    """The environment for a process that must not be measured: measuring imports much, and writes files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


@asynccontextmanager
async def moving(clock: ManualClock, step: float) -> AsyncGenerator[None]:
    """Within: the clock moves, by `step` seconds each time that the loop has turned a few times.

    It waits for threads that wait on the clock otherwise, but not for one that something else holds up.
    """

    async def move() -> None:
        while True:
            for _ in range(5):
                await asyncio.sleep(0)
            with suppress(TimeoutError):
                await eventually(lambda: not clock.busy_threads, seconds=1)
            clock.advance(step)

    mover = asyncio.create_task(move())
    try:
        yield
    finally:
        mover.cancel()
        await asyncio.wait([mover])


async def everything(items: AsyncIterable[T], into: list[T] | None = None) -> list[T]:
    """All items; `into` a list where they can be seen as they come."""
    found: list[T] = [] if into is None else into
    async for item in items:
        found.append(item)  # noqa: PERF401  (one at a time, to be seen)
    return found


class Gauge:
    """How many are inside at once, and how many were at most."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0

    def __enter__(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        self.inside -= 1


async def turns(count: int) -> None:
    """Give way `count` times: everything that is ready to run has had its turn as often."""
    for _ in range(count):
        await asyncio.sleep(0)


def in_turns(count: int, do: Callable[[], object]) -> None:
    """Call it once the loop has turned `count` times, whatever is awaited meanwhile."""
    if count:
        asyncio.get_running_loop().call_soon(in_turns, count - 1, do)
    else:
        do()


async def at_rest(*workers: Worker) -> None:
    """Wait until these workers have nothing to commit and nothing that they could claim."""
    for worker in workers:
        await until(lambda worker=worker: is_at_rest(worker), worker.signals.journal.waiting)  # type: ignore[misc]  # of a default mypy infers no type
