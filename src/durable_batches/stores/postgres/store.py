"""The Postgres store: several processes, on several machines, share the work.

Whatever it does, it does on a thread, an event loop and connections of its own: user code that blocks the host's
loop neither holds a row's lock nor costs the lease. All writes are durable when they are acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from durable_batches.clock import Clock
from durable_batches.errors import (
    ConfigurationError,
    StoreAccessError,
    StoreLockedError,
    StoreUnavailableError,
    WorkerFencedError,
)
from durable_batches.lifecycle.facts import ActivityCompleted, ActivityFailed, Command, Discard, Fact
from durable_batches.lifecycle.plan import (
    Departure,
    executions_to_load,
    plan_claims,
    plan_facts,
    plan_release,
)
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    CheckpointRecord,
    ClaimRequest,
    Committed,
    DocumentRecord,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    ExecutionStatus,
    Micros,
    NewDocument,
    WorkerId,
    WorkerRecord,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.owned import Owned
from durable_batches.stores.postgres import claiming, loading, locking, rows, writing
from durable_batches.stores.postgres.connection import (
    Connection,
    Database,
    Session,
    closed,
    migrate,
    millis,
    refuse_poolers,
    transaction,
    translated,
)
from durable_batches.stores.postgres.pool import Pool
from durable_batches.stores.postgres.thread import LoopThread
from durable_batches.stores.postgres.watch import Watch
from durable_batches.stores.protocol import BatchQuery, Capabilities, Expired, HostTransaction, Loading
from durable_batches.stores.sql import execution_key, refusals_as_text, refusals_of, worker_of, workflows_as_text
from durable_batches.tasks import ReusableLock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PostgresStore"]

_log = logging.getLogger("durable_batches")

P = ParamSpec("P")
T = TypeVar("T")

_WRITERS: Final = 4
_READERS: Final = 3
"""Connections at most, for each; beside them one that listens, and one for the lease of each worker."""

_BEATS_A_LEASE: Final = 3
_LOOK_AGAIN_MICROS: Final = 10_000
"""When a claim found batches that others were at, at that moment."""
_WARY_SECONDS: Final = 5.0
_WARY_LOCK_SECONDS: Final = 0.05
"""After a commit that has waited for a lock in vain: for so long, others wait for a lock only so long."""

_SINCE_TRANSACTION_TIMEOUT: Final = 17

_DEPARTURES: Final[Sequence[Departure]] = ("shutdown", "crash")

_EXPIRED: Final = (
    "(lease_until <= c.now OR lease_until > c.now + 2 * lease OR dead IS NOT NULL OR worker_id = ANY($2::text[]))"
)
"""One that is more than a lease in the future is from before the server's clock was set back."""

_STATEMENT_TIMEOUT: Final = timedelta(seconds=15)
_LOCK_TIMEOUT: Final = timedelta(seconds=3)


class PostgresStore:
    """Batches in a schema of a Postgres database (13 or newer), which is made where there is none.

    Any number of processes on any number of machines share it. Leases are measured on the server's clock.

    Args:
        target: A DSN (`postgresql://user:password@host:5432/database`), or the host application's engine of
            SQLAlchemy (`postgresql+asyncpg`): then the store connects as that engine does. It opens connections of
            its own either way, about eight a process. They need sessions: not a pooler in transaction mode.
        schema: The schema for its tables. Any name; several stores may share a database, each with its own.
        statement_timeout: How long the server may work on one statement, and about how long a server that does
            not answer is waited for.
        lock_timeout: How long a write waits for rows that another session has locked.
        clock: The time it goes by; by default the server's. For simulations.

    Raises:
        ConfigurationError: The target or the schema is not what the server could take, or a timeout is not positive.
        MissingExtraError: The driver is not installed.
    """

    def __init__(
        self,
        target: str | AsyncEngine,
        *,
        schema: str = "durable_batches",
        statement_timeout: timedelta = _STATEMENT_TIMEOUT,
        lock_timeout: timedelta = _LOCK_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        if statement_timeout <= timedelta(0) or lock_timeout <= timedelta(0):
            raise ConfigurationError("statement_timeout and lock_timeout must be positive")
        self._database: Final = Database(
            target, schema, statement_timeout.total_seconds(), lock_timeout.total_seconds()
        )
        self._clock: Final = clock
        self._owned: dict[WorkerId, Owned] = {}
        self._leases: dict[WorkerId, float] = {}
        self._wary_until = 0.0
        self._opened = 0
        self._opening = ReusableLock()
        self._running: _Running | None = None

    def __repr__(self) -> str:
        return f"PostgresStore({self._database.where!r}, schema={self._database.schema!r})"

    @property
    def capabilities(self) -> Capabilities:
        """Durable, several processes, pushes, the host's transactions."""
        return Capabilities(several_processes=True, durable=True, pushes=True, host_transactions=True)

    async def open(self) -> None:
        """See `Store.open`.

        Raises:
            ConfigurationError: There is a pooler in transaction mode before the server.
            StoreAccessError: The server refuses the login, or the role may not make the schema.
            StoreReadOnlyError: The server is a replica.
        """
        async with self._opening:
            if self._opened == 0:
                thread = LoopThread("durable-batches-postgres")
                try:
                    self._running = await thread.run(self._start(thread))
                except BaseException:
                    await thread.stop()
                    raise
            self._opened += 1

    async def _start(self, thread: LoopThread) -> _Running:
        await refuse_poolers(self._database)
        await migrate(self._database)
        return _Running(thread, self._database, Watch(self._database, self._now))

    async def close(self) -> None:
        """See `Store.close`."""
        async with self._opening:
            if self._opened == 0:
                return
            self._opened -= 1
            if self._opened == 0 and self._running is not None:
                running, self._running = self._running, None
                try:
                    await running.thread.run(running.close())
                finally:
                    await running.thread.stop()

    def joined(self, connection: HostTransaction) -> AbstractAsyncContextManager[Loading]:
        """See `HostTransactions.joined`.

        `connection` is a connection or a session of SQLAlchemy's asyncio extension (over asyncpg), or a connection
        of asyncpg, in a transaction. What is loaded is rolled back with it, and is seen and run only after its commit.
        """
        from durable_batches.stores.postgres.host import joined

        return joined(self._database, self._clock, connection)

    # ---- workers -------------------------------------------------------------------------------------------

    async def register(self, worker: WorkerRecord, lease: Micros) -> None:
        """See `Store.register`."""

        async def work(session: Session) -> None:
            async with transaction(session, self._database.where):
                await session.fetch(
                    "INSERT INTO {s}.worker (worker_id, boot_id, pid_namespace, pid, started, workflows, lease, "
                    f"lease_until, commits, refused) VALUES ($1, $2, $3, $4, $5, $6, $7, "
                    f"coalesce($8::bigint, {locking.CLOCK}) + $7, 0, '[]')",
                    worker.worker_id,
                    worker.boot_id,
                    worker.pid_namespace,
                    worker.pid,
                    worker.started,
                    workflows_as_text(worker.workflows),
                    lease,
                    self._boot(),
                )

        self._leases[worker.worker_id] = lease / 1_000_000
        await self._write(work)

    def heart(self, worker: WorkerId) -> _PostgresHeart:
        """See `Store.heart`."""
        lease = self._leases.get(worker, 30.0)
        return _PostgresHeart(self._alive().thread, self._database, self._boot, worker, lease / _BEATS_A_LEASE)

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `Store.workers`."""

        async def work(session: Session) -> list[WorkerRecord]:
            found = await session.fetch(
                "SELECT worker_id, boot_id, pid_namespace, pid, started, workflows FROM {s}.worker WHERE dead IS NULL"
            )
            return [worker_of(tuple(row)) for row in found]

        return await self._read(work)

    async def expire(self, *, dead: Collection[WorkerId] = ()) -> Expired:
        """See `Store.expire`."""
        return await self._write(self._expire, dead)

    async def _expire(self, session: Session, dead: Collection[WorkerId]) -> Expired:
        # Mostly there is nobody, and then nothing is locked or written. A row that is locked is one that commits at
        # this moment; it is looked at again soon.
        with translated(self._database.where):
            found = await session.fetch(
                f"SELECT worker_id FROM {{s}}.worker, (SELECT coalesce($1::bigint, {locking.CLOCK}) AS now) c "
                f"WHERE {_EXPIRED}",
                self._boot(),
                sorted(dead),
            )
        if not found:
            return Expired()
        try:
            expired = await self._declare_dead(session, dead, skip=False)
        except StoreLockedError:
            expired = await self._declare_dead(session, dead, skip=True)
        if len(expired.workers) < len(found):
            await self._end_stuck_sessions(session)
        return expired

    async def _end_stuck_sessions(self, session: Session) -> None:
        """End the sessions of workers past their lease that were stopped in the middle of a transaction.

        The server ends those that are idle in one, but not one that waits for the second half of a message.
        """
        try:
            with translated(self._database.where):
                ended = await session.value(
                    "SELECT count(pg_terminate_backend(l.pid)) "
                    f"FROM {{s}}.worker w, (SELECT {locking.CLOCK} AS now) c, "
                    "pg_locks l, pg_stat_activity a WHERE w.lease_until <= coalesce($1::bigint, c.now) "
                    "AND l.locktype = 'transactionid' AND l.transactionid = w.xmax AND l.granted "
                    "AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid() AND a.pid = l.pid "
                    f"AND a.xact_start < clock_timestamp() - w.lease / {_BEATS_A_LEASE} * interval '1 microsecond'",
                    self._boot(),
                )
            if ended:
                _log.warning("ended %d sessions of workers that are past their lease in a transaction", ended)
        except StoreAccessError as error:
            _log.debug("sessions of workers that are past their lease could not be ended: %s", error)

    async def _declare_dead(self, session: Session, dead: Collection[WorkerId], *, skip: bool) -> Expired:
        async with transaction(session, self._database.where):
            found = await session.fetch(
                "SELECT worker_id, dead FROM {s}.worker, "
                f"(SELECT coalesce($1::bigint, {locking.CLOCK}) AS now) c "
                f"WHERE {_EXPIRED} ORDER BY worker_id FOR UPDATE OF worker SKIP LOCKED",
                self._boot(),
                sorted(dead),
            )
            events: list[EventRecord] = []
            for departure in _DEPARTURES:
                gone = [WorkerId(worker_id) for worker_id, left in found if (left or "crash") == departure]
                events += await self._free(session, gone, departure, skip=skip)
        self._changed(events)
        return Expired(workers=[WorkerId(worker_id) for worker_id, left in found if left is None], events=events)

    async def leave(self, worker: WorkerId) -> Sequence[EventRecord]:
        """See `Store.leave`."""
        return await self._write(self._leave, worker)

    async def _leave(self, session: Session, worker: WorkerId) -> Sequence[EventRecord]:
        try:
            return await self._say_goodbye(session, worker, skip=False)
        except StoreLockedError:
            return await self._say_goodbye(session, worker, skip=True)

    async def _say_goodbye(self, session: Session, worker: WorkerId, *, skip: bool) -> Sequence[EventRecord]:
        async with transaction(session, self._database.where):
            found = await session.fetch(
                "SELECT worker_id FROM {s}.worker WHERE worker_id = $1 AND dead IS NULL FOR UPDATE", worker
            )
            events = await self._free(session, [worker], "shutdown", skip=skip) if found else ()
        self._leases.pop(worker, None)
        self._changed(events)
        return events

    async def _free(
        self, session: Session, gone: Sequence[WorkerId], departure: Departure, *, skip: bool
    ) -> Sequence[EventRecord]:
        """Free what these workers own, whose rows are locked; what is left is freed with the next `expire`."""
        if not gone:
            return ()
        for worker in gone:
            self._owned.pop(worker, None)
        owned = await rows.owned_by(session, gone)
        locked = await locking.lock_batches(session, {batch_id for batch_id, _ in owned}, skip=skip)
        # Read again, now that nobody else changes them: the resolvers are not these workers' own.
        now: Micros = await self._moment(session)
        reachable = [key for key in owned if key[0] in locked.keys]
        writes = plan_release(await rows.load_executions(session, now, locked, reachable), gone, departure)
        await writing.apply(session, locked, writes)
        if len(reachable) == len(owned):
            await session.fetch("DELETE FROM {s}.worker WHERE worker_id = ANY($1::text[])", list(gone))
        else:
            await session.fetch(
                "UPDATE {s}.worker SET dead = coalesce(dead, $2) WHERE worker_id = ANY($1::text[])",
                list(gone),
                departure,
            )
        return writes.events

    # ---- loading ---------------------------------------------------------------------------------------------

    async def create(self, batch: BatchRecord) -> BatchRecord | None:
        """See `Store.create`."""

        async def work(session: Session) -> BatchRecord | None:
            async with transaction(session, self._database.where):
                return await loading.create(session, batch)

        return await self._write(work)

    async def add(self, batch_id: BatchId, loader: WorkerId, documents: Sequence[NewDocument]) -> None:
        """See `Store.add`."""

        async def work(session: Session) -> None:
            async with transaction(session, self._database.where):
                await loading.add(session, await self._moment(session), batch_id, loader, documents)

        await self._write(work)

    # ---- the write paths -------------------------------------------------------------------------------------

    async def commit(
        self, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None = None
    ) -> Committed:
        """See `Store.commit`.

        Raises:
            StoreLockedError: Another session has locked rows that the facts are about; nothing was written.
        """
        return await self._write(self._commit, worker, number, facts, claim)

    async def _commit(
        self,
        session: Session,
        worker: WorkerId,
        number: int,
        facts: Sequence[Fact],
        claim: ClaimRequest | None,
    ) -> Committed:
        owned = self._owned.pop(worker, None) or Owned()
        try:
            async with transaction(session, self._database.where, self._begin(session, worker)):
                committed = await self._commit_within(session, worker, number, facts, claim, owned)
        except StoreLockedError as error:
            self._wary_until = asyncio.get_running_loop().time() + _WARY_SECONDS
            raise await self._who_is_locked(session, error, facts) from error
        owned.number = number
        self._owned[worker] = owned
        self._changed(committed.events)
        return committed

    def _begin(self, session: Session, worker: WorkerId) -> str:
        """A worker that is stopped in the middle of a commit must not hold others up for longer than its lease."""
        lease = self._leases.get(worker, 30.0)
        longest = lease / _BEATS_A_LEASE
        settings: list[str] = []
        if session.connection.get_server_version().major >= _SINCE_TRANSACTION_TIMEOUT:
            settings.append(f"transaction_timeout = {millis(lease)}")
        if longest < self._database.statement_seconds:
            settings.append(f"idle_in_transaction_session_timeout = {millis(longest)}")
        locks = _WARY_LOCK_SECONDS if self._is_wary() else min(longest, self._database.lock_seconds)
        if locks < self._database.lock_seconds:
            settings.append(f"lock_timeout = {millis(locks)}")
        return "; SET LOCAL ".join(["BEGIN", *settings])

    def _is_wary(self) -> bool:
        """Whether a commit has waited for a lock in vain, just now: then others need not wait as long."""
        return asyncio.get_running_loop().time() < self._wary_until

    async def _commit_within(
        self,
        session: Session,
        worker: WorkerId,
        number: int,
        facts: Sequence[Fact],
        claim: ClaimRequest | None,
        owned: Owned,
    ) -> Committed:
        known = owned.as_of(number - 1)
        quiet = _quiet(facts, known)
        change = {fact.batch_id for fact in facts} - quiet
        fenced = await locking.fence(session, worker, number, self._boot(), change, quiet)
        if fenced is None:
            return await self._committed_before(session, worker, number, claim)
        now, locked = fenced
        if self._clock is not None:
            now = self._clock.now()
        committed = Committed()
        if facts:
            wanted = _needed(executions_to_load(facts), locked.records, facts)
            loaded = await rows.load_executions(session, now, locked, wanted, known)
            writes = plan_facts(loaded, worker, facts)
            await writing.apply(session, locked, writes)
            owned.note(worker, loaded.executions, writes)
            committed = Committed(events=writes.events, refused=writes.refused)
            if writes.refused:
                await session.fetch(
                    "UPDATE {s}.worker SET refused = $2 WHERE worker_id = $1",
                    worker,
                    refusals_as_text(number, writes.refused),
                )
        if claim is not None:
            committed = await self._claim(session, worker, number, claim, now, committed, holding=bool(change))
            owned.claimed(committed.claims)
        return committed

    async def _committed_before(
        self, session: Session, worker: WorkerId, number: int, claim: ClaimRequest | None
    ) -> Committed:
        """The answer to a number that was committed already: its refusals, and the claims it made."""
        row = await session.row(
            "SELECT commits, refused FROM {s}.worker WHERE worker_id = $1 AND dead IS NULL FOR UPDATE", worker
        )
        if row is None or row[0] != number:
            raise WorkerFencedError(worker)
        refused = refusals_of(row[1], number)
        if claim is None:
            return Committed(refused=refused)
        owned = await claiming.claimed_by(session, worker, number)
        locked = await locking.lock_batches(session, {batch_id for batch_id, _ in owned})
        loaded = await rows.load_executions(session, await self._moment(session), locked, owned)
        keyed = [(execution_key(locked.keys[key[0]], key[1]), loaded.executions[key]) for key in owned]
        claims = await claiming.load_claims(session, loaded.batches, keyed, claim)
        return Committed(refused=refused, claims=claims, retry_in=0)

    async def _claim(
        self,
        session: Session,
        worker: WorkerId,
        number: int,
        request: ClaimRequest,
        now: Micros,
        committed: Committed,
        *,
        holding: bool,
    ) -> Committed:
        # Who holds locks already must not wait for others, or two such commits would wait for each other.
        skip = holding or self._is_wary()
        locked, batches, skipped = await claiming.lock_open_batches(session, now, request, skip=skip)
        candidates = await claiming.load_candidates(session, now, request, locked, batches) if batches else []
        if candidates:
            writes = plan_claims(now, worker, request, candidates, now)
            claims, retry_in = await claiming.claim(session, locked, candidates, writes, number, now, request)
            committed = committed._replace(events=[*committed.events, *writes.events], claims=claims)
        else:
            retry_in = await claiming.next_due(session, now, request)
        if skipped > 0 and len(committed.claims) < request.limit:
            retry_in = _LOOK_AGAIN_MICROS if retry_in is None else min(retry_in, _LOOK_AGAIN_MICROS)
        return committed._replace(retry_in=retry_in)

    async def _who_is_locked(
        self, session: Session, error: StoreLockedError, facts: Sequence[Fact]
    ) -> StoreLockedError:
        """The same error with the batches that are concerned, so that the others can go on."""
        batch_ids = {fact.batch_id for fact in facts}
        if not batch_ids:
            return error
        with translated(self._database.where):
            await session.run("BEGIN")
            try:
                free = await locking.lockable(session, batch_ids)
            finally:
                await session.run("ROLLBACK")
        return StoreLockedError(self._database.where, sorted(batch_ids - free))

    async def control(self, batch_id: BatchId, command: Command) -> Committed:
        """See `Store.control`.

        Raises:
            StoreLockedError: Another session has locked the batch; nothing was written.
        """

        async def work(session: Session) -> Committed:
            # To remove a large batch takes its time.
            begin = "BEGIN; SET LOCAL statement_timeout = 0" if isinstance(command, Discard) else "BEGIN"
            try:
                async with transaction(session, self._database.where, begin):
                    committed = await loading.control(session, self._now, batch_id, command)
            except StoreLockedError as error:
                raise StoreLockedError(self._database.where, [batch_id]) from error
            self._changed(committed.events)
            return committed

        return await self._write(work)

    # ---- reading ---------------------------------------------------------------------------------------------

    async def batch(self, batch_id: BatchId) -> BatchRecord | None:
        """See `Store.batch`."""
        found = await self._read(rows.load_batch, batch_id)
        return None if found is None else found[1]

    async def batches(self, query: BatchQuery, *, after: BatchId | None = None, limit: int) -> Sequence[BatchRecord]:
        """See `Store.batches`."""
        return await self._read(rows.load_batches, query, after, limit)

    async def documents(
        self,
        batch_id: BatchId,
        *,
        statuses: Collection[ExecutionStatus] = (),
        after: int = RESOLVER_POSITION,
        limit: int,
        inputs: bool = True,
    ) -> Sequence[DocumentRecord]:
        """See `Store.documents`."""
        return await self._read(rows.load_documents, batch_id, statuses, after, limit, inputs)

    async def checkpoints(
        self, batch_id: BatchId, position: int, *, after: str = "", limit: int
    ) -> Sequence[CheckpointRecord]:
        """See `Store.checkpoints`."""
        return await self._read(rows.load_checkpoints, batch_id, position, after, limit)

    async def count_checkpoints(self, batch_id: BatchId) -> int:
        """See `Store.count_checkpoints`."""
        return await self._read(rows.count_checkpoints, batch_id)

    async def events(self, batch_id: BatchId, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `Store.events`."""
        return await self._read(rows.load_events, batch_id, after, limit)

    async def wait(self, seen: Mapping[BatchId, int], *, work: Collection[tuple[str, str]], timeout: Micros) -> None:
        """See `Store.wait`."""
        running = self._alive()
        news = asyncio.wrap_future(running.thread.start(running.watch.wait(dict(seen), work)))
        time_is_up = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not time_is_up.done():
                time_is_up.set_result(None)

        if self._clock is None:
            timer: Any = asyncio.get_running_loop().call_later(timeout / 1_000_000, end)
        else:
            timer = self._clock.call_later(timeout / 1_000_000, end, housekeeping=True)
        try:
            await asyncio.wait([news, time_is_up], return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            news.cancel()

    # ---- its own loop ------------------------------------------------------------------------------------------

    def _alive(self) -> _Running:
        if self._running is None:
            raise StoreUnavailableError(f"{self!r} is not open; use it inside `async with` its orchestrator or worker")
        return self._running

    async def _write(
        self, work: Callable[Concatenate[Session, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        running = self._alive()
        return await running.thread.run(running.writers.run(work, *args, **kwargs))

    async def _read(
        self, work: Callable[Concatenate[Session, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        running = self._alive()
        return await running.thread.run(running.readers.run(work, *args, **kwargs))

    def _changed(self, events: Sequence[EventRecord]) -> None:
        if self._running is not None:
            self._running.watch.changed(events)

    def _now(self) -> Micros | None:
        return None if self._clock is None else self._clock.now()

    def _boot(self) -> Micros | None:
        return None if self._clock is None else int(self._clock.boot() * 1_000_000)

    async def _moment(self, session: Session) -> Micros:
        return await loading.moment(session, self._now)


class _Running:
    """What an open store has on its loop."""

    def __init__(self, thread: LoopThread, database: Database, watch: Watch) -> None:
        self.thread = thread
        self.watch = watch
        self.writers = Pool(database, _WRITERS, by_key=True)
        self.readers = Pool(database, _READERS, by_key=False)

    async def close(self) -> None:
        await self.watch.stop()
        await self.writers.close()
        await self.readers.close()


class _PostgresHeart:
    """Beats on a connection of its own: where others wait for a lock or a reply, the lease is kept all the same."""

    def __init__(
        self,
        thread: LoopThread,
        database: Database,
        boot: Callable[[], Micros | None],
        worker: WorkerId,
        seconds: float,
    ) -> None:
        self._thread = thread
        self._database = database
        self._boot = boot
        self._worker = worker
        # An answer that comes later is of no use any more.
        self._seconds = min(seconds, database.answer_seconds)
        self._connection: Connection | None = None

    def beat(self) -> bool:
        return self._thread.start(self._beat()).result()

    async def _beat(self) -> bool:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._database.connect(by_key=True, seconds=self._seconds)
            with translated(self._database.where):
                renewed = await Session(self._database, self._connection, self._seconds).value(
                    f"UPDATE {{s}}.worker SET lease_until = coalesce($2::bigint, {locking.CLOCK}) + lease "
                    "WHERE worker_id = $1 AND dead IS NULL RETURNING true",
                    self._worker,
                    self._boot(),
                )
                return renewed is True
        except StoreUnavailableError:
            # A connection that has not answered may never do so.
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._thread.start(closed(self._connection)).result()


def _quiet(facts: Sequence[Fact], known: Mapping[ExecutionKey, ExecutionRecord]) -> set[BatchId]:
    """The batches of which these facts only record checkpoints: nothing that their rows count or tell of.

    Those rows are read without a lock. A run that ends at the same moment keeps what was paid for in either order.
    """
    quiet: set[BatchId] = set()
    loud: set[BatchId] = set()
    for fact in facts:
        execution = known.get((fact.batch_id, fact.position))
        if execution is None:
            loud.add(fact.batch_id)
        elif type(fact) is ActivityFailed or (type(fact) is ActivityCompleted and fact.mark <= execution.mark):
            quiet.add(fact.batch_id)
        else:
            loud.add(fact.batch_id)
    return quiet - loud


def _needed(
    wanted: Iterable[ExecutionKey], batches: Mapping[BatchId, BatchRecord], facts: Sequence[Fact]
) -> list[ExecutionKey]:
    """Without the resolvers of batches that have more to do than these facts can end: they are not woken yet."""
    facts_of = Counter(fact.batch_id for fact in facts)
    reporting = {fact.batch_id for fact in facts if fact.position == RESOLVER_POSITION}
    return [
        key
        for key in wanted
        if key[1] != RESOLVER_POSITION
        or key[0] in reporting
        or (batch := batches.get(key[0])) is None
        or batch.counts.pending + batch.counts.running + batch.counts.waiting <= facts_of[key[0]]
    ]
