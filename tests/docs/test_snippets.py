"""Every Python snippet of the documentation runs, page by page, from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.postgres.databases import without_schema

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> str:
    """The page's snippets as one program, each line where it stands on the page, so that tracebacks lead there."""
    text = page.read_text(encoding="utf-8")
    program: list[str] = []
    for match in SNIPPET.finditer(text):
        line = text.count("\n", 0, match.start(1))
        program += [""] * (line - len(program))
        program += match[1].splitlines()
    return "\n".join(program)


WITH_SNIPPETS = [page for page in PAGES if snippets(page)]


def test_the_pages_are_found() -> None:
    assert ROOT / "README.md" in WITH_SNIPPETS
    assert len(WITH_SNIPPETS) > 3


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    program = tmp_path / f"{page.stem.replace('-', '_')}.py"
    program.write_text(snippets(page), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    if "DATABASE_URL" in program.read_text(encoding="utf-8"):
        dsn: str = request.getfixturevalue("postgres_dsn")
        environment["DATABASE_URL"] = dsn
        request.addfinalizer(lambda: without_schema(dsn, "durable_batches"))
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_page_about_stores_shows_all_of_its_example() -> None:
    example = (ROOT / "examples" / "custom_store.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "how-to" / "write-a-store.md").read_text(encoding="utf-8")
    sections = re.findall(r"^ *# ---- (.*?) -+$", example, re.MULTILINE)
    assert len(sections) > 5
    for section in ["", *sections]:
        assert f"\n--8<-- examples/custom_store.py: {section}".rstrip(" ") in page
