"""Give executions to a worker that asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from durable_batches.lifecycle.batch import DEADLINE_PASSED, BatchInProgress
from durable_batches.lifecycle.isolation import ISOLATED_CRASHES, isolated_concurrency
from durable_batches.lifecycle.planning.unit_of_work import UnitOfWork, Writes
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    BatchRecord,
    ClaimRequest,
    ExecutionRecord,
    Micros,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId

__all__ = [
    "ISOLATED",
    "NEVER_STARTED",
    "WOKEN",
    "Candidates",
    "claim_order",
    "has_to_know_next_due",
    "plan_claims",
]

WOKEN: Final = 0
NEVER_STARTED: Final = 1
ISOLATED: Final = 2
"""The ranges of a batch's executions that are due, in the order in which a claim takes them."""


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

    Possible poison documents that are isolated go to one worker, and first, as long as it holds few enough others. To
    get there it takes nothing else: from the first of them on that it has taken, or where no worker has taken one in
    the first half of their time. Nobody waits for them longer than that time.

    `turn` is anything that grows with time, the same for all workers: batches that were served longest ago come
    first in the store's next candidates. `level` is that of the store.
    """
    unit = UnitOfWork(now, {candidate.batch.batch_id: candidate.batch for candidate in candidates}, {}, level)
    claims = _Claims(unit, worker, request)
    isolated = _isolated_by(unit, worker, candidates)
    for candidate in sorted(candidates, key=lambda candidate: not isolated.get(candidate.batch.batch_id, False)):
        batch_id = candidate.batch.batch_id
        if not request.takes_from(candidate.batch):
            continue
        contradiction = unit.contradiction(batch_id)
        if contradiction is not None:
            unit.set_aside(batch_id, contradiction)
            continue
        batch = unit.batch(batch_id)
        if batch.wake_at is not None and batch.wake_at <= now:
            batch.fail(DEADLINE_PASSED)
            continue
        pause = batch.quota_pause
        before = claims.taken
        most = request.limit if candidate.share is None else min(before + candidate.share, request.limit)
        executions = candidate.executions
        if batch_id in isolated:
            suspects = [execution for execution in executions if execution.crashes >= ISOLATED_CRASHES]
            executions = [execution for execution in executions if execution.crashes < ISOLATED_CRASHES]
            if isolated[batch_id]:
                claims.take_isolated(batch, suspects, most)
        claims.take(batch, executions if pause is None else sorted(executions, key=_look_order), most)
        batch.earliest_due = candidate.next_due if claims.taken - before == len(candidate.executions) else NOW
        if batch.events:
            batch.serve(turn)
    return unit.writes()


def _look_order(execution: ExecutionRecord) -> int:
    """Return the sort key of those that may look whether a provider serves again: never the one that it refused."""
    return _LOOK_ORDER[claim_order(execution)[0]]


_LOOK_ORDER: Final = {NEVER_STARTED: 0, WOKEN: 1, ISOLATED: 2}


def _isolated_by(unit: UnitOfWork, worker: WorkerId, candidates: Sequence[Candidates]) -> dict[BatchId, bool]:
    """Find the batches with isolated executions among the candidates, and whether this worker may take these.

    It may where it has taken some of that batch before, or no worker has, and of none of the others another worker.
    """
    holders: dict[BatchId, WorkerId | None] = {}
    for candidate in candidates:
        if any(execution.crashes >= ISOLATED_CRASHES for execution in candidate.executions):
            batch_id = candidate.batch.batch_id
            if unit.contradiction(batch_id) is None and (isolation := unit.batch(batch_id).isolation) is not None:
                holders[batch_id] = isolation["worker"]
    alone = all(holder in (None, worker) for holder in holders.values())
    return {batch_id: holder == worker or (holder is None and alone) for batch_id, holder in holders.items()}


class _Claims:
    """What one claim takes."""

    def __init__(self, unit: UnitOfWork, worker: WorkerId, request: ClaimRequest) -> None:
        self._unit = unit
        self._worker = worker
        self._held = request.held
        self._window = request.window
        self.taken: int = 0
        """The number of executions so far."""
        self._runs_empty = False

    def take(self, batch: BatchInProgress, executions: Sequence[ExecutionRecord], most: int) -> None:
        """Take executions of a batch until `most` are taken in all."""
        for execution in executions:
            if self._runs_empty or batch.open_slots == 0 or self.taken == most or not self._fits(self._window):
                return
            self._claim(batch, execution)

    def take_isolated(self, batch: BatchInProgress, suspects: Sequence[ExecutionRecord], most: int) -> None:
        """Take isolated executions of a batch: those first that have crashed most often."""
        max_crashes = batch.definition.config.max_crashes
        among = max(batch.suspects, len(suspects))
        for execution in sorted(suspects, key=lambda execution: -execution.crashes):
            if self._runs_empty or batch.open_slots == 0 or self.taken == most:
                return
            window = min(self._window, isolated_concurrency(execution.crashes, max_crashes, among))
            if not self._fits(window):
                self._runs_empty = self._has_to_run_empty(batch)
                return
            self._window = window
            batch.isolate_on(self._worker, window)
            self._claim(batch, execution, alone=window == 1)

    def _has_to_run_empty(self, batch: BatchInProgress) -> bool:
        isolation = batch.isolation
        assert isolation is not None
        if isolation["worker"] is None:
            if 2 * self._unit.now < isolation["since"] + isolation["until"]:
                return False
            batch.isolate_on(self._worker, self._window)
        return True

    def _fits(self, window: int) -> bool:
        return self._held + self.taken < window

    def _claim(self, batch: BatchInProgress, execution: ExecutionRecord, *, alone: bool = False) -> None:
        attempt = execution.attempt + 1
        if execution.position == RESOLVER_POSITION:
            batch.start_resolver(execution, attempt)
        else:
            batch.start_document(execution, attempt)
        self._unit.update(
            execution._replace(
                status="running", attempt=attempt, alone=alone, owner=self._worker, due=None, updated_at=self._unit.now
            )
        )
        self.taken += 1
