"""What the children run that share the limits of a limiter through the store: calls, which note when they begin."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from tests.processes.marks import Marks
from tests.processes.places import store_at
from tests.processes.workload import Job

from durable_batches import EXTRACTION, BatchConfig, BatchOrchestrator, Worker, durable_activity, workflow
from durable_batches.clock import SystemClock
from durable_batches.flow import CentralRateLimiter


async def main(job: Job) -> dict[str, object]:
    """Submit a batch of its own, and see it to its end. With `pace` 0, calls end at once; otherwise never."""
    marks = Marks(Path(job.folder), job.process)
    limiter = CentralRateLimiter(name="provider", shared="provider", **json.loads(job.limits))
    clock = SystemClock()

    @durable_activity(limiter=limiter)
    async def call(number: int) -> float:
        at = clock.boot()
        marks.note("called", number=number)
        if job.pace:
            await asyncio.Event().wait()
        # Recorded: calls of a killed process, which others make again, are in their notes.
        return at

    @workflow(EXTRACTION, name=f"fleet-{job.process}")
    async def fleet(number: int) -> float:
        return await call(number)

    async with BatchOrchestrator(fleet, worker=Worker(store_at(job.store), max_in_flight=job.max_in_flight)) as batches:
        config = BatchConfig(concurrency=job.concurrency)
        batch_id = await batches.submit(range(job.documents), batch_id=job.process, document_id=str, config=config)
        marks.note("submitted")
        waiting = asyncio.create_task(_note_when_waiting(limiter, marks))
        result = await batches.result(batch_id)
        waiting.cancel()
        marks.note("ended")
    return {"state": result.state.tag, "counts": asdict(result.counts)}


async def _note_when_waiting(limiter: CentralRateLimiter, marks: Marks) -> None:
    """Note once that calls wait."""
    while limiter.metrics().waiting == 0:  # noqa: ASYNC110  (a limiter has no signal for it)
        await asyncio.sleep(0.01)
    marks.note("waits")
