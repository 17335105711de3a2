"""Arguments that an activity changes in place, and context variables that it sets: what is noticed, what is lost."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from tests.conftest import StoreMaker
from tests.support import AT_ONCE, NO_DELAY, ONCE, STAGES, everything, within

from durable_batches import (
    BatchConfig,
    BatchOrchestrator,
    DocumentFailure,
    DocumentSucceeded,
    Outcome,
    Overloaded,
    RetryFailed,
    Store,
    Worker,
    Workflow,
    durable_activity,
    workflow,
)

LANGUAGE: ContextVar[str] = ContextVar("LANGUAGE", default="en")


class Basket(BaseModel):
    items: list[str] = []


def by_all(text: str, log: list[int]) -> str:
    return f"{text}{log}"


async def outcome_of(run: Workflow[str, Any, Any, None], store: Store, *, attempts: int = 1) -> Outcome[Any]:
    config = BatchConfig(failure_policy=RetryFailed(max_attempts=attempts, backoff=NO_DELAY))
    async with BatchOrchestrator(run, store=store, config=config) as batches:
        result = await within(batches.run(["x"]))
        (outcome,) = await everything(batches.results(result.batch_id))
    return outcome


@pytest.mark.parametrize("error", [ConnectionError("once"), Overloaded(NO_DELAY)], ids=["failed", "overloaded"])
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_retry_is_not_made_with_other_input_than_the_call(sync: bool, error: Exception, store: Store) -> None:
    """The result would be recorded as that of an input of which it is not the result."""
    seen: list[list[str]] = []

    def empty(basket: Basket) -> int:
        seen.append(list(basket.items))
        basket.items.pop()
        raise error

    @durable_activity(retry=AT_ONCE)
    async def pack(basket: Basket) -> int:
        return empty(basket)

    @durable_activity(retry=AT_ONCE)
    def pack_sync(basket: Basket) -> int:
        return empty(basket)

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await (pack_sync if sync else pack)(Basket(items=["apple", "pear"]))

    outcome = await outcome_of(run, store)
    assert isinstance(outcome, DocumentFailure)
    assert outcome.error_type == "ActivityDefinitionError"
    assert "changed its arguments in place before it failed" in outcome.error
    assert seen == [["apple", "pear"]]


async def test_another_worker_calls_with_what_the_workflow_passes(open_store: StoreMaker) -> None:
    """Where the one that has changed its arguments ended in the middle of the call: nothing of them is kept."""
    seen: list[list[str]] = []
    changed = asyncio.Event()

    @durable_activity(retry=AT_ONCE)
    async def pack(basket: Basket) -> int:
        seen.append(list(basket.items))
        basket.items.pop()
        changed.set()
        if len(seen) == 1:
            await asyncio.Event().wait()
        return len(basket.items)

    @workflow(STAGES)
    async def run(document: str) -> int:
        return await pack(Basket(items=["apple", "pear"]))

    store, other = open_store(None), open_store(None)
    async with BatchOrchestrator(run, worker=Worker(store, drain=timedelta(0))) as batches:
        batch_id = await batches.submit(["x"])
        await within(changed.wait())
    async with BatchOrchestrator(run, store=other) as batches:
        assert (await within(batches.result(batch_id))).counts.succeeded == 1
    assert seen == [["apple", "pear"]] * 2


async def test_what_no_key_sees_may_change(store: Store) -> None:
    @durable_activity(retry=AT_ONCE, ignore=("log",))
    async def note(text: str, log: list[int]) -> int:
        log.append(1)
        if len(log) < 3:
            raise ConnectionError
        return len(log)

    @durable_activity(retry=AT_ONCE, key=by_all)
    async def note_by_key(text: str, log: list[int]) -> int:
        log.append(1)
        if len(log) < 3:
            raise ConnectionError
        return len(log)

    @workflow(STAGES)
    async def run(document: str) -> list[int]:
        return [await note(document, []), await note_by_key(document, [])]

    assert await outcome_of(run, store) == DocumentSucceeded(document_id="0", value=[3, 3])


async def test_what_an_activity_leaves_in_its_arguments_and_in_the_context_is_lost_on_a_replay(store: Store) -> None:
    """As the page on durability says; what it returned is found by the input that it was called with."""
    calls: list[str] = []
    seen: list[tuple[list[str], str]] = []

    @durable_activity(retry=ONCE)
    async def choose(items: list[str]) -> str:
        calls.append("choose")
        items.append("pear")
        LANGUAGE.set("fr")
        return "chosen"

    @workflow(STAGES)
    async def run(document: str) -> str:
        items = ["apple"]
        chosen = await choose(items)
        seen.append((items, LANGUAGE.get()))
        if len(seen) == 1:
            raise ConnectionError
        return chosen

    assert await outcome_of(run, store, attempts=2) == DocumentSucceeded(document_id="0", value="chosen")
    assert calls == ["choose"]
    assert seen == [(["apple", "pear"], "fr"), (["apple"], "en")]
