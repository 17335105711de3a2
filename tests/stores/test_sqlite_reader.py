"""The connection that reads a SQLite file: what was read while the file changed is read again, and a connection that is
of no use any more is replaced."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
import pytest
from tests.support import eventually, opened, within

from durable_batches import SQLiteStore, StoreUnavailableError
from durable_batches.stores.rows import Row
from durable_batches.stores.sqlite import reader as sqlite_reader
from durable_batches.stores.sqlite.reader import Reader
from durable_batches.stores.sqlite.reads import Select


def numbers(rows: Sequence[Row]) -> list[int]:
    return [row[0] for row in rows]


NUMBERS = Select("SELECT value FROM json_each('[1, 2]')", (), numbers)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A file that no process has open, and that was not changed just now."""
    path = tmp_path / "batches.db"
    async with opened(SQLiteStore(path)):
        pass
    os.utime(path, (1_900_000_000, 1_900_000_000))
    return path


@asynccontextmanager
async def reading(path: Path) -> AsyncGenerator[Reader]:
    reader = Reader(path)
    await reader.open()
    try:
        yield reader
    finally:
        await reader.close()


def connection_of(reader: Reader) -> aiosqlite.Connection | None:
    """The connection of this event loop."""
    opened = reader._open.get(asyncio.get_running_loop())
    return None if opened is None else opened.connection


def dawdling(reader: Reader, begun: threading.Event, go: threading.Event) -> None:
    """Give the connection of this event loop a function that lasts until it is told to go on."""
    connection = connection_of(reader)
    assert connection is not None

    def dawdle() -> bool:
        begun.set()
        return go.wait(30)

    connection._conn.create_function("dawdle", 0, dawdle)


def changing(monkeypatch: pytest.MonkeyPatch, changes: Callable[[int], bool]) -> None:
    """Have the file look changed at some of the looks, which are counted from 1."""
    look, looks, size = sqlite_reader._file, 0, 0

    def file(path: Path) -> sqlite_reader._File | None:
        nonlocal looks, size
        looks += 1
        size += changes(looks)
        found = look(path)
        return None if found is None else found._replace(size=found.size + size)

    monkeypatch.setattr(sqlite_reader, "_file", file)


async def test_what_was_read_while_the_file_changed_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reading(path) as reader:
        before = connection_of(reader)
        # The first look is before the read, the second behind it.
        changing(monkeypatch, lambda look: look == 2)
        assert await reader.read(NUMBERS) == [1, 2]
        assert connection_of(reader) is not before
        now = connection_of(reader)
        assert await reader.read(NUMBERS) == [1, 2]
        assert connection_of(reader) is now


async def test_a_file_that_changes_with_each_read_is_an_error_in_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(path) as reader:
        changing(monkeypatch, lambda _: True)
        with pytest.raises(StoreUnavailableError, match="changes each time that it is read"):
            await reader.read(NUMBERS)


async def test_an_error_while_the_file_changed_is_none_until_it_comes_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(path) as reader:
        before = reader._opened
        changing(monkeypatch, lambda look: look == 2)
        with pytest.raises(StoreUnavailableError, match="no such table"):
            await reader.read(NUMBERS._replace(statement="SELECT 1 FROM nowhere"))
        assert reader._opened == before + 1


async def test_after_an_error_the_file_is_opened_anew(path: Path) -> None:
    async with reading(path) as reader:
        before = await reader.version()
        with pytest.raises(StoreUnavailableError, match="no such table"):
            await reader.read(NUMBERS._replace(statement="SELECT 1 FROM nowhere"))
        assert connection_of(reader) is None
        assert await reader.read(NUMBERS) == [1, 2]
        assert await reader.version() != before, "what waits for changes has to look again"


async def test_a_connection_whose_thread_has_ended_is_replaced(path: Path) -> None:
    async with reading(path) as reader:
        connection = connection_of(reader)
        assert connection is not None
        thread = sqlite_reader._thread_of(connection)
        await connection.close()
        await eventually(lambda: not thread.is_alive())
        assert await reader.read(NUMBERS) == [1, 2]
        assert connection_of(reader) is not connection


async def test_many_reads_at_once_are_all_answered(path: Path) -> None:
    async with reading(path) as reader:
        assert await asyncio.gather(*(reader.read(NUMBERS) for _ in range(50))) == [[1, 2]] * 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_event_loop_that_is_closed_under_a_read_leaves_the_reads_of_others_alone(path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    async def read_for_long() -> None:
        dawdling(reader, begun, go)
        await reader.read(NUMBERS._replace(statement="SELECT dawdle()"))

    def leave_a_read() -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)  # of tasks that are never done
        loop.run_until_complete(reader.read(NUMBERS))
        abandoned.append(loop.create_task(read_for_long()))
        while not begun.is_set():
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    abandoned: list[asyncio.Task[None]] = []
    async with reading(path) as reader:
        await asyncio.to_thread(leave_a_read)
        reads = asyncio.gather(*(reader.read(NUMBERS) for _ in range(5)))
        asyncio.get_running_loop().call_soon(go.set)
        assert await within(reads) == [[1, 2]] * 5
    assert abandoned[0].done() is False


async def test_a_read_that_is_cancelled_has_ended_before_its_event_loop_may_close(path: Path) -> None:
    begun, go = threading.Event(), threading.Event()
    async with reading(path) as reader:
        dawdling(reader, begun, go)
        read = asyncio.create_task(reader.read(NUMBERS._replace(statement="SELECT dawdle()")))
        await asyncio.to_thread(begun.wait, 30)
        read.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not read.done(), "the answer of its thread would come to an event loop that may be gone"
        go.set()
        await within(asyncio.wait([read]))
        assert read.cancelled()
        assert await reader.read(NUMBERS) == [1, 2]


async def test_connections_of_closed_event_loops_are_closed(path: Path) -> None:
    async with reading(path) as reader:
        for _ in range(3):
            await asyncio.to_thread(lambda: asyncio.run(reader.read(NUMBERS)))
        mine = asyncio.get_running_loop()
        assert len(reader._open) == 2, "its own, and that of the last one"
        threads = [sqlite_reader._thread_of(opened.connection) for opened in reader._open.values()]
        assert mine in reader._open
    assert reader._open == {}
    assert not any(thread.is_alive() for thread in threads)


async def test_a_reader_that_is_closed_says_so(path: Path) -> None:
    async with reading(path) as reader:
        pass
    with pytest.raises(StoreUnavailableError, match="was closed while it was in use"):
        await reader.read(NUMBERS)
