"""Ids in URLs: each is one segment of a path that no server, proxy or router reads as anything else."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

__all__ = ["id_of", "segment_of"]

_PLAIN: Final = re.compile(r"[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]*", re.ASCII)


def segment_of(name: str) -> str:
    """Return the segment of an id: itself where it is plain, otherwise `~` and its base64url without padding.

    A proxy may decode `%2F`, join two slashes and remove `..` before a server sees the path (nginx does), which would
    name another batch.
    """
    if _PLAIN.fullmatch(name):
        return name
    return "~" + base64.urlsafe_b64encode(name.encode()).decode("ascii").rstrip("=")


def id_of(segment: str) -> str | None:
    """Return the id of a segment; None: it is the segment of none."""
    if not segment.startswith("~"):
        return segment if _PLAIN.fullmatch(segment) else None
    encoded = segment[1:]
    try:
        name = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    # One id has one URL.
    return name if name and segment_of(name) == segment else None
