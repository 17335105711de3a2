"""The client: reads and commands the batches of any workflow, without a worker and without the workflow's code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.progress import BatchSnapshot, RecordedStages
from durable_batches.lifecycle.records import Committed, ExecutionStatus
from durable_batches.lifecycle.states import BatchId, Stage
from durable_batches.options import check_flag
from durable_batches.outage import Outages
from durable_batches.reading.access import BatchAccess
from durable_batches.reading.control import Control
from durable_batches.reading.documents import RawDocument, raw_document
from durable_batches.reading.news import News
from durable_batches.reading.notes import WorkerNotes
from durable_batches.reading.reader import BatchReader
from durable_batches.reading.results import PAGE
from durable_batches.reading.signals import NewsSignals
from durable_batches.stores.protocol import Attachable, Store, check_store
from durable_batches.tasks import ReusableLock

__all__ = ["BatchClient"]


class BatchClient(BatchAccess[Stage]):
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
        if read_only and not isinstance(store, Attachable):
            raise ConfigurationError(
                f"{type(store).__name__} cannot be opened for reading only: it has no attach() of "
                "durable_batches.stores.Attachable; leave out read_only=True"
            )
        self._store = store
        clock = clock or SystemClock()
        outages = Outages(clock)
        self.signals: NewsSignals = NewsSignals()
        self._news = News(store, clock, outages, self.signals)
        control = Control(store, clock, outages, self._committed)
        reader = BatchReader(store, clock, self._news, outages, running=lambda: self._entered > 0, owner="client")
        super().__init__(reader, RecordedStages(), clock, None if read_only else control.give)
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

    def list_batches(
        self,
        *,
        workflow: str | None = None,
        states: Collection[str] = (),
        metadata: Mapping[str, str] | None = None,
        created_before: datetime | None = None,
    ) -> AsyncGenerator[BatchSnapshot[Stage], None]:
        """Yield batches, newest first, one page in memory at a time.

        Args:
            workflow: Only batches of the workflow with this name.
            states: Only batches in one of these states (tags).
            metadata: Only batches with all of these labels.
            created_before: Only batches created before this moment; an aware datetime.
        """
        return self._snapshots(workflow=workflow, states=states, metadata=metadata, created_before=created_before)

    async def documents(
        self,
        batch_id: str,
        *,
        status: Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"] | None = None,
        fingerprint: str | None = None,
        payloads: bool = True,
    ) -> AsyncGenerator[RawDocument, None]:
        """Yield the documents as they are stored, in submission order, one page in memory at a time.

        Args:
            batch_id: The batch.
            status: Only documents with this status.
            fingerprint: Only failed documents of this group of `errors`.
            payloads: Read the documents and their results, too.

        Raises:
            BatchNotFoundError: There is no such batch.
            ConfigurationError: A fingerprint is given, and another status than "failed".
        """
        if fingerprint is not None and status not in (None, "failed"):
            raise ConfigurationError('only failed documents have a fingerprint; leave out status=, or give "failed"')
        record = await self._reader.awaited_record(batch_id)
        statuses: Collection[ExecutionStatus] = () if status is None else (status,)
        notes, fresh = WorkerNotes(), 0
        found = (
            self._reader.documents(record, statuses, inputs=payloads)
            if fingerprint is None
            else self._reader.documents_of_group(record, fingerprint, inputs=payloads)
        )
        async with aclosing(found) as documents:
            async for document in documents:
                if document.execution.owner is not None and fresh <= 0:
                    notes, fresh = await self._reader.notes(batch_id), PAGE
                fresh -= 1
                yield raw_document(record, document, payloads=payloads, notes=notes)

    def _committed(self, batch_id: BatchId, command: Command, committed: Committed) -> None:
        self._news.deliver(committed.events)
