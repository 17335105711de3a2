"""A batch opened for change: decoded from its record, moved by its methods, and encoded again.

A batch's counts, stages and state change here alone, and each change emits its event. Everything else in
`planning` decides *that* something happens, and calls the method that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from pydantic_core import from_json, to_json

from durable_batches.lifecycle import event_data, failure_groups
from durable_batches.lifecycle.amounts import Amount, text_of
from durable_batches.lifecycle.batch_core import (
    BatchCore,
    Definition,
    ResolverPhase,
    decode_definition,
    encode_definition,
    needs_of,
    policy_needs_of,
)
from durable_batches.lifecycle.budget import BudgetPause
from durable_batches.lifecycle.config import changed
from durable_batches.lifecycle.event_data import EventData
from durable_batches.lifecycle.events import PauseScope, ReleaseReason
from durable_batches.lifecycle.isolation import ISOLATED_CRASHES, Isolation, isolation_micros
from durable_batches.lifecycle.pauses import OperatorPause
from durable_batches.lifecycle.policies import abort_reason
from durable_batches.lifecycle.primitives import make_record
from durable_batches.lifecycle.quota import (
    JUDGES_AFTER,
    MOST_BEGINNINGS,
    QUOTA_GENERATION,
    QuotaPause,
    Refusal,
    first_pause,
    has_run_out,
    next_pause,
)
from durable_batches.lifecycle.records import (
    NOW,
    RESOLVER_POSITION,
    BatchRecord,
    EventRecord,
    ExecutionRecord,
    Micros,
    WorkerId,
)
from durable_batches.lifecycle.spending import (
    NOTHING_SPENT,
    amount_in,
    count_replayed,
    count_spends,
    decode_spends,
)
from durable_batches.lifecycle.stage_counts import StageCounts
from durable_batches.lifecycle.states import ENDED_TAGS, BatchId, Counts
from durable_batches.lifecycle.transitions import check_transition

__all__ = ["DEADLINE_PASSED", "BatchInProgress", "ContradictionError"]

_MOST_SEEN_AGAIN: Final = 32
DEADLINE_PASSED: Final = "the batch's deadline has passed"

_MOST_REFUSED: Final = 100
"""Documents of which it is counted how many pauses they began; of more the first are forgotten."""


class ContradictionError(AssertionError):
    """The counts of a batch contradict each other."""


class BatchInProgress:
    """A batch's record, opened for change.

    Args:
        record: The record.
        now: The store's clock.
        level: The level of the store (`Capabilities.level`): from 2 on, a batch sleeps while nothing of it is due.

    Raises:
        ContradictionError: The record's counts contradict each other; no plan may go on from there.
    """

    __slots__ = (
        "_last_served",
        "_level",
        "_record",
        "_seq",
        "at",
        "batch_id",
        "cancelled",
        "changed",
        "core",
        "definition",
        "earliest_due",
        "ended",
        "events",
        "failed",
        "needs",
        "now",
        "paused",
        "pending",
        "run",
        "running",
        "stage_counts",
        "state",
        "submitter",
        "succeeded",
        "total",
        "waiting",
        "wake_at",
    )

    def __init__(self, record: BatchRecord, now: Micros, level: int = 1, *, check: bool = True) -> None:
        self._record = record
        self._seq = record.seq
        self._last_served = record.served
        self._level = level
        self.batch_id: BatchId = record.batch_id
        self.now: Micros = now
        self.core: BatchCore = from_json(record.core)
        self.at: Micros = max(now, self.core.get("last_event_at", 0))
        """The time of its events. The clocks of two workers differ, and a clock can be set back; a history does not go
        back."""
        self.definition: Definition = decode_definition(self.core["definition"])
        self.stage_counts: StageCounts = StageCounts(self.core["at"])
        self.needs: int = record.needs
        self.run: int = record.run
        self.state: str = record.state
        self.ended: bool = record.state in ENDED_TAGS
        self.submitter: WorkerId | None = record.loader
        """Who is loading the batch; None once it is sealed."""
        self.wake_at: Micros | None = record.wake
        """When a claim has to look at the batch whether it has open slots or not (its deadline); None: never."""
        self.earliest_due: Micros | None = self.core.get("earliest_due", NOW)
        """No execution is due before this; None: none will be by time. `NOW` where it is not known."""
        counts = record.counts
        self.total: int = counts.total
        self.pending: int = counts.pending
        self.running: int = counts.running
        self.waiting: int = counts.waiting
        self.succeeded: int = counts.succeeded
        self.failed: int = counts.failed
        self.cancelled: int = counts.cancelled
        self.paused: bool = record.paused or "operator_pause" in self.core or "budget_pause" in self.core
        """Whether it is paused by an operator, or because its budget is spent."""
        self.events: list[EventRecord] = []
        self.changed: bool = False
        """Whether it is to be written although it has emitted no event."""
        if check:
            self._check_counts()

    # ---- reading -------------------------------------------------------------------------------------------

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
    def unfinished(self) -> int:
        """Documents that have not finished."""
        return self.pending + self.running + self.waiting

    @property
    def phase(self) -> ResolverPhase:
        return self.core["phase"]

    @property
    def open_slots(self) -> int:
        """How many more executions may be owned now."""
        return 0 if self.paused_until is not None else self.slots

    @property
    def slots(self) -> int:
        """How many more executions may be owned, now or when a pause is over by time."""
        if self.paused:
            return 0
        if self.state == "resolving":
            return 1 if self.core["phase"] == "due" else 0
        if not self.pending and not self.waiting:  # as in a batch that is being loaded, or has ended
            return 0
        slots = max(self.definition.config.concurrency - self.running, 0)
        pause = self.quota_pause
        if pause is not None:
            # One execution looks whether the provider serves again.
            return 0 if "look" in pause else min(slots, 1)
        return slots

    @property
    def quota_pause(self) -> QuotaPause | None:
        """The pause for a provider's quota, until a look has shown that it is over; None: there is none."""
        return self.core["pauses"].get("quota") if "pauses" in self.core else None

    @property
    def paused_until(self) -> Micros | None:
        """Until when nothing is claimed because of a pause; None: no pause that ends by itself is in force by now."""
        pause = self.quota_pause
        return pause["until"] if pause is not None and pause["until"] > self.now else None

    @property
    def is_asleep(self) -> bool:
        """Whether a pause lasts, or nothing is pending and nothing that waits is due by now: claims can pass it by."""
        return self.paused_until is not None or self._nothing_is_due

    @property
    def _nothing_is_due(self) -> bool:
        return not self.pending and (self.earliest_due is None or self.earliest_due > self.now)

    @property
    def falls_asleep(self) -> bool:
        """Whether the record says that there may be something to claim, and there is nothing."""
        record = self._record
        was_asleep = record.free == 0 and (record.next_due is None or record.next_due > self.now)
        return self._level >= 2 and not was_asleep and self.is_asleep

    @property
    def percentage(self) -> float:
        """Stages passed of all that there are to pass, in percent.

        A document that succeeded or failed has passed them all; one that was cancelled, those that it had passed then.
        """
        stages = len(self.definition.stages)
        whole = self.total * stages
        if not whole:
            return 100.0
        passed = self._unfinished.passed + (self.succeeded + self.failed) * stages
        return round(100 * passed / whole, 4)

    def entered(self, stage_index: int) -> int:
        """Count the documents that have entered this stage; one that succeeded or failed has been through all."""
        return self.succeeded + self.failed + self._unfinished.entered(stage_index)

    def past(self, stage_index: int) -> int:
        """Count the documents that are past this stage."""
        return self.succeeded + self.failed + self._unfinished.past(stage_index)

    @property
    def _unfinished(self) -> StageCounts:
        """The stages of the documents that have not finished, or had not when the run ended."""
        if not self.cancelled:
            return self.stage_counts
        return StageCounts(self.core.get("cancelled_at", self.stage_counts.stored))

    # ---- a document moves ----------------------------------------------------------------------------------

    def start_document(self, execution: ExecutionRecord, attempt: int) -> None:
        if execution.status == "waiting":
            self.waiting -= 1
        else:
            self.pending -= 1
        self.running += 1
        self._begin_look(execution, attempt)
        self.emit(event_data.document_started(document_id=execution.document_id, attempt=attempt))
        if self.core["started_at"] is None:
            self.core["started_at"] = self.at
        if self.state == "pending":
            self.move(self.definition.stages[self.stage_counts.earliest()])

    def enter_stage(self, execution: ExecutionRecord, stage_index: int) -> None:
        self.stage_counts.enter(execution.mark, stage_index)
        self.emit(
            event_data.stage_progress(
                document_id=execution.document_id,
                stage=self.definition.stages[stage_index],
                current=self.entered(stage_index),
                total=self.total,
                percentage=self.percentage,
            )
        )
        self._advance()

    def complete_document(self, execution: ExecutionRecord, unused_checkpoints: int) -> None:
        self.running -= 1
        self.give_back(execution.position)
        self.succeeded += 1
        self.stage_counts.leave(execution.mark)
        self.emit(
            event_data.document_completed(
                document_id=execution.document_id,
                percentage=self.percentage,
                unused_checkpoints=unused_checkpoints,
            )
        )
        self._forget_refusals(execution)
        if self.is_look(execution):
            self.resume_after_quota()
        self.settle()

    def failure_group(self, fingerprint: str) -> str:
        """Return the group that a failure is counted in: its own, or that of the rest where there are too many."""
        counted = self.core.get("failure_groups")
        if counted is None or counted["run"] != self.run:
            counted = self.core["failure_groups"] = {"run": self.run, "fingerprints": []}
        fingerprints = counted["fingerprints"]
        if fingerprint not in fingerprints:
            if len(fingerprints) >= failure_groups.MOST_GROUPS:
                return failure_groups.REST
            fingerprints.append(fingerprint)
        return fingerprint

    def fail_document(self, execution: ExecutionRecord, error: str, fingerprint: str) -> None:
        self.running -= 1
        self.failed += 1
        self.stage_counts.leave(execution.mark)
        self.emit(
            event_data.document_failed(
                document_id=execution.document_id,
                error=error,
                percentage=self.percentage,
                fingerprint=fingerprint,
            )
        )
        self._forget_refusals(execution)
        self._end_look(execution)
        self.settle()

    def retry_document(self, execution: ExecutionRecord, failures: int, due_at: Micros, error: str) -> None:
        self.running -= 1
        if not self.waiting or self.earliest_due is None or due_at < self.earliest_due:
            self.earliest_due = due_at
        self.waiting += 1
        self._end_look(execution)
        self.emit(
            event_data.document_retrying(document_id=execution.document_id, failures=failures, due=due_at, error=error)
        )

    def release_document(self, execution: ExecutionRecord, reason: ReleaseReason, crashes: int) -> None:
        self.running -= 1
        self.pending += 1
        self._end_look(execution)
        self.emit(event_data.document_released(document_id=execution.document_id, reason=reason, crashes=crashes))

    # ---- what it spends --------------------------------------------------------------------------------------

    @property
    def spent(self) -> Amount:
        """What its calls have spent, over all of its runs."""
        sums = self.core.get("spent")
        return NOTHING_SPENT if sums is None else amount_in(sums["total"])

    def spend(self, spent: str, *, resolver: bool, replayed: bool = False) -> None:
        """Count what a call has spent; `replayed`: what results had cost that were found recorded."""
        spends = decode_spends(spent)
        stages = self.definition.stages
        sums = count_spends(self.core.get("spent"), () if replayed else spends, stages, resolver=resolver)
        if replayed:
            count_replayed(sums, spends)
        self.core["spent"] = sums
        self.changed = True
        if not replayed:
            self._judge_budget()

    def reserve(self, position: int, key: str, amount: Amount) -> bool:
        """Reserve room in the budget for a call; return whether there is any.

        Where no other call runs that could give some back, the budget is spent.
        """
        budget, spent = self.definition.config.budget, self.spent
        if budget is None:
            return True
        if "budget_pause" in self.core:
            return False
        reserved = self.core.get("reserved", {})
        held = NOTHING_SPENT
        for of_call in (each for calls in reserved.values() for each in calls.values()):
            held += amount_in(of_call)
        if budget.has_room(spent + held, amount):
            reserved.setdefault(str(position), {})[key] = [amount.tokens, text_of(amount.cost)]
            self.core["reserved"] = reserved
            self.changed = True
            return True
        if not reserved:
            self._end_budget(f"{spent} are spent, of {budget}, and the next call is estimated to take {amount}")
        return False

    def give_back(self, position: int, key: str | None = None) -> None:
        """Give back the room that is reserved for a call; without a key, for all calls of an execution."""
        reserved = self.core.get("reserved")
        calls = None if reserved is None else reserved.get(str(position))
        if reserved is None or calls is None:
            return
        if key is None:
            calls.clear()
        else:
            calls.pop(key, None)
        if not calls:
            del reserved[str(position)]
        if not reserved:
            del self.core["reserved"]
        self.changed = True

    @property
    def budget_pause(self) -> BudgetPause | None:
        """The pause because its budget is spent; None: there is none."""
        return None if self.ended else self.core.get("budget_pause")

    def _judge_budget(self) -> None:
        """Pause the batch, or fail it, if its budget is spent."""
        budget, spent = self.definition.config.budget, self.spent
        if budget is None or self.ended or "budget_pause" in self.core or not budget.is_reached(spent):
            return
        self._end_budget(f"{spent} are spent, of {budget}")

    def _end_budget(self, note: str) -> None:
        budget = self.definition.config.budget
        assert budget is not None
        if budget.then == "fail":
            self.fail(f"the budget is spent: {note}")
            return
        self.core["budget_pause"] = BudgetPause(since=self.now, note=note)
        self.paused = True
        self.emit(event_data.batch_paused(reason="budget", note=note, until=None))

    def _lift_budget_pause(self) -> bool:
        """End the pause because the budget is spent; return whether there was one."""
        lifted = self.core.pop("budget_pause", None) is not None
        if lifted:
            self.paused = "operator_pause" in self.core
        return lifted

    # ---- possible poison documents -------------------------------------------------------------------------

    @property
    def suspects(self) -> int:
        """Count the unfinished executions that have crashed so often that they are isolated."""
        return self.core.get("suspects", 0)

    @property
    def isolation(self) -> Isolation | None:
        """The isolation of its possible poison documents, while it lasts."""
        isolation = self.core.get("isolation")
        return None if isolation is None or isolation["until"] <= self.now else isolation

    def count_suspect(self, before: int, after: int) -> None:
        """Take note that the crashes of an execution, of which there were `before`, are `after` now."""
        change = (after >= ISOLATED_CRASHES) - (before >= ISOLATED_CRASHES)
        if not change:
            return
        self.changed = True
        suspects = self.suspects + change
        if suspects > 0:
            self.core["suspects"] = suspects
        else:  # of executions that an older library has counted, fewer are known than there are
            self._end_suspicion()

    def isolate(self, crashes: int) -> None:
        """Isolate its possible poison documents, after a crash of one that has crashed this often by now."""
        until = self.now + isolation_micros(crashes)
        isolation = self.isolation
        if isolation is None:
            self.core["isolation"] = Isolation(since=self.now, until=until, worker=None, window=0)
        else:
            isolation["since"] = self.now
            isolation["until"] = max(isolation["until"], until)
        self.changed = True

    def isolate_on(self, worker: WorkerId, window: int) -> None:
        """Have this worker run the possible poison documents while they are isolated."""
        isolation = self.isolation
        if isolation is not None and (isolation["worker"], isolation["window"]) != (worker, window):
            isolation["worker"], isolation["window"] = worker, window
            self.changed = True

    def end_isolation_on(self, worker: WorkerId | None) -> None:
        """Have another worker run them, if it was this one: it releases what it has."""
        isolation = self.isolation
        if isolation is not None and worker is not None and isolation["worker"] == worker:
            isolation["worker"] = None
            self.changed = True

    def note_seen_again(self, session: WorkerId) -> None:
        """Note that the process of a session was seen again, for executions that other workers own at this moment."""
        known = self.core.get("seen_again", [])
        if session not in known:
            self.core["seen_again"] = [*known, session][-_MOST_SEEN_AGAIN:]
            self.changed = True

    def was_seen_again(self, session: WorkerId | None) -> bool:
        """Whether the process of this session was seen again; see `note_seen_again`."""
        return session is not None and session in self.core.get("seen_again", ())

    def _end_suspicion(self) -> None:
        self.core.pop("suspects", None)
        self.core.pop("isolation", None)

    # ---- its configuration ---------------------------------------------------------------------------------

    def update(self, changes: Mapping[str, Any]) -> bool:
        """Change options of its configuration, by their values in JSON; return whether that was done.

        It is not where it has to wait, and where a budget is spent already.

        A new policy judges the failures that are there, and a new deadline the time that has passed, at once.
        """
        before = self.definition
        config = changed(before.config, changes)
        if "budget" in changes and config.budget is not None and config.budget.is_reached(self.spent):
            return False
        if config == before.config:
            return True
        definition = before._replace(config=config)
        if policy_needs_of(definition) > policy_needs_of(before) and self.running:
            # Workers of older libraries may hold them, and would end the batch by what they know of its policy; also
            # where it has a budget, for which nothing waits.
            return False
        needs = needs_of(definition)
        self.needs = max(self.needs, needs)
        pause = self.quota_pause
        if pause is not None:
            pause["needs"] = max(pause["needs"], needs)
        self.definition = definition
        self.core["definition"] = encode_definition(definition)
        if config.deadline != before.config.deadline:
            self._move_deadline(before.config.deadline)
        self.emit(event_data.batch_updated(changes=changes))
        reason = abort_reason(config.failure_policy, self.counts)
        if reason is not None:
            self.fail(reason)
        elif self.wake_at is not None and self.wake_at <= self.now:
            self.fail(DEADLINE_PASSED)
        elif config.budget != before.config.budget and self._lift_budget_pause():
            self.emit(event_data.batch_resumed(reason="budget"))
        return True

    def _move_deadline(self, before: timedelta | None) -> None:
        """Move the deadline, which counts from the submission."""
        submitted = self._record.created_at
        if before is not None and self.wake_at is not None:
            submitted = self.wake_at - _micros(before)
        deadline = self.definition.config.deadline
        self.wake_at = None if deadline is None else submitted + _micros(deadline)

    # ---- a pause by an operator ----------------------------------------------------------------------------

    @property
    def operator_pause(self) -> OperatorPause | None:
        """The pause by an operator; None: there is none."""
        # Where 0.2.0 ended the batch, it left the pause where it was.
        return None if self.ended else self.core.get("operator_pause")

    def pause(self, request_id: str, note: str, running: PauseScope) -> bool:
        """Pause; return whether this request did it.

        While such a pause is in force, only one changes it that lets no more than running calls finish.
        """
        pause = self.operator_pause
        if pause is not None:
            if pause["by"] == request_id:
                return True
            if (pause["running"], running) != ("documents", "calls"):
                return False
        note = event_data.storable(note)
        if pause is not None:
            note = note or pause["note"]
        since = self.now if pause is None else pause["since"]
        self.core["operator_pause"] = OperatorPause(since=since, note=note, running=running, by=request_id)
        self.paused = True
        self.emit(event_data.batch_paused(reason="operator", note=note, until=None, running=running))
        return True

    def resume(self, request_id: str) -> bool:
        """Lift the pause; return whether this request did it.

        A pause for a quota stays until a call has succeeded, but the provider is asked at once: by one execution,
        because a refusal that comes too early must not count against many documents.
        """
        if self.core.get("resumed_by") == request_id:
            return True
        seq = self._seq
        if self.paused and ("operator_pause" in self.core or "budget_pause" not in self.core):
            self._lift_pause()
            self.emit(event_data.batch_resumed(reason="operator"))
        if self.paused_until is not None:
            self._look_now()
        if self._seq == seq:
            return False
        if self._level < 2:
            self.core["resumed_by"] = request_id
        return True

    def _lift_pause(self) -> None:
        self.core.pop("operator_pause", None)
        self.paused = "budget_pause" in self.core

    # ---- a pause for a quota -------------------------------------------------------------------------------

    def is_refused_for_itself(self, execution: ExecutionRecord) -> bool:
        """Whether a document has begun one pause after another, while the calls of others succeeded in between."""
        pause = self.quota_pause
        if execution.position == RESOLVER_POSITION:
            return False
        if pause is not None and not ("judges" in pause and self.is_look(execution)):
            return False
        return self.core.get("refused", {}).get(str(execution.position), 0) >= MOST_BEGINNINGS

    def pause_for_quota(self, execution: ExecutionRecord, refusal: Refusal, *, looked: bool) -> None:
        """Pause because a provider refused a call of an execution for its account.

        Args:
            execution: The execution, which is released.
            refusal: What the provider said.
            looked: Whether the execution looked if the provider serves again.
        """
        patience = self.definition.config.quota_patience
        pause = self.quota_pause
        if pause is None:
            judges = self._only_refused_are_left()
            self._count_refusal(execution)
            pause = first_pause(refusal, self.now, self.needs, patience)
            if judges:
                pause["judges"] = True
        elif looked:
            if "judges" in pause and self.now - pause["since"] >= JUDGES_AFTER:
                self._count_refusal(execution)
            pause = next_pause(pause, refusal, self.now, patience)
        else:
            # It ran when the batch was paused, and tells nothing new.
            return
        if has_run_out(pause, self.now, patience):
            self.fail(f"no call succeeded for {patience}: {pause['note']}")
            return
        self.core["pauses"] = {"quota": pause}
        self.needs = max(self.needs, QUOTA_GENERATION)
        self.emit(event_data.batch_paused(reason="quota", note=pause["note"], until=pause["until"]))

    def resume_after_quota(self) -> None:
        """End the pause: the provider serves again."""
        if self._lift_quota():
            self.emit(event_data.batch_resumed(reason="quota"))

    def answered(self, execution: ExecutionRecord) -> None:
        """Take note that a call of the refused activity succeeded in this execution; only one that looks counts."""
        if self.is_look(execution):
            self._forget_refusals(execution)
            self.resume_after_quota()

    def _look_now(self) -> None:
        """Have the provider asked now, and not later."""
        pause = self.quota_pause
        if pause is not None:
            pause["until"] = max(self.now, pause["since"])
            self.emit(event_data.batch_paused(reason="quota", note=pause["note"], until=pause["until"]))

    def _lift_quota(self) -> bool:
        pause = self.quota_pause
        if pause is None:
            return False
        self.needs = pause["needs"]
        del self.core["pauses"]
        return True

    def _begin_look(self, execution: ExecutionRecord, attempt: int) -> None:
        pause = self.quota_pause
        if pause is not None:
            pause["look"] = execution.position, attempt

    def is_look(self, execution: ExecutionRecord) -> bool:
        """Whether this attempt of an execution looks if the provider serves again."""
        pause = self.quota_pause
        return pause is not None and tuple(pause.get("look", ())) == (execution.position, execution.attempt)

    def _end_look(self, execution: ExecutionRecord) -> None:
        # Whatever ends an attempt that has not finished its document comes by here.
        self.give_back(execution.position)
        pause = self.quota_pause
        if pause is not None and self.is_look(execution):
            pause.pop("look", None)

    def _only_refused_are_left(self) -> bool:
        """Whether each unfinished document has begun a pause, and calls of others succeeded since."""
        return 0 < self.unfinished == len(self.core.get("refused", {}))

    def _count_refusal(self, execution: ExecutionRecord) -> None:
        refused = self.core.setdefault("refused", {})
        if len(refused) >= _MOST_REFUSED:
            del refused[next(iter(refused))]
        refused[str(execution.position)] = refused.get(str(execution.position), 0) + 1

    def _forget_refusals(self, execution: ExecutionRecord) -> None:
        refused = self.core.get("refused")
        if refused is not None and refused.pop(str(execution.position), None) is not None and not refused:
            self.core.pop("refused", None)

    # ---- the batch moves -----------------------------------------------------------------------------------

    def seal(self, submitter: WorkerId, total: int) -> None:
        self.submitter = None
        self.core["sealed_by"] = submitter
        self.total = self.pending = total
        self.stage_counts.add(total)
        deadline = self.definition.config.deadline
        if deadline is not None:
            self.wake_at = self.now + _micros(deadline)
        self.emit(event_data.batch_created(workflow=self._record.workflow, version=self._record.version, total=total))
        self.settle()

    def settle(self) -> None:
        """Move on after a document finished: the policy may end the batch, or all documents have finished."""
        reason = abort_reason(self.definition.config.failure_policy, self.counts)
        if reason is not None:
            self.fail(reason)
        elif self.unfinished:
            self._advance()
        elif self.total and self.failed == self.total:
            self.fail("all documents failed")
        elif self.definition.resolver:
            self.move("resolving")
            self.core["phase"] = "due"
        else:
            self.complete()

    def start_resolver(self, execution: ExecutionRecord, attempt: int) -> None:
        self.core["phase"] = "running"
        self._begin_look(execution, attempt)
        self.emit(event_data.resolution_started(attempt=attempt))

    def retry_resolver(self, execution: ExecutionRecord, error: str, due_at: Micros) -> None:
        self.core["phase"] = "due"
        self._end_look(execution)
        self.earliest_due = due_at
        self.emit(event_data.resolution_failed(error=error, due=due_at))

    def release_resolver(self, execution: ExecutionRecord, reason: ReleaseReason) -> None:
        self.core["phase"] = "due"
        self._end_look(execution)
        self.emit(event_data.resolution_released(reason=reason))

    def complete_resolver(self) -> None:
        self.emit(event_data.resolution_completed())
        self.complete()

    def fail_resolver(self, error: str) -> None:
        self.emit(event_data.resolution_failed(error=error, due=None))
        self.fail(f"the resolver failed: {error}")

    def complete(self) -> None:
        self._end("completed")
        self.emit(event_data.batch_completed(counts=self.counts))

    def fail(self, error: str) -> None:
        self._end("failed")
        self.core["error"] = event_data.storable(error)
        self.emit(event_data.batch_failed(counts=self.counts, error=error))

    def cancel(self, request_id: str, reason: str) -> None:
        self._end("cancelled")
        self.core["cancelled_by"] = request_id
        self.core["reason"] = event_data.storable(reason)
        self.emit(event_data.batch_cancelled(counts=self.counts, reason=reason))

    def move(self, state: str) -> None:
        """Go to another state, as the table allows."""
        check_transition(self.batch_id, self.definition.stages, self.state, state)
        self.emit(event_data.state_changed(previous=self.state, state=state))
        self.state = state

    def _end(self, state: str) -> None:
        # What has not finished ends with its run. The rows of those documents are left as they are (there may be a
        # million): an unfinished document of an ended run *is* cancelled, and readers say so.
        if self.unfinished:
            self.core["cancelled_at"] = list(self.stage_counts.stored)
        self.cancelled += self.unfinished
        self.pending = self.running = self.waiting = 0
        self.stage_counts.clear()
        self.core["ended_at"] = self.at
        self.core["phase"] = "idle"
        self._end_suspicion()
        self.core.pop("seen_again", None)
        self._lift_quota()
        self.core.pop("budget_pause", None)
        self.core.pop("reserved", None)
        self._lift_pause()
        self.core.pop("resumed_by", None)
        self.wake_at = None
        self.move(state)
        self.ended = True

    def _advance(self) -> None:
        """Follow the slowest document into its stage, but never back; where none is unfinished, stay."""
        stages = self.definition.stages
        if self.state in stages and self.unfinished:
            earliest = self.stage_counts.earliest()
            if earliest > stages.index(self.state):
                self.move(stages[earliest])

    # ---- writing -------------------------------------------------------------------------------------------

    def emit(self, event: EventData) -> None:
        """Append an event of this batch."""
        tag, fields = event
        self._seq = seq = self._seq + 1
        self.events.append(make_record(EventRecord, (self.batch_id, seq, self.at, tag, to_json(fields))))

    def serve(self, turn: int) -> None:
        """Note the turn at which a claim took from this batch; later than the last one, whatever the clock says."""
        self._last_served = max(turn, self._last_served + 1)

    def closed(self) -> BatchRecord:
        """Encode the record as it is to be written."""
        self._check_counts()
        self.core["at"] = self.stage_counts.stored
        if self.events:
            self.core["last_event_at"] = self.at
        free, next_due = self._claimable()
        return replace(
            self._record,
            loader=self.submitter,
            state=self.state,
            paused=self.paused,
            counts=self.counts,
            seq=self._seq,
            free=free,
            wake=self.wake_at,
            served=self._last_served,
            core=to_json(self.core),
            ended_at=self.core["ended_at"],
            next_due=next_due,
            needs=self.needs,
        )

    def _claimable(self) -> tuple[int, Micros | None]:
        """Compute `free` and `next_due`, and keep in the core what the next plan has to know for them."""
        self.core.pop("earliest_due", None)
        if self._level < 2:
            # Claims go on looking at a batch that is paused for a while, and take nothing.
            return self.slots, None
        # While something is pending the batch is awake; the claim that takes the last of it knows what is due next.
        waits = self.waiting or self.core["phase"] == "due"
        if waits and not self.pending and self.earliest_due != NOW:
            self.core["earliest_due"] = self.earliest_due
        if not self.slots or not self.is_asleep:
            return self.slots, None
        until = self.paused_until
        if until is None or (self._nothing_is_due and self.earliest_due is None):
            return 0, self.earliest_due
        return 0, max(until, self.earliest_due or NOW) if self._nothing_is_due else until

    def _check_counts(self) -> None:
        """Assert, where counts are read and where they are written, that they agree with each other."""
        contradiction = self.contradiction
        if contradiction is not None:
            raise ContradictionError(contradiction)

    @property
    def contradiction(self) -> str | None:
        """How the counts contradict each other; None: they do not."""
        unfinished = self.pending + self.running + self.waiting
        if unfinished + self.succeeded + self.failed + self.cancelled != self.total:
            return f"the counts of batch {self.batch_id!r} do not sum to their total: {self.counts}"
        if self.stage_counts.unfinished != unfinished:
            return (
                f"the stages of batch {self.batch_id!r} hold {self.stage_counts.stored}, which is not its unfinished "
                f"documents: {self.counts}"
            )
        return None


def _micros(duration: timedelta) -> Micros:
    return duration // timedelta(microseconds=1)
