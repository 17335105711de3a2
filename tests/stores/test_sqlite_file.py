"""The database file: for its owner only; and never another one, nor none, under a store that writes to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support import STAGES, opened, within

from durable_batches import (
    BatchClient,
    BatchOrchestrator,
    SQLiteStore,
    StoreCorruptError,
    Worker,
    durable_activity,
    workflow,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores import BatchQuery
from durable_batches.stores.sqlite import file as sqlite_file
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batches.db"


def scene_of(store: SQLiteStore) -> Scene:
    return Scene(store, lambda _: asyncio.sleep(0))


def rights(path: Path) -> dict[str, int]:
    return {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}


# ---- rights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
async def test_a_new_file_and_those_beside_it_are_for_their_owner_only(path: Path) -> None:
    async with opened(SQLiteStore(path, clock=ManualClock())) as store:
        await scene_of(store).batch(1)
        assert rights(path) == dict.fromkeys(("batches.db", "batches.db-wal", "batches.db-shm"), 0o600)


@pytest.mark.usefixtures("usual_umask")
async def test_so_is_one_that_an_engine_of_the_application_leads_to(path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with opened(SQLiteStore(engine, clock=ManualClock())) as store:
        await scene_of(store).batch(1)
        assert set(rights(path).values()) == {0o600}
    await engine.dispose()


@pytest.mark.usefixtures("usual_umask")
async def test_a_file_that_is_there_keeps_its_rights(path: Path) -> None:
    path.touch()
    path.chmod(0o640)
    async with opened(SQLiteStore(path, clock=ManualClock())) as store:
        await scene_of(store).batch(1)
        assert set(rights(path).values()) == {0o640}


# ---- deleted or replaced ---------------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    """Put a copy of the file in its place, as a restored backup is."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


GONE = pytest.mark.parametrize("lose", [delete, replace])


@GONE
async def test_nothing_is_acknowledged_once_the_file_is_gone(path: Path, lose: Callable[[Path], None]) -> None:
    async with opened(SQLiteStore(path, clock=ManualClock())) as store:
        scene = scene_of(store)
        batch_id = await scene.batch(1)
        hand = await scene.worker()
        heart = store.heart(hand.worker_id)
        claim = (await hand.claim(1))[0]
        lose(path)
        left = path.read_bytes() if path.exists() else None
        with pytest.raises(StoreCorruptError, match="deleted or replaced"):
            await scene.batch(1)
        with pytest.raises(StoreCorruptError, match="deleted or replaced"):
            await hand.commit(hand.succeeded(claim))
        with pytest.raises(StoreCorruptError, match="deleted or replaced"):
            heart.beat()
        heart.close()
        with pytest.raises(StoreCorruptError, match="deleted or replaced"):
            await store.batch(batch_id)
    assert (path.read_bytes() if path.exists() else None) == left


async def test_a_commit_into_a_file_that_is_deleted_meanwhile_is_not_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(SQLiteStore(path, clock=ManualClock())) as store:
        find = sqlite_file.identity_of
        looks = 0

        def deleted_after_a_look(found: Path) -> tuple[int, int] | None:
            nonlocal looks
            looks += 1
            identity = find(found)
            path.unlink(missing_ok=True)
            return identity

        monkeypatch.setattr(sqlite_file, "identity_of", deleted_after_a_look)
        with pytest.raises(StoreCorruptError, match="deleted or replaced"):
            await scene_of(store).batch(1)
        assert looks > 1


async def test_a_file_that_is_put_back_is_used_again(path: Path) -> None:
    async with opened(SQLiteStore(path, clock=ManualClock())) as store:
        scene = scene_of(store)
        away = path.with_suffix(".away")
        path.rename(away)
        with pytest.raises(StoreCorruptError):
            await scene.batch(1)
        away.rename(path)
        await scene.batch(1)


async def test_a_store_that_is_opened_again_takes_the_file_that_is_there(path: Path) -> None:
    store = SQLiteStore(path, clock=ManualClock())
    async with opened(store):
        await scene_of(store).batch(1)
    path.unlink()
    async with opened(store):
        assert await store.batches(BatchQuery(), limit=10) == []


async def test_a_reader_goes_over_to_the_file_that_replaces_its_own(tmp_path: Path) -> None:
    path, other = tmp_path / "batches.db", tmp_path / "other.db"
    batches: list[BatchId] = []
    for place in (path, other):
        async with opened(SQLiteStore(place, clock=ManualClock())) as store:
            batches.append(await scene_of(store).batch(1))
    reader = SQLiteStore(path)
    await reader.attach()
    try:
        assert [each.batch_id for each in await reader.batches(BatchQuery(), limit=10)] == batches[:1]
        other.replace(path)
        assert [each.batch_id for each in await reader.batches(BatchQuery(), limit=10)] == batches[1:]
    finally:
        await reader.close()


async def test_followers_are_told_and_the_worker_goes_on_when_the_file_is_back(path: Path) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    @durable_activity
    async def wait_for_the_test(text: str) -> str:
        begun.set()
        await may_end.wait()
        return text

    @workflow(STAGES, name="waiting")
    async def wait(text: str) -> str:
        return await wait_for_the_test(text)

    async with BatchOrchestrator(wait, worker=Worker(SQLiteStore(path))) as batches:
        batch_id = await batches.submit(["one"])
        result = asyncio.create_task(batches.result(batch_id))
        await within(begun.wait())
        away = path.with_suffix(".away")
        path.rename(away)
        with pytest.raises(StoreCorruptError, match="deleted or replaced"):
            await within(result)
        with pytest.raises(StoreCorruptError, match="deleted or replaced"):
            await batches.submit(["two"])
        may_end.set()
        away.rename(path)
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
    async with BatchClient(SQLiteStore(path)) as client:
        assert (await client.snapshot(batch_id)).counts.succeeded == 1
