"""Unit tests of activities and workflows as plain functions: what an orchestrator would provide is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from tests.support import STAGES, Reading

from durable_batches import (
    ActivityContext,
    Amount,
    ConfigurationError,
    current_activity,
    current_execution,
    dependency,
    durable_activity,
    enter_stage,
    workflow,
)
from durable_batches.errors import DependencyError, NotInActivityError, NotInWorkflowError
from durable_batches.testing import activity_context, execution_context


async def http() -> AsyncIterator[str]:
    yield "the real one"


@durable_activity
async def fetch(url: str, client: str = dependency(http)) -> str:
    context = current_activity()
    context.report(1, 2)
    context.report(2, 2)
    return f"{client} {url} {context.attempt} {context.idempotency_key} {context.batch_id}/{context.document_id}"


@durable_activity
def on_a_thread(url: str) -> int:
    current_activity().report(len(url), 3)
    return current_activity().attempt


@workflow(STAGES)
async def run(url: str) -> str:
    enter_stage(Reading)
    execution = current_execution()
    return f"{execution.metadata['customer']} {execution.document_id} {execution.ordinal}: {await plain(url)}"


@durable_activity
async def plain(url: str, client: str = dependency(http)) -> str:
    return f"{client} {url}"


async def test_what_an_activity_spends_is_kept() -> None:
    with activity_context() as context:
        assert context.spending.total == Amount()
        current_activity().spend(input_tokens=3, output_tokens=1, cost=Decimal("0.01"), model="gpt")
        current_activity().spend(tokens=2, cost=None)
        with pytest.raises(ConfigurationError, match="not exact"):
            current_activity().spend(cost=0.1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert context.spending.total == Amount(tokens=6, cost=Decimal("0.01"))
    assert context.spending.by_model["gpt"].input_tokens == 3
    assert context.spending.unpriced_calls == 1


async def test_an_activity_finds_its_context_and_it_keeps_what_it_is_told() -> None:
    with activity_context(
        batch_id="b", document_id="d", attempt=2, idempotency_key="k", dependencies={http: "fake"}
    ) as context:
        assert await fetch("url") == "fake url 2 k b/d"
        as_activities_see_it: ActivityContext = context
        assert current_activity() is as_activities_see_it
        assert current_execution().document_id == "d"
        assert await fetch("url", client="given") == "given url 2 k b/d"
    assert context.reports == [(1, 2), (2, 2)] * 2
    with pytest.raises(NotInActivityError):
        current_activity()


async def test_a_sync_activity_finds_it_on_its_thread() -> None:
    with activity_context(attempt=3) as context:
        assert await on_a_thread("url") == 3
    assert context.reports == [(3, 3)]


async def test_a_plain_function_finds_it_without_an_event_loop() -> None:
    def in_the_block() -> int:
        with activity_context(attempt=3):
            return current_activity().attempt

    assert await asyncio.to_thread(in_the_block) == 3


async def test_a_workflow_finds_its_execution_and_its_activities_their_dependencies() -> None:
    with execution_context(
        document_id="d", ordinal=4, metadata={"customer": "acme"}, dependencies={http: "fake"}
    ) as execution:
        assert await run("url") == "acme d 4: fake url"
        assert current_execution() is execution
        # What the one does not say the other does.
        with activity_context(attempt=5) as context:
            assert (await fetch("url")).startswith("fake url 5")
            assert current_execution() == context.context
    with pytest.raises(NotInWorkflowError):
        current_execution()


async def test_what_is_not_given_is_not_opened() -> None:
    with activity_context(), pytest.raises(DependencyError, match="http"):
        await fetch("url")
    with execution_context(metadata={"customer": "acme"}), pytest.raises(DependencyError, match="http"):
        await run("url")


async def test_blocks_nest_and_do_not_reach_into_other_tasks() -> None:
    async def attempt() -> int:
        await asyncio.sleep(0)
        return current_activity().attempt

    with activity_context(attempt=1):
        inherited = asyncio.create_task(attempt())
        with activity_context(attempt=2):
            assert current_activity().attempt == 2
        assert current_activity().attempt == 1
    assert await inherited == 1
    with pytest.raises(NotInActivityError):
        await attempt()
