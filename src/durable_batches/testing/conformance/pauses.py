"""Pauses of a batch: by an operator, because a provider refuses calls for its account, and for a spent budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from itertools import product

from durable_batches.lifecycle.commands import Cancel, PauseBatch, ResumeBatch, UpdateBatch
from durable_batches.lifecycle.events import BatchPaused, decode_event
from durable_batches.lifecycle.spending import Spend, encode_spends
from durable_batches.lifecycle.states import BatchId
from durable_batches.testing.conformance.base import Conformance, from_level_2
from durable_batches.testing.conformance.scene import Scene, all_events

__all__ = ["PausesConformance"]


class PausesConformance(Conformance):
    """`PauseBatch` and `ResumeBatch`; `ExecutionReleased` of reason "quota", and `ProviderAnswered`."""

    # ---- every level -----------------------------------------------------------------------------------------

    async def test_nothing_is_claimed_of_what_an_operator_has_paused(self, scene: Scene) -> None:
        """From the pause on, until the batch is resumed; what runs may finish, or be released, meanwhile."""
        batch_id = await scene.batch(4)
        hand = await scene.worker(lease=1_000)
        finishing, draining = await hand.claim(2)
        assert await scene.give(batch_id, PauseBatch("pause", "enough \0 for today"))
        assert not await scene.give(batch_id, PauseBatch("another"))
        await hand.report(hand.succeeded(finishing), hand.released(draining))
        assert not await hand.claim()
        paused = await _last_pause(scene, batch_id)
        assert (paused.reason, paused.note, paused.until) == ("operator", "enough \0 for today", None)
        assert await scene.give(batch_id, ResumeBatch("resume"))
        assert not await scene.give(batch_id, ResumeBatch("another resume"))
        assert len(await hand.claim()) == 3

    async def test_a_pause_meets_whatever_happens_to_its_batch(self, scene: Scene) -> None:
        """In every order of the transactions: the batch ends, or waits, and nothing is started while it is paused."""
        hand = await scene.worker(lease=100_000)
        for other, turn in product(["claim", "end", "refusal", "cancel"], range(3)):
            batch_id = await scene.batch(2)
            moves: dict[str, Callable[[], Awaitable[object]]] = {
                "pause": partial(scene.store.control, batch_id, PauseBatch("pause")),
                "resume": partial(scene.store.control, batch_id, ResumeBatch("resume")),
                "claim": hand.claim,
                "cancel": partial(scene.store.control, batch_id, Cancel("cancel", "")),
            }
            order = ["pause", "resume"]
            order.insert(turn, other)
            first = await hand.take()
            moves["end"] = partial(hand.report, hand.succeeded(first))
            moves["refusal"] = partial(hand.report, hand.refused(first))
            for number, move in enumerate(order):
                await moves[move]()
                record = await scene.look(batch_id)
                paused = order.index("pause") <= number < order.index("resume") and not record.ended
                assert record.paused == paused, f"after {move} of {order}"
                assert not (record.free and (paused or record.ended)), f"claims look here after {move} of {order}"
            # Nothing of it is claimed for the next one.
            await scene.cancel(batch_id, "the end")

    async def test_nothing_of_a_paused_batch_is_claimed_until_the_pause_is_over(self, scene: Scene) -> None:
        """A refusal pauses the batch; after `until` one execution is claimed, and all others once it has an answer."""
        batch_id = await scene.batch(4)
        hand, other = await scene.worker(lease=1_000), await scene.worker(lease=1_000)
        claims = await hand.claim(2)
        await hand.report(hand.refused(claims[0], note="no credit \0 left"), hand.released(claims[1]))
        paused = await _last_pause(scene, batch_id)
        assert (paused.reason, paused.note) == ("quota", "no credit \0 left")
        assert paused.until is not None
        assert not await other.claim()
        await scene.pass_time((paused.until - paused.at).total_seconds() - 1)
        assert not await other.claim()
        await scene.pass_time(2)
        look = await other.take(10)
        assert not await hand.claim()
        await other.report(other.answered(look))
        assert len(await hand.claim()) == 3

    async def test_a_look_in_vain_pauses_the_batch_anew(self, scene: Scene) -> None:
        """Each is later than the one before; what ran meanwhile is finished, and changes nothing."""
        batch_id = await scene.batch(4)
        hand = await scene.worker(lease=10_000)
        refused, finishing = await hand.claim(2)
        await hand.report(hand.refused(refused))
        first = await _last_pause(scene, batch_id)
        assert first.until is not None
        await scene.pass_time((first.until - first.at).total_seconds() + 1)
        look = await hand.take()
        await hand.report(hand.answered(finishing), hand.succeeded(finishing), hand.refused(look))
        second = await _last_pause(scene, batch_id)
        assert second.until is not None
        assert second.until - second.at > first.until - first.at
        assert not await hand.claim()

    async def test_a_paused_batch_fails_at_its_deadline(self, scene: Scene) -> None:
        """Paused or not: a claim ends it."""
        batch_id = await scene.batch(2, deadline=10)
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.refused(await hand.take()))
        await scene.pass_time(11)
        assert not await hand.claim()
        assert (await scene.look(batch_id)).state == "failed"

    # ---- level 2 -----------------------------------------------------------------------------------------------

    async def test_a_paused_batch_sleeps(self, scene: Scene) -> None:
        """`next_due` is the end of the pause, and a claim in vain is told when to look again."""
        from_level_2(scene)
        batch_id = await scene.batch(2)
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.refused(await hand.take()))
        record = await scene.look(batch_id)
        assert record.free == 0
        assert record.next_due is not None
        committed = await hand.commit(claim=hand.request())
        assert committed.retry_in is not None
        assert 0 < committed.retry_in <= 30_000_000
        assert await scene.look(batch_id) == record, "a claim in vain writes nothing"

    async def test_older_libraries_leave_a_paused_batch_alone(self, scene: Scene) -> None:
        """`needs` is that of pauses while one is in force, and as before when it is over."""
        from_level_2(scene)
        batch_id = await scene.batch(2)
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.refused(await hand.take()))
        assert (await scene.look(batch_id)).needs == 1
        await scene.pass_time(31)
        look = await hand.take()
        await hand.report(hand.answered(look), hand.released(look))
        assert (await scene.look(batch_id)).needs == 0

    async def test_the_commit_that_spends_the_budget_pauses_the_batch(self, scene: Scene) -> None:
        """What is recorded is counted in the same transaction; from then on nothing is claimed until it is raised."""
        from_level_2(scene)
        batch_id = await scene.batch(3, concurrency=2)
        assert await scene.give(batch_id, UpdateBatch("limit", '{"budget":{"cost":"0.03"}}'))
        hand = await scene.worker()
        one, two = await hand.claim(2)
        await hand.report(hand.recorded(one, "a", spent=_spent("0.02")))
        assert not (await scene.look(batch_id)).paused
        await hand.report(hand.recorded(two, "b", spent=_spent("0.02")), hand.succeeded(one))
        assert (await scene.look(batch_id)).paused, "write all of Writes.batches, also of a commit of checkpoints"
        paused = await _last_pause(scene, batch_id)
        assert (paused.reason, paused.note) == ("budget", "0.04 and 20 tokens are spent, of 0.03")
        await hand.report(hand.succeeded(two))
        assert not await hand.claim()
        assert not await scene.give(batch_id, UpdateBatch("too little", '{"budget":{"cost":"0.04"}}'))
        assert await scene.give(batch_id, UpdateBatch("more", '{"budget":{"cost":"0.05"}}'))
        assert [claim.execution.position for claim in await hand.claim()] == [2]


def _spent(cost: str) -> str:
    spent = encode_spends([Spend("ask", 0, "", 10, 8, 2, Decimal(cost), 0)])
    assert spent is not None
    return spent


async def _last_pause(scene: Scene, batch_id: BatchId) -> BatchPaused:
    events = [decode_event(event) for event in await all_events(scene.store, batch_id)]
    pauses = [event for event in events if isinstance(event, BatchPaused)]
    assert pauses, "the refusal must write a batch_paused event: write all of Writes.events"
    return pauses[-1]
