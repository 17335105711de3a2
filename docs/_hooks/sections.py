"""Puts sections of the examples into the pages, so that what a page shows is what the tests run.

`--8<-- examples/program.py: opening`, on a line of its own within a block of code, is the section of that file which
begins with the comment `# ---- opening ----`; with nothing behind the colon, all before the first section.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

_ROOT = Path(__file__).parents[2]
_WANTED = re.compile(r"^--8<-- (?P<path>\S+):[ ]*(?P<section>.*)$", re.MULTILINE)
_HEADING = re.compile(r"^[ ]*# ---- (?P<name>.*?) ?-+\n\n?", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return _WANTED.sub(lambda match: section(_ROOT / match["path"], match["section"]), markdown)


def section(path: Path, name: str) -> str:
    """The lines of a section, without its heading.

    Raises:
        LookupError: There is none of this name.
    """
    text = path.read_text(encoding="utf-8")
    headings = [*_HEADING.finditer(text)]
    begins = {"": 0} | {heading["name"]: heading.end() for heading in headings}
    if name not in begins:
        raise LookupError(f"{path} has no section {name!r}, only {', '.join(map(repr, begins))}")
    begin = begins[name]
    end = next((heading.start() for heading in headings if heading.start() >= begin), len(text))
    return dedent(text[begin:end]).strip("\n")
