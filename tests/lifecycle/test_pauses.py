"""A pause by an operator, by itself and beside one for a provider's quota: what it stops, and what goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.lifecycle.world import ME, OTHER, SECOND, UNENCODABLE, World, identity, machine_of, succeeded

from durable_batches.lifecycle.batch_core import operator_pause_of, quota_pause_of
from durable_batches.lifecycle.commands import Cancel, Command, PauseBatch, ResumeBatch, Seal
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.events import BatchPaused, BatchResumed, decode_event
from durable_batches.lifecycle.facts import ExecutionFailed, ExecutionReleased, ExecutionSucceeded, ProviderAnswered
from durable_batches.lifecycle.policies import RetryFailed
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import BatchSnapshot, Pause, snapshot_of
from durable_batches.lifecycle.quota import MOST_BEGINNINGS
from durable_batches.lifecycle.records import RESOLVER_POSITION, WorkerId
from durable_batches.lifecycle.states import BatchId, Stage

BATCH = BatchId("batch")

each_level = pytest.mark.parametrize("level", [1, 2])


def a_world(documents: int = 4, *, level: int = 2, resolver: bool = False, **options: object) -> World:
    world = World(level=level)
    config = BatchConfig.model_validate({"concurrency": 2, **options})
    world.batch(BATCH, documents, stages=2, resolver=resolver, config=config)
    return world


def give(world: World, command: Command) -> bool:
    """Give a command as a store of the world's level does: one of level 1 keeps no requests."""
    applied = world.command(BATCH, command).applied
    if world.level < 2:
        world.requests.clear()
    world.check()
    return applied


def snapshot(world: World) -> BatchSnapshot[Stage]:
    return snapshot_of(world.batches[BATCH], machine_of(world.batches[BATCH]), world.now)


def tags(world: World) -> list[str]:
    return [event.tag for event in world.events[BATCH]]


# ---- what it stops, and what goes on --------------------------------------------------------------------------------


@each_level
def test_nothing_is_claimed_from_the_pause_to_its_end(level: int) -> None:
    world = a_world(level=level)
    (first,) = world.claim(ME, 1).executions
    state = world.batches[BATCH].state
    assert give(world, PauseBatch("one", "prices look wrong"))
    for worker in (ME, OTHER):
        assert not world.claim(worker).executions
    # What runs goes on: it may finish, and is released when its calls have.
    world.commit(ME, ExecutionReleased(*identity(first), "paused"))
    world.check()
    assert not world.claim(ME).executions
    assert world.batches[BATCH].state == state
    assert (world.batches[BATCH].free, world.batches[BATCH].next_due) == (0, None), "claims do not look here"
    assert give(world, ResumeBatch("two"))
    # It goes on as it was: what had been started first.
    assert [row.position for row in world.claim(ME).executions] == [0, 1]
    world.check()


@each_level
def test_what_runs_may_be_the_last_of_the_batch(level: int) -> None:
    world = a_world(2, level=level)
    rows = world.claim(ME).executions
    assert give(world, PauseBatch("one"))
    world.commit(ME, *succeeded(rows))
    world.check()
    assert world.batches[BATCH].state == "completed"
    ended = snapshot(world)
    assert (ended.paused, ended.pauses) == (False, ())


@each_level
def test_a_resolver_that_is_due_waits_and_one_that_runs_is_released(level: int) -> None:
    world = a_world(2, level=level, resolver=True)
    rows = world.claim(ME).executions
    give(world, PauseBatch("one"))
    world.commit(ME, *succeeded(rows))
    world.check()
    assert world.batches[BATCH].state == "resolving"
    assert not world.claim(ME).executions
    give(world, ResumeBatch("two"))
    (resolver,) = world.claim(ME).executions
    assert resolver.position == RESOLVER_POSITION
    give(world, PauseBatch("three"))
    world.commit(ME, ExecutionReleased(*identity(resolver), "paused"))
    world.check()
    assert tags(world)[-1] == "resolution_released"
    assert not world.claim(ME).executions
    give(world, ResumeBatch("four"))
    assert len(world.claim(ME).executions) == 1


@each_level
def test_its_deadline_runs_on(level: int) -> None:
    world = a_world(level=level, deadline=timedelta(seconds=60))
    give(world, PauseBatch("one"))
    world.now += 59 * SECOND
    world.claim(ME)
    assert world.batches[BATCH].state == "pending"
    world.now += SECOND
    world.claim(ME)
    world.check()
    assert world.batches[BATCH].state == "failed"
    assert operator_pause_of(world.batches[BATCH]) is None


@each_level
def test_what_waits_for_a_retry_waits_for_the_end_of_the_pause_too(level: int) -> None:
    world = a_world(1, level=level, failure_policy=RetryFailed(max_attempts=2, backoff=timedelta(seconds=10)))
    (row,) = world.claim(ME).executions
    world.commit(ME, ExecutionFailed(*identity(row), b"", "broke"))
    give(world, PauseBatch("one"))
    world.now += 60 * SECOND
    assert not world.claim(ME).executions
    give(world, ResumeBatch("two"))
    assert len(world.claim(ME).executions) == 1
    world.check()


def test_a_crash_while_it_drains_is_one_and_runs_on_after_the_pause() -> None:
    world = a_world()
    world.claim(ME)
    give(world, PauseBatch("one"))
    world.release([ME], "crash")
    world.check()
    assert not world.claim(OTHER).executions
    give(world, ResumeBatch("two"))
    assert [(row.position, row.crashes) for row in world.claim(OTHER).executions] == [(0, 1), (1, 1)]


# ---- the requests ----------------------------------------------------------------------------------------------------


@each_level
def test_the_second_pause_changes_nothing_and_is_told_so(level: int) -> None:
    world = a_world(level=level)
    assert give(world, PauseBatch("one", "first"))
    before = world.copy()
    assert not give(world, PauseBatch("two", "second"))
    assert not give(world, PauseBatch("three", "third", "documents"))
    assert give(world, PauseBatch("one", "first")), "the reply was lost, and it is given again"
    assert world == before


@each_level
def test_a_pause_that_lets_documents_finish_becomes_one_that_does_not(level: int) -> None:
    world = a_world(level=level)
    assert give(world, PauseBatch("one", "at the end of the day", "documents"))
    since = snapshot(world).pauses[0].since
    world.now += 5 * SECOND
    assert give(world, PauseBatch("two"))
    (pause,) = snapshot(world).pauses
    assert pause == Pause(reason="operator", since=since, note="at the end of the day")
    assert tags(world).count("batch_paused") == 2
    assert give(world, ResumeBatch("three"))
    assert snapshot(world).pauses == ()


@each_level
def test_resuming_what_is_not_paused_changes_nothing(level: int) -> None:
    world = a_world(level=level)
    before = world.copy()
    assert not give(world, ResumeBatch("one"))
    assert world == before


@each_level
def test_a_resume_that_is_given_again_does_not_end_the_next_pause(level: int) -> None:
    world = a_world(level=level)
    give(world, PauseBatch("one"))
    assert give(world, ResumeBatch("two"))
    give(world, PauseBatch("three"))
    before = world.copy()
    assert give(world, ResumeBatch("two"))
    assert world == before


@each_level
@pytest.mark.parametrize("command", [PauseBatch("again"), ResumeBatch("again")])
def test_an_ended_batch_and_one_that_is_being_loaded_refuse_both(command: Command, level: int) -> None:
    world = a_world(level=level)
    give(world, PauseBatch("one"))
    give(world, Cancel("two", "enough"))
    before = world.copy()
    assert not give(world, command)
    assert world == before
    loading = World(level=level)
    loading.load(BATCH, 1)
    assert not loading.command(BATCH, command).applied
    assert not loading.requests


def test_it_is_seen_from_outside() -> None:
    world = a_world()
    world.now += 5 * SECOND
    give(world, PauseBatch("one", UNENCODABLE, "documents"))
    seen = snapshot(world)
    assert (seen.paused, seen.state.tag, seen.eta) == (True, "pending", None)
    (pause,) = seen.pauses
    assert pause.note == "half a ?"
    assert (pause.since, pause.until, pause.running) == (from_micros(world.now), None, "documents")
    event = decode_event(world.events[BATCH][-1])
    assert isinstance(event, BatchPaused)
    assert (event.reason, event.note, event.until, event.running) == ("operator", pause.note, None, "documents")
    give(world, ResumeBatch("two"))
    resumed = decode_event(world.events[BATCH][-1])
    assert isinstance(resumed, BatchResumed)
    assert resumed.reason == "operator"


# ---- beside a pause for a quota --------------------------------------------------------------------------------------


def refused(world: World) -> World:
    """A batch that is paused for a quota."""
    for row in world.claim(ME).executions:
        world.commit(ME, ExecutionReleased(*identity(row), "quota", None, "no credit", "ask"))
    return world


@each_level
def test_the_provider_is_not_asked_while_an_operator_has_paused(level: int) -> None:
    world = refused(a_world(level=level))
    give(world, PauseBatch("one"))
    assert [pause.reason for pause in snapshot(world).pauses] == ["operator", "quota"]
    world.now += 3_600 * SECOND
    assert not world.claim(ME).executions
    # 0.2.0 would leave the batch alone for its quota alone, as before.
    assert world.batches[BATCH].needs == 1
    give(world, ResumeBatch("two"))
    assert [pause.reason for pause in snapshot(world).pauses] == ["quota"]
    assert len(world.claim(ME).executions) == 1, "one asks"
    assert not world.claim(OTHER).executions
    world.check()


@each_level
def test_resuming_asks_the_provider_at_once(level: int) -> None:
    world = refused(a_world(level=level))
    world.now += SECOND
    assert not world.claim(ME).executions
    assert give(world, ResumeBatch("one"))
    assert not give(world, ResumeBatch("two")), "it is asked already"
    (look,) = world.claim(ME).executions
    world.commit(ME, ProviderAnswered(*identity(look)))
    assert quota_pause_of(world.batches[BATCH]) is None
    assert len(world.claim(ME).executions) == 1
    world.check()


def test_asking_too_early_is_held_against_no_document() -> None:
    world = refused(a_world(1))
    for number in range(MOST_BEGINNINGS + 3):
        assert give(world, ResumeBatch(f"request-{number}"))
        (look,) = world.claim(ME).executions
        world.commit(ME, ExecutionReleased(*identity(look), "quota", None, "no credit", "ask"))
        world.check()
    assert world.batches[BATCH].counts.failed == 0


@each_level
def test_what_looks_is_released_by_the_pause_and_another_looks_after_it(level: int) -> None:
    world = refused(a_world(level=level))
    give(world, ResumeBatch("one"))
    (look,) = world.claim(ME).executions
    give(world, PauseBatch("two"))
    world.commit(ME, ExecutionReleased(*identity(look), "paused"))
    world.check()
    give(world, ResumeBatch("three"))
    (again,) = world.claim(OTHER).executions
    world.commit(OTHER, ExecutionSucceeded(*identity(again), b""))
    world.check()
    assert snapshot(world).pauses == ()


def test_a_refusal_of_what_drains_is_a_pause_of_its_own() -> None:
    world = a_world()
    first, second = world.claim(ME).executions
    give(world, PauseBatch("one"))
    world.commit(ME, ExecutionReleased(*identity(first), "quota", None, "no credit", "ask"))
    world.commit(ME, ExecutionSucceeded(*identity(second), b""))
    world.check()
    give(world, ResumeBatch("two"))
    assert [pause.reason for pause in snapshot(world).pauses] == ["quota"]
    assert len(world.claim(ME).executions) == 1, "one asks"
    world.check()


# ---- what 0.2.0 leaves -----------------------------------------------------------------------------------------------


def test_a_batch_that_0_2_0_ended_is_not_paused() -> None:
    """It ends the batch, and leaves what it does not know."""
    world = a_world()
    give(world, PauseBatch("one"))
    left = replace(world.batches[BATCH], state="failed")
    assert operator_pause_of(left) is None
    seen = snapshot_of(left, machine_of(left), world.now)
    assert (seen.paused, seen.pauses) == (False, ())


def test_a_store_that_keeps_no_column_for_it_pauses_all_the_same() -> None:
    world = a_world(level=1)
    give(world, PauseBatch("one"))
    world.batches[BATCH] = replace(world.batches[BATCH], paused=False)
    row = world.executions[BATCH, 0]
    world.executions[BATCH, 0] = row._replace(status="running", owner=ME, attempt=1, due=None)
    counts = replace(world.batches[BATCH].counts, pending=3, running=1)
    world.batches[BATCH] = replace(world.batches[BATCH], counts=counts)
    world.commit(ME, ExecutionReleased(BATCH, 1, 0, 1, "paused"))
    assert world.batches[BATCH].free == 0


# ---- every order -----------------------------------------------------------------------------------------------------

Step = Callable[[World], object]


def steps() -> dict[str, Step]:
    """Transactions of which any two may meet at the batch's row."""

    def report(world: World, fact: str) -> None:
        for row in world.held(ME)[:1]:
            target = identity(row)
            match fact:
                case "release":
                    world.commit(ME, ExecutionReleased(*target, "paused"))
                case "refusal":
                    world.commit(ME, ExecutionReleased(*target, "quota", None, "no credit", "ask"))
                case _:
                    world.commit(ME, ExecutionSucceeded(*target, b""))

    return {
        "pause": lambda world: give(world, PauseBatch("pause")),
        "pause, documents": lambda world: give(world, PauseBatch("softly", "", "documents")),
        "resume": lambda world: give(world, ResumeBatch("resume")),
        "cancel": lambda world: give(world, Cancel("cancel", "")),
        "claim": lambda world: world.claim(OTHER),
        "end": lambda world: report(world, "end"),
        "release": lambda world: report(world, "release"),
        "refusal": lambda world: report(world, "refusal"),
        "crash": lambda world: world.release([ME], "crash"),
        "time": lambda world: setattr(world, "now", world.now + 60 * SECOND),
    }


@pytest.mark.parametrize(("level", "resolver"), [(1, False), (2, True)])
def test_every_order_of_what_can_meet(level: int, resolver: bool) -> None:
    """All sequences of three, from a batch whose last two documents run; what always holds, holds after each step."""
    start = a_world(2, level=level, resolver=resolver)
    start.claim(ME)
    moves = steps()
    ends: set[str] = set()

    def go(world: World, left: int) -> None:
        world.check()
        ends.add(world.batches[BATCH].state)
        if left:
            for move in moves.values():
                following = world.copy()
                move(following)
                go(following, left - 1)

    go(start, 3)
    assert {"cancelled", "resolving" if resolver else "completed"} <= ends
    # However it was paused: once it is resumed, it comes to its end.
    paused = start.copy()
    give(paused, PauseBatch("pause"))
    paused.release([ME], "shutdown")
    give(paused, ResumeBatch("resume"))
    last = WorkerId("last")
    for _ in range(4):
        paused.claim(last)
        paused.commit(last, *succeeded(paused.held(last)))
    paused.check()
    assert paused.batches[BATCH].state == "completed"
    assert not paused.command(BATCH, Seal(WorkerId("another"), 2)).applied
