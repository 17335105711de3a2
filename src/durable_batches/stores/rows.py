"""Rows of records, and records of rows, for the stores that keep them in tables; in the order of `columns`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import Any, Final

from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    EventRecord,
    ExecutionRecord,
    FailureRecord,
    Refusal,
    SignalRecord,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.stores.columns import (
    BATCH_CHANGES,
    BATCH_RECORD,
    EXECUTION_CHANGES,
    EXECUTION_RECORD,
    WORKER_RECORD,
    Columns,
)
from durable_batches.stores.protocol import CountedFailures

__all__ = [
    "Row",
    "batch_changes",
    "batch_of",
    "batch_of_execution",
    "batch_values",
    "checkpoint_of",
    "claims_of",
    "counted_failures_of",
    "events_of",
    "execution_changes",
    "execution_key",
    "execution_keys",
    "execution_of",
    "execution_values",
    "position_of",
    "refusals_as_text",
    "refusals_of",
    "worker_of",
    "worker_values",
]

Row = Sequence[Any]


def _encoder(columns: Columns) -> Callable[[object], list[object]]:
    """Make the function that returns a record's values for these columns, in their order."""
    get: Callable[[object], tuple[object, ...]] = attrgetter(*[column.field or "" for column in columns])
    encoders = [(index, column.encode) for index, column in enumerate(columns) if column.encode is not None]

    def values(record: object) -> list[object]:
        row = list(get(record))
        for index, encode in encoders:
            row[index] = encode(row[index])
        return row

    return values


def _decoders(columns: Columns) -> list[tuple[int, Callable[[Any], Any]]]:
    return [(index, column.decode) for index, column in enumerate(columns) if column.decode is not None]


# ---- executions: the integer key is the batch's key and the position, counted from the resolver's --------------------

_POSITIONS: Final = 1 << 32


def execution_key(batch: int, position: int) -> int:
    """Compute an execution's key; `execution_key(batch + 1, RESOLVER_POSITION)` is the bound of the batch's keys."""
    return batch * _POSITIONS + position - RESOLVER_POSITION


def execution_keys(batch: int) -> tuple[int, int]:
    """Compute the bounds of a batch's execution keys: the first of them, and the first behind them."""
    return batch * _POSITIONS, (batch + 1) * _POSITIONS


def position_of(key: int) -> int:
    """Compute the position of the execution with this key."""
    return key % _POSITIONS + RESOLVER_POSITION


def batch_of_execution(key: int) -> int:
    """Compute the key of the batch that the execution with this key belongs to."""
    return key // _POSITIONS


execution_values: Final[Callable[[ExecutionRecord], tuple[Any, ...]]] = itemgetter(slice(-len(EXECUTION_RECORD), None))
"""An execution's values for `EXECUTION_RECORD`."""
execution_changes: Final[Callable[[ExecutionRecord], tuple[Any, ...]]] = itemgetter(
    slice(-len(EXECUTION_CHANGES), None)
)
"""An execution's values for `EXECUTION_CHANGES`, which are the last of them."""
assert EXECUTION_RECORD[-len(EXECUTION_CHANGES) :] == EXECUTION_CHANGES


def execution_of(batch_id: BatchId, position: int, row: Row) -> ExecutionRecord:
    """Make the record of a row of `EXECUTION_RECORD`."""
    return ExecutionRecord._make((batch_id, position, *row))


# ---- batches ---------------------------------------------------------------------------------------------------------

batch_values: Final = _encoder(BATCH_RECORD)
"""A batch's values for `BATCH_RECORD`."""
batch_changes: Final = _encoder(BATCH_CHANGES)
"""A batch's values for `BATCH_CHANGES`."""

_BATCH_FIELDS: Final = [field.name for field in fields(BatchRecord)]
_COUNTS_FIELDS: Final = [field.name for field in fields(Counts)]
_COUNTS_AT: Final = _BATCH_FIELDS.index("counts")
_COUNTS: Final = slice(_COUNTS_AT, _COUNTS_AT + len(_COUNTS_FIELDS))
_BATCH_DECODERS: Final = _decoders(BATCH_RECORD)
assert [column.field for column in BATCH_RECORD[_COUNTS]] == [f"counts.{name}" for name in _COUNTS_FIELDS]


def batch_of(row: Row) -> BatchRecord:
    """Make the record of a row of `BATCH_RECORD`."""
    values = list(row)
    for index, decode in _BATCH_DECODERS:
        values[index] = decode(values[index])
    values[_COUNTS] = [Counts(**dict(zip(_COUNTS_FIELDS, values[_COUNTS], strict=True)))]
    return BatchRecord(**dict(zip(_BATCH_FIELDS, values, strict=True)))


# ---- checkpoints, events, claims -------------------------------------------------------------------------------------


def checkpoint_of(key: str, failed: object, payload: bytes, stage: int | None, spent: str | None) -> CheckpointRecord:
    """Make the record of a row of `CHECKPOINT`."""
    return CheckpointRecord(key, "failed" if failed else "succeeded", payload, stage, spent)


def events_of(batch_id: BatchId, rows: Iterable[Row]) -> list[EventRecord]:
    """Make the records of rows of `EVENT_RECORD`."""
    return [EventRecord._make((batch_id, *row)) for row in rows]


def counted_failures_of(batch_id: BatchId, rows: Sequence[Row]) -> CountedFailures:
    """Make the groups of rows: the batch's count of failed documents, its run, and `FAILURE_GROUP` or only NULL."""
    if not rows:
        return CountedFailures(0)
    groups = [FailureRecord(batch_id, *row[1:]) for row in rows if row[2] is not None]
    return CountedFailures(rows[0][0], groups)


def claims_of(
    batches: Mapping[BatchId, BatchRecord],
    executions: Iterable[tuple[int, ExecutionRecord]],
    inputs: Mapping[int, bytes],
    checkpoints: Mapping[int, Sequence[CheckpointRecord]],
    signals: Mapping[int, Sequence[SignalRecord]],
    request: ClaimRequest,
) -> list[Claim]:
    """Make the claims of executions, given by their keys; one checkpoint more than asked for says that there are more.

    Args:
        batches: The records of their batches.
        executions: They, each with its key, by which the rest is found.
        inputs: Their documents.
        checkpoints: What is recorded of them, in the order of the keys.
        signals: What was sent to them.
        request: The claim that was asked for.
    """
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

worker_values: Final = _encoder(WORKER_RECORD)
"""A worker's values for `WORKER_RECORD`."""
_WORKER_DECODERS: Final = _decoders(WORKER_RECORD)


def worker_of(row: Row) -> WorkerRecord:
    """Make the record of a row of `WORKER_RECORD`."""
    values = list(row)
    for index, decode in _WORKER_DECODERS:
        values[index] = decode(values[index])
    return WorkerRecord._make(values)


def refusals_as_text(number: int, refused: Mapping[int, Refusal]) -> str:
    """Encode the refusals of a commit, which are kept for the case that its reply is lost."""
    return json.dumps([number, dict(refused)])


def refusals_of(text: str, number: int) -> dict[int, Refusal]:
    """Decode the refusals of the commit of this number, if it is the last that had any."""
    recorded = json.loads(text)
    if not recorded or recorded[0] != number:
        return {}
    return {int(index): reason for index, reason in recorded[1].items()}
