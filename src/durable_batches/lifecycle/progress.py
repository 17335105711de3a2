"""The aggregator: a batch's record, or its events, folded into what people watch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic

from typing_extensions import TypeVar

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.events import (
    BatchCancelled,
    BatchCompleted,
    BatchCreated,
    BatchEvent,
    BatchFailed,
    DocumentCompleted,
    DocumentFailed,
    DocumentReleased,
    DocumentRetrying,
    DocumentStarted,
    StageProgress,
    StateChanged,
)
from durable_batches.lifecycle.machine import BatchStateMachine
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import BatchRecord, Micros
from durable_batches.lifecycle.states import (
    BatchId,
    BatchState,
    Cancelled,
    Completed,
    Counts,
    Failed,
    Pending,
    Resolving,
    Stage,
)

__all__ = ["BatchSnapshot", "Folded", "StageCount", "fold", "snapshot_of", "state_of"]

S = TypeVar("S", bound=Stage, default=Stage)
S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)


@dataclass(frozen=True, kw_only=True)
class StageCount:
    """Where the documents of a batch are with one stage."""

    stage: str
    current: int
    """Documents that have entered it."""
    done: int
    """Documents that are past it."""
    total: int


@dataclass(frozen=True, kw_only=True)
class BatchSnapshot(Generic[S_co]):
    """A batch at one moment."""

    batch_id: BatchId
    state: BatchState[S_co]
    paused: bool
    counts: Counts
    """The parts sum to `total`."""
    stages: Sequence[StageCount]
    """Of every stage, in order."""
    percentage: float
    """Stages passed of all there are to pass, 0 to 100; never decreases within a run."""
    documents_per_second: float | None
    """Since the first document started; None before the first has ended."""
    eta: datetime | None
    """When the documents will have ended at that rate; None where there is no rate, nothing left, or no such date."""
    seq: int
    """The sequence number of the last event."""
    run: int
    created_at: datetime
    metadata: dict[str, str]


def snapshot_of(record: BatchRecord, machine: BatchStateMachine[S], now: Micros) -> BatchSnapshot[S]:
    """The snapshot of a batch's record, at this moment."""
    batch = BatchInProgress(record, now)
    rate = _rate(batch, now)
    left = batch.counts.unfinished
    return BatchSnapshot(
        batch_id=record.batch_id,
        state=_state(batch, machine),
        paused=record.paused,
        counts=batch.counts,
        stages=[
            StageCount(stage=tag, current=batch.entered(index), done=batch.past(index), total=batch.total)
            for index, tag in enumerate(batch.definition.stages)
        ],
        percentage=batch.percentage,
        documents_per_second=rate,
        eta=_eta(now, left, rate) if rate and left else None,
        seq=record.seq,
        run=record.run,
        created_at=from_micros(record.created_at),
        metadata=dict(record.metadata),
    )


def state_of(record: BatchRecord, machine: BatchStateMachine[S]) -> BatchState[S]:
    """The typed state of a batch's record."""
    return _state(BatchInProgress(record, record.created_at), machine)


def _state(batch: BatchInProgress, machine: BatchStateMachine[S]) -> BatchState[S]:
    match batch.state:
        case "pending":
            return Pending(total=batch.total)
        case "resolving":
            return Resolving(counts=batch.counts)
        case "completed":
            return Completed(counts=batch.counts)
        case "failed":
            return Failed(counts=batch.counts, error=batch.core["error"])
        case "cancelled":
            return Cancelled(counts=batch.counts, reason=batch.core["reason"])
        case tag:
            return _stage(batch, machine, tag)


def _stage(batch: BatchInProgress, machine: BatchStateMachine[S], tag: str) -> S | Pending:
    """The stage, or where this code's machine has lost it by now, the nearest one before that it still has."""
    stages = batch.definition.stages
    for index in range(stages.index(tag), -1, -1):
        stage = machine.stage(stages[index], done=batch.past(index), total=batch.total)
        if stage is not None:
            return stage
    return Pending(total=batch.total)


def _rate(batch: BatchInProgress, now: Micros) -> float | None:
    started: Micros | None = batch.core["started_at"]
    ended: Micros | None = batch.core["ended_at"]
    done = batch.succeeded + batch.failed
    if started is None or not done:
        return None
    seconds = max((ended or now) - started, 1) / 1_000_000
    return done / seconds


def _eta(now: Micros, left: int, rate: float) -> datetime | None:
    try:
        return from_micros(now) + timedelta(seconds=left / rate)
    except OverflowError:
        # Beyond the calendar: a slow beginning of a large batch.
        return None


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What a batch's events say about it; the same as its record says, at every moment."""

    counts: Counts
    state: str
    percentage: float
    seq: int


def fold(events: Iterable[BatchEvent]) -> Folded:
    """Fold a batch's whole history, in order, into what its record holds."""
    folder = _Folder()
    for event in events:
        folder.take(event)
    return folder.folded()


class _Folder:
    def __init__(self) -> None:
        self._documents: dict[str, str] = {}
        self._total = 0
        self._state = "pending"
        self._percentage = 0.0
        self._seq = 0
        self._last: Counts | None = None

    def take(self, event: BatchEvent) -> None:
        self._seq = event.seq
        match event:
            case BatchCreated(total=total):
                self._total = total
                self._percentage = 0.0 if total else 100.0
            case StateChanged(state=state):
                self._state = state
            case DocumentStarted(document_id=document_id):
                self._documents[document_id] = "running"
            case DocumentReleased(document_id=document_id):
                del self._documents[document_id]
            case DocumentRetrying(document_id=document_id):
                self._documents[document_id] = "waiting"
            case StageProgress(percentage=percentage):
                self._percentage = percentage
            case DocumentCompleted(document_id=document_id, percentage=percentage):
                self._documents[document_id] = "succeeded"
                self._percentage = percentage
            case DocumentFailed(document_id=document_id, percentage=percentage):
                self._documents[document_id] = "failed"
                self._percentage = percentage
            case BatchCompleted(counts=counts) | BatchFailed(counts=counts) | BatchCancelled(counts=counts):
                self._last = counts
                # What had not ended has ended with the run, and what has ended counts in full.
                self._percentage = 100.0
            case _:
                pass

    def folded(self) -> Folded:
        return Folded(
            counts=self._last or self._counts(),
            state=self._state,
            percentage=self._percentage,
            seq=self._seq,
        )

    def _counts(self) -> Counts:
        found = Counter(self._documents.values())
        parts: dict[str, Any] = {name: found[name] for name in ("running", "waiting", "succeeded", "failed")}
        return Counts(total=self._total, pending=self._total - sum(parts.values()), **parts)
