"""Pack the fields of each event as they are stored: one function an event, with the fields' names and types.

They are in the order of the event's class (`events.py`), which reads them by their place. Moments are in
microseconds here, counts are a list; a test holds functions and classes together.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from durable_batches.lifecycle.records import Micros
from durable_batches.lifecycle.states import Counts

__all__ = [
    "EventData",
    "batch_cancelled",
    "batch_completed",
    "batch_created",
    "batch_failed",
    "document_completed",
    "document_failed",
    "document_released",
    "document_retrying",
    "document_started",
    "resolution_completed",
    "resolution_failed",
    "resolution_started",
    "stage_progress",
    "state_changed",
]

EventData: TypeAlias = tuple[str, tuple[object, ...]]
"""An event's tag and its own fields."""


def batch_created(*, workflow: str, version: str, total: int) -> EventData:
    return "batch_created", (workflow, version, total)


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


def document_released(*, document_id: str, reason: Literal["shutdown", "crash"], crashes: int) -> EventData:
    return "document_released", (document_id, reason, crashes)


def document_failed(*, document_id: str, error: str, percentage: float) -> EventData:
    return "document_failed", (document_id, storable(error), percentage)


def resolution_started(*, attempt: int) -> EventData:
    return "resolution_started", (attempt,)


def resolution_failed(*, error: str, due: Micros | None) -> EventData:
    return "resolution_failed", (storable(error), due)


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
