"""The scheduler: which documents a session holds, how many more it claims, and when what runs is stopped."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from enum import IntEnum
from functools import partial
from typing import Final

from durable_batches.clock import Timer
from durable_batches.errors import StoreUnavailableError, place_of
from durable_batches.lifecycle.events import LAST_EVENT_TAGS, PAUSED, BatchPaused, decode_event
from durable_batches.lifecycle.facts import (
    ActivityCompleted,
    ActivityFailed,
    ExecutionFailed,
    ExecutionReleased,
    ExecutionSucceeded,
    Fact,
)
from durable_batches.lifecycle.failures import line_of
from durable_batches.lifecycle.records import Claim, ClaimRequest, Committed, EventRecord, ExecutionKey, Micros
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Outage, Outages
from durable_batches.runtime.attempt_result import StopReason
from durable_batches.runtime.resources import Resources
from durable_batches.stores.protocol import Store, WaitsForClaims
from durable_batches.worker.failure_log import traceback_of
from durable_batches.worker.left_behind import UNWIND_SECONDS, leave_behind, log_cancelled
from durable_batches.worker.reporting import Reporting
from durable_batches.worker.runner import CHECKPOINTS_A_CLAIM, AnyWorkflow, HeldExecution, Runner
from durable_batches.worker.selection import Selection
from durable_batches.worker.signals import SchedulerSignals
from durable_batches.worker.slots import OpenSlots

__all__ = ["Scheduler"]

_log = logging.getLogger("durable_batches")

_FINAL_FACTS: Final = frozenset({ExecutionSucceeded, ExecutionFailed, ExecutionReleased})
_PROGRESS: Final = frozenset({ActivityCompleted, ActivityFailed, *_FINAL_FACTS})
"""The facts after which no crash is held against an execution."""
_WAIT_MICROS: Final = 5_000_000
_POLL_SECONDS: Final = 0.1
_LONGEST_POLL_SECONDS: Final = 1.0
"""Where a store says again and again that there is work, and none can be claimed: one of level 1 knows of no pauses."""
_LEAVES_OUT: Final = 2
"""The level of the stores that heed `ClaimRequest.without`."""
_FEW: Final = 0.25
"""Of the slots: as many documents of a batch may wait for retries or permits as if they were an exception."""
_DEADLINES_SECONDS: Final = 1.0
"""Between two looks for deadlines, while there are no open slots."""


class _Wants(IntEnum):
    """What the scheduler wants of the next commit; each includes those before it."""

    NOTHING = 0
    """Nothing was due when it last asked."""
    WORK = 1
    """There may be something to claim; also while a claim is under way."""
    NEW_WORK = 2
    """It was woken since the last claim, which may have missed what it was woken for."""
    DEADLINES = 3
    """A deadline may have passed, or be that of a new batch: it asks also where it has no open slots."""


class Scheduler:
    """Claims executions for one session, and has them run.

    Args:
        store: Where work is waited for, and where checkpoints are read that do not come with a claim.
        workflows: Those whose executions it claims, by (name, version); more may be added.
        resources: Shared by its attempts; their recorder is the journal.
        selection: The batches that it claims from.
        capacity: Executions at once.
        outages: Where the store's are logged.
        wake: Has the journal make a commit, if only to claim.
        signals: Fired for tests.
        reporting: Reports each attempt; None: nobody wants to know.
    """

    def __init__(
        self,
        store: Store,
        workflows: Mapping[tuple[str, str], AnyWorkflow],
        resources: Resources,
        *,
        selection: Selection,
        capacity: int,
        outages: Outages,
        wake: Callable[[], None],
        signals: SchedulerSignals,
        reporting: Reporting | None = None,
    ) -> None:
        self._store = store
        self._workflows = workflows
        self._selection = selection
        self._clock = resources.clock
        self._capacity = capacity
        self._outage: Outage = outages.of("looking for work")
        self._wake_journal = wake
        self._signals = signals
        self._runner = Runner(store, resources, outages, signals, reporting)
        self._held: dict[ExecutionKey, HeldExecution] = {}
        self._slots = resources.slots = OpenSlots(
            capacity, lambda: len(self._held), self.wake, lends_more=store.capabilities.level >= _LEAVES_OUT
        )
        self._isolated: dict[ExecutionKey, Timer] = {}
        """Those it holds while they are isolated: possible poison documents; with the timer that ends that."""
        self._tasks: dict[asyncio.Task[None], tuple[HeldExecution, Claim]] = {}
        self._none_runs = asyncio.Event()
        self._none_runs.set()
        self._unwinding: Timer | None = None
        self._wants = _Wants.WORK
        self._in_vain = 0
        """How many claims in a row took nothing, though the store had said at once that there is something."""
        self._timer: Timer | None = None
        self._due = math.inf
        """When the timer looks again, by the boot clock."""
        self._waiting: asyncio.Task[None] | None = None
        self._closing = False
        self._stop_reason: StopReason = "shutdown"
        self._drains = True

    # ---- claiming --------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Ask for work with the next commit, which is made at once."""
        self._want(_Wants.NEW_WORK)
        self._wake_journal()

    def selection_changed(self) -> None:
        """Look at once for work of the batches that are selected now."""
        if self._waiting is not None:
            # For work of those that were selected before.
            self._waiting.cancel()
        self.wake()

    def look_at_deadlines(self) -> None:
        """Have the next commit look at deadlines, also where there are no open slots."""
        self._want(_Wants.DEADLINES)
        self._wake_journal()

    def _want(self, wants: _Wants) -> None:
        self._wants = max(self._wants, wants)

    async def run(self) -> None:
        """Wait for work that other processes bring, until cancelled; what this one brings wakes it."""
        self.wake()
        looked = self._clock.boot()
        with self._outage:
            while True:
                if self._serves_any and self._open_slots > 0 and not self._closing:
                    began = self._clock.boot()
                    await self._wait_for_work()
                    if self._clock.boot() - began >= _POLL_SECONDS:
                        self._in_vain = 0
                    self.wake()
                else:
                    # Without open slots the store is not asked: the journal's commits tell whether it is back.
                    self._outage.give_up()
                    if self._serves_any and self._capacity and self._clock.boot() - looked > _DEADLINES_SECONDS:
                        # Another process's batch may have a deadline, and no process open slots.
                        looked = self._clock.boot()
                        self.look_at_deadlines()
                await self._clock.sleep(self._poll_seconds, housekeeping=True)

    @property
    def _poll_seconds(self) -> float:
        if self._store.capabilities.level >= 2:
            return _POLL_SECONDS
        return min(_POLL_SECONDS * (1 << min(self._in_vain, 10)), _LONGEST_POLL_SECONDS)

    async def _wait_for_work(self) -> None:
        try:
            without = self._lending if self._slots.most <= len(self._held) else frozenset[BatchId]()
            is_everything = self._selection.is_everything and not without
            if is_everything or not isinstance(self._store, WaitsForClaims):
                await self._store.wait({}, work=list(self._workflows), timeout=_WAIT_MICROS)
            else:
                await self._wait_for_claim(self._store, without)
        except StoreUnavailableError as error:
            self._outage.failed(error)
        else:
            self._outage.answered()

    async def _wait_for_claim(self, store: WaitsForClaims, without: frozenset[BatchId]) -> None:
        """Wait for work of the batches that are selected now, but for these, or until others are."""
        request = self._request(limit=1, held=0, window=1, without=without)
        waiting = self._waiting = asyncio.create_task(store.wait_for_claim(request, timeout=_WAIT_MICROS))
        try:
            await asyncio.wait([waiting])
        finally:
            self._waiting = None
            waiting.cancel()
            await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.result()

    @property
    def _serves_any(self) -> bool:
        """Whether there may be a batch that it can claim from."""
        return bool(self._workflows) and not self._selection.is_empty

    @property
    def _open_slots(self) -> int:
        return self._slots.most_with_others - len(self._held)

    @property
    def wants_work(self) -> bool:
        """Whether it asks for something with the next commit, or is being answered."""
        if self._closing:
            return False
        return self._wants is _Wants.DEADLINES or (
            self._wants is not _Wants.NOTHING and len(self._held) < self._window((), self._slots.most_with_others)
        )

    def claim_request(self, facts: Sequence[Fact]) -> ClaimRequest | None:
        """Return what to claim with the commit of these facts."""
        request = self._next_request(facts)
        self._slots.asked = 0 if request is None else request.limit
        return request

    def _next_request(self, facts: Sequence[Fact]) -> ClaimRequest | None:
        finished = {(fact.batch_id, fact.position) for fact in facts if type(fact) in _FINAL_FACTS}
        if finished:
            self._want(_Wants.WORK)
        if self._wants is _Wants.NOTHING or self._closing or not self._serves_any:
            return None
        held = len(self._held.keys() - finished)
        window = self._window(finished, self._slots.most)
        limit = max(window - held, 0)
        without: frozenset[BatchId] = frozenset()
        if limit == 0 and self._wants is not _Wants.DEADLINES:
            # More documents wait than there are slots. Those of batches that do not wait are not held up by them.
            window = self._window(finished, self._slots.most_with_others)
            limit = window - held
            if limit <= 0:
                return None
            without = self._lending
        self._wants = _Wants.WORK
        return self._request(limit=limit, held=held, window=window, without=without)

    @property
    def _lending(self) -> frozenset[BatchId]:
        """The batches of which many documents have lent their slots; the others have work that does not wait."""
        lent = Counter(batch_id for (batch_id, _), held in self._held.items() if held.attempt.has_lent)
        return frozenset(batch_id for batch_id, number in lent.items() if number > self._capacity * _FEW)

    def _request(
        self, *, limit: int, held: int, window: int, without: frozenset[BatchId] = frozenset()
    ) -> ClaimRequest:
        return ClaimRequest(
            workflows=frozenset(self._workflows),
            limit=limit,
            held=held,
            window=window,
            capacity=self._capacity,
            checkpoints=CHECKPOINTS_A_CLAIM,
            batches=self._selection.batches,
            metadata=self._selection.metadata,
            without=without,
        )

    def _window(self, finished: Collection[ExecutionKey], most: int) -> int:
        """Return how many executions it may hold without these: few while a possible poison document is among them."""
        windows = [self._held[key].window or 1 for key in self._isolated if key not in finished]
        return min([most, *windows])

    def committed(self, facts: Sequence[Fact], committed: Committed, request: ClaimRequest | None) -> None:
        """Drop the executions that are finished, stop those whose batch has ended, and start those claimed."""
        for fact in facts:
            if type(fact) in _FINAL_FACTS:
                self._held.pop((fact.batch_id, fact.position), None)
            if self._isolated and type(fact) in _PROGRESS:
                self._end_isolation((fact.batch_id, fact.position))
        if request is not None:
            self._in_vain = 0 if committed.claims else self._in_vain + 1
            if self._wants < _Wants.NEW_WORK:
                # As much as it asked for: there may be more.
                is_full = 0 < len(committed.claims) == request.limit
                self._wants = _Wants.WORK if is_full else _Wants.NOTHING
            self._wake_in(committed.retry_in, keeps=bool(request.without))
        if committed.events:
            self.stop_ended(committed.events)
        for claim in committed.claims:
            self._start(claim)
        self._slots.asked = 0
        self._slots.give_back()
        if request is not None and request.limit == 0 and self._open_slots > 0:
            # It looked at deadlines alone, and may take work of batches that do not wait.
            self.wake()
        if request is not None:
            self._signals.claimed.fire(len(committed.claims))
            if self._wants is _Wants.NOTHING:
                self._signals.idle.fire(None)

    def _wake_in(self, delay: Micros | None, *, keeps: bool = False) -> None:
        """Look again when the next retry or deadline falls due.

        Args:
            delay: When that is; None: there is none.
            keeps: Whether the delay is not that of all batches, so that it must not put off an earlier look.
        """
        due = math.inf if delay is None else self._clock.boot() + delay / 1_000_000
        if keeps and due >= self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = math.inf
        if delay is not None and not self._closing:
            # Better just after a due time than just before.
            self._due = due
            self._timer = self._clock.call_later(delay / 1_000_000 + self._clock.tolerance, self._look_again)

    def _look_again(self) -> None:
        self._timer, self._due = None, math.inf
        self.look_at_deadlines()

    def _start(self, claim: Claim) -> None:
        execution = claim.execution
        workflow = self._workflows[(claim.batch.workflow, claim.batch.version)]
        held = self._runner.held(claim, workflow)
        key = (execution.batch_id, execution.position)
        self._held[key] = held
        if held.window is not None:
            self._isolated[key] = self._clock.call_later(
                held.isolated_seconds + self._clock.tolerance, partial(self._end_isolation, key)
            )
        self._signals.started.fire(key)
        if self._closing:
            # Its claim was under way already; nothing of it begins.
            held.attempt.stop(self._stop_reason, drain=self._drains)
        task = asyncio.create_task(self._runner.running(held, claim, workflow))
        self._tasks[task] = (held, claim)
        self._none_runs.clear()
        task.add_done_callback(partial(self._has_run, held, claim))

    def _has_run(self, held: HeldExecution, claim: Claim, task: asyncio.Task[None]) -> None:
        """Release an execution that no task holds any more, and whose end was not reported."""
        if self._tasks.pop(task, None) is not None and not self._tasks:
            self._none_runs.set()
        error = None if task.cancelled() else task.exception()
        execution = claim.execution
        is_held = self._held.get((execution.batch_id, execution.position)) is held
        if held.settled or not is_held or self._stop_reason == "fenced" or isinstance(error, KeyboardInterrupt):
            return
        # One that its batch has continued without is refused, and held no longer.
        self._runner.release(claim)
        if error is not None or not held.finishing:
            traceback = traceback_of(error)
            _log.error(
                "task of %s ended without a report in attempt %d (%s); its document is released%s",
                place_of(execution.batch_id, execution.document_id),
                execution.attempt,
                "it was cancelled" if error is None else line_of(error),
                traceback.text,
                exc_info=traceback.error,
                extra={
                    "batch_id": execution.batch_id,
                    "document_id": execution.document_id,
                    "attempt": execution.attempt,
                    "error_type": "CancelledError" if error is None else type(error).__name__,
                },
            )

    def _end_isolation(self, key: ExecutionKey) -> None:
        """Hold as many as ever beside this execution: it is over, it has recorded something, or its time is up."""
        timer = self._isolated.pop(key, None)
        if timer is not None:
            timer.cancel()
            if not self._closing:
                self.wake()

    # ---- what it holds ---------------------------------------------------------------------------------------

    @property
    def running(self) -> list[HeldExecution]:
        """The executions that it holds, less those that report their end. On any thread."""
        # Copied in one step: the event loop may change it meanwhile.
        return [held for held in list(self._held.values()) if not held.finishing]

    @property
    def held(self) -> int:
        """How many executions it holds, including those that report their end."""
        return len(self._held)

    @property
    def held_batches(self) -> set[BatchId]:
        """The batches of which it holds executions."""
        return {batch_id for batch_id, _ in self._held}

    # ---- stopping --------------------------------------------------------------------------------------------

    def stop_ended(self, events: Sequence[EventRecord]) -> None:
        """Stop what runs of the batches that have ended with these events, or were paused."""
        for event in events:
            if event.tag in LAST_EVENT_TAGS:
                self._selection.remove(event.batch_id)
                self.stop_batch(event.batch_id)
            elif event.tag == PAUSED:
                match decode_event(event):
                    case BatchPaused(reason="operator", running=running):
                        if running == "calls":
                            self.stop_paused(event.batch_id, looks=True)
                    case BatchPaused(reason="budget"):
                        self.stop_paused(event.batch_id, looks=True)
                    case _:
                        self.stop_paused(event.batch_id, looks=False)

    def stop_paused(self, batch_id: BatchId, *, looks: bool) -> None:
        """Stop what runs of a batch that is paused, when its activities have finished.

        Args:
            batch_id: The batch.
            looks: Also what looks for the end of a pause for a quota.
        """
        for key, held in self._held.items():
            if key[0] == batch_id and not held.finishing and (looks or not held.attempt.looks):
                held.attempt.stop("paused", drain=True)

    def stop_batch(self, batch_id: BatchId) -> None:
        """Stop what runs of a batch whose run has ended."""
        for key, held in self._held.items():
            if key[0] == batch_id and not held.finishing:
                held.attempt.stop("ended")

    def close(self) -> None:
        """Claim nothing more."""
        self._closing = True
        self._wake_in(None)
        for key in list(self._isolated):
            self._end_isolation(key)

    async def drain(self, seconds: float, claimed: Awaitable[object]) -> None:
        """Let running calls finish for some time, then end them; release all executions.

        Those that do not end though they were cancelled are named in the log and left behind.

        Args:
            seconds: How long.
            claimed: Done when no claim is under way any more.
        """
        self._stop("shutdown", drain=True)
        timer = self._clock.call_later(seconds, self.end_drain)
        try:
            await claimed
            await self._all_finished()
        finally:
            timer.cancel()
            self._end_unwinding()

    def end_drain(self) -> None:
        """Cancel running calls now, and name them in the log: they run again."""
        log_cancelled([held.attempt for held in self.running])
        self._stop("shutdown", drain=False)
        self._unwind()

    def fence(self) -> None:
        """Begin nothing from here on, cancel what runs, and report nothing of it: the lease is lost."""
        self.close()
        self._stop("fenced", drain=False)

    async def fenced(self) -> None:
        """Fence, and wait until everything has ended, or is left behind."""
        self.fence()
        self._unwind()
        try:
            await self._all_finished()
        finally:
            self._end_unwinding()

    def _stop(self, reason: StopReason, *, drain: bool) -> None:
        self._stop_reason, self._drains = reason, drain
        for held in self.running:
            held.attempt.stop(reason, drain=drain)

    async def _all_finished(self) -> None:
        await self._none_runs.wait()

    def _unwind(self) -> None:
        """Wait for what was cancelled for a bounded time only."""
        if self._unwinding is None and self._tasks:
            self._unwinding = self._clock.call_later(UNWIND_SECONDS, self._leave_behind)

    def _end_unwinding(self) -> None:
        if self._unwinding is not None:
            self._unwinding.cancel()
            self._unwinding = None

    def _leave_behind(self) -> None:
        """Wait no longer for user code, and release what it holds."""
        # Those that are finishing wait for the store, and end with the journal.
        left = {task: (held, claim) for task, (held, claim) in self._tasks.items() if not held.finishing}
        for task, (held, claim) in left.items():
            del self._tasks[task]
            held.finishing = held.settled = True
            if self._stop_reason != "fenced":
                self._runner.release(claim)
        if left:
            why = "its lease lost" if self._stop_reason == "fenced" else "its worker being closed"
            leave_behind([held.attempt for held, _ in left.values()], why)
        if not self._tasks:
            self._none_runs.set()
