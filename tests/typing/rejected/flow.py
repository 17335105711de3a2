"""Limiters: ints and durations, by name, and a permit only within its block."""

from __future__ import annotations

from datetime import timedelta

from durable_batches import Amount, MemoryStore, Worker, durable_activity
from durable_batches.flow import CentralRateLimiter, CircuitBreaker, Limiter

# ---- options ------------------------------------------------------------------------------------------------------

CentralRateLimiter("openai")  # error
CentralRateLimiter(requests_per_minute=0.5)  # error
CentralRateLimiter(max_wait=30)  # error
CentralRateLimiter(breaker=True)  # error
CircuitBreaker(recovery_timeout=120)  # error
CircuitBreaker(counts=OSError)  # error
LIMITER = CentralRateLimiter(tokens_per_minute=1_000)
LIMITER.force("half-open")  # error


class NoPermits:
    name: str = "none"

    async def permit(self) -> None: ...


OTHER: Limiter = NoPermits()  # error


# ---- activities ---------------------------------------------------------------------------------------------------


async def words(number: int) -> str:
    return str(number)


def tokens_of(text: str) -> Amount:
    return Amount(tokens=len(text))


def number_of(number: int) -> int:
    return number


durable_activity(limiter=3)(words)  # error
Worker(MemoryStore(), limiters={"openai": 3})  # error
Worker(MemoryStore(), limiters=[LIMITER])  # error
durable_activity(limiter=CentralRateLimiter)(words)  # error
durable_activity(limiter=LIMITER, estimate=800)(words)  # error
durable_activity(limiter=LIMITER, estimate=number_of)(words)  # error
durable_activity(limiter=LIMITER, estimate=tokens_of)(words)  # error
Amount(800)  # error
Amount(tokens="800")  # error

# ---- permits ------------------------------------------------------------------------------------------------------


async def permits() -> None:
    LIMITER.permit(800)  # error
    LIMITER.permit(tokens="800")  # error
    async with LIMITER.permit(max_wait=5):  # error
        pass
    with LIMITER.permit():  # error
        pass
    async with LIMITER.permit() as permit:
        permit.settle(650)  # error
        permit.refused(5)  # error
    LIMITER.metrics().waiting = 3  # error
    permit.refused(timedelta(seconds=5))
