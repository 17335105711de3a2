"""What `make steady` runs, in which order, and that it leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lanes.steady import Run, logged, row_of
from tests.support import PATIENCE, unmeasured

ROOT = Path(__file__).parents[2]


def runs(*results: str, code: str = "new") -> list[Run]:
    pairs = [result.split(":") for result in results]
    return [Run("now", code, lane, result, "1.0") for lane, result in pairs]


def test_runs_in_a_row_are_counted() -> None:
    assert row_of("new", []) == {}
    assert row_of("new", runs("unit:ok", "stores:ok", "unit:ok")) == {"unit": 2, "stores": 1}
    assert row_of("new", runs("unit:ok", "stores:failed", "unit:ok")) == {"unit": 1}
    assert row_of("new", [*runs("unit:ok"), *runs("unit:failed", code="old")]) == {"unit": 1}


def steady(folder: Path, make: str, *lanes: str) -> subprocess.Popen[str]:
    program = folder / "make"
    program.write_text(f"#!/bin/sh\nlane=$2\n{make}\n", encoding="utf-8")
    program.chmod(0o755)
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "lanes" / "steady.py", "--folder", folder, "--times", "2", *lanes],
        env={**unmeasured(), "MAKE": str(program)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of(session: int) -> list[int]:
    """Those that run; in a container without an init, what has ended may never be waited for."""
    command = ["ps", "-o", "pid=,stat=", "-s", str(session)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return [int(pid) for pid, state in zip(found[::2], found[1::2], strict=True) if not state.startswith("Z")]


@pytest.mark.processes
def test_lanes_take_turns_and_a_failure_begins_the_row_anew(tmp_path: Path) -> None:
    first = steady(tmp_path, 'test "$lane" = unit', "unit", "stores")
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    second = steady(tmp_path, "true", "unit", "stores")
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, output
    third = steady(tmp_path, "false", "unit", "stores")
    third.communicate(timeout=PATIENCE)
    assert third.returncode == 0, "all had been run"
    assert [(run.lane, run.result) for run in logged(tmp_path)] == [
        ("unit", "ok"),
        ("stores", "failed"),
        *[("unit", "ok"), ("stores", "ok")] * 2,
    ]


@pytest.mark.processes
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
def test_the_busy_loops_end_with_it_however_it_ends(end: signal.Signals, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    running = steady(tmp_path, f"echo $$ > {begun}; exec sleep 1000", "unit")
    while not begun.exists() or not begun.read_text(encoding="utf-8").endswith("\n"):
        assert running.poll() is None
    assert len(processes_of(running.pid)) == 4
    running.send_signal(end)
    try:
        running.wait(PATIENCE)
        # Where it was killed, what it ran is left.
        lane = int(begun.read_text(encoding="utf-8"))
        while {*processes_of(running.pid)} - {lane}:
            pass
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{running.pid}"], check=False)
        running.communicate(timeout=PATIENCE)
    if end is not signal.SIGKILL:
        assert running.returncode == 130
        assert logged(tmp_path) == []
