"""Release the executions of workers that shut down or whose lease expired; take crashes back that were none.

Which crashes count
-------------------

1. An execution that a worker owned when its process was found dead, or its lease ran out, counts a crash. It names the
   worker's session (`taken_from`), because a lease that ran out is no proof: the process may have been frozen, cut off
   or locked out.
2. A process that is seen again names the session that it had before, and these crashes are taken back.
3. Whatever an execution records clears its crashes, and so does the end of an attempt, whether it failed or not.
4. A clean release counts nothing, and neither does what waits: it has no owner.
5. A call that ended the process of its executor, with no other call beside it, counts a crash though its worker lives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final, Literal, TypeAlias

from durable_batches.errors import CrashLoopError
from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.events import ReleaseReason
from durable_batches.lifecycle.failures import DocumentFailureRecord
from durable_batches.lifecycle.isolation import ISOLATED_CRASHES, is_crash_loop
from durable_batches.lifecycle.planning.unit_of_work import Loaded, UnitOfWork, Writes
from durable_batches.lifecycle.quota import Refusal
from durable_batches.lifecycle.records import NOW, RESOLVER_POSITION, ExecutionRecord, Micros, WorkerId

__all__ = ["Departure", "crash_execution", "plan_release", "plan_return", "refuse_execution", "release_execution"]

Departure: TypeAlias = Literal["shutdown", "crash"]
"""How a worker went: by a clean shutdown, or its lease expired."""

_QUOTA_ERROR: Final = "QuotaExhausted"


def plan_release(
    loaded: Loaded,
    gone: Collection[WorkerId],
    departure: Departure,
    *,
    level: int = 1,
    in_company: Collection[WorkerId] = (),
    blameless: Collection[WorkerId] = (),
) -> Writes:
    """Release the executions of these workers; after a crash, each of them is a possible poison document.

    Args:
        loaded: At least their executions, and the resolvers of the batches concerned.
        gone: The workers.
        departure: How they went.
        level: That of the store.
        in_company: Those of which `loaded` does not hold all that they owned when they went.
        blameless: Those that went with their machine (`gone_with_machine`): no crash is counted.
    """
    unit = UnitOfWork(loaded.now, loaded.batches, loaded.executions, level)
    owned = Counter(execution.owner for execution in loaded.executions.values() if execution.owner in gone)
    for key, execution in sorted(loaded.executions.items()):
        if execution.owner not in gone:
            continue
        if unit.contradiction(key[0]) is not None:
            # What it held cannot be returned to such a batch, but the worker's other executions can to theirs.
            unit.release_as_cancelled(execution)
            continue
        batch = unit.batch(key[0])
        alone = owned[execution.owner] == 1 and execution.owner not in in_company
        if batch.ended or batch.run != execution.run:
            unit.release_as_cancelled(execution)
            continue
        counts = departure == "crash" and execution.owner not in blameless
        if counts and _ends_crash_loop(execution, batch, alone=alone):
            _fail_crash_loop(unit, execution)
        else:
            release_execution(unit, execution, departure, crashed=counts)
    return unit.writes()


def crash_execution(unit: UnitOfWork, execution: ExecutionRecord, activity: str) -> None:
    """Release an execution of which a call ended the process of its executor, with no other call beside it.

    Its worker lives. So it is a crash of this document beyond doubt.
    """
    batch = unit.batch(execution.batch_id)
    if _ends_crash_loop(execution, batch, alone=True):
        _fail_crash_loop(unit, execution, activity or None)
    else:
        release_execution(unit, execution, "crash", crashed=True, worker_lives=True)


def refuse_execution(unit: UnitOfWork, execution: ExecutionRecord, refusal: Refusal) -> None:
    """Release an owned execution of which a provider refused a call for its account, and pause its batch."""
    batch = unit.batch(execution.batch_id)
    if batch.is_refused_for_itself(execution):
        failure = DocumentFailureRecord(refusal.note, _QUOTA_ERROR, refusal.activity or None, execution.attempt)
        unit.fail_document(
            execution, failure.encode(), error=failure.error, error_type=failure.error_type, activity=failure.activity
        )
        return
    looked = batch.is_look(execution)
    release_execution(unit, execution, "paused", due=unit.now)
    batch.pause_for_quota(execution, refusal, looked=looked)


def release_execution(
    unit: UnitOfWork,
    execution: ExecutionRecord,
    reason: ReleaseReason,
    *,
    crashed: bool = False,
    worker_lives: bool = False,
    due: Micros = NOW,
) -> None:
    """Return an owned, unfinished execution to those that can be claimed, with a crash counted if it `crashed`.

    It can be claimed from `due` on; after a crash, from now. A crash of which the worker itself knows (`worker_lives`)
    is not taken back when its process is seen again.
    """
    batch = unit.batch(execution.batch_id)
    before, crashes, taken_from = execution.crashes, _crashes(batch, execution), execution.taken_from
    if crashes < before:
        taken_from = None
    if crashed:
        crashes += 1
        taken_from = None if worker_lives else execution.owner
    resolver = execution.position == RESOLVER_POSITION
    if resolver:
        batch.release_resolver(execution, reason)
    else:
        batch.release_document(execution, reason, crashes)
    if reason == "crash" or before >= ISOLATED_CRASHES:
        batch.end_isolation_on(execution.owner)
    batch.count_suspect(before, crashes)
    if crashed and crashes >= ISOLATED_CRASHES:
        batch.isolate(crashes)
    unit.update(
        execution._replace(
            status="waiting" if resolver else "pending",
            crashes=crashes,
            alone=False,
            owner=None,
            # What was running goes on before what was never started.
            due=unit.now if crashes else due,
            updated_at=unit.now,
            taken_from=taken_from,
        )
    )


def plan_return(loaded: Loaded, session: WorkerId, *, level: int = 1) -> Writes:
    """Take back the crashes that were counted for a session: its process is alive, and has another session now.

    `loaded` holds the executions that name the session (`taken_from`), and their batches. One that another worker owns
    is changed by that worker's commits alone: of these, the batch takes note, and their release takes the crash back.
    """
    unit = UnitOfWork(loaded.now, loaded.batches, loaded.executions, level)
    for key, execution in sorted(loaded.executions.items()):
        if execution.taken_from != session or unit.contradiction(key[0]) is not None:
            continue
        batch = unit.batch(key[0])
        if batch.ended or batch.run != execution.run or execution.status not in ("pending", "waiting", "running"):
            continue
        if execution.owner is not None:
            batch.note_seen_again(session)
        else:
            crashes = max(execution.crashes - 1, 0)
            batch.count_suspect(execution.crashes, crashes)
            unit.update(execution._replace(crashes=crashes, taken_from=None, updated_at=unit.now))
    return unit.writes()


def _crashes(batch: BatchInProgress, execution: ExecutionRecord) -> int:
    """Count an owned execution's crashes, less the one whose worker was seen again since it was claimed."""
    return max(execution.crashes - batch.was_seen_again(execution.taken_from), 0)


def _ends_crash_loop(execution: ExecutionRecord, batch: BatchInProgress, *, alone: bool) -> bool:
    return is_crash_loop(_crashes(batch, execution) + 1, batch.definition.config.max_crashes, alone=alone)


def _fail_crash_loop(unit: UnitOfWork, execution: ExecutionRecord, activity: str | None = None) -> None:
    batch = unit.batch(execution.batch_id)
    crashes = _crashes(batch, execution) + 1
    error = str(CrashLoopError(execution.batch_id, execution.document_id, crashes, activity))
    failure = DocumentFailureRecord(error, CrashLoopError.__name__, activity, execution.attempt)
    batch.end_isolation_on(execution.owner)
    if execution.position == RESOLVER_POSITION:
        unit.finish(execution, "failed", failure.encode(), crashes=crashes)
        batch.fail_resolver(error)
    else:
        unit.fail_document(
            execution,
            failure.encode(),
            error=error,
            error_type=failure.error_type,
            activity=failure.activity,
            crashes=crashes,
        )
