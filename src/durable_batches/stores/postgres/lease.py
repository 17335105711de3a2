"""Renew the lease of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from durable_batches.errors import StoreUnavailableError
from durable_batches.lifecycle.records import WorkerId
from durable_batches.stores.columns import workflows_as_text
from durable_batches.stores.postgres.connection.database import Connection, Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.server_clock import ServerClock, given_time
from durable_batches.stores.postgres.connection.session import Session, closed
from durable_batches.stores.postgres.connection.thread import LoopThread

__all__ = ["LeaseRenewer"]

_RENEW: Final = (
    f"UPDATE {{s}}.worker SET lease_until = {given_time(2)} + lease, "
    "note = coalesce($3, note), workflows = coalesce($4, workflows) "
    "WHERE worker_id = $1 AND dead IS NULL RETURNING true"
)


class LeaseRenewer:
    """Renews one worker's lease; see `NotedHeart`.

    It has a connection of its own: where others wait for a lock or a reply, the lease is renewed all the same.
    """

    def __init__(
        self,
        thread: LoopThread,
        database: Database,
        server_clock: ServerClock,
        worker: WorkerId,
        seconds: float,
    ) -> None:
        self._thread = thread
        self._database = database
        self._server_clock = server_clock
        self._worker = worker
        # An answer that comes later is of no use any more.
        self._seconds = min(seconds, database.answer_seconds)
        self._connection: Connection | None = None

    def beat(self) -> bool:
        """See `Heart.beat`."""
        return self._thread.start(self._renew(None, None)).result()

    def tell(self, note: str, workflows: Collection[tuple[str, str]]) -> bool:
        """See `NotedHeart.tell`."""
        return self._thread.start(self._renew(note, workflows_as_text(workflows))).result()

    async def _renew(self, note: str | None, workflows: str | None) -> bool:
        try:
            with translated(self._database.where):
                async with asyncio.timeout(self._seconds):
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await self._database.connect(by_key=True, seconds=self._seconds)
                    renewed = await Session(self._database, self._connection, self._seconds).value(
                        _RENEW,
                        self._worker,
                        self._server_clock.boot(),
                        note,
                        workflows,
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
