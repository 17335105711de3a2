"""The executors of a worker, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, Final

from durable_batches.clock import Clock
from durable_batches.errors import ConfigurationError, ExecutorError
from durable_batches.executors.beginning import Timeout
from durable_batches.executors.kept_executor import FORKS, ExecutorOrFactory, forks
from durable_batches.executors.messages import Answered, Failed, Request, decode_answer
from durable_batches.executors.names import classifier_named, find_activity, policy_of_call, reference_of
from durable_batches.executors.placement import Placement
from durable_batches.executors.reports import Reports
from durable_batches.lifecycle.spending import decode_spends
from durable_batches.options import check_callable, check_instance
from durable_batches.runtime.activity import DurableActivity
from durable_batches.runtime.classify import ErrorClassifier, RemoteError, default_classifier
from durable_batches.runtime.elsewhere import CallElsewhere, no_executor
from durable_batches.runtime.threads import Threads

__all__ = ["Executors"]

NO_ANSWER: Final = (
    "it has answered with what is no answer of this library; its processes may have another version of the library"
)


class RemoteAnswer:
    """What is left of an answer that a function has had observed in another process.

    Attributes:
        status_code: The HTTP status.
        headers: The headers.
    """

    def __init__(self, answered: Answered) -> None:
        self.status_code: Final[int | None] = answered.status
        self.headers: Final[Mapping[str, str]] = answered.headers


class Executors:
    """Runs the calls of activities that have `run_on=`.

    Args:
        given: The executors, or what makes them, by name; None: there are none.
        clock: The worker's.
        classify: The worker's classifier.

    Raises:
        ConfigurationError: What is given is none, or cannot be used.
    """

    def __init__(self, given: Mapping[str, ExecutorOrFactory] | None, clock: Clock, classify: ErrorClassifier) -> None:
        check_instance("executors", given, Mapping, optional=True)
        given = given or {}
        for name, executor in given.items():
            check_instance("each name in executors", name, str)
            if not isinstance(executor, Executor):
                check_callable(f"executors[{name!r}], unless it is a concurrent.futures.Executor,", executor)
            elif forks(executor):
                raise ConfigurationError(f"executors[{name!r}]: {FORKS}")
        self._placements: Final = {name: Placement(name, executor, clock) for name, executor in given.items()}
        self._classifier = None if classify is default_classifier or not given else classifier_named(classify)
        self._reports = Reports()

    def check(self, activity: DurableActivity[..., Any], workflow: str) -> None:
        """Verify that there is an executor for an activity, which finds it by its name.

        Raises:
            ActivityDefinitionError: Another process would not find it, or what judges its errors.
            ConfigurationError: There is no such executor.
        """
        if activity.run_on is not None:
            if activity.run_on not in self._placements:
                raise no_executor(activity.name, activity.run_on, workflow)
            policy_of_call(activity)

    async def open(self, threads: Threads) -> None:
        """Make the executors.

        Raises:
            ExecutorError: One cannot be made, or not be used.
        """
        if self._placements:
            await self._reports.open()
        for placement in self._placements.values():
            await placement.open(threads)

    async def close(self) -> None:
        """End what was made, with all that still runs in it."""
        self._reports.close()
        for placement in self._placements.values():
            await placement.close()

    async def run(self, call: CallElsewhere, /) -> Any:
        """See `Elsewhere.run`."""
        bound = call.bound
        activity, definition = bound.activity, bound.definition
        placement = self._placements.get(activity.run_on or "")
        if placement is None:
            raise no_executor(activity.name, activity.run_on)
        arguments = definition.arguments.encode(bound.args, bound.kwargs)
        timeout = Timeout(None if activity.timeout is None else activity.timeout.total_seconds())
        reports = self._reports.follow(call.report, timeout.begins)
        timeout.is_told = reports is not None
        reference, limiter = reference_of(activity), activity.limiter
        request = Request(
            function=reference,
            arguments=arguments,
            context=call.context,
            attempt=call.attempt,
            idempotency_key=call.idempotency_key,
            classifier=self._classifier,
            reports=reports,
            retry=policy_of_call(activity),
            timed=activity.timeout is not None,
            limited=limiter is not None,
            own_limiter=not isinstance(limiter, str | None) and find_activity(reference).limiter is limiter,
        )

        try:
            message = await placement.run(
                request.encode(),
                activity=activity.name,
                timeout=timeout,
                beginning=call,
                suspect=call.crashes > 0,
            )
        finally:
            self._reports.leave(reports)
        try:
            answer = decode_answer(message)
        except Exception as error:
            raise ExecutorError(activity.run_on or "", NO_ANSWER) from error
        if answer.used.spent is not None:
            # First, since nothing of it may be lost.
            call.add_spends(decode_spends(answer.used.spent))
        for observed in answer.used.answers:
            call.observe(observed.headers if observed.status is None else RemoteAnswer(observed))
        if answer.used.tokens is not None:
            call.settle(tokens=answer.used.tokens)
        if isinstance(answer, Failed):
            raise RemoteError(
                answer.failure,
                answer.verdict,
                answer.traceback,
                status_code=answer.answered.status,
                headers=answer.answered.headers,
                is_failure=answer.is_failure,
            )
        return definition.codec.decode(answer.payload)
