"""Batches that no worker runs: a warning, for they wait without a word otherwise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from durable_batches.errors import DurableBatchesError
from durable_batches.lifecycle.records import GENERATION, BatchRecord, WorkerRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.reading.notes import WorkerNotes
from durable_batches.reading.serving import Serving, serving
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.protocol import BatchQuery
from durable_batches.worker.process_identity import is_dead
from durable_batches.worker.worker import Worker

__all__ = ["StrandedBatches"]

_log = logging.getLogger("durable_batches")

_WAITED_SECONDS: Final = 60.0
"""How long a result is waited for before it is asked whether anything runs the batch."""

_LOOKED_AT: Final = 100
"""Unfinished batches that are looked at when an orchestrator begins."""

_MOST_LOGGED: Final = 10
"""Batches that are named of those."""


class StrandedBatches:
    """Warns of the unfinished batches of one workflow that no worker runs.

    Args:
        worker: Runs the workflow, and reaches the store.
        workflow: The workflow, in the version that this process has.
    """

    def __init__(self, worker: Worker, workflow: Workflow[Any, Any, Any, Any]) -> None:
        self._worker = worker
        self._workflow = workflow
        self._versions = {version for _, version in workflow.versions}

    async def warn_at_start(self) -> None:
        """Look through the unfinished batches for those that this worker will not run."""
        query = BatchQuery(workflow=self._workflow.name, states=("pending", *self._workflow.machine.tags, "resolving"))
        with _no_store_errors():
            found = await self._worker.store.batches(query, after=None, limit=_LOOKED_AT)
            await self._warn([record for record in found if not self._may_run_here(record)])

    async def warn_of(self, record: BatchRecord) -> None:
        """Warn of a batch, if it is unfinished and no worker runs it."""
        with _no_store_errors():
            await self._warn([record])

    async def warn_of_new(self, record: BatchRecord) -> None:
        """Warn of a batch that is submitted to a worker that does not take from it, if no other runs it either."""
        # One without capacity is there to submit for others, which may be started later.
        if self._worker.max_in_flight and not self._worker.takes_from(record):
            await self.warn_of(record)

    @asynccontextmanager
    async def watched(self, batch_id: str) -> AsyncGenerator[None]:
        """Within the block, which waits for the batch, warn of it after a minute."""
        looks: list[asyncio.Task[None]] = []

        async def look() -> None:
            with _no_store_errors():
                record = await self._worker.store.batch(BatchId(batch_id))
                await self._warn([] if record is None else [record])

        timer = self._worker.clock.call_later(
            _WAITED_SECONDS, lambda: looks.append(asyncio.create_task(look())), housekeeping=True
        )
        try:
            yield
        finally:
            timer.cancel()
            for task in looks:
                task.cancel()
            if looks:
                await asyncio.wait(looks)

    def _may_run_here(self, record: BatchRecord) -> bool:
        """Whether this worker runs a batch, or will when it is submitted again."""
        if record.version not in self._versions:
            return False
        return self._worker.takes_own_only or self._worker.takes_from(record)

    def _runs_here(self, record: BatchRecord) -> bool:
        return record.version in self._versions and self._worker.takes_from(record)

    async def _warn(self, records: Sequence[BatchRecord]) -> None:
        left = [record for record in records if not record.ended and not self._runs_here(record)]
        if not left:
            return
        workers = [worker for worker in await self._worker.store.workers() if not is_dead(worker)]
        notes = WorkerNotes(workers)
        found = [(record, serving(record, workers, notes)) for record in left]
        stranded = [(record, others) for record, others in found if not others.take]
        for record, others in stranded[:_MOST_LOGGED]:
            here = self._worker.max_in_flight > 0 and record.version in self._versions
            if others.take_others or (here and record.needs <= GENERATION):
                self._warn_of_selection(record, others)
            elif others.too_old or here:
                _warn_of_library(record, others)
            else:
                self._warn_of_version(record, workers)
        if len(stranded) > _MOST_LOGGED:
            _log.warning(
                "%d more batches of workflow %r wait, and no worker runs them",
                len(stranded) - _MOST_LOGGED,
                self._workflow.name,
                extra={"workflow": self._workflow.name, "batches": len(stranded)},
            )

    def _warn_of_selection(self, record: BatchRecord, others: Serving) -> None:
        _log.warning(
            "batch %r waits, and no worker takes from it: those that run version %r of workflow %r take from other "
            "batches only, as Worker(batches=...) says; start one that takes from it%s",
            record.batch_id,
            record.version,
            record.workflow,
            ", or submit it again by its id, which makes it one of this worker's own"
            if self._worker.takes_own_only and record.version in self._versions
            else "",
            extra={
                "batch_id": record.batch_id,
                "workflow": record.workflow,
                "version": record.version,
                "worker_ids": sorted(others.take_others),
            },
        )

    def _warn_of_version(self, record: BatchRecord, workers: Sequence[WorkerRecord]) -> None:
        served = {pair for worker in workers for pair in worker.workflows}
        if self._worker.max_in_flight:
            # Its row tells what it had when it registered.
            served.update(self._workflow.versions)
        running = sorted(version for name, version in served if name == self._workflow.name)
        _log.warning(
            "batch %r waits for version %r of workflow %r, which no worker runs (%s); if a newer version can go on "
            "with it, give that one accepts=(%r,), or else run version %r beside it",
            record.batch_id,
            record.version,
            record.workflow,
            f"running: {', '.join(map(repr, running))}" if running else "none is running at all",
            record.version,
            record.version,
            extra={
                "batch_id": record.batch_id,
                "workflow": record.workflow,
                "version": record.version,
                "versions_running": running,
            },
        )


def _warn_of_library(record: BatchRecord, others: Serving) -> None:
    _log.warning(
        "batch %r waits: it needs a newer version of the library than the workers have that run version %r of workflow "
        "%r; start one with the version that it was submitted with",
        record.batch_id,
        record.version,
        record.workflow,
        extra={
            "batch_id": record.batch_id,
            "workflow": record.workflow,
            "version": record.version,
            "worker_ids": list(others.too_old),
        },
    )


@contextmanager
def _no_store_errors() -> Generator[None]:
    """Give the look up where the store fails: what needs the store next waits for it, and says so."""
    try:
        yield
    except DurableBatchesError as error:
        _log.debug("batches that no worker runs are not looked for: %s", error)
