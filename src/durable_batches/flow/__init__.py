"""Flow control: a provider's rate limits, the number of calls at once, and a circuit breaker, in one permit."""

from __future__ import annotations

from durable_batches.flow.breaker import CircuitBreaker
from durable_batches.flow.limiter import CentralRateLimiter, LimiterMetrics
from durable_batches.flow.prices import price_of, spend_usage
from durable_batches.runtime.limits import Limiter, Permit

__all__ = ["CentralRateLimiter", "CircuitBreaker", "Limiter", "LimiterMetrics", "Permit", "price_of", "spend_usage"]
