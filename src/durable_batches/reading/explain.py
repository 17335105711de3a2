"""Explain why a batch is where it is, from its record, its executions and the workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from typing_extensions import TypeVar

from durable_batches.errors import shortened
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.batch_core import definition_of
from durable_batches.lifecycle.planning import ISOLATED_CRASHES
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.progress import Stages, pauses_of, state_of
from durable_batches.lifecycle.records import RESOLVER_POSITION, BatchRecord, ExecutionRecord, Micros, WorkerRecord
from durable_batches.lifecycle.states import Cancelled, Failed, Stage
from durable_batches.reading.notes import WorkerNotes
from durable_batches.reading.reasons import (
    BatchEnded,
    BlockedLoop,
    DamagedBatch,
    DeadWorker,
    Explanation,
    IsolatedDocument,
    NoWorker,
    PausedBatch,
    QueuedDocuments,
    Reason,
    ResolverStatus,
    RunningDocuments,
    SuspendedDocuments,
    ThrottledLimiter,
    UnselectedBatch,
)
from durable_batches.reading.serving import Serving, serving
from durable_batches.stores.protocol import Inspectable, Inspection, Lease, Store

__all__ = ["INSPECTED", "explanation_of", "inspection_of"]

S = TypeVar("S", bound=Stage, default=Stage)

INSPECTED: Final = 1_000
"""Executions of each kind that an explanation looks at."""

_RECENT: Final = 60_000_000
"""Microseconds for which an event loop that turns again is still said to have been blocked."""


async def inspection_of(store: Store, record: BatchRecord, now: Micros) -> Inspection:
    """Inspect a batch; in a store that is not `Inspectable`, by going through its documents.

    Args:
        store: Where it is.
        record: The batch's.
        now: The time, where the store does not say it.
    """
    if isinstance(store, Inspectable):
        return await store.inspect(record.batch_id, limit=INSPECTED)
    counts = record.counts
    running: Sequence[ExecutionRecord] = ()
    waiting: Sequence[ExecutionRecord] = ()
    if counts.running:
        found = await store.documents(record.batch_id, statuses=["running"], limit=INSPECTED, inputs=False)
        running = [document.execution for document in found]
    if counts.waiting:
        found = await store.documents(record.batch_id, statuses=["waiting"], limit=INSPECTED, inputs=False)
        waiting = [document.execution for document in found]
    first = await store.documents(record.batch_id, after=RESOLVER_POSITION - 1, limit=1, inputs=False)
    resolver = first[0].execution if first and first[0].execution.position == RESOLVER_POSITION else None
    return Inspection(
        now=now,
        owned=[*running, *([resolver] if resolver is not None and resolver.owner is not None else [])],
        due=sorted(execution.due for execution in waiting if execution.due),
        isolated=[execution for execution in waiting if execution.crashes >= ISOLATED_CRASHES],
        resolver=resolver,
    )


def explanation_of(
    record: BatchRecord, inspection: Inspection, workers: Sequence[WorkerRecord], machine: Stages[S]
) -> Explanation[S]:
    """Explain why a batch is where it is.

    Args:
        record: The batch's.
        inspection: What its rows tell.
        workers: Those that are alive.
        machine: Makes its state.
    """
    reasons = list(_reasons(record, inspection, workers))
    if not reasons:
        # Between two reads something has ended, and what follows was not yet there.
        left = record.counts.unfinished
        reasons = [QueuedDocuments(documents=left, since=from_micros(record.created_at))]
    state = state_of(record, machine)
    match state:
        case Failed(error=why) | Cancelled(reason=why) if why:
            because = f" ({shortened(why)})"
        case _:
            because = ""
    return Explanation(
        batch_id=record.batch_id,
        state=state,
        headline=f"The batch {record.batch_id!r} is in the state {record.state!r}{because}.",
        reasons=reasons,
    )


def _reasons(record: BatchRecord, inspection: Inspection, workers: Sequence[WorkerRecord]) -> Iterator[Reason]:
    """Find the reasons, the most decisive first."""
    if record.ended:
        yield BatchEnded(counts=record.counts)
        return
    batch = BatchInProgress(record, inspection.now, check=False)
    problem = batch.contradiction
    if problem is not None:
        yield DamagedBatch(problem=problem)
        return
    yield from _pauses(batch)
    alive = [worker for worker in workers if not _has_expired(inspection.leases.get(worker.worker_id))]
    notes = WorkerNotes(alive)
    found = serving(record, alive, notes)
    owners = {execution.owner for execution in inspection.owned}
    served = bool(found.take) or any(worker.worker_id in owners for worker in alive)
    if not served:
        yield _no_worker(record, alive, found)
    yield from _dead_workers(inspection)
    yield from _blocked_loops(inspection, alive, found, notes)
    yield from notes.long_calls(record.batch_id)
    yield from _throttled(record, inspection.now, notes)
    if batch.isolation is not None:
        yield from _isolated_documents(inspection, batch.suspects)
    if record.state == "resolving":
        yield _resolver(inspection, notes)
        return
    waiting_due = sum(due <= inspection.now for due in inspection.due)
    isolated_due = sum(
        execution.due is not None and execution.due <= inspection.now for execution in inspection.isolated
    )
    due = record.counts.pending + waiting_due - isolated_due
    slots = max(definition_of(record).config.concurrency - record.counts.running, 0)
    paused = batch.paused or batch.quota_pause is not None
    queued = 0 if paused else min(due, slots)
    waiting = 0 if paused else due - queued
    yield from _running_documents(record, inspection, notes, waiting=waiting)
    if record.counts.waiting > waiting_due:
        later = [moment for moment in inspection.due if moment > inspection.now]
        yield SuspendedDocuments(
            what="retry",
            name="",
            documents=record.counts.waiting - waiting_due,
            next_due=from_micros(later[0]) if later else None,
        )
    if queued and served:
        first = inspection.due[0] if waiting_due else record.created_at
        yield QueuedDocuments(documents=queued, since=from_micros(min(first, inspection.now)))


def _pauses(batch: BatchInProgress) -> Iterator[PausedBatch]:
    for pause in pauses_of(batch):
        yield PausedBatch(reason=pause.reason, since=pause.since, until=pause.until, note=pause.note)


def _no_worker(record: BatchRecord, alive: Sequence[WorkerRecord], found: Serving) -> NoWorker | UnselectedBatch:
    if found.take_others:
        return UnselectedBatch(workflow=record.workflow, version=record.version, workers=found.take_others)
    known = sorted({known for worker in alive for known in worker.workflows})
    return NoWorker(workflow=record.workflow, version=record.version, known=known, too_old=tuple(found.too_old))


def _has_expired(lease: Lease | None) -> bool:
    return lease is not None and lease.left <= 0


def _is_late(lease: Lease | None) -> bool:
    """Whether a lease was not renewed when it should have been: workers do so several times in its length."""
    return lease is not None and lease.left < lease.length / 2


def _dead_workers(inspection: Inspection) -> Iterator[DeadWorker]:
    owned = Counter(execution.owner for execution in inspection.owned)
    for worker, lease in inspection.leases.items():
        if owned[worker] and _is_late(lease):
            until = from_micros(inspection.now + lease.left)
            yield DeadWorker(worker=worker, documents=owned[worker], lease_until=until)


def _blocked_loops(
    inspection: Inspection, alive: Sequence[WorkerRecord], found: Serving, notes: WorkerNotes
) -> Iterator[BlockedLoop]:
    """Find the workers of the batch whose event loops do not turn, or did not until a moment ago."""
    owned = Counter(execution.owner for execution in inspection.owned)
    for worker in alive:
        blocked = notes.blocked.get(worker.worker_id)
        if blocked is None or not (owned[worker.worker_id] or worker.worker_id in found.take):
            continue
        until = blocked.until
        if until is None or inspection.now - until < _RECENT:
            yield BlockedLoop(
                worker=worker.worker_id,
                since=from_micros(blocked.since),
                where=blocked.place,
                documents=owned[worker.worker_id],
                until=None if until is None else from_micros(until),
            )


def _throttled(record: BatchRecord, now: Micros, notes: WorkerNotes) -> Iterator[ThrottledLimiter]:
    """Group the calls that wait for permits by their limiters, which several workers may have under one name."""
    for limiter, on_workers in notes.limited(record.batch_id).items():
        numbers: Counter[str] = Counter()
        for worker, calls in on_workers:
            numbers[worker] += calls.calls
        since = from_micros(min(calls.since for _, calls in on_workers))
        circuit = notes.circuit(limiter, [worker for worker, _ in on_workers])
        # What a worker said may be as old as a third of its lease.
        is_over = circuit.until is None or circuit.until <= now
        yield ThrottledLimiter(
            limiter=limiter,
            waiting=numbers.total(),
            since=since,
            workers=dict(numbers),
            breaker=circuit.state,
            until=None if is_over or circuit.until is None else from_micros(circuit.until),
        )


def _isolated_documents(inspection: Inspection, suspects: int) -> Iterator[IsolatedDocument]:
    running = [each for each in inspection.owned if each.crashes >= ISOLATED_CRASHES]
    due = [each for each in inspection.isolated if each.due is not None and each.due <= inspection.now]
    shown = running or due[:1]
    for execution in shown:
        yield IsolatedDocument(
            document_id=execution.document_id,
            crashes=execution.crashes,
            worker=execution.owner,
            since=from_micros(execution.updated_at if execution.owner is not None else execution.due or inspection.now),
            waiting=max(suspects - len(shown), 0),
        )


def _resolver(inspection: Inspection, notes: WorkerNotes) -> ResolverStatus:
    resolver = inspection.resolver
    if resolver is None:
        return ResolverStatus(attempt=0, waits="worker")
    if resolver.owner is not None:
        runs = notes.activity_of(resolver)
        return ResolverStatus(
            attempt=resolver.attempt,
            waits=None,
            activity=None if runs is None else runs.activity,
            activity_since=None if runs is None else from_micros(runs.since),
        )
    later = resolver.due is not None and resolver.due > inspection.now
    return ResolverStatus(attempt=resolver.attempt, waits="retry" if later else "worker")


def _running_documents(
    record: BatchRecord, inspection: Inspection, notes: WorkerNotes, waiting: int
) -> Iterator[RunningDocuments]:
    running = [execution for execution in inspection.owned if execution.position != RESOLVER_POSITION]
    if not running:
        return
    oldest = min(running, key=lambda execution: execution.updated_at)
    of_oldest = notes.activity_of(oldest)
    activities = Counter(runs.activity for execution in running if (runs := notes.activity_of(execution)) is not None)
    yield RunningDocuments(
        documents=len(running) if len(inspection.owned) < INSPECTED else max(record.counts.running, len(running)),
        oldest_document_id=oldest.document_id,
        oldest_since=from_micros(oldest.updated_at),
        workers=Counter(execution.owner for execution in running if execution.owner is not None),
        waiting=waiting,
        oldest_activity=None if of_oldest is None else of_oldest.activity,
        oldest_activity_since=None if of_oldest is None else from_micros(of_oldest.since),
        activities=dict(activities),
    )
