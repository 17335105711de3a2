"""Connections to a SQLite file: how they are opened and migrated, their transactions, and what their errors mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from durable_batches.errors import (
    DurableBatchesError,
    FactRejectedError,
    OldWorkersError,
    StoreCorruptError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from durable_batches.lifecycle.records import Micros
from durable_batches.stores.migrations import READABLE_SINCE, ends_older_workers, newer_scripts
from durable_batches.stores.sqlite.file import PinnedFile, make
from durable_batches.version import VERSION

__all__ = [
    "HOLDS_LEASE",
    "LockWatch",
    "connect",
    "connect_for_reading",
    "is_busy",
    "migrate",
    "transaction",
    "translated",
]

BUSY_SECONDS: Final = 60.0
"""How long a transaction waits for that of another process. These take milliseconds; this long means a stuck one."""

HOLDS_LEASE: Final = "lease_until > ? AND lease_until <= ? + lease"
"""Of a worker's row, with the boot clock twice: its lease has not run out, and was not given before a reboot."""

NOTICE_SECONDS: Final = 0.5
"""How often a transaction that waits looks whether others commit meanwhile."""

_WAL_TRIES: Final = 100
"""Each try waits, and fails only if another process was faster again."""

_SETTINGS: Final = (
    "PRAGMA cache_size = -16384",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA trusted_schema = OFF",
)
_WRITER_SETTINGS: Final = (
    "PRAGMA synchronous = FULL",
    # 16 MiB of log between two checkpoints: pages that change often are copied into the file once.
    "PRAGMA wal_autocheckpoint = 4096",
    "PRAGMA journal_size_limit = 33554432",
)


def connect(path: Path, *, create: bool = True, settings: Sequence[str] = ()) -> sqlite3.Connection:
    """Open a connection with the store's settings: WAL, and every commit synced to the disk before it is acknowledged.

    Args:
        path: The file.
        create: Make the file where there is none, for its owner only.
        settings: Statements of the application's that set more.

    Raises:
        StoreUnavailableError: Or a kin of it: the file cannot be opened, written or understood.
    """
    with translated(path):
        if create:
            make(path)
        connection = _open(f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}")
        try:
            _use_wal(connection)
            busy = f"PRAGMA busy_timeout = {int(min(NOTICE_SECONDS, BUSY_SECONDS) * 1000)}"
            for setting in (*_WRITER_SETTINGS, *_SETTINGS, busy, *settings):
                connection.execute(setting).fetchall()
        except BaseException:
            connection.close()
            raise
        return connection


def connect_for_reading(path: Path, *, immutable: bool = False, settings: Sequence[str] = ()) -> sqlite3.Connection:
    """Open a connection that cannot write, and read the file for the first time.

    Args:
        path: The file.
        immutable: Read the file without its log and without locks, as if nobody wrote to it.
        settings: Statements of the application's that set more.

    Raises:
        sqlite3.Error: As the driver raises it.
    """
    connection = _open(f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}")
    try:
        for setting in (*_SETTINGS, *settings, "PRAGMA query_only = ON", "PRAGMA schema_version"):
            connection.execute(setting).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _open(uri: str) -> sqlite3.Connection:
    # One thread at a time uses the connection, but it may be closed by another one.
    return sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log, where it has none yet.

    Two that switch at the same moment would wait for each other, so SQLite has one of them fail, without waiting. A
    transaction that needs the file for itself does wait; after it the switch is tried again.
    """
    for _ in range(_WAL_TRIES):
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        else:
            return
    connection.execute("PRAGMA journal_mode = WAL").fetchall()


class LockWatch(Protocol):
    """Takes note of how transactions come to the file's write lock, on the thread of each."""

    @property
    def patience_seconds(self) -> float | None:
        """How long a transaction waits for the lock; None: `BUSY_SECONDS`."""
        ...

    def asks(self) -> float:
        """Take note that a transaction begins to wait; the number is handed on to what follows."""
        ...

    def waits(self, asked: float, *, moved: bool) -> float:
        """Take note that it waits still; called once each `NOTICE_SECONDS`, but for the first.

        Args:
            asked: Since when.
            moved: Others have committed meanwhile: the file is busy, and not locked.

        Returns:
            The number for what follows.
        """
        ...

    def has_waited(self, asked: float, *, in_vain: bool) -> None:
        """Take note that it has the lock, or `in_vain`, that it has given up."""
        ...


@contextmanager
def transaction(
    connection: sqlite3.Connection, path: Path, watch: LockWatch | None = None, file: PinnedFile | None = None
) -> Generator[None]:
    """Within: one write transaction, with errors translated; an exception rolls all of it back.

    Args:
        connection: In no transaction.
        path: The file.
        watch: Takes note of the wait for the write lock.
        file: That is written to; it must still be at the path, before and after the commit.

    Raises:
        StoreCorruptError: The path leads to another file by now, or to none.
    """
    with translated(path):
        _begin(connection, path, watch)
        try:
            yield
            if file is not None:
                file.check()
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if file is not None:
            # What went into a file that was deleted meanwhile is not acknowledged.
            file.check()


def _begin(connection: sqlite3.Connection, path: Path, watch: LockWatch | None) -> None:
    """Begin a write transaction; wait where another one has the file's write lock."""
    asked = watch.asks() if watch is not None else 0.0
    patience = watch.patience_seconds if watch is not None else None
    left = patience = BUSY_SECONDS if patience is None else patience
    version: int | None = None
    in_vain = True
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                in_vain = False
                return
            except sqlite3.OperationalError as error:
                # That took the connection's own timeout.
                left -= NOTICE_SECONDS
                if not is_busy(error):
                    raise
                if left <= 0:
                    raise _locked(path, f" for {patience:g} s") from error
            seen, version = version, _version(connection)
            if watch is not None and seen is not None:
                asked = watch.waits(asked, moved=seen != version)
    finally:
        if watch is not None:
            watch.has_waited(asked, in_vain=in_vain)


def _version(connection: sqlite3.Connection) -> int:
    """Read what changes with every commit of another connection."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection has a lock that was waited for in vain."""
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF == sqlite3.SQLITE_BUSY


def migrate(connection: sqlite3.Connection, path: Path, boot: Micros, watch: LockWatch | None = None) -> None:
    """Bring the schema up to date, under the write lock from before the first look at it.

    Args:
        connection: In no transaction.
        path: The file.
        boot: The time that leases are measured on.
        watch: Takes note of the wait for the write lock.

    Raises:
        OldWorkersError: Workers of an older library are alive.
        SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
    """
    with transaction(connection, path, watch):
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version ("
            "version INTEGER NOT NULL, readable_since TEXT NOT NULL, library TEXT NOT NULL)"
        )
        row = connection.execute("SELECT version, readable_since FROM schema_version").fetchone()
        version, readable_since = row or (0, "0")
        newer = newer_scripts("sqlite", str(path), version, readable_since)
        if ends_older_workers(version):
            _refuse_older_workers(connection, path, boot)
        for _, script in newer:
            for statement in _statements(script):
                connection.execute(statement)
        if newer:
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version VALUES (?, ?, ?)", (newer[-1][0], READABLE_SINCE, VERSION))


def _refuse_older_workers(connection: sqlite3.Connection, path: Path, boot: Micros) -> None:
    alive = connection.execute(
        f"SELECT worker_id, pid, lease_until FROM worker WHERE {HOLDS_LEASE}",
        (boot, boot),
    ).fetchall()
    if alive:
        last = max(lease_until for *_, lease_until in alive)
        workers = {worker: pid for worker, pid, _ in alive}
        raise OldWorkersError(str(path), workers, (last - boot) / 1_000_000, READABLE_SINCE)


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Within: the driver's errors become the library's, with what to do about them."""
    try:
        yield
    except DurableBatchesError:
        raise
    except sqlite3.Error as error:
        raise _translate(error, path) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise FactRejectedError(f"the database {path} cannot store a value: {type(error).__name__}") from error


def _locked(path: Path, how_long: str = "") -> StoreUnavailableError:
    locked = StoreUnavailableError(
        f"the database {path} has been locked by another process{how_long}; find the process that holds a transaction "
        "open"
    )
    locked.locks_out_everybody = True
    return locked


def _translate(error: sqlite3.Error, path: Path) -> DurableBatchesError:
    name = getattr(error, "sqlite_errorname", "") or ""
    code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return _locked(path)
        case sqlite3.SQLITE_FULL:
            return StoreFullError(f"the database {path} or its disk is full; make room, the work then goes on")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StoreReadOnlyError(
                f"the database {path} cannot be written; check the rights of the file and of its folder"
            )
        case sqlite3.SQLITE_CANTOPEN:
            return StoreUnavailableError(
                f"the database {path} cannot be opened; check that its folder exists and can be written"
            )
        case sqlite3.SQLITE_CORRUPT:
            return StoreCorruptError(f"the database {path} is damaged ({error}); restore it from a backup")
        case sqlite3.SQLITE_NOTADB:
            return StoreCorruptError(
                f"the file {path} is not a SQLite database; it was left as it is, so give another path"
            )
        case sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_MISMATCH | sqlite3.SQLITE_TOOBIG | sqlite3.SQLITE_RANGE:
            return FactRejectedError(f"the database {path} refuses a value: {error}")
        case _:
            if isinstance(error, sqlite3.DataError | sqlite3.InterfaceError | sqlite3.IntegrityError):
                return FactRejectedError(f"the database {path} refuses a value: {error}")
            return StoreUnavailableError(f"the database {path} cannot be used now: {name} {error}".strip())


def _statements(script: str) -> Iterator[str]:
    """Split a script into its statements: `executescript` would commit the transaction that they belong to."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
