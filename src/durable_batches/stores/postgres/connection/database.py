"""Where the batches are: how a connection is opened there, and with which settings."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from weakref import ReferenceType, ref

import asyncpg

from durable_batches.errors import ConfigurationError, StoreReadOnlyError
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.inherited import left_in_children
from durable_batches.stores.postgres.connection.names import (
    checked_dsn,
    checked_schema,
    quoted,
    without_credentials,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["CONNECT_SECONDS", "Connection", "Database", "ServerProcess", "millis"]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECT_SECONDS: Final = 10.0
"""How long opening a connection may take."""

_MARGIN_SECONDS: Final = 2.0
"""How much longer than the server's own limit a statement is waited for; then the connection is taken for dead."""

_MOST_REMEMBERED: Final = 100
"""Connections of which it is known whether they were closed."""

_APPLICATION_NAME: Final = "durable_batches"
"""Where the DSN or the engine gives none."""

_SETTINGS: Final = {
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "client_min_messages": "error",
    "jit": "off",
    # What is acknowledged has to be on the disk, however the server's other applications want it. Where it is to be
    # on replicas as well, that is left.
    "synchronous_commit": "on",
    "search_path": "pg_catalog",
}

_BY_KEY: Final = {
    # Every statement of a write path finds its rows by a key or along one index. Outdated statistics of a table
    # that has grown must not make the planner read all of it, so all other plans are disabled; and with only one
    # plan there is no need to plan each time.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


class ServerProcess(NamedTuple):
    """The process of the server that serves a connection."""

    pid: int
    started: datetime
    """Numbers of processes are used again."""


class Database:
    """Where the batches are, and how to get there.

    Args:
        target: A DSN, or the engine of the host application.
        schema: The schema of the tables, as its user calls it.
        statement_seconds: How long the server may work on one statement.
        lock_seconds: How long it may wait for a lock.
    """

    def __init__(self, target: str | AsyncEngine, schema: str, statement_seconds: float, lock_seconds: float) -> None:
        self.schema: Final = checked_schema(schema)
        self.quoted: Final = quoted(schema)
        self.statement_seconds: Final = statement_seconds
        self.lock_seconds: Final = lock_seconds
        self._open: Callable[[float], Awaitable[Connection]]
        if isinstance(target, str):
            dsn = checked_dsn(target)
            where = without_credentials(dsn)
            self._open = lambda seconds: asyncpg.connect(dsn, timeout=seconds)
        elif hasattr(target, "url"):
            from durable_batches.stores.postgres.connection.engine import opener_of

            self._open = opener_of(target)
            where = target.url.render_as_string(hide_password=True).partition("@")[2] or str(target.url.database)
        else:
            raise ConfigurationError(
                "a PostgresStore needs a DSN such as postgresql://user:password@host:5432/database, or an AsyncEngine, "
                f"not {type(target).__name__!r}"
            )
        self.where: Final = where
        self._opened: deque[tuple[ServerProcess, ReferenceType[Connection]]] = deque(maxlen=_MOST_REMEMBERED)

    @property
    def channel(self) -> str:
        """The channel of its notifications."""
        return "durable_batches_" + hashlib.blake2b(self.schema.encode(), digest_size=8).hexdigest()

    @property
    def answer_seconds(self) -> float:
        """How long an answer to a statement is waited for."""
        return self.statement_seconds + _MARGIN_SECONDS

    def given_up(self) -> list[ServerProcess]:
        """List the server's processes of those connections, of the last ones, that are closed by now."""
        return [process for process, opened in self._opened if (found := opened()) is None or found.is_closed()]

    async def connect(
        self, *, by_key: bool, read_only: bool = False, takes_replica: bool = False, seconds: float | None = None
    ) -> Connection:
        """Open a connection with the store's settings.

        Args:
            read_only: The server refuses whatever would write.
            takes_replica: Whether the server may be a replica, which can be read and may be behind.
            by_key: For statements that find all rows by a key or along an index: the planner has no other ways.
            seconds: How long that may take; `CONNECT_SECONDS` by default.

        Raises:
            StoreUnavailableError: Or a kin of it.
            ConfigurationError: Nothing that the settings name is there to connect to, or they contradict each other.
        """
        seconds = CONNECT_SECONDS if seconds is None else seconds
        with translated(self.where):
            async with asyncio.timeout(seconds):
                connection = await self._open(seconds)
                left_in_children(connection)
                try:
                    is_replica, process = await self._set_up(connection, by_key=by_key, read_only=read_only)
                    if is_replica and not takes_replica:
                        # After a failover an address may lead to one for some time.
                        raise StoreReadOnlyError(
                            f"the database {self.where} is a replica and cannot be written; connect to the primary "
                            "(target_session_attrs=read-write in the DSN finds it among several hosts)"
                        )
                except BaseException:
                    connection.terminate()
                    raise
                if process is not None:
                    self._opened.append((process, ref(connection)))
                return connection

    async def _set_up(
        self, connection: Connection, *, by_key: bool, read_only: bool
    ) -> tuple[bool, ServerProcess | None]:
        """Make the settings; return whether the server is a replica, and its process, if it tells."""
        given = getattr(connection.get_settings(), "application_name", "")
        settings = {
            **_SETTINGS,
            "application_name": given or _APPLICATION_NAME,
            "statement_timeout": millis(self.statement_seconds),
            "lock_timeout": millis(self.lock_seconds),
            "idle_in_transaction_session_timeout": millis(self.statement_seconds),
            **(_BY_KEY if by_key else {}),
            **({"default_transaction_read_only": "on"} if read_only else {}),
        }
        # As JSON, not as arrays: the driver asks for the description of each array type on each connection.
        row = await connection.fetchrow(
            "SELECT count(set_config(key, value, false)), pg_is_in_recovery(), pg_backend_pid(), "
            "(SELECT backend_start FROM pg_stat_get_activity(pg_backend_pid())) FROM json_each_text($1::json) "
            "WHERE key <> 'synchronous_commit' OR current_setting(key) IN ('off', 'local')",
            json.dumps(settings),
        )
        if row is None:
            return False, None
        _, is_replica, pid, started = row
        return bool(is_replica), None if started is None else ServerProcess(pid, started)


def millis(seconds: float) -> str:
    """As the server takes a duration: at least a millisecond, and at most what fits (24 days)."""
    return str(min(max(int(seconds * 1000), 1), _LONGEST_MILLIS))


_LONGEST_MILLIS: Final = 2**31 - 1
