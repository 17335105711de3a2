"""Commits of many facts: each fact is decided as if it came alone, after those before it."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lifecycle.world import Identity, World, facts_about, identity, succeeded
from tests.properties import modest

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.facts import ActivityCompleted, Fact
from durable_batches.lifecycle.planning import Loaded, plan_facts
from durable_batches.lifecycle.policies import AbortAll
from durable_batches.lifecycle.records import BatchRecord, CheckpointWrite, Micros, Refusal, WorkerId
from durable_batches.lifecycle.states import BatchId

ME: Final = WorkerId("me")
OTHER: Final = WorkerId("other")
STAGES: Final = 3


def _world() -> World:
    """A batch that goes on, one that its first failure ends, and one that has ended; I run documents of each."""
    world = World()
    for batch_id, mine, config in (
        ("going", 2, BatchConfig()),
        ("fragile", 1, BatchConfig(failure_policy=AbortAll())),
        ("ended", 1, BatchConfig()),
    ):
        world.now += 1
        world.batch(batch_id, 3, stages=STAGES, config=config)
        assert [row.batch_id for row in world.claim(ME, mine).executions] == [batch_id] * mine
    world.command(BatchId("ended"), Cancel("request", ""))
    world.check()
    return world


WORLD: Final = _world()
TARGETS: Final = [identity(row) for row in WORLD.executions.values()]


def _stale(target: Identity, run: int, attempt: int) -> Identity:
    return target[0], target[1] + run, target[2], target[3] + attempt


identities = (
    st.sampled_from(TARGETS)
    | st.builds(_stale, st.sampled_from(TARGETS), st.integers(-1, 1), st.integers(-1, 1))
    | st.just((BatchId("going"), 1, 99, 1))
    | st.just((BatchId("unknown"), 1, 0, 1))
)


def _completed(target: Identity, key: str, payload: bytes, mark: int) -> Fact:
    return ActivityCompleted(*target, key, payload, mark)


completions = st.builds(
    _completed, identities, st.sampled_from(["a", "b"]), st.binary(max_size=2), st.integers(-1, STAGES)
)
any_fact = identities.flatmap(lambda target: st.sampled_from(facts_about(target, stages=STAGES)))
commits = st.lists(completions | any_fact, min_size=1, max_size=8)


def _verdict(world: World, worker: WorkerId, fact: Fact) -> Refusal | None:
    """The rules in words (planning/facts.py), once more."""
    execution = world.executions.get((fact.batch_id, fact.position))
    if execution is None:
        return "unknown"
    if (execution.owner, execution.run, execution.attempt) != (worker, fact.run, fact.attempt):
        return "superseded"
    record = world.batches[fact.batch_id]
    return "ended" if record.ended or record.run != fact.run else None


@given(st.sampled_from([ME, ME, ME, OTHER]), commits)
@modest(300)
def test_each_fact_is_decided_as_if_it_came_alone(worker: WorkerId, facts: list[Fact]) -> None:
    together, apart = WORLD.copy(), WORLD.copy()
    writes = together.commit(worker, *facts)
    checkpoints: list[CheckpointWrite] = []
    for index, fact in enumerate(facts):
        verdict = _verdict(apart, worker, fact)
        before = apart.executions.get((fact.batch_id, fact.position))
        alone = apart.commit(worker, fact)
        assert alone.refused.get(0) == writes.refused.get(index) == verdict
        checkpoints += alone.checkpoints
        if isinstance(fact, ActivityCompleted):
            kept = [CheckpointWrite(fact.batch_id, fact.position, fact.key, "succeeded", fact.payload, fact.stage)]
            assert alone.checkpoints == (kept if verdict in (None, "ended") else [])
            if before is not None:
                forward = verdict is None and before.mark < fact.mark < STAGES
                after = apart.executions[(fact.batch_id, fact.position)]
                assert after.mark == (fact.mark if forward else before.mark)
                assert [event.tag for event in alone.events if event.tag == "stage_progress"] == (
                    ["stage_progress"] if forward else []
                )
    together.check()
    assert writes.checkpoints == checkpoints
    assert together.batches == apart.batches
    assert together.executions == apart.executions
    assert together.events == apart.events
    assert (together.checkpoints, together.outcomes) == (apart.checkpoints, apart.outcomes)


def test_a_batch_of_which_activities_alone_are_reported_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """What most commits hold takes no look into the batch's own state."""
    opened: list[BatchRecord] = []

    def opening(record: BatchRecord, now: Micros, level: int) -> BatchInProgress:
        opened.append(record)
        return BatchInProgress(record, now, level)

    monkeypatch.setattr("durable_batches.lifecycle.planning.unit_of_work.BatchInProgress", opening)
    target = TARGETS[0]
    loaded = Loaded(WORLD.now, WORLD.batches, WORLD.executions)
    completed = ActivityCompleted(*target, "key", b"result")
    assert plan_facts(loaded, ME, [completed, completed]).checkpoints
    assert not opened
    assert plan_facts(
        loaded, ME, [completed, completed._replace(mark=1), *succeeded([WORLD.executions[(target[0], target[2])]])]
    ).events
    assert opened == [WORLD.batches[target[0]]]


def test_the_worlds_facts_are_of_every_verdict() -> None:
    verdicts = {_verdict(WORLD, ME, fact) for target in TARGETS for fact in facts_about(target)}
    assert verdicts == {None, "superseded", "ended"}
