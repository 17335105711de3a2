"""Results of documents and batches: frozen, typed by the workflow's result and resolution."""

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
    with_type,
)
from durable_batches.lifecycle.records import ExecutionStatus
from durable_batches.lifecycle.spending import NO_SPENDING, Spending
from durable_batches.lifecycle.states import BatchId, Cancelled, Completed, Counts, Failed
from durable_batches.markup import block, numbers, table

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
    """A failed document and its error."""

    document_id: str
    error: str
    """The last error's message, of bounded length."""
    error_type: str
    """The name of the error's class."""
    activity: str | None
    """The activity that failed; None if the workflow itself failed."""
    attempts: int
    """The number of attempts of the document, including crashes and deployments."""
    tag: Literal["failed"] = "failed"


@dataclass(frozen=True, kw_only=True)
class DocumentCancelled:
    """A document that was unfinished when its batch ended."""

    document_id: str
    tag: Literal["cancelled"] = "cancelled"


Outcome = TypeAliasType("Outcome", DocumentSucceeded[R] | DocumentFailure | DocumentCancelled, type_params=(R,))
"""The outcome of a document: a closed union, to `match` on."""


@dataclass(frozen=True, kw_only=True)
class DocumentInfo(Generic[D_co]):
    """A document and its status."""

    document_id: str
    document: D_co
    status: ExecutionStatus
    stage: str | None
    """The tag of the latest stage that it has started; None if it has started none."""
    attempts: int
    failure: DocumentFailure | None
    """The failure of the last failed attempt, also while the document waits for a retry."""
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class BatchResult(Generic[V_co]):
    """The result of a batch. `str()` gives a summary with the first failures, without payloads.

    Attributes:
        batch_id: The batch's id.
        state: The final state.
        counts: The number of documents by outcome.
        resolution: The resolver's return value; None if there is none.
        failures: The first few failed documents.
        spent: What calls of the batch have spent (`ActivityContext.spend`), over all of its runs.
    """

    batch_id: BatchId
    state: Completed | Failed | Cancelled
    counts: Counts
    resolution: V_co | None
    failures: Sequence[DocumentFailure] = ()
    spent: Spending = NO_SPENDING

    def __str__(self) -> str:
        counts = self.counts
        parts = {"failed": counts.failed, "cancelled": counts.cancelled}
        others = "".join(f", {number} {name}" for name, number in parts.items() if number)
        failures = [(failure.document_id, with_type(failure.error_type, failure.error)) for failure in self.failures]
        return (
            f"batch {self.batch_id!r} {self._end()}: {counts.succeeded} of {counts.total} documents succeeded{others}"
            + listed(failures, counts.failed)
        )

    def _repr_html_(self) -> str:
        """Return it as notebooks show it: without payloads."""
        return block(
            f"batch {self.batch_id} {self._end()}: {self.counts.succeeded} of {self.counts.total} documents succeeded",
            numbers(vars(self.counts)),
            table(
                ("failed", "error", "activity", "attempts"),
                [
                    (
                        failure.document_id,
                        with_type(failure.error_type, shortened(failure.error)),
                        failure.activity or "",
                        failure.attempts,
                    )
                    for failure in self.failures
                ],
            ),
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
        """The exit code for `sys.exit`.

        0: every document succeeded. 3: the batch completed, but documents failed. 4: the batch failed. 5: it was
        cancelled. They differ from those of Python (1), a wrong command line (2) and signals (128 and more).
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
        """The resolver's return value.

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
                # A workflow without a resolver has the resolution None, and its V is None.
                return self.resolution  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
            case _:
                assert_never(self.state)

    def raise_for_failures(self) -> Self:
        """Return the result itself if every document succeeded.

        Raises:
            BatchFailedError: The batch ended FAILED.
            BatchCancelledError: The batch ended CANCELLED.
            DocumentsFailedError: The batch completed, but documents failed; it lists the first of them.
        """
        if isinstance(self.state, Completed) and self.counts.failed:
            raise DocumentsFailedError(self.batch_id, self.counts, self._shown_failures())
        _ = self.value
        return self

    def _shown_failures(self) -> list[tuple[str, str]]:
        return [(failure.document_id, failure.error) for failure in self.failures]
