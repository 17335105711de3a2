from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta
from email.message import Message
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties import modest

from durable_batches import (
    AbortAll,
    CheckpointMismatchError,
    ConfigurationError,
    ContinueOnFailure,
    Counts,
    FailurePolicy,
    MachineError,
    NonRetryableError,
    PayloadError,
    RetryFailed,
    RetryLater,
    RetryPolicy,
)
from durable_batches.errors import FactRejectedError
from durable_batches.lifecycle.policies import (
    abort_reason,
    document_retry_delay,
    is_retryable,
    retry_after,
)

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


# ---- what a document's failure means ------------------------------------------------------------------------------


def counts(*, failed: int = 0, succeeded: int = 0, pending: int = 0) -> Counts:
    return Counts(total=failed + succeeded + pending, failed=failed, succeeded=succeeded, pending=pending)


@pytest.mark.parametrize(
    "policy",
    [ContinueOnFailure(), ContinueOnFailure(max_failures=0), AbortAll(), RetryFailed(then=AbortAll())],
    ids=str,
)
def test_without_a_failure_nothing_is_aborted(policy: FailurePolicy) -> None:
    assert abort_reason(policy, counts(succeeded=3)) is None
    assert abort_reason(policy, counts()) is None


def test_continue_on_failure_has_no_limit_by_itself() -> None:
    assert abort_reason(ContinueOnFailure(), counts(failed=10)) is None


@pytest.mark.parametrize(("failed", "aborts"), [(1, False), (2, False), (3, True)])
def test_max_failures_is_what_a_batch_survives(failed: int, aborts: bool) -> None:
    reason = abort_reason(ContinueOnFailure(max_failures=2), counts(failed=failed, pending=9))
    assert (reason is not None) == aborts
    assert reason is None or reason == "3 documents failed, more than max_failures=2"


@pytest.mark.parametrize(("failed", "aborts"), [(1, False), (2, False), (3, True)])
def test_the_ratio_is_of_all_documents(failed: int, aborts: bool) -> None:
    reason = abort_reason(ContinueOnFailure(max_failure_ratio=0.2), counts(failed=failed, pending=10 - failed))
    assert (reason is not None) == aborts
    assert reason is None or reason == "3 of 10 documents failed, more than max_failure_ratio=0.2"


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_exactly_the_ratio_is_not_more_than_it(ratio: float) -> None:
    for total in (10, 100, 1_000):
        at_the_limit = counts(failed=round(ratio * total), succeeded=total - round(ratio * total))
        assert abort_reason(ContinueOnFailure(max_failure_ratio=ratio), at_the_limit) is None


def test_both_limits_hold() -> None:
    policy = ContinueOnFailure(max_failures=5, max_failure_ratio=0.5)
    assert abort_reason(policy, counts(failed=2, pending=1)) is not None
    assert abort_reason(policy, counts(failed=6, pending=94)) is not None
    assert abort_reason(policy, counts(failed=5, pending=5)) is None


def test_one_failure_aborts_all() -> None:
    reason = abort_reason(AbortAll(), counts(failed=1, pending=9))
    assert reason == "a document failed, and the failure policy is to abort all"


def test_exhausted_retries_mean_what_then_says() -> None:
    assert abort_reason(RetryFailed(), counts(failed=9)) is None
    assert abort_reason(RetryFailed(then=AbortAll()), counts(failed=1, pending=1)) is not None
    assert abort_reason(RetryFailed(then=ContinueOnFailure(max_failures=0)), counts(failed=1, pending=1)) is not None


@pytest.mark.parametrize("policy", [ContinueOnFailure(), AbortAll()], ids=str)
def test_only_retry_failed_retries(policy: FailurePolicy) -> None:
    assert document_retry_delay(policy, 1, retryable=True) is None


def test_document_retries_double_up_to_an_hour() -> None:
    policy = RetryFailed(max_attempts=100, backoff=timedelta(minutes=10))
    delays = [document_retry_delay(policy, failures, retryable=True) for failures in (1, 2, 3, 4, 50, 99)]
    minutes = [10, 20, 40, 60, 60, 60]
    assert delays == [timedelta(minutes=delay) for delay in minutes]
    assert document_retry_delay(policy, 100, retryable=True) is None


def test_a_backoff_over_an_hour_stays_as_it_is() -> None:
    policy = RetryFailed(max_attempts=9, backoff=3 * HOUR)
    assert [document_retry_delay(policy, failures, retryable=True) for failures in (1, 5)] == [3 * HOUR] * 2


def test_what_is_not_retryable_is_final() -> None:
    assert document_retry_delay(RetryFailed(max_attempts=9), 1, retryable=False) is None


def test_one_attempt_is_no_retry() -> None:
    assert document_retry_delay(RetryFailed(max_attempts=1), 1, retryable=True) is None


OUT_OF_RANGE: list[tuple[type[Any], str, Any]] = [
    (ContinueOnFailure, "max_failures", -1),
    (ContinueOnFailure, "max_failure_ratio", 1.01),
    (ContinueOnFailure, "max_failure_ratio", -0.1),
    (ContinueOnFailure, "max_failure_ratio", NAN),
    (RetryFailed, "max_attempts", 0),
    (RetryFailed, "backoff", -SECOND),
    (RetryFailed, "backoff", timedelta.max),
    (RetryPolicy, "max_attempts", 0),
    (RetryPolicy, "initial", -SECOND),
    (RetryPolicy, "initial", timedelta.max),
    (RetryPolicy, "maximum", -SECOND),
    (RetryPolicy, "maximum", timedelta.max),
    (RetryPolicy, "factor", 0.5),
    (RetryPolicy, "factor", NAN),
    (RetryPolicy, "factor", float("inf")),
    (RetryPolicy, "jitter", 1.5),
    (RetryPolicy, "jitter", -0.1),
    (RetryPolicy, "jitter", NAN),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    OUT_OF_RANGE,
    ids=[f"{kind.__name__}-{name}-{value}" for kind, name, value in OUT_OF_RANGE],
)
def test_a_value_out_of_range_is_refused(kind: type[Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must "):
        kind(**{name: value})


def test_what_is_not_said_is_what_the_documentation_says() -> None:
    minute = timedelta(minutes=1)
    assert ContinueOnFailure() == ContinueOnFailure(max_failures=None, max_failure_ratio=None)
    assert RetryFailed() == RetryFailed(max_attempts=3, backoff=SECOND, then=ContinueOnFailure())
    assert RetryPolicy() == RetryPolicy(max_attempts=3, initial=SECOND, factor=2, maximum=minute, jitter=0.1)


@pytest.mark.parametrize("kind", [ContinueOnFailure, AbortAll, RetryFailed, RetryPolicy])
def test_policies_are_frozen_and_made_by_name(kind: type[Any]) -> None:
    policy: object = kind()
    for name in vars(policy):
        with pytest.raises(FrozenInstanceError):
            setattr(policy, name, None)
    with pytest.raises(TypeError):
        kind(1)


LONGEST = timedelta(days=3650)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ContinueOnFailure, {"max_failures": 0, "max_failure_ratio": 0}),
        (ContinueOnFailure, {"max_failure_ratio": 1}),
        (RetryFailed, {"max_attempts": 1, "backoff": timedelta(0)}),
        (RetryFailed, {"backoff": LONGEST}),
        (RetryPolicy, {"max_attempts": 1, "initial": timedelta(0), "maximum": timedelta(0), "factor": 1, "jitter": 0}),
        (RetryPolicy, {"initial": LONGEST, "maximum": LONGEST, "jitter": 1}),
    ],
    ids=str,
)
def test_the_bounds_themselves_are_allowed(kind: type[Any], values: dict[str, Any]) -> None:
    policy = kind(**values)
    assert {name: getattr(policy, name) for name in values} == values


# ---- when an activity is tried again -------------------------------------------------------------------------------


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
    assert retry_after(error) == timedelta(seconds=seconds)
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
    "a date": answered(retry_after="Wed, 21 Oct 2026 07:28:00 GMT"),
}


@pytest.mark.parametrize("error", NO_WISHES.values(), ids=NO_WISHES.keys())
def test_what_is_no_wish_is_passed_over(error: Exception) -> None:
    assert retry_after(error) is None
    assert delays(RetryPolicy(), error) == [1, 2, None]


@pytest.mark.parametrize("wish", [1e12, 1e300, "1" * 300, timedelta.max], ids=lambda wish: str(wish)[:10])
def test_a_wish_beyond_all_reason_is_bounded(wish: object) -> None:
    delay = retry_after(ApiError(retry_after=wish))
    assert delay is not None
    assert HOUR < delay <= timedelta(days=3650)
    assert retry_after(RetryLater(timedelta.max)) == timedelta(days=3650)


# ---- poison documents ---------------------------------------------------------------------------------------------
