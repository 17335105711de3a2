"""The host application's own transactions, which a submission joins: the same for each kind of connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.stores.hosts import ON_POSTGRES, ON_SQLITE, AsyncHost, Batches, Host, noting, ran, record_of
from tests.support import within

from durable_batches import (
    BatchConfig,
    BatchExistsError,
    BatchNotFoundError,
    BatchOrchestrator,
    DuplicateDocumentError,
    PostgresStore,
    SQLiteStore,
    Store,
    SubmissionInProgressError,
    TransactionOpenError,
    Worker,
)
from durable_batches.lifecycle.states import BatchId


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class Place:
    """A database for a store, and one kind of application that uses it, too.

    Args:
        make_store: Makes a store of it.
        connect: Connects the application.
    """

    def __init__(self, make_store: Callable[[], Store], connect: Callable[[], Awaitable[Host]]) -> None:
        self.make_store = make_store
        self.connect = connect


@pytest.fixture(params=[*ON_SQLITE, *(pytest.param(kind, marks=pytest.mark.stores) for kind in ON_POSTGRES)])
def place(request: pytest.FixtureRequest, path: Path) -> Place:
    kind: str = request.param
    if kind in ON_POSTGRES:
        dsn: str = request.getfixturevalue("postgres_dsn")
        schema: str = request.getfixturevalue("migrated_schema")
        return Place(lambda: PostgresStore(dsn, schema=schema), lambda: ON_POSTGRES[kind](dsn))
    connect = ON_SQLITE[kind]
    return Place(lambda: SQLiteStore(path), lambda: connect(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batches.db"


@pytest.fixture
async def batches(place: Place) -> AsyncGenerator[Batches]:
    async with BatchOrchestrator(noting, store=place.make_store()) as entered:
        yield entered


@pytest.fixture
async def host(place: Place, batches: Batches) -> AsyncGenerator[Host]:
    made = await place.connect()
    yield made
    await made.close()


async def test_a_batch_is_seen_and_run_only_after_the_commit(batches: Batches, host: Host) -> None:
    await host.begin()
    batch_id = await host.submit(batches, ["a", "b"])
    with pytest.raises(BatchNotFoundError):
        await batches.state(batch_id)
    assert ran == []
    await host.commit()
    assert (await within(batches.result(batch_id))).counts.succeeded == 2
    assert sorted(ran) == ["a", "b"]


async def test_a_batch_is_rolled_back_with_the_transaction(batches: Batches, host: Host) -> None:
    await host.begin()
    batch_id = await host.submit(batches, ["a", "b"])
    await host.rollback()
    with pytest.raises(BatchNotFoundError):
        await batches.state(batch_id)
    # Its id is free again.
    assert (await within(batches.run(["c"], batch_id=batch_id))).counts.succeeded == 1
    assert ran == ["c"]


async def test_the_applications_own_rows_are_of_the_same_transaction(batches: Batches, host: Host) -> None:
    await host.begin()
    await host.execute("CREATE TABLE host_orders (number int)")
    await host.commit()
    await host.begin()
    try:
        await host.execute("INSERT INTO host_orders VALUES (1)")
        await host.submit(batches, ["a"], batch_id="rolled back")
        await host.rollback()
        await host.begin()
        await host.execute("INSERT INTO host_orders VALUES (2)")
        await host.submit(batches, ["a"], batch_id="committed")
        await host.execute("INSERT INTO host_orders VALUES (3)")
        await host.commit()
        await host.begin()
        assert await host.execute("SELECT number FROM host_orders ORDER BY number") == [2, 3]
    finally:
        await host.rollback()
        await host.begin()
        await host.execute("DROP TABLE host_orders")
        await host.commit()
    assert (await within(batches.result("committed"))).counts.succeeded == 1
    with pytest.raises(BatchNotFoundError):
        await batches.state("rolled back")


async def test_many_documents_are_one_transaction(batches: Batches, host: Host) -> None:
    await host.begin()
    batch_id = await host.submit(batches, (str(number) for number in range(1100)))
    await host.rollback()
    with pytest.raises(BatchNotFoundError):
        await batches.state(batch_id)
    await host.begin()
    batch_id = await host.submit(batches, (str(number) for number in range(1100)))
    await host.commit()
    assert (await batches.snapshot(batch_id)).counts.total == 1100
    await batches.cancel(batch_id)


async def test_what_fails_leaves_the_transaction_as_it_was(batches: Batches, host: Host) -> None:
    """Nothing of the submission is left, and the application goes on in the same transaction."""
    await host.begin()
    await host.submit(batches, ["a"], batch_id="before")
    with pytest.raises(DuplicateDocumentError):
        await host.submit(batches, ["a", "b", "a"], batch_id="broken", document_id=str)
    await host.submit(batches, ["c"], batch_id="after")
    await host.commit()
    for batch_id in ("before", "after"):
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
    with pytest.raises(BatchNotFoundError):
        await batches.state("broken")


async def test_what_the_documents_raise_is_the_applications_own(batches: Batches, host: Host) -> None:
    def pages() -> Iterator[str]:
        yield from map(str, range(600))
        raise FileNotFoundError("page 2")

    await host.begin()
    with pytest.raises(FileNotFoundError, match="page 2"):
        await host.submit(batches, pages(), batch_id="broken")
    submitted = await host.submit(batches, ["c"])
    await host.commit()
    assert (await within(batches.result(submitted))).counts.succeeded == 1
    with pytest.raises(BatchNotFoundError):
        await batches.state("broken")


async def test_a_batch_that_is_there_is_attached_to(batches: Batches, host: Host) -> None:
    await within(batches.run(["a"], batch_id="batch"))
    await host.begin()
    assert await host.submit(batches, ["b"], batch_id="batch") == "batch"
    with pytest.raises(BatchExistsError):
        await host.submit(batches, ["b"], batch_id="batch", if_exists="error")
    await host.commit()
    await host.begin()
    for _ in range(2):
        assert await host.submit(batches, ["b"], batch_id="new") == "new"
    await host.commit()
    assert (await within(batches.result("new"))).counts.total == 1
    assert ran == ["a", "b"]


async def test_labels_are_kept_with_every_character(batches: Batches, host: Host) -> None:
    await host.begin()
    batch_id = await host.submit(
        batches, ["a", "ü\x1f"], config=BatchConfig(metadata={"customer": "a\x00b", "\x00": "ü"})
    )
    await host.commit()
    result = await within(batches.result(batch_id))
    assert result.counts.succeeded == 2
    record = await batches.worker.store.batch(BatchId(batch_id))
    assert record is not None
    assert record.metadata == {"customer": "a\x00b", "\x00": "ü"}


async def test_to_wait_for_it_within_the_transaction_is_an_error(batches: Batches, host: Host) -> None:
    """Nobody runs it before the commit, for which the application would wait for ever."""
    await host.begin()
    batch_id = await host.submit(batches, ["a"])
    with pytest.raises(BatchNotFoundError) as caught:
        await within(batches.result(batch_id))
    if isinstance(host, AsyncHost):
        assert isinstance(caught.value, TransactionOpenError)
        with pytest.raises(TransactionOpenError):
            _ = [event async for event in batches.progress(batch_id)]
    await host.rollback()
    with pytest.raises(BatchNotFoundError) as gone:
        await batches.result(batch_id)
    assert not isinstance(gone.value, TransactionOpenError)


async def test_what_a_dead_submitter_left_is_replaced(batches: Batches, host: Host) -> None:
    """Within the transaction, which on SQLite keeps everybody else from writing."""
    await leave_half(batches.worker.store, "batch", "nobody")
    await host.begin()
    await host.submit(batches, ["a"], batch_id="batch")
    await host.commit()
    assert (await within(batches.result("batch"))).counts.succeeded == 1


async def test_what_a_live_submitter_loads_is_left_alone(batches: Batches, host: Host, place: Place) -> None:
    async with Worker(place.make_store(), max_in_flight=0) as other:
        await leave_half(batches.worker.store, "batch", other.worker_id)
        await host.begin()
        with pytest.raises(SubmissionInProgressError):
            await host.submit(batches, ["a"], batch_id="batch")
        await host.rollback()
        assert await batches.worker.store.batch(BatchId("batch")) is not None


async def leave_half(store: Store, batch_id: str, loader: str) -> None:
    assert await store.create(record_of(batch_id, loader)) is None
