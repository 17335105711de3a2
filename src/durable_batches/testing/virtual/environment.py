"""`environment(workflow)`: run batches in virtual time, with crashes on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Final, Generic, Protocol, TypeAlias

from typing_extensions import TypeVar

from durable_batches.blocks import asynccontextmanager
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.states import Stage
from durable_batches.options import check_callable, check_duration, check_instance
from durable_batches.orchestrator.orchestrator import BatchOrchestrator
from durable_batches.runtime.dependencies import Provider
from durable_batches.runtime.results import BatchResult
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.memory import MemoryStore
from durable_batches.stores.protocol import Store
from durable_batches.testing.virtual.clock import ManualClock
from durable_batches.testing.virtual.crashable_store import CrashableStore
from durable_batches.testing.virtual.driver import PATIENCE, Driver, Stuck, virtual_worker
from durable_batches.testing.virtual.inside import kill, unlogged_restart

__all__ = ["BatchEnvironment", "Environment", "StoreMaker", "environment"]

D = TypeVar("D")
R = TypeVar("R")
S = TypeVar("S", bound=Stage, default=Stage)
V = TypeVar("V", default=None)
R_co = TypeVar("R_co", covariant=True)
S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)
V_co = TypeVar("V_co", default=None, covariant=True)

StoreMaker: TypeAlias = Callable[[ManualClock], Store]
"""A function that creates a store on a clock: `lambda clock: SQLiteStore("batches.db", clock=clock)`."""


class Environment(Generic[D, R_co, S_co, V_co]):
    """The value of `environment(workflow)`.

    Attributes:
        batches: The orchestrator; it stays the same across crashes.
        clock: The clock of the environment. An activity's fake that should take a while sleeps on it:
            `await env.clock.sleep(30)`.
        store: The store of the batches.
    """

    def __init__(
        self,
        batches: BatchOrchestrator[D, R_co, S_co, V_co],
        clock: ManualClock,
        store: CrashableStore,
        driver: Driver,
    ) -> None:
        self.batches: Final[BatchOrchestrator[D, R_co, S_co, V_co]] = batches
        self.clock: Final = clock
        self.store: Final[Store] = store.inner
        self._crashable = store
        self._worker = batches.worker
        self._driver = driver

    def __repr__(self) -> str:
        return f"<environment on {self.store!r}, {self.clock!r}>"

    async def settled(self) -> None:
        """Return when all work has finished or waits, for time to pass or for an external event.

        Then everything that is due is claimed, and everything is committed. An activity waits for time to pass if it
        sleeps on the environment's clock. An activity that waits for anything else is considered hanging, and so
        waiting, when nothing has happened for the environment's `patience`.
        """
        self._worker.wake()
        await self._driver.settled()

    async def advance(self, by: timedelta) -> None:
        """Let time pass: retries, timeouts, deadlines and sleeps happen when they are due, one after another.

        Everything settles before each of them, so one call may make three retries in a row, each at its own time. It
        takes only as long as the work in that time.

        Raises:
            ConfigurationError: `by` is no timedelta, or negative.
        """
        check_duration("the time to advance by", by)
        if by < timedelta(0):
            raise ConfigurationError("time cannot be advanced by less than nothing")
        self._worker.wake()
        await self._driver.advance(by)

    async def finished(self, batch_id: str) -> BatchResult[V_co]:
        """Let time pass until the batch has ended, and return its result.

        Raises:
            AssertionError: The batch waits for something other than time.
            BatchNotFoundError: There is no such batch.
        """
        result = asyncio.create_task(self.batches.result(batch_id))
        try:
            await self._driver.through(result)
        except Stuck:
            counts = (await self.batches.snapshot(batch_id)).counts
            raise AssertionError(
                f"batch {batch_id!r} does not end, however much time passes: {counts.running} of its {counts.total} "
                f"documents are running, {counts.waiting} waiting, {counts.pending} pending"
            ) from None
        finally:
            result.cancel()
        return await result

    async def crash(self) -> None:
        """Crash and restart the process, like `kill -9`: work that was not committed is lost, and runs again.

        Running work is cancelled. A killed process runs no `finally` blocks; here they run, since there is no other way
        within one process, but their writes do not reach the store. A submission in progress fails. Then the next
        worker takes over, on the same store, and finds its predecessor dead, which counts as a crash of the documents
        that it was running (`BatchConfig.max_crashes`). Dependencies stay open.

        `batches` stays usable, and tasks that wait for a result or events through it keep waiting.
        """
        dead = self._worker.worker_id
        self._crashable.kill(dead)
        with self._worker.signals.membership.restarted.listen() as restarted, unlogged_restart(dead):
            kill(self._worker)
            expired = await self.store.expire(dead=[dead])
            self._worker.announce(expired.events)
            await restarted.next()


@asynccontextmanager
async def environment(
    workflow: Workflow[D, R, S, V],
    *,
    store: Store | StoreMaker | None = None,
    clock: ManualClock | None = None,
    config: BatchConfig | None = None,
    max_in_flight: int = 100,
    dependencies: Mapping[Provider, object] | None = None,
    patience: timedelta = PATIENCE,
) -> AsyncGenerator[Environment[D, R, S, V]]:
    """Run a workflow's batches in virtual time, in which a month passes instantly. For tests.

    Args:
        workflow: The workflow to run.
        store: A function that creates the store on the environment's clock; or a store, with its clock as `clock`. By
            default a store in memory.
        clock: The clock; by default a new one, which starts in 2030.
        config: The configuration of batches that are submitted without one.
        max_in_flight: Documents in flight.
        dependencies: Replacements by provider; see `Worker`.
        patience: The real time without any event after which an activity is considered hanging.

    Raises:
        ConfigurationError: `store` is a store without a `clock`, or neither a store nor a function.

    Example::

        async with environment(headline) as env:
            batch_id = await env.batches.submit(["rain", "sun"])
            await env.advance(timedelta(hours=1))
            assert (await env.batches.state(batch_id)).tag == "completed"
    """
    if isinstance(store, Store) and clock is None:
        raise ConfigurationError(
            "environment(store=...) takes a function that makes the store, so that it goes by the environment's clock: "
            "store=lambda clock: SQLiteStore(path, clock=clock); or give the clock that it was made with as well"
        )
    if store is not None and not isinstance(store, Store):
        check_callable("store", store)
    check_instance("clock", clock, ManualClock, optional=True)
    check_duration("patience", patience)
    if patience <= timedelta(0):
        raise ConfigurationError("patience must be positive")
    clock = ManualClock() if clock is None else clock
    crashable = CrashableStore(_made(store, clock))
    worker = virtual_worker(crashable, clock, max_in_flight=max_in_flight, dependencies=dependencies)
    async with BatchOrchestrator(workflow, worker=worker, config=config) as batches:
        yield Environment(batches, clock, crashable, Driver(worker, crashable, clock, patience))


class BatchEnvironment(Protocol):
    """The type of the pytest fixture `batch_environment`: like `environment`, on a SQLite file of the test.

    A second call in the same test opens the same file, like the next process, and time continues.
    """

    def __call__(
        self,
        workflow: Workflow[D, R, S, V],
        *,
        store: Store | StoreMaker | None = None,
        clock: ManualClock | None = None,
        config: BatchConfig | None = None,
        max_in_flight: int = 100,
        dependencies: Mapping[Provider, object] | None = None,
        patience: timedelta = PATIENCE,
    ) -> AbstractAsyncContextManager[Environment[D, R, S, V]]:
        """See `environment`."""
        ...


def _made(store: Store | StoreMaker | None, clock: ManualClock) -> Store:
    if store is None:
        return MemoryStore(clock=clock)
    return store if isinstance(store, Store) else store(clock)
