"""Where code comes from, by the name of its file: the standard library, an installed package, or neither."""

from __future__ import annotations

import sysconfig
from typing import Final

__all__ = ["INSTALLED", "STANDARD", "package_of"]

INSTALLED: Final = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
"""The folders of installed packages; they may be within those of the standard library."""
STANDARD: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
"""The folders of the standard library."""


def package_of(filename: str) -> str | None:
    """Return the installed package whose code this is; "" for the standard library's, None for any other."""
    for folder in INSTALLED:
        if filename.startswith(folder):
            return filename[len(folder) :].replace("\\", "/").strip("/").partition("/")[0].removesuffix(".py")
    return "" if filename.startswith((*STANDARD, "<frozen")) else None
