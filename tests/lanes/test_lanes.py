"""Every test is run by exactly one lane, and every lane by a target of the Makefile."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from tests.lanes.plugin import LANES, collected, lane_of, may_hold

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@cache
def rule(target: str) -> str:
    """The prerequisites and the commands of a target."""
    found = re.search(rf"^{target}:(.*\n(?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
    assert found is not None, f"no target {target}"
    return found[1]


def is_run_by(item: pytest.Item, target: str) -> bool:
    """Whether a target has pytest look where the test is, and choose it by its marker."""
    found = re.search(r"\(PYTEST\) -m (\w+)[^\n]* \$\(ARGS\)(?: (tests/\w+))?$", rule(target), re.MULTILINE)
    assert found is not None, rule(target)
    marker, folder = found.groups()
    return item.get_closest_marker(marker) is not None and (folder is None or item.path.is_relative_to(ROOT / folder))


def lanes_of(target: str) -> list[str]:
    return [word for word in rule(target).partition("$(LANES)")[2].split() if word != "--where-possible"]


def test_every_test_is_run_by_exactly_one_lane(request: pytest.FixtureRequest) -> None:
    wrong: dict[str, list[str]] = {}
    for item in request.config.stash[collected]:
        lanes = [lane for lane in LANES if is_run_by(item, lane)]
        if lanes != [lane_of(item, ROOT)]:
            wrong[item.nodeid] = lanes
    assert not wrong


def test_each_lane_looks_into_the_files_with_its_tests(request: pytest.FixtureRequest) -> None:
    missed = {
        item.nodeid for item in request.config.stash[collected] if not may_hold(item.path, lane_of(item, ROOT), ROOT)
    }
    assert not missed


def test_each_lane_looks_into_the_folder_that_it_is_told() -> None:
    """Also where its tests come to be only with what it prepares: none of those of `matrix` were found."""
    told = {
        lane: found[1] for lane in LANES if (found := re.search(r"\(PYTEST\) -m [^\n]* (tests/\w+)$", rule(lane), re.M))
    }
    assert told["matrix"] == told["wheel"]
    for lane, folder in told.items():
        assert any(may_hold(path, lane, ROOT) for path in (ROOT / folder).glob("test_*.py")), lane


def test_make_test_runs_all_but_what_takes_too_long() -> None:
    assert set(lanes_of("test")) == {*LANES, "lint"} - {"clusters", "matrix", "resolution", "soak"}
    assert set(lanes_of("all-lanes")) == {*LANES, "lint"}


def test_the_browser_is_left_out_only_where_there_is_none() -> None:
    for target, must_run in (("test", False), ("all-lanes", True)):
        always, _, where_possible = rule(target).partition("--where-possible")
        assert ("browser" in always, "browser" in where_possible) == (must_run, not must_run)
