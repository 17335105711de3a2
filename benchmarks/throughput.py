"""How fast recorded activities go, against the raw driver doing the same rows, in one run.

    python -m benchmarks.throughput [--stores sqlite postgres] [--documents N] [--rounds N] [--quick] [--compare dbos]

The workload: documents of five sequential activities that do no work and return about 300 bytes, each result
durable before the next activity starts. The floor under it is the driver itself, fed by as many asyncio tasks,
writing rows with group commit at the same durability: `sqlite3` with WAL and `synchronous=FULL`; asyncpg with prepared
statements and `unnest`, once only the checkpoint and the status of each activity, and once every row that the library
writes for one (its event and the batch's row as well). All are run in turn, and the ratio of the medians is what
counts: absolute figures move from machine to machine. Counts (transactions and bytes a document) do not move at all.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import asyncpg
from benchmarks.support.dbos import seconds_with_dbos
from benchmarks.support.floor import Row, floor
from benchmarks.support.servers import schema_on, server, slow_network
from benchmarks.support.workload import ACTIVITIES, IN_FLIGHT, Finding, Run, finding, five_steps

from durable_batches import (
    EXTRACTION,
    BatchConfig,
    BatchOrchestrator,
    PostgresStore,
    SQLiteStore,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.stores import Store

P = ParamSpec("P")
T = TypeVar("T")

Kind = Callable[[int, int], Run]
"""Runs a number of documents with a number in flight."""


async def ours(store: Store, documents: int, in_flight: int, count: Callable[[], Run]) -> Run:
    """The library: from the claim of the first document to the end of the last."""
    async with BatchOrchestrator(five_steps, store=store, max_in_flight=in_flight) as batches:
        batch_id = await batches.submit(range(documents), config=BatchConfig(concurrency=in_flight))
        loaded = time.perf_counter()
        result = await batches.result(batch_id)
        ended = time.perf_counter()
        assert result.counts.succeeded == documents
        run = await asyncio.to_thread(count)
        run.seconds = ended - loaded
        return run


# ---- SQLite ----------------------------------------------------------------------------------------------------------


class CountingStore(SQLiteStore):
    """Counts the write transactions, of whatever kind: the submission's chunks and the worker's life included."""

    transactions = 0

    async def _write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        self.transactions += 1
        return await super()._write(work, *args, **kwargs)


def ours_on_sqlite(documents: int, in_flight: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.db"
        store = CountingStore(path)
        return asyncio.run(ours(store, documents, in_flight, lambda: Run(0, store.transactions, path.stat().st_size)))


async def _raw_on_sqlite(path: Path, documents: int, in_flight: int) -> Run:
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1)
    connection = await loop.run_in_executor(thread, _raw_database, path, documents)

    def write(rows: list[Row]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO activity VALUES (?, ?, ?)", rows)
        connection.executemany(
            "UPDATE execution SET mark = ?, status = 'running' WHERE key = ?", [(row[1], row[0]) for row in rows]
        )
        connection.execute("COMMIT")

    async def commit(rows: list[Row]) -> None:
        await loop.run_in_executor(thread, write, rows)

    seconds = await floor(commit, documents, in_flight)
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


def raw_on_sqlite(documents: int, in_flight: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_raw_on_sqlite(Path(folder) / "raw.db", documents, in_flight))


# ---- Postgres --------------------------------------------------------------------------------------------------------

_TABLES = """
CREATE TABLE execution (key bigint PRIMARY KEY, status text, mark int) WITH (fillfactor = 70);
CREATE TABLE activity (execution bigint, key int, payload bytea, PRIMARY KEY (execution, key));
CREATE TABLE event (batch bigint, seq bigint, at bigint, tag text, data bytea, PRIMARY KEY (batch, seq));
CREATE TABLE batch (key bigint PRIMARY KEY, seq bigint, core bytea) WITH (fillfactor = 50);
INSERT INTO batch VALUES (1, 0, '')
"""
_CHECKPOINT = "INSERT INTO activity SELECT * FROM unnest($1::bigint[], $2::int[], $3::bytea[])"
_STATUS = (
    "UPDATE execution e SET mark = n.mark, status = 'running' FROM unnest($1::bigint[], $2::int[]) AS n(key, mark) "
    "WHERE e.key = n.key"
)
_EVENT = "INSERT INTO event SELECT 1, * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bytea[])"
_BATCH = "UPDATE batch SET seq = $1, core = $2 WHERE key = 1"
_CORE_BYTES = 400


async def _counted(dsn: str, schema: str) -> Run:
    connection = await asyncpg.connect(dsn)
    try:
        commits: int = await connection.fetchval(f"SELECT sum(commits)::bigint FROM {schema}.worker")
        stored: int = await connection.fetchval(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r'",
            schema,
        )
        return Run(0, commits, stored)
    finally:
        await connection.close()


def ours_on_postgres(dsn: str) -> Kind:
    def run(documents: int, in_flight: int) -> Run:
        with schema_on(dsn) as schema:
            store = PostgresStore(dsn, schema=schema)
            return asyncio.run(ours(store, documents, in_flight, lambda: asyncio.run(_counted(dsn, schema))))

    return run


async def _raw_on_postgres(dsn: str, schema: str, documents: int, in_flight: int, *, all_rows: bool) -> Run:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {_TABLES}")
    await connection.execute(
        "INSERT INTO execution SELECT n, 'pending', -1 FROM generate_series(0, $1::int) n", documents
    )
    seq = 0

    async def commit(rows: list[Row]) -> None:
        nonlocal seq
        keys, steps = [row[0] for row in rows], [row[1] for row in rows]
        async with connection.transaction():
            await connection.execute(_CHECKPOINT, keys, steps, [row[2] for row in rows])
            await connection.execute(_STATUS, keys, steps)
            if all_rows:
                numbers = list(range(seq + 1, seq + 1 + len(rows)))
                seq += len(rows)
                data = [json.dumps(["document", "stage", step, 1, 0.5]).encode() for step in steps]
                await connection.execute(_EVENT, numbers, numbers, ["stage_progress"] * len(rows), data)
                await connection.execute(_BATCH, seq, b"x" * _CORE_BYTES)

    seconds = await floor(commit, documents, in_flight)
    await connection.close()
    return Run(seconds)


def raw_on_postgres(dsn: str, *, all_rows: bool) -> Kind:
    def run(documents: int, in_flight: int) -> Run:
        with schema_on(dsn) as schema:
            return asyncio.run(_raw_on_postgres(dsn, schema, documents, in_flight, all_rows=all_rows))

    return run


# ---- what an interrupted batch costs ---------------------------------------------------------------------------------

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


# ---- all of it -------------------------------------------------------------------------------------------------------


def compare(library: Kind, floors: dict[str, Kind], documents: int, in_flight: int, rounds: int) -> float:
    """Run them in turn, report, and return the library's activities a second."""
    kinds = {"ours": library, **floors}
    runs: list[dict[str, Run]] = []
    for _ in range(rounds):
        runs.append({})
        for name, kind in kinds.items():
            gc.collect()
            runs[-1][name] = kind(documents, in_flight)
    activities = documents * ACTIVITIES
    rates = {name: activities / statistics.median(run[name].seconds for run in runs) for name in kinds}
    print(f"{in_flight:4d} in flight: {rates['ours']:8,.0f} activities/s")
    for name in floors:
        ratio = statistics.median(run[name].seconds / run["ours"].seconds for run in runs)
        print(f"     {name} {rates[name]:,.0f}, ratio {ratio:.2f}")
    if in_flight == IN_FLIGHT:
        counted = runs[0]["ours"]
        print(f"     transactions a document {counted.transactions / documents:.3f}")
        print(f"     database bytes a document {counted.database_bytes / documents:,.0f}")
    return rates["ours"]


def compare_with_dbos(rate: float, dsn: str | None) -> None:
    documents = 300
    seconds = seconds_with_dbos(dsn, documents, IN_FLIGHT)
    if seconds is None:
        print("     DBOS is not installed")
        return
    theirs = documents * ACTIVITIES / seconds
    print(f"     DBOS {theirs:,.0f}, {rate / theirs:.0f} times as fast")


def on_sqlite(arguments: argparse.Namespace, rounds: int) -> None:
    print(f"SQLite {sqlite3.sqlite_version}")
    documents: int = arguments.documents
    for in_flight in (IN_FLIGHT,) if arguments.quick else (IN_FLIGHT, 1, 8, 512):
        share = documents if in_flight >= IN_FLIGHT else max(documents * in_flight // IN_FLIGHT, 50)
        floors: dict[str, Kind] = {"raw driver, checkpoint and status": raw_on_sqlite}
        rate = compare(ours_on_sqlite, floors, share, in_flight, rounds)
        if in_flight == IN_FLIGHT and arguments.compare:
            compare_with_dbos(rate, None)
    with tempfile.TemporaryDirectory() as folder:
        print(f"replay: {asyncio.run(replay(Path(folder), 500)):,.0f} recorded activities/s")


def on_postgres(arguments: argparse.Namespace, rounds: int) -> None:
    def floors(dsn: str) -> dict[str, Kind]:
        return {
            "raw asyncpg, checkpoint and status": raw_on_postgres(dsn, all_rows=False),
            "raw asyncpg, all the same rows": raw_on_postgres(dsn, all_rows=True),
        }

    documents: int = arguments.documents
    with server() as dsn:
        print("Postgres, on this machine")
        rate = compare(ours_on_postgres(dsn), floors(dsn), documents, IN_FLIGHT, rounds)
        if arguments.compare:
            compare_with_dbos(rate, dsn)
        if not arguments.quick:
            compare(ours_on_postgres(dsn), floors(dsn), documents, 512, rounds)
        with slow_network(dsn) as slow:
            print("Postgres, a round trip of 1 ms away")
            compare(ours_on_postgres(slow), floors(slow), documents // 2, IN_FLIGHT, rounds)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", choices=["sqlite", "postgres"], default=["sqlite", "postgres"])
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round at 64 in flight, nothing else")
    parser.add_argument("--compare", choices=["dbos"], help="run another library on the same database, if installed")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    print(f"{arguments.documents} documents x {ACTIVITIES} activities, {os.cpu_count()} cores")
    if "sqlite" in arguments.stores:
        on_sqlite(arguments, rounds)
    if "postgres" in arguments.stores:
        on_postgres(arguments, rounds)


if __name__ == "__main__":
    main()
