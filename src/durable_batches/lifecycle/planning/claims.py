"""Give executions to a worker that asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.planning.unit_of_work import UnitOfWork, Writes
from durable_batches.lifecycle.policies import isolated_concurrency
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    ClaimRequest,
    ExecutionRecord,
    Micros,
    WorkerId,
)

__all__ = ["Candidates", "plan_claims"]

ISOLATION_WAIT_MICROS: Final[Micros] = 10_000_000
"""A possible poison document that has waited longer for a worker with few enough others stops this worker's claims."""


class Candidates(NamedTuple):
    """A batch that a claim may take from, and its executions that are due, first due first, then in order."""

    batch: BatchRecord
    executions: Sequence[ExecutionRecord]


def plan_claims(
    now: Micros, worker: WorkerId, request: ClaimRequest, candidates: Sequence[Candidates], turn: int
) -> Writes:
    """Decide which of the candidates this worker owns from now on: `Writes.executions` are its claims, in order.

    `turn` is anything that grows with time, the same for all workers: batches that were served longest ago come
    first in the store's next candidates.
    """
    unit = UnitOfWork(now, {candidate.batch.batch_id: candidate.batch for candidate in candidates}, {})
    taken = 0
    window = request.window
    for candidate in candidates:
        contradiction = unit.contradiction(candidate.batch.batch_id)
        if contradiction is not None:
            unit.set_aside(candidate.batch.batch_id, contradiction)
            continue
        batch = unit.batch(candidate.batch.batch_id)
        if batch.wake_at is not None and batch.wake_at <= now:
            batch.fail("the batch's deadline has passed")
            continue
        overdue = False
        for execution in candidate.executions:
            if batch.open_slots == 0 or taken == request.limit:
                break
            allowed = isolated_concurrency(execution.crashes, batch.definition.config.max_crashes, request.capacity)
            held = request.held + taken
            if held + 1 > min(window, allowed):
                waited = now - (execution.due or now)
                overdue = overdue or (execution.crashes > 0 and waited > ISOLATION_WAIT_MICROS)
                continue
            window = min(window, allowed)
            _claim(unit, batch, execution, worker, isolated=held == 0 and window == 1)
            taken += 1
        if batch.events:
            batch.serve(turn)
        if overdue:
            # Take no more work, so that this worker runs empty for the possible poison document.
            break
    return unit.writes()


def _claim(
    unit: UnitOfWork, batch: BatchInProgress, execution: ExecutionRecord, worker: WorkerId, *, isolated: bool
) -> None:
    attempt = execution.attempt + 1
    if execution.position == RESOLVER_POSITION:
        batch.start_resolver(attempt)
    else:
        batch.start_document(execution, attempt)
    unit.update(
        execution._replace(
            status="running", attempt=attempt, alone=isolated, owner=worker, due=None, updated_at=unit.now
        )
    )
