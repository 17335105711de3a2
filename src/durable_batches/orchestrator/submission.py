"""Submission: write any number of documents in chunks, and make them a batch as a whole, or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, Literal, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel

from durable_batches.errors import (
    BatchExistsError,
    BatchNotFoundError,
    ConfigurationError,
    PayloadError,
    StoreUnavailableError,
    SubmissionInProgressError,
    WorkflowMismatchError,
)
from durable_batches.lifecycle.batch_core import Definition, new_batch
from durable_batches.lifecycle.commands import Discard, Seal
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.lifecycle.records import (
    RESOLVER_DOCUMENT_ID,
    RESOLVER_POSITION,
    BatchRecord,
    NewDocument,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_callable, check_instance
from durable_batches.orchestrator.paid import warn_of_ended
from durable_batches.outage import repeat_unknown
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.open_transactions import LocksOut
from durable_batches.stores.protocol import (
    HostLoading,
    HostTransaction,
    HostTransactions,
    Loading,
    SyncHostTransactions,
)
from durable_batches.tasks import completed, run_without_loop
from durable_batches.worker.process_identity import is_dead
from durable_batches.worker.worker import Worker

__all__ = ["Submission", "id_of", "iterated"]

_log = logging.getLogger("durable_batches")

_CHUNK_DOCUMENTS: Final = 500
_CHUNK_BYTES: Final = 4 * 1024 * 1024

D = TypeVar("D")
T = TypeVar("T")


class Submission(Generic[D]):
    """A call of `submit`.

    Args:
        worker: Whose store it is submitted to.
        workflow: The batch's.
        config: The batch's.
        batch_id: The batch's; None: a random one.
        document_id: Returns the id of a document; None: its own id, or its ordinal.
        if_exists: What becomes of it where there is such a batch.
        connection: Of the application, whose transaction it joins.
        loader: Who submits; None: the worker, which is running.
    """

    def __init__(
        self,
        worker: Worker,
        workflow: Workflow[D, Any, Any, Any],
        *,
        config: BatchConfig,
        batch_id: str | None,
        document_id: Callable[[D], str] | None,
        if_exists: Literal["attach", "error"],
        connection: HostTransaction | None = None,
        loader: WorkerId | None = None,
    ) -> None:
        check_instance("config", config, BatchConfig)
        check_callable("document_id", document_id, optional=True)
        if if_exists not in ("attach", "error"):  # pyright: ignore[reportUnnecessaryContains]
            raise ConfigurationError(f"if_exists must be 'attach' or 'error', not {if_exists!r}")
        self._worker = worker
        self._connection = connection
        self._workflow = workflow
        self._config = config
        self._batch_id = BatchId(uuid4().hex if batch_id is None else _checked_id(batch_id, "batch_id"))
        self._document_id = document_id
        self._if_exists = if_exists
        self._loader = loader
        self._origin: Mapping[str, str] = {}
        self.attached_to: BatchRecord | None = None
        """The batch of that id that is there already."""
        self.created: BatchRecord | None = None
        """The batch as it was created: without documents."""

    async def run(self, documents: Iterable[D] | AsyncIterable[D]) -> BatchId:
        """See `BatchOrchestrator.submit`."""
        source = iterated(documents)
        self._worker.news.check_loop()
        if self._connection is None:
            self._worker.check_unlocked(self._batch_id)
            return await self._submit(source, self._worker.store)
        store = self._worker.store
        if not isinstance(store, HostTransactions):
            raise self._cannot_join()
        async with store.joined(self._connection) as loading:
            self._take_note_of_lock(loading, self._connection)
            submitted = await self._submit(source, loading)
        self._worker.submitted_within(submitted, self._connection)
        return submitted

    def run_without_loop(self, documents: Iterable[D], connection: HostTransaction) -> BatchId:
        """See `BatchOrchestrator.submit_sync`, within a transaction of the application."""
        if isinstance(documents, AsyncIterable):
            raise ConfigurationError("submit_sync() takes an iterable of documents; this one needs an event loop")
        store = self._worker.store
        if not isinstance(store, SyncHostTransactions):
            raise self._cannot_join()
        with store.joined_sync(connection) as loading:
            self._take_note_of_lock(loading, connection)
            return run_without_loop(self._submit(iterated(documents), loading))

    def _take_note_of_lock(self, loading: Loading, connection: HostTransaction) -> None:
        # Also where nothing is submitted then: the transaction has the lock, and may go on.
        if isinstance(loading, LocksOut) and loading.locks_out_everybody:
            self._worker.locks(connection)

    def _cannot_join(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._worker.store!r} cannot join a transaction of the application's own; leave out connection=, or use "
            "a SQLiteStore or a PostgresStore on the application's database"
        )

    async def _submit(self, source: AsyncIterator[D], loading: Loading) -> BatchId:
        reporting = self._worker.reporting
        if reporting is None:
            return await self._write(source, loading)
        with reporting.submission(self._batch_id, self._workflow.name, self._workflow.version) as self._origin:
            return await self._write(source, loading)

    async def _write(self, source: AsyncIterator[D], loading: Loading) -> BatchId:
        loader = self._worker.worker_id if self._loader is None else self._loader
        if await self._attached(loading, loader):
            return self._batch_id
        # Before anybody can claim from it.
        self._worker.take(self._batch_id)
        self._worker.loading.add(self._batch_id)
        try:
            if not await self._load_and_seal(loading, source, loader):
                # Another submitter has taken this one for dead, and loads the batch in its place, or has done so.
                await self._attach_to_successor()
        except BaseException:
            self._worker.leave(self._batch_id)
            if self._connection is None:
                try:
                    await self._discard(loader)
                except StoreUnavailableError as error:
                    # The batch stays unsealed: invisible, and removed when its id is submitted again.
                    _log.warning(
                        "partial submission of batch %r not removed: %s",
                        self._batch_id,
                        error,
                        extra={"batch_id": self._batch_id, "error_code": error.code},
                    )
            raise
        finally:
            self._worker.loading.discard(self._batch_id)
        return self._batch_id

    async def _load_and_seal(self, loading: Loading, source: AsyncIterator[D], loader: WorkerId) -> bool:
        """Load the documents and make them a batch; return whether it still was this submitter's."""
        try:
            seal = Seal(loader, await self._load(loading, source, loader))
            if self._connection is None:
                committed = await self._worker.command(self._batch_id, seal)
            else:
                # The outcome is known when the host commits, which notifies all workers.
                committed = await loading.control(self._batch_id, seal)
        except BatchNotFoundError as error:
            if error.batch_id != self._batch_id or self._connection is not None:
                # The documents come from another batch; within the application's transaction, nobody removes this one.
                raise
            return False
        return committed.applied

    async def _attach_to_successor(self) -> None:
        """Attach to the batch that another submitter has loaded.

        Raises:
            SubmissionInProgressError: It is not sealed, or is gone again: the other one has failed.
        """
        existing = None if self._connection is not None else await self._worker.store.batch(self._batch_id)
        if existing is None or not self._may_attach(existing):
            raise SubmissionInProgressError(self._batch_id)
        _log.warning(
            "submission of batch %r was taken over by another submitter, whose documents it has; this one took too "
            "long without a lease",
            self._batch_id,
            extra={"batch_id": self._batch_id},
        )

    async def _attached(self, loading: Loading, loader: WorkerId) -> bool:
        """Create the unsealed batch; return True if the call attaches to an existing one."""
        record = new_batch(
            batch_id=self._batch_id,
            workflow=self._workflow.name,
            version=self._workflow.version,
            submitter=loader,
            definition=Definition(
                self._workflow.machine.tags,
                self._workflow.resolver is not None,
                self._config,
                self._workflow.defaults,
                self._origin,
            ),
            now=self._worker.clock.now(),
        )
        while True:
            existing = await self._written(lambda: loading.create(record))
            if existing is None:
                self.created = record
                return False
            if self._may_attach(existing):
                return True
            assert existing.loader is not None
            await self._wipe(existing, existing.loader, loading)

    def _may_attach(self, existing: BatchRecord) -> bool:
        """Return whether this is the batch, wholly loaded; False: another submitter loads it.

        Raises:
            WorkflowMismatchError: It is another workflow's.
            BatchExistsError: The caller wants no batch that exists.
        """
        if existing.workflow != self._workflow.name:
            raise WorkflowMismatchError(self._batch_id, self._workflow.name, existing.workflow)
        if existing.loader is not None:
            return False
        if self._if_exists == "error":
            raise BatchExistsError(self._batch_id)
        self.attached_to = existing
        if existing.ended:
            warn_of_ended(existing)
        else:
            self._worker.take(self._batch_id)
        return True

    async def _written(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write, and repeat the write if the reply was lost."""
        operation = f"the submission of batch {self._batch_id!r}"
        return await repeat_unknown(write, self._worker.outages, operation, self._worker.clock)

    async def _wipe(self, existing: BatchRecord, loader: WorkerId, loading: Loading) -> None:
        """Remove the partial submission of a dead submitter."""
        within_host = isinstance(loading, HostLoading)
        if not within_host:
            await self._worker.expire_dead_workers()
        if self._worker.running and loader == self._worker.worker_id:
            alive = existing.batch_id in self._worker.loading
        else:
            workers = await (loading if isinstance(loading, HostLoading) else self._worker.store).workers()
            alive = any(worker.worker_id == loader and not is_dead(worker) for worker in workers)
        if alive:
            raise SubmissionInProgressError(self._batch_id)
        if within_host:
            with suppress(BatchNotFoundError):
                await loading.control(self._batch_id, Discard(loader))
        else:
            await self._discard(loader)

    async def _discard(self, loader: WorkerId) -> None:
        with suppress(BatchNotFoundError):
            await completed(asyncio.ensure_future(self._worker.store.control(self._batch_id, Discard(loader))))

    async def _load(self, loading: Loading, source: AsyncIterator[D], loader: WorkerId) -> int:
        async def add(chunk: Sequence[NewDocument]) -> None:
            await self._written(lambda: loading.add(self._batch_id, loader, chunk))

        position = 0
        chunk: list[NewDocument] = []
        size = 0
        if self._workflow.resolver is not None:
            chunk.append(NewDocument(RESOLVER_POSITION, RESOLVER_DOCUMENT_ID, b""))
        async for document in source:
            payload = self._encoded(document, position)
            try:
                document_id = self._id_of(document, position)
            except Exception as error:
                # A class of the user's may refuse notes, as a frozen dataclass does, with any error.
                with suppress(Exception):
                    error.add_note(f"in the id of the document at position {position} of batch {self._batch_id!r}")
                raise
            chunk.append(NewDocument(position, document_id, payload))
            position += 1
            size += len(payload)
            if len(chunk) >= _CHUNK_DOCUMENTS or size >= _CHUNK_BYTES:
                await add(chunk)
                chunk, size = [], 0
        if chunk:
            await add(chunk)
        return position

    def _encoded(self, document: D, position: int) -> bytes:
        try:
            # Also decoded: a document that no attempt could decode is refused now.
            return self._workflow.document_codec.recoded(document)[0]
        except PayloadError as error:
            document_id = str(position)
            with suppress(Exception):
                # The id itself may be what is wrong with the document.
                document_id = self._id_of(document, position)
            error.locate(self._batch_id, document_id)
            raise

    def _id_of(self, document: D, position: int) -> str:
        return id_of(document, position, self._document_id)


def id_of(document: D, position: int, document_id: Callable[[D], str] | None) -> str:
    """Determine the id of the document at this ordinal, with the given function or without one."""
    if document_id is not None:
        return _checked_id(document_id(document), "document_id")
    return _own_id(document) or str(position)


def iterated(documents: Any) -> AsyncIterator[Any]:
    """Iterate over the documents.

    Raises:
        ConfigurationError: The argument is not a collection of documents (a string is one document).
    """
    kind = type(documents).__name__
    if isinstance(documents, str | bytes | bytearray | memoryview | BaseModel):
        raise ConfigurationError(f"submit() takes a collection of documents; this {kind} is one: submit([...])")
    if isinstance(documents, AsyncIterable):
        return aiter(documents)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(documents, Iterable):
        return _in_turn(documents)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raise ConfigurationError(f"submit() takes an iterable or async iterable of documents, not {kind!r}")


async def _in_turn(documents: Iterable[D]) -> AsyncIterator[D]:
    for document in documents:
        yield document


def _own_id(document: object) -> str | None:
    """Read the document's own id; None if it has none."""
    for name in ("document_id", "id"):
        own = getattr(document, name, None)
        if isinstance(own, str):
            return _checked_id(own, f"the documents' {name}")
        if isinstance(own, int | UUID) and not isinstance(own, bool):
            return str(own)
    return None


def _checked_id(value: Any, what: str) -> str:
    problem = problem_with_name(value)
    if problem is not None:
        raise ConfigurationError(f"{what} {problem}")
    checked: str = value
    return checked
