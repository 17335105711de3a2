"""The reader: batches, their events and their documents as records, for those who know no types of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager, aclosing
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from durable_batches.clock import Clock
from durable_batches.errors import (
    BatchNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    TransactionOpenError,
    WorkerNotRunningError,
    WorkflowMismatchError,
)
from durable_batches.lifecycle.events import BatchEvent
from durable_batches.lifecycle.fingerprints import fingerprint_of
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.lifecycle.progress import LongCalls
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    DocumentRecord,
    EventRecord,
    ExecutionStatus,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_text
from durable_batches.outage import Outages, ride_out
from durable_batches.reading.explain import inspection_of
from durable_batches.reading.feed import BLOCK, Feed
from durable_batches.reading.news import News
from durable_batches.reading.notes import WorkerNotes
from durable_batches.reading.results import PAGE, document_pages, failure_of, statuses_to_read, stored_page
from durable_batches.runtime.context import waiting_for_batch
from durable_batches.stores.protocol import (
    BatchQuery,
    CountedFailures,
    CountsFailures,
    FindsFailures,
    Inspection,
    Store,
)

__all__ = ["BatchReader"]

_LOOKS: Final = 3
"""How often a batch is inspected that moves each time."""

T = TypeVar("T")


class BatchReader:
    """Reads batches from the store, and follows those that move.

    Those who follow a batch, or go through it page by page, wait on through transient outages of the store, from the
    first look on; other reads raise them.

    Args:
        store: Where the batches are.
        clock: For the pauses.
        news: Says when to look.
        outages: Where the store's are logged.
        running: Returns whether reading is allowed now.
        workflow: The only workflow whose batches are read; None: any.
        owner: The name of its owner, in whose block it reads.
        in_open_transaction: Returns whether a batch was submitted in a transaction that is open yet.
        check_wait: Called before the running task waits for a batch to go on; what it raises is raised.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        news: News,
        outages: Outages,
        *,
        running: Callable[[], bool],
        workflow: str | None = None,
        owner: str = "orchestrator",
        in_open_transaction: Callable[[BatchId], bool] = lambda batch_id: False,
        check_wait: Callable[[str], object] = lambda batch_id: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._news = news
        self._outages = outages
        self._running = running
        self._workflow = workflow
        self._owner = owner
        self._in_open_transaction = in_open_transaction
        self._check_wait = check_wait
        self._sleep = partial(clock.sleep, housekeeping=True)

    async def record(self, batch_id: str) -> BatchRecord:
        """Read a batch.

        Raises:
            ConfigurationError: The id is no str.
            BatchNotFoundError: There is no such batch, or it is not wholly submitted.
            TransactionOpenError: It was submitted in a transaction of the application that is open yet.
            WorkflowMismatchError: It is another workflow's.
            WorkerNotRunningError: Reading is not allowed now.
        """
        self.check_running()
        self._check_name(batch_id)
        return self._checked(batch_id, await self._store.batch(BatchId(batch_id)))

    async def awaited_record(self, batch_id: str) -> BatchRecord:
        """Read a batch; while the store is away, wait."""
        return await self._through_outages(lambda: self.record(batch_id), batch_id)

    async def events(self, batch_id: str, after: int) -> AsyncGenerator[Sequence[BatchEvent], None]:
        """Follow a batch's events beyond `after`, in order, each once, to the last one of its current run.

        They come in blocks, each of them one event or more.
        """
        cursor = max(after, 0)
        with self._subscribed(batch_id) as feed:
            if feed.is_live:
                self._checked(batch_id, feed.record)
            else:
                await self._shared_record(feed, batch_id)
            with feed.followed(cursor):
                while True:
                    block = feed.take(cursor)
                    if block:
                        cursor = block[-1].seq
                        yield block
                    elif feed.is_doubted:
                        await self._shared_record(feed, batch_id)
                    elif cursor < feed.first:
                        await feed.read_earlier(cursor, partial(self._stored_events, batch_id))
                    elif feed.known > feed.last:
                        await feed.read_next(partial(self._stored_events, batch_id))
                    elif feed.has_ended:
                        return
                    else:
                        self._check_wait(batch_id)
                        async with waiting_for_batch():
                            await feed.moved()

    async def changes(self, batch_id: str, interval: timedelta) -> AsyncGenerator[BatchRecord, None]:
        """Follow a batch's record: the latest one, at most every `interval`; the last one is of the end."""
        with self._subscribed(batch_id) as feed:
            wakes = feed.wakes
            record = await self._shared_record(feed, batch_id)
            while True:
                yield record
                if record.ended:
                    return
                self._check_wait(batch_id)
                seen = record.seq
                await self._clock.sleep(interval.total_seconds())
                while record.seq == seen:
                    async with waiting_for_batch():
                        await feed.moved_beyond(seen, wakes)
                    wakes = feed.wakes
                    record = await self._shared_record(feed, batch_id)

    async def ended_record(self, batch_id: str) -> BatchRecord:
        """Wait for the end of a batch's current run, and read the batch then."""
        with self._subscribed(batch_id) as feed:
            ends = feed.ends
            record = await self._shared_record(feed, batch_id)
            while not record.ended:
                self._check_wait(batch_id)
                async with waiting_for_batch():
                    await feed.ended_since(ends)
                ends = feed.ends
                # The first of those who waited reads it for all.
                record = feed.current or await self._shared_record(feed, batch_id)
            return record

    async def recorded_events(self, batch_id: str, after: int) -> AsyncGenerator[EventRecord, None]:
        """Read a batch's events beyond `after`, in order, as many as there are now."""
        cursor = max(after, 0)
        latest = (await self.awaited_record(batch_id)).seq
        while cursor < latest:
            events = await self._stored_events(batch_id, cursor)
            if not events:
                return
            for event in events[: latest - cursor]:
                yield event
            cursor = events[-1].seq

    async def documents(
        self,
        record: BatchRecord,
        statuses: Collection[ExecutionStatus] = (),
        *,
        inputs: bool,
        after: int = RESOLVER_POSITION,
        size: int = PAGE,
    ) -> AsyncGenerator[DocumentRecord, None]:
        """Read a batch's documents in submission order, a page in memory at a time.

        Args:
            record: The batch's.
            statuses: Only documents with one of these (as `status_of` tells it); none: all.
            inputs: Read the documents themselves, too.
            after: Only documents behind this position.
            size: The documents of a page.
        """
        wanted = statuses_to_read(statuses, ended=record.ended)
        if wanted is None:
            return

        load = partial(stored_page, self._store, record.batch_id, wanted, size, inputs)
        async with aclosing(self._paged(record, load, after, size)) as documents:
            async for document in documents:
                yield document

    async def _paged(
        self,
        record: BatchRecord,
        load: Callable[[int], Awaitable[Sequence[DocumentRecord]]],
        after: int,
        size: int,
    ) -> AsyncGenerator[DocumentRecord, None]:
        pages = document_pages(
            lambda position: self._through_outages(lambda: load(position), record.batch_id), size, after
        )
        async with aclosing(pages):
            async for page in pages:
                for document in page:
                    yield document
                # The store may be open for others: what is read is this reader's, inside its owner's block.
                self.check_running()

    async def documents_of_group(
        self,
        record: BatchRecord,
        fingerprint: str,
        *,
        inputs: bool,
        after: int = RESOLVER_POSITION,
        size: int = PAGE,
    ) -> AsyncGenerator[DocumentRecord, None]:
        """Read the failed documents with this fingerprint, in submission order, a page in memory at a time.

        Where the store does not find them, or some have failed before fingerprints were kept, all failed ones are read.
        """
        store = self._store
        counted = await self.counted_failures(record)
        if (
            counted is None
            or not isinstance(store, FindsFailures)
            or sum(group.documents for group in counted.groups) != counted.failed
        ):
            async with aclosing(self.documents(record, ["failed"], inputs=inputs, after=after, size=size)) as documents:
                async for document in documents:
                    failure = failure_of(document)
                    if fingerprint_of(failure.error_type, failure.activity, failure.error) == fingerprint:
                        yield document
            return

        async def load(behind: int) -> Sequence[DocumentRecord]:
            return await store.failed_documents(record.batch_id, fingerprint, after=behind, limit=size, inputs=inputs)

        async with aclosing(self._paged(record, load, after, size)) as documents:
            async for document in documents:
                yield document

    async def resolver(self, record: BatchRecord) -> DocumentRecord:
        """Read the resolver of a batch that has one; while the store is away, wait."""
        (resolver,) = await self._through_outages(
            lambda: self._store.documents(record.batch_id, after=RESOLVER_POSITION - 1, limit=1), record.batch_id
        )
        return resolver

    async def first_failures(self, record: BatchRecord, limit: int) -> Sequence[DocumentRecord]:
        """Read the first failed documents of a batch; while the store is away, wait."""
        return await self._through_outages(
            lambda: self._store.documents(record.batch_id, statuses=["failed"], limit=limit, inputs=False),
            record.batch_id,
        )

    async def counted_failures(self, record: BatchRecord) -> CountedFailures | None:
        """Read the groups of failed documents of a batch; None: its store counts none. While it is away, wait."""
        store = self._store
        if store.capabilities.level < 2 or not isinstance(store, CountsFailures):
            return None
        return await self._through_outages(lambda: store.failures(record.batch_id), record.batch_id)

    async def checkpoints(
        self, record: BatchRecord, position: int, *, prefix: str = "", at_once: int = PAGE
    ) -> AsyncGenerator[CheckpointRecord, None]:
        """Yield the checkpoints of an execution in the order of their keys; while the store is away, wait.

        Args:
            record: The batch.
            position: The execution's.
            prefix: Only those whose keys begin so.
            at_once: How many are in memory: their payloads may be large.
        """
        after = prefix
        while True:
            load = partial(self._store.checkpoints, record.batch_id, position, after=after, limit=at_once)
            page = await self._through_outages(load, record.batch_id)
            for checkpoint in page:
                if not checkpoint.key.startswith(prefix):
                    return
                yield checkpoint
            if len(page) < at_once:
                return
            after = page[-1].key

    async def count_checkpoints(self, batch_id: str) -> int:
        """Count the checkpoints of a batch."""
        record = await self.record(batch_id)
        return await self._store.count_checkpoints(record.batch_id)

    async def inspected(self, batch_id: str) -> tuple[BatchRecord, Inspection, Sequence[WorkerRecord]]:
        """Read what explains a batch: from before and after the batch did not move, where it does stand still."""
        record = await self.record(batch_id)
        looks = 0
        while True:
            inspection = await inspection_of(self._store, record, self._clock.now())
            workers = await self._store.workers()
            before, record = record, await self.record(batch_id)
            looks += 1
            if record.seq == before.seq or looks == _LOOKS:
                return record, inspection, workers

    async def notes(self, batch_id: str) -> WorkerNotes:
        """Read what the workers that are alive say of themselves, for a reader of this batch; in an outage, wait."""
        return WorkerNotes(await self._through_outages(self._store.workers, batch_id))

    async def long_calls(self, record: BatchRecord) -> Sequence[LongCalls]:
        """Read which calls of a batch may never end."""
        if record.ended or not (record.counts.running or record.state == "resolving"):
            return ()
        return WorkerNotes(await self._store.workers()).long_calls(record.batch_id)

    async def records(self, query: BatchQuery, after: BatchId | None = None) -> AsyncGenerator[BatchRecord, None]:
        """Read batches, newest first, a page in memory at a time; only those behind `after`, where it is given."""
        while True:
            page = await self._page_of_batches(query, after)
            for record in page:
                yield record
            if len(page) < PAGE:
                return
            after = page[-1].batch_id

    def check_running(self) -> None:
        """Refuse to read outside of the owner's block, or of its event loop.

        Raises:
            WorkerNotRunningError: Reading is not allowed now.
        """
        if not self._running():
            raise WorkerNotRunningError(f"the {self._owner} is not running: use it inside `async with`")
        self._news.check_loop()

    def _check_name(self, batch_id: str) -> None:
        check_text("batch_id", batch_id)
        if problem_with_name(batch_id) is not None:
            # Which no batch can have; not every database could be asked for it.
            raise BatchNotFoundError(batch_id)

    def _checked(self, batch_id: str, record: BatchRecord | None) -> BatchRecord:
        if record is None or not record.sealed:
            if self._in_open_transaction(BatchId(batch_id)):
                raise TransactionOpenError(batch_id)
            raise BatchNotFoundError(batch_id)
        if self._workflow is not None and record.workflow != self._workflow:
            raise WorkflowMismatchError(batch_id, self._workflow, record.workflow)
        return record

    def _subscribed(self, batch_id: str) -> AbstractContextManager[Feed]:
        self.check_running()
        self._check_name(batch_id)
        return self._news.subscribed(BatchId(batch_id))

    async def _shared_record(self, feed: Feed, batch_id: str) -> BatchRecord:
        """Read a batch for all of its subscribers; while the store is away, wait."""
        found = await feed.read_record(
            lambda: self._through_outages(lambda: self._store.batch(BatchId(batch_id)), batch_id)
        )
        record = self._checked(batch_id, found)
        # Not before: in an outage it would wait for the store, too, also for subscribers that one look is enough for.
        self._news.look_out()
        return record

    async def _stored_events(self, batch_id: str, after: int) -> Sequence[EventRecord]:
        return await self._through_outages(
            lambda: self._store.events(BatchId(batch_id), after=after, limit=BLOCK), batch_id
        )

    async def _page_of_batches(self, query: BatchQuery, after: BatchId | None) -> Sequence[BatchRecord]:
        return await self._ride_out(lambda: self._store.batches(query, after=after, limit=PAGE), "a list of batches")

    async def _through_outages(self, read: Callable[[], Awaitable[T]], batch_id: str) -> T:
        return await self._ride_out(read, f"a reader of batch {batch_id!r}")

    async def _ride_out(self, read: Callable[[], Awaitable[T]], operation: str) -> T:
        """Read while that is allowed; while the store is away, wait."""

        async def checked() -> T:
            # A store that its owner has closed is not away: nobody would open it again.
            self.check_running()
            return await read()

        def passes(error: StoreUnavailableError) -> bool:
            # What its owner has closed does not come back. The store was opened on a primary: after a failover its
            # address may lead to a replica for some time.
            return (error.transient or isinstance(error, StoreReadOnlyError)) and self._running()

        try:
            return await ride_out(checked, self._outages, operation, self._sleep, passes=passes)
        except StoreUnavailableError:
            self.check_running()
            raise
