"""Loading a batch: what runs within one transaction, whether the store's own or one of the host application's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from durable_batches.errors import (
    BatchNotFoundError,
    DuplicateDocumentError,
    FactRejectedError,
    StoreLockedError,
    SubmissionInProgressError,
)
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.planning import needs_of_command, new_execution, plan_command
from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, Committed, NewDocument, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.postgres import queries
from durable_batches.stores.postgres.commit.lock import lock_batches
from durable_batches.stores.postgres.commit.write import apply
from durable_batches.stores.postgres.connection.server_clock import ServerClock
from durable_batches.stores.postgres.connection.session import Session
from durable_batches.stores.protocol import LEVEL

__all__ = ["add", "control", "create", "unless_being_created"]


@contextmanager
def unless_being_created(batch_id: BatchId) -> Generator[None]:
    """Within: the creation of a batch. That another transaction creates it, too, is said as such.

    Raises:
        SubmissionInProgressError: It was waited for in vain.
    """
    try:
        yield
    except StoreLockedError as error:
        raise SubmissionInProgressError(batch_id) from error


async def create(session: Session, batch: BatchRecord) -> BatchRecord | None:
    """See `Store.create`."""
    while not await queries.insert_batch(session, batch):
        existing = await queries.load_batch(session, batch.batch_id)
        if existing is not None:
            return existing[1]
        # It was removed in between.
    return None


async def add(
    session: Session, server_clock: ServerClock, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]
) -> None:
    """See `Store.add`."""
    locked = await lock_batches(session, [batch_id])
    if batch_id not in locked.keys or locked.records[batch_id].loader != loader:
        raise BatchNotFoundError(batch_id)
    key = locked.keys[batch_id]
    known = await queries.load_document_ids(session, key, documents)
    fresh = [document for document in documents if known.get(document.position) != document.document_id]
    duplicate = _repeated(document.document_id for document in fresh) or await queries.taken_document_id(
        session, key, [document.document_id for document in fresh]
    )
    if duplicate is not None:
        raise DuplicateDocumentError(batch_id, duplicate)
    if any(document.position in known for document in fresh):
        raise FactRejectedError(f"a position in batch {batch_id!r} has another document already")
    if fresh:
        now = await server_clock.moment(session)
        await queries.insert_executions(
            session, key, [(new_execution(batch_id, document, now), document.input) for document in fresh]
        )


async def control(session: Session, server_clock: ServerClock, batch_id: BatchId, command: Command) -> Committed:
    """See `Store.control`."""
    locked = await lock_batches(session, [batch_id])
    if batch_id not in locked.keys:
        raise BatchNotFoundError(batch_id)
    now = await server_clock.moment(session)
    loaded = await queries.load_executions(session, now, locked, [(batch_id, RESOLVER_POSITION)])
    wanted = needs_of_command(command).requests
    if wanted:
        requests = await queries.load_requests(session, locked.keys[batch_id], wanted, now)
        loaded = loaded._replace(requests=requests)
    writes = plan_command(loaded, batch_id, command, level=LEVEL)
    await apply(session, locked, writes)
    return Committed(events=writes.events, applied=writes.applied)


def _repeated(ids: Iterable[str]) -> str | None:
    return next((document_id for document_id, count in Counter(ids).items() if count > 1), None)
