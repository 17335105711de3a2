"""A store that fails: before a commit, after it, for a while, or for one document only."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.conftest import StoreMaker
from tests.processes.children import CLOCK, checker_of, end_of, file_in, until
from tests.processes.clocks import LeaseClock
from tests.processes.workload import (
    PATIENT,
    Batches,
    Page,
    document_ids,
    extract,
    here,
    tally_of,
)
from tests.support import everything, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    Cancelled,
    DocumentFailure,
    SQLiteStore,
    Store,
    StoreUnavailableError,
    Worker,
)
from durable_batches.errors import CommitUnknownError, StoreLockedError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import ClaimRequest, Committed, EventRecord, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.signals import until as until_signal
from durable_batches.stores.protocol import Heart
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog
from durable_batches.worker.journal import JournalPhase

DOCUMENTS = 20
LEASE = timedelta(seconds=30)

Fault = Literal["before", "after"]


class Faults:
    """Between a worker and its store."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.fault: Callable[[ClaimRequest | None], Fault | None] = lambda claim: None
        self.made = {"before": 0, "after": 0}
        self.away = False
        """The store cannot be reached at all."""
        self._seen: dict[tuple[WorkerId, int], tuple[Sequence[Fact], ClaimRequest | None]] = {}
        self._commit = store.commit
        self._heart = store.heart
        monkeypatch.setattr(store, "commit", self.commit)
        monkeypatch.setattr(store, "heart", self.heart)
        for name in ("register", "workers", "expire", "leave", "create", "add", "control", "batch", "wait"):
            monkeypatch.setattr(store, name, self._reaching(getattr(store, name)))

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        # What is repeated under a number is what it was: or the answer would be about something else.
        assert self._seen.setdefault((worker, number), (facts, claim)) == (facts, claim)
        self.check()
        fault = self.fault(claim)
        if fault is not None:
            self.made[fault] += 1
        if fault == "before":
            raise StoreUnavailableError("not now")
        committed = await self._commit(worker, number, facts, claim)
        if fault == "after":
            raise CommitUnknownError("the reply was lost")
        return committed

    def heart(self, worker: WorkerId) -> Heart:
        return _FaultyHeart(self, self._heart(worker))

    def check(self) -> None:
        if self.away:
            raise StoreUnavailableError("it is away")

    def _reaching(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def reached(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return await method(*args, **kwargs)

        return reached


class _FaultyHeart:
    def __init__(self, faults: Faults, heart: Heart) -> None:
        self._faults = faults
        self._heart = heart

    def beat(self) -> bool:
        self._faults.check()
        return self._heart.beat()

    def close(self) -> None:
        self._heart.close()


@pytest.fixture
def faults(open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(open_store(None), monkeypatch)


@pytest.fixture
def checker(tmp_path: Path) -> HistoryChecker:
    here.effects, here.pace, here.poison = EffectsLog(tmp_path / "effects.log", "here"), 0.0, frozenset()
    checker = checker_of(here.effects)
    checker.acknowledged("batch", document_ids(DOCUMENTS))
    return checker


async def _submit(batches: Batches, **config: Any) -> None:
    await batches.submit(
        [Page(number) for number in range(DOCUMENTS)],
        batch_id="batch",
        document_id=lambda page: f"page-{page.number}",
        config=BatchConfig(concurrency=8, failure_policy=PATIENT, **config),
    )


# ---- commits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [["before"], ["after"], ["before", "after"]], ids="-".join)
async def test_a_commit_is_made_once_whatever_became_of_its_reply(
    faults: Faults, checker: HistoryChecker, kinds: list[Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_batches.worker.journal._FIRST_PAUSE", 0.001)
    chance = random.Random(7)
    faults.fault = lambda claim: chance.choice(kinds) if chance.random() < 0.4 else None
    async with BatchOrchestrator(extract, store=faults.store) as batches:
        await _submit(batches)
        streaming = asyncio.create_task(everything(batches.progress("batch")))
        result = await end_of(batches)
        events = await within(streaming)
        checker.streamed("batch", events, ended=True)
        await checker.verify(faults.store, finished=True)
    assert result.value == tally_of(range(DOCUMENTS))
    assert min(faults.made[kind] for kind in kinds) > 3
    assert checker.stats.repeated == 0


async def test_claims_whose_reply_was_lost_are_run(
    faults: Faults, checker: HistoryChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every single commit that claims is answered only the second time it is made."""
    monkeypatch.setattr("durable_batches.worker.journal._FIRST_PAUSE", 0.001)
    answered = True

    def fault(claim: ClaimRequest | None) -> Fault | None:
        nonlocal answered
        answered = not answered or claim is None
        return None if answered else "after"

    faults.fault = fault
    async with BatchOrchestrator(extract, store=faults.store) as batches:
        await _submit(batches)
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        attempts = [document.attempts async for document in batches.documents("batch")]
        await checker.verify(faults.store, finished=True)
    assert faults.made["after"] > 0
    assert attempts == [1] * DOCUMENTS


async def test_a_commit_whose_reply_was_lost_is_repeated_as_it_was_though_its_batch_is_locked(
    faults: Faults, checker: HistoryChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the session of the first try, which goes on: else what is added under its number would be lost."""
    monkeypatch.setattr("durable_batches.worker.journal._FIRST_PAUSE", 0.001)
    commits, locked = 0, 0

    def fault(_: ClaimRequest | None) -> Fault | None:
        nonlocal commits, locked
        commits += 1
        match commits % 4:
            case 0:
                return "after"
            case 1 | 2 if commits > 4:
                locked += 1
                raise StoreLockedError("the store", ["batch"])
            case _:
                return None

    faults.fault = fault
    async with BatchOrchestrator(extract, store=faults.store) as batches:
        await _submit(batches)
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        await checker.verify(faults.store, finished=True)
    assert faults.made["after"] > 3
    assert locked > 6
    assert checker.stats.repeated == 0


async def test_a_cancel_whose_reply_was_lost_still_returns_true(
    faults: Faults, checker: HistoryChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It carries an id: asked again, the store knows that it was this one."""
    lost = 2
    control = faults.store.control

    async def losing(batch_id: BatchId, command: Command) -> Committed:
        nonlocal lost
        committed = await control(batch_id, command)
        if lost:
            lost -= 1
            raise CommitUnknownError("the reply was lost")
        return committed

    monkeypatch.setattr(here, "hold", asyncio.Event())
    async with BatchOrchestrator(extract, store=faults.store) as batches:
        await _submit(batches)
        monkeypatch.setattr(faults.store, "control", losing)
        answer = await batches.cancel("batch")
        checker.cancel_answered("batch", answer, process="here", at=CLOCK.boot())
        assert answer is True
        assert lost == 0
        assert isinstance((await end_of(batches)).state, Cancelled)
        await checker.verify(faults.store, finished=True)


async def test_a_submission_whose_reply_was_lost_is_one(
    faults: Faults, checker: HistoryChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = faults.store.control
    lost = True

    async def losing(batch_id: BatchId, command: Command) -> Committed:
        nonlocal lost
        committed = await control(batch_id, command)
        if lost:
            lost = False
            raise CommitUnknownError("the reply was lost")
        return committed

    async with BatchOrchestrator(extract, store=faults.store) as batches:
        monkeypatch.setattr(faults.store, "control", losing)
        await _submit(batches)
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        await checker.verify(faults.store, finished=True)


# ---- a store that is away --------------------------------------------------------------------------------------


async def test_work_goes_on_when_the_store_is_back_within_the_lease(faults: Faults, checker: HistoryChecker) -> None:
    async with BatchOrchestrator(extract, store=faults.store) as batches:
        await _submit(batches)
        await until(lambda: len(here.effects.read()) > 40, "some work")
        faults.away = True
        with pytest.raises(StoreUnavailableError):
            await batches.snapshot("batch")
        with batches.worker.signals.journal.pausing.listen() as pausing:
            # For claims, where nothing else is left to commit.
            batches.worker.wake()
            for _ in range(3):
                await pausing.next()
        faults.away = False
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        await checker.verify(faults.store, finished=True)
    assert checker.stats.repeated == 0


async def test_work_goes_on_when_the_store_was_away_past_the_lease(faults: Faults, checker: HistoryChecker) -> None:
    """Leases do not run meanwhile: the worker keeps its id and its documents, and nothing runs again."""
    clock = LeaseClock()
    worker = Worker(faults.store, lease=LEASE, clock=clock)
    async with BatchOrchestrator(extract, worker=worker) as batches:
        await _submit(batches, max_crashes=1)
        await until(lambda: len(here.effects.read()) > 40, "some work")
        first = worker.worker_id
        with worker.signals.lease.failed.listen() as failed:
            faults.away = True
            await failed.next()
            clock.shift += LEASE.total_seconds()
            for _ in range(3):
                await failed.next()
        faults.away = False
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        assert worker.worker_id == first
        await checker.verify(faults.store, finished=True)
    assert checker.stats.repeated == 0


async def test_leaving_is_bounded_while_the_store_is_away(
    faults: Faults, checker: HistoryChecker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("durable_batches.worker.session._STORE_PATIENCE_SECONDS", 0.3)
    tasks = asyncio.all_tasks()
    async with BatchOrchestrator(
        extract, worker=Worker(faults.store, drain=timedelta(seconds=0.3), lease=timedelta(seconds=1))
    ) as batches:
        await _submit(batches, max_crashes=10)
        await until(lambda: len(here.effects.read()) > 40, "some work")
        faults.away = True
    # It has come here, although the store did not come back, and says so.
    assert asyncio.all_tasks() == tasks
    assert len([message for message in caplog.messages if "waits for the store no longer" in message]) == 1
    faults.away = False
    # The lease decides when the next one may go on: the first could not say goodbye.
    async with BatchOrchestrator(extract, store=faults.store) as batches:
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        await checker.verify(faults.store, interrupted=["here"], finished=True)


async def test_what_a_store_did_not_mean_to_raise_is_told_and_survived(
    faults: Faults, checker: HistoryChecker, caplog: pytest.LogCaptureFixture
) -> None:
    """An adapter with a mistake in it: the worker begins anew, and the log says why."""
    broken = 1

    def fault(_: ClaimRequest | None) -> Fault | None:
        nonlocal broken
        if broken and len(here.effects.read()) > 40:
            broken -= 1
            raise ZeroDivisionError("a mistake in the adapter")
        return None

    faults.fault = fault
    async with BatchOrchestrator(extract, store=faults.store) as batches:
        await _submit(batches)
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        await checker.verify(faults.store, interrupted=["here"], finished=True)
    assert broken == 0
    assert "a mistake in the adapter" in caplog.text
    assert "lease of worker" not in caplog.text


# ---- one file, and what can be the matter with it ----------------------------------------------------------------


@contextmanager
def _held(path: Path) -> Any:
    """Another process's transaction."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def test_a_file_that_another_process_holds_is_waited_for(tmp_path: Path, checker: HistoryChecker) -> None:
    """Even for longer than the lease: it has not run out, since nobody could renew it, and nobody hears of locks."""
    clock = LeaseClock()
    store = SQLiteStore(file_in(tmp_path), clock=clock)
    async with BatchOrchestrator(extract, worker=Worker(store, lease=LEASE, clock=clock)) as batches:
        await _submit(batches)
        worker_id = batches.worker.worker_id
        await until(lambda: len(here.effects.read()) > 40, "some work")
        worker = batches.worker
        with _held(store.path):
            # One may be under way already, and waits; else this makes one, for claims if for nothing else.
            worker.wake()
            await until_signal(
                lambda: worker.session.journal.phase is JournalPhase.COMMITTING, worker.signals.journal.beginning
            )
            clock.shift += LEASE.total_seconds()
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        assert worker.worker_id == worker_id
        await checker.verify(store, finished=True)
    assert checker.stats.repeated == 0


async def test_work_goes_on_when_a_full_disk_has_room_again(
    tmp_path: Path, checker: HistoryChecker, caplog: pytest.LogCaptureFixture
) -> None:
    store = SQLiteStore(file_in(tmp_path))
    async with BatchOrchestrator(extract, store=store) as batches:
        await _submit(batches)
        await until(lambda: len(here.effects.read()) > 40, "some work")
        assert store._writer is not None
        await store._writer.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())
        await until(lambda: "disk is full" in caplog.text, "the store to notice")
        assert (await batches.snapshot("batch")).counts.ended < DOCUMENTS
        await store._writer.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall())
        assert (await end_of(batches)).value == tally_of(range(DOCUMENTS))
        await checker.verify(store, finished=True)
    assert checker.stats.repeated == 0


# The table, and what the refused row has: page-4's (they are counted from the resolver's).
REFUSALS = {
    "a-result": ("activity", "NEW.execution % 4294967296 = 5 AND NEW.key LIKE 'relate:%'"),
    "a-failure": ("activity", "NEW.execution % 4294967296 = 5 AND NEW.failed"),
    "an-outcome": ("outcome", "NEW.key % 4294967296 = 5 AND instr(NEW.payload, CAST('accepted' AS BLOB))"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_one_documents_data_is_refused_and_its_neighbours_do_not_notice(
    tmp_path: Path, checker: HistoryChecker, refusal: str
) -> None:
    """By a trigger here; by a limit of the database, or a value that it cannot hold, in the field."""
    table, condition = REFUSALS[refusal]
    store = SQLiteStore(file_in(tmp_path))
    await store.open()
    connection = sqlite3.connect(store.path)
    connection.execute(
        f"CREATE TRIGGER refusal BEFORE INSERT ON {table} WHEN {condition} "
        "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    )
    connection.close()
    async with BatchOrchestrator(extract, store=store) as batches:
        await _submit(batches)
        result = await end_of(batches)
        failures = [outcome async for outcome in batches.results("batch") if isinstance(outcome, DocumentFailure)]
        await checker.verify(store, finished=True)
    await store.close()
    assert [(failure.document_id, failure.error_type) for failure in failures] == [("page-4", "FactRejectedError")]
    assert result.value == tally_of([number for number in range(DOCUMENTS) if number != 4])
    assert checker.stats.repeated == 0


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_worker_is_deregistered_however_often_the_store_does_not_answer(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    left, leave = 3, faults.store.leave

    async def failing(worker: WorkerId) -> Sequence[EventRecord]:
        nonlocal left
        left -= 1
        if left < 0:
            return await leave(worker)
        if fault == "after":
            await leave(worker)
            raise CommitUnknownError("the reply was lost")
        raise StoreUnavailableError("not now")

    monkeypatch.setattr(faults.store, "leave", failing)
    await faults.store.open()
    try:
        async with BatchOrchestrator(extract, store=faults.store):
            assert len(await faults.store.workers()) == 1
        assert left == -1
        assert await faults.store.workers() == []
    finally:
        await faults.store.close()
