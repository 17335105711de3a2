from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from typing import Any

import pytest

from durable_batches import (
    AbortAll,
    ContinueOnFailure,
    Counts,
    FailurePolicy,
    RetryFailed,
    RetryPolicy,
)
from durable_batches.lifecycle.policies import (
    abort_reason,
    document_retry_delay,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
NAN = float("nan")


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


def test_the_ratio_judges_from_so_many_failures_on() -> None:
    policy = ContinueOnFailure(max_failure_ratio=0.2, min_failures=3)
    assert [abort_reason(policy, counts(failed=failed, pending=6 - failed)) is not None for failed in (1, 2, 3)] == [
        False,
        False,
        True,
    ]
    # It stays a share of all documents.
    assert abort_reason(policy, counts(failed=3, pending=97)) is None
    # The other limit is what it says.
    assert abort_reason(replace(policy, max_failures=0), counts(failed=1, pending=99)) is not None


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
