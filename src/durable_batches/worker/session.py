"""A session: one registration of a worker in the store, from its begin to its end or to the loss of its lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import uuid4

from durable_batches.clock import Clock
from durable_batches.errors import StoreUnavailableError, WorkerFencedError
from durable_batches.lifecycle.batch_core import budget_pause_of, operator_pause_of, quota_pause_of
from durable_batches.lifecycle.commands import Cancel, Command, Seal, UpdateBatch
from durable_batches.lifecycle.facts import ActivityCompleted, Fact, LateResult
from durable_batches.lifecycle.leases import spared_seconds
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import BatchRecord, ClaimRequest, Committed, EventRecord, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import Outage, Outages, ride_out
from durable_batches.runtime.classify import ErrorClassifier, default_classifier
from durable_batches.runtime.dependencies import Dependencies
from durable_batches.runtime.elsewhere import Elsewhere
from durable_batches.runtime.limits import Limiter
from durable_batches.runtime.resources import Resources, RunStats
from durable_batches.runtime.threads import Threads
from durable_batches.stores.protocol import Store
from durable_batches.tasks import tell_loop
from durable_batches.telemetry.hooks import WorkerGauges
from durable_batches.worker.abandoned import AbandonedSubmissions
from durable_batches.worker.client_retries import ClientRetries
from durable_batches.worker.failure_log import log_pauses
from durable_batches.worker.gauges import executors_of, limiters_of
from durable_batches.worker.health import NotReady, WorkerHealth
from durable_batches.worker.heartbeat import LeaseRenewer
from durable_batches.worker.journal import Journal
from durable_batches.worker.late_results import LateResults
from durable_batches.worker.lease import Lease
from durable_batches.worker.long_calls import LongCalls
from durable_batches.worker.loop_watch import LoopWatch
from durable_batches.worker.membership import Membership
from durable_batches.worker.note_writer import NoteWriter
from durable_batches.worker.reporting import Reporting
from durable_batches.worker.runner import AnyWorkflow, HeldExecution
from durable_batches.worker.scheduler import Scheduler
from durable_batches.worker.selection import Selection, SelectionSweep
from durable_batches.worker.shared_budgets import SharedBudgets
from durable_batches.worker.signals import WorkerSignals

__all__ = ["Session", "SessionOptions", "SessionPhase"]

_log = logging.getLogger("durable_batches")

_LOOK_SECONDS: Final = 0.5
"""How often a session looks for dead workers, and for ends of its batches that others brought about."""

_STORE_PATIENCE_SECONDS: Final = 10.0
"""How much longer than its drain a closing session waits for a store that is away."""


class SessionOptions(NamedTuple):
    """What a session takes over from its worker's arguments."""

    capacity: int
    lease: timedelta
    drain: timedelta
    max_stall: timedelta
    blocked_warning: timedelta | None
    long_call_warning: timedelta | None
    client_retry_warning: timedelta | None
    classify: ErrorClassifier = default_classifier
    reporting: Reporting | None = None
    elsewhere: Elsewhere | None = None
    limiters: Mapping[str, Limiter] = {}


class SessionPhase(Enum):
    """How far a session has come."""

    BEGINNING = auto()
    """Until it is registered, has recorded late results, and has looked for dead workers once."""
    WORKING = auto()
    """Until its end, its draining included."""
    ENDED = auto()


class Session:
    """One session of a worker.

    Args:
        store: Where the batches are.
        membership: Registers it, and deregisters it in the end.
        workflows: What it runs; more may be added.
        options: See `SessionOptions`.
        selection: The batches that it takes from.
        clock: The worker's.
        threads: For sync activities.
        stats: What it has done is counted there.
        dependencies: Of its activities and resolvers.
        late_results: Those of earlier sessions, and its own in the end.
        deliver: Hands events on to the subscribers of this process.
        outages: Where the store's are logged.
        restart: Takes part in an outage that costs the session its lease.
        loading: The batches that are being submitted through the worker.
        signals: Fired for tests.
    """

    def __init__(
        self,
        store: Store,
        membership: Membership,
        workflows: Mapping[tuple[str, str], AnyWorkflow],
        options: SessionOptions,
        selection: Selection,
        *,
        clock: Clock,
        threads: Threads,
        stats: RunStats,
        dependencies: Dependencies,
        late_results: LateResults,
        deliver: Callable[[Sequence[EventRecord]], None],
        outages: Outages,
        restart: Outage,
        loading: Collection[BatchId],
        signals: WorkerSignals,
    ) -> None:
        self.worker_id: Final = WorkerId(uuid4().hex[:20])
        self.phase: SessionPhase = SessionPhase.BEGINNING
        self.has_worked: bool = False
        """Whether it came beyond its beginning."""
        self._store = store
        self._membership = membership
        self._workflows = workflows
        self._options = options
        self._outages = outages
        self._drain = options.drain
        self._clock = clock
        self._late_results = late_results
        self._deliver = deliver
        self._outage: Outage = outages.of("looking after other workers")
        self._selection = selection
        self._sweep = SelectionSweep(selection, store, clock)
        self._abandoned = AbandonedSubmissions(store, clock, loading)
        self._signals = signals.membership
        self._lease: Final = Lease(clock, options.lease)
        self._committed_at: float | None = None
        self.journal: Final = Journal(
            store,
            self.worker_id,
            clock,
            outages=outages,
            claim=self._claim_request,
            committed=self._committed,
            renewed=self._renewed,
            keep=self._keep,
            signals=signals.journal,
            reporting=options.reporting,
        )
        self._budgets = SharedBudgets(store, self.worker_id, clock, outages)
        self.resources: Final = Resources(
            recorder=self.journal,
            clock=clock,
            threads=threads,
            stats=stats,
            dependencies=dependencies,
            elsewhere=options.elsewhere,
            named_limiters=options.limiters,
            adopt=self._budgets.adopt,
            classify=options.classify,
            lease=self._lease,
            moment=clock.boot(),
            middleware=() if options.reporting is None else (options.reporting.call,),
        )
        self.scheduler: Final = Scheduler(
            store,
            workflows,
            self.resources,
            selection=selection,
            capacity=options.capacity,
            outages=outages,
            wake=self.journal.wake,
            signals=signals.scheduler,
            reporting=options.reporting,
        )
        self._was_away = False
        self._draining = asyncio.Event()
        self._drained: asyncio.Task[None] | None = None
        self._drain_ends_at = 0.0
        self._closed = asyncio.Event()
        self._lease_lost = asyncio.Event()
        self._loop = loop = asyncio.get_running_loop()
        self._killed = False

        def lost() -> None:
            # Before anything of the session gives up: it is one outage until the successor is answered.
            restart.join()
            tell_loop(loop, self.lose_lease)

        # One without capacity runs none.
        offered: Collection[tuple[str, str]] = workflows if options.capacity else ()
        self._watch = LoopWatch(
            self.worker_id,
            clock,
            after=options.blocked_warning,
            tick=self._tick_seconds,
            running=self._running,
            signals=signals.lease,
        )
        self._long_calls = LongCalls(clock, after=options.long_call_warning, running=self._running)
        self._client_retries = ClientRetries(clock, after=options.client_retry_warning, running=self._running)
        self._writer = NoteWriter(
            clock,
            running=self._running,
            watch=self._watch,
            long_calls=self._long_calls,
            workflows=offered,
            selection=selection,
            limiters=self._limiters,
        )
        self._renewer = LeaseRenewer(
            store,
            self.worker_id,
            self._lease,
            options.lease,
            options.max_stall,
            clock,
            outages=outages,
            lost=lost,
            signals=signals.lease,
            watch=self._watch,
            writer=self._writer,
        )

    # ---- from outside ------------------------------------------------------------------------------------------

    @property
    def is_inherited(self) -> bool:
        """Whether it was begun in the process that this one was forked from."""
        return self._lease.is_inherited

    def close(self) -> None:
        """Have the session end in good order."""
        self._closed.set()

    def begin_drain(self) -> None:
        """Claim nothing more, let running calls finish, and release all documents; it stays registered until closed."""
        self._draining.set()

    def end_drain(self) -> None:
        """Where it drains, or when it will, wait no longer for what runs: cancel and release it."""
        # Also where the drain has yet to begin.
        self._drain = timedelta(0)
        if self._drained is not None or self._closed.is_set():
            self.scheduler.end_drain()

    def lose_lease(self) -> None:
        """Have the session fence itself: its lease is lost."""
        self._lease_lost.set()

    def kill(self) -> None:
        """End as if the process had died, for tests: nothing begins any more, and no result is kept."""
        self._killed = True
        self._late_results.clear()
        self.scheduler.fence()
        self.lose_lease()

    def selection_changed(self) -> None:
        """Look at once for work of the batches that are selected now; for any thread."""
        tell_loop(self._loop, self.scheduler.selection_changed)

    def announce(self, events: Sequence[EventRecord]) -> None:
        """Take note of events that this process committed other than through the journal."""
        self.scheduler.stop_ended(events)
        self.scheduler.wake()

    def commanded(self, batch_id: BatchId, command: Command, committed: Committed) -> None:
        """Take note of a command that was given in this process."""
        log_pauses(committed.events)
        if self._options.reporting is not None:
            self._options.reporting.events(committed.events)
        self.scheduler.stop_ended(committed.events)
        if committed.applied and isinstance(command, Cancel):
            # The answer to a repeated one comes without the event that says so.
            self.scheduler.stop_batch(batch_id)
        if isinstance(command, Seal | UpdateBatch):
            # The batch may have a deadline.
            self.scheduler.look_at_deadlines()
        else:
            self.scheduler.wake()

    def gauges(self, executors: Collection[str]) -> WorkerGauges | None:
        """Return how it is at this moment, for telemetry; None: it has no lease yet. On any thread.

        Args:
            executors: The names of the worker's executors.
        """
        left = self._lease.until - self._clock.boot()
        if left == float("-inf"):
            return None
        running = self.scheduler.running
        calls = [call for held in running for call in held.attempt.calls]
        return WorkerGauges(
            worker_id=self.worker_id,
            in_flight=len(running),
            calls=len(calls),
            max_in_flight=self._options.capacity,
            lease_seconds=left,
            lease_age_seconds=self._lease.age,
            limiters=limiters_of(self._limiters()),
            executors=executors_of(executors, calls),
        )

    def _limiters(self) -> Sequence[Limiter]:
        """Return the limiters that its calls have asked for permits. On any thread."""
        return self.resources.limiters.present()

    def health(self, not_ready: NotReady | None, store_away_since: datetime | None) -> WorkerHealth:
        """Return how it is at this moment. On any thread.

        Args:
            not_ready: Why the worker begins nothing, as far as the session does not know.
            store_away_since: Since when the store has not answered.
        """
        now, at = self._clock.boot(), self._clock.now()
        if self._closed.is_set():
            not_ready = "closed"
        elif self.phase is not SessionPhase.WORKING:
            not_ready = "starting"
        elif not_ready is None and not self._lease.holds():
            not_ready = "lease-lost"
        committed = self._committed_at
        return WorkerHealth(
            ready=not_ready is None,
            not_ready=not_ready,
            lease_left=timedelta(seconds=max(self._lease.until - now, 0)),
            last_commit=None if committed is None else from_micros(at - round((now - committed) * 1_000_000)),
            loop_lag=timedelta(seconds=max(now - self._watch.turned - self._tick_seconds, 0)),
            in_flight=len(self.scheduler.running),
            store_away_since=store_away_since,
        )

    # ---- its life ----------------------------------------------------------------------------------------------

    async def run(self, begun: Callable[[], object]) -> None:
        """Register, work until closed, drain, and deregister.

        Args:
            begun: Called when it works.

        Raises:
            WorkerFencedError: The lease was lost.
        """
        try:
            # After an outage, others get their time to renew or deregister before anybody looks for dead ones. Those of
            # this process are deregistered before they are named: afterwards nobody counts a crash for them any more.
            self._was_away = await self._membership.deregister_pending()
            asked = self._clock.boot()
            offer = self._writer.offer()
            # One that takes from some batches only says so from the beginning.
            note = None if self._selection.is_everything else self._writer.note()
            await self._membership.register(self.worker_id, offer.workflows, self._options.lease, note)
            self._lease.renewed(asked)
            if self._was_away or self._membership.succeeds_lost_session:
                self._renewer.give_others_time()
            self._renewer.start(offer)
            try:
                # Soon: who claims such a document before makes the same calls again.
                await self._record_late_results()
                if not self._was_away:
                    await self._expire_dead_workers()
                self.phase = SessionPhase.WORKING
                self.has_worked = True
                begun()
                self._signals.restarted.fire(self.worker_id)
                await self._work()
            finally:
                self._renewer.signal_stop()
                await self._renewer.ended()
        finally:
            self.phase = SessionPhase.ENDED
            self._late_results.log_dropped(self.worker_id)

    async def _record_late_results(self) -> None:
        """Record what earlier sessions of this process could not: before anything is claimed, so that it is found."""
        results = self._late_results.take()
        if not results:
            return
        try:
            verdicts = await self.journal.commit_alone(results)
        except BaseException:
            # Those that were recorded, too: to record them again changes nothing.
            for result in results:
                self._keep(result)
            raise
        recorded = verdicts.count(None)
        _log.info(
            "worker %s recorded %d results of activities that had finished when the lease before was lost; for %d "
            "others of them it was too late",
            self.worker_id,
            recorded,
            len(results) - recorded,
            extra={"worker_id": self.worker_id, "recorded": recorded, "results": len(results)},
        )

    async def _work(self) -> None:
        journal = asyncio.create_task(self.journal.run(), name="durable-batches journal")
        draining = asyncio.create_task(self._draining.wait())
        closed = asyncio.create_task(self._closed.wait())
        lost = asyncio.create_task(self._lease_lost.wait())
        helpers = [
            asyncio.create_task(self.scheduler.run(), name="durable-batches scheduler"),
            asyncio.create_task(self._look_around(), name="durable-batches membership"),
            asyncio.create_task(self._show_that_the_loop_turns(), name="durable-batches stall"),
            asyncio.create_task(self._abandoned.run(), name="durable-batches housekeeping"),
            asyncio.create_task(self._budgets.run(), name="durable-batches budgets"),
        ]
        self._supply_limiters()
        ends = [journal, closed, lost, *helpers]
        try:
            await asyncio.wait([draining, *ends], return_when=asyncio.FIRST_COMPLETED)
            if self._draining.is_set():
                self._begin_drain(journal)
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if closed.done() and not closed.cancelled():
                await self._end(journal, lost)
            else:
                await self._fence(journal)
                for broken in (journal, *helpers):
                    if broken.done() and not broken.cancelled():
                        # Its own error; it need not be that the lease was lost.
                        broken.result()
                raise WorkerFencedError(self.worker_id)
        except asyncio.CancelledError:
            # By others, with all tasks of the event loop perhaps: what it runs does not go on without it.
            self.scheduler.fence()
            raise
        finally:
            tasks: list[asyncio.Task[Any]] = [draining, *ends]
            if self._drained is not None:
                tasks.append(self._drained)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin_drain(self, journal: asyncio.Task[None]) -> None:
        """Claim nothing more, and let running calls finish."""
        self.scheduler.close()
        self._drain_ends_at = self._clock.boot() + self._drain.total_seconds()
        self._drained = asyncio.create_task(self._drain_all(journal), name="durable-batches drain")

    async def _end(self, journal: asyncio.Task[None], lost: asyncio.Task[bool]) -> None:
        """End in good order: drain, commit what is left, release the rest, deregister."""
        if self._drained is None:
            self._begin_drain(journal)
        assert self._drained is not None
        ending = asyncio.create_task(self._deregister_when(self._drained, journal))
        # Where the store does not come back, others take over when the lease has expired.
        left = max(self._drain_ends_at - self._clock.boot(), 0.0)
        patience = asyncio.create_task(self._clock.sleep(left + _STORE_PATIENCE_SECONDS))
        await asyncio.wait([ending, lost, patience], return_when=asyncio.FIRST_COMPLETED)
        patience.cancel()
        if not ending.done():
            if not lost.done():
                held = self.scheduler.held
                _log.warning(
                    "worker %s waits for the store no longer, %g s after its drain: others take over when its lease "
                    "expires, and run the %d documents that it holds",
                    self.worker_id,
                    _STORE_PATIENCE_SECONDS,
                    held,
                    extra={"worker_id": self.worker_id, "held": held, "seconds": _STORE_PATIENCE_SECONDS},
                )
            await self._fence(journal)
            ending.cancel()
        await asyncio.gather(ending, patience, return_exceptions=True)
        if not ending.cancelled() and (error := ending.exception()) is not None:
            _log.warning(
                "worker %s not deregistered, others take over when its lease expires: %s",
                self.worker_id,
                error,
                extra={"worker_id": self.worker_id, "error_type": type(error).__name__},
            )

    def _supply_limiters(self) -> None:
        """Supply those whose limits are shared before a call needs it: code beside the activities may use them."""
        for workflow in self._workflows.values():
            for activity in workflow.activities():
                own = activity.limiter
                limiter = self.resources.named_limiters.get(own) if isinstance(own, str) else own
                if limiter is not None:
                    self._budgets.adopt(limiter)

    async def _drain_all(self, journal: asyncio.Task[None]) -> None:
        # A commit that is under way may bring claims yet; the next one has none.
        passed = asyncio.Event()
        self.journal.before_commit(passed.set)
        claimed = asyncio.create_task(passed.wait())
        try:
            through = asyncio.wait([claimed, journal], return_when=asyncio.FIRST_COMPLETED)
            await self.scheduler.drain(self._drain.total_seconds(), through)
        finally:
            claimed.cancel()

    async def _deregister_when(self, drained: asyncio.Task[None], journal: asyncio.Task[None]) -> None:
        await drained
        self.journal.close()
        await journal
        await self._budgets.hand_over()
        # A connection that a fault of the network has left behind is found out by this, and another one will do.
        await ride_out(
            partial(self._membership.deregister, self.worker_id),
            self._outages,
            f"deregistration of worker {self.worker_id}",
            self._clock.sleep,
        )

    async def _fence(self, journal: asyncio.Task[None]) -> None:
        """End at once: nothing of what is held may be written any more."""
        self._signals.lease_lost.fire(self.worker_id)
        # What runs first: a commit that gets no answer is seen through, and that may take long.
        self.scheduler.fence()
        journal.cancel()
        await asyncio.wait([journal])
        await self.scheduler.fenced()
        # It has not crashed: where others have not expired it yet, its executions are released with this.
        self._membership.deregister_later(self.worker_id)
        if self._renewer.reaches_store:
            with suppress(StoreUnavailableError):
                await self._membership.deregister_pending()

    async def _show_that_the_loop_turns(self) -> None:
        """Show it to the lease renewer and the loop watch; and look for calls that never end, or are asleep."""
        while True:
            self._renewer.loop_turns()
            self.resources.moment = self._watch.turned
            self._long_calls.look()
            self._client_retries.look()
            await self._clock.sleep(self._tick_seconds, housekeeping=True)

    @property
    def _tick_seconds(self) -> float:
        options = self._options
        unseen = [_LOOK_SECONDS, options.max_stall.total_seconds() / 4]
        if options.blocked_warning is not None:
            unseen.append(options.blocked_warning.total_seconds() / 2)
        return min(unseen)

    def _running(self) -> Sequence[HeldExecution]:
        return self.scheduler.running

    async def _look_around(self) -> None:
        """Now and then, expire dead workers, and notice what other processes have ended."""
        lease = self._options.lease.total_seconds()
        answered, failed = self._clock.boot(), False
        with self._outage:
            while True:
                await self._clock.sleep(_LOOK_SECONDS, housekeeping=True)
                spared = spared_seconds(lease, self._clock.boot() - answered - _LOOK_SECONDS, failed=failed)
                if spared:
                    self._renewer.give_others_time(spared)
                try:
                    if self.may_expire_others:
                        await self._expire_dead_workers()
                    else:
                        await self._store.workers()
                    answered, failed = self._clock.boot(), False
                    self._outage.answered()
                    await self._stop_what_others_ended()
                    await self._sweep.look()
                except StoreUnavailableError as error:
                    self._outage.failed(error)
                    failed = True

    @property
    def may_expire_others(self) -> bool:
        """Whether it can tell who is dead; see `LeaseRenewer.may_expire_others`."""
        return self._renewer.may_expire_others

    async def _expire_dead_workers(self) -> None:
        if not self.may_expire_others:
            return
        expired = await self._membership.expire_dead_workers(lambda: self.may_expire_others)
        if expired.workers or expired.events:
            self._deliver(expired.events)
            self.announce(expired.events)

    async def _stop_what_others_ended(self) -> None:
        for batch_id in self.scheduler.held_batches:
            record = await self._store.batch(batch_id)
            if record is None or record.ended:
                self.scheduler.stop_batch(batch_id)
            elif _lets_calls_finish(record):
                self.scheduler.stop_paused(batch_id, looks=True)
            elif quota_pause_of(record) is not None:
                self.scheduler.stop_paused(batch_id, looks=False)

    # ---- for the journal ---------------------------------------------------------------------------------------

    def _keep(self, result: ActivityCompleted | LateResult) -> None:
        if not self._killed:
            self._late_results.keep(self.worker_id, result)

    def _claim_request(self, facts: Sequence[Fact]) -> ClaimRequest | None:
        return self.scheduler.claim_request(facts)

    def _renewed(self, asked: float) -> None:
        """Take note of a commit, which renews the lease."""
        self._committed_at = asked
        self._lease.renewed(asked)

    def _committed(self, facts: Sequence[Fact], committed: Committed, request: ClaimRequest | None) -> None:
        # What is called from here on begins now.
        self.resources.moment = self._clock.boot()
        self._deliver(committed.events)
        log_pauses(committed.events)
        if self._options.reporting is not None:
            self._options.reporting.events(committed.events)
        for batch_id, contradiction in committed.set_aside.items():
            _log.error("%s; nothing of it is claimed any more", contradiction, extra={"batch_id": batch_id})
        self.scheduler.committed(facts, committed, request)


def _lets_calls_finish(record: BatchRecord) -> bool:
    """Whether a batch is paused so that running calls finish, and no others are made."""
    pause = operator_pause_of(record)
    return (pause is not None and pause["running"] == "calls") or budget_pause_of(record) is not None
