"""What a write must do: pure functions from what was loaded and what is reported to the rows to be written.

A store loads what these functions are asked about, under its locks, and writes what they answer, in the same
transaction. So no backend decides anything, and every backend decides the same.

`plan_facts` is total: a fact that does not apply is refused with a reason, never with an exception, so that one
bad fact cannot roll back its neighbours.

Which facts apply
-----------------

1. A fact applies if its execution is owned by the reporting worker, in the attempt that the fact names, and the
   batch's run has not ended.
2. What was paid for is kept: a result whose run has ended in the meantime, while no later attempt took over, is
   recorded as a checkpoint and changes nothing else.
3. An execution of an ended run that its worker reports about is freed.
4. Everything else is refused and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias, assert_never

from durable_batches.errors import CrashLoopError
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    Cancel,
    Command,
    Discard,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    Seal,
    StageEntered,
)
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.policies import document_retry_delay, neighbours_allowed
from durable_batches.lifecycle.primitives import make_record
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointWrite,
    ClaimRequest,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    Micros,
    NewDocument,
    Refusal,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId

__all__ = [
    "Candidates",
    "Departure",
    "Loaded",
    "Writes",
    "executions_to_load",
    "new_execution",
    "plan_claims",
    "plan_command",
    "plan_facts",
    "plan_release",
]

SUSPECT_PATIENCE: Micros = 10_000_000
"""A suspect that has waited this long for a worker with few enough neighbours is given way to."""


class Loaded(NamedTuple):
    """What a store loaded, under its locks."""

    now: Micros
    """The store's clock."""
    batches: Mapping[BatchId, BatchRecord]
    executions: Mapping[ExecutionKey, ExecutionRecord]


class Candidates(NamedTuple):
    """A batch that a claim may take from, and its executions that are due, first due first, then in order."""

    batch: BatchRecord
    executions: Sequence[ExecutionRecord]


class Writes(NamedTuple):
    """The rows to be written, all in one transaction."""

    batches: Sequence[BatchRecord] = ()
    executions: Sequence[ExecutionRecord] = ()
    """To be updated: every field but the key and the document's id may have changed."""
    marks: Sequence[ExecutionRecord] = ()
    """To be updated, too, but of these only the mark and `updated_at` have changed: the most frequent write."""
    outcomes: Sequence[tuple[ExecutionKey, bytes]] = ()
    checkpoints: Sequence[CheckpointWrite] = ()
    """To be inserted, unless the execution has this key already: the first record wins."""
    forget: Sequence[tuple[ExecutionKey, str]] = ()
    """Recorded failures to be deleted; a success of the same key stays."""
    events: Sequence[EventRecord] = ()
    refused: Mapping[int, Refusal] = {}
    discard: BatchId | None = None
    """A batch to be deleted with everything that belongs to it."""
    applied: bool = True


def executions_to_load(facts: Iterable[Fact]) -> list[ExecutionKey]:
    """The executions that these facts can change: their own, and where documents end, their batch's resolver."""
    facts = list(facts)
    keys: set[ExecutionKey] = {(fact[0], fact[2]) for fact in facts}
    keys.update((fact[0], RESOLVER_POSITION) for fact in facts if type(fact) in _ENDING)
    return sorted(keys)


_ENDING: Final = frozenset({ExecutionSucceeded, ExecutionFailed})


# ---- facts ---------------------------------------------------------------------------------------------------


def plan_facts(loaded: Loaded, worker: WorkerId, facts: Sequence[Fact]) -> Writes:
    """What the commit of these facts by this worker must write."""
    return _FactsPlan(loaded, worker).run(facts)


class _FactsPlan:
    def __init__(self, loaded: Loaded, worker: WorkerId) -> None:
        self._now = loaded.now
        self._records = loaded.batches
        self._executions = dict(loaded.executions)
        self._worker = worker
        self._batches: dict[BatchId, BatchInProgress] = {}
        self._changed: dict[ExecutionKey, ExecutionRecord] = {}
        self._marks: dict[ExecutionKey, ExecutionRecord] = {}
        self._outcomes: dict[ExecutionKey, bytes] = {}
        self._checkpoints: list[CheckpointWrite] = []
        self._forget: list[tuple[ExecutionKey, str]] = []

    def run(self, facts: Sequence[Fact]) -> Writes:
        refused: dict[int, Refusal] = {}
        executions, worker, batches, checkpoints = self._executions, self._worker, self._batches, self._checkpoints
        for index, fact in enumerate(facts):
            if type(fact) is ActivityCompleted:
                # Most facts are, and most of these only add a checkpoint; what `_take` decides, decided at once.
                batch_id, run, position, attempt, name, payload, mark = fact
                execution = executions.get((batch_id, position))
                batch = batches.get(batch_id)
                if (
                    execution is not None
                    and batch is not None
                    and mark <= execution.mark
                    and execution.owner == worker
                    and execution.attempt == attempt
                    and execution.run == run == batch.run
                    and not batch.ended
                ):
                    checkpoints.append(make_record(CheckpointWrite, (batch_id, position, name, "succeeded", payload)))
                    continue
            refusal = self._take(fact)
            if refusal is not None:
                refused[index] = refusal
        for batch in self._batches.values():
            _wake_resolver(batch, self._executions, self._changed)
        return Writes(
            batches=[batch.closed() for batch in self._batches.values() if batch.events],
            executions=list(self._changed.values()),
            marks=[marked for key, marked in self._marks.items() if key not in self._changed],
            outcomes=list(self._outcomes.items()),
            checkpoints=self._checkpoints,
            forget=self._forget,
            events=[event for batch in self._batches.values() for event in batch.events],
            refused=refused,
        )

    def _take(self, fact: Fact) -> Refusal | None:
        key = (fact.batch_id, fact.position)
        execution = self._executions.get(key)
        if execution is None:
            return "unknown"
        if execution.owner != self._worker or execution.attempt != fact.attempt or execution.run != fact.run:
            return "superseded"
        batch = self._batches.get(fact.batch_id)
        if batch is None:
            record = self._records.get(fact.batch_id)
            if record is None:
                return "unknown"
            batch = self._batches[fact.batch_id] = BatchInProgress(record, self._now)
        if batch.ended or batch.run != fact.run:
            return self._keep_what_was_paid(key, execution, fact)
        match fact:
            case ActivityCompleted():
                self._mark(key, execution, batch, fact.mark)
                self._record(fact, "succeeded")
            case StageEntered():
                self._mark(key, execution, batch, fact.mark)
            case ActivityFailed():
                self._record(fact, "failed")
            case ExecutionSucceeded():
                self._succeed(key, execution, batch, fact)
            case ExecutionFailed():
                self._fail(key, execution, batch, fact)
            case ExecutionReleased():
                self._update(key, _released(execution, batch, self._now, crashed=False))
            case _:
                assert_never(fact)
        return None

    def _keep_what_was_paid(self, key: ExecutionKey, execution: ExecutionRecord, fact: Fact) -> Refusal:
        match fact:
            case ActivityCompleted():
                self._record(fact, "succeeded")
            case ActivityFailed() | StageEntered():
                pass
            case ExecutionSucceeded() | ExecutionFailed() | ExecutionReleased():
                self._update(key, _freed(execution, self._now))
            case _:
                assert_never(fact)
        return "ended"

    def _record(self, fact: ActivityCompleted | ActivityFailed, kind: Literal["succeeded", "failed"]) -> None:
        self._checkpoints.append(CheckpointWrite(fact.batch_id, fact.position, fact.key, kind, fact.payload))

    def _mark(self, key: ExecutionKey, execution: ExecutionRecord, batch: BatchInProgress, mark: int) -> None:
        if execution.position == RESOLVER_POSITION:
            return
        if execution.mark < mark < len(batch.definition.stages):
            batch.mark_document(execution, mark)
            self._marks[key] = self._executions[key] = marked(execution, mark, self._now)

    def _succeed(
        self,
        key: ExecutionKey,
        execution: ExecutionRecord,
        batch: BatchInProgress,
        fact: ExecutionSucceeded,
    ) -> None:
        self._outcomes[key] = fact.outcome
        self._update(key, _ended(execution, "succeeded", self._now))
        if execution.position == RESOLVER_POSITION:
            batch.complete_resolver()
        else:
            batch.complete_document(execution, fact.unused_checkpoints)

    def _fail(
        self, key: ExecutionKey, execution: ExecutionRecord, batch: BatchInProgress, fact: ExecutionFailed
    ) -> None:
        self._outcomes[key] = fact.outcome
        self._forget.extend((key, checkpoint) for checkpoint in fact.forget)
        failures = execution.failures + 1
        due = self._next_attempt(execution, batch, fact, failures)
        if due is None:
            self._update(key, _ended(execution, "failed", self._now)._replace(failures=failures))
        else:
            self._update(
                key,
                execution._replace(
                    status="waiting",
                    failures=failures,
                    owner=None,
                    alone=False,
                    due=due,
                    updated_at=self._now,
                ),
            )
        if execution.position == RESOLVER_POSITION:
            if due is None:
                batch.fail_resolver(fact.error)
            else:
                batch.retry_resolver(fact.error, due)
        elif due is None:
            batch.fail_document(execution, fact.error)
        else:
            batch.retry_document(execution, failures, due, fact.error)

    def _next_attempt(
        self, execution: ExecutionRecord, batch: BatchInProgress, fact: ExecutionFailed, failures: int
    ) -> Micros | None:
        if execution.position == RESOLVER_POSITION:
            delay = fact.retry_in
        else:
            policy = batch.definition.config.failure_policy
            wait = document_retry_delay(policy, failures, retryable=fact.retryable)
            delay = None if wait is None else int(wait.total_seconds() * 1_000_000)
        return None if delay is None else self._now + delay

    def _update(self, key: ExecutionKey, execution: ExecutionRecord) -> None:
        self._executions[key] = self._changed[key] = execution


# ---- claims --------------------------------------------------------------------------------------------------


def plan_claims(
    now: Micros, worker: WorkerId, request: ClaimRequest, candidates: Sequence[Candidates], turn: int
) -> Writes:
    """Which of the candidates this worker owns from now on: `Writes.executions` are its claims, in order.

    `turn` is anything that grows with time, the same for all workers: batches that were served longest ago come
    first in the store's next candidates.
    """
    taken: list[ExecutionRecord] = []
    batches: list[BatchInProgress] = []
    window = request.window
    for candidate in candidates:
        batch = BatchInProgress(candidate.batch, now)
        if batch.wake is not None and batch.wake <= now:
            batch.fail("the batch's deadline has passed")
            batches.append(batch)
            continue
        blocked = False
        for execution in candidate.executions:
            if batch.free == 0 or len(taken) == request.limit:
                break
            allowed = neighbours_allowed(execution.crashes, batch.definition.config.max_crashes, request.capacity)
            held = request.held + len(taken)
            if held + 1 > min(window, allowed):
                waited = now - (execution.due or now)
                blocked = blocked or (execution.crashes > 0 and waited > SUSPECT_PATIENCE)
                continue
            window = min(window, allowed)
            taken.append(_claimed(execution, batch, worker, now, alone=held == 0 and window == 1))
        if batch.events:
            batch.serve(turn)
            batches.append(batch)
        if blocked:
            # A suspect has waited long enough: take no more work, so that this worker runs empty for it.
            break
    return Writes(
        batches=[batch.closed() for batch in batches],
        executions=taken,
        events=[event for batch in batches for event in batch.events],
    )


def _claimed(
    execution: ExecutionRecord, batch: BatchInProgress, worker: WorkerId, now: Micros, *, alone: bool
) -> ExecutionRecord:
    attempt = execution.attempt + 1
    if execution.position == RESOLVER_POSITION:
        batch.start_resolver(attempt)
    else:
        batch.start_document(execution, attempt)
    return execution._replace(status="running", attempt=attempt, alone=alone, owner=worker, due=None, updated_at=now)


# ---- workers that go -------------------------------------------------------------------------------------------

Departure: TypeAlias = Literal["shutdown", "crash"]


def plan_release(loaded: Loaded, gone: Collection[WorkerId], departure: Departure) -> Writes:
    """Free what these workers own, who have left (cleanly) or died (each of their executions is a suspect then).

    `loaded` holds at least their executions and the resolvers of the batches concerned.
    """
    executions = dict(loaded.executions)
    batches: dict[BatchId, BatchInProgress] = {}
    changed: dict[ExecutionKey, ExecutionRecord] = {}
    outcomes: list[tuple[ExecutionKey, bytes]] = []
    for key, execution in sorted(loaded.executions.items()):
        if execution.owner not in gone:
            continue
        batch = batches.get(key[0])
        if batch is None:
            batch = batches[key[0]] = BatchInProgress(loaded.batches[key[0]], loaded.now)
        if batch.ended or batch.run != execution.run:
            changed[key] = _freed(execution, loaded.now)
        elif departure == "crash" and _is_crash_loop(execution, batch):
            failed, outcome = _crash_looped(execution, batch, loaded.now)
            changed[key] = failed
            outcomes.append((key, outcome))
        else:
            changed[key] = _released(execution, batch, loaded.now, crashed=departure == "crash")
    executions.update(changed)
    for batch in batches.values():
        _wake_resolver(batch, executions, changed)
    return Writes(
        batches=[batch.closed() for batch in batches.values() if batch.events],
        executions=list(changed.values()),
        outcomes=outcomes,
        events=[event for batch in batches.values() for event in batch.events],
    )


def _is_crash_loop(execution: ExecutionRecord, batch: BatchInProgress) -> bool:
    return execution.alone and execution.crashes + 1 >= batch.definition.config.max_crashes


def _crash_looped(execution: ExecutionRecord, batch: BatchInProgress, now: Micros) -> tuple[ExecutionRecord, bytes]:
    crashes = execution.crashes + 1
    error = str(CrashLoopError(execution.batch_id, execution.document_id, crashes))
    failure = DocumentFailureRecord(error, CrashLoopError.__name__, None, execution.attempt)
    if execution.position == RESOLVER_POSITION:
        batch.fail_resolver(error)
    else:
        batch.fail_document(execution, error)
    return _ended(execution, "failed", now)._replace(crashes=crashes), failure.encode()


def _released(execution: ExecutionRecord, batch: BatchInProgress, now: Micros, *, crashed: bool) -> ExecutionRecord:
    crashes = execution.crashes + crashed
    if execution.position == RESOLVER_POSITION:
        batch.retry_resolver("its worker died" if crashed else "its worker shut down", now)
    else:
        batch.release_document(execution, "crash" if crashed else "shutdown", crashes)
    return execution._replace(
        status="waiting" if execution.position == RESOLVER_POSITION else "pending",
        crashes=crashes,
        alone=False,
        owner=None,
        # A suspect queues behind everything that is innocent and due.
        due=now if crashes else NOW,
        updated_at=now,
    )


# ---- commands --------------------------------------------------------------------------------------------------


def plan_command(loaded: Loaded, batch_id: BatchId, command: Command) -> Writes:
    """What a command about this (loaded) batch must write; `applied` says whether it did what it says."""
    batch = BatchInProgress(loaded.batches[batch_id], loaded.now)
    changed: dict[ExecutionKey, ExecutionRecord] = {}
    match command:
        case Discard(loader=loader):
            applies = batch.loader == loader
            return Writes(discard=batch_id if applies else None, applied=applies)
        case Seal(loader=loader, total=total):
            if batch.loader is None:
                return Writes(applied=batch.core["sealed_by"] == loader)
            if batch.loader != loader:
                return Writes(applied=False)
            batch.seal(loader, total)
        case Cancel(request_id=request_id, reason=reason):
            if batch.loader is not None:
                # Not there yet for anybody but its loader, who goes on loading it.
                return Writes(applied=False)
            if batch.ended:
                return Writes(applied=batch.core["cancelled_by"] == request_id)
            batch.cancel(request_id, reason)
        case _:
            assert_never(command)
    _wake_resolver(batch, loaded.executions, changed)
    return Writes(batches=[batch.closed()], executions=list(changed.values()), events=batch.events)


def new_execution(batch_id: BatchId, document: NewDocument, now: Micros) -> ExecutionRecord:
    """The execution of a document (or, at `RESOLVER_POSITION`, of the resolver) that is being loaded."""
    resolver = document.position == RESOLVER_POSITION
    return ExecutionRecord(
        batch_id=batch_id,
        position=document.position,
        document_id=document.document_id,
        run=1,
        status="waiting" if resolver else "pending",
        mark=-1,
        attempt=0,
        failures=0,
        crashes=0,
        alone=False,
        owner=None,
        due=None if resolver else NOW,
        updated_at=now,
    )


# ---- what several of them do -------------------------------------------------------------------------------------


def _ended(execution: ExecutionRecord, status: Literal["succeeded", "failed"], now: Micros) -> ExecutionRecord:
    # It was owned until now, and so has no due time that would have to be cleared.
    return execution._replace(status=status, alone=False, owner=None, updated_at=now)


def marked(execution: ExecutionRecord, mark: int, now: Micros) -> ExecutionRecord:
    """The execution in a later stage; spelt out, since this is made for most activities."""
    return ExecutionRecord._make((*execution[:5], mark, *execution[6:12], now))


def _freed(execution: ExecutionRecord, now: Micros) -> ExecutionRecord:
    """Of a run that has ended without it; it was owned until now, too."""
    return execution._replace(status="cancelled", alone=False, owner=None, updated_at=now)


def _wake_resolver(
    batch: BatchInProgress,
    executions: Mapping[ExecutionKey, ExecutionRecord],
    changed: dict[ExecutionKey, ExecutionRecord],
) -> None:
    """Where this write moved the batch to `resolving`, its resolver can be claimed from the same moment."""
    if batch.phase != "due":
        return
    key = (batch.batch_id, RESOLVER_POSITION)
    resolver = executions.get(key)
    if resolver is not None and resolver.owner is None and resolver.due is None:
        changed[key] = resolver._replace(due=NOW, updated_at=batch.now)
