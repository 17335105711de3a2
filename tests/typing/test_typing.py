"""What mypy and pyright make of user code: both infer the same types, and reject the same lines.

`accepted.py` has no error. In `rejected/`, exactly the lines that end with `# error` have one, for either checker.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
ACCEPTED = FOLDER / "accepted.py"
REJECTED = sorted((FOLDER / "rejected").glob("*.py"))
MARK = "  # error"


class Line(NamedTuple):
    path: Path
    number: int

    def __str__(self) -> str:
        text = self.path.read_text(encoding="utf-8").splitlines()[self.number - 1].strip()
        return f"{self.path.relative_to(ROOT)}:{self.number}: {text}"


class Problem(NamedTuple):
    line: Line
    message: str


def mypy() -> Iterator[Problem]:
    for line in output_of("mypy", "--output", "json", str(ACCEPTED), *map(str, REJECTED)).splitlines():
        found: dict[str, Any] = json.loads(line)
        if found["severity"] == "error":
            yield Problem(Line(ROOT / found["file"], found["line"]), found["message"])


def pyright() -> Iterator[Problem]:
    # With a configuration of its own: what the main one excludes it would not look at, even if told to.
    for found in json.loads(output_of("pyright", "--outputjson", "--project", str(FOLDER)))["generalDiagnostics"]:
        # A single import that cannot be resolved has no place.
        line = found.get("range", {"start": {"line": 0}})["start"]["line"] + 1
        yield Problem(Line(Path(found["file"]), line), found["message"])


def output_of(checker: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", checker, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # 0: no error was found, 1: there were some, others: it could not check.
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return ran.stdout


def marked(path: Path) -> set[Line]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {Line(path, number) for number, line in enumerate(lines, start=1) if line.endswith(MARK)}


def test_snippets_are_marked() -> None:
    assert REJECTED
    assert not marked(ACCEPTED)
    assert all(marked(path) for path in REJECTED)


def test_what_is_accepted_can_be_imported() -> None:
    importlib.import_module("tests.typing.accepted")


@pytest.mark.parametrize("check", [mypy, pyright])
def test_exactly_the_marked_lines_are_rejected(check: Callable[[], Iterator[Problem]]) -> None:
    problems = list(check())
    expected = {line for path in REJECTED for line in marked(path)}
    missed = sorted(expected - {problem.line for problem in problems})
    assert not missed, "not rejected:\n" + "\n".join(map(str, missed))
    unexpected = [f"{problem.line}\n    {problem.message}" for problem in problems if problem.line not in expected]
    assert not unexpected, "rejected:\n" + "\n".join(unexpected)
