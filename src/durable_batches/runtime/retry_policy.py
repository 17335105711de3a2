"""How often and when a failing activity (or resolver) is retried. Randomness comes in as an argument."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, cast

from durable_batches.clock import SystemClock
from durable_batches.errors import ConfigurationError, qualified_name
from durable_batches.lifecycle.failures import leaves, line_of
from durable_batches.lifecycle.policies import LONGEST_DELAY, check_delay, grown
from durable_batches.options import check_function, check_integer, check_number, check_subclasses
from durable_batches.runtime.classify import (
    ErrorClassifier,
    RemoteError,
    Verdict,
    classify_by,
    default_classifier,
    is_retryable,
)

__all__ = ["RetryPolicy"]

_log = logging.getLogger("durable_batches")

_ZERO: Final = timedelta(0)
_SHORT: Final = timedelta(seconds=1)
"""A provider that is overloaded is not asked again sooner, whatever the policy says of other errors."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and when a failing activity (or resolver) is retried.

    Attributes:
        max_attempts: Attempts in all, the first one included.
        initial: The delay before the second attempt.
        factor: The factor by which each further delay grows.
        maximum: The longest delay, before jitter.
        jitter: Each delay is made up to this share longer, at random, so that callers do not move in step.
        non_retryable: Errors (and their subclasses) after which there is no further attempt.
        retryable: Decides for each other error: False ends it, a delay overrides the backoff. True has an error
            retried that the classifier would never retry, and leaves everything else to the classifier.

    Of a group of errors, each is judged. The classifier (`default_classifier`) judges what is left over: an error that
    says that the provider is overloaded waits and uses no attempt, and a delay that an error asks for is obeyed
    (`RetryLater(after)`, a `retry_after` attribute, a `Retry-After` header in any of its forms).

    Raises:
        ConfigurationError: An option is of a wrong type (a number in place of a `timedelta`), or out of range.
    """

    max_attempts: int = 3
    initial: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    maximum: timedelta = timedelta(minutes=1)
    jitter: float = 0.1
    non_retryable: tuple[type[BaseException], ...] = ()
    retryable: Callable[[BaseException], bool | timedelta] | None = None

    def __post_init__(self) -> None:
        check_integer("max_attempts", self.max_attempts)
        check_number("factor", self.factor)
        check_number("jitter", self.jitter)
        check_subclasses("non_retryable", self.non_retryable, BaseException)
        check_function("retryable", self.retryable, optional=True)
        if self.max_attempts < 1:
            raise ConfigurationError("max_attempts must be 1 or more")
        check_delay("initial", self.initial)
        check_delay("maximum", self.maximum)
        if not 1 <= self.factor < math.inf:
            raise ConfigurationError("factor must be 1 or more, and finite")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError("jitter must be between 0 and 1")

    def delay(self, error: BaseException, attempt: int, chance: float) -> timedelta | None:
        """Decide the delay until the next attempt after attempt number `attempt` failed; None: there is none.

        `chance` is a random number in [0, 1), for the jitter.
        """
        return self.delay_of(self.judge(error), attempt, chance)

    def verdict(self, error: BaseException) -> bool | timedelta:
        """Decide whether this kind of error may be retried at all, or the delay that `retryable` returns for it."""
        delays: list[timedelta] = []
        for leaf in leaves(error):
            if not is_retryable(leaf) or isinstance(leaf, self.non_retryable):
                return False
            decision = self._decision(leaf)
            if decision is False:
                return False
            if isinstance(decision, timedelta):
                delays.append(decision)
        return max(delays, default=True)

    def judge(
        self, error: BaseException, classifier: ErrorClassifier = default_classifier, now: float | None = None
    ) -> Verdict:
        """Say what an error means: as this policy has it, or else the classifier.

        Args:
            error: The error.
            classifier: Asked for what the policy does not decide.
            now: The time, in seconds since the epoch; by default that of the machine.
        """
        if isinstance(error, RemoteError):
            # It was judged where it was raised, by the policy of the activity there; this one may have other classes.
            named = {qualified_name(kind) for kind in self.non_retryable}
            return error.verdict if named.isdisjoint(error.failure.kinds) else Verdict(kind="never")
        own = self.verdict(error)
        if own is False:
            return Verdict(kind="never")
        if isinstance(own, timedelta):
            return Verdict(kind="retry", retry_after=_bounded(own))
        verdict = classify_by(classifier, error, SystemClock().now() / 1_000_000 if now is None else now)
        if verdict.kind == "never" and self.retryable is not None:
            return Verdict(kind="retry", retry_after=verdict.retry_after)
        return verdict

    def delay_of(self, verdict: Verdict, attempt: int, chance: float) -> timedelta | None:
        """Decide the delay after an attempt that failed with an error so judged; None: there is no further attempt."""
        if verdict.kind == "never" or attempt >= self.max_attempts:
            return None
        if verdict.retry_after is not None:
            return _bounded(verdict.retry_after)
        return grown(self.initial, self.factor, attempt - 1, self.maximum) * (1 + self.jitter * chance)

    def wait_of(self, verdict: Verdict, times: int, chance: float) -> timedelta:
        """Decide how long to wait for a provider that is overloaded, and was so `times` times in a row.

        Never shorter than it asks for, and with jitter: callers that were refused together do not come back together.
        """
        told = verdict.retry_after
        if told is None or told < _SHORT:
            told = max(grown(self.initial, self.factor, times - 1, self.maximum), _SHORT)
        return _bounded(_bounded(told) * (1 + self.jitter * chance))

    def _decision(self, error: BaseException) -> bool | timedelta:
        if self.retryable is None:
            return True
        try:
            decision = cast("object", self.retryable(error))
        except KeyboardInterrupt:
            raise
        except BaseException as mistake:  # noqa: BLE001  (user code that judges an error must not take its place)
            said = line_of(mistake)
        else:
            if isinstance(decision, bool | timedelta):
                return decision
            said = f"it returned {type(decision).__name__!r}, not a bool or a timedelta"
        _log.warning(
            "the retry policy's retryable= could not judge a %s, which is retried: %s",
            type(error).__name__,
            said,
            extra={"error_type": type(error).__name__},
        )
        return True


def _bounded(delay: timedelta) -> timedelta:
    return min(max(delay, _ZERO), LONGEST_DELAY)
