"""`run_on=`: what crosses to an executor and back, and what a batch makes of it. No processes, and virtual time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import pytest
from tests.executors import activities
from tests.executors.activities import (
    ask,
    ask_for_time,
    call_provider,
    cancel_own_work,
    double,
    double_async,
    fail,
    fail_for_good,
    hang,
    is_no_value_error,
    judge,
    judged_here,
    leave,
    refuse,
    return_something_else,
    where,
)
from tests.executors.engines import Engines
from tests.support import STAGES, eventually, moving, within

from durable_batches import (
    ActivityDefinitionError,
    ActivityFailedError,
    ActivityTimeoutError,
    Amount,
    BatchId,
    BatchOrchestrator,
    BatchResult,
    ConfigurationError,
    DocumentReleased,
    DurableActivity,
    ExecutionContext,
    ExecutorError,
    MemoryStore,
    NotInActivityError,
    RetryPolicy,
    Verdict,
    Worker,
    default_classifier,
    dependency,
    durable_activity,
    workflow,
)
from durable_batches.executors import ExecutorOrFactory
from durable_batches.executors.headers import MOST_BYTES, bounded
from durable_batches.executors.messages import Failed, Request, decode_answer
from durable_batches.executors.remote import run_call
from durable_batches.flow import CentralRateLimiter, CircuitBreaker
from durable_batches.testing import HistoryChecker, ManualClock
from durable_batches.testing.virtual.inside import attempts_of

Given = Mapping[str, ExecutorOrFactory]


def number_of(message: bytes) -> bytes:
    """The argument of a call; of the probe of an executor that has answered none yet, nothing."""
    return Request.decode(message).arguments["number"] if message else b""


class Trial:
    """A batch of one workflow on a worker with executors."""

    def __init__(self, executors: Given, **options: Any) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.worker = Worker(self.store, executors=executors, clock=self.clock, **options)
        self.errors: list[BaseException] = []

    async def run(self, body: Callable[[int], Awaitable[object]], numbers: range = range(1)) -> BatchResult[None]:
        """Run a batch, and check its history."""

        @workflow(STAGES, name="trial")
        async def trial(number: int) -> str:
            try:
                return repr(await body(number))
            except ActivityFailedError as error:
                self.errors.append(error)
                raise

        async with moving(self.clock, 1), BatchOrchestrator(trial, worker=self.worker) as batches:
            batch_id = await within(batches.submit(numbers, document_id=str, batch_id="b"))
            result = await within(batches.result(batch_id))
            self.values = [
                outcome.value for outcome in [each async for each in batches.results("b")] if outcome.tag == "succeeded"
            ]
            self.events = [event async for event in batches.progress("b")]
            await HistoryChecker().verify(self.store)
        return result

    async def failure(self, body: Callable[[int], Awaitable[object]]) -> ActivityFailedError:
        await self.run(body)
        (error,) = self.errors
        assert isinstance(error, ActivityFailedError)
        return error


async def test_arguments_and_results_travel_encoded() -> None:
    crossed: list[Request] = []

    def fate(message: bytes) -> str:
        crossed.append(Request.decode(message))
        return "run"

    trial = Trial({"cpu": Engines(fate)})
    await trial.run(lambda number: double(number, 10, 20, by=3))
    assert trial.values == ["90"]
    (request,) = crossed
    assert request.arguments == {"number": b"0", "more": b"[10,20]", "by": b"3"}
    assert request.function == "tests.executors.activities:double"


async def test_an_async_function_runs_to_its_end() -> None:
    trial = Trial({"cpu": lambda: ThreadPoolExecutor(2)})
    await trial.run(double_async, range(3))
    assert trial.values == ["0", "2", "4"]


async def test_the_body_knows_its_call() -> None:
    trial = Trial({"cpu": ThreadPoolExecutor(1)})
    await trial.run(lambda _: where(), range(2))
    first, second = (eval(value) for value in trial.values)
    assert first[0] == second[0] == 1
    assert len(first[1]) == 32
    assert first[1] != second[1]
    assert first[2:] == (os.getpid(), "0", 0)
    assert second[3:] == ("1", 1)


async def test_reports_of_a_running_call_are_seen() -> None:
    class Waits(Executor):
        """Runs a call, and leaves its answer open until the report is there."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.future = pool.submit(lambda: (fn(*args), seen.wait(10))[0])
            return self.future

    seen = threading.Event()
    pool = ThreadPoolExecutor(1)
    trial = Trial({"cpu": Waits()})

    async def look() -> None:
        await eventually(lambda: bool(trial.worker.reports(BatchId("b"))))
        (report,) = trial.worker.reports(BatchId("b"))
        assert (report.current, report.total, report.activity) == (3, 7, "where")
        seen.set()

    await asyncio.gather(trial.run(lambda _: where()), within(look()))
    pool.shutdown()


async def test_an_error_comes_back_as_its_names_its_message_and_what_it_means() -> None:
    # A class that pickle cannot restore, and whose status says that it will fail every time.
    error = await Trial({"cpu": Engines()}).failure(lambda _: refuse("ACME"))
    assert (error.error_type, error.attempts, error.retryable) == ("RefusedError", 1, False)
    assert error.caused_by(activities.RefusedError)
    assert "ACME was refused" in str(error)
    cause = error.__cause__
    assert str(cause) == "RefusedError: ACME was refused"
    assert cause is not None
    assert "activities.py" in "".join(cause.__notes__)


async def test_errors_use_attempts_and_what_would_end_the_process_is_one() -> None:
    engines = Engines()
    error = await Trial({"cpu": engines}).failure(lambda _: fail("no"))
    assert (error.error_type, error.attempts, error.retryable) == ("ValueError", 2, True)
    error = await Trial({"cpu": engines}).failure(lambda _: leave(3))
    assert (error.error_type, error.attempts) == ("SystemExit", 2)
    assert len(engines.made) == 2


async def test_work_of_its_own_that_was_cancelled_is_an_error_like_any_other() -> None:
    error = await Trial({"cpu": lambda: ThreadPoolExecutor(1)}).failure(lambda _: cancel_own_work())
    assert (error.error_type, error.attempts, error.retryable) == ("RuntimeError", 2, True)
    assert "the activity's own work was cancelled" in str(error)


def test_a_call_raises_nothing_whatever_is_wrong_in_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_that_raises.py").write_text("raise ValueError('no key')", encoding="ascii")
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(3)", encoding="ascii")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def answer(function: str, classifier: str | None) -> Failed:
        request = Request(
            function=function,
            arguments={"text": b'"no"'},
            context=ExecutionContext(batch_id=BatchId("b"), document_id="d", ordinal=0, attempt=1, run=1),
            attempt=3,
            idempotency_key="k",
            classifier=classifier,
            reports=None,
        )
        failed = decode_answer(run_call(request.encode()))
        assert isinstance(failed, Failed)
        return failed

    failed = answer("module_that_raises:work", "module_that_raises:judge")
    assert (failed.failure.error_type, failed.failure.message) == ("ValueError", "no key")
    assert failed.verdict.note == "the worker's classifier is not there: ValueError: no key"
    # Where nothing else is left, the names of both errors.
    failed = answer("tests.executors.activities:fail", "module_that_exits:judge")
    assert (failed.failure.activity, failed.failure.error_type, failed.failure.attempts) == ("fail", "ValueError", 3)
    assert failed.failure.message == "it could not be judged or encoded, which raised SystemExit"
    assert failed.verdict.kind == "retry"
    # A message that is none.
    unreadable = decode_answer(run_call(b"\0\0\0\2{}"))
    assert isinstance(unreadable, Failed)
    assert unreadable.failure.error_type == "KeyError"


async def test_a_delay_that_an_error_asks_for_crosses() -> None:
    trial = Trial({"cpu": Engines()})
    error = await trial.failure(lambda _: ask_for_time(100))
    assert error.attempts == 2
    assert trial.clock.boot() > 1_100


async def test_a_result_of_another_type_is_refused_where_it_is_made() -> None:
    error = await Trial({"cpu": Engines()}).failure(lambda _: return_something_else())
    assert (error.error_type, error.attempts) == ("PayloadError", 1)


async def test_the_policy_of_the_call_and_the_classifier_of_the_worker_hold() -> None:
    policy = RetryPolicy(max_attempts=9, non_retryable=(ValueError,))
    error = await Trial({"cpu": Engines()}).failure(lambda _: fail.with_options(retry=policy)("no"))
    assert error.attempts == 1
    error = await Trial({"cpu": Engines()}, classify=judge).failure(lambda _: fail("no"))
    assert (error.attempts, error.retryable) == (1, False)


async def test_errors_are_judged_by_the_policy_of_the_call_and_not_by_that_of_the_activity() -> None:
    """Also where they are raised: the activity's own would never retry this one."""
    again = timedelta(0)

    async def attempts(policy: RetryPolicy) -> int:
        error = await Trial({"cpu": Engines()}).failure(lambda _: fail_for_good.with_options(retry=policy)("no"))
        return error.attempts

    assert await attempts(fail_for_good.retry) == 1
    assert await attempts(RetryPolicy(max_attempts=3, initial=again)) == 3
    assert await attempts(RetryPolicy(max_attempts=3, initial=again, retryable=is_no_value_error)) == 1
    # No other process finds this class, and the worker knows its name.
    local = type("ValueError", (Exception,), {"__module__": "builtins"})
    assert await attempts(RetryPolicy(max_attempts=3, initial=again, non_retryable=(local,))) == 1


async def test_a_retry_policy_whose_function_other_processes_do_not_find_is_refused_at_the_start() -> None:
    @workflow(STAGES)
    async def run(text: str) -> None:
        await judged_here(text)

    with pytest.raises(ActivityDefinitionError, match="its retryable= judges errors in other processes"):
        async with BatchOrchestrator(run, worker=Worker(MemoryStore(), executors={"cpu": Engines()})):
            pass


class Permits:
    """A limiter that notes what its permits are told."""

    name = "noting"

    def __init__(self) -> None:
        self.told: list[object] = []

    @asynccontextmanager
    async def permit(
        self, *, tokens: int = 0, wait: bool = True, max_wait: timedelta | None = None
    ) -> AsyncGenerator[Permits]:
        yield self

    def settle(self, *, tokens: int) -> None:
        self.told.append(tokens)

    def refused(self, retry_after: timedelta | None = None) -> None:
        self.told.append(retry_after)

    def observe(self, answer: object) -> None:
        self.told.append(answer)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_permit_is_told_what_the_call_took_also_where_it_failed(fails: bool) -> None:
    permits = Permits()
    limited = ask.with_options(limiter=permits)
    result = await Trial({"cpu": Engines()}).run(lambda _: limited(fails))
    assert result.counts.failed == fails
    assert permits.told == [activities.Answer.headers, 321]
    # Without a limiter there is nothing to tell.
    error = await Trial({"cpu": Engines()}).failure(lambda _: ask(fails))
    assert error.error_type == "NotInActivityError"


@pytest.mark.parametrize("document", ["good", "bad"])
async def test_what_a_call_elsewhere_spends_is_counted_also_where_it_failed(document: str) -> None:
    result = await Trial({"cpu": Engines()}).run(lambda _: activities.pay(document))
    assert result.counts.failed == (document == "bad")
    assert result.spent.by_activity == {"pay": Amount(tokens=5, cost=Decimal("0.02"))}
    assert result.spent.by_model["gpt"].cost == Decimal("0.02")


async def test_what_is_spent_elsewhere_after_the_call_has_ended_is_refused() -> None:
    activities.kept.clear()
    await Trial({"cpu": Engines()}).run(lambda _: activities.keep())
    with pytest.raises(NotInActivityError, match="had ended"):
        activities.kept.pop().spend(tokens=1)


@pytest.mark.parametrize("how", ["raised", "wrapped", "timeout"])
async def test_a_circuit_breaker_counts_the_failures_of_a_function_elsewhere(how: str) -> None:
    limiter = CentralRateLimiter(breaker=CircuitBreaker(failure_threshold=3, recovery_timeout=activities.DAY))
    ask = call_provider.with_options(limiter=limiter)
    error = await Trial({"cpu": Engines()}).failure(lambda _: ask(how, 500, {}))
    assert error.attempts == 3
    assert limiter.metrics().breaker == "open"
    # What is wrong with one call says nothing of the provider.
    limiter = CentralRateLimiter(breaker=CircuitBreaker(failure_threshold=1))
    ask = call_provider.with_options(limiter=limiter)
    await Trial({"cpu": Engines()}).failure(lambda _: ask("raised", 400, {}))
    assert limiter.metrics().breaker == "closed"


async def test_what_counts_as_a_failure_is_decided_where_the_error_is() -> None:
    await Trial({"cpu": Engines()}).failure(lambda _: call_provider("own", 0, {}))
    assert activities.OPENAI.metrics().breaker == "open"
    activities.OPENAI.force("auto")
    await Trial({"cpu": Engines()}).failure(lambda _: call_provider("raised", 500, {}))
    assert activities.OPENAI.metrics().breaker == "closed"


@pytest.mark.parametrize("how", ["raised", "wrapped", "observed"])
async def test_headers_of_a_refusal_reach_the_limiter(how: str) -> None:
    limiter = CentralRateLimiter(requests_per_minute=6_000, tokens_per_minute=600)
    ask = call_provider.with_options(limiter=limiter, retry=RetryPolicy(max_attempts=1))
    headers = {"x-padding": "x" * 10_000, "x-ratelimit-limit-requests": "300", "X-RateLimit-Limit-Tokens": "90"}
    trial = Trial({"cpu": Engines()})
    await trial.failure(lambda _: ask(how, 400 if how != "observed" else 429, {**headers, "retry-after": "20"}))
    metrics = limiter.metrics()
    assert metrics.requests_available in (299, 300)
    assert metrics.tokens_available == 90
    if how == "observed":
        assert metrics.refused == 1


def test_headers_are_bounded_and_those_that_limiters_read_go_first() -> None:
    headers = {"x-long": "x" * MOST_BYTES, "x-accent": "\u00e9" * 1_000, "Retry-After": "3", "x-request-id": "a"}
    assert bounded(headers) == {"x-accent": headers["x-accent"], "Retry-After": "3", "x-request-id": "a"}
    assert bounded({"a": "b"}) == {"a": "b"}
    assert len(json.dumps(bounded({f"x-ratelimit-{number}": "x" * 100 for number in range(1_000)}))) < 2 * MOST_BYTES


async def test_a_timeout_is_that_of_the_call_and_its_place_comes_back() -> None:
    engines = Engines(lambda _: "hang" if len(engines.made) == 1 else "run", places=1)
    trial = Trial({"cpu": engines})
    await trial.run(lambda number: hang(number))
    assert trial.values == ["0"]
    error = await Trial({"cpu": Engines(lambda _: "hang")}).failure(lambda number: hang(number))
    assert (error.error_type, error.attempts) == ("ActivityTimeoutError", 2)
    assert isinstance(error.__cause__, ActivityTimeoutError)


async def test_a_lost_call_uses_no_attempt() -> None:
    trial = Trial({"cpu": (engines := Engines(lambda _: "break" if len(engines.made) < 3 else "run"))})
    await trial.run(double, range(5))
    assert trial.values == ["0", "2", "4", "6", "8"]
    assert not any(isinstance(event, DocumentReleased) for event in trial.events)


async def test_a_poisonous_call_counts_as_crashes_of_its_document_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "durable_batches")

    def fate(message: bytes) -> str:
        return "break" if number_of(message) == b"5" else "soon"

    engines = Engines(fate, places=4)
    trial = Trial({"cpu": engines})
    result = await trial.run(double, range(20))
    assert result.counts.succeeded == 19
    (failure,) = result.failures
    assert (failure.document_id, failure.error_type, failure.activity) == ("5", "CrashLoopError", "double")
    assert "also with no other call beside it, in 3 attempts" in failure.error
    released = [event for event in trial.events if isinstance(event, DocumentReleased)]
    assert [(event.document_id, event.reason, event.crashes) for event in released] == [
        ("5", "crash", 1),
        ("5", "crash", 2),
    ]
    # The workflow saw no error; nobody's attempts were used.
    assert trial.errors == []
    assert "loss 1 of it, with no other call beside it" in caplog.text


async def test_siblings_of_a_poisonous_call_are_recorded_and_those_that_wait_for_a_pool_do_not_begin() -> None:
    ran: list[bytes] = []
    siblings = (b"1", b"2", b"3")
    was_lost = asyncio.Event()

    def fate(message: bytes) -> str:
        ran.append(number := number_of(message))
        if number != b"0":
            return "hold" if number in siblings else "run"
        was_lost.set()
        # The poisonous one is lost on its own, then with all others, and then alone while they run.
        return "hold" if ran.count(number) in (2, 3) else "break"

    async def sibling(number: int) -> int:
        await was_lost.wait()
        return await double(number)

    async def body(_: int) -> object:
        # After a crash each call runs alone: the fifth would come after the poisonous one.
        others = range(1, 4) if ran.count(b"0") < 3 else range(1, 5)
        return await asyncio.gather(double(0), *(sibling(number) for number in others))

    async def watch() -> None:
        await eventually(lambda: len(ran) == 5)
        (attempt,) = attempts_of(trial.worker)
        (together,) = (each for each in engines.made if each.running)
        together.lose()
        await eventually(lambda: len(ran) == 9)
        alone, beside = sorted((each for each in engines.made if each.running), key=lambda each: len(each.running))
        alone.lose()
        await eventually(lambda: attempt.is_stopping)
        beside.let_go()

    trial = Trial({"cpu": (engines := Engines(fate, places=4))})
    async with asyncio.TaskGroup() as group:
        group.create_task(within(watch(), seconds=10))
        running = group.create_task(trial.run(body))
    result = running.result()
    assert [failure.error_type for failure in result.failures] == ["CrashLoopError"]
    recorded = await trial.store.checkpoints(result.batch_id, 0, after="", limit=10)
    assert sorted(checkpoint.payload for checkpoint in recorded) == [b"2", b"4", b"6"]
    # Lost in company once, and paid for once they were through.
    assert [ran.count(b"%d" % number) for number in range(5)] == [5, 2, 2, 2, 0]


# ---- what is refused -------------------------------------------------------------------------------------------


async def test_an_executor_that_is_not_there_is_an_error_at_the_start() -> None:
    @workflow(STAGES)
    async def run(number: int) -> int:
        return await double(number)

    worker = Worker(MemoryStore(), executors={"gpu": Engines()})
    with pytest.raises(
        ConfigurationError, match="activity 'double' of workflow 'run' runs on 'cpu', and the worker has"
    ):
        async with BatchOrchestrator(run, worker=worker):
            pass
    with pytest.raises(ConfigurationError, match="runs on 'cpu'"):
        async with BatchOrchestrator(run, store=MemoryStore()):
            pass
    async with BatchOrchestrator(run, worker=Worker(MemoryStore(), max_in_flight=0)):
        pass  # submits only
    # Not named in the workflow's code, and found to be missing at its call.
    hidden = {"double": double}
    error = await Trial({}).failure(lambda number: next(iter(hidden.values()))(number))
    assert (error.error_type, error.attempts) == ("ConfigurationError", 1)


async def test_an_executor_that_cannot_be_made_is_an_error_at_the_start() -> None:
    def broken() -> Executor:
        raise ConnectionError("no scheduler")

    with pytest.raises(ExecutorError, match="executor 'cpu' takes no calls: making it raised ConnectionError"):
        async with Worker(MemoryStore(), executors={"cpu": broken}):
            pass


async def test_a_pool_that_forks_a_process_with_threads_is_refused() -> None:
    def forking() -> Executor:
        return ProcessPoolExecutor(1, mp_context=get_context("fork"))

    with pytest.raises(ExecutorError, match="forked from this one"):
        async with Worker(MemoryStore(), executors={"cpu": forking}):
            pass
    with forking() as pool, pytest.raises(ConfigurationError, match="forked from this one"):
        Worker(MemoryStore(), executors={"cpu": pool})


Activity = DurableActivity[..., Any]


def local() -> Activity:
    @durable_activity
    async def inner(text: str) -> str:
        return text

    return inner


class Reader:
    @durable_activity
    def read(self, text: str) -> str:
        return text


async def client() -> object:
    return object()


@durable_activity
def with_client(text: str, http: object = dependency(client)) -> str:
    return text


@durable_activity(ignore=("cache",))
def with_cache(text: str, cache=None) -> str:  # type: ignore[no-untyped-def]
    return text


@pytest.mark.parametrize(
    ("activity", "why"),
    [
        (local(), "defined within a function"),
        (Reader.read, "a method, whose instance cannot be sent"),
        (with_client, "its dependency 'http' is opened by the worker"),
        (cast(Activity, with_cache), "parameter 'cache' has no annotation, by which it is sent"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_its_definition(activity: Activity, why: str) -> None:
    with pytest.raises(ActivityDefinitionError, match=why):
        activity.with_options(run_on="cpu")


def plain(number: int) -> int:
    return number


undecorated = durable_activity(run_on="cpu")(plain)


async def test_what_is_not_found_by_its_name_is_refused_at_the_start() -> None:
    @workflow(STAGES)
    async def run(number: int) -> int:
        return await undecorated(number)

    with pytest.raises(ActivityDefinitionError, match="is no activity: decorate the function where it is defined"):
        async with BatchOrchestrator(run, worker=Worker(MemoryStore(), executors={"cpu": Engines()})):
            pass


async def test_arguments_that_cannot_be_sent_fail_the_call() -> None:
    wrong: Any = "3"
    trial = Trial({"cpu": Engines()})
    result = await trial.run(lambda _: double(1, by=wrong))
    assert [failure.error_type for failure in result.failures] == ["PayloadError"]


async def test_outside_an_orchestrator_and_replaced_it_is_a_plain_call() -> None:
    assert await double(2) == 4
    trial = Trial({"cpu": (engines := Engines())})
    with double.override(lambda number, *more, by=2: -number):
        await trial.run(double, range(1, 2))
    assert trial.values == ["-1"]
    assert [engine.running for engine in engines.made] == [[]]


def test_a_classifier_that_other_processes_would_not_find_is_refused() -> None:
    def inner(error: BaseException) -> Verdict:
        return default_classifier(error)

    Worker(MemoryStore(), classify=inner)
    with pytest.raises(ConfigurationError, match="must be a function of a module"):
        Worker(MemoryStore(), classify=inner, executors={"cpu": Engines()})
