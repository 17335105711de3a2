"""The events of a batch's history: a closed union of frozen dataclasses.

Each has its `batch_id`, its sequence number `seq` (1, 2, 3, ... without a gap, in commit order), the moment `at`
(aware UTC, on the store's clock, never before that of the previous event) and a literal `tag`. They are stored as
`EventRecord`: the own fields of the event, in their order here, as a JSON array; a field that is added later comes last
and has a default.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, get_args

from durable_batches.lifecycle.primitives import Value, from_micros
from durable_batches.lifecycle.records import EventRecord
from durable_batches.lifecycle.states import BatchId, Counts

__all__ = [
    "BatchCancelled",
    "BatchCompleted",
    "BatchCreated",
    "BatchEvent",
    "BatchFailed",
    "DocumentCompleted",
    "DocumentFailed",
    "DocumentReleased",
    "DocumentRetrying",
    "DocumentStarted",
    "ResolutionCompleted",
    "ResolutionFailed",
    "ResolutionStarted",
    "StageProgress",
    "StateChanged",
    "decode_event",
]


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class _Event(Value):
    """The fields that every event has."""

    batch_id: BatchId
    seq: int
    at: datetime


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchCreated(_Event):
    """The batch was sealed: all of its documents are stored, and it may run."""

    workflow: str
    version: str
    total: int
    tag: Literal["batch_created"] = "batch_created"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class StateChanged(_Event):
    """The batch went from one state to another; both are tags."""

    previous: str
    state: str
    tag: Literal["state_changed"] = "state_changed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentStarted(_Event):
    """A worker claimed the document: its attempt of this number (1 is the first) begins."""

    document_id: str
    attempt: int
    tag: Literal["document_started"] = "document_started"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class StageProgress(_Event):
    """A document entered a stage; `current` of `total` documents have entered it by now."""

    document_id: str
    stage: str
    current: int
    total: int
    percentage: float
    """The percentage of the whole batch, 0 to 100; never decreases within a run."""
    tag: Literal["stage_progress"] = "stage_progress"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentCompleted(_Event):
    """A document's result is recorded."""

    document_id: str
    percentage: float
    unused_checkpoints: int = 0
    """Recorded results that the last attempt did not request."""
    tag: Literal["document_completed"] = "document_completed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentRetrying(_Event):
    """A document failed and will run again, from its checkpoints, at `due`. It waits without holding a slot."""

    document_id: str
    failures: int
    """Failed attempts so far, this one included."""
    due: datetime
    error: str
    tag: Literal["document_retrying"] = "document_retrying"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentReleased(_Event):
    """A running document was released, and waits for a worker again.

    `reason` is "shutdown" (a clean release) or "crash" (its worker died).
    """

    document_id: str
    reason: Literal["shutdown", "crash"]
    crashes: int
    tag: Literal["document_released"] = "document_released"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentFailed(_Event):
    """A document failed, and is not retried."""

    document_id: str
    error: str
    percentage: float
    tag: Literal["document_failed"] = "document_failed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResolutionStarted(_Event):
    """A worker claimed the resolver; attempt 1 is the first."""

    attempt: int
    tag: Literal["resolution_started"] = "resolution_started"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResolutionFailed(_Event):
    """An attempt of the resolver failed or its worker died; it runs again at `due`, unless that is None."""

    error: str
    due: datetime | None
    tag: Literal["resolution_failed"] = "resolution_failed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResolutionCompleted(_Event):
    """The resolver's result is recorded."""

    tag: Literal["resolution_completed"] = "resolution_completed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchCompleted(_Event):
    """The batch ended as COMPLETED; its last event."""

    counts: Counts
    tag: Literal["batch_completed"] = "batch_completed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchFailed(_Event):
    """The batch ended as FAILED; its last event."""

    counts: Counts
    error: str
    tag: Literal["batch_failed"] = "batch_failed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchCancelled(_Event):
    """The batch ended as CANCELLED; its last event."""

    counts: Counts
    reason: str
    tag: Literal["batch_cancelled"] = "batch_cancelled"


BatchEvent: TypeAlias = (
    BatchCreated
    | StateChanged
    | DocumentStarted
    | StageProgress
    | DocumentCompleted
    | DocumentRetrying
    | DocumentReleased
    | DocumentFailed
    | ResolutionStarted
    | ResolutionFailed
    | ResolutionCompleted
    | BatchCompleted
    | BatchFailed
    | BatchCancelled
)
"""An event of a batch's history: a closed union, to `match` on."""

LAST_EVENT_TAGS: Final = frozenset({"batch_completed", "batch_failed", "batch_cancelled"})
"""The tags of the events that end a run."""


@lru_cache(maxsize=4096)
def decode_event(record: EventRecord) -> BatchEvent:
    """Decode a stored event; all subscribers get the same object, since it cannot be changed."""
    kind, names = _SHAPES[record.tag]
    values: dict[str, Any] = dict(zip(names, json.loads(record.data), strict=False))
    if "counts" in values:
        values["counts"] = Counts(**dict(zip(_COUNT_NAMES, values["counts"], strict=False)))
    if values.get("due") is not None:
        values["due"] = from_micros(values["due"])
    event: BatchEvent = kind(batch_id=record.batch_id, seq=record.seq, at=from_micros(record.at), **values)
    return event


_COUNT_NAMES: Final = tuple(field.name for field in fields(Counts))


def _own_fields(kind: type[Any]) -> tuple[str, ...]:
    common = {"batch_id", "seq", "at", "tag"}
    return tuple(field.name for field in fields(kind) if field.name not in common)


def _tag_of(kind: type[Any]) -> str:
    # A class with slots keeps a field's default nowhere else.
    return str(next(field.default for field in fields(kind) if field.name == "tag"))


_SHAPES: Final[dict[str, tuple[type[Any], tuple[str, ...]]]] = {
    _tag_of(kind): (kind, _own_fields(kind)) for kind in get_args(BatchEvent)
}
