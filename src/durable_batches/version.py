"""The version of the library and its addresses: the one place, which the build, the errors and the tests read."""

from __future__ import annotations

__all__ = ["DOCS_URL", "REPOSITORY_URL", "VERSION"]

VERSION = "0.3.0.dev0"  # without an annotation: the build looks for this very line
"""Between two releases it is that of the next one, with `.dev0`: no two states of the code have a release's version."""

DOCS_URL = "https://example.org/durable-batches/"
"""Where the documentation is; a placeholder until it is published. Ends with a slash."""

REPOSITORY_URL = "https://example.org/durable-batches/repository/"
"""Where the source code is; a placeholder until it is published. Ends with a slash."""
