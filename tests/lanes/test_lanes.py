"""Every test is run by exactly one lane, and every lane by a target of the Makefile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.lanes.plugin import LANES, collected, lane_of

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def rule(target: str) -> str:
    """The prerequisites and the commands of a target."""
    found = re.search(rf"^{target}:(.*\n(?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
    assert found is not None, f"no target {target}"
    return found[1]


def chosen_by(lane: str) -> str:
    """The marker that the lane's target has pytest choose by."""
    found = re.search(r"\(PYTEST\) -m (\w+) ", rule(lane))
    assert found is not None, rule(lane)
    return found[1]


def lanes_of(target: str) -> list[str]:
    return rule(target).partition("$(LANES)")[2].split()


def test_every_test_is_run_by_exactly_one_lane(request: pytest.FixtureRequest) -> None:
    chosen = {lane: chosen_by(lane) for lane in LANES}
    wrong: dict[str, list[str]] = {}
    for item in request.config.stash[collected]:
        names = {marker.name for marker in item.iter_markers()}
        lanes = [lane for lane, marker in chosen.items() if marker in names]
        if lanes != [lane_of(item, ROOT)]:
            wrong[item.nodeid] = lanes
    assert not wrong


def test_make_test_runs_all_but_what_takes_too_long() -> None:
    assert set(lanes_of("test")) == {*LANES, "lint"} - {"matrix", "soak"}
    assert set(lanes_of("all-lanes")) == {*lanes_of("test"), "matrix", "soak"}
