"""What claims cost, and how late they are.

    python -m benchmarks.claims [late] [sleeping] [chosen] [ended] [--quick]

late: how late a document's retry starts that is due after 20 ms, in a batch of 4,000 at a concurrency of 4: as the
number of starts of other documents before it, and in milliseconds, on all three stores.

sleeping: what a claim that finds nothing costs, and a look by `wait(work=)`, with 0 to 50,000 batches beside it whose
only document waits for a retry in an hour. Beside the times there are counts, which are free of noise: the steps of
SQLite's virtual machine, and the blocks of tables and indexes that Postgres reads.

Measured before batches slept and retries were claimed first, and since (two busy cores): the retry was start number
4,001 on each store, 9 to 54 s late, and is number 9, 6 to 133 ms late. Beside 0, 1,000, 10,000 and 50,000 batches an
empty claim took SQLite 189, 71,215, 710,215 and 3,550,215 steps (554 ms with 50,000), and takes 168 (3 ms) beside any
number; Postgres read 11, 7,408, 56,191 and 240,649 blocks (971 ms), and reads 7 to 11 (8 ms).

chosen: what a claim that takes from some batches only costs, and a wait for one, with 0 to 50,000 batches of others
beside it that could be claimed from: by an id, and by a label.

ended: what a claim costs in Postgres behind a million documents that have ended. These are claimed and ended as
workers do it, by the store's own commits. Autovacuum is off, which is the worst case: every old version of a row and
every old entry of an index is still there. The plans are of the store's own statements.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import asyncpg
from benchmarks.support.servers import schema_on, server

from durable_batches import (
    BatchConfig,
    BatchId,
    BatchOrchestrator,
    BatchStateMachine,
    DocumentRetrying,
    DocumentStarted,
    MemoryStore,
    PostgresStore,
    RetryFailed,
    RetryPolicy,
    SQLiteStore,
    Stage,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.commands import Seal
from durable_batches.lifecycle.facts import ExecutionFailed, ExecutionSucceeded
from durable_batches.stores import ClaimRequest, NewDocument, Store, WorkerId
from durable_batches.stores.postgres.commit.claim import claimable, load_candidates, lock_open_batches
from durable_batches.stores.postgres.connection.server_clock import SERVER_TIME
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.sqlite.claims import is_claimable
from durable_batches.stores.sqlite.connection import connect
from durable_batches.testing.conformance.scene import LETTERS, Hand, Scene

EACH = 5_000
TIMED = 50
TEN = ClaimRequest(frozenset({LETTERS}), 10, 0, 1_000, 1_000, 10)
MANY = ClaimRequest(frozenset({LETTERS}), EACH, 0, EACH, EACH, 10)


# ---- late ------------------------------------------------------------------------------------------------------------

DOCUMENTS = 4_000
CONCURRENCY = 4
BACKOFF_SECONDS = 0.02
CALL_SECONDS = 0.005


class Reading(Stage):
    tag: Literal["reading"] = "reading"


failed_once = False


@durable_activity(stage=Reading, retry=RetryPolicy(max_attempts=1))
async def read(document: int) -> int:
    global failed_once
    await asyncio.sleep(CALL_SECONDS)
    if document == 0 and not failed_once:
        failed_once = True
        raise RuntimeError("the first time")
    return document


@workflow(BatchStateMachine(Reading), name="late")
async def late(document: int) -> int:
    return await read(document)


async def lateness(name: str, store: Store, documents: int) -> None:
    """Measure and report the start of one retry."""
    global failed_once
    failed_once = False
    config = BatchConfig(
        concurrency=CONCURRENCY, failure_policy=RetryFailed(backoff=timedelta(seconds=BACKOFF_SECONDS))
    )
    starts = since_failure = 0
    due = None
    async with BatchOrchestrator(late, store=store) as batches:
        batch_id = await batches.submit(range(documents), config=config)
        async for event in batches.progress(batch_id):
            match event:
                case DocumentRetrying():
                    due, since_failure = event.due, starts
                case DocumentStarted(document_id="0", attempt=2):
                    assert due is not None
                    milliseconds = (event.at - due).total_seconds() * 1000
                    print(
                        f"{name:<9} retry of 1 of {documents:,} documents: start number {starts + 1:,}, "
                        f"{starts - since_failure:,} after its failure; {milliseconds:,.1f} ms late"
                    )
                    await batches.cancel(batch_id)
                case DocumentStarted():
                    starts += 1
                case _:
                    pass


# ---- sleeping --------------------------------------------------------------------------------------------------------

OTHERS = (0, 1_000, 10_000, 50_000)
EMPTY_CLAIMS = 10
FLUSH_SECONDS = 1.1
"""A session of Postgres reports what it has read with a commit, but once a second only."""


async def sleeping_batch(scene: Scene) -> Hand:
    """Leave one batch whose only document waits for a retry in an hour."""
    hand = await scene.worker(lease=3600)
    await scene.batch(1, policy=RetryFailed(max_attempts=3, backoff=timedelta(hours=1)))
    (claim,) = (await hand.commit(claim=TEN)).claims
    taken = claim.execution
    await hand.report(ExecutionFailed(taken.batch_id, taken.run, taken.position, taken.attempt, b"", "it broke"))
    return hand


async def open_batch(scene: Scene) -> Hand:
    """Leave one batch whose only document can be claimed."""
    await scene.batch(1)
    return await scene.worker(lease=3600)


async def median(work: Callable[[], Awaitable[object]], times: int) -> float:
    """Return the median of the milliseconds that this takes."""
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


class Beside(NamedTuple):
    """Batches of others, and a claim that takes nothing of them."""

    name: str
    leave_one: Callable[[Scene], Awaitable[Hand]]
    request: ClaimRequest


ASLEEP = Beside("sleeping", sleeping_batch, TEN)
BY_ID = Beside("of others, by id", open_batch, TEN._replace(batches=frozenset({BatchId("mine")})))
BY_LABEL = Beside("of others, by label", open_batch, TEN._replace(metadata={"team": "mine"}))


def report(store: str, beside: Beside, others: int, claim: float, claim_cost: str, look: float, look_cost: str) -> None:
    print(
        f"{store:<9} {others:>6,} {beside.name}: an empty claim {claim:.2f} ms, {claim_cost}; "
        f"a look for work {look:.2f} ms, {look_cost}"
    )


class Steps:
    """Counts the steps of SQLite's virtual machine on one connection."""

    def __init__(self) -> None:
        self.count = 0

    def _step(self) -> int:
        self.count += 1
        return 0

    def watch(self, connection: sqlite3.Connection) -> None:
        """Count from here on."""
        connection.set_progress_handler(self._step, 1)

    def stop(self, connection: sqlite3.Connection) -> None:
        """Count no more, since counting takes time."""
        connection.set_progress_handler(None, 1)


async def beside_in_sqlite(beside: Beside, others: int, folder: Path) -> None:
    """Measure and report on SQLite."""
    path = folder / f"{beside.name}-{others}.db"
    store = SQLiteStore(path)
    await store.open()
    writer = store._writer  # pyright: ignore[reportPrivateUsage]
    assert writer is not None
    reader = connect(path)
    try:
        hand = await beside.leave_one(Scene(store, asyncio.sleep))
        with sqlite3.connect(path) as connection:
            if others:
                copy = _copying(_columns(connection, "batch"), _columns(connection, "execution"))
                for statement in copy:
                    connection.execute(statement.format(s="", numbers=_SQLITE_NUMBERS.format(others - 1)))
            else:
                connection.execute("DELETE FROM batch")
                connection.execute("DELETE FROM execution")

        async def claim_nothing() -> None:
            assert not await claim(store, hand, beside.request)

        async def look() -> None:
            assert not is_claimable(time.time_ns() // 1000, beside.request).on(reader)

        for_claim, for_look = Steps(), Steps()
        await writer.run(for_claim.watch)
        await claim_nothing()
        await writer.run(for_claim.stop)
        for_look.watch(reader)
        await look()
        for_look.stop(reader)
        report(
            "sqlite",
            beside,
            others,
            await median(claim_nothing, EMPTY_CLAIMS),
            f"{for_claim.count:,} steps",
            await median(look, EMPTY_CLAIMS),
            f"{for_look.count:,} steps",
        )
    finally:
        reader.close()
        await store.close()


async def beside_in_postgres(beside: Beside, others: int, dsn: str) -> None:
    """Measure and report on Postgres."""
    with schema_on(dsn) as schema:
        store = PostgresStore(dsn, schema=schema)
        await store.open()
        database = store._database  # pyright: ignore[reportPrivateUsage]
        connection = await database.connect(by_key=True)
        try:
            hand = await beside.leave_one(Scene(store, asyncio.sleep))
            if others:
                columns = [await _columns_of(connection, schema, table) for table in ("batch", "execution")]
                for statement in _copying(*columns):
                    numbers = f"generate_series(1, {others - 1}) AS n (i)"
                    await connection.execute(statement.format(s=f"{schema}.", numbers=numbers))
            else:
                await connection.execute(f"DELETE FROM {schema}.batch")
            for table in ("batch", "execution"):  # what autovacuum reads would count as well
                await connection.execute(f"ALTER TABLE {schema}.{table} SET (autovacuum_enabled = off)")
                await connection.execute(f"VACUUM ANALYZE {schema}.{table}")

            async def claim_nothing() -> None:
                assert not await claim(store, hand, beside.request)

            async def look() -> None:
                assert not await claimable(Session(database, connection), None, beside.request)

            await median(claim_nothing, 6)  # its statements are prepared by now
            await median(look, 6)
            for_claim = await _blocks_read(connection, schema, claim_nothing)
            for_look = await _blocks_read(connection, schema, look)
            report(
                "postgres",
                beside,
                others,
                await median(claim_nothing, EMPTY_CLAIMS),
                f"{for_claim:,.0f} blocks",
                await median(look, EMPTY_CLAIMS),
                f"{for_look:,.0f} blocks",
            )
        finally:
            await connection.close()
            await store.close()


_SQLITE_NUMBERS = "(WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n) n"
_POSITIONS = 1 << 32


def _copying(batch: Sequence[str], execution: Sequence[str]) -> tuple[str, str]:
    """Make the statements that copy the one batch and its document, as the store has written them, many times."""
    kept = ", ".join(name for name in batch if name not in ("key", "batch_id"))
    of_document = ", ".join(f"e.{name}" for name in execution if name not in ("key", "batch"))
    return (
        f"INSERT INTO {{s}}batch (batch_id, {kept}) SELECT 'copy-' || n.i, {kept} FROM {{s}}batch, {{numbers}}",
        f"INSERT INTO {{s}}execution (key, batch, {of_document.replace('e.', '')}) "
        f"SELECT b.key * {_POSITIONS} + 1, b.key, {of_document} FROM {{s}}batch b, {{s}}execution e "
        f"WHERE b.batch_id LIKE 'copy-%'",
    )


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]


async def _columns_of(connection: asyncpg.Connection, schema: str, table: str) -> list[str]:
    rows = await connection.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2", schema, table
    )
    return [name for (name,) in rows]


async def _blocks_read(connection: asyncpg.Connection, schema: str, work: Callable[[], Awaitable[object]]) -> float:
    """Count the blocks of batches and executions, and of their indexes, that this reads each time."""

    async def read_so_far() -> int:
        await asyncio.sleep(FLUSH_SECONDS)
        await work()
        blocks = await connection.fetchval(
            "SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit) FROM pg_statio_user_tables "
            "WHERE schemaname = $1 AND relname IN ('batch', 'execution')",
            schema,
        )
        return int(blocks)

    await read_so_far()  # with it, this session reports what it has read itself: of batches that it has copied
    before = await read_so_far()
    for _ in range(EMPTY_CLAIMS):
        await work()
    return (await read_so_far() - before) / (EMPTY_CLAIMS + 1)


# ---- ended -----------------------------------------------------------------------------------------------------------


class Explaining(Session):
    """Prints how each query reads the executions, and what it takes."""

    async def fetch(self, statement: str, *args: object) -> Sequence[asyncpg.Record]:
        explain = "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) "
        lines = [line for (line,) in await self.connection.fetch(explain + self.sql(statement), *args)]
        for number, line in enumerate(lines):
            if "execution_due" in line:
                print(f"     {line.strip()}\n       {lines[number + 1].strip()}")
        print(f"     {lines[-1].strip()}")
        return await super().fetch(statement, *args)


async def load(store: PostgresStore, scene: Scene, documents: int) -> None:
    record = scene.record("large", concurrency=100_000)
    assert await store.create(record) is None
    loader = WorkerId("loader")
    for first in range(0, documents, EACH):
        chunk = [NewDocument(number, f"document-{number}", b"input") for number in range(first, first + EACH)]
        await store.add(record.batch_id, loader, chunk)
    await store.control(record.batch_id, Seal(loader, documents))


async def claim(
    store: Store, hand: Hand, request: ClaimRequest, ended: Sequence[ExecutionSucceeded] = ()
) -> list[ExecutionSucceeded]:
    hand.number += 1
    committed = await store.commit(hand.worker_id, hand.number, ended, request)
    return [
        ExecutionSucceeded(taken.batch_id, taken.run, taken.position, taken.attempt, b"done")
        for taken in (claim.execution for claim in committed.claims)
    ]


async def milliseconds(store: PostgresStore, hand: Hand) -> float:
    """The median of claims of ten documents."""

    async def claim_ten() -> None:
        assert len(await claim(store, hand, TEN)) == 10

    return await median(claim_ten, TIMED)


async def behind_ended(dsn: str, schema: str, documents: int) -> None:
    """Measure and report claims behind documents that have ended."""
    store = PostgresStore(dsn, schema=schema)
    await store.open()
    database = store._database  # pyright: ignore[reportPrivateUsage]
    connection = await database.connect(by_key=True)
    try:
        await connection.execute(f"ALTER TABLE {schema}.execution SET (autovacuum_enabled = off)")
        scene = Scene(store, asyncio.sleep)
        await load(store, scene, documents + EACH)
        hand = await scene.worker(lease=3600)
        print(f"a claim of 10: {await milliseconds(store, hand):.2f} ms with nothing ended")
        ended: list[ExecutionSucceeded] = []
        began = time.perf_counter()
        for _ in range(documents // EACH):
            ended = await claim(store, hand, MANY, ended)
        await claim(store, hand, TEN, ended)
        rate = documents / (time.perf_counter() - began)
        print(f"{documents:,} documents claimed and ended, {rate:,.0f} a second")
        print(f"a claim of 10: {await milliseconds(store, hand):.2f} ms behind them")
        session = Explaining(database, connection)
        now = await session.connection.fetchval(f"SELECT {SERVER_TIME}")
        locked, batches, _ = await lock_open_batches(session, now, TEN, skip=False)
        await load_candidates(session, now, TEN, locked, batches)
    finally:
        await connection.close()
        await store.close()


# ---- all of them -----------------------------------------------------------------------------------------------------


async def run(dsn: str, figures: Sequence[str], *, quick: bool) -> None:
    """Measure and report what was asked for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "late" in figures:
            documents = DOCUMENTS // 4 if quick else DOCUMENTS
            await lateness("memory", MemoryStore(), documents)
            await lateness("sqlite", SQLiteStore(folder / "late.db"), documents)
            with schema_on(dsn) as schema:
                await lateness("postgres", PostgresStore(dsn, schema=schema), documents)
        for figure, situations in (("sleeping", [ASLEEP]), ("chosen", [BY_ID, BY_LABEL])):
            if figure in figures:
                for beside in situations:
                    for others in OTHERS[:-1] if quick else OTHERS:
                        await beside_in_sqlite(beside, others, folder)
                    for others in OTHERS[:-1] if quick else OTHERS:
                        await beside_in_postgres(beside, others, dsn)
        if "ended" in figures:
            with schema_on(dsn) as schema:
                await behind_ended(dsn, schema, 100_000 if quick else 1_000_000)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    all_figures = ("late", "sleeping", "chosen", "ended")
    parser.add_argument("figures", nargs="*", choices=[*all_figures, []], help="which; by default all")
    parser.add_argument("--quick", action="store_true", help="fewer documents and batches")
    arguments = parser.parse_args()
    logging.getLogger("durable_batches").setLevel(logging.ERROR)
    with server() as dsn:
        asyncio.run(run(dsn, arguments.figures or all_figures, quick=arguments.quick))


if __name__ == "__main__":
    main()
