"""Virtual time, and crashes on demand. No test here waits for real time, but for the patience with what hangs."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from shutil import copy2

import pytest
from tests.support import AT_ONCE, ONCE, STAGES, Reading, Writing, everything

from durable_batches import (
    BatchConfig,
    CrashLoopError,
    DocumentFailure,
    DocumentReleased,
    MemoryStore,
    RetryFailed,
    RetryPolicy,
    SQLiteStore,
    Store,
    Workflow,
    current_activity,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.errors import ConfigurationError, WorkerFencedError
from durable_batches.testing import HistoryChecker, ManualClock, StoreMaker, environment

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NEVER = timedelta(hours=1)
"""As a patience: whoever needs it waits for the test's own time limit."""
SOON = timedelta(milliseconds=50)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, migrated_file: Path) -> StoreMaker:
    path = copy2(migrated_file, tmp_path / "b.db")

    def make(clock: ManualClock) -> Store:
        return MemoryStore(clock=clock) if request.param == "memory" else SQLiteStore(path, clock=clock)

    return make


def of_one(
    act: Callable[[str], object], *, retry: RetryPolicy = ONCE, timeout: timedelta | None = None
) -> Workflow[str, str]:
    """A workflow of one activity, which this makes of a document."""

    @durable_activity(stage=Reading, retry=retry, timeout=timeout)
    async def one(document: str) -> str:
        found = act(document)
        return str(await found if asyncio.iscoroutine(found) else found)

    @workflow(STAGES, name="of-one")
    async def run(document: str) -> str:
        return await one(document)

    return run


class Stumbles:
    """Raises so many times, and notes when."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.clock = ManualClock()
        self.begun: list[float] = []

    def __call__(self, document: str) -> str:
        self.begun.append(self.clock.boot())
        if len(self.begun) <= self.times:
            raise ConnectionError("not yet")
        return document

    @property
    def seconds(self) -> list[float]:
        return [round(moment - self.begun[0], 6) for moment in self.begun]


# ---- time ------------------------------------------------------------------------------------------------------------


async def test_retries_in_a_row_are_made_within_one_advance_each_at_its_moment(store: StoreMaker) -> None:
    act = Stumbles(3)
    retry = RetryPolicy(max_attempts=4, initial=MINUTE, maximum=HOUR)
    async with environment(of_one(act, retry=retry), store=store, clock=act.clock, patience=NEVER) as env:
        batch_id = await env.batches.submit(["a"])
        await env.settled()
        assert act.seconds == [0]
        await env.advance(59 * SECOND)
        assert act.seconds == [0]
        await env.advance(SECOND)
        assert act.seconds == [0, 60]
        await env.advance(HOUR)
        assert act.seconds == [0, 60, 180, 420]
        assert (await env.batches.state(batch_id)).tag == "completed"
        assert env.clock.boot() - act.begun[0] == 3660


async def test_documents_are_tried_again_when_they_are_due(store: StoreMaker) -> None:
    act = Stumbles(2)
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=3, backoff=10 * MINUTE))
    async with environment(of_one(act), store=store, clock=act.clock, config=config, patience=NEVER) as env:
        batch_id = await env.batches.submit(["a"])
        await env.settled()
        assert (await env.batches.snapshot(batch_id)).counts.waiting == 1
        await env.advance(30 * MINUTE)
        # To the microsecond: a due time that is reached is not missed by a hair.
        assert act.seconds == [0, 600, 1800]
        assert (await env.batches.state(batch_id)).tag == "completed"


async def test_a_deadline_ends_a_batch_at_its_moment(store: StoreMaker) -> None:
    async def hang(document: str) -> str:
        await asyncio.Event().wait()
        return document

    async with environment(of_one(hang), store=store, patience=SOON) as env:
        batch_id = await env.batches.submit(["a"], config=BatchConfig(deadline=DAY))
        await env.advance(DAY - SECOND)
        assert (await env.batches.snapshot(batch_id)).counts.running == 1
        await env.advance(SECOND)
        assert (await env.batches.state(batch_id)).tag == "failed"


async def test_a_month_is_not_gone_through_second_by_second(store: StoreMaker) -> None:
    act = Stumbles(2)
    retry = RetryPolicy(max_attempts=3, initial=10 * DAY, maximum=20 * DAY)
    async with environment(of_one(act, retry=retry), store=store, clock=act.clock, patience=NEVER) as env:
        batch_id = await env.batches.submit(["a"])
        await env.settled()
        before = env._crashable.calls
        await env.advance(30 * DAY)
        assert act.seconds == [0, 10 * 86_400, 30 * 86_400]
        assert (await env.batches.state(batch_id)).tag == "completed"
        # A month has 2.6 million seconds, and a poll every tenth of one.
        assert env._crashable.calls - before < 100


async def test_time_does_not_go_back() -> None:
    async with environment(of_one(str)) as env:
        with pytest.raises(ValueError, match="less than nothing"):
            await env.advance(-SECOND)


async def test_finished_lets_as_much_time_pass_as_it_takes(store: StoreMaker) -> None:
    act = Stumbles(5)
    retry = RetryPolicy(max_attempts=3, initial=HOUR, maximum=HOUR)
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=2, backoff=DAY))
    async with environment(of_one(act, retry=retry), store=store, clock=act.clock, config=config) as env:
        result = await env.finished(await env.batches.submit(["a"]))
        assert result.counts.succeeded == 1
        assert act.seconds == [0, 3600, 7200, 93600, 97200, 100800]


async def test_finished_tells_what_time_does_not_bring(store: StoreMaker) -> None:
    async def hang(document: str) -> str:
        await asyncio.Event().wait()
        return document

    async with environment(of_one(hang), store=store, patience=SOON) as env:
        batch_id = await env.batches.submit(["a"])
        with pytest.raises(
            AssertionError, match="does not end, however much time passes: 1 of its 1 documents are run"
        ):
            await env.finished(batch_id)


async def test_delays_have_no_jitter_but_what_the_clock_says(store: StoreMaker) -> None:
    retry = RetryPolicy(max_attempts=2, initial=4 * SECOND, jitter=0.5)
    for jitter, delay in ((0.0, 4), (0.5, 5)):
        act = Stumbles(1)
        act.clock = ManualClock(jitter=jitter)
        async with environment(of_one(act, retry=retry), store=store, clock=act.clock) as env:
            await env.finished(await env.batches.submit(["a"]))
        assert act.seconds == [0, delay]


# ---- settled ---------------------------------------------------------------------------------------------------------


async def test_settled_means_that_all_that_can_be_done_is_done(store: StoreMaker) -> None:
    """Without a wait in real time: many documents, more than are in flight at once, on threads and on the loop."""

    @durable_activity(stage=Reading)
    def on_a_thread(number: int) -> int:
        return sum(range(number * 1_000))

    @durable_activity(stage=Writing)
    async def on_the_loop(number: int) -> int:
        for _ in range(number % 5):
            await asyncio.sleep(0)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        first, second = await asyncio.gather(on_a_thread(number), on_the_loop(number))
        return await on_the_loop(first + second)

    async with environment(run, store=store, max_in_flight=3, config=BatchConfig(concurrency=5)) as env:
        for _ in range(3):
            batch_id = await env.batches.submit(range(12))
            await env.settled()
            assert (await env.batches.state(batch_id)).tag == "completed"


async def test_what_sleeps_on_the_clock_is_known_to_wait(store: StoreMaker) -> None:
    clock = ManualClock()

    async def sleep(document: str) -> str:
        await clock.sleep(float(document))
        return document

    # With a patience that nobody has: that they wait is known, and not guessed.
    async with environment(of_one(sleep), store=store, clock=clock, patience=NEVER) as env:
        batch_id = await env.batches.submit(["30", "60"])
        await env.settled()
        assert (await env.batches.snapshot(batch_id)).counts.running == 2
        await env.advance(30 * SECOND)
        assert (await env.batches.snapshot(batch_id)).counts.succeeded == 1
        await env.advance(30 * SECOND)
        assert (await env.batches.state(batch_id)).tag == "completed"


async def test_a_timeout_comes_for_what_hangs(store: StoreMaker) -> None:
    attempts: list[int] = []

    async def hang(document: str) -> str:
        attempts.append(current_activity().attempt)
        await asyncio.Event().wait()
        return document

    retry = RetryPolicy(max_attempts=3, initial=10 * SECOND, factor=1)
    async with environment(of_one(hang, retry=retry, timeout=MINUTE), store=store, patience=SOON) as env:
        batch_id = await env.batches.submit(["a"])
        await env.advance(59 * SECOND)
        assert attempts == [1]
        await env.advance(SECOND)
        assert attempts == [1]
        await env.advance(10 * SECOND)
        assert attempts == [1, 2]
        await env.advance(HOUR)
        (outcome,) = await everything(env.batches.results(batch_id))
        assert isinstance(outcome, DocumentFailure)
        assert outcome.error_type == "ActivityTimeoutError"


async def test_a_thread_that_hangs_counts_as_waiting(store: StoreMaker) -> None:
    released = threading.Event()

    @durable_activity(stage=Reading, timeout=MINUTE, retry=ONCE)
    def hang(document: str) -> str:
        released.wait()
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await hang(document)

    try:
        async with environment(run, store=store, patience=SOON) as env:
            batch_id = await env.batches.submit(["a"])
            await env.settled()
            assert (await env.batches.snapshot(batch_id)).counts.running == 1
            assert (await env.finished(batch_id)).counts.failed == 1
    finally:
        released.set()


async def test_what_hung_and_goes_on_is_waited_for_again(store: StoreMaker) -> None:
    gate = asyncio.Event()
    reached: list[str] = []

    @durable_activity(stage=Reading)
    async def hang(document: str) -> str:
        await gate.wait()
        return document

    @durable_activity(stage=Writing)
    def work(document: str) -> str:
        reached.append(str(sum(range(500_000))))
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await work(await hang(document))

    async with environment(run, store=store) as env:
        batch_id = await env.batches.submit(["a"])
        await env.settled()
        assert not reached
        gate.set()
        await env.settled()
        assert reached
        assert (await env.batches.state(batch_id)).tag == "completed"


# ---- crashes ---------------------------------------------------------------------------------------------------------


async def test_what_was_recorded_is_kept_and_what_was_not_runs_again(store: StoreMaker) -> None:
    runs: list[str] = []
    clock = ManualClock()

    @durable_activity(stage=Reading)
    async def read(document: str) -> str:
        runs.append(f"read {document}")
        return document

    @durable_activity(stage=Writing)
    async def write(document: str) -> str:
        runs.append(f"write {document}")
        await clock.sleep(60)
        return document.upper()

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await write(await read(document))

    async with environment(run, store=store, clock=clock) as env:
        batches = env.batches
        batch_id = await batches.submit(["a", "b"])
        await env.settled()
        await env.advance(30 * SECOND)
        first = batches.worker.worker_id
        await env.crash()
        assert batches.worker.worker_id != first
        await env.settled()
        await env.advance(MINUTE)
        assert [outcome.value async for outcome in batches.results(batch_id)] == ["A", "B"]  # type: ignore[union-attr]
        assert sorted(runs) == ["read a", "read b", *["write a"] * 2, *["write b"] * 2]
        events = await everything(batches.progress(batch_id))
        assert [event.reason for event in events if isinstance(event, DocumentReleased)] == ["crash"] * 2
        await HistoryChecker().verify(env.store, finished=True)


async def test_nothing_that_was_not_committed_is_committed_afterwards(store: StoreMaker) -> None:
    """Even if the activity will not be cancelled."""
    attempts: list[str] = []
    clock = ManualClock()

    async def stubborn(document: str) -> str:
        attempts.append(document)
        if len(attempts) == 1:
            try:
                await clock.sleep(60)
            except asyncio.CancelledError:
                return "what the dead one made of it"
        return "what the heir made of it"

    async with environment(of_one(stubborn), store=store, clock=clock) as env:
        batch_id = await env.batches.submit(["a"])
        await env.settled()
        await env.crash()
        await env.finished(batch_id)
        (outcome,) = await everything(env.batches.results(batch_id))
        assert outcome.tag == "succeeded"
        assert outcome.value == "what the heir made of it"
        assert len(attempts) == 2


async def test_who_waits_and_who_watches_goes_on_doing_so(store: StoreMaker) -> None:
    clock = ManualClock()

    async def sleep(document: str) -> str:
        await clock.sleep(60)
        return document

    async with environment(of_one(sleep), store=store, clock=clock) as env:
        batch_id = await env.batches.submit(["a"])
        waiting = asyncio.create_task(env.batches.result(batch_id))
        watching = asyncio.create_task(everything(env.batches.progress(batch_id)))
        await env.settled()
        await env.crash()
        await env.advance(HOUR)
        assert (await waiting).counts.succeeded == 1
        assert [event.seq for event in await watching] == list(range(1, watching.result()[-1].seq + 1))


async def test_crashes_are_counted(store: StoreMaker) -> None:
    clock = ManualClock()

    async def sleep(document: str) -> str:
        await clock.sleep(60)
        return document

    async with environment(of_one(sleep), store=store, clock=clock, config=BatchConfig(max_crashes=3)) as env:
        batch_id = await env.batches.submit(["a"])
        for _ in range(3):
            await env.settled()
            await env.crash()
        await env.settled()
        (outcome,) = await everything(env.batches.results(batch_id))
        assert isinstance(outcome, DocumentFailure)
        assert outcome.error_type == CrashLoopError.__name__


async def test_a_submission_under_way_dies_with_the_process(store: StoreMaker) -> None:
    half_way, go_on = asyncio.Event(), asyncio.Event()

    async def documents() -> AsyncGenerator[str]:
        for number in range(1_500):
            if number == 1_000:
                half_way.set()
                await go_on.wait()
            yield str(number)

    async with environment(of_one(str), store=store) as env:
        submitting = asyncio.create_task(env.batches.submit(documents(), batch_id="batch"))
        await half_way.wait()
        await env.crash()
        go_on.set()
        with pytest.raises(WorkerFencedError):
            await submitting
        await env.batches.submit(["a", "b"], batch_id="batch")
        assert (await env.finished("batch")).counts.total == 2


# ---- what it is made with --------------------------------------------------------------------------------------------


async def test_a_store_must_go_by_the_environments_clock() -> None:
    with pytest.raises(ConfigurationError, match="lambda clock: SQLiteStore"):
        async with environment(of_one(str), store=MemoryStore()):
            pass
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    async with environment(of_one(str), store=store, clock=clock) as env:
        assert env.store is store
        assert env.clock is clock


async def test_dependencies_are_replaced() -> None:
    opened: list[str] = []

    async def real() -> AsyncIterator[str]:
        opened.append("the real one")
        yield "nothing"

    @durable_activity(stage=Reading)
    async def greet(name: str, greeting: str = dependency(real)) -> str:
        return f"{greeting} {name}"

    @workflow(STAGES)
    async def run(name: str) -> str:
        return await greet(name)

    async with environment(run, dependencies={real: "hello"}) as env:
        result = await env.batches.run(["a"])
        (outcome,) = await everything(env.batches.results(result.batch_id))
        assert outcome.tag == "succeeded"
        assert outcome.value == "hello a"
    assert not opened


async def test_activities_are_replaced_also_where_a_worker_runs_already(store: StoreMaker) -> None:
    def fail(document: str) -> str:
        raise AssertionError("the real one ran")

    @durable_activity(stage=Reading, retry=AT_ONCE)
    async def act(document: str) -> str:
        return fail(document)

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await act.with_options(timeout=HOUR)(document)

    async def fake(document: str) -> str:
        return document.upper()

    async with environment(run, store=store) as env:
        with act.override(fake):
            first = await env.batches.run(["a"])
            with act.override(lambda document: document.title()):
                second = await env.batches.run(["bcd"])
            third = await env.batches.run(["e"])
        fourth = await env.finished(await env.batches.submit(["f"]))
        values = [
            outcome.value
            for result in (first, second, third)
            async for outcome in env.batches.results(result.batch_id)
            if outcome.tag == "succeeded"
        ]
    assert values == ["A", "Bcd", "E"]
    assert fourth.counts.failed == 1


async def test_it_leaves_nothing_behind(store: StoreMaker) -> None:
    async def hang(document: str) -> str:
        await asyncio.Event().wait()
        return document

    await asyncio.to_thread(lambda: None)
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    async with environment(of_one(hang), store=store, patience=SOON) as env:
        await env.batches.submit(["a"])
        await env.settled()
        await env.crash()
        await env.settled()
    assert asyncio.all_tasks() == tasks
    assert {thread for thread in threading.enumerate() if "activity" not in thread.name} <= threads


async def test_two_environments_do_not_disturb_each_other() -> None:
    numbers = itertools.count()
    async with environment(of_one(lambda _: next(numbers))) as one, environment(of_one(str)) as other:
        await one.advance(HOUR)
        assert one.clock.boot() - other.clock.boot() == 3600
        for env in (one, other):
            assert (await env.batches.run(["a"])).counts.succeeded == 1
