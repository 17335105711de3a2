"""The configuration of a batch is changed while it runs, by its own process or another one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import StoreMaker
from tests.support import STAGES

from durable_batches import (
    AbortAll,
    BatchClient,
    BatchConfig,
    BatchEndedError,
    ConfigurationError,
    ContinueOnFailure,
    workflow,
)
from durable_batches.testing import ManualClock, environment

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("by", ["the orchestrator", "another process"])
async def test_a_change_is_in_force_within_a_second(open_store: StoreMaker, by: str) -> None:
    clock = ManualClock()
    begun: list[str] = []

    @workflow(STAGES)
    async def run(document: str) -> str:
        begun.append(document)
        await clock.sleep(600)
        return document

    config = BatchConfig(concurrency=1)
    async with (
        environment(run, store=open_store, clock=clock, config=config) as env,
        BatchClient(open_store(clock), clock=clock) as client,
    ):
        side = env.batches if by == "the orchestrator" else client
        batch_id = await env.batches.submit(["a", "b", "c", "d"])
        await env.advance(SECOND)
        assert begun == ["a"]
        now = await side.update(batch_id, concurrency=3)
        assert now == config.model_copy(update={"concurrency": 3})
        await env.advance(SECOND)
        assert begun == ["a", "b", "c"]
        await side.update(batch_id, concurrency=1)
        # Three run; the first that ends makes no place for another.
        await env.advance(598.5 * SECOND)
        assert (await env.batches.snapshot(batch_id)).counts.running == 2
        assert len(begun) == 3
        await env.advance(SECOND)
        assert begun == ["a", "b", "c", "d"]
        await side.update(batch_id, deadline=timedelta(minutes=11))
        await env.advance(timedelta(minutes=1))
        assert (await env.batches.state(batch_id)).tag == "failed"
        with pytest.raises(BatchEndedError, match="update"):
            await side.update(batch_id, concurrency=2)


async def test_a_policy_waits_for_running_documents_where_older_workers_do_not_know_it() -> None:
    clock = ManualClock()

    @workflow(STAGES)
    async def run(document: str) -> str:
        await clock.sleep(60)
        if document == "bad":
            raise ValueError(document)
        return document

    async with environment(run, clock=clock, config=BatchConfig(concurrency=1)) as env:
        batch_id = await env.batches.submit(["bad", "good"])
        await env.advance(SECOND)
        patient = ContinueOnFailure(max_failure_ratio=0.1, min_failures=2)
        with pytest.raises(ConfigurationError, match="pause the batch before"):
            await env.batches.update(batch_id, failure_policy=patient)
        await env.batches.pause(batch_id)
        await env.advance(timedelta(minutes=2))
        assert (await env.batches.update(batch_id, failure_policy=patient)).failure_policy == patient
        await env.batches.resume(batch_id)
        await env.advance(SECOND)
        await env.batches.update(batch_id, concurrency=2, document_timeout=timedelta(hours=1))
        await env.batches.update(batch_id, failure_policy=AbortAll())
        await env.advance(timedelta(hours=1))
        assert (await env.batches.state(batch_id)).tag == "failed"


async def test_bad_input_changes_nothing() -> None:
    @workflow(STAGES)
    async def run(document: str) -> str:
        return document

    wrong: Any = {"metadata": {"a": "b"}}
    async with environment(run) as env:
        batch_id = await env.batches.submit(["x"])
        with pytest.raises(ConfigurationError, match="'metadata' cannot be changed"):
            await env.batches.update(batch_id, **wrong)
        with pytest.raises(ConfigurationError, match="nothing to change"):
            await env.batches.update(batch_id)
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            await env.batches.update(batch_id, concurrency=0)
