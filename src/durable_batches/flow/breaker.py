"""A circuit breaker: after failures in a row, calls wait until a few of them have found the provider healthy. Pure.

1. *Closed*: all calls pass. `failure_threshold` failures in a row open it; a success in between counts them anew.
2. *Open*: no call passes for `recovery_timeout`.
3. *Half-open*: at most `probes` calls pass at once. One that fails opens it again; `success_threshold` successes
   close it.
4. A call that began before the last change says nothing of what came after it.
5. A probe whose end says nothing of the provider (it was cancelled) gives its place to the next, and so does one that
   has not ended within `recovery_timeout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple, TypeAlias

from durable_batches.errors import ConfigurationError
from durable_batches.options import check_callable, check_duration, check_integer

__all__ = ["Breaker", "BreakerState", "CircuitBreaker", "ForcedBreaker", "Passage"]

BreakerState: TypeAlias = Literal["closed", "open", "half-open"]
"""Closed: calls pass. Open: none does. Half-open: a few do, to see if the provider has recovered."""

ForcedBreaker: TypeAlias = Literal["open", "closed", "auto"]
"""What an operator asks of a breaker."""


@dataclass(frozen=True, kw_only=True)
class CircuitBreaker:
    """When a limiter stops calling a provider that fails, and when it tries again.

    Attributes:
        failure_threshold: The number of failures in a row after which no call is made.
        recovery_timeout: How long no call is made then.
        probes: How many calls are made at once afterwards, to see if the provider has recovered.
        success_threshold: How many of those must succeed, before all calls are made again.
        counts: Returns whether an error is the provider's failure. By default these are: answers with a status of 500
            or more, timeouts, and connections that fail. These are not: what is wrong with one call (other 4xx), 429,
            which makes all calls wait instead, and errors of your own code.

    Raises:
        ConfigurationError: An attribute is of a wrong type, a number is below 1, or the time not positive.
    """

    failure_threshold: int = 5
    recovery_timeout: timedelta = timedelta(minutes=2)
    probes: int = 1
    success_threshold: int = 2
    counts: Callable[[BaseException], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("failure_threshold", "probes", "success_threshold"):
            value = getattr(self, name)
            check_integer(name, value)
            if value < 1:
                raise ConfigurationError(f"{name} must be 1 or more")
        check_duration("recovery_timeout", self.recovery_timeout)
        if self.recovery_timeout <= timedelta(0):
            raise ConfigurationError("recovery_timeout must be positive")
        check_callable("counts", self.counts, optional=True)


class Passage(NamedTuple):
    """A call that a breaker has let pass."""

    epoch: int
    number: int


class Breaker:
    """The state of a breaker. Every `now` is in seconds, and not less than the one before.

    Args:
        options: None: it never opens by itself.
    """

    __slots__ = ("_epoch", "_failures", "_forced", "_number", "_options", "_probing", "_state", "_successes", "_until")

    def __init__(self, options: CircuitBreaker | None = None) -> None:
        self._options = options
        self._state: BreakerState = "closed"
        self._forced: Literal["open", "closed"] | None = None
        self._failures = 0
        self._successes = 0
        self._until = -math.inf
        self._epoch = 0
        self._number = 0
        self._probing: dict[int, float] = {}

    def state(self, now: float) -> BreakerState:
        """Return its state, as forced."""
        if self._forced is not None:
            return self._forced
        if self._state == "open" and now >= self._until:
            self._change("half-open")
        return self._state

    @property
    def failures(self) -> int:
        """How many failures in a row there were."""
        return self._failures

    def ready_at(self, now: float) -> float:
        """Return when the next call may pass; infinity: when a probe has ended, or somebody has closed it."""
        state = self.state(now)
        if state == "closed":
            return now
        if self._forced is not None or self._options is None:
            return math.inf
        if state == "open":
            return self._until
        if len(self._probing) < self._options.probes:
            return now
        return max(now, next(iter(self._probing.values())) + self._options.recovery_timeout.total_seconds())

    def begin(self, now: float) -> Passage:
        """Note that a call passes, which `ready_at` allows."""
        self._number += 1
        if self.state(now) == "half-open":
            assert self._options is not None
            if len(self._probing) >= self._options.probes:
                # It has not ended for so long: the next one takes its place.
                del self._probing[next(iter(self._probing))]
            self._probing[self._number] = now
        return Passage(self._epoch, self._number)

    def end(self, now: float, passage: Passage, *, healthy: bool | None) -> None:
        """Note that a call has ended.

        Args:
            now: The time.
            passage: What `begin` has returned.
            healthy: Whether the provider is; None: the call says nothing of that.
        """
        self._probing.pop(passage.number, None)
        options = self._options
        if passage.epoch != self._epoch or healthy is None or options is None:
            return
        if self._state == "half-open":
            if not healthy:
                self._open(now, options)
            else:
                self._successes += 1
                if self._successes >= options.success_threshold:
                    self._change("closed")
        elif self._state == "closed":
            self._failures = 0 if healthy else self._failures + 1
            if self._failures >= options.failure_threshold:
                self._open(now, options)

    def force(self, state: ForcedBreaker) -> None:
        """Keep it open or closed, whatever the provider does; "auto": closed, and it judges by itself from now on."""
        self._forced = None if state == "auto" else state
        self._change("closed")

    def _open(self, now: float, options: CircuitBreaker) -> None:
        self._change("open", failures=self._failures)
        self._until = now + options.recovery_timeout.total_seconds()

    def _change(self, state: BreakerState, *, failures: int = 0) -> None:
        self._state = state
        self._epoch += 1
        self._failures = failures
        self._successes = 0
        self._probing.clear()
