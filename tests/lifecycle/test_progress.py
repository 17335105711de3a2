"""Snapshots and states of a batch's record."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Literal, assert_type

import pytest
from tests.lifecycle.world import START, World, identity, succeeded

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchId,
    BatchState,
    BatchStateMachine,
    Cancelled,
    Completed,
    Counts,
    Failed,
    Pending,
    Resolving,
    RetryFailed,
    Stage,
    StageCount,
)
from durable_batches.lifecycle.batch_core import decode_core, encode_core
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.facts import ExecutionFailed, ExecutionReleased, ExecutionSucceeded, StageEntered
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import BatchSnapshot, snapshot_of, state_of
from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, WorkerId

ME = WorkerId("me")
SECOND = 1_000_000


class One(Stage):
    tag: Literal["one"] = "one"


class Two(Stage):
    tag: Literal["two"] = "two"


class Three(Stage):
    tag: Literal["three"] = "three"


MACHINE = BatchStateMachine(One, Two, Three)


def snapshot(world: World, batch_id: BatchId) -> BatchSnapshot[One | Two | Three]:
    return snapshot_of(world.batches[batch_id], MACHINE, world.now)


def state(world: World, batch_id: BatchId) -> BatchState[One | Two | Three]:
    found = state_of(world.batches[batch_id], MACHINE)
    assert found == snapshot(world, batch_id).state
    return found


# ---- states --------------------------------------------------------------------------------------------------------


def test_the_states_of_a_life() -> None:
    world = World()
    batch_id = world.batch("batch", 2, resolver=True)
    assert state(world, batch_id) == Pending(total=2)
    world.claim(ME)
    one, two = world.held(ME)
    assert state(world, batch_id) == One(done=0, total=2)
    world.commit(ME, StageEntered(*identity(one), 2), StageEntered(*identity(two), 1))
    assert state(world, batch_id) == Two(done=1, total=2)
    world.commit(ME, ExecutionFailed(*identity(two), b"", "no"))
    assert state(world, batch_id) == Three(done=1, total=2)
    world.commit(ME, ExecutionSucceeded(*identity(one), b""))
    counts = Counts(total=2, succeeded=1, failed=1)
    assert state(world, batch_id) == Resolving(counts=counts)
    world.claim(ME)
    world.commit(ME, *succeeded([world.executions[(batch_id, RESOLVER_POSITION)]]))
    assert state(world, batch_id) == Completed(counts=counts)


def test_the_other_ends() -> None:
    world = World()
    cancelled = world.batch("cancelled", 2)
    world.command(cancelled, Cancel("request", "too dear"))
    assert state(world, cancelled) == Cancelled(counts=Counts(total=2, cancelled=2), reason="too dear")

    failed = world.batch("failed", 1)
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    assert state(world, failed) == Failed(counts=Counts(total=1, failed=1), error="all documents failed")


def test_a_failed_resolver_is_named() -> None:
    world = World()
    batch_id = world.batch("batch", 0, resolver=True)
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no link"))
    found = state(world, batch_id)
    assert isinstance(found, Failed)
    assert found.error == "the resolver failed: no link"


def test_the_type_of_a_state_is_the_machines() -> None:
    world = World()
    record = world.batches[world.batch("batch", 1)]
    assert_type(state_of(record, MACHINE), BatchState[One | Two | Three])


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (BatchStateMachine(One, Two), Two(done=1, total=2)),
        (BatchStateMachine(One), One(done=2, total=2)),
        (BatchStateMachine(Three, One, Two), Three(done=0, total=2)),
        (EXTRACTION, Pending(total=2)),
    ],
)
def test_a_stage_that_the_code_has_lost(machine: BatchStateMachine[Stage], expected: BatchState[Stage]) -> None:
    """An old batch under new code is shown in the nearest stage before its own that the code still has."""
    world = World()
    batch_id = world.batch("batch", 2)
    world.claim(ME)
    one, two = world.held(ME)
    world.commit(ME, StageEntered(*identity(one), 2), StageEntered(*identity(two), 2))
    if machine.tags[0] == "one":
        # `done` is counted by the batch's own stages, so that it is right whatever the code has by now.
        expected = expected if machine.tags == ("one",) else Two(done=2, total=2)
    assert state_of(world.batches[batch_id], machine) == expected


def test_a_stage_whose_predecessors_the_code_has_lost_is_pending() -> None:
    world = World()
    batch_id = world.batch("batch", 2)
    world.claim(ME)
    assert state_of(world.batches[batch_id], MACHINE) == One(done=0, total=2)
    assert state_of(world.batches[batch_id], BatchStateMachine(Two, Three)) == Pending(total=2)


# ---- snapshots -----------------------------------------------------------------------------------------------------


def test_a_snapshot_counts_every_stage() -> None:
    world = World()
    config = BatchConfig(metadata={"customer": "7"})
    batch_id = world.batch("batch", 5, config=config)
    world.claim(ME)
    one, two, three, _ = world.held(ME)
    world.commit(ME, StageEntered(*identity(one), 2), StageEntered(*identity(two), 1), *succeeded([three]))
    found = snapshot(world, batch_id)
    assert list(found.stages) == [
        # A document that runs and has named no stage yet has entered none.
        StageCount(stage="one", current=3, done=3, total=5),
        StageCount(stage="two", current=3, done=2, total=5),
        StageCount(stage="three", current=2, done=1, total=5),
    ]
    assert found.percentage == 40.0  # (2 + 1 + 3) of 15
    assert found.counts == Counts(total=5, pending=1, running=3, succeeded=1)
    assert (found.batch_id, found.paused, found.run) == ("batch", False, 1)
    assert found.seq == len(world.events[batch_id])
    assert found.created_at == from_micros(START)
    assert found.metadata == {"customer": "7"}


def test_a_run_that_ended_early_stays_where_it_was() -> None:
    world = World()
    batch_id = world.batch("batch", 4, config=BatchConfig(concurrency=3))
    world.claim(ME)
    one, two, three = world.held(ME)
    world.commit(ME, StageEntered(*identity(one), 2), StageEntered(*identity(two), 1), *succeeded([three]))
    before = snapshot(world, batch_id)
    world.command(batch_id, Cancel("request", ""))
    # What runs yet is released as cancelled, and changes nothing.
    world.commit(ME, ExecutionReleased(*identity(one)))
    found = snapshot(world, batch_id)
    assert found.counts == Counts(total=4, succeeded=1, cancelled=3)
    assert found.percentage == before.percentage == 50.0
    assert list(found.stages) == list(before.stages)


def test_a_batch_that_failed_or_was_cancelled_before_it_began_has_passed_nothing() -> None:
    world = World()
    batch_id = world.batch("batch", 2)
    world.command(batch_id, Cancel("request", ""))
    assert snapshot(world, batch_id).percentage == 0.0


def test_no_eta_is_told_where_nothing_can_be_said() -> None:
    world = World()
    policy = RetryFailed(backoff=timedelta(hours=1))
    batch_id = world.batch("batch", 3, config=BatchConfig(failure_policy=policy))
    world.claim(ME)
    one, two, three = world.held(ME)
    world.now += 2 * SECOND
    world.commit(ME, *succeeded([one]), ExecutionFailed(*identity(two), b"", "no"))
    assert snapshot(world, batch_id).eta is not None
    world.commit(ME, ExecutionFailed(*identity(three), b"", "no"))
    assert snapshot(world, batch_id).eta is None, "the rest waits for an hour"
    world.now += 3600 * SECOND
    (two, three) = world.claim(ME).executions
    assert snapshot(world, batch_id).eta is not None
    world.commit(ME, ExecutionReleased(*identity(two), "quota", None, "no credit", "ask"))
    assert snapshot(world, batch_id).documents_per_second is not None
    assert snapshot(world, batch_id).eta is None, "the batch is paused"


def test_an_empty_batch_is_whole() -> None:
    world = World()
    found = snapshot(world, world.batch("batch", 0))
    assert (found.percentage, found.documents_per_second, found.eta) == (100.0, None, None)


def test_rate_and_eta() -> None:
    world = World()
    batch_id = world.batch("batch", 4)
    assert (snapshot(world, batch_id).documents_per_second, snapshot(world, batch_id).eta) == (None, None)
    world.now += 100 * SECOND  # waiting for a worker is no work
    world.claim(ME)
    assert snapshot(world, batch_id).documents_per_second is None
    world.now += 2 * SECOND
    one, two, *rest = world.held(ME)
    world.commit(ME, *succeeded([one]))
    assert snapshot(world, batch_id).documents_per_second == 0.5
    assert snapshot(world, batch_id).eta == from_micros(world.now) + timedelta(seconds=6)
    world.now += 2 * SECOND
    world.commit(ME, *succeeded([two, *rest]))
    world.now += 3600 * SECOND
    assert snapshot(world, batch_id).documents_per_second == 1.0, "time after the end does not count"
    assert snapshot(world, batch_id).eta is None


def test_a_failed_document_is_done_too() -> None:
    world = World()
    batch_id = world.batch("batch", 4)
    world.claim(ME)
    one, two, three, _ = world.held(ME)
    world.now += 2 * SECOND
    world.commit(ME, *succeeded([one, two]), ExecutionFailed(*identity(three), b"", "no"))
    assert snapshot(world, batch_id).documents_per_second == 1.5


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    world = World()
    batch_id = world.batch("batch", 2)
    world.claim(ME)
    world.commit(ME, *succeeded(world.held(ME)[:1]))
    record = world.batches[batch_id]
    found = snapshot_of(record, MACHINE, world.now - 3600 * SECOND)
    assert found.documents_per_second == SECOND, "the least time that there is has passed"


def test_an_eta_beyond_the_calendar_is_none() -> None:
    """One document of a million in ten days, and no date is left for the last."""
    world = World()
    batch_id = world.batch("batch", 2)
    world.claim(ME)
    world.commit(ME, *succeeded(world.held(ME)[:1]))
    record = _with_more_pending(world.batches[batch_id], 1_000_000)
    found = snapshot_of(record, MACHINE, world.now + 10 * 86_400 * SECOND)
    assert found.documents_per_second is not None
    assert found.eta is None


def _with_more_pending(record: BatchRecord, more: int) -> BatchRecord:
    counts = replace(record.counts, total=record.counts.total + more, pending=record.counts.pending + more)
    core = decode_core(record.core)
    core["at"][0] += more
    return replace(record, counts=counts, core=encode_core(core))
