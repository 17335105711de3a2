"""The batch that a script goes on with: whether what it submits was submitted before, document by document."""

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

__all__ = ["LABEL", "Earlier", "Found"]

LABEL: Final = "submitted-by"
"""The label of batches whose ids `run_batch` has made up. Others it leaves alone, unless it is told their ids."""

_PAGE: Final = 100

D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class Found(Generic[D]):
    """What was found.

    Attributes:
        record: The batch to go on with; None: a new one.
        documents: The documents, from the first; to submit where there is no batch.
        others: Unfinished batches of other documents.
    """

    record: BatchRecord | None
    documents: Iterable[D] | AsyncIterable[D]
    others: Sequence[BatchRecord] = ()


class Earlier(Generic[D]):
    """Looks for the batch that these documents are in.

    Args:
        store: Where to look.
        workflow: The batch's.
        document_id: As for `submit`.
    """

    def __init__(
        self, store: Store, workflow: Workflow[D, Any, Any, Any], document_id: Callable[[D], str] | None
    ) -> None:
        self._store = store
        self._workflow = workflow
        self._document_id = document_id

    async def of_id(self, batch_id: str, documents: Iterable[D] | AsyncIterable[D]) -> Found[D]:
        """The batch of this id. One that has ended must be of these documents.

        Raises:
            BatchExistsError: It has ended, and its documents are others.
            ConfigurationError: It has not ended, and is of a version of the workflow that this code cannot run.
        """
        record = await self._store.batch(BatchId(batch_id))
        if record is None or not record.sealed or record.workflow != self._workflow.name:
            # To submit it says what there is to say.
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
        """The newest unfinished batch whose documents are these, among those whose ids were made up."""
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
        """Read the documents beside those of the candidates, until one candidate is left at their end, or none.

        Whatever there are, a page of each is in memory at a time. The documents can be read only once; where none of
        the candidates has them all, those that were read are had again from the one that had them up to there.
        """
        if not candidates:
            return Found(record=None, documents=documents)
        source = iterated(documents)
        async with AsyncExitStack() as stack:
            left = [(record, await stack.enter_async_context(aclosing(self._stored(record)))) for record in candidates]
            position = 0
            async for document in source:
                given = (id_of(document, position, self._document_id), self._encoded(document))
                having = left[0][0]
                left = [(record, stored) for record, stored in left if await _next(stored) == given]
                if not left:
                    again = self._chained(having, position, document, source)
                    return Found(record=None, documents=again, others=candidates)
                position += 1
        for record, _ in left:
            if record.counts.total == position:
                others = [other for other in candidates if other is not record]
                return Found(record=record, documents=documents, others=others)
        return Found(record=None, documents=self._first(left[0][0], position), others=candidates)

    def _encoded(self, document: D) -> bytes | None:
        try:
            return self._workflow.document_codec.recoded(document)[0]
        except PayloadError:
            # It is in no batch. To submit it says what is wrong with it.
            return None

    def _stored(self, record: BatchRecord) -> AsyncGenerator[DocumentRecord, None]:
        return each_document(self._store, record.batch_id, inputs=True)

    async def _first(self, record: BatchRecord, count: int) -> AsyncGenerator[D, None]:
        """The first so many documents of a batch, as they were given."""
        async with aclosing(self._stored(record)) as stored:
            async for document in stored:
                if document.execution.position >= count:
                    return
                yield self._workflow.document_codec.decode(document.input)

    async def _chained(
        self, record: BatchRecord, count: int, document: D, rest: AsyncIterator[D]
    ) -> AsyncGenerator[D, None]:
        async with aclosing(self._first(record, count)) as first:
            async for earlier in first:
                yield earlier
        yield document
        async for later in rest:
            yield later


async def _next(stored: AsyncGenerator[DocumentRecord, None]) -> tuple[str, bytes] | None:
    document = await anext(stored, None)
    return None if document is None else (document.execution.document_id, document.input)
