"""How `make test` runs its lanes: two at once, all of them, and with each one's output in one piece."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lanes.plugin import LANES
from tests.lanes.run import FIRST
from tests.support import PATIENCE, unmeasured

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.processes


def run(folder: Path, make: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = folder / "make"
    program.write_text(f'#!/bin/sh\nlane=$2\ncd "{folder}"\n{make}\n', encoding="utf-8")
    program.chmod(0o755)
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "lanes" / "run.py", *arguments],
        env={**unmeasured(), "MAKE": str(program)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_two_lanes_at_once_do_not_mix_what_they_print(tmp_path: Path) -> None:
    """Each lane waits within its output for the other one: opening a pipe returns once both ends are open."""
    os.mkfifo(tmp_path / "meeting")
    unit, stores = "echo met > meeting", "cat meeting >&2"
    ended = run(tmp_path, f"echo begin $lane; {{ test $lane = unit && {unit} || {stores}; }}; echo end $lane",
                "--at-once", "2", "unit", "stores")  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert "== unit\nbegin unit\nend unit\n" in ended.stdout
    assert "== stores\nbegin stores\nmet\nend stores\n" in ended.stdout


def test_the_longest_lanes_begin_first(tmp_path: Path) -> None:
    ended = run(tmp_path, "true", "--at-once", "1", "wheel", "unit", "another", "lint", "--where-possible", "browser")
    assert re.findall(r"^-- (\w+) begins$", ended.stdout, re.MULTILINE) == [
        "lint",
        "unit",
        "browser",
        "wheel",
        "another",
    ]
    assert set(FIRST) == {*LANES, "lint"}


@pytest.mark.parametrize("at_once", ["1", "2"])
def test_a_lane_that_fails_is_named_and_stops_no_other(at_once: str, tmp_path: Path) -> None:
    ended = run(tmp_path, "echo ran $lane; test $lane != types", "--at-once", at_once, "lint", "types", "unit")
    assert ended.returncode == 1
    assert sorted(re.findall(r"^ran (\w+)$", ended.stdout, re.MULTILINE)) == ["lint", "types", "unit"]
    assert re.findall(r"^(\w+) +[\d.]+ s  (ok|FAILED)$", ended.stdout, re.MULTILINE) == [
        ("lint", "ok"),
        ("types", "FAILED"),
        ("unit", "ok"),
    ]
    assert "failed: types" in ended.stdout


WHERE_POSSIBLE = ("unit", "--where-possible", "browser")


def test_a_lane_runs_where_it_is_possible(tmp_path: Path) -> None:
    ended = run(tmp_path, "echo ran $lane; test $lane != browser", *WHERE_POSSIBLE)
    assert sorted(re.findall(r"^ran (\w+)$", ended.stdout, re.MULTILINE)) == ["browser", "unit"]
    # It is a lane like any other then.
    assert ended.returncode == 1
    assert "failed: browser" in ended.stdout
    assert "NOT TESTED" not in ended.stdout


def test_a_lane_that_is_not_possible_is_named_last_in_capitals(tmp_path: Path) -> None:
    fails = "{ echo no Chromium: install it; echo 'make: *** [it] Error 1'; exit 1; }"
    make = f"echo ran $lane; test $lane != browser-possible || {fails}"
    ended = run(tmp_path, make, *WHERE_POSSIBLE)
    assert ended.returncode == 0, ended.stdout
    assert re.findall(r"^ran (\w+)$", ended.stdout, re.MULTILINE) == ["unit"]
    assert ended.stdout.splitlines()[-1] == "NOT TESTED: THE PAGE IN A BROWSER. no Chromium: install it"
