"""`CentralRateLimiter`: permits as callers see them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Generator
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import pytest
from tests.flow.virtual import passing
from tests.support import turns

from durable_batches import CircuitOpenError, ConfigurationError, Overloaded, RateLimitedError
from durable_batches.clock import SystemClock
from durable_batches.flow import CentralRateLimiter, CircuitBreaker, Permit
from durable_batches.testing import ManualClock, activity_context

SECOND: Final = timedelta(seconds=1)


@pytest.fixture
def clock() -> Generator[ManualClock]:
    """The clock that limiters go by within the test."""
    clock = ManualClock()
    with activity_context(clock=clock):
        yield clock


class Answer(Exception):
    """What a client raises for an answer that is not 200."""

    def __init__(self, status_code: int, **headers: str) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


async def fail(limiter: CentralRateLimiter, error: BaseException, **options: Any) -> None:
    """Make a call that raises this."""
    with suppress(type(error)):
        async with limiter.permit(**options):
            raise error


async def begin(limiter: CentralRateLimiter, clock: ManualClock, **options: Any) -> float:
    """Make a call; return when it began."""
    async with limiter.permit(**options):
        return clock.boot()


# ---- limits and order ------------------------------------------------------------------------------------------


async def test_calls_begin_in_order_and_spread_over_the_minute(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(requests_per_minute=60, tokens_per_minute=6_000)
    first = clock.boot()
    begun = await passing(clock, asyncio.gather(*(begin(limiter, clock, tokens=10) for _ in range(5))))
    assert [moment - first for moment in begun] == pytest.approx([0, 0.81, 1.82, 2.82, 3.83], abs=0.01)
    assert clock.waiting == 0


async def test_so_many_run_at_once(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(max_concurrent=2)
    order: list[str] = []

    async def call(name: str) -> None:
        async with limiter.permit():
            order.append(f"{name} begins")
            await clock.sleep(5)
            order.append(f"{name} ends")

    await passing(clock, asyncio.gather(*map(call, "abc")))
    assert order == ["a begins", "b begins", "a ends", "b ends", "c begins", "c ends"]


async def test_a_permit_taken_at_once_costs_no_timer_and_no_turn_of_the_loop(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(requests_per_minute=6_000)
    turned: list[int] = []
    asyncio.get_running_loop().call_soon(turned.append, 1)
    async with limiter.permit():
        assert clock.waiting == 0
    assert turned == []


# ---- waiting that is bounded ------------------------------------------------------------------------------------


async def test_it_does_not_wait_where_it_must_not(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(name="openai", requests_per_minute=1)
    async with limiter.permit(wait=False):
        pass
    with pytest.raises(RateLimitedError, match="'openai'") as caught:
        async with limiter.permit(wait=False):
            pass
    assert caught.value.retry_after.total_seconds() == pytest.approx(60.5)
    assert caught.value.limiter == "openai"
    assert not isinstance(caught.value, CircuitOpenError)
    # What would last too long is refused at once, and what would not waits.
    with pytest.raises(RateLimitedError):
        async with limiter.permit(max_wait=60 * SECOND):
            pass
    assert limiter.metrics().waiting == 0
    await passing(clock, begin(limiter, clock, max_wait=61 * SECOND))


async def test_it_waits_no_longer_than_it_may_where_nobody_knew(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(max_concurrent=1, max_wait=5 * SECOND)
    async with limiter.permit():
        for options, seconds in ({}, 5), ({"max_wait": 3 * SECOND}, 3):
            started = clock.boot()
            with pytest.raises(RateLimitedError):
                await passing(clock, begin(limiter, clock, **options))
            assert clock.boot() - started == pytest.approx(seconds)
        assert limiter.metrics().waiting == 0
    assert clock.waiting == 0


# ---- cancelling ------------------------------------------------------------------------------------------------


async def test_one_that_is_cancelled_leaves_nothing_and_lets_the_next_begin(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(tokens_per_minute=100)
    async with limiter.permit(tokens=60):
        pass
    large = asyncio.create_task(begin(limiter, clock, tokens=100))
    small = asyncio.create_task(begin(limiter, clock, tokens=1))
    await turns(3)
    assert limiter.metrics().waiting == 2
    large.cancel()
    await asyncio.wait([large])
    assert await passing(clock, small) - 1_000 < 40
    assert limiter.metrics().waiting == limiter.metrics().in_flight == clock.waiting == 0


async def test_one_that_is_cancelled_as_it_is_admitted_gives_all_back(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(max_concurrent=1, requests_per_minute=100, tokens_per_minute=1_000)
    held = limiter.permit()
    await held.__aenter__()
    waits = asyncio.create_task(begin(limiter, clock, tokens=400))
    await turns(3)
    await held.__aexit__(None, None, None)
    waits.cancel()
    await asyncio.wait([waits])
    assert waits.cancelled()
    state = limiter.metrics()
    assert (state.in_flight, state.waiting, state.requests_available, state.tokens_available) == (0, 0, 99, 1_000)


async def test_whatever_happens_to_callers_nothing_leaks(clock: ManualClock) -> None:
    chance = random.Random(3)
    limiter = CentralRateLimiter(
        requests_per_minute=600, tokens_per_minute=60_000, max_concurrent=5, breaker=CircuitBreaker()
    )

    async def call() -> None:
        async with limiter.permit(tokens=chance.randrange(400)) as permit:
            await clock.sleep(chance.random() * 3)
            permit.settle(tokens=chance.randrange(500))
            if chance.random() < 0.3:
                raise TimeoutError

    tasks = [asyncio.create_task(call()) for _ in range(150)]

    async def disturb() -> None:
        for task in chance.sample(tasks, 60):
            await clock.sleep(chance.random())
            task.cancel()

    await passing(clock, asyncio.gather(disturb(), asyncio.wait(tasks)))
    state = limiter.metrics()
    assert (state.in_flight, state.waiting, clock.waiting) == (0, 0, 0)
    clock.advance(300)
    assert (limiter.metrics().requests_available, limiter.metrics().tokens_available) == (600, 60_000)


# ---- what calls say --------------------------------------------------------------------------------------------


async def test_what_was_settled_last_stands_also_after_the_block(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(tokens_per_minute=1_000)
    async with limiter.permit(tokens=500) as permit:
        assert limiter.metrics().tokens_available == 500
        permit.settle(tokens=300)
        permit.settle(tokens=200)
        assert limiter.metrics().tokens_available == 800
    permit.settle(tokens=700)
    assert limiter.metrics().tokens_available == 300
    # A permit that is never settled took what was estimated.
    clock.advance(120)
    async with limiter.permit(tokens=500):
        pass
    assert limiter.metrics().tokens_available == 500


async def test_a_settlement_on_another_thread_lets_the_next_begin(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(tokens_per_minute=1_000)
    async with limiter.permit(tokens=1_000) as permit:
        waits = asyncio.create_task(begin(limiter, clock, tokens=10))
        await turns(3)
        await asyncio.to_thread(permit.settle, tokens=0)
        await asyncio.wait([waits])
    assert limiter.metrics().tokens_available == 990


@pytest.mark.parametrize("how", ["raised", "observed", "reported"])
async def test_a_refusal_makes_all_wait(clock: ManualClock, how: str) -> None:
    limiter = CentralRateLimiter(requests_per_minute=6_000)
    refusal = Answer(429, retry_after="20")
    match how:
        case "raised":
            await fail(limiter, refusal)
        case "observed":
            async with limiter.permit() as permit:
                permit.observe(refusal)
        case _:
            async with limiter.permit() as permit:
                permit.refused(20 * SECOND)
    started = clock.boot()
    assert limiter.metrics().refused == 1
    assert limiter.metrics().rate == 1.0
    assert await passing(clock, begin(limiter, clock)) - started == pytest.approx(20)


async def test_an_error_that_was_reported_counts_once(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(requests_per_minute=6_000)
    refusal = Answer(429, retry_after="20")
    with suppress(Answer):
        async with limiter.permit() as permit:
            permit.observe(refusal)
            permit.observe(refusal)
            raise refusal
    assert limiter.metrics().refused == 1


async def test_the_limits_that_a_provider_tells_are_kept(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(requests_per_minute=600, tokens_per_minute=90_000)
    async with limiter.permit() as permit:
        permit.observe({"x-ratelimit-limit-requests": "300", "X-RateLimit-Limit-Tokens": "1000000"})
    state = limiter.metrics()
    assert (state.requests_available, state.tokens_available) == (299, 90_000)
    await fail(limiter, Answer(500, **{"anthropic-ratelimit-tokens-limit": "40000"}))
    assert limiter.metrics().tokens_available == 40_000


async def test_nothing_begins_while_nothing_is_left(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(requests_per_minute=6_000)

    class Response:
        status_code = 200
        headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6s"}  # noqa: RUF012

    async with limiter.permit() as permit:
        permit.observe(Response())
    started = clock.boot()
    assert await passing(clock, begin(limiter, clock)) - started == pytest.approx(6)
    async with limiter.permit() as permit:
        permit.observe({"retry-after": "3"})
    assert await passing(clock, begin(limiter, clock)) - started == pytest.approx(9)
    # An answer is no refusal.
    assert (limiter.metrics().refused, limiter.metrics().rate) == (0, 1.0)


# ---- the circuit breaker ---------------------------------------------------------------------------------------

BREAKER: Final = CircuitBreaker(failure_threshold=2, recovery_timeout=30 * SECOND, success_threshold=1)


class APIConnectionError(Exception):
    """As clients have of their own."""


@pytest.mark.parametrize("error", [TimeoutError(), APIConnectionError(), Answer(500), Answer(503), ConnectionError()])
async def test_failures_in_a_row_open_the_circuit(
    clock: ManualClock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="durable_batches")
    limiter = CentralRateLimiter(name="openai", breaker=BREAKER)
    await fail(limiter, error)
    await passing(clock, fail(limiter, error))
    assert limiter.metrics().breaker == "open"
    assert "limiter 'openai': the circuit is open after 2 failures in a row, the last of them" in caplog.text
    with pytest.raises(CircuitOpenError) as caught:
        async with limiter.permit(wait=False):
            pass
    assert caught.value.retry_after.total_seconds() == pytest.approx(30)
    started = clock.boot()
    waiting = asyncio.gather(*(begin(limiter, clock) for _ in range(3)))
    assert [moment - started for moment in await passing(clock, waiting)] == pytest.approx([30] * 3)
    assert limiter.metrics().breaker == "closed"
    assert "limiter 'openai': the circuit is closed" in caplog.text


@pytest.mark.parametrize(
    "error", [Answer(400), Answer(429, retry_after="0"), ValueError("a bug"), RateLimitedError("other", SECOND)]
)
async def test_what_does_not_speak_of_the_providers_health_does_not(clock: ManualClock, error: Exception) -> None:
    limiter = CentralRateLimiter(breaker=BREAKER)
    for _ in range(5):
        await passing(clock, fail(limiter, error))
    assert limiter.metrics().breaker == "closed"


async def test_a_cancelled_probe_lets_another_one_try(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(breaker=BREAKER)
    for _ in range(2):
        await fail(limiter, TimeoutError())
    clock.advance(30)
    probe = asyncio.create_task(clock.sleep(1e6))

    async def hang() -> None:
        async with limiter.permit():
            await probe

    hanging = asyncio.create_task(hang())
    await turns(3)
    waits = asyncio.create_task(begin(limiter, clock))
    await turns(3)
    assert (limiter.metrics().breaker, limiter.metrics().waiting) == ("half-open", 1)
    hanging.cancel()
    await asyncio.wait([hanging, waits])
    assert limiter.metrics().breaker == "closed"


async def test_users_say_which_errors_count(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    def counts(error: BaseException) -> bool:
        if isinstance(error, KeyError):
            raise RuntimeError("a mistake")
        return isinstance(error, ValueError)

    limiter = CentralRateLimiter(breaker=CircuitBreaker(failure_threshold=1, counts=counts))
    await fail(limiter, TimeoutError())
    await fail(limiter, KeyError())
    assert "CircuitBreaker(counts=) could not judge a KeyError" in caplog.text
    assert limiter.metrics().breaker == "closed"
    await fail(limiter, ValueError())
    assert limiter.metrics().breaker == "open"


async def test_an_operator_opens_and_closes_it(clock: ManualClock) -> None:
    limiter = CentralRateLimiter()
    limiter.force("open")
    waits = asyncio.create_task(begin(limiter, clock))
    await turns(3)
    assert (limiter.metrics().breaker, limiter.metrics().waiting) == ("open", 1)
    with pytest.raises(CircuitOpenError):
        async with limiter.permit(wait=False):
            pass
    await asyncio.to_thread(limiter.force, "auto")
    await asyncio.wait([waits])


# ---- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "max_concurrent"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), 0.5, True, "60"])
def test_a_limit_is_a_positive_int(limit: str, value: object) -> None:
    wrong: Any = {limit: value}
    with pytest.raises(ConfigurationError, match=limit):
        CentralRateLimiter(**wrong)


def test_more_tokens_than_the_limit_are_refused_at_once() -> None:
    limiter = CentralRateLimiter(name="openai", tokens_per_minute=1_000)
    with pytest.raises(ConfigurationError, match="1001 tokens are more than the limiter 'openai' allows in a minute"):
        limiter.permit(tokens=1_001)
    limiter.permit(tokens=1_000)


async def test_a_permit_is_for_one_call(clock: ManualClock) -> None:
    limiter = CentralRateLimiter()
    permit = limiter.permit()
    async with permit:
        pass
    with pytest.raises(ConfigurationError, match="for one call"):
        async with permit:
            pass


async def test_the_providers_own_word_for_it_is_understood(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(requests_per_minute=600)
    await fail(limiter, ExceptionGroup("two calls", [ValueError(), Overloaded(after=7 * SECOND)]))
    started = clock.boot()
    assert await passing(clock, begin(limiter, clock)) - started == pytest.approx(7)


async def test_a_group_that_an_error_was_raised_from_is_looked_into(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(requests_per_minute=600, breaker=CircuitBreaker(failure_threshold=2))
    empty = Answer(400, x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="7s")
    wrapped = RuntimeError("two calls")
    for answers in ([ValueError(), Answer(503)], [TimeoutError()], [empty]):
        wrapped.__cause__ = group = ExceptionGroup("calls", answers)
        # One of its errors may have been raised from the group itself.
        answers[0].__cause__ = group
        assert limiter.is_failure(wrapped) is (empty not in answers)
        before = RuntimeError("one call")
        before.__cause__ = wrapped
        assert limiter.is_failure(before) is (empty not in answers)
    # What the error says by itself is nearer than what it was raised from.
    refused = Answer(404)
    refused.__cause__ = ExceptionGroup("calls", [Answer(503)])
    assert not limiter.is_failure(refused)
    await fail(limiter, wrapped)
    started = clock.boot()
    assert await passing(clock, begin(limiter, clock)) - started == pytest.approx(7)


# ---- event loops -----------------------------------------------------------------------------------------------


def test_one_loop_after_another_keeps_the_limit() -> None:
    limiter = CentralRateLimiter(requests_per_minute=60)

    async def ask() -> None:
        async with limiter.permit(wait=False):
            pass

    asyncio.run(ask())
    with pytest.raises(RateLimitedError):
        asyncio.run(ask())


async def test_another_loop_is_refused_while_calls_run(clock: ManualClock) -> None:
    limiter = CentralRateLimiter(name="openai", max_concurrent=5)
    async with limiter.permit():
        with pytest.raises(ConfigurationError, match="'openai' is in use in another event loop"):
            await asyncio.to_thread(asyncio.run, begin(limiter, clock))
    await asyncio.to_thread(asyncio.run, begin(limiter, clock))
    async with limiter.permit():
        pass


async def test_a_second_clock_is_refused_while_calls_go_by_the_first(clock: ManualClock) -> None:
    limiter, other = CentralRateLimiter(name="openai", requests_per_minute=60), ManualClock()
    other.advance(3_600)
    async with limiter.permit():
        with activity_context(clock=other), pytest.raises(ConfigurationError, match="another clock"):
            await begin(limiter, other)
        waiting = asyncio.ensure_future(begin(limiter, clock))
        await turns(6)
        assert limiter.metrics().waiting == 1
    assert await passing(clock, waiting) == pytest.approx(1_000.81, abs=0.01)
    # Nothing waits or runs, so that the other one may; the last minute's requests still count.
    with activity_context(clock=other):
        moments = [await passing(other, begin(limiter, other)) for _ in range(3)]
    assert moments[2] - moments[1] == pytest.approx(60.5 / 60, abs=0.01)


async def test_clocks_of_the_machine_are_one() -> None:
    limiter = CentralRateLimiter(max_concurrent=2)
    with activity_context(clock=SystemClock()):
        async with limiter.permit():
            with activity_context(clock=SystemClock()):
                async with limiter.permit():
                    pass


def test_what_a_closed_loop_left_behind_is_dropped() -> None:
    limiter = CentralRateLimiter(max_concurrent=1)
    held = limiter.permit()

    async def leave_one() -> Permit:
        return await held.__aenter__()

    async def ask() -> None:
        async with limiter.permit(wait=False):
            assert limiter.metrics().in_flight == 1

    permit = asyncio.run(leave_one())
    asyncio.run(ask())
    permit.settle(tokens=5)
    assert limiter.metrics().in_flight == 0
