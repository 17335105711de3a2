"""Serving: which of the workers that are alive would run a batch, and why the others of its workflow do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from durable_batches.lifecycle.records import BatchRecord, WorkerId, WorkerRecord
from durable_batches.reading.notes import TakesFrom, WorkerNotes

__all__ = ["Serving", "serving"]


class Serving(NamedTuple):
    """The workers that have a batch's workflow, in its version."""

    take: Sequence[WorkerId]
    """Those that take from the batch, as far as is known."""
    take_others: Mapping[str, TakesFrom]
    """Those that take from other batches only, each with what it takes from."""
    too_old: Sequence[WorkerId]
    """Those whose library is older than what the batch needs."""


def serving(batch: BatchRecord, workers: Iterable[WorkerRecord], notes: WorkerNotes) -> Serving:
    """Find out which workers would run a batch.

    Args:
        batch: Its record.
        workers: Those that are alive.
        notes: What they say of themselves.
    """
    take: list[WorkerId] = []
    take_others: dict[str, TakesFrom] = {}
    too_old: list[WorkerId] = []
    for worker in workers:
        if (batch.workflow, batch.version) not in worker.workflows:
            continue
        takes_from = notes.takes_other_than(worker.worker_id, batch)
        if worker.generation < batch.needs:
            too_old.append(worker.worker_id)
        elif takes_from is not None:
            take_others[worker.worker_id] = takes_from
        else:
            take.append(worker.worker_id)
    return Serving(take, take_others, too_old)
