"""Everything that two documents and their workers can do, in stores of level 2: no batch sleeps past what is due."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import pytest
from tests.lifecycle.world import World, identity

from durable_batches.lifecycle.batch_core import decode_core, definition_of
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.facts import ExecutionFailed, ExecutionReleased, ExecutionSucceeded, Fact
from durable_batches.lifecycle.policies import RetryFailed
from durable_batches.lifecycle.records import Micros, WorkerId
from durable_batches.lifecycle.states import BatchId

ME = WorkerId("me")
SECOND = 1_000_000
BATCH = BatchId("batch")
MOST_STATES = 20_000


def steps(world: World) -> Iterator[Callable[[World], object]]:
    """What can happen next."""
    yield lambda other: other.claim(ME, 1)
    yield lambda other: other.claim(ME, 2)
    for row in world.held(ME):
        target = identity(row)
        facts: list[Fact] = [
            ExecutionSucceeded(*target, b""),
            ExecutionFailed(*target, b"", "no", retry_in=2 * SECOND if row.attempt == 1 else None),
            ExecutionReleased(*target),
        ]
        for fact in facts:
            yield partial(_report, fact)
    if world.held(ME) and not any(row.crashes for row in world.executions.values()):
        yield lambda other: other.release([ME], "crash")
    yield lambda other: setattr(other, "now", other.now + SECOND)


def _report(fact: Fact, world: World) -> object:
    return world.commit(ME, fact)


def state(world: World) -> object:
    """What two worlds have to have in common to go on alike: times count from now."""

    def since(moment: Micros | None) -> Micros | None:
        return max(moment - world.now, -4 * SECOND) if moment else moment

    record = world.batches[BATCH]
    return (
        record.state,
        record.free,
        since(record.next_due),
        since(decode_core(record.core).get("earliest_due", 0)),
        [(row.status, row.failures, row.crashes, row.alone, since(row.due)) for row in world.executions.values()],
    )


@pytest.mark.parametrize(
    ("concurrency", "resolver"),
    [(1, False), (2, True), *(pytest.param(*other, marks=pytest.mark.soak) for other in ((1, True), (2, False)))],
)
def test_no_batch_sleeps_past_what_is_due(concurrency: int, resolver: bool) -> None:
    world = World(level=2)
    policy = RetryFailed(max_attempts=3, backoff=timedelta(seconds=2))
    config = BatchConfig(concurrency=concurrency, failure_policy=policy, max_crashes=3)
    world.batch(BATCH, 2, stages=1, resolver=resolver, config=config)
    seen = {repr(state(world))}
    left = deque([world])
    slept = 0
    while left:
        world = left.popleft()
        for step in steps(world):
            after = world.copy()
            step(after)
            key = repr(state(after))
            if key in seen:
                continue
            seen.add(key)
            after.check()
            assert is_awake_for_something(after)
            slept += after.batches[BATCH].next_due is not None
            has_its_time(after)
            if not after.batches[BATCH].ended:
                left.append(after)
        assert len(seen) < MOST_STATES
    assert slept > 20


def is_awake_for_something(world: World) -> bool:
    """Whether a batch that has open slots has something that is due."""
    return world.batches[BATCH].free == 0 or any(
        row.due is not None and row.due <= world.now for row in world.executions.values()
    )


def has_its_time(world: World) -> None:
    """Once the time of the first document has come, a worker that holds nothing gets something, if there is a slot."""
    dues = [row.due for row in world.executions.values() if row.due is not None]
    if not dues or world.batches[BATCH].ended:
        return
    later = world.copy()
    later.now = max(later.now, min(dues))
    record = later.batches[BATCH]
    if record.counts.running < definition_of(record).config.concurrency:
        assert later.claim(WorkerId("another")).executions, "what is due is not found"
