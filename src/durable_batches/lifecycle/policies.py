"""Failure policies: decide the consequences of a failed document."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal, TypeAlias

from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.states import Counts
from durable_batches.options import check_duration, check_instance, check_integer, check_number

__all__ = [
    "LONGEST_DELAY",
    "AbortAll",
    "ContinueOnFailure",
    "FailurePolicy",
    "RetryFailed",
    "abort_reason",
    "check_delay",
    "document_retry_delay",
    "grown",
]

_ZERO: Final = timedelta(0)
_MAX_BACKOFF: Final = timedelta(hours=1)
LONGEST_DELAY: Final = timedelta(days=3650)
"""Of any delay: a moment after the calendar's end could not be shown, nor stored."""


@dataclass(frozen=True, kw_only=True)
class ContinueOnFailure:
    """A failed document is counted and the others continue, until a threshold (if there is one) is exceeded.

    Attributes:
        max_failures: With more failed documents than this, the batch FAILS. None: no limit.
        max_failure_ratio: With a larger share of all the batch's documents failed than this (0 to 1), the batch
            FAILS. None: no limit.
        min_failures: With fewer failed documents than this, the ratio does not apply: one failure does not end a small
            batch.

    Raises:
        ConfigurationError: An option is of a wrong type, or out of range.
    """

    max_failures: int | None = None
    max_failure_ratio: float | None = None
    min_failures: int = 1
    tag: Literal["continue-on-failure"] = "continue-on-failure"

    def __post_init__(self) -> None:
        check_integer("max_failures", self.max_failures, optional=True)
        check_number("max_failure_ratio", self.max_failure_ratio, optional=True)
        if self.max_failures is not None and self.max_failures < 0:
            raise ConfigurationError("max_failures must be 0 or more")
        if self.max_failure_ratio is not None and not 0 <= self.max_failure_ratio <= 1:
            raise ConfigurationError("max_failure_ratio must be between 0 and 1")
        check_integer("min_failures", self.min_failures)
        if self.min_failures < 1:
            raise ConfigurationError("min_failures must be 1 or more")


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
        ConfigurationError: An option is of a wrong type, or out of range: `max_attempts` below 1, `backoff` negative or
            longer than 3650 days.
    """

    max_attempts: int = 3
    backoff: timedelta = timedelta(seconds=1)
    then: ContinueOnFailure | AbortAll = field(default_factory=ContinueOnFailure)
    tag: Literal["retry-failed"] = "retry-failed"

    def __post_init__(self) -> None:
        check_integer("max_attempts", self.max_attempts)
        check_instance("then", self.then, (ContinueOnFailure, AbortAll))
        if self.max_attempts < 1:
            raise ConfigurationError("max_attempts must be 1 or more")
        check_delay("backoff", self.backoff)


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
    ratio = final.max_failure_ratio if counts.failed >= final.min_failures else None
    if ratio is not None and counts.failed > ratio * counts.total:
        return f"{counts.failed} of {counts.total} documents failed, more than max_failure_ratio={ratio:g}"
    return None


def check_delay(name: str, delay: timedelta) -> None:
    """Refuse what is no delay, or a negative one, or one beyond the calendar."""
    check_duration(name, delay)
    if not _ZERO <= delay <= LONGEST_DELAY:
        raise ConfigurationError(f"{name} must not be negative, nor longer than {LONGEST_DELAY.days} days")


def _doubled(delay: timedelta, times: int) -> timedelta:
    return grown(delay, 2.0, times, max(_MAX_BACKOFF, delay))


def grown(delay: timedelta, factor: float, times: int, maximum: timedelta) -> timedelta:
    """Compute `delay * factor ** times`, at most `maximum`."""
    try:
        seconds = delay.total_seconds() * math.pow(factor, times)
    except OverflowError:
        # More than any maximum; but no delay at all stays none, however often it is doubled.
        return maximum if delay else delay
    return timedelta(seconds=min(seconds, maximum.total_seconds()))
