"""Random histories of batches through the pure plan functions: claims, facts, crashes, cancels, deadlines, policies."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.lifecycle.world import LOADER, World, identity
from tests.properties import modest

from durable_batches.lifecycle.batch_core import definition_of
from durable_batches.lifecycle.commands import Cancel, Discard, PauseBatch, ResumeBatch, Seal, UpdateBatch
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.events import PauseScope
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    LateResult,
    ProviderAnswered,
    StageEntered,
)
from durable_batches.lifecycle.planning import Departure, Loaded, executions_to_load, plan_facts
from durable_batches.lifecycle.policies import AbortAll, ContinueOnFailure, FailurePolicy, RetryFailed
from durable_batches.lifecycle.records import RESOLVER_POSITION, ExecutionKey, ExecutionRecord, WorkerId
from durable_batches.lifecycle.states import BatchId

WORKERS = 3

counting = st.builds(
    ContinueOnFailure,
    max_failures=st.none() | st.integers(0, 3),
    max_failure_ratio=st.none() | st.floats(0, 1),
)
policies: st.SearchStrategy[FailurePolicy] = (
    counting
    | st.builds(AbortAll)
    | st.builds(
        RetryFailed,
        max_attempts=st.integers(1, 3),
        backoff=st.sampled_from([timedelta(0), timedelta(seconds=1), timedelta(minutes=1)]),
        then=counting | st.builds(AbortAll),
    )
)
configs = st.builds(
    BatchConfig,
    concurrency=st.integers(1, 5),
    failure_policy=policies,
    deadline=st.none() | st.sampled_from([timedelta(seconds=30), timedelta(hours=1)]),
    max_crashes=st.integers(1, 4),
    quota_patience=st.none() | st.sampled_from([timedelta(minutes=1), timedelta(days=1)]),
)


CHANGES = (
    '{"concurrency":1}',
    '{"concurrency":5,"deadline":null}',
    '{"failure_policy":{"tag":"abort-all"}}',
    '{"failure_policy":{"tag":"continue-on-failure","max_failures":1}}',
    '{"deadline":100.0,"document_timeout":2.5}',
)
"""Of configurations, as JSON has them."""


WAYS = ("owned", "owned", "almost", "repeated")


def facts(
    kind: Callable[..., Fact], *values: st.SearchStrategy[Any]
) -> st.SearchStrategy[tuple[Callable[..., Fact], tuple[Any, ...]]]:
    """A kind of fact, with what it says beside whom it is about."""
    return st.tuples(st.just(kind), st.tuples(*values))


keys, payloads = st.sampled_from(["a", "b"]), st.binary(max_size=2)
FACTS = st.one_of(
    facts(StageEntered, st.integers(-1, 5)),
    facts(ExecutionSucceeded, payloads, st.integers(0, 3)),
    facts(
        ExecutionFailed,
        payloads,
        st.text(max_size=5),
        st.booleans(),
        st.none() | st.sampled_from([0, 1_000_000]),
        st.lists(keys, max_size=2).map(tuple),
        st.sampled_from(["ValueError", "KeyError"]),
        st.sampled_from([None, "ask"]),
    ),
    facts(ExecutionReleased),
    facts(
        ExecutionReleased,
        st.sampled_from(["paused", "quota"]),
        st.none() | st.sampled_from([0, 90_000_000, 10**12]),
    ),
    facts(ProviderAnswered),
    facts(ActivityCompleted, keys, payloads, st.integers(-1, 5)),
    facts(ActivityFailed, keys, payloads),
)
"""Made once: to make and check strategies for each of thousands of facts takes as long as to decide on them."""


class Histories(RuleBasedStateMachine):
    """One or two batches, three workers, and everything that may happen to them in any order."""

    level: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.world = World(level=self.level)
        self.sessions = count(1)
        self.workers = [self.new_session() for _ in range(WORKERS)]
        self.gone: list[WorkerId] = []
        self.crashes: dict[ExecutionKey, int] = {}
        """Of each execution, all that were ever counted."""
        self.old: list[Fact] = []

    def new_session(self) -> WorkerId:
        return WorkerId(f"worker-{next(self.sessions)}")

    @initialize(
        batches=st.lists(
            st.tuples(st.integers(0, 5), st.integers(1, 5), st.booleans(), configs), min_size=1, max_size=2
        )
    )
    def submit(self, batches: list[tuple[int, int, bool, BatchConfig]]) -> None:
        for number, (documents, stages, resolver, config) in enumerate(batches):
            self.world.batch(f"batch-{number}", documents, stages=stages, resolver=resolver, config=config)

    # ---- what happens ----------------------------------------------------------------------------------------

    @rule(worker=st.integers(0, WORKERS - 1), limit=st.integers(0, 4), most=st.integers(0, 6))
    def claim(self, worker: int, limit: int, most: int) -> None:
        before = {key: row for key, row in self.world.executions.items() if row.owner is None}
        writes = self.world.claim(self.workers[worker], limit, most=most)
        for execution in writes.executions:
            row = before[(execution.batch_id, execution.position)]
            assert row.due is not None
            assert row.due <= self.world.now
            held = len(self.world.held(self.workers[worker]))
            assert not execution.alone or held == 1, "alone means that nothing runs beside it"

    def owned(self) -> list[ExecutionRecord]:
        return [row for _, row in sorted(self.world.executions.items()) if row.owner in self.workers]

    @precondition(lambda self: self.owned())
    @rule(data=st.data(), size=st.integers(1, 4))
    def report(self, data: st.DataObject, size: int) -> None:
        """One worker's commit: facts about what it owns, some of them stale, foreign or repeated."""
        subject = data.draw(st.sampled_from(self.owned()), label="about")
        assert subject.owner is not None
        mine = self.world.held(subject.owner)
        facts = [self.fact(data, mine) for _ in range(size)]
        self.check_refusals(subject.owner, facts)
        self.world.commit(subject.owner, *facts)
        self.old = [*self.old[-20:], *facts]

    def fact(self, data: st.DataObject, mine: list[ExecutionRecord]) -> Fact:
        """About something that it owns, or almost that, or repeated."""
        way = data.draw(st.sampled_from(WAYS if self.old else WAYS[:-1]), label="way")
        if way == "repeated":
            return data.draw(st.sampled_from(self.old), label="fact")
        batch_id, run, position, attempt = identity(data.draw(st.sampled_from(mine), label="about"))
        if way == "almost":
            run += data.draw(st.integers(-1, 1), label="run")
            attempt += data.draw(st.integers(-1, 1), label="attempt")
        kind, values = data.draw(FACTS, label="fact")
        fact: Fact = kind(batch_id, run, position, attempt, *values)
        return fact

    def check_refusals(self, worker: WorkerId, facts: list[Fact]) -> None:
        """Facts that are refused as unknown or superseded might as well not have been there."""
        world = self.world

        def plan(some: list[Fact]) -> tuple[object, ...]:
            keys = executions_to_load(some)
            loaded = Loaded(
                world.now,
                {key[0]: world.batches[key[0]] for key in keys if key[0] in world.batches},
                {key: world.executions[key] for key in keys if key in world.executions},
            )
            writes = plan_facts(loaded, worker, some, level=self.level)
            refused.update(writes.refused)
            return (
                list(writes.batches),
                sorted(writes.executions),
                sorted(writes.marks),
                sorted(writes.outcomes),
                writes.checkpoints,
                writes.forget,
                sorted(writes.events),
                sorted(writes.failures),
            )

        refused: dict[int, str] = {}
        whole = plan(facts)
        kept = [fact for index, fact in enumerate(facts) if refused.get(index) not in ("unknown", "superseded")]
        assert plan(kept) == whole

    @precondition(lambda self: self.gone and self.old)
    @rule(data=st.data())
    def report_after_release(self, data: st.DataObject) -> None:
        """All facts of a released worker are refused; a store fences it besides."""
        worker = data.draw(st.sampled_from(self.gone))
        facts = data.draw(st.lists(st.sampled_from(self.old), min_size=1, max_size=3))
        before = self.world.copy()
        writes = self.world.commit(worker, *facts)
        assert set(writes.refused) == set(range(len(facts)))
        assert self.world == before

    @precondition(lambda self: self.gone and self.old)
    @rule(data=st.data(), worker=st.integers(0, WORKERS - 1))
    def report_late(self, data: st.DataObject, worker: int) -> None:
        """What a session could not record, another may bring: it is a checkpoint where there was none, or nothing."""
        fact = data.draw(st.sampled_from(self.old))
        session = data.draw(st.sampled_from(self.gone))
        key = data.draw(st.sampled_from(["a", "b"]))
        before = self.world.copy()
        row = before.executions.get((fact.batch_id, fact.position))
        if row is not None and row.owner == self.workers[worker]:
            return  # it brings nothing of what it runs itself
        writes = self.world.commit(self.workers[worker], LateResult(*fact[:4], session, key, b"late"))
        wanted = row is not None and row.owner is None and row.run == fact.run
        assert (not writes.refused) == wanted
        if wanted:
            before.checkpoints.setdefault(((fact.batch_id, fact.position), key), ("succeeded", b"late"))
        assert self.world == before

    @rule(worker=st.integers(0, WORKERS - 1), departure=st.sampled_from(["crash", "shutdown"]))
    def go(self, worker: int, departure: Departure) -> None:
        gone = self.workers[worker]
        self.workers[worker] = self.new_session()
        held = self.world.held(gone)
        running = [row for row in held if not self.world.batches[row.batch_id].ended]
        self.world.release([gone], departure)
        self.gone.append(gone)
        crashed = departure == "crash"
        for row in running:
            after = self.world.executions[(row.batch_id, row.position)]
            if after.status == "failed":
                config = definition_of(self.world.batches[row.batch_id]).config
                assert crashed, "only crashes count"
                assert len(held) == 1, "a document fails only after a crash that it suffered alone"
                assert after.crashes >= max(config.max_crashes, 2), "it may crash more often"
            elif after.status == "cancelled":
                assert self.world.batches[row.batch_id].ended
            else:
                assert after.crashes <= row.crashes + crashed
                assert after.crashes >= crashed
                assert not crashed or after.taken_from == gone
                assert after.due is not None
                assert after.due <= self.world.now, "what was given back can be claimed at once"
                self.crashes[row.batch_id, row.position] = self.crashes.get((row.batch_id, row.position), 0) + crashed
            assert after.crashes <= self.crashes.get((row.batch_id, row.position), 0) + (after.status == "failed")

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def see_again(self, data: st.DataObject) -> None:
        """The process of a session is alive: what was counted for that is taken back, now or with a release."""
        session = data.draw(st.sampled_from(self.gone))
        before = dict(self.world.executions)
        self.world.see_again(session)
        for key, row in before.items():
            after = self.world.executions[key]
            if row.owner is not None or row.taken_from != session or self.world.batches[key[0]].ended:
                assert after == row
            else:
                assert (after.crashes, after.taken_from) == (row.crashes - 1, None)

    @rule(batch=st.integers(0, 1), request=st.sampled_from(["one", "two"]))
    def cancel(self, batch: int, request: str) -> None:
        batch_id = BatchId(f"batch-{batch}")
        if batch_id not in self.world.batches:
            return
        before = self.world.batches[batch_id]
        writes = self.world.command(batch_id, Cancel(request, "reason"))
        again = self.world.command(batch_id, Cancel(request, "another reason"))
        assert again.applied == writes.applied
        assert not again.events
        assert writes.applied or before.ended

    @rule(
        batch=st.integers(0, 1),
        request=st.sampled_from(["three", "four"]),
        running=st.sampled_from(["calls", "documents"]),
        resumes=st.booleans(),
    )
    def pause(self, batch: int, request: str, running: PauseScope, resumes: bool) -> None:
        batch_id = BatchId(f"batch-{batch}")
        if batch_id not in self.world.batches:
            return
        command = ResumeBatch(f"after {request}") if resumes else PauseBatch(request, "why", running)
        writes = self.world.command(batch_id, command)
        again = self.world.command(batch_id, command)
        assert again.applied == writes.applied
        assert not again.events
        assert not (writes.events and self.world.batches[batch_id].ended)

    @rule(
        batch=st.integers(0, 1),
        request=st.sampled_from(["five", "six"]),
        changes=st.sampled_from(CHANGES),
    )
    def update(self, batch: int, request: str, changes: str) -> None:
        batch_id = BatchId(f"batch-{batch}")
        if batch_id not in self.world.batches:
            return
        before = self.world.batches[batch_id].ended
        writes = self.world.command(batch_id, UpdateBatch(request, changes))
        assert not (writes.events and before)

    @rule(batch=st.integers(0, 1), loader=st.sampled_from([LOADER, WorkerId("another")]))
    def load_again(self, batch: int, loader: WorkerId) -> None:
        """What a submitter repeats after its batch was sealed does nothing."""
        batch_id = BatchId(f"batch-{batch}")
        if batch_id in self.world.batches:
            before = self.world.copy()
            assert self.world.command(batch_id, Seal(loader, 1)).applied == (loader == LOADER)
            assert not self.world.command(batch_id, Discard(loader)).applied
            assert self.world == before

    @rule(seconds=st.sampled_from([0.001, 1, 11, 60, 3600]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += int(seconds * 1_000_000)

    @rule(micros=st.sampled_from([1, 50_000, 90_000_000]))
    def meet_another_clock(self, micros: int) -> None:
        """The next change is made by a clock that is behind, or has been set back."""
        self.world.now -= micros

    # ---- what always holds -----------------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """Whatever happened, one patient worker brings every batch to its end."""
        world = self.world
        for worker in self.workers:
            world.release([worker], "shutdown")
        for batch_id in world.batches:
            world.command(batch_id, ResumeBatch("the last"))
        last = WorkerId("last")
        for _ in range(200):
            if all(record.ended for record in world.batches.values()):
                break
            world.now += 3_600_000_000
            world.claim(last)
            world.commit(last, *[ExecutionSucceeded(*identity(row), b"") for row in world.held(last)])
            world.check()
        assert all(record.ended for record in world.batches.values()), "a batch does not come to its end"
        for key, row in world.executions.items():
            if key[1] == RESOLVER_POSITION and world.batches[key[0]].state == "completed":
                assert row.status == "succeeded", "completed without its resolver"


Histories.TestCase.settings = modest(120, steps=40)
TestHistories = Histories.TestCase


class HistoriesOfSleepers(Histories):
    """The same in a store of level 2, where a batch sleeps while nothing of it is due."""

    level = 2


HistoriesOfSleepers.TestCase.settings = modest(120, steps=40)
TestHistoriesOfSleepers = HistoriesOfSleepers.TestCase
