"""Why a batch is where it is: its owned, due and isolated executions, and the workers' leases, each by an index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from durable_batches.lifecycle.planning import ISOLATED_CRASHES
from durable_batches.lifecycle.records import NOW, RESOLVER_POSITION, ExecutionRecord, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.columns import EXECUTION_RECORD
from durable_batches.stores.postgres.connection.server_clock import ServerClock, given_time
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.protocol import Inspection, Lease
from durable_batches.stores.rows import Row, execution_key, execution_of, position_of

__all__ = ["inspect"]

_EXECUTIONS: Final = f"SELECT key, {EXECUTION_RECORD.names} FROM {{{{s}}}}.execution WHERE batch = $1 AND {{}} LIMIT $2"
_OWNED: Final = _EXECUTIONS.format("owner IS NOT NULL ORDER BY key")
_ISOLATED: Final = _EXECUTIONS.format(
    f"due IS NOT NULL AND crashes >= {ISOLATED_CRASHES} AND due > {NOW} ORDER BY due, key"
)
_RESOLVER: Final = f"SELECT key, {EXECUTION_RECORD.names} FROM {{s}}.execution WHERE key = $1"
_DUE: Final = (
    f"SELECT due FROM {{s}}.execution WHERE batch = $1 AND due > {NOW} AND key <> $2 AND status = 'waiting' "
    "ORDER BY due LIMIT $3"
)
_LEASES: Final = (
    f"SELECT worker_id, lease_until - c.now, lease FROM {{s}}.worker, (SELECT {given_time(1)} AS now) c "
    "WHERE dead IS NULL"
)


async def inspect(session: Session, clock: ServerClock, batch_id: BatchId, limit: int) -> Inspection:
    """See `Inspectable.inspect`."""
    leases = {
        WorkerId(worker_id): Lease(left, length)
        for worker_id, left, length in await session.fetch(_LEASES, clock.boot())
    }
    now = await clock.moment(session)
    batch: int | None = await session.value("SELECT key FROM {s}.batch WHERE batch_id = $1", batch_id)
    if batch is None:
        return Inspection(now=now, leases=leases)

    def executions_of(rows: Iterable[Row]) -> list[ExecutionRecord]:
        return [execution_of(batch_id, position_of(row[0]), row[1:]) for row in rows]

    first = execution_key(batch, RESOLVER_POSITION)
    due: Sequence[Any] = await session.fetch(_DUE, batch, first, limit)
    resolvers = executions_of(await session.fetch(_RESOLVER, first))
    return Inspection(
        now=now,
        owned=executions_of(await session.fetch(_OWNED, batch, limit)),
        due=[row[0] for row in due],
        isolated=executions_of(await session.fetch(_ISOLATED, batch, limit)),
        resolver=resolvers[0] if resolvers else None,
        leases=leases,
    )
