"""Why a batch is where it is, as data and in sentences, for what the rows of a store tell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.reading.scenes import now, scene_of
from tests.support import STAGES, eventually, within

from durable_batches import (
    AbortAll,
    BatchConfig,
    BatchEnded,
    BatchId,
    BatchNotFoundError,
    BatchOrchestrator,
    Counts,
    DamagedBatch,
    DeadWorker,
    Explanation,
    IsolatedDocument,
    MemoryStore,
    NoWorker,
    PausedBatch,
    QueuedDocuments,
    Reason,
    ResolverStatus,
    Results,
    RetryFailed,
    RunningDocuments,
    Store,
    SuspendedDocuments,
    ThrottledLimiter,
    UnselectedBatch,
    Worker,
    workflow,
)
from durable_batches.lifecycle.notes import Circuit, CircuitOf, LimitedCallsOf, WorkerNote, encode_note
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import RecordedStages
from durable_batches.lifecycle.records import GENERATION, WorkerId, WorkerRecord
from durable_batches.reading.explain import explanation_of
from durable_batches.reading.notes import WorkerNotes
from durable_batches.stores import Inspectable, Inspection
from durable_batches.testing.conformance.scene import LETTERS

T0 = datetime(2031, 5, 1, 12, 0, 0, tzinfo=UTC)


class Uninspectable:
    """A store of before `Inspectable`: everything but that."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name == "inspect":
            raise AttributeError(name)
        return getattr(self._store, name)


@pytest.fixture(params=["inspectable", "by its documents"])
def maker(request: pytest.FixtureRequest, open_store: StoreMaker) -> StoreMaker:
    """Stores that can be inspected, and the same without that."""
    if request.param == "inspectable":
        return open_store

    def make(clock: Any) -> Store:
        store: Any = Uninspectable(open_store(clock))
        assert not isinstance(store, Inspectable)
        assert isinstance(store, Store)
        return store

    return make


# ---- what runs -----------------------------------------------------------------------------------------------------


async def test_what_runs_where_and_since_when(maker: StoreMaker) -> None:
    async with scene_of(maker) as (scene, client, clock):
        batch_id = await scene.batch(5, concurrency=3)
        first, second = await scene.worker("a"), await scene.worker("b")
        (one,) = await first.claim(1)
        began = now(clock)
        clock.advance(5)
        await second.claim(2)
        explanation = await client.explain(batch_id)
        assert explanation.reasons == [
            RunningDocuments(
                documents=3,
                oldest_document_id=one.execution.document_id,
                oldest_since=began,
                workers={"a": 1, "b": 2},
                waiting=2,
            )
        ]
        # Progress is a stage that is entered.
        clock.advance(5)
        await first.report(first.entered(one, 0))
        (reason,) = (await client.explain(batch_id)).reasons
        assert isinstance(reason, RunningDocuments)
        assert reason.oldest_since == began + timedelta(seconds=5)


async def test_documents_that_could_run_and_do_not_are_queued(maker: StoreMaker) -> None:
    async with scene_of(maker) as (scene, client, clock):
        batch_id = await scene.batch(5, concurrency=3)
        worker = await scene.worker()
        created = from_micros((await scene.look(batch_id)).created_at)
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == QueuedDocuments(documents=3, since=min(created, now(clock)))
        await worker.claim(1)
        running, queued = (await client.explain(batch_id)).reasons
        assert isinstance(running, RunningDocuments)
        assert running.waiting == 2
        assert isinstance(queued, QueuedDocuments)
        assert queued.documents == 2


async def test_documents_that_wait_for_a_retry(maker: StoreMaker) -> None:
    policy = RetryFailed(max_attempts=3, backoff=timedelta(minutes=1))
    async with scene_of(maker) as (scene, client, clock):
        batch_id = await scene.batch(2, policy=policy)
        worker = await scene.worker(lease=10_000)
        await worker.report(*[worker.failed(claim) for claim in await worker.claim()])
        (reason,) = (await client.explain(batch_id)).reasons
        assert isinstance(reason, SuspendedDocuments)
        assert (reason.what, reason.name, reason.documents) == ("retry", "", 2)
        assert reason.next_due is not None
        due = reason.next_due
        assert now(clock) < due <= now(clock) + timedelta(minutes=2)
        clock.advance(600)
        # They are due, and nobody takes them.
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == QueuedDocuments(documents=2, since=due)


# ---- workers -------------------------------------------------------------------------------------------------------


async def test_no_worker_for_this_workflow_or_version(maker: StoreMaker) -> None:
    async with scene_of(maker) as (scene, client, _):
        batch_id = await scene.batch(1, workflow=("words", "2"))
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == NoWorker(workflow="words", version="2", known=[])
        await scene.worker()
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == NoWorker(workflow="words", version="2", known=[LETTERS])
        newer = await scene.batch(1, workflow=(LETTERS[0], "900"))
        (reason,) = (await client.explain(newer)).reasons
        assert reason == NoWorker(workflow=LETTERS[0], version="900", known=[LETTERS])


async def test_workers_whose_library_is_older_than_the_batch_needs(maker: StoreMaker) -> None:
    async with scene_of(maker) as (scene, client, _):
        record = replace(scene.record(), needs=GENERATION + 1)
        batch_id = await scene.sealed(record, 1)
        await scene.worker("old")
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == NoWorker(workflow=LETTERS[0], version=LETTERS[1], known=[LETTERS], too_old=("old",))


async def test_a_worker_without_capacity_runs_nothing(open_store: StoreMaker) -> None:
    @workflow(STAGES, name="shout")
    async def shout(document: str) -> str:
        return document

    async with BatchOrchestrator(shout, store=open_store(None), max_in_flight=0) as batches:
        batch_id = await batches.submit(["x"])
        explanation = await batches.explain(batch_id)
        assert explanation.reasons == [NoWorker(workflow="shout", version="1", known=[])]


async def test_a_worker_that_got_the_workflow_later_is_there_when_it_has_a_document(open_store: StoreMaker) -> None:
    @workflow(STAGES, name="first")
    async def first(document: str) -> str:
        return document

    @workflow(STAGES, name="later")
    async def later(document: str) -> str:
        await asyncio.Event().wait()
        return document

    worker = Worker(open_store(None), drain=timedelta(0))
    async with BatchOrchestrator(first, worker=worker):
        batches = BatchOrchestrator(later, worker=worker)
        batch_id = await batches.submit(["x"])

        async def runs() -> bool:
            return [reason.tag for reason in (await batches.explain(batch_id)).reasons] == ["running"]

        await eventually(runs)


async def test_a_worker_that_does_not_renew_its_lease(open_store: StoreMaker) -> None:
    async with scene_of(open_store) as (scene, client, clock):
        batch_id = await scene.batch(3, concurrency=2)
        dead = await scene.worker("dead", lease=30)
        await dead.claim()
        until = now(clock) + timedelta(seconds=30)
        clock.advance(10)
        assert [reason.tag for reason in (await client.explain(batch_id)).reasons] == ["running"]
        clock.advance(10)
        late, running = (await client.explain(batch_id)).reasons
        assert late == DeadWorker(worker="dead", documents=2, lease_until=until)
        assert isinstance(running, RunningDocuments)
        # Past its lease, it is nobody's worker any more.
        clock.advance(60)
        reasons = (await client.explain(batch_id)).reasons
        assert [reason.tag for reason in reasons] == ["no-worker", "dead-worker", "running"]
        await scene.worker("alive")
        assert [reason.tag for reason in (await client.explain(batch_id)).reasons] == ["dead-worker", "running"]
        await scene.store.expire()
        assert "dead-worker" not in [reason.tag for reason in (await client.explain(batch_id)).reasons]


async def test_documents_in_isolation(open_store: StoreMaker) -> None:
    async with scene_of(open_store) as (scene, client, clock):
        batch_id = await scene.batch(2, max_crashes=5)
        for _ in range(2):
            hand = await scene.worker(lease=10)
            assert len(await hand.claim()) == 2
            clock.advance(20)
            await scene.store.expire()
        reasons = (await client.explain(batch_id)).reasons
        assert [reason.tag for reason in reasons] == ["no-worker", "isolated"]
        assert reasons[1] == IsolatedDocument(
            document_id="document-0", crashes=2, worker=None, since=now(clock), waiting=1
        )
        hand = await scene.worker(lease=1_000)
        assert [reason.tag for reason in (await client.explain(batch_id)).reasons] == ["isolated"]
        (claim,) = await hand.claim(1)
        reasons = (await client.explain(batch_id)).reasons
        assert [reason.tag for reason in reasons] == ["isolated", "running"]
        assert reasons[0] == IsolatedDocument(
            document_id=claim.execution.document_id,
            crashes=2,
            worker=hand.worker_id,
            since=now(clock),
            waiting=1,
        )


# ---- the end -------------------------------------------------------------------------------------------------------


async def test_the_resolver_waits_and_runs(maker: StoreMaker) -> None:
    async with scene_of(maker) as (scene, client, _):
        batch_id = await scene.batch(1, resolver=True)
        hand = await scene.worker()
        (claim,) = await hand.claim()
        await hand.report(hand.succeeded(claim))
        assert (await client.explain(batch_id)).reasons == [ResolverStatus(attempt=0, waits="worker")]
        (claim,) = await hand.claim()
        assert (await client.explain(batch_id)).reasons == [ResolverStatus(attempt=1, waits=None)]
        await hand.report(hand.succeeded(claim))
        assert (await client.explain(batch_id)).reasons == [BatchEnded(counts=Counts(total=1, succeeded=1))]


async def test_a_batch_that_has_failed_says_why(open_store: StoreMaker) -> None:
    async def resolve(results: Results[str]) -> int:
        return results.counts.total

    @workflow(STAGES, name="failing", resolver=resolve)
    async def failing(document: str) -> str:
        raise ValueError(f"not {document}")

    async with BatchOrchestrator(failing, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x"], config=BatchConfig(failure_policy=AbortAll()))
        await within(batches.result(batch_id))
        explanation = await batches.explain(batch_id)
        assert explanation.state.tag == "failed"
        assert explanation.reasons == [BatchEnded(counts=Counts(total=1, failed=1))]
        assert explanation.headline.startswith(f"The batch {batch_id!r} is in the state 'failed' (")
        with pytest.raises(BatchNotFoundError):
            await batches.explain("nobody's")


async def test_an_orchestrators_explanation_has_its_stages() -> None:
    @workflow(STAGES, name="shout")
    async def shout(document: str) -> str:
        return document

    async with BatchOrchestrator(shout, store=MemoryStore(), max_in_flight=0) as batches:
        batch_id = await batches.submit(["x"])
        assert (await batches.explain(batch_id)).state == await batches.state(batch_id)


async def test_between_two_reads_of_a_batch_that_moves_there_is_still_a_reason() -> None:
    async with scene_of(lambda clock: MemoryStore(clock=clock)) as (scene, _, clock):
        batch_id = await scene.batch(2, concurrency=2)
        hand = await scene.worker()
        await hand.claim()
        record = await scene.look(batch_id)
        nothing = Inspection(now=clock.now())
        explanation = explanation_of(record, nothing, await scene.store.workers(), RecordedStages())
        assert explanation.reasons == [QueuedDocuments(documents=2, since=from_micros(record.created_at))]


# ---- sentences -----------------------------------------------------------------------------------------------------

WAITS = "1 call waits for permits of the limiter 'a', the first since 2031-05-01 12:00:00 UTC, on 1 worker: 'w' (1). "

SENTENCES: list[tuple[Reason, str]] = [
    (
        RunningDocuments(documents=1, oldest_document_id="a", oldest_since=T0, workers={"w": 1}),
        "1 document runs on 1 worker: 'w' (1). Without progress for the longest time, since 2031-05-01 12:00:00 UTC, "
        "is 'a'.",
    ),
    (
        RunningDocuments(documents=3, oldest_document_id="a", oldest_since=T0, workers={"w": 1, "v": 2}, waiting=4),
        "3 documents run on 2 workers: 'v' (2), 'w' (1). Without progress for the longest time, since "
        "2031-05-01 12:00:00 UTC, is 'a'. The batch runs no more at once, and 4 documents wait for that.",
    ),
    (
        SuspendedDocuments(what="retry", name="", documents=1, next_due=T0),
        "1 document waits for a retry, the first until 2031-05-01 12:00:00 UTC.",
    ),
    (SuspendedDocuments(what="signal", name="go", documents=2, next_due=None), "2 documents wait for a signal 'go'."),
    (
        NoWorker(workflow="a", version="2", known=[]),
        "No worker was started with the workflow 'a' in version '2': there is no worker that runs anything.",
    ),
    (
        NoWorker(workflow="a", version="2", known=[("a", "1"), ("b", "1")]),
        "No worker was started with the workflow 'a' in version '2': there are workers for 'a' in version '1', 'b' in "
        "version '1'.",
    ),
    (
        NoWorker(workflow="a", version="1", known=[("a", "1")], too_old=["w"]),
        "The batch needs a newer version of the library than that of the worker with the workflow 'a' in version '1': "
        "'w'.",
    ),
    (
        NoWorker(workflow="a", version="1", known=[("a", "1")], too_old=["v", "w"]),
        "The batch needs a newer version of the library than that of the workers with the workflow 'a' in version "
        "'1': 'v', 'w'.",
    ),
    (
        UnselectedBatch(workflow="a", version="1", workers={"w": "mine", "v": "filter"}),
        "No worker takes from this batch: those with the workflow 'a' in version '1' take from other batches only: "
        "'v' (those of its filter), 'w' (those that its process has submitted).",
    ),
    (
        UnselectedBatch(workflow="a", version="1", workers={f"w{number}": "mine" for number in range(7)}),
        "No worker takes from this batch: those with the workflow 'a' in version '1' take from other batches only: "
        + "".join(f"'w{number}' (those that its process has submitted)" + ", " * (number < 4) for number in range(5))
        + " and 2 more.",
    ),
    (
        DeadWorker(worker="w", documents=2, lease_until=T0),
        "The worker 'w' has 2 documents and does not renew its lease. Other workers take over what it has when the "
        "lease has expired: 2031-05-01 12:00:00 UTC.",
    ),
    (
        ThrottledLimiter(limiter="openai", waiting=3, since=T0, workers={"w": 2, "v": 1}),
        "3 calls wait for permits of the limiter 'openai', the first since 2031-05-01 12:00:00 UTC, on 2 workers: "
        "'v' (1), 'w' (2). Its limits are reached, or its provider fails or has asked to wait.",
    ),
    (
        ThrottledLimiter(limiter="a", waiting=1, since=T0, workers={"w": 1}, until=T0),
        WAITS + "Its limits are reached, or its provider fails or has asked to wait; the next call may begin at "
        "2031-05-01 12:00:00 UTC.",
    ),
    (
        ThrottledLimiter(limiter="a", waiting=1, since=T0, workers={"w": 1}, breaker="open", until=T0),
        WAITS + "Its circuit is open, since its provider fails: no call is made until 2031-05-01 12:00:00 UTC.",
    ),
    (
        ThrottledLimiter(limiter="a", waiting=1, since=T0, workers={"w": 1}, breaker="open"),
        WAITS + "Its circuit is open, since its provider fails: no call is made now.",
    ),
    (
        ThrottledLimiter(limiter="a", waiting=1, since=T0, workers={"w": 1}, breaker="half-open"),
        WAITS + "Its circuit is half-open: a few calls are made, to see if its provider has recovered.",
    ),
    (
        IsolatedDocument(document_id="\x1b[2Ja", crashes=2, worker="w", since=T0, waiting=0),
        "The document '\\x1b[2Ja' was running when its worker crashed, 2 times: it runs on the worker 'w' beside few "
        "others, or none, since 2031-05-01 12:00:00 UTC.",
    ),
    (
        IsolatedDocument(document_id="a", crashes=2, worker=None, since=T0, waiting=1),
        "The document 'a' was running when its worker crashed, 2 times: it waits for a worker that runs few others "
        "since 2031-05-01 12:00:00 UTC; 1 more wait to run like that.",
    ),
    (
        QueuedDocuments(documents=1, since=T0),
        "1 document could run and is not claimed, the first since 2031-05-01 12:00:00 UTC: the workers that could are "
        "full, or serve other batches first.",
    ),
    (
        DamagedBatch(problem="the counts do not sum to their total"),
        "Its row was changed by hand or damaged, and workers pass over it: the counts do not sum to their total. "
        "Restore it from a backup, or submit the documents again.",
    ),
    (ResolverStatus(attempt=1, waits=None), "All documents have finished, and the resolver runs (attempt 1)."),
    (
        ResolverStatus(attempt=1, waits="retry"),
        "All documents have finished, and the resolver waits for a retry (attempts: 1).",
    ),
    (
        BatchEnded(counts=Counts(total=2, succeeded=1, failed=1)),
        "It has ended: 1 of 2 documents succeeded, 1 failed, 0 cancelled.",
    ),
]


@pytest.mark.parametrize(("reason", "sentence"), SENTENCES)
def test_a_reason_is_a_sentence(reason: Reason, sentence: str) -> None:
    assert str(reason) == sentence


async def test_an_explanation_is_its_sentences() -> None:
    async with scene_of(lambda clock: STORE) as (scene, client, _):
        batch_id = await scene.batch(1, workflow=("words", "2"))
        explanation: Explanation = await client.explain(batch_id)
        assert str(explanation) == (
            f"The batch {batch_id!r} is in the state 'pending'.\n"
            "- No worker was started with the workflow 'words' in version '2': there is no worker that runs anything."
        )


STORE = MemoryStore()


async def test_a_pause_for_a_quota_says_what_the_provider_said_and_until_when(maker: StoreMaker) -> None:
    async with scene_of(maker) as (scene, client, clock):
        batch_id = await scene.batch(3)
        hand = await scene.worker("a", lease=1_000)
        await hand.report(hand.refused(await hand.take(), note="Empty: no credit left"))
        began = now(clock)
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == PausedBatch(
            reason="quota", since=began, until=began + timedelta(seconds=30), note="Empty: no credit left"
        )
        assert "because a provider refuses its calls: Empty: no credit left. One document asks again" in str(reason)


def test_of_the_circuits_of_several_workers_the_one_that_lets_the_least_pass_is_said() -> None:
    batch_id, at = BatchId("b"), 5_000_000
    circuits: Mapping[str, Sequence[CircuitOf]] = {
        "u": [],
        "v": [CircuitOf("openai", "closed", None)],
        "w": [CircuitOf("openai", "half-open", at + 1_000_000)],
        "x": [CircuitOf("openai", "open", None)],
        "y": [CircuitOf("openai", "open", at + 3_000_000)],
        "z": [CircuitOf("openai", "open", at + 2_000_000)],
    }
    note = WorkerNote(at, limited=[LimitedCallsOf(batch_id, "openai", 1, at)])
    notes = WorkerNotes(
        WorkerRecord(WorkerId(name), "", "", 0, "", frozenset(), encode_note(note._replace(circuits=of)))
        for name, of in circuits.items()
    )
    cases: Sequence[tuple[str, Circuit, int | None]] = (
        ("u", "closed", None),
        ("uvw", "half-open", 1),
        ("xx", "open", None),
        ("vwx", "open", None),
        ("xyz", "open", 2),
    )
    for workers, state, after in cases:
        until = None if after is None else at + after * 1_000_000
        assert notes.circuit("openai", map(WorkerId, workers)) == CircuitOf("openai", state, until), workers
