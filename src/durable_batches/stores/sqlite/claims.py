"""Claims: which batches are served, and what it takes to run the executions that a worker takes of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
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

_PAIRS: Final = "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:workflows))"
# The plus keeps SQLite from going through all batches of a workflow, of which most may sleep or have ended.
_OF_WORKFLOWS: Final = f"(+workflow, +version) IN {_PAIRS}"
_RUNNABLE: Final = f"needs <= {GENERATION}"
_TURN: Final = "partition, priority DESC, served, key"
_DUE: Final = "execution.batch = batch.key AND execution.due IS NOT NULL AND execution.due <= :now"
_LOAD_OVERDUE: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM BATCHES WHERE wake IS NOT NULL AND wake <= :now "
    f"AND {_RUNNABLE} AND {_OF_WORKFLOWS} WANTED ORDER BY {_TURN} LIMIT {MOST_BATCHES_A_CLAIM}"
)
_LOAD_OPEN: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM BATCHES WHERE free > 0 AND {_RUNNABLE} "
    f"AND {_OF_WORKFLOWS} WANTED AND EXISTS (SELECT 1 FROM execution WHERE {_DUE}) "
    f"ORDER BY {_TURN} LIMIT {MOST_BATCHES_A_CLAIM}"
)
_LOAD_WOKEN: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM BATCHES WHERE workflow = :name AND version = :version "
    f"AND next_due IS NOT NULL AND next_due <= :now AND {_RUNNABLE} WANTED "
    f"ORDER BY next_due, key LIMIT {MOST_BATCHES_A_CLAIM}"
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
    "SELECT MIN((SELECT MIN(due) FROM execution WHERE execution.batch = batch.key AND due IS NOT NULL AND due > :now)) "
    f"FROM BATCHES WHERE free > 0 AND {_RUNNABLE} AND {_OF_WORKFLOWS} WANTED"
)
_NEXT_WAKE: Final = f"SELECT MIN(wake) FROM BATCHES WHERE wake IS NOT NULL AND {_RUNNABLE} AND {_OF_WORKFLOWS} WANTED"
_NEXT_OF_ASLEEP: Final = (
    "SELECT MIN(next_due) FROM BATCHES WHERE workflow = :name AND version = :version AND next_due IS NOT NULL "
    f"AND next_due > :now AND {_RUNNABLE} WANTED"
)
_HAS_OPEN: Final = (
    f"EXISTS (SELECT 1 FROM BATCHES WHERE free > 0 AND {_RUNNABLE} AND {_OF_WORKFLOWS} WANTED "
    f"AND EXISTS (SELECT 1 FROM execution WHERE {_DUE}))"
)
_HAS_WOKEN: Final = (
    "EXISTS (SELECT 1 FROM (SELECT json_extract(value, '$[0]') AS name, json_extract(value, '$[1]') AS number "
    "FROM json_each(:workflows)) CROSS JOIN BATCHES WHERE workflow = name AND version = number "
    f"AND next_due IS NOT NULL AND next_due <= :now AND {_RUNNABLE} WANTED)"
)
_LOAD_SIGNALS: Final = (
    f"SELECT {SIGNAL.columns.names} FROM signal "
    "WHERE execution IN (SELECT value FROM json_each(?)) ORDER BY execution, ordinal"
)


_NAMED: Final = "(SELECT value AS named FROM json_each(:batches)) CROSS JOIN batch ON batch_id = named"
"""Batches by their ids, in that order of the loops: however many others there are, none of them is looked at."""


class _Wanted:
    """The batches that a request takes from, in its statements in place of `BATCHES` and `WANTED`."""

    def __init__(self, now: Micros, request: ClaimRequest) -> None:
        self._pairs = sorted(request.workflows)
        self._values: dict[str, object] = {"now": now, "workflows": workflows_as_text(request.workflows)}
        self._sources: list[tuple[str, str]] = []
        left_out = ""
        if request.without:
            left_out = "AND batch_id NOT IN (SELECT value FROM json_each(:without))"
            self._values["without"] = json.dumps(sorted(request.without))
        if request.names_none:
            self._sources.append(("batch", left_out))
        if request.batches is not None:
            self._sources.append((_NAMED, left_out))
            self._values["batches"] = json.dumps(sorted(request.batches))
        if request.metadata:
            conditions, labels = label_conditions(request.metadata)
            self._sources.append(("batch", f"AND {' AND '.join(conditions)} {left_out}"))
            self._values |= labels

    def fetch(self, connection: sqlite3.Connection, statement: str) -> list[Row]:
        """Execute a statement, once for each kind of name that batches are wanted by."""
        return [row for text in self._texts(statement) for row in connection.execute(text, self._values)]

    def fetch_of_each_workflow(self, connection: sqlite3.Connection, statement: str) -> list[Row]:
        """Execute a statement about the batches of one workflow (`:name`, `:version`) for each of them."""
        rows: list[Row] = []
        for text in self._texts(statement):
            for name, version in self._pairs:
                rows += connection.execute(text, {**self._values, "name": name, "version": version})
        return rows

    def any_of(self, *conditions: str) -> Select[bool]:
        """Ask whether one of these conditions holds."""
        texts = [text for condition in conditions for text in self._texts(condition)]
        return Select(f"SELECT 1 WHERE {' OR '.join(texts)}", self._values, has_any)

    def _texts(self, statement: str) -> list[str]:
        return [statement.replace("BATCHES", source).replace("WANTED", wanted) for source, wanted in self._sources]


def load_candidates(
    connection: sqlite3.Connection, now: Micros, request: ClaimRequest
) -> tuple[dict[BatchId, int], list[Candidates]]:
    """Load the batches whose deadline has passed, and those with something to claim, served longest ago first."""
    wanted = _Wanted(now, request)
    rows = [
        *wanted.fetch(connection, _LOAD_OVERDUE),
        *wanted.fetch(connection, _LOAD_OPEN),
        *wanted.fetch_of_each_workflow(connection, _LOAD_WOKEN),
    ]
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
    wanted = _Wanted(now, request)
    rows = [
        *wanted.fetch(connection, _NEXT_OF_OPEN),
        *wanted.fetch(connection, _NEXT_WAKE),
        *wanted.fetch_of_each_workflow(connection, _NEXT_OF_ASLEEP),
    ]
    moments: list[Micros] = [moment for (moment,) in rows if moment is not None]
    return max(min(moments) - now, 0) if moments else None


def is_claimable(now: Micros, request: ClaimRequest) -> Select[bool]:
    """Whether a batch that the request takes from has something to claim."""
    return _Wanted(now, request).any_of(_HAS_OPEN, _HAS_WOKEN)


def claimed_by(connection: sqlite3.Connection, worker: WorkerId, number: int) -> list[ExecutionKey]:
    """Find the executions that this commit of the worker claimed, and that it still owns."""
    found = connection.execute(
        "SELECT batch.batch_id, execution.key FROM execution JOIN batch ON batch.key = execution.batch "
        "WHERE execution.owner = ? AND execution.claimed_by_commit = ? ORDER BY execution.key",
        (worker, number),
    )
    return [(batch_id, position_of(key)) for batch_id, key in found]
