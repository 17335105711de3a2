"""Sources of documents: the packages installed on this machine, or a folder of text files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from durable_batches.extraction.names import canonical_package_name
from durable_batches.files import MAX_FILE_BYTES, NoTextError, files_below, name_of, read_text
from durable_batches.options import check_instance, check_integer, check_text

__all__ = ["SourceDocument", "installed_packages", "package_document", "text_files"]

_log = logging.getLogger(__name__)


class SourceDocument(BaseModel):
    """A text to extract knowledge from."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    text: str
    metadata: dict[str, list[str]] = {}
    """Metadata fields with all their values in order; for a package, its core metadata."""


def installed_packages() -> Iterator[SourceDocument]:
    """Read metadata and README of every distribution that this interpreter can import, ordered by name.

    A distribution that is installed more than once counts once: the one that an import would find. One whose
    metadata cannot be read is left out, with a warning in the log.
    """
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        try:
            name = distribution.metadata["Name"]
        except (OSError, UnicodeError, ValueError, KeyError):
            name = None
        if name:
            found.setdefault(canonical_package_name(name), distribution)
        else:
            _log.warning("installed distribution skipped: its metadata has no package name")
    for key in sorted(found):
        # The empty name reads an .egg-info that is a single file.
        metadata = next(filter(None, map(found[key].read_text, ("METADATA", "PKG-INFO", ""))), None)
        if metadata:
            yield package_document(metadata)


def package_document(metadata: str) -> SourceDocument:
    """Make the document of a package from the content of its METADATA or PKG-INFO file.

    Raises:
        ValueError: It names no package.
    """
    check_text("metadata", metadata)
    message = Parser().parsestr(metadata)
    name = _value(message, "Name")
    if not name:
        raise ValueError("the metadata names no package: it has no Name field")
    fields: dict[str, list[str]] = {}
    for field, value in message.items():
        if field.lower() != "description":
            fields.setdefault(field, []).append(_storable(str(value)))
    return SourceDocument(
        id=canonical_package_name(name),
        title=f"{name} {_value(message, 'Version')}".strip(),
        text=_storable(_description(message)),
        metadata=fields,
    )


def text_files(path: str | os.PathLike[str], *, max_bytes: int = MAX_FILE_BYTES) -> Iterator[SourceDocument]:
    """Read every text file below the folder `path` (or that one file), ordered by path.

    Skips hidden files and folders, symbolic links, folders of installed code, empty files, binary
    files, and files of more than `max_bytes` bytes. A package's METADATA or PKG-INFO file becomes the
    package's document.

    Raises:
        FileNotFoundError: There is nothing at `path`. Raised at the first document, as iterators do.
    """
    check_instance("path", path, (str, os.PathLike))
    check_integer("max_bytes", max_bytes)
    root = Path(path)
    if root.is_file():
        files: Iterator[Path] = iter([root])
        root = root.parent
    elif root.is_dir():
        files = files_below(root)
    else:
        raise FileNotFoundError(f"there is no folder or file {str(path)!r}")
    for file in files:
        try:
            text = read_text(file, max_bytes)
        except NoTextError:
            continue
        except OSError as error:
            reason = error.strerror or type(error).__name__
            _log.warning("file %s skipped: %s", file, reason, extra={"path": str(file), "reason": reason})
            continue
        yield _file_document(file.relative_to(root), text)


def _value(message: Message, field: str) -> str:
    return _storable(str(message[field] or "").strip())


def _description(message: Message) -> str:
    """Return the README: the body in current metadata, a field with indented lines in older metadata."""
    body = message.get_payload()
    if isinstance(body, str) and body.strip():
        return body
    described = str(message["Description"] or "").strip()
    if described in ("", "UNKNOWN"):
        return ""
    first, *rest = described.splitlines()
    prefixes = ("       |", "        ")
    return "\n".join([first, *(line[8:] if line.startswith(prefixes) else line for line in rest)])


def _file_document(path: Path, text: str) -> SourceDocument:
    document_id = name_of(path)
    if path.name in ("METADATA", "PKG-INFO") and text.startswith("Metadata-Version:"):
        try:
            return package_document(text).model_copy(update={"id": document_id})
        except ValueError:
            _log.warning(
                "file %s read as text: it looks like a package's metadata, and has no package name",
                document_id,
                extra={"document_id": document_id},
            )
    return SourceDocument(id=document_id, title=document_id, text=text)


def _storable(text: str) -> str:
    """Remove characters that no store can hold: lone surrogates and NUL."""
    return text.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "\ufffd")
