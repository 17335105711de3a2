"""The hooks of a worker: what it says of its work, for traces and metrics.

A backend implements `Telemetry`. No payload, text of an error or label of a batch ever reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, Protocol, TypeAlias

__all__ = [
    "HOOKS",
    "ActivityDetails",
    "AttemptDetails",
    "AttemptOutcome",
    "BatchDetails",
    "CommitDetails",
    "CommitOutcome",
    "EndOfAttempt",
    "EndOfCommit",
    "ExecutorGauges",
    "LimiterGauges",
    "SubmissionDetails",
    "Telemetry",
    "WorkerGauges",
    "WorkflowGauges",
]

AttemptOutcome: TypeAlias = Literal["succeeded", "failed", "retried", "released"]
"""How an attempt of a document ended: with a result; for good without one; with another attempt to come; or released,
because its worker was closed, its batch was paused or ended, or its lease was lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmissionDetails:
    """A batch that is being submitted."""

    batch_id: str
    workflow: str
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptDetails:
    """An attempt of a document, or of the resolver, that begins."""

    batch_id: str
    document_id: str
    """Empty of the resolver."""
    workflow: str
    version: str
    run: int
    attempt: int
    """From 1, crashes and releases included."""
    worker_id: str
    origin: Mapping[str, str]
    """What `submitting` returned when the batch was submitted; empty where its submitter had no telemetry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivityDetails:
    """An attempt of a call of an activity that begins."""

    batch_id: str
    document_id: str
    """Empty of the resolver."""
    activity: str
    attempt: int
    """From 1; begins at 1 again in another attempt of the document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitDetails:
    """A commit of a worker's facts that begins."""

    worker_id: str
    facts: int
    claims: bool
    """Whether it asks for documents, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitOutcome:
    """What a commit has brought."""

    events: int
    claimed: int
    """Documents, and resolvers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchDetails:
    """A run of a batch that has ended by what this worker committed."""

    batch_id: str
    workflow: str
    version: str
    run: int
    state: Literal["completed", "failed", "cancelled"]
    began_at: datetime
    """When the batch was submitted."""
    ended_at: datetime
    origin: Mapping[str, str]
    """As that of an attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkflowGauges:
    """The unfinished batches of a workflow, as a worker has last read them from its store."""

    workflow: str
    batches: Mapping[str, int]
    """How many there are, by state."""
    documents: Mapping[str, int]
    """How many documents they have, by status; every status is there."""
    claim_lag_seconds: float
    """For how long the one that has waited longest has had a document to claim, and none has been claimed; 0: none has.
    As far as the worker has seen it: the time before its first reading does not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimiterGauges:
    """A limiter of which a worker has asked permits, at one moment."""

    limiter: str
    identity: int
    """The same for one limiter in all workers of the process, which share what it allows."""
    in_flight: int
    """Calls that have a permit."""
    waiting: int
    """Calls that wait for one."""
    rate: float
    """The share of the limits that is used, in (0, 1]: lowered where the provider refuses calls."""
    circuit: Literal["closed", "open", "half-open"]
    refused: int
    """Calls that the provider has refused so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorGauges:
    """The calls of activities with this `run_on=`, at one moment."""

    executor: str
    running: int
    """Calls that it runs."""
    waiting: int
    """Calls that wait: for a place in it, for a permit, or for their next attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerGauges:
    """A worker at one moment."""

    worker_id: str
    in_flight: int
    """Documents, and resolvers."""
    calls: int
    """Calls of activities, those that wait for another attempt included."""
    max_in_flight: int
    lease_seconds: float
    """How long its lease lasts yet; negative: it is lost, or about to be found so."""
    lease_age_seconds: float
    """The time since its lease was last renewed."""
    workflows: Sequence[WorkflowGauges] = ()
    """What its store had at the last reading, for `Worker(store_gauges=)`; empty before, and while the store cannot be
    read."""
    limiters: Sequence[LimiterGauges] = ()
    """Those that its calls have asked for permits so far, where they have `metrics()` as `CentralRateLimiter` has."""
    executors: Sequence[ExecutorGauges] = ()
    """All that it was given."""


class EndOfAttempt(Protocol):
    """Says how an attempt ended; an attempt of which nobody says so was cancelled from outside."""

    def __call__(self, outcome: AttemptOutcome, error_type: str | None, /) -> object:
        """Take note of the outcome, and of the type of the error where there was one."""
        ...


class EndOfCommit(Protocol):
    """Says what a commit has brought; a commit of which nobody says so has failed."""

    def __call__(self, outcome: CommitOutcome, /) -> object:
        """Take note of it."""
        ...


HOOKS: Final = ("submitting", "attempting", "calling", "committing", "batch_ended", "watch")
"""The methods of `Telemetry`."""


class Telemetry(Protocol):
    """Follows a worker's work. One object may be shared by several workers.

    The context managers are entered and left in the task that does the work, so that what they make current is current
    in the workflow and in the activity. What a hook raises is logged, once a hook, and changes nothing of the work.
    """

    def submitting(self, submission: SubmissionDetails, /) -> AbstractContextManager[Mapping[str, str]]:
        """Follow a submission; what it yields (`traceparent`, for example) is recorded with the batch."""
        ...

    def attempting(self, attempt: AttemptDetails, /) -> AbstractContextManager[EndOfAttempt]:
        """Follow an attempt of a document; it is told its outcome before it is left."""
        ...

    def calling(self, call: ActivityDetails, /) -> AbstractContextManager[object]:
        """Follow an attempt of a call of an activity; an error of the activity passes through it.

        So does `NotBegun`, an `asyncio.CancelledError`, of one that has a limiter and could not begin: it waits again,
        and is followed anew.
        """
        ...

    def committing(self, commit: CommitDetails, /) -> AbstractContextManager[EndOfCommit]:
        """Follow a commit; it is told what the commit has brought before it is left."""
        ...

    def batch_ended(self, batch: BatchDetails, /) -> object:
        """Take note of the end of a run."""
        ...

    def watch(self, gauges: Callable[[], WorkerGauges | None], /) -> Callable[[], object]:
        """Have a worker's gauges read now and then, on any thread; return what ends that.

        They are None while the worker has no session.
        """
        ...
