"""The version and the addresses stand in one place; what cannot read them there has the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from durable_batches.version import DOCS_URL, REPOSITORY_URL, VERSION

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", CHANGELOG, re.MULTILINE)
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


def test_the_changelog_has_each_release_once_the_newest_first() -> None:
    (unreleased, _), *releases = SECTIONS
    assert unreleased == "Unreleased"
    assert [version for version, date in releases if not date] == []
    versions = [Version(version) for version, _ in releases]
    assert versions == sorted(set(versions), reverse=True)
    assert not any(version.is_prerelease for version in versions)


def test_between_two_releases_the_version_is_the_next_ones_in_development() -> None:
    """Or the code would differ from what was released under its version."""
    newest = Version(SECTIONS[1][0])
    if CHANGELOG.partition("## [Unreleased]")[2].partition("## [")[0].strip():
        assert Version(VERSION).is_devrelease
        assert Version(VERSION) > newest
    else:
        assert Version(VERSION) == newest


def test_kept_wheels_are_of_earlier_releases() -> None:
    kept = [Version(wheel.name.split("-")[1]) for wheel in (ROOT / "tests" / "versions").glob("*.whl")]
    assert kept
    assert {str(version) for version in kept} <= {version for version, _ in SECTIONS}
    assert max(kept) < Version(VERSION)
