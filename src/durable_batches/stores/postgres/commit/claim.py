"""Claims: which batches are served, and which of their executions a worker takes; within a transaction.

A batch's executions that are due are three ranges, of which a claim takes one after the other: woken, never started,
isolated. What has ended costs a claim nothing: a batch's row holds the fronts of the first two, the (due, key) before
which nothing is due, and the index is read from there. So the entries that ended executions leave behind in the index
are not passed again, whether or not the server has cleaned up after them. The third are few, and have an index.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby, islice
from typing import Final

from durable_batches.lifecycle.planning import (
    ISOLATED_CRASHES,
    NEVER_STARTED,
    WOKEN,
    Candidates,
    Writes,
    claim_order,
    has_to_know_next_due,
)
from durable_batches.lifecycle.records import (
    GENERATION,
    NOW,
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
from durable_batches.stores.fair_share import MOST_BATCHES_A_CLAIM, claimable_slots, fair_shares, overdue, turn_of
from durable_batches.stores.postgres.commit.lock import Front, Locked, locked_columns
from durable_batches.stores.postgres.commit.write import statement_of
from durable_batches.stores.postgres.connection.server_clock import given_time
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.postgres.queries import labels_of
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


def _batches(request: ClaimRequest, arguments: list[object]) -> str:
    """Write what stands for the batches that a request takes from, and append its arguments."""
    if request.takes_from_all:
        return "{s}.batch b"
    left_out = ""
    if request.without:
        arguments.append(sorted(request.without))
        left_out = f" WHERE NOT b.batch_id = ANY(${len(arguments)}::text[])"
    if request.names_none:
        return f"(SELECT b.* FROM {{s}}.batch b{left_out}) b"
    sources: list[str] = []
    others = ""
    if request.batches is not None:
        arguments.append(sorted(request.batches))
        # One by one, by their ids, whatever the server thinks of it: none of the others is looked at.
        sources.append(
            f"SELECT own.* FROM unnest(${len(arguments)}::text[]) AS named (batch_id) CROSS JOIN LATERAL "
            "(SELECT * FROM {s}.batch o WHERE o.batch_id = named.batch_id OFFSET 0) own"
        )
        others = f" AND NOT o.batch_id = ANY(${len(arguments)}::text[])"
    if request.metadata:
        arguments.append(labels_of(request.metadata))
        sources.append(f"SELECT o.* FROM {{s}}.batch o WHERE o.labels @> ${len(arguments)}::text[]{others}")
    return f"(SELECT b.* FROM ({' UNION ALL '.join(sources)}) b{left_out}) b"


# Not the columns themselves, or the server may go through all batches of a workflow, most of which sleep or have ended.
_OF_WORKFLOWS: Final = "(b.workflow || '', b.version || '')"
_RUNNABLE: Final = f"b.needs <= {GENERATION}"
# Of two lower bounds, the server may begin at the lower one; so they are the same, but for the key.
_WOKEN: Final = (
    f"FROM {{s}}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL AND e.due >= greatest(b.woken_due, {NOW + 1}) "
    f"AND (e.due, e.key) >= (greatest(b.woken_due, {NOW + 1}), b.woken_key) AND e.crashes < {ISOLATED_CRASHES}"
)
_NEW: Final = (
    f"FROM {{s}}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL AND e.due = {NOW} "
    f"AND e.key >= b.from_key AND b.from_due = {NOW}"
)
_ISOLATED: Final = (
    f"FROM {{s}}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL AND e.due > {NOW} "
    f"AND e.crashes >= {ISOLATED_CRASHES}"
)
_HAS_DUE: Final = (
    # One after the other, until there is one.
    f"coalesce((SELECT 1 {_NEW} ORDER BY e.due, e.key LIMIT 1), "
    f"(SELECT 1 {_WOKEN} AND e.due <= $3 ORDER BY e.due, e.key LIMIT 1), "
    f"(SELECT 1 {_ISOLATED} AND e.due <= $3 ORDER BY e.due, e.key LIMIT 1)) IS NOT NULL"
)

_OPEN: Final = f"""
WITH open AS (
    (SELECT 0 AS rank, b.key FROM BATCHES
     WHERE b.wake IS NOT NULL AND b.wake <= $3 AND {_RUNNABLE} AND {_OF_WORKFLOWS} IN {_PAIRS}
     ORDER BY b.partition, b.priority DESC, b.served, b.key LIMIT {MOST_BATCHES_A_CLAIM})
    UNION ALL
    (SELECT 1, b.key FROM BATCHES
     WHERE b.free > 0 AND {_RUNNABLE} AND (b.wake IS NULL OR b.wake > $3) AND {_OF_WORKFLOWS} IN {_PAIRS}
     AND {_HAS_DUE}
     ORDER BY b.partition, b.priority DESC, b.served, b.key LIMIT {MOST_BATCHES_A_CLAIM})
    UNION ALL
    (SELECT 1, w.key FROM unnest($1::text[], $2::text[]) AS p (name, version) CROSS JOIN LATERAL (
         SELECT b.key, b.next_due FROM BATCHES
         WHERE b.workflow = p.name AND b.version = p.version AND b.next_due IS NOT NULL AND b.next_due <= $3
         AND b.free = 0 AND {_RUNNABLE} AND (b.wake IS NULL OR b.wake > $3)
         ORDER BY b.next_due, b.key LIMIT {MOST_BATCHES_A_CLAIM}
     ) w)
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
    arguments: list[object] = [*_pairs(request.workflows), now]
    statement = _OPEN.replace("BATCHES", _batches(request, arguments))
    rows = await session.fetch(statement.replace("LOCKING", "SKIP LOCKED" if skip else ""), *arguments)
    locked = Locked()
    found: list[tuple[int, tuple[str, int, int], int, BatchRecord]] = []
    for row in rows:
        if row[1] is None:
            continue
        record = locked.take(row[2:])
        if overdue(record, now) or claimable_slots(record, now) > 0:
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
            _LOAD_DUE,
            keys,
            [min(claimable_slots(record, now), request.limit) for record in open_batches],
            now,
            *zip(*[locked.fronts[key] for key in keys], strict=True),
        )
        for row in rows:
            batch_id = names[batch_of_execution(row[0])].batch_id
            due[batch_id].append(execution_of(batch_id, position_of(row[0]), row[1:]))
    candidates: dict[BatchId, Candidates] = {}
    for record, share in fair_shares(batches, request.limit, lambda record: claimable_slots(record, now)):
        executions = _first_of_each_range(due[record.batch_id], share.size)
        share.used(min(len(executions), share.size))
        candidates[record.batch_id] = Candidates(record, executions, share=share.size)
    return await _with_next_due(session, locked, list(candidates.values()))


_LOAD_DUE: Final = (
    "SELECT e.* FROM unnest($1::bigint[], $2::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[]) "
    "AS b (key, size, from_due, from_key, woken_due, woken_key) CROSS JOIN LATERAL ("
    + " UNION ALL ".join(
        f"(SELECT e.key, {EXECUTION_RECORD.of('e')} {which} ORDER BY e.due, e.key LIMIT b.size)"
        for which in (f"{_WOKEN} AND e.due <= $3", _NEW, f"{_ISOLATED} AND e.due <= $3")
    )
    + ") e"
)


def _first_of_each_range(executions: Iterable[ExecutionRecord], size: int) -> list[ExecutionRecord]:
    ordered = sorted(executions, key=claim_order)
    return [
        execution
        for _, of_range in groupby(ordered, key=lambda execution: claim_order(execution)[0])
        for execution in islice(of_range, size)
    ]


async def _with_next_due(session: Session, locked: Locked, candidates: list[Candidates]) -> list[Candidates]:
    """Look up when the first of a batch's other executions is due, where the plan has to know."""
    wanted = {
        locked.keys[candidate.batch.batch_id]: index
        for index, candidate in enumerate(candidates)
        if has_to_know_next_due(candidate.batch, candidate.executions)
    }
    if wanted:
        mine = [
            execution_key(key, execution.position)
            for key, index in wanted.items()
            for execution in candidates[index].executions
        ]
        woken = [locked.fronts[key][2:] for key in wanted]
        for key, due in await session.fetch(_LOAD_NEXT_DUE, list(wanted), *zip(*woken, strict=True), mine):
            candidates[wanted[key]] = candidates[wanted[key]]._replace(next_due=due)
    return candidates


_LOAD_NEXT_DUE: Final = (
    "SELECT b.key, least("
    + ", ".join(
        f"(SELECT e.due {which} AND NOT e.key = ANY($4::bigint[]) ORDER BY e.due, e.key LIMIT 1)"
        for which in (_WOKEN, _ISOLATED)
    )
    + ") FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS b (key, woken_due, woken_key)"
)


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
    was_free = {candidate.batch.batch_id for candidate in candidates if candidate.batch.free > 0}
    rows = await statement.run(
        session,
        _NEXT_DUE.format(
            names=statement.argument(names),
            versions=statement.argument(versions),
            now=statement.argument(now),
            changed=statement.argument(changed),
            full=statement.argument([locked.keys[record.batch_id] for record in writes.batches if record.free <= 0]),
            opened=statement.argument(
                [
                    locked.keys[record.batch_id]
                    for record in writes.batches
                    if record.free > 0 and record.batch_id not in was_free
                ]
            ),
            ended=statement.argument(
                [key for key, record in zip(changed, writes.batches, strict=True) if record.wake is None]
            ),
            inputs=statement.argument([key for key, _ in keyed]),
            batches=_batches(request, statement.args),
            s="{s}",
        ),
    )
    inputs = {row[1]: row[2] for row in rows if row[1] is not None}
    signalled = [row[1] for row in rows if row[3]]
    batches = {record.batch_id: record for record in writes.batches}
    asleep = [record.next_due for record in writes.batches if record.next_due is not None and record.next_due > now]
    moments = [*asleep, *(row[0] for row in rows[:1] if row[0] is not None)]
    claims = await _claims(session, batches, keyed, inputs, signalled, request)
    return claims, _delay(min(moments, default=None), now)


def _move_fronts(locked: Locked, candidates: Sequence[Candidates], taken: Sequence[ExecutionRecord]) -> None:
    """Move each batch's fronts on to the first execution that was left, or behind the last that was taken."""
    mine = {(execution.batch_id, execution.position) for execution in taken}
    for candidate in candidates:
        key = locked.keys[candidate.batch.batch_id]
        new = [execution for execution in candidate.executions if claim_order(execution)[0] == NEVER_STARTED]
        woken = [execution for execution in candidate.executions if claim_order(execution)[0] == WOKEN]
        if new:
            locked.fronts[key] = locked.fronts[key].with_new(_front_of(key, new, mine))
        if woken:
            locked.fronts[key] = locked.fronts[key].with_woken(_front_of(key, woken, mine))


def _front_of(batch: int, executions: Sequence[ExecutionRecord], taken: Collection[ExecutionKey]) -> Front:
    front: Front = 0, 0
    for execution in executions:
        front = execution.due or NOW, execution_key(batch, execution.position)
        if (execution.batch_id, execution.position) not in taken:
            return front
    return front[0], front[1] + 1


_NEXT_DUE: Final = """
SELECT soon.at, d.key, d.input, EXISTS (SELECT 1 FROM {s}.signal WHERE execution = d.key) FROM (SELECT least(
    (SELECT min((SELECT e.due FROM {s}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL AND e.due > {now}
                 ORDER BY e.due LIMIT 1))
     FROM {batches} WHERE b.free > 0 AND RUNNABLE AND NOT b.key = ANY({full}::bigint[])
     AND OF_WORKFLOWS IN (SELECT * FROM unnest({names}::text[], {versions}::text[]))),
    (SELECT min((SELECT e.due FROM {s}.execution e WHERE e.batch = b.key AND e.due IS NOT NULL AND e.due > {now}
                 ORDER BY e.due LIMIT 1))
     FROM unnest({opened}::bigint[]) AS b (key)),
    (SELECT min(asleep.next_due)
     FROM unnest({names}::text[], {versions}::text[]) AS p (name, version) CROSS JOIN LATERAL (
         SELECT b.next_due FROM {batches}
         WHERE b.workflow = p.name AND b.version = p.version AND b.next_due IS NOT NULL AND b.next_due > {now}
         AND RUNNABLE AND NOT b.key = ANY({changed}::bigint[]) ORDER BY b.next_due, b.key LIMIT 1
     ) asleep),
    (SELECT min(b.wake)
     FROM {batches} WHERE b.wake IS NOT NULL AND RUNNABLE AND NOT b.key = ANY({ended}::bigint[])
     AND OF_WORKFLOWS IN (SELECT * FROM unnest({names}::text[], {versions}::text[])))
) AS at) soon LEFT JOIN {s}.document d ON d.key = ANY({inputs}::bigint[])
""".replace("RUNNABLE", _RUNNABLE).replace("OF_WORKFLOWS", _OF_WORKFLOWS)
"""When something falls due, and the inputs of what a claim takes. It sees nothing of what that writes: these are the
batches that are `changed`, those of them that are `full` or `ended` now, and those that are awake now (`opened`)."""


def _delay(moment: Micros | None, now: Micros) -> Micros | None:
    return None if moment is None else max(moment - now, 0)


async def next_due(session: Session, now: Micros, request: ClaimRequest) -> Micros | None:
    """Compute the time until something that this worker can run falls due; None: nothing will."""
    arguments: list[object] = [*_pairs(request.workflows), now, []]
    places = _NEXT_DUE.format(
        names="$1",
        versions="$2",
        now="$3::bigint",
        changed="$4",
        full="$4",
        opened="$4",
        ended="$4",
        inputs="$4",
        batches=_batches(request, arguments),
        s="{s}",
    )
    moment = await session.value(places, *arguments)
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


_CLAIMABLE: Final = (
    "SELECT w.name, w.version FROM unnest($1::text[], $2::text[]) AS w(name, version) "
    f"CROSS JOIN (SELECT {given_time(3)} AS now) c WHERE EXISTS (SELECT 1 FROM BATCHES "
    f"WHERE b.free > 0 AND {_RUNNABLE} AND {_OF_WORKFLOWS} = (w.name, w.version) "
    f"AND {_HAS_DUE.replace('$3', 'c.now')}) OR EXISTS (SELECT 1 FROM BATCHES "
    "WHERE b.workflow = w.name AND b.version = w.version AND b.next_due IS NOT NULL AND b.next_due <= c.now "
    f"AND {_RUNNABLE})"
)


async def claimable(session: Session, now: Micros | None, request: ClaimRequest) -> set[tuple[str, str]]:
    """Find the workflows, of those of a request, that have something to claim of batches that it takes from."""
    arguments: list[object] = [*_pairs(request.workflows), now]
    rows = await session.fetch(_CLAIMABLE.replace("BATCHES", _batches(request, arguments)), *arguments)
    return {(name, version) for name, version in rows}
