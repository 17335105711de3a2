"""Outages of the store in virtual time: what was paid for is kept, and nothing begins that cannot be recorded."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support import NO_DRAIN, STAGES, everything, moving, within
from tests.worker.outages import Line, Provider, Time

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    BatchResult,
    DocumentReleased,
    DocumentSucceeded,
    MemoryStore,
    Results,
    RetryFailed,
    RetryPolicy,
    Worker,
    Workflow,
    durable_activity,
    workflow,
)
from durable_batches.errors import CommitUnknownError, StoreReadOnlyError
from durable_batches.lifecycle.records import WorkerId
from durable_batches.testing import ManualClock

DOCUMENTS = 150
CALL = 4.0
WIDE = BatchConfig(concurrency=100)


class Scene:
    """Workers with a line each to one store in memory, and a provider that they ask."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.provider = Provider(self.clock)
        self.lines: list[Line] = []
        self.workers: list[Worker] = []
        self.time = Time(self.clock)

    async def orchestrator(
        self, flow: Workflow[Any, Any, Any, Any], *, lease: float = 30.0, **options: Any
    ) -> BatchOrchestrator[Any, Any, Any, Any]:
        """A process more."""
        self.lines.append(Line(self.store))
        worker = Worker(self.lines[-1], lease=timedelta(seconds=lease), clock=self.clock, drain=NO_DRAIN, **options)
        batches = await self._stack.enter_async_context(BatchOrchestrator(flow, worker=worker))
        self.workers.append(worker)
        return batches

    async def begun(
        self,
        flow: Workflow[Any, Any, Any, Any],
        documents: int,
        *,
        seconds: float,
        **options: Any,
    ) -> tuple[BatchOrchestrator[Any, Any, Any, Any], asyncio.Task[BatchResult[Any]]]:
        """A process more that has run a batch for this long, and what waits for the batch's result."""
        batches = await self.orchestrator(flow, **options)
        batch_id = await batches.submit(range(documents), config=WIDE)
        result = asyncio.create_task(batches.result(batch_id))
        await self.time.pass_by(seconds)
        return batches, result

    async def expired_in_outage(self, batches: BatchOrchestrator[Any, Any, Any, Any]) -> WorkerId:
        """Cut all lines for as long as calls take, and have others expire this worker then; return its id."""
        worker_id = batches.worker.worker_id
        self.cut()
        await self.time.pass_by(28)
        assert list((await self.store.expire(dead=[worker_id])).workers) == [worker_id]
        return worker_id

    def cut(self, *numbers: int) -> None:
        for number in numbers or range(len(self.lines)):
            self.lines[number].cut = True

    def mend(self) -> None:
        for line in self.lines:
            line.cut = False

    def asking(self, *seconds: float) -> Workflow[int, list[int], Any, Any]:
        """A workflow that asks the provider once for each of these durations, one after the other."""

        @durable_activity(retry=RetryPolicy(max_attempts=1))
        async def ask(number: int, step: int) -> int:
            await self.provider.ask((number, step), seconds[step])
            # Another answer each time.
            return self.provider.asked[number, step]

        @workflow(STAGES, name="asking")
        async def flow(number: int) -> list[int]:
            return [await ask(number, step) for step in range(len(seconds))]

        return flow

    def asking_behind(self, gate: asyncio.Event) -> Workflow[int, int, Any, Any]:
        """A workflow that asks the provider once the gate is open."""

        @durable_activity
        async def ask(number: int) -> int:
            await self.provider.ask(number, CALL)
            return number

        @workflow(STAGES)
        async def flow(number: int) -> int:
            await gate.wait()
            return await ask(number)

        return flow


@asynccontextmanager
async def scene() -> AsyncGenerator[Scene]:
    async with AsyncExitStack() as stack:
        here = Scene(stack)
        try:
            yield here
        finally:
            here.mend()
            async with moving(here.clock, 1.0):
                await stack.aclose()


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


# ---- for everybody ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "lease"), [(28, 30), (28, 15), (100, 30)])
async def test_an_outage_repeats_no_call(seconds: int, lease: float, caplog: pytest.LogCaptureFixture) -> None:
    """Calls in flight go on, and their results are recorded when the store is back, also after the lease."""
    async with scene() as here:
        batches = await here.orchestrator(here.asking(CALL), lease=lease, max_in_flight=50)
        batch_id = await batches.submit(range(DOCUMENTS), config=BatchConfig(concurrency=50, max_crashes=1))
        worker_id = batches.worker.worker_id
        result = asyncio.create_task(batches.result(batch_id))
        await here.time.pass_by(6)
        here.cut()
        await here.time.pass_by(seconds)
        # What was in flight has been answered meanwhile, and nothing else was asked.
        assert here.provider.asked == here.provider.answered
        assert here.provider.asked.total() == 100
        here.mend()
        await here.time.until(result)
        assert result.result().counts.succeeded == DOCUMENTS
        assert here.provider.asked.total() == DOCUMENTS
        assert batches.worker.worker_id == worker_id
        events = await within(everything(batches.progress(batch_id)))
        assert not [event for event in events if isinstance(event, DocumentReleased)]
    began, ended = lines(caplog)
    assert began.message.startswith("store unavailable: nobody answers; waiting: ")
    assert ended.message.startswith("store connection restored after ")
    assert seconds - 1 <= ended.__dict__["outage_seconds"] <= seconds + 5


async def test_calls_that_outlast_the_outage_go_on() -> None:
    async with scene() as here:
        _, result = await here.begun(here.asking(90.0, CALL), 3, seconds=6)
        here.cut()
        await here.time.pass_by(60)
        here.mend()
        await here.time.until(result)
        assert here.provider.asked.total() == 6


async def test_nobody_is_expired_in_an_outage_that_all_see() -> None:
    """The first worker that reaches the store leaves the others time to renew their leases, a whole one."""
    async with scene() as here:
        first = await here.orchestrator(here.asking(CALL, CALL), max_in_flight=5)
        other = await here.orchestrator(here.asking(CALL, CALL), max_in_flight=5)
        batch_id = await first.submit(range(40), config=BatchConfig(max_crashes=1))
        ids = [worker.worker_id for worker in here.workers]
        result = asyncio.create_task(other.result(batch_id))
        await here.time.pass_by(6)
        here.cut()
        await here.time.pass_by(100)
        # The other one notices 20 s later; its lease has run out long ago.
        here.lines[0].cut = False
        await here.time.pass_by(20)
        assert [worker.worker_id for worker in await here.store.workers()] == ids
        here.mend()
        await here.time.until(result)
        assert here.provider.asked.total() == 80
        assert [worker.worker_id for worker in here.workers] == ids


async def test_a_worker_that_does_not_come_back_is_expired_a_lease_later() -> None:
    async with scene() as here:
        first = await here.orchestrator(here.asking(CALL), max_in_flight=5)
        await here.orchestrator(here.asking(CALL), max_in_flight=5)
        dead = here.workers[1].worker_id
        batch_id = await first.submit(range(40))
        result = asyncio.create_task(first.result(batch_id))
        await here.time.pass_by(2)
        here.cut()
        await here.time.pass_by(60)
        here.lines[0].cut = False
        await here.time.pass_by(29)
        assert dead in [worker.worker_id for worker in await here.store.workers()]
        await here.time.until(result)
        assert dead not in [worker.worker_id for worker in await here.store.workers()]
        # What the other one had in flight, or had answered and could not record, is asked again; nothing else.
        assert here.provider.asked.total() == 45
        here.mend()
        await here.time.pass_by(5)


async def test_a_failure_of_a_moment_delays_nothing() -> None:
    async with scene() as here:
        first = await here.orchestrator(here.asking(CALL), max_in_flight=5)
        await here.orchestrator(here.asking(CALL), max_in_flight=5)
        batch_id = await first.submit(range(40))
        result = asyncio.create_task(first.result(batch_id))
        await here.time.pass_by(2)
        here.cut(1)
        await here.time.pass_by(20)
        with first.worker.signals.journal.pausing.listen() as pausing:
            here.cut(0)
            first.worker.wake()
            await pausing.next()
            here.clock.advance(0.5)
            await here.time.settle()
        here.lines[0].cut = False
        await here.time.pass_by(15)
        assert len(await here.store.workers()) == 1
        await here.time.until(result)
        here.mend()
        await here.time.pass_by(5)


# ---- for one worker, which others have expired -------------------------------------------------------------------


async def test_what_finished_is_recorded_by_the_next_session(caplog: pytest.LogCaptureFixture) -> None:
    """Its lease was lost meanwhile, and it is registered anew: what was paid for is found, before it claims."""
    caplog.set_level(logging.INFO)
    async with scene() as here:
        batches, result = await here.begun(here.asking(CALL, CALL), 20, seconds=6, max_in_flight=20)
        first = await here.expired_in_outage(batches)
        here.mend()
        await here.time.until(result)
        assert result.result().counts.succeeded == 20
        assert batches.worker.worker_id != first
        assert here.provider.asked.total() == 40
        assert batches.worker.stats.activities_replayed == 40
    (told,) = [record for record in caplog.records if "recorded" in record.__dict__]
    assert (told.__dict__["recorded"], told.__dict__["results"]) == (20, 20)


async def test_the_first_record_wins() -> None:
    """Another worker has taken over meanwhile, and has asked again: its results stand, or what it runs goes on."""
    async with scene() as here:
        flow = here.asking(CALL, 30.0, CALL)
        first = await here.orchestrator(flow, max_in_flight=10)
        batch_id = await first.submit(range(10), config=WIDE)
        result = asyncio.create_task(first.result(batch_id))
        await here.time.pass_by(2)
        here.cut(0)
        await here.time.pass_by(6)
        assert here.provider.answered.total() == 10
        other = await here.orchestrator(flow, max_in_flight=4)
        await here.store.expire(dead=[first.worker.worker_id])
        other.worker.wake()
        await here.time.pass_by(2)
        # Some were asked again by the other one, which goes on with them; the answers of the others are kept.
        taken_over = here.provider.asked_again
        assert 0 < len(taken_over) <= 4
        here.mend()
        await here.time.until(result)
        assert result.result().counts.succeeded == 10
        assert here.provider.asked_again == taken_over
        # What a document came to is what is recorded of its calls.
        async for outcome in first.results(batch_id):
            assert isinstance(outcome, DocumentSucceeded)
            recorded = await here.store.checkpoints(batch_id, int(outcome.document_id), limit=10)
            assert sorted(json.loads(checkpoint.payload) for checkpoint in recorded) == sorted(outcome.value)
        assert here.provider.asked.total() == 30 + len(taken_over)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("expired", [False, True], ids=["alone", "expired"])
async def test_an_outage_at_any_write_repeats_no_call(moment: str, expired: bool) -> None:
    """Before it is applied, or after, before its reply; and also where others have expired the worker meanwhile."""
    number = 1
    while await _is_reached_and_survived(number, moment, expired=expired):
        number += 1
    assert number > 6


async def _is_reached_and_survived(number: int, moment: str, *, expired: bool) -> bool:
    """Cut the line at a commit; return whether the batch took that many."""
    async with scene() as here:
        batches = await here.orchestrator(here.asking(CALL, CALL), max_in_flight=4)
        batch_id = await batches.submit(range(6), config=BatchConfig(concurrency=3, max_crashes=100))
        line, commits = here.lines[0], 0

        def cut(method: str, when: str) -> None:
            nonlocal commits
            if when == moment and method == "commit":
                commits += 1
                if commits == number:
                    here.cut()
                    raise CommitUnknownError("the reply was lost") if when == "after" else line.error()

        line.on_write = cut
        result = asyncio.create_task(batches.result(batch_id))
        for _ in range(30):
            await here.time.pass_by(1)
            if line.cut:
                # All that was in flight is answered meanwhile.
                await here.time.pass_by(40)
                if expired:
                    await here.store.expire(dead=[batches.worker.worker_id])
                here.mend()
        await here.time.until(result)
        assert result.result().counts.succeeded == 6
        assert here.provider.asked.total() == 12, f"the outage at commit {number} cost a call"
        return commits >= number


async def test_results_that_are_kept_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async with scene() as here:
        batches, result = await here.begun(here.asking(CALL), 20, seconds=1, max_in_flight=20, max_kept_bytes=500)
        await here.expired_in_outage(batches)
        here.mend()
        await here.time.until(result)
        (told,) = [record for record in caplog.records if "max_bytes" in record.__dict__]
        dropped = told.__dict__["results"]
        assert 0 < told.__dict__["kept_bytes"] <= 500
        assert 0 < dropped < 20
        assert here.provider.asked.total() == 20 + dropped


async def test_a_store_of_level_1_is_given_no_late_results(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not know this kind of fact: they are dropped with a warning, and their activities run again."""
    capabilities = replace(MemoryStore().capabilities, level=1)
    monkeypatch.setattr(MemoryStore, "capabilities", capabilities)
    async with scene() as here:
        batches, result = await here.begun(here.asking(CALL), 20, seconds=1, max_in_flight=20)
        await here.expired_in_outage(batches)
        here.mend()
        await here.time.until(result)
        (told,) = [record for record in caplog.records if "max_bytes" in record.__dict__]
        assert told.__dict__["results"] == 20
        assert here.provider.asked.total() == 40


async def test_results_survive_several_sessions() -> None:
    """The store goes away again before the next session has recorded them."""
    async with scene() as here:
        batches, result = await here.begun(here.asking(CALL), 20, seconds=1, max_in_flight=20)
        line = here.lines[0]
        await here.expired_in_outage(batches)
        with batches.worker.signals.membership.registered.heard_by(lambda _: here.cut()):
            here.mend()
            while not line.cut:
                await here.time.pass_by(1)
        await here.time.pass_by(60)
        here.mend()
        await here.time.until(result)
        assert here.provider.asked.total() == 20


# ---- where work begins -------------------------------------------------------------------------------------------


async def test_no_activity_begins_after_the_lease_can_have_run_out() -> None:
    """Neither a call, nor an attempt after a pause, nor one of a sync function, nor a workflow."""
    async with scene() as here:
        begun: list[str] = []
        gate = asyncio.Event()

        @durable_activity
        async def plain(number: int) -> None:
            begun.append("plain")

        @durable_activity(timeout=timedelta(hours=1))
        async def timed(number: int) -> None:
            begun.append("timed")

        @durable_activity
        def threaded(number: int) -> None:
            begun.append("threaded")

        @durable_activity(retry=RetryPolicy(max_attempts=2, initial=timedelta(seconds=40)))
        async def retried(number: int) -> None:
            begun.append("retried")
            if begun.count("retried") == 1:
                raise ConnectionError("not yet")

        @workflow(STAGES)
        async def flow(number: int) -> None:
            if number == 0:
                await retried(number)
            else:
                await gate.wait()
                await (plain, timed, threaded)[number - 1](number)

        batches = await here.orchestrator(flow)
        result = asyncio.create_task(batches.run(range(4)))
        await here.time.pass_by(1)
        assert begun == ["retried"]
        here.cut()
        await here.time.pass_by(23)
        gate.set()
        await here.time.pass_by(60)
        assert begun == ["retried"]
        here.mend()
        await here.time.until(result)
        assert sorted(begun) == ["plain", "retried", "retried", "threaded", "timed"]


async def test_what_waits_for_a_lease_that_is_lost_never_begins() -> None:
    """Another worker has taken over: the calls begin there, once."""
    async with scene() as here:
        gate = asyncio.Event()
        flow = here.asking_behind(gate)
        first = await here.orchestrator(flow)
        batch_id = await first.submit(range(10), config=WIDE)
        await here.time.pass_by(1)
        here.cut()
        await here.time.pass_by(30)
        gate.set()
        other = await here.orchestrator(flow)
        await here.store.expire(dead=[first.worker.worker_id])
        other.worker.wake()
        result = asyncio.create_task(other.result(batch_id))
        await here.time.pass_by(2)
        here.mend()
        await here.time.until(result)
        assert here.provider.asked.total() == 10


async def test_a_worker_can_be_closed_while_its_calls_wait_for_the_lease() -> None:
    async with scene() as here:
        gate = asyncio.Event()
        line = Line(here.store)
        worker = Worker(line, clock=here.clock, drain=timedelta(hours=1))
        batches = BatchOrchestrator(here.asking_behind(gate), worker=worker)
        await batches.__aenter__()
        batch_id = await batches.submit([1])
        await here.time.pass_by(1)
        line.cut = True
        await here.time.pass_by(30)
        gate.set()
        await here.time.pass_by(1)
        closing = asyncio.create_task(batches.__aexit__(None, None, None))
        await here.time.pass_by(1)
        line.cut = False
        # Long before the end of the drain: what has not begun is not waited for.
        await here.time.pass_by(5)
        here.clock.advance(5)
        await within(closing)
        (document,) = await here.store.documents(batch_id, limit=1)
        assert (document.execution.status, document.execution.crashes) == ("pending", 0)
        assert not here.provider.asked


# ---- what readers read ---------------------------------------------------------------------------------------------


async def test_readers_wait_while_a_failover_leads_to_a_replica() -> None:
    """It was the primary when they opened the store, and will be again."""
    async with scene() as here:
        batches = await here.orchestrator(here.asking(CALL))
        batch_id = await batches.submit(range(20))
        here.lines[0].error = lambda: StoreReadOnlyError("it is a replica now")
        here.cut()
        events = asyncio.create_task(everything(batches.progress(batch_id)))
        snapshots = asyncio.create_task(everything(batches.watch(batch_id)))
        result = asyncio.create_task(batches.result(batch_id))
        await here.time.pass_by(60)
        assert not events.done()
        here.mend()
        for reading in (events, snapshots, result):
            await here.time.until(reading)
        assert [event.seq for event in events.result()] == list(range(1, len(events.result()) + 1))
        assert snapshots.result()[-1].state.tag == "completed"
        assert result.result().counts.succeeded == 20


# ---- what is read for user's code ----------------------------------------------------------------------------------


async def test_a_resolver_waits_for_results_while_the_store_is_away() -> None:
    """Also for a cause that does not pass by itself: the documents have succeeded, whatever the store says."""
    async with scene() as here:
        resolved: list[int] = []

        async def resolve(results: Results[int]) -> int:
            resolved.append(0)
            here.cut()
            values = [result.value async for result in results]
            pages = [len(page) async for page in results.pages(300)]
            failures = [failure async for failure in results.failures()]
            return sum(values) + len(pages) + len(failures)

        @workflow(STAGES, resolver=resolve, resolver_retry=RetryPolicy(max_attempts=1))
        async def flow(number: int) -> int:
            return number

        batches = await here.orchestrator(flow)
        here.lines[0].error = lambda: StoreReadOnlyError("it is a replica now")
        result = asyncio.create_task(batches.run([1] * 400))
        while not resolved:
            await here.time.pass_by(1)
        await here.time.pass_by(60)
        here.mend()
        await here.time.until(result)
        assert result.result().value == 402
        assert len(resolved) == 1


async def test_an_execution_waits_for_its_checkpoints_while_the_store_is_away() -> None:
    """More than come along with its claim; it is not released, only to be claimed again at once."""
    async with scene() as here:
        count = 1_100

        @durable_activity
        async def step(number: int) -> int:
            return number

        @workflow(STAGES)
        async def flow(document: int) -> int:
            total = sum([await step(number) for number in range(count)])
            if here.clock.boot() < failing_until:
                raise ConnectionError("again")
            return total

        failing_until = here.clock.boot() + 1
        batches = await here.orchestrator(flow)
        policy = RetryFailed(max_attempts=2, backoff=timedelta(seconds=5))
        result = asyncio.create_task(batches.run([1], config=BatchConfig(failure_policy=policy)))
        checkpoints = here.lines[0].inner.checkpoints
        asked: list[float] = []

        async def away_at_first(*args: Any, **kwargs: Any) -> Any:
            asked.append(here.clock.boot())
            if len(asked) == 1:
                here.cut()
            here.lines[0].check(None)
            return await checkpoints(*args, **kwargs)

        here.store.checkpoints = away_at_first  # type: ignore[method-assign]
        while not asked:
            await here.time.pass_by(1)
        await here.time.pass_by(60)
        here.mend()
        await here.time.until(result)
        (document,) = [document async for document in batches.documents(result.result().batch_id)]
        assert document.attempts == 2
        assert batches.worker.stats.activities_run == count
