"""Names and ids that users give: what every store can hold, and tell apart."""

from __future__ import annotations

from typing import Final

__all__ = ["LONGEST_NAME", "problem_with_name"]

LONGEST_NAME: Final = 512
"""Characters; so that an index of any database has room for four bytes of each."""


def problem_with_name(name: object) -> str | None:
    """What keeps this from being a name; None: it can be one."""
    if not isinstance(name, str):
        return f"must be a str, not {type(name).__name__!r}"
    if not name or len(name) > LONGEST_NAME:
        return f"must have 1 to {LONGEST_NAME} characters, not {len(name)}"
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        return "must not contain NUL or lone surrogates"
    return None
