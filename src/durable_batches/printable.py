"""Text of others on a terminal: ids and messages may hold control characters, which must not reach it."""

from __future__ import annotations

__all__ = ["printable", "printable_lines"]


def printable(text: str) -> str:
    r"""Return the text on one line, with an escape (`\x1b`) in the place of each character that is not printable.

    Control characters (C0, C1, DEL), line breaks, and the invisible ones that reorder text are among these.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def printable_lines(text: str) -> str:
    """Return the text with `printable` applied to each of its lines."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))
