"""Loading a batch, and commands: what runs within one transaction, the store's own or one of the host application's."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence

from durable_batches.errors import BatchNotFoundError, DuplicateDocumentError
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.planning import needs_of_command, new_execution, plan_command
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    Committed,
    Micros,
    NewDocument,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.protocol import LEVEL
from durable_batches.stores.sqlite import queries, reads

__all__ = ["add", "control", "create"]


def create(connection: sqlite3.Connection, batch: BatchRecord) -> BatchRecord | None:
    """See `Store.create`."""
    existing = reads.batch(batch.batch_id).on(connection)
    if existing is not None:
        return existing[1]
    queries.insert_batch(connection, batch)
    return None


def add(
    connection: sqlite3.Connection,
    now: Micros,
    batch_id: BatchId,
    loader: WorkerId,
    documents: Sequence[NewDocument],
) -> None:
    """See `Store.add`."""
    found = reads.batch(batch_id).on(connection)
    if found is None or found[1].loader != loader:
        raise BatchNotFoundError(batch_id)
    key = found[0]
    known = queries.load_document_ids(connection, key, [document.position for document in documents])
    fresh = [document for document in documents if known.get(document.position) != document.document_id]
    duplicate = _repeated(document.document_id for document in fresh) or queries.taken_document_id(
        connection, key, [document.document_id for document in fresh]
    )
    if duplicate is not None:
        raise DuplicateDocumentError(batch_id, duplicate)
    queries.insert_executions(
        connection, key, ((new_execution(batch_id, document, now), document.input) for document in fresh)
    )


def control(connection: sqlite3.Connection, now: Micros, batch_id: BatchId, command: Command) -> Committed:
    """See `Store.control`."""
    keys, loaded = queries.load_executions(connection, now, [(batch_id, RESOLVER_POSITION)])
    if batch_id not in loaded.batches:
        raise BatchNotFoundError(batch_id)
    wanted = needs_of_command(command).requests
    requests = queries.load_requests(connection, keys[batch_id], wanted, loaded.now)
    loaded = loaded._replace(requests=requests)
    writes = plan_command(loaded, batch_id, command, level=LEVEL)
    queries.apply(connection, keys, writes)
    return Committed(events=writes.events, applied=writes.applied)


def _repeated(ids: Iterable[str]) -> str | None:
    return next((document_id for document_id, count in Counter(ids).items() if count > 1), None)
