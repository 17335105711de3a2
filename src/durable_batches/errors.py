"""Every error of the library: one base class, a stable code each, and its data as attributes.

Messages say what happened, to which batch and document, and what to do next. They never hold payloads:
a document's text or a credential must not travel into a log because something failed. Each code has a page of its
own in the documentation, `errors/<code>`. The code of an error that is gone (`workflow-not-found`) is not given again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from durable_batches.version import DOCS_URL

if TYPE_CHECKING:
    from durable_batches.lifecycle.states import Counts

__all__ = [
    "ActivityDefinitionError",
    "ActivityFailedError",
    "ActivityTimeoutError",
    "BatchCancelledError",
    "BatchEndedError",
    "BatchExistsError",
    "BatchFailedError",
    "BatchNotFoundError",
    "CheckpointMismatchError",
    "CircuitOpenError",
    "CommitUnknownError",
    "ConfigurationError",
    "CrashLoopError",
    "DependencyError",
    "DocumentTimeoutError",
    "DocumentsFailedError",
    "DuplicateDocumentError",
    "DurableBatchesError",
    "ExecutorError",
    "FactRejectedError",
    "ForeignStageError",
    "InvalidTransitionError",
    "MachineError",
    "MissingExtraError",
    "NonRetryableError",
    "NotInActivityError",
    "NotInWorkflowError",
    "OldWorkersError",
    "Overloaded",
    "PayloadError",
    "PayloadTooLargeError",
    "QuotaExhausted",
    "RateLimitedError",
    "ReadOnlyClientError",
    "RetryLater",
    "SchemaTooNewError",
    "SchemaTooOldError",
    "StoreAccessError",
    "StoreCorruptError",
    "StoreFullError",
    "StoreLockedError",
    "StoreNotFoundError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "SubmissionInProgressError",
    "TransactionOpenError",
    "WorkerFencedError",
    "WorkerNotRunningError",
    "WorkflowMismatchError",
]


class DurableBatchesError(Exception):
    """Base of every error that the library raises. `code` is stable: use it in alerts and searches."""

    code: ClassVar[str] = "durable-batches"

    @property
    def help_page(self) -> str:
        """Return the address of its documentation page, with usual causes and solutions."""
        return f"{DOCS_URL}errors/{self.code}/"

    def __reduce__(self) -> tuple[Any, ...]:
        # Most take other arguments than their message, and an error must survive being sent to another process.
        return _restored, (type(self), self.args), self.__dict__


# ---- how the library is used -------------------------------------------------------------------------


class ConfigurationError(DurableBatchesError, TypeError, ValueError):
    """An argument or option cannot work, by its type or its value; found where it is given, before any work starts."""

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
        self.stages: tuple[str, ...] = tuple(stages)
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
    """An optional dependency is not installed; the message names its extra."""

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


class NotInWorkflowError(DurableBatchesError, RuntimeError):
    """`current_execution()` was called outside a workflow that an orchestrator runs, or an activity in another loop."""

    code = "not-in-workflow"


class DependencyError(DurableBatchesError):
    """A dependency could not be opened, or is used outside a worker; `__cause__` is the provider's own error."""

    code = "dependency"

    def __init__(self, provider: str, reason: str) -> None:
        self.provider = provider
        self.reason = reason
        super().__init__(f"dependency {provider!r} is not there: {reason}")


class ExecutorError(DurableBatchesError):
    """An executor takes no calls, or cannot be made; `__cause__` is its own error, where it has raised one."""

    code = "executor"

    def __init__(self, executor: str, reason: str) -> None:
        self.executor = executor
        self.reason = reason
        super().__init__(f"executor {executor!r} takes no calls: {reason}")


class ReadOnlyClientError(DurableBatchesError):
    """A command was given to `BatchClient(read_only=True)`."""

    code = "read-only-client"

    def __init__(self, command: str) -> None:
        self.command = command
        super().__init__(f"{command}() changes a batch, and this client only reads; leave out read_only=True")


class WorkerNotRunningError(DurableBatchesError, RuntimeError):
    """The orchestrator's worker is not running: use it inside `async with`."""

    code = "worker-not-running"


# ---- payloads ------------------------------------------------------------------------------------------


class PayloadError(DurableBatchesError, ValueError):
    """A value cannot be stored exactly: NaN, a lone surrogate, an unknown type, too deep, another type.

    Or a stored value cannot be read, because its type has changed. `path` is the path to the value in the payload (`$`
    is the payload itself); the value itself is not shown. `batch_id` and `document_id` are empty if the value belongs
    to none; the `document_id` of a resolver always is.
    """

    code = "payload"

    def __init__(self, what: str, path: str, reason: str, *, reading: bool = False) -> None:
        self.what = what
        self.path: str = path if len(path) <= 200 else f"{path[:150]}...{path[-40:]}"
        self.reason = reason
        self.batch_id: str = ""
        self.document_id: str = ""
        path = self.path
        super().__init__(f"{what} cannot be {'read' if reading else 'stored'}: at {path}: {reason}")

    def locate(self, batch_id: str, document_id: str) -> None:
        """Add batch and document, unless a caller nearer to the value has added them."""
        if not self.batch_id:
            self.batch_id = batch_id
            self.document_id = document_id
            super().__init__(f"{self} ({place_of(batch_id, document_id)})")


class PayloadTooLargeError(PayloadError):
    """An encoded payload exceeds the limit; store large data elsewhere and pass a reference to it."""

    code = "payload-too-large"

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            what,
            "$",
            f"{size:,} bytes encoded, over the limit of {limit:,}; keep it elsewhere, and pass a reference to it",
        )


# ---- activities and workflows ----------------------------------------------------------------------------


class RetryLater(Exception):
    """Raised by an activity: try again after this delay (a provider's Retry-After). It uses an attempt.

    Raised from the provider's own error, `raise RetryLater(delay) from error`, that one is recorded when the attempts
    are used up.
    """

    def __init__(self, after: timedelta) -> None:
        if not isinstance(after, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"RetryLater takes a timedelta, not {type(after).__name__!r}: RetryLater(timedelta(seconds=30))"
            )
        self.after = after
        super().__init__(f"retry after {after.total_seconds():g} s")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.after,), self.__dict__


class Overloaded(RetryLater):
    """Raised by an activity: the provider is there and has no room now. The call waits, and uses no attempt.

    What well-known clients raise of this kind (429, 503, "overloaded") is recognised without it.
    """


class QuotaExhausted(DurableBatchesError):
    """Raised by an activity: the account is empty, its quota is spent, or its credentials are refused.

    What well-known clients raise of this kind (402, `insufficient_quota`, 401) is recognised without it.
    The batch is paused until a call succeeds again; no document fails, and no code of the workflow sees the error.
    """

    code = "quota-exhausted"

    def __init__(self, message: str = "", *, retry_after: timedelta | None = None) -> None:
        if retry_after is not None and not isinstance(retry_after, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"retry_after of QuotaExhausted must be a timedelta, not {type(retry_after).__name__!r}"
            )
        self.retry_after = retry_after
        super().__init__(message or "the provider's account or quota is spent")


class RateLimitedError(DurableBatchesError):
    """A limiter had no permit for a call now, or not within the time that the call could wait. No call was made.

    Attributes:
        limiter: The limiter's name.
        retry_after: When there may be a permit, as far as that can be known.
    """

    code = "rate-limited"

    def __init__(self, limiter: str, retry_after: timedelta, *, max_wait: timedelta = timedelta(0)) -> None:
        self.limiter = limiter
        self.retry_after = retry_after
        within = f" within {max_wait.total_seconds():.3g} s" if max_wait else " now"
        super().__init__(
            f"the limiter {limiter!r} {self._has()}, and gives no permit{within}; "
            f"ask again in {retry_after.total_seconds():.3g} s"
        )

    def _has(self) -> str:
        return "has reached a limit"


class CircuitOpenError(RateLimitedError):
    """A limiter lets no call through, because the provider has failed again and again. No call was made."""

    code = "circuit-open"

    def _has(self) -> str:
        return "has an open circuit, because the provider fails"


class NonRetryableError(Exception):
    """Raise it in an activity to end the attempts, of the activity and of its document."""


class ActivityFailedError(DurableBatchesError):
    """An activity's attempts are used up. A workflow may catch it.

    It holds only data that can be recorded, the same live and on replay, so a workflow that catches it takes the same
    branch again. Live, `__cause__` is the original exception; on replay there is none. A resolver's `document_id` is
    empty.
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
        batch_id: str = "",
        document_id: str = "",
    ) -> None:
        self.activity = activity
        self.error_type = error_type
        self.message = message
        self.attempts = attempts
        self.retryable = retryable
        self.kinds: tuple[str, ...] = tuple(kinds)
        self.batch_id = batch_id
        self.document_id = document_id
        super().__init__(
            f"activity {activity!r} failed after {attempts} attempt{'s' if attempts != 1 else ''}"
            f"{'' if retryable else ' (this error is not tried again)'}: "
            f"{with_type(error_type, message)}"
        )
        # Not in the message, which is recorded as the document's failure and needs no such hint there.
        _note_place(self, batch_id, document_id)

    def caused_by(self, kind: type[BaseException]) -> bool:
        """Return whether the last error was of this class or a subclass, also if only its record is left."""
        return qualified_name(kind) in self.kinds


class ActivityTimeoutError(DurableBatchesError, TimeoutError):
    """One attempt of an activity ran longer than the activity's `timeout`.

    `__cause__` shows where it was at that moment, unless it ran in a thread, which continues.
    """

    code = "activity-timeout"

    def __init__(
        self, activity: str, seconds: float, *, attempt: int = 1, batch_id: str = "", document_id: str = ""
    ) -> None:
        self.activity = activity
        self.seconds = seconds
        self.attempt = attempt
        self.batch_id = batch_id
        self.document_id = document_id
        super().__init__(f"attempt {attempt} of activity {activity!r} ran longer than its timeout of {seconds:g} s")
        _note_place(self, batch_id, document_id)


class DocumentTimeoutError(DurableBatchesError, TimeoutError):
    """One attempt of a document ran longer than the batch's `document_timeout`; `__cause__` shows where it was."""

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
    """Two calls in one attempt have the same explicit key and different inputs."""

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
    """A document's process crashed too often while it ran, the last time with no other document running."""

    code = "crash-loop"

    def __init__(self, batch_id: str, document_id: str, crashes: int, activity: str | None = None) -> None:
        self.batch_id = batch_id
        self.document_id = document_id
        self.crashes = crashes
        self.activity = activity
        times = "once" if crashes == 1 else f"{crashes} times"
        if activity is not None:
            super().__init__(
                f"activity {activity!r} of {place_of(batch_id, document_id)} ended the processes of its executor, also "
                f"with no other call beside it, in {crashes} attempts; run it alone to find out what it does to the "
                "process (memory, native code)"
            )
            return
        super().__init__(
            f"the worker of {place_of(batch_id, document_id)} crashed {times} while it ran, the last time with no "
            "other document running; run it alone to find out what it does to the process (memory, native code)"
        )


# ---- batches -------------------------------------------------------------------------------------------


class DuplicateDocumentError(DurableBatchesError, ValueError):
    """Two documents of one batch have the same id; the submission leaves nothing behind."""

    code = "duplicate-document"

    def __init__(self, batch_id: str, document_id: str) -> None:
        self.batch_id = batch_id
        self.document_id = document_id
        super().__init__(
            f"two documents of batch {batch_id!r} have the id {document_id!r}; nothing was submitted. "
            "Pass document_id= with a function that gives each document an id of its own"
        )


class BatchNotFoundError(DurableBatchesError, LookupError):
    """The store has no batch with this id, or one whose submission never finished."""

    code = "batch-not-found"

    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(
            f"there is no batch {batch_id!r} in this store; check the id, and whether this is the database that it "
            "was submitted to"
        )


class TransactionOpenError(BatchNotFoundError):
    """A batch was waited for within a transaction without whose end nothing happens to it.

    Either it was submitted in that transaction, and runs only after the commit. Or the batch is there (attached to in
    that transaction, say), and the transaction keeps everybody else from writing to the database, as on SQLite.
    """

    code = "transaction-open"

    def __init__(self, batch_id: str, *, locks: bool = False) -> None:
        self.batch_id = batch_id
        why = (
            "cannot go on: the application has a transaction open in which it has called submit(), and nobody else can "
            "write to the database before its end"
            if locks
            else "was submitted in a transaction of the application that is still open, so nobody sees or runs it"
        )
        DurableBatchesError.__init__(
            self, f"batch {batch_id!r} {why}; commit the transaction, and ask for the batch then"
        )


class BatchEndedError(DurableBatchesError, ValueError):
    """A command needs a batch that has not ended: to pause it, to resume it, to change its configuration."""

    code = "batch-ended"

    def __init__(self, batch_id: str, state: str, command: str) -> None:
        self.batch_id = batch_id
        self.state = state
        self.command = command
        super().__init__(f"{command}() of batch {batch_id!r} changes nothing: it has ended, and is {state}")


class BatchExistsError(DurableBatchesError, ValueError):
    """`submit(..., if_exists="error")` found an existing batch; or `run_batch` a finished one, of other documents."""

    code = "batch-exists"

    def __init__(self, batch_id: str, advice: str = "leave out if_exists='error' to attach to it") -> None:
        self.batch_id = batch_id
        super().__init__(f"batch {batch_id!r} exists already; {advice}")


class SubmissionInProgressError(DurableBatchesError):
    """Another live submitter is still loading the documents of this batch."""

    code = "submission-in-progress"

    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(
            f"batch {batch_id!r} is being loaded by another submitter that is alive; wait for it and submit again"
        )


class WorkflowMismatchError(DurableBatchesError, ValueError):
    """The batch with this id belongs to another workflow."""

    code = "workflow-mismatch"

    def __init__(self, batch_id: str, workflow: str, recorded: str) -> None:
        self.batch_id = batch_id
        self.workflow = workflow
        self.recorded = recorded
        super().__init__(
            f"batch {batch_id!r} belongs to workflow {recorded!r}, not to {workflow!r}; ask an orchestrator of "
            f"{recorded!r} about it, or submit under another batch_id"
        )


class InvalidTransitionError(DurableBatchesError):
    """The batch's state machine does not have this transition."""

    code = "invalid-transition"

    def __init__(self, batch_id: str, current: str, attempted: str, possible: Sequence[str] = ()) -> None:
        self.batch_id = batch_id
        self.current = current
        self.attempted = attempted
        self.possible: tuple[str, ...] = tuple(possible)
        super().__init__(
            f"batch {batch_id!r} cannot go from {current!r} to {attempted!r}; "
            f"what can follow is {', '.join(possible) or 'nothing in this run'}"
        )


class BatchFailedError(DurableBatchesError):
    """The batch ended as FAILED; `failures` holds its first failed documents."""

    code = "batch-failed"

    def __init__(self, batch_id: str, error: str, counts: Counts, failures: Sequence[tuple[str, str]] = ()) -> None:
        self.batch_id = batch_id
        self.error = error
        self.counts = counts
        self.failures: tuple[tuple[str, str], ...] = tuple(failures)
        super().__init__(
            f"batch {batch_id!r} failed: {error} ({_summary(counts)})" + listed(self.failures, counts.failed)
        )


class BatchCancelledError(DurableBatchesError):
    """The batch ended as CANCELLED."""

    code = "batch-cancelled"

    def __init__(self, batch_id: str, reason: str, counts: Counts) -> None:
        self.batch_id = batch_id
        self.reason = reason
        self.counts = counts
        super().__init__(f"batch {batch_id!r} was cancelled{': ' + reason if reason else ''} ({_summary(counts)})")


class DocumentsFailedError(DurableBatchesError):
    """The batch completed, but some documents failed; `failures` holds the first of them."""

    code = "documents-failed"

    def __init__(self, batch_id: str, counts: Counts, failures: Sequence[tuple[str, str]]) -> None:
        self.batch_id = batch_id
        self.counts = counts
        self.failures: tuple[tuple[str, str], ...] = tuple(failures)
        super().__init__(
            f"{counts.failed} of {counts.total} documents of batch {batch_id!r} failed"
            + listed(self.failures, counts.failed)
        )


# ---- the store -------------------------------------------------------------------------------------------


class StoreUnavailableError(DurableBatchesError):
    """The store cannot be reached or used now; running batches wait and continue when it is back."""

    code = "store-unavailable"
    transient: ClassVar[bool] = True
    """Whether the problem usually resolves by itself; then callers that wait for a batch keep waiting."""
    locks_out_everybody: bool = False
    """Whether nobody else can write to the store either, so that no lease expires meanwhile."""


class StoreReadOnlyError(StoreUnavailableError):
    """The store can be read but not written."""

    code = "store-read-only"
    transient = False


class StoreAccessError(StoreUnavailableError):
    """The database server refuses access: the login, the database name, or a right that the role lacks."""

    code = "store-access"
    transient = False


class StoreLockedError(StoreUnavailableError):
    """Another session holds locks on rows of the store and did not release them in time; nothing was written.

    `batch_ids` are the affected batches, as far as they are known.
    """

    code = "store-locked"

    def __init__(self, where: str, batch_ids: Iterable[str] = ()) -> None:
        self.where = where
        self.batch_ids: tuple[str, ...] = tuple(batch_ids)
        about = f" of {', '.join(repr(batch_id) for batch_id in self.batch_ids)}" if self.batch_ids else ""
        super().__init__(
            f"rows{about} in the database {where} are locked by another session; find the one that is idle in a "
            "transaction (pg_stat_activity), and end it"
        )


class StoreFullError(StoreUnavailableError):
    """The disk is full, or the database has reached its size limit."""

    code = "store-full"
    transient = False


class StoreCorruptError(StoreUnavailableError):
    """The file is truncated, damaged, or not a database."""

    code = "store-corrupt"
    transient = False


class SchemaTooNewError(StoreUnavailableError):
    """A newer version of the library has upgraded this database, so this version must not use it."""

    code = "schema-too-new"
    transient = False

    def __init__(self, where: str, readable_since: str, version: str) -> None:
        self.where = where
        self.readable_since = readable_since
        self.version = version
        super().__init__(
            f"{where} was written by a newer durable_batches and can be read since version {readable_since}; "
            f"this is {version}: upgrade the library"
        )


class OldWorkersError(StoreUnavailableError):
    """The database cannot be upgraded while workers of an older library run, which would not understand it."""

    code = "old-workers"
    transient = False

    def __init__(self, where: str, workers: Mapping[str, int], seconds: float, before: str) -> None:
        self.where = where
        self.workers = workers
        """Their ids, with the ids of their processes."""
        self.seconds = seconds
        """When the last of their leases expires, unless it is renewed."""
        self.before = before
        shown = ", ".join(f"{worker} (process {pid})" for worker, pid in sorted(workers.items()))
        super().__init__(
            f"{where} is to be upgraded, and workers of a durable_batches before {before} are alive: {shown}; stop "
            f"them first, and where one was killed, wait {math.ceil(seconds)} s until its lease has expired"
        )


class SchemaTooOldError(StoreUnavailableError):
    """The database's schema lacks a migration, and reading it applies none."""

    code = "schema-too-old"
    transient = False

    def __init__(self, where: str, version: int, needed: int) -> None:
        self.where = where
        self.version = version
        self.needed = needed
        super().__init__(
            f"the schema of {where} has version {version}, and this library reads version {needed}; start a worker "
            "or run `durable-batches migrate`, or read it with the library that its workers have"
        )


class StoreNotFoundError(StoreUnavailableError):
    """There is no store here to be read: no such file, or none of the store's tables. Nothing was created."""

    code = "store-not-found"
    transient = False

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}; nothing was created: check that this is where the workers have their store, which the first "
            "of them creates"
        )


class FactRejectedError(DurableBatchesError):
    """The database refused the data of a commit, as opposed to a connection failure; nothing of it was written."""

    code = "fact-rejected"


class CommitUnknownError(StoreUnavailableError):
    """The reply to a commit was lost; repeating the commit under its number gives the outcome."""

    code = "commit-unknown"


class WorkerFencedError(DurableBatchesError):
    """This worker lost its lease; it never writes again under this id."""

    code = "worker-fenced"

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        super().__init__(
            f"worker {worker_id!r} lost its lease, which was not renewed in time; nothing was written, and other "
            "workers may continue its documents"
        )


def qualified_name(kind: type[BaseException]) -> str:
    """Return the name under which an exception class is recorded: module and qualified name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def with_type(error_type: str, message: str) -> str:
    """Put the name of an error's class before its message, unless the message says it.

    As a whole, before a colon, or at the end: so does the failure of an activity, or an error made from another one.
    """
    if not error_type or message in ("", error_type):
        return message or error_type
    said = f": {error_type}"
    is_said = message.startswith(f"{error_type}: ") or f"{said}: " in message or message.endswith(said)
    return message if is_said else f"{error_type}: {message}"


def place_of(batch_id: str, document_id: str) -> str:
    """Describe the document, or the resolver, which has an empty id."""
    return f"document {document_id!r} of batch {batch_id!r}" if document_id else f"the resolver of batch {batch_id!r}"


def _note_place(error: BaseException, batch_id: str, document_id: str) -> None:
    if batch_id:
        error.add_note(f"in {place_of(batch_id, document_id)}")


def _restored(kind: type[DurableBatchesError], args: tuple[Any, ...]) -> DurableBatchesError:
    error = kind.__new__(kind)
    error.args = args
    return error


_LONGEST_ID = 60
_LONGEST_MESSAGE = 200


def listed(failures: Sequence[tuple[str, str]], failed: int) -> str:
    """List the first failed documents (id and error), one line of bounded length each, and the number of others."""
    shown = "".join(f"\n  {shortened(document_id, _LONGEST_ID)}: {shortened(error)}" for document_id, error in failures)
    more = failed - len(failures)
    if not shown:
        return ""
    return f":{shown}" + (f"\n  ... and {more} more; results() of the orchestrator has them all" if more > 0 else "")


def shortened(text: str, limit: int = _LONGEST_MESSAGE) -> str:
    """Put a text on one line of bounded length, without the control characters of terminals."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _summary(counts: Counts) -> str:
    return (
        f"{counts.succeeded} of {counts.total} documents succeeded, {counts.failed} failed, "
        f"{counts.cancelled} cancelled"
    )
