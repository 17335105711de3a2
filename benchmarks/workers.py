"""Several worker processes on one batch in Postgres: how they scale, and how soon a dead one is replaced.

    python -m benchmarks.workers [--documents N] [--quick]

Scaling: activities that sleep 50 ms, eight documents in flight a worker, one batch, one, two and eight processes.
Takeover: two workers, of which one is killed with SIGKILL in the middle; from the signal to the moment when another
worker begins an activity of its documents again, with the other on the same host and process namespace and with the
other in a namespace of its own, where only the lease tells.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

from benchmarks.support.servers import ROOT, schema_on, server

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchNotFoundError,
    BatchOrchestrator,
    PostgresStore,
    Worker,
    durable_activity,
    workflow,
)

NAP_SECONDS = 0.05
IN_FLIGHT = 8
PATIENCE_SECONDS = 120.0
BATCH = "naps"


@durable_activity
async def nap(document: int) -> int:
    await asyncio.sleep(NAP_SECONDS)
    return document


@workflow(EXTRACTION, name="naps")
async def two_naps(document: int) -> int:
    return await nap(document) + await nap(document + 1)


patient = False


@durable_activity
async def tell(document: int) -> int:
    """Tell when it begins, and wait to be killed."""
    print(time.time(), flush=True)
    if patient:
        await asyncio.sleep(PATIENCE_SECONDS)
    return document


@workflow(EXTRACTION, name="told")
async def told(document: int) -> int:
    return await tell(document)


async def work(dsn: str, schema: str, name: str, lease: float) -> None:
    """What a worker process does: tell that it is there, and see the batch through."""
    global patient
    patient = name == "victim"
    worker = Worker(PostgresStore(dsn, schema=schema), max_in_flight=IN_FLIGHT, lease=timedelta(seconds=lease))
    async with BatchOrchestrator(two_naps if name == "naps" else told, worker=worker) as batches:
        print("ready", flush=True)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    await batches.state(BATCH)
                    break
                except BatchNotFoundError:
                    await asyncio.sleep(0.005)
            await batches.result(BATCH)


@contextmanager
def workers(
    dsn: str, schema: str, name: str, count: int, *, lease: float = 30.0, before: tuple[str, ...] = ()
) -> Generator[list[subprocess.Popen[str]]]:
    """Start a number of worker processes, and end them after the block."""
    command = [*before, sys.executable, "-m", "benchmarks.workers", "--work", dsn, schema, name, str(lease)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"a worker process ended with {process.wait()}")
        yield processes
        for process in processes:
            process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        for process in processes:
            process.kill()


def time_of(dsn: str, count: int, documents: int) -> float:
    """Measure the seconds from submission to end, with a number of worker processes."""

    async def submit_and_wait(schema: str) -> float:
        async with BatchOrchestrator(two_naps, store=PostgresStore(dsn, schema=schema), max_in_flight=0) as batches:
            await batches.submit(range(documents), batch_id=BATCH, config=BatchConfig(concurrency=10_000))
            began = time.perf_counter()
            async with asyncio.timeout(PATIENCE_SECONDS):
                result = await batches.result(BATCH)
            assert result.counts.succeeded == documents
            return time.perf_counter() - began

    with schema_on(dsn) as schema, workers(dsn, schema, "naps", count):
        return asyncio.run(submit_and_wait(schema))


def scaling(dsn: str, documents: int) -> None:
    """The same batch with one, two and eight worker processes."""
    times = {count: time_of(dsn, count, documents) for count in (1, 2, 8)}
    print(f"{documents} documents of two activities of {NAP_SECONDS * 1000:.0f} ms, {IN_FLIGHT} in flight a worker:")
    for count, seconds in times.items():
        print(f"     {count} worker processes: {seconds:.2f} s, {seconds / times[1]:.2f} of one's time")


def takeover(dsn: str, lease: float, *, elsewhere: bool) -> float:
    """Seconds from the SIGKILL of a worker to the first activity of its documents on another."""

    async def submit(schema: str) -> None:
        async with BatchOrchestrator(told, store=PostgresStore(dsn, schema=schema), max_in_flight=0) as batches:
            await batches.submit(range(IN_FLIGHT), batch_id=BATCH)

    namespaces = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child") if elsewhere else ()
    with schema_on(dsn) as schema, workers(dsn, schema, "victim", 1, lease=lease) as (victim,):
        asyncio.run(submit(schema))
        assert victim.stdout is not None
        for _ in range(IN_FLIGHT):
            victim.stdout.readline()
        with workers(dsn, schema, "survivor", 1, lease=lease, before=namespaces) as (survivor,):
            os.kill(victim.pid, signal.SIGKILL)
            killed = time.time()
            assert survivor.stdout is not None
            return float(survivor.stdout.readline()) - killed


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_600)
    parser.add_argument("--quick", action="store_true", help="fewer documents")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        dsn, schema, name, lease = arguments.work
        asyncio.run(work(dsn, schema, name, float(lease)))
        return
    with server() as dsn:
        scaling(dsn, 400 if arguments.quick else arguments.documents)
        lease = 2.0
        print(f"takeover after SIGKILL, with a lease of {lease:.0f} s:")
        print(f"     on the same host {takeover(dsn, lease, elsewhere=False):.2f} s")
        print(f"     from another process namespace {takeover(dsn, lease, elsewhere=True):.2f} s")


if __name__ == "__main__":
    main()
