"""Claims: which batches are served, and what it takes to run the executions that a worker takes of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from durable_batches.lifecycle.planning import Candidates
from durable_batches.lifecycle.records import (
    GENERATION,
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
from durable_batches.stores.fair_share import MOST_BATCHES_A_CLAIM, fair_shares, overdue
from durable_batches.stores.rows import (
    batch_of,
    claims_of,
    execution_key,
    execution_of,
    position_of,
)
from durable_batches.stores.sqlite.reads import Select, checkpoints_of_key, has_any

__all__ = ["claimed_by", "is_claimable", "load_candidates", "load_claims", "next_due"]

_PAIRS: Final = "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
_RUNNABLE: Final = f"needs <= {GENERATION}"
_TURN: Final = "partition, priority DESC, served, key"
_DUE: Final = "execution.batch = batch.key AND execution.due IS NOT NULL AND execution.due <= ?"
_LOAD_OVERDUE: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM batch WHERE wake IS NOT NULL AND wake <= ? "
    f"AND {_RUNNABLE} AND (workflow, version) IN {_PAIRS} ORDER BY {_TURN} LIMIT ?"
)
_LOAD_OPEN: Final = (
    f"SELECT key, {BATCH_RECORD.names} FROM batch WHERE free > 0 AND {_RUNNABLE} "
    f"AND (workflow, version) IN {_PAIRS} AND EXISTS (SELECT 1 FROM execution WHERE {_DUE}) "
    f"ORDER BY {_TURN} LIMIT ?"
)
_LOAD_DUE: Final = (
    f"SELECT key, {EXECUTION_RECORD.names} FROM execution WHERE batch = ? AND due IS NOT NULL AND due <= ? "
    "ORDER BY due, key LIMIT ?"
)
_LOAD_SIGNALS: Final = (
    f"SELECT {SIGNAL.columns.names} FROM signal "
    "WHERE execution IN (SELECT value FROM json_each(?)) ORDER BY execution, ordinal"
)


def load_candidates(
    connection: sqlite3.Connection, now: Micros, request: ClaimRequest
) -> tuple[dict[BatchId, int], list[Candidates]]:
    """Load the batches whose deadline has passed, and those with something to claim, served longest ago first."""
    workflows = workflows_as_text(request.workflows)
    rows = connection.execute(_LOAD_OVERDUE, (now, workflows, MOST_BATCHES_A_CLAIM)).fetchall()
    rows += connection.execute(_LOAD_OPEN, (workflows, now, MOST_BATCHES_A_CLAIM)).fetchall()
    found = list({row[0]: row for row in rows}.values())
    keys: dict[BatchId, int] = {}
    candidates: dict[int, Candidates] = {}
    for (record, key), share in fair_shares(
        [(batch_of(row[1:]), row[0]) for row in found],
        request.limit,
        lambda pair: 0 if overdue(pair[0], now) else pair[0].free,
    ):
        keys[record.batch_id] = key
        due = connection.execute(_LOAD_DUE, (key, now, share.size)).fetchall()
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
    (due,) = connection.execute(
        "SELECT MIN((SELECT MIN(due) FROM execution WHERE execution.batch = batch.key AND due IS NOT NULL "
        f"AND due > ?)) FROM batch WHERE free > 0 AND {_RUNNABLE} AND (workflow, version) IN {_PAIRS}",
        (now, workflows),
    ).fetchone()
    (wake,) = connection.execute(
        f"SELECT MIN(wake) FROM batch WHERE wake IS NOT NULL AND {_RUNNABLE} AND (workflow, version) IN {_PAIRS}",
        (workflows,),
    ).fetchone()
    moments = [moment for moment in (due, wake) if moment is not None]
    return max(min(moments) - now, 0) if moments else None


def is_claimable(now: Micros, work: Collection[tuple[str, str]]) -> Select[bool]:
    """Whether a batch of one of these workflows has something to claim."""
    return Select(
        f"SELECT 1 FROM batch WHERE free > 0 AND {_RUNNABLE} AND (workflow, version) IN {_PAIRS} "
        f"AND EXISTS (SELECT 1 FROM execution WHERE {_DUE}) LIMIT 1",
        (workflows_as_text(work), now),
        has_any,
    )


def claimed_by(connection: sqlite3.Connection, worker: WorkerId, number: int) -> list[ExecutionKey]:
    """Find the executions that this commit of the worker claimed, and that it still owns."""
    found = connection.execute(
        "SELECT batch.batch_id, execution.key FROM execution JOIN batch ON batch.key = execution.batch "
        "WHERE execution.owner = ? AND execution.claimed_by_commit = ? ORDER BY execution.key",
        (worker, number),
    )
    return [(batch_id, position_of(key)) for batch_id, key in found]
