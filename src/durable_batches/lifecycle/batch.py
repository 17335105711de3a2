"""A batch while a plan works on it: decoded from its record, moved by its methods, encoded again.

This is where a batch's counters, marks and state change, and where each change emits its event; everything else
in `plan` decides *that* something happens and calls the method that says what it means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic_core import from_json, to_json

from durable_batches.lifecycle.config import BatchConfig
from durable_batches.lifecycle.machine import check_transition
from durable_batches.lifecycle.policies import abort_reason
from durable_batches.lifecycle.primitives import make_record
from durable_batches.lifecycle.records import BatchRecord, EventRecord, ExecutionRecord, Micros, WorkerId
from durable_batches.lifecycle.states import BatchId, Counts

__all__ = ["BatchInProgress", "Definition", "new_batch"]

ResolverPhase: TypeAlias = Literal["idle", "due", "running"]


class Definition(NamedTuple):
    """What a batch is, as opposed to where it is: fixed when it is created."""

    stages: tuple[str, ...]
    resolver: bool
    config: BatchConfig


def new_batch(
    *,
    batch_id: BatchId,
    workflow: str,
    version: str,
    loader: WorkerId,
    definition: Definition,
    now: Micros,
) -> BatchRecord:
    """The record of a batch whose documents are about to be loaded."""
    text = to_json(
        {
            "stages": definition.stages,
            "resolver": definition.resolver,
            "config": definition.config.model_dump(mode="json"),
        }
    ).decode()
    core: dict[str, Any] = {
        "definition": text,
        "at": [0] * (len(definition.stages) + 1),
        "phase": "idle",
        "error": "",
        "reason": "",
        "sealed_by": None,
        "cancelled_by": None,
        "started_at": None,
        "ended_at": None,
    }
    return BatchRecord(
        batch_id=batch_id,
        workflow=workflow,
        version=version,
        loader=loader,
        run=1,
        state="pending",
        paused=False,
        counts=Counts(),
        seq=0,
        free=0,
        wake=None,
        served=0,
        core=to_json(core),
        metadata=definition.config.metadata,
        created_at=now,
    )


def definition_of(record: BatchRecord) -> Definition:
    """What the batch is."""
    return _definition_in(record.core)


@lru_cache(maxsize=64)
def _definition_in(core: bytes) -> Definition:
    return _parse_definition(from_json(core)["definition"])


@lru_cache(maxsize=1024)
def _parse_definition(text: str) -> Definition:
    data = from_json(text)
    return Definition(tuple(data["stages"]), data["resolver"], BatchConfig.model_validate(data["config"]))


def _storable(text: str) -> str:
    """The text without what UTF-8 cannot hold: no plan fails over a message."""
    return text.encode(errors="replace").decode()


class BatchInProgress:
    """A batch's record, opened for change."""

    __slots__ = (
        "_core",
        "_passed",
        "_record",
        "_seq",
        "_served",
        "at",
        "cancelled",
        "definition",
        "ended",
        "events",
        "failed",
        "loader",
        "now",
        "pending",
        "run",
        "running",
        "state",
        "succeeded",
        "total",
        "waiting",
        "wake",
    )

    def __init__(self, record: BatchRecord, now: Micros) -> None:
        self._record = record
        self.run: int = record.run
        self._core: dict[str, Any] = from_json(record.core)
        self._seq = record.seq
        self._served = record.served
        self.now: Micros = now
        self.definition: Definition = _parse_definition(self._core["definition"])
        self.at: list[int] = self._core["at"]
        """Unfinished documents by their mark; the first entry is of those without one."""
        self.state: str = record.state
        self.ended: bool = record.ended
        self.loader: WorkerId | None = record.loader
        self.wake: Micros | None = record.wake
        counts = record.counts
        self.total: int = counts.total
        self.pending: int = counts.pending
        self.running: int = counts.running
        self.waiting: int = counts.waiting
        self.succeeded: int = counts.succeeded
        self.failed: int = counts.failed
        self.cancelled: int = counts.cancelled
        self.events: list[EventRecord] = []
        self._passed = self._count_passed()

    # ---- reading ---------------------------------------------------------------------------------------

    @property
    def batch_id(self) -> BatchId:
        return self._record.batch_id

    @property
    def counts(self) -> Counts:
        return Counts(
            total=self.total,
            pending=self.pending,
            running=self.running,
            waiting=self.waiting,
            succeeded=self.succeeded,
            failed=self.failed,
            cancelled=self.cancelled,
        )

    @property
    def core(self) -> Mapping[str, Any]:
        return self._core

    @property
    def phase(self) -> ResolverPhase:
        phase: ResolverPhase = self._core["phase"]
        return phase

    @property
    def free(self) -> int:
        """How many more executions may be owned now."""
        if self._record.paused:
            return 0
        if self.state == "resolving":
            return 1 if self.phase == "due" else 0
        if not self.pending and not self.waiting:  # as in a batch that is being loaded, or has ended
            return 0
        return max(self.definition.config.concurrency - self.running, 0)

    @property
    def percentage(self) -> float:
        """Marks passed of all that there are to pass, in percent."""
        whole = self.total * len(self.definition.stages)
        return 100.0 if whole == 0 else round(100 * self._passed / whole, 4)

    def entered(self, stage: int) -> int:
        """Documents that have entered this stage; those that have ended have been through all."""
        return self.total - sum(self.at[: stage + 1])

    def past(self, stage: int) -> int:
        """Documents that are past this stage."""
        return self.total - sum(self.at[: stage + 2])

    @property
    def _ended_documents(self) -> int:
        return self.succeeded + self.failed + self.cancelled

    def _count_passed(self) -> int:
        inside = sum(mark * count for mark, count in enumerate(self.at[1:]))
        return inside + self._ended_documents * len(self.definition.stages)

    # ---- a document moves --------------------------------------------------------------------------------

    def start_document(self, execution: ExecutionRecord, attempt: int) -> None:
        if execution.status == "waiting":
            self.waiting -= 1
        else:
            self.pending -= 1
        self.running += 1
        self.emit("document_started", execution.document_id, attempt)
        if self._core["started_at"] is None:
            self._core["started_at"] = self.now
        if self.state == "pending":
            self.move(self._earliest_stage())

    def enter_stage(self, execution: ExecutionRecord, mark: int) -> None:
        before = execution.mark + 1
        self.at[before] -= 1
        self.at[mark + 1] += 1
        self._passed += mark - max(execution.mark, 0)
        self.emit(
            "stage_progress",
            execution.document_id,
            self.definition.stages[mark],
            self.entered(mark),
            self.total,
            self.percentage,
        )
        if self.at[before] == 0:
            self._advance()

    def complete_document(self, execution: ExecutionRecord, unused_checkpoints: int) -> None:
        self.running -= 1
        self.succeeded += 1
        self._leave_marks(execution)
        self.emit("document_completed", execution.document_id, self.percentage, unused_checkpoints)
        self.settle()

    def fail_document(self, execution: ExecutionRecord, error: str) -> None:
        self.running -= 1
        self.failed += 1
        self._leave_marks(execution)
        self.emit("document_failed", execution.document_id, _storable(error), self.percentage)
        self.settle()

    def retry_document(self, execution: ExecutionRecord, failures: int, due: Micros, error: str) -> None:
        self.running -= 1
        self.waiting += 1
        self.emit("document_retrying", execution.document_id, failures, due, _storable(error))

    def release_document(self, execution: ExecutionRecord, reason: str, crashes: int) -> None:
        self.running -= 1
        self.pending += 1
        self.emit("document_released", execution.document_id, reason, crashes)

    def _leave_marks(self, execution: ExecutionRecord) -> None:
        self.at[execution.mark + 1] -= 1
        self._passed += len(self.definition.stages) - max(execution.mark, 0)

    # ---- the batch moves -----------------------------------------------------------------------------------

    def seal(self, loader: WorkerId, total: int) -> None:
        self.loader = None
        self._core["sealed_by"] = loader
        self.total = self.pending = total
        self.at[0] = total
        deadline = self.definition.config.deadline
        if deadline is not None:
            self.wake = self.now + int(deadline.total_seconds() * 1_000_000)
        self.emit("batch_created", self._record.workflow, self._record.version, total)
        self.settle()

    def settle(self) -> None:
        """After a document ended: does the policy stop the batch, is it over, is it the resolver's turn?"""
        reason = abort_reason(self.definition.config.failure_policy, self.counts)
        if reason is not None:
            self.fail(reason)
        elif self.pending or self.running or self.waiting:
            self._advance()
        elif self.total and self.failed == self.total:
            self.fail("all documents failed")
        elif self.definition.resolver:
            self.move("resolving")
            self._core["phase"] = "due"
        else:
            self.complete()

    def start_resolver(self, attempt: int) -> None:
        self._core["phase"] = "running"
        self.emit("resolution_started", attempt)

    def retry_resolver(self, error: str, due: Micros) -> None:
        self._core["phase"] = "due"
        self.emit("resolution_failed", _storable(error), due)

    def complete_resolver(self) -> None:
        self.emit("resolution_completed")
        self.complete()

    def fail_resolver(self, error: str) -> None:
        error = _storable(error)
        self.emit("resolution_failed", error, None)
        self.fail(f"the resolver failed: {error}")

    def complete(self) -> None:
        self._end("completed")
        self.emit("batch_completed", self._counts_fields())

    def fail(self, error: str) -> None:
        self._end("failed")
        self._core["error"] = error
        self.emit("batch_failed", self._counts_fields(), error)

    def cancel(self, request_id: str, reason: str) -> None:
        reason = _storable(reason)
        self._end("cancelled")
        self._core["cancelled_by"] = request_id
        self._core["reason"] = reason
        self.emit("batch_cancelled", self._counts_fields(), reason)

    def move(self, state: str) -> None:
        """Go to another state, as the table allows."""
        check_transition(self.batch_id, self.definition.stages, self.state, state)
        self.emit("state_changed", self.state, state)
        self.state = state

    def _end(self, state: str) -> None:
        # What has not ended ends with its run. The rows of those documents are left as they are (there may be a
        # million): an unfinished document of an ended run *is* cancelled, and readers say so.
        self.cancelled += self.pending + self.running + self.waiting
        self.pending = self.running = self.waiting = 0
        self.at = [0] * len(self.at)
        self._core["ended_at"] = self.now
        self._core["phase"] = "idle"
        self.wake = None
        self.move(state)
        self.ended = True

    def _advance(self) -> None:
        if self.state == "pending":
            return
        stage = self._earliest_stage()
        if stage != self.state:
            self.move(stage)

    def _earliest_stage(self) -> str:
        """The smallest mark over the unfinished documents; one that has none counts as the first."""
        first = next(mark for mark, count in enumerate(self.at) if count)
        return self.definition.stages[max(first - 1, 0)]

    # ---- writing ---------------------------------------------------------------------------------------------

    def emit(self, tag: str, *fields: object) -> None:
        """Append an event of this batch; the fields in the order of the event's class."""
        self._seq = seq = self._seq + 1
        self.events.append(make_record(EventRecord, (self._record.batch_id, seq, self.now, tag, to_json(fields))))

    def serve(self, turn: int) -> None:
        """Note the turn at which a claim took from this batch; later than the last one, whatever the clock says."""
        self._served = max(turn, self._served + 1)

    def closed(self) -> BatchRecord:
        """The record as it is to be written."""
        self._core["at"] = self.at
        return replace(
            self._record,
            loader=self.loader,
            state=self.state,
            counts=self.counts,
            seq=self._seq,
            free=self.free,
            wake=self.wake,
            served=self._served,
            core=to_json(self._core),
        )

    def _counts_fields(self) -> tuple[int, ...]:
        return (
            self.total,
            self.pending,
            self.running,
            self.waiting,
            self.succeeded,
            self.failed,
            self.cancelled,
        )
