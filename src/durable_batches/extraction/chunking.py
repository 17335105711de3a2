"""Split a document into chunks: metadata at field boundaries, text at the ends of paragraphs and sentences."""

from __future__ import annotations

from collections.abc import Iterator

from durable_batches.errors import ConfigurationError
from durable_batches.extraction.documents import SourceDocument
from durable_batches.extraction.model import Chunk, Section
from durable_batches.options import check_instance, check_integer

__all__ = ["chunk_document", "render_metadata"]

CHUNK_CHARACTERS = 4_000
"""About a page: enough context for each mention, and little to repeat if a chunk is retried."""

_BOUNDARIES = ("\n\n", "\n", ". ", " ")
"""Boundaries at which a text may be split, best first."""


def chunk_document(document: SourceDocument, *, size: int = CHUNK_CHARACTERS) -> list[Chunk]:
    """Split a document into its chunks, in order; together they are all of its metadata and text, without overlap.

    Args:
        document: The document to split.
        size: The most characters of a chunk.

    Raises:
        ConfigurationError: `size` is no int, or less than 1.
    """
    check_instance("document", document, SourceDocument)
    check_integer("size", size)
    if size < 1:
        raise ConfigurationError(f"a chunk must hold at least 1 character, not {size}")
    sections: list[tuple[Section, str]] = [
        ("metadata", render_metadata(document.metadata)),
        ("text", document.text),
    ]
    chunks: list[Chunk] = []
    for section, content in sections:
        for start, end in _spans(content, size):
            chunks.append(
                Chunk(
                    document_id=document.id,
                    index=len(chunks),
                    section=section,
                    start=start,
                    text=content[start:end],
                )
            )
    return chunks


def render_metadata(metadata: dict[str, list[str]]) -> str:
    """Render metadata as text: a line `Field: value` each, further lines of a value indented."""
    return "".join(f"{field}: {_indented(value)}\n" for field, values in metadata.items() for value in values)


def _indented(value: str) -> str:
    return "\n        ".join(line.strip() for line in value.splitlines()) or ""


def _spans(text: str, size: int) -> Iterator[tuple[int, int]]:
    start = 0
    while len(text) - start > size:
        end = _cut(text, start, start + size)
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)


def _cut(text: str, start: int, limit: int) -> int:
    """Find the end of the chunk that starts at `start`: the best boundary in its second half, else the limit."""
    for boundary in _BOUNDARIES:
        found = text.rfind(boundary, start + (limit - start) // 2, limit)
        if found >= 0:
            return found + len(boundary)
    return limit
