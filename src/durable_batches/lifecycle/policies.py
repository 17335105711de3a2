"""Failure policies and retry policies: decide the consequences of a failure. Randomness comes in as an argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias

from durable_batches.errors import (
    CheckpointMismatchError,
    ConfigurationError,
    FactRejectedError,
    NonRetryableError,
    PayloadError,
    RetryLater,
)
from durable_batches.lifecycle.states import Counts
from durable_batches.options import (
    check_callable,
    check_duration,
    check_instance,
    check_integer,
    check_number,
    check_subclasses,
)

__all__ = [
    "AbortAll",
    "ContinueOnFailure",
    "FailurePolicy",
    "RetryFailed",
    "RetryPolicy",
]

_ZERO: Final = timedelta(0)
_MAX_BACKOFF: Final = timedelta(hours=1)
_LONGEST: Final = timedelta(days=3650)
"""Of any delay: a moment after the calendar's end could not be shown, nor stored."""


@dataclass(frozen=True, kw_only=True)
class ContinueOnFailure:
    """A failed document is counted and the others continue, until a threshold (if there is one) is exceeded.

    Attributes:
        max_failures: With more failed documents than this, the batch FAILS. None: no limit.
        max_failure_ratio: With a larger share of all the batch's documents failed than this (0 to 1), the batch
            FAILS. None: no limit.

    Raises:
        ConfigurationError: An option is of a wrong type.
        ValueError: A threshold is out of range.
    """

    max_failures: int | None = None
    max_failure_ratio: float | None = None
    tag: Literal["continue-on-failure"] = "continue-on-failure"

    def __post_init__(self) -> None:
        check_integer("max_failures", self.max_failures, optional=True)
        check_number("max_failure_ratio", self.max_failure_ratio, optional=True)
        if self.max_failures is not None and self.max_failures < 0:
            raise ValueError("max_failures must be 0 or more")
        if self.max_failure_ratio is not None and not 0 <= self.max_failure_ratio <= 1:
            raise ValueError("max_failure_ratio must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class AbortAll:
    """The first failed document ends the batch as FAILED: no more is claimed, and running documents are cancelled."""

    tag: Literal["abort-all"] = "abort-all"


@dataclass(frozen=True, kw_only=True)
class RetryFailed:
    """A failed document runs again later, from its checkpoints, and holds no slot while it waits.

    Attributes:
        max_attempts: Failing attempts of a document, the first one included; crashes and deploys do not count.
        backoff: The delay before the second attempt; it doubles for each further one, up to an hour.
        then: The policy that applies once a document's attempts are used up.

    Raises:
        ConfigurationError: An option is of a wrong type.
        ValueError: `max_attempts` is below 1, or `backoff` is negative or longer than 3650 days.
    """

    max_attempts: int = 3
    backoff: timedelta = timedelta(seconds=1)
    then: ContinueOnFailure | AbortAll = field(default_factory=ContinueOnFailure)
    tag: Literal["retry-failed"] = "retry-failed"

    def __post_init__(self) -> None:
        check_integer("max_attempts", self.max_attempts)
        check_instance("then", self.then, (ContinueOnFailure, AbortAll))
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be 1 or more")
        _check_delay("backoff", self.backoff)


FailurePolicy: TypeAlias = ContinueOnFailure | AbortAll | RetryFailed
"""The policy for failed documents; an argument of `BatchConfig`."""


def document_retry_delay(policy: FailurePolicy, failures: int, *, retryable: bool) -> timedelta | None:
    """Decide when a document that has failed `failures` times runs again; None: it has failed for good."""
    if not isinstance(policy, RetryFailed) or not retryable or failures >= policy.max_attempts:
        return None
    return _doubled(policy.backoff, failures - 1)


def abort_reason(policy: FailurePolicy, counts: Counts) -> str | None:
    """Say why these counts end the batch as FAILED under the policy; None: they do not."""
    if counts.failed == 0:
        return None
    final = policy.then if isinstance(policy, RetryFailed) else policy
    if isinstance(final, AbortAll):
        return "a document failed, and the failure policy is to abort all"
    if final.max_failures is not None and counts.failed > final.max_failures:
        return f"{counts.failed} documents failed, more than max_failures={final.max_failures}"
    if final.max_failure_ratio is not None and counts.failed > final.max_failure_ratio * counts.total:
        return (
            f"{counts.failed} of {counts.total} documents failed, "
            f"more than max_failure_ratio={final.max_failure_ratio:g}"
        )
    return None


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
        retryable: Decides for each other error: False ends it, True takes the backoff, a delay overrides it.

    An error's own wish is obeyed: `RetryLater(after)`, a `retry_after` attribute (seconds or a timedelta), or a
    `Retry-After` header (seconds) on its `response`.

    Raises:
        ConfigurationError: An option is of a wrong type, a number in place of a `timedelta` for example.
        ValueError: A number is out of range.
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
        check_callable("retryable", self.retryable, optional=True)
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be 1 or more")
        _check_delay("initial", self.initial)
        _check_delay("maximum", self.maximum)
        if not 1 <= self.factor < math.inf:
            raise ValueError("factor must be 1 or more, and finite")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter must be between 0 and 1")

    def delay(self, error: BaseException, attempt: int, chance: float) -> timedelta | None:
        """Decide the delay until the next attempt after attempt number `attempt` failed; None: there is none.

        `chance` is a random number in [0, 1), for the jitter.
        """
        verdict = self.verdict(error)
        if attempt >= self.max_attempts or verdict is False:
            return None
        if isinstance(verdict, timedelta):
            return _bounded(verdict)
        wish = retry_after(error)
        if wish is not None:
            return wish
        backoff = _grown(self.initial, self.factor, attempt - 1, self.maximum)
        return backoff * (1 + self.jitter * chance)

    def verdict(self, error: BaseException) -> bool | timedelta:
        """Decide whether this kind of error may be retried at all, or the delay that `retryable` returns for it."""
        if not is_retryable(error) or isinstance(error, self.non_retryable):
            return False
        return True if self.retryable is None else self.retryable(error)


def is_retryable(error: BaseException) -> bool:
    """Decide whether an error may be retried at all: a mistake in code or data fails every time."""
    return not isinstance(
        error,
        NonRetryableError | PayloadError | ConfigurationError | CheckpointMismatchError | FactRejectedError,
    )


def retry_after(error: BaseException) -> timedelta | None:
    """Read an error's own delay: `RetryLater`, a `retry_after` attribute, a Retry-After header in seconds."""
    if isinstance(error, RetryLater):
        return _bounded(error.after)
    wish: Any = getattr(error, "retry_after", None)
    if wish is None:
        headers: Any = getattr(getattr(error, "response", None), "headers", None)
        wish = headers.get("retry-after") if hasattr(headers, "get") else None
    if isinstance(wish, timedelta):
        return _bounded(wish)
    try:
        seconds = float(wish)
    except (TypeError, ValueError):
        return None
    return timedelta(seconds=min(seconds, _LONGEST.total_seconds())) if 0 <= seconds < math.inf else None


def _check_delay(name: str, delay: timedelta) -> None:
    check_duration(name, delay)
    if not _ZERO <= delay <= _LONGEST:
        raise ValueError(f"{name} must not be negative, nor longer than {_LONGEST.days} days")


def _bounded(delay: timedelta) -> timedelta:
    return min(max(delay, _ZERO), _LONGEST)


def _doubled(delay: timedelta, times: int) -> timedelta:
    return _grown(delay, 2.0, times, max(_MAX_BACKOFF, delay))


def _grown(delay: timedelta, factor: float, times: int, maximum: timedelta) -> timedelta:
    """Compute `delay * factor ** times`, at most `maximum`."""
    try:
        seconds = delay.total_seconds() * math.pow(factor, times)
    except OverflowError:
        # More than any maximum; but no delay at all stays none, however often it is doubled.
        return maximum if delay else delay
    return timedelta(seconds=min(seconds, maximum.total_seconds()))
