"""What became of documents and batches: frozen, typed by the workflow's result and resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, Self, assert_never

from typing_extensions import TypeAliasType, TypeVar

from durable_batches.errors import (
    BatchCancelledError,
    BatchFailedError,
    DocumentsFailedError,
    listed,
    shortened,
)
from durable_batches.lifecycle.records import ExecutionStatus
from durable_batches.lifecycle.states import BatchId, Cancelled, Completed, Counts, Failed

__all__ = [
    "BatchResult",
    "DocumentCancelled",
    "DocumentFailure",
    "DocumentInfo",
    "DocumentSucceeded",
    "Outcome",
]

D_co = TypeVar("D_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class DocumentSucceeded(Generic[R_co]):
    """A document and its result."""

    document_id: str
    value: R_co
    tag: Literal["succeeded"] = "succeeded"


@dataclass(frozen=True, kw_only=True)
class DocumentFailure:
    """A document that failed, and why."""

    document_id: str
    error: str
    """The last error's message, of bounded length."""
    error_type: str
    """The name of its class."""
    activity: str | None
    """The activity that failed; None where the workflow itself did."""
    attempts: int
    """Attempts of the document, crashes and deploys included."""
    tag: Literal["failed"] = "failed"


@dataclass(frozen=True, kw_only=True)
class DocumentCancelled:
    """A document that had not ended when its run did."""

    document_id: str
    tag: Literal["cancelled"] = "cancelled"


Outcome = TypeAliasType("Outcome", DocumentSucceeded[R] | DocumentFailure | DocumentCancelled, type_params=(R,))
"""How a document ended: a closed union, to `match` over."""


@dataclass(frozen=True, kw_only=True)
class DocumentInfo(Generic[D_co]):
    """A document and where it is."""

    document_id: str
    document: D_co
    status: ExecutionStatus
    stage: str | None
    """The tag of the latest stage it has started; None: none yet."""
    attempts: int
    failure: DocumentFailure | None
    """Of the last attempt that failed, also while the document waits to be tried again."""
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class BatchResult(Generic[V_co]):
    """The end of a run; printed, it is a summary for people, the first failures included, without any payload.

    Attributes:
        batch_id: The batch.
        state: The state that it ended in.
        counts: Where its documents ended.
        resolution: What the resolver returned; None where the batch did not get there.
        failures: The first few failed documents.
    """

    batch_id: BatchId
    state: Completed | Failed | Cancelled
    counts: Counts
    resolution: V_co | None
    failures: Sequence[DocumentFailure] = ()

    def __str__(self) -> str:
        counts = self.counts
        parts = {"failed": counts.failed, "cancelled": counts.cancelled}
        others = "".join(f", {number} {name}" for name, number in parts.items() if number)
        failures = [(failure.document_id, f"{failure.error_type}: {failure.error}") for failure in self.failures]
        return (
            f"batch {self.batch_id!r} {self._end()}: {counts.succeeded} of {counts.total} documents succeeded{others}"
            + listed(failures, counts.failed)
        )

    def _end(self) -> str:
        match self.state:
            case Completed():
                return "completed"
            case Failed(error=error):
                return f"failed ({shortened(error)})"
            case Cancelled(reason=reason):
                return f"was cancelled ({shortened(reason)})" if reason else "was cancelled"
            case _:
                assert_never(self.state)

    @property
    def exit_code(self) -> int:
        """The end in a number, for `sys.exit`.

        0: every document succeeded. 3: the batch completed, but documents failed. 4: the batch failed. 5: it was
        cancelled. None of them is one that Python (1), a wrong command line (2) or a signal (128 and more) gives.
        """
        match self.state:
            case Completed():
                return 3 if self.counts.failed else 0
            case Failed():
                return 4
            case Cancelled():
                return 5
            case _:
                assert_never(self.state)

    @property
    def value(self) -> V_co:
        """What the resolver returned.

        Raises:
            BatchFailedError: The batch ended FAILED.
            BatchCancelledError: The batch ended CANCELLED.
        """
        match self.state:
            case Failed(error=error):
                raise BatchFailedError(self.batch_id, error, self.counts, self._shown_failures())
            case Cancelled(reason=reason):
                raise BatchCancelledError(self.batch_id, reason, self.counts)
            case Completed():
                # None is the resolution of a workflow without a resolver, whose V is None.
                return self.resolution  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
            case _:
                assert_never(self.state)

    def raise_for_failures(self) -> Self:
        """The result itself, if every document succeeded.

        Raises:
            BatchFailedError: The batch ended FAILED.
            BatchCancelledError: The batch ended CANCELLED.
            DocumentsFailedError: It completed, but documents failed; it shows the first of them.
        """
        if isinstance(self.state, Completed) and self.counts.failed:
            raise DocumentsFailedError(self.batch_id, self.counts, self._shown_failures())
        _ = self.value
        return self

    def _shown_failures(self) -> list[tuple[str, str]]:
        return [(failure.document_id, failure.error) for failure in self.failures]
