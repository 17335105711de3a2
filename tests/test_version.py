"""The version and the addresses stand in one place; what cannot read them there has the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from durable_batches.version import DOCS_URL, REPOSITORY_URL, VERSION

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
LINKED = sorted(set(re.findall(r"^\[[^\]]+\]: (\S+)$", README, re.MULTILINE)))


def test_the_package_has_the_same_addresses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"] == {
        "Documentation": DOCS_URL,
        "Repository": REPOSITORY_URL,
        "Changelog": f"{REPOSITORY_URL}CHANGELOG.md",
    }


def test_the_documentation_has_the_same_addresses() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    addresses = dict(re.findall(r"^(site_url|repo_url): (\S+)$", settings, re.MULTILINE))
    assert addresses == {"site_url": DOCS_URL, "repo_url": REPOSITORY_URL}


def test_the_readme_has_no_link_that_an_index_could_not_follow() -> None:
    links = re.findall(r"\]\(([^)]*)\)", README)
    assert [link for link in links if not link.startswith("https://")] == []
    named = set(re.findall(r"\]\[([\w-]+)\]", README))
    assert len(named) > 5
    assert named == set(re.findall(r"^\[([\w-]+)\]: ", README, re.MULTILINE))


@pytest.mark.parametrize("address", LINKED)
def test_what_the_readme_links_to_is_there(address: str) -> None:
    if address.startswith(REPOSITORY_URL):
        assert (ROOT / address.removeprefix(REPOSITORY_URL)).is_file()
    else:
        assert address.startswith(DOCS_URL)
        page = address.removeprefix(DOCS_URL).removesuffix("/") or "index"
        assert (ROOT / "docs" / f"{page}.md").is_file()


def test_the_changelog_has_a_section_for_this_version() -> None:
    sections = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", CHANGELOG, re.MULTILINE)
    assert sections[0] == ("Unreleased", "")
    assert [version for version, date in sections[1:] if not date] == []
    assert sections[1][0] == VERSION
