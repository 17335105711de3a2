"""The orchestrator: one workflow's batches, typed by its documents, results, stages and resolution."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, Generic, Literal, Self, overload
from uuid import uuid4

from typing_extensions import TypeVar, deprecated

from durable_batches.codec.codec import payload_of
from durable_batches.errors import ConfigurationError
from durable_batches.lifecycle.batch_core import decode_core, definition_of
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import BatchSnapshot, state_of
from durable_batches.lifecycle.records import BatchRecord, DocumentRecord, ExecutionStatus, WorkerId
from durable_batches.lifecycle.spending import spending_of
from durable_batches.lifecycle.states import BatchId, Cancelled, Completed, Failed, Stage
from durable_batches.options import check_flag, check_instance, check_text
from durable_batches.orchestrator.stranded import StrandedBatches
from durable_batches.orchestrator.submission import Submission
from durable_batches.reading.access import BatchAccess, check_status
from durable_batches.reading.documents import stage_of
from durable_batches.reading.results import failure_of, outcome_of, status_of
from durable_batches.runtime.dependencies import Provider
from durable_batches.runtime.resources import ActivityReport, RunStats
from durable_batches.runtime.results import BatchResult, DocumentInfo, Outcome
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.protocol import HostTransaction, Store
from durable_batches.tasks import loop_is_running
from durable_batches.worker.worker import Worker

__all__ = ["BatchOrchestrator"]

D = TypeVar("D")
R_co = TypeVar("R_co", covariant=True)
S_co = TypeVar("S_co", bound=Stage, default=Stage, covariant=True)
V_co = TypeVar("V_co", default=None, covariant=True)

_FAILURES_SHOWN = 10


class BatchOrchestrator(BatchAccess[S_co], Generic[D, R_co, S_co, V_co]):
    """Runs the batches of a workflow, inside `async with`; constructing it needs no event loop.

    It is a `BatchClient` of this workflow's batches, with their types, that also submits and runs them.

    With `store=` it creates a worker; with `worker=` it shares one with other orchestrators, and entering either is
    enough.

    Args:
        workflow: The workflow to run.
        store: The store of the batches.
        worker: The worker that runs them.
        config: The configuration of batches that are submitted without one.
        max_in_flight: Documents in flight in this process. 0: only submits and reads.
        signals: Have SIGTERM and SIGINT drain it; see `Worker`.
        dependencies: Replacements by provider; see `Worker`.

    Raises:
        ConfigurationError: `store` is no store, or neither or both of `store` and `worker` are given.
        ForeignStageError: The workflow names an activity whose stage its machine does not have.
        ActivityDefinitionError: The workflow's annotations cannot be recorded.
    """

    @overload
    def __init__(
        self,
        workflow: Workflow[D, R_co, S_co, V_co],
        *,
        store: Store,
        config: BatchConfig | None = None,
        max_in_flight: int = 100,
        signals: bool = False,
        dependencies: Mapping[Provider, object] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self, workflow: Workflow[D, R_co, S_co, V_co], *, worker: Worker, config: BatchConfig | None = None
    ) -> None: ...
    def __init__(
        self,
        workflow: Workflow[D, R_co, S_co, V_co],
        *,
        store: Store | None = None,
        worker: Worker | None = None,
        config: BatchConfig | None = None,
        max_in_flight: int = 100,
        signals: bool = False,
        dependencies: Mapping[Provider, object] | None = None,
    ) -> None:
        if not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"{workflow!r} is no workflow; decorate it with @workflow(machine)")
        if (store is None) == (worker is None):
            raise ConfigurationError("give either store= or worker=")
        check_instance("worker", worker, Worker, optional=True)
        check_instance("config", config, BatchConfig, optional=True)
        workflow.check()
        self._workflow = workflow
        self._config = BatchConfig() if config is None else config
        if worker is None:
            assert store is not None
            worker = Worker(store, max_in_flight=max_in_flight, signals=signals, dependencies=dependencies)
        elif dependencies is not None:
            raise ConfigurationError("the worker's dependencies are given to the worker: Worker(dependencies=...)")
        elif signals:
            raise ConfigurationError("a worker listens to signals by itself: Worker(signals=True)")
        self._worker = worker
        super().__init__(worker.reader(workflow.name), workflow.machine, worker.clock, worker.command)
        worker.serve(workflow)
        self._stranded = StrandedBatches(worker, workflow)
        worker.before_start(workflow, self._stranded.warn_at_start)

    async def __aenter__(self) -> Self:
        """Start the worker, unless it is running."""
        await self._worker.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the worker, unless another orchestrator uses it: drain, release unfinished documents, deregister."""
        await self._worker.__aexit__(kind, error, trace)

    @property
    def worker(self) -> Worker:
        """The worker that runs the batches."""
        return self._worker

    @property
    def stats(self) -> RunStats:
        """Counters of the worker since it was created."""
        return self._worker.stats

    # ---- bringing work ---------------------------------------------------------------------------------------

    async def submit(
        self,
        documents: Iterable[D] | AsyncIterable[D],
        *,
        config: BatchConfig | None = None,
        batch_id: str | None = None,
        document_id: Callable[[D], str] | None = None,
        if_exists: Literal["attach", "error"] = "attach",
        connection: HostTransaction | None = None,
    ) -> BatchId:
        """Submit a batch. When this returns, all documents are stored and the batch runs.

        Args:
            documents: Any number of documents; consumed lazily, one chunk in memory at a time.
            config: How the batch runs; by default the orchestrator's configuration.
            batch_id: Makes the submission idempotent: if a submitted batch of this workflow has this id, the call
                attaches to it, without consuming the documents, and with the configuration that it was submitted
                with. Random by default.
            document_id: Returns a document's id, unique in its batch. By default the document's `document_id` or `id`
                attribute (a str, int or UUID), or else its ordinal in the submission, from 0.
            if_exists: "error" refuses an existing batch id.
            connection: A connection (or session) of the application, in a transaction on the store's database. The
                batch becomes part of that transaction: it is rolled back with it, and visible only after its commit.
                An AsyncConnection or AsyncSession of SQLAlchemy, or a connection of the driver: of aiosqlite to a
                SQLiteStore's file, of asyncpg or psycopg to a PostgresStore's database.

        Raises:
            DuplicateDocumentError: Two documents have the same id; the submission leaves nothing behind.
            PayloadError: A document cannot be stored exactly; the submission leaves nothing behind.
            ConfigurationError: `documents` is a single string, an id is unusable, or the store cannot join the
                connection's transaction.
            WorkflowMismatchError: The batch id belongs to another workflow's batch.
            BatchExistsError: The batch exists, and `if_exists` is "error".
            SubmissionInProgressError: Another live submitter is loading the batch.
            StoreUnavailableError: Or a kin of it. With `connection=`, the batch is undone, and the transaction goes
                on; where the database has rolled back all of it, a note of the error says so.
        """
        submission = Submission(
            self._worker,
            self._workflow,
            config=self._config if config is None else config,
            batch_id=batch_id,
            document_id=document_id,
            if_exists=if_exists,
            connection=connection,
        )
        submitted = await submission.run(documents)
        if submission.attached_to is not None:
            await self._stranded.warn_of(submission.attached_to)
        elif submission.created is not None and connection is None:
            await self._stranded.warn_of_new(submission.created)
        return submitted

    def submit_sync(
        self,
        documents: Iterable[D],
        *,
        connection: HostTransaction | None = None,
        config: BatchConfig | None = None,
        batch_id: str | None = None,
        document_id: Callable[[D], str] | None = None,
        if_exists: Literal["attach", "error"] = "attach",
    ) -> BatchId:
        """Submit a batch from code without an event loop; workers elsewhere run it. This one need not be running.

        Args:
            documents: As for `submit`, but no async iterable.
            connection: A connection (or session) of the application, in a transaction on the store's database, as for
                `submit`: a Connection or Session of SQLAlchemy, Django's connection, or a connection of the driver: of
                sqlite3 to a SQLiteStore's file, of psycopg to a PostgresStore's database. The store's tables have to
                be there. Without it the store is opened, and the batch written by itself.
            config: As for `submit`.
            batch_id: As for `submit`.
            document_id: As for `submit`.
            if_exists: As for `submit`.

        Raises:
            ConfigurationError: As for `submit`, or an event loop runs in this thread, which this call would block.
            StoreNotFoundError: With `connection=`, the store's tables are not there.
            DurableBatchesError: Any other that `submit` raises.
        """
        if loop_is_running():
            raise ConfigurationError(
                "submit_sync() would block the event loop of this thread; use `await submit(...)`, with an async "
                "connection"
            )
        if config is None:
            config = self._config

        def submission(worker: Worker, loader: WorkerId | None) -> Submission[D]:
            return Submission(
                worker,
                self._workflow,
                config=config,
                batch_id=batch_id,
                document_id=document_id,
                if_exists=if_exists,
                connection=connection,
                loader=loader,
            )

        if connection is not None:
            # Nobody sees the loader: the batch is created and sealed in the same transaction.
            return submission(self._worker, WorkerId(uuid4().hex[:20])).run_without_loop(documents, connection)

        async def submit() -> BatchId:
            async with Worker(
                self._worker.store, max_in_flight=0, telemetry=self._worker.telemetry, clock=self._worker.clock
            ) as worker:
                return await submission(worker, None).run(documents)

        submitted = asyncio.run(submit())
        self._worker.take(submitted)
        return submitted

    async def run(
        self,
        documents: Iterable[D] | AsyncIterable[D],
        *,
        config: BatchConfig | None = None,
        batch_id: str | None = None,
        document_id: Callable[[D], str] | None = None,
        if_exists: Literal["attach", "error"] = "attach",
        progress: bool = False,
    ) -> BatchResult[V_co]:
        """Submit a batch and wait for its result; see `submit` and `result`."""
        check_flag("progress", progress)
        submitted = await self.submit(
            documents, config=config, batch_id=batch_id, document_id=document_id, if_exists=if_exists
        )
        return await self.result(submitted, progress=progress)

    # ---- reading ---------------------------------------------------------------------------------------------

    def reports(self, batch_id: str) -> list[ActivityReport]:
        """List the progress that activities running in this process report with `current_activity().report`."""
        check_text("batch_id", batch_id)
        return self._worker.reports(BatchId(batch_id))

    async def result(self, batch_id: str, *, progress: bool = False) -> BatchResult[V_co]:
        """Wait for the end of the batch and return its result.

        Args:
            batch_id: The batch.
            progress: Show its progress meanwhile: in a notebook as an output below the cell, otherwise on stderr, as
                bars on a terminal where rich is installed (the extra `cli`), and as a line now and then elsewhere.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        check_flag("progress", progress)
        async with self._stranded.watched(batch_id):
            if progress:
                # Only those who look import it.
                from durable_batches.terminal.show import SHOW_INTERVAL, show

                async with aclosing(self.watch(batch_id, interval=SHOW_INTERVAL)) as snapshots:
                    await show(snapshots, resolver=self._workflow.resolver is not None)
            record = await self._reader.ended_record(batch_id)
        return await self._result(record)

    async def results(self, batch_id: str) -> AsyncGenerator[Outcome[R_co], None]:
        """Yield the outcomes of finished documents, in submission order, one page in memory at a time.

        For a batch that has ended these are all documents: those left unfinished are cancelled.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        record = await self._reader.awaited_record(batch_id)
        statuses: Collection[ExecutionStatus] = () if record.ended else ("succeeded", "failed", "cancelled")
        async with aclosing(self._reader.documents(record, statuses, inputs=False)) as documents:
            async for document in documents:
                outcome = outcome_of(document, self._workflow.result_codec, ended=record.ended)
                if outcome is not None:
                    yield outcome

    async def documents(
        self,
        batch_id: str,
        *,
        status: Literal["pending", "running", "waiting", "succeeded", "failed", "cancelled"] | None = None,
    ) -> AsyncGenerator[DocumentInfo[D], None]:
        """Yield the documents with their status, in submission order, one page in memory at a time.

        Args:
            batch_id: The batch.
            status: Only documents with this status.

        Raises:
            BatchNotFoundError: There is no such batch.
            ConfigurationError: There is no such status.
        """
        check_status(status)
        record = await self._reader.awaited_record(batch_id)
        statuses: Collection[ExecutionStatus] = () if status is None else (status,)
        async with aclosing(self._reader.documents(record, statuses, inputs=True)) as documents:
            async for document in documents:
                yield self._info(record, document)

    def list_batches(
        self,
        *,
        states: Collection[str] = (),
        metadata: Mapping[str, str] | None = None,
        created_before: datetime | None = None,
    ) -> AsyncGenerator[BatchSnapshot[S_co], None]:
        """Yield this workflow's batches, newest first, one page in memory at a time.

        Args:
            states: Only batches in one of these states (tags).
            metadata: Only batches with all of these labels.
            created_before: Only batches created before this moment; an aware datetime.

        Raises:
            ConfigurationError: A state has a NUL or a lone surrogate, which no state has; labels may.
        """
        return self._snapshots(
            workflow=self._workflow.name, states=states, metadata=metadata, created_before=created_before
        )

    @deprecated("recorded_activities() is called count_checkpoints() now")
    async def recorded_activities(self, batch_id: str) -> int:
        """`count_checkpoints`, under its former name."""
        return await self.count_checkpoints(batch_id)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _info(self, batch: BatchRecord, document: DocumentRecord) -> DocumentInfo[D]:
        execution = document.execution
        status = status_of(execution, ended=batch.ended)
        failed = document.outcome is not None and status != "succeeded"
        with payload_of(batch.batch_id, execution.document_id):
            value = self._workflow.document_codec.decode(document.input)
        return DocumentInfo(
            document_id=execution.document_id,
            document=value,
            status=status,
            stage=stage_of(batch, document),
            attempts=execution.attempt,
            failure=failure_of(document) if failed else None,
            updated_at=from_micros(execution.updated_at),
        )

    async def _result(self, record: BatchRecord) -> BatchResult[V_co]:
        state: Any = state_of(record, self._workflow.machine)
        assert isinstance(state, Completed | Failed | Cancelled)
        resolution: V_co | None = None
        if isinstance(state, Completed) and definition_of(record).resolver:
            resolver = await self._reader.resolver(record)
            assert resolver.outcome is not None
            with payload_of(record.batch_id, resolver.execution.document_id):
                resolution = self._workflow.resolution_codec.decode(resolver.outcome)
        return BatchResult(
            batch_id=record.batch_id,
            state=state,
            counts=record.counts,
            resolution=resolution,
            failures=[failure_of(document) for document in await self._failures(record)],
            spent=spending_of(decode_core(record.core).get("spent")),
        )

    async def _failures(self, record: BatchRecord) -> Sequence[DocumentRecord]:
        return await self._reader.first_failures(record, _FAILURES_SHOWN) if record.counts.failed else ()
