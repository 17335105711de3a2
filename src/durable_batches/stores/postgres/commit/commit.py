"""A worker's commits: in one statement where no other worker can have interfered, else in a transaction under locks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from durable_batches.errors import StoreLockedError, WorkerFencedError
from durable_batches.lifecycle.facts import ActivityCompleted, ActivityFailed, Fact
from durable_batches.lifecycle.planning import (
    ISOLATED_CRASHES,
    Loaded,
    checkpoints_to_load,
    executions_to_load,
    plan_claims,
    plan_facts,
)
from durable_batches.lifecycle.records import (
    RESOLVER_POSITION,
    BatchRecord,
    ClaimRequest,
    Committed,
    EventRecord,
    ExecutionKey,
    ExecutionRecord,
    Micros,
    WorkerId,
)
from durable_batches.lifecycle.states import BatchId
from durable_batches.stores.postgres import queries
from durable_batches.stores.postgres.commit.cache import CommitCache
from durable_batches.stores.postgres.commit.claim import (
    claimed_by,
    load_candidates,
    load_claims,
    lock_open_batches,
    next_due,
    write_claims,
)
from durable_batches.stores.postgres.commit.lock import fence, lock_batches, lockable
from durable_batches.stores.postgres.commit.optimistic import commit_if_unchanged
from durable_batches.stores.postgres.commit.write import apply
from durable_batches.stores.postgres.connection.database import Database
from durable_batches.stores.postgres.connection.errors import translated
from durable_batches.stores.postgres.connection.server_clock import ServerClock
from durable_batches.stores.postgres.connection.session import Session, transaction, unless_lost
from durable_batches.stores.postgres.connection.timeouts import Timeouts
from durable_batches.stores.protocol import LEVEL
from durable_batches.stores.rows import execution_key, refusals_as_text, refusals_of

__all__ = ["Commits"]

_LOOK_AGAIN_MICROS: Final = 10_000
"""Until the next claim, after one that passed over batches because others had locked them."""


class Commits:
    """Used on the store's loop.

    Args:
        database: Where the batches are.
        server_clock: The time it goes by.
        timeouts: Of its transactions.
        changed: Called with the events of each commit.
    """

    def __init__(
        self,
        database: Database,
        server_clock: ServerClock,
        timeouts: Timeouts,
        *,
        changed: Callable[[Sequence[EventRecord]], object],
    ) -> None:
        self._database = database
        self._server_clock = server_clock
        self._timeouts = timeouts
        self._changed = changed
        self._caches: dict[WorkerId, CommitCache] = {}

    def forget(self, workers: Iterable[WorkerId]) -> None:
        """Drop what is remembered of these workers, who commit nothing more."""
        for worker in workers:
            self._caches.pop(worker, None)

    async def commit(
        self, session: Session, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None
    ) -> Committed:
        """See `Store.commit`."""
        # Taken out: what a commit that fails has made of it is of no use.
        cache = self._caches.pop(worker, None) or CommitCache()
        try:
            committed = None
            if claim is None and cache.may_be_current(number - 1) and not self._timeouts.is_contended():
                committed = await self._commit_optimistically(session, worker, number, facts, cache)
            if committed is None:
                async with transaction(session, self._database.where, self._timeouts.begin(session, worker)):
                    committed = await self._commit_locked(session, worker, number, facts, claim, cache)
        except StoreLockedError as error:
            self._timeouts.note_contention()
            raise await self._with_locked_batches(session, error, facts) from error
        cache.owned.number = number
        self._caches[worker] = cache
        self._changed(committed.events)
        return committed

    # ---- in one statement --------------------------------------------------------------------------------------

    async def _commit_optimistically(
        self, session: Session, worker: WorkerId, number: int, facts: Sequence[Fact], cache: CommitCache
    ) -> Committed | None:
        """Plan the commit by what the last one left, and write it if nothing of that has changed.

        None: something has, or one statement does not do; nothing is written then.
        """
        known = cache.owned.as_of(number - 1)
        wanted = _without_idle_resolvers(executions_to_load(facts), cache.batches.records, facts)
        now = self._server_clock.now()
        if now is None:
            now = cache.server_time()
        if now is None or not all(key in known for key in wanted) or checkpoints_to_load(facts):
            return None
        concerned = {fact.batch_id for fact in facts}
        if not concerned <= cache.batches.keys.keys():
            return None
        loaded = Loaded(now, cache.batches.records, {key: known[key] for key in wanted})
        writes = plan_facts(loaded, worker, facts, level=LEVEL)
        if writes.refused or writes.forget:
            return None
        checkpoint_only = _checkpoint_only(facts, known)
        asked = self._server_clock.asks()
        with unless_lost(session, self._database.where):
            written = await commit_if_unchanged(
                session,
                worker,
                number,
                self._server_clock.boot(),
                self._timeouts.lock_timeout(worker),
                cache.batches,
                concerned - checkpoint_only,
                checkpoint_only,
                writes,
            )
        if written is None:
            cache.invalidate()
            return None
        cache.note_time(written.now)
        self._server_clock.note(asked, written.now)
        cache.batches.were_written(writes.batches, written.version)
        cache.owned.note(worker, loaded.executions, writes)
        return Committed(events=writes.events)

    # ---- under locks -------------------------------------------------------------------------------------------

    async def _commit_locked(
        self,
        session: Session,
        worker: WorkerId,
        number: int,
        facts: Sequence[Fact],
        claim: ClaimRequest | None,
        cache: CommitCache,
    ) -> Committed:
        known = cache.owned.as_of(number - 1)
        checkpoint_only = _checkpoint_only(facts, known)
        change = {fact.batch_id for fact in facts} - checkpoint_only
        asked = self._server_clock.asks()
        fenced = await fence(session, worker, number, self._server_clock.boot(), change, checkpoint_only)
        if fenced is None:
            return await self._committed_before(session, worker, number, claim)
        cache.note_time(fenced.now)
        self._server_clock.note(asked, fenced.now)
        now = self._server_clock.now()
        if now is None:
            now = fenced.now
        locked, version = fenced.locked, fenced.version
        committed = Committed()
        if facts:
            wanted = _without_idle_resolvers(executions_to_load(facts), locked.records, facts)
            loaded = await queries.load_executions(session, now, locked, wanted, known)
            late = checkpoints_to_load(facts)
            if late:
                loaded = loaded._replace(recorded=await queries.load_recorded(session, locked, late))
            writes = plan_facts(loaded, worker, facts, level=LEVEL)
            await apply(session, locked, writes)
            locked.were_written(writes.batches, version)
            cache.owned.note(worker, loaded.executions, writes)
            committed = Committed(events=writes.events, refused=writes.refused, set_aside=writes.set_aside)
            if writes.refused:
                await session.fetch(
                    "UPDATE {s}.worker SET refused = $2 WHERE worker_id = $1",
                    worker,
                    refusals_as_text(number, writes.refused),
                )
        cache.remember(locked)
        if claim is not None:
            committed = await self._claim(
                session, worker, number, claim, now, version, committed, cache, holding=bool(change)
            )
        return committed

    async def _committed_before(
        self, session: Session, worker: WorkerId, number: int, claim: ClaimRequest | None
    ) -> Committed:
        """Answer a number that was committed already: with its refusals, and the claims it made."""
        row = await session.row(
            "SELECT commits, refused FROM {s}.worker WHERE worker_id = $1 AND dead IS NULL FOR UPDATE", worker
        )
        if row is None or row[0] != number:
            raise WorkerFencedError(worker)
        refused = refusals_of(row[1], number)
        if claim is None:
            return Committed(refused=refused)
        owned = await claimed_by(session, worker, number)
        locked = await lock_batches(session, {batch_id for batch_id, _ in owned})
        loaded = await queries.load_executions(session, await self._server_clock.moment(session), locked, owned)
        keyed = [(execution_key(locked.keys[key[0]], key[1]), loaded.executions[key]) for key in owned]
        claims = await load_claims(session, loaded.batches, keyed, claim)
        return Committed(refused=refused, claims=claims, retry_in=0)

    async def _claim(
        self,
        session: Session,
        worker: WorkerId,
        number: int,
        request: ClaimRequest,
        now: Micros,
        version: str,
        committed: Committed,
        cache: CommitCache,
        *,
        holding: bool,
    ) -> Committed:
        # A transaction that holds locks must not wait for others, or two such would wait for each other.
        skip = holding or self._timeouts.is_contended()
        locked, batches, skipped = await lock_open_batches(session, now, request, skip=skip)
        candidates = await load_candidates(session, now, request, locked, batches) if batches else []
        if candidates:
            writes = plan_claims(now, worker, request, candidates, now, level=LEVEL)
            assert len(writes.executions) <= request.limit, "the shares of a claim exceed what was asked for"
            claims, retry_in = await write_claims(session, locked, candidates, writes, number, now, request)
            locked.were_written(writes.batches, version)
            cache.remember(locked)
            cache.owned.claimed(claims)
            committed = committed._replace(
                events=[*committed.events, *writes.events],
                claims=claims,
                set_aside={**committed.set_aside, **writes.set_aside},
            )
        else:
            retry_in = await next_due(session, now, request)
        if skipped > 0 and len(committed.claims) < request.limit:
            retry_in = _LOOK_AGAIN_MICROS if retry_in is None else min(retry_in, _LOOK_AGAIN_MICROS)
        return committed._replace(retry_in=retry_in)

    async def _with_locked_batches(
        self, session: Session, error: StoreLockedError, facts: Sequence[Fact]
    ) -> StoreLockedError:
        """Make the same error with the batches that are locked, so that the others can go on."""
        batch_ids = {fact.batch_id for fact in facts}
        if not batch_ids:
            return error
        with translated(self._database.where):
            await session.run("BEGIN")
            try:
                free = await lockable(session, batch_ids)
            finally:
                await session.run("ROLLBACK")
        return StoreLockedError(self._database.where, sorted(batch_ids - free))


def _checkpoint_only(facts: Sequence[Fact], known: Mapping[ExecutionKey, ExecutionRecord]) -> set[BatchId]:
    """Find the batches of which these facts only record checkpoints, and so change nothing in the batch's row.

    Those rows are read without a lock. A run that ends at the same moment keeps what was paid for in either order.
    """
    checkpoint_only: set[BatchId] = set()
    others: set[BatchId] = set()
    for fact in facts:
        execution = known.get((fact.batch_id, fact.position))
        if execution is None or execution.crashes >= ISOLATED_CRASHES:
            # The batch counts those that are isolated, and this one has recorded something.
            others.add(fact.batch_id)
        elif (
            type(fact) is ActivityFailed or (type(fact) is ActivityCompleted and fact.mark <= execution.mark)
        ) and fact.spent is None:
            checkpoint_only.add(fact.batch_id)
        else:
            others.add(fact.batch_id)
    return checkpoint_only - others


def _without_idle_resolvers(
    wanted: Collection[ExecutionKey], batches: Mapping[BatchId, BatchRecord], facts: Sequence[Fact]
) -> list[ExecutionKey]:
    """Leave out the resolvers of batches that have more to do than these facts can end: they do not start yet."""
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
