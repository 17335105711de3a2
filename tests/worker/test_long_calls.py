"""Calls without a timeout that run for long are warned of, each once."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from tests.conftest import StoreMaker
from tests.support import NO_DRAIN, STAGES, eventually

from durable_batches import BatchOrchestrator, LongCalls, Worker, durable_activity, workflow
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.testing import ManualClock


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "has no timeout" in record.message]


async def test_a_call_without_a_timeout_is_warned_of_once(
    open_store: StoreMaker, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    running: list[str] = []
    go_on = asyncio.Event()

    @durable_activity
    async def hangs(text: str) -> str:
        running.append(text)
        await go_on.wait()
        return text

    @durable_activity(timeout=timedelta(days=1))
    async def is_bounded(text: str) -> str:
        running.append(text)
        await go_on.wait()
        return text

    @workflow(STAGES, name="both")
    async def both(document: str) -> list[str]:
        return list(await asyncio.gather(hangs(document), is_bounded(f"bounded {document}")))

    # Renewed each hour.
    lease, max_stall = timedelta(hours=3), timedelta(days=1)
    worker = Worker(open_store(clock), clock=clock, drain=NO_DRAIN, lease=lease, max_stall=max_stall)

    async def pass_time(**by: float) -> None:
        with worker.signals.lease.looked.listen() as looked:
            await eventually(lambda: clock.waiting_threads == 1)
            clock.advance(timedelta(**by).total_seconds())
            await looked.next()
        await eventually(lambda: worker.session.resources.moment == clock.boot())

    async with BatchOrchestrator(both, worker=worker) as batches:
        batch_id = await batches.submit(["a", "b"])
        await eventually(lambda: len(running) == 4)
        began = from_micros(clock.now())
        await pass_time(minutes=9, seconds=59)
        assert not warnings(caplog)
        await pass_time(seconds=10)
        await eventually(lambda: len(warnings(caplog)) == 2)
        first, second = sorted(warnings(caplog), key=lambda record: str(record.__dict__["document_id"]))
        assert first.message.startswith(
            f"activity 'hangs' in document '0' of batch {batch_id!r} has no timeout, and its attempt 1 has been run"
        )
        assert second.__dict__["document_id"] == "1"
        for record in (first, second):
            assert record.__dict__["running_seconds"] == 609
        # Told with the next renewal of the lease.
        with worker.signals.lease.renewed.listen() as renewed:
            await pass_time(hours=1)
            await renewed.next()
        calls = LongCalls(activity="hangs", calls=2, since=began, workers={worker.worker_id: 2})
        assert (await batches.snapshot(batch_id)).long_calls == (calls,)
        assert calls in (await batches.explain(batch_id)).reasons
        assert str(calls).startswith("The activity 'hangs' has no timeout, and 2 calls of it may never end, the first")
        go_on.set()
        result = await batches.result(batch_id)
        assert result.counts.succeeded == 2
        assert (await batches.snapshot(batch_id)).long_calls == ()
    assert len(warnings(caplog)) == 2
