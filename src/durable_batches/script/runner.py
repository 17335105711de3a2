"""`run_batch`: run a batch from a script, to its end or to a signal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from os import PathLike
from typing import Final, Generic
from uuid import uuid4

from typing_extensions import TypeVar

from durable_batches.errors import ConfigurationError
from durable_batches.exit_watch import leave_exit
from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.primitives import problem_with_name
from durable_batches.lifecycle.records import BatchRecord
from durable_batches.lifecycle.states import BatchId, Completed, Stage
from durable_batches.options import check_callable, check_flag, check_instance, check_integer
from durable_batches.orchestrator.orchestrator import BatchOrchestrator
from durable_batches.orchestrator.paid import advice_on
from durable_batches.runtime.dependencies import Provider
from durable_batches.runtime.results import BatchResult
from durable_batches.runtime.workflow import Workflow
from durable_batches.script.resume import LABEL, Found, Resumption
from durable_batches.script.signals import StopSignals
from durable_batches.stores.protocol import Store, check_store
from durable_batches.tasks import loop_is_running
from durable_batches.terminal.lines import print_line
from durable_batches.terminal.show import SHOW_INTERVAL, show
from durable_batches.worker.worker import Worker

__all__ = ["Script", "knows_filters", "run_batch"]

_log = logging.getLogger("durable_batches")

D = TypeVar("D")
R = TypeVar("R")
S = TypeVar("S", bound=Stage, default=Stage)
V = TypeVar("V", default=None)

_DEFAULT_DRAIN: Final = timedelta(seconds=30)


def run_batch(
    workflow: Workflow[D, R, S, V],
    documents: Iterable[D] | AsyncIterable[D],
    *,
    store: str | PathLike[str] | Store,
    batch_id: str | None = None,
    config: BatchConfig | None = None,
    document_id: Callable[[D], str] | None = None,
    max_in_flight: int = 100,
    drain: timedelta = _DEFAULT_DRAIN,
    dependencies: Mapping[Provider, object] | None = None,
    progress: bool = True,
) -> BatchResult[V]:
    """Run a batch from a script, without asyncio: `sys.exit(run_batch(extract, texts, store="x.db").exit_code)`.

    **Run again**, an interrupted script resumes its batch. Without `batch_id`, that is the unfinished batch that has
    exactly these documents, if the store has one that this function began. Any other call begins a new batch: other
    documents are another batch, and a call after the end is a new run (with a prompt that has changed, say), so that
    neither gets the results of an earlier batch. Unfinished batches of other documents stay as they are: this process
    runs its own batch only. With `batch_id`, it resumes the batch of that id, whatever documents
    it is given; once that batch has ended, its result is returned, and documents that are not its own are refused. A
    batch keeps the configuration that it was submitted with.

    **At SIGINT (Ctrl-C) or SIGTERM**, running activities may finish and are recorded, for at most `drain`. Then
    stderr has how to resume the batch, and `SystemExit` is raised with 130 or 143. A second signal ends the drain, a
    third one the process, and so do 10 s in which the main thread only waits for threads or processes to end. If the
    batch has ended by then, its result is returned. Outside the main thread, signals keep their handlers.

    Args:
        workflow: The workflow to run.
        documents: Any number; consumed lazily.
        store: The store of the batch: the path of an SQLite file, created where there is none, or a store.
        batch_id: The id of the batch: one with the date, for a job that runs a new batch every night.
        config: The configuration of a new batch.
        document_id: A document's id, unique in its batch; see `BatchOrchestrator.submit` for the default.
        max_in_flight: Documents in flight in this process at once.
        drain: How long running activities may go on after a signal.
        dependencies: Replacements by provider; see `Worker`.
        progress: Whether to show the progress on stderr: as bars on a terminal where rich is installed (the extra
            `cli`), as lines elsewhere. Without it, only how to resume an interrupted batch is printed.

    Returns:
        The result of the run; see `raise_for_failures()`, `value` and `exit_code`.

    Raises:
        ConfigurationError: It is called inside a running event loop, where `await batches.run(documents)` of a
            `BatchOrchestrator` is to be used; or an argument cannot work.
        BatchExistsError: The batch of this id has ended, and has other documents.
        SystemExit: A signal was received.
        DuplicateDocumentError, PayloadError, WorkflowMismatchError, SubmissionInProgressError: See
            `BatchOrchestrator.submit`.
    """
    _refuse_a_running_loop()
    check_integer("max_in_flight", max_in_flight)
    check_flag("progress", progress)
    check_instance("config", config, BatchConfig, optional=True)
    check_callable("document_id", document_id, optional=True)
    if max_in_flight < 1:
        raise ConfigurationError("max_in_flight must be 1 or more: this is who runs the batch")
    opened = _opened(store)
    script = Script(
        workflow,
        documents,
        worker=Worker(
            opened,
            max_in_flight=max_in_flight,
            drain=drain,
            batches="mine" if knows_filters(opened) else "all",
            dependencies=dependencies,
        ),
        where="the store" if isinstance(store, Store) else str(store),
        batch_id=batch_id,
        config=BatchConfig() if config is None else config,
        document_id=document_id,
        drain=drain,
        progress=progress,
        option=_keyword,
    )
    with StopSignals() as signals:
        result = asyncio.run(script.run(signals))
    if result is None:
        raise SystemExit(signals.exit_code)
    # A batch that has ended during the drain is a result, and the script goes on with it.
    leave_exit()
    return result


def _refuse_a_running_loop() -> None:
    if loop_is_running():
        raise ConfigurationError(
            "run_batch() runs an event loop of its own, and one is running here already; use `async with "
            "BatchOrchestrator(workflow, store=...) as batches: await batches.run(documents)`"
        )


def _opened(store: str | PathLike[str] | Store) -> Store:
    if not isinstance(store, str | PathLike):
        return store
    # sqlite3 is imported only where it is used.
    from durable_batches.stores.sqlite import SQLiteStore

    return SQLiteStore(store)


def knows_filters(store: Store) -> bool:
    """Return whether workers can take from some batches of the store only."""
    check_store(store)
    return store.capabilities.level >= 2


def _keyword(name: str, value: str | None) -> str:
    """Write an option as an argument of `run_batch`."""
    return f"{name}=" if value is None else f"{name}={value!r}"


class Script(Generic[D, R, S, V]):
    """One call of `run_batch`, or of the command that does the same.

    Args:
        workflow: As for `run_batch`.
        documents: As for `run_batch`.
        worker: Runs the batch.
        where: The name of the store.
        batch_id: As for `run_batch`.
        config: As for `run_batch`.
        document_id: As for `run_batch`.
        drain: As for `run_batch`; the worker's.
        progress: As for `run_batch`.
        option: Writes an option as the caller gives it, with a value or without one.
        named: See `Resumption`.

    Raises:
        ConfigurationError: `batch_id` is no name.
    """

    def __init__(
        self,
        workflow: Workflow[D, R, S, V],
        documents: Iterable[D] | AsyncIterable[D],
        *,
        worker: Worker,
        where: str,
        batch_id: str | None,
        config: BatchConfig,
        document_id: Callable[[D], str] | None,
        drain: timedelta,
        progress: bool,
        option: Callable[[str, str | None], str],
        named: Callable[[D, str], D] | None = None,
    ) -> None:
        if batch_id is not None and (problem := problem_with_name(batch_id)) is not None:
            raise ConfigurationError(f"batch_id {problem}")
        self._workflow = workflow
        self._documents = documents
        self._worker = worker
        self._batches = BatchOrchestrator(workflow, worker=worker)
        self._where = where
        self._given_id = batch_id
        self._config = config
        self._document_id = document_id
        self._drain = drain
        self._progress = progress
        self._option = option
        self._named = named
        self._batch_id: BatchId | None = None

    async def run(self, signals: StopSignals) -> BatchResult[V] | None:
        """Run the batch to its end; return None where a signal stopped it before."""
        async with signals.ending_drain(self._worker), self._batches:
            work = asyncio.create_task(self._work())
            await signals.wait_for(work, stop=self._worker.begin_drain)
            if work.cancelled():
                print_line(
                    f"{signals.name}: running activities finish and are recorded first, for "
                    f"{_in_seconds(self._drain)} at most (again: stop at once)"
                )
        return await self._stopped(signals) if work.cancelled() else work.result()

    # ---- the batch -------------------------------------------------------------------------------------------

    async def _work(self) -> BatchResult[V]:
        found = await self._found()
        if self._progress:
            self._print_others(found, run_beside=not knows_filters(self._worker.store))
        batch_id = await self._submit(found) if found.record is None else self._resumed(found.record)
        self._batch_id = batch_id
        if self._progress:
            await self._print_start(batch_id, found)
            if found.record is None or not found.record.ended:
                async with aclosing(self._batches.watch(batch_id, interval=SHOW_INTERVAL)) as snapshots:
                    await show(snapshots, resolver=self._workflow.resolver is not None)
        return self._printed(await self._batches.result(batch_id))

    def _printed(self, result: BatchResult[V]) -> BatchResult[V]:
        durable = self._worker.store.capabilities.durable
        completed = isinstance(result.state, Completed)
        advice = advice_on(result.batch_id, result.counts, completed=completed) if durable else None
        if self._progress:
            print_line(str(result))
            if advice is not None:
                print_line(advice)
        elif advice is not None:
            _log.warning("batch %r has ended; %s", result.batch_id, advice, extra={"batch_id": result.batch_id})
        return result

    async def _found(self) -> Found[D]:
        resumption = Resumption(self._worker.store, self._workflow, self._document_id, self._named)
        if self._given_id is not None:
            return await resumption.of_id(self._given_id, self._documents)
        return await resumption.unfinished(self._documents)

    async def _submit(self, found: Found[D]) -> BatchId:
        config, batch_id = self._config, self._given_id
        if batch_id is None:
            # Batches with an id of the user's, and those that a service has submitted, are not resumed.
            config = config.model_copy(update={"metadata": {**config.metadata, LABEL: "run_batch"}})
            batch_id = f"{self._workflow.name[:64]}-{uuid4().hex[:12]}"
        # Known before the documents are loaded: a signal may arrive right after the last one.
        self._batch_id = BatchId(batch_id)
        return await self._batches.submit(
            found.documents, config=config, batch_id=batch_id, document_id=self._document_id
        )

    def _resumed(self, record: BatchRecord) -> BatchId:
        if not record.ended:
            self._worker.take(record.batch_id)
        return record.batch_id

    async def _print_start(self, batch_id: BatchId, found: Found[D]) -> None:
        record = found.record
        if record is None:
            total = (await self._batches.snapshot(batch_id)).counts.total
            print_line(f"batch {batch_id!r} in {self._where}: {total} documents")
        elif record.ended:
            print_line(f"batch {batch_id!r} in {self._where} has already ended; nothing is run")
        else:
            recorded = await self._batches.count_checkpoints(batch_id)
            print_line(f"resuming batch {batch_id!r} in {self._where}: {_progress_text(record, recorded)}")

    def _print_others(self, found: Found[D], *, run_beside: bool) -> None:
        for other in found.others:
            print_line(
                f"the unfinished batch {other.batch_id!r} of other documents runs beside this one; "
                f"{self._id_option(other)} waits for it"
                if run_beside
                else f"batch {other.batch_id!r} of other documents is unfinished, and is not run now; "
                f"{self._id_option(other)} resumes it"
            )

    def _id_option(self, record: BatchRecord) -> str:
        return self._option("batch_id", record.batch_id)

    # ---- the end ---------------------------------------------------------------------------------------------

    async def _stopped(self, signals: StopSignals) -> BatchResult[V] | None:
        """Print what was done and how to resume; return the result where the batch ended during the drain."""
        store = self._worker.store
        record, recorded = None, 0
        await store.open()
        try:
            if self._batch_id is not None:
                record = await store.batch(self._batch_id)
                recorded = await store.count_checkpoints(self._batch_id)
        finally:
            await store.close()
        if record is None or not record.sealed:
            print_line(f"stopped by {signals.name} before all documents were submitted; nothing was run; run it again")
            return None
        if record.ended:
            # With max_in_flight=0 nothing runs.
            async with BatchOrchestrator(self._workflow, store=store, max_in_flight=0) as reader:
                return self._printed(await reader.result(record.batch_id))
        print_line(f"stopped by {signals.name}: {_progress_text(record, recorded)}")
        if not store.capabilities.durable:
            store_option = self._option("store", None)
            print_line(
                f"the store is lost with this process; with the path of a file as {store_option}, it could be resumed"
            )
        elif self._given_id is None:
            print_line(f"to resume it, run the same again; or, with any documents, with {self._id_option(record)}")
        else:
            print_line(f"to resume it, run the same again, with {self._id_option(record)}")
        return None


def _progress_text(record: BatchRecord, recorded: int) -> str:
    counts = record.counts
    return f"{counts.ended} of {counts.total} documents finished, {recorded} recorded activities will not be repeated"


def _in_seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
