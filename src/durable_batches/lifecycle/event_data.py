"""Pack the fields of each event as they are stored: one function an event, with the fields' names and types.

They are in the order of the event's class (`events.py`), which reads them by their place. Moments are in
microseconds here, counts are a list; a test holds functions and classes together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from pydantic import JsonValue

from durable_batches.lifecycle.events import PauseReason, PauseScope, ReleaseReason
from durable_batches.lifecycle.records import Micros
from durable_batches.lifecycle.states import Counts

__all__ = [
    "EventData",
    "batch_cancelled",
    "batch_completed",
    "batch_created",
    "batch_failed",
    "batch_paused",
    "batch_redriven",
    "batch_resumed",
    "batch_sealed",
    "batch_updated",
    "document_completed",
    "document_failed",
    "document_released",
    "document_retrying",
    "document_started",
    "document_suspended",
    "document_woken",
    "documents_added",
    "provider_job_changed",
    "resolution_completed",
    "resolution_failed",
    "resolution_released",
    "resolution_started",
    "stage_progress",
    "state_changed",
]

EventData: TypeAlias = tuple[str, tuple[object, ...]]
"""An event's tag and its own fields."""


def batch_created(*, workflow: str, version: str, total: int, open: bool = False) -> EventData:
    return "batch_created", (workflow, version, total, open) if open else (workflow, version, total)


def batch_paused(*, reason: PauseReason, note: str, until: Micros | None, running: PauseScope = "calls") -> EventData:
    fields = reason, storable(note), until
    return "batch_paused", fields if running == "calls" else (*fields, running)


def batch_resumed(*, reason: PauseReason) -> EventData:
    return "batch_resumed", (reason,)


def batch_redriven(*, run: int, counts: Counts) -> EventData:
    return "batch_redriven", (run, _fields_of(counts))


def batch_updated(*, changes: Mapping[str, JsonValue]) -> EventData:
    return "batch_updated", (changes,)


def documents_added(*, count: int, total: int, percentage: float) -> EventData:
    return "documents_added", (count, total, percentage)


def batch_sealed(*, total: int) -> EventData:
    return "batch_sealed", (total,)


def state_changed(*, previous: str, state: str) -> EventData:
    return "state_changed", (previous, state)


def document_started(*, document_id: str, attempt: int) -> EventData:
    return "document_started", (document_id, attempt)


def stage_progress(*, document_id: str, stage: str, current: int, total: int, percentage: float) -> EventData:
    return "stage_progress", (document_id, stage, current, total, percentage)


def document_completed(*, document_id: str, percentage: float, unused_checkpoints: int) -> EventData:
    return "document_completed", (document_id, percentage, unused_checkpoints)


def document_retrying(*, document_id: str, failures: int, due: Micros, error: str) -> EventData:
    return "document_retrying", (document_id, failures, due, storable(error))


def document_released(*, document_id: str, reason: ReleaseReason, crashes: int) -> EventData:
    return "document_released", (document_id, reason, crashes)


def document_failed(*, document_id: str, error: str, percentage: float, fingerprint: str = "") -> EventData:
    fields = (document_id, storable(error), percentage)
    return "document_failed", (*fields, fingerprint) if fingerprint else fields


def document_suspended(*, document_id: str, waits_for: Sequence[str], due: Micros | None) -> EventData:
    return "document_suspended", (document_id, waits_for, due)


def document_woken(*, document_id: str, name: str) -> EventData:
    return "document_woken", (document_id, name)


def provider_job_changed(
    *, provider: str, job: int, state: str, requests: int, succeeded: int, failed: int
) -> EventData:
    return "provider_job_changed", (provider, job, state, requests, succeeded, failed)


def resolution_started(*, attempt: int) -> EventData:
    return "resolution_started", (attempt,)


def resolution_failed(*, error: str, due: Micros | None) -> EventData:
    return "resolution_failed", (storable(error), due)


def resolution_released(*, reason: ReleaseReason) -> EventData:
    return "resolution_released", (reason,)


def resolution_completed() -> EventData:
    return "resolution_completed", ()


def batch_completed(*, counts: Counts) -> EventData:
    return "batch_completed", (_fields_of(counts),)


def batch_failed(*, counts: Counts, error: str) -> EventData:
    return "batch_failed", (_fields_of(counts), storable(error))


def batch_cancelled(*, counts: Counts, reason: str) -> EventData:
    return "batch_cancelled", (_fields_of(counts), storable(reason))


def storable(text: str) -> str:
    """Replace what UTF-8 cannot hold: no plan fails because of a message."""
    return text.encode(errors="replace").decode()


def _fields_of(counts: Counts) -> tuple[int, ...]:
    return (
        counts.total,
        counts.pending,
        counts.running,
        counts.waiting,
        counts.succeeded,
        counts.failed,
        counts.cancelled,
    )
