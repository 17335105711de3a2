"""What keeps a worker's lease."""

from __future__ import annotations

import asyncio

from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.records import WorkerId
from durable_batches.stores.postgres.connection.connection import Connection, Database, Session, closed, translated
from durable_batches.stores.postgres.connection.server_clock import Times, given_time
from durable_batches.stores.postgres.connection.thread import LoopThread

__all__ = ["PostgresHeart"]


class PostgresHeart:
    """Beats on a connection of its own: where others wait for a lock or a reply, the lease is kept all the same."""

    def __init__(
        self,
        thread: LoopThread,
        database: Database,
        times: Times,
        worker: WorkerId,
        seconds: float,
    ) -> None:
        self._thread = thread
        self._database = database
        self._times = times
        self._worker = worker
        # An answer that comes later is of no use any more.
        self._seconds = min(seconds, database.answer_seconds)
        self._connection: Connection | None = None

    def beat(self) -> bool:
        """See `Heart.beat`."""
        return self._thread.start(self._beat()).result()

    async def _beat(self) -> bool:
        try:
            with translated(self._database.where):
                async with asyncio.timeout(self._seconds):
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await self._database.connect(by_key=True, seconds=self._seconds)
                    renewed = await Session(self._database, self._connection, self._seconds).value(
                        f"UPDATE {{s}}.worker SET lease_until = {given_time(2)} + lease "
                        "WHERE worker_id = $1 AND dead IS NULL RETURNING true",
                        self._worker,
                        self._times.boot(),
                    )
                    return renewed is True
        except StoreUnavailableError:
            # A connection that has not answered may never do so.
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            raise

    def close(self) -> None:
        """See `Heart.close`."""
        if self._connection is not None:
            self._thread.start(closed(self._connection)).result()
