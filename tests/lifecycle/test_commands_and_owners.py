"""A command never writes an execution that is owned: a model of workers that remember what they own.

A store does not read a worker's executions again at each of its commits: it plans with the rows that the worker's last
commit left. So a row that somebody else writes meanwhile is written over, and what had been decided about it is lost.
Commands are what comes from elsewhere at any moment, also about batches whose owners have not noticed yet.

`COMMANDS` has them all; a command that is added is tried in every order with the others, with claims, reports,
crashes and clean ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import ClassVar, Final, NamedTuple, TypeAlias

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.lifecycle.world import SECOND, World, identity
from tests.properties import modest

from durable_batches import BatchConfig, ContinueOnFailure, RetryFailed
from durable_batches.lifecycle.commands import Cancel, Command, PauseBatch, ResumeBatch, UpdateBatch
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    ProviderAnswered,
)
from durable_batches.lifecycle.planning import Departure, Writes
from durable_batches.lifecycle.records import ExecutionRecord, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.ownership import Ownership

Give: TypeAlias = Callable[[World, BatchId, str], Writes]
"""Gives a command with this request id to a batch, as a store does: plans it, and writes what is planned."""


def planned(command: Callable[[str], Command]) -> Give:
    """Give a command by the plan of the library."""

    def give(world: World, batch_id: BatchId, request_id: str) -> Writes:
        return world.command(batch_id, command(request_id))

    return give


COMMANDS: Final[Mapping[str, Give]] = {
    "cancel": planned(lambda request_id: Cancel(request_id, "why")),
    "pause": planned(lambda request_id: PauseBatch(request_id, "why")),
    "pause, when documents finish": planned(lambda request_id: PauseBatch(request_id, "why", "documents")),
    "resume": planned(ResumeBatch),
    "fewer at once": planned(lambda request_id: UpdateBatch(request_id, '{"concurrency":1}')),
    "a stricter policy": planned(lambda request_id: UpdateBatch(request_id, '{"failure_policy":{"tag":"abort-all"}}')),
    "a deadline": planned(lambda request_id: UpdateBatch(request_id, '{"deadline":30}')),
}
"""The commands that have a request id; those of a submitter are about batches that no worker has seen."""


class _Worker(NamedTuple):
    """A worker, and what its store remembers of it."""

    worker_id: WorkerId
    owned: Ownership


class Owners(RuleBasedStateMachine):
    """Two workers, two batches, and commands to them."""

    commands: ClassVar[Mapping[str, Give]] = COMMANDS

    def __init__(self) -> None:
        super().__init__()
        self.world = World(level=2)
        self.names = count(1)
        self.requests = count(1)
        self.workers = [self.new_worker(), self.new_worker()]
        self.batches: list[BatchId] = []
        self.answers: dict[tuple[BatchId, str, str], bool] = {}

    def new_worker(self) -> _Worker:
        return _Worker(WorkerId(f"worker-{next(self.names)}"), Ownership())

    @initialize(
        documents=st.integers(1, 3),
        resolver=st.booleans(),
        policy=st.sampled_from([ContinueOnFailure(), RetryFailed(max_attempts=2)]),
    )
    def submit(self, documents: int, resolver: bool, policy: ContinueOnFailure | RetryFailed) -> None:
        config = BatchConfig(failure_policy=policy, max_crashes=2)
        self.batches = [
            self.world.batch(name, documents, resolver=resolver, config=config) for name in ("one", "another")
        ]

    # ---- workers ---------------------------------------------------------------------------------------------

    @rule(index=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, index: int, limit: int) -> None:
        worker = self.workers[index]
        remembered = worker.owned.as_of(worker.owned.number)
        writes = self.world.claim(worker.worker_id, limit)
        taken = {(row.batch_id, row.position) for row in writes.executions}
        assert not taken & remembered.keys(), "it claims what it holds"
        worker.owned.note(worker.worker_id, {}, writes)

    @precondition(lambda self: any(self.remembered(worker) for worker in self.workers))
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """A worker reports about what it remembers, whatever has become of the batch."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if self.remembered(worker)]))
        subjects = st.sampled_from(self.remembered(worker))
        facts = data.draw(st.lists(subjects.flatmap(_about), min_size=1, max_size=3))
        remembered = worker.owned.as_of(worker.owned.number)
        writes = self.world.commit(worker.worker_id, *facts, remembered=remembered)
        worker.owned.note(worker.worker_id, remembered, writes)

    @rule(index=st.integers(0, 1), departure=st.sampled_from(["crash", "shutdown"]))
    def leave(self, index: int, departure: Departure) -> None:
        """What it held is released from the rows, and nothing is remembered of it."""
        self.world.release([self.workers[index].worker_id], departure)
        self.workers[index] = self.new_worker()

    # ---- commands --------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def command(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.commands)))
        batch_id = data.draw(st.sampled_from(self.batches))
        self.give(name, batch_id, f"request-{next(self.requests)}")

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The reply was lost: it is given once more, and changes nothing."""
        name, batch_id, request_id = data.draw(st.sampled_from(sorted((n, b, r) for b, r, n in self.answers)))
        before = self.world.copy()
        self.give(name, batch_id, request_id)
        assert self.world == before

    def give(self, name: str, batch_id: BatchId, request_id: str) -> None:
        before = self.owned()
        writes = self.commands[name](self.world, batch_id, request_id)
        assert self.owned() == before, f"{name} writes what is owned"
        assert {write[:2] for write in writes.checkpoints}.isdisjoint(before)
        assert {key for key, _ in (*writes.forget, *writes.outcomes)}.isdisjoint(before)
        answer = self.answers.setdefault((batch_id, request_id, name), writes.applied)
        assert writes.applied == answer, "the same request is answered otherwise"

    # ---- time ------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 60]))
    def pass_time(self, seconds: int) -> None:
        self.world.now += seconds * SECOND

    # ---- what always holds -----------------------------------------------------------------------------------

    def owned(self) -> Mapping[tuple[BatchId, int], ExecutionRecord]:
        return {key: row for key, row in self.world.executions.items() if row.owner is not None}

    def remembered(self, worker: _Worker) -> Sequence[ExecutionRecord]:
        return [row for _, row in sorted(worker.owned.as_of(worker.owned.number).items())]

    @invariant()
    def what_a_worker_remembers_is_so(self) -> None:
        remembered = {
            key: row for worker in self.workers for key, row in worker.owned.as_of(worker.owned.number).items()
        }
        assert remembered == self.owned()

    @invariant()
    def everything_holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """All workers go: what they held is released, also of runs that commands have ended."""
        for index in range(len(self.workers)):
            self.leave(index, "shutdown")
        assert not self.owned()
        self.world.check()


def _about(row: ExecutionRecord) -> st.SearchStrategy[Fact]:
    target = identity(row)
    facts: list[Fact] = [
        ActivityCompleted(*target, "key", b"", 0, 0),
        ExecutionSucceeded(*target, b"", 0),
        ExecutionFailed(*target, b"", "broke", retry_in=SECOND),
        ExecutionReleased(*target),
        ExecutionReleased(*target, "paused"),
        ExecutionReleased(*target, "quota", None, "no credit", "ask"),
        ProviderAnswered(*target),
    ]
    return st.sampled_from(facts)


Owners.TestCase.settings = modest(60, steps=30)
TestOwners = Owners.TestCase


# ---- the model sees what it is there for -----------------------------------------------------------------------------


def take_from_its_owner(world: World, batch_id: BatchId, request_id: str) -> Writes:
    """A cancel that also ends what is running, in the rows: the owner does not know, and writes over it."""
    writes = world.command(batch_id, Cancel(request_id, "why"))
    if writes.applied:
        for key, row in world.executions.items():
            if key[0] == batch_id and row.owner is not None:
                world.executions[key] = row._replace(status="cancelled", owner=None, updated_at=world.now)
    return writes


def answer_anew(world: World, batch_id: BatchId, request_id: str) -> Writes:
    """A cancel whose answer is kept nowhere."""
    writes = world.command(batch_id, Cancel(f"{request_id}, {world.batches[batch_id].seq}", "why"))
    return writes._replace(requests=())


@pytest.mark.parametrize(
    ("give", "seen"),
    [(take_from_its_owner, "cancel writes what is owned"), (answer_anew, "the same request is answered otherwise")],
)
def test_a_command_that_breaks_a_rule_is_found(give: Give, seen: str) -> None:
    class Broken(Owners):
        commands: ClassVar = {"cancel": give}

    with pytest.raises(AssertionError, match=seen):
        run_state_machine_as_test(Broken, settings=settings(modest(60, steps=30), phases=[Phase.generate]))
