"""Workers' rows: how a worker is registered, how it leaves, and how one whose lease has expired is found.

A row's absence is what fences a worker. Each function runs within a transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Final

from durable_batches.lifecycle.planning import Departure, KnownWorker, gone_with_machine, plan_release, plan_return
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    EventRecord,
    ExecutionKey,
    Micros,
    WorkerId,
    WorkerRecord,
)
from durable_batches.stores.columns import WORKER, WORKER_RECORD
from durable_batches.stores.protocol import LEVEL
from durable_batches.stores.rows import position_of, worker_of, worker_values
from durable_batches.stores.sqlite.connection import HOLDS_LEASE
from durable_batches.stores.sqlite.queries import apply, load_executions

__all__ = ["alive", "expired", "lost_machines", "register", "release"]

_INSERTED: Final = WORKER_RECORD.and_also(*WORKER.choose("lease", "lease_until", "commits", "refused"))
_INSERT: Final = f"INSERT INTO worker ({_INSERTED.names}) VALUES ({_INSERTED.marks})"

_RENEWED_WITHIN: Final = 6
"""A worker that was locked out for less than this part of its lease has had its chances to renew it, which is tried
three times a lease."""


_TAKEN_FROM: Final = (
    # What others own by now, and what can be claimed, each by an index; the rest has ended.
    "SELECT batch.batch_id, execution.key FROM execution JOIN batch ON batch.key = execution.batch "
    "WHERE execution.owner IS NOT NULL AND execution.taken_from = :session UNION ALL "
    "SELECT batch.batch_id, execution.key FROM batch CROSS JOIN execution ON execution.batch = batch.key "
    f"WHERE batch.ended_at IS NULL AND execution.due IS NOT NULL AND execution.due > {NOW} "
    "AND execution.taken_from = :session"
)


def register(connection: sqlite3.Connection, worker: WorkerRecord, lease: Micros, boot: Micros, now: Micros) -> None:
    """Insert a worker's row: its commits are numbered from 1, its lease counts from now.

    The crashes that were counted for the session before it are taken back.
    """
    connection.execute(_INSERT, (*worker_values(worker), lease, boot + lease, 0, "[]"))
    if worker.before is not None:
        rows = connection.execute(_TAKEN_FROM, {"session": worker.before}).fetchall()
        if rows:
            keys, loaded = load_executions(connection, now, [(batch_id, position_of(key)) for batch_id, key in rows])
            apply(connection, keys, plan_return(loaded, worker.before, level=LEVEL))


def alive(connection: sqlite3.Connection, boot: Micros) -> list[WorkerRecord]:
    """Load the workers that are not past their lease."""
    rows = connection.execute(f"SELECT {WORKER_RECORD.names} FROM worker WHERE {HOLDS_LEASE}", (boot, boot))
    return [worker_of(row) for row in rows]


def expired(
    connection: sqlite3.Connection, boot: Micros, dead: Collection[WorkerId], locked_out: Micros = 0
) -> list[WorkerId]:
    """Find the workers that are past their lease, or in `dead`.

    A lease that begins in the future was given on a clock from before a reboot.

    Args:
        connection: In a transaction.
        boot: The time that leases are measured on.
        dead: Workers whose processes have ended.
        locked_out: For how long nobody could write until a moment ago. Of a lease, that is no small part, it has not
            run out: who holds it will renew it now.
    """
    found = connection.execute(
        "SELECT worker_id FROM worker WHERE (lease_until <= ? AND lease > ?) OR lease_until > ? + lease "
        "OR worker_id IN (SELECT value FROM json_each(?))",
        (boot, locked_out * _RENEWED_WITHIN, boot, json.dumps(sorted(dead))),
    )
    return [WorkerId(worker_id) for (worker_id,) in found]


def lost_machines(connection: sqlite3.Connection, boot: Micros, gone: Collection[WorkerId]) -> frozenset[WorkerId]:
    """Find those of the workers whose whole machine is gone."""
    rows = connection.execute(f"SELECT {WORKER_RECORD.names}, lease_until - ?, lease FROM worker", (boot,))
    return gone_with_machine(gone, [KnownWorker(worker_of(row[:-2]), *row[-2:]) for row in rows])


def release(
    connection: sqlite3.Connection,
    now: Micros,
    workers: Collection[WorkerId],
    departure: Departure,
    blameless: Collection[WorkerId] = (),
) -> Sequence[EventRecord]:
    """Delete the workers' rows and what they hold of shared limits, and release the executions that they own.

    `blameless`: see `plan_release`.
    """
    ids = json.dumps(sorted(workers))
    connection.execute("DELETE FROM worker WHERE worker_id IN (SELECT value FROM json_each(?))", (ids,))
    connection.execute("DELETE FROM shared_slot WHERE worker IN (SELECT value FROM json_each(?))", (ids,))
    keys, loaded = load_executions(connection, now, _owned_by(connection, ids))
    writes = plan_release(loaded, workers, departure, level=LEVEL, blameless=blameless)
    apply(connection, keys, writes)
    return writes.events


def _owned_by(connection: sqlite3.Connection, ids: str) -> list[ExecutionKey]:
    """Find the executions that these workers own, and the resolvers of the batches concerned."""
    rows = connection.execute(
        "SELECT batch.batch_id, execution.key FROM execution JOIN batch ON batch.key = execution.batch "
        "WHERE execution.owner IN (SELECT value FROM json_each(?)) AND execution.owner IS NOT NULL",
        (ids,),
    ).fetchall()
    owned = {(batch_id, position_of(key)) for batch_id, key in rows}
    return sorted(owned | {(batch_id, RESOLVER_POSITION) for batch_id, _ in owned})
