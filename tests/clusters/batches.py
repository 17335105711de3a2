"""Batches that run on a cluster, and what is to be seen of them, whichever cluster it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.clusters.work import double
from tests.support import STAGES

from durable_batches import BatchConfig, BatchId, BatchOrchestrator, Store, Worker, workflow
from durable_batches.executors import ExecutorOrFactory
from durable_batches.testing import HistoryChecker

__all__ = ["CONFIG", "held_by", "orchestrator", "until"]

DOCUMENTS: Final = 200
CONFIG: Final = BatchConfig(concurrency=20)
PATIENCE: Final = 120.0


@workflow(STAGES, name="doubling")
async def doubling(job: tuple[int, str, tuple[int, ...]]) -> tuple[int, int]:
    number, folder, held = job
    return await double(number, folder, number in held)


def orchestrator(store: Store, executor: ExecutorOrFactory) -> BatchOrchestrator:  # type: ignore[type-arg]
    return BatchOrchestrator(doubling, worker=Worker(store, executors={"cluster": executor}))


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what processes of others do, which tell nobody."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(what)
        await asyncio.sleep(0.02)


async def held_by(folder: Path, number: int) -> int:
    """Wait until a process holds a document; return its id."""
    mark = folder / f"holds-{number}"
    await until(mark.exists, f"document {number} to be held")
    return int(mark.read_text(encoding="ascii"))
