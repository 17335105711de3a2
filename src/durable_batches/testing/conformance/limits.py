"""Limits that workers share: what a store loads for a plan, and writes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import pytest_asyncio

from durable_batches.errors import WorkerFencedError
from durable_batches.lifecycle.records import SharedLimit, SharedSlot, SharedWrites, WorkerId
from durable_batches.stores.protocol import SharedLimits, Store
from durable_batches.testing.conformance.base import Conformance
from durable_batches.testing.conformance.scene import Scene

__all__ = ["LimitsConformance"]


class LimitsConformance(Conformance):
    """Take of shared limits. Skipped for a store that is not `SharedLimits`."""

    @pytest_asyncio.fixture
    async def limits(self, scene: Scene) -> SharedLimits:
        """Return the scene's store."""
        if not isinstance(scene.store, SharedLimits):
            pytest.skip("the store is not SharedLimits")
        return scene.store

    async def test_a_take_loads_what_the_last_one_wrote(self, scene: Scene, limits: SharedLimits) -> None:
        """A plan is given the data and all slots of its limit, and no others; its answer is returned."""
        one, two = (await scene.worker()).worker_id, (await scene.worker()).worker_id
        name = "open-ai 文/%'"
        first = await limits.take(name, one, _writes(b"", 2, b"a\0"))
        assert (first.data, dict(first.slots)) == (None, {}), "nothing was written of it"
        second = await limits.take(name, two, _writes(b"\xff\0", 0))
        assert (second.data, dict(second.slots)) == (b"", {one: SharedSlot(2, b"a\0")})
        await limits.take("another", one, _writes(b"other", 7))
        third = await limits.take(name, one, _writes(b"x" * 100_000, 2**40))
        assert (third.data, dict(third.slots)) == (b"\xff\0", {one: SharedSlot(2, b"a\0"), two: SharedSlot(0, b"")})
        last = await limits.take(name, one, _writes(b"", 1))
        assert (last.data, last.slots[one].amount) == (b"x" * 100_000, 2**40)

    async def test_time_passes_between_takes(self, scene: Scene, limits: SharedLimits) -> None:
        """`now` is in microseconds, and passes as leases do."""
        worker = (await scene.worker(lease=1_000)).worker_id
        before = await limits.take("limit", worker, _writes(b"", 0))
        await scene.pass_time(2)
        after = await limits.take("limit", worker, _writes(b"", 0))
        assert 0 < after.now - before.now < 1_000_000_000, "`now` must be read for each take, in microseconds"

    async def test_slots_go_with_their_worker(self, scene: Scene, limits: SharedLimits) -> None:
        """Of a worker that has left or was expired nothing is left, and it takes no more."""
        stays, leaves, dies = [(await scene.worker()).worker_id for _ in range(3)]
        for worker in (stays, leaves, dies):
            await limits.take("limit", worker, _writes(b"kept", 1))
        await scene.store.leave(leaves)
        found = await limits.take("limit", stays, _writes(b"kept", 1))
        assert sorted(found.slots) == sorted([stays, dies])
        await scene.store.expire(dead=[dies])
        found = await limits.take("limit", stays, _writes(b"kept", 1))
        assert (found.data, list(found.slots)) == (b"kept", [stays])
        asked: list[SharedLimit] = []
        for gone in (leaves, dies, WorkerId("nobody")):
            with pytest.raises(WorkerFencedError):
                await limits.take("limit", gone, _writes(b"lost", 5, asked=asked))
        assert not asked
        found = await limits.take("limit", stays, _writes(b"", 0))
        assert (found.data, list(found.slots)) == (b"kept", [stays])

    async def test_a_plan_that_fails_writes_nothing(self, scene: Scene, limits: SharedLimits) -> None:
        """Its error is raised as it is; neither the limit nor a slot is written."""
        one, two = (await scene.worker()).worker_id, (await scene.worker()).worker_id

        def fail(limit: SharedLimit) -> SharedWrites[None]:
            raise ZeroDivisionError("a mistake")

        for data in (None, b"kept"):
            with pytest.raises(ZeroDivisionError, match="a mistake"):
                await limits.take("limit", two, fail)
            found = await limits.take("limit", one, _writes(b"kept", 3))
            assert found.data == data
            assert two not in found.slots

    async def test_takes_of_one_limit_follow_each_other(
        self, scene: Scene, limits: SharedLimits, second_store: Store
    ) -> None:
        """Of takes at the same moment, also of other processes, each is given what the one before has written."""
        assert isinstance(second_store, SharedLimits)
        hands = [await scene.worker() for _ in range(2)]

        def count(limit: SharedLimit) -> SharedWrites[int]:
            number = int(limit.data or b"0") + 1
            return SharedWrites(b"%d" % number, SharedSlot(number), number)

        takes = [
            store.take("limit", hand.worker_id, count)
            for store in (limits, second_store)
            for hand in hands
            for _ in range(3)
        ]
        assert sorted(await asyncio.gather(*takes)) == list(range(1, len(takes) + 1))


def _writes(
    data: bytes, amount: int, slot: bytes = b"", *, asked: list[SharedLimit] | None = None
) -> Callable[[SharedLimit], SharedWrites[SharedLimit]]:
    """Make a plan that writes this, and answers with what it was given."""

    def plan(limit: SharedLimit) -> SharedWrites[SharedLimit]:
        if asked is not None:
            asked.append(limit)
        return SharedWrites(data, SharedSlot(amount, slot), limit)

    return plan
