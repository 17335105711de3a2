"""A worker that is killed while it resolves: the next one goes on with the step that was not recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
STEPS: Final = ["plan-0", "random-pairs-0", "patterns-0", "model-0", "score-0", "links-0", "clustering-0", "clusters-0"]


def run(database: Path, *, until: str | None = None) -> list[str]:
    """Run the program, and kill it when it begins a step; return what it has printed."""
    command = [sys.executable, "-m", "tests.resolution.program", str(database)]
    printed: list[str] = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line.strip())
            if line.strip() == until:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == (0 if until is None else -signal.SIGKILL)
    return printed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return run(tmp_path_factory.mktemp("undisturbed") / "batches.db")


def test_a_resolver_that_is_killed_again_and_again_repeats_one_step_at_a_time(
    undisturbed: list[str], tmp_path: Path
) -> None:
    assert [line for line in undisturbed if not line.startswith(("digest", "gaps"))] == STEPS
    database = tmp_path / "batches.db"
    begun: list[str] = []
    for until in ("plan-0", "model-0", "score-0", "clusters-0"):
        begun += run(database, until=until)
    last = run(database)
    assert last[-1] == undisturbed[-1], "what is recorded is the same"
    begun += last[:-1]
    # Each step that had been recorded was not begun again, and each that had not was.
    again = {step for step in begun if begun.count(step) > 1}
    assert again <= {"plan-0", "model-0", "score-0", "clusters-0"}
    assert {*begun} == {*undisturbed[:-1]}
