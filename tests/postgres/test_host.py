"""The host application's own: its transactions, which a submission joins, and its engine, whose settings it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from tests.postgres.databases import execute
from tests.stores.hosts import Batches, noting, ran
from tests.support import opened, within

from durable_batches import (
    BatchNotFoundError,
    BatchOrchestrator,
    ConfigurationError,
    DuplicateDocumentError,
    MemoryStore,
    PostgresStore,
    SQLiteStore,
    Store,
    SubmissionInProgressError,
)
from durable_batches.stores import HostTransaction


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class Begin(Protocol):
    """Begins a transaction of the application's own, and commits it, or rolls it back."""

    def __call__(self, *, commit: bool = True) -> AbstractAsyncContextManager[HostTransaction]: ...


@pytest.fixture
async def engine(postgres_dsn: str) -> AsyncGenerator[AsyncEngine]:
    made = create_async_engine(postgres_dsn.replace("postgresql://", "postgresql+asyncpg://"))
    yield made
    await made.dispose()


@pytest.fixture(params=["connection", "session", "driver"])
def begin(request: pytest.FixtureRequest, engine: AsyncEngine, postgres_dsn: str) -> Begin:
    @asynccontextmanager
    async def connection(*, commit: bool = True) -> AsyncGenerator[Any]:
        async with engine.connect() as connection:
            transaction = await connection.begin()
            yield connection
            await (transaction.commit() if commit else transaction.rollback())

    @asynccontextmanager
    async def session(*, commit: bool = True) -> AsyncGenerator[Any]:
        async with AsyncSession(engine) as session:
            yield session
            await (session.commit() if commit else session.rollback())

    @asynccontextmanager
    async def driver(*, commit: bool = True) -> AsyncGenerator[Any]:
        connection = await asyncpg.connect(postgres_dsn)
        transaction = connection.transaction()
        await transaction.start()
        yield connection
        await (transaction.commit() if commit else transaction.rollback())
        await connection.close()

    kinds: dict[str, Begin] = {"connection": connection, "session": session, "driver": driver}
    return kinds[request.param]


@pytest.fixture
async def batches(postgres_dsn: str, migrated_schema: str) -> AsyncGenerator[Batches]:
    async with BatchOrchestrator(noting, store=PostgresStore(postgres_dsn, schema=migrated_schema)) as entered:
        yield entered


async def looked_for_work(batches: Batches) -> None:
    """Have its worker look for something to do, and wait until there is nothing."""
    with batches.worker.signals.scheduler.idle.listen() as idle:
        batches.worker.wake()
        await idle.next()


async def test_a_batch_is_seen_and_run_only_after_the_commit(batches: Batches, begin: Begin) -> None:
    async with begin() as connection:
        batch_id = await batches.submit(["a", "b"], connection=connection)
        await looked_for_work(batches)
        assert ran == []
        with pytest.raises(BatchNotFoundError):
            await batches.state(batch_id)
    result = await within(batches.result(batch_id))
    assert result.counts.succeeded == 2
    assert sorted(ran) == ["a", "b"]


async def test_a_batch_is_rolled_back_with_the_transaction(batches: Batches, begin: Begin) -> None:
    async with begin(commit=False) as connection:
        batch_id = await batches.submit(["a", "b"], connection=connection)
    await looked_for_work(batches)
    assert ran == []
    with pytest.raises(BatchNotFoundError):
        await batches.state(batch_id)
    # Its id is free again.
    assert (await within(batches.run(["c"], batch_id=batch_id))).counts.succeeded == 1


async def test_what_fails_leaves_the_transaction_as_it_was(batches: Batches, engine: AsyncEngine) -> None:
    """Nothing of the submission is left, and the application goes on in the same transaction."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE orders (number int) ON COMMIT PRESERVE ROWS"))
        await connection.execute(text("INSERT INTO orders VALUES (1)"))
        with pytest.raises(DuplicateDocumentError):
            await batches.submit(
                ["a", "b", "a"], batch_id="broken", document_id=lambda document: document, connection=connection
            )
        submitted = await batches.submit(["c"], batch_id="whole", connection=connection)
        assert (await connection.execute(text("SELECT count(*) FROM orders"))).scalar_one() == 1
    assert (await within(batches.result(submitted))).counts.succeeded == 1
    with pytest.raises(BatchNotFoundError):
        await batches.state("broken")


async def test_what_the_documents_raise_is_the_applications_own(batches: Batches, engine: AsyncEngine) -> None:
    def pages() -> Iterator[str]:
        yield "a"
        raise FileNotFoundError("page 2")

    async with engine.begin() as connection:
        with pytest.raises(FileNotFoundError, match="page 2"):
            await batches.submit(pages(), batch_id="broken", connection=connection)
        submitted = await batches.submit(["c"], connection=connection)
    assert (await within(batches.result(submitted))).counts.succeeded == 1
    with pytest.raises(BatchNotFoundError):
        await batches.state("broken")


@pytest.mark.parametrize("schema_is_there", [False, True])
async def test_a_connection_to_another_database_is_refused(
    batches: Batches, engine: AsyncEngine, postgres_dsn: str, migrated_schema: str, schema_is_there: bool
) -> None:
    """Also where that has such tables, as staging's and production's databases have."""
    name = f"other_{migrated_schema}"
    execute(postgres_dsn, f"CREATE DATABASE {name}")
    other = create_async_engine(engine.url.set(database=name))
    try:
        if schema_is_there:
            async with opened(PostgresStore(other, schema=migrated_schema)):
                pass
        async with other.begin() as connection:
            with pytest.raises(ConfigurationError, match="does not lead to the store's own database"):
                await batches.submit(["a"], connection=connection)
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    finally:
        await other.dispose()
        execute(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


async def test_an_id_that_somebody_elses_transaction_has_is_being_submitted(
    batches: Batches, engine: AsyncEngine, postgres_dsn: str, migrated_schema: str
) -> None:
    quick = PostgresStore(postgres_dsn, schema=migrated_schema, lock_timeout=timedelta(milliseconds=200))
    async with BatchOrchestrator(noting, store=quick, max_in_flight=0) as others:
        async with engine.begin() as connection:
            await batches.submit(["a"], batch_id="batch", connection=connection)
            with pytest.raises(SubmissionInProgressError):
                await others.submit(["b"], batch_id="batch")
            async with engine.begin() as second:
                await second.execute(text("SET LOCAL lock_timeout = '200ms'"))
                with pytest.raises(SubmissionInProgressError):
                    await others.submit(["b"], batch_id="batch", connection=second)
                assert (await second.execute(text("SELECT 1"))).scalar_one() == 1
        assert await others.submit(["b"], batch_id="batch") == "batch"
        assert (await within(batches.result("batch"))).counts.succeeded == 1


async def test_a_batch_that_is_there_is_attached_to(batches: Batches, begin: Begin) -> None:
    await within(batches.run(["a"], batch_id="batch"))
    async with begin() as connection:
        assert await batches.submit(["b"], batch_id="batch", connection=connection) == "batch"
    assert ran == ["a"]


async def test_it_wakes_a_worker_elsewhere(postgres_dsn: str, migrated_schema: str, engine: AsyncEngine) -> None:
    """With the commit, and not when somebody looks around next."""

    def store() -> PostgresStore:
        return PostgresStore(postgres_dsn, schema=migrated_schema)

    async with (
        BatchOrchestrator(noting, store=store()) as elsewhere,
        BatchOrchestrator(noting, store=store(), max_in_flight=0) as here,
    ):
        async with engine.begin() as connection:
            batch_id = await here.submit(["a"], connection=connection)
        assert (await within(elsewhere.result(batch_id), seconds=5)).counts.succeeded == 1


async def test_a_connection_that_is_in_no_transaction_is_refused(batches: Batches, postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    with pytest.raises(ConfigurationError, match="is in none"):
        await batches.submit(["a"], connection=connection)
    await connection.close()


async def test_what_is_no_connection_is_refused(batches: Batches) -> None:
    class Other:
        def in_transaction(self) -> bool:
            return True

    with pytest.raises(ConfigurationError, match="takes an AsyncConnection or AsyncSession"):
        await batches.submit(["a"], connection=Other())


@pytest.mark.parametrize(("kind", "said"), [("memory", "cannot join a transaction"), ("sqlite", "over aiosqlite, not")])
async def test_other_stores_refuse(kind: str, said: str, engine: AsyncEngine, tmp_path: Path) -> None:
    store: Store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "batches.db")
    assert store.capabilities.host_transactions is (kind == "sqlite")
    async with BatchOrchestrator(noting, store=store) as batches, engine.begin() as connection:
        with pytest.raises(ConfigurationError, match=said):
            await batches.submit(["a"], connection=connection)


# ---- its engine ------------------------------------------------------------------------------------------------------


async def test_an_engine_gives_its_settings_and_none_of_its_connections(
    postgres_dsn: str, migrated_schema: str
) -> None:
    """Its URL, `connect_args` and events; a pool of one, which the application has in use, is no obstacle."""
    dsn = postgres_dsn.replace("postgresql://", "postgresql+asyncpg://")
    settings = {"TimeZone": "Asia/Tokyo", "application_name": "the-host"}
    engine = create_async_engine(dsn, pool_size=1, max_overflow=0, connect_args={"server_settings": settings})
    made: list[object] = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def remember(*args: object) -> None:
        made.append(args)

    async with engine.connect() as busy:
        await busy.execute(text("SELECT 1"))
        store = PostgresStore(engine, schema=migrated_schema)
        assert ":***@" not in repr(store)
        async with BatchOrchestrator(noting, store=store) as batches:
            assert (await within(batches.run(["a"]))).counts.succeeded == 1
            assert await store._read(lambda session: session.value("SHOW TimeZone")) == "Asia/Tokyo"
            assert await store._read(lambda session: session.value("SHOW application_name")) == "the-host"
    assert len(made) > 3
    await engine.dispose()
