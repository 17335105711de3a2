"""What is read: each a statement with its values, and how its rows become records; for any connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

from durable_batches.lifecycle.planning import ISOLATED_CRASHES
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    DocumentRecord,
    EventRecord,
    ExecutionRecord,
    ExecutionStatus,
    Micros,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import (
    BATCH_RECORD,
    CHECKPOINT,
    EVENT_RECORD,
    EXECUTION_RECORD,
    FAILURE_GROUP,
    WORKER_RECORD,
)
from durable_batches.stores.protocol import BatchQuery, CountedFailures, Lease
from durable_batches.stores.rows import (
    Row,
    batch_of,
    checkpoint_of,
    counted_failures_of,
    events_of,
    execution_key,
    execution_of,
    position_of,
    worker_of,
)

__all__ = [
    "Select",
    "abandoned",
    "batch",
    "batches",
    "checkpoints",
    "checkpoints_of_key",
    "count_checkpoints",
    "documents",
    "due",
    "events",
    "failed_documents",
    "failures",
    "has_any",
    "has_moved",
    "isolated",
    "label_conditions",
    "leases",
    "owned",
    "resolver",
    "workers",
]

T_co = TypeVar("T_co", covariant=True)


class Select(NamedTuple, Generic[T_co]):
    """A query, and what its rows mean."""

    statement: str
    values: Sequence[object] | Mapping[str, object]
    decode: Callable[[Sequence[Row]], T_co]

    def on(self, connection: sqlite3.Connection) -> T_co:
        """Execute it on a connection of this thread."""
        return self.decode(connection.execute(self.statement, self.values).fetchall())


def has_any(rows: Sequence[Row]) -> bool:
    """Whether a query has found something."""
    return bool(rows)


# ---- batches ---------------------------------------------------------------------------------------------------------

_HAS_LABEL: Final = "(SELECT value FROM json_each(batch.metadata) WHERE json_each.key = :{0}_name) = :{0}_value"
_HAS_TEXT: Final = "instr(batch.metadata, '{{' || :{0}_text) + instr(batch.metadata, ', ' || :{0}_text) > 0"
"""Behind what a label begins with in JSON; within a name or a value, a quote has a backslash before it."""
_BATCH: Final = f"SELECT key, {BATCH_RECORD.names} FROM batch WHERE batch_id = ?"


def label_conditions(metadata: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Make the conditions on batches that have all of these labels, and their values by the names in them.

    The functions of SQLite end a text at its first NUL. So the label is looked for in the stored JSON as well, which
    has neither a NUL nor a lone surrogate in it, and there alone if it holds one of these itself.
    """
    conditions: list[str] = []
    values: dict[str, str] = {}
    for number, (name, value) in enumerate(metadata.items()):
        label = f"label_{number}"
        conditions.append(_HAS_TEXT.format(label))
        values[f"{label}_text"] = json.dumps({name: value})[1:-1]
        if _is_unicode_without_nul(name + value):
            conditions.append(_HAS_LABEL.format(label))
            values |= {f"{label}_name": name, f"{label}_value": value}
    return conditions, values


def _is_unicode_without_nul(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def batch(batch_id: BatchId) -> Select[tuple[int, BatchRecord] | None]:
    """Read a batch, with its key; None: there is none of this id."""
    return Select(_BATCH, (batch_id,), _batch_of)


def _batch_of(rows: Sequence[Row]) -> tuple[int, BatchRecord] | None:
    return (rows[0][0], batch_of(rows[0][1:])) if rows else None


def batches(query: BatchQuery, after: BatchId | None, limit: int) -> Select[list[BatchRecord]]:
    """Read the sealed batches that the query is about, newest first, from behind `after`."""
    has_labels, labels = label_conditions(query.metadata)
    conditions = ["loader IS NULL", *has_labels]
    values: dict[str, object] = {**labels, "limit": limit}
    if after is not None:
        conditions.append("key < (SELECT key FROM batch WHERE batch_id = :after)")
        values["after"] = after
    if query.workflow is not None:
        conditions.append("workflow = :workflow")
        values["workflow"] = query.workflow
    if query.states:
        conditions.append("state IN (SELECT value FROM json_each(:states))")
        values["states"] = json.dumps(sorted(query.states))
    if query.created_before is not None:
        conditions.append("created_at < :created_before")
        values["created_before"] = query.created_before
    return Select(
        f"SELECT {BATCH_RECORD.names} FROM batch WHERE {' AND '.join(conditions)} ORDER BY key DESC LIMIT :limit",
        values,
        _batches_of,
    )


def _batches_of(rows: Sequence[Row]) -> list[BatchRecord]:
    return [batch_of(row) for row in rows]


def abandoned(created_before: Micros, limit: int) -> Select[list[BatchRecord]]:
    """Read the unsealed batches whose loader is gone, the oldest first."""
    return Select(
        f"SELECT {BATCH_RECORD.names} FROM batch WHERE loader IS NOT NULL AND created_at < ? AND NOT EXISTS "
        "(SELECT 1 FROM worker WHERE worker.worker_id = batch.loader OR worker.before = batch.loader) "
        "ORDER BY key LIMIT ?",
        (created_before, limit),
        _batches_of,
    )


def has_moved(seen: Mapping[BatchId, int]) -> Select[bool]:
    """Whether one of these batches has events beyond this number."""
    return Select(
        "SELECT 1 FROM json_each(?) AS seen JOIN batch ON batch.batch_id = seen.key "
        "WHERE batch.seq > seen.value LIMIT 1",
        (json.dumps(dict(seen)),),
        has_any,
    )


# ---- documents -------------------------------------------------------------------------------------------------------

_FIRST: Final = f"SELECT key * {execution_key(1, RESOLVER_POSITION)} FROM batch WHERE batch_id = ?"
"""The first of a batch's execution keys: the resolver's."""


def documents(
    batch_id: BatchId, statuses: Collection[ExecutionStatus], after: int, limit: int, *, inputs: bool
) -> Select[list[DocumentRecord]]:
    """Read a page of documents, in submission order; without `inputs`, those are empty."""
    if not statuses:
        return _documents(batch_id, after, limit, inputs=inputs)
    condition = "AND execution.status IN (SELECT value FROM json_each(?)) "
    return _documents(batch_id, after, limit, condition, json.dumps(sorted(statuses)), inputs=inputs)


def failed_documents(
    batch_id: BatchId, fingerprint: str, after: int, limit: int, *, inputs: bool
) -> Select[list[DocumentRecord]]:
    """Read a page of the failed documents with this fingerprint, by their index."""
    return _documents(
        batch_id,
        after,
        limit,
        "AND execution.batch = (SELECT key FROM batch WHERE batch_id = ?) AND execution.fingerprint = ? "
        "AND execution.status = 'failed' ",
        batch_id,
        fingerprint,
        inputs=inputs,
        index="INDEXED BY execution_fingerprint ",
    )


def _documents(
    batch_id: BatchId, after: int, limit: int, condition: str = "", *values: object, inputs: bool, index: str = ""
) -> Select[list[DocumentRecord]]:
    def decode(rows: Sequence[Row]) -> list[DocumentRecord]:
        return [DocumentRecord(execution_of(batch_id, position_of(row[0]), row[3:]), row[1], row[2]) for row in rows]

    payload, join = ("document.input", "JOIN document ON document.key = execution.key ") if inputs else ("x''", "")
    return Select(
        f"WITH first (key) AS ({_FIRST}) "
        f"SELECT execution.key, {payload}, outcome.payload, {EXECUTION_RECORD.of('execution')} "
        f"FROM first CROSS JOIN execution {index}"  # in this order: SQLite takes a cross join at its word
        f"{join}LEFT JOIN outcome ON outcome.key = execution.key "
        "WHERE execution.key > first.key + ? AND execution.key < first.key + ? "
        f"{condition}ORDER BY execution.key LIMIT ?",
        (batch_id, execution_key(0, after), execution_key(1, RESOLVER_POSITION), *values, limit),
        decode,
    )


# ---- checkpoints and events ------------------------------------------------------------------------------------------

_CHECKPOINTS: Final = f"SELECT {CHECKPOINT.names} FROM activity WHERE execution = {{}} AND key > ? ORDER BY key LIMIT ?"
_CHECKPOINTS_OF_KEY: Final = _CHECKPOINTS.format("?")
_CHECKPOINTS_OF_BATCH: Final = _CHECKPOINTS.format(f"({_FIRST}) + ?")


def _checkpoints(rows: Sequence[Row]) -> list[CheckpointRecord]:
    return [checkpoint_of(*row) for row in rows]


def checkpoints_of_key(execution: int, after: str, limit: int) -> Select[list[CheckpointRecord]]:
    """Read the checkpoints of the execution with this key, in the order of theirs, from behind `after`."""
    return Select(_CHECKPOINTS_OF_KEY, (execution, after, limit), _checkpoints)


def checkpoints(batch_id: BatchId, position: int, after: str, limit: int) -> Select[list[CheckpointRecord]]:
    """Read the checkpoints of one execution, by key, from behind `after`."""
    return Select(_CHECKPOINTS_OF_BATCH, (batch_id, execution_key(0, position), after, limit), _checkpoints)


def count_checkpoints(batch_id: BatchId) -> Select[int]:
    """Count the checkpoints of a batch."""
    return Select(
        f"SELECT COUNT(*) FROM activity WHERE execution >= ({_FIRST}) AND execution < ({_FIRST}) + ?",
        (batch_id, batch_id, execution_key(1, RESOLVER_POSITION)),
        _number,
    )


def _number(rows: Sequence[Row]) -> int:
    return int(rows[0][0])


def events(batch_id: BatchId, after: int, limit: int) -> Select[list[EventRecord]]:
    """Read a batch's events behind this sequence number, in order."""
    return Select(
        f"SELECT {EVENT_RECORD.names} FROM event WHERE batch = (SELECT key FROM batch WHERE batch_id = ?) "
        "AND seq > ? ORDER BY seq LIMIT ?",
        (batch_id, after, limit),
        partial(events_of, batch_id),
    )


# ---- failed documents ------------------------------------------------------------------------------------------------


def failures(batch_id: BatchId) -> Select[CountedFailures]:
    """Read the groups of failed documents of a batch's current run."""
    return Select(
        f"SELECT batch.failed, batch.run, {FAILURE_GROUP.of('f')} FROM batch "
        "LEFT JOIN failure f ON f.batch = batch.key AND f.run = batch.run WHERE batch.batch_id = ? "
        "ORDER BY f.fingerprint",
        (batch_id,),
        partial(counted_failures_of, batch_id),
    )


# ---- workers ---------------------------------------------------------------------------------------------------------


def workers() -> Select[list[WorkerRecord]]:
    """Read the workers that are alive."""
    return Select(f"SELECT {WORKER_RECORD.names} FROM worker", (), _workers_of)


def _workers_of(rows: Sequence[Row]) -> list[WorkerRecord]:
    return [worker_of(row) for row in rows]


def leases(boot: Micros) -> Select[dict[WorkerId, Lease]]:
    """Read the leases of the workers that are alive, which are measured on this clock."""
    return Select(
        "SELECT worker_id, lease_until - ?, lease FROM worker",
        (boot,),
        _leases_of,
    )


def _leases_of(rows: Sequence[Row]) -> dict[WorkerId, Lease]:
    return {row[0]: Lease(*row[1:]) for row in rows}


# ---- why a batch is where it is --------------------------------------------------------------------------------------

_EXECUTIONS: Final = (
    f"SELECT key, {EXECUTION_RECORD.names} FROM execution INDEXED BY {{}} "
    "WHERE batch = (SELECT key FROM batch WHERE batch_id = ?) AND {} LIMIT ?"
)
_OWNED: Final = _EXECUTIONS.format("execution_owner", "owner IS NOT NULL ORDER BY key")
_ISOLATED: Final = _EXECUTIONS.format(
    "execution_isolated", f"due IS NOT NULL AND crashes >= {ISOLATED_CRASHES} AND due > 0 ORDER BY due, key"
)


def owned(batch_id: BatchId, limit: int) -> Select[list[ExecutionRecord]]:
    """Read the executions of a batch that a worker owns."""
    return Select(_OWNED, (batch_id, limit), partial(_executions_of, batch_id))


def isolated(batch_id: BatchId, limit: int) -> Select[list[ExecutionRecord]]:
    """Read the executions of a batch that can be claimed and have crashed several times."""
    return Select(_ISOLATED, (batch_id, limit), partial(_executions_of, batch_id))


def resolver(batch_id: BatchId) -> Select[ExecutionRecord | None]:
    """Read the execution of a batch's resolver."""

    def decode(rows: Sequence[Row]) -> ExecutionRecord | None:
        return next(iter(_executions_of(batch_id, rows)), None)

    return Select(
        f"SELECT key, {EXECUTION_RECORD.names} FROM execution WHERE key = ({_FIRST})",
        (batch_id,),
        decode,
    )


def due(batch_id: BatchId, limit: int) -> Select[list[Micros]]:
    """Read when the documents of a batch are due that wait for a time, first due first."""
    return Select(
        "SELECT due FROM execution INDEXED BY execution_due "
        f"WHERE batch = (SELECT key FROM batch WHERE batch_id = ?) AND due > 0 AND key <> ({_FIRST}) "
        "AND status = 'waiting' ORDER BY due LIMIT ?",
        (batch_id, batch_id, limit),
        _moments,
    )


def _moments(rows: Sequence[Row]) -> list[Micros]:
    return [row[0] for row in rows]


def _executions_of(batch_id: BatchId, rows: Sequence[Row]) -> list[ExecutionRecord]:
    return [execution_of(batch_id, position_of(row[0]), row[1:]) for row in rows]
