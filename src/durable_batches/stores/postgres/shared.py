"""Limits that all workers share, each behind a lock of its row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from durable_batches.errors import WorkerFencedError
from durable_batches.lifecycle.records import SharedLimit, SharedSlot, SharedWrites, WorkerId
from durable_batches.stores.columns import SHARED_SLOT
from durable_batches.stores.postgres.connection.server_clock import ServerClock, given_time
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["take"]

T = TypeVar("T")

_LOCK: Final = "SELECT data, updated_at FROM {s}.shared_limit WHERE name = $1 FOR UPDATE"
_NEVER: Final = 0
"""When a row was written that is there only to be locked."""
_BEGIN: Final = (
    "INSERT INTO {s}.shared_limit (name, data, updated_at) VALUES ($1, ''::bytea, $2) ON CONFLICT (name) DO NOTHING"
)
_HELD: Final = (
    # The time is that of this statement, and so one at which the limit is locked.
    f"SELECT w.worker_id, s.amount, s.data, {given_time(3)} FROM {{s}}.worker w "
    "LEFT JOIN {s}.shared_slot s ON s.name = $1 AND s.worker = w.worker_id "
    "WHERE w.dead IS NULL AND (w.worker_id = $2 OR s.worker IS NOT NULL)"
)
_STAYS: Final = "SELECT 1 FROM {s}.worker WHERE worker_id = $1 AND dead IS NULL FOR KEY SHARE"
_WRITTEN: Final = SHARED_SLOT.choose("name", "worker", "amount", "data")
_INSERT_SLOT: Final = f"INSERT INTO {{s}}.shared_slot ({_WRITTEN.names}) VALUES ({_WRITTEN.numbered(1)})"
_UPDATE_SLOT: Final = (
    "UPDATE {s}.shared_slot SET amount = $3, data = $4 WHERE name = $1 AND worker = $2 RETURNING worker"
)
_WRITE_LIMIT: Final = "UPDATE {s}.shared_limit SET data = $2, updated_at = $3 WHERE name = $1"


async def take(
    session: Session,
    server_clock: ServerClock,
    name: str,
    worker: WorkerId,
    plan: Callable[[SharedLimit], SharedWrites[T]],
) -> T:
    """See `SharedLimits.take`; in a transaction.

    The workers' rows are not locked, but for a worker's first take: an expiry waits for no limit. A slot is
    inserted while its worker's row cannot be deleted, and only updated from then on, so that none is left behind.
    """
    row = await session.row(_LOCK, name)
    if row is None:
        await session.fetch(_BEGIN, name, _NEVER)
        row = await session.row(_LOCK, name)
    held = await session.fetch(_HELD, name, worker, server_clock.boot())
    amounts = {WorkerId(holder): amount for holder, amount, _, _ in held}
    if worker not in amounts:
        raise WorkerFencedError(worker)
    slots = {WorkerId(holder): SharedSlot(amount, data) for holder, amount, data, _ in held if amount is not None}
    now = held[0][3]
    data, updated_at = row
    writes = plan(SharedLimit(now, data if updated_at != _NEVER else None, slots))
    if amounts[worker] is not None:
        found = await session.fetch(_UPDATE_SLOT, name, worker, *writes.slot)
    else:
        found = await session.fetch(_STAYS, worker)
        if found:
            await session.fetch(_INSERT_SLOT, name, worker, *writes.slot)
    if not found:
        raise WorkerFencedError(worker)
    await session.fetch(_WRITE_LIMIT, name, writes.data, now)
    return writes.answer
