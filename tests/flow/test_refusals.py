"""By how much refusals lower the rate: of a provider with a lower limit, and of one that refuses at random."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Final

import pytest
from tests.flow.virtual import passing

from durable_batches import Overloaded
from durable_batches.flow import CentralRateLimiter
from durable_batches.flow.refusals import LEAST_RATE, Refusals, least_share
from durable_batches.testing import ManualClock, activity_context
from durable_batches.testing.provider import HostileProvider, ProviderError

LIMIT: Final = 150
"""Requests a minute, as the limiter believes."""


@pytest.mark.parametrize(
    ("provider", "least_used", "most_refused"),
    [
        (HostileProvider(requests_per_minute=LIMIT * 2 // 3, delay=timedelta(seconds=1)), 0.85, 0.1),
        (HostileProvider(faults={"429-fraction": 0.02}, retry_after=timedelta(seconds=0.2)), 0.85, 0.05),
        (HostileProvider(faults={"429-fraction": 0.15}, retry_after=timedelta(seconds=0.2), seed=2), 0.45, 0.2),
    ],
    ids=["a lower limit", "2 % at random", "15 % at random"],
)
async def test_most_of_what_the_provider_allows_is_used(
    provider: HostileProvider, least_used: float, most_refused: float
) -> None:
    clock, minutes = ManualClock(), 8
    limiter = CentralRateLimiter(requests_per_minute=LIMIT)
    first = clock.boot()

    async def calls() -> None:
        while clock.boot() < first + minutes * 60:
            try:
                async with limiter.permit():
                    try:
                        await provider.call({"tokens": 1}, key="any")
                    except ProviderError as error:
                        # No header tells the limit.
                        raise Overloaded(timedelta(seconds=float(error.headers["retry-after"]))) from None
            except Overloaded:
                pass

    with activity_context(clock=clock):
        await passing(clock, asyncio.gather(*(calls() for _ in range(8))))
    limit = LIMIT * 2 // 3 if most_refused == 0.1 else LIMIT
    later = [entry for entry in provider.ledger if entry.at >= first + 180]
    answered = sum(entry.is_paid for entry in later)
    print(f"{answered / (limit * (minutes - 3)):.3f} used, {1 - answered / len(later):.3f} refused")
    assert answered >= least_used * limit * (minutes - 3)
    assert len(later) - answered <= most_refused * len(later)


def test_the_share_is_the_least_that_it_may_be() -> None:
    assert least_share(1, 1) == pytest.approx(0.2)
    assert least_share(10, 100) == pytest.approx(0.0546, abs=1e-4)
    assert least_share(0, 5) == 0.0
    for answered in (1, 7, 500):
        for refused in range(answered + 1):
            assert 0 <= least_share(refused, answered) <= refused / answered


def test_nothing_is_lowered_for_one_refusal_or_for_a_tolerated_share() -> None:
    assert Refusals().refused(1.0) is None
    refusals = Refusals()
    for number in range(2_000):
        if number % 50 == 25:
            assert refusals.refused(1.0) is None
        else:
            refusals.accepted()


def test_all_refused_it_goes_down_to_the_least_rate() -> None:
    refusals, rate, steps = Refusals(), 1.0, 0
    while rate > LEAST_RATE:
        lowered = refusals.refused(rate)
        assert lowered is None or LEAST_RATE <= lowered < rate
        rate = lowered or rate
        steps += 1
    assert steps <= 2 * math.ceil(math.log(LEAST_RATE) / math.log(2 / 3))


def test_where_the_share_does_not_fall_with_the_rate_the_rate_is_what_it_was() -> None:
    refusals, rate, rates = Refusals(), 1.0, list[float]()
    for _ in range(200):
        for _ in range(4):
            refusals.accepted()
        changed = refusals.refused(rate)
        if changed is not None:
            rate = changed
            rates.append(rate)
    # Lowered twice or so, and never again once that has changed nothing.
    assert rates[0] < 1.0
    assert rates[-1] == 1.0
    assert len(rates) <= 4
