"""What the SQL stores share: the columns of their tables, and records to rows and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    ExecutionRecord,
    Refusal,
    SignalRecord,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId, Counts

__all__ = [
    "BATCH_COLUMNS",
    "CHANGING_COLUMNS",
    "EXECUTION_COLUMNS",
    "MOST_BATCHES_A_CLAIM",
    "Row",
    "batch_changes",
    "batch_of",
    "batch_of_execution",
    "checkpoint_of",
    "claims_of",
    "execution_key",
    "execution_keys",
    "execution_of",
    "position_of",
    "refusals_as_text",
    "refusals_of",
    "worker_of",
    "workflows_as_text",
]

BATCH_COLUMNS: Final = (
    "key, batch_id, workflow, version, loader, run, state, paused, total, pending, running, waiting, succeeded, "
    "failed, cancelled, seq, free, wake, served, core, metadata, created_at"
)
CHANGING_COLUMNS: Final = (
    "metadata, loader, run, state, paused, total, pending, running, waiting, succeeded, failed, cancelled, seq, free, "
    "wake, served, core"
)
"""Of a batch, in the order of `batch_changes`."""

EXECUTION_COLUMNS: Final = "document_id, run, status, mark, attempt, failures, crashes, alone, owner, due, updated_at"
"""In the order of `ExecutionRecord`, less its key."""

MOST_BATCHES_A_CLAIM: Final = 64

_POSITIONS: Final = 1 << 32

Row = Sequence[Any]


# ---- executions: the integer key is the batch's key and the position, counted from the resolver's --------------------


def execution_key(batch: int, position: int) -> int:
    """The integer key of an execution; `execution_key(batch + 1, RESOLVER_POSITION)` is the bound of the batch's."""
    return batch * _POSITIONS + position - RESOLVER_POSITION


def execution_keys(batch: int) -> tuple[int, int]:
    """The keys of all of a batch's executions: from the first of these to before the second."""
    return batch * _POSITIONS, (batch + 1) * _POSITIONS


def position_of(key: int) -> int:
    """The position of the execution with this key."""
    return key % _POSITIONS + RESOLVER_POSITION


def batch_of_execution(key: int) -> int:
    """The key of the batch that the execution with this key belongs to."""
    return key // _POSITIONS


def execution_of(batch_id: BatchId, position: int, row: Row) -> ExecutionRecord:
    """From `EXECUTION_COLUMNS`."""
    return ExecutionRecord._make((batch_id, position, *row))


# ---- batches ---------------------------------------------------------------------------------------------------------


def batch_changes(record: BatchRecord) -> tuple[Any, ...]:
    """To `CHANGING_COLUMNS`."""
    counts = record.counts
    return (
        json.dumps(dict(record.metadata)),
        record.loader,
        record.run,
        record.state,
        record.paused,
        counts.total,
        counts.pending,
        counts.running,
        counts.waiting,
        counts.succeeded,
        counts.failed,
        counts.cancelled,
        record.seq,
        record.free,
        record.wake,
        record.served,
        record.core,
    )


def batch_of(row: Row) -> BatchRecord:
    """From `BATCH_COLUMNS`."""
    (
        _,
        batch_id,
        workflow,
        version,
        loader,
        run,
        state,
        paused,
        total,
        pending,
        running,
        waiting,
        succeeded,
        failed,
        cancelled,
        seq,
        free,
        wake,
        served,
        core,
        metadata,
        created_at,
    ) = row
    return BatchRecord(
        batch_id=batch_id,
        workflow=workflow,
        version=version,
        loader=loader,
        run=run,
        state=state,
        paused=bool(paused),
        counts=Counts(
            total=total,
            pending=pending,
            running=running,
            waiting=waiting,
            succeeded=succeeded,
            failed=failed,
            cancelled=cancelled,
        ),
        seq=seq,
        free=free,
        wake=wake,
        served=served,
        core=core,
        metadata=json.loads(metadata),
        created_at=created_at,
    )


# ---- checkpoints and claims ------------------------------------------------------------------------------------------


def checkpoint_of(key: str, failed: object, payload: bytes) -> CheckpointRecord:
    """From a row of the table `activity`."""
    return CheckpointRecord(key, "failed" if failed else "succeeded", payload)


def claims_of(
    batches: Mapping[BatchId, BatchRecord],
    executions: Iterable[tuple[int, ExecutionRecord]],
    inputs: Mapping[int, bytes],
    checkpoints: Mapping[int, Sequence[CheckpointRecord]],
    signals: Mapping[int, Sequence[SignalRecord]],
    request: ClaimRequest,
) -> list[Claim]:
    """What it takes to run these executions, given by their keys; one checkpoint more than asked for tells of more."""
    claims: list[Claim] = []
    for key, execution in executions:
        recorded = checkpoints.get(key, ())
        claims.append(
            Claim(
                batch=batches[execution.batch_id],
                execution=execution,
                input=inputs[key],
                checkpoints=recorded[: request.checkpoints],
                more_checkpoints=len(recorded) > request.checkpoints,
                signals=signals.get(key, ()),
            )
        )
    return claims


# ---- workers ---------------------------------------------------------------------------------------------------------


def workflows_as_text(workflows: Collection[tuple[str, str]]) -> str:
    """(name, version) pairs as JSON, in a certain order."""
    return json.dumps(sorted(workflows))


def worker_of(row: Row) -> WorkerRecord:
    """From the worker's id and the identity of its process, and its workflows as JSON."""
    worker_id, boot_id, pid_namespace, pid, started, workflows = row
    served = frozenset((name, version) for name, version in json.loads(workflows))
    return WorkerRecord(WorkerId(worker_id), boot_id, pid_namespace, pid, started, served)


def refusals_as_text(number: int, refused: Mapping[int, Refusal]) -> str:
    """The refusals of a commit, as they are kept for when its reply is lost."""
    return json.dumps([number, dict(refused)])


def refusals_of(text: str, number: int) -> dict[int, Refusal]:
    """The refusals of the commit of this number, if it is the last that had any."""
    recorded = json.loads(text)
    if not recorded or recorded[0] != number:
        return {}
    return {int(index): reason for index, reason in recorded[1].items()}
