"""The optimistic commit: fence, locks, a check that nothing has changed, and all writes in one statement.

It is planned before anything is read, by what the worker's last commit left (see `cache`). Where that is out of date,
nothing is written, and the commit is made under locks, which takes four round trips in place of one.

That is what it is for. Activities a second, as a multiple of what locks alone reach (`python -m benchmarks.optimistic`,
medians of five rounds by turns on two busy cores, measured twice): on a server that is a round trip of 1 ms away 1.58
and 1.68 with one document in flight, 1.56 and 1.93 with 8, 1.40 and 1.43 with 64; with the server on the same machine
1.07 and 1.41 with one, 1.16 and 1.25 with 64. With 512 in flight, where commits are few and large, it gains nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from durable_batches.lifecycle.planning import Writes
from durable_batches.lifecycle.records import Micros, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.postgres.commit.lock import OWN_VERSION, Locked
from durable_batches.stores.postgres.commit.write import Statement, draw_fronts_back, statement_of
from durable_batches.stores.postgres.connection.server_clock import SERVER_TIME, given_time
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["OptimisticCommit", "commit_if_unchanged"]


class OptimisticCommit(NamedTuple):
    """A commit that was written."""

    now: Micros
    """The server's time."""
    version: str
    """Of the rows that it has written."""


_IF_UNCHANGED: Final = """
worker AS (
    SELECT 1 FROM {s}.worker
    WHERE (SELECT set_config('lock_timeout', coalesce($7, current_setting('lock_timeout')), true)) IS NOT NULL
    AND worker_id = $1 AND commits = $2 - 1 AND dead IS NULL FOR UPDATE
), locked AS (
    SELECT key, xmin::text AS version FROM {s}.batch
    WHERE (SELECT count(*) FROM worker) = 1 AND key = ANY($4::bigint[]) ORDER BY batch_id FOR UPDATE
), looked_at AS (
    SELECT key, xmin::text AS version FROM {s}.batch
    WHERE (SELECT count(*) FROM worker) = 1 AND key = ANY($5::bigint[])
), verdict AS MATERIALIZED (
    SELECT (SELECT count(*) FROM worker) = 1 AND (
        SELECT count(*) FROM (SELECT * FROM locked UNION ALL SELECT * FROM looked_at) AS found
        JOIN unnest($4::bigint[] || $5::bigint[], $6::text[]) AS known (key, version) USING (key, version)
    ) = cardinality($6) AS good
), fence AS (
    UPDATE {s}.worker SET commits = $2, lease_until = TIME + lease
    WHERE worker_id = $1 AND (SELECT good FROM verdict)
    RETURNING 1
)""".replace("TIME", given_time(3))
"""The fence, the locks in their order, and the verdict whether nothing has changed, on which every write depends. The
worker's row is locked first and numbered only after the verdict, since a commit that is not made must not use up its
number. The lock timeout holds for this statement, and from before its first lock."""

_IF_GOOD: Final = "(SELECT good FROM verdict)"
_MADE: Final = f"SELECT {SERVER_TIME}, {OWN_VERSION} FROM fence"


async def commit_if_unchanged(
    session: Session,
    worker: WorkerId,
    number: int,
    boot: Micros | None,
    lock_timeout: str | None,
    known: Locked,
    change: Collection[BatchId],
    look_at: Collection[BatchId],
    writes: Writes,
) -> OptimisticCommit | None:
    """Fence, number, lock and write in one statement.

    Args:
        session: In no transaction.
        worker: Whose commit it is.
        number: Its number.
        boot: The time that leases are measured on; None: the server's.
        lock_timeout: How long it waits for a lock; None: as the session does.
        known: The batches, as the last commit left them.
        change: The batches that are changed, and so locked.
        look_at: The batches that are only read.
        writes: The plan.

    Returns:
        None: something has changed, and nothing is written.
    """
    draw_fronts_back(known, writes.executions)
    changed, looked_at = [known.keys[batch_id] for batch_id in change], [known.keys[batch_id] for batch_id in look_at]
    versions = [known.versions[key] for key in (*changed, *looked_at)]
    statement = Statement([worker, number, boot, changed, looked_at, versions, lock_timeout], condition=_IF_GOOD)
    rows = await statement_of(known, writes, None, statement).run(session, _MADE, before=_IF_UNCHANGED)
    return OptimisticCommit(*rows[0]) if rows else None
