"""How fast recorded activities go, against the raw driver doing the same rows, in one run.

    python benchmarks/throughput.py [--documents N] [--rounds N] [--quick]

The workload: documents of five sequential activities that do no work and return about 300 bytes, each result
durable before the next activity starts. The floor under it is Python's own `sqlite3`, fed by as many asyncio
tasks, writing the same checkpoint and status rows with group commit at the same durability (WAL and
`synchronous=FULL`). Both are run alternately, and the ratio of their medians is what counts: absolute figures
move from machine to machine. Counts (transactions and bytes a document) do not move at all.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel

from durable_batches import (
    EXTRACTION,
    Assembling,
    BatchConfig,
    BatchOrchestrator,
    Chunking,
    ExtractingEntities,
    ExtractingMentions,
    ExtractingRelations,
    SQLiteStore,
    Worker,
    durable_activity,
    workflow,
)

P = ParamSpec("P")
T = TypeVar("T")

ACTIVITIES = 5
IN_FLIGHT = 64


class Finding(BaseModel):
    """A result of about 300 bytes as JSON."""

    document: int
    step: int
    text: str
    scores: list[float]


def finding(document: int, step: int) -> Finding:
    return Finding(document=document, step=step, text=f"{document:08d} " * 24, scores=[0.125 * n for n in range(6)])


@durable_activity(stage=Chunking)
async def chunk(document: int) -> Finding:
    return finding(document, 0)


@durable_activity(stage=ExtractingMentions)
async def mentions(document: int) -> Finding:
    return finding(document, 1)


@durable_activity(stage=ExtractingEntities)
async def entities(document: int) -> Finding:
    return finding(document, 2)


@durable_activity(stage=ExtractingRelations)
async def relations(document: int) -> Finding:
    return finding(document, 3)


@durable_activity(stage=Assembling)
async def assemble(document: int) -> Finding:
    return finding(document, 4)


@workflow(EXTRACTION, name="throughput")
async def five_steps(document: int) -> int:
    total = 0
    for step in (chunk, mentions, entities, relations, assemble):
        total += (await step(document)).step
    return total


@dataclass
class Run:
    """One measured run."""

    seconds: float
    transactions: int = 0
    database_bytes: int = 0


async def ours(folder: Path, documents: int, in_flight: int) -> Run:
    """The library: from the claim of the first document to the end of the last."""
    path = folder / "ours.db"
    store = CountingStore(path)
    config = BatchConfig(concurrency=in_flight)
    async with BatchOrchestrator(five_steps, store=store, max_in_flight=in_flight) as batches:
        batch_id = await batches.submit(range(documents), config=config)
        loaded = time.perf_counter()
        result = await batches.result(batch_id)
        ended = time.perf_counter()
        assert result.counts.succeeded == documents
        transactions = store.transactions
    return Run(ended - loaded, transactions, path.stat().st_size)


class CountingStore(SQLiteStore):
    """Counts the write transactions, of whatever kind: the submission's chunks and the worker's life included."""

    transactions = 0

    async def _write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        self.transactions += 1
        return await super()._write(work, *args, **kwargs)


REPLAYED_STEPS = 40
gate = asyncio.Event()


@durable_activity
async def step(document: int, number: int) -> Finding:
    return finding(document, number)


@durable_activity
async def last_step(document: int) -> None:
    _ = document
    waiting.release()
    await gate.wait()


waiting = asyncio.Semaphore(0)


@workflow(EXTRACTION, name="replay")
async def many_steps(document: int) -> int:
    for number in range(REPLAYED_STEPS):
        await step(document, number)
    await last_step(document)
    return document


async def replay(folder: Path, documents: int) -> float:
    """Recorded activities that are returned in a second, when an interrupted batch is resumed."""
    store = SQLiteStore(folder / "replay.db")
    gate.clear()
    worker = Worker(store, max_in_flight=documents, drain=timedelta(0))
    async with BatchOrchestrator(many_steps, worker=worker) as batches:
        await batches.submit(range(documents), batch_id="replay", config=BatchConfig(concurrency=documents))
        for _ in range(documents):
            await waiting.acquire()
    gate.set()
    began = time.perf_counter()
    async with BatchOrchestrator(many_steps, store=store, max_in_flight=IN_FLIGHT) as batches:
        result = await batches.result("replay")
        seconds = time.perf_counter() - began
        assert result.counts.succeeded == documents
        assert batches.stats.activities_replayed == documents * REPLAYED_STEPS
    return documents * REPLAYED_STEPS / seconds


async def raw(folder: Path, documents: int, in_flight: int) -> Run:
    """The floor: `sqlite3` on one thread, group commit, the same checkpoint and status rows."""
    path = folder / "raw.db"
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1)
    connection = await loop.run_in_executor(thread, _raw_database, path, documents)
    pending: list[tuple[int, int, bytes, asyncio.Future[None]]] = []
    wake = asyncio.Event()
    left = documents

    def commit(rows: list[tuple[int, int, bytes]]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO activity VALUES (?, ?, ?)", rows)
        connection.executemany(
            "UPDATE execution SET mark = ?, status = 'running' WHERE key = ?", [(row[1], row[0]) for row in rows]
        )
        connection.execute("COMMIT")

    async def journal() -> None:
        while left:
            await wake.wait()
            await asyncio.sleep(0)
            wake.clear()
            taken, pending[:] = pending[:], []
            if not taken:
                continue
            await loop.run_in_executor(thread, commit, [row[:3] for row in taken])
            for *_, future in taken:
                future.set_result(None)

    async def activity(document: int, step: int) -> Finding:
        result = finding(document, step)
        payload = json.dumps(result.model_dump()).encode()
        future: asyncio.Future[None] = loop.create_future()
        pending.append((document, step, payload, future))
        wake.set()
        await future
        return result

    async def feed(numbers: Iterable[int]) -> None:
        nonlocal left
        for document in numbers:
            for step in range(ACTIVITIES):
                await activity(document, step)
            left -= 1
        wake.set()

    numbers = iter(range(documents))
    began = time.perf_counter()
    await asyncio.gather(journal(), *(feed(numbers) for _ in range(in_flight)))
    seconds = time.perf_counter() - began
    await loop.run_in_executor(thread, connection.close)
    thread.shutdown()
    return Run(seconds)


def _raw_database(path: Path, documents: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE execution (key INTEGER PRIMARY KEY, status TEXT, mark INTEGER)")
    connection.execute("CREATE TABLE activity (execution INTEGER, key INTEGER, payload BLOB, UNIQUE (execution, key))")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO execution VALUES (?, 'pending', -1)", [(number,) for number in range(documents)]
    )
    connection.execute("COMMIT")
    return connection


def measured(kind: str, documents: int, in_flight: int) -> Run:
    """One run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        run = ours if kind == "ours" else raw
        return asyncio.run(run(Path(folder), documents, in_flight))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round at 64 in flight, nothing else")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    documents: int = arguments.documents
    print(f"{documents} documents x {ACTIVITIES} activities, {os.cpu_count()} cores, SQLite {sqlite3.sqlite_version}")
    for in_flight in (IN_FLIGHT,) if arguments.quick else (IN_FLIGHT, 1, 8, 512):
        share = documents if in_flight >= IN_FLIGHT else max(documents * in_flight // 64, 50)
        pairs = [(measured("ours", share, in_flight), measured("raw", share, in_flight)) for _ in range(rounds)]
        activities = share * ACTIVITIES
        our_rate = activities / statistics.median(run.seconds for run, _ in pairs)
        raw_rate = activities / statistics.median(run.seconds for _, run in pairs)
        ratio = statistics.median(floor.seconds / run.seconds for run, floor in pairs)
        print(
            f"{in_flight:4d} in flight: {our_rate:8,.0f} activities/s, raw driver {raw_rate:8,.0f}, ratio {ratio:.2f}"
        )
        if in_flight == IN_FLIGHT:
            print(f"     transactions a document {pairs[0][0].transactions / share:.3f}")
            print(f"     database bytes a document {pairs[0][0].database_bytes / share:,.0f}")
    with tempfile.TemporaryDirectory() as folder:
        print(f"replay: {asyncio.run(replay(Path(folder), 500)):,.0f} recorded activities/s")


if __name__ == "__main__":
    main()
