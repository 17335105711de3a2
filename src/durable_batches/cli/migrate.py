"""`durable-batches migrate`: bring a database's schema up to date, or print the SQL that does."""

from __future__ import annotations

from durable_batches.cli.target import is_dsn, store_at
from durable_batches.errors import ConfigurationError
from durable_batches.printable import printable
from durable_batches.stores.migrations import newer_scripts

__all__ = ["migrate", "script"]


async def migrate(target: str | None, schema: str) -> str:
    """Bring the target's schema up to date; return a line about what was done."""
    if target is None or not is_dsn(target):
        store = store_at(target, schema)
        await store.open()
        await store.close()
        return f"{printable(str(target))} is up to date"
    # Only a Postgres target needs the driver.
    from durable_batches.stores.postgres.connection.database import Database
    from durable_batches.stores.postgres.connection.schema import migrate as migrate_schema
    from durable_batches.stores.postgres.connection.session import session_of_its_own

    database = Database(target, schema, statement_seconds=60, lock_seconds=10)
    async with session_of_its_own(database) as session:
        changed = await migrate_schema(database, session)
    return f"schema {schema!r} in {database.where} {'was brought' if changed else 'is'} up to date"


async def script(target: str | None, schema: str) -> str:
    """Return the SQL that brings the target's schema up to date; without a target, the SQL of the whole schema."""
    from durable_batches.stores.postgres.connection.database import Database
    from durable_batches.stores.postgres.connection.names import quoted_text
    from durable_batches.stores.postgres.connection.schema import (
        MIGRATION_LOCK,
        has_schema,
        migration_script,
        scripts_for,
    )
    from durable_batches.stores.postgres.connection.session import session_of_its_own

    if target is not None and not is_dsn(target):
        raise ConfigurationError("--sql is for Postgres; a SQLite file is upgraded when it is opened")
    database = Database(target or "postgresql://", schema, statement_seconds=60, lock_seconds=10)
    if target is None:
        newer, schema_is_there = newer_scripts("postgres", "", 0, "0"), False
    else:
        async with session_of_its_own(database) as session:
            newer, schema_is_there = await scripts_for(database, session), await has_schema(session)
    if not newer:
        return f"-- schema {schema!r} in {database.where} is up to date\n"
    lock = f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK.replace('$1', quoted_text(database.schema))});"
    text = migration_script(newer, schema=not schema_is_there)
    return f"BEGIN;\n{lock}\n{text.replace('{s}', database.quoted)}COMMIT;\n"
