"""What workers say of themselves in their rows, by what a reader asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from durable_batches.lifecycle.notes import (
    CIRCUITS,
    BlockedAt,
    CircuitOf,
    LimitedCallsOf,
    LongCallsOf,
    RunningActivity,
    decode_note,
)
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import LongCalls
from durable_batches.lifecycle.records import BatchRecord, ExecutionRecord, WorkerId, WorkerRecord
from durable_batches.lifecycle.states import BatchId

__all__ = ["TakesFrom", "WorkerNotes"]

TakesFrom: TypeAlias = Literal["mine", "filter"]
"""What a worker takes from that does not take from all batches: what its process has submitted or attached to, or those
of its `BatchFilter`."""


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
        self._limited = [(worker, each) for worker, note in notes.items() for each in note.limited]
        self._circuits = {(worker, each.limiter): each for worker, note in notes.items() for each in note.circuits}
        self._taken = {worker: (note.at, note.takes) for worker, note in notes.items() if note.takes is not None}
        self.blocked: Mapping[WorkerId, BlockedAt] = {
            worker: note.blocked for worker, note in notes.items() if note.blocked is not None
        }
        """Where the event loops of workers were kept from turning the last time."""

    def activity_of(self, execution: ExecutionRecord) -> RunningActivity | None:
        """Return the activity that an execution runs; None: it runs none, or that is not known."""
        if execution.owner is None:
            return None
        return self._running.get((execution.owner, execution.batch_id, execution.position, execution.attempt))

    def takes_other_than(self, worker: WorkerId, batch: BatchRecord) -> TakesFrom | None:
        """Return what a worker takes from other than this batch; None: it takes from this one, too, or may do so."""
        if worker not in self._taken:
            return None
        at, taken = self._taken[worker]
        # What was submitted since the note was written is not in it yet.
        if taken.may_include(batch) or (taken.own and batch.created_at > at):
            return None
        return "mine" if taken.own else "filter"

    def limited(self, batch_id: BatchId) -> Mapping[str, Sequence[tuple[WorkerId, LimitedCallsOf]]]:
        """Return the calls of a batch that wait for permits, by limiter."""
        found: dict[str, list[tuple[WorkerId, LimitedCallsOf]]] = {}
        for worker, calls in self._limited:
            if calls.batch_id == batch_id:
                found.setdefault(calls.limiter, []).append((worker, calls))
        return found

    def circuit(self, limiter: str, workers: Iterable[WorkerId]) -> CircuitOf:
        """Return the circuit breaker of a limiter: of those of several workers, the one that lets the least pass now.

        Args:
            limiter: Its name.
            workers: Those on which calls wait for it.
        """
        known = [each for worker in workers if (each := self._circuits.get((worker, limiter))) is not None]
        # Of several, the first one to let a call pass; none of them may say when that is.
        known.sort(key=lambda each: (-CIRCUITS.index(each.state), each.until is None, each.until or 0))
        return known[0] if known else CircuitOf(limiter, "closed", None)

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
