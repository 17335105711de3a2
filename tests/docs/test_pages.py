"""The pages fit the screen: a line of code that would be cut off is found here."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLUMNS = 78
"""What a page shows of a line on a screen of 1280 pixels, and a terminal of 80 columns of the README."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_fits_the_page(page: Path) -> None:
    with_sections = runpy.run_path(str(ROOT / "docs" / "_hooks" / "sections.py"))["on_page_markdown"]
    shown: str = with_sections(page.read_text(encoding="utf-8"))
    assert "--8<--" not in shown
    blocks: list[str] = CODE.findall(shown)
    assert [line for block in blocks for line in block.splitlines() if len(line) > COLUMNS] == []
