"""How often the way of a call leaves a file and comes back to it: what one reads to follow it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.journeys import Call, tracer, way_of
from tests.support import STAGES, Reading

from durable_batches import BatchOrchestrator, MemoryStore, durable_activity, workflow


@durable_activity(stage=Reading)
async def read(text: str) -> str:
    return text


async def calls_to_the_journal() -> Sequence[Call]:
    """From an activity's call until its result is handed in. Nothing is waited for in between."""

    @workflow(STAGES)
    async def traced(text: str) -> str:
        tracer.begin()
        found = await read(text)
        tracer.end()
        return found

    tracer.install()
    try:
        async with BatchOrchestrator(traced, store=MemoryStore()) as batches:
            result = await batches.run(["a"])
    finally:
        tracer.uninstall()
    result.raise_for_failures()
    calls = tracer.end()
    handed_in = [call.function for call in calls].index("Journal.record")
    return calls[: handed_in + 1]


async def test_a_call_comes_to_the_journal_with_few_returns() -> None:
    way = way_of(await calls_to_the_journal())
    assert way.returns <= 8
    assert way.calls <= 24
