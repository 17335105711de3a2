"""What a batch costs as it grows: memory, time a document, and the time to the first activity after a kill.

    python -m benchmarks.scale [--sizes 1000 10000 100000]

Each size runs in a process of its own, its documents submitted from a generator. Resident memory is the highest
that the process reached; time a document is of the run, submission included. Then a process is killed with SIGKILL
in the middle of a batch, and the next one measures how long it takes from its start to its first activity.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchOrchestrator,
    Chunking,
    Results,
    SQLiteStore,
    durable_activity,
    workflow,
)

IN_FLIGHT = 64
first_activity_at: float | None = None
slow = False


@durable_activity(stage=Chunking)
async def measure(text: str) -> int:
    global first_activity_at
    first_activity_at = first_activity_at or time.perf_counter()
    if slow:
        await asyncio.sleep(0.05)
    return len(text)


async def total(results: Results[int]) -> int:
    return sum([result.value async for result in results])


@workflow(EXTRACTION, name="scale", resolver=total)
async def measured(text: str) -> int:
    return await measure(text)


def texts(count: int) -> Iterator[str]:
    for number in range(count):
        yield f"document {number} " * 20


async def run(path: Path, size: int) -> None:
    """One batch, from submission to result."""
    async with BatchOrchestrator(measured, store=SQLiteStore(path), max_in_flight=IN_FLIGHT) as batches:
        await batches.submit(texts(size), batch_id="scale", config=BatchConfig(concurrency=IN_FLIGHT))
        await batches.result("scale")


def child(path: Path, size: int) -> None:
    """Run, and print memory, seconds and the time to the first activity."""
    began = time.perf_counter()
    asyncio.run(run(path, size))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert first_activity_at is None or first_activity_at > began
    print(memory, time.perf_counter() - began, (first_activity_at or began) - began)


def spawn(path: Path, size: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.scale", "--child", str(path), str(size), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def figures(process: subprocess.Popen[str]) -> list[float]:
    output, _ = process.communicate()
    return [float(figure) for figure in output.split()]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    sizes: list[int] = parser.parse_args().sizes
    memories: list[float] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            memory, seconds, _ = figures(spawn(Path(folder) / "scale.db", size))
        memories.append(memory)
        print(f"{size:8,d} documents: {memory:6.1f} MiB at most, {seconds / size * 1e6:6.1f} us a document")
    print(f"memory grew by {memories[-1] - memories[0]:.1f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "killed.db"
        victim = spawn(path, 20_000, "--slow")
        time.sleep(4)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        successor = spawn(path, 20_000)
        print(f"first activity {figures(successor)[2] * 1e3:.0f} ms after the start, in a batch that was killed")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        slow = "--slow" in sys.argv
        child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
