"""MemoryStore, SQLiteStore and PostgresStore, given the same commands, answer the same and hold the same."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.postgres.databases import MigratedSchemas
from tests.properties import modest

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchId,
    Budget,
    ConfigurationError,
    ContinueOnFailure,
    DurableBatchesError,
    RetryFailed,
)
from durable_batches.lifecycle.batch_core import Definition, new_batch
from durable_batches.lifecycle.commands import Cancel, Command, Discard, PauseBatch, ResumeBatch, Seal, UpdateBatch
from durable_batches.lifecycle.events import PauseScope
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    CallReserved,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    LateResult,
    ProviderAnswered,
    StageEntered,
)
from durable_batches.lifecycle.planning import ISOLATED_CRASHES
from durable_batches.lifecycle.records import (
    GENERATION,
    RESOLVER_DOCUMENT_ID,
    RESOLVER_POSITION,
    Claim,
    ClaimRequest,
    Committed,
    ExecutionRecord,
    NewDocument,
    SharedLimit,
    SharedSlot,
    SharedWrites,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.spending import Spend, encode_spends
from durable_batches.stores import (
    BatchQuery,
    CountsFailures,
    FindsFailures,
    MemoryStore,
    PostgresStore,
    SharedLimits,
    SQLiteStore,
    Store,
)
from durable_batches.testing import ManualClock

T = TypeVar("T")

LEASE = 30_000_000
WORKFLOWS = (("letters", "1"), ("letters", "2"))
LOADERS = (WorkerId("loader"), WorkerId("another"))
BATCHES = ("ä", "b", "c")
ZERO = "zero \0"
"""A text that C ends where Python does not."""

batch_ids = st.sampled_from(BATCHES).map(BatchId)
keys = st.sampled_from(["a", "b", "ä"])
spent = st.sampled_from([None, None, encode_spends([Spend("ä", 1, ZERO, 10, 8, 2, Decimal("0.01"), 1)])])
payloads = st.binary(max_size=3)
configs = st.builds(
    BatchConfig,
    concurrency=st.integers(1, 4),
    failure_policy=st.sampled_from(
        [
            ContinueOnFailure(),
            AbortAll(),
            RetryFailed(max_attempts=2, backoff=timedelta(seconds=10)),
            RetryFailed(max_attempts=3, backoff=timedelta(0), then=AbortAll()),
        ]
    ),
    deadline=st.sampled_from([None, timedelta(seconds=45)]),
    max_crashes=st.integers(1, 3),
    budget=st.sampled_from([None, None, Budget(tokens=20), Budget(cost=Decimal("0.02"), then="fail")]),
    metadata=st.sampled_from([{}, {"customer": "ä"}, {"customer": "ä", "team": ZERO}]),
)
requests = st.builds(
    ClaimRequest,
    workflows=st.sampled_from([frozenset(WORKFLOWS), frozenset(WORKFLOWS[:1])]),
    limit=st.integers(0, 5),
    held=st.integers(0, 1),
    window=st.integers(1, 5),
    capacity=st.just(5),
    checkpoints=st.integers(0, 3),
    batches=st.sampled_from(
        [None, None, None, frozenset[BatchId](), frozenset({BatchId("ä"), BatchId("c"), BatchId("unknown")})]
    ),
    metadata=st.sampled_from(
        [{}, {}, {}, {"customer": "ä"}, {"customer": "b"}, {"team": ZERO}, {"customer": "ä", "team": ZERO}]
    ),
    # Ids of batches that there may be: other text than that of an id comes to no store.
    without=st.sampled_from([frozenset[BatchId](), frozenset({BatchId("ä"), BatchId("unknown")})]),
)


def plain(answer: Any) -> object:
    """An answer without what a store may choose: which class a sequence has, and how it words an error."""
    if isinstance(answer, Exception):
        return type(answer)
    if isinstance(answer, list | tuple):
        return [plain(value) for value in cast("Sequence[object]", answer)]
    return answer


class Agreement(RuleBasedStateMachine):
    """Each rule does the same to all stores."""

    dsn: ClassVar[str]
    schemas: ClassVar[MigratedSchemas]

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.folder = Path(tempfile.mkdtemp(prefix="agreement-"))
        self.runner = asyncio.Runner()
        self.resources = ExitStack()
        self.stores: Sequence[Store] = (
            MemoryStore(clock=self.clock),
            SQLiteStore(self.folder / "batches.db", clock=self.clock),
            PostgresStore(self.dsn, schema=self.resources.enter_context(self.schemas.one()), clock=self.clock),
        )
        self.numbers: dict[WorkerId, int] = {}
        self.last: dict[WorkerId, tuple[list[Fact], ClaimRequest | None, Committed]] = {}
        self.claims: list[tuple[WorkerId, Claim]] = []
        self.names = count(1)

    def all(self, do: Callable[[Store], Coroutine[Any, Any, T]]) -> T | DurableBatchesError:
        """Do it to each, compare the answers, and return the one they agree on."""

        async def attempt(store: Store) -> T | DurableBatchesError:
            try:
                return await do(store)
            except DurableBatchesError as error:
                return error

        memory, sqlite, postgres = [self.runner.run(attempt(store)) for store in self.stores]
        assert plain(memory) == plain(sqlite)
        assert plain(memory) == plain(postgres)
        return sqlite

    @initialize()
    def open(self) -> None:
        self.all(lambda store: store.open())
        self.register()
        self.register()

    def teardown(self) -> None:
        try:
            self.all(lambda store: store.close())
        finally:
            self.runner.close()
            self.resources.close()
            shutil.rmtree(self.folder)

    # ---- loading ---------------------------------------------------------------------------------------------

    @rule(
        batch_id=batch_ids,
        workflow=st.sampled_from(WORKFLOWS),
        loader=st.sampled_from(LOADERS),
        resolver=st.booleans(),
        config=configs,
        needs=st.sampled_from([GENERATION] * 4 + [GENERATION + 1]),
        turn=st.tuples(st.sampled_from(["", "ä"]), st.integers(-1, 1)),
    )
    def create(
        self,
        batch_id: BatchId,
        workflow: tuple[str, str],
        loader: WorkerId,
        resolver: bool,
        config: BatchConfig,
        needs: int,
        turn: tuple[str, int],
    ) -> None:
        definition = Definition(("one", "two"), resolver, config)
        record = new_batch(
            batch_id=batch_id,
            workflow=workflow[0],
            version=workflow[1],
            submitter=loader,
            definition=definition,
            now=self.clock.now(),
        )
        record = replace(record, needs=needs, partition=turn[0], priority=turn[1])
        created = self.all(lambda store: store.create(record))
        if created is None and resolver:
            chunk = [NewDocument(RESOLVER_POSITION, RESOLVER_DOCUMENT_ID, b"")]
            self.all(lambda store: store.add(batch_id, loader, chunk))

    @rule(batch_id=batch_ids, loader=st.sampled_from(LOADERS), data=st.data(), size=st.integers(0, 4))
    def add(self, batch_id: BatchId, loader: WorkerId, data: st.DataObject, size: int) -> None:
        """The documents after those that are there; some of them with an id that is there, or the same chunk."""
        there = self.runner.run(self.stores[0].documents(batch_id, limit=100))
        start = max(len(there) - data.draw(st.sampled_from([0, 0, 0, 1, 2])), 0)
        chunk = [
            NewDocument(position, f"document-{position}", b"%d" % position) for position in range(start, start + size)
        ]
        if chunk and data.draw(st.integers(0, 5)) == 0:
            chunk.append(NewDocument(start + size, data.draw(st.sampled_from(chunk)).document_id, b""))
        self.all(lambda store: store.add(batch_id, loader, chunk))

    @rule(batch_id=batch_ids, loader=st.sampled_from(LOADERS))
    def seal(self, batch_id: BatchId, loader: WorkerId) -> None:
        total = len(self.runner.run(self.stores[0].documents(batch_id, limit=100)))
        self.control(batch_id, Seal(loader, total))

    @rule(batch_id=batch_ids, loader=st.sampled_from(LOADERS))
    def discard(self, batch_id: BatchId, loader: WorkerId) -> None:
        self.control(batch_id, Discard(loader))

    @rule(batch_id=batch_ids, request=st.sampled_from(["one", "two"]), reason=st.text(max_size=3))
    def cancel(self, batch_id: BatchId, request: str, reason: str) -> None:
        self.control(batch_id, Cancel(request, reason))

    @rule(
        batch_id=batch_ids,
        request=st.sampled_from(["three", "four"]),
        running=st.sampled_from(["calls", "documents"]),
        resumes=st.booleans(),
    )
    def pause(self, batch_id: BatchId, request: str, running: PauseScope, resumes: bool) -> None:
        command = ResumeBatch(f"after {request}") if resumes else PauseBatch(request, "wörum", running)
        self.control(batch_id, command)

    @rule(
        batch_id=batch_ids,
        request=st.sampled_from(["five", "six"]),
        changes=st.sampled_from(
            [
                '{"concurrency":1}',
                '{"concurrency":9,"deadline":8}',
                '{"failure_policy":{"tag":"abort-all"}}',
                '{"budget":{"tokens":40}}',
                '{"budget":null}',
            ]
        ),
    )
    def update(self, batch_id: BatchId, request: str, changes: str) -> None:
        self.control(batch_id, UpdateBatch(request, changes))

    def control(self, batch_id: BatchId, command: Command) -> None:
        before = self.owned(batch_id)
        self.all(lambda store: store.control(batch_id, command))
        # Its owner's next commit is planned by what it remembers of the row.
        assert self.owned(batch_id) == before, "a command writes what is owned"

    def owned(self, batch_id: BatchId) -> Sequence[ExecutionRecord]:
        """The executions of a batch that have an owner: of one store, all hold the same."""
        documents = self.runner.run(self.stores[1].documents(batch_id, after=RESOLVER_POSITION - 1, limit=100))
        return [document.execution for document in documents if document.execution.owner is not None]

    # ---- workers ---------------------------------------------------------------------------------------------

    @rule()
    def register(self) -> None:
        worker = WorkerId(f"wörker-{next(self.names)}")
        record = WorkerRecord(worker, "boot", "namespace", 1, "2", frozenset(WORKFLOWS))
        self.all(lambda store: store.register(record, LEASE))
        self.numbers[worker] = 0

    def workers(self) -> st.SearchStrategy[WorkerId]:
        return st.sampled_from([*self.numbers, WorkerId("nobody")])

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        self.die(data.draw(st.lists(self.workers(), max_size=1)))

    def die(self, dead: Sequence[WorkerId]) -> None:
        async def expire(store: Store) -> object:
            expired = await store.expire(dead=dead)
            return sorted(expired.workers), expired.events

        self.all(expire)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        worker = data.draw(self.workers())
        self.all(lambda store: store.leave(worker))

    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        worker = data.draw(self.workers())

        async def beat(store: Store) -> bool:
            heart = store.heart(worker)
            try:
                return heart.beat()
            finally:
                heart.close()

        self.all(beat)

    # ---- limits that workers share -----------------------------------------------------------------------------

    @rule(
        data=st.data(),
        name=st.sampled_from(["ä", "b"]),
        amount=st.integers(0, 3),
        written=payloads,
        fails=st.booleans(),
    )
    def take(self, data: st.DataObject, name: str, amount: int, written: bytes, fails: bool) -> None:
        worker = data.draw(self.workers())

        def plan(limit: SharedLimit) -> SharedWrites[object]:
            if fails:
                raise ConfigurationError("a mistake")
            answer = limit.now, limit.data, sorted(limit.slots.items())
            return SharedWrites(written, SharedSlot(amount, written), answer)

        async def take(store: Store) -> object:
            assert isinstance(store, SharedLimits)
            return await store.take(name, worker, plan)

        self.all(take)

    # ---- commits ---------------------------------------------------------------------------------------------

    @rule(data=st.data(), request=requests)
    def claim(self, data: st.DataObject, request: ClaimRequest) -> None:
        self.commit(data.draw(self.workers()), [], request)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), size=st.integers(1, 4), claims=st.none() | requests)
    def report(self, data: st.DataObject, size: int, claims: ClaimRequest | None) -> None:
        # The latest are the likeliest to be owned still.
        worker, _ = data.draw(st.sampled_from(self.claims[-4:]))
        mine = [claim for owner, claim in self.claims if owner == worker][-4:]
        others = [claim for _, claim in self.claims][-6:]
        about = st.sampled_from(mine) | st.sampled_from(mine) | st.sampled_from(others)
        self.commit(worker, [data.draw(about.flatmap(fact)) for _ in range(size)], claims)

    def commit(self, worker: WorkerId, facts: list[Fact], request: ClaimRequest | None) -> None:
        number = self.numbers.get(worker, 0) + 1
        committed = self.all(lambda store: store.commit(worker, number, facts, request))
        if isinstance(committed, Committed):
            self.numbers[worker] = number
            self.last[worker] = (facts, request, committed)
            self.claims += [(worker, claim) for claim in committed.claims]

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The reply was lost: the same number again. A store need not keep the events for it."""
        worker = data.draw(st.sampled_from(sorted(self.last)))
        facts, request, committed = self.last[worker]

        async def again(store: Store) -> tuple[dict[int, str], object]:
            answer = await store.commit(worker, self.numbers[worker], facts, request)
            claimed = {(item.execution.batch_id, item.execution.position): item for item in answer.claims}
            return dict(answer.refused), sorted(claimed)

        answer = self.all(again)
        if not isinstance(answer, DurableBatchesError):
            claimed = sorted((item.execution.batch_id, item.execution.position) for item in committed.claims)
            assert answer == (dict(committed.refused), claimed)

    @rule(data=st.data(), shift=st.sampled_from([-2, -1, 1, 5]), request=requests)
    def commit_out_of_turn(self, data: st.DataObject, shift: int, request: ClaimRequest) -> None:
        worker = data.draw(self.workers())
        number = self.numbers.get(worker, 0) + 1 + shift
        if number != self.numbers.get(worker, 0) and number > 0:
            answer = self.all(lambda store: store.commit(worker, number, [], request))
            assert isinstance(answer, DurableBatchesError)

    # ---- time ------------------------------------------------------------------------------------------------

    # Sums of these are exact in binary, so that a lease ends at the same microsecond by both ways of counting.
    @rule(seconds=st.sampled_from([0.25, 5, 10, 20, 31]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-3600, 3600]))
    def set_the_wall_clock(self, seconds: float) -> None:
        self.clock.jump(seconds)

    # ---- reading ---------------------------------------------------------------------------------------------

    @rule(
        query=st.builds(
            BatchQuery,
            workflow=st.sampled_from([None, "letters", "others"]),
            states=st.sampled_from([(), ("pending", "one"), ("completed", "failed", "cancelled")]),
            metadata=st.sampled_from([{}, {"customer": "ä"}, {"customer": "b"}, {"team": ZERO}]),
            created_before=st.none() | st.just(1_893_456_020_000_000),
        ),
        after=st.none() | batch_ids,
        limit=st.integers(1, 3),
    )
    def list_batches(self, query: BatchQuery, after: BatchId | None, limit: int) -> None:
        self.all(lambda store: store.batches(query, after=after, limit=limit))

    @rule(
        batch_id=batch_ids,
        statuses=st.lists(
            st.sampled_from(["pending", "running", "waiting", "succeeded", "failed", "cancelled"]), max_size=2
        ),
        after=st.integers(-2, 4),
        limit=st.integers(1, 3),
        inputs=st.booleans(),
    )
    def page(self, batch_id: BatchId, statuses: list[Any], after: int, limit: int, inputs: bool) -> None:
        self.all(lambda store: store.documents(batch_id, statuses=statuses, after=after, limit=limit, inputs=inputs))
        self.all(partial(_of_a_group, batch_id, after, limit, inputs))
        self.all(lambda store: store.events(batch_id, after=max(after, 0), limit=limit))
        self.all(lambda store: store.checkpoints(batch_id, after, after="a", limit=limit))

    @invariant()
    def they_hold_the_same(self) -> None:
        self.all(_workers)
        for name in BATCHES:
            self.all(_everything(BatchId(name)))


async def _of_a_group(batch_id: BatchId, after: int, limit: int, inputs: bool, store: Store) -> object:
    """The failed documents of each group of failures."""
    assert isinstance(store, CountsFailures)
    assert isinstance(store, FindsFailures)
    groups = sorted({failure.fingerprint for failure in (await store.failures(batch_id)).groups} | {"none of these"})
    return [await store.failed_documents(batch_id, group, after=after, limit=limit, inputs=inputs) for group in groups]


async def _workers(store: Store) -> object:
    return sorted(await store.workers(), key=lambda worker: worker.worker_id)


def _everything(batch_id: BatchId) -> Callable[[Store], Coroutine[Any, Any, object]]:
    async def read(store: Store) -> object:
        assert isinstance(store, CountsFailures)
        documents = await store.documents(batch_id, after=RESOLVER_POSITION - 1, limit=100)
        return [
            await store.batch(batch_id),
            documents,
            await store.events(batch_id, after=0, limit=10_000),
            [await store.checkpoints(batch_id, item.execution.position, limit=100) for item in documents],
            await store.count_checkpoints(batch_id),
            await store.failures(batch_id),
        ]

    return read


def end(claim: Claim) -> st.SearchStrategy[list[Fact]]:
    """How an execution ends, if it does; most fail, and are retried."""
    execution = claim.execution
    target = execution.batch_id, execution.run, execution.position, execution.attempt
    failed = ExecutionFailed(*target, b"", "broke", retry_in=10_000_000)
    ends: list[list[Fact]] = [[failed], [failed], [ExecutionReleased(*target)], [ExecutionSucceeded(*target, b"")], []]
    return st.sampled_from(ends)


def fact(claim: Claim) -> st.SearchStrategy[Fact]:
    """A fact about a claim, now and then about another attempt of it."""
    execution = claim.execution

    def of(attempt: int) -> st.SearchStrategy[Fact]:
        target = [st.just(value) for value in (execution.batch_id, execution.run, execution.position, attempt)]
        return st.one_of(
            st.builds(ActivityCompleted, *target, keys, payloads, st.integers(-1, 2), st.integers(-1, 2), spent),
            st.builds(ActivityFailed, *target, keys, payloads, st.integers(-1, 2), spent),
            st.builds(StageEntered, *target, st.integers(0, 2)),
            st.builds(ExecutionSucceeded, *target, payloads, st.integers(0, 2)),
            st.builds(
                ExecutionFailed,
                *target,
                payloads,
                st.text(max_size=3),
                st.booleans(),
                st.sampled_from([None, 0, 10_000_000]),
                st.lists(keys, max_size=2).map(tuple),
                st.sampled_from(["", "ValueError", "zero \0"]),
                st.sampled_from([None, "ask"]),
            ),
            st.builds(ExecutionReleased, *target, spent=spent, replayed=spent),
            st.builds(LateResult, *target, sessions, keys, payloads, st.integers(-1, 2), spent),
            st.builds(
                ExecutionReleased,
                *target,
                st.sampled_from(["paused", "quota", "quota"]),
                st.sampled_from([None, 40_000_000]),
                st.sampled_from(["", "zero \0"]),
                st.sampled_from(["", "ask"]),
            ),
            st.builds(ProviderAnswered, *target),
            st.builds(CallReserved, *target, keys, st.integers(0, 15), st.sampled_from(["0", "0.01"])),
        )

    sessions = st.sampled_from([execution.owner or WorkerId("nobody"), WorkerId("nobody")])
    attempts = st.sampled_from([execution.attempt] * 5 + [execution.attempt + 1])
    return attempts.flatmap(of)


@pytest.fixture(autouse=True, scope="module")
def _database(postgres_dsn: str, migrated_schemas: MigratedSchemas) -> None:
    Agreement.dsn = postgres_dsn
    Agreement.schemas = migrated_schemas


Agreement.TestCase.settings = modest(12, steps=40)
TestAgreement = Agreement.TestCase


retrying = st.builds(
    BatchConfig,
    concurrency=st.integers(1, 4),
    failure_policy=st.builds(
        RetryFailed, max_attempts=st.integers(2, 4), backoff=st.sampled_from([timedelta(0), timedelta(seconds=10)])
    ),
    deadline=st.sampled_from([None, None, timedelta(seconds=90)]),
    max_crashes=st.integers(2, 4),
)


def claims_of_everything(data: st.DataObject) -> Counter[str]:
    """Have workers claim, report and die; count what they were given: of each range, and of batches that slept."""
    stores = Agreement()
    claimed: Counter[str] = Counter()
    try:
        stores.open()
        for name in BATCHES[:2]:
            batch_id, size, resolver = BatchId(name), data.draw(st.integers(1, 3)), data.draw(st.booleans())
            stores.create(batch_id, WORKFLOWS[0], LOADERS[0], resolver, data.draw(retrying), GENERATION, ("", 0))
            chunk = [NewDocument(position, f"document-{position}", b"") for position in range(size)]
            stores.all(partial(_add, batch_id, chunk))
            stores.control(batch_id, Seal(LOADERS[0], size))
        for _ in range(16):
            worker = data.draw(st.sampled_from(sorted(stores.numbers)))
            records = [stores.runner.run(stores.stores[0].batch(BatchId(name))) for name in BATCHES[:2]]
            asleep = {record.batch_id for record in records if record is not None and record.next_due is not None}
            before = len(stores.claims)
            request = ClaimRequest(frozenset(WORKFLOWS), data.draw(st.integers(1, 5)), 0, 5, 5, 3)
            stores.commit(worker, [], request)
            claims = [claim for _, claim in stores.claims[before:]]
            claimed.update(_range(claim) for claim in claims)
            claimed.update("slept" for claim in claims if claim.execution.batch_id in asleep)
            if data.draw(st.integers(0, 2)) == 0:
                stores.die([worker])
                del stores.numbers[worker]
                stores.register()
            else:
                stores.commit(worker, [fact for claim in claims for fact in data.draw(end(claim))], None)
            stores.pass_time(data.draw(st.sampled_from([0.25, 10, 20])))
        stores.they_hold_the_same()
    finally:
        stores.teardown()
    return claimed


async def _add(batch_id: BatchId, chunk: Sequence[NewDocument], store: Store) -> None:
    await store.add(batch_id, LOADERS[0], chunk)


def _range(claim: Claim) -> str:
    execution = claim.execution
    if execution.crashes >= ISOLATED_CRASHES:
        return "isolated"
    return "new" if execution.attempt == 1 else "woken" if execution.failures else "again"


def test_claims_agree() -> None:
    """Retries, crashes and sleep, in any mixture: of each range, something is claimed."""
    claimed: Counter[str] = Counter()

    # Not made smaller when one fails: on three databases that would take longer than a test may.
    @given(st.data())
    @settings(modest(12), phases=[Phase.generate])
    def examples(data: st.DataObject) -> None:
        claimed.update(claims_of_everything(data))

    examples()
    assert {"woken", "new", "isolated", "slept"} <= claimed.keys(), "the examples claim too little"


class AgreementForLong(Agreement):
    """The same, with more examples."""


AgreementForLong.TestCase.settings = modest(25, steps=40)
TestAgreementForLong = pytest.mark.soak(AgreementForLong.TestCase)
