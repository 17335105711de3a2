"""The store that a command works on: the path of a SQLite file, the DSN of a Postgres, or a store of one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.cli.named import is_named_object, made_by, object_at
from durable_batches.errors import ConfigurationError, StoreNotFoundError
from durable_batches.stores.protocol import Store, check_store

__all__ = ["is_dsn", "is_object", "store_at"]

_KEYWORDS: Final = re.compile(r"\b(host|hostaddr|port|dbname|user|password|service)\s*=")


def is_dsn(target: str) -> bool:
    """Return whether this names a database server."""
    return "://" in target


def is_object(target: str) -> bool:
    """Return whether this names an object of a module, `module:name`, rather than a file that is there."""
    return is_named_object(target) and not Path(target).exists()


def store_at(target: str | None, schema: str) -> Store:
    """Make the store that a target names; it is not opened.

    Args:
        target: A path, a DSN, or `module:name`: a store, or a function without parameters that returns one.
        schema: The schema of the tables, in Postgres.

    Raises:
        ConfigurationError: This names no store.
        CommandError: No target was given, or the module cannot be imported.
    """
    if not target:
        raise CommandError(
            "say which store: --store with the path of a file, a DSN or module:name, or DURABLE_BATCHES_STORE in "
            "the environment",
            Exit.USAGE,
        )
    if is_dsn(target):
        from durable_batches.stores.postgres import PostgresStore

        return PostgresStore(target, schema=schema)
    # It would be taken for the name of a file, with a password in it.
    if _KEYWORDS.search(target):
        raise ConfigurationError(
            "a Postgres is named by a URL, postgresql://user:password@host:5432/database, not by words as host=..."
        )
    if is_object(target):
        return _object_at(target)
    if Path(target).is_dir():
        raise StoreNotFoundError(f"{target} is a folder")
    from durable_batches.stores.sqlite import SQLiteStore

    return SQLiteStore(target)


def _object_at(target: str) -> Store:
    found = object_at(target, "store")
    if callable(found) and not (isinstance(found, Store) and not isinstance(found, type)):
        found = made_by(found, target)
    check_store(found)
    assert isinstance(found, Store)
    return found
