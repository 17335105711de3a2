"""The connections that read: through aiosqlite, opened for reading only, so that nothing done with them can write.

Each event loop has one of its own. A thread of aiosqlite ends when it has an answer for an event loop that was closed;
what others had asked it would never be answered.

Readers of a file with a write-ahead log need the log and its index, two files beside it, which SQLite makes where they
are not there, and which a reader cannot remove. Where there is no log, nobody has the file open: then it is read as it
is (`immutable`), so that nothing is left beside it, and nothing need be made where nothing can be. Should the file
change, what was read is read again, with its log.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import aiosqlite

from durable_batches.clock import machine_time
from durable_batches.errors import StoreNotFoundError, StoreReadOnlyError, StoreUnavailableError
from durable_batches.stores.migrations import check_schema
from durable_batches.stores.rows import Row
from durable_batches.stores.sqlite.connection import connect_for_reading, translated
from durable_batches.stores.sqlite.file import FileIdentity, PinnedFile, identity_of
from durable_batches.stores.sqlite.reads import Select
from durable_batches.tasks import ReusableLock, completed, thread_ended

__all__ = ["Reader"]

T = TypeVar("T")

_TRIES: Final = 5
"""How often something is read from a file that changes each time."""

_SETTLED_SECONDS: Final = 0.05
"""Two changes within a tick of the file system's clock (10 ms at most) may leave the same time of modification."""

_HAS_SCHEMA: Final = "SELECT 1 FROM pragma_table_info('schema_version') WHERE name = 'readable_since'"
_SCHEMA: Final = "SELECT version, readable_since FROM schema_version"

Version: TypeAlias = tuple[object, ...]
"""Changes with every commit to the file; compared, and nothing else."""


class _File(NamedTuple):
    """What tells that a file has not changed."""

    inode: int
    size: int
    modified: int
    log: int | None
    """The size of its write-ahead log, or of a journal; None: there is none, and so no process has it open."""


class _Open(NamedTuple):
    """A connection to the file, for one event loop."""

    connection: aiosqlite.Connection
    identity: FileIdentity | None
    """Of the file that it has open."""
    unchanged: _File | None
    """Of a file that is read without its log: what it was like when it was opened."""
    number: int
    """How many were opened before it, and it."""

    @property
    def answers(self) -> bool:
        """Whether its thread is there: its event loop was not closed under a read, and this is no forked child."""
        return bool(_thread_of(self.connection).is_alive())


class Reader:
    """Reads the file, for any event loop of the process, of each one statement at a time.

    Args:
        path: The file, which is there.
        settings: Statements that set more than the store does; see `connect_for_reading`.
        file: That is written to as well, once it is pinned; without, another file at the path is opened in its place.
    """

    def __init__(self, path: Path, settings: Sequence[str] = (), file: PinnedFile | None = None) -> None:
        self._path = path
        self._settings = settings
        self._written = file or PinnedFile(path)
        self._open: dict[asyncio.AbstractEventLoop, _Open] = {}
        self._connecting = ReusableLock()
        self._opened = 0
        self._is_open = False

    async def open(self) -> None:
        """Open the connection of this event loop; another one's is opened when it reads for the first time.

        Raises:
            StoreNotFoundError: There is no such file.
            StoreReadOnlyError: Its log cannot be read without writing beside it, which is not allowed.
            StoreUnavailableError: Or a kin of it: the file cannot be opened.
        """
        if not self._path.exists():
            raise StoreNotFoundError(f"there is no file {self._path}")
        self._is_open = True
        try:
            _ = await self._current(asyncio.get_running_loop())
        except BaseException:
            self._is_open = False
            raise

    async def check_schema(self) -> None:
        """Make sure that the file is a store of this library, of a schema that it can read.

        Raises:
            StoreNotFoundError: It is not.
            SchemaTooOldError: A migration of the schema is missing.
            SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
        """
        if not await self._rows(_HAS_SCHEMA, ()) or not (rows := await self._rows(_SCHEMA, ())):
            raise StoreNotFoundError(f"the file {self._path} has none of the store's tables")
        version, readable_since = rows[0]
        check_schema("sqlite", str(self._path), version, readable_since)

    async def read(self, select: Select[T]) -> T:
        """Execute a query, and decode its rows.

        Raises:
            StoreUnavailableError: The reader was closed, or the driver says so.
            StoreCorruptError: The file was deleted or replaced while it was written to.
        """
        return select.decode(await self._rows(select.statement, select.values))

    async def version(self) -> Version:
        """Read the version of the file, which changes with every commit of another connection, whose ever it is."""
        opened, ((version,),) = await self._answered("PRAGMA data_version", ())
        return (opened.number, opened.unchanged, version)

    async def close(self) -> None:
        """Finish what was begun, close the connections, and end their threads."""
        self._is_open = False
        async with self._connecting:
            for loop in list(self._open):
                await self._disconnect(loop)

    # ---- inside ----------------------------------------------------------------------------------------------

    async def _rows(self, statement: str, values: Sequence[object] | Mapping[str, object]) -> Sequence[Row]:
        return (await self._answered(statement, values))[1]

    async def _answered(
        self, statement: str, values: Sequence[object] | Mapping[str, object]
    ) -> tuple[_Open, Sequence[Row]]:
        loop = asyncio.get_running_loop()
        for _ in range(_TRIES):
            self._written.check()
            opened = await self._current(loop)
            try:
                with translated(self._path):
                    rows = await _fetched(opened, statement, values)
            except StoreUnavailableError:
                if opened.unchanged not in (None, _file(self._path)):
                    # It was written to meanwhile.
                    continue
                # The next one opens the file anew: it may have been away, and be another one now.
                async with self._connecting:
                    if opened is self._open.get(loop):
                        await self._disconnect(loop)
                raise
            if opened.unchanged is None or opened.unchanged == _file(self._path):
                return opened, rows
        raise StoreUnavailableError(f"the database {self._path} changes each time that it is read")

    async def _current(self, loop: asyncio.AbstractEventLoop) -> _Open:
        """Return the connection of this event loop, or another one where it is of no use any more."""
        if not self._is_open:
            raise self._closed()
        opened = self._open.get(loop)
        if (
            opened is not None
            and opened.unchanged is None
            and opened.identity == identity_of(self._path)
            and opened.answers
        ):
            return opened
        async with self._connecting:
            if not self._is_open:
                raise self._closed()
            opened = self._open.get(loop)
            if opened is not None and (
                # A process writes to a file that none could write to.
                opened.unchanged not in (None, _file(self._path))
                # The file was deleted or replaced: what it says is of the past.
                or opened.identity != identity_of(self._path)
                or not opened.answers
            ):
                await self._disconnect(loop)
                opened = None
            return opened or await self._connect(loop)

    def _closed(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"the database {self._path} was closed while it was in use")

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Open:
        for other in [other for other in self._open if other.is_closed()]:
            await self._disconnect(other)
        with translated(self._path):
            identity = identity_of(self._path)
            before = await self._settled()
            if before is not None and before.log is None:
                connection, unchanged = await self._connected(immutable=True), before
            else:
                try:
                    connection, unchanged = await self._connected(immutable=False), None
                except sqlite3.OperationalError as error:
                    if (
                        getattr(error, "sqlite_errorcode", 0) & 0xFF
                        not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
                        or before is None
                        or not os.access(self._path, os.R_OK)
                        or os.access(self._path.parent, os.W_OK)
                    ):
                        raise
                    if before.log:
                        raise StoreReadOnlyError(
                            f"the database {self._path} has commits in its log (-wal), which cannot be read where "
                            "nothing can be written beside it; open it once with a right to write, or copy both files"
                        ) from error
                    connection, unchanged = await self._connected(immutable=True), before
        self._opened += 1
        opened = self._open[loop] = _Open(connection, identity, unchanged, self._opened)
        return opened

    async def _settled(self) -> _File | None:
        """Look what the file is like, where it was changed just now a moment later."""
        found = _file(self._path)
        if found is not None and found.log is None:
            age = machine_time() * 1_000 - found.modified
            if age < _SETTLED_SECONDS * 1_000_000_000:
                await asyncio.sleep(_SETTLED_SECONDS)
                found = _file(self._path)
        return found

    async def _connected(self, *, immutable: bool) -> aiosqlite.Connection:
        connection = aiosqlite.Connection(
            lambda: connect_for_reading(self._path, immutable=immutable, settings=self._settings),
            iter_chunk_size=64,
        )
        thread = _thread_of(connection)
        thread.name = "durable-batches-reads"
        # A store that nobody closed would keep the interpreter from exiting. To be cut off harms no reader.
        thread.daemon = True

        async def open_it() -> None:
            _ = await connection

        try:
            await completed(asyncio.ensure_future(open_it()))
        except BaseException:
            await _ended(connection)
            raise
        return connection

    async def _disconnect(self, loop: asyncio.AbstractEventLoop) -> None:
        opened = self._open.pop(loop, None)
        if opened is not None:
            await _ended(opened.connection)


async def _fetched(opened: _Open, statement: str, values: Sequence[object] | Mapping[str, object]) -> Sequence[Row]:
    try:
        return list(await opened.connection.execute_fetchall(statement, values))
    except asyncio.CancelledError:
        # The answer still comes, and the event loop must be there then.
        await _answered_all(opened)
        raise


async def _answered_all(opened: _Open) -> None:
    """Wait until the thread has answered all that it was asked; a cancellation that arrives meanwhile says no more."""
    while opened.answers:
        # In no task of its own, which what cancels all would cancel as well.
        with suppress(asyncio.CancelledError):
            with suppress(sqlite3.Error, ValueError):
                await opened.connection.execute_fetchall("SELECT 1")
            return


async def _ended(connection: aiosqlite.Connection) -> None:
    """Close a connection; its thread has ended when this returns."""
    closing = asyncio.ensure_future(connection.close())
    # That one is not awaited: where an event loop was closed under a read, the thread ends and does not answer.
    thread = _thread_of(connection)
    if thread.is_alive():
        await completed(asyncio.ensure_future(thread_ended(thread)))
    else:
        await asyncio.sleep(0)
    while not closing.done():
        # It waits for the answer to each of two requests.
        closing.cancel()
        await asyncio.sleep(0)
    if not closing.cancelled():
        closing.result()


def _thread_of(connection: aiosqlite.Connection) -> Any:
    """The thread of a connection of aiosqlite, which has no public name."""
    # Older versions are it.
    return getattr(connection, "_thread", connection)


def _file(path: Path) -> _File | None:
    """Look what a file is like now; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    logs = [size for size in (_size(f"{path}-wal"), _size(f"{path}-journal")) if size is not None]
    return _File(found.st_ino, found.st_size, found.st_mtime_ns, sum(logs) if logs else None)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
