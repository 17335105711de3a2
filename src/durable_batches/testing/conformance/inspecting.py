"""Why a batch is where it is: what a store tells of it by its indexes."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import pytest
import pytest_asyncio

from durable_batches.lifecycle.policies import RetryFailed
from durable_batches.lifecycle.records import RESOLVER_POSITION
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import Inspectable
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import LEASE, Scene

__all__ = ["InspectingConformance"]

_MANY: Final = 1_000


class InspectingConformance(Conformance):
    """Inspect batches. Skipped for a store that is not `Inspectable`."""

    @pytest_asyncio.fixture
    async def inspectable(self, scene: Scene) -> Inspectable:
        """Return the scene's store."""
        if not isinstance(scene.store, Inspectable):
            pytest.skip("the store is not Inspectable")
        return scene.store

    async def test_what_workers_own_is_found(self, scene: Scene, inspectable: Inspectable) -> None:
        """`owned` has the executions of this batch that a worker owns, at most `limit`."""
        batch_id, other = await scene.batch(5, concurrency=3), await scene.batch(1)
        hand = await scene.worker()
        claims = await hand.claim()
        assert len(claims) == 4
        found = await inspectable.inspect(batch_id, limit=_MANY)
        assert list(found.owned) == [claim.execution for claim in claims if claim.batch.batch_id == batch_id]
        assert len((await inspectable.inspect(batch_id, limit=2)).owned) == 2
        assert len((await inspectable.inspect(other, limit=_MANY)).owned) == 1
        nothing = await inspectable.inspect(BatchId("nowhere"), limit=_MANY)
        assert (list(nothing.owned), list(nothing.due), list(nothing.isolated), nothing.resolver) == ([], [], [], None)

    async def test_when_what_waits_is_due(self, scene: Scene, inspectable: Inspectable) -> None:
        """`due` has the due times of documents that wait for one, in order; what never started waits for none."""
        batch_id = await scene.batch(4, concurrency=3, policy=RetryFailed(backoff=timedelta(minutes=1)))
        hand = await scene.worker()
        await hand.report(*[hand.failed(claim) for claim in await hand.claim()])
        waiting = await scene.store.documents(batch_id, statuses=["waiting"], limit=_MANY)
        found = await inspectable.inspect(batch_id, limit=_MANY)
        assert list(found.due) == sorted(document.execution.due or 0 for document in waiting)
        assert len(found.due) == 3
        assert found.now < found.due[0]
        assert list((await inspectable.inspect(batch_id, limit=1)).due) == list(found.due[:1])

    async def test_what_crashed_several_times_is_found(self, scene: Scene, inspectable: Inspectable) -> None:
        """`isolated` has what can be claimed and has crashed twice or more; what is owned is not in it."""
        batch_id = await scene.batch(2, max_crashes=5)
        for crashes in range(2):
            assert not (await inspectable.inspect(batch_id, limit=_MANY)).isolated, f"after {crashes} crashes"
            await (await scene.worker()).claim()
            await scene.pass_time(LEASE + 1)
            await scene.store.expire()
        found = await inspectable.inspect(batch_id, limit=_MANY)
        assert [(each.position, each.crashes) for each in found.isolated] == [(0, 2), (1, 2)]
        (claim,) = await (await scene.worker()).claim(1)
        found = await inspectable.inspect(batch_id, limit=_MANY)
        assert [each.position for each in found.isolated] == [1 - claim.execution.position]

    async def test_the_resolver_is_told_apart(self, scene: Scene, inspectable: Inspectable) -> None:
        """`resolver` is the resolver's execution, where there is one."""
        batch_id, without = await scene.batch(1, resolver=True), await scene.batch(1)
        found = await inspectable.inspect(batch_id, limit=_MANY)
        assert found.resolver is not None
        assert found.resolver.position == RESOLVER_POSITION
        assert (await inspectable.inspect(without, limit=_MANY)).resolver is None

    async def test_the_leases_of_workers(self, scene: Scene, inspectable: Inspectable) -> None:
        """`leases` says how much is left of each lease, and how long it is; an expired worker has none."""
        batch_id = await scene.batch(1)
        hand = await scene.worker(lease=100)
        await scene.pass_time(40)
        left, length = (await inspectable.inspect(batch_id, limit=_MANY)).leases[hand.worker_id]
        assert length == 100_000_000
        assert 50_000_000 < left <= 60_000_000
        await scene.pass_time(100)
        assert (await inspectable.inspect(batch_id, limit=_MANY)).leases[hand.worker_id].left < 0
        await scene.store.expire()
        assert not (await inspectable.inspect(batch_id, limit=_MANY)).leases
