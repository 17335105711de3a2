"""Signals that stop a script: real processes, real signals, one file, and no activity that is repeated."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from tests.processes.clocks import SharedClock
from tests.script.job import STEPS, Marks

from durable_batches import BatchId, DocumentReleased, SQLiteStore
from durable_batches.lifecycle.events import decode_event
from durable_batches.stores import BatchQuery

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("warm_interpreters")]


def calls_of(documents: int) -> Counter[str]:
    return Counter(f"document-{number} {step}" for number in range(documents) for step in STEPS)


CALLS = calls_of(8)


class Scene:
    """Runs one process after another on one file."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "job.db"
        self.marks = Marks(folder / "job.marks")
        self.clock = SharedClock(folder / "job.clock")
        """What the process tells its signals apart by."""
        self.process: subprocess.Popen[str] | None = None

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "tests.script.job", str(self.store), *options]

    def start(self, *options: str) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            self.command(*options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self.process

    def run(self, *options: str) -> tuple[int, str, str]:
        return self.end(self.start(*options))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Its exit code, and what it wrote to stdout and stderr."""
        output, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, output, errors

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline
            assert self.process is None or self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)

    def until_begun(self, count: int) -> None:
        self.until(lambda: self.marks.counts("begin").total() >= count)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, and return once it was received: two that are not are one."""
        before = self.marks.count("signal")
        assert self.process is not None
        self.process.send_signal(number)
        self.until(lambda: self.marks.count("signal") > before)

    def recorded(self) -> int:
        """Activities that the store has, whatever it is in the middle of."""
        connection = sqlite3.connect(self.store)
        try:
            (found,) = connection.execute("SELECT count(*) FROM activity").fetchone()
        finally:
            connection.close()
        return int(found)

    def releases(self) -> Counter[str]:
        """How often documents were given back, by the reason; over the one batch that there is."""

        async def read() -> Counter[str]:
            store = SQLiteStore(self.store)
            await store.open()
            try:
                (record,) = await store.batches(BatchQuery(), limit=10)
                events = await store.events(BatchId(record.batch_id), after=0, limit=10_000)
            finally:
                await store.close()
            return Counter(event.reason for event in map(decode_event, events) if isinstance(event, DocumentReleased))

        return asyncio.run(read())


@pytest.fixture
def scene(tmp_path: Path) -> Generator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    if scene.process is not None:
        scene.process.kill()
        scene.process.communicate()


# Both signals, and both ways to name a batch; the one has nothing to do with the other.
@pytest.mark.parametrize(
    ("number", "code", "named"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)],
    ids=["int-unnamed", "term-named"],
)
def test_running_activities_finish_and_none_is_repeated(
    scene: Scene, number: signal.Signals, code: int, named: bool
) -> None:
    options = ["batch_id=nightly"] if named else []
    process = scene.start("hold=second", *options)
    scene.until_begun(8)
    scene.signal(number)
    returned, output, errors = scene.end(process)
    assert (returned, output) == (code, "")
    # What had begun was finished, and recorded.
    begun = scene.marks.counts("begin")
    assert 8 <= begun.total() < CALLS.total()
    assert begun == scene.marks.counts("end")
    assert scene.recorded() == begun.total()
    assert scene.releases().keys() == {"shutdown"}
    name = number.name
    assert f"{name}: running activities finish and are recorded first, for 30 s at most (again: stop at once)" in errors
    stopped = re.search(rf"stopped by {name}: (\d+) of 8 documents finished, (\d+) recorded activities will", errors)
    assert stopped, errors
    assert int(stopped[2]) == begun.total()
    batch = re.search(r"with batch_id='(.*)'", errors)
    assert batch, errors
    assert "Traceback" not in errors
    assert (batch[1] == "nightly") == named

    returned, output, errors = scene.run(*options)

    assert (returned, output) == (0, "8 succeeded, resolved to 8\n")
    assert scene.marks.counts("begin") == scene.marks.counts("end") == CALLS
    assert f"resuming batch '{batch[1]}'" in errors
    assert f"{stopped[1]} of 8 documents finished, {stopped[2]} recorded activities will not be repeated" in errors
    assert scene.releases().keys() == {"shutdown"}


def test_after_a_kill_recorded_activities_are_not_repeated(scene: Scene) -> None:
    process = scene.start("hold=third")
    scene.until_begun(12)
    process.kill()
    scene.end(process)
    assert scene.recorded() == 8
    assert scene.run()[0] == 0
    assert scene.marks.counts("begin").total() == CALLS.total() + 4
    assert scene.marks.counts("begin").keys() == CALLS.keys()


def test_a_batch_that_is_stopped_many_times_ends(scene: Scene) -> None:
    """More often than a document may crash: a graceful stop is no crash."""
    for _ in range(4):
        begun = scene.marks.counts("begin").total()
        process = scene.start("hold=first", "documents=24")
        scene.until_begun(begun + 1)
        scene.signal(signal.SIGTERM)
        assert scene.end(process)[0] == 143
    assert scene.run("documents=24")[1] == "24 succeeded, resolved to 24\n"
    assert scene.marks.counts("begin") == calls_of(24)
    assert scene.releases().keys() == {"shutdown"}


def test_a_drain_is_bounded(scene: Scene) -> None:
    process = scene.start("pace=60", "drain=0.2")
    scene.until_begun(4)
    process.send_signal(signal.SIGINT)
    code, _, errors = scene.end(process)
    assert code == 130
    assert "for 0.2 s at most" in errors
    assert (scene.recorded(), scene.releases()) == (0, {"shutdown": 4})


def test_a_second_signal_ends_the_drain(scene: Scene) -> None:
    process = scene.start("pace=600", "drain=600")
    scene.until_begun(4)
    scene.signal(signal.SIGINT)
    # `timeout` and others send it twice at once, and mean it once.
    scene.signal(signal.SIGINT)
    scene.clock.advance(1)
    scene.signal(signal.SIGTERM)
    # Waited for no longer than PATIENCE; the drain would take ten minutes.
    code, _, errors = scene.end(process)
    assert code == 130
    assert "stopped by SIGINT: 0 of 8 documents finished" in errors
    assert [line for line in scene.marks.lines() if not line.startswith("begin")] == [*["signal"] * 3, "drain ended"]
    # In good order: nobody will take the documents for suspects.
    assert (scene.recorded(), scene.releases()) == (0, {"shutdown": 4})


def test_a_third_signal_ends_the_process(scene: Scene) -> None:
    """An activity that suppresses its cancellation would block it forever."""
    process = scene.start("stubborn=yes")
    scene.until_begun(4)
    scene.signal(signal.SIGTERM)
    scene.clock.advance(1)
    scene.signal(signal.SIGTERM)
    scene.until(lambda: bool(scene.marks.counts("refused")))
    scene.clock.advance(1)
    process.send_signal(signal.SIGTERM)
    assert scene.end(process)[0] == 143


def test_a_signal_that_is_ignored_stays_ignored(scene: Scene) -> None:
    """As in a background job of a shell, which Ctrl-C must not stop."""
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import runpy; "
    program += "runpy.run_module('tests.script.job', run_name='__main__', alter_sys=False)"
    process = scene.process = subprocess.Popen(
        [sys.executable, "-c", program, str(scene.store)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    scene.until_begun(2)
    process.send_signal(signal.SIGINT)
    code, output, errors = scene.end(process)
    assert (code, output) == (0, "8 succeeded, resolved to 8\n"), errors


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_shows_bars(scene: Scene, term: str) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "100"}
    process = subprocess.Popen(
        scene.command("pace=0.1"), cwd=ROOT, stdout=subprocess.PIPE, stderr=follower, text=True, env=environment
    )
    scene.process = process
    os.close(follower)
    drawn = b""
    while True:
        try:
            drawn += os.read(leader, 10_000)
        except OSError:
            # So it says that nobody has the other end any more.
            break
    os.close(leader)
    output, _ = process.communicate(timeout=PATIENCE)
    # What the script prints goes where the script's output goes.
    assert (process.returncode, output) == (0, "8 succeeded, resolved to 8\n")
    text = drawn.decode()
    assert ("━" in text) == (term == "xterm")
    assert "Working" in text or term == "dumb"
    assert "8/8" in text
    assert ": 8 of 8 documents succeeded" in text


def test_it_runs_on_when_the_reader_of_its_output_leaves(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it could not write is left for the interpreter to write when it ends."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    process = scene.start()
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout is not None
    assert process.stdout.read() == "8 succeeded, resolved to 8\n"
    assert process.wait(timeout=PATIENCE) == 0
