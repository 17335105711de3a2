"""What the page about the command line shows is what the commands print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.test_snippets import ROOT, snippets

from durable_batches.cli import run
from durable_batches.cli.exits import Exit

PAGE = ROOT / "docs" / "how-to" / "use-the-command-line.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?Z")
EXPORT = re.compile(r"export (\w+)=(\S+)")
ECHO = re.compile(r"echo '(.*)' > (\S+)")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page that it runs, with the output that it shows."""
    for block in CONSOLE.findall(PAGE.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = part.splitlines()
            yield command, output


def same(shown: str, printed: str) -> bool:
    """Whether a line of the page is one of the output; it may be cut off by three dots."""
    shown, printed = MOMENT.sub("MOMENT", shown), MOMENT.sub("MOMENT", printed)
    return printed.startswith(shown[:-3]) if shown.endswith("...") else printed == shown


@pytest.mark.usefixtures("warm_interpreters")
def test_the_page_shows_what_the_commands_print(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "service.py").write_text(snippets(PAGE))
    ran = subprocess.run(
        [sys.executable, "service.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    request.addfinalizer(lambda: sys.modules.pop("service", None))
    seen = 0
    for command, shown in commands():
        export, echo = EXPORT.fullmatch(command), ECHO.fullmatch(command)
        if export:
            monkeypatch.setenv(export[1], export[2])
        elif echo:
            Path(echo[2]).write_text(f"{echo[1]}\n")
        elif command.startswith("durable-batches") and "|" not in command:
            run(shlex.split(command)[1:])
            printed = capsys.readouterr()
            lines = printed.out.splitlines() + printed.err.splitlines()
            assert len(lines) == len(shown), (command, lines)
            for expected, line in zip(shown, lines, strict=True):
                assert same(expected, line), command
            seen += 1
    assert seen > 8


def test_the_page_has_every_exit_code() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {int(code) for row in rows for code in row.split(",")}
    assert documented == {int(code) for code in Exit} | {143}
