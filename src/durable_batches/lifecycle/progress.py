"""Read a batch's state and progress from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Literal, Protocol, overload

from typing_extensions import TypeVar

from durable_batches.lifecycle.amounts import Amount
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.events import PauseReason, PauseScope
from durable_batches.lifecycle.machine import BatchStateMachine
from durable_batches.lifecycle.primitives import Value, from_micros
from durable_batches.lifecycle.records import BatchRecord, Micros
from durable_batches.lifecycle.spending import NOTHING_SPENT
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
from durable_batches.markup import bar, block, numbers, table

__all__ = [
    "BatchSnapshot",
    "LongCalls",
    "Pause",
    "RecordedStages",
    "StageCount",
    "Stages",
    "pauses_of",
    "snapshot_of",
    "state_of",
]

S = TypeVar("S", bound=Stage, default=Stage)
S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class StageCount(Value):
    """Where the documents of a batch are with one stage."""

    stage: str
    current: int
    """Documents that have entered it."""
    done: int
    """Documents that are past it."""
    total: int


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class LongCalls(Value):
    """Calls of an activity without a timeout run for longer than `Worker(long_call_warning=)`: they may never end."""

    activity: str
    calls: int
    since: datetime
    """When the first of them began."""
    workers: Mapping[str, int]
    """The workers that run them, with their number on each."""
    tag: Literal["long-calls"] = "long-calls"

    def __str__(self) -> str:
        workers = ", ".join(f"{worker!r} ({number})" for worker, number in sorted(self.workers.items()))
        calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
        return (
            f"The activity {self.activity!r} has no timeout, and {calls} of it may never end, the first since "
            f"{self.since:%Y-%m-%d %H:%M:%S} UTC: on {workers}."
        )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Pause(Value):
    """A pause of a batch: nothing of it is started."""

    reason: PauseReason
    since: datetime
    until: datetime | None = None
    """When it ends by itself; of a quota: when the provider is asked again. None: not by itself."""
    note: str = ""
    """Of an operator: the note; of a quota: what the provider said; of a budget: what is spent of it."""
    running: PauseScope = "calls"
    """What finishes of that which runs."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BatchSnapshot(Value, Generic[S_co]):
    """A batch at one moment."""

    batch_id: BatchId
    workflow: str
    """The name of its workflow."""
    version: str
    """The version of its workflow, with which it was submitted."""
    state: BatchState[S_co]
    paused: bool
    """Whether a pause is in force."""
    counts: Counts
    """The parts sum to `total`."""
    stages: Sequence[StageCount]
    """Of every stage, in order."""
    percentage: float
    """Stages passed of all that there are to pass, 0 to 100; never decreases within a run. Cancelled documents stay
    where they were, so that a run that ended early ends below 100."""
    documents_per_second: float | None
    """Since the first document started; None before the first has finished."""
    eta: datetime | None
    """When the documents will have finished at that rate; None without a rate, a rest, or such a date, in a pause, and
    while all that is left waits for a retry."""
    seq: int
    """The sequence number of the last event."""
    run: int
    created_at: datetime
    started_at: datetime | None
    """When the first document was claimed; None: none was yet."""
    ended_at: datetime | None
    """When the current run ended; None: it has not."""
    metadata: dict[str, str]
    isolated: int = 0
    """Possible poison documents that are isolated, or wait for that: they run beside few others, or none."""
    long_calls: Sequence[LongCalls] = ()
    """Calls that may never end, by activity, as the workers last said. Only `snapshot()` asks for them; those of
    `watch()` and `list_batches()` have none."""
    pauses: Sequence[Pause] = ()
    """Those in force."""
    spent: Amount = NOTHING_SPENT
    """What calls of the batch have spent, over all of its runs (`ActivityContext.spend`)."""

    def _repr_html_(self) -> str:
        """Return it as notebooks show it."""
        paused = f", paused ({'; '.join(pause.reason for pause in self.pauses)})" if self.paused else ""
        rate = "" if self.documents_per_second is None else f"{self.documents_per_second:.1f} documents/s"
        return block(
            f"{self.batch_id}: {self.workflow}, {self.state.tag.replace('_', ' ')}{paused}",
            table(
                ("", f"{self.percentage:.0f} %", f"{self.counts.ended}/{self.counts.total} documents", rate),
                [
                    (stage.stage.replace("_", " "), bar(stage.done, stage.total), f"{stage.done}/{stage.total}", "")
                    for stage in self.stages
                ],
            ),
            numbers(vars(self.counts)),
        )


class Stages(Protocol[S_co]):
    """Makes the states of stages: a `BatchStateMachine`, or `RecordedStages` where its code is not there."""

    def stage(self, tag: str, *, done: int, total: int) -> S_co | None:
        """Make the stage state of this tag; None where it is not known."""
        ...


class RecordedStages:
    """Makes a bare `Stage` of each recorded tag."""

    def stage(self, tag: str, *, done: int, total: int) -> Stage:
        """See `Stages.stage`."""
        return Stage(tag=tag, done=done, total=total)


@overload
def snapshot_of(
    record: BatchRecord, machine: BatchStateMachine[S], now: Micros, long_calls: Sequence[LongCalls] = ()
) -> BatchSnapshot[S]: ...
@overload
def snapshot_of(
    record: BatchRecord, machine: Stages[S], now: Micros, long_calls: Sequence[LongCalls] = ()
) -> BatchSnapshot[S]: ...
def snapshot_of(
    record: BatchRecord, machine: Stages[S], now: Micros, long_calls: Sequence[LongCalls] = ()
) -> BatchSnapshot[S]:
    """Make the snapshot of a batch's record, as of this moment."""
    batch = BatchInProgress(record, now, check=False)  # a reader shows what there is
    rate = _rate(batch)
    left = batch.counts.unfinished
    paused = (batch.paused and not batch.ended) or batch.quota_pause is not None
    return BatchSnapshot(
        batch_id=record.batch_id,
        workflow=record.workflow,
        version=record.version,
        state=_state(batch, machine),
        paused=paused,
        counts=batch.counts,
        stages=[
            StageCount(stage=tag, current=batch.entered(index), done=batch.past(index), total=batch.total)
            for index, tag in enumerate(batch.definition.stages)
        ],
        percentage=batch.percentage,
        documents_per_second=rate,
        eta=_eta(now, left, rate) if rate and left and not paused and batch.waiting < left else None,
        seq=record.seq,
        run=record.run,
        created_at=from_micros(record.created_at),
        started_at=_moment(batch.core["started_at"]),
        ended_at=_moment(batch.core["ended_at"]),
        metadata=dict(record.metadata),
        isolated=0 if batch.isolation is None else batch.suspects,
        long_calls=long_calls,
        pauses=pauses_of(batch),
        spent=batch.spent,
    )


# Twice, because mypy does not infer the stages of a machine through the protocol.
@overload
def state_of(record: BatchRecord, machine: BatchStateMachine[S]) -> BatchState[S]: ...
@overload
def state_of(record: BatchRecord, machine: Stages[S]) -> BatchState[S]: ...
def state_of(record: BatchRecord, machine: Stages[S]) -> BatchState[S]:
    """Make the typed state of a batch's record."""
    return _state(BatchInProgress(record, record.created_at, check=False), machine)


def _state(batch: BatchInProgress, machine: Stages[S]) -> BatchState[S]:
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


def _stage(batch: BatchInProgress, machine: Stages[S], tag: str) -> S | Pending:
    """Find the stage, or the nearest one before it that this code's machine still has."""
    stages = batch.definition.stages
    for index in range(stages.index(tag), -1, -1):
        stage = machine.stage(stages[index], done=batch.past(index), total=batch.total)
        if stage is not None:
            return stage
    return Pending(total=batch.total)


def pauses_of(batch: BatchInProgress) -> tuple[Pause, ...]:
    """List the pauses in force."""
    pauses: list[Pause] = []
    operator, quota = batch.operator_pause, batch.quota_pause
    if operator is not None:
        since = from_micros(operator["since"])
        pauses.append(Pause(reason="operator", since=since, note=operator["note"], running=operator["running"]))
    if batch.budget_pause is not None:
        pause = batch.budget_pause
        pauses.append(Pause(reason="budget", since=from_micros(pause["since"]), note=pause["note"]))
    if quota is not None:
        since, until = from_micros(quota["since"]), from_micros(quota["until"])
        pauses.append(Pause(reason="quota", since=since, until=until, note=quota["note"]))
    return tuple(pauses)


def _moment(micros: Micros | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


def _rate(batch: BatchInProgress) -> float | None:
    started, ended = batch.core["started_at"], batch.core["ended_at"]
    done = batch.succeeded + batch.failed
    if started is None or not done:
        return None
    # Not by `now`, which may be another clock's and before the start.
    seconds = max((ended or batch.at) - started, 1) / 1_000_000
    return done / seconds


def _eta(now: Micros, left: int, rate: float) -> datetime | None:
    try:
        return from_micros(now) + timedelta(seconds=left / rate)
    except OverflowError:
        # Beyond the calendar: a slow beginning of a large batch.
        return None
