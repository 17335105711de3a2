"""An attempt of an execution: run the workflow (or resolver), and own its activity calls.

The attempt ends in exactly one fact: succeeded, failed or released. Before that fact, every call that it made has
finished and is recorded, or was cancelled and awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, NoReturn

from durable_batches.clock import Deadline
from durable_batches.codec.codec import payload_of
from durable_batches.errors import (
    ActivityDefinitionError,
    ActivityFailedError,
    DocumentTimeoutError,
    FactRejectedError,
    NotInWorkflowError,
    PayloadError,
    place_of,
)
from durable_batches.forked import end_child
from durable_batches.lifecycle.amounts import text_of
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    CallReserved,
    ProviderAnswered,
    StageEntered,
)
from durable_batches.lifecycle.failures import ActivityFailure, line_of
from durable_batches.lifecycle.primitives import make_record
from durable_batches.lifecycle.quota import Refusal
from durable_batches.lifecycle.records import CheckpointRecord, ExecutionRecord
from durable_batches.lifecycle.records import Refusal as FactRefusal
from durable_batches.lifecycle.spending import NO_SPENDS, decode_spends, encode_spends
from durable_batches.lifecycle.states import Stage
from durable_batches.runtime.attempt_result import (
    AttemptFailed,
    AttemptStopped,
    AttemptSucceeded,
    Crash,
    StopReason,
    failed,
    note_checkpoint,
)
from durable_batches.runtime.bound_call import BoundCall
from durable_batches.runtime.call import Call, RunningCall
from durable_batches.runtime.checkpoint import Defaults, Recorded
from durable_batches.runtime.classify import RemoteError, Verdict
from durable_batches.runtime.context import ExecutionContext, enter_activity, enter_workflow, leave
from durable_batches.runtime.definition import ActivityDefinition
from durable_batches.runtime.elsewhere import CallLostError
from durable_batches.runtime.identity import Identities
from durable_batches.runtime.limited import estimated
from durable_batches.runtime.overloads import PATIENCE_SECONDS
from durable_batches.runtime.resources import Resources
from durable_batches.runtime.rest import Loan, Rest
from durable_batches.runtime.tracebacks import own_attribute, set_context, trim
from durable_batches.tasks import is_closed_by, running_loop

__all__ = ["Attempt"]

_ROOM_SECONDS: Final = 0.5
"""After which a call asks again for room in a budget."""

_STOPS: Final[Mapping[StopReason, int]] = {"paused": 0, "shutdown": 1, "quota": 2, "crash": 2, "ended": 3, "fenced": 3}
"""Which reason stands where an attempt is stopped for several: the greatest, and of equals the first."""


class Attempt:
    """An attempt. Everything but `run` is called by code that `run` runs, or to stop it.

    Args:
        execution: The execution.
        stage_index: Returns a stage's index in the machine, or raises ForeignStageError; None if the execution has
            no stages (the resolver).
        checkpoints: The checkpoints of earlier attempts.
        resources: Shared with other attempts.
        timeout: The timeout of the attempt, in seconds.
        metadata: The batch's labels.
        defaults: The defaults of its activities when the batch was submitted.
        looks_for: The name of the activity that was refused, where this attempt looks if the provider serves again: it
            makes one call at a time until one of that activity has succeeded. None: it does not.
        budgeted: Whether its batch has a budget, in which calls with an estimate reserve room.
    """

    def __init__(
        self,
        execution: ExecutionRecord,
        *,
        stage_index: Callable[[type[Stage], str | None], int] | None,
        checkpoints: list[CheckpointRecord],
        resources: Resources,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        defaults: Mapping[str, Defaults] | None = None,
        looks_for: str | None = None,
        budgeted: bool = False,
    ) -> None:
        self.execution = execution
        self._looks_for = looks_for
        self._budgeted = budgeted
        self._is_look = looks_for is not None
        self._turn: asyncio.Lock | None = None if looks_for is None else asyncio.Lock()
        self._refusal: Refusal | None = None
        self._crash: Crash | None = None
        self._parked: set[asyncio.Future[None]] = set()
        self._drains = False
        self._identity = (execution.batch_id, execution.run, execution.position, execution.attempt)
        self._metadata = metadata or {}
        self._defaults = defaults or {}
        self._context: ExecutionContext | None = None
        self.recorded: Recorded = Recorded(checkpoints)
        self._index_of = stage_index
        self._stage_index = self._reported = execution.mark
        self._stage_of_attempt = -1
        self._resources = resources
        self._timeout = timeout
        self._task: asyncio.Task[Any] | None = None
        self._stopping: StopReason | None = None
        self._ended = False
        self._calls: set[Call] = set()
        self._calls_made = 0
        self._identities = Identities()
        self._idle: asyncio.Future[None] | None = None
        self._cancel_when_idle = False
        self._unwound = False
        self._failures: dict[str, tuple[int, asyncio.Task[Any] | None]] = {}
        self._rest: Rest | None = None
        self._deadline: Deadline | None = None
        self._wait_for_permits = 0
        """How many of its calls wait for permits."""
        self._unrecorded: list[str] = []
        """What calls have spent that ended without a record."""
        self._replayed: list[str] = []
        """What the results had cost that were found recorded."""

    @property
    def context(self) -> ExecutionContext:
        """See `WorkflowScope`."""
        context = self._context
        if context is None:
            execution = self.execution
            context = self._context = ExecutionContext(
                batch_id=execution.batch_id,
                document_id=execution.document_id,
                ordinal=execution.position,
                attempt=execution.attempt,
                run=execution.run,
                metadata=self._metadata,
            )
        return context

    @property
    def crashes(self) -> int:
        """See `WorkflowScope`."""
        return self.execution.crashes

    @property
    def is_stopping(self) -> bool:
        """See `WorkflowScope`."""
        return self._stopping is not None

    # ---- its life ------------------------------------------------------------------------------------------

    async def run(
        self, body: Callable[[], Coroutine[Any, Any, Any]], prepare: Callable[[], Awaitable[object]] | None = None
    ) -> AttemptSucceeded | AttemptFailed | AttemptStopped:
        """Run the body in the current task, until it and all of its calls have finished.

        Args:
            body: The workflow or resolver.
            prepare: Awaited before it, outside of the timeout; what this raises is raised.
        """
        self._task = asyncio.current_task()
        outcome = await self._prepare(prepare) or await self._run(body)
        if self._stopping is None:
            await self._end_foreign_cancellation()
        if not isinstance(outcome, AttemptStopped):
            # The stage that it entered last, if no commit has recorded it yet.
            self._report_stage()
        self._ended = True
        stopped = isinstance(outcome, AttemptStopped)
        grace = (None if self._drains else 0.0) if stopped else self._resources.grace
        while self._calls:
            try:
                await self._settle(grace)
            except asyncio.CancelledError:
                # Stopped at its very end, or cancelled by others: its result stands, unless the batch has continued
                # without it.
                grace = 0.0
        for parked in self._parked:
            parked.cancel()
        if self._rest is not None:
            self._rest.end_at_once()
        if self._stopping is not None and (self._stopping not in ("paused", "shutdown") or self._unwound):
            return AttemptStopped(self._stopping, self._refusal, self._crash)
        return outcome

    async def _prepare(self, prepare: Callable[[], Awaitable[object]] | None) -> AttemptStopped | None:
        """Wait for everything that the body needs; return whether the attempt was stopped meanwhile."""
        if self._stopping is None:
            try:
                if prepare is not None:
                    await prepare()
                if not self._resources.lease.holds():
                    await self._resources.lease.regained()
            except asyncio.CancelledError:
                if self._stopping is None:
                    raise
        return None if self._stopping is None else AttemptStopped(self._stopping)

    async def _run(
        self, body: Callable[[], Coroutine[Any, Any, Any]]
    ) -> AttemptSucceeded | AttemptFailed | AttemptStopped:
        tokens = enter_workflow(self)
        deadline = self._deadline = None if self._timeout is None else Deadline(self._resources.clock, self._timeout)
        try:
            if deadline is None:
                value = await body()
            else:
                async with deadline:
                    value = await body()
        except asyncio.CancelledError as error:
            if (reason := self._stop_reason()) is not None:
                return AttemptStopped(reason)
            # Not by its worker: by its own code, by something that it waited for, or by a helper that cancels a task
            # and does not call uncancel(). Whatever it was, nothing else ends the attempt.
            return self._failed(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if is_closed_by(error, self._task):
                raise
            self._end_if_child(error)
            if (reason := self._stop_reason()) is not None:
                # An error that it raised because it was stopped is not a failure of the document.
                return AttemptStopped(reason)
            if deadline is not None and deadline.expired and isinstance(error, TimeoutError):
                assert self._timeout is not None
                batch_id, document_id = self.execution.batch_id, self.execution.document_id
                late = self._failed(DocumentTimeoutError(batch_id, document_id, self._timeout))
                # Shows where it was at that moment; not part of the failure.
                late.error.__cause__ = error.__cause__
                trim(late.error)
                return late
            return self._failed(error)
        finally:
            leave(tokens)
        self._end_if_child(None)
        return AttemptSucceeded(value, self.recorded.unused)

    def _end_if_child(self, error: BaseException | None) -> None:
        """End this process where the body has forked it: it has returned in the child, or raised this."""
        if self._resources.lease.is_inherited:
            end_child(f"the workflow of {place_of(self.execution.batch_id, self.execution.document_id)}", error)

    def _stop_reason(self) -> StopReason | None:
        return self._stopping

    def stop(self, reason: StopReason, *, drain: bool = False) -> None:
        """Stop the attempt. No activity starts from here on.

        With `drain`, calls that are running may finish and be recorded first; a second stop without it ends them.
        """
        if reason == self._stopping and reason != "shutdown":
            # Already cancelled; a second cancellation would only interrupt its clean-up.
            return
        if self._stopping is None or _STOPS[reason] > _STOPS[self._stopping]:
            self._stopping = reason
        self._drains = drain
        if drain:
            for call in self._calls:
                call.stop_waiting()
        if drain and self._calls:
            self._cancel_when_idle = True
        elif self._task is not None:
            self._task.cancel()

    async def _end_foreign_cancellation(self) -> None:
        """Drop cancellations that were not this library's, so that they end nothing but the body."""
        task = self._task
        if task is None or not task.cancelling():
            return
        # One that the body has requested, and not awaited, is raised by the next await.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while task.cancelling():
            task.uncancel()

    async def _settle(self, grace: float | None) -> None:
        """Wait a number of seconds for the calls that the body left running; then cancel and await them.

        With None, wait as long as they take.
        """
        self._idle = asyncio.get_running_loop().create_future()
        # Once each: a second cancellation would interrupt their clean-up.
        timer = None if grace is None else self._resources.clock.call_later(grace, self._cancel_calls)
        try:
            await self._idle
        finally:
            if timer is not None:
                timer.cancel()
            self._idle = None

    def _cancel_calls(self) -> None:
        for call in self._calls:
            call.task.cancel()

    @property
    def looks(self) -> bool:
        """Whether it began in order to look if a provider serves again."""
        return self._is_look

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that runs it; None before it has started."""
        return self._task

    @property
    def calls(self) -> list[RunningCall]:
        """The running activity calls, including those that wait for their next attempt. On any thread."""
        # Copied in one step: the event loop may change it meanwhile.
        return [call.seen() for call in list(self._calls)]

    @property
    def spent(self) -> str | None:
        """What its calls have spent that ended without a record; None: nothing."""
        return _joined(self._unrecorded)

    @property
    def replayed(self) -> str | None:
        """What the results had cost that it found recorded; None: nothing."""
        return _joined(self._replayed)

    # ---- stages ----------------------------------------------------------------------------------------------

    def enter_stage(self, stage: type[Stage]) -> None:
        """See `WorkflowScope`."""
        self._enter(stage, None)

    def _enter(self, stage: type[Stage], activity: str | None) -> None:
        if self._index_of is None:
            return
        index = self._index_of(stage, activity)
        if index > self._stage_of_attempt:
            self._stage_of_attempt = index
        if index > self._stage_index and not self._ended:
            if self._stage_index == self._reported:
                # The result of an activity that returns immediately carries its stage; most do not return so soon.
                self._resources.recorder.before_commit(self._report_stage)
            self._stage_index = index

    def _report_stage(self) -> None:
        if self._stage_index > self._reported and not self._ended:
            self._reported = self._stage_index
            execution = self.execution
            self._resources.recorder.post(
                StageEntered(
                    execution.batch_id, execution.run, execution.position, execution.attempt, self._stage_index
                )
            )

    # ---- waiting ---------------------------------------------------------------------------------------------

    def rests(self, *, is_call: bool, for_batch: bool) -> AbstractAsyncContextManager[None]:
        """See `WorkflowScope`."""
        rest = self._resting()
        return nullcontext() if rest is None else rest.waiting(is_call=is_call, for_batch=for_batch)

    def waits_for_permit(self, calls: int) -> None:
        """See `WorkflowScope`."""
        self._wait_for_permits += calls
        self._look_at_time()

    def _look_at_time(self) -> None:
        """Have the timeout stand still while all that goes on are waits for permits: nothing of it takes long then."""
        if self._deadline is not None:
            if 0 < self._wait_for_permits == len(self._calls):
                self._deadline.hold()
            else:
                self._deadline.go_on()

    @property
    def has_lent(self) -> bool:
        """Whether its slot is lent."""
        return self._rest is not None and self._rest.lent

    def lends(self) -> Loan:
        """See `WorkflowScope`."""
        return Loan(self._resting())

    def _resting(self) -> Rest | None:
        if self._ended or self._task is None or self._task.get_loop() is not running_loop():
            # What waits is a thread's own event loop.
            return None
        if self._rest is None:
            self._rest = Rest(self._resources.slots, lambda: len(self._calls))
        return self._rest

    async def _end_rest(self, rest: Rest) -> None:
        """Wait until the slot is back that is lent because other parts of the execution only wait."""
        await rest.end()
        if self._stopping is not None or self._ended:
            self._unwound = self._unwound or not self._ended
            raise asyncio.CancelledError

    def waiting_for_batch(self) -> AbstractAsyncContextManager[None]:
        """See `durable_batches.runtime.context.waiting_for_batch`."""
        return self.rests(is_call=False, for_batch=True)

    # ---- activities ------------------------------------------------------------------------------------------

    async def call(self, bound: BoundCall) -> Any:
        """See `WorkflowScope`."""
        activity, definition = bound.activity, bound.definition
        if self._stopping is not None or self._ended:
            # The attempt has finished: a late caller is unwound.
            self._unwound = self._unwound or not self._ended
            raise asyncio.CancelledError
        task, own = asyncio.current_task(), self._task
        if task is not own and own is not None and own.get_loop() is not asyncio.get_running_loop():
            raise NotInWorkflowError(
                f"activity {activity.name!r} was called in another event loop than its workflow's, where it cannot be "
                "recorded; call it there: asyncio.run_coroutine_threadsafe(activity(...), loop)"
            )
        try:
            base = bound.base_key_as_of(self._defaults) if self._defaults else bound.base_key()
            self._identities.check(bound, base)
        except PayloadError as error:
            error.locate(self.execution.batch_id, self.execution.document_id)
            raise
        if activity.explicit_key is not None or definition.key is not None:
            self._check_input(bound, base)
        if activity.stage is not None:
            self._enter(activity.stage, activity.name)
        self._calls_made += 1
        if self._failures:
            self._went_on()
        checkpoint = self.recorded.take(base)
        if checkpoint is None and self.recorded.unused:
            checkpoint = self._recorded_before(bound, base)
        if checkpoint is not None:
            return self._replay(definition, checkpoint)
        if self._rest is not None and self._rest.lent:
            await self._end_rest(self._rest)
        if self._turn is not None:
            await self._wait_for_turn(self._turn)
        call = Call(self._resources, bound, self.recorded.new_key(base), self, task)
        call.stage_index = self._stage_of_attempt
        spent: str | None = None
        self._calls.add(call)
        if self._wait_for_permits:
            self._look_at_time()
        try:
            reserved = self._budgeted and await self._reserve(call)
            if (
                activity.is_plain
                and activity.timeout is None
                and definition.replacement is None
                and not self._resources.middleware
            ):
                # The common case, inlined: `Call.once` and `_record`, without a coroutine each.
                tokens = enter_activity(call)
                call.attempt = 1
                payload, value = b"", None
                raised: BaseException | None = None
                try:
                    # Last of all: the process may be made to stand still between this and the body.
                    if self._resources.clock.boot() >= self._resources.lease.until:
                        await call.wait_for_lease()
                    payload, value = definition.codec.recoded(await definition.fn(*bound.args, **bound.kwargs))
                except BaseException as error:  # noqa: BLE001  (judged by `_try`)
                    raised = error
                finally:
                    leave(tokens)
                if raised is not None:
                    payload, value = await self._try(call, raised)
            else:
                payload, value = await self._try(call)
            if self._resources.lease.is_inherited:
                call.end_child(None)
            if self._resources.overloads.since:
                self._resources.overloads.served(self.execution.batch_id, activity.name)
            if self._looks_for == activity.name:
                self._report_answer()
            self._reported = mark = self._stage_index
            spent = call.take_spends() or (NO_SPENDS if reserved else None)
            refusal = await self._resources.recorder.record(
                make_record(
                    ActivityCompleted,
                    (*self._identity, call.key, payload, mark, call.stage_index, spent),
                )
            )
            if refusal is not None:
                self._superseded(refusal)
            self._resources.stats.activities_run += 1
            return value
        except FactRejectedError:
            if spent is not None:
                # The result cannot be stored; it was paid for all the same.
                self._unrecorded.append(spent)
            raise
        except asyncio.CancelledError:
            # If the body swallows this and returns, its result lacks the result of this call.
            self._unwound = self._unwound or (self._stop_reason() is not None and not self._ended)
            raise
        finally:
            self._calls.discard(call)
            self._keep_spends(call)
            if self._wait_for_permits:
                self._look_at_time()
            if self._turn is not None:
                self._turn.release()
            if call.reported:
                self._resources.reports.pop(call.identity, None)
            if self._rest is not None:
                self._rest.look()
            if not self._calls:
                self._became_idle()

    def _recorded_before(self, bound: BoundCall, base: str) -> CheckpointRecord | None:
        """Return the next checkpoint of the key that the call had in earlier versions, if there is one."""
        before = bound.base_key_before(self._defaults)
        return None if before is None or before == base else self.recorded.take_before(before)

    # ---- a provider that refuses ----------------------------------------------------------------------------

    async def _wait_for_turn(self, turn: asyncio.Lock) -> None:
        """Wait until no other call runs: while the attempt looks if the provider serves again, one is enough."""
        await turn.acquire()
        stopped = self._stopping is not None or self._ended
        if stopped or self._turn is None:
            # All may run by now, or none.
            turn.release()
        if stopped:
            self._unwound = self._unwound or not self._ended
            raise asyncio.CancelledError

    def _report_answer(self) -> None:
        """Report that the provider serves again, and let all calls run."""
        turn, self._turn, self._looks_for = self._turn, None, None
        assert turn is not None
        turn.release()
        self._resources.recorder.post(ProviderAnswered(*self._identity))

    async def _refused(self, call: Call, error: BaseException, verdict: Verdict) -> NoReturn:
        """Unwind the attempt because a provider refused a call for its account; the workflow does not see the error."""
        if self._refusal is None:
            note = line_of(error)
            wish = verdict.retry_after
            self._refusal = Refusal(
                activity=call.bound.activity.name,
                note=f"{verdict.note}: {note}" if verdict.note else note,
                retry_after=None if wish is None else int(wish.total_seconds() * 1_000_000),
            )
        await self._unwind(call, "quota")

    async def _crashed(self, call: Call, error: CallLostError) -> NoReturn:
        """Unwind the attempt because its executor has lost a call too often: it counts as a crash of the document."""
        if self._crash is None:
            self._crash = Crash(call.bound.activity.name, str(error))
        await self._unwind(call, "crash")

    async def _unwind(self, call: Call, reason: StopReason) -> NoReturn:
        """Stop the attempt for one of its calls; no code of the workflow goes on after that call.

        Other calls that are running may finish and be recorded. The code that awaits this one waits until then.
        """
        parked = asyncio.get_running_loop().create_future()
        self._parked.add(parked)
        self._calls.discard(call)
        self._keep_spends(call)
        if self._ended or self._stopping is not None:
            # It is being unwound already, or over.
            if not self._calls:
                self._became_idle()
        else:
            self.stop(reason, drain=True)
        self._unwound = self._unwound or not self._ended
        await parked
        raise asyncio.CancelledError

    async def _reserve(self, call: Call) -> bool:
        """Wait until there is room for a call in the batch's budget; return whether some is reserved.

        Raises:
            CancelledError: The attempt is being stopped: the batch was paused, say.
        """
        amount = estimated(call.bound.activity.estimate, call.bound)
        if not amount.tokens and not amount.cost:
            return False
        fact = CallReserved(*self._identity, call.key, amount.tokens, text_of(amount.cost))
        while True:
            refusal = await self._resources.recorder.record(fact)
            if refusal not in (None, "budget"):
                self._superseded(refusal)
            if self._stopping is not None:
                raise asyncio.CancelledError
            if refusal is None:
                return True
            await call.wait(_ROOM_SECONDS)

    def _keep_spends(self, call: Call) -> None:
        """Keep what an ended call has spent and nothing has recorded, for the fact that ends the attempt."""
        spent = call.end_spends()
        if spent is not None:
            self._unrecorded.append(spent)

    def _check_input(self, bound: BoundCall, base: str) -> None:
        digest = bound.input_digest()
        if digest is not None:
            batch_id, document_id = self.execution.batch_id, self.execution.document_id
            self.recorded.check_input(base, digest, bound.activity.name, batch_id, document_id)

    def _became_idle(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        if self._cancel_when_idle and self._task is not None and not self._ended:
            self._cancel_when_idle = False
            self._task.cancel()

    def _replay(self, definition: ActivityDefinition[Any], checkpoint: CheckpointRecord) -> Any:
        self._resources.stats.activities_replayed += 1
        if checkpoint.spent is not None:
            self._replayed.append(checkpoint.spent)
        batch_id, document_id = self.execution.batch_id, self.execution.document_id
        if checkpoint.kind == "succeeded":
            with payload_of(batch_id, document_id):
                return definition.codec.decode(checkpoint.payload)
        error = ActivityFailure.decode(checkpoint.payload).error(batch_id, document_id)
        self._note_failure(error, checkpoint.key)
        # Siblings in a `gather`, whose calls are made in this turn of the loop, have not gone on after it.
        asyncio.get_running_loop().call_soon(self._note_siblings, checkpoint.key)
        raise error

    async def _try(self, call: Call, first: BaseException | None = None) -> tuple[bytes, Any]:
        """Call the function until it returns or its attempts are used up; return the encoded and the decoded result."""
        activity = call.bound.activity
        while True:
            try:
                if first is not None:
                    raised, first = first, None
                    context = own_attribute(raised, "__context__")
                    try:
                        raise raised
                    finally:
                        # What it was raised from, and not what the workflow was handling at this moment.
                        set_context(raised, context)
                return await call.once()
            except asyncio.CancelledError:
                if call.task.cancelling() > call.cancelled_before or self._stopping is not None or self._ended:
                    raise
                # This task was not cancelled; something that the function awaited was.
                error: BaseException = RuntimeError("the activity's own work was cancelled")
            except KeyboardInterrupt:
                raise
            except BaseException as raised:
                if is_closed_by(raised, call.task):
                    raise
                error = raised
            if self._resources.lease.is_inherited:
                call.end_child(error)
            if isinstance(error, CallLostError):
                await self._crashed(call, error)
            verdict = self._judge(call, error)
            if verdict.kind == "overloaded":
                if self._stopping is not None:
                    raise asyncio.CancelledError
                verdict = self._judge_overload(call, verdict)
            if verdict.kind == "overloaded":
                self._refuse_changed_input(call, error)
                await call.wait_for_provider(error, verdict)
                continue
            if verdict.kind == "quota":
                await self._refused(call, error, verdict)
            delay = activity.retry.delay_of(verdict, call.attempt, self._resources.clock.jitter())
            if delay is None:
                retryable = verdict.kind != "never"
                if isinstance(error, RemoteError):
                    failure = error.failure._replace(attempts=call.attempt, retryable=retryable)
                else:
                    failure = ActivityFailure.of(activity.name, error, call.attempt, retryable=retryable)
                trim(error)
                raise await self._recorded_failure(call, failure) from error
            self._refuse_changed_input(call, error)
            if self._stopping is not None:
                # Nothing waits for another attempt while the attempt of the document is being stopped.
                raise asyncio.CancelledError from error
            call.log_retry(error, delay.total_seconds())
            await call.wait(delay.total_seconds())

    def _refuse_changed_input(self, call: Call, error: BaseException) -> None:
        """Refuse to try again with what a failed attempt has made of the arguments: the key is that of others."""
        bound = call.bound
        if bound.activity.explicit_key is not None or bound.definition.key is not None:
            return
        try:
            changed = not call.key.startswith(f"{bound.base_key_as_of(self._defaults)}#")
        except PayloadError:
            changed = True
        if changed:
            raise ActivityDefinitionError(
                f"activity {bound.activity.name!r} changed its arguments in place before it failed, and is not "
                "retried with other input than it was called with; have it change a copy"
            ) from error

    def _judge(self, call: Call, error: BaseException) -> Verdict:
        clock = self._resources.clock
        return call.bound.activity.retry.judge(error, call.classifier, clock.now() / 1_000_000)

    def _judge_overload(self, call: Call, verdict: Verdict) -> Verdict:
        """Judge a provider that is overloaded like one that refuses for its account, once it has not served for long.

        The same where this attempt looks if it serves again: a look is one call, and does not wait.
        """
        batch_id, activity, resources = self.execution.batch_id, call.bound.activity.name, self._resources
        if activity == self._looks_for:
            return replace(verdict, kind="quota")
        seconds = resources.overloads.refused(batch_id, activity, resources.clock.boot())
        if seconds < PATIENCE_SECONDS:
            return verdict
        # From here on the batch remembers it; the hour begins anew when the pause is over.
        resources.overloads.served(batch_id, activity)
        return Verdict(
            kind="quota",
            retry_after=verdict.retry_after,
            note=f"no call served for {timedelta(seconds=round(seconds))}",
        )

    async def _recorded_failure(self, call: Call, failure: ActivityFailure) -> ActivityFailedError:
        execution, key = self.execution, call.key
        error = failure.error(execution.batch_id, execution.document_id)
        # In the grace period after the attempt only results are recorded: no code can catch a failure any more.
        if not self._ended:
            # Noted immediately, since a sibling may end the attempt before this is committed; and again afterwards.
            self._note_failure(error, key)
            spent = call.take_spends() or (NO_SPENDS if self._budgeted else None)
            try:
                refusal = await self._resources.recorder.record(
                    ActivityFailed(
                        execution.batch_id,
                        execution.run,
                        execution.position,
                        execution.attempt,
                        key,
                        failure.encode(),
                        call.stage_index,
                        spent,
                    )
                )
            except FactRejectedError:
                if spent is not None:
                    # The failure cannot be stored; it was paid for all the same.
                    self._unrecorded.append(spent)
                raise
            if refusal is not None:
                self._superseded(refusal)
            self._note_failure(error, key)
        return error

    def _superseded(self, refusal: FactRefusal) -> None:
        """Unwind an attempt of which the store has refused a fact."""
        self.stop("ended" if refusal == "ended" else "fenced")
        raise asyncio.CancelledError

    # ---- failures --------------------------------------------------------------------------------------------

    def _note_failure(self, error: ActivityFailedError, key: str) -> None:
        self._failures[key] = self._calls_made, asyncio.current_task()
        note_checkpoint(error, key)

    def _note_siblings(self, key: str) -> None:
        noted = self._failures.get(key)
        if noted is not None:
            self._failures[key] = self._calls_made, noted[1]

    def _went_on(self) -> None:
        """Drop the failures that this task has caught: it makes another call after them, a replayed one perhaps."""
        task = asyncio.current_task()
        self._failures = {key: noted for key, noted in self._failures.items() if noted[1] is not task}

    def _failed(self, error: BaseException) -> AttemptFailed:
        last = (key for key, (made, _) in self._failures.items() if made == self._calls_made)
        return failed(error, self.execution.attempt, last)


def _joined(spends: Sequence[str]) -> str | None:
    return encode_spends(spend for text in spends for spend in decode_spends(text)) if spends else None
