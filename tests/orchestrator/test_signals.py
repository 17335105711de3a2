"""What a worker's loops fire, so that tests need not sleep."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, STAGES, eventually, moving, within

from durable_batches import BatchOrchestrator, Store, Worker, workflow
from durable_batches.errors import CommitUnknownError, StoreUnavailableError
from durable_batches.lifecycle.records import WorkerId, WorkerRecord
from durable_batches.signals import until
from durable_batches.testing import ManualClock


@workflow(STAGES)
async def shout(document: str) -> str:
    return document.upper()


async def test_a_document_is_claimed_started_and_finished(store: Store) -> None:
    async with BatchOrchestrator(shout, store=store) as batches:
        scheduler, journal = batches.worker.signals.scheduler, batches.worker.signals.journal
        with (
            scheduler.claimed.listen() as claimed,
            scheduler.started.listen() as started,
            scheduler.finished.listen() as finished,
            journal.beginning.listen() as beginning,
            journal.committed.listen() as committed,
        ):
            batch_id = await batches.submit(["x", "y"])
            assert await started.next() == (batch_id, 0)
            assert await started.next() == (batch_id, 1)
            assert {await finished.next(), await finished.next()} == {(batch_id, 0), (batch_id, 1)}
            assert await claimed.matching(bool) == 2
            await within(batches.result(batch_id))
            numbers = [await committed.next() for _ in beginning.heard]
        assert numbers == sorted(set(numbers))
        assert numbers == beginning.heard[: len(numbers)]


async def test_a_worker_with_nothing_to_do_is_idle_and_its_journal_waits(store: Store) -> None:
    async with BatchOrchestrator(shout, store=store) as batches:
        signals = batches.worker.signals
        with signals.scheduler.idle.listen() as idle, signals.journal.waiting.listen() as waiting:
            batches.worker.wake()
            await idle.next()
            await waiting.next()


async def test_a_journal_pauses_while_the_store_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original, away = store.commit, True

    async def commit(*args: Any) -> Any:
        if away:
            raise StoreUnavailableError("away")
        return await original(*args)

    clock = ManualClock()
    async with BatchOrchestrator(shout, worker=Worker(store, clock=clock, drain=NO_DRAIN)) as batches:
        journal = batches.worker.signals.journal
        monkeypatch.setattr(store, "commit", commit)
        with journal.pausing.listen() as pausing, journal.committed.listen() as committed:
            batches.worker.wake()
            number = await pausing.next()
            away = False
            # It sleeps by the time that it is looked at, or will with the next turn.
            await asyncio.sleep(0)
            clock.advance(0.05)
            assert await committed.next() == number


async def test_a_worker_registers_starts_and_deregisters(store: Store) -> None:
    worker = Worker(store, max_in_flight=0)
    membership = worker.signals.membership
    with (
        membership.registered.listen() as registered,
        membership.restarted.listen() as restarted,
        membership.deregistered.listen() as deregistered,
        membership.expired.listen() as expired,
    ):
        async with worker:
            worker_id = await registered.next()
            assert worker_id == worker.worker_id
            assert await restarted.next() == worker_id
            assert list(await expired.next()) == []
        assert await deregistered.next() == worker_id


async def test_a_worker_that_lost_its_lease_has_a_successor(open_store: StoreMaker) -> None:
    clock = ManualClock()
    store = open_store(clock)
    worker = Worker(store, max_in_flight=0, clock=clock)
    membership, lease = worker.signals.membership, worker.signals.lease
    with (
        membership.lease_lost.listen() as lost,
        membership.restarted.listen() as restarted,
        lease.renewed.listen() as renewed,
    ):
        async with worker:
            first = await restarted.next()
            await eventually(lambda: clock.waiting_threads == 1)
            clock.advance(10)
            assert await renewed.next() == first
            await store.expire(dead=[first])
            await eventually(lambda: clock.waiting_threads == 1)
            clock.advance(10)
            assert await lost.next() == first
            second = await restarted.next()
            assert second != first
            assert worker.worker_id == second


async def test_a_registration_whose_reply_was_lost_does_not_stay(
    open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    store = open_store(clock)
    worker = Worker(store, max_in_flight=0, clock=clock)
    membership, register = worker.signals.membership, store.register
    lost: list[WorkerId] = []

    async def register_unheard(record: WorkerRecord, lease: int) -> None:
        await register(record, lease)
        if not lost:
            lost.append(record.worker_id)
            raise CommitUnknownError("the reply was lost")

    with membership.restarted.listen() as restarted, membership.lease_lost.listen() as lease_lost:
        async with worker:
            first = await restarted.next()
            monkeypatch.setattr(store, "register", register_unheard)
            await store.expire(dead=[first])
            await eventually(lambda: clock.waiting_threads == 1)
            clock.advance(10)
            await lease_lost.next()
            async with moving(clock, 0.1):
                third = await restarted.next()
            assert third not in (first, *lost)
            assert [known.worker_id for known in await store.workers()] == [third]
    assert len(lost) == 1


async def test_a_lease_that_cannot_be_renewed_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def beat(self) -> bool:
            raise StoreUnavailableError("away")

        def close(self) -> None:
            pass

    def heart(_: WorkerId) -> Silent:
        return Silent()

    monkeypatch.setattr(store, "heart", heart)
    clock = ManualClock()
    worker = Worker(store, max_in_flight=0, clock=clock)
    with worker.signals.lease.failed.listen() as failed:
        async with worker:
            await eventually(lambda: clock.waiting_threads == 1)
            clock.advance(10)
            assert await failed.next() == worker.worker_id


async def test_the_look_out_wakes_those_who_watch_what_another_process_commits(open_store: StoreMaker) -> None:
    looked_at = asyncio.Event()

    @workflow(STAGES, name="looked-at")
    async def wait(document: str) -> str:
        # A batch that has ended before it is read has nobody left to wake.
        await looked_at.wait()
        return document

    async with (
        BatchOrchestrator(wait, store=open_store(None), max_in_flight=0) as reader,
        BatchOrchestrator(wait, store=open_store(None)) as batches,
    ):
        news = reader.worker.signals.news
        batch_id = await batches.submit(["x"])
        with news.waiting.listen() as waiting:
            watching = asyncio.create_task(reader.result(batch_id))
            await waiting.matching(lambda seen: seen.get(batch_id, 0) > 0)
        with news.woken.listen() as woken, news.looked.listen() as looked:
            looked_at.set()
            assert await woken.next() == batch_id
            assert batch_id in await looked.next()
            assert (await within(watching)).counts.succeeded == 1


async def test_a_condition_can_be_awaited(store: Store) -> None:
    async with BatchOrchestrator(shout, store=store) as batches:
        await batches.submit(["x"])
        await until(lambda: batches.stats.documents_run == 1, batches.worker.signals.scheduler.finished)
