"""Every state of every small machine, and everything that can happen in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from itertools import product
from typing import Final

import pytest
from tests.lifecycle.world import (
    ENDED,
    LOADER,
    STAGES,
    UNENCODABLE,
    Identity,
    World,
    facts_about,
    identity,
    succeeded,
)

from durable_batches.errors import InvalidTransitionError
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.commands import Cancel, Command, Discard, PauseBatch, ResumeBatch, Seal, UpdateBatch
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.facts import ExecutionFailed, Fact, LateResult, StageEntered
from durable_batches.lifecycle.planning import Departure
from durable_batches.lifecycle.policies import AbortAll, FailurePolicy, RetryFailed
from durable_batches.lifecycle.records import RESOLVER_POSITION, ExecutionRecord, Refusal, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.lifecycle.transitions import check_transition, transitions

ME: Final = WorkerId("me")
OTHER: Final = WorkerId("other")
NEXT: Final = WorkerId("next")
BATCH: Final = BatchId("batch")
CANCELLED_BY: Final = "request"


# ---- the table itself --------------------------------------------------------------------------------------------


def _allowed(current: str, following: str, stages: tuple[str, ...]) -> bool:
    """The rules in words (transitions.py), as a predicate."""
    if current in ENDED or following == "pending":
        return False
    if following in ENDED:
        return True
    if following == "resolving":
        return current != "resolving"
    if current == "resolving":
        return False
    return current == "pending" or stages.index(following) > stages.index(current)


@pytest.mark.parametrize("size", range(1, 13))
def test_the_table_is_its_rules(size: int) -> None:
    stages = tuple(f"stage-{number}" for number in range(size))
    states = ("pending", *stages, "resolving", *ENDED)
    assert set(transitions(stages)) == set(states)
    for current, following in product(states, states):
        allowed = _allowed(current, following, stages)
        assert (following in transitions(stages)[current]) == allowed
        if allowed:
            check_transition(BATCH, stages, current, following)
        else:
            with pytest.raises(InvalidTransitionError) as caught:
                check_transition(BATCH, stages, current, following)
            error = caught.value
            assert (error.batch_id, error.current, error.attempted) == (BATCH, current, following)
            assert error.possible == tuple(state for state in states if _allowed(current, state, stages))


@pytest.mark.parametrize(("current", "following"), [("nowhere", "one"), ("one", "nowhere")])
def test_unknown_states_have_no_moves(current: str, following: str) -> None:
    with pytest.raises(InvalidTransitionError):
        check_transition(BATCH, ("one",), current, following)


def test_no_batch_makes_a_move_that_the_table_does_not_have() -> None:
    """Whatever the plan may get wrong: nothing leaves an ended run."""
    world = World()
    world.batch(BATCH, 0)
    batch = BatchInProgress(world.batches[BATCH], world.now)
    with pytest.raises(InvalidTransitionError) as caught:
        batch.move("one")
    assert (caught.value.batch_id, caught.value.current, caught.value.attempted) == (BATCH, "completed", "one")


# ---- situations: a batch in each state, with documents in every condition that the state can have -----------------

POLICY: Final = RetryFailed(max_attempts=2, backoff=timedelta(0))


def _loading(world: World, stages: int, resolver: bool) -> None:
    world.load(BATCH, 4, stages=stages, resolver=resolver)


def _pending(world: World, stages: int, resolver: bool) -> None:
    world.batch(BATCH, 4, stages=stages, resolver=resolver)


def _in_stage(
    mark: int, policy: FailurePolicy = POLICY, deadline: timedelta | None = None
) -> Callable[[World, int, bool], None]:
    """Mine, another's, pending, waiting, and one that has succeeded; the unfinished ones all in this stage."""

    def make(world: World, stages: int, resolver: bool) -> None:
        config = BatchConfig(failure_policy=policy, deadline=deadline)
        world.batch(BATCH, 5, stages=stages, resolver=resolver, config=config)
        world.claim(ME, 3)
        world.claim(OTHER, 2)
        for execution in world.documents(BATCH):
            assert execution.owner is not None
            world.commit(execution.owner, StageEntered(*identity(execution), mark))
        _, mine, last, _, theirs = world.documents(BATCH)
        world.commit(ME, *facts_about(identity(mine))[-1:])  # released
        if isinstance(policy, RetryFailed):
            world.commit(OTHER, ExecutionFailed(*identity(theirs), b"", "broke"))
        world.commit(ME, *succeeded([last]))

    return make


def _resolving(owner: WorkerId | None) -> Callable[[World, int, bool], None]:
    def make(world: World, stages: int, resolver: bool) -> None:
        world.batch(BATCH, 2, stages=stages, resolver=True)
        world.claim(ME)
        one, two = world.documents(BATCH)
        world.commit(ME, *succeeded([one]), ExecutionFailed(*identity(two), b"", "broke"))
        if owner is not None:
            world.claim(owner)

    return make


def _completed(world: World, stages: int, resolver: bool) -> None:
    _resolving(ME)(world, stages, resolver)
    world.commit(ME, *succeeded([world.executions[(BATCH, RESOLVER_POSITION)]]))


def _completed_without_resolver(world: World, stages: int, resolver: bool) -> None:
    world.batch(BATCH, 2, stages=stages)
    world.claim(ME)
    world.commit(ME, *succeeded(world.documents(BATCH)))


def _failed(world: World, stages: int, resolver: bool) -> None:
    _in_stage(0, AbortAll())(world, stages, resolver)
    mine = world.held(ME)[0]
    world.claim(ME, 1)
    world.commit(ME, ExecutionFailed(*identity(mine), b"", "broke"))


def _failed_in_time(world: World, stages: int, resolver: bool) -> None:
    _in_stage(0, deadline=timedelta(seconds=60))(world, stages, resolver)
    world.now += 60_000_000
    world.claim(ME, 1)


def _cancelled(before: Callable[[World, int, bool], None]) -> Callable[[World, int, bool], None]:
    def make(world: World, stages: int, resolver: bool) -> None:
        before(world, stages, resolver)
        world.command(BATCH, Cancel(CANCELLED_BY, "reason"))

    return make


def _situations() -> Iterator[tuple[str, str, int, bool, Callable[[World, int, bool], None]]]:
    """Name, state, stages, resolver, and how it is made."""
    for stages, resolver in product(range(1, 6), (False, True)):
        makers = {
            ("loading", "pending"): _loading,
            ("pending", "pending"): _pending,
            **{(f"in {STAGES[mark]}", STAGES[mark]): _in_stage(mark) for mark in range(stages)},
            ("failed", "failed"): _failed,
            ("past its deadline", "failed"): _failed_in_time,
            ("cancelled while pending", "cancelled"): _cancelled(_pending),
            ("cancelled in a stage", "cancelled"): _cancelled(_in_stage(stages - 1)),
        }
        if resolver:
            makers |= {
                ("resolver due", "resolving"): _resolving(None),
                ("resolver mine", "resolving"): _resolving(ME),
                ("resolver another's", "resolving"): _resolving(OTHER),
                ("completed", "completed"): _completed,
                ("cancelled in resolving", "cancelled"): _cancelled(_resolving(ME)),
            }
        else:
            makers[("completed", "completed")] = _completed_without_resolver
        for (name, state), maker in makers.items():
            yield name, state, stages, resolver, maker


def _each(sizes: Collection[int]) -> pytest.MarkDecorator:
    """A case for every situation of the machines of these sizes; those of more than three stages run in the soak.

    In three there is a first, a last and one between these, so that the larger machines show the same once more.
    """
    cases = [
        pytest.param(
            *situation[1:],
            id=f"{situation[0]}-{situation[2]}{'-resolver' if situation[3] else ''}",
            marks=[pytest.mark.soak] if situation[2] > 3 else [],
        )
        for situation in _situations()
        if situation[2] in sizes
    ]
    return pytest.mark.parametrize(("state", "stages", "resolver", "make"), cases)


every_situation = _each(range(1, 6))

Maker = Callable[[World, int, bool], None]


def _made(state: str, stages: int, resolver: bool, make: Maker) -> World:
    world = World()
    make(world, stages, resolver)
    world.check()
    assert world.batches[BATCH].state == state
    return world


@every_situation
def test_a_batch_is_written_as_it_was_read(state: str, stages: int, resolver: bool, make: Maker) -> None:
    world = _made(state, stages, resolver, make)
    assert BatchInProgress(world.batches[BATCH], world.now).closed() == world.batches[BATCH]


# ---- what can happen ---------------------------------------------------------------------------------------------


def _expected(world: World, target: Identity) -> Refusal | None:
    """The verdict on a fact that I report, by the rules in planning/facts.py."""
    batch_id, run, position, attempt = target
    execution = world.executions.get((batch_id, position))
    if execution is None:
        return "unknown"
    if (execution.owner, execution.run, execution.attempt) != (ME, run, attempt):
        return "superseded"
    return "ended" if world.batches[batch_id].ended else None


def _targets(world: World) -> Iterator[Identity]:
    """Every execution, as it is and as it is not; and some that do not exist."""
    executions: list[ExecutionRecord] = list(world.executions.values())
    for execution in executions:
        batch_id, run, position, attempt = identity(execution)
        yield batch_id, run, position, attempt
        yield batch_id, run + 1, position, attempt
        yield batch_id, run, position, attempt - 1
        yield batch_id, run, position, attempt + 1
    yield BATCH, 1, 99, 1
    yield BATCH, 1, RESOLVER_POSITION, 1
    yield BatchId("nowhere"), 1, 0, 1


@every_situation
def test_every_fact_in_every_state(state: str, stages: int, resolver: bool, make: Maker) -> None:
    start = _made(state, stages, resolver, make)
    verdicts: set[Refusal | None] = set()
    for target in _targets(start):
        for fact in facts_about(target, stages=stages):
            world = start.copy()
            writes = world.commit(ME, fact)
            expected = _expected(start, target)
            assert writes.refused.get(0) == expected, fact
            verdicts.add(expected)
            if expected in ("unknown", "superseded"):
                assert world == start, f"{fact} was refused, and changed something"
                continue
            world.check()
            if state in ENDED:
                assert not writes.batches
                assert not writes.events
                assert not writes.outcomes
    mine = any(execution.owner == ME for execution in start.executions.values())
    assert ("ended" in verdicts) == (mine and state in ENDED), "the situation shows nothing"
    assert (None in verdicts) == (mine and state not in ENDED)


@every_situation
def test_a_late_result_in_every_state(state: str, stages: int, resolver: bool, make: Maker) -> None:
    """By the session after mine: a checkpoint where nobody else runs the execution, and nothing beside."""
    start = _made(state, stages, resolver, make)
    for target, session in product(_targets(start), (ME, OTHER, NEXT)):
        world = start.copy()
        writes = world.commit(NEXT, LateResult(*target, session, "late", b"result"))
        execution = start.executions.get((target[0], target[2]))
        if execution is None:
            expected: Refusal | None = "unknown"
        elif execution.owner in (None, session) and execution.run == target[1]:
            expected = None
        else:
            expected = "superseded"
        assert writes.refused.get(0) == expected
        recorded = {} if expected else {((target[0], target[2]), "late"): ("succeeded", b"result")}
        assert world.checkpoints == {**start.checkpoints, **recorded}
        world.checkpoints = start.checkpoints
        assert world == start, "something beside a checkpoint has changed"


@_each([2])
def test_every_pair_of_facts_in_every_state(state: str, stages: int, resolver: bool, make: Maker) -> None:
    """Two facts in one commit are the same as one after the other."""
    start = _made(state, stages, resolver, make)
    owned = [execution for execution in start.executions.values() if execution.owner == ME][:2]
    facts: list[Fact] = [fact for execution in owned for fact in facts_about(identity(execution), stages=stages)]
    for first, second in product(facts, facts):
        together, apart = start.copy(), start.copy()
        writes = together.commit(ME, first, second)
        verdicts = [apart.commit(ME, fact).refused.get(0) for fact in (first, second)]
        together.check()
        assert [writes.refused.get(index) for index in (0, 1)] == verdicts
        assert together.executions == apart.executions
        assert together.batches == apart.batches
        assert together.events == apart.events
        assert (together.checkpoints, together.outcomes) == (apart.checkpoints, apart.outcomes)


COMMANDS: Final[list[Command]] = [
    Seal(LOADER, 4),
    Seal(WorkerId("another loader"), 4),
    Discard(LOADER),
    Discard(WorkerId("another loader")),
    Cancel(CANCELLED_BY, "reason"),
    Cancel("another request", UNENCODABLE),
    PauseBatch("pause", UNENCODABLE),
    ResumeBatch("resume"),
    UpdateBatch("update", '{"concurrency":3}'),
]


@every_situation
def test_every_command_in_every_state(state: str, stages: int, resolver: bool, make: Maker) -> None:
    start = _made(state, stages, resolver, make)
    for command in COMMANDS:
        _check_command(start, command)


def _check_command(start: World, command: Command) -> None:
    world, state = start.copy(), start.batches[BATCH].state
    sealed = start.batches[BATCH].loader is None
    applies = changes = False
    match command:
        case Seal(loader=loader):
            applies, changes = loader == LOADER, loader == LOADER and not sealed
        case Discard(loader=loader):
            applies = changes = loader == LOADER and not sealed
        case Cancel(request_id=request_id):
            changes = sealed and state not in ENDED
            applies = changes or (state == "cancelled" and request_id == CANCELLED_BY)
        case PauseBatch() | UpdateBatch():
            applies = changes = sealed and state not in ENDED
        case ResumeBatch():
            pass  # nothing is paused
    writes = world.command(BATCH, command)
    assert writes.applied == applies
    assert (world != start) == changes
    world.check()
    if changes and isinstance(command, Discard):
        assert not world.batches
        assert not world.executions


@every_situation
def test_workers_are_released_in_every_state(state: str, stages: int, resolver: bool, make: Maker) -> None:
    start = _made(state, stages, resolver, make)
    departures: list[Departure] = ["shutdown", "crash"]
    for gone, departure in product([{ME}, {OTHER}, {ME, OTHER}, {WorkerId("nobody")}], departures):
        _check_departure(start, gone, departure)


def _check_departure(start: World, gone: set[WorkerId], departure: Departure) -> None:
    world, state = start.copy(), start.batches[BATCH].state
    writes = world.release(gone, departure)
    world.check()
    assert not any(execution.owner in gone for execution in world.executions.values())
    for key, before in start.executions.items():
        after = world.executions[key]
        if before.owner not in gone:
            assert after == before
        elif state in ENDED:
            assert (after.status, after.crashes) == ("cancelled", before.crashes)
        else:
            assert after.status == ("waiting" if before.position == RESOLVER_POSITION else "pending")
            assert after.crashes == before.crashes + (departure == "crash")
    if state in ENDED:
        assert not writes.events


@every_situation
def test_claims_in_every_state(state: str, stages: int, resolver: bool, make: Maker) -> None:
    start = _made(state, stages, resolver, make)
    world = start.copy()
    writes = world.claim(WorkerId("third"))
    world.check()
    expected = min(start.batches[BATCH].free, len(start.due(BATCH)), 4) if state not in ENDED else 0
    assert len(writes.executions) == expected
    for execution in writes.executions:
        assert execution.due is None
        assert execution.status == "running"
        # What is kept over attempts: the mark, and what was counted.
        before = start.executions[(BATCH, execution.position)]
        kept = (execution.mark, execution.failures, execution.crashes)
        assert kept == (before.mark, before.failures, before.crashes)
