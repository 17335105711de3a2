"""The plans, case by case: retries, deadlines, the resolver; for documents that kill their process, see isolation."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.lifecycle.world import CAPACITY, LOADER, ME, OTHER, SECOND, START, WORKFLOW, World, identity, succeeded

from durable_batches import AbortAll, BatchConfig, BatchId, ContinueOnFailure, RetryFailed
from durable_batches.errors import CrashLoopError
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.commands import Cancel, Seal
from durable_batches.lifecycle.events import BatchFailed, ResolutionFailed, ResolutionReleased, decode_event
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    StageEntered,
)
from durable_batches.lifecycle.planning import Candidates, Loaded, Writes, plan_claims, plan_facts
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_DOCUMENT_ID,
    RESOLVER_POSITION,
    ClaimRequest,
    ExecutionRecord,
    WorkerId,
)


def resolver(world: World, batch_id: BatchId) -> ExecutionRecord:
    return world.executions[(batch_id, RESOLVER_POSITION)]


def held_positions(world: World, worker: WorkerId) -> list[int]:
    return [execution.position for execution in world.held(worker)]


# ---- failures and retries ------------------------------------------------------------------------------------------


def test_a_retry_waits_as_its_policy_says() -> None:
    world = World()
    policy = RetryFailed(max_attempts=3, backoff=timedelta(seconds=10))
    batch_id = world.batch("batch", 1, config=BatchConfig(failure_policy=policy))
    for failures, seconds in ((1, 10), (2, 20)):
        world.claim(ME)
        world.now += SECOND
        world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
        (row,) = world.documents(batch_id)
        assert (row.status, row.failures, row.due) == ("waiting", failures, world.now + seconds * SECOND)
        assert world.batches[batch_id].counts.waiting == 1
        world.now += seconds * SECOND
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    (row,) = world.documents(batch_id)
    assert (row.status, row.failures) == ("failed", 3)
    world.check()


def test_a_retry_keeps_its_mark_and_its_checkpoints() -> None:
    world = World()
    batch_id = world.batch("batch", 1, config=BatchConfig(failure_policy=RetryFailed(backoff=timedelta(0))))
    world.claim(ME)
    target = identity(world.held(ME)[0])
    world.commit(
        ME,
        StageEntered(*target, 1),
        ActivityCompleted(*target, "paid", b"result"),
        ActivityFailed(*target, "caught", b""),
        ActivityFailed(*target, "fatal", b""),
        ExecutionFailed(*target, b"", "no", forget=("fatal",)),
    )
    key = (batch_id, 0)
    assert world.checkpoints == {(key, "paid"): ("succeeded", b"result"), (key, "caught"): ("failed", b"")}
    assert world.executions[key].mark == 1
    world.claim(ME)
    assert world.held(ME)[0].mark == 1
    world.check()


def test_crashes_and_releases_are_no_failures() -> None:
    world = World()
    policy = RetryFailed(max_attempts=1)
    batch_id = world.batch("batch", 1, config=BatchConfig(failure_policy=policy))
    world.claim(ME)
    world.now += SECOND
    world.commit(ME, ExecutionReleased(*identity(world.held(ME)[0])))
    world.claim(ME)
    world.now += SECOND
    world.release([ME], "crash")
    assert world.documents(batch_id)[0].failures == 0
    world.check()


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        (AbortAll(), "failed"),
        (ContinueOnFailure(max_failures=0), "failed"),
        (ContinueOnFailure(max_failure_ratio=0.3), "failed"),
        (ContinueOnFailure(max_failures=1), "one"),
        (RetryFailed(max_attempts=1, then=AbortAll()), "failed"),
        (RetryFailed(max_attempts=2, then=AbortAll()), "one"),
    ],
    ids=str,
)
def test_a_failure_ends_the_batch_where_the_policy_says_so(
    policy: AbortAll | ContinueOnFailure | RetryFailed, state: str
) -> None:
    world = World()
    batch_id = world.batch("batch", 3, config=BatchConfig(failure_policy=policy))
    world.claim(ME)
    first, *others = world.held(ME)
    writes = world.commit(ME, ExecutionFailed(*identity(first), b"", "no"), *succeeded(others[:1]))
    assert world.batches[batch_id].state == state
    assert writes.refused == ({1: "ended"} if state == "failed" else {})
    world.check()


def test_every_failure_counts() -> None:
    world = World()
    config = BatchConfig(failure_policy=ContinueOnFailure(max_failures=2))
    batch_id = world.batch("batch", 4, config=config)
    world.claim(ME)
    for failed, row in enumerate(world.held(ME)[:3], 1):
        assert not world.batches[batch_id].ended
        world.commit(ME, ExecutionFailed(*identity(row), b"", "no"))
        assert world.batches[batch_id].counts.failed == failed
    assert world.batches[batch_id].state == "failed"
    world.check()


def test_what_became_of_a_document_is_recorded() -> None:
    world = World()
    batch_id = world.batch("batch", 2, resolver=True)
    world.claim(ME)
    one, two = world.held(ME)
    world.commit(ME, ExecutionSucceeded(*identity(one), b"result"), ExecutionFailed(*identity(two), b"failure", "no"))
    world.claim(ME)
    world.commit(ME, ExecutionSucceeded(*identity(resolver(world, batch_id)), b"resolution"))
    assert world.outcomes == {
        (batch_id, 0): b"result",
        (batch_id, 1): b"failure",
        (batch_id, RESOLVER_POSITION): b"resolution",
    }


def test_the_failure_of_an_attempt_that_is_retried_is_recorded() -> None:
    world = World()
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(0)))
    batch_id = world.batch("batch", 1, config=config)
    for outcome in (b"first failure", b"second failure"):
        world.claim(ME)
        world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), outcome, "no"))
        assert world.outcomes == {(batch_id, 0): outcome}


def test_what_a_fact_does_not_say_changes_nothing() -> None:
    world = World()
    batch_id = world.batch("batch", 1)
    world.claim(ME)
    target = identity(world.held(ME)[0])
    world.commit(ME, ActivityCompleted(*target, "key", b"result"))
    assert world.documents(batch_id)[0].mark == -1
    world.commit(ME, ExecutionSucceeded(*target, b"result"))
    (completed,) = [event for event in map(decode_event, world.events[batch_id]) if event.tag == "document_completed"]
    assert completed.unused_checkpoints == 0


def test_a_stage_is_entered_once() -> None:
    world = World()
    batch_id = world.batch("batch", 1)
    world.claim(ME)
    target = identity(world.held(ME)[0])
    world.commit(ME, StageEntered(*target, 1))
    before = world.copy()
    assert not world.commit(ME, StageEntered(*target, 1), StageEntered(*target, 0), StageEntered(*target, 3)).refused
    assert world.events[batch_id] == before.events[batch_id]
    world.check()


def test_a_result_after_the_end_is_kept() -> None:
    world = World()
    batch_id = world.batch("batch", 1)
    world.claim(ME)
    target = identity(world.held(ME)[0])
    world.command(batch_id, Cancel("request", ""))
    late = world.commit(
        ME,
        ActivityCompleted(*target, "paid", b"result", 2),
        ActivityFailed(*target, "failed", b"no"),
        ExecutionSucceeded(*target, b"late"),
        ActivityCompleted(*target, "after its end", b"result"),
    )
    assert late.refused == {0: "ended", 1: "ended", 2: "ended", 3: "superseded"}
    assert world.checkpoints == {((batch_id, 0), "paid"): ("succeeded", b"result")}
    assert not world.outcomes
    assert world.documents(batch_id)[0].status == "cancelled"
    world.check()


def test_a_superseded_attempts_result_is_not_kept() -> None:
    world = World()
    batch_id = world.batch("batch", 1)
    world.claim(ME)
    old = identity(world.held(ME)[0])
    world.commit(ME, ExecutionReleased(*old))
    world.claim(ME)
    world.command(batch_id, Cancel("request", ""))
    assert world.commit(ME, ActivityCompleted(*old, "paid", b"")).refused == {0: "superseded"}
    assert not world.checkpoints


def test_an_execution_without_its_batch_is_unknown() -> None:
    world = World()
    world.batch("batch", 1)
    world.claim(ME)
    (row,) = world.held(ME)
    loaded = Loaded(world.now, {}, {(row.batch_id, row.position): row})
    assert plan_facts(loaded, ME, succeeded([row])) == Writes(
        batches=[], executions=[], marks=[], outcomes=[], checkpoints=[], forget=[], events=[], refused={0: "unknown"}
    )


# ---- the resolver --------------------------------------------------------------------------------------------------


def test_the_resolver_is_due_with_the_last_documents_end() -> None:
    world = World()
    batch_id = world.batch("batch", 2, resolver=True)
    world.claim(ME)
    one, two = world.held(ME)
    world.commit(ME, *succeeded([one]))
    assert resolver(world, batch_id).due is None
    world.commit(ME, *succeeded([two]))
    assert resolver(world, batch_id).due == NOW
    world.check()


def test_the_resolver_is_due_when_the_last_document_crashed() -> None:
    world = World()
    batch_id = world.batch("batch", 2, resolver=True, config=BatchConfig(max_crashes=1))
    world.claim(ME, 1)
    world.commit(ME, *succeeded(world.held(ME)))
    for worker in (ME, OTHER):  # the second time alone
        world.claim(worker)
        world.release([worker], "crash")
    assert world.documents(batch_id)[1].status == "failed"
    assert resolver(world, batch_id).due == NOW
    world.check()


def test_a_failed_resolver_waits_as_it_asks() -> None:
    world = World()
    batch_id = world.batch("batch", 0, resolver=True)
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"no", "no", retry_in=60 * SECOND))
    assert resolver(world, batch_id).due == START + 60 * SECOND
    assert resolver(world, batch_id).failures == 1
    assert not world.claim(ME).executions
    world.now += 60 * SECOND
    world.claim(ME)
    assert held_positions(world, ME) == [RESOLVER_POSITION]
    world.check()


def test_a_resolver_that_kills_its_process_fails_the_batch() -> None:
    world = World()
    batch_id = world.batch("batch", 0, resolver=True, config=BatchConfig(max_crashes=2))
    for number in range(2):
        worker = WorkerId(f"worker-{number}")
        world.claim(worker)
        world.release([worker], "crash")
        world.check()
    assert world.batches[batch_id].state == "failed"
    assert resolver(world, batch_id).crashes == 2
    events = list(map(decode_event, world.events[batch_id]))
    assert [event.reason for event in events if isinstance(event, ResolutionReleased)] == ["crash"]
    failures = [event for event in events if isinstance(event, ResolutionFailed)]
    assert [event.error for event in failures] == [str(CrashLoopError(batch_id, "", 2))]


# ---- deadlines -----------------------------------------------------------------------------------------------------


def test_a_deadline_counts_from_the_seal() -> None:
    world = World()
    batch_id = world.batch("batch", 2, config=BatchConfig(deadline=timedelta(seconds=30), concurrency=1))
    assert world.batches[batch_id].wake == START + 30 * SECOND
    world.now += 30 * SECOND - 1
    assert len(world.claim(ME).executions) == 1
    world.now += 1
    writes = world.claim(OTHER, 0)
    assert not writes.executions
    record = world.batches[batch_id]
    assert (record.state, record.wake, record.free) == ("failed", None, 0)
    last = decode_event(world.events[batch_id][-1])
    assert isinstance(last, BatchFailed)
    assert last.error == "the batch's deadline has passed"
    world.check()


def test_a_deadline_counts_for_the_resolver_too() -> None:
    world = World()
    batch_id = world.batch("batch", 0, resolver=True, config=BatchConfig(deadline=timedelta(seconds=30)))
    world.claim(ME)
    world.now += 30 * SECOND
    world.claim(OTHER)
    assert world.batches[batch_id].state == "failed"
    assert world.commit(ME, *succeeded([resolver(world, batch_id)])).refused == {0: "ended"}
    world.check()


def test_a_deadline_holds_up_no_other_batch() -> None:
    world = World()
    late = world.batch("a", 1, config=BatchConfig(deadline=timedelta(seconds=30)))
    world.batch("b", 1)
    world.now += 30 * SECOND
    writes = world.claim(ME)
    assert world.batches[late].state == "failed"
    assert [execution.batch_id for execution in writes.executions] == ["b"]


def test_an_ended_batch_has_no_deadline() -> None:
    world = World()
    batch_id = world.batch("batch", 0, config=BatchConfig(deadline=timedelta(seconds=30)))
    assert world.batches[batch_id].wake is None


# ---- loading -------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_not_sealed_is_not_there_yet() -> None:
    world = World()
    batch_id = world.load("batch", 2)
    record = world.batches[batch_id]
    assert (record.state, record.run, record.sealed, record.paused) == ("pending", 1, False, False)
    assert (record.free, record.seq, record.served, record.wake) == (0, 0, 0, None)
    assert {row.updated_at for row in world.documents(batch_id)} == {START}
    assert not world.claim(ME).executions
    world.command(batch_id, Seal(LOADER, 2))
    assert world.batches[batch_id].sealed
    assert len(world.claim(ME).executions) == 2


def test_a_batch_is_stored_in_a_form_that_stays() -> None:
    """What is in databases by now has to be read by every later version."""
    assert (NOW, RESOLVER_POSITION, RESOLVER_DOCUMENT_ID) == (0, -1, "")
    world = World()
    config = BatchConfig(deadline=timedelta(seconds=30), failure_policy=RetryFailed(backoff=timedelta(seconds=1)))
    record = world.batches[world.load("batch", 2, stages=2, resolver=True, config=config)]
    core = json.loads(record.core)
    definition = json.loads(core.pop("definition"))
    assert core == {
        "at": [0, 0, 0],
        "phase": "idle",
        "error": "",
        "reason": "",
        "sealed_by": None,
        "cancelled_by": None,
        "started_at": None,
        "ended_at": None,
    }
    assert (definition["stages"], definition["resolver"]) == (["one", "two"], True)
    stored = definition["config"]
    assert (stored["deadline"], stored["failure_policy"]["backoff"]) == (30.0, 1.0)
    assert (stored["failure_policy"]["tag"], stored["document_timeout"]) == ("retry-failed", None)


# ---- turns ---------------------------------------------------------------------------------------------------------


def test_batches_take_turns_also_when_the_clock_is_set_back() -> None:
    world = World()
    for batch_id in ("a", "b"):
        world.batch(batch_id, 9)
    world.claim(ME, 2, most=1)
    world.now -= 3600 * SECOND
    turn = world.batches[BatchId("a")].served
    served: list[str] = []
    for number in range(4):
        writes = world.claim(WorkerId(f"worker-{number}"), 1)
        served += [execution.batch_id for execution in writes.executions]
    assert served == ["a", "b", "a", "b"]
    assert world.batches[BatchId("a")].served == turn + 2


def test_nothing_is_claimed_of_a_paused_batch() -> None:
    world = World()
    batch_id = world.batch("batch", 2, resolver=True)
    for _ in ("documents", "resolver"):
        going, paused = world.batches[batch_id], replace(world.batches[batch_id], paused=True)
        world.batches[batch_id] = BatchInProgress(paused, world.now).closed()
        assert world.batches[batch_id].free == 0
        assert not world.claim(ME).executions
        world.batches[batch_id] = going
        world.commit(ME, *succeeded(world.claim(ME).executions))
    assert world.batches[batch_id].state == "completed"


# ---- level 2: what is due by time, and sleep ---------------------------------------------------------------------


def test_a_claim_takes_no_more_than_the_share_of_each_batch() -> None:
    world = World(level=2)
    batch_id = world.batch("batch", 3)
    candidates = [Candidates(world.batches[batch_id], world.due(batch_id), share=2)]
    request = ClaimRequest(frozenset({WORKFLOW}), 3, 0, CAPACITY, CAPACITY, 0)
    assert len(plan_claims(world.now, ME, request, candidates, 1, level=2).executions) == 2


def test_a_batch_that_was_woken_for_nothing_falls_asleep_again() -> None:
    """It would be looked at by each claim otherwise; nothing has happened, so there is no event of it."""
    world = World(level=2)
    policy = RetryFailed(max_attempts=2, backoff=timedelta(seconds=10))
    batch_id = world.batch("batch", 1, config=BatchConfig(failure_policy=policy))
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    record = world.batches[batch_id]
    assert record.next_due is not None
    request = ClaimRequest(frozenset({WORKFLOW}), 3, 0, CAPACITY, CAPACITY, 0)
    later = record.next_due + SECOND
    writes = plan_claims(record.next_due, ME, request, [Candidates(record, [], later)], 1, level=2)
    assert [(written.free, written.next_due) for written in writes.batches] == [(0, later)]
    assert not writes.events
    assert not writes.executions


def test_a_batch_of_which_nobody_knows_what_is_due_stays_awake() -> None:
    """As one that was written at level 1: to sleep then could be to sleep for ever."""
    world = World()
    policy = RetryFailed(max_attempts=2, backoff=timedelta(seconds=10))
    batch_id = world.batch("batch", 2, config=BatchConfig(failure_policy=policy))
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    world.level = 2
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    record = world.batches[batch_id]
    assert record.counts.waiting == 2
    assert (record.free > 0, record.next_due) == (True, None)


@pytest.mark.parametrize("level", [1, 2])
def test_what_is_not_awake_for_nothing_is_left_alone(level: int) -> None:
    """A batch that sleeps is not put to sleep again, and stores of level 1 know no sleep: no claim writes it."""
    world = World(level=level)
    policy = RetryFailed(max_attempts=2, backoff=timedelta(seconds=10))
    batch_id = world.batch("batch", 1, config=BatchConfig(concurrency=1, failure_policy=policy))
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    record = world.batches[batch_id]
    assert (record.free, record.next_due) == ((1, None) if level == 1 else (0, world.now + 10 * SECOND))
    request = ClaimRequest(frozenset({WORKFLOW}), 3, 0, CAPACITY, CAPACITY, 0)
    candidates = [Candidates(record, [], world.now + 10 * SECOND)]
    writes = plan_claims(world.now, ME, request, candidates, 1, level=level)
    assert [*writes.batches, *writes.events, *writes.executions] == []


def test_a_claim_writes_a_batch_only_if_that_puts_it_to_sleep() -> None:
    world = World(level=2)
    policy = RetryFailed(max_attempts=2, backoff=timedelta(seconds=10))
    batch_id = world.batch("batch", 1, config=BatchConfig(concurrency=1, failure_policy=policy))

    def looked_at(*due: ExecutionRecord, next_due: int | None, window: int = CAPACITY) -> list[tuple[int, int | None]]:
        request = ClaimRequest(frozenset({WORKFLOW}), 3, 0, window, CAPACITY, 0)
        candidates = [Candidates(world.batches[batch_id], due, next_due)]
        writes = plan_claims(world.now, ME, request, candidates, 1, level=2)
        assert [*writes.events, *writes.executions] == []
        return [(record.free, record.next_due) for record in writes.batches]

    # It is due, but the worker has no room for it.
    assert looked_at(*world.documents(batch_id), next_due=None, window=0) == []
    world.claim(ME)
    # All that there is runs.
    assert (world.batches[batch_id].free, world.batches[batch_id].next_due) == (0, None)
    assert looked_at(next_due=None) == []
    # What is due is not known, as of a batch that was written at level 1; then it is.
    world.level = 1
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no"))
    assert (world.batches[batch_id].free, world.batches[batch_id].next_due) == (1, None)
    later = world.now + 10 * SECOND
    assert looked_at(next_due=later) == [(0, later)]


def test_a_batch_sleeps_until_the_first_of_its_retries() -> None:
    """Whether it was there before the others, or has come later and is due sooner."""
    world = World(level=2)
    policy = RetryFailed(max_attempts=3, backoff=timedelta(seconds=10))
    batch_id = world.batch("batch", 2, config=BatchConfig(failure_policy=policy))
    begin = world.now

    def fail(position: int, at: int) -> int | None:
        world.now = begin + at * SECOND
        world.claim(ME)
        (execution,) = [row for row in world.held(ME) if row.position == position]
        world.commit(ME, ExecutionFailed(*identity(execution), b"", "no"))
        due = world.batches[batch_id].next_due
        return None if due is None else (due - begin) // SECOND

    assert fail(0, at=0) == 10
    assert fail(0, at=10) == 30
    assert fail(1, at=12) == 22
    assert fail(1, at=22) == 30
    assert world.batches[batch_id].counts.waiting == 2


def test_a_batch_sleeps_until_its_resolver_is_retried() -> None:
    world = World(level=2)
    batch_id = world.batch("batch", 1, resolver=True)
    world.claim(ME)
    world.commit(ME, *succeeded(world.held(ME)))
    world.claim(ME)
    world.commit(ME, ExecutionFailed(*identity(world.held(ME)[0]), b"", "no", retry_in=7 * SECOND))
    record = world.batches[batch_id]
    assert (record.state, record.free, record.next_due) == ("resolving", 0, world.now + 7 * SECOND)
    assert resolver(world, batch_id).due == record.next_due
    world.now += 7 * SECOND
    assert len(world.claim(ME).executions) == 1
