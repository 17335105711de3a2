"""Documents as they are stored, for readers that do not have their types."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from durable_batches.lifecycle.batch_core import definition_of
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import BatchRecord, DocumentRecord, ExecutionStatus
from durable_batches.reading.notes import WorkerNotes
from durable_batches.reading.results import failure_of, status_of
from durable_batches.runtime.results import DocumentFailure

__all__ = ["RawDocument", "raw_document", "stage_of"]


@dataclass(frozen=True, kw_only=True)
class RawDocument:
    """A document as it is stored: for readers that do not have its types.

    The fields are those of `DocumentInfo`, with JSON in the place of the types, and more.
    """

    document_id: str
    position: int
    """Its ordinal in the submission, from 0."""
    status: ExecutionStatus
    stage: str | None
    """The tag of the latest stage that it has started; None if it has started none."""
    attempts: int
    document: str | None
    """JSON; None where payloads were not asked for."""
    result: str | None
    """JSON; None where payloads were not asked for, or it has not succeeded."""
    failure: DocumentFailure | None
    """The failure of the last failed attempt, also while the document waits for a retry."""
    updated_at: datetime
    """When it last changed its status or its stage."""
    worker: str | None
    """The id of the worker that runs it; None: none does."""
    activity: str | None
    """The activity that its worker last said it runs (of several, the one that began first), up to a third of a lease
    ago: 10 s by default. None: it runs none, or that is not known."""
    activity_since: datetime | None
    """When the activity's present attempt began, by the worker's clock."""
    due: datetime | None
    """When it will be claimed again (a retry); None: at once, or not by the clock."""


def raw_document(batch: BatchRecord, document: DocumentRecord, *, payloads: bool, notes: WorkerNotes) -> RawDocument:
    """Make the view of a document's record.

    Args:
        batch: The record of its batch.
        document: Its own.
        payloads: Whether it has the document and its result.
        notes: What its worker says.
    """
    execution = document.execution
    runs = notes.activity_of(execution)
    status = status_of(execution, ended=batch.ended)
    outcome = document.outcome
    return RawDocument(
        document_id=execution.document_id,
        position=execution.position,
        status=status,
        stage=stage_of(batch, document),
        attempts=execution.attempt,
        document=document.input.decode() if payloads else None,
        result=outcome.decode() if payloads and outcome is not None and status == "succeeded" else None,
        failure=failure_of(document) if outcome is not None and status != "succeeded" else None,
        updated_at=from_micros(execution.updated_at),
        worker=execution.owner,
        activity=None if runs is None else runs.activity,
        activity_since=None if runs is None else from_micros(runs.since),
        due=from_micros(execution.due) if status == "waiting" and execution.due else None,
    )


def stage_of(batch: BatchRecord, document: DocumentRecord) -> str | None:
    """Return the tag of the latest stage that a document has started; None if it has started none."""
    mark = document.execution.mark
    return definition_of(batch).stages[mark] if mark >= 0 else None
