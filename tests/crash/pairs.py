"""What the children run whose last two documents end at the same moment: each waits for the other's.

`python -m tests.crash.pairs JOB` (JSON of a `Job`) is one process, with one document at a time.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import dataclass

from tests.crash.places import store_at

from durable_batches import EXTRACTION, BatchOrchestrator, Results, Worker, durable_activity, workflow
from durable_batches.testing.virtual.effects import EffectsLog


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one child does."""

    process: str
    store: str
    """A database's `place`."""
    effects: str
    """The effects log's path."""
    meeting: str
    """The path of the socket to wait at."""


class _Here:
    effects: EffectsLog
    meeting: tuple[asyncio.StreamReader, asyncio.StreamWriter]


here = _Here()


@durable_activity
async def meet(number: int) -> int:
    with here.effects.activity("meet"):
        reader, writer = here.meeting
        writer.write(f"{number}\n".encode())
        await reader.readline()
        return number


@durable_activity
async def add_up(numbers: list[int]) -> int:
    with here.effects.activity("add_up"):
        return sum(numbers)


async def total(results: Results[int]) -> int:
    return await add_up([result.value async for result in results])


@workflow(EXTRACTION, name="pair", resolver=total)
async def pair(number: int) -> int:
    return await meet(number)


async def run(job: Job) -> None:
    """Work until SIGTERM."""
    here.effects = EffectsLog(job.effects, job.process)
    here.meeting = await asyncio.open_unix_connection(job.meeting)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with BatchOrchestrator(pair, worker=Worker(store_at(job.store), max_in_flight=1)):
        print("ready", flush=True)
        await told.wait()
    here.meeting[1].close()


if __name__ == "__main__":
    asyncio.run(run(Job(**json.loads(sys.argv[1]))))
