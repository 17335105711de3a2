"""What the children run of which each holds one of the last two documents of a batch.

Each process has room for one document at a time.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import cast

from tests.processes.marks import MarkedEffects, MarkedStore, Marks, observe_drivers
from tests.processes.places import store_at
from tests.processes.workload import Job

from durable_batches import EXTRACTION, BatchOrchestrator, Results, Worker, durable_activity, workflow
from durable_batches.stores import Store
from durable_batches.testing.virtual.effects import EffectsLog


class _Here:
    effects: EffectsLog
    meeting: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None


here = _Here()


@durable_activity
async def meet(number: int) -> int:
    with here.effects.activity("meet"):
        if here.meeting is not None:
            reader, writer = here.meeting
            writer.write(f"{number}\n".encode())
            await reader.readline()
        return number


@durable_activity
async def add_up(numbers: list[int]) -> int:
    with here.effects.activity("add_up"):
        return sum(numbers)


async def total(results: Results[int]) -> int:
    return await add_up([result.value async for result in results])


@workflow(EXTRACTION, name="pair", resolver=total)
async def pair(number: int) -> int:
    return await meet(number)


async def main(job: Job) -> None:
    """Work until SIGTERM."""
    marks = Marks(Path(job.folder), job.process, job.stops)
    if job.stops:
        observe_drivers(marks)
    here.effects = MarkedEffects(Path(job.folder) / "effects.log", job.process, marks)
    if job.meeting:
        here.meeting = await asyncio.open_unix_connection(job.meeting)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    worker = Worker(cast("Store", MarkedStore(store_at(job.store), marks)), max_in_flight=1)
    async with BatchOrchestrator(pair, worker=worker):
        marks.note("entered")
        await told.wait()
    if here.meeting is not None:
        here.meeting[1].close()
