"""What a claim costs in Postgres behind a million documents that have ended, with nothing vacuumed.

    python -m benchmarks.claims [--documents N] [--quick]

The documents are claimed and ended as workers do it, by the store's own commits. Autovacuum is off, which is the
worst case: every old version of a row and every old entry of an index is still there. The plans are of the store's
own statements.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import asyncpg
from benchmarks.support.servers import schema_on, server

from durable_batches import PostgresStore
from durable_batches.lifecycle.commands import Seal
from durable_batches.lifecycle.facts import ExecutionSucceeded
from durable_batches.stores import ClaimRequest, NewDocument, WorkerId
from durable_batches.stores.postgres.commit.claim import load_candidates, lock_open_batches
from durable_batches.stores.postgres.connection.server_clock import SERVER_TIME
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.testing.conformance.scene import LETTERS, Hand, Scene

EACH = 5_000
TIMED = 50
TEN = ClaimRequest(frozenset({LETTERS}), 10, 0, 1_000, 1_000, 10)
MANY = ClaimRequest(frozenset({LETTERS}), EACH, 0, EACH, EACH, 10)


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
    store: PostgresStore, hand: Hand, request: ClaimRequest, ended: Sequence[ExecutionSucceeded] = ()
) -> list[ExecutionSucceeded]:
    hand.number += 1
    committed = await store.commit(hand.worker_id, hand.number, ended, request)
    return [
        ExecutionSucceeded(taken.batch_id, taken.run, taken.position, taken.attempt, b"done")
        for taken in (claim.execution for claim in committed.claims)
    ]


async def milliseconds(store: PostgresStore, hand: Hand) -> float:
    """The median of claims of ten documents."""
    taken: list[float] = []
    for _ in range(TIMED):
        began = time.perf_counter()
        claimed = await claim(store, hand, TEN)
        taken.append(time.perf_counter() - began)
        assert len(claimed) == 10
    return statistics.median(taken) * 1000


async def run(dsn: str, schema: str, documents: int) -> None:
    """Measure and report."""
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


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="a hundred thousand")
    arguments = parser.parse_args()
    with server() as dsn, schema_on(dsn) as schema:
        asyncio.run(run(dsn, schema, 100_000 if arguments.quick else arguments.documents))


if __name__ == "__main__":
    main()
