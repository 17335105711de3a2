"""The database file itself: it belongs to its owner only, and a path may lead to another file than the one in use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from durable_batches.errors import StoreCorruptError

__all__ = ["FileIdentity", "PinnedFile", "identity_of", "make"]

FileIdentity: TypeAlias = tuple[int, int]
"""The device and the inode of a file."""

_OWNER_ONLY: Final = 0o600


def make(path: Path) -> None:
    """Make an empty file for its owner only, where there is none; SQLite gives the same rights to those beside it.

    A file that is there keeps its rights. It is not opened here: closing it would drop SQLite's locks on it.
    """
    # What is wrong with the path, SQLite says.
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _OWNER_ONLY))


def identity_of(path: Path) -> FileIdentity | None:
    """Find which file a path leads to now; None: to none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class PinnedFile:
    """The file that a store has open for writing: until it is closed, its path must not lead to another one.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: FileIdentity | None = None

    def pin(self) -> None:
        """Take note of the file that is there now: it was opened."""
        self._identity = identity_of(self._path)

    def unpin(self) -> None:
        """Take note that the file is closed: the path may lead anywhere."""
        self._identity = None

    def check(self) -> None:
        """Make sure that the path still leads to the file that was opened.

        Raises:
            StoreCorruptError: It leads to another file, or to none: what is written there would be lost.
        """
        if self._identity is not None and identity_of(self._path) != self._identity:
            raise StoreCorruptError(
                f"the database {self._path} was deleted or replaced while it was in use, and nothing is written to it "
                "any more; stop all processes that use it, put the file back, and start them again"
            )
