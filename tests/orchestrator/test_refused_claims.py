"""A database that refuses what a claim asks for, as one of another kind or release may, is not asked without end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tests.support import STAGES, moving, within

from durable_batches import BatchOrchestrator, MemoryStore, Worker, workflow
from durable_batches.errors import FactRejectedError
from durable_batches.lifecycle.facts import Fact
from durable_batches.stores import ClaimRequest, Committed, WorkerId
from durable_batches.testing import ManualClock

REFUSALS = 3


class RefusingStore(MemoryStore):
    """Refuses the first claims that come without a fact."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.clock = clock
        self.refused: list[float] = []

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        if claim is not None and not facts and len(self.refused) < REFUSALS:
            self.refused.append(self.clock.boot())
            raise FactRejectedError("the database refuses a value: out of range")
        return await super().commit(worker, number, facts, claim)


@workflow(STAGES, name="refused")
async def run(document: str) -> str:
    return document


async def test_a_refused_claim_is_asked_for_again_after_a_pause() -> None:
    store = RefusingStore(ManualClock())
    async with BatchOrchestrator(run, worker=Worker(store, clock=store.clock)) as batches, moving(store.clock, 1.0):
        result = await within(batches.run(["one"]))
    assert result.counts.succeeded == 1
    assert len(store.refused) == REFUSALS
    assert all(later - earlier > 1 for earlier, later in pairwise(store.refused))
