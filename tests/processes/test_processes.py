"""Several processes on one database: they share a batch, take over from each other, and hear of a cancel."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.processes.children import (
    CLOCK,
    Child,
    Start,
    check_calls,
    check_meanwhile,
    checker_of,
    children,
    is_alive,
    until,
)
from tests.processes.clocks import SharedClock
from tests.processes.databases import Database
from tests.processes.workload import Job, document_ids, tally_of
from tests.support import opened

from durable_batches.testing.virtual.effects import Effect, EffectsLog


class Scene:
    """Processes that share one batch, and what is known of them."""

    def __init__(self, folder: Path, database: Database, start: Start) -> None:
        self.folder = folder
        self.database = database
        self.effects = EffectsLog(folder / "effects.log")
        self.checker = checker_of(self.effects)
        self._start = start

    def start(self, count: int, **job: Any) -> list[Child]:
        return [self.start_one(f"process-{number}", **job) for number in range(1, count + 1)]

    def start_one(self, process: str, before: Sequence[str] = (), **job: Any) -> Child:
        return self._start(Job(process=process, folder=str(self.folder), store=self.database.place, **job), before)

    async def all_stopped(self, processes: Sequence[Child]) -> None:
        """All stand still where they were told to stop."""
        for child in processes:
            await child.stopped()

    def starts(self, child: Child, *, after: float) -> list[Effect]:
        """The activities that a process has begun after a moment."""
        return [
            effect
            for effect in self.effects.read()
            if effect.process == child.job.process and effect.phase == "start" and effect.at > after
        ]

    async def check_completed(self, processes: list[Child], documents: int, **check: Any) -> None:
        for child in processes:
            result = await child.result()
            assert result["state"] == "completed", child.job.process
            assert result["counts"]["succeeded"] == documents
            assert result["resolution"] == asdict(tally_of(range(documents)))
        check_calls(self.effects, documents)
        self.checker.acknowledged("batch", document_ids(documents))
        async with self.database.open() as store:
            await self.checker.verify(store, finished=True, everyone_left=True, **check)


@pytest.fixture
def scene(tmp_path: Path, database: Database) -> Generator[Scene]:
    with children() as start:
        yield Scene(tmp_path, database, start)


async def test_many_processes_start_at_once_on_no_database(scene: Scene) -> None:
    """One of them makes it, one submits, all of them see the batch through."""
    processes = scene.start(8, documents=16, pace=0.002)
    await scene.check_completed(processes, 16)
    assert sum(bool(child.marks("submitted")) for child in processes) == 8
    assert [child.errors for child in processes if "locked" in child.errors] == []


async def test_survivors_take_over_from_a_killed_process(scene: Scene) -> None:
    """Without waiting for its lease, of a day: on the same machine its death can be seen."""
    job: dict[str, Any] = {"documents": 20, "concurrency": 12, "max_in_flight": 4, "pace": 0.002, "lease": A_DAY}
    processes = scene.start(3, **job, stops=["measure: begun"])
    await scene.all_stopped(processes)
    victim, *survivors = processes
    assert victim.kill()
    scene.checker.acknowledged("batch", document_ids(20))
    await check_meanwhile(scene.checker, scene.database, interrupted=[victim.job.process])
    for child in survivors:
        child.go_on()
    await scene.check_completed(survivors, 20)
    # Of four documents that were under way, of which no more than two activities ran at once.
    assert 0 < scene.checker.stats.repeated <= scene.checker.stats.in_flight <= 8
    resolved = [effect for effect in scene.effects.read() if not effect.document_id and effect.phase == "start"]
    assert len(resolved) == 2
    assert len({effect.process for effect in resolved}) == 1


async def test_one_of_many_cancels_wins_and_all_processes_stop(scene: Scene) -> None:
    processes = scene.start(
        3, documents=40, concurrency=12, max_in_flight=4, pace=0.01, cancels=4, stops=["measure: begun"]
    )
    await scene.all_stopped(processes)
    scene.checker.acknowledged("batch", document_ids(40))
    for child in processes:
        child.send(signal.SIGUSR1)
        child.go_on()
    for child in processes:
        assert (await child.result())["state"] == "cancelled", child.job.process
        answers = child.marks("cancelled")
        assert len(answers) == 4
        for mark in answers:
            scene.checker.cancel_answered("batch", mark["answer"], process=child.job.process, at=mark["at"])
    # Exactly one True among the twelve, nothing begun after it: the checker knows. Here no loser interrupts work.
    async with scene.database.open() as store:
        await scene.checker.verify(store, finished=True, everyone_left=True)


async def test_a_cancel_reaches_a_process_that_did_not_call_it(scene: Scene) -> None:
    """The other one neither calls nor asks, nor has it anything to record: it looks, and stops what runs."""
    job: dict[str, Any] = {"concurrency": 8, "max_in_flight": 4, "stops": ["split: begun#4"]}
    caller = scene.start_one("caller", documents=20, pace=0.01, cancels=1, **job)
    other = scene.start_one("other", pace=1_000.0, **job)
    await scene.all_stopped([caller, other])
    caller.send(signal.SIGUSR1)
    for child in (caller, other):
        child.go_on()
    for child in (caller, other):
        assert (await child.result())["state"] == "cancelled"
    (answer,) = caller.marks("cancelled")
    assert answer["answer"] is True
    # Nothing begins there any more once it has looked.
    looked = min(mark["at"] for mark in other.marks("store.batch: answered") if mark["at"] > answer["at"])
    assert scene.starts(other, after=looked) == []
    scene.checker.cancel_answered("batch", True, process=caller.job.process, at=answer["at"])
    async with scene.database.open() as store:
        await scene.checker.verify(store, finished=True, everyone_left=True)


# ---- a process that stands still -----------------------------------------------------------------------------------

SHORT, A_DAY = 30.0, 86_400.0
"""Leases, in seconds: one that ends when the clock is set forward by an hour, and one that does not."""
AN_HOUR = 3_600.0


@pytest.fixture
def clock(tmp_path: Path) -> SharedClock:
    return SharedClock(tmp_path / "clock")


@pytest.mark.parametrize(
    "mark", ["store.commit: called", "measure: returned", "journal: handed", "store.commit: answered"]
)
async def test_a_process_that_was_stopped_past_its_lease_is_fenced_and_begins_anew(
    scene: Scene, clock: SharedClock, mark: str
) -> None:
    """Wherever it stood still, what it still has to write is refused, and it goes on as another worker."""
    job: dict[str, Any] = {
        "documents": 12,
        "concurrency": 8,
        "max_in_flight": 4,
        "pace": 0.002,
        "clock": str(clock.path),
    }
    zombie = scene.start_one("zombie", **job, lease=SHORT, stops=[f"{mark}#8"])
    await zombie.stopped()
    scene.checker.acknowledged("batch", document_ids(12))
    other = scene.start_one("other", **job, lease=A_DAY, stops=["store.expire: answered#2", "expire: COMMIT applied"])
    await other.stopped("store.expire: answered#2")
    async with scene.database.open() as store:
        assert await is_alive(store, zombie.worker)
    clock.advance(AN_HOUR)
    other.go_on()
    await other.stopped("expire: COMMIT applied")
    async with scene.database.open() as store:
        assert not await is_alive(store, zombie.worker)
        assert await is_alive(store, other.worker)
    taken_over_at = CLOCK.boot()
    await check_meanwhile(scene.checker, scene.database, fenced=["zombie"])
    zombie.go_on()
    other.go_on()
    await scene.check_completed([zombie, other], 12, fenced=["zombie"])
    _check_that_nothing_was_written(zombie, since=taken_over_at)
    refused = [note["error"] for note in zombie.marks("store.commit: refused") if note["facts"]]
    if mark == "store.commit: called":
        # The store has refused it, or the lease renewer has heard of the fence first, and the journal was cancelled.
        assert refused[0].startswith(("WorkerFencedError", "CancelledError"))
    assert "lease of worker" in zombie.errors


async def test_a_survivor_whose_own_lease_ran_out_is_fenced_as_well(scene: Scene, clock: SharedClock) -> None:
    """It is expired along with the process that stood still: what it had begun runs again, too, as it may."""
    job = {"documents": 12, "concurrency": 8, "max_in_flight": 4, "pace": 0.002, "clock": str(clock.path)}
    processes = scene.start(2, **job, lease=SHORT, stops=["measure: begun#3"])
    await scene.all_stopped(processes)
    scene.checker.acknowledged("batch", document_ids(12))
    clock.advance(AN_HOUR)
    async with opened(scene.database.store(clock=clock)) as store:
        # A moment in which others could renew their leases, if the file had been locked.
        clock.advance(2)
        expired = await store.expire()
    assert set(expired.workers) == {child.worker for child in processes}
    for child in processes:
        child.go_on()
    await scene.check_completed(processes, 12, fenced=[child.job.process for child in processes])


def _check_that_nothing_was_written(zombie: Child, *, since: float) -> None:
    """By the worker that is dead."""
    first = zombie.worker
    late = {
        mark["number"]
        for mark in zombie.marks("store.commit: called")
        if mark["worker"] == first and mark["at"] > since
    }
    made = {mark["number"] for mark in zombie.marks("store.commit: answered") if mark["worker"] == first}
    assert not late & made, "a worker wrote after it was declared dead"


# ---- process namespaces --------------------------------------------------------------------------------------------


async def test_processes_of_two_containers_leave_each_other_alone(scene: Scene, namespace: Sequence[str]) -> None:
    """The boot is the same, and the process ids are, and neither can see the other; both are alive."""
    processes = [
        scene.start_one(f"container-{number}", namespace, documents=24, concurrency=12, max_in_flight=4, pace=0.01)
        for number in range(2)
    ]
    await scene.check_completed(processes, 24)
    assert scene.checker.stats.repeated == 0
    assert not any("expired" in child.errors for child in processes)


async def test_only_the_lease_tells_that_a_process_of_another_container_is_dead(
    scene: Scene, namespace: Sequence[str], clock: SharedClock
) -> None:
    job: dict[str, Any] = {
        "documents": 12,
        "concurrency": 12,
        "max_in_flight": 4,
        "pace": 0.002,
        "clock": str(clock.path),
    }
    victim = scene.start_one("victim", namespace, **job, lease=SHORT, stops=["measure: begun"])
    await until(lambda: bool(victim.stops()), "the victim to stop")
    scene.checker.acknowledged("batch", document_ids(12))
    assert victim.kill()
    survivor = scene.start_one(
        "survivor", **job, lease=A_DAY, stops=["store.expire: answered#3", "expire: COMMIT applied"]
    )
    await survivor.stopped("store.expire: answered#3")
    async with scene.database.open() as store:
        assert await is_alive(store, victim.worker)
    await check_meanwhile(scene.checker, scene.database, interrupted=["victim"])
    clock.advance(AN_HOUR)
    survivor.go_on()
    await survivor.stopped()
    async with scene.database.open() as store:
        assert not await is_alive(store, victim.worker)
    survivor.go_on()
    await scene.check_completed([survivor], 12)
