"""A batch whose counts contradict each other, as after rows were changed by hand, stops no other batch."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.conftest import StoreMaker
from tests.postgres.databases import execute
from tests.support import STAGES, opened, within

from durable_batches import BatchClient, BatchOrchestrator, DamagedBatch, RetryFailed, Worker, workflow
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores import Store
from durable_batches.stores.memory import MemoryStore
from durable_batches.testing import ManualClock
from durable_batches.testing.conformance.scene import Scene

Falsify = Callable[[Store, BatchId], None]

TOTAL = "UPDATE {}batch SET total = total + 1 WHERE batch_id = '{}'"


@pytest.fixture
def falsify(request: pytest.FixtureRequest, tmp_path: Path) -> Falsify:
    """Adds one to a batch's total, and to nothing else."""

    def change(store: Store, batch_id: BatchId) -> None:
        if isinstance(store, MemoryStore):
            batch = store._batches[batch_id]
            counts = replace(batch.record.counts, total=batch.record.counts.total + 1)
            batch.record = replace(batch.record, counts=counts)
        elif (tmp_path / "batches.db").exists():
            with closing(sqlite3.connect(tmp_path / "batches.db")) as connection, connection:
                connection.execute(TOTAL.format("", batch_id))
        else:
            schema: str = request.getfixturevalue("migrated_schema")
            execute(request.getfixturevalue("postgres_dsn"), TOTAL.format(f"{schema}.", batch_id))

    return change


async def test_claims_pass_over_it_and_say_so_once(open_store: StoreMaker, falsify: Falsify) -> None:
    async with opened(open_store(None)) as store:
        scene = Scene(store, asyncio.sleep)
        broken, sound = await scene.batch(2), await scene.batch(2)
        hand = await scene.worker()
        falsify(store, broken)
        scene._batches.remove(broken)  # which is not as the suite wants it
        committed = await hand.commit(claim=hand.request(10))
        assert [claim.execution.batch_id for claim in committed.claims] == [sound, sound]
        assert committed.set_aside.keys() == {broken}
        assert "do not sum to their total" in committed.set_aside[broken]
        again = await hand.commit(claim=hand.request(10))
        assert not again.claims
        assert not again.set_aside
        # It has nothing to claim, so that nobody is woken for it again and again.
        assert again.retry_in is None
        record = await store.batch(broken)
        assert record is not None
        assert (record.free, record.wake, record.counts.total) == (0, None, 3)


async def test_one_that_sleeps_is_set_aside_when_its_time_has_come(open_store: StoreMaker, falsify: Falsify) -> None:
    clock = ManualClock()
    async with opened(open_store(clock)) as store:
        scene = Scene(store, asyncio.sleep)
        hand = await scene.worker(lease=1_000)
        broken = await scene.batch(1, policy=RetryFailed(backoff=timedelta(seconds=10)))
        await hand.report(hand.failed(await hand.take()))
        falsify(store, broken)
        scene._batches.remove(broken)  # which is not as the suite wants it
        sound = await scene.batch(2)
        clock.advance(11)
        committed = await hand.commit(claim=hand.request(10))
        assert [claim.execution.batch_id for claim in committed.claims] == [sound, sound]
        assert committed.set_aside.keys() == {broken}
        again = await hand.commit(claim=hand.request(10))
        assert (list(again.claims), dict(again.set_aside), again.retry_in) == ([], {}, None)


async def test_facts_about_it_do_not_refuse_those_beside_them(open_store: StoreMaker, falsify: Falsify) -> None:
    """What was paid for is kept, and the worker is done with the documents."""
    async with opened(open_store(None)) as store:
        scene = Scene(store, asyncio.sleep)
        broken, sound = await scene.batch(1), await scene.batch(1)
        hand = await scene.worker()
        claims = {claim.execution.batch_id: claim for claim in await hand.claim(10)}
        falsify(store, broken)
        scene._batches.remove(broken)  # which is not as the suite wants it
        committed = await hand.commit(
            hand.recorded(claims[broken], "paid"),
            hand.entered(claims[broken], 1),
            hand.succeeded(claims[broken]),
            hand.succeeded(claims[sound]),
        )
        assert dict(committed.refused) == {1: "ended", 2: "ended"}
        assert [checkpoint.key for checkpoint in await scene.checkpoints(broken)] == ["paid"]
        assert (await scene.look(sound)).state == "completed"


async def test_the_executions_beside_its_own_are_released(open_store: StoreMaker, falsify: Falsify) -> None:
    async with opened(open_store(None)) as store:
        scene = Scene(store, asyncio.sleep)
        broken, sound = await scene.batch(1), await scene.batch(1)
        hand = await scene.worker()
        assert len(await hand.claim(10)) == 2
        falsify(store, broken)
        scene._batches.remove(broken)  # which is not as the suite wants it
        await store.leave(hand.worker_id)
        other = await scene.worker()
        assert [claim.execution.batch_id for claim in await other.claim(10)] == [sound]


async def test_the_log_has_one_line_about_it(
    open_store: StoreMaker, falsify: Falsify, caplog: pytest.LogCaptureFixture
) -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        return document

    store = open_store(None)
    async with BatchOrchestrator(run, worker=Worker(store, max_in_flight=0)) as reader:
        broken = await reader.submit(["a"])
        falsify(store, broken)
    async with BatchOrchestrator(run, worker=Worker(open_store(None))) as batches:
        for _ in range(3):
            result = await within(batches.run(["b"]))
            assert result.counts.succeeded == 1
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.getMessage().endswith("nothing of it is claimed any more")
    assert line.__dict__["batch_id"] == broken


async def test_it_is_listed_and_explained_beside_the_others(open_store: StoreMaker, falsify: Falsify) -> None:
    async with opened(open_store(None)) as store, BatchClient(open_store(None)) as client:
        scene = Scene(store, asyncio.sleep)
        broken, sound = await scene.batch(2), await scene.batch(2)
        falsify(store, broken)
        listed = [(batch.batch_id, batch.counts.total) async for batch in client.list_batches()]
        assert listed == [(sound, 2), (broken, 3)]
        assert (await client.state(broken)).tag == "pending"
        (reason,) = (await client.explain(broken)).reasons
        assert isinstance(reason, DamagedBatch)
        assert "do not sum to their total" in reason.problem
        assert not isinstance((await client.explain(sound)).reasons[0], DamagedBatch)
