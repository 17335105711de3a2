"""What `--json` prints of batches, documents and events. The keys are stable; new ones may come."""

from __future__ import annotations

from durable_batches.cli.output import RawJson
from durable_batches.lifecycle.events import BatchEvent
from durable_batches.lifecycle.progress import BatchSnapshot
from durable_batches.lifecycle.states import Cancelled, Failed, Stage
from durable_batches.reading.documents import RawDocument

__all__ = ["batch_json", "document_json", "event_json", "result_json"]


def batch_json(batch: BatchSnapshot[Stage]) -> dict[str, object]:
    """Return a batch as an object."""
    state = batch.state
    return {
        "batch_id": batch.batch_id,
        "workflow": batch.workflow,
        "version": batch.version,
        "state": state.tag,
        "paused": batch.paused,
        "pauses": batch.pauses,
        "error": state.error if isinstance(state, Failed) else None,
        "reason": state.reason if isinstance(state, Cancelled) else None,
        "counts": batch.counts,
        "stages": batch.stages,
        "percentage": batch.percentage,
        "documents_per_second": batch.documents_per_second,
        "eta": batch.eta,
        "run": batch.run,
        "seq": batch.seq,
        "created_at": batch.created_at,
        "started_at": batch.started_at,
        "ended_at": batch.ended_at,
        "metadata": batch.metadata,
        "long_calls": batch.long_calls,
        "spent": batch.spent,
    }


def document_json(document: RawDocument, *, payloads: bool) -> dict[str, object]:
    """Return a document as an object; without `payloads`, the document itself and its result are left out."""
    failure = document.failure
    found: dict[str, object] = {
        "document_id": document.document_id,
        "status": document.status,
        "stage": document.stage,
        "attempts": document.attempts,
        "updated_at": document.updated_at,
        "worker": document.worker,
        "activity": document.activity,
        "activity_since": document.activity_since,
        "due": document.due,
        "failure": None
        if failure is None
        else {
            "error": failure.error,
            "error_type": failure.error_type,
            "activity": failure.activity,
            "attempts": failure.attempts,
        },
    }
    if payloads:
        found["document"] = _raw(document.document)
        found["result"] = _raw(document.result)
    return found


def event_json(event: BatchEvent) -> dict[str, object]:
    """Return an event as an object: what all events have, and the fields of its own."""
    return {"seq": event.seq, "at": event.at, "tag": event.tag, **vars(event)}


def result_json(document: RawDocument) -> dict[str, object]:
    """Return a succeeded document's id and result as an object."""
    return {"document_id": document.document_id, "result": _raw(document.result)}


def _raw(payload: str | None) -> RawJson | None:
    return None if payload is None else RawJson(payload)
