"""The host application's engine of SQLAlchemy: the file that it leads to, and the settings of its connections."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from durable_batches.errors import ConfigurationError
from durable_batches.stores.sqlite.connection import NOTICE_SECONDS, translated

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["EngineSettings", "path_of", "settings_of"]

_TIMEOUT: Final = "busy_timeout"
_PRAGMAS: Final = ("cache_size", "cell_size_check", "journal_size_limit", "mmap_size", "secure_delete", "temp_store")
"""What an application may set as it likes; how commits are made durable is the store's own affair."""


class EngineSettings(NamedTuple):
    """What the application has set for its connections."""

    statements: Sequence[str] = ()
    """Set the same for another connection."""
    timeout_seconds: float | None = None
    """How long they wait for a lock; None: that is not set."""


def path_of(engine: AsyncEngine) -> Path:
    """Find the file that an engine leads to.

    Raises:
        ConfigurationError: It is another database's, or has no file.
    """
    dialect = f"{engine.dialect.name}+{engine.dialect.driver}"
    if dialect != "sqlite+aiosqlite":
        raise ConfigurationError(f"a SQLiteStore needs an engine of sqlite+aiosqlite, not of {dialect}")
    given: list[Any] = list(engine.dialect.create_connect_args(engine.url)[0])
    file = str(given[0]) if given else ""
    if file.startswith("file:"):
        file = "" if "mode=memory" in file else unquote(urlsplit(file).path)
    if file in ("", ":memory:"):
        raise ConfigurationError("a SQLiteStore needs a file, and this engine has none; for none, use MemoryStore()")
    return Path(file).absolute()


async def settings_of(engine: AsyncEngine, path: Path) -> EngineSettings:
    """Find what the application has set, in the URL, with `connect_args` or in an event: one connection is opened.

    Raises:
        StoreUnavailableError: Or a kin of it: the file cannot be opened.
    """
    from sqlalchemy import Engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncEngine

    sync = engine.sync_engine
    # A pool of the same kind with the same way to connect, and nothing in it yet.
    private = AsyncEngine(Engine(sync.pool.recreate(), sync.dialect, sync.url))
    with translated(path):
        try:
            async with private.connect() as connection:
                set_by_host = {
                    name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
                    for name in (_TIMEOUT, *_PRAGMAS)
                }
        except DBAPIError as error:
            cause = error.orig
            raise cause if isinstance(cause, sqlite3.Error) else error from None
        finally:
            await private.dispose()
        usual = await asyncio.to_thread(_usual, path)
    changed = {name: value for name, value in set_by_host.items() if usual[name] != value}
    timeout = changed.pop(_TIMEOUT, None)
    statements = [f"PRAGMA {name} = {int(value)}" for name, value in changed.items() if value is not None]
    if timeout is None:
        return EngineSettings(statements)
    # A longer one is waited for in parts.
    statements.append(f"PRAGMA {_TIMEOUT} = {min(timeout, int(NOTICE_SECONDS * 1000))}")
    return EngineSettings(statements, timeout / 1000)


def _usual(path: Path) -> dict[str, Any]:
    """Find what a connection has for which nothing is set."""
    with closing(sqlite3.connect(path)) as plain:
        return {name: plain.execute(f"PRAGMA {name}").fetchone()[0] for name in (_TIMEOUT, *_PRAGMAS)}
