"""Batches of a version of their workflow that no worker runs: a warning, for they wait without a word otherwise."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from durable_batches.errors import DurableBatchesError
from durable_batches.lifecycle.records import BatchRecord
from durable_batches.lifecycle.states import BatchId
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
        """Look through the unfinished batches for those of other versions."""
        query = BatchQuery(workflow=self._workflow.name, states=("pending", *self._workflow.machine.tags, "resolving"))
        with _no_store_errors():
            found = await self._worker.store.batches(query, after=None, limit=_LOOKED_AT)
            await self._warn([record for record in found if record.version not in self._versions])

    async def warn_of(self, record: BatchRecord) -> None:
        """Warn of a batch, if it is unfinished and no worker runs its version."""
        with _no_store_errors():
            await self._warn([record])

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

    async def _warn(self, records: Sequence[BatchRecord]) -> None:
        unfinished = [record for record in records if not record.ended]
        if not unfinished:
            return
        workers = [worker for worker in await self._worker.store.workers() if not is_dead(worker)]
        served = {pair for worker in workers for pair in worker.workflows}
        if self._worker.max_in_flight:
            # Its row tells what it had when it registered.
            served.update(self._workflow.versions)
        running = sorted(version for name, version in served if name == self._workflow.name)
        stranded = [record for record in unfinished if (record.workflow, record.version) not in served]
        for record in stranded[:_MOST_LOGGED]:
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
        if len(stranded) > _MOST_LOGGED:
            _log.warning(
                "%d more batches of workflow %r wait for versions that no worker runs",
                len(stranded) - _MOST_LOGGED,
                self._workflow.name,
                extra={"workflow": self._workflow.name, "batches": len(stranded)},
            )


@contextmanager
def _no_store_errors() -> Generator[None]:
    """Give the look up where the store fails: what needs the store next waits for it, and says so."""
    try:
        yield
    except DurableBatchesError as error:
        _log.debug("batches that no worker runs are not looked for: %s", error)
