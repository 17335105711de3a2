"""Documents as outcomes: pages of a batch's documents, and what became of each, for resolvers and readers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Final, Generic, TypeVar

from typing_extensions import deprecated

from durable_batches.codec.codec import Codec, payload_of
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.records import RESOLVER_POSITION, DocumentRecord, ExecutionRecord, ExecutionStatus
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.runtime.results import DocumentCancelled, DocumentFailure, DocumentSucceeded, Outcome
from durable_batches.stores.protocol import Store

__all__ = [
    "UNFINISHED",
    "StoredResults",
    "checked_page_size",
    "document_pages",
    "each_document",
    "failure_of",
    "outcome_of",
    "status_of",
]

R = TypeVar("R")

PAGE: Final = 200
"""Documents read at once."""

UNFINISHED: Final[tuple[ExecutionStatus, ...]] = ("pending", "running", "waiting")


class StoredResults(Generic[R]):
    """`Results`, read from the store page by page."""

    def __init__(self, store: Store, batch_id: BatchId, counts: Counts, codec: Codec[R]) -> None:
        self._store = store
        self._codec = codec
        self.batch_id: Final = batch_id
        self.counts: Final = counts

    def reopen(self) -> StoredResults[R]:
        """See `Results.reopen`."""
        return StoredResults(self._store, self.batch_id, self.counts, self._codec)

    @deprecated("again() is called reopen() now")
    def again(self) -> StoredResults[R]:
        """See `Results.again`."""
        return self.reopen()

    async def __aiter__(self) -> AsyncGenerator[DocumentSucceeded[R], None]:
        async with aclosing(each_document(self._store, self.batch_id, ["succeeded"])) as documents:
            async for document in documents:
                yield success_of(document, self._codec)

    def pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R]], None]:
        """See `Results.pages`."""
        # Not a generator itself: it refuses a size where it is called, and not where it is iterated.
        return self._pages(checked_page_size(size))

    async def _pages(self, size: int) -> AsyncGenerator[list[DocumentSucceeded[R]], None]:
        pages = document_pages(self._store, self.batch_id, ["succeeded"], size, inputs=False)
        async with aclosing(pages):
            async for page in pages:
                yield [success_of(document, self._codec) for document in page]

    async def failures(self) -> AsyncGenerator[DocumentFailure, None]:
        """See `Results.failures`."""
        async with aclosing(each_document(self._store, self.batch_id, ["failed"])) as documents:
            async for document in documents:
                yield failure_of(document)


def checked_page_size(size: int) -> int:
    """The size of a page.

    Raises:
        ValueError: Nothing fits into it.
    """
    if size < 1:
        raise ValueError(f"a page holds 1 document or more, not {size}")
    return size


async def document_pages(
    store: Store, batch_id: BatchId, statuses: Collection[ExecutionStatus], size: int, *, inputs: bool
) -> AsyncGenerator[list[DocumentRecord], None]:
    """A batch's documents in submission order, a page at a time. Between pages it holds nothing of the store's."""
    after = RESOLVER_POSITION
    while True:
        page = list(await store.documents(batch_id, statuses=statuses, after=after, limit=size, inputs=inputs))
        if page:
            yield page
            after = page[-1].execution.position
        if len(page) < size:
            return


async def each_document(
    store: Store, batch_id: BatchId, statuses: Collection[ExecutionStatus] = (), *, inputs: bool = False
) -> AsyncGenerator[DocumentRecord, None]:
    """A batch's documents in submission order, a page in memory at a time."""
    async with aclosing(document_pages(store, batch_id, statuses, PAGE, inputs=inputs)) as pages:
        async for page in pages:
            for document in page:
                yield document


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
