"""Batches, documents and what they have recorded: loaded, and written as a plan says. Runs within a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Final

from durable_batches.lifecycle.failure_groups import EXAMPLES_KEPT
from durable_batches.lifecycle.planning import REQUESTS_ARE_KEPT, Loaded, Writes
from durable_batches.lifecycle.records import (
    BatchRecord,
    ExecutionKey,
    ExecutionRecord,
    Micros,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import (
    ACTIVITY,
    BATCH_CHANGES,
    BATCH_RECORD,
    DOCUMENT,
    EVENT,
    EXECUTION,
    EXECUTION_CHANGES,
    EXECUTION_RECORD,
    FAILURE,
    OUTCOME,
    REQUEST,
    REQUESTS_A_COMMAND,
    Columns,
)
from durable_batches.stores.rows import (
    Row,
    batch_changes,
    batch_of,
    batch_of_execution,
    batch_values,
    execution_changes,
    execution_key,
    execution_keys,
    execution_of,
    execution_values,
    position_of,
)

__all__ = [
    "apply",
    "insert_batch",
    "insert_executions",
    "load_document_ids",
    "load_executions",
    "load_recorded",
    "load_requests",
    "taken_document_id",
]

_ROWS_A_STEP: Final = (64, 16, 4, 1)

# ---- batches ---------------------------------------------------------------------------------------------------------

_INSERT_BATCH: Final = f"INSERT INTO batch ({BATCH_RECORD.names}) VALUES ({BATCH_RECORD.marks})"
_LOAD_BATCHES: Final = f"SELECT key, {BATCH_RECORD.names} FROM batch WHERE batch_id IN (SELECT value FROM json_each(?))"


def insert_batch(connection: sqlite3.Connection, record: BatchRecord) -> None:
    """Insert a batch's row."""
    connection.execute(_INSERT_BATCH, batch_values(record))


def _delete_batch(connection: sqlite3.Connection, key: int) -> None:
    low, high = execution_keys(key)
    for table in ("execution", "document", "outcome"):
        connection.execute(f"DELETE FROM {table} WHERE key >= ? AND key < ?", (low, high))
    for table in ("activity", "signal", "wait"):
        connection.execute(f"DELETE FROM {table} WHERE execution >= ? AND execution < ?", (low, high))
    for table in ("event", "request", "failure", "job"):
        connection.execute(f"DELETE FROM {table} WHERE batch = ?", (key,))
    connection.execute("DELETE FROM batch WHERE key = ?", (key,))


# ---- executions ------------------------------------------------------------------------------------------------------

_INSERTED: Final = EXECUTION.choose("key", "batch").and_also(*EXECUTION_RECORD)
_INSERT_EXECUTION: Final = f"INSERT INTO execution ({_INSERTED.names}) VALUES ({_INSERTED.marks})"
_INSERT_DOCUMENT: Final = f"INSERT INTO document ({DOCUMENT.columns.names}) VALUES ({DOCUMENT.columns.marks})"
_LOAD_EXECUTIONS: Final = (
    f"SELECT key, {EXECUTION_RECORD.names} FROM execution WHERE key IN (SELECT value FROM json_each(?))"
)


_FIND_CHECKPOINT: Final = "SELECT 1 FROM activity WHERE execution = ? AND key = ?"


def insert_executions(
    connection: sqlite3.Connection, batch: int, executions: Iterable[tuple[ExecutionRecord, bytes]]
) -> None:
    """Insert the rows of new documents: their executions and their inputs."""
    rows: list[Row] = []
    inputs: list[Row] = []
    for execution, payload in executions:
        key = execution_key(batch, execution.position)
        rows.append((key, batch, *execution_values(execution)))
        inputs.append((key, payload))
    connection.executemany(_INSERT_EXECUTION, rows)
    connection.executemany(_INSERT_DOCUMENT, inputs)


def load_document_ids(connection: sqlite3.Connection, batch: int, positions: Iterable[int]) -> dict[int, str]:
    """Load the ids of the documents at these positions, as far as they are taken."""
    keys = json.dumps([execution_key(batch, position) for position in positions])
    rows = connection.execute(
        "SELECT key, document_id FROM execution WHERE key IN (SELECT value FROM json_each(?))", (keys,)
    )
    return {position_of(key): document_id for key, document_id in rows}


def taken_document_id(connection: sqlite3.Connection, batch: int, ids: Iterable[str]) -> str | None:
    """Find a document of the batch that has one of these ids already."""
    row = connection.execute(
        "SELECT document_id FROM execution WHERE batch = ? AND document_id IN (SELECT value FROM json_each(?)) LIMIT 1",
        (batch, json.dumps(list(ids))),
    ).fetchone()
    return None if row is None else row[0]


def load_executions(
    connection: sqlite3.Connection,
    now: Micros,
    wanted: Collection[ExecutionKey],
    known: Mapping[ExecutionKey, ExecutionRecord] = MappingProxyType({}),
) -> tuple[dict[BatchId, int], Loaded]:
    """Load executions and their batches, and the batches' keys; what is known already is not read again."""
    ids = sorted({batch_id for batch_id, _ in wanted})
    batches: dict[BatchId, BatchRecord] = {}
    keys: dict[BatchId, int] = {}
    names: dict[int, BatchId] = {}
    for row in connection.execute(_LOAD_BATCHES, (json.dumps(ids),)).fetchall():
        record = batch_of(row[1:])
        batches[record.batch_id] = record
        keys[record.batch_id] = row[0]
        names[row[0]] = record.batch_id
    executions: dict[ExecutionKey, ExecutionRecord] = {}
    unknown: list[int] = []
    for key in wanted:
        execution = known.get(key)
        if execution is not None:
            executions[key] = execution
        elif key[0] in keys:
            unknown.append(execution_key(keys[key[0]], key[1]))
    if unknown:
        for row in connection.execute(_LOAD_EXECUTIONS, (json.dumps(unknown),)).fetchall():
            batch_id, position = names[batch_of_execution(row[0])], position_of(row[0])
            executions[(batch_id, position)] = execution_of(batch_id, position, row[1:])
    return keys, Loaded(now, batches, executions)


def load_recorded(
    connection: sqlite3.Connection, keys: Mapping[BatchId, int], wanted: Iterable[tuple[ExecutionKey, str]]
) -> set[tuple[ExecutionKey, str]]:
    """Find which of these checkpoints are there."""
    return {
        (execution, key)
        for execution, key in wanted
        if execution[0] in keys
        and connection.execute(_FIND_CHECKPOINT, (execution_key(keys[execution[0]], execution[1]), key)).fetchone()
    }


# ---- requests --------------------------------------------------------------------------------------------------------

_WRITE_REQUEST: Final = (
    f"INSERT INTO request ({REQUEST.columns.names}) VALUES ({REQUEST.columns.marks}) "
    "ON CONFLICT (batch, id) DO UPDATE SET at = excluded.at, answer = excluded.answer"
)
_DELETE_REQUESTS: Final = (
    "DELETE FROM request WHERE (batch, id) IN (SELECT batch, id FROM request WHERE at < ? ORDER BY at LIMIT ?)"
)


def load_requests(
    connection: sqlite3.Connection, batch: int, request_ids: Collection[str], now: Micros
) -> dict[str, str]:
    """Load the answers to these requests, as far as they were made and not too long ago."""
    if not request_ids:
        return {}
    rows = connection.execute(
        "SELECT id, answer FROM request WHERE batch = ? AND id IN (SELECT value FROM json_each(?)) AND at >= ?",
        (batch, json.dumps(list(request_ids)), now - REQUESTS_ARE_KEPT),
    )
    return dict(rows.fetchall())


def _write_requests(connection: sqlite3.Connection, keys: Mapping[BatchId, int], writes: Writes) -> None:
    for batch_id, request_id, at, answer in writes.requests:
        connection.execute(_WRITE_REQUEST, (keys[batch_id], request_id, at, answer))
        connection.execute(_DELETE_REQUESTS, (at - REQUESTS_ARE_KEPT, REQUESTS_A_COMMAND))


# ---- what a plan writes ----------------------------------------------------------------------------------------------

_MARKED: Final = EXECUTION.choose("key", "mark", "updated_at")
_CHANGED: Final = EXECUTION_CHANGES.and_also(*EXECUTION.choose("claimed_by_commit"))

_WRITE_CHECKPOINTS: Final = (
    f"INSERT INTO activity ({ACTIVITY.columns.names}) VALUES {{rows}} ON CONFLICT (execution, key) DO NOTHING"
)
_WRITE_MARKS: Final = (
    f"WITH new ({_MARKED.names}) AS (VALUES {{rows}}) "
    f"UPDATE execution SET {Columns(_MARKED[1:]).assigned_from('new')} FROM new WHERE execution.key = new.key"
)
_WRITE_EXECUTION: Final = f"UPDATE execution SET {_CHANGED.marked} WHERE key = ?"
_WRITE_OUTCOMES: Final = (
    f"INSERT INTO outcome ({OUTCOME.columns.names}) VALUES {{rows}} "
    "ON CONFLICT (key) DO UPDATE SET payload = excluded.payload"
)
_WRITE_FAILURE: Final = (
    f"INSERT INTO failure ({FAILURE.columns.names}) VALUES ({FAILURE.columns.marks}) "
    "ON CONFLICT (batch, run, fingerprint) DO UPDATE SET count = count + excluded.count, "
    "first_position = min(first_position, excluded.first_position), last_at = max(last_at, excluded.last_at), "
    f"examples = CASE WHEN count < {EXAMPLES_KEPT} THEN CAST(examples || excluded.examples AS BLOB) ELSE examples END"
)
"""As `failure_groups.added` adds."""
_WRITE_EVENTS: Final = f"INSERT INTO event ({EVENT.columns.names}) VALUES {{rows}}"
_WRITE_BATCH: Final = f"UPDATE batch SET {BATCH_CHANGES.marked} WHERE key = ?"


def apply(
    connection: sqlite3.Connection,
    keys: Mapping[BatchId, int],
    writes: Writes,
    claimed_by_commit: int | None = None,
) -> None:
    """Write what a plan says.

    Args:
        connection: In a transaction.
        keys: The batches' keys.
        writes: The plan.
        claimed_by_commit: The number of the commit that claims these executions, if one does.
    """
    # An execution's key is that of the batch's first document, moved on by the position.
    first = {batch_id: execution_key(key, 0) for batch_id, key in keys.items()}
    _many(
        connection,
        _WRITE_CHECKPOINTS,
        [
            (first[batch] + position, key, kind == "failed", *rest)
            for batch, position, key, kind, *rest in writes.checkpoints
        ],
    )
    _many(
        connection,
        _WRITE_MARKS,
        [
            (first[execution.batch_id] + execution.position, execution.mark, execution.updated_at)
            for execution in writes.marks
        ],
    )
    if writes.executions:
        connection.executemany(
            _WRITE_EXECUTION,
            [
                (*execution_changes(execution), claimed_by_commit, first[execution.batch_id] + execution.position)
                for execution in writes.executions
            ],
        )
    _many(
        connection,
        _WRITE_OUTCOMES,
        [(first[batch] + position, payload) for (batch, position), payload in writes.outcomes],
    )
    if writes.forget:
        connection.executemany(
            "DELETE FROM activity WHERE execution = ? AND key = ? AND failed",
            [(first[batch] + position, name) for (batch, position), name in writes.forget],
        )
    if writes.failures:
        connection.executemany(_WRITE_FAILURE, [(keys[batch], *rest) for batch, *rest in writes.failures])
    _many(
        connection,
        _WRITE_EVENTS,
        [(keys[batch], seq, at, tag, data) for batch, seq, at, tag, data in writes.events],
    )
    for record in writes.batches:
        connection.execute(_WRITE_BATCH, (*batch_changes(record), keys[record.batch_id]))
    _write_requests(connection, keys, writes)
    if writes.discard is not None:
        _delete_batch(connection, keys[writes.discard])


def _many(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> None:
    """Execute a statement over many rows, in a few steps.

    Each step releases Python's lock and takes it again, for which a busy event loop makes it wait. So a step takes as
    many rows as it can, of a few sizes, so that few different statements are prepared.
    """
    start = 0
    for size in _ROWS_A_STEP:
        sql = ""
        while len(rows) - start >= size:
            part = rows[start : start + size]
            start += size
            sql = sql or statement.format(rows=", ".join([f"({', '.join('?' * len(part[0]))})"] * size))
            connection.execute(sql, tuple(chain.from_iterable(part)))
