"""Where calls run, and what becomes of those that an executor loses. Virtual time, and no processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.executors.activities import double
from tests.executors.engines import Engine, Engines
from tests.support import PATIENCE, STAGES, eventually, turns, within

from durable_batches import BatchOrchestrator, ExecutorError, MemoryStore, RetryPolicy, Worker, workflow
from durable_batches.executors.beginning import Probing, Timeout
from durable_batches.executors.kept_executor import ExecutorOrFactory
from durable_batches.executors.messages import Request, Succeeded, decode_answer, encode_succeeded
from durable_batches.executors.names import reference_of
from durable_batches.executors.placement import Placement
from durable_batches.executors.remote import run_call
from durable_batches.executors.reports import Reports, send_begins, send_report
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.context import ExecutionContext
from durable_batches.runtime.elsewhere import CallLostError
from durable_batches.runtime.threads import Threads
from durable_batches.testing import ManualClock

CONTEXT = ExecutionContext(batch_id=BatchId("b"), document_id="d", ordinal=0, attempt=1, run=1)


def call(number: int) -> bytes:
    return Request(
        function=reference_of(double),
        arguments={"number": str(number).encode()},
        context=CONTEXT,
        attempt=1,
        idempotency_key="k",
        classifier=None,
        reports=None,
    ).encode()


def number_of(message: bytes) -> int:
    return int(Request.decode(message).arguments["number"])


def breaks(message: bytes) -> str:
    return "break"


class Placed:
    """A placement, and how it is asked."""

    def __init__(self, placement: Placement, clock: ManualClock) -> None:
        self.placement = placement
        self.clock = clock

    async def run(
        self, number: int, *, seconds: float | None = None, timeout: Timeout | None = None, suspect: bool = False
    ) -> int:
        answer = decode_answer(
            await self.placement.run(
                call(number),
                activity="double",
                timeout=timeout or Timeout(seconds),
                beginning=Probing(),
                suspect=suspect,
            )
        )
        assert isinstance(answer, Succeeded)
        return int(answer.payload)

    async def all(self, numbers: range, **options: Any) -> list[int | BaseException]:
        return await asyncio.gather(*(self.run(number, **options) for number in numbers), return_exceptions=True)

    async def ended(self) -> None:
        """Wait until the executors that are used no more have ended."""
        await eventually(lambda: not self.placement._kept._ending)  # pyright: ignore[reportPrivateUsage]

    @property
    def free_places(self) -> int:
        return self.placement._places._value  # pyright: ignore[reportPrivateUsage]


@asynccontextmanager
async def placed(given: ExecutorOrFactory) -> AsyncGenerator[Placed]:
    threads, clock = Threads(8), ManualClock()
    placement = Placement("cpu", given, clock)
    try:
        async with asyncio.timeout(PATIENCE):
            await placement.open(threads)
            yield Placed(placement, clock)
            await placement.close()
    finally:
        threads.close()


async def test_calls_run_and_no_more_at_once_than_there_are_places() -> None:
    submitted: list[int] = []

    def fate(message: bytes) -> str:
        submitted.append(number_of(message))
        return "hang" if len(submitted) <= 2 else "run"

    engines = Engines(fate)
    async with placed(engines) as there:
        waiting = asyncio.create_task(there.all(range(5), seconds=60))
        await eventually(lambda: len(submitted) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert submitted == [0, 1]
        there.clock.advance(61)
        results = await waiting
        # Both hung: the pool was made anew, and the others ran there.
        assert [type(each) for each in results[:2]] == [TimeoutError, TimeoutError]
        assert results[2:] == [4, 6, 8]
        assert len(engines.made) == 2
        assert there.free_places == 2
    assert [engine.ended for engine in engines.made] == [True, True]


async def test_a_call_that_is_lost_is_placed_again_and_one_caller_makes_the_pool_anew() -> None:
    engines = Engines(lambda _: "break" if len(engines.made) == 1 else "run", places=8)
    async with placed(engines) as there:
        assert await there.all(range(30)) == [number * 2 for number in range(30)]
        assert len(engines.made) == 2
        assert there.free_places == 8


@pytest.mark.parametrize("loss", ["cancel", BrokenExecutor("gone")])
async def test_a_future_that_the_executor_cancels_is_a_lost_call(loss: str | Exception) -> None:
    engines = Engines(lambda message: "run" if number_of(message) == 0 else loss)
    async with placed(engines) as there:
        assert await there.run(0) == 0
        with pytest.raises(CallLostError, match="lost it 3 times, the last time with no other call beside it"):
            await there.run(1)
        # Two pools that it shared, and one of its own.
        assert len(engines.made) == 3
        assert there.free_places == 2


async def test_where_an_executor_runs_nothing_at_all_no_call_is_to_blame() -> None:
    async with placed(Engines(breaks)) as there:
        with pytest.raises(ExecutorError, match="its processes end before they have answered any call") as caught:
            await there.run(1)
        assert '`if __name__ == "__main__":`' in str(caught.value)
    # One that can is asked once.
    engines = Engines(lambda message: "break" if message else "run")
    async with placed(engines) as there:
        for _ in range(2):
            with pytest.raises(CallLostError):
                await there.run(1, suspect=True)
        assert len(engines.made) == 4


async def test_only_the_poisonous_call_is_lost_for_good() -> None:
    submitted: list[int] = []

    def fate(message: bytes) -> str:
        submitted.append(number_of(message))
        return "break" if submitted[-1] == 5 else "soon"

    engines = Engines(fate, places=4)
    async with placed(engines) as there:
        results = await there.all(range(12))
        assert isinstance(results.pop(5), CallLostError)
        assert results == [number * 2 for number in range(12) if number != 5]
        assert submitted.count(5) == 3
        # Others were running beside it, and lost, too.
        assert len(submitted) > 14
        assert there.free_places == 4


async def test_a_possible_poison_runs_alone_from_the_beginning_beside_a_pool_that_hangs() -> None:
    def fate(message: bytes) -> str:
        return "run" if number_of(message) == 1 else "hang"

    engines = Engines(fate)
    async with placed(engines) as there:
        hanging = [asyncio.create_task(there.run(number)) for number in (2, 3)]
        await eventually(lambda: len(engines.made[0].running) == 2)
        assert await there.run(1, suspect=True) == 2
        engines.fate = breaks
        with pytest.raises(CallLostError, match="lost it once"):
            await there.run(1, suspect=True)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        assert there.free_places == 2


async def test_a_call_that_still_runs_is_not_placed_again_where_its_executor_is_used_no_more() -> None:
    submitted: list[int] = []

    def fate(message: bytes) -> str:
        submitted.append(number_of(message))
        if submitted == [1, 2]:
            raise RuntimeError("can't start new thread")
        return "hang" if submitted[-1] == 1 else "run"

    engines = Engines(fate)
    async with placed(engines) as there:
        running = asyncio.create_task(there.run(1))
        await eventually(lambda: submitted == [1])
        assert await there.run(2) == 4
        await there.ended()
        (future,) = engines.made[0].running
        assert engines.made[0].ended
        assert there.free_places == 1
        future.set_result(run_call(call(1)))
        assert await running == 2
        assert submitted == [1, 2, 2]
        assert there.free_places == 2


async def test_a_call_that_only_waits_in_an_executor_that_is_used_no_more_is_placed_again() -> None:
    class Forgetful(Engine):
        """Holds its first call in a queue that it forgets."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            if number_of(args[0]) == 1 and not queued:
                queued.append(Future())
                return queued[0]
            return super().submit(fn, *args, **kwargs)

    queued: list[Future[Any]] = []
    engines: list[Engine] = []

    def make() -> Engine:
        engines.append(Forgetful(lambda message: "break" if len(engines) == 1 else "run", 2))
        return engines[-1]

    async with placed(make) as there:
        assert await there.all(range(1, 3)) == [2, 4]
        # It cannot begin there any more.
        assert queued[0].cancelled()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(11, "no more processes")])
async def test_a_call_that_may_be_queued_is_submitted_again_once_nothing_runs_there(error: Exception) -> None:
    submitted: list[int] = []

    class Queues(Engine):
        """Queues a call, cannot start a thread for it, and runs it on one that it has."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait)
            if wait:
                awaited.set()
                ended.wait(PATIENCE)

    def fate(message: bytes) -> str:
        submitted.append(number_of(message))
        if submitted.count(submitted[-1]) == 1:
            raise error
        return "run"

    awaited, ended = threading.Event(), threading.Event()
    async with placed(lambda: Queues(fate, 2)) as there:
        running = asyncio.create_task(there.run(1))
        await eventually(awaited.is_set)
        assert submitted == [1]
        assert there.free_places == 1
        ended.set()
        assert await running == 2
        assert there.free_places == 2
        # The timeout holds there, too.
        awaited.clear()
        ended.clear()
        running = asyncio.create_task(there.run(2, seconds=60))
        await eventually(awaited.is_set)
        there.clock.advance(61)
        with pytest.raises(TimeoutError):
            await running
        ended.set()
        assert submitted == [1, 1, 2]
        assert there.free_places == 2


@pytest.mark.parametrize("suspect", [False, True])
async def test_an_answer_that_comes_with_the_deadline_is_one(suspect: bool) -> None:
    engines = Engines(lambda _: "hang")
    async with placed(engines) as there:
        running = asyncio.create_task(there.run(1, seconds=60, suspect=suspect))
        await eventually(lambda: bool(engines.made[-1].running))
        there.clock.advance(60)
        engines.made[-1].running[0].set_result(run_call(call(1)))
        assert await running == 2
        assert there.free_places == 2


async def test_a_call_that_was_given_up_keeps_its_place_until_it_ends() -> None:
    engines = Engines(lambda _: "hang")
    async with placed(engines) as there:
        running = asyncio.create_task(there.run(1))
        await eventually(lambda: bool(engines.made[0].running))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert there.free_places == 1
        engines.made[0].running[0].set_result(b"")
        await eventually(lambda: there.free_places == 2)
        assert len(engines.made) == 1


async def test_cancelled_while_it_waits_for_a_place() -> None:
    engines = Engines(lambda _: "hang", places=1)
    async with placed(engines) as there:
        running = asyncio.create_task(there.run(1))
        await eventually(lambda: bool(engines.made[0].running))
        waiting = asyncio.create_task(there.run(2))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        # It held the only place.
        assert engines.made[0].ended or there.free_places == 1


async def test_an_executor_that_was_shut_down_says_so() -> None:
    pool = ThreadPoolExecutor(1)
    async with placed(pool) as there:
        assert await there.run(1) == 2
        pool.shutdown()
        with pytest.raises(ExecutorError, match="after shutdown; it was given as it is, and cannot be made again"):
            await there.run(1)
        assert there.free_places == 1


async def test_a_pool_that_others_shut_down_is_made_anew() -> None:
    engines = Engines()
    async with placed(engines) as there:
        engines.made[0].shutdown()
        assert await there.run(1) == 2


async def test_what_cannot_be_made_or_takes_nothing_is_refused() -> None:
    def broken() -> Engine:
        raise ConnectionError("no scheduler")

    with pytest.raises(ExecutorError, match="making it raised ConnectionError: no scheduler"):
        async with placed(broken):
            pass

    def none() -> Any:
        return 3

    with pytest.raises(ExecutorError, match="made a int, which is no Executor"):
        async with placed(none):
            pass

    async with placed(Engines(lambda _: TypeError("cannot pickle it"))) as there:
        with pytest.raises(ExecutorError, match="cannot pickle it"):
            await there.run(1)

    class Shut(Engine):
        def __init__(self) -> None:
            super().__init__(lambda _: "run", 1)
            self.ended = True

    async with placed(Shut) as there:
        with pytest.raises(ExecutorError, match="after shutdown"):
            await there.run(1)
        assert there.free_places == 1


async def test_what_is_given_as_it_is_stays_open() -> None:
    with ThreadPoolExecutor(1) as pool:
        async with placed(pool) as there:
            assert await there.run(4) == 8
        assert pool.submit(int, 3).result() == 3


# ---- processes that start ------------------------------------------------------------------------------------------


class Starting(Engine):
    """A pool whose `submit` starts a process first, for as long as a gate is closed."""

    def __init__(self, fate: Callable[[bytes], str | Exception], places: int = 2) -> None:
        super().__init__(fate, places)
        self._processes: dict[int, object] = {}
        self.gate = threading.Event()
        self.starts = threading.Event()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.starts.set()
        assert self.gate.wait(PATIENCE)
        return super().submit(fn, *args, **kwargs)


async def test_processes_start_beside_the_event_loop() -> None:
    pool = Starting(lambda _: "run")
    async with placed(lambda: pool) as there:
        running = asyncio.create_task(there.run(1))
        # The event loop goes on meanwhile, or this would not be seen.
        await eventually(pool.starts.is_set)
        assert not running.done()
        pool.gate.set()
        assert await running == 2


async def test_a_call_that_is_cancelled_while_its_process_starts_is_given_up_like_any_other() -> None:
    pool = Starting(lambda _: "hang")
    async with placed(lambda: pool) as there:
        running = asyncio.create_task(there.run(1))
        await eventually(pool.starts.is_set)
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        pool.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        # It runs on, and has its place until it ends.
        assert there.free_places == 1
        pool.running[0].set_result(b"")
        await eventually(lambda: there.free_places == 2)


@pytest.mark.parametrize("suspect", [False, True])
@pytest.mark.parametrize(("is_told", "begins_after", "most"), [(True, 50, 80), (True, None, 90), (False, None, 30)])
async def test_the_timeout_runs_from_when_the_process_says_that_the_call_begins(
    suspect: bool, is_told: bool, begins_after: int | None, most: int
) -> None:
    """A call that may say so has a minute until it does; one that cannot has nothing."""
    pools: list[Starting] = []

    def make() -> Starting:
        pools.append(Starting(lambda _: "hang"))
        pools[-1].gate.set()
        return pools[-1]

    timeout = Timeout(30)
    timeout.is_told = is_told
    async with placed(make) as there:
        running = asyncio.create_task(there.run(1, timeout=timeout, suspect=suspect))
        await eventually(lambda: there.clock.next_timer is not None)
        if begins_after is not None:
            there.clock.advance(begins_after)
            timeout.begins()
        there.clock.advance(most - 1 - (begins_after or 0))
        await turns(5)
        assert not running.done()
        there.clock.advance(1)
        with pytest.raises(TimeoutError):
            await running


async def test_a_call_says_that_it_begins() -> None:
    reports, told = Reports(), list[object]()
    await reports.open()
    address = reports.follow(lambda current, total: told.append((current, total)), lambda: told.append("begins"))
    assert address is not None
    send_begins(address)
    send_report(address, 1, 2)
    await eventually(lambda: told == ["begins", (1, 2)])
    reports.leave(address)
    reports.close()


async def test_an_executor_that_is_made_for_nobody_is_ended() -> None:
    gate, made = threading.Event(), list[Engine]()

    def make() -> Engine:
        assert gate.wait(PATIENCE)
        made.append(Engine(lambda _: "run", 1))
        return made[-1]

    threads = Threads(1)
    opening = asyncio.create_task(Placement("cpu", make, ManualClock()).open(threads))
    for _ in range(3):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await eventually(lambda: bool(made) and made[0].ended)
    threads.close()


async def test_an_executor_whose_shutdown_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    class Hangs(Engine):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            assert gate.wait(PATIENCE)

    monkeypatch.setattr("durable_batches.executors.kept_executor._SHUTDOWN_SECONDS", 0.01)
    async with placed(lambda: Hangs(lambda _: "run", 1)) as there:
        assert await there.run(1) == 2
    assert "executor 'cpu' could not be ended: TimeoutError: its shutdown has not returned" in caplog.text
    gate.set()


async def test_what_is_no_answer_is_an_error_of_the_executor() -> None:
    answers: list[Any] = []

    class Garbles(Engine):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(answers[-1])
            return future

    @workflow(STAGES, name="trial")
    async def trial(number: int) -> int:
        return await double.with_options(retry=RetryPolicy(max_attempts=1))(number)

    whole = encode_succeeded(b"1234")
    worker = Worker(MemoryStore(), executors={"cpu": Garbles(lambda _: "run", 1)})
    async with BatchOrchestrator(trial, worker=worker) as batches:
        for answer in (b"", None, "text", b"\0\0\0\2{}", whole[:-1], whole + b"5"):
            answers.append(answer)
            result = await within(batches.run([1], document_id=str))
            (failure,) = result.failures
            assert "ExecutorError: executor 'cpu' takes no calls: it has answered with what" in failure.error
        answers.append(whole)
        assert (await within(batches.run([1], document_id=str))).counts.succeeded == 1
