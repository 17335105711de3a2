"""Limits that all workers share. Within a transaction, which makes takes wait for each other."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, TypeVar

from durable_batches.errors import WorkerFencedError
from durable_batches.lifecycle.records import Micros, SharedLimit, SharedSlot, SharedWrites, WorkerId
from durable_batches.stores.columns import SHARED_LIMIT, SHARED_SLOT

__all__ = ["take"]

T = TypeVar("T")

_WRITE_LIMIT: Final = (
    f"INSERT INTO shared_limit ({SHARED_LIMIT.columns.names}) VALUES ({SHARED_LIMIT.columns.marks}) "
    "ON CONFLICT (name) DO UPDATE SET data = excluded.data, updated_at = excluded.updated_at"
)
_WRITTEN: Final = SHARED_SLOT.choose("name", "worker", "amount", "data")
_WRITE_SLOT: Final = (
    f"INSERT INTO shared_slot ({_WRITTEN.names}) VALUES ({_WRITTEN.marks}) "
    "ON CONFLICT (name, worker) DO UPDATE SET amount = excluded.amount, data = excluded.data"
)


def take(
    connection: sqlite3.Connection,
    boot: Micros,
    now: Micros,
    name: str,
    worker: WorkerId,
    plan: Callable[[SharedLimit], SharedWrites[T]],
) -> T:
    """See `SharedLimits.take`; `boot`: the time that leases are measured on."""
    if connection.execute("SELECT 1 FROM worker WHERE worker_id = ?", (worker,)).fetchone() is None:
        raise WorkerFencedError(worker)
    row = connection.execute("SELECT data FROM shared_limit WHERE name = ?", (name,)).fetchone()
    # They go with the workers' rows, in the same transaction.
    slots = connection.execute("SELECT worker, amount, data FROM shared_slot WHERE name = ?", (name,))
    held = {WorkerId(holder): SharedSlot(amount, data) for holder, amount, data in slots}
    writes = plan(SharedLimit(boot, None if row is None else row[0], held))
    connection.execute(_WRITE_LIMIT, (name, writes.data, now))
    connection.execute(_WRITE_SLOT, (name, worker, writes.slot.amount, writes.slot.data))
    return writes.answer
