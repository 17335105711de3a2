"""Supplies the limiters of a session whose limits all workers of the store share: one task a limiter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from durable_batches.clock import Clock, Deadline
from durable_batches.errors import ConfigurationError, StoreUnavailableError
from durable_batches.lifecycle.records import SharedLimit, SharedWrites, WorkerId
from durable_batches.outage import Outage, Outages
from durable_batches.runtime.limits import Limiter, SharesLimits, Supply
from durable_batches.stores.protocol import SharedLimits, Store

__all__ = ["SharedBudgets", "check_shared"]

T = TypeVar("T")

_HAND_OVER_SECONDS: Final = 5.0
"""How long a worker that leaves waits for another one that supplies a limiter after it."""


def supply_of(limiter: object) -> Supply | None:
    """Return what is to be supplied; None: the limiter's limits are its own, or it is one of the user's."""
    supply: object = limiter.supply if isinstance(limiter, SharesLimits) else None
    return supply if isinstance(supply, Supply) else None


def check_shared(limiter: object, store: Store, user: str, known: dict[str, object]) -> None:
    """Refuse a limiter whose limits are shared, where that cannot be.

    Args:
        limiter: The limiter.
        store: The worker's.
        user: What uses it, in the error.
        known: The worker's limiters by the names of what they share; this one is added.

    Raises:
        ConfigurationError: The store cannot keep them; or the worker has another limiter of the same.
    """
    supply = supply_of(limiter)
    if supply is None:
        return
    if not isinstance(store, SharedLimits):
        raise ConfigurationError(
            f"{user} has a limiter that shares its limits between workers (shared={supply.shared!r}), and "
            f"{type(store).__name__} cannot keep them (durable_batches.stores.SharedLimits); use another store, or "
            "give each worker a limiter with its part of the limits"
        )
    if known.setdefault(supply.shared, limiter) is not limiter:
        raise ConfigurationError(
            f"{user} has a limiter with shared={supply.shared!r}, and its worker has another one of that name: use "
            "one object for all activities of a worker"
        )


class SharedBudgets:
    """What a session supplies.

    Args:
        store: Where the budgets are.
        worker_id: The session's.
        clock: The worker's.
        outages: Where the store's are logged.
    """

    def __init__(self, store: Store, worker_id: WorkerId, clock: Clock, outages: Outages) -> None:
        self._store = store
        self._worker_id = worker_id
        self._clock = clock
        self._outages = outages
        self._known: dict[str, object] = {}
        self._supplies: list[Supply] = []
        self._tasks: dict[asyncio.Task[None], tuple[Supply, _Budget]] = {}
        self._ended: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()

    def adopt(self, limiter: Limiter) -> None:
        """Supply a limiter from now on, if its limits are shared and it is not supplied yet; before a call asks it.

        Raises:
            ConfigurationError: The store cannot keep them.
        """
        supply = supply_of(limiter)
        if supply is None or self._known.get(supply.shared) is limiter:
            return
        check_shared(limiter, self._store, "an activity", self._known)
        assert isinstance(self._store, SharedLimits)
        outage = self._outages.of(f"the budget of the limiter {supply.shared!r}")
        budget = _Budget(self._store, self._worker_id, self._clock, outage)
        supply.join(budget)
        task = asyncio.create_task(supply.run(budget), name="durable-batches refill")
        self._tasks[task] = supply, budget
        task.add_done_callback(self._has_ended)

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        if not self._ended.done():
            self._ended.set_result(task)

    async def run(self) -> None:
        """Wait until cancelled, and end all then.

        Raises:
            WorkerFencedError: A take has shown that the session is over.
        """
        try:
            (await self._ended).result()
        finally:
            await self._end()

    async def hand_over(self) -> None:
        """End all; other workers of the process that use the same limiters supply them from now on.

        To be called while the worker's row is there: calls of theirs that run are among its calls at once.
        """
        await self._end()
        supplies, self._supplies = self._supplies, []
        for supply in supplies:
            with suppress(TimeoutError):
                async with Deadline(self._clock, _HAND_OVER_SECONDS):
                    await supply.handed_over()

    async def _end(self) -> None:
        tasks, self._tasks = self._tasks, {}
        for task in tasks:
            task.remove_done_callback(self._has_ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for supply, budget in tasks.values():
            supply.leave(budget)
            budget.outage.give_up()
            self._supplies.append(supply)


class _Budget:
    """See `durable_batches.runtime.limits.SharedBudget`."""

    def __init__(self, store: SharedLimits, worker_id: WorkerId, clock: Clock, outage: Outage) -> None:
        self.worker_id: Final = worker_id
        self.clock: Final = clock
        self.outage: Final = outage
        self._store = store

    async def take(self, name: str, plan: Callable[[SharedLimit], SharedWrites[T]]) -> T:
        """Take, and note whether the store has answered."""
        try:
            answer = await self._store.take(name, self.worker_id, plan)
        except StoreUnavailableError as error:
            self.outage.failed(error)
            raise
        self.outage.answered()
        return answer
