"""How much runs at once: never more than was asked for, that much where there is work, and everybody in turn."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DELAY, STAGES, Gauge, at_rest, eventually, everything, moving, turns, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentReleased,
    DocumentSucceeded,
    MemoryStore,
    RetryFailed,
    Store,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.stores import ClaimRequest, Committed, Fact, WorkerId
from durable_batches.testing import ManualClock


async def settle(gauge: Gauge, expected: int, *workers: Worker) -> None:
    """Wait for as many as are to be inside, and until no worker can claim any that are not to."""
    await eventually(lambda: gauge.inside == expected)
    await at_rest(*workers)
    assert gauge.inside == expected


@pytest.mark.parametrize(
    ("concurrency", "in_flight", "expected"), [(1, 100, 1), (5, 100, 5), (50, 7, 7), (100, 100, 40)], ids=str
)
async def test_the_bounds_are_reached_and_never_exceeded(
    concurrency: int, in_flight: int, expected: int, store: Store
) -> None:
    gauge = Gauge()
    gate = asyncio.Event()

    @workflow(STAGES)
    async def run(document: int) -> int:
        with gauge:
            await gate.wait()
            await turns(3)
        return document

    async with BatchOrchestrator(run, store=store, max_in_flight=in_flight) as batches:
        batch_id = await batches.submit(range(40), config=BatchConfig(concurrency=concurrency))
        await settle(gauge, expected, batches.worker)
        gate.set()
        assert (await within(batches.result(batch_id))).counts.succeeded == 40
    assert gauge.most == expected


async def test_a_freed_slot_is_filled_at_once(store: Store) -> None:
    gauge = Gauge()
    gates: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    @workflow(STAGES)
    async def run(document: int) -> int:
        with gauge:
            await gates[document].wait()
        return document

    async with BatchOrchestrator(run, store=store) as batches:
        batch_id = await batches.submit(range(9), config=BatchConfig(concurrency=3))
        await settle(gauge, 3, batches.worker)
        for document in range(6):
            gates[document].set()
            await eventually(lambda following=document + 3: following in gates)  # type: ignore[misc]
            await settle(gauge, 3, batches.worker)
        for document in range(6, 9):
            gates[document].set()
        await within(batches.result(batch_id))
    assert gauge.most == 3


async def test_a_batch_s_bound_counts_over_all_workers(open_store: StoreMaker) -> None:
    store = open_store(None)
    gauge = Gauge()
    gate = asyncio.Event()
    ran: Counter[int] = Counter()

    @workflow(STAGES)
    async def run(document: int) -> int:
        with gauge:
            ran[document] += 1
            await gate.wait()
            await turns(3)
        return document

    workers = [BatchOrchestrator(run, worker=Worker(store, max_in_flight=4)) for _ in range(3)]
    async with workers[0] as batches, workers[1], workers[2]:
        batch_id = await batches.submit(range(60), config=BatchConfig(concurrency=6))
        await settle(gauge, 6, *(each.worker for each in workers))
        gate.set()
        assert (await within(batches.result(batch_id))).counts.succeeded == 60
    assert gauge.most == 6
    assert all(times == 1 for times in ran.values())
    assert sum(worker.stats.documents_run for worker in workers) == 60
    assert sum(worker.stats.documents_run > 0 for worker in workers) >= 2


async def test_one_budget_for_all_workflows_of_a_worker(store: Store) -> None:
    gauge = Gauge()
    all_five = asyncio.Barrier(5)

    @workflow(STAGES)
    async def one(document: int) -> int:
        with gauge:
            await all_five.wait()
        return document

    @workflow(STAGES)
    async def other(document: str) -> str:
        with gauge:
            await all_five.wait()
        return document

    worker = Worker(store, max_in_flight=5)
    ones, others = BatchOrchestrator(one, worker=worker), BatchOrchestrator(other, worker=worker)
    async with worker:
        numbers, texts = await within(
            asyncio.gather(
                ones.run(range(30), config=BatchConfig(concurrency=30)),
                others.run(map(str, range(30)), config=BatchConfig(concurrency=30)),
            )
        )
        assert numbers.counts.succeeded == texts.counts.succeeded == 30
        assert await everything(others.results(texts.batch_id)) == [
            DocumentSucceeded(document_id=str(n), value=str(n)) for n in range(30)
        ]
    assert gauge.most == 5


@pytest.mark.parametrize("capacity", [1, 4])
async def test_a_large_batch_does_not_starve_a_small_one(capacity: int, store: Store) -> None:
    finished: list[str] = []
    both_are_there = asyncio.Event()

    @workflow(STAGES)
    async def run(document: str) -> str:
        await asyncio.sleep(0)
        if len(finished) >= 10:
            await both_are_there.wait()
        finished.append(document)
        return document

    async with BatchOrchestrator(run, store=store, max_in_flight=capacity) as batches:
        large = await batches.submit(["large"] * 60, config=BatchConfig(concurrency=100))
        await eventually(lambda: len(finished) == 10)
        small = await batches.submit(["small"] * 5, config=BatchConfig(concurrency=100))
        both_are_there.set()
        await within(asyncio.gather(batches.result(small), batches.result(large)))
    # They take turns: by the time the small one is through, the large one has not had many more.
    through = len(finished) - finished[::-1].index("small")
    assert through - 10 <= 5 * 2 + 4 * capacity
    assert len(finished) == 65


async def test_waiting_documents_of_many_batches_all_get_their_turn(store: Store) -> None:
    attempts: Counter[str] = Counter()

    @workflow(STAGES)
    async def run(document: str) -> str:
        attempts[document] += 1
        if attempts[document] == 1:
            raise ValueError
        return document

    config = BatchConfig(failure_policy=RetryFailed(backoff=NO_DELAY), concurrency=2)
    async with BatchOrchestrator(run, store=store, max_in_flight=3, config=config) as batches:
        ids = [await batches.submit([f"{batch}-{n}" for n in range(4)]) for batch in range(8)]
        results = await within(asyncio.gather(*map(batches.result, ids)))
    assert [result.counts.succeeded for result in results] == [4] * 8
    assert set(attempts.values()) == {2}


async def test_batches_of_a_workflow_that_nobody_here_has_are_left_alone(open_store: StoreMaker) -> None:
    store = open_store(None)

    @workflow(STAGES, name="here", version="2", accepts=("1",))
    async def here(document: str) -> str:
        return document + "2"

    @workflow(STAGES, name="here")
    async def older(document: str) -> str:
        return document + "1"

    @workflow(STAGES, name="here", version="3")
    async def newer(document: str) -> str:
        return document + "3"

    @workflow(STAGES, name="elsewhere")
    async def elsewhere(document: str) -> str:
        return document

    submitted: list[str] = []
    for other in (older, newer, elsewhere):
        async with BatchOrchestrator(other, store=store, max_in_flight=0) as batches:
            submitted.append(await batches.submit(["a"]))
    worker = Worker(store)
    async with BatchOrchestrator(here, worker=worker) as batches:
        result = await within(batches.result(submitted[0]))
        assert await everything(batches.results(result.batch_id)) == [DocumentSucceeded(document_id="0", value="a2")]
        await within(batches.run(["b"]))
        assert (await batches.snapshot(submitted[1])).counts.pending == 1
        # A workflow may come later.
        others = BatchOrchestrator(elsewhere, worker=worker)
        assert (await within(others.result(submitted[2]))).counts.succeeded == 1


# ---- leaving -----------------------------------------------------------------------------------------------


async def test_leaving_waits_for_what_runs_and_starts_nothing_more(open_store: StoreMaker) -> None:
    calls: list[str] = []
    started, leaving = asyncio.Event(), asyncio.Event()

    @durable_activity
    async def step(name: str) -> str:
        calls.append(name)
        if name == "a":
            started.set()
            await leaving.wait()
            await turns(50)
        return name

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step("a") + await step("b")

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x", "y"], config=BatchConfig(concurrency=1))
        await within(started.wait())
        leaving.set()
    assert calls == ["a"]
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        # What was paid for while it was leaving is there.
        assert await batches.count_checkpoints(batch_id) >= 1
        assert (await within(batches.result(batch_id))).counts.succeeded == 2
    assert calls == ["a", "b", "a", "b"]


async def test_leaving_does_not_wait_longer_than_the_drain(open_store: StoreMaker) -> None:
    log: list[str] = []

    @durable_activity
    async def endless() -> None:
        log.append("started")
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    @workflow(STAGES)
    async def run(document: str) -> None:
        await endless()

    worker = Worker(open_store(None), drain=timedelta(milliseconds=30))
    async with asyncio.timeout(10):
        async with BatchOrchestrator(run, worker=worker) as batches:
            batch_id = await batches.submit(["x"])
            await eventually(lambda: bool(log))
    assert log == ["started", "cancelled"]
    async with BatchOrchestrator(run, store=open_store(None), max_in_flight=0) as batches:
        (info,) = await everything(batches.documents(batch_id))
        # Given back at once, for the next worker, and no crash counted.
        assert (info.status, info.attempts) == ("pending", 1)


async def test_nothing_begins_while_a_worker_drains_and_its_clock_bounds_the_drain() -> None:
    clock, log = ManualClock(), list[tuple[str, float]]()
    left_at = 0.0

    def note(what: str) -> None:
        log.append((what, clock.boot() - left_at))

    @durable_activity
    async def wait(seconds: int) -> None:
        note(f"{seconds} began")
        try:
            await clock.sleep(seconds)
            note(f"{seconds} ended")
        except asyncio.CancelledError:
            note(f"{seconds} cancelled")
            raise

    @workflow(STAGES)
    async def run(document: int) -> None:
        await wait(document)
        await wait(document + 1)

    worker = Worker(MemoryStore(clock=clock), drain=timedelta(seconds=10), clock=clock)
    async with AsyncExitStack() as time, BatchOrchestrator(run, worker=worker) as batches:
        await batches.submit([4, 1_000, 7], config=BatchConfig(concurrency=2))
        await eventually(lambda: len(log) == 2)
        log.clear()
        left_at = clock.boot()
        # Time passes from here until the worker has left.
        await time.enter_async_context(moving(clock, 1))
    assert log == [("4 ended", 4.0), ("1000 cancelled", 10.0)]


async def test_leaving_does_not_wait_for_a_retry_s_delay(open_store: StoreMaker) -> None:
    failed = asyncio.Event()

    @durable_activity
    async def step() -> None:
        failed.set()
        raise ConnectionError

    @workflow(STAGES)
    async def run(document: str) -> None:
        await step()

    async with asyncio.timeout(10):
        async with BatchOrchestrator(run, store=open_store(None)) as batches:
            batch_id = await batches.submit(["x"])
            await within(failed.wait())
            await turns(20)
    async with BatchOrchestrator(run, store=open_store(None), max_in_flight=0) as batches:
        assert (await batches.snapshot(batch_id)).counts.pending == 1


@pytest.mark.parametrize("beside", [False, True], ids=["nothing runs", "another one runs"])
async def test_what_is_being_claimed_when_it_is_left_is_given_back(
    beside: bool, open_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(None)
    commit = store.commit
    claimed: list[str] = []
    begun: list[str] = []
    leaving = asyncio.Event()

    async def slow(
        worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        committed = await commit(worker, number, facts, claim)
        claimed.extend(claim.execution.document_id for claim in committed.claims)
        if "late" in claimed:
            await leaving.wait()
            await turns(50)
        return committed

    @durable_activity
    async def step(name: str) -> str:
        begun.append(name)
        await eventually(lambda: name == "late" or not beside or "late" in claimed)
        await turns(20)
        return name

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step(document)

    monkeypatch.setattr(store, "commit", slow)
    tasks = asyncio.all_tasks()
    async with BatchOrchestrator(run, store=store) as batches:
        if beside:
            await batches.submit(["early"], document_id=str)
            await eventually(lambda: begun == ["early"])
        batch_id = await batches.submit(["late"], document_id=str)
        await eventually(lambda: "late" in claimed)
        leaving.set()
    assert begun == ["early"] * beside
    assert asyncio.all_tasks() == tasks
    monkeypatch.undo()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        events = await within(everything(batches.progress(batch_id)))
    assert [event.reason for event in events if isinstance(event, DocumentReleased)] == ["shutdown"]
    assert begun[-1] == "late"


@pytest.mark.parametrize("way", ["gather", "suppress"])
async def test_what_is_unwound_by_leaving_is_no_success(way: str, open_store: StoreMaker) -> None:
    """A workflow that swallows the cancellation of its calls has not done its work."""
    calls: list[str] = []
    started, leaving = asyncio.Event(), asyncio.Event()

    @durable_activity
    async def step(name: str) -> str:
        calls.append(name)
        if name.startswith("a"):
            started.set()
            await leaving.wait()
            await turns(50)
        return name

    async def chain(number: int) -> str:
        return await step(f"a{number}") + await step(f"b{number}")

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        if way == "gather":
            answers = await asyncio.gather(chain(1), chain(2), return_exceptions=True)
            return [answer for answer in answers if isinstance(answer, str)]
        done: list[str] = []
        for number in (1, 2):
            try:
                done.append(await chain(number))
            except asyncio.CancelledError:
                continue
        return done

    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x"])
        await within(started.wait())
        leaving.set()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        await within(batches.result(batch_id))
        assert await everything(batches.results(batch_id)) == [
            DocumentSucceeded(document_id="0", value=["a1b1", "a2b2"])
        ]


async def test_leaving_with_an_error_passes_it_on(store: Store) -> None:
    @workflow(STAGES)
    async def run(document: str) -> None:
        await asyncio.sleep(60)

    async def leave_with_an_error() -> None:
        async with BatchOrchestrator(run, worker=Worker(store, drain=NO_DELAY)) as batches:
            await batches.submit(["x"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await leave_with_an_error()


async def test_nothing_is_left_behind(open_store: StoreMaker) -> None:
    @durable_activity
    def step(text: str) -> str:
        return text

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await step(document)

    before = set(threading.enumerate())
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        await within(batches.run(["a"] * 20))
        async for _ in batches.list_batches():
            pass
    assert asyncio.all_tasks() == {asyncio.current_task()}
    # Another test may have left one on purpose: a function in it never ends, or does so in its own time.
    await eventually(
        lambda: not any(thread.name.startswith("durable-batches") for thread in set(threading.enumerate()) - before)
    )
