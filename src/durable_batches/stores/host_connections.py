"""Connections of the host application: the driver's connection under one of SQLAlchemy's or Django's.

Neither is imported here: whose connection it is, is told by whether its module has been imported.
"""

from __future__ import annotations

import sys
from typing import Any

from durable_batches.errors import ConfigurationError

__all__ = ["driver_connection_of", "kind_of", "not_in_transaction", "sync_driver_connection_of"]


async def driver_connection_of(connection: object) -> object:
    """Find the driver's connection under one of SQLAlchemy's asyncio extension; any other is returned as it is.

    SQLAlchemy takes note of the transaction, which it begins where it was not begun yet.
    """
    if "sqlalchemy.ext.asyncio" in sys.modules:
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

        if isinstance(connection, AsyncSession):
            connection = await connection.connection()
        if isinstance(connection, AsyncConnection):
            # The dialect tells the server of a transaction with its first statement.
            await connection.exec_driver_sql("SELECT 1")
            raw = await connection.get_raw_connection()
            return raw.driver_connection
    return connection


def sync_driver_connection_of(connection: object) -> object:
    """Find the driver's connection under one of SQLAlchemy's or Django's; any other is returned as it is.

    SQLAlchemy takes note of the transaction, which it begins where it was not begun yet.

    Raises:
        ConfigurationError: Django is in no transaction.
    """
    if "sqlalchemy.orm" in sys.modules:
        from sqlalchemy.orm import Session

        if isinstance(connection, Session):
            connection = connection.connection()
    if "sqlalchemy" in sys.modules:
        from sqlalchemy import Connection

        if isinstance(connection, Connection):
            connection.exec_driver_sql("SELECT 1")
            return connection.connection.driver_connection
    if any(kind.__module__.partition(".")[0] == "django" for kind in type(connection).__mro__):
        wrapper: Any = connection
        if not wrapper.in_atomic_block:
            raise not_in_transaction("transaction.atomic()")
        wrapper.ensure_connection()
        found: object = wrapper.connection
        return found
    return connection


def not_in_transaction(begin: str = "") -> ConfigurationError:
    """Make the error that says that a connection is in no transaction; `begin`: how to begin one."""
    return ConfigurationError(
        "connection= joins a transaction, and this connection is in none: begin one"
        f"{f' ({begin})' if begin else ''}, and commit it afterwards"
    )


def kind_of(connection: object, driver: object) -> str:
    """Name the kind of a connection that cannot be used, and of its driver's, for an error."""
    kind = repr(type(connection).__name__)
    return kind if driver is connection else f"{kind} over {type(driver).__module__.partition('.')[0]}"
