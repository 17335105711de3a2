"""The floor under the library: the raw driver, fed by as many asyncio tasks, with group commit."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable

from benchmarks.support.workload import ACTIVITIES, Finding, finding

Row = tuple[int, int, bytes]
"""A document's number, the step, and its result as JSON."""


async def floor(commit: Callable[[list[Row]], Awaitable[None]], documents: int, in_flight: int) -> float:
    """Seconds that the same workload takes when all that is done with a result is to commit it."""
    pending: list[tuple[Row, asyncio.Future[None]]] = []
    wake = asyncio.Event()
    loop = asyncio.get_running_loop()
    left = documents

    async def journal() -> None:
        while left:
            await wake.wait()
            await asyncio.sleep(0)
            wake.clear()
            taken, pending[:] = pending[:], []
            if taken:
                await commit([row for row, _ in taken])
                for _, future in taken:
                    future.set_result(None)

    async def activity(document: int, step: int) -> Finding:
        result = finding(document, step)
        payload = json.dumps(result.model_dump()).encode()
        future: asyncio.Future[None] = loop.create_future()
        pending.append(((document, step, payload), future))
        wake.set()
        await future
        return result

    async def feed(numbers: Iterable[int]) -> None:
        nonlocal left
        for document in numbers:
            for step in range(ACTIVITIES):
                await activity(document, step)
            left -= 1
        wake.set()

    numbers = iter(range(documents))
    began = time.perf_counter()
    await asyncio.gather(journal(), *(feed(numbers) for _ in range(in_flight)))
    return time.perf_counter() - began
