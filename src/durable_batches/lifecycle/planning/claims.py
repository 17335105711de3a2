"""Give executions to a worker that asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from durable_batches.lifecycle.batch import BatchInProgress
from durable_batches.lifecycle.planning.unit_of_work import UnitOfWork, Writes
from durable_batches.lifecycle.policies import isolated_concurrency
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    BatchRecord,
    ClaimRequest,
    ExecutionRecord,
    Micros,
    WorkerId,
)

__all__ = [
    "ISOLATED",
    "ISOLATED_CRASHES",
    "NEVER_STARTED",
    "WOKEN",
    "Candidates",
    "claim_order",
    "has_to_know_next_due",
    "plan_claims",
]

ISOLATION_WAIT_MICROS: Final[Micros] = 10_000_000
"""A possible poison document that has waited longer for a worker with few enough others stops this worker's claims."""


WOKEN: Final = 0
NEVER_STARTED: Final = 1
ISOLATED: Final = 2
"""The ranges of a batch's executions that are due, in the order in which a claim takes them."""

ISOLATED_CRASHES: Final = 2
"""The number of crashes from which on an execution that is due is claimed after all others of its batch."""


class Candidates(NamedTuple):
    """A batch that a claim may take from, and its executions that are due, in the order in which they are claimed."""

    batch: BatchRecord
    executions: Sequence[ExecutionRecord]
    """In the order of `claim_order`; in stores of level 1, in that of (due, position)."""
    next_due: Micros | None = NOW
    """Level 2: when the first of its other executions is due, be it past; None: none will be by time. `NOW` where it
    was not looked up, as it need not be while others are pending: the batch stays awake."""
    share: int | None = None
    """How many to take at most; None: as many as there are."""


def claim_order(execution: ExecutionRecord) -> tuple[int, Micros, int]:
    """Return the sort key of an execution that is due, which begins with its range.

    First come those that were woken, by their due time: a retry, a timer. Then those that were never started, in
    submission order; and last the isolated ones, which have crashed several times.
    """
    due = execution.due or NOW
    if due == NOW:
        return NEVER_STARTED, due, execution.position
    return ISOLATED if execution.crashes >= ISOLATED_CRASHES else WOKEN, due, execution.position


def has_to_know_next_due(batch: BatchRecord, executions: Sequence[ExecutionRecord]) -> bool:
    """Whether a store has to look up `Candidates.next_due`: beside these, nothing is pending and something waits."""
    if batch.counts.waiting == 0:  # as in most batches
        return False
    pending = sum(execution.status == "pending" for execution in executions)
    return batch.counts.pending <= pending and batch.counts.waiting > len(executions) - pending


def plan_claims(
    now: Micros,
    worker: WorkerId,
    request: ClaimRequest,
    candidates: Sequence[Candidates],
    turn: int,
    *,
    level: int = 1,
) -> Writes:
    """Decide which of the candidates this worker owns from now on: `Writes.executions` are its claims, in order.

    `turn` is anything that grows with time, the same for all workers: batches that were served longest ago come
    first in the store's next candidates. `level` is that of the store.
    """
    unit = UnitOfWork(now, {candidate.batch.batch_id: candidate.batch for candidate in candidates}, {}, level)
    taken = 0
    window = request.window
    for candidate in candidates:
        if not request.takes_from(candidate.batch):
            continue
        contradiction = unit.contradiction(candidate.batch.batch_id)
        if contradiction is not None:
            unit.set_aside(candidate.batch.batch_id, contradiction)
            continue
        batch = unit.batch(candidate.batch.batch_id)
        if batch.wake_at is not None and batch.wake_at <= now:
            batch.fail("the batch's deadline has passed")
            continue
        overdue = False
        before = taken
        most = request.limit if candidate.share is None else min(taken + candidate.share, request.limit)
        max_crashes = batch.definition.config.max_crashes
        executions = candidate.executions
        if level >= 2 and any(execution.crashes for execution in executions):
            executions = sorted(
                executions, key=lambda execution: _is_restricted(execution, max_crashes, request.capacity)
            )
        for execution in executions:
            if batch.open_slots == 0 or taken == most:
                break
            allowed = isolated_concurrency(execution.crashes, max_crashes, request.capacity)
            held = request.held + taken
            if held + 1 > min(window, allowed):
                waited = now - (execution.due or now)
                overdue = overdue or (execution.crashes > 0 and waited > ISOLATION_WAIT_MICROS)
                continue
            window = min(window, allowed)
            _claim(unit, batch, execution, worker, isolated=held == 0 and window == 1)
            taken += 1
        batch.earliest_due = candidate.next_due if taken - before == len(executions) else NOW
        if batch.events:
            batch.serve(turn)
        if overdue:
            # Take no more work, so that this worker runs empty for the possible poison document.
            break
    return unit.writes()


def _is_restricted(execution: ExecutionRecord, max_crashes: int, capacity: int) -> bool:
    """Whether it may run beside fewer others than there is room for; so it is taken after those that may."""
    return isolated_concurrency(execution.crashes, max_crashes, capacity) < capacity


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
