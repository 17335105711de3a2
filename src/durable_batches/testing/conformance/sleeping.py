"""Claims from level 2 on: the order of what is due, and batches that sleep while nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import pytest

from durable_batches.lifecycle.commands import Seal
from durable_batches.lifecycle.isolation import isolation_micros
from durable_batches.lifecycle.policies import RetryFailed
from durable_batches.lifecycle.records import Claim, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import Store
from durable_batches.testing.conformance.base import Conformance, from_level_2
from durable_batches.testing.conformance.scene import LETTERS, Hand, Scene

__all__ = ["SleepingConformance", "put_to_sleep"]

SECOND = 1_000_000
HOUR = 3_600 * SECOND


class SleepingConformance(Conformance):
    """`commit` with a claim, in stores of level 2."""

    # ---- order ---------------------------------------------------------------------------------------------------

    async def test_woken_before_new_before_isolated(self, scene: Scene) -> None:
        """A claim takes what has become due by time, then what was never started, and then what has crashed often."""
        from_level_2(scene)
        await scene.batch(4, policy=_retry_after(10))
        hand = await scene.worker(lease=1_000)
        for _ in range(2):
            dead = await scene.worker()
            assert (await dead.take(1)).execution.position == 0
            await scene.store.expire(dead=[dead.worker_id])
        # When its time is up, it is claimed beside others, and after them.
        await scene.pass_time(isolation_micros(2) / 1_000_000 + 1)
        one, two, three = await hand.claim(3)
        await hand.report(hand.released(two), hand.failed(three), hand.released(one))
        await scene.pass_time(20)
        assert [_positions(await hand.claim(1)) for _ in range(4)] == [[3], [1], [2], [0]]

    async def test_a_retry_is_not_held_up_by_its_batch(self, scene: Scene) -> None:
        """However many documents were never started, a retry whose time has come is claimed next."""
        from_level_2(scene)
        await scene.batch(300, concurrency=2, policy=_retry_after(10))
        hand = await scene.worker(lease=1_000)
        failed, other = await hand.claim(2)
        await hand.report(hand.failed(failed))
        (later,) = await hand.claim(1)
        assert later.execution.position == 2
        await scene.pass_time(11)
        committed = await hand.commit(hand.succeeded(other), claim=hand.request())
        assert _positions(committed.claims) == [failed.execution.position]

    async def test_one_range_after_the_other_within_a_claim(self, scene: Scene) -> None:
        """A claim that finds fewer woken documents than it may take goes on with those that were never started."""
        from_level_2(scene)
        await scene.batch(9, policy=_retry_after(10))
        hand = await scene.worker(lease=1_000)
        claims = await hand.claim(3)
        await hand.report(*[hand.failed(claim) for claim in claims])
        await scene.pass_time(11)
        assert _positions(await hand.claim(2)) == [0, 1]
        assert _positions(await hand.claim(3)) == [2, 3, 4]
        assert _positions(await hand.claim(9)) == [5, 6, 7, 8]

    # ---- sleep ---------------------------------------------------------------------------------------------------

    async def test_a_batch_with_nothing_due_sleeps(self, scene: Scene) -> None:
        """`free` is 0 and `next_due` the time of the next retry; the claim that finds it due wakes the batch."""
        from_level_2(scene)
        batch_id = await scene.batch(1, policy=_retry_after(60))
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take()))
        record = await scene.look(batch_id)
        due = (await scene.document(batch_id, 0)).execution.due
        assert (record.free, record.next_due, record.wake) == (0, due, None)
        committed = await hand.commit(claim=hand.request())
        assert not committed.claims
        assert committed.retry_in is not None, "a sleeping batch is something to look again for"
        assert 0 < committed.retry_in <= 60 * SECOND
        await scene.pass_time(61)
        claim = await hand.take()
        assert (claim.batch.free, claim.batch.next_due) == (0, None)
        await hand.report(hand.succeeded(claim))

    async def test_a_batch_sleeps_until_the_first_of_many(self, scene: Scene) -> None:
        """Each claim and each report leaves the time at which the next document is due, be it earlier or later."""
        from_level_2(scene)
        batch_id = await scene.batch(2, policy=_retry_after(10))
        hand = await scene.worker(lease=1_000)
        one, two = await hand.claim(2)
        await hand.report(hand.failed(one))
        await scene.pass_time(11)
        await hand.report(hand.failed(await hand.take()))
        await self._sleeps_until(scene, batch_id, position=0)  # for 20 s: the delay doubles
        await hand.report(hand.failed(two))
        await self._sleeps_until(scene, batch_id, position=1)  # for 10 s
        await scene.pass_time(11)
        claim = await hand.take()
        assert claim.execution.position == 1
        await self._sleeps_until(scene, batch_id, position=0)
        await hand.report(hand.succeeded(claim))
        await self._sleeps_until(scene, batch_id, position=0)
        await scene.pass_time(10)
        assert (await hand.take()).execution.position == 0

    async def test_a_batch_without_a_slot_sleeps_when_it_has_one(self, scene: Scene) -> None:
        """A batch that is full is no batch that sleeps; when a slot is free again, it sleeps if nothing is due."""
        from_level_2(scene)
        batch_id = await scene.batch(2, concurrency=1, policy=_retry_after(60))
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take()))
        claim = await hand.take()
        record = await scene.look(batch_id)
        assert (record.free, record.next_due) == (0, None)
        await hand.report(hand.succeeded(claim))
        await self._sleeps_until(scene, batch_id, position=0)
        await scene.pass_time(61)
        assert (await hand.take()).execution.position == 0

    async def test_a_full_batch_wakes_when_it_has_a_slot(self, scene: Scene) -> None:
        """What has become due while the batch was full can be claimed with the commit that frees a slot."""
        from_level_2(scene)
        await scene.batch(2, concurrency=1, policy=_retry_after(10))
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take()))
        claim = await hand.take()
        await scene.pass_time(11)
        assert not await hand.claim()
        committed = await hand.commit(hand.succeeded(claim), claim=hand.request())
        assert _positions(committed.claims) == [0]

    async def test_a_release_wakes_the_batch(self, scene: Scene) -> None:
        """What its worker releases, or has died with, can be claimed at once, whatever else waits."""
        from_level_2(scene)
        batch_id = await scene.batch(3, policy=_retry_after(60))
        hand, dead = await scene.worker(lease=1_000), await scene.worker()
        failed, released = await hand.claim(2)
        await dead.take()
        await hand.report(hand.failed(failed))
        await self._sleeps_until(scene, batch_id, position=0)
        await hand.report(hand.released(released))
        assert (await hand.take()).execution.position == 1
        await self._sleeps_until(scene, batch_id, position=0)
        await scene.store.expire(dead=[dead.worker_id])
        assert (await hand.take()).execution.position == 2

    async def test_a_resolver_sleeps_until_its_retry(self, scene: Scene) -> None:
        """A batch whose resolver waits sleeps as well."""
        from_level_2(scene)
        batch_id = await scene.batch(0, resolver=True)
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take(), retry_in=60))
        await self._sleeps_until(scene, batch_id, position=-1)
        assert not await hand.claim()
        await scene.pass_time(61)
        await hand.report(hand.succeeded(await hand.take()))
        assert (await scene.look(batch_id)).state == "completed"

    async def test_the_last_document_wakes_the_resolver(self, scene: Scene) -> None:
        """A batch that has slept is awake as soon as its resolver can be claimed."""
        from_level_2(scene)
        await scene.batch(1, resolver=True, policy=_retry_after(10))
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take()))
        await scene.pass_time(11)
        committed = await hand.commit(hand.succeeded(await hand.take()), claim=hand.request())
        assert _positions(committed.claims) == [-1]

    async def test_a_sleeping_batch_has_its_deadline(self, scene: Scene) -> None:
        """The deadline ends it while it sleeps, and `retry_in` says when to look."""
        from_level_2(scene)
        batch_id = await scene.batch(1, policy=_retry_after(3_600), deadline=60)
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take()))
        committed = await hand.commit(claim=hand.request())
        assert committed.retry_in is not None
        assert 0 < committed.retry_in <= 60 * SECOND
        await scene.pass_time(61)
        assert not await hand.claim()
        record = await scene.look(batch_id)
        assert (record.state, record.free, record.next_due) == ("failed", 0, None)
        assert (await hand.commit(claim=hand.request())).retry_in is None, "nothing of it is due any more"

    async def test_batches_that_wake_share_a_claim_with_others(self, scene: Scene) -> None:
        """Batches whose time has come and batches that are awake are served in one order, by `served`."""
        from_level_2(scene)
        slept = await scene.batch(1, policy=_retry_after(10))
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take()))
        await scene.pass_time(5)
        awake = await scene.batch(9)
        await scene.pass_time(6)
        claims = await hand.claim(4)
        assert [claim.execution.batch_id for claim in claims].count(awake) == 3
        assert [claim.execution.batch_id for claim in claims].count(slept) == 1

    async def test_a_wait_for_work_ends_when_a_batch_wakes(self, scene: Scene) -> None:
        """`wait` returns for a batch that sleeps once its time has come, and not before."""
        from_level_2(scene)
        await scene.batch(1, policy=_retry_after(60))
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take()))
        waiting = asyncio.create_task(scene.store.wait({}, work=[LETTERS], timeout=HOUR))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "nothing can be claimed yet"
        waiting.cancel()
        await asyncio.wait([waiting])
        await scene.pass_time(61)
        await asyncio.wait_for(scene.store.wait({}, work=[LETTERS], timeout=HOUR), 10)

    async def test_another_process_wakes_the_batch(self, scene: Scene, second_store: Store) -> None:
        """What one process put to sleep, another one claims when its time has come."""
        from_level_2(scene)
        await scene.batch(1, policy=_retry_after(60))
        hand, other = await scene.worker(lease=1_000), await scene.worker(lease=1_000, store=second_store)
        await hand.report(hand.failed(await hand.take()))
        committed = await other.commit(claim=other.request())
        assert not committed.claims
        assert committed.retry_in is not None
        await scene.pass_time(61)
        await asyncio.wait_for(second_store.wait({}, work=[LETTERS], timeout=HOUR), 10)
        assert (await other.take()).execution.position == 0

    # ---- cost ----------------------------------------------------------------------------------------------------

    async def test_a_sleeping_batch_costs_a_claim_nothing(self, scene: Scene) -> None:
        """A claim reads no more beside twenty batches that sleep than beside two, where the store counts its reads."""
        from_level_2(scene)
        if await self.count_reads(scene.store) is None:
            pytest.skip("the store does not count what it reads")
        hand = await scene.worker(lease=1_000)
        await put_to_sleep(scene, hand, 2)
        beside_two = await self._read_by_a_claim(scene, hand)
        await put_to_sleep(scene, hand, 18)
        assert await self._read_by_a_claim(scene, hand) <= beside_two, "a claim must not look at a batch that sleeps"

    async def _read_by_a_claim(self, scene: Scene, hand: Hand) -> int:
        before = await self.count_reads(scene.store)
        hand.number += 1
        committed = await scene.store.commit(hand.worker_id, hand.number, [], hand.request())
        after = await self.count_reads(scene.store)
        assert not committed.claims
        assert committed.retry_in is not None
        assert before is not None
        assert after is not None
        return after - before

    @staticmethod
    async def _sleeps_until(scene: Scene, batch_id: BatchId, *, position: int) -> None:
        record = await scene.look(batch_id)
        due = (await scene.document(batch_id, position)).execution.due
        assert (record.free, record.next_due) == (0, due)


async def put_to_sleep(scene: Scene, hand: Hand, batches: int) -> None:
    """Create batches whose only document waits for its retry, without the scene's checks, which look at all of them."""
    store = scene.store
    for _ in range(batches):
        batch_id = await scene.load(scene.record(policy=_retry_after(3_600)), 1)
        await store.control(batch_id, Seal(WorkerId("loader"), 1))
        claimed = await store.commit(hand.worker_id, hand.number + 1, [], hand.request())
        failed = [hand.failed(claim) for claim in claimed.claims]
        assert len(failed) == 1, "the batches before it sleep"
        hand.number += 2
        await store.commit(hand.worker_id, hand.number, failed)


def _retry_after(seconds: float) -> RetryFailed:
    return RetryFailed(max_attempts=9, backoff=timedelta(seconds=seconds))


def _positions(claims: Iterable[Claim]) -> list[int]:
    return [claim.execution.position for claim in claims]
