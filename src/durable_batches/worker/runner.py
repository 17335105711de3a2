"""The runner: takes one claimed execution through its attempt, and reports how the attempt ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from durable_batches.codec.codec import Codec, payload_of
from durable_batches.errors import (
    ConfigurationError,
    DurableBatchesError,
    FactRejectedError,
    PayloadError,
    StoreUnavailableError,
    WorkerFencedError,
    place_of,
)
from durable_batches.lifecycle.batch_core import definition_of, isolation_of, quota_pause_of
from durable_batches.lifecycle.facts import ExecutionFailed, ExecutionReleased, ExecutionSucceeded
from durable_batches.lifecycle.failures import DocumentFailureRecord, line_of, message_of
from durable_batches.lifecycle.policies import document_retry_delay
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    CheckpointRecord,
    Claim,
    DocumentRecord,
    ExecutionStatus,
    Micros,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Outages, ride_out
from durable_batches.reading.results import StoredResults
from durable_batches.runtime.attempt import Attempt
from durable_batches.runtime.attempt_result import AttemptFailed, AttemptStopped, AttemptSucceeded
from durable_batches.runtime.dependencies import dependencies_of
from durable_batches.runtime.resources import Resources
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.protocol import Store
from durable_batches.tasks import completed, is_closed_by
from durable_batches.telemetry.hooks import AttemptOutcome, EndOfAttempt
from durable_batches.worker.failure_log import FailureLog, traceback_of
from durable_batches.worker.reporting import Reporting
from durable_batches.worker.signals import SchedulerSignals

__all__ = ["CHECKPOINTS_A_CLAIM", "AnyWorkflow", "HeldExecution", "Runner"]

_log = logging.getLogger("durable_batches")

T = TypeVar("T")

AnyWorkflow: TypeAlias = Workflow[Any, Any, Any, Any]

_UNRECORDED: Final = DocumentFailureRecord(
    "the database refused to record how the attempt ended; the worker's log has the error", "FactRejectedError", None, 0
)

CHECKPOINTS_A_CLAIM: Final = 1_000
"""Checkpoints that come along with a claim; an execution that has more reads the rest before it starts."""


class HeldExecution:
    """A claimed execution, until the fact that finishes it is committed."""

    __slots__ = ("attempt", "end", "finishing", "isolated_seconds", "settled", "window")

    def __init__(self, attempt: Attempt, window: int | None, isolated_seconds: float) -> None:
        self.attempt: Final = attempt
        self.window: Final = window
        """While it is isolated: how many executions may be held along with it, itself included. None: it is not."""
        self.isolated_seconds: Final = isolated_seconds
        """For how long it is, from its claim."""
        self.finishing: bool = False
        """Whether its attempt is over, and its end being reported."""
        self.settled: bool = False
        """Whether nothing is left to report: the store has answered to its end, or the session is over."""
        self.end: EndOfAttempt | None = None
        """Takes note of how it ended, where somebody wants to know."""


class Runner:
    """Runs the executions of one session.

    Args:
        store: Where checkpoints are read that do not come with a claim, and the documents that a resolver sees.
        resources: Shared by all attempts; their recorder is the journal.
        outages: Where the store's are logged.
        signals: Fired for tests.
        reporting: Reports each attempt; None: nobody wants to know.
    """

    def __init__(
        self,
        store: Store,
        resources: Resources,
        outages: Outages,
        signals: SchedulerSignals,
        reporting: Reporting | None = None,
    ) -> None:
        self._store = store
        self._resources = resources
        self._outages = outages
        self._signals = signals
        self._reporting = reporting
        self._failures = FailureLog()

    def held(self, claim: Claim, workflow: AnyWorkflow) -> HeldExecution:
        """Make the attempt of a claimed execution, which is not begun."""
        is_resolver = claim.execution.position == RESOLVER_POSITION
        definition = definition_of(claim.batch)
        config = definition.config
        timeout = config.document_timeout
        pause = quota_pause_of(claim.batch)
        attempt = Attempt(
            claim.execution,
            stage_index=None if is_resolver else workflow.stage_index,
            checkpoints=list(claim.checkpoints),
            resources=self._resources,
            timeout=None if timeout is None or is_resolver else timeout.total_seconds(),
            metadata=config.metadata,
            defaults=definition.defaults,
            looks_for=None if pause is None else pause["activity"],
            budgeted=config.budget is not None,
        )
        isolation = isolation_of(claim.batch, claim.execution)
        if isolation is None:
            return HeldExecution(attempt, None, 0.0)
        seconds = (isolation["until"] - claim.execution.updated_at) / 1_000_000
        self._failures.isolated(claim, isolation["since"], seconds)
        return HeldExecution(attempt, isolation["window"], seconds)

    def running(self, held: HeldExecution, claim: Claim, workflow: AnyWorkflow) -> Coroutine[Any, Any, None]:
        """Make the coroutine that runs a document or a resolver, with telemetry where there is any."""
        if self._reporting is None:
            # Not awaited by another coroutine, which each step of the document would go through.
            return self.run(held, claim, workflow)
        return self.run_reported(self._reporting, held, claim, workflow)

    async def run_reported(
        self, reporting: Reporting, held: HeldExecution, claim: Claim, workflow: AnyWorkflow
    ) -> None:
        """Run a document or a resolver as an attempt of which telemetry is told."""
        with reporting.attempt(claim) as held.end:
            await self.run(held, claim, workflow)

    async def run(self, held: HeldExecution, claim: Claim, workflow: AnyWorkflow) -> None:
        """Run a document or a resolver, and report to the store how it ended."""
        run = self._resolve if claim.execution.position == RESOLVER_POSITION else self._run_document
        task = asyncio.current_task()
        try:
            await run(held, claim, workflow)
        except WorkerFencedError:
            # The session is over, and with it everything it held; the worker begins another one.
            held.settled = True
        except BaseException as error:
            if held.settled or isinstance(error, KeyboardInterrupt) or is_closed_by(error, task):
                raise
            # Whatever it is, the execution must not stay held for ever.
            await self._give_up(error, held, claim)

    def release(self, claim: Claim) -> None:
        """Release an execution whose task has ended without a report of it."""
        self._resources.recorder.post(ExecutionReleased(*_identity_of(claim)))

    async def _run_document(self, held: HeldExecution, claim: Claim, workflow: AnyWorkflow) -> None:
        self._resources.stats.documents_run += 1

        async def body() -> Any:
            with payload_of(claim.execution.batch_id, claim.execution.document_id):
                document = workflow.document_codec.decode(claim.input)
            return await workflow.fn(document)

        result = await held.attempt.run(body, self._prepares(held, claim))
        await self._report(held, claim, result, workflow.result_codec)

    async def _resolve(self, held: HeldExecution, claim: Claim, workflow: AnyWorkflow) -> None:
        resolver, batch_id = workflow.resolver, claim.batch.batch_id

        def load(
            statuses: Collection[ExecutionStatus], size: int, after: int, /
        ) -> Awaitable[Sequence[DocumentRecord]]:
            return self._through_outages(
                lambda: self._store.documents(batch_id, statuses=statuses, after=after, limit=size, inputs=False),
                f"the resolver of batch {batch_id!r}",
            )

        results = StoredResults(load, batch_id, claim.batch.counts, workflow.result_codec)

        async def body() -> Any:
            if resolver is None:
                raise ConfigurationError(
                    f"workflow {workflow.name!r} has no resolver any more, and batch {claim.batch.batch_id!r} was "
                    "submitted when it had one; run the batch with code that has it"
                )
            wanted = dependencies_of(resolver)
            return await resolver(results, **await self._resources.dependencies.filled(wanted, {}))

        result = await held.attempt.run(body, self._prepares(held, claim))
        retry_in = None
        if isinstance(result, AttemptFailed) and result.retryable:
            delay = workflow.resolver_retry.delay(
                result.error,
                claim.execution.failures + 1,
                self._resources.clock.jitter(),
            )
            retry_in = None if delay is None else int(delay.total_seconds() * 1_000_000)
        await self._report(held, claim, result, workflow.resolution_codec, retry_in)

    def _prepares(self, held: HeldExecution, claim: Claim) -> Callable[[], Awaitable[object]] | None:
        """Return what is to be awaited before the body; None, as for most: nothing."""
        return partial(self._read_more_checkpoints, held, claim) if claim.more_checkpoints else None

    async def _read_more_checkpoints(self, held: HeldExecution, claim: Claim) -> None:
        execution = claim.execution
        checkpoints: list[CheckpointRecord] = list(claim.checkpoints)
        while True:
            after = checkpoints[-1].key if checkpoints else ""
            page = await self._through_outages(
                partial(
                    self._store.checkpoints,
                    execution.batch_id,
                    execution.position,
                    after=after,
                    limit=CHECKPOINTS_A_CLAIM,
                ),
                f"the checkpoints of {place_of(execution.batch_id, execution.document_id)}",
            )
            checkpoints += page
            if len(page) < CHECKPOINTS_A_CLAIM:
                break
        held.attempt.recorded = type(held.attempt.recorded)(checkpoints)

    async def _through_outages(self, read: Callable[[], Awaitable[T]], operation: str) -> T:
        """Read for user's code, which is not to fail because the store does; as commits do, it waits for any cause."""
        return await ride_out(read, self._outages, operation, self._resources.clock.sleep, passes=_any)

    # ---- reporting -------------------------------------------------------------------------------------------

    async def _report(
        self,
        held: HeldExecution,
        claim: Claim,
        result: AttemptSucceeded | AttemptFailed | AttemptStopped,
        codec: Codec[Any],
        retry_in: Micros | None = None,
    ) -> None:
        """Record the one fact that finishes the attempt."""
        self._finish(held, claim)
        execution = claim.execution
        identity = _identity_of(claim)
        match result:
            case AttemptStopped(reason="fenced"):
                return
            case AttemptStopped(reason="quota", refusal=refusal) if refusal is not None:
                released = ExecutionReleased(
                    *identity,
                    reason="quota",
                    retry_after=refusal.retry_after,
                    note=refusal.note,
                    activity=refusal.activity,
                )
                await self._end(held, released)
            case AttemptStopped(reason="crash", crash=crash) if crash is not None:
                await self._end(held, ExecutionReleased(*identity, reason="crash", activity=crash.activity))
            case AttemptStopped(reason=reason):
                await self._end(
                    held, ExecutionReleased(*identity, reason="paused" if reason == "paused" else "shutdown")
                )
            case AttemptSucceeded(value=value, unused_checkpoints=unused):
                try:
                    # Read again, too: a result that nobody can read is worth as little as one that cannot be stored.
                    await self._end(held, ExecutionSucceeded(*identity, codec.recoded(value)[0], unused))
                except (PayloadError, FactRejectedError) as error:
                    failure = _failure_of(error, execution.attempt)
                    self._failures.failed(execution, error, failure, None)
                    self._ended(held, "failed", failure.error_type)
                    await self._end(held, _failed(identity, failure))
                else:
                    self._ended(held, "succeeded")
                    self._warn_of_unused(claim, unused)
            case AttemptFailed(error=error, record=record, retryable=retryable, failures_to_delete=keys):
                delay = _retry_delay(claim, retry_in, retryable=retryable)
                self._ended(held, "failed" if delay is None else "retried", record.error_type)
                cancelled = isinstance(error, asyncio.CancelledError)
                if not cancelled:
                    # Before it is committed: the store may be away, or the process about to end.
                    self._failures.failed(execution, error, record, delay)
                await self._end(
                    held,
                    ExecutionFailed(
                        *identity,
                        outcome=record.encode(),
                        error=record.error,
                        retryable=retryable,
                        retry_in=retry_in,
                        forget=keys,
                        error_type=record.error_type,
                        activity=record.activity,
                    ),
                )
                if cancelled:
                    # Not before: at the end of an event loop all of its tasks are cancelled, this session's, too, and
                    # the document has not failed.
                    self._failures.failed(execution, error, record, delay)

    async def _end(self, held: HeldExecution, fact: ExecutionSucceeded | ExecutionFailed | ExecutionReleased) -> None:
        """Record the fact that finishes an attempt. It has its answer, also where the task is cancelled meanwhile.

        Raises:
            FactRejectedError: The database refuses it, and the attempt is not finished.
            WorkerFencedError: The session is over.
        """
        attempt = held.attempt
        spent, replayed = attempt.spent, attempt.replayed
        if spent is not None or replayed is not None:
            fact = fact._replace(spent=spent, replayed=replayed)
        verdict = asyncio.ensure_future(self._resources.recorder.record(fact))
        try:
            await completed(verdict)
        finally:
            if verdict.done():
                error = verdict.exception()
                held.settled = error is None or isinstance(error, WorkerFencedError)

    def _ended(self, held: HeldExecution, outcome: AttemptOutcome, error_type: str | None = None) -> None:
        """Say how the attempt ended, where somebody wants to know; where nobody says so, it was released."""
        if self._reporting is not None and held.end is not None:
            self._reporting.attempt_ended(held.end, outcome, error_type)

    async def _give_up(self, error: BaseException, held: HeldExecution, claim: Claim) -> None:
        """Log a failure that is no part of the user's own code, and finish the attempt all the same."""
        self._finish(held, claim)
        execution = claim.execution
        shows_traceback = not isinstance(error, DurableBatchesError | asyncio.CancelledError)
        traceback = traceback_of(error if shows_traceback else None)
        _log.error(
            "%s given up by this worker in attempt %d: %s%s",
            place_of(execution.batch_id, execution.document_id),
            execution.attempt,
            line_of(error),
            traceback.text,
            exc_info=traceback.error,
            extra={
                "batch_id": execution.batch_id,
                "document_id": execution.document_id,
                "attempt": execution.attempt,
                "error_type": type(error).__name__,
            },
        )
        identity = _identity_of(claim)
        # Cancelled outside of user code, by others: it has not failed.
        is_released = isinstance(error, StoreUnavailableError | asyncio.CancelledError)
        self._ended(held, "released" if is_released else "failed", type(error).__name__)
        fact = ExecutionReleased(*identity) if is_released else _failed(identity, _failure_of(error, execution.attempt))
        try:
            await self._end(held, fact)
        except FactRejectedError:
            # It may be for the text of the error, which is logged above.
            await self._end(held, _failed(identity, _UNRECORDED._replace(attempts=execution.attempt)))

    def _finish(self, held: HeldExecution, claim: Claim) -> None:
        if not held.finishing:
            held.finishing = True
            self._signals.finished.fire((claim.execution.batch_id, claim.execution.position))

    def _warn_of_unused(self, claim: Claim, unused: int) -> None:
        if unused:
            self._resources.stats.checkpoints_unused += unused
            execution = claim.execution
            _log.warning(
                "document %r of batch %r did not use %d of its recorded activities: was an activity renamed, or is an "
                "input not the same on every attempt?",
                execution.document_id,
                execution.batch_id,
                unused,
                extra={
                    "batch_id": execution.batch_id,
                    "document_id": execution.document_id,
                    "unused_checkpoints": unused,
                },
            )


def _any(_: StoreUnavailableError) -> bool:
    return True


def _identity_of(claim: Claim) -> tuple[BatchId, int, int, int]:
    execution = claim.execution
    return execution.batch_id, execution.run, execution.position, execution.attempt


def _failure_of(error: BaseException, attempts: int) -> DocumentFailureRecord:
    return DocumentFailureRecord(message_of(error), type(error).__name__, None, attempts)


def _failed(identity: tuple[BatchId, int, int, int], record: DocumentFailureRecord) -> ExecutionFailed:
    return ExecutionFailed(
        *identity,
        outcome=record.encode(),
        error=record.error,
        retryable=False,
        error_type=record.error_type,
        activity=record.activity,
    )


def _retry_delay(claim: Claim, retry_in: Micros | None, *, retryable: bool) -> timedelta | None:
    """Return after what delay the commit will have the execution retried; None: not at all."""
    execution = claim.execution
    if execution.position == RESOLVER_POSITION:
        return None if retry_in is None else timedelta(microseconds=retry_in)
    policy = definition_of(claim.batch).config.failure_policy
    return document_retry_delay(policy, execution.failures + 1, retryable=retryable)
