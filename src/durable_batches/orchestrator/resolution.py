"""Behind the barrier: what a resolver is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Final, Generic, TypeVar

from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.records import RESOLVER_POSITION, DocumentRecord, ExecutionStatus
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.runtime.codec import Codec
from durable_batches.runtime.outcomes import DocumentFailure, DocumentSucceeded
from durable_batches.stores.protocol import Store

__all__ = ["StoredResults", "document_pages", "failure_of"]

R = TypeVar("R")

PAGE: Final = 200
"""Documents read at once."""


class StoredResults(Generic[R]):
    """`Results`, read from the store page by page."""

    def __init__(self, store: Store, batch_id: BatchId, counts: Counts, codec: Codec[R]) -> None:
        self._store = store
        self._codec = codec
        self.batch_id: Final = batch_id
        self.counts: Final = counts

    async def __aiter__(self) -> AsyncIterator[DocumentSucceeded[R]]:
        async for page in self.pages(PAGE):
            for result in page:
                yield result

    async def pages(self, size: int) -> AsyncIterator[list[DocumentSucceeded[R]]]:
        """See `Results.pages`."""
        async for page in document_pages(self._store, self.batch_id, ["succeeded"], size, inputs=False):
            yield [success_of(document, self._codec) for document in page]

    async def failures(self) -> AsyncIterator[DocumentFailure]:
        """See `Results.failures`."""
        async for page in document_pages(self._store, self.batch_id, ["failed"], PAGE, inputs=False):
            for document in page:
                yield failure_of(document)


async def document_pages(
    store: Store, batch_id: BatchId, statuses: Collection[ExecutionStatus], size: int, *, inputs: bool
) -> AsyncIterator[list[DocumentRecord]]:
    """A batch's documents in submission order, a page at a time."""
    if size < 1:
        raise ValueError("a page holds 1 document or more")
    after = RESOLVER_POSITION
    while True:
        page = list(await store.documents(batch_id, statuses=statuses, after=after, limit=size, inputs=inputs))
        if page:
            yield page
            after = page[-1].execution.position
        if len(page) < size:
            return


def success_of(document: DocumentRecord, codec: Codec[R]) -> DocumentSucceeded[R]:
    """A succeeded document's record as its outcome."""
    assert document.outcome is not None
    return DocumentSucceeded(document_id=document.execution.document_id, value=codec.decode(document.outcome))


def failure_of(document: DocumentRecord) -> DocumentFailure:
    """A failed document's record as its outcome."""
    assert document.outcome is not None
    return DocumentFailure(
        document_id=document.execution.document_id, **DocumentFailureRecord.decode(document.outcome)._asdict()
    )
