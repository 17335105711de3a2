"""Leaving in good order: what runs may finish and is kept, the rest is free at once, and nothing stays behind."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.processes.children import Child, Start, checker_of, children, file_in, open_files, opened, until
from tests.processes.clocks import SharedClock
from tests.processes.workload import PATIENT, Job, Page, document_ids, extract, here

from durable_batches import BatchConfig, BatchId, BatchOrchestrator, DocumentReleased, SQLiteStore, Worker
from durable_batches.lifecycle.events import decode_event
from durable_batches.testing.virtual.effects import EffectsLog

DOCUMENTS = 24


class Scene:
    """One process after another on one batch."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder = folder
        self.effects = EffectsLog(folder / "effects.log")
        self.checker = checker_of(self.effects)
        self.checker.acknowledged("batch", document_ids(DOCUMENTS))
        self._start = start

    def start(self, process: str, **job: Any) -> Child:
        """A process."""
        return self._start(Job(process=process, folder=str(self.folder), documents=DOCUMENTS, **job))

    async def deploy(self, process: str, number: signal.Signals = signal.SIGTERM, **job: Any) -> Child:
        """A process that is told to leave while it works."""
        child = self.start(process, **job, stops=["relate: begun#2"])
        await child.stopped()
        child.send(number)
        child.go_on()
        return child

    async def check(self, **check: Any) -> None:
        async with opened(file_in(self.folder)) as store:
            await self.checker.verify(store, everyone_left=True, **check)

    async def releases(self) -> Counter[str]:
        """How often documents were given back, by the reason."""
        async with opened(file_in(self.folder)) as store:
            records = await store.events(BatchId("batch"), after=0, limit=100_000)
        return Counter(event.reason for event in map(decode_event, records) if isinstance(event, DocumentReleased))


@pytest.fixture
def scene(tmp_path: Path) -> Generator[Scene]:
    with children() as start:
        yield Scene(tmp_path, start)


@pytest.mark.parametrize(
    ("number", "signals", "code"),
    [
        (signal.SIGTERM, False, 0),
        (signal.SIGINT, False, -signal.SIGINT),
        (signal.SIGTERM, True, 143),
        (signal.SIGINT, True, 130),
    ],
    ids=["term", "int", "term-heard", "int-heard"],
)
async def test_a_deploy_finishes_what_runs_and_repeats_nothing(
    scene: Scene, number: signal.Signals, signals: bool, code: int
) -> None:
    """SIGTERM is handled by the process, or by the worker itself; SIGINT (Ctrl-C) cancels the main task."""
    first = await scene.deploy("first", number, pace=0.005, signals=signals)
    assert await first.ended() == code, first.errors
    assert first.errors == "" or code == -signal.SIGINT
    # Nothing was interrupted: whatever ran again later would be a broken promise.
    await scene.check(left=["first"])
    assert (await scene.releases()).keys() == {"shutdown"}
    second = scene.start("second", pace=0.002)
    assert (await second.result())["counts"]["succeeded"] == DOCUMENTS
    await scene.check(finished=True)
    assert (await scene.releases()).keys() == {"shutdown"}
    assert scene.checker.stats.repeated == 0


async def test_deploy_after_deploy_counts_no_crash(scene: Scene) -> None:
    """More of them than `max_crashes`, and no document becomes a suspect."""
    for number in range(5):
        child = await scene.deploy(f"process-{number}", pace=0.002, max_crashes=2)
        await child.result()
        await scene.check(left=[child.job.process])
    last = scene.start("last", pace=0.002)
    assert (await last.result())["counts"]["succeeded"] == DOCUMENTS
    await scene.check(finished=True)
    assert (await scene.releases())["crash"] == 0
    assert scene.checker.stats.repeated == 0


async def test_a_drain_is_bounded(scene: Scene) -> None:
    """What does not finish in time is cancelled, and its document is free at once all the same."""
    first = scene.start("first", pace=1_000.0, drain=0.05, stumbles=0.0, stops=["split: begun#8"])
    await first.stopped()
    first.send(signal.SIGTERM)
    first.go_on()
    assert (await first.result())["state"] == "left"
    await scene.check(interrupted=["first"])
    assert await scene.releases() == {"shutdown": 8}
    assert scene.checker.stats.in_flight == 8
    second = scene.start("second", pace=0.002, stumbles=0.0)
    assert (await second.result())["counts"]["succeeded"] == DOCUMENTS
    await scene.check(finished=True)
    assert scene.checker.stats.repeated == 8


@pytest.mark.parametrize("signals", [False, True], ids=["asyncio", "heard"])
async def test_a_second_ctrl_c_waits_for_nothing(scene: Scene, signals: bool) -> None:
    """A drain of an hour, and calls of an hour: the second one cancels them, and what was recorded is kept."""
    clock = SharedClock(scene.folder / "clock")
    first = scene.start(
        "first",
        clock=str(clock.path),
        drain=3_600.0,
        pace=3_600.0,
        stumbles=0.0,
        signals=signals,
        stops=["split: begun#8"],
    )
    await first.stopped()
    first.send(signal.SIGINT)
    first.go_on()
    await until(lambda: bool(first.marks("interrupted")), "the first one to be received")
    clock.advance(1)
    first.send(signal.SIGINT)
    assert await first.ended() == (130 if signals else -signal.SIGINT), first.errors
    assert "8 running activities are cancelled, of 8 documents" in first.errors
    await scene.check(interrupted=["first"])
    assert await scene.releases() == {"shutdown": 8}
    second = scene.start("second", pace=0.002, stumbles=0.0)
    assert (await second.result())["counts"]["succeeded"] == DOCUMENTS
    await scene.check(finished=True)
    assert scene.checker.stats.repeated == 8


async def test_two_processes_hand_over_during_a_rolling_deploy(scene: Scene) -> None:
    second = scene.start("second", pace=0.005, max_in_flight=4)
    first = await scene.deploy("first", pace=0.005, max_in_flight=4)
    await first.result()
    assert (await second.result())["counts"]["succeeded"] == DOCUMENTS
    await scene.check(left=["first"], finished=True)
    assert scene.checker.stats.repeated == 0
    assert (await scene.releases())["crash"] == 0


@pytest.mark.parametrize("moment", ["in-flight", "at-the-end", "idle", "at-once"])
async def test_leaving_leaves_nothing_behind(tmp_path: Path, moment: str) -> None:
    here.effects, here.pace, here.poison = EffectsLog(tmp_path / "effects.log", "here"), 0.002, frozenset()
    await asyncio.to_thread(lambda: None)  # Whatever asyncio keeps for itself from the first use on is there.
    threads, tasks, files = set(threading.enumerate()), asyncio.all_tasks(), open_files()
    worker = Worker(SQLiteStore(file_in(tmp_path)), drain=timedelta(seconds=10))
    async with BatchOrchestrator(extract, worker=worker) as batches:
        if moment in ("in-flight", "at-the-end"):
            await batches.submit(
                [Page(number) for number in range(DOCUMENTS)],
                batch_id="batch",
                document_id=lambda page: f"page-{page.number}",
                config=BatchConfig(concurrency=8, failure_policy=PATIENT),
            )
            events = batches.progress("batch")
            async for event in events:
                if event.seq == 40 and moment == "in-flight":
                    break
            await events.aclose()
        elif moment == "idle":
            with worker.signals.journal.waiting.listen() as waiting:
                await waiting.next()
    here.effects.close()
    assert asyncio.all_tasks() == tasks
    assert open_files() <= files
    await until(lambda: set(threading.enumerate()) <= threads, "the threads to end")
    async with opened(file_in(tmp_path)) as store:
        checker = checker_of(here.effects)
        await checker.verify(store, everyone_left=True)
