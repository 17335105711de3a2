"""What most children run: a small pipeline whose activities leave traces outside the store."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from tests.processes.clocks import HastyClock, SharedClock, StillClock
from tests.processes.marks import (
    MarkedEffects,
    MarkedStore,
    Marks,
    observe_drivers,
    observe_journal,
    signals_of,
)
from tests.processes.places import store_at

from durable_batches import (
    EXTRACTION,
    ActivityFailedError,
    Assembling,
    BatchConfig,
    BatchId,
    BatchNotFoundError,
    BatchOrchestrator,
    Chunking,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    ExtractionStage,
    Results,
    RetryFailed,
    RetryPolicy,
    SubmissionInProgressError,
    Worker,
    current_execution,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.clock import Clock, SystemClock
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.records import CheckpointRecord
from durable_batches.stop_signals import _switchboard
from durable_batches.stores import Store
from durable_batches.testing.virtual.effects import EffectsLog
from durable_batches.worker import process_identity

RESOLVER = -1
"""Among the poisoned documents: the resolver."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one child does."""

    process: str
    folder: str
    store: str = ""
    """A database's `place`; by default a SQLite file in the folder."""
    batch_id: str = "batch"
    documents: int = 0
    """To submit (or to attach to); 0: none, the process only works, once the batch is there."""
    first: int = 0
    """The number of the first one."""
    concurrency: int = 8
    max_in_flight: int = 100
    max_crashes: int = 1_000_000
    lease: float = 30.0
    drain: float = 30.0
    pace: float = 0.01
    """Seconds that an activity takes, about."""
    after: int = 0
    """The last event that earlier processes were given; this one subscribes to those that follow."""
    stumbles: float = 0.3
    """How often a document that may fail does; 1: exactly in its first attempt."""
    poison: Sequence[int] = ()
    """Documents (and `RESOLVER`) that kill their process."""
    hang_at: int | None = None
    """The document at which the submitted documents stop coming."""
    cancels: int = 0
    """Calls of `cancel`, all at once, upon SIGUSR1."""
    stops: Sequence[str] = ()
    """The marks at which it stops itself; see `tests.processes.marks`."""
    recording: bool = False
    """Whether it notes all marks that it reaches."""
    signals: bool = False
    """Whether its worker listens to signals by itself."""
    namespace: str = ""
    """The process namespace that it says to be in; by default the one that it is in."""
    seed: int = 0
    """What its chances come from, together with its name."""
    clock: str = ""
    """One of `CLOCKS`, or the file of a `SharedClock`; by default the machine's clock."""
    lock_timeout: float | None = None
    """Seconds that its store waits for locks (Postgres); by default as long as it does by itself."""
    limits: str = ""
    """Of a fleet: the limits that its processes share, as JSON of `CentralRateLimiter`'s arguments."""
    meeting: str = ""
    """Of a pair: the path of the socket to wait at; empty: nobody is waited for."""
    scenario: str = "work"
    """What it does; see `tests.processes.scenarios`."""


@dataclass(frozen=True)
class Page:
    """A document."""

    number: int


@dataclass(frozen=True)
class Ran:
    """An activity's result, and which run of it that was from."""

    run: str
    value: int


@dataclass(frozen=True)
class Summary:
    """A document's result."""

    number: int
    value: int
    accepted: bool


@dataclass(frozen=True)
class Tally:
    """The resolver's result."""

    documents: int
    value: int
    accepted: int


class RejectedError(Exception):
    """What the failing activity raises, every time."""


class FlakyError(Exception):
    """What the flaky activities raise now and then."""


@dataclass
class Here:
    """What the activities of this process have beside their arguments."""

    effects: EffectsLog
    pace: float = 0.01
    poison: frozenset[int] = frozenset()
    stumbles: float = 0.0
    flaws: float = 0.1
    hold: asyncio.Event | None = None
    """What the first activity of a document waits for."""


here = Here(EffectsLog(os.devnull))


def parts_of(number: int) -> int:
    return 2 + number % 3


def is_accepted(number: int) -> bool:
    return number % 3 != 1


def summary_of(number: int) -> Summary:
    """What the workflow makes of a document, all crashes notwithstanding."""
    value = 2 * sum(number * 10 + part for part in range(parts_of(number)))
    return Summary(number, value, is_accepted(number))


def tally_of(numbers: Sequence[int]) -> Tally:
    """What the resolver makes of the documents."""
    summaries = [summary_of(number) for number in numbers]
    accepted = sum(summary.accepted for summary in summaries)
    return Tally(len(summaries), 1 + sum(summary.value for summary in summaries), accepted)


def calls_of(numbers: Sequence[int]) -> dict[tuple[str, str], int]:
    """How many different calls each document (and the resolver) makes of each activity, all crashes notwithstanding.

    One that was recorded and is not found again would be made a second time, as the next one of the same input.
    """
    calls = {("", "add_up"): 2}
    for number in numbers:
        page = f"page-{number}"
        calls |= {(page, activity): 1 for activity in ("split", "judge", "relate", "assemble")}
        calls[(page, "measure")] = parts_of(number)
        if number % 4 == 0:
            calls[(page, "fetch")] = 1
        if number % 5 == 2:
            calls[(page, "stumble")] = 1
    return calls


def document_ids(count: int, first: int = 0) -> list[str]:
    return [f"page-{number}" for number in range(first, first + count)]


def run_of(checkpoint: CheckpointRecord) -> str | None:
    """The run that a recorded result or failure came from."""
    data: dict[str, Any] = json.loads(checkpoint.payload)
    run = data.get("run") or str(data.get("message", "")).rpartition(" ")[2]
    return str(run) or None


CALLS_AT_ONCE = 2
"""Activities of one document."""

MAX_ATTEMPTS = {
    "split": 1,
    "measure": 1,
    "judge": 2,
    "fetch": 3,
    "stumble": 1,
    "relate": 1,
    "assemble": 1,
    "add_up": 1,
}

ONCE = RetryPolicy(max_attempts=1)

PATIENT = RetryFailed(max_attempts=1_000, backoff=timedelta(milliseconds=5))
"""No document fails for good but by crashes."""


async def work() -> None:
    await asyncio.sleep(here.pace * random.uniform(0.3, 1.7))


def die_of(number: int) -> None:
    """Take the process along where the document is poisoned, as a native library would that runs wild."""
    if number in here.poison:
        os.kill(os.getpid(), signal.SIGKILL)
        # The first process of a namespace is killed from outside only. It is gone as one that was.
        os._exit(128 + signal.SIGKILL)


@durable_activity(stage=Chunking, retry=ONCE)
async def split(number: int) -> Ran:
    with here.effects.activity("split") as run:
        die_of(number)
        await work()
        if here.hold is not None:
            await here.hold.wait()
        return Ran(run, parts_of(number))


@durable_activity(stage=ExtractingMentions, retry=ONCE)
async def measure(part: tuple[int, int]) -> Ran:
    with here.effects.activity("measure") as run:
        await work()
        return Ran(run, part[0] * 10 + part[1])


@durable_activity(stage=ExtractingEntities, retry=RetryPolicy(max_attempts=2, initial=timedelta(milliseconds=1)))
async def judge(number: int) -> Ran:
    with here.effects.activity("judge") as run:
        await work()
        if not is_accepted(number):
            raise RejectedError(f"rejected in {run}")
        return Ran(run, 1)


@durable_activity(stage=ExtractingRelations, retry=RetryPolicy(max_attempts=3, initial=timedelta(milliseconds=1)))
async def fetch(number: int) -> Ran:
    """Fails now and then, and then does not."""
    with here.effects.activity("fetch") as run:
        await work()
        if random.random() < here.flaws:
            raise FlakyError(f"not now, in {run}")
        return Ran(run, number)


@durable_activity(stage=ExtractingRelations, retry=ONCE)
async def stumble(number: int) -> Ran:
    """Fails now and then, and its document with it, which runs again a little later."""
    with here.effects.activity("stumble") as run:
        await work()
        first = current_execution().attempt == 1
        if random.random() < here.stumbles and (first or here.stumbles < 1):
            raise FlakyError(f"not now, in {run}")
        return Ran(run, number)


@durable_activity(stage=ExtractingRelations, retry=ONCE)
def relate(values: list[int]) -> Ran:
    """A sync one: it runs in a thread."""
    with here.effects.activity("relate") as run:
        time.sleep(here.pace * random.uniform(0.3, 1.7))
        return Ran(run, sum(values))


@durable_activity(stage=Assembling, retry=ONCE)
async def assemble(total: int) -> Ran:
    with here.effects.activity("assemble") as run:
        await work()
        return Ran(run, 2 * total)


@durable_activity(retry=ONCE)
async def add_up(values: list[int]) -> Ran:
    """The resolver's."""
    with here.effects.activity("add_up") as run:
        die_of(RESOLVER)
        await work()
        return Ran(run, sum(values))


async def tally(results: Results[Summary]) -> Tally:
    summaries = [result.value async for result in results]
    total = await add_up([summary.value for summary in summaries])
    total = await add_up([total.value, 1])
    return Tally(len(summaries), total.value, sum(summary.accepted for summary in summaries))


@workflow(EXTRACTION, name="crash-test", resolver=tally)
async def extract(page: Page) -> Summary:
    parts = await split(page.number)
    inputs = [(page.number, part) for part in range(parts.value)]
    measured = await map_activity(measure, inputs, concurrency=CALLS_AT_ONCE)
    try:
        accepted = (await judge(page.number)).value == 1
    except ActivityFailedError as error:
        if not error.caused_by(RejectedError):
            raise
        accepted = False
    if page.number % 4 == 0:
        try:
            await fetch(page.number)
        except ActivityFailedError as error:
            if not error.caused_by(FlakyError):
                raise
    if page.number % 5 == 2:
        await stumble(page.number)
    total = await relate([measure.value for measure in measured])
    return Summary(page.number, (await assemble(total.value)).value, accepted)


Batches: TypeAlias = BatchOrchestrator[Page, Summary, ExtractionStage, Tally]


# ---- the process -------------------------------------------------------------------------------------------


CLOCKS: Final = {"hasty": HastyClock, "still": StillClock}


def clock_of(job: Job) -> Clock:
    """The clock that the job says."""
    if job.clock in CLOCKS:
        return CLOCKS[job.clock]()
    return SharedClock(Path(job.clock)) if job.clock else SystemClock()


class Process:
    """One child."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = Path(job.folder)
        random.seed(f"{job.seed}/{job.process}")
        if job.namespace:
            setattr(process_identity, "_namespace", lambda: job.namespace)  # noqa: B010  (a function, to checkers)
        self.marks = Marks(self.folder, job.process, job.stops, recording=job.recording)
        if job.stops or job.recording:
            observe_drivers(self.marks)
            observe_journal(self.marks)
        here.effects = MarkedEffects(self.folder / "effects.log", job.process, self.marks)
        here.pace, here.poison, here.stumbles = job.pace, frozenset(job.poison), job.stumbles
        self._cancelling = asyncio.Event()

    @property
    def config(self) -> BatchConfig:
        """Of the batch that it submits."""
        return BatchConfig(concurrency=self.job.concurrency, max_crashes=self.job.max_crashes, failure_policy=PATIENT)

    @property
    def place(self) -> str:
        """Where its database is."""
        return self.job.store or str(self.folder / "batches.db")

    async def run(self) -> dict[str, object]:
        """Work until the batch has ended, or until SIGTERM; then leave in good order."""
        job, marks = self.job, self.marks
        clock = clock_of(job)
        # Postgres has a clock of its own; it goes by another one only where a test moves that.
        store = store_at(
            self.place, clock=clock if isinstance(clock, SharedClock) else None, lock_timeout=job.lock_timeout
        )
        worker = Worker(
            cast("Store", MarkedStore(store, marks)),
            max_in_flight=job.max_in_flight,
            lease=timedelta(seconds=job.lease),
            drain=timedelta(seconds=job.drain),
            signals=job.signals,
            clock=clock,
        )
        told = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell(*_: object) -> None:
            # One that comes when all is done is of no interest any more; the loop's own handlers end with it.
            if not loop.is_closed():
                loop.call_soon_threadsafe(told.set)

        if job.signals:
            # What one signal is told from its echo by.
            _switchboard.clock = clock
        else:
            signal.signal(signal.SIGTERM, tell)
        loop.add_signal_handler(signal.SIGUSR1, self._cancelling.set)
        marks.note("opening")
        with signals_of(marks, worker):
            async with BatchOrchestrator(extract, worker=worker) as batches:
                marks.note("entered", worker=batches.worker.worker_id)
                working = asyncio.create_task(self.work(batches))
                cancelling = asyncio.create_task(self._cancel(batches))
                try:
                    await asyncio.wait([working, asyncio.create_task(told.wait())], return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError:
                    marks.note("interrupted")
                    raise
                if not working.done():
                    working.cancel()
                await cancelling
                marks.note("leaving")
        marks.note("left")
        return {"state": "left"} if working.cancelled() else working.result()

    async def work(self, batches: Batches) -> dict[str, object]:
        """Submit or find the batch, and see it to its end; what the process returns."""
        job = self.job
        await (self.submit(batches) if job.documents else self._find(batches))
        async for event in batches.progress(job.batch_id, after=job.after):
            self.marks.note("event", seq=event.seq)
        result = await batches.result(job.batch_id)
        self.marks.note("ended")
        return {
            "state": result.state.tag,
            "counts": asdict(result.counts),
            "resolution": None if result.resolution is None else asdict(result.resolution),
        }

    async def cancel_elsewhere(self) -> None:
        """Cancel the batch as another process does."""
        other = store_at(self.place)
        await other.open()
        await other.control(BatchId(self.job.batch_id), Cancel("of another process", ""))
        await other.close()

    async def submit(self, batches: Batches) -> None:
        """Submit the batch, or attach to it."""
        job = self.job
        while True:
            try:
                await batches.submit(
                    self._pages(),
                    batch_id=job.batch_id,
                    document_id=lambda page: f"page-{page.number}",
                    config=self.config,
                )
            except SubmissionInProgressError:
                await asyncio.sleep(0.01)
            else:
                self.marks.note("submitted")
                return

    async def _pages(self) -> AsyncGenerator[Page]:
        for number in range(self.job.first, self.job.first + self.job.documents):
            if number == self.job.hang_at:
                self.marks.note("hanging")
                await asyncio.Event().wait()
            yield Page(number)

    async def _find(self, batches: Batches) -> None:
        while True:
            try:
                await batches.state(self.job.batch_id)
            except BatchNotFoundError:
                await asyncio.sleep(0.01)
            else:
                return

    async def _cancel(self, batches: Batches) -> None:
        """Cancel the batch, with several calls at once, when SIGUSR1 says so."""
        if not self.job.cancels:
            return
        await self._cancelling.wait()
        calls = [batches.cancel(self.job.batch_id, reason=self.job.process) for _ in range(self.job.cancels)]
        for answer in asyncio.as_completed(calls):
            self.marks.note("cancelled", answer=await answer)
