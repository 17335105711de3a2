"""The suite's foundation: what an adapter's author provides, and the scene that each test begins with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from durable_batches.clock import Clock
from durable_batches.stores.protocol import Store
from durable_batches.testing.conformance.scene import Scene
from durable_batches.testing.virtual.clock import ManualClock

__all__ = ["Conformance"]


@pytest.mark.asyncio
class Conformance:
    """What to provide; see `durable_batches.testing.StoreConformance`."""

    async def make_store(self, clock: Clock) -> Store:
        """A store with nothing in it, not open yet, that goes by this clock. Called once a test."""
        raise NotImplementedError("override make_store: an empty store, not open yet")

    async def reopen_store(self, clock: Clock) -> Store:
        """Another store object on the data of this test's `make_store`, not open yet, as another process has one.

        Asked for where the capabilities say `durable` or `several_processes`.
        """
        raise NotImplementedError(
            "override reopen_store: the store declares that it is durable or serves several processes"
        )

    async def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass on the store's clock.

        Override it for a store that goes by a clock of its own (a database server's).
        """
        self.clock.advance(seconds)

    clock: ManualClock

    @pytest_asyncio.fixture
    async def scene(self) -> AsyncIterator[Scene]:
        """An open store with nothing in it."""
        self.clock = ManualClock()
        store = await self.make_store(self.clock)
        await store.open()
        try:
            yield Scene(store, self.pass_time)
        finally:
            await store.close()

    @pytest_asyncio.fixture
    async def neighbour(self, scene: Scene) -> AsyncIterator[Store]:
        """The same data, open a second time, as another process has it."""
        if not scene.store.capabilities.several_processes:
            pytest.skip("the store does not declare several_processes")
        store = await self.reopen_store(self.clock)
        await store.open()
        try:
            yield store
        finally:
            await store.close()
