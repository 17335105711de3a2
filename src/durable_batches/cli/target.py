"""The store that a command works on: the path of a SQLite file, the DSN of a Postgres, or a store of one's own."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Final

from durable_batches.cli.exits import CommandError, Exit
from durable_batches.errors import ConfigurationError, StoreNotFoundError
from durable_batches.stores.protocol import Store, check_store

__all__ = ["is_dsn", "is_object", "store_at"]

_OBJECT: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_KEYWORDS: Final = re.compile(r"\b(host|hostaddr|port|dbname|user|password|service)\s*=")


def is_dsn(target: str) -> bool:
    """Return whether this names a database server."""
    return "://" in target


def is_object(target: str) -> bool:
    """Return whether this names an object of a module, `module:name`, rather than a file that is there."""
    return _OBJECT.fullmatch(target) is not None and not Path(target).exists()


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
    module, _, name = target.partition(":")
    # A command's own folder is on the path, but not the current one.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _import_failed(module, error) from error
        raise CommandError(
            f"there is no module {error.name!r} for the store {target!r}; modules are looked for in the current "
            "folder, too",
            Exit.USAGE,
        ) from error
    except Exception as error:
        raise _import_failed(module, error) from error
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise CommandError(f"the module {module!r} has no {name!r}", Exit.USAGE) from error
    if callable(found) and not (isinstance(found, Store) and not isinstance(found, type)):
        try:
            found = found()
        except Exception as error:
            raise CommandError(f"{target} failed: {type(error).__name__}: {error}", Exit.USAGE) from error
    check_store(found)
    assert isinstance(found, Store)
    return found


def _import_failed(module: str, error: Exception) -> CommandError:
    return CommandError(f"the module {module!r} cannot be imported: {type(error).__name__}: {error}", Exit.USAGE)
