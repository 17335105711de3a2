"""The store's schema: its tables are made, and brought up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from durable_batches.errors import OldWorkersError, StoreLockedError, StoreNotFoundError
from durable_batches.stores import migrations
from durable_batches.stores.migrations import READABLE_SINCE, ends_older_workers, newer_scripts
from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.server_clock import HOLDS_LEASE, SERVER_TIME
from durable_batches.stores.postgres.connection.session import Session, transaction
from durable_batches.version import VERSION

__all__ = ["MIGRATION_LOCK", "check_schema", "has_schema", "migrate", "migration_script", "scripts_for"]

_MIGRATION_SECONDS: Final = 120.0
"""How long another process's migration is waited for."""
_LOOK_SECONDS: Final = 0.05

_UPGRADE_SECONDS: Final = 3600.0
"""How long the scripts may take: an index on a table with millions of rows takes longer than any statement else."""

MIGRATION_LOCK: Final = "hashtextextended('durable_batches ' || $1, 0)"
"""What a migration of the schema $1 locks, before anything else."""

_VERSION_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS {s}.schema_version ("
    "version integer NOT NULL, readable_since text NOT NULL, library text NOT NULL)"
)


async def migrate(database: Database, session: Session) -> bool:
    """Bring the schema up to date, under a lock that is taken before anything is made.

    The lock is held until the session's connection is closed.

    Returns:
        Whether anything was missing.

    Raises:
        SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
        OldWorkersError: Workers of an older library are alive.
        StoreAccessError: The role may not make it.
    """
    if not await scripts_for(database, session):
        return False
    await _locked_for_migration(session, database)
    session = Session(database, session.connection, _UPGRADE_SECONDS)
    # Begun after the lock is held: what this session believes of the catalogue is brought up to date by that.
    async with transaction(session, database.where, "BEGIN; SET LOCAL statement_timeout = 0"):
        newer = await _scripts_for(database, session)
        if newer:
            await session.run(migration_script(newer, schema=not await has_schema(session)))
    return bool(newer)


async def check_schema(database: Database, session: Session) -> None:
    """Make sure that the schema can be used as it is; a right to read is enough.

    Raises:
        StoreNotFoundError: It has none of the store's tables.
        SchemaTooOldError: It lacks a migration.
        SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
    """
    with translated(database.where):
        version, readable_since = await _schema_version(session)
        if version == 0:
            raise StoreNotFoundError(
                f"the schema {database.schema!r} of the database {database.where} has none of the store's tables"
            )
        migrations.check_schema("postgres", database.where, version, readable_since)


async def has_schema(session: Session) -> bool:
    """Whether the schema is there, with or without tables: who may not make schemas may own one."""
    return await session.value("SELECT to_regnamespace($1)", session.quoted) is not None


async def scripts_for(database: Database, session: Session) -> list[tuple[int, str]]:
    """Find the scripts that its schema lacks.

    Raises:
        OldWorkersError: Workers of an older library are alive.
        SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
    """
    with translated(database.where):
        return await _scripts_for(database, session)


async def _scripts_for(database: Database, session: Session) -> list[tuple[int, str]]:
    version, readable_since = await _schema_version(session)
    newer = newer_scripts("postgres", database.where, version, readable_since)
    if ends_older_workers(version):
        await _refuse_older_workers(database, session)
    return newer


async def _refuse_older_workers(database: Database, session: Session) -> None:
    alive = await session.fetch(
        f"SELECT worker_id, pid, lease_until - c.now FROM {{s}}.worker, (SELECT {SERVER_TIME} AS now) c "
        f"WHERE {HOLDS_LEASE}"
    )
    if alive:
        workers = {worker: pid for worker, pid, _ in alive}
        seconds = max(left for *_, left in alive) / 1_000_000
        raise OldWorkersError(database.where, workers, seconds, READABLE_SINCE)


def migration_script(scripts: Sequence[tuple[int, str]], *, schema: bool) -> str:
    """Write the SQL of these scripts, with `{s}` for the schema's quoted name; `schema`: make the schema, too."""
    parts = [f"{_VERSION_TABLE};", *(script for _, script in scripts)]
    if schema:
        parts.insert(0, "CREATE SCHEMA IF NOT EXISTS {s};")
    parts += [
        "DELETE FROM {s}.schema_version;",
        f"INSERT INTO {{s}}.schema_version VALUES ({scripts[-1][0]}, '{READABLE_SINCE}', '{VERSION}');",
    ]
    return "\n".join(parts) + "\n"


async def _locked_for_migration(session: Session, database: Database) -> None:
    """Wait until this session is the only one that migrates."""
    with translated(database.where):
        try:
            async with asyncio.timeout(_MIGRATION_SECONDS):
                while not await session.value(  # noqa: ASYNC110  (another process holds it)
                    f"SELECT pg_try_advisory_lock({MIGRATION_LOCK})", database.schema
                ):
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            raise StoreLockedError(database.where) from None


async def _schema_version(session: Session) -> tuple[int, str]:
    if await session.value("SELECT to_regclass($1)", f"{session.quoted}.schema_version") is None:
        return 0, "0"
    row = await session.row("SELECT version, readable_since FROM {s}.schema_version")
    return (0, "0") if row is None else (row[0], row[1])
