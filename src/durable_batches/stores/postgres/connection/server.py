"""Checks of the server: whether the store can work with it."""

from __future__ import annotations

import logging
from typing import Final

from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.errors import pooled, translated
from durable_batches.stores.postgres.connection.session import Session

__all__ = ["check_server"]

_log = logging.getLogger("durable_batches")

_POOLER_LOOKS: Final = 20
"""How often it is looked whether sessions are swapped: a pooler that others use as well need not do so each time."""


async def check_server(database: Database, first: Session, second: Session) -> None:
    """Make sure that two connections are two sessions, as leases and notifications need.

    Args:
        database: Where.
        first: One of the two.
        second: The other.

    Raises:
        ConfigurationError: A pooler stands before the server, and hands its sessions out by the transaction.
    """
    with translated(database.where):
        await _refuse_what_shares_sessions(database, first, second)
        if await first.value("SELECT current_setting('fsync')") == "off":
            _log.warning(
                "the database %s runs with fsync = off: after a power failure, finished work may be lost or the "
                "database be damaged",
                database.where,
                extra={"database": database.where},
            )


async def _refuse_what_shares_sessions(database: Database, first: Session, second: Session) -> None:
    mine = await _session_number(first)
    # The server itself says at the start which session this is; a pooler makes a number up.
    direct = first.connection.get_server_pid() == mine
    for _ in range(1 if direct else _POOLER_LOOKS):
        # Held for a moment, so that it cannot be the other's, unless that has none of its own.
        await second.run("BEGIN")
        other = await _session_number(second)
        again = other if other == mine else await _session_number(first)
        await second.run("ROLLBACK")
        if other == mine or again != mine:
            raise pooled(database.where)


async def _session_number(session: Session) -> int:
    number: int = await session.value("SELECT pg_backend_pid()")
    return number
