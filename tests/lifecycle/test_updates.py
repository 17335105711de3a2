"""Changes of a batch's configuration while it runs: in force with the commit that records them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError
from pydantic_core import to_json
from tests.lifecycle.world import ME, OTHER, SECOND, START, World, identity

from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.batch_core import definition_of, quota_pause_of
from durable_batches.lifecycle.budget import Budget
from durable_batches.lifecycle.commands import Cancel, UpdateBatch
from durable_batches.lifecycle.config import BatchConfig, ConfigChanges, changes_of
from durable_batches.lifecycle.events import BatchUpdated, decode_event
from durable_batches.lifecycle.facts import ExecutionFailed, ExecutionReleased, ExecutionSucceeded
from durable_batches.lifecycle.policies import AbortAll, ContinueOnFailure, RetryFailed
from durable_batches.lifecycle.states import BatchId

BATCH = BatchId("batch")

each_level = pytest.mark.parametrize("level", [1, 2])


def a_world(documents: int = 4, *, level: int = 2, **options: object) -> World:
    world = World(level=level)
    world.batch(BATCH, documents, stages=2, config=BatchConfig.model_validate({"concurrency": 2, **options}))
    return world


def update(world: World, changes: ConfigChanges, request_id: str = "request") -> bool:
    applied = world.command(BATCH, UpdateBatch(request_id, to_json(changes_of(changes)).decode())).applied
    world.check()
    return applied


def config_of(world: World) -> BatchConfig:
    return definition_of(world.batches[BATCH]).config


@each_level
def test_a_lower_concurrency_stops_claims_and_a_higher_one_begins_them(level: int) -> None:
    world = a_world(level=level)
    first, second = world.claim(ME).executions
    assert update(world, {"concurrency": 1})
    world.commit(ME, ExecutionSucceeded(*identity(first), b""))
    world.check()
    assert not world.claim(OTHER).executions, "one runs"
    world.commit(ME, ExecutionSucceeded(*identity(second), b""))
    assert len(world.claim(OTHER).executions) == 1
    assert update(world, {"concurrency": 8}, "another")
    assert len(world.claim(ME).executions) == 1
    world.check()
    assert config_of(world).concurrency == 8


@each_level
def test_a_stricter_policy_judges_the_failures_that_are_there(level: int) -> None:
    world = a_world(level=level)
    first, _ = world.claim(ME).executions
    world.commit(ME, ExecutionFailed(*identity(first), b"", "broke"))
    assert update(world, {"failure_policy": ContinueOnFailure(max_failures=1)})
    assert not world.batches[BATCH].ended
    assert update(world, {"failure_policy": AbortAll()}, "another")
    assert world.batches[BATCH].state == "failed"
    assert [event.tag for event in world.events[BATCH]][-3:] == ["batch_updated", "state_changed", "batch_failed"]


@each_level
def test_a_deadline_counts_from_the_submission(level: int) -> None:
    world = a_world(level=level)
    world.now += 60 * SECOND
    assert update(world, {"deadline": timedelta(seconds=100)})
    assert world.batches[BATCH].wake == START + 100 * SECOND
    assert update(world, {"deadline": timedelta(seconds=200)}, "two")
    assert world.batches[BATCH].wake == START + 200 * SECOND
    assert update(world, {"deadline": None}, "three")
    assert world.batches[BATCH].wake is None
    assert update(world, {"deadline": timedelta(seconds=60)}, "four")
    assert world.batches[BATCH].state == "failed", "it has passed"


def test_what_is_changed_is_in_an_event_and_nothing_else_is() -> None:
    world = a_world(metadata={"a": "b"}, max_crashes=7, document_timeout=timedelta(seconds=5))
    assert update(world, {"failure_policy": RetryFailed(max_attempts=2), "document_timeout": timedelta(seconds=2.5)})
    event = decode_event(world.events[BATCH][-1])
    assert isinstance(event, BatchUpdated)
    assert event.changes.keys() == {"failure_policy", "document_timeout"}
    assert event.changes["document_timeout"] == 2.5
    expected = BatchConfig(
        concurrency=2,
        metadata={"a": "b"},
        max_crashes=7,
        failure_policy=RetryFailed(max_attempts=2),
        document_timeout=timedelta(seconds=2.5),
    )
    assert config_of(world) == expected
    before = world.copy()
    assert update(world, {"document_timeout": timedelta(seconds=2.5)}, "again")
    assert world == before, "it has these values"


def test_a_policy_that_0_2_0_does_not_know_waits_until_nothing_runs() -> None:
    """And makes the batch need the library that knows it, also where it is paused for a quota meanwhile."""
    policy = ContinueOnFailure(max_failure_ratio=0.5, min_failures=3)
    world = a_world()
    rows = world.claim(ME).executions
    world.check()
    before = world.copy()
    assert not update(world, {"failure_policy": policy})
    assert not update(world, {"failure_policy": policy, "budget": Budget(tokens=1)}, "beside a budget")
    assert world == before
    world.commit(ME, *[ExecutionReleased(*identity(row), "quota", None, "no credit", "ask") for row in rows])
    writes = world.command(BATCH, UpdateBatch("two", to_json(changes_of({"failure_policy": policy})).decode()))
    assert writes.applied
    pause = quota_pause_of(world.batches[BATCH])
    assert pause is not None
    assert (world.batches[BATCH].needs, pause["needs"]) == (2, 2)
    assert config_of(world).failure_policy == policy


def test_an_ended_batch_is_not_changed() -> None:
    world = a_world()
    world.command(BATCH, Cancel("cancel", ""))
    world.check()
    before = world.copy()
    assert not update(world, {"concurrency": 1})
    assert world == before


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, "there is nothing to change; the options that can be changed are concurrency, "),
        ({"metadata": {}}, "'metadata' cannot be changed"),
        ({"priority": 1}, "'priority' cannot be changed"),
    ],
)
def test_what_cannot_be_changed(changes: ConfigChanges, error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        changes_of(changes)


@pytest.mark.parametrize("changes", [{"concurrency": 0}, {"concurrency": True}, {"deadline": 5}, {"deadline": "soon"}])
def test_bad_values_are_refused_as_a_configuration_refuses_them(changes: ConfigChanges) -> None:
    with pytest.raises(ValidationError):
        changes_of(changes)
