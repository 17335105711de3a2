"""Groups of failed documents: what a store counts as documents fail."""

from __future__ import annotations

import pytest
import pytest_asyncio

from durable_batches.lifecycle.failure_groups import EXAMPLES_KEPT, MOST_GROUPS, REST, examples_of
from durable_batches.lifecycle.fingerprints import fingerprint_of
from durable_batches.lifecycle.records import Claim
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import CountedFailures, CountsFailures, FindsFailures
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import STAGES, Hand, Scene

__all__ = ["FailuresConformance"]


class FailuresConformance(Conformance):
    """Count failures. Skipped for a store that is not `CountsFailures`, or declares level 1."""

    @pytest_asyncio.fixture
    async def counting(self, scene: Scene) -> CountsFailures:
        """Return the scene's store."""
        if scene.store.capabilities.level < 2 or not isinstance(scene.store, CountsFailures):
            pytest.skip("the store does not count failures")
        return scene.store

    async def test_failed_documents_are_counted_in_groups(self, scene: Scene, counting: CountsFailures) -> None:
        """`failures` has one row a fingerprint over all commits, with examples; others than documents are not in it."""
        batch_id, other = await scene.batch(9, concurrency=100), await scene.batch(1)
        hand = await scene.worker()
        claims = {claim.execution.position: claim for claim in await _claims(hand, batch_id)}
        assert len(claims) == 9
        slow = [
            hand.failed(claims[position], error=f"slow 文 {position}\0", error_type="TimeoutError")
            for position in range(2, 9)
        ]
        await hand.report(slow[1], slow[0])
        await scene.pass_time(1)
        bad = hand.failed(claims[0], error="bad", error_type="ValueError", activity="ask")
        await hand.report(*slow[2:], hand.entered(claims[0], 1), bad)
        counted = await counting.failures(batch_id)
        assert (counted.failed, len(counted.groups)) == (8, 2)
        assert [group.fingerprint for group in counted.groups] == sorted(group.fingerprint for group in counted.groups)
        groups = {group.error_type: group for group in counted.groups}
        timeout, error = groups["TimeoutError"], groups["ValueError"]
        assert timeout.fingerprint == fingerprint_of("TimeoutError", None, "slow 文 3\0")
        assert (timeout.batch_id, timeout.run, timeout.documents, timeout.first_position) == (batch_id, 1, 7, 2)
        assert (timeout.activity, timeout.stage, timeout.message) == (None, None, "slow 文 3\ufffd")
        failed = [(await scene.document(batch_id, position)).execution for position in range(2, 9)]
        assert (timeout.first_at, timeout.last_at) == (failed[1].updated_at, failed[-1].updated_at)
        examples = examples_of(timeout)
        assert len(examples) == EXAMPLES_KEPT
        assert [example.position for example in examples[:2]] == [2, 3]
        assert examples[1].error == "slow 文 3\0"
        assert (error.activity, error.stage, error.documents, error.first_position) == ("ask", STAGES[1], 1, 0)
        assert error.first_at == error.last_at
        assert (await scene.document(batch_id, 3)).execution.fingerprint == timeout.fingerprint
        assert (await scene.document(batch_id, 1)).execution.fingerprint is None
        assert await counting.failures(other) == CountedFailures(0, [])
        nowhere = await counting.failures(BatchId("nowhere"))
        assert (nowhere.failed, list(nowhere.groups)) == (0, [])

    async def test_failed_documents_are_found_by_their_group(self, scene: Scene, counting: CountsFailures) -> None:
        """`failed_documents` returns those of a fingerprint in submission order, page by page, as `documents` does."""
        store = scene.store
        if not isinstance(store, FindsFailures):
            pytest.skip("the store does not find failures")
        batch_id, other = await scene.batch(9, concurrency=100), await scene.batch(3)
        hand = await scene.worker()
        claims = await hand.claim(100, window=100, capacity=100)
        of_batch = {claim.execution.position: claim for claim in claims if claim.execution.batch_id == batch_id}
        slow = [hand.failed(of_batch[each], error=f"slow {each}", error_type="TimeoutError") for each in (7, 1, 4)]
        await hand.report(*slow, hand.failed(of_batch[3], error="bad"), hand.succeeded(of_batch[2]))
        # Of the same fingerprint, in another batch.
        await hand.report(*[hand.failed(each, error_type="TimeoutError", error="slow 1") for each in claims[-1:]])
        fingerprint = fingerprint_of("TimeoutError", None, "slow 1")
        failed = [await scene.document(batch_id, position) for position in (1, 4, 7)]
        assert list(await store.failed_documents(batch_id, fingerprint, limit=10)) == failed
        assert list(await store.failed_documents(batch_id, fingerprint, limit=2)) == failed[:2]
        assert list(await store.failed_documents(batch_id, fingerprint, after=1, limit=1)) == failed[1:2]
        assert list(await store.failed_documents(batch_id, fingerprint, after=7, limit=1)) == []
        without = await store.failed_documents(batch_id, fingerprint, limit=1, inputs=False)
        assert list(without) == [failed[0]._replace(input=b"")]
        assert not await store.failed_documents(batch_id, "fp1:none", limit=10)
        assert not await store.failed_documents(BatchId("nowhere"), fingerprint, limit=10)
        assert len(await store.failed_documents(other, fingerprint, limit=10)) == 1

    async def test_a_repeated_commit_counts_once(self, scene: Scene, counting: CountsFailures) -> None:
        """A commit of the same number again counts nothing again."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        first, second = await _claims(hand, batch_id)
        fact = hand.failed(first)
        await hand.report(fact)
        await scene.store.commit(hand.worker_id, hand.number, [fact])
        assert [group.documents for group in (await counting.failures(batch_id)).groups] == [1]
        await hand.commit(fact, hand.failed(second))
        counted = await counting.failures(batch_id)
        assert (counted.failed, [group.documents for group in counted.groups]) == (2, [2])

    async def test_groups_are_bounded(self, scene: Scene, counting: CountsFailures) -> None:
        """What fails beyond the groups that a run may have is counted as the rest, whichever commits it comes in."""
        size = MOST_GROUPS + 5
        batch_id = await scene.batch(size, concurrency=size)
        hand = await scene.worker()
        claims = await _claims(hand, batch_id)
        facts = [hand.failed(claim, error_type=f"Error{claim.execution.position}") for claim in claims]
        for start, end in ((0, 150), (150, size - 1), (size - 1, size)):
            await hand.report(*facts[start:end])
        counted = await counting.failures(batch_id)
        rest = [group for group in counted.groups if group.fingerprint == REST]
        assert (counted.failed, len(counted.groups)) == (size, MOST_GROUPS + 1)
        assert [group.documents for group in rest] == [5]
        assert sum(group.documents for group in counted.groups) == size

    async def test_a_crash_loop_is_counted(self, scene: Scene, counting: CountsFailures) -> None:
        """What `plan_release` says of failures is written as well."""
        batch_id = await scene.batch(1, max_crashes=2)
        for _ in range(2):
            hand = await scene.worker()
            await hand.take()
            await scene.store.expire(dead=[hand.worker_id])
        counted = await counting.failures(batch_id)
        assert counted.failed == 1
        assert [(group.error_type, group.documents) for group in counted.groups] == [("CrashLoopError", 1)]


async def _claims(hand: Hand, batch_id: BatchId) -> list[Claim]:
    claims = await hand.claim(1_000, window=1_000, capacity=1_000)
    return sorted(
        (claim for claim in claims if claim.execution.batch_id == batch_id), key=lambda claim: claim.execution.position
    )
