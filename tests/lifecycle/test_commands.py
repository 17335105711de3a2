"""Commands are answered by their requests' ids, and leave alone what is owned; claims name the batches they want."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.lifecycle.world import CAPACITY, LOADER, OTHER, START, WORKFLOW, World, identity

from durable_batches import BatchId
from durable_batches.lifecycle.commands import Cancel, Command, Discard, Seal
from durable_batches.lifecycle.facts import ActivityCompleted, ActivityFailed, ExecutionSucceeded
from durable_batches.lifecycle.planning import (
    REQUESTS_ARE_KEPT,
    Candidates,
    Loaded,
    Needs,
    Writes,
    needs_of_command,
    plan_claims,
    plan_command,
)
from durable_batches.lifecycle.records import GENERATION, CheckpointWrite, ClaimRequest, RequestRecord, WorkerId

ME = WorkerId("me")


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "needs"),
    [
        (Seal(LOADER, 2), Needs()),
        (Discard(LOADER), Needs()),
        (Cancel("one", ""), Needs(requests=["one"])),
    ],
)
def test_a_command_names_what_it_has_to_look_at(command: Command, needs: Needs) -> None:
    assert needs_of_command(command) == needs


def test_requests_are_kept_for_a_week() -> None:
    assert REQUESTS_ARE_KEPT == 7 * 24 * 3600 * 1_000_000


def test_what_a_command_came_to_is_written_with_its_request() -> None:
    world = World()
    batch_id = world.batch("batch", 2)
    done = world.command(batch_id, Cancel("one", "why"))
    (row,) = done.requests
    assert row == RequestRecord(batch_id, "one", START, row.answer)
    assert json.loads(row.answer) == {"applied": True}
    refused = world.command(batch_id, Cancel("two", "why"))
    (row,) = refused.requests
    assert (row.request_id, json.loads(row.answer)) == ("two", {"applied": False})
    assert (done.applied, refused.applied) == (True, False)
    assert not refused.batches


@pytest.mark.parametrize("applied", [True, False])
def test_a_request_that_was_answered_is_answered_so_again(applied: bool) -> None:
    """Whatever has become of the batch, and without a change to it."""
    world = World()
    batch_id = world.batch("batch", 2)
    loaded = Loaded(START, {batch_id: world.batches[batch_id]}, {}, {"one": json.dumps({"applied": applied})})
    writes = plan_command(loaded, batch_id, Cancel("one", ""))
    assert writes.applied is applied
    assert [*writes.batches, *writes.events, *writes.requests] == []
    other = plan_command(loaded, batch_id, Cancel("two", ""))
    assert other.applied
    assert len(other.batches) == 1


def test_a_batch_that_is_being_loaded_answers_nobody() -> None:
    """It does not exist yet: the same request is looked at again when it does."""
    world = World()
    batch_id = world.load("batch", 2)
    writes = world.command(batch_id, Cancel("one", ""))
    assert (writes.applied, list(writes.requests)) == (False, [])
    world.command(batch_id, Seal(LOADER, 2))
    assert world.command(batch_id, Cancel("one", "")).applied


def test_a_store_without_requests_knows_the_one_that_cancelled() -> None:
    world = World()
    batch_id = world.batch("batch", 2)
    world.command(batch_id, Cancel("one", ""))
    world.requests.clear()
    assert world.command(batch_id, Cancel("one", "")).applied
    world.requests.clear()
    assert not world.command(batch_id, Cancel("two", "")).applied


def test_a_command_leaves_what_is_owned_to_its_owner() -> None:
    world = World()
    batch_id = world.batch("batch", 2)
    world.claim(ME)
    owned = world.held(ME)
    writes = world.command(batch_id, Cancel("one", ""))
    assert not writes.executions
    assert world.held(ME) == owned


# ---- submissions -----------------------------------------------------------------------------------------------------


def of_loading(world: World, batch_id: BatchId, command: Command) -> Writes:
    """What a command about a batch that is being loaded writes, or of one that was."""
    return plan_command(Loaded(world.now, {batch_id: world.batches[batch_id]}, {}), batch_id, command)


def test_a_batch_is_sealed_by_its_submitter_alone_who_may_repeat_it() -> None:
    world = World()
    batch_id = world.load("batch", 2)
    refused = of_loading(world, batch_id, Seal(OTHER, 2))
    assert (refused.applied, [*refused.batches, *refused.events]) == (False, [])
    sealed = world.command(batch_id, Seal(LOADER, 2))
    assert (sealed.applied, [batch.loader for batch in sealed.batches]) == (True, [None])
    assert not sealed.requests
    for submitter, applied in ((LOADER, True), (OTHER, False)):
        again = of_loading(world, batch_id, Seal(submitter, 2))
        assert (again.applied, [*again.batches, *again.events]) == (applied, [])


def test_a_batch_is_discarded_by_its_submitter_alone_and_not_once_it_is_sealed() -> None:
    world = World()
    batch_id = world.load("batch", 2)
    assert of_loading(world, batch_id, Discard(OTHER)) == Writes(applied=False)
    assert of_loading(world, batch_id, Discard(LOADER)) == Writes(discard=batch_id)
    world.command(batch_id, Seal(LOADER, 2))
    assert of_loading(world, batch_id, Discard(LOADER)) == Writes(applied=False)


# ---- claims ----------------------------------------------------------------------------------------------------------


def wants(**fields: Any) -> ClaimRequest:
    return ClaimRequest(frozenset({WORKFLOW}), 4, 0, CAPACITY, CAPACITY, 0, **fields)


MINE = BatchId("mine")
LABELS = {"team": "a", "kind": "b"}


@pytest.mark.parametrize(
    ("request_", "takes"),
    [
        (wants(), True),
        (wants(batches=frozenset({MINE, BatchId("other")})), True),
        (wants(batches=frozenset({BatchId("other")})), False),
        (wants(batches=frozenset()), False),
        (wants(metadata={"team": "a"}), True),
        (wants(metadata=LABELS), True),
        (wants(metadata={"team": "a", "kind": "c"}), False),
        (wants(metadata={"team": "a", "customer": "c"}), False),
        (wants(batches=frozenset(), metadata={"team": "a"}), True),
        (wants(batches=frozenset({MINE}), metadata={"team": "c"}), True),
        (wants(batches=frozenset({BatchId("other")}), metadata={"team": "c"}), False),
        (wants()._replace(workflows=frozenset({("workflow", "2")})), False),
        (wants()._replace(workflows=frozenset({("other", "1")})), False),
    ],
)
def test_a_claim_takes_only_from_the_batches_that_it_wants(request_: ClaimRequest, takes: bool) -> None:
    world = World()
    world.batch("mine", 2)
    batch = replace(world.batches[MINE], metadata=LABELS)
    assert request_.takes_from(batch) is takes
    writes = plan_claims(START, ME, request_, [Candidates(batch, world.documents(MINE))], 1)
    assert len(writes.executions) == (2 if takes else 0)
    assert len(writes.batches) == (1 if takes else 0)


@pytest.mark.parametrize(("more", "takes"), [(-1, True), (0, True), (1, False), (2, False)])
def test_a_batch_that_needs_a_newer_library_is_left_to_it(more: int, takes: bool) -> None:
    """Its deadline, too."""
    world = World()
    world.batch("mine", 1)
    batch = replace(world.batches[MINE], needs=GENERATION + more)
    assert wants(batches=frozenset({MINE})).takes_from(batch) is takes
    late = replace(batch, wake=START - 1)
    writes = plan_claims(START, ME, wants(), [Candidates(late, world.documents(MINE))], 1)
    assert [record.state for record in writes.batches] == (["failed"] if takes else [])


def test_a_wait_for_workflows_is_one_for_a_single_execution_of_theirs() -> None:
    request = ClaimRequest.of_workflows([WORKFLOW, WORKFLOW])
    assert request == ClaimRequest(frozenset({WORKFLOW}), limit=1, held=0, window=1, capacity=1, checkpoints=0)
    assert request.takes_from_all


def test_a_claim_that_names_nothing_takes_from_all() -> None:
    assert wants().takes_from_all
    assert not wants(batches=frozenset()).takes_from_all
    assert not wants(metadata={"team": "a"}).takes_from_all


# ---- what a checkpoint says ------------------------------------------------------------------------------------------


def test_a_checkpoint_says_the_stage_that_its_call_was_made_in() -> None:
    """Also after the run has ended; and not the one that the document has come to by now."""
    world = World()
    batch_id = world.batch("batch", 2, stages=3)
    world.claim(ME)
    one, _ = world.held(ME)

    def completed(key: str, mark: int, stage: int) -> ActivityCompleted:
        return ActivityCompleted(*identity(one), key, b"x", mark, stage)

    writes = world.commit(
        ME,
        completed("a", 2, 0),
        completed("b", -1, -1),
        ActivityFailed(*identity(one), "c", b"no", 1),
    )
    assert list(writes.checkpoints) == [
        CheckpointWrite(batch_id, one.position, "a", "succeeded", b"x", 0),
        CheckpointWrite(batch_id, one.position, "b", "succeeded", b"x", -1),
        CheckpointWrite(batch_id, one.position, "c", "failed", b"no", 1),
    ]
    world.command(batch_id, Cancel("request", ""))
    late = world.commit(ME, completed("d", 2, 2))
    assert list(late.checkpoints) == [CheckpointWrite(batch_id, one.position, "d", "succeeded", b"x", 2)]


def test_a_document_keeps_what_its_row_says_beside_its_stage() -> None:
    """The row that is written for a stage is made of its fields one by one."""
    world = World()
    batch_id = world.batch("batch", 1, stages=3)
    world.claim(ME)
    key = (batch_id, 0)
    world.executions[key] = world.executions[key]._replace(
        expires=7, taken_from=WorkerId("before"), forget_from=1, fingerprint="fp"
    )
    before = world.executions[key]
    world.now += 5
    writes = world.commit(ME, ActivityCompleted(*identity(before), "a", b"x", 1, 1))
    assert list(writes.marks) == [before._replace(mark=1, updated_at=world.now)]
    world.commit(ME, ExecutionSucceeded(*identity(before), b""))
    # What ends it clears its suspicion.
    assert world.executions[key][-4:] == (7, None, 1, "fp")


def test_a_run_that_has_ended_says_when() -> None:
    world = World()
    batch_id = world.batch("batch", 1)
    assert world.batches[batch_id].ended_at is None
    world.now += 9
    world.command(batch_id, Cancel("request", ""))
    assert world.batches[batch_id].ended_at == START + 9
