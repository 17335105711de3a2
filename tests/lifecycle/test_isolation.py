"""Documents that kill their process: which crashes count, who is isolated and for how long, and who is given up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lifecycle.world import CAPACITY, ME, OTHER, SECOND, START, WORKFLOW, World, identity, machine_of, succeeded
from tests.properties import modest

from durable_batches import BatchConfig, BatchId, RetryFailed
from durable_batches.errors import CrashLoopError
from durable_batches.lifecycle.batch_core import decode_core
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.events import DocumentReleased, decode_event
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    StageEntered,
)
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.isolation import is_crash_loop, isolated_concurrency, isolation_micros
from durable_batches.lifecycle.planning import (
    Candidates,
    KnownWorker,
    Loaded,
    gone_with_machine,
    plan_claims,
    plan_facts,
    plan_release,
)
from durable_batches.lifecycle.progress import snapshot_of
from durable_batches.lifecycle.records import RESOLVER_POSITION, ClaimRequest, ExecutionRecord, WorkerId, WorkerRecord

LEVELS = pytest.mark.parametrize("level", [1, 2])

_numbers = count()


def crash(world: World, limit: int | None = None) -> list[int]:
    """Let a new worker claim and crash; return the positions that it held."""
    worker = WorkerId(f"worker-{next(_numbers)}")
    world.now += 1
    world.claim(worker, limit)
    held = positions(world, worker)
    world.release([worker], "crash")
    world.check()
    return held


def positions(world: World, worker: WorkerId) -> list[int]:
    return [execution.position for execution in world.held(worker)]


def isolated(world: World, batch_id: BatchId) -> int:
    record = world.batches[batch_id]
    return snapshot_of(record, machine_of(record), world.now).isolated


# ---- the rules as functions ------------------------------------------------------------------------------------------


@given(suspects=st.integers(1, 1_000), max_crashes=st.integers(1, 20))
@modest(100)
def test_each_crash_leaves_fewer_documents_beside_it(suspects: int, max_crashes: int) -> None:
    allowed = [isolated_concurrency(crashes, max_crashes, suspects) for crashes in range(2, max_crashes + 4)]
    assert allowed == sorted(allowed, reverse=True)
    assert min(allowed) >= 1
    assert max(allowed) <= suspects
    assert set(allowed[max(max_crashes - 2, 0) :]) == {1}, "the crash that may be the last is suffered alone"


def test_the_search_is_geometric() -> None:
    assert [isolated_concurrency(crashes, 4, 1_000) for crashes in range(2, 5)] == [100, 31, 1]
    # As fast, where each time only those are left that were there at the crash.
    assert (isolated_concurrency(2, 4, 1_000), isolated_concurrency(3, 4, 100)) == (100, 10)
    assert [isolated_concurrency(2, 3, suspects) for suspects in (1, 2, 3, 4, 8, 100)] == [1, 1, 1, 2, 2, 10]


def test_isolation_doubles_up_to_an_hour() -> None:
    assert [isolation_micros(crashes) // SECOND for crashes in (2, 3, 4, 5, 10)] == [10, 20, 40, 80, 2_560]
    assert [isolation_micros(crashes) // SECOND for crashes in (11, 100, 1_000_000)] == [3_600] * 3


def test_only_a_crash_that_was_suffered_alone_can_be_the_last() -> None:
    for max_crashes in range(1, 6):
        for crashes in range(1, 9):
            assert not is_crash_loop(crashes, max_crashes, alone=False)
            assert is_crash_loop(crashes, max_crashes, alone=True) == (crashes >= 2 and crashes >= max_crashes)


# ---- what counts -----------------------------------------------------------------------------------------------------


@LEVELS
def test_the_first_crash_changes_nothing(level: int) -> None:
    """What was running is claimed first, all of it at once, and others beside it."""
    world = World(level, capacity=8)
    batch_id = world.batch("batch", 12, config=BatchConfig(concurrency=8, max_crashes=2))
    assert crash(world, 4) == [0, 1, 2, 3]
    assert isolated(world, batch_id) == 0
    assert "isolation" not in decode_core(world.batches[batch_id].core)
    writes = world.claim(ME)
    assert len(writes.executions) == 8
    assert not any(execution.alone for execution in writes.executions)
    if level == 2:
        assert positions(world, ME) == list(range(8))


@pytest.mark.parametrize("max_crashes", [1, 2, 3])
def test_progress_clears_the_suspicion(max_crashes: int) -> None:
    """However often its process dies: each time something new was recorded."""
    world = World(2)
    batch_id = world.batch("batch", 1, config=BatchConfig(max_crashes=max_crashes))
    for step in range(60):
        worker = WorkerId(f"worker-{step}")
        world.claim(worker)
        (row,) = world.held(worker)
        world.commit(worker, ActivityCompleted(*identity(row), f"step-{step}", b""))
        (row,) = world.held(worker)
        assert (row.crashes, row.taken_from) == (0, None)
        world.release([worker], "crash")
        world.check()
        (row,) = world.documents(batch_id)
        assert (row.status, row.crashes, row.taken_from) == ("pending", 1, worker)
    assert isolated(world, batch_id) == 0


def test_progress_clears_that_of_a_resolver_too() -> None:
    world = World(2)
    batch_id = world.batch("batch", 0, resolver=True)
    for step in range(10):
        worker = WorkerId(f"worker-{step}")
        world.claim(worker)
        (row,) = world.held(worker)
        assert row.position == RESOLVER_POSITION
        world.commit(worker, ActivityCompleted(*identity(row), f"step-{step}", b""))
        world.release([worker], "crash")
        world.check()
    assert world.batches[batch_id].state == "resolving"


@pytest.mark.parametrize("what", ["recorded", "recorded failure", "failed attempt", "succeeded"])
def test_what_ends_isolation(what: str) -> None:
    world = World(2)
    config = BatchConfig(max_crashes=3, failure_policy=RetryFailed(max_attempts=2))
    batch_id = world.batch("batch", 1, stages=1, config=config)
    crash(world)
    crash(world)
    world.claim(ME)
    (row,) = world.held(ME)
    assert (row.crashes, row.alone, isolated(world, batch_id)) == (2, True, 1)
    target = identity(row)
    facts: dict[str, Fact] = {
        "recorded": ActivityCompleted(*target, "key", b"", 0),
        "recorded failure": ActivityFailed(*target, "key", b""),
        "failed attempt": ExecutionFailed(*target, b"", "no"),
        "succeeded": ExecutionSucceeded(*target, b""),
    }
    world.commit(ME, facts[what])
    world.check()
    (row,) = world.documents(batch_id)
    assert (row.crashes, row.alone, row.taken_from, isolated(world, batch_id)) == (0, False, None, 0)
    assert row.mark == (0 if what == "recorded" else -1)


def test_the_end_of_the_run_ends_isolation() -> None:
    world = World(2)
    batch_id = world.batch("batch", 1, config=BatchConfig(max_crashes=3))
    crash(world)
    crash(world)
    world.claim(ME)
    (crashed,) = world.held(ME)
    world.command(batch_id, Cancel("request", ""))
    world.commit(ME, ExecutionReleased(*identity(crashed)))
    (row,) = world.documents(batch_id)
    assert (row.status, row.alone) == ("cancelled", False)
    world.check()


def test_a_stage_alone_is_no_progress() -> None:
    world = World(2)
    world.batch("batch", 1)
    crash(world)
    world.claim(ME)
    (row,) = world.held(ME)
    world.commit(ME, StageEntered(*identity(row), 1))
    assert world.held(ME)[0].crashes == 1


def test_a_stage_and_a_result_of_one_commit_are_both_written() -> None:
    """In whatever order: the row is written once, with the latest stage and without the crash."""
    world = World(2)
    batch_id = world.batch("batch", 1)
    crash(world)
    world.claim(ME)
    target = identity(world.held(ME)[0])
    results = [ActivityCompleted(*target, f"key-{mark}", b"", mark) for mark in range(3)]
    writes = world.commit(ME, StageEntered(*target, 0), *results)
    assert [(row.crashes, row.mark) for row in writes.executions] == [(0, 2)]
    assert not writes.marks
    world.check()
    assert world.documents(batch_id)[0].mark == 2


def test_a_clean_release_counts_nothing_and_isolates_nobody_anew() -> None:
    world = World(2)
    batch_id = world.batch("batch", 2)
    crash(world)
    crash(world)
    before = decode_core(world.batches[batch_id].core).get("isolation")
    assert before is not None
    for step in range(5):
        worker = WorkerId(f"deployed-{step}")
        world.now += SECOND
        world.claim(worker)
        world.release([worker], "shutdown")
        world.check()
    assert [row.crashes for row in world.documents(batch_id)] == [2, 2]
    after = decode_core(world.batches[batch_id].core).get("isolation")
    assert after is not None
    assert (after["until"], after["worker"]) == (before["until"], None)


# ---- a lease that ran out is no proof of a crash ---------------------------------------------------------------------


@LEVELS
def test_a_session_that_is_seen_again_takes_its_crashes_back(level: int) -> None:
    world = World(level)
    batch_id = world.batch("batch", 3)
    for session in range(6):  # a laptop that sleeps, time and again
        worker = WorkerId(f"session-{session}")
        world.claim(worker)
        world.release([worker], "crash")
        assert {row.crashes for row in world.documents(batch_id)} == {1}
        world.see_again(worker)
        world.check()
        assert {(row.crashes, row.taken_from) for row in world.documents(batch_id)} == {(0, None)}


def test_what_is_taken_back_ends_isolation() -> None:
    world = World(2)
    batch_id = world.batch("batch", 2)
    crash(world)
    world.claim(ME)
    world.release([ME], "crash")
    assert isolated(world, batch_id) == 2
    world.see_again(ME)
    world.check()
    assert isolated(world, batch_id) == 0
    assert [row.crashes for row in world.documents(batch_id)] == [1, 1]
    assert len(world.claim(OTHER).executions) == 2


def test_only_its_own_are_taken_back() -> None:
    """The pod that a document uses up the memory of comes back as another process, which names no session before."""
    world = World(2)
    batch_id = world.batch("batch", 1)
    crash(world)
    world.claim(ME)
    world.release([ME], "crash")
    world.see_again(OTHER)
    assert world.documents(batch_id)[0].crashes == 2


def test_what_another_owns_is_taken_back_with_its_release() -> None:
    """An owned row is written by its owner alone, who may write back what it remembers of it."""
    for departure, crashes in (("crash", 1), ("shutdown", 0)):
        world = World(2)
        batch_id = world.batch("batch", 1)
        world.claim(ME)
        world.release([ME], "crash")
        world.claim(OTHER)
        world.see_again(ME)
        assert world.held(OTHER)[0].crashes == 1
        world.release([OTHER], departure)  # type: ignore[arg-type]  # of a literal type in a loop
        world.check()
        (row,) = world.documents(batch_id)
        assert (row.crashes, row.taken_from) == (crashes, OTHER if crashes else None)
        released = [event for event in map(decode_event, world.events[batch_id]) if isinstance(event, DocumentReleased)]
        assert [event.crashes for event in released] == [1, crashes]


def test_what_is_taken_back_gives_nobody_up() -> None:
    """Alone for the second time, with `max_crashes` of 2; but at the first its worker was only frozen."""
    world = World(2)
    batch_id = world.batch("batch", 1, config=BatchConfig(max_crashes=2))
    world.claim(ME)
    world.release([ME], "crash")
    world.claim(OTHER)
    world.see_again(ME)
    world.release([OTHER], "crash")
    assert [(row.status, row.crashes) for row in world.documents(batch_id)] == [("pending", 1)]
    crash(world)
    assert [row.status for row in world.documents(batch_id)] == ["failed"]


def _known(name: str, *, machine: str = "machine", process: int = 1, left: int = 30) -> KnownWorker:
    return KnownWorker(WorkerRecord(WorkerId(name), machine, "namespace", process, "started", frozenset()), left, 30)


@pytest.mark.parametrize(
    ("known", "blameless"),
    [
        ([_known("a", left=0)], []),
        ([_known("a", left=0), _known("b", process=2)], []),
        ([_known("a", left=0), _known("b", process=2, left=15)], []),
        ([_known("a", left=0), _known("b", process=2, left=14)], ["a"]),
        ([_known("a", left=-1), _known("b", process=2, left=0)], ["a", "b"]),
        ([_known("a", left=0), _known("b", left=0)], []),
        ([_known("a", left=0), _known("b", process=2, left=0, machine="another")], []),
        ([_known("a", left=0, machine=""), _known("b", process=2, left=0, machine="")], []),
        ([_known("a", left=0), _known("b", process=2, left=0), _known("c", process=3)], []),
        ([_known("a", left=0), _known("b", process=2, left=0), _known("c", machine="another")], ["a", "b"]),
    ],
    ids=[
        *(
            "alone",
            "beside one that renews",
            "beside one that has just renewed",
            "beside one that does not",
            "all at once",
        ),
        *("one process", "two machines", "unknown machines", "one of three is there", "another machine is there"),
    ],
)
def test_the_loss_of_a_machine_counts_nothing(known: list[KnownWorker], blameless: list[str]) -> None:
    gone = [each.worker.worker_id for each in known if each.left <= 0]
    assert sorted(gone_with_machine(gone, known)) == blameless


def test_who_is_blameless_counts_no_crash() -> None:
    world = World(2)
    batch_id = world.batch("batch", 1)
    crash(world)
    world.claim(ME)
    loaded = Loaded(world.now, {batch_id: world.batches[batch_id]}, dict(world.executions))
    writes = plan_release(loaded, [ME], "crash", level=2, blameless=[ME])
    assert [(row.status, row.crashes, row.owner) for row in writes.executions] == [("pending", 1, None)]


# ---- who is given up -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_crashes", [1, 2, 3, 5])
def test_a_document_fails_after_exactly_its_crashes(max_crashes: int) -> None:
    world = World()
    batch_id = world.batch("batch", 1, config=BatchConfig(max_crashes=max_crashes))
    crashes = 0
    while world.documents(batch_id)[0].status == "pending":
        crash(world)
        crashes += 1
    # Of the first nobody knows whose fault it was.
    assert crashes == max(max_crashes, 2)
    assert world.batches[batch_id].state == "failed"
    (row,) = world.documents(batch_id)
    assert row.crashes == crashes
    error = str(CrashLoopError(batch_id, row.document_id, crashes))
    outcome = DocumentFailureRecord.decode(world.outcomes[(batch_id, 0)])
    assert outcome == DocumentFailureRecord(error, "CrashLoopError", None, row.attempt)


def test_a_call_that_ended_its_executor_counts_for_its_document_alone() -> None:
    world = World(2)
    batch_id = world.batch("batch", 2, resolver=True, config=BatchConfig(max_crashes=3))
    world.claim(ME)
    poison, other = world.held(ME)
    world.commit(ME, *succeeded([other]))
    for crashes in (1, 2, 3):
        world.commit(ME, ExecutionReleased(*identity(poison), "crash", activity="parse"))
        world.check()
        row = world.documents(batch_id)[0]
        # Its worker lives; no session that is seen again takes it back.
        assert (row.crashes, row.taken_from, row.owner) == (crashes, None, None)
        world.claim(ME)
        poison = world.documents(batch_id)[0]
    assert poison.status == "failed"
    error = str(CrashLoopError(batch_id, poison.document_id, 3, "parse"))
    outcome = DocumentFailureRecord.decode(world.outcomes[batch_id, 0])
    assert outcome == DocumentFailureRecord(error, "CrashLoopError", "parse", 3)
    # It was the last document, and the resolver can be claimed from that moment.
    assert [row.position for row in world.held(ME)] == [RESOLVER_POSITION]


def test_alone_means_that_its_worker_had_nothing_else() -> None:
    """Also of other batches, and whatever it was claimed for."""
    world = World(2)
    one = world.batch("a", 1, config=BatchConfig(max_crashes=1))
    other = world.batch("b", 1, config=BatchConfig(max_crashes=1))
    for _ in range(2):
        world.claim(ME)
        assert len(world.held(ME)) == 2
        world.release([ME], "crash")
    assert [row.crashes for batch_id in (one, other) for row in world.documents(batch_id)] == [2, 2]
    assert crash(world) == [0]
    assert sorted(row.status for batch_id in (one, other) for row in world.documents(batch_id)) == ["failed", "pending"]


def test_a_worker_of_which_only_a_part_is_released_was_not_alone() -> None:
    world = World(2)
    batch_id = world.batch("batch", 1, config=BatchConfig(max_crashes=2))
    crash(world)
    world.claim(ME)
    loaded = Loaded(world.now, {batch_id: world.batches[batch_id]}, dict(world.executions))
    assert [row.status for row in plan_release(loaded, [ME], "crash").executions] == ["failed"]
    writes = plan_release(loaded, [ME], "crash", in_company=[ME])
    assert [(row.status, row.crashes) for row in writes.executions] == [("pending", 2)]


def _search(world: World, batch_id: BatchId, poison: set[int]) -> int:
    """Restart a worker each time that it dies of a poisoned document, until the batch has ended; return how often."""
    deaths = 0
    while not world.batches[batch_id].ended:
        worker = WorkerId(f"worker-{next(_numbers)}")
        while not world.batches[batch_id].ended:
            world.now += 10_000  # a claim, and what it takes to run quick calls
            world.claim(worker)
            held = world.held(worker)
            assert held, "nothing is claimed, and the batch has not ended"
            if any(row.position in poison for row in held):
                deaths += 1
                world.release([worker], "crash")
                break
            world.commit(worker, *succeeded(held))
        world.check()
    return deaths


@pytest.mark.parametrize("max_crashes", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("position", [0, 57, 99])
def test_one_poison_document_among_a_hundred_is_found(max_crashes: int, position: int) -> None:
    world = World(2, capacity=100)
    batch_id = world.batch("batch", 100, stages=1, config=BatchConfig(concurrency=100, max_crashes=max_crashes))
    assert _search(world, batch_id, {position}) <= max_crashes + 2
    statuses = {row.position: row.status for row in world.documents(batch_id)}
    assert statuses.pop(position) == "failed"
    assert set(statuses.values()) == {"succeeded"}, "nobody else fails"


@given(
    poison=st.sets(st.integers(0, 19), min_size=1, max_size=5),
    max_crashes=st.integers(1, 4),
    concurrency=st.integers(1, 20),
)
@modest(15)
def test_all_poison_documents_are_found_and_nobody_else(poison: set[int], max_crashes: int, concurrency: int) -> None:
    world = World(2, capacity=16)
    config = BatchConfig(concurrency=concurrency, max_crashes=max_crashes)
    batch_id = world.batch("batch", 20, stages=1, config=config)
    assert _search(world, batch_id, poison) <= (max_crashes + 2) * len(poison)
    assert {row.position for row in world.documents(batch_id) if row.status == "failed"} == poison


# ---- whom isolation holds up, and for how long -----------------------------------------------------------------------


def _twice_crashed(world: World, documents: int = 8, *, max_crashes: int = 3) -> BatchId:
    batch_id = world.batch("slow", documents, config=BatchConfig(concurrency=documents, max_crashes=max_crashes))
    crash(world)
    crash(world)
    assert isolated(world, batch_id) == documents
    return batch_id


def test_eight_long_calls_hold_another_batch_up_for_no_longer_than_their_isolation() -> None:
    world = World(2, capacity=100)
    slow = _twice_crashed(world)
    quick = world.batch("quick", 200, stages=1, config=BatchConfig(concurrency=50))
    began = world.now
    while not world.batches[quick].ended:
        world.claim(ME)
        rows = [row for row in world.held(ME) if row.batch_id == quick]
        world.commit(ME, *succeeded(rows))
        world.check()
        world.now += SECOND // 10
        assert world.now - began < 30 * SECOND
    assert isolation_micros(2) <= world.now - began < isolation_micros(2) + 3 * SECOND
    assert len([row for row in world.held(ME) if row.batch_id == slow]) == 8, (
        "all of them run by now, and beside others"
    )
    assert isolated(world, slow) == 0


def test_the_rest_of_their_batch_is_not_held_up_longer_either() -> None:
    world = World(2, capacity=8)
    batch_id = world.batch("batch", 20, config=BatchConfig(concurrency=8))
    crash(world)
    crash(world)
    world.claim(ME)
    assert positions(world, ME) == [0, 1], "a search among eight begins with two"
    world.now += isolation_micros(2)
    world.claim(ME)
    assert len(world.held(ME)) == 8
    assert isolated(world, batch_id) == 0


def test_each_further_crash_isolates_for_twice_as_long() -> None:
    world = World(2, capacity=8)
    batch_id = _twice_crashed(world, max_crashes=100)
    for seconds in (10, 20, 40, 80):
        isolation = decode_core(world.batches[batch_id].core).get("isolation")
        assert isolation is not None
        assert isolation["until"] - world.now == seconds * SECOND
        world.now = isolation["until"]
        assert len(crash(world)) == 8, "its time is up"


def test_one_worker_of_the_fleet_isolates_and_others_go_on() -> None:
    world = World(2)
    slow = _twice_crashed(world, 4)
    world.batch("other", 8, config=BatchConfig(concurrency=8))
    world.claim(ME)
    assert {row.batch_id for row in world.held(ME)} == {slow}
    world.claim(OTHER)
    assert {row.batch_id for row in world.held(OTHER)} == {BatchId("other")}
    world.release([ME], "shutdown")
    world.commit(OTHER, *[ExecutionReleased(*identity(row)) for row in world.held(OTHER)])
    world.claim(OTHER)
    assert {row.batch_id for row in world.held(OTHER)} == {slow}, "another takes over from one that has left"


def test_a_second_worker_does_not_isolate_another_batch_meanwhile() -> None:
    world = World(2)
    first = _twice_crashed(world, 4)
    second = world.batch("second", 4, config=BatchConfig(concurrency=4))
    for _ in range(2):
        worker = WorkerId(f"worker-{next(_numbers)}")
        candidates = [Candidates(world.batches[second], world.due(second))]
        request = ClaimRequest(frozenset({WORKFLOW}), CAPACITY, 0, CAPACITY, CAPACITY, 0)
        world._apply(plan_claims(world.now, worker, request, candidates, world.now, level=2))
        world.release([worker], "crash")
    world.claim(ME)
    assert {row.batch_id for row in world.held(ME)} <= {first, second}
    world.claim(OTHER)
    assert not world.held(OTHER)
    world.now += isolation_micros(2)
    world.claim(OTHER)
    assert world.held(OTHER)


def test_a_busy_worker_runs_empty_for_them_from_half_of_the_time_on() -> None:
    world = World(2)
    busy = world.batch("busy", 40, config=BatchConfig(concurrency=2))
    world.claim(ME)
    assert len(world.held(ME)) == 2
    slow = _crashed_twice_elsewhere(world)
    world.claim(ME)
    assert len(world.held(ME)) == 2
    world.commit(ME, *succeeded(world.held(ME)[:1]))
    world.claim(ME)
    assert {row.batch_id for row in world.held(ME)} == {busy}, "in the first half it goes on with other work"
    world.now += isolation_micros(2) // 2
    world.commit(ME, *succeeded(world.held(ME)[:1]))
    assert not world.claim(ME).executions, "in the second it takes nothing else"
    isolation = decode_core(world.batches[slow].core).get("isolation")
    assert isolation is not None
    assert isolation["worker"] == ME
    assert world.claim(OTHER).executions, "others go on"
    world.commit(ME, *succeeded(world.held(ME)))
    world.claim(ME)
    assert [(row.batch_id, row.alone) for row in world.held(ME)] == [(slow, True)]


def _crashed_twice_elsewhere(world: World) -> BatchId:
    batch_id = world.batch("slow", 3, config=BatchConfig(concurrency=3))
    for _ in range(2):
        worker = WorkerId(f"worker-{next(_numbers)}")
        request = ClaimRequest(frozenset({WORKFLOW}), CAPACITY, 0, CAPACITY, CAPACITY, 0)
        candidates = [Candidates(world.batches[batch_id], world.due(batch_id))]
        world._apply(plan_claims(world.now, worker, request, candidates, world.now, level=2))
        world.release([worker], "crash")
        world.check()
    return batch_id


def test_a_claim_without_room_still_ends_a_batch_whose_deadline_has_passed() -> None:
    world = World(2)
    slow = _twice_crashed(world, 1)
    late = world.batch("late", 1, config=BatchConfig(deadline=timedelta(seconds=1)))
    world.now += SECOND
    writes = world.claim(ME)
    assert [(execution.batch_id, execution.alone) for execution in writes.executions] == [(slow, True)]
    assert world.batches[late].state == "failed"


def test_what_an_older_library_has_counted_is_isolated_from_the_next_crash_on() -> None:
    """It writes crashes and no isolation: then they run like any others, and are not counted below zero."""
    world = World(2)
    batch_id = world.batch("batch", 2)
    for position in range(2):
        key = (batch_id, position)
        world.executions[key] = world.executions[key]._replace(crashes=2, due=START)
    assert len(world.claim(ME).executions) == 2
    world.commit(ME, *succeeded(world.held(ME)[:1]))
    assert "suspects" not in decode_core(world.batches[batch_id].core)
    world.release([ME], "crash")
    assert [row.status for row in world.documents(batch_id)] == ["succeeded", "failed"]


# ---- everything that can happen, in every order ----------------------------------------------------------------------


def test_every_order_of_crashes_freezes_and_progress() -> None:
    """Two documents, two workers, nine steps: nobody fails but after crashes of its own, the last suffered alone.

    That the last one was a freeze, which nobody has seen the end of by then, cannot be known.
    """
    config = BatchConfig(concurrency=2, max_crashes=2)
    first = World(2, capacity=2)
    first.batch("batch", 2, stages=1, config=config)
    seen: set[object] = set()
    states: list[tuple[World, tuple[int, ...]]] = [(first, (0, 0))]
    for _ in range(9):
        following: list[tuple[World, tuple[int, ...]]] = []
        for world, crashes in states:
            for after, counted in _steps(world, crashes):
                state = _state(after, counted)
                if state not in seen:
                    seen.add(state)
                    after.check()
                    following.append((after, counted))
        states = following
    assert len(seen) > 150


def _steps(world: World, crashes: tuple[int, ...]) -> Iterator[tuple[World, tuple[int, ...]]]:
    """All that may happen next; `crashes`: those of each document since it recorded something, freezes left out."""
    batch_id = BatchId("batch")
    for name in ("one", "two"):
        # A session is named for its number of attempts, so that the names of the dead are not used again.
        worker = WorkerId(f"{name}-{sum(row.attempt for row in world.documents(batch_id))}")
        held = [row for row in world.documents(batch_id) if row.owner is not None and row.owner.startswith(name)]
        if not held:
            after = world.copy()
            if after.claim(worker).executions:
                yield after, crashes
            continue
        owner = held[0].owner
        assert owner is not None
        for ends in ("crash", "freeze", "leave"):
            after = world.copy()
            counted = list(crashes)
            after.release([owner], "shutdown" if ends == "leave" else "crash")
            for row in held:
                counted[row.position] += ends == "crash"
                end = after.documents(batch_id)[row.position]
                assert end.status != "failed" or (len(held) == 1 and crashes[row.position] >= 1)
            if ends == "freeze":
                after.see_again(owner)
            for row in after.documents(batch_id):
                assert row.crashes == counted[row.position] or row.status in ("succeeded", "failed")
            yield after, tuple(counted)
        for row in held:
            after = world.copy()
            counted = list(crashes)
            counted[row.position] = 0
            after.commit(owner, ActivityCompleted(*identity(row), "key", b""))
            yield after, tuple(counted)
            after = after.copy()
            after.commit(owner, ExecutionSucceeded(*identity(row), b""))
            yield after, tuple(counted)
    if isolated(world, batch_id):
        after = world.copy()
        after.now += isolation_micros(2)
        yield after, crashes


def _state(world: World, crashes: tuple[int, ...]) -> object:
    rows = tuple(replace_owner(row) for row in world.documents(BatchId("batch")))
    return rows, crashes, isolated(world, BatchId("batch"))


def replace_owner(row: ExecutionRecord) -> tuple[object, ...]:
    owner = None if row.owner is None else row.owner.partition("-")[0]
    return row.status, row.crashes, row.alone, owner, row.taken_from is not None


def test_a_commit_of_facts_leaves_a_batch_alone_that_has_no_suspects() -> None:
    """A first crash that is cleared changes the document's row, and not the batch's, which others would wait for."""
    world = World(2)
    batch_id = world.batch("batch", 1)
    crash(world)
    world.claim(ME)
    (row,) = world.held(ME)
    loaded = Loaded(world.now, {batch_id: replace(world.batches[batch_id])}, {(batch_id, 0): row})
    writes = plan_facts(loaded, ME, [ActivityCompleted(*identity(row), "key", b"")], level=2)
    assert not writes.batches
    assert [after.crashes for after in writes.executions] == [0]
