"""What the children run that write a long book, line by line, and then read it through, line by line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import cast

from tests.processes.marks import MarkedEffects, MarkedStore, Marks
from tests.processes.places import store_at
from tests.processes.workload import Job

from durable_batches import EXTRACTION, BatchConfig, BatchOrchestrator, Results, Worker, durable_activity, workflow
from durable_batches.stores import Store
from durable_batches.testing.virtual.effects import EffectsLog

LINES = 60


class _Here:
    effects: EffectsLog


here = _Here()


@durable_activity
async def line(number: int) -> int:
    with here.effects.activity("line"):
        return number


async def read_through(_: Results[int]) -> int:
    return sum([await line(number) for number in range(LINES)])


@workflow(EXTRACTION, name="book", resolver=read_through)
async def book(lines: int) -> int:
    return sum([await line(number) for number in range(lines)])


async def main(job: Job) -> dict[str, object]:
    """Write one book, or go on with it, to its end."""
    marks = Marks(Path(job.folder), job.process, job.stops)
    here.effects = MarkedEffects(Path(job.folder) / "effects.log", job.process, marks)
    config = BatchConfig(max_crashes=job.max_crashes)
    async with BatchOrchestrator(
        book, worker=Worker(cast("Store", MarkedStore(store_at(job.store), marks))), config=config
    ) as batches:
        await batches.submit([LINES], batch_id=job.batch_id, document_id=lambda _: "book")
        marks.note("submitted")
        result = await batches.result(job.batch_id)
    return {"state": result.state.tag, "counts": asdict(result.counts), "resolution": result.resolution}
