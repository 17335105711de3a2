"""This process's share of the work: one journal, one lease, one budget, for any number of workflows."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from durable_batches.clock import Clock, Deadline, SystemClock
from durable_batches.errors import (
    ConfigurationError,
    StoreUnavailableError,
    WorkerFencedError,
    WorkerNotRunningError,
)
from durable_batches.lifecycle.facts import Cancel, Command, Fact, Seal
from durable_batches.lifecycle.records import ClaimRequest, Committed, WorkerId, WorkerRecord
from durable_batches.lifecycle.states import BatchId
from durable_batches.outage import repeated
from durable_batches.reading.subscriptions import Subscriptions
from durable_batches.runtime.attempt import Attempt
from durable_batches.runtime.dependencies import Dependencies, Provider
from durable_batches.runtime.resources import ActivityReport, RunStats, Surroundings
from durable_batches.stores.protocol import Store
from durable_batches.tasks import ReusableLock, seen_through
from durable_batches.worker.failure_log import tell_of_crash_loops
from durable_batches.worker.heartbeat import Heartbeat, is_dead, this_process
from durable_batches.worker.journal import Journal
from durable_batches.worker.scheduler import AnyWorkflow, Scheduler
from durable_batches.worker.signals import WorkerSignals

__all__ = ["Worker"]

_log = logging.getLogger("durable_batches")

_LEAST_THREADS: Final = 256
"""Threads for sync activities, made as they are needed. One document may call many at once; what bounds them is what
workflows call, not this number. Were it small, calls left behind by a timeout would keep others from beginning."""

_RESCUE_SECONDS: Final = 0.5
"""How often a worker looks for others that have died, and for ends of its batches that others brought about."""

_LONGEST_PAUSE_SECONDS: Final = 2.0
"""Between two attempts to start anew while the store is away."""

_AFTER_OUTAGE_SECONDS: Final = 3.0
"""How long nobody is declared dead after the store was away: longer than others need to notice that it is back."""

_STORE_PATIENCE_SECONDS: Final = 10.0
"""How much longer than its drain a closing worker waits for a store that is away."""

_DEFAULT_LEASE: Final = timedelta(seconds=30)
_DEFAULT_DRAIN: Final = timedelta(seconds=30)
_DEFAULT_STALL: Final = timedelta(minutes=5)


class Worker:
    """A worker serves the workflows of its orchestrators, inside `async with`; constructing it needs no event loop.

    Args:
        store: Where the batches are.
        max_in_flight: Documents in flight here at once, over all batches. 0: submits and reads only.
        lease: How long others wait for a sign of life before they take over its documents.
        drain: How long activities may go on when the worker is closed; then they are cancelled. Unfinished
            documents are given back, with everything that they have recorded.
        max_stall: How long the event loop may stand still before the lease is let go.
        dependencies: By provider, what activities and resolvers get in place of what it opens: the value itself,
            or `dependency(other)` to have another one opened. For tests.
        clock: The time it goes by.

    Raises:
        ConfigurationError: `store` is no store, or a number is out of range.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_in_flight: int = 100,
        lease: timedelta = _DEFAULT_LEASE,
        drain: timedelta = _DEFAULT_DRAIN,
        max_stall: timedelta = _DEFAULT_STALL,
        dependencies: Mapping[Provider, object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        # A class has the methods, too: the parentheses are easily forgotten.
        if isinstance(store, type) or not isinstance(store, Store):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"{type(store).__name__!r} is no store; give a SQLiteStore, a PostgresStore, a MemoryStore, or an "
                "object with the methods of durable_batches.stores.Store"
            )
        if max_in_flight < 0:
            raise ConfigurationError("max_in_flight must be 0 or more")
        if lease <= timedelta(0) or drain < timedelta(0) or max_stall <= timedelta(0):
            raise ConfigurationError("lease and max_stall must be positive, and drain not negative")
        self._store: Final[Store] = store
        self._max_in_flight = max_in_flight
        self._lease = lease
        self._drain = drain
        self._max_stall = max_stall
        self._clock: Final[Clock] = clock or SystemClock()
        self._dependencies = Dependencies(dependencies)
        self._workflows: dict[tuple[str, str], AnyWorkflow] = {}
        self._stats = RunStats()
        self._signals = WorkerSignals()
        self._entered = 0
        self._entering = ReusableLock()
        self._subscriptions: Subscriptions | None = None
        self._unsaid: list[WorkerId] = []
        self._threads: ThreadPoolExecutor | None = None
        self._incarnation: _Incarnation | None = None
        self._life: asyncio.Task[None] | None = None
        self._closing = False
        self._loading: set[BatchId] = set()

    # ---- for users -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the store and the dependencies, register, take back what dead workers held, and begin to work.

        Entering nests.

        Raises:
            DependencyError: A dependency could not be opened.
            StoreUnavailableError: The store could not.
        """
        async with self._entering:
            if self._entered == 0:
                await self._open()
            self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop claiming, drain, give back what is unfinished, and say goodbye."""
        async with self._entering:
            self._entered -= 1
            if self._entered == 0:
                await self._close()

    @property
    def store(self) -> Store:
        """Where the batches are."""
        return self._store

    @property
    def stats(self) -> RunStats:
        """What this worker has done since it was made, in numbers."""
        return self._stats

    # ---- for its orchestrators -------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """The time it goes by."""
        return self._clock

    @property
    def signals(self) -> WorkerSignals:
        """What its loops fire, for tests."""
        return self._signals

    @property
    def running(self) -> bool:
        """Whether it is inside its `async with`."""
        return self._entered > 0

    @property
    def worker_id(self) -> WorkerId:
        """Its id in the store, of this incarnation."""
        return self._alive().worker_id

    @property
    def subscriptions(self) -> Subscriptions:
        """Who watches which batch."""
        if self._subscriptions is None:
            raise WorkerNotRunningError("the worker is not running: use it inside `async with`")
        return self._subscriptions

    @property
    def dependencies(self) -> Dependencies:
        """What its activities and resolvers are given."""
        return self._dependencies

    @property
    def loading(self) -> set[BatchId]:
        """The batches that are being submitted through it at this moment."""
        return self._loading

    def serve(self, workflow: AnyWorkflow) -> None:
        """Run this workflow's batches from now on.

        Raises:
            ConfigurationError: Another workflow has its name and version.
        """
        for pair in workflow.versions:
            if self._workflows.get(pair, workflow) is not workflow:
                raise ConfigurationError(
                    f"the worker serves another workflow {pair[0]!r} of version {pair[1]!r}; give one of them a name "
                    "of its own: workflow(..., name=...)"
                )
        for pair in workflow.versions:
            self._workflows[pair] = workflow
        self.hint()

    def hint(self) -> None:
        """There may be something new to claim."""
        if self._incarnation is not None:
            self._incarnation.scheduler.hint()

    def reports(self, batch_id: BatchId) -> list[ActivityReport]:
        """How far long activities of a batch say they are, of those that run here."""
        if self._incarnation is None:
            return []
        reports = self._incarnation.surroundings.reports
        return [report for key, report in reports.items() if key[0] == batch_id]

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """Give a command, and let everybody here know what came of it.

        One whose reply was lost is given again: the store knows it by its id, and answers as it did.
        """
        committed = await repeated(lambda: self._store.control(batch_id, command), self._clock, batch_id)
        self.announce(committed)
        if isinstance(command, Seal) and self._incarnation is not None:
            self._incarnation.scheduler.look_at_deadlines()
        if committed.applied and isinstance(command, Cancel) and self._incarnation is not None:
            # The answer to a repeated one comes without the event that says so.
            self._incarnation.scheduler.batch_ended(batch_id)
        return committed

    def announce(self, committed: Committed) -> None:
        """Hand on the events of a write that did not go through the journal."""
        self.subscriptions.deliver(committed.events)
        if self._incarnation is not None:
            self._incarnation.scheduler.committed((), committed, None)
            self._incarnation.scheduler.hint()

    async def rescue(self) -> None:
        """Declare dead who is, and free what they held."""
        dead = [worker.worker_id for worker in await self._store.workers() if is_dead(worker)]
        expired = await self._store.expire(dead=dead)
        if expired.workers:
            # A process that is gone was stopped by somebody; a lease that ran out is worth a look.
            level = logging.INFO if set(expired.workers) <= set(dead) else logging.WARNING
            _log.log(level, "declared dead, and freed what they held: %s", ", ".join(expired.workers))
        if expired.workers or expired.events:
            # Events alone: what was left of some that were declared dead before.
            tell_of_crash_loops(expired.events)
            self.announce(Committed(events=expired.events))
        self._signals.membership.expired.fire(expired.workers)

    async def say_goodbye(self, worker_id: WorkerId, *, now: bool) -> None:
        """Give back what one of this process's incarnations held, which has not crashed; later, if not `now`."""
        self._unsaid.append(worker_id)
        if now:
            await self.say_what_is_unsaid()

    async def say_what_is_unsaid(self) -> bool:
        """Say the goodbyes that the store did not hear so far; whether there were any."""
        were_any = bool(self._unsaid)
        while self._unsaid:
            events = await self._store.leave(self._unsaid[0])
            self._signals.membership.deregistered.fire(self._unsaid.pop(0))
            self.subscriptions.deliver(events)
        return were_any

    def end_drain(self) -> None:
        """Where it is being closed, wait no longer for what runs: cancel it, and give its documents back."""
        if self._incarnation is not None:
            self._incarnation.end_drain()

    # ---- for tests ---------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether it writes nothing and claims nothing now; what runs may run."""
        return self._incarnation is None or self._incarnation.idle

    @property
    def attempts(self) -> list[Attempt]:
        """What runs here now."""
        return [] if self._incarnation is None else self._incarnation.scheduler.attempts

    def halt(self) -> None:
        """As if it had died: no activity begins any more, what runs is cancelled, and nothing is waited for.

        It goes on as one that was declared dead does: with a new incarnation, unless it is being closed.
        """
        if self._incarnation is not None:
            self._incarnation.halt()

    async def reborn(self, dead: WorkerId) -> None:
        """Wait until the incarnation that follows this one has begun."""
        while (incarnation := self._alive()).worker_id == dead:
            await incarnation.over.wait()
        await incarnation.begun.wait()

    # ---- its life --------------------------------------------------------------------------------------------

    def _alive(self) -> _Incarnation:
        if self._incarnation is None:
            raise WorkerNotRunningError("the worker is not running: use it inside `async with`")
        return self._incarnation

    async def _open(self) -> None:
        await self._store.open()
        self._closing = False
        self._subscriptions = Subscriptions(self._store, self._clock, self._signals.news)
        self._threads = ThreadPoolExecutor(
            max(self._max_in_flight, _LEAST_THREADS), thread_name_prefix="durable-batches-activity"
        )
        self._dependencies.start()
        try:
            if self._max_in_flight:
                workflows = dict.fromkeys(self._workflows.values())
                await self._dependencies.open(provider for workflow in workflows for provider in workflow.providers())
            await self._begin()
        except BaseException:
            await self._close()
            raise

    async def _begin(self) -> None:
        began = asyncio.Event()
        self._life = asyncio.create_task(self._live(began), name="durable-batches worker")
        waiting = asyncio.create_task(began.wait())
        try:
            await asyncio.wait([self._life, waiting], return_when=asyncio.FIRST_COMPLETED)
            if self._life.done():
                self._life.result()
        finally:
            waiting.cancel()

    async def _close(self) -> None:
        self._closing = True
        life, self._life = self._life, None
        try:
            if self._incarnation is not None:
                self._incarnation.close()
            if life is not None:
                await seen_through(life)
        finally:
            try:
                await self._dependencies.close()
            finally:
                await self._let_go()

    async def _let_go(self) -> None:
        try:
            if self._subscriptions is not None:
                await self._subscriptions.close()
                self._subscriptions = None
            if self._threads is not None:
                # A thread cannot be cancelled; one that a timeout left behind ends in its own time.
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None
        finally:
            await self._store.close()

    async def _live(self, began: asyncio.Event) -> None:
        """One incarnation after another, until closed: one that was declared dead is followed by a new one."""
        pause = _RESCUE_SECONDS
        while True:
            incarnation = self._incarnation = self._new_incarnation()
            try:
                await incarnation.run(began)
                return
            except WorkerFencedError as error:
                pause = _RESCUE_SECONDS
                if not incarnation.halted:
                    _log.error("%s; it drops its documents and starts anew", error)
            except Exception as error:
                if not began.is_set():
                    raise
                if isinstance(error, StoreUnavailableError) and not incarnation.begun.is_set():
                    _log.warning("the worker cannot start anew yet: %s", error)
                else:
                    _log.exception("worker %s broke down; it starts anew", incarnation.worker_id)
                await incarnation.rest(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            finally:
                self._incarnation = None
                incarnation.over.set()
            if self._closing:
                return

    def _new_incarnation(self) -> _Incarnation:
        assert self._threads is not None
        return _Incarnation(
            self,
            self._store,
            self._workflows,
            threads=self._threads,
            capacity=self._max_in_flight,
            lease=self._lease,
            drain=self._drain,
            max_stall=self._max_stall,
        )


class _Incarnation:
    """One life of a worker: from its registration to its goodbye, or to being declared dead."""

    def __init__(
        self,
        worker: Worker,
        store: Store,
        workflows: dict[tuple[str, str], AnyWorkflow],
        *,
        threads: ThreadPoolExecutor,
        capacity: int,
        lease: timedelta,
        drain: timedelta,
        max_stall: timedelta,
    ) -> None:
        self.worker_id: Final = WorkerId(uuid4().hex[:20])
        self._worker = worker
        self._store = store
        self._workflows = workflows
        self._lease = lease
        self._drain = drain
        self._max_stall = max_stall
        self._clock = worker.clock
        self._signals = worker.signals
        self.journal = Journal(
            store,
            self.worker_id,
            self._clock,
            claim=self._claim_request,
            committed=self._committed,
            signals=self._signals.journal,
        )
        self.surroundings = Surroundings(
            recorder=self.journal,
            clock=self._clock,
            threads=threads,
            stats=worker.stats,
            dependencies=worker.dependencies,
        )
        self.scheduler = Scheduler(
            store,
            workflows,
            self.surroundings,
            capacity=capacity,
            poke=self.journal.poke,
            signals=self._signals.scheduler,
        )
        self.begun = asyncio.Event()
        self.over = asyncio.Event()
        self.halted = False
        self._was_away = False
        self._resting = False
        self._closed = asyncio.Event()
        self._lost = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(
            store,
            self.worker_id,
            lease,
            max_stall,
            self._clock,
            lost=lambda: loop.call_soon_threadsafe(self._lost.set),
            signals=self._signals.lease,
        )

    @property
    def idle(self) -> bool:
        """See `Worker.idle`."""
        return self._resting or (self.begun.is_set() and self.journal.idle and self.scheduler.idle)

    def close(self) -> None:
        """Wind up."""
        self._closed.set()

    def end_drain(self) -> None:
        """See `Worker.end_drain`."""
        # Also where the drain has yet to begin.
        self._drain = timedelta(0)
        if self._closed.is_set():
            self.scheduler.end_drain()

    async def rest(self, seconds: float) -> None:
        """It broke down, and the next one may, too: wait a little, unless it is being closed."""
        self._resting = True
        with suppress(TimeoutError):
            async with Deadline(self._clock, seconds):
                await self._closed.wait()

    def halt(self) -> None:
        """See `Worker.halt`."""
        self.halted = True
        self.scheduler.close()
        self.scheduler.halt()
        self._lost.set()

    async def run(self, began: asyncio.Event) -> None:
        """Live.

        Raises:
            WorkerFencedError: The worker was declared dead.
        """
        identity = this_process()
        await self._store.register(
            WorkerRecord(
                self.worker_id,
                identity.boot_id,
                identity.pid_namespace,
                identity.pid,
                identity.started,
                frozenset(self._workflows),
            ),
            int(self._lease.total_seconds() * 1_000_000),
        )
        self._signals.membership.registered.fire(self.worker_id)
        _log.info("worker %s runs in process %d on %s", self.worker_id, identity.pid, socket.gethostname())
        self._heartbeat.start()
        try:
            # After an outage, the others get their time to say the same before anybody looks for dead ones.
            self._was_away = await self._worker.say_what_is_unsaid()
            if not self._was_away:
                await self._worker.rescue()
            began.set()
            self.begun.set()
            self._signals.membership.restarted.fire(self.worker_id)
            await self._work()
        finally:
            self._heartbeat.signal_stop()
            await asyncio.to_thread(self._heartbeat.join)

    async def _work(self) -> None:
        journal = asyncio.create_task(self.journal.run(), name="durable-batches journal")
        closed = asyncio.create_task(self._closed.wait())
        lost = asyncio.create_task(self._lost.wait())
        helpers = [
            asyncio.create_task(self.scheduler.run(), name="durable-batches scheduler"),
            asyncio.create_task(self._look_around(), name="durable-batches rescue"),
            asyncio.create_task(self._tick(), name="durable-batches tick"),
        ]
        try:
            await asyncio.wait([journal, closed, lost, *helpers], return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                await self._wind_up(journal, lost)
            else:
                await self._give_up(journal)
                for broken in (journal, *helpers):
                    if broken.done() and not broken.cancelled():
                        # What broke it is told; it need not be that it was declared dead.
                        broken.result()
                raise WorkerFencedError(self.worker_id)
        finally:
            for task in (journal, closed, lost, *helpers):
                task.cancel()
            await asyncio.gather(journal, closed, lost, *helpers, return_exceptions=True)

    async def _wind_up(self, journal: asyncio.Task[None], lost: asyncio.Task[bool]) -> None:
        """A clean end: drain, commit what is left, give the rest back, say goodbye."""
        self.scheduler.close()
        ending = asyncio.create_task(self._drain_and_leave(journal))
        # Where the store does not come back, somebody else will have to take over from the lease's end.
        patience = asyncio.create_task(self._clock.sleep(self._drain.total_seconds() + _STORE_PATIENCE_SECONDS))
        await asyncio.wait([ending, lost, patience], return_when=asyncio.FIRST_COMPLETED)
        patience.cancel()
        if not ending.done():
            await self._give_up(journal)
            ending.cancel()
        await asyncio.gather(ending, patience, return_exceptions=True)
        if not ending.cancelled() and ending.exception() is not None:
            _log.warning("worker %s did not leave cleanly: %s", self.worker_id, ending.exception())

    async def _drain_and_leave(self, journal: asyncio.Task[None]) -> None:
        # A commit that is under way may bring claims yet; the next one has none.
        passed = asyncio.Event()
        self.journal.remind(passed.set)
        claimed = asyncio.create_task(passed.wait())
        try:
            through = asyncio.wait([claimed, journal], return_when=asyncio.FIRST_COMPLETED)
            await self.scheduler.drain(self._drain.total_seconds(), through)
        finally:
            claimed.cancel()
        self.journal.close()
        await journal
        self._worker.subscriptions.deliver(await self._store.leave(self.worker_id))
        self._signals.membership.deregistered.fire(self.worker_id)

    async def _give_up(self, journal: asyncio.Task[None]) -> None:
        """Declared dead: nothing of what is held may be written any more."""
        self._signals.membership.lease_lost.fire(self.worker_id)
        # What runs first: a commit that gets no answer is seen through, and that may take long.
        self.scheduler.close()
        self.scheduler.halt()
        journal.cancel()
        await asyncio.wait([journal])
        await self.scheduler.abandon()
        if not self.halted:
            # Where it only counted itself dead, what it held is free with that.
            with suppress(StoreUnavailableError):
                await self._worker.say_goodbye(self.worker_id, now=self._heartbeat.reaches)

    async def _tick(self) -> None:
        """Show that the loop turns, whatever the store does meanwhile."""
        while True:
            self._heartbeat.tick()
            await self._clock.sleep(min(_RESCUE_SECONDS, self._max_stall.total_seconds() / 4), housekeeping=True)

    async def _look_around(self) -> None:
        """Now and then: rescue, and notice what other processes decided."""
        away = self._was_away
        while True:
            await self._clock.sleep(_AFTER_OUTAGE_SECONDS if away else _RESCUE_SECONDS, housekeeping=True)
            try:
                if away:
                    # All others that it is back for need a moment to say that they live.
                    await self._store.workers()
                    _log.info("the store answers again")
                else:
                    await self._worker.rescue()
                away = False
                for batch_id in self.scheduler.held_batches():
                    record = await self._store.batch(batch_id)
                    if record is None or record.ended:
                        self.scheduler.batch_ended(batch_id)
            except StoreUnavailableError as error:
                if not away:
                    _log.warning("looking after other workers waits: %s", error)
                away = True

    def _claim_request(self, facts: Sequence[Fact]) -> ClaimRequest | None:
        return self.scheduler.claim_request(facts)

    def _committed(self, facts: Sequence[Fact], committed: Committed, request: ClaimRequest | None) -> None:
        self._worker.subscriptions.deliver(committed.events)
        self.scheduler.committed(facts, committed, request)
