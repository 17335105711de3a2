"""Facts: every kind, which are refused, and what is written."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from durable_batches.errors import BatchNotFoundError
from durable_batches.lifecycle.commands import Cancel, Seal
from durable_batches.lifecycle.events import DocumentCompleted, DocumentRetrying, StageProgress, decode_event
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.policies import AbortAll, ContinueOnFailure, RetryFailed
from durable_batches.lifecycle.records import RESOLVER_POSITION, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import STAGES, Scene, all_events

__all__ = ["FactsConformance"]


class FactsConformance(Conformance):
    """`commit` of facts, and `control`."""

    # ---- checkpoints -----------------------------------------------------------------------------------------

    async def test_checkpoints_are_recorded(self, scene: Scene) -> None:
        """Results and final failures of activities are stored with their execution, and counted for their batch."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        one, two = await hand.claim(2)
        await hand.report(
            hand.recorded(one, "b", b"1"),
            hand.recorded_failure(one, "a", b"2"),
            hand.recorded(two, "a", b"3"),
        )
        assert [found[:3] for found in await scene.checkpoints(batch_id, 0)] == [
            ("a", "failed", b"2"),
            ("b", "succeeded", b"1"),
        ]
        assert [found.payload for found in await scene.checkpoints(batch_id, 1)] == [b"3"]
        assert await scene.store.count_checkpoints(batch_id) == 3

    async def test_the_first_record_wins(self, scene: Scene) -> None:
        """A key that is recorded keeps its first record, within a commit, across commits and across attempts."""
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        claim = await hand.take()
        await hand.report(hand.recorded(claim, "key", b"first"), hand.recorded(claim, "key", b"second"))
        await hand.report(hand.recorded_failure(claim, "key", b"third"), hand.released(claim))
        claim = await hand.take()
        await hand.report(hand.recorded(claim, "key", b"fourth"))
        assert [found[:3] for found in await scene.checkpoints(batch_id)] == [("key", "succeeded", b"first")]
        assert await scene.store.count_checkpoints(batch_id) == 1

    async def test_recording_does_not_move_the_batch(self, scene: Scene) -> None:
        """A checkpoint emits no event and changes no counter."""
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        claim = await hand.take()
        before = await scene.look(batch_id)
        committed = await hand.report(hand.recorded(claim, "key"))
        assert not committed.events
        assert await scene.look(batch_id) == before

    async def test_forgotten_failures_are_gone(self, scene: Scene) -> None:
        """A failure that names recorded failures to `forget` deletes those of its own execution, and no others."""
        batch_id = await scene.batch(2, policy=RetryFailed())
        hand = await scene.worker()
        one, two = await hand.claim(2)
        await hand.report(
            hand.recorded(one, "kept"),
            hand.recorded_failure(one, "caught"),
            hand.recorded_failure(one, "fatal"),
            hand.recorded_failure(two, "fatal"),
        )
        await hand.report(hand.failed(one, forget=["fatal", "never recorded"]))
        assert [found.key for found in await scene.checkpoints(batch_id, 0)] == ["caught", "kept"]
        assert [found.key for found in await scene.checkpoints(batch_id, 1)] == ["fatal"]
        await scene.pass_time(60)
        claim = await hand.take()
        await hand.report(hand.recorded(claim, "fatal", b"now it works"))
        assert (await scene.checkpoints(batch_id))[1].payload == b"now it works"

    # ---- documents -------------------------------------------------------------------------------------------

    async def test_entering_a_stage_marks_the_document(self, scene: Scene) -> None:
        """A document's mark only grows, and the batch is in the stage of the one that is furthest behind."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        one, two = await hand.claim(2)
        await hand.report(hand.entered(one, 2))
        assert (await scene.look(batch_id)).state == STAGES[0]
        await hand.report(hand.entered(two, 1), hand.entered(one, 0))
        assert (await scene.look(batch_id)).state == STAGES[1]
        marks = [(await scene.document(batch_id, position)).execution.mark for position in (0, 1)]
        assert marks == [2, 1]
        events = [decode_event(event) for event in await all_events(scene.store, batch_id)]
        entered = [event for event in events if isinstance(event, StageProgress)]
        assert [(event.document_id, event.stage, event.current, event.total) for event in entered] == [
            ("document-0", "sending", 1, 2),
            ("document-1", "writing", 2, 2),
        ]

    async def test_success_ends_the_document(self, scene: Scene) -> None:
        """A document that succeeded has its outcome and no owner, and its slot is open again."""
        batch_id = await scene.batch(2, concurrency=1)
        hand = await scene.worker()
        claim = await hand.take()
        committed = await hand.report(hand.succeeded(claim, b"the result", unused=4))
        found = await scene.document(batch_id, 0)
        assert (found.outcome, found.execution.status) == (b"the result", "succeeded")
        assert (found.execution.owner, found.execution.due) == (None, None)
        event = decode_event(committed.events[0])
        assert isinstance(event, DocumentCompleted)
        assert (event.document_id, event.unused_checkpoints) == ("document-0", 4)
        assert (await scene.look(batch_id)).free == 1

    async def test_the_last_document_completes_the_batch(self, scene: Scene) -> None:
        """A batch without a resolver completes in the commit that ends its last document."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        claims = await hand.claim(2)
        await hand.report(*[hand.succeeded(claim) for claim in claims])
        record = await scene.look(batch_id)
        assert (record.state, record.free) == ("completed", 0)
        assert (await scene.tags(batch_id))[-2:] == ["state_changed", "batch_completed"]

    async def test_failure_ends_the_document(self, scene: Scene) -> None:
        """Under ContinueOnFailure a failed document has its failure recorded, and the others continue."""
        batch_id = await scene.batch(2, policy=ContinueOnFailure())
        hand = await scene.worker()
        one, two = await hand.claim(2)
        await hand.report(hand.failed(one, b"the failure"))
        found = await scene.document(batch_id, 0)
        assert (found.outcome, found.execution.status, found.execution.failures) == (
            b"the failure",
            "failed",
            1,
        )
        await hand.report(hand.succeeded(two))
        assert (await scene.look(batch_id)).state == "completed"

    async def test_abort_ends_the_batch_and_frees_at_the_next_report(self, scene: Scene) -> None:
        """Under AbortAll the first failure ends the batch; later facts are refused as ended, and free slots."""
        batch_id = await scene.batch(3, policy=AbortAll())
        hand = await scene.worker()
        one, two = await hand.claim(2)
        committed = await hand.commit(hand.failed(one), hand.succeeded(two))
        assert dict(committed.refused) == {1: "ended"}
        record = await scene.look(batch_id)
        assert (record.state, record.counts.failed, record.counts.cancelled) == ("failed", 1, 2)
        found = await scene.document(batch_id, 1)
        assert (found.execution.status, found.execution.owner, found.outcome) == ("cancelled", None, None)
        assert not await hand.claim()

    async def test_a_retry_waits_for_its_time(self, scene: Scene) -> None:
        """Under RetryFailed a failed document waits, holding no slot, and cannot be claimed before it is due."""
        batch_id = await scene.batch(1, concurrency=1, policy=RetryFailed(max_attempts=2, backoff=_minute()))
        hand = await scene.worker(lease=1_000)
        claim = await hand.take()
        committed = await hand.report(hand.failed(claim, b"first failure"))
        event = decode_event(committed.events[0])
        assert isinstance(event, DocumentRetrying)
        waiting = await scene.document(batch_id, 0)
        assert (waiting.execution.status, waiting.outcome) == ("waiting", b"first failure")
        assert not await hand.claim()
        await scene.pass_time(30)
        assert not await hand.claim(), "an execution must not be claimed before its due time"
        await scene.pass_time(31)
        again = await hand.take()
        assert (again.execution.attempt, again.execution.failures) == (2, 1)
        await hand.report(hand.failed(again, b"second failure"))
        failed = await scene.document(batch_id, 0)
        assert (failed.execution.status, failed.outcome) == ("failed", b"second failure")
        assert (await scene.look(batch_id)).state == "failed"

    async def test_a_failure_that_is_not_retryable_is_final(self, scene: Scene) -> None:
        """`retryable=False` fails the document under every policy."""
        batch_id = await scene.batch(2, policy=RetryFailed())
        hand = await scene.worker()
        await hand.report(hand.failed((await hand.claim(1))[0], retryable=False))
        assert (await scene.document(batch_id, 0)).execution.status == "failed"

    async def test_a_release_gives_the_document_back(self, scene: Scene) -> None:
        """A released document can be claimed again at once, with no crash and no failure counted."""
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        await hand.report(hand.released(await hand.take()))
        row = (await scene.document(batch_id, 0)).execution
        assert (row.status, row.owner, row.crashes, row.failures) == ("pending", None, 0, 0)
        assert (await hand.take()).execution.attempt == 2

    async def test_one_commit_may_be_about_several_batches(self, scene: Scene) -> None:
        """Facts about different batches go into one transaction, each with its own events."""
        batches = [await scene.batch(1) for _ in range(3)]
        hand = await scene.worker()
        claims = await hand.claim()
        committed = await hand.report(*[hand.succeeded(claim) for claim in reversed(claims)])
        for batch_id in batches:
            own = [event.seq for event in committed.events if event.batch_id == batch_id]
            assert own == sorted(own)
            assert (await scene.look(batch_id)).state == "completed"

    async def test_the_answer_has_the_events_that_were_written(self, scene: Scene) -> None:
        """`Committed.events` are the stored events, so that subscribers need no second read."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        committed = await hand.commit(claim=hand.request())
        more = await hand.report(*[hand.succeeded(claim) for claim in committed.claims])
        events = await all_events(scene.store, batch_id)
        assert events[1:] == [*committed.events, *more.events]

    # ---- refusals --------------------------------------------------------------------------------------------

    async def test_facts_about_nothing_are_refused(self, scene: Scene) -> None:
        """A fact about a batch or document that does not exist is refused as unknown, never with an exception."""
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        claim = await hand.take()
        nowhere = hand.succeeded(claim)._replace(batch_id=BatchId("nowhere"))
        beyond = hand.recorded(claim, "key")._replace(position=9)
        resolver = hand.succeeded(claim)._replace(position=RESOLVER_POSITION)
        committed = await hand.commit(nowhere, beyond, resolver)
        assert dict(committed.refused) == {0: "unknown", 1: "unknown", 2: "unknown"}
        assert (await scene.look(batch_id)).counts.running == 1

    async def test_facts_of_other_attempts_are_refused(self, scene: Scene) -> None:
        """A fact of another attempt, run or owner is refused as superseded, and nothing of it is written."""
        batch_id = await scene.batch(2)
        hand, other = await scene.worker(), await scene.worker()
        old = (await hand.claim(1))[0]
        await hand.report(hand.released(old))
        new, foreign = (await hand.claim(1))[0], (await other.claim(1))[0]
        facts: list[Fact] = [
            hand.succeeded(old),
            hand.recorded(old, "stale"),
            hand.recorded(new, "stale")._replace(run=2),
            hand.recorded(foreign, "foreign"),
            hand.entered(old, 2),
            hand.failed(old),
            hand.released(foreign),
        ]
        before = await scene.look(batch_id)
        committed = await hand.commit(*facts)
        assert dict(committed.refused) == dict.fromkeys(range(7), "superseded")
        assert not committed.events
        assert await scene.look(batch_id) == before
        assert await scene.store.count_checkpoints(batch_id) == 0, "a refused checkpoint must not be written"

    async def test_a_refusal_does_not_hold_up_its_neighbours(self, scene: Scene) -> None:
        """The other facts of a commit with a refused one are applied."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        one, two = await hand.claim(2)
        committed = await hand.commit(hand.succeeded(one), hand.succeeded(one), hand.succeeded(two))
        assert dict(committed.refused) == {1: "superseded"}
        assert (await scene.look(batch_id)).state == "completed"

    async def test_what_was_paid_for_is_kept(self, scene: Scene) -> None:
        """A result that arrives after its batch has ended is recorded, refused as ended, and changes nothing else."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        claim = (await hand.claim(1))[0]
        await scene.cancel(batch_id)
        before = await scene.look(batch_id)
        committed = await hand.commit(hand.recorded(claim, "late", b"paid"), hand.entered(claim, 1))
        assert dict(committed.refused) == {0: "ended", 1: "ended"}
        assert [found.payload for found in await scene.checkpoints(batch_id)] == [b"paid"], (
            "write Writes.checkpoints also where the fact is refused"
        )
        committed = await hand.commit(hand.succeeded(claim, b"too late"))
        assert dict(committed.refused) == {0: "ended"}
        found = await scene.document(batch_id, 0)
        assert (found.execution.status, found.execution.owner, found.outcome) == ("cancelled", None, None)
        assert await scene.look(batch_id) == before, "an ended run absorbs"

    # ---- commands --------------------------------------------------------------------------------------------

    async def test_cancel_ends_the_run_once(self, scene: Scene) -> None:
        """The `Cancel` of one request is applied, also when it is repeated; that of another request is not."""
        batch_id = await scene.batch(3)
        hand = await scene.worker()
        await hand.claim(1)
        committed = await scene.cancel(batch_id, "mine", "too dear")
        assert committed.applied
        assert [event.tag for event in committed.events] == ["state_changed", "batch_cancelled"]
        record = await scene.look(batch_id)
        assert (record.state, record.counts.cancelled, record.free) == ("cancelled", 3, 0)
        again = await scene.cancel(batch_id, "mine")
        assert (again.applied, list(again.events)) == (True, [])
        assert not (await scene.cancel(batch_id, "theirs")).applied
        assert await scene.look(batch_id) == record

    async def test_a_completed_run_cannot_be_cancelled(self, scene: Scene) -> None:
        """`Cancel` after the end is not applied."""
        batch_id = await scene.batch(0)
        assert not (await scene.cancel(batch_id)).applied
        assert (await scene.look(batch_id)).state == "completed"

    async def test_commands_need_a_batch(self, scene: Scene) -> None:
        """`control` raises BatchNotFoundError where there is none."""
        for command in (Cancel("request", ""), Seal(WorkerId("loader"), 0)):
            with pytest.raises(BatchNotFoundError):
                await scene.store.control(BatchId("nowhere"), command)

    async def test_one_of_many_cancels_wins(self, scene: Scene) -> None:
        """Of several requests at the same time exactly one is applied."""
        batch_id = await scene.batch(1)
        answers = await asyncio.gather(
            *[scene.store.control(batch_id, Cancel(f"request-{number}", "")) for number in range(5)]
        )
        assert sum(answer.applied for answer in answers) == 1
        assert (await scene.tags(batch_id)).count("batch_cancelled") == 1

    # ---- the resolver ----------------------------------------------------------------------------------------

    async def test_the_resolver_runs_once_after_the_last_document(self, scene: Scene) -> None:
        """The resolver can be claimed once every document has ended, by one worker, and its end completes the run."""
        batch_id = await scene.batch(2, concurrency=1, resolver=True)
        hand, other = await scene.worker(), await scene.worker()
        await hand.report(hand.succeeded(await hand.take()))
        last = await hand.take()
        assert last.execution.position == 1, "the resolver must not be claimed before the last document has ended"
        assert not await other.claim()
        await hand.report(hand.failed(last))
        assert (await scene.look(batch_id)).state == "resolving"
        claim = await other.take()
        assert (claim.execution.position, claim.input) == (RESOLVER_POSITION, b"")
        assert not await hand.claim(), "the resolver is claimed by one worker"
        await other.report(other.recorded(claim, "linked"), other.entered(claim, 1))
        await other.report(other.succeeded(claim, b"resolution"))
        assert (await scene.look(batch_id)).state == "completed"
        assert (await scene.document(batch_id, RESOLVER_POSITION)).outcome == b"resolution"
        assert [found.key for found in await scene.checkpoints(batch_id, RESOLVER_POSITION)] == ["linked"]

    async def test_a_commit_that_ends_the_last_document_may_claim_the_resolver(self, scene: Scene) -> None:
        """Facts come before the claim of the same commit."""
        await scene.batch(1, resolver=True)
        hand = await scene.worker()
        claim = await hand.take()
        committed = await hand.commit(hand.succeeded(claim), claim=hand.request())
        assert [found.execution.position for found in committed.claims] == [RESOLVER_POSITION]

    async def test_the_resolver_retries_as_it_asks(self, scene: Scene) -> None:
        """A failed resolver is due again after its `retry_in`; without one, the batch has failed."""
        batch_id = await scene.batch(0, resolver=True)
        hand = await scene.worker(lease=1_000)
        await hand.report(hand.failed(await hand.take(), retry_in=60))
        assert (await scene.look(batch_id)).state == "resolving"
        assert not await hand.claim()
        await scene.pass_time(61)
        claim = await hand.take()
        assert (claim.execution.attempt, claim.execution.failures) == (2, 1)
        await hand.report(hand.failed(claim, b"the failure"))
        assert (await scene.look(batch_id)).state == "failed"
        assert (await scene.document(batch_id, RESOLVER_POSITION)).outcome == b"the failure"

    async def test_a_released_resolver_can_be_claimed_again(self, scene: Scene) -> None:
        """A resolver whose worker leaves is claimed by another."""
        batch_id = await scene.batch(0, resolver=True)
        hand, other = await scene.worker(), await scene.worker()
        await hand.report(hand.released(await hand.take()))
        claim = await other.take()
        assert (claim.execution.crashes, claim.execution.attempt) == (0, 2)
        await other.report(other.succeeded(claim))
        assert (await scene.look(batch_id)).state == "completed"

    async def test_all_documents_failed_is_failed(self, scene: Scene) -> None:
        """A run whose documents have all failed is failed, and its resolver never runs."""
        batch_id = await scene.batch(1, resolver=True)
        hand = await scene.worker()
        await hand.report(hand.failed(await hand.take()))
        assert (await scene.look(batch_id)).state == "failed"
        assert not await hand.claim()


def _minute() -> timedelta:
    return timedelta(minutes=1)
