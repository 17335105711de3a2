"""Batches, documents and what they have recorded: loaded, inserted and deleted. Runs within a transaction.

Each statement is one round trip, whatever the number of rows: these go as arrays (`unnest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from durable_batches.lifecycle.planning import REQUESTS_ARE_KEPT, Loaded
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    DocumentRecord,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    ExecutionStatus,
    Micros,
    NewDocument,
    RequestRecord,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import (
    BATCH,
    BATCH_RECORD,
    CHECKPOINT,
    DOCUMENT,
    EVENT_RECORD,
    EXECUTION,
    EXECUTION_RECORD,
    FAILURE_GROUP,
    REQUEST,
    REQUESTS_A_COMMAND,
)
from durable_batches.stores.postgres.commit.lock import Locked
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.protocol import BatchQuery, CountedFailures
from durable_batches.stores.rows import (
    batch_of,
    batch_of_execution,
    batch_values,
    checkpoint_of,
    counted_failures_of,
    events_of,
    execution_key,
    execution_keys,
    execution_of,
    execution_values,
    position_of,
)

# ---- batches ---------------------------------------------------------------------------------------------------------


_INSERTED_BATCH: Final = BATCH_RECORD.and_also(*BATCH.choose("labels"))
_INSERT_BATCH: Final = (
    f"INSERT INTO {{s}}.batch ({_INSERTED_BATCH.names}) VALUES ({_INSERTED_BATCH.numbered(1)}) "
    "ON CONFLICT (batch_id) DO NOTHING RETURNING key"
)
_LOAD_BATCH: Final = f"SELECT key, {BATCH_RECORD.names} FROM {{s}}.batch WHERE batch_id = $1"


async def insert_batch(session: Session, record: BatchRecord) -> bool:
    """Insert a batch's row; False: this id exists, and nothing was changed."""
    key = await session.value(_INSERT_BATCH, *batch_values(record), labels_of(record.metadata))
    return key is not None


async def load_batch(session: Session, batch_id: BatchId) -> tuple[int, BatchRecord] | None:
    """Load a batch, with its key; None: there is none of this id."""
    row = await session.row(_LOAD_BATCH, batch_id)
    return None if row is None else (row[0], batch_of(row[1:]))


async def load_batches(session: Session, query: BatchQuery, after: BatchId | None, limit: int) -> list[BatchRecord]:
    """Load the sealed batches that the query is about, newest first, from behind `after`."""
    conditions, values = ["loader IS NULL"], list[object]()

    def add(condition: str, value: object) -> None:
        values.append(value)
        conditions.append(condition.format(f"${len(values)}"))

    if after is not None:
        add("key < (SELECT key FROM {{s}}.batch WHERE batch_id = {})", after)
    if query.workflow is not None:
        add("workflow = {}", query.workflow)
    if query.states:
        add("state = ANY({}::text[])", sorted(query.states))
    if query.metadata:
        add("labels @> {}::text[]", labels_of(query.metadata))
    if query.created_before is not None:
        add("created_at < {}", query.created_before)
    rows = await session.fetch(
        f"SELECT {BATCH_RECORD.names} FROM {{s}}.batch WHERE {' AND '.join(conditions)} "
        f"ORDER BY key DESC LIMIT ${len(values) + 1}",
        *values,
        limit,
    )
    return [batch_of(row) for row in rows]


async def load_abandoned(session: Session, created_before: Micros, limit: int) -> list[BatchRecord]:
    """Load the unsealed batches whose loader is gone, the oldest first."""
    rows = await session.fetch(
        f"SELECT {BATCH_RECORD.names} FROM {{s}}.batch WHERE loader IS NOT NULL AND created_at < $1 AND NOT EXISTS "
        "(SELECT 1 FROM {s}.worker WHERE worker.worker_id = batch.loader OR worker.before = batch.loader) "
        "ORDER BY key LIMIT $2",
        created_before,
        limit,
    )
    return [batch_of(row) for row in rows]


def labels_of(metadata: Mapping[str, str]) -> list[str]:
    """Digest each label: to a bounded length, and without the characters that a text of the server cannot hold."""
    return [
        hashlib.blake2b(json.dumps(label).encode(), digest_size=16).hexdigest() for label in sorted(metadata.items())
    ]


async def delete_batch(session: Session, batch: int) -> None:
    """Delete all rows of a batch."""
    low, high = execution_keys(batch)
    for table, column in (
        ("execution", "key"),
        ("document", "key"),
        ("outcome", "key"),
        ("activity", "execution"),
        ("signal", "execution"),
        ("wait", "execution"),
    ):
        await session.fetch(f"DELETE FROM {{s}}.{table} WHERE {column} >= $1 AND {column} < $2", low, high)
    for table in ("event", "request", "failure", "job"):
        await session.fetch(f"DELETE FROM {{s}}.{table} WHERE batch = $1", batch)
    await session.fetch("DELETE FROM {s}.batch WHERE key = $1", batch)


# ---- executions --------------------------------------------------------------------------------------------------


_STORED: Final = EXECUTION.choose("key").and_also(*EXECUTION_RECORD)
_INSERT_EXECUTIONS: Final = (
    f"WITH inputs AS (INSERT INTO {{s}}.document ({DOCUMENT.columns.names}) "
    "SELECT * FROM unnest($2::bigint[], $3::bytea[])) "
    f"INSERT INTO {{s}}.execution (batch, {_STORED.names}) SELECT $1, {_STORED.of('e')} "
    f"FROM unnest($2::bigint[], {EXECUTION_RECORD.arrays(4)}) AS e({_STORED.names})"
)
_LOAD_EXECUTIONS: Final = f"SELECT key, {EXECUTION_RECORD.names} FROM {{s}}.execution WHERE key = ANY($1::bigint[])"


async def insert_executions(session: Session, batch: int, executions: Sequence[tuple[ExecutionRecord, bytes]]) -> None:
    """Insert the rows of new documents: their executions and their inputs."""
    keys = [execution_key(batch, execution.position) for execution, _ in executions]
    columns: list[list[Any]] = [
        list(column) for column in zip(*(execution_values(execution) for execution, _ in executions), strict=True)
    ]
    await session.fetch(
        _INSERT_EXECUTIONS,
        batch,
        keys,
        [payload for _, payload in executions],
        *columns,
    )


async def load_document_ids(session: Session, batch: int, documents: Iterable[NewDocument]) -> dict[int, str]:
    """Load the ids of the documents at these positions, as far as they are taken."""
    rows = await session.fetch(
        "SELECT key, document_id FROM {s}.execution WHERE key = ANY($1::bigint[])",
        [execution_key(batch, document.position) for document in documents],
    )
    return {position_of(key): document_id for key, document_id in rows}


async def taken_document_id(session: Session, batch: int, ids: Iterable[str]) -> str | None:
    """Find a document of the batch that has one of these ids already."""
    found: str | None = await session.value(
        "SELECT document_id FROM {s}.execution WHERE batch = $1 AND document_id = ANY($2::text[]) LIMIT 1",
        batch,
        list(ids),
    )
    return found


async def load_executions(
    session: Session,
    now: Micros,
    locked: Locked,
    wanted: Collection[ExecutionKey],
    known: Mapping[ExecutionKey, ExecutionRecord] = MappingProxyType({}),
) -> Loaded:
    """Load executions of batches that are locked; what is known already is not read again."""
    executions: dict[ExecutionKey, ExecutionRecord] = {}
    unknown: list[int] = []
    for key in wanted:
        if key in known:
            executions[key] = known[key]
        elif key[0] in locked.keys:
            unknown.append(execution_key(locked.keys[key[0]], key[1]))
    if unknown:
        names = {key: batch_id for batch_id, key in locked.keys.items()}
        for row in await session.fetch(_LOAD_EXECUTIONS, unknown):
            batch_id, position = names[batch_of_execution(row[0])], position_of(row[0])
            executions[(batch_id, position)] = execution_of(batch_id, position, row[1:])
    return Loaded(now, locked.records, executions)


async def owned_by(session: Session, workers: Collection[WorkerId]) -> list[ExecutionKey]:
    """Find the executions that these workers own, and the resolvers of the batches concerned."""
    rows = await session.fetch(
        "SELECT b.batch_id, e.key FROM {s}.execution e JOIN {s}.batch b ON b.key = e.batch "
        "WHERE e.owner IS NOT NULL AND e.owner = ANY($1::text[])",
        sorted(workers),
    )
    owned = {(batch_id, position_of(key)) for batch_id, key in rows}
    return sorted(owned | {(key[0], RESOLVER_POSITION) for key in owned})


async def taken_from(session: Session, worker: WorkerId) -> list[ExecutionKey]:
    """Find the unfinished executions whose latest crash was counted for this worker."""
    rows = await session.fetch(
        # What others own by now, and what can be claimed, each by an index.
        "SELECT b.batch_id, e.key FROM {s}.execution e JOIN {s}.batch b ON b.key = e.batch "
        "WHERE e.owner IS NOT NULL AND e.taken_from = $1 UNION ALL "
        "SELECT b.batch_id, e.key FROM {s}.batch b CROSS JOIN LATERAL ("
        "SELECT key FROM {s}.execution WHERE batch = b.key AND due IS NOT NULL "
        f"AND due > {NOW} AND taken_from = $1 OFFSET 0) e "
        "WHERE b.ended_at IS NULL",
        worker,
    )
    return sorted((batch_id, position_of(key)) for batch_id, key in rows)


async def load_documents(
    session: Session,
    batch_id: BatchId,
    statuses: Collection[ExecutionStatus],
    after: int,
    limit: int,
    inputs: bool,
) -> list[DocumentRecord]:
    """Load a page of documents, in submission order; without `inputs`, those are empty."""
    if not statuses:
        return await _load_documents(session, batch_id, after, limit, inputs)
    condition = "AND e.status = ANY($4::text[]) "
    return await _load_documents(session, batch_id, after, limit, inputs, condition, sorted(statuses))


async def load_failed_documents(
    session: Session, batch_id: BatchId, fingerprint: str, after: int, limit: int, inputs: bool
) -> list[DocumentRecord]:
    """Load a page of the failed documents with this fingerprint."""
    condition = (
        "AND e.batch = (SELECT key FROM {s}.batch WHERE batch_id = $4) AND e.fingerprint = $5 "
        "AND e.fingerprint IS NOT NULL AND e.status = 'failed' "
    )
    return await _load_documents(session, batch_id, after, limit, inputs, condition, batch_id, fingerprint)


async def _load_documents(
    session: Session, batch_id: BatchId, after: int, limit: int, inputs: bool, condition: str = "", *arguments: object
) -> list[DocumentRecord]:
    batch = await session.value("SELECT key FROM {s}.batch WHERE batch_id = $1", batch_id)
    if batch is None:
        return []
    payload, join = ("d.input", "JOIN {s}.document d ON d.key = e.key ") if inputs else ("''::bytea", "")
    rows = await session.fetch(
        f"SELECT e.key, {payload}, o.payload, {EXECUTION_RECORD.of('e')} FROM {{s}}.execution e "
        f"{join}LEFT JOIN {{s}}.outcome o ON o.key = e.key "
        f"WHERE e.key > $1 AND e.key < $2 {condition}"
        "ORDER BY e.key LIMIT $3",
        execution_key(batch, after),
        execution_keys(batch)[1],
        limit,
        *arguments,
    )
    return [DocumentRecord(execution_of(batch_id, position_of(row[0]), row[3:]), row[1], row[2]) for row in rows]


# ---- requests --------------------------------------------------------------------------------------------------------

_WRITE_REQUEST: Final = (
    f"INSERT INTO {{s}}.request ({REQUEST.columns.names}) VALUES ({REQUEST.columns.numbered(1)}) "
    "ON CONFLICT (batch, id) DO UPDATE SET at = excluded.at, answer = excluded.answer"
)
_DELETE_REQUESTS: Final = (
    "DELETE FROM {s}.request r USING (SELECT batch, id FROM {s}.request WHERE at < $1 ORDER BY at LIMIT $2 "
    "FOR UPDATE SKIP LOCKED) AS old WHERE r.batch = old.batch AND r.id = old.id"
)


async def load_requests(session: Session, batch: int, request_ids: Collection[str], now: Micros) -> dict[str, str]:
    """Load the answers to these requests, as far as they were made and not too long ago."""
    rows = await session.fetch(
        "SELECT id, answer FROM {s}.request WHERE batch = $1 AND id = ANY($2::text[]) AND at >= $3",
        batch,
        list(request_ids),
        now - REQUESTS_ARE_KEPT,
    )
    return {row[0]: row[1] for row in rows}


async def write_request(session: Session, batch: int, request: RequestRecord) -> None:
    """Write the answer to a request, and delete some that are too old to be given again."""
    await session.fetch(_WRITE_REQUEST, batch, request.request_id, request.at, request.answer)
    await session.fetch(_DELETE_REQUESTS, request.at - REQUESTS_ARE_KEPT, REQUESTS_A_COMMAND)


# ---- reading ---------------------------------------------------------------------------------------------------------


async def load_recorded(
    session: Session, locked: Locked, wanted: Iterable[tuple[ExecutionKey, str]]
) -> set[tuple[ExecutionKey, str]]:
    """Find which of these checkpoints are there."""
    by_row = {
        (execution_key(locked.keys[execution[0]], execution[1]), key): (execution, key)
        for execution, key in wanted
        if execution[0] in locked.keys
    }
    rows = await session.fetch(
        "SELECT a.execution, a.key FROM {s}.activity a JOIN unnest($1::bigint[], $2::text[]) AS late(execution, key) "
        "ON a.execution = late.execution AND a.key = late.key",
        [execution for execution, _ in by_row],
        [key for _, key in by_row],
    )
    return {by_row[execution, key] for execution, key in rows}


async def load_checkpoints(
    session: Session, batch_id: BatchId, position: int, after: str, limit: int
) -> list[CheckpointRecord]:
    """Load the checkpoints of one execution, by key, from behind `after`."""
    batch = await session.value("SELECT key FROM {s}.batch WHERE batch_id = $1", batch_id)
    if batch is None:
        return []
    rows = await session.fetch(
        f"SELECT {CHECKPOINT.names} FROM {{s}}.activity WHERE execution = $1 AND key > $2 ORDER BY key LIMIT $3",
        execution_key(batch, position),
        after,
        limit,
    )
    return [checkpoint_of(*row) for row in rows]


async def count_checkpoints(session: Session, batch_id: BatchId) -> int:
    """Count the checkpoints of a batch."""
    batch = await session.value("SELECT key FROM {s}.batch WHERE batch_id = $1", batch_id)
    if batch is None:
        return 0
    count = await session.value(
        "SELECT count(*) FROM {s}.activity WHERE execution >= $1 AND execution < $2", *execution_keys(batch)
    )
    return int(count)


async def load_events(session: Session, batch_id: BatchId, after: int, limit: int) -> list[EventRecord]:
    """Load a batch's events behind this sequence number, in order."""
    rows = await session.fetch(
        f"SELECT {EVENT_RECORD.names} FROM {{s}}.event "
        "WHERE batch = (SELECT key FROM {s}.batch WHERE batch_id = $1) "
        "AND seq > $2 ORDER BY seq LIMIT $3",
        batch_id,
        after,
        limit,
    )
    return events_of(batch_id, rows)


async def load_failures(session: Session, batch_id: BatchId) -> CountedFailures:
    """Load the groups of failed documents of a batch's current run."""
    rows = await session.fetch(
        f"SELECT b.failed, b.run, {FAILURE_GROUP.of('f')} FROM {{s}}.batch b "
        "LEFT JOIN {s}.failure f ON f.batch = b.key AND f.run = b.run WHERE b.batch_id = $1 ORDER BY f.fingerprint",
        batch_id,
    )
    return counted_failures_of(batch_id, rows)


async def load_numbers(session: Session, batch_ids: Collection[BatchId]) -> dict[BatchId, int]:
    """Load the sequence numbers of these batches' last events."""
    rows = await session.fetch("SELECT batch_id, seq FROM {s}.batch WHERE batch_id = ANY($1::text[])", list(batch_ids))
    return dict(rows)
