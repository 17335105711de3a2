"""Pools of real processes: a child that exits, one that is killed, one that hangs, and a worker that is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.executors.activities import exit_on, hang_for_ever, killed_once, where
from tests.executors.slow_to_import import TIMEOUT, double_slowly, importing
from tests.processes.children import until
from tests.support import STAGES, turns, within

from durable_batches import BatchConfig, BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.executors import process_pool
from durable_batches.testing import HistoryChecker, ManualClock

POISON = 3
KILLED = 2


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_children_that_hang_exit_or_are_killed_cost_their_own_documents_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marks = [tmp_path / f"hangs-{number}" for number in range(2)]

    @workflow(STAGES, name="trial")
    async def trial(number: int) -> int:
        if number < len(marks):
            await hang_for_ever(str(marks[number]))
        if number == KILLED:
            return await killed_once(number, str(tmp_path / "killed"))
        return await exit_on(number, POISON)

    # Children are then forked from a process that has imported them: a dozen are started here.
    multiprocessing.set_forkserver_preload(["tests.executors.activities"])
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    pool = process_pool(2, start_method="forkserver")
    async with BatchOrchestrator(trial, worker=Worker(store, executors={"cpu": pool}, clock=clock)) as batches:
        batch_id = await batches.submit(range(8), document_id=str, config=BatchConfig(concurrency=8))
        await until(lambda: all(mark.exists() and mark.read_text() for mark in marks), "both places to be held")
        hung = [int(mark.read_text()) for mark in marks]
        # That they have begun, they have told before.
        await turns(5)
        clock.advance(2)
        result = await within(batches.result(batch_id))
        failures = {int(failure.document_id): failure.error_type for failure in result.failures}
        assert failures == {0: "ActivityTimeoutError", 1: "ActivityTimeoutError", POISON: "CrashLoopError"}
        assert [failure.attempts for failure in result.failures] == [1, 1, 3]
        succeeded = [outcome.value async for outcome in batches.results(batch_id) if outcome.tag == "succeeded"]
        assert succeeded == [KILLED, 4, 5, 6, 7]
        await until(lambda: not any(map(runs, hung)), "the children that hung to be killed")
    assert "all of its 2 places are held by calls that were given up and run on; it is made anew" in caplog.text
    await HistoryChecker().verify(store)


async def test_a_timeout_does_not_hold_the_start_of_a_process_and_its_imports() -> None:
    @workflow(STAGES, name="trial")
    async def trial(number: int) -> int:
        return await double_slowly(number)

    mark, clock = importing(os.getpid()), ManualClock()
    worker = Worker(MemoryStore(clock=clock), executors={"cpu": process_pool(1)}, clock=clock)
    try:
        async with BatchOrchestrator(trial, worker=worker) as batches:
            batch_id = await batches.submit(range(2))
            await until(mark.exists, "the child to import the activity's module")
            clock.advance(5 * TIMEOUT.total_seconds())
            await turns(20)
            mark.unlink()
            assert (await within(batches.result(batch_id))).counts.succeeded == 2
    finally:
        mark.unlink(missing_ok=True)


async def test_children_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "hangs-0"
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.executors.hangs", str(mark))
    try:
        await until(lambda: mark.exists() and bool(mark.read_text()), "a child to run")
        child = int(mark.read_text())
        assert runs(child)
        # Ctrl-C in a terminal reaches both; what runs goes on, and the worker decides.
        os.kill(child, signal.SIGINT)
        assert runs(child)
    finally:
        worker.kill()
        await worker.wait()
    await until(lambda: not runs(child), "the child to end")


async def test_processes_are_replaced_after_so_many_calls() -> None:
    @workflow(STAGES, name="replaced")
    async def replaced(number: int) -> int:
        return (await where())[2]

    pool = process_pool(1, calls_per_process=2, start_method="forkserver")
    async with BatchOrchestrator(replaced, worker=Worker(MemoryStore(), executors={"cpu": pool})) as batches:
        batch_id = await batches.submit(range(6), config=BatchConfig(concurrency=3))
        await within(batches.result(batch_id))
        pids = [outcome.value async for outcome in batches.results(batch_id) if outcome.tag == "succeeded"]
    assert os.getpid() not in pids
    assert sorted(pids.count(pid) for pid in set(pids)) == [2, 2, 2]
