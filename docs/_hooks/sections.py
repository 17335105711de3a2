"""Put sections of the examples into the pages, so that a page shows the code that the tests run.

`--8<-- examples/program.py: opening`, on a line of its own within a block of code, is the section of that file which
begins with the comment `# ---- opening ----`; with nothing behind the colon, all before the first section. The code is
formatted anew for the narrower column of a page.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from textwrap import dedent, wrap
from typing import Final

COLUMNS: Final = 78
"""The longest line of code that a page shows without scrolling, on a screen of 1280 pixels."""

_ROOT = Path(__file__).parents[2]
_WANTED = re.compile(r"^--8<-- (?P<path>\S+):[ ]*(?P<section>.*)$", re.MULTILINE)
_HEADING = re.compile(r"^[ ]*# ---- (?P<name>.*?) ?-+\n\n?", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return _WANTED.sub(lambda match: fitted(section(_ROOT / match["path"], match["section"])), markdown)


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


def fitted(code: str) -> str:
    """Format Python code for the width of a page."""
    # A section may begin within a class and end behind it.
    opening = "class _:\n" if code.startswith(" ") else ""
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", f"--line-length={COLUMNS}", "-"],
        input=opening + code,
        text=True,
        encoding="utf-8",
        capture_output=True,
        check=True,
    ).stdout.removeprefix(opening)
    return "\n".join(_wrapped(formatted.splitlines()))


def _wrapped(lines: list[str]) -> Iterator[str]:
    """Break docstrings and comments, which the formatter leaves alone."""
    in_string = False
    kinds: list[tuple[str, str]] = []
    for line in lines:
        # A triple quote begins or ends a docstring: true of code that was formatted just before.
        text = line.lstrip()
        opens = text.startswith('"""')
        kind = "prose" if in_string or opens else "comment" if text.startswith("# ") else "code"
        in_string ^= line.count('"""') == 1
        kinds.append((kind if text.strip('"') else "", line[: -len(text)] if text else ""))
    for (kind, indent), block in groupby(zip(kinds, lines, strict=True), key=itemgetter(0)):
        given = [line for _, line in block]
        if max(map(len, given)) <= COLUMNS:
            yield from given
        elif kind == "code":
            for line in given:
                yield from _without_trailing_comment(line, indent)
        else:
            yield from _filled(given, indent + "# " * (kind == "comment"))


def _without_trailing_comment(line: str, indent: str) -> Iterator[str]:
    code, _, comment = line.rpartition("  # ")
    if len(line) > COLUMNS and code and not comment.startswith(("type:", "pyright:", "noqa")):
        yield from _filled([comment], indent + "# ")
        yield code
    else:
        yield line


def _filled(lines: list[str], prefix: str) -> list[str]:
    words = " ".join(line.removeprefix(prefix) for line in lines)
    return wrap(
        re.sub(" {3,}", "  ", words),
        COLUMNS,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )
