"""Every error of the library: one base class, a stable code each, and its data as attributes.

Messages say what happened, to which batch and document, and what to do next. They never hold payloads:
a document's text or a credential must not travel into a log because something failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from durable_batches.lifecycle.states import Counts

__all__ = [
    "ActivityDefinitionError",
    "ActivityFailedError",
    "ActivityTimeoutError",
    "BatchCancelledError",
    "BatchExistsError",
    "BatchFailedError",
    "BatchNotFoundError",
    "CheckpointMismatchError",
    "CommitUnknownError",
    "ConfigurationError",
    "CrashLoopError",
    "DocumentTimeoutError",
    "DocumentsFailedError",
    "DuplicateDocumentError",
    "DurableBatchesError",
    "FactRejectedError",
    "ForeignStageError",
    "InvalidTransitionError",
    "MachineError",
    "MissingExtraError",
    "NonRetryableError",
    "NotInActivityError",
    "PayloadError",
    "PayloadTooLargeError",
    "RetryLater",
    "SchemaTooNewError",
    "StoreCorruptError",
    "StoreFullError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "SubmissionInProgressError",
    "WorkerFencedError",
    "WorkerNotRunningError",
    "WorkflowMismatchError",
    "WorkflowNotFoundError",
]


class DurableBatchesError(Exception):
    """Base of every error that the library raises. `code` is stable: alert on it, search for it."""

    code: ClassVar[str] = "durable-batches"


# ---- how the library is used -------------------------------------------------------------------------


class ConfigurationError(DurableBatchesError, TypeError):
    """Something handed to the library cannot work; found at construction, before any work starts."""

    code = "configuration"


class MachineError(ConfigurationError):
    """A state machine's stages are missing, repeated, reserved, or not the classes of its type argument."""

    code = "machine"


class ForeignStageError(ConfigurationError):
    """An activity, or `enter_stage`, names a stage that the workflow's machine does not have."""

    code = "foreign-stage"

    def __init__(self, stage: str, workflow: str, stages: Sequence[str], activity: str | None = None) -> None:
        self.stage = stage
        self.workflow = workflow
        self.activity = activity
        subject = f"activity {activity!r} belongs to" if activity else "enter_stage() names"
        super().__init__(
            f"{subject} stage {stage!r}, which the machine of workflow {workflow!r} does not have; "
            f"its stages are {', '.join(stages)}"
        )


class ActivityDefinitionError(ConfigurationError):
    """A function cannot be recorded (a parameter or result without a usable annotation, for example)."""

    code = "activity-definition"


class MissingExtraError(DurableBatchesError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    code = "missing-extra"

    def __init__(self, extra: str, package: str) -> None:
        self.extra = extra
        self.package = package
        super().__init__(
            f"{package!r} is not installed; it comes with the extra {extra!r}: pip install 'durable-batches[{extra}]'"
        )


class NotInActivityError(DurableBatchesError, RuntimeError):
    """`current_activity()` was called outside an activity's body."""

    code = "not-in-activity"


class WorkerNotRunningError(DurableBatchesError, RuntimeError):
    """The orchestrator's worker is not running: use it inside `async with`."""

    code = "worker-not-running"


# ---- payloads ------------------------------------------------------------------------------------------


class PayloadError(DurableBatchesError, ValueError):
    """A value cannot be stored exactly: NaN, a lone surrogate, an unknown type, too deep, another type.

    `path` leads to the value inside the payload (`$` is the payload itself); the value itself is not shown.
    """

    code = "payload"

    def __init__(self, what: str, path: str, reason: str) -> None:
        self.what = what
        self.path: str = path if len(path) <= 200 else f"{path[:150]}...{path[-40:]}"
        self.reason = reason
        path = self.path
        super().__init__(f"{what} cannot be stored: at {path}: {reason}")


class PayloadTooLargeError(PayloadError):
    """An encoded payload is over the limit; store large data elsewhere and pass a reference to it."""

    code = "payload-too-large"

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(what, "$", f"{size:,} bytes encoded, over the limit of {limit:,}")


# ---- activities and workflows ----------------------------------------------------------------------------


class RetryLater(Exception):
    """Raised by an activity: try again after this delay (a provider's Retry-After). It uses an attempt."""

    def __init__(self, after: timedelta) -> None:
        self.after = after
        super().__init__(f"retry after {after.total_seconds():g} s")


class NonRetryableError(Exception):
    """Raised by an activity: no further attempt, neither of the activity nor of its document."""


class ActivityFailedError(DurableBatchesError):
    """An activity's attempts are used up; what a workflow may catch.

    Holds only recordable data, the same live and on replay, so that a workflow that caught it takes the same
    branch again. Live, `__cause__` is the original exception; on replay there is none.
    """

    code = "activity-failed"

    def __init__(
        self,
        *,
        activity: str,
        error_type: str,
        message: str,
        attempts: int,
        retryable: bool = True,
        kinds: Sequence[str] = (),
    ) -> None:
        self.activity = activity
        self.error_type = error_type
        self.message = message
        self.attempts = attempts
        self.retryable = retryable
        self.kinds: tuple[str, ...] = tuple(kinds)
        super().__init__(
            f"activity {activity!r} failed after {attempts} attempt{'s' if attempts != 1 else ''}: "
            f"{error_type}: {message}"
        )

    def caused_by(self, kind: type[BaseException]) -> bool:
        """Whether the last error was of this class or a subclass of it, also when it is only a record by now."""
        return qualified_name(kind) in self.kinds


class ActivityTimeoutError(DurableBatchesError, TimeoutError):
    """One attempt of an activity ran longer than the activity's `timeout`."""

    code = "activity-timeout"

    def __init__(self, activity: str, seconds: float) -> None:
        self.activity = activity
        self.seconds = seconds
        super().__init__(f"an attempt of activity {activity!r} ran longer than its timeout of {seconds:g} s")


class DocumentTimeoutError(DurableBatchesError, TimeoutError):
    """One attempt of a document ran longer than the batch's `document_timeout`."""

    code = "document-timeout"

    def __init__(self, batch_id: str, document_id: str, seconds: float) -> None:
        self.batch_id = batch_id
        self.document_id = document_id
        self.seconds = seconds
        super().__init__(
            f"document {document_id!r} of batch {batch_id!r} ran longer than the batch's document_timeout "
            f"of {seconds:g} s"
        )


class CheckpointMismatchError(DurableBatchesError):
    """Two calls of one attempt gave the same explicit key with different inputs."""

    code = "checkpoint-mismatch"

    def __init__(self, activity: str, batch_id: str, document_id: str) -> None:
        self.activity = activity
        self.batch_id = batch_id
        self.document_id = document_id
        super().__init__(
            f"activity {activity!r} was called twice with the same explicit key and different inputs, in document "
            f"{document_id!r} of batch {batch_id!r}; make the key tell the two calls apart"
        )


class CrashLoopError(DurableBatchesError):
    """A document's process died too often while it ran, the last time with no other document beside it."""

    code = "crash-loop"


# ---- batches -------------------------------------------------------------------------------------------


class DuplicateDocumentError(DurableBatchesError, ValueError):
    """Two documents of one batch have the same id; nothing of that submit remains."""

    code = "duplicate-document"

    def __init__(self, batch_id: str, document_id: str) -> None:
        self.batch_id = batch_id
        self.document_id = document_id
        super().__init__(
            f"two documents of batch {batch_id!r} have the id {document_id!r}; nothing was submitted. "
            "Pass document_id= with a function that gives each document an id of its own"
        )


class BatchNotFoundError(DurableBatchesError, LookupError):
    """There is no batch of this id in the store (or it was never wholly submitted)."""

    code = "batch-not-found"

    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(f"there is no batch {batch_id!r} in this store")


class BatchExistsError(DurableBatchesError, ValueError):
    """`submit(..., if_exists="error")` found a batch of this id."""

    code = "batch-exists"

    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(f"batch {batch_id!r} exists already; leave out if_exists='error' to attach to it")


class SubmissionInProgressError(DurableBatchesError):
    """Another live submitter is still loading the documents of this batch."""

    code = "submission-in-progress"

    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(
            f"batch {batch_id!r} is being loaded by another submitter that is alive; wait for it and submit again"
        )


class WorkflowNotFoundError(DurableBatchesError, LookupError):
    """No workflow of this name is known to the worker."""

    code = "workflow-not-found"

    def __init__(self, workflow: str, known: Sequence[str]) -> None:
        self.workflow = workflow
        super().__init__(f"workflow {workflow!r} is not known here; known are: {', '.join(known) or 'none'}")


class WorkflowMismatchError(DurableBatchesError, ValueError):
    """The batch of this id belongs to another workflow."""

    code = "workflow-mismatch"

    def __init__(self, batch_id: str, workflow: str, recorded: str) -> None:
        self.batch_id = batch_id
        self.workflow = workflow
        self.recorded = recorded
        super().__init__(f"batch {batch_id!r} belongs to workflow {recorded!r}, not to {workflow!r}")


class InvalidTransitionError(DurableBatchesError):
    """A move that the batch's state machine does not have."""

    code = "invalid-transition"

    def __init__(self, batch_id: str, current: str, attempted: str) -> None:
        self.batch_id = batch_id
        self.current = current
        self.attempted = attempted
        super().__init__(f"batch {batch_id!r} cannot go from {current!r} to {attempted!r}")


class BatchFailedError(DurableBatchesError):
    """The run of this batch ended FAILED."""

    code = "batch-failed"

    def __init__(self, batch_id: str, error: str, counts: Counts) -> None:
        self.batch_id = batch_id
        self.error = error
        self.counts = counts
        super().__init__(f"batch {batch_id!r} failed: {error} ({_summary(counts)})")


class BatchCancelledError(DurableBatchesError):
    """The run of this batch ended CANCELLED."""

    code = "batch-cancelled"

    def __init__(self, batch_id: str, reason: str, counts: Counts) -> None:
        self.batch_id = batch_id
        self.reason = reason
        self.counts = counts
        super().__init__(f"batch {batch_id!r} was cancelled{': ' + reason if reason else ''} ({_summary(counts)})")


class DocumentsFailedError(DurableBatchesError):
    """The batch completed, but some of its documents failed; `failures` holds the first of them."""

    code = "documents-failed"

    def __init__(self, batch_id: str, counts: Counts, failures: Sequence[tuple[str, str]]) -> None:
        self.batch_id = batch_id
        self.counts = counts
        self.failures: tuple[tuple[str, str], ...] = tuple(failures)
        shown = "".join(f"\n  {document_id}: {error}" for document_id, error in self.failures)
        more = counts.failed - len(self.failures)
        super().__init__(
            f"{counts.failed} of {counts.total} documents of batch {batch_id!r} failed:{shown}"
            + (f"\n  ... and {more} more" if more > 0 else "")
        )


# ---- the store -------------------------------------------------------------------------------------------


class StoreUnavailableError(DurableBatchesError):
    """The store cannot be reached or used now; running batches wait and go on when it returns."""

    code = "store-unavailable"


class StoreReadOnlyError(StoreUnavailableError):
    """The store can be read but not written."""

    code = "store-read-only"


class StoreFullError(StoreUnavailableError):
    """The disk, or the database's own limit, is full."""

    code = "store-full"


class StoreCorruptError(StoreUnavailableError):
    """The file is truncated, damaged, or no database at all."""

    code = "store-corrupt"


class SchemaTooNewError(StoreUnavailableError):
    """A newer library wrote this database in a way that this version must not touch."""

    code = "schema-too-new"

    def __init__(self, where: str, readable_since: str, version: str) -> None:
        self.readable_since = readable_since
        self.version = version
        super().__init__(
            f"{where} was written by a newer durable_batches and can be read since version {readable_since}; "
            f"this is {version}: upgrade the library"
        )


class FactRejectedError(DurableBatchesError):
    """The database refused the data itself of a commit (not its connection); nothing of it was written."""

    code = "fact-rejected"


class CommitUnknownError(StoreUnavailableError):
    """The reply to a commit was lost; the same number again tells."""

    code = "commit-unknown"


class WorkerFencedError(DurableBatchesError):
    """This worker was declared dead; it never writes again under this id."""

    code = "worker-fenced"

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        super().__init__(f"worker {worker_id!r} was declared dead by another one; nothing was written")


def qualified_name(kind: type[BaseException]) -> str:
    """The name under which an exception class is recorded: module and qualified name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _summary(counts: Counts) -> str:
    return (
        f"{counts.succeeded} of {counts.total} documents succeeded, {counts.failed} failed, "
        f"{counts.cancelled} cancelled"
    )
