"""The statements of the SQLite store: records to rows and back. Runs inside a transaction; decides nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Final

from durable_batches.lifecycle.planning import Candidates, Loaded, Writes
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    DocumentRecord,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    ExecutionStatus,
    Micros,
    SignalRecord,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import (
    BATCH_COLUMNS,
    EXECUTION_COLUMNS,
    MOST_BATCHES_A_CLAIM,
    Row,
    batch_changes,
    batch_of,
    batch_of_execution,
    checkpoint_of,
    claims_of,
    execution_key,
    execution_keys,
    execution_of,
    position_of,
    workflows_as_text,
)
from durable_batches.stores.fair_share import fair_shares, overdue
from durable_batches.stores.protocol import BatchQuery

_ROWS_A_STEP: Final = (64, 16, 4, 1)


# ---- batches ---------------------------------------------------------------------------------------------------


def insert_batch(connection: sqlite3.Connection, record: BatchRecord) -> None:
    values = (record.batch_id, record.workflow, record.version, record.created_at, *batch_changes(record))
    connection.execute(
        "INSERT INTO batch (batch_id, workflow, version, created_at, metadata, loader, run, state, paused, total, "
        "pending, running, waiting, succeeded, failed, cancelled, seq, free, wake, served, core) "
        f"VALUES ({', '.join('?' * len(values))})",
        values,
    )


def load_batch(connection: sqlite3.Connection, batch_id: BatchId) -> tuple[int, BatchRecord] | None:
    row = connection.execute(f"SELECT {BATCH_COLUMNS} FROM batch WHERE batch_id = ?", (batch_id,)).fetchone()
    return None if row is None else (row[0], batch_of(row))


def load_batches(
    connection: sqlite3.Connection, query: BatchQuery, after: BatchId | None, limit: int
) -> list[BatchRecord]:
    conditions, values = ["loader IS NULL"], list[object]()
    if after is not None:
        conditions.append("key < (SELECT key FROM batch WHERE batch_id = ?)")
        values.append(after)
    if query.workflow is not None:
        conditions.append("workflow = ?")
        values.append(query.workflow)
    if query.states:
        conditions.append("state IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(sorted(query.states)))
    for name, value in query.metadata.items():
        conditions.append("(SELECT value FROM json_each(metadata) WHERE json_each.key = ?) = ?")
        values += [name, value]
    if query.created_before is not None:
        conditions.append("created_at < ?")
        values.append(query.created_before)
    rows = connection.execute(
        f"SELECT {BATCH_COLUMNS} FROM batch WHERE {' AND '.join(conditions)} ORDER BY key DESC LIMIT ?",
        (*values, limit),
    )
    return [batch_of(row) for row in rows]


def delete_batch(connection: sqlite3.Connection, batch_id: BatchId) -> None:
    found = load_batch(connection, batch_id)
    if found is None:
        return
    key = found[0]
    low, high = execution_keys(key)
    for table in ("execution", "document", "outcome"):
        connection.execute(f"DELETE FROM {table} WHERE key >= ? AND key < ?", (low, high))
    for table in ("activity", "signal"):
        connection.execute(f"DELETE FROM {table} WHERE execution >= ? AND execution < ?", (low, high))
    connection.execute("DELETE FROM event WHERE batch = ?", (key,))
    connection.execute("DELETE FROM batch WHERE key = ?", (key,))


# ---- executions --------------------------------------------------------------------------------------------------


def insert_executions(
    connection: sqlite3.Connection, batch: int, executions: Iterable[tuple[ExecutionRecord, bytes]]
) -> None:
    rows: list[Row] = []
    inputs: list[Row] = []
    for execution, payload in executions:
        key = execution_key(batch, execution.position)
        rows.append((key, batch, *execution[2:]))
        inputs.append((key, payload))
    connection.executemany(
        f"INSERT INTO execution (key, batch, {EXECUTION_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    connection.executemany("INSERT INTO document (key, input) VALUES (?, ?)", inputs)


def document_ids(connection: sqlite3.Connection, batch: int, positions: Iterable[int]) -> dict[int, str]:
    """Which of these positions are taken already, and by which document."""
    keys = json.dumps([execution_key(batch, position) for position in positions])
    rows = connection.execute(
        "SELECT key, document_id FROM execution WHERE key IN (SELECT value FROM json_each(?))", (keys,)
    )
    return {position_of(key): document_id for key, document_id in rows}


def taken_document_id(connection: sqlite3.Connection, batch: int, ids: Iterable[str]) -> str | None:
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
    """The executions and their batches, and the batches' keys; what is known already is not read again."""
    ids = sorted({batch_id for batch_id, _ in wanted})
    batches: dict[BatchId, BatchRecord] = {}
    keys: dict[BatchId, int] = {}
    names: dict[int, BatchId] = {}
    for row in connection.execute(
        f"SELECT {BATCH_COLUMNS} FROM batch WHERE batch_id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
    ).fetchall():
        record = batch_of(row)
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
        for row in connection.execute(
            f"SELECT key, {EXECUTION_COLUMNS} FROM execution WHERE key IN (SELECT value FROM json_each(?))",
            (json.dumps(unknown),),
        ).fetchall():
            batch_id, position = names[batch_of_execution(row[0])], position_of(row[0])
            executions[(batch_id, position)] = execution_of(batch_id, position, row[1:])
    return keys, Loaded(now, batches, executions)


def owned_by(connection: sqlite3.Connection, workers: Collection[WorkerId]) -> list[ExecutionKey]:
    """What these workers own, and the resolvers of the batches concerned."""
    rows = connection.execute(
        "SELECT batch.batch_id, execution.key FROM execution JOIN batch ON batch.key = execution.batch "
        "WHERE execution.owner IN (SELECT value FROM json_each(?)) AND execution.owner IS NOT NULL",
        (json.dumps(sorted(workers)),),
    ).fetchall()
    owned = {(batch_id, position_of(key)) for batch_id, key in rows}
    return sorted(owned | {(key[0], RESOLVER_POSITION) for key in owned})


def load_documents(
    connection: sqlite3.Connection,
    batch_id: BatchId,
    statuses: Collection[ExecutionStatus],
    after: int,
    limit: int,
    inputs: bool,
) -> list[DocumentRecord]:
    found = connection.execute("SELECT key FROM batch WHERE batch_id = ?", (batch_id,)).fetchone()
    if found is None:
        return []
    columns = ", ".join(f"execution.{column.strip()}" for column in EXECUTION_COLUMNS.split(","))
    condition, values = "", list[object]()
    if statuses:
        condition = "AND execution.status IN (SELECT value FROM json_each(?)) "
        values.append(json.dumps(sorted(statuses)))
    payload, join = ("document.input", "JOIN document ON document.key = execution.key ") if inputs else ("x''", "")
    rows = connection.execute(
        f"SELECT execution.key, {payload}, outcome.payload, {columns} FROM execution "
        f"{join}LEFT JOIN outcome ON outcome.key = execution.key "
        f"WHERE execution.key > ? AND execution.key < ? {condition}ORDER BY execution.key LIMIT ?",
        (execution_key(found[0], after), execution_key(found[0] + 1, RESOLVER_POSITION), *values, limit),
    )
    return [DocumentRecord(execution_of(batch_id, position_of(row[0]), row[3:]), row[1], row[2]) for row in rows]


# ---- what a plan writes --------------------------------------------------------------------------------------------


def apply(
    connection: sqlite3.Connection,
    keys: Mapping[BatchId, int],
    writes: Writes,
    claimed_by_commit: int | None = None,
) -> None:
    """Write what a plan says."""
    first = {batch_id: execution_key(key, 0) for batch_id, key in keys.items()}
    _many(
        connection,
        "INSERT INTO activity (execution, key, failed, payload) VALUES {rows} ON CONFLICT (execution, key) DO NOTHING",
        [
            (first[batch] + position, key, kind == "failed", payload)
            for batch, position, key, kind, payload in writes.checkpoints
        ],
    )
    _many(
        connection,
        "WITH marks (key, mark, at) AS (VALUES {rows}) UPDATE execution SET mark = marks.mark, "
        "updated_at = marks.at FROM marks WHERE execution.key = marks.key",
        [
            (
                first[execution.batch_id] + execution.position,
                execution.mark,
                execution.updated_at,
            )
            for execution in writes.marks
        ],
    )
    if writes.executions:
        connection.executemany(
            "UPDATE execution SET run = ?, status = ?, mark = ?, attempt = ?, failures = ?, crashes = ?, alone = ?, "
            "owner = ?, due = ?, updated_at = ?, claimed_by_commit = ? WHERE key = ?",
            [
                (
                    *execution[3:],
                    claimed_by_commit,
                    first[execution[0]] + execution[1],
                )
                for execution in writes.executions
            ],
        )
    _many(
        connection,
        "INSERT INTO outcome (key, payload) VALUES {rows} ON CONFLICT (key) DO UPDATE SET payload = excluded.payload",
        [(execution_key(keys[batch], position), payload) for (batch, position), payload in writes.outcomes],
    )
    if writes.forget:
        connection.executemany(
            "DELETE FROM activity WHERE execution = ? AND key = ? AND failed",
            [(execution_key(keys[batch], position), name) for (batch, position), name in writes.forget],
        )
    _many(
        connection,
        "INSERT INTO event (batch, seq, at, tag, data) VALUES {rows}",
        [(keys[batch], seq, at, tag, data) for batch, seq, at, tag, data in writes.events],
    )
    for record in writes.batches:
        connection.execute(
            "UPDATE batch SET metadata = ?, loader = ?, run = ?, state = ?, paused = ?, total = ?, pending = ?, "
            "running = ?, waiting = ?, succeeded = ?, failed = ?, cancelled = ?, seq = ?, free = ?, wake = ?, "
            "served = ?, core = ? WHERE key = ?",
            (*batch_changes(record), keys[record.batch_id]),
        )
    if writes.discard is not None:
        delete_batch(connection, writes.discard)


def _many(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> None:
    """Execute a statement over many rows, in a few steps.

    A step takes and gives back Python's lock, for which a busy event loop makes it wait; so many rows go into one
    step, by powers of four, so that there are few different statements to prepare.
    """
    start = 0
    for size in _ROWS_A_STEP:
        sql = ""
        while len(rows) - start >= size:
            part = rows[start : start + size]
            start += size
            sql = sql or statement.format(rows=", ".join([f"({', '.join('?' * len(part[0]))})"] * size))
            connection.execute(sql, tuple(chain.from_iterable(part)))


# ---- claims ----------------------------------------------------------------------------------------------------------


def load_candidates(
    connection: sqlite3.Connection, now: Micros, request: ClaimRequest
) -> tuple[dict[BatchId, int], list[Candidates]]:
    """Batches whose deadline has passed, and those with something to claim, served longest ago first."""
    workflows = workflows_as_text(request.workflows)
    rows = connection.execute(
        f"SELECT {BATCH_COLUMNS} FROM batch WHERE wake IS NOT NULL AND wake <= ? AND (workflow, version) IN {_PAIRS} "
        "ORDER BY served, key LIMIT ?",
        (now, workflows, MOST_BATCHES_A_CLAIM),
    ).fetchall()
    rows += connection.execute(
        f"SELECT {BATCH_COLUMNS} FROM batch WHERE free > 0 AND (workflow, version) IN {_PAIRS} "
        "AND EXISTS (SELECT 1 FROM execution WHERE execution.batch = batch.key "
        "AND execution.due IS NOT NULL AND execution.due <= ?) ORDER BY served, key LIMIT ?",
        (workflows, now, MOST_BATCHES_A_CLAIM),
    ).fetchall()
    found = list({row[0]: row for row in rows}.values())
    keys: dict[BatchId, int] = {}
    candidates: dict[int, Candidates] = {}
    for (record, key), share in fair_shares(
        [(batch_of(row), row[0]) for row in found],
        request.limit,
        lambda pair: 0 if overdue(pair[0], now) else pair[0].free,
    ):
        keys[record.batch_id] = key
        due = connection.execute(
            f"SELECT key, {EXECUTION_COLUMNS} FROM execution WHERE batch = ? AND due IS NOT NULL AND due <= ? "
            "ORDER BY due, key LIMIT ?",
            (key, now, share.size),
        ).fetchall()
        share.used(len(due))
        executions = [execution_of(record.batch_id, position_of(row[0]), row[1:]) for row in due]
        candidates[key] = Candidates(record, executions)
    return keys, list(candidates.values())


def load_claims(
    connection: sqlite3.Connection,
    keys: Mapping[BatchId, int],
    batches: Mapping[BatchId, BatchRecord],
    executions: Sequence[ExecutionRecord],
    request: ClaimRequest,
) -> list[Claim]:
    """What it takes to run these executions."""
    numbers = [execution_key(keys[execution.batch_id], execution.position) for execution in executions]
    everything = json.dumps(numbers)
    inputs = dict(
        connection.execute(
            "SELECT key, input FROM document WHERE key IN (SELECT value FROM json_each(?))", (everything,)
        ).fetchall()
    )
    signals: dict[int, list[SignalRecord]] = {}
    for key, ordinal, name, payload in connection.execute(
        "SELECT execution, ordinal, name, payload FROM signal "
        "WHERE execution IN (SELECT value FROM json_each(?)) ORDER BY execution, ordinal",
        (everything,),
    ):
        signals.setdefault(key, []).append(SignalRecord(ordinal, "", name, payload))
    # A first attempt has recorded nothing yet.
    checkpoints = {
        key: load_checkpoints(connection, key, "", request.checkpoints + 1)
        for key, execution in zip(numbers, executions, strict=True)
        if execution.attempt > 1
    }
    return claims_of(batches, zip(numbers, executions, strict=True), inputs, checkpoints, signals, request)


def next_due(connection: sqlite3.Connection, now: Micros, request: ClaimRequest) -> Micros | None:
    """The time until something that this worker can run falls due."""
    workflows = workflows_as_text(request.workflows)
    (due,) = connection.execute(
        "SELECT MIN((SELECT MIN(due) FROM execution WHERE execution.batch = batch.key AND due IS NOT NULL "
        f"AND due > ?)) FROM batch WHERE free > 0 AND (workflow, version) IN {_PAIRS}",
        (now, workflows),
    ).fetchone()
    (wake,) = connection.execute(
        f"SELECT MIN(wake) FROM batch WHERE wake IS NOT NULL AND (workflow, version) IN {_PAIRS}",
        (workflows,),
    ).fetchone()
    moments = [moment for moment in (due, wake) if moment is not None]
    return max(min(moments) - now, 0) if moments else None


def is_claimable(connection: sqlite3.Connection, now: Micros, work: Collection[tuple[str, str]]) -> bool:
    row = connection.execute(
        f"SELECT 1 FROM batch WHERE free > 0 AND (workflow, version) IN {_PAIRS} "
        "AND EXISTS (SELECT 1 FROM execution WHERE execution.batch = batch.key "
        "AND execution.due IS NOT NULL AND execution.due <= ?) LIMIT 1",
        (workflows_as_text(work), now),
    ).fetchone()
    return row is not None


_PAIRS: Final = "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"


# ---- reading ---------------------------------------------------------------------------------------------------------


def load_checkpoints(connection: sqlite3.Connection, execution: int, after: str, limit: int) -> list[CheckpointRecord]:
    rows = connection.execute(
        "SELECT key, failed, payload FROM activity WHERE execution = ? AND key > ? ORDER BY key LIMIT ?",
        (execution, after, limit),
    )
    return [checkpoint_of(*row) for row in rows]


def count_checkpoints(connection: sqlite3.Connection, batch: int) -> int:
    (count,) = connection.execute(
        "SELECT COUNT(*) FROM activity WHERE execution >= ? AND execution < ?",
        execution_keys(batch),
    ).fetchone()
    return int(count)


def load_events(connection: sqlite3.Connection, batch_id: BatchId, after: int, limit: int) -> list[EventRecord]:
    rows = connection.execute(
        "SELECT seq, at, tag, data FROM event WHERE batch = (SELECT key FROM batch WHERE batch_id = ?) "
        "AND seq > ? ORDER BY seq LIMIT ?",
        (batch_id, after, limit),
    )
    return [EventRecord(batch_id, *row) for row in rows]


def has_moved(connection: sqlite3.Connection, seen: Mapping[BatchId, int]) -> bool:
    row = connection.execute(
        "SELECT 1 FROM json_each(?) AS seen JOIN batch ON batch.batch_id = seen.key "
        "WHERE batch.seq > seen.value LIMIT 1",
        (json.dumps(dict(seen)),),
    ).fetchone()
    return row is not None


def claimed_by(connection: sqlite3.Connection, worker: WorkerId, number: int) -> list[ExecutionKey]:
    """The executions that this commit of the worker claimed, and that it owns still."""
    found = connection.execute(
        "SELECT batch.batch_id, execution.key FROM execution JOIN batch ON batch.key = execution.batch "
        "WHERE execution.owner = ? AND execution.claimed_by_commit = ? ORDER BY execution.key",
        (worker, number),
    )
    return [(batch_id, position_of(key)) for batch_id, key in found]
