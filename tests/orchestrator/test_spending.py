"""What calls say that they have spent is recorded with them, and summed: the bill is the provider's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

import pytest
from tests.conftest import StoreMaker
from tests.support import ONCE, STAGES, Reading, Writing

from durable_batches import (
    Amount,
    BatchClient,
    BatchConfig,
    MemoryStore,
    NonRetryableError,
    NotInActivityError,
    Results,
    RetryFailed,
    RetryPolicy,
    current_activity,
    durable_activity,
    map_activity,
    workflow,
)
from durable_batches.errors import FactRejectedError
from durable_batches.lifecycle.facts import ActivityFailed
from durable_batches.stores import ClaimRequest, Committed, Fact, WorkerId
from durable_batches.testing import ManualClock, environment, survives_crashes

CENT = Decimal("0.01")
SOON = RetryPolicy(max_attempts=3, initial=timedelta(minutes=1))


@dataclass
class Provider:
    """Counts what it charges, to the cent."""

    is_idempotent: bool = False
    """What is asked again under the same key, after a crash, is answered without a charge."""
    charged: Decimal = Decimal(0)
    tokens: int = 0
    known: set[str] = field(default_factory=set[str])

    def ask(self, cents: int) -> None:
        """Charge, and have the call say so."""
        call = current_activity()
        key = f"{call.idempotency_key}/{call.attempt}"
        if not self.is_idempotent or key not in self.known:
            self.known.add(key)
            self.charged += cents * CENT
            self.tokens += 10 * cents
        call.spend(input_tokens=8 * cents, output_tokens=2 * cents, cost=cents * CENT, model=f"model-{cents}")

    @property
    def bill(self) -> Amount:
        return Amount(tokens=self.tokens, cost=self.charged)


_provider: ContextVar[Provider] = ContextVar("provider")


@durable_activity(stage=Reading, retry=SOON)
async def read(document: str) -> list[int]:
    _provider.get().ask(3)
    if document == "flaky" and current_activity().attempt == 1:
        raise ConnectionError("paid, and no answer")
    # One page of what fails: of two, the other would be in flight when the process is killed, which nobody counts.
    return [2] if document == "bad" else [1, 2]


@durable_activity(stage=Writing, retry=ONCE)
def write(page: tuple[str, int]) -> int:
    document, number = page
    _provider.get().ask(number)
    if document == "bad":
        raise NonRetryableError("paid, and of no use")
    return number


@durable_activity(retry=ONCE)
async def conclude(total: int) -> int:
    _provider.get().ask(7)
    return total


async def add_up(results: Results[int]) -> int:
    return await conclude(sum([result.value async for result in results]))


@workflow(STAGES, resolver=add_up)
async def paid(document: str) -> int:
    numbers = await read(document)
    return sum(await map_activity(write, [(document, number) for number in numbers]))


async def test_the_bill_is_the_providers(open_store: StoreMaker) -> None:
    provider = Provider()
    _provider.set(provider)
    clock = ManualClock()
    async with environment(paid, store=open_store, clock=clock) as env:
        batch_id = await env.batches.submit(["good", "flaky", "bad"], document_id=str)
        result = await env.finished(batch_id)
        spending = await env.batches.spent(batch_id)
        assert result.spent == spending
        assert (await env.batches.snapshot(batch_id)).spent == spending.total == provider.bill
        assert {name: amount.cost for name, amount in spending.by_activity.items()} == {
            "read": 12 * CENT,
            "write": 8 * CENT,
            "conclude": 7 * CENT,
        }
        assert {name: amount.cost for name, amount in spending.by_stage.items()} == {
            "reading": 12 * CENT,
            "writing": 8 * CENT,
        }
        assert spending.resolver == Amount(tokens=70, cost=7 * CENT)
        assert spending.by_model["model-3"].input_tokens == 24 * 4
        assert spending.by_model["model-3"].output_tokens == 6 * 4
        assert spending.not_paid_again == Amount()
        assert spending.unpriced_calls == 0
        # The failures that ended a document are forgotten, and what they cost with them.
        documents = [await env.batches.document_spent(batch_id, position) for position in (0, 1, 2, -1, 3)]
        assert [amount.cost for amount in documents] == [6 * CENT, 9 * CENT, 3 * CENT, 7 * CENT, 0]
    async with BatchClient(open_store(clock), clock=clock) as client:
        assert await client.spent(batch_id) == spending


async def test_a_recorded_answer_costs_nothing_and_says_what_it_had_cost(open_store: StoreMaker) -> None:
    provider = Provider()
    _provider.set(provider)
    fails = True

    @durable_activity
    async def ask(number: int) -> int:
        provider.ask(number)
        return number

    @workflow(STAGES)
    async def run(document: str) -> int:
        total = await ask(1) + await ask(2)
        if fails:
            raise ValueError("after both")
        return total

    policy = RetryFailed(max_attempts=3, backoff=timedelta(minutes=1))
    async with environment(run, store=open_store, config=BatchConfig(failure_policy=policy)) as env:
        batch_id = await env.batches.submit(["a"])
        await env.advance(timedelta(seconds=90))
        fails = False
        spending = (await env.finished(batch_id)).spent
    assert spending.total == provider.bill == Amount(tokens=30, cost=3 * CENT)
    assert spending.not_paid_again.cost == 6 * CENT


async def test_calls_that_record_nothing_were_paid_for(open_store: StoreMaker) -> None:
    """They are cancelled, refused for the account, or wait for another attempt when the batch is paused or ends."""
    provider = Provider()

    @durable_activity(retry=SOON)
    async def ask(document: str) -> str:
        provider.ask(2)
        match document:
            case "gives up":
                await asyncio.Event().wait()
            case "waits":
                raise ConnectionError("again in a minute")
            case _:
                return document
        raise AssertionError

    @workflow(STAGES)
    async def run(document: str) -> str:
        if document != "gives up":
            return await ask(document)
        call = asyncio.ensure_future(ask(document))
        await env.clock.sleep(1)
        call.cancel()
        return document

    async with environment(run, store=open_store, config=BatchConfig(concurrency=2)) as env:
        batch_id = await env.batches.submit(["gives up", "waits", "good"])
        await env.advance(timedelta(seconds=5))
        assert (await env.batches.snapshot(batch_id)).spent.cost == 4 * CENT
        await env.batches.pause(batch_id)
        await env.advance(timedelta(seconds=5))
        assert (await env.batches.snapshot(batch_id)).spent == provider.bill == Amount(tokens=60, cost=6 * CENT)
        await env.batches.resume(batch_id)
        await env.advance(timedelta(seconds=5))
        await env.batches.cancel(batch_id)
        await env.advance(timedelta(seconds=5))
        assert (await env.batches.snapshot(batch_id)).spent == provider.bill == Amount(tokens=80, cost=8 * CENT)


async def test_an_unknown_price_is_unknown_and_never_nothing() -> None:
    said: list[object] = []

    @durable_activity
    async def ask(document: str) -> str:
        call = current_activity()
        if document == "costs":
            call.spend(tokens=5, cost=None)
            call.spend()

        async def later() -> None:
            await env.clock.sleep(60)
            try:
                call.spend(tokens=1)
            except NotInActivityError as error:
                said.append(error)

        said.append(asyncio.ensure_future(later()))
        return document

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    async with environment(run) as env:
        spending = (await env.batches.result(await env.batches.submit(["costs", "free"]))).spent
        await env.advance(timedelta(minutes=2))
    assert (spending.total, spending.unpriced_calls) == (Amount(tokens=5), 1)
    # Also where nothing was said before.
    errors = [str(error) for error in said if isinstance(error, NotInActivityError)]
    assert len(errors) == 2
    assert all("after the call of activity 'ask' had ended" in error for error in errors)


class RefusingStore(MemoryStore):
    """Stores no failure of a call."""

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        if any(isinstance(fact, ActivityFailed) for fact in facts):
            raise FactRejectedError("the database refuses a value")
        return await super().commit(worker, number, facts, claim)


async def test_a_failure_that_cannot_be_stored_was_paid_for() -> None:
    @durable_activity(retry=ONCE)
    async def ask(document: str) -> str:
        current_activity().spend(cost=CENT)
        raise NonRetryableError(document)

    @workflow(STAGES)
    async def run(document: str) -> str:
        return await ask(document)

    clock = ManualClock()
    async with environment(run, store=lambda _: RefusingStore(clock=clock), clock=clock) as env:
        result = await env.batches.result(await env.batches.submit(["paid"]))
    assert (result.counts.failed, result.spent.total.cost) == (1, CENT)


@pytest.mark.parametrize("documents", [["good", "flaky", "bad"]])
async def test_killed_at_each_write_the_bill_is_the_providers(documents: Iterable[str]) -> None:
    stores: list[MemoryStore] = []
    bills: list[tuple[Provider, MemoryStore]] = []

    def make(clock: ManualClock) -> MemoryStore:
        stores.append(MemoryStore(clock=clock))
        bills.append((_provider.get(), stores[-1]))
        return stores[-1]

    def prepare() -> None:
        _provider.set(Provider(is_idempotent=True))

    _provider.set(Provider(is_idempotent=True))
    report = await survives_crashes(paid, documents, document_id=str, store=make, prepare=prepare)
    assert report.points > report.writes > 10
    checked = 0
    for provider, store in bills:
        async with BatchClient(store) as client:
            async for batch in client.list_batches():
                assert batch.spent == provider.bill
                checked += 1
    assert checked > report.points
