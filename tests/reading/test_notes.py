"""What readers find out from the notes of workers, on every store; and that they do as well without any."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

import pytest
from tests.conftest import StoreMaker
from tests.reading.scenes import now, scene_of
from tests.support import NO_DRAIN, STAGES, eventually, opened, within

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchFilter,
    BatchOrchestrator,
    BlockedLoop,
    DurableActivity,
    NoWorker,
    RawDocument,
    Reason,
    ResolverStatus,
    Results,
    RunningDocuments,
    Store,
    UnselectedBatch,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.notes import (
    BlockedAt,
    RunningActivity,
    TakenBatches,
    WorkerNote,
    decode_note,
    encode_note,
)
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import WorkerId
from durable_batches.stores import NotedHeart
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import LETTERS, Hand, Scene

T = TypeVar("T")

RENEWAL: Final = 10
"""Seconds: a third of the lease."""


class Held:
    """An activity that a test holds until it lets it go."""

    def __init__(self, name: str) -> None:
        self.began, self.ends = asyncio.Event(), asyncio.Event()

        @durable_activity(name=name)
        async def waits(text: str) -> str:
            self.began.set()
            await self.ends.wait()
            return text

        self.activity: DurableActivity[[str], str] = waits


async def renewal(worker: Worker, clock: ManualClock, seconds: float = RENEWAL) -> None:
    """Let time pass until the worker has renewed its lease."""
    with worker.signals.lease.renewed.listen() as renewed:
        await eventually(lambda: clock.waiting_threads == 1)
        clock.advance(seconds)
        await renewed.next()


async def documents_of(client: BatchClient, batch_id: str) -> list[RawDocument]:
    return [document async for document in client.documents(batch_id, payloads=False)]


# ---- what runs -----------------------------------------------------------------------------------------------------


async def test_which_activity_a_document_runs_and_since_when(open_store: StoreMaker) -> None:
    clock = ManualClock()
    began: list[str] = []
    first_ends, ends = asyncio.Event(), asyncio.Event()

    @durable_activity
    async def split(text: str) -> str:
        began.append(f"split {text}")
        await first_ends.wait()
        return text

    @durable_activity
    async def ask(text: str) -> str:
        began.append(f"ask {text}")
        await ends.wait()
        return text

    @workflow(STAGES, name="letters")
    async def letters(document: str) -> str:
        if document == "slow":
            return await ask(document)
        return (await asyncio.gather(ask(await split(document)), ask("another")))[0]

    store = open_store(clock)
    worker = Worker(store, clock=clock, drain=NO_DRAIN)
    async with (
        BatchOrchestrator(letters, worker=worker) as batches,
        BatchClient(open_store(clock), clock=clock) as client,
    ):
        batch_id = await batches.submit(
            ["slow", "x", "y"], document_id=lambda text: text, config=BatchConfig(concurrency=2)
        )
        await eventually(lambda: sorted(began) == ["ask slow", "split x"])
        t0 = now(clock)
        for document in await documents_of(client, batch_id):
            assert (document.activity, document.activity_since) == (None, None), "nobody has said anything yet"
        await renewal(worker, clock)
        slow, x, y = await documents_of(client, batch_id)
        assert (slow.status, slow.worker, slow.attempts) == ("running", worker.worker_id, 1)
        assert (slow.activity, slow.activity_since) == ("ask", t0)
        assert (x.activity, x.activity_since) == ("split", t0)
        assert (y.status, y.worker, y.activity, y.activity_since) == ("pending", None, None, None)
        (running,) = (await client.explain(batch_id)).reasons
        assert isinstance(running, RunningDocuments)
        assert running.activities == {"ask": 1, "split": 1}
        assert (running.oldest_activity, running.oldest_activity_since) in [("ask", t0), ("split", t0)]
        assert ", in 'ask' (1), 'split' (1). Without progress" in str(running)
        assert f", in the activity {running.oldest_activity!r} since {t0:%Y-%m-%d %H:%M:%S} UTC." in str(running)

        first_ends.set()
        await eventually(lambda: began.count("ask x") + began.count("ask another") == 2)
        t1 = now(clock)
        assert t1 > t0
        await renewal(worker, clock)
        slow, x, y = await documents_of(client, batch_id)
        assert (slow.activity, slow.activity_since) == ("ask", t0)
        assert (x.activity, x.activity_since) == ("ask", t1)
        ends.set()
        await batches.result(batch_id)
        await renewal(worker, clock)
        assert all(document.activity is None for document in await documents_of(client, batch_id))


async def test_which_activity_a_resolver_runs(open_store: StoreMaker) -> None:
    clock = ManualClock()
    held = Held("link")

    async def resolve(results: Results[str]) -> str:
        return await held.activity(" ".join([outcome.value async for outcome in results]))

    @workflow(STAGES, name="letters", resolver=resolve)
    async def letters(document: str) -> str:
        return document

    worker = Worker(open_store(clock), clock=clock, drain=NO_DRAIN)
    async with BatchOrchestrator(letters, worker=worker) as batches:
        batch_id = await batches.submit(["x"])
        await within(held.began.wait())
        t0 = now(clock)
        await renewal(worker, clock)
        (resolver,) = (await batches.explain(batch_id)).reasons
        assert resolver == ResolverStatus(attempt=1, waits=None, activity="link", activity_since=t0)
        assert str(resolver).endswith(f"(attempt 1), in the activity 'link' since {t0:%Y-%m-%d %H:%M:%S} UTC.")
        held.ends.set()
        await batches.result(batch_id)


async def test_a_call_that_waits_for_its_next_attempt_runs_since_then(open_store: StoreMaker) -> None:
    clock = ManualClock()
    attempts: list[int] = []
    ends = asyncio.Event()

    @durable_activity
    async def ask(text: str) -> str:
        attempts.append(len(attempts) + 1)
        if len(attempts) == 1:
            raise ValueError("no")
        await ends.wait()
        return text

    @workflow(STAGES, name="letters")
    async def letters(document: str) -> str:
        return await ask(document)

    worker = Worker(open_store(clock), clock=clock, drain=NO_DRAIN)
    async with (
        BatchOrchestrator(letters, worker=worker) as batches,
        BatchClient(open_store(clock), clock=clock) as client,
    ):
        batch_id = await batches.submit(["x"])
        await eventually(lambda: len(attempts) == 1 and clock.next_timer is not None)
        clock.advance(5)
        await eventually(lambda: len(attempts) == 2)
        await renewal(worker, clock)
        (document,) = await documents_of(client, batch_id)
        assert document.activity == "ask"
        assert document.activity_since is not None
        assert now(clock) - document.activity_since == timedelta(seconds=RENEWAL)
        ends.set()
        await batches.result(batch_id)


# ---- notes of other versions, and stores without any ---------------------------------------------------------------


async def tell(hand: Hand, note: str, workflows: set[tuple[str, str]] | None = None) -> None:
    def call() -> bool:
        heart = hand.store.heart(hand.worker_id)
        assert isinstance(heart, NotedHeart)
        try:
            return heart.tell(note, workflows or {LETTERS})
        finally:
            heart.close()

    assert await asyncio.to_thread(call)


async def test_a_note_of_another_attempt_says_nothing(open_store: StoreMaker) -> None:
    async with scene_of(open_store) as (scene, client, clock):
        batch_id = await scene.batch(2, concurrency=2)
        hand, other = await scene.worker("a"), await scene.worker("b")
        mine = (await hand.claim(1))[0].execution
        await other.claim(1)
        at = clock.now()
        running = [
            RunningActivity(batch_id, mine.position, mine.attempt + 1, "ask", at),
            RunningActivity(batch_id, 1 - mine.position, 1, "ask", at),
        ]
        await tell(hand, encode_note(WorkerNote(at, running)))
        assert [document.activity for document in await documents_of(client, batch_id)] == [None, None]
        running = [RunningActivity(batch_id, mine.position, mine.attempt, "ask", at)]
        await tell(hand, encode_note(WorkerNote(at, running)))
        found = [document.activity for document in await documents_of(client, batch_id)]
        assert found[mine.position] == "ask"
        assert found[1 - mine.position] is None


@pytest.mark.parametrize("note", ["", "waits for the limiter", '{"v":2,"what":"a newer one"}', '{"v":1}', "[" * 1_000])
async def test_a_note_that_is_not_understood_says_nothing(open_store: StoreMaker, note: str) -> None:
    async with scene_of(open_store) as (scene, client, _):
        batch_id = await scene.batch(1)
        hand = await scene.worker("a")
        await hand.claim()
        before = await client.explain(batch_id)
        documents = await documents_of(client, batch_id)
        await tell(hand, note)
        assert (await scene.store.workers())[0].note == note
        assert await client.explain(batch_id) == before
        assert await documents_of(client, batch_id) == documents
        assert (await client.snapshot(batch_id)).long_calls == ()


class Mute:
    """A store of before `NotedHeart`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def heart(self, worker: WorkerId) -> Any:
        return MuteHeart(self._store.heart(worker))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class MuteHeart:
    def __init__(self, heart: Any) -> None:
        self.beat = heart.beat
        self.close = heart.close


async def test_a_store_that_keeps_no_notes_does_without(open_store: StoreMaker) -> None:
    clock = ManualClock()
    held = Held("ask")

    @workflow(STAGES, name="letters")
    async def letters(document: str) -> str:
        return await held.activity(document)

    store: Any = Mute(open_store(clock))
    worker = Worker(store, clock=clock, drain=NO_DRAIN)
    async with BatchOrchestrator(letters, worker=worker) as batches:
        batch_id = await batches.submit(["x"])
        await within(held.began.wait())
        await renewal(worker, clock)
        assert [record.note for record in await store.workers()] == [None]
        (running,) = (await batches.explain(batch_id)).reasons
        assert isinstance(running, RunningDocuments)
        assert (running.activities, running.oldest_activity) == ({}, None)
        held.ends.set()
        await batches.result(batch_id)


# ---- workflows that come later -------------------------------------------------------------------------------------


async def test_a_workflow_that_is_added_to_a_running_worker_comes_into_its_row(open_store: StoreMaker) -> None:
    clock = ManualClock()

    @workflow(STAGES, name="first")
    async def first(document: str) -> str:
        return document

    @workflow(STAGES, name="later")
    async def later(document: str) -> str:
        return document

    worker = Worker(open_store(clock), clock=clock, drain=NO_DRAIN)
    async with (
        BatchOrchestrator(first, worker=worker),
        opened(open_store(clock)) as store,
        BatchClient(open_store(clock), clock=clock) as client,
    ):
        scene = Scene(store, lambda seconds: asyncio.sleep(0))
        batch_id = await scene.batch(1, workflow=("elsewhere", "1"))
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == NoWorker(workflow="elsewhere", version="1", known=[("first", "1")])
        await renewal(worker, clock)
        BatchOrchestrator(later, worker=worker)
        # Not only with the next renewal that is due.
        await renewal(worker, clock, 1)
        (reason,) = (await client.explain(batch_id)).reasons
        assert reason == NoWorker(workflow="elsewhere", version="1", known=[("first", "1"), ("later", "1")])


# ---- which batches a worker takes from -----------------------------------------------------------------------------


@workflow(STAGES, name="letters")
async def letters(document: str) -> str:
    return document


async def test_a_batch_that_no_filter_takes(open_store: StoreMaker) -> None:
    """Said from the moment on at which the workers are there."""
    clock = ManualClock()
    async with (
        BatchOrchestrator(letters, worker=Worker(open_store(clock), clock=clock, max_in_flight=0)) as batches,
        BatchClient(open_store(clock), clock=clock) as client,
    ):
        config = BatchConfig(metadata={"team": "a", "kind": "x"})
        batch_id = await batches.submit(["x"], config=config)

        async def with_workers(*selections: BatchFilter | Literal["mine"]) -> tuple[list[WorkerId], Reason]:
            workers = [Worker(open_store(clock), clock=clock, batches=batches) for batches in selections]
            async with AsyncExitStack() as stack:
                for worker in workers:
                    await stack.enter_async_context(BatchOrchestrator(letters, worker=worker))
                (reason,) = (await client.explain(batch_id)).reasons
                return [worker.worker_id for worker in workers], reason

        (mine, filtered), reason = await with_workers("mine", BatchFilter(metadata={"team": "b"}))
        assert reason == UnselectedBatch(workflow="letters", version="1", workers={mine: "mine", filtered: "filter"})
        _, reason = await with_workers(BatchFilter(batch_ids=["other"]), BatchFilter(metadata={"team": "a", "k": ""}))
        assert reason.tag == "unselected"


async def test_what_a_filter_takes_is_queued(open_store: StoreMaker) -> None:
    async with scene_of(open_store) as (scene, client, clock):
        batch_id, other = await scene.batch(1), await scene.batch(1)
        hand = await scene.worker("a", lease=3_600)
        at = clock.now()

        async def tags(takes: TakenBatches | None, at: int = at) -> list[list[str]]:
            await tell(hand, encode_note(WorkerNote(at, takes=takes)))
            found = [await client.explain(each) for each in (batch_id, other)]
            return [[reason.tag for reason in explanation.reasons] for explanation in found]

        assert await tags(None) == [["queued"], ["queued"]]
        assert await tags(TakenBatches(frozenset([batch_id]))) == [["queued"], ["unselected"]]
        assert await tags(TakenBatches(frozenset([batch_id]), more=True)) == [["queued"], ["queued"]]
        assert await tags(TakenBatches(metadata={"team": "a"})) == [["unselected"], ["unselected"]]
        # Its own, of before the batches were submitted: it may have submitted them.
        created = (await scene.look(batch_id)).created_at
        assert await tags(TakenBatches(own=True), created - 1) == [["queued"], ["queued"]]
        assert await tags(TakenBatches(own=True), created) == [["unselected"], ["unselected"]]
        assert await tags(TakenBatches(), created - 1) == [["unselected"], ["unselected"]]
        # It has a document of the one, by what it took from before.
        await hand.claim(1)
        assert await tags(TakenBatches()) == [["running"], ["unselected"]]
        await scene.worker("b", lease=3_600)
        assert await tags(TakenBatches()) == [["running"], ["queued"]]


async def test_a_batch_that_a_worker_attaches_to_comes_into_its_row(open_store: StoreMaker) -> None:
    clock = ManualClock()
    held = Held("ask")

    @workflow(STAGES, name="letters")
    async def waits(document: str) -> str:
        return await held.activity(document)

    worker = Worker(open_store(clock), clock=clock, drain=NO_DRAIN, batches="mine", max_in_flight=1)
    submitter = Worker(open_store(clock), clock=clock, max_in_flight=0)
    async with BatchOrchestrator(letters, worker=submitter) as submits:
        await submits.submit(["x"], batch_id="monday")
    async with (
        BatchOrchestrator(waits, worker=worker) as batches,
        BatchClient(open_store(clock), clock=clock) as client,
    ):
        await batches.submit(["x"], batch_id="own")
        await within(held.began.wait())
        await renewal(worker, clock, 1)
        assert [each.tag for each in (await client.explain("monday")).reasons] == ["unselected"]
        # It is full, and cannot take anything of the batch yet.
        await batches.submit([], batch_id="monday")
        await renewal(worker, clock, 1)
        assert [each.tag for each in (await client.explain("monday")).reasons] == ["queued"]
        held.ends.set()
        await batches.result("own")
        assert (await within(batches.result("monday"))).counts.succeeded == 1


# ---- event loops that are blocked ----------------------------------------------------------------------------------


def in_another_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it on a thread with an event loop of its own, and block until it is done."""
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(make())))
    thread.start()
    thread.join()
    return answers[0]


class Blocking:
    """Blocks the event loop until the worker's row says so."""

    def __init__(self, worker: Worker, clock: ManualClock, read: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._lease = worker.signals.lease
        self._clock = clock
        self._read = read
        self.found: Any = None

    def blocks(self) -> None:
        """Called on the event loop, which is not to be blocked."""
        looked, renewed, blocked = threading.Semaphore(0), threading.Semaphore(0), list[object]()
        with (
            self._lease.blocked.heard_by(blocked.append),
            self._lease.looked.heard_by(lambda _: looked.release()),
            self._lease.renewed.heard_by(lambda _: renewed.release()),
        ):
            while not blocked:
                while self._clock.waiting_threads != 1:
                    pass
                self._clock.advance(0.25)
                while not looked.acquire(blocking=False):
                    pass
            while not renewed.acquire(blocking=False):
                pass
        self.found = in_another_loop(self._read)


async def test_where_an_event_loop_is_blocked(open_store: StoreMaker, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    worker = Worker(open_store(clock), clock=clock, drain=NO_DRAIN)

    async def explained() -> tuple[Reason, ...]:
        async with BatchClient(open_store(clock), clock=clock) as client:
            return tuple((await client.explain("monday")).reasons)

    blocking = Blocking(worker, clock, explained)

    @durable_activity
    async def parse(text: str) -> str:
        blocking.blocks()
        return text

    @workflow(STAGES, name="letters")
    async def letters(document: str) -> str:
        return await parse(document)

    async with BatchOrchestrator(letters, worker=worker) as batches:
        # Not by the signals that its own blocked loop would have to hand on.
        began = now(clock)
        batch_id = await batches.submit(["x"], batch_id="monday")
        result = await batches.result(batch_id)
        assert result.counts.succeeded == 1
        blocked, running = blocking.found
        assert isinstance(blocked, BlockedLoop)
        assert (blocked.worker, blocked.since, blocked.documents) == (worker.worker_id, began, 1)
        assert blocked.until is None
        assert __file__ in blocked.where
        assert blocked.where.endswith(" in Blocking.blocks")
        assert str(blocked).startswith(f"The event loop of the worker {worker.worker_id!r} does not turn since ")
        assert str(blocked).endswith(f"{blocked.where}. It has 1 document of the batch.")
        assert isinstance(running, RunningDocuments)
        assert running.activities == {"parse": 1}
        (warning,) = [record for record in caplog.records if "blocked" in record.message]
        assert warning.levelno == logging.WARNING
        assert "activity 'parse' in document '0' of batch 'monday' does not let it turn" in warning.message
        assert (warning.__dict__["activity"], warning.__dict__["document_id"]) == ("parse", "0")
        # That it is over is told at once, too.
        with worker.signals.lease.renewed.listen() as renewed:
            await eventually(lambda: clock.waiting_threads == 1)
            clock.advance(1)
            await renewed.next()
        (record,) = await worker.store.workers()
        note = decode_note(record.note)
        assert note is not None
        assert note.blocked is not None
        assert note.blocked.until is not None
        assert from_micros(note.blocked.until) <= now(clock)


async def test_how_long_a_block_is_told(open_store: StoreMaker) -> None:
    async with scene_of(open_store) as (scene, client, clock):
        batch_id, other = await scene.batch(1), await scene.batch(1, workflow=("others", "1"))
        hand = await scene.worker("a", lease=3_600)
        since = clock.now()
        clock.advance(5)
        note = WorkerNote(clock.now(), blocked=BlockedAt("jobs.py:7 in parse", since, clock.now()))
        await tell(hand, encode_note(note))

        async def blocked() -> list[Reason]:
            return [each for each in (await client.explain(batch_id)).reasons if each.tag == "blocked-loop"]

        (reason,) = await blocked()
        assert reason == BlockedLoop(
            worker="a",
            since=from_micros(since),
            until=now(clock),
            where="jobs.py:7 in parse",
            documents=0,
        )
        assert "did not turn for 5.0 s until" in str(reason)
        # It is no reason for what another worker runs.
        assert [each.tag for each in (await client.explain(other)).reasons] == ["no-worker"]
        clock.advance(59)
        assert len(await blocked()) == 1
        clock.advance(1)
        assert await blocked() == []
        # One that lasts is told as long as the worker is alive.
        await tell(hand, encode_note(note._replace(blocked=BlockedAt("jobs.py:7 in parse", since, None))))
        clock.advance(600)
        assert len(await blocked()) == 1
