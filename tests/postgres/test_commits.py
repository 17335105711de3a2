"""The optimistic commit: made where nothing has changed since the last one, and only there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from itertools import product
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.postgres.proxy import CommitFinder, Fate, Proxy
from tests.support import eventually, opened, within

from durable_batches import PostgresStore, StoreLockedError, WorkerFencedError
from durable_batches.errors import CommitUnknownError
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.facts import ActivityCompleted
from durable_batches.stores import Claim
from durable_batches.stores.postgres.connection.database import millis
from durable_batches.testing.conformance.scene import Hand, Scene


def store_at(dsn: str, schema: str) -> AbstractAsyncContextManager[PostgresStore]:
    return opened(PostgresStore(dsn, schema=schema))


class Wire:
    """Counts what a store says to its server, and decides what becomes of its commits."""

    def __init__(self, proxy: Proxy) -> None:
        self._commits = CommitFinder()
        self.said = 0
        self.commits = 0
        self.fate: Fate = "pass"
        proxy.fate = self._decide

    def _decide(self, data: bytes) -> Fate:
        self.said += 1
        if not self._commits.is_in(data):
            return "pass"
        self.commits += 1
        return self.fate


@asynccontextmanager
async def through_a_wire(dsn: str, schema: str) -> AsyncGenerator[tuple[PostgresStore, Wire]]:
    port = urlsplit(dsn).port or 0
    with Proxy(port) as proxy:
        wire = Wire(proxy)
        async with store_at(dsn.replace(f":{port}/", f":{proxy.port}/"), schema) as store:
            yield store, wire


def result(claim: Claim, name: str, *, mark: int | None = None) -> ActivityCompleted:
    taken = claim.execution
    mark = taken.mark if mark is None else mark
    return ActivityCompleted(
        taken.batch_id, taken.run, taken.position, taken.attempt, f"step:1:{name}#0", name.encode(), mark
    )


async def two_documents(store: PostgresStore, *, lease: float = 30.0) -> tuple[Scene, Hand, list[Claim]]:
    scene = Scene(store, asyncio.sleep)
    await scene.batch(2)
    hand = await scene.worker(lease=lease)
    return scene, hand, list(await hand.claim())


@pytest.mark.parametrize("stages", [[0], [0, 1, 2]], ids=["checkpoints", "checkpoints and stages"])
async def test_a_commit_takes_one_round_trip(postgres_dsn: str, migrated_schema: str, stages: list[int]) -> None:
    async with through_a_wire(postgres_dsn, migrated_schema) as (store, wire):
        scene, hand, claims = await two_documents(store)
        said: list[int] = []
        for number, (stage, claim) in enumerate(product(stages * (6 // len(stages)), claims)):
            before = wire.said
            hand.number += 1
            facts = [result(claim, f"step-{number:02}", mark=stage)]
            assert not (await store.commit(hand.worker_id, hand.number, facts)).refused
            said.append(wire.said - before)
        # The first of each kind has its statement prepared; and now and then a notification is sent at that moment.
        assert min(said) == sorted(said)[len(said) // 2] == 1
        await scene.check()
        for claim in claims:
            recorded = await scene.checkpoints(claim.execution.batch_id, claim.execution.position)
            assert len(recorded) == 6


async def test_what_another_process_has_changed_is_noticed(postgres_dsn: str, migrated_schema: str) -> None:
    """A command, and another worker's claim and report: nothing of them is overwritten by what was known before."""
    async with store_at(postgres_dsn, migrated_schema) as store, store_at(postgres_dsn, migrated_schema) as elsewhere:
        scene = Scene(store, asyncio.sleep)
        batch_id = await scene.batch(3)
        hand = await scene.worker()
        other = await scene.worker(store=elsewhere)
        mine = await hand.take()
        await hand.report(result(mine, "first", mark=0))
        theirs = await other.take()
        await hand.report(result(mine, "second", mark=1))
        await other.report(result(theirs, "first", mark=2))
        await hand.report(result(mine, "third", mark=2))
        await elsewhere.control(batch_id, Cancel("request", "enough"))
        # What was paid for is kept, and changes nothing.
        assert (await hand.commit(result(mine, "fourth", mark=2))).refused == {0: "ended"}
        assert (await scene.look(batch_id)).state == "cancelled"
        assert len(await scene.checkpoints(batch_id, mine.execution.position)) == 4
        await elsewhere.expire(dead=[hand.worker_id])
        with pytest.raises(WorkerFencedError):
            await store.commit(hand.worker_id, hand.number + 1, [result(mine, "fifth")])
        await scene.check()


async def until_it_waits(holder: asyncpg.Connection[asyncpg.Record]) -> None:
    """Wait until some session waits for what this one has locked."""
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"

    async def waits() -> bool:
        return bool(await holder.fetchval(blocked))

    await eventually(waits)


@pytest.mark.parametrize("mark", [None, 1], ids=["a checkpoint", "a checkpoint and a stage"])
async def test_what_another_session_changes_at_the_same_moment_is_noticed(
    postgres_dsn: str, migrated_schema: str, mark: int | None
) -> None:
    """A commit that waits for a batch's row checks it as it is when it gets it."""
    async with store_at(postgres_dsn, migrated_schema) as store:
        scene, hand, claims = await two_documents(store)
        await hand.report(result(claims[0], "first"))
        batch_id = claims[0].execution.batch_id
        session = await asyncpg.connect(postgres_dsn)
        try:
            async with session.transaction():
                await session.execute(f"UPDATE {migrated_schema}.batch SET paused = true WHERE batch_id = $1", batch_id)
                committing = asyncio.create_task(hand.report(result(claims[0], "second", mark=mark)))
                if mark is None:
                    # Checkpoints alone wait for no lock.
                    await within(committing)
                else:
                    await until_it_waits(session)
                    assert not committing.done()
        finally:
            await session.close()
        await within(committing)
        assert (await scene.look(batch_id)).paused
        assert len(await scene.checkpoints(batch_id)) == 2
        await hand.report(hand.succeeded(claims[0]))


async def test_a_commit_waits_for_a_lock_no_longer_than_its_lease_allows(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """Meanwhile the lease cannot be renewed, since the commit holds the worker's row."""
    # Everything else would wait for an hour.
    hour = timedelta(hours=1)
    async with opened(
        PostgresStore(postgres_dsn, schema=migrated_schema, statement_timeout=hour, lock_timeout=hour)
    ) as store:
        _, hand, claims = await two_documents(store, lease=3.0)
        await hand.report(result(claims[0], "first"))
        # A third of it.
        assert store._timeouts.lock_timeout(hand.worker_id) == millis(1.0)
        session = await asyncpg.connect(postgres_dsn)
        try:
            async with session.transaction():
                await session.execute(f"SELECT 1 FROM {migrated_schema}.batch FOR UPDATE")
                # The first in one statement; after it has waited in vain, the next under locks.
                for _ in ("in one statement", "under locks"):
                    with pytest.raises(StoreLockedError):
                        await within(store.commit(hand.worker_id, hand.number + 1, [result(claims[0], "late", mark=2)]))
        finally:
            await session.close()


async def test_a_worker_that_is_expired_while_it_commits_is_fenced(postgres_dsn: str, migrated_schema: str) -> None:
    async with store_at(postgres_dsn, migrated_schema) as store:
        scene, hand, claims = await two_documents(store)
        await hand.report(result(claims[0], "first"))
        session = await asyncpg.connect(postgres_dsn)
        try:
            async with session.transaction():
                await session.execute(f"DELETE FROM {migrated_schema}.worker")
                late = asyncio.create_task(
                    store.commit(hand.worker_id, hand.number + 1, [result(claims[0], "late", mark=2)])
                )
                await until_it_waits(session)
                assert not late.done()
        finally:
            await session.close()
        with pytest.raises(WorkerFencedError):
            await within(late)
        assert len(await scene.checkpoints(claims[0].execution.batch_id)) == 1


@pytest.mark.parametrize("fate", ["cut before", "cut after"])
async def test_one_whose_reply_is_lost_is_made_once(postgres_dsn: str, migrated_schema: str, fate: Fate) -> None:
    async with through_a_wire(postgres_dsn, migrated_schema) as (store, wire):
        scene, hand, claims = await two_documents(store)
        await hand.report(result(claims[0], "first"), result(claims[1], "first"))
        await hand.report(result(claims[0], "second"))
        wire.fate = fate
        before = wire.commits
        facts = [result(claims[0], "third", mark=1), result(claims[1], "second", mark=1)]
        with pytest.raises(CommitUnknownError):
            await store.commit(hand.worker_id, hand.number + 1, facts)
        assert wire.commits == before + 1
        wire.fate = "pass"
        await hand.report(*facts)
        batch_id = claims[0].execution.batch_id
        assert [len(await scene.checkpoints(batch_id, position)) for position in (0, 1)] == [3, 2]
        await hand.report(*(hand.succeeded(claim) for claim in claims))
        assert (await scene.look(batch_id)).state == "completed"


async def test_a_number_is_used_once_wherever_that_was(postgres_dsn: str, migrated_schema: str) -> None:
    async with store_at(postgres_dsn, migrated_schema) as store, store_at(postgres_dsn, migrated_schema) as elsewhere:
        scene, hand, claims = await two_documents(store)
        await hand.report(result(claims[0], "first"))
        number = hand.number + 1
        await elsewhere.commit(hand.worker_id, number, [result(claims[0], "second")])
        await store.commit(hand.worker_id, number, [result(claims[0], "never")])
        recorded = await scene.checkpoints(claims[0].execution.batch_id)
        assert [checkpoint.payload for checkpoint in recorded] == [b"first", b"second"]


async def test_a_refused_fact_is_committed_under_locks(postgres_dsn: str, migrated_schema: str) -> None:
    """Its refusal is kept with the number, for when the reply is lost."""
    async with store_at(postgres_dsn, migrated_schema) as store:
        scene, hand, claims = await two_documents(store)
        await hand.report(result(claims[0], "first"))
        stale = result(claims[0], "stale")._replace(attempt=7)
        number = hand.number + 1
        facts = [result(claims[0], "second", mark=1), stale]
        assert (await hand.commit(*facts)).refused == {1: "superseded"}
        assert (await store.commit(hand.worker_id, number, facts)).refused == {1: "superseded"}
        await hand.report(result(claims[1], "first"))
        await scene.check()


async def test_the_servers_clock_is_what_a_commit_goes_by(postgres_dsn: str, migrated_schema: str) -> None:
    """Also where it is reckoned, and not asked for: the times of events never go back."""
    async with store_at(postgres_dsn, migrated_schema) as store:
        _, hand, claims = await two_documents(store)
        for number in range(20):
            await hand.report(result(claims[0], f"step-{number}", mark=min(number, 2)))
            await hand.report(result(claims[1], f"step-{number}"))
        await hand.report(*(hand.succeeded(claim) for claim in claims))
        events = await store.events(claims[0].execution.batch_id, after=0, limit=100)
        times = [event.at for event in events]
        assert times == sorted(times)
        connection = await asyncpg.connect(postgres_dsn)
        now = await connection.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        await connection.close()
        assert now - 5_000_000 < times[-1] <= now


async def test_a_time_that_is_computed_too_low_dates_no_event_before_the_last(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """It is too low by as long as the server's answer took, which under load is much."""
    async with store_at(postgres_dsn, migrated_schema) as store:
        _, hand, claims = await two_documents(store)
        (cache,) = store._commits._caches.values()
        for stage in (0, 1, 2):
            now = cache.server_time()
            assert now is not None
            cache.note_time(now - 3_600_000_000)
            await hand.report(result(claims[0], f"step-{stage}", mark=stage))
        events = await store.events(claims[0].execution.batch_id, after=0, limit=100)
        times = [event.at for event in events]
        assert times == sorted(times)


async def test_two_workers_on_one_batch_do_not_go_wrong(postgres_dsn: str, migrated_schema: str) -> None:
    """Both take it again and again that the batch is as they left it."""
    async with store_at(postgres_dsn, migrated_schema) as store, store_at(postgres_dsn, migrated_schema) as elsewhere:
        scene = Scene(store, asyncio.sleep)
        batch_id = await scene.batch(8)
        hands = [await scene.worker(store=place) for place in (store, elsewhere)]
        held = [list(await hand.claim(4)) for hand in hands]

        async def work(place: PostgresStore, hand: Hand, claims: list[Claim]) -> None:
            (cache,) = place._commits._caches.values()
            for stage in range(3):
                for claim in claims:
                    cache._not_before = 0.0  # without the pause after another worker was seen there
                    hand.number += 1
                    facts = [result(claim, f"step-{stage}", mark=stage)]
                    assert not (await place.commit(hand.worker_id, hand.number, facts)).refused
            hand.number += 1
            await place.commit(hand.worker_id, hand.number, [hand.succeeded(claim) for claim in claims])

        places = (store, elsewhere)
        await within(asyncio.gather(*(work(*each) for each in zip(places, hands, held, strict=True))))
        assert (await scene.look(batch_id)).state == "completed"
        assert [len(await scene.checkpoints(batch_id, position)) for position in range(8)] == [3] * 8
        await scene.check()
