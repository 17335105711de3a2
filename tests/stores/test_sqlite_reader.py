"""The connection that reads a SQLite file: what was read while the file changed is read again, and a connection that is
of no use any more is replaced."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support import eventually, opened

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
        before = reader._connection
        # The first look is before the read, the second behind it.
        changing(monkeypatch, lambda look: look == 2)
        assert await reader.read(NUMBERS) == [1, 2]
        assert reader._connection is not before
        now = reader._connection
        assert await reader.read(NUMBERS) == [1, 2]
        assert reader._connection is now


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
        assert reader._connection is None
        assert await reader.read(NUMBERS) == [1, 2]
        assert await reader.version() != before, "what waits for changes has to look again"


async def test_a_connection_whose_thread_has_ended_is_replaced(path: Path) -> None:
    async with reading(path) as reader:
        connection = reader._connection
        assert connection is not None
        thread = sqlite_reader._thread_of(connection)
        await connection.close()
        await eventually(lambda: not thread.is_alive())
        assert await reader.read(NUMBERS) == [1, 2]
        assert reader._connection is not connection


async def test_many_reads_at_once_are_all_answered(path: Path) -> None:
    async with reading(path) as reader:
        assert await asyncio.gather(*(reader.read(NUMBERS) for _ in range(50))) == [[1, 2]] * 50


async def test_a_reader_that_is_closed_says_so(path: Path) -> None:
    async with reading(path) as reader:
        pass
    with pytest.raises(StoreUnavailableError, match="was closed while it was in use"):
        await reader.read(NUMBERS)
