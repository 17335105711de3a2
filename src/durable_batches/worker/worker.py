"""The worker: one process's share of the work, with one journal, lease and budget for any number of workflows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Literal, Self, cast

from durable_batches.clock import Clock, Deadline, SystemClock
from durable_batches.errors import (
    ConfigurationError,
    StoreUnavailableError,
    TransactionOpenError,
    WorkerFencedError,
    WorkerNotRunningError,
)
from durable_batches.executors.executors import Executors
from durable_batches.executors.kept_executor import ExecutorOrFactory
from durable_batches.forked import end_child
from durable_batches.lifecycle.commands import Command
from durable_batches.lifecycle.primitives import from_micros
from durable_batches.lifecycle.records import GENERATION, BatchRecord, Committed, EventRecord, WorkerId
from durable_batches.lifecycle.states import BatchId
from durable_batches.options import (
    check_callable,
    check_clock,
    check_dependencies,
    check_duration,
    check_flag,
    check_function,
    check_integer,
)
from durable_batches.outage import Backoff, Outage, Outages
from durable_batches.reading.control import Control
from durable_batches.reading.news import News
from durable_batches.reading.raw_access import RawAccess
from durable_batches.reading.reader import BatchReader
from durable_batches.runtime.classify import ErrorClassifier, default_classifier
from durable_batches.runtime.dependencies import Dependencies, Provider
from durable_batches.runtime.limits import Limiter, checked_limiters, no_limiter_named
from durable_batches.runtime.resources import ActivityReport, RunStats
from durable_batches.runtime.threads import Threads
from durable_batches.stores.levels import require_level
from durable_batches.stores.open_transactions import OpenTransactions
from durable_batches.stores.protocol import HostTransaction, Store, check_store
from durable_batches.tasks import ReusableLock, seen_through
from durable_batches.telemetry.hooks import HOOKS, Telemetry, WorkerGauges
from durable_batches.worker.health import WorkerHealth
from durable_batches.worker.late_results import LateResults
from durable_batches.worker.membership import Membership
from durable_batches.worker.reporting import Reporting
from durable_batches.worker.runner import AnyWorkflow
from durable_batches.worker.selection import BatchFilter, Selection
from durable_batches.worker.session import Session, SessionOptions
from durable_batches.worker.shared_budgets import check_shared
from durable_batches.worker.shutdown import Shutdown
from durable_batches.worker.signals import WorkerSignals
from durable_batches.worker.store_watch import StoreWatch

__all__ = ["Worker"]

_log = logging.getLogger("durable_batches")

_LEAST_THREADS: Final = 256
"""Threads for sync activities, started as needed. One document may call many concurrently; the calls of the workflows
limit them, not this number."""

_RESTART_SECONDS: Final = 0.5
_LONGEST_RESTART_SECONDS: Final = 2.0
"""Between two sessions of which the first broke down, as while the store is away."""


class Worker:
    """Runs the workflows of its orchestrators, inside `async with`; constructing it needs no event loop.

    Args:
        store: The store of the batches.
        max_in_flight: Documents in flight in this worker, over all batches, beside those that only wait: for another
            batch, or half a minute or longer for a retry or a permit. 0: only submits and reads.
        lease: The time without a renewal after which other workers take over its documents.
        drain: The time that running activities have to finish when the worker is closed; then they are cancelled.
            Unfinished documents are released, with everything that they have recorded.
        max_stall: The time for which the event loop may be blocked before the lease is given up.
        executors: What activities with `run_on=` run on, by name: a `concurrent.futures.Executor`, or a function that
            makes one, such as `process_pool()`. Only what is made can be replaced when it breaks; it is ended with the
            worker, and what is given as it is stays open. A `classify` is then a function of a module.
        limiters: The limiters of activities that name theirs (`limiter="openai"`), by name.
        classify: Judges the errors of activities that have no classifier of their own.
        signals: Have SIGTERM and SIGINT (Ctrl-C) drain it: it claims nothing more, and running activities finish, for
            `drain` at most. The second signal cancels them. A server or framework that handles the signal closes the
            worker in its own time. Where nothing handles it, the task that entered the worker is cancelled, and leaving
            the block raises `SystemExit` with 143 or 130; a third signal ends the process, and so do 10 s in
            which its main thread, after a signal, only waits for threads or processes to end.
        batches: Which batches it runs: "all" that its orchestrators' workflows are those of, also what other processes
            have submitted and left unfinished; "mine", those that its orchestrators have submitted or attached to since
            it was created; or those of a `BatchFilter`. Others are left to other workers.
        max_kept_bytes: How much is kept in memory of finished results that could not be recorded because the lease was
            lost, until they are recorded under the next one. What does not fit is dropped, and its activities run
            again. 64 MiB by default.
        blocked_warning: The time for which the event loop may be blocked before the log has a warning with the stack of
            the code that blocks it, once a place. None: no warning.
        long_call_warning: The time for which an attempt of an activity without a timeout may run before the log has a
            warning, once a call. None: no warning.
        client_retry_warning: How long a client that retries by itself may be asleep within an attempt, as on a
            `Retry-After`, before the log has a warning, once an activity. None: no warning.
        telemetry: Follows its work, for traces and metrics: `durable_batches.telemetry.OpenTelemetry()`, or a backend
            of your own. None: nobody does, and nothing is measured.
        store_gauges: How often to count in the store, for telemetry, the unfinished batches of its workflows and their
            documents, also those that other workers run; at most a twentieth of the time is spent on it. One worker of
            a store is enough. None: never.
        dependencies: Replacements of dependencies by provider, for tests: a value, or `dependency(other)` to open
            another provider.
        clock: The source of time.

    Raises:
        ConfigurationError: `store` is no store, or a number is out of range, or `batches` is not "all", and the store
            is an adapter of level 1 (`Capabilities.level`), which would take from all.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_in_flight: int = 100,
        lease: timedelta = timedelta(seconds=30),
        drain: timedelta = timedelta(seconds=30),
        max_stall: timedelta = timedelta(minutes=5),
        blocked_warning: timedelta | None = timedelta(seconds=1),
        long_call_warning: timedelta | None = timedelta(minutes=10),
        client_retry_warning: timedelta | None = timedelta(seconds=10),
        executors: Mapping[str, ExecutorOrFactory] | None = None,
        limiters: Mapping[str, Limiter] | None = None,
        classify: ErrorClassifier = default_classifier,
        signals: bool = False,
        batches: BatchFilter | Literal["all", "mine"] = "all",
        max_kept_bytes: int = 64 * 1024 * 1024,
        telemetry: Telemetry | None = None,
        store_gauges: timedelta | None = None,
        dependencies: Mapping[Provider, object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_store(store)
        check_integer("max_in_flight", max_in_flight)
        check_integer("max_kept_bytes", max_kept_bytes)
        for name, duration in (("lease", lease), ("drain", drain), ("max_stall", max_stall)):
            check_duration(name, duration)
        check_function("classify", classify)
        check_flag("signals", signals)
        for name, after in (
            ("blocked_warning", blocked_warning),
            ("long_call_warning", long_call_warning),
            ("client_retry_warning", client_retry_warning),
        ):
            check_duration(name, after, optional=True)
            if after is not None and after <= timedelta(0):
                raise ConfigurationError(f"{name} must be positive, or None for no warning")
        check_duration("store_gauges", store_gauges, optional=True)
        if store_gauges is not None and store_gauges <= timedelta(0):
            raise ConfigurationError("store_gauges must be positive, or None for no reading")
        if store_gauges is not None and telemetry is None:
            raise ConfigurationError("store_gauges is for telemetry, and there is none: give telemetry=, too")
        check_dependencies("dependencies", dependencies)
        check_clock(clock)
        # A class has them, too: the parentheses are easily forgotten.
        backend: object = None if isinstance(cast("object", telemetry), type) else telemetry
        for hook in HOOKS if telemetry is not None else ():
            check_callable(f"telemetry.{hook}", getattr(backend, hook, None))
        if max_in_flight < 0 or max_kept_bytes < 0:
            raise ConfigurationError("max_in_flight and max_kept_bytes must be 0 or more")
        if lease <= timedelta(0) or drain < timedelta(0) or max_stall <= timedelta(0):
            raise ConfigurationError("lease and max_stall must be positive, and drain not negative")
        self._selection = Selection(batches)
        if not self._selection.is_everything:
            require_level(store, 2, f"Worker(batches={batches!r})")
        self._store: Final[Store] = store
        self._telemetry: Final[Telemetry | None] = telemetry
        self._reporting: Final = None if telemetry is None else Reporting(telemetry)
        self._clock: Final[Clock] = SystemClock() if clock is None else clock
        self._executors: Final = Executors(executors, self._clock, classify)
        self._executor_names: Final = tuple(executors or ())
        self._options = SessionOptions(
            max_in_flight,
            lease,
            drain,
            max_stall,
            blocked_warning,
            long_call_warning,
            client_retry_warning,
            classify,
            self._reporting,
            self._executors,
            checked_limiters(limiters),
        )
        self._dependencies = Dependencies(dependencies, clock=self._clock)
        self._workflows: dict[tuple[str, str], AnyWorkflow] = {}
        self._shared_limiters: dict[str, object] = {}
        self._before_start: dict[AnyWorkflow, Callable[[], Awaitable[None]]] = {}
        self._stats = RunStats()
        self._signals = WorkerSignals()
        self._outages = Outages(self._clock)
        self._news = News(store, self._clock, self._outages, self._signals.news)
        self._control = Control(store, self._clock, self._outages, self._commanded)
        self._membership = Membership(store, self._news.deliver, self._signals.membership)
        # An adapter of level 1 may not know this kind of fact.
        self._late_results = LateResults(max_kept_bytes if store.capabilities.level >= 2 else 0)
        self._entered = 0
        self._entering = ReusableLock()
        self._threads: Threads | None = None
        self._session: Session | None = None
        self._sessions: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._shutdown = Shutdown(self.begin_drain, self.end_drain, listens=signals)
        self._draining = False
        self._entered_by: asyncio.Task[Any] | None = None
        self._stopped = False
        self._loading: set[BatchId] = set()
        self._in_transactions = OpenTransactions()
        self._stop_watching: Callable[[], None] | None = None
        self._store_watch: Final = (
            None
            if store_gauges is None
            else StoreWatch(store, self._clock, store_gauges, self._workflows.values, self._signals.watch.read)
        )

    # ---- for users -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the store and the dependencies, register, expire dead workers, and begin to work.

        Entering nests.

        Raises:
            ConfigurationError: It was created with `signals=True`, and this is not the main thread; or an activity of
                its workflows runs on an executor that it does not have.
            DependencyError: A dependency could not be opened.
            ExecutorError: An executor could not be made, or takes no calls.
            StoreUnavailableError: The store could not be opened.
            SystemExit: A signal was received meanwhile; see `signals`.
            WorkerNotRunningError: It was entered in another event loop, which runs yet.
        """
        async with self._entering:
            if self._entered > 0:
                self._news.check_loop()
            else:
                self._shutdown.listen()
                try:
                    await self._open()
                except BaseException as error:
                    self._shutdown.leave(error)
                    raise
            self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop claiming, drain, release unfinished documents, and deregister.

        Raises:
            SystemExit: A signal was received meanwhile; see `signals`.
        """
        if self._session is not None and self._session.is_inherited:
            end_child("the block that a worker was entered for", error)
        async with self._entering:
            self._entered -= 1
            if self._entered == 0:
                self._shutdown.closes()
                try:
                    await self._close()
                except BaseException as failure:
                    self._shutdown.leave(failure)
                    raise
                self._shutdown.leave(error)

    @property
    def store(self) -> Store:
        """The store of the batches."""
        return self._store

    @property
    def max_in_flight(self) -> int:
        """Documents in flight in this worker at most."""
        return self._options.capacity

    @property
    def stats(self) -> RunStats:
        """Counters of this worker since it was created."""
        return self._stats

    def health(self) -> WorkerHealth:
        """Return how it is at this moment: whether it may begin work, its lease, its event loop. On any thread."""
        session, now = self._session, self._clock.boot()
        began = self._outages.began
        away = None if began is None else from_micros(self._clock.now() - round((now - began) * 1_000_000))
        if session is not None:
            return session.health("draining" if self._draining else None, away)
        return WorkerHealth(
            ready=False,
            not_ready="starting" if self.running else "closed",
            lease_left=timedelta(0),
            last_commit=None,
            loop_lag=timedelta(0),
            in_flight=0,
            store_away_since=away,
        )

    # ---- for its orchestrators -------------------------------------------------------------------------------

    @property
    def workflows(self) -> Sequence[AnyWorkflow]:
        """The workflows of its orchestrators."""
        return list(dict.fromkeys(self._workflows.values()))

    @property
    def clock(self) -> Clock:
        """The source of time."""
        return self._clock

    @property
    def signals(self) -> WorkerSignals:
        """The signals of its loops, for tests."""
        return self._signals

    @property
    def running(self) -> bool:
        """Whether it is inside its `async with`, and its event loop has not stopped it."""
        return self._entered > 0 and not self._stopped

    @property
    def session(self) -> Session:
        """Its current session in the store.

        Raises:
            WorkerNotRunningError: It is not inside its `async with`.
        """
        if self._session is None:
            raise WorkerNotRunningError("the worker is not running: use it inside `async with`")
        return self._session

    @property
    def worker_id(self) -> WorkerId:
        """The id of its current session in the store."""
        return self.session.worker_id

    @property
    def news(self) -> News:
        """Says when a batch has moved."""
        return self._news

    @property
    def outages(self) -> Outages:
        """Logs the outages of its store."""
        return self._outages

    @property
    def telemetry(self) -> Telemetry | None:
        """What follows its work."""
        return self._telemetry

    @property
    def reporting(self) -> Reporting | None:
        """Reports its work; None: nobody wants to know."""
        return self._reporting

    @property
    def loading(self) -> set[BatchId]:
        """The batches that are being submitted through it at this moment."""
        return self._loading

    @property
    def takes_own_only(self) -> bool:
        """Whether it runs only what its orchestrators submit or attach to."""
        return self._selection.is_of_own

    def takes_from(self, batch: BatchRecord) -> bool:
        """Whether it runs this batch, as far as it has the workflow."""
        return self._options.capacity > 0 and batch.needs <= GENERATION and self._selection.has(batch)

    def take(self, batch_id: BatchId) -> None:
        """Run this batch, too, where the worker runs its own; for any thread."""
        if self._selection.add(batch_id) and (session := self._session) is not None:
            session.selection_changed()

    def leave(self, batch_id: BatchId) -> None:
        """Take from this batch no more: it was not submitted after all."""
        self._selection.remove(batch_id)

    def submitted_within(self, batch_id: BatchId, connection: HostTransaction) -> None:
        """Take note of a batch that was submitted in a transaction of the application, which is open yet."""
        self._in_transactions.add(batch_id, connection)

    def locks(self, connection: HostTransaction) -> None:
        """Take note that the running task has a transaction open that keeps everybody else from writing."""
        self._in_transactions.locks(connection)

    def check_unlocked(self, batch_id: str) -> None:
        """Refuse to wait for what cannot be written before the running task ends its own transaction.

        Raises:
            TransactionOpenError: It has such a transaction open.
        """
        if self._in_transactions.are_locking:
            raise TransactionOpenError(batch_id, locks=True)

    def reader(self, workflow: str | None) -> BatchReader:
        """Make a reader of this workflow's batches (None: of all), which reads while the worker is running."""
        return BatchReader(
            self._store,
            self._clock,
            self._news,
            self._outages,
            running=lambda: self.running,
            workflow=workflow,
            in_open_transaction=lambda batch_id: batch_id in self._in_transactions.batches(),
            check_wait=self.check_unlocked,
        )

    def raw_access(self) -> RawAccess:
        """Make an access to the batches of all workflows, which share the worker's look-out for news."""
        return RawAccess(self.reader(None), self._clock, self.command)

    def serve(self, workflow: AnyWorkflow) -> None:
        """Run this workflow's batches from now on.

        Raises:
            ConfigurationError: Another workflow has its name and version; or an activity runs on an executor that the
                worker, which is running, does not have.
        """
        for pair in workflow.versions:
            if self._workflows.get(pair, workflow) is not workflow:
                raise ConfigurationError(
                    f"the worker serves another workflow {pair[0]!r} of version {pair[1]!r}; give one of them a name "
                    "of its own: workflow(..., name=...)"
                )
        if self.running and self._options.capacity:
            self._check_activities(workflow)
        for pair in workflow.versions:
            self._workflows[pair] = workflow
        self.wake()

    def before_start(self, workflow: AnyWorkflow, look: Callable[[], Awaitable[None]]) -> None:
        """Have a look at the store taken for a workflow each time before the worker begins to run batches."""
        self._before_start[workflow] = look

    def wake(self) -> None:
        """Look for something to claim now."""
        if self._session is not None:
            self._session.scheduler.wake()

    def reports(self, batch_id: BatchId) -> list[ActivityReport]:
        """List the progress that running activities of a batch report in this process."""
        if self._session is None:
            return []
        reports = self._session.resources.reports
        return [report for key, report in reports.items() if key[0] == batch_id]

    async def command(self, batch_id: BatchId, command: Command) -> Committed:
        """Give a command to a batch, and stop, claim and tell subscribers here as it demands; see `Control.give`.

        Raises:
            TransactionOpenError: The running task has a transaction open that keeps everybody else from writing.
            WorkerNotRunningError: The worker runs in another event loop.
        """
        self._news.check_loop()
        self.check_unlocked(batch_id)
        return await self._control.give(batch_id, command)

    def announce(self, events: Sequence[EventRecord]) -> None:
        """Hand on the events of a write that did not go through the journal."""
        self._news.deliver(events)
        if self._session is not None:
            self._session.announce(events)

    async def expire_dead_workers(self) -> None:
        """Expire dead workers and release their executions, if its own lease is renewed."""

        def may_expire_others() -> bool:
            return self._session is None or self._session.may_expire_others

        if not may_expire_others():
            return
        expired = await self._membership.expire_dead_workers(may_expire_others)
        if expired.workers or expired.events:
            self.announce(expired.events)

    def leave_signals(self) -> None:
        """Listen to no signals, whatever it was created with: what enters it listens."""
        self._shutdown.listens = False

    def begin_drain(self) -> None:
        """Claim nothing more, let running activities finish, and release all documents; it stays open until closed."""
        self._draining = True
        if self._session is not None:
            self._session.begin_drain()

    def end_drain(self) -> None:
        """Where it drains, or is being closed, wait no longer for what runs: cancel it, and release its documents."""
        if self._session is not None:
            self._session.end_drain()

    # ---- its life --------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._draining = False
        await self._store.open()
        self._closing = asyncio.Event()
        self._entered_by, self._stopped = asyncio.current_task(), False
        self._news.open()
        self._threads = Threads(max(self._options.capacity, _LEAST_THREADS), self._threads_left)
        self._dependencies.start()
        try:
            if self._options.capacity:
                await self._dependencies.open(
                    provider for workflow in self.workflows for provider in workflow.providers()
                )
                await self._open_executors()
                for look in self._before_start.values():
                    await look()
            await self._begin()
            if self._reporting is not None:
                self._stop_watching = self._reporting.watch(self._gauges)
            if self._store_watch is not None:
                self._store_watch.open()
        except BaseException:
            await self._close()
            raise

    async def _open_executors(self) -> None:
        """Make the executors, once it is known that activities of the workflows name no others."""
        assert self._threads is not None
        for workflow in self.workflows:
            self._check_activities(workflow)
        await self._executors.open(self._threads)

    def _check_activities(self, workflow: AnyWorkflow) -> None:
        for activity in workflow.activities():
            self._executors.check(activity, workflow.name)
            if isinstance(activity.limiter, str) and activity.limiter not in self._options.limiters:
                raise no_limiter_named(activity.name, activity.limiter, workflow.name)
            limiter = activity.limiter
            named = self._options.limiters[limiter] if isinstance(limiter, str) else limiter
            user = f"activity {activity.name!r} of workflow {workflow.name!r}"
            check_shared(named, self._store, user, self._shared_limiters)

    async def _begin(self) -> None:
        """Start the task of the sessions, and wait until the first one works."""
        begun = asyncio.Event()
        self._sessions = asyncio.create_task(self._run_sessions(begun), name="durable-batches worker")
        self._sessions.add_done_callback(self._sessions_ended)
        waiting = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait([self._sessions, waiting], return_when=asyncio.FIRST_COMPLETED)
            if self._sessions.done():
                self._sessions.result()
        finally:
            waiting.cancel()

    def _gauges(self) -> WorkerGauges | None:
        session = self._session
        gauges = None if session is None else session.gauges(self._executor_names)
        if gauges is None or self._store_watch is None:
            return gauges
        return replace(gauges, workflows=self._store_watch.latest)

    async def _close(self) -> None:
        self._closing.set()
        sessions, self._sessions = self._sessions, None
        try:
            if self._session is not None:
                self._session.close()
            if sessions is not None:
                await seen_through(sessions)
        finally:
            if self._stop_watching is not None:
                self._stop_watching()
                self._stop_watching = None
            if self._store_watch is not None:
                await self._store_watch.close()
            try:
                await self._dependencies.close()
            finally:
                try:
                    await self._executors.close()
                finally:
                    await self._release_resources()

    async def _release_resources(self) -> None:
        try:
            await self._news.close()
            if self._threads is not None:
                # A thread cannot be cancelled; one that a timeout left behind ends in its own time.
                self._threads.close()
                self._threads = None
        finally:
            await self._store.close()

    async def _run_sessions(self, begun: asyncio.Event) -> None:
        """Run one session after another, until closed: one that lost its lease has a successor under a new id."""
        backoff = Backoff(_RESTART_SECONDS, _LONGEST_RESTART_SECONDS)
        with self._outages.of("the restart of the worker") as outage:

            def has_begun() -> None:
                outage.answered()
                begun.set()

            while True:
                session = self._session = self._new_session(outage)
                if self._draining:
                    session.begin_drain()
                try:
                    await session.run(has_begun)
                    return
                except asyncio.CancelledError:
                    self._membership.deregister_later(session.worker_id)
                    if not self._goes_on():
                        raise
                    _log.error(
                        "tasks of worker %s were cancelled, by others: the worker restarts with a new id",
                        session.worker_id,
                        extra={"worker_id": session.worker_id},
                    )
                except WorkerFencedError:
                    backoff.reset()
                    _log.error(
                        "lease of worker %s lost: its documents are dropped, and the worker restarts with a new id",
                        session.worker_id,
                        extra={"worker_id": session.worker_id},
                    )
                except Exception as error:
                    if not begun.is_set():
                        raise
                    if isinstance(error, StoreUnavailableError) and not session.has_worked:
                        outage.failed(error)
                    else:
                        _log.exception(
                            "worker %s broke down, and restarts with a new id",
                            session.worker_id,
                            extra={"worker_id": session.worker_id},
                        )
                    await self._rest(backoff.pause())
                finally:
                    self._session = None
                if self._closing.is_set():
                    return

    def _threads_left(self, number: int) -> None:
        self._stats.threads_left = number

    def _goes_on(self) -> bool:
        """Return whether the worker is to go on though its task was cancelled, which it never does itself.

        At the end of an event loop, all of its tasks are cancelled: then the one that entered the worker is done, or
        is being cancelled, too. Otherwise a helper cancels tasks that are not its own.
        """
        task, entered_by = asyncio.current_task(), self._entered_by
        if task is None or entered_by is None or entered_by.done() or entered_by.cancelling():
            return False
        while task.cancelling():
            task.uncancel()
        return True

    def _sessions_ended(self, task: asyncio.Task[None]) -> None:
        """Have nobody wait for a worker whose sessions have ended, and not by its close."""
        if self._closing.is_set() or self._sessions is not task or not task.cancelled():
            return
        _log.warning("worker stopped by its event loop: it runs nothing any more, and followers are told")
        self._stopped = True
        self._news.stop()

    async def _rest(self, seconds: float) -> None:
        """Wait before a session that may break down, too, unless the worker is being closed."""
        with suppress(TimeoutError):
            async with Deadline(self._clock, seconds):
                await self._closing.wait()

    def _new_session(self, restart: Outage) -> Session:
        assert self._threads is not None
        return Session(
            self._store,
            self._membership,
            self._workflows,
            self._options,
            self._selection,
            clock=self._clock,
            threads=self._threads,
            stats=self._stats,
            dependencies=self._dependencies,
            late_results=self._late_results,
            deliver=self._news.deliver,
            outages=self._outages,
            restart=restart,
            loading=self._loading,
            signals=self._signals,
        )

    def _commanded(self, batch_id: BatchId, command: Command, committed: Committed) -> None:
        self._news.deliver(committed.events)
        if self._session is not None:
            self._session.commanded(batch_id, command, committed)
