"""Several processes on one database: they share a batch, take over from each other, and hear of a cancel."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.crash.databases import Database
from tests.crash.processes import (
    CLOCK,
    Child,
    Start,
    check_calls,
    check_meanwhile,
    checker_of,
    children,
    is_alive,
    until,
    until_true,
)
from tests.crash.workload import Job, document_ids, tally_of

from durable_batches.stores import Store
from durable_batches.testing.virtual.effects import EffectsLog

HEARTBEAT = 2.5
"""Seconds after which every process must have heard of what another one decided: they look around each second,
and the machine may be busy."""


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

    def works(self, child: Child, *, after: float = 0.0) -> bool:
        """Whether the process has begun an activity (since a moment)."""
        return any(effect.process == child.job.process and effect.at > after for effect in self.effects.read())

    async def all_work(self, processes: list[Child]) -> None:
        await until(lambda: all(map(self.works, processes)), "all processes to work")

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
    await _start_at_once(scene)


@pytest.mark.soak
async def test_many_processes_start_at_once_again_and_again(tmp_path: Path, database: Database) -> None:
    for number in range(SOAK_ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with children() as start:
            await _start_at_once(Scene(folder, database.another(), start))


async def _start_at_once(scene: Scene) -> None:
    processes = scene.start(8, documents=16)
    await scene.check_completed(processes, 16)
    assert sum(bool(child.marks("submitted")) for child in processes) == 8
    assert [child.errors for child in processes if "locked" in child.errors] == []


async def test_survivors_take_over_from_a_killed_process(scene: Scene) -> None:
    processes = scene.start(3, documents=60, concurrency=12, max_in_flight=4, pace=0.03)
    await scene.all_work(processes)
    victim, *survivors = processes
    assert victim.kill()
    killed_at = CLOCK.boot()
    scene.checker.acknowledged("batch", document_ids(60))
    await check_meanwhile(scene.checker, scene.database, interrupted=[victim.job.process])
    async with scene.database.open() as store:
        await until_true(lambda: _is_dead(store, victim), "the killed process to be declared dead")
    # Without waiting for the 30 s of its lease: on the same machine its death can be seen.
    assert CLOCK.boot() - killed_at < 10
    await scene.check_completed(survivors, 60)
    # Of four documents that were under way, of which no more than two activities ran at once.
    assert 0 < scene.checker.stats.repeated <= scene.checker.stats.in_flight <= 8
    resolved = [effect for effect in scene.effects.read() if not effect.document_id and effect.phase == "start"]
    assert len(resolved) == 2
    assert len({effect.process for effect in resolved}) == 1


async def _is_dead(store: Store, child: Child) -> bool:
    return not await is_alive(store, child.worker)


async def test_one_of_many_cancels_wins_and_all_processes_stop(scene: Scene) -> None:
    processes = scene.start(3, documents=200, concurrency=12, max_in_flight=4, pace=0.05, cancels=4)
    await scene.all_work(processes)
    scene.checker.acknowledged("batch", document_ids(200))
    (scene.folder / "cancel").touch()
    for child in processes:
        assert (await child.result())["state"] == "cancelled", child.job.process
        answers = child.marks("cancelled")
        assert len(answers) == 4
        for mark in answers:
            scene.checker.cancel_answered("batch", mark["answer"], process=child.job.process, at=mark["at"])
    # Exactly one True among the twelve, nothing begun after it: the checker knows. Here no loser interrupts work.
    async with scene.database.open() as store:
        await scene.checker.verify(store, finished=True, everyone_left=True, heartbeat=HEARTBEAT)


async def test_a_cancel_reaches_a_process_that_did_not_call_it(scene: Scene) -> None:
    """The other one neither calls nor asks, nor has it anything to record: it looks, and stops what runs."""
    caller = scene.start_one("caller", documents=100, concurrency=8, max_in_flight=4, pace=0.2, cancels=1)
    other = scene.start_one("other", max_in_flight=4, pace=100.0)
    await scene.all_work([caller, other])
    (scene.folder / "cancel").touch()
    for child in (caller, other):
        assert (await child.result())["state"] == "cancelled"
    (answer,) = caller.marks("cancelled")
    assert answer["answer"] is True
    ends = [effect.at for effect in scene.effects.read() if effect.process == "other" and effect.phase != "start"]
    assert max(ends) < answer["at"] + HEARTBEAT
    scene.checker.cancel_answered("batch", True, process=caller.job.process, at=answer["at"])
    async with scene.database.open() as store:
        await scene.checker.verify(store, finished=True, everyone_left=True, heartbeat=HEARTBEAT)


# ---- a process that stands still -----------------------------------------------------------------------------------

ROUNDS = 5
SOAK_ROUNDS = int(os.environ.get("DURABLE_BATCHES_SOAK_ROUNDS", "50"))


async def _stop_and_wake(scene: Scene) -> int:
    """A zombie: SIGSTOP past the lease, then SIGCONT. How many facts it tried to write in vain when it woke."""
    processes = scene.start(2, documents=160, concurrency=8, max_in_flight=4, pace=0.03, lease=2.0)
    await scene.all_work(processes)
    zombie, other = processes
    scene.checker.acknowledged("batch", document_ids(160))
    await _stop_between_transactions(scene, zombie)
    first = zombie.worker
    async with scene.database.open() as store:
        await until_true(
            lambda: _is_dead(store, zombie),
            f"the stopped process to be declared dead; the other one runs: {other.running}; {other.errors}",
        )
        taken_over_at = CLOCK.boot()
    await until(lambda: scene.works(other, after=taken_over_at), "the other process to go on")
    await check_meanwhile(scene.checker, scene.database, fenced=[zombie.job.process])
    zombie.send(signal.SIGCONT)
    await until(lambda: any(mark["worker"] != first for mark in zombie.marks("committed")), "the zombie to begin anew")
    await scene.check_completed(processes, 160, fenced=[zombie.job.process])
    late = {mark["number"] for mark in zombie.marks("commit") if mark["worker"] == first and mark["at"] > taken_over_at}
    made = {mark["number"] for mark in zombie.marks("committed") if mark["worker"] == first}
    assert not late & made, "a worker wrote after it was declared dead"
    assert "lease of worker" in zombie.errors
    refused = [mark for mark in zombie.marks("refused") if mark["worker"] == first and mark["at"] > taken_over_at]
    return sum(mark["facts"] for mark in refused if mark["error"].startswith("WorkerFencedError"))


async def test_a_process_that_was_stopped_past_its_lease_is_fenced_and_begins_anew(
    tmp_path: Path, database: Database
) -> None:
    """Its heartbeat may find out before its journal: it is stopped again, until it did try to write."""
    for number in range(ROUNDS):
        if await _one_round(tmp_path / str(number), database.another()):
            return
    pytest.fail("the stopped process never tried to write what it had been doing")


@pytest.mark.soak
async def test_processes_that_were_stopped_past_their_lease_write_nothing(tmp_path: Path, database: Database) -> None:
    refused = [await _one_round(tmp_path / str(number), database.another()) for number in range(SOAK_ROUNDS)]
    assert sum(map(bool, refused)) > SOAK_ROUNDS / 4


async def _one_round(folder: Path, database: Database) -> int:
    folder.mkdir()
    with children() as start:
        return await _stop_and_wake(Scene(folder, database, start))


async def _stop_between_transactions(scene: Scene, child: Child) -> None:
    """SIGSTOP; not while it is within a transaction, which would hold up everybody, whatever we do."""
    while True:
        child.send(signal.SIGSTOP)
        await until(lambda: _state_of(child.pid) == "T", "the process to stop")
        if scene.database.is_writable():
            return
        child.send(signal.SIGCONT)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# ---- process namespaces --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def namespace() -> Sequence[str]:
    """Starts a process in a namespace of its own, as a container does: it cannot see the others, on the same kernel."""
    for rights in ([], ["--user", "--map-root-user"]):
        command = ["unshare", *rights, "--pid", "--fork", "--mount-proc", "--kill-child"]
        if subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0:
            return command
    pytest.skip("the kernel lets this user make no process namespaces")


async def test_processes_of_two_containers_leave_each_other_alone(scene: Scene, namespace: Sequence[str]) -> None:
    """The boot is the same, and the process ids are, and neither can see the other; both are alive."""
    processes = [
        scene.start_one(f"container-{number}", namespace, documents=60, concurrency=12, max_in_flight=4, pace=0.03)
        for number in range(2)
    ]
    await scene.all_work(processes)
    await scene.check_completed(processes, 60)
    assert scene.checker.stats.repeated == 0
    assert not any("expired" in child.errors for child in processes)


async def test_only_the_lease_tells_that_a_process_of_another_container_is_dead(
    scene: Scene, namespace: Sequence[str]
) -> None:
    lease = 2.0
    processes = [
        scene.start_one(
            f"container-{number}", namespace, documents=60, concurrency=12, max_in_flight=4, pace=0.03, lease=lease
        )
        for number in range(2)
    ]
    await scene.all_work(processes)
    victim, survivor = processes
    scene.checker.acknowledged("batch", document_ids(60))
    assert victim.kill()
    killed_at = CLOCK.boot()
    await check_meanwhile(scene.checker, scene.database, interrupted=[victim.job.process])
    async with scene.database.open() as store:
        await until_true(lambda: _is_dead(store, victim), "the killed process to be declared dead")
    # It has renewed its lease every third of it.
    assert lease / 3 < CLOCK.boot() - killed_at < lease + 10
    await scene.check_completed([survivor], 60)
