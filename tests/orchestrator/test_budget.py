"""A batch whose budget is spent is paused, or fails; a greater budget lets it go on."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError
from tests.conftest import StoreMaker
from tests.support import ONCE, STAGES, Reading

from durable_batches import (
    Amount,
    BatchClient,
    BatchConfig,
    BatchPaused,
    BatchResumed,
    Budget,
    ConfigurationError,
    Failed,
    MemoryStore,
    Results,
    current_activity,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.lifecycle.batch_core import decode_core
from durable_batches.testing import ManualClock, environment, survives_crashes

CENT = Decimal("0.01")
SECOND = timedelta(seconds=1)


@durable_activity(stage=Reading)
async def ask(number: int) -> int:
    current_activity().spend(tokens=10, cost=CENT)
    return number


async def add_up(results: Results[int]) -> int:
    return await ask(sum([result.value async for result in results]))


@workflow(STAGES, resolver=add_up)
async def asks(number: int) -> int:
    return await ask(number) + await ask(number)


@pytest.mark.parametrize("by", ["the orchestrator", "another process"])
async def test_what_is_spent_pauses_the_batch_and_a_raise_lets_it_go_on(open_store: StoreMaker, by: str) -> None:
    clock = ManualClock()
    config = BatchConfig(concurrency=1, budget=Budget(cost=5 * CENT))
    async with (
        environment(asks, store=open_store, clock=clock, config=config) as env,
        BatchClient(open_store(clock), clock=clock) as client,
    ):
        side = env.batches if by == "the orchestrator" else client
        batch_id = await env.batches.submit(range(4))
        await env.advance(5 * SECOND)
        paused = await side.snapshot(batch_id)
        assert paused.spent == Amount(tokens=50, cost=5 * CENT)
        (pause,) = paused.pauses
        assert (paused.paused, pause.reason, pause.until) == (True, "budget", None)
        assert pause.note == "0.05 and 50 tokens are spent, of 0.05"
        assert (paused.counts.succeeded, paused.counts.running) == (2, 0)
        assert "because its budget is spent" in str(await side.explain(batch_id))
        # Only a greater budget, or none, lifts it.
        assert [left.reason for left in await side.resume(batch_id)] == ["budget"]
        for budget in (Budget(cost=5 * CENT), Budget(tokens=50, cost=Decimal(1))):
            with pytest.raises(ConfigurationError, match=r"must exceed what is spent: 0\.05 and 50 tokens"):
                await side.update(batch_id, budget=budget)
        await side.pause(batch_id)
        assert (await side.update(batch_id, budget=Budget(tokens=80))).budget == Budget(tokens=80)
        await env.advance(5 * SECOND)
        assert [left.reason for left in (await side.snapshot(batch_id)).pauses] == ["operator"]
        assert not await side.resume(batch_id)
        await env.advance(5 * SECOND)
        # All documents are done, and the resolver waits.
        paused = await side.snapshot(batch_id)
        assert (paused.state.tag, paused.counts.succeeded, paused.spent.tokens) == ("resolving", 4, 80)
        await side.update(batch_id, budget=None)
        await env.advance(5 * SECOND)
        result = await env.finished(batch_id)
        assert (result.resolution, result.spent.total.cost) == (12, 9 * CENT)
        events = [event async for event in env.batches.events(batch_id)]
        pauses = [event for event in events if isinstance(event, BatchPaused | BatchResumed)]
        assert [(event.tag, event.reason) for event in pauses] == [
            ("batch_paused", "budget"),
            ("batch_paused", "operator"),
            ("batch_resumed", "budget"),
            ("batch_resumed", "operator"),
            ("batch_paused", "budget"),
            ("batch_resumed", "budget"),
        ]


async def test_it_is_exceeded_by_no_more_than_what_was_in_flight(open_store: StoreMaker) -> None:
    begun = 0

    @durable_activity
    async def wait(number: int) -> int:
        nonlocal begun
        begun += 1
        await env.clock.sleep(1 + number)
        current_activity().spend(cost=CENT)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await wait(number) + await wait(number + 1)

    config = BatchConfig(concurrency=3, budget=Budget(cost=2 * CENT))
    async with environment(run, store=open_store, config=config) as env:
        batch_id = await env.batches.submit(range(9))
        await env.advance(60 * SECOND)
        snapshot = await env.batches.snapshot(batch_id)
        assert (snapshot.counts.running, [pause.reason for pause in snapshot.pauses]) == (0, ["budget"])
        # Beside the call that spent the last of it, one of each other document ran; all of them are recorded.
        assert snapshot.spent.cost == begun * CENT <= 4 * CENT


@pytest.mark.parametrize(("estimate", "spends"), [(1, 1), (2, 1), (3, 3)])
async def test_calls_that_say_what_they_will_take_never_exceed_it(
    open_store: StoreMaker, estimate: int, spends: int
) -> None:
    """Whatever runs at once, and also where a worker dies that has reserved room."""
    begun, gate = 0, asyncio.Event()

    @durable_activity(estimate=Amount(cost=estimate * CENT))
    async def wait(number: int) -> int:
        nonlocal begun
        begun += 1
        if begun <= 2:
            await gate.wait()
        await env.clock.sleep(1 + number % 3)
        current_activity().spend(cost=spends * CENT)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return sum(await map_activity(wait, [number, number + 1], concurrency=2))

    config = BatchConfig(concurrency=6, budget=Budget(cost=7 * CENT))
    async with environment(run, store=open_store, config=config) as env:
        batch_id = await env.batches.submit(range(20))
        await env.advance(5 * SECOND)
        # What two calls that hang have reserved is nobody else's.
        first = (await env.batches.snapshot(batch_id)).spent.cost
        assert 2 * estimate * CENT + first <= 7 * CENT
        gate.set()
        await env.crash()
        await env.advance(120 * SECOND)
        snapshot = await env.batches.snapshot(batch_id)
        assert (snapshot.counts.running, [pause.reason for pause in snapshot.pauses]) == (0, ["budget"])
        assert (7 - estimate) * CENT < snapshot.spent.cost <= 7 * CENT
        # One by one, to the last cent.
        for limit in (10, 11):
            if limit * CENT > snapshot.spent.cost:
                await env.batches.update(batch_id, budget=Budget(cost=limit * CENT))
                await env.advance(60 * SECOND)
                snapshot = await env.batches.snapshot(batch_id)
                assert (limit - estimate) * CENT < snapshot.spent.cost <= limit * CENT
        await env.batches.update(batch_id, budget=None)
        await env.advance(60 * SECOND)
        assert (await env.finished(batch_id)).counts.succeeded == 20


async def test_room_that_a_call_did_not_need_is_given_back() -> None:
    def estimate(number: int) -> Amount:
        return Amount(tokens=60)

    @durable_activity(estimate=estimate, retry=ONCE)
    async def spare(number: int) -> int:
        if number == 1:
            raise ValueError("it took nothing")
        if number == 2:
            current_activity().spend(tokens=30)
        return number

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await spare(number)

    config = BatchConfig(concurrency=5, budget=Budget(tokens=100))
    async with environment(run, config=config) as env:
        result = await env.finished(await env.batches.submit(range(6)))
        assert (result.counts.succeeded, result.counts.failed, result.spent.total.tokens) == (5, 1, 30)
    record = await env.store.batch(result.batch_id)
    assert record is not None
    assert "reserved" not in decode_core(record.core)


async def test_a_batch_fails_where_that_is_asked_for(open_store: StoreMaker) -> None:
    config = BatchConfig(concurrency=1, budget=Budget(tokens=30, then="fail"))
    async with environment(asks, store=open_store, config=config) as env:
        result = await env.finished(await env.batches.submit(range(4)))
        assert isinstance(result.state, Failed)
        assert result.state.error == "the budget is spent: 0.03 and 30 tokens are spent, of 30 tokens"
        assert (result.counts.succeeded, result.counts.cancelled) == (1, 3)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"tokens": 0},
        {"tokens": -5},
        {"tokens": 1.0},
        {"tokens": True},
        {"cost": 0},
        {"cost": -1},
        {"cost": 0.5},
        {"cost": True},
        {"cost": Decimal("NaN")},
        {"cost": Decimal("Infinity")},
        {"cost": Decimal("1e30")},
        {"cost": Decimal("1e-13")},
        {"cost": 1, "then": "resume"},
        {"costs": 1},
    ],
)
def test_what_is_no_budget_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Budget(**limits)


def test_a_budget_is_read_again_exactly() -> None:
    budget = Budget(cost=Decimal("1E+2") / 3, tokens=7)
    assert budget.cost == Decimal("33.333333333333")
    assert Budget.model_validate_json(budget.model_dump_json()) == budget
    assert Budget.model_validate_json('{"cost": "12.50"}').cost == Decimal("12.5")
    for inexact in ("12.5", "12", '"1e3"', '" 1"', '"0.00"', '"1_000"', '"-1"', '"NaN"', '"1\\n"', "true"):
        with pytest.raises(ValidationError):
            Budget.model_validate_json(f'{{"cost": {inexact}}}')


async def test_killed_at_each_write_the_batch_ends_with_its_budget() -> None:
    stores: list[MemoryStore] = []

    def make(clock: ManualClock) -> MemoryStore:
        stores.append(MemoryStore(clock=clock))
        return stores[-1]

    @workflow(STAGES)
    async def run(number: int) -> int:
        return await ask(number) + await ask(number)

    config = BatchConfig(concurrency=1, budget=Budget(cost=5 * CENT, then="fail"))
    await survives_crashes(run, range(3), store=make, config=config)
    spent: set[Decimal] = set()
    for store in stores:
        async with BatchClient(store) as client:
            spent.update([batch.spent.cost async for batch in client.list_batches()])
    assert spent == {5 * CENT}
