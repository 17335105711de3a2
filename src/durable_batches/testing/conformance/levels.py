"""What a store keeps from level 2 on: the fields of the records that have defaults."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

from durable_batches.lifecycle.batch_core import decode_core
from durable_batches.lifecycle.commands import Seal
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import GENERATION, BatchRecord, WorkerId, WorkerRecord
from durable_batches.lifecycle.spending import Spend, encode_spends, spending_of
from durable_batches.lifecycle.states import BatchId
from durable_batches.testing.conformance.base import Conformance, from_level_2
from durable_batches.testing.conformance.scene import Scene

__all__ = ["LevelsConformance"]


class LevelsConformance(Conformance):
    """`capabilities.level`, and batches that need a newer library."""

    # ---- every level -----------------------------------------------------------------------------------------

    async def test_a_batch_that_needs_a_newer_library_is_not_claimed(self, scene: Scene) -> None:
        """Nothing is claimed of a batch that needs more than `GENERATION`, and its deadline does not end it."""
        batch_id = await scene.sealed(replace(scene.record(deadline=60), needs=GENERATION + 1), 2)
        other = await scene.batch(1)
        hand = await scene.worker(lease=1_000)
        await scene.pass_time(61)
        record = await scene.look(batch_id)
        assert [claim.execution.batch_id for claim in await hand.claim()] == [other]
        assert await scene.look(batch_id) == record

    # ---- level 2 -----------------------------------------------------------------------------------------------

    async def test_a_batch_that_needs_a_newer_library_is_nothing_to_wait_for(self, scene: Scene) -> None:
        """Neither its executions nor its deadline are something that the worker looks again for."""
        from_level_2(scene)
        await scene.sealed(replace(scene.record(deadline=60), needs=GENERATION + 1), 2)
        hand = await scene.worker()
        committed = await hand.commit(claim=hand.request())
        assert (list(committed.claims), committed.retry_in) == ([], None)

    async def test_all_fields_of_a_batch_are_stored(self, scene: Scene) -> None:
        """Also those that have defaults, and writes to the batch leave alone what they do not change."""
        from_level_2(scene)
        fields = {"priority": -3, "partition": "tenant 文", "purged": 2}
        record = replace(scene.record(), next_due=5, **fields)  # type: ignore[arg-type]  # each is of its field's type
        batch_id = await scene.load(record, 1)
        assert await scene.look(batch_id) == record
        await scene.store.control(batch_id, Seal(WorkerId("loader"), 1))
        hand = await scene.worker()
        claim = await hand.take()
        assert claim.batch == await scene.look(batch_id)
        await hand.report(hand.succeeded(claim))
        ended = await scene.look(batch_id)
        assert {name: getattr(ended, name) for name in fields} == fields
        assert ended.ended_at is not None

    async def test_batches_of_a_higher_priority_are_served_first(self, scene: Scene) -> None:
        """A claim goes through the batches by priority, and by `served` only among those of the same."""
        from_level_2(scene)
        low = await scene.sealed(replace(scene.record(), priority=-1), 3)
        high = await scene.sealed(replace(scene.record(), priority=1), 3)
        hand = await scene.worker()
        served: list[str] = []
        for _ in range(4):
            await scene.pass_time(0.001)
            served.append((await hand.claim(1))[0].execution.batch_id)
        assert served == [high, high, high, low]

    async def test_a_claim_takes_only_from_the_batches_that_it_names(self, scene: Scene) -> None:
        """`ClaimRequest.batches`, `metadata` and `without` say what to take from and to wait for, by id or labels."""
        from_level_2(scene)
        named = await scene.batch(2)
        labelled = await scene.sealed(scene.record(metadata={"team": "Müller", "kind": "a"}, deadline=60), 2)
        other = await scene.sealed(scene.record(metadata={"team": "Müller", "kind": "b"}), 2)
        hand = await scene.worker(lease=1_000)
        labels = {"kind": "a", "team": "Müller"}

        async def taken(**wanted: Any) -> list[BatchId]:
            committed = await hand.commit(claim=hand.request(**wanted))
            await hand.report(*[hand.released(claim) for claim in committed.claims])
            return sorted({claim.execution.batch_id for claim in committed.claims})

        assert await taken() == sorted([named, labelled, other])
        assert await taken(batches=[named, BatchId("unknown")]) == [named]
        assert await taken(metadata=labels) == [labelled]
        assert await taken(metadata={"team": "Müller"}) == sorted([labelled, other])
        assert await taken(batches=[named], metadata=labels) == sorted([named, labelled])
        assert await taken(batches=[]) == []
        assert await taken(metadata={"team": "Müller", "kind": "c"}) == []
        assert await taken(batches=[named], workflows=[("others", "1")]) == []
        assert await taken(without=[named]) == sorted([labelled, other])
        assert await taken(without=[named, labelled, other]) == []
        assert await taken(batches=[named, other], without=[other, BatchId("unknown")]) == [named]
        assert await taken(metadata={"team": "Müller"}, without=[other]) == [labelled]
        # Neither the others' due times nor their deadlines are its concern.
        await hand.claim(100)
        assert (await hand.commit(claim=hand.request(batches=[named, other]))).retry_in is None
        committed = await hand.commit(claim=hand.request(metadata=labels))
        assert committed.retry_in is not None
        assert 0 < committed.retry_in <= 60_000_000
        await scene.pass_time(61)
        await hand.commit(claim=hand.request(batches=[named]))
        assert not (await scene.look(labelled)).ended
        await hand.commit(claim=hand.request(metadata=labels))
        assert (await scene.look(labelled)).state == "failed"

    async def test_checkpoints_say_their_stage(self, scene: Scene) -> None:
        """`CheckpointRecord.stage` is the fact's, where they are read and where they come with a claim."""
        from_level_2(scene)
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        claim = await hand.take()
        await hand.report(
            hand.recorded(claim, "a", stage=1),
            hand.recorded(claim, "b"),
            hand.recorded_failure(claim, "c", stage=2),
            hand.released(claim),
        )
        found = await scene.checkpoints(batch_id)
        assert [(checkpoint.key, checkpoint.stage) for checkpoint in found] == [("a", 1), ("b", -1), ("c", 2)]
        assert list((await hand.take()).checkpoints) == found

    async def test_a_late_result_is_a_checkpoint_and_nothing_else(self, scene: Scene) -> None:
        """A `LateResult` is recorded where the key has no record, and moves neither its document nor its batch."""
        from_level_2(scene)
        batch_id = await scene.batch(2, resolver=True)
        before, after = await scene.worker(), await scene.worker()
        one, two = await before.claim(2)
        await before.report(before.recorded(one, "known", b"first"), before.entered(one, 1))
        await scene.store.expire(dead=[before.worker_id])
        record, row = await scene.look(batch_id), await scene.document(batch_id, 0)
        committed = await after.report(
            after.late(one, "known", b"second"), after.late(one, "late", b"paid", stage=1), after.late(two, "late")
        )
        assert not committed.events
        assert [found[:4] for found in await scene.checkpoints(batch_id)] == [
            ("known", "succeeded", b"first", -1),
            ("late", "succeeded", b"paid", 1),
        ]
        assert (await scene.look(batch_id), await scene.document(batch_id, 0)) == (record, row)
        claims = {claim.execution.position: claim for claim in await after.claim(2)}
        assert [checkpoint.key for checkpoint in claims[0].checkpoints] == ["known", "late"]
        assert [checkpoint.key for checkpoint in claims[1].checkpoints] == ["late"]

    async def test_what_calls_spend_is_recorded_with_them(self, scene: Scene) -> None:
        """`CheckpointRecord.spent` is the fact's, and is summed in the batch's row, once and without an event."""
        from_level_2(scene)
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        one, two = await hand.claim(2)
        cent, two_cents = _spent("0.01"), _spent("0.02")
        before = await scene.look(batch_id)
        facts: list[Fact] = [
            hand.recorded(one, "a", spent=cent),
            hand.recorded(one, "free"),
            hand.recorded_failure(two, "b", spent=two_cents),
        ]
        committed = await hand.report(*facts)
        assert not committed.events
        repeated = await scene.store.commit(hand.worker_id, hand.number, facts)
        assert not repeated.refused
        assert [found.spent for found in await scene.checkpoints(batch_id, 0)] == [cent, None]
        assert [found.spent for found in await scene.checkpoints(batch_id, 1)] == [two_cents]
        record = await scene.look(batch_id)
        assert record == replace(before, core=record.core), "only the sums of the batch change"
        assert _spent_by(record) == Decimal("0.03"), "what calls spent is summed in the batch's row"
        await hand.report(hand.released(one)._replace(spent=cent, replayed=cent), hand.failed(two)._replace(spent=cent))
        (again,) = await hand.claim(1)
        assert [found.spent for found in again.checkpoints] == [cent, None]
        await scene.cancel(batch_id)
        await hand.commit(hand.recorded(again, "late", spent=cent), hand.recorded_failure(again, "lost", spent=cent))
        assert _spent_by(await scene.look(batch_id)) == Decimal("0.07"), "what comes after the end was paid for, too"

    async def test_a_late_result_that_is_reported_twice_is_paid_once(self, scene: Scene) -> None:
        """Of a `LateResult`, what it cost counts where the result is recorded, and not where it is there already."""
        from_level_2(scene)
        batch_id = await scene.batch(1)
        before, after = await scene.worker(), await scene.worker()
        claim = await before.take()
        cent = _spent("0.01")
        await before.report(before.recorded(claim, "known", spent=cent))
        await scene.store.expire(dead=[before.worker_id])
        late = [after.late(claim, "known", spent=cent), after.late(claim, "late", spent=cent)]
        await after.report(*late)
        await after.report(*late)
        assert _spent_by(await scene.look(batch_id)) == Decimal("0.02")
        assert [found.spent for found in await scene.checkpoints(batch_id)] == [cent, cent]

    async def test_a_late_result_comes_with_the_claim_of_its_commit(self, scene: Scene) -> None:
        """Facts come before the claim of the same commit, these too."""
        from_level_2(scene)
        await scene.batch(1)
        before, after = await scene.worker(), await scene.worker()
        claim = await before.take()
        await scene.store.leave(before.worker_id)
        committed = await after.commit(after.late(claim, "late", b"paid"), claim=after.request())
        assert [checkpoint.payload for checkpoint in committed.claims[0].checkpoints] == [b"paid"]

    async def test_a_late_result_does_not_come_between_another_session_and_its_own(self, scene: Scene) -> None:
        """It is refused while another session than that of its call owns the execution, and kept where that does."""
        from_level_2(scene)
        batch_id = await scene.batch(2)
        before, after, heir = await scene.worker(), await scene.worker(), await scene.worker()
        one, two = await before.claim(2)
        await before.report(before.released(two))
        await heir.take()
        committed = await after.commit(after.late(one, "late"), after.late(two, "late"))
        assert dict(committed.refused) == {1: "superseded"}
        assert [found.key for found in await scene.checkpoints(batch_id, 0)] == ["late"]
        assert not await scene.checkpoints(batch_id, 1), "a refused checkpoint must not be written"
        await before.report(before.recorded(one, "late", b"again"), before.succeeded(one))
        assert [found.payload for found in await scene.checkpoints(batch_id, 0)] == [b"result"]

    async def test_a_late_result_of_an_ended_run_is_kept(self, scene: Scene) -> None:
        """It was paid for, and an ended run absorbs everything else; of what is not there, it is refused as unknown."""
        from_level_2(scene)
        batch_id = await scene.batch(2)
        before, after = await scene.worker(), await scene.worker()
        claim = (await before.claim(1))[0]
        await scene.cancel(batch_id)
        await scene.store.expire(dead=[before.worker_id])
        record = await scene.look(batch_id)
        late = after.late(claim, "late", b"paid")
        committed = await after.commit(late, late._replace(position=9), late._replace(batch_id=BatchId("nowhere")))
        assert dict(committed.refused) == {1: "unknown", 2: "unknown"}
        assert [found.payload for found in await scene.checkpoints(batch_id)] == [b"paid"]
        assert await scene.look(batch_id) == record

    async def test_a_request_is_answered_as_before(self, scene: Scene) -> None:
        """A command that was refused is refused again by its id, and one that was carried out is said to be."""
        from_level_2(scene)
        batch_id, other = await scene.batch(1), await scene.batch(1)
        assert (await scene.cancel(batch_id, "first")).applied
        record = await scene.look(batch_id)
        assert not (await scene.cancel(batch_id, "second")).applied
        for _ in range(2):
            assert (await scene.cancel(batch_id, "first")).applied
            assert not (await scene.cancel(batch_id, "second")).applied
        assert await scene.look(batch_id) == record
        assert (await scene.cancel(other, "second")).applied, "an id is one of its batch"

    async def test_all_fields_of_a_worker_are_stored(self, scene: Scene) -> None:
        """`workers` returns also the fields that have defaults."""
        from_level_2(scene)
        record = WorkerRecord(
            WorkerId("second"), "", "", 1, "", frozenset(), note="waits", before=WorkerId("first"), generation=3
        )
        await scene.store.register(record, 1_000_000)
        assert list(await scene.store.workers()) == [record]

    async def test_an_ended_batch_says_when(self, scene: Scene) -> None:
        """`BatchRecord.ended_at` is the moment at which the run ended."""
        from_level_2(scene)
        batch_id = await scene.batch(1)
        before = await scene.look(batch_id)
        committed = await scene.cancel(batch_id)
        after: BatchRecord = await scene.look(batch_id)
        assert (before.ended_at, after.ended_at) == (None, committed.events[-1].at)


def _spent(cost: str) -> str:
    spent = encode_spends([Spend("ask", 0, "", 10, 8, 2, Decimal(cost), 0)])
    assert spent is not None
    return spent


def _spent_by(record: BatchRecord) -> Decimal:
    return spending_of(decode_core(record.core).get("spent")).total.cost
