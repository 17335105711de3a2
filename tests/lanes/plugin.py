"""Every test is in exactly one lane, and has its marker: `make unit` runs `pytest -m unit`, and so on.

A test says so itself (`@pytest.mark.processes`), or its folder says it, or the fixtures that it uses; what none of
these says is `unit`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

LANES: Final = {
    "unit": "in this process, deterministic, on memory and SQLite; what nothing else is said of",
    "stores": "in this process, on Postgres: what uses one of its fixtures",
    "processes": "starts processes",
    "types": "what checkers and editors make of user code",
    "docs": "runs what the documentation shows",
    "wheel": "runs the built wheel in environments of its own",
    "matrix": "the same on every Python that there is, and with each extra alone; not in `make test`",
    "browser": "the page in a real browser, and what runs on node; in `make test` where there is a Chromium",
    "clusters": "on a real Dask and a real Ray, on loopback; in an environment of its own, not in `make test`",
    "resolution": "entity resolution with splink; in an environment of its own, not in `make test`",
    "soak": "takes minutes, or is left to chance; `make soak` runs it, `make test` does not",
}

_FOLDERS: Final = {
    "tests/browser": "browser",
    "tests/clusters": "clusters",
    "tests/typing": "types",
    "tests/docs": "docs",
    "tests/postgres": "stores",
    "tests/processes": "processes",
    "tests/resolution": "resolution",
    "tests/soak": "soak",
    "tests/wheel": "wheel",
}
"""The lane of all tests in a folder, but for those that say another."""

_SECOND_LANES: Final = {"tests/wheel": "matrix"}
"""Another lane of the same tests, which their text does not name: they run once for each environment that is there."""

_ON_POSTGRES: Final = frozenset(
    {"postgres_server", "postgres_dsn", "postgres_schema", "migrated_schemas", "migrated_schema"}
)

_USES_POSTGRES: Final = re.compile(rf"\b({'|'.join(sorted({*_ON_POSTGRES, 'open_store', 'store'}))})\b")
"""Fixtures by which a test comes to run on Postgres."""

collected: Final = pytest.StashKey[list[pytest.Item]]()
"""All tests that were collected, before `-m` and `-k` choose among them."""


@pytest.hookimpl
def pytest_configure(config: pytest.Config) -> None:
    for lane, what in LANES.items():
        config.addinivalue_line("markers", f"{lane}: {what}")


@pytest.hookimpl
def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the files without a test of the lane that is to be run: to import all takes longer than some do.

    So does what a folder of another lane prepares for all of its files: a browser's driver, for one.
    """
    lane, root = config.option.markexpr, config.rootpath
    if lane not in LANES:
        return None
    if collection_path.suffix == ".py":
        files = [collection_path]
    elif any(collection_path == root / folder for folder in _FOLDERS):
        files = [*collection_path.rglob("*.py")]
    else:
        return None
    return None if any(may_hold(file, lane, root) for file in files) else True


def may_hold(path: Path, lane: str, root: Path) -> bool:
    """Whether a file may hold tests of a lane: its folder, a marker in it, or for stores the name of a fixture says so.

    What none of these is said of is `unit`, so that lane looks everywhere.
    """
    if lane == "unit":
        return True
    named = (*_FOLDERS.items(), *_SECOND_LANES.items())
    folders = [found for folder, found in named if path.is_relative_to(root / folder)]
    if lane in folders:
        return True
    text = path.read_text(encoding="utf-8")
    return f"mark.{lane}" in text or (lane == "stores" and not folders and _USES_POSTGRES.search(text) is not None)


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    root = config.rootpath
    for item in items:
        lane = lane_of(item, root)
        if item.get_closest_marker(lane) is None:
            item.add_marker(lane)
    config.stash[collected] = list(items)


def lane_of(item: pytest.Item, root: Path) -> str:
    """The lane that a test belongs to."""
    said = list(dict.fromkeys(marker.name for marker in item.iter_markers() if marker.name in LANES))
    if len(said) > 1:
        raise pytest.UsageError(f"{item.nodeid} is marked for the lanes {' and '.join(said)}; a test is in one")
    if said:
        return said[0]
    return lane_of_folder(item.path, root) or ("stores" if on_postgres(item) else "unit")


@cache
def lane_of_folder(path: Path, root: Path) -> str | None:
    """The lane that its folder says; None: it says none."""
    return next((lane for folder, lane in _FOLDERS.items() if path.is_relative_to(root / folder)), None)


def on_postgres(item: pytest.Item) -> bool:
    """Whether it uses a Postgres server: through a fixture, or as the one that a fixture is parametrised with."""
    if not _ON_POSTGRES.isdisjoint(getattr(item, "fixturenames", ())):
        return True
    callspec = getattr(item, "callspec", None)  # there for parametrised functions, of a class that is private
    return callspec is not None and callspec.params.get("open_store") == "postgres"
