"""What workers say of themselves in their rows, by what a reader asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from durable_batches.lifecycle.notes import BlockedAt, LongCallsOf, RunningActivity, decode_note
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import LongCalls
from durable_batches.lifecycle.records import ExecutionRecord, WorkerId, WorkerRecord
from durable_batches.lifecycle.states import BatchId

__all__ = ["WorkerNotes"]


class WorkerNotes:
    """The notes of some workers. A worker that says nothing, or nothing that is understood, is as if it were not there.

    They are as old as the last renewal of the worker's lease: up to a third of it, 10 s by default.

    Args:
        workers: Their rows.
    """

    def __init__(self, workers: Iterable[WorkerRecord] = ()) -> None:
        notes = {worker.worker_id: note for worker in workers if (note := decode_note(worker.note)) is not None}
        self._running = {
            (worker, each.batch_id, each.position, each.attempt): each
            for worker, note in notes.items()
            for each in note.running
        }
        self._long_calls = [(worker, each) for worker, note in notes.items() for each in note.long_calls]
        self.blocked: Mapping[WorkerId, BlockedAt] = {
            worker: note.blocked for worker, note in notes.items() if note.blocked is not None
        }
        """Where the event loops of workers were kept from turning the last time."""

    def activity_of(self, execution: ExecutionRecord) -> RunningActivity | None:
        """Return the activity that an execution runs; None: it runs none, or that is not known."""
        if execution.owner is None:
            return None
        return self._running.get((execution.owner, execution.batch_id, execution.position, execution.attempt))

    def long_calls(self, batch_id: BatchId) -> Sequence[LongCalls]:
        """Return the calls of a batch that may never end, by activity, in the order of their beginnings."""
        found: dict[str, list[tuple[WorkerId, LongCallsOf]]] = {}
        for worker, calls in self._long_calls:
            if calls.batch_id == batch_id:
                found.setdefault(calls.activity, []).append((worker, calls))
        groups: list[LongCalls] = []
        for activity, on_workers in found.items():
            numbers: Counter[str] = Counter()
            for worker, calls in on_workers:
                numbers[worker] += calls.calls
            since = from_micros(min(calls.since for _, calls in on_workers))
            groups.append(LongCalls(activity=activity, calls=numbers.total(), since=since, workers=dict(numbers)))
        return tuple(sorted(groups, key=lambda group: group.since))
