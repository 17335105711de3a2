"""A permit is the last thing that a call waits for: what waits for something else holds none."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

from tests.executors.activities import double
from tests.executors.engines import Engine
from tests.runtime.attempts import Trial
from tests.support import STAGES, eventually, turns, within

from durable_batches import BatchConfig, durable_activity, workflow
from durable_batches.executors.executors import Executors
from durable_batches.executors.remote import run_call
from durable_batches.flow import CentralRateLimiter
from durable_batches.runtime.attempt_result import AttemptSucceeded
from durable_batches.runtime.classify import default_classifier
from durable_batches.runtime.middleware import CallNext, MiddlewareCall
from durable_batches.telemetry import NotBegun
from durable_batches.testing import ManualClock, environment


async def test_a_call_that_waits_for_a_thread_holds_up_no_call_of_its_limiter() -> None:
    limiter, gate, order = CentralRateLimiter(max_concurrent=1), threading.Event(), list[str]()

    @durable_activity
    def block() -> None:
        assert gate.wait(60)

    @durable_activity(limiter=limiter)
    def ask_in_a_thread() -> None:
        order.append("thread")

    @durable_activity(limiter=limiter)
    async def ask() -> None:
        order.append("loop")

    async def body() -> None:
        await asyncio.gather(block(), ask_in_a_thread(), ask())

    # It has one thread.
    running = asyncio.create_task(Trial(clock=ManualClock()).end(body))
    await eventually(lambda: order == ["loop"])
    assert (limiter.metrics().in_flight, limiter.metrics().waiting) == (0, 0)
    gate.set()
    assert isinstance(await within(running), AttemptSucceeded)
    assert order == ["loop", "thread"]


class Lease:
    """A lease that has run out, until it is renewed."""

    until = 0.0
    is_inherited = False

    def __init__(self) -> None:
        self.renewed = asyncio.Event()

    def holds(self) -> bool:
        return self.renewed.is_set()

    async def regained(self) -> None:
        await self.renewed.wait()


async def test_a_call_that_waits_for_the_lease_leaves_its_permit_to_others() -> None:
    limiter, lease = CentralRateLimiter(requests_per_minute=600), Lease()

    @durable_activity(limiter=limiter)
    async def ask(number: int) -> int:
        lease.renewed.clear()
        return number

    async def body() -> list[int]:
        return [await ask(number) for number in range(2)]

    clock = ManualClock()
    trial = Trial(clock=clock)
    trial.resources.lease = lease
    lease.renewed.set()
    running = asyncio.create_task(trial.end(body))
    await turns(20)
    metrics = limiter.metrics()
    assert (metrics.in_flight, metrics.waiting, metrics.requests_available) == (0, 0, 599)
    # In half a minute, others use what there is.
    clock.advance(30)
    lease.renewed.set()
    assert isinstance(await within(running), AttemptSucceeded)
    assert limiter.metrics().requests_available == 598


async def test_a_call_that_waits_for_a_place_holds_no_permit_and_without_one_no_place() -> None:
    messages: list[bytes] = []

    def fate(message: bytes) -> str:
        messages.append(message)
        return "hang" if len(messages) == 1 else "run"

    limiter, engine = CentralRateLimiter(requests_per_minute=60), Engine(fate, 1)
    limited = double.with_options(limiter=limiter)
    trial = Trial(clock=ManualClock())
    executors = Executors({"cpu": lambda: engine}, trial.resources.clock, default_classifier)
    await executors.open(trial.threads)
    trial.resources.elsewhere = executors
    ended: list[str] = []
    not_begun: list[str] = []

    async def watch(call: MiddlewareCall, call_next: CallNext, /) -> Any:
        try:
            return await call_next()
        except NotBegun:
            not_begun.append(call.key)
            raise

    trial.resources.middleware = (watch,)

    async def run(name: str, call: asyncio.Future[int]) -> None:
        await call
        ended.append(name)

    async def body() -> None:
        hanging = asyncio.ensure_future(double(1))
        await eventually(lambda: bool(engine.running))
        waiting = asyncio.ensure_future(run("limited", asyncio.ensure_future(limited(2))))
        await turns(20)
        metrics = limiter.metrics()
        assert (metrics.in_flight, metrics.waiting, metrics.requests_available) == (0, 0, 60)
        limiter.force("open")
        other = asyncio.ensure_future(run("other", asyncio.ensure_future(double(3))))
        await turns(20)
        engine.running.pop().set_result(run_call(messages[0]))
        await asyncio.wait([hanging, other])
        # It had the place first, and no permit.
        assert ended == ["other"]
        assert limiter.metrics().waiting == 1
        limiter.force("auto")
        await waiting

    assert isinstance(await within(trial.end(body)), AttemptSucceeded)
    assert ended == ["other", "limited"]
    # What measures attempts knows that there was none.
    assert len(not_begun) == 1
    assert limiter.metrics().requests_available == 59
    await executors.close()


async def test_a_call_begins_though_others_use_its_limiter_and_its_thread_all_the_time() -> None:
    limiter, ran = CentralRateLimiter(max_concurrent=1), threading.Event()
    permits, threads = [asyncio.Event() for _ in range(9)], [threading.Event() for _ in range(9)]
    begun: list[int] = []

    @durable_activity(limiter=limiter)
    async def use_permit(number: int) -> None:
        await permits[number].wait()

    @durable_activity
    def use_thread(number: int) -> None:
        begun.append(number)
        assert threads[number].wait(60)

    @durable_activity(limiter=limiter)
    def use_both() -> None:
        ran.set()

    async def body() -> int:
        calls = [asyncio.ensure_future(use_permit(0)), asyncio.ensure_future(use_thread(0))]
        await eventually(lambda: bool(begun))
        calls.append(asyncio.ensure_future(use_both()))
        rounds = 0

        def has_begun() -> bool:
            return rounds in begun

        while not ran.is_set() and rounds < 8:
            # It gets a permit while others have the thread, and the thread while others have the permit.
            await turns(20)
            calls.append(asyncio.ensure_future(use_permit(rounds + 1)))
            await turns(20)
            permits[rounds].set()
            await turns(20)
            calls.append(asyncio.ensure_future(use_thread(rounds + 1)))
            await turns(20)
            threads[rounds].set()
            rounds += 1
            await eventually(has_begun)
        for permit, thread in zip(permits, threads, strict=True):
            permit.set()
            thread.set()
        await asyncio.gather(*calls)
        return rounds

    outcome = await within(Trial(clock=ManualClock()).end(body))
    assert isinstance(outcome, AttemptSucceeded)
    assert outcome.value == 4


# ---- and the time of a document stands still meanwhile ---------------------------------------------------------------


async def test_the_time_of_a_document_stands_still_while_all_of_its_calls_wait_for_permits() -> None:
    limiter, other = CentralRateLimiter(), CentralRateLimiter()
    limiter.force("open")
    other.force("open")

    @durable_activity(limiter=limiter)
    async def ask() -> None:
        pass

    @workflow(STAGES)
    async def run(number: int) -> None:
        await asyncio.gather(ask(), ask.with_options(limiter=other)())

    async with environment(run) as env:
        batch = await env.batches.submit([1], config=BatchConfig(document_timeout=timedelta(minutes=1)))
        await env.advance(timedelta(minutes=10))
        other.force("closed")
        await env.advance(timedelta(minutes=10))
        limiter.force("closed")
        assert (await env.finished(batch)).counts.succeeded == 1


async def test_the_time_of_a_document_runs_while_another_of_its_calls_goes_on() -> None:
    limiter = CentralRateLimiter()
    limiter.force("open")

    @durable_activity(limiter=limiter)
    async def ask() -> None:
        pass

    @durable_activity
    async def hang() -> None:
        await asyncio.Event().wait()

    @workflow(STAGES)
    async def run(number: int) -> None:
        asking = asyncio.ensure_future(ask())
        await asyncio.sleep(0)
        await asyncio.gather(asking, hang())

    async with environment(run) as env:
        batch = await env.batches.submit([1], config=BatchConfig(document_timeout=timedelta(minutes=1)))
        await env.advance(timedelta(seconds=59))
        assert (await env.batches.snapshot(batch)).counts.running == 1
        await env.advance(timedelta(seconds=2))
        assert (await env.finished(batch)).counts.failed == 1
