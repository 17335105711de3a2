"""What is particular to SQLite: the file, its settings, its processes, and what may be wrong with it."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from tests import support
from tests.support import eventually, turns, unmeasured, within

from durable_batches import (
    ConfigurationError,
    SchemaTooNewError,
    SQLiteStore,
    StoreCorruptError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from durable_batches.errors import FactRejectedError
from durable_batches.lifecycle.commands import Cancel
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.records import ClaimRequest, NewDocument
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores import BatchQuery, migrations
from durable_batches.stores.sqlite import connection as sqlite_connection
from durable_batches.stores.sqlite.claims import is_claimable, load_candidates, next_due
from durable_batches.stores.sqlite.reads import Select
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import LEASE, LETTERS, Scene
from durable_batches.testing.conformance.sleeping import put_to_sleep
from durable_batches.version import VERSION

T = TypeVar("T")

MEGABYTE: Final = 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Größe #1?.db"


def opened(path: Path, clock: ManualClock | None = None) -> AbstractAsyncContextManager[SQLiteStore]:
    return support.opened(SQLiteStore(path, clock=clock or ManualClock()))


@pytest.fixture
async def scene(path: Path) -> AsyncIterator[Scene]:
    clock = ManualClock()

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)

    async with opened(path, clock) as store:
        yield Scene(store, pass_time)


async def on_writer(store: object, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run something on the connection that the store writes with."""
    assert isinstance(store, SQLiteStore)
    assert store._writer is not None
    return await store._writer.run(work)


async def on_reader(store: object, statement: str) -> object:
    """Execute something on the connection that the store reads with."""
    assert isinstance(store, SQLiteStore)
    assert store._reader is not None
    return await store._reader.read(Select(statement, (), list))


def pragma(name: str) -> Callable[[sqlite3.Connection], Any]:
    return lambda connection: connection.execute(f"PRAGMA {name}").fetchone()[0]


async def filled(path: Path, *, documents: int = 200) -> None:
    """A database of some size, closed."""
    async with opened(path) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        await scene.batch([NewDocument(position, f"{position}", bytes(500)) for position in range(documents)])


# ---- settings ------------------------------------------------------------------------------------------------------


async def test_commits_are_synced_before_they_are_acknowledged(scene: Scene) -> None:
    full = 2
    assert await on_writer(scene.store, pragma("journal_mode")) == "wal"
    assert await on_writer(scene.store, pragma("synchronous")) == full
    assert isinstance(scene.store, SQLiteStore)
    heart = scene.store.heart((await scene.worker()).worker_id)
    try:
        assert heart.beat()
        connection = heart._connection
        assert connection is not None
        assert connection.execute("PRAGMA synchronous").fetchone() == (full,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        heart.close()


async def test_a_document_costs_few_statements(scene: Scene) -> None:
    """What a batch does not use adds no statement to its commits."""
    await scene.batch(2)
    hand = await scene.worker()
    statements: list[str] = []

    async def counted(*facts: Fact, claim: ClaimRequest | None = None) -> list[str]:
        statements.clear()
        await scene.store.commit(hand.worker_id, hand.number + 1, facts, claim)
        hand.number += 1
        return [" ".join(statement.split()[:2]) for statement in statements]

    first = (await hand.claim(1))[0]
    await on_writer(scene.store, lambda connection: connection.set_trace_callback(statements.append))
    assert await counted(hand.recorded(first, "a", stage=0), hand.recorded(first, "b", stage=0)) == [
        *("BEGIN IMMEDIATE", "UPDATE worker", "SELECT key,"),
        *("INSERT INTO", "INSERT INTO", "COMMIT"),
    ]
    assert await counted(hand.entered(first, 0)) == [
        *("BEGIN IMMEDIATE", "UPDATE worker", "SELECT key,"),
        *("WITH new", "INSERT INTO", "UPDATE batch", "COMMIT"),
    ]
    assert await counted(hand.succeeded(first)) == [
        *("BEGIN IMMEDIATE", "UPDATE worker", "SELECT key,", "SELECT key,"),
        *("UPDATE execution", "INSERT INTO", "INSERT INTO", "UPDATE batch", "COMMIT"),
    ]


NOT_YET: Final = 1_800_000_000_000_000


async def test_a_look_for_work_costs_nothing_beside_batches_that_sleep(scene: Scene, path: Path) -> None:
    """Counted in steps of SQLite's virtual machine."""
    steps: list[int] = []
    hand = await scene.worker(lease=3_600)

    def step() -> int:
        steps[-1] += 1
        return 0

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT 1 FROM batch").fetchall()  # the schema is read once
        connection.set_progress_handler(step, 1)
        for batches in (2, 18):
            await put_to_sleep(scene, hand, batches)
            steps.append(0)
            assert not is_claimable(NOT_YET, ClaimRequest.of_workflows([LETTERS])).on(connection)
    assert steps[0] == steps[1] > 0


async def test_a_claim_by_id_costs_nothing_beside_the_batches_of_others(scene: Scene, path: Path) -> None:
    """Counted in steps of SQLite's virtual machine, for the claim and for the look for one."""
    steps: list[int] = []
    hand = await scene.worker(lease=3_600)

    def step() -> int:
        steps[-1] += 1
        return 0

    named = await scene.batch(3)
    request = hand.request(1, batches=[named])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT 1 FROM batch").fetchall()  # the schema is read once
        connection.set_progress_handler(step, 1)
        for others in (2, 18):
            for _ in range(others):
                await scene.batch(1)
            steps.append(0)
            keys, candidates = load_candidates(connection, NOT_YET, request)
            assert list(keys) == [named]
            assert len(candidates) == 1
            assert next_due(connection, NOT_YET, request) is None
            assert is_claimable(NOT_YET, request).on(connection)
            assert not is_claimable(NOT_YET, hand.request(batches=[BatchId("none")])).on(connection)
    assert steps[0] == steps[1] > 0


async def test_the_reading_connection_cannot_write(scene: Scene) -> None:
    with pytest.raises(StoreReadOnlyError):
        await on_reader(scene.store, "DELETE FROM batch")
    # Whatever the connection is told: the file is opened for reading.
    await on_reader(scene.store, "PRAGMA query_only = OFF")
    with pytest.raises(StoreReadOnlyError):
        await on_reader(scene.store, "DELETE FROM batch")


async def test_the_log_stays_bounded_and_goes_with_the_store(path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    async with opened(path) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        await scene.batch(1)
        hand = await scene.worker(lease=1_000)
        claim = await hand.take()
        largest = 0
        for number in range(64):
            await hand.commit(hand.recorded(claim, f"{number}", os.urandom(MEGABYTE)))
            largest = max(largest, log.stat().st_size)
    assert path.stat().st_size > 64 * MEGABYTE
    assert largest <= 32 * MEGABYTE, "the log must be folded into the file as it grows"
    assert not log.exists()


# ---- several processes ---------------------------------------------------------------------------------------------

WORK = """
import asyncio, os, sys
from durable_batches import SQLiteStore
from durable_batches.lifecycle.commands import Seal
from durable_batches.lifecycle.records import WorkerId
from durable_batches.stores import BatchQuery
from durable_batches.testing.conformance.scene import Scene

async def main(path, name, processes):
    store = SQLiteStore(path)
    await store.open()
    scene = Scene(store, asyncio.sleep)
    batch_id = await scene.load(scene.record(f"batch-{name}", concurrency=5), 10)
    await store.control(batch_id, Seal(WorkerId("loader"), 10))
    hand = await scene.worker(f"worker-{name}")
    number = done = 0
    claims, completed = [], BatchQuery(states=["completed"])
    while claims or len(await store.batches(completed, limit=100)) < int(processes):
        facts = [hand.recorded(claim, "key") for claim in claims] + [hand.succeeded(claim) for claim in claims]
        number += 1
        committed = await store.commit(hand.worker_id, number, facts, hand.request(3))
        assert not committed.refused, committed.refused
        done += len(claims)
        claims = committed.claims
        if not claims:
            await asyncio.sleep(0.02)
    await store.leave(hand.worker_id)
    await store.close()
    os.write(1, f"{done}\\n".encode())

path, processes = sys.argv[1:]
waiting, go = os.pipe()
for name in range(int(processes)):
    if os.fork() == 0:
        os.close(go)
        # Until all of them are there.
        os.read(waiting, 1)
        asyncio.run(main(path, name, processes))
        sys.exit()
os.close(waiting)
os.close(go)
sys.exit(any([os.wait()[1] for _ in range(int(processes))]))
"""
"""Forks its processes, before any of them has used the library, and lets all of them go on at the same moment."""
PROCESSES: Final = 8


@pytest.mark.processes
async def test_processes_share_a_file_from_its_first_moment(path: Path) -> None:
    """They all open a file that is not there yet, and then commit to it, and none ever hears of a lock."""
    command = [sys.executable, "-c", WORK, str(path), str(PROCESSES)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    counts = [int(line) for line in done.stdout.splitlines()]
    assert (len(counts), sum(counts)) == (PROCESSES, 10 * PROCESSES)
    async with opened(path) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        listed = await store.batches(BatchQuery(), limit=100)
        assert [record.state for record in listed] == ["completed"] * PROCESSES
        for record in listed:
            await scene._check(record.batch_id, record)
            assert await store.count_checkpoints(record.batch_id) == 10
        assert await on_writer(
            store, lambda connection: connection.execute("SELECT * FROM schema_version").fetchall()
        ) == [(2, "0.2.0", VERSION)]


async def test_a_file_that_another_process_reads_is_waited_for_before_its_log_is_switched(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself does not wait then, nor when two make the file at the same moment."""
    connect = sqlite3.connect
    statements: list[str] = []

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(statements.append)
        return connection

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (a)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM theirs").fetchall()
        monkeypatch.setattr(sqlite3, "connect", traced)
        store = SQLiteStore(path)
        opening = asyncio.create_task(store.open())
        await eventually(lambda: bool(statements))
        await turns(50)
        assert not opening.done()
        assert statements == ["PRAGMA journal_mode = WAL"]
        other.execute("COMMIT")
        await within(opening)
        await store.close()


async def test_wait_notices_another_process_at_its_next_look(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as store, opened(path, clock) as other:
        batch_id = await Scene(other, lambda _: asyncio.sleep(0)).batch(1)
        waiting = asyncio.create_task(store.wait({batch_id: 1}, work=(), timeout=3_600_000_000))
        await eventually(lambda: clock.waiting > 0)
        assert not waiting.done()
        await other.control(batch_id, Cancel("request", ""))
        clock.advance(0.1)
        await asyncio.wait_for(waiting, 10)


async def test_a_transaction_that_stands_still_is_an_error_in_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_connection, "BUSY_SECONDS", 0.05)
    async with opened(path) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        claim = await hand.take()
        heart = store.heart(hand.worker_id)
        with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(heart):
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked by another process") as caught:
                await hand.commit(hand.succeeded(claim))
            assert str(path) in str(caught.value)
            with pytest.raises(StoreUnavailableError, match="locked by another process"):
                heart.beat()
            assert await store.batch(batch_id) is not None, "reading does not wait for writers"
            other.execute("ROLLBACK")
            assert heart.beat()
        await hand.report(hand.succeeded(claim))


# ---- the schema ----------------------------------------------------------------------------------------------------


async def test_the_schema_says_its_version(scene: Scene) -> None:
    found = await on_writer(
        scene.store, lambda connection: connection.execute("SELECT * FROM schema_version").fetchall()
    )
    assert found == [(2, "0.2.0", VERSION)]


async def test_opening_again_migrates_nothing(path: Path) -> None:
    await filled(path)
    content = path.read_bytes()
    async with opened(path):
        pass
    assert path.read_bytes() == content


def set_schema(path: Path, version: int, readable_since: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE schema_version SET version = ?, readable_since = ?, library = '9.0.0'", (version, readable_since)
        )


MAJOR, MINOR, PATCH = map(int, VERSION.split(".")[:3])


@pytest.mark.parametrize(
    "readable_since",
    [f"{MAJOR}.{MINOR}.{PATCH + 1}", f"{MAJOR}.{MINOR + 1}.0", f"{MAJOR + 1}.0", f"{MAJOR + 10}.0.0"],
)
async def test_a_newer_schema_is_refused(path: Path, readable_since: str) -> None:
    await filled(path)
    set_schema(path, 99, readable_since)
    with pytest.raises(SchemaTooNewError) as caught:
        async with opened(path):
            pass
    assert (caught.value.readable_since, caught.value.version) == (readable_since, VERSION)
    assert str(path) in str(caught.value)
    assert "upgrade" in str(caught.value)


async def test_a_newer_schema_that_is_readable_is_used(path: Path) -> None:
    await filled(path)
    set_schema(path, 99, "0.0.9")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE batch ADD COLUMN added_later TEXT")
        connection.execute("ALTER TABLE execution ADD COLUMN added_later TEXT")
    async with opened(path) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        batch_id = await scene.sealed(scene.record("new", workflow=("new", "1")), 2)
        hand = await scene.worker()
        await hand.report(*[hand.succeeded(claim) for claim in await hand.claim(2, workflows=[("new", "1")])])
        assert (await scene.look(batch_id)).state == "completed"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(99,)]


async def test_versions_are_compared_as_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(path)
    monkeypatch.setattr(migrations, "VERSION", "0.10.0")
    set_schema(path, 99, "0.9.0")
    async with opened(path):
        pass
    # One in development has what its release will have.
    monkeypatch.setattr(migrations, "VERSION", "0.10.0.dev0")
    set_schema(path, 99, "0.10.0")
    async with opened(path):
        pass
    set_schema(path, 99, "0.11.0")
    with pytest.raises(SchemaTooNewError):
        async with opened(path):
            pass


async def test_tables_of_the_application_are_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE batch (mine TEXT)")
        connection.execute("INSERT INTO batch VALUES ('kept')")
    with pytest.raises(StoreUnavailableError, match="table batch already exists") as caught:
        async with opened(path):
            pass
    assert str(path) in str(caught.value)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM batch").fetchall() == [("kept",)]
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("batch",)]


# ---- nothing stays behind ------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_stays(path: Path) -> Iterator[None]:
    threads = set(threading.enumerate())
    yield
    gc.collect()
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not {name for name in left if name.startswith("durable-batches")}
    descriptors = Path("/proc/self/fd")
    if descriptors.exists():
        targets = [os.readlink(entry) for entry in descriptors.iterdir() if entry.is_symlink()]
        assert not [target for target in targets if path.name in target]


@pytest.mark.usefixtures("nothing_stays")
async def test_closing_leaves_no_thread_and_no_connection(path: Path) -> None:
    before = set(threading.enumerate())
    async with opened(path) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        await scene.batch(1)
        heart = store.heart((await scene.worker()).worker_id)
        assert heart.beat()
        heart.close()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("durable-batches")}, (
        "the threads have ended when close() returns, not some time after"
    )
    assert not path.with_name(path.name + "-wal").exists()
    assert not path.with_name(path.name + "-shm").exists()


@pytest.mark.usefixtures("nothing_stays")
async def test_failing_to_open_leaves_nothing(path: Path) -> None:
    path.write_bytes(b"no database" * 1_000)
    for _ in range(3):
        with pytest.raises(StoreCorruptError):
            async with opened(path):
                pass


@pytest.mark.usefixtures("nothing_stays")
async def test_failing_to_open_for_reading_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, *, immutable: bool = False, settings: Sequence[str] = ()) -> sqlite3.Connection:
        raise sqlite3.OperationalError("no")

    monkeypatch.setattr("durable_batches.stores.sqlite.reader.connect_for_reading", fail)
    with pytest.raises(StoreUnavailableError):
        async with opened(path):
            pass


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("moment", [0, 1, 4, 20, 100, 500])
async def test_a_cancelled_open_leaves_nothing(path: Path, moment: int) -> None:
    store = SQLiteStore(path)
    opening = asyncio.create_task(store.open())
    await turns(moment)
    opening.cancel()
    try:
        await opening
    except asyncio.CancelledError:
        with pytest.raises(StoreUnavailableError, match="not open"):
            await store.batches(BatchQuery(), limit=1)
    else:
        await store.close()


async def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    store = SQLiteStore(path)
    with pytest.raises(StoreUnavailableError, match="not open"):
        await store.batches(BatchQuery(), limit=1)
    await store.open()
    await store.close()
    with pytest.raises(StoreUnavailableError, match="not open"):
        await store.create(Scene(store, lambda _: asyncio.sleep(0)).record())
    await store.close()  # once too often is harmless


async def test_a_cancelled_commit_is_seen_through(scene: Scene) -> None:
    batch_id = await scene.batch(1)
    hand = await scene.worker()
    claim = await hand.take()
    facts = [hand.succeeded(claim)]
    commit = asyncio.create_task(scene.store.commit(hand.worker_id, 2, facts))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    assert (await scene.look(batch_id)).state == "completed"
    again = await scene.store.commit(hand.worker_id, 2, facts)
    assert not again.refused
    await scene.check()


# ---- where the file is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [":memory:", ""])
def test_a_database_without_a_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="MemoryStore"):
        SQLiteStore(name)


async def test_the_file_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its folder does not change databases."""
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("batches.db")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    await store.open()
    try:
        hand = await Scene(store, lambda _: asyncio.sleep(0)).worker()
        monkeypatch.chdir(elsewhere)
        heart = store.heart(hand.worker_id)
        with closing(heart):
            assert heart.beat()
    finally:
        await store.close()
    assert not list(elsewhere.iterdir())


async def test_a_boot_ends_the_leases_of_before(path: Path) -> None:
    """The boot clock begins anew; a lease that has not begun yet by it was given before."""
    before, after = ManualClock(), ManualClock()
    before.advance(1_000_000)
    async with opened(path, before) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        await scene.batch(1)
        await (await scene.worker("old")).take()
    async with opened(path, after) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        hand = await scene.worker("new")
        assert (await store.expire()).workers == ["old"]
        await hand.take()


async def test_the_wall_clock_does_not_move_leases(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as store:
        scene = Scene(store, lambda _: asyncio.sleep(0))
        await scene.worker()
        clock.jump(10 * LEASE)
        assert not (await store.expire()).workers
        clock.jump(-20 * LEASE)
        clock.advance(LEASE)
        assert len((await store.expire()).workers) == 1


# ---- what may be wrong ---------------------------------------------------------------------------------------------


async def test_a_full_disk_loses_nothing(scene: Scene, path: Path) -> None:
    batch_id = await scene.batch(2)
    hand = await scene.worker()
    claim, other = await hand.claim(2)
    pages = await on_writer(scene.store, pragma("page_count"))
    await on_writer(scene.store, pragma(f"max_page_count = {pages}"))
    before, events = await scene.look(batch_id), await scene.tags(batch_id)
    big = hand.recorded(claim, "big", os.urandom(MEGABYTE))
    for _ in range(2):
        with pytest.raises(StoreFullError) as caught:
            await hand.commit(hand.succeeded(other), big)
        assert str(path) in str(caught.value)
    assert (await scene.look(batch_id), await scene.tags(batch_id)) == (before, events)
    assert not await scene.checkpoints(batch_id)
    assert not await on_writer(scene.store, lambda connection: connection.in_transaction)
    await on_writer(scene.store, pragma("max_page_count = 1000000"))
    # Under the same number, since nothing was written.
    await hand.report(hand.succeeded(other), big)
    assert (await scene.checkpoints(batch_id))[0].payload == big.payload


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb"])
async def test_what_cannot_be_stored_is_refused_whole(scene: Scene, path: Path, value: str) -> None:
    batch_id = await scene.batch(2)
    hand = await scene.worker()
    claim, other = await hand.claim(2)
    before = await scene.look(batch_id)
    with pytest.raises(FactRejectedError) as caught:
        await hand.commit(hand.succeeded(other), hand.recorded(claim, value))
    assert str(path) in str(caught.value)
    assert value not in str(caught.value)
    assert await scene.look(batch_id) == before
    await hand.report(hand.succeeded(other))


@pytest.mark.parametrize(
    "content", [b"This is no database. " * 1_000, b"\0" * 8_192, b"SQLite format 3\0" + b"x" * 5_000]
)
async def test_what_is_no_database_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError) as caught:
        async with opened(path):
            pass
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def read_everything(path: Path) -> None:
    async with opened(path) as store:
        for record in await store.batches(BatchQuery(), limit=10):
            await store.documents(record.batch_id, limit=1_000)
            await store.events(record.batch_id, after=0, limit=1_000)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
async def test_a_truncated_file_is_called_damaged(path: Path, kept: float) -> None:
    await filled(path)
    size = path.stat().st_size
    os.truncate(path, int(size * kept))
    with pytest.raises(StoreCorruptError, match=r"damaged|not a SQLite database") as caught:
        await read_everything(path)
    assert str(path) in str(caught.value)


async def test_damage_in_the_middle_is_found_when_it_is_read(path: Path) -> None:
    await filled(path)
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * (path.stat().st_size - 3 * 4096))
    with pytest.raises(StoreCorruptError, match="damaged") as caught:
        await read_everything(path)
    assert str(path) in str(caught.value)


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be opened") as caught:
        async with opened(tmp_path):
            pass
    assert str(tmp_path) in str(caught.value)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "batches.db"
    with pytest.raises(StoreUnavailableError, match="check that its folder exists") as caught:
        async with opened(path):
            pass
    assert str(path) in str(caught.value)
    assert not path.parent.exists()


OPEN = """
import asyncio, os, sys
from durable_batches import DurableBatchesError, SQLiteStore
from durable_batches.testing.conformance.scene import Scene

async def main(path, somewhere):
    # Once with all rights: what is imported late may be where only they lead to.
    async with asyncio.timeout(30):
        store = SQLiteStore(somewhere)
        await store.open()
        await store.close()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    store = SQLiteStore(path)
    try:
        await store.open()
        # SQLite opens what it can only read; the first write tells.
        await Scene(store, asyncio.sleep).worker()
    except DurableBatchesError as error:
        print(type(error).__name__, error.code, error)
    finally:
        await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def open_as_nobody(path: Path, somewhere: Path) -> str:
    """Open it as a user with no rights but those of all users (root has every right, whatever the mode says)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OPEN,
        str(path),
        str(somewhere),
        env=unmeasured(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert not errors
    return output.decode()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_a_file_that_is_read_only_is_said_to_be(shared_folder: Path, tmp_path: Path, folder_mode: int) -> None:
    path = shared_folder / "batches.db"
    await filled(path)
    path.chmod(0o444)
    shared_folder.chmod(folder_mode)
    try:
        answer = await open_as_nobody(path, tmp_path / "other.db")
        assert answer.startswith("StoreReadOnlyError store-read-only"), answer
        assert str(path) in answer
    finally:
        shared_folder.chmod(0o777)


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_a_folder_that_cannot_be_written_is_said_to_be(shared_folder: Path, tmp_path: Path) -> None:
    path = shared_folder / "batches.db"
    shared_folder.chmod(0o555)
    try:
        answer = await open_as_nobody(path, tmp_path / "other.db")
        assert answer.startswith("StoreUnavailableError store-unavailable"), answer
        assert str(path) in answer
    finally:
        shared_folder.chmod(0o777)


@pytest.mark.usefixtures("warm_interpreters")
@pytest.mark.processes
async def test_a_file_that_cannot_be_read_is_said_to_be(shared_folder: Path, tmp_path: Path) -> None:
    path = shared_folder / "batches.db"
    await filled(path)
    path.chmod(0)
    answer = await open_as_nobody(path, tmp_path / "other.db")
    assert answer.startswith("StoreUnavailableError store-unavailable"), answer
    assert str(path) in answer


async def test_the_file_is_made_with_the_users_own_mode(path: Path) -> None:
    before = os.umask(0o077)
    try:
        async with opened(path):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
