"""The side of the process that runs a call: `run_call` is all that an executor is given."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, Final, Unpack, cast

from durable_batches.clock import SystemClock
from durable_batches.executors.headers import bounded
from durable_batches.executors.messages import Answered, Failed, Request, Used, encode_failed, encode_succeeded
from durable_batches.executors.names import find_activity, find_classifier, find_policy
from durable_batches.executors.reports import send_begins, send_report
from durable_batches.lifecycle.amounts import Amount
from durable_batches.lifecycle.failures import ActivityFailure, line_of
from durable_batches.lifecycle.spending import encode_spends
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_integer
from durable_batches.runtime.activity import DurableActivity
from durable_batches.runtime.classify import ErrorClassifier, Verdict, default_classifier
from durable_batches.runtime.context import ExecutionContext, enter_activity, leave
from durable_batches.runtime.error_facts import peek, quiet
from durable_batches.runtime.error_signs import is_of_provider, signs_of
from durable_batches.runtime.limits import JudgesFailures, no_limiter
from durable_batches.runtime.retry_policy import RetryPolicy
from durable_batches.runtime.spends import Said, Spends, spend_of
from durable_batches.runtime.tracebacks import trim

__all__ = ["PROBE", "RemoteActivity", "run_call"]

PROBE: Final = b""
"""A call that does nothing, and is its own answer."""

_MOST_ANSWERS: Final = 16
"""Answers of which the status and the headers are sent, the last ones."""

_TRACEBACK_LIMIT: Final = 8_000
"""Characters, from its end."""


class RemoteActivity:
    """The running call, which `current_activity()` returns to its body in this process."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.context: ExecutionContext = request.context
        self.used: Used = Used()
        self._spends = Spends(_name(request, None))

    @property
    def batch_id(self) -> BatchId:
        """See `ActivityContext`."""
        return self.context.batch_id

    @property
    def document_id(self) -> str:
        """See `ActivityContext`."""
        return self.context.document_id

    @property
    def attempt(self) -> int:
        """See `ActivityContext`."""
        return self._request.attempt

    @property
    def idempotency_key(self) -> str:
        """See `ActivityContext`."""
        return self._request.idempotency_key

    def report(self, current: int, total: int) -> None:
        """See `ActivityContext`; it reaches a worker on the same machine."""
        check_integer("current", current)
        check_integer("total", total)
        if self._request.reports is not None:
            send_report(self._request.reports, current, total)

    def spend(self, **said: Unpack[Said]) -> None:
        """See `ActivityContext`; the worker learns it when the call has ended."""
        self._spends.add(spend_of(**said))

    def end(self) -> None:
        """Put what it has spent into what it has used, and take no more: the worker would not learn it."""
        self.used = replace(self.used, spent=encode_spends(self._spends.take(last=True)))

    def settle(self, *, tokens: int) -> None:
        """See `ActivityContext`; the worker learns it when the call has ended."""
        self._check_limited("settle")
        self.used = replace(self.used, tokens=Amount(tokens=tokens).tokens)

    def observe(self, answer: object) -> None:
        """See `ActivityContext`; of an answer, its headers reach the worker, when the call has ended."""
        self._check_limited("observe")
        headers: object = answer
        status: object = None
        if not isinstance(answer, Mapping):
            response = peek(answer, "response")
            headers = peek(answer, "headers") or peek(response, "headers")
            statuses = (peek(part, name) for part in (answer, response) for name in ("status_code", "status"))
            status = next((status for status in statuses if isinstance(status, int)), None)
        found: dict[str, str] = {}
        if isinstance(headers, Mapping):
            found = {str(name): str(value) for name, value in cast("Mapping[object, object]", headers).items()}
        if found or status is not None:
            answered = Answered(status if isinstance(status, int) else None, bounded(found))
            self.used = replace(self.used, answers=(*self.used.answers, answered)[-_MOST_ANSWERS:])

    def _check_limited(self, method: str) -> None:
        if not self._request.limited:
            raise no_limiter(method, _name(self._request, None))


def run_call(message: bytes) -> bytes:
    """Run one attempt of a call, and return its result, or its error, as bytes; it raises nothing."""
    if message == PROBE:
        return PROBE
    request: Request | None = None
    activity: DurableActivity[..., Any] | None = None
    call: RemoteActivity | None = None
    try:
        request = Request.decode(message)
        call = RemoteActivity(request)
        activity = find_activity(request.function)
        definition = activity.definition
        arguments = definition.arguments.decode(request.arguments)
        tokens = enter_activity(call)
        if request.timed and request.reports is not None:
            send_begins(request.reports)
        try:
            result = definition.fn(*arguments.args, **arguments.kwargs)
            if inspect.isawaitable(result):
                result = asyncio.run(_awaited(result))
        finally:
            leave(tokens)
            call.end()
        return encode_succeeded(definition.codec.recoded(result)[0], call.used)
    except BaseException as raised:  # noqa: BLE001  (also what would end the process: it has other calls to run)
        error = raised
    if isinstance(error, asyncio.CancelledError):
        # Nothing cancels a call here; something that the function awaited was cancelled.
        error = RuntimeError("the activity's own work was cancelled").with_traceback(error.__traceback__)
    used = Used() if call is None else call.used
    try:
        return _failed(request, activity, error, used)
    except BaseException as second:  # noqa: BLE001  (an error of the user's that cannot be pickled would break the pool)
        return _failed_plainly(request, error, second, used)


def _failed(
    request: Request | None, activity: DurableActivity[..., Any] | None, error: BaseException, used: Used
) -> bytes:
    """Encode an error, with what it means: its object stays here."""
    trim(error)
    verdict = _policy(request, activity).judge(error, _classifier(request, activity))
    attempt = 1 if request is None else request.attempt
    failure = ActivityFailure.of(_name(request, activity), error, attempt, retryable=verdict.kind != "never")
    answered, is_failure = Answered(None, {}), None
    if request is not None and request.limited:
        now = SystemClock().now() / 1_000_000
        status, headers = signs_of(error, now)
        answered = Answered(status, bounded(headers))
        is_failure = is_of_provider(error, now)
        limiter: object = activity.limiter if activity is not None and request.own_limiter else None
        if isinstance(limiter, JudgesFailures):
            judges = limiter
            is_failure = bool(quiet(lambda: judges.is_failure(error)))
    return encode_failed(
        Failed(
            failure=failure,
            verdict=verdict,
            traceback=_traceback_of(error),
            used=used,
            answered=answered,
            is_failure=is_failure,
        )
    )


def _failed_plainly(request: Request | None, error: BaseException, second: BaseException, used: Used) -> bytes:
    """Encode an error that raises another one when it is judged or encoded: by the names of both; neither is asked."""
    failure = ActivityFailure(
        activity=_name(request, None),
        error_type=type(error).__name__,
        message=f"it could not be judged or encoded, which raised {type(second).__name__}",
        attempts=1 if request is None else request.attempt,
        retryable=True,
        kinds=(),
    )
    return encode_failed(Failed(failure=failure, verdict=Verdict(kind="retry"), traceback="", used=used))


def _name(request: Request | None, activity: DurableActivity[..., Any] | None) -> str:
    if activity is not None:
        return activity.name
    return "" if request is None else request.function.rpartition(":")[2]


def _policy(request: Request | None, activity: DurableActivity[..., Any] | None) -> RetryPolicy:
    if request is not None and request.retry is not None:
        return find_policy(request.retry)
    return RetryPolicy() if activity is None else activity.retry


def _classifier(request: Request | None, activity: DurableActivity[..., Any] | None) -> ErrorClassifier:
    if activity is not None and activity.classify is not None:
        return activity.classify
    if request is None or request.classifier is None:
        return default_classifier
    try:
        return find_classifier(request.classifier)
    except Exception as missing:  # noqa: BLE001  (a module may raise anything where it is imported)
        note = f"the worker's classifier is not there: {line_of(missing)}"

        def unfound(error: BaseException, /) -> Verdict:
            return Verdict(kind=default_classifier(error).kind, note=note)

        return unfound


def _traceback_of(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  (a user's __str__ may raise, and must not hide the error itself)
        return ""
    # As it is printed: what a provider sent may hold what cannot be encoded.
    return text.encode(errors="replace").decode()[-_TRACEBACK_LIMIT:]


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
