"""Sessions: a connection that speaks of the store's schema, and its transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg

from durable_batches.errors import CommitUnknownError, StoreUnavailableError
from durable_batches.stores.postgres.connection.database import Connection, Database
from durable_batches.stores.postgres.connection.errors import is_lost, translated

__all__ = ["Session", "closed", "session_of_its_own", "transaction", "unless_lost"]


class Session:
    """A connection, speaking of one schema: in its statements, `{s}` is the schema's quoted name.

    Whatever the driver waits for meanwhile, also what it does not bound itself, as to close statements that it has
    prepared: it raises TimeoutError.
    """

    __slots__ = ("_cache", "_seconds", "_where", "connection", "quoted")

    _statements: Final[dict[tuple[str, str], str]] = {}

    def __init__(self, database: Database, connection: Connection, seconds: float | None = None) -> None:
        self.connection: Connection = connection
        self.quoted: str = database.quoted
        self._where = database.where
        self._seconds = database.answer_seconds if seconds is None else seconds
        self._cache = self._statements

    def sql(self, statement: str) -> str:
        """The statement as the server gets it; the same text each time, so that it is prepared once."""
        key = (self.quoted, statement)
        text = self._cache.get(key)
        if text is None:
            text = self._cache[key] = statement.replace("{s}", self.quoted)
        return text

    async def fetch(self, statement: str, *args: object) -> Sequence[Any]:
        """All rows."""
        async with asyncio.timeout(self._seconds):
            return await self.connection.fetch(self.sql(statement), *args, timeout=self._seconds)

    async def row(self, statement: str, *args: object) -> Any:
        """The first row, or None."""
        async with asyncio.timeout(self._seconds):
            return await self.connection.fetchrow(self.sql(statement), *args, timeout=self._seconds)

    async def value(self, statement: str, *args: object) -> Any:
        """The first value of the first row, or None."""
        async with asyncio.timeout(self._seconds):
            return await self.connection.fetchval(self.sql(statement), *args, timeout=self._seconds)

    async def listen(self, channel: str, heard: Callable[[object, int, str, object], None]) -> None:
        """Have a function called with each notification of the channel."""
        async with asyncio.timeout(self._seconds):
            await self.connection.add_listener(channel, heard)

    async def run(self, script: str) -> str:
        """Statements without arguments; the tag of the last one."""
        async with asyncio.timeout(self._seconds):
            return await self.connection.execute(self.sql(script), timeout=self._seconds)


@asynccontextmanager
async def session_of_its_own(database: Database) -> AsyncGenerator[Session]:
    """Open a connection for something rare, and close it."""
    connection = await database.connect(by_key=False)
    try:
        yield Session(database, connection)
    finally:
        await closed(connection)


@asynccontextmanager
async def transaction(session: Session, where: str, begin: str = "BEGIN") -> AsyncGenerator[None]:
    """Within: one transaction, with errors translated. Its fate is unknown only where the reply to COMMIT is lost.

    Raises:
        CommitUnknownError: That is so.
        StoreUnavailableError: Or another of the library's errors: nothing was written.
    """
    with translated(where):
        await session.run(begin)
        try:
            yield
        except TimeoutError:
            # A server that has not answered will not answer this.
            session.connection.terminate()
            raise
        except BaseException:
            await _rolled_back(session)
            raise
    with unless_lost(session, where):
        if await session.run("COMMIT") != "COMMIT":
            raise StoreUnavailableError(f"the database {where} has rolled a transaction back")


@contextmanager
def unless_lost(session: Session, where: str) -> Generator[None]:
    """Within: what commits. Errors are translated, and one after which it may have been made all the same says so.

    Raises:
        CommitUnknownError: The connection was lost, or the caller was cancelled.
    """
    try:
        with translated(where):
            yield
    except (StoreUnavailableError, asyncio.CancelledError) as error:
        if isinstance(error.__cause__, asyncpg.PostgresError) and not is_lost(error.__cause__):
            # The server's own word that it was not made, as for a disk that is full.
            raise
        session.connection.terminate()
        raise CommitUnknownError(
            f"the connection to the database {where} was lost in the middle of a commit, so whether it was made is "
            "not known; it is repeated under its number, which tells"
        ) from error


async def _rolled_back(session: Session) -> None:
    connection = session.connection
    if connection.is_closed():
        return
    try:
        await session.run("ROLLBACK")
    except Exception:  # noqa: BLE001  (whatever it is, the connection is of no use any more)
        connection.terminate()


async def closed(connection: Connection) -> None:
    """Close a connection, without waiting long for an answer."""
    try:
        await connection.close(timeout=1)
    except Exception:  # noqa: BLE001  (it is gone either way)
        connection.terminate()
