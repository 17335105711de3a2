"""A commit in one statement: the fence, the locks, a look whether all is as it was known, and what is written.

One round trip and no transaction that stays open between two of them. That takes a plan made before anything is read,
by what the last commit left (see `memory`); where it is out of date, nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from durable_batches.lifecycle.planning import Writes
from durable_batches.lifecycle.records import Micros, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.postgres.commit.lock import OWN_VERSION, Locked
from durable_batches.stores.postgres.commit.write import Statement, draw_fronts_back, written
from durable_batches.stores.postgres.connection.connection import Session
from durable_batches.stores.postgres.connection.server_clock import SERVERS_CLOCK, given_time

__all__ = ["AtOnce", "write_at_once"]


class AtOnce(NamedTuple):
    """A commit that was made."""

    now: Micros
    """The server's time."""
    version: str
    """Of the rows that it has written."""


_AT_ONCE: Final = """
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
"""The fence, the locks in their order, and whether everything is as it was known. What is changed comes after that: it
depends on the verdict. The worker's row is locked first and numbered only then, since a number must not be used up by
a commit that is not made. How long it waits for locks holds for this statement, and from before the first of them."""

_IF_GOOD: Final = "(SELECT good FROM verdict)"
_MADE: Final = f"SELECT {SERVERS_CLOCK}, {OWN_VERSION} FROM fence"


async def write_at_once(
    session: Session,
    worker: WorkerId,
    number: int,
    boot: Micros | None,
    lock_timeout: str | None,
    known: Locked,
    change: Collection[BatchId],
    look_at: Collection[BatchId],
    writes: Writes,
) -> AtOnce | None:
    """Fence, number, lock and write in one statement; None: something was not as it was known, nothing is written."""
    draw_fronts_back(known, writes.executions)
    changed, looked_at = [known.keys[batch_id] for batch_id in change], [known.keys[batch_id] for batch_id in look_at]
    versions = [known.versions[key] for key in (*changed, *looked_at)]
    statement = Statement([worker, number, boot, changed, looked_at, versions, lock_timeout], condition=_IF_GOOD)
    rows = await written(known, writes, None, statement).run(session, _MADE, before=_AT_ONCE)
    return AtOnce(*rows[0]) if rows else None
