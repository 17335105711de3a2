"""The example of a store passes the suite that every store passes, and recovers from what a crash leaves."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from examples.custom_store import JournalStore, word_count

from durable_batches import BatchOrchestrator, StoreCorruptError, StoreUnavailableError, Worker
from durable_batches.stores import Clock, Store
from durable_batches.testing import StoreConformance

# ---- the suite -------------------------------------------------------------------------------------------------------


class TestJournalStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "batches.journal"

    async def make_store(self, clock: Clock) -> Store:
        return JournalStore(self.path, clock=clock)

    async def reopen_store(self, clock: Clock) -> Store:
        return JournalStore(self.path, clock=clock)


# ---- what else it promises -------------------------------------------------------------------------------------------


async def run_a_batch(path: Path, *, lease: timedelta = timedelta(seconds=30)) -> int:
    """Run it, or attach to it; how many activities that took."""
    worker = Worker(JournalStore(path), lease=lease)
    async with BatchOrchestrator(word_count, worker=worker) as batches:
        result = await batches.run(["one two", "three"], batch_id="words")
        assert [outcome.tag async for outcome in batches.results(result.batch_id)] == ["succeeded", "succeeded"]
        return batches.stats.activities_run


async def test_a_line_that_a_crash_cut_off_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "batches.journal"
    assert await run_a_batch(path) == 2
    sound = path.read_bytes()
    path.write_bytes(sound + sound.splitlines()[-1][:-5])
    assert await run_a_batch(path) == 0
    assert path.read_bytes().startswith(sound)


async def test_an_earlier_crash_leaves_an_earlier_state(tmp_path: Path) -> None:
    path = tmp_path / "batches.journal"
    # A short lease: what a truncated journal tells of is not a process that is known to be gone.
    lease = timedelta(milliseconds=300)
    await run_a_batch(path, lease=lease)
    lines = path.read_bytes().splitlines(keepends=True)
    sealed = next(number for number, line in enumerate(lines) if b"batch_created" in line)
    for length in range(sealed + 1, len(lines)):
        path.write_bytes(b"".join(lines[:length]))
        await run_a_batch(path, lease=lease)


async def test_a_damaged_line_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "batches.journal"
    await run_a_batch(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{}{}\n", *lines[2:]]))
    with pytest.raises(StoreCorruptError, match="line 2 of the journal"):
        await JournalStore(path).open()


async def test_it_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    first = JournalStore(tmp_path / "batches.journal")
    await first.open()
    try:
        with pytest.raises(StoreUnavailableError, match="in use by another process"):
            await JournalStore(tmp_path / "batches.journal").open()
    finally:
        await first.close()
