"""The client: any store, any workflow's batches, no worker, none of the workflow's code, and nothing is created."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
from tests.conftest import StoreMaker
from tests.postgres.databases import execute
from tests.support import STAGES, Reading, Thinking, Writing, eventually, everything, moving, opened, turns, within

from durable_batches import (
    BatchClient,
    BatchConfig,
    BatchNotFoundError,
    BatchOrchestrator,
    ConfigurationError,
    DocumentFailure,
    MemoryStore,
    Pending,
    PostgresStore,
    RawDocument,
    ReadOnlyClientError,
    Results,
    RetryFailed,
    SchemaTooNewError,
    SchemaTooOldError,
    SQLiteStore,
    Stage,
    Store,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    Worker,
    Workflow,
    enter_stage,
    workflow,
)
from durable_batches.errors import WorkerNotRunningError
from durable_batches.stores import Attachable, BatchQuery, migrations
from durable_batches.stores.sqlite import connection as sqlite_connection
from durable_batches.stores.sqlite import reader as sqlite_reader
from durable_batches.testing import ManualClock

AWAY_SECONDS = 30.0


def held() -> tuple[Workflow[str, str, Reading | Thinking | Writing], asyncio.Event]:
    """A workflow whose documents wait for an event, in a stage of its own."""
    gate = asyncio.Event()

    @workflow(STAGES, name="held")
    async def run(document: str) -> str:
        enter_stage(Thinking)
        await gate.wait()
        if document == "bad":
            raise ValueError("not this one")
        return document.upper()

    return run, gate


def asks(client: BatchClient) -> list[Callable[[str], Awaitable[object]]]:
    """What returns at once."""
    return [client.snapshot, client.state, client.cancel, client.count_checkpoints]


@workflow(STAGES, name="shout")
async def shout(document: str) -> str:
    return document.upper()


# ---- what it sees --------------------------------------------------------------------------------------------------


async def test_a_batch_is_seen_from_its_first_to_its_last_event(open_store: StoreMaker) -> None:
    run, gate = held()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(
            ["a", "bad", "c"], document_id=str, config=BatchConfig(concurrency=2, metadata={"tenant": "t"})
        )
        async with BatchClient(open_store(None)) as client:

            async def both_think() -> bool:
                return (await client.snapshot(batch_id)).stages[1].current == 2

            await eventually(both_think)
            snapshot = await client.snapshot(batch_id)
            assert (snapshot.workflow, snapshot.version, snapshot.metadata) == ("held", "1", {"tenant": "t"})
            assert (snapshot.counts.running, snapshot.counts.pending) == (2, 1)
            assert snapshot.started_at is not None
            assert snapshot.ended_at is None
            # The earliest stage of an unfinished document; the third has entered none.
            assert isinstance(snapshot.state, Pending | Stage)

            (first, second, third) = await everything(client.documents(batch_id))
            worker = batches.worker.worker_id
            assert (first.document, first.status, first.stage, first.worker) == ('"a"', "running", "thinking", worker)
            assert (second.attempts, second.result, second.failure, second.activity) == (1, None, None, None)
            assert (third.document_id, third.status, third.worker, third.due) == ("c", "pending", None, None)

            recorded = await everything(client.events(batch_id))
            assert [event.seq for event in recorded] == list(range(1, recorded[-1].seq + 1))
            assert [event.seq for event in await everything(client.events(batch_id, after=2))] == [
                event.seq for event in recorded[2:]
            ]
            following = asyncio.create_task(everything(client.progress(batch_id, after=2)))
            watching = asyncio.create_task(everything(client.watch(batch_id, interval=timedelta(0))))
            await turns(10)
            gate.set()
            followed = await within(following)
            assert followed == await everything(client.events(batch_id, after=2))
            assert followed[-1].tag == "batch_completed"
            assert (await within(watching))[-1] == await client.snapshot(batch_id)
            assert (await client.snapshot(batch_id)).ended_at is not None
            assert (await client.state(batch_id)).tag == "completed"
            assert await client.count_checkpoints(batch_id) == 0

            failed = await everything(client.documents(batch_id, status="failed"))
            assert [document.failure for document in failed] == [
                DocumentFailure(
                    document_id="bad", error="not this one", error_type="ValueError", activity=None, attempts=1
                )
            ]
            (a, _, c) = await everything(client.documents(batch_id, payloads=False))
            assert (a.document, a.result, c.document, c.result) == (None, None, None, None)
            (a, c) = await everything(client.documents(batch_id, status="succeeded"))
            assert isinstance(a, RawDocument)
            assert (a.result, c.result, a.worker) == ('"A"', '"C"', None)


async def test_the_stage_is_told_without_the_code_that_has_it(open_store: StoreMaker) -> None:
    run, _ = held()
    async with BatchOrchestrator(run, store=open_store(None)) as batches, BatchClient(open_store(None)) as client:
        batch_id = await batches.submit(["a"])

        async def thinks() -> bool:
            return (await client.state(batch_id)).tag == "thinking"

        await eventually(thinks)
        assert await client.state(batch_id) == Stage(tag="thinking", done=0, total=1)
        assert await batches.state(batch_id) == Thinking(done=0, total=1)


async def test_a_document_that_waits_for_a_retry_says_until_when(open_store: StoreMaker) -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        raise ValueError("again")

    policy = RetryFailed(max_attempts=2, backoff=timedelta(hours=1))
    async with BatchOrchestrator(run, store=open_store(None)) as batches, BatchClient(open_store(None)) as client:
        batch_id = await batches.submit(["a"], config=BatchConfig(failure_policy=policy))

        async def waits() -> bool:
            return (await client.snapshot(batch_id)).counts.waiting == 1

        await eventually(waits)
        (document,) = await everything(client.documents(batch_id, status="waiting"))
        assert document.due is not None
        assert timedelta(minutes=50) < document.due - datetime.now(UTC) <= timedelta(hours=1)
        assert document.failure is not None
        assert document.failure.error == "again"
        assert document.worker is None


async def test_batches_of_all_workflows_are_listed_and_filtered(open_store: StoreMaker) -> None:
    run, _ = held()
    worker = Worker(open_store(None))
    others = BatchOrchestrator(run, worker=worker)
    async with BatchOrchestrator(shout, worker=worker) as batches, BatchClient(open_store(None)) as client:
        await within(batches.run(["x"], batch_id="1"))
        await others.submit(["x"], batch_id="2", config=BatchConfig(metadata={"tenant": "t"}))

        async def listed(**query: Any) -> list[str]:
            return [str(snapshot.batch_id) async for snapshot in client.list_batches(**query)]

        assert await listed() == ["2", "1"]
        assert await listed(workflow="shout") == ["1"]
        assert await listed(workflow="nobody's") == []
        assert await listed(states=["completed"]) == ["1"]
        assert await listed(metadata={"tenant": "t"}) == ["2"]
        assert await listed(created_before=datetime.now(UTC) - timedelta(hours=1)) == []
        with pytest.raises(ConfigurationError, match="give a tuple"):
            await listed(states="completed")


async def test_long_lists_and_batches_are_read_in_pages(open_store: StoreMaker) -> None:
    async with BatchOrchestrator(shout, store=open_store(None), max_in_flight=0) as batches:
        for number in range(205):
            await batches.submit(["x"], batch_id=str(number))
        batch_id = await batches.submit(map(str, range(450)), document_id=str)
        async with BatchClient(open_store(None)) as client:
            listed = [snapshot.batch_id async for snapshot in client.list_batches(workflow="shout")]
            documents = await everything(client.documents(batch_id))
    assert listed == [batch_id, *(str(number) for number in reversed(range(205)))]
    assert [document.document_id for document in documents] == [str(number) for number in range(450)]


# ---- what it does not do -------------------------------------------------------------------------------------------


async def test_no_worker_is_registered(open_store: StoreMaker) -> None:
    store = open_store(None)
    async with BatchOrchestrator(shout, store=open_store(None)) as batches, BatchClient(store) as client:
        await everything(client.list_batches())
        assert [row.worker_id for row in await store.workers()] == [batches.worker.worker_id]


@pytest.mark.parametrize("batch_id", ["nobody's", "", "\0", "x" * 100_000])
async def test_a_batch_that_is_not_there_is_said_to_be(open_store: StoreMaker, batch_id: str) -> None:
    async with BatchOrchestrator(shout, store=open_store(None)), BatchClient(open_store(None)) as client:
        reads: list[Callable[[str], AsyncIterator[object]]]
        reads = [client.documents, client.events, client.progress, client.watch]
        for read in reads:
            with pytest.raises(BatchNotFoundError):
                await everything(read(batch_id))
        for ask in asks(client):
            with pytest.raises(BatchNotFoundError):
                await ask(batch_id)


async def test_outside_of_its_block_it_says_so(open_store: StoreMaker) -> None:
    store = open_store(None)
    client = BatchClient(store)
    async with BatchOrchestrator(shout, store=open_store(None)) as batches:
        batch_id = (await batches.run(["x"])).batch_id
        with pytest.raises(WorkerNotRunningError, match="the client is not running"):
            await client.snapshot(batch_id)
        async with client, client:  # entering nests
            documents = client.documents(batch_id)
            assert (await anext(documents)).document_id == "0"
        async with opened(store):
            with pytest.raises(WorkerNotRunningError, match="the client is not running"):
                await anext(documents)
            with pytest.raises(WorkerNotRunningError, match="the client is not running"):
                await everything(client.progress(batch_id))
            with pytest.raises(WorkerNotRunningError, match="the client is not running"):
                await everything(client.list_batches())


async def test_followers_of_a_client_that_is_closed_are_told(open_store: StoreMaker) -> None:
    run, _ = held()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x"])
        async with BatchClient(open_store(None)) as client:
            with client.signals.waiting.listen() as waiting:
                following = asyncio.create_task(everything(client.progress(batch_id)))
                await waiting.next()
        with pytest.raises(WorkerNotRunningError):
            await within(following)


# ---- commands ------------------------------------------------------------------------------------------------------


async def test_a_batch_is_cancelled_from_outside(open_store: StoreMaker) -> None:
    run, _ = held()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x"])
        async with BatchClient(open_store(None)) as client:
            ended = asyncio.create_task(batches.result(batch_id))
            assert await client.cancel(batch_id, reason="enough")
            assert not await client.cancel(batch_id)
            assert (await client.state(batch_id)).tag == "cancelled"
        assert str(await within(ended)).endswith("was cancelled (enough): 0 of 1 documents succeeded, 1 cancelled")


async def test_a_client_that_only_reads_refuses_commands(open_store: StoreMaker) -> None:
    run, _ = held()
    async with BatchOrchestrator(run, store=open_store(None)) as batches:
        batch_id = await batches.submit(["x"])
        async with BatchClient(open_store(None), read_only=True) as client:
            with pytest.raises(ReadOnlyClientError, match="leave out read_only=True") as caught:
                await client.cancel(batch_id)
            assert (caught.value.code, caught.value.command) == ("read-only-client", "cancel")
            assert (await client.state(batch_id)).tag != "cancelled"


# ---- one store object for a client and a worker --------------------------------------------------------------------


async def test_a_client_and_a_worker_share_a_store(open_store: StoreMaker) -> None:
    async with BatchOrchestrator(shout, store=open_store(None)):
        pass
    store = open_store(None)
    async with BatchClient(store) as client:
        async with BatchOrchestrator(shout, store=store) as batches:
            batch_id = (await within(batches.run(["x"]))).batch_id
        assert (await client.state(batch_id)).tag == "completed"
    if not isinstance(store, MemoryStore):
        with pytest.raises(StoreUnavailableError, match="not open"):
            await store.batches(BatchQuery(), limit=1)


class Unattachable:
    """A store of before `Attachable`: everything but that."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name == "attach":
            raise AttributeError(name)
        return getattr(self._store, name)


async def test_a_store_that_cannot_be_attached_is_opened_and_not_for_reading_only() -> None:
    store: Any = Unattachable(MemoryStore())
    assert not isinstance(store, Attachable)
    async with BatchOrchestrator(shout, store=store) as batches, BatchClient(store) as client:
        batch_id = (await within(batches.run(["x"]))).batch_id
        assert (await client.state(batch_id)).tag == "completed"
    with pytest.raises(ConfigurationError, match="no attach"):
        BatchClient(store, read_only=True)


@pytest.mark.parametrize("store", [MemoryStore, object(), None, "batches.db"])
def test_what_is_no_store_is_refused(store: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no store"):
        BatchClient(store)
    with pytest.raises(ConfigurationError, match="read_only must be True or False"):
        BatchClient(MemoryStore(), read_only="yes")  # type: ignore[arg-type]


# ---- stores that are not there, or not as they have to be ----------------------------------------------------------


async def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for path in (tmp_path / "batches.db", tmp_path / "missing" / "batches.db"):
        with pytest.raises(StoreNotFoundError, match="there is no file") as caught:
            async with BatchClient(SQLiteStore(path)):
                pass
        assert str(path) in str(caught.value)
        assert caught.value.code == "store-not-found"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("schema", ["", "CREATE TABLE schema_version (version)", "CREATE TABLE batch (a)"])
async def test_a_file_without_the_stores_tables_is_left_as_it_is(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
        connection.execute(schema or "SELECT 1")
    before = path.read_bytes()
    with pytest.raises(StoreNotFoundError, match="none of the store's tables"):
        async with BatchClient(SQLiteStore(path)):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.db"]
    assert path.read_bytes() == before


async def test_a_schema_that_is_not_there_is_not_made(postgres_dsn: str, postgres_schema: str) -> None:
    for _ in range(2):
        with pytest.raises(StoreNotFoundError, match=postgres_schema):
            async with BatchClient(PostgresStore(postgres_dsn, schema=postgres_schema)):
                pass
    # Who makes a schema of a name that is there fails.
    execute(postgres_dsn, f'CREATE SCHEMA "{postgres_schema}"')
    with pytest.raises(StoreNotFoundError, match=postgres_schema):
        async with BatchClient(PostgresStore(postgres_dsn, schema=postgres_schema)):
            pass


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.stores)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[], Store], Callable[[str], None]]:
    """Opens a database of the test's own, and runs a statement there (`{s}`: the schema)."""
    if request.param == "sqlite":
        path = tmp_path / "batches.db"

        def change(statement: str) -> None:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute(statement.replace("{s}.", ""))
                connection.commit()

        return lambda: SQLiteStore(path), change
    dsn: str = request.getfixturevalue("postgres_dsn")
    schema: str = request.getfixturevalue("postgres_schema")
    return (
        lambda: PostgresStore(dsn, schema=schema),
        lambda statement: execute(dsn, statement.replace("{s}", f'"{schema}"')),
    )


Database = tuple[Callable[[], Store], Callable[[str], None]]


async def test_a_schema_that_lacks_a_migration_is_left_as_it_is(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _ = database
    async with opened(make()):
        pass
    scripts = migrations.newer_scripts

    def one_more(dialect: str, where: str, version: int, readable_since: str) -> list[tuple[int, str]]:
        return [*scripts(dialect, where, version, readable_since), (900, "CREATE TABLE too_much (a integer)")]

    monkeypatch.setattr(migrations, "newer_scripts", one_more)
    with pytest.raises(SchemaTooOldError, match="reads version 900; start a worker") as caught:
        async with BatchClient(make()):
            pass
    assert (caught.value.needed, caught.value.code) == (900, "schema-too-old")
    monkeypatch.undo()
    async with BatchClient(make()) as client:
        assert await everything(client.list_batches()) == []


async def test_a_schema_of_a_newer_library_is_refused_if_it_says_so(database: Database) -> None:
    make, change = database
    async with opened(make()):
        pass
    change("UPDATE {s}.schema_version SET version = 900")
    async with BatchClient(make()) as client:
        assert await everything(client.list_batches()) == []
    change("UPDATE {s}.schema_version SET readable_since = '900.1'")
    with pytest.raises(SchemaTooNewError, match="upgrade the library"):
        async with BatchClient(make()):
            pass


# ---- a file that nothing can be written beside ---------------------------------------------------------------------


@pytest.fixture
def unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in a folder in which no connection that reads can make a file; to root no mode forbids it."""
    path = tmp_path / "batches.db"
    connect = sqlite_connection.connect_for_reading

    def connect_for_reading(path: Path, *, immutable: bool = False, settings: Sequence[str] = ()) -> sqlite3.Connection:
        if not immutable and not path.with_name(path.name + "-shm").exists():
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CANTOPEN, "SQLITE_CANTOPEN"
            raise error
        return connect(path, immutable=immutable, settings=settings)

    monkeypatch.setattr(sqlite_reader, "connect_for_reading", connect_for_reading)

    def access(asked: object, _: int) -> bool:
        return asked == path

    monkeypatch.setattr("os.access", access)
    return path


def is_read_as_it_is(store: SQLiteStore) -> bool:
    """Whether this event loop reads its file without a log."""
    assert store._reader is not None
    return store._reader._open[asyncio.get_running_loop()].unchanged is not None


async def test_reading_a_file_that_nobody_has_open_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "batches.db"
    async with BatchOrchestrator(shout, store=SQLiteStore(path)) as batches:
        batch_id = (await within(batches.run(["x"]))).batch_id
    content = path.read_bytes()
    async with BatchClient(SQLiteStore(path)) as client:
        assert (await client.state(batch_id)).tag == "completed"
        assert [entry.name for entry in tmp_path.iterdir()] == ["batches.db"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["batches.db"]
    assert path.read_bytes() == content


async def test_a_follower_notices_the_first_commit_to_a_file_that_nobody_had_open(tmp_path: Path) -> None:
    path = tmp_path / "batches.db"
    async with BatchOrchestrator(shout, store=SQLiteStore(path), max_in_flight=0) as batches:
        batch_id = await batches.submit(["x"])
    async with BatchClient(store := SQLiteStore(path)) as client:
        with client.signals.waiting.listen() as waiting:
            following = asyncio.create_task(everything(client.progress(batch_id)))
            await waiting.next()
            assert is_read_as_it_is(store)
        async with BatchOrchestrator(shout, store=SQLiteStore(path)):
            assert (await within(following))[-1].tag == "batch_completed"
        assert not is_read_as_it_is(store)


async def test_a_file_that_nobody_writes_is_read_as_it_is_until_it_changes(unwritable: Path) -> None:
    async with BatchOrchestrator(shout, store=SQLiteStore(unwritable)) as batches:
        first = (await within(batches.run(["x"]))).batch_id
    async with BatchClient(store := SQLiteStore(unwritable), read_only=True) as client:
        assert (await client.state(first)).tag == "completed"
        assert is_read_as_it_is(store)
        assert store._reader is not None
        version = await store._reader.version()
        assert version == await store._reader.version()
        # Somebody with more rights.
        async with BatchOrchestrator(shout, store=SQLiteStore(unwritable)) as batches:
            second = (await within(batches.run(["x", "y"]))).batch_id
            assert await store._reader.version() != version
            assert (await client.snapshot(second)).counts.succeeded == 2
            assert not is_read_as_it_is(store)
        listed = [snapshot.batch_id async for snapshot in client.list_batches()]
        assert listed == [second, first]


async def test_a_log_that_cannot_be_read_is_no_reason_to_leave_out_its_commits(unwritable: Path) -> None:
    async with BatchOrchestrator(shout, store=SQLiteStore(unwritable)) as batches:
        await within(batches.run(["x"]))
        log = unwritable.with_name(unwritable.name + "-wal").read_bytes()
        content = unwritable.read_bytes()
    assert log
    unwritable.write_bytes(content)
    unwritable.with_name(unwritable.name + "-wal").write_bytes(log)
    with pytest.raises(StoreReadOnlyError, match="has commits in its log"):
        async with BatchClient(SQLiteStore(unwritable), read_only=True):
            pass


# ---- outages -------------------------------------------------------------------------------------------------------


class Away:
    """A store of any kind that can be away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("batch", "batches", "documents", "events", "wait"):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.away:
                self.refused += 1
                raise StoreUnavailableError("nobody answers")
            return await found(*args, **kwargs)

        return call


def as_store(store: Any) -> Store:
    """A store by its methods, which no checker sees."""
    assert isinstance(store, Attachable)
    assert isinstance(store, Store)
    return store


Read: TypeAlias = Callable[[Any, str], Awaitable[object]]


def outage_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "store" in record.getMessage()
    ]


READS: Final[dict[str, Read]] = {
    "progress": lambda batches, batch_id: everything(batches.progress(batch_id)),
    "events": lambda batches, batch_id: everything(batches.events(batch_id)),
    "watch": lambda batches, batch_id: everything(batches.watch(batch_id)),
    "documents": lambda batches, batch_id: everything(batches.documents(batch_id)),
    "list_batches": lambda batches, _: everything(batches.list_batches()),
}
TYPED_READS: Final[dict[str, Read]] = {
    **READS,
    "result": lambda batches, batch_id: batches.result(batch_id),
    "results": lambda batches, batch_id: everything(batches.results(batch_id)),
}


@asynccontextmanager
async def ended_batch(store: Store) -> AsyncGenerator[str]:
    """A batch that has ended, with a resolver and a failure, and its worker, which stays."""

    async def resolve(_: Results[str]) -> int:
        return 7

    @workflow(STAGES, name="resolved", resolver=resolve)
    async def run(document: str) -> str:
        if document == "bad":
            raise ValueError("bad")
        return document

    async with BatchOrchestrator(run, store=store) as batches:
        yield (await within(batches.run(["x", "bad"]))).batch_id


@pytest.mark.parametrize("name", READS)
async def test_a_reader_waits_from_its_first_look_on_while_the_store_is_away(
    open_store: StoreMaker, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ended_batch(open_store(None)) as batch_id:
        store, clock = Away(open_store(None)), ManualClock()
        async with BatchClient(as_store(store), clock=clock) as client:
            expected = await READS[name](client, batch_id)
            await waits_through_an_outage(store, clock, lambda: READS[name](client, batch_id), expected, caplog)
            store.away = True
            for ask in asks(client):
                with pytest.raises(StoreUnavailableError, match="nobody answers"):
                    await ask(batch_id)


@pytest.mark.parametrize("name", TYPED_READS)
async def test_so_does_an_orchestrators(open_store: StoreMaker, name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def resolve(_: Results[str]) -> int:
        return 7

    @workflow(STAGES, name="resolved", resolver=resolve)
    async def run(document: str) -> str:
        return document

    async with ended_batch(open_store(None)) as batch_id:
        store, clock = Away(open_store(None)), ManualClock()
        worker = Worker(as_store(store), max_in_flight=0, clock=clock)
        async with BatchOrchestrator(run, worker=worker) as batches:
            expected = await TYPED_READS[name](batches, batch_id)
            await waits_through_an_outage(store, clock, lambda: TYPED_READS[name](batches, batch_id), expected, caplog)


async def waits_through_an_outage(
    store: Away,
    clock: ManualClock,
    read: Callable[[], Awaitable[object]],
    expected: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.clear()
    began = clock.boot()
    store.away = True
    reading = asyncio.ensure_future(read())
    async with moving(clock, 0.5):
        await eventually(lambda: clock.boot() >= began + AWAY_SECONDS)
        assert not reading.done()
        assert store.refused > 3
        store.away = False
        assert await within(reading) == expected
        await eventually(lambda: len(outage_lines(caplog)) >= 2)
    lines = outage_lines(caplog)
    assert len(lines) == 2, lines
    assert lines[0].startswith("store unavailable: nobody answers; waiting: ")
    # The look-out for news may notice last, and then has nobody to look out for.
    assert lines[1].startswith(("store connection restored after ", "nothing waits for the store any more after "))


async def test_pages_go_on_where_they_were_when_the_store_went_away(open_store: StoreMaker) -> None:
    async with BatchOrchestrator(shout, store=open_store(None), max_in_flight=0) as batches:
        batch_id = await batches.submit(map(str, range(450)), document_id=str)
        store, clock = Away(open_store(None)), ManualClock()
        async with BatchClient(as_store(store), clock=clock) as client, moving(clock, 0.5):
            found: list[RawDocument] = []
            coming_back: list[asyncio.Task[None]] = []
            async for document in client.documents(batch_id):
                found.append(document)
                if len(found) == 200:
                    store.away = True
                    coming_back.append(asyncio.create_task(come_back(store)))
            assert [document.document_id for document in found] == [str(number) for number in range(450)]
            assert store.refused


async def come_back(store: Away) -> None:
    await eventually(lambda: store.refused > 2)
    store.away = False
