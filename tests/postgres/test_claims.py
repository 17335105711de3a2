"""What a claim reads: as little behind thousands of documents that have ended as on an empty batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from tests.postgres.databases import execute, rows_of
from tests.support import opened

from durable_batches import BatchId, FailurePolicy, PostgresStore, RetryFailed
from durable_batches.lifecycle.facts import Fact
from durable_batches.stores import ClaimRequest
from durable_batches.stores.postgres.commit.claim import claimable, load_candidates, lock_open_batches, next_due
from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.testing.conformance.scene import LETTERS, Hand, Scene
from durable_batches.testing.conformance.sleeping import put_to_sleep

ENDED = 6_000
EACH = 500
FAR_AHEAD = 4_000_000_000_000_000


class ExplainingSession(Session):
    """Notes what each query reads, as the server counts it."""

    __slots__ = ("blocks", "scans")

    def __init__(self, database: Database, connection: Any) -> None:
        super().__init__(database, connection)
        self.blocks = 0
        self.scans: set[str] = set()

    async def fetch(self, statement: str, *args: object) -> Sequence[Any]:
        explain = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) "
        (row,) = await self.connection.fetch(explain + self.sql(statement), *args)
        plan = json.loads(row[0])[0]["Plan"]
        self.blocks += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self._note_scans(plan)
        return await super().fetch(statement, *args)

    async def value(self, statement: str, *args: object) -> Any:
        return (await self.fetch(statement, *args))[0][0]

    def _note_scans(self, node: dict[str, Any]) -> None:
        if node.get("Relation Name") == "execution":
            self.scans.add(f"{node['Node Type']} {node.get('Index Name', '')}")
        for inner in node.get("Plans", []):
            self._note_scans(inner)


async def read_by_a_claim(store: PostgresStore) -> ExplainingSession:
    """What the next claim of ten documents reads; they are left where they are."""
    database = store._database
    connection = await database.connect(by_key=True)
    try:
        session = ExplainingSession(database, connection)
        request = ClaimRequest(frozenset({LETTERS}), 10, 0, 100, 100, 10)
        locked, batches, skipped = await lock_open_batches(session, FAR_AHEAD, request, skip=False)
        assert skipped == 0
        (candidates,) = await load_candidates(session, FAR_AHEAD, request, locked, batches)
        assert len(candidates.executions) == 10
        return session
    finally:
        await connection.close()


async def end(hand: Hand, store: PostgresStore, documents: int) -> None:
    """Claim and end this many documents, as workers do."""
    reports: list[Fact] = []
    request = ClaimRequest(frozenset({LETTERS}), EACH, 0, EACH, EACH, 0)
    for _ in range(documents // EACH):
        hand.number += 1
        committed = await store.commit(hand.worker_id, hand.number, reports, request)
        assert len(committed.claims) == EACH
        reports = [hand.succeeded(claim) for claim in committed.claims]
    hand.number += 1
    await store.commit(hand.worker_id, hand.number, reports, None)


async def test_a_look_for_work_costs_nothing_beside_batches_that_sleep(postgres_dsn: str, migrated_schema: str) -> None:
    async with opened(PostgresStore(postgres_dsn, schema=migrated_schema)) as store:
        scene = Scene(store, asyncio.sleep)
        hand = await scene.worker(lease=3600)
        blocks: list[int] = []
        for batches in (2, 18):
            await put_to_sleep(scene, hand, batches)
            blocks.append(await read_by_a_look(store))
        assert blocks[1] <= blocks[0] + 3


async def read_by_a_look(store: PostgresStore) -> int:
    """How many blocks a look for work reads that finds none."""
    connection = await store._database.connect(by_key=True)
    try:
        await connection.execute(f"VACUUM ANALYZE {store._database.quoted}.batch")
        session = ExplainingSession(store._database, connection)
        assert not await claimable(session, None, ClaimRequest.of_workflows([LETTERS]))
        return session.blocks
    finally:
        await connection.close()


async def test_a_claim_by_id_costs_nothing_beside_the_batches_of_others(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """Counted in blocks that the server reads, for the look for a claim and for the claim's batches."""
    async with opened(PostgresStore(postgres_dsn, schema=migrated_schema)) as store:
        scene = Scene(store, asyncio.sleep)
        named = await scene.batch(3)
        request = Hand.request(1, batches=[named])
        blocks: list[int] = []
        for others in (500, 5_000):
            execute(postgres_dsn, *copies(postgres_dsn, migrated_schema, of=named, number=others))
            blocks.append(await read_by_a_choice(store, request))
        # The indexes may have become one block deeper.
        assert blocks[1] <= blocks[0] + 12


def copies(dsn: str, schema: str, *, of: str, number: int) -> list[str]:
    """Make the statements that copy a batch and its documents, as the store has written them: much faster."""

    def columns(table: str, *without: str) -> list[str]:
        found = rows_of(
            dsn,
            "SELECT column_name FROM information_schema.columns "
            f"WHERE table_schema = '{schema}' AND table_name = '{table}'",
        )
        return [row["column_name"] for row in found if row["column_name"] not in without]

    batch = ", ".join(columns("batch", "key", "batch_id"))
    execution = columns("execution", "key", "batch")
    return [
        f"INSERT INTO {schema}.batch (batch_id, {batch}) SELECT 'copy-{number}-' || n.i, {batch} "
        f"FROM {schema}.batch, generate_series(1, {number}) AS n (i) WHERE batch_id = '{of}'",
        f"INSERT INTO {schema}.execution (key, batch, {', '.join(execution)}) "
        f"SELECT b.key * {1 << 32} + e.key % {1 << 32}, b.key, {', '.join(f'e.{name}' for name in execution)} "
        f"FROM {schema}.batch b, {schema}.execution e JOIN {schema}.batch o ON o.key = e.batch "
        f"WHERE b.batch_id LIKE 'copy-{number}-%' AND o.batch_id = '{of}'",
    ]


async def read_by_a_choice(store: PostgresStore, request: ClaimRequest) -> int:
    """How many blocks a claim from one batch reads to find it, and a look for it."""
    connection = await store._database.connect(by_key=True)
    try:
        for table in ("batch", "execution"):
            await connection.execute(f"VACUUM ANALYZE {store._database.quoted}.{table}")
        session = ExplainingSession(store._database, connection)
        _, (batch,), _ = await lock_open_batches(session, FAR_AHEAD, request, skip=False)
        assert request.batches == frozenset([batch.batch_id])
        assert await claimable(session, None, request)
        assert not await claimable(session, None, request._replace(batches=frozenset({BatchId("none")})))
        await next_due(session, FAR_AHEAD, request)
        return session.blocks
    finally:
        await connection.close()


async def fail_and_end(hand: Hand, store: PostgresStore, documents: int) -> None:
    """Claim this many documents and fail them, and then claim their retries, which are due at once, and end them."""
    request = ClaimRequest(frozenset({LETTERS}), EACH, 0, EACH, EACH, 0)
    for _ in range(documents // EACH):
        facts: list[Fact] = []
        for attempt in (1, 2):
            hand.number += 1
            claims = (await store.commit(hand.worker_id, hand.number, facts, request)).claims
            assert {claim.execution.attempt for claim in claims} == {attempt}
            assert len(claims) == EACH
            facts = [hand.failed(claim) if attempt == 1 else hand.succeeded(claim) for claim in claims]
        hand.number += 1
        await store.commit(hand.worker_id, hand.number, facts, None)


async def test_a_claim_reads_no_more_behind_thousands_of_retries_that_have_ended(
    postgres_dsn: str, postgres_schema: str
) -> None:
    policy = RetryFailed(max_attempts=3, backoff=timedelta(0))
    await reads_no_more_behind(
        postgres_dsn, postgres_schema, ENDED // 2, fail_and_end, policy=policy, front=["woken_due", "woken_key"]
    )


async def test_a_claim_reads_no_more_behind_thousands_of_documents_that_have_ended(
    postgres_dsn: str, postgres_schema: str
) -> None:
    before = await reads_no_more_behind(postgres_dsn, postgres_schema, ENDED, end, front=["from_due", "from_key"])
    assert before.scans == {
        f"{scan} {index}"
        for scan in ("Index Only Scan", "Index Scan")
        for index in ("execution_due", "execution_isolated")
    }


async def reads_no_more_behind(
    dsn: str,
    schema: str,
    documents: int,
    work: Callable[[Hand, PostgresStore, int], Awaitable[None]],
    *,
    front: Sequence[str],
    policy: FailurePolicy | None = None,
) -> ExplainingSession:
    """Check that a claim reads as much as before once so many documents have ended; return what it read before."""
    async with opened(PostgresStore(dsn, schema=schema)) as store:
        # Nothing cleans up meanwhile: every version of a row and of an index entry is still there.
        execute(dsn, f'ALTER TABLE "{schema}".execution SET (autovacuum_enabled = off)')
        scene = Scene(store, asyncio.sleep)
        hand = await scene.worker(lease=3600)
        await scene.batch(documents + 100, concurrency=10_000, policy=policy)
        before = await read_by_a_claim(store)
        await work(hand, store, documents)
        after = await read_by_a_claim(store)
        assert after.scans == before.scans
        assert after.blocks <= before.blocks + 20

        # The same without the front, so that it is seen to be what does it.
        execute(dsn, f'UPDATE "{schema}".batch SET {", ".join(f"{column} = 0" for column in front)}')
        without = await read_by_a_claim(store)
        assert without.blocks > after.blocks + 100
        return before
