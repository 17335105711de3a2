"""Claims: which executions a worker gets, in which order, and how many."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from durable_batches.lifecycle.commands import Seal
from durable_batches.lifecycle.isolation import isolation_micros
from durable_batches.lifecycle.policies import RetryFailed
from durable_batches.lifecycle.records import Claim, NewDocument, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import LETTERS, Scene

__all__ = ["ClaimsConformance"]


class ClaimsConformance(Conformance):
    """`commit` with a claim."""

    # ---- what a claim is ---------------------------------------------------------------------------------------

    async def test_a_claim_has_what_it_takes_to_run(self, scene: Scene) -> None:
        """A claim has the owned execution, its input, and the batch's record after the claim."""
        batch_id = await scene.batch([NewDocument(0, "first", b"text")])
        hand = await scene.worker()
        claim = await hand.take()
        execution = claim.execution
        assert (execution.batch_id, execution.position, execution.document_id) == (batch_id, 0, "first")
        assert (execution.status, execution.attempt, execution.run) == ("running", 1, 1)
        assert (execution.owner, execution.due) == (hand.worker_id, None)
        assert (claim.input, list(claim.checkpoints), claim.more_checkpoints) == (b"text", [], False)
        assert claim.batch == await scene.look(batch_id)
        assert (await scene.document(batch_id, 0)).execution == execution, "a claim must be stored as it is returned"

    async def test_the_first_claim_starts_the_batch(self, scene: Scene) -> None:
        """The first claim moves the batch from pending to its first stage."""
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        await hand.take()
        assert await scene.tags(batch_id) == ["batch_created", "document_started", "state_changed"]
        assert (await scene.look(batch_id)).state == "reading"

    async def test_a_claim_takes_no_more_than_its_limit(self, scene: Scene) -> None:
        """At most `limit` executions, over all batches."""
        await scene.batch(3)
        await scene.batch(3)
        hand = await scene.worker()
        assert len(await hand.claim(4)) == 4
        assert len(await hand.claim(4)) == 2
        assert not await hand.claim(4)

    async def test_nothing_to_claim_is_fine(self, scene: Scene) -> None:
        """A claim that finds nothing is a commit like any other, and has no time to look again."""
        hand = await scene.worker()
        committed = await hand.commit(claim=hand.request())
        assert (list(committed.claims), committed.retry_in) == ([], None)

    # ---- order -------------------------------------------------------------------------------------------------

    async def test_documents_come_in_submission_order(self, scene: Scene) -> None:
        """Of what is due at the same time, the smallest position comes first."""
        record = scene.record()
        batch_id = await scene.load(record, [NewDocument(2, "c", b""), NewDocument(3, "d", b"")])
        await scene.store.add(batch_id, WorkerId("loader"), [NewDocument(1, "b", b""), NewDocument(0, "a", b"")])
        await scene.store.control(batch_id, Seal(WorkerId("loader"), 4))
        hand = await scene.worker()
        assert _positions(await hand.claim(3)) == [0, 1, 2]
        assert _positions(await hand.claim(3)) == [3]

    async def test_what_is_due_longest_comes_first(self, scene: Scene) -> None:
        """Executions are claimed by due time, then by position; from level 2 on, those of `NOW` come last."""
        policy = RetryFailed(max_attempts=3, backoff=timedelta(seconds=10))
        await scene.batch(3, policy=policy)
        hand = await scene.worker(lease=1_000)
        zero, one, two = await hand.claim(3)
        await hand.report(hand.failed(two))
        await scene.pass_time(1)
        await hand.report(hand.failed(zero))
        await hand.report(hand.released(one))
        await scene.pass_time(20)
        expected = [1, 2, 0] if scene.store.capabilities.level < 2 else [2, 0, 1]
        assert _positions(await hand.claim(3)) == expected

    # ---- bounds ------------------------------------------------------------------------------------------------

    async def test_concurrency_counts_over_all_workers(self, scene: Scene) -> None:
        """No more documents of a batch run than its concurrency allows, over all workers."""
        batch_id = await scene.batch(5, concurrency=2)
        one, other = await scene.worker(), await scene.worker()
        assert len(await one.claim(1)) == 1
        claims = await other.claim()
        assert len(claims) == 1
        assert not await one.claim()
        assert (await scene.look(batch_id)).free == 0
        await other.report(other.succeeded(claims[0]))
        assert len(await one.claim()) == 1

    async def test_a_slot_that_facts_free_can_be_claimed_with_them(self, scene: Scene) -> None:
        """The claim of a commit sees what its facts have freed."""
        await scene.batch(2, concurrency=1)
        hand = await scene.worker()
        first = await hand.take()
        committed = await hand.commit(hand.succeeded(first), claim=hand.request())
        assert _positions(committed.claims) == [1]

    async def test_the_resolver_is_outside_of_the_concurrency(self, scene: Scene) -> None:
        """A resolver neither needs nor takes a slot of another batch, and is not counted among the running."""
        batch_id = await scene.batch(0, concurrency=1, resolver=True)
        hand = await scene.worker()
        await hand.take()
        assert (await scene.look(batch_id)).counts.running == 0

    async def test_a_batch_of_many_does_not_starve_one_of_few(self, scene: Scene) -> None:
        """One claim shares its limit between the batches, and small claims serve them in turn."""
        many, few = await scene.batch(50), await scene.batch(3)
        hand = await scene.worker()
        shared = await hand.claim(4)
        assert {claim.execution.batch_id for claim in shared} == {many, few}, (
            "a claim must look at the batches that were served longest ago, not at one batch only"
        )
        served: list[BatchId] = []
        for _ in range(2):
            await scene.pass_time(0.001)
            served.append((await hand.claim(1))[0].execution.batch_id)
        assert few in served, "batches must be looked at in the order of `served`, then of their creation"

    async def test_an_unused_share_goes_to_the_others(self, scene: Scene) -> None:
        """Where batches have less than their share, a claim is filled from those that have more."""
        await scene.batch(1)
        await scene.batch(20)
        hand = await scene.worker()
        assert len(await hand.claim(8)) == 8

    async def test_a_share_that_later_batches_leave_is_taken_too(self, scene: Scene) -> None:
        """A claim is filled also where it is the first batch that has more than its share."""
        await scene.batch(20)
        await scene.batch(1)
        hand = await scene.worker()
        claims = await hand.claim(8)
        assert len(claims) == 8
        assert len({claim.execution.batch_id for claim in claims}) == 2

    async def test_suspects_come_alone(self, scene: Scene) -> None:
        """`held` and `window` reach plan_claims: a possible poison document is not claimed beside held executions."""
        batch_id = await scene.batch(1, max_crashes=3)
        for _ in range(2):
            dead = await scene.worker()
            await dead.claim(1)
            await scene.store.expire(dead=[dead.worker_id])
            await scene.check()
        hand = await scene.worker()
        assert not await hand.claim(1, held=1), "a possible poison document is not claimed beside others"
        (claim,) = await hand.claim(1, held=0)
        assert (claim.execution.position, claim.execution.alone) == (0, True)
        assert (await scene.document(batch_id, 0)).execution.alone, "ExecutionRecord.alone must be stored"

    async def test_a_first_crash_holds_nothing_up(self, scene: Scene) -> None:
        """What was running when a worker died is claimed all at once, whatever the worker holds beside it."""
        batch_id = await scene.batch(8)
        dead, hand = await scene.worker(), await scene.worker()
        await dead.claim(8)
        await scene.store.expire(dead=[dead.worker_id])
        claims = await hand.claim(8, held=1)
        assert len(claims) == 8
        assert not any(claim.execution.alone for claim in claims)
        assert {claim.execution.crashes for claim in claims} == {1}
        assert (await scene.look(batch_id)).counts.running == 8

    async def test_isolation_ends_with_its_time(self, scene: Scene) -> None:
        """`BatchRecord.core` is kept as it is: it says until when possible poison documents are isolated."""
        await scene.batch(8, max_crashes=3)
        for _ in range(2):
            dead = await scene.worker()
            assert len(await dead.claim(8)) == 8
            await scene.store.expire(dead=[dead.worker_id])
            await scene.check()
        hand = await scene.worker(lease=1_000)
        few = len(await hand.claim(8))
        assert 1 <= few < 8
        assert not await hand.claim(8, held=few, window=few)
        await scene.pass_time(isolation_micros(2) / 1_000_000 + 1)
        assert len(await hand.claim(8, held=few)) == 8 - few

    async def test_a_window_bounds_the_claim(self, scene: Scene) -> None:
        """No more than `window` executions are held at once, those held already included."""
        await scene.batch(9)
        hand = await scene.worker()
        assert len(await hand.claim(9, held=2, window=5)) == 3

    # ---- which batches -------------------------------------------------------------------------------------------

    async def test_only_the_workers_workflows_are_claimed(self, scene: Scene) -> None:
        """Batches of other workflows, or of other versions, are not claimed."""
        mine = await scene.batch(1)
        newer = await scene.batch(1, workflow=("letters", "2"))
        foreign = await scene.batch(1, workflow=("ünter 文書", "1"))
        hand = await scene.worker()
        assert [claim.execution.batch_id for claim in await hand.claim()] == [mine]
        assert not await hand.claim(workflows=[])
        assert not await hand.claim(workflows=[("ünter 文書", "2"), ("1", "letters")])
        pairs = [LETTERS, ("letters", "2"), ("ünter 文書", "1")]
        assert {claim.execution.batch_id for claim in await hand.claim(workflows=pairs)} == {newer, foreign}

    async def test_ended_and_paused_batches_are_not_claimed(self, scene: Scene) -> None:
        """Nothing is claimed of a batch that has ended or is paused."""
        ended = await scene.batch(2)
        await scene.cancel(ended)
        await scene.sealed(scene.record(paused=True), 2)
        hand = await scene.worker()
        assert not await hand.claim()

    # ---- time ----------------------------------------------------------------------------------------------------

    async def test_a_claim_knows_when_to_look_again(self, scene: Scene) -> None:
        """`retry_in` is the time until the next execution falls due, by the store's clock."""
        policy = RetryFailed(max_attempts=3, backoff=timedelta(seconds=60))
        await scene.batch(2, policy=policy)
        hand = await scene.worker(lease=1_000)
        one, two = await hand.claim(2)
        await hand.report(hand.failed(one))
        await scene.pass_time(20)
        committed = await hand.commit(hand.failed(two), claim=hand.request())
        assert committed.retry_in is not None
        assert 0 < committed.retry_in <= 40_000_000, "retry_in is the time until the first of them is due"
        foreign = await hand.commit(claim=hand.request(workflows=[("others", "1")]))
        assert foreign.retry_in is None, "what a worker cannot run is nothing to wait for"

    async def test_a_deadline_fails_the_batch(self, scene: Scene) -> None:
        """A claim after a batch's deadline fails it, even without open slots; `retry_in` says when to look."""
        batch_id = await scene.batch(2, concurrency=1, deadline=60)
        hand = await scene.worker(lease=1_000)
        claim = (await hand.claim(1))[0]
        committed = await hand.commit(claim=hand.request())
        assert committed.retry_in is not None, "the deadline (BatchRecord.wake) is something to look again for"
        assert 0 < committed.retry_in <= 60_000_000
        await scene.pass_time(61)
        committed = await hand.commit(claim=hand.request())
        assert not committed.claims
        assert [event.tag for event in committed.events] == ["state_changed", "batch_failed"]
        record = await scene.look(batch_id)
        assert (record.state, record.wake, record.counts.cancelled) == ("failed", None, 2)
        refused = (await hand.commit(hand.succeeded(claim))).refused
        assert dict(refused) == {0: "ended"}

    async def test_a_batch_past_its_deadline_takes_no_share(self, scene: Scene) -> None:
        """A claim is filled from the other batches while it fails those whose deadline has passed."""
        first, busy = await scene.batch(9, deadline=60), await scene.batch(1, deadline=60)
        hand = await scene.worker(lease=1_000)
        await hand.claim(2)
        other = await scene.batch(9)
        last = await scene.batch(9, deadline=0.001)
        await scene.pass_time(61)
        claims = await hand.claim(4)
        assert [claim.execution.batch_id for claim in claims] == [other] * 4
        for batch_id in (first, busy, last):
            assert (await scene.look(batch_id)).state == "failed"

    async def test_a_deadline_passes_also_without_room(self, scene: Scene) -> None:
        """A claim with a limit of 0 takes nothing, and still fails the batches whose deadline has passed."""
        batch_id = await scene.batch(1, deadline=60)
        hand = await scene.worker(lease=1_000)
        await hand.take()
        await scene.pass_time(61)
        await hand.claim(0)
        assert (await scene.look(batch_id)).state == "failed"

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    async def test_checkpoints_come_with_the_claim(self, scene: Scene) -> None:
        """A claim has its execution's first checkpoints by key; `more_checkpoints` says whether there are others."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        one, two = await hand.claim(2)
        await hand.report(
            *[hand.recorded(one, key, key.encode()) for key in ("c", "a", "d", "b")], hand.recorded(two, "z")
        )
        claim = one
        for limit, keys, more in ((0, "", True), (3, "abc", True), (4, "abcd", False), (5, "abcd", False)):
            await hand.report(hand.released(claim))
            claim = (await hand.claim(1, checkpoints=limit))[0]
            assert claim.execution.position == 0
            assert ("".join(found.key for found in claim.checkpoints), claim.more_checkpoints) == (keys, more)
        rest = await scene.store.checkpoints(batch_id, 0, after="c", limit=10)
        assert [(found.key, found.payload) for found in rest] == [("d", b"d")]


def _positions(claims: Iterable[Claim]) -> list[int]:
    return [claim.execution.position for claim in claims]
