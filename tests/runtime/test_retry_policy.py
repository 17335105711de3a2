"""When an activity is tried again: the policy's own decisions, delays, and waits for a provider that is overloaded."""

from __future__ import annotations

import logging
from datetime import timedelta
from email.message import Message
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches import (
    CheckpointMismatchError,
    ConfigurationError,
    MachineError,
    NonRetryableError,
    PayloadError,
    RetryLater,
    RetryPolicy,
    Verdict,
)
from durable_batches.errors import FactRejectedError
from durable_batches.runtime.classify import is_retryable

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
NAN = float("nan")


class ApiError(Exception):
    """An error as clients of paid services raise them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("refused")
        vars(self).update(attributes)


def answered(**headers: str) -> ApiError:
    message = Message()  # finds a header in whatever case, as the clients' own classes do
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return ApiError(response=SimpleNamespace(headers=message))


def delays(policy: RetryPolicy, error: BaseException | None = None, *, chance: float = 0) -> list[float | None]:
    found = [policy.delay(error or ApiError(), attempt, chance) for attempt in range(1, policy.max_attempts + 1)]
    return [None if delay is None else delay.total_seconds() for delay in found]


def test_delays_grow_to_their_maximum_and_end() -> None:
    assert delays(RetryPolicy(max_attempts=6, maximum=timedelta(seconds=5))) == [1, 2, 4, 5, 5, None]
    assert delays(RetryPolicy(max_attempts=4, factor=1)) == [1, 1, 1, None]
    assert delays(RetryPolicy(max_attempts=1)) == [None]
    assert delays(RetryPolicy(max_attempts=3, initial=timedelta(0))) == [0, 0, None]


def test_delays_grow_however_slowly_and_however_long() -> None:
    policy = RetryPolicy(max_attempts=10**9, factor=1.001, maximum=HOUR)
    grown = policy.delay(ApiError(), 2_001, 0)
    assert grown is not None
    assert grown.total_seconds() == pytest.approx(1.001**2_000)
    assert policy.delay(ApiError(), 10**9 - 1, 0) == HOUR
    assert RetryPolicy(max_attempts=10**9, initial=timedelta(0)).delay(ApiError(), 10**9 - 1, 0) == timedelta(0)


def test_a_maximum_below_the_first_delay_holds_for_it() -> None:
    assert delays(RetryPolicy(initial=timedelta(seconds=9), maximum=timedelta(seconds=2))) == [2, 2, None]


def test_jitter_makes_delays_longer_only() -> None:
    policy = RetryPolicy(max_attempts=3, jitter=0.5)
    assert delays(policy, chance=0) == [1, 2, None]
    assert delays(policy, chance=0.5) == [1.25, 2.5, None]


@given(
    attempt=st.integers(1, 10**9),
    factor=st.floats(1, 1e300),
    initial=st.timedeltas(timedelta(0), timedelta(days=3650)),
    maximum=st.timedeltas(timedelta(0), timedelta(days=3650)),
    chance=st.floats(0, 1, exclude_max=True),
)
@modest(100)
def test_no_delay_overflows(attempt: int, factor: float, initial: timedelta, maximum: timedelta, chance: float) -> None:
    policy = RetryPolicy(max_attempts=10**9 + 1, initial=initial, factor=factor, maximum=maximum, jitter=1)
    delay = policy.delay(ApiError(), attempt, chance)
    assert delay is not None
    assert timedelta(0) <= delay <= 2 * maximum


@pytest.mark.parametrize(
    "error",
    [
        NonRetryableError(),
        PayloadError("result", "$", "NaN"),
        ConfigurationError("no"),
        MachineError("no"),
        CheckpointMismatchError("activity", "batch", "document"),
        FactRejectedError("too big"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_mistakes_are_not_tried_again(error: Exception) -> None:
    assert not is_retryable(error)
    assert RetryPolicy().verdict(error) is False
    assert delays(RetryPolicy(retryable=lambda _: True), error) == [None, None, None]


def test_named_errors_and_their_kin_are_not_tried_again() -> None:
    policy = RetryPolicy(non_retryable=(LookupError,))
    assert policy.verdict(KeyError()) is False
    assert policy.verdict(ApiError()) is True


def test_a_predicate_decides_or_gives_the_delay() -> None:
    def decide(error: BaseException) -> bool | timedelta:
        return timedelta(seconds=7) if isinstance(error, KeyError) else isinstance(error, LookupError)

    policy = RetryPolicy(retryable=decide)
    assert delays(policy, KeyError(), chance=0.9) == [7, 7, None]
    assert delays(policy, IndexError()) == [1, 2, None]
    assert delays(policy, ApiError()) == [None, None, None]
    assert delays(RetryPolicy(retryable=lambda _: -SECOND)) == [0, 0, None]


WISHES: dict[str, tuple[Exception, float]] = {
    "RetryLater": (RetryLater(timedelta(seconds=3)), 3),
    "RetryLater in the past": (RetryLater(-SECOND), 0),
    "seconds": (ApiError(retry_after=2.5), 2.5),
    "no seconds": (ApiError(retry_after=0), 0),
    "seconds as text": (ApiError(retry_after="4"), 4),
    "a delta": (ApiError(retry_after=timedelta(minutes=1)), 60),
    "a delta in the past": (ApiError(retry_after=-timedelta(minutes=1)), 0),
    "a header": (answered(Retry_After="30"), 30),
    "a header in lower case": (answered(retry_after="0.5"), 0.5),
    "a header of a mapping": (ApiError(response=SimpleNamespace(headers={"retry-after": "9"})), 9),
    "an attribute and a header": (ApiError(retry_after=5, response=SimpleNamespace(headers={"retry-after": "9"})), 5),
}


@pytest.mark.parametrize(("error", "seconds"), WISHES.values(), ids=WISHES.keys())
def test_an_errors_own_wish_is_obeyed(error: Exception, seconds: float) -> None:
    assert delays(RetryPolicy(maximum=SECOND), error, chance=0.9) == [seconds, seconds, None]


NO_WISHES: dict[str, Exception] = {
    "nothing": ApiError(),
    "None": ApiError(retry_after=None),
    "words": ApiError(retry_after="soon"),
    "the past": ApiError(retry_after=-1),
    "not a number": ApiError(retry_after=NAN),
    "infinity": ApiError(retry_after=float("inf")),
    "a method": ApiError(retry_after=lambda: 3),
    "no response": ApiError(response=None),
    "no headers": ApiError(response=SimpleNamespace(headers=None)),
    "other headers": answered(content_type="text/plain"),
    "a date that has passed": answered(retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
}


@pytest.mark.parametrize("error", NO_WISHES.values(), ids=NO_WISHES.keys())
def test_what_is_no_wish_is_passed_over(error: Exception) -> None:
    assert delays(RetryPolicy(), error) == [1, 2, None]


@pytest.mark.parametrize("wish", [1e12, 1e300, "1" * 300, timedelta.max], ids=lambda wish: str(wish)[:10])
def test_a_wish_beyond_all_reason_is_bounded(wish: object) -> None:
    delay = RetryPolicy().delay(ApiError(retry_after=wish), 1, 0)
    assert delay is not None
    assert HOUR < delay <= timedelta(days=3650)
    assert RetryPolicy().delay(RetryLater(timedelta.max), 1, 0) == timedelta(days=3650)


# ---- groups, and the classifier ------------------------------------------------------------------------------------


def test_each_error_of_a_group_is_judged() -> None:
    policy = RetryPolicy(non_retryable=(LookupError,))
    assert policy.judge(ExceptionGroup("g", [ApiError(), ExceptionGroup("h", [KeyError()])])).kind == "never"
    assert policy.judge(ExceptionGroup("g", [ApiError(), NonRetryableError()])).kind == "never"
    assert policy.judge(ExceptionGroup("g", [ApiError()])) == Verdict(kind="retry")
    asked: list[BaseException] = []

    def decide(error: BaseException) -> bool | timedelta:
        asked.append(error)
        return timedelta(seconds=len(asked))

    parts = [ApiError(), ApiError()]
    assert RetryPolicy(retryable=decide).judge(ExceptionGroup("g", parts)).retry_after == 2 * SECOND
    assert asked == parts


def test_the_policy_comes_before_the_classifier() -> None:
    overloaded = ApiError(status_code=429)
    assert RetryPolicy().judge(overloaded).kind == "overloaded"
    assert RetryPolicy(non_retryable=(ApiError,)).judge(overloaded).kind == "never"
    assert RetryPolicy(retryable=lambda _: False).judge(overloaded).kind == "never"
    assert RetryPolicy(retryable=lambda _: 9 * SECOND).judge(overloaded) == Verdict(
        kind="retry", retry_after=9 * SECOND
    )
    assert RetryPolicy(retryable=lambda _: True).judge(overloaded).kind == "overloaded"
    assert RetryPolicy(retryable=lambda _: True).judge(ApiError(status_code=404)).kind == "retry"
    assert RetryPolicy().judge(ApiError(status_code=404)).kind == "never"


def test_a_predicate_that_fails_never_hides_the_error(caplog: pytest.LogCaptureFixture) -> None:
    def decide(error: BaseException) -> bool:
        raise LookupError("the decision failed")

    policy = RetryPolicy(retryable=decide)
    with caplog.at_level(logging.WARNING, "durable_batches"):
        assert delays(policy, ApiError()) == [1, 2, None]
    assert caplog.records[0].getMessage() == (
        "the retry policy's retryable= could not judge a ApiError, which is retried: LookupError: the decision failed"
    )


# ---- a provider that is overloaded ---------------------------------------------------------------------------------


def waits(policy: RetryPolicy, retry_after: timedelta | None = None, *, chance: float = 0) -> list[float]:
    verdict = Verdict(kind="overloaded", retry_after=retry_after)
    return [policy.wait_of(verdict, times, chance).total_seconds() for times in range(1, 5)]


def test_a_wait_for_a_provider_is_what_it_asks_for_and_some_more() -> None:
    assert waits(RetryPolicy(), 20 * SECOND) == [20] * 4
    assert waits(RetryPolicy(jitter=0.5), 20 * SECOND, chance=0.5) == [25] * 4


def test_a_provider_that_asks_for_nothing_is_given_more_and_more_time() -> None:
    assert waits(RetryPolicy(maximum=5 * SECOND)) == [1, 2, 4, 5]
    assert waits(RetryPolicy(maximum=5 * SECOND), SECOND / 10) == [1, 2, 4, 5]


def test_a_provider_is_never_asked_again_at_once() -> None:
    at_once = RetryPolicy(initial=timedelta(0))
    assert waits(at_once) == waits(at_once, timedelta(0)) == [1] * 4
