"""Children of the crash tests: started, waited for, killed; and looks at the file that they leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from tests import support
from tests.crash.databases import Database
from tests.crash.workload import CALLS_AT_ONCE, MAX_ATTEMPTS, Batches, Job, Tally, calls_of, marks_of, run_of

from durable_batches import BatchResult
from durable_batches.clock import SystemClock
from durable_batches.stores import SQLiteStore, Store
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog

ROOT: Final = Path(__file__).parents[2]

PATIENCE: Final = 60.0
"""Seconds until something that must happen is held not to: generous, since the machine may be busy."""

CLOCK: Final = SystemClock()


class Child:
    """One process of `tests.crash.workload`.

    Args:
        job: What it does.
        before: A command that starts it, as `unshare` does.
    """

    def __init__(self, job: Job, before: Sequence[str] = ()) -> None:
        self.job = job
        self.folder = Path(job.folder)
        self._errors = self.folder / f"{job.process}.stderr"
        self._output = b""
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*before, sys.executable, "-m", "tests.crash.workload", json.dumps(asdict(job))],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def worker(self) -> str:
        """The id of its (first) worker, once it has entered its orchestrator."""
        worker: str = self.marks("entered")[0]["worker"]
        return worker

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return self._errors.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> bool:
        """SIGKILL, and wait; False: it had ended before."""
        self._process.kill()
        returned = self._process.wait()
        self._collect()
        return returned == -signal.SIGKILL

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        await until(lambda: not self.running, f"{self.job.process} to end")
        return self._process.wait()

    async def result(self) -> dict[str, Any]:
        """What it printed, once it has ended well."""
        code = await self.ended()
        self._collect()
        # A SIGTERM that comes when Python has let go of its signals ends what has ended anyway.
        good = code == 0 or (code == -signal.SIGTERM and self._output)
        assert good, f"{self.job.process} exited with {code}:\n{self.errors}"
        result: dict[str, Any] = json.loads(self._output)
        return result

    def marks(self, mark: str | None = None) -> list[dict[str, Any]]:
        """What it has noted so far."""
        return [noted for noted in marks_of(self.folder, self.job.process) if mark in (None, noted["mark"])]

    def _collect(self) -> None:
        """Take what it printed; it has ended."""
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._output = self._process.stdout.read()
            self._process.stdout.close()


class Start(Protocol):
    """Starts a child."""

    def __call__(self, job: Job, before: Sequence[str] = ()) -> Child: ...


@contextmanager
def children() -> Generator[Start]:
    """Starts children, and ends those that are left over at the end, also stopped ones."""
    started: list[Child] = []

    def start(job: Job, before: Sequence[str] = ()) -> Child:
        child = Child(job, before)
        started.append(child)
        return child

    try:
        yield start
    finally:
        for child in started:
            child.kill()


async def until(condition: Callable[[], bool], what: str, *, patience: float = PATIENCE) -> None:
    """Wait until something is so; looked at often, since the moments between are what is tested."""
    deadline = CLOCK.boot() + patience
    while not condition():
        assert CLOCK.boot() < deadline, f"waited {patience:g} s for {what}"
        await asyncio.sleep(0.002)


async def until_true(condition: Callable[[], Awaitable[bool]], what: str, *, patience: float = PATIENCE) -> None:
    """`until`, for what has to be looked up."""
    deadline = CLOCK.boot() + patience
    while not await condition():
        assert CLOCK.boot() < deadline, f"waited {patience:g} s for {what}"
        await asyncio.sleep(0.01)


async def end_of(batches: Batches, batch_id: str = "batch") -> BatchResult[Tally]:
    """The end of a batch; fails, rather than hang, where there is none."""
    async with asyncio.timeout(PATIENCE):
        return await batches.result(batch_id)


def file_in(folder: Path) -> Path:
    return folder / "batches.db"


def opened(path: Path) -> AbstractAsyncContextManager[SQLiteStore]:
    return support.opened(SQLiteStore(path))


def checker_of(effects: EffectsLog) -> HistoryChecker:
    """A checker that knows the workload."""
    return HistoryChecker(effects=effects, run_of=run_of, max_attempts=MAX_ATTEMPTS, calls_at_once=CALLS_AT_ONCE)


async def check_meanwhile(
    checker: HistoryChecker, database: Database, *, interrupted: Collection[str] = (), fenced: Collection[str] = ()
) -> None:
    """Check the history so far, while processes go on with it."""
    as_of = CLOCK.boot()
    async with database.at_one_moment() as store:
        await checker.verify(store, interrupted=interrupted, fenced=fenced, as_of=as_of)


def check_calls(effects: EffectsLog, documents: int, batch_id: str = "batch") -> None:
    """Each document has made the calls that its workflow makes, and no other: what was recorded was found again."""
    keys = {(mark.document_id, mark.activity, mark.key) for mark in effects.read() if mark.batch_id == batch_id}
    assert Counter((document_id, activity) for document_id, activity, _ in keys) == calls_of(range(documents))


async def is_alive(store: Store, worker: str) -> bool:
    """Whether the store holds the worker to be alive."""
    return any(record.worker_id == worker for record in await store.workers())


def open_files() -> set[str]:
    """What this process has open, by what it leads to."""
    found: set[str] = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{entry}"))
        except OSError:
            continue
    return found
