"""Read a batch at one moment, through the store's protocol alone."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    DocumentRecord,
    EventRecord,
    ExecutionRecord,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import BatchQuery, Store

__all__ = ["StoreSnapshot", "batch_ids", "effective_status", "name_of", "take_snapshot"]

_PAGE: Final = 500
_LOOKS: Final = 100
"""How often a batch that others are writing to is looked at, until it stood still for one look."""


class StoreSnapshot(NamedTuple):
    """A batch, read while nobody wrote to it."""

    record: BatchRecord
    log: Sequence[EventRecord]
    resolver: DocumentRecord | None
    documents: Mapping[str, DocumentRecord]
    checkpoints: Mapping[tuple[str, str], CheckpointRecord]
    """By document id (empty: the resolver) and key."""
    alive: Collection[WorkerId]

    def executions(self) -> Iterator[ExecutionRecord]:
        """Iterate over the executions of the documents and of the resolver."""
        for document in self.documents.values():
            yield document.execution
        if self.resolver is not None:
            yield self.resolver.execution

    def failures(self, document_id: str) -> int:
        """Return the number of failed attempts of a document (empty: of the resolver)."""
        document = self.documents.get(document_id) if document_id else self.resolver
        return 0 if document is None else document.execution.failures


async def batch_ids(store: Store) -> list[BatchId]:
    """Read the ids of all sealed batches."""
    found: list[BatchId] = []
    while True:
        page = await store.batches(BatchQuery(), after=found[-1] if found else None, limit=_PAGE)
        found += [record.batch_id for record in page]
        if len(page) < _PAGE:
            return found


async def take_snapshot(store: Store, batch_id: BatchId) -> StoreSnapshot | None:
    """Read the batch at one moment, again while it moves. Return None if it is deleted, or not sealed.

    Raises:
        TimeoutError: It moves all the time; take a copy of the store, and look at that.
    """
    for _ in range(_LOOKS):
        before = [worker.worker_id for worker in await store.workers()]
        record = await store.batch(batch_id)
        if record is None or not record.sealed:
            return None
        executions = await _executions(store, batch_id)
        checkpoints = {
            (document.execution.document_id, checkpoint.key): checkpoint
            for document in executions
            for checkpoint in await _checkpoints(store, batch_id, document.execution)
        }
        log = await _log(store, batch_id)
        after = [worker.worker_id for worker in await store.workers()]
        if await store.batch(batch_id) != record:
            await asyncio.sleep(0.01)
            continue
        resolver = [found for found in executions if found.execution.position == RESOLVER_POSITION]
        return StoreSnapshot(
            record=record,
            log=log,
            resolver=resolver[0] if resolver else None,
            documents={
                found.execution.document_id: found
                for found in executions
                if found.execution.position != RESOLVER_POSITION
            },
            checkpoints=checkpoints,
            alive={*before, *after},
        )
    raise TimeoutError(f"batch {batch_id!r} did not stand still for a look")


async def _executions(store: Store, batch_id: BatchId) -> list[DocumentRecord]:
    found: list[DocumentRecord] = []
    while True:
        after = found[-1].execution.position if found else RESOLVER_POSITION - 1
        page = await store.documents(batch_id, after=after, limit=_PAGE, inputs=False)
        found += page
        if len(page) < _PAGE:
            return found


async def _checkpoints(store: Store, batch_id: BatchId, execution: ExecutionRecord) -> list[CheckpointRecord]:
    found: list[CheckpointRecord] = []
    while execution.attempt:
        after = found[-1].key if found else ""
        page = await store.checkpoints(batch_id, execution.position, after=after, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            break
    return found


async def _log(store: Store, batch_id: BatchId) -> list[EventRecord]:
    found: list[EventRecord] = []
    while True:
        page = await store.events(batch_id, after=found[-1].seq if found else 0, limit=_PAGE)
        found += page
        if len(page) < _PAGE:
            return found


def effective_status(batch: BatchRecord, execution: ExecutionRecord) -> str:
    """Return the status: an unfinished execution of an ended run is cancelled, although its row is left as it was."""
    unfinished = execution.status in ("pending", "running", "waiting")
    return "cancelled" if batch.ended and unfinished else execution.status


def name_of(execution: ExecutionRecord) -> str:
    """Name an execution, for messages."""
    resolver = execution.position == RESOLVER_POSITION
    return "the resolver" if resolver else f"document {execution.document_id!r}"
