"""What the children of the crash tests run: a small pipeline whose activities leave marks outside the store.

`python -m tests.crash.workload JOB` (JSON of a `Job`) is one process. It imports little, since it is started often.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, cast

from tests.crash.places import store_at

from durable_batches import (
    EXTRACTION,
    ActivityFailedError,
    Assembling,
    BatchConfig,
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
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.clock import SystemClock
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import CheckpointRecord, ClaimRequest, Committed, WorkerId
from durable_batches.stores import Store
from durable_batches.testing.virtual.effects import EffectsLog

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
    """How often a document that may fail does."""
    poison: Sequence[int] = ()
    """Documents (and `RESOLVER`) that kill their process."""
    hang_at: int | None = None
    """The document at which the submitted documents stop coming."""
    cancels: int = 0
    """Calls of `cancel`, all at once, as soon as the file "cancel" is in the folder."""


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


def document_ids(count: int) -> list[str]:
    return [f"page-{number}" for number in range(count)]


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


@durable_activity(stage=Chunking, retry=ONCE)
async def split(number: int) -> Ran:
    with here.effects.activity("split") as run:
        die_of(number)
        await work()
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
        if random.random() < 0.1:
            raise FlakyError(f"not now, in {run}")
        return Ran(run, number)


@durable_activity(stage=ExtractingRelations, retry=ONCE)
async def stumble(number: int) -> Ran:
    """Fails now and then, and its document with it, which runs again a little later."""
    with here.effects.activity("stumble") as run:
        await work()
        if random.random() < here.stumbles:
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


class Marks:
    """What a child notes beside the effects: how far it got, its commits, the events that it was given."""

    def __init__(self, folder: Path, process: str) -> None:
        self._log = EffectsLog(folder / f"{process}.marks", process)
        self._clock = SystemClock()

    def note(self, mark: str, **data: object) -> None:
        self._log.write(json.dumps({"mark": mark, "at": self._clock.boot(), **data}))


def marks_of(folder: Path, process: str) -> list[dict[str, Any]]:
    """What a child has noted so far."""
    try:
        lines = (folder / f"{process}.marks").read_text().splitlines()
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            # Empty, or what a killed process did not finish.
            continue
    return found


class MarkedStore:
    """Notes when a commit is asked for, and what came of it, so that kills within one can be counted."""

    def __init__(self, inner: Store, marks: Marks) -> None:
        self._inner = inner
        self._marks = marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        self._marks.note("commit", worker=worker, number=number)
        try:
            committed = await self._inner.commit(worker, number, facts, claim)
        except BaseException as error:
            self._marks.note("refused", worker=worker, number=number, facts=len(facts), error=repr(error))
            raise
        self._marks.note("committed", worker=worker, number=number)
        return committed


class Process:
    """One child."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = Path(job.folder)
        self._marks = Marks(self._folder, job.process)
        here.effects = EffectsLog(self._folder / "effects.log", job.process)
        here.pace, here.poison, here.stumbles = job.pace, frozenset(job.poison), job.stumbles

    async def run(self) -> dict[str, object]:
        """Work until the batch has ended, or until SIGTERM; then leave in good order."""
        job, marks = self._job, self._marks
        worker = Worker(
            cast("Store", MarkedStore(store_at(job.store or str(self._folder / "batches.db")), marks)),
            max_in_flight=job.max_in_flight,
            lease=timedelta(seconds=job.lease),
            drain=timedelta(seconds=job.drain),
        )
        told = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell(*_: object) -> None:
            # One that comes when all is done is of no interest any more; the loop's own handlers end with it.
            if not loop.is_closed():
                loop.call_soon_threadsafe(told.set)

        signal.signal(signal.SIGTERM, tell)
        marks.note("opening")
        async with BatchOrchestrator(extract, worker=worker) as batches:
            marks.note("entered", worker=batches.worker.worker_id)
            working = asyncio.create_task(self._work(batches))
            cancelling = asyncio.create_task(self._cancel(batches))
            await asyncio.wait([working, asyncio.create_task(told.wait())], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
            await cancelling
            marks.note("leaving")
        marks.note("left")
        return {"state": "left"} if working.cancelled() else working.result()

    async def _work(self, batches: Batches) -> dict[str, object]:
        job = self._job
        await (self._submit(batches) if job.documents else self._find(batches))
        async for event in batches.progress(job.batch_id, after=job.after):
            self._marks.note("event", seq=event.seq)
        result = await batches.result(job.batch_id)
        self._marks.note("ended")
        return {
            "state": result.state.tag,
            "counts": asdict(result.counts),
            "resolution": None if result.resolution is None else asdict(result.resolution),
        }

    async def _submit(self, batches: Batches) -> None:
        job = self._job
        while True:
            try:
                await batches.submit(
                    self._pages(),
                    batch_id=job.batch_id,
                    document_id=lambda page: f"page-{page.number}",
                    config=BatchConfig(
                        concurrency=job.concurrency, max_crashes=job.max_crashes, failure_policy=PATIENT
                    ),
                )
            except SubmissionInProgressError:
                await asyncio.sleep(0.01)
            else:
                self._marks.note("submitted")
                return

    async def _pages(self) -> AsyncGenerator[Page]:
        for number in range(self._job.documents):
            if number == self._job.hang_at:
                self._marks.note("hanging")
                await asyncio.Event().wait()
            yield Page(number)

    async def _find(self, batches: Batches) -> None:
        while True:
            try:
                await batches.state(self._job.batch_id)
            except BatchNotFoundError:
                await asyncio.sleep(0.01)
            else:
                return

    async def _cancel(self, batches: Batches) -> None:
        """Cancel the batch, with several calls at once, when the file is there that says so."""
        if not self._job.cancels:
            return
        while not (self._folder / "cancel").exists():  # noqa: ASYNC110  (another process makes it)
            await asyncio.sleep(0.002)
        calls = [batches.cancel(self._job.batch_id, reason=self._job.process) for _ in range(self._job.cancels)]
        for answer in asyncio.as_completed(calls):
            self._marks.note("cancelled", answer=await answer)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Process(Job(**json.loads(sys.argv[1]))).run())), flush=True)
