"""Commands are answered by the ids of their requests, from a table, for a week."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from tests.postgres.databases import execute, rows_of
from tests.support import opened

from durable_batches import BatchId, MemoryStore, PostgresStore, SQLiteStore
from durable_batches.lifecycle.commands import Discard
from durable_batches.lifecycle.records import RequestRecord, WorkerId
from durable_batches.stores.columns import REQUESTS_A_COMMAND
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene

WEEK: Final = 7 * 24 * 3600


class Stage(NamedTuple):
    """A store, and what is in its table of requests."""

    scene: Scene
    clock: ManualClock
    put: Callable[[BatchId, str, int, bool], None]
    """Write a row: of a batch, an id, of so many seconds ago, applied or not."""
    ids: Callable[[], list[str]]


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.stores)])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    clock = ManualClock()

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)

    def at(ago: int) -> int:
        return clock.now() - ago * 1_000_000

    def answer(applied: bool) -> str:
        return json.dumps({"applied": applied})

    if request.param == "memory":
        memory = MemoryStore(clock=clock)
        async with opened(memory):

            def put(batch_id: BatchId, name: str, ago: int, applied: bool) -> None:
                row = RequestRecord(batch_id, name, at(ago), answer(applied))
                memory._batches[batch_id].requests[name] = row

            def ids() -> list[str]:
                return sorted(name for batch in memory._batches.values() for name in batch.requests)

            yield Stage(Scene(memory, pass_time), clock, put, ids)
    elif request.param == "sqlite":
        path = tmp_path / "batches.db"
        async with opened(SQLiteStore(path, clock=clock)) as store:

            def put(batch_id: BatchId, name: str, ago: int, applied: bool) -> None:
                with closing(sqlite3.connect(path)) as connection, connection:
                    connection.execute(
                        "INSERT INTO request SELECT key, ?, ?, ? FROM batch WHERE batch_id = ?",
                        (name, at(ago), answer(applied), batch_id),
                    )

            def ids() -> list[str]:
                with closing(sqlite3.connect(path)) as connection:
                    return [name for (name,) in connection.execute("SELECT id FROM request ORDER BY id")]

            yield Stage(Scene(store, pass_time), clock, put, ids)
    else:
        dsn, schema = request.getfixturevalue("postgres_dsn"), request.getfixturevalue("postgres_schema")
        async with opened(PostgresStore(dsn, schema=schema, clock=clock)) as server:

            def put(batch_id: BatchId, name: str, ago: int, applied: bool) -> None:
                execute(
                    dsn,
                    f"INSERT INTO {schema}.request SELECT key, '{name}', {at(ago)}, '{answer(applied)}' "
                    f"FROM {schema}.batch WHERE batch_id = '{batch_id}'",
                )

            def ids() -> list[str]:
                return [row["id"] for row in rows_of(dsn, f"SELECT id FROM {schema}.request ORDER BY id")]

            yield Stage(Scene(server, pass_time), clock, put, ids)


async def test_an_answer_is_that_of_the_first_time(stage: Stage) -> None:
    """Whatever has become of the batch meanwhile."""
    batch_id = await stage.scene.batch(1)
    stage.put(batch_id, "refused", 60, False)
    record = await stage.scene.look(batch_id)
    assert not (await stage.scene.cancel(batch_id, "refused")).applied
    assert await stage.scene.look(batch_id) == record
    stage.put(batch_id, "done", 60, True)
    assert (await stage.scene.cancel(batch_id, "done")).applied
    assert await stage.scene.look(batch_id) == record


async def test_what_is_answered_is_kept(stage: Stage) -> None:
    batch_id = await stage.scene.batch(1)
    await stage.scene.cancel(batch_id, "first")
    await stage.scene.cancel(batch_id, "second")
    await stage.scene.cancel(batch_id, "second")
    assert stage.ids() == ["first", "second"]


async def test_after_a_week_a_request_is_a_new_one(stage: Stage) -> None:
    """The rows of older ones go with the commands that come then."""
    batch_id, other = await stage.scene.batch(1), await stage.scene.batch(1)
    stage.put(batch_id, "kept", WEEK, False)
    stage.put(batch_id, "old", WEEK + 1, False)
    assert not (await stage.scene.cancel(batch_id, "kept")).applied
    assert (await stage.scene.cancel(batch_id, "old")).applied
    assert stage.ids() == ["kept", "old"]
    await stage.scene.pass_time(1)
    assert (await stage.scene.cancel(other, "new")).applied
    # A row has just become too old: the command is looked at anew, and refused, since the batch has ended.
    assert not (await stage.scene.cancel(batch_id, "kept")).applied
    assert stage.ids() == ["kept", "new", "old"]


async def test_a_command_deletes_not_too_many(stage: Stage) -> None:
    if isinstance(stage.scene.store, MemoryStore):
        pytest.skip("what is deleted from memory is gone at once")
    batch_id = await stage.scene.batch(1)
    for number in range(REQUESTS_A_COMMAND + 1):
        stage.put(batch_id, f"old-{number:03}", WEEK + 200 - number, False)
    await stage.scene.cancel(batch_id, "new")
    assert stage.ids() == ["new", f"old-{REQUESTS_A_COMMAND}"]


async def test_a_discarded_batch_takes_its_requests_along(stage: Stage) -> None:
    batch_id = await stage.scene.load(stage.scene.record(), 1)
    stage.put(batch_id, "early", 0, False)
    await stage.scene.store.control(batch_id, Discard(WorkerId("loader")))
    assert stage.ids() == []
