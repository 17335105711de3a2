"""The host application's transactions on a SQLite file: its own file, and a lock that keeps all others from writing."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine
from tests import support
from tests.stores.hosts import Batches, noting, record_of
from tests.support import eventually, within

from durable_batches import (
    BatchOrchestrator,
    ConfigurationError,
    MemoryStore,
    SQLiteStore,
    StoreNotFoundError,
    StoreUnavailableError,
    Worker,
)
from durable_batches.stores import WorkerId, WorkerRecord
from durable_batches.stores.sqlite import connection as sqlite_connection
from durable_batches.testing import ManualClock

LEASE = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batches.db"


@pytest.fixture
async def batches(path: Path) -> AsyncGenerator[Batches]:
    async with BatchOrchestrator(noting, store=SQLiteStore(path)) as entered:
        yield entered


@pytest.fixture
def idle(path: Path) -> Batches:
    """An orchestrator that does not run, of a store whose tables are there."""

    async def make() -> None:
        async with support.opened(SQLiteStore(path)):
            pass

    asyncio.run(make())
    return BatchOrchestrator(noting, store=SQLiteStore(path))


async def _ended(batches: Batches, batch_id: str) -> int:
    async with batches:
        return (await within(batches.result(batch_id))).counts.succeeded


# ---- code without an event loop --------------------------------------------------------------------------------------


def test_code_without_a_loop_submits_and_others_run_it(idle: Batches, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        within_its_own = idle.submit_sync(["a"], connection=connection)
    by_itself = idle.submit_sync(map(str, range(600)), batch_id="many")
    assert idle.submit_sync(["other"], batch_id="many") == by_itself == "many"
    assert asyncio.run(_ended(idle, within_its_own)) == 1
    assert asyncio.run(_ended(idle, by_itself)) == 600


def test_without_a_connection_any_store_is_opened_as_needed(path: Path) -> None:
    on_file = BatchOrchestrator(noting, store=SQLiteStore(path))
    in_memory = BatchOrchestrator(noting, store=MemoryStore())
    for batches in (on_file, in_memory):
        batch_id = batches.submit_sync(["a", "b"])
        assert asyncio.run(_ended(batches, batch_id)) == 2


async def test_where_a_loop_runs_it_is_refused(batches: Batches) -> None:
    with pytest.raises(ConfigurationError, match="would block the event loop"):
        batches.submit_sync(["a"])


def test_a_file_without_tables_is_left_as_it_is(path: Path) -> None:
    batches = BatchOrchestrator(noting, store=SQLiteStore(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (number)")
        with pytest.raises(StoreNotFoundError):
            batches.submit_sync(["a"], connection=connection)
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("orders",)]


def test_only_what_can_be_iterated_without_a_loop_is_taken(idle: Batches, path: Path) -> None:
    async def pages() -> AsyncGenerator[str]:
        yield "a"

    given: Any = pages()
    with closing(sqlite3.connect(path)) as connection, pytest.raises(ConfigurationError, match="needs an event loop"):
        idle.submit_sync(given, connection=connection)


# ---- connections that cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["other.db", ":memory:"])
async def test_another_file_is_refused(batches: Batches, path: Path, file: str) -> None:
    other = file if file == ":memory:" else path.with_name(file)
    async with aiosqlite.connect(other) as connection:
        with pytest.raises(ConfigurationError, match="does not lead to the store's own file"):
            await batches.submit(["a"], connection=connection)
        assert not connection.in_transaction


def test_another_file_is_refused_without_a_loop(idle: Batches, path: Path) -> None:
    with (
        closing(sqlite3.connect(path.with_name("other.db"))) as connection,
        pytest.raises(ConfigurationError, match="does not lead to the store's own file"),
    ):
        idle.submit_sync(["a"], connection=connection)


async def test_the_same_file_by_another_path_is_the_stores(batches: Batches, path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    (path.with_name("link.db-wal")).symlink_to(f"{path}-wal")
    async with aiosqlite.connect(link) as connection:
        batch_id = await batches.submit(["a"], connection=connection)
        await connection.commit()
    assert (await within(batches.result(batch_id))).counts.succeeded == 1


async def test_a_connection_that_commits_each_statement_is_refused(batches: Batches, path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", isolation_level="AUTOCOMMIT")
    async with aiosqlite.connect(path, isolation_level=None) as plain, engine.connect() as connection:
        for each in (plain, connection):
            with pytest.raises(ConfigurationError, match="is in none"):
                await batches.submit(["a"], connection=each)
    await engine.dispose()


def test_a_connection_that_commits_each_statement_is_refused_without_a_loop(idle: Batches, path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT")
    with closing(sqlite3.connect(path, isolation_level=None)) as plain, engine.connect() as connection:
        for each in (plain, connection):
            with pytest.raises(ConfigurationError, match="is in none"):
                idle.submit_sync(["a"], connection=each)
    engine.dispose()


async def test_a_closed_connection_is_refused(batches: Batches, path: Path) -> None:
    connection = await aiosqlite.connect(path)
    await connection.close()
    with pytest.raises(ConfigurationError, match="connection= is closed"):
        await batches.submit(["a"], connection=connection)


def test_a_closed_connection_is_refused_without_a_loop(idle: Batches, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.close()
    with pytest.raises(ConfigurationError, match="connection= is closed"):
        idle.submit_sync(["a"], connection=connection)


async def test_a_connection_of_another_kind_is_refused(batches: Batches, path: Path) -> None:
    class Other:
        def in_transaction(self) -> bool:
            return True

    with closing(sqlite3.connect(path)) as sync:
        for each in (Other(), sync):
            with pytest.raises(ConfigurationError, match="takes a connection of aiosqlite"):
                await batches.submit(["a"], connection=each)


def test_a_connection_of_another_kind_is_refused_without_a_loop(idle: Batches, path: Path) -> None:
    async def connect() -> aiosqlite.Connection:
        connection = await aiosqlite.connect(path)
        await connection.close()
        return connection

    with pytest.raises(ConfigurationError, match="takes a connection of sqlite3"):
        idle.submit_sync(["a"], connection=asyncio.run(connect()))


def test_a_store_in_memory_joins_no_transaction(path: Path) -> None:
    batches = BatchOrchestrator(noting, store=MemoryStore())
    with closing(sqlite3.connect(path)) as connection, pytest.raises(ConfigurationError, match="cannot join"):
        batches.submit_sync(["a"], connection=connection)


# ---- the lock --------------------------------------------------------------------------------------------------------


@contextmanager
def _held(path: Path) -> Generator[None]:
    """Another process's transaction."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_a_batch_that_is_there_leaves_no_lock_behind(idle: Batches, path: Path) -> None:
    idle.submit_sync(["a"], batch_id="batch")
    with closing(sqlite3.connect(path)) as connection:
        assert idle.submit_sync(["a"], batch_id="batch", connection=connection) == "batch"
        assert not connection.in_transaction


def test_a_lock_of_others_is_waited_for_as_long_as_the_connection_waits(idle: Batches, path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=0.01)) as connection:
        with _held(path), pytest.raises(StoreUnavailableError, match="a longer timeout"):
            idle.submit_sync(["a"], connection=connection)
        assert not connection.in_transaction
        idle.submit_sync(["a"], connection=connection)
        connection.rollback()


def test_a_transaction_that_has_read_before_others_wrote_is_told_so(idle: Batches, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        before = connection.execute("SELECT count(*) FROM batch").fetchall()
        idle.submit_sync(["a"])
        with pytest.raises(StoreUnavailableError, match="begin its transaction with BEGIN IMMEDIATE"):
            idle.submit_sync(["b"], connection=connection)
        # It goes on as it was.
        assert connection.in_transaction
        assert connection.execute("SELECT count(*) FROM batch").fetchall() == before
        connection.execute("COMMIT")


def test_where_sqlite_rolls_all_of_it_back_the_error_says_so(idle: Batches, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE orders (number)")
        with pytest.raises(StoreUnavailableError) as caught:
            idle.submit_sync(["a" * 1_000_000], connection=connection)
        said = getattr(caught.value, "__notes__", [])
        assert connection.in_transaction == (not said)
        assert said == ["SQLite has rolled back the application's transaction: begin it anew"]


async def test_one_warning_names_the_batch_whose_transaction_locks_the_file(
    batches: Batches, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_connection, "NOTICE_SECONDS", 0.01)

    def warnings() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "is locked by" in record.message]

    async with aiosqlite.connect(path) as connection, Worker(SQLiteStore(path), max_in_flight=0) as second:
        batch_id = await batches.submit(["a"], connection=connection)
        looking = asyncio.create_task(batches.worker.expire_dead_workers())
        await eventually(lambda: len(warnings()) > 0)
        # The second store of this process knows of no batch: it is like another process's.
        others = asyncio.create_task(second.expire_dead_workers())
        await eventually(lambda: len(warnings()) > 1)
        await connection.commit()
        await within(looking)
        await within(others)
    named = [record.__dict__["batch_ids"] for record in warnings()]
    assert sorted(named) == [[], [batch_id]]
    assert (await within(batches.result(batch_id))).counts.succeeded == 1


async def test_a_file_that_others_commit_to_is_busy_and_not_locked(
    batches: Batches, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits long for a turn while others have theirs is no news; and no lease was out of reach."""
    monkeypatch.setattr(sqlite_connection, "NOTICE_SECONDS", 0.01)
    looks: list[int] = []
    others_commit = True

    def version(_: sqlite3.Connection) -> int:
        looks.append(len(looks) if others_commit else -1)
        return looks[-1]

    monkeypatch.setattr(sqlite_connection, "_version", version)
    async with Worker(SQLiteStore(path), max_in_flight=0) as second:
        with _held(path):
            looking = asyncio.create_task(second.expire_dead_workers())
            await eventually(lambda: len(looks) > 6)
            assert "is locked by" not in caplog.text
            others_commit = False
            await eventually(lambda: "is locked by" in caplog.text)
        await within(looking)


def test_a_connection_sees_whether_others_have_committed(idle: Batches, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        before = sqlite_connection._version(connection)
        assert sqlite_connection._version(connection) == before
        idle.submit_sync(["a"])
        assert sqlite_connection._version(connection) != before


class Locked:
    """Two workers' stores on one file, whose lock is held while the leases run out."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.path = path

    def store(self) -> SQLiteStore:
        return SQLiteStore(self.path, clock=self.clock)

    async def register(self, store: SQLiteStore, name: str, lease: float = LEASE) -> WorkerId:
        record = WorkerRecord(WorkerId(name), "", "", 0, "", frozenset())
        await store.register(record, int(lease * 1_000_000))
        return record.worker_id


async def test_a_lease_does_not_run_out_while_nobody_can_renew_it(path: Path) -> None:
    locked = Locked(path)
    async with support.opened(locked.store()) as store:
        worker = await locked.register(store, "live")
        waiting = threading.Event()
        begun = store._lock_outs.asks

        def asks() -> float:
            waiting.set()
            return begun()

        store._lock_outs.asks = asks  # type: ignore[method-assign]
        with _held(path):
            looking = asyncio.create_task(store.expire())
            await asyncio.to_thread(waiting.wait)
            locked.clock.advance(2 * LEASE)
        assert not (await within(looking)).workers
        with closing(store.heart(worker)) as heart:
            assert await asyncio.to_thread(heart.beat)
        locked.clock.advance(LEASE / 2)
        assert not (await store.expire()).workers
        # Who does not renew it then is gone.
        locked.clock.advance(LEASE)
        assert (await store.expire()).workers == ["live"]


async def test_after_a_lock_only_leases_that_it_endangered_are_spared(path: Path) -> None:
    locked = Locked(path)
    async with support.opened(locked.store()) as store:
        await locked.register(store, "short")
        await locked.register(store, "long", 40 * LEASE)
        locked.clock.advance(45 * LEASE)
        asked = store._lock_outs.asks()
        locked.clock.advance(LEASE)
        store._lock_outs.has_waited(asked, in_vain=False)
        assert (await store.expire()).workers == ["long"], "a lock of a fortieth of its lease is no excuse"
        locked.clock.advance(1)
        assert (await store.expire()).workers == ["short"]


async def test_waits_in_vain_for_the_same_lock_add_up(path: Path) -> None:
    """A lease is longer than the time after which a wait is given up: it is spared nevertheless."""
    locked = Locked(path)
    async with support.opened(locked.store()) as store:
        await locked.register(store, "long", 20 * LEASE)
        for in_vain in [True] * 11 + [False]:
            asked = store._lock_outs.asks()
            locked.clock.advance(2 * LEASE)
            store._lock_outs.has_waited(asked, in_vain=in_vain)
        assert not (await store.expire()).workers
        locked.clock.advance(1)
        assert (await store.expire()).workers == ["long"]


async def test_who_comes_late_expires_nobody_at_once(path: Path) -> None:
    """It cannot know of a lock that was let go a moment ago."""
    locked = Locked(path)
    async with support.opened(locked.store()) as first:
        await locked.register(first, "worker")
        locked.clock.advance(2 * LEASE)
        async with support.opened(locked.store()) as second:
            assert not (await second.expire()).workers
            assert (await second.expire(dead=[WorkerId("worker")])).workers == ["worker"]


async def test_a_worker_that_is_locked_out_past_its_lease_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals fail as long as the file is locked; nobody else can expire it either."""
    monkeypatch.setattr(sqlite_connection, "BUSY_SECONDS", 0.02)
    clock = ManualClock()
    worker = Worker(SQLiteStore(path, clock=clock), lease=timedelta(seconds=LEASE), clock=clock)
    async with worker:
        begun = worker.worker_id
        with _held(path), worker.signals.lease.failed.listen() as failed:
            for _ in range(8):
                await eventually(lambda: clock.waiting_threads == 1)
                clock.advance(LEASE / 3)
                await within(failed.next())
            await eventually(lambda: clock.waiting_threads == 1)
        with worker.signals.lease.renewed.listen() as renewed:
            # It is tried again soon, and nobody is expired for a second.
            clock.advance(0.01)
            await within(renewed.next())
        assert worker.worker_id == begun


# ---- the application's engine ----------------------------------------------------------------------------------------


async def test_an_engine_gives_its_file_and_its_settings(path: Path) -> None:
    """In its URL, with `connect_args` and in an event; how commits are made durable is not taken over."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 0.03})

    @event.listens_for(engine.sync_engine, "connect")
    def connected(raw: Any, _: object) -> None:
        for pragma in ("cache_size = -4711", "mmap_size = 1048576", "synchronous = OFF", "foreign_keys = ON"):
            raw.execute(f"PRAGMA {pragma}")

    store = SQLiteStore(engine)
    assert store.path == path
    async with BatchOrchestrator(noting, store=store) as batches:
        async with engine.begin() as connection:
            batch_id = await batches.submit(["a"], connection=connection)
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
        assert store._writer is not None

        def read(connection: sqlite3.Connection) -> dict[str, int]:
            names = ("cache_size", "mmap_size", "synchronous", "foreign_keys", "temp_store")
            return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

        found = await store._writer.run(read)
        assert found == {
            "cache_size": -4711,
            "mmap_size": 1048576,
            "synchronous": 2,
            "foreign_keys": 0,
            "temp_store": 2,
        }
        with _held(path), pytest.raises(StoreUnavailableError, match=r"has been locked by another process for 0\.03 s"):
            await store.create(record_of("other", "nobody"))
    await engine.dispose()


async def test_an_engine_that_sets_nothing_changes_nothing(path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with support.opened(SQLiteStore(engine)) as store:
        assert store._settings.timeout_seconds is None
        assert list(store._settings.statements) == []
    await engine.dispose()


@pytest.mark.parametrize("form", ["file:{path}?uri=true", "file:{path}?mode=rwc&uri=true"])
def test_an_engine_may_name_its_file_by_a_uri(path: Path, form: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{form.format(path=path)}")
    assert SQLiteStore(engine).path == path


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "postgresql+asyncpg://host/db"])
def test_an_engine_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="a SQLiteStore needs"):
        SQLiteStore(create_async_engine(url))


def test_who_attaches_through_an_engine_makes_no_file(path: Path) -> None:
    async def attach() -> None:
        await SQLiteStore(create_async_engine(f"sqlite+aiosqlite:///{path}")).attach()

    with pytest.raises(StoreNotFoundError):
        asyncio.run(attach())
    assert not path.exists()
