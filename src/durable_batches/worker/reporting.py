"""What a worker says to its telemetry: made of claims, facts and events, by hooks that cannot harm it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Literal, NamedTuple, cast

from durable_batches.lifecycle.batch_core import definition_of
from durable_batches.lifecycle.events import LAST_EVENT_TAGS
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import BatchRecord, Claim, Committed, EventRecord, Micros, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.runtime.middleware import CallNext, MiddlewareCall
from durable_batches.telemetry.guarded import Guard
from durable_batches.telemetry.hooks import (
    ActivityDetails,
    AttemptDetails,
    AttemptOutcome,
    BatchDetails,
    CommitDetails,
    CommitOutcome,
    EndOfAttempt,
    EndOfCommit,
    SubmissionDetails,
    Telemetry,
    WorkerGauges,
)

__all__ = ["Reporting"]

_KNOWN_BATCHES: Final = 1_024
"""Whose ends are reported: the latest that something was claimed of."""

_NO_ORIGIN: Final[Mapping[str, str]] = {}


class _KnownBatch(NamedTuple):
    workflow: str
    version: str
    run: int
    created_at: Micros
    origin: Mapping[str, str]


class Reporting:
    """Reports the work of one worker.

    Args:
        telemetry: What it is reported to.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._guard = Guard()
        self._known: OrderedDict[BatchId, _KnownBatch] = OrderedDict()

    def submission(self, batch_id: BatchId, workflow: str, version: str) -> AbstractContextManager[Mapping[str, str]]:
        """Report a submission; what it yields is recorded with the batch."""
        details = SubmissionDetails(batch_id=batch_id, workflow=workflow, version=version)
        return self._guard.around("submitting", lambda: self._telemetry.submitting(details), _NO_ORIGIN)

    def attempt(self, claim: Claim) -> AbstractContextManager[EndOfAttempt]:
        """Report an attempt of a claimed document; `attempt_ended` says how it ended."""
        batch, execution = claim.batch, claim.execution
        details = AttemptDetails(
            batch_id=batch.batch_id,
            document_id=execution.document_id,
            workflow=batch.workflow,
            version=batch.version,
            run=execution.run,
            attempt=execution.attempt,
            worker_id=execution.owner or "",
            origin=self._known_batch(batch).origin,
        )
        return self._guard.around("attempting", lambda: self._telemetry.attempting(details), _ignore)

    def attempt_ended(self, end: EndOfAttempt, outcome: AttemptOutcome, error_type: str | None = None) -> None:
        """Report how an attempt ended."""
        self._guard.call("attempting", lambda: end(outcome, error_type), None)

    async def call(self, call: MiddlewareCall, call_next: CallNext, /) -> Any:
        """Report an attempt of a call of an activity, as a middleware of it."""
        details = ActivityDetails(
            batch_id=call.batch_id,
            document_id=call.document_id,
            activity=call.bound.activity.name,
            attempt=call.attempt,
        )
        with self._guard.around("calling", lambda: self._telemetry.calling(details), None):
            return await call_next()

    def commit(self, worker: WorkerId, facts: int, *, claims: bool) -> AbstractContextManager[EndOfCommit]:
        """Report a commit; `committed` says what it has brought."""
        details = CommitDetails(worker_id=worker, facts=facts, claims=claims)
        return self._guard.around("committing", lambda: self._telemetry.committing(details), _ignore)

    def committed(self, end: EndOfCommit, committed: Committed) -> None:
        """Report what a commit has brought."""
        outcome = CommitOutcome(events=len(committed.events), claimed=len(committed.claims))
        self._guard.call("committing", lambda: end(outcome), None)

    def events(self, events: Sequence[EventRecord]) -> None:
        """Report the batches that have ended with these events."""
        for event in events:
            if event.tag in LAST_EVENT_TAGS and (known := self._known.pop(event.batch_id, None)) is not None:
                details = BatchDetails(
                    batch_id=event.batch_id,
                    workflow=known.workflow,
                    version=known.version,
                    run=known.run,
                    state=cast("Literal['completed', 'failed', 'cancelled']", event.tag.removeprefix("batch_")),
                    began_at=from_micros(known.created_at),
                    ended_at=from_micros(event.at),
                    origin=known.origin,
                )
                self._guard.call("batch_ended", partial(self._telemetry.batch_ended, details), None)

    def watch(self, gauges: Callable[[], WorkerGauges | None]) -> Callable[[], None]:
        """Have the worker's gauges read; return what ends that."""
        ignore: Callable[[], object] = _ignore
        end = self._guard.call("watch", lambda: self._telemetry.watch(gauges), ignore)

        def ended() -> None:
            self._guard.call("watch", end, None)

        return ended

    def _known_batch(self, batch: BatchRecord) -> _KnownBatch:
        known = self._known.get(batch.batch_id)
        if known is None or known.run != batch.run:
            known = _KnownBatch(batch.workflow, batch.version, batch.run, batch.created_at, definition_of(batch).origin)
            self._known[batch.batch_id] = known
            if len(self._known) > _KNOWN_BATCHES:
                self._known.popitem(last=False)
        return known


def _ignore(*_: object) -> None:
    """Stand in for what a hook that failed would have returned."""
