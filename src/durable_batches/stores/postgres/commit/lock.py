"""Locks on batches, and the fence of a commit: what a transaction works on until its end."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, TypeAlias

from durable_batches.lifecycle.records import (
    BatchRecord,
    Micros,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import BATCH_FRONTS, BATCH_RECORD
from durable_batches.stores.postgres.connection.server_clock import SERVER_TIME, given_time
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.rows import Row, batch_of, execution_keys

_RECORD: Final = slice(1, 1 + len(BATCH_RECORD))
_FRONTS: Final = slice(_RECORD.stop, _RECORD.stop + len(BATCH_FRONTS))
_VERSION: Final = _FRONTS.stop


def locked_columns(batch: str = "batch") -> str:
    """What `Locked.take` takes of a batch: its key, the record, the fronts, and the version of the row."""
    return f"{batch}.key, {BATCH_RECORD.of(batch)}, {BATCH_FRONTS.of(batch)}, {batch}.xmin::text"


__all__ = [
    "OWN_VERSION",
    "Fenced",
    "Front",
    "Fronts",
    "Locked",
    "fence",
    "lock_batches",
    "lockable",
    "locked_columns",
]


Front: TypeAlias = tuple[Micros, int]
"""Where executions that are due begin: none of them is before this (due, key)."""


class Fronts(NamedTuple):
    """A batch's fronts: of its executions that were never started, and of those that were woken."""

    from_due: Micros
    from_key: int
    woken_due: Micros
    woken_key: int

    def with_new(self, front: Front) -> Fronts:
        """Return these, with another front of those that were never started."""
        return self._replace(from_due=front[0], from_key=front[1])

    def with_woken(self, front: Front) -> Fronts:
        """Return these, with another front of those that were woken."""
        return self._replace(woken_due=front[0], woken_key=front[1])


class Locked:
    """Batches that a transaction works on: their keys, their records, the versions of their rows, their fronts."""

    __slots__ = ("fronts", "keys", "records", "versions")

    def __init__(self) -> None:
        self.keys: dict[BatchId, int] = {}
        self.records: dict[BatchId, BatchRecord] = {}
        self.fronts: dict[int, Fronts] = {}
        self.versions: dict[int, str] = {}

    def take(self, row: Row) -> BatchRecord:
        """Note a row of `locked_columns`."""
        record = batch_of(row[_RECORD])
        key: int = row[0]
        self.keys[record.batch_id] = key
        self.records[record.batch_id] = record
        self.fronts[key] = Fronts(*row[_FRONTS])
        self.versions[key] = row[_VERSION]
        return record

    def were_written(self, records: Iterable[BatchRecord], version: str) -> None:
        """Note the batches as this transaction has written them."""
        for record in records:
            self.records[record.batch_id] = record
            self.versions[self.keys[record.batch_id]] = version

    def update(self, other: Locked) -> None:
        """Take over what is known of other batches, or is newer of the same."""
        self.keys.update(other.keys)
        self.records.update(other.records)
        self.fronts.update(other.fronts)
        self.versions.update(other.versions)


OWN_VERSION: Final = "pg_current_xact_id()::xid::text"
"""What `xmin` is of a row that this transaction has written."""


class Fenced(NamedTuple):
    """A commit that may be made."""

    now: Micros
    """The server's time."""
    version: str
    """Of the rows that it writes."""
    locked: Locked


_FENCE: Final = f"""
WITH fence AS (
    UPDATE {{s}}.worker SET commits = $2, lease_until = {given_time(3)} + lease
    WHERE worker_id = $1 AND commits = $2 - 1 AND dead IS NULL
    RETURNING 1
), locked AS (
    SELECT {locked_columns()} FROM {{s}}.batch
    WHERE (SELECT count(*) FROM fence) = 1 AND batch_id = ANY($4::text[])
    ORDER BY batch_id FOR UPDATE
), looked_at AS (
    SELECT {locked_columns()} FROM {{s}}.batch
    WHERE (SELECT count(*) FROM fence) = 1 AND batch_id = ANY($5::text[])
)
SELECT (SELECT count(*) FROM fence), {SERVER_TIME}, {OWN_VERSION}, found.*
FROM (SELECT 1) one LEFT JOIN (SELECT * FROM locked UNION ALL SELECT * FROM looked_at) found ON true
"""
"""Fence and number a commit, and lock the batches that it is about, in the order of their ids. Who expires
the worker waits for its row, or holds it; so what this worker owns, it owns until the end of the transaction."""


async def fence(
    session: Session,
    worker: WorkerId,
    number: int,
    boot: Micros | None,
    change: Collection[BatchId],
    look_at: Collection[BatchId],
) -> Fenced | None:
    """Fence and number the commit, renew the lease, and lock; None: this worker has no such commit to make.

    Args:
        session: In a transaction.
        worker: Whose commit it is.
        number: Its number.
        boot: The time that leases are measured on; None: the server's.
        change: The batches to lock.
        look_at: The batches to read without a lock.
    """
    rows = await session.fetch(_FENCE, worker, number, boot, sorted(change), sorted(look_at))
    if rows[0][0] != 1:
        return None
    locked = Locked()
    for row in rows:
        if row[3] is not None:
            locked.take(row[3:])
    return Fenced(rows[-1][1], rows[-1][2], locked)


async def lock_batches(session: Session, batch_ids: Collection[BatchId], *, skip: bool = False) -> Locked:
    """Lock batches, in the order of their ids; `skip` those that another session has locked."""
    rows = await session.fetch(
        f"SELECT {locked_columns()} FROM {{s}}.batch WHERE batch_id = ANY($1::text[]) "
        f"ORDER BY batch_id FOR UPDATE{' SKIP LOCKED' if skip else ''}",
        sorted(batch_ids),
    )
    locked = Locked()
    for row in rows:
        locked.take(row)
    return locked


async def lockable(session: Session, batch_ids: Collection[BatchId]) -> set[BatchId]:
    """Find the batches, of these, that no other session has locked, nor any of their executions that are owned."""
    rows = await session.fetch(
        "SELECT batch_id, key FROM {s}.batch WHERE batch_id = ANY($1::text[]) ORDER BY batch_id FOR UPDATE SKIP LOCKED",
        sorted(batch_ids),
    )
    free: set[BatchId] = set()
    for batch_id, key in rows:
        low, high = execution_keys(key)
        condition = "FROM {s}.execution WHERE key >= $1 AND key < $2 AND owner IS NOT NULL"
        there = await session.value(f"SELECT count(*) {condition}", low, high)
        mine = await session.value(
            f"SELECT count(*) FROM (SELECT 1 {condition} FOR UPDATE SKIP LOCKED) AS unlocked", low, high
        )
        if mine == there:
            free.add(batch_id)
    return free
