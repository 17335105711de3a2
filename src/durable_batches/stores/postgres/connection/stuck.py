"""Sessions of connections that were given up: those that keep locks are ended, for the server does not do it.

The server's own limits end a session that is idle in a transaction, and one that works for too long. One that waits in
the middle of a statement for the client's next message is neither: the driver prepares a statement with a message of
its own, and where the network loses the connection just then, without a word to the server, the session keeps its locks
until that finds out, which may take hours. Nobody could write these rows meanwhile, their worker least of all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from durable_batches.errors import DurableBatchesError
from durable_batches.stores.postgres.connection.database import Database, ServerProcess
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.pool import Pool
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["StuckSessions"]

_log = logging.getLogger("durable_batches")

_PAUSE_SECONDS: Final = 1.0
"""Between two looks."""

_END: Final = (
    "SELECT count(pg_terminate_backend(pid)) FROM unnest($1::integer[], $2::timestamptz[]) lost (pid, backend_start) "
    "JOIN pg_stat_activity USING (pid, backend_start) "
    # One that works is left to the server's limits: it may be about to commit.
    "WHERE state <> 'idle' AND wait_event = 'ClientRead'"
)


class StuckSessions:
    """Used on the store's loop.

    Args:
        database: Knows which connections this process has given up.
        pool: Of the connections that end them.
    """

    def __init__(self, database: Database, pool: Pool) -> None:
        self._database = database
        self._pool = pool
        self._task: asyncio.Task[None] | None = None
        self._next = 0.0

    def look(self) -> None:
        """Look for them soon: a write was refused for locks, or got no answer. Now and then is enough."""
        now = asyncio.get_running_loop().time()
        if now < self._next or (self._task is not None and not self._task.done()):
            return
        self._next = now + _PAUSE_SECONDS
        given_up = self._database.given_up()
        if given_up:
            self._task = asyncio.create_task(self._end(given_up), name="durable-batches stuck sessions")

    async def _end(self, given_up: Sequence[ServerProcess]) -> None:
        async def end(session: Session) -> int:
            with translated(self._database.where):
                ended: int = await session.value(
                    _END, [lost.pid for lost in given_up], [lost.started for lost in given_up]
                )
            return ended

        try:
            ended = await self._pool.run(end)
        except DurableBatchesError as error:
            _log.debug(
                "sessions of lost connections could not be ended: %s",
                error,
                extra={"error_code": error.code, "database": self._database.where},
            )
            return
        if ended:
            _log.warning(
                "ended %d sessions of lost connections, which were in a transaction of the database %s",
                ended,
                self._database.where,
                extra={"sessions_ended": ended, "database": self._database.where},
            )
