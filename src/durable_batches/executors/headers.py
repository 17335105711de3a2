"""Headers of a provider's answers, bounded in bytes, on their way to the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["MOST_BYTES", "bounded"]

MOST_BYTES: Final = 8_192
"""Of the headers of one answer, names and values."""

_FIRST: Final = ("retry-after", "ratelimit", "date", "x-should-retry")
"""Parts of the names of headers that limiters read: these are kept where not all are."""


def bounded(headers: Mapping[str, str]) -> dict[str, str]:
    """Keep as many of an answer's headers as there is room for, those that limiters read first."""
    left, kept = MOST_BYTES, dict[str, str]()
    if sum(_bytes_of(name, value) for name, value in headers.items()) <= left:
        return dict(headers)
    for name, value in sorted(headers.items(), key=lambda item: not any(part in item[0].lower() for part in _FIRST)):
        size = _bytes_of(name, value)
        if size <= left:
            kept[name] = value
            left -= size
    return kept


def _bytes_of(name: str, value: str) -> int:
    # As JSON has them.
    return 6 * (len(name) + len(value)) if not (name + value).isascii() else len(name) + len(value)
