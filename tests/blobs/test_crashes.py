"""Real crashes while a blob is written, and between a blob and its row."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


async def write(folder: Path, point: str) -> tuple[int, str]:
    program = (sys.executable, "-m", "tests.blobs.writer", str(folder), point)
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode().strip()


def files_of(folder: Path) -> list[str]:
    return [path.name for path in (folder / "blobs").rglob("*") if path.is_file()]


async def test_a_crash_before_the_row_costs_nothing_and_leaves_what_can_be_removed(tmp_path: Path) -> None:
    for point in ("part", "blob"):
        code, _ = await write(tmp_path, point)
        assert code == -signal.SIGKILL
    # Of the document at the point, and perhaps of those beside it.
    cut = [name for name in files_of(tmp_path) if name.endswith(".part")]
    assert cut
    # The next process goes on; of what was written before, the cut files are left, and are removed.
    code, removed = await write(tmp_path, "")
    assert (code, removed) == (0, str(len(cut)))
    assert len(files_of(tmp_path)) == 3
    runs = (tmp_path / "runs").read_text(encoding="ascii").split()
    assert runs.count("1") == 3
