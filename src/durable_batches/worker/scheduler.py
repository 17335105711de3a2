"""Claim and run, bounded: which documents this worker holds, how many more it takes, and what becomes of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, TypeAlias

from durable_batches.clock import Timer
from durable_batches.codec.codec import Codec, payload_of
from durable_batches.errors import (
    ConfigurationError,
    DurableBatchesError,
    FactRejectedError,
    PayloadError,
    StoreUnavailableError,
    WorkerFencedError,
    place_of,
)
from durable_batches.lifecycle.batch import definition_of
from durable_batches.lifecycle.events import LAST_EVENT_TAGS
from durable_batches.lifecycle.facts import (
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
)
from durable_batches.lifecycle.failures import DocumentFailureRecord, in_a_line, message_of
from durable_batches.lifecycle.policies import document_retry_delay, neighbours_allowed
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    CheckpointRecord,
    Claim,
    ClaimRequest,
    Committed,
    ExecutionKey,
    ExecutionRecord,
    Micros,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.reading.outcomes import StoredResults
from durable_batches.runtime.attempt import Attempt
from durable_batches.runtime.attempt_result import AttemptFailed, AttemptStopped, AttemptSucceeded, StopReason
from durable_batches.runtime.dependencies import dependencies_of
from durable_batches.runtime.resources import Surroundings
from durable_batches.runtime.workflow import Workflow
from durable_batches.stores.protocol import Store
from durable_batches.worker.failure_log import FailureLog
from durable_batches.worker.signals import SchedulerSignals

__all__ = ["AnyWorkflow", "Scheduler"]

_log = logging.getLogger("durable_batches")

AnyWorkflow: TypeAlias = Workflow[Any, Any, Any, Any]

_ENDING: Final = frozenset({ExecutionSucceeded, ExecutionFailed, ExecutionReleased})
_CHECKPOINTS_A_CLAIM: Final = 1_000
_IDLE_MICROS: Final = 5_000_000
_POLL_SECONDS: Final = 0.1
_FULL_SECONDS: Final = 1.0
"""Between two looks for deadlines, while there is no room for anything."""


class _Held:
    """A claimed execution: its attempt, and the task that runs it."""

    __slots__ = ("attempt", "finishing", "task", "window")

    def __init__(self, attempt: Attempt, window: int) -> None:
        self.attempt = attempt
        self.window = window
        self.finishing = False
        self.task: asyncio.Task[None] | None = None


class Scheduler:
    """The documents of one worker incarnation.

    Args:
        store: For what does not come with a claim.
        workflows: What it can run, by (name, version); may grow.
        surroundings: What its attempts share; their recorder is the journal.
        capacity: Executions at once.
        poke: Has the journal make a commit, if only to claim.
        signals: Fired for tests.
    """

    def __init__(
        self,
        store: Store,
        workflows: Mapping[tuple[str, str], AnyWorkflow],
        surroundings: Surroundings,
        *,
        capacity: int,
        poke: Callable[[], None],
        signals: SchedulerSignals,
    ) -> None:
        self._store = store
        self._workflows = workflows
        self._shared = surroundings
        self._capacity = capacity
        self._poke = poke
        self._signals = signals
        self._failures = FailureLog()
        self._held: dict[ExecutionKey, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hungry = True
        self._hinted = False
        self._timer: Timer | None = None
        self._due = False
        self._closing = False
        self._stopping: tuple[StopReason, bool] = ("shutdown", True)

    # ---- claiming --------------------------------------------------------------------------------------------

    def hint(self) -> None:
        """There may be something new to claim."""
        self._hungry = self._hinted = True
        self._poke()

    async def run(self) -> None:
        """Look for work that other processes bring, until cancelled; what this one brings is hinted at."""
        self.hint()
        clock = self._shared.clock
        looked = clock.boot()
        while True:
            if self._workflows and self._room() > 0:
                await self._wait_for_work()
                self.hint()
            elif self._workflows and self._capacity and clock.boot() - looked > _FULL_SECONDS:
                # Somebody else's batch may have a deadline, and nobody have room.
                looked = clock.boot()
                self.look_at_deadlines()
            await self._shared.clock.sleep(_POLL_SECONDS, housekeeping=True)

    async def _wait_for_work(self) -> None:
        try:
            await self._store.wait({}, work=list(self._workflows), timeout=_IDLE_MICROS)
        except StoreUnavailableError as error:
            _log.warning("looking for work waits: %s", error)

    def _room(self) -> int:
        return self._capacity - len(self._held)

    @property
    def idle(self) -> bool:
        """Whether it asks for nothing now: it has no room, or nothing was due when it last asked."""
        return not self._due and not (self._hungry and len(self._held) < self._window(()))

    @property
    def attempts(self) -> list[Attempt]:
        """What runs here now, less those that are reporting their end."""
        return [entry.attempt for entry in self._held.values() if not entry.finishing]

    def claim_request(self, facts: Sequence[Fact]) -> ClaimRequest | None:
        """What to claim with the commit of these facts."""
        ending = {(fact.batch_id, fact.position) for fact in facts if type(fact) in _ENDING}
        if ending:
            self._hungry = True
        if not self._hungry or self._closing or not self._workflows:
            return None
        held = len(self._held.keys() - ending)
        window = self._window(ending)
        limit = max(window - held, 0)
        if limit == 0 and not self._due:
            return None
        # With no room either: a deadline may have passed, or be that of a batch that is new.
        self._due = self._hinted = False
        return ClaimRequest(
            workflows=frozenset(self._workflows),
            limit=limit,
            held=held,
            window=window,
            capacity=self._capacity,
            checkpoints=_CHECKPOINTS_A_CLAIM,
        )

    def _window(self, ending: Collection[ExecutionKey]) -> int:
        """How many executions it may hold once these have ended: few while a suspect is among them."""
        windows = (entry.window for key, entry in self._held.items() if key not in ending)
        return min(self._capacity, min(windows, default=self._capacity))

    def committed(self, facts: Sequence[Fact], committed: Committed, request: ClaimRequest | None) -> None:
        """A commit is through: let go of what ended, stop what its batch does not want any more, start the claims."""
        for fact in facts:
            if type(fact) in _ENDING:
                self._held.pop((fact.batch_id, fact.position), None)
        if request is not None:
            # What it was told of while the claim was under way, the claim may have missed.
            self._hungry = self._hinted or 0 < len(committed.claims) == request.limit
            self._wake_in(committed.retry_in)
        for event in committed.events:
            if event.tag in LAST_EVENT_TAGS:
                self.batch_ended(event.batch_id)
        for claim in committed.claims:
            self._start(claim)
        if request is not None:
            self._signals.claimed.fire(len(committed.claims))
            if not self._hungry:
                self._signals.idle.fire(None)

    def _wake_in(self, delay: Micros | None) -> None:
        """Look again when the next retry or deadline falls due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay is not None and not self._closing:
            clock = self._shared.clock
            # Better just after a due time than just before.
            self._timer = clock.call_later(delay / 1_000_000 + clock.tolerance, self.look_at_deadlines)

    def look_at_deadlines(self) -> None:
        """One may have passed, or be new: they are looked at also where there is no room."""
        self._due = True
        self.hint()

    # ---- stopping --------------------------------------------------------------------------------------------

    def batch_ended(self, batch_id: BatchId) -> None:
        """The batch's run is over: what still runs of it is stopped."""
        for key, entry in self._held.items():
            if key[0] == batch_id and not entry.finishing:
                entry.attempt.stop("ended")

    def held_batches(self) -> set[BatchId]:
        """The batches of which something runs here."""
        return {key[0] for key in self._held}

    def close(self) -> None:
        """Claim nothing more."""
        self._closing = True
        self._wake_in(None)

    async def drain(self, seconds: float, claimed: Awaitable[object]) -> None:
        """Let running calls finish for so many seconds, then end them; then give everything back.

        Args:
            seconds: How long.
            claimed: Done when no claim is under way any more.
        """
        self._stop("shutdown", drain=True)
        timer = self._shared.clock.call_later(seconds, self.end_drain)
        try:
            await claimed
            await self._all_ended()
        finally:
            timer.cancel()

    def end_drain(self) -> None:
        """End running calls now."""
        self._stop("shutdown", drain=False)

    def halt(self) -> None:
        """The worker is dead: nothing begins from here on, and what runs is cancelled."""
        self._stop("fenced", drain=False)

    async def abandon(self) -> None:
        """The worker was declared dead: end everything, and say nothing about it."""
        self.halt()
        await self._all_ended()

    def _stop(self, reason: StopReason, *, drain: bool) -> None:
        self._stopping = (reason, drain)
        for entry in self._held.values():
            if not entry.finishing:
                entry.attempt.stop(reason, drain=drain)

    async def _all_ended(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    # ---- running ---------------------------------------------------------------------------------------------

    def _start(self, claim: Claim) -> None:
        execution, workflow = claim.execution, self._workflows[(claim.batch.workflow, claim.batch.version)]
        config = definition_of(claim.batch).config
        resolver = execution.position == RESOLVER_POSITION
        timeout = config.document_timeout
        # Its checkpoints may be more than came along; then they are read before it starts.
        attempt = Attempt(
            execution,
            stage_index=None if resolver else workflow.stage_index,
            checkpoints=list(claim.checkpoints),
            surroundings=self._shared,
            timeout=None if timeout is None or resolver else timeout.total_seconds(),
            metadata=config.metadata,
        )
        window = neighbours_allowed(execution.crashes, config.max_crashes, self._capacity)
        entry = _Held(attempt, window)
        key = (execution.batch_id, execution.position)
        self._held[key] = entry
        self._signals.started.fire(key)
        if self._closing:
            # Its claim was under way already; nothing of it begins.
            reason, drain = self._stopping
            attempt.stop(reason, drain=drain)
        run = self._resolve if resolver else self._run_document
        entry.task = asyncio.create_task(self._guarded(run(entry, claim, workflow), entry, claim))
        self._tasks.add(entry.task)
        entry.task.add_done_callback(self._tasks.discard)

    async def _guarded(self, running: Coroutine[Any, Any, None], entry: _Held, claim: Claim) -> None:
        try:
            await running
        except WorkerFencedError:
            # The incarnation is over, and with it everything it held; the worker starts another.
            pass
        except Exception as error:  # noqa: BLE001  (whatever it is, the execution must not stay held for ever)
            await self._give_up(error, entry, claim)

    async def _give_up(self, error: Exception, entry: _Held, claim: Claim) -> None:
        """Something failed that is no part of the user's own code: say so, and end the attempt all the same."""
        execution = claim.execution
        self._finish(entry, execution)
        _log.error(
            "%s is given up by this worker in attempt %d: %s",
            place_of(execution.batch_id, execution.document_id),
            execution.attempt,
            in_a_line(type(error).__name__, message_of(error)),
            exc_info=None if isinstance(error, DurableBatchesError) else error,
        )
        identity = (execution.batch_id, execution.run, execution.position, execution.attempt)
        fact = (
            ExecutionReleased(*identity)
            if isinstance(error, StoreUnavailableError)
            else _failed(identity, _failure_of(error, execution.attempt))
        )
        with suppress(DurableBatchesError):
            await self._shared.recorder.record(fact)

    async def _run_document(self, entry: _Held, claim: Claim, workflow: AnyWorkflow) -> None:
        self._shared.stats.documents_run += 1
        await self._load_more(entry, claim)

        async def body() -> Any:
            with payload_of(claim.execution.batch_id, claim.execution.document_id):
                document = workflow.document_codec.decode(claim.input)
            return await workflow.fn(document)

        outcome = await entry.attempt.run(body)
        await self._conclude(entry, claim, outcome, workflow.result_codec)

    async def _resolve(self, entry: _Held, claim: Claim, workflow: AnyWorkflow) -> None:
        await self._load_more(entry, claim)
        resolver = workflow.resolver
        results = StoredResults(self._store, claim.batch.batch_id, claim.batch.counts, workflow.result_codec)

        async def body() -> Any:
            if resolver is None:
                raise ConfigurationError(
                    f"workflow {workflow.name!r} has no resolver any more, and batch {claim.batch.batch_id!r} was "
                    "submitted when it had one; run the batch with code that has it"
                )
            wanted = dependencies_of(resolver)
            return await resolver(results, **await self._shared.dependencies.filled(wanted, {}))

        outcome = await entry.attempt.run(body)
        retry_in = None
        if isinstance(outcome, AttemptFailed) and outcome.retryable:
            delay = workflow.resolver_retry.delay(
                outcome.error,
                claim.execution.failures + 1,
                self._shared.clock.jitter(),
            )
            retry_in = None if delay is None else int(delay.total_seconds() * 1_000_000)
        await self._conclude(entry, claim, outcome, workflow.resolution_codec, retry_in)

    async def _load_more(self, entry: _Held, claim: Claim) -> None:
        if not claim.more_checkpoints:
            return
        execution = claim.execution
        checkpoints: list[CheckpointRecord] = list(claim.checkpoints)
        while True:
            page = await self._store.checkpoints(
                execution.batch_id,
                execution.position,
                after=checkpoints[-1].key if checkpoints else "",
                limit=_CHECKPOINTS_A_CLAIM,
            )
            checkpoints += page
            if len(page) < _CHECKPOINTS_A_CLAIM:
                break
        entry.attempt.recorded = type(entry.attempt.recorded)(checkpoints)

    def _finish(self, entry: _Held, execution: ExecutionRecord) -> None:
        if not entry.finishing:
            entry.finishing = True
            self._signals.finished.fire((execution.batch_id, execution.position))

    async def _conclude(
        self,
        entry: _Held,
        claim: Claim,
        outcome: AttemptSucceeded | AttemptFailed | AttemptStopped,
        codec: Codec[Any],
        retry_in: Micros | None = None,
    ) -> None:
        """Report how the attempt ended; the one fact that ends it."""
        execution = claim.execution
        self._finish(entry, execution)
        identity = (execution.batch_id, execution.run, execution.position, execution.attempt)
        match outcome:
            case AttemptStopped(reason="fenced"):
                return
            case AttemptStopped():
                await self._shared.recorder.record(ExecutionReleased(*identity))
                return
            case AttemptSucceeded(value=value, unused_checkpoints=unused):
                try:
                    # Read again, too: a result that nobody can read is worth as little as one that cannot be stored.
                    fact = ExecutionSucceeded(*identity, codec.recoded(value)[0], unused)
                    await self._shared.recorder.record(fact)
                except (PayloadError, FactRejectedError) as error:
                    unrecorded = _failure_of(error, execution.attempt)
                    self._failures.failed(execution, error, unrecorded, None)
                    await self._shared.recorder.record(_failed(identity, unrecorded))
                else:
                    self._warn_of_unused(claim, unused)
            case AttemptFailed(error=error, record=record, retryable=retryable, forget=forget):
                # Before it is committed: the store may be away, or the process about to end.
                self._failures.failed(execution, error, record, _again_in(claim, retry_in, retryable=retryable))
                await self._shared.recorder.record(
                    ExecutionFailed(
                        *identity,
                        outcome=record.encode(),
                        error=record.error,
                        retryable=retryable,
                        retry_in=retry_in,
                        forget=forget,
                    )
                )

    def _warn_of_unused(self, claim: Claim, unused: int) -> None:
        if unused:
            self._shared.stats.checkpoints_unused += unused
            _log.warning(
                "document %r of batch %r did not ask for %d of its recorded activities again: was an activity "
                "renamed, or is an input not the same on every attempt?",
                claim.execution.document_id,
                claim.batch.batch_id,
                unused,
            )


def _failure_of(error: Exception, attempts: int) -> DocumentFailureRecord:
    return DocumentFailureRecord(message_of(error), type(error).__name__, None, attempts)


def _failed(identity: tuple[BatchId, int, int, int], record: DocumentFailureRecord) -> ExecutionFailed:
    return ExecutionFailed(*identity, outcome=record.encode(), error=record.error, retryable=False)


def _again_in(claim: Claim, retry_in: Micros | None, *, retryable: bool) -> timedelta | None:
    """When a failed attempt will be followed by another, as the commit is going to decide; None: by none."""
    execution = claim.execution
    if execution.position == RESOLVER_POSITION:
        return None if retry_in is None else timedelta(microseconds=retry_in)
    policy = definition_of(claim.batch).config.failure_policy
    return document_retry_delay(policy, execution.failures + 1, retryable=retryable)
