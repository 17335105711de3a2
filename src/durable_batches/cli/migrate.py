"""`durable-batches migrate`: bring a database's schema up to date, or print the SQL that does."""

from __future__ import annotations

import re

from durable_batches.errors import ConfigurationError
from durable_batches.stores import SQLiteStore
from durable_batches.stores.migrations import newer_scripts

__all__ = ["migrate", "script"]


async def migrate(target: str, schema: str) -> str:
    """Bring the target's schema up to date; return a line about what was done."""
    _refuse_keywords(target)
    if "://" not in target:
        store = SQLiteStore(target)
        await store.open()
        await store.close()
        return f"{store.path} is up to date"
    # Only a Postgres target needs the driver.
    from durable_batches.stores.postgres.connection.database import Database
    from durable_batches.stores.postgres.connection.schema import migrate as migrate_schema
    from durable_batches.stores.postgres.connection.session import session_of_its_own

    database = Database(target, schema, statement_seconds=60, lock_seconds=10)
    async with session_of_its_own(database) as session:
        changed = await migrate_schema(database, session)
    return f"schema {schema!r} in {database.where} {'was brought' if changed else 'is'} up to date"


def _refuse_keywords(target: str) -> None:
    # It would be taken for the name of a file, with a password in it.
    if "://" not in target and re.search(r"\b(host|hostaddr|port|dbname|user|password|service)\s*=", target):
        raise ConfigurationError(
            "a Postgres is named by a URL, postgresql://user:password@host:5432/database, not by words as host=..."
        )


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

    if target is not None and "://" not in target:
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
