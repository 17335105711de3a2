"""The client: reads and commands the batches of any workflow, without a worker and without the workflow's code."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.records import Committed
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_clock, check_flag
from durable_batches.outage import Outages
from durable_batches.reading.control import Control
from durable_batches.reading.news import News
from durable_batches.reading.raw_access import RawAccess
from durable_batches.reading.reader import BatchReader
from durable_batches.reading.signals import NewsSignals
from durable_batches.stores.protocol import Attachable, Store, check_store
from durable_batches.tasks import ReusableLock

__all__ = ["BatchClient"]


class BatchClient(RawAccess):
    """Reads the batches of any workflow, and cancels them, inside `async with`; constructing it needs no event loop.

    It runs nothing: it registers no worker, needs none of the workflows' code, and neither creates nor migrates the
    store, of which rights to read are enough. A store of your own that is not `Attachable` is opened as workers open
    it. Methods that follow a batch, or yield one page after another, wait while the store is away, and log it once;
    those that return at once raise `StoreUnavailableError`.

    Args:
        store: The store of the batches.
        read_only: Refuse every command.
        clock: The source of time.

    Raises:
        ConfigurationError: `store` is no store, or is not `Attachable` though `read_only` asks for it.
    """

    def __init__(self, store: Store, *, read_only: bool = False, clock: Clock | None = None) -> None:
        check_store(store)
        check_flag("read_only", read_only)
        check_clock(clock)
        if read_only and not isinstance(store, Attachable):
            raise ConfigurationError(
                f"{type(store).__name__} cannot be opened for reading only: it has no attach() of "
                "durable_batches.stores.Attachable; leave out read_only=True"
            )
        self._store = store
        clock = SystemClock() if clock is None else clock
        outages = Outages(clock)
        self.signals: NewsSignals = NewsSignals()
        self._news = News(store, clock, outages, self.signals)
        control = Control(store, clock, outages, self._committed)
        reader = BatchReader(store, clock, self._news, outages, running=lambda: self._entered > 0, owner="client")
        super().__init__(reader, clock, None if read_only else control.give)
        self._entered = 0
        self._entering = ReusableLock()

    async def __aenter__(self) -> Self:
        """Open the store as it is. Entering nests.

        Raises:
            StoreNotFoundError: There is no store: no file, no tables. Nothing is created.
            SchemaTooOldError: A migration of the store is missing. None is applied.
            SchemaTooNewError: A newer library has changed the store in a way that this one must not touch.
            StoreUnavailableError: The store could not be opened.
            WorkerNotRunningError: It was entered in another event loop, which runs yet.
        """
        async with self._entering:
            if self._entered > 0:
                self._news.check_loop()
            else:
                await (self._store.attach() if isinstance(self._store, Attachable) else self._store.open())
                self._news.open()
            self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wake those who follow batches, and close the store."""
        async with self._entering:
            self._entered -= 1
            if self._entered == 0:
                try:
                    await self._news.close()
                finally:
                    await self._store.close()

    def _committed(self, batch_id: BatchId, command: Command, committed: Committed) -> None:
        self._news.deliver(committed.events)
