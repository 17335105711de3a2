"""The events of a batch's history: a closed union of frozen dataclasses.

Each has its `batch_id`, its sequence number `seq` (1, 2, 3, ... without a gap, in commit order), the moment `at`
(aware UTC, on the store's clock, never before that of the previous event) and a literal `tag`. They are stored as
`EventRecord`: the own fields of the event, in their order here, as a JSON array; a field that is added later comes last
and has a default. The union grows in minor versions of the library: an older one that reads the same database decodes a
new event as `UnknownEvent`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias, get_args

from pydantic import JsonValue

from durable_batches.lifecycle.primitives import Value, from_micros
from durable_batches.lifecycle.records import EventRecord
from durable_batches.lifecycle.states import BatchId, Counts

__all__ = [
    "BatchCancelled",
    "BatchCompleted",
    "BatchCreated",
    "BatchEvent",
    "BatchFailed",
    "BatchPaused",
    "BatchRedriven",
    "BatchResumed",
    "BatchSealed",
    "BatchUpdated",
    "DocumentCompleted",
    "DocumentFailed",
    "DocumentReleased",
    "DocumentRetrying",
    "DocumentStarted",
    "DocumentSuspended",
    "DocumentWoken",
    "DocumentsAdded",
    "PauseReason",
    "PauseScope",
    "ProviderJobChanged",
    "ReleaseReason",
    "ResolutionCompleted",
    "ResolutionFailed",
    "ResolutionReleased",
    "ResolutionStarted",
    "StageProgress",
    "StateChanged",
    "UnknownEvent",
    "decode_event",
]


PauseReason: TypeAlias = Literal["operator", "budget", "canary", "quota"]
"""Why no document of a batch is started; each is lifted on its own."""

PauseScope: TypeAlias = Literal["calls", "documents"]
"""What runs when a batch is paused, and still finishes: the calls of activities that are running, after which their
documents are released; or the documents."""

ReleaseReason: TypeAlias = Literal["shutdown", "crash", "paused"]
"""Why a worker gave back what it ran, unfinished and not failed."""


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
    open: bool = False
    """Whether documents may be added, until it is sealed."""
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

    `reason` is "shutdown" (a clean release), "crash" (its worker died) or "paused" (its batch was paused).
    """

    document_id: str
    reason: ReleaseReason
    crashes: int
    tag: Literal["document_released"] = "document_released"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentFailed(_Event):
    """A document failed, and is not retried."""

    document_id: str
    error: str
    percentage: float
    fingerprint: str = ""
    """The group of failures that it belongs to; empty: it was not grouped."""
    tag: Literal["document_failed"] = "document_failed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResolutionStarted(_Event):
    """A worker claimed the resolver; attempt 1 is the first."""

    attempt: int
    tag: Literal["resolution_started"] = "resolution_started"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResolutionFailed(_Event):
    """An attempt of the resolver failed; it runs again at `due`, unless that is None."""

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


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchPaused(_Event):
    """No document of the batch is started until it is resumed, or until `until`."""

    reason: PauseReason
    note: str
    until: datetime | None = None
    running: PauseScope = "calls"
    """What finishes of that which runs."""
    tag: Literal["batch_paused"] = "batch_paused"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchResumed(_Event):
    """The pause for this reason is over."""

    reason: PauseReason
    tag: Literal["batch_resumed"] = "batch_resumed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchRedriven(_Event):
    """The batch's run of this number begins, with these counts; the only event that follows a run's last one."""

    run: int
    counts: Counts
    tag: Literal["batch_redriven"] = "batch_redriven"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchUpdated(_Event):
    """The batch's configuration was changed; durations are in seconds, and decimal numbers are strings."""

    changes: Mapping[str, JsonValue]
    """The new values by their names."""
    tag: Literal["batch_updated"] = "batch_updated"

    def __hash__(self) -> int:
        return hash((self.batch_id, self.seq))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentsAdded(_Event):
    """Documents were added to an open batch, which has `total` by now; the percentage may be lower than before."""

    count: int
    total: int
    percentage: float
    tag: Literal["documents_added"] = "documents_added"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchSealed(_Event):
    """No more documents can be added."""

    total: int
    tag: Literal["batch_sealed"] = "batch_sealed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentSuspended(_Event):
    """A document waits for these signals, timers or answers without a slot; it runs again at `due` at the latest."""

    document_id: str
    waits_for: Sequence[str]
    due: datetime | None
    tag: Literal["document_suspended"] = "document_suspended"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DocumentWoken(_Event):
    """What a document waited for under this name was answered; it can run again."""

    document_id: str
    name: str
    tag: Literal["document_woken"] = "document_woken"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ProviderJobChanged(_Event):
    """A provider's batch job is in another state, with this number of requests answered."""

    provider: str
    job: int
    state: Literal["submitted", "running", "ended", "expired", "cancelled"]
    requests: int
    succeeded: int
    failed: int
    tag: Literal["provider_job_changed"] = "provider_job_changed"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResolutionReleased(_Event):
    """The running resolver was released, and waits for a worker again; `reason` is as for a document."""

    reason: ReleaseReason
    tag: Literal["resolution_released"] = "resolution_released"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class UnknownEvent(_Event):
    """An event that a newer version of the library has written and this one does not know."""

    name: str
    """Its tag there."""
    data: str
    """Its own fields, a JSON array."""
    tag: Literal["unknown"] = "unknown"


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
    | BatchPaused
    | BatchResumed
    | BatchRedriven
    | BatchUpdated
    | DocumentsAdded
    | BatchSealed
    | DocumentSuspended
    | DocumentWoken
    | ProviderJobChanged
    | ResolutionReleased
    | UnknownEvent
)
"""An event of a batch's history: a union to `match` on. It grows in minor versions; `case _` is for what comes."""

LAST_EVENT_TAGS: Final = frozenset({"batch_completed", "batch_failed", "batch_cancelled"})
"""The tags of the events that end a run."""

PAUSED: Final = "batch_paused"
RESUMED: Final = "batch_resumed"


@lru_cache(maxsize=4096)
def decode_event(record: EventRecord) -> BatchEvent:
    """Decode a stored event; all subscribers get the same object, since it cannot be changed."""
    moment = from_micros(record.at)
    shape = _SHAPES.get(record.tag)
    if shape is None:
        data = record.data.decode(errors="replace")
        return UnknownEvent(batch_id=record.batch_id, seq=record.seq, at=moment, name=record.tag, data=data)
    kind, names = shape
    values: dict[str, Any] = dict(zip(names, json.loads(record.data), strict=False))
    if "counts" in values:
        values["counts"] = Counts(**dict(zip(_COUNT_NAMES, values["counts"], strict=False)))
    for name in _MOMENTS & values.keys():
        if values[name] is not None:
            values[name] = from_micros(values[name])
    if "waits_for" in values:
        values["waits_for"] = tuple(values["waits_for"])
    event: BatchEvent = kind(batch_id=record.batch_id, seq=record.seq, at=moment, **values)
    return event


_MOMENTS: Final = frozenset({"due", "until"})
_COUNT_NAMES: Final = tuple(field.name for field in fields(Counts))


def _own_fields(kind: type[Any]) -> tuple[str, ...]:
    common = {"batch_id", "seq", "at", "tag"}
    return tuple(field.name for field in fields(kind) if field.name not in common)


def _tag_of(kind: type[Any]) -> str:
    # A class with slots keeps a field's default nowhere else.
    return str(next(field.default for field in fields(kind) if field.name == "tag"))


_SHAPES: Final[dict[str, tuple[type[Any], tuple[str, ...]]]] = {
    _tag_of(kind): (kind, _own_fields(kind)) for kind in get_args(BatchEvent) if kind is not UnknownEvent
}
