"""One kill -9 with many documents in flight: how long the batch takes after the restart, beside a run in one go.

    python -m benchmarks.restart [--documents N] [--postgres] [--quick]

Each document is in one call of one second when its process is killed; then the process is started again. Both times
are from the start of a process to the end of its batch, imports left out. A crash is to cost nothing but the calls that
were under way: the run after it is to take no longer than 1 s + 1.2 x the undisturbed one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.support.servers import ROOT, schema_on, server

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchOrchestrator,
    PostgresStore,
    SQLiteStore,
    durable_activity,
    workflow,
)
from durable_batches.stores import Store

CALL_SECONDS = 1.0
PATIENCE_SECONDS = 300.0

started = 0


@durable_activity
async def ask(document: int) -> int:
    global started
    started += 1
    await asyncio.sleep(CALL_SECONDS)
    return document


@workflow(EXTRACTION, name="restart")
async def one_call(document: int) -> int:
    return await ask(document)


def store_at(place: str, schema: str) -> Store:
    """Make the store: of a file, or of a schema of a server."""
    return PostgresStore(place, schema=schema) if schema else SQLiteStore(place)


async def work(place: str, schema: str, documents: int, *, dies: bool) -> None:
    """What a process does: see the batch through, or die when all of its documents are in their call."""
    began = time.perf_counter()
    async with BatchOrchestrator(one_call, store=store_at(place, schema), max_in_flight=documents) as batches:
        config = BatchConfig(concurrency=documents)
        batch_id = await batches.submit(range(documents), batch_id="restart", config=config)
        while dies:
            if started == documents:
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(0.01)
        result = await batches.result(batch_id)
    assert result.counts.succeeded == documents
    print(time.perf_counter() - began, flush=True)


def run(place: str, schema: str, documents: int, role: str) -> float:
    """Run a process; return the seconds that it took, or 0 for one that dies."""
    command = [sys.executable, "-m", "benchmarks.restart", "--role", role, place, schema, str(documents)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    if role == "victim":
        assert done.returncode == -signal.SIGKILL, done.stderr
        return 0.0
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def measure(documents: int, dsn: str | None) -> tuple[float, float]:
    """Measure an undisturbed run, and the run after a kill; each on a database of its own."""
    seconds: list[float] = []
    for roles in (("heir",), ("victim", "heir")):
        with ExitStack() as stack:
            if dsn is None:
                place, schema = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "batches.db"), ""
            else:
                place, schema = dsn, stack.enter_context(schema_on(dsn))
            seconds.append([run(place, schema, documents, role) for role in roles][-1])
    return seconds[0], seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="*", default=[100, 400, 1_000])
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--role", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        role, place, schema, documents = arguments.role
        asyncio.run(work(place, schema, int(documents), dies=role == "victim"))
        return
    with ExitStack() as stack:
        dsn = stack.enter_context(server()) if arguments.postgres else None
        for documents in arguments.documents[:1] if arguments.quick else arguments.documents:
            undisturbed, after = measure(documents, dsn)
            print(
                f"{documents:6} in flight: {undisturbed:5.2f} s in one go, {after:5.2f} s after a kill: "
                f"{after / undisturbed:.2f} x, {after - 1.2 * undisturbed:+.2f} s to 1.2 x"
            )


if __name__ == "__main__":
    main()
