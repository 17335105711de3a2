"""A store in memory, for tests and for work that may be lost. The reference: it makes every promise but durability."""

from __future__ import annotations

import asyncio
import heapq
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeVar

from durable_batches.clock import Clock, SystemClock
from durable_batches.errors import (
    BatchNotFoundError,
    DuplicateDocumentError,
    FactRejectedError,
    WorkerFencedError,
)
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.facts import Fact
from durable_batches.lifecycle.failure_groups import added
from durable_batches.lifecycle.planning import (
    ISOLATED_CRASHES,
    REQUESTS_ARE_KEPT,
    Candidates,
    KnownWorker,
    Loaded,
    Writes,
    checkpoints_to_load,
    claim_order,
    executions_to_load,
    gone_with_machine,
    has_to_know_next_due,
    needs_of_command,
    new_execution,
    plan_claims,
    plan_command,
    plan_facts,
    plan_release,
    plan_return,
)
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    ExecutionStatus,
    FailureRecord,
    Micros,
    NewDocument,
    RequestRecord,
    SharedLimit,
    SharedSlot,
    SharedWrites,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import check_clock
from durable_batches.stores.fair_share import claimable_slots, fair_shares, overdue, turn_of
from durable_batches.stores.protocol import LEVEL, BatchQuery, Capabilities, CountedFailures, Expired, Inspection, Lease
from durable_batches.tasks import wake

__all__ = ["MemoryStore"]

T = TypeVar("T")


@dataclass
class _Batch:
    record: BatchRecord
    order: int
    executions: dict[int, ExecutionRecord] = field(default_factory=dict[int, ExecutionRecord])
    inputs: dict[int, bytes] = field(default_factory=dict[int, bytes])
    outcomes: dict[int, bytes] = field(default_factory=dict[int, bytes])
    checkpoints: dict[int, dict[str, CheckpointRecord]] = field(default_factory=dict[int, dict[str, CheckpointRecord]])
    events: list[EventRecord] = field(default_factory=list[EventRecord])
    document_ids: set[str] = field(default_factory=set[str])
    requests: dict[str, RequestRecord] = field(default_factory=dict[str, RequestRecord])
    failures: dict[tuple[int, str], FailureRecord] = field(default_factory=dict[tuple[int, str], FailureRecord])
    """By run and fingerprint."""
    due: Sequence[list[tuple[Micros, int]]] = field(default_factory=lambda: ([], [], []))
    """For each range of `claim_order`, a heap of the due times of its executions, with their positions. An entry that
    its execution no longer has is passed over."""


@dataclass
class _Limit:
    data: bytes
    slots: dict[WorkerId, SharedSlot] = field(default_factory=dict[WorkerId, SharedSlot])


@dataclass
class _Worker:
    record: WorkerRecord
    lease: Micros
    lease_until: float
    alive: bool = True
    commits: int = 0
    last: Committed = field(default_factory=Committed)


class MemoryStore:
    """Store batches in the memory of this process, which end with it. For tests, and for work that may be lost.

    Args:
        clock: The source of time.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        check_clock(clock)
        self._clock: Final[Clock] = SystemClock() if clock is None else clock
        self._batches: dict[BatchId, _Batch] = {}
        self._workers: dict[WorkerId, _Worker] = {}
        self._limits: dict[str, _Limit] = {}
        self._created = 0
        self._lock = threading.RLock()
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def capabilities(self) -> Capabilities:
        """Declare: one process, nothing durable."""
        return Capabilities(several_processes=False, durable=False, pushes=True, level=LEVEL)

    async def open(self) -> None:
        """Open the store; there is no connection."""

    async def attach(self) -> None:
        """See `Attachable.attach`; there is always something."""

    async def close(self) -> None:
        """Keep the contents: the same object can be opened again, like a database file."""

    # ---- workers -------------------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """See `Store.register`."""
        with self._lock:
            if worker.worker_id in self._workers:
                raise FactRejectedError(f"a worker {worker.worker_id!r} was registered before")
            self._workers[worker.worker_id] = _Worker(worker, lease, self._lease_end(lease))
            if worker.before is not None:
                self._apply(plan_return(self._load(self._taken_from(worker.before)), worker.before, level=LEVEL))

    def _taken_from(self, session: WorkerId) -> list[ExecutionKey]:
        return [
            (batch_id, position)
            for batch_id, batch in self._batches.items()
            for position, execution in batch.executions.items()
            if execution.taken_from == session
        ]

    def heart(self, worker: WorkerId) -> _LeaseRenewer:
        """See `Store.heart`."""
        return _LeaseRenewer(self, worker)

    def beat(self, worker: WorkerId) -> bool:
        """Renew a worker's lease; False: it was expired."""
        with self._lock:
            row = self._workers.get(worker)
            if row is None or not row.alive:
                return False
            row.lease_until = self._lease_end(row.lease)
            return True

    def tell(self, worker: WorkerId, note: str, workflows: Collection[tuple[str, str]]) -> bool:
        """Renew a worker's lease and write what it tells; False: it was expired."""
        with self._lock:
            alive = self.beat(worker)
            if alive:
                row = self._workers[worker]
                row.record = row.record._replace(note=note, workflows=frozenset(workflows))
            return alive

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `Store.workers`."""
        with self._lock:
            return [row.record for row in self._workers.values() if row.alive]

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """See `Store.expire`."""
        with self._lock:
            boot = self._clock.boot()
            gone = [
                worker_id
                for worker_id, row in self._workers.items()
                if row.alive and (row.lease_until <= boot or worker_id in dead)
            ]
            writes = self._release(gone, crashed=True)
            return Expired(workers=gone, events=writes.events)

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`."""
        with self._lock:
            return self._release([worker], crashed=False).events

    def _release(self, gone: Collection[WorkerId], *, crashed: bool) -> Writes:
        blameless = gone_with_machine(gone, self._known_workers()) if crashed and gone else ()
        for worker_id in gone:
            row = self._workers.get(worker_id)
            if row is not None:
                row.alive = False
            for limit in self._limits.values():
                limit.slots.pop(worker_id, None)
        owned = [
            (batch_id, position)
            for batch_id, batch in self._batches.items()
            for position, execution in batch.executions.items()
            if execution.owner in gone
        ]
        loaded = self._load({*owned, *((key[0], RESOLVER_POSITION) for key in owned)})
        writes = plan_release(loaded, gone, "crash" if crashed else "shutdown", level=LEVEL, blameless=blameless)
        self._apply(writes)
        return writes

    def _known_workers(self) -> list[KnownWorker]:
        boot = self._clock.boot()
        return [
            KnownWorker(row.record, round((row.lease_until - boot) * 1_000_000), row.lease)
            for row in self._workers.values()
            if row.alive
        ]

    async def take(self, name: str, worker: WorkerId, plan: Callable[[SharedLimit], SharedWrites[T]]) -> T:
        """See `SharedLimits.take`."""
        with self._lock:
            row = self._workers.get(worker)
            if row is None or not row.alive:
                raise WorkerFencedError(worker)
            limit = self._limits.get(name)
            now = int(self._clock.boot() * 1_000_000)
            slots = {} if limit is None else dict(limit.slots)
            writes = plan(SharedLimit(now, None if limit is None else limit.data, slots))
            limit = self._limits.setdefault(name, _Limit(b""))
            limit.data = writes.data
            limit.slots[worker] = writes.slot
            return writes.answer

    # ---- loading ---------------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""
        with self._lock:
            existing = self._batches.get(batch.batch_id)
            if existing is not None:
                return existing.record
            self._created += 1
            self._batches[batch.batch_id] = _Batch(batch, self._created)
            return None

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""
        with self._lock:
            batch = self._batches.get(batch_id)
            if batch is None or batch.record.loader != loader:
                raise BatchNotFoundError(batch_id)
            fresh = [
                document
                for document in documents
                if (known := batch.executions.get(document.position)) is None
                or known.document_id != document.document_id
            ]
            for document_id, count in Counter(document.document_id for document in fresh).items():
                if count > 1 or document_id in batch.document_ids:
                    raise DuplicateDocumentError(batch_id, document_id)
            if any(document.position in batch.executions for document in fresh):
                raise FactRejectedError(f"a position in batch {batch_id!r} has another document already")
            now = self._clock.now()
            for document in fresh:
                execution = new_execution(batch_id, document, now)
                batch.inputs[document.position] = document.input
                batch.document_ids.add(document.document_id)
                self._put(batch, execution)

    # ---- the write paths -------------------------------------------------------------------------------------

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        """See `Store.commit`."""
        with self._lock:
            row = self._workers.get(worker)
            if row is None or not row.alive:
                raise WorkerFencedError(worker)
            if row.commits == number:
                return row.last
            if row.commits != number - 1:
                raise WorkerFencedError(worker)
            row.commits = number
            row.lease_until = self._lease_end(row.lease)
            loaded = self._load(executions_to_load(facts))
            late = checkpoints_to_load(facts)
            if late:
                loaded = loaded._replace(recorded=[each for each in late if self._is_recorded(*each)])
            writes = plan_facts(loaded, worker, facts, level=LEVEL)
            self._apply(writes)
            committed = Committed(events=writes.events, refused=writes.refused, set_aside=writes.set_aside)
            if claim is not None:
                committed = self._claim(worker, number, claim, committed)
            row.last = committed
            return committed

    def _claim(self, worker: WorkerId, number: int, request: ClaimRequest, committed: Committed) -> Committed:
        now = self._clock.now()
        writes = plan_claims(now, worker, request, self._candidates(request, now), now, level=LEVEL)
        self._apply(writes)
        claims = [self._claimed(execution, request) for execution in writes.executions]
        return committed._replace(
            events=[*committed.events, *writes.events],
            claims=claims,
            retry_in=self._next_due(request, now),
            set_aside={**committed.set_aside, **writes.set_aside},
        )

    def _candidates(self, request: ClaimRequest, now: Micros) -> list[Candidates]:
        open_batches = [
            batch
            for batch in self._batches.values()
            if request.takes_from(batch.record) and (overdue(batch.record, now) or self._has_work(batch, now))
        ]
        open_batches.sort(key=lambda batch: (not overdue(batch.record, now), *turn_of(batch.record), batch.order))
        candidates: dict[BatchId, Candidates] = {}
        for batch, share in fair_shares(open_batches, request.limit, lambda batch: claimable_slots(batch.record, now)):
            executions = self._first_due(batch, share.size, now)
            share.used(min(len(executions), share.size))
            next_due = self._next_due_beside(batch, executions)
            candidates[batch.record.batch_id] = Candidates(batch.record, executions, next_due, share.size)
        return list(candidates.values())

    def _has_work(self, batch: _Batch, now: Micros) -> bool:
        return claimable_slots(batch.record, now) > 0 and bool(self._first_due(batch, 1, now))

    def _first_due(self, batch: _Batch, limit: int, now: Micros) -> list[ExecutionRecord]:
        """Find the first `limit` executions of each range that are due, in the order in which they are claimed."""
        return [execution for index in range(len(batch.due)) for execution in _first(batch, index, limit, now)]

    @staticmethod
    def _next_due_beside(batch: _Batch, executions: Sequence[ExecutionRecord]) -> Micros | None:
        """Find when the first of the batch's other executions is due; None: none will be."""
        if not has_to_know_next_due(batch.record, executions):
            return NOW
        mine = {execution.position for execution in executions}
        others = (
            execution.due or NOW
            for index in range(len(batch.due))
            for execution in _first(batch, index, len(mine) + 1)
            if execution.position not in mine
        )
        return min(others, default=None)

    def _claimed(self, execution: ExecutionRecord, request: ClaimRequest) -> Claim:
        batch = self._batches[execution.batch_id]
        recorded = batch.checkpoints.get(execution.position, {})
        return Claim(
            batch=batch.record,
            execution=execution,
            input=batch.inputs[execution.position],
            checkpoints=[recorded[key] for key in sorted(recorded)[: request.checkpoints]],
            more_checkpoints=len(recorded) > request.checkpoints,
            signals=(),
        )

    def _next_due(self, request: ClaimRequest, now: Micros) -> Micros | None:
        moments: list[Micros] = []
        for batch in self._batches.values():
            record = batch.record
            if not request.takes_from(record):
                continue
            if record.wake is not None:
                moments.append(record.wake)
            if record.free > 0:
                moments += [due for heap in batch.due for due, at in heap if batch.executions[at].due == due > now]
            elif record.next_due is not None and record.next_due > now:
                moments.append(record.next_due)
        return max(min(moments) - now, 0) if moments else None

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`."""
        with self._lock:
            if batch_id not in self._batches:
                raise BatchNotFoundError(batch_id)
            needs = needs_of_command(command)
            loaded = self._load([(batch_id, RESOLVER_POSITION)])
            loaded = loaded._replace(requests=self._answers(batch_id, needs.requests, loaded.now))
            writes = plan_command(loaded, batch_id, command, level=LEVEL)
            self._apply(writes)
            return Committed(events=writes.events, applied=writes.applied)

    def _answers(self, batch_id: BatchId, request_ids: Iterable[str], now: Micros) -> dict[str, str]:
        requests = self._batches[batch_id].requests
        for request_id in [key for key, request in requests.items() if request.at < now - REQUESTS_ARE_KEPT]:
            del requests[request_id]
        return {key: requests[key].answer for key in request_ids if key in requests}

    def _load(self, keys: Collection[ExecutionKey]) -> Loaded:
        batch_ids = {key[0] for key in keys} & self._batches.keys()
        return Loaded(
            now=self._clock.now(),
            batches={batch_id: self._batches[batch_id].record for batch_id in batch_ids},
            executions={
                key: execution
                for key in keys
                if key[0] in batch_ids and (execution := self._batches[key[0]].executions.get(key[1])) is not None
            },
        )

    def _is_recorded(self, execution: ExecutionKey, key: str) -> bool:
        batch = self._batches.get(execution[0])
        return batch is not None and key in batch.checkpoints.get(execution[1], {})

    def _apply(self, writes: Writes) -> None:
        for record in writes.batches:
            self._batches[record.batch_id].record = record
        for execution in writes.executions:
            self._put(self._batches[execution.batch_id], execution)
        for execution in writes.marks:
            self._put(self._batches[execution.batch_id], execution)
        for key, outcome in writes.outcomes:
            self._batches[key[0]].outcomes[key[1]] = outcome
        for write in writes.checkpoints:
            recorded = self._batches[write.batch_id].checkpoints.setdefault(write.position, {})
            recorded.setdefault(write.key, CheckpointRecord(*write[2:]))
        for key, checkpoint in writes.forget:
            recorded = self._batches[key[0]].checkpoints.get(key[1], {})
            if checkpoint in recorded and recorded[checkpoint].kind == "failed":
                del recorded[checkpoint]
        for failure in writes.failures:
            counted = self._batches[failure.batch_id].failures
            group = (failure.run, failure.fingerprint)
            counted[group] = added(counted[group], failure) if group in counted else failure
        for event in writes.events:
            self._batches[event.batch_id].events.append(event)
        for request in writes.requests:
            self._batches[request.batch_id].requests[request.request_id] = request
        if writes.discard is not None:
            self._batches.pop(writes.discard, None)
        self._notify()

    @staticmethod
    def _put(batch: _Batch, execution: ExecutionRecord) -> None:
        before = batch.executions.get(execution.position)
        batch.executions[execution.position] = execution
        if execution.due is None:
            return
        range_index = claim_order(execution)[0]
        if before is None or before.due != execution.due or claim_order(before)[0] != range_index:
            heapq.heappush(batch.due[range_index], (execution.due, execution.position))

    # ---- reading ---------------------------------------------------------------------------------------------

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """See `Store.batch`."""
        with self._lock:
            batch = self._batches.get(batch_id)
            return None if batch is None else batch.record

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """See `Store.batches`."""
        with self._lock:
            newest: Iterable[_Batch] = reversed(self._batches.values())  # they are inserted as they are created
            if after is not None:
                # After one that is gone by now there is nothing, rather than everything again.
                bound = self._batches[after].order if after in self._batches else 0
                newest = (batch for batch in newest if batch.order < bound)
            return list(islice((batch.record for batch in newest if query.matches(batch.record)), limit))

    async def abandoned(self, *, created_before: Micros, limit: int) -> Sequence[BatchRecord]:
        """See `FindsAbandoned.abandoned`."""
        with self._lock:
            workers = [row.record for row in self._workers.values() if row.alive]
            loaders = {worker.worker_id for worker in workers} | {worker.before for worker in workers}
            records = (batch.record for batch in self._batches.values())
            found = (
                record
                for record in records
                if record.loader is not None and record.loader not in loaders and record.created_at < created_before
            )
            return list(islice(found, limit))

    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = RESOLVER_POSITION,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        """See `Store.documents`."""
        with self._lock:
            batch = self._batches.get(batch_id)
            if batch is None:
                return []
            # Positions count from 0 without a gap, so a page begins where the last one ended.
            found = (
                DocumentRecord(execution, batch.inputs[position] if inputs else b"", batch.outcomes.get(position))
                for position in range(after + 1, len(batch.executions))
                if (execution := batch.executions.get(position)) is not None
                and (not statuses or execution.status in statuses)
            )
            return list(islice(found, limit))

    async def failed_documents(
        self, batch_id: BatchId, fingerprint: str, *, after: int = RESOLVER_POSITION, limit: int, inputs: bool = True
    ) -> Sequence[DocumentRecord]:
        """See `FindsFailures.failed_documents`."""
        failed = await self.documents(batch_id, statuses=["failed"], after=after, limit=sys.maxsize, inputs=inputs)
        return [document for document in failed if document.execution.fingerprint == fingerprint][:limit]

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """See `Store.checkpoints`."""
        with self._lock:
            batch = self._batches.get(batch_id)
            recorded = {} if batch is None else batch.checkpoints.get(position, {})
            return [recorded[key] for key in sorted(recorded) if key > after][:limit]

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """See `Store.count_checkpoints`."""
        with self._lock:
            batch = self._batches.get(batch_id)
            return 0 if batch is None else sum(len(recorded) for recorded in batch.checkpoints.values())

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `Store.events`."""
        with self._lock:
            batch = self._batches.get(batch_id)
            return [] if batch is None else batch.events[after : after + limit]

    async def failures(self, batch_id: BatchId) -> CountedFailures:
        """See `CountsFailures.failures`."""
        with self._lock:
            batch = self._batches.get(batch_id)
            if batch is None:
                return CountedFailures(0)
            groups = [failure for (run, _), failure in sorted(batch.failures.items()) if run == batch.record.run]
            return CountedFailures(batch.record.counts.failed, groups)

    async def inspect(self, batch_id: BatchId, *, limit: int) -> Inspection:
        """See `Inspectable.inspect`."""
        with self._lock:
            now, boot = self._clock.now(), self._clock.boot()
            batch = self._batches.get(batch_id)
            executions = [] if batch is None else [batch.executions[position] for position in sorted(batch.executions)]
            claimable = [execution for execution in executions if execution.due is not None]
            waiting = [each for each in claimable if each.status == "waiting" and each.position != RESOLVER_POSITION]
            isolated = [each for each in claimable if each.crashes >= ISOLATED_CRASHES and each.due]
            return Inspection(
                now=now,
                owned=[execution for execution in executions if execution.owner is not None][:limit],
                due=sorted(each.due for each in waiting if each.due)[:limit],
                isolated=sorted(isolated, key=claim_order)[:limit],
                resolver=None if batch is None else batch.executions.get(RESOLVER_POSITION),
                leases={
                    worker_id: Lease(round((row.lease_until - boot) * 1_000_000), row.lease)
                    for worker_id, row in self._workers.items()
                    if row.alive
                },
            )

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """See `Store.wait`."""
        await self._sleep_until(
            lambda: self._has_moved(seen) or self._has_claim(ClaimRequest.of_workflows(work)), timeout
        )

    async def wait_for_claim(self, request: ClaimRequest, *, timeout: Micros) -> None:
        """See `WaitsForClaims.wait_for_claim`."""
        await self._sleep_until(lambda: self._has_claim(request), timeout)

    async def _sleep_until(self, happened: Callable[[], bool], timeout: Micros) -> None:
        """Sleep until it has happened, which is looked at after each change, or the time is up."""
        ended = False

        def time_is_up() -> None:
            nonlocal ended
            ended = True
            self._notify()

        timer = self._clock.call_later(timeout / 1_000_000, time_is_up, housekeeping=True)
        try:
            while not ended and not happened():
                changed = asyncio.get_running_loop().create_future()
                self._waiters.add(changed)
                try:
                    await changed
                finally:
                    self._waiters.discard(changed)
        finally:
            timer.cancel()

    def _has_moved(self, seen: Mapping[BatchId, int]) -> bool:
        return any(
            batch.record.seq > seq
            for batch_id, seq in seen.items()
            if (batch := self._batches.get(batch_id)) is not None
        )

    def _has_claim(self, request: ClaimRequest) -> bool:
        now = self._clock.now()
        return any(request.takes_from(batch.record) and self._has_work(batch, now) for batch in self._batches.values())

    def _notify(self) -> None:
        for waiter in list(self._waiters):
            wake(waiter)

    def _lease_end(self, lease: Micros) -> float:
        return self._clock.boot() + lease / 1_000_000


def _first(batch: _Batch, index: int, limit: int, until: Micros | None = None) -> list[ExecutionRecord]:
    """Find the first `limit` executions of a range that are due by then; None: at any time.

    The heap is left as it was, less its stale entries.
    """
    heap = batch.due[index]
    found: list[ExecutionRecord] = []
    entries: list[tuple[Micros, int]] = []
    while heap and (until is None or heap[0][0] <= until) and len(found) < limit:
        due, position = heapq.heappop(heap)
        execution = batch.executions[position]
        is_there = execution.due == due and claim_order(execution)[0] == index
        if is_there and (due, position) not in entries[-1:]:
            entries.append((due, position))
            found.append(execution)
    for entry in entries:
        heapq.heappush(heap, entry)
    return found


class _LeaseRenewer:
    def __init__(self, store: MemoryStore, worker: WorkerId) -> None:
        self._store = store
        self._worker = worker

    def beat(self) -> bool:
        return self._store.beat(self._worker)

    def tell(self, note: str, workflows: Collection[tuple[str, str]]) -> bool:
        return self._store.tell(self._worker, note, workflows)

    def close(self) -> None:
        pass
