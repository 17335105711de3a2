"""Opening a store as it is, for those who only read."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from durable_batches.lifecycle.commands import Cancel
from durable_batches.stores.protocol import Attachable, Store
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import Scene, all_events

__all__ = ["AttachingConformance"]


class AttachingConformance(Conformance):
    """Attach. Skipped for a store that is not `Attachable`."""

    @pytest_asyncio.fixture
    async def attached(self, scene: Scene) -> AsyncIterator[Store]:
        """Attach to the data of another open store, like another process."""
        if not isinstance(scene.store, Attachable):
            pytest.skip("the store is not Attachable")
        several = scene.store.capabilities.several_processes
        store = await self.reopen_store(self.clock) if several else scene.store
        assert isinstance(store, Attachable)
        await store.attach()
        try:
            yield store
        finally:
            await store.close()

    async def test_what_is_there_is_read(self, scene: Scene, attached: Store) -> None:
        """An attached store reads what others write, also after it was attached."""
        batch_id = await scene.batch(2)
        hand = await scene.worker()
        await hand.report(hand.succeeded((await hand.claim())[0]))
        assert await attached.batch(batch_id) == await scene.store.batch(batch_id)
        assert await attached.documents(batch_id, limit=10) == await scene.store.documents(batch_id, limit=10)
        assert await all_events(attached, batch_id) == await all_events(scene.store, batch_id)
        assert [row.worker_id for row in await attached.workers()] == [hand.worker_id]

    async def test_a_batch_is_cancelled_through_it(self, scene: Scene, attached: Store) -> None:
        """Commands are given through an attached store, where its rights allow it."""
        batch_id = await scene.batch(1)
        assert (await attached.control(batch_id, Cancel("a request", "a reason"))).applied
        assert (await scene.look(batch_id)).state == "cancelled"

    async def test_attaching_nests_with_opening(self, scene: Scene, attached: Store) -> None:
        """`open` after `attach` makes the store ready to work; each of them wants its `close`."""
        batch_id = await scene.batch(1)
        await attached.open()
        await attached.close()
        record = await attached.batch(batch_id)
        assert record is not None
        assert record.sealed
