"""The store watch: counts the unfinished batches of a worker's workflows in its store, now and then, for telemetry."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Final, NamedTuple

from durable_batches.clock import Clock
from durable_batches.lifecycle.records import BatchRecord, Micros
from durable_batches.lifecycle.states import BatchId, Counts
from durable_batches.reading.results import PAGE
from durable_batches.signals import Signal
from durable_batches.stores.protocol import BatchQuery, Store
from durable_batches.tasks import seen_through
from durable_batches.telemetry.hooks import WorkflowGauges
from durable_batches.worker.runner import AnyWorkflow

__all__ = ["StoreWatch"]

_log = logging.getLogger("durable_batches")

_REST: Final = 20
"""Readings are apart by at least this many times the duration of one: a store with many batches is read less often."""


class _Unserved(NamedTuple):
    """A batch that had something to claim at the latest reading."""

    turn: int
    """Of its latest claim."""
    since: float
    """When it was first seen so, on the boot clock."""


class StoreWatch:
    """Reads the gauges of one store, in a task of its own while it is open.

    Args:
        store: The store, which is open meanwhile.
        clock: The worker's.
        every: How often it is read.
        workflows: Lists the workflows whose batches count.
        read: Fired after each reading: whether it has succeeded.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        every: timedelta,
        workflows: Callable[[], Iterable[AnyWorkflow]],
        read: Signal[bool],
    ) -> None:
        self._store = store
        self._clock = clock
        self._seconds = every.total_seconds()
        self._workflows = workflows
        self._read = read
        self._task: asyncio.Task[None] | None = None
        self._unserved: Mapping[BatchId, _Unserved] = {}
        self._fails = False
        self.latest: Sequence[WorkflowGauges] = ()
        """The latest reading, one a workflow; empty before the first one, and after one that failed."""

    def open(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run(), name="durable-batches store watch")

    async def close(self) -> None:
        """End a reading that is under way, and read no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await seen_through(task)
        self.latest = ()

    async def _run(self) -> None:
        while True:
            began = self._clock.boot()
            try:
                self.latest = await self._gauges()
                self._fails = False
            except Exception as error:  # noqa: BLE001  (of any store: what runs the batches does not depend on it)
                # An old reading would pass for a new one.
                self.latest = ()
                self._failed(error)
            self._read.fire(not self._fails)
            took = self._clock.boot() - began
            await self._clock.sleep(max(self._seconds, _REST * took), housekeeping=True)

    def _failed(self, error: Exception) -> None:
        if not self._fails:
            self._fails = True
            _log.warning(
                "batches in the store are not counted for telemetry until it can be read: %s: %s",
                type(error).__name__,
                error,
                extra={"error_type": type(error).__name__},
            )

    async def _gauges(self) -> Sequence[WorkflowGauges]:
        tags: dict[str, dict[str, None]] = {}
        for workflow in self._workflows():
            tags.setdefault(workflow.name, {}).update(dict.fromkeys(workflow.machine.tags))
        unserved: dict[BatchId, _Unserved] = {}
        gauges = [await self._of(workflow, stages, unserved) for workflow, stages in tags.items()]
        self._unserved = unserved
        return gauges

    async def _of(self, workflow: str, stages: Iterable[str], unserved: dict[BatchId, _Unserved]) -> WorkflowGauges:
        query = BatchQuery(workflow=workflow, states=("pending", *stages, "resolving"))
        batches, documents = Counter[str](), Counter[str](asdict(Counts()))
        lag = 0.0
        after: BatchId | None = None
        while True:
            page = await self._store.batches(query, after=after, limit=PAGE)
            now, boot = self._clock.now(), self._clock.boot()
            for record in page:
                batches[record.state] += 1
                documents.update(asdict(record.counts))
                if has_something_to_claim(record, now):
                    known = self._unserved.get(record.batch_id)
                    if known is None or known.turn != record.served:
                        known = _Unserved(record.served, boot)
                    unserved[record.batch_id] = known
                    lag = max(lag, boot - known.since)
            if len(page) < PAGE:
                break
            after = page[-1].batch_id
        del documents["total"]
        return WorkflowGauges(workflow=workflow, batches=batches, documents=documents, claim_lag_seconds=lag)


def has_something_to_claim(record: BatchRecord, now: Micros) -> bool:
    """Whether a worker with an open slot could claim something of a batch now."""
    if record.paused:
        return False
    if record.free > 0:
        # In stores of level 1, a slot is open also where all that is left waits for its time.
        return record.counts.pending > 0 or record.state == "resolving"
    return record.next_due is not None and record.next_due <= now
