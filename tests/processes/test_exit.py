"""A process that was asked to stop ends, also where a thread or a process of the user's never does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


class Leaving:
    """Runs `tests.processes.leaving`; all at once, since each is a process that imports everything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, cleanup: bool = False) -> subprocess.Popen[str]:
        store = self._folder / f"{len(self.started)}.db"
        command = [sys.executable, "-m", "tests.processes.leaving", *arguments, str(store), *["cleanup"] * cleanup]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process


@pytest.fixture
def leaving(tmp_path: Path) -> Generator[Leaving]:
    leaving = Leaving(tmp_path)
    yield leaving
    for process in leaving.started:
        process.kill()
        process.communicate()


def test_a_thread_that_never_ends_does_not_keep_the_process(leaving: Leaving) -> None:
    """Left by asyncio.to_thread(), in the loop's executor (asyncio waits), in one's own (the interpreter does), or by a
    queue of multiprocessing (its `atexit` function does)."""
    cases = [
        ("script", "to-thread", 130, "asyncio_0"),
        ("worker", "executor", 143, "asyncio_0"),
        ("worker", "own", 143, "own_0"),
        ("worker", "queue", 143, "QueueFeederThread"),
    ]
    for (_, _, code, thread), process in zip(cases, [leaving.start(host, way) for host, way, *_ in cases], strict=True):
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, errors
        assert f"process ends with exit code {code}: it was asked to stop, and only waits for 1 thread" in errors
        assert f"that does not end: '{thread}'" in errors
        assert (", in _feed\n" if thread == "QueueFeederThread" else ", in never_ends\n") in errors


def test_a_process_that_never_ends_does_not_keep_the_one_that_started_it(leaving: Leaving) -> None:
    """Of a pool, whose thread the interpreter waits for, and one of one's own. They are asked to stop as well."""
    cases = [("worker", "pool", 143, "ForkProcess-1"), ("script", "process", 130, "left")]
    for (_, _, code, name), process in zip(cases, [leaving.start(host, way) for host, way, *_ in cases], strict=True):
        # Its end is that of the child, too, which holds the other ends of the pipes.
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, errors
        left = f"{name!r} ({output.strip()})"
        assert f"asked to stop, and only waits for 1 process that does not end: {left}" in errors


def test_a_cleanup_takes_as_long_as_it_takes(leaving: Leaving) -> None:
    """In the event loop, as a task that asyncio cancels, and after it; what it has printed is not lost."""
    process = leaving.start("worker", "own", cleanup=True)
    output, errors = process.communicate(timeout=PATIENCE)
    assert output.splitlines() == [
        "cleaned up in the event loop",
        "cleaned up a task",
        "cleaned up after the event loop",
    ]
    assert process.returncode == 143, errors
    assert "only waits for 1 thread that does not end: 'own_0'" in errors


def test_a_script_goes_on_whose_batch_has_ended_all_the_same(leaving: Leaving) -> None:
    process = leaving.start("script", "none")
    output, errors = process.communicate(timeout=PATIENCE)
    assert output.splitlines() == ["cleaned up after the batch"], errors
    assert process.returncode == 0, errors
