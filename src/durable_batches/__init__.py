"""Durable batches: thousands of documents through slow, expensive, unreliable steps, each result paid for once.

Everything that most programs need is exported here. `durable_batches.stores` has the persistence protocol,
`durable_batches.testing` tools for tests, and `durable_batches.extraction` a complete workflow. All other modules are
private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_batches import stores
from durable_batches.errors import (
    ActivityDefinitionError,
    ActivityFailedError,
    ActivityTimeoutError,
    BatchCancelledError,
    BatchEndedError,
    BatchExistsError,
    BatchFailedError,
    BatchNotFoundError,
    CheckpointMismatchError,
    CircuitOpenError,
    ConfigurationError,
    CrashLoopError,
    DependencyError,
    DocumentsFailedError,
    DocumentTimeoutError,
    DuplicateDocumentError,
    DurableBatchesError,
    ExecutorError,
    ForeignStageError,
    InvalidTransitionError,
    MachineError,
    MissingExtraError,
    NonRetryableError,
    NotInActivityError,
    NotInWorkflowError,
    OldWorkersError,
    Overloaded,
    PayloadError,
    PayloadTooLargeError,
    QuotaExhausted,
    RateLimitedError,
    ReadOnlyClientError,
    RetryLater,
    SchemaTooNewError,
    SchemaTooOldError,
    StoreAccessError,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    SubmissionInProgressError,
    TransactionOpenError,
    WorkerFencedError,
    WorkerNotRunningError,
    WorkflowMismatchError,
)
from durable_batches.lifecycle.amounts import Amount
from durable_batches.lifecycle.budget import Budget
from durable_batches.lifecycle.config import BatchConfig, ConfigChanges
from durable_batches.lifecycle.events import (
    BatchCancelled,
    BatchCompleted,
    BatchCreated,
    BatchEvent,
    BatchFailed,
    BatchPaused,
    BatchRedriven,
    BatchResumed,
    BatchSealed,
    BatchUpdated,
    DocumentCompleted,
    DocumentFailed,
    DocumentReleased,
    DocumentRetrying,
    DocumentsAdded,
    DocumentStarted,
    DocumentSuspended,
    DocumentWoken,
    PauseReason,
    PauseScope,
    ProviderJobChanged,
    ReleaseReason,
    ResolutionCompleted,
    ResolutionFailed,
    ResolutionReleased,
    ResolutionStarted,
    StageProgress,
    StateChanged,
    UnknownEvent,
)
from durable_batches.lifecycle.machine import EXTRACTION, BatchStateMachine
from durable_batches.lifecycle.policies import (
    AbortAll,
    ContinueOnFailure,
    FailurePolicy,
    RetryFailed,
)
from durable_batches.lifecycle.progress import BatchSnapshot, LongCalls, Pause, StageCount
from durable_batches.lifecycle.spending import ModelSpending, Spending
from durable_batches.lifecycle.states import (
    Assembling,
    BatchId,
    BatchState,
    Cancelled,
    Chunking,
    Completed,
    Counts,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    ExtractionStage,
    Failed,
    Pending,
    Resolving,
    Stage,
)
from durable_batches.orchestrator.orchestrator import BatchOrchestrator
from durable_batches.reading.client import BatchClient
from durable_batches.reading.documents import RawDocument
from durable_batches.reading.failures import ErrorDigest, ErrorGroup
from durable_batches.reading.reasons import (
    BatchEnded,
    BlockedLoop,
    DamagedBatch,
    DeadWorker,
    Explanation,
    IsolatedDocument,
    NoWorker,
    PausedBatch,
    QueuedDocuments,
    Reason,
    ResolverStatus,
    RunningDocuments,
    SuspendedDocuments,
    ThrottledLimiter,
    UnselectedBatch,
)
from durable_batches.runtime.activity import DurableActivity, durable_activity, map_activity
from durable_batches.runtime.classify import ErrorClassifier, ErrorKind, Verdict, default_classifier
from durable_batches.runtime.context import ActivityContext, ExecutionContext, current_activity, current_execution
from durable_batches.runtime.dependencies import dependency
from durable_batches.runtime.resources import ActivityReport, RunStats
from durable_batches.runtime.results import (
    BatchResult,
    DocumentCancelled,
    DocumentFailure,
    DocumentInfo,
    DocumentSucceeded,
    Outcome,
)
from durable_batches.runtime.retry_policy import RetryPolicy
from durable_batches.runtime.workflow import (
    Resolver,
    Results,
    Workflow,
    durable_now,
    durable_uuid,
    enter_stage,
    workflow,
)
from durable_batches.stores.protocol import Store
from durable_batches.version import VERSION
from durable_batches.worker.health import WorkerHealth
from durable_batches.worker.selection import BatchFilter
from durable_batches.worker.worker import Worker

if TYPE_CHECKING:
    from durable_batches.script.runner import run_batch
    from durable_batches.stores.memory import MemoryStore
    from durable_batches.stores.postgres import PostgresStore
    from durable_batches.stores.sqlite import SQLiteStore

__all__ = [
    "EXTRACTION",
    "AbortAll",
    "ActivityContext",
    "ActivityDefinitionError",
    "ActivityFailedError",
    "ActivityReport",
    "ActivityTimeoutError",
    "Amount",
    "Assembling",
    "BatchCancelled",
    "BatchCancelledError",
    "BatchClient",
    "BatchCompleted",
    "BatchConfig",
    "BatchCreated",
    "BatchEnded",
    "BatchEndedError",
    "BatchEvent",
    "BatchExistsError",
    "BatchFailed",
    "BatchFailedError",
    "BatchFilter",
    "BatchId",
    "BatchNotFoundError",
    "BatchOrchestrator",
    "BatchPaused",
    "BatchRedriven",
    "BatchResult",
    "BatchResumed",
    "BatchSealed",
    "BatchSnapshot",
    "BatchState",
    "BatchStateMachine",
    "BatchUpdated",
    "BlockedLoop",
    "Budget",
    "Cancelled",
    "CheckpointMismatchError",
    "Chunking",
    "CircuitOpenError",
    "Completed",
    "ConfigChanges",
    "ConfigurationError",
    "ContinueOnFailure",
    "Counts",
    "CrashLoopError",
    "DamagedBatch",
    "DeadWorker",
    "DependencyError",
    "DocumentCancelled",
    "DocumentCompleted",
    "DocumentFailed",
    "DocumentFailure",
    "DocumentInfo",
    "DocumentReleased",
    "DocumentRetrying",
    "DocumentStarted",
    "DocumentSucceeded",
    "DocumentSuspended",
    "DocumentTimeoutError",
    "DocumentWoken",
    "DocumentsAdded",
    "DocumentsFailedError",
    "DuplicateDocumentError",
    "DurableActivity",
    "DurableBatchesError",
    "ErrorClassifier",
    "ErrorDigest",
    "ErrorGroup",
    "ErrorKind",
    "ExecutionContext",
    "ExecutorError",
    "Explanation",
    "ExtractingEntities",
    "ExtractingMentions",
    "ExtractingRelations",
    "ExtractionStage",
    "Failed",
    "FailurePolicy",
    "ForeignStageError",
    "InvalidTransitionError",
    "IsolatedDocument",
    "LongCalls",
    "MachineError",
    "MemoryStore",
    "MissingExtraError",
    "ModelSpending",
    "NoWorker",
    "NonRetryableError",
    "NotInActivityError",
    "NotInWorkflowError",
    "OldWorkersError",
    "Outcome",
    "Overloaded",
    "Pause",
    "PauseReason",
    "PauseScope",
    "PausedBatch",
    "PayloadError",
    "PayloadTooLargeError",
    "Pending",
    "PostgresStore",
    "ProviderJobChanged",
    "QueuedDocuments",
    "QuotaExhausted",
    "RateLimitedError",
    "RawDocument",
    "ReadOnlyClientError",
    "Reason",
    "ReleaseReason",
    "ResolutionCompleted",
    "ResolutionFailed",
    "ResolutionReleased",
    "ResolutionStarted",
    "Resolver",
    "ResolverStatus",
    "Resolving",
    "Results",
    "RetryFailed",
    "RetryLater",
    "RetryPolicy",
    "RunStats",
    "RunningDocuments",
    "SQLiteStore",
    "SchemaTooNewError",
    "SchemaTooOldError",
    "Spending",
    "Stage",
    "StageCount",
    "StageProgress",
    "StateChanged",
    "Store",
    "StoreAccessError",
    "StoreCorruptError",
    "StoreFullError",
    "StoreLockedError",
    "StoreNotFoundError",
    "StoreReadOnlyError",
    "StoreUnavailableError",
    "SubmissionInProgressError",
    "SuspendedDocuments",
    "ThrottledLimiter",
    "TransactionOpenError",
    "UnknownEvent",
    "UnselectedBatch",
    "Verdict",
    "Worker",
    "WorkerFencedError",
    "WorkerHealth",
    "WorkerNotRunningError",
    "Workflow",
    "WorkflowMismatchError",
    "__version__",
    "current_activity",
    "current_execution",
    "default_classifier",
    "dependency",
    "durable_activity",
    "durable_now",
    "durable_uuid",
    "enter_stage",
    "map_activity",
    "run_batch",
    "workflow",
]


__version__ = VERSION
"""The version of the installed package."""


if not TYPE_CHECKING:  # to checkers, it would make every name one of the module's
    # The distribution has a pytest plugin, and pytest warns of its packages that were imported before it could
    # rewrite their assertions, unless their docstring opts out.
    __doc__ = f"{__doc__}\nPYTEST_DONT_REWRITE\n"

    if "PostgresStore" not in stores.__all__:  # its extra is not installed
        __all__.remove("PostgresStore")

    def __getattr__(name: str) -> object:
        # A store, and the driver of its database, is imported only where it is used; so is what scripts need.
        if name in ("MemoryStore", "PostgresStore", "SQLiteStore"):
            return getattr(stores, name)
        if name == "run_batch":
            from durable_batches.script.runner import run_batch

            return run_batch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
