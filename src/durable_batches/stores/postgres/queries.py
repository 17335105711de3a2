"""The statements of the Postgres store: records to rows and back. Runs inside a transaction; decides nothing.

Each statement is one round trip, whatever the number of rows: these go as arrays (`unnest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from durable_batches.lifecycle.planning import Loaded
from durable_batches.lifecycle.records import (
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
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import (
    BATCH_COLUMNS,
    CHANGING_COLUMNS,
    EXECUTION_COLUMNS,
    batch_changes,
    batch_of,
    batch_of_execution,
    checkpoint_of,
    execution_key,
    execution_keys,
    execution_of,
    position_of,
)
from durable_batches.stores.postgres.commit.lock import Locked, columns_of
from durable_batches.stores.postgres.connection.connection import Session
from durable_batches.stores.protocol import BatchQuery

# ---- batches ---------------------------------------------------------------------------------------------------------


async def insert_batch(session: Session, record: BatchRecord) -> bool:
    """Whether it is new."""
    values = (record.batch_id, record.workflow, record.version, record.created_at, _labels(record.metadata))
    changes = batch_changes(record)
    places = ", ".join(f"${number}" for number in range(1, len(values) + len(changes) + 1))
    key = await session.value(
        f"INSERT INTO {{s}}.batch (batch_id, workflow, version, created_at, labels, {CHANGING_COLUMNS}) "
        f"VALUES ({places}) ON CONFLICT (batch_id) DO NOTHING RETURNING key",
        *values,
        *changes,
    )
    return key is not None


async def load_batch(session: Session, batch_id: BatchId) -> tuple[int, BatchRecord] | None:
    row = await session.row(f"SELECT {BATCH_COLUMNS} FROM {{s}}.batch WHERE batch_id = $1", batch_id)
    return None if row is None else (row[0], batch_of(tuple(row)))


async def load_batches(session: Session, query: BatchQuery, after: BatchId | None, limit: int) -> list[BatchRecord]:
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
        add("labels @> {}::text[]", _labels(query.metadata))
    if query.created_before is not None:
        add("created_at < {}", query.created_before)
    rows = await session.fetch(
        f"SELECT {BATCH_COLUMNS} FROM {{s}}.batch WHERE {' AND '.join(conditions)} "
        f"ORDER BY key DESC LIMIT ${len(values) + 1}",
        *values,
        limit,
    )
    return [batch_of(tuple(row)) for row in rows]


def _labels(metadata: Mapping[str, str]) -> list[str]:
    """A digest of each label: of a bounded length, and without what a text of the server cannot hold."""
    return [
        hashlib.blake2b(json.dumps(label).encode(), digest_size=16).hexdigest() for label in sorted(metadata.items())
    ]


async def delete_batch(session: Session, batch: int) -> None:
    low, high = execution_keys(batch)
    for table, column in (
        ("execution", "key"),
        ("document", "key"),
        ("outcome", "key"),
        ("activity", "execution"),
        ("signal", "execution"),
    ):
        await session.fetch(f"DELETE FROM {{s}}.{table} WHERE {column} >= $1 AND {column} < $2", low, high)
    await session.fetch("DELETE FROM {s}.event WHERE batch = $1", batch)
    await session.fetch("DELETE FROM {s}.batch WHERE key = $1", batch)


# ---- executions --------------------------------------------------------------------------------------------------


async def insert_executions(session: Session, batch: int, executions: Sequence[tuple[ExecutionRecord, bytes]]) -> None:
    keys = [execution_key(batch, execution.position) for execution, _ in executions]
    columns: list[list[Any]] = [
        list(column) for column in zip(*(execution[2:] for execution, _ in executions), strict=True)
    ]
    await session.fetch(
        "WITH inputs AS (INSERT INTO {s}.document (key, input) SELECT * FROM unnest($2::bigint[], $3::bytea[])) "
        f"INSERT INTO {{s}}.execution (key, batch, {EXECUTION_COLUMNS}) "
        f"SELECT e.key, $1, {columns_of('e', EXECUTION_COLUMNS)} "
        "FROM unnest($2::bigint[], $4::text[], $5::int[], $6::text[], $7::int[], $8::int[], $9::int[], $10::int[], "
        "$11::bool[], $12::text[], $13::bigint[], $14::bigint[]) "
        f"AS e(key, {EXECUTION_COLUMNS})",
        batch,
        keys,
        [payload for _, payload in executions],
        *columns,
    )


async def document_ids(session: Session, batch: int, documents: Iterable[NewDocument]) -> dict[int, str]:
    """Which of these documents' positions are taken already, and by which document."""
    rows = await session.fetch(
        "SELECT key, document_id FROM {s}.execution WHERE key = ANY($1::bigint[])",
        [execution_key(batch, document.position) for document in documents],
    )
    return {position_of(key): document_id for key, document_id in rows}


async def taken_document_id(session: Session, batch: int, ids: Iterable[str]) -> str | None:
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
    """The executions, of batches that are locked; what is known already is not read again."""
    executions: dict[ExecutionKey, ExecutionRecord] = {}
    unknown: list[int] = []
    for key in wanted:
        if key in known:
            executions[key] = known[key]
        elif key[0] in locked.keys:
            unknown.append(execution_key(locked.keys[key[0]], key[1]))
    if unknown:
        names = {key: batch_id for batch_id, key in locked.keys.items()}
        for row in await session.fetch(
            f"SELECT key, {EXECUTION_COLUMNS} FROM {{s}}.execution WHERE key = ANY($1::bigint[])", unknown
        ):
            batch_id, position = names[batch_of_execution(row[0])], position_of(row[0])
            executions[(batch_id, position)] = execution_of(batch_id, position, tuple(row)[1:])
    return Loaded(now, locked.records, executions)


async def owned_by(session: Session, workers: Collection[WorkerId]) -> list[ExecutionKey]:
    """What these workers own, and the resolvers of the batches concerned."""
    rows = await session.fetch(
        "SELECT b.batch_id, e.key FROM {s}.execution e JOIN {s}.batch b ON b.key = e.batch "
        "WHERE e.owner IS NOT NULL AND e.owner = ANY($1::text[])",
        sorted(workers),
    )
    owned = {(batch_id, position_of(key)) for batch_id, key in rows}
    return sorted(owned | {(key[0], RESOLVER_POSITION) for key in owned})


async def load_documents(
    session: Session,
    batch_id: BatchId,
    statuses: Collection[ExecutionStatus],
    after: int,
    limit: int,
    inputs: bool,
) -> list[DocumentRecord]:
    batch = await session.value("SELECT key FROM {s}.batch WHERE batch_id = $1", batch_id)
    if batch is None:
        return []
    payload, join = ("d.input", "JOIN {s}.document d ON d.key = e.key ") if inputs else ("''::bytea", "")
    rows = await session.fetch(
        f"SELECT e.key, {payload}, o.payload, {columns_of('e', EXECUTION_COLUMNS)} FROM {{s}}.execution e "
        f"{join}LEFT JOIN {{s}}.outcome o ON o.key = e.key "
        f"WHERE e.key > $1 AND e.key < $2 {'AND e.status = ANY($4::text[]) ' if statuses else ''}"
        "ORDER BY e.key LIMIT $3",
        execution_key(batch, after),
        execution_keys(batch)[1],
        limit,
        *([sorted(statuses)] if statuses else []),
    )
    return [DocumentRecord(execution_of(batch_id, position_of(row[0]), tuple(row)[3:]), row[1], row[2]) for row in rows]


# ---- reading ---------------------------------------------------------------------------------------------------------


async def load_checkpoints(
    session: Session, batch_id: BatchId, position: int, after: str, limit: int
) -> list[CheckpointRecord]:
    batch = await session.value("SELECT key FROM {s}.batch WHERE batch_id = $1", batch_id)
    if batch is None:
        return []
    rows = await session.fetch(
        "SELECT key, failed, payload FROM {s}.activity WHERE execution = $1 AND key > $2 ORDER BY key LIMIT $3",
        execution_key(batch, position),
        after,
        limit,
    )
    return [checkpoint_of(*row) for row in rows]


async def count_checkpoints(session: Session, batch_id: BatchId) -> int:
    batch = await session.value("SELECT key FROM {s}.batch WHERE batch_id = $1", batch_id)
    if batch is None:
        return 0
    count = await session.value(
        "SELECT count(*) FROM {s}.activity WHERE execution >= $1 AND execution < $2", *execution_keys(batch)
    )
    return int(count)


async def load_events(session: Session, batch_id: BatchId, after: int, limit: int) -> list[EventRecord]:
    rows = await session.fetch(
        "SELECT seq, at, tag, data FROM {s}.event WHERE batch = (SELECT key FROM {s}.batch WHERE batch_id = $1) "
        "AND seq > $2 ORDER BY seq LIMIT $3",
        batch_id,
        after,
        limit,
    )
    return [EventRecord(batch_id, *row) for row in rows]


async def load_numbers(session: Session, batch_ids: Collection[BatchId]) -> dict[BatchId, int]:
    """The last events of these batches."""
    rows = await session.fetch("SELECT batch_id, seq FROM {s}.batch WHERE batch_id = ANY($1::text[])", list(batch_ids))
    return dict(rows)
