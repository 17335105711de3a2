"""Claims: which batches are served, and what it takes to run the executions that a worker takes of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from durable_batches.lifecycle.planning import ISOLATED_CRASHES, Candidates, has_to_know_next_due
from durable_batches.lifecycle.records import (
    GENERATION,
    NOW,
    BatchRecord,
    Claim,
    ClaimRequest,
    ExecutionKey,
    ExecutionRecord,
    Micros,
    SignalRecord,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import BATCH_RECORD, EXECUTION_RECORD, SIGNAL, workflows_as_text
from durable_batches.stores.fair_share import MOST_BATCHES_A_CLAIM, claimable_slots, fair_shares, overdue, turn_of
from durable_batches.stores.rows import (
    Row,
    batch_of,
    claims_of,
    execution_key,
    execution_of,
    position_of,
)
from durable_batches.stores.sqlite.reads import Select, checkpoints_of_key, has_any, label_conditions

__all__ = ["claimed_by", "is_claimable", "load_candidates", "load_claims", "next_due"]

_PAIRS: Final = "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
# The plus keeps SQLite from going through all batches of a workflow, of which most may sleep or have ended.
_OF_WORKFLOWS: Final = f"(+workflow, +version) IN {_PAIRS}"
_RUNNABLE: Final = f"needs <= {GENERATION}"
_TURN: Final = "partition, priority DESC, served, key"
_DUE: Final = "execution.batch = batch.key AND execution.due IS NOT NULL AND execution.due <= ?"
_LOAD_OVERDUE: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM batch WHERE wake IS NOT NULL AND wake <= ? "
    f"AND {_RUNNABLE} AND {_OF_WORKFLOWS} WANTED ORDER BY {_TURN} LIMIT ?"
)
_LOAD_OPEN: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM batch WHERE free > 0 AND {_RUNNABLE} "
    f"AND {_OF_WORKFLOWS} AND EXISTS (SELECT 1 FROM execution WHERE {_DUE}) "
    f"WANTED ORDER BY {_TURN} LIMIT ?"
)
_LOAD_WOKEN: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM batch WHERE workflow = ? AND version = ? AND next_due IS NOT NULL "
    f"AND next_due <= ? AND {_RUNNABLE} WANTED ORDER BY next_due, key LIMIT ?"
)


def _range(condition: str, order: str) -> str:
    """Select the first executions of one range of `claim_order`."""
    return (
        f"SELECT * FROM (SELECT key, {EXECUTION_RECORD.names} FROM execution "
        f"WHERE batch = :batch AND due IS NOT NULL AND {condition} ORDER BY {order} LIMIT :size)"
    )


_LOAD_DUE: Final = " UNION ALL ".join(
    [
        _range(f"due > {NOW} AND due <= :now AND crashes < {ISOLATED_CRASHES}", "due, key"),
        _range(f"due = {NOW}", "key"),
        _range(f"due > {NOW} AND due <= :now AND crashes >= {ISOLATED_CRASHES}", "due, key"),
    ]
)
_LOAD_NEXT_DUE: Final = (
    "SELECT due FROM execution WHERE batch = ? AND due IS NOT NULL "
    "AND key NOT IN (SELECT value FROM json_each(?)) ORDER BY due LIMIT 1"
)
_NEXT_OF_OPEN: Final = (
    "SELECT MIN((SELECT MIN(due) FROM execution WHERE execution.batch = batch.key AND due IS NOT NULL AND due > ?)) "
    f"FROM batch WHERE free > 0 AND {_RUNNABLE} AND {_OF_WORKFLOWS} WANTED"
)
_NEXT_WAKE: Final = f"SELECT MIN(wake) FROM batch WHERE wake IS NOT NULL AND {_RUNNABLE} AND {_OF_WORKFLOWS} WANTED"
_NEXT_OF_ASLEEP: Final = (
    "SELECT MIN(next_due) FROM batch WHERE workflow = ? AND version = ? AND next_due IS NOT NULL "
    f"AND next_due > ? AND {_RUNNABLE} WANTED"
)
_IS_CLAIMABLE: Final = (
    f"SELECT 1 WHERE EXISTS (SELECT 1 FROM batch WHERE free > 0 AND {_RUNNABLE} AND {_OF_WORKFLOWS} "
    f"AND EXISTS (SELECT 1 FROM execution WHERE {_DUE})) OR EXISTS ("
    "SELECT 1 FROM json_each(?) AS pair CROSS JOIN batch ON workflow = json_extract(pair.value, '$[0]') "
    "AND version = json_extract(pair.value, '$[1]') "
    f"WHERE next_due IS NOT NULL AND next_due <= ? AND {_RUNNABLE})"
)
_LOAD_SIGNALS: Final = (
    f"SELECT {SIGNAL.columns.names} FROM signal "
    "WHERE execution IN (SELECT value FROM json_each(?)) ORDER BY execution, ordinal"
)


class _Wanted:
    """The condition on batches that a request takes from; in its statements in place of `WANTED`."""

    def __init__(self, request: ClaimRequest) -> None:
        conditions: list[str] = []
        self.arguments: list[str] = []
        if not request.takes_from_all:
            conditions.append("batch_id IN (SELECT value FROM json_each(?))")
            self.arguments.append(json.dumps(sorted(request.batches or ())))
            if request.metadata:
                has_labels, labels = label_conditions(request.metadata)
                conditions.append(" AND ".join(has_labels))
                self.arguments += labels
        self._condition = f"AND ({' OR '.join(conditions)})" if conditions else ""

    def in_(self, statement: str) -> str:
        """Return the statement with the condition."""
        return statement.replace("WANTED", self._condition)


def load_candidates(
    connection: sqlite3.Connection, now: Micros, request: ClaimRequest
) -> tuple[dict[BatchId, int], list[Candidates]]:
    """Load the batches whose deadline has passed, and those with something to claim, served longest ago first."""
    workflows = workflows_as_text(request.workflows)
    wanted = _Wanted(request)
    rows: list[Row] = []
    for statement, arguments in (
        (_LOAD_OVERDUE, (now, workflows)),
        (_LOAD_OPEN, (workflows, now)),
        *((_LOAD_WOKEN, (*pair, now)) for pair in request.workflows),
    ):
        rows += connection.execute(wanted.in_(statement), (*arguments, *wanted.arguments, MOST_BATCHES_A_CLAIM))
    found = [(batch_of(row[1:]), row[0]) for row in {row[0]: row for row in rows}.values()]
    found.sort(key=lambda pair: (not overdue(pair[0], now), turn_of(pair[0]), pair[1]))
    keys: dict[BatchId, int] = {}
    candidates: dict[int, Candidates] = {}
    for (record, key), share in fair_shares(found, request.limit, lambda pair: claimable_slots(pair[0], now)):
        keys[record.batch_id] = key
        due = connection.execute(_LOAD_DUE, {"batch": key, "now": now, "size": share.size}).fetchall()
        share.used(min(len(due), share.size))
        executions = [execution_of(record.batch_id, position_of(row[0]), row[1:]) for row in due]
        candidates[key] = Candidates(
            record, executions, _next_due_beside(connection, key, record, executions), share.size
        )
    return keys, list(candidates.values())


def _next_due_beside(
    connection: sqlite3.Connection, key: int, batch: BatchRecord, executions: Sequence[ExecutionRecord]
) -> Micros | None:
    """Find when the first of the batch's other executions is due; None: none will be."""
    if not has_to_know_next_due(batch, executions):
        return NOW
    mine = json.dumps([execution_key(key, execution.position) for execution in executions])
    row = connection.execute(_LOAD_NEXT_DUE, (key, mine)).fetchone()
    return None if row is None else row[0]


def load_claims(
    connection: sqlite3.Connection,
    keys: Mapping[BatchId, int],
    batches: Mapping[BatchId, BatchRecord],
    executions: Sequence[ExecutionRecord],
    request: ClaimRequest,
) -> list[Claim]:
    """Load what it takes to run these executions."""
    numbers = [execution_key(keys[execution.batch_id], execution.position) for execution in executions]
    everything = json.dumps(numbers)
    inputs = dict(
        connection.execute(
            "SELECT key, input FROM document WHERE key IN (SELECT value FROM json_each(?))", (everything,)
        ).fetchall()
    )
    signals: dict[int, list[SignalRecord]] = {}
    for key, ordinal, name, payload in connection.execute(_LOAD_SIGNALS, (everything,)):
        signals.setdefault(key, []).append(SignalRecord(ordinal, "", name, payload))
    # A first attempt has recorded nothing yet.
    checkpoints = {
        key: checkpoints_of_key(key, "", request.checkpoints + 1).on(connection)
        for key, execution in zip(numbers, executions, strict=True)
        if execution.attempt > 1
    }
    return claims_of(batches, zip(numbers, executions, strict=True), inputs, checkpoints, signals, request)


def next_due(connection: sqlite3.Connection, now: Micros, request: ClaimRequest) -> Micros | None:
    """Compute the time until something that this worker can run falls due; None: nothing will."""
    workflows = workflows_as_text(request.workflows)
    wanted = _Wanted(request)
    moments: list[Micros] = []
    for statement, arguments in (
        (_NEXT_OF_OPEN, (now, workflows)),
        (_NEXT_WAKE, (workflows,)),
        *((_NEXT_OF_ASLEEP, (*pair, now)) for pair in request.workflows),
    ):
        (moment,) = connection.execute(wanted.in_(statement), (*arguments, *wanted.arguments)).fetchone()
        if moment is not None:
            moments.append(moment)
    return max(min(moments) - now, 0) if moments else None


def is_claimable(now: Micros, work: Collection[tuple[str, str]]) -> Select[bool]:
    """Whether a batch of one of these workflows has something to claim."""
    workflows = workflows_as_text(work)
    return Select(_IS_CLAIMABLE, (workflows, now, workflows, now), has_any)


def claimed_by(connection: sqlite3.Connection, worker: WorkerId, number: int) -> list[ExecutionKey]:
    """Find the executions that this commit of the worker claimed, and that it still owns."""
    found = connection.execute(
        "SELECT batch.batch_id, execution.key FROM execution JOIN batch ON batch.key = execution.batch "
        "WHERE execution.owner = ? AND execution.claimed_by_commit = ? ORDER BY execution.key",
        (worker, number),
    )
    return [(batch_id, position_of(key)) for batch_id, key in found]
