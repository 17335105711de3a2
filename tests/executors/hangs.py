"""A worker whose only activity hangs in a child: `python -m tests.executors.hangs MARK`."""

from __future__ import annotations

import asyncio
import sys

from tests.executors.activities import hang_until_killed
from tests.support import STAGES

from durable_batches import BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.executors import process_pool


@workflow(STAGES)
async def hangs(mark: str) -> None:
    await hang_until_killed(mark)


async def main() -> None:
    worker = Worker(MemoryStore(), executors={"cpu": process_pool(1)})
    async with BatchOrchestrator(hangs, worker=worker) as batches:
        await batches.run([sys.argv[1]])


if __name__ == "__main__":
    asyncio.run(main())
