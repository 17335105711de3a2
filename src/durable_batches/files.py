"""Text files as documents: which files of a folder are meant, and which have a text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["MAX_FILE_BYTES", "NoTextError", "files_below", "name_of", "read_text", "text_of"]

MAX_FILE_BYTES: Final = 1024 * 1024
"""Larger files are data rather than prose."""

_SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


class NoTextError(ValueError):
    """A file has no text; the message says why, and goes on from the file's name."""


def files_below(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, ordered by path, without those that are hidden, links, or of installed code."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        for name in sorted(files):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file() and not file.is_symlink():
                yield file


def read_text(file: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Read the text of a file; what is no UTF-8 in it is replaced.

    Raises:
        NoTextError: It is too large, binary or empty.
        OSError: It cannot be read.
    """
    with file.open("rb") as opened:
        content = opened.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise NoTextError(f"has more than {max_bytes} bytes")
    return text_of(content)


def text_of(content: bytes) -> str:
    """Decode a text; what is no UTF-8 in it is replaced.

    Raises:
        NoTextError: It is binary or empty.
    """
    if b"\0" in content:
        raise NoTextError("is binary, no text")
    text = content.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    if not text.strip():
        raise NoTextError("is empty")
    return text


def name_of(path: Path) -> str:
    """Return the path as text that every store can hold: names of files are bytes on many systems."""
    return os.fsencode(path.as_posix()).decode("utf-8", errors="backslashreplace")
