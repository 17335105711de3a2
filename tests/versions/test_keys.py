"""What 0.2.0 has recorded is found by the code under test: nothing is paid again because of an update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.processes

SOURCE: Final = Path(__file__).parents[2] / "src"
(WHEEL,) = Path(__file__).parent.glob("*.whl")
PROGRAM: Final = Path(__file__).with_name("keys.py")


def keys(library: Path) -> dict[str, list[str]]:
    # A development environment has its own copy on the path; the program puts the one that is asked for before it.
    run = subprocess.run(
        [sys.executable, str(PROGRAM), str(library)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(run.stdout)
    return found


def test_what_0_2_0_recorded_is_found() -> None:
    then, now = keys(WHEEL), keys(SOURCE)
    assert then.keys() == now.keys()
    assert {name: recorded for name, (recorded,) in then.items() if recorded not in now[name]} == {}
