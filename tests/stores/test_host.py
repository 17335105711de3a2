"""The host application's own transactions, which a submission joins: the same for each kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from shutil import copy2

import pytest
from tests.stores.hosts import ON_POSTGRES, ON_SQLITE, AsyncHost, Batches, Host, noting, ran, record_of
from tests.support import STAGES, everything, turns, within

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
    workflow,
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
def path(tmp_path: Path, migrated_file: Path) -> Path:
    return Path(copy2(migrated_file, tmp_path / "batches.db"))


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


@dataclass(frozen=True)
class Torn(Exception):
    """Of a class that takes no assignments."""

    page: int


@pytest.mark.parametrize("error", [FileNotFoundError("page 2"), Torn(2)], ids=["plain", "frozen"])
async def test_what_the_documents_raise_is_the_applications_own(error: Exception, batches: Batches, host: Host) -> None:
    def pages() -> Iterator[str]:
        yield from map(str, range(600))
        raise error

    await host.begin()
    with pytest.raises(type(error)) as caught:
        await host.submit(batches, pages(), batch_id="broken")
    assert caught.value is error
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


@workflow(STAGES, name="noting", version="2")
async def noting_later(document: str) -> str:
    return document


async def unfinished_batch(place: Place) -> str:
    """Submit a batch that no worker runs here."""
    async with BatchOrchestrator(noting_later, store=place.make_store(), max_in_flight=0) as batches:
        return await batches.submit(["b"], batch_id="unfinished")


async def begin_writing(batches: Batches, host: Host) -> None:
    """Begin a transaction that would be there, and write, without the submission."""
    await host.begin()
    await host.execute("CREATE TABLE host_orders (number int)")
    if isinstance(batches.worker.store, SQLiteStore):
        # Where Python's driver begins transactions, this does not begin one.
        await host.commit()
        await host.begin()
        await host.execute("INSERT INTO host_orders VALUES (1)")


async def test_to_wait_for_any_batch_within_a_transaction_that_locks_is_an_error(
    batches: Batches, host: Host, place: Place
) -> None:
    """On SQLite nobody else can write, though the submission itself has attached to what was there."""
    if not isinstance(host, AsyncHost):
        pytest.skip("it is in a transaction of another thread")
    unfinished = await unfinished_batch(place)
    await within(batches.run(["a"], batch_id="ended"))
    await begin_writing(batches, host)
    await host.submit(batches, ["never read"], batch_id=unfinished)
    # What has ended, and what is there to be read, need not be waited for.
    assert (await within(batches.result("ended"))).counts.succeeded == 1
    assert (await within(everything(batches.progress("ended"))))[-1].tag == "batch_completed"
    assert (await batches.snapshot(unfinished)).counts.total == 1
    assert len(await everything(batches.documents(unfinished))) == 1
    assert not await everything(batches.results(unfinished))
    if isinstance(batches.worker.store, SQLiteStore):
        await refused_within(batches, unfinished)
        await host.rollback()
        assert await batches.cancel(unfinished)
    else:
        # Others can write, and do.
        waiting = asyncio.create_task(batches.result(unfinished))
        assert await batches.cancel(unfinished)
        assert (await within(waiting)).counts.cancelled == 1
        await host.rollback()


async def refused_within(batches: Batches, unfinished: str) -> None:
    """Whatever would wait for the end of the transaction of this very task is refused at once."""
    waits: list[Callable[[], Awaitable[object]]] = [
        lambda: batches.result(unfinished),
        lambda: asyncio.create_task(batches.result(unfinished)),
        lambda: everything(batches.progress(unfinished)),
        lambda: everything(batches.watch(unfinished)),
        lambda: batches.cancel(unfinished),
        lambda: batches.submit(["c"]),
    ]
    for wait in waits:
        with pytest.raises(TransactionOpenError, match="nobody else can write"):
            await within(wait())
    # Another task, which this one has not begun, waits as ever: the transaction may be about to end.
    elsewhere = asyncio.create_task(batches.result(unfinished), context=Context())
    await turns(20)
    assert not elsewhere.done()
    elsewhere.cancel()
    await asyncio.wait([elsewhere])


async def test_a_submission_that_fails_leaves_the_lock_to_its_transaction(
    batches: Batches, host: Host, place: Place
) -> None:
    """Its savepoint is undone, and the lock stays: to wait for another batch is in vain as well."""
    if not (isinstance(host, AsyncHost) and isinstance(batches.worker.store, SQLiteStore)):
        pytest.skip("only SQLite locks out everybody")
    unfinished = await unfinished_batch(place)
    await begin_writing(batches, host)
    with pytest.raises(DuplicateDocumentError):
        await host.submit(batches, ["a", "a"], document_id=str)
    with pytest.raises(TransactionOpenError):
        await within(batches.result(unfinished))
    await host.rollback()
    assert await batches.cancel(unfinished)


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
