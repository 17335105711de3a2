"""A pool of connections of one kind, opened as they are needed and kept for the next; used on the store's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from durable_batches.errors import StoreReadOnlyError, StoreUnavailableError
from durable_batches.stores.postgres.connection.database import Connection, Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.session import Session, closed

__all__ = ["Pool"]

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """A bounded number of connections; who comes when all are in use waits for one.

    The driver's own pool asks the server to forget the session's state after each use, which costs a round trip a
    transaction, and has nothing to forget here.

    Args:
        database: Where.
        size: Connections at most.
        by_key: See `Database.connect`.
        read_only: See `Database.connect`.
        takes_replicas: See `Database.connect`.
    """

    def __init__(
        self, database: Database, size: int, *, by_key: bool, read_only: bool, takes_replicas: bool = False
    ) -> None:
        self._database = database
        self._by_key = by_key
        self._read_only = read_only
        self._takes_replicas = takes_replicas
        self._places = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._closed = False

    async def run(self, work: Callable[Concatenate[Session, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the work with a connection; one that is of no use any more is not kept.

        A connection that was kept may have been closed by the server meanwhile. Then the work is run again with
        another: nothing of it was written, or the error would say that this is not known.
        """
        async with self._places:
            connection = self._take()
            if connection is not None:
                try:
                    return await self._work(connection, work, *args, **kwargs)
                except StoreUnavailableError as error:
                    if type(error) is not StoreUnavailableError or not connection.is_closed():
                        raise
            connection = await self._connect()
            return await self._work(connection, work, *args, **kwargs)

    async def _work(
        self,
        connection: Connection,
        work: Callable[Concatenate[Session, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            with translated(self._database.where):
                return await work(Session(self._database, connection), *args, **kwargs)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, TimeoutError) or isinstance(error, StoreReadOnlyError):
                # It has not answered, and may do so when nobody listens any more; or it is not the one to ask, and
                # another may lead to one that is.
                connection.terminate()
            if connection.is_closed():
                # The others are likely to be as this one; to find out could take a limit of time each.
                self._forget_idle()
            raise
        except asyncio.CancelledError:
            if self._closed:
                # By the loop that ends, and not by the caller.
                raise StoreUnavailableError(
                    f"the database {self._database.where} was closed while it was in use"
                ) from None
            raise
        finally:
            if not connection.is_closed():
                if connection.is_in_transaction() or self._closed:
                    connection.terminate()
                else:
                    self._idle.append(connection)

    async def open(self) -> Session:
        """Open the first connection, to look at the server with; it is kept for the work."""
        connection = await self._connect()
        self._idle.append(connection)
        return Session(self._database, connection)

    def refuse_replicas(self) -> None:
        """Connect to the primary only from here on."""
        self._takes_replicas = False
        self._forget_idle()

    async def _connect(self) -> Connection:
        return await self._database.connect(
            by_key=self._by_key, read_only=self._read_only, takes_replica=self._takes_replicas
        )

    def _take(self) -> Connection | None:
        # The one that was used last: the others may be closed by the server, or be missed by nobody.
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def _forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.terminate()

    async def close(self) -> None:
        """Close all connections; one that is in use is closed by its user, whom the end of the loop cuts off."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(closed(connection) for connection in idle))
