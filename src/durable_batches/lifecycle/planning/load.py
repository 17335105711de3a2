"""Make the rows of documents that are being loaded."""

from __future__ import annotations

from durable_batches.lifecycle.records import NOW, RESOLVER_POSITION, ExecutionRecord, Micros, NewDocument
from durable_batches.lifecycle.states import BatchId

__all__ = ["new_execution"]


def new_execution(batch_id: BatchId, document: NewDocument, now: Micros) -> ExecutionRecord:
    """Make the execution of a document (or, at `RESOLVER_POSITION`, of the resolver) that is being loaded."""
    resolver = document.position == RESOLVER_POSITION
    return ExecutionRecord(
        batch_id=batch_id,
        position=document.position,
        document_id=document.document_id,
        run=1,
        status="waiting" if resolver else "pending",
        mark=-1,
        attempt=0,
        failures=0,
        crashes=0,
        alone=False,
        owner=None,
        due=None if resolver else NOW,
        updated_at=now,
    )
