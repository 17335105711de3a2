"""What an answer or an error of a provider says of its limits and its health."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from durable_batches.errors import RateLimitedError
from durable_batches.lifecycle.failures import line_of
from durable_batches.runtime.classify import ErrorClassifier, RemoteError, classify_by
from durable_batches.runtime.delays import seconds_of, seconds_until
from durable_batches.runtime.error_signs import is_of_provider, signs_of

__all__ = ["Answered", "Feedback", "feedback_of", "is_failure"]

_log = logging.getLogger("durable_batches")

_NUMBER: Final = re.compile(r"\s*(\d{1,15})(?:\.\d+)?\s*(?:[,;].*)?$")

_REQUESTS_A_MINUTE: Final = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-req-minute",
    "anthropic-ratelimit-requests-limit",
)
_TOKENS_A_MINUTE: Final = (
    "x-ratelimit-limit-tokens",
    "x-ratelimit-limit-tokens-minute",
    "anthropic-ratelimit-tokens-limit",
)


class Answered(Exception):
    """An answer that a client has not made an error of, to be judged like one."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.response: object = None if isinstance(answer, Mapping) else answer
        self.headers: object = answer if isinstance(answer, Mapping) else None


class Feedback(NamedTuple):
    """What an answer or an error says."""

    healthy: bool | None
    """False: the provider has failed; None: it says nothing of that."""
    refused: bool
    """Whether the provider has no room now."""
    retry_after: float | None
    """How many seconds the provider asks to wait; None: it does not say."""
    requests: float | None
    """Its limit of requests a minute; None: it does not say."""
    tokens: float | None
    """Its limit of tokens a minute; None: it does not say."""
    empty_for: float
    """For how many seconds nothing is left of one of its limits."""


def feedback_of(
    error: BaseException, *, classifier: ErrorClassifier, counts: Callable[[BaseException], bool] | None, now: float
) -> Feedback:
    """Read an error, or an answer as one.

    Args:
        error: The error, which may be a group.
        classifier: Says what it means.
        counts: Decides in place of the library whether an error is the provider's failure.
        now: The time, in seconds since the epoch.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | asyncio.CancelledError | RateLimitedError):
        return Feedback(None, refused=False, retry_after=None, requests=None, tokens=None, empty_for=0.0)
    verdict = classify_by(classifier, error, now)
    headers = signs_of(error, now).headers
    asked = None if verdict.retry_after is None else verdict.retry_after.total_seconds()
    # An answer's headers may say when, without a status that says what is wrong.
    waits = asked or 0.0 if isinstance(error, Answered) and verdict.kind != "overloaded" else 0.0
    return Feedback(
        healthy=False if is_failure(error, counts, now) else None,
        refused=verdict.kind == "overloaded",
        retry_after=asked,
        requests=_least(headers, _REQUESTS_A_MINUTE),
        tokens=_least(headers, _TOKENS_A_MINUTE),
        empty_for=max([waits, *_empty(headers, now)]),
    )


def is_failure(error: BaseException, counts: Callable[[BaseException], bool] | None, now: float) -> bool:
    """Decide whether an error is the provider's failure; see `feedback_of`."""
    if isinstance(error, RemoteError) and error.is_failure is not None:
        # It was judged where the object is.
        return error.is_failure
    if counts is not None:
        try:
            return bool(counts(error))
        except Exception as mistake:  # noqa: BLE001  (user code that judges an error must not take its place)
            _log.warning(
                "CircuitBreaker(counts=) could not judge a %s, which is judged without it: %s",
                type(error).__name__,
                line_of(mistake),
                extra={"error_type": type(error).__name__},
            )
    return is_of_provider(error, now)


def _least(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    found = (_NUMBER.match(headers[name]) for name in names if name in headers)
    return min((float(number.group(1)) for number in found if number is not None), default=None)


def _empty(headers: Mapping[str, str], now: float) -> Iterator[float]:
    """List when the limits are reset of which nothing is left."""
    for name, value in headers.items():
        if "ratelimit" in name and "remaining" in name and seconds_of(value) == 0:
            seconds = seconds_until(headers.get(name.replace("remaining", "reset")), now)
            if seconds is not None:
                yield seconds
