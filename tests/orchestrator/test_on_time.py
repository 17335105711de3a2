"""What falls due by time runs in the next slot that is free, however many documents were never started."""

from __future__ import annotations

from datetime import timedelta

from tests.conftest import StoreMaker
from tests.support import STAGES

from durable_batches import BatchConfig, RetryFailed, workflow
from durable_batches.testing import ManualClock, environment

DOCUMENTS = 4_000
CONCURRENCY = 4
RUN_SECONDS = 0.005
BACKOFF_SECONDS = 0.02


async def test_a_retry_starts_in_the_next_slot_that_is_free(open_store: StoreMaker) -> None:
    clock = ManualClock()
    starts: list[tuple[int, float]] = []
    failed_at: list[float] = []

    @workflow(STAGES)
    async def run(document: int) -> int:
        starts.append((document, clock.boot()))
        await clock.sleep(RUN_SECONDS)
        if document == 0 and not failed_at:
            failed_at.append(clock.boot())
            raise ValueError
        return document

    policy = RetryFailed(backoff=timedelta(seconds=BACKOFF_SECONDS))
    config = BatchConfig(concurrency=CONCURRENCY, failure_policy=policy)
    async with environment(run, store=open_store, clock=clock, config=config) as env:
        batch_id = await env.batches.submit(range(DOCUMENTS))
        await env.advance(timedelta(seconds=10 * BACKOFF_SECONDS))
        await env.batches.cancel(batch_id)
    due = failed_at[0] + BACKOFF_SECONDS
    again = [number for number, (document, _) in enumerate(starts) if document == 0][1]
    assert starts[again][1] - due < 2 * RUN_SECONDS
    overtaken_by = [document for document, started in starts[:again] if started > due]
    assert len(overtaken_by) < CONCURRENCY, "each slot that was free after that time was another document's"
