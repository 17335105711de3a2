"""The base of the suite: the methods that an adapter's author provides, and the fixtures of the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from durable_batches.clock import Clock
from durable_batches.stores.protocol import Store
from durable_batches.testing.conformance.scene import Scene
from durable_batches.testing.virtual.clock import ManualClock

__all__ = ["Conformance", "from_level_2"]


@pytest.mark.asyncio
class Conformance:
    """The methods to override; see `durable_batches.testing.StoreConformance`."""

    async def make_store(self, clock: Clock) -> Store:
        """Create an empty store on this clock, without opening it. Called once per test."""
        raise NotImplementedError("override make_store: an empty store, not open yet")

    async def reopen_store(self, clock: Clock) -> Store:
        """Create another store object on the data of `make_store`, like another process, without opening it.

        Called if the capabilities declare `durable` or `several_processes`.
        """
        raise NotImplementedError(
            "override reopen_store: the store declares that it is durable or serves several processes"
        )

    async def pass_time(self, seconds: float) -> None:
        """Let a number of seconds pass on the store's clock.

        Override it for a store with its own clock (that of a database server).
        """
        self.clock.advance(seconds)

    async def count_reads(self, store: Store) -> int | None:
        """Return how many rows (or steps) the store's commits have read since the first call; None: it is not known.

        Override it for a store of level 2, to have the suite check that batches that sleep cost a claim nothing.
        """
        return None

    clock: ManualClock

    @pytest_asyncio.fixture
    async def scene(self) -> AsyncIterator[Scene]:
        """Open an empty store."""
        self.clock = ManualClock()
        store = await self.make_store(self.clock)
        await store.open()
        try:
            yield Scene(store, self.pass_time)
        finally:
            await store.close()

    @pytest_asyncio.fixture
    async def second_store(self, scene: Scene) -> AsyncIterator[Store]:
        """Open the same data a second time, like another process."""
        if not scene.store.capabilities.several_processes:
            pytest.skip("the store does not declare several_processes")
        store = await self.reopen_store(self.clock)
        await store.open()
        try:
            yield store
        finally:
            await store.close()


def from_level_2(scene: Scene) -> None:
    """Skip the test for a store that declares a lower level."""
    if scene.store.capabilities.level < 2:
        pytest.skip("the store does not declare level 2")
