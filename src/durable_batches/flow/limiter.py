"""`CentralRateLimiter`: requests and tokens a minute, calls at once and a circuit breaker, in one permit."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta

from durable_batches.errors import ConfigurationError
from durable_batches.flow.admission import Admission
from durable_batches.flow.breaker import BreakerState, CircuitBreaker, ForcedBreaker
from durable_batches.flow.feedback import is_failure
from durable_batches.flow.permits import PermitContext, Permits
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.options import (
    check_choice,
    check_duration,
    check_flag,
    check_instance,
    check_integer,
)
from durable_batches.runtime.context import current_clock
from durable_batches.runtime.limits import Permit, Supply

__all__ = ["CentralRateLimiter", "LimiterMetrics"]

_log = logging.getLogger("durable_batches")


@dataclass(frozen=True, kw_only=True)
class LimiterMetrics:
    """What a limiter does at a moment.

    Attributes:
        name: Its name.
        in_flight: The calls that run.
        waiting: The calls that wait for a permit.
        requests_available: The requests that may still begin within the present minute; None: they are not limited.
        tokens_available: The tokens that may still be taken within the present minute; None: they are not limited.
        rate: The share of the limits that is used, in (0, 1]: lowered when the provider refuses, it recovers.
        breaker: The state of the circuit breaker.
        next_permit_in: When the next call may begin; None: when a call has ended, or nothing waits.
        refused: The calls that the provider has refused so far (429).
        shared: The name under which workers share the limits; None: they are the limiter's own. What is available is
            then the fleet's, as the store last said, and `in_flight` and `waiting` are this limiter's.
    """

    name: str
    in_flight: int
    waiting: int
    requests_available: int | None
    tokens_available: int | None
    rate: float
    breaker: BreakerState
    next_permit_in: timedelta | None
    refused: int
    shared: str | None = None


class CentralRateLimiter:
    """Keeps calls within the limits of a provider: one object for all that use the same account.

    In any window of a minute at most the limits are used, whatever the sizes of the calls, and they are spread over the
    minute. Calls begin in the order in which they asked: a large one is not put off for small ones.

    It can be made at module level, before there is an event loop. One event loop uses it at a time; another may when
    nothing waits and runs. Time is that of the worker whose activity asks, otherwise the machine's.

    Args:
        name: The name in errors, logs and explanations.
        requests_per_minute: The provider's limit of requests; None: none.
        tokens_per_minute: The provider's limit of tokens; None: none.
        max_concurrent: How many calls run at once; None: any number.
        breaker: When it stops calling a provider that fails; None: it does not.
        max_wait: How long a call waits for a permit at most; None: as long as it takes.
        returns_unused: Whether tokens that a call had reserved and did not take may be taken by others at once. Give
            False for a provider that counts the estimate (`max_tokens`, say) and not what was used.
        shared: The name under which all workers of a store share the limits: together they use no more, and one whose
            activities need none leaves all of it to the others. The store must be one that can keep it
            (`durable_batches.stores.SharedLimits`). The breaker stays each limiter's own. None: the limits are this
            limiter's alone.

    Raises:
        ConfigurationError: An argument is of a wrong type, or a limit is not positive.
    """

    def __init__(
        self,
        *,
        name: str = "limiter",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
        breaker: CircuitBreaker | None = None,
        max_wait: timedelta | None = None,
        returns_unused: bool = True,
        shared: str | None = None,
    ) -> None:
        problem = problem_with_name(name)
        if problem is not None:
            raise ConfigurationError(f"name {problem}")
        for limit, value in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
            ("max_concurrent", max_concurrent),
        ):
            check_integer(limit, value, optional=True)
            if value is not None and value < 1:
                raise ConfigurationError(f"{limit} must be 1 or more; None is no limit")
        check_instance("breaker", breaker, CircuitBreaker, optional=True)
        check_flag("returns_unused", returns_unused)
        _check_wait(max_wait)
        if shared is not None:
            problem = problem_with_name(shared)
            if problem is not None:
                raise ConfigurationError(f"shared {problem}")
            if requests_per_minute is None and tokens_per_minute is None and max_concurrent is None:
                raise ConfigurationError("shared is the name of limits, and there are none: give one, or shared=None")
        self._name = name
        self._shared = shared
        self._tokens_per_minute = tokens_per_minute
        self._max_wait = max_wait
        self._counts = None if breaker is None else breaker.counts
        self._admission = Admission(
            requests=requests_per_minute,
            tokens=tokens_per_minute,
            max_concurrent=max_concurrent,
            breaker=breaker,
            returns_unused=returns_unused,
            shared=shared is not None,
        )
        self._permits = Permits(name, self._admission, self._counts, shared)

    def __repr__(self) -> str:
        admission = self._admission
        return f"<CentralRateLimiter {self._name!r}: {admission.in_flight} in flight, {admission.waiting} waiting>"

    @property
    def name(self) -> str:
        """The name in errors, logs and explanations."""
        return self._name

    @property
    def shared(self) -> str | None:
        """The name under which workers share its limits; None: they are its own."""
        return self._shared

    def permit(
        self, *, tokens: int = 0, wait: bool = True, max_wait: timedelta | None = None
    ) -> AbstractAsyncContextManager[Permit]:
        """Wait for the permit to make one call, and hold it within an `async with` block.

        An error that leaves the block is judged like an activity's: if the provider has no room now, all calls wait.

        Args:
            tokens: How many the call will take, as an estimate; `Permit.settle` says how many it took.
            wait: Whether it may wait at all.
            max_wait: How long it may wait; by default as long as the limiter says.

        Raises:
            ConfigurationError: An argument is of a wrong type, or more tokens than the limit: no wait would help; or
                calls of another event loop, or by another clock, wait or run.
            RateLimitedError: It would wait, or longer than it may. `retry_after` says for how long.
            CircuitOpenError: The same, because the circuit breaker is open.
        """
        check_integer("tokens", tokens)
        check_flag("wait", wait)
        _check_wait(max_wait)
        if tokens < 0:
            raise ConfigurationError("tokens must be 0 or more")
        if self._tokens_per_minute is not None and tokens > self._tokens_per_minute:
            raise ConfigurationError(
                f"{tokens} tokens are more than the limiter {self._name!r} allows in a minute "
                f"({self._tokens_per_minute}): no wait would help; split the call"
            )
        longest = max_wait if max_wait is not None else self._max_wait
        seconds = 0.0 if not wait else math.inf if longest is None else longest.total_seconds()
        return PermitContext(self._permits, tokens, seconds)

    def is_failure(self, error: BaseException, /) -> bool:
        """Return whether an error is the provider's failure, which the circuit breaker counts."""
        return is_failure(error, self._counts, current_clock().now() / 1_000_000)

    def metrics(self) -> LimiterMetrics:
        """Return what it does now."""
        clock = self._permits.clock
        with self._permits.lock:
            admission, now = self._admission, clock.boot()
            next_in = admission.next_in(now)
            grant = None if admission.credit is None else admission.credit.grant
            return LimiterMetrics(
                name=self._name,
                in_flight=admission.in_flight,
                waiting=admission.waiting,
                requests_available=_whole(admission.requests_available(now) if grant is None else grant.left_requests),
                tokens_available=_whole(admission.tokens_available(now) if grant is None else grant.left_tokens),
                rate=admission.factor,
                breaker=admission.breaker_state(now),
                next_permit_in=None if next_in == math.inf else timedelta(seconds=next_in),
                refused=admission.refused,
                shared=self._shared,
            )

    @property
    def supply(self) -> Supply | None:
        """What workers supply with the fleet's budget, where `shared` is given; for workers."""
        return self._permits.refill

    def force(self, breaker: ForcedBreaker) -> None:
        """Keep the circuit breaker open ("open": no call begins) or "closed", or let it judge by itself ("auto").

        From any thread.

        Raises:
            ConfigurationError: `breaker` is none of these.
        """
        check_choice("breaker", breaker, ("open", "closed", "auto"))
        with self._permits.lock:
            self._admission.force(breaker)
        _log.info("limiter %r: the circuit is %s by force", self._name, breaker, extra={"limiter": self._name})
        self._permits.serve()


def _check_wait(max_wait: timedelta | None) -> None:
    check_duration("max_wait", max_wait, optional=True)
    if max_wait is not None and max_wait < timedelta(0):
        raise ConfigurationError("max_wait must not be negative")


def _whole(amount: float | None) -> int | None:
    return None if amount is None else math.floor(amount + 1e-6)
