"""What following a batch with `progress()` gives: events a second and latency, for one subscriber and for many.

    python -m benchmarks.progress [--subscribers 1 10 100 1000] [--events 200] [--seconds 5] [--quick]

here: the subscribers are in the process of the worker, as in a service that runs its own batches.
elsewhere: they are in another process, and follow by a `BatchClient` of the same SQLite file.

Two batches for each number of subscribers: one at the pace of `--events` a second, of which the latency is taken, from
the time that an event has (`at`) until a subscriber has it; and one as fast as it goes, of which the events a second
are taken, counted once a subscriber. Each subscriber checks that it gets every event once and in order. Ratios are to
the run with one subscriber, in the same process and the same minute; figures without a ratio depend on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.support.followed import Reading, followed

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchEvent,
    BatchOrchestrator,
    SQLiteStore,
    Worker,
)
from durable_batches.lifecycle.events import LAST_EVENT_TAGS

EVENTS_A_DOCUMENT: Final = 3
IN_FLIGHT: Final = 10
FAST_DOCUMENTS: Final = 200
FAST_IN_FLIGHT: Final = 64
SAMPLED: Final = 40
"""Subscribers whose latency is taken."""


Batches = BatchOrchestrator[float, str, Reading, None]


class Followed(NamedTuple):
    """What the subscribers of one batch have got."""

    events: int
    """By each of them."""
    latencies: Sequence[float]
    """Seconds, sorted; of some of them."""
    seconds: float
    """From the submission until all had the last event."""


async def follow(stream: AsyncGenerator[BatchEvent, None], latencies: list[float] | None) -> int:
    """Follow a batch to its end; return how many events there were, each in its place."""
    last, tag = 0, ""
    async for event in stream:
        if latencies is not None:
            latencies.append(time.time() - event.at.timestamp())
        if event.seq != last + 1:
            raise AssertionError(f"event {event.seq} after event {last}")
        last, tag = event.seq, event.tag
    if tag not in LAST_EVENT_TAGS:
        raise AssertionError(f"the last event was {tag}")
    return last


async def follow_all(batches: Batches | BatchClient, batch_id: str, number: int) -> Followed:
    """Follow a batch with so many subscribers."""
    latencies: list[float] = []
    began = time.perf_counter()
    every = max(number // SAMPLED, 1)
    counts = await asyncio.gather(
        *(follow(batches.progress(batch_id), None if index % every else latencies) for index in range(number))
    )
    assert len(set(counts)) == 1
    return Followed(counts[0], sorted(latencies), time.perf_counter() - began)


async def submit(batches: Batches, per_second: float, seconds: float) -> str:
    """Submit a batch with so many events a second; 0: as fast as it goes."""
    if not per_second:
        return await batches.submit([0.0] * FAST_DOCUMENTS, config=BatchConfig(concurrency=FAST_IN_FLIGHT))
    pace = per_second / EVENTS_A_DOCUMENT
    # Of different lengths, always the same ones, so that they do not move in step.
    lengths = (0.5 + index * 0.618 % 1 for index in range(int(pace * seconds)))
    documents = [IN_FLIGHT / pace * length for length in lengths]
    return await batches.submit(documents, config=BatchConfig(concurrency=IN_FLIGHT))


@asynccontextmanager
async def worker_on(path: Path) -> AsyncGenerator[Batches]:
    """A worker of the file."""
    worker = Worker(SQLiteStore(path), max_in_flight=FAST_IN_FLIGHT, drain=timedelta(0))
    async with BatchOrchestrator(followed, worker=worker) as batches:
        yield batches


async def run_worker(path: Path) -> None:
    """Run batches in this process, one for each line of the input; print the id of each."""
    loop = asyncio.get_running_loop()
    async with worker_on(path) as batches:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            per_second, seconds = json.loads(line)
            print(await submit(batches, per_second, seconds), flush=True)


def quantile(values: Sequence[float], part: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(len(values) * part))]


def report(where: str, number: int, paced: Followed, fast: Followed, alone: tuple[Followed, Followed] | None) -> None:
    """Print what one number of subscribers has given, with ratios to one subscriber."""
    one_paced, one_fast = alone or (paced, fast)
    latency = ", ".join(
        f"{name} {own * 1e3:.1f} ms ({own / alone_:.1f}x)"
        for name, own, alone_ in (
            (name, quantile(paced.latencies, part), quantile(one_paced.latencies, part))
            for name, part in (("p50", 0.5), ("p99", 0.99))
        )
    )
    rate, one_rate = number * fast.events / fast.seconds, one_fast.events / one_fast.seconds
    print(
        f"{where:<9} {number:>5,} subscribers: latency of {paced.events:,} events {latency}; at full speed "
        f"{number * fast.events:,} events, {rate:,.0f} a second ({rate / one_rate:.1f}x), and the batch takes "
        f"{fast.seconds / one_fast.seconds:.1f}x as long",
        flush=True,
    )


async def here(numbers: Sequence[int], per_second: float, seconds: float) -> None:
    """Measure subscribers in the process of the worker."""
    with tempfile.TemporaryDirectory() as folder:
        async with worker_on(Path(folder) / "progress.db") as batches:
            alone: tuple[Followed, Followed] | None = None
            for number in numbers:
                paced = await follow_all(batches, await submit(batches, per_second, seconds), number)
                fast = await follow_all(batches, await submit(batches, 0, 0), number)
                alone = alone or (paced, fast)
                report("here", number, paced, fast, alone)


async def elsewhere(numbers: Sequence[int], per_second: float, seconds: float) -> None:
    """Measure subscribers in another process than that of the worker."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "progress.db"
        async with worker_on(path):
            pass  # makes the file, which a client does not
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.progress", "--worker", str(path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None

        async def submitted(*what: float) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{json.dumps(what)}\n".encode())
            return (await process.stdout.readline()).decode().strip()

        async with BatchClient(SQLiteStore(path)) as client:
            alone: tuple[Followed, Followed] | None = None
            for number in numbers:
                paced = await follow_all(client, await submitted(per_second, seconds), number)
                fast = await follow_all(client, await submitted(0, 0), number)
                alone = alone or (paced, fast)
                report("elsewhere", number, paced, fast, alone)
        process.stdin.close()
        await process.wait()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", nargs="+", type=int, default=[1, 10, 100, 1_000])
    parser.add_argument("--events", type=float, default=200.0, help="a second, of the batch whose latency is taken")
    parser.add_argument("--seconds", type=float, default=5.0, help="of that batch")
    parser.add_argument("--quick", action="store_true", help="a second each, and no more than 100 subscribers")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        asyncio.run(run_worker(arguments.worker))
        return
    seconds = 1.0 if arguments.quick else arguments.seconds
    numbers = [number for number in arguments.subscribers if number <= 100 or not arguments.quick]
    asyncio.run(here(numbers, arguments.events, seconds))
    asyncio.run(elsewhere(numbers, arguments.events, seconds))


if __name__ == "__main__":
    main()
