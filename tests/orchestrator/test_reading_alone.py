"""Batches are followed and commanded with the reading room alone: no worker, no workflow code."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES, everything, opened, within

from durable_batches import BatchOrchestrator, WorkflowMismatchError, workflow
from durable_batches.clock import SystemClock
from durable_batches.errors import WorkerNotRunningError
from durable_batches.lifecycle.commands import Cancel, Command
from durable_batches.lifecycle.records import Committed
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Outages
from durable_batches.reading.control import Control
from durable_batches.reading.news import News
from durable_batches.reading.reader import BatchReader
from durable_batches.reading.signals import NewsSignals
from durable_batches.stores.protocol import BatchQuery


@workflow(STAGES)
async def wait(document: str) -> str:
    await asyncio.Event().wait()
    return document


async def test_a_batch_is_followed_and_cancelled_without_a_worker(open_store: StoreMaker) -> None:
    store, clock = open_store(None), SystemClock()
    outages = Outages(clock)
    news = News(store, clock, outages, NewsSignals())
    came: list[tuple[BatchId, bool]] = []

    def committed(batch_id: BatchId, _: Command, answer: Committed) -> None:
        news.deliver(answer.events)
        came.append((batch_id, answer.applied))

    control = Control(store, clock, outages, committed)
    reader = BatchReader(store, clock, news, outages, running=lambda: True)
    async with BatchOrchestrator(wait, store=open_store(None)) as batches, opened(store):
        batch_id = await batches.submit(["x", "y"])
        news.open()
        events = asyncio.create_task(everything(reader.events(batch_id, 0)))
        changes = asyncio.create_task(everything(reader.changes(batch_id, timedelta(0))))
        ended = asyncio.create_task(reader.ended_record(batch_id))
        assert (await reader.record(batch_id)).counts.total == 2
        answer = await control.give(batch_id, Cancel("a request", "a reason"))
        assert answer.applied
        assert [event.seq for block in await within(events) for event in block] == list(range(1, (await ended).seq + 1))
        assert (await within(changes))[-1].ended
        assert (await ended).state == "cancelled"
        assert [record.batch_id for record in await everything(reader.records(BatchQuery()))] == [batch_id]
        assert len(await everything(reader.documents(await ended, inputs=True))) == 2
        assert came == [(batch_id, True)]
        assert news.watched == []
        await news.close()


async def test_a_reader_of_one_workflow_refuses_the_batches_of_others(open_store: StoreMaker) -> None:
    store, clock = open_store(None), SystemClock()
    outages = Outages(clock)
    news = News(store, clock, outages, NewsSignals())
    reader = BatchReader(store, clock, news, outages, running=lambda: True, workflow="another")
    async with BatchOrchestrator(wait, store=open_store(None)) as batches, opened(store):
        batch_id = await batches.submit(["x"])
        with pytest.raises(WorkflowMismatchError):
            await reader.record(batch_id)


async def test_nothing_is_followed_before_the_news_are_open_or_after(open_store: StoreMaker) -> None:
    store, clock = open_store(None), SystemClock()
    outages = Outages(clock)
    news = News(store, clock, outages, NewsSignals())
    reader = BatchReader(store, clock, news, outages, running=lambda: False)
    async with opened(store):
        with pytest.raises(WorkerNotRunningError):
            await reader.ended_record("b")
        news.open()
        with pytest.raises(WorkerNotRunningError):
            await reader.record("b")
        await news.close()
        with pytest.raises(WorkerNotRunningError):
            await reader.ended_record("b")
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "durable-batches news"]
