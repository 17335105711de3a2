"""The numbered scripts that bring a database's schema up to date, a folder for each dialect."""

from __future__ import annotations

from importlib import resources
from typing import Final

from durable_batches.errors import SchemaTooNewError, SchemaTooOldError
from durable_batches.version import VERSION

__all__ = ["READABLE_SINCE", "check_schema", "ends_older_workers", "newer_scripts"]

READABLE_SINCE: Final = "0.2.0"
"""The oldest library version that can work on the schema that this version writes."""


def newer_scripts(dialect: str, where: str, version: int, readable_since: str) -> list[tuple[int, str]]:
    """Find the scripts, with their numbers, that a schema of this version lacks.

    Raises:
        SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
    """
    if _parts(readable_since) > _parts(VERSION):
        raise SchemaTooNewError(where, readable_since, VERSION)
    folder = resources.files(__name__) / dialect
    scripts = sorted(
        (entry.name, entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".sql")
    )
    numbered = [(int(name.partition("_")[0]), script) for name, script in scripts]
    return [script for script in numbered if script[0] > version]


def ends_older_workers(version: int) -> bool:
    """Whether the upgrade of a schema of this version needs that no worker of an older library is alive.

    0.1.0 knows no events but its own, and runs batches whatever they need. Newer ones may run beside newer schemas.
    """
    return 0 < version < _FIRST_SHARED


_FIRST_SHARED: Final = 2
"""The first script that workers may run across."""


def check_schema(dialect: str, where: str, version: int, readable_since: str) -> None:
    """Make sure that a schema of this version can be used as it is.

    Raises:
        SchemaTooOldError: It lacks a script.
        SchemaTooNewError: A newer library has changed it in a way that this one must not touch.
    """
    newer = newer_scripts(dialect, where, version, readable_since)
    if newer:
        raise SchemaTooOldError(where, version, newer[-1][0])


def _parts(version: str) -> tuple[int, ...]:
    """Return the numbers of a version. One in development counts as the release that it will be."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
