"""The host application's engine of SQLAlchemy: connections like its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, cast

import asyncpg
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from durable_batches.errors import ConfigurationError, StoreUnavailableError

__all__ = ["opener_of"]

_Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def opener_of(engine: AsyncEngine) -> Callable[[float], Awaitable[_Connection]]:
    """Make the function that opens connections as the engine does, with its settings and events, outside of its pool.

    The store's connections belong to the store's event loop, and so cannot be shared with the host's.
    """
    dialect = f"{engine.dialect.name}+{engine.dialect.driver}"
    if dialect != "postgresql+asyncpg":
        raise ConfigurationError(f"a PostgresStore needs an engine of postgresql+asyncpg, not of {dialect}")
    sync = engine.sync_engine
    # A pool of the same kind with the same way to connect, and nothing in it yet.
    private = AsyncEngine(Engine(sync.pool.recreate(), sync.dialect, sync.url))

    # Of the driver's errors, the dialect makes its own.
    dressed = (SQLAlchemyError, sync.dialect.loaded_dbapi.Error)

    async def open_connection(seconds: float) -> _Connection:
        try:
            pooled = await private.raw_connection()
        except dressed as error:
            cause = error.__cause__
            if isinstance(cause, (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                raise cause from None
            raise StoreUnavailableError(
                f"the application's engine opens no connection: {type(error).__name__}"
            ) from error
        connection = cast("_Connection", pooled.driver_connection)
        pooled.detach()
        return connection

    return open_connection
