"""What records hold for the state machine alone: as it was stored, and as it will be."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.lifecycle.world import LOADER, START, World, identity, succeeded

from durable_batches import BatchConfig, ContinueOnFailure, Counts, FailurePolicy, RetryFailed
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import BatchCore, Definition, decode_core, definition_of, new_batch
from durable_batches.lifecycle.commands import Cancel, Seal
from durable_batches.lifecycle.facts import StageEntered
from durable_batches.lifecycle.progress import RecordedStages, snapshot_of
from durable_batches.lifecycle.records import BatchRecord, WorkerId
from durable_batches.lifecycle.states import BatchId

ME = WorkerId("me")

STORED = (
    rb'{"definition":"{\"stages\":[\"one\",\"two\"],\"resolver\":true,\"config\":{\"concurrency\":2,'
    rb"\"failure_policy\":{\"max_attempts\":3,\"backoff\":1.0,\"then\":{\"max_failures\":null,"
    rb"\"max_failure_ratio\":null,\"tag\":\"continue-on-failure\"},\"tag\":\"retry-failed\"},"
    rb"\"document_timeout\":null,\"deadline\":30.0,\"max_crashes\":3,\"metadata\":{\"a\":\"b\"}}}"
    rb'","at":[1,0,2],"phase":"idle","error":"","reason":"","sealed_by":"loader","cancelled_by":null,'
    rb'"started_at":1900000000000000,"ended_at":null,"last_event_at":1900000000000000}'
)
"""The core of a sealed batch of three documents, two of them in its second stage."""

CONFIG = BatchConfig(
    concurrency=2,
    failure_policy=RetryFailed(backoff=timedelta(seconds=1)),
    deadline=timedelta(seconds=30),
    metadata={"a": "b"},
)


def _record(core: bytes, **changes: Any) -> BatchRecord:
    """The record around `STORED`."""
    world = World()
    record = world.batches[world.batch("batch", 3, stages=2, resolver=True, config=CONFIG)]
    counts = Counts(total=3, pending=1, running=2)
    return replace(record, state="one", counts=counts, core=core, **changes)


def test_a_core_is_written_as_it_always_was() -> None:
    world = World()
    batch_id = world.batch("batch", 3, stages=2, resolver=True, config=CONFIG)
    world.claim(ME)
    world.commit(ME, *[StageEntered(*identity(row), 1) for row in world.held(ME)])
    assert world.batches[batch_id].core == STORED


def test_a_core_that_was_stored_is_read() -> None:
    batch = BatchInProgress(_record(STORED), START)
    assert batch.definition == definition_of(_record(STORED)) == (("one", "two"), True, CONFIG, {}, {})
    assert batch.stage_counts.stored == [1, 0, 2]
    assert (batch.entered(0), batch.entered(1), batch.past(0), batch.past(1)) == (2, 2, 2, 0)
    assert batch.percentage == 33.3333
    assert (batch.phase, batch.core["sealed_by"], batch.core["started_at"]) == ("idle", LOADER, START)
    assert batch.closed() == _record(STORED, free=0)


def test_the_defaults_of_activities_are_stored_where_there_are_any() -> None:
    definition = Definition(("one",), False, CONFIG, {"ask:1": {"model": "0a1b2c3d"}})
    record = new_batch(
        batch_id=BatchId("batch"), workflow="w", version="1", submitter=ME, definition=definition, now=START
    )
    assert definition_of(record) == definition


@pytest.mark.parametrize(
    "policy",
    [
        ContinueOnFailure(max_failure_ratio=0.1, min_failures=5),
        RetryFailed(then=ContinueOnFailure(max_failure_ratio=0.1, min_failures=5)),
    ],
    ids=str,
)
def test_what_an_older_library_does_not_know_is_stored_apart_and_left_to_newer_ones(policy: FailurePolicy) -> None:
    definition = Definition(("one",), False, BatchConfig(failure_policy=policy))
    record = new_batch(
        batch_id=BatchId("batch"), workflow="w", version="1", submitter=ME, definition=definition, now=START
    )
    assert definition_of(record) == definition
    assert record.needs == 2
    stored = json.loads(decode_core(record.core)["definition"])
    assert stored.pop("min_failures") == 5
    assert "min_failures" not in json.dumps(stored)


def test_what_a_later_version_has_added_is_kept() -> None:
    core = json.loads(STORED) | {"added": [1]}
    written = BatchInProgress(_record(json.dumps(core).encode()), START).closed()
    assert json.loads(written.core) == core


def test_every_field_is_stored() -> None:
    required = [name for name in BatchCore.__annotations__ if name in BatchCore.__required_keys__]
    assert list(json.loads(STORED)) == required


def test_each_end_leaves_what_is_asked_for_later() -> None:
    world = World()
    batch_id = world.load("batch", 1)
    assert decode_core(world.batches[batch_id].core)["sealed_by"] is None
    world.command(batch_id, Seal(LOADER, 1))
    world.now += 5
    world.claim(ME)
    world.now += 5
    world.command(batch_id, Cancel("request", "too dear"))
    core = decode_core(world.batches[batch_id].core)
    del core["definition"]  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    assert core == {
        "at": [0, 0, 0, 0],
        "phase": "idle",
        "error": "",
        "reason": "too dear",
        "sealed_by": LOADER,
        "cancelled_by": "request",
        "started_at": START + 5,
        "ended_at": START + 10,
        "last_event_at": START + 10,
        "cancelled_at": [1, 0, 0, 0],
    }


# ---- the times of events ------------------------------------------------------------------------------------------


def test_events_are_not_dated_before_the_last_one() -> None:
    """A batch's next change may be made by another process, whose clock is behind."""
    world = World()
    batch_id = world.batch("batch", 1)
    world.now -= 50_000
    world.claim(ME)
    core = decode_core(world.batches[batch_id].core)
    assert {event.at for event in world.events[batch_id]} == {START}
    assert (core["started_at"], core.get("last_event_at")) == (START, START)
    world.now += 50_001
    world.commit(ME, *succeeded(world.held(ME)))
    assert world.events[batch_id][-1].at == decode_core(world.batches[batch_id].core)["ended_at"] == START + 1


def test_a_clock_that_is_behind_does_not_put_off_a_deadline() -> None:
    world = World()
    batch_id = world.load("batch", 1, config=CONFIG)
    world.now -= 50_000
    world.command(batch_id, Seal(LOADER, 1))
    assert world.batches[batch_id].wake == world.now + 30_000_000


def test_events_of_a_core_without_the_time_of_the_last_one() -> None:
    core = json.loads(STORED)
    del core["last_event_at"]
    batch = BatchInProgress(_record(json.dumps(core).encode()), START - 1)
    batch.cancel("request", "too dear")
    assert {event.at for event in batch.events} == {START - 1}
    assert decode_core(batch.closed().core).get("last_event_at") == START - 1


# ---- counts that contradict each other ---------------------------------------------------------------------------

BROKEN = [
    pytest.param({"counts": Counts(total=4, pending=1, running=2)}, STORED, "do not sum to their total", id="total"),
    pytest.param({}, STORED.replace(b"[1,0,2]", b"[1,0,1]"), "not its unfinished documents", id="stages"),
    pytest.param(
        {"counts": Counts(total=3, pending=1, running=1, failed=1)}, STORED, "not its unfinished documents", id="ended"
    ),
]


@pytest.mark.parametrize(("changes", "core", "message"), BROKEN)
def test_no_plan_goes_on_from_counts_that_contradict_each_other(
    changes: dict[str, Any], core: bytes, message: str
) -> None:
    record = replace(_record(core), **changes)
    with pytest.raises(AssertionError, match=rf"batch 'batch' .*{message}"):
        BatchInProgress(record, START)


@pytest.mark.parametrize(("changes", "core", "message"), BROKEN)
def test_readers_see_them_all_the_same(changes: dict[str, Any], core: bytes, message: str) -> None:
    record = replace(_record(core), **changes)
    snapshot = snapshot_of(record, RecordedStages(), START)
    assert snapshot.counts == record.counts
    assert message in (BatchInProgress(record, START, check=False).contradiction or "")


@pytest.mark.parametrize("name", ["total", "pending", "running", "waiting", "succeeded", "failed", "cancelled"])
def test_counts_that_contradict_each_other_are_not_written(name: str) -> None:
    batch = BatchInProgress(_record(STORED), START)
    setattr(batch, name, getattr(batch, name) + 1)
    with pytest.raises(AssertionError, match="do not sum to their total"):
        batch.closed()


def test_stages_that_do_not_hold_the_unfinished_are_not_written() -> None:
    batch = BatchInProgress(_record(STORED), START)
    batch.stage_counts.leave(0 + 1)
    with pytest.raises(AssertionError, match="not its unfinished documents"):
        batch.closed()


def test_a_resolvers_turn_is_part_of_the_core() -> None:
    world = World()
    batch_id = world.batch("batch", 1, resolver=True)
    phases = [decode_core(world.batches[batch_id].core)["phase"]]
    for _ in range(2):
        world.claim(ME)
        phases.append(decode_core(world.batches[BatchId(batch_id)].core)["phase"])
        world.commit(ME, *succeeded(world.held(ME)))
        phases.append(decode_core(world.batches[batch_id].core)["phase"])
    assert phases == ["idle", "idle", "due", "running", "idle"]
