"""Claims: which batches are served, and which of their executions a worker takes; within a transaction.

What has ended costs a claim nothing: a batch's row holds its front, the (due, key) before which nothing is due, and
the index is read from there. So the entries that ended executions leave behind in the index are not passed again,
whether or not the server has cleaned up after them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from durable_batches.lifecycle.planning import Candidates, Writes
from durable_batches.lifecycle.records import (
    GENERATION,
    BatchRecord,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    ExecutionKey,
    ExecutionRecord,
    Micros,
    SignalRecord,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import ACTIVITY, EXECUTION_RECORD, SIGNAL
from durable_batches.stores.fair_share import MOST_BATCHES_A_CLAIM, fair_shares, overdue, turn_of
from durable_batches.stores.postgres.commit.lock import Front, Locked, locked_columns
from durable_batches.stores.postgres.commit.write import statement_of
from durable_batches.stores.postgres.connection.server_clock import given_time
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.rows import (
    batch_of_execution,
    checkpoint_of,
    claims_of,
    execution_key,
    execution_of,
    position_of,
)

__all__ = [
    "claimable",
    "claimed_by",
    "load_candidates",
    "load_claims",
    "lock_open_batches",
    "next_due",
    "write_claims",
]

_PAIRS: Final = "(SELECT * FROM unnest($1::text[], $2::text[]))"


def _pairs(workflows: Collection[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Split (name, version) pairs into two arrays."""
    ordered = sorted(workflows)
    return [name for name, _ in ordered], [version for _, version in ordered]


_RUNNABLE: Final = f"b.needs <= {GENERATION}"
_DUE: Final = (
    "FROM {s}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL AND (e.due, e.key) >= (b.from_due, b.from_key) "
    "AND e.due <= $3"
)

_OPEN: Final = f"""
WITH open AS (
    (SELECT 0 AS rank, b.key, b.served FROM {{s}}.batch b
     WHERE b.wake IS NOT NULL AND b.wake <= $3 AND {_RUNNABLE} AND (b.workflow, b.version) IN {_PAIRS}
     ORDER BY b.partition, b.priority DESC, b.served, b.key LIMIT {MOST_BATCHES_A_CLAIM})
    UNION ALL
    (SELECT 1, b.key, b.served FROM {{s}}.batch b
     WHERE b.free > 0 AND {_RUNNABLE} AND (b.wake IS NULL OR b.wake > $3) AND (b.workflow, b.version) IN {_PAIRS}
     AND EXISTS (SELECT 1 {_DUE})
     ORDER BY b.partition, b.priority DESC, b.served, b.key LIMIT {MOST_BATCHES_A_CLAIM})
), locked AS (
    SELECT o.rank, {locked_columns("b")} FROM open o JOIN {{s}}.batch b ON b.key = o.key
    ORDER BY b.batch_id FOR UPDATE OF b LOCKING
)
SELECT (SELECT count(*) FROM open), l.* FROM (SELECT 1) one LEFT JOIN locked l ON true
"""


async def lock_open_batches(
    session: Session, now: Micros, request: ClaimRequest, *, skip: bool
) -> tuple[Locked, list[BatchRecord], int]:
    """Lock the batches with something to claim, or whose deadline has passed.

    Args:
        session: In a transaction.
        now: The time.
        request: The claim.
        skip: Pass over the batches that another session has locked: a transaction that holds locks must not wait.

    Returns:
        The batches, their records, served longest ago first, and how many were passed over.
    """
    rows = await session.fetch(_OPEN.replace("LOCKING", "SKIP LOCKED" if skip else ""), *_pairs(request.workflows), now)
    locked = Locked()
    found: list[tuple[int, tuple[str, int, int], int, BatchRecord]] = []
    for row in rows:
        if row[1] is None:
            continue
        record = locked.take(row[2:])
        if overdue(record, now) or record.free > 0:
            found.append((row[1], turn_of(record), row[2], record))
    found.sort(key=lambda item: item[:3])
    return locked, [record for *_, record in found], rows[0][0] - len(locked.keys)


async def load_candidates(
    session: Session, now: Micros, request: ClaimRequest, locked: Locked, batches: Sequence[BatchRecord]
) -> list[Candidates]:
    """Load each batch's executions that are due, as many as its share."""
    open_batches = [record for record in batches if not overdue(record, now)]
    due: dict[BatchId, list[ExecutionRecord]] = {record.batch_id: [] for record in batches}
    if open_batches and request.limit > 0:
        keys = [locked.keys[record.batch_id] for record in open_batches]
        names = dict(zip(keys, open_batches, strict=True))
        rows = await session.fetch(
            f"SELECT e.* FROM unnest($1::bigint[], $2::bigint[], $4::bigint[], $5::bigint[]) "
            "AS b(key, size, from_due, from_key) CROSS JOIN LATERAL "
            f"(SELECT e.key, {EXECUTION_RECORD.of('e')} {_DUE} ORDER BY e.due, e.key LIMIT b.size) e",
            keys,
            [min(record.free, request.limit) for record in open_batches],
            now,
            [locked.fronts[key].due for key in keys],
            [locked.fronts[key].key for key in keys],
        )
        for row in rows:
            batch_id = names[batch_of_execution(row[0])].batch_id
            due[batch_id].append(execution_of(batch_id, position_of(row[0]), row[1:]))
    candidates: dict[BatchId, Candidates] = {}
    for record, share in fair_shares(batches, request.limit, lambda record: 0 if overdue(record, now) else record.free):
        executions = due[record.batch_id][: share.size]
        share.used(len(executions))
        candidates[record.batch_id] = Candidates(record, executions)
    return list(candidates.values())


async def write_claims(
    session: Session,
    locked: Locked,
    candidates: Sequence[Candidates],
    writes: Writes,
    number: int,
    now: Micros,
    request: ClaimRequest,
) -> tuple[list[Claim], Micros | None]:
    """Write what a plan of claims says, and load what it takes to run them.

    Returns:
        The claims, and the time until something else falls due.
    """
    _move_fronts(locked, candidates, writes.executions)
    keyed = [
        (execution_key(locked.keys[execution.batch_id], execution.position), execution)
        for execution in writes.executions
    ]
    statement = statement_of(locked, writes, number)
    names, versions = _pairs(request.workflows)
    changed = [locked.keys[record.batch_id] for record in writes.batches]
    rows = await statement.run(
        session,
        _NEXT_DUE.format(
            names=statement.argument(names),
            versions=statement.argument(versions),
            now=statement.argument(now),
            full=statement.argument([locked.keys[record.batch_id] for record in writes.batches if record.free <= 0]),
            ended=statement.argument(
                [key for key, record in zip(changed, writes.batches, strict=True) if record.wake is None]
            ),
            inputs=statement.argument([key for key, _ in keyed]),
            s="{s}",
        ),
    )
    inputs = {row[1]: row[2] for row in rows if row[1] is not None}
    signalled = [row[1] for row in rows if row[3]]
    batches = {record.batch_id: record for record in writes.batches}
    return await _claims(session, batches, keyed, inputs, signalled, request), _delay(rows[0][0], now)


def _move_fronts(locked: Locked, candidates: Sequence[Candidates], taken: Sequence[ExecutionRecord]) -> None:
    """Move each batch's front on to the first execution that was left, or behind the last that was taken."""
    mine = {(execution.batch_id, execution.position) for execution in taken}
    for batch, executions in candidates:
        key = locked.keys[batch.batch_id]
        for execution in executions:
            place = Front(execution.due or 0, execution_key(key, execution.position))
            if (execution.batch_id, execution.position) not in mine:
                locked.fronts[key] = place
                break
            locked.fronts[key] = place._replace(key=place.key + 1)


_NEXT_DUE: Final = """
SELECT soon.at, d.key, d.input, EXISTS (SELECT 1 FROM {s}.signal WHERE execution = d.key) FROM (SELECT least(
    (SELECT min((SELECT e.due FROM {s}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL AND e.due > {now}
                 ORDER BY e.due LIMIT 1))
     FROM {s}.batch b WHERE b.free > 0 AND RUNNABLE AND NOT b.key = ANY({full}::bigint[])
     AND (b.workflow, b.version) IN (SELECT * FROM unnest({names}::text[], {versions}::text[]))),
    (SELECT min(b.wake)
     FROM {s}.batch b WHERE b.wake IS NOT NULL AND RUNNABLE AND NOT b.key = ANY({ended}::bigint[])
     AND (b.workflow, b.version) IN (SELECT * FROM unnest({names}::text[], {versions}::text[])))
) AS at) soon LEFT JOIN {s}.document d ON d.key = ANY({inputs}::bigint[])
""".replace("RUNNABLE", _RUNNABLE)
"""When something falls due, of what is not `full` or `ended` by the claim that this comes with; and its inputs."""


def _delay(moment: Micros | None, now: Micros) -> Micros | None:
    return None if moment is None else max(moment - now, 0)


async def next_due(session: Session, now: Micros, request: ClaimRequest) -> Micros | None:
    """Compute the time until something that this worker can run falls due; None: nothing will."""
    places = _NEXT_DUE.format(names="$1", versions="$2", now="$3::bigint", full="$4", ended="$5", inputs="$6", s="{s}")
    moment = await session.value(places, *_pairs(request.workflows), now, [], [], [])
    return _delay(moment, now)


async def load_claims(
    session: Session,
    batches: Mapping[BatchId, BatchRecord],
    keyed: Sequence[tuple[int, ExecutionRecord]],
    request: ClaimRequest,
) -> list[Claim]:
    """Load what it takes to run executions that were claimed before."""
    keys = [key for key, _ in keyed]
    rows = await session.fetch("SELECT key, input FROM {s}.document WHERE key = ANY($1::bigint[])", keys)
    return await _claims(session, batches, keyed, dict(rows), keys, request)


async def _claims(
    session: Session,
    batches: Mapping[BatchId, BatchRecord],
    keyed: Sequence[tuple[int, ExecutionRecord]],
    inputs: Mapping[int, bytes],
    signalled: Sequence[int],
    request: ClaimRequest,
) -> list[Claim]:
    # A first attempt has recorded nothing yet.
    again = [key for key, execution in keyed if execution.attempt > 1]
    checkpoints: dict[int, list[CheckpointRecord]] = {}
    signals: dict[int, list[SignalRecord]] = {}
    if again:
        for row in await session.fetch(
            f"SELECT a.* FROM unnest($1::bigint[]) AS wanted(key) CROSS JOIN LATERAL (SELECT {ACTIVITY.columns.names} "
            "FROM {s}.activity WHERE execution = wanted.key ORDER BY key LIMIT $2) a ORDER BY a.execution, a.key",
            again,
            request.checkpoints + 1,
        ):
            checkpoints.setdefault(row[0], []).append(checkpoint_of(*row[1:]))
    if signalled:
        for row in await session.fetch(
            f"SELECT {SIGNAL.columns.names} FROM {{s}}.signal WHERE execution = ANY($1::bigint[]) "
            "ORDER BY execution, ordinal",
            signalled,
        ):
            signals.setdefault(row[0], []).append(SignalRecord(row[1], "", row[2], row[3]))
    return claims_of(batches, keyed, inputs, checkpoints, signals, request)


async def claimed_by(session: Session, worker: WorkerId, number: int) -> list[ExecutionKey]:
    """Find the executions that this commit of the worker claimed, and that it still owns."""
    rows = await session.fetch(
        "SELECT b.batch_id, e.key FROM {s}.execution e JOIN {s}.batch b ON b.key = e.batch "
        "WHERE e.owner IS NOT NULL AND e.owner = $1 AND e.claimed_by_commit = $2 ORDER BY e.key",
        worker,
        number,
    )
    return [(batch_id, position_of(key)) for batch_id, key in rows]


async def claimable(session: Session, now: Micros | None, work: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Find the workflows, of these, that have something to claim."""
    rows = await session.fetch(
        "SELECT w.name, w.version FROM unnest($1::text[], $2::text[]) AS w(name, version) "
        f"CROSS JOIN (SELECT {given_time(3)} AS now) c WHERE EXISTS (SELECT 1 FROM {{s}}.batch b "
        f"WHERE b.free > 0 AND {_RUNNABLE} AND b.workflow = w.name AND b.version = w.version "
        f"AND EXISTS (SELECT 1 {_DUE.replace('$3', 'c.now')}))",
        *_pairs(work),
        now,
    )
    return {(name, version) for name, version in rows}
