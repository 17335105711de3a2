"""Children: started, waited for, stopped, killed; and looks at the database that they leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from tests import support
from tests.processes.databases import Database
from tests.processes.forks import PATIENCE, Forks, Process, Started
from tests.processes.marks import noted
from tests.processes.workload import CALLS_AT_ONCE, MAX_ATTEMPTS, Batches, Job, Tally, calls_of, run_of

from durable_batches import BatchResult
from durable_batches.clock import SystemClock
from durable_batches.stores import SQLiteStore, Store
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import Effect, EffectsLog

CLOCK: Final = SystemClock()


class Child:
    """One process of a test.

    Args:
        job: What it does.
        before: A command that starts it, as `unshare` does; by default it is forked from a warm process.
    """

    def __init__(self, job: Job, before: Sequence[str] = ()) -> None:
        self.job = job
        self.folder = Path(job.folder)
        self._errors = self.folder / f"{job.process}.stderr"
        self._output = self.folder / f"{job.process}.stdout"
        self._process: Process
        if before:
            self._process = Started(
                [*before, sys.executable, "-m", "tests.processes.scenarios", json.dumps(asdict(job))],
                self._output,
                self._errors,
            )
        else:
            self._process = Forks.here().start(asdict(job), self._output, self._errors)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended; it may be stopped."""
        return self._process.code is None

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
        """Send a signal, unless it has ended."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> bool:
        """SIGKILL, and wait; False: it had ended before."""
        self.send(signal.SIGKILL)
        return self._process.wait(PATIENCE) == -signal.SIGKILL

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        return await self._process.until(lambda: self._process.code, f"{self.job.process} to end")

    async def stopped(self, mark: str | None = None) -> None:
        """Return once it stands still: where it was told to stop next, or at a certain mark of those.

        Raises:
            AssertionError: It ended before.
        """
        running = await self.stopped_or_ended()
        stops = self.stops()
        assert running, f"{self.job.process} ended before {mark!r}, after {stops}: {self.errors}"
        assert mark is None or stops[-1:] == [mark], f"{self.job.process} stopped at {stops}, not at {mark!r}"

    async def stopped_or_ended(self) -> bool:
        """Return whether it stands still where it was told to stop next; False: it ended before."""
        what = f"{self.job.process} to stop or end"
        await self._process.until(lambda: True if self._process.stopped or not self.running else None, what)
        return self.running

    def stops(self) -> list[str]:
        """The marks at which it has stopped itself."""
        return [note["stopped"] for note in self._noted() if "stopped" in note]

    def go_on(self) -> None:
        """Send it on from where it stopped itself."""
        self._process.stopped = False
        self.send(signal.SIGCONT)

    async def stop(self) -> None:
        """Stop it wherever it is."""
        self.send(signal.SIGSTOP)
        await self._process.until(lambda: self._process.stopped or None, f"{self.job.process} to stop")

    async def result(self) -> dict[str, Any]:
        """What it printed, once it has ended well."""
        code = await self.ended()
        printed = self._output.read_bytes()
        # A SIGTERM that comes when Python has let go of its signals ends what has ended anyway.
        good = code == 0 or (code == -signal.SIGTERM and printed)
        assert good, f"{self.job.process} exited with {code}:\n{self.errors}"
        result: dict[str, Any] = json.loads(printed)
        return result

    def marks(self, mark: str | None = None) -> list[dict[str, Any]]:
        """What it has noted so far."""
        return [note for note in self._noted() if "mark" in note and mark in (None, note["mark"])]

    def reached(self) -> list[dict[str, Any]]:
        """All marks that it has reached, if it was to record them."""
        return [note for note in self._noted() if "reached" in note]

    def _noted(self) -> list[dict[str, Any]]:
        return noted(self.folder, self.job.process)


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


def check_calls(effects: EffectsLog, documents: int, batch_id: str = "batch", *, first: int = 0) -> None:
    """Each document has made the calls that its workflow makes, and no other: what was recorded was found again."""
    keys = {(mark.document_id, mark.activity, mark.key) for mark in effects.read() if mark.batch_id == batch_id}
    assert Counter((document_id, activity) for document_id, activity, _ in keys) == calls_of(
        range(first, first + documents)
    )


def check_bill(effects: EffectsLog, batch_id: str = "batch", *, interrupted: Collection[str]) -> None:
    """Each call was answered once, by the bill of who answers; again only for who was killed or frozen meanwhile.

    What such a process had been answered and could not record is what its documents had in flight, and no more.
    """
    answers: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in effects.read():
        if effect.batch_id == batch_id and effect.phase == "end":
            answers[effect.key].append(effect)
    lost: Counter[tuple[str, str]] = Counter()
    for answered in answers.values():
        twice = [effect for effect in answered if effect.process not in interrupted]
        assert len(twice) <= 1, f"paid twice, though nothing interrupted it: {twice}"
        # One of them is recorded; the others were lost.
        lost.update((effect.process, effect.document_id) for effect in answered[:-1] if effect.process in interrupted)
    assert max(lost.values(), default=0) <= CALLS_AT_ONCE, lost


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
