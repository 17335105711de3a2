"""The built site: every public name is documented once, no internal one, and the header has repository and version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest

from durable_batches.version import REPOSITORY_URL, VERSION

ROOT = Path(__file__).parents[2]
HEADING = re.compile(r'<h\d id="(durable_batches\.[\w.]+)" class="doc doc-heading"')
TAG = re.compile(r"<[^>]+>")

INTERNAL = {
    "BatchClient": "clock documents_in_pages event_blocks",
    "DurableActivity": "base_key codec definition explicit_key input_digest instance is_ordinary missing target",
    "PayloadError": "locate",
    "RetryPolicy": "verdict",
    "Worker": "announce attempts begin_drain command control dependencies end_drain expire_dead_workers halt hint idle "
    "loading news outages raw_access reader ready reborn reporting reports rescue say_goodbye serve session signals "
    "subscriptions telemetry wake",
    "Workflow": "document_codec providers resolution_codec result_codec stage_index",
}
"""Members without an underscore, because other modules of the library call them, that are no promise to users."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built_before := os.environ.get("DURABLE_BATCHES_SITE"):
        return Path(built_before)
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def documented(site: Path) -> list[str]:
    pages = sorted((site / "reference").rglob("index.html"))
    return [name for page in pages for name in HEADING.findall(page.read_text(encoding="utf-8"))]


def named(path: str) -> object:
    """What a documented name stands for; itself, where it is an attribute that only instances have."""
    value: object = import_module("durable_batches")
    for name in path.split(".")[1:]:
        value = getattr(value, name, path)
    return value


@pytest.mark.parametrize(
    "module", ["", ".blobs", ".errors", ".executors", ".extraction", ".stores", ".telemetry", ".testing"]
)
def test_every_public_name_is_documented_once(module: str, documented: list[str]) -> None:
    package = import_module(f"durable_batches{module}")
    shown = [(path, named(path)) for path in documented]
    pages = {
        name: [path for path, value in shown if value is getattr(package, name) and path.endswith(f".{name}")]
        for name in package.__all__
    }
    assert {name: paths for name, paths in pages.items() if len(paths) != 1} == {}


def test_no_name_is_documented_twice(documented: list[str]) -> None:
    assert [name for name, times in Counter(documented).items() if times > 1] == []


def test_no_internals_are_shown(site: Path, documented: list[str]) -> None:
    members = {path: path.split(".")[-2:] for path in documented}
    assert [path for path, (owner, name) in members.items() if name in INTERNAL.get(owner, "").split()] == []
    assert [path for path in members if re.search(r"\._(?!_)", path)] == []
    # Nor do signatures name private constants in place of values.
    for page in (site / "reference").rglob("index.html"):
        text = TAG.sub("", page.read_text(encoding="utf-8"))
        assert re.findall(r"= _[A-Z_]+\b|= \.\.\.", text) == [], page


def test_code_of_the_reference_fits_the_page(site: Path) -> None:
    for page in (site / "reference").rglob("index.html"):
        blocks = re.findall(r"<pre>(.*?)</pre>", page.read_text(encoding="utf-8"), re.DOTALL)
        lines = [line for block in blocks for line in unescape(TAG.sub("", block)).splitlines()]
        assert [line for line in lines if len(line) > 78] == [], page


def test_docstrings_are_markdown(site: Path) -> None:
    for page in (site / "reference").rglob("index.html"):
        assert "::</p>" not in page.read_text(encoding="utf-8"), page


def test_error_codes_are_folded_away_where_another_page_is_read(site: Path) -> None:
    page = (site / "reference" / "workflows" / "index.html").read_text(encoding="utf-8")
    before, codes = page.split('<nav class="md-nav" data-md-level="2"')
    assert "errors/crash-loop/" not in before
    assert "errors/crash-loop/" in codes
    assert 'aria-expanded="false"' in codes[: codes.index(">")]


def test_the_header_has_the_repository_and_the_version(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    header = page[page.index("<header") : page.index("</header>")]
    assert f'href="{REPOSITORY_URL}"' in header
    assert f"durable-batches {VERSION}" in header
