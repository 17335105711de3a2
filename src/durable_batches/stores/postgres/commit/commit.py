"""A worker's commits: in a transaction under locks, or in one statement where nobody else can have interfered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from durable_batches.errors import StoreLockedError, WorkerFencedError
from durable_batches.lifecycle.facts import ActivityCompleted, ActivityFailed, Fact
from durable_batches.lifecycle.planning import Loaded, executions_to_load, plan_claims, plan_facts
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
from durable_batches.stores.postgres import queries as rows
from durable_batches.stores.postgres.commit import claim as claiming
from durable_batches.stores.postgres.commit import lock as locking
from durable_batches.stores.postgres.commit import write as writing
from durable_batches.stores.postgres.commit.cache import Memory
from durable_batches.stores.postgres.commit.optimistic import write_at_once
from durable_batches.stores.postgres.connection.connection import (
    Database,
    Session,
    transaction,
    translated,
    unless_lost,
)
from durable_batches.stores.postgres.connection.server_clock import Times
from durable_batches.stores.postgres.connection.timeouts import Limits
from durable_batches.stores.rows import execution_key, refusals_as_text, refusals_of

__all__ = ["Commits"]

_LOOK_AGAIN_MICROS: Final = 10_000
"""When a claim found batches that others were at, at that moment."""


class Commits:
    """Lives on the store's loop.

    Args:
        database: Where.
        times: What it goes by.
        limits: Of the transactions.
        changed: Called with the events of each commit.
    """

    def __init__(
        self, database: Database, times: Times, limits: Limits, *, changed: Callable[[Sequence[EventRecord]], object]
    ) -> None:
        self._database = database
        self._times = times
        self._limits = limits
        self._changed = changed
        self._memories: dict[WorkerId, Memory] = {}

    def forget(self, workers: Iterable[WorkerId]) -> None:
        """These workers commit nothing more."""
        for worker in workers:
            self._memories.pop(worker, None)

    async def commit(
        self, session: Session, worker: WorkerId, number: int, facts: Sequence[Fact], claim: ClaimRequest | None
    ) -> Committed:
        """See `Store.commit`."""
        # Taken out: what a commit that fails has made of it is of no use.
        memory = self._memories.pop(worker, None) or Memory()
        try:
            committed = None
            if claim is None and memory.may_be_current(number - 1) and not self._limits.is_wary():
                committed = await self._commit_at_once(session, worker, number, facts, memory)
            if committed is None:
                async with transaction(session, self._database.where, self._limits.begin(session, worker)):
                    committed = await self._commit_locked(session, worker, number, facts, claim, memory)
        except StoreLockedError as error:
            self._limits.become_wary()
            raise await self._who_is_locked(session, error, facts) from error
        memory.owned.number = number
        self._memories[worker] = memory
        self._changed(committed.events)
        return committed

    # ---- in one statement --------------------------------------------------------------------------------------

    async def _commit_at_once(
        self, session: Session, worker: WorkerId, number: int, facts: Sequence[Fact], memory: Memory
    ) -> Committed | None:
        """Plan the commit by what the last one left, and write it if all of that is still so.

        None: it is not, or one statement does not do; nothing is written then.
        """
        known = memory.owned.as_of(number - 1)
        wanted = _needed(executions_to_load(facts), memory.batches.records, facts)
        now = self._times.now()
        if now is None:
            now = memory.servers_clock()
        if now is None or not all(key in known for key in wanted):
            return None
        concerned = {fact.batch_id for fact in facts}
        if not concerned <= memory.batches.keys.keys():
            return None
        loaded = Loaded(now, memory.batches.records, {key: known[key] for key in wanted})
        writes = plan_facts(loaded, worker, facts)
        if writes.refused or writes.forget:
            return None
        quiet = _quiet(facts, known)
        with unless_lost(session, self._database.where):
            written = await write_at_once(
                session,
                worker,
                number,
                self._times.boot(),
                self._limits.lock_timeout(worker),
                memory.batches,
                concerned - quiet,
                quiet,
                writes,
            )
        if written is None:
            memory.was_not_current()
            return None
        memory.saw_clock(written.now)
        memory.batches.were_written(writes.batches, written.version)
        memory.owned.note(worker, loaded.executions, writes)
        return Committed(events=writes.events)

    # ---- under locks -------------------------------------------------------------------------------------------

    async def _commit_locked(
        self,
        session: Session,
        worker: WorkerId,
        number: int,
        facts: Sequence[Fact],
        claim: ClaimRequest | None,
        memory: Memory,
    ) -> Committed:
        known = memory.owned.as_of(number - 1)
        quiet = _quiet(facts, known)
        change = {fact.batch_id for fact in facts} - quiet
        fenced = await locking.fence(session, worker, number, self._times.boot(), change, quiet)
        if fenced is None:
            return await self._committed_before(session, worker, number, claim)
        memory.saw_clock(fenced.now)
        now = self._times.now()
        if now is None:
            now = fenced.now
        locked, version = fenced.locked, fenced.version
        committed = Committed()
        if facts:
            wanted = _needed(executions_to_load(facts), locked.records, facts)
            loaded = await rows.load_executions(session, now, locked, wanted, known)
            writes = plan_facts(loaded, worker, facts)
            await writing.apply(session, locked, writes)
            locked.were_written(writes.batches, version)
            memory.owned.note(worker, loaded.executions, writes)
            committed = Committed(events=writes.events, refused=writes.refused)
            if writes.refused:
                await session.fetch(
                    "UPDATE {s}.worker SET refused = $2 WHERE worker_id = $1",
                    worker,
                    refusals_as_text(number, writes.refused),
                )
        memory.remember(locked)
        if claim is not None:
            committed = await self._claim(
                session, worker, number, claim, now, version, committed, memory, holding=bool(change)
            )
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
        loaded = await rows.load_executions(session, await self._times.moment(session), locked, owned)
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
        version: str,
        committed: Committed,
        memory: Memory,
        *,
        holding: bool,
    ) -> Committed:
        # Who holds locks already must not wait for others, or two such commits would wait for each other.
        skip = holding or self._limits.is_wary()
        locked, batches, skipped = await claiming.lock_open_batches(session, now, request, skip=skip)
        candidates = await claiming.load_candidates(session, now, request, locked, batches) if batches else []
        if candidates:
            writes = plan_claims(now, worker, request, candidates, now)
            claims, retry_in = await claiming.claim(session, locked, candidates, writes, number, now, request)
            locked.were_written(writes.batches, version)
            memory.remember(locked)
            memory.owned.claimed(claims)
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
    wanted: Collection[ExecutionKey], batches: Mapping[BatchId, BatchRecord], facts: Sequence[Fact]
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
