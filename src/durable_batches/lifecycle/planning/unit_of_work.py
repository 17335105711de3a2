"""One transaction's changes: batches and executions as they are by now, and the rows that these come to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from durable_batches.lifecycle.batch import BatchInProgress, ContradictionError
from durable_batches.lifecycle.failure_groups import added, failure_record
from durable_batches.lifecycle.fingerprints import fingerprint_of
from durable_batches.lifecycle.isolation import ISOLATED_CRASHES
from durable_batches.lifecycle.primitives import make_record
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointWrite,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    FailureRecord,
    Micros,
    Refusal,
    RequestRecord,
)
from durable_batches.lifecycle.states import BatchId

__all__ = ["Loaded", "UnitOfWork", "Writes"]


class Loaded(NamedTuple):
    """The rows that a store loaded, under its locks."""

    now: Micros
    """The store's clock."""
    batches: Mapping[BatchId, BatchRecord]
    executions: Mapping[ExecutionKey, ExecutionRecord]
    requests: Mapping[str, str] = {}
    """Of the batch that a command is about: the answers that are there already, by the ids of their requests."""
    recorded: Collection[tuple[ExecutionKey, str]] = ()
    """Of the checkpoints that `checkpoints_to_load` names: those that are there."""


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
    requests: Sequence[RequestRecord] = ()
    """To be inserted; one of the same id is replaced, which is older than `REQUESTS_ARE_KEPT`."""
    set_aside: Mapping[BatchId, str] = {}
    """Batches whose counts contradict each other, and how; claims pass over them from now on. For the log."""
    failures: Sequence[FailureRecord] = ()
    """To be inserted, one a batch and group; to one that is there (same batch, run and fingerprint) it is added, as
    `failure_groups.added` does. None for a store of level 1."""


class UnitOfWork:
    """Collect what one transaction changes: rows are read here as earlier changes left them, and changed here.

    `batches` and `executions` hold what was loaded, as the changes so far leave it. A batch is opened by the first
    change that concerns it, and written if it has emitted an event, has changed otherwise, or falls asleep.
    """

    __slots__ = (
        "_changed",
        "_failures",
        "_failures_to_delete",
        "_level",
        "_opened",
        "_outcomes",
        "_set_aside",
        "_stage_entries",
        "batches",
        "checkpoints",
        "executions",
        "now",
        "refused",
    )

    def __init__(
        self,
        now: Micros,
        batches: Mapping[BatchId, BatchRecord],
        executions: Mapping[ExecutionKey, ExecutionRecord],
        level: int = 1,
    ) -> None:
        self.now: Micros = now
        self._level = level
        self.batches: dict[BatchId, BatchRecord | BatchInProgress] = dict(batches)
        self.executions: dict[ExecutionKey, ExecutionRecord] = dict(executions)
        self.checkpoints: list[CheckpointWrite] = []
        self.refused: dict[int, Refusal] = {}
        self._opened: dict[BatchId, BatchInProgress] = {}
        self._changed: dict[ExecutionKey, ExecutionRecord] = {}
        self._stage_entries: dict[ExecutionKey, ExecutionRecord] = {}
        self._outcomes: dict[ExecutionKey, bytes] = {}
        self._failures_to_delete: list[tuple[ExecutionKey, str]] = []
        self._set_aside: dict[BatchId, str] = {}
        self._failures: dict[tuple[BatchId, str], FailureRecord] = {}

    # ---- batches -------------------------------------------------------------------------------------------

    def batch(self, batch_id: BatchId) -> BatchInProgress:
        """Open a loaded batch for change; the same object each time."""
        batch = self._opened.get(batch_id)
        if batch is None:
            record = self.batches[batch_id]
            assert isinstance(record, BatchRecord)
            batch = self.batches[batch_id] = self._opened[batch_id] = BatchInProgress(record, self.now, self._level)
        return batch

    def contradiction(self, batch_id: BatchId) -> str | None:
        """Open a loaded batch; return how its counts contradict each other, or None if they do not."""
        try:
            self.batch(batch_id)
        except ContradictionError as error:
            return str(error)
        return None

    def set_aside(self, batch_id: BatchId, contradiction: str) -> None:
        """Have claims pass over a batch that cannot be opened, so that it does not stop those of other batches."""
        record = self.batches[batch_id]
        assert isinstance(record, BatchRecord)
        if record.free or record.wake is not None or record.next_due is not None:
            self._set_aside[batch_id] = contradiction

    def spend(self, batch_id: BatchId, position: int, spent: str, *, replayed: bool = False, key: str = "") -> None:
        """Count what an execution has spent; `replayed`: what results had cost that it found recorded.

        With the key of the call that has spent it, the room that was reserved for that is given back.
        """
        if self.contradiction(batch_id) is None:
            if key:
                self.batch(batch_id).give_back(position, key)
            self.batch(batch_id).spend(spent, resolver=position == RESOLVER_POSITION, replayed=replayed)

    # ---- executions ----------------------------------------------------------------------------------------

    def update(self, execution: ExecutionRecord) -> None:
        """Write this execution."""
        key = (execution.batch_id, execution.position)
        self.executions[key] = self._changed[key] = execution

    def enter_stage(self, execution: ExecutionRecord, stage_index: int) -> None:
        """Write that this execution has entered a later stage."""
        # Spelt out, because this is made for many activities.
        entered = make_record(
            ExecutionRecord, (*execution[:5], stage_index, *execution[6:12], self.now, *execution[13:])
        )
        key = (execution.batch_id, execution.position)
        self.executions[key] = self._stage_entries[key] = entered
        if key in self._changed:
            self._changed[key] = entered

    def clear_suspicion(self, execution: ExecutionRecord) -> None:
        """Write that this owned execution has recorded something: no crash before that is held against it."""
        self._forget_crashes(execution)
        self.update(execution._replace(crashes=0, alone=False, taken_from=None, updated_at=self.now))

    def _forget_crashes(self, execution: ExecutionRecord) -> None:
        if execution.crashes >= ISOLATED_CRASHES:
            self.batch(execution.batch_id).count_suspect(execution.crashes, 0)

    def fail_document(
        self,
        execution: ExecutionRecord,
        outcome: bytes,
        *,
        error: str,
        error_type: str,
        activity: str | None,
        crashes: int = 0,
    ) -> None:
        """Write that this owned execution of a document has failed for good (for `crashes`), and count its failure."""
        fingerprint = fingerprint_of(error_type, activity, error)
        self.finish(execution._replace(fingerprint=fingerprint), "failed", outcome, crashes=crashes)
        batch = self.batch(execution.batch_id)
        if self._level >= 2:
            stages, mark = batch.definition.stages, execution.mark
            failure = failure_record(
                execution,
                batch.failure_group(fingerprint),
                error_type=error_type,
                activity=activity,
                stage=stages[mark] if mark >= 0 else None,
                error=error,
                at=self.now,
            )
            key = (execution.batch_id, failure.fingerprint)
            counted = self._failures.get(key)
            self._failures[key] = failure if counted is None else added(counted, failure)
        batch.fail_document(execution, error, fingerprint)

    def finish(
        self, execution: ExecutionRecord, status: Literal["succeeded", "failed"], outcome: bytes, *, crashes: int = 0
    ) -> None:
        """Write that this owned execution has succeeded, or has failed for good; `crashes`: that it has failed for."""
        self._forget_crashes(execution)
        # An owned execution has no due time that would have to be cleared.
        self.update(
            execution._replace(
                status=status, crashes=crashes, alone=False, owner=None, taken_from=None, updated_at=self.now
            )
        )
        self.record_outcome(execution, outcome)

    def retry(self, execution: ExecutionRecord, due_at: Micros, outcome: bytes) -> None:
        """Write that this owned execution has failed once more, and can be claimed again from this moment on.

        Its process has survived it: no crash is held against it any more.
        """
        self._forget_crashes(execution)
        self.update(
            execution._replace(
                status="waiting",
                failures=execution.failures + 1,
                crashes=0,
                taken_from=None,
                owner=None,
                alone=False,
                due=due_at,
                updated_at=self.now,
            )
        )
        self.record_outcome(execution, outcome)

    def release_as_cancelled(self, execution: ExecutionRecord) -> None:
        """Write that this owned execution has no owner any more, its run having ended without it."""
        self.update(execution._replace(status="cancelled", alone=False, owner=None, updated_at=self.now))

    # ---- an execution's outcome and failures ------------------------------------------------------------------

    def record_outcome(self, execution: ExecutionRecord, outcome: bytes) -> None:
        """Write an execution's encoded result or failure."""
        self._outcomes[execution.batch_id, execution.position] = outcome

    def delete_failures(self, execution: ExecutionRecord, checkpoint_keys: Sequence[str]) -> None:
        """Delete an execution's recorded failures of these keys."""
        key = (execution.batch_id, execution.position)
        self._failures_to_delete.extend((key, checkpoint_key) for checkpoint_key in checkpoint_keys)

    # ---- the rows ------------------------------------------------------------------------------------------

    def writes(self) -> Writes:
        """Add up the rows to be written."""
        batches: list[BatchRecord] = []
        events: list[EventRecord] = []
        for batch in self._opened.values():
            if batch.core["phase"] == "due":
                self._make_resolver_claimable(batch.batch_id)
            if batch.events or batch.changed or batch.falls_asleep:
                batches.append(batch.closed())
                events += batch.events
        for batch_id in self._set_aside:
            record = self.batches[batch_id]
            assert isinstance(record, BatchRecord)
            batches.append(replace(record, free=0, wake=None, next_due=None))
        changed = self._changed
        return Writes(
            batches=batches,
            executions=list(changed.values()),
            marks=[execution for key, execution in self._stage_entries.items() if key not in changed],
            outcomes=list(self._outcomes.items()),
            checkpoints=self.checkpoints,
            forget=self._failures_to_delete,
            events=events,
            refused=self.refused,
            set_aside=self._set_aside,
            failures=tuple(self._failures.values()),
        )

    def _make_resolver_claimable(self, batch_id: BatchId) -> None:
        """Where these changes moved the batch to `resolving`, its resolver can be claimed from the same moment."""
        resolver = self.executions.get((batch_id, RESOLVER_POSITION))
        if resolver is not None and resolver.owner is None and resolver.due is None:
            self.update(resolver._replace(due=NOW, updated_at=self.now))
