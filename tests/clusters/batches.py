"""A batch on a cluster, and what is to be seen of it, whichever cluster it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.clusters.work import double, exit_always, hang, hang_until_stopped, told
from tests.support import STAGES, within

from durable_batches import (
    BatchConfig,
    BatchId,
    BatchOrchestrator,
    MemoryStore,
    Worker,
    workflow,
)
from durable_batches.executors import ExecutorOrFactory
from durable_batches.testing import HistoryChecker

__all__ = ["DOCUMENTS", "PATIENCE", "Doubling", "stops_what_hangs", "until"]

DOCUMENTS: Final = 200
PATIENCE: Final = 600.0
"""Seconds until a test gives up: far more than it takes."""


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what processes of others do, which tell nobody."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(what)
        await asyncio.sleep(0.02)


class Doubling:
    """A batch that doubles numbers, of which some are held by the first process that runs them.

    Args:
        folder: Where its calls leave what is to be seen of them.
        executor: What they run on.
        held: The numbers that are held.
    """

    def __init__(self, folder: Path, executor: ExecutorOrFactory, held: tuple[int, ...]) -> None:
        @workflow(STAGES, name="doubling")
        async def doubling(number: int) -> tuple[int, int]:
            return await double(number, str(folder), number in held)

        self._folder = folder
        self._held = held
        self.store = MemoryStore()
        worker = Worker(self.store, executors={"cluster": executor})
        self.batches = BatchOrchestrator(doubling, worker=worker)

    async def submit(self) -> BatchId:
        return await self.batches.submit(range(DOCUMENTS), document_id=str, config=BatchConfig(concurrency=20))

    async def holder(self, number: int) -> int:
        """Wait until a process holds a number; return its id."""
        mark = self._folder / f"holds-{number}"
        await until(mark.exists, f"number {number} to be held")
        return int(mark.read_text(encoding="ascii"))

    async def ends_well(self, batch_id: BatchId) -> None:
        """Everything ends, in the first attempt of documents and of calls, and the history is clean."""
        result = await within(self.batches.result(batch_id), seconds=PATIENCE)
        assert result.counts.succeeded == DOCUMENTS
        outcomes = [outcome async for outcome in self.batches.results(batch_id)]
        values = {int(outcome.document_id): outcome.value for outcome in outcomes if outcome.tag == "succeeded"}
        assert values == {number: (number * 2, 1) for number in range(DOCUMENTS)}
        await HistoryChecker().verify(self.store)
        runs = {number: len((self._folder / f"runs-{number}").read_text().split()) for number in range(DOCUMENTS)}
        assert {number: runs[number] for number in self._held} == dict.fromkeys(self._held, 2)


async def stops_what_hangs(folder: Path, executor: ExecutorOrFactory) -> None:
    """A call that is late, one that is cancelled and one that ends its process cost their own documents alone."""

    @workflow(STAGES, name="hostile")
    async def hostile(kind: str) -> str:
        if kind == "late":
            await hang(str(folder))
        if kind == "cancelled":
            await hang_until_stopped(str(folder))
        if kind == "poison":
            await exit_always(3)
        return await told(str(folder))

    async def hung(document: str) -> int:
        mark = folder / f"hangs-{document}"
        await until(mark.exists, f"document {document} to hang")
        return int(mark.read_text(encoding="ascii"))

    store = MemoryStore()
    async with BatchOrchestrator(hostile, worker=Worker(store, executors={"cluster": executor})) as batches:
        batch_id = await batches.submit(["late", "poison", "told"], document_id=str, config=BatchConfig(max_crashes=1))
        process = await hung("late")

        await until(lambda: [report.document_id for report in batches.reports(batch_id)] == ["told"], "a report")
        (folder / "seen").touch()
        result = await within(batches.result(batch_id), seconds=PATIENCE)
        failures = {failure.document_id: (failure.error_type, failure.attempts) for failure in result.failures}
        assert failures == {"late": ("ActivityTimeoutError", 1), "poison": ("CrashLoopError", 2)}
        assert result.counts.succeeded == 1
        await until(lambda: not runs(process), "the process of the late call to be ended")
        await HistoryChecker().verify(store)

        batch_id = await batches.submit(["cancelled"], document_id=str)
        process = await hung("cancelled")
        await batches.cancel(batch_id)
        await until(lambda: not runs(process), "the process of the cancelled call to be ended")
        # Its place is free again.
        assert (await within(batches.run(["after"]), seconds=PATIENCE)).counts.succeeded == 1


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
