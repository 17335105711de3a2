"""Documents as outcomes: pages of a batch's documents, and what became of each, for resolvers and readers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from typing_extensions import deprecated

from durable_batches.codec.codec import Codec, payload_of
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.records import RESOLVER_POSITION, DocumentRecord, ExecutionRecord, ExecutionStatus
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.options import check_integer
from durable_batches.runtime.results import DocumentCancelled, DocumentFailure, DocumentSucceeded, Outcome
from durable_batches.stores.protocol import Store

__all__ = [
    "UNFINISHED",
    "PageLoader",
    "StoredResults",
    "checked_page_size",
    "document_pages",
    "each_document",
    "failure_of",
    "outcome_of",
    "status_of",
    "statuses_to_read",
    "stored_page",
]

R = TypeVar("R")

PAGE: Final = 200
"""Documents read at once."""

UNFINISHED: Final[tuple[ExecutionStatus, ...]] = ("pending", "running", "waiting")


class PageLoader(Protocol):
    """Loads a page of a batch's documents, without their inputs."""

    def __call__(
        self, statuses: Collection[ExecutionStatus], size: int, after: int, /
    ) -> Awaitable[Sequence[DocumentRecord]]:
        """Load a number of documents that have one of these statuses, from behind a position."""
        ...


class StoredResults(Generic[R]):
    """`Results`, read from the store page by page.

    Args:
        load: Reads a page; what it raises, the resolver raises.
        batch_id: The batch.
        counts: Its counts.
        codec: Of results.
    """

    def __init__(self, load: PageLoader, batch_id: BatchId, counts: Counts, codec: Codec[R]) -> None:
        self._load = load
        self._codec = codec
        self.batch_id: Final = batch_id
        self.counts: Final = counts

    def reopen(self) -> StoredResults[R]:
        """See `Results.reopen`."""
        return StoredResults(self._load, self.batch_id, self.counts, self._codec)

    @deprecated("again() is called reopen() now")
    def again(self) -> StoredResults[R]:
        """See `Results.again`."""
        return self.reopen()

    async def __aiter__(self) -> AsyncGenerator[DocumentSucceeded[R], None]:
        async with aclosing(self._pages(PAGE)) as pages:
            async for page in pages:
                for success in page:
                    yield success

    def pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R]], None]:
        """See `Results.pages`."""
        # Not a generator itself: it refuses a size where it is called, and not where it is iterated.
        return self._pages(checked_page_size(size))

    async def _pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R]], None]:
        async with aclosing(document_pages(partial(self._load, ["succeeded"], size), size)) as pages:
            async for page in pages:
                yield [success_of(document, self._codec) for document in page]

    async def failures(self) -> AsyncGenerator[DocumentFailure, None]:
        """See `Results.failures`."""
        async with aclosing(document_pages(partial(self._load, ["failed"], PAGE), PAGE)) as pages:
            async for page in pages:
                for document in page:
                    yield failure_of(document)


def checked_page_size(size: int) -> int:
    """The size of a page.

    Raises:
        ConfigurationError: It is no int, or nothing fits into it.
    """
    check_integer("the size of a page", size)
    if size < 1:
        raise ConfigurationError(f"a page holds 1 document or more, not {size}")
    return size


async def document_pages(
    load: Callable[[int], Awaitable[Sequence[DocumentRecord]]], size: int, after: int = RESOLVER_POSITION
) -> AsyncGenerator[Sequence[DocumentRecord], None]:
    """A batch's documents in submission order, a page at a time. Between pages it holds nothing of the store's.

    Args:
        load: Loads the page behind a position.
        size: The documents of a whole page.
        after: The position that the first page is behind.
    """
    while True:
        page = await load(after)
        if page:
            yield page
            after = page[-1].execution.position
        if len(page) < size:
            return


async def stored_page(
    store: Store, batch_id: BatchId, statuses: Collection[ExecutionStatus], size: int, inputs: bool, after: int
) -> Sequence[DocumentRecord]:
    """Load a page of a batch's documents from a store."""
    return await store.documents(batch_id, statuses=statuses, after=after, limit=size, inputs=inputs)


async def each_document(
    store: Store, batch_id: BatchId, statuses: Collection[ExecutionStatus] = (), *, inputs: bool = False
) -> AsyncGenerator[DocumentRecord, None]:
    """A batch's documents in submission order, a page in memory at a time."""
    pages = document_pages(partial(stored_page, store, batch_id, statuses, PAGE, inputs), PAGE)
    async with aclosing(pages):
        async for page in pages:
            for document in page:
                yield document


def statuses_to_read(statuses: Collection[ExecutionStatus], *, ended: bool) -> Collection[ExecutionStatus] | None:
    """Find the statuses of the rows that are in one of these; none given, and none returned: all. None: no row is.

    Args:
        statuses: As `status_of` tells them.
        ended: Whether the batch's run has ended. A document that was unfinished then is cancelled; its row is left
            unchanged.
    """
    if not statuses or not ended:
        return statuses
    found: list[ExecutionStatus] = [status for status in statuses if status not in UNFINISHED]
    if "cancelled" in found:
        found += UNFINISHED
    return found or None


def status_of(execution: ExecutionRecord, *, ended: bool) -> ExecutionStatus:
    """Where a document is. What had not ended when its run did is cancelled, whatever its row says."""
    return "cancelled" if ended and execution.status in UNFINISHED else execution.status


def success_of(document: DocumentRecord, codec: Codec[R]) -> DocumentSucceeded[R]:
    """A succeeded document's record as its outcome."""
    assert document.outcome is not None
    execution = document.execution
    with payload_of(execution.batch_id, execution.document_id):
        value = codec.decode(document.outcome)
    return DocumentSucceeded(document_id=execution.document_id, value=value)


def outcome_of(document: DocumentRecord, codec: Codec[R], *, ended: bool) -> Outcome[R] | None:
    """A document's record as its outcome; None: it has none yet.

    Args:
        document: The record.
        codec: Of results.
        ended: Whether its batch's run has ended.
    """
    match status_of(document.execution, ended=ended):
        case "succeeded":
            return success_of(document, codec)
        case "failed":
            return failure_of(document)
        case "cancelled":
            return DocumentCancelled(document_id=document.execution.document_id)
        case "pending" | "running" | "waiting":
            return None


def failure_of(document: DocumentRecord) -> DocumentFailure:
    """A failed document's record as its outcome."""
    assert document.outcome is not None
    return DocumentFailure(
        document_id=document.execution.document_id, **DocumentFailureRecord.decode(document.outcome)._asdict()
    )
