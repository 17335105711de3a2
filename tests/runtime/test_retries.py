"""What becomes of an activity that fails: tried again, later, or no more; and what the workflow then gets."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from tests.conftest import StoreMaker
from tests.support import AT_ONCE, NO_DELAY, NO_DRAIN, ONCE, STAGES, eventually, everything, within

from durable_batches import (
    ActivityFailedError,
    ActivityTimeoutError,
    BatchConfig,
    BatchOrchestrator,
    CheckpointMismatchError,
    DocumentFailure,
    DocumentSucceeded,
    NonRetryableError,
    Outcome,
    PayloadError,
    RetryFailed,
    RetryLater,
    RetryPolicy,
    Store,
    Verdict,
    Worker,
    current_activity,
    durable_activity,
    workflow,
)
from durable_batches.testing import ManualClock, environment


class RateLimited(Exception):
    pass


class TooManyRequests(RateLimited):
    pass


class Times(NamedTuple):
    """When each attempt was made, in seconds since the first."""

    attempts: list[float]
    outcome: Outcome[Any]


async def times_of(retry: RetryPolicy, *errors: Exception, jitter: float = 0.0, refused: bool = False) -> Times:
    """Run an activity that raises these errors and then returns; `refused`: not all of its attempts are counted."""
    clock = ManualClock(jitter=jitter)
    attempts: list[float] = []
    waiting = list(errors)

    @durable_activity(retry=retry)
    async def act() -> int:
        attempts.append(clock.boot())
        assert refused or current_activity().attempt == len(attempts)
        if waiting:
            raise waiting.pop(0)
        return len(attempts)

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await act()

    async with environment(run, clock=clock) as env:
        result = await env.finished(await env.batches.submit(["x"]))
        (outcome,) = await everything(env.batches.results(result.batch_id))
    return Times([round(attempt - attempts[0], 6) for attempt in attempts], outcome)


# ---- delays ------------------------------------------------------------------------------------------------


async def test_the_delay_grows_up_to_the_maximum() -> None:
    retry = RetryPolicy(max_attempts=5, initial=timedelta(seconds=1), factor=3, maximum=timedelta(seconds=5), jitter=0)
    times = await times_of(retry, *[ValueError()] * 4)
    assert times.attempts == [0, 1, 4, 9, 14]
    assert times.outcome == DocumentSucceeded(document_id="0", value=5)


async def test_jitter_makes_a_delay_longer_by_up_to_its_share() -> None:
    retry = RetryPolicy(max_attempts=2, initial=timedelta(seconds=4), jitter=0.5)
    delays = [(await times_of(retry, ValueError(), jitter=jitter)).attempts[1] for jitter in (0.0, 0.5, 1.0)]
    assert delays == [4, 5, 6]


class WithDelay(Exception):
    def __init__(self, retry_after: object) -> None:
        self.retry_after = retry_after


class Response:
    def __init__(self, **headers: str) -> None:
        self.headers = headers


class HTTPError(Exception):
    def __init__(self, value: str) -> None:
        self.response = Response(**{"retry-after": value})


@pytest.mark.parametrize(
    ("error", "delay"),
    [
        (RetryLater(timedelta(seconds=2)), 2),
        (WithDelay(3), 3),
        (WithDelay(2.5), 2.5),
        (WithDelay("4"), 4),
        (WithDelay(timedelta(seconds=3)), 3),
        (HTTPError("2"), 2),
        (RetryLater(timedelta(seconds=-5)), 0),
        # What is no delay is no wish.
        (WithDelay("soon"), 1),
        (WithDelay(None), 1),
        (WithDelay(math.nan), 1),
        (WithDelay(math.inf), 1),
        (WithDelay(-1), 1),
        (HTTPError("Wed, 21 Oct 2015 07:28:00 GMT"), 1),
    ],
    ids=lambda item: repr(item)[:50] if isinstance(item, Exception) else str(item),
)
async def test_an_error_s_own_wish_is_obeyed(error: Exception, delay: float) -> None:
    times = await times_of(RetryPolicy(jitter=0), error)
    assert times.attempts == [0, delay]


async def test_a_function_decides_for_each_error() -> None:
    def decide(error: BaseException) -> bool | timedelta:
        match error:
            case RateLimited():
                return timedelta(seconds=3)
            case KeyError():
                return False
            case _:
                return True

    retry = RetryPolicy(max_attempts=5, jitter=0, retryable=decide)
    times = await times_of(retry, TooManyRequests(), ValueError(), KeyError("k"))
    assert times.attempts == [0, 3, 5]
    assert isinstance(times.outcome, DocumentFailure)
    assert times.outcome.error_type == "KeyError"


async def test_a_function_that_decides_may_fail_itself(store: Store) -> None:
    def decide(error: BaseException) -> bool:
        raise LookupError("the decision failed")

    @durable_activity(retry=RetryPolicy(retryable=decide, initial=NO_DELAY))
    async def act() -> None:
        attempts.append(1)
        raise ValueError("the error itself")

    attempts: list[int] = []
    outcome = await outcome_of(act, store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error == "activity 'act' failed after 3 attempts: ValueError: the error itself"
    assert len(attempts) == 3


# ---- the end of trying -------------------------------------------------------------------------------------


async def outcome_of(act: Callable[[], Any], store: Store) -> Outcome[Any]:
    @workflow(STAGES, name="one")
    async def run(document: str) -> Any:
        return await act()

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
        return outcome


async def test_when_the_attempts_are_used_up_the_document_fails(store: Store) -> None:
    attempts: list[int] = []

    @durable_activity(retry=RetryPolicy(max_attempts=4, initial=NO_DELAY))
    async def act() -> None:
        attempts.append(current_activity().attempt)
        raise TooManyRequests(f"attempt {len(attempts)}")

    outcome = await outcome_of(act, store)
    assert attempts == [1, 2, 3, 4]
    assert outcome == DocumentFailure(
        document_id="0",
        error="activity 'act' failed after 4 attempts: TooManyRequests: attempt 4",
        error_type="TooManyRequests",
        activity="act",
        attempts=1,
    )


async def test_sync_activities_are_tried_again_too(store: Store) -> None:
    attempts: list[tuple[int, str]] = []

    @durable_activity(retry=AT_ONCE)
    def act() -> int:
        attempts.append((current_activity().attempt, current_activity().idempotency_key))
        if len(attempts) < 3:
            raise ValueError
        return len(attempts)

    assert await outcome_of(act, store) == DocumentSucceeded(document_id="0", value=3)
    assert [attempt for attempt, _ in attempts] == [1, 2, 3]
    assert len({key for _, key in attempts}) == 1


@pytest.mark.parametrize("error", [TooManyRequests("no"), NonRetryableError("no")], ids=["of the policy", "its own"])
async def test_some_errors_are_not_tried_again_not_even_by_the_document(error: Exception, store: Store) -> None:
    attempts: list[int] = []

    @durable_activity(retry=RetryPolicy(initial=NO_DELAY, non_retryable=(RateLimited,)))
    async def act() -> None:
        attempts.append(1)
        raise error

    @workflow(STAGES)
    async def run(document: str) -> None:
        await act()

    config = BatchConfig(failure_policy=RetryFailed(max_attempts=5, backoff=NO_DELAY))
    async with BatchOrchestrator(run, store=store, config=config) as batches:
        result = await within(batches.run(["x"]))
        assert result.failures[0].error_type == type(error).__name__
    assert len(attempts) == 1


async def test_a_result_that_cannot_be_recorded_is_not_tried_again(store: Store) -> None:
    attempts: list[int] = []

    @durable_activity(retry=AT_ONCE)
    async def act() -> dict[str, float]:
        attempts.append(1)
        return {"score": math.nan}

    outcome = await outcome_of(act, store)
    assert attempts == [1]
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "PayloadError"
    assert "the result of activity 'act' cannot be stored: at $['score']: nan is no JSON number" in outcome.error


async def test_an_argument_that_cannot_be_recorded_is_the_workflow_s_own_error(store: Store) -> None:
    @durable_activity
    async def act(text: str) -> str:
        return text

    async def body() -> str:
        try:
            return await act("\ud800")
        except PayloadError as error:
            return error.path

    assert await outcome_of(body, store) == DocumentSucceeded(document_id="0", value="$")


# ---- a provider that is overloaded, and groups ---------------------------------------------------------------------


class Refused(Exception):
    def __init__(self, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


async def test_a_wait_for_a_provider_uses_no_attempt() -> None:
    refusals = [Refused(429, 20)] * 6
    times = await times_of(RetryPolicy(max_attempts=1, jitter=0), *refusals, jitter=0.5, refused=True)
    assert times.attempts == [0, 20, 40, 60, 80, 100, 120]
    assert times.outcome == DocumentSucceeded(document_id="0", value=7)


async def test_attempts_and_waits_are_counted_apart() -> None:
    errors = [Refused(503), ValueError(), Refused(503), Refused(503), ValueError()]
    times = await times_of(RetryPolicy(max_attempts=2, jitter=0), *errors, jitter=0.5, refused=True)
    # Waits of 1, 1 and 2 s, and one backoff of 1 s; the second error of its own is the last.
    assert times.attempts == [0, 1, 2, 3, 5]
    assert isinstance(times.outcome, DocumentFailure)
    assert times.outcome.error == "activity 'act' failed after 2 attempts: ValueError"


async def test_an_overload_that_does_not_end_uses_no_attempts_either() -> None:
    # After an hour its batch is paused in its place; see test_quota.py.
    times = await times_of(RetryPolicy(max_attempts=2, jitter=0), *[Refused(429, 600)] * 99, jitter=0.5, refused=True)
    assert times.attempts == [600 * n for n in range(100)]
    assert times.outcome == DocumentSucceeded(document_id="0", value=100)


async def test_the_classifier_is_the_activitys_own_or_the_workers(store: Store) -> None:
    def never(error: BaseException) -> Verdict:
        return Verdict(kind="never")

    def own(error: BaseException) -> Verdict:
        return Verdict(kind="retry", retry_after=NO_DELAY)

    attempts: list[str] = []

    @durable_activity
    async def judged_by_the_worker() -> None:
        attempts.append("worker")
        raise ValueError

    @durable_activity(classify=own)
    async def judged_by_its_own() -> None:
        attempts.append("own")
        raise ValueError

    @workflow(STAGES)
    async def run(document: str) -> list[bool]:
        retryable: list[bool] = []
        for act in (judged_by_the_worker, judged_by_its_own):
            try:
                await act()
            except ActivityFailedError as error:
                retryable.append(error.retryable)
        return retryable

    worker = Worker(store, classify=never)
    async with BatchOrchestrator(run, worker=worker) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
    assert outcome == DocumentSucceeded(document_id="0", value=[False, True])
    assert attempts == ["worker", "own", "own", "own"]


async def test_groups_are_read_as_documents_read_them(store: Store) -> None:
    attempts: list[int] = []

    async def part() -> None:
        raise RateLimited("the model refuses")

    @durable_activity(retry=RetryPolicy(initial=NO_DELAY, non_retryable=(RateLimited,)))
    async def act() -> None:
        attempts.append(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(part())

    async def body() -> list[Any]:
        try:
            await act()
        except ActivityFailedError as error:
            return [error.error_type, error.message, error.caused_by(RateLimited), error.caused_by(KeyError)]
        return []

    message = "unhandled errors in a TaskGroup (1 sub-exception): RateLimited: the model refuses"
    assert await outcome_of(body, store) == DocumentSucceeded(
        document_id="0", value=["ExceptionGroup", message, True, False]
    )
    assert len(attempts) == 1


# ---- strange errors ----------------------------------------------------------------------------------------


class OddBase(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("this error cannot be shown")


@pytest.mark.parametrize(
    "error", [StopIteration(), SystemExit(3), OddBase("odd"), Mute(), StopAsyncIteration()], ids=repr
)
@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_whatever_an_activity_raises_is_a_failure(error: BaseException, sync: bool, store: Store) -> None:
    @durable_activity(retry=ONCE)
    async def act() -> None:
        raise error

    @durable_activity(retry=ONCE)
    def act_sync() -> None:
        raise error

    outcome = await outcome_of(act_sync if sync else act, store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.activity == ("act_sync" if sync else "act")
    if not isinstance(error, StopIteration | StopAsyncIteration):
        assert outcome.error_type == type(error).__name__


@pytest.mark.parametrize("error", [SystemExit(3), OddBase("odd"), Mute(), asyncio.CancelledError()], ids=repr)
async def test_whatever_a_workflow_raises_fails_its_document_only(error: BaseException, store: Store) -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        if document == "bad":
            raise error
        if document == "worse":
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        return document

    async def fail() -> None:
        raise OddBase("in a group")

    async with BatchOrchestrator(run, store=store) as batches:
        result = await within(batches.run(["bad", "good", "worse"], document_id=str))
        assert {failure.document_id for failure in result.failures} == {"bad", "worse"}
        assert result.counts.succeeded == 1


async def test_what_an_activity_waits_for_may_be_cancelled_without_cancelling_the_activity(store: Store) -> None:
    attempts: list[int] = []

    @durable_activity(retry=AT_ONCE)
    async def act() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            other = asyncio.create_task(asyncio.sleep(60))
            other.cancel()
            await other
        return len(attempts)

    assert await outcome_of(act, store) == DocumentSucceeded(document_id="0", value=2)


# ---- timeouts ----------------------------------------------------------------------------------------------


async def test_an_attempt_over_its_timeout_is_cancelled_and_tried_again(store: Store) -> None:
    cancelled: list[int] = []

    @durable_activity(timeout=timedelta(milliseconds=30), retry=AT_ONCE)
    async def act() -> int:
        attempt = current_activity().attempt
        if attempt < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(attempt)
                raise
        return attempt

    assert await outcome_of(act, store) == DocumentSucceeded(document_id="0", value=3)
    assert cancelled == [1, 2]


async def test_a_timeout_that_uses_up_the_attempts_is_an_activity_timeout_error(store: Store) -> None:
    @durable_activity(timeout=timedelta(milliseconds=20), retry=RetryPolicy(max_attempts=2, initial=NO_DELAY))
    async def act() -> None:
        await asyncio.sleep(60)

    async def body() -> list[Any]:
        try:
            await act()
        except ActivityFailedError as error:
            return [error.error_type, error.attempts, error.caused_by(ActivityTimeoutError), error.caused_by(OSError)]
        return []

    # TimeoutError, of which ActivityTimeoutError is one, is an OSError.
    assert await outcome_of(body, store) == DocumentSucceeded(
        document_id="0", value=["ActivityTimeoutError", 2, True, True]
    )


async def test_a_sync_activity_over_its_timeout_is_left_behind(store: Store) -> None:
    go_on = threading.Event()

    @durable_activity(timeout=timedelta(milliseconds=300), retry=AT_ONCE)
    def act() -> int:
        attempt = current_activity().attempt
        if attempt == 1:
            assert go_on.wait(10)
        return attempt

    try:
        assert await outcome_of(act, store) == DocumentSucceeded(document_id="0", value=2)
    finally:
        go_on.set()


async def test_a_timeout_of_the_function_s_own_is_an_error_as_any_other(store: Store) -> None:
    @durable_activity(timeout=timedelta(seconds=30), retry=ONCE)
    async def act() -> None:
        raise TimeoutError("of the service")

    outcome = await outcome_of(act, store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "TimeoutError"


# ---- what the workflow gets --------------------------------------------------------------------------------


async def test_the_workflow_gets_the_same_error_live_and_on_replay(open_store: StoreMaker) -> None:
    seen: list[tuple[Any, ...]] = []
    runs: list[int] = []
    blocked = asyncio.Event()

    @durable_activity(retry=RetryPolicy(max_attempts=2, initial=NO_DELAY))
    async def flaky(text: str) -> str:
        runs.append(1)
        raise TooManyRequests("slow down, " + text)

    @workflow(STAGES)
    async def run(document: str) -> str:
        try:
            return await flaky(document)
        except ActivityFailedError as error:
            data = (error.activity, error.error_type, error.message, error.attempts, error.retryable, str(error))
            kinds = tuple(error.caused_by(kind) for kind in (TooManyRequests, RateLimited, Exception, ValueError))
            seen.append((*data, *kinds))
            causes.append(error.__cause__)
        await blocked.wait()
        return "the other branch"

    causes: list[BaseException | None] = []
    worker = Worker(open_store(None), drain=NO_DRAIN)
    async with BatchOrchestrator(run, worker=worker) as batches:
        batch_id = await batches.submit(["x"])
        await eventually(lambda: len(seen) == 1)
    blocked.set()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        await within(batches.result(batch_id))
        (outcome,) = await everything(batches.results(batch_id))
    assert outcome == DocumentSucceeded(document_id="0", value="the other branch")
    assert len(runs) == 2
    assert seen[0] == seen[1]
    assert seen[0] == (
        "flaky",
        "TooManyRequests",
        "slow down, x",
        2,
        True,
        "activity 'flaky' failed after 2 attempts: TooManyRequests: slow down, x",
        True,
        True,
        True,
        False,
    )
    assert isinstance(causes[0], TooManyRequests)
    assert causes[1] is None


async def test_a_long_message_is_cut(store: Store) -> None:
    @durable_activity(retry=ONCE)
    async def act() -> None:
        raise ValueError("x" * 100_000)

    outcome = await outcome_of(act, store)
    assert isinstance(outcome, DocumentFailure)
    assert len(outcome.error) <= 2_000


async def test_a_message_may_hold_any_text(store: Store) -> None:
    @durable_activity(retry=ONCE)
    async def act() -> None:
        raise ValueError("\0 \ud800 \U0001f600 ' \" \\")

    outcome = await outcome_of(act, store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "ValueError"


async def test_an_explicit_key_that_does_not_tell_two_calls_apart_is_found(store: Store) -> None:
    def by_nothing(text: str) -> str:
        return "always the same"

    @durable_activity(key=by_nothing)
    async def act(text: str) -> str:
        return text

    @workflow(STAGES)
    async def run(document: str) -> list[str]:
        same = [await act("a"), await act("a")]
        return [*same, await act(document)]

    config = BatchConfig(failure_policy=RetryFailed(max_attempts=3, backoff=NO_DELAY))
    async with BatchOrchestrator(run, store=store, config=config) as batches:
        result = await within(batches.run(["b"], document_id=lambda _: "doc", batch_id="batch"))
        (failure,) = result.failures
    assert failure.error_type == CheckpointMismatchError.__name__
    # A mistake in the code: trying again would not help.
    assert failure.attempts == 1
    assert "'doc' of batch 'batch'" in failure.error
