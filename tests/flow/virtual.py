"""Virtual time for code that asks limiters outside of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from tests.support import turns

from durable_batches.testing import ManualClock

__all__ = ["passing"]

T = TypeVar("T")


async def passing(clock: ManualClock, work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Await this while the clock goes from one timer to the next; it must not wait for anything else."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await turns(6)
        if not task.done():
            timer = clock.next_timer
            assert timer is not None, "it waits, and for no time"
            clock.advance(timer.total_seconds())
    return await task
