"""A submitter that dies half-way: nothing of its batch is there for anybody, until somebody submits it again."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.processes.children import Child, checker_of, children, file_in, opened
from tests.processes.workload import (
    Batches,
    Job,
    Page,
    document_ids,
    extract,
    tally_of,
)

from durable_batches import (
    BatchId,
    BatchNotFoundError,
    BatchOrchestrator,
    SQLiteStore,
    SubmissionInProgressError,
)
from durable_batches.testing.history.checker import HistoryChecker
from durable_batches.testing.virtual.effects import EffectsLog

STORED = 1_200
"""Documents after which the first submitter hangs: more than two of the chunks in which they are stored."""
DOCUMENTS = 30
"""Those of the submission that is made instead."""


@asynccontextmanager
async def _looking(folder: Path) -> AsyncGenerator[Batches]:
    """An orchestrator that runs nothing."""
    async with BatchOrchestrator(extract, store=SQLiteStore(file_in(folder)), max_in_flight=0) as batches:
        yield batches


def _submitter(folder: Path) -> Job:
    return Job(process="submitter", folder=str(folder), documents=STORED + 1, hang_at=STORED, stops=["hanging"])


async def _hangs(child: Child, folder: Path) -> int:
    """How many of its documents were stored by then."""
    await child.stopped("hanging")
    stored = await _stored(folder)
    assert 0 < stored < STORED
    return stored


async def _stored(folder: Path) -> int:
    async with opened(file_in(folder)) as store:
        return len(await store.documents(BatchId("batch"), limit=STORED))


async def _is_invisible(batches: Batches) -> None:
    for look in (batches.state, batches.snapshot, batches.result, batches.cancel):
        with pytest.raises(BatchNotFoundError):
            await look("batch")
    with pytest.raises(BatchNotFoundError):
        async for _ in batches.progress("batch"):
            pass
    assert [batch async for batch in batches.list_batches()] == []


async def test_a_batch_that_was_never_wholly_there_is_not_there(tmp_path: Path) -> None:
    with children() as start:
        submitter = start(_submitter(tmp_path))
        await _hangs(submitter, tmp_path)
        async with _looking(tmp_path) as batches:
            await _is_invisible(batches)
            assert submitter.kill()
            await _is_invisible(batches)
        # Another worker has nothing to do.
        worker = start(Job(process="worker", folder=str(tmp_path), stops=["store.commit: answered"]))
        await worker.stopped()
        assert worker.kill()
        checker = checker_of(EffectsLog(tmp_path / "effects.log"))
        async with opened(file_in(tmp_path)) as store:
            await checker.verify(store)
        assert checker.stats.runs == 0


async def test_a_dead_submitters_batch_is_loaded_anew(tmp_path: Path) -> None:
    """With other documents even: nothing of the first attempt is left among them."""
    with children() as start:
        submitter = start(_submitter(tmp_path))
        await _hangs(submitter, tmp_path)
        assert submitter.kill()
        heir = start(Job(process="heir", folder=str(tmp_path), documents=DOCUMENTS, pace=0.003))
        result = await heir.result()
    assert result["counts"]["total"] == result["counts"]["succeeded"] == DOCUMENTS
    assert _rows(tmp_path, "execution") == _rows(tmp_path, "document") == DOCUMENTS + 1
    assert result["resolution"] == asdict(tally_of(range(DOCUMENTS)))
    checker = HistoryChecker(effects=EffectsLog(tmp_path / "effects.log"))
    checker.acknowledged("batch", document_ids(DOCUMENTS))
    async with opened(file_in(tmp_path)) as store:
        await checker.verify(store, finished=True, everyone_left=True)


def _rows(folder: Path, table: str) -> int:
    with closing(sqlite3.connect(file_in(folder))) as connection:
        (count,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    return int(count)


async def test_a_living_submitter_is_not_pushed_aside(tmp_path: Path) -> None:
    with children() as start:
        submitter = start(_submitter(tmp_path))
        stored = await _hangs(submitter, tmp_path)
        async with _looking(tmp_path) as batches:
            with pytest.raises(SubmissionInProgressError, match="batch"):
                await batches.submit([Page(0)], batch_id="batch")
            # Nor did the attempt do any harm to what it was refused for.
            assert await _stored(tmp_path) == stored
            assert submitter.kill()
            # At once: on the same machine its death can be seen.
            assert await batches.submit([Page(0)], batch_id="batch") == "batch"
            assert (await batches.snapshot("batch")).counts.total == 1
