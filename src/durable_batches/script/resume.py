"""Find the batch that a script resumes: the one whose documents are those that the script submits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from durable_batches.errors import BatchExistsError, ConfigurationError, PayloadError
from durable_batches.lifecycle.records import BatchRecord, DocumentRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.orchestrator.submission import id_of, iterated
from durable_batches.reading.results import each_document
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.protocol import BatchQuery, Store

__all__ = ["LABEL", "Found", "Resumption"]

LABEL: Final = "submitted-by"
"""The label of batches whose ids `run_batch` has generated. Only these are resumed without their id."""

_PAGE: Final = 100

D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class Found(Generic[D]):
    """The batch to resume, and the documents to submit where there is none.

    Attributes:
        record: The batch to resume; None: a new one is submitted.
        documents: All documents, from the first; to submit where there is no batch.
        others: Unfinished batches of other documents.
    """

    record: BatchRecord | None
    documents: Iterable[D] | AsyncIterable[D]
    others: Sequence[BatchRecord] = ()


class Resumption(Generic[D]):
    """Finds the batch that has the given documents.

    Args:
        store: The store to search.
        workflow: The workflow of the batch.
        document_id: As for `submit`.
        named: Gives a document that was read from a batch the id that it has there, where documents have an id that is
            not recorded with them.
    """

    def __init__(
        self,
        store: Store,
        workflow: Workflow[D, Any, Any, Any],
        document_id: Callable[[D], str] | None,
        named: Callable[[D, str], D] | None = None,
    ) -> None:
        self._store = store
        self._workflow = workflow
        self._document_id = document_id
        self._named = named

    async def of_id(self, batch_id: str, documents: Iterable[D] | AsyncIterable[D]) -> Found[D]:
        """Find the batch of this id. A batch that has ended must have these documents.

        Raises:
            BatchExistsError: It has ended, and its documents are others.
            ConfigurationError: It has not ended, and is of a version of the workflow that this code cannot run.
        """
        record = await self._store.batch(BatchId(batch_id))
        if record is None or not record.sealed or record.workflow != self._workflow.name:
            # Submitting it raises the error.
            return Found(record=None, documents=documents)
        if not record.ended:
            if not self._runs(record):
                raise ConfigurationError(
                    f"batch {batch_id!r} is unfinished, and of version {record.version!r} of workflow "
                    f"{record.workflow!r}; let this one accept it: @workflow(..., accepts=({record.version!r},))"
                )
            return Found(record=record, documents=documents)
        found = await self._among([record], documents)
        if found.record is None:
            raise BatchExistsError(batch_id, "it has ended, and is not of these documents; give them another batch_id")
        return found

    async def unfinished(self, documents: Iterable[D] | AsyncIterable[D]) -> Found[D]:
        """Find the newest unfinished batch that has these documents, among those with a generated id."""
        candidates: list[BatchRecord] = []
        query = BatchQuery(workflow=self._workflow.name, metadata={LABEL: "run_batch"})
        after: BatchId | None = None
        while True:
            page = await self._store.batches(query, after=after, limit=_PAGE)
            candidates += [record for record in page if not record.ended and self._runs(record)]
            if len(page) < _PAGE:
                return await self._among(candidates, documents)
            after = page[-1].batch_id

    def _runs(self, record: BatchRecord) -> bool:
        return (record.workflow, record.version) in self._workflow.versions

    async def _among(self, candidates: Sequence[BatchRecord], documents: Iterable[D] | AsyncIterable[D]) -> Found[D]:
        """Compare the documents with those of the candidates, one by one, until they end or no candidate is left.

        A page of each candidate is in memory at a time. The documents can be read only once; where no candidate has
        them all, those that were read are read again from the candidate that had them up to there.
        """
        if not candidates:
            return Found(record=None, documents=documents)
        source = iterated(documents)
        async with AsyncExitStack() as stack:
            left = [(record, await stack.enter_async_context(aclosing(self._stored(record)))) for record in candidates]
            ordinal = 0
            async for document in source:
                given = (id_of(document, ordinal, self._document_id), self._encoded(document))
                longest = left[0][0]
                left = [(record, stored) for record, stored in left if await _next(stored) == given]
                if not left:
                    again = self._chained(longest, ordinal, document, source)
                    return Found(record=None, documents=again, others=candidates)
                ordinal += 1
        for record, _ in left:
            if record.counts.total == ordinal:
                others = [other for other in candidates if other is not record]
                return Found(record=record, documents=documents, others=others)
        return Found(record=None, documents=self._first(left[0][0], ordinal), others=candidates)

    def _encoded(self, document: D) -> bytes | None:
        try:
            return self._workflow.document_codec.recoded(document)[0]
        except PayloadError:
            # No batch has it. Submitting it raises the error.
            return None

    def _stored(self, record: BatchRecord) -> AsyncGenerator[DocumentRecord, None]:
        return each_document(self._store, record.batch_id, inputs=True)

    async def _first(self, record: BatchRecord, count: int) -> AsyncGenerator[D, None]:
        """Decode the first documents of a batch."""
        async with aclosing(self._stored(record)) as stored:
            async for document in stored:
                if document.execution.position >= count:
                    return
                decoded = self._workflow.document_codec.decode(document.input)
                yield decoded if self._named is None else self._named(decoded, document.execution.document_id)

    async def _chained(
        self, record: BatchRecord, count: int, document: D, rest: AsyncIterator[D]
    ) -> AsyncGenerator[D, None]:
        async with aclosing(self._first(record, count)) as first:
            async for document_before in first:
                yield document_before
        yield document
        async for document_after in rest:
            yield document_after


async def _next(stored: AsyncGenerator[DocumentRecord, None]) -> tuple[str, bytes] | None:
    document = await anext(stored, None)
    return None if document is None else (document.execution.document_id, document.input)
