"""Activities with a limiter, in batches: waiting uses no attempt and no timeout, and holds up no other batch."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from tests.runtime.attempts import Trial
from tests.support import ONCE, STAGES, Gauge, eventually, within

from durable_batches import (
    ActivityDefinitionError,
    ActivityFailedError,
    Amount,
    BatchConfig,
    BatchId,
    BatchOrchestrator,
    ConfigurationError,
    MemoryStore,
    NotInActivityError,
    Overloaded,
    RetryLater,
    RetryPolicy,
    ThrottledLimiter,
    Verdict,
    Worker,
    current_activity,
    durable_activity,
    workflow,
)
from durable_batches.flow import CentralRateLimiter, CircuitBreaker, Limiter, Permit
from durable_batches.lifecycle.notes import LONGEST_NOTE, LimitedCallsOf, WorkerNote, decode_note, encode_note
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.runtime.attempt_result import AttemptFailed, AttemptSucceeded
from durable_batches.testing import Environment, ManualClock, activity_context, environment

SECOND: Final = timedelta(seconds=1)
ALL: Final = BatchConfig(concurrency=100)


async def seconds_of(env: Environment[Any, Any, Any, Any], documents: list[Any]) -> float:
    """Run a batch, of which all documents must succeed; return how long it took."""
    started = env.clock.boot()
    result = await env.finished(await env.batches.submit(documents, config=ALL))
    assert result.counts.succeeded == len(documents)
    return env.clock.boot() - started


# ---- permits ---------------------------------------------------------------------------------------------------


async def test_calls_of_a_batch_keep_the_limits() -> None:
    limiter = CentralRateLimiter(requests_per_minute=60, max_concurrent=3)
    gauge = Gauge()

    @durable_activity(limiter=limiter)
    async def ask(number: int) -> int:
        with gauge:
            await env.clock.sleep(0.5)
            return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        assert await seconds_of(env, list(range(30))) == pytest.approx(30, abs=2)
    assert gauge.most <= 3
    assert limiter.metrics().in_flight == limiter.metrics().waiting == 0


@pytest.mark.parametrize("form", ["async", "sync", "method", "keyed"])
async def test_the_estimate_of_a_call_is_reserved_and_settled(form: str) -> None:
    limiter = CentralRateLimiter(tokens_per_minute=1_000)
    seen: list[int | None] = []

    def estimate(text: str) -> Amount:
        return Amount(tokens=len(text) * 10)

    def note(text: str) -> str:
        seen.append(limiter.metrics().tokens_available)
        current_activity().settle(tokens=len(text))
        current_activity().observe({"x-ratelimit-limit-tokens": "900"})
        return text

    @durable_activity(limiter=limiter, estimate=estimate)
    async def ask(text: str) -> str:
        return note(text)

    @durable_activity(limiter=limiter, estimate=estimate)
    def ask_sync(text: str) -> str:
        return note(text)

    @durable_activity(limiter=limiter, estimate=estimate, key=lambda text: text)
    async def ask_keyed(text: str) -> str:
        return note(text)

    def of_method(self: Client, text: str) -> Amount:
        return estimate(text)

    class Client:
        @durable_activity(limiter=limiter, estimate=of_method)
        async def ask(self, text: str) -> str:
            return note(text)

    client = Client()
    forms = {"async": ask, "sync": ask_sync, "method": client.ask, "keyed": ask_keyed}
    trial = Trial()
    end = await trial.end(lambda: forms[form]("abcdefg"))
    assert isinstance(end, AttemptSucceeded), end
    assert seen == [930]
    assert limiter.metrics().tokens_available == 893


async def test_without_a_limiter_there_is_nothing_to_settle() -> None:
    @durable_activity(retry=ONCE)
    async def ask() -> None:
        current_activity().settle(tokens=5)

    end = await Trial().end(ask)
    assert isinstance(end, AttemptFailed)
    assert isinstance(end.error, ActivityFailedError)
    assert "settle() is for activities with a limiter" in str(end.error)
    with activity_context() as context:
        await ask()
        context.observe("an answer")
    assert (context.settled, context.observed) == ([5], ["an answer"])
    with pytest.raises(NotInActivityError):
        await ask()


async def test_outside_of_an_orchestrator_a_call_waits_for_nothing() -> None:
    limiter = CentralRateLimiter()
    limiter.force("open")

    @durable_activity(limiter=limiter)
    async def ask() -> int:
        return 3

    assert await ask() == 3


async def test_what_is_larger_than_the_limit_fails_at_once_and_says_why() -> None:
    limiter = CentralRateLimiter(name="openai", tokens_per_minute=100)

    @durable_activity(limiter=limiter, estimate=Amount(tokens=101))
    async def ask() -> None: ...

    end = await Trial().end(ask)
    assert isinstance(end, AttemptFailed)
    assert "101 tokens are more than the limiter 'openai' allows in a minute" in str(end.error)


async def test_an_estimate_is_an_amount() -> None:
    limiter = CentralRateLimiter()
    wrong: Any = 7

    @durable_activity(limiter=limiter, estimate=lambda: wrong)
    async def ask() -> None: ...

    end = await Trial().end(ask)
    assert isinstance(end, AttemptFailed)
    assert "estimate must return an Amount, not 'int'" in str(end.error)
    with pytest.raises(ActivityDefinitionError, match="estimate"):
        durable_activity(limiter=limiter, estimate=wrong)(ask.definition.fn)


class Counting:
    """A limiter of a user's own."""

    def __init__(self) -> None:
        self.name = "counting"
        self.told: list[object] = []

    @asynccontextmanager
    async def permit(
        self, *, tokens: int = 0, wait: bool = True, max_wait: timedelta | None = None
    ) -> AsyncGenerator[Permit]:
        self.told.append(tokens)
        try:
            yield self
        except Exception as error:
            self.told.append(type(error))
            raise
        finally:
            self.told.append("ends")

    def settle(self, *, tokens: int) -> None:
        self.told.append(("settled", tokens))

    def refused(self, retry_after: timedelta | None = None) -> None: ...

    def observe(self, answer: object) -> None: ...


async def test_a_limiter_of_ones_own() -> None:
    limiter = Counting()
    typed: Limiter = limiter

    @durable_activity(estimate=Amount(tokens=7), retry=RetryPolicy(max_attempts=2, initial=timedelta(0)))
    async def ask() -> int:
        current_activity().settle(tokens=5)
        if current_activity().attempt == 1:
            raise ValueError("no")
        return 3

    end = await Trial().end(lambda: ask.with_options(limiter=typed)())
    assert isinstance(end, AttemptSucceeded)
    assert limiter.told == [7, ("settled", 5), ValueError, "ends", 7, ("settled", 5), "ends"]


# ---- attempts, timeouts, slots ---------------------------------------------------------------------------------


async def test_waiting_uses_no_attempt_and_the_timeout_does_not_run() -> None:
    limiter = CentralRateLimiter(max_concurrent=1)
    attempts: list[int] = []

    @durable_activity(limiter=limiter, timeout=5 * SECOND, retry=RetryPolicy(max_attempts=1))
    async def ask(number: int) -> int:
        attempts.append(current_activity().attempt)
        await env.clock.sleep(4)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        # The last one waits for 36 s, seven times its timeout.
        assert await seconds_of(env, list(range(10))) == pytest.approx(40)
    assert attempts == [1] * 10


async def test_a_provider_that_fails_and_recovers_uses_no_attempts_of_those_that_wait() -> None:
    limiter = CentralRateLimiter(
        breaker=CircuitBreaker(failure_threshold=3, recovery_timeout=600 * SECOND), max_concurrent=1
    )
    calls: list[float] = []

    @durable_activity(limiter=limiter, retry=RetryPolicy(max_attempts=5, initial=SECOND, jitter=0))
    async def ask(number: int) -> int:
        calls.append(env.clock.boot() - started)
        if len(calls) <= 3:
            raise ConnectionError("down")
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        started = env.clock.boot()
        seconds = await seconds_of(env, list(range(20)))
    assert 600 <= seconds < 610
    # Nothing was called while the circuit was open.
    assert len(calls) == 23
    assert not any(10 < moment < 600 for moment in calls)


class Busy(Exception):
    """As of a client."""

    status_code = 429


@pytest.mark.parametrize("says", ["Retry-After", "nothing"])
async def test_a_refusal_makes_one_pause_for_all_and_costs_no_attempt(says: str) -> None:
    limiter = CentralRateLimiter(requests_per_minute=6_000)
    calls: list[float] = []

    @durable_activity(limiter=limiter, retry=ONCE)
    async def ask(number: int) -> int:
        calls.append(env.clock.boot() - started)
        if len(calls) == 5:
            raise Overloaded(after=20 * SECOND) if says == "Retry-After" else Busy
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        started = env.clock.boot()
        await seconds_of(env, list(range(150)))
    pause = 20 if says == "Retry-After" else 1
    assert len(calls) == 151
    assert limiter.metrics().refused == 1
    first = calls[4]
    assert not any(first < moment < first + pause for moment in calls)


async def test_the_activitys_classifier_says_what_a_refusal_is() -> None:
    limiter = CentralRateLimiter()

    def judge(error: BaseException, /) -> Verdict:
        return Verdict(kind="overloaded", retry_after=50 * SECOND)

    @durable_activity(limiter=limiter, classify=judge)
    async def ask(number: int) -> int:
        if limiter.metrics().refused == 0:
            raise LookupError("busy, in the provider's own words")
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        assert await seconds_of(env, [1]) == pytest.approx(50)


async def test_documents_that_wait_for_long_hold_up_no_other_batch() -> None:
    """All slots are taken by documents of one provider, which is down."""
    down, up = CentralRateLimiter(name="down"), CentralRateLimiter(name="up")
    down.force("open")

    @durable_activity
    async def ask(name: str) -> str:
        return name

    asks = {"down": ask.with_options(limiter=down), "up": ask.with_options(limiter=up)}

    @workflow(STAGES)
    async def run(name: str) -> str:
        return await asks[name](name)

    async with environment(run, max_in_flight=8) as env:
        waiting = await env.batches.submit(["down"] * 8, config=ALL)
        await env.advance(20 * SECOND)
        healthy = await env.batches.submit(["up"] * 20, config=ALL)
        await env.advance(5 * SECOND)
        assert (await env.batches.snapshot(healthy)).counts.succeeded == 0
        await env.advance(10 * SECOND)
        assert (await env.batches.snapshot(healthy)).counts.succeeded == 20
        assert (await env.batches.snapshot(waiting)).counts.running == 8
        down.force("auto")
        assert (await env.finished(waiting)).counts.succeeded == 8


async def test_many_more_waiting_documents_than_slots_hold_up_no_other_batch() -> None:
    """Of the batch that waits, no more than twice as many are held as there are slots; of others, as many as ever."""
    down, up = CentralRateLimiter(name="down"), CentralRateLimiter(name="up")
    down.force("open")

    @durable_activity
    async def ask(name: str) -> str:
        return name

    asks = {"down": ask.with_options(limiter=down), "up": ask.with_options(limiter=up)}

    @workflow(STAGES)
    async def run(name: str) -> str:
        return await asks[name](name)

    async with environment(run, max_in_flight=4) as env:
        waiting = await env.batches.submit(
            ["down"] * 40, config=BatchConfig(concurrency=100, deadline=timedelta(hours=1))
        )
        await env.advance(5 * 60 * SECOND)
        assert (await env.batches.snapshot(waiting)).counts.running == 8
        for _ in range(2):
            healthy = await env.batches.submit(["up"] * 20, config=ALL)
            assert (await env.finished(healthy)).counts.succeeded == 20
        second = await env.batches.submit(["down"] * 20, config=ALL)
        await env.advance(5 * 60 * SECOND)
        # It is down for that one, too: no more of it are held than there are slots.
        assert (await env.batches.snapshot(second)).counts.running == 4
        healthy = await env.batches.submit(["up"] * 20, config=ALL)
        assert (await env.finished(healthy)).counts.succeeded == 20
        # What concerns the batch that waits is seen all the same.
        await env.advance(timedelta(hours=1))
        assert (await env.finished(waiting)).state.tag == "failed"
        down.force("auto")
        assert (await env.finished(second)).counts.succeeded == 20


async def test_a_batch_few_of_whose_documents_wait_is_not_held_up_by_another_one_s_provider() -> None:
    down = CentralRateLimiter()
    down.force("open")
    hour = timedelta(hours=1)

    @durable_activity
    async def ask(name: str) -> str:
        if name == "later" and env.clock.boot() - began < hour.total_seconds():
            raise RetryLater(hour)
        return name

    limited = ask.with_options(limiter=down)

    @workflow(STAGES)
    async def run(name: str) -> str:
        return await (limited if name == "down" else ask)(name)

    async with environment(run, max_in_flight=4) as env:
        began = env.clock.boot()
        waiting = await env.batches.submit(["down"] * 40, config=ALL)
        await env.advance(5 * 60 * SECOND)
        # One of them waits for a retry of its own.
        mixed = await env.batches.submit(["later", *["up"] * 19], config=ALL)
        await env.advance(5 * 60 * SECOND)
        assert (await env.batches.snapshot(mixed)).counts.succeeded == 19
        await env.advance(hour)
        assert (await env.finished(mixed)).counts.succeeded == 20
        down.force("auto")
        assert (await env.finished(waiting)).counts.succeeded == 40


async def test_a_document_whose_slot_others_have_waits_for_one_without_its_permit() -> None:
    """A permit is for a call that begins now; and no more documents run than there are slots."""
    limiter = CentralRateLimiter()
    limiter.force("open")

    @durable_activity
    async def ask(name: str) -> str:
        await env.clock.sleep(100)
        return name

    limited = ask.with_options(limiter=limiter)

    @workflow(STAGES)
    async def run(name: str) -> str:
        return await (limited if name == "limited" else ask)(name)

    async with environment(run, max_in_flight=1) as env:
        first = await env.batches.submit(["limited"])
        await env.advance(31 * SECOND)
        others = await env.batches.submit(["other"] * 3)
        await env.advance(10 * SECOND)
        assert (await env.batches.snapshot(others)).counts.running == 1
        limiter.force("auto")
        started = env.clock.boot()
        await env.advance(30 * SECOND)
        assert limiter.metrics().in_flight == 0
        # Its slot is the next one that is open.
        await env.finished(first)
        assert env.clock.boot() - started == pytest.approx(190)
        # And no slot has been lost or made.
        assert (await env.finished(others)).counts.succeeded == 3
        assert env.clock.boot() - started == pytest.approx(390)


async def test_a_document_that_is_cancelled_while_it_waits_leaves_the_queue() -> None:
    limiter = CentralRateLimiter()
    limiter.force("open")

    @durable_activity(limiter=limiter)
    async def ask(number: int) -> int:
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        batch_id = await env.batches.submit([1, 2, 3])
        await env.advance(40 * SECOND)
        assert limiter.metrics().waiting == 3
        assert await env.batches.cancel(batch_id)
        await env.settled()
        assert limiter.metrics().waiting == 0


async def test_a_crash_while_calls_wait_makes_none_twice() -> None:
    limiter = CentralRateLimiter(requests_per_minute=60)
    calls: list[int] = []

    @durable_activity(limiter=limiter)
    async def ask(number: int) -> int:
        calls.append(number)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number)

    async with environment(run) as env:
        batch_id = await env.batches.submit(range(20), config=ALL)
        await env.advance(5 * SECOND)
        await env.crash()
        assert (await env.finished(batch_id)).counts.succeeded == 20
    assert sorted(calls) == list(range(20))
    assert limiter.metrics().in_flight == limiter.metrics().waiting == 0


async def test_two_waiting_calls_of_one_document_share_its_slot() -> None:
    limiter = CentralRateLimiter(max_concurrent=1)

    @durable_activity(limiter=limiter)
    async def ask(number: int) -> int:
        await env.clock.sleep(50)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return sum(await asyncio.gather(*(ask(number * 10 + index) for index in range(3))))

    async with environment(run, max_in_flight=2) as env:
        assert await seconds_of(env, [1, 2, 3]) == pytest.approx(450)


async def test_a_permit_comes_while_another_call_of_the_document_waits_for_the_slot() -> None:
    """The slot is taken back once, and no slot is lost or made."""
    limiter = CentralRateLimiter()
    limiter.force("open")
    gauge = Gauge()

    tried: list[float] = []

    @durable_activity(limiter=limiter)
    async def limited() -> None:
        await env.clock.sleep(300)

    @durable_activity
    async def later() -> None:
        tried.append(env.clock.boot() - started)
        if len(tried) == 1:
            raise RetryLater(40 * SECOND)

    @durable_activity
    async def holds(seconds: int) -> None:
        with gauge:
            await env.clock.sleep(seconds)

    @workflow(STAGES)
    async def run(document: str) -> None:
        if document == "waits":
            await asyncio.gather(limited(), later())
        else:
            await holds(int(document))

    async with environment(run, max_in_flight=1) as env:
        started = env.clock.boot()
        first = await env.batches.submit(["waits"])
        await env.advance(31 * SECOND)
        others = await env.batches.submit(["100", "10", "10"])
        # `later` wants the slot back, which the first of the others has.
        await env.advance(20 * SECOND)
        limiter.force("auto")
        await env.finished(first)
        await env.finished(others)
        # It had the slot when the first of the others had ended, and not when the call with the permit had.
        assert tried == pytest.approx([0, 131])
        # One at a time, as before: the slots are counted rightly.
        await env.finished(await env.batches.submit(["1"] * 5))
    assert gauge.most == 1


async def test_a_limiter_that_nobody_else_has_is_forgotten() -> None:
    class Own:
        """A limiter of which there are no weak references, and no hash."""

        __slots__ = ("limiter",)

        def __eq__(self, other: object) -> bool:
            return self is other

        def __init__(self) -> None:
            self.limiter = CentralRateLimiter(name="own")

        @property
        def name(self) -> str:
            return self.limiter.name

        def permit(self, *, tokens: int = 0, **options: Any) -> AbstractAsyncContextManager[Permit]:
            return self.limiter.permit(tokens=tokens)

    clock, kept = ManualClock(), CentralRateLimiter(name="kept")
    trial = Trial(clock=clock)

    async def call(limiter: Limiter) -> None:
        @durable_activity(limiter=limiter)
        async def ask() -> None:
            pass

        await ask()

    async def body() -> None:
        await call(kept)
        await call(Own())
        for number in range(20):
            await call(CentralRateLimiter(name=f"{number}"))

    assert isinstance(await trial.end(body), AttemptSucceeded)
    # What would have lent the slots of calls that wait is over.
    clock.advance(60)
    gc.collect()
    assert [limiter.name for limiter in trial.resources.limiters.present()] == ["kept", "own"]


# ---- explained -------------------------------------------------------------------------------------------------


async def test_explain_names_the_limiter_that_calls_wait_for() -> None:
    clock = ManualClock()
    breaker = CircuitBreaker(failure_threshold=1)
    limiter, quick = CentralRateLimiter(name="openai", breaker=breaker), CentralRateLimiter(name="quick")
    limiter.force("open")
    is_down = True

    @durable_activity(limiter=limiter)
    async def ask(number: int) -> int:
        if is_down:
            raise ConnectionError
        return number

    @durable_activity(limiter=quick)
    async def look(number: int) -> int:
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(await look(number))

    worker = Worker(MemoryStore(clock=clock), clock=clock, drain=timedelta(0))
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit([1, 2, 3])
        await eventually(lambda: limiter.metrics().waiting == 3)
        since = from_micros(clock.now())
        known = ThrottledLimiter(limiter="openai", waiting=3, since=since, workers={worker.worker_id: 3})

        async def throttled() -> ThrottledLimiter:
            with worker.signals.lease.renewed.listen() as renewed:
                await eventually(lambda: clock.waiting_threads == 1)
                clock.advance(10)
                await renewed.next()
            (found,) = [each for each in (await batches.explain(batch_id)).reasons if each.tag == "throttled"]
            return found

        assert await throttled() == replace(known, breaker="open")
        # One of them finds the provider down.
        limiter.force("auto")
        await eventually(lambda: limiter.metrics().breaker == "open")
        until = from_micros(clock.now()) + breaker.recovery_timeout
        # Those that were refused or failed try again, and wait, before the worker says so.
        clock.advance(10)
        await eventually(lambda: limiter.metrics().waiting >= 2)
        found = await throttled()
        assert (found.breaker, found.until) == ("open", until)
        assert 2 <= found.waiting <= 3
        clock.advance(breaker.recovery_timeout.total_seconds())
        is_down = False
        assert (await batches.result(batch_id)).counts.succeeded == 3


def test_what_a_worker_says_of_limiters_is_read_again_and_is_bounded() -> None:
    limited = tuple(LimitedCallsOf(BatchId(f"b{number}"), "openai", number, 5_000) for number in range(200))
    note = WorkerNote(9_000, running=[], long_calls=[], limited=limited[:3])
    assert decode_note(encode_note(note)) == note
    text = encode_note(note._replace(limited=limited))
    assert len(text) <= LONGEST_NOTE
    decoded = decode_note(text)
    assert decoded is not None
    assert 10 < len(decoded.limited) < 200


# ---- limiters by name ------------------------------------------------------------------------------------------------


@durable_activity(limiter="openai", estimate=Amount(tokens=100))
async def ask_by_name(number: int) -> int:
    current_activity().settle(tokens=50)
    return number


@workflow(STAGES, name="by-name")
async def by_name(number: int) -> int:
    return await ask_by_name(number)


async def test_a_limiter_is_found_by_its_name_among_those_of_the_worker() -> None:
    limiter = CentralRateLimiter(name="gpt", tokens_per_minute=1_000)
    clock = ManualClock()
    worker = Worker(MemoryStore(clock=clock), limiters={"openai": limiter}, clock=clock)
    async with BatchOrchestrator(by_name, worker=worker) as batches:
        assert (await within(batches.run([1]))).counts.succeeded == 1
        assert limiter.metrics().tokens_available == 950


async def test_a_limiter_that_the_worker_does_not_have_is_an_error_at_start() -> None:
    for limiters in (None, {"other": CentralRateLimiter()}):
        worker = Worker(MemoryStore(), limiters=limiters)
        with pytest.raises(ConfigurationError, match="'ask_by_name' of workflow 'by-name' has the limiter 'openai'"):
            async with BatchOrchestrator(by_name, worker=worker):
                pass


async def test_a_limiter_that_is_named_only_at_the_call_is_missed_there() -> None:
    @durable_activity(retry=ONCE)
    async def ask(number: int) -> int:
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask.with_options(limiter="openai")(number)

    async with environment(run) as env:
        result = await env.finished(await env.batches.submit([1]))
        assert result.counts.failed == 1
        assert "the worker has none of that name" in result.failures[0].error
