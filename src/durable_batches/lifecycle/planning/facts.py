"""Apply the facts that a worker reports.

Which facts apply
-----------------

1. A fact applies if its execution is owned by the reporting worker, in the attempt that the fact names, and the
   batch's run has not ended.
2. A result that was paid for is kept: where its run has ended in the meantime, while no later attempt took over,
   it is recorded as a checkpoint and changes nothing else.
3. An execution of an ended run that its worker reports about is released.
4. A late result of the execution's run is recorded as a checkpoint and changes nothing else. It is refused while
   another session owns the execution than the one that made the call: that would not see it, and come to its own.
5. What was spent counts with the fact that says so, also after the end of the run; of a late result, only where that
   is recorded now.
6. Everything else is refused and changes nothing.

A batch whose counts contradict each other is treated as one whose run has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final, Literal, TypeAlias, assert_never

from durable_batches.lifecycle import event_data
from durable_batches.lifecycle.amounts import Amount
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    CallReserved,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
    LateResult,
    ProviderAnswered,
    StageEntered,
)
from durable_batches.lifecycle.planning.release import crash_execution, refuse_execution, release_execution
from durable_batches.lifecycle.planning.unit_of_work import Loaded, UnitOfWork, Writes
from durable_batches.lifecycle.policies import document_retry_delay
from durable_batches.lifecycle.primitives import make_record
from durable_batches.lifecycle.quota import Refusal
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    CheckpointWrite,
    ExecutionKey,
    ExecutionRecord,
    Micros,
    WorkerId,
)
from durable_batches.lifecycle.states import ENDED_TAGS

__all__ = ["checkpoints_to_load", "executions_to_load", "plan_facts"]


def executions_to_load(facts: Iterable[Fact]) -> list[ExecutionKey]:
    """List the executions that these facts can change: their own, and where documents end, the batch's resolver."""
    facts = list(facts)
    keys: set[ExecutionKey] = {(fact[0], fact[2]) for fact in facts}
    keys.update((fact[0], RESOLVER_POSITION) for fact in facts if _may_end(fact))
    return sorted(keys)


def checkpoints_to_load(facts: Iterable[Fact]) -> list[tuple[ExecutionKey, str]]:
    """List the checkpoints of which a plan has to know whether they are there: of late results that cost something."""
    return [
        ((fact.batch_id, fact.position), fact.key)
        for fact in facts
        if type(fact) is LateResult and fact.spent is not None
    ]


def _may_end(fact: Fact) -> bool:
    """Return whether its document may end with this fact; a release for a quota or a crash may be its last one."""
    return type(fact) in _ENDING or (isinstance(fact, ExecutionReleased) and fact.reason in ("quota", "crash"))


_ENDING: Final = frozenset({ExecutionSucceeded, ExecutionFailed})


def plan_facts(loaded: Loaded, worker: WorkerId, facts: Sequence[Fact], *, level: int = 1) -> Writes:
    """Decide what the commit of these facts by this worker writes; `level` is that of the store."""
    unit = UnitOfWork(loaded.now, loaded.batches, loaded.executions, level)
    # Local names, and no call for the most frequent fact, because this loop runs once for each activity.
    executions, batches, checkpoints, refused = unit.executions, unit.batches, unit.checkpoints, unit.refused
    for index, fact in enumerate(facts):
        batch_id, run, position, attempt = fact[:4]
        execution = executions.get((batch_id, position))
        if execution is None:
            refused[index] = "unknown"
            continue
        if execution.owner != worker or execution.attempt != attempt or execution.run != run:
            if type(fact) is LateResult and batch_id in batches and _is_wanted(execution, fact):
                _keep_late_result(loaded, unit, fact)
            else:
                refused[index] = "superseded"
            continue
        batch = batches.get(batch_id)
        if batch is None:
            refused[index] = "unknown"
        elif batch.run != run or batch.state in ENDED_TAGS:
            refused[index] = "ended"
            _apply_after_end(loaded, unit, execution, fact)
        elif type(fact) is ActivityCompleted:
            if fact.mark > execution.mark and unit.contradiction(batch_id) is None:
                _enter_stage(unit, execution, fact.mark)
            if execution.crashes:
                unit.clear_suspicion(executions[batch_id, position])
            checkpoints.append(
                make_record(
                    CheckpointWrite,
                    (batch_id, position, fact.key, "succeeded", fact.payload, fact.stage, fact.spent),
                )
            )
            if fact.spent is not None:
                unit.spend(batch_id, position, fact.spent, key=fact.key)
        elif type(fact) is CallReserved and unit.contradiction(batch_id) is None:
            if not unit.batch(batch_id).reserve(
                position, fact.key, Amount(tokens=fact.tokens, cost=Decimal(fact.cost))
            ):
                refused[index] = "budget"
        elif (contradiction := unit.contradiction(batch_id)) is None:
            _apply(loaded, unit, execution, fact)
        else:
            refused[index] = "ended"
            unit.set_aside(batch_id, contradiction)
            _apply_after_end(loaded, unit, execution, fact)
    return unit.writes()


def _is_wanted(execution: ExecutionRecord, fact: LateResult) -> bool:
    """Return whether no other session runs the execution, which would come to a result of its own."""
    return execution.owner in (None, fact.session) and execution.run == fact.run


def _keep_late_result(loaded: Loaded, unit: UnitOfWork, fact: LateResult) -> None:
    """Record a late result, and what it had cost, unless it was recorded before: it may be reported twice."""
    unit.checkpoints.append(_checkpoint(fact, "succeeded"))
    if fact.spent is not None and ((fact.batch_id, fact.position), fact.key) not in loaded.recorded:
        unit.spend(fact.batch_id, fact.position, fact.spent)


_OtherFact: TypeAlias = (
    StageEntered
    | ActivityFailed
    | ExecutionSucceeded
    | ExecutionFailed
    | ExecutionReleased
    | LateResult
    | ProviderAnswered
    | CallReserved
)


def _apply(loaded: Loaded, unit: UnitOfWork, execution: ExecutionRecord, fact: _OtherFact) -> None:
    match fact:
        case StageEntered():
            _enter_stage(unit, execution, fact.mark)
        case ActivityFailed():
            unit.checkpoints.append(_checkpoint(fact, "failed"))
            if execution.crashes:
                unit.clear_suspicion(execution)
        case ExecutionSucceeded():
            _succeed(unit, execution, fact)
        case ExecutionFailed():
            _fail(unit, execution, fact)
        case ExecutionReleased():
            if fact.reason == "quota":
                refusal = Refusal(event_data.storable(fact.activity), event_data.storable(fact.note), fact.retry_after)
                refuse_execution(unit, execution, refusal)
            elif fact.reason == "crash":
                crash_execution(unit, execution, event_data.storable(fact.activity))
            else:
                release_execution(unit, execution, fact.reason)
        case ProviderAnswered():
            unit.batch(execution.batch_id).answered(execution)
        case CallReserved():
            pass  # planned before: it may be refused
        case LateResult():
            # Of the very attempt that goes on; so it comes in time.
            _keep_late_result(loaded, unit, fact)
        case _:
            assert_never(fact)
    if not isinstance(fact, LateResult):
        # Last: it may end the batch, or pause it, and the end of its last document comes before that.
        _count_spends(unit, fact)


def _apply_after_end(loaded: Loaded, unit: UnitOfWork, execution: ExecutionRecord, fact: Fact) -> None:
    """Keep a result that was paid for, and what was spent; release an execution that its worker is done with."""
    if not isinstance(fact, LateResult):
        _count_spends(unit, fact)
    match fact:
        case ActivityCompleted():
            unit.checkpoints.append(_checkpoint(fact, "succeeded"))
        case LateResult():
            _keep_late_result(loaded, unit, fact)
        case ActivityFailed() | StageEntered() | ProviderAnswered() | CallReserved():
            pass
        case ExecutionSucceeded() | ExecutionFailed() | ExecutionReleased():
            unit.release_as_cancelled(execution)
        case _:
            assert_never(fact)


def _count_spends(unit: UnitOfWork, fact: Fact) -> None:
    """Count what a fact says was spent, and what recorded results had cost."""
    key = ""
    match fact:
        case ActivityCompleted() | ActivityFailed():
            spent, replayed, key = fact.spent, None, fact.key
        case ExecutionSucceeded() | ExecutionFailed() | ExecutionReleased():
            spent, replayed = fact.spent, fact.replayed
        case _:
            return
    if spent is not None:
        unit.spend(fact.batch_id, fact.position, spent, key=key)
    if replayed is not None:
        unit.spend(fact.batch_id, fact.position, replayed, replayed=True)


def _checkpoint(
    fact: ActivityCompleted | ActivityFailed | LateResult, kind: Literal["succeeded", "failed"]
) -> CheckpointWrite:
    return CheckpointWrite(fact.batch_id, fact.position, fact.key, kind, fact.payload, fact.stage, fact.spent)


def _enter_stage(unit: UnitOfWork, execution: ExecutionRecord, stage_index: int) -> None:
    """Move a document forward; a stage that it has entered, or that there is none of, changes nothing."""
    if execution.position == RESOLVER_POSITION:
        return
    batch = unit.batch(execution.batch_id)
    if execution.mark < stage_index < len(batch.definition.stages):
        batch.enter_stage(execution, stage_index)
        unit.enter_stage(execution, stage_index)


def _succeed(unit: UnitOfWork, execution: ExecutionRecord, fact: ExecutionSucceeded) -> None:
    unit.finish(execution, "succeeded", fact.outcome)
    batch = unit.batch(execution.batch_id)
    if execution.position == RESOLVER_POSITION:
        batch.complete_resolver()
    else:
        batch.complete_document(execution, fact.unused_checkpoints)


def _fail(unit: UnitOfWork, execution: ExecutionRecord, fact: ExecutionFailed) -> None:
    unit.delete_failures(execution, fact.forget)
    batch = unit.batch(execution.batch_id)
    resolver = execution.position == RESOLVER_POSITION
    delay = fact.retry_in if resolver else _document_retry_delay(batch, execution, fact)
    if delay is None:
        execution = execution._replace(failures=execution.failures + 1)
        if resolver:
            unit.finish(execution, "failed", fact.outcome)
            batch.fail_resolver(fact.error)
        else:
            unit.fail_document(
                execution, fact.outcome, error=fact.error, error_type=fact.error_type, activity=fact.activity
            )
    else:
        due_at = unit.now + delay
        unit.retry(execution, due_at, fact.outcome)
        if resolver:
            batch.retry_resolver(execution, fact.error, due_at)
        else:
            batch.retry_document(execution, execution.failures + 1, due_at, fact.error)


def _document_retry_delay(batch: BatchInProgress, execution: ExecutionRecord, fact: ExecutionFailed) -> Micros | None:
    policy = batch.definition.config.failure_policy
    delay = document_retry_delay(policy, execution.failures + 1, retryable=fact.retryable)
    return None if delay is None else int(delay.total_seconds() * 1_000_000)
