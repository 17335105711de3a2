"""Large payloads in a filesystem: what is written is read, and nothing else; on local files and on one in memory."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.support import PATIENCE, STAGES, eventually, within

from durable_batches import (
    BatchOrchestrator,
    ConfigurationError,
    MemoryStore,
    PayloadError,
    RetryPolicy,
    current_execution,
    durable_activity,
    workflow,
)
from durable_batches.blobs import Blob, BlobStorage

DATA = bytes(range(256)) * 1_000


def file_of(folder: Path, blob: Blob) -> Path:
    return folder / blob.name


@pytest.mark.parametrize("kind", ["local", "memory"])
async def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    storage = BlobStorage(str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}")
    blob, empty = await storage.write(DATA), await storage.write(b"")
    assert (blob.size, empty.size) == (len(DATA), 0)
    assert await storage.read(blob) == DATA
    assert await storage.read(empty) == b""
    # The same bytes again are the same blob.
    assert await storage.write(DATA) == blob
    # Another process, which has the row only.
    assert await BlobStorage(storage.url).read(blob) == DATA
    assert await storage.remove("", keep=[blob]) == 1
    assert await storage.read(blob) == DATA
    assert await storage.remove("") == 1
    assert await storage.remove("another") == 0


async def test_a_blob_that_is_missing_or_changed_is_an_error_and_never_other_bytes(tmp_path: Path) -> None:
    storage = BlobStorage(str(tmp_path))
    blob = await storage.write(DATA)
    path = file_of(tmp_path, blob)
    path.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(PayloadError, match="has been changed"):
        await storage.read(blob)
    path.write_bytes(DATA[:-1])
    with pytest.raises(PayloadError, match="has 255999 bytes, and 256000 were written"):
        await storage.read(blob)
    path.unlink()
    with pytest.raises(PayloadError, match="is missing"):
        await storage.read(blob)
    (tmp_path.parent / "secret").write_bytes(b"s")
    for name in ("../secret", "/etc/passwd", "", f"{'0' * 32}/{'g' * 64}"):
        with pytest.raises(PayloadError, match="has no name that a storage gives"):
            await storage.read(Blob(name, 1, "0"))


async def test_what_could_not_be_written_in_full_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = BlobStorage(str(tmp_path))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            await storage.write(DATA)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_the_event_loop_goes_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        threads.append(threading.get_ident())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    await BlobStorage(str(tmp_path)).write(DATA)
    assert threads
    assert threading.get_ident() not in threads


async def test_a_filesystem_that_hangs_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = BlobStorage(str(tmp_path))
    blob = await storage.write(DATA)
    gate, hanging = threading.Event(), BlobStorage(str(tmp_path))
    waiting: list[int] = []

    def hang(_: object) -> bytes:
        waiting.append(1)
        assert gate.wait(PATIENCE)
        return DATA

    monkeypatch.setattr(hanging, "_read", hang)
    reading = [asyncio.create_task(hanging.read(blob)) for _ in range(50)]
    # No more at once than are bounded, and none of them on the threads that others share.
    await eventually(lambda: len(waiting) == 32)
    assert await within(asyncio.to_thread(len, DATA)) == len(DATA)
    assert await within(storage.read(blob)) == DATA
    for task in reading:
        task.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*reading, return_exceptions=True)
    )
    monkeypatch.undo()
    # Those that were given up do not count.
    assert await within(hanging.read(blob)) == DATA
    gate.set()


def test_a_new_folder_outlasts_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    blob = asyncio.run(BlobStorage(str(tmp_path / "new" / "blobs")).write(DATA))
    file = tmp_path / "new" / "blobs" / blob.name
    # Each folder after what is new in it, from above; the file itself before it has its name.
    written = [tmp_path, tmp_path / "new", tmp_path / "new" / "blobs", file, file.parent]
    assert synced == [path.stat().st_ino for path in written]


async def test_activities_pass_blobs_and_those_of_a_batch_are_removed_with_it(tmp_path: Path) -> None:
    storage = BlobStorage(str(tmp_path))
    attempts: list[str] = []

    @durable_activity(retry=RetryPolicy(max_attempts=1))
    async def render(text: str) -> Blob:
        return await storage.write(text.encode() * 10_000)

    @durable_activity(retry=RetryPolicy(max_attempts=3))
    async def measure(pages: Blob) -> int:
        attempts.append(current_execution().document_id)
        return len(await storage.read(pages))

    @workflow(STAGES, name="rendering")
    async def rendering(text: str) -> tuple[Blob, int]:
        pages = await render(text)
        if text == "lost":
            file_of(tmp_path, pages).unlink()
        return pages, await measure(pages)

    async with BatchOrchestrator(rendering, store=MemoryStore()) as batches:
        batch_id = await batches.submit(["ab", "abc", "lost"], document_id=str)
        result = await within(batches.result(batch_id))
        outcomes = [each async for each in batches.results(batch_id)]
        values = [each.value for each in outcomes if each.tag == "succeeded"]
        assert [size for _, size in values] == [20_000, 30_000]
        # What is missing does not come back: one attempt, and a message that says what it is.
        (failure,) = result.failures
        assert (failure.error_type, "is missing" in failure.error) == ("PayloadError", True)
        assert attempts.count("lost") == 1
        orphan = file_of(tmp_path, values[0][0]).with_name("0" * 64)
        orphan.write_bytes(b"left by a crash")
        blobs = [blob for blob, _ in values]
        assert await storage.remove(batch_id, keep=blobs) == 1
        assert await storage.read(blobs[1]) == b"abc" * 10_000
        assert await storage.remove(batch_id) == 2


@pytest.mark.parametrize("url", ["", "nosuch://bucket"])
def test_a_storage_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="url"):
        BlobStorage(url)


async def test_values_of_other_types_are_refused(tmp_path: Path) -> None:
    storage: Any = BlobStorage(str(tmp_path))
    with pytest.raises(ConfigurationError, match="data must be"):
        await storage.write("text")
    with pytest.raises(ConfigurationError, match="blob must be"):
        await storage.read("name")
